"""The ledger: what was spent, on what, by whom. `open_ledger` finds the right kind for a path or URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Ledger

if TYPE_CHECKING:
    from aifinops.charges import Charge
    from aifinops.ledger.spool import Spooled

__all__ = ["Journey", "default_path", "open_ledger", "path_of", "spool_folder", "spool_of"]

_MEMORY = frozenset({"memory", "memory://", ":memory:"})
_FORMS = (
    '"memory", a file such as "./ledger.db", "sqlite:///ledger.db" (four slashes for an absolute path), '
    '"postgresql://user@host/database", "clickhouse://user@host:8123/database", "chdb:///directory" or "otlp://collector:4318"'
)
_SERVERS = {
    "postgresql": "aifinops.ledger.postgres",
    "postgres": "aifinops.ledger.postgres",
    "clickhouse": "aifinops.ledger.clickhouse",
    "clickhouses": "aifinops.ledger.clickhouse",
    "chdb": "aifinops.ledger.clickhouse",
}
_OTLP = frozenset({"otlp", "otlps", "otlp+http", "otlp+https"})


@dataclass(frozen=True, slots=True)
class Journey:
    """How entries get to a ledger that is elsewhere.

    Attributes:
        spool: folder of what is on its way, one below it for each ledger; None for `spool` in the user's data directory.
        max_bytes: the most that one of them may take on the disk; None for 1 GiB.
        beside: what a log record says of a charge besides the charge itself. schema_url: of those names.
    """

    spool: str | None = None
    max_bytes: int | None = None
    beside: Callable[[Charge], Mapping[str, Any]] | None = None
    schema_url: str = ""


def default_path() -> Path:
    """`aifinops/ledger.db` in the user's data directory."""
    import platformdirs

    return Path(platformdirs.user_data_dir("aifinops", appauthor=False)) / "ledger.db"


def open_ledger(
    where: str | os.PathLike[str] | None = None,
    *,
    create: bool = True,
    journey: Journey = Journey(),
    copy_to: str | None = None,
) -> Ledger:
    """Open the ledger at a path or URL; None for the default file.

    A ledger elsewhere stands behind a spool on this machine's disk (`aifinops.ledger.spool`), so that no metered call waits for it.

    Args:
        where: `memory`, a path (`~` is expanded), `sqlite:///path`, relative as in SQLAlchemy's URLs, or the URL of a server:
            `postgresql://`, `clickhouse://`, `clickhouses://` (with TLS), `otlp://host:4318`; `chdb:///directory` is ClickHouse's engine
            in this process.
        create: False refuses a ledger that is not there instead of making it, and gives one on a database server without a spool: for readers.
        journey: for a ledger that is elsewhere. copy_to: the URL of one that is given a copy of every entry.

    Raises:
        ConfigurationError: naming the place and what to type, when it cannot be opened or is no ledger of ours.
        StoreError: with `create=False`, when a server cannot be reached.
    """
    if copy_to is not None:
        copies = _elsewhere(copy_to, journey, create=True)
        if copies is None:
            raise ConfigurationError(
                f'copy_to {_masked(copy_to)!r} is no ledger elsewhere; write "otlp://collector:4318"'
            )
        from aifinops.ledger.copies import Copied

        return Copied(open_ledger(where, create=create, journey=journey), _spooled(*copies, journey))
    text = os.fspath(where) if where is not None else str(default_path())
    if not text.strip():
        raise ConfigurationError(f"ledger {where!r} is no path; write {_FORMS}")
    if text in _MEMORY:
        from aifinops.ledger.memory import MemoryLedger

        return MemoryLedger()
    elsewhere = _elsewhere(text, journey, create=create)
    if elsewhere is not None:
        # Who only reads wants to know at once that a server is away; what only sends has nothing but its spool.
        return elsewhere[0] if not create and _scheme(text) in _SERVERS else _spooled(*elsewhere, journey)
    from aifinops.ledger.sqlite import SqliteLedger

    return SqliteLedger(_path(text), create=create)


def _elsewhere(text: str, journey: Journey, *, create: bool) -> tuple[Ledger, str] | None:
    """The ledger at a URL and where it is, without secrets; None for what lies in memory or in a file."""
    from importlib import import_module

    module = _SERVERS.get(_scheme(text))
    if module is not None:
        return import_module(module).open_url(text, create=create), _masked(text)
    if _scheme(text) in _OTLP:
        from aifinops.ledger.otlp import OtlpLedger

        target = OtlpLedger(text, beside=journey.beside, schema_url=journey.schema_url)
        return target, target.location
    return None


def _spooled(ledger: Ledger, location: str, journey: Journey) -> Spooled:
    from aifinops.ledger.spool import MAX_BYTES, Spooled

    return Spooled(ledger, spool_folder(location, journey.spool), max_bytes=journey.max_bytes or MAX_BYTES)


def _scheme(text: str) -> str:
    """What stands before `://`; `otlp` alone is the collector that the standard variables name."""
    scheme, separator, _ = text.partition("://")
    return scheme if separator or text == "otlp" else ""


def spool_folder(location: str, spool: str | None = None) -> Path:
    """Where entries wait that are on their way to a ledger.

    Args:
        location: of the ledger, without user and password: those may change while something waits.
        spool: as in `Journey`.
    """
    import hashlib

    if spool is None:
        import platformdirs

        folder = Path(platformdirs.user_data_dir("aifinops", appauthor=False)) / "spool"
    else:
        folder = Path(spool).expanduser()
    return folder / hashlib.sha256(location.encode()).hexdigest()[:16]


def spool_of(where: str, spool: str | None = None) -> Path | None:
    """The folder of what is on its way to the ledger at a URL; None for what lies in memory or in a file.

    Args:
        where: as in `open_ledger`. spool: as in `Journey`.

    Raises:
        ConfigurationError: for an address that is none.
    """
    if _scheme(where) in _SERVERS:
        return spool_folder(_masked(where), spool)
    if _scheme(where) not in _OTLP:
        return None
    from aifinops.ledger.otlp import location_of

    return spool_folder(location_of(where), spool)


def path_of(where: str | os.PathLike[str] | None) -> Path | None:
    """The file of a ledger, or beside which lies what belongs to it on this machine: the default one for a ledger elsewhere.

    None for a ledger in memory.

    Raises:
        ConfigurationError: when `where` is no path.
    """
    text = os.fspath(where) if where is not None else str(default_path())
    if text in _MEMORY:
        return None
    return default_path() if _scheme(text) in {*_SERVERS, *_OTLP} else _path(text)


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
