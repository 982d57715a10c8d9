"""One system in one process: makes rounds of calls on command and says what each took.

    worker.py SYSTEM [spans|metrics]      reads lines "KIND COUNT on|off" from standard input, answers one JSON line each

The client is the real openai one on an in-process transport, so that what is measured is client + instrumentation and no network.
Every system has a tracer provider with a batch processor and, with `metrics`, a meter provider, both with exporters that do nothing; at
the end of a round both are flushed inside the timed part, so that work which a system puts off is counted too. CPU time is of the
whole process. The floor is one span of ten attributes written by hand; with `metrics`, and three histogram points.

An answer is an error when a system has told nothing of its calls, has told something while it was off, or has asked for a network.
The line "check" asks for what only the end shows: of ours, that each call has its priced row.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from importlib import import_module
from importlib.metadata import version
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn, Protocol

# --- the other side ------------------------------------------------------------------------------------------------------

ID = b"@id@"
"""Where each answer has an id of its own: no provider gives one twice."""

USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 120, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
    },
}  # fmt: skip
CHAT = {
    "id": "chatcmpl-@id@", "object": "chat.completion", "created": 1700000000, "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None,
                 "message": {"role": "assistant", "content": "word " * 80, "refusal": None}}],
    "usage": USAGE, "service_tier": "default", "system_fingerprint": "fp_bench",
}  # fmt: skip
EMBEDDINGS = {
    "object": "list", "model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8},
    "data": [{"object": "embedding", "index": 0, "embedding": [0.001 * n for n in range(256)]}],
}  # fmt: skip
RESPONSE = {
    "id": "resp_@id@", "object": "response", "created_at": 1700000000, "status": "completed", "model": "gpt-4o-mini-2024-07-18",
    "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True,
    "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0, "service_tier": "default",
    "output": [{"type": "message", "id": "msg_@id@", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "word " * 80, "annotations": [], "logprobs": []}]}],
    "usage": {"input_tokens": 1000, "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 0}, "output_tokens": 200,
              "output_tokens_details": {"reasoning_tokens": 120}, "total_tokens": 1200},
}  # fmt: skip
BODIES = {"/v1/chat/completions": CHAT, "/v1/embeddings": EMBEDDINGS, "/v1/responses": RESPONSE}
CHUNKS = 200


def sse(chunks: int = CHUNKS) -> list[bytes]:
    """The events of a stream: one that begins it, `chunks` with a word, one that ends it, one with the usage, and the mark of the end."""

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {
            "id": "chatcmpl-@id@", "object": "chat.completion.chunk", "created": 1700000000, "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}], "usage": None,
        }  # fmt: skip

    events = [chunk({"role": "assistant", "content": ""})] + [chunk({"content": "word "}) for _ in range(chunks)]
    events += [chunk({}, "stop"), {**chunk({}), "choices": [], "usage": USAGE}]
    return [b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events] + [
        b"data: [DONE]\n\n"
    ]


def http() -> Any:
    """The HTTP library that the installed openai uses."""
    import openai._base_client as base

    return getattr(base, "httpx2", None) or base.httpx


def stream_of(library: Any, events: Callable[[], Iterator[bytes]]) -> Any:
    """A body that comes in pieces, read in either way."""

    class Events(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            return events()

        def __aiter__(self) -> Any:
            return Awaited(events())

    return Events()


class Awaited:
    """An asynchronous iterator that never waits; no generator, whose end would be one more task when it is left early."""

    def __init__(self, events: Iterator[bytes]) -> None:
        self._events = events

    def __aiter__(self) -> Awaited:
        return self

    async def __anext__(self) -> bytes:
        for event in self._events:
            return event
        raise StopAsyncIteration


def client(*, asynchronous: bool = False) -> Any:
    """The real client, and in its transport a server that has its answers ready."""
    import openai

    library, ids = http(), (b"%024d" % number for number in count())
    ready = {path: json.dumps(body).encode().split(ID) for path, body in BODIES.items()}
    events = [event.split(ID) for event in sse()]

    def handle(request: Any) -> Any:
        one = next(ids)
        if b'"stream":true' in request.content.replace(b" ", b""):
            stream = stream_of(library, lambda: map(one.join, events))
            return library.Response(200, headers={"content-type": "text/event-stream"}, stream=stream)
        body = one.join(ready[request.url.path])
        return library.Response(200, headers={"content-type": "application/json"}, content=body)

    transport = library.MockTransport(handle)
    made = library.AsyncClient(transport=transport) if asynchronous else library.Client(transport=transport)
    kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    return kind(api_key="test", base_url="http://bench.invalid/v1", http_client=made, max_retries=0)


class Refused:
    """No system may reach beyond this process. What it tries is refused, and counted."""

    count = 0

    @classmethod
    def install(cls) -> None:
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = cls.refuse  # type: ignore[method-assign]

    @classmethod
    def refuse(cls, *_: Any, **__: Any) -> NoReturn:
        cls.count += 1
        raise OSError("a benchmark has no network")


# --- calls -----------------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "words " * 50}]
_CHAT = {"model": "gpt-4o-mini", "messages": MESSAGES}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat.completions.create", {**_CHAT, "max_tokens": 300}),
    "responses": ("responses.create", {"model": "gpt-4o-mini", "input": "words " * 50}),
    "embeddings": ("embeddings.create", {"model": "text-embedding-3-small", "input": "hello", "encoding_format": "float"}),
    "stream": ("chat.completions.create", {**_CHAT, "stream": True, "stream_options": {"include_usage": True}}),
}  # fmt: skip
ASYNC = "async-"
KINDS = (*REQUESTS, *(ASYNC + kind for kind in REQUESTS))


def calls() -> dict[str, Callable[[], Any]]:
    """What is measured, by kind. The methods are looked up at each call, as a user's program does."""
    clients = {"": client(), ASYNC: client(asynchronous=True)}
    return {mode + kind: _call(clients[mode], mode, *REQUESTS[kind]) for mode in clients for kind in REQUESTS}


