"""Where balances live: one interface, and one module for each place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aifinops.budgets.stores.base import Store
from aifinops.errors import ConfigurationError

__all__ = ["open_store"]

_SERVERS = {
    "redis": "aifinops.budgets.stores.redis",
    "rediss": "aifinops.budgets.stores.redis",
    "unix": "aifinops.budgets.stores.redis",
    "valkey": "aifinops.budgets.stores.redis",
    "valkeys": "aifinops.budgets.stores.redis",
    "postgres": "aifinops.budgets.stores.postgres",
    "postgresql": "aifinops.budgets.stores.postgres",
}
_FORMS = '"memory", a path, "sqlite:///path", "redis://host:6379/0", "valkey://host:6379/0" or "postgresql://user@host/database"'


def open_store(target: Any) -> Store:
    """A store from what people write.

    Args:
        target: `"memory"`, a path or `sqlite:///path`, a URL of Valkey, Redis or PostgreSQL, or a store.

    Raises:
        ConfigurationError: when it cannot be opened; it says what to type.
    """
    if hasattr(target, "run") and hasattr(target, "capabilities"):
        found: Store = target
        return found
    if not isinstance(target, (str, Path)) or not str(target).strip():
        raise ConfigurationError(f"budget store={target!r} is no store; write {_FORMS}")
    text = str(target).strip()
    if text == "memory":
        from aifinops.budgets.stores.memory import MemoryStore

        return MemoryStore()
    scheme, found_scheme, rest = text.partition("://")
    if not found_scheme:
        return _file(Path(text).expanduser())
    if scheme == "sqlite":
        return _file(Path(rest.removeprefix("/")).expanduser())
    if scheme not in _SERVERS:
        # Not the whole text: there may be a password in it.
        raise ConfigurationError(f"budget store {scheme!r}:// is unknown; write {_FORMS}")
    from importlib import import_module

    opened: Store = import_module(_SERVERS[scheme]).open_url(text)
    return opened


def _file(path: Path) -> Store:
    from aifinops.budgets.stores.sqlite import SqliteStore

    return SqliteStore(path)
