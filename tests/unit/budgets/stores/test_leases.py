"""Leases: spent without asking, told in time, given back, never more than there is, whatever happens to the store."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from builtins import id as id_of
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import (
    Accounts,
    Adjust,
    Capabilities,
    Crossing,
    Extend,
    MarkSent,
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
from aifinops.budgets.stores.leases import LeasedStore
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.errors import StoreError
from aifinops.testing import check_budget_store
from aifinops.testing.clock import FakeClock

LIMIT = 1_000_000
NODES = (Node("org", 0, "USD", None), Node("team", 0, "USD", LIMIT, 0, (LIMIT // 2,)))
FOREVER = 10**18
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Line:
    """A memory store behind a line that can be cut, before or after an operation has had its effect; it counts what passes."""

    capabilities = Capabilities(shared=True, durable=True, io="blocking")

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.asked: list[str] = []
        self.down = ""

    def run(self, operation: Operation[Any]) -> Any:
        self.asked.append(type(operation).__name__)
        if self.down == "before":
            raise StoreError("refused")
        answer = self.inner.run(operation)
        if self.down == "after":
            raise StoreError("timeout")
        return answer

    def reset_after_fork(self) -> None:
        self.inner.reset_after_fork()

    def close(self) -> None:
        self.inner.close()


class Desk:
    """One process with leases of a shared store, and time that stands still."""

    def __init__(self) -> None:
        self.clock = FakeClock(datetime(2026, 11, 30, tzinfo=UTC))
        self.line = Line()
        self.crossed: list[Crossing] = []
        self.store = LeasedStore(self.line, self.clock, on_crossed=self.crossed.extend, every_s=0)
        self.count = 0
        self.doubtful = 0
        lost = self.store._lost

        def count(path: Any, operation: Any) -> None:
            # An answer that was lost, and then the lease with it: nobody knows whether that step was counted, so it is.
            self.doubtful += operation.spent[1] if path.pending is operation else 0
            lost(path, operation)

        self.store._lost = count  # type: ignore[method-assign]

    def hold(self, amount: int = 10) -> tuple[str, Outcome]:
        self.count += 1
        id = f"call-{self.count}"
        return id, Reserve(id, NODES, (amount, amount), self.clock.time_ns(), FOREVER).execute(self.store)

    def settle(self, id: str, amount: int | None = 10) -> Outcome:
        return Settle(id, NODES, (amount, amount), self.clock.time_ns()).execute(self.store)

    def many(self, count: int = 100, amount: int = 10) -> None:
        for _ in range(count):
            id, outcome = self.hold(amount)
            assert outcome.applied
            self.settle(id, amount)

    def idle(self) -> None:
        self.clock.advance(2)
        self.store.sync()

    @property
    def shared(self) -> Balance:
        """How the limited node stands for everybody."""
        return self.line.inner.run(Read(NODES))[1]

    @property
    def own(self) -> Balance:
        """And for whoever asks here."""
        return Read(NODES).execute(self.store)[1]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_contract() -> None:
    """What is not leased is as if there were no leases."""
    check_budget_store(lambda: LeasedStore(MemoryStore(), often=10**9, denied_s=0), seed=20261130)


def test_many_calls_are_few_operations(desk: Desk) -> None:
    """And the sums are right, here at once and for the others when they were told."""
    desk.many(2000)
    assert len(desk.line.asked) < 100
    assert (desk.own.spent, desk.own.reserved) == (20_000, 0)
    assert desk.shared.spent + desk.shared.reserved >= 20_000
    desk.idle()
    assert desk.shared == Balance(LIMIT, spent=20_000)
    assert not desk.store._paths[tuple(node.key for node in NODES)].id


def test_what_comes_rarely_is_not_leased(desk: Desk) -> None:
    """Nothing lies idle for it."""
    for _ in range(50):
        desk.many(1)
        desk.clock.advance(0.1)
    assert "Draw" not in desk.line.asked
    assert desk.shared == Balance(LIMIT, spent=500)


def test_what_is_large_beside_the_limit_is_not_leased(desk: Desk) -> None:
    """The last of a limit can be used by whoever needs it."""
    for _ in range(60):
        assert desk.hold(LIMIT // 80)[1].applied
    assert desk.shared.reserved == 60 * (LIMIT // 80)
    assert not desk.store._where


def test_a_limit_that_is_lifted_refuses_nobody(desk: Desk) -> None:
    """A budget that lets a call through asks again without its limit: neither a refusal that is remembered nor a lease answers that."""
    assert desk.hold(LIMIT)[1].applied
    assert desk.hold(10)[1].decision is not None
    lifted = (NODES[0], replace(NODES[1], limit=None))
    now = desk.clock.time_ns()
    for number in range(100):
        assert Reserve(f"lifted-{number}", lifted, (10, 10), now, FOREVER).execute(desk.store).applied
        assert Settle(f"lifted-{number}", lifted, (10, 10), now).execute(desk.store).applied
    assert desk.hold(10)[1].decision is not None
    assert desk.shared == Balance(LIMIT, spent=1000, reserved=LIMIT)


def test_all_of_the_limit_can_be_used(desk: Desk) -> None:
    """Where no larger lease fits, exactly the call is asked for; then it is refused, and nothing is overspent."""
    count = 0
    while True:
        id, outcome = desk.hold(10)
        if not outcome.applied:
            break
        desk.settle(id, 10)
        count += 1
    assert count == LIMIT // 10
    assert outcome.decision is not None
    desk.idle()
    assert desk.shared.spent == LIMIT
    assert [one.mark for one in desk.crossed] == [LIMIT // 2]


def test_a_refusal_is_remembered_for_a_moment(desk: Desk) -> None:
    """A program that goes on asking does not go on asking the store; a smaller call is asked for all the same."""
    Adjust("spent", NODES, (LIMIT - 5,) * 2, 0).execute(desk.store)
    assert not desk.hold(10)[1].applied
    asked = len(desk.line.asked)
    for _ in range(100):
        assert not desk.hold(10)[1].applied
    assert len(desk.line.asked) == asked
    assert desk.hold(5)[1].applied
    desk.clock.advance(0.1)
    assert not desk.hold(10)[1].applied
    assert len(desk.line.asked) <= asked + 5  # a lease and the call, for each of the two


def test_more_than_was_held_is_told(desk: Desk) -> None:
    """An overrun is counted, also when it is more than the whole lease."""
    desk.many(30)
    id, _ = desk.hold(10)
    desk.settle(id, LIMIT // 10)
    desk.idle()
    assert desk.shared.spent == 300 + LIMIT // 10
    assert 0 < desk.shared.overrun <= LIMIT // 10


def test_calls_end_as_they_do_elsewhere(desk: Desk) -> None:
    """Released, unknown, sent, extended, ended twice; a call that grows takes more of the lease."""
    desk.many(30)
    ids = [desk.hold(10)[0] for _ in range(5)]
    assert MarkSent(ids[0]).execute(desk.store).state is State.SENT
    assert Release(ids[0], NODES).execute(desk.store).state is State.RELEASED
    assert desk.settle(ids[1], None).applied
    assert Extend(ids[2], NODES, 0, FOREVER).execute(desk.store).applied
    assert Extend(ids[2], NODES, 0, FOREVER, (500, 500)).execute(desk.store).applied
    assert Extend(ids[3], NODES, 0, FOREVER, (2, 2)).execute(desk.store).applied
    refused = Extend(ids[4], NODES, 0, FOREVER, (2 * LIMIT,) * 2).execute(desk.store)
    assert refused.decision is not None
    assert not refused.applied
    assert desk.own.reserved == 500 + 2 + 10
    for id in ids[2:]:
        desk.settle(id, 7)
    assert not desk.settle(ids[2], 7).applied
    assert not desk.hold()[1].applied or True
    desk.idle()
    assert desk.shared.spent == 300 + 10 + 21


def test_an_idle_lease_goes_back_and_a_call_in_flight_stays_held(desk: Desk) -> None:
    """A long call is not forgotten because nothing else happens."""
    desk.many(50)
    id, _ = desk.hold(10)
    desk.idle()
    assert (desk.shared.spent, desk.shared.reserved) == (500, 10)
    for _ in range(100):
        desk.clock.advance(20)
        desk.store.sync()
        Sweep(desk.clock.time_ns()).execute(desk.store)
    desk.settle(id, 4)
    desk.idle()
    assert desk.shared == Balance(LIMIT, spent=504)


def test_a_rest_that_is_too_small_goes_back_although_it_is_asked_for(desk: Desk) -> None:
    """What is left of two leases is too little for a call of either; together it is enough, and nobody waits for ever."""
    other = LeasedStore(desk.line, desk.clock, every_s=0)
    desk.many(50, amount=100)
    spent = desk.own.spent
    for store in (desk.store, other):  # 60 are free in each
        for number in range(30):
            id = f"{id_of(store)}-{number}"
            assert Reserve(id, NODES, (100, 100), desk.clock.time_ns(), FOREVER).execute(store).applied
            Settle(id, NODES, (100, 100), desk.clock.time_ns()).execute(store)
        path = next(iter(store._paths.values()))
        store._draw(path, (60, 60), desk.clock.time_ns())
        spent += 3000
    left = LIMIT - spent - 120
    assert Adjust("others", NODES, (left, left), desk.clock.time_ns()).execute(desk.line.inner).applied
    for number in range(30):
        desk.clock.advance(0.1)
        for store in (desk.store, other):
            if (
                Reserve(f"{id_of(store)}+{number}", NODES, (100, 100), desk.clock.time_ns(), FOREVER)
                .execute(store)
                .applied
            ):
                return
            if number % 10 == 9:
                store.sync()
    pytest.fail(f"for 3 s nobody got it: {desk.shared}")


@pytest.mark.parametrize("settled", [True, False])
def test_a_lease_that_ran_out_is_put_right(desk: Desk, settled: bool) -> None:
    """A process that stood still for long finds its lease counted as spent; the truth takes its place, also of what was in flight."""
    desk.many(50)
    id, _ = desk.hold(10)
    if settled:
        desk.settle(id)
    desk.clock.advance(60)
    forfeited = Sweep(desk.clock.time_ns()).execute(desk.store).forfeited
    assert len(forfeited) == 1
    assert desk.shared.forfeited > 0
    new, outcome = desk.hold(10)
    assert outcome.applied
    desk.settle(new)
    desk.store.sync()
    if not settled:
        desk.settle(id, 10)
    desk.idle()
    desk.idle()
    assert (desk.shared.spent, desk.shared.reserved, desk.shared.forfeited) == (520, 0, 0)


def test_what_is_in_flight_is_held_also_when_its_lease_is_lost(desk: Desk) -> None:
    """Between the end of a lease and the end of its calls nobody else can have what they may cost."""
    desk.many(50)
    ids = [desk.hold(10)[0] for _ in range(20)]
    desk.clock.advance(60)
    Sweep(desk.clock.time_ns()).execute(desk.store)
    desk.store.sync()
    assert (desk.shared.spent, desk.shared.reserved) == (500, 200)
    for id in ids:
        assert desk.settle(id, 4).applied
    desk.idle()
    assert desk.shared == Balance(LIMIT, spent=580)


@pytest.mark.parametrize("down", ["", "before", "after"])
def test_a_call_that_nobody_ends_runs_out_in_a_lease_too(desk: Desk, down: str) -> None:
    """It counts as spent after its time, although its lease is renewed all the while, and a late word corrects it."""
    ids = [f"long-{number}" for number in range(40)]
    for id in ids:
        assert Reserve(id, NODES, (10, 10), desk.clock.time_ns(), 60 * 10**9).execute(desk.store).applied
    for id in ids[:-2]:
        desk.settle(id, 10)
    desk.store.sync()
    for _ in range(9):
        desk.clock.advance(6)
        desk.store.sync()
        Extend(ids[-1], NODES, desk.clock.time_ns(), 60 * 10**9).execute(desk.store)
    assert (desk.shared.spent, desk.shared.reserved) == (380, 20)
    desk.line.down = down
    desk.clock.advance(7)
    for _ in range(2):
        with suppress(StoreError):
            desk.store.sync()
    desk.line.down = ""
    desk.store.sync()
    Sweep(desk.clock.time_ns() + 10**9).execute(desk.store)
    assert (desk.shared.spent, desk.shared.reserved, desk.shared.forfeited) == (390, 10, 10)
    desk.settle(ids[-2], 3)
    desk.settle(ids[-1], 3)
    desk.idle()
    assert desk.shared == Balance(LIMIT, spent=386)


def test_a_call_that_ends_while_it_is_handed_over_is_counted_once(desk: Desk) -> None:
    """The store was asked to hold for it, nobody knows whether it does, and then the call is over."""
    desk.many(50)
    id = "long"
    assert Reserve(id, NODES, (10, 10), desk.clock.time_ns(), 10**9).execute(desk.store).applied
    desk.store.sync()
    desk.clock.advance(2)
    desk.line.down = "after"
    with pytest.raises(StoreError):
        desk.store.sync()
    desk.settle(id, 4)
    desk.line.down = ""
    desk.idle()
    desk.idle()
    assert desk.shared == Balance(LIMIT, spent=504)


def test_nothing_is_given_from_a_lease_that_may_have_run_out(desk: Desk) -> None:
    """After four fifths of its time the store is asked first."""
    desk.many(50)
    desk.clock.advance(25)
    asked = len(desk.line.asked)
    desk.hold(10)
    assert len(desk.line.asked) > asked


@pytest.mark.parametrize("down", ["before", "after"])
def test_a_store_that_does_not_answer(desk: Desk, down: str) -> None:
    """What is left of the lease can be spent, then the store is needed; and afterwards every sum is right, each step told once."""
    desk.many(50)
    desk.line.down = down
    spent = 500
    with pytest.raises(StoreError):
        desk.store.sync()
    while True:
        try:
            id, outcome = desk.hold(10)
        except StoreError:
            break
        assert outcome.applied
        desk.settle(id, 10)
        spent += 10
    assert spent > 600
    with pytest.raises(StoreError):
        desk.store.sync()
    desk.line.down = ""
    desk.many(20)
    desk.idle()
    desk.idle()
    assert desk.shared == Balance(LIMIT, spent=spent + 200)


def test_closing_gives_everything_back(desk: Desk) -> None:
    """But for what is in flight."""
    desk.many(50)
    id, _ = desk.hold(10)
    desk.store.close()
    assert (desk.shared.spent, desk.shared.reserved) == (500, 10)
    desk.settle(id, 3)
    desk.store.close()
    assert desk.shared == Balance(LIMIT, spent=503)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_things_keeps_the_books(seed: int) -> None:
    """Calls, silence, cuts of the line and lost leases in any order: never above the limit, and in the end the bill and nothing held."""
    chance, desk = random.Random(seed), Desk()
    bill, open_calls = 0, list[tuple[str, int]]()
    for _ in range(1500):
        choice = chance.random()
        if choice < 0.55:
            try:
                id, outcome = desk.hold(chance.randrange(1, 400))
            except StoreError:
                continue
            if outcome.applied:
                open_calls.append((id, chance.choice((0, 1, 50))))
        elif choice < 0.95 and open_calls:
            id, cost = open_calls.pop(chance.randrange(len(open_calls)))
            try:
                desk.settle(id, cost)
            except StoreError:
                open_calls.append((id, cost))  # told again, as the guard does
                continue
            bill += cost
        elif choice < 0.97:
            desk.line.down = chance.choice(("", "", "before", "after"))
        else:
            desk.clock.advance(chance.choice((0.3, 1.5, 5, 40)))
            try:
                Sweep(desk.clock.time_ns()).execute(desk.store)
                desk.store.sync()
            except StoreError:
                pass
        shared = desk.line.inner.run(Read(NODES))[1]
        assert shared.spent + shared.reserved <= LIMIT + shared.overrun
    desk.line.down = ""
    for id, cost in open_calls:
        desk.settle(id, cost)
        bill += cost
    for number in range(1, desk.count + 1):  # what was held directly while nobody answered: as the guard does
        Release(f"call-{number}", NODES).execute(desk.store)
    for _ in range(3):
        desk.idle()
    assert desk.shared.reserved == 0
    assert bill <= desk.shared.spent <= bill + desk.doubtful


# --- real threads and processes ------------------------------------------------------------------------------------------


def test_threads_and_its_own_thread(tmp_path: Path) -> None:
    """Four stores on one file, two threads in each, told by their own thread: the bill is the balance."""
    inner = SqliteStore(tmp_path / "b.db", timeout_s=30)
    stores = [LeasedStore(inner, every_s=0.05) for _ in range(4)]
    bills = [0] * 8

    def work(number: int) -> None:
        store = stores[number % 4]
        for call in range(3000):
            id = f"{number}-{call}"
            if Reserve(id, NODES, (50, 50), 0, FOREVER).execute(store).applied:
                bills[number] += 45
                Settle(id, NODES, (45, 45), 0).execute(store)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store._stop.set()
        store.sync()
        for path in store._paths.values():
            path.last = path.given = 0
        store.sync()
    (_, team) = Read(NODES).execute(inner)
    inner.close()
    assert team.spent == sum(bills)
    assert team.reserved == 0
    assert LIMIT * 0.9 < team.spent <= LIMIT


def _race(path: str, number: int, results: multiprocessing.Queue[int]) -> None:
    store, bill = LeasedStore(SqliteStore(path, timeout_s=30)), 0
    for call in range(6000):
        id = f"{number}-{call}"
        if Reserve(id, NODES, (50, 50), 0, FOREVER).execute(store).applied:
            bill += 45
            Settle(id, NODES, (45, 45), 0).execute(store)
    store.close()
    results.put(bill)


def test_processes_share_a_limit(tmp_path: Path) -> None:
    """They get nearly all of it together and not a step more."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_race, args=(str(tmp_path / "b.db"), number, results)) for number in range(4)]
    for worker in workers:
        worker.start()
    bills = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    store = SqliteStore(tmp_path / "b.db")
    (_, team) = Read(NODES).execute(store)
    store.close()
    assert sum(bills) == team.spent
    assert LIMIT * 0.9 < team.spent <= LIMIT
    assert team.reserved == 0


