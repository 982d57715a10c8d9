"""What was negotiated over list prices: discounts, commitments, markup for charge-back, exchange rates.

A contract changes no price list. It is bound to an entry when a model is first looked up (`Terms`), and compiled into the entry's
sheets, so that a call with a discount is priced as quickly as one without. Imported only where there is a contract.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, Context, Decimal
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from aifinops.charges import CostLine
from aifinops.clock import to_datetime, to_ns
from aifinops.meters import GROUPS, METERS
from aifinops.pricing.match import provider_id
from aifinops.pricing.sheet import plainly
from aifinops.usage import Moment, Quantities, moment, tokens_total

__all__ = [
    "SPEND",
    "Capacity",
    "Commitment",
    "Contract",
    "Discount",
    "Exchange",
    "Provisioned",
    "Scope",
    "Terms",
    "Volume",
    "read_contract",
]

_EXACT = Context(prec=60)
_multiply, _divide, _add, _subtract = _EXACT.multiply, _EXACT.divide, _EXACT.add, _EXACT.subtract
_ATTO = Decimal("1e-18")
_ZERO, _ONE, _HUNDRED = Decimal(0), Decimal(1), Decimal(100)
_HOUR_NS, _MINUTE_NS = Decimal(3_600_000_000_000), Decimal(60_000_000_000)
_SECONDS = {"hour": 3_600, "day": 86_400}
SPEND = "spend"
"""Key of a volume so far that is money at list prices, beside meters."""

TermsKey = tuple[int, int, int]
"""Which discount, commitment and exchange rate are in force: positions in `Terms`, -1 for none."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A negotiated discount that grows with the volume of a period.

    Attributes:
        unit: `spend` (money at list prices), a meter, or `tokens` (all of them).
        tiers: ascending: (n, percent off for what lies above n); the first begins at 0.
        name: of the contract, for notes.
    """

    unit: str
    tiers: tuple[tuple[Decimal, Decimal], ...]
    name: str

    def reduce(self, lines: list[CostLine], so_far: Quantities) -> list[CostLine]:
        """The same lines with the discount of the tiers that they fall into, one after another from the volume so far."""
        counted = GROUPS.get(self.unit, frozenset({self.unit}))
        place = Decimal(so_far.get(self.unit, 0))
        found = []
        for line in lines:
            size = line.amount if self.unit == SPEND else Decimal(line.quantity)
            if self.unit != SPEND and line.meter not in counted:
                found.append(line)
            else:
                found.append(self._reduced(line, place, size))
                place = _add(place, size)
        return found

    def _reduced(self, line: CostLine, place: Decimal, size: Decimal) -> CostLine:
        parts = [(part, percent) for part, percent in self._parts(place, _add(place, size)) if percent]
        if not parts or not size:
            return line
        off, said = _ZERO, []
        for part, percent in parts:
            off = _add(off, _multiply(part, percent))
            said.append(f"{plainly(percent)} % of {plainly(part)}")
        if self.unit == SPEND:
            amount = _subtract(line.amount, _divide(off, _HUNDRED))
        else:
            whole = _multiply(size, _HUNDRED)
            amount = _share(line.amount, _subtract(whole, off), whole)
        unit = "" if self.unit == SPEND else f" {self.unit}"
        why = f"less {' and '.join(said)}{unit}, volume discount of {self.name}"
        return CostLine(
            line.meter, line.quantity, line.rate, line.per, amount, f"{line.note}; {why}" if line.note else why
        )

    def _parts(self, start: Decimal, end: Decimal) -> Iterator[tuple[Decimal, Decimal]]:
        """(how much, percent) of what lies between two volumes."""
        for number, (above, percent) in enumerate(self.tiers):
            limit = self.tiers[number + 1][0] if number + 1 < len(self.tiers) else end
            low, high = max(start, above), min(end, limit)
            if high > low:
                yield _subtract(high, low), percent


@dataclass(frozen=True, slots=True)
class Scope:
    """What a clause of a contract is about, and when. An empty field is anything.

    Attributes:
        provider: id. model: a pattern of `fnmatch` (`gpt-5*`) over the name asked for and that of the list. service: as in `Sku`.
        tier: as `tier_name` gives it, where the standard one is `standard`.
        starts, ends: nanoseconds since the epoch, from inclusive, to exclusive; None is open.
    """

    provider: str = ""
    model: str = ""
    service: str = ""
    tier: str = ""
    starts: int | None = None
    ends: int | None = None

    @property
    def timeless(self) -> bool:
        """True when it holds at any time."""
        return self.starts is None and self.ends is None

    def covers(self, provider: str, models: Iterable[str], service: str) -> bool:
        """Whether it is about that model, whatever the tier and the moment."""
        return (
            self.provider in ("", provider)
            and self.service in ("", service)
            and (not self.model or any(fnmatchcase(name.lower(), self.model.lower()) for name in models))
        )

    def within(self, start: int, end: int) -> tuple[int, int]:
        """The part of a time, in nanoseconds, in which it holds; empty (low >= high) when it holds in none of it."""
        low = start if self.starts is None else max(start, self.starts)
        return low, end if self.ends is None else min(end, self.ends)

    def in_force(self, at: int, tier: str) -> bool:
        """Whether it holds at that moment for that tier."""
        return (
            self.tier in ("", tier or "standard")
            and (self.starts is None or at >= self.starts)
            and (self.ends is None or at < self.ends)
        )


@dataclass(frozen=True, slots=True)
class Discount:
    """So much off the list price.

    Attributes:
        scope: of what. name: of the contract. percent: off every unit, 0 to 100. volume: instead, percentages that grow.
        note: for people.
    """

    scope: Scope
    name: str
    percent: Decimal = _ZERO
    volume: Volume | None = None
    note: str = ""

    @property
    def factor(self) -> Decimal:
        """What of the list price is left, by `percent`."""
        return _divide(_subtract(_HUNDRED, self.percent), _HUNDRED)

    @property
    def label(self) -> str:
        """For the note of a line."""
        return f"discount {plainly(self.percent)} % of {self.name}"


@dataclass(frozen=True, slots=True)
class Commitment:
    """Capacity or spend paid for whether it is used or not: provisioned throughput, reserved instances.

    Attributes:
        scope: calls that it covers; they cost nothing more. name: for notes and reports.
        amount: in `currency`, for each `per` (`hour`, `day`, `month`, `year`), or once for the whole `term` (from, until).
    """

    scope: Scope
    name: str
    amount: Decimal
    per: str
    currency: str

    def amortised(self, start: Moment, end: Moment) -> Decimal:
        """Its cost between two moments, in `currency`: what falls on that part of each hour, day, calendar month, year or term.

        Formula: amount x seconds of the overlap with the period / seconds of the period, summed over the periods (UTC).

        Args:
            start, end: in any form of `Moment`, from inclusive, to exclusive. What lies before the commitment or after it counts nothing.
        """
        return self.over(moment(start, "start"), moment(end, "end"))

    def over(self, start: int, end: int) -> Decimal:
        """`amortised` between two moments in nanoseconds since the epoch."""
        low, high = self.scope.within(start, end)
        total = _ZERO
        while low < high:
            first, last = self._period(low)
            part = min(high, last) - low
            total = _add(total, _divide(_multiply(self.amount, part), Decimal(last - first)))
            low = last
        return total

    @property
    def region(self) -> str:
        """Empty: a commitment covers its calls wherever they are served."""
        return ""

    def weight(self, quantities: Quantities) -> Decimal:
        """What a call counts when the amount is spread over calls: its tokens."""
        return Decimal(tokens_total(quantities))

    def serves(self, start: int, end: int) -> Decimal | None:
        """How much it can serve between two moments: a commitment does not say."""
        return None

    def _period(self, at: int) -> tuple[int, int]:
        if self.per == "term":
            assert self.scope.starts is not None  # noqa: S101 - the schema asks for both ends of a term
            assert self.scope.ends is not None  # noqa: S101
            return self.scope.starts, self.scope.ends
        if self.per in _SECONDS:
            size = _SECONDS[self.per] * 1_000_000_000
            return at // size * size, at // size * size + size
        day = to_datetime(at).date()
        first = day.replace(day=1) if self.per == "month" else day.replace(month=1, day=1)
        after = (first + timedelta(days=32 if self.per == "month" else 366)).replace(day=1)
        return _midnight(first), _midnight(after if self.per == "month" else after.replace(month=1))


@dataclass(frozen=True, slots=True)
class Provisioned:
    """Provisioned throughput: units of a model that are paid for by the hour, whether they serve calls or not.

    It makes no call cheaper by itself: a call that was served by it is `committed` because its answer or its model says so.

    Attributes:
        scope: calls that it serves; it has both a provider and a beginning. name: for reports.
        units: how many. rate: of one unit for one hour, in `currency`.
        region: that it serves; empty is any.
        tokens_per_minute: weighted tokens that one unit serves in a minute; None when it is not known, and so no idle part either.
        weights: meter -> how much of the capacity one token of it takes (an output token often takes several times an input token);
            a meter that is not in it takes 1.
        source, as_of: of the rate.
    """

    scope: Scope
    name: str
    units: Decimal
    rate: Decimal
    currency: str
    region: str = ""
    tokens_per_minute: Decimal | None = None
    weights: Mapping[str, Decimal] = field(default_factory=lambda: MappingProxyType({}))
    source: str = ""
    as_of: date | None = None

    def amortised(self, start: Moment, end: Moment) -> Decimal:
        """Its cost between two moments, in `currency`: units x rate x hours of the overlap.

        Args:
            start, end: in any form of `Moment`, from inclusive, to exclusive.
        """
        return self.over(moment(start, "start"), moment(end, "end"))

    def over(self, start: int, end: int) -> Decimal:
        """`amortised` between two moments in nanoseconds since the epoch."""
        low, high = self.scope.within(start, end)
        return _divide(_multiply(_multiply(self.units, self.rate), max(0, high - low)), _HOUR_NS)

    def weight(self, quantities: Quantities) -> Decimal:
        """How much of the capacity a call took: its tokens, each as heavy as its meter."""
        total = _ZERO
        for meter, quantity in quantities.items():
            if METERS[meter].family == "tokens":
                total = _add(total, _multiply(Decimal(quantity), self.weights.get(meter, _ONE)))
        return total

    def serves(self, start: int, end: int) -> Decimal | None:
        """The weighted tokens that it can serve between two moments; None when that is not known."""
        if self.tokens_per_minute is None:
            return None
        low, high = self.scope.within(start, end)
        return _divide(_multiply(_multiply(self.units, self.tokens_per_minute), max(0, high - low)), _MINUTE_NS)


Capacity = Commitment | Provisioned
"""What is paid for whether it is used or not."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One unit of `source` is `rate` units of `target`, from that day until the next rate."""

    source: str
    target: str
    rate: Decimal
    day: date

    @property
    def starts(self) -> int:
        """The first moment of the day in UTC, nanoseconds since the epoch."""
        return _midnight(self.day)

    @property
    def label(self) -> str:
        """For the note of a line."""
        return f"{self.source} to {self.target} of {self.day.isoformat()}"


