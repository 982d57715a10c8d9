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

import importlib
import json
import os
import re
import selectors
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger.base import (
    DAY_NS,
    HOUR_NS,
    Capabilities,
    Compaction,
    Group,
    GroupKey,
    LedgerInfo,
    Progress,
    Query,
    Verification,
    check_compacted,
    group_keys,
    start_of,
    verify_rows,
)
from aifinops.ledger.codec import COLUMNS, METER_COLUMNS, TAG_COLUMNS, charge_of, clean_text, row_of
from aifinops.ledger.sql import (
    DIMENSIONS,
    SUMS,
    Period,
    answered_by_cells,
    fits,
    group_of,
    load_sums,
    period_of,
    sums_of_entry,
    verify_days,
)

__all__ = ["SCHEMA", "PostgresLedger", "open_url", "setup_sql"]

SCHEMA = 1
"""Version of the tables."""

FOLD = 20_000
"""Entries behind the mark before it is moved on, at most `_STEP` at a time."""

_STEP = 200_000
_PAGE = 1000
_BATCH = 500
"""Entries of one statement: one of 10,000 is half as fast, since PostgreSQL reads its JSON into one value."""
_GONE_STEP = 2_000
"""Entries that are compacted in one transaction; writers wait meanwhile."""
_PAUSE_S = 0.002
_IDLE = 4
_TIMEOUT_S = 60.0
_GRACE_S = 5.0
"""How much longer than the server itself may need we wait for its answer: one that stands still keeps the connection alive and says nothing."""
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_INTEGERS = frozenset({"at", "duration", "amount", "lower", "upper", "stream", *METER_COLUMNS})
_MORE = ("quantities", "unpriced_quantities")
# Said where the URL does not say otherwise: a machine that is gone is noticed within half a minute, not after two hours.
_DEFAULTS = {"connect_timeout": "5", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "20000", "application_name": "aifinops"}  # fmt: skip
# Codes of errors: https://www.postgresql.org/docs/current/errcodes-appendix.html
_ROLLED_BACK = frozenset({"40001", "40P01"})
_BAD_TEXT = frozenset({"22021", "22P02", "22P05"})
_FORBIDDEN = "42501"
_NOT_THERE = frozenset({"3F000", "42P01"})

# --- the tables ---------------------------------------------------------------------------------------------------------


def _type(name: str) -> str:
    if name in _INTEGERS:
        return "bigint"
    return "jsonb" if name == "tags" else 'text COLLATE "C"'


_CELL = f"sha256(convert_to(json_build_array(at, {', '.join(DIMENSIONS)})::text, 'UTF8'))"

# A migration is a list of statements that takes the tables from the version before to its own. They run in one transaction.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE {schema}.charges (seq bigint GENERATED ALWAYS AS IDENTITY, "
        + ", ".join(f"{name} {_type(name)}{' PRIMARY KEY' if name == 'id' else ''}" for name in COLUMNS)
        + ")",
        "CREATE INDEX charges_at ON {schema}.charges (at, id)",
        "CREATE INDEX charges_seq ON {schema}.charges (seq)",
        "CREATE INDEX charges_corrects ON {schema}.charges (corrects) WHERE corrects <> ''",
        *(
            statement
            for table in ("hourly", "daily")
            for statement in (
                f"CREATE TABLE {{schema}}.{table} (cell bytea PRIMARY KEY, at bigint NOT NULL, "
                + ", ".join(f'{name} text COLLATE "C" NOT NULL' for name in DIMENSIONS)
                + ", "
                + ", ".join(f"{name} numeric" for name in SUMS)
                + ", quantities jsonb, unpriced_quantities jsonb)",
                f"CREATE INDEX {table}_at ON {{schema}}.{table} (at)",
            )
        ),
        'CREATE TABLE {schema}.gone (id text COLLATE "C" PRIMARY KEY)',
        """CREATE TABLE {schema}.state (one boolean PRIMARY KEY DEFAULT true CHECK (one), version integer NOT NULL, mark bigint NOT NULL,
            compacted bigint NOT NULL DEFAULT 0, first_day bigint, until_day bigint, first_at bigint, last_at bigint)""",
        "INSERT INTO {schema}.state (version, mark) VALUES (1, 0)",
        # STRICT: the aggregate passes rows without such quantities over, which is most of them, without calling it.
        """CREATE FUNCTION {schema}.add_quantities(total jsonb, more jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
            SELECT jsonb_object_agg(name, value) FROM (
                SELECT name, sum(value::numeric) AS value
                FROM (SELECT * FROM jsonb_each_text(total) UNION ALL SELECT * FROM jsonb_each_text(more)) AS every (name, value) GROUP BY name
            ) AS sums
        $$""",
        "CREATE AGGREGATE {schema}.quantity_sum(jsonb) (sfunc = {schema}.add_quantities, stype = jsonb)",
        # A statement inside a function sees what was committed when it begins, so also by whom the insertion has waited for.
        """CREATE FUNCTION {schema}.pass_over_gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT 1 FROM {schema}.gone WHERE gone.id = NEW.id) THEN RETURN NULL; END IF;
            RETURN NEW;
        END $$""",
    ),
)
assert len(_MIGRATIONS) == SCHEMA  # noqa: S101 - one for each version


