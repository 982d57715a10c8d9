"""Tables for people: reports with share bars, findings, and a console that suits the terminal or the file behind it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aifinops.analytics.reports import Report, ReportRow, capacity_notes
from aifinops.money import format_money

if TYPE_CHECKING:
    from aifinops.cli.doctor import Finding

__all__ = ["bar", "console", "findings", "key", "plain", "report"]

_BAR = 16
_FILE_WIDTH = 10_000
"""Of a file or a pipe, in characters: no line is ever broken there, so that `grep` and `awk` see whole names."""

_WIDE = 110
"""Columns from which a table with what was amortised has room for bars."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MARKS = {"good": ("✓", "+", "green"), "note": ("·", "-", "dim"), "bad": ("✗", "!", "bold red")}


def console() -> Console:
    """Standard output; a file or pipe gets lines as long as they need to be."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


def can_draw(out: Console) -> bool:
    """Whether block characters reach the reader unharmed."""
    return out.encoding.lower().startswith("utf")


def plain(text: str) -> Text:
    """Text that came from calls (tags, model names): no markup, and no escape sequences for the terminal."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text) or "(none)")


def key(text: str) -> Text:
    """`plain` in one line, which a terminal that is too narrow ends with `…`."""
    line = plain(text)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def bar(share: Decimal, *, blocks: bool = True, width: int = _BAR) -> str:
    """A share of 0 to 1 as a bar of `width` characters, exact to an eighth of one; anything above nothing is seen."""
    if not blocks:
        return "#" * max(round(share * width), 1 if share > 0 else 0)
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def report(made: Report, out: Console, title: str = "") -> None:
    """The report: what has a price, dearest first with its share, totals, then what has none."""
    if not made.rows:
        out.print("No calls in this ledger, period and filter.")
        return
    priced = [row for row in made.rows if row.amount is not None or row.amortised]
    if priced:
        if title:
            out.print(Text(title, style="bold"))
        out.print(_priced(made, priced, out))
    unpriced = [row for row in made.rows if row.unpriced_calls]
    if unpriced:
        out.print(Text("Without a price (in no amount above)", style="yellow"))
        out.print(_unpriced(made, unpriced))
    for total in made.totals:
        _bounds(total, out)
    for note in capacity_notes(made):
        out.print(Text(note, style="dim"))


def _priced(made: Report, rows: Sequence[ReportRow], out: Console) -> Table:
    table = Table(show_footer=bool(made.by), box=None)
    # The foot adds up what is in this table, so rows that have no price at all are not in its counts either.
    totals = [_sums(total, rows) for total in made.totals if total.amount is not None or total.amortised]
    spread = made.capacity is not None
    for place, name in enumerate(made.by):
        table.add_column(name, footer="total" if place == 0 else "", overflow="ellipsis")
    for name in ("calls", "input", "cached", "output"):
        table.add_column(name, justify="right", footer=_stacked(_counts(total)[name] for total in totals), no_wrap=True)
    gpus = any(row.gpu_seconds for row in rows)
    if gpus:
        seconds = _stacked(f"{total.gpu_seconds:,.1f}" for total in totals)
        table.add_column("GPU s", justify="right", footer=seconds, no_wrap=True)
    table.add_column("cost", justify="right", footer=_stacked(_money(total) for total in totals), no_wrap=True)
    for name in ("amortised", "effective") if spread else ():
        foot = _stacked(format_money(getattr(total, name), total.currency) for total in totals)
        table.add_column(name, justify="right", footer=foot, no_wrap=True)
    # Bars are the first thing to go where there is no room: names and numbers say more.
    bars = not spread or out.width >= _WIDE
    table.add_column("share", justify="left" if bars else "right", min_width=_BAR if bars else None, no_wrap=True)
    sums = {total.currency: total.effective or Decimal(0) for total in totals}
    for row in rows:
        whole = sums[row.currency]
        share = (row.effective or Decimal(0)) / whole if whole > 0 else Decimal(0)
        cells: list[str | Text] = [key(row.key[name]) for name in made.by]
        if row.idle and cells:
            cells = [key(f"(idle: {row.idle})"), *[""] * (len(cells) - 1)]
        cells += _counts(row).values()
        cells += [f"{row.gpu_seconds:,.1f}"] if gpus else []
        cells += [_money(row)]
        cells += [format_money(one, row.currency) for one in (row.amortised, row.effective)] if spread else []
        cells += [f"{bar(share, blocks=can_draw(out)):<{_BAR}} {share:>4.0%}" if bars else f"{share:.0%}"]
        table.add_row(*cells)
    return table


def _sums(total: ReportRow, rows: Sequence[ReportRow]) -> ReportRow:
    mine = [row for row in rows if row.currency == total.currency]
    counted = ("calls", "input_tokens", "cached_tokens", "output_tokens", "gpu_seconds")
    return replace(total, **{name: sum(getattr(row, name) for row in mine) for name in counted})


def _counts(row: ReportRow) -> dict[str, str]:
    return {
        "calls": f"{row.calls:,}",
        "input": f"{row.input_tokens:,}",
        "cached": f"{row.cached_tokens:,}",
        "output": f"{row.output_tokens:,}",
    }


def _stacked(values: Iterable[str]) -> str:
    return "\n".join(values)


def _money(row: ReportRow) -> str:
    return ("~" if row.estimated else "") + format_money(row.amount, row.currency)


def _unpriced(made: Report, rows: Sequence[ReportRow]) -> Table:
    table = Table(box=None)
    for name in made.by:
        table.add_column(name, overflow="ellipsis")
    for name in ("calls", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(key(row.key[name]) for name in made.by), f"{row.unpriced_calls:,}", f"{row.unpriced_tokens:,}")
    return table


def _bounds(total: ReportRow, out: Console) -> None:
    if not total.estimated:
        return
    upper = "no known bound" if total.cost.upper is None else format_money(total.cost.upper, total.currency)
    lower = format_money(total.cost.lower, total.currency)
    estimated = format_money(total.estimated, total.currency)
    out.print(f"~ {estimated} of the total is estimated: it lies between {lower} and {upper}.", style="dim")


def findings(found: Sequence[Finding], out: Console) -> None:
    """What `doctor` has found, a line each: a mark, the subject, the finding."""
    place = 0 if can_draw(out) else 1
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        mark = _MARKS[finding.status]
        table.add_row(Text(mark[place], style=mark[2]), finding.subject, plain(finding.text))
    out.print(table)
