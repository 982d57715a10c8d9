"""Budgets that change a call for which they have no room: what is sent, what is recorded, and what the caller sees of it."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import aifinops as af
from aifinops import runtime
from aifinops.charges import Charge
from aifinops.telemetry import names
from aifinops.testing import FakeProvider, capture_charges
from aifinops.testing.wire import Wire

pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude:DeprecationWarning")

ASK: Any = [{"role": "user", "content": "hi"}]
DOWN = {"downgrade": {"gpt-5": "gpt-5-mini", "gpt-5-mini": "gpt-5-nano"}}
CHAT = {
    "id": "c1", "object": "chat.completion", "created": 1794304800,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}  # fmt: skip
MESSAGE = {
    "id": "c1", "type": "message", "role": "assistant", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 5, "output_tokens": 2},
}  # fmt: skip

# library -> (module, class, path, a dear model, a cheap one, where its host is another's, field that its limit goes into)
LIBRARIES: dict[str, tuple[str, str, str, str, str, str]] = {
    "openai": ("openai", "OpenAI", "/chat/completions", "gpt-4o", "gpt-4o-mini", "max_completion_tokens"),
    "anthropic": ("anthropic", "Anthropic", "/v1/messages", "claude-opus-4-1", "claude-haiku-4-5", "max_tokens"),
    "groq": ("groq", "Groq", "/openai/v1/chat/completions", "llama-3.3-70b-versatile", "llama-3.1-8b-instant", "max_completion_tokens"),
    "together": (
        "together", "Together", "/v1/chat/completions", "meta-llama/Llama-3.3-70B-Instruct-Turbo", "meta-llama/Meta-Llama-3-8B-Instruct-Turbo",
        "max_tokens",
    ),
    "cerebras": ("cerebras.cloud.sdk", "Cerebras", "/v1/chat/completions", "gpt-oss-120b", "llama3.1-8b", "max_completion_tokens"),
}  # fmt: skip


@pytest.fixture
def openai() -> Any:
    return pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def metered() -> Iterator[None]:
    af.init(ledger="memory")
    yield
    af.uninstrument()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


def client_of(name: str, wire: Wire, prefix: str = "") -> Any:
    module, kind, path, *_ = LIBRARIES[name]
    loaded = pytest.importorskip(module)
    af.instrument(name)
    wire.answers[f"POST {path}"] = lambda: _said(name, wire)
    more = {"warm_tcp_connection": False} if name == "cerebras" else {}
    return getattr(importlib.import_module(loaded.__name__), prefix + kind)(
        base_url=wire.url, api_key="test", max_retries=0, **more
    )


def _said(name: str, wire: Wire) -> dict[str, Any]:
    return {**(MESSAGE if name == "anthropic" else CHAT), "model": json.loads(wire.asked[-1][1])["model"]}


def create(name: str, client: Any, **more: Any) -> Any:
    ask = {"model": LIBRARIES[name][3], "messages": ASK, **more}
    return client.messages.create(**ask) if name == "anthropic" else client.chat.completions.create(**ask)


def asked(wire: Wire) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in wire.asked]


def at_most(model: str, provider: str, output: int) -> Decimal:
    cost = af.estimate(model, provider=provider, messages=ASK, max_tokens=output)
    assert cost.upper is not None
    return cost.upper


def hold(limit: Decimal, **more: Any) -> Any:
    return af.budget({"USD": limit}, **more)


# --- a cheaper model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_call_that_does_not_fit_is_made_with_the_cheaper_model(name: str, wire: Wire) -> None:
    """Of each library: what is sent names the other model, what is charged is its price, and the request of the caller stays his."""
    dear, cheap = LIBRARIES[name][3:5]
    room = (at_most(dear, name, 300) + at_most(cheap, name, 300)) / 2
    with (
        client_of(name, wire) as client,
        capture_charges() as charges,
        hold(room, on_exceed={"downgrade": {dear: cheap}}) as budget,
    ):
        answer = create(name, client, max_tokens=300)
    (charge,) = charges
    assert [body["model"] for body in asked(wire)] == [cheap]
    assert answer.model == charge.model == cheap
    assert charge.tags["asked_model"] == dear
    assert charge.tags["budget_action"] == "downgrade"
    price = af.price(cheap, provider=name, input_tokens=5, output_tokens=2)
    assert budget.spent == price.amount
    assert budget.reserved == 0


@pytest.mark.parametrize("name", LIBRARIES)
async def test_an_async_call_of_each_library_is_made_with_the_cheaper_model(name: str, wire: Wire) -> None:
    """The same in the other colour."""
    dear, cheap = LIBRARIES[name][3:5]
    room = (at_most(dear, name, 300) + at_most(cheap, name, 300)) / 2
    async with client_of(name, wire, "Async") as client, hold(room, on_exceed={"downgrade": {dear: cheap}}):
        answer = await create(name, client, max_tokens=300)
    assert answer.model == asked(wire)[0]["model"] == cheap


def test_several_steps_down_and_then_nothing(openai: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first model of a chain that fits is used; each way down is logged once; below the last one the budget raises."""
    said: list[str] = []
    monkeypatch.setattr("aifinops.budgets.guard.logger.warning", lambda text, *more: said.append(text % more))
    af.instrument("openai")
    ask = {"model": "gpt-5", "messages": ASK, "max_completion_tokens": 40}
    with (
        FakeProvider(words=20) as server,
        openai.OpenAI(base_url=server.base_url, api_key="x") as client,
        capture_charges() as charges,
        af.budget("$0.0005", on_exceed=DOWN) as budget,
        pytest.raises(af.BudgetExceeded, match="no model to use instead of 'gpt-5-nano'"),
    ):
        deque((client.chat.completions.create(**ask) for _ in range(50)), maxlen=0)
    used = [line.model for line in server.bill]
    assert used == [charge.model for charge in charges] == sorted(used)
    assert set(used) == {"gpt-5-mini", "gpt-5-nano"}
    assert {charge.tags["asked_model"] for charge in charges} == {"gpt-5"}
    assert budget.spent <= Decimal("0.0005")
    used_instead = [text for text in said if "in place of" in text]
    assert [text.partition("up to ")[2].partition(". ")[2] for text in used_instead] == [
        "'gpt-5-mini' is used in place of 'gpt-5'.",
        "'gpt-5-nano' is used in place of 'gpt-5-mini'.",
    ]


