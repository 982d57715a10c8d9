"""Spans: names, attributes, parents, sampling; late and ordinary ones are the same to whoever receives them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode

from aifinops.charges import Charge
from aifinops.telemetry import attributes, names
from aifinops.telemetry.spans import Spans, error_type, guarded_finish

START = 1_700_000_000_000_000_000


class Watching(SpanProcessor):
    """A processor that wants to see spans start: no late span may be made then."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started.append(span.name)


class Adding(Sampler):
    """A sampler that adds an attribute, as some do to say why."""

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {"sampler.rule": "r1"})

    def get_description(self) -> str:
        return "adding"


def provider(**options: Any) -> tuple[TracerProvider, InMemorySpanExporter]:
    made = TracerProvider(resource=Resource.create({"service.name": "t"}), shutdown_on_exit=False, **options)
    exporter = InMemorySpanExporter()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made, exporter


def charge(**values: Any) -> Charge:
    base: dict[str, Any] = {
        "id": "r1", "at": START, "provider": "openai", "operation": "chat", "model": "gpt-4o", "amount": 3_750_000, "basis": "priced",
        "quantities": {"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 80, "reasoning_tokens": 120},
        "lines": (("input_tokens", 1_000_000), ("cache_read_tokens", 750_000), ("output_tokens", 800_000), ("reasoning_tokens", 1_200_000)),
        "price_id": "p/openai/gpt-4o", "price_source": "list 1", "response_model": "gpt-4o-2024-08-06", "response_id": "chatcmpl-1",
        "tags": {"team": "search", "colour": "red"},
    }  # fmt: skip
    return Charge(**{**base, **values})


def one_call(made: TracerProvider, error: BaseException | None = None, fallback: Any = None) -> Any:
    spans = Spans("0", lambda: made)
    opened = spans.begin("chat gpt-4o", START, attributes.request("openai", "chat", "gpt-4o"), fallback)
    assert opened is not None
    with made.get_tracer("http").start_as_current_span("POST") as inner:
        inner_parent = getattr(inner, "parent", None)  # one that is not sampled has none to show
    values = attributes.inference(charge(), {names.SERVER_ADDRESS: "api.openai.com"}, compat=True)
    guarded_finish(opened, values, START + 10**9, error)
    assert not trace.get_current_span().get_span_context().is_valid
    return opened, inner_parent


LATE = {
    "plain": {},
    "on": {"sampler": ALWAYS_ON},
    "parent": {"sampler": ParentBased(ALWAYS_ON)},
    "adding": {"sampler": Adding()},
}
ORDINARY = {"limits": {"span_limits": SpanLimits(max_attribute_length=100)}}


@pytest.mark.parametrize("options", [*LATE.values(), *ORDINARY.values()], ids=[*LATE, *ORDINARY])
def test_span_has_the_contracts_name_kind_and_attributes(options: dict[str, Any]) -> None:
    """One CLIENT span with semantic-convention names, inclusive token totals and costs that add up."""
    made, exporter = provider(**options)
    opened, inner_parent = one_call(made)
    http, span = exporter.get_finished_spans()
    assert span.name == "chat gpt-4o"
    assert span.kind is SpanKind.CLIENT
    assert (span.start_time, span.end_time) == (START, START + 10**9)
    assert span.status.status_code is StatusCode.UNSET
    assert span.resource.attributes["service.name"] == "t"
    assert span.instrumentation_scope.name == "aifinops"
    assert f"{span.context.span_id:016x}" == opened.span_id
    assert f"{span.context.trace_id:032x}" == opened.trace_id
    assert inner_parent.span_id == span.context.span_id
    assert http.context.trace_id == span.context.trace_id
    got = dict(span.attributes)
    assert got.pop("sampler.rule", "r1") == "r1"
    assert got == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06", "gen_ai.response.id": "chatcmpl-1", "server.address": "api.openai.com",
        "gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 200, "gen_ai.usage.cache_read.input_tokens": 600,
        "gen_ai.usage.reasoning.output_tokens": 120, "gen_ai.usage.cost": 0.00375, "aifinops.record.id": "r1",
        "aifinops.cost.total": 0.00375, "aifinops.cost.currency": "USD", "aifinops.cost.basis": "priced",
        "aifinops.cost.source": "local", "aifinops.cost.input": 0.001, "aifinops.cost.cache_read": 0.00075,
        "aifinops.cost.output": pytest.approx(0.002), "aifinops.cost.reasoning": 0.0012, "aifinops.price.id": "p/openai/gpt-4o",
        "aifinops.price.version": "list 1", "aifinops.team": "search", "aifinops.tag.colour": "red",
    }  # fmt: skip


