"""What the guard writes down: everything that is not a plain yes, and nothing of what is."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aifinops as af
from aifinops import errors, metering, runtime
from aifinops.budgets.audit import Audit, entries, head_note, verify
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.guard import Guard, Reservation
from aifinops.budgets.stores.base import Capabilities, Notes, Operation
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.waiting import Wait, keep_ticket
from aifinops.budgets.witness import Witness
from aifinops.errors import (
    ApprovalDenied,
    ApprovalPending,
    BudgetExceeded,
    StoreError,
    StoreReset,
    StoreUnavailable,
    UnknownModel,
    UnpricedCall,
)
from aifinops.testing import FakeProvider
from aifinops.testing.clock import FakeClock

CENT = 10_000_000


class Remote:
    """A store that can be down, or lose what it has."""

    capabilities = Capabilities(shared=True, durable=True, io="blocking")

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.trouble: list[StoreError] = []

    def run(self, operation: Operation[Any]) -> Any:
        if self.trouble:
            raise self.trouble.pop()
        return self.inner.run(operation)

    def reset_after_fork(self) -> None:
        self.inner.reset_after_fork()

    def close(self) -> None:
        self.inner.close()


class Desk:
    """A guard that writes its log into a file."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock(datetime(2026, 11, 30, 12, tzinfo=UTC))
        self.path = path
        self.audit = Audit(path, self.clock)
        self.store = Remote()
        self.guard = Guard(self.store, self.clock, witness=Witness(lambda store: self.audit), lease_s=600)
        self.count = 0

    def reserve(self, budget: ActiveBudget, cents: int = 60, **more: Any) -> Reservation:
        self.count += 1
        amounts = more.pop("amounts", {"USD": cents * CENT})
        found = self.guard.reserve([budget], amounts, id=f"call-{self.count}", at=self.clock.time_ns(), **more)
        assert found is not None
        return found

    def log(self) -> list[Mapping[str, Any]]:
        """What was written, without the opening."""
        self.guard.flush()
        if not self.path.exists():
            return []
        assert verify(self.path).holds
        return [entry.facts for entry in entries(self.path)][1:]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "budgets.audit")


def active(limit: Any = "$1", **arguments: Any) -> ActiveBudget:
    return ActiveBudget(Budget.parse(limit, **{"name": "team", "per": "day", "max_wait": 0, **arguments}))


def test_a_plain_yes_is_not_written_down(desk: Desk) -> None:
    """Calls that find room and cost no more than they held leave no file at all."""
    budget = active()
    desk.guard.settle(desk.reserve(budget), {"USD": 60 * CENT})
    desk.guard.release(desk.reserve(budget, 10))
    assert desk.log() == []
    assert not desk.path.exists()


def test_a_refusal_has_everything_but_what_was_said(desk: Desk) -> None:
    """Budget, window, what it asked for, how the budget stood, and the id of the decision."""
    budget = active()
    desk.guard.settle(desk.reserve(budget), {"USD": 60 * CENT})
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            desk.reserve(budget)
    first, rest = desk.log()
    told = {
        key: first[key] for key in ("kind", "budget", "unit", "window", "amount", "limit", "spent", "reserved", "id")
    }
    assert told == {
        "kind": "refused", "budget": "team", "unit": "USD", "window": "2026-11-30T00:00:00+00:00", "amount": "0.6", "limit": "1",
        "spent": "0.6", "reserved": "0", "id": "call-2",
    }  # fmt: skip
    assert (rest["times"], rest["amount"]) == (2, "1.2")


@pytest.mark.parametrize("action", ["warn", lambda error: "allow"])
def test_what_is_let_through_is_written_down(desk: Desk, action: Any) -> None:
    """By `warn` and by a callable alike."""
    budget = active(on_exceed=action)
    desk.reserve(budget)
    desk.reserve(budget)
    (entry,) = desk.log()
    assert (entry["kind"], entry["id"]) == ("let_through", "call-2")


