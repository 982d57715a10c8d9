"""What a store has lost is put back: everything once, whatever was lost and whatever fails on the way."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    Accounts,
    Adjust,
    Capabilities,
    Draw,
    Extend,
    Journal,
    MarkSent,
    Node,
    Notes,
    Operation,
    Outcome,
    Put,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Sweep,
    Take,
)
from aifinops.budgets.stores.journaled import JournaledStore
from aifinops.budgets.stores.leases import LeasedStore
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.errors import StoreError, StoreReset, failures, reraise_failures
from aifinops.testing import check_budget_store
from aifinops.testing.clock import FakeClock

LIMIT = 1_000_000
NODES = (Node("org", 0, "USD", None), Node("team", 0, "USD", LIMIT, 0, (LIMIT // 2,), "the team"))
OTHERS = (NODES[0], Node("batch", 0, "USD", LIMIT))
EVERY = (*NODES, OTHERS[1])
FOREVER = 10**18
NOW = int(datetime(2026, 11, 30, tzinfo=UTC).timestamp()) * 10**9
READS = (Read, Accounts, Notes)


class Server:
    """What several clients share: it numbers the writes of each, and can be put back to where it was after any write."""

    def __init__(self, make: Callable[[], Any] = MemoryStore) -> None:
        self.make = make
        self.store = make()
        self.log: list[tuple[Client, Operation[Any]]] = []
        self.counts: Counter[Client] = Counter()
        self.lock = threading.RLock()

    def lose(self, keep: int) -> None:
        """Go back to the state after so many writes of all."""
        with self.lock:
            self.log = self.log[:keep]
            self.store.close()
            self.store = self.make()
            self.counts = Counter(writer for writer, _ in self.log)
            for _, operation in self.log:
                operation.execute(self.store)

    def count(self, client: Client) -> int:
        return self.counts[client]

    def wrote(self, client: Client, operation: Operation[Any]) -> None:
        self.log.append((client, operation))
        self.counts[client] += 1


class Client:
    """One process's way to it, which can be cut before or after an operation has had its effect."""

    capabilities = Capabilities(shared=True, durable=True, io="blocking")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.journal: Journal | None = None
        self.era: Any = object()
        self.known = 0
        self.asked: list[Operation[Any]] = []
        self.down: Callable[[Operation[Any]], str] = lambda operation: ""

    def run(self, operation: Operation[Any]) -> Any:
        with self.server.lock:
            self.asked.append(operation)
            down = self.down(operation)
            if down == "before":
                raise StoreError("refused")
            count = self.server.count(self)
            if count < self.known:
                reset = StoreReset("it has lost something", survived={"row": count}, era=self.era)
                assert self.journal is not None
                self.journal.reset(reset)
                self.era, self.known = object(), count
                raise reset
            answer = operation.execute(self.server.store)
            wrote = not isinstance(operation, READS) and getattr(answer, "applied", True)
            if wrote:
                self.server.wrote(self, operation)
            if down == "after":
                raise StoreError("timeout")
            era, number = self.era, count + wrote
            self.known = number
        if self.journal is not None:
            self.journal.wrote(operation, answer, era, "row", number)
        return answer

    def reset_after_fork(self) -> None:
        self.era, self.known = object(), 0

    def close(self) -> None:
        pass


class Process:
    """One process with a journal."""

    def __init__(self, server: Server, *, recent: int = 4096, quiet_s: float = 0) -> None:
        self.clock = FakeClock(datetime(2026, 11, 30, tzinfo=UTC))
        self.client = Client(server)
        self.resets: list[StoreReset] = []
        self.store = JournaledStore(
            self.client, self.clock, on_reset=self.resets.append, recent=recent, quiet_s=quiet_s
        )
        self.count = 0

    def do(self, operation: Operation[Any]) -> Any:
        return operation.execute(self.store)

    def hold(self, amount: int = 10, nodes: tuple[Node, ...] = NODES, ttl: int = FOREVER) -> str:
        self.count += 1
        id = f"{id_of(self)}-{self.count}"
        assert self.do(Reserve(id, nodes, (amount,) * len(nodes), NOW, ttl)).applied
        return id

    def settle(self, id: str, amount: int | None = 10, nodes: tuple[Node, ...] = NODES) -> Outcome:
        outcome: Outcome = self.do(Settle(id, nodes, (amount,) * len(nodes), NOW))
        return outcome

    def spend(self, amount: int, nodes: tuple[Node, ...] = NODES) -> None:
        self.settle(self.hold(amount, nodes), amount, nodes)

    @property
    def figures(self) -> list[tuple[int, int]]:
        """(spent, reserved) of org, team and batch."""
        return [(balance.spent, balance.reserved) for balance in self.do(Read(EVERY))]