def test_processor_that_watches_starts_gets_them() -> None:
    """With such a processor the span is an ordinary one, started before the call."""
    made, exporter = provider()
    watching = Watching()
    one_call(made)
    made.add_span_processor(watching)
    one_call(made)
    assert watching.started == ["chat gpt-4o", "POST"]
    assert len(exporter.get_finished_spans()) == 4


def test_processor_added_later_is_noticed() -> None:
    """The same `Spans` object adapts when the application adds a processor."""
    made, _ = provider()
    spans = Spans("0", lambda: made)
    first = spans.begin("a", START, {})
    guarded_finish(first, {}, START, None)
    watching = Watching()
    made.add_span_processor(watching)
    guarded_finish(spans.begin("b", START, {}), {}, START, None)
    assert watching.started == ["b"]


def test_unsampled_call_has_ids_and_exports_nothing() -> None:
    """ALWAYS_OFF: nothing is exported, the ids are there for the ledger."""
    made, exporter = provider(sampler=ALWAYS_OFF)
    opened, _ = one_call(made)
    assert exporter.get_finished_spans() == ()
    assert int(opened.span_id, 16) > 0


def test_parent_is_the_current_span_or_the_fallback() -> None:
    """Inside a span it is the parent; in a thread that lost the context, the block's span is."""
    made, exporter = provider()
    with made.get_tracer("app").start_as_current_span("outer") as outer:
        spans = Spans("0", lambda: made)
        guarded_finish(spans.begin("inner", START, {}), {}, START, None)
        assert trace.get_current_span() is outer
    block = made.get_tracer("app").start_span("block")
    one_call(made, fallback=block)
    by_name = {span.name: span for span in exporter.get_finished_spans()}
    assert by_name["inner"].parent.span_id == outer.get_span_context().span_id
    assert by_name["chat gpt-4o"].parent.span_id == block.get_span_context().span_id


def test_error_sets_status_and_type() -> None:
    """The exception's class is `error.type`; its text stays out of the span."""
    made, exporter = provider()
    one_call(made, error=KeyError("secret"))
    span = exporter.get_finished_spans()[-1]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "KeyError"
    assert "secret" not in str(span.to_json())


def test_error_type_is_qualified_outside_builtins() -> None:
    """Low cardinality, and still to be told apart."""
    assert error_type(ValueError()) == "ValueError"
    assert error_type(json.JSONDecodeError("x", "", 0)) == "json.decoder.JSONDecodeError"


def test_unknown_cost_has_no_cost_attribute() -> None:
    """Unknown is never zero: only the basis says so."""
    got = attributes.inference(charge(amount=None, basis="unknown", lines=()), {}, compat=True)
    assert got["aifinops.cost.basis"] == "unknown_price"
    assert not [key for key in got if key.startswith("aifinops.cost.") and key != "aifinops.cost.basis"]
    assert "gen_ai.usage.cost" not in got


def test_other_currency_has_no_usd_attribute() -> None:
    """`gen_ai.usage.cost` is USD for everybody who reads it."""
    got = attributes.inference(charge(currency="EUR"), {}, compat=True)
    assert got["aifinops.cost.currency"] == "EUR"
    assert "gen_ai.usage.cost" not in got


def test_cache_write_split_and_tool_calls_are_kept() -> None:
    """What the conventions cannot say is under our own names."""
    counts = {"input_tokens": 1, "cache_write_tokens": 2, "cache_write_1h_tokens": 3, "web_search_requests": 4}
    got = attributes.inference(charge(quantities=counts, stream=True, tier="flex"), {}, compat=False)
    assert got["gen_ai.usage.input_tokens"] == 6
    assert got["gen_ai.usage.cache_creation.input_tokens"] == 5
    assert got["aifinops.usage.cache_write_5m.input_tokens"] == 2
    assert got["aifinops.usage.cache_write_1h.input_tokens"] == 3
    assert got["aifinops.usage.tool_calls.web_search"] == 4
    assert got["gen_ai.request.stream"] is True
    assert got["aifinops.price.tier"] == "flex"
    assert "gen_ai.usage.cost" not in got


