"""Dialects: each row of the table as a snapshot, money in USD only, what does not go together is an error, exporters keep working."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import aifinops
from aifinops import config
from aifinops.charges import Charge
from aifinops.errors import ConfigurationError
from aifinops.telemetry import attributes, dialects, exporting
from aifinops.telemetry.delivery import lost

CHARGE: dict[str, Any] = {
    "id": "r1", "at": 1, "provider": "anthropic", "operation": "chat", "model": "claude-sonnet-4-5", "amount": 5_300_000, "basis": "priced",
    "quantities": {"input_tokens": 400, "cache_read_tokens": 500, "cache_write_tokens": 100, "output_tokens": 80, "reasoning_tokens": 120,
                   "web_search_requests": 1},
    "lines": (("input_tokens", 1_000_000), ("cache_read_tokens", 500_000), ("cache_write_tokens", 300_000), ("output_tokens", 800_000),
              ("reasoning_tokens", 1_200_000), ("web_search_requests", 1_500_000)),
    "response_model": "claude-sonnet-4-5-20250929", "response_id": "msg_1", "tags": {"user": "u7", "conversation": "c9"},
}  # fmt: skip
"""1,000 tokens in and 200 out of every kind, and a search: 0.0018 + 0.002 + 0.0015 USD."""


def span_of(*, compat: bool = False, latest: bool = False, **changed: Any) -> dict[str, Any]:
    return attributes.inference(Charge(**{**CHARGE, **changed}), {}, compat=compat, latest=latest)


LANGFUSE_USAGE = {
    "input": 400,
    "input_cached_tokens": 500,
    "input_cache_creation": 100,
    "output": 80,
    "output_reasoning_tokens": 120,
    "total": 1200,
}
ROWS: dict[str, dict[str, Any]] = {
    "compat": {"gen_ai.usage.cost": 0.0053},
    "otel-cost": {"gen_ai.usage.cost.amount": 0.0053, "gen_ai.usage.cost.currency": "USD", "gen_ai.usage.cost.source": "local"},
    "langfuse": {
        "langfuse.observation.cost_details": {
            "input": 0.001, "input_cached_tokens": 0.0005, "input_cache_creation": 0.0003, "output": 0.002, "total": 0.0053,
        },
        "langfuse.observation.usage_details": LANGFUSE_USAGE,
        "user.id": "u7", "session.id": "c9",
    },
    "openinference": {
        "openinference.span.kind": "LLM", "llm.model_name": "claude-sonnet-4-5-20250929", "llm.provider": "anthropic",
        "llm.token_count.prompt": 1000, "llm.token_count.completion": 200, "llm.token_count.total": 1200,
        "llm.token_count.prompt_details.cache_read": 500, "llm.token_count.prompt_details.cache_write": 100,
        "llm.token_count.completion_details.reasoning": 120, "llm.cost.prompt": 0.0018, "llm.cost.completion": 0.002, "llm.cost.total": 0.0053,
        "llm.cost.prompt_details.input": 0.001, "llm.cost.prompt_details.cache_read": 0.0005, "llm.cost.prompt_details.cache_write": 0.0003,
        "llm.cost.completion_details.output": 0.0008, "llm.cost.completion_details.reasoning": 0.0012,
    },
    "logfire": {"operation.cost": 0.0053},
    "mlflow": {
        "mlflow.llm.cost": {"input_cost": 0.0018, "output_cost": 0.002, "total_cost": 0.0053},
        "mlflow.chat.tokenUsage": {
            "input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200, "cache_read_input_tokens": 500, "cache_creation_input_tokens": 100,
        },
        "mlflow.llm.model": "claude-sonnet-4-5-20250929",
    },
    "sentry": {"gen_ai.cost.total_tokens": 0.0053, "gen_ai.cost.input_tokens": 0.0018, "gen_ai.cost.output_tokens": 0.002},
    "langsmith": {
        "langsmith.span.kind": "llm",
        "langsmith.usage_metadata": {
            "input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200, "input_cost": 0.0018, "output_cost": 0.002, "total_cost": 0.0053,
            "input_token_details": {"cache_read": 500, "cache_creation": 100}, "output_token_details": {"reasoning": 120},
        },
    },
    "latitude": {"gen_ai.usage.input_cost": 0.0018, "gen_ai.usage.output_cost": 0.002, "gen_ai.usage.total_cost": 0.0053},
    "braintrust": {
        "braintrust.metrics": {
            "prompt_tokens": 1000, "completion_tokens": 200, "tokens": 1200, "prompt_cached_tokens": 500, "prompt_cache_creation_tokens": 100,
            "completion_reasoning_tokens": 120, "estimated_cost": 0.0053,
        },
    },
    "openlit": {}, "agento11y": {}, "strict": {},
}  # fmt: skip
MONEY = ("cost", "_usd")


def read(values: dict[str, Any]) -> dict[str, Any]:
    """With JSON texts as the objects that they are."""
    return {
        key: json.loads(value) if isinstance(value, str) and value[:1] == "{" else value
        for key, value in values.items()
    }


def added(span: dict[str, Any], *names: str) -> dict[str, Any]:
    spoken = dialects.spoken(span, names)
    return {} if spoken is None else read({key: value for key, value in spoken.items() if key not in span})


@pytest.mark.parametrize("latest", [False, True], ids=["1.41.1", "latest"])
@pytest.mark.parametrize("name", dialects.DIALECTS)
def test_each_dialect_adds_its_attributes(name: str, latest: bool) -> None:
    """The row as a snapshot, whichever conventions the span itself follows; what it says already stays."""
    span = span_of(latest=latest)
    assert added(span, name) == ROWS[name]
    spoken = dialects.spoken(span, [name]) or span
    assert {key: spoken[key] for key in span} == span


def money(found: Any) -> list[str]:
    """Keys that tell of money, at any depth."""
    if not isinstance(found, dict):
        return []
    return [key for key in found if any(word in key for word in MONEY) and not isinstance(found[key], dict)] + [
        inner for value in found.values() for inner in money(value)
    ]


@pytest.mark.parametrize("name", dialects.DIALECTS)
def test_money_that_is_no_dollars_is_told_in_no_dialect_that_means_dollars(name: str) -> None:
    """Euros: tokens and names as ever, no cost; only the dialect that tells its currency tells them."""
    got = added(span_of(currency="EUR"), name)
    if name == "otel-cost":
        assert got == {**ROWS[name], "gen_ai.usage.cost.currency": "EUR"}
    else:
        assert money(got) == []
        assert {key for key in got if "cost" not in key} == {key for key in ROWS[name] if "cost" not in key}


@pytest.mark.parametrize("name", dialects.DIALECTS)
def test_an_unknown_price_is_no_cost_in_any_dialect(name: str) -> None:
    """Tokens are there, and nothing that says zero."""
    assert money(added(span_of(amount=None, basis="unknown", lines=()), name)) == []


def test_a_sum_without_parts_is_told_as_a_sum() -> None:
    """Where the provider says only what a call has cost, nothing is made up about its parts."""
    got = added(span_of(lines=(), basis="reported"), "openinference", "sentry")
    assert {key: value for key, value in got.items() if "cost" in key} == {
        "llm.cost.total": 0.0053,
        "gen_ai.cost.total_tokens": 0.0053,
    }


def test_otel_cost_takes_the_scalar_away() -> None:
    """One name is never an object and a scalar."""
    spoken = dialects.spoken(span_of(compat=True), ["otel-cost"])
    assert spoken is not None
    assert "gen_ai.usage.cost" not in spoken


def test_strict_leaves_the_conventions_and_ours() -> None:
    """What others and dialects have put on the span of a call is not exported; what is no call is left alone."""
    foreign = {
        "llm.token_count.prompt": 1,
        "traceloop.span.kind": "llm",
        "gen_ai.usage.total_tokens": 3,
        "http.request.method": "POST",
    }
    span = {**span_of(compat=True), **foreign}
    assert dialects.spoken(span, ["strict"]) == {**span_of(), "http.request.method": "POST"}
    assert dialects.spoken(foreign, ["strict"]) is None


def test_strict_knows_the_names_of_the_conventions() -> None:
    """Every attribute of the installed conventions passes, but for the GenAI ones that they call deprecated."""
    package = importlib.import_module("opentelemetry.semconv._incubating.attributes")
    found = {
        value
        for module in pkgutil.iter_modules(package.__path__)
        for key, value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).items()
        if key.isupper() and isinstance(value, str)
    }
    old = {name for name in found if name.startswith("gen_ai.openai.")} | {
        "gen_ai.completion", "gen_ai.prompt", "gen_ai.system", "gen_ai.usage.completion_tokens", "gen_ai.usage.prompt_tokens",
    }  # fmt: skip
    assert len(found) > 500
    assert {name for name in found if not dialects._is_standard(name)} <= old


def test_an_embedding_is_told_as_one() -> None:
    """It has no tokens out, and a kind of its own."""
    got = added(
        span_of(operation="embeddings", quantities={"input_tokens": 9}, lines=(("input_tokens", 5_300_000),)),
        "openinference",
    )
    assert got["openinference.span.kind"] == "EMBEDDING"
    assert got["llm.token_count.total"] == 9
    assert "llm.token_count.completion" not in got


# --- settings ----------------------------------------------------------------------------------------------------------


def test_the_settings_know_the_table() -> None:
    """Every row can be asked for, and every clash is one of both."""
    assert set(config.DIALECTS) == set(dialects.DIALECTS) == set(ROWS)
    for name, clashes in config.DIALECTS.items():
        assert all(name in config.DIALECTS[other] for other in clashes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("compat,otel-cost", "do not go together"),
        ("otel-cost, openlit", "do not go together"),
        ("langfuse,otel-cost", "do not go together"),
        ("strict,langfuse", "strict takes away what langfuse would add"),
        ("langfus", "'langfus' is not one of compat"),
    ],
)
def test_what_does_not_go_together_is_an_error(text: str, said: str) -> None:
    """From the environment, from `init()` and of an exporter, and it says which."""
    with pytest.raises(ConfigurationError, match=said):
        config.load({}, {"AIFINOPS_DIALECTS": text})
    with pytest.raises(ConfigurationError, match=said):
        config.load({"dialects": text.split(",")}, {})
    with pytest.raises(ConfigurationError, match=said):
        aifinops.DialectExporter(InMemorySpanExporter(), text)


def test_none_and_lists_are_read() -> None:
    """`none` turns the default off; blanks do not matter."""
    assert config.load({}, {"AIFINOPS_DIALECTS": "none"}).dialects == ()
    assert config.load({}, {"AIFINOPS_DIALECTS": "langfuse, logfire"}).dialects == ("langfuse", "logfire")
    assert config.load({}, {}).dialects == ("compat",)


# --- exporters ---------------------------------------------------------------------------------------------------------


def exported(exporter: SpanExporter, values: dict[str, Any]) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span("chat", attributes=values).end()


def test_the_exporter_translates_a_copy() -> None:
    """Behind the wrapper the span speaks the dialect; another exporter of the same provider sees it as it was."""
    theirs, plain = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(aifinops.DialectExporter(theirs, ["sentry"])))
    provider.add_span_processor(SimpleSpanProcessor(plain))
    with provider.get_tracer("t").start_as_current_span("chat", attributes=span_of()) as span:
        span.add_event("first")
    (got,), (other,) = theirs.get_finished_spans(), plain.get_finished_spans()
    assert dict(got.attributes or {}) == {**span_of(), **ROWS["sentry"]}
    assert dict(other.attributes or {}) == span_of()
    assert (got.context, got.events[0].name, got.start_time) == (other.context, "first", other.start_time)


def test_the_usual_dialect_costs_the_exporter_nothing() -> None:
    """`compat` is on the span already; metrics have no attributes of spans: the very spans are passed on."""
    kept: list[Any] = []

    class Keeping(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            kept.append(spans)
            return SpanExportResult.SUCCESS

    spans = ["anything"]
    exporting.DialectExporter(Keeping(), ["openlit", "agento11y"]).export(spans)  # type: ignore[arg-type]
    assert kept == [spans]
    assert kept[0] is spans


def test_what_an_exporter_cannot_deliver_is_counted() -> None:
    """A failure counts its spans, an exception, too, and goes on; a success counts nothing."""

    class Failing(SpanExporter):
        answers: list[Any] = [SpanExportResult.SUCCESS, SpanExportResult.FAILURE, OSError("no route")]  # noqa: RUF012 - of one test

        def export(self, spans: Any) -> SpanExportResult:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

    lost.reset()
    exporter = exporting.counting(Failing(), "traces")
    exporter.export(["a"])
    exporter.export(["a", "b"])
    with pytest.raises(OSError, match="no route"):
        exporter.export(["a", "b", "c"])
    assert lost.counts() == {"traces": 5}
    lost.reset()