def _call(made: Any, mode: str, path: str, arguments: dict[str, Any]) -> Callable[[], Any]:
    method = attrgetter(path)

    def call() -> Any:
        return method(made)(**arguments)

    def stream() -> None:
        for _ in method(made)(**arguments):
            pass

    async def astream() -> None:
        async for _ in await method(made)(**arguments):
            pass

    if "stream" in arguments:
        return astream if mode == ASYNC else stream
    return call


async def _arepeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        await call()
    await asyncio.sleep(0)  # the ends of generators that were left early are tasks of their own
    await asyncio.sleep(0)


def repeat(loop: asyncio.AbstractEventLoop, kind: str, call: Callable[[], Any], times: int) -> None:
    """Make calls one after the other, asynchronous ones in one task."""
    if kind.startswith(ASYNC):
        loop.run_until_complete(_arepeat(call, times))
    else:
        for _ in range(times):
            call()


# --- where everything goes that a system tells -----------------------------------------------------------------------------------


class Sink:
    """Exporters that do nothing but count, and what must be flushed for them to have got everything."""

    def __init__(self, *, with_metrics: bool) -> None:
        self.spans = 0
        self.with_metrics = with_metrics
        self.flushes: list[Callable[[], Any]] = []

    def flush(self) -> int:
        """How many spans have come, when all have."""
        for flush in self.flushes:
            flush()
        return self.spans

    def span_exporter(self) -> Any:
        from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

        sink = self

        class NoSpans(SpanExporter):
            def export(self, spans: Any) -> Any:
                sink.spans += len(spans)
                return SpanExportResult.SUCCESS

        return NoSpans()

    def span_processor(self) -> Any:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        return BatchSpanProcessor(self.span_exporter(), max_queue_size=100_000, max_export_batch_size=512)

    @staticmethod
    def metric_reader() -> Any:
        from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader

        class NoMetrics(MetricExporter):
            def export(self, *args: Any, **kwargs: Any) -> Any:
                return MetricExportResult.SUCCESS

            def force_flush(self, timeout_millis: float = 0) -> bool:
                return True

            def shutdown(self, *args: Any, **kwargs: Any) -> None:
                return None

        return PeriodicExportingMetricReader(NoMetrics(), export_interval_millis=3_600_000)

    def trace(self, processor: Any = None) -> Any:
        """Make the tracer provider of this process."""
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider()
        if processor is not None:
            provider.add_span_processor(processor)
        trace.set_tracer_provider(provider)
        self.flushes.append(provider.force_flush)
        return provider

    def meter(self) -> None:
        """Make the meter provider of this process, when there is to be one."""
        if not self.with_metrics:
            return
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider

        provider = MeterProvider(metric_readers=[self.metric_reader()])
        metrics.set_meter_provider(provider)
        self.flushes.append(provider.force_flush)

    def log(self) -> None:
        """Make the logger provider of this process."""
        from opentelemetry import _logs
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult

        class NoLogs(LogRecordExporter):
            def export(self, *args: Any, **kwargs: Any) -> Any:
                return LogRecordExportResult.SUCCESS

            def force_flush(self, timeout_millis: float = 0) -> bool:
                return True

            def shutdown(self) -> None:
                return None

        provider = LoggerProvider()
        provider.add_log_record_processor(BatchLogRecordProcessor(NoLogs(), max_queue_size=100_000))
        _logs.set_logger_provider(provider)
        self.flushes.append(provider.force_flush)

    def standard(self) -> None:
        """What a program has set up that uses OpenTelemetry."""
        self.trace(self.span_processor())
        self.meter()


