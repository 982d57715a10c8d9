"""What is particular to balances in memory; the rest is in the conformance suite."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import ClassVar

import pytest

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.accounts import Account, reserve
from aifinops.budgets.stores.base import (
    Adjust,
    Draw,
    Extend,
    Node,
    Operation,
    Outcome,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Sweep,
)
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.errors import StoreError

NODE = Node("a", 0, "USD", 100)
NODES = (NODE,)
DAY = 86_400 * 10**9


def hold(store: MemoryStore, id: str, amount: int = 1, *, nodes: tuple[Node, ...] = NODES, ttl: int = DAY) -> Outcome:
    return Reserve(id, nodes, (amount,), 0, ttl).execute(store)


def test_finished_ids_are_forgotten_in_time() -> None:
    """Memory is bounded: of what is finished the latest are known, of what is in flight everything is."""
    store = MemoryStore(remember=10)
    hold(store, "in flight")
    for number in range(100):
        hold(store, f"{number}", 0)
        Settle(f"{number}", NODES, (0,), 0).execute(store)
        Adjust(f"{number}", NODES, (0,), 0).execute(store)
    assert len(store._done) == len(store._order) == len(store._entries) == 10
    assert Settle("99", NODES, (0,), 0).execute(store) == Outcome(State.SETTLED, applied=False)
    assert Settle("1", NODES, (0,), 0).execute(store) == Outcome(None, applied=False)
    assert Settle("in flight", NODES, (1,), 0).execute(store).applied


def test_windows_are_dropped_a_week_after_their_end() -> None:
    """A budget per minute does not grow for ever, and what is still held stays."""
    store = MemoryStore()
    ended, held, total = (Node("m", 0, "USD", 9, until=60), Node("h", 0, "USD", 9, until=60), NODE)
    for node in (ended, held, total):
        Adjust(node.budget, (node,), (5,), 0).execute(store)
    hold(store, "late", nodes=(held,), ttl=10 * DAY)
    Sweep(7 * DAY).execute(store)
    assert [one.spent for one in Read((ended, held, total)).execute(store)] == [5, 5, 5]
    Sweep(7 * DAY + 61).execute(store)
    assert [one.spent for one in Read((ended, held, total)).execute(store)] == [0, 5, 5]


def test_a_lease_lasts_as_long_as_it_says() -> None:
    """It runs out at its moment, not before, and a heartbeat moves that moment."""
    store = MemoryStore()
    hold(store, "a", 10, ttl=100)
    assert Sweep(99).execute(store).forfeited == ()
    assert Extend("a", NODES, 99, 100).execute(store).applied
    assert Sweep(100).execute(store).forfeited == ()
    assert Sweep(199).execute(store).forfeited == ("a",)
    assert Extend("a", NODES, 199, 100).execute(store) == Outcome(State.FORFEITED, applied=False)


def test_a_hold_can_grow_and_shrink() -> None:
    """Growth needs room; what shrinks gives room; what is settled is compared with the hold of that time."""
    store = MemoryStore()
    hold(store, "a", 50)
    hold(store, "b", 30)
    refused = Extend("a", NODES, 0, DAY, (71,)).execute(store)
    assert refused.decision is not None
    assert refused.decision.transient
    assert Extend("a", NODES, 0, DAY, (70,)).execute(store).applied
    assert Extend("a", NODES, 0, DAY, (5,)).execute(store).applied
    assert Read(NODES).execute(store) == (Balance(100, reserved=35),)
    Settle("a", NODES, (9,), 0).execute(store)
    assert Read(NODES).execute(store) == (Balance(100, spent=9, reserved=30, overrun=4),)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # threads and forks together are what this is about
def test_a_fork_starts_with_what_was_spent_and_without_what_is_held() -> None:
    """What is in flight is the parent's to settle; the child's own lock is free, whoever held the parent's."""
    store = MemoryStore()
    hold(store, "parent's", 40)
    Adjust("x", NODES, (25,), 0).execute(store)
    locked, done = threading.Event(), threading.Event()

    def keep_the_lock() -> None:
        with store._lock:
            locked.set()
            done.wait()

    keeper = threading.Thread(target=keep_the_lock)
    keeper.start()
    locked.wait()
    child = os.fork()
    if child == 0:
        store.reset_after_fork()
        right = Read(NODES).execute(store) == (Balance(100, spent=25, overrun=25),)
        late = Settle("parent's", NODES, (40,), 0).execute(store)
        os._exit(0 if right and late == Outcome(None, applied=False) else 1)
    done.set()
    keeper.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert Read(NODES).execute(store) == (Balance(100, spent=25, reserved=40, overrun=25),)


def test_a_signal_handler_may_come_back_in() -> None:
    """A handler that spends money while this thread is inside the store does not wait for itself."""
    store = MemoryStore()

    def handler(number: int, frame: FrameType | None) -> None:
        hold(store, "handler's", 7)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with store._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert Read(NODES).execute(store) == (Balance(100, reserved=7),)


