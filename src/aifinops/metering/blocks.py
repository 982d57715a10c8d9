"""What blocks of `track` and `budget` need of the engines: their spans and their figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aifinops import runtime
from aifinops.budgets.budget import to_units
from aifinops.metering import deferred
from aifinops.metering.deferred import busy
from aifinops.telemetry import attributes as span_attributes
from aifinops.telemetry import names
from aifinops.telemetry.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from aifinops.budgets.budget import ActiveBudget
    from aifinops.tags import Tags

__all__ = ["attach_span", "block_span", "budget_figures", "detach_span", "end_block_span"]


def block_span(name: str, tags: Tags) -> Any:
    """Start the span of a `track` block; None without a tracer provider."""
    engines = runtime.get()
    if engines.spans is None:
        return None
    values: dict[str, Any] = {names.OPERATION: "invoke_workflow", names.WORKFLOW_NAME: name}
    if tags:
        span_attributes.add_tags(values, tags)
    return engines.spans.start_block(f"invoke_workflow {name}", values, engines.clock.time_ns())


def attach_span(span: Any) -> Any:
    """Make a block's span current; the token for `detach_span`."""
    return None if span is None else Spans.attach(span)


def detach_span(token: Any) -> None:
    """Undo `attach_span`."""
    if token is not None:
        Spans.detach(token)


def end_block_span(span: Any, values: Mapping[str, Any], error: BaseException | None) -> None:
    """End a block's span with what its charges add up to."""
    Spans.end_block(span, values, runtime.get().clock.time_ns(), error)


def budget_figures(active: ActiveBudget, figure: str) -> dict[str, Decimal]:
    """`limit`, `spent`, `reserved` or `remaining` of a budget in its current window: unit -> quantity."""
    deferred.drain()
    engines = runtime.get()
    busy.on = True
    try:
        balances = engines.guard.balances(active)
    finally:
        busy.on = False
    return {unit: to_units(unit, getattr(balance, figure) or 0) for unit, balance in balances.items()}