def test_the_span_says_what_was_sent_and_what_was_asked(openai: Any) -> None:
    """`gen_ai.request.model` is what the provider got; what the caller asked for, and which budget changed it, stand beside."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    af.instrument("openai")
    with (
        FakeProvider() as server,
        openai.OpenAI(base_url=server.base_url, api_key="x") as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
        patch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
        af.init(ledger="memory", spans="emit")
        with af.budget("$0.0005", name="small", per="run", on_exceed=DOWN):
            client.chat.completions.create(model="gpt-5", messages=ASK, max_completion_tokens=40)
        with af.budget("$0.0005", on_exceed="clamp"):
            client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
    first, second = (dict(span.attributes or {}) for span in exporter.get_finished_spans())
    assert first[names.REQUEST_MODEL] == "gpt-5-mini"
    assert first[names.ASKED_MODEL] == "gpt-5"
    assert (first[names.BUDGET_ACTION], first[names.BUDGET_ID]) == ("downgrade", "small")
    assert second[names.BUDGET_ACTION] == "clamp"
    assert second[names.ASKED_OUTPUT] == "unlimited"
    assert 16 <= int(str(second[names.REQUEST_MAX_TOKENS])) < 1000


FEATURES: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, "a format for its answer"),
    ({"response_format": {"type": "json_object"}}, "a format for its answer"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}, "pictures or files"),
]  # fmt: skip


@pytest.mark.parametrize(("request_of", "what"), FEATURES)
def test_what_a_model_may_not_do_is_not_asked_of_it(
    openai: Any, wire: Wire, request_of: dict[str, Any], what: str
) -> None:
    """Tools, formats and pictures keep a request from another model, and the error says how to allow it; so it then is."""
    ask = {"model": "gpt-5", "messages": ASK, "max_completion_tokens": 400, **request_of}
    with client_of("openai", wire) as client:
        with (
            hold(at_most("gpt-5", "openai", 300), on_exceed=DOWN),
            pytest.raises(af.BudgetExceeded, match=f"The request has {what}, which 'gpt-5-mini' may not take"),
        ):
            client.chat.completions.create(**ask)
        assert not wire.asked
        with hold(at_most("gpt-5", "openai", 300), on_exceed={**DOWN, "any": True}):
            client.chat.completions.create(**ask)
    assert asked(wire)[0] == {**ask, "model": "gpt-5-mini"}


def test_raw_streamed_and_parsed_answers_are_what_they_are_without_us(openai: Any) -> None:
    """Every way of asking gets objects of the same types, of the other model; in both a stream and a raw answer."""
    pydantic = pytest.importorskip("pydantic")

    class City(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        name: str

    af.instrument("openai")
    ask = {"model": "gpt-5", "messages": ASK, "max_completion_tokens": 400}
    with (
        FakeProvider() as server,
        openai.OpenAI(base_url=server.base_url, api_key="x") as client,
        hold(at_most("gpt-5", "openai", 300), on_exceed={**DOWN, "any": True}),
    ):
        raw = client.chat.completions.with_raw_response.create(**ask)
        assert raw.parse().model == "gpt-5-mini"
        assert raw.http_response.status_code == 200
        events = list(client.chat.completions.create(stream=True, **ask))
        assert {event.model for event in events} == {"gpt-5-mini"}
        assert all(event.choices for event in events)
        parsed = client.chat.completions.parse(response_format=City, **ask)
        assert isinstance(parsed.choices[0].message.parsed, City)
        assert parsed.model == "gpt-5-mini"
        said = client.responses.create(model="gpt-5", input="hi", max_output_tokens=400)
        assert said.model == "gpt-5-mini"
    assert {line.model for line in server.bill} == {"gpt-5-mini"}


def test_what_the_caller_put_beside_the_body_is_changed_there(openai: Any, wire: Wire) -> None:
    """`extra_body` is laid over the body, so that is where a limit in it is lowered; the caller's dict stays as it is."""
    extra = {"max_completion_tokens": 9000, "more": 1}
    with client_of("openai", wire) as client, hold(at_most("gpt-4o", "openai", 300), on_exceed="clamp"):
        client.chat.completions.create(model="gpt-4o", messages=ASK, extra_body=extra)
    assert 16 <= asked(wire)[0]["max_completion_tokens"] <= 300
    assert extra == {"max_completion_tokens": 9000, "more": 1}


