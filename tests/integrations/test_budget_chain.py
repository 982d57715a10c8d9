"""Several actions of a budget in order: the first that makes a call fit wins, and the last one says what happens to all others."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aifinops as af
from aifinops.budgets.actions import Ask, Chain, Clamp, Cut, Downgrade
from aifinops.budgets.budget import Budget
from aifinops.errors import StreamCut
from aifinops.integrations.calls import Calls
from aifinops.integrations.changing import How
from aifinops.integrations.providers.openai import OPENAI
from aifinops.reading import Reading
from aifinops.testing import FakeProvider, capture_charges
from aifinops.testing.wire import Wire

ASK: Any = [{"role": "user", "content": "hi"}]
DOWN = {"downgrade": {"gpt-4o": "gpt-4o-mini"}}
DEAR, CHEAP = "gpt-4o", "gpt-4o-mini"
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def wire() -> Iterator[Wire]:
    af.init(ledger="memory")
    with Wire() as running:
        yield running
    af.uninstrument()


@pytest.fixture
def client(wire: Wire) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    af.instrument("openai")
    wire.answers["POST /chat/completions"] = lambda: {
        "id": "c1", "object": "chat.completion", "created": 1794304800, "model": sent(wire)[0],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }  # fmt: skip
    with openai.OpenAI(base_url=wire.url, api_key="x", max_retries=0) as made:
        yield made


def sent(wire: Wire) -> tuple[str, int | None]:
    """(model, output limit) of what was asked last."""
    body = json.loads(wire.asked[-1][1])
    return body["model"], body.get("max_tokens", body.get("max_completion_tokens"))


def at_most(model: str, output: int) -> Decimal:
    cost = af.estimate(model, provider="openai", messages=ASK, max_tokens=output)
    assert cost.upper is not None
    return cost.upper


def create(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": DEAR, "messages": ASK, "max_tokens": 500, **more})


# --- what is tried ---------------------------------------------------------------------------------------------------------


def test_the_first_that_fits_wins(wire: Wire, client: Any) -> None:
    """Where a cheaper model is enough the limit stays, and where nothing is needed nothing is changed."""
    with af.budget({"USD": at_most(CHEAP, 500)}, on_exceed=[DOWN, "clamp"]):
        create(client)
    assert sent(wire) == (CHEAP, 500)
    with af.budget({"USD": at_most(DEAR, 500)}, on_exceed=[DOWN, "clamp"]):
        create(client)
    assert sent(wire) == (DEAR, 500)


def test_each_is_applied_to_what_the_one_before_has_made(wire: Wire, client: Any) -> None:
    """A model that is still too dear gets a lower limit: the charge says both."""
    with (
        capture_charges() as charges,
        af.budget({"USD": at_most(CHEAP, 200)}, on_exceed=(DOWN, "clamp", "raise")) as budget,
    ):
        create(client)
        assert budget.reserved == 0
    assert sent(wire) == (CHEAP, 200)
    (charge,) = charges
    assert (charge.model, charge.tags["asked_model"], charge.tags["asked_output"]) == (CHEAP, DEAR, "500")
    assert charge.tags["budget_action"] == "clamp"


def test_the_order_is_that_of_the_list(wire: Wire, client: Any) -> None:
    """With the lower limit first, the model stays as long as one of 16 tokens fits."""
    with af.budget({"USD": at_most(DEAR, 100)}, on_exceed=["clamp", DOWN]):
        create(client)
    assert sent(wire) == (DEAR, 100)
    with af.budget({"USD": at_most(DEAR, 10)}, on_exceed=["clamp", DOWN]):
        create(client, max_tokens=100)
    assert sent(wire) == (CHEAP, 100)


def test_one_that_cannot_be_done_leads_to_the_next(wire: Wire, client: Any) -> None:
    """A request with tools keeps its model, so its limit is lowered."""
    with af.budget({"USD": 2 * at_most(DEAR, 100)}, on_exceed=[DOWN, "clamp"]):
        create(client, tools=TOOLS)
    model, limit = sent(wire)
    assert (model, 0 < (limit or 0) < 500) == (DEAR, True)


def test_all_the_reasons_are_told(wire: Wire, client: Any) -> None:
    """Where nothing is of use the error says why not, of each."""
    with (
        af.budget({"USD": at_most(CHEAP, 2)}, on_exceed=[DOWN, "cut", "clamp", "raise"]) as budget,
        pytest.raises(af.BudgetExceeded) as refused,
    ):
        create(client)
    for why in ("no model to use instead of 'gpt-4o-mini'", "this call has none", "does not buy 16 output tokens"):
        assert why in str(refused.value)
    assert not wire.asked
    assert (budget.spent, budget.reserved) == (0, 0)


def test_a_stream_is_cut_and_a_plain_call_is_clamped(wire: Wire, client: Any) -> None:
    """Each gets what can be done with it."""
    piece = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": CHEAP, "choices": [
        {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
    ]}  # fmt: skip
    with af.budget("900 output_tokens", on_exceed=["cut", "clamp"]) as budget:
        create(client, max_tokens=5000)
        assert sent(wire)[1] == 900
        wire.answers["POST /chat/completions"] = [piece] * 2000
        with pytest.raises(StreamCut):
            list(create(client, stream=True, max_tokens=5000))
        assert budget.spent <= 900
    assert sent(wire)[1] == 5000


def test_a_stream_that_does_not_fit_at_all_is_not_cut_by_a_warning(wire: Wire, client: Any) -> None:
    """It goes through whole, and is not ended later."""
    piece = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": CHEAP, "choices": [
        {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
    ]}  # fmt: skip
    wire.answers["POST /chat/completions"] = [*[piece] * 1000, "[DONE]"]
    with af.budget("100 output_tokens", on_exceed=["cut", "warn"]) as budget:
        assert len(list(create(client, stream=True, max_tokens=5000))) == 1000
        assert budget.reserved == 0


async def test_the_other_colour(wire: Wire, client: Any) -> None:
    """The same in a task."""
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=wire.url, api_key="x", max_retries=0) as other:
        with af.budget({"USD": at_most(CHEAP, 200)}, on_exceed=[DOWN, "clamp"]):
            await other.chat.completions.create(model=DEAR, messages=ASK, max_tokens=500)
    assert sent(wire) == (CHEAP, 200)


def test_each_budget_has_an_order_of_its_own(wire: Wire, client: Any) -> None:
    """One that has come to its end does not end the other."""
    with (
        af.budget({"USD": at_most(CHEAP, 500)}, on_exceed=[DOWN, "clamp"]),
        af.budget("100 output_tokens", on_exceed=[{"downgrade": {"gpt-5": "gpt-5-mini"}}, "clamp"]),
    ):
        create(client)
    assert sent(wire) == (CHEAP, 100)


# --- what comes last -------------------------------------------------------------------------------------------------------


def test_a_warning_comes_last(wire: Wire, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Only what nothing makes fit goes through all the same, with the cheaper model and its own limit; and it does not wait for others."""
    caplog.set_level(logging.WARNING, "aifinops")
    with (
        capture_charges() as charges,
        af.budget({"USD": at_most(CHEAP, 2)}, on_exceed=[DOWN, "clamp", "warn"], max_wait=30) as budget,
    ):
        before = time.monotonic()
        create(client)
        assert time.monotonic() - before < 5
        assert sent(wire) == (CHEAP, 500)
        assert budget.reserved == 0
    assert (charges[0].tags["budget_action"], "asked_output" in charges[0].tags) == ("downgrade", False)
    assert any("only warns" in record.getMessage() for record in caplog.records)


