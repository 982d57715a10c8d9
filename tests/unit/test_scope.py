"""What is in force in a block, a thread and a task."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from aifinops.charges import Charge
from aifinops.scope import Scope, bind, current, enter, leave, narrowed, set_scope
from aifinops.tags import EMPTY, make_tags


@dataclass(frozen=True)
class Node:
    """As much of an active budget as the scope looks at."""

    key: str


class Collector:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.charges: list[Charge] = []

    def add(self, charge: Charge) -> None:
        self.charges.append(charge)


def tags_in_force() -> dict[str, str]:
    return dict(current().tags)


def in_thread(function: Callable[[], Any]) -> Any:
    """Run in a thread that starts with an empty context, as `threading.Thread` does."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_nothing_is_in_force_at_first() -> None:
    """Outside of every block there is an empty scope, never None."""
    assert in_thread(current) == Scope(EMPTY, (), (), None)


def test_blocks_nest_and_are_undone_in_turn() -> None:
    """The inner value wins, and leaving restores the outer scope exactly."""
    before = current()
    outer = enter(tags=make_tags({"team": "a", "feature": "x"}))
    inside = current()
    inner = enter(tags=make_tags({"team": "b"}))
    assert tags_in_force() == {"team": "b", "feature": "x"}
    leave(inner)
    assert current() is inside
    leave(outer)
    assert current() is before


def test_budgets_and_trackers_stack_outermost_first() -> None:
    """Every block adds its own behind those of the outer ones; the innermost span counts."""
    first, second = Collector(), Collector()
    outer = enter(budget=Node("a"), tracker=first, span="s1")  # type: ignore[arg-type]
    inner = enter(budget=Node("b"), tracker=second)  # type: ignore[arg-type]
    here = current()
    assert [item.key for item in here.budgets] == ["a", "b"]
    assert here.trackers == (first, second)
    assert here.span == "s1"
    leave(inner)
    leave(outer)


def test_a_budget_entered_twice_is_one_node() -> None:
    """The same name inside itself is not charged twice."""
    outer = enter(budget=Node("search"))  # type: ignore[arg-type]
    inner = enter(budget=Node("search"))  # type: ignore[arg-type]
    assert [item.key for item in current().budgets] == ["search"]
    leave(inner)
    leave(outer)


def test_a_block_closed_in_another_context_does_no_harm() -> None:
    """A generator that somebody else closes leaves a token of a context that is gone."""
    token = contextvars.copy_context().run(enter, tags=make_tags({"team": "gone"}))
    before = current()
    leave(token)
    assert current() is before


def test_a_captured_scope_can_be_put_in_force() -> None:
    """`narrowed` undoes itself, also when the block raises; `set_scope` is undone by `leave`."""
    captured = Scope(tags=make_tags({"team": "captured"}))

    def fail() -> None:
        with narrowed(captured):
            assert current() is captured
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert current() is not captured
    token = set_scope(captured)
    assert current() is captured
    leave(token)
    assert current() is not captured


def test_a_plain_thread_starts_with_nothing() -> None:
    """Context variables do not reach a new thread by themselves; this is why there is `bind`."""
    token = enter(tags=make_tags({"team": "a"}))
    try:
        assert in_thread(tags_in_force) == {}
    finally:
        leave(token)


def test_bind_carries_the_scope_into_threads() -> None:
    """The bound function sees what was in force when it was bound, not when it runs."""
    token = enter(tags=make_tags({"team": "a"}))
    bound = bind(tags_in_force)
    leave(token)
    assert in_thread(bound) == {"team": "a"}
    assert tags_in_force() == {}


def test_a_bound_function_stays_itself() -> None:
    """Name, result, arguments and exceptions go through unchanged, and the worker thread is left as it was."""

    def work(left: int, *, right: int) -> float:
        """Divide."""
        return left / right

    bound = bind(work)
    assert (bound.__name__, bound.__doc__, bound(6, right=3)) == ("work", "Divide.", 2)
    with pytest.raises(ZeroDivisionError):
        bound(1, right=0)
    assert current() == Scope()


def test_pool_threads_do_not_mix_scopes() -> None:
    """Eight bound functions on two threads each see their own tags, whichever thread runs them."""
    jobs = []
    for number in range(8):
        token = enter(tags=make_tags({"run": number}))
        jobs.append(bind(tags_in_force))
        leave(token)
    with ThreadPoolExecutor(2) as pool:
        assert [future.result()["run"] for future in [pool.submit(job) for job in jobs]] == [str(n) for n in range(8)]
        assert pool.submit(tags_in_force).result() == {}


async def test_tasks_inherit_and_do_not_disturb_each_other() -> None:
    """A task starts with its creator's scope; what it enters stays its own, across awaits."""
    arrived, release = asyncio.Barrier(3), asyncio.Event()

    async def work(name: str) -> dict[str, str]:
        token = enter(tags=make_tags({"feature": name}))
        await arrived.wait()
        await release.wait()
        seen = tags_in_force()
        leave(token)
        return seen

    token = enter(tags=make_tags({"team": "a"}))
    tasks = [asyncio.create_task(work(name)) for name in ("x", "y")]
    leave(token)
    await arrived.wait()
    release.set()
    assert await asyncio.gather(*tasks) == [{"team": "a", "feature": "x"}, {"team": "a", "feature": "y"}]
    assert tags_in_force() == {}


async def test_to_thread_carries_the_scope_by_itself() -> None:
    """`asyncio.to_thread` copies the context, so nothing is needed."""
    token = enter(tags=make_tags({"team": "a"}))
    try:
        assert await asyncio.to_thread(tags_in_force) == {"team": "a"}
    finally:
        leave(token)
