"""Somebody else's spans where the client library is not of Stainless' generator: one row and one span, and theirs is never lost.

Mistral's client makes spans itself; botocore and google-genai are instrumented by small wrappers at the places where the real
instrumentations have theirs. The real ones are run by `tests/stacking/run.py`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import wrapt
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import aifinops as af
from aifinops import runtime
from aifinops.charges import Charge
from aifinops.integrations import others
from aifinops.telemetry.guests import SUPPRESS, late
from aifinops.testing import ScriptedProvider

CANARY = "canary-3e8d"
ASKED: dict[str, Any] = {
    "model": "mistral-small-latest",
    "messages": [{"role": "user", "content": f"{CANARY} hello"}],
}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
SAID = {"role": "assistant", "content": CANARY}
ABOUT = {"id": "c1", "created": 1_790_000_000, "model": "mistral-small-latest"}
CHAT = {
    **ABOUT, "object": "chat.completion", "usage": USAGE, "choices": [{"index": 0, "finish_reason": "stop", "message": SAID}],
}  # fmt: skip
PIECES = [
    *({**ABOUT, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": SAID, "finish_reason": None}]},) * 3,
    {**ABOUT, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}],
     "usage": USAGE},
]  # fmt: skip
END = "data: [DONE]\n\n"
STREAM = "".join(f"data: {json.dumps(piece)}\n\n" for piece in PIECES) + END
NATIVE = "mistralai_sdk_tracer"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    made = InMemoryMetricReader()
    provider = MeterProvider([made], shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", provider)
    return made


@pytest.fixture(autouse=True)
def taken_back() -> Iterator[None]:
    yield
    af.uninstrument()
    late.wanted = False


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def only(spans: InMemorySpanExporter, scope: str) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == scope
    return span


def told(reader: InMemoryMetricReader) -> set[str]:
    data = reader.get_metrics_data()
    scopes = [scope for resource in (data.resource_metrics if data else ()) for scope in resource.scope_metrics]
    return {metric.name for scope in scopes for metric in scope.metrics}


# --- Mistral's own spans ------------------------------------------------------------------------------------------------


@pytest.fixture
def mistral() -> Iterator[Any]:
    """A client that makes spans."""
    home = pytest.importorskip("mistralai.client")
    telemetry = pytest.importorskip("mistralai.extra.observability.telemetry")
    if not hasattr(telemetry, "configure_telemetry"):
        pytest.skip("a version without spans of its own")

    with (
        ScriptedProvider({"/v1/chat/completions": CHAT, "/v1/agents/completions": CHAT}) as server,
        home.Mistral(api_key="test", server_url=server.url) as made,
    ):
        telemetry.configure_telemetry(made, "global")
        made.answers, made.script = server.answers, server
        yield made


def ask(client: Any, shape: str) -> Any:
    """Make a call of a shape, and have it answered so."""
    for path in client.answers:
        client.answers[path] = STREAM if "stream" in shape else CHAT
    return SHAPES[shape](client)


async def _aplain(client: Any) -> None:
    async with client:
        await client.chat.complete_async(**ASKED)


async def _astream(client: Any) -> None:
    async with client:
        async for _ in await client.chat.stream_async(**ASKED):
            pass


AGENT = {"agent_id": "ag_1", "messages": ASKED["messages"]}
SHAPES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda client: client.chat.complete(**ASKED),
    "stream": lambda client: list(client.chat.stream(**ASKED)),
    "async": lambda client: asyncio.run(_aplain(client)),
    "async stream": lambda client: asyncio.run(_astream(client)),
    "agent": lambda client: client.agents.complete(**AGENT),
    "agent stream": lambda client: list(client.agents.stream(**AGENT)),
}


@pytest.mark.parametrize("mode", ["auto", "emit", "enrich"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_span_of_mistrals_client_gets_our_cost(
    shape: str, mode: str, mistral: Any, spans: InMemorySpanExporter, reader: Any
) -> None:
    """Its span is the only one, with our cost on it and its ids in the row, also of streams and of agents."""
    af.init(ledger="memory", spans=mode)
    af.instrument("mistral")
    ask(mistral, shape)
    (row,) = rows()
    span = only(spans, NATIVE)
    assert (span.attributes or {})["aifinops.record.id"] == row.id
    assert (span.attributes or {})["gen_ai.usage.input_tokens"] == 1000  # read by themselves
    assert (row.trace_id, row.span_id) == (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")
    assert dict(row.quantities) == {"input_tokens": 1000, "output_tokens": 200}
    assert "gen_ai.client.token.usage" not in told(reader)


@pytest.mark.parametrize("shape", ["plain", "stream"])
def test_mistrals_span_says_the_same_with_us(shape: str, mistral: Any, spans: InMemorySpanExporter) -> None:
    """It reads the answer itself when the stream is closed: what we put on the answer must not be in its way."""

    def attributes() -> dict[str, Any]:
        found = dict(only(spans, NATIVE).attributes or {})
        spans.clear()
        return found

    ask(mistral, shape)
    without = attributes()
    af.init(ledger="memory", spans="off")
    af.instrument("mistral")
    ask(mistral, shape)
    assert attributes() == without
    assert without["gen_ai.usage.input_tokens"] == 1000


@pytest.mark.parametrize("shape", ["plain", "stream"])
def test_a_client_that_made_spans_before_us(shape: str, mistral: Any, spans: InMemorySpanExporter) -> None:
    """Its library has kept the `send` of that time; the calls are seen all the same, also after we were gone for a while."""
    af.init(ledger="memory", spans="auto")
    ask(mistral, shape)
    assert rows() == []
    for count in (1, 2):
        spans.clear()
        af.instrument("mistral")
        ask(mistral, shape)
        assert len(rows()) == count
        assert (only(spans, NATIVE).attributes or {})["aifinops.record.id"] == rows()[-1].id
        af.uninstrument()
        ask(mistral, shape)
        assert len(rows()) == count


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_stream_of_mistral_that_nobody_reads_on(how: str, mistral: Any, spans: InMemorySpanExporter) -> None:
    """It is one row, and the span ends."""
    af.init(ledger="memory", spans="auto")
    af.instrument("mistral")
    mistral.answers["/v1/chat/completions"] = STREAM
    stream = mistral.chat.stream(**ASKED)
    next(iter(stream))
    if how == "closed":
        with stream:
            pass
    del stream
    gc.collect()
    assert len(rows()) == 1
    assert only(spans, NATIVE).end_time


@pytest.mark.parametrize("piece", [7, 4096, len(STREAM) - len(END)], ids=["small", "whole", "end alone"])
@pytest.mark.parametrize("shape", ["plain", "stream", "async", "async stream"])
def test_spans_that_are_priced_when_we_make_none(
    shape: str, piece: int, mistral: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads a span of a call that we meter finds it charged, however its stream was closed."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(af.SpanPricer(InMemorySpanExporter())))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    af.init(ledger="memory", spans="off")
    af.instrument("mistral")
    mistral.script.piece = piece
    ask(mistral, shape)
    assert len(rows()) == 1


def test_mistral_without_its_spans(mistral: Any, spans: InMemorySpanExporter) -> None:
    """Its wrapper of `send` stays when its spans are switched off; the span is ours then."""
    af.init(ledger="memory", spans="auto")
    af.instrument("mistral")
    mistral.chat.complete(**ASKED)
    spans.clear()
    hooks = mistral.sdk_configuration._hooks.before_request_hooks
    hook = next(one for one in hooks if type(one).__name__ == "TracingHook")
    hook.tracer_provider, hook._telemetry_use_global_provider = None, False
    mistral.chat.complete(**ASKED)
    only(spans, "aifinops")


# --- wrappers of others -------------------------------------------------------------------------------------------------


class Instrumentor:
    """One of OpenTelemetry's kind."""

    _instance: Any = None
    scope = "opentelemetry.instrumentation.botocore.bedrock-runtime"
    operation = "chat"

    def __init__(self) -> None:
        type(self)._instance = self
        self._is_instrumented_by_opentelemetry = False
        self.undo: Callable[[], None] = lambda: None

    def instrument(self, owner: Any, name: str) -> None:
        plain = getattr(owner, name)
        setattr(owner, name, wrapt.FunctionWrapper(plain, self.around))
        self.undo = lambda: setattr(owner, name, plain)
        self._is_instrumented_by_opentelemetry = True

    def uninstrument(self) -> None:
        self.undo()
        self._is_instrumented_by_opentelemetry = False

    def around(self, wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        if context.get_value(SUPPRESS) is True and "google" in self.scope:
            return wrapped(*args, **kwargs)
        said = {"gen_ai.operation.name": self.operation, "gen_ai.provider.name": "aws", "gen_ai.request.model": "some"}
        span = trace.get_tracer(self.scope).start_span("chat", attributes=said)
        with trace.use_span(span, end_on_exit=False):
            result = wrapped(*args, **kwargs)
        span.end()
        return result


class BotocoreInstrumentor(Instrumentor):
    """On the method that is ours as well."""


class AiobotocoreInstrumentor(Instrumentor):
    """Of the same module, and for another library."""


class GoogleGenAiSdkInstrumentor(Instrumentor):
    """On the methods that users call."""

    scope = "opentelemetry.instrumentation.google_genai"
    operation = "generate_content"


@pytest.fixture
def other(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    base: Any = ModuleType("opentelemetry.instrumentation.instrumentor")
    base.BaseInstrumentor = Instrumentor
    monkeypatch.setitem(sys.modules, base.__name__, base)
    kinds = [BotocoreInstrumentor, AiobotocoreInstrumentor, GoogleGenAiSdkInstrumentor]
    for name, found in (("botocore", kinds[:2]), ("google_genai", kinds[2:])):
        place: Any = ModuleType(f"opentelemetry.instrumentation.{name}")
        for kind in found:
            setattr(place, kind.__name__, kind)
        monkeypatch.setitem(sys.modules, place.__name__, place)
    made = request.param()
    yield made
    made.uninstrument()
    for kind in kinds:
        kind._instance = None


BOTH_ORDERS = pytest.mark.parametrize("order", ["ours first", "theirs first"])
NOVA = "amazon.nova-lite-v1:0"
TOLD = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}
CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": CANARY}]}}, "stopReason": "end_turn", "usage": TOLD,
    "metrics": {"latencyMs": 7},
}  # fmt: skip