def test_the_newest_conventions_have_other_names_and_modalities() -> None:
    """Written cache entries under their new name, and each inclusive total by modality; video has none there."""
    counts = {
        "input_tokens": 10, "cache_read_tokens": 20, "cache_write_tokens": 2, "cache_write_1h_tokens": 3, "input_audio_tokens": 5,
        "cache_read_audio_tokens": 4, "input_image_tokens": 7, "input_video_tokens": 9, "output_tokens": 30, "reasoning_tokens": 6,
        "output_audio_tokens": 8, "output_image_tokens": 11,
    }  # fmt: skip
    got = attributes.inference(charge(quantities=counts), {}, compat=False, latest=True)
    assert {key: value for key, value in got.items() if key.startswith("gen_ai.usage.")} == {
        "gen_ai.usage.input_tokens": 60, "gen_ai.usage.output_tokens": 55, "gen_ai.usage.reasoning.output_tokens": 6,
        "gen_ai.usage.cache_read.input_tokens": 24, "gen_ai.usage.cache_write.input_tokens": 5,
        "gen_ai.usage.text.input_tokens": 35, "gen_ai.usage.text.cache_read.input_tokens": 20, "gen_ai.usage.text.output_tokens": 36,
        "gen_ai.usage.audio.input_tokens": 9, "gen_ai.usage.audio.cache_read.input_tokens": 4, "gen_ai.usage.audio.output_tokens": 8,
        "gen_ai.usage.image.input_tokens": 7, "gen_ai.usage.image.output_tokens": 11,
    }  # fmt: skip
    assert got["aifinops.usage.cache_write_5m.input_tokens"] == 2
    old = attributes.inference(charge(quantities=counts), {}, compat=False)
    assert {key for key in old if key.startswith("gen_ai.usage.")} == {
        "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.reasoning.output_tokens",
        "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_creation.input_tokens",
    }  # fmt: skip


@pytest.mark.parametrize("latest", [False, True])
def test_the_scope_of_a_span_says_which_conventions(latest: bool) -> None:
    """Late spans and those of blocks alike."""
    made, exporter = provider()
    url = names.SCHEMA_URL_LATEST if latest else names.SCHEMA_URL
    spans = Spans("0", lambda: made, schema_url=url)
    opened = spans.begin("chat x", START, {})
    guarded_finish(opened, {}, START + 1, None)
    spans.end_block(spans.start_block("invoke_workflow x", {}, START), {}, START + 2, None)
    assert [span.instrumentation_scope.schema_url for span in exporter.get_finished_spans()] == [url, url]


def test_the_tier_of_openai_is_told_under_its_own_names() -> None:
    """As asked, unless it was left to the provider, and as served; a tier of somebody else is ours alone."""
    got = attributes.inference(charge(tier="flex"), {}, compat=False, request_tier="flex")
    assert (got["openai.request.service_tier"], got["openai.response.service_tier"]) == ("flex", "flex")
    got = attributes.inference(charge(), {}, compat=False, request_tier="auto")
    assert not [key for key in got if key.startswith("openai.")]
    got = attributes.inference(charge(provider="groq", tier="flex"), {}, compat=False, request_tier="flex")
    assert not [key for key in got if key.startswith("openai.")]


def test_azure_is_told_as_the_conventions_say() -> None:
    """Its namespace is on each span."""
    got = attributes.inference(charge(provider="azure.ai.openai"), {}, compat=False)
    assert got["azure.resource_provider.namespace"] == "Microsoft.CognitiveServices"


def test_without_a_provider_nothing_is_done() -> None:
    """No provider set: no span, no error."""
    assert Spans("0", trace.ProxyTracerProvider).begin("x", START, {}) is None
    guarded_finish(None, {}, START, None)
