"""Budgets in several stores, and stores that do not answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.guard import Guard, Reservation
from aifinops.budgets.stores import open_store
from aifinops.budgets.stores.base import Capabilities, InTheMiddle, Operation, Reserve, Settle
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.budgets.waiting import Wait, keep_ticket
from aifinops.errors import BudgetExceeded, ConfigurationError, StoreError, StoreReset, StoreUnavailable
from aifinops.testing.clock import FakeClock

DOLLAR = 10**9


class Remote:
    """A memory store behind a line that can be cut, before or after an operation has had its effect."""

    capabilities = Capabilities(shared=True, durable=True, io="blocking")

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.asked: list[str] = []
        self.down = ""
        self.resets = 0

    def run(self, operation: Operation[Any]) -> Any:
        self.asked.append(type(operation).__name__)
        if self.resets:
            self.resets -= 1
            raise StoreReset("it is empty")
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
    """A guard with a memory store of its own and a remote one for the budgets that have a name."""

    def __init__(self) -> None:
        self.clock = FakeClock(datetime(2026, 11, 30, 12, tzinfo=UTC))
        self.own, self.remote = MemoryStore(), Remote()
        self.guard = Guard(self.own, self.clock, store_of=lambda one: self.remote if one.shared else self.own)
        self.count = 0

    def reserve(self, *budgets: ActiveBudget, cents: int = 10) -> Reservation:
        self.count += 1
        amounts = {"USD": cents * DOLLAR // 100}
        found = self.guard.reserve(budgets, amounts, id=f"call-{self.count}", at=self.clock.time_ns())
        assert found is not None
        return found

    def cents(self, budget: ActiveBudget) -> tuple[int, int]:
        balance = self.guard.balances(budget)["USD"]
        return balance.spent * 100 // DOLLAR, balance.reserved * 100 // DOLLAR


@pytest.fixture
def desk() -> Desk:
    return Desk()


def active(limit: Any = "$1", **arguments: Any) -> ActiveBudget:
    return ActiveBudget(Budget.parse(limit, **arguments))


def test_budgets_of_two_stores_agree_or_nothing_is_held(desk: Desk) -> None:
    """A block inside a shared budget needs room in both; a refusal of the second leaves nothing in the first."""
    shared, block = active("$1", name="team"), active("$5")
    first = desk.reserve(shared, block, cents=60)
    assert desk.cents(shared) == desk.cents(block) == (0, 60)
    with pytest.raises(BudgetExceeded, match="'team'"):
        desk.reserve(shared, block, cents=60)
    assert desk.cents(block) == (0, 60)
    desk.guard.settle(first, {"USD": DOLLAR // 4})
    assert desk.cents(shared) == desk.cents(block) == (25, 0)
    assert first.unit == "USD"


def test_the_store_that_never_waits_is_asked_first(desk: Desk) -> None:
    """A refusal there costs no round trip."""
    with pytest.raises(BudgetExceeded):
        desk.reserve(active("$1", name="team"), active("$0.01"), cents=60)
    assert "Reserve" not in desk.remote.asked


@pytest.mark.parametrize("down", ["before", "after"])
def test_a_store_that_does_not_answer_denies(desk: Desk, down: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is sent, the error says what to type, the log says it once, and what was held meanwhile is given back."""
    shared, block = active("$1", name="team"), active("$5")
    desk.reserve(shared)
    desk.remote.down = down
    with caplog.at_level(logging.WARNING), pytest.raises(StoreUnavailable, match='on_store_down="allow"') as caught:
        desk.reserve(shared, block)
    assert isinstance(caught.value.__cause__, StoreError)
    assert isinstance(caught.value, BudgetExceeded)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            desk.reserve(shared, block)
    assert caplog.text.count("does not answer") == 1
    assert desk.cents(block) == (0, 0)
    desk.remote.down = ""
    desk.clock.advance(2)
    assert desk.guard.pay_debts()
    assert desk.cents(shared) == (0, 10)


