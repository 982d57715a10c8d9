"""SQLite files of ours: private, in WAL mode, never mistaken for another program's, and closed around forks."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from aifinops.errors import ConfigurationError, StoreError
from aifinops.forking import known

__all__ = ["BUSY_S", "Database", "Kind", "forks"]

BUSY_S = 5.0
"""How long a write waits for another process that holds the file, seconds."""


def _as_it_is(connection: sqlite3.Connection) -> None:
    """Most files need nothing before their tables are made."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is for.

    Attributes:
        what: for messages, such as `ledger`. first: what makes the first one, for the message that there is none.
        application: number in `PRAGMA application_id`, by which our files are told from other programs' and from one another.
        schema: version of the tables, kept in `PRAGMA user_version`. tables: statements that make them.
        migrations: older version -> statements that make the next one of it.
        prepare: called with each new connection for writing, before its tables are made.
        sqlite: the oldest version that knows the statements; https://www.sqlite.org/changes.html.
        elsewhere: how to name another file. memory: how to do without one.
    """

    what: str
    first: str
    application: int
    schema: int
    tables: tuple[str, ...]
    sqlite: tuple[int, ...]
    elsewhere: str
    memory: str
    migrations: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    prepare: Callable[[sqlite3.Connection], None] = _as_it_is


class Database:
    """One file, made with mode 0600 (its directory 0700) when it is not there, and one connection for writing.

    Args:
        path: the file. kind: what it is for. create: False refuses a file that is not there.
        timeout_s: how long a write waits for another process, seconds.

    Attributes:
        lock: hold it while `connection` is in use.
        connection: for writing; None when it is closed: `connection or open()`.
        in_child: called in a forked child, for what else the owner has open.
        found: schema of the file when it was opened first, 0 when it was not there.

    Raises:
        ConfigurationError: naming the path, when it cannot be opened, is not of this kind or is of a newer schema.
    """

    def __init__(
        self, path: str | os.PathLike[str], kind: Kind, *, create: bool = True, timeout_s: float = BUSY_S
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self.timeout_s = timeout_s
        self._renew_locks()
        self.connection: sqlite3.Connection | None = None
        self.in_child: Callable[[], None] | None = None
        self.found: int | None = None
        self._check_version()
        self._take(create)
        forks.watch(self)

    def open(self) -> sqlite3.Connection:
        """Open it again, after `close` or a fork.

        Raises:
            StoreError: when that fails.
        """
        try:
            return self._take(create=True)
        except ConfigurationError as error:
            raise StoreError(str(error)) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, read-only: a long report neither holds up a call nor can change anything.

        Raises:
            sqlite3.Error: when the file cannot be opened.
        """
        with self._read_lock, closing(self._connect("ro")) as connection:
            connection.execute("PRAGMA query_only = 1")
            yield connection

    def failed(self, error: Exception) -> StoreError:
        """The error to raise in place of SQLite's or the system's."""
        return StoreError(f"{self.kind.what} {self.path}: {error}")

    def close(self) -> None:
        """Close the file; the last one to close it folds the write-ahead log in.

        Raises:
            StoreError: when SQLite cannot close it.
        """
        with self.lock:
            connection, self.connection = self.connection, None
            if connection is not None:
                try:
                    connection.close()
                except sqlite3.Error as error:
                    raise self.failed(error) from error

    def reset_after_fork(self) -> None:
        """In a forked child: fresh locks; the connection was closed before the fork and opens again when needed."""
        self._renew_locks()
        if self.connection is not None and self._pid != os.getpid():
            # A fork that did not tell Python beforehand (some servers written in C): the best that is left to do.
            forks.abandon(self.connection)
            self.connection = None
        if self.in_child is not None:
            self.in_child()

    def stop(self) -> None:
        """Nobody is in here and the file is not open any more, until `go_on`."""
        self.lock.acquire()
        self._read_lock.acquire()
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # nothing may keep the user's process from forking
                connection.close()

    def go_on(self) -> None:
        """After `stop`."""
        self._read_lock.release()
        self.lock.release()

    # --- opening ------------------------------------------------------------------------------------------------------

    def _renew_locks(self) -> None:
        # Re-entrant: the garbage collector may settle an abandoned stream while this thread is in here.
        self.lock = threading.RLock()
        self._read_lock = threading.RLock()

    def _check_version(self) -> None:
        if sqlite3.sqlite_version_info < self.kind.sqlite:
            wanted = ".".join(map(str, self.kind.sqlite[:2]))
            raise ConfigurationError(
                f"this Python has SQLite {sqlite3.sqlite_version}; the {self.kind.what} needs {wanted} or newer. "
                f"Use a Python with a newer one, or {self.kind.memory}"
            )

    def _take(self, create: bool) -> sqlite3.Connection:
        with forks.opening, self._telling():
            self._prepare(create)
            self.connection = connection = self._set_up()
        self._pid = os.getpid()
        return connection

    def _elsewhere(self, trouble: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.kind.what} {self.path} {trouble}. Nothing was changed. Use another file: {self.kind.elsewhere}"
        )

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what the system says on opening into a sentence that names the path and what to type."""
        try:
            yield
        except ConfigurationError:
            raise
        except sqlite3.DatabaseError as error:
            no_database = "not a database" in str(error)
            trouble = "is no SQLite database" if no_database else f"cannot be opened: {error}"
            raise self._elsewhere(trouble) from error
        except OSError as error:
            raise self._elsewhere(f"cannot be opened: {error.strerror or error}") from error
        except ValueError as error:
            raise self._elsewhere(f"is no path: {error}") from error

    def _prepare(self, create: bool) -> None:
        path = self.path
        if path.exists():
            if not path.is_file():
                raise self._elsewhere("is a directory" if path.is_dir() else "is no regular file")
            if not os.access(path, os.R_OK | os.W_OK):
                raise self._elsewhere("cannot be opened: no permission to read and write it")
            return
        if not create:
            what = self.kind.what
            raise ConfigurationError(f"there is no {what} at {path}; check the path, or {self.kind.first}")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # SQLite gives its -wal and -shm files the mode of the file itself.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return  # another process was quicker

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=self.timeout_s,
            isolation_level=None,
            check_same_thread=False,  # our locks see to it
        )

    def _set_up(self) -> sqlite3.Connection:
        connection = self._connect("rw")
        try:
            self.kind.prepare(connection)
            self._claim(connection)
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _claim(self, connection: sqlite3.Connection) -> None:
        """Make the tables in an empty file, bring older ones up to date; refuse a file that is not ours.

        BEGIN also proves that we may write.
        """
        connection.execute("BEGIN")  # one view of the file: another process may be making it at this moment
        self._check_owner(connection)
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        schema = self._check_owner(connection)
        for statement in self._statements(schema):
            connection.execute(statement)
        connection.execute("COMMIT")
        self.found = schema if self.found is None else self.found

    def _statements(self, schema: int) -> list[str]:
        """What makes this version's tables of those of another, 0 for none. All in one transaction: whole or not at all."""
        if schema == self.kind.schema:
            return []
        steps = [self.kind.migrations[one] for one in range(schema, self.kind.schema)] if schema else [self.kind.tables]
        marks = (f"application_id = {self.kind.application}", f"user_version = {self.kind.schema}")
        return [*(statement for step in steps for statement in step), *(f"PRAGMA {mark}" for mark in marks)]

    def _check_owner(self, connection: sqlite3.Connection) -> int:
        """The schema of a file of ours, 0 for an empty one."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not application:
            return 0
        if application != self.kind.application:
            raise self._elsewhere("is a database of another program")
        if schema > self.kind.schema:
            raise self._elsewhere(
                f"was written by a newer aifinops (schema {schema}; this one knows up to {self.kind.schema}): "
                "pip install --upgrade aifinops"
            )
        return int(schema)


def _use_wal(connection: sqlite3.Connection) -> None:
    # The switch needs the file for itself and does not wait as statements do; it is made once in a file's life.
    for attempt in range(100):
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError:
            if attempt == 99:
                raise
            time.sleep(BUSY_S / 100)


class Held(Protocol):
    """What a fork must not find in the middle of something."""

    def stop(self) -> None:
        """Nobody is in here any more, until `go_on`."""
        ...

    def go_on(self) -> None:
        """After `stop`."""
        ...

    def reset_after_fork(self) -> None:
        """In the child: begin afresh."""
        ...


class _Forks:
    """Closes every file before a fork, so that the child inherits no SQLite state.

    It is not enough that the child never uses the parent's connection
    (https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_file_across_a_fork_): SQLite keeps one table of
    locks a file and process, and a child that inherits it believes that it holds locks which the system gave to its
    parent only. The parent, closing last as it thinks, would delete the write-ahead log under the child's hands.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.opening = threading.RLock()
        """Held while a file is opened: one that is new is not known here yet. Whoever holds it takes no other lock of a file."""
        self._open: weakref.WeakSet[Held] = weakref.WeakSet()
        self._stopped: list[Held] = []
        self._abandoned: list[sqlite3.Connection] = []
        self._registered = False

    def watch(self, database: Held) -> None:
        """Close it before every fork."""
        with self._lock:
            self._open.add(database)
            if not self._registered and hasattr(os, "register_at_fork"):
                self._registered = True
                known(self._in_child)
                os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def abandon(self, connection: sqlite3.Connection) -> None:
        """Keep a parent's connection from ever being closed in this process: even that is forbidden."""
        self._abandoned.append(connection)

    def _before(self) -> None:
        self._lock.acquire()
        self._stopped = list(self._open)
        for database in self._stopped:
            database.stop()
        self.opening.acquire()

    def _in_parent(self) -> None:
        self.opening.release()
        stopped, self._stopped = self._stopped, []
        for database in stopped:
            database.go_on()
        self._lock.release()

    def _in_child(self) -> None:
        self._lock, self.opening = threading.RLock(), threading.RLock()
        self._stopped = []
        for database in list(self._open):
            database.reset_after_fork()


forks = _Forks()