# --- a lower output limit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_output_limit_is_lowered_to_what_remains_buys(name: str, wire: Wire) -> None:
    """Of each library, in the field that it had or the one that its provider knows; one token more would not have fitted."""
    model, field = LIBRARIES[name][3], LIBRARIES[name][5]
    room = at_most(model, name, 300)
    limits: list[dict[str, Any]] = [{"max_tokens": 5000}] if name == "anthropic" else [{}, {"max_tokens": 5000}]
    with client_of(name, wire) as client:
        for limit in limits:
            with capture_charges() as charges, hold(room, on_exceed="clamp") as budget:
                create(name, client, **limit)
            sent, (charge,) = asked(wire)[-1], charges
            (given,) = (sent[key] for key in ("max_tokens", "max_completion_tokens") if key in sent)
            assert (next(iter(limit), field)) in sent
            assert _fits(model, name, given, room)
            assert not _fits(model, name, given + 1, room)
            assert charge.tags["asked_output"] == str(limit.get("max_tokens", "unlimited"))
            assert budget.reserved == 0


def _fits(model: str, provider: str, output: int, room: Decimal) -> bool:
    # What is held is the bound of the request as it is sent, whose limit is in it; it is what `estimate` says for the same.
    return at_most(model, provider, output) <= room


@pytest.mark.parametrize("limit", [{"tokens": 400}, {"output_tokens": 100}, {"USD": "0.5", "tokens": 400}])
def test_a_limit_in_tokens_is_clamped_to_as_well(openai: Any, wire: Wire, limit: dict[str, Any]) -> None:
    """Whatever unit has no room decides."""
    with client_of("openai", wire) as client, af.budget(limit, on_exceed="clamp"):
        client.chat.completions.create(model="gpt-4o-mini", messages=ASK, n=2)
    (sent,) = asked(wire)
    assert 16 <= sent["max_completion_tokens"] <= int(limit.get("output_tokens", 400)) // 2


