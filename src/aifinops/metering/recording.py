"""Charges of what no seam of ours has seen: by hand, and from what somebody else has read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aifinops import runtime
from aifinops.charges import Amounts, Charge, Cost
from aifinops.metering import charging, deferred, telling, units
from aifinops.metering.call import Call
from aifinops.metering.deferred import busy
from aifinops.metering.invocation import Invocation
from aifinops.reading import Reading
from aifinops.scope import current
from aifinops.tags import make_tags, merge
from aifinops.usage import quantities

if TYPE_CHECKING:
    from aifinops.charges import Basis
    from aifinops.scope import Scope
    from aifinops.tags import Tags

__all__ = ["charge_of", "record", "record_held", "record_reading"]


def record(
    *,
    usage: Mapping[str, Any] | None = None,
    cost: Any = None,
    model: str = "",
    provider: str = "custom",
    operation: str = "custom",
    service: str = "other",
    tier: str = "",
    region: str = "",
    at: int | None = None,
    response_id: str = "",
    tags: Mapping[str, Any] | None = None,
) -> Charge:
    """Record something that no integration knows; see `aifinops.record`."""
    deferred.drain()
    engines = runtime.get()
    counts = quantities(usage or {})
    scope = current()
    call = Call(provider, operation, model, service=service, tier=tier)
    invocation = Invocation(engines, call, scope, merge(engines.tags(scope), make_tags(tags or {})))
    if at is not None:
        invocation.wall = at
    reading = Reading(counts, model=model, tier=tier, region=region, response_id=response_id)
    amounts = Amounts.of(_given_cost(cost)) if cost is not None else charging.amounts_for(invocation, reading)
    charge = charging.charge_for(invocation, reading, amounts, "ok", None)
    _post(invocation, charge)
    return charge


def record_held(
    call: Call,
    reading: Reading,
    *,
    cost: Cost | None,
    scope: Scope,
    at: int,
    duration: int,
    id: str = "",
    error: str = "",
    paid: Collection[str] = (),
) -> Charge:
    """Record a stretch of time in which something was held, such as a GPU; from any thread, and after the fact.

    Args:
        call, reading: what was held, and for how long. cost: as its price says; unknown for None.
        scope: of whoever held it. at: when the stretch began; duration: nanoseconds. id: of the charge, in place of a new one.
        error: what ended it, where that was no plain end.
        paid: keys of the budgets that were paid as it ran (`Prepaid`): nothing is posted to them again.
    """
    engines = runtime.get()
    invocation = Invocation(engines, call, scope, engines.tags(scope))
    invocation.wall = at
    amounts = Amounts.of(Cost(None, basis="unknown") if cost is None else cost)
    charge = charging.charge_for(invocation, reading, amounts, "error" if error else "ok", None)
    charge = replace(charge, duration=duration, error=error, id=id or charge.id)
    _post(invocation, charge, error, official=False, paid=paid)
    return charge


def record_reading(
    call: Call, reading: Reading, *, at: int, duration: int, trace_id: str, span_id: str, tags: Tags, ended: str = ""
) -> Charge:
    """Record a call that was made without us, from what somebody else has read of its answer.

    Args:
        call, reading: what was asked and answered. at: when it began; duration: nanoseconds. trace_id, span_id: of whose span, in hex.
        tags: beside those of the scope. ended: type of the error that ended it.
    """
    invocation, charge = _read(call, reading, at, duration, trace_id, span_id, tags, ended)
    _post(invocation, charge, ended, official=False)
    return charge


def charge_of(
    call: Call, reading: Reading, *, at: int, duration: int, trace_id: str, span_id: str, tags: Tags, ended: str = ""
) -> Charge:
    """What `record_reading` would record, recorded nowhere."""
    return _read(call, reading, at, duration, trace_id, span_id, tags, ended)[1]


def _read(
    call: Call, reading: Reading, at: int, duration: int, trace_id: str, span_id: str, tags: Tags, ended: str
) -> tuple[Invocation, Charge]:
    engines = runtime.get()
    scope = current()
    invocation = Invocation(engines, call, scope, merge(engines.tags(scope), tags))
    invocation.wall = at
    charge = replace(
        charging.charge_for(
            invocation, reading, charging.amounts_for(invocation, reading), "error" if ended else "ok", None
        ),
        duration=duration,
        trace_id=trace_id,
        span_id=span_id,
        error=ended.rpartition(".")[2],
    )
    return invocation, charge


def _post(
    invocation: Invocation, charge: Charge, error: str = "", *, official: bool = True, paid: Collection[str] = ()
) -> None:
    """Put a charge that was never reserved into budgets, ledger and metrics; budgets whose keys are in `paid` have it already."""
    engines = invocation.engines
    busy.on = True
    try:
        budgets = [one for one in engines.budgets(invocation.scope, invocation.tags) if one.key not in paid]
        engines.guard.post(budgets, units.actual_amounts(charge), id=charge.id, at=charge.at)
        telling.keep(invocation, charge)
        telling.measure(invocation, charge, error, None, official=official)
    finally:
        busy.on = False


def _given_cost(cost: Any) -> Cost:
    from aifinops.errors import ConfigurationError
    from aifinops.money import decimal, parse_money

    if isinstance(cost, Cost):
        return cost
    parsed = parse_money(cost) if isinstance(cost, str) else None
    amount, currency = parsed or (decimal(cost, "cost"), "USD")
    if amount < 0:
        raise ConfigurationError(f"cost={cost!r} is negative; a credit is a correction of an earlier charge")
    basis: Basis = "free" if amount == 0 else "reported"
    return Cost(amount, currency, basis, amount, amount, source="given")
