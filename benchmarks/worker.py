"""One system in one process: makes rounds of calls on command and says what each took.

    worker.py SYSTEM [spans|metrics]      reads lines "KIND COUNT on|off" from standard input, answers one JSON line each

The client is the real openai one on an in-process transport, so that what is measured is client + instrumentation and no network.
Every system has a tracer provider with a batch processor and, with `metrics`, a meter provider, both with exporters that do nothing; at
the end of a round both are flushed inside the timed part, so that work which a system puts off is counted too. CPU time is of the
whole process. The floor is one span of ten attributes written by hand; with `metrics`, and three histogram points.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 120, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
    },
}  # fmt: skip
CHAT = {
    "id": "chatcmpl-bench", "object": "chat.completion", "created": 1700000000, "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None,
                 "message": {"role": "assistant", "content": "word " * 80, "refusal": None}}],
    "usage": USAGE, "service_tier": "default", "system_fingerprint": "fp_bench",
}  # fmt: skip
EMBEDDINGS = {
    "object": "list", "model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8},
    "data": [{"object": "embedding", "index": 0, "embedding": [0.001 * n for n in range(256)]}],
}  # fmt: skip
RESPONSE = {
    "id": "resp_bench", "object": "response", "created_at": 1700000000, "status": "completed", "model": "gpt-4o-mini-2024-07-18",
    "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
    "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0, "service_tier": "default",
    "output": [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "word " * 80, "annotations": [], "logprobs": []}]}],
    "usage": {"input_tokens": 1000, "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 0}, "output_tokens": 200,
              "output_tokens_details": {"reasoning_tokens": 120}, "total_tokens": 1200},
}  # fmt: skip
CHUNKS = 200


def _sse(count: int = CHUNKS) -> list[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {
            "id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1700000000, "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}], "usage": None,
        }  # fmt: skip

    events = [chunk({"role": "assistant", "content": ""})] + [chunk({"content": "word "}) for _ in range(count)]
    last = {**chunk({}, "stop"), "choices": [], "usage": USAGE}
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in [*events, last]] + [b"data: [DONE]\n\n"]


def http() -> Any:
    """The HTTP library that the installed openai uses."""
    import openai._base_client as base

    return getattr(base, "httpx2", None) or base.httpx


def client(asynchronous: bool = False) -> Any:
    import openai

    library = http()
    bodies = {"/v1/chat/completions": CHAT, "/v1/embeddings": EMBEDDINGS, "/v1/responses": RESPONSE}
    ready = {path: json.dumps(body).encode() for path, body in bodies.items()}
    events = _sse()

    class Events(library.SyncByteStream):  # type: ignore[name-defined, misc]
        def __iter__(self) -> Any:
            return iter(events)

    def handle(request: Any) -> Any:
        if b'"stream":true' in request.content.replace(b" ", b""):
            return library.Response(200, headers={"content-type": "text/event-stream"}, stream=Events())
        return library.Response(200, headers={"content-type": "application/json"}, content=ready[request.url.path])

    transport = library.MockTransport(handle)
    made = library.AsyncClient(transport=transport) if asynchronous else library.Client(transport=transport)
    kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    return kind(api_key="test", base_url="http://bench.invalid/v1", http_client=made, max_retries=0)


MESSAGES = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "words " * 50}]


def calls(made: Any) -> dict[str, Any]:
    def stream() -> None:
        for _ in made.chat.completions.create(
            model="gpt-4o-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ):
            pass

    return {
        "chat": lambda: made.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=300),
        "responses": lambda: made.responses.create(model="gpt-4o-mini", input="words " * 50),
        "embeddings": lambda: made.embeddings.create(
            model="text-embedding-3-small", input="hello", encoding_format="float"
        ),
        "stream": stream,
    }


# --- systems -----------------------------------------------------------------------------------------------------------


def providers(with_metrics: bool) -> Any:
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class NoSpans(SpanExporter):
        count = 0

        def export(self, spans: Any) -> Any:
            NoSpans.count += len(spans)
            return SpanExportResult.SUCCESS

    class NoMetrics(MetricExporter):
        def export(self, *args: Any, **kwargs: Any) -> Any:
            return MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 0) -> bool:
            return True

        def shutdown(self, *args: Any, **kwargs: Any) -> None:
            return None

    tracing = TracerProvider()
    tracing.add_span_processor(BatchSpanProcessor(NoSpans(), max_queue_size=100_000, max_export_batch_size=512))
    trace.set_tracer_provider(tracing)
    metering = None
    if with_metrics:
        reader = PeriodicExportingMetricReader(NoMetrics(), export_interval_millis=3_600_000)
        metering = MeterProvider(metric_readers=[reader])
        metrics.set_meter_provider(metering)

    def flush() -> int:
        tracing.force_flush()
        if metering is not None:
            metering.force_flush()
        return NoSpans.count

    return flush


def with_floor(functions: dict[str, Any], with_metrics: bool) -> dict[str, Any]:
    """The least that anybody can do: one span of ten attributes, written by hand around the call, and three histogram points."""
    from opentelemetry import metrics, trace
    from opentelemetry.trace import SpanKind

    tracer = trace.get_tracer("floor")
    meter = metrics.get_meter("floor")
    duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
    tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}")

    def measure(kind: str, usage: Any, seconds: float) -> None:
        base = {"gen_ai.operation.name": kind, "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini"}
        duration.record(seconds, base)
        tokens.record(getattr(usage, "prompt_tokens", 0), {**base, "gen_ai.token.type": "input"})
        tokens.record(getattr(usage, "completion_tokens", 0), {**base, "gen_ai.token.type": "output"})

    def around(kind: str, call: Any) -> Any:
        def spanned() -> Any:
            with tracer.start_as_current_span(
                f"{kind} gpt-4o-mini",
                kind=SpanKind.CLIENT,
                attributes={
                    "gen_ai.operation.name": kind, "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
                    "server.address": "bench.invalid", "server.port": 80,
                },
            ) as span:  # fmt: skip
                began = time.perf_counter()
                answer = call()
                usage = getattr(answer, "usage", None)
                span.set_attributes(
                    {
                        "gen_ai.response.model": getattr(answer, "model", ""), "gen_ai.response.id": getattr(answer, "id", ""),
                        "gen_ai.usage.input_tokens": getattr(usage, "prompt_tokens", 0),
                        "gen_ai.usage.output_tokens": getattr(usage, "completion_tokens", 0), "gen_ai.usage.cost": 0.001,
                    }
                )  # fmt: skip
                if with_metrics:
                    measure(kind, usage, time.perf_counter() - began)
                return answer

        return spanned

    return {kind: around(kind, call) for kind, call in functions.items()}


class System:
    """What is measured: the calls, and a switch. The same process makes them with and without the system: two processes differ by
    some percent for no better reason than where their memory lies, which is more than most systems add to a stream."""

    def __init__(self, name: str, with_metrics: bool = True) -> None:
        self.bare = calls(client())
        self.switch: Any = None
        self.on = False
        if name == "floor":
            self.floor = with_floor(self.bare, with_metrics)
        elif name.startswith("aifinops"):
            self.switch = _aifinops(with_budget=name.endswith("+budget"))
        elif name == "otel-genai-openai":
            from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

            self.switch = OpenAIInstrumentor()
        elif name == "traceloop-openai":
            os.environ["TRACELOOP_TRACE_CONTENT"] = "false"
            from opentelemetry.instrumentation.openai import OpenAIInstrumentor

            self.switch = OpenAIInstrumentor()
        elif name == "openinference-openai":
            from openinference.instrumentation.openai import OpenAIInstrumentor

            self.switch = OpenAIInstrumentor()

    def turned(self, on: bool) -> dict[str, Any]:
        """The calls, with the system or without it."""
        if on != self.on and self.switch is not None:
            (self.switch.instrument if on else self.switch.uninstrument)()
        self.on = on
        return self.floor if on and self.switch is None else self.bare


def _aifinops(*, with_budget: bool) -> Any:
    os.environ["AIFINOPS_LEDGER"] = str(Path(tempfile.mkdtemp()) / "ledger.db")
    import aifinops

    aifinops.init()
    if with_budget:
        aifinops.budget("$1000000", name="bench").__enter__()
    return aifinops


def main() -> None:
    name, with_metrics = sys.argv[1], sys.argv[2:] != ["spans"]
    flush = providers(with_metrics)
    system = System(name, with_metrics)
    import openai

    print(json.dumps({"ready": name, "openai": openai.__version__}), flush=True)
    for line in sys.stdin:
        kind, count, on = line.split()
        call, before = system.turned(on == "on")[kind], flush()
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        for _ in range(int(count)):
            call()
        spans = flush() - before
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        print(
            json.dumps({"cpu_us": cpu / 1000 / int(count), "wall_us": wall / 1000 / int(count), "spans": spans}),
            flush=True,
        )


if __name__ == "__main__":
    main()
