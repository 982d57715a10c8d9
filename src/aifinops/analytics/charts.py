"""Charts as inline SVG, drawn from exact amounts; colours and fonts come from the style sheet of the page.

The drawings stretch with the page, so all that is text (axes, legends) is HTML beside them and keeps its size on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from aifinops.analytics.markup import element, text
from aifinops.analytics.report_text import calls_text
from aifinops.analytics.trends import Point, Steps
from aifinops.clock import to_datetime
from aifinops.money import format_money

__all__ = ["Series", "sparkline", "stacked", "step_name"]

_LABELS = 6
"""About so many labels on the axis of time."""

_TICKS = 4


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of a chart.

    Attributes:
        name: in the legend. points: one a step. colour: number of its colour in the style sheet; 0 is that of all others.
    """

    name: str
    points: tuple[Point, ...]
    colour: int


def step_name(start: int, steps: Steps) -> str:
    """A step as people say it: `12 Nov 2026`, `14:00, 12 Nov`, `November 2026`; UTC."""
    at = to_datetime(start)
    if steps.name == "month":
        return f"{at:%B %Y}"
    return f"{at.day} {at:%b %Y}" if steps.name == "day" else f"{at:%H:%M}, {at.day} {at:%b}"


def stacked(series: Sequence[Series], total: Sequence[Point], steps: Steps, currency: str, name: str) -> str:
    """Spend in each step as a column of all series, with axes, a legend, and a table of the same figures.

    What is below zero (corrections) is drawn as nothing; the table has it as it is.
    """
    tops = [sum((_height(one.points[place]) for one in series), Decimal(0)) for place in range(len(steps.starts))]
    ticks = _ticks(max(tops, default=Decimal(0)))
    columns = "".join(_column(series, total, steps, place, ticks[-1], currency) for place in range(len(steps.starts)))
    peak = max(range(len(tops)), key=tops.__getitem__)
    said = f"{name}, a column for each {steps.name}. The highest: {format_money(tops[peak], currency)}, {step_name(steps.starts[peak], steps)}."
    drawing = (
        f'<svg class="plot" viewBox="0 0 {len(tops) * 10} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(said)}"><title>{text(name)}</title><desc>{text(said)}</desc>{columns}</svg>'
    )
    return element(
        "figure",
        _legend(series, unpriced=any(point.unpriced_calls for point in total)),
        element("div", _amounts(ticks, currency), element("div", drawing, _unpriced(total, steps), class_="area"), _times(steps), class_="chart"),
        _figures(series, total, steps, currency, name),
        class_="over-time",
    )  # fmt: skip


def _height(point: Point) -> Decimal:
    return max(Decimal(0), point.amount or Decimal(0))


