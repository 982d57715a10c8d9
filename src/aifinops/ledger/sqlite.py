"""The default ledger: one SQLite file, in WAL mode, that any number of processes may write.

`append` is one statement in its own transaction, on the caller's thread; `enqueue`, which metered calls use, copies the entry into a
journal beside the file (see `aifinops.ledger.journal`), which a thread puts into the tables. When either has returned, the entry is in
the operating system's hands and survives a SIGKILL (https://www.sqlite.org/pragma.html#pragma_synchronous; with `synchronous=NORMAL` a power
failure may take the newest entries but never damages the file). The same thread keeps roll-ups (see `aifinops.ledger.rollups`).

Checkpoints run inside the transactions, by SQLite's default one every 1,000 pages. Measured with `append`: 3 to 5 ms once in
some 330 entries, 18 us for the median entry. A checkpointing thread took those milliseconds off the one call but tripled
the median under load, because a log that is written while it is copied never starts over and always needs new pages;
rarer checkpoints (4,000 and 10,000 pages) are little cheaper on average and take 14 and 30 ms each.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aifinops.charges import Charge
from aifinops.errors import StoreError, swallow
from aifinops.files import BUSY_S, Database, Kind
from aifinops.ledger import compaction, rollups, verification
from aifinops.ledger.base import (
    DAY_NS,
    Capabilities,
    Compaction,
    Group,
    LedgerInfo,
    Progress,
    Query,
    Verification,
    earliest,
    group_keys,
    latest,
    paged,
    start_of,
)
from aifinops.ledger.codec import (
    COLUMNS,
    METER_COLUMNS,
    charge_of,
    clean_text,
    frozen,
    row_of,
)
from aifinops.ledger.journal import AVAILABLE, Foreign, Journal, journals
from aifinops.ledger.presence import folder_of

__all__ = ["SCHEMA", "SqliteLedger"]

SCHEMA = 2
"""Version of the tables, kept in `PRAGMA user_version`. 1 had the table of charges alone, which is still the same."""

ROWS = 1
"""Version of what is in a journal."""

_PAGE = 1000

_PAUSE_S = 0.002
"""Between two steps of a compaction, seconds: for who waits for the file."""

FOLD = 500
"""Entries in the journal before they are put into the tables."""

AT_ONCE = 2_000
"""Entries that are put into the tables in one transaction."""

MOST_WAITING = 50_000
"""Entries in the journal at which the caller puts them into the tables itself, because it is faster than the thread that should."""

_NUMBERS = struct.Struct("<5q")

_INTEGERS = frozenset({"at", "duration", "amount", "lower", "upper", "stream", *METER_COLUMNS})


def _column(name: str) -> str:
    if name == "id":
        return "id TEXT NOT NULL PRIMARY KEY"
    return f"{name} {'INTEGER' if name in _INTEGERS else 'TEXT'}"


_CHARGES = (
    # Not WITHOUT ROWID: it saves a page a write, but a row above a quarter of a page (a long raw answer) costs it three.
    f"CREATE TABLE charges ({', '.join(map(_column, COLUMNS))})",
    "CREATE INDEX charges_at ON charges (at)",
    "CREATE INDEX charges_corrects ON charges (corrects) WHERE corrects <> ''",
)


def _prepare(connection: sqlite3.Connection) -> None:
    ((pages,),) = connection.execute("PRAGMA page_count")
    if not pages:  # a new file: compaction can make it smaller, then
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA temp_store = MEMORY")
    rollups.add_functions(connection)


_KIND = Kind(
    what="ledger",
    first="make the first metered call",
    application=0x41494650,  # "AIFP"
    schema=SCHEMA,
    tables=(*_CHARGES, *rollups.TABLES),
    migrations=MappingProxyType({1: rollups.TABLES}),
    prepare=_prepare,
    sqlite=(3, 30, 0),  # aggregate FILTER
    elsewhere='AIFINOPS_LEDGER=/path/to/ledger.db, init(ledger="/path/to/ledger.db"), or "memory"',
    memory='keep charges in memory: AIFINOPS_LEDGER="memory"',
)
_NAMES = ", ".join(COLUMNS)

_TOGETHER = 32_766 // len(COLUMNS) // 4 if sqlite3.sqlite_version_info >= (3, 32) else 999 // len(COLUMNS)
"""Rows in one statement. https://www.sqlite.org/limits.html#max_variable_number: 32,766 values, 999 before version 3.32."""


def _statement(rows: int) -> str:
    values = f"({', '.join('?' * len(COLUMNS))})"
    # Not INSERT OR IGNORE: that would also swallow entries that break another rule.
    return f"INSERT INTO charges ({_NAMES}) VALUES {', '.join([values] * rows)} ON CONFLICT (id) DO NOTHING"  # noqa: S608 - only names of ours; values are bound


