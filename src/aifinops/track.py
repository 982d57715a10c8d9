"""What people write: `@track_cost`, `with track(...)`, `with tags(...)`, `with budget(...)`, `record`, `report`.

One idea in several spellings: a block pushes tags, a budget or a tracker into the scope; decorators open a fresh block for every
call. A block never stays in force while a generator is suspended: it is left at each `yield` and entered again at each step.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from aifinops import metering, runtime, scope
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.charges import Charge, Cost, total
from aifinops.errors import BudgetExceeded, ConfigurationError, swallow
from aifinops.meters import define
from aifinops.reading import Reading
from aifinops.tags import EMPTY, Tags, make_tags
from aifinops.telemetry import baggage, names
from aifinops.usage import Moment, Quantities, input_total, moment, output_total, quantities

if TYPE_CHECKING:
    from aifinops.analytics.reports import Report

__all__ = [
    "BudgetBlock",
    "TagBlock",
    "Track",
    "budget",
    "record",
    "report",
    "tags",
    "track",
    "track_cost",
]

F = TypeVar("F")

_entered: ContextVar[tuple[tuple[Any, Any, Any], ...]] = ContextVar("aifinops_entered", default=())
"""(block, state, pushed) of each `with` in this task: one block object may be entered by many tasks, or twice by one."""

_RESOURCES = {"gpu": "aifinops.gpu.window:open_window"}
"""Meters of held resources by keyword of `track_cost`; import strings, because neighbours do not import each other."""


# --- blocks --------------------------------------------------------------------------------------------------------------


class _Block:
    """Something that is in force between enter and exit, as `with`, `async with` or decorator."""

    def _fresh(self) -> _Block:
        """A new block of the same kind, for one call of a decorated function."""
        raise NotImplementedError

    def _open(self) -> Any:
        """Start one run of the block; the state that the other three are given."""

    def _push(self, state: Any) -> Any:
        """Put the block into force; what `_pop` undoes."""
        raise NotImplementedError

    def _pop(self, pushed: Any) -> None:
        scope.leave(pushed)

    def _close(self, state: Any, error: BaseException | None) -> None:
        """End the run."""

    def __enter__(self) -> Self:
        state = self._open()
        entry = (self, state, self._push(state))
        _entered.set((*_entered.get(), entry))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entries = _entered.get()
        entry = next((item for item in reversed(entries) if item[0] is self), None)
        if entry is None:  # left in another context than it was entered in: that one is gone
            return
        _entered.set(tuple(item for item in entries if item is not entry))
        _, state, pushed = entry
        self._pop(pushed)
        self._close(state, error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, target: F) -> F:
        return _decorate(target, self._fresh)  # type: ignore[no-any-return]


class Track(_Block):
    """A tracked block: `with track("ingest", team="search") as t`.

    Attributes:
        name: of the block and of its span. charges: every charge made inside, one a physical call, in order.
    """

    def __init__(
        self, name: str, tags: Tags = EMPTY, resources: Mapping[str, Any] | None = None, *, propagate: bool = False
    ) -> None:
        self.name = name
        self.charges: list[Charge] = []
        self._tags = tags
        self._resources = resources or {}
        self._sent = baggage.sendable(tags) if propagate else {}
        self._propagate = propagate

    def _fresh(self) -> Track:
        return Track(self.name, self._tags, self._resources, propagate=self._propagate)

    @property
    def cost(self) -> Cost:
        """What the block has cost so far; unpriced calls are noted, never counted as zero."""
        metering.drain()
        return total(charge.cost for charge in list(self.charges))

    @property
    def usage(self) -> Quantities:
        """Meter -> quantity, over all charges so far."""
        metering.drain()
        sums: dict[str, Any] = {}
        for charge in list(self.charges):
            for name, quantity in charge.quantities.items():
                sums[name] = sums.get(name, 0) + quantity
        return sums

    def add(self, charge: Charge) -> None:
        """Called by the metering for each charge inside the block."""
        self.charges.append(charge)

    def record(self, **values: Any) -> Charge:
        """`aifinops.record`, for this block."""
        return metering.record(**values)

    def _open(self) -> Any:
        try:
            span = metering.block_span(self.name, self._tags)
        except Exception as failure:  # a block without a span still tracks
            swallow("track.span", failure)
            span = None
        windows: list[Any] = []
        if self._resources:
            try:
                with _step(self, (span, windows)):  # they have the tags and the budgets of the block
                    windows.extend(_open_resource(kind, spec, self.name) for kind, spec in self._resources.items())
            except BaseException as error:  # no room in a budget: the function does not begin
                if span is not None:
                    metering.end_block_span(span, {}, error)
                raise
        return span, windows

    def _push(self, state: Any) -> Any:
        span, windows = state
        attached = [(window, window.attach()) for window in windows if window is not None]
        sent = baggage.attach(self._sent)
        return scope.enter(tags=self._tags, tracker=self, span=span), metering.attach_span(span), attached, sent

    def _pop(self, pushed: Any) -> None:
        token, attached, windows, sent = pushed
        for window, mine in reversed(windows):
            window.detach(mine)
        metering.detach_span(attached)
        baggage.detach(sent)
        scope.leave(token)

    def _close(self, state: Any, error: BaseException | None) -> None:
        span, windows = state
        for window in windows:
            with _step(self, state):
                _close_resource(window, error)
        if span is not None:
            try:
                metering.end_block_span(span, self._aggregates(), error)
            except Exception as failure:  # the block's result is the user's, whatever its span does
                swallow("track.span_end", failure)

    def _aggregates(self) -> dict[str, Any]:
        cost = self.cost
        values: dict[str, Any] = {names.AGGREGATE_CALLS: len(self.charges)}
        if cost.amount is not None:
            values[names.AGGREGATE_COST] = float(cost.amount)
            values[names.AGGREGATE_CURRENCY] = cost.currency
        unpriced = sum(charge.amount is None for charge in self.charges)
        if unpriced:
            values[names.AGGREGATE_UNPRICED] = unpriced
        values[names.AGGREGATE_INPUT] = sum(input_total(charge.quantities) for charge in self.charges)
        values[names.AGGREGATE_OUTPUT] = sum(output_total(charge.quantities) for charge in self.charges)
        return values


def _open_resource(kind: str, spec: Any, name: str) -> Any:
    module, _, function = _RESOURCES[kind].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(spec, name)
    except (BudgetExceeded, ConfigurationError):
        raise
    except Exception as failure:  # no driver, no device: the block runs, the resource stays unmetered
        swallow(f"track.{kind}_open", failure)
        return None


def _close_resource(window: Any, error: BaseException | None) -> None:
    if window is None:
        return
    try:
        window.close(error)
    except Exception as failure:  # the block's result is the user's
        swallow("track.resource_close", failure)


class TagBlock(_Block):
    """`with tags(customer="acme")`: attribution only."""

    def __init__(self, values: Tags, *, propagate: bool = False) -> None:
        self._tags = values
        self._sent = baggage.sendable(values) if propagate else {}

    def _fresh(self) -> TagBlock:
        return self

    def _push(self, state: Any) -> Any:
        return scope.enter(tags=self._tags), baggage.attach(self._sent)

    def _pop(self, pushed: Any) -> None:
        token, sent = pushed
        baggage.detach(sent)
        scope.leave(token)


class BudgetBlock(_Block):
    """A budget in force: `with budget("$5") as b`.

    One object is one budget, however many threads and tasks enter it; a decorated function gets a fresh unnamed budget for each
    call. A named budget is one and the same wherever that name is used.
    """

    def __init__(self, spec: Budget) -> None:
        self.spec = spec
        self._active = ActiveBudget(spec)

    def _fresh(self) -> BudgetBlock:
        return BudgetBlock(self.spec)

    def _open(self) -> Any:
        runtime.get().guard.prepare(self._active)  # wrong settings show here, at set-up, not inside a call

    def _push(self, state: Any) -> Any:
        token = scope.enter(budget=self._active)
        for listener in scope.budget_listeners:
            listener.budget_entered(self._active)
        return token

    def _pop(self, pushed: Any) -> None:
        scope.leave(pushed)
        for listener in scope.budget_listeners:
            listener.budget_left(self._active)

    @property
    def limit(self) -> Any:
        """The limit: Decimal for one unit, a dict of unit -> Decimal for several."""
        return self._figure("limit")

    @property
    def spent(self) -> Any:
        """Settled so far in the current window, in the unit of the limit."""
        return self._figure("spent")

    @property
    def reserved(self) -> Any:
        """Held by calls in flight, in the unit of the limit."""
        return self._figure("reserved")

    @property
    def remaining(self) -> Any:
        """Neither spent nor held; never below zero."""
        return self._figure("remaining")

    def _figure(self, name: str) -> Any:
        figures = metering.budget_figures(self._active, name)
        return next(iter(figures.values())) if len(figures) == 1 else figures

    def __repr__(self) -> str:
        return f"budget({self.spec.describe()})"


@contextmanager
def _step(block: _Block, state: Any) -> Iterator[None]:
    pushed = block._push(state)
    try:
        yield
    finally:
        block._pop(pushed)


# --- decorating every kind of callable --------------------------------------------------------------------------------


def _decorate(target: Any, fresh: Callable[[], _Block]) -> Any:
    """Wrap whatever `target` is, so that each call runs in a block of its own."""
    if isinstance(target, (classmethod, staticmethod)):
        return type(target)(_decorate(target.__func__, fresh))
    if inspect.isclass(target):
        return _decorate_class(target, lambda _name: fresh)
    if not callable(target):
        raise ConfigurationError(f"{target!r} cannot be decorated: it is not callable")
    wrapper = _WRAPPERS[_kind(target)](target, fresh)
    if inspect.isroutine(target):
        return functools.wraps(target)(wrapper)
    if isinstance(target, functools.partial):
        return functools.update_wrapper(wrapper, _function_of(target))
    from wrapt import FunctionWrapper

    # An object with __call__ stays that object for everybody who looks: attributes, isinstance, equality.
    return FunctionWrapper(target, lambda wrapped, instance, args, kwargs: wrapper(*args, **kwargs))


def _decorate_class(target: type, fresh_for: Callable[[str], Callable[[], _Block]]) -> type:
    """Every public method that the class itself defines, and `__call__`; inherited ones stay their owner's."""
    for name, member in list(vars(target).items()):
        method = isinstance(member, (classmethod, staticmethod)) or inspect.isfunction(member)
        if method and (name == "__call__" or not name.startswith("_")):
            setattr(target, name, _decorate(member, fresh_for(name)))
    return target


