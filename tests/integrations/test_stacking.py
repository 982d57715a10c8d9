"""Somebody else instruments the same client: one row for each call, one span, one token metric, in both orders and every mode.

The other instrumentations here are small ones of the two kinds that there are: wrappers around the methods of resources (as of
OpenTelemetry's and Traceloop's), and wrappers around `request` of the client class (as of OpenInference and Logfire). The real ones are
run by `tests/stacking/run.py`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import wrapt  # noqa: E402
from opentelemetry import context, metrics, trace  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.integrations import others  # noqa: E402
from aifinops.telemetry.guests import SUPPRESS, late  # noqa: E402
from aifinops.testing import FakeProvider  # noqa: E402

ASKED: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "canary-91b2 hello"}]}
USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


class Instrumentor:
    """What both kinds share with OpenTelemetry's `BaseInstrumentor`: one instance, a switch, and a flag that tells its state."""

    _instance: Any = None
    scope = "somebody"

    def __init__(self) -> None:
        type(self)._instance = self
        self._is_instrumented_by_opentelemetry = False
        self.undo: list[Callable[[], None]] = []

    def instrument(self) -> None:
        self.wrap()
        self._is_instrumented_by_opentelemetry = True

    def uninstrument(self) -> None:
        while self.undo:
            self.undo.pop()()
        self._is_instrumented_by_opentelemetry = False

    def wrap(self) -> None:
        raise NotImplementedError

    def around(self, wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        if context.get_value(SUPPRESS) is True and self.scope.startswith("opentelemetry."):
            return wrapped(*args, **kwargs)
        said = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": ASKED["model"],
        }
        span = trace.get_tracer(self.scope).start_span("chat", attributes=said)
        with trace.use_span(span, end_on_exit=False):
            result = wrapped(*args, **kwargs)
        if hasattr(result, "id"):
            span.set_attribute("gen_ai.response.id", result.id)
        span.end()
        return result


class MethodInstrumentor(Instrumentor):
    scope = "opentelemetry.instrumentation.openai.v1"

    def wrap(self) -> None:
        owner = openai.resources.chat.completions.Completions
        plain = owner.create
        owner.create = wrapt.FunctionWrapper(plain, self.around)
        self.undo.append(lambda: setattr(owner, "create", plain))


class RequestInstrumentor(Instrumentor):
    scope = "openinference.instrumentation.openai"

    def wrap(self) -> None:
        plain = openai.OpenAI.request

        @wraps(plain)
        def request(client: Any, *args: Any, **kwargs: Any) -> Any:
            return self.around(lambda *a, **k: plain(client, *a, **k), client, args, kwargs)

        openai.OpenAI.request = request
        # As OpenInference does: what was inherited is left on the class itself.
        self.undo.append(lambda: setattr(openai.OpenAI, "request", plain))


KINDS = {"methods": MethodInstrumentor, "request": RequestInstrumentor}
PLACES = {"methods": "opentelemetry.instrumentation.openai", "request": "openinference.instrumentation.openai"}


