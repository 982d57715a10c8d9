"""`track_cost`, `track`, `tags`: every kind of callable, the scope inside it, and nothing changed for whoever calls it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

import aifinops as af
from aifinops import runtime, scope
from aifinops.charges import Charge


def spend(cost: str = "1 USD") -> dict[str, str]:
    """Charge something, and say which tags were in force."""
    return dict(af.record(cost=cost).tags)


def rows() -> list[Charge]:
    return list(runtime.get().ledger.rows())


@af.track_cost(team="search", feature="rerank")
def plain(value: int, *, twice: bool = False) -> tuple[int, dict[str, str]]:
    """Doc of plain."""
    return value * (2 if twice else 1), spend()


@af.track_cost(team="search")
async def coroutine() -> dict[str, str]:
    await asyncio.sleep(0)
    return spend()


@af.track_cost(team="search")
def generator(count: int) -> Iterator[Any]:
    for _ in range(count):
        received = yield spend()
        if received:
            yield received
    return "done"


@af.track_cost(team="search")
async def asyncgen(count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        await asyncio.sleep(0)
        received = yield spend()
        if received:
            yield received


class Worker:
    """Methods of each kind."""

    def __init__(self) -> None:
        self.name = "w"

    @af.track_cost(team="search")
    def method(self) -> tuple[str, dict[str, str]]:
        return self.name, spend()

    @classmethod
    @af.track_cost(team="search")
    def under_classmethod(cls) -> tuple[str, dict[str, str]]:
        return cls.__name__, spend()

    @af.track_cost(team="search")
    @classmethod
    def over_classmethod(cls) -> tuple[str, dict[str, str]]:
        return cls.__name__, spend()

    @af.track_cost(team="search")
    @staticmethod
    def over_staticmethod() -> dict[str, str]:
        return spend()


@af.track_cost(team="search")
class Tracked:
    """A class whose public methods are all tracked."""

    limit = 3

    def public(self) -> dict[str, str]:
        return spend()

    async def later(self) -> dict[str, str]:
        return spend()

    @classmethod
    def make(cls) -> tuple[type, dict[str, str]]:
        return cls, spend()

    @staticmethod
    def static() -> dict[str, str]:
        return spend()

    def _private(self) -> dict[str, str]:
        return spend()

    def __call__(self) -> dict[str, str]:
        return spend()


class Callable_:
    """An object that is called."""

    colour = "red"

    def __call__(self) -> dict[str, str]:
        return spend()


def test_function_keeps_its_result_name_and_signature() -> None:
    """A function works as before, inside its tags."""
    assert plain(3, twice=True) == (6, {"team": "search", "feature": "rerank"})
    assert plain.__name__ == "plain"
    assert plain.__doc__ == "Doc of plain."
    assert str(inspect.signature(plain)) == "(value: 'int', *, twice: 'bool' = False) -> 'tuple[int, dict[str, str]]'"
    assert spend() == {}


def test_decorator_works_without_parentheses() -> None:
    """`@track_cost` alone tracks without tags."""
    assert af.track_cost(spend)() == {}


async def test_coroutine_is_tracked_while_it_runs() -> None:
    """The block is around the body, not around making the coroutine."""
    made = coroutine()
    assert inspect.iscoroutinefunction(coroutine)
    assert spend() == {}
    assert await made == {"team": "search"}
    assert spend() == {}


def test_generator_is_in_force_only_while_its_own_code_runs() -> None:
    """Between two steps the consumer's own scope counts; send, return value and close pass through."""
    assert inspect.isgeneratorfunction(generator)
    steps = generator(2)
    assert next(steps) == {"team": "search"}
    assert spend() == {}
    assert steps.send("x") == "x"  # type: ignore[attr-defined]
    assert next(steps) == {"team": "search"}
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == "done"


def test_generator_consumer_may_switch_context_between_steps() -> None:
    """A generator that is resumed in another thread, as web servers do, leaks nothing and loses nothing."""
    steps = generator(3)
    seen = [next(steps)]
    thread = threading.Thread(target=lambda: seen.append(next(steps)))
    thread.start()
    thread.join()
    steps.close()  # type: ignore[attr-defined]
    assert seen == [{"team": "search"}] * 2
    assert scope.current() == scope.NOTHING


