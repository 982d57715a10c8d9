"""The hub: the life of one metered call. Open, then settle, fail or abandon, exactly once.

    begin   tags and budgets from the scope → upper bound → reserve (may refuse) → span ids
    settle  usage from the answer → price → budget → ledger → trackers → span → metrics

Each step of the settlement is guarded on its own: a broken exporter cannot lose a ledger row, a broken ledger cannot lose
what a budget has spent, and none of them reaches the call. Only `BudgetExceeded` does, and only from `begin`.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aifinops import runtime
from aifinops.budgets.actions import START_OUTPUT, Change, Clamp, Cut, Downgrade, recast, room_for, with_hint
from aifinops.budgets.budget import ActiveBudget, to_units
from aifinops.budgets.guard import Reservation
from aifinops.budgets.waiting import Wait, in_event_loop, keep_ticket
from aifinops.charges import Amounts, Basis, Charge, Cost, make_charge, nanos, new_id
from aifinops.errors import BudgetExceeded, StreamCut, UnknownModel, swallow
from aifinops.money import to_nanos
from aifinops.pricing import tokens
from aifinops.pricing.match import provider_id
from aifinops.reading import Reading, amounts_of, believed, price, with_parts
from aifinops.scope import Scope, current
from aifinops.tags import EMPTY, Tags, make_tags, merge
from aifinops.telemetry import attributes as span_attributes
from aifinops.telemetry import names
from aifinops.telemetry.guests import Guest, late
from aifinops.telemetry.spans import OpenSpan, Spans, end_at_least, error_type, guarded_finish
from aifinops.usage import EMPTY_QUANTITIES, Quantities, Sku, Usage, input_total, output_total, quantities

if TYPE_CHECKING:
    from aifinops.pricing.book import PriceBook

__all__ = [
    "Call",
    "Changer",
    "Charged",
    "Invocation",
    "Watched",
    "begin",
    "begin_patiently",
    "charge_of",
    "charged",
    "drain",
    "ending",
    "enqueue",
    "in_flight",
    "observe",
    "record",
    "record_reading",
    "settle_later",
    "watch",
]

R = TypeVar("R")

MICRO = 1_000_000
"""Budgets count meters in millionths of their unit."""

BYTES_PER_TOKEN, BYTES_PER_TOKEN_MOST = 4, 16
"""Estimates without a tokenizer: about four UTF-8 bytes a token, hardly ever more than sixteen, never less than one."""

CACHED_AT_LEAST = 128
"""A cached token of a prompt costs no less than one part in so many of a fresh one, at any provider whose prices are listed."""

ALLOWANCE = 64
"""Tokens that are added to what was counted of a stream that was left: the provider goes on until it notices, and bills that."""

UNSAID = 16
"""Tokens of a whole answer that are no text of it: its ends, and what marks a tool's call."""

_NO_OUTPUT = frozenset({"embeddings", "moderation", "rerank"})

_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError"})
"""httpx's exceptions that prove that no request left: https://www.python-httpx.org/exceptions/."""


@dataclass(slots=True)
class Call:
    """What is known of a call before it is made.

    Attributes:
        provider, operation, model: OpenTelemetry's names (`openai`, `chat`, `gpt-5-mini`).
        body: the request as it will be sent, for the upper bound of its input; read only when a budget needs it.
        stream: True when the answer comes in pieces.
        max_output: the output limit that the caller stated, tokens; None for none. choices: answers asked for.
        service: `llm` and so on. facts: further span attributes.
        region: that the request was sent to, where its address says so; the answer's own word wins.
        counts: what the request alone says will be billed (`{"characters": 12}`), where that is all. most: the most of it, where
            `counts` is only expected.
        options: whatever else the request says that decides the price. hidden: True when `body` does not show all of the input.
        alone: True when what `counts` has is billed in no other way, so that it is kept also where no price is known.
        host: who else makes a span of this call: 0 nobody, 1 somebody who can be kept from it, 2 somebody who cannot.
        unseen: True for a model that thinks in tokens which are billed and not shown.
        loose: tells of the body whether more may be billed than its output limit says; None where the limit holds for all of it.
        change: makes another request of this one, where its seam can still send that; else None. sent: request field -> what is sent in it
            in place of what the caller asked.
        start: output tokens that are held for a stream so far, over all choices, where its hold grows; None for all of them.
    """

    provider: str
    operation: str
    model: str
    body: Any = None
    stream: bool = False
    max_output: int | None = None
    choices: int = 1
    tier: str = ""
    service: str = "llm"
    facts: dict[str, Any] = field(default_factory=dict)
    region: str = ""
    counts: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    most: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    options: tuple[tuple[str, str], ...] = ()
    hidden: bool = False
    alone: bool = False
    host: int = 0
    unseen: bool = False
    loose: Callable[[Any], bool] | None = None
    change: Changer | None = None
    sent: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    start: int | None = None

    def output_bound(self) -> int | None:
        """The most output tokens, over all choices; None when the request states no limit."""
        if self.operation in _NO_OUTPUT:
            return 0
        return None if self.max_output is None else self.max_output * self.choices

    def output_cap(self, text: str = "") -> int | None:
        """The most output tokens that can have been billed by the caller's own limit; None where that does not bind.

        Args:
            text: what came. Far more than the limit has room for was written by a server that does not heed it.
        """
        bound = self.output_bound()
        if not bound or (self.loose is not None and self.loose(self.body)):
            return None
        return bound if len(text.encode()) <= BYTES_PER_TOKEN_MOST * (bound + UNSAID) else None


class Changer(Protocol):
    """Makes another request of the one of a call, before it is sent."""

    def with_model(self, call: Call, model: str, *, features: bool) -> Call | str:
        """The same call of another model, or why not: without `features` only one that asks for text by text."""
        ...

    def with_output(self, call: Call, most: int) -> Call | str:
        """The same call with another output limit, tokens an answer; or why not."""
        ...

    def least_output(self, call: Call) -> int:
        """The output limit of an answer has to be above this."""
        ...

    def streams(self, call: Call) -> str:
        """Why what comes of a stream does not show what it costs; empty where it does, and where its seam can end it."""
        ...


_in_flight: ContextVar[Invocation | None] = ContextVar("aifinops_in_flight", default=None)
_patient: ContextVar[bool] = ContextVar("aifinops_patient", default=False)
_waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()


