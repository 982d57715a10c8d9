"""Pacing: a limit is spread over its window, and what is ahead of that waits, is changed or is refused."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aifinops as af
from aifinops.budgets.actions import Change
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.guard import Guard
from aifinops.budgets.reservations import Reservation
from aifinops.budgets.stores.base import Operation, Read
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.budgets.waiting import Wait
from aifinops.errors import BudgetExceeded, ConfigurationError
from aifinops.testing.clock import FakeClock

DOLLAR = 10**9


class Desk:
    """A guard with a clock at the beginning of a day."""

    def __init__(self, store: Any = None) -> None:
        self.clock = FakeClock(datetime(2026, 11, 24, tzinfo=UTC))
        self.guard = Guard(store or MemoryStore(), self.clock)
        self.count = 0

    def call(self, active: ActiveBudget, usd: float) -> Reservation | None:
        self.count += 1
        amount = round(usd * DOLLAR)
        held = self.guard.reserve([active], {"USD": amount}, id=f"c{self.count}", at=self.clock.time_ns())
        if held is not None:
            self.guard.settle(held, {"USD": amount})
        return held


@pytest.fixture
def desk() -> Desk:
    return Desk()


def daily(limit: str = "$24", **arguments: Any) -> ActiveBudget:
    return ActiveBudget(Budget.parse(limit, per="day", **{"pace": 0.25, **arguments}))


def test_what_is_ahead_of_the_pace_is_refused_and_says_what_may_be_spent_by_now(desk: Desk) -> None:
    """A quarter of the limit may be ahead; an hour later one part in 24 more."""
    budget = daily()
    desk.call(budget, 6)
    with pytest.raises(BudgetExceeded) as caught:
        desk.call(budget, 1)
    assert (caught.value.limit, caught.value.spent, caught.value.asked) == (6, 6, 1)
    assert caught.value.resets_at == datetime(2026, 11, 25, tzinfo=UTC)
    desk.clock.advance(hours=1)
    desk.call(budget, 1)
    with pytest.raises(BudgetExceeded):
        desk.call(budget, 0.01)


def test_at_the_end_of_the_window_all_of_the_limit_is_there_and_no_more(desk: Desk) -> None:
    """The pace never widens a limit."""
    budget = daily()
    desk.clock.advance(hours=23)
    desk.call(budget, 24)
    with pytest.raises(BudgetExceeded) as caught:
        desk.call(budget, 0.01)
    assert caught.value.limit == 24


def test_throttle_waits_until_it_is_its_turn(desk: Desk) -> None:
    """A call that is ahead is told to wait exactly until the pace has caught up with it."""
    budget = daily(on_exceed="throttle", max_wait=3600)
    desk.call(budget, 6)
    with pytest.raises(Wait) as caught:
        desk.call(budget, 0.5)
    assert caught.value.seconds == 60  # half an hour, asked again each minute at the latest
    caught.value.ticket.leave()
    desk.clock.advance(minutes=29)
    with pytest.raises(Wait) as caught:
        desk.call(budget, 0.5)
    assert 59.9 < caught.value.seconds <= 60
    caught.value.ticket.leave()
    desk.clock.advance(minutes=1, seconds=0.001)
    assert desk.call(budget, 0.5)


def test_throttle_does_not_wait_longer_than_it_may(desk: Desk) -> None:
    """With max_wait=30 a call whose turn is in an hour is refused at once."""
    budget = daily(on_exceed="throttle")
    desk.call(budget, 6)
    with pytest.raises(BudgetExceeded) as caught:
        desk.call(budget, 1)
    assert not isinstance(caught.value, Wait)


def test_warn_lets_calls_through_ahead_of_the_pace_and_above_the_limit(desk: Desk) -> None:
    """It only warns; everything is counted."""
    budget = daily(on_exceed="warn")
    for _ in range(5):
        desk.call(budget, 6)
    assert desk.guard.balances(budget)["USD"].spent == 30 * DOLLAR


def test_a_callable_that_allows_the_pace_does_not_lift_the_limit(desk: Desk) -> None:
    """It is asked about each of the two."""
    asked: list[Decimal] = []

    def decide(error: BudgetExceeded) -> str:
        asked.append(error.limit)
        return "allow" if error.limit < 24 else "raise"

    budget = daily(on_exceed=decide)
    desk.call(budget, 6)
    desk.call(budget, 18)
    with pytest.raises(BudgetExceeded):
        desk.call(budget, 1)
    assert asked == [6, 6, 24]


def test_a_cheaper_model_is_used_ahead_of_the_pace(desk: Desk) -> None:
    """Actions that make a call smaller are told how much room the pace leaves."""
    budget = daily(on_exceed={"downgrade": {"gpt-5": "gpt-5-mini"}})
    desk.call(budget, 5)
    with pytest.raises(Change) as caught:
        desk.call(budget, 2)
    assert caught.value.room == {"USD": DOLLAR}


def test_a_store_of_others_is_read_four_times_a_second_at_most(tmp_path: Path) -> None:
    """Between two looks a process counts what it let through itself."""
    reads = []

    class Counting(SqliteStore):
        def run(self, operation: Operation[Any]) -> Any:
            reads.extend([operation] * isinstance(operation, Read))
            return super().run(operation)

    desk = Desk(Counting(str(tmp_path / "b.db")))
    budget = daily("$24", name="team")
    for _ in range(60):
        desk.call(budget, 0.1)
    with pytest.raises(BudgetExceeded):
        desk.call(budget, 0.1)
    assert desk.guard.balances(budget)["USD"].spent == 6 * DOLLAR
    assert len(reads) <= 2
    desk.guard.store.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pace": 1}, "below 1"),
        ({"pace": -0.1}, "from 0"),
        ({"pace": True}, "write pace=0.1"),
        ({"pace": []}, "write pace=0.1"),
        ({"per": "total"}, 'write per="day"'),
        ({"per": "rolling 24h"}, 'write per="day"'),
    ],
)
def test_what_is_wrong_says_what_to_type(arguments: dict[str, Any], said: str) -> None:
    """A pace needs a share and a window that ends."""
    with pytest.raises(ConfigurationError, match=said):
        Budget.parse("$5", **{"per": "day", "pace": 0.1, **arguments})


@given(
    st.lists(st.tuples(st.integers(0, 7200), st.integers(1, 400)), max_size=60),
    st.sampled_from(["0", "0.1", "0.5"]),
)
def test_never_further_ahead_than_the_pace_says(calls: list[tuple[int, int]], pace: str) -> None:
    """Whenever calls come and whatever they cost: what was spent is at most the even share and the pace."""
    desk = Desk()
    budget = daily("$10", pace=pace)
    spent = 0
    for after, cents in calls:
        desk.clock.advance(after)
        try:
            desk.call(budget, cents / 100)
        except BudgetExceeded:
            continue
        seconds = (desk.clock.now - datetime(2026, 11, 24, tzinfo=UTC)) % timedelta(days=1) / timedelta(seconds=1)
        if desk.clock.now >= datetime(2026, 11, 25, tzinfo=UTC):
            break
        spent += cents
        assert spent <= 1000 * min(1.0, seconds / 86400 + float(pace)) + 1e-6


def test_calls_wait_for_their_turn_in_threads() -> None:
    """With real clocks: ten calls in a window of a minute are spread over it."""
    from aifinops import metering
    from aifinops.metering import Call
    from aifinops.reading import Reading

    try:
        moment = time.time()
        if moment % 60 > 50:
            time.sleep(60.5 - moment % 60)
        begun = time.time()
        # What may be spent by now, and the price of one call more for each tenth of a second.
        even = Decimal(str(begun % 60 / 60))
        policy = af.budget("6000 requests", per="minute", name="paced", pace=0, on_exceed="throttle", max_wait=20)
        af.init(ledger="memory")
        done: list[float] = []
        with policy:
            from aifinops import runtime, scope

            (active,) = scope.current().budgets
            guard = runtime.get().guard
            used = int(6000 * even * 10**6)
            guard.post([active], {"requests": used}, id="before", at=time.time_ns())

            def work() -> None:
                with policy:
                    invocation = metering.begin(Call("openai", "chat", "gpt-5-mini"))
                    assert invocation is not None
                    invocation.leave()
                    invocation.settle(Reading({"input_tokens": 1}))
                    done.append(time.time())

            threads = [threading.Thread(target=work) for _ in range(50)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(done) == 50
        assert max(done) - begun >= 0.45  # at a hundred a second
    finally:
        af.shutdown()