@pytest.mark.parametrize("known", [True, False])
def test_a_store_that_has_forgotten_a_call_counts_its_end(desk: Desk, known: bool) -> None:
    """What it cost is posted; where nobody knows that, what was held."""
    shared = active("$1", name="team")
    held, other = desk.reserve(shared, cents=30), desk.reserve(shared, cents=20)
    desk.remote.inner = MemoryStore()
    desk.guard.settle(held, {"USD": DOLLAR // 4} if known else {})
    assert desk.cents(shared) == (25 if known else 30, 0)
    desk.guard.release(other)
    assert desk.cents(shared) == (25 if known else 30, 0)


def test_a_store_that_does_not_answer_is_left_alone_for_a_moment(desk: Desk) -> None:
    """Else every call would wait for its timeout."""
    shared = active("$1", name="team")
    desk.reserve(shared)
    desk.remote.down = "before"
    with pytest.raises(StoreUnavailable):
        desk.reserve(shared)
    asked = len(desk.remote.asked)
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            desk.reserve(shared)
    assert len(desk.remote.asked) == asked
    desk.clock.advance(1)
    with pytest.raises(StoreUnavailable):
        desk.reserve(shared)
    assert len(desk.remote.asked) == asked + 1


def test_a_budget_may_allow_what_its_store_cannot_say(desk: Desk) -> None:
    """The call goes on; the budgets that do answer hold all the same."""
    shared, block = active("$1", name="team", on_store_down="allow"), active("$0.15")
    desk.reserve(shared)
    desk.remote.down = "before"
    first = desk.reserve(shared, block)
    assert [part.store for part in first.parts] == [desk.own]
    with pytest.raises(BudgetExceeded):
        desk.reserve(shared, block)
    alone, unknown, refused = desk.reserve(shared), desk.reserve(shared), desk.reserve(shared)
    for call in (first, alone):
        desk.guard.settle(call, {"USD": DOLLAR // 50})
    desk.guard.settle(unknown, {})
    desk.guard.release(refused)
    desk.remote.down = ""
    desk.clock.advance(2)
    assert desk.cents(shared) == (2 + 2 + 10, 10)


@pytest.mark.parametrize("down", ["before", "after"])
def test_what_was_spent_meanwhile_is_told_later(desk: Desk, down: str) -> None:
    """In the order in which it happened, each once."""
    shared = active("$1", name="team")
    calls = [desk.reserve(shared) for _ in range(4)]
    desk.remote.down = down
    for call in calls[:2]:
        desk.guard.settle(call, {"USD": DOLLAR // 20})
    desk.guard.release(calls[2])
    desk.guard.post([shared], {"USD": DOLLAR // 50}, id="posted", at=desk.clock.time_ns())
    desk.remote.down = ""
    desk.clock.advance(2)
    assert desk.cents(shared) == (12, 10)
    assert desk.guard.pay_debts()


def test_somebody_who_interrupts_the_telling_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of what is told later: it is told the next time."""
    budget = ActiveBudget(Budget.parse("$1", name="team"))
    call = desk.reserve(budget)
    desk.remote.down = "before"
    desk.guard.settle(call, {"USD": DOLLAR // 20})
    desk.remote.down = ""
    desk.clock.advance(2)

    def interrupted(operation: Operation[Any]) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(desk.remote, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            desk.guard.pay_debts()
    assert desk.guard.pay_debts()
    assert desk.cents(budget) == (5, 0)


def test_a_store_that_was_emptied_is_asked_again(desk: Desk) -> None:
    """It says so once."""
    shared = active("$1", name="team")
    desk.remote.resets = 1
    call = desk.reserve(shared)
    desk.remote.resets = 1
    desk.guard.settle(call, {"USD": DOLLAR // 20})
    assert desk.cents(shared) == (5, 0)


# --- which store ---------------------------------------------------------------------------------------------------------


def test_what_people_write(tmp_path: Path) -> None:
    """A path, a URL, a store, or this process."""
    assert isinstance(open_store("memory"), MemoryStore)
    for target in (tmp_path / "a.db", str(tmp_path / "b.db"), f"sqlite:///{tmp_path}/c.db"):
        store = open_store(target)
        assert isinstance(store, SqliteStore)
        store.close()
    assert {path.name for path in tmp_path.iterdir()} >= {"a.db", "b.db", "c.db"}
    remote = Remote()
    assert open_store(remote) is remote


@pytest.mark.parametrize("target", ["", 5, "mongodb://secret@host/", None])
def test_what_is_no_store_says_what_to_type(target: Any) -> None:
    """And shows no password."""
    with pytest.raises(ConfigurationError, match="postgresql://user@host/database") as caught:
        open_store(target)
    assert "secret" not in str(caught.value)


def test_a_named_budget_outlives_the_runtime(tmp_path: Path) -> None:
    """Its balance is beside the ledger, and the next process goes on from there; an unnamed one is its block's."""
    for spent in (0, 40):
        af.init(ledger=str(tmp_path / "ledger.db"))
        with af.budget("$1", name="team") as team, af.budget("$1") as block:
            assert (team.spent * 100, block.spent * 100) == (spent, 0)
            af.record(cost="0.40 USD")
            assert (team.spent * 100, block.spent * 100) == (spent + 40, 40)
        af.shutdown()
    assert (tmp_path / "budgets.db").stat().st_mode & 0o777 == 0o600


def test_a_budget_may_name_its_store(tmp_path: Path) -> None:
    """In the call, or for all of them in the settings; two that name the same file share a connection."""
    af.init(ledger="memory", store=str(tmp_path / "all.db"))
    guard = runtime.get().guard
    with (
        af.budget("$1", name="a") as first,
        af.budget("$1", name="b", store=tmp_path / "one.db") as second,
        af.budget("$2", name="c", store=str(tmp_path / "one.db")) as third,
        af.budget("$1", name="d", store="memory") as fourth,
    ):
        stores = [one._active.store for one in (first, second, third, fourth)]
    assert stores[0].inner.path == tmp_path / "all.db"
    assert stores[1] is stores[2]
    assert stores[1].inner.path == tmp_path / "one.db"
    assert stores[3] is guard.store
    af.shutdown()


def test_a_store_that_cannot_be_opened_shows_at_set_up(tmp_path: Path) -> None:
    """Not in the first call."""
    af.init(ledger="memory")
    (tmp_path / "no.db").write_text("this is no database, only some text")
    with pytest.raises(ConfigurationError, match=r"budget store .*no\.db is no SQLite database"):
        af.budget("$1", name="a", store=tmp_path / "no.db").__enter__()


def test_operations_are_values() -> None:
    """They can be compared, and are checked when they are made."""
    with pytest.raises(ValueError, match="1 nodes"):
        Reserve("a", (active().nodes(0)), (), 0, 0)
    assert Settle("a", (), (), 0) == Settle("a", (), (), 0)


def _elsewhere(work: Callable[[], Any]) -> Any:
    """Do it in a thread of its own, so that its holds are not ours."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize("policy", ["deny", "allow"])
def test_a_store_that_does_not_answer_while_others_wait_for_it(desk: Desk, policy: str) -> None:
    """Whoever comes after them is told what the budget says of a store that is down, and the store is not asked by each of them."""
    shared = active("$1", name="team", on_store_down=policy)
    _elsewhere(lambda: desk.reserve(shared, cents=60))
    with pytest.raises(Wait):
        desk.reserve(shared, cents=60)
    desk.remote.down = "before"
    for _ in range(3):
        if policy == "deny":
            with pytest.raises(StoreUnavailable):
                desk.reserve(shared, cents=30)
        else:
            assert not desk.reserve(shared, cents=30).parts
    assert desk.remote.asked[-2:] == ["Reserve", "Read"]


def test_a_call_may_wait_in_one_store_while_another_has_room(desk: Desk) -> None:
    """What it held there was given back meanwhile; under the same id it holds again."""
    shared, block = active("$1", name="team"), active("$5")
    first = _elsewhere(lambda: desk.reserve(shared, cents=60))
    with pytest.raises(Wait) as caught:
        desk.reserve(shared, block, cents=60)
    desk.guard.settle(first, {"USD": 10 * DOLLAR // 100})
    desk.count -= 1
    with keep_ticket(caught.value.ticket):
        second = desk.reserve(shared, block, cents=60)
    assert desk.cents(block) == (0, 60)
    desk.guard.settle(second, {"USD": 20 * DOLLAR // 100})
    assert desk.cents(block) == (20, 0)
    assert desk.cents(shared) == (30, 0)


def test_a_call_in_the_middle_of_another_one_closes_no_line(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A store that cannot come back into itself refuses a signal handler, and nobody else: it does answer."""
    shared = active("$1", name="team")
    desk.reserve(shared, cents=10)
    run, desk.remote.run = desk.remote.run, _always(InTheMiddle("this thread is in the middle of another operation"))  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        desk.reserve(shared, cents=10)
    desk.remote.run = run  # type: ignore[method-assign]
    desk.reserve(shared, cents=10)
    assert desk.cents(shared) == (0, 20)
    assert not caplog.records


def _always(error: Exception) -> Callable[..., Any]:
    def run(_: object) -> None:
        raise error

    return run


@pytest.mark.parametrize("held", [True, False])
def test_a_call_that_grows_while_the_store_is_down_counts_as_grown(desk: Desk, held: bool) -> None:
    """Nobody says what it has cost: it may be all that it was allowed to, also where the store holds less for it, or nothing."""
    shared = active("$5", name="team", on_store_down="allow")
    if not held:
        desk.remote.down = "before"
    call = desk.reserve(shared, cents=10)
    desk.remote.down = "before"
    desk.clock.advance(2)
    desk.guard.grow(call, [shared], {"USD": 30 * DOLLAR // 100})
    desk.guard.settle(call, {})
    desk.remote.down = ""
    desk.clock.advance(2)
    assert desk.cents(shared) == (30, 0)


def test_a_call_that_grows_after_its_hold_ran_out_counts_as_grown(desk: Desk) -> None:
    """What was held counts as spent by then; what it may cost more is told with its end."""
    shared = active("$5", name="team")
    call = desk.reserve(shared, cents=10)
    desk.clock.advance(3600)
    assert desk.guard.sweep() == (call.id,)
    desk.guard.grow(call, [shared], {"USD": 30 * DOLLAR // 100})
    desk.guard.settle(call, {})
    assert desk.cents(shared) == (30, 0)
