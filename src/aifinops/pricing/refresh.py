"""A newer list of models than the one that came with the package: made or read, put into use, and taken back. Never by itself.

It lies in the user's data directory and is used as long as it is newer than the bundled one. A call never waits for any of this: the
list is looked for once, when the price book is made.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from aifinops._version import __version__
from aifinops.errors import AIFinOpsError, ConfigurationError, PricingError
from aifinops.pricing.lists import PriceList, bundled_lists, load_bundled, read_list

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "STALE_DAYS",
    "compiled",
    "current",
    "folder",
    "from_text",
    "in_use",
    "installed",
    "is_newer",
    "place",
    "put",
    "refreshed",
    "undo",
]

STALE_DAYS = 180
"""Age from which a list is said to be stale, days: model prices moved several times in as long."""

_NAME = "llm.jsonl"
_ANEW = "aifinops prices update, or aifinops prices update --undo"
_FORGOTTEN_S = 3600
_said: set[str] = set()


def place(given: str | None) -> str:
    """Where a refreshed list is: as set, else `aifinops/prices` in the user's data directory."""
    return os.path.expanduser(given) if given else os.path.join(_user_data(), "prices")


def folder(given: str | None) -> Path:
    """`place` as a path."""
    from pathlib import Path

    return Path(place(given))


def _user_data() -> str:
    if sys.platform == "linux" and "ANDROID_DATA" not in os.environ:
        # What platformdirs answers here, by the XDG Base Directory Specification; importing it takes longer than reading all prices.
        home = os.environ.get("XDG_DATA_HOME", "").strip() or os.path.expanduser("~/.local/share")
        return os.path.join(home, "aifinops")
    import platformdirs

    return platformdirs.user_data_dir("aifinops", appauthor=False)


def current(place: Path) -> PriceList:
    """The list of models in use: the refreshed one while it is newer than the bundled one."""
    path, bundled = place / _NAME, load_bundled()
    if not path.is_file():
        return bundled
    try:
        fresh = refreshed(place)
    except ConfigurationError as error:  # pricing goes on with what the package brought
        _say(f"unreadable {path}", f"{error}; the bundled list is used. Make it anew: {_ANEW}")
        return bundled
    return fresh if fresh is not None and is_newer(fresh, bundled) else bundled


def refreshed(place: Path) -> PriceList | None:
    """The list that `put` wrote there, newer or not; None when there is none.

    Raises:
        ConfigurationError: when it is damaged.
    """
    path = place / _NAME
    if not path.is_file():
        return None
    try:
        header, _, rest = path.read_bytes().partition(b"\n")
        seal = json.loads(header).get("seal")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"the refreshed price list {path} cannot be read: {error}") from error
    if seal == _seal(rest):
        return _opened(path)
    if seal is not None and str(seal).split(" ")[-1] == _seal(rest).split(" ")[-1]:
        return _checked(path)  # whole, but another version of the package looked through it
    if seal is None:
        return _checked(path)  # put there by hand
    raise ConfigurationError(f"the refreshed price list {path} is damaged: it is not what was written")


def _seal(rest: bytes) -> str:
    """Proves that a list is whole and was looked through by this version; reading every row at each start would take too long."""
    import hashlib  # it brings OpenSSL, and few have a refreshed list

    return f"{__version__} {hashlib.sha256(rest).hexdigest()}"


