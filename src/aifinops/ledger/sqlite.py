"""The default ledger: one SQLite file, in WAL mode, that any number of processes may write.

`append` is one statement in its own transaction, on the caller's thread; `enqueue`, which metered calls use, writes a line to a
journal beside the file (see `aifinops.ledger.journal`) and puts lines into the tables by the hundred. When either has returned, the
entry is in the operating system's hands and survives a SIGKILL (https://www.sqlite.org/pragma.html#pragma_synchronous; with
`synchronous=NORMAL` a power failure may take the newest entries but never damages the file).

Checkpoints run inside the transactions, by SQLite's default one every 1,000 pages. Measured with these tables: 3 to 5 ms once in
some 330 entries, 18 us for the median entry. A checkpointing thread took those milliseconds off the one call but tripled
the median under load, because a log that is written while it is copied never starts over and always needs new pages;
rarer checkpoints (4,000 and 10,000 pages) are little cheaper on average and take 14 and 30 ms each.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger.base import (
    Capabilities,
    Filters,
    Group,
    GroupKey,
    LedgerInfo,
    Query,
    add_quantities,
    group_keys,
)
from aifinops.ledger.codec import (
    COLUMNS,
    METER_COLUMNS,
    TAG_COLUMNS,
    charge_of,
    clean_text,
    dump_quantities,
    load_quantities,
    packed,
    row_of,
)
from aifinops.ledger.journal import AVAILABLE, Foreign, Journal, journals
from aifinops.usage import Quantity, tokens_total

__all__ = ["SCHEMA", "SqliteLedger"]

SCHEMA = 1
"""Version of the tables, kept in `PRAGMA user_version`."""

_APPLICATION = 0x41494650  # "AIFP" in `PRAGMA application_id`: tells our files from other programs'
_OLDEST_SQLITE = (3, 30, 0)  # aggregate FILTER; https://www.sqlite.org/changes.html
_BUSY_S = 5.0
_PAGE = 1000

_INT64 = 2**63 - 1

FOLD = 100
"""Entries in the journal before they are put into the tables."""

_INTEGERS = frozenset({"at", "duration", "amount", "lower", "upper", "stream", *METER_COLUMNS})


def _column(name: str) -> str:
    if name == "id":
        return "id TEXT NOT NULL PRIMARY KEY"
    return f"{name} {'INTEGER' if name in _INTEGERS else 'TEXT'}"


_TABLES = (
    # Not WITHOUT ROWID: it saves a page a write, but a row above a quarter of a page (a long raw answer) costs it three.
    f"CREATE TABLE charges ({', '.join(map(_column, COLUMNS))})",
    "CREATE INDEX charges_at ON charges (at)",
    "CREATE INDEX charges_corrects ON charges (corrects) WHERE corrects <> ''",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {SCHEMA}",
)
_NAMES = ", ".join(COLUMNS)
# Not INSERT OR IGNORE: that would also swallow entries that break another rule.
_INSERT = f"INSERT INTO charges ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT (id) DO NOTHING"  # noqa: S608 - only names of ours; values are bound

_TIME_FORMATS = {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H"}


class SqliteLedger:
    """Charges in an SQLite file, made with mode 0600 (its directory 0700) when it is not there.

    Args:
        path: the file. create: False refuses a file that is not there.
        timeout_s: how long a write waits for another process that holds the file, seconds.

    Raises:
        ConfigurationError: naming the path, when it cannot be opened, is no ledger or is of a newer schema.
    """

    capabilities = Capabilities(durable=True, shared=True)

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True, timeout_s: float = _BUSY_S) -> None:
        self.path = Path(path)
        self._timeout_s = timeout_s
        self._renew_locks()
        self._connection: sqlite3.Connection | None = None
        self._spool = self.path.with_name(f"{self.path.name}-spool")
        self._journal = Journal(self._spool, SCHEMA)
        self._fold_at = FOLD
        _check_version()
        self._take(create)
        _forks.watch(self)

    def _take(self, create: bool) -> sqlite3.Connection:
        with _telling(self.path):
            _prepare_file(self.path, create)
            self._connection = connection = _open(self.path, self._timeout_s)
        self._pid = os.getpid()
        return connection

    def _renew_locks(self) -> None:
        # Re-entrant: the garbage collector may settle an abandoned stream while this thread is in here.
        self._lock = threading.RLock()
        self._read_lock = threading.RLock()

    # --- writing ------------------------------------------------------------------------------------------------------

    def append(self, charge: Charge) -> bool:
        """Keep one entry; False when its id was known. It survives a SIGKILL once this has returned.

        Raises:
            StoreError: when the file is full, locked for longer than the timeout, or damaged.
        """
        row = row_of(charge)
        with self._lock:
            connection = self._connection or self._reopen()
            try:
                return _insert(connection, row)
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def enqueue(self, charge: Charge) -> None:
        """Keep one entry in the journal; it survives a SIGKILL once this has returned, and every reader finds it.

        Raises:
            StoreError: when the disk is full.
        """
        if not AVAILABLE:
            self.append(charge)
            return
        if not _fits(charge):
            raise OverflowError(f"charge {charge.id} has a number beyond 64 bits")  # it would stand before all others
        entry = packed(charge)
        with self._lock:
            try:
                self._journal.append(entry)
            except OSError as error:
                raise self._failed(error) from error
            if self._journal.entries >= self._fold_at:
                self._fold_or_wait()

    def _fold_or_wait(self) -> None:
        try:
            self._fold()
        except StoreError:
            # The entries are safe where they are; a file that is locked or full is tried again some entries later.
            self._fold_at = self._journal.entries + FOLD

    def _fold(self) -> None:
        """Put this process's journal into the tables."""
        if not self._journal.entries:
            return
        with self._lock:
            connection = self._connection or self._reopen()
            try:
                _insert_all(connection, self._journal.read())
                self._journal.clear()
            except (sqlite3.Error, OSError) as error:
                raise self._failed(error) from error
            self._fold_at = FOLD

    def _absorb(self) -> None:
        """Put everybody's journals into the tables, before they are read."""
        self._fold()
        for path in journals(self._spool, SCHEMA):
            if not self._journal.owns(path):
                self._absorb_foreign(path)

    def _absorb_foreign(self, path: Path) -> None:
        try:
            foreign = Foreign(path)
        except FileNotFoundError:
            return  # its own process, or another reader, was quicker
        except OSError as error:
            raise self._failed(error) from error
        try:
            with self._lock:
                _insert_all(self._connection or self._reopen(), foreign.rows)
            foreign.done()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        finally:
            foreign.close()

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several in one transaction; how many were new.

        Raises:
            StoreError: when none was kept.
        """
        rows = list(map(row_of, charges))
        with self._lock:
            connection = self._connection or self._reopen()
            try:
                return _insert_all(connection, rows)
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def _reopen(self) -> sqlite3.Connection:
        try:
            return self._take(create=True)
        except ConfigurationError as error:
            raise StoreError(str(error)) from error

    def _failed(self, error: Exception) -> StoreError:
        return StoreError(f"ledger {self.path}: {error}")

    # --- reading ------------------------------------------------------------------------------------------------------

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """The entries that match, by time and then by id; read a page at a time, so that memory stays flat.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the file cannot be read.
        """
        where, values = _where(query, query.filters())
        return self._pages(query, where, values)

    def _pages(self, query: Query, where: str, values: list[Any]) -> Iterator[Charge]:
        sign, order = ("<", "DESC") if query.newest_first else (">", "ASC")
        left = query.limit
        last: list[Any] = []
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            after = f" AND (at, id) {sign} (?, ?)" if last else ""
            select = f"SELECT {_NAMES} FROM charges WHERE {where}{after} ORDER BY at {order}, id {order} LIMIT ?"  # noqa: S608 - as above
            page = self._read(select, [*values, *last, size])
            yield from map(charge_of, page)
            if len(page) < size:
                return
            last = [page[-1][1], page[-1][0]]
            left = None if left is None else left - size

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - frozen
        """Sums per key and currency, added up by SQLite.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the file cannot be read.
        """
        keys = group_keys(by)
        where, values = _where(query, query.filters())
        expressions = [_expression(key) for key in keys]
        values = [value for _, bound in expressions for value in bound] + values
        rows = self._sums([text for text, _ in expressions], where, values)
        return sorted((_group(row, len(keys)) for row in rows), key=lambda group: (group.key, group.currency))

    def _sums(self, keys: list[str], where: str, values: list[Any]) -> list[tuple[Any, ...]]:
        try:
            return self._read(_summary(keys, where, "sum"), values)
        except StoreError as error:
            # Beyond 9.2 billion units of a currency SQLite's own sum gives up; the slow one is exact at any size.
            if "integer overflow" not in str(error):
                raise
            return self._read(_summary(keys, where, "exact_sum"), values)

    def info(self) -> LedgerInfo:
        """Path, schema, entries, period and bytes on disk (with the write-ahead log).

        Raises:
            StoreError: when the file cannot be read.
        """
        ((entries,),) = self._read("SELECT count(*) FROM charges", [])
        ((first,),) = self._read("SELECT min(at) FROM charges", [])  # apart, so that each is one step in the index
        ((last,),) = self._read("SELECT max(at) FROM charges", [])
        ((schema,),) = self._read("PRAGMA user_version", [])
        parts = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        size = sum(part.stat().st_size for part in parts if part.exists())
        return LedgerInfo("sqlite", str(self.path), schema, entries, first, last, size)

    def _read(self, select: str, values: list[Any]) -> list[tuple[Any, ...]]:
        # A connection of its own, read-only: a long report neither holds up a call nor can change anything.
        self._absorb()
        with self._read_lock:
            try:
                with closing(_connect(self.path, "ro", self._timeout_s)) as connection:
                    connection.execute("PRAGMA query_only = 1")
                    connection.create_aggregate("quantity_sum", 1, _QuantitySum)
                    connection.create_aggregate("exact_sum", 1, _ExactSum)
                    return connection.execute(select, values).fetchall()
            except sqlite3.Error as error:
                raise self._failed(error) from error

    # --- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; the last one to close it folds the write-ahead log in. A later call opens it again.

        Raises:
            StoreError: when SQLite cannot close it.
        """
        with self._lock:
            try:
                self._fold()
            finally:
                self._journal.close()
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    connection.close()
                except sqlite3.Error as error:
                    raise self._failed(error) from error

    def reset_after_fork(self) -> None:
        """In a forked child: fresh locks; the connection was closed before the fork and opens again when needed."""
        self._renew_locks()
        self._journal.abandon()
        if self._connection is not None and self._pid != os.getpid():
            # A fork that did not tell Python beforehand (some servers written in C): the best that is left to do.
            _forks.abandon(self._connection)
            self._connection = None

    def _stop(self) -> None:
        """Nobody is in here and no file is open any more, until `_go_on`."""
        self._lock.acquire()
        self._read_lock.acquire()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # nothing may keep the user's process from forking
                connection.close()

    def _go_on(self) -> None:
        self._read_lock.release()
        self._lock.release()