@pytest.mark.parametrize(("unknown", "kind"), [("raise", "refused"), ("allow", None)])
def test_a_call_without_a_price_is_written_down(desk: Desk, unknown: str, kind: str | None) -> None:
    """Where the budget refuses it; what `unknown="allow"` was told to let pass is a plain yes."""
    budget = active(unknown=unknown)
    try:
        desk.reserve(budget, amounts={"requests": 1}, unpriced=UnknownModel("gpt-99"))
    except UnpricedCall:
        assert kind
    log = desk.log()
    assert [entry["kind"] for entry in log] == ([kind] if kind else [])
    assert not kind or log[0]["why"] == "no price for gpt-99"


@pytest.mark.parametrize(("policy", "kind"), [("deny", "refused"), ("allow", "let_through")])
def test_calls_while_the_store_is_down_are_written_down(desk: Desk, policy: str, kind: str) -> None:
    """Refused or let through, it says why, and no word of the driver."""
    budget = active(on_store_down=policy)
    desk.guard.prepare(budget)
    desk.clock.advance(seconds=5)
    desk.guard.sweep()
    desk.store.trouble = [StoreError("postgresql://ann:secret@host")] * 3
    with suppress(StoreUnavailable, AssertionError):
        desk.reserve(budget)
    desk.store.trouble = []
    desk.clock.advance(seconds=5)
    (entry,) = desk.log()
    assert (entry["kind"], entry["why"]) == (kind, "store is down")
    assert "secret" not in desk.path.read_text()


def test_a_wait_that_ends_well_says_how_long(desk: Desk) -> None:
    """Seconds from the first answer to the room that was found."""
    budget = active(max_wait=30)
    held = _elsewhere(lambda: desk.reserve(budget))
    with pytest.raises(Wait) as caught:
        desk.reserve(budget)
    desk.clock.advance(seconds=2.5)
    desk.guard.settle(held, {"USD": CENT})
    with keep_ticket(caught.value.ticket):
        desk.reserve(budget)
    (entry,) = desk.log()
    assert (entry["kind"], entry["seconds"], entry["id"], entry["budget"]) == ("waited", 2.5, "call-3", "team")


def test_a_wait_that_ends_in_a_refusal_says_how_long(desk: Desk) -> None:
    """It is the refusal that is written."""
    budget = active(max_wait=30)
    _elsewhere(lambda: desk.reserve(budget))
    with pytest.raises(Wait) as caught:
        desk.reserve(budget)
    desk.clock.advance(seconds=31)
    with pytest.raises(BudgetExceeded):
        desk.guard.pause(caught.value)
    (entry,) = desk.log()
    assert (entry["kind"], entry["seconds"], entry["amount"], entry["transient"]) == ("refused", 31.0, "0.6", True)


def test_forfeits_and_late_truths_are_written_down(desk: Desk) -> None:
    """The holder was away for longer than the lease, and came back."""
    held = desk.reserve(active())
    desk.clock.advance(seconds=700)
    assert desk.guard.sweep() == ("call-1",)
    desk.guard.settle(held, {"USD": 20 * CENT})
    forfeited, late = desk.log()
    assert (forfeited["kind"], forfeited["ids"], forfeited["times"]) == ("forfeited", ["call-1"], 1)
    assert (late["kind"], late["id"], late["amount"], late["known"]) == ("late", "call-1", "0.2", True)


def test_an_extended_lease_is_not_late(desk: Desk) -> None:
    """A long call that said so."""
    held = desk.reserve(active())
    desk.clock.advance(seconds=500)
    assert desk.guard.extend(held)
    desk.clock.advance(seconds=500)
    desk.guard.settle(held, {"USD": 20 * CENT})
    assert desk.log() == []


def test_overruns_and_what_was_posted_are_written_down(desk: Desk) -> None:
    """By how much more than was held, and what nothing was held for."""
    budget = active()
    desk.guard.settle(desk.reserve(budget, 10), {"USD": 15 * CENT})
    desk.guard.post([budget], {"USD": -5 * CENT}, id="credit", at=desk.clock.time_ns())
    overrun, posted = desk.log()
    assert (overrun["kind"], overrun["amount"], overrun["id"]) == ("overrun", "0.05", "call-1")
    assert (posted["kind"], posted["amount"], posted["id"]) == ("posted", "-0.05", "credit")


