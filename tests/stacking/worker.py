"""One other instrumentation and ours in one process: makes calls of every shape and says what came of each.

    worker.py PEER LIBRARY ours-first|peer-first auto|emit|enrich|off|pricer|hook

In the last two nothing is metered by us: a `SpanPricer` prices what the peer tells, or the completion hook of the official ones does.

Answers one line of JSON. The servers are fake, the client libraries and the instrumentations real. Spans are looked at twice: as they
ended, and as they leave a `SpanPricer`.
"""

# ruff: noqa: T201 - a script: printing is its job

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import beyond

SHAPES = ("chat", "stream", "stream without usage", "async chat", "async stream", "embeddings")
MESSAGES = [{"role": "user", "content": "canary-5d1f please answer in a few words"}]
MODEL = {"openai": "gpt-4o-mini", "anthropic": "claude-sonnet-4-5"}
CANARY = "canary-5d1f"


# --- peers: how each is switched on -------------------------------------------------------------------------------------------


def _instrumentor(module: str, name: str) -> Callable[[], None]:
    def switch() -> None:
        more: dict[str, Any] = {}
        if sys.argv[4] == "hook":
            from aifinops.integrations.span_pricer import completion_hook

            more["completion_hook"] = completion_hook()
        getattr(import_module(module), name)().instrument(skip_dep_check=True, **more)

    return switch


def _logfire(library: str) -> Callable[[], None]:
    def switch() -> None:
        import logfire
        from opentelemetry import metrics, trace

        del metrics, trace
        getattr(logfire, f"instrument_{library}")()

    return switch


def _openlit() -> None:
    import openlit

    openlit.init(disable_batch=True, disabled_instrumentors=[])


_NAMES = {"openai": "OpenAIInstrumentor", "anthropic": "AnthropicInstrumentor"}
_OTEL, _OI = "opentelemetry.instrumentation", "openinference.instrumentation"
_BEYOND = {
    ("official", "google"): (f"{_OTEL}.google_genai", "GoogleGenAiSdkInstrumentor"),
    ("official", "bedrock"): (f"{_OTEL}.botocore", "BotocoreInstrumentor"),
    ("traceloop", "bedrock"): (f"{_OTEL}.bedrock", "BedrockInstrumentor"),
    ("openinference", "mistral"): (f"{_OI}.mistralai", "MistralAIInstrumentor"),
    ("openinference", "google"): (f"{_OI}.google_genai", "GoogleGenAIInstrumentor"),
    ("openinference", "bedrock"): (f"{_OI}.bedrock", "BedrockInstrumentor"),
}
_MODULES = {"mistral": "mistralai.client", "google": "google.genai", "bedrock": "boto3"}


def switch_of(peer: str, library: str) -> Callable[[], None]:
    """What switches a peer on for a library."""
    if library in _MODULES:
        found = _BEYOND.get((peer, library))
        return _instrumentor(*found) if found is not None else lambda: None
    name = _NAMES[library]
    return {
        "none": lambda: None,
        "native": lambda: None,
        "langchain": lambda: None,
        "official": _instrumentor(f"opentelemetry.instrumentation.genai.{library}", name),
        "traceloop": _instrumentor(f"opentelemetry.instrumentation.{library}", name),
        "openinference": _instrumentor(f"openinference.instrumentation.{library}", name),
        "langchain+traceloop": _instrumentor("opentelemetry.instrumentation.langchain", "LangchainInstrumentor"),
        "langchain+openinference": _instrumentor("openinference.instrumentation.langchain", "LangChainInstrumentor"),
        "openlit": _openlit,
        "logfire": _logfire(library),
    }[peer]


# --- calls --------------------------------------------------------------------------------------------------------------------


def openai_calls(base_url: str) -> dict[str, Callable[[], Any]]:
    import openai

    client = openai.OpenAI(base_url=base_url, api_key="test", max_retries=0)
    create, model = client.chat.completions.create, MODEL["openai"]
    usage = {"stream_options": {"include_usage": True}}

    async def achat(**more: Any) -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="test", max_retries=0) as aclient:
            answer = await aclient.chat.completions.create(model=model, messages=MESSAGES, **more)
            if more:
                async for _ in answer:
                    pass

    return {
        "chat": lambda: create(model=model, messages=MESSAGES),
        "stream": lambda: list(create(model=model, messages=MESSAGES, stream=True, **usage)),
        "stream without usage": lambda: list(create(model=model, messages=MESSAGES, stream=True)),
        "async chat": lambda: _RUN(achat()),
        "async stream": lambda: _RUN(achat(stream=True, **usage)),
        "embeddings": lambda: client.embeddings.create(model="text-embedding-3-small", input="hello"),
    }