# --- systems -----------------------------------------------------------------------------------------------------------------


class System(Protocol):
    """What is measured. The same process makes calls with it and without it: two processes differ by some percent for no better
    reason than where their memory lies, which is more than most systems add to a stream."""

    def turned(self, bare: dict[str, Callable[[], Any]], *, on: bool) -> dict[str, Callable[[], Any]]:
        """The calls, with the system or without it."""
        ...

    def complaints(self, made: int) -> list[str]:
        """What is wrong after `made` calls with the system."""
        ...


class Floor:
    """The least that anybody can do: one span of ten attributes, written by hand around the call, and three histogram points."""

    def __init__(self, sink: Sink) -> None:
        from opentelemetry import metrics, trace
        from opentelemetry.trace import SpanKind

        sink.standard()
        self._start, self._kind = trace.get_tracer("floor").start_as_current_span, SpanKind.CLIENT
        meter = metrics.get_meter("floor")
        self._duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}")
        self._with_metrics = sink.with_metrics

    def turned(self, bare: dict[str, Callable[[], Any]], *, on: bool) -> dict[str, Callable[[], Any]]:
        return {kind: self._around(kind, call) for kind, call in bare.items()} if on else bare

    def complaints(self, made: int) -> list[str]:
        return []

    def _around(self, kind: str, call: Callable[[], Any]) -> Callable[[], Any]:
        name, start, span_kind, asked, told = f"{kind} gpt-4o-mini", self._start, self._kind, self._asked, self._told

        def spanned() -> Any:
            with start(name, kind=span_kind, attributes=asked(kind)) as span:
                began = time.perf_counter()
                answer = call()
                told(kind, span, answer, began)
                return answer

        async def aspanned() -> Any:
            with start(name, kind=span_kind, attributes=asked(kind)) as span:
                began = time.perf_counter()
                answer = await call()
                told(kind, span, answer, began)
                return answer

        return aspanned if kind.startswith(ASYNC) else spanned

    @staticmethod
    def _asked(kind: str) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": kind, "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
            "server.address": "bench.invalid", "server.port": 80,
        }  # fmt: skip

    def _told(self, kind: str, span: Any, answer: Any, began: float) -> None:
        usage = getattr(answer, "usage", None)
        read, written = getattr(usage, "prompt_tokens", 0), getattr(usage, "completion_tokens", 0)
        span.set_attributes(
            {
                "gen_ai.response.model": getattr(answer, "model", ""), "gen_ai.response.id": getattr(answer, "id", ""),
                "gen_ai.usage.input_tokens": read, "gen_ai.usage.output_tokens": written, "gen_ai.usage.cost": 0.001,
            }
        )  # fmt: skip
        if self._with_metrics:
            base = {
                "gen_ai.operation.name": kind,
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-4o-mini",
            }
            self._duration.record(time.perf_counter() - began, base)
            self._tokens.record(read, {**base, "gen_ai.token.type": "input"})
            self._tokens.record(written, {**base, "gen_ai.token.type": "output"})