def test_a_callable_comes_last(wire: Wire, client: Any) -> None:
    """It is asked about what is left of the call, once, and not where something has made it fit."""
    asked: list[Decimal] = []

    def decide(error: af.BudgetExceeded) -> str:
        asked.append(error.asked)
        return "allow" if len(asked) == 1 else "raise"

    with af.budget({"USD": at_most(CHEAP, 500)}, on_exceed=[DOWN, decide]):
        create(client)
    assert not asked
    with af.budget({"USD": at_most(CHEAP, 2)}, on_exceed=[DOWN, decide]):
        create(client)
        with pytest.raises(af.BudgetExceeded):
            create(client)
    assert len(asked) == 2
    assert asked[0] < at_most(DEAR, 500)


def test_somebody_is_asked_last(wire: Wire, client: Any) -> None:
    """For what the cheaper model costs, not for what was asked for."""
    wanted: list[int] = []

    def approve(request: Any) -> bool:
        wanted.append(request.amount)
        return True

    with capture_charges() as charges, af.budget({"USD": at_most(CHEAP, 2)}, on_exceed=[DOWN, {"ask": approve}]):
        create(client)
    assert len(wanted) == 1
    assert wanted[0] < at_most(DEAR, 500) * 10**9
    assert (charges[0].tags["budget_action"], charges[0].tags["asked_model"]) == ("ask", DEAR)


