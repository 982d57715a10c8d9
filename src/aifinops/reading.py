"""What an answer said, and what it cost: the value between whoever reads answers and whoever meters calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any

from aifinops.charges import LISTED, Amounts, Basis, Cost
from aifinops.usage import EMPTY_QUANTITIES, Quantities, Usage

if TYPE_CHECKING:
    from aifinops.pricing.book import PriceBook

__all__ = ["Part", "Reading", "amounts_of", "believed", "options_of", "parts_of", "price", "with_parts"]

_PARTS, _OPTIONS = "aifinops.parts", "aifinops.options"


@dataclass(slots=True)
class Part:
    """Usage of one model inside an answer that several have served.

    Attributes:
        quantities: disjoint usage that is billed. model: whose price it has; empty for the answer's own.
        kind: what the provider calls it (`compaction`, `message`). counted: as reported, also where it is not billed.
    """

    quantities: Quantities
    model: str = ""
    kind: str = ""
    counted: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)


@dataclass(slots=True)
class Reading:
    """What an answer said.

    Attributes:
        quantities: disjoint usage, of all parts. raw: the provider's usage object. model, response_id, tier, region: as answered.
        reported: what the provider itself says it cost, USD. finish_reasons: as answered.
        options: whatever else decides the price, sorted pairs. notes: what the counts do not tell.
        parts: the quantities by model, where several have served; each is priced with its own. Together they are one charge.
        estimated: True when we counted; lower, upper: bounds per meter then.
        problem: why the counts cannot be believed; the cost is unknown then.
    """

    quantities: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    raw: Mapping[str, Any] | None = None
    model: str = ""
    response_id: str = ""
    tier: str = ""
    region: str = ""
    reported: Decimal | None = None
    finish_reasons: tuple[str, ...] = ()
    estimated: bool = False
    lower: Quantities = field(default_factory=dict)
    upper: Quantities = field(default_factory=dict)
    problem: str = ""
    options: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


def with_parts(
    raw: Mapping[str, Any] | None,
    parts: Sequence[Part],
    options: Sequence[tuple[str, str]] = (),
    listed: int | None = None,
) -> Mapping[str, Any] | None:
    """The usage object as the ledger keeps it: with the parts and options that decided the price, so that it can be priced again.

    Args:
        raw: the provider's. parts, options: as in `Reading`. listed: as in `Amounts`; it has no column because few calls have it.
    """
    kept: dict[str, Any] = {}
    if parts:
        kept[_PARTS] = [[part.model, part.kind, dict(part.quantities)] for part in parts]
    if options:
        kept[_OPTIONS] = [list(pair) for pair in options]
    if listed is not None:
        kept[LISTED] = listed
    return {**(raw or {}), **kept} if kept else raw


def options_of(raw: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """The options that `with_parts` kept, sorted; empty for a usage object without, and for one that somebody has changed."""
    try:
        return tuple(sorted((str(name), str(value)) for name, value in (raw or {}).get(_OPTIONS, ())))
    except (AttributeError, TypeError, ValueError):
        return ()


def parts_of(raw: Mapping[str, Any] | None) -> tuple[Part, ...]:
    """What `with_parts` kept; empty for a usage object without, and for one that somebody has changed."""
    try:
        kept = (raw or {}).get(_PARTS, ())
        return tuple(
            Part({name: count if type(count) is int else Decimal(count) for name, count in counts.items()}, model, kind)
            for model, kind, counts in kept
        )
    except (AttributeError, ArithmeticError, TypeError, ValueError):
        return ()


def price(book: PriceBook, usage: Usage, parts: Sequence[Part] = (), *, asked: str = "") -> Cost:
    """What usage cost; with parts, each at the price of its own model, all as one cost whose lines add up.

    Args:
        book: prices. usage: quantities, SKU and moment. parts: as in `Reading`. asked: the model that the request named.
    """
    if not parts:
        return _priced(book, usage, asked)
    costs = []
    for part in parts:
        own = part.model in {"", usage.sku.model}
        sku = usage.sku if own else replace(usage.sku, model=part.model)
        name = f"{part.kind} by {sku.model}" if part.kind else sku.model
        # What was asked for stands in for a strange name of the answer, never for another model that it names.
        cost = _priced(book, replace(usage, quantities=part.quantities, sku=sku), asked if own else "")
        costs.append((name, cost))
    return _joined(costs)


def _priced(book: PriceBook, usage: Usage, asked: str) -> Cost:
    cost = book.price(usage)
    if cost.amount is None and asked and asked != usage.sku.model:
        # Some servers answer with a name of their own (a path, a deployment); what was asked for may be listed.
        cost = book.price(replace(usage, sku=replace(usage.sku, model=asked)))
    return cost


def _joined(costs: Sequence[tuple[str, Cost]]) -> Cost:
    """Several costs as one: known only when all are, and then with every line."""
    first = costs[0][1]
    every = [cost for _, cost in costs]
    lines = tuple(
        replace(line, note="; ".join(filter(None, (name, line.note)))) for name, cost in costs for line in cost.lines
    )
    notes = tuple(dict.fromkeys(f"{name}: {note}" for name, cost in costs for note in cost.notes))
    dates = [cost.as_of for cost in every if cost.as_of]
    told = replace(first, lines=lines, notes=notes, as_of=min(dates, default=None))
    if any(cost.currency != first.currency for cost in every):
        return Cost(None, basis="unknown", notes=(*notes, "the parts are priced in several currencies"))
    lower = _sum((cost.amount or Decimal(0)) if cost.lower is None else cost.lower for cost in every)
    upper = _sum(cost.amount if cost.upper is None else cost.upper for cost in every)
    amount = _sum(cost.amount for cost in every)
    bases = {cost.basis for cost in every} - {"free"}
    basis: Basis = (
        "unknown" if amount is None else "estimated" if "estimated" in bases else "priced" if bases else "free"
    )
    listed, billed = (_sum(getattr(cost, name) for cost in every) for name in ("list_amount", "billed_amount"))
    return replace(told, amount=amount, basis=basis, lower=lower, upper=upper, list_amount=listed, billed_amount=billed)


_EXACT = Context(prec=60)
"""Our own context: the caller's may have any precision, and money must not depend on it."""


