"""The contract of the telemetry from a call to what is exported: settings, real client, real SDK, one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")

from opentelemetry import metrics as otel_metrics  # noqa: E402 - where there is a client
from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.testing import FakeProvider  # noqa: E402

ASKED: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


class Stack:
    """Providers of an application that has wrapped its exporter, and its client."""

    def __init__(self, client: Any, monkeypatch: pytest.MonkeyPatch, sampler: Sampler, dialects: list[str]) -> None:
        self.client = client
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(af.DialectExporter(self.exporter, dialects)))
        meters = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
        monkeypatch.setattr(otel_metrics, "get_meter_provider", lambda: meters)

    def points(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def make_stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with FakeProvider() as server:
        af.instrument("openai")
        client = openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0)

        def make(sampler: Sampler = ALWAYS_ON, **settings: Any) -> Stack:
            stack = Stack(client, monkeypatch, sampler, settings.get("dialects", ["compat"]))
            runtime.init(ledger="memory", **settings)
            return stack

        yield make
        client.close()
        af.uninstrument("openai")


def test_a_budget_is_seen_before_and_after_its_calls(make_stack: Any) -> None:
    """Limit, spent and what is left of a standing budget, its decisions, and a burn rate; a refusal is one, too."""
    stack = make_stack(
        budgets=[{"name": "search", "limit": "$0.001", "per": "day", "match": {"team": "search"}}], store="memory"
    )
    with af.tags(team="search"):
        stack.client.chat.completions.create(**ASKED, max_tokens=50)
    got = stack.points()
    (limit,), (spent,), (left,) = (got[f"aifinops.budget.{name}"] for name in ("limit", "spent", "remaining"))
    (row,) = runtime.get().ledger.rows()
    assert limit.value == 0.001
    assert spent.value == pytest.approx(row.amount / 10**9)
    assert left.value == pytest.approx(0.001 - row.amount / 10**9)
    assert dict(spent.attributes) == {
        "aifinops.budget.id": "search", "aifinops.budget.period": "day", "aifinops.budget.unit": "USD",
    }  # fmt: skip
    assert got["aifinops.budget.burn_rate"][0].value > 0
    assert got["aifinops.budget.utilization"][0].value == pytest.approx(spent.value / 0.001)
    with af.tags(team="search"), pytest.raises(af.BudgetExceeded):
        stack.client.chat.completions.create(**ASKED, max_tokens=16_000)
    decided = {
        point.attributes["aifinops.budget.action"]: point.value for point in stack.points()["aifinops.budget.decisions"]
    }
    assert decided == {"allow": 1, "block": 1}


def test_a_block_without_a_name_is_no_series(make_stack: Any) -> None:
    """There is one for each run of it: thousands of gauges would say nothing."""
    stack = make_stack()
    with af.budget("$1"):
        stack.client.chat.completions.create(**ASKED)
    got = stack.points()
    assert not [name for name in got if name.startswith("aifinops.budget.")]


def test_an_exemplar_leads_to_the_span_of_the_call(make_stack: Any) -> None:
    """Ids of the exemplar are those of the exported span."""
    stack = make_stack()
    stack.client.chat.completions.create(**ASKED)
    got = stack.points()
    (span,) = stack.exporter.get_finished_spans()
    for name in ("aifinops.client.operation.cost", "gen_ai.client.operation.duration", "gen_ai.usage.cost"):
        (exemplar,) = got[name][0].exemplars
        assert (exemplar.trace_id, exemplar.span_id) == (span.context.trace_id, span.context.span_id), name


def test_a_sampler_that_drops_everything_loses_no_money(make_stack: Any) -> None:
    """Ledger and metrics are complete, no span is exported and no exemplar leads nowhere."""
    stack = make_stack(ALWAYS_OFF)
    for _ in range(5):
        stack.client.chat.completions.create(**ASKED)
    got = stack.points()
    total = sum(row.amount for row in runtime.get().ledger.rows()) / 10**9
    assert total > 0
    assert sum(point.value for point in got["aifinops.cost"]) == pytest.approx(total)
    assert got["aifinops.calls"][0].value == 5
    assert got["gen_ai.client.operation.duration"][0].count == 5
    assert stack.exporter.get_finished_spans() == ()
    assert [one for points in got.values() for point in points for one in getattr(point, "exemplars", ())] == []


def test_settings_reach_spans_and_metrics(make_stack: Any) -> None:
    """Newest conventions, a dialect at a wrapped exporter, the tags of metrics, and the tier that was asked for."""
    stack = make_stack(semconv="latest", dialects=["sentry", "logfire"], metric_tags=["customer"])
    with af.tags(team="search", customer="acme"):
        stack.client.chat.completions.create(**{**ASKED, "model": "gpt-5-mini"}, service_tier="flex")
    (span,) = stack.exporter.get_finished_spans()
    assert (
        span.attributes["gen_ai.cost.total_tokens"]
        == span.attributes["aifinops.cost.total"]
        == span.attributes["operation.cost"]
    )
    assert span.attributes["gen_ai.usage.text.input_tokens"] == span.attributes["gen_ai.usage.input_tokens"]
    assert span.attributes["openai.request.service_tier"] == "flex"
    assert "gen_ai.usage.cost" not in span.attributes
    got = stack.points()
    assert got["operation.cost"][0].attributes["aifinops.customer"] == "acme"
    assert "aifinops.team" not in got["operation.cost"][0].attributes
    assert got["gen_ai.client.inference.usage.input_tokens"][0].value == span.attributes["gen_ai.usage.input_tokens"]
    assert "gen_ai.usage.cost" not in got


def test_the_environment_says_it_as_well(make_stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's own variable and ours; a wrong one is an error that says what to type."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http, gen_ai_latest_experimental")
    make_stack()
    assert runtime.get().latest
    monkeypatch.setenv("AIFINOPS_SEMCONV", "compat")
    make_stack()
    assert not runtime.get().latest
    monkeypatch.setenv("AIFINOPS_SEMCONV", "newest")
    with pytest.raises(af.ConfigurationError, match="write one of compat, latest"):
        runtime.init(ledger="memory")
    monkeypatch.delenv("AIFINOPS_SEMCONV")
    with pytest.raises(af.ConfigurationError, match="agento11y adds to"):
        runtime.init(ledger="memory", semconv="latest", dialects=["agento11y"])
    with pytest.raises(af.ConfigurationError, match="run has as many values"):
        runtime.init(ledger="memory", semconv="latest", metric_tags=["run"])


def test_spans_of_others_speak_dialects_too(make_stack: Any) -> None:
    """Priced by the one exporter, translated by the one inside of it."""
    stack = make_stack()
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(af.SpanPricer(af.DialectExporter(kept, ["sentry", "langfuse"]))))
    said = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic", "gen_ai.request.model": "claude-sonnet-4-5",
        "gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 200, "gen_ai.response.id": "msg_7",
    }  # fmt: skip
    provider.get_tracer("somebody").start_span("chat claude-sonnet-4-5", attributes=said).end()
    (span,) = kept.get_finished_spans()
    (row,) = runtime.get().ledger.rows()
    assert row.amount
    assert span.attributes["gen_ai.cost.total_tokens"] == row.amount / 10**9
    assert '"input":1000' in span.attributes["langfuse.observation.usage_details"]
    assert stack.exporter.get_finished_spans() == ()