def _function_of(target: Any) -> Any:
    while isinstance(target, functools.partial):
        target = target.func
    return target


def _kind(target: Any) -> str:
    """Which of the four kinds of function a callable is, looking through partials and into `__call__`."""
    inner = _function_of(target)
    if not inspect.isroutine(inner):
        inner = type(inner).__call__
    inner = inspect.unwrap(inner)
    if inspect.isasyncgenfunction(inner):
        return "asyncgen"
    if inspect.isgeneratorfunction(inner):
        return "generator"
    return "coroutine" if inspect.iscoroutinefunction(inner) else "function"


def _wrap_function(target: Callable[..., Any], fresh: Callable[[], _Block]) -> Callable[..., Any]:
    def tracked(*args: Any, **kwargs: Any) -> Any:
        with fresh():
            return target(*args, **kwargs)

    return tracked


def _wrap_coroutine(target: Callable[..., Any], fresh: Callable[[], _Block]) -> Callable[..., Any]:
    async def tracked(*args: Any, **kwargs: Any) -> Any:
        with fresh():
            return await target(*args, **kwargs)

    return tracked


class _Run:
    """One run of a block around a generator: in force only while the generator's own code runs."""

    def __init__(self, block: _Block) -> None:
        self._block = block
        self._state = block._open()

    def step(self) -> Any:
        return _step(self._block, self._state)

    def close(self, error: BaseException | None) -> None:
        self._block._close(self._state, error)


