"""`aifinops rerate`: what a period would have cost under other prices; corrections are written only when asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from aifinops.charges import Charge, Cost
    from aifinops.ledger.base import Ledger
    from aifinops.pricing.book import PriceBook

__all__ = ["rerate"]

_BATCH = 500


@dataclass(slots=True)
class _Row:
    """What entries of one key cost, and would have cost; nano-units of one currency."""

    calls: int = 0
    before: int = 0
    after: int = 0
    unpriced_before: int = 0
    unpriced_after: int = 0
    corrections: list[Charge] = field(default_factory=list)


def rerate(
    prices: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="FILE", help="Price list or contract to rate by; again for more (default: those in use)."
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Key to add up by: model, team, day, provider, ...")] = "model",
    since: Annotated[str | None, typer.Option(help='From: "30d", "2026-11-01" (default: everything).')] = None,
    until: Annotated[str | None, typer.Option(help="Up to, as --since.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only these; give it again for further keys.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Append corrections to the ledger: the difference of each entry.")
    ] = False,
    form: Annotated[str, typer.Option("--format", metavar="table|json", help="Written as.")] = "table",
    ledger: Annotated[
        str | None, typer.Option("--ledger", metavar="PATH", help="Ledger to use (default: the one of the settings).")
    ] = None,
) -> None:
    """What the calls of a period would have cost under another price list or contract, each at its own moment."""
    from aifinops import runtime
    from aifinops.analytics.reports import period
    from aifinops.cli.app import filters
    from aifinops.config import load
    from aifinops.ledger import open_ledger
    from aifinops.ledger.base import group_key

    if form not in ("table", "json"):
        raise ConfigurationError(f"--format {form!r} is unknown; write table or json")
    key = group_key(by)
    source = open_ledger(load({"ledger": ledger}).ledger, create=False)
    try:
        rows: dict[tuple[str, str], _Row] = {}
        asked = period(since, until, filters(where or []), runtime.get().clock.time_ns())
        for charge, earlier, cost in _rated(source, asked, _book(prices)):
            _add(rows.setdefault((key.of(charge), charge.currency), _Row()), charge, earlier, cost)
        if form == "json":
            sys.stdout.write(json.dumps(_plain(rows), indent=1) + "\n")
        else:
            _tell(rows, by)
        if write:
            print(f"{_write(source, rows):,} corrections written", file=sys.stderr)
    finally:
        source.close()


def _book(files: list[Path] | None) -> PriceBook:
    """The lists in use, with the named ones before them."""
    from aifinops import runtime
    from aifinops.pricing.book import PriceBook
    from aifinops.pricing.lists import from_file

    used = runtime.get().book
    if not files:
        return used
    own = sorted((from_file(path) for path in files), key=lambda one: one.contract is None)
    return PriceBook([*own, *used.lists])


def _rated(source: Ledger, asked: Any, book: PriceBook) -> Iterator[tuple[Charge, int | None, Cost]]:
    """(entry, what it counts with its corrections so far, its cost by the book), in the order of time."""
    from aifinops.pricing.rerate import Volumes
    from aifinops.pricing.rerate import rerate as rate

    # A correction is written later than what it corrects, so all of them are looked for, whatever the period.
    corrected: dict[str, int] = {}
    for entry in source.rows(replace(asked, until_ns=None, where={})):
        if entry.corrects and entry.amount is not None:
            corrected[entry.corrects] = corrected.get(entry.corrects, 0) + entry.amount
    for charge, cost in rate(source.rows(asked), book, volumes=Volumes()):
        more = corrected.get(charge.id)
        yield charge, charge.amount if more is None else (charge.amount or 0) + more, cost


def _add(row: _Row, charge: Charge, earlier: int | None, cost: Cost) -> None:
    from aifinops.charges import nanos

    row.calls += 1
    now = nanos(cost.amount) if cost.currency == charge.currency else None
    row.before += earlier or 0
    row.after += now or 0
    row.unpriced_before += earlier is None
    row.unpriced_after += now is None
    if now is not None and now != earlier:
        row.corrections.append(_correction(charge, now - (earlier or 0), cost))


def _correction(charge: Charge, difference: int, cost: Cost) -> Charge:
    """The entry that holds what the first is off by; at the time of the first, so that its period adds up."""
    from aifinops.charges import new_id
    from aifinops.usage import EMPTY_QUANTITIES

    return replace(
        charge,
        id=new_id(),
        quantities=EMPTY_QUANTITIES,  # they are counted once, in the entry that is corrected
        amount=difference,
        basis=cost.basis,
        lower=None,
        upper=None,
        lines=(),
        price_id=cost.price_id,
        price_as_of=cost.as_of.isoformat() if cost.as_of else None,
        price_source=cost.source,
        duration=0,
        status="correction",
        corrects=charge.id,
        raw=None,
    )


def _write(source: Ledger, rows: dict[tuple[str, str], _Row]) -> int:
    written = [entry for row in rows.values() for entry in row.corrections]
    for start in range(0, len(written), _BATCH):
        source.append_many(written[start : start + _BATCH])
    return len(written)


def _plain(rows: dict[tuple[str, str], _Row]) -> list[dict[str, Any]]:
    from aifinops.money import from_nanos

    return [
        {
            "key": key,
            "currency": currency,
            "calls": row.calls,
            "before": str(from_nanos(row.before)),
            "after": str(from_nanos(row.after)),
            "unpriced_before": row.unpriced_before,
            "unpriced_after": row.unpriced_after,
            "corrections": len(row.corrections),
        }
        for (key, currency), row in sorted(rows.items())
    ]


def _tell(rows: dict[tuple[str, str], _Row], by: str) -> None:
    from rich.table import Table

    from aifinops.cli import show
    from aifinops.money import format_money, from_nanos

    out = show.console()
    if not rows:
        out.print("No calls in this ledger, period and filter.")
        return
    table = Table(box=None, show_footer=True)
    totals = {currency: _Row() for _, currency in rows}
    for (_, currency), row in rows.items():
        whole = totals[currency]
        whole.calls, whole.before, whole.after = (
            whole.calls + row.calls,
            whole.before + row.before,
            whole.after + row.after,
        )

    def cells(row: _Row, currency: str) -> list[str]:
        before, after = from_nanos(row.before), from_nanos(row.after)
        moved = [format_money(amount, currency) for amount in (before, after, after - before)]
        return [f"{row.calls:,}", *moved, percent(before, after)]

    foot = [
        "\n".join(column) for column in zip(*(cells(row, currency) for currency, row in totals.items()), strict=True)
    ]
    table.add_column(by, footer="total", overflow="fold")
    for name, end in zip(("calls", "before", "after", "difference", "change"), foot, strict=True):
        table.add_column(name, justify="right", footer=end, no_wrap=True)
    for (key, currency), row in sorted(rows.items(), key=lambda item: -abs(item[1].after - item[1].before)):
        table.add_row(show.plain(key), *cells(row, currency))
    out.print(table)
    for what, count in (
        ("had no price and have none now", sum(min(row.unpriced_before, row.unpriced_after) for row in rows.values())),
        (
            "get a price that they had not",
            sum(max(0, row.unpriced_before - row.unpriced_after) for row in rows.values()),
        ),
        ("have no price in this list", sum(max(0, row.unpriced_after - row.unpriced_before) for row in rows.values())),
    ):
        if count:
            out.print(f"{count:,} calls {what}", style="yellow")


def percent(before: Decimal, after: Decimal) -> str:
    """`+12.5 %`; empty where there is nothing to compare with."""
    return f"{(after - before) / before * 100:+.1f} %" if before else ""
