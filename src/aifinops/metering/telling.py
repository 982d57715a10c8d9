"""Who is told of a charge: the ledger, the blocks around the call, the span and the metrics. Each may fail on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aifinops.errors import swallow
from aifinops.forking import in_child
from aifinops.metering import seen
from aifinops.metering.call import NO_OUTPUT
from aifinops.telemetry import attributes as span_attributes
from aifinops.telemetry import names
from aifinops.telemetry.guests import Guest, late
from aifinops.telemetry.spans import error_type, guarded_finish

if TYPE_CHECKING:
    from aifinops.charges import Charge
    from aifinops.metering.invocation import Invocation
    from aifinops.reading import Reading
    from aifinops.scope import Scope

__all__ = ["keep", "learn", "measure", "tell"]


def keep(invocation: Invocation, charge: Charge) -> None:
    """Write a charge down, and show it to the blocks around the call."""
    try:
        invocation.engines.writer.write(charge)
    except Exception as failure:  # the writer keeps what a store refuses; this is what even that could not take
        swallow("metering.ledger", failure)
    if charge.response_id:
        seen.charged.note(charge.provider, charge.response_id)
    _give_to_trackers(invocation.scope, charge)


def _give_to_trackers(scope: Scope, charge: Charge) -> None:
    for tracker in scope.trackers:
        try:
            tracker.add(charge)
        except Exception as failure:  # somebody's tracker; the others still get theirs
            swallow("metering.tracker", failure)


def learn(invocation: Invocation, reading: Reading) -> None:
    """Remember what a call of its kind has used."""
    call, counts = invocation.call, reading.quantities
    if not counts or reading.estimated or call.service != "llm":
        return
    try:
        invocation.engines.learned.note(
            (call.provider, call.model, invocation.tags.get("feature", "")),
            invocation.prompt_bound,
            counts,
            answers=call.operation not in NO_OUTPUT,
        )
    except Exception as failure:  # what was learned only ever serves an expectation
        swallow("metering.learn", failure)


def tell(invocation: Invocation, charge: Charge, reading: Reading, error: BaseException | None) -> None:
    """End the span of a call, or add to somebody else's, and count the call in the metrics."""
    context: Any = None
    first = None if invocation.first_chunk is None else (invocation.first_chunk - invocation.started) / 1e9
    if invocation.span is not None:
        values = _values(invocation, charge, reading, first)
        context = invocation.span.context
        guarded_finish(invocation.span, values, invocation.wall + charge.duration, error)
        invocation.span = None
    elif invocation.guest is not None:
        context = invocation.guest.context
        _enrich(invocation, invocation.guest, charge)
    official = invocation.guest is None and not invocation.beside
    if context is not None and not context.trace_flags & 1:
        context = None  # no exemplar leads to a trace that nobody has
    measure(invocation, charge, "" if error is None else error_type(error), first, official=official, context=context)


def _values(invocation: Invocation, charge: Charge, reading: Reading, first: float | None) -> dict[str, Any]:
    facts, engines = invocation.call.facts, invocation.engines
    if reading.finish_reasons:
        facts = {**facts, names.FINISH_REASONS: reading.finish_reasons}
    if first is not None:
        facts = {**facts, names.TIME_TO_FIRST_CHUNK: first}
    body = invocation.call.body
    asked = body.get("service_tier") if type(body) is dict else None
    if engines.capture:
        facts = {**facts, **_content(invocation.call.body, invocation.said, reading.finish_reasons)}
    try:
        tier = asked if isinstance(asked, str) else ""
        return span_attributes.inference(charge, facts, compat=engines.compat, latest=engines.latest, request_tier=tier)
    except Exception as failure:  # a span without attributes still ends
        swallow("metering.span_attributes", failure)
        return {}


def _content(request: Any, said: Any, finish_reasons: tuple[str, ...]) -> dict[str, str]:
    try:
        from aifinops.telemetry import content

        return content.attributes(request, said, finish_reasons)
    except Exception as failure:  # a form that nobody has seen: the span goes without it
        swallow("metering.content", failure)
        return {}


def _enrich(invocation: Invocation, guest: Guest, charge: Charge) -> None:
    try:
        values = span_attributes.enrichment(charge, compat=invocation.engines.compat)
        if not guest.add(values):
            late.put(guest.context.trace_id, charge.response_id, values)
    except Exception as failure:  # a foreign span, of whatever kind, without our attributes
        swallow("metering.enrich", failure)


def measure(
    invocation: Invocation,
    charge: Charge,
    error: str,
    first_chunk: float | None,
    *,
    official: bool,
    context: Any = None,
) -> None:
    """Count a call in the metrics; `context` is that of its span, where that is kept."""
    try:
        invocation.engines.metrics.record(charge, error, first_chunk, charge.service, official, context)
    except Exception as failure:  # metrics are a view
        swallow("metering.metrics", failure)


in_child(late.clear)