@pytest.fixture
def converse() -> Iterator[Callable[[], Any]]:
    boto3 = pytest.importorskip("boto3")
    with ScriptedProvider({f"/model/{NOVA.replace(':', '%3A')}/converse": CONVERSED}) as server:
        session = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
        client = session.client("bedrock-runtime", endpoint_url=server.url)
        asked = [{"role": "user", "content": [{"text": CANARY}]}]
        yield lambda: client.converse(modelId=NOVA, messages=asked)
        client.close()


@BOTH_ORDERS
@pytest.mark.parametrize("mode", ["auto", "emit"])
@pytest.mark.parametrize("other", [BotocoreInstrumentor], indirect=True)
def test_an_instrumented_botocore(
    order: str, mode: str, other: Any, converse: Callable[[], Any], spans: InMemorySpanExporter, reader: Any
) -> None:
    """Whoever of the two is further out: the one span is theirs, with our cost."""
    client = pytest.importorskip("botocore.client")
    af.init(ledger="memory", spans=mode)
    steps = [lambda: af.instrument("bedrock"), lambda: other.instrument(client.BaseClient, "_make_api_call")]
    for step in steps if order == "ours first" else reversed(steps):
        step()
    plain = vars(client.BaseClient)["_make_request"]
    converse()
    (row,) = rows()
    span = only(spans, other.scope)
    assert (span.attributes or {})["aifinops.record.id"] == row.id
    assert row.span_id == f"{span.context.span_id:016x}"
    assert "gen_ai.client.token.usage" not in told(reader)
    af.uninstrument()
    assert (vars(client.BaseClient)["_make_request"] is plain) == (type(plain) is not wrapt.FunctionWrapper)


