"""Connections to PostgreSQL for a ledger: a few that lie idle between two questions, each of which waits for an answer only so long."""

from __future__ import annotations

import importlib
import os
import selectors
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from aifinops.errors import ConfigurationError, StoreError

__all__ = ["FORBIDDEN", "NOT_THERE", "TIMEOUT_S", "Connections"]

_IDLE = 4
TIMEOUT_S = 60.0
_GRACE_S = 5.0
"""How much longer than the server itself may need we wait for its answer: one that stands still keeps the connection alive and says nothing."""
# Said where the URL does not say otherwise: a machine that is gone is noticed within half a minute, not after two hours.
_DEFAULTS = {"connect_timeout": "5", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "20000", "application_name": "aifinops"}  # fmt: skip
# Codes of errors: https://www.postgresql.org/docs/current/errcodes-appendix.html
_ROLLED_BACK = frozenset({"40001", "40P01"})
FORBIDDEN = "42501"
NOT_THERE = frozenset({"3F000", "42P01"})


class Connections:
    """Connections to one database, opened when they are needed.

    Args:
        dsn: where, as libpq takes it. Its password is never shown.
        schema: of the ledger, for `location`.
        timeout_s: the most that the server spends on one statement, seconds.

    Raises:
        ConfigurationError: when psycopg is not installed, or cannot read `dsn`.
    """

    def __init__(self, dsn: str, schema: str, timeout_s: float) -> None:
        self._driver = _import()
        self._bounded = _bounded(self._driver)
        self._dsn = _parse(self._driver, dsn)
        self._schema = schema
        self._timeout_s = timeout_s
        self._idle: list[Any] = []
        self._start()
        weakref.finalize(self, _close_all, self._idle, os.getpid())

    def _start(self) -> None:
        # Re-entrant: a finalizer or a signal handler may come in here in the thread that is in here.
        self._lock = threading.RLock()
        self._pid = os.getpid()

    @property
    def location(self) -> str:
        """Where the ledger is, without the password."""
        place = self._dsn
        where = f"{place.get('user', '')}@{place.get('host', 'localhost')}:{place.get('port', '5432')}"
        return f"postgresql://{where}/{place.get('dbname', '')}?schema={self._schema}"

    def do(self, work: Callable[[Any], Any]) -> Any:
        """Do something on a connection; once more when it was lost or the server has rolled it back.

        Raises:
            StoreError: when it failed; its cause is the driver's error.
        """
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
    def patient(self, connection: Any) -> Iterator[None]:
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
        if code == FORBIDDEN:
            hint = "; let a superuser run what aifinops.ledger.postgres.setup_sql(role=...) returns"
        elif code == "57014":
            hint = f"; ask for a shorter period, or allow more time: ?timeout_s={self._timeout_s * 5:g}"
        elif code is None:
            hint = "; look whether the server runs, and whether host, port and password in AIFINOPS_LEDGER are right"
        return StoreError(f"the ledger {self.location}: {text}{hint}")

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
        patience_s = TIMEOUT_S
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
