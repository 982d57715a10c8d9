"""The life of many reservations, in any order, through the guard: a model with integers keeps the bill."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from aifinops.budgets.budget import MICRO, ActiveBudget, Budget
from aifinops.budgets.guard import Guard, Reservation
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.errors import BudgetExceeded
from aifinops.testing.clock import FakeClock

DOLLAR = 10**9
TTL_S = 900
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

    calls = Bundle("calls")
    finished = Bundle("finished")

    @initialize()
    def begin(self) -> None:
        """Everything is new."""
        self.clock = FakeClock()
        self.latest = self.clock.now
        self.guard = Guard(MemoryStore(), self.clock, lease_s=TTL_S)
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
            self.guard.mark_sent(call.reservation)
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

    def _expire(self) -> None:
        lost = set(self.guard.sweep())
        for one in self._open():
            if one.at + TTL_S * 10**9 <= self.clock.time_ns():
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


Budgets.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBudgets = Budgets.TestCase