def test_a_throttle_comes_last(wire: Wire, client: Any) -> None:
    """Whatever does not fit in this window waits for the next one; where nobody may wait so long it raises."""
    with (
        af.budget({"USD": at_most(CHEAP, 2)}, per="day", on_exceed=[DOWN, "throttle"], max_wait=0),
        pytest.raises(af.BudgetExceeded),
    ):
        create(client)
    assert not wire.asked


def test_a_call_without_a_price_meets_the_last(wire: Wire, client: Any) -> None:
    """No change gives it one."""
    with af.budget("$1", on_exceed=[DOWN, "clamp"]), pytest.raises(af.UnpricedCall):
        create(client, model="nobody-knows")
    with af.budget("$1", on_exceed=[DOWN, "clamp", "warn"]):
        create(client, model="nobody-knows")
    assert len(wire.asked) == 1


def test_a_further_try_meets_the_last(wire: Wire, client: Any) -> None:
    """The request is under way, so it cannot be changed: a budget that warns in the end lets it go on."""
    wire.during = lambda: time.sleep(0.5) if len(wire.asked) == 1 else None
    other = client.with_options(max_retries=1, timeout=0.2)
    with af.budget({"USD": at_most(DEAR, 500)}, on_exceed=["clamp", "warn"]) as budget:
        create(other)
        assert budget.reserved == 0
    assert len(wire.asked) == 2
    wire.asked.clear()
    with (
        af.budget({"USD": at_most(DEAR, 500)}, on_exceed=[DOWN, "clamp"]),
        pytest.raises(af.BudgetExceeded, match="under way"),
    ):
        create(other)
    assert len(wire.asked) == 1


# --- how it is written -------------------------------------------------------------------------------------------------------


def test_what_an_order_is_parsed_to() -> None:
    """One action alone is what it is without a list."""

    def on(action: Any) -> Any:
        return Budget.parse("$5", name="b", on_exceed=action).on_exceed

    down = Downgrade((("gpt-4o", "gpt-4o-mini"),))
    assert on([DOWN, {"clamp": 200}, "cut", "warn"]) == Chain((down, Clamp(200), Cut()), "warn")
    assert on((DOWN, "clamp", "raise")) == on([DOWN, "clamp"]) == Chain((down, Clamp()), "raise")
    assert on(["clamp"]) == on(["clamp", "raise"]) == Clamp()
    assert on(["warn"]) == "warn"
    assert on(["cut", "ask"]) == Chain((Cut(),), Ask())


@pytest.mark.parametrize(
    "action",
    [
        [],
        ["warn", "clamp"],
        ["clamp", "warn", "raise"],
        ["clamp", "ask", "throttle"],
        ["clamp", ["cut"]],
        ["clamp", "wran"],
        ["clamp", 3],
    ],
)
def test_what_is_no_order(action: Any) -> None:
    """The error says what to write."""
    with pytest.raises(af.ConfigurationError, match="on_exceed"):
        Budget.parse("$5", name="b", on_exceed=action)


def test_somebody_who_is_asked_has_to_be_found() -> None:
    """As without a list."""
    with pytest.raises(af.ConfigurationError, match="needs a name"):
        af.budget("$5", on_exceed=["clamp", "ask"])


