"""Unit prices with their conditions, and the integer tables that they are compiled to.

A `Rate` is the price of one meter, a `Price` is a set of rates under conditions, an `Entry` is everything that a list says about
one model. For a moment, a tier and a region an entry yields a `Sheet`: every meter with its integer price, ready to multiply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

from aifinops.charges import CostLine, even
from aifinops.clock import to_datetime, to_ns
from aifinops.meters import METERS
from aifinops.money import MAX_NANOS
from aifinops.usage import Quantities, Quantity

__all__ = [
    "FALLBACK",
    "STANDARD_TIERS",
    "UNBILLED",
    "Entry",
    "Price",
    "Rate",
    "Sheet",
    "Unit",
    "read_entry",
    "tier_name",
]

STANDARD_TIERS = frozenset({"", "default", "auto", "standard", "on_demand"})
"""Tiers that are billed at the standard price (`on_demand` is what Groq calls it)."""

UNBILLED = frozenset({"requests", "tool_calls"})
"""Meters that count without costing, unless a list gives them a price."""

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
_multiply, _divide, _add = _EXACT.multiply, _EXACT.divide, _EXACT.add
_INPUTS = frozenset(name for name, row in METERS.items() if row.family == "tokens" and row.direction == "input")
_ATTO = Decimal("1e-18")
_ZERO = Decimal(0)
_NANO_PLACES = 9
_DAY = 86_400
_NS = 1_000_000_000


# A frozen dataclass sets each field through `object.__setattr__`, which is most of the time of pricing a call. The slots' own
# setters do the same in half of it; `tests/unit/pricing/test_prices.py` holds both ways equal.
_new = object.__new__
_set_meter, _set_quantity, _set_rate, _set_per, _set_amount, _set_note = (
    vars(CostLine)[one.name].__set__ for one in fields(CostLine)
)


def make_line(meter: str, quantity: Quantity, rate: Decimal, per: int, amount: Decimal, note: str) -> CostLine:
    """`CostLine(...)`, quicker."""
    line = _new(CostLine)
    _set_meter(line, meter)
    _set_quantity(line, quantity)
    _set_rate(line, rate)
    _set_per(line, per)
    _set_amount(line, amount)
    _set_note(line, note)
    return line


@dataclass(frozen=True, slots=True)
class Rate:
    """The price of one meter.

    Attributes:
        base: price of `per` quantities, in the currency of the list.
        per: how many quantities one price is for.
        above: cliffs, ascending: (n, price). A request with more than n input tokens in all (fresh, cached and written) is
            billed at that price for every token, not only for those above n.
    """

    base: Decimal
    per: int
    above: tuple[tuple[int, Decimal], ...] = ()

    @property
    def dearest(self) -> Decimal:
        """The highest price of one quantity, over all cliffs."""
        return _divide(
            max(self.base, *(price for _, price in self.above)) if self.above else self.base, Decimal(self.per)
        )

    def at(self, total_input: int) -> Decimal:
        """The price for a request with that many input tokens in all."""
        price = self.base
        for threshold, dearer in self.above:
            if total_input > threshold:
                price = dearer
        return price


@dataclass(frozen=True, slots=True)
class Price:
    """A set of rates and when it holds.

    Attributes:
        rates: meter -> rate.
        tier, region: what must have been served; empty in a standard price.
        when: a context that usage cannot tell (`route=...`); such a price is never chosen, but its meters become unpriced.
        starts, ends: validity in nanoseconds since the epoch, from inclusive, to exclusive; None is open.
        hours: daily window in seconds of the UTC day, from inclusive, to exclusive; it may cross midnight.
        days: UTC weekdays of the window, 0 is Monday; None is every day.
        unknown: why the price in force here is not known; empty when it is.
        note: what the reader of a cost must know about this price.
    """

    rates: Mapping[str, Rate]
    tier: str = ""
    region: str = ""
    when: str = ""
    starts: int | None = None
    ends: int | None = None
    hours: tuple[int, int] | None = None
    days: frozenset[int] | None = None
    unknown: str = ""
    note: str = ""

    @property
    def unconditional(self) -> bool:
        """True when it holds at any time."""
        return self.starts is None and self.ends is None and self.hours is None and self.days is None

    def in_force(self, at: int) -> bool:
        """Whether it holds at that wall-clock time (nanoseconds)."""
        if (self.starts is not None and at < self.starts) or (self.ends is not None and at >= self.ends):
            return False
        if self.hours is None and self.days is None:
            return True
        day, second = divmod(at // _NS, _DAY)
        # 1970-01-01 was a Thursday.
        if self.days is not None and (day + 3) % 7 not in self.days:
            return False
        return self.hours is None or _within(second, *self.hours)

    @property
    def label(self) -> str:
        """Distinguishes this price within its model: `@2025-06-10`, `+batch`, or nothing."""
        parts = [f"@{to_datetime(self.starts).date().isoformat()}" if self.starts is not None else ""]
        if self.hours:
            parts.append("~" + "-".join(f"{second // 3600:02d}:{second % 3600 // 60:02d}" for second in self.hours))
        parts += [f"+{word}" for word in (self.tier, self.region) if word]
        return "".join(parts)


def _within(second: int, start: int, end: int) -> bool:
    return start <= second < end if start <= end else second >= start or second < end


class Unit(NamedTuple):
    """One meter, compiled.

    Attributes:
        number: price of one quantity as an integer multiple of the sheet's scale; 0 where `rate / per` has no finite decimal.
        rate, per, note: as they appear in a `CostLine`.
        finite: whether `number` is exact.
    """

    number: int
    rate: Decimal
    per: int
    note: str
    finite: bool = True


Units = Mapping[str, Unit]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Everything needed to price one request: made once for each price in force, then only read.

    Attributes:
        units: meter -> unit; every meter that can be billed, fallbacks resolved.
        levels: cliffs, descending: (n, units) for requests with more than n input tokens in all.
        scale: value of one integer step, a power of ten. to_nanos: (times, by), the same in nano-units as a fraction.
        ceilings: ascending: (n, input, output), the dearest price of one token of each direction in a request with more than n
            input tokens in all; None where the list has no token price.
        fee: what each request costs by itself.
        minimum: meter -> least quantity that is billed when there is any.
        free: True when nothing is charged.
        plain: True when neither a fee, a minimum nor an endless decimal needs the careful path.
        price_id, as_of, source, model, notes, currency: provenance, as in `Cost`. as_of_text: ISO form of the date.
    """

    units: Units
    levels: tuple[tuple[int, Units], ...]
    ceilings: tuple[tuple[int, Decimal | None, Decimal | None], ...]
    scale: Decimal
    to_nanos: tuple[int, int]
    fee: Decimal
    minimum: Mapping[str, int]
    free: bool
    plain: bool
    price_id: str
    as_of: date | None
    as_of_text: str | None
    source: str
    model: str
    notes: tuple[str, ...]
    currency: str

    def level(self, total_input: Quantity) -> Units:
        """The units for a request with that many input tokens in all."""
        for threshold, units in self.levels:
            if total_input > threshold:
                return units
        return self.units

    def lines(self, quantities: Quantities) -> tuple[list[CostLine], Decimal, tuple[str, ...]]:
        """(lines, their exact sum, meters without a rate) of disjoint quantities."""
        units = self.level(_prompt(quantities)) if self.levels else self.units
        if not self.plain:
            return self._careful(units, quantities)
        scale, found = self.scale, []
        total: Quantity = 0
        missing: tuple[str, ...] = ()
        for meter, quantity in quantities.items():
            unit = units.get(meter)
            if unit is None:
                missing += _missing(meter, quantity)
            elif quantity:
                number, rate, per, note, _ = unit
                steps = number * quantity
                total += steps
                found.append(make_line(meter, quantity, rate, per, _multiply(steps, scale), note))
        return found, _multiply(total, scale), missing

    def nanos(self, quantities: Quantities) -> tuple[int, tuple[tuple[str, int], ...]] | None:
        """`lines` in integer nano-units, each rounded up, for a plain sheet and whole quantities: a tenth of the time.

        Returns:
            (amount, (meter, amount) of each line), or None where only `lines` can say it.
        """
        if not self.plain:
            return None
        units = self.level(_prompt(quantities)) if self.levels else self.units
        times, by = self.to_nanos
        total, found = 0, []
        for meter, quantity in quantities.items():
            unit = units.get(meter)
            if unit is None:
                if quantity and meter not in UNBILLED:
                    return None
            elif quantity:
                if type(quantity) is not int:
                    return None
                steps = unit.number * quantity * times
                total += steps
                found.append((meter, -(-steps // by)))
        amount = -(-total // by)
        if amount > MAX_NANOS:
            return None
        return amount, tuple(found) if by == 1 else even(found, amount)

    def _careful(self, units: Units, quantities: Quantities) -> tuple[list[CostLine], Decimal, tuple[str, ...]]:
        if self.free:
            return [], _ZERO, ()
        implied = {"requests": 1} if self.fee and not quantities.get("requests") else {}
        found: list[CostLine] = []
        missing: tuple[str, ...] = ()
        for meter, quantity in {**quantities, **implied}.items():
            unit = units.get(meter)
            if unit is None:
                missing += _missing(meter, quantity)
            elif quantity:
                found.append(self._line(meter, quantity, unit))
        total = _ZERO
        for line in found:
            total = _add(total, line.amount)
        return found, total, missing

    def _line(self, meter: str, quantity: Quantity, unit: Unit) -> CostLine:
        billed, note = quantity, unit.note
        least = self.minimum.get(meter, 0)
        if quantity < least:
            billed, note = least, f"at least {least} are billed, {quantity} were used"
        amount = _multiply(unit.number * billed, self.scale) if unit.finite else _share(billed, unit)
        return CostLine(meter, billed, unit.rate, unit.per, amount, note)

    def ceiling(self, total_input: int) -> tuple[Decimal | None, Decimal | None]:
        """The dearest price of one input and of one output token, over all levels that a request of at most that size can reach."""
        reached = self.ceilings[0]
        for row in self.ceilings:
            if total_input > row[0]:
                reached = row
        return reached[1], reached[2]


def _prompt(quantities: Quantities) -> Quantity:
    """Input tokens in all: what cliffs are measured by."""
    total: Quantity = 0
    for meter, quantity in quantities.items():
        if meter in _INPUTS:
            total += quantity
    return total


def _missing(meter: str, quantity: Quantity) -> tuple[str, ...]:
    return (meter,) if quantity and meter not in UNBILLED else ()


def _share(quantity: Quantity, unit: Unit) -> Decimal:
    # Only here is anything rounded: a price such as 0.04 an hour is no finite decimal a second.
    return _divide(_multiply(unit.rate, Decimal(quantity)), Decimal(unit.per)).quantize(_ATTO, context=_EXACT)


@dataclass(slots=True, eq=False)
class Entry:
    """Everything that one list says about one model.

    Attributes:
        provider, model: ids of the list. name: for people.
        list_id, source, as_of, currency: provenance.
        context_window, max_output: tokens, None when the list does not say.
        prices: standard prices in order; the last one in force counts.
        variants: prices of other tiers; they override the standard one meter by meter, the first that has a meter wins.
        free: True when the list says that nothing is charged.
        unmetered: things that the list prices and no meter counts.
        minimum: meter -> least quantity billed.
        notes: go into every cost.
    """

    provider: str
    model: str
    list_id: str
    source: str
    as_of: date | None = None
    currency: str = "USD"
    name: str = ""
    context_window: int | None = None
    max_output: int | None = None
    prices: tuple[Price, ...] = ()
    variants: tuple[Price, ...] = ()
    free: bool = False
    unmetered: tuple[str, ...] = ()
    minimum: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _always: Sheet | None = field(default=None, init=False, repr=False)
    _sheets: dict[tuple[int, ...], Sheet] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        # The common model has one price for ever: no condition is looked at when such a call is priced.
        if self.free or (len(self.prices) == 1 and self.prices[0].unconditional and not self.prices[0].unknown):
            self._always = self._compile(0, ())

    def sheet(self, at: int, tier: str = "", region: str = "") -> Sheet | str:
        """The sheet in force, or one sentence that says why the price is not known.

        Args:
            at: wall clock, nanoseconds since the epoch.
            tier: as `tier_name` gives it; empty is the standard one.
            region: empty unless the region decides the price.
        """
        if self._always is not None and (self.free or not (tier or region)):
            return self._always
        base = self._in_force(at)
        if base is None:
            return self._nothing_at(at)
        if self.prices[base].unknown:
            return f"{self.provider}/{self.model}: {self.prices[base].unknown}"
        key: tuple[int, ...] = (base,)
        if tier or region:
            key += self._chosen(at, tier, region)
            if len(key) == 1:
                return self._no_variant(tier, region, at)
        sheet = self._sheets.get(key)
        if sheet is None:
            sheet = self._sheets[key] = self._compile(base, key[1:])
        return sheet

    def _in_force(self, at: int) -> int | None:
        """The last standard price that holds."""
        number = len(self.prices)
        for price in reversed(self.prices):
            number -= 1
            if price.in_force(at):
                return number
        return None

    def _chosen(self, at: int, tier: str, region: str) -> tuple[int, ...]:
        """The variants that hold for that tier and region."""
        return tuple(
            number
            for number, price in enumerate(self.variants)
            if price.tier == tier and price.region == region and not price.when and price.in_force(at)
        )

    def _nothing_at(self, at: int) -> str:
        if not self.prices:
            return f"{self.list_id} knows {self.provider}/{self.model} but gives no price for it"
        return f"{self.list_id} has no price for {self.provider}/{self.model} at {to_datetime(at).isoformat()}"

    def _no_variant(self, tier: str, region: str, at: int) -> str:
        asked = " and ".join(f"{kind} {value!r}" for kind, value in (("tier", tier), ("region", region)) if value)
        known = sorted({price.label for price in self.variants if not price.when})
        others = f"; it has {', '.join(known)}" if known else ""
        day = to_datetime(at).date().isoformat()
        return f"{self.list_id} has no price of {asked} for {self.provider}/{self.model} on {day}{others}"

    def _compile(self, base: int, chosen: tuple[int, ...]) -> Sheet:
        used = [*(self.variants[i] for i in chosen), *self.prices[base : base + 1]]
        rates: dict[str, Rate] = {}
        for price in used:
            for meter, rate in price.rates.items():
                rates.setdefault(meter, rate)
        vague = {meter for price in self.variants if price.when for meter in price.rates}
        thresholds = sorted({n for rate in rates.values() for n, _ in rate.above}, reverse=True)
        power = max((_power(price, rate.per) or 0 for rate in rates.values() for price in _prices(rate)), default=0)
        units = _units(rates, vague, 0, power)
        levels = tuple((n, _units(rates, vague, n + 1, power)) for n in thresholds)
        fee = _one(units["requests"]) if "requests" in units else _ZERO
        return Sheet(
            units=units,
            levels=levels,
            ceilings=tuple(_ceilings(((-1, units), *reversed(levels)))),
            scale=Decimal((0, (1,), -power)),
            to_nanos=(10 ** max(0, _NANO_PLACES - power), 10 ** max(0, power - _NANO_PLACES)),
            fee=fee,
            minimum=self.minimum,
            free=self.free,
            plain=not (self.free or fee or self.minimum or any(not unit.finite for unit in units.values())),
            price_id=f"{self.list_id}/{self.provider}/{self.model}{''.join(_label(used))}",
            as_of=self.as_of,
            as_of_text=self.as_of.isoformat() if self.as_of else None,
            source=self.source,
            model=self.model,
            notes=self._notes(used, vague),
            currency=self.currency,
        )

    def _notes(self, used: list[Price], vague: set[str]) -> tuple[str, ...]:
        found = [*self.notes, *(price.note for price in used if price.note)]
        if self.unmetered:
            found.append(f"the list also prices {', '.join(self.unmetered)}, which no meter counts")
        if vague:
            contexts = ", ".join(sorted({price.when for price in self.variants if price.when}))
            found.append(f"{', '.join(sorted(vague))}: the price depends on {contexts}, which usage does not tell")
        return tuple(found)


def _label(used: list[Price]) -> Iterable[str]:
    # The date of the standard price, then the tier that overrides it.
    if used:
        yield used[-1].label
        yield from (price.label for price in used[:1] if len(used) > 1)


def _one(unit: Unit) -> Decimal:
    return _divide(unit.rate, Decimal(unit.per))


def _ceilings(levels: Iterable[tuple[int, Units]]) -> Iterator[tuple[int, Decimal | None, Decimal | None]]:
    """For each level, ascending, the dearest token of this level or of any below it."""
    best: dict[str, Decimal] = {}
    for threshold, units in levels:
        for name, unit in units.items():
            meter = METERS[name]
            if meter.family == "tokens":
                best[meter.direction] = max(best.get(meter.direction, _ZERO), _one(unit))
        yield threshold, best.get("input"), best.get("output")


def _prices(rate: Rate) -> list[Decimal]:
    return [rate.base, *(price for _, price in rate.above)]


def _power(price: Decimal, per: int) -> int | None:
    """The least k for which `price / per` is a whole multiple of 10**-k; None when there is none up to 30."""
    number, denominator = price.as_integer_ratio()
    denominator *= per
    return next((k for k in range(31) if number * 10**k % denominator == 0), None)


def _units(rates: Mapping[str, Rate], vague: set[str], total_input: int, power: int) -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for meter in METERS:
        source = _source(meter, rates, vague)
        if source is not None:
            note = "" if source == meter else f"at the {source} rate"
            found[meter] = _unit(rates[source], total_input, power, note)
    return found


def _source(meter: str, rates: Mapping[str, Rate], vague: set[str]) -> str | None:
    """The meter whose rate bills this one."""
    for candidate in (meter, *FALLBACK.get(meter, ())):
        if candidate in vague:
            return None
        if candidate in rates:
            return candidate
    return None


def _unit(rate: Rate, total_input: int, power: int, note: str) -> Unit:
    price = rate.at(total_input)
    numerator, denominator = price.as_integer_ratio()
    number, rest = divmod(numerator * 10**power, denominator * rate.per)
    if price != rate.base:
        threshold = max(n for n, _ in rate.above if total_input > n)
        cliff = f"prompt above {threshold:,} tokens"
        note = f"{note}; {cliff}" if note else cliff
    return Unit(0 if rest else number, price, rate.per, note, not rest)


def tier_name(tier: str) -> str:
    """A served tier as prices know it: lower case, empty for the standard one."""
    name = tier.lower()
    return "" if name in STANDARD_TIERS else name


def read_entry(row: Mapping[str, Any], **provenance: Any) -> Entry:
    """An entry from one model row of a price file (see `docs/reference/prices.md`), already validated.

    Args:
        row: the table. provenance: `provider`, `list_id`, `source`, `as_of` and `currency` of the list.
    """
    return Entry(
        model=row["model"],
        name=row.get("name", ""),
        context_window=row.get("context_window"),
        max_output=row.get("max_output"),
        prices=tuple(_read_price(item) for item in row.get("prices", ())),
        variants=tuple(_read_price(item) for item in row.get("variants", ())),
        free=bool(row.get("free")),
        unmetered=tuple(row.get("unmetered", ())),
        minimum=row.get("minimum") or {},
        **provenance,
    )


def _read_price(row: Mapping[str, Any]) -> Price:
    hours, days = row.get("hours"), row.get("days")
    return Price(
        rates={meter: _read_rate(meter, value) for meter, value in row.get("rates", {}).items()},
        tier=row.get("tier", ""),
        region=row.get("region", ""),
        when=", ".join(f"{key}={value}" for key, value in row.get("when", {}).items()),
        starts=_midnight(row.get("from")),
        ends=_midnight(row.get("until")),
        hours=(_second(hours[0]), _second(hours[1])) if hours else None,
        days=None if days is None else frozenset(days),
        unknown=row.get("unknown", ""),
        note=row.get("note", ""),
    )


def _read_rate(meter: str, value: Any) -> Rate:
    if isinstance(value, Mapping):
        above = sorted((int(n), Decimal(price)) for n, price in value.get("above", {}).items())
        return Rate(Decimal(value["base"]), value.get("per", METERS[meter].per), tuple(above))
    return Rate(Decimal(value), METERS[meter].per)


def _midnight(day: date | str | None) -> int | None:
    if day is None:
        return None
    start = date.fromisoformat(day) if isinstance(day, str) else day
    return to_ns(datetime(start.year, start.month, start.day, tzinfo=UTC))


def _second(text: str) -> int:
    hour, _, minute = text.partition(":")
    return int(hour) * 3600 + int(minute) * 60
