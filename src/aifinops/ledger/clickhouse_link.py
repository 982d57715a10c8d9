"""The two ways to ClickHouse: a server over HTTP, and the same engine in this process. Both take text and give rows.

Values are written into statements as literals (`literal`), since only so both drivers take all of them, NUL included.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from aifinops.errors import ConfigurationError, StoreError

__all__ = ["EngineLink", "Link", "ServerLink", "literal", "open_link"]

_READ = {
    "output_format_json_quote_64bit_integers": "1",  # and longer ones: no reader of JSON need know how long an integer may be
    "output_format_json_quote_decimals": "1",
    "do_not_merge_across_partitions_select_final": "1",  # entries of one moment are in one partition
    "max_query_size": "16777216",
}
_WRITE = {"async_insert": "0", "max_partitions_per_insert_block": "0"}
_FORM = "clickhouse://user:password@host:8123/database"


def literal(value: str | int) -> str:
    """A value as ClickHouse's SQL has it (https://clickhouse.com/docs/sql-reference/syntax#string)."""
    if isinstance(value, int):
        return str(value)
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\0", "\\0") + "'"


def _settings(values: dict[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


class Link(Protocol):
    """What a ledger needs of a driver.

    Attributes:
        kind: for `LedgerInfo`. location: where, without secrets. database: its name. shared: whether several processes can write.
    """

    kind: str
    location: str
    database: str
    shared: bool

    def query(self, select: str) -> list[list[Any]]:
        """The rows of a SELECT; integers of 64 bits and more, and decimals, as text.

        Raises:
            StoreError: when it fails.
        """
        ...

    def insert(self, table: str, columns: Sequence[str], rows: bytes) -> None:
        """Insert rows, each a line with a JSON array.

        Raises:
            StoreError: when it fails; some rows may be in.
        """
        ...

    def command(self, statement: str) -> None:
        """Do something that gives no rows.

        Raises:
            StoreError: when it fails.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...

    def reset_after_fork(self) -> None:
        """In a forked child: forget the parent's connections."""
        ...


def open_link(url: str, timeout_s: float) -> Link:
    """The way to a ledger.

    Args:
        url: `clickhouse://user:password@host:8123/database`, `clickhouses://` for TLS, or `chdb:///directory?database=name`.
        timeout_s: the most that a statement may take, seconds.

    Raises:
        ConfigurationError: when it cannot be read, or its driver is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "chdb":
        query = dict(parse_qsl(parts.query))
        if parts.netloc or len(parts.path) < 2:
            raise ConfigurationError("the ledger's address names no directory; write chdb:///directory, or chdb:////directory for an absolute path")  # fmt: skip
        return EngineLink(Path(unquote(parts.path[1:])).expanduser(), query.get("database", "aifinops"), timeout_s)
    return ServerLink(url, timeout_s)


class ServerLink:
    """A server, by the driver `clickhouse-connect`, whose pool of connections all threads share."""

    kind = "clickhouse"
    shared = True

    def __init__(self, url: str, timeout_s: float) -> None:
        self._driver = _import(
            "clickhouse_connect", "a ledger in ClickHouse needs clickhouse-connect", "aifinops[clickhouse]"
        )
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        secure = parts.scheme == "clickhouses" or query.get("secure", "") in ("1", "true")
        try:
            port = parts.port or (8443 if secure else 8123)
        except ValueError:
            raise ConfigurationError(f"the port of the ledger's address is no number; write {_FORM}") from None
        if not parts.hostname:
            raise ConfigurationError(f"the ledger's address names no host; write {_FORM}")
        self.database = unquote(parts.path.strip("/")) or "aifinops"
        self.location = f"{parts.scheme}://{parts.hostname}:{port}/{self.database}"
        self._timeout_s = timeout_s
        self._to: dict[str, Any] = {
            "host": parts.hostname,
            "port": port,
            "username": unquote(parts.username or "default"),
            "password": unquote(parts.password or ""),
            "interface": "https" if secure else "http",
            "verify": query.get("verify", "1") not in ("0", "false"),
            "connect_timeout": 5,
            "send_receive_timeout": timeout_s + 5,
            "autogenerate_session_id": False,  # statements of one session must not run side by side
            "client_name": "aifinops",
        }
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """In a forked child: a new client; the connections are the parent's."""
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._client: Any = None

    def _connected(self) -> Any:
        if self._pid != os.getpid():
            self.reset_after_fork()
        with self._lock:
            if self._client is None:
                self._client = self._driver.get_client(**self._to)
            return self._client

    def query(self, select: str) -> list[list[Any]]:
        """The rows of a SELECT.

        Raises:
            StoreError: when it fails.
        """
        settings = {**_READ, "max_execution_time": str(int(self._timeout_s))}
        text = self._safely(
            lambda client: client.raw_query(f"{select} SETTINGS {_settings(settings)}", fmt="JSONCompactEachRow")
        )
        return [json.loads(line) for line in text.split(b"\n") if line]

    def insert(self, table: str, columns: Sequence[str], rows: bytes) -> None:
        """Insert lines of JSON arrays.

        Raises:
            StoreError: when it fails.
        """
        settings = {**_WRITE, "max_execution_time": str(int(self._timeout_s))}
        self._safely(
            lambda client: client.raw_insert(
                table, list(columns), insert_block=rows, settings=settings, fmt="JSONCompactEachRow"
            )
        )

    def command(self, statement: str) -> None:
        """Do something that gives no rows.

        Raises:
            StoreError: when it fails.
        """
        self._safely(lambda client: client.command(statement))

    def _safely(self, work: Any) -> Any:
        try:
            return work(self._connected())
        except Exception as error:  # the driver's own, urllib3's and the system's
            password = self._to["password"]
            said = str(error).split("\n")[0][:500]
            if password:
                said = said.replace(password, "***")
            raise StoreError(f"the ledger {self.location}: {said}; look whether the server runs, and whether host, port, user and password in AIFINOPS_LEDGER are right") from error  # fmt: skip

    def close(self) -> None:
        """Let go of what is open. A later statement opens it again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()


class _Engine:
    """The engine of this process: it has one directory at a time, and takes one statement at a time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.path: Path | None = None
        self.connection: Any = None
        self.users: weakref.WeakSet[EngineLink] = weakref.WeakSet()
        self.pid = os.getpid()

    def close(self) -> None:
        """Let go of the directory."""
        connection, self.connection, self.path = self.connection, None, None
        if connection is not None and self.pid == os.getpid():
            connection.close()


_engine = _Engine()


class EngineLink:
    """The engine in this process, by the package `chdb`. Its directory belongs to one process at a time, and so does the ledger."""

    kind = "chdb"
    shared = False

    def __init__(self, path: Path, database: str, timeout_s: float) -> None:
        self._driver = _import("chdb", "a ledger of the engine in this process needs chdb", "chdb")
        self.path = path.absolute()
        self.database = database
        self.location = f"chdb:///{self.path}?database={database}"
        self._timeout_s = timeout_s

    def _connected(self) -> Any:
        if _engine.pid != os.getpid():
            raise StoreError(f"the ledger {self.location}: the engine does not outlive a fork; use clickhouse:// there")
        if _engine.path != self.path and not set(_engine.users) - {self}:
            _engine.close()
        if _engine.connection is None:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            _engine.connection = self._driver.connect(str(self.path))
            _engine.path = self.path
        elif _engine.path != self.path:
            raise StoreError(f"the ledger {self.location}: the engine of this process has {_engine.path} open; close that first, or use ?database=")  # fmt: skip
        _engine.users.add(self)
        return _engine.connection

    def _ask(self, statement: str, form: str = "TabSeparated") -> str:
        with _engine.lock:
            connection = self._connected()
            try:
                found: str = connection.query(statement, form).data()
                return found
            except StoreError:
                raise
            except Exception as error:  # the driver's, which has one kind for everything
                said = str(error).split("\n")[0][:500]
                raise StoreError(f"the ledger {self.location}: {said}") from error

    def query(self, select: str) -> list[list[Any]]:
        """The rows of a SELECT.

        Raises:
            StoreError: when it fails.
        """
        settings = {**_READ, "max_execution_time": str(int(self._timeout_s))}
        text = self._ask(f"{select} SETTINGS {_settings(settings)}", "JSONCompactEachRow")
        return [json.loads(line) for line in text.split("\n") if line]

    def insert(self, table: str, columns: Sequence[str], rows: bytes) -> None:
        """Insert lines of JSON arrays.

        Raises:
            StoreError: when it fails.
        """
        settings = _settings({**_WRITE, "max_execution_time": str(int(self._timeout_s))})
        head = f"INSERT INTO {table} ({', '.join(columns)}) SETTINGS {settings} FORMAT JSONCompactEachRow\n"
        self._ask(head + rows.decode())

    def command(self, statement: str) -> None:
        """Do something that gives no rows.

        Raises:
            StoreError: when it fails.
        """
        self._ask(statement)

    def close(self) -> None:
        """Let go of what is open. A later statement opens it again."""
        with _engine.lock:
            _engine.users.discard(self)
            if not _engine.users:
                _engine.close()

    def reset_after_fork(self) -> None:
        """In a forked child: a new lock. The engine itself does not outlive a fork, see `_connected`."""
        _engine.lock = threading.RLock()


def _import(name: str, why: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(f"{why}: pip install '{what}'") from error
