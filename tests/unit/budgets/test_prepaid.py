"""Jobs that pay as they run: slices in advance, an allowance for the way out, and an end at a step."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.budgets.budget import MICRO, ActiveBudget, Budget
from aifinops.budgets.guard import Guard, SoftLimit
from aifinops.budgets.policy import Balance
from aifinops.budgets.prepaid import Prepaid
from aifinops.budgets.stores.base import Operation, Store
from aifinops.budgets.stores.leases import LeasedStore
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.errors import BudgetExceeded, StoreError, StoreUnavailable, UnknownModel, UnpricedCall
from aifinops.testing.clock import FakeClock

DOLLAR = 10**9
RATE = {"USD": DOLLAR // 100}  # a cent a second
START = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Desk:
    """A guard over a store, and jobs at a cent a second."""

    def __init__(self, store: Store | None = None, **arguments: Any) -> None:
        self.clock = FakeClock(START)
        self.store = store or MemoryStore()
        self.guard = Guard(self.store, self.clock, **arguments)

    def job(self, *budgets: ActiveBudget, rate: dict[str, Any] | None = None, **arguments: Any) -> Prepaid:
        arguments = {"slice_s": 10, "allowance_s": 5, **arguments}
        return Prepaid(self.guard, budgets, rate or RATE, **arguments)

    def run(self, job: Prepaid, *, step: float = 1.0, most: int = 10_000) -> int:
        """Steps until the job has to stop."""
        for count in range(1, most + 1):
            self.clock.advance(step)
            if not job.step():
                return count
        return most

    def balance(self, active: ActiveBudget, unit: str = "USD") -> Balance:
        return self.guard.balances(active)[unit]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def active(limit: Any = "$1", **arguments: Any) -> ActiveBudget:
    return ActiveBudget(Budget.parse(limit, **arguments))


def test_a_job_stops_at_a_step_before_the_limit_and_uses_nearly_all_of_it(desk: Desk) -> None:
    """A dollar at a cent a second is 100 s: the job stops with its allowance left, and after a checkpoint nothing is overspent."""
    budget = active()
    job = desk.job(budget)
    job.open()
    assert desk.balance(budget) == Balance(DOLLAR, reserved=15 * RATE["USD"])
    steps = desk.run(job)
    assert 90 <= steps <= 95
    assert isinstance(job.error, BudgetExceeded)
    desk.clock.advance(4)  # the checkpoint
    job.close()
    assert desk.balance(budget) == Balance(DOLLAR, spent=(steps + 4) * RATE["USD"])


def test_time_is_paid_as_it_goes(desk: Desk) -> None:
    """What was used is spent within a slice, not at the end: another process sees it."""
    budget = active("$100")
    job = desk.job(budget)
    job.open()
    desk.run(job, most=50)
    balance = desk.balance(budget)
    assert 40 * RATE["USD"] <= balance.spent <= 50 * RATE["USD"]
    assert balance.spent + balance.reserved >= 50 * RATE["USD"] + 5 * RATE["USD"]
    job.close()
    assert desk.balance(budget) == Balance(100 * DOLLAR, spent=50 * RATE["USD"])


def test_most_steps_only_look_at_a_clock() -> None:
    """The store is asked about once a slice, however short the steps are."""
    asked: list[str] = []

    class Counting(MemoryStore):
        def run(self, operation: Operation[Any]) -> Any:
            asked.append(type(operation).__name__)
            return super().run(operation)

    desk = Desk(Counting())
    job = desk.job(active("$100"))
    job.open()
    desk.run(job, step=0.01, most=10_000)  # 100 s
    assert asked.count("Draw") <= 14


def test_nothing_begins_without_room_for_a_slice_and_the_allowance(desk: Desk) -> None:
    """A job that could not even save what it has does not begin."""
    budget = active("$0.14")
    with pytest.raises(BudgetExceeded):
        desk.job(budget).open()
    assert desk.balance(budget) == Balance(14 * RATE["USD"])


def test_a_budget_in_gpu_hours_stops_it_too(desk: Desk) -> None:
    """Units other than money are paid in the same way; the tighter limit ends the job."""
    money, hours = active("$100"), active("0.01 gpu_hours")  # 36 s
    job = desk.job(money, hours, rate={**RATE, "gpu_seconds": 2 * MICRO})
    job.open()
    steps = desk.run(job)
    assert 11 <= steps <= 13
    job.close()
    assert desk.balance(hours, "gpu_seconds").spent == 2 * steps * MICRO
    assert desk.balance(money).spent == steps * RATE["USD"]


def test_a_long_step_and_a_long_checkpoint_raise_the_allowance(desk: Desk) -> None:
    """What was seen to take long is held back from then on, so that the end comes in time all the same."""
    budget = active("$3")
    job = desk.job(budget, allowance_s=0)
    job.open()
    steps = desk.run(job, step=8, most=3)
    job.saved(20)
    assert job.allowance == 28 * 10**9
    steps += desk.run(job, step=8)
    desk.clock.advance(20)
    job.close()
    spent = desk.balance(budget).spent
    assert spent == (steps * 8 + 20) * RATE["USD"]
    assert spent <= 3 * DOLLAR


def test_money_that_others_only_hold_is_waited_for_while_there_is_time(desk: Desk) -> None:
    """A refusal while a slice still runs is asked again: what was held by others comes back, and the job goes on."""
    budget = active("$1")
    job = desk.job(budget)
    job.open()
    other = desk.guard.reserve([budget], {"USD": 85 * RATE["USD"]}, id="other", at=desk.clock.time_ns())
    assert other is not None
    assert desk.run(job, most=9) == 9
    desk.guard.release(other)
    assert desk.run(job, most=40) == 40
    assert job.error is None


def test_a_new_window_has_new_room(desk: Desk) -> None:
    """Time before midnight belongs to the one day and time after it to the next."""
    desk.clock.advance(hours=11, minutes=59)
    budget = active("$1", name="team", per="day")
    job = desk.job(budget)
    job.open()
    before = desk.balance(budget)
    assert desk.run(job, most=120) == 120
    job.close()
    assert before.reserved == 15 * RATE["USD"]
    assert 50 * RATE["USD"] <= desk.balance(budget).spent <= 60 * RATE["USD"]


def test_a_budget_that_only_warns_lets_the_job_run_on(desk: Desk) -> None:
    """It is told once, and everything is counted."""
    budget = active("$0.20", on_exceed="warn")
    job = desk.job(budget)
    job.open()
    assert desk.run(job, most=100) == 100
    job.close()
    assert desk.balance(budget).spent == 100 * RATE["USD"]


@pytest.mark.parametrize("action", [{"downgrade": {"gpt-5": "gpt-5-mini"}}, "clamp", "cut"])
def test_actions_that_make_a_call_smaller_stop_a_job(desk: Desk, action: Any) -> None:
    """There is no smaller second: the job ends where others would have to."""
    budget = active("$0.50", on_exceed=action)
    job = desk.job(budget)
    job.open()
    assert 40 <= desk.run(job) <= 45
    with pytest.raises(BudgetExceeded) as caught:
        desk.job(budget).open()
    assert type(caught.value) is BudgetExceeded


def test_marks_are_told_as_it_goes(desk: Desk) -> None:
    """A job that runs for days tells of half of its limit when it has used half of it."""
    told: list[SoftLimit] = []
    desk.guard.on_soft.append(told.append)
    job = desk.job(active("$1", soft=(Decimal("0.5"),)))
    job.open()
    desk.run(job, most=60)
    assert [event.share for event in told] == [Decimal("0.5")]


def test_a_lease_that_ran_out_is_put_right(desk: Desk) -> None:
    """A process that was paused for too long comes back, pays for the time that has passed and goes on."""
    budget = active("$100")
    job = desk.job(budget)
    job.open()
    desk.clock.advance(1000)
    assert desk.guard.sweep()
    assert desk.balance(budget).forfeited == 15 * RATE["USD"]
    assert job.step()
    assert desk.run(job, most=10) == 10
    job.close()
    assert desk.balance(budget).spent == 1010 * RATE["USD"]
    assert desk.balance(budget).forfeited == 0


def test_a_process_that_is_killed_leaves_a_slice_and_the_allowance_at_most(tmp_path: Path) -> None:
    """Its hold counts as spent when the lease has run out: never too little."""
    desk = Desk(SqliteStore(str(tmp_path / "budgets.db")))
    budget = active("$100", name="team")
    job = desk.job(budget)
    job.open()
    desk.run(job, most=50)
    heir = Desk(SqliteStore(str(tmp_path / "budgets.db")))
    heir.clock.advance(50 + 46)
    heir.guard.sweep()
    spent = heir.balance(active("$100", name="team")).spent
    assert 50 * RATE["USD"] <= spent <= (50 + 15) * RATE["USD"]
    desk.store.close()
    heir.store.close()


class Shaky:
    """A store on a network that fails when it is told to; the answer may be lost after the operation was done."""

    capabilities = SqliteStore.capabilities

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.fails = ""

    def run(self, operation: Operation[Any]) -> Any:
        if self.fails == "before":
            raise StoreError("gone")
        answer = self.inner.run(operation)
        if self.fails == "after":
            raise StoreError("gone")
        return answer

    def reset_after_fork(self) -> None:
        self.inner.reset_after_fork()

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_store_that_fails_stops_the_job_in_time_and_hears_of_everything_later(fails: str) -> None:
    """Without an answer the job uses what it holds; what it used is told once, when the store answers again."""
    store = Shaky()
    desk = Desk(store)
    budget = active("$100", name="team")
    job = desk.job(budget)
    job.open()
    desk.run(job, most=20)
    store.fails = fails
    steps = 20 + desk.run(job)
    assert isinstance(job.error, StoreUnavailable)
    assert 20 < steps <= 35
    desk.clock.advance(4)
    job.close()
    store.fails = ""
    desk.clock.advance(2)
    assert desk.guard.pay_debts()
    assert desk.balance(budget) == Balance(100 * DOLLAR, spent=(steps + 4) * RATE["USD"])


def test_a_store_that_fails_may_be_gone_on_without() -> None:
    """With on_store_down="allow" the job runs on, and all of it is counted in the end."""
    store = Shaky()
    desk = Desk(store)
    budget = active("$100", name="team", on_store_down="allow")
    job = desk.job(budget)
    job.open()
    store.fails = "before"
    assert desk.run(job, most=60) == 60
    store.fails = ""
    desk.clock.advance(2)
    job.close()
    assert desk.guard.pay_debts()
    assert desk.balance(budget) == Balance(100 * DOLLAR, spent=62 * RATE["USD"])


def test_jobs_beside_calls_under_leases() -> None:
    """A job pays to the store itself, also where calls of the same budget are served from a lease of the process."""
    clock = FakeClock(START)
    inner = MemoryStore()
    store = LeasedStore(inner, clock, every_s=0, often=2)
    desk = Desk(store)
    desk.clock = clock
    desk.guard = Guard(store, clock)
    budget = active("$10", name="team")
    for number in range(50):
        held = desk.guard.reserve([budget], {"USD": DOLLAR // 1000}, id=f"call-{number}", at=clock.time_ns())
        assert held is not None
        desk.guard.settle(held, {"USD": DOLLAR // 2000})
    job = desk.job(budget)
    job.open()
    desk.run(job, most=100)
    job.close()
    store.close()
    assert desk.balance(budget).spent == 50 * (DOLLAR // 2000) + 100 * RATE["USD"]


def test_a_heartbeat_pays_in_the_middle_of_a_long_step(desk: Desk) -> None:
    """Somebody else's thread keeps the lease alive while a step takes minutes, and tells the step that it was the last one."""
    budget = active("$1")
    job = desk.job(budget)
    job.open()
    while True:
        desk.clock.advance(1)
        if not job.tick():
            break
    assert not job.step()
    job.close()
    assert desk.balance(budget).spent <= DOLLAR


