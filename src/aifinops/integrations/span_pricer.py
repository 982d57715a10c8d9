"""Prices for the spans that other instrumentations make: as they are exported, or as they are finished.

Usage is computed from answers wherever our seams meter a call. Here it is read from spans, for teams that keep their instrumentor: what a
span does not say (how long a cache entry lives, server-side tools) is not priced, and what is sampled out is not seen.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from aifinops import metering, runtime
from aifinops.charges import Charge
from aifinops.errors import swallow
from aifinops.forking import in_child
from aifinops.metering import Call, charged
from aifinops.pricing.match import provider_id
from aifinops.tags import EMPTY
from aifinops.telemetry import attributes as span_attributes
from aifinops.telemetry import names
from aifinops.telemetry.exporting import copied
from aifinops.telemetry.foreign import Foreign, is_inference, read
from aifinops.telemetry.guests import late

__all__ = ["CompletionHook", "SpanPricer", "completion_hook"]

MOST_SPANS = 16_384
"""Spans of which it is remembered what they got, or that a child of theirs is priced; beyond it the oldest are forgotten."""

_Span = tuple[int, int]
"""Ids of a trace and of a span in it."""
_More = Mapping[str, Any]


class _Told:
    """What the spans of this process were given: one answer for each, however many exporters ask and however often.

    The lock is held while a span is charged, so that of two exporters in threads of their own one charges it and the other finds it so.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._given: OrderedDict[_Span, tuple[_More | None, bool]] = OrderedDict()
        self._parents: OrderedDict[_Span, None] = OrderedDict()

    def given(self, span: _Span, *, record: bool) -> tuple[_More | None] | None:
        """What a span got before; None for one that has not been here, or only without a row where one is wanted."""
        found = self._given.get(span)
        return None if found is None or (record and not found[1]) else (found[0],)

    def give(self, span: _Span, more: _More | None, *, recorded: bool) -> None:
        """Remember what a span got, and whether no row of it is wanted any more."""
        self._given[span] = (more, recorded)
        if len(self._given) > MOST_SPANS:
            self._given.popitem(last=False)

    def note_parent(self, span: ReadableSpan) -> None:
        """A span is priced: what is above it repeats it."""
        if span.parent is not None:
            self._parents[span.parent.trace_id, span.parent.span_id] = None
            if len(self._parents) > MOST_SPANS:
                self._parents.popitem(last=False)

    def has_priced_child(self, span: _Span) -> bool:
        """Whether a span below this one is priced. Children end first, so their exporter has seen them first."""
        return self._parents.pop(span, _NONE) is None


_NONE = object()
_told = _Told()


def _after_fork() -> None:
    _told.lock = threading.RLock()  # the thread that may have held it is not here


in_child(_after_fork)


