"""A report as one page that needs nothing else: no network, no fonts, no scripts of others, and no script to be read.

Every text from calls goes through `markup.text`, and the page's own policy forbids whatever could come from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from decimal import Decimal
from importlib import resources
from typing import TYPE_CHECKING

from aifinops._version import __version__
from aifinops.analytics.charts import Series, sparkline, stacked
from aifinops.analytics.markup import compact, element, text
from aifinops.analytics.trends import NOTHING, Steps, add_points
from aifinops.clock import to_datetime
from aifinops.ledger.base import TIME_KEYS
from aifinops.money import format_money
from aifinops.usage import Quantity

if TYPE_CHECKING:
    from aifinops.analytics.reports import Report, ReportRow
    from aifinops.budgets.standing import Standing

__all__ = ["page"]

_COLOURS = 7
_LONG = 24
_MODELS = 8
_SOON = Decimal("0.8")


def page(made: Report, models: Report | None, *, title: str, budgets: Sequence[Standing] = ()) -> str:
    """The whole document.

    Args:
        made: the report; with a trend it has charts, with a comparison changes. models: the same period by model, or None.
        title: at its top. budgets: how they stand.
    """
    style, script = _data("page.css"), _data("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta name="generator" content="aifinops {__version__}"><link rel="icon" href="data:,">'
        f"<title>{text(title)}, {text(_period(made))}</title><style>{style}</style>"
    )
    body = [
        _header(made, title),
        f'<main id="report">{"".join(_sections(made, models, budgets))}</main>',
        _footer(made),
    ]
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(body)}<script>{script}</script></body></html>\n'


def _data(name: str) -> str:
    return resources.files("aifinops.analytics").joinpath("data", name).read_text(encoding="utf-8")


def _sections(made: Report, models: Report | None, budgets: Sequence[Standing]) -> Iterable[str]:
    if not made.rows:
        yield element("section", element("p", "No calls in this period and filter."), class_="panel empty")
    else:
        yield _cards(made)
        yield from _over_time(made)
    aside = [
        part
        for part in (_models(models) if models is not None and models is not made else "", _budgets(budgets))
        if part
    ]
    if aside:
        yield element("div", *aside, class_=f"split of{len(aside)}")
    if made.rows:
        yield _rows(made)
        yield _missing(made, models)
        yield _notes(made)


# --- the top -------------------------------------------------------------------------------------------------------------


def _header(made: Report, title: str) -> str:
    facts = [element("span", text(_period(made)))]
    if made.by:
        facts.append(element("span", "by ", *_joined(made.by)))
    for key, value in made.where.items():
        values = value if isinstance(value, str) else " or ".join(value)
        facts.append(element("span", f"{text(key)} = ", element("b", text(values or "(none)"))))
    return element("header", element("h1", text(title)), element("p", *facts, class_="facts"))


def _joined(names: Sequence[str]) -> list[str]:
    return [("" if place == 0 else ", ") + element("b", text(name)) for place, name in enumerate(names)]


def _period(made: Report) -> str:
    since = _first(made)
    until = made.made_ns if made.until_ns is None else made.until_ns
    if since is None:
        return f"everything up to {_day(until, end=True)}"
    return f"{_day(since)} to {_day(until, end=True)}"


def _first(made: Report) -> int | None:
    return made.steps.starts[0] if made.since_ns is None and made.steps is not None else made.since_ns


def _day(at: int, *, end: bool = False) -> str:
    """A day, with the time where it is not midnight; an end at midnight is the day before."""
    moment = to_datetime(at)
    if (moment.hour, moment.minute, moment.second) == (0, 0, 0):
        moment = to_datetime(at - 1) if end else moment
        return f"{moment.day} {moment:%b %Y}"
    return f"{moment.day} {moment:%b %Y, %H:%M} UTC"


# --- cards ---------------------------------------------------------------------------------------------------------------


def _cards(made: Report) -> str:
    total = made.total
    cards = [_spend_card(made)]
    calls = [element("p", f"{total.calls:,}", class_="big"), element("p", _counts(total), class_="small")]
    cards.append(_card("Calls", *calls))
    if total.per_call is not None:
        unit = [element("p", text(format_money(total.per_call, total.currency)), class_="big")]
        if total.per_1k_tokens is not None:
            unit.append(
                element(
                    "p", text(format_money(total.per_1k_tokens, total.currency)), " a thousand tokens", class_="small"
                )
            )
        cards.append(_card("A call, on average", *unit, _earlier_unit(total)))
    estimated = [row for row in made.totals if row.estimated]
    if estimated:
        cards.append(_card("Estimated", *(_estimate(row) for row in estimated), kind="unsure"))
    calls_without = sum(row.unpriced_calls for row in made.totals)
    if calls_without:
        tokens = sum(row.unpriced_tokens for row in made.totals)
        cards.append(
            _card(
                "Without a price",
                element(
                    "p", f"{calls_without:,} ", element("span", "call" if calls_without == 1 else "calls"), class_="big"
                ),
                element("p", f"{compact(tokens)} tokens, in no amount here", class_="small"),
                kind="missing",
            )
        )
    return element("section", *cards, class_="cards", aria_label="Summary")


def _card(name: str, *content: str, kind: str = "") -> str:
    return element("div", element("h2", text(name)), *content, class_=f"card {kind}".strip())


def _spend_card(made: Report) -> str:
    total = made.total
    shown = "unknown" if total.effective is None else format_money(total.effective, total.currency)
    content = [element("p", ("≈ " if total.estimated else "") + text(shown), class_="big")]
    if made.compared is not None:
        since, until = made.compared
        content.append(
            element(
                "p",
                _change(total),
                element("span", f"against {text(_day(since))} to {text(_day(until, end=True))}"),
                class_="small",
            )
        )
    others = [row for row in made.totals[1:] if row.effective]
    if others:
        amounts = " and ".join(format_money(row.effective, row.currency) for row in others)
        content.append(element("p", text(f"and {amounts}, never added up"), class_="small"))
    return _card("Spend", *content, kind="spend")


def _counts(total: ReportRow) -> str:
    parts = [f"{compact(total.tokens)} tokens"] if total.tokens else []
    if total.gpu_seconds:
        parts.append(f"{compact(Decimal(total.gpu_seconds) / 3600)} GPU-hours")
    if total.errors:
        parts.append(f"{total.errors:,} failed")
    if total.previous is not None and total.previous.calls:
        parts.append(f"{total.previous.calls:,} calls before")
    return text(", ".join(parts))


def _earlier_unit(total: ReportRow) -> str:
    before = None if total.previous is None else total.previous.per_call
    return (
        ""
        if before is None
        else element("p", f"{text(format_money(before, total.currency))} a call before", class_="small")
    )


def _estimate(row: ReportRow) -> str:
    lower, upper = (
        None if bound is None else format_money(bound, row.currency) for bound in (row.cost.lower, row.cost.upper)
    )
    lies = (
        f"of it; the truth lies between {lower} and {upper}"
        if upper
        else f"of it; the truth is at least {lower}, no more is known"
    )
    return element("p", text(format_money(row.estimated, row.currency)), class_="big") + element(
        "p", text(lies), class_="small"
    )


def _change(row: ReportRow) -> str:
    """A badge that says up or down in words and signs, not by its colour alone."""
    from aifinops.analytics.report_text import share_text, signed_money

    if row.state in {"new", "gone"}:
        return element("span", row.state, class_=f"badge {row.state}")
    if row.change is None:
        return element("span", "unknown" if row.state else "", class_="badge")
    kind, arrow = ("up", "▲") if row.change > 0 else ("down", "▼") if row.change < 0 else ("same", "=")
    share = share_text(row.change_share)
    said = signed_money(row.change, row.currency) + (f" ({share})" if share else "")
    return element("span", element("i", arrow, aria_hidden="true"), text(said), class_=f"badge {kind}")


# --- over time -----------------------------------------------------------------------------------------------------------


def _over_time(made: Report) -> Iterable[str]:
    steps = made.steps
    if steps is None:
        return
    for total in made.totals:
        points = total.trend or ()
        if not any(point.amount or point.unpriced_calls for point in points):
            continue
        unit = f" in {total.currency}" if len(made.totals) > 1 else ""
        name = f"Spend by {_step(steps)}{unit}"
        series = _series(made, total)
        yield element(
            "section", element("h2", text(name)), stacked(series, points, steps, total.currency, name), class_="panel"
        )


def _step(steps: Steps) -> str:
    return f"{steps.name} (UTC)" if steps.name in {"minute", "5 minutes", "hour"} else steps.name


def _series(made: Report, total: ReportRow) -> list[Series]:
    """The dearest rows each in a colour, all others in one; keys of time are on the axis already."""
    if not made.by or any(key in TIME_KEYS for key in made.by):
        return [Series("total", total.trend or (), 1)]
    rows = [
        row
        for row in made.rows
        if row.currency == total.currency and not row.idle and any(p.amount for p in row.trend or ())
    ]
    rows.sort(key=lambda row: (bool(row.others), -(row.amount or Decimal(0))))
    own = [row for row in rows if not row.others][:_COLOURS]
    rest = [row for row in rows if row not in own]
    found = [Series(_title(made, row), row.trend or (), place) for place, row in enumerate(own, 1)]
    if len(rest) == 1:
        found.append(Series(_title(made, rest[0]), rest[0].trend or (), 0))
    elif rest:
        count = sum(row.others or 1 for row in rest)
        found.append(
            Series(f"{count:,} other" + ("" if count == 1 else "s"), add_points(row.trend or () for row in rest), 0)
        )
    return found


def _title(made: Report, row: ReportRow) -> str:
    if row.idle:
        return f"(idle: {row.idle})"
    if row.others:
        return f"({row.others:,} others)"
    return " / ".join(row.key[name] or "(none)" for name in made.by) or "total"


# --- models and budgets --------------------------------------------------------------------------------------------------


def _models(models: Report) -> str:
    rows = [row for row in models.rows if row.amount][:_MODELS]
    if not rows:
        return ""
    whole = {total.currency: total.amount or Decimal(0) for total in models.totals}
    highest = max(_share(row, whole) for row in rows)
    items = []
    for row in rows:
        share = _share(row, whole)
        model = row.key["model"] or "(none)"
        name = element("span", text(model), class_="name", title=model if len(model) > _LONG else None)
        amount = element("span", _money(row), element("small", f"{share:.0%}"), class_="amount")
        items.append(element("li", name, amount, _bar(share / highest if highest else share), *_change_small(row)))
    return element("section", element("h2", "Top models"), element("ol", *items, class_="bars"), class_="panel")


def _change_small(row: ReportRow) -> list[str]:
    return [element("span", _change(row), class_="note")] if row.state else []


def _share(row: ReportRow, whole: dict[str, Decimal]) -> Decimal:
    total = whole.get(row.currency, Decimal(0))
    return max(Decimal(0), (row.effective or Decimal(0)) / total) if total > 0 else Decimal(0)


def _money(row: ReportRow) -> str:
    return text(("≈ " if row.estimated else "") + format_money(row.effective, row.currency))


def _bar(share: Decimal) -> str:
    filled = f'<i style="width:{min(share, Decimal(1)) * 100:.2f}%"></i>' if share > 0 else ""
    return f'<span class="bar" aria-hidden="true">{filled}</span>'


def _budgets(found: Sequence[Standing]) -> str:
    items = [_budget(one) for one in found]
    return (
        element("section", element("h2", "Budgets"), element("ul", *items, class_="bars budgets"), class_="panel")
        if items
        else ""
    )


def _budget(one: Standing) -> str:
    from aifinops.budgets.budget import is_currency, to_units

    def shown(amount: int) -> str:
        units = to_units(one.node.unit, amount)
        return format_money(units, one.node.unit) if is_currency(one.node.unit) else compact(units)

    balance = one.balance
    unit = "" if is_currency(one.node.unit) else f" {one.node.unit}"
    name = element("span", text(one.name), element("small", text(one.window)), class_="name")
    if not balance.limit:
        return element(
            "li",
            name,
            element("span", text(shown(balance.spent)), class_="amount"),
            element("span", "no limit", class_="note"),
        )
    spent, held = (min(Decimal(part) / balance.limit, Decimal(1)) for part in (balance.spent, balance.reserved))
    kind = "over" if spent >= 1 else "soon" if spent >= _SOON else "fine"
    amount = element(
        "span", text(shown(balance.spent)), element("small", f"of {text(shown(balance.limit) + unit)}"), class_="amount"
    )
    bar = (
        f'<span class="bar {kind}" role="img" aria-label="{spent:.0%} spent, {held:.0%} held">'
        f'<i style="width:{spent * 100:.2f}%"></i><i class="held" style="width:{min(held, 1 - spent) * 100:.2f}%"></i></span>'
    )
    notes = [f"{spent:.0%} spent" if kind != "over" else "spent up"]
    if balance.reserved:
        notes.append(f"{shown(balance.reserved)} held by calls in flight")
    if balance.remaining:
        notes.append(f"{shown(balance.remaining)} left")
    if one.crosses and one.seconds is not None:
        notes.append(f"at this rate gone in {_span(one.seconds)}")
    return element("li", name, amount, bar, element("span", text(", ".join(notes)), class_=f"note {kind}"))


def _span(seconds: float) -> str:
    for name, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} seconds"


# --- rows ----------------------------------------------------------------------------------------------------------------


def _rows(made: Report) -> str:
    rows = [row for row in made.rows if row.amount is not None or row.amortised]
    if not rows:
        return ""
    name = "By " + ", ".join(made.by) if made.by else "In all"
    whole = {total.currency: total.effective or Decimal(0) for total in made.totals}
    columns = _columns(made, rows)
    head = [element("th", text(key), scope="col", class_="key") for key in made.by or ("",)]
    head += [element("th", text(column), scope="col", class_=kind) for column, kind in columns]
    body = [_line(made, row, [kind for _, kind in columns], whole) for row in rows]
    feet = [
        _line(made, row, [kind for _, kind in columns], whole, foot=True)
        for row in made.totals
        if row.effective is not None
    ]
    table = element(
        "table",
        element("caption", text(name), class_="unseen"),
        element("thead", f"<tr>{''.join(head)}</tr>"),
        element("tbody", *body),
        element("tfoot", *feet),
        class_="rows sortable",
    )
    scroll = element("div", table, class_="scroll", tabindex="0", role="region", aria_label=name)
    return element("section", element("h2", text(name)), scroll, class_="panel")


def _columns(made: Report, rows: Sequence[ReportRow]) -> list[tuple[str, str]]:
    """Head and class of each column of numbers; the class says what is in it."""
    found = [("cost", "cost")]
    if made.capacity is not None:
        found = [("billed", "billed"), ("amortised", "amortised"), ("effective", "cost")]
    found.append(("share", "share"))
    if made.compared is not None:
        found.append(("change", "change"))
    if made.steps is not None and not any(key in TIME_KEYS for key in made.by):
        found.append(("trend", "trend"))
    found += [("calls", "calls"), ("tokens in", "input"), ("out", "output")]
    if any(row.gpu_seconds for row in rows):
        found.append(("GPU-hours", "gpu"))
    found += [("a call", "per-call"), ("1k tokens", "per-tokens")]
    if any(row.estimated for row in rows):
        found.append(("estimated", "estimated"))
    return found


def _line(made: Report, row: ReportRow, kinds: Sequence[str], whole: dict[str, Decimal], *, foot: bool = False) -> str:
    if foot:
        names = [
            element(
                "th",
                f"total{'' if len(made.totals) == 1 else ' ' + text(row.currency)}",
                scope="row",
                colspan=max(1, len(made.by)),
            )
        ]
    elif row.idle or row.others:
        names = [element("th", text(_title(made, row)), scope="row", colspan=max(1, len(made.by)), class_="sum")]
    else:
        names = [_head(row.key[key]) for key in made.by] or ["<th></th>"]
    cells = [_cell(made, row, kind, whole, foot=foot) for kind in kinds]
    return f"<tr{' class=gone' if row.state == 'gone' else ''}>{''.join([*names, *cells])}</tr>"


def _head(value: str) -> str:
    """What a row is of; a long one, which may be cut short, in whole under the pointer."""
    name = value or "(none)"
    return element("th", text(name), scope="row", title=name if len(name) > _LONG else None)


def _cell(made: Report, row: ReportRow, kind: str, whole: dict[str, Decimal], *, foot: bool) -> str:
    value, shown = _value(made, row, kind, whole, foot=foot)
    return element("td", shown, class_=kind, data_value=None if value is None else f"{value:f}")


def _value(
    made: Report, row: ReportRow, kind: str, whole: dict[str, Decimal], *, foot: bool
) -> tuple[Decimal | None, str]:
    """What a column sorts by, and its HTML."""
    if kind == "share":
        share = _share(row, whole)
        return share, "" if foot else f"<span>{share:.0%}</span>" + _bar(share)
    if kind == "change":
        return row.change, _change(row) if row.state else ""
    if kind == "trend":
        return None, sparkline(row.trend or (), _trend_said(row, made))
    money = {
        "cost": row.effective, "billed": row.amount, "amortised": row.amortised, "per-call": row.per_call,
        "per-tokens": row.per_1k_tokens, "estimated": row.estimated or None,
    }  # fmt: skip
    if kind in money:
        amount = money[kind]
        mark = "≈ " if kind == "cost" and row.estimated else ""
        return amount, "" if amount is None else text(mark + format_money(amount, row.currency))
    counts: dict[str, Quantity] = {
        "calls": row.calls, "input": row.input_tokens, "output": row.output_tokens,
        "gpu": Decimal(row.gpu_seconds) / 3600,
    }  # fmt: skip
    count = Decimal(counts[kind])
    return count, (f"{count:,.0f}" if kind == "calls" else compact(count)) if count else ""


def _trend_said(row: ReportRow, made: Report) -> str:
    points = row.trend or (NOTHING,)
    highest = max(points, key=lambda point: point.amount or Decimal(0))
    if made.steps is None or not highest.amount:
        return "no spend"
    at = to_datetime(made.steps.starts[points.index(highest)])
    return f"highest {format_money(highest.amount, row.currency)} at {at:%Y-%m-%d %H:%M}"


# --- what is apart -------------------------------------------------------------------------------------------------------


def _missing(made: Report, models: Report | None) -> str:
    rows = [row for row in made.rows if row.unpriced_calls]
    if not rows:
        return ""
    lines = []
    for row in rows:
        if row.others:
            names = element("th", text(_title(made, row)), scope="row", colspan=max(1, len(made.by)))
        else:
            names = "".join(_head(row.key[key]) for key in made.by) or '<th scope="row">all</th>'
        bounds = (
            ""
            if row.amount is not None or row.cost.upper is None
            else f"at most {format_money(row.cost.upper, row.currency)}"
        )
        cells = [f"{row.unpriced_calls:,}", compact(row.unpriced_tokens), bounds]
        lines.append(f"<tr>{names}{''.join(element('td', text(cell)) for cell in cells)}</tr>")
    head = "".join(element("th", text(key), scope="col", class_="key") for key in made.by or ("",))
    head += "".join(element("th", text(cell), scope="col") for cell in ("calls", "tokens", "bound"))
    table = f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    scroll = element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Calls without a price")
    said = "What these calls cost nobody knows: they are in no amount of this page. Add a price to have them counted"
    unpriced = [] if models is None else [row.key["model"] or "(none)" for row in models.rows if row.unpriced_calls]
    said += f" (models: {', '.join(unpriced[:_MODELS])})." if unpriced else "."
    return element(
        "section",
        element("h2", "Without a price"),
        element("p", text(said), class_="lead"),
        scroll,
        class_="panel missing",
    )


def _notes(made: Report) -> str:
    from aifinops.analytics.report_text import capacity_notes

    notes = list(capacity_notes(made))
    earlier = sum(row.previous.unpriced_calls for row in made.totals if row.previous is not None)
    if earlier:
        notes.append(f"{earlier:,} calls of the period before have no price, so they are in no change.")
    if any(row.estimated for row in made.totals):
        notes.append("≈: a part of the amount is estimated. The true amount lies between its bounds.")
    return element("section", *(element("p", text(note)) for note in notes), class_="notes") if notes else ""


def _footer(made: Report) -> str:
    at = to_datetime(made.made_ns)
    return element(
        "footer",
        f"Made {at.day} {at:%b %Y, %H:%M} UTC by aifinops {__version__}. Times are UTC. Amounts are those of the ledger, not of a bill.",
    )