def test_generator_takes_a_thrown_exception() -> None:
    """`throw` reaches the user's generator, which decides."""

    @af.track_cost
    def stubborn() -> Iterator[str]:
        try:
            yield "first"
        except KeyError:
            yield "caught"

    steps = stubborn()
    next(steps)
    assert steps.throw(KeyError("x")) == "caught"  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(steps)


def test_abandoned_generator_runs_its_finally() -> None:
    """Closing early runs the user's cleanup, under the block."""
    cleanup: list[dict[str, str]] = []

    @af.track_cost(team="search")
    def careful() -> Iterator[int]:
        try:
            yield 1
        finally:
            cleanup.append(spend())

    steps = careful()
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert cleanup == [{"team": "search"}]


async def test_async_generator_is_in_force_only_while_its_own_code_runs() -> None:
    """The same for async generators, asend included."""
    assert inspect.isasyncgenfunction(asyncgen)
    steps = asyncgen(2)
    assert await anext(steps) == {"team": "search"}
    assert spend() == {}
    assert await steps.asend("x") == "x"  # type: ignore[attr-defined]
    assert [item async for item in steps] == [{"team": "search"}]
    assert spend() == {}


async def test_abandoned_async_generator_runs_its_finally() -> None:
    """`aclose` and `athrow` reach the user's generator."""
    cleanup: list[Any] = []

    @af.track_cost(team="search")
    async def careful() -> AsyncIterator[int]:
        try:
            yield 1
        except KeyError:
            yield 2
        finally:
            cleanup.append(spend())

    steps = careful()
    await anext(steps)
    assert await steps.athrow(KeyError()) == 2  # type: ignore[attr-defined]
    await steps.aclose()  # type: ignore[attr-defined]
    assert cleanup == [{"team": "search"}]


def test_methods_of_every_kind() -> None:
    """Methods, classmethods and staticmethods, decorated above or below the other decorator."""
    worker = Worker()
    assert worker.method() == ("w", {"team": "search"})
    assert Worker.under_classmethod() == ("Worker", {"team": "search"})
    assert Worker.over_classmethod() == ("Worker", {"team": "search"})
    assert worker.over_staticmethod() == {"team": "search"}
    assert Worker.over_staticmethod() == {"team": "search"}


async def test_class_tracks_its_public_methods() -> None:
    """A decorated class is the same class; its public methods and `__call__` are tracked, private ones are not."""
    made = Tracked()
    assert isinstance(made, Tracked)
    assert Tracked.limit == 3
    assert made.public() == {"team": "search"}
    assert await made.later() == {"team": "search"}
    assert Tracked.make() == (Tracked, {"team": "search"})
    assert made.static() == {"team": "search"}
    assert made() == {"team": "search"}
    assert made._private() == {}


async def test_partial_and_callable_objects() -> None:
    """Partials keep the name of their function, objects keep their attributes."""
    partial = af.track_cost(team="search")(functools.partial(plain, 2, twice=True))
    assert partial()[0] == 4
    assert partial.__name__ == "plain"
    later = af.track_cost(team="ads")(functools.partial(coroutine))
    assert inspect.iscoroutinefunction(later)
    assert await later() == {"team": "search"}
    called = af.track_cost(team="search")(Callable_())
    assert called() == {"team": "search"}
    assert called.colour == "red"
    assert isinstance(called, Callable_)


def test_what_is_not_callable_is_refused() -> None:
    """A clear error instead of a surprise later."""
    with pytest.raises(af.ConfigurationError, match="not callable"):
        af.track_cost(team="x")(3)


def test_tags_merge_and_the_inner_one_wins() -> None:
    """Nested blocks add up key by key."""
    with af.tags(team="outer", customer="acme"), af.track("inner", team="inner"):
        assert spend() == {"team": "inner", "customer": "acme"}
    assert spend() == {}


def test_track_collects_what_happens_inside() -> None:
    """`t.cost`, `t.usage` and `t.charges` cover nested blocks too, each charge once."""
    with af.track("outer") as outer:
        spend("1 USD")
        with af.track("inner") as inner:
            af.record(usage={"read_units": 5}, cost="0.5 USD")
    assert outer.cost.amount == Decimal("1.5")
    assert inner.cost.amount == Decimal("0.5")
    assert dict(outer.usage) == {"read_units": 5}
    assert [charge.amount for charge in outer.charges] == [1_000_000_000, 500_000_000]


