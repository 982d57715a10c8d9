"""Unit prices with their conditions, and the integer tables that they are compiled to.

A `Rate` is the price of one meter, a `Price` is a set of rates under conditions, an `Entry` is everything that a list says about
one model. For a moment, a tier, a region and options an entry yields a `Sheet`: every meter with its integer price, ready to
multiply.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from aifinops.charges import Basis
from aifinops.clock import to_datetime, to_ns
from aifinops.meters import GROUPS, METERS
from aifinops.pricing.sheet import UNBILLED, Sheet, Unit, Units, plainly

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from aifinops.pricing.contract import Discount, Terms, TermsKey

__all__ = [
    "FALLBACK",
    "PROVISIONED",
    "STANDARD_TIERS",
    "UNBILLED",
    "Adjust",
    "Entry",
    "Options",
    "Price",
    "Rate",
    "Sheet",
    "Unit",
    "read_entry",
    "tier_name",
]

STANDARD_TIERS = frozenset({"", "default", "auto", "standard", "on_demand"})
"""Tiers that are billed at the standard price (`on_demand` is what Groq calls it)."""

PROVISIONED = "provisioned"
"""The tier of throughput that is paid for by the hour: one more call costs nothing."""

Options = tuple[tuple[str, str], ...]
"""Sorted pairs, as in `Sku.options`."""

_INPUT, _WRITE = "input_tokens", "cache_write_tokens"

FALLBACK: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cache_read_tokens": (_INPUT,),
        _WRITE: (_INPUT,),
        "cache_write_1h_tokens": (_WRITE, _INPUT),
        "cache_write_30m_tokens": (_WRITE, _INPUT),
        "cache_write_12h_tokens": (_WRITE, _INPUT),
        "input_audio_tokens": (_INPUT,),
        "cache_read_audio_tokens": ("input_audio_tokens", "cache_read_tokens", _INPUT),
        "input_image_tokens": (_INPUT,),
        "cache_read_image_tokens": ("input_image_tokens", "cache_read_tokens", _INPUT),
        "input_video_tokens": (_INPUT,),
        "cache_read_video_tokens": ("input_video_tokens", "cache_read_tokens", _INPUT),
        "reasoning_tokens": ("output_tokens",),
        "output_audio_tokens": ("output_tokens",),
        "output_image_tokens": ("output_tokens",),
        "output_video_tokens": ("output_tokens",),
    }
)
"""Where a meter without a rate of its own is billed, nearest first: a list that prices only the whole prices its parts alike.