def test_an_order_in_the_configuration_file(
    tmp_path: Path, wire: Wire, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standing budget has it as a list."""
    limit = at_most(CHEAP, 200)
    (tmp_path / "aifinops.toml").write_text(
        f'ledger = "memory"\n[[budgets]]\nlimit = {{ USD = "{limit}" }}\nname = "all"\nmatch = {{}}\n'
        f'on_exceed = [{{ downgrade = {{ "{DEAR}" = "{CHEAP}" }} }}, "clamp", "raise"]\nstore = "memory"\n'
    )
    monkeypatch.chdir(tmp_path)
    af.init(ledger="memory")
    create(client)
    assert sent(wire) == (CHEAP, 200)


# --- a property --------------------------------------------------------------------------------------------------------------

_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1-nano")
_SMALLER = st.lists(
    st.sampled_from(
        [{"downgrade": {"gpt-4o": "gpt-4o-mini", "gpt-4o-mini": "gpt-4.1-nano"}}, "clamp", {"clamp": 200}, "cut"]
    ),
    min_size=1,
    max_size=4,
)
_CALLS = st.lists(
    st.tuples(st.sampled_from(_MODELS), st.integers(1, 3000), st.floats(0, 1), st.booleans()), max_size=12
)


def spent_of(limit: Decimal, on_exceed: Any, calls: list[tuple[str, int, float, bool]]) -> tuple[Decimal, int]:
    """(what calls cost that use a part of their output limit, how many were made) under a budget; each is within its own bound."""
    opener, made = Calls(OPENAI), 0
    route = OPENAI.routes["/chat/completions"]
    target = ("openai", {"server.address": "127.0.0.1", "server.port": 1})
    with af.budget({"USD": limit}, on_exceed=on_exceed, max_wait=0) as budget:
        for model, output, share, stream in calls:
            body = {"model": model, "messages": ASK, "max_tokens": output}
            try:
                opened = opener.open_at(target, "/chat/completions", route, body, stream=stream, model="", how=How())
            except af.BudgetExceeded:
                continue
            assert opened is not None
            call = opened.invocation.call
            assert call.max_output is not None
            assert call.max_output <= output
            most = call.max_output if call.start is None else min(call.max_output, call.start)
            opened.invocation.leave()
            opened.invocation.settle(Reading({"input_tokens": 5, "output_tokens": int(most * share)}))
            made += 1
        assert budget.reserved == 0
        return Decimal(budget.spent), made


@settings(max_examples=150, deadline=None)
@given(_SMALLER, st.sampled_from(["raise", "throttle", None]), st.integers(1, 20_000), _CALLS)
def test_no_order_of_actions_is_above_the_limit(
    smaller: list[Any], last: str | None, micros: int, calls: list[tuple[str, int, float, bool]]
) -> None:
    """An order lets nothing through that its last action would not: the limit holds, whatever was tried before."""
    af.init(ledger="memory")
    limit = Decimal(micros) / 10**6
    spent, _ = spent_of(limit, [*smaller, *([last] if last else [])], calls)
    assert spent <= limit


@settings(max_examples=60, deadline=None)
@given(_SMALLER, st.integers(1, 20_000), _CALLS)
def test_an_order_that_warns_lets_no_more_through_than_a_warning(
    smaller: list[Any], micros: int, calls: list[tuple[str, int, float, bool]]
) -> None:
    """Every call is made, none dearer than without what was tried before."""
    af.init(ledger="memory")
    limit = Decimal(micros) / 10**6
    spent, made = spent_of(limit, [*smaller, "warn"], calls)
    alone, all_of_them = spent_of(limit, "warn", calls)
    assert made == all_of_them == len(calls)
    assert spent <= alone


def test_threads_under_an_order_stay_within_the_limit() -> None:
    """The provider's bill is the judge."""
    import contextlib
    import threading

    openai = pytest.importorskip("openai")
    af.init(ledger="memory")
    af.instrument("openai")
    with (
        FakeProvider(words=200) as server,
        openai.OpenAI(base_url=server.base_url, api_key="x") as client,
        af.budget("$0.002", on_exceed=[DOWN, "clamp"], max_wait=5) as budget,
    ):

        def work() -> None:
            with contextlib.suppress(af.BudgetExceeded):
                for _ in range(20):
                    client.chat.completions.create(model=DEAR, messages=ASK)

        threads = [threading.Thread(target=af.bind(work)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert budget.reserved == 0
        assert Decimal("0.001") < budget.spent <= Decimal("0.002")
    af.uninstrument()