def _sum(values: Iterable[Decimal | None]) -> Decimal | None:
    """The exact sum; None when any is unknown."""
    total = Decimal(0)
    for value in values:
        if value is None:
            return None
        total = _EXACT.add(total, value)
    return total


def believed(cost: Cost, reported: Decimal | None, *models: str) -> Decimal | None:
    """What the provider says it charged; None where it does not, or where it says nothing and nobody else says that the model is free.

    A gateway that has no price of a model reports zero, too, and so does one that bills somewhere else: unknown is never zero.

    Args:
        cost: ours. reported: as in `Reading`. models: names that were asked for and answered; `:free` at the end of one says it.
    """
    if not reported and cost.basis != "free" and not any(model.endswith(":free") for model in models):
        return None
    return reported


def amounts_of(cost: Cost, reported: Decimal | None) -> Amounts:
    """The integers of a cost, one line a meter; what the provider says it charged is exact, so it is its own bounds."""
    amounts = Amounts.of(cost, reported)
    if len({meter for meter, _ in amounts.lines}) < len(amounts.lines):
        merged: dict[str, int] = {}
        for meter, value in amounts.lines:
            merged[meter] = merged.get(meter, 0) + value
        amounts = amounts._replace(lines=tuple(merged.items()))
    if reported is None:
        return amounts
    # Providers tell USD: lines of a contract in another currency are no parts of it.
    lines = amounts.lines if amounts.currency == "USD" else ()
    return amounts._replace(currency="USD", lines=lines, lower=amounts.amount, upper=amounts.amount, listed=None)
