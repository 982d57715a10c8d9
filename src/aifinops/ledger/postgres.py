"""A ledger in PostgreSQL, for all processes of all machines that reach it.

Entries are put in by one statement a batch, which ignores known ids: a repetition after a lost connection cannot charge twice.

Hourly roll-ups (see `aifinops.ledger.sql`) hold every entry up to a mark. A question is answered from them and from the entries behind the
mark, in one statement and so in one view of the data; a correction behind the mark of an entry before it is allowed for in the same way.
Whoever has put in or has to read many entries behind the mark moves it on (`_fold`). Numbers are given to entries under a shared lock, and
the mark is only moved to a number below which nobody is still writing, so that no late entry is passed over.

Compaction deletes entries and leaves the roll-ups, which have them already; the hours of a compacted day become one. What went is kept once
more as daily sums by itself, from which roll-ups can be made anew, and by id. Each step is one transaction.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger.base import (
    DAY_NS,
    Capabilities,
    Compaction,
    Group,
    GroupKey,
    LedgerInfo,
    Progress,
    Query,
    Verification,
    check_compacted,
    earliest,
    group_keys,
    latest,
    paged,
    start_of,
    verify_rows,
)
from aifinops.ledger.codec import row_of
from aifinops.ledger.postgres_compaction import Run
from aifinops.ledger.postgres_connections import FORBIDDEN, NOT_THERE, TIMEOUT_S, Connections
from aifinops.ledger.postgres_statements import (
    MIGRATIONS,
    SELECTED,
    fold_statement,
    insert_statement,
    lock_statement,
    payload,
    read_charge,
    read_group,
    summary,
    where_of,
)
from aifinops.ledger.sql import Period, answered_by_cells, check_numbers, check_version, period_of, verify_days

__all__ = ["SCHEMA", "PostgresLedger", "open_url", "setup_sql"]

SCHEMA = 1
"""Version of the tables."""
assert len(MIGRATIONS) == SCHEMA  # noqa: S101 - one for each version

FOLD = 20_000
"""Entries behind the mark before it is moved on, at most `_STEP` at a time."""

_STEP = 200_000
_PAGE = 1000
_BATCH = 500
"""Entries of one statement: one of 10,000 is half as fast, since PostgreSQL reads its JSON into one value."""
_PAUSE_S = 0.002
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")


def setup_sql(schema: str = "aifinops_ledger", *, role: str | None = None) -> str:
    """What makes the tables, for who does not let programs do that: run it in one transaction.

    Args:
        schema: its name. role: who may write and read afterwards: it gets SELECT, INSERT and UPDATE as far as they are needed, and nothing else.

    Raises:
        ConfigurationError: when the name is none.
    """
    _check_name(schema)
    lines = [f"CREATE SCHEMA IF NOT EXISTS {schema}"]
    lines += [statement.format(schema=schema) for migration in MIGRATIONS for statement in migration]
    if role is not None:
        who = '"' + role.replace('"', '""') + '"'
        lines += [
            f"GRANT USAGE ON SCHEMA {schema} TO {who}",
            f"GRANT SELECT, INSERT ON {schema}.charges TO {who}",
            f"GRANT SELECT, INSERT, UPDATE ON {schema}.hourly TO {who}",
            f"GRANT SELECT, UPDATE ON {schema}.state TO {who}",
            f"GRANT SELECT ON {schema}.daily, {schema}.gone TO {who}",
            f"GRANT SELECT ON SEQUENCE {schema}.charges_seq_seq TO {who}",
        ]
    return ";\n".join(lines) + ";\n"


def open_url(url: str, *, create: bool = True) -> PostgresLedger:
    """A ledger from one text.

    Args:
        url: `postgresql://user@host/database`. Behind a `?` may stand `schema` and `timeout_s`, beside what libpq takes.
        create: False refuses a database without our tables.

    Raises:
        ConfigurationError: as `PostgresLedger`.
    """
    parts = urlsplit(url)
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema = settings.pop("schema", "aifinops_ledger")
    timeout = settings.pop("timeout_s", str(TIMEOUT_S))
    try:
        timeout_s = float(timeout)
    except ValueError:
        raise ConfigurationError(f"timeout_s={timeout!r} of the ledger is no number of seconds; write ?timeout_s=60") from None  # fmt: skip
    return PostgresLedger(
        urlunsplit(parts._replace(query=urlencode(settings))), schema=schema, timeout_s=timeout_s, create=create
    )


class PostgresLedger:
    """Charges in a schema of a PostgreSQL database, which is made where it is not there.

    Args:
        dsn: where, as libpq takes it: `postgresql://user@host/database` or `host=... dbname=...`. Its password is never shown.
        schema: in which schema: small letters, digits and `_`.
        timeout_s: the most that the server spends on one statement, seconds. Folding and migrations have ten times as long.
        create: False refuses a database without our tables.

    Raises:
        ConfigurationError: when psycopg is not installed, an argument is wrong, or the tables are of a newer version or not there.
        StoreError: when the server cannot be reached and `create` is False; otherwise the first operation tries again.
    """

    capabilities = Capabilities(durable=True, shared=True, compacts=True, verifies=True)

    def __init__(
        self, dsn: str, *, schema: str = "aifinops_ledger", timeout_s: float = TIMEOUT_S, create: bool = True
    ) -> None:
        _check_name(schema)
        if not 0.1 <= timeout_s <= 86_400:
            raise ConfigurationError(f"timeout_s={timeout_s} of the ledger: use 0.1 to 86400 seconds")
        self.schema = schema
        self._connections = Connections(dsn, schema, timeout_s)
        self._ready = False
        self._unfolded = 0
        try:
            self._get_ready(create=create)
        except ConfigurationError:
            self.close()
            raise
        except StoreError:
            if not create:
                raise
            # A server that is away must not keep a program from starting: what it spends waits in the spool.

    @property
    def location(self) -> str:
        """Where it is, without the password."""
        return self._connections.location

    # --- writing ----------------------------------------------------------------------------------------------------------

    def append(self, charge: Charge) -> bool:
        """Keep one entry; False when its id was known. It is committed when this returns.

        Raises:
            StoreError: when the server cannot be reached or refuses it. OverflowError: for a number beyond 64 bits.
        """
        return self.append_many((charge,)) == 1

    def enqueue(self, charge: Charge) -> None:
        """`append`, for who does not care whether the id was known."""
        self.append_many((charge,))

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several in one transaction; how many were new.

        A connection that is lost in the middle is replaced and the entries are sent again; those that had been kept then count as known.

        Raises:
            StoreError: when none was kept. OverflowError: for a number beyond 64 bits.
        """
        if not charges:
            return 0
        check_numbers(charges)
        rows = [row_of(charge) for charge in charges]
        count = self._insert(rows)
        self._unfolded += count
        if self._unfolded >= FOLD:
            self._unfolded = 0
            self._fold()
        return count

    def _insert(self, rows: list[tuple[Any, ...]]) -> int:
        batches = [payload(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]
        statement = insert_statement(self.schema)

        def work(connection: Any) -> int:
            if len(batches) == 1:
                return int(connection.execute(statement, batches).rowcount)
            with connection.transaction():
                return sum(connection.execute(statement, [batch]).rowcount for batch in batches)

        return int(self._run(work))

    # --- reading ----------------------------------------------------------------------------------------------------------

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """The entries that match, by time and then by id; read a page at a time, so that memory stays flat.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the server cannot be read.
        """
        sign, order = ("<", "DESC") if query.newest_first else (">", "ASC")
        where, values = where_of(query, (query.since_ns, query.until_ns))

        def page_of(last: tuple[Any, ...] | None, size: int) -> list[tuple[Any, ...]]:
            after, moment = (f" AND (at, id) {sign} (%s, %s)", [last[1], last[0]]) if last else ("", [])
            select = f"SELECT {SELECTED} FROM {self.schema}.charges WHERE {where}{after} ORDER BY at {order}, id {order} LIMIT %s"  # noqa: S608 - only names of ours; values are bound
            return self._read(select, [*values, *moment, size])

        return map(read_charge, paged(query, _PAGE, page_of))

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - frozen
        """Sums per key and currency, added up by PostgreSQL: from hourly roll-ups where these have all that is asked for.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the server cannot be read.
        """
        keys = group_keys(by)
        filters = query.filters()
        if any(not values for _, values in filters):
            return []  # no value is allowed, so that nothing matches
        period = period_of(query)
        rolled = period.whole and answered_by_cells(keys, filters)
        check_compacted(query, keys, *self._reach(fold=rolled))
        found = self._summed(query, keys, period if rolled else None)
        # Once more: what was compacted meanwhile is not in the details that were just added up.
        check_compacted(query, keys, *self._reach(fold=False))
        return found

    def _one_by_one(self, query: Query, by: Sequence[str]) -> list[Group]:
        return self._summed(query, group_keys(by), None, gone=True)

    def _summed(
        self, query: Query, keys: Sequence[GroupKey], period: Period | None, *, gone: bool = False
    ) -> list[Group]:
        select, values = summary(self.schema, query, keys, period, gone=gone)
        groups = (read_group(row, len(keys)) for row in self._read(select, values))
        return sorted(groups, key=lambda group: (group.key, group.currency))

    def info(self) -> LedgerInfo:
        """Where, schema, entries, period and bytes on disk.

        Raises:
            StoreError: when the server cannot be read.
        """
        size = " + ".join(
            f"pg_total_relation_size('{self.schema}.{table}')" for table in ("charges", "hourly", "daily", "gone")
        )
        select = (
            f"SELECT state.version, {size}, state.compacted, state.until_day, state.first_at, state.last_at, (SELECT count(*) FROM {self.schema}.charges WHERE seq > state.mark), every.* "  # noqa: S608 - only names of ours
            f"FROM {self.schema}.state, (SELECT count(*), min(at), max(at) FROM {self.schema}.charges) AS every"
        )
        ((version, size_there, gone, until, gone_first, gone_last, behind, entries, first, last),) = self._read(
            select, []
        )
        first, last = earliest(first, gone_first), latest(last, gone_last)
        return LedgerInfo(
            "postgresql", self.location, version, entries + gone, first, last, size_there, gone, until, behind
        )

    def _read(self, select: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._run(lambda connection: connection.execute(select, values).fetchall())
        return found

    # --- roll-ups ---------------------------------------------------------------------------------------------------------

    def _reach(self, *, fold: bool) -> tuple[int | None, int | None]:
        """The days that are compacted, up to the end of the last, nanoseconds; None for none. Moves the mark on where it is far behind."""
        select = f"SELECT (SELECT last_value FROM {self.schema}.charges_seq_seq) - mark, first_day, until_day FROM {self.schema}.state"  # noqa: S608 - only names of ours
        ((behind, first, until),) = self._read(select, [])
        if fold and behind >= FOLD:
            self._fold()
        return first, until

    def _fold(self) -> None:
        """Move the mark of the roll-ups on, unless somebody else is at it or it is not allowed."""
        try:
            self._run(self._fold_all)
        except StoreError as error:
            if getattr(error.__cause__, "sqlstate", None) != FORBIDDEN:
                raise

    def _fold_all(self, connection: Any) -> None:
        with connection.transaction():
            # When this lock is held, nobody has taken a number and not yet committed.
            connection.execute(lock_statement(self.schema))
            (upto,) = connection.execute(f"SELECT last_value FROM {self.schema}.charges_seq_seq").fetchone()  # noqa: S608 - only names of ours
        more = True
        while more:
            with connection.transaction(), self._connections.patient(connection):
                more = self._fold_step(connection, upto)

    def _fold_step(self, connection: Any, upto: int) -> bool:
        """Put at most `_STEP` numbers into the roll-ups; True when there are more."""
        row = connection.execute(f"SELECT mark FROM {self.schema}.state FOR UPDATE SKIP LOCKED").fetchone()  # noqa: S608 - only names of ours
        if row is None or row[0] >= upto:
            return False
        mark, goal = row[0], min(upto, row[0] + _STEP)
        connection.execute(fold_statement(self.schema), {"mark": mark, "goal": goal})
        connection.execute(f"UPDATE {self.schema}.state SET mark = %s", [goal])  # noqa: S608 - only names of ours
        return bool(goal < upto)

    # --- care --------------------------------------------------------------------------------------------------------------

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Turn sure entries of whole days (UTC) before a moment into daily roll-ups; see `aifinops.ledger.base.Ledger`.

        Each step is a transaction of two thousand entries, for which writers wait. Who does it owns the tables, or may delete from
        `charges`, make a trigger there, and write the other tables. `freed_bytes` is what entries took without their ids: new entries
        fill it once the server has vacuumed the table, which it does by itself.

        Raises:
            StoreError: when the server cannot be written, or does not allow it.
        """
        until = start_of(before_ns, DAY_NS)
        self._run(self._fold_all)
        old = self._older(until)
        run = Run(self._connections, self.schema, until)
        for _ in run.steps():
            if progress is not None:
                progress(run.entries, max(old, run.entries))
            time.sleep(_PAUSE_S)
        return Compaction(run.entries, self._older(until), run.since, until, run.freed)

    def _older(self, until: int) -> int:
        ((count,),) = self._read(f"SELECT count(*) FROM {self.schema}.charges WHERE at < %s", [until])  # noqa: S608 - only names of ours
        return int(count)

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Whether each entry can be read, its lines add up, and roll-ups are the sums of entries. Ids are unique by the table's own rule.

        Raises:
            StoreError: when the server cannot be read.
        """
        return verify_days(verify_rows(self, progress), self.summarize, self._one_by_one)

    def migrate(self, *, anew: bool = False, progress: Progress | None = None) -> int:
        """Put what is behind the mark into the roll-ups, or with `anew` everything again; how many entries there were.

        Raises:
            StoreError: when the server cannot be written.
        """
        if anew:
            self._run(self._clear)
        behind = self.info().behind
        self._run(self._fold_all)
        if progress is not None:
            progress(behind, behind)
        return behind

    def _clear(self, connection: Any) -> None:
        with connection.transaction():
            connection.execute(f"UPDATE {self.schema}.state SET mark = 0")  # noqa: S608 - only names of ours
            connection.execute(f"DELETE FROM {self.schema}.hourly")  # noqa: S608 - only names of ours
            connection.execute(f"INSERT INTO {self.schema}.hourly SELECT * FROM {self.schema}.daily")  # noqa: S608 - only names of ours

    # --- connections ------------------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[Any], Any]) -> Any:
        """Do something on a connection, in tables that are there."""
        if not self._ready:
            self._get_ready(create=True)
        return self._connections.do(work)

    def _get_ready(self, *, create: bool) -> None:
        version = self._version()
        check_version(self.location, version, SCHEMA, create=create)
        if version is None or version < SCHEMA:
            self._connections.do(self._migrate)
            check_version(self.location, self._version(), SCHEMA, create=True)
        self._ready = True

    def _version(self) -> int | None:
        try:
            select = f"SELECT version FROM {self.schema}.state"  # noqa: S608 - only names of ours
            (version,) = self._connections.do(lambda connection: connection.execute(select).fetchone())
        except StoreError as error:
            if getattr(error.__cause__, "sqlstate", None) in NOT_THERE:
                return None
            raise
        return int(version)

    def _migrate(self, connection: Any) -> None:
        with connection.transaction(), self._connections.patient(connection):
            connection.execute(lock_statement(self.schema))
            # Not IF NOT EXISTS: that wants the right to make schemas even where it is there.
            found = connection.execute("SELECT to_regnamespace(%s) IS NULL", [self.schema]).fetchone()
            if found[0]:
                connection.execute(f"CREATE SCHEMA {self.schema}")
            made = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{self.schema}.state"]).fetchone()
            select = f"SELECT version FROM {self.schema}.state"  # noqa: S608 - only names of ours
            version = connection.execute(select).fetchone()[0] if made[0] else 0
            for number, migration in enumerate(MIGRATIONS[version:], version + 1):
                for statement in migration:
                    connection.execute(statement.format(schema=self.schema))
                connection.execute(f"UPDATE {self.schema}.state SET version = %s", [number])  # noqa: S608 - only names of ours

    def close(self) -> None:
        """Close connections that lie idle. A later call opens new ones."""
        self._connections.close()

    def reset_after_fork(self) -> None:
        """In a forked child: a new lock and no connections; those are the parent's, whose sessions must not be ended from here."""
        self._unfolded = 0
        self._connections.reset_after_fork()


def _check_name(schema: str) -> None:
    if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigurationError(f"schema={schema!r} is no name for a schema here; use small letters, digits and _, and begin with a letter")  # fmt: skip