def id_of(one: object) -> str:
    return f"p{id(one)}"


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def process(server: Server) -> Process:
    return Process(server)


def test_contract() -> None:
    """As long as nothing is lost it is the store within."""

    def make() -> JournaledStore:
        return JournaledStore(Client(Server()))

    check_budget_store(make, seed=20261201, sequences=30, operations=30, workers=8)


@pytest.mark.parametrize("keep", range(9))
def test_whatever_was_lost(server: Server, process: Process, keep: int) -> None:
    """The balances are what they were: of calls that are finished, given back, or in flight, after any number of writes that survived."""
    process.spend(10)  # two writes
    process.do(Release(process.hold(50), NODES))
    one, _ = process.hold(7), process.hold(5, OTHERS)
    process.settle(one, 20)
    process.do(Adjust("entry", OTHERS, (3, 3), NOW))
    expected = process.figures
    assert expected == [(33, 5), (30, 0), (3, 5)]
    assert len(server.log) == 8
    server.lose(keep)
    assert process.figures == expected
    assert len(process.resets) == (keep < 8)
    assert process.figures == expected


def test_what_goes_on_afterwards(server: Server, process: Process) -> None:
    """A call that was in flight when everything was lost is settled at what it cost, and limits hold as before."""
    id = process.hold(400_000)
    process.spend(500_000)
    server.lose(0)
    assert not process.do(Reserve("large", NODES, (200_000,) * 2, NOW, FOREVER)).applied
    process.settle(id, 300_000)
    assert process.figures[1] == (800_000, 0)
    assert process.do(Reserve("large", NODES, (200_000,) * 2, NOW, FOREVER)).applied


def test_what_the_store_says_of_a_node(tmp_path: Path) -> None:
    """What is held is held without limits while it is put back; the store has them again afterwards."""
    numbers = itertools.count()
    server = Server(lambda: SqliteStore(tmp_path / f"{next(numbers)}.db"))
    process = Process(server)
    process.hold(10)
    process.spend(10, OTHERS)
    before = [node for node, _ in process.do(Accounts())]
    server.lose(0)
    assert [node for node, _ in process.do(Accounts())] == before
    assert {node.limit for node in before} == {None, LIMIT}
    server.store.close()


def test_marks_are_not_reported_again(server: Server, process: Process) -> None:
    """What was told of half of the limit is not told a second time."""
    id = process.hold(600_000)
    assert process.settle(id, 600_000).crossed
    server.lose(0)
    id = process.hold(100)
    assert process.settle(id, 100).crossed == ()


def test_more_than_was_held(server: Server, process: Process) -> None:
    """What is in flight is in flight: it is put back also where the limit has no room for it by now."""
    process.hold(900_000)
    server.lose(0)
    other = Process(server)
    other.spend(800_000)
    assert process.figures[1] == (800_000, 900_000)


def test_a_lease_that_is_drawn_from(server: Server) -> None:
    """A draw that was lost is counted, and the hold is what it was, also where the copy has the lease as it was at first."""
    for keep in range(4):
        server = Server()
        process = Process(server)
        id = process.hold(100)
        for step in (1, 2):
            process.do(Draw(id, NODES, step, (30, 30), (100 + step, 100 + step), (0, 0), NOW, FOREVER))
        server.lose(keep)
        assert process.figures[1] == (60, 102)
        assert process.do(Draw(id, NODES, 3, (40, 40), (5, 5), (0, 0), NOW, FOREVER)).applied
        assert process.figures[1] == (100, 5)
        server.lose(keep)
        assert process.settle(id, 5).applied
        assert process.figures[1] == (105, 0)


def test_changed_holds(server: Server) -> None:
    """A hold that has grown, and one that was marked as sent, are so again."""
    for keep in range(4):
        server = Server()
        process = Process(server)
        id = process.hold(100)
        process.do(Extend(id, NODES, NOW, FOREVER, (150, 150)))
        process.do(MarkSent(id))
        server.lose(keep)
        assert process.figures[1] == (0, 150)
        assert not process.do(MarkSent(id)).applied