class Interrupting(int):
    """A limit or a mark at which, when it is compared with, a signal handler makes a call: the worst moment there is."""

    handler: ClassVar[Callable[[], object] | None] = None

    def __lt__(self, taken: int) -> bool:
        self.interrupt()
        return int(self) < taken

    def __ge__(self, taken: int) -> bool:
        self.interrupt()
        return int(self) >= taken

    def __gt__(self, fired: int) -> bool:
        self.interrupt()
        return int(self) > fired

    @staticmethod
    def interrupt() -> None:
        handler, Interrupting.handler = Interrupting.handler, None
        if handler is not None:
            handler()


@pytest.mark.parametrize("way", ["reserve", "extend"])
def test_money_for_one_is_given_to_one_of_two(way: str) -> None:
    """Also where the second one comes between the look at the limit and the hold of the first, in the same thread."""
    store = MemoryStore()
    nodes = (Node("a", 0, "USD", None), Node("b", 0, "USD", Interrupting(10)))
    if way == "extend":
        Reserve("first", nodes, (0, 0), 0, DAY).execute(store)
    Interrupting.handler = lambda: Reserve("handler's", nodes, (10, 10), 0, DAY).execute(store)
    first: Operation[Outcome] = Reserve("first", nodes, (10, 10), 0, DAY)
    if way == "extend":
        first = Extend("first", nodes, 0, DAY, (10, 10))
    first.execute(store)
    assert [balance.reserved for balance in Read(nodes).execute(store)] == [10, 10]


def test_a_lease_lets_nothing_go_that_it_keeps() -> None:
    """While it says what was spent, in the same thread, nobody is given what it goes on holding."""
    store = MemoryStore()
    nodes = (Node("a", 0, "USD", None), Node("b", 0, "USD", 10, marks=(Interrupting(1),)))
    Reserve("lease", nodes, (10, 10), 0, DAY).execute(store)
    given: list[bool] = []
    Interrupting.handler = lambda: given.append(Reserve("handler's", nodes, (9, 9), 0, DAY).execute(store).applied)
    Draw("lease", nodes, 1, (1, 1), (9, 9), (9, 9), 0, DAY).execute(store)
    assert given == [False]
    assert [(balance.spent, balance.reserved) for balance in Read(nodes).execute(store)] == [(1, 9), (1, 9)]


@pytest.mark.parametrize("way", ["reserve", "extend", "draw", "by the guard"])
def test_what_comes_back_while_something_is_refused_is_given(way: str) -> None:
    """A handler ends its call between the look at the limit and the decision: it is looked at once more, not refused for no reason."""
    store = MemoryStore()
    nodes = (Node("b", 0, "USD", Interrupting(10)),)
    Reserve("first", nodes, (4,), 0, DAY).execute(store)
    Reserve("handler's", nodes, (6,), 0, DAY).execute(store)
    Interrupting.handler = lambda: Release("handler's", nodes).execute(store)
    if way == "by the guard":
        outcome = store.quick_reserve("second", nodes, (6,), 0, DAY)
    else:
        operation: Operation[Outcome] = {
            "reserve": Reserve("second", nodes, (6,), 0, DAY),
            "extend": Extend("first", nodes, 0, DAY, (10,)),
            "draw": Draw("first", nodes, 1, (0,), (10,), (4,), 0, DAY),
        }[way]
        outcome = operation.execute(store)
    assert outcome.applied
    assert outcome.decision is None
    assert [balance.reserved for balance in Read(nodes).execute(store)] == [10]


def test_one_of_several_rows_gives_room_while_it_is_refused() -> None:
    """The same for a store that keeps its figures elsewhere and decides by them in Python."""
    node, account = Node("b", 0, "USD", Interrupting(10)), Account(reserved=6)
    Interrupting.handler = lambda: setattr(account, "reserved", account.reserved - 6)
    assert reserve((node,), [account], (10,), 0) is None
    assert account.reserved == 10


@pytest.mark.parametrize(
    "operation",
    [
        Reserve("a", NODES, (6,), 0, 1),
        Reserve("a", (Node("b", 0, "USD", 100),), (5,), 0, 1),
        Settle("a", NODES, (6,), 0),
        Adjust("a", NODES, (6,), 0),
    ],
)
def test_an_id_stands_for_one_thing(operation: Operation[Outcome]) -> None:
    """The same id with other amounts or elsewhere is an error, and changes nothing."""
    store = MemoryStore()
    hold(store, "a", 5)
    Settle("a", NODES, (5,), 0).execute(store)
    Adjust("a", NODES, (5,), 0).execute(store)
    with pytest.raises(StoreError, match=r"'a' is known with amounts .* use a new id"):
        operation.execute(store)
    assert Read(NODES).execute(store) == (Balance(100, spent=10, overrun=5),)


def test_a_settlement_needs_an_amount_for_each_node() -> None:
    """One that does not fit its reservation changes nothing."""
    store = MemoryStore()
    hold(store, "a", 5)
    with pytest.raises(StoreError):
        Settle("a", (NODE, NODE), (5, 5), 0).execute(store)
    assert Release("a", NODES).execute(store).applied


def test_a_credit_after_an_expiry_leaves_nothing_negative() -> None:
    """Both take the same amount out; it is taken once."""
    store = MemoryStore()
    hold(store, "a", 10, ttl=0)
    Sweep(0).execute(store)
    Adjust("credit", NODES, (-8,), 0).execute(store)
    Settle("a", NODES, (3,), 0).execute(store)
    assert Read(NODES).execute(store) == (Balance(100, spent=3),)