class Ours:
    """All of our work: usage, price, a row in an SQLite ledger, span and metrics; and a budget: of a block, or one that is shared by
    the processes of the machine."""

    def __init__(self, sink: Sink, budget: str) -> None:
        sink.standard()
        os.environ["AIFINOPS_LEDGER"] = str(Path(tempfile.mkdtemp()) / "ledger.db")
        import aifinops

        aifinops.init()
        self._on = False
        window = {"budget": "run", "shared": "total"}.get(budget)
        self._budget = aifinops.budget("$1000000", per=window, name="bench") if window else None
        if self._budget is not None:
            self._budget.__enter__()

    def turned(self, bare: dict[str, Callable[[], Any]], *, on: bool) -> dict[str, Callable[[], Any]]:
        import aifinops

        if on != self._on:
            (aifinops.instrument if on else aifinops.uninstrument)()
        self._on = on
        return bare

    def complaints(self, made: int) -> list[str]:
        import aifinops
        from aifinops.errors import failures
        from aifinops.ledger import open_ledger

        aifinops.flush()
        groups = open_ledger(os.environ["AIFINOPS_LEDGER"], create=False).summarize()
        rows, unpriced = sum(group.calls for group in groups), sum(group.unpriced_calls for group in groups)
        found = [f"{count} failures of ours in {place}" for place, count in failures().items()]
        if rows != made or unpriced:
            found.append(f"{rows} rows, {unpriced} of them without a price, for {made} calls")
        cost = Decimal(sum(group.amount or 0 for group in groups)) / 10**9
        if self._budget is not None and (self._budget.spent, self._budget.reserved) != (cost, 0):
            found.append(
                f"{self._budget.spent} spent and {self._budget.reserved} held of a budget, for a cost of {cost}"
            )
        return found


class Peer:
    """A system that puts something in place of the client's methods. Those are exchanged to turn it off and on, whatever it can do
    itself: some cannot take themselves off again, some only in part."""

    def __init__(self, sink: Sink, install: Callable[[Sink], None]) -> None:
        before = _methods()
        install(sink)
        self._both = {
            where: (before.get(where), now) for where, now in _methods().items() if before.get(where) is not now
        }
        if not self._both:
            raise RuntimeError("it has put nothing in place of the client's methods")
        self._on = True

    def turned(self, bare: dict[str, Callable[[], Any]], *, on: bool) -> dict[str, Callable[[], Any]]:
        if on != self._on:
            for (holder, name), values in self._both.items():
                if values[on] is None:  # it was inherited
                    delattr(holder, name)
                else:
                    setattr(holder, name, values[on])
        self._on = on
        return bare

    def complaints(self, made: int) -> list[str]:
        return []


def _methods() -> dict[tuple[Any, str], Any]:
    """What the client's modules and classes hold. Models are left out: pydantic finishes theirs when they are first used."""
    from pydantic import BaseModel

    holders: set[Any] = set()
    for name, module in list(sys.modules.items()):
        if name.startswith(("openai.resources", "openai._client", "openai._base_client", "openai._streaming")):
            held = [
                value
                for value in vars(module).values()
                if isinstance(value, type) and value.__module__.startswith("openai")
            ]
            holders |= {module, *(one for one in held if not issubclass(one, BaseModel))}
    return {
        (holder, name): value
        for holder in holders
        for name, value in vars(holder).items()
        if callable(value) and not isinstance(value, type)
    }


def _instrumentor(module: str) -> Callable[[Sink], None]:
    def install(sink: Sink) -> None:
        sink.standard()
        import_module(module).OpenAIInstrumentor().instrument()

    return install


def _openlit(sink: Sink) -> None:
    sink.standard()
    sink.log()
    # Dollars for a thousand tokens. Without a file it fetches one. (OpenAI's list prices, as genai-prices 0.2.3 has them.)
    prices: dict[str, dict[str, Any]] = {
        "chat": {"gpt-4o-mini": {"promptPrice": 0.00015, "completionPrice": 0.0006}},
        "embeddings": {"text-embedding-3-small": 0.00002},
    }
    prices["chat"]["gpt-4o-mini-2024-07-18"] = prices["chat"]["gpt-4o-mini"]
    file = Path(tempfile.mkdtemp()) / "prices.json"
    file.write_text(json.dumps(prices))
    import openlit
    from openlit._instrumentors import MODULE_NAME_MAP

    openlit.init(
        pricing_json=str(file),
        capture_message_content=False,
        disable_metrics=not sink.with_metrics,
        disabled_instrumentors=[name for name in MODULE_NAME_MAP if name != "openai"],
    )


