"""Compaction of a ledger in ClickHouse: sure entries of old days become daily sums and ids, exactly, without transactions.

What one step takes is a *build*: ids, sums and a record of it, all written under its number, which nobody reads yet. The name of an empty
table, `aifinops_compaction_N`, says how far things are, and renaming it is the one thing here that either happens as a whole or not at all:

- N even: nobody is at it, and build N - 1 is committed. N odd: somebody makes build N.
- Take it: rename N to N + 1. Commit: rename B to B + 1. Take it from who has not moved for long: rename B to B + 2, so that he cannot commit.
- Before it is taken the build before is finished: its entries are deleted and its record is marked as done.

A reader takes committed builds, which are those that are done and N - 1, adds their sums, and passes over entries with their ids, whether
these are deleted yet or not. He looks at N once more when he is done, and asks again when something was committed meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from aifinops.errors import StoreError
from aifinops.ledger.base import DAY_NS, HOUR_NS
from aifinops.ledger.clickhouse_link import Link, literal
from aifinops.ledger.passes import Passes

__all__ = ["CHARGES", "DAILY", "LEASE_S", "STEP", "TABLES", "Gone", "Run", "gone_of", "left", "step_of", "within"]

LEASE_S = 90.0
"""How long who compacts may take for one build before another may take over, seconds: longer than a statement is waited for."""

STEP = 500_000
"""Entries of a day from which on it is taken hour by hour."""

CHARGES = "aifinops_charges"
"""The table of entries."""

DAILY = "aifinops_daily"
"""The table of what is gone, as daily sums."""

_NAME = "aifinops_compaction_"
_POLL_S = 0.1
_RANGES = 50

TABLES = (
    "CREATE TABLE IF NOT EXISTS {db}.aifinops_gone (id String CODEC(ZSTD), build UInt64) ENGINE = MergeTree ORDER BY id",
    """CREATE TABLE IF NOT EXISTS {db}.aifinops_compactions (
        build UInt64, day Int64, since Int64, until Int64, entries UInt64, first_at Int64, last_at Int64, done UInt8
    ) ENGINE = MergeTree ORDER BY build""",
    # Who makes tables a second time, late, makes an older name: the greatest counts.
    "CREATE TABLE IF NOT EXISTS {db}.aifinops_compaction_0 (nothing UInt8) ENGINE = MergeTree ORDER BY tuple()",
)
"""What is needed beside `DAILY`, which is like the table of hours."""

_FIXES = f"SELECT corrects FROM {{db}}.{CHARGES} WHERE corrects <> '' AND amount IS NOT NULL"  # noqa: S608 - names of ours
_SURE = f"(NOT uncertain OR id IN ({_FIXES}))"
_FIRST = f"(corrects = '' OR amount IS NULL) AND {_SURE}"
_NAMED = f"{_FIXES} AND {{span}}"
_THEN = f"""corrects <> '' AND amount IS NOT NULL AND {_SURE} AND (
    corrects IN (SELECT id FROM {{db}}.aifinops_gone WHERE {{builds}} AND id IN ({_NAMED}))
    OR corrects IN (SELECT id FROM {{db}}.{CHARGES} WHERE NOT uncertain AND id IN ({_NAMED})))"""  # noqa: S608 - names of ours

Span = tuple[int, int]


class Gone(NamedTuple):
    """What is compacted.

    Attributes:
        step: the number in the table's name. builds: those that are committed. days: of which there is any, when they begin.
        spans: of which entries have gone. entries: how many. first_at, last_at: earliest and latest `Charge.at` of them. All in nanoseconds.
    """

    step: int
    builds: tuple[int, ...] = ()
    days: frozenset[int] = frozenset()
    spans: tuple[Span, ...] = ()
    entries: int = 0
    first_at: int | None = None
    last_at: int | None = None

    @property
    def first(self) -> int | None:
        """The first day, None for none."""
        return min(self.days, default=None)

    @property
    def until(self) -> int | None:
        """The end of the last day, None for none."""
        return max(self.days) + DAY_NS if self.days else None


def step_of(link: Link, db: str) -> int:
    """The number in the table's name.

    Raises:
        StoreError: when the server cannot be read, or the table is not there.
    """
    select = f"SELECT name FROM system.tables WHERE database = {literal(db)} AND startsWith(name, '{_NAME}')"  # noqa: S608 - a literal
    for _ in range(10):  # a list of tables is no moment: it may pass over one that is being renamed
        found = [int(name.removeprefix(_NAME)) for (name,) in link.query(select)]
        if found:
            return max(found)
        time.sleep(_POLL_S)
    raise StoreError(f"the ledger {link.location} has no table {_NAME}N: restore it under the greatest N that aifinops_compactions has as build, plus one")  # fmt: skip


def gone_of(link: Link, db: str) -> Gone:
    """What is compacted at this moment.

    Raises:
        StoreError: when the server cannot be read.
    """
    step = step_of(link, db)
    if step == 0:
        return Gone(0)
    rows = link.query(
        f"SELECT build, any(day), any(since), any(until), any(entries), any(first_at), any(last_at), max(done) FROM {db}.aifinops_compactions GROUP BY build ORDER BY build"  # noqa: S608 - names of ours
    )
    found = [[int(value) for value in row] for row in rows]
    builds = [row for row in found if row[7] or (step % 2 == 0 and row[0] == step - 1)]
    taken = [row for row in builds if row[4]]
    return Gone(
        step,
        tuple(row[0] for row in builds),
        frozenset(row[1] for row in builds),
        _joined([(row[2], row[3]) for row in taken]),
        sum(row[4] for row in taken),
        min((row[5] for row in taken), default=None),
        max((row[6] for row in taken), default=None),
    )


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same time in as few spans as can be."""
    found: list[Span] = []
    for since, until in sorted(spans):
        if found and found[-1][1] >= since:
            found[-1] = (found[-1][0], max(until, found[-1][1]))
        else:
            found.append((since, until))
    return tuple(found)