It is the rule of genai-prices (`decompose.py`: a unit is billed at its nearest priced ancestor), written for our meters.
"""

# Our own context: the caller's may have any precision, and money must not depend on it.
_EXACT = Context(prec=60)
_multiply, _divide = _EXACT.multiply, _EXACT.divide
_ZERO, _ONE = Decimal(0), Decimal(1)
_NANO_PLACES = 9
_DAY = 86_400
_NS = 1_000_000_000
_EPOCH = date(1970, 1, 1).toordinal()
_CHOICES = 256


@dataclass(frozen=True, slots=True)
class Rate:
    """The price of one meter.

    Attributes:
        base: price of `per` quantities, in the currency of the list.
        per: how many quantities one price is for.
        above: cliffs, ascending: (n, price). A request with more than n input tokens in all (fresh, cached and written) is
            billed at that price for every token, not only for those above n.
        graduated: steps, ascending: (n, price). What a period has above n quantities of this meter is billed at that price, what
            is below keeps its own.
    """

    base: Decimal
    per: int
    above: tuple[tuple[int, Decimal], ...] = ()
    graduated: tuple[tuple[int, Decimal], ...] = ()

    @property
    def dearest(self) -> Decimal:
        """The highest price of one quantity, over all cliffs and steps."""
        return _divide(max(_prices(self)), Decimal(self.per))

    def times(self, factor: Decimal) -> Rate:
        """The same at another level."""
        return Rate(
            _multiply(self.base, factor),
            self.per,
            tuple((n, _multiply(price, factor)) for n, price in self.above),
            tuple((n, _multiply(price, factor)) for n, price in self.graduated),
        )

    def at(self, total_input: int) -> Decimal:
        """The price for a request with that many input tokens in all."""
        price = self.base
        for threshold, dearer in self.above:
            if total_input > threshold:
                price = dearer
        return price


Wants = frozenset[tuple[str, str]]
"""What a price or a request names besides the model: `("tier", "batch")`, `("region", "us")`, `("size", "1024x1024")`."""


def wants(tier: str, region: str, options: Iterable[tuple[str, str]] = ()) -> Wants:
    """Tier, region and options as one set; empty ones are left out."""
    # The names of options are prefixed, so that an option called `tier` is none.
    named = [("tier", tier), ("region", region), *((f"option {name}", value) for name, value in options)]
    return frozenset((name, value) for name, value in named if value)


@dataclass(frozen=True, slots=True)
class Price:
    """A set of rates and when it holds.

    Attributes:
        rates: meter -> rate.
        tier, region, options: what must have been served; empty in a standard price.
        when: a context that usage cannot tell (`route=...`); such a price is never chosen, but its meters become unpriced.
        starts, ends: validity in nanoseconds since the epoch, from inclusive, to exclusive; None is open.
        hours: daily window in seconds of the day, from inclusive, to exclusive; it may cross midnight.
        days: weekdays of the window, 0 is Monday; None is every day.
        holidays: days since the epoch on which the price does not hold.
        zone: IANA name of the clock of `hours`, `days` and `holidays`; empty is UTC.
        minimum_charge: what a request costs at least.
        unknown: why the price in force here is not known; empty when it is.
        note: what the reader of a cost must know about this price.
    """

    rates: Mapping[str, Rate]
    tier: str = ""
    region: str = ""
    options: Options = ()
    when: str = ""
    starts: int | None = None
    ends: int | None = None
    hours: tuple[int, int] | None = None
    days: frozenset[int] | None = None
    holidays: frozenset[int] = frozenset()
    zone: str = ""
    minimum_charge: Decimal = _ZERO
    unknown: str = ""
    note: str = ""

    @property
    def unconditional(self) -> bool:
        """True when it holds at any time."""
        return self.starts is None and self.ends is None and not self.windowed

    @property
    def windowed(self) -> bool:
        """True when it holds at some hours or days only."""
        return self.hours is not None or self.days is not None or bool(self.holidays)

    def in_force(self, at: int) -> bool:
        """Whether it holds at that wall-clock time (nanoseconds)."""
        if (self.starts is not None and at < self.starts) or (self.ends is not None and at >= self.ends):
            return False
        if self.hours is None and self.days is None and not self.holidays:
            return True
        day, second = _local(at, self.zone) if self.zone else divmod(at // _NS, _DAY)
        # 1970-01-01 was a Thursday.
        if (self.days is not None and (day + 3) % 7 not in self.days) or day in self.holidays:
            return False
        return self.hours is None or _within(second, *self.hours)

    @property
    def label(self) -> str:
        """Distinguishes this price within its model: `@2025-06-10`, `+batch`, or nothing."""
        parts = [f"@{to_datetime(self.starts).date().isoformat()}" if self.starts is not None else ""]
        if self.hours:
            parts.append("~" + "-".join(f"{second // 3600:02d}:{second % 3600 // 60:02d}" for second in self.hours))
        return "".join(parts) + _served(self.tier, self.region, self.options)


class Adjust(NamedTuple):
    """A factor on all prices of a model for a tier, a region or an option, so that their product needs no table of its own.

    Attributes:
        multiply: the factor. tier, region, options: what must have been served.
        meters: that it holds for; empty is every one but those of the family `calls`: tools and requests have prices of their own.
        starts, ends: validity in nanoseconds since the epoch, from inclusive, to exclusive; None is open.
        note, source: for people.
    """

    multiply: Decimal
    tier: str = ""
    region: str = ""
    options: Options = ()
    meters: frozenset[str] = frozenset()
    starts: int | None = None
    ends: int | None = None
    note: str = ""
    source: str = ""

    def in_force(self, at: int) -> bool:
        """Whether it holds at that wall-clock time (nanoseconds)."""
        return (self.starts is None or at >= self.starts) and (self.ends is None or at < self.ends)

    def covers(self, meter: str) -> bool:
        """Whether it changes the price of that meter."""
        return meter in self.meters if self.meters else METERS[meter].family != "calls"

    @property
    def label(self) -> str:
        """For the note of a line: `region us`."""
        named = [("tier", self.tier), ("region", self.region), *self.options]
        return ", ".join(f"{name} {value}" for name, value in named if value)


def _served(tier: str, region: str, options: Options) -> str:
    return "".join(f"+{word}" for word in (tier, region, *(f"{name}={value}" for name, value in options)) if word)


def _within(second: int, start: int, end: int) -> bool:
    return start <= second < end if start <= end else second >= start or second < end


@functools.cache
def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo  # few prices need a calendar of their own

    return ZoneInfo(name)


def _local(at: int, zone: str) -> tuple[int, int]:
    """(days since the epoch, second of the day) there."""
    moment = datetime.fromtimestamp(at // _NS, _zone(zone))
    return moment.toordinal() - _EPOCH, moment.hour * 3600 + moment.minute * 60 + moment.second


_Choice = tuple[tuple[int, ...], tuple[int, ...]]
"""Which variants and which adjustments serve a request: positions in the entry."""

_STANDARD: _Choice = ((), ())


@dataclass(slots=True, eq=False, repr=False)
class Entry:
    """Everything that one list says about one model.

    Attributes:
        provider, model: ids of the list. name: for people. service: as in `Sku`.
        list_id, source, as_of, currency, confidence, url: provenance, of the list or of this row.
        context_window, max_output: tokens, None when the list does not say.
        prices: standard prices in order; the last one in force counts.
        variants: prices of other tiers, regions and options; they override the standard one meter by meter, the first that has a
            meter wins.
        adjust: factors for what no variant names.
        free: True when the list says that nothing is charged.
        provisioned: True when it is capacity that is paid for by the hour, so that one more call costs nothing.
        unmetered: things that the list prices and no meter counts.
        minimum: meter -> least quantity billed.
        notes: go into every cost.
        terms: discounts, commitments, exchange rates and markup over these prices.
    """

    provider: str
    model: str
    list_id: str
    source: str
    as_of: date | None = None
    currency: str = "USD"
    name: str = ""
    service: str = "llm"
    confidence: str = ""
    url: str = ""
    context_window: int | None = None
    max_output: int | None = None
    prices: tuple[Price, ...] = ()
    variants: tuple[Price, ...] = ()
    adjust: tuple[Adjust, ...] = ()
    free: bool = False
    provisioned: bool = False
    unmetered: tuple[str, ...] = ()
    minimum: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    terms: Terms | None = None
    _always: Sheet | None = field(default=None, init=False, repr=False)
    _sheets: dict[object, Sheet] = field(default_factory=dict, init=False, repr=False)
    _choices: dict[object, _Choice | None] = field(default_factory=dict, init=False, repr=False)
    _edges: tuple[int, ...] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        # The common model has one price for ever: no condition is looked at when such a call is priced.
        terms = self.terms
        if terms is not None and not terms.timeless:
            return
        if self.free or self.provisioned:
            self._always = self._nothing_charged(None, "free" if self.free else "committed", None)
        elif len(self.prices) == 1 and self.prices[0].unconditional and not self.prices[0].unknown:
            key = None if terms is None else terms.key(0, "")
            assert not isinstance(key, str)  # noqa: S101 - only an exchange rate can be missing, and those have dates
            if key is None or key[1] < 0:
                self._always = self._compile(0, _STANDARD, key)

    def sheet(self, at: int, tier: str = "", region: str = "", options: Options = ()) -> Sheet | str:
        """The sheet in force, or one sentence that says why the price is not known.

        Args:
            at: wall clock, nanoseconds since the epoch.
            tier: as `tier_name` gives it; empty is the standard one.
            region: empty unless the region decides the price. options: sorted pairs of whatever else does.
        """
        if self._always is not None and (self._always.free or not (tier or region or options)):
            return self._always
        key: TermsKey | str | None = None if self.terms is None else self.terms.key(at, tier)
        if isinstance(key, str):
            return f"{self.provider}/{self.model}: {key}"
        if self.free or self.provisioned:
            return self._nothing_charged(None, "free" if self.free else "committed", key)
        base = self._in_force(at)
        if key is not None and key[1] >= 0:
            return self._nothing_charged(base, "committed", key)
        choice: _Choice | None = _STANDARD
        if tier or region or options:
            choice = self._chosen(at, tier, region, options)
            if choice is None and tier == PROVISIONED:
                return self._nothing_charged(base, "committed", key)
        if base is None:
            return self._nothing_at(at)
        if self.prices[base].unknown:
            return f"{self.provider}/{self.model}: {self.prices[base].unknown}"
        if choice is None:
            return self._no_variant(tier, region, options, at)
        place = (base, choice, key) if choice is not _STANDARD or key else base
        sheet = self._sheets.get(place)
        if sheet is None:
            sheet = self._sheets[place] = self._compile(base, choice, key)
        return sheet

    def _in_force(self, at: int) -> int | None:
        """The last standard price that holds."""
        number = len(self.prices)
        for price in reversed(self.prices):
            number -= 1
            if price.in_force(at):
                return number
        return None

    def _chosen(self, at: int, tier: str, region: str, options: Options) -> _Choice | None:
        """The variants that name most of what was served, with a factor for each thing that they do not name; None without."""
        edges = self._edges
        if edges is None:
            edges = self._edges = self._moments()
        # Between two dates the answer to the same question is the same, unless a variant holds at some hours only.
        asked = (tier, region, options, bisect_right(edges, at))
        found = self._choices.get(asked)
        if found is None:
            found = self._choose(at, wants(tier, region, options))
            if not any(price.windowed for price in self.variants):
                if len(self._choices) >= _CHOICES:
                    self._choices.clear()  # names come from answers of providers: they must not fill the memory
                self._choices[asked] = found
        return found

    def _choose(self, at: int, asked: Wants) -> _Choice | None:
        for variants, rest in self._plan(asked):
            used = tuple([number for number in variants if self.variants[number].in_force(at)])
            if variants and not used:
                continue
            if not rest:
                return used, ()
            factors = self._factors(rest, at)
            if factors is not None:
                return used, factors
        return None

    def _moments(self) -> tuple[int, ...]:
        """When variants and adjustments begin and end, ascending."""
        found = [edge for price in self.variants for edge in (price.starts, price.ends)]
        found += [edge for factor in self.adjust for edge in (factor.starts, factor.ends)]
        return tuple(sorted({edge for edge in found if edge is not None}))

    def _plan(self, asked: Wants) -> tuple[tuple[tuple[int, ...], Wants], ...]:
        """What could serve a request, best first: (variants that name the same part of it, what they leave to factors)."""
        groups: dict[Wants, list[int]] = {}
        for number, price in enumerate(self.variants):
            named = wants(price.tier, price.region, price.options)
            if not price.when and named <= asked:
                groups.setdefault(named, []).append(number)
        # A tier decides more about a price than a region does, so of two that name as much the one with the tier is taken.
        ranked = sorted(groups, key=lambda named: (-len(named), not any(kind == "tier" for kind, _ in named)))
        return (*((tuple(groups[named]), asked - named) for named in ranked), ((), asked))

    def _factors(self, rest: Wants, at: int) -> tuple[int, ...] | None:
        """Adjustments that together name all of it, each thing once; None when something is left."""
        groups: dict[Wants, list[int]] = {}
        for number, one in enumerate(self.adjust):
            named = wants(one.tier, one.region, one.options)
            if named <= rest and one.in_force(at):
                groups.setdefault(named, []).append(number)
        left, used = rest, []
        for named in sorted(groups, key=len, reverse=True):
            if named <= left:
                left -= named
                used += groups[named]
        return None if left else tuple(sorted(used))

    def _nothing_at(self, at: int) -> str:
        if not self.prices:
            return f"{self.list_id} knows {self.provider}/{self.model} but gives no price for it"
        return f"{self.list_id} has no price for {self.provider}/{self.model} at {to_datetime(at).isoformat()}"

    def _no_variant(self, tier: str, region: str, options: Options, at: int) -> str:
        named = [("tier", tier), ("region", region), *((f"option {name}", value) for name, value in options)]
        asked = " and ".join(f"{kind} {value!r}" for kind, value in named if value)
        known = sorted(
            {price.label for price in self.variants if not price.when}
            | {_served(one.tier, one.region, one.options) for one in self.adjust}
        )
        others = f"; it has {', '.join(known)}" if known else ""
        day = to_datetime(at).date().isoformat()
        return f"{self.list_id} has no price of {asked} for {self.provider}/{self.model} on {day}{others}"

    def _nothing_charged(self, base: int | None, basis: Basis, key: TermsKey | None) -> Sheet:
        """The sheet of what costs nothing more: free, or paid for by a commitment."""
        place = (basis, base, key)
        sheet = self._sheets.get(place)
        if sheet is None:
            sheet = self._sheets[place] = self._free_sheet(base, basis, key)
        return sheet

    def _free_sheet(self, base: int | None, basis: Basis, key: TermsKey | None) -> Sheet:
        notes, listed = self._notes([], set()), None
        if basis == "committed":
            commitment = self.terms.commitments[key[1]].name if self.terms and key and key[1] >= 0 else ""
            who = f"commitment {commitment}" if commitment else "provisioned throughput"
            notes = (*notes, f"{who}: one more call costs nothing; what is paid for the capacity is apart")
            if base is None and len(self.prices) == 1 and self.prices[0].unconditional:
                base = 0
            if base is not None and not self.prices[base].unknown:
                listed = self._compile(base, _STANDARD, None if key is None else (-1, -1, key[2]))
        return Sheet(
            units={},
            levels=(),
            ceilings=((-1, _ZERO, _ZERO),),
            scale=_ONE,
            to_nanos=(_NS, 1),
            fee=_ZERO,
            minimum={},
            basis=basis,
            plain=False,
            price_id=f"{self.list_id}/{self.provider}/{self.model}"
            + (f"+{PROVISIONED}" if basis == "committed" else ""),
            notes=notes,
            listed=listed,
            **self._provenance(),
        )

    def _provenance(self) -> dict[str, Any]:
        terms = self.terms
        return {
            "as_of": self.as_of,
            "as_of_text": self.as_of.isoformat() if self.as_of else None,
            "source": self.source,
            "model": self.model,
            "currency": terms.target if terms else self.currency,
            "confidence": self.confidence,
            "url": self.url,
            "markup": terms.markup if terms else None,
        }

    def _compile(self, base: int, choice: _Choice, key: TermsKey | None) -> Sheet:
        used = [*(self.variants[i] for i in choice[0]), *self.prices[base : base + 1]]
        adjust = [self.adjust[number] for number in choice[1]]
        discount = self.terms.discounts[key[0]] if self.terms and key and key[0] >= 0 else None
        common = self._common(discount, key)
        rates, whys = self._rates(used, adjust, common)
        vague = {meter for price in self.variants if price.when for meter in price.rates}
        thresholds = sorted({n for rate in rates.values() for n, _ in rate.above}, reverse=True)
        power = max((_power(price, rate.per) or 0 for rate in rates.values() for price in _prices(rate)), default=0)
        units = _units(rates, whys, vague, 0, power)
        levels = tuple((n, _units(rates, whys, vague, n + 1, power)) for n in thresholds)
        fee = max(
            _dearest(one["requests"]) if "requests" in one else _ZERO for one in (units, *(row[1] for row in levels))
        )
        least = next((price.minimum_charge for price in used if price.minimum_charge), _ZERO)
        for factor, _ in common:
            least = _multiply(least, factor)
        volume = discount.volume if discount else None
        careful = bool(fee or least or self.minimum or volume) or any(
            not unit.finite or unit.steps for unit in units.values()
        )
        return Sheet(
            units=units,
            levels=levels,
            ceilings=tuple(_ceilings(((-1, units), *reversed(levels)))),
            scale=Decimal((0, (1,), -power)),
            to_nanos=(10 ** max(0, _NANO_PLACES - power), 10 ** max(0, power - _NANO_PLACES)),
            fee=fee,
            minimum=self.minimum,
            basis="priced",
            plain=not careful,
            price_id=f"{self.list_id}/{self.provider}/{self.model}{''.join(_label(used, adjust, discount))}",
            notes=self._notes(used, vague, adjust, discount),
            minimum_charge=least,
            discount=discount.factor if discount else None,
            listed=self._compile(base, choice, (-1, -1, key[2])) if discount and key else None,
            volume=volume,
            **self._provenance(),
        )

    def _common(self, discount: Discount | None, key: TermsKey | None) -> list[tuple[Decimal, str]]:
        """Factors of every price and what they are: of the exchange rate, of the discount."""
        found = []
        if self.terms and key and key[2] >= 0:
            exchange = self.terms.exchange[key[2]]
            found.append((exchange.rate, exchange.label))
        if discount and discount.percent:
            found.append((discount.factor, discount.label))
        return found

    def _rates(
        self, used: list[Price], adjust: list[Adjust], common: list[tuple[Decimal, str]]
    ) -> tuple[dict[str, Rate], dict[str, str]]:
        """(meter -> rate with every factor in it, meter -> what these factors are)."""
        listed: dict[str, Rate] = {}
        for price in used:
            for meter, rate in price.rates.items():
                listed.setdefault(meter, rate)
        rates, whys = {}, {}
        for meter, rate in listed.items():
            factors = [*_adjusting(meter, adjust), *common]
            rates[meter] = functools.reduce(Rate.times, (factor for factor, _ in factors), rate)
            whys[meter] = "; ".join(f"x {plainly(factor)} {what}" for factor, what in factors)
        return rates, whys

    def _notes(
        self,
        used: list[Price],
        vague: set[str],
        adjust: Iterable[Adjust] = (),
        discount: Discount | None = None,
    ) -> tuple[str, ...]:
        found = [*self.notes, *(price.note for price in used if price.note)]
        for one in adjust:
            said = [one.note, f"source {one.source}" if one.source else ""]
            if any(said):
                found.append(f"x {plainly(one.multiply)} {one.label}: {', '.join(word for word in said if word)}")
        if discount and discount.note:
            found.append(f"{discount.name}: {discount.note}")
        if self.unmetered:
            found.append(f"the list also prices {', '.join(self.unmetered)}, which no meter counts")
        if vague:
            contexts = ", ".join(sorted({price.when for price in self.variants if price.when}))
            found.append(f"{', '.join(sorted(vague))}: the price depends on {contexts}, which usage does not tell")
        return tuple(found)


def _adjusting(meter: str, adjust: list[Adjust]) -> list[tuple[Decimal, str]]:
    """The factors of one meter; of several for the same thing the last one of the list counts."""
    found: dict[Wants, tuple[Decimal, str]] = {}
    for one in adjust:
        if one.covers(meter):
            found[wants(one.tier, one.region, one.options)] = (one.multiply, one.label)
    return list(found.values())


def _label(used: list[Price], adjust: list[Adjust], discount: Discount | None) -> Iterator[str]:
    # The date of the standard price, then the tier that overrides it, then what multiplies both.
    yield used[-1].label
    yield from (price.label for price in used[:1] if len(used) > 1)
    yield from dict.fromkeys(_served(one.tier, one.region, one.options) for one in adjust)
    if discount:
        yield f"+{discount.name}"


def _one(unit: Unit) -> Decimal:
    return _divide(unit.rate, Decimal(unit.per))


def _dearest(unit: Unit) -> Decimal:
    return _divide(max(unit.rate, *(price for _, price in unit.steps)), Decimal(unit.per)) if unit.steps else _one(unit)


def _ceilings(levels: Iterable[tuple[int, Units]]) -> Iterator[tuple[int, Decimal | None, Decimal | None]]:
    """For each level, ascending, the dearest token of this level or of any below it."""
    best: dict[str, Decimal] = {}
    for threshold, units in levels:
        for name, unit in units.items():
            meter = METERS[name]
            if meter.family == "tokens":
                best[meter.direction] = max(best.get(meter.direction, _ZERO), _dearest(unit))
        yield threshold, best.get("input"), best.get("output")


def _prices(rate: Rate) -> list[Decimal]:
    return [rate.base, *(price for _, price in rate.above), *(price for _, price in rate.graduated)]


def _power(price: Decimal, per: int) -> int | None:
    """The least k for which `price / per` is a whole multiple of 10**-k; None when there is none up to 30."""
    number, denominator = price.as_integer_ratio()
    denominator *= per
    return next((k for k in range(31) if number * 10**k % denominator == 0), None)


def _units(
    rates: Mapping[str, Rate], whys: Mapping[str, str], vague: set[str], total_input: int, power: int
) -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for meter in METERS:
        source = _source(meter, rates, vague)
        if source is not None:
            notes = (
                "" if source == meter else f"at the {source} rate",
                _cliff(rates[source], total_input),
                whys[source],
            )
            found[meter] = _unit(rates[source], total_input, power, "; ".join(note for note in notes if note))
    return found


def _source(meter: str, rates: Mapping[str, Rate], vague: set[str]) -> str | None:
    """The meter whose rate bills this one."""
    for candidate in (meter, *FALLBACK.get(meter, ())):
        if candidate in vague:
            return None
        if candidate in rates:
            return candidate
    return None


def _cliff(rate: Rate, total_input: int) -> str:
    reached = [n for n, price in rate.above if total_input > n]
    return f"prompt above {reached[-1]:,} tokens" if reached and rate.at(total_input) != rate.base else ""


def _unit(rate: Rate, total_input: int, power: int, note: str) -> Unit:
    price = rate.at(total_input)
    numerator, denominator = price.as_integer_ratio()
    number, rest = divmod(numerator * 10**power, denominator * rate.per)
    finite = not rest and all(_power(step, rate.per) is not None for _, step in rate.graduated)
    return Unit(number if finite else 0, price, rate.per, note, finite, rate.graduated)


def tier_name(tier: str) -> str:
    """A served tier as prices know it: lower case, empty for the standard one."""
    name = tier.lower()
    return "" if name in STANDARD_TIERS else name


def read_entry(row: Mapping[str, Any], **provenance: Any) -> Entry:
    """An entry from one model row of a price file (see `docs/reference/prices.md`), already validated.

    Args:
        row: the table; its own `source`, `as_of`, `currency`, `confidence` and `url` win over those of the list.
        provenance: `provider`, `list_id`, `source`, `as_of` and `currency` of the list.
    """
    least = row.get("minimum_charge")
    return Entry(
        model=row["model"],
        name=row.get("name", ""),
        service=row.get("service") or "llm",
        context_window=row.get("context_window"),
        max_output=row.get("max_output"),
        prices=tuple(_read_price(item, least) for item in row.get("prices", ())),
        variants=tuple(_read_price(item, None) for item in row.get("variants", ())),
        adjust=tuple(_read_adjust(item) for item in row.get("adjust", ())),
        free=bool(row.get("free")),
        provisioned=bool(row.get("provisioned")),
        unmetered=tuple(row.get("unmetered", ())),
        minimum=row.get("minimum") or {},
        **{**provenance, **_own_provenance(row)},
    )


def _own_provenance(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: row[name] for name in ("source", "currency", "confidence", "url") if row.get(name)}
    if row.get("as_of"):
        found["as_of"] = _day(row["as_of"])
    return found


def _read_price(row: Mapping[str, Any], least: Any) -> Price:
    hours, days, charge = row.get("hours"), row.get("days"), row.get("minimum_charge")
    return Price(
        rates={meter: _read_rate(meter, value) for meter, value in row.get("rates", {}).items()},
        **_read_served(row),
        when=", ".join(f"{key}={value}" for key, value in row.get("when", {}).items()),
        starts=_midnight(row.get("from")),
        ends=_midnight(row.get("until")),
        hours=(_second(hours[0]), _second(hours[1])) if hours else None,
        days=None if days is None else frozenset(days),
        holidays=frozenset(_day(day).toordinal() - _EPOCH for day in row.get("holidays") or ()),
        zone=row.get("tz") or "",
        minimum_charge=Decimal(least if charge is None else charge)
        if charge is not None or least is not None
        else _ZERO,
        unknown=row.get("unknown", ""),
        note=row.get("note", ""),
    )


def _read_adjust(row: Mapping[str, Any]) -> Adjust:
    meters = row.get("meters") or ()
    named = [GROUPS.get(name, frozenset({name})) for name in ((meters,) if isinstance(meters, str) else meters)]
    return Adjust(
        multiply=Decimal(row["multiply"]),
        **_read_served(row),
        meters=frozenset().union(*named),
        starts=_midnight(row.get("from")),
        ends=_midnight(row.get("until")),
        note=row.get("note", ""),
        source=row.get("source", ""),
    )


def _read_served(row: Mapping[str, Any]) -> dict[str, Any]:
    options = row.get("options") or {}
    return {
        "tier": row.get("tier", ""),
        "region": row.get("region", ""),
        "options": tuple(sorted((str(name), str(value)) for name, value in options.items())),
    }


def _read_rate(meter: str, value: Any) -> Rate:
    if isinstance(value, Mapping):
        above, graduated = (
            tuple(sorted((int(n), Decimal(price)) for n, price in (value.get(name) or {}).items()))
            for name in ("above", "graduated")
        )
        return Rate(Decimal(value["base"]), value.get("per") or METERS[meter].per, above, graduated)
    return Rate(Decimal(value), METERS[meter].per)


def _day(day: date | str) -> date:
    return date.fromisoformat(day) if isinstance(day, str) else day


def _midnight(day: date | str | None) -> int | None:
    if day is None:
        return None
    start = _day(day)
    return to_ns(datetime(start.year, start.month, start.day, tzinfo=UTC))


def _second(text: str) -> int:
    hour, _, minute = text.partition(":")
    return int(hour) * 3600 + int(minute) * 60