def test_below_the_least_output_the_budget_raises(openai: Any, wire: Wire) -> None:
    """16 tokens, or as many as were said; and where the output has no part in what ran out."""
    room = at_most("gpt-4o", "openai", 100)
    with client_of("openai", wire) as client:
        with hold(room, on_exceed={"clamp": 200}), pytest.raises(af.BudgetExceeded, match="not buy 200 output tokens"):
            client.chat.completions.create(model="gpt-4o", messages=ASK)
        with hold(Decimal("0.0000001"), on_exceed="clamp"), pytest.raises(af.BudgetExceeded, match="not buy 16 output"):
            client.chat.completions.create(model="gpt-4o", messages=ASK)
        with af.budget("0 requests", on_exceed="clamp"), pytest.raises(af.BudgetExceeded, match="has no part in"):
            client.chat.completions.create(model="gpt-4o", messages=ASK)
    assert not wire.asked


def test_a_limit_stays_above_what_is_to_be_thought(wire: Wire) -> None:
    """Anthropic refuses a request whose limit is not above its budget of thoughts, so it is never lowered below that."""
    ask = {"max_tokens": 8000, "thinking": {"type": "enabled", "budget_tokens": 2000}}
    with client_of("anthropic", wire) as client:
        with hold(at_most("claude-opus-4-1", "anthropic", 3000), on_exceed="clamp"):
            create("anthropic", client, **ask)
        with (
            hold(at_most("claude-opus-4-1", "anthropic", 1500), on_exceed="clamp"),
            pytest.raises(af.BudgetExceeded, match="not buy 2001 output tokens"),
        ):
            create("anthropic", client, **ask)
    (sent,) = asked(wire)
    assert 2000 < sent["max_tokens"] <= 3000


def test_calls_that_cannot_be_changed_are_refused_and_say_so() -> None:
    """A call whose library has no way to change what is sent."""
    call = af.metering.Call("openai", "chat", "gpt-4o", {"messages": ASK})  # type: ignore[attr-defined]
    for action in (DOWN, "clamp"):
        with af.budget("$0.001", on_exceed=action), pytest.raises(af.BudgetExceeded, match="cannot change calls that"):
            af.metering.begin(call)  # type: ignore[attr-defined]


def charges_of(model: str, found: list[Charge]) -> list[Charge]:
    return [charge for charge in found if charge.model == model]


def test_budgets_around_each_other_each_have_their_say(openai: Any, wire: Wire) -> None:
    """The outer one has a cheaper model used, the inner one lowers the limit, and the call fits both."""
    with (
        client_of("openai", wire) as client,
        capture_charges() as charges,
        hold(at_most("gpt-4o", "openai", 300), on_exceed={"downgrade": {"gpt-4o": "gpt-4o-mini"}}),
        af.budget("200 output_tokens", on_exceed="clamp"),
    ):
        client.chat.completions.create(model="gpt-4o", messages=ASK, max_tokens=500)
    (sent,), (charge,) = asked(wire), charges_of("gpt-4o-mini", charges)
    assert (sent["model"], sent["max_tokens"]) == ("gpt-4o-mini", 200)
    assert (charge.tags["asked_model"], charge.tags["asked_output"]) == ("gpt-4o", "500")


