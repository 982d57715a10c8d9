"""Spans of other instrumentations, priced as they are exported or finished: once each, and never what is metered already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode

import aifinops as af
from aifinops import metering, runtime
from aifinops.charges import Charge
from aifinops.integrations import span_pricer
from aifinops.integrations.span_pricer import CompletionHook, completion_hook
from aifinops.metering import Call, Charged
from aifinops.reading import Reading
from aifinops.telemetry.guests import late

CANARY = "canary-77c1"
SAID = {
    "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 200, "gen_ai.usage.cache_read.input_tokens": 600,
    "gen_ai.input.messages": CANARY,
}  # fmt: skip
AMOUNT = 225_000  # nanos: 400 x 0.15 + 600 x 0.075 + 200 x 0.60 USD per million


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    charged = Charged()
    monkeypatch.setattr(metering, "charged", charged)
    monkeypatch.setattr("aifinops.metering.seen.charged", charged)
    monkeypatch.setattr("aifinops.integrations.span_pricer.charged", charged)
    yield
    late.clear()
    late.wanted = False


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def tracer_of(
    exporter: InMemorySpanExporter, scope: str = "opentelemetry.instrumentation.openai", **options: Any
) -> Any:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(af.SpanPricer(exporter, **options)))
    return provider.get_tracer(scope)


def rows() -> list[Charge]:
    return list(runtime.get().ledger.rows())


def one(tracer: Any, response_id: str = "", **more: Any) -> Any:
    said = {**SAID, **more} | ({"gen_ai.response.id": response_id} if response_id else {})
    return tracer.start_span("chat gpt-4o-mini", attributes=said, start_time=1_780_000_000_000_000_000)


def test_a_span_gets_its_cost_and_a_row(exporter: InMemorySpanExporter) -> None:
    """The copy that is exported has the exact cost of the ledger's row; the row has the ids of the span and none of its texts."""
    span = one(tracer_of(exporter), "chatcmpl-1")
    span.end(1_780_000_002_000_000_000)
    (out,) = exporter.get_finished_spans()
    (row,) = rows()
    assert row.amount == AMOUNT
    assert (row.basis, row.response_id, row.provider, row.model) == ("priced", "chatcmpl-1", "openai", "gpt-4o-mini")
    assert (row.at, row.duration) == (1_780_000_000_000_000_000, 2_000_000_000)
    assert (row.trace_id, row.span_id) == (f"{out.context.trace_id:032x}", f"{out.context.span_id:016x}")
    said = dict(out.attributes or {})
    assert said["aifinops.cost.total"] == said["gen_ai.usage.cost"] == AMOUNT / 1e9
    assert said["aifinops.record.id"] == row.id
    assert {name: said[name] for name in SAID} == SAID
    assert CANARY not in repr(row)
    assert "aifinops.cost.total" not in span.attributes


def test_one_row_for_a_response(exporter: InMemorySpanExporter) -> None:
    """Two instrumentations tell the same answer, each with a span: it is charged once."""
    one(tracer_of(exporter), "chatcmpl-2").end()
    one(tracer_of(exporter, "openinference.instrumentation.openai"), "chatcmpl-2").end()
    assert len(rows()) == 1
    costs = ["aifinops.cost.total" in (span.attributes or {}) for span in exporter.get_finished_spans()]
    assert costs == [True, False]


def test_spans_without_an_id_are_calls_of_their_own(exporter: InMemorySpanExporter) -> None:
    """Nothing says that two of them are the same call."""
    tracer = tracer_of(exporter)
    one(tracer).end()
    one(tracer).end()
    assert len(rows()) == 2


@pytest.mark.parametrize("response_id", ["chatcmpl-20", ""])
@pytest.mark.parametrize("batched", [False, True])
def test_two_exporters_are_one_row_and_both_get_the_cost(response_id: str, batched: bool) -> None:
    """A trace that goes to two places is charged once, whether or not it says which answer it was, and each place sees the same."""
    first, second = InMemorySpanExporter(), InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    for exporter in (first, second):
        processor = BatchSpanProcessor if batched else SimpleSpanProcessor
        provider.add_span_processor(processor(af.SpanPricer(exporter)))
    tracer = provider.get_tracer("opentelemetry.instrumentation.openai")
    with trace.use_span(one(tracer), end_on_exit=True):  # of a framework, which tells the same again
        one(tracer, response_id).end()
    provider.shutdown()
    (row,) = rows()
    told = [[dict(span.attributes or {}) for span in exporter.get_finished_spans()] for exporter in (first, second)]
    assert told[0] == told[1]
    assert [said.get("aifinops.record.id") for said in told[0]] == [row.id, None]
    assert told[0][0]["aifinops.cost.total"] == AMOUNT / 1e9


