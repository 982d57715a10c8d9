"""How spend went over a period, step by step, and which period came before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import Any

from aifinops.analytics.report_text import amount_text
from aifinops.clock import to_datetime, to_ns
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import TIME_KEYS, Group, Ledger, Query
from aifinops.money import from_nanos

__all__ = ["NOTHING", "Point", "Steps", "add_points", "before", "exact_sum", "plain_points", "trends"]

Place = tuple[tuple[str, ...], str]
"""A key and a currency: what a row of a report is."""

_EXACT = Context(prec=60)
_NS = 1_000_000_000
_MINUTE, _HOUR, _DAY = 60 * _NS, 3600 * _NS, 86_400 * _NS

# The longest period for each step: never more than a hundred steps, save where months go back for more than eight years.
_STEPS = ((70 * _MINUTE, "minute"), (6 * _HOUR, "5 minutes"), (72 * _HOUR, "hour"), (99 * _DAY, "day"))
_LENGTHS = {"minute": _MINUTE, "5 minutes": 5 * _MINUTE, "hour": _HOUR, "day": _DAY}


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a trend.

    Attributes:
        amount: spent, in the currency of its row; None when there were calls and none has a price, zero when there were none.
        estimated: the part of it that is estimated. calls, unpriced_calls: as in a row.
    """

    amount: Decimal | None = Decimal(0)
    estimated: Decimal = Decimal(0)
    calls: int = 0
    unpriced_calls: int = 0


NOTHING = Point()


@dataclass(frozen=True, slots=True)
class Steps:
    """How a period is cut. Steps begin on the clock (UTC), so the first and the last may be cut short by the period.

    Attributes:
        name: `minute`, `5 minutes`, `hour`, `day` or `month`.
        starts: when each begins, nanoseconds since the epoch, ascending. end: of the last, nanoseconds.
    """

    name: str
    starts: tuple[int, ...]
    end: int

    @classmethod
    def of(cls, since_ns: int, until_ns: int) -> Steps:
        """The steps of a period, chosen so that there are enough to see and few enough to draw."""
        length = until_ns - since_ns
        name = next((name for longest, name in _STEPS if length <= longest), "month")
        if name == "month":
            return cls._months(since_ns, until_ns)
        step = _LENGTHS[name]
        first = since_ns - since_ns % step
        starts = tuple(range(first, max(until_ns, first + 1), step))
        return cls(name, starts, starts[-1] + step)

    @classmethod
    def _months(cls, since_ns: int, until_ns: int) -> Steps:
        at = to_datetime(since_ns).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        starts = []
        while to_ns(at) < until_ns:
            starts.append(to_ns(at))
            at = _next_month(at)
        return cls("month", tuple(starts), to_ns(at))

    def labels(self) -> tuple[str, ...]:
        """The beginning of each step as people read it (UTC), no longer than needed to tell them apart."""
        kept = {"month": 7, "day": 10}.get(self.name, 16)
        return tuple(to_datetime(start).isoformat()[:kept].replace("T", " ") for start in self.starts)


def _next_month(at: datetime) -> datetime:
    return (at + timedelta(days=32)).replace(day=1)


def before(since_ns: int | None, until_ns: int | None, now_ns: int) -> tuple[int, int]:
    """The period of the same length that ends where this one begins; of one that lies partly ahead, the part until now counts.

    Raises:
        ConfigurationError: when the period has no beginning, so that nothing comes before it.
    """
    if since_ns is None:
        raise ConfigurationError(
            'a comparison needs a beginning: say since="7d" (--since 7d), then the 7 days before are compared'
        )
    end = now_ns if until_ns is None else until_ns
    if since_ns < now_ns < end:
        end = now_ns
    length = end - since_ns
    if length <= 0:
        raise ConfigurationError("nothing can be compared with a period that has not begun; say an earlier since")
    return since_ns - length, since_ns


def trends(
    ledger: Ledger, query: Query, by: Sequence[str], now_ns: int
) -> tuple[Steps | None, Mapping[Place, tuple[Point, ...]]]:
    """What each key spent in each step of the period of `query`; no steps where nothing was spent.

    The points of a key add up to its row: both are the ledger's own sums.

    Raises:
        ConfigurationError: for a wrong key. StoreError: when the ledger cannot be read.
    """
    bounds = _bounds(ledger, query, now_ns)
    if bounds is None:
        return None, {}
    steps = Steps.of(*bounds)
    found: dict[Place, list[Point]] = {}
    for number, group in _by_step(ledger, query, by, steps):
        points = found.setdefault((group.key[: len(by)], group.currency), [NOTHING] * len(steps.starts))
        points[number] = _point(group)
    return steps, {place: tuple(points) for place, points in found.items()}


def _bounds(ledger: Ledger, query: Query, now_ns: int) -> tuple[int, int] | None:
    first = next(iter(ledger.rows(replace(query, limit=1))), None)
    if first is None:
        return None
    last = next(iter(ledger.rows(replace(query, limit=1, newest_first=True))), first)
    # A clock of another machine may be ahead of ours: no call falls off the end.
    end = max(now_ns, last.at + 1) if query.until_ns is None else min(query.until_ns, max(now_ns, last.at + 1))
    return (first.at if query.since_ns is None else query.since_ns), end


def _by_step(ledger: Ledger, query: Query, by: Sequence[str], steps: Steps) -> Iterable[tuple[int, Group]]:
    if steps.name in TIME_KEYS:
        kept = TIME_KEYS[steps.name]
        numbers = {to_datetime(start).isoformat()[:kept]: number for number, start in enumerate(steps.starts)}
        for group in ledger.summarize(query, (*by, steps.name)):
            yield numbers[group.key[-1]], group
        return
    # A ledger groups by nothing finer than hours. Each step is a short piece of an index, and together they are read once.
    for number, (start, end) in enumerate(zip(steps.starts, (*steps.starts[1:], steps.end), strict=True)):
        since = start if query.since_ns is None else max(start, query.since_ns)
        until = end if query.until_ns is None else min(end, query.until_ns)
        for group in ledger.summarize(replace(query, since_ns=since, until_ns=until), by):
            yield number, group


def _point(group: Group) -> Point:
    amount = None if group.amount is None else from_nanos(group.amount)
    return Point(amount, from_nanos(group.estimated), group.calls, group.unpriced_calls)


def add_points(many: Iterable[Sequence[Point]]) -> tuple[Point, ...]:
    """The sums, step by step; unknown only where nothing is known and something was called."""
    return tuple(map(_sum, zip(*many, strict=True)))


def _sum(points: Sequence[Point]) -> Point:
    called = [point for point in points if point.calls or point.amount]
    if not called:
        return NOTHING
    known = [point.amount for point in called if point.amount is not None]
    return Point(
        exact_sum(known) if known else None,
        exact_sum([point.estimated for point in called]),
        sum(point.calls for point in called),
        sum(point.unpriced_calls for point in called),
    )


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """A sum to the last digit."""
    total = Decimal(0)
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


def plain_points(points: Sequence[Point]) -> dict[str, Any]:
    """For JSON: money as text, unknown as null."""
    return {
        "cost": [amount_text(point.amount) for point in points],
        "calls": [point.calls for point in points],
        "unpriced_calls": [point.unpriced_calls for point in points],
    }
