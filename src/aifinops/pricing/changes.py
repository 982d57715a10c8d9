"""What differs between two price lists, price by price, at one moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from aifinops.pricing.lists import PriceList
    from aifinops.pricing.prices import Entry, Price

__all__ = ["Change", "changes"]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        kind: `added` or `removed` (a model), `changed` (a price of a model that both lists have).
        provider, model: whose. meter: which price, with its tier, region or options (`input_tokens +batch`); empty for a whole model.
        before, after: as plain digits, each for the list's own customary quantity; empty where there is none.
        percent: how much the price moved, `+12.5 %`; empty where one of them is missing.
    """

    kind: Literal["added", "removed", "changed"]
    provider: str
    model: str
    meter: str = ""
    before: str = ""
    after: str = ""
    percent: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def changes(old: PriceList, new: PriceList, *, at: int) -> list[Change]:
    """The differences in the order of the new list, what is gone last.

    Args:
        old, new: the lists. at: moment whose prices are compared, nanoseconds since the epoch.
    """
    before, after = _by_name(old), _by_name(new)
    found: list[Change] = []
    for key, entry in after.items():
        if key not in before:
            found.append(Change("added", *key))
        else:
            found += _moved(before[key], entry, at)
    return [*found, *(Change("removed", *key) for key in before if key not in after)]


def _by_name(one: PriceList) -> dict[tuple[str, str], Entry]:
    return {(entry.provider, entry.model): entry for entry in one.entries()}


def _moved(old: Entry, new: Entry, at: int) -> Iterator[Change]:
    before, after = _rates(old, at), _rates(new, at)
    for name in dict.fromkeys([*after, *before]):
        one, other = before.get(name), after.get(name)
        if one != other:
            yield Change("changed", new.provider, new.model, name, _text(one), _text(other), _percent(one, other))


def _rates(entry: Entry, at: int) -> dict[str, Decimal]:
    """Every price in force: name -> price of the quantity that is customary in the newer of both lists' forms (one unit)."""
    found: dict[str, Decimal] = {}
    standing = [price for price in entry.prices if price.in_force(at)]
    for price in (*standing[-1:], *(one for one in entry.variants if one.in_force(at))):
        found.update(_named(price, f" {price.label}" if price.tier or price.region or price.options else ""))
    for factor in entry.adjust:
        if factor.in_force(at):
            found[f"factor of {factor.label}"] = factor.multiply
    return found


def _named(price: Price, suffix: str) -> Mapping[str, Decimal]:
    from aifinops.meters import METERS

    rates: dict[str, Decimal] = {}
    for meter, rate in price.rates.items():
        usual = Decimal(METERS[meter].per) / Decimal(rate.per)
        rates[f"{meter}{suffix}"] = rate.base * usual
        for least, level in (*rate.above, *rate.graduated):
            rates[f"{meter}{suffix} above {least:,}"] = level * usual
    return rates


def _text(price: Decimal | None) -> str:
    return "" if price is None else f"{price.normalize():f}"


def _percent(before: Decimal | None, after: Decimal | None) -> str:
    return f"{(after - before) / before * 100:+.1f} %" if before and after is not None else ""
