"""Reports: spend by whatever was asked for, with what is estimated and what has no price shown apart.

A row holds one key in one currency; amounts of different currencies are never added. A call without a price is counted in
`unpriced_calls` and is in no amount.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aifinops.analytics.amortise import Amortised, amortise
from aifinops.charges import Basis, Cost
from aifinops.clock import to_datetime
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Group, Ledger, Query, add_quantities
from aifinops.money import decimal, format_money, from_nanos, parse_money
from aifinops.usage import EMPTY_QUANTITIES, Moment, Quantities, Quantity, moment

if TYPE_CHECKING:
    from aifinops.pricing.contract import Capacity

__all__ = ["Report", "ReportRow", "capacity_notes", "parse_since", "period", "report"]

_EXACT = Context(prec=60)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"^(\d{1,6})\s*([smhdw])$")
_TIME_FORMS = '"7d", "24h", "30m", "2026-11-01" or "2026-11-01T12:00:00+00:00"'
_COUNTS = ("calls", "errors", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One key in one currency.

    Attributes:
        key: what was grouped by -> value; a value is empty where calls have none.
        cost: the sum. Its amount is None when nothing has a price; its basis is `estimated` when a part is estimated or
            missing, and its bounds say how far off it can be.
        estimated: the part of the amount that is estimated, in the currency.
        calls, errors: how many; corrections are not calls.
        unpriced_calls, unpriced_tokens: what is in no amount, because it has no price.
        quantities: usage per meter. duration: sum over all calls, nanoseconds.
        input_tokens, output_tokens, cached_tokens, reasoning_tokens: inclusive totals; `cached_tokens` is a part of the
            first, `reasoning_tokens` of the second. gpu_seconds: device seconds.
        amortised: the part of capacity paid for by the hour that these calls used, in the currency; None when it was not asked for.
        idle: name of the capacity of which nobody used `amortised`; such a row has no calls and empty keys. Empty in all others.
    """

    key: Mapping[str, str]
    cost: Cost
    estimated: Decimal = Decimal(0)
    calls: int = 0
    errors: int = 0
    unpriced_calls: int = 0
    unpriced_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    gpu_seconds: Quantity = 0
    quantities: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    duration: int = 0
    amortised: Decimal | None = None
    idle: str = ""

    @property
    def currency(self) -> str:
        """ISO 4217."""
        return self.cost.currency

    @property
    def amount(self) -> Decimal | None:
        """The sum in `currency`; None when nothing has a price."""
        return self.cost.amount

    @property
    def effective(self) -> Decimal | None:
        """`amount` (FOCUS: BilledCost) with `amortised` (together: EffectiveCost); None when neither is known."""
        return self.amount if self.amortised is None else _EXACT.add(self.amount or Decimal(0), self.amortised)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: money and fractions as text, so that nothing rounds them."""
        cost = self.cost
        return {
            "key": dict(self.key),
            "currency": cost.currency,
            "cost": _text(cost.amount),
            "estimated": _text(self.estimated),
            "lower": _text(cost.lower),
            "upper": _text(cost.upper),
            **{name: getattr(self, name) for name in _COUNTS},
            "unpriced_calls": self.unpriced_calls,
            "unpriced_tokens": self.unpriced_tokens,
            "duration_seconds": _text(from_nanos(self.duration)),
            "quantities": {name: _json_number(value) for name, value in sorted(self.quantities.items())},
            **self._amortised(),
        }

    def _amortised(self) -> dict[str, Any]:
        if self.amortised is None:
            return {}
        return {"amortised": _text(self.amortised), "effective": _text(self.effective), "idle": self.idle or None}


@dataclass(frozen=True, slots=True)
class Report:
    """Rows, the dearest first, and their totals. Iterate over it, print it, or write it out.

    Attributes:
        by: the keys. rows: one a key and currency. totals: one a currency, that of most calls first.
        since_ns, until_ns: the period, nanoseconds since the epoch; None for no bound. where: the filter.
        made_ns: when it was made.
        capacity: what is paid for by the hour and how it was spread, where that was asked for; None where it was not.
        uncovered_calls: `committed` calls that no declared capacity covers: what they cost is in no row.
    """

    by: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    totals: tuple[ReportRow, ...]
    since_ns: int | None = None
    until_ns: int | None = None
    where: Mapping[str, str | Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    made_ns: int = 0
    capacity: tuple[Amortised, ...] | None = None
    uncovered_calls: int = 0

    def __iter__(self) -> Iterator[ReportRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def total(self) -> ReportRow:
        """The total in the currency of most calls; zero when there were none. Other currencies are in `totals`."""
        return self.totals[0] if self.totals else ReportRow(MappingProxyType({}), Cost(Decimal(0), basis="free"))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "by": list(self.by),
            "since": _moment(self.since_ns),
            "until": _moment(self.until_ns),
            "where": {key: value if isinstance(value, str) else list(value) for key, value in self.where.items()},
            "made_at": _moment(self.made_ns),
            "rows": [row.to_dict() for row in self.rows],
            "totals": [row.to_dict() for row in self.totals],
            **({} if self.capacity is None else self._capacity()),
        }

    def _capacity(self) -> dict[str, Any]:
        return {
            "capacity": [
                {
                    "name": one.name,
                    "currency": one.currency,
                    "since": _moment(one.start_ns),
                    "until": _moment(one.end_ns),
                    "calls": one.calls,
                    "utilisation": _text(one.utilisation),
                    **{name: _text(from_nanos(getattr(one, name))) for name in ("cost", "used", "idle", "elsewhere")},
                }
                for one in self.capacity or ()
            ],
            "uncovered_calls": self.uncovered_calls,
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """JSON text; money as decimal strings."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_csv(self) -> str:
        """CSV text with a header: the keys, then the numbers. Totals are left to the reader's spreadsheet.

        Text that a spreadsheet would run as a formula is prefixed with `'` (https://owasp.org/www-community/attacks/CSV_Injection).
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        numbers: tuple[str, ...] = (
            "currency",
            "cost",
            "estimated",
            "lower",
            "upper",
            *_COUNTS,
            "unpriced_calls",
            "unpriced_tokens",
        )
        if self.capacity is not None:
            numbers += ("amortised", "effective", "idle")
        writer.writerow([*map(_cell, self.by), *numbers])
        for row in self.rows:
            values = row.to_dict()
            cells = ["" if values[name] is None else values[name] for name in numbers[1:]]
            if row.idle:
                cells[-1] = _cell(row.idle)
            writer.writerow([*(_cell(row.key[name]) for name in self.by), _cell(row.currency), *cells])
        return out.getvalue()

    def assert_under(self, limit: str | Decimal | int, *, allow_unpriced: bool = False) -> None:
        """Raise when more than `limit` was spent, or when that cannot be known.

        Args:
            limit: `"$1"`, `"5 EUR"`, or a number in the currency of `total`.
            allow_unpriced: leave calls without a price out of account in place of failing for them.

        Raises:
            AssertionError: with the numbers.
            ConfigurationError: when `limit` is no amount of money.
        """
        amount, currency = self._limit(limit)
        problems = [*self._unpriced(allow_unpriced), *self._foreign(currency), *self._over(amount, currency)]
        if problems:
            raise AssertionError("; ".join(problems))

    def _limit(self, limit: str | Decimal | int) -> tuple[Decimal, str]:
        if not isinstance(limit, str):
            return decimal(limit, "limit"), self.total.currency
        money = parse_money(limit)
        if money is None:
            raise ConfigurationError(f'limit {limit!r} is no amount of money; write "$1", "5 EUR" or a number')
        return money

    def _unpriced(self, allowed: bool) -> list[str]:
        calls = sum(row.unpriced_calls for row in self.totals)
        if not calls or allowed:
            return []
        tokens = sum(row.unpriced_tokens for row in self.totals)
        everything = sum(row.calls for row in self.totals)
        text = f"{calls} of {everything} calls ({tokens:,} tokens) have no price, so nobody knows what they cost"
        return [f"{text}: add a price, or use allow_unpriced=True"]

    def _foreign(self, currency: str) -> list[str]:
        return [
            f"{format_money(row.effective, row.currency)} were spent in {row.currency}, which {currency} cannot limit"
            for row in self.totals
            if row.currency != currency and row.effective
        ]

    def _over(self, limit: Decimal, currency: str) -> list[str]:
        spent = next((row for row in self.totals if row.currency == currency), None)
        amount = None if spent is None else spent.effective
        if spent is None or amount is None or amount <= limit:
            return []
        dearest = next(row for row in self.rows if row.currency == currency)
        name = ", ".join(f"{key}={value}" for key, value in dearest.key.items())
        if dearest.idle:
            name = f"idle {dearest.idle}"
        most = f" (most by {name}: {dearest.effective:f})" if name and dearest.effective is not None else ""
        part = f", {spent.estimated:f} of it estimated" if spent.estimated else ""
        return [f"{amount:f} {currency} in {spent.calls} calls is above {limit:f} {currency}{part}{most}"]

    def __str__(self) -> str:
        lines = _table(self)
        lines += [note for row in self.totals for note in _notes(row)]
        return "\n".join([*lines, *capacity_notes(self)])


def report(
    ledger: Ledger,
    by: str | Sequence[str] = ("model",),
    since: Moment | None = None,
    until: Moment | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
    now_ns: int | None = None,
    capacity: Iterable[Capacity] | None = None,
) -> Report:
    """Add up a ledger.

    Args:
        ledger: where to read.
        by: keys, as a list or with commas: tags, `provider`, `model`, `operation`, `day`, `hour`, `month` and the others of
            `aifinops.ledger.base.FIELD_KEYS`.
        since, until: see `parse_since`; from (inclusive), up to (exclusive).
        where: key -> value or values that must hold.
        now_ns: the moment that `"7d"` counts back from, nanoseconds since the epoch; default: now.
        capacity: what is paid for by the hour (`PriceBook.capacity`), to be spread over the calls that it served; rows then have
            `amortised` and `effective`, and one more each for what nobody used. Without a filter `amortised` of all rows is the
            cost of the capacity exactly.

    Raises:
        ConfigurationError: for a key, a time or a period that cannot be; for capacity without a beginning.
        StoreError: when the ledger cannot be read.
    """
    now = time.time_ns() if now_ns is None else now_ns
    query = period(since, until, where, now)
    keys = tuple(dict.fromkeys(_names(by)))
    groups = ledger.summarize(query, keys)
    rows = [_row(keys, group) for group in groups]
    totals = [_row((), _total(currency, groups)) for currency in {group.currency for group in groups}]
    spread: list[Amortised] = []
    uncovered = 0
    if capacity is not None:
        spread, uncovered = amortise(ledger, capacity, query, keys, now_ns=now)
        rows = _with_amortised(rows, keys, spread, idle=not query.where)
        totals = _total_amortised(totals, rows)
    totals.sort(key=lambda row: (-row.calls, row.currency))
    order = {row.currency: place for place, row in enumerate(totals)}
    return Report(
        by=keys,
        rows=tuple(sorted(rows, key=lambda row: _rank(row, order))),
        totals=tuple(totals),
        since_ns=query.since_ns,
        until_ns=query.until_ns,
        where=MappingProxyType(dict(query.where)),
        made_ns=now,
        capacity=None if capacity is None else tuple(spread),
        uncovered_calls=uncovered,
    )


def _with_amortised(
    rows: Iterable[ReportRow], keys: tuple[str, ...], spread: Iterable[Amortised], *, idle: bool
) -> list[ReportRow]:
    """The rows with what they used of each capacity, and a row for what nobody used of it."""
    parts: dict[tuple[tuple[str, ...], str], int] = {}
    for one in spread:
        for key, part in one.shares.items():
            parts[key, one.currency] = parts.get((key, one.currency), 0) + part
    found = []
    for row in rows:
        part = parts.pop((tuple(row.key.values()), row.currency), 0)
        found.append(replace(row, amortised=from_nanos(part)))
    # What is paid in another currency than the calls are counted in has rows of its own.
    found += [_bare_row(keys, key, currency, part) for (key, currency), part in parts.items()]
    nothing = ("",) * len(keys)
    return found + [_bare_row(keys, nothing, one.currency, one.idle, one.name) for one in spread if idle and one.idle]


def _bare_row(keys: tuple[str, ...], key: tuple[str, ...], currency: str, part: int, idle: str = "") -> ReportRow:
    cost = Cost(Decimal(0), currency, "committed", Decimal(0), Decimal(0))
    return ReportRow(MappingProxyType(dict(zip(keys, key, strict=True))), cost, amortised=from_nanos(part), idle=idle)


def _total_amortised(totals: Iterable[ReportRow], rows: Sequence[ReportRow]) -> list[ReportRow]:
    sums: dict[str, Decimal] = {}
    for row in rows:
        sums[row.currency] = _EXACT.add(sums.get(row.currency, Decimal(0)), row.amortised or Decimal(0))
    found = [replace(row, amortised=sums.pop(row.currency, Decimal(0))) for row in totals]
    return found + [replace(_bare_row((), (), currency, 0), amortised=amount) for currency, amount in sums.items()]


def period(
    since: Moment | None,
    until: Moment | None,
    where: Mapping[str, str | Sequence[str]] | None,
    now_ns: int,
) -> Query:
    """What was typed as a query; see `report`.

    Raises:
        ConfigurationError: for a time that is none, and for a period that ends before it begins.
    """
    query = Query(_bound(since, now_ns), _bound(until, now_ns), where or {})
    if query.since_ns is not None and query.until_ns is not None and query.since_ns >= query.until_ns:
        raise ConfigurationError(f"since={since!r} is not before until={until!r}; swap them")
    return query


def parse_since(value: Moment, now_ns: int) -> int:
    """A moment as typed -> nanoseconds since the epoch.

    Args:
        value: how long ago (`"90s"`, `"30m"`, `"24h"`, `"7d"`, `"2w"`), an ISO 8601 date or time (UTC unless it says
            otherwise), a date, a datetime (naive: UTC), or nanoseconds since the epoch.
        now_ns: the present, nanoseconds since the epoch.

    Raises:
        ConfigurationError: naming the value and the forms.
    """
    ago = _AGO.match(value.strip()) if isinstance(value, str) else None
    if ago:
        return now_ns - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000_000
    try:
        return moment(value)
    except ConfigurationError:
        raise ConfigurationError(f"{value!r} is no time; write {_TIME_FORMS}") from None


def _bound(value: Moment | None, now_ns: int) -> int | None:
    return None if value is None else parse_since(value, now_ns)


def _names(by: str | Sequence[str]) -> list[str]:
    return [part.strip() for part in by.split(",") if part.strip()] if isinstance(by, str) else list(by)


def _row(keys: tuple[str, ...], group: Group) -> ReportRow:
    return ReportRow(
        key=MappingProxyType(dict(zip(keys, group.key, strict=True))),
        cost=_cost(group),
        estimated=from_nanos(group.estimated),
        calls=group.calls,
        errors=group.errors,
        unpriced_calls=group.unpriced_calls,
        unpriced_tokens=group.unpriced_tokens,
        input_tokens=group.input_tokens,
        output_tokens=group.output_tokens,
        cached_tokens=group.cached_tokens,
        reasoning_tokens=group.reasoning_tokens,
        gpu_seconds=group.gpu_seconds,
        quantities=group.quantities,
        duration=group.duration,
    )


def _cost(group: Group) -> Cost:
    unsure = bool(group.unpriced_calls or group.estimated)
    basis: Basis = "unknown" if group.amount is None else "estimated" if unsure else "priced"
    return Cost(
        amount=None if group.amount is None else from_nanos(group.amount),
        currency=group.currency,
        basis=basis,
        lower=from_nanos(group.lower),
        upper=None if group.upper is None else from_nanos(group.upper),
        notes=(f"{group.unpriced_calls} unpriced, not included",) if group.unpriced_calls else (),
    )


def _rank(row: ReportRow, order: Mapping[str, int]) -> tuple[Any, ...]:
    # Dearest first; what has no price comes last, where it is seen to be apart.
    known = row.amount is not None or bool(row.amortised)
    dearest = -(row.effective or Decimal(0))
    return (not known, order[row.currency], dearest, -row.unpriced_tokens, tuple(row.key.values()))


def _total(currency: str, groups: Sequence[Group]) -> Group:
    """The sum of the groups of one currency. From the groups and not from the ledger again, so that it always adds up."""
    own = [group for group in groups if group.currency == currency]
    amounts = [group.amount for group in own if group.amount is not None]
    uppers = [group.upper for group in own if group.upper is not None]
    quantities: dict[str, Quantity] = {}
    for group in own:
        add_quantities(quantities, group.quantities)
    return Group(
        key=(),
        currency=currency,
        calls=sum(group.calls for group in own),
        corrections=sum(group.corrections for group in own),
        errors=sum(group.errors for group in own),
        amount=sum(amounts) if amounts else None,
        estimated=sum(group.estimated for group in own),
        lower=sum(group.lower for group in own),
        upper=sum(uppers) if len(uppers) == len(own) else None,
        unpriced_calls=sum(group.unpriced_calls for group in own),
        unpriced_tokens=sum(group.unpriced_tokens for group in own),
        quantities=quantities,
        duration=sum(group.duration for group in own),
    )


# --- text -------------------------------------------------------------------------------------------------------------


def _text(amount: Decimal | None) -> str | None:
    if amount is None:
        return None
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _json_number(value: Quantity) -> int | str:
    return f"{value:f}" if isinstance(value, Decimal) else value


def _moment(ns: int | None) -> str | None:
    return None if ns is None else to_datetime(ns).isoformat()


def _harmless(text: str) -> str:
    """Text from calls without what steers a terminal or breaks a line: such characters become `?`."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def _cell(text: str) -> str:
    text = _harmless(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _shown(text: str) -> str:
    return _harmless(text) or "(none)"


def _table(made: Report) -> list[str]:
    spread = made.capacity is not None
    head = [*made.by, "calls", "input", "output", "cost", *(("amortised", "effective") if spread else ()), "unpriced"]
    body = [_cells(made.by, row) for row in made.rows]
    foot = [["total", *[""] * (len(made.by) - 1), *_cells((), row)] for row in made.totals] if made.by else []
    everything = [head, *body, *foot]
    if not any(line[-1] for line in everything[1:]):
        everything = [line[:-1] for line in everything]  # no column for what there is not
    widths = [max(map(len, column)) for column in zip(*everything, strict=True)]
    texts = ["  ".join(_aligned(line, widths, len(made.by))).rstrip() for line in everything]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [texts[0], rule, *texts[1 : len(body) + 1], *([rule, *texts[len(body) + 1 :]] if foot else [])]


def _aligned(line: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    return [
        cell.ljust(width) if place < left else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]


def _cells(by: Sequence[str], row: ReportRow) -> list[str]:
    names = [_shown(row.key[name]) for name in by]
    if row.idle and names:
        names = [f"(idle: {_harmless(row.idle)})", *[""] * (len(names) - 1)]
    spread = (
        [] if row.amortised is None else [format_money(one, row.currency) for one in (row.amortised, row.effective)]
    )
    return [
        *names,
        f"{row.calls:,}",
        f"{row.input_tokens:,}",
        f"{row.output_tokens:,}",
        format_money(row.amount, row.currency),
        *spread,
        f"{row.unpriced_calls:,}" if row.unpriced_calls else "",
    ]


def _notes(row: ReportRow) -> list[str]:
    notes = []
    if row.unpriced_calls:
        notes.append(
            f"{row.unpriced_calls:,} calls ({row.unpriced_tokens:,} tokens) have no price; no amount above holds them."
        )
    if row.estimated:
        upper = format_money(row.cost.upper, row.currency) if row.cost.upper is not None else "no known upper bound"
        notes.append(
            f"{format_money(row.estimated, row.currency)} is estimated; the total lies between "
            f"{format_money(row.cost.lower, row.currency)} and {upper}."
        )
    return notes


def capacity_notes(made: Report) -> list[str]:
    """A sentence for each capacity that was spread, and one for calls that none covers."""
    notes = []
    for one in made.capacity or ():
        known = "" if one.utilisation is None else f", {one.utilisation:.1%} of it used"
        cost = format_money(from_nanos(one.cost), one.currency)
        notes.append(f"{_harmless(one.name)}: {cost} in this time, {_calls(one.calls)} served{known}.")
    if made.uncovered_calls:
        belong = "belongs" if made.uncovered_calls == 1 else "belong"
        notes.append(
            f"{_calls(made.uncovered_calls)} of committed capacity {belong} to none that a contract declares: what it costs is "
            "in no amount above. Add [[provisioned]] or [[commitments]]."
        )
    return notes


def _calls(count: int) -> str:
    return f"{count:,} call" + ("" if count == 1 else "s")
