"""Events of budgets: on the span that is open where they happen, else as a span without length, so that no trace backend misses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aifinops.telemetry import names
from aifinops.telemetry.spans import is_placeholder

__all__ = ["alert"]


def alert(fields: Mapping[str, Any], text: str, schema_url: str = names.SCHEMA_URL) -> None:
    """An alert of a budget.

    Args:
        fields: what is known of it; amounts are texts. text: a sentence for people. schema_url: of the conventions in force.
    """
    from opentelemetry import trace

    attributes = {f"{names.BUDGET_PREFIX}{name}": value for name, value in fields.items()}
    attributes[f"{names.BUDGET_PREFIX}text"] = text
    current = trace.get_current_span()
    if current.is_recording():
        current.add_event(names.BUDGET_ALERT, attributes)
        return
    provider = trace.get_tracer_provider()
    if not is_placeholder(provider):
        tracer = provider.get_tracer(names.SCOPE, schema_url=schema_url)
        tracer.start_span(names.BUDGET_ALERT, attributes=attributes).end()
