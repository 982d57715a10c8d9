"""What earlier charges would have cost, or should have, under other price lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Context, Decimal
from typing import TYPE_CHECKING

from aifinops.charges import Charge, Cost
from aifinops.money import from_nanos
from aifinops.pricing.sheet import SPEND
from aifinops.usage import Quantities, Quantity, Sku, Usage

if TYPE_CHECKING:
    from aifinops.pricing.book import PriceBook

__all__ = ["Volumes", "rerate"]

_EXACT = Context(prec=60)


class Volumes:
    """Running totals per calendar month (UTC), provider, service and model: what graduated prices and volume discounts are read from.

    Spend is added up per provider and service, since that is what contracts count; quantities per model, since that is what
    price lists count. Charges must come in the order of time.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[str, ...], dict[str, Quantity]] = {}

    def so_far(self, charge: Charge) -> Quantities:
        """What the month of that charge had before it."""
        spend = self._counted.get(_provider_key(charge), {})
        return {**self._counted.get(_model_key(charge), {}), **spend}

    def add(self, charge: Charge, cost: Cost) -> None:
        """Count a charge at its new list amount."""
        counted = self._counted.setdefault(_model_key(charge), {})
        for meter, quantity in charge.quantities.items():
            counted[meter] = _plus(counted.get(meter, 0), quantity)
        amount = cost.amount if cost.list_amount is None else cost.list_amount
        if amount is not None:
            spent = self._counted.setdefault(_provider_key(charge), {})
            spent[SPEND] = _plus(spent.get(SPEND, 0), amount)


def _provider_key(charge: Charge) -> tuple[str, ...]:
    return (_month(charge.at), charge.provider, charge.service)


def _model_key(charge: Charge) -> tuple[str, ...]:
    return (*_provider_key(charge), charge.response_model or charge.model)


def _month(at: int) -> str:
    from aifinops.clock import to_datetime

    return f"{to_datetime(at):%Y-%m}"


def _plus(one: Quantity, other: Quantity) -> Quantity:
    return one + other if isinstance(one, int) and isinstance(other, int) else _EXACT.add(Decimal(one), Decimal(other))


def rerate(
    charges: Iterable[Charge], book: PriceBook, *, volumes: Volumes | None = None
) -> Iterator[tuple[Charge, Cost]]:
    """Price stored quantities again, each at its own moment: (charge, what it costs by this book).

    What no price list decided is given back as it was: costs that the provider reported, amounts that were given with the usage,
    calls without quantities. Corrections are left out, because the entry that they correct is priced anew. Nothing is written.

    Args:
        charges: in any order, or in that of time with `volumes`.
        book: the lists to price by.
        volumes: running totals for graduated prices and discounts by volume; without it every charge is the first of its month.

    Yields:
        One pair for each charge. Bounds of an estimate are moved with its amount, since their quantities are not stored: a note says so.
    """
    for charge in charges:
        if charge.corrects:
            continue
        cost = _again(charge, book, {} if volumes is None else volumes.so_far(charge))
        if volumes is not None:
            volumes.add(charge, cost)
        yield charge, cost


def _again(charge: Charge, book: PriceBook, so_far: Quantities) -> Cost:
    if charge.basis == "reported" or not charge.quantities or (charge.amount is not None and not charge.price_id):
        return charge.cost
    cost = Cost(None)
    # Some servers answer with a name of their own; what was asked for may be listed.
    for model in dict.fromkeys((charge.response_model or charge.model, charge.model)):
        sku = Sku(charge.provider, model, charge.service, charge.tier, charge.region)
        cost = book.price(Usage(charge.quantities, sku, charge.at), so_far)
        if cost.amount is not None:
            break
    return _still_estimated(charge, cost) if charge.basis == "estimated" else cost


def _still_estimated(charge: Charge, cost: Cost) -> Cost:
    if cost.amount is None or cost.basis != "priced":
        return cost
    note = "counted by us: the bounds are the earlier ones, moved with the amount"
    return replace(
        cost,
        basis="estimated",
        lower=_moved(charge.lower, charge.amount, cost.amount),
        upper=_moved(charge.upper, charge.amount, cost.amount),
        notes=(*cost.notes, note),
    )


def _moved(bound: int | None, before: int | None, after: Decimal) -> Decimal | None:
    if bound is None or not before:
        return None
    return _EXACT.divide(_EXACT.multiply(from_nanos(bound), after), from_nanos(before))
