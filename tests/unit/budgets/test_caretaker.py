"""What is looked at every few seconds: limits that were set by hand, and whether the money will last."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from aifinops import errors
from aifinops.budgets.alerts import Alert, Alerts
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.caretaker import by_hand, limit_note
from aifinops.budgets.forecast import Burn, Outlook, outlook
from aifinops.budgets.guard import Guard
from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import Capabilities, Node, Notes, Operation, Put, Take
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.witness import Witness, note_key
from aifinops.errors import BudgetExceeded, StoreError
from aifinops.testing.clock import FakeClock

CENT, HOUR, DAY = 10_000_000, 3600 * 10**9, 86_400 * 10**9
START = datetime(2026, 11, 30, tzinfo=UTC)


class Counted:
    """A store that says what it was asked, and can be down."""

    capabilities = Capabilities(shared=True, durable=True, io="blocking")

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.asked: list[str] = []
        self.down = False

    def run(self, operation: Operation[Any]) -> Any:
        self.asked.append(type(operation).__name__)
        if self.down:
            raise StoreError("down")
        return self.inner.run(operation)

    def reset_after_fork(self) -> None:
        self.inner.reset_after_fork()

    def close(self) -> None:
        self.inner.close()


class Process:
    """One of several that share a store and a clock."""

    def __init__(self, store: MemoryStore, clock: FakeClock, name: str = "p") -> None:
        self.clock, self.name = clock, name
        self.told: list[Alert] = []
        self.store = Counted(store)
        self.guard = Guard(self.store, clock, witness=Witness(alerts=Alerts([self.told.append])), lease_s=600)
        self.count = 0

    def spend(self, budget: ActiveBudget, cents: int, actual: int | None = None) -> None:
        self.count += 1
        amounts = {"USD": cents * CENT}
        held = self.guard.reserve([budget], amounts, id=f"{self.name}-{self.count}", at=self.clock.time_ns())
        assert held is not None
        self.guard.settle(held, {"USD": (cents if actual is None else actual) * CENT})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def active(limit: Any = "$1", **arguments: Any) -> ActiveBudget:
    return ActiveBudget(Budget.parse(limit, **{"name": "team", "per": "day", "max_wait": 0, "soft": (), **arguments}))


def set_limit(store: MemoryStore, cents: int, key: str = "team|day", unit: str = "USD") -> None:
    Put(limit_note(key, unit), json.dumps({"limit": cents * CENT, "by": "ann"}), 0).execute(store)


# --- limits that were set by hand ----------------------------------------------------------------------------------------


def test_a_limit_set_by_hand_holds_within_seconds(store: MemoryStore, clock: FakeClock) -> None:
    """Lower or higher, in a process that runs already, and back to what the code says when the note is gone."""
    process, budget = Process(store, clock), active("$1")
    process.spend(budget, 60)
    set_limit(store, 50)
    clock.advance(seconds=5)
    with pytest.raises(BudgetExceeded) as caught:
        process.spend(budget, 1)
    assert caught.value.limit == 0.5
    set_limit(store, 200)
    clock.advance(seconds=5)
    process.spend(budget, 120)
    Take(limit_note("team|day", "USD"), clock.time_ns()).execute(store)
    clock.advance(seconds=5)
    with pytest.raises(BudgetExceeded) as caught:
        process.spend(budget, 1)
    assert caught.value.limit == 1


def test_it_holds_at_once_for_who_comes_later(store: MemoryStore, clock: FakeClock) -> None:
    """A new process and a new block of the same name."""
    set_limit(store, 10)
    process = Process(store, clock)
    for _ in range(2):
        with pytest.raises(BudgetExceeded):
            process.spend(active("$1"), 60)


def test_it_is_of_one_window_and_unit(store: MemoryStore, clock: FakeClock) -> None:
    """Another window of the same name has its own, and so has another unit."""
    set_limit(store, 10, "team|month")
    set_limit(store, 10, "team|day", "EUR")
    Process(store, clock).spend(active("$1"), 60)


def test_soft_limits_go_by_the_limit_in_force(store: MemoryStore, clock: FakeClock) -> None:
    """Half of what was set by hand, not of what the code says."""
    set_limit(store, 200)
    process = Process(store, clock)
    told: list[Any] = []
    process.guard.on_soft.append(told.append)
    budget = active("$1", soft=(0.5,))
    process.spend(budget, 60)
    assert told == []
    process.spend(budget, 60)
    assert [event.limit for event in told] == [2]


def test_calls_in_between_ask_nothing_of_the_store(store: MemoryStore, clock: FakeClock) -> None:
    """Notes are read once in five seconds, however many calls there are."""
    process, budget = Process(store, clock), active("$10")
    process.spend(budget, 1)
    process.store.asked.clear()
    for _ in range(20):
        process.spend(budget, 1)
    assert set(process.store.asked) == {"Reserve", "Settle"}
    clock.advance(seconds=5)
    process.spend(budget, 1)
    assert process.store.asked.count("Notes") >= 1


def test_what_was_read_holds_while_the_store_is_down(store: MemoryStore, clock: FakeClock) -> None:
    """And a failure of the look itself fails no call."""
    set_limit(store, 10)
    process, budget = Process(store, clock), active("$1", on_store_down="allow")
    process.spend(budget, 5)
    process.store.down = True
    clock.advance(seconds=6)
    process.guard.reserve([budget], {"USD": CENT}, id="down", at=clock.time_ns())
    process.store.down = False
    clock.advance(seconds=2)
    with pytest.raises(BudgetExceeded):
        process.spend(budget, 50)


def test_a_look_that_fails_is_no_matter(store: MemoryStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call goes on, and it is counted."""
    errors.reraise_failures(False)
    process, budget = Process(store, clock), active()

    def broken(*args: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(process.guard._care, "_read_limits", broken)
    process.spend(budget, 5)
    clock.advance(seconds=6)
    process.spend(budget, 5)
    assert errors.failures() == {"budgets.caretaker": 2}


@pytest.mark.parametrize("value", ["", "[]", "5", '{"limit": "5"}', '{"limit": -1}', '{"limit": 1e99}', "{"])
def test_a_note_that_is_none_is_left_out(value: str) -> None:
    """Whatever somebody has written there."""
    good = (limit_note("a|day", "USD"), '{"limit": 5}')
    found: Mapping[str, Any] = by_hand([(limit_note("team", "USD"), value), good])
    assert found == {"a|day": {"USD": 5}}


# --- whether it will last ------------------------------------------------------------------------------------------------

NODE = Node("team|day", 0, "USD", 1000, DAY)


def test_a_steady_rate_is_projected_to_the_end() -> None:
    """100 in each of the first six hours is 2,400 a day: the limit of 1,000 is reached in four hours more."""
    burn = Burn.begin(NODE, 0, 0)
    for hour in range(1, 7):
        burn = burn.next(NODE, hour * 100, hour * HOUR)
    ahead = outlook(NODE, Balance(1000, spent=600), burn, 6 * HOUR)
    assert ahead.crosses
    assert 2300 < ahead.projected < 2405
    assert ahead.seconds is not None
    assert 4 * 3600 < ahead.seconds < 4.3 * 3600


def test_the_first_calls_of_a_day_do_not_foretell_ruin() -> None:
    """In the first two hours nothing is foreseen; then it is, if it has gone on."""
    burn = Burn.begin(NODE, 400, 60 * 10**9)
    assert not outlook(NODE, Balance(1000, spent=400), burn, 60 * 10**9).crosses
    once = burn.next(NODE, 400, 12 * HOUR)
    assert not outlook(NODE, Balance(1000, spent=400), once, 12 * HOUR).crosses
    on = burn.next(NODE, 500, 2 * HOUR)
    assert outlook(NODE, Balance(1000, spent=500), on, 2 * HOUR).crosses


def test_a_rate_fades_when_nothing_is_spent() -> None:
    """After a quiet half day little is left of it."""
    burn = Burn.begin(NODE, 500, 2 * HOUR)
    assert burn.faded(NODE, 14 * HOUR).rate < burn.rate / 100
    assert burn.faded(NODE, 0) is burn


def test_what_is_spent_already_or_costs_nothing_has_no_forecast() -> None:
    """Nor has what has no limit."""
    burn = Burn(0, 0, 1.0)
    assert outlook(NODE, Balance(1000, spent=1000), burn, 0).crosses is False
    assert outlook(NODE, Balance(None, spent=10), burn, 0) == Outlook(86_410, None, crosses=False)
    assert outlook(NODE, Balance(1000, spent=10), Burn(0, 0, 0.0), 0) == Outlook(10, None, crosses=False)


def test_a_clock_that_was_put_back_changes_no_rate() -> None:
    """Nor do credits make it negative."""
    burn = Burn(10 * HOUR, 100, 0.5)
    assert burn.next(NODE, 100, 9 * HOUR) == Burn(9 * HOUR, 100, 0.5)
    assert 0 <= burn.next(NODE, 10, 11 * HOUR).rate < 0.5


def test_a_rate_survives_as_text() -> None:
    """And what is none is none."""
    burn = Burn(5, 7, 0.25)
    assert Burn.from_text(burn.to_text()) == burn
    assert Burn.from_text("x") is None
    assert Burn.from_text("[1, 2]") is None


def test_a_forecast_is_told_once_over_all_processes(
    store: MemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Two processes spend too fast; one of them tells it, once in the window, and again in the next one."""
    processes = [Process(store, clock, "p"), Process(store, clock, "q")]
    budgets = [active("$10"), active("$10")]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for _ in range(40):
                clock.advance(minutes=4)
                for process, budget in zip(processes, budgets, strict=True):
                    process.spend(budget, 10)
            clock.advance(hours=24, minutes=-160)
    told = [alert for process in processes for alert in process.told]
    assert [alert.kind for alert in told] == ["forecast", "forecast"]
    first = told[0]
    assert first.limit == 10
    assert first.amount is not None
    assert first.amount > 10
    assert first.seconds is not None
    assert 0 < first.seconds < 86_400
    assert caplog.text.count("will not last") == 2


def test_a_budget_that_lasts_is_not_told(store: MemoryStore, clock: FakeClock) -> None:
    """A tenth of the limit over the day; nor has a total or a rolling window an end to foresee."""
    process = Process(store, clock)
    for budget in (active("$10"), active("$10", per="total"), active("$10", per="rolling 24h")):
        for _ in range(24):
            clock.advance(minutes=50)
            process.spend(budget, 5)
    assert process.told == []


def test_the_rate_goes_on_in_the_next_process(store: MemoryStore, clock: FakeClock) -> None:
    """It is left as a note once a minute, and a new process starts from it."""
    first, budget = Process(store, clock), active("$10")
    for _ in range(10):
        clock.advance(minutes=6)
        first.spend(budget, 1)
    (node,) = budget.nodes(clock.time_ns())
    ((_, text),) = Notes(note_key("rate", node), clock.time_ns()).execute(store)
    left = Burn.from_text(text)
    assert left is not None
    assert left.spent == 9 * CENT
    second = Process(store, clock, "q")
    second.spend(active("$10"), 1, 0)
    clock.advance(seconds=6)
    second.spend(active("$10"), 1, 0)
    assert second.guard._care._rates[node.key].burn.rate == pytest.approx(left.rate, rel=0.2)


def test_very_many_budgets_take_turns(store: MemoryStore, clock: FakeClock) -> None:
    """Some at each look, all of them after a while."""
    process = Process(store, clock)
    budgets = [active("$10", name=f"b{number}") for number in range(150)]
    for budget in budgets:
        process.spend(budget, 1)
    for _ in range(5):
        clock.advance(seconds=5)
        process.spend(budgets[0], 1)
    assert len(process.guard._care._rates) == 150


# --- overruns and forfeits -----------------------------------------------------------------------------------------------


def test_an_overrun_is_told_once_over_all_processes(store: MemoryStore, clock: FakeClock) -> None:
    """The first of the window says by how much."""
    processes = [Process(store, clock, "p"), Process(store, clock, "q")]
    for process in processes:
        for _ in range(3):
            process.spend(active("$10"), 10, 15)
    told = [alert for process in processes for alert in process.told]
    assert [(alert.kind, str(alert.amount), alert.limit) for alert in told] == [("overrun", "0.050000000", 10)]


def test_a_forfeit_is_told_once_over_all_processes(store: MemoryStore, clock: FakeClock) -> None:
    """Whoever sees it first, though another process lost it."""
    victim = Process(store, clock, "victim")
    victim.guard.reserve([active("$10")], {"USD": 70 * CENT}, id="lost", at=clock.time_ns())
    processes = [Process(store, clock, "p"), Process(store, clock, "q")]
    clock.advance(seconds=700)
    for _ in range(3):
        for process in processes:
            process.spend(active("$10"), 1)
        clock.advance(seconds=61)
    told = [alert for process in processes for alert in process.told]
    assert [(alert.kind, str(alert.amount)) for alert in told] == [("forfeit", "0.700000000")]


def test_nothing_is_told_while_the_store_is_down(store: MemoryStore, clock: FakeClock) -> None:
    """Nobody knows then whether it was told; it is told later."""
    process, budget = Process(store, clock), active("$10", on_store_down="allow")
    process.spend(budget, 1)
    node = budget.nodes(clock.time_ns())[0]
    process.store.down = True
    process.guard.witness.overrun(process.store, node, 5, "x", clock.time_ns())
    assert process.told == []
    process.store.down = False
    clock.advance(seconds=2)
    process.guard.witness.overrun(process.store, node, 5, "x", clock.time_ns())
    assert len(process.told) == 1
