"""What becomes of a call where something of ours fails while its budgets decide."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import aifinops as af
from aifinops import errors, metering, runtime
from aifinops.budgets.guard import Guard
from aifinops.metering import Call, Invocation
from aifinops.reading import Reading
from aifinops.usage import quantities

CALL = Call("openai", "chat", "gpt-4o-mini", body={"messages": [{"role": "user", "content": "hi"}]}, max_output=100)
SECRET = "what the user has said"


@pytest.fixture(autouse=True)
def quiet() -> None:
    errors.reraise_failures(False)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a function raise."""

    def breaking(owner: Any, name: str, error: type[Exception] = RuntimeError) -> None:
        def raising(*_: Any, **__: Any) -> Any:
            raise error(SECRET)

        monkeypatch.setattr(owner, name, raising)

    return breaking


def settled(invocation: Invocation | None) -> Decimal:
    """End a call that went on; what it cost."""
    assert invocation is not None
    invocation.leave()
    invocation.settle(Reading({"input_tokens": 1000, "output_tokens": 1000}))
    (row,) = runtime.get().ledger.rows()
    assert row.amount is not None
    return Decimal(row.amount).scaleb(-9)


def test_a_limit_holds_where_the_decision_fails(broken: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    """The call is refused with an error that says why and tells nothing of the call; it is counted each time and logged once."""
    broken(Guard, "reserve")
    with caplog.at_level(logging.WARNING, "aifinops"), af.budget("$5", name="team") as budget:
        for _ in range(2):
            with pytest.raises(af.DecisionFailed, match=r"'team' refused the call: .*a bug \(RuntimeError") as caught:
                metering.begin(CALL)
        assert metering.in_flight() is None
        assert budget.spent == budget.reserved == 0
    assert isinstance(caught.value, af.StoreUnavailable)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert errors.failures() == {"metering.reserve": 2}
    (said,) = [record.getMessage() for record in caplog.records]
    assert "A call was refused" in said
    assert "not affected" not in said
    assert SECRET not in said + str(caught.value)


@pytest.mark.parametrize("more", [{"on_exceed": "warn"}, {"on_store_down": "allow"}], ids=["warn", "allow"])
def test_a_budget_that_may_not_refuse_counts_what_it_could_not_hold(
    broken: Callable[..., None], more: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The call goes on, and what it cost is counted when it settles."""
    broken(Guard, "reserve")
    with caplog.at_level(logging.WARNING, "aifinops"), af.budget("$5", **more) as budget:
        cost = settled(metering.begin(CALL))
        assert budget.spent == cost > 0
        assert budget.reserved == 0
    assert "Your call is not affected" in caplog.text


def test_of_several_budgets_one_that_may_refuse_is_enough(broken: Callable[..., None]) -> None:
    """It is the one that is named."""
    broken(Guard, "reserve")
    with (
        af.budget("$5", on_exceed="warn"),
        af.budget("$5", name="hard"),
        pytest.raises(af.DecisionFailed, match="'hard'"),
    ):
        metering.begin(CALL)


def test_without_budgets_a_call_goes_on(broken: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing that could be decided."""
    broken(runtime.Runtime, "tags")
    assert metering.begin(CALL) is None
    assert errors.failures() == {"metering.begin": 1, "metering.in_force": 1}


@pytest.mark.parametrize("on_exceed", ["raise", "warn"])
def test_where_we_fail_to_tell_which_budgets_are_meant_all_are(broken: Callable[..., None], on_exceed: str) -> None:
    """A standing budget that may refuse does, also a call that it perhaps does not match."""
    af.init(ledger="memory", store="memory", budgets=[{"limit": "$5", "name": "all", "on_exceed": on_exceed}])
    broken(runtime.Runtime, "budgets")
    if on_exceed == "warn":
        assert metering.begin(CALL) is None
        return
    with pytest.raises(af.DecisionFailed, match="'all'"):
        metering.begin(CALL)


def test_nothing_is_refused_while_metering_is_switched_off(broken: Callable[..., None]) -> None:
    """Also where something fails on the way to find that out."""
    af.init(ledger="memory", enabled=False)
    broken(metering.waiting, "here")
    with af.budget("$5"):
        assert metering.begin(CALL) is None


def test_a_request_that_cannot_be_read_holds_for_the_largest(broken: Callable[..., None]) -> None:
    """All that its model takes is a bound of it whatever is in it, so there is no need to refuse."""
    broken(metering.bounds.tokens, "text_upper_bound", RecursionError)
    most = runtime.get().book.input_limit("openai", "gpt-4o-mini")
    with af.budget({"input_tokens": 10 * most}) as budget:
        invocation = metering.begin(CALL)
        assert budget.reserved == most
        settled(invocation)
        assert budget.spent == 1000
    assert errors.failures() == {"metering.bound": 1}


def test_what_is_not_billed_by_tokens_has_no_such_bound(broken: Callable[..., None]) -> None:
    """A call that is billed by pictures may cost more than its tokens: it is refused."""
    broken(metering.bounds, "cost_of")
    with af.budget("$5"), pytest.raises(af.DecisionFailed):
        metering.begin(Call("openai", "image_generation", "dall-e-3", counts=quantities({"images": 1})))


def test_a_failure_after_the_hold_gives_it_back(broken: Callable[..., None]) -> None:
    """A call that is refused holds nothing, wherever it failed."""
    broken(metering.holding, "make_tags")
    granted = {"on_exceed": {"ask": lambda request: True}, "max_wait": 0.1}
    with af.budget("$0.00001", **granted) as budget, pytest.raises(af.DecisionFailed):
        metering.begin(CALL)
    assert budget.reserved == budget.spent == 0


def test_a_call_that_cannot_wait_is_refused_for_what_it_waited_for(broken: Callable[..., None]) -> None:
    """There is no room, and that is what the error says."""
    broken(Guard, "pause")
    with af.budget("$1", per="minute", on_exceed="throttle", max_wait=60):
        af.record(cost=1)
        with pytest.raises(af.BudgetExceeded, match="this call may cost up to") as caught:
            metering.begin(CALL)
    assert not isinstance(caught.value, af.StoreUnavailable)
    assert errors.failures() == {"metering.wait": 1}


async def test_a_task_that_cannot_wait_is_refused_likewise(broken: Callable[..., None]) -> None:
    """The same where the event loop goes on meanwhile."""
    broken(Guard, "apause")
    with af.budget("$1", per="minute", on_exceed="throttle", max_wait=60):
        af.record(cost=1)
        with pytest.raises(af.BudgetExceeded, match="this call may cost up to"):
            await metering.begin_patiently(metering.begin, CALL)
    assert errors.failures() == {"metering.wait": 1}


@pytest.mark.parametrize("on_exceed", ["raise", "warn"])
def test_the_next_try_of_a_call_is_decided_likewise(broken: Callable[..., None], on_exceed: str) -> None:
    """A try whose room cannot be found out is not made, or counted when it settles."""
    with af.budget("$5", on_exceed=on_exceed) as budget:
        invocation = metering.begin(CALL)
        assert invocation is not None
        invocation.lose(TimeoutError())
        lost = budget.spent
        assert lost > 0
        broken(Guard, "reserve")
        if on_exceed == "raise":
            with pytest.raises(af.DecisionFailed):
                invocation.hold_again()
            invocation.give_up()
            return
        invocation.hold_again()
        invocation.leave()
        invocation.settle(Reading({"input_tokens": 1000, "output_tokens": 1000}))
        assert budget.spent > lost


def test_an_error_of_our_own_says_what_it_says(broken: Callable[..., None]) -> None:
    """A store that cannot be opened, say: its text is ours, and what to do about it."""
    broken(Guard, "reserve", errors.StoreError)
    with af.budget("$5"), pytest.raises(af.DecisionFailed, match=SECRET):
        metering.begin(CALL)


def test_the_refusal_is_in_the_audit_log(broken: Callable[..., None], tmp_path: Path) -> None:
    """As every refusal is, with its reason; where even that fails, it is a refusal."""
    af.init(ledger="memory", store=tmp_path / "budgets.db")
    broken(Guard, "_hold")
    with af.budget("$5", name="team"):
        with pytest.raises(af.DecisionFailed):
            metering.begin(CALL)
        af.flush()
        log = [json.loads(line) for line in (tmp_path / "budgets.db.audit").read_text().splitlines()]
        assert [entry["why"] for entry in log if entry["kind"] == "refused"] == ["decision failed"]
        broken(Guard, "undecided")
        with pytest.raises(af.DecisionFailed):
            metering.begin(CALL)


def test_a_house_that_needs_keeping_refuses_nobody(broken: Callable[..., None]) -> None:
    """What the guard looks after on the way is no part of the decision."""
    broken(Guard, "_tidy")
    with af.budget("$5") as budget:
        assert budget._active
        invocation = metering.begin(CALL)
        assert invocation is not None
        invocation.give_up()
    assert errors.failures() == {"budgets.tidy": 1}
