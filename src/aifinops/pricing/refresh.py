"""A newer list of models than the one that came with the package: made or read, put into use, and taken back. Never by itself.

It lies in the user's data directory and is used as long as it is newer than the bundled one. A call never waits for any of this: the
list is looked for once, when the price book is made.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

from aifinops.errors import ConfigurationError
from aifinops.pricing.lists import PriceList, bundled_lists, load_bundled, read_list

__all__ = ["STALE_DAYS", "current", "folder", "from_text", "in_use", "installed", "is_newer", "put", "undo"]

logger = logging.getLogger("aifinops")

STALE_DAYS = 180
"""Age from which a list is said to be stale, days: model prices moved several times in as long."""

_NAME = "llm.jsonl"
_said: set[str] = set()


def folder(given: str | None) -> Path:
    """Where a refreshed list is: as set, else `aifinops/prices` in the user's data directory."""
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("aifinops", appauthor=False)) / "prices"


def current(place: Path) -> PriceList:
    """The list of models in use: the refreshed one while it is newer than the bundled one."""
    path, bundled = place / _NAME, load_bundled()
    if not path.is_file():
        return bundled
    try:
        fresh = read_list(path)
    except ConfigurationError as error:  # pricing goes on with what the package brought
        _say(f"unreadable {path}", f"{error} The bundled list is used; make it anew with: aifinops prices update")
        return bundled
    return fresh if is_newer(fresh, bundled) else bundled


def in_use(place: Path, now: int) -> tuple[PriceList, ...]:
    """Every list that is asked after the user's own: models, then GPUs, storage and databases. A stale list of models is said once.

    Args:
        place: see `folder`. now: wall clock, nanoseconds since the epoch.
    """
    models = current(place)
    age = (datetime.fromtimestamp(now // 1_000_000_000, UTC).date() - models.date).days if models.date else 0
    if age > STALE_DAYS:
        _say(
            "stale",
            f"the list of model prices is {age} days old ({models.id} {models.version} of {models.date}); "
            "refresh it: pip install -U aifinops, or pip install -U genai-prices and aifinops prices update",
        )
    return (models, *bundled_lists()[1:])


def _say(topic: str, text: str) -> None:
    if topic not in _said:
        _said.add(topic)
        logger.warning("aifinops: %s", text)


def is_newer(one: PriceList, other: PriceList) -> bool:
    """By its version; of one version, by its date."""
    mine, theirs = _version(one.version), _version(other.version)
    return mine > theirs or (mine == theirs and (one.date or date.min) > (other.date or date.min))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def installed(day: date) -> tuple[PriceList, str, list[str]]:
    """The list of the installed genai-prices with ours laid over it: (list, its text, what of ours no longer fits).

    Args:
        day: its release day, the date of the list.

    Raises:
        ConfigurationError: when it is not installed. PricingError: when it has a structure that is not known here.
    """
    try:
        from aifinops.pricing.compiling import genai

        skipped: list[str] = []
        text = genai.compiled(day.isoformat(), skipped)
    except ImportError:
        raise ConfigurationError("genai-prices is not installed: pip install -U genai-prices") from None
    found = _read(text)
    # Of the same version we know the release day better than whoever says "today".
    bundled = load_bundled()
    return (bundled if found.version == bundled.version else found), text, skipped


def from_text(path: Path) -> tuple[PriceList, str]:
    """A compiled list in a file, and its text.

    Raises:
        ConfigurationError: when it cannot be read or is no list of models.
    """
    if path.suffix != ".jsonl":
        raise ConfigurationError(
            f"{path} is no compiled list (.jsonl); a list of your own needs no update: AIFINOPS_PRICES={path}"
        )
    found = read_list(path)
    if found.id != load_bundled().id:
        raise ConfigurationError(f"{path} is the list {found.id!r}; {load_bundled().id!r} is what can be refreshed")
    return found, path.read_text("utf-8")


def _read(text: str) -> PriceList:
    from tempfile import NamedTemporaryFile  # here and not above: pricing a call loads this module

    with NamedTemporaryFile("w", encoding="utf-8", suffix=".jsonl") as file:
        file.write(text)
        file.flush()
        found = read_list(Path(file.name))
        for provider in found.providers:  # every row is parsed now, since the file goes away
            next(iter(found.entries(provider)), None)
        return found


def put(place: Path, text: str) -> Path:
    """Put a list into use, whole or not at all; its path.

    Raises:
        ConfigurationError: when it cannot be written; the list in use stays.
    """
    path = place / _NAME
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.write_text(text, "utf-8", newline="\n")
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error
    return path


def undo(place: Path) -> bool:
    """Take a refreshed list out of use; False when there was none."""
    path = place / _NAME
    if not path.exists():
        return False
    path.unlink()
    return True