def test_threads_share_a_job(desk: Desk) -> None:
    """Steps of several threads pay for each moment once."""
    budget = active("$1000")
    job = desk.job(budget)
    job.open()

    def work() -> None:
        for _ in range(200):
            desk.clock.advance(0.25)
            assert job.step()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job.close()
    assert desk.balance(budget) == Balance(1000 * DOLLAR, spent=400 * RATE["USD"])


def test_without_a_budget_there_is_nothing_to_stop(desk: Desk) -> None:
    """A job that no budget covers runs on."""
    job = desk.job()
    job.open()
    assert desk.run(job, most=100) == 100
    job.close()


lengths = st.floats(0.01, 20, allow_nan=False)


@given(
    steps=st.lists(lengths, min_size=1, max_size=200),
    checkpoint=lengths,
    limit=st.integers(1, 400),
    slice_s=st.floats(0.5, 30),
    others=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 30)), max_size=5),
)
def test_a_step_and_a_checkpoint_within_the_allowance_never_overspend(
    steps: list[float], checkpoint: float, limit: int, slice_s: float, others: list[tuple[int, int]]
) -> None:
    """Whatever the lengths: the limit holds for the job and for calls beside it, and the books are the time that has passed."""
    desk = Desk()
    budget = active(f"${limit / 100}")
    job = desk.job(budget, slice_s=slice_s, allowance_s=max(steps) + checkpoint)
    _run_to_the_end(desk, budget, job, steps, checkpoint, dict(others))