def langchain_calls(base_url: str) -> dict[str, Callable[[], Any]]:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    made = ChatOpenAI(model=MODEL["openai"], base_url=base_url, api_key="test", max_retries=0, stream_usage=True)
    bare = ChatOpenAI(model=MODEL["openai"], base_url=base_url, api_key="test", max_retries=0, stream_usage=False)
    vectors = OpenAIEmbeddings(base_url=base_url, api_key="test", max_retries=0, check_embedding_ctx_length=False)
    text = MESSAGES[0]["content"]

    async def astream() -> None:
        async for _ in made.astream(text):
            pass

    return {
        "chat": lambda: made.invoke(text),
        "stream": lambda: list(made.stream(text)),
        "stream without usage": lambda: list(bare.stream(text)),
        "async chat": lambda: _RUN(made.ainvoke(text)),
        "async stream": lambda: _RUN(astream()),
        "embeddings": lambda: vectors.embed_documents(["hello"]),
    }


def langchain_anthropic_calls(base_url: str) -> dict[str, Callable[[], Any]]:
    from langchain_anthropic import ChatAnthropic

    made = ChatAnthropic(model=MODEL["anthropic"], base_url=base_url, api_key="test", max_retries=0, max_tokens=300)
    text = MESSAGES[0]["content"]

    async def astream() -> None:
        async for _ in made.astream(text):
            pass

    return {
        "chat": lambda: made.invoke(text),
        "stream": lambda: list(made.stream(text)),
        "async chat": lambda: _RUN(made.ainvoke(text)),
        "async stream": lambda: _RUN(astream()),
    }


_LOOP = asyncio.Runner()
_RUN = _LOOP.run
"""One loop for all: frameworks keep their connections."""


def anthropic_calls(_base_url: str) -> dict[str, Callable[[], Any]]:
    import anthropic
    import anthropic._base_client as base

    library = getattr(base, "httpx2", None) or base.httpx

    def answer(request: Any) -> Any:
        if json.loads(request.content).get("stream"):
            return library.Response(200, headers={"content-type": "text/event-stream"}, content=beyond.message_events())
        return library.Response(200, json=beyond.message())

    def client(kind: Any, http: Any) -> Any:
        return kind(api_key="test", max_retries=0, http_client=http(transport=library.MockTransport(answer)))

    made = client(anthropic.Anthropic, library.Client)
    asked: dict[str, Any] = {"model": MODEL["anthropic"], "max_tokens": 300, "messages": MESSAGES}

    async def acall(**more: Any) -> None:
        answered = await client(anthropic.AsyncAnthropic, library.AsyncClient).messages.create(**asked, **more)
        if more:
            async for _ in answered:
                pass

    return {
        "chat": lambda: made.messages.create(**asked),
        "stream": lambda: list(made.messages.create(**asked, stream=True)),
        "async chat": lambda: _RUN(acall()),
        "async stream": lambda: _RUN(acall(stream=True)),
    }


def calls_of(peer: str, library: str, base_url: str) -> dict[str, Callable[[], Any]]:
    """The calls of a library, or of a framework above it."""
    if peer.startswith("langchain"):
        return langchain_calls(base_url) if library == "openai" else langchain_anthropic_calls(base_url)
    if library in beyond.MODELS:
        return beyond.calls(library, base_url, _RUN)
    return {"openai": openai_calls, "anthropic": anthropic_calls}[library](base_url)


# --- what came of them --------------------------------------------------------------------------------------------------------


def telemetry(peer: str) -> tuple[Any, Any, Any]:
    """(spans as ended, spans as priced, metric reader) of providers that every instrumentation uses."""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics._internal.instrument import Counter, Histogram
    from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import aifinops

    ended, priced = InMemorySpanExporter(), InMemorySpanExporter()
    delta = AggregationTemporality.DELTA
    reader = InMemoryMetricReader(preferred_temporality={Counter: delta, Histogram: delta})
    processors = [SimpleSpanProcessor(ended), SimpleSpanProcessor(aifinops.SpanPricer(priced))]
    if peer == "logfire":
        import logfire

        logfire.configure(
            send_to_logfire=False, console=False, additional_span_processors=processors,
            metrics=logfire.MetricsOptions(additional_readers=[reader]),
        )  # fmt: skip
        return ended, priced, reader
    tracing = TracerProvider()
    for one in processors:
        tracing.add_span_processor(one)
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
    return ended, priced, reader