class Charged:
    """Response ids that have a row, for whoever reads an answer again: a poll, a span, an import.

    A call that is made is always a row of its own, whatever id its answer has: servers for tests and caches answer with the same one
    twice. Only a re-reading asks here. It forgets the oldest ids.
    """

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        self._new: deque[tuple[str, str]] = deque(maxlen=most)
        self._ids: dict[str, set[str]] = {}
        self._lock = threading.RLock()  # a finalizer may ask in the middle of it

    def note(self, provider: str, response_id: str) -> None:
        """That response is charged. One append: it is called for every call."""
        self._new.append((provider, response_id))

    def seen(self, provider: str, response_id: str) -> bool:
        """Whether it is charged; `provider` in any spelling, empty for whichever."""
        with self._lock:
            ids = self._ids
            while True:
                try:
                    name, noted = self._new.popleft()
                except IndexError:
                    break
                ids.setdefault(noted, set()).add(provider_id(name) or "")
            while len(ids) > self._most:
                ids.pop(next(iter(ids)), None)
            found = ids.get(response_id, ())
        return bool(found) if not provider else provider_id(provider) in found

    def reset_after_fork(self) -> None:
        """The lock may have been held by a thread that is not here."""
        self._lock = threading.RLock()


charged = Charged()


class _Busy(threading.local):
    """Whether this thread is inside the engines: a finalizer that the garbage collector runs there must only enqueue."""

    on = False


_busy = _Busy()


def begin(call: Call) -> Invocation | None:
    """Open an invocation: reserve in every budget in force, then start the span.

    Returns:
        None when nothing is to be metered (switched off, already metered further out, or our own failure).

    Raises:
        BudgetExceeded: when a budget has no room; nothing was sent.
    """
    if _is_owned():
        return None
    try:
        return _waiting_here(_begin, call)
    except BudgetExceeded:
        raise
    except Exception as failure:  # metering must never keep a call from being made
        swallow("metering.begin", failure)
        return None


def _begin(call: Call) -> Invocation | None:
    engines = runtime.get()
    if not engines.config.enabled:
        return None
    drain()
    scope = current()
    tags = engines.tags(scope)
    invocation = Invocation(engines, call, scope, tags)
    budgets = engines.budgets(scope, tags)
    if budgets:
        invocation.asked = budgets
        invocation.reserve(budgets, invocation.id)
    try:
        invocation.enter()
    except Exception:  # the call is made all the same: what it may cost stays counted
        invocation.give_up()
        raise
    return invocation


def _waiting_here(function: Callable[..., R], *arguments: Any) -> R:
    """Call something that holds; where it has to wait for room, this thread does, unless somebody further out can wait in a task."""
    try:
        return function(*arguments)
    except Wait as first:
        if _patient.get():
            raise
        wait = first
    guard = runtime.get().guard
    try:
        if in_event_loop():
            raise guard.refusals.gave_up(wait) from None
        with keep_ticket(wait.ticket):
            while True:
                guard.pause(wait)
                try:
                    return function(*arguments)
                except Wait as again:
                    wait = again
    finally:
        wait.ticket.leave()


async def begin_patiently(begin: Callable[..., R], *arguments: Any) -> R:
    """`begin(*arguments)`, which opens a call somewhere inside; where that has to wait for room, this task does and not the event loop.

    Raises:
        BudgetExceeded: as `begin`.
    """
    token = _patient.set(True)
    try:
        try:
            return begin(*arguments)
        except Wait as first:
            wait = first
        guard = runtime.get().guard
        try:
            with keep_ticket(wait.ticket):
                while True:
                    await guard.apause(wait)
                    try:
                        return begin(*arguments)
                    except Wait as again:
                        wait = again
        finally:
            wait.ticket.leave()
    finally:
        _patient.reset(token)


def observe(call: Call) -> Invocation | None:
    """Open an invocation of what is under way already: no budget can refuse it, and what it costs is counted when it settles.

    Returns:
        None as in `begin`. What is opened is not the call of this context: nothing needs to `leave` it.
    """
    if _is_owned():
        return None
    try:
        engines = runtime.get()
        if not engines.config.enabled:
            return None
        drain()
        scope = current()
        tags = engines.tags(scope)
        invocation = Invocation(engines, call, scope, tags)
        invocation.budgets = engines.budgets(scope, tags)
        try:
            invocation.enter()
            invocation.leave()
        except Exception:  # nobody will end it
            invocation.give_up()
            raise
        return invocation
    except Exception as failure:  # what is under way goes on
        swallow("metering.observe", failure)
        return None


def _is_owned() -> bool:
    """Whether a call further out is metered. One that is only looked at is not: what is called inside it is a call of its own."""
    further_out = _in_flight.get()
    return further_out is not None and type(further_out) is not Watched


def in_flight() -> Invocation | None:
    """The call that is being made in this context, if it is metered."""
    return _in_flight.get()