@pytest.mark.parametrize("response_id", ["chatcmpl-21", ""])
def test_a_span_that_passes_twice_is_one_row(exporter: InMemorySpanExporter, response_id: str) -> None:
    """Two processors share a pricer: the span above is not taken for a call of its own the second time either."""
    provider, pricer = TracerProvider(shutdown_on_exit=False), af.SpanPricer(exporter)
    for _ in range(2):
        provider.add_span_processor(SimpleSpanProcessor(pricer))
    tracer = provider.get_tracer("opentelemetry.instrumentation.openai")
    with trace.use_span(one(tracer), end_on_exit=True):
        one(tracer, response_id).end()
    assert len(rows()) == 1
    costs = ["aifinops.cost.total" in (span.attributes or {}) for span in exporter.get_finished_spans()]
    assert costs == [True, True, False, False]


def test_what_came_too_late_goes_to_every_exporter() -> None:
    """The cost of a metered call whose span had ended is on each copy, and there is no second row."""
    exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
    provider = TracerProvider(shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(SimpleSpanProcessor(af.SpanPricer(exporter)))
    span = one(provider.get_tracer("opentelemetry.instrumentation.openai"), "chatcmpl-22")
    late.put(span.get_span_context().trace_id, "chatcmpl-22", {"aifinops.cost.total": 0.25})
    span.end()
    assert [
        (out.attributes or {})["aifinops.cost.total"] for exporter in exporters for out in exporter.get_finished_spans()
    ] == [0.25, 0.25]
    assert rows() == []


def test_one_exporter_with_rows_and_one_without(exporter: InMemorySpanExporter) -> None:
    """`record=False` seen first keeps the other from nothing: both show the cost, and there is one row."""
    provider, other = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(af.SpanPricer(other, record=False)))
    provider.add_span_processor(SimpleSpanProcessor(af.SpanPricer(exporter)))
    one(provider.get_tracer("opentelemetry.instrumentation.openai")).end()
    assert len(rows()) == 1
    for out in (*exporter.get_finished_spans(), *other.get_finished_spans()):
        assert (out.attributes or {})["aifinops.cost.total"] == AMOUNT / 1e9


