"""Hourly roll-ups of a ledger in ClickHouse: which hours have one that is right, and how others get one.

Before anybody writes entries of an hour he *touches* it. A roll-up has the sum of touches as it was before the roll-up was made; where that
is no longer the sum, the hour is read entry by entry. See decision 0027.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from aifinops.errors import StoreError
from aifinops.ledger.base import DAY_NS, HOUR_NS, GroupKey, Query, start_of
from aifinops.ledger.clickhouse_compaction import CHARGES, DAILY, Gone, left
from aifinops.ledger.clickhouse_link import Link
from aifinops.ledger.clickhouse_statements import KEPT, add_up, cell_keys, cells_of, entries_of, keys_of, where_of
from aifinops.ledger.sql import Period

__all__ = ["Hour", "Rollups", "daily_parts", "gone_parts", "rolled_parts"]

_HOURS = 31 * 24
_RANGES = 8


class Hour(NamedTuple):
    """An hour in which there are entries: when it begins, what it was touched with, the roll-up that is right (0: none), and whether it is quiet."""

    at: int
    times: int
    mark: int
    build: int
    quiet: bool


class Rollups:
    """The hours of a ledger and their roll-ups.

    Args:
        link: to a database whose tables are there.
        quiet_s: how long nobody must have touched an hour before it is rolled up, seconds.
    """

    def __init__(self, link: Link, quiet_s: float) -> None:
        self._link = link
        self._db = link.database
        self._source = f"{link.database}.{CHARGES} FINAL"
        self._quiet_s = quiet_s

    def touch(self, hours: Sequence[int]) -> None:
        """Say that entries of these hours come, or change: roll-ups of before do not count any more.

        Raises:
            StoreError: when the server cannot be written.
        """
        mark = int.from_bytes(os.urandom(8), "big")
        rows = "\n".join(f"[{at}, 1, {mark}]" for at in hours)
        self._link.insert(f"{self._db}.aifinops_touches", ("at", "times", "mark"), rows.encode())

    def roll_up(self, gone: Gone) -> int:
        """Roll up all quiet hours that have changed and are of no compacted day; how many there were.

        Raises:
            StoreError: when the server cannot be written.
        """
        self.settle()
        stale = [hour for hour in self.hours() if not hour.build and hour.quiet and not _of(hour, gone)]
        self._roll_up(stale)
        return len(stale)

    def within(self, period: Period, gone: Gone) -> list[Hour]:
        """The hours of a period that are of no compacted day, rolled up where that can be.

        Raises:
            StoreError: when the server cannot be read.
        """
        lately = self.settle()
        hours = [hour for hour in self.hours() if _within(hour.at, period) and not _of(hour, gone)]
        stale = [hour for hour in hours if not hour.build and hour.quiet]
        if stale:
            with suppress(
                StoreError
            ):  # who may only read adds up entries; a server that is away fails the question itself
                self._roll_up(stale)
            hours = [hour for hour in self.hours() if _within(hour.at, period) and not _of(hour, gone)]
        return [hour._replace(build=0) if hour.at in lately else hour for hour in hours]

    def settle(self) -> set[int]:
        """Touch the hours of what was corrected, once no correction of that time can be on its way any more.

        Returns:
            Hours whose roll-ups may have been made without a correction.
        """
        ((until, now),) = self._link.query(
            f"SELECT (SELECT max(until) FROM {self._db}.aifinops_corrections), toUnixTimestamp64Nano(now64(9))"  # noqa: S608 - names of ours
        )
        since, cut = int(until), int(now) - int(self._quiet_s * 1e9)
        old, new = self._corrected(since, cut), self._corrected(max(since, cut), None)
        if old:
            try:
                self.touch(sorted(old))
                self._link.insert(f"{self._db}.aifinops_corrections", ("until",), f"[{cut}]".encode())
            except StoreError:
                return old | new  # as in `within`
        return new

    def _corrected(self, since: int, until: int | None) -> set[int]:
        """The hours of unsure entries whose corrections were kept in a period."""
        kept = f"corrects <> '' AND amount IS NOT NULL AND {KEPT} >= {since}" + (f" AND {KEPT} < {until}" if until is not None else "")  # fmt: skip
        table = f"{self._db}.{CHARGES}"
        ((count,),) = self._link.query(f"SELECT count() FROM {table} WHERE {kept}")  # noqa: S608 - names of ours and integers
        if count == "0":
            return set()
        rows = self._link.query(
            f"SELECT DISTINCT at - at % {HOUR_NS} FROM {table} WHERE uncertain AND id IN (SELECT corrects FROM {table} WHERE {kept})"  # noqa: S608 - names of ours and integers
        )
        return {int(at) for (at,) in rows}

    def hours(self) -> list[Hour]:
        """All hours in which there are entries, in order.

        Raises:
            StoreError: when the server cannot be read.
        """
        rows = self._link.query(f"""
            SELECT touched.at, touched.times, touched.mark,
                if(built.times = touched.times AND built.mark = touched.mark, built.build, 0),
                touched.last < now64(3) - toIntervalMillisecond({int(self._quiet_s * 1000)})
            FROM (SELECT at, sum(times) AS times, sum(mark) AS mark, max(last) AS last FROM {self._db}.aifinops_touches GROUP BY at) AS touched
            LEFT JOIN (SELECT at, build, times, mark FROM {self._db}.aifinops_builds FINAL) AS built ON touched.at = built.at
            ORDER BY touched.at""")  # noqa: S608 - names of ours
        return [Hour(int(at), int(times), int(mark), int(build), bool(quiet)) for at, times, mark, build, quiet in rows]

    def _roll_up(self, hours: Sequence[Hour]) -> None:
        for start in range(0, len(hours), _HOURS):
            self._build(hours[start : start + _HOURS])

    def _build(self, hours: Sequence[Hour]) -> None:
        """Roll some hours up. Their touches were read before, the entries are read now: what comes in between makes the roll-up wrong,
        and is seen by its touch."""
        build = time.time_ns() // 1000 * 1000 + int.from_bytes(os.urandom(2), "big") % 1000  # newer ones are greater
        entries = entries_of(self._source, cell_keys(f"at - at % {HOUR_NS}"), _in(hours))
        self._link.command(add_up(f"{self._db}.aifinops_hourly", build, entries))
        rows = "\n".join(f"[{hour.at}, {build}, {hour.times}, {hour.mark}]" for hour in hours)
        self._link.insert(f"{self._db}.aifinops_builds", ("at", "build", "times", "mark"), rows.encode())


def _of(hour: Hour, gone: Gone) -> bool:
    """Whether an hour is of a compacted day."""
    return start_of(hour.at, DAY_NS) in gone.days


def gone_parts(db: str, query: Query, keys: Sequence[GroupKey], period: Period, gone: Gone) -> list[str]:
    """What to add up of compacted days: their sums, and the entries that are left. A question has such days as a whole or not at all."""
    days = sorted(day for day in gone.days if _within(day, period))
    if not days:
        return []
    filters = where_of(query, (period.first, period.last))
    entries = f"at >= {days[0]} AND at < {days[-1] + DAY_NS} AND at - at % {DAY_NS} IN ({', '.join(map(str, days))})"
    selected = keys_of(keys)
    return [
        entries_of(f"{db}.{CHARGES} FINAL", selected, f"{entries} AND {filters} AND {left(db, gone)}"),
        *daily_parts(db, selected, gone, filters),
    ]


def daily_parts(db: str, selected: str, gone: Gone, where: str) -> list[str]:
    """What to add up of entries that are gone: the daily sums of committed builds."""
    if not gone.builds:
        return []
    builds = ", ".join(map(str, gone.builds))
    return [cells_of(f"{db}.{DAILY}", selected, f"build IN ({builds}) AND {where}")]


def rolled_parts(
    db: str, query: Query, keys: Sequence[GroupKey], period: Period, hours: Sequence[Hour], only: str
) -> list[str]:
    """What to add up: cells of the hours that have a right roll-up, entries of the others and of the ends."""
    source = f"{db}.{CHARGES} FINAL"
    rolled = [hour for hour in hours if hour.build]
    others = [hour for hour in hours if not hour.build]
    filters = where_of(query, (None, None))
    selected = keys_of(keys)
    parts = []
    if rolled:
        builds = ", ".join(f"({hour.at}, {hour.build})" for hour in rolled)
        parts.append(cells_of(f"{db}.aifinops_hourly", selected, f"(at, build) IN ({builds}) AND {filters}"))
    if others:
        parts.append(entries_of(source, selected, f"{_in(others)} AND {filters} AND {only}"))
    parts += [entries_of(source, selected, f"{where_of(query, end)} AND {only}") for end in period.ends]
    return parts


def _within(at: int, period: Period) -> bool:
    return (period.first is None or at >= period.first) and (period.last is None or at < period.last)


def _in(hours: Sequence[Hour]) -> str:
    """SQL: an entry is of one of these hours, which are in order."""
    ranges: list[tuple[int, int]] = []
    for hour in hours:
        if ranges and ranges[-1][1] == hour.at:
            ranges[-1] = (ranges[-1][0], hour.at + HOUR_NS)
        else:
            ranges.append((hour.at, hour.at + HOUR_NS))
    if len(ranges) <= _RANGES:
        return "(" + " OR ".join(f"(at >= {start} AND at < {end})" for start, end in ranges) + ")"
    every = ", ".join(str(hour.at) for hour in hours)
    return f"at >= {ranges[0][0]} AND at < {ranges[-1][1]} AND at - at % {HOUR_NS} IN ({every})"