def within(spans: Sequence[Span]) -> str:
    """SQL: an entry is of one of these spans. Where they are many, of the time from the first to the last."""
    if not spans:
        return "0"
    if len(spans) > _RANGES:
        spans = [(spans[0][0], spans[-1][1])]
    return "(" + " OR ".join(f"(at >= {since} AND at < {until})" for since, until in spans) + ")"


def _among(builds: Sequence[int]) -> str:
    return f"build IN ({', '.join(map(str, builds))})" if builds else "0"


def left(db: str, gone: Gone) -> str:
    """SQL: an entry is none of those that are gone, though it may still be in the table, or again."""
    if not gone.spans:
        return "1"
    # The other way round it would be a set of all ids that are gone; in these spans few entries are left.
    spans = within(gone.spans)
    there = f"SELECT id FROM {db}.{CHARGES} WHERE {spans}"  # noqa: S608 - names of ours and integers
    return (
        f"NOT ({spans} AND id IN (SELECT id FROM {db}.aifinops_gone WHERE {_among(gone.builds)} AND id IN ({there})))"  # noqa: S608 - as above
    )


class Run(Passes):
    """One compaction up to a day.

    Args:
        link: the way to the server. db: name of the database. until: the day, nanoseconds.
        add_up: a statement which writes the sums of the entries of a condition under a build and a day.
        lease_s: see `LEASE_S`.

    Attributes:
        entries: that are gone. since: the first day of which there were any, nanoseconds.
    """

    def __init__(
        self, link: Link, db: str, until: int, add_up: Callable[[int, int, str], str], *, lease_s: float = LEASE_S
    ) -> None:
        super().__init__(until)
        self._link = link
        self._db = db
        self._add_up = add_up
        self._lease_s = lease_s

    def steps(self) -> Iterator[int]:
        """Do one step after the other; how many entries went in each.

        Raises:
            StoreError: when the server cannot be written, or somebody else has taken over.
        """
        self._finish_last()
        yield from self._passes(_FIRST, _THEN)
        until = gone_of(self._link, self._db).until
        if self.entries and until is not None and until < self._until:
            self._build(self._until - DAY_NS, (self._until, self._until), "0")  # no days but the reach

    def make_room(self) -> None:
        """Have the engine write months anew of which all days are compacted. It does so by itself only when it merges their parts, which may be never.

        The month of the last day waits: to write its other days anew every night would be much work for little room.

        Raises:
            StoreError: when `system.parts` must not be read, or the server cannot be written.
        """
        where = f"active AND has_lightweight_delete AND database = {literal(self._db)} AND table IN ('{CHARGES}', 'aifinops_hourly')"
        month = f"toYYYYMM(fromUnixTimestamp64Nano(toInt64({self._until}), 'UTC'))"
        rows = self._link.query(f"SELECT DISTINCT table, partition FROM system.parts WHERE {where} AND toUInt32OrZero(partition) < {month}")  # fmt: skip  # noqa: S608 - a literal and an integer
        for table, partition in rows:
            self._link.command(f"ALTER TABLE {self._db}.{table} APPLY DELETED MASK IN PARTITION {int(partition)} SETTINGS mutations_sync = 1")  # fmt: skip

    def _finish_last(self) -> None:
        """Who was at it before may have been killed after his commit."""
        step = step_of(self._link, self._db)
        if step and step % 2 == 0:
            self._finish(step - 1)

    def _pass(self, which: str) -> Iterator[tuple[int, int]]:
        for day, count in self._days():
            length = DAY_NS if count <= STEP else HOUR_NS
            for since in range(day, day + DAY_NS, length):
                span = (since, since + length)
                if self._count(span, which):
                    yield day, self._build(day, span, which)

    def _days(self) -> list[tuple[int, int]]:
        rows = self._link.query(
            f"SELECT at - at % {DAY_NS} AS day, count() FROM {self._db}.{CHARGES} WHERE at < {self._until} GROUP BY day ORDER BY day"  # noqa: S608 - names of ours and integers
        )
        return [(int(day), int(count)) for day, count in rows]

    def _chosen(self, span: Span, which: str) -> str:
        gone = gone_of(self._link, self._db)
        period = within([span])
        chosen = which.format(db=self._db, span=period, builds=_among(gone.builds))
        return f"{period} AND {chosen} AND {left(self._db, gone)}"

    def _count(self, span: Span, which: str) -> int:
        select = f"SELECT count() FROM {self._db}.{CHARGES} FINAL WHERE {self._chosen(span, which)}"  # noqa: S608 - names of ours and integers
        ((count,),) = self._link.query(select)
        return int(count)

    def _build(self, day: int, span: Span, which: str) -> int:
        build = self._take()
        try:
            count = self._write(build, day, span, which)
            self._commit(build)
        except BaseException:
            with suppress(StoreError):
                self._rename(build, build + 3)  # build + 2 is nobody's, so that nothing is committed
            raise
        self._finish(build)
        return count

    def _write(self, build: int, day: int, span: Span, which: str) -> int:
        db = self._db
        self._link.command(
            f"INSERT INTO {db}.aifinops_gone (id, build) SELECT id, {build} FROM {db}.{CHARGES} FINAL WHERE {self._chosen(span, which)}"  # noqa: S608 - names of ours and integers
        )
        # Sums and the record are of what was written, not of what may have come meanwhile.
        taken = f"{within([span])} AND id IN (SELECT id FROM {db}.aifinops_gone WHERE build = {build})"  # noqa: S608 - as above
        self._link.command(self._add_up(build, day, taken))
        ((count, first, last),) = self._link.query(f"SELECT count(), min(at), max(at) FROM {db}.{CHARGES} FINAL WHERE {taken}")  # fmt: skip  # noqa: S608 - as above
        self._record([build, day, *span, int(count), int(first), int(last), 0])
        return int(count)

    def _record(self, values: Sequence[int]) -> None:
        columns = ("build", "day", "since", "until", "entries", "first_at", "last_at", "done")
        self._link.insert(f"{self._db}.aifinops_compactions", columns, f"[{', '.join(map(str, values))}]".encode())

    # --- who is at it -----------------------------------------------------------------------------------------------------

    def _take(self) -> int:
        """Become the one who makes a build; its number. Waits for who is at it."""
        seen, since = -1, 0.0
        while True:
            step = step_of(self._link, self._db)
            if step % 2 == 0:
                if step:
                    self._finish(step - 1)
                if self._rename(step, step + 1):
                    return step + 1
                continue
            if step != seen:
                seen, since = step, time.monotonic()
            elif time.monotonic() - since > self._lease_s and self._rename(step, step + 2):
                self._forget(step)
                return step + 2
            time.sleep(_POLL_S)

    def _commit(self, build: int) -> None:
        if not self._rename(build, build + 1) and build not in gone_of(self._link, self._db).builds:
            raise StoreError(f"the ledger {self._link.location}: somebody else compacts it and has taken over; try again when that is done")  # fmt: skip

    def _rename(self, old: int, new: int) -> bool:
        """False when somebody else was first."""
        try:
            self._link.command(f"RENAME TABLE {self._db}.{_NAME}{old} TO {self._db}.{_NAME}{new}")
        except StoreError:
            if step_of(self._link, self._db) == old:
                raise  # nobody was; it is not allowed, or the server has no room
            return False
        return True

    def _finish(self, build: int) -> None:
        """Delete what a committed build has taken. Several may do it at once, and again."""
        select = f"SELECT day, since, until, entries, first_at, last_at, max(done) OVER () FROM {self._db}.aifinops_compactions WHERE build = {build} LIMIT 1"  # noqa: S608 - names of ours and integers
        rows = [[int(value) for value in row] for row in self._link.query(select)]
        if not rows or rows[0][-1]:
            return
        day, since, until, entries, first, last, _ = rows[0]
        if entries:
            self._delete(CHARGES, f"{within([(since, until)])} AND id IN (SELECT id FROM {self._db}.aifinops_gone WHERE build = {build})")  # fmt: skip  # noqa: S608 - as above
            self._delete("aifinops_hourly", within([(day, day + DAY_NS)]))
        self._record([build, day, since, until, entries, first, last, 1])

    def _forget(self, build: int) -> None:
        """What somebody has left undone; nobody reads it."""
        for table in ("aifinops_gone", DAILY, "aifinops_compactions"):
            self._delete(table, f"build = {build}")

    def _delete(self, table: str, where: str) -> None:
        self._link.command(f"DELETE FROM {self._db}.{table} WHERE {where}")  # noqa: S608 - names of ours and integers
