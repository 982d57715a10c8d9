"""Compaction of an SQLite ledger: detailed entries of old days go, their sums by day and their ids stay.

Each step is one short transaction that leaves the file whole, and says in `state` which days detailed questions cannot be asked of. For
their order see `aifinops.ledger.passes`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aifinops.ledger.base import DAY_NS, start_of
from aifinops.ledger.passes import DayByDay
from aifinops.ledger.rollups import GONE, HOUR, State, fill_batch, pour_batch, remember

__all__ = ["STEP", "Run", "shrink"]

STEP = 1_000
"""Entries that go in one transaction; others cannot write meanwhile."""

_PAGES = 500

# Late ones of an id that is gone are ignored like any known id. Made with the first compaction: until then it costs nothing.
_TRIGGER = """CREATE TRIGGER IF NOT EXISTS charges_gone BEFORE INSERT ON charges
WHEN EXISTS (SELECT 1 FROM gone WHERE gone.id = NEW.id) BEGIN SELECT RAISE(IGNORE); END"""

_SURE = """((amount IS NOT NULL AND basis <> 'estimated') OR EXISTS (
    SELECT 1 FROM charges AS fix WHERE fix.corrects <> '' AND fix.corrects = charges.id AND fix.amount IS NOT NULL AND fix.rowid <= {rolled}
))"""
_FIRST = "(corrects = '' OR amount IS NULL)"
_THEN = """corrects <> '' AND amount IS NOT NULL AND (EXISTS (SELECT 1 FROM gone WHERE gone.id = charges.corrects) OR EXISTS (
    SELECT 1 FROM charges AS target WHERE target.id = charges.corrects AND target.amount IS NOT NULL AND target.basis <> 'estimated'
))"""


class Run(DayByDay):
    """One compaction up to a day.

    Args:
        writing: a transaction of the ledger's connection, for each step anew. until: the day, nanoseconds.

    Attributes:
        entries: that are gone. since: the first day of which there were any, nanoseconds.
    """

    def __init__(self, writing: Callable[[], Iterator[sqlite3.Connection]], until: int) -> None:
        super().__init__(until)
        self._writing = contextmanager(writing)

    def steps(self) -> Iterator[int]:
        """Do one step after the other; how many entries went in each."""
        yield from self._passes(_FIRST, _THEN)
        if self.entries:
            with self._writing() as connection:
                _reach(connection, None, self._until)

    def _next(self, since: int | None) -> int | None:
        """The day of the earliest entry from there on."""
        with self._writing() as connection:
            ((at,),) = connection.execute(
                "SELECT min(at) FROM charges WHERE at < ? AND at >= ?",
                (self._until, -(2**63) if since is None else since),
            )
        return None if at is None else start_of(at, DAY_NS)

    def _step(self, day: int, which: str) -> int:
        with self._writing() as connection:
            rolled = State.of(connection).rolled or 0
            chosen = _choose(connection, day, f"{which} AND {_SURE.format(rolled=rolled)}", rolled)
            if chosen:
                connection.execute(_TRIGGER)
                _reach(connection, day, day + DAY_NS)
                _move(connection, rolled)
            return chosen


def _choose(connection: sqlite3.Connection, day: int, which: str, rolled: int) -> int:
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS chosen (number INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM chosen")
    connection.execute(
        "INSERT INTO chosen SELECT rowid FROM charges "  # noqa: S608 - only names and numbers of ours
        f"WHERE at >= ? AND at < ? AND +rowid <= ? AND {which} LIMIT ?",
        (day, day + DAY_NS, rolled, STEP),
    )
    ((count,),) = connection.execute("SELECT count(*) FROM chosen")
    return int(count)


def _move(connection: sqlite3.Connection, rolled: int) -> None:
    chosen = "rowid IN (SELECT number FROM chosen)"
    fill_batch(connection, chosen, rolled)
    pour_batch(connection, GONE)
    connection.execute(f"INSERT OR IGNORE INTO gone SELECT id FROM charges WHERE {chosen} ORDER BY id")  # noqa: S608 - as above
    state = State.of(connection)
    ((first, last),) = connection.execute(f"SELECT min(at), max(at) FROM charges WHERE {chosen}")  # noqa: S608 - as above
    # The mark must be an entry that stays: the newest of those that are rolled up.
    found = connection.execute(
        "SELECT id FROM charges WHERE rowid <= ? AND rowid NOT IN (SELECT number FROM chosen) ORDER BY rowid DESC LIMIT 1",
        (rolled,),
    ).fetchone()
    connection.execute(f"DELETE FROM charges WHERE {chosen}")  # noqa: S608 - as above
    remember(
        connection,
        rolled=found[0] if found else None,
        first_at=first if state.first_at is None else min(first, state.first_at),
        last_at=last if state.last_at is None else max(last, state.last_at),
    )


def _reach(connection: sqlite3.Connection, first: int | None, until: int) -> None:
    """Detailed questions cannot be asked of these days any more; hours are details."""
    state = State.of(connection)
    begin = min(day for day in (first, state.first) if day is not None)
    end = until if state.until is None else max(until, state.until)
    if (begin, end) != (state.first, state.until):
        remember(connection, first=begin, until=end)
        connection.execute("DELETE FROM rollups WHERE grain = ? AND at >= ? AND at < ?", (HOUR, begin, end))


def shrink(connection: sqlite3.Connection) -> bool:
    """Give some free pages at the end of the file back to the system; False when there are none, or the file is of an older make."""
    ((kind,),) = connection.execute("PRAGMA auto_vacuum")
    ((free,),) = connection.execute("PRAGMA freelist_count")
    if kind != 2 or not free:  # 2: incremental
        return False
    connection.executescript(f"PRAGMA incremental_vacuum({_PAGES})")  # `execute` stops after the first page
    return bool(free > _PAGES)