KILLED = """
import itertools, sys
from aifinops.budgets.stores.base import Node, Reserve, Settle
from aifinops.budgets.stores.leases import LeasedStore
from aifinops.budgets.stores.sqlite import SqliteStore
store = LeasedStore(SqliteStore(sys.argv[1], timeout_s=30), every_s=0.05)
nodes = (Node("org", 0, "USD", None), Node("team", 0, "USD", 10**9))
for number in itertools.count():
    id = f"{sys.argv[2]}-{number}"
    if Reserve(id, nodes, (7, 7), 0, 10**9).execute(store).applied:
        print(id, flush=True)   # the provider's bill: it was sent
        Settle(id, nodes, (5, 5), 0).execute(store)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_kill_forgets_nothing(tmp_path: Path) -> None:
    """What was spent from the lease of a process that was killed is in what its lease counts as spent."""
    path, bill = tmp_path / "b.db", 0
    for number in range(12):
        worker = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(number)], env=ENV, stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        threading.Thread(target=lambda one=worker, after=0.01 * number: (time.sleep(after), one.kill())).start()
        bill += 1 + len(worker.stdout.readlines())
        worker.wait()
        worker.stdout.close()
    store = SqliteStore(path)
    Sweep(FOREVER * 9).execute(store)
    balances = [balance for _, balance in Accounts().execute(store)]
    store.close()
    assert balances[0].spent == balances[1].spent >= 5 * bill
    assert balances[0].reserved == balances[1].reserved == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_has_no_lease(tmp_path: Path) -> None:
    """The lease is the parent's; the child takes its own."""
    store = LeasedStore(SqliteStore(tmp_path / "b.db"), every_s=0.05)
    try:
        for number in range(50):
            Reserve(f"{number}", NODES, (10, 10), 0, FOREVER).execute(store)
        assert store._where
        child = os.fork()
        if child == 0:
            store.reset_after_fork()
            fine = not store._where and Reserve("child", NODES, (10, 10), 0, FOREVER).execute(store).applied
            os._exit(0 if fine else 1)
        assert os.waitpid(child, 0)[1] == 0
        for number in range(50):
            assert Settle(f"{number}", NODES, (10, 10), 0).execute(store).applied
    finally:
        store.close()


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "aifinops-leases":
            thread.join(timeout=2)
