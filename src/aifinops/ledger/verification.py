"""Looking through an SQLite ledger: is the file sound, can each entry be read, do lines and roll-ups add up?"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from aifinops.clock import to_datetime
from aifinops.ledger.base import DAY_NS, Problem, Progress, Verification, problems_of, start_of
from aifinops.ledger.codec import COLUMNS, METER_COLUMNS, charge_of, load_quantities
from aifinops.ledger.rollups import DAY, DIMENSIONS, GONE, HOUR, SUMS, State, by_dimension, joined

__all__ = ["verify"]

_PAGE = 1_000
_NAMES = ", ".join(COLUMNS)
_WIDTH = len(DIMENSIONS)
_METERS = range(SUMS.index(METER_COLUMNS[0]), SUMS.index(METER_COLUMNS[0]) + len(METER_COLUMNS))

Sums = dict[tuple[Any, ...], tuple[Any, ...]]


def verify(connection: sqlite3.Connection, progress: Progress | None = None) -> Verification:
    """Everything that is wrong, of one view of the file."""
    problems: list[Problem] = []
    found = 0
    entries = _Entries(connection, progress)
    for problem in _problems(connection, entries):
        found += 1
        if len(problems) < Verification.MOST:
            problems.append(problem)
    return Verification(entries.seen, tuple(problems), found)


def _problems(connection: sqlite3.Connection, entries: _Entries) -> Iterator[Problem]:
    try:
        for (text,) in connection.execute("PRAGMA integrity_check"):
            if text != "ok":
                yield Problem("damaged", "", text)
        yield from entries
        for (name,) in connection.execute("SELECT id FROM charges WHERE id IN (SELECT id FROM gone)"):
            yield Problem("duplicate", name, "it is there although it was compacted: it counts twice")
        yield from _rollups(connection)
    except sqlite3.Error as error:
        yield Problem("damaged", "", f"the rest cannot be read: {error}")


class _Entries:
    """What is wrong with single entries."""

    def __init__(self, connection: sqlite3.Connection, progress: Progress | None) -> None:
        self._connection = connection
        self._progress = progress
        self.seen = 0

    def __iter__(self) -> Iterator[Problem]:
        ((total,),) = self._connection.execute("SELECT count(*) FROM charges")
        for page in self._pages():
            self.seen += len(page)
            for _, *row in page:
                yield from _problems_of(row)
            if self._progress is not None:
                self._progress(self.seen, total)

    def _pages(self) -> Iterator[list[tuple[Any, ...]]]:
        last = -(2**63)
        select = f"SELECT rowid, {_NAMES} FROM charges WHERE rowid > ? ORDER BY rowid LIMIT {_PAGE}"  # noqa: S608 - names of ours
        while page := self._connection.execute(select, (last,)).fetchall():
            yield page
            last = page[-1][0]


def _problems_of(row: Sequence[Any]) -> list[Problem]:
    try:
        return problems_of(charge_of(row))
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # what damaged JSON leads to
        return [Problem("unreadable", str(row[0]), f"{type(error).__name__}: {error}")]


# --- roll-ups ---------------------------------------------------------------------------------------------------------


def _rollups(connection: sqlite3.Connection) -> Iterator[Problem]:
    state = State.of(connection)
    if state.rolled is None:
        yield Problem(
            "rollup", "", "the entry up to which roll-ups go is missing: aifinops ledger migrate makes them anew"
        )
        return
    days = {day for (day,) in connection.execute("SELECT DISTINCT at FROM rollups WHERE grain IN (?, ?)", (DAY, GONE))}
    days |= set(_days(connection, state.rolled))
    for day in sorted(days):
        hours = _rows(connection, state.rolled, day)
        whole = _added(hours)
        for place, sums in _kept(connection, GONE, day).items():
            own = (day, *place[1:])
            whole[own] = joined(whole[own], sums) if own in whole else sums
        yield from _differences(day, "its", whole, _kept(connection, DAY, day))
        if state.first is None or state.until is None or not state.first <= day < state.until:
            yield from _differences(day, "an hour's", hours, _kept(connection, HOUR, day))


def _days(connection: sqlite3.Connection, rolled: int) -> Iterator[int]:
    at: int | None = -(2**63)
    while True:
        ((at,),) = connection.execute("SELECT min(at) FROM charges WHERE at >= ? AND +rowid <= ?", (at, rolled))
        if at is None:
            return
        yield (day := start_of(at, DAY_NS))
        at = day + DAY_NS


def _rows(connection: sqlite3.Connection, rolled: int, day: int) -> Sums:
    where = f"at >= {day} AND at < {day + DAY_NS} AND +rowid <= {rolled}"
    rows = connection.execute(by_dimension(where, "exact_sum", rolled))
    return {row[: _WIDTH + 1]: row[_WIDTH + 1 :] for row in rows}


def _kept(connection: sqlite3.Connection, grain: int, day: int) -> Sums:
    names = ["at", *(name for name in DIMENSIONS if name != "currency"), "currency"]
    rows = connection.execute(
        f"SELECT {', '.join(names)}, {', '.join(f'rollups.{name}' for name in SUMS)} FROM rollups JOIN dimensions "  # noqa: S608 - as above
        "ON dimensions.id = dimension WHERE grain = ? AND at >= ? AND at < ?",
        (grain, day, day + DAY_NS),
    )
    return {row[: len(names)]: row[len(names) :] for row in rows}


def _added(hours: Sums) -> Sums:
    found: Sums = {}
    for (hour, *rest), sums in hours.items():
        place = (start_of(hour, DAY_NS), *rest)
        found[place] = joined(found[place], sums) if place in found else sums
    return found


def _differences(day: int, what: str, wanted: Sums, found: Sums) -> Iterator[Problem]:
    for place in wanted.keys() | found.keys():
        right, kept = (_plain(sums.get(place)) for sums in (wanted, found))
        wrong = [name for name, one, other in zip(SUMS, right, kept, strict=True) if one != other]
        if wrong:
            of = ", ".join(str(part) for part in place[1:] if part)
            name = wrong[0]
            one, other = right[SUMS.index(name)], kept[SUMS.index(name)]
            date = to_datetime(day).date().isoformat()
            yield Problem("rollup", date, f"{what} roll-up of {of} has {name} {other}, its entries have {one}")


def _plain(sums: Sequence[Any] | None) -> list[Any]:
    """Forms that only differ in how they are written become one."""
    if sums is None:
        return [None if place in _METERS else 0 for place in range(len(SUMS) - 2)] + [{}, {}]
    numbers = [
        value if value is None and place in _METERS else int(value or 0) for place, value in enumerate(sums[:-2])
    ]
    return [
        *numbers,
        *({name: value for name, value in load_quantities(text or "{}").items() if value} for text in sums[-2:]),
    ]