def _langfuse(sink: Sink) -> None:
    sink.meter()
    from langfuse import Langfuse

    # Its client has a batch processor of its own, before the exporter that it is given.
    Langfuse(
        public_key="pk-bench",
        secret_key="sk-bench",
        base_url="http://bench.invalid",
        tracer_provider=sink.trace(),
        span_exporter=sink.span_exporter(),
    )
    import_module("langfuse.openai")  # which patches the client


def _logfire(sink: Sink) -> None:
    import logfire

    # It makes its providers itself.
    logfire.configure(
        send_to_logfire=False,
        console=False,
        data_dir=tempfile.mkdtemp(),
        additional_span_processors=[sink.span_processor()],
        metrics=logfire.MetricsOptions(additional_readers=[sink.metric_reader()]) if sink.with_metrics else False,
    )
    logfire.instrument_openai()
    sink.flushes.append(logfire.force_flush)


PEERS: dict[str, tuple[Callable[[Sink], None], dict[str, str]]] = {
    "otel-genai-openai": (_instrumentor("opentelemetry.instrumentation.genai.openai"), {}),
    "traceloop-openai": (_instrumentor("opentelemetry.instrumentation.openai"), {"TRACELOOP_TRACE_CONTENT": "false"}),
    "openinference-openai": (
        _instrumentor("openinference.instrumentation.openai"),
        {},
    ),  # to hide things takes it longer
    "openlit": (_openlit, {}),
    "langfuse": (_langfuse, {"OTEL_BSP_MAX_QUEUE_SIZE": "100000"}),
    "logfire": (_logfire, {}),
}
"""Name -> (what switches it on, its settings). Each has those with which it is quickest, and none records less than its calls and their usage."""


def system(name: str, sink: Sink) -> System:
    """Set up one system; whatever it needs is imported now."""
    if name == "floor":
        return Floor(sink)
    if name.startswith("aifinops"):
        return Ours(sink, name.partition("+")[2])
    install, settings = PEERS[name]
    os.environ.update(settings)
    return Peer(sink, install)


# --- rounds ------------------------------------------------------------------------------------------------------------------


class Bench:
    """The calls, the system and where it tells of them."""

    def __init__(self, name: str, *, with_metrics: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.sink = Sink(with_metrics=with_metrics)
        self.bare = calls()
        for kind, call in self.bare.items():  # all of the client is loaded before anything is put into it
            repeat(self.loop, kind, call, 1)
        self.system = system(name, self.sink)
        self.made = 0
        # The collector goes through all of a program now and then, which takes as long as a hundred calls: what is there by now is left
        # out of that, so that it takes what the calls themselves leave behind.
        gc.collect()
        gc.freeze()

    def answer(self, line: str) -> dict[str, Any]:
        if line == "check":
            found = self.system.complaints(self.made)
            return {"error": "; ".join(found)} if found else {}
        kind, times, switch = line.split()
        return self.timed(kind, int(times), on=switch == "on")

    def timed(self, kind: str, times: int, *, on: bool) -> dict[str, Any]:
        call = self.system.turned(self.bare, on=on)[kind]
        warming = 1 + times // 20
        repeat(self.loop, kind, call, warming)
        before = self.sink.flush()
        gc.collect()
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        repeat(self.loop, kind, call, times)
        spans = self.sink.flush() - before
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        self.made += (warming + times) * on
        found = {"cpu_us": cpu / 1000 / times, "wall_us": wall / 1000 / times, "spans": spans / times}
        if Refused.count:
            return {"error": f"it has asked for a network {Refused.count} times"}
        if (spans < times) if on else spans:
            return {"error": f"{spans} spans of {times} calls with it {'on' if on else 'off'}"}
        return found


def main() -> None:
    Refused.install()
    bench = Bench(sys.argv[1], with_metrics=sys.argv[2:] != ["spans"])
    versions = {name: version(name) for name in ("openai", "opentelemetry-sdk")}
    print(json.dumps({"ready": sys.argv[1], **versions}), flush=True)
    for line in sys.stdin:
        try:
            answer = bench.answer(line.strip())
        except Exception as failure:  # the others are measured all the same
            answer = {"error": f"{type(failure).__name__}: {failure}"}
        print(json.dumps(answer), flush=True)
    bench.loop.run_until_complete(bench.loop.shutdown_asyncgens())
    bench.loop.close()


if __name__ == "__main__":
    main()