def setup_sql(schema: str = "aifinops_ledger", *, role: str | None = None) -> str:
    """What makes the tables, for who does not let programs do that: run it in one transaction.

    Args:
        schema: its name. role: who may write and read afterwards: it gets SELECT, INSERT and UPDATE as far as they are needed, and nothing else.

    Raises:
        ConfigurationError: when the name is none.
    """
    _check_name(schema)
    lines = [f"CREATE SCHEMA IF NOT EXISTS {schema}"]
    lines += [statement.format(schema=schema) for migration in _MIGRATIONS for statement in migration]
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


# --- the ledger ---------------------------------------------------------------------------------------------------------


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
    timeout = settings.pop("timeout_s", str(_TIMEOUT_S))
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
        self, dsn: str, *, schema: str = "aifinops_ledger", timeout_s: float = _TIMEOUT_S, create: bool = True
    ) -> None:
        _check_name(schema)
        if not 0.1 <= timeout_s <= 86_400:
            raise ConfigurationError(f"timeout_s={timeout_s} of the ledger: use 0.1 to 86400 seconds")
        self.schema = schema
        self._driver = _import()
        self._bounded = _bounded(self._driver)
        self._dsn = _parse(self._driver, dsn)
        self._timeout_s = timeout_s
        self._lock_key = f"hashtextextended('aifinops ledger {schema}', 0)"
        self._ready = False
        self._idle: list[Any] = []
        self._start()
        weakref.finalize(self, _close_all, self._idle, os.getpid())
        try:
            self._get_ready(create=create)
        except ConfigurationError:
            self.close()
            raise
        except StoreError:
            if not create:
                raise
            # A server that is away must not keep a program from starting: what it spends waits in the spool.

    def _start(self) -> None:
        # Re-entrant: a finalizer or a signal handler may come in here in the thread that is in here.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._unfolded = 0

    @property
    def location(self) -> str:
        """Where it is, without the password."""
        place = self._dsn
        where = f"{place.get('user', '')}@{place.get('host', 'localhost')}:{place.get('port', '5432')}"
        return f"postgresql://{where}/{place.get('dbname', '')}?schema={self.schema}"

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
        for charge in charges:
            if not fits(charge):
                raise OverflowError(f"charge {charge.id} has a number beyond 64 bits")
        rows = [row_of(charge) for charge in charges]
        count = self._insert(rows)
        self._unfolded += count
        if self._unfolded >= FOLD:
            self._unfolded = 0
            self._fold()
        return count

    def _insert(self, rows: list[tuple[Any, ...]]) -> int:
        batches = [_payload(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]
        statement = _insert_statement(self.schema, self._lock_key)

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
        query.filters()
        return self._pages(query)

    def _pages(self, query: Query) -> Iterator[Charge]:
        sign, order = ("<", "DESC") if query.newest_first else (">", "ASC")
        where, values = _where(query, (query.since_ns, query.until_ns))
        left = query.limit
        last: list[Any] = []
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            after = f" AND (at, id) {sign} (%s, %s)" if last else ""
            select = f"SELECT {_SELECTED} FROM {self.schema}.charges WHERE {where}{after} ORDER BY at {order}, id {order} LIMIT %s"  # noqa: S608 - only names of ours; values are bound
            page = self._read(select, [*values, *last, size])
            yield from map(_charge_of, page)
            if len(page) < size:
                return
            last = [page[-1][1], page[-1][0]]
            left = None if left is None else left - size

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
        select, values = _summary(self.schema, query, keys, period, gone=gone)
        groups = (_group(row, len(keys)) for row in self._read(select, values))
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
        first = min((at for at in (first, gone_first) if at is not None), default=None)
        last = max((at for at in (last, gone_last) if at is not None), default=None)
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
            if getattr(error.__cause__, "sqlstate", None) != _FORBIDDEN:
                raise

    def _fold_all(self, connection: Any) -> None:
        with connection.transaction():
            # When this lock is held, nobody has taken a number and not yet committed.
            connection.execute(f"SELECT pg_advisory_xact_lock({self._lock_key})")
            (upto,) = connection.execute(f"SELECT last_value FROM {self.schema}.charges_seq_seq").fetchone()  # noqa: S608 - only names of ours
        more = True
        while more:
            with connection.transaction(), self._patient(connection):
                more = self._fold_step(connection, upto)

    def _fold_step(self, connection: Any, upto: int) -> bool:
        """Put at most `_STEP` numbers into the roll-ups; True when there are more."""
        row = connection.execute(f"SELECT mark FROM {self.schema}.state FOR UPDATE SKIP LOCKED").fetchone()  # noqa: S608 - only names of ours
        if row is None or row[0] >= upto:
            return False
        mark, goal = row[0], min(upto, row[0] + _STEP)
        connection.execute(_fold_statement(self.schema), {"mark": mark, "goal": goal})
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
        self._run(self._watch_gone)
        old = self._older(until)
        run = _Compacting(self, until)
        for _ in run.steps():
            if progress is not None:
                progress(run.entries, max(old, run.entries))
            time.sleep(_PAUSE_S)
        return Compaction(run.entries, self._older(until), run.since, until, run.freed)

    def _older(self, until: int) -> int:
        ((count,),) = self._read(f"SELECT count(*) FROM {self.schema}.charges WHERE at < %s", [until])  # noqa: S608 - only names of ours
        return int(count)

    def _watch_gone(self, connection: Any) -> None:
        """Have late ones of a compacted id ignored. Made with the first compaction: until then it costs nothing."""
        with connection.transaction(), self._patient(connection):
            connection.execute(f"SELECT 1 FROM {self.schema}.state FOR UPDATE")  # noqa: S608 - only names of ours
            select = "SELECT 1 FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname = 'charges_gone'"
            if connection.execute(select, [f"{self.schema}.charges"]).fetchone() is None:
                connection.execute(
                    f"CREATE TRIGGER charges_gone BEFORE INSERT ON {self.schema}.charges "
                    f"FOR EACH ROW EXECUTE FUNCTION {self.schema}.pass_over_gone()"
                )

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

    def _run(self, work: Any) -> Any:
        """Do something on a connection, in tables that are there."""
        if not self._ready:
            self._get_ready(create=True)
        return self._do(work)

    def _do(self, work: Any) -> Any:
        """Do something on a connection; once more when it was lost or the server has rolled it back."""
        for last in (False, False, True):
            try:
                with self._connection() as connection:
                    return work(connection)
            except self._driver.Error as error:
                again = error.sqlstate in _ROLLED_BACK or (
                    isinstance(error, self._driver.OperationalError)
                    and error.sqlstate != "57014"
                    and not getattr(error, "silent", False)
                )
                if last or not again:
                    raise self._failed(error) from error
        raise AssertionError  # the loop returns or raises

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        if self._pid != os.getpid():
            self.reset_after_fork()
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            if connection.closed or connection.info.transaction_status != 0:
                connection.close()
            else:
                self._give(connection)
            raise
        self._give(connection)

    def _give(self, connection: Any) -> None:
        with self._lock:
            if len(self._idle) < _IDLE and not connection.closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> Any:
        try:
            connection = self._bounded.connect(**self._dsn, autocommit=True, prepare_threshold=None)
        except self._driver.Error as error:
            password = str(self._dsn.get("password") or "")
            if password and password in str(error):
                raise StoreError(f"the ledger {self.location} cannot be reached ({type(error).__name__})") from None
            raise
        connection.patience_s = self._timeout_s + _GRACE_S
        connection.execute(f"SET statement_timeout = {int(self._timeout_s * 1000)}")
        return connection

    @contextmanager
    def _patient(self, connection: Any) -> Iterator[None]:
        """Allow the statements of a transaction ten times as long."""
        connection.execute(f"SET LOCAL statement_timeout = {int(self._timeout_s * 10_000)}")
        connection.patience_s = self._timeout_s * 10 + _GRACE_S
        try:
            yield
        finally:
            connection.patience_s = self._timeout_s + _GRACE_S

    def _failed(self, error: Exception) -> StoreError:
        code = getattr(error, "sqlstate", None)
        text = str(error).strip().split("\n")[0]
        hint = ""
        if code == _FORBIDDEN:
            hint = "; let a superuser run what aifinops.ledger.postgres.setup_sql(role=...) returns"
        elif code == "57014":
            hint = f"; ask for a shorter period, or allow more time: ?timeout_s={self._timeout_s * 5:g}"
        elif code is None:
            hint = "; look whether the server runs, and whether host, port and password in AIFINOPS_LEDGER are right"
        return StoreError(f"the ledger {self.location}: {text}{hint}")

    def _get_ready(self, *, create: bool) -> None:
        version = self._version()
        if version is None and not create:
            raise ConfigurationError(
                f"there is no ledger at {self.location}; make the first metered call, or correct AIFINOPS_LEDGER"
            )
        if version is None or version < SCHEMA:
            self._do(self._migrate)
            version = self._version()
        if version is not None and version > SCHEMA:
            raise ConfigurationError(
                f"the ledger {self.location} has schema {version}; this one knows up to {SCHEMA}: pip install --upgrade aifinops"
            )
        self._ready = True

    def _version(self) -> int | None:
        try:
            select = f"SELECT version FROM {self.schema}.state"  # noqa: S608 - only names of ours
            (version,) = self._do(lambda connection: connection.execute(select).fetchone())
        except StoreError as error:
            if getattr(error.__cause__, "sqlstate", None) in _NOT_THERE:
                return None
            raise
        return int(version)

    def _migrate(self, connection: Any) -> None:
        with connection.transaction(), self._patient(connection):
            connection.execute(f"SELECT pg_advisory_xact_lock({self._lock_key})")
            # Not IF NOT EXISTS: that wants the right to make schemas even where it is there.
            found = connection.execute("SELECT to_regnamespace(%s) IS NULL", [self.schema]).fetchone()
            if found[0]:
                connection.execute(f"CREATE SCHEMA {self.schema}")
            made = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{self.schema}.state"]).fetchone()
            select = f"SELECT version FROM {self.schema}.state"  # noqa: S608 - only names of ours
            version = connection.execute(select).fetchone()[0] if made[0] else 0
            for number, migration in enumerate(_MIGRATIONS[version:], version + 1):
                for statement in migration:
                    connection.execute(statement.format(schema=self.schema))
                connection.execute(f"UPDATE {self.schema}.state SET version = %s", [number])  # noqa: S608 - only names of ours

    def close(self) -> None:
        """Close connections that lie idle. A later call opens new ones."""
        if self._pid != os.getpid():
            self.reset_after_fork()
        with self._lock:
            _close_all(self._idle, self._pid)

    def reset_after_fork(self) -> None:
        """In a forked child: a new lock and no connections; those are the parent's, whose sessions must not be ended from here."""
        inherited = self._idle[:]
        self._idle.clear()
        self._start()
        for connection in inherited:
            with suppress(Exception):  # it was closed in the parent already
                os.close(connection.pgconn.socket)
            _abandon(connection)


class _Compacting:
    """One compaction of a ledger up to a day.

    An entry may go when nothing can change any more what it adds to the sums: it is sure (see `aifinops.ledger.base.Group`), and it is not
    the correction that makes another entry sure which is still there, or may still come. So entries go first and their corrections after
    them.

    Attributes:
        entries: that are gone. since: the first day of which there were any, nanoseconds. freed: bytes of the table that they took.
    """

    def __init__(self, ledger: PostgresLedger, until: int) -> None:
        self._ledger = ledger
        self._schema = ledger.schema
        self._until = until
        self.entries = self.freed = 0
        self.since: int | None = None

    def steps(self) -> Iterator[int]:
        """Do one step after the other; how many entries went in each."""
        first, then = _which_go(self._schema)
        yield from self._pass(first)
        while True:  # a correction may itself have been corrected
            before = self.entries
            yield from self._pass(then)
            if self.entries == before:
                break
        if self.entries:
            self._ledger._run(lambda connection: self._extend(connection, self._until, self._until))

    def _pass(self, which: str) -> Iterator[int]:
        day: int | None = None
        while (day := self._next(day)) is not None:
            while gone := self._ledger._run(self._step_of(day, which)):
                self.entries += gone
                self.since = day if self.since is None else min(day, self.since)
                yield gone
            day += DAY_NS

    def _next(self, since: int | None) -> int | None:
        """The day of the earliest entry from there on."""
        select = f"SELECT min(at) FROM {self._schema}.charges WHERE at < %s AND at >= %s"  # noqa: S608 - only names of ours
        ((at,),) = self._ledger._read(select, [self._until, -(2**63) if since is None else since])
        return None if at is None else start_of(at, DAY_NS)

    def _step_of(self, day: int, which: str) -> Callable[[Any], int]:
        def step(connection: Any) -> int:
            with connection.transaction(), self._ledger._patient(connection):
                return self._step(connection, day, which)

        return step

    def _step(self, connection: Any, day: int, which: str) -> int:
        # The state first: who folds holds it for long, and writers must not wait for that.
        (mark,) = connection.execute(f"SELECT mark FROM {self._schema}.state FOR UPDATE").fetchone()  # noqa: S608 - only names of ours
        # Nobody is between his look at known ids and his insertion.
        connection.execute(f"SELECT pg_advisory_xact_lock({self._ledger._lock_key})")
        select = f"SELECT id FROM {self._schema}.charges AS entry WHERE at >= %(day)s AND at < %(end)s AND seq <= %(mark)s AND {which} LIMIT %(step)s"  # noqa: S608 - only names of ours; values are bound
        found = connection.execute(select, {"day": day, "end": day + DAY_NS, "mark": mark, "step": _GONE_STEP})
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


_abandoned: list[Any] = []
"""Connections of a parent process. Even closing one would tell the server to end the parent's session."""


def _close_all(connections: list[Any], pid: int) -> None:
    """Close connections that this process has opened."""
    while connections:
        connection = connections.pop()
        if pid == os.getpid():
            connection.close()
        else:
            _abandon(connection)


def _abandon(connection: Any) -> None:
    connection.abandoned = True
    _abandoned.append(connection)


# --- text ---------------------------------------------------------------------------------------------------------------

# PostgreSQL's text has no NUL: it is written as DLE and 0, and DLE as DLE and 1.
_NUL, _DLE = "\0", "\x10"


def _written(text: str) -> str:
    if _NUL in text or _DLE in text:
        text = text.replace(_DLE, _DLE + "1").replace(_NUL, _DLE + "0")
    return text


def _as_read(text: str) -> str:
    return text.replace(_DLE + "0", _NUL).replace(_DLE + "1", _DLE) if _DLE in text else text


_TAGS_PLACE = COLUMNS.index("tags")
_dump = json.JSONEncoder(separators=(",", ":")).encode
_ODD = re.compile(r"\\u(?:00[01]0|d[89a-f])")


def _payload(rows: list[tuple[Any, ...]]) -> str:
    """Rows as one JSON array of arrays, in which PostgreSQL can read every text."""
    text = _dump(rows)
    return _dump([_clean(row) for row in rows]) if _ODD.search(text) else text


def _clean(row: tuple[Any, ...]) -> list[Any]:
    tags = row[_TAGS_PLACE]
    values = [_written(value) if isinstance(value, str) else value for value in clean_text(row)]
    if tags is not None:
        found = json.loads(tags)
        names = clean_text(list(found.values()))
        values[_TAGS_PLACE] = _dump({name: _written(value) for name, value in zip(found, names, strict=True)})
    return values


def _charge_of(row: tuple[Any, ...]) -> Charge:
    if any(_DLE in value for value in row if isinstance(value, str)) or "\\u0010" in (row[_TAGS_PLACE] or ""):
        values = [_as_read(value) if isinstance(value, str) else value for value in row]
        if values[_TAGS_PLACE] is not None:
            tags = json.loads(values[_TAGS_PLACE])
            values[_TAGS_PLACE] = json.dumps({name: _as_read(value) for name, value in tags.items()})
        row = tuple(values)
    return charge_of(row)


# --- statements -----------------------------------------------------------------------------------------------------------

_SELECTED = ", ".join("tags::text" if name == "tags" else name for name in COLUMNS)
_FORMATS = {"month": "YYYY-MM", "day": "YYYY-MM-DD", "hour": 'YYYY-MM-DD"T"HH24'}

Bound = tuple[str, list[Any]]


def _insert_statement(schema: str, lock_key: str) -> str:
    # The number of an entry is taken behind the lock: it stands in the list of what is selected from both.
    values = ", ".join(_value(place, name) for place, name in enumerate(COLUMNS))
    return (
        f"WITH held AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared({lock_key})) "  # noqa: S608 - only names of ours; values are bound
        f"INSERT INTO {schema}.charges ({', '.join(COLUMNS)}) SELECT {values} "
        "FROM held, jsonb_array_elements(%s::jsonb) AS r(v) ORDER BY 1 ON CONFLICT (id) DO NOTHING"
    )


def _value(place: int, name: str) -> str:
    cast = {"tags": "::jsonb"}.get(name, "::bigint" if name in _INTEGERS else "")
    return f"(v->>{place}){cast}"


def _expression(key: GroupKey) -> Bound:
    """SQL for a key and the values bound in it; the same for entries and for cells."""
    if key.kind == "time":
        return "to_char(to_timestamp(at / 1000000000) AT TIME ZONE 'UTC', %s)", [_FORMATS[key.source]]
    if key.kind == "field":
        return key.source, []
    if key.source in TAG_COLUMNS:
        return f"coalesce({key.source}, '')", []
    return "coalesce(tags->>%s, '')", [key.source]


def _where(query: Query, period: tuple[int | None, int | None]) -> Bound:
    conditions, bound = ["true"], list[Any]()
    for value, operator in zip(period, (">=", "<"), strict=True):
        if value is not None:
            conditions.append(f"at {operator} %s")
            bound.append(value)
    for key, values in query.filters():
        text, own = _expression(key)
        conditions.append(f"{text} = ANY(%s::text[])")
        bound += [*own, list(map(_written, clean_text(values)))]
    return " AND ".join(conditions), bound


# Widened: the difference of two columns may not fit into one.
_SURE, _UNSURE = sums_of_entry("({})::int", "({})::numeric")
_UNPRICED = "unsure AND amount IS NULL AND corrects = ''"


def _entry_sum(name: str) -> str:
    text = _SURE.get(name, name)
    return f"{text} + CASE WHEN unsure THEN {_UNSURE[name]} ELSE 0 END" if name in _UNSURE else text


_ENTRY_SUMS = ", ".join(
    [
        *(f"{_entry_sum(name)} AS {name}" for name in SUMS),
        "quantities::jsonb AS quantities",
        f"CASE WHEN {_UNPRICED} THEN quantities::jsonb END AS unpriced_quantities",
    ]
)


def _fixes(schema: str, condition: str) -> str:
    return f"SELECT 1 FROM {schema}.charges AS fix WHERE fix.corrects <> '' AND fix.corrects = entry.id AND fix.amount IS NOT NULL{condition}"  # noqa: S608 - only names of ours


def _entries(schema: str, keys: str, where: str, fixed: str = "") -> str:
    """The sums of each entry by itself.

    Args:
        keys: what else of it. where: which. fixed: which corrections count.
    """
    unsure = f"CASE WHEN amount IS NULL OR basis = 'estimated' THEN NOT EXISTS ({_fixes(schema, fixed)}) ELSE false END"
    return f"SELECT {keys}, {_ENTRY_SUMS} FROM (SELECT *, {unsure} AS unsure FROM {schema}.charges AS entry WHERE {where}) AS entries"  # noqa: S608 - only names of ours; values are bound


# What a correction takes away from the sums of a cell in which the entry that it corrects was unsure.
_TAKEN_SUMS = ", ".join(
    f"{f'-({_UNSURE[name]})' if name in _UNSURE else 'NULL' if name in METER_COLUMNS else '0'} AS {name}"
    for name in SUMS
)


def _taken(schema: str, keys: str, where: str, mark: str, goal: str = "") -> str:
    """What corrections behind the mark change in the cells before it."""
    negative = """CASE WHEN amount IS NULL AND corrects = '' THEN (
        SELECT jsonb_object_agg(name, -value::numeric) FROM jsonb_each_text(quantities::jsonb) AS q(name, value)) END"""
    named = f"SELECT corrects FROM {schema}.charges WHERE seq > {mark}{goal} AND corrects <> '' AND amount IS NOT NULL"  # noqa: S608 - only names of ours
    return (
        f"SELECT {keys}, {_TAKEN_SUMS}, NULL::jsonb AS quantities, {negative} AS unpriced_quantities FROM {schema}.charges AS entry "  # noqa: S608 - only names of ours; values are bound
        f"WHERE seq <= {mark} AND id IN ({named}) AND (amount IS NULL OR basis = 'estimated') "
        f"AND NOT EXISTS ({_fixes(schema, f' AND fix.seq <= {mark}')}) AND {where}"
    )


def _added(schema: str) -> str:
    sums = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    return f"{sums}, {', '.join(f'{schema}.quantity_sum({name}) AS {name}' for name in _MORE)}"


def _fold_statement(schema: str) -> str:
    columns = ", ".join(("at", *DIMENSIONS))
    keys = ", ".join(
        [f"at - at %% {HOUR_NS} AS at", *(f"coalesce({name}, '') AS {name}" for name in DIMENSIONS)]
    )  # a modulus, not a value
    new = _entries(schema, keys, "seq > %(mark)s AND seq <= %(goal)s", " AND fix.seq <= %(goal)s")
    old = _taken(schema, keys, "true", "%(mark)s", " AND seq <= %(goal)s")
    return (
        f"INSERT INTO {schema}.hourly (cell, {columns}, {', '.join((*SUMS, *_MORE))}) "  # noqa: S608 - only names of ours; values are bound
        f"SELECT {_CELL}, {columns}, {_added(schema)} FROM ({new} UNION ALL {old}) AS parts GROUP BY {columns} "
        f"ON CONFLICT (cell) DO UPDATE SET {', '.join(_updates(schema, 'hourly'))}"
    )


def _updates(schema: str, table: str) -> list[str]:
    """What adds a new cell to one that is there."""
    return [
        *(f"{name} = coalesce({table}.{name} + excluded.{name}, {table}.{name}, excluded.{name})" for name in SUMS),
        *(
            f"{name} = coalesce({schema}.add_quantities({table}.{name}, excluded.{name}), {table}.{name}, excluded.{name})"
            for name in _MORE
        ),
    ]


def _daily_statement(schema: str) -> str:
    """What adds entries of a day, all of them sure, to the sums of what is gone."""
    columns = ", ".join(("at", *DIMENSIONS))
    keys = ", ".join(["%(day)s::bigint AS at", *(f"coalesce({name}, '') AS {name}" for name in DIMENSIONS)])
    return (
        f"INSERT INTO {schema}.daily (cell, {columns}, {', '.join((*SUMS, *_MORE))}) "  # noqa: S608 - only names of ours; values are bound
        f"SELECT {_CELL}, {columns}, {_added(schema)} FROM ({_entries(schema, keys, 'id = ANY(%(ids)s)')}) AS parts GROUP BY {columns} "
        f"ON CONFLICT (cell) DO UPDATE SET {', '.join(_updates(schema, 'daily'))}"
    )


def _join_hours(schema: str) -> str:
    """What makes one of the roll-ups of a day's hours."""
    columns = ", ".join(DIMENSIONS)
    return (
        f"WITH hours AS (DELETE FROM {schema}.hourly WHERE at >= %(day)s AND at < %(end)s AND EXISTS (SELECT 1 FROM {schema}.hourly WHERE at > %(day)s AND at < %(end)s) RETURNING *), "  # noqa: S608 - only names of ours; values are bound
        f"days AS (SELECT %(day)s::bigint AS at, {columns}, {_added(schema)} FROM hours GROUP BY {columns}) "
        f"INSERT INTO {schema}.hourly (cell, at, {columns}, {', '.join((*SUMS, *_MORE))}) "
        f"SELECT {_CELL}, at, {columns}, {', '.join((*SUMS, *_MORE))} FROM days"
    )


def _which_go(schema: str) -> tuple[str, str]:
    """Which entries may go in a first pass, and which after them: corrections."""
    sure = f"((amount IS NOT NULL AND basis <> 'estimated') OR EXISTS ({_fixes(schema, ' AND fix.seq <= %(mark)s')}))"
    first = f"(corrects = '' OR amount IS NULL) AND {sure}"
    settled = (
        f"EXISTS (SELECT 1 FROM {schema}.gone WHERE gone.id = entry.corrects) OR EXISTS (SELECT 1 FROM {schema}.charges AS target "  # noqa: S608 - only names of ours
        "WHERE target.id = entry.corrects AND target.amount IS NOT NULL AND target.basis <> 'estimated')"
    )
    return first, f"corrects <> '' AND amount IS NOT NULL AND ({settled}) AND {sure}"


def _summary(
    schema: str, query: Query, keys: Sequence[GroupKey], period: Period | None, *, gone: bool = False
) -> Bound:
    """The statement for a summary, from entries alone or, with a period, from cells as well.

    Args:
        gone: add the sums of compacted entries, where cells do not have them.
    """
    expressions = [_expression(key) for key in keys]
    names = [f"k{place}" for place in range(len(keys))]
    selected = "".join(f"{text} AS {name}, " for (text, _), name in zip(expressions, names, strict=True)) + "currency"
    bound = [value for _, values in expressions for value in values]
    parts: list[Bound] = []

    def add(text: str, values: list[Any]) -> None:
        parts.append((text, [*bound, *values]))

    if period is None:
        where, values = _where(query, (query.since_ns, query.until_ns))
        add(_entries(schema, selected, where), values)
        if gone:
            add(f"SELECT {selected}, {', '.join((*SUMS, *_MORE))} FROM {schema}.daily WHERE {where}", values)  # noqa: S608 - only names of ours; values are bound
    else:
        mark = f"(SELECT mark FROM {schema}.state)"  # noqa: S608 - only names of ours
        where, values = _where(query, (period.first, period.last))
        cells = f"SELECT {selected}, {', '.join((*SUMS, *_MORE))} FROM {schema}.hourly WHERE {where}"  # noqa: S608 - only names of ours; values are bound
        add(cells, values)
        add(_entries(schema, selected, f"seq > {mark} AND {where}"), values)
        add(_taken(schema, selected, where, mark), values)
        for end in period.ends:
            where, values = _where(query, end)
            add(_entries(schema, selected, where), values)
    grouping = ", ".join([*names, "currency"])
    as_text = ", ".join(
        [*SUMS, *(f"{name}::text" for name in _MORE)]
    )  # the driver would read numbers in JSON as floats
    return (
        f"SELECT {grouping}, {as_text} FROM (SELECT {grouping}, {_added(schema)} FROM ({' UNION ALL '.join(text for text, _ in parts)}) AS parts GROUP BY {grouping}) AS sums",  # noqa: S608 - only names of ours; values are bound
        [value for _, values in parts for value in values],
    )


def _group(row: Sequence[Any], keys: int) -> Group:
    key = tuple(map(_as_read, row[:keys]))
    values = row[keys + 1 :]
    sums = dict(zip(SUMS, values[: len(SUMS)], strict=True))
    more, unpriced = map(load_sums, values[len(SUMS) :])
    return group_of(key, _as_read(row[keys]), sums, [more], [unpriced])


# --- the driver ------------------------------------------------------------------------------------------------------------


def _import() -> Any:
    try:
        return importlib.import_module("psycopg")
    except ImportError as error:
        raise ConfigurationError("a ledger in PostgreSQL needs psycopg 3: pip install 'aifinops[postgres]'") from error


_Selector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)
"""Without a descriptor of its own; its events have the driver's numbers."""


