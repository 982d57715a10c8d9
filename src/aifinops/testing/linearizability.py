"""Whether a store behaves as if its operations happened one after the other: `check_linearizable(make_store)`.

Many short histories are recorded: a few threads make a few operations each on one small budget, and for each operation is noted when
it was called, when it answered and what. A history is right when there is an order of the operations that gives every one its answer and in
which none comes before one that had answered before it was called. All orders are tried, as Wing and Gong do (Testing and Verifying
Concurrent Objects, 1993), with what was tried before remembered.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aifinops.budgets.stores.base import Node, Outcome, Read, Release, Reserve, Settle, Store

__all__ = ["check_linearizable"]

_NOW, _FOREVER = 1_800_000_000 * 10**9, 10**18
_LIMIT = 30

_Call = tuple[str, str, int]
"""(what, id, amount)."""
_State = tuple[int, int, frozenset[tuple[str, str, int]]]
"""(spent, reserved, (id, state, amount) of every reservation)."""


@dataclass(slots=True)
class _Event:
    call: _Call
    called: int
    answered: int
    answer: Any


def check_linearizable(
    make_store: Callable[[], Store], *, histories: int = 1000, threads: int = 3, operations: int = 4, seed: int = 0
) -> int:
    """Prove that a store never answers as no sequence of operations could.

    Args:
        make_store: gives a store; called once, and the store is closed after use.
        histories: how many are recorded. threads, operations: how many threads in each, and operations of each thread.
        seed: of the operations. How threads interleave is the machine's choice.

    Returns:
        How many histories had operations at the same time; the others prove nothing.

    Raises:
        AssertionError: with the first history that no order explains.
    """
    store, overlapping = make_store(), 0
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(histories):
            events = _record(store, f"{seed}/{number}", threads, operations)
            overlapping += any(
                one.called < other.called < one.answered for one in events for other in events if one is not other
            )
            if not _explained(events):
                lines = "\n  ".join(str(event) for event in sorted(events, key=lambda event: event.called))
                raise AssertionError(f"no order of operations explains history {seed}/{number}:\n  {lines}")
    finally:
        sys.setswitchinterval(interval)
        store.close()
    return overlapping


def _record(store: Store, seed: str, threads: int, operations: int) -> list[_Event]:
    node = Node(f"history {seed}", 0, "USD", _LIMIT)
    start = threading.Barrier(threads)
    events: list[_Event] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")  # noqa: S311 - to be replayed, not to be secret
        held: list[str] = []
        start.wait()
        try:
            for step in range(operations):
                call = _choose(chance, held, f"{number}-{step}")
                called = time.perf_counter_ns()
                answer = _make(store, node, seed, call)
                events.append(_Event(call, called, time.perf_counter_ns(), answer))
                if call[0] == "reserve" and answer:
                    held.append(call[1])
        except BaseException as error:  # raised again below, in the thread of the caller
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return events


def _choose(chance: random.Random, held: list[str], id: str) -> _Call:
    choice = chance.random()
    if choice < 0.2:
        return "read", "", 0
    if held and choice < 0.6:
        return chance.choice(("settle", "settle", "release")), held.pop(), chance.choice((0, 5, 10, 15))
    # A few ids are everybody's, so that the same one comes twice.
    return "reserve", chance.choice((id, id, id, "shared")), 10


def _make(store: Store, node: Node, seed: str, call: _Call) -> Any:
    what, id, amount = call
    name, nodes = f"{seed}/{id}", (node,)
    if what == "read":
        (balance,) = Read(nodes).execute(store)
        return balance.spent, balance.reserved
    outcome: Outcome
    if what == "reserve":
        outcome = Reserve(name, nodes, (amount,), _NOW, _FOREVER).execute(store)
    elif what == "settle":
        outcome = Settle(name, nodes, (amount,), _NOW).execute(store)
    else:
        outcome = Release(name, nodes).execute(store)
    return outcome.applied


def _explained(events: list[_Event]) -> bool:
    """Whether some order gives every operation its answer."""
    tried: set[tuple[frozenset[int], _State]] = set()
    todo: list[tuple[frozenset[int], _State]] = [(frozenset(range(len(events))), (0, 0, frozenset()))]
    while todo:
        left, state = todo.pop()
        if not left:
            return True
        if (left, state) in tried:
            continue
        tried.add((left, state))
        first_answer = min(events[index].answered for index in left)
        for index in left:
            event = events[index]
            if event.called <= first_answer:
                answer, after = _apply(state, event.call)
                if answer == event.answer:
                    todo.append((left - {index}, after))
    return False


def _apply(state: _State, call: _Call) -> tuple[Any, _State]:
    """The plainest store there is: what an operation answers, and the state after it."""
    spent, reserved, reservations = state
    what, id, amount = call
    if what == "read":
        return (spent, reserved), state
    known = next((one for one in reservations if one[0] == id), None)
    if what == "reserve":
        if known is not None or spent + reserved + amount > _LIMIT:
            return False, state
        return True, (spent, reserved + amount, reservations | {(id, "held", amount)})
    if known is None or known[1] != "held":
        return False, state
    others = reservations - {known}
    if what == "release":
        return True, (spent, reserved - known[2], others | {(id, "released", 0)})
    return True, (spent + amount, reserved - known[2], others | {(id, "settled", amount)})
