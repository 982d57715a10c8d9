"""Compaction of a ledger in PostgreSQL: sure entries of old days become daily sums and ids, a transaction at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aifinops.ledger.base import DAY_NS, start_of
from aifinops.ledger.passes import DayByDay
from aifinops.ledger.postgres_connections import Connections
from aifinops.ledger.postgres_statements import CELL, MORE, added, cells_statement, entries_of, fixes, lock_statement
from aifinops.ledger.sql import DIMENSIONS, SUMS

__all__ = ["STEP", "Run"]

STEP = 2_000
"""Entries that are compacted in one transaction; writers wait meanwhile."""


class Run(DayByDay):
    """One compaction of a ledger up to a day.

    Args:
        connections: to a database whose tables are there. schema: of the ledger. until: the end of the last day, nanoseconds.

    Attributes:
        entries: that are gone. since: the first day of which there were any, nanoseconds. freed: bytes of the table that they took.
    """

    def __init__(self, connections: Connections, schema: str, until: int) -> None:
        super().__init__(until)
        self._connections = connections
        self._schema = schema
        self.freed = 0

    def steps(self) -> Iterator[int]:
        """Do one step after the other; how many entries went in each."""
        self._connections.do(self._watch)
        yield from self._passes(*_which_go(self._schema))
        if self.entries:
            self._connections.do(lambda connection: self._extend(connection, self._until, self._until))

    def _watch(self, connection: Any) -> None:
        """Have late ones of a compacted id ignored. Made with the first compaction: until then it costs nothing."""
        with connection.transaction(), self._connections.patient(connection):
            connection.execute(f"SELECT 1 FROM {self._schema}.state FOR UPDATE")  # noqa: S608 - only names of ours
            select = "SELECT 1 FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname = 'charges_gone'"
            if connection.execute(select, [f"{self._schema}.charges"]).fetchone() is None:
                connection.execute(
                    f"CREATE TRIGGER charges_gone BEFORE INSERT ON {self._schema}.charges "
                    f"FOR EACH ROW EXECUTE FUNCTION {self._schema}.pass_over_gone()"
                )

    def _next(self, since: int | None) -> int | None:
        """The day of the earliest entry from there on."""
        select = f"SELECT min(at) FROM {self._schema}.charges WHERE at < %s AND at >= %s"  # noqa: S608 - only names of ours
        values = [self._until, -(2**63) if since is None else since]
        (at,) = self._connections.do(lambda connection: connection.execute(select, values).fetchone())
        return None if at is None else start_of(at, DAY_NS)

    def _step(self, day: int, which: str) -> int:
        def step(connection: Any) -> int:
            with connection.transaction(), self._connections.patient(connection):
                return self._take(connection, day, which)

        return int(self._connections.do(step))

    def _take(self, connection: Any, day: int, which: str) -> int:
        # The state first: who folds holds it for long, and writers must not wait for that.
        (mark,) = connection.execute(f"SELECT mark FROM {self._schema}.state FOR UPDATE").fetchone()  # noqa: S608 - only names of ours
        # Nobody is between his look at known ids and his insertion.
        connection.execute(lock_statement(self._schema))
        select = f"SELECT id FROM {self._schema}.charges AS entry WHERE at >= %(day)s AND at < %(end)s AND seq <= %(mark)s AND {which} LIMIT %(step)s"  # noqa: S608 - only names of ours; values are bound
        found = connection.execute(select, {"day": day, "end": day + DAY_NS, "mark": mark, "step": STEP})
        ids = [one for (one,) in found]
        if ids:
            self._extend(connection, day, day + DAY_NS)
            self._move(connection, day, ids)
        return len(ids)

    def _move(self, connection: Any, day: int, ids: list[str]) -> None:
        connection.execute(_daily_statement(self._schema), {"day": day, "ids": ids})
        connection.execute(f"INSERT INTO {self._schema}.gone SELECT unnest(%s::text[])", [ids])
        gone = connection.execute(
            f"WITH went AS (DELETE FROM {self._schema}.charges AS entry WHERE id = ANY(%s) RETURNING at, pg_column_size(entry.*) - pg_column_size(id) AS size) "  # noqa: S608 - only names of ours
            "SELECT min(at), max(at), sum(size) FROM went",
            [ids],
        )
        first, last, size = gone.fetchone()
        self.freed += int(size)
        connection.execute(
            f"UPDATE {self._schema}.state SET compacted = compacted + %s, first_at = least(first_at, %s), last_at = greatest(last_at, %s)",  # noqa: S608 - only names of ours
            [len(ids), first, last],
        )

    def _extend(self, connection: Any, first: int, until: int) -> None:
        """Detailed questions cannot be asked of these days any more; hours are details."""
        connection.execute(
            f"UPDATE {self._schema}.state SET first_day = least(first_day, %s), until_day = greatest(until_day, %s)",  # noqa: S608 - only names of ours
            [first, until],
        )
        if first < until:
            connection.execute(_join_hours(self._schema), {"day": first, "end": until})


def _daily_statement(schema: str) -> str:
    """What adds entries of a day, all of them sure, to the sums of what is gone."""
    keys = ", ".join(["%(day)s::bigint AS at", *(f"coalesce({name}, '') AS {name}" for name in DIMENSIONS)])
    return cells_statement(schema, "daily", entries_of(schema, keys, "id = ANY(%(ids)s)"))


def _join_hours(schema: str) -> str:
    """What makes one of the roll-ups of a day's hours."""
    columns = ", ".join(DIMENSIONS)
    return (
        f"WITH hours AS (DELETE FROM {schema}.hourly WHERE at >= %(day)s AND at < %(end)s AND EXISTS (SELECT 1 FROM {schema}.hourly WHERE at > %(day)s AND at < %(end)s) RETURNING *), "  # noqa: S608 - only names of ours; values are bound
        f"days AS (SELECT %(day)s::bigint AS at, {columns}, {added(schema)} FROM hours GROUP BY {columns}) "
        f"INSERT INTO {schema}.hourly (cell, at, {columns}, {', '.join((*SUMS, *MORE))}) "
        f"SELECT {CELL}, at, {columns}, {', '.join((*SUMS, *MORE))} FROM days"
    )


def _which_go(schema: str) -> tuple[str, str]:
    """Which entries may go in a first pass, and which after them: corrections."""
    sure = f"((amount IS NOT NULL AND basis <> 'estimated') OR EXISTS ({fixes(schema, ' AND fix.seq <= %(mark)s')}))"
    first = f"(corrects = '' OR amount IS NULL) AND {sure}"
    settled = (
        f"EXISTS (SELECT 1 FROM {schema}.gone WHERE gone.id = entry.corrects) OR EXISTS (SELECT 1 FROM {schema}.charges AS target "  # noqa: S608 - only names of ours
        "WHERE target.id = entry.corrects AND target.amount IS NOT NULL AND target.basis <> 'estimated')"
    )
    return first, f"corrects <> '' AND amount IS NOT NULL AND ({settled}) AND {sure}"