def test_nothing_is_looked_for_where_nobody_else_is() -> None:
    """A method of botocore that only their spans need is left as it is."""
    client = pytest.importorskip("botocore.client")
    plain = vars(client.BaseClient)["_make_request"]
    af.init(ledger="memory")
    af.instrument("bedrock")
    assert vars(client.BaseClient)["_make_request"] is plain


@pytest.mark.parametrize("other", [BotocoreInstrumentor], indirect=True)
def test_instrumentors_of_one_module_are_told_apart(other: Any) -> None:
    """Botocore's being switched on says nothing of aiobotocore."""
    other._is_instrumented_by_opentelemetry = True
    AiobotocoreInstrumentor()
    on = {one.library for one in others.OTHERS if one.module.endswith(".botocore") and one.active()}
    assert on == {"botocore"}


@BOTH_ORDERS
@pytest.mark.parametrize(("mode", "scope"), [("auto", GoogleGenAiSdkInstrumentor.scope), ("emit", "aifinops")])
@pytest.mark.parametrize("other", [GoogleGenAiSdkInstrumentor], indirect=True)
def test_an_instrumented_google_genai(
    order: str, mode: str, scope: str, other: Any, spans: InMemorySpanExporter, reader: Any
) -> None:
    """Theirs is the span in `auto`; in `emit` we stand in front of the method that they have wrapped, and it is ours."""
    genai = pytest.importorskip("google.genai")
    body = {
        "candidates": [{"content": {"parts": [{"text": CANARY}], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 7, "totalTokenCount": 107},
        "modelVersion": "gemini-2.5-flash", "responseId": "r1",
    }  # fmt: skip
    af.init(ledger="memory", spans=mode)
    steps = [lambda: af.instrument("google"), lambda: other.instrument(genai.models.Models, "generate_content")]
    for step in steps if order == "ours first" else reversed(steps):
        step()
    paths = [f"/{version}/models/gemini-2.5-flash:generateContent" for version in ("v1", "v1beta")]
    with ScriptedProvider(dict.fromkeys(paths, body)) as server:
        client = genai.Client(api_key="test", http_options={"base_url": server.url})
        client.models.generate_content(model="gemini-2.5-flash", contents=CANARY)
        client.close()
    (row,) = rows()
    span = only(spans, scope)
    assert row.span_id == f"{span.context.span_id:016x}"
    assert ("gen_ai.client.token.usage" in told(reader)) == (mode == "emit")


def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


@pytest.mark.parametrize("with_another", [False, True], ids=["alone", "with another"])
@pytest.mark.parametrize("mode", ["auto", "emit", "enrich"])
@pytest.mark.parametrize("other", [GoogleGenAiSdkInstrumentor], indirect=True)
def test_each_request_of_one_call_has_a_span(
    mode: str, with_another: bool, other: Any, spans: InMemorySpanExporter, reader: Any
) -> None:
    """The library asks the model again with what a function gave: two rows, and two spans that say which is whose. Theirs is around both
    and has the cost of the first; that of the second is one of ours inside of it."""
    genai = pytest.importorskip("google.genai")
    call = {"functionCall": {"name": "weather", "args": {"city": "Rome"}}}
    bodies = [
        {
            "candidates": [{"content": {"parts": [part], "role": "model"}, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": count, "candidatesTokenCount": 7, "totalTokenCount": count + 7},
            "modelVersion": "gemini-2.5-flash", "responseId": f"r{count}",
        }
        for count, part in ((100, call), (200, {"text": CANARY}))
    ]  # fmt: skip
    af.init(ledger="memory", spans=mode)
    af.instrument("google")
    if with_another:
        other.instrument(genai.models.Models, "generate_content")
    paths = [f"/{version}/models/gemini-2.5-flash:generateContent" for version in ("v1", "v1beta")]
    with ScriptedProvider({path: tuple(bodies) for path in paths}) as server:
        client = genai.Client(api_key="test", http_options={"base_url": server.url})
        config = genai.types.GenerateContentConfig(tools=[weather])
        client.models.generate_content(model="gemini-2.5-flash", contents=CANARY, config=config)
        client.close()
    found = rows()
    made = spans.get_finished_spans()
    if mode == "enrich":  # where we make none
        assert len(made) == with_another
        assert len(found) == 2
        return
    assert sorted(row.quantities["input_tokens"] for row in found) == [100, 200]
    assert {row.span_id for row in found} == {f"{span.context.span_id:016x}" for span in made}
    assert {(span.attributes or {})["aifinops.record.id"] for span in made} == {row.id for row in found}
    if with_another and mode == "auto":
        outer = next(span for span in made if span.instrumentation_scope.name == other.scope)
        inner = next(span for span in made if span is not outer)
        assert inner.parent is not None
        assert inner.parent.span_id == outer.context.span_id
        assert "gen_ai.client.token.usage" not in told(reader)