def token_metrics(reader: Any) -> dict[str, int]:
    """Scope -> points of `gen_ai.client.token.usage` that it told since the last look."""
    found: dict[str, int] = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == "gen_ai.client.token.usage":
                    points = sum(point.count for point in metric.data.data_points)
                    if points:
                        found[scope.scope.name] = found.get(scope.scope.name, 0) + points
    return found


@contextmanager
def server(library: str) -> Iterator[tuple[str, Any]]:
    """(address, the provider's bill where it keeps one)."""
    from aifinops.testing import FakeProvider

    if library != "openai":
        with beyond.server() as url:
            yield url, None
        return
    with FakeProvider(words=16) as running:
        yield running.base_url, running


def right(library: str, billed: Any, rows: list[Any]) -> bool:
    """Whether each row has the buckets of the answer; an estimate says of itself that it has not.

    Args:
        billed: the server's own line of the call, where it keeps a bill.
    """
    for row in rows:
        counts = dict(row.quantities)
        if row.basis == "estimated":
            continue
        if billed is not None:
            told = billed.totals
            read, thought = counts.get("cache_read_tokens", 0), counts.get("reasoning_tokens", 0)
            whole = (counts.get("input_tokens", 0) + read, read, counts.get("output_tokens", 0) + thought, thought)
            if whole != tuple(told.values()):
                return False
        elif counts != beyond.TOKENS[library]:
            return False
    return True


def look(shape: str, ended: Any, priced: Any, reader: Any, rows: list[Any]) -> dict[str, Any]:
    """What one call left behind."""
    from aifinops.telemetry.foreign import is_inference

    def scope(span: Any) -> str:
        return span.instrumentation_scope.name

    spans = ended.get_finished_spans()
    calls = [span for span in spans if scope(span) == "aifinops" or is_inference(scope(span), span.attributes or {})]
    out = priced.get_finished_spans()
    costs = [span for span in out if "aifinops.cost.total" in (span.attributes or {})]
    said = {
        "shape": shape, "rows": len(rows), "spans": [scope(span) for span in calls],
        "amounts": [row.amount for row in rows], "basis": [row.basis for row in rows],
        "open": sum("aifinops.cost.total" in (span.attributes or {}) for span in spans),
        "costs": [scope(span) for span in costs],
        "same": all(abs(span.attributes["aifinops.cost.total"] - rows[0].amount / 1e9) < 1e-12 for span in costs) if rows else False,
        "tokens": token_metrics(reader),
        "leak": CANARY in json.dumps([row.raw and dict(row.raw) for row in rows], default=str),
    }  # fmt: skip
    ended.clear()
    priced.clear()
    return said


def main() -> None:
    peer, library, order, mode = sys.argv[1:]
    os.environ.update(
        AIFINOPS_LEDGER="memory", AIFINOPS_PRICE_FOLDER=os.devnull + "/none", OTEL_PYTHON_LOG_LEVEL="error"
    )
    os.environ["TRACELOOP_TRACE_CONTENT"] = "false"
    if peer not in {"native", "openlit"}:
        os.environ.setdefault("ANTHROPIC_OPEN_TELEMETRY", "false")
    import aifinops
    from aifinops import errors, runtime
    from aifinops.integrations import registry

    if library not in registry.PROVIDERS:
        print(json.dumps({"skipped": f"no row for {library} yet"}))
        return
    alone = mode in {"pricer", "hook"}
    aifinops.init(spans="off" if alone else mode)
    ended, priced, reader = telemetry(peer)
    switch = switch_of(peer, library)
    if library == "mistral" and peer == "native":
        os.environ["STACKING_NATIVE"] = "1"
    import_module(_MODULES.get(library, library))
    steps: list[Callable[[], Any]] = [switch] if alone else [switch, lambda: aifinops.instrument(library)]
    for step in steps if order == "peer-first" else reversed(steps):
        step()
    found = []
    with server(library) as (url, billing):
        calls = calls_of(peer, library, url)
        ended.clear()
        for shape in SHAPES:
            if shape not in calls:
                continue
            before = len(list(runtime.get().ledger.rows()))
            calls[shape]()
            gc.collect()
            aifinops.flush()
            rows = list(runtime.get().ledger.rows())[before:]
            bill = billing.bill[-1] if billing is not None else None
            found.append({**look(shape, ended, priced, reader, rows), "right": right(library, bill, rows)})
    print(json.dumps({"found": found, "failures": errors.failures()}))


if __name__ == "__main__":
    main()