def test_what_is_remembered_of_spans_is_bounded(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traces without an end do not fill the memory."""
    told = span_pricer._Told()
    monkeypatch.setattr(span_pricer, "_told", told)
    monkeypatch.setattr(span_pricer, "MOST_SPANS", 5)
    tracer = tracer_of(exporter)
    for _ in range(20):
        with trace.use_span(tracer.start_span("never ends"), end_on_exit=False):
            one(tracer).end()
    assert len(told._given) == len(told._parents) == 5


def test_what_is_above_a_priced_span_repeats_it(exporter: InMemorySpanExporter) -> None:
    """A framework's span around a client's says the same tokens again, as do those around it."""
    tracer = tracer_of(exporter)
    with trace.use_span(one(tracer), end_on_exit=True), trace.use_span(tracer.start_span("retry"), end_on_exit=True):
        one(tracer, "chatcmpl-3").end()
    inner, _, outer = exporter.get_finished_spans()
    assert len(rows()) == 1
    assert "aifinops.cost.total" in (inner.attributes or {})
    assert "aifinops.cost.total" not in (outer.attributes or {})


def test_a_call_that_is_metered_is_not_charged_again(exporter: InMemorySpanExporter) -> None:
    """Its id has a row: the span of somebody else says it once more."""
    metering.charged.note("azure.ai.openai", "chatcmpl-4")
    one(tracer_of(exporter), "chatcmpl-4").end()
    assert rows() == []


def test_what_came_too_late_is_added_at_export(exporter: InMemorySpanExporter) -> None:
    """The cost of a metered call whose span had ended goes onto the copy."""
    tracer = tracer_of(exporter)
    span = one(tracer, "chatcmpl-5")
    late.put(
        span.get_span_context().trace_id, "chatcmpl-5", {"aifinops.cost.total": 0.25, "gen_ai.request.model": "other"}
    )
    span.end()
    (out,) = exporter.get_finished_spans()
    assert (out.attributes or {})["aifinops.cost.total"] == 0.25
    assert (out.attributes or {})["gen_ai.request.model"] == "gpt-4o-mini"
    assert rows() == []


@pytest.mark.parametrize(
    "more",
    [
        {"gen_ai.operation.name": "invoke_agent"},
        {"gen_ai.operation.name": "execute_tool"},
        {"aifinops.record.id": "x"},
        {
            "gen_ai.usage.input_tokens": "many",
            "gen_ai.usage.output_tokens": -1,
            "gen_ai.usage.cache_read.input_tokens": 0.5,
        },
    ],
)
def test_no_row(exporter: InMemorySpanExporter, more: dict[str, Any]) -> None:
    """Agents and tools, what is priced already, and what tells no tokens pass as they are."""
    span = one(tracer_of(exporter), **more)
    span.end()
    (out,) = exporter.get_finished_spans()
    assert out.attributes == span.attributes
    assert rows() == []


def test_an_unknown_model_has_no_cost_and_a_row(exporter: InMemorySpanExporter) -> None:
    """Unknown is not zero: the row says so, and the span has no amount."""
    one(tracer_of(exporter), **{"gen_ai.request.model": "no-such-model"}).end()
    (out,) = exporter.get_finished_spans()
    (row,) = rows()
    assert row.amount is None
    assert "aifinops.cost.total" not in (out.attributes or {})
    assert (out.attributes or {})["aifinops.cost.basis"] == "unknown_price"


def test_costs_without_rows(exporter: InMemorySpanExporter) -> None:
    """`record=False` shows costs in the trace and leaves the ledger alone."""
    one(tracer_of(exporter, record=False), "chatcmpl-6").end()
    (out,) = exporter.get_finished_spans()
    assert (out.attributes or {})["aifinops.cost.total"] == AMOUNT / 1e9
    assert "aifinops.record.id" not in (out.attributes or {})
    assert rows() == []


def test_a_call_that_failed_after_its_tokens(exporter: InMemorySpanExporter) -> None:
    """What was counted is charged, with the error; status and events of the span are as they were."""
    span = one(tracer_of(exporter), "chatcmpl-7", **{"error.type": "openai.APIError"})
    span.add_event("something", {"a": 1})
    span.set_status(Status(StatusCode.ERROR, "no"))
    span.end()
    (out,) = exporter.get_finished_spans()
    (row,) = rows()
    assert (row.status, row.error) == ("error", "APIError")
    assert out.status.description == "no"
    assert [event.name for event in out.events] == ["something"]


def test_budgets_and_tags_of_the_process(exporter: InMemorySpanExporter) -> None:
    """A standing budget counts what spans tell, and the row has the tags of the process."""
    af.init(
        ledger="memory", tags={"team": "search"}, budgets=[{"name": "all", "limit": "$1", "match": {"team": "search"}}]
    )
    one(tracer_of(exporter), "chatcmpl-8").end()
    (row,) = rows()
    assert row.tags == {"team": "search"}
    (policy,) = runtime.get().policies
    assert metering.budget_figures(policy, "spent")["USD"] > 0


def test_the_hook_prices_an_open_span() -> None:
    """The official instrumentations call it before their span ends, so no exporter is wrapped; the messages are not looked at."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    span = one(provider.get_tracer("opentelemetry.instrumentation.genai.openai"), "chatcmpl-9")
    hook = completion_hook()
    assert isinstance(hook, CompletionHook)
    for _ in range(2):
        hook.on_completion(inputs=[CANARY], outputs=[CANARY], system_instruction=[], tool_definitions=None, span=span)
    span.end()
    (row,) = rows()
    (out,) = exporter.get_finished_spans()
    assert (out.attributes or {})["aifinops.cost.total"] == AMOUNT / 1e9
    assert CANARY not in repr(row)


@pytest.mark.parametrize("span", [None, trace.INVALID_SPAN])
def test_the_hook_without_a_span(span: Any) -> None:
    """A call whose trace is sampled out says nothing."""
    completion_hook().on_completion(inputs=[], outputs=[], system_instruction=[], span=span)
    assert rows() == []


def test_what_a_row_of_a_reading_says() -> None:
    """A price of a reading can be had without recording it."""
    call, reading = Call("openai", "chat", "gpt-4o-mini"), Reading({"input_tokens": 1000})
    charge = metering.charge_of(call, reading, at=1, duration=2, trace_id="", span_id="", tags={})
    assert charge.amount == 150_000
    assert rows() == []


def test_charged_ids() -> None:
    """An id is known under any spelling of its provider, not under another, and the oldest are forgotten."""
    charged = Charged(most=2)
    charged.note("aws.bedrock", "a")
    assert charged.seen("bedrock", "a")
    assert charged.seen("", "a")
    assert not charged.seen("openai", "a")
    charged.note("openai", "b")
    charged.note("openai", "c")
    assert not charged.seen("", "a")
    assert charged.seen("openai", "c")
