"""What an hour of a device costs here, by which price, of which day, and how sure that is.

    override > AIFINOPS_GPU_USD_PER_HOUR > price files of the user > owned hardware > instance type, region and terms > instance type in any
    region > the accelerator at this provider > the median of the accelerator over providers > nobody knows: None, never 0

Everything but the first two and owned hardware goes through the price book. A rate is frozen: take it when a run begins, and again each hour
where terms are such that it moves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING, Any

from aifinops import runtime
from aifinops.charges import Cost, CostLine
from aifinops.clock import to_datetime
from aifinops.gpu.where import Place
from aifinops.usage import Sku, Usage

if TYPE_CHECKING:
    from aifinops.gpu.devices import Device
    from aifinops.pricing.book import PriceBook

__all__ = ["STALE", "Rate", "cpu_rate", "has_accelerators", "rate"]

STALE = timedelta(days=180)
"""A price that was last checked so long ago is said to be old, once a process."""

_HOUR = 3600
_EXACT = Context(prec=60)
_SMALLEST = Decimal("1e-18")
_BUNDLED = "aifinops-gpu"
_ANY = "accelerator"
_NO_SKU = Sku("", "", "gpu")
_LEVELS = ("high", "medium", "low", "")


@dataclass(frozen=True, slots=True)
class Rate:
    """The price of one device for one hour, or that nobody knows it.

    Attributes:
        usd_per_hour: exact, for one device (one vCPU for CPUs); None is unknown, never zero.
        source: where it is from, for people. as_of: the day on which it was last checked; None where nobody says it.
        term: the terms that it is for, one of `where.TERMS`; empty where no terms were known, and it is that of `on_demand`.
        confidence: the lesser one of the price and of the place. sku: as charges name what was used.
        meter: `gpu_seconds` or `cpu_seconds`. price_id: as in `Cost`. notes: what had to be assumed. stale: last checked over 180 days ago.
    """

    usd_per_hour: Decimal | None
    source: str = ""
    as_of: date | None = None
    term: str = ""
    confidence: str = ""
    sku: Sku = _NO_SKU
    meter: str = "gpu_seconds"
    price_id: str | None = None
    notes: tuple[str, ...] = ()
    stale: bool = False

    @property
    def known(self) -> bool:
        """True when there is a price."""
        return self.usd_per_hour is not None

    def cost(self, seconds: Decimal | int) -> Cost:
        """What so many seconds of one device cost; of basis `unknown` without a price.

        Args:
            seconds: device-seconds, exact.
        """
        if self.usd_per_hour is None:
            return Cost(None, basis="unknown", model=self.sku.model, notes=self.notes)
        amount = _hourly(self.usd_per_hour, Decimal(seconds))
        return Cost(
            amount,
            basis="priced" if amount else "free",
            lower=amount,
            upper=amount,
            lines=(CostLine(self.meter, seconds, self.usd_per_hour, _HOUR, amount),),
            price_id=self.price_id,
            as_of=self.as_of,
            source=self.source,
            model=self.sku.model,
            notes=self.notes,
            list_amount=amount,
            confidence=self.confidence,
        )

    def nanos_per_second(self) -> Decimal | None:
        """Nano-dollars of one second of one device, exact to 60 digits: what pre-paid slices reckon with."""
        if self.usd_per_hour is None:
            return None
        return _EXACT.divide(_EXACT.multiply(self.usd_per_hour, Decimal(1_000_000_000)), Decimal(_HOUR))


def _hourly(usd: Decimal, seconds: Decimal) -> Decimal:
    amount = _EXACT.divide(_EXACT.multiply(usd, seconds), Decimal(_HOUR))
    # As the price book does it: only what has no finite decimal is rounded.
    digits = amount.normalize().as_tuple().exponent
    return amount if isinstance(digits, int) and digits >= -18 else amount.quantize(_SMALLEST, ROUND_CEILING, _EXACT)


def rate(
    device: Device | str,
    place: Place,
    *,
    at: int,
    override: Any = None,
    book: PriceBook | None = None,
) -> Rate:
    """What an hour of one device costs at that place.

    Args:
        device: a device, or its name as the driver or a price list has it. place: where it stands.
        at: wall clock, nanoseconds; it chooses the price in force and is what a price is old at.
        override: USD an hour, from whoever starts the run; None or `"auto"` without one. book: for tests; default: that of the process.

    Raises:
        ConfigurationError: for an override or setting that is no amount of money.
    """
    name = device if isinstance(device, str) else device.name
    return _rate(_whole(name), place, "gpu_seconds", at, override, book)


def cpu_rate(place: Place, *, at: int, override: Any = None, book: PriceBook | None = None) -> Rate:
    """What an hour of one vCPU costs there: of instances without accelerators, since in others it is in the price of the accelerator.

    Args:
        place: which instance. at, book: as in `rate`. override: USD an hour of one vCPU; None or `"auto"` without one.

    Raises:
        ConfigurationError: for an override that is no amount of money.
    """
    found = _rate("", place, "cpu_seconds", at, override, book)
    if found.known or not has_accelerators(place, at=at, book=book):
        return found
    said = f"the processors of {place.instance_type} are in the price of its accelerators"
    return replace(found, notes=(said,))


def has_accelerators(place: Place, *, at: int, book: PriceBook | None = None) -> bool:
    """Whether the price lists know the instance type as one with accelerators, whose price the processors are in.

    Args:
        place, at, book: as in `cpu_rate`.
    """
    return bool(place.instance_type) and _first(book or runtime.get().book, "", place, "gpu_seconds", at) is not None


def _whole(name: str) -> str:
    """The name of the device that a MIG instance is a part of: it has a share of its price."""
    return name.partition(" MIG ")[0].strip()


def _rate(name: str, place: Place, meter: str, at: int, override: Any, book: PriceBook | None) -> Rate:
    engines = runtime.get()
    named = name or ("CPU" if meter == "cpu_seconds" else "")
    sku = Sku(place.provider or "local", place.instance_type or named, "gpu", _tier(place.term), place.region)
    blank = Rate(None, term=place.term, sku=sku, meter=meter)
    if override is not None and override != "auto":
        return replace(blank, usd_per_hour=_money(override, "price"), source="given for this run", confidence="high")
    if meter == "gpu_seconds" and engines.config.gpu_usd_per_hour is not None:
        return replace(
            blank, usd_per_hour=engines.config.gpu_usd_per_hour, source="AIFINOPS_GPU_USD_PER_HOUR", confidence="high"
        )
    prices = book or engines.book
    own = prices.over([one for one in prices.lists if one.id != _BUNDLED])
    owned = engines.config.cpu_owned if meter == "cpu_seconds" else engines.config.gpu_owned
    found = _first(own, name, place, meter, at) or _owned(owned, blank, place, name)
    if found is None and place.term != "owned":
        found = _first(prices, name, place, meter, at)
    if found is None:
        what = " ".join(filter(None, (place.provider, place.instance_type, place.region, named))) or "an unnamed device"
        return replace(blank, notes=(f"no price for {what}: its hours are counted, their cost is unknown",))
    return _checked(replace(found, meter=meter), place, at)


def _money(value: Any, what: str) -> Decimal:
    from aifinops.config import usd_per_hour
    from aifinops.errors import ConfigurationError

    try:
        return usd_per_hour(value)
    except ValueError as error:
        raise ConfigurationError(f"{what}={value!r}: {error}") from None


def _tier(term: str) -> str:
    return "" if term in {"on_demand", "owned"} else term


@dataclass(frozen=True, slots=True)
class _Try:
    """One question to the price book, and what must be said about its answer."""

    sku: Sku
    certain: bool = True
    note: str = ""


def _tries(name: str, place: Place) -> Iterator[_Try]:
    """From the surest to the vaguest."""
    tier = _tier(place.term)
    for kind, certain, note in _kinds(name, place):
        for model, provider in kind:
            for region in dict.fromkeys((place.region, "")):
                other = f"the price of another region than {place.region}" if place.region and not region else ""
                yield _Try(Sku(provider, model, "gpu", tier, region), certain and not other, note or other)
            if tier:
                said = f"no price for {place.term} in the list: the one on demand"
                yield _Try(Sku(provider, model, "gpu", "", place.region), False, said)
                yield _Try(Sku(provider, model, "gpu", "", ""), False, said)


def _kinds(name: str, place: Place) -> Iterator[tuple[Sequence[tuple[str, str]], bool, str]]:
    kind, provider = place.instance_type, place.provider
    if kind:
        yield ((kind, provider),), True, ""
    if kind.startswith("ml."):
        yield ((kind[3:], provider),), False, "SageMaker asks more than this price of EC2 for the same type"
    if name:
        if provider:
            yield ((name, provider),), True, ""
        yield ((name, "local"),), True, ""
        yield ((name, _ANY),), False, ""


def _first(book: PriceBook, name: str, place: Place, meter: str, at: int) -> Rate | None:
    for one in _tries(name, place):
        cost = book.price(Usage({meter: _HOUR}, one.sku, at))
        if cost.basis not in {"priced", "free"} or cost.amount is None or cost.currency != "USD":
            continue
        return Rate(
            cost.amount,
            cost.source or "",
            cost.as_of,
            place.term if one.sku.tier or not _tier(place.term) else "on_demand",
            _lesser(cost.confidence, "high" if one.certain else "low"),
            one.sku,
            price_id=cost.price_id,
            notes=(*filter(None, (one.note,)), *_told_of(cost, one.sku)),
        )
    return None


def _told_of(cost: Cost, sku: Sku) -> list[str]:
    """Its notes, without what the list says of prices for which no region was named where one was."""
    return [note for note in cost.notes if not (sku.region and note.startswith("where no region is named"))]


def _owned(owned: Any, blank: Rate, place: Place, name: str) -> Rate | None:
    """Hardware of one's own: where the user says so, and where a declaration of it is all there is."""
    if owned is None or (place.provider and place.term != "owned"):
        return None
    from aifinops.gpu.owned import read_owned

    setting = "cpu_owned" if blank.meter == "cpu_seconds" else "gpu_owned"
    hardware = read_owned(owned, setting)
    if name and not hardware.covers(name):
        return None
    return replace(
        blank,
        usd_per_hour=hardware.usd_per_gpu_hour,
        source=hardware.source or setting,
        as_of=hardware.as_of,
        term="owned",
        confidence="high",
    )


