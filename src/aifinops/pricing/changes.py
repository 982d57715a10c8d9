"""What differs between two price lists, price by price, on one day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from aifinops.pricing.lists import PriceList
    from aifinops.pricing.prices import Adjust, Entry, Price

__all__ = ["Change", "changes", "window"]

_EXACT = Context(prec=60)
_SHOWN = Context(prec=9)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        kind: `added` or `removed` (a model), `changed` (a price of a model that both lists have).
        provider, model: whose.
        meter: which price, with its tier, region, options and hours (`input_tokens +batch`); empty for a whole model.
        before, after: plain digits, for the quantity that is customary for the meter (a million tokens), with the currency when the
            two lists have different ones; empty where there is none.
        percent: how much the price moved, `+12.5 %`; empty where there is nothing to compare.
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
    """The differences in the order of the new list, what is gone last. The terms of a contract are not compared.

    Args:
        old, new: the lists. at: moment whose prices are compared, those of other hours of that day too; nanoseconds since the epoch.
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
    before, after = dict(_values(old, at)), dict(_values(new, at))
    alike = old.currency == new.currency
    for name in dict.fromkeys([*after, *before]):
        one, other = before.get(name), after.get(name)
        money = isinstance(one, _Money) or isinstance(other, _Money)
        if one != other or (money and not alike):
            texts = (_text(one, "" if alike else old.currency), _text(other, "" if alike else new.currency))
            yield Change("changed", new.provider, new.model, name, *texts, _percent(one, other) if alike else "")


@dataclass(frozen=True, slots=True, eq=False)
class _Money:
    """A price of `per` quantities, as against a factor or a quantity; `usual` is how many people speak of."""

    price: Decimal
    per: int = 1
    usual: int = 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Money):
            return NotImplemented
        # Multiplied, because a third of a cent has no end as a decimal.
        return _EXACT.multiply(self.price, Decimal(other.per)) == _EXACT.multiply(other.price, Decimal(self.per))

    __hash__ = None  # type: ignore[assignment]

    @property
    def amount(self) -> Decimal:
        """For the usual quantity; rounded only where it has no end."""
        return _SHOWN.divide(_EXACT.multiply(self.price, Decimal(self.usual)), Decimal(self.per))


_Value = Decimal | str | _Money


def _values(entry: Entry, at: int) -> Iterator[tuple[str, _Value]]:
    """Everything that decides what a call of that day costs, by name."""
    if entry.free:
        yield "free", "yes"
    if entry.provisioned:
        yield "paid by the hour", "yes"
    found: dict[str, _Value] = {}
    for price in _standing(entry, at):
        found.update(_named(price))
    for price in entry.variants:
        if _valid(price, at):
            for name, value in _named(price):
                found.setdefault(name, value)  # the first that has a meter wins
    yield from found.items()
    factors: dict[str, Decimal] = {}
    for factor in entry.adjust:
        if factor.in_force(at):
            name = f"factor of {factor.label}{_of(factor)}"
            factors[name] = _EXACT.multiply(factors.get(name, Decimal(1)), factor.multiply)
    yield from factors.items()
    for meter, least in entry.minimum.items():
        yield f"least {meter}", Decimal(least)


def _of(factor: Adjust) -> str:
    if not factor.meters:
        return ""
    first, *more = sorted(factor.meters)
    return f" for {first}" + (f" and {len(more)} more" if more else "")


def _valid(price: Price | Adjust, at: int) -> bool:
    return (price.starts is None or at >= price.starts) and (price.ends is None or at < price.ends)


def _standing(entry: Entry, at: int) -> Iterator[Price]:
    """The standard prices of that day: the last for all hours, and those of some hours that come after it."""
    found: dict[str, Price] = {}
    for price in entry.prices:
        if _valid(price, at):
            if not price.windowed:
                found.clear()
            found[window(price)] = price
    yield from found.values()


def window(price: Price) -> str:
    """When in a week a price holds, for people: `01:00-04:00 UTC Mon-Fri`; empty for always."""
    words = []
    if price.hours:
        words.append("-".join(f"{second // 3600:02d}:{second % 3600 // 60:02d}" for second in price.hours))
    if price.windowed:
        words.append(price.zone or "UTC")
    if price.days is not None:
        words.append(_week(sorted(price.days)))
    if price.holidays:
        words.append(f"without {len(price.holidays)} holidays")
    return " ".join(words)


def _week(days: list[int]) -> str:
    if len(days) > 2 and days[-1] - days[0] == len(days) - 1:
        return f"{_DAYS[days[0]]}-{_DAYS[days[-1]]}"
    return ",".join(_DAYS[day] for day in days)


def _named(price: Price) -> Iterator[tuple[str, _Value]]:
    from aifinops.meters import METERS

    served = "".join(f" +{word}" for word in (price.tier, price.region, *map("=".join, price.options)) if word)
    suffix = served + (f" if {price.when}" if price.when else "") + (f" {window(price)}" if price.windowed else "")
    if price.unknown:
        yield f"price{suffix}", "unknown"
    for meter, rate in price.rates.items():
        usual = METERS[meter].per
        yield f"{meter}{suffix}", _Money(rate.base, rate.per, usual)
        for kind, levels in (("above", rate.above), ("beyond", rate.graduated)):
            for least, level in levels:
                yield f"{meter}{suffix} {kind} {least:,}", _Money(level, rate.per, usual)
    if price.minimum_charge:
        yield f"minimum charge{suffix}", _Money(price.minimum_charge)


def _text(value: _Value | None, currency: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    # `normalize` would round to the precision of the caller's context.
    digits = f"{value.amount if isinstance(value, _Money) else value:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{digits} {currency}" if currency and isinstance(value, _Money) else digits


def _percent(before: _Value | None, after: _Value | None) -> str:
    one, other = (value.amount if isinstance(value, _Money) else value for value in (before, after))
    if not isinstance(one, Decimal) or not isinstance(other, Decimal) or not one:
        return ""
    share = _EXACT.divide(_EXACT.subtract(other, one), one)
    return f"{_EXACT.multiply(share, Decimal(100)):+,.1f} %"