def _wrap_generator(target: Callable[..., Any], fresh: Callable[[], _Block]) -> Callable[..., Any]:
    def tracked(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        run, failed = _Run(fresh()), None
        try:
            with run.step():
                generator = target(*args, **kwargs)
            advance: Callable[[], Any] = functools.partial(next, generator)
            while True:
                try:
                    with run.step():
                        item = advance()
                except StopIteration as stop:
                    return stop.value
                try:
                    sent = yield item
                except GeneratorExit:
                    with run.step():
                        generator.close()
                    raise
                except BaseException as error:
                    advance = functools.partial(generator.throw, error)
                else:
                    advance = functools.partial(generator.send, sent)
        except GeneratorExit:
            raise
        except BaseException as error:
            failed = error
            raise
        finally:
            run.close(failed)

    return tracked


def _wrap_asyncgen(target: Callable[..., Any], fresh: Callable[[], _Block]) -> Callable[..., Any]:
    async def tracked(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        run, failed = _Run(fresh()), None
        try:
            with run.step():
                generator = target(*args, **kwargs)
            advance: Callable[[], Any] = generator.__anext__
            while True:
                try:
                    with run.step():
                        item = await advance()
                except StopAsyncIteration:
                    return
                try:
                    sent = yield item
                except GeneratorExit:
                    with run.step():
                        await generator.aclose()
                    raise
                except BaseException as error:
                    advance = functools.partial(generator.athrow, error)
                else:
                    advance = functools.partial(generator.asend, sent)
        except GeneratorExit:
            raise
        except BaseException as error:
            failed = error
            raise
        finally:
            run.close(failed)

    return tracked


_WRAPPERS = {
    "function": _wrap_function,
    "coroutine": _wrap_coroutine,
    "generator": _wrap_generator,
    "asyncgen": _wrap_asyncgen,
}


# --- calls that are charges themselves ----------------------------------------------------------------------------------


class Counted:
    """What one call of a function is a charge of.

    Raises:
        ConfigurationError: for a name that can be no meter, or an SKU without a model.
    """

    def __init__(self, meter: Mapping[str, Any], sku: str) -> None:
        if not meter:
            raise ConfigurationError('meter={} counts nothing; write meter={"searches": 1}')
        self.provider, slash, self.model = sku.partition("/") if sku else ("custom", "/", "")
        if not slash or not self.provider:
            raise ConfigurationError(f'sku={sku!r} must name provider and model: "serpapi/search"')
        self._fixed = quantities({define(name).name: value for name, value in meter.items() if not callable(value)})
        self._read = {define(name).name: value for name, value in meter.items() if callable(value)}

    def begin(self, label: str) -> metering.Invocation | None:
        """Hold what is known of the price in every budget; BudgetExceeded when one has no room."""
        call = metering.Call(
            self.provider, "custom", self.model or label, service="other", counts=self._fixed,
        )  # fmt: skip
        opened = metering.begin(call)
        if opened is not None:
            opened.leave()  # what the function calls is charged for itself
        return opened

    def settle(self, opened: metering.Invocation, result: Any) -> None:
        """Count the result too, and record; a count that fails leaves an unknown cost."""
        try:
            reading = Reading({**self._fixed, **quantities({name: read(result) for name, read in self._read.items()})})
        except Exception as failure:  # the user's own function, or what it returned
            reading = Reading(self._fixed, problem=f"the count failed with {type(failure).__name__}")
        opened.settle(reading)


def _counting(target: Any, counted: Counted, label: str) -> Any:
    """`target`, each call of which is one charge."""
    if isinstance(target, (classmethod, staticmethod)):
        return type(target)(_counting(target.__func__, counted, label))
    kind = "class" if inspect.isclass(target) else _kind(target) if callable(target) else "nothing"
    if kind not in {"function", "coroutine"}:
        raise ConfigurationError(
            f"meter= counts calls of functions and coroutines; {target!r} is none. Use record() in it."
        )

    def call(*args: Any, **kwargs: Any) -> Any:
        opened = counted.begin(label)
        if opened is None:
            return target(*args, **kwargs)
        try:
            result = target(*args, **kwargs)
        except BaseException as error:
            opened.fail(error)
            raise
        counted.settle(opened, result)
        return result

    async def acall(*args: Any, **kwargs: Any) -> Any:
        opened = counted.begin(label)
        if opened is None:
            return await target(*args, **kwargs)
        try:
            result = await target(*args, **kwargs)
        except BaseException as error:
            opened.fail(error)
            raise
        counted.settle(opened, result)
        return result

    return functools.wraps(_function_of(target))(acall if kind == "coroutine" else call)


# --- the public verbs ------------------------------------------------------------------------------------------------


@overload
def track_cost(function: F, /) -> F: ...


@overload
def track_cost(
    *,
    name: str | None = None,
    gpu: Any = None,
    meter: Mapping[str, Any] | None = None,
    sku: str = "",
    **tags: object,
) -> Callable[[F], F]: ...


def track_cost(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    gpu: Any = None,
    meter: Mapping[str, Any] | None = None,
    sku: str = "",
    **tags: object,
) -> Any:
    """Decorator: everything that a function calls is attributed to it, in a span of its own.

    For functions, coroutines, generators, async generators, methods, classmethods, staticmethods, partials, objects with
    `__call__` and classes (each public method). The result, the exception and the signature stay what they were.

    Args:
        function: given when the decorator is used without parentheses.
        name: of the block and its span; default: the function's qualified name.
        gpu: `"auto"` also meters, and pays from the budgets in force, the GPUs that this process holds while the function runs, on a machine
            without any its processors (`"cpu"` by name); a mapping `{"NVIDIA H100 80GB HBM3": 8}` where no driver can be asked; see
            `aifinops.gpu.track`, whose other arguments `{"devices": "auto", "checkpoint": save}` may have.
        meter: a call of the function is itself one charge of this: `{"searches": 1}`, a quantity or a function of the result. A meter
            that is not known yet is made. Its price is that of `sku` (`register_price`); without one the cost is unknown.
        sku: `"provider/model"` of that charge; default: `custom/` and the name of the block.
        **tags: whose cost it is; inner blocks win key by key.

    Raises:
        ConfigurationError: for a tag that is not valid, or something that cannot be called.
    """
    values = make_tags(tags)
    resources = {} if gpu is None else {"gpu": gpu}
    counted = None if meter is None else Counted(meter, sku)

    def decorate(target: Any) -> Any:
        if counted is not None:
            target = _counting(target, counted, name or _name(target))
        if inspect.isclass(target):
            label = name or target.__qualname__
            return _decorate_class(target, lambda method: Track(f"{label}.{method}", values, resources)._fresh)
        block = Track(name or _name(target), values, resources)
        return _decorate(target, block._fresh)

    return decorate if function is None else decorate(function)


def _name(target: Any) -> str:
    inner = _function_of(target.__func__ if isinstance(target, (classmethod, staticmethod)) else target)
    return str(getattr(inner, "__qualname__", type(inner).__qualname__)).replace("<locals>.", "")


def track(name: str, *, propagate: bool = False, **tags: object) -> Track:
    """`with track("ingest", team="search") as t:`; `t.cost`, `t.usage`, `t.charges`, `t.record(...)`.

    Args:
        name: of the block and its span. tags: whose cost it is.
        propagate: as in `tags()`.

    Raises:
        ConfigurationError: for a tag that is not valid.
    """
    return Track(name, make_tags(tags), propagate=propagate)


def tags(*, propagate: bool = False, **values: object) -> TagBlock:
    """`with tags(customer="acme"):` or `@tags(...)`: attribution without a block of its own.

    Args:
        propagate: True puts `team`, `project`, `feature`, `customer`, `run` and `budget` into OpenTelemetry's baggage as well, which goes out
            with every request of an instrumented HTTP client in this block, also to the provider of the model. A service that is called
            takes them where it has `baggage=True`. Other tags stay here.
        values: the tags.

    Raises:
        ConfigurationError: for a tag that is not valid, and with `propagate` for a value that may not be sent: more than 64 characters, no
            ASCII, blanks, or an `@`.
    """
    return TagBlock(make_tags(values), propagate=propagate)


def budget(
    limit: Any,
    *,
    per: str | None = None,
    name: str | None = None,
    match: Mapping[str, str] | None = None,
    on_exceed: Any = "raise",
    soft: Sequence[float] = (0.5, 0.8, 1.0),
    unknown: str = "raise",
    tz: str = "UTC",
    store: Any = None,
    max_wait: float | None = None,
    on_store_down: str = "deny",
    pace: float | None = None,
) -> BudgetBlock:
    """A limit that holds: `with budget("$5"):`, `async with`, or `@budget("$5")`.

    The upper bound of each call is held before it is sent, in this and every surrounding budget, all or nothing; a call for which
    there is no room raises and is not sent. After the answer the true cost takes the place of what was held.

    Args:
        limit: `"$5"`, `"5 USD"`, `"2M tokens"`, `"200 gpu_hours"`, Decimal, or a dict or list of several that all hold.
        per: `minute`, `hour`, `day`, `week`, `month` (calendar, in `tz`), `week from sunday`, `rolling 24h` or `total`; default: this block,
            or `total` with a name.
        name: one budget for everybody who uses this name, in all processes that share its store; without it, this object's own.
        match: only calls with these tags count (for standing budgets in `init(budgets=...)`).
        on_exceed: `raise`, `throttle` (wait for the next window), `warn`, `{"downgrade": {"gpt-5": "gpt-5-mini"}}` (use a cheaper model),
            `clamp` (lower the output limit to what remains buys), `cut` (end a stream when there is no room for more of it), `ask` (wait for
            an approval; `{"ask": ...}` says whose), or a callable that is given the error that would be raised and returns `"raise"`,
            `"throttle"` or `"allow"`; or a list of these, of which the first that makes the call fit wins: `[{"downgrade": {...}}, "clamp",
            "raise"]`.
        soft: shares of the limit at which a message is logged, once a window.
        unknown: for calls without a price: `raise`, `reserve` (the provider's dearest rates) or `allow`.
        tz: time zone of calendar windows.
        store: where balances live, as `store` of `init()`; default: this process without a name, else what `init()` or the environment says.
        max_wait: how long a call waits, first come, first served, for what is only held by calls in flight, and with `throttle` for a
            new window; seconds, default 30, 0 never waits.
        on_store_down: `deny` or `allow` calls while the store does not answer, or where something of ours fails meanwhile; what they cost is
            told to it when it does again.
        pace: spreads the limit over its window: the share of it that may be spent ahead of even spending, 0.1 for a tenth. What is ahead
            of that meets `on_exceed`; with `throttle` it waits for its turn.

    Raises:
        ConfigurationError: for any argument that is wrong; it says what to type.
        BudgetExceeded: from calls inside the block.
    """
    spec = Budget.parse(
        limit, per=per, name=name, match=match, on_exceed=on_exceed, soft=soft, unknown=unknown, tz=tz, store=store,
        max_wait=max_wait, on_store_down=on_store_down, pace=pace,
    )  # fmt: skip
    return BudgetBlock(spec)


def record(
    *,
    usage: Mapping[str, Any] | None = None,
    cost: Any = None,
    model: str = "",
    provider: str = "custom",
    operation: str = "custom",
    service: str = "other",
    tier: str = "",
    region: str = "",
    at: Moment | None = None,
    response_id: str = "",
    tags: Mapping[str, Any] | None = None,
) -> Charge:
    """Record anything that no integration knows: a vector database, a GPU hour from a bill, a tool with a price of its own.

    Args:
        usage: meter -> quantity, e.g. `{"read_units": 1200}`; see `aifinops.meters.METERS`.
        cost: `"0.02 USD"`, Decimal (USD) or a `Cost`; without it the price lists decide, and unknown stays unknown.
        model, provider, operation, service, tier, region: what was used. at: when (default: now).
        response_id: the provider's id, if there is one. tags: over those in force.

    Returns:
        The ledger entry. Budgets in force count it; since it has happened already, it is never refused.

    Raises:
        ConfigurationError: for an unknown meter or a wrong cost. ImpossibleUsage: for a negative or NaN quantity.
    """
    if usage is None and cost is None:
        raise ConfigurationError('record() needs usage={"meter": quantity} or cost="0.02 USD"')
    return metering.record(
        usage=usage, cost=cost, model=model, provider=provider, operation=operation, service=service, tier=tier,
        region=region, at=None if at is None else moment(at), response_id=response_id, tags=tags,
    )  # fmt: skip


def report(
    by: str | Sequence[str] = ("model",),
    since: Moment | None = None,
    until: Moment | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
    amortised: bool = False,
    *,
    compare: bool = False,
    trend: bool = False,
    top: int | None = None,
    sort: str = "cost",
) -> Report:
    """Spend by tags, model or time: `report(by=["team", "model"], since="7d")`.

    Args:
        by: tag keys, `provider`, `model`, `operation`, `day`, `hour`, `month` and so on. since, until: `"7d"`, a date, a datetime.
        where: only charges with these values.
        amortised: spread what is paid for by the hour (`[[provisioned]]` and `[[commitments]]` of your price lists) over the calls that
            it served: rows have `.amortised` and `.effective`, and what nobody used is a row of its own.
        compare: set each row beside the period of the same length before: `.previous`, `.change`, `.change_share`, `.state`.
        trend: what was spent step by step: `.trend`, one point for each of `Report.steps`.
        top: so many rows at most, all others in one. sort: what comes first: `cost`, `calls`, `tokens`, `change`, `per_call`,
            `per_1k_tokens`, `unpriced` or `name`.

    Returns:
        Rows with `.total`, `.to_json()`, `.to_csv()`, `.to_html()`, `.assert_under("$1")`. Unpriced calls are shown apart. A notebook
        shows it as a table.

    Raises:
        ConfigurationError: for a time or a key that cannot be read.
    """
    from aifinops.analytics.reports import report as make

    metering.drain()
    engines = runtime.get()
    engines.writer.flush()
    keys = [part.strip() for part in by.split(",")] if isinstance(by, str) else list(by)
    capacity = engines.book.capacity if amortised else None
    now = engines.clock.time_ns()
    return make(
        engines.ledger, by=keys, since=since, until=until, where=where, now_ns=now, capacity=capacity, compare=compare, trend=trend,
        top=top, sort=sort,
    )  # fmt: skip