def test_a_warning_is_logged_once(openai: Any, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand lowered limits are one line."""
    caplog.set_level(logging.WARNING, "aifinops")
    with client_of("openai", wire) as client, hold(at_most("gpt-4o", "openai", 300), on_exceed="clamp"):
        for _ in range(3):
            client.chat.completions.create(model="gpt-4o", messages=ASK)
    assert sum("lowered to what remains buys" in record.getMessage() for record in caplog.records) == 1


def test_budgets_that_send_a_call_to_and_fro_end(openai: Any, wire: Wire) -> None:
    """One wants another model, the other wants the first one again: neither has room, so the call is refused."""
    room = 2 * at_most("gpt-4o-mini", "openai", 100)
    with (
        client_of("openai", wire) as client,
        hold(room, on_exceed={"downgrade": {"gpt-4o": "gpt-4o-mini"}}),
        af.budget("5 output_tokens", on_exceed={"downgrade": {"gpt-4o-mini": "gpt-4o"}}),
        pytest.raises(af.BudgetExceeded, match="change it again and again"),
    ):
        client.chat.completions.create(model="gpt-4o", messages=ASK, max_tokens=100)
    assert not wire.asked


def test_a_try_after_a_failed_one_is_not_changed(openai: Any, wire: Wire) -> None:
    """What may have been billed is spent, and the request of the next try is made already: the budget raises and says so."""
    wire.during = lambda: time.sleep(1)
    with (
        client_of("openai", wire).with_options(max_retries=1, timeout=0.2) as client,
        hold(at_most("gpt-4o", "openai", 300), on_exceed="clamp") as budget,
    ):
        with pytest.raises(af.BudgetExceeded, match="under way, so on_exceed cannot change it"):
            client.chat.completions.create(model="gpt-4o", messages=ASK)
        assert budget.reserved == 0
        assert budget.spent == budget.limit
    assert len(wire.asked) == 1


def test_what_cannot_be_changed_after_all_is_not_sent(openai: Any, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of ours never sends the dear request on the hold of the cheap one."""

    def failing(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr("aifinops.integrations.seams.stainless.with_json", failing)
    with client_of("openai", wire) as client, hold(at_most("gpt-4o", "openai", 300), on_exceed="clamp") as budget:
        with pytest.raises(af.BudgetExceeded):
            client.chat.completions.create(model="gpt-4o", messages=ASK)
        assert (budget.reserved, budget.spent) == (0, 0)
    assert not wire.asked


@pytest.mark.parametrize("workers", [16])
def test_threads_share_what_a_clamp_leaves(openai: Any, workers: int) -> None:
    """Whatever each of them gets, what the provider bills is within the limit."""
    af.instrument("openai")
    with (
        FakeProvider(words=200) as server,
        openai.OpenAI(base_url=server.base_url, api_key="x") as client,
        af.budget("$0.001", on_exceed="clamp", max_wait=5) as budget,
    ):

        def work() -> None:
            with contextlib.suppress(af.BudgetExceeded):
                for _ in range(20):
                    client.chat.completions.create(model="gpt-4o-mini", messages=ASK)

        threads = [threading.Thread(target=af.bind(work)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert budget.reserved == 0
        spent = budget.spent
    totals = server.usage_totals()
    bill = af.price(
        "gpt-4o-mini", provider="openai", input_tokens=totals["input_tokens"], output_tokens=totals["output_tokens"]
    )
    assert bill.amount is not None
    assert Decimal("0.0009") < bill.amount <= spent <= Decimal("0.001")


@pytest.mark.parametrize("action", ["clamp", "cut", DOWN, {"ask": lambda _: False}], ids=str)
def test_a_call_that_is_refused_after_all_is_witnessed_once(
    openai: Any, wire: Wire, monkeypatch: pytest.MonkeyPatch, action: Any
) -> None:
    """Whatever the budget tried before it raised: the log of decisions has that it did."""
    seen: list[tuple[Any, ...]] = []
    with client_of("openai", wire) as client, hold(Decimal("0.0000001"), on_exceed=action):
        monkeypatch.setattr(runtime.get().guard.witness, "refused", lambda *args: seen.append(args))
        with pytest.raises(af.BudgetExceeded):
            client.chat.completions.create(model="gpt-4o", messages=ASK)
    ((_, node, error, asked, *_),) = seen
    assert node.unit == "USD"
    assert asked > node.limit
    assert isinstance(error, af.BudgetExceeded)