def test_unpriced_charge_is_noted_and_not_zero() -> None:
    """A block whose only charge is unpriced costs an unknown amount."""
    with af.track("x") as block:
        block.record(usage={"read_units": 5}, model="nobody-knows", provider="acme")
    assert block.cost.amount is None
    assert block.cost.basis == "unknown"
    assert block.cost.notes == ("1 unpriced, not included",)


def test_exception_passes_unchanged() -> None:
    """The user's exception, with its own traceback, and the scope is left."""
    error = KeyError("mine")

    @af.track_cost(team="search")
    def broken() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        broken()
    assert caught.value is error
    assert scope.current() == scope.NOTHING


def test_block_object_used_by_many_threads_and_twice_in_one() -> None:
    """One `tags` object entered by several threads, and inside itself, restores each entry."""
    block = af.tags(team="search")
    problems = []

    def use() -> None:
        with block:
            with block:
                pass
            if spend() != {"team": "search"}:
                problems.append("inner exit took the outer entry")
        if scope.current() != scope.NOTHING:
            problems.append("leaked")

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


async def test_tasks_do_not_see_each_other() -> None:
    """Concurrent tasks keep their own tags."""

    async def work(team: str) -> dict[str, str]:
        async with af.track("work", team=team):
            await asyncio.sleep(0)
            return spend()

    assert await asyncio.gather(*(work(str(n)) for n in range(8))) == [{"team": str(n)} for n in range(8)]


async def test_to_thread_is_automatic() -> None:
    """`asyncio.to_thread` copies the context, ours with it."""
    with af.tags(team="search"):
        assert await asyncio.to_thread(spend) == {"team": "search"}


def test_thread_pool_is_automatic_once_instrumented() -> None:
    """After `instrument()` a submitted function runs under the tags of its submitter; before, only with `bind`."""
    with ThreadPoolExecutor(1) as pool, af.tags(team="search"):
        assert pool.submit(spend).result() == {}
        assert pool.submit(af.bind(spend)).result() == {"team": "search"}
        af.instrument()
        try:
            assert pool.submit(spend).result() == {"team": "search"}
            assert list(pool.map(lambda _: spend(), range(2))) == [{"team": "search"}] * 2
        finally:
            af.uninstrument()
        assert pool.submit(spend).result() == {}


def test_thread_pool_can_be_left_alone() -> None:
    """`init(threads=False)` leaves `ThreadPoolExecutor` as it is."""
    af.init(threads=False)
    af.instrument()
    try:
        with ThreadPoolExecutor(1) as pool, af.tags(team="search"):
            assert pool.submit(spend).result() == {}
    finally:
        af.uninstrument()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: af.tags(**{"bad key": "x"}), "bad key"),
        (lambda: af.track("x", team=["a"]), "must be text"),
        (lambda: af.tags(team="x" * 300), "300 characters"),
        (lambda: af.record(), "record\\(\\) needs"),
        (lambda: af.record(usage={"read_unit": 1}), "read_units"),
        (lambda: af.record(cost="minus one"), "minus one"),
        (lambda: af.record(cost="-1 USD"), "negative"),
        (lambda: af.price("gpt-4o", input_token=1), "input_tokens"),
    ],
)
def test_bad_input_names_the_value(make: Callable[[], Any], text: str) -> None:
    """Wrong arguments are a ConfigurationError that names the value; nothing is recorded."""
    with pytest.raises(af.ConfigurationError, match=text):
        make()
    assert rows() == []


def test_gpu_seconds_of_named_devices_are_counted() -> None:
    """`gpu={...}` charges devices x elapsed seconds; without a price the cost is unknown and the time is there."""

    class Still:
        def __init__(self) -> None:
            self.now = 10**18

        def time_ns(self) -> int:
            return self.now

        monotonic_ns = time_ns

    clock = Still()
    runtime.init(ledger="memory", clock=clock)

    @af.track_cost(gpu={"Some Prototype": 8}, project="llm-ft")
    def train() -> None:
        clock.now += 90 * 10**9

    train()
    (charge,) = rows()
    assert charge.quantities == {"gpu_seconds": 720}
    assert charge.tags["project"] == "llm-ft"
    assert set(charge.tags) == {"project", "run", "attempt"}
    assert charge.amount is None