def _run_to_the_end(
    desk: Desk, budget: ActiveBudget, job: Prepaid, steps: list[float], checkpoint: float, others: dict[int, int]
) -> None:
    try:
        job.open()
    except BudgetExceeded:
        assert desk.balance(budget).reserved == 0
        return
    begun = desk.clock.monotonic_ns()
    spent = 0
    for number, length in enumerate(steps):
        if number in others:
            cents = others[number] * RATE["USD"]
            try:
                held = desk.guard.reserve([budget], {"USD": cents}, id=f"c{number}", at=desk.clock.time_ns())
            except BudgetExceeded:
                held = None
            if held is not None:
                desk.guard.settle(held, {"USD": cents})
                spent += cents
        desk.clock.advance(length)
        if not job.step():
            break
    desk.clock.advance(checkpoint)
    job.close()
    used = -(-(desk.clock.monotonic_ns() - begun) * RATE["USD"] // 10**9)
    balance = desk.balance(budget)
    assert (balance.spent, balance.reserved) == (spent + used, 0)
    assert balance.spent <= (balance.limit or 0)


def test_how_long_the_money_lasts(desk: Desk) -> None:
    """The tightest budget, with what is held for this job and without what others hold; a window that renews before that is no limit."""
    money, hours = active("$1"), active("0.01 gpu_hours")  # 100 s, and 36 s of one device
    job = desk.job(money, hours, rate={**RATE, "gpu_seconds": MICRO})
    job.open()
    assert job.lasts() == 36
    desk.run(job, most=20)
    assert job.lasts() == 16
    job.close()
    alone = desk.job(money)
    alone.open()
    assert alone.lasts() == 80
    desk.guard.post([money], {"USD": 30 * RATE["USD"]}, id="other", at=desk.clock.time_ns())
    assert alone.lasts() == 50
    daily = desk.job(active("$1000", per="day", name="daily"))
    daily.open()
    assert daily.lasts() is None  # 100,000 s: the day is over before
    short = desk.job(active("$5", per="day", name="short"))
    short.open()
    assert short.lasts() == 500


def test_whoever_times_steps_himself_says_how_long_the_way_is(desk: Desk) -> None:
    """The allowance follows, and a step need not be told of then."""
    job = desk.job(active("$1"), allowance_s=1)
    job.open()
    job.expect(8 * 10**9)
    assert job.allowance == 8 * 10**9
    while job.tick():
        assert job.due >= desk.clock.monotonic_ns()
        desk.clock.advance(1)
    assert 7 * 10**9 <= job.left <= 8 * 10**9


def test_it_begins_and_ends_at_given_moments(desk: Desk) -> None:
    """So that what is paid is to the nanosecond what is charged."""
    budget = active("$1")
    job = desk.job(budget)
    began = desk.clock.monotonic_ns()
    desk.clock.advance(3)
    job.open(began)
    desk.clock.advance(4)
    ended = desk.clock.monotonic_ns()
    desk.clock.advance(5)
    job.close(ended)
    assert desk.balance(budget) == Balance(DOLLAR, spent=7 * RATE["USD"])


def test_a_job_without_a_price_is_refused_by_name(desk: Desk) -> None:
    """The message names what has no price."""
    job = desk.job(active("$1"), rate={"gpu_seconds": MICRO}, unpriced=UnknownModel("Some Prototype"))
    with pytest.raises(UnpricedCall, match="Some Prototype"):
        job.open()
