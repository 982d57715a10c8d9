"""Events of budgets and runs: on the span that is open where they happen, else as a span without length, so that no trace backend misses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aifinops.telemetry import names
from aifinops.telemetry.spans import is_placeholder

__all__ = ["alert"]


def alert(fields: Mapping[str, Any], text: str, schema_url: str = names.SCHEMA_URL) -> None:
    """An alert, of a budget or of a run whose devices are idle.

    Args:
        fields: what is known of it, among it its `kind`; amounts are texts. text: a sentence for people. schema_url: of the
            conventions in force.
    """
    from opentelemetry import trace

    idle = fields.get("kind") == "idle"
    name, prefix = (names.GPU_IDLE, names.GPU_IDLE_PREFIX) if idle else (names.BUDGET_ALERT, names.BUDGET_PREFIX)
    attributes = {f"{prefix}{key}": value for key, value in fields.items()}
    attributes[f"{prefix}text"] = text
    current = trace.get_current_span()
    if current.is_recording():
        current.add_event(name, attributes)
        return
    provider = trace.get_tracer_provider()
    if not is_placeholder(provider):
        tracer = provider.get_tracer(names.SCOPE, schema_url=schema_url)
        tracer.start_span(name, attributes=attributes).end()