def _fits(charge: Charge) -> bool:
    return all(
        value is None or -_INT64 <= value <= _INT64
        for value in (charge.at, charge.duration, charge.amount, charge.lower, charge.upper)
    )


def _insert(connection: sqlite3.Connection, row: tuple[Any, ...]) -> bool:
    try:
        return connection.execute(_INSERT, row).rowcount == 1
    except UnicodeEncodeError:  # found out by failing: looking through every text would cost every call
        return connection.execute(_INSERT, clean_text(row)).rowcount == 1


def _insert_all(connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> int:
    before = connection.total_changes
    connection.execute("BEGIN IMMEDIATE")
    try:
        try:
            connection.executemany(_INSERT, rows)
        except UnicodeEncodeError:
            connection.executemany(_INSERT, map(clean_text, rows))  # those that are in already are ignored
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors, a full disk for one, have rolled back already
            connection.execute("ROLLBACK")
        raise
    return connection.total_changes - before


class _Forks:
    """Closes every ledger before a fork, so that the child inherits no SQLite state.

    It is not enough that the child never uses the parent's connection
    (https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_file_across_a_fork_): SQLite keeps one table of
    locks a file and process, and a child that inherits it believes that it holds locks which the system gave to its
    parent only. The parent, closing last as it thinks, would delete the write-ahead log under the child's hands.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._ledgers: weakref.WeakSet[SqliteLedger] = weakref.WeakSet()
        self._stopped: list[SqliteLedger] = []
        self._abandoned: list[sqlite3.Connection] = []
        self._registered = False

    def watch(self, ledger: SqliteLedger) -> None:
        with self._lock:
            self._ledgers.add(ledger)
            if not self._registered and hasattr(os, "register_at_fork"):
                self._registered = True
                os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def abandon(self, connection: sqlite3.Connection) -> None:
        """Keep a parent's connection from ever being closed in this process: even that is forbidden."""
        self._abandoned.append(connection)

    def _before(self) -> None:
        self._lock.acquire()
        self._stopped = list(self._ledgers)
        for ledger in self._stopped:
            ledger._stop()

    def _in_parent(self) -> None:
        stopped, self._stopped = self._stopped, []
        for ledger in stopped:
            ledger._go_on()
        self._lock.release()

    def _in_child(self) -> None:
        self._lock = threading.RLock()
        self._stopped = []
        for ledger in list(self._ledgers):
            ledger.reset_after_fork()


_forks = _Forks()


# --- opening ----------------------------------------------------------------------------------------------------------


def _check_version() -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        wanted = ".".join(map(str, _OLDEST_SQLITE[:2]))
        raise ConfigurationError(
            f"this Python has SQLite {sqlite3.sqlite_version}; the ledger needs {wanted} or newer. "
            'Use a Python with a newer one, or keep charges in memory: AIFINOPS_LEDGER="memory"'
        )


def _elsewhere(path: Path, trouble: str) -> ConfigurationError:
    return ConfigurationError(
        f"ledger {path} {trouble}. Nothing was changed. Use another file: AIFINOPS_LEDGER=/path/to/ledger.db, "
        f'init(ledger="/path/to/ledger.db"), or "memory"'
    )


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn what the system says on opening into a sentence that names the path and what to type."""
    try:
        yield
    except ConfigurationError:
        raise
    except sqlite3.DatabaseError as error:
        no_database = "not a database" in str(error)
        raise _elsewhere(path, "is no SQLite database" if no_database else f"cannot be opened: {error}") from error
    except OSError as error:
        raise _elsewhere(path, f"cannot be opened: {error.strerror or error}") from error
    except ValueError as error:
        raise _elsewhere(path, f"is no path: {error}") from error


def _prepare_file(path: Path, create: bool) -> None:
    if path.exists():
        if not path.is_file():
            raise _elsewhere(path, "is a directory" if path.is_dir() else "is no regular file")
        if not os.access(path, os.R_OK | os.W_OK):
            raise _elsewhere(path, "cannot be opened: no permission to read and write it")
        return
    if not create:
        raise ConfigurationError(f"there is no ledger at {path}; check the path, or make the first metered call")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # SQLite gives its -wal and -shm files the mode of the file itself.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return  # another process was quicker


def _connect(path: Path, mode: str, timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,  # our locks see to it
    )


def _open(path: Path, timeout_s: float) -> sqlite3.Connection:
    connection = _connect(path, "rw", timeout_s)
    try:
        _claim(connection, path)
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _claim(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables in an empty file; refuse a file that is not ours. BEGIN also proves that we may write."""
    connection.execute("BEGIN")  # one view of the file: another process may be making it at this moment
    _check_owner(connection, path)
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    if not _check_owner(connection, path):
        for statement in _TABLES:
            connection.execute(statement)
    connection.execute("COMMIT")


def _check_owner(connection: sqlite3.Connection, path: Path) -> bool:
    """True for a ledger of ours, False for an empty file."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not application:
        return False
    if application != _APPLICATION:
        raise _elsewhere(path, "is a database of another program")
    if schema > SCHEMA:
        raise _elsewhere(
            path,
            f"was written by a newer aifinops (schema {schema}; this one knows up to {SCHEMA}): "
            "pip install --upgrade aifinops",
        )
    return True


def _use_wal(connection: sqlite3.Connection) -> None:
    # The switch needs the file for itself and does not wait as statements do; it is made once in a file's life.
    for attempt in range(100):
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError:
            if attempt == 99:
                raise
            time.sleep(_BUSY_S / 100)


# --- asking -----------------------------------------------------------------------------------------------------------


def _expression(key: GroupKey) -> tuple[str, list[str]]:
    """SQL for a key and the values bound in it. Names come from our own tables, what the user wrote is bound."""
    if key.kind == "time":
        return "strftime(?, at / 1000000000, 'unixepoch')", [_TIME_FORMATS[key.source]]
    if key.kind == "field":
        return key.source, []
    if key.source in TAG_COLUMNS:
        return f"coalesce({key.source}, '')", []
    return "coalesce(json_extract(tags, ?), '')", [f'$."{key.source}"']


def _where(query: Query, filters: Filters) -> tuple[str, list[Any]]:
    conditions, bound = ["1"], list[Any]()
    for value, operator in ((query.since_ns, ">="), (query.until_ns, "<")):
        if value is not None:
            conditions.append(f"at {operator} ?")
            bound.append(value)
    for key, values in filters:
        text, own = _expression(key)
        conditions.append(f"{text} IN ({', '.join('?' * len(values))})")
        bound += [*own, *values]
    return " AND ".join(conditions), bound


_UNSURE = """CASE WHEN amount IS NULL OR basis = 'estimated' THEN NOT EXISTS (
    SELECT 1 FROM charges AS fix WHERE fix.corrects <> '' AND fix.corrects = charges.id AND fix.amount IS NOT NULL
) ELSE 0 END"""
_UNPRICED = "unsure AND amount IS NULL AND corrects = ''"
_TOKENS = " + ".join(f"coalesce({name}, 0)" for name in METER_COLUMNS if name.endswith("_tokens"))

# What is added up, in the order in which `_group` reads it: summed expressions, then others.
_SUMMED = (
    "corrects = ''",
    "corrects <> ''",
    "status = 'error' AND corrects = ''",
    "amount",
    "CASE WHEN unsure AND amount IS NOT NULL THEN amount ELSE 0 END",
    "CASE WHEN unsure THEN coalesce(lower, amount, 0) ELSE coalesce(amount, 0) END",
    "CASE WHEN unsure THEN coalesce(upper, amount, 0) ELSE coalesce(amount, 0) END",
    _UNPRICED,
    f"CASE WHEN {_UNPRICED} THEN {_TOKENS} ELSE 0 END",
    "duration",
    *METER_COLUMNS,
)
_OTHERS = (
    "count(amount)",
    "count(*) FILTER (WHERE unsure AND amount IS NULL AND upper IS NULL)",
    "quantity_sum(quantities) FILTER (WHERE quantities IS NOT NULL)",
    f"quantity_sum(quantities) FILTER (WHERE quantities IS NOT NULL AND {_UNPRICED})",
)


def _summary(keys: list[str], where: str, summing: str) -> str:
    names = [f"k{place}" for place in range(len(keys))]
    inner = "".join(f"{text} AS {name}, " for text, name in zip(keys, names, strict=True))
    grouping = ", ".join([*names, "currency"])
    sums = ", ".join([*(f"{summing}({text})" for text in _SUMMED), *_OTHERS])
    return (
        f"SELECT {grouping}, {sums} "  # noqa: S608 - only names of ours; values are bound
        f"FROM (SELECT {inner}*, {_UNSURE} AS unsure FROM charges WHERE {where}) GROUP BY {grouping}"
    )


def _group(row: Sequence[Any], keys: int) -> Group:
    key, currency, values = tuple(row[:keys]), row[keys], row[keys + 1 :]
    sums, (known, open_ends, more, unpriced_more) = values[: len(_SUMMED)], values[len(_SUMMED) :]
    meters = sums[-len(METER_COLUMNS) :]
    calls, corrections, errors, amount, estimated, lower, upper, unpriced, unpriced_tokens, duration = (
        int(value or 0) for value in sums[: -len(METER_COLUMNS)]
    )
    return Group(
        key=key,
        currency=currency,
        calls=calls,
        corrections=corrections,
        errors=errors,
        amount=amount if known else None,
        estimated=estimated,
        lower=lower,
        upper=None if open_ends else upper,
        unpriced_calls=unpriced,
        unpriced_tokens=unpriced_tokens + (tokens_total(load_quantities(unpriced_more)) if unpriced_more else 0),
        quantities=_meters(meters, more),
        duration=duration,
    )


def _meters(columns: Sequence[Any], more: str | None) -> MappingProxyType[str, Quantity]:
    found: dict[str, Quantity] = {
        name: int(value) for name, value in zip(METER_COLUMNS, columns, strict=True) if value is not None
    }
    if more:
        add_quantities(found, load_quantities(more))
    return MappingProxyType(found)


class _QuantitySum:
    """Aggregate for the JSON column of meters: exact sums by meter, as JSON again."""

    def __init__(self) -> None:
        self._total: dict[str, Quantity] = {}

    def step(self, text: Any) -> None:
        add_quantities(self._total, load_quantities(text))

    def finalize(self) -> Any:
        return dump_quantities(self._total) if self._total else None


class _ExactSum:
    """`sum` without the limit of 64 bits; the result is text, since SQLite has no larger integers."""

    def __init__(self) -> None:
        self._total: int | None = None

    def step(self, value: Any) -> None:
        if value is not None:
            self._total = (self._total or 0) + value

    def finalize(self) -> Any:
        return None if self._total is None else str(self._total)
