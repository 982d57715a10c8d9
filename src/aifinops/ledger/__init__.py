"""The ledger: what was spent, on what, by whom. `open_ledger` finds the right kind for a path or URL."""

from __future__ import annotations

import os
from pathlib import Path

from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Ledger

__all__ = ["default_path", "open_ledger", "path_of"]

_MEMORY = frozenset({"memory", "memory://", ":memory:"})
_FORMS = '"memory", a file such as "./ledger.db", or "sqlite:///ledger.db" (four slashes for an absolute path)'


def default_path() -> Path:
    """`aifinops/ledger.db` in the user's data directory."""
    import platformdirs

    return Path(platformdirs.user_data_dir("aifinops", appauthor=False)) / "ledger.db"


def open_ledger(where: str | os.PathLike[str] | None = None, *, create: bool = True) -> Ledger:
    """Open the ledger at a path or URL; None for the default file.

    Args:
        where: `memory`, a path (`~` is expanded) or `sqlite:///path`, relative as in SQLAlchemy's URLs.
        create: False refuses a file that is not there instead of making it.

    Raises:
        ConfigurationError: naming the path and what to type, when it cannot be opened or is no ledger of ours.
    """
    text = os.fspath(where) if where is not None else str(default_path())
    if not text.strip():
        raise ConfigurationError(f"ledger {where!r} is no path; write {_FORMS}")
    if text in _MEMORY:
        from aifinops.ledger.memory import MemoryLedger

        return MemoryLedger()
    from aifinops.ledger.sqlite import SqliteLedger

    return SqliteLedger(_path(text), create=create)


def path_of(where: str | os.PathLike[str] | None) -> Path | None:
    """The file of a ledger; None for one in memory.

    Raises:
        ConfigurationError: when `where` is no path.
    """
    text = os.fspath(where) if where is not None else str(default_path())
    return None if text in _MEMORY else _path(text)


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