class SpanPricer(SpanExporter):
    """An exporter that adds costs to the spans of model calls and passes everything on.

        provider.add_span_processor(BatchSpanProcessor(aifinops.SpanPricer(OTLPSpanExporter())))

    A finished span of any instrumentation that names provider, model and tokens gets cost attributes on an exported copy, and a ledger
    entry: once for each span and each response id, never for a call that is metered already, and never for spans that repeat what their
    children say (agents, workflows, a framework's own span around a client's). Prompts and answers are neither read nor kept. A span that
    passes several of these, or one of them twice, has the same costs in each.

    Args:
        exporter: where the spans go. record: False adds costs to spans only and writes no ledger entries.
    """

    def __init__(self, exporter: SpanExporter, *, record: bool = True) -> None:
        self._exporter = exporter
        self._record = record
        late.wanted = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Price and pass on; a span that we fail at is passed on as it is."""
        metering.drain()  # streams that were dropped are charged first, so that their ids are known
        return self._exporter.export([self._priced(span) for span in spans])

    def shutdown(self) -> None:
        """Shut down the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)

    def _priced(self, span: ReadableSpan) -> ReadableSpan:
        try:
            more = self._more(span)
            return span if not more else copied(span, {**more, **(span.attributes or {})})
        except Exception as failure:  # the application's trace goes out whatever we make of it
            swallow("integrations.span_pricer", failure)
            return span

    def _more(self, span: ReadableSpan) -> _More | None:
        """What to add to a span."""
        context = span.context
        if context is None:
            return None
        key = (context.trace_id, context.span_id)
        with _told.lock:
            before = _told.given(key, record=self._record)
            if before is not None:
                return before[0]
            return self._decided(span, key)

    def _decided(self, span: ReadableSpan, key: _Span) -> _More | None:
        said, scope = span.attributes or {}, span.instrumentation_scope
        name = "" if scope is None else scope.name
        if _told.has_priced_child(key):
            _told.note_parent(span)
            _told.give(key, None, recorded=True)
            return None
        if name == names.SCOPE or names.RECORD_ID in said:
            _told.note_parent(span)
            return None
        if not is_inference(name, said):
            return None
        response_id = said.get(names.RESPONSE_ID)
        known = late.take(key[0], response_id) if isinstance(response_id, str) else None
        if known is not None:
            _told.note_parent(span)
            _told.give(key, known, recorded=True)
            return known
        call = read(name, said)
        if call is None:
            return None
        _told.note_parent(span)
        more = self._charged(span, call)
        _told.give(key, more, recorded=self._record or more is None)
        return more

    def _charged(self, span: ReadableSpan, call: Foreign) -> _More | None:
        if _is_metered(call):
            return None  # its cost is on another span, or in the ledger alone
        more = span_attributes.enrichment(_charge(call, span, record=self._record), compat=runtime.get().compat)
        if not self._record:
            del more[names.RECORD_ID]
        return more


class CompletionHook:
    """For `OTEL_INSTRUMENTATION_GENAI_COMPLETION_HOOK=aifinops`: prices each call that an official instrumentation finishes.

    The span takes the cost while it is still open, so that no exporter has to be wrapped. Calls whose trace is sampled out say nothing
    here. The messages that the hook is given are not looked at.
    """

    def on_completion(self, *, span: Any = None, **_unread: Any) -> None:
        """Called by `opentelemetry-util-genai` with the span of a call, before it ends."""
        try:
            if span is None or not span.is_recording():
                return
            said = span.attributes or {}
            scope = getattr(span, "instrumentation_scope", None)
            call = None if names.RECORD_ID in said else read("" if scope is None else scope.name, said)
            if call is None or _is_metered(call):
                return
            charge = _charge(call, span, record=True)
            more = span_attributes.enrichment(charge, compat=runtime.get().compat)
            span.set_attributes({name: value for name, value in more.items() if name not in said})
        except Exception as failure:  # never the problem of the call that has just been answered
            swallow("integrations.completion_hook", failure)


def completion_hook() -> CompletionHook:
    """The target of the entry point `opentelemetry_genai_completion_hook`."""
    return CompletionHook()


def _is_metered(call: Foreign) -> bool:
    """Whether a call has a ledger entry, or would have had one where its span does not say which answer it was."""
    response_id = call.reading.response_id
    if metering.in_flight() is not None:
        return True  # the span of the call that we are in the middle of
    if response_id:
        return charged.seen("", response_id)
    return _is_instrumented(call.provider)


def _is_instrumented(provider: str) -> bool:
    """Whether the client library of a provider is metered in this process; without an id nobody can tell its calls from others."""
    registry = sys.modules.get("aifinops.integrations.registry")
    if registry is None:
        return False
    active = {name.partition(" ")[0] for name, state in registry.state().items() if state == "active"}
    asked = provider_id(provider)
    for name in active & registry.PROVIDERS.keys():
        row = registry.provider(name)
        if asked in {provider_id(row.name), *map(provider_id, row.hosts.values())}:
            return True
    return False


def _charge(call: Foreign, span: Any, *, record: bool) -> Charge:
    began, ended = span.start_time or 0, span.end_time or runtime.get().clock.time_ns()
    said, context = span.attributes or {}, span.get_span_context()
    failed = said.get(names.ERROR_TYPE)
    make = metering.record_reading if record else metering.charge_of
    return make(
        Call(call.provider, call.operation, call.model, stream=call.stream),
        call.reading,
        at=began,
        duration=max(ended - began, 0),
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        tags=EMPTY,
        ended=failed if isinstance(failed, str) else "",
    )
