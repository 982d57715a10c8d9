"""`aifinops rerate`: what a period would have cost under other prices; corrections are written only when asked for.

Entries are read, rated and corrected as they come, so that memory does not grow with the ledger. Earlier corrections, which may lie
anywhere after what they correct, are added up in a temporary file of SQLite.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.cli.options import LedgerPath, TableOrJson, Until, Where
from aifinops.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from aifinops.charges import Basis, Charge, Cost
    from aifinops.ledger.base import GroupKey, Ledger, Query
    from aifinops.pricing.book import PriceBook

__all__ = ["rerate"]

_BATCH = 500
_TELL_EVERY_S = 0.5


@dataclass(slots=True)
class _Row:
    """What entries of one key cost, and would have cost; nano-units of one currency.

    Attributes:
        calls: how many. before: what the ledger says. after: what it would say with the corrections.
        unpriced_before, unpriced_after: calls in neither of the two.
        lost: calls that have an amount and no price in these lists; kept: what they keep.
        gained: calls that get a price that they had not. corrections: entries that make one of the other.
    """

    calls: int = 0
    before: int = 0
    after: int = 0
    unpriced_before: int = 0
    unpriced_after: int = 0
    lost: int = 0
    kept: int = 0
    gained: int = 0
    corrections: int = 0

    def add(self, other: _Row) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_Rows = dict[tuple[tuple[str, ...], str], _Row]


def rerate(
    prices: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="Price list or contract to rate by, or 'bundled' or 'installed'; again for more (default: those in use).",
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Keys with commas to add up by: model, team, day, provider, ...")] = "model",
    since: Annotated[str | None, typer.Option(help='From: "30d", "2026-11-01" (default: everything).')] = None,
    until: Until = None,
    where: Where = None,
    write: Annotated[
        bool, typer.Option("--write", help="Append corrections to the ledger: the difference of each entry.")
    ] = False,
    form: TableOrJson = "table",
    ledger: LedgerPath = None,
) -> None:
    """What the calls of a period would have cost under another price list or contract, each at its own moment."""
    from aifinops import runtime
    from aifinops.analytics.periods import period
    from aifinops.cli.reporting import filters
    from aifinops.config import load
    from aifinops.ledger.base import group_keys

    if form not in ("table", "json"):
        raise ConfigurationError(f"--format {form!r} is unknown; write table or json")
    keys = group_keys(tuple(dict.fromkeys(part.strip() for part in by.split(",") if part.strip())))
    asked = period(since, until, filters(where or []), runtime.get().clock.time_ns())
    asked.filters()  # a wrong key is told before anything is read
    book = _book(prices or [])
    source = runtime.open_ledger(load({"ledger": ledger}), create=False)  # corrections are copied, too
    try:
        rows, written = _run(source, asked, book, keys, write=write)
    finally:
        source.close()
    if form == "json":
        sys.stdout.write(json.dumps(_plain(rows, keys, asked, written if write else None), indent=1) + "\n")
    else:
        _tell(rows, [key.name for key in keys])
    if write:
        print(f"{written:,} corrections written", file=sys.stderr)


def _book(named: Iterable[str]) -> PriceBook:
    """The lists in use, with the named ones before them, contracts first of all."""
    from aifinops import runtime
    from aifinops.cli.prices import price_list

    used = runtime.get().book
    own = [price_list(name) for name in named]
    if not own:
        return used
    return used.over(sorted([*own, *used.lists], key=lambda one: one.contract is None))


def _run(
    source: Ledger, asked: Query, book: PriceBook, keys: tuple[GroupKey, ...], *, write: bool
) -> tuple[_Rows, int]:
    """(sums per key and currency, corrections written)."""
    rows: _Rows = {}
    batch: list[Charge] = []
    written = 0
    with closing(_Corrections(source, asked)) as corrections, closing(_Progress()) as progress:
        try:
            for charge, cost in _rated(source, asked, book):
                progress.step()
                state = corrections.of(charge)
                wanted = _wanted(charge, cost)
                entries = list(_entries(charge, cost, state, wanted))
                _count(rows, tuple(key.of(charge) for key in keys), charge, state, wanted, entries)
                if write:
                    batch += entries
                    if len(batch) >= _BATCH:
                        written += source.append_many(batch)
                        batch.clear()
            if batch:
                written += source.append_many(batch)
        except StoreError as error:
            if not write:
                raise
            raise StoreError(
                f"{error}; {written:,} corrections were written before, and the same command writes the rest"
            ) from error
    return rows, written


def _rated(source: Ledger, asked: Query, book: PriceBook) -> Iterator[tuple[Charge, Cost]]:
    """(entry, its cost by the book), in the order of time.

    What is paid by volume depends on all calls of the month, also on those that were not asked for.
    """
    from aifinops.pricing.rerate import Volumes
    from aifinops.pricing.rerate import rerate as rate

    volumes, read = (Volumes(), _whole_months(asked)) if _by_volume(book) else (None, asked)
    conditions = asked.filters()
    for charge, cost in rate(source.rows(read), book, volumes=volumes):
        if asked.covers(charge.at) and all(key.of(charge) in values for key, values in conditions):
            yield charge, cost


def _by_volume(book: PriceBook) -> bool:
    """Whether any price depends on what the month had before. The long list of models has none by its form."""
    for one in book.lists:
        if one.contract is not None and any(discount.volume for discount in one.contract.discounts):
            return True
        if one.id != "genai-prices" and any(
            rate.graduated for entry in one.entries() for price in entry.prices for rate in price.rates.values()
        ):
            return True
    return False


def _whole_months(asked: Query) -> Query:
    from aifinops.clock import to_datetime, to_ns

    since = asked.since_ns
    if since is not None:
        since = to_ns(to_datetime(since).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    return replace(asked, since_ns=since, where={})


# --- what was corrected before ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _State:
    """What the ledger holds for one call in one currency, nano-units.

    Attributes:
        sure: what no correction says to be estimated. guessed: what corrections say so, between lower and upper.
        count: corrections so far.
    """

    sure: int = 0
    guessed: int = 0
    lower: int = 0
    upper: int = 0
    count: int = 0

    @property
    def total(self) -> int:
        return self.sure + self.guessed


_States = Mapping[str, _State]
_NONE_YET: tuple[tuple[Any, ...], ...] = ()


class _Corrections:
    """The sums of all corrections from the beginning of the period on; on disk as soon as they are many."""

    def __init__(self, source: Ledger, asked: Query) -> None:
        self._sums = sqlite3.connect("", isolation_level=None)  # "" is a temporary file that goes with the connection
        self._sums.execute(
            "CREATE TABLE sums (id TEXT, currency TEXT, sure INTEGER, guessed INTEGER, lower INTEGER, upper INTEGER,"
            " count INTEGER, PRIMARY KEY (id, currency)) WITHOUT ROWID"
        )
        add = (
            "INSERT INTO sums VALUES (?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET sure = sure + excluded.sure,"
            " guessed = guessed + excluded.guessed, lower = lower + excluded.lower, upper = upper + excluded.upper,"
            " count = count + 1"
        )
        # A correction is written later than what it corrects and may be of another tag, so neither the end nor the filter counts.
        everything = source.rows(replace(asked, until_ns=None, where={}))
        self._sums.execute("BEGIN")
        self._sums.executemany(
            add, (_sums(entry) for entry in everything if entry.corrects and entry.amount is not None)
        )
        self._sums.execute("COMMIT")
        self._any = self._sums.execute("SELECT EXISTS (SELECT 1 FROM sums)").fetchone()[0]

    def of(self, charge: Charge) -> dict[str, _State]:
        """What the ledger holds for a call, by currency; nothing where its cost is unknown."""
        select = "SELECT currency, sure, guessed, lower, upper, count FROM sums WHERE id = ?"
        found = self._sums.execute(select, (charge.id,)).fetchall() if self._any else _NONE_YET
        states = {currency: _State(*sums) for currency, *sums in found}
        if charge.amount is not None:
            states.setdefault(charge.currency, _State()).sure += charge.amount
        return states

    def close(self) -> None:
        self._sums.close()


def _sums(entry: Charge) -> tuple[Any, ...]:
    amount = entry.amount or 0
    if entry.basis != "estimated":
        return (entry.corrects, entry.currency, amount, 0, 0, 0)
    lower, upper = (amount if bound is None else bound for bound in (entry.lower, entry.upper))
    return (entry.corrects, entry.currency, 0, amount, lower, upper)


# --- what is to be corrected ------------------------------------------------------------------------------------------


def _wanted(charge: Charge, cost: Cost) -> tuple[str, int] | None:
    """What the call should count, (currency, nano-units); None when no price decides it and it stays as it is."""
    from aifinops.charges import nanos
    from aifinops.pricing.rerate import is_kept

    amount = None if is_kept(charge) else nanos(cost.amount)
    return None if amount is None else (cost.currency, amount)


def _entries(charge: Charge, cost: Cost, states: _States, wanted: tuple[str, int] | None) -> Iterator[Charge]:
    """The entries that make the ledger say what is wanted; none when it does already."""
    if wanted is None:
        return
    currency, amount = wanted
    for other, state in states.items():
        if other != currency and state.total:
            yield from _moved(charge, cost, other, state, None)
    present = states.get(currency)
    if present is None or present.total != amount:
        yield from _moved(charge, cost, currency, _State() if present is None else present, amount)


def _moved(charge: Charge, cost: Cost, currency: str, state: _State, amount: int | None) -> Iterator[Charge]:
    """The difference in one currency. An estimate is taken back whole and put in anew, so that it stays an estimate."""
    from aifinops.charges import nanos

    if charge.basis != "estimated" and not state.guessed:
        yield _correction(charge, cost, currency, state, "sure", (amount or 0) - state.sure)
        return
    if state.sure:
        yield _correction(charge, cost, currency, state, "sure", -state.sure)
    guess = amount or 0
    lower, upper = (guess if bound is None else nanos(bound) or 0 for bound in (cost.lower, cost.upper))
    if amount is None:
        lower = upper = 0
    bounds = (lower - state.lower, upper - state.upper)
    if amount is not None or state.guessed:
        yield _correction(charge, cost, currency, state, "estimated", guess - state.guessed, bounds)


def _correction(
    charge: Charge,
    cost: Cost,
    currency: str,
    state: _State,
    kind: str,
    difference: int,
    bounds: tuple[int, int] | None = None,
) -> Charge:
    """The entry that holds what the first is off by; at the time of the first, so that its period adds up."""
    from aifinops.usage import EMPTY_QUANTITIES

    basis: Basis = "estimated" if kind == "estimated" else ("priced" if cost.basis == "estimated" else cost.basis)
    # The same correction has the same id, so that of two runs at once one writes it; its number lets a price come back.
    named = f"{charge.id} {currency} {kind} {state.count} {state.total} {difference}"
    return replace(
        charge,
        id=charge.id[:16] + hashlib.sha256(named.encode()).hexdigest()[:16],
        quantities=EMPTY_QUANTITIES,  # they are counted once, in the entry that is corrected
        amount=difference,
        currency=currency,
        basis=basis,
        lower=bounds[0] if bounds else None,
        upper=bounds[1] if bounds else None,
        lines=(),
        price_id=cost.price_id,
        price_as_of=cost.as_of.isoformat() if cost.as_of else None,
        price_source=cost.source,
        duration=0,
        status="correction",
        error="",
        corrects=charge.id,
        raw=None,
    )


def _count(
    rows: _Rows,
    key: tuple[str, ...],
    charge: Charge,
    states: _States,
    wanted: tuple[str, int] | None,
    entries: list[Charge],
) -> None:
    from aifinops.pricing.rerate import is_kept

    home = wanted[0] if wanted else next(iter(states), charge.currency)
    row = rows.setdefault((key, home), _Row())
    row.calls += 1
    row.unpriced_before += not states
    row.unpriced_after += not states and wanted is None
    row.gained += not states and wanted is not None
    for currency, state in states.items():
        mine = rows.setdefault((key, currency), _Row())
        mine.before += state.total
        mine.after += state.total if wanted is None else 0
    if wanted is not None:
        row.after += wanted[1]
    elif states and not is_kept(charge):
        row.lost += 1
        row.kept += states[home].total
    for entry in entries:
        rows[key, entry.currency].corrections += 1


# --- for people -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Progress:
    """How many calls were rated so far, on one line of a terminal; nothing where standard error is a file."""

    count: int = 0
    _shown: bool = False
    _next: float = field(default_factory=lambda: time.monotonic() + _TELL_EVERY_S)
    _live: bool = field(default_factory=lambda: sys.stderr.isatty())

    def step(self) -> None:
        self.count += 1
        if self._live and self.count % 1000 == 0 and time.monotonic() >= self._next:
            self._next = time.monotonic() + _TELL_EVERY_S
            self._shown = True
            print(f"\r{self.count:,} calls rated", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _plain(rows: _Rows, keys: tuple[GroupKey, ...], asked: Query, written: int | None) -> dict[str, Any]:
    names = [key.name for key in keys]
    return {
        "by": names,
        "since": _moment(asked.since_ns),
        "until": _moment(asked.until_ns),
        "rows": [
            {"key": dict(zip(names, key, strict=True)), **_numbers(row, currency)}
            for (key, currency), row in sorted(rows.items())
        ],
        "totals": [_numbers(row, currency) for currency, row in _totals(rows).items()],
        "written": written,
    }


def _moment(at: int | None) -> str | None:
    from aifinops.clock import to_datetime

    return None if at is None else to_datetime(at).isoformat()


def _numbers(row: _Row, currency: str) -> dict[str, Any]:
    return {
        "currency": currency,
        "calls": row.calls,
        "before": _text(_before(row)),
        "after": _text(_after(row)),
        "unpriced_before": row.unpriced_before,
        "unpriced_after": row.unpriced_after,
        "gained": row.gained,
        "lost": row.lost,
        "kept": _text(_amount(row.kept)),
        "corrections": row.corrections,
    }


def _text(amount: Decimal | None) -> str | None:
    if amount is None:
        return None
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _amount(value: int) -> Decimal:
    from aifinops.money import from_nanos

    return from_nanos(value)


def _before(row: _Row) -> Decimal | None:
    """What is known of it; None where no call has a price, since unknown is not zero."""
    return None if row.calls and row.unpriced_before == row.calls else _amount(row.before)


def _after(row: _Row) -> Decimal | None:
    return None if row.calls and row.unpriced_after == row.calls else _amount(row.after)


def _totals(rows: _Rows) -> dict[str, _Row]:
    totals: dict[str, _Row] = {}
    for (_, currency), row in sorted(rows.items(), key=lambda item: item[0][1]):
        totals.setdefault(currency, _Row()).add(row)
    return totals


def _tell(rows: _Rows, names: list[str]) -> None:
    from rich.table import Table

    from aifinops.cli import show

    out = show.console()
    if not rows:
        out.print("No calls in this ledger, period and filter.")
        return
    totals = _totals(rows)
    foot = [
        "\n".join(column) for column in zip(*(_cells(row, currency) for currency, row in totals.items()), strict=True)
    ]
    table = Table(box=None, show_footer=True)
    for place, name in enumerate(names):
        table.add_column(name, footer="" if place else "total", overflow="ellipsis")
    for name, end in zip(("calls", "before", "after", "difference", "change"), foot, strict=True):
        table.add_column(name, justify="right", footer=end, no_wrap=True)
    for (key, currency), row in sorted(rows.items(), key=lambda item: (-abs(item[1].after - item[1].before), item[0])):
        table.add_row(*map(show.key, key), *_cells(row, currency))
    out.print(table)
    for text in _remarks(totals):
        out.print(text, style="yellow")


def _cells(row: _Row, currency: str) -> list[str]:
    from aifinops.money import format_money

    before, after = _before(row), _after(row)
    moved = None if before is None or after is None else after - before
    shown = [format_money(before, currency), format_money(after, currency)]
    difference = "" if moved is None else "-" if not moved else format_money(moved, currency)
    change = percent(before, after) if moved and before is not None and after is not None else ""
    return [f"{row.calls:,}", *shown, difference, change]


def _remarks(totals: Mapping[str, _Row]) -> Iterator[str]:
    from aifinops.money import format_money

    unknown = sum(row.unpriced_after for row in totals.values())
    if unknown:
        yield f"{_calls(unknown)} had no price and {'has' if unknown == 1 else 'have'} none in these lists: in no amount above"
    gained = sum(row.gained for row in totals.values())
    if gained:
        yield f"{_calls(gained)} had no price and {'gets' if gained == 1 else 'get'} one: only `after` holds it"
    for currency, row in totals.items():
        if row.lost:
            what = format_money(_amount(row.kept), currency)
            yield f"{_calls(row.lost)} ({what}) {'has' if row.lost == 1 else 'have'} no price in these lists: as before in `after`"


def _calls(count: int) -> str:
    return f"{count:,} call" + ("" if count == 1 else "s")


def percent(before: Decimal, after: Decimal) -> str:
    """`+12.5 %`; empty where there is nothing to compare with."""
    return f"{(after - before) / before * 100:+.1f} %" if before else ""