def test_a_store_that_lost_what_it_had_is_written_down(desk: Desk) -> None:
    """The operation is done again; the log has the reset."""
    budget = active()
    desk.reserve(budget)
    desk.store.trouble = [StoreReset("it is empty")]
    desk.clock.advance(seconds=61)
    desk.reserve(budget, 1)
    assert [entry["kind"] for entry in desk.log()] == ["store_reset"]


def test_a_log_that_fails_breaks_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the decision nor the call."""
    errors.reraise_failures(False)

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(desk.audit, "tell", broken)
    budget = active()
    desk.guard.settle(desk.reserve(budget, 10), {"USD": 15 * CENT})
    with pytest.raises(BudgetExceeded):
        desk.reserve(budget, 99)
    assert errors.failures() == {"budgets.witness": 2}


def test_the_head_of_the_log_is_kept_in_the_store(desk: Desk) -> None:
    """Now and then and at the end, so that a log that was cut off shows against it."""
    budget = active()
    for _ in range(2):
        with pytest.raises(BudgetExceeded):
            desk.reserve(budget, 101)
    desk.clock.advance(seconds=61)
    desk.reserve(budget, 1)
    note = Notes(head_note(desk.path), desk.clock.time_ns())
    ((_, head),) = note.execute(desk.store)
    assert head in {entry.hash for entry in entries(desk.path)}
    desk.audit.add("limit_set")
    desk.guard.flush()
    ((_, head),) = note.execute(desk.store)
    assert head == verify(desk.path).head


def test_an_event_loop_that_must_not_wait_is_a_refusal(tmp_path: Path) -> None:
    """A synchronous call inside a task cannot wait; that is written down as well."""
    import asyncio

    runtime.init(ledger=str(tmp_path / "ledger.db"))
    call = metering.Call("openai", "chat", "gpt-5-mini", body={"messages": []}, max_output=1000)

    async def two() -> None:
        with af.budget("$0.003", name="both", max_wait=5):
            first = metering.begin(call)
            assert first is not None
            first.leave()
            with pytest.raises(BudgetExceeded):
                metering.begin(call)
            first.give_up()

    asyncio.run(two())
    runtime.flush()
    (path,) = tmp_path.glob("*.audit")
    assert path.name == "budgets.db.audit"
    assert [entry.facts["kind"] for entry in entries(path)][1:] == ["refused"]


def test_a_limit_set_by_hand_holds_for_a_store_with_leases(tmp_path: Path) -> None:
    """What a process has leased already is a small share of the limit; beyond that nothing is given."""
    import json

    from aifinops.budgets.caretaker import limit_note
    from aifinops.budgets.stores.base import Put

    clock = FakeClock(datetime(2026, 11, 30, 12, tzinfo=UTC))
    engines = runtime.init(ledger=str(tmp_path / "ledger.db"), clock=clock)
    budget = active("$10")
    spent = 0

    def spend() -> None:
        nonlocal spent
        held = engines.guard.reserve([budget], {"USD": CENT}, id=f"call-{spent}", at=clock.time_ns())
        assert held is not None
        engines.guard.settle(held, {"USD": CENT})
        spent += 1

    for _ in range(100):
        spend()
    Put(limit_note("team|day", "USD"), json.dumps({"limit": 150 * CENT}), clock.time_ns()).execute(budget.store)
    clock.advance(seconds=5)

    def go_on() -> None:
        for _ in range(200):
            spend()

    with pytest.raises(BudgetExceeded):
        go_on()
    assert 140 <= spent <= 150 + 20  # a lease is a fiftieth of the limit under which it was taken at most


def test_each_store_has_its_log_beside_it(tmp_path: Path) -> None:
    """A file beside the file, all others beside the ledger, and nothing for a ledger in memory."""
    with af.budget("$1", name="mine", store=str(tmp_path / "own.db")):
        pass
    engines = runtime.init(ledger=str(tmp_path / "ledger.db"), store="memory")
    own = engines._store_of(active(store=str(tmp_path / "own.db")))
    assert engines.audit_of(own).path == tmp_path / "own.db.audit"
    beside = engines.audit_of(engines.guard.store)
    assert beside.path == tmp_path / "budgets.db.audit"
    assert engines.audit_of(Remote()) is beside
    assert runtime.init(ledger="memory").audit_of(engines.guard.store).path is None


def _elsewhere(work: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_wait_for_an_approval_that_nobody_gives_is_a_refusal(desk: Desk) -> None:
    """Whoever waits for an answer in vain is refused, and never let through; the log has the request and the refusal."""
    budget = active(on_exceed="ask", max_wait=30)
    desk.guard.settle(desk.reserve(budget), {"USD": 60 * CENT})
    with pytest.raises(Wait) as caught:
        desk.reserve(budget)
    desk.clock.advance(seconds=31)
    with pytest.raises(ApprovalPending):
        desk.guard.pause(caught.value)
    asked, refused = desk.log()
    assert (asked["kind"], asked["budget"], asked["amount"]) == ("approval_asked", "team", "0.6")
    assert (refused["kind"], refused["seconds"], refused["why"]) == ("refused", 31.0, "ApprovalPending")


def test_approvals_are_written_down(desk: Desk) -> None:
    """Who has allowed what, that it was used, and who has said no."""
    budget = active(on_exceed="ask", max_wait=30)
    desk.guard.settle(desk.reserve(budget), {"USD": 60 * CENT})
    with pytest.raises(Wait):
        desk.reserve(budget)
    approvals = desk.guard.refusals._desk
    assert approvals is not None
    (request,) = approvals.requests(desk.store)
    approvals.grant(desk.store, request.id, approver="ann")
    desk.reserve(budget)
    with pytest.raises(Wait):
        desk.reserve(budget)
    (request,) = approvals.requests(desk.store)
    approvals.deny(desk.store, request.id, approver="bob")
    with pytest.raises(ApprovalDenied):
        desk.reserve(budget)
    log = desk.log()
    kinds = [
        "approval_asked",
        "approval_granted",
        "approval_used",
        "let_through",
        "approval_asked",
        "approval_denied",
        "refused",
    ]
    assert [entry["kind"] for entry in log] == kinds
    assert (log[1]["by"], log[2]["by"], log[5]["by"], log[6]["why"]) == ("ann", "ann", "bob", "ApprovalDenied")


@pytest.mark.parametrize(("model", "kind"), [("gpt-5", "changed"), ("gpt-4o", "refused")])
def test_a_call_that_is_made_smaller_is_written_down(tmp_path: Path, model: str, kind: str) -> None:
    """Or refused where it cannot be: for that model there is no cheaper one."""
    import openai

    runtime.init(ledger=str(tmp_path / "ledger.db"))
    af.instrument("openai")
    messages = [{"role": "user", "content": "hi"}]
    with (
        FakeProvider() as server,
        openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as client,
        af.budget("$0.002", on_exceed={"downgrade": {"gpt-5": "gpt-5-mini"}}, max_wait=0),
        suppress(BudgetExceeded),
    ):
        client.chat.completions.create(model=model, messages=messages, max_completion_tokens=300)  # type: ignore[arg-type]
    af.uninstrument()
    runtime.flush()
    _, entry = entries(tmp_path / "budgets.db.audit")
    assert (entry.facts["kind"], entry.facts.get("action")) == (kind, "downgrade" if kind == "changed" else None)


def test_whoever_decides_waits_for_nobody_who_counts() -> None:
    """A signal handler may make a call in the middle of another one's count: with its lock held no decision stands still, and none is lost."""
    witness = Witness()
    active = SimpleNamespace(key="search")
    with witness._tally_lock:
        worker = threading.Thread(target=lambda: [witness.allowed([active]) for _ in range(1000)], daemon=True)
        worker.start()
        worker.join(10)
        assert not worker.is_alive()
    assert witness.decisions() == {("search", "allow"): 1000}