def _ticks(highest: Decimal) -> list[Decimal]:
    """Round amounts from zero to above the highest: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if highest <= 0:
        return [Decimal(0), Decimal(1)]
    rough = highest / _TICKS
    power = Decimal(1).scaleb(rough.adjusted())
    step = next(
        power * factor
        for factor in (Decimal(1), Decimal(2), Decimal("2.5"), Decimal(5), Decimal(10))
        if power * factor >= rough
    )
    count = int(highest // step) + (1 if highest % step else 0)
    return [step * number for number in range(count + 1)]


def _column(
    series: Sequence[Series], total: Sequence[Point], steps: Steps, place: int, top: Decimal, currency: str
) -> str:
    parts, below, lines = [], Decimal(0), []
    for one in series:
        height = _height(one.points[place])
        if height:
            share, base = height * 100 / top, below * 100 / top
            tall = " tall" if share >= 3 else ""
            parts.append(
                f'<rect class="s{one.colour}{tall}" x="{place * 10 + 1}" y="{100 - base - share:.3f}" width="8" height="{share:.3f}"/>'
            )
            below += height
            lines.append(f"{one.name}: {format_money(one.points[place].amount, currency)}")
    return (
        f'<g class="col"><title>{text(_told(total[place], steps, place, currency))}'
        f"{''.join('&#10;' + text(line) for line in reversed(lines)) if len(series) > 1 else ''}</title>"
        f'<rect class="hit" x="{place * 10}" y="0" width="10" height="100"/>{"".join(parts)}</g>'
    )


def _told(point: Point, steps: Steps, place: int, currency: str) -> str:
    said = f"{step_name(steps.starts[place], steps)}: {format_money(point.amount, currency)}"
    if point.estimated:
        said += f", {format_money(point.estimated, currency)} of it estimated"
    if point.unpriced_calls:
        said += f", and {calls_text(point.unpriced_calls)} without a price"
    return said


def _unpriced(total: Sequence[Point], steps: Steps) -> str:
    """A mark below each step that has calls of unknown cost: they are in no column."""
    marks = "".join(
        f'<rect x="{place * 10 + 1}" y="0" width="8" height="4"><title>{text(step_name(steps.starts[place], steps))}: '
        f"{text(calls_text(point.unpriced_calls))} without a price</title></rect>"
        for place, point in enumerate(total)
        if point.unpriced_calls
    )
    if not marks:
        return ""
    return (
        f'<svg class="missing" viewBox="0 0 {len(total) * 10} 4" preserveAspectRatio="none" role="img" '
        f'aria-label="Marks where calls have no price"><title>Calls without a price</title>{marks}</svg>'
    )


def _amounts(ticks: Sequence[Decimal], currency: str) -> str:
    places = max(0, -int(ticks[1].normalize().as_tuple().exponent))
    labels = [
        f'<span style="bottom:{100 * tick / ticks[-1]:.2f}%"><b>{text(format_money(tick, currency, places=places))}</b></span>'
        for tick in ticks
    ]
    return element("div", *labels, class_="amounts", aria_hidden="true")


def _times(steps: Steps) -> str:
    count = len(steps.starts)
    every = max(1, -(-count // _LABELS))
    labels = []
    for number, place in enumerate(range(0, count, every)):
        left = (place + 0.5) * 100 / count
        side = "first" if left < 8 else "last" if left > 92 else None
        spare = "spare" if number % 2 else None
        labels.append(
            element(
                "span",
                text(_axis(to_datetime(steps.starts[place]), steps)),
                class_=" ".join(filter(None, (side, spare))) or None,
                style=f"left:{left:.2f}%",
            )
        )
    return element("div", *labels, class_="times", aria_hidden="true")


def _axis(at: datetime, steps: Steps) -> str:
    if steps.name == "month":
        return f"{at:%b %Y}"
    if steps.name == "day" or (at.hour, at.minute) == (0, 0):
        return f"{at.day} {at:%b}"
    return f"{at:%H:%M}"


def _legend(series: Sequence[Series], *, unpriced: bool) -> str:
    items = [f'<li><i class="s{one.colour}"></i>{text(one.name)}</li>' for one in series] if len(series) > 1 else []
    if unpriced:
        items.append('<li><i class="none"></i>calls without a price</li>')
    return element("ul", *items, class_="legend") if items else ""


def _figures(series: Sequence[Series], total: Sequence[Point], steps: Steps, currency: str, name: str) -> str:
    """The chart as a table, for who cannot see it and for who wants the numbers."""
    several = series if len(series) > 1 else ()
    estimated = any(point.estimated for point in total)
    unpriced = any(point.unpriced_calls for point in total)
    head = [
        steps.name,
        *(one.name for one in several),
        "total",
        *(["estimated"] if estimated else []),
        *(["no price"] if unpriced else []),
    ]
    lines = []
    for place, start in enumerate(steps.starts):
        cells = [format_money(one.points[place].amount, currency) for one in (*several, Series("", tuple(total), 0))]
        cells += [format_money(total[place].estimated, currency)] if estimated else []
        cells += [f"{total[place].unpriced_calls:,}"] if unpriced else []
        row = element("th", text(step_name(start, steps)), scope="row") + "".join(
            element("td", text(cell)) for cell in cells
        )
        lines.append(f"<tr>{row}</tr>")
    heads = "".join(element("th", text(cell), scope="col") for cell in head)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return (
        f"<details><summary>The figures of this chart</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(name)}, figures">{table}</div></details>'
    )


def sparkline(points: Sequence[Point], name: str) -> str:
    """A small chart without axes for a row of a table: columns, and a hollow mark where calls have no price."""
    highest = max(map(_height, points), default=Decimal(0))
    parts = []
    for place, point in enumerate(points):
        height = _height(point) * 18 / highest if highest else Decimal(0)
        if height:
            drawn = max(height, Decimal(1))
            parts.append(f'<rect x="{place * 4}" y="{20 - drawn:.2f}" width="3" height="{drawn:.2f}"/>')
        elif point.unpriced_calls:
            parts.append(f'<rect class="none" x="{place * 4}" y="18" width="3" height="2"/>')
    return (
        f'<svg class="spark" viewBox="0 0 {max(1, len(points) * 4 - 1)} 20" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(name)}">{"".join(parts)}</svg>'
    )
