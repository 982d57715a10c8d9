"""The spans of a run: one of its own, and one for each phase of its own. A step has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aifinops import runtime
from aifinops.errors import swallow
from aifinops.telemetry import attributes as span_attributes
from aifinops.telemetry import names

if TYPE_CHECKING:
    from aifinops.scope import Scope

__all__ = ["phase_span", "run_span"]


def run_span(name: str, scope: Scope, at: int) -> Any:
    """Begin the span of a run, at a moment of the wall clock; None where there are none."""
    engines = runtime.get()
    if engines.spans is None:
        return None
    values: dict[str, Any] = {}
    span_attributes.add_tags(values, engines.tags(scope))
    return engines.spans.start_block(f"gpu {name}".strip(), values, at)


def phase_span(name: str, run_id: str) -> Any:
    """Begin that of a phase; None where there are none, or it fails."""
    try:
        engines = runtime.get()
        if engines.spans is None:
            return None
        values: dict[str, Any] = {names.PHASE: name, names.TAGS["run"]: run_id}
        return engines.spans.start_block(f"gpu {name}", values, engines.clock.time_ns())
    except Exception as failure:  # a phase without a span
        swallow("gpu.phase_span", failure)
        return None
