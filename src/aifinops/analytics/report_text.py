"""Reports as text: amounts, moments and changes in words, the table of a terminal, and the notes below it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from aifinops.clock import to_datetime
from aifinops.money import format_money, from_nanos
from aifinops.usage import Quantity

if TYPE_CHECKING:
    from aifinops.analytics.reports import Report, ReportRow

__all__ = [
    "amount_text",
    "calls_text",
    "capacity_notes",
    "change_text",
    "csv_cell",
    "harmless",
    "json_number",
    "moment_text",
    "notes_of",
    "share_text",
    "signed_money",
    "table",
]


def amount_text(amount: Decimal | None) -> str | None:
    """An amount or a fraction for programs: all digits, none of them in vain; None for None."""
    if amount is None:
        return None
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def json_number(value: Quantity) -> int | str:
    """A quantity for JSON: a fraction as text, so that nothing rounds it."""
    return f"{value:f}" if isinstance(value, Decimal) else value


def moment_text(ns: int | None) -> str | None:
    """A moment, nanoseconds since the epoch, in ISO 8601; None for None."""
    return None if ns is None else to_datetime(ns).isoformat()


def harmless(text: str) -> str:
    """Text from calls without what steers a terminal or breaks a line: such characters become `?`."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def csv_cell(text: str) -> str:
    """Text that no spreadsheet runs as a formula."""
    text = harmless(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _shown(text: str) -> str:
    return harmless(text) or "(none)"


def table(made: Report) -> list[str]:
    """The lines of a report as a table."""
    spread = made.capacity is not None
    compared = made.compared is not None
    head = [
        *made.by,
        "calls",
        "input",
        "output",
        "cost",
        *(("amortised", "effective") if spread else ()),
        *(("change",) if compared else ()),
        "unpriced",
    ]
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
    if (row.idle or row.others) and names:
        first = f"(idle: {harmless(row.idle)})" if row.idle else f"({row.others:,} others)"
        names = [first, *[""] * (len(names) - 1)]
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
        *([change_text(row)] if row.state else ()),
        f"{row.unpriced_calls:,}" if row.unpriced_calls else "",
    ]


def change_text(row: ReportRow) -> str:
    """`+$1.20 (+34%)`, `new`, `gone` or `unknown`, for people."""
    if row.state in {"new", "gone"}:
        return row.state
    if row.change is None:
        return "unknown" if row.state else ""
    share = f" ({share_text(row.change_share)})" if row.change_share is not None else ""
    return f"{signed_money(row.change, row.currency)}{share}"


def signed_money(amount: Decimal, currency: str) -> str:
    """An amount with its sign, also a plus."""
    return ("+" if amount > 0 else "") + format_money(amount, currency)


def share_text(share: Decimal | None) -> str:
    """A share as per cent with its sign; ten times and more as a factor; empty for None."""
    if share is None:
        return ""
    return f"x{share + 1:,.0f}" if share >= 9 else f"{share:+.0%}"


def notes_of(row: ReportRow) -> list[str]:
    """A sentence each for what has no price, and for what is estimated."""
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
        notes.append(f"{harmless(one.name)}: {cost} in this time, {calls_text(one.calls)} served{known}.")
    if made.uncovered_calls:
        belong = "belongs" if made.uncovered_calls == 1 else "belong"
        notes.append(
            f"{calls_text(made.uncovered_calls)} of committed capacity {belong} to none that a contract declares: what it costs is "
            "in no amount above. Add [[provisioned]] or [[commitments]]."
        )
    return notes


def calls_text(count: int) -> str:
    """`1 call`, `2 calls`."""
    return f"{count:,} call" + ("" if count == 1 else "s")
