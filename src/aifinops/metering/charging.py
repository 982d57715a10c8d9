"""What a call has cost: its answer is priced, and a charge made of it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from aifinops.charges import Amounts, Charge, Cost, make_charge, nanos
from aifinops.errors import swallow
from aifinops.metering import bounds
from aifinops.reading import Reading, amounts_of, believed, price, with_parts
from aifinops.usage import Sku, Usage

if TYPE_CHECKING:
    from aifinops.metering.invocation import Invocation

__all__ = ["amounts_for", "charge_for", "cost_at_most", "place"]

_UNTOLD = Cost(None, basis="unknown")
"""The cost of what was not counted."""


def amounts_for(invocation: Invocation, reading: Reading) -> Amounts:
    """What an answer cost, in the integers of the ledger."""
    untold = bool(reading.problem) or not reading.quantities
    try:
        if not untold and (quick := _quick(invocation, reading)) is not None:
            return quick
        cost = _price(invocation, reading) if not untold or reading.reported is not None else _UNTOLD
        reported = believed(cost, reading.reported, invocation.call.model, reading.model)
        if untold and reported is None:
            return Amounts(None, invocation.currency, "unknown", None, nanos(invocation.upper))
        return amounts_of(cost, reported)
    except Exception as failure:  # losing the price never loses the usage
        swallow("metering.price", failure)
        return Amounts(None, "USD", "unknown", None, None)


def _quick(invocation: Invocation, reading: Reading) -> Amounts | None:
    if reading.estimated or reading.reported is not None or reading.parts or reading.options:
        return None
    call = invocation.call
    return invocation.engines.book.amounts(
        call.provider,
        reading.model or call.model,
        reading.quantities,
        at=invocation.wall,
        tier=reading.tier,
        region=reading.region,
    )


def _price(invocation: Invocation, reading: Reading) -> Cost:
    call = invocation.call
    sku = Sku(call.provider, reading.model or call.model, call.service, reading.tier, reading.region, reading.options)
    usage = Usage(
        reading.quantities, sku, invocation.wall, reading.raw, reading.estimated, reading.lower, reading.upper
    )
    return price(invocation.engines.book, usage, reading.parts, asked=call.model)


def place(invocation: Invocation, reading: Reading) -> None:
    """The region of the request for an answer that names none, where it decides the price."""
    call, book = invocation.call, invocation.engines.book
    try:
        reading.region = bounds.regional(book, call.provider, reading.model or call.model, call.region)
    except Exception as failure:  # without a region the call is still a row, and still paid from its budgets
        swallow("metering.region", failure)


def cost_at_most(invocation: Invocation) -> Cost:
    """The cost of a call that failed after it was sent: unknown, between nothing and its upper bound."""
    if invocation.upper is None:
        try:
            invocation.take(bounds.bound_of(invocation.engines.book, invocation.call, invocation.wall))
        except Exception as failure:  # the bound is a courtesy here: the row itself says that the cost is unknown
            swallow("metering.bound", failure)
    notes = ("failed after it was sent",)
    return Cost(None, invocation.currency, "unknown", lower=Decimal(0), upper=invocation.upper, notes=notes)


def charge_for(
    invocation: Invocation, reading: Reading, amounts: Amounts, status: str, error: BaseException | None
) -> Charge:
    """The row of a call."""
    call = invocation.call
    trace_id, span_id = _ids(invocation)
    amount, currency, basis, lower, upper, lines, price_id, as_of, source, listed = amounts
    return make_charge(
        id=invocation.id,
        at=invocation.wall,
        provider=call.provider,
        operation=call.operation,
        model=call.model,
        quantities=reading.quantities,
        amount=amount,
        currency=currency,
        basis=basis,
        lower=lower,
        upper=upper,
        lines=lines,
        price_id=price_id,
        price_as_of=as_of,
        price_source=source,
        response_model=reading.model,
        response_id=reading.response_id,
        service=call.service,
        tier=reading.tier,
        region=reading.region,
        duration=invocation.engines.clock.monotonic_ns() - invocation.started,
        stream=call.stream,
        status=status,
        error="" if error is None else type(error).__name__,
        tags=invocation.tags,
        trace_id=trace_id,
        span_id=span_id,
        raw=with_parts(reading.raw, reading.parts, reading.options, listed)
        if reading.parts or reading.options or listed is not None
        else reading.raw,
    )


def _ids(invocation: Invocation) -> tuple[str, str]:
    """(trace, span) in hex, empty where there is none; of a foreign span the trace is often known before the span."""
    if invocation.span is not None:
        return invocation.span.trace_id, invocation.span.span_id
    guest = invocation.guest
    if guest is None or not guest.context.is_valid:
        return "", ""
    return f"{guest.context.trace_id:032x}", f"{guest.context.span_id:016x}" if guest.found else ""