_INSERT, _INSERT_TOGETHER = _statement(1), _statement(_TOGETHER)

_COUNTS = f"""SELECT coalesce(sum(calls + corrections) FILTER (WHERE grain = {rollups.DAY}), 0),
    coalesce(sum(calls + corrections) FILTER (WHERE grain = {rollups.GONE}), 0) FROM rollups WHERE grain IN ({rollups.DAY}, {rollups.GONE})"""  # noqa: S608 - numbers of ours

MOST_AT_ONCE = 200_000
"""Entries that a report rolls up before it reads, about a second's work; it reads row by row what is left."""


class SqliteLedger:
    """Charges in an SQLite file, made with mode 0600 (its directory 0700) when it is not there.

    Args:
        path: the file. create: False refuses a file that is not there.
        timeout_s: how long a write waits for another process that holds the file, seconds.

    Raises:
        ConfigurationError: naming the path, when it cannot be opened, is no ledger or is of a newer schema.
    """

    capabilities = Capabilities(durable=True, shared=True, compacts=True, verifies=True)

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True, timeout_s: float = BUSY_S) -> None:
        self._file = Database(path, _KIND, create=create, timeout_s=timeout_s)
        self.path = self._file.path
        self._spool = folder_of(self.path)
        # Entries go into the first while the second is put into the tables.
        self._journals = [Journal(self._spool, ROWS), Journal(self._spool, ROWS)]
        self._file.in_child = self._in_child
        self._renew()

    def _renew(self) -> None:
        self._fold_at, self._wait_at, self._unrolled = FOLD, MOST_WAITING, 0
        self._folding = False
        # Taken inside the file's lock or alone, never around it. Re-entrant, as that one is.
        self._turn = threading.RLock()

    def _in_child(self) -> None:
        self._renew()
        for journal in self._journals:
            journal.abandon()

    # --- writing ------------------------------------------------------------------------------------------------------

    def append(self, charge: Charge) -> bool:
        """Keep one entry; False when its id was known. It survives a SIGKILL once this has returned.

        Raises:
            StoreError: when the file is full, locked for longer than the timeout, or damaged.
        """
        row = row_of(charge)
        with self._file.lock:
            connection = self._file.connection or self._file.open()
            try:
                return _insert(connection, row)
            except sqlite3.Error as error:
                raise self._file.failed(error) from error

    def enqueue(self, charge: Charge) -> None:
        """Keep one entry in the journal; it survives a SIGKILL once this has returned, and every reader finds it.

        Raises:
            StoreError: when the disk is full.
        """
        if not AVAILABLE:
            self.append(charge)
            return
        try:
            _NUMBERS.pack(charge.at, charge.duration, charge.amount or 0, charge.lower or 0, charge.upper or 0)
        except struct.error:  # it would stand before all others
            raise OverflowError(f"charge {charge.id} has a number beyond 64 bits") from None
        entry = frozen(charge)
        with self._turn:
            journal = self._journals[0]
            within = (
                journal.busy
            )  # in a signal handler or a finalizer, with the turn held: no time to wait for the file
            try:
                journal.append(entry)
            except OSError as error:
                raise self._file.failed(error) from error
            waiting = journal.entries
        if waiting >= self._fold_at and not within:
            self._have_it_folded(waiting)

    def _have_it_folded(self, waiting: int) -> None:
        """Have a thread put the journal into the tables; when that cannot keep up, do it here, so that the caller slows down."""
        if waiting >= self._wait_at:
            self._fold_or_wait()
            return
        with self._turn:
            if self._folding:
                return
            self._folding = True
        try:
            threading.Thread(target=self._keep_folding, name="aifinops-ledger", daemon=True).start()
        except RuntimeError:  # no thread to be had, at the end of the interpreter for one
            self._folding = False
            self._fold_or_wait()

    def _keep_folding(self) -> None:
        try:
            while True:
                self._fold_or_wait()
                with self._turn:
                    if self._journals[0].entries < self._fold_at:
                        self._folding = False
                        return
        except Exception as error:
            self._folding = False
            swallow("ledger.fold", error)

    def _fold_or_wait(self) -> None:
        try:
            self._fold()
        except StoreError:
            # The entries are safe where they are; a file that is locked or full is tried again some entries later.
            waiting = self._journals[0].entries
            self._fold_at, self._wait_at = waiting + FOLD, waiting + MOST_WAITING

    def _fold(self) -> None:
        """Put this process's journals into the tables."""
        for _ in range(2):  # one that could not be put there earlier comes before the one in use
            with self._file.lock:
                full = self._full()
                if full.entries:
                    self._put(full)
            if not self._journals[0].entries:
                break

    def _full(self) -> Journal:
        """The journal that nobody writes to, which was the one in use if the other was empty."""
        # Whoever has the turn never waits for the file, but for a signal handler that reads in the middle of an entry.
        if not self._turn.acquire(timeout=self._file.timeout_s):
            raise StoreError(f"ledger {self.path}: its journal is in use")
        try:
            if not self._journals[1].entries:
                self._journals.reverse()
            return self._journals[1]
        finally:
            self._turn.release()

    def _put(self, full: Journal) -> None:
        connection = self._file.connection or self._file.open()
        rows = full.read()
        try:
            while part := list(islice(rows, AT_ONCE)):
                _insert_all(connection, part)
                self._unrolled += len(part)
            full.clear()
        except (sqlite3.Error, OSError) as error:
            raise self._file.failed(error) from error
        self._fold_at, self._wait_at = FOLD, MOST_WAITING
        with suppress(sqlite3.OperationalError):  # a locked or full file: reports are right without
            while self._unrolled >= rollups.BATCH:
                self._unrolled -= rollups.BATCH
                rollups.roll_up(connection)

    def _absorb(self) -> None:
        """Put everybody's journals into the tables, before they are read."""
        self._fold()
        for path in journals(self._spool, ROWS):
            if not any(own.owns(path) for own in self._journals):
                self._absorb_foreign(path)

    def _absorb_foreign(self, path: Path) -> None:
        try:
            foreign = Foreign(path)
        except FileNotFoundError:
            return  # its own process, or another reader, was quicker
        except OSError as error:
            raise self._file.failed(error) from error
        try:
            with self._file.lock:
                _insert_all(self._file.connection or self._file.open(), foreign.rows)
            foreign.done()
        except sqlite3.Error as error:
            raise self._file.failed(error) from error
        finally:
            foreign.close()

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several in one transaction; how many were new.

        Raises:
            StoreError: when none was kept.
        """
        rows = list(map(row_of, charges))
        with self._file.lock:
            connection = self._file.connection or self._file.open()
            try:
                return _insert_all(connection, rows)
            except sqlite3.Error as error:
                raise self._file.failed(error) from error

    # --- reading ------------------------------------------------------------------------------------------------------

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """The entries that match, by time and then by id; read a page at a time, so that memory stays flat.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the file cannot be read.
        """
        where, values = rollups.where_of(query, query.filters())
        sign, order = ("<", "DESC") if query.newest_first else (">", "ASC")

        def page_of(last: tuple[Any, ...] | None, size: int) -> list[tuple[Any, ...]]:
            after, moment = (f" AND (at, id) {sign} (?, ?)", [last[1], last[0]]) if last else ("", [])
            select = f"SELECT {_NAMES} FROM charges WHERE {where}{after} ORDER BY at {order}, id {order} LIMIT ?"  # noqa: S608 - as above
            return self._read(select, [*values, *moment, size])

        return map(charge_of, paged(query, _PAGE, page_of))

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - frozen
        """Sums per key and currency, added up by SQLite: from roll-ups as far as those go, and from rows for the rest.

        Raises:
            ConfigurationError: for a wrong key, or for what compacted days do not tell any more.
            StoreError: when the file cannot be read.
        """
        keys, filters = group_keys(by), query.filters()
        self._absorb()
        self._catch_up()
        with self._reading() as connection:
            return rollups.summarize(connection, query, keys, filters)

    def _catch_up(self) -> None:
        """Roll up what a report would have to read row by row, but no more than takes a second."""
        with (
            suppress(sqlite3.Error, StoreError),
            self._file.lock,
        ):  # a locked or full file: reports are right without
            connection = self._file.connection or self._file.open()
            left = rollups.behind(connection, rollups.State.of(connection))
            for _ in range(min(left, MOST_AT_ONCE) // rollups.BATCH):
                rollups.roll_up(connection)

    def info(self) -> LedgerInfo:
        """Path, schema, entries, period and bytes on disk (with the write-ahead log).

        Raises:
            StoreError: when the file cannot be read.
        """
        self._absorb()
        with self._reading() as connection:
            state = rollups.State.of(connection)
            # Apart, so that each is one step in the index; rows that are rolled up are counted there already.
            ((first,),) = connection.execute("SELECT min(at) FROM charges")
            ((last,),) = connection.execute("SELECT max(at) FROM charges")
            ((behind,),) = connection.execute("SELECT count(*) FROM charges WHERE rowid > ?", (state.rolled or 0,))
            ((rolled, gone),) = connection.execute(_COUNTS)
            ((schema,),) = connection.execute("PRAGMA user_version")
        parts = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        return LedgerInfo(
            "sqlite",
            str(self.path),
            schema,
            behind + (rolled if state.rolled is not None else gone),
            earliest(first, state.first_at),
            latest(last, state.last_at),
            sum(part.stat().st_size for part in parts if part.exists()),
            gone,
            state.until,
            behind,
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One view of the file, for as long as it takes."""
        try:
            with self._file.reading() as connection:
                rollups.add_functions(connection)
                connection.execute("BEGIN")
                yield connection
        except sqlite3.Error as error:
            raise self._file.failed(error) from error

    def _read(self, select: str, values: list[Any]) -> list[tuple[Any, ...]]:
        self._absorb()
        with self._reading() as connection:
            return connection.execute(select, values).fetchall()

    @property
    def migrated_from(self) -> int:
        """Schema of the file when it was opened, 0 when it was not there."""
        return self._file.found or 0

    # --- keeping ------------------------------------------------------------------------------------------------------

    def migrate(self, *, anew: bool = False, progress: Progress | None = None) -> int:
        """Roll up everything that is not rolled up yet, such as the entries of an older version's file; how many there were.

        Args:
            anew: make all roll-ups again, from the entries; those of compacted days keep what is gone.
            progress: told how many are done, and of how many.

        Raises:
            StoreError: when the file cannot be written.
        """
        self._absorb()
        if anew:
            with contextmanager(self._writing)() as connection:
                rollups.forget_rollups(connection)
        done = 0
        with self._reading() as connection:
            total = rollups.behind(connection, rollups.State.of(connection))
        step = rollups.BATCH
        while step == rollups.BATCH:  # a smaller one is the last: what comes meanwhile is for the next time
            step = self._roll_up()
            done += step
            if progress is not None:
                progress(done, max(done, total))
        return done

    def _roll_up(self) -> int:
        with self._file.lock:
            try:
                return rollups.roll_up(self._file.connection or self._file.open())
            except sqlite3.Error as error:
                raise self._file.failed(error) from error

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Turn sure entries of whole days (UTC) before a moment into daily roll-ups; see `aifinops.ledger.base.Ledger`.

        Each step is a transaction of a thousand entries. A file that an earlier version has made keeps its size: new entries fill it.

        Raises:
            StoreError: when the file cannot be written.
        """
        until = start_of(before_ns, DAY_NS)
        self.migrate()
        before, old = self._used(), self._older(until)
        run = compaction.Run(self._writing, until)
        for _ in run.steps():
            if progress is not None:
                progress(run.entries, old)
            time.sleep(_PAUSE_S)
        while self._shrink():
            time.sleep(_PAUSE_S)
        return Compaction(run.entries, self._older(until), run.since, until, max(0, before - self._used()))

    def _older(self, until: int) -> int:
        ((count,),) = self._read("SELECT count(*) FROM charges WHERE at < ?", [until])
        return int(count)

    def _used(self) -> int:
        with self._reading() as connection:
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)

    def _shrink(self) -> bool:
        with self._file.lock:
            try:
                return compaction.shrink(self._file.connection or self._file.open())
            except sqlite3.Error as error:
                raise self._file.failed(error) from error

    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction of its own."""
        with self._file.lock:
            connection = self._file.connection or self._file.open()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._file.failed(error) from error
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """SQLite's own check, every entry, and roll-ups against entries; see `aifinops.ledger.base.Ledger`.

        Raises:
            StoreError: when the file cannot be read at all.
        """
        self._absorb()
        with self._reading() as connection:
            return verification.verify(connection, progress)

    # --- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; the last one to close it folds the write-ahead log in. A later call opens it again.

        Raises:
            StoreError: when SQLite cannot close it.
        """
        with self._file.lock:
            try:
                self._fold()
            finally:
                with self._turn:
                    for journal in self._journals:
                        journal.close()
            self._file.close()

    def reset_after_fork(self) -> None:
        """In a forked child: fresh locks; the connection was closed before the fork and opens again when needed."""
        self._file.reset_after_fork()


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
            _insert_rows(connection, rows)
        except UnicodeEncodeError:
            _insert_rows(connection, list(map(clean_text, rows)))  # those that are in already are ignored
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors, a full disk for one, have rolled back already
            connection.execute("ROLLBACK")
        raise
    return connection.total_changes - before


def _insert_rows(connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> None:
    # Python gives up its lock for each statement, and may wait five milliseconds until it has it again where another thread computes.
    # https://docs.python.org/3/library/sys.html#sys.setswitchinterval: so, as many rows in a statement as go.
    whole = len(rows) // _TOGETHER * _TOGETHER
    for start in range(0, whole, _TOGETHER):
        connection.execute(_INSERT_TOGETHER, list(chain.from_iterable(rows[start : start + _TOGETHER])))
    connection.executemany(_INSERT, rows[whole:])
