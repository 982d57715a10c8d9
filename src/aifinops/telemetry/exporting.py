"""Exporters around exporters: spans in the dialects of backends, and a count of what could not be delivered."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from aifinops.errors import swallow
from aifinops.telemetry.delivery import lost
from aifinops.telemetry.dialects import DIALECTS, spoken

__all__ = ["DialectExporter", "copied", "counting"]


class DialectExporter(SpanExporter):
    """An exporter that writes the spans of model calls in the dialects of backends, and passes everything on.

        provider.add_span_processor(BatchSpanProcessor(aifinops.DialectExporter(OTLPSpanExporter(), dialects=["langfuse"])))

    Exported is a copy: other exporters of the same provider see the span as it is. `init(otlp=...)` makes one by itself. Together with
    `SpanPricer` this one is inside: `SpanPricer(DialectExporter(exporter))`.

    Args:
        exporter: where the spans go. dialects: names as in `AIFINOPS_DIALECTS`.

    Raises:
        ConfigurationError: for an unknown dialect, and for two that do not go together.
    """

    def __init__(self, exporter: SpanExporter, dialects: Sequence[str] | str = ("compat",)) -> None:
        from aifinops.config import read_dialects

        self._exporter = exporter
        self._dialects = tuple(name for name in read_dialects(dialects, "DialectExporter()") if _of_spans(name))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Translate and pass on; a span that we fail at is passed on as it is."""
        if self._dialects:
            spans = [self._translated(span) for span in spans]
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        """Shut down the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)

    def _translated(self, span: ReadableSpan) -> ReadableSpan:
        try:
            attributes = spoken(span.attributes or {}, self._dialects)
            return span if attributes is None else copied(span, attributes)
        except Exception as failure:  # the application's trace goes out whatever we make of it
            swallow("telemetry.dialects", failure)
            return span


def _of_spans(name: str) -> bool:
    row = DIALECTS[name]
    return bool(row.adds or row.drops or row.strict)


def copied(span: ReadableSpan, attributes: Mapping[str, Any]) -> ReadableSpan:
    """A copy of a finished span with other attributes."""
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def counting(exporter: Any, signal: str) -> Any:
    """The exporter itself, which from now on counts what it cannot deliver.

    Args:
        exporter: of spans, metrics or log records. signal: `traces`, `metrics` or `logs`.
    """
    export = exporter.export

    @functools.wraps(export)
    def counted(batch: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = export(batch, *args, **kwargs)
        except Exception:
            lost.add(signal, _records(batch))
            raise
        if getattr(result, "name", "SUCCESS") != "SUCCESS":
            lost.add(signal, _records(batch))
        return result

    exporter.export = counted
    return exporter


def _records(batch: Any) -> int:
    """How many spans, log records or metrics there are in what an exporter is given."""
    resources = getattr(batch, "resource_metrics", None)
    if resources is None:
        return len(batch)
    return sum(len(scope.metrics) for resource in resources for scope in resource.scope_metrics)