def test_a_lease_that_ran_out_in_the_copy(server: Server, process: Process) -> None:
    """Another process has swept it by then: the late truth takes its place, as ever."""
    id = process.hold(100, ttl=30 * 10**9)
    process.do(Extend(id, NODES, NOW, FOREVER, (70, 70)))
    server.lose(1)
    other = Process(server)
    assert other.do(Sweep(NOW + 60 * 10**9)).forfeited == (id,)
    assert process.settle(id, 40).applied
    assert process.figures[1] == (40, 0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_that_fails_while_it_is_put_back(server: Server, process: Process, when: str) -> None:
    """The next operation goes on with what is left, and nothing is counted twice, whichever answer did not come."""
    process.hold(10)
    process.hold(20, OTHERS)
    process.spend(5)
    process.spend(6, OTHERS)
    process.do(Put("note", "text", NOW))
    expected = process.figures
    server.lose(0)
    chance, tries = random.Random(7), 0
    process.client.down = lambda operation: when if chance.random() < 0.7 else ""
    while True:
        tries += 1
        assert tries < 1000
        try:
            assert process.figures == expected
        except StoreError:
            continue
        break
    assert tries > 3
    process.client.down = lambda operation: ""
    assert process.do(Notes("", NOW)) == (("note", "text"),)
    server.lose(0)
    assert process.figures == expected


def test_lost_again_while_it_is_put_back(server: Server, process: Process) -> None:
    """Everything is put back again, and counted once."""
    for number in range(5):
        process.hold(number)
        process.spend(100)
    expected, losses = process.figures, [9, 4, 0, 2]

    def lose(operation: Operation[Any]) -> str:
        if losses and len(process.client.asked) % 2 == 0:
            server.lose(min(losses.pop(), len(server.log)))
        return ""

    server.lose(3)
    process.client.asked.clear()
    process.client.down = lose
    assert process.figures == expected
    assert len(process.resets) > 2


def test_answers_that_never_came(server: Server) -> None:
    """What was done although its answer was lost is repeated by its caller, and counted once after a loss, too."""
    for keep in range(7):
        server = Server()
        process = Process(server)
        for operation in (
            Reserve("one", NODES, (10, 10), NOW, FOREVER),
            Settle("one", NODES, (8, 8), NOW),
            Reserve("two", NODES, (5, 5), NOW, FOREVER),
            Adjust("entry", NODES, (3, 3), NOW),
            Draw("two", NODES, 1, (2, 2), (4, 4), (4, 4), NOW, FOREVER),
        ):
            process.client.down = lambda operation: "after"
            with pytest.raises(StoreError, match="timeout"):
                process.do(operation)
            process.client.down = lambda operation: ""
            process.do(operation)
        expected = process.figures
        assert expected[1] == (13, 4)
        server.lose(keep)
        assert process.figures == expected
        server.lose(0)
        assert process.figures == expected


def test_others_are_waited_for(server: Server) -> None:
    """For a moment after a loss nothing more is given of what has a limit, as if others held it: they come and put back theirs."""
    process, other = Process(server, quiet_s=1.5), Process(server, quiet_s=1.5)
    lease = process.hold(100)
    process.spend(200_000)
    other.spend(700_000)
    server.lose(0)
    wanted = Reserve("more", NODES, (300_000,) * 2, NOW, FOREVER)
    outcome = process.do(wanted)
    assert not outcome.applied
    assert outcome.decision.transient
    (refusal,) = outcome.decision.refusals
    assert (refusal.index, refusal.balance.spent, refusal.balance.reserved) == (1, 200_000, 800_000)
    # What is in flight goes on, and what is held in advance does not grow.
    drawn = process.do(Draw(lease, NODES, 1, (60, 60), (500, 500), (40, 40), NOW, FOREVER))
    assert (drawn.applied, drawn.decision.transient) == (True, True)
    assert process.do(Draw(lease, NODES, 2, (10, 10), (30, 30), (30, 30), NOW, FOREVER)).decision is None
    assert process.settle(lease, 30).applied
    assert process.hold(5, NODES[:1])  # of what has no limit there is always some
    other.do(Read(NODES))
    process.clock.advance(1.5)
    outcome = process.do(wanted)
    assert not outcome.decision.transient
    assert outcome.decision.refusals[0].balance.spent == 900_100
    assert process.do(Reserve("less", NODES, (90_000,) * 2, NOW, FOREVER)).applied


def test_several_processes(server: Server) -> None:
    """Each puts back what is its own, whenever it comes; a copy that has more of one than of another is no matter."""
    chance, processes = random.Random(11), [Process(server) for _ in range(4)]
    spent = 0
    for round in range(6):
        for _ in range(40):
            amount = chance.randrange(100)
            chance.choice(processes).spend(amount)
            spent += amount
        server.lose(chance.randrange(len(server.log)) if round else 0)
    for process in processes:
        process.do(Read(NODES))
    assert {process.figures[1] for process in processes} == {(spent, 0)}


def test_notes(server: Server, process: Process) -> None:
    """The last word on each note is said again, unless somebody has said something since; what has ended has ended."""
    process.do(Put("kept", "1", NOW))
    process.do(Put("kept", "2", NOW))
    process.do(Put("gone", "1", NOW))
    process.do(Take("gone", NOW))
    process.do(Put("ended", "1", NOW, until=NOW + 10**9))
    process.do(Put("theirs", "1", NOW))
    assert not process.do(Put("kept", "3", NOW, new=True))
    process.clock.advance(5)
    server.lose(0)
    Put("theirs", "2", NOW).execute(server.store)
    assert dict(process.do(Notes("", NOW + 2 * 10**9))) == {"kept": "2", "theirs": "2"}


def test_old_operations_are_summed_up(server: Server) -> None:
    """However many there were, what is kept is bounded, and after a total loss every one of them is counted."""
    process, spent = Process(server, recent=64), 0
    for number in range(5000):
        process.spend(number % 99, NODES if number % 3 else OTHERS)
        spent += number % 99
    assert len(process.store._recent) <= 64
    assert sum(map(len, process.store._sums.values())) <= 4096
    server.lose(0)
    assert process.figures[0] == (spent, 0)
    assert len(process.client.asked) < 10_010


def test_a_copy_older_than_what_is_kept_one_by_one(server: Server) -> None:
    """A sum of which the copy has a part counts as a whole: never too little."""
    process = Process(server, recent=8)
    for _ in range(20):
        process.spend(10)
    server.lose(11)
    spent, reserved = process.figures[1]
    assert reserved == 10  # begun before the copy was made; it runs out there
    assert 200 <= spent <= 230


def test_windows_that_are_over(server: Server) -> None:
    """What was spent in a window that ended more than a day ago is not kept."""
    process = Process(server, recent=4)
    until = NOW + 3600 * 10**9
    for number in range(50):
        node = (Node("hourly", number, "USD", LIMIT, until),)
        process.spend(1, node)
    assert len(process.store._sums) > 40
    process.clock.advance(days=2)
    for _ in range(40):
        process.spend(1)
    assert len(process.store._sums) <= 1


def test_sums_are_merged(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours become one, at the price of a coarser border."""
    monkeypatch.setattr("aifinops.budgets.stores.journaled._SUMS_MOST", 8)
    process = Process(server, recent=4)
    for _ in range(200):
        process.spend(1)
    assert sum(map(len, process.store._sums.values())) <= 8 + 32
    server.lose(0)
    assert process.figures[1] == (200, 0)


def test_a_hold_that_nobody_ends(server: Server) -> None:
    """After a week it counts as spent here as well, and takes no place any longer."""
    process = Process(server, recent=4)
    process.hold(70, ttl=10**9)
    process.clock.advance(days=8)
    for _ in range(40):
        process.spend(1)
    assert not process.store._holds
    server.lose(0)
    assert process.figures[1][0] == 110


def test_a_credit(server: Server, process: Process) -> None:
    """One that took out less than it says, since nothing more was spent, takes out no more after a loss."""
    process.spend(30)
    process.do(Adjust("credit", NODES, (-100, -100), NOW))
    process.spend(50)
    process.do(Adjust("refund", NODES, (-20, -20), NOW))
    assert process.figures[1] == (30, 0)
    server.lose(0)
    assert process.figures[1] == (30, 0)


def test_sums_larger_than_an_operation_takes(server: Server, process: Process) -> None:
    """They are put back in parts."""
    free = (Node("free", 0, "USD", None),)
    for _ in range(3):
        process.spend(MAX_AMOUNT, free)
    server.lose(0)
    assert process.do(Read(free))[0].spent == 3 * MAX_AMOUNT


def test_a_settlement_of_what_nobody_knows(server: Server, process: Process) -> None:
    """It is told so, as by any store: whoever settles posts it then."""
    assert process.settle("never", 5).state is None
    id = process.hold(10)
    server.store = MemoryStore()  # forgotten there, as after a very long time
    assert process.settle(id, 5).state is None
    assert not process.store._holds


def test_threads(server: Server, process: Process) -> None:
    """One thread puts back and the others wait; whatever is confirmed before, meanwhile and afterwards is counted once."""
    spent, lock = [0], threading.Lock()

    def work(number: int) -> None:
        chance = random.Random(number)
        for call in range(60):
            amount, id = chance.randrange(50), f"{number}-{call}"
            process.do(Reserve(id, NODES, (50, 50), NOW, FOREVER))
            process.settle(id, amount)
            with lock:
                spent[0] += amount
            if chance.random() < 0.03:
                server.lose(chance.randrange(len(server.log) + 1))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.figures[1] == (spent[0], 0)


def test_a_confirmation_that_is_told_late(server: Server, process: Process) -> None:
    """A thread that hears of its success only after another one was told of the loss: what it has done is put back, too."""
    ids = [process.hold(10) for _ in range(3)]
    era, count = process.client.era, process.client.known
    server.lose(1)
    assert process.figures[1] == (0, 30)
    for number, id in enumerate(ids[:2]):
        settled = Settle(id, NODES, (8, 8), NOW)
        process.store.wrote(settled, Outcome(State.SETTLED, applied=True), era, "row", count + 1 + number)
    late = Reserve("late", NODES, (4, 4), NOW, FOREVER)
    process.store.wrote(late, Outcome(State.HELD, applied=True), era, "row", count + 3)
    assert process.figures[1] == (16, 14)


def test_a_call_between_the_loss_and_what_is_put_back(server: Server, process: Process) -> None:
    """It waits for that, and then has its effect."""
    id = process.hold(10)
    server.lose(0)
    asked = Settle(id, NODES, (9, 9), NOW)
    process.client.era, process.client.known = object(), 0  # another thread was told ...
    reset = StoreReset("gone", survived={}, era=object())
    inner = process.client.run

    def late(operation: Operation[Any]) -> Any:
        answer = inner(operation)
        if operation is asked and not process.resets and not process.store._lost:
            process.store.reset(reset)  # ... and has not got any further than this
        return answer

    process.client.run = late  # type: ignore[method-assign]
    assert process.do(asked).applied
    assert process.figures[1] == (9, 0)


def test_a_finalizer_in_the_middle(server: Server, process: Process) -> None:
    """What comes in between in the same thread is refused, to be told later, and disturbs nothing."""
    process.hold(10)
    for nodes in (NODES, OTHERS, NODES[1:]):
        process.spend(100, nodes)
    expected, refused = process.figures, []
    server.lose(0)

    def interrupt(operation: Operation[Any]) -> str:
        if process.store._is_putting_back():
            with pytest.raises(StoreError, match="being put back"):
                process.do(Read(NODES))
            refused.append(operation)
        return ""

    process.client.down = interrupt
    assert process.figures == expected
    assert len(refused) >= 4


def test_a_listener_that_fails(server: Server, process: Process) -> None:
    """It is counted, and what was lost is put back all the same."""
    process.spend(5)
    server.lose(0)
    process.store._on_reset = lambda reset: 1 / 0
    reraise_failures(False)
    try:
        assert process.figures[1] == (5, 0)
    finally:
        reraise_failures(True)
    assert failures()["budgets.on_reset"] == 1


def test_a_forked_child(server: Server, process: Process) -> None:
    """What the parent has is the parent's, also when it was putting it back."""
    process.hold(10)
    process.spend(5)
    server.lose(0)
    process.client.down = lambda operation: "before" if isinstance(operation, Adjust) else ""
    with pytest.raises(StoreError):
        process.do(Read(NODES))
    for lock in (process.store._turn, process.store._lock):
        other = threading.Thread(target=lock.acquire)  # which is not there in the child
        other.start()
        other.join()
    process.store.reset_after_fork()
    process.client.down = lambda operation: ""
    before = len(process.client.asked)
    process.do(Read(NODES))
    assert len(process.client.asked) == before + 1
    assert not process.store._holds


def test_leases(server: Server) -> None:
    """A process that spends from leases loses nothing but what others could not see yet anyway."""
    process = Process(server)
    leased, spent = LeasedStore(process.store, process.clock, every_s=0), 0
    for number in range(600):
        id = f"call-{number}"
        assert Reserve(id, NODES, (10, 10), NOW, FOREVER).execute(leased).applied
        Settle(id, NODES, (7, 7), NOW).execute(leased)
        spent += 7
        if number % 100 == 99:
            process.clock.advance(0.5)
            leased.sync()
        if number in (150, 320, 480):
            server.lose(len(server.log) // 2 if number == 320 else 0)
    leased.close()
    assert process.figures[1] == (spent, 0)


# --- random ----------------------------------------------------------------------------------------------------------------


class Twins:
    """The same operations on a store that loses things and on one that does not."""

    def __init__(self, seed: int, kind: str) -> None:
        self.random = random.Random(seed)
        self.sweeps, self.credits = kind == "sweeps", kind == "credits"
        self.server, self.twin = Server(), MemoryStore()
        self.process = Process(self.server)
        self.held: dict[str, tuple[tuple[Node, ...], int]] = {}
        self.count = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self.process.client.down = lambda operation: ""
        self.compare()

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.06:
            self.server.lose(self.random.randrange(len(self.server.log) + 1) if choice < 0.04 else 0)
            self.sweep()  # what had run out is held again until then
            return
        if choice < 0.1:
            odds = 0 if self.credits else self.random.choice((0, 0, 0.3))
            when = self.random.choice(("before", "after"))
            self.process.client.down = lambda operation: when if self.random.random() < odds else ""
            return
        operation = self.operation()
        expected, found = operation.execute(self.twin), self.insist(operation)
        if isinstance(expected, Outcome):
            # An answer that was lost on the way is told as a repetition.
            assert expected.state == found.state
        if choice > 0.9:
            self.compare()

    def insist(self, operation: Operation[Any]) -> Any:
        for _ in range(200):
            try:
                return self.process.do(operation)
            except StoreError as error:
                if "refused" not in str(error) and "timeout" not in str(error):
                    raise
        raise AssertionError("it never ends")

    def compare(self) -> None:
        self.sweep()
        figures = [
            [(balance.spent, balance.reserved) for balance in balances]
            for balances in (self.insist(Read(EVERY)), self.twin.run(Read(EVERY)))
        ]
        assert figures[0] == figures[1]

    def sweep(self) -> None:
        if self.sweeps:
            self.insist(Sweep(NOW + 10**10))
            self.twin.run(Sweep(NOW + 10**10))

    def operation(self) -> Operation[Any]:
        self.count += 1
        if not self.held or self.random.random() < 0.35:
            return self.reserve(f"call-{self.count}")
        id = self.random.choice(list(self.held))
        nodes, step = self.held[id]
        amounts = (self.random.randrange(100),) * len(nodes)
        half = tuple(amount // 2 for amount in amounts)
        ends: tuple[Operation[Any], ...] = (
            Settle(id, nodes, amounts, NOW),
            Settle(id, nodes, (None,) * len(nodes), NOW),
            Release(id, nodes),
        )
        goes_on: tuple[Operation[Any], ...] = (
            MarkSent(id),
            Extend(id, nodes, NOW, self.ttl(), amounts),
            Draw(id, nodes, step + 1, amounts, half, half, NOW, self.ttl()),
            Adjust(f"entry-{self.count}", nodes, amounts, NOW),
            Sweep(NOW + 10**10)
            if self.sweeps
            else Adjust(f"entry-{self.count}", nodes, tuple(amount * (1 - 3 * self.credits) for amount in half), NOW),
        )
        operation = self.random.choice((*ends, *goes_on))
        if operation in ends:
            del self.held[id]
        elif isinstance(operation, Draw):
            self.held[id] = nodes, step + 1
        return operation

    def reserve(self, id: str) -> Reserve:
        nodes = self.random.choice((NODES, OTHERS, NODES[1:]))
        self.held[id] = nodes, 0
        return Reserve(id, nodes, (self.random.randrange(100),) * len(nodes), NOW, self.ttl())

    def ttl(self) -> int:
        return 10**9 if self.sweeps and self.random.random() < 0.3 else FOREVER


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(("plain", "sweeps", "credits")))
def test_twins(seed: int, kind: str) -> None:
    """After any operations and any losses the balances are those of a store that has lost nothing."""
    Twins(seed, kind).run(80)


def test_overrun_is_what_was_put_back(server: Server, process: Process) -> None:
    """It is posted, and nothing was held for it; that is told apart."""
    process.spend(30)
    server.lose(0)
    assert process.do(Read(NODES))[1] == Balance(LIMIT, spent=30, overrun=30)
    assert replace(process.store.capabilities) == Capabilities(shared=True, durable=True, io="blocking")
