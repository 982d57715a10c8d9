"""Calls under a foreign span: when it takes attributes, when it is held, and what waits for the exporter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aifinops.telemetry.guests import MOST_LATE, SUPPRESS, Guest, hosted, late, quieten
from aifinops.telemetry.spans import is_placeholder

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Any:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("somebody")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    late.clear()
    late.wanted = False


def test_the_span_around_takes_the_cost(tracer: Any, exporter: InMemorySpanExporter) -> None:
    """Attributes go onto the call span that is open around the call, and change nothing that it says itself."""
    with tracer.start_as_current_span("chat m", attributes=CHAT):
        guest = Guest()
        assert guest.found
        assert guest.add({"aifinops.cost.total": 0.5, "gen_ai.request.model": "other"})
    (span,) = exporter.get_finished_spans()
    assert span.attributes == {**CHAT, "aifinops.cost.total": 0.5}


@pytest.mark.parametrize("said", [{}, {"gen_ai.operation.name": "invoke_agent"}, {"openinference.span.kind": "CHAIN"}])
def test_other_spans_do_not(tracer: Any, said: dict[str, str]) -> None:
    """A span of the application, of an agent or of a chain is not the call's."""
    with tracer.start_as_current_span("work", attributes=said) as span:
        guest = Guest()
        assert not guest.found
        assert not guest.add({"aifinops.cost.total": 0.5})
        assert guest.context == span.get_span_context()


def test_a_span_that_begins_further_in_is_held(tracer: Any, exporter: InMemorySpanExporter) -> None:
    """Its end waits for the cost, keeps its own time, and a second release does nothing."""
    guest = Guest()
    span = tracer.start_span("chat m", attributes=CHAT)
    with trace.use_span(span):
        guest.look_again()
    assert guest.found
    span.end(1_900_000_000_000_000_000)
    assert not exporter.get_finished_spans()
    assert guest.add({"aifinops.cost.total": 0.5})
    guest.release()
    guest.release()
    (ended,) = exporter.get_finished_spans()
    assert ended.end_time == 1_900_000_000_000_000_000
    assert (ended.attributes or {})["aifinops.cost.total"] == 0.5
    assert "end" not in vars(span)


def test_a_span_that_is_still_open_when_released_ends_as_ever(tracer: Any, exporter: InMemorySpanExporter) -> None:
    """Whoever made it ends it, once."""
    guest = Guest()
    with tracer.start_as_current_span("chat m", attributes=CHAT):
        guest.look_again()
        guest.release()
        assert not exporter.get_finished_spans()
    assert len(exporter.get_finished_spans()) == 1


def test_the_outer_of_two_spans_is_the_host(tracer: Any) -> None:
    """Two instrumentations with a span each: the cost goes onto one of them only."""
    with tracer.start_as_current_span("outer", attributes=CHAT) as outer:
        guest = Guest()
        with tracer.start_as_current_span("inner", attributes=CHAT):
            guest.look_again()
        assert guest.context == outer.get_span_context()


class Wrapped(trace.Span, ReadableSpan):  # as Logfire's are: no attribute of the SDK's span is seen through it
    def __init__(self, span: Any) -> None:
        self.span = span

    def is_recording(self) -> bool:
        return bool(self.span.is_recording())

    def get_span_context(self) -> Any:
        return self.span.get_span_context()

    def set_attributes(self, attributes: Any) -> None:
        self.span.set_attributes(attributes)

    def end(self, end_time: int | None = None) -> None:
        self.span.end(end_time)

    set_attribute = add_event = update_name = set_status = record_exception = add_link = None  # type: ignore[assignment]


def test_a_span_inside_a_wrapper(tracer: Any, exporter: InMemorySpanExporter) -> None:
    """Whose span it is, is asked of the SDK's span inside."""
    span = Wrapped(tracer.start_span("chat m", attributes=CHAT))
    with trace.use_span(span, end_on_exit=True):
        guest = Guest()
        assert guest.add({"aifinops.cost.total": 0.5})
    (ended,) = exporter.get_finished_spans()
    assert (ended.attributes or {})["aifinops.cost.total"] == 0.5


def test_what_came_too_late_waits_for_its_span() -> None:
    """Each once, those of the span's own trace first, and nothing while nobody wants it."""
    late.put(1, "r", {"a": 0})
    assert late.take(1, "r") is None
    late.wanted = True
    late.put(1, "r", {"a": 1})
    late.put(2, "r", {"a": 2})
    late.put(0, "", {"a": 3})
    assert late.take(2, "r") == {"a": 2}
    assert late.take(9, "r") == {"a": 1}
    assert late.take(1, "r") is None
    assert late.take(0, "") is None


def test_only_so_much_waits() -> None:
    """The oldest are let go."""
    late.wanted = True
    for number in range(MOST_LATE + 1):
        late.put(0, f"r{number}", {"a": number})
    assert late.take(0, "r0") is None
    assert late.take(0, f"r{MOST_LATE}") == {"a": MOST_LATE}


def test_somebody_has_said_that_there_is_a_span(tracer: Any) -> None:
    """A framework's callbacks leave a key in the context where they cannot leave the span."""
    assert not hosted()
    token = context.attach(context.set_value(SUPPRESS, True))
    assert hosted()
    context.detach(token)
    with tracer.start_as_current_span("chat m", attributes=CHAT):
        assert hosted()


def test_what_makes_the_official_ones_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object of their class under their key; without their package only the other key is set."""
    bare = quieten(context.Context())
    assert dict(bare) == {SUPPRESS: True}
    module: Any = ModuleType("opentelemetry.util.genai.invocation")
    module.CLIENT_INFERENCE_CONTEXT_KEY, module.InferenceData = "the-key", dict
    monkeypatch.setitem(sys.modules, "opentelemetry.util.genai.invocation", module)
    assert dict(quieten(context.Context())) == {SUPPRESS: True, "the-key": {}}


def test_a_real_provider_that_is_called_a_proxy() -> None:
    """Logfire's providers are proxies by name; only the API's own stand for "none was set"."""
    named = type("ProxyTracerProvider", (), {"__module__": "logfire._internal.tracer"})
    assert not is_placeholder(named())
    assert is_placeholder(trace.ProxyTracerProvider())
    assert not is_placeholder(TracerProvider(shutdown_on_exit=False))
