"""Tables for people: reports with share bars, findings, and a console that suits the terminal or the file behind it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aifinops.analytics.report_text import capacity_notes, share_text, signed_money
from aifinops.analytics.reports import Report, ReportRow
from aifinops.clock import to_datetime
from aifinops.money import format_money

if TYPE_CHECKING:
    from aifinops.cli.doctor import Finding

__all__ = ["bar", "can_draw", "console", "findings", "key", "plain", "report", "spark"]

_BAR, _SPARK, _SHORT, _NAME = 16, 31, 12, 20
_FILE_WIDTH = 10_000
"""Of a file or a pipe, in characters: no line is ever broken there, so that `grep` and `awk` see whole names."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS, _ASCII_HEIGHTS = "▁▂▃▄▅▆▇█", ".:-=+*#%"
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


def spark(values: Sequence[Decimal | None], *, blocks: bool = True, width: int = _SPARK) -> str:
    """Amounts as a line of bars, each as high as its share of the largest: `·` for nothing, `?` for what has no price.

    More than `width` values are added up in pieces of equal length, so that a line is never longer.
    """
    piece = -(-len(values) // width)
    sums = [_known(values[place : place + piece]) for place in range(0, len(values), piece)] if values else []
    highest = max((value for value in sums if value is not None), default=Decimal(0))
    marks, nothing = (_HEIGHTS, "·") if blocks else (_ASCII_HEIGHTS, "_")
    return "".join(
        "?" if value is None else nothing if value <= 0 else marks[max(0, math.ceil(value * 8 / highest) - 1)]
        for value in sums
    )


def _known(values: Sequence[Decimal | None]) -> Decimal | None:
    """The sum of what has a price; None where something has none and nothing has one."""
    known = [value for value in values if value is not None]
    total = sum(known, Decimal(0))
    return None if len(known) < len(values) and not total else total


def report(made: Report, out: Console, title: str = "", *, unit_cost: bool = False, empty: str = "") -> None:
    """The report: what has a price, dearest first with its share, totals, then what has none.

    Args:
        made: the report. out: where to. title: above it.
        unit_cost: with what a call and a thousand tokens cost. empty: said when there are no calls.
    """
    if not made.rows:
        out.print(Text(empty or "No calls in this ledger, period and filter."), soft_wrap=True)
        return
    priced = [row for row in made.rows if row.amount is not None or row.amortised]
    if priced:
        if title:
            out.print(Text(title, style="bold"))
        out.print(_priced(made, priced, out, unit_cost=unit_cost))
    unpriced = [row for row in made.rows if row.unpriced_calls]
    if unpriced:
        out.print(Text("Without a price (in no amount above)", style="yellow"))
        out.print(_unpriced(made, unpriced))
    for total in made.totals:
        _bounds(total, out)
    for note in [*_period_notes(made), *capacity_notes(made)]:
        out.print(Text(note, style="dim"))


def _period_notes(made: Report) -> list[str]:
    notes = []
    if made.compared is not None:
        since, until = (f"{to_datetime(at):%Y-%m-%d %H:%M}" for at in made.compared)
        notes.append(f"change: against {since} to {until} UTC, the period of the same length before.")
        earlier = sum(row.previous.unpriced_calls for row in made.totals if row.previous is not None)
        if earlier:
            notes.append(f"{earlier:,} calls of that period have no price: they are in no change.")
    if made.steps is not None:
        notes.append(
            "trend: from the beginning of the period to its end, each row by itself; its highest mark is its dearest time."
        )
    return notes


@dataclass(slots=True)
class _Column:
    """One column while the table is laid out.

    Attributes:
        name: its head. cells, foot: what is in it. right: of numbers. drop: which goes first where there is no room; 0 never goes.
        least: characters that it needs at least, where its cells may be cut short. short: shorter cells, for when there is no room.
    """

    name: str
    cells: list[str | Text]
    foot: str = ""
    right: bool = True
    drop: int = 0
    least: int | None = None
    short: Sequence[str | Text] | None = None

    @property
    def width(self) -> int:
        """Characters that it takes, with the space on both sides."""
        lines = [self.name, *self.foot.splitlines(), *(str(cell) for cell in self.cells)]
        longest = max(map(cell_len, lines))
        return 2 + (longest if self.least is None else max(cell_len(self.name), min(longest, self.least)))


def _priced(made: Report, rows: Sequence[ReportRow], out: Console, *, unit_cost: bool) -> Table:
    columns = _columns(made, rows, out, unit_cost=unit_cost)
    _fit(columns, out.width)
    table = Table(show_footer=bool(made.by), box=None)
    for column in columns:
        fixed = column.least is None
        table.add_column(
            column.name, footer=column.foot, justify="right" if column.right else "left", no_wrap=fixed, overflow="ellipsis",
            min_width=column.width - 2 if fixed else None,
        )  # fmt: skip
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _fit(columns: list[_Column], width: int) -> None:
    """Leave out what there is no room for: bars first, since names and numbers say more, then the counts that can best be spared."""
    for column in reversed(columns):
        if column.short is not None and sum(one.width for one in columns) > width:
            column.cells, column.foot = list(column.short), ""
    while sum(column.width for column in columns) > width and any(column.drop for column in columns):
        columns.remove(max(columns, key=lambda column: column.drop))


def _columns(made: Report, rows: Sequence[ReportRow], out: Console, *, unit_cost: bool) -> list[_Column]:
    # The foot adds up what is in this table, so rows that have no price at all are not in its counts either.
    totals = [_sums(total, rows) for total in made.totals if total.amount is not None or total.amortised]
    whole = {total.currency: total.effective or Decimal(0) for total in totals}
    blocks = can_draw(out)

    def column(name: str, of: Callable[[ReportRow], str | Text], **more: Any) -> _Column:
        return _Column(name, [of(row) for row in rows], _stacked(str(of(total)) for total in totals), **more)

    found = [
        _Column(
            name, [_name(made, row, place) for row in rows], "total" if place == 0 else "", right=False, least=_NAME
        )
        for place, name in enumerate(made.by)
    ]
    found += [
        column("calls", lambda row: f"{row.calls:,}"),
        column("input", lambda row: f"{row.input_tokens:,}", drop=2),
        column("cached", lambda row: f"{row.cached_tokens:,}", drop=3),
        column("output", lambda row: f"{row.output_tokens:,}", drop=1),
    ]
    if any(row.gpu_seconds for row in rows):
        found.append(column("GPU s", lambda row: f"{row.gpu_seconds:,.1f}" if row.gpu_seconds else ""))
    found.append(column("cost", _money))
    if made.capacity is not None:
        found += [
            column("amortised", lambda row: format_money(row.amortised, row.currency)),
            column("effective", lambda row: format_money(row.effective, row.currency)),
        ]
    if made.compared is not None:
        found += [column("change", _changed), column("%", _percent)]
    if unit_cost:
        found += [
            column("a call", lambda row: _unit(row.per_call, row)),
            column("1k tokens", lambda row: _unit(row.per_1k_tokens, row)),
        ]
    if made.steps is not None:
        found.append(column("trend", lambda row: _spark_of(row, blocks=blocks, width=_SPARK), right=False))
        found[-1].short = [_spark_of(row, blocks=blocks, width=_SHORT) for row in rows]

    def share(row: ReportRow) -> Decimal:
        return (row.effective or Decimal(0)) / whole[row.currency] if whole[row.currency] > 0 else Decimal(0)

    shares = [share(row) for row in rows]
    drawn = [f"{bar(one, blocks=blocks):<{_BAR}} {one:>4.0%}" for one in shares]
    found.append(_Column("share", list(drawn), right=False, short=[f"{one:.0%}" for one in shares]))
    return found


def _spark_of(row: ReportRow, *, blocks: bool, width: int) -> Text:
    return Text(spark([point.amount for point in row.trend or ()], blocks=blocks, width=width), style="cyan")


def _name(made: Report, row: ReportRow, place: int) -> Text:
    if not (row.idle or row.others):
        return key(row.key[made.by[place]])
    text = f"(idle: {row.idle})" if row.idle else f"({row.others:,} others)"
    return key(text) if place == 0 else Text("")


def _changed(row: ReportRow) -> Text:
    if row.change is None:
        return Text("unknown" if row.state else "", style="dim")
    return Text(signed_money(row.change, row.currency), style=_direction(row))


def _percent(row: ReportRow) -> Text:
    text = row.state if row.state in {"new", "gone"} else share_text(row.change_share)
    return Text(text, style=_direction(row))


def _direction(row: ReportRow) -> str:
    return "" if not row.change else "red" if row.change > 0 else "green"


def _unit(amount: Decimal | None, row: ReportRow) -> str:
    return "" if amount is None else format_money(amount, row.currency)


def _sums(total: ReportRow, rows: Sequence[ReportRow]) -> ReportRow:
    mine = [row for row in rows if row.currency == total.currency]
    counted = ("calls", "input_tokens", "cached_tokens", "output_tokens", "gpu_seconds")
    sums = {name: sum(getattr(row, name) for row in mine) for name in counted}
    # Unit costs and changes of the foot are those of the whole: its counts of tokens and calls without a price stay as they are.
    return replace(total, **{**sums, "unpriced_calls": total.unpriced_calls - total.calls + sums["calls"]})


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
        names = (_name(made, row, place) for place in range(len(made.by)))
        table.add_row(*names, f"{row.unpriced_calls:,}", f"{row.unpriced_tokens:,}")
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