@pytest.fixture
def other(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An instrumentation that is installed and not switched on, with a base class that is watched."""
    base: Any = ModuleType("opentelemetry.instrumentation.instrumentor")
    place: Any = ModuleType(PLACES[request.param])
    base.BaseInstrumentor = Instrumentor
    setattr(place, KINDS[request.param].__name__, KINDS[request.param])
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.setitem(sys.modules, place.__name__, place)
    made = KINDS[request.param]()
    yield made
    made.uninstrument()
    type(made)._instance = None
    for kind in (openai.OpenAI, openai.AsyncOpenAI):
        if "request" in vars(kind):
            del kind.request


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    late.wanted = False


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    made = InMemoryMetricReader()
    monkeypatch.setattr(
        "opentelemetry.metrics._internal._METER_PROVIDER", MeterProvider([made], shutdown_on_exit=False)
    )
    assert metrics.get_meter_provider() is not None
    return made


@pytest.fixture
def client() -> Iterator[Any]:
    with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        yield made


@pytest.fixture(autouse=True)
def taken_back() -> Iterator[None]:
    yield
    af.uninstrument()


def told(reader: InMemoryMetricReader) -> set[str]:
    data = reader.get_metrics_data()
    return {
        metric.name
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if any(getattr(point, "count", 1) for point in metric.data.data_points)
    }


def switch_on(other: Any, order: str) -> None:
    steps: list[Callable[[], Any]] = [lambda: af.instrument("openai"), lambda: other.instrument()]
    for step in steps if order == "ours first" else reversed(steps):
        step()


BOTH_ORDERS = pytest.mark.parametrize("order", ["ours first", "theirs first"])
BOTH_KINDS = pytest.mark.parametrize("other", list(KINDS), indirect=True)


@BOTH_KINDS
@BOTH_ORDERS
@pytest.mark.parametrize("more", [{}, USAGE], ids=["plain", "stream"])
@pytest.mark.parametrize("mode", ["auto", "enrich", "off"])
def test_one_row_under_their_span(
    mode: str, more: dict[str, Any], order: str, other: Any, spans: InMemorySpanExporter, reader: Any, client: Any
) -> None:
    """Theirs is the only span, the row is one with the ids of that span, and the token metrics are theirs to tell."""
    af.init(ledger="memory", spans=mode)
    switch_on(other, order)
    answer = client.chat.completions.create(**ASKED, **more)
    if more:
        list(answer)
    af.flush()
    (row,) = runtime.get().ledger.rows()
    (span,) = spans.get_finished_spans()
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == other.scope
    names = told(reader)
    assert "gen_ai.client.token.usage" not in names
    assert "aifinops.cost" in names
    assert row.basis == "priced"
    if mode != "off":
        assert row.trace_id == f"{span.context.trace_id:032x}"
    if mode != "off" and not more:
        assert (span.attributes or {})["aifinops.record.id"] == row.id
        assert row.span_id == f"{span.context.span_id:016x}"
    assert "canary" not in repr(row) + repr(span.attributes)


@BOTH_ORDERS
@pytest.mark.parametrize("other", ["methods"], indirect=True)
def test_emit_keeps_theirs_from_being_made(
    order: str, other: Any, spans: InMemorySpanExporter, reader: Any, client: Any
) -> None:
    """Their wrapper is further out than ours and yet makes no span, since the call has an owner."""
    af.init(ledger="memory", spans="emit")
    switch_on(other, order)
    client.chat.completions.create(**ASKED)
    (span,) = spans.get_finished_spans()
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "aifinops"
    assert "gen_ai.client.token.usage" in told(reader)


@pytest.mark.parametrize("other", ["request"], indirect=True)
def test_emit_gives_way_to_what_cannot_be_silenced(other: Any, spans: InMemorySpanExporter, client: Any) -> None:
    """Two spans of one call are worse than theirs alone."""
    af.init(ledger="memory", spans="emit")
    switch_on(other, "ours first")
    client.chat.completions.create(**ASKED)
    assert [span.instrumentation_scope.name for span in spans.get_finished_spans() if span.instrumentation_scope] == [
        other.scope
    ]


@BOTH_KINDS
def test_switched_off_and_on(other: Any, spans: InMemorySpanExporter, client: Any) -> None:
    """Their coming and going is seen at once, and no call is missed, also where they leave the plain function on the class."""
    af.instrument("openai")
    scopes = []
    for step in ("", "instrument", "uninstrument", "instrument", "uninstrument"):
        if step:
            getattr(other, step)()
        client.chat.completions.create(**ASKED)
        (span,) = spans.get_finished_spans()
        scopes.append(span.instrumentation_scope.name if span.instrumentation_scope else "")
        spans.clear()
    assert scopes == ["aifinops", other.scope, "aifinops", other.scope, "aifinops"]
    assert len(list(runtime.get().ledger.rows())) == 5


@BOTH_KINDS
@BOTH_ORDERS
def test_uninstrument_leaves_theirs(order: str, other: Any, spans: InMemorySpanExporter, client: Any) -> None:
    """What they wrapped works on without us, and theirs can be taken back after ours."""
    af.init(ledger="memory", spans="emit")
    switch_on(other, order)
    client.chat.completions.create(**ASKED)
    af.uninstrument()
    spans.clear()
    client.chat.completions.create(**ASKED)
    assert [span.instrumentation_scope.name for span in spans.get_finished_spans() if span.instrumentation_scope] == [
        other.scope
    ]
    assert len(list(runtime.get().ledger.rows())) == 1
    other.uninstrument()
    client.chat.completions.create(**ASKED)
    assert len(spans.get_finished_spans()) == 1


@pytest.mark.parametrize("other", ["methods"], indirect=True)
def test_a_mode_that_comes_later(other: Any, spans: InMemorySpanExporter, client: Any) -> None:
    """`emit` that is set after `instrument()` has silenced nobody yet: theirs stays the only span."""
    switch_on(other, "ours first")
    af.init(ledger="memory", spans="emit")
    client.chat.completions.create(**ASKED)
    assert [span.instrumentation_scope.name for span in spans.get_finished_spans() if span.instrumentation_scope] == [
        other.scope
    ]
    other.uninstrument()
    other.instrument()
    spans.clear()
    client.chat.completions.create(**ASKED)
    assert [span.instrumentation_scope.name for span in spans.get_finished_spans() if span.instrumentation_scope] == [
        "aifinops"
    ]


@pytest.mark.parametrize("other", ["methods"], indirect=True)
def test_a_single_client_silences_nobody(other: Any, spans: InMemorySpanExporter, client: Any) -> None:
    """Other clients of the library are not ours: their spans are made as ever, and our call is a guest under one."""
    af.init(ledger="memory", spans="emit")
    other.instrument()
    af.instrument(client)
    with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as theirs:
        for one in (client, theirs):
            one.chat.completions.create(**ASKED)
    assert [span.instrumentation_scope.name for span in spans.get_finished_spans() if span.instrumentation_scope] == [
        other.scope
    ] * 2
    assert len(list(runtime.get().ledger.rows())) == 1


def test_an_endpoint_that_they_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes spans of chats makes none of speech: that call has nobody else."""
    place: Any = ModuleType("opentelemetry.instrumentation.openai")
    place.OpenAIInstrumentor = type("OpenAIInstrumentor", (), {})
    place.OpenAIInstrumentor._instance = type("Made", (), {"_is_instrumented_by_opentelemetry": True})
    monkeypatch.setitem(sys.modules, place.__name__, place)
    found = others.presence("openai")
    found.step_in()
    assert found.any
    assert found.names == ("Traceloop",)
    assert [found.rank(operation) for operation in ("chat", "speech")] == [1, 0]


def test_an_abandoned_stream_under_their_span(spans: InMemorySpanExporter, client: Any) -> None:
    """A span that waits for its cost ends when the stream is dropped and settled."""
    af.init(ledger="memory", spans="enrich")
    af.instrument("openai")
    said = {"gen_ai.operation.name": "chat"}
    with trace.get_tracer("somebody").start_as_current_span("chat", attributes=said):
        stream = client.chat.completions.create(**ASKED, **USAGE)
        next(iter(stream))
    del stream
    gc.collect()
    af.flush()
    (row,) = runtime.get().ledger.rows()
    assert row.status == "abandoned"
    assert len(spans.get_finished_spans()) == 1


def test_a_client_that_makes_spans_itself() -> None:
    """Anthropic's and Mistral's clients say themselves whether they do; any other object does not."""

    def client(module: str, **values: Any) -> Any:
        return type("Client", (), {"__module__": module, **values})()

    assert others.native(client("anthropic._client", _open_telemetry={"traces": {"enabled": True}}))
    assert not others.native(client("anthropic._client", _open_telemetry={"traces": {"enabled": False}}))
    assert not others.native(client("anthropic._client"))
    assert not others.native(client("openai._client", _open_telemetry={"traces": {"enabled": True}}))


def test_the_real_anthropic_client() -> None:
    """Its switch is where we look for it: on by default since 2.0, and off when the client is made so."""
    anthropic = pytest.importorskip("anthropic", minversion="2.0")
    assert others.native(anthropic.Anthropic(api_key="test"))
    assert not others.native(anthropic.Anthropic(api_key="test", open_telemetry=False))


def test_the_real_mistral_client() -> None:
    """Its switch is off by default."""
    mistral = pytest.importorskip("mistralai.client")
    assert not others.native(mistral.Mistral(api_key="test"))
