"""Reports: spend by whatever was asked for, with what is estimated and what has no price shown apart.

A row holds one key in one currency; amounts of different currencies are never added. A call without a price is counted in
`unpriced_calls` and is in no amount.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from aifinops.analytics.amortise import Amortised, amortise
from aifinops.analytics.periods import period
from aifinops.analytics.report_text import (
    amount_text,
    calls_text,
    capacity_notes,
    csv_cell,
    json_number,
    moment_text,
    notes_of,
    table,
)
from aifinops.analytics.trends import NOTHING, Point, Steps, add_points, before, exact_sum, plain_points, trends
from aifinops.charges import Basis, Cost
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import ROLLUP_TAGS, Group, Ledger, Query, add_quantities
from aifinops.money import decimal, format_money, from_nanos, parse_money
from aifinops.usage import EMPTY_QUANTITIES, Moment, Quantities, Quantity, tokens_total

if TYPE_CHECKING:
    from pathlib import Path

    from aifinops.analytics.focus import Exported, Per
    from aifinops.budgets.standing import Standing
    from aifinops.pricing.contract import Capacity

__all__ = [
    "SORTS",
    "Report",
    "ReportRow",
    "Source",
    "State",
    "report",
]

State = Literal["", "kept", "new", "gone"]
"""Whether a key was there in the previous period, too; empty where nobody asked."""

_EXACT = Context(prec=60)
_RATE = Context(prec=12)  # a quotient has no end: twelve digits are a thousandth of a nano-unit of a dollar
_MOST_ROWS = 500
"""Rows of a page; all further ones are added up in one, or a page by customer could not be opened."""

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
        trend: what was spent in each of `Report.steps`; None when it was not asked for.
        state: `new` when the previous period has nothing of this key, `gone` when only that one has, else `kept`; empty when no
            comparison was asked for. previous: the row of the previous period; None when there is none.
        others: of how many further keys this is the sum, which `top` left no row of their own; its keys are empty. 0 in all other rows.
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
    trend: tuple[Point, ...] | None = None
    state: State = ""
    previous: ReportRow | None = None
    others: int = 0

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

    @property
    def tokens(self) -> int:
        """All tokens, each once."""
        return tokens_total(self.quantities)

    @property
    def per_call(self) -> Decimal | None:
        """`amount` a call that has a price, to twelve digits; None when there is none."""
        return _ratio(self.amount, self.calls - self.unpriced_calls)

    @property
    def per_1k_tokens(self) -> Decimal | None:
        """`amount` a thousand tokens that have a price, of every kind and to twelve digits; None when there are none."""
        return _ratio(self.amount, self.tokens - self.unpriced_tokens, 1000)

    @property
    def change(self) -> Decimal | None:
        """What was spent more than in the previous period (`effective`); None when nobody asked or one of both is unknown."""
        if not self.state:
            return None
        earlier = Decimal(0) if self.previous is None else self.previous.effective
        return None if self.effective is None or earlier is None else _EXACT.subtract(self.effective, earlier)

    @property
    def change_share(self) -> Decimal | None:
        """`change` as a share of the previous period's spend, to twelve digits; None when that is zero or unknown."""
        earlier = None if self.previous is None else self.previous.effective
        return None if self.change is None or not earlier or earlier < 0 else _RATE.divide(self.change, earlier)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: money and fractions as text, so that nothing rounds them."""
        cost = self.cost
        return {
            "key": dict(self.key),
            "currency": cost.currency,
            "cost": amount_text(cost.amount),
            "estimated": amount_text(self.estimated),
            "lower": amount_text(cost.lower),
            "upper": amount_text(cost.upper),
            **{name: getattr(self, name) for name in _COUNTS},
            "unpriced_calls": self.unpriced_calls,
            "unpriced_tokens": self.unpriced_tokens,
            "duration_seconds": amount_text(from_nanos(self.duration)),
            "quantities": {name: json_number(value) for name, value in sorted(self.quantities.items())},
            "per_call": amount_text(self.per_call),
            "per_1k_tokens": amount_text(self.per_1k_tokens),
            **self._amortised(),
            **self._compared(),
            **({} if self.trend is None else {"trend": plain_points(self.trend)}),
            **({"others": self.others} if self.others else {}),
        }

    def _compared(self) -> dict[str, Any]:
        if not self.state:
            return {}
        earlier = self.previous
        return {
            "state": self.state,
            "previous_cost": None if earlier is None else amount_text(earlier.effective),
            "previous_calls": 0 if earlier is None else earlier.calls,
            "previous_unpriced_calls": 0 if earlier is None else earlier.unpriced_calls,
            "change": amount_text(self.change),
            "change_share": amount_text(self.change_share),
        }

    def _amortised(self) -> dict[str, Any]:
        if self.amortised is None:
            return {}
        return {
            "amortised": amount_text(self.amortised),
            "effective": amount_text(self.effective),
            "idle": self.idle or None,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Rows, the dearest first, and their totals. Iterate over it, print it, or write it out.

    Attributes:
        by: the keys. rows: one a key and currency. totals: one a currency, that of most calls first.
        since_ns, until_ns: the period, nanoseconds since the epoch; None for no bound. where: the filter.
        made_ns: when it was made.
        capacity: what is paid for by the hour and how it was spread, where that was asked for; None where it was not.
        uncovered_calls: `committed` calls that no declared capacity covers: what they cost is in no row.
        steps: how the period is cut in the trends of rows; None when they were not asked for, or there were no calls.
        compared: the previous period, nanoseconds since the epoch (from, up to); None when nobody asked.
        source: where it came from, so that `to_html` can ask for what is missing; None in one that was put together by hand.
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
    steps: Steps | None = None
    compared: tuple[int, int] | None = None
    source: Source | None = field(default=None, repr=False, compare=False)

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
            "since": moment_text(self.since_ns),
            "until": moment_text(self.until_ns),
            "where": {key: value if isinstance(value, str) else list(value) for key, value in self.where.items()},
            "made_at": moment_text(self.made_ns),
            "rows": [row.to_dict() for row in self.rows],
            "totals": [row.to_dict() for row in self.totals],
            **({} if self.capacity is None else self._capacity()),
            **(
                {}
                if self.compared is None
                else {"compared": dict(zip(("since", "until"), map(moment_text, self.compared), strict=True))}
            ),
            **({} if self.steps is None else {"steps": self._steps(self.steps)}),
        }

    @staticmethod
    def _steps(steps: Steps) -> dict[str, Any]:
        return {"step": steps.name, "starts": list(map(moment_text, steps.starts)), "end": moment_text(steps.end)}

    def _capacity(self) -> dict[str, Any]:
        return {
            "capacity": [
                {
                    "name": one.name,
                    "currency": one.currency,
                    "since": moment_text(one.start_ns),
                    "until": moment_text(one.end_ns),
                    "calls": one.calls,
                    "utilisation": amount_text(one.utilisation),
                    **{
                        name: amount_text(from_nanos(getattr(one, name)))
                        for name in ("cost", "used", "idle", "elsewhere")
                    },
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
        numbers = self._columns()
        steps = () if self.steps is None else tuple(f"cost {label}" for label in self.steps.labels())
        writer.writerow([*map(csv_cell, self.by), *numbers, *steps])
        for row in self.rows:
            values = {"idle": "", "others": 0, **row.to_dict()}
            for name in ("currency", "idle"):
                values[name] = csv_cell(values[name] or "")
            cells = ["" if values[name] is None else values[name] for name in numbers]
            spent = ["" if cost is None else cost for cost in values["trend"]["cost"]] if "trend" in values else []
            writer.writerow([*(csv_cell(row.key[name]) for name in self.by), *cells, *spent])
        return out.getvalue()

    def _columns(self) -> list[str]:
        names = [
            "currency",
            "cost",
            "estimated",
            "lower",
            "upper",
            *_COUNTS,
            "unpriced_calls",
            "unpriced_tokens",
            "per_call",
            "per_1k_tokens",
        ]
        if self.capacity is not None:
            names += ["amortised", "effective", "idle"]
        if self.compared is not None:
            names += ["state", "previous_cost", "previous_calls", "previous_unpriced_calls", "change", "change_share"]
        return [*names, "others"] if any(row.others for row in self.rows) else names

    def to_focus(
        self,
        path: str | Path,
        *,
        per: Per = "day",
        tags: Sequence[str] | None = ROLLUP_TAGS,
        account: str = "unspecified",
        replace_file: bool = False,
    ) -> Exported:
        """Write what this report adds up as a FOCUS 1.2 file (CSV): the entries of its period and filter, by meter, whatever `by` was.

        Args:
            path, per, tags, account, replace_file: as in `aifinops.analytics.focus.export_focus`.

        Returns:
            What the file holds, and what it does not: calls without a price are in no row.

        Raises:
            ConfigurationError: for a wrong option, a path that is taken, or a report that was put together by hand.
            StoreError: when the ledger cannot be read. OSError: when the file cannot be written.
        """
        from aifinops.analytics.focus import export_focus

        if self.source is None:
            raise ConfigurationError("a report that was put together by hand has no entries; make it by af.report(...)")
        query = Query(self.since_ns, self.until_ns, self.where)
        return export_focus(
            self.source.ledger, path, query=query, per=per, tags=tags, account=account, replace_file=replace_file
        )

    def to_html(self, *, title: str = "Spend", budgets: Iterable[Standing] = ()) -> str:
        """One page that needs nothing else: no network, no script to be read; for the screen (light and dark), the phone and paper.

        It shows the spend over time, the rows, the models, what is estimated and what has no price, and the previous period. What of it
        this report was not asked for is read from the ledger now.

        Args:
            title: of the page. budgets: how budgets stand (`aifinops.budgets.standing.present`), to be shown as well.

        Raises:
            StoreError: when the ledger cannot be read.
        """
        from aifinops.analytics.page import page

        made, models = self, None
        if self.source is not None:
            made = self.source.full(self)
            made = replace(made, rows=tuple(_cut(made.rows, _MOST_ROWS, made.by)))
            models = made if made.by == ("model",) else self.source.full(self, by=("model",))
        return page(made, models, title=title, budgets=tuple(budgets))

    def _repr_html_(self) -> str:
        """What a notebook shows: a compact table."""
        from aifinops.analytics import notebook

        return notebook.table(self)

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
        rows = [row for row in self.rows if row.currency == currency and row.effective is not None]
        dearest = max(rows, key=lambda row: row.effective or Decimal(0))
        name = ", ".join(f"{key}={value}" for key, value in dearest.key.items())
        if dearest.idle or dearest.others:
            name = f"idle {dearest.idle}" if dearest.idle else f"{dearest.others} others"
        most = f" (most by {name}: {dearest.effective:f})" if name and dearest.effective is not None else ""
        part = f", {spent.estimated:f} of it estimated" if spent.estimated else ""
        return [f"{amount:f} {currency} in {calls_text(spent.calls)} is above {limit:f} {currency}{part}{most}"]

    def __str__(self) -> str:
        lines = table(self)
        lines += [note for row in self.totals for note in notes_of(row)]
        return "\n".join([*lines, *capacity_notes(self)])


@dataclass(frozen=True, slots=True)
class Source:
    """What a report was made from.

    Attributes:
        ledger, since, until, where, now_ns, capacity, sort, top: as in `report`.
    """

    ledger: Ledger
    since: Moment | None
    until: Moment | None
    where: Mapping[str, str | Sequence[str]] | None
    now_ns: int
    capacity: tuple[Capacity, ...] | None
    sort: str
    top: int | None

    def full(self, made: Report, by: Sequence[str] | None = None) -> Report:
        """The report with its trend and, where that can be, the comparison; for the keys `by` in place of its own."""
        comparable = made.since_ns is not None and made.since_ns < self.now_ns
        if by is None and made.steps is not None and (made.compared is not None or not comparable):
            return made
        return report(
            self.ledger, made.by if by is None else by, self.since, self.until, self.where, self.now_ns, self.capacity,
            compare=comparable, trend=True, top=self.top if by is None else None, sort=self.sort,
        )  # fmt: skip


def report(
    ledger: Ledger,
    by: str | Sequence[str] = ("model",),
    since: Moment | None = None,
    until: Moment | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
    now_ns: int | None = None,
    capacity: Iterable[Capacity] | None = None,
    *,
    compare: bool = False,
    trend: bool = False,
    top: int | None = None,
    sort: str = "cost",
) -> Report:
    """Add up a ledger.

    Args:
        ledger: where to read.
        by: keys, as a list or with commas: tags, `provider`, `model`, `operation`, `day`, `hour`, `month` and the others of
            `aifinops.ledger.base.FIELD_KEYS`.
        since, until: see `aifinops.analytics.periods.parse_since`; from (inclusive), up to (exclusive).
        where: key -> value or values that must hold.
        now_ns: the moment that `"7d"` counts back from, nanoseconds since the epoch; default: now.
        capacity: what is paid for by the hour (`PriceBook.capacity`), to be spread over the calls that it served; rows then have
            `amortised` and `effective`, and one more each for what nobody used. Without a filter `amortised` of all rows is the
            cost of the capacity exactly.
        compare: set every row beside that of the period of the same length that ended when this one began. Keys that only that one has
            get a row of zero.
        trend: say of every row what was spent in each step (minutes to months, by the length of the period).
        top: the most rows; all others are one row a currency (`others`), so that it adds up.
        sort: what comes first, see `SORTS`.

    Raises:
        ConfigurationError: for a key, a time, a period or an order that cannot be; for capacity or a comparison without a beginning.
        StoreError: when the ledger cannot be read.
    """
    now = time.time_ns() if now_ns is None else now_ns
    query = period(since, until, where, now)
    keys = tuple(dict.fromkeys(_names(by)))
    _check(top, sort)
    spare = None if capacity is None else tuple(capacity)
    made = _plain(ledger, keys, query, now, spare)
    if compare:
        earlier = before(query.since_ns, query.until_ns, now)
        was = _plain(ledger, keys, replace(query, since_ns=earlier[0], until_ns=earlier[1]), now, spare)
        made = replace(_beside(made, was), compared=earlier)
    if trend:
        made = _with_trends(made, *trends(ledger, query, keys, now))
    rows = sorted(made.rows, key=_order(made, sort))
    made = replace(made, rows=tuple(rows if top is None else _cut(rows, top, keys)))
    return replace(made, source=Source(ledger, since, until, where, now, spare, sort, top))


SORTS: Mapping[str, str] = MappingProxyType({
    "cost": "the dearest", "calls": "the most calls", "tokens": "the most tokens", "change": "the largest increase",
    "per_call": "the dearest call", "per_1k_tokens": "the dearest tokens", "unpriced": "the most calls without a price",
    "name": "by the alphabet",
})  # fmt: skip
"""What rows can be sorted by -> what comes first."""


def _check(top: int | None, sort: str) -> None:
    if sort not in SORTS:
        raise ConfigurationError(f"cannot sort by {sort!r}; use one of {', '.join(SORTS)}")
    if top is not None and (isinstance(top, bool) or top < 1):
        raise ConfigurationError(f"top={top!r} leaves no row; write a number from 1")


def _order(made: Report, sort: str) -> Callable[[ReportRow], tuple[Any, ...]]:
    order = {row.currency: place for place, row in enumerate(made.totals)}

    def rank(row: ReportRow) -> tuple[Any, ...]:
        dearest = _rank(row, order)
        if sort == "cost":
            return dearest
        if sort == "name":
            return (tuple(row.key.values()), dearest)
        value = row.unpriced_calls if sort == "unpriced" else getattr(row, sort)
        return (value is None, -(value or 0), dearest)

    return rank


def _cut(rows: Sequence[ReportRow], top: int, keys: tuple[str, ...]) -> list[ReportRow]:
    """The first rows, and one a currency for all others; capacity that nobody used keeps its rows."""
    named = [row for row in rows if not row.idle]
    idle = [row for row in rows if row.idle]
    if len(named) <= top + 1:  # a row for one other key would say less than its own
        return list(rows)
    rest: dict[str, list[ReportRow]] = {}
    for row in named[top:]:
        rest.setdefault(row.currency, []).append(row)
    return [*named[:top], *(_merged(many, keys) for many in rest.values()), *idle]


def _merged(rows: Sequence[ReportRow], keys: tuple[str, ...]) -> ReportRow:
    """The sum of rows of one currency under no key."""
    known = [row.amount for row in rows if row.amount is not None]
    uppers = [row.cost.upper for row in rows if row.cost.upper is not None]
    amount = exact_sum(known) if known else None
    basis: Basis = (
        "unknown"
        if amount is None
        else "estimated"
        if any(row.cost.basis in {"estimated", "unknown"} for row in rows)
        else "priced"
    )
    quantities: dict[str, Quantity] = {}
    for row in rows:
        add_quantities(quantities, row.quantities)
    earlier = [row.previous for row in rows if row.previous is not None]
    spread = [row.amortised for row in rows if row.amortised is not None]
    states = {row.state for row in rows}
    return ReportRow(
        key=MappingProxyType(dict.fromkeys(keys, "")),
        cost=Cost(
            amount, rows[0].currency, basis, exact_sum(row.cost.lower or Decimal(0) for row in rows),
            exact_sum(uppers) if len(uppers) == len(rows) else None,
        ),
        estimated=exact_sum(row.estimated for row in rows),
        **{name: sum(getattr(row, name) for row in rows) for name in (*_COUNTS, "unpriced_calls", "unpriced_tokens", "gpu_seconds", "duration")},
        quantities=MappingProxyType(quantities),
        amortised=exact_sum(spread) if spread else None,
        trend=None if rows[0].trend is None else add_points(row.trend or () for row in rows),
        state=next(iter(states)) if len(states) == 1 else "kept",
        previous=_merged(earlier, keys) if earlier else None,
        others=len(rows),
    )  # fmt: skip


def _plain(
    ledger: Ledger, keys: tuple[str, ...], query: Query, now: int, capacity: tuple[Capacity, ...] | None
) -> Report:
    """The sums of a period, in no order."""
    groups = ledger.summarize(query, keys)
    rows = [_row(keys, group) for group in groups]
    totals = [_row((), _total(currency, groups)) for currency in {group.currency for group in groups}]
    spread: list[Amortised] = []
    uncovered = 0
    if capacity is not None:
        spread, uncovered = amortise(ledger, capacity, query, keys, now_ns=now)
        rows = _with_amortised(rows, keys, spread, idle=not query.where)
        totals = _total_amortised(totals, rows)
    return Report(
        by=keys,
        rows=tuple(rows),
        totals=tuple(sorted(totals, key=lambda row: (-row.calls, row.currency))),
        since_ns=query.since_ns,
        until_ns=query.until_ns,
        where=MappingProxyType(dict(query.where)),
        made_ns=now,
        capacity=None if capacity is None else tuple(spread),
        uncovered_calls=uncovered,
    )


def _beside(made: Report, was: Report) -> Report:
    """Each row with that of the previous period, and rows of zero for keys that only that one has."""
    return replace(made, rows=tuple(_paired(made.rows, was.rows)), totals=tuple(_paired(made.totals, was.totals)))


def _paired(rows: Iterable[ReportRow], earlier: Iterable[ReportRow]) -> Iterator[ReportRow]:
    known = {_place(row): row for row in earlier}
    for row in rows:
        previous = known.pop(_place(row), None)
        yield replace(row, previous=previous, state="new" if previous is None else "kept")
    for row in known.values():
        nothing = Cost(Decimal(0), row.currency, "free", Decimal(0), Decimal(0))
        spread = None if row.amortised is None else Decimal(0)
        yield ReportRow(row.key, nothing, amortised=spread, idle=row.idle, state="gone", previous=row)


def _place(row: ReportRow) -> tuple[tuple[str, ...], str, str]:
    return tuple(row.key.values()), row.currency, row.idle


def _with_trends(
    made: Report, steps: Steps | None, points: Mapping[tuple[tuple[str, ...], str], tuple[Point, ...]]
) -> Report:
    if steps is None:
        return made
    nothing = (NOTHING,) * len(steps.starts)
    rows = [replace(row, trend=nothing if row.idle else points.get(_place(row)[:2], nothing)) for row in made.rows]
    totals = [
        replace(
            total,
            trend=add_points([nothing, *(row.trend or nothing for row in rows if row.currency == total.currency)]),
        )
        for total in made.totals
    ]
    return replace(made, rows=tuple(rows), totals=tuple(totals), steps=steps)


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


def _ratio(amount: Decimal | None, count: int, times: int = 1) -> Decimal | None:
    return (
        None if amount is None or count <= 0 else _RATE.divide(_EXACT.multiply(amount, Decimal(times)), Decimal(count))
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
