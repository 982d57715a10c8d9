"""Spans and metrics for the stack that you have. Here they are collected in memory and printed, as a collector would get them.

In production leave the set-up out: `OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318` is enough.
"""

import openai
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import aifinops as af
from aifinops.testing import FakeProvider

# The application's own providers: they are used, and never replaced.
exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracer_provider = TracerProvider()
tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(tracer_provider)
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))

af.init(ledger="memory", tags={"environment": "test"})
af.instrument("openai")


@af.track_cost(team="search", feature="rerank")
def rerank(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Which article is it?"}]
    client.chat.completions.create(model="gpt-5-mini", messages=messages)


with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test") as client:
    rerank(client)

spans = exporter.get_finished_spans()
for span in spans:
    print(span.name)
    for key, value in sorted((span.attributes or {}).items()):
        print(f"  {key:<44} {value}")

data = reader.get_metrics_data()
names = sorted(
    metric.name
    for resource in (data.resource_metrics if data else ())
    for scope in resource.scope_metrics
    for metric in scope.metrics
)
print("\nmetrics:", ", ".join(names))

call = next(span for span in spans if "gen_ai.request.model" in (span.attributes or {}))
block = next(span for span in spans if span is not call)
assert call.parent is not None
assert call.parent.span_id == block.context.span_id
assert call.attributes["gen_ai.usage.output_tokens"] == server.usage_totals()["output_tokens"]
assert any("cost" in name for name in names)
af.shutdown()