class Invocation:
    """One call between its beginning and its single end."""

    __slots__ = (
        "_once", "_owner", "answer", "asked", "beside", "budgets", "call", "changed", "currency", "engines", "first_chunk", "guest", "id", "prompt_bound",
        "reservation", "said", "scope", "span", "started", "tags", "upper", "wall",
    )  # fmt: skip

    def __init__(self, engines: runtime.Runtime, call: Call, scope: Scope, tags: Tags) -> None:
        self.engines = engines
        self.call = call
        self.scope = scope
        self.tags = tags
        self.id = new_id()
        self.wall = engines.clock.time_ns()
        self.started = engines.clock.monotonic_ns()
        self.reservation: Reservation | None = None
        self.asked: Any = ()  # the budgets in which room was found
        self.budgets: Any = ()  # in which it is counted without having been reserved
        self.upper: Decimal | None = None
        self.currency = "USD"
        self.changed: BudgetExceeded | None = None  # why something else is sent than was asked for
        self.prompt_bound = 0  # tokens; 0 is not known
        self.span: OpenSpan | None = None
        self.guest: Guest | None = None  # of a foreign span, in place of one of our own
        self.beside = False  # that foreign span has the cost of another call: this one has a span inside of it
        self.first_chunk: int | None = None
        self.answer: Any = None  # the transport's answer, left here by a seam for itself
        self.said: Any = None  # the answer itself; only where content is asked for
        self._owner: Token[Invocation | None] | None = None
        self._once = [True]

    # --- before the call ----------------------------------------------------------------------------------------------

    def reserve(self, budgets: Any, id: str, *, fixed: bool = False) -> None:
        """Hold the upper bound of this call in every budget, under an id that is new; BudgetExceeded when one has no room.

        Where a budget says so the call is changed until it fits, unless it is `fixed`: under way already.
        """
        _busy.on = True
        try:
            self._hold(budgets, id)
        except Change as change:
            self._hold_smaller(budgets, change, _FIXED if fixed else "")
        finally:
            _busy.on = False

    def _hold_smaller(self, budgets: Any, change: Change, why_not: str) -> None:
        for _ in range(_MOST_CHANGES):
            self._refit(change, why_not)
            try:
                # A new id: what a budget of another store has held and given back has used the first one up.
                self._hold(budgets, new_id())
            except Change as another:
                change = another
            else:
                return
        raise self._refused(change, _ENDLESS)

    def _hold(self, budgets: Any, id: str) -> None:
        amounts = self._bound()
        self.reservation = self.engines.guard.reserve(
            budgets,
            amounts,
            id=id,
            at=self.wall,
            unpriced=_unknown_model(self) if self.upper is None else None,
            hint=_NO_LIMIT if self.upper is not None and self.call.output_bound() is None else "",
            about=self._about,
        )
        if self.reservation is not None and self.reservation.granted:
            self.tags = merge(self.tags, make_tags(self.reservation.granted))

    def _about(self) -> dict[str, str]:
        """What whoever is asked for an approval is told of this call."""
        call = self.call
        said = {"provider": call.provider, "operation": call.operation, "model": call.model, **self.tags}
        return {key: value[:_LONGEST] for key, value in said.items()}

    # --- a call that does not fit -------------------------------------------------------------------------------------

    def _refit(self, change: Change, why_not: str) -> None:
        """Make the call smaller as a budget says; its BudgetExceeded, with the reason, where that cannot be."""
        asked = self.call
        if asked.change is None or why_not:
            raise self._refused(change, why_not or _CANNOT.format(change.action.name)) from None
        try:
            made = self._made(asked.change, change)
        except Exception as failure:  # a limit holds, whatever fails
            swallow("metering.refit", failure)
            made = "on_exceed failed."
        if isinstance(made, str):
            raise self._refused(change, made) from None
        self.call, self.changed = made, change.error
        self.engines.guard.refusals.fitted(change)
        self._note(asked, change)

    def _refused(self, change: Change, why: str) -> BudgetExceeded:
        error = with_hint(change.error, why)
        self.engines.guard.refusals.fitted(change, error)
        return error

    def _made(self, changer: Changer, change: Change) -> Call | str:
        action, call = change.action, self.call
        if isinstance(action, Downgrade):
            model = action.after(call.model)
            if model is None:
                return f"on_exceed has no model to use instead of {call.model!r}."
            return changer.with_model(call, model, features=action.any)
        if isinstance(action, Clamp):
            return self._clamped(changer, action, change.room)
        return self._started(changer, action)

    def _clamped(self, changer: Changer, action: Clamp, room: Mapping[str, int]) -> Call | str:
        """The call with the output limit that what is left buys."""
        call = self.call
        answers, least = max(call.choices, 1), max(action.least, changer.least_output(call) + 1)
        had = self._outputs(call)
        most = room_for(room, self._with_output(0), self._with_output(had), had)
        if most is None:
            return "The output limit of this call has no part in what it may take."
        if most > 0 and not _fit(room, self._with_output(most)):  # of a price that does not grow evenly
            most = bisect_left(range(most), True, key=lambda output: not _fit(room, self._with_output(output))) - 1
        each = max(most // answers, least)
        if each * answers >= had:  # there may be room for the least in a while, so that is asked for once
            return f'What remains does not buy {least} output tokens, the least for on_exceed="clamp".'
        return changer.with_output(call, each)

    def _started(self, changer: Changer, action: Cut) -> Call | str:
        """The call with the hold that a stream starts with."""
        call = self.call
        if call.start is not None or not call.stream:
            return "" if call.stream else 'on_exceed="cut" ends streams; this call has none.'
        why = changer.streams(call)
        start = action.step * max(call.choices, 1)
        return why or (replace(call, start=start) if self._outputs(call) > start else "")

    def grow(self, counted: int) -> None:
        """Hold on for a stream that began with little.

        Args:
            counted: output tokens that have come so far, at most.

        Raises:
            BudgetExceeded: when there is no room for more: the stream is to be ended.
        """
        call, reservation = self.call, self.reservation
        if call.start is None or reservation is None or counted + ALLOWANCE <= call.start:
            return
        _busy.on = True
        try:
            for start in (counted + ALLOWANCE + START_OUTPUT, counted + ALLOWANCE):
                try:
                    self.engines.guard.grow(reservation, self.asked, self._amounts_of(replace(call, start=start)))
                except BudgetExceeded as refusal:
                    refused = refusal
                else:
                    call.start = start
                    return
        finally:
            _busy.on = False
        raise self._ended(refused) from None

    def _ended(self, refusal: BudgetExceeded) -> BudgetExceeded:
        """The error with which a stream ends; its charge will say why it did."""
        self.changed = cut = recast(StreamCut, refusal)
        self.tags = merge(self.tags, make_tags({"budget_action": Cut.name, "budget_name": cut.budget[:_LONGEST]}))
        self.engines.guard.refusals.changed_call(cut, "Streams are ended where there is no room for more.")
        return cut

    def _outputs(self, call: Call) -> int:
        """Output tokens that are held for, over all choices."""
        stated = call.output_bound()
        if stated is None:
            stated = self.engines.book.output_limit(call.provider, call.model) or self.engines.book.input_limit(
                call.provider, call.model
            )
            stated *= max(call.choices, 1)
        return stated

    def _with_output(self, output: int) -> dict[str, int]:
        """What this call would take at most with so many output tokens in all."""
        return self._amounts_of(replace(self.call, max_output=output, choices=1))

    def _amounts_of(self, call: Call) -> dict[str, int]:
        """What another call than ours would take at most."""
        mine, self.call = self.call, call
        try:
            amounts = self._bound()
        finally:
            self.call = mine
        for name in [name for name in amounts if name.endswith(":dearest")]:
            amounts.setdefault(name.partition(":")[0], amounts[name])
        return amounts

    def _note(self, asked: Call, change: Change) -> None:
        """Have the charge and the span say what was asked for, and why it is not what was sent."""
        made, tags = self.call, {"budget_action": change.action.name, "budget_name": change.budget[:_LONGEST]}
        if made.start != asked.start:
            return  # a stream that is not ended is what it is without us
        said = ""
        if made.model != asked.model:
            tags["asked_model"] = self.tags.get("asked_model") or asked.model
            said = f"{made.model!r} is used in place of {asked.model!r}."
        elif made.max_output != asked.max_output:
            tags["asked_output"] = self.tags.get("asked_output") or str(asked.max_output or "unlimited")
            made.facts = {**made.facts, names.REQUEST_MAX_TOKENS: made.max_output}
            said = "The output limit of requests is lowered to what remains buys."
        self.tags = merge(self.tags, make_tags(tags))
        self.engines.guard.refusals.changed_call(change.error, said)

    # --- bounds -------------------------------------------------------------------------------------------------------

    def _bound(self) -> dict[str, int]:
        """The most that this call can cost, kept in `upper`, and the same in every unit that a budget may count."""
        call, book = self.call, self.engines.book
        counted = call.most or call.counts
        if counted:
            cost = self._cost(counted)
            if cost.amount is not None or call.service != "llm":
                self.upper, self.currency = cost.amount, cost.currency
                amounts = {"requests": MICRO, **{name: int(value * MICRO) for name, value in counted.items()}}
                return amounts if cost.amount is None else {**amounts, cost.currency: to_nanos(cost.amount)}
        self.prompt_bound = (
            tokens.UNBOUNDED if call.hidden else tokens.text_upper_bound(call.body or {}, model=call.model)
        )
        inputs = min(self.prompt_bound, book.input_limit(call.provider, call.model))
        outputs = call.output_bound()
        if outputs is None and call.choices > 1:
            outputs = (book.output_limit(call.provider, call.model) or 0) * call.choices or None
        if call.start is not None:
            outputs = call.start if outputs is None else min(call.start, outputs)
        self.upper, self.currency = book.bound(
            call.provider,
            call.model,
            input_tokens_upper=inputs,
            output_tokens_upper=outputs,
            at=self.wall,
            operation=call.operation,
            tier=call.tier,
            region=_regional(book, call.provider, call.model, call.region) if call.region else "",
        )
        amounts = {"requests": MICRO, "input_tokens": inputs * MICRO}
        if self.upper is not None:
            amounts[self.currency] = to_nanos(self.upper)
        else:
            dearest = book.dearest(call.provider, input_tokens_upper=inputs, output_tokens_upper=outputs)
            amounts["USD:dearest"] = to_nanos(dearest)
        if outputs is None:
            outputs = book.output_limit(call.provider, call.model) or book.input_limit(call.provider, call.model)
        amounts["output_tokens"] = outputs * MICRO
        amounts["tokens"] = (inputs + outputs) * MICRO
        return amounts

    def _cost(self, counts: Quantities) -> Cost:
        """What so much costs by the request's own words."""
        call = self.call
        return self.engines.book.cost(
            call.provider, call.model, counts, at=self.wall, tier=call.tier, options=call.options
        )

    def enter(self) -> None:
        """Put ids into the context: children find their parent, inner instrumentations see that the call has an owner."""
        self._owner = _in_flight.set(self)
        spans = self.engines.spans
        if spans is None:
            return
        try:
            call = self.call
            if call.host >= self.engines.host:
                guest = spans.join()
                self.beside = guest is not None and guest.taken and self.engines.host > 0
                if not self.beside:
                    self.guest = guest
                    return
            name = f"{call.operation} {call.model}" if call.model else call.operation
            start = span_attributes.request(call.provider, call.operation, call.model)
            self.span = spans.begin(name, self.wall, start, self.scope.span)
        except Exception as failure:  # no span is no reason to lose the call or its charge
            swallow("metering.span_begin", failure)

    def leave(self) -> None:
        """Take ids out of the context again (same task as `enter`); the invocation stays open."""
        owner, self._owner = self._owner, None
        if owner is not None:
            try:
                _in_flight.reset(owner)
            except ValueError:  # closed in another context, which is gone
                _in_flight.set(None)
        if self.span is not None:
            self.span.detach()

    # --- between two tries --------------------------------------------------------------------------------------------

    def lose(self, error: BaseException) -> bool:
        """A try of this call has failed and there will be another one; False when nothing can have been billed.

        What may have been billed is a charge of its own, of unknown cost up to the bound, and what was held for it is spent.
        """
        if _was_refused(error):
            return False
        _busy.on = True
        try:
            nothing = Reading()
            charge = replace(self._charge(nothing, Amounts.of(self._at_most()), "error", error), id=new_id())
            self._pay(charge, nothing)
            self.reservation = None
            self._keep(charge)
        finally:
            _busy.on = False
        return True

    def hold_again(self) -> None:
        """Room for the next try; BudgetExceeded when there is none."""
        if self.asked:
            _waiting_here(self._reserve_again)

    def _reserve_again(self) -> None:
        self.reserve(self.asked, new_id(), fixed=True)

    # --- after the call: one of these, once ---------------------------------------------------------------------------

    def settle(self, reading: Reading, status: str = "ok", error: BaseException | None = None) -> None:
        """Price and record what the answer said; the second and any later end of a call is ignored."""
        if not self._end():
            return
        _busy.on = True
        try:
            if self.call.region and not reading.region:
                self._place(reading)
            amounts = self._amounts(reading) if reading.quantities or error is None else Amounts.of(self._at_most())
            charge = self._charge(reading, amounts, status, error)
            self._pay(charge, reading)
            self._keep(charge)
            self._learn(reading)
            self._tell(charge, reading, error)
        except Exception as failure:  # counted; the answer is the user's whatever happens to its price
            self.give_up()
            swallow("metering.settle", failure)
        finally:
            _busy.on = False
            if self.guest is not None:
                self.guest.release()

    def settle_estimated(self, output_text: str, chunks: int, reading: Reading, status: str) -> None:
        """Settle a stream that ended without usage: counted with bounds and marked, never zero and never released.

        Args:
            output_text: the text that arrived. chunks: pieces that it came in; each is at least one token.
            reading: whatever else was read (model, response id, and perhaps the counts of the input). status: `ok` or `abandoned`.
        """
        try:
            self._estimate(output_text, chunks, reading, complete=status == "ok")
        except Exception as failure:  # without an estimate the charge is recorded with unknown cost
            swallow("metering.estimate", failure)
        self.settle(reading, status)

    def settle_asked(self, output_text: str, chunks: int, reading: Reading, status: str = "ok") -> None:
        """Settle an answer without usage by what the request says is billed, such as the characters that are spoken.

        Args:
            output_text, chunks, status: as in `settle_estimated`. reading: whatever was read of the answer.
        """
        call = self.call
        try:
            if self._cost(call.counts).amount is not None:
                reading.quantities, reading.options = call.counts, call.options
                if call.most:
                    reading.estimated, reading.lower, reading.upper = True, dict.fromkeys(call.counts, 0), call.most
            elif call.alone:
                reading.quantities, reading.options = call.counts, call.options
            elif "characters" in call.counts:
                _spoken(reading, int(call.counts["characters"]))  # this model is billed by tokens, which nobody tells
            elif "audio_seconds" in call.counts:
                _heard(reading, call, self._allowance())
            else:
                self._estimate(output_text, chunks, reading, complete=False)
        except Exception as failure:  # recorded with unknown cost
            swallow("metering.asked", failure)
        self.settle(reading, status)

    def settle_partly(self, output_text: str, chunks: int, reading: Reading) -> None:
        """Settle a stream that ended early and had told its usage so far: no less was billed, perhaps up to the output limit.

        Args:
            output_text, chunks: as in `settle_estimated`. reading: the usage so far, which may lag behind the text.
        """
        told = reading.quantities
        made, visible = int(output_total(told)), int(told.get("output_tokens", 0))
        counted = max(made, _about(output_text, self.call.model), chunks)
        most = max(counted, len(output_text.encode()), self._allowance())
        cap = self.call.output_cap(output_text)
        if cap is not None:  # what was told is more than a limit: it is billed
            counted, most = max(made, min(counted, cap)), max(made, min(most, cap))
        reading.estimated = True
        reading.lower = told
        reading.quantities = {**told, "output_tokens": visible + counted - made}
        reading.upper = {**told, "output_tokens": visible + most - made}
        self.settle(reading, "abandoned")

    def fail(self, error: BaseException, *, refused: bool = False) -> None:
        """The call raised. Refused or provably not sent: release. Anything else may have been billed: keep the bound."""
        self.leave()
        if (
            refused or isinstance(error, BudgetExceeded) or _was_refused(error)
        ):  # of a budget: before the next of several tries
            self.release(error)
            return
        self.settle(Reading(), "error", error)

    def release(self, error: BaseException) -> None:
        """The call failed, with proof that nothing is billed: give back what was held, and record no charge."""
        if not self._end():
            return
        _busy.on = True
        try:
            if self.reservation is not None:
                self.engines.guard.release(self.reservation)
                self.reservation = None
            charge = self._charge(Reading(), Amounts.of(Cost(Decimal(0), basis="free")), "error", error)
            self._tell(charge, Reading(), error)
        except Exception as failure:  # the user's own exception goes on unchanged
            self.give_up()
            swallow("metering.release", failure)
        finally:
            _busy.on = False
            if self.guest is not None:
                self.guest.release()

    def give_up(self) -> None:
        """The last resort, where what ends a call has failed itself: nothing of it stays open. What is held is kept as spent, since the
        call was made, and a span ends with what it has."""
        self._once.clear()
        reservation, self.reservation = self.reservation, None
        steps = [self.leave]
        if reservation is not None:
            steps.append(partial(self.engines.guard.settle, reservation, {}))
        if self.span is not None:
            steps.append(partial(end_at_least, self.span))
        if self.guest is not None:
            steps.append(self.guest.release)
        for step in steps:
            try:
                step()
            except Exception as failure:  # the others are done all the same
                swallow("metering.give_up", failure)

    def _end(self) -> bool:
        try:
            self._once.pop()  # atomic: of two ends (a finalizer and a close, say) only one gets it
        except IndexError:
            return False
        return True

    def _usage(self, reading: Reading) -> Usage:
        call = self.call
        sku = Sku(
            call.provider, reading.model or call.model, call.service, reading.tier, reading.region, reading.options
        )
        return Usage(reading.quantities, sku, self.wall, reading.raw, reading.estimated, reading.lower, reading.upper)

    def _amounts(self, reading: Reading) -> Amounts:
        """What an answer cost, in the integers of the ledger."""
        untold = bool(reading.problem) or not reading.quantities
        try:
            if not untold and (quick := self._quick(reading)) is not None:
                return quick
            cost = self._price(reading) if not untold or reading.reported is not None else _UNTOLD
            reported = believed(cost, reading.reported, self.call.model, reading.model)
            if untold and reported is None:
                return Amounts(None, self.currency, "unknown", None, nanos(self.upper))
            return amounts_of(cost, reported)
        except Exception as failure:  # losing the price never loses the usage
            swallow("metering.price", failure)
            return Amounts(None, "USD", "unknown", None, None)

    def _place(self, reading: Reading) -> None:
        """The region of the request for an answer that names none, where it decides the price."""
        call, book = self.call, self.engines.book
        try:
            reading.region = _regional(book, call.provider, reading.model or call.model, call.region)
        except Exception as failure:  # without a region the call is still a row, and still paid from its budgets
            swallow("metering.region", failure)

    def _quick(self, reading: Reading) -> Amounts | None:
        if reading.estimated or reading.reported is not None or reading.parts or reading.options:
            return None
        call = self.call
        return self.engines.book.amounts(
            call.provider,
            reading.model or call.model,
            reading.quantities,
            at=self.wall,
            tier=reading.tier,
            region=reading.region,
        )

    def _price(self, reading: Reading) -> Cost:
        return price(self.engines.book, self._usage(reading), reading.parts, asked=self.call.model)

    def _at_most(self) -> Cost:
        """The cost of a call that failed after it was sent: unknown, between nothing and its upper bound."""
        if self.upper is None:
            try:
                self._bound()
            except Exception as failure:  # the bound is a courtesy here: the row itself says that the cost is unknown
                swallow("metering.bound", failure)
        notes = ("failed after it was sent",)
        return Cost(None, self.currency, "unknown", lower=Decimal(0), upper=self.upper, notes=notes)

    def _charge(self, reading: Reading, amounts: Amounts, status: str, error: BaseException | None) -> Charge:
        call = self.call
        trace_id, span_id = self._ids()
        amount, currency, basis, lower, upper, lines, price_id, as_of, source, listed = amounts
        return make_charge(
            id=self.id,
            at=self.wall,
            provider=call.provider,
            operation=call.operation,
            model=call.model,
            quantities=reading.quantities,
            amount=amount,
            currency=currency,
            basis=basis,
            lower=lower,
            upper=upper,
            lines=lines,
            price_id=price_id,
            price_as_of=as_of,
            price_source=source,
            response_model=reading.model,
            response_id=reading.response_id,
            service=call.service,
            tier=reading.tier,
            region=reading.region,
            duration=self.engines.clock.monotonic_ns() - self.started,
            stream=call.stream,
            status=status,
            error="" if error is None else type(error).__name__,
            tags=self.tags,
            trace_id=trace_id,
            span_id=span_id,
            raw=with_parts(reading.raw, reading.parts, reading.options, listed)
            if reading.parts or reading.options or listed is not None
            else reading.raw,
        )

    def _ids(self) -> tuple[str, str]:
        """(trace, span) in hex, empty where there is none; of a foreign span the trace is often known before the span."""
        if self.span is not None:
            return self.span.trace_id, self.span.span_id
        guest = self.guest
        if guest is None or not guest.context.is_valid:
            return "", ""
        return f"{guest.context.trace_id:032x}", f"{guest.context.span_id:016x}" if guest.found else ""

    def _pay(self, charge: Charge, reading: Reading) -> None:
        if self.reservation is None and not self.budgets:
            return
        reservation, self.reservation = self.reservation, None
        try:
            actual = self._actual(charge, reading, reservation)
            if reservation is None:
                self.engines.guard.post(self.budgets, actual, id=charge.id, at=charge.at)
            else:
                self.engines.guard.settle(reservation, actual)
        except Exception as failure:  # the hold stays and expires as spent: never too little
            swallow("metering.budget_settle", failure)

    def _actual(self, charge: Charge, reading: Reading, reservation: Reservation | None) -> dict[str, int]:
        """A charge in budget units; nothing where we fail to tell: then it has cost what was held."""
        try:
            if reading.estimated:
                return _within(_soundly(charge, reading), actual_amounts(charge), reservation)
            if reservation is not None and charge.amount is not None and reservation.unit == charge.currency:
                return {charge.currency: charge.amount}  # nobody asks for anything else
            return actual_amounts(charge)
        except Exception as failure:  # never too little
            swallow("metering.amounts", failure)
            return {}

    def _keep(self, charge: Charge) -> None:
        try:
            self.engines.writer.write(charge)
        except Exception as failure:  # the writer keeps what a store refuses; this is what even that could not take
            swallow("metering.ledger", failure)
        if charge.response_id:
            charged.note(charge.provider, charge.response_id)
        give_to_trackers(self.scope, charge)

    def _learn(self, reading: Reading) -> None:
        counts = reading.quantities
        if not counts or reading.estimated or self.call.service != "llm":
            return
        try:
            call = self.call
            self.engines.learned.note(
                (call.provider, call.model, self.tags.get("feature", "")),
                self.prompt_bound,
                counts,
                answers=call.operation not in _NO_OUTPUT,
            )
        except Exception as failure:  # what was learned only ever serves an expectation
            swallow("metering.learn", failure)

    def _tell(self, charge: Charge, reading: Reading, error: BaseException | None) -> None:
        first = None if self.first_chunk is None else (self.first_chunk - self.started) / 1e9
        if self.span is not None:
            facts = self.call.facts
            if reading.finish_reasons:
                facts = {**facts, names.FINISH_REASONS: reading.finish_reasons}
            if first is not None:
                facts = {**facts, names.TIME_TO_FIRST_CHUNK: first}
            if self.engines.capture:
                facts = {**facts, **_content(self.call.body, self.said, reading.finish_reasons)}
            try:
                values = span_attributes.inference(charge, facts, compat=self.engines.compat)
            except Exception as failure:  # a span without attributes still ends
                swallow("metering.span_attributes", failure)
                values = {}
            guarded_finish(self.span, values, self.wall + charge.duration, error)
            self.span = None
        elif self.guest is not None:
            self._enrich(self.guest, charge)
        self._measure(
            charge, "" if error is None else error_type(error), first, official=self.guest is None and not self.beside
        )

    def _measure(self, charge: Charge, error: str, first_chunk: float | None, *, official: bool) -> None:
        try:
            self.engines.metrics.record(charge, error, first_chunk, charge.service, official)
        except Exception as failure:  # metrics are a view
            swallow("metering.metrics", failure)

    def _enrich(self, guest: Guest, charge: Charge) -> None:
        try:
            values = span_attributes.enrichment(charge, compat=self.engines.compat)
            if not guest.add(values):
                late.put(guest.context.trace_id, charge.response_id, values)
        except Exception as failure:  # a foreign span, of whatever kind, without our attributes
            swallow("metering.enrich", failure)

    def _estimate(self, output_text: str, chunks: int, reading: Reading, *, complete: bool) -> None:
        """Count what came. A stream that was left may have been written on: an allowance for what was under way is added.

        The bounds hold what was billed. A prompt that was read from a cache costs next to nothing; of an answer whose end was not seen,
        or whose model thinks unseen, anything up to its limit may have been written.
        """
        call = self.call
        prompt, messages = _prompt(call.body)
        size = len(output_text.encode())
        most = size + UNSAID if complete and not call.unseen else max(size + UNSAID, self._allowance())
        cap = call.output_cap(output_text)
        if cap is not None:
            most, chunks = min(most, cap), min(chunks, cap)
        if call.start is not None and not complete:
            most = min(
                most, max(call.start, chunks)
            )  # whoever ends a stream in time is billed what was under way, and no more
        output_mid = min(max(_about(output_text, call.model), chunks) + (0 if complete else ALLOWANCE), most)
        told = reading.quantities  # the input, where the answer told it before it broke off
        reading.estimated = True
        least = told or {"input_tokens": len(prompt.encode()) // (BYTES_PER_TOKEN_MOST * CACHED_AT_LEAST)}
        upper = told or {"input_tokens": self._prompt_bound()}
        middle = told or {"input_tokens": _about(prompt, call.model) + 4 * messages}
        if call.operation in _NO_OUTPUT:
            reading.quantities, reading.lower, reading.upper = middle, least, upper
            return
        reading.quantities = {**middle, "output_tokens": output_mid}
        reading.lower = {**least, "output_tokens": chunks}
        reading.upper = {**upper, "output_tokens": most}

    def _prompt_bound(self) -> int:
        call = self.call
        if call.hidden:
            return self.engines.book.input_limit(call.provider, call.model)
        return tokens.text_upper_bound(call.body) if call.body else 0

    def _allowance(self) -> int:
        """The most output tokens of an answer whose end was not seen: the provider may have written on, and billed it."""
        call, book = self.call, self.engines.book
        stated = call.output_bound()
        if stated is not None and (not stated or call.output_cap() is not None):
            return stated
        return max(stated or 0, (book.output_limit(call.provider, call.model) or 0) * call.choices)


_UNTOLD = Cost(None, basis="unknown")
"""The cost of what was not counted."""


def _spoken(reading: Reading, characters: int) -> None:
    """Tokens of speech by the length of its text. OpenAI's models say 20 a second; people say about 15 letters in it, in scripts of
    whole syllables about 5, and never below a half or above 60."""
    reading.estimated = True
    reading.quantities = {"input_tokens": -(-characters // BYTES_PER_TOKEN), "output_tokens": -(-characters * 4 // 3)}
    reading.lower = {"input_tokens": characters // BYTES_PER_TOKEN_MOST, "output_tokens": characters // 3}
    reading.upper = {"input_tokens": 4 * characters, "output_tokens": 40 * characters}


def _heard(reading: Reading, call: Call, allowance: int) -> None:
    """Tokens of a recording by its length: OpenAI's models hear 10 a second; people say about 4 in it. The text of the prompt is beside."""
    expected, most = int(call.counts["audio_seconds"]), int(call.most.get("audio_seconds", 0))
    prompt, _ = _prompt(call.body)
    size = len(prompt.encode())
    reading.estimated = True
    reading.quantities = {
        "input_audio_tokens": 10 * expected,
        "input_tokens": -(-size // BYTES_PER_TOKEN),
        "output_tokens": 4 * expected,
    }
    reading.lower = dict.fromkeys(reading.quantities, 0)
    reading.upper = {
        "input_audio_tokens": 10 * most,
        "input_tokens": size,
        "output_tokens": max(allowance, 4 * expected),
    }


def _content(request: Any, said: Any, finish_reasons: tuple[str, ...]) -> dict[str, str]:
    try:
        from aifinops.telemetry import content

        return content.attributes(request, said, finish_reasons)
    except Exception as failure:  # a form that nobody has seen: the span goes without it
        swallow("metering.content", failure)
        return {}


def _regional(book: PriceBook, provider: str, model: str, region: str) -> str:
    """The region where the list has a price of the model for it; elsewhere the model costs what it costs everywhere."""
    try:
        entry = book.resolve(provider, model)
    except UnknownModel:
        return ""
    known = {*(one.region for one in entry.variants), *(one.region for one in entry.adjust)}
    return region if region in known else ""


def _about(text: str, model: str) -> int:
    """Tokens of a text: exact where a tokenizer is on disk, else a quarter of its UTF-8 bytes."""
    exact = tokens.count_tokens(text, model) if text else 0
    return exact if exact is not None else -(-len(text.encode()) // BYTES_PER_TOKEN)


_PROMPTS = (
    "instructions", "messages", "input", "inputs", "prompt", "message", "system", "systemInstruction", "contents", "content", "requests",
    "instances", "inputText", "texts", "query", "documents",
)  # fmt: skip
"""Where requests have the text of a prompt: OpenAI's, Anthropic's, Google's, Amazon's, Cohere's and Hugging Face's words."""


def _prompt(body: Any) -> tuple[str, int]:
    """All text of a request's prompt, and how many messages it is in."""
    texts: list[str] = []
    messages = 0
    todo = [body.get(key) for key in _PROMPTS] if isinstance(body, Mapping) else []
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, Mapping):
            messages += "role" in item
            todo += [item.get("content"), item.get("text"), item.get("parts")]
        elif isinstance(item, (list, tuple)):
            todo += item
    return " ".join(texts), messages


def actual_amounts(charge: Charge) -> dict[str, int]:
    """A charge in budget units: nano-units of its currency, millionths of every meter, `tokens` and `requests`.

    A currency whose amount is unknown is left out: the guard then keeps what was held.
    """
    counts = charge.quantities
    amounts = {name: int(value * MICRO) for name, value in counts.items()}
    if counts:
        token_sum = input_total(counts) + output_total(counts)
        amounts["tokens"] = token_sum * MICRO
    amounts.setdefault("requests", MICRO)
    if charge.amount is not None:
        amounts[charge.currency] = charge.amount
    return amounts


def _soundly(charge: Charge, reading: Reading) -> dict[str, int]:
    """An estimate in budget units, at the most that it may be: a limit holds also for what nobody has told."""
    upper = replace(
        charge,
        quantities={**reading.quantities, **reading.upper},
        amount=charge.amount if charge.upper is None else charge.upper,
    )
    return actual_amounts(upper)


def _within(most: dict[str, int], expected: dict[str, int], reservation: Reservation | None) -> dict[str, int]:
    """An estimate at its upper bound is no more than what was held for the call: of a stream that ends at a limit only what it came to."""
    if reservation is None:
        return most
    held: dict[str, int] = {}
    for node, amount in zip(reservation.nodes, reservation.amounts, strict=True):
        held[node.unit] = max(amount, held.get(node.unit, 0))
    return {
        unit: max(expected.get(unit, 0), min(amount, held[unit])) if unit in held else amount
        for unit, amount in most.items()
    }


def give_to_trackers(scope: Scope, charge: Charge) -> None:
    """Show a charge to every `track` block around it."""
    for tracker in scope.trackers:
        try:
            tracker.add(charge)
        except Exception as failure:  # somebody's tracker; the others still get theirs
            swallow("metering.tracker", failure)


def _was_refused(error: BaseException) -> bool:
    """True with proof that the provider billed nothing: it answered with an error status, or nothing was sent."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status >= 400
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__name__ in _NOT_SENT:
            return True
        seen = seen.__cause__
    return False


def _unknown_model(invocation: Invocation) -> Any:
    call, book = invocation.call, invocation.engines.book
    try:
        book.resolve(call.provider, call.model)
    except UnknownModel as unknown:
        return unknown
    why = book.estimate(
        call.provider, call.model, input_tokens_upper=0, output_tokens_upper=0, at=invocation.wall
    ).notes
    return UnknownModel(call.model, provider=call.provider, lists=why)


_LONGEST = 256
_MOST_CHANGES = 64
_ENDLESS = "The budgets around this call change it again and again."
_FIXED = "The request is under way, so on_exceed cannot change it."
_CANNOT = "on_exceed with {0!r} cannot change calls that are made in this way."


def _fit(room: Mapping[str, int], amounts: Mapping[str, int]) -> bool:
    return all(amounts.get(unit, 0) <= left for unit, left in room.items())


_NO_LIMIT = "The request states no output limit, so the model's own maximum is held; set max_completion_tokens."


# --- calls that are seen only by their answer ----------------------------------------------------------------------------


class Watched(Invocation):
    """A request that may cost nothing: a poll, a download, an endpoint that nobody knows. Nothing is held for it, no span is begun, and
    its end only goes to `read`, which may `charge`. `early` is given the transport's answer before the library has begun to read it; `path`
    is what it asks for."""

    __slots__ = ("early", "path", "read")

    def __init__(self, engines: runtime.Runtime, call: Call, scope: Scope, tags: Tags, read: Watcher) -> None:
        super().__init__(engines, call, scope, tags)
        self.read = read
        self.path = ""
        self.early: Callable[[Any], None] | None = None

    def settle(self, reading: Reading, status: str = "ok", error: BaseException | None = None) -> None:
        """Hand over what was read, once."""
        if self._end():
            self.read(self, reading, "")

    def settle_estimated(self, output_text: str, chunks: int, reading: Reading, status: str) -> None:
        """Hand over an answer without usage."""
        if self._end():
            self.read(self, reading, output_text)

    def lose(self, error: BaseException) -> bool:
        """A try that cost nothing."""
        return False

    def fail(self, error: BaseException, *, refused: bool = False) -> None:
        """The call raised, and costs nothing."""
        self.leave()
        self._end()

    def charge(self, reading: Reading, *, id: str = "", at: int = 0) -> None:
        """Charge what an answer said, to whoever asked for it.

        Args:
            reading: with usage. id: of the ledger entry, which ignores one that it has. at: when it was made, by default now.
        """
        late = Invocation(
            self.engines, replace(self.call, model=self.call.model or reading.model), self.scope, self.tags
        )
        late.id, late.wall, late.started = id or late.id, at or self.wall, self.started
        late.budgets = self.engines.budgets(self.scope, self.tags)
        try:
            late.enter()
            late.leave()
        except Exception as failure:  # without a span it is charged all the same
            swallow("metering.charge", failure)
        late.settle(reading)


Watcher = Callable[[Watched, Reading, str], None]
"""What is to be done with the end of a watched call: the call, what was read, and the text that came without a usage."""


def watch(call: Call, read: Watcher) -> Watched | None:
    """Look at a call that is not held for; None when it is not to be looked at (switched off, or metered further out)."""
    if _in_flight.get() is not None:
        return None
    engines = runtime.get()
    if not engines.config.enabled:
        return None
    drain()
    scope = current()
    watched = Watched(engines, call, scope, engines.tags(scope), read)
    watched._owner = _in_flight.set(watched)
    return watched


# --- ends that fail -------------------------------------------------------------------------------------------------------


def ending(place: str, invocation: Invocation, function: Callable[..., Any], *args: Any) -> None:
    """Call what ends a call; where it fails, the failure is counted and the call given up, so that nothing of it stays open."""
    try:
        function(*args)
    except Exception as failure:  # the answer, or the error, is the user's as it is
        invocation.give_up()
        swallow(f"integrations.{place}", failure)


# --- streams that end where nobody may block ---------------------------------------------------------------------------


def settle_later(job: Callable[[], None]) -> None:
    """Run `job` at the next safe moment: now, or, inside our own engines or a finalizer, before the next call or flush."""
    _waiting.put(job)
    if not _busy.on:
        drain()


def drain() -> None:
    """Run what finalizers have left behind."""
    while not _busy.on and not _waiting.empty():
        try:
            job = _waiting.get_nowait()
        except Empty:
            return
        try:
            job()
        except Exception as failure:  # one stream's failure must not keep the others waiting
            swallow("metering.drain", failure)


def enqueue(job: Callable[[], None]) -> None:
    """Leave `job` for the next call or flush; safe inside a finalizer and a signal handler."""
    _waiting.put(job)


runtime.on_flush(drain)


def _after_fork() -> None:
    charged.reset_after_fork()
    late.clear()


os.register_at_fork(after_in_child=_after_fork)


# --- by hand -------------------------------------------------------------------------------------------------------------


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
    at: int | None = None,
    response_id: str = "",
    tags: Mapping[str, Any] | None = None,
) -> Charge:
    """Record something that no integration knows; see `aifinops.record`."""
    drain()
    engines = runtime.get()
    counts = quantities(usage or {})
    scope = current()
    call = Call(provider, operation, model, service=service, tier=tier)
    invocation = Invocation(engines, call, scope, merge(engines.tags(scope), make_tags(tags or {})))
    if at is not None:
        invocation.wall = at
    reading = Reading(counts, model=model, tier=tier, region=region, response_id=response_id)
    amounts = Amounts.of(_given_cost(cost)) if cost is not None else invocation._amounts(reading)
    charge = invocation._charge(reading, amounts, "ok", None)
    _post(invocation, charge)
    return charge


def record_reading(
    call: Call, reading: Reading, *, at: int, duration: int, trace_id: str, span_id: str, tags: Tags, ended: str = ""
) -> Charge:
    """Record a call that was made without us, from what somebody else has read of its answer.

    Args:
        call, reading: what was asked and answered. at: when it began; duration: nanoseconds. trace_id, span_id: of whose span, in hex.
        tags: beside those of the scope. ended: type of the error that ended it.
    """
    invocation, charge = _read(call, reading, at, duration, trace_id, span_id, tags, ended)
    _post(invocation, charge, ended, official=False)
    return charge


def charge_of(
    call: Call, reading: Reading, *, at: int, duration: int, trace_id: str, span_id: str, tags: Tags, ended: str = ""
) -> Charge:
    """What `record_reading` would record, recorded nowhere."""
    return _read(call, reading, at, duration, trace_id, span_id, tags, ended)[1]


def _read(
    call: Call, reading: Reading, at: int, duration: int, trace_id: str, span_id: str, tags: Tags, ended: str
) -> tuple[Invocation, Charge]:
    engines = runtime.get()
    scope = current()
    invocation = Invocation(engines, call, scope, merge(engines.tags(scope), tags))
    invocation.wall = at
    charge = replace(
        invocation._charge(reading, invocation._amounts(reading), "error" if ended else "ok", None),
        duration=duration,
        trace_id=trace_id,
        span_id=span_id,
        error=ended.rpartition(".")[2],
    )
    return invocation, charge


def _post(invocation: Invocation, charge: Charge, error: str = "", *, official: bool = True) -> None:
    """Put a charge that was never reserved into budgets, ledger and metrics."""
    engines = invocation.engines
    invocation._end()
    _busy.on = True
    try:
        budgets = engines.budgets(invocation.scope, invocation.tags)
        engines.guard.post(budgets, actual_amounts(charge), id=charge.id, at=charge.at)
        invocation._keep(charge)
        invocation._measure(charge, error, None, official=official)
    finally:
        _busy.on = False


def _given_cost(cost: Any) -> Cost:
    from aifinops.errors import ConfigurationError
    from aifinops.money import decimal, parse_money

    if isinstance(cost, Cost):
        return cost
    parsed = parse_money(cost) if isinstance(cost, str) else None
    amount, currency = parsed or (decimal(cost, "cost"), "USD")
    if amount < 0:
        raise ConfigurationError(f"cost={cost!r} is negative; a credit is a correction of an earlier charge")
    basis: Basis = "free" if amount == 0 else "reported"
    return Cost(amount, currency, basis, amount, amount, source="given")


# --- blocks ------------------------------------------------------------------------------------------------------------


def block_span(name: str, tags: Tags) -> Any:
    """Start the span of a `track` block; None without a tracer provider."""
    engines = runtime.get()
    if engines.spans is None:
        return None
    values: dict[str, Any] = {names.OPERATION: "invoke_workflow", names.WORKFLOW_NAME: name}
    if tags:
        span_attributes.add_tags(values, tags)
    return engines.spans.start_block(f"invoke_workflow {name}", values, engines.clock.time_ns())


def attach_span(span: Any) -> Any:
    """Make a block's span current; the token for `detach_span`."""
    return None if span is None else Spans.attach(span)


def detach_span(token: Any) -> None:
    """Undo `attach_span`."""
    if token is not None:
        Spans.detach(token)


def end_block_span(span: Any, values: Mapping[str, Any], error: BaseException | None) -> None:
    """End a block's span with what its charges add up to."""
    Spans.end_block(span, values, runtime.get().clock.time_ns(), error)


def budget_figures(active: ActiveBudget, figure: str) -> dict[str, Decimal]:
    """`limit`, `spent`, `reserved` or `remaining` of a budget in its current window: unit -> quantity."""
    drain()
    engines = runtime.get()
    _busy.on = True
    try:
        balances = engines.guard.balances(active)
    finally:
        _busy.on = False
    return {unit: to_units(unit, getattr(balance, figure) or 0) for unit, balance in balances.items()}
