"""A report in a notebook: a table that takes colours and fonts from its surroundings, light or dark."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from aifinops.analytics.markup import compact, element, text
from aifinops.money import format_money

if TYPE_CHECKING:
    from aifinops.analytics.reports import Report, ReportRow

__all__ = ["table"]

_ROWS = 25
_NUMBER, _NAME, _RULE = "text-align:right", "text-align:left", "border-top:1px solid currentColor"


def table(made: Report) -> str:
    """HTML of one table, its totals, and a line each for what is estimated and what has no price."""
    if not made.rows:
        return "<p>No calls in this period and filter.</p>"
    shown = made.rows[:_ROWS]
    head = [element("th", text(name), style=_NAME) for name in made.by]
    head += [element("th", text(name), style=_NUMBER) for name in _heads(made)]
    lines = [f"<tr>{''.join(head)}</tr>", *(_line(made, row) for row in shown)]
    if made.by:
        lines += [_line(made, row, foot=True) for row in made.totals]
    left = len(made.rows) - len(shown)
    notes = [f"{left:,} more rows are not shown; top={_ROWS} adds them up, to_html() has all."] if left else []
    for row in made.totals:
        notes += _notes(row)
    said = "".join(element("div", text(note), style="font-size:90%;opacity:.8;margin-top:.3em") for note in notes)
    return f'<div><table style="border-collapse:collapse">{"".join(lines)}</table>{said}</div>'


def _heads(made: Report) -> list[str]:
    heads = ["calls", "tokens", "cost", "share", "a call"]
    if made.compared is not None:
        heads.insert(3, "change")
    return [*heads, "no price"] if any(row.unpriced_calls for row in made.totals) else heads


def _line(made: Report, row: ReportRow, *, foot: bool = False) -> str:
    from aifinops.analytics.report_text import change_text

    if foot:
        names = ["total", *[""] * (len(made.by) - 1)]
    elif row.idle or row.others:
        names = [f"(idle: {row.idle})" if row.idle else f"({row.others:,} others)", *[""] * (len(made.by) - 1)]
    else:
        names = [row.key[name] or "(none)" for name in made.by]
    whole = next(total.effective or Decimal(0) for total in made.totals if total.currency == row.currency)
    share = f"{(row.effective or Decimal(0)) / whole:.0%}" if whole > 0 and row.effective is not None else ""
    mark = "≈ " if row.estimated else ""
    cells = [f"{row.calls:,}", compact(row.tokens), mark + format_money(row.effective, row.currency), share]
    cells.append("" if row.per_call is None else format_money(row.per_call, row.currency))
    if made.compared is not None:
        cells.insert(3, change_text(row))
    if any(total.unpriced_calls for total in made.totals):
        cells.append(f"{row.unpriced_calls:,}" if row.unpriced_calls else "")
    rule = f";{_RULE};font-weight:bold" if foot else ""
    parts = [element("td", text(name), style=_NAME + rule) for name in names]
    parts += [element("td", text(cell), style=_NUMBER + rule) for cell in cells]
    return f"<tr>{''.join(parts)}</tr>"


def _notes(row: ReportRow) -> list[str]:
    notes = []
    if row.unpriced_calls:
        notes.append(
            f"{row.unpriced_calls:,} calls ({compact(row.unpriced_tokens)} tokens) have no price; no amount holds them."
        )
    if row.estimated:
        upper = "an unknown bound" if row.cost.upper is None else format_money(row.cost.upper, row.currency)
        notes.append(
            f"≈ {format_money(row.estimated, row.currency)} is estimated: the total lies between "
            f"{format_money(row.cost.lower, row.currency)} and {upper}."
        )
    return notes