@cache
def _bounded(driver: Any) -> Any:
    """A connection that waits for an answer as long as `patience_s` and no longer.

    The kernel of a machine whose server stands still acknowledges what is sent, so that keepalives and `tcp_user_timeout` see nothing wrong.
    """
    base: Any = driver.Connection

    class Bounded(base):  # type: ignore[misc]  # the driver is only known when it runs
        patience_s = _TIMEOUT_S
        abandoned = False

        def __del__(self) -> None:
            if not self.abandoned:  # one of a parent process may not be closed: that is nothing to warn of
                super().__del__()

        def wait(self, gen: Any, *_: Any, **__: Any) -> Any:
            try:
                return _waited(gen, self.pgconn.socket, self.patience_s)
            except TimeoutError:
                self.pgconn.finish()
                error = driver.OperationalError(f"the server has not answered for {self.patience_s:g} seconds")
                error.silent = True
                raise error from None
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                self.pgconn.finish()  # in the middle of an answer
                raise

    return Bounded


def _waited(gen: Any, socket: int, patience_s: float) -> Any:
    """What the driver's generator returns, which yields what it waits for and is told what has come: 1 to read, 2 to write, 3 for both."""
    end = time.monotonic() + patience_s
    try:
        wanted = next(gen)
        with _Selector() as selector:
            selector.register(socket, wanted)
            while True:
                found = selector.select(max(0.0, end - time.monotonic()))
                if not found:
                    raise TimeoutError
                wanted = gen.send(found[0][1])
                selector.modify(socket, wanted)
    except StopIteration as done:
        return done.value


def _parse(driver: Any, dsn: str) -> dict[str, Any]:
    try:
        given = driver.conninfo.conninfo_to_dict(dsn)
    except driver.Error:
        # What the driver says repeats parts of it, and its error would be shown with ours.
        raise ConfigurationError("the address of the ledger in PostgreSQL cannot be read; write postgresql://user@host/database") from None  # fmt: skip
    return {**_DEFAULTS, **given, "client_encoding": "UTF8"}


def _check_name(schema: str) -> None:
    if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigurationError(f"schema={schema!r} is no name for a schema here; use small letters, digits and _, and begin with a letter")  # fmt: skip