def _lesser(first: str, second: str) -> str:
    return max(first, second, key=lambda level: _LEVELS.index(level) if level in _LEVELS else len(_LEVELS))


# --- old prices --------------------------------------------------------------------------------------------------------------


class _Told:
    """What has been said to be old, once a process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.prices: set[str] = set()

    def first(self, price: str) -> bool:
        with self.lock:
            if price in self.prices:
                return False
            self.prices.add(price)
            return True


_told = _Told()


def _checked(found: Rate, place: Place, at: int) -> Rate:
    """With the doubts about the place, and whether the price is old."""
    sure = replace(found, confidence=_lesser(found.confidence, place.confidence)) if place.confidence else found
    if sure.as_of is None or to_datetime(at).date() - sure.as_of <= STALE:
        return sure
    days = (to_datetime(at).date() - sure.as_of).days
    if _told.first(sure.price_id or sure.source):
        import logging

        logging.getLogger("aifinops").warning(
            "aifinops: the price of %s is from %s, %d days ago (%s); set %sa price list of your own",
            sure.sku.model, sure.as_of.isoformat(), days, sure.source,
            "" if sure.meter == "cpu_seconds" else "AIFINOPS_GPU_USD_PER_HOUR or ",
        )  # fmt: skip
    return replace(sure, stale=True, notes=(*sure.notes, f"this price was last checked {days} days ago"))