def _opened(path: Path) -> PriceList:
    try:
        return read_list(path)
    except ConfigurationError as error:
        why = error.__cause__
        raise ConfigurationError(f"{path} is no compiled price list: {why}" if why else str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{path} is no compiled price list: its header is wrong ({error!r})") from error


def _checked(path: Path) -> PriceList:
    """A list whose every row was read."""
    found = _opened(path)
    try:
        count = sum(1 for _ in found.entries())
    except (AIFinOpsError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigurationError(f"{path} is no compiled price list: a row is wrong ({error!r})") from error
    if count != found.count:
        raise ConfigurationError(f"{path} has {count:,} of the {found.count:,} models of its header: it was cut off")
    return found


def in_use(place: str | Path, now: int) -> tuple[PriceList, ...]:
    """Every list that is asked after the user's own: models, then GPUs, storage and databases. A stale list of models is said once.

    Args:
        place: see `folder`. now: wall clock, nanoseconds since the epoch.
    """
    models = _current(place)
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
        import logging  # not above: it takes as long as pricing a call

        logging.getLogger("aifinops").warning("aifinops: %s", text)


def _current(place: str | Path) -> PriceList:
    if not os.path.isfile(os.path.join(place, _NAME)):
        return load_bundled()
    from pathlib import Path  # few have a refreshed list

    return current(Path(place))


def is_newer(one: PriceList, other: PriceList) -> bool:
    """By its version; of one version, by its date."""
    mine, theirs = _version(one.version), _version(other.version)
    return mine > theirs or (mine == theirs and (one.date or date.min) > (other.date or date.min))


def _version(text: str) -> tuple[int, ...]:
    """`0.2.3` -> (0, 2, 3); of `0.2.4rc1` the digits at the beginning of each part."""
    return tuple(int(found[0]) for part in text.split(".") if (found := re.match(r"\d+", part)))


def installed(day: date) -> tuple[PriceList, str, list[str]]:
    """The list of the installed genai-prices with ours laid over it: (list, its text, what of ours no longer fits).

    Args:
        day: its release day, the date of the list.

    Raises:
        ConfigurationError: when it is not installed.
        PricingError: when it has a structure that this version of aifinops does not know.
    """
    try:
        from aifinops.pricing.compiling import genai

        skipped: list[str] = []
        text = genai.compiled(day.isoformat(), skipped)
    except ImportError:
        raise ConfigurationError("genai-prices is not installed: pip install -U genai-prices") from None
    except (PricingError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise PricingError(
            f"the installed genai-prices has something that this version of aifinops cannot read ({error}): "
            "pip install -U aifinops, or an older genai-prices"
        ) from error
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
    found = compiled(path)
    if found.id != load_bundled().id:
        raise ConfigurationError(f"{path} is the list {found.id!r}; {load_bundled().id!r} is what can be refreshed")
    return found, path.read_text("utf-8")


def compiled(path: Path) -> PriceList:
    """A compiled list in a file (.jsonl), every row of it read.

    Raises:
        ConfigurationError: when it cannot be read, or is none.
    """
    return _checked(path)


def _read(text: str) -> PriceList:
    from pathlib import Path  # here and not above: pricing a call loads this module
    from tempfile import TemporaryDirectory

    try:
        with TemporaryDirectory() as place:
            path = Path(place) / _NAME
            path.write_text(text, "utf-8", newline="\n")
            return _checked(path)
    except OSError as error:
        raise ConfigurationError(f"no room for a temporary file: {error.strerror or error}") from error


def put(place: Path, text: str) -> Path:
    """Put a list into use, whole or not at all; its path.

    Raises:
        ConfigurationError: when it cannot be written; the list in use stays.
    """
    path = place / _NAME
    draft = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(place)
        with draft.open("xb") as file:
            file.write(_sealed(text))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error
    return path


def _sealed(text: str) -> bytes:
    first, _, rest = text.partition("\n")
    header = {**json.loads(first), "seal": _seal(rest.encode())}
    return f"{json.dumps(header, ensure_ascii=False, separators=(',', ':'))}\n{rest}".encode()


def _sweep(place: Path) -> None:
    """Drafts of updates that were killed; a younger one may be an update at work."""
    for draft in place.glob("llm.*.tmp"):
        with suppress(OSError):
            if time.time() - draft.stat().st_mtime > _FORGOTTEN_S:
                draft.unlink()


def undo(place: Path) -> bool:
    """Take a refreshed list out of use; False when there was none.

    Raises:
        ConfigurationError: when it cannot be deleted.
    """
    path = place / _NAME
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be deleted: {error.strerror or error}") from error
    return True
