"""What earlier charges would have cost, or should have, under other price lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Context, Decimal
from typing import TYPE_CHECKING

from aifinops.charges import Charge, Cost
from aifinops.clock import to_datetime
from aifinops.meters import GROUPS
from aifinops.money import from_nanos
from aifinops.pricing.contract import SPEND, Volume
from aifinops.reading import options_of, parts_of, price
from aifinops.usage import Quantities, Quantity, Sku, Usage

if TYPE_CHECKING:
    from aifinops.pricing.book import PriceBook

__all__ = ["Volumes", "is_kept", "rerate"]

_EXACT = Context(prec=60)


class Volumes:
    """Running totals of each calendar month (UTC): what graduated prices and discounts by volume are read from.

    A graduated price counts the quantities of its model, a discount whatever is in its scope. Charges must come in the order of time.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[str, ...], dict[str, Quantity]] = {}
        # By identity: two discounts may look alike and be about different providers. The value keeps the key alive.
        self._scopes: dict[tuple[str, int], tuple[Volume, Quantity]] = {}

    def so_far(self, charge: Charge, volume: Volume | None) -> Quantities:
        """What the month of that charge had before it, for its model and for the discount that it is under."""
        counted = self._models.get(_model_key(charge), {})
        if volume is None:
            return counted
        _, size = self._scopes.get((_month(charge.at), id(volume)), (volume, 0))
        return {**counted, volume.unit: size}

    def add(self, charge: Charge, cost: Cost, volume: Volume | None) -> None:
        """Count a charge, at its list amount where money is counted."""
        counted = self._models.setdefault(_model_key(charge), {})
        for meter, quantity in charge.quantities.items():
            counted[meter] = _plus(counted.get(meter, 0), quantity)
        if volume is not None:
            key = (_month(charge.at), id(volume))
            _, before = self._scopes.get(key, (volume, 0))
            self._scopes[key] = (volume, _plus(before, _size(charge, cost, volume)))


def _size(charge: Charge, cost: Cost, volume: Volume) -> Quantity:
    if volume.unit == SPEND:
        return cost.list_amount or 0
    counted = GROUPS.get(volume.unit, frozenset({volume.unit}))
    size: Quantity = 0
    for meter, quantity in charge.quantities.items():
        if meter in counted:
            size = _plus(size, quantity)
    return size


def _model_key(charge: Charge) -> tuple[str, ...]:
    return (_month(charge.at), charge.provider, charge.service, charge.response_model or charge.model)


def _month(at: int) -> str:
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
        if is_kept(charge):
            yield charge, charge.cost
            continue
        usage = _usage(charge, book)
        parts = parts_of(charge.raw)
        if parts:
            yield charge, price(book, usage, parts, asked=charge.model)
            continue
        volume = None if volumes is None else book.volume(usage)
        cost = book.price(usage, {} if volumes is None else volumes.so_far(charge, volume))
        if volumes is not None:
            volumes.add(charge, cost, volume)
        yield charge, _still_estimated(charge, cost) if charge.basis == "estimated" else cost


def is_kept(charge: Charge) -> bool:
    """Whether no price list decided what this charge costs, so that none can change it."""
    return charge.basis == "reported" or not charge.quantities or (charge.amount is not None and not charge.price_id)


def _usage(charge: Charge, book: PriceBook) -> Usage:
    """The usage under the name that has a price: some servers answer with one of their own, and what was asked for may be listed."""
    model = charge.response_model or charge.model
    options = options_of(charge.raw) or _options(charge.price_id or "")
    sku = Sku(charge.provider, model, charge.service, charge.tier, charge.region, options)
    usage = Usage(charge.quantities, sku, charge.at)
    if sku.model == charge.model or book.price(usage).amount is not None:
        return usage
    return replace(usage, sku=replace(sku, model=charge.model))


def _options(price_id: str) -> tuple[tuple[str, str], ...]:
    """The options in the name of a price, for entries that kept none beside their usage: `...+quality=hd+size=1024x1792`."""
    named = [word.partition("=") for word in price_id.split("+")[1:] if "=" in word]
    return tuple(sorted((name, value) for name, _, value in named))


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
