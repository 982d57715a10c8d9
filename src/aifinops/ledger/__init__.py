"""The ledger: what was spent, on what, by whom. `open_ledger` finds the right kind for a path or URL."""

from __future__ import annotations

import os
from pathlib import Path

from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Ledger

__all__ = ["default_path", "open_ledger", "path_of"]

_MEMORY = frozenset({"memory", "memory://", ":memory:"})
_FORMS = (
    '"memory", a file such as "./ledger.db", "sqlite:///ledger.db" (four slashes for an absolute path), '
    '"postgresql://user@host/database", "clickhouse://user@host:8123/database" or "chdb:///directory"'
)
_SERVERS = {
    "postgresql": "aifinops.ledger.postgres",
    "postgres": "aifinops.ledger.postgres",
    "clickhouse": "aifinops.ledger.clickhouse",
    "clickhouses": "aifinops.ledger.clickhouse",
    "chdb": "aifinops.ledger.clickhouse",
}


def default_path() -> Path:
    """`aifinops/ledger.db` in the user's data directory."""
    import platformdirs

    return Path(platformdirs.user_data_dir("aifinops", appauthor=False)) / "ledger.db"


def open_ledger(where: str | os.PathLike[str] | None = None, *, create: bool = True) -> Ledger:
    """Open the ledger at a path or URL; None for the default file.

    A ledger on a server stands behind a spool on this machine's disk (`aifinops.ledger.spool`), so that no metered call waits for it.

    Args:
        where: `memory`, a path (`~` is expanded), `sqlite:///path`, relative as in SQLAlchemy's URLs, or the URL of a server:
            `postgresql://`, `clickhouse://`, `clickhouses://` (with TLS); `chdb:///directory` is ClickHouse's engine in this process.
        create: False refuses a ledger that is not there instead of making it, and gives one on a server without a spool: for readers.

    Raises:
        ConfigurationError: naming the place and what to type, when it cannot be opened or is no ledger of ours.
        StoreError: with `create=False`, when a server cannot be reached.
    """
    text = os.fspath(where) if where is not None else str(default_path())
    if not text.strip():
        raise ConfigurationError(f"ledger {where!r} is no path; write {_FORMS}")
    if text in _MEMORY:
        from aifinops.ledger.memory import MemoryLedger

        return MemoryLedger()
    module = _SERVERS.get(_scheme(text))
    if module is not None:
        return _elsewhere(text, module, create=create)
    from aifinops.ledger.sqlite import SqliteLedger

    return SqliteLedger(_path(text), create=create)


def _elsewhere(url: str, module: str, *, create: bool) -> Ledger:
    import hashlib
    from importlib import import_module

    from aifinops.ledger.spool import Spooled

    ledger: Ledger = import_module(module).open_url(url, create=create)
    if not create:
        return ledger
    name = hashlib.sha256(url.encode()).hexdigest()[:16]  # one folder a target; its address may have a password in it
    return Spooled(ledger, default_path().with_name(f"spool-{name}"))


def _scheme(text: str) -> str:
    scheme, separator, _ = text.partition("://")
    return scheme if separator else ""


def path_of(where: str | os.PathLike[str] | None) -> Path | None:
    """The file of a ledger, or beside which lies what belongs to it on this machine: the default one for a ledger on a server.

    None for a ledger in memory.

    Raises:
        ConfigurationError: when `where` is no path.
    """
    text = os.fspath(where) if where is not None else str(default_path())
    if text in _MEMORY:
        return None
    return default_path() if _scheme(text) in _SERVERS else _path(text)


def _path(text: str) -> Path:
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme != "sqlite" or not rest.startswith("/") or len(rest) == 1:
            raise ConfigurationError(f"ledger {_masked(text)!r} is of no known kind; write {_FORMS}")
        text = rest[1:]
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"ledger {text!r}: {error}; write the path in full") from None


def _masked(url: str) -> str:
    """A URL without the password that it may hold."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://***@{rest.rpartition('@')[2]}" if "@" in rest else url