@dataclass(frozen=True, slots=True)
class Contract:
    """The terms of one user list.

    Attributes:
        name: id of the list. currency: in which costs are wanted; empty leaves each in that of its list.
        markup: percent added for charge-back, or None. discounts, commitments, exchange, provisioned: in the order of the file.
    """

    name: str
    currency: str = ""
    markup: Decimal | None = None
    discounts: tuple[Discount, ...] = ()
    commitments: tuple[Commitment, ...] = ()
    exchange: tuple[Exchange, ...] = ()
    provisioned: tuple[Provisioned, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """What of the contracts in force concerns one entry.

    Attributes:
        discounts: in order of authority; the first that is in force counts, they do not add up.
        commitments: alike. source, target: currency of the list, and the wanted one. exchange: from the one to the other, ascending.
        markup: factor of charge-back, or None.
    """

    discounts: tuple[Discount, ...] = ()
    commitments: tuple[Commitment, ...] = ()
    source: str = ""
    target: str = ""
    exchange: tuple[Exchange, ...] = ()
    markup: Decimal | None = None

    @classmethod
    def of(
        cls,
        contracts: Iterable[Contract],
        above: Iterable[Contract],
        *,
        provider: str,
        models: tuple[str, ...],
        service: str,
        currency: str,
    ) -> Terms | None:
        """The terms for one model; None when the contracts say nothing about it.

        Args:
            contracts: all, in order of authority. above: those of lists with more authority than the one that has the model; only
                they give discounts, since a rate that is written in a contract is the contracted one already.
            provider, models: as asked, and every name to try. service, currency: of the entry.
        """
        given = tuple(contracts)
        target = next((one.currency for one in given if one.currency), currency)
        rates = [rate for one in given for rate in one.exchange if (rate.source, rate.target) == (currency, target)]
        markup = next((one.markup for one in given if one.markup is not None), None)
        discounts = tuple(d for one in above for d in one.discounts if d.scope.covers(provider, models, service))
        commitments = tuple(c for one in given for c in one.commitments if c.scope.covers(provider, models, service))
        if not discounts and not commitments and markup is None and target == currency:
            return None
        return cls(
            discounts,
            commitments,
            currency,
            target,
            tuple(sorted(rates, key=lambda rate: rate.day)),
            None if markup is None else _add(_ONE, _divide(markup, _HUNDRED)),
        )

    @property
    def timeless(self) -> bool:
        """True when the same holds at any time."""
        scopes = [*(one.scope for one in self.discounts), *(one.scope for one in self.commitments)]
        return self.source == self.target and all(scope.timeless for scope in scopes)

    def key(self, at: int, tier: str) -> TermsKey | str:
        """What is in force, or one sentence that says why there is no price: an exchange rate is missing."""
        exchange = -1
        if self.source != self.target:
            for number, one in enumerate(self.exchange):
                if at < one.starts:
                    break
                exchange = number
            if exchange < 0:
                return self._no_rate(at)
        # Loops and not comprehensions: under a contract with dates this is looked at in every call.
        discount = commitment = -1
        for number, clause in enumerate(self.discounts):
            if clause.scope.in_force(at, tier):
                discount = number
                break
        for number, covered in enumerate(self.commitments):
            if covered.scope.in_force(at, tier):
                commitment = number
                break
        return discount, commitment, exchange

    def _no_rate(self, at: int) -> str:
        day = to_datetime(at).date().isoformat()
        return (
            f"no exchange rate of {self.source} to {self.target} on {day} or before; add [[exchange]] "
            f'from = "{self.source}", to = "{self.target}", rate = "...", date = {day} to the price file'
        )


def _share(amount: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """`amount * part / whole`, rounded up where it has no finite decimal."""
    product = _multiply(amount, part)
    found = _divide(product, whole)
    return found if _multiply(found, whole) == product else found.quantize(_ATTO, ROUND_CEILING, _EXACT)


def read_contract(name: str, row: Mapping[str, Any]) -> Contract:
    """A contract from the validated tables of a user list (see `docs/reference/prices.md`)."""
    head = row.get("contract") or {}
    return Contract(
        name=name,
        currency=head.get("currency", ""),
        markup=head.get("markup"),
        discounts=tuple(_read_discount(name, item) for item in row.get("discounts", ())),
        commitments=tuple(_read_commitment(item) for item in row.get("commitments", ())),
        exchange=tuple(
            Exchange(item["from"], item["to"], item["rate"], item["date"]) for item in row.get("exchange", ())
        ),
        provisioned=tuple(_read_provisioned(item) for item in row.get("provisioned", ())),
    )


def _read_scope(row: Mapping[str, Any]) -> Scope:
    return Scope(
        provider=provider_id(row.get("provider")) or "",
        model=row.get("model", ""),
        service=row.get("service", ""),
        tier=row.get("tier", ""),
        starts=_start(row.get("from")),
        ends=_start(row.get("until")),
    )


def _read_discount(name: str, row: Mapping[str, Any]) -> Discount:
    percent = row.get("percent") or _ZERO
    tiers = row.get("tiers") or ()
    volume = None
    if tiers:
        rows = sorted((item["above"], item["percent"]) for item in tiers)
        if rows[0][0] > 0:
            rows.insert(0, (_ZERO, percent))
        volume = Volume(row["volume"], tuple(rows), name)
    return Discount(_read_scope(row), name, _ZERO if volume else percent, volume, row.get("note", ""))


def _read_commitment(row: Mapping[str, Any]) -> Commitment:
    return Commitment(_read_scope(row), row["name"], row["amount"], row["per"], row["currency"])


def _read_provisioned(row: Mapping[str, Any]) -> Provisioned:
    return Provisioned(
        _read_scope(row),
        row.get("name") or f"{row['provider']}/{row['model']}",
        row["units"],
        row["rate"],
        row["currency"],
        row.get("region", ""),
        row.get("tokens_per_minute"),
        MappingProxyType(row.get("weights") or {}),
        row.get("source", ""),
        row.get("as_of"),
    )


def _start(day: date | None) -> int | None:
    return None if day is None else _midnight(day)


@functools.lru_cache(maxsize=512)
def _midnight(day: date) -> int:
    return to_ns(datetime(day.year, day.month, day.day, tzinfo=UTC))
