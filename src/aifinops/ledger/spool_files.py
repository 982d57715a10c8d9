"""The files of a spool: how they are named, what is in them, and whose they are.

Every process writes files of its own: `NAME.lock`, which it holds locked while it lives, and segments `NAME.NUMBER.v2.spool`.

A segment is a head, 16 hex digits of the place up to which it has been delivered and a line feed, and then entries as in a journal: eight
bytes, its length and the CRC-32 of the rest, and a charge as `aifinops.ledger.codec.frozen` makes it. The rest is zeros.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from aifinops.charges import Charge
from aifinops.ledger.codec import charge_of, thawed

try:
    import fcntl
except ImportError:  # no such locks on this system: charges then go to the target at once
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "AVAILABLE",
    "FRAME",
    "HEAD",
    "LOCK",
    "SEGMENT",
    "SUFFIX",
    "Frame",
    "Segment",
    "Source",
    "bytes_in",
    "charge_in",
    "claimed",
    "delivered_of",
    "files_in",
    "frames_of",
    "note",
    "reserved",
    "taken",
]

AVAILABLE = fcntl is not None
"""Whether this system has what a spool needs."""

SEGMENT = 1 << 20
"""Bytes that are reserved at a time."""

SUFFIX = ".v2.spool"
LOCK = ".lock"
HEAD = 17
FRAME = struct.Struct("<II")
_CHUNK = 1 << 19  # bytes that are read for a batch: two batches of ordinary charges, and no request of many megabytes


@dataclass(eq=False)
class Segment:
    """One file. `done`: the place up to which it is delivered. `end`: where its entries end; None: where they do when it is read."""

    path: Path
    done: int = HEAD
    end: int | None = None


@dataclass(eq=False)
class Source:
    """One process's files: its lock, which we hold, and its segments, oldest first."""

    lock: int
    path: Path
    segments: deque[Segment] = field(default_factory=deque)

    def release(self) -> None:
        """Let go of it; without segments it is deleted."""
        if not self.segments:
            self.path.unlink(missing_ok=True)
        os.close(self.lock)


def claimed(folder: Path) -> Source:
    """New files for this process: a lock, held, and no segment yet.

    Raises:
        OSError: when the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{os.getpid()}-{os.urandom(6).hex()}"
    fresh = folder / f"{name}.new"
    lock = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    # Locked before it has the name that others look for, so that no one takes it for a dead process's.
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return Source(lock, fresh.rename(folder / f"{name}{LOCK}"))


def reserved(path: Path, size: int) -> mmap.mmap:
    """A new file whose places on the disk are taken before it is mapped: a page without one would end the process.

    Raises:
        OSError: when there is no room; there is no file then.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _reserve(file, size)
        os.pwrite(file, b"%016x\n" % HEAD, 0)
        return mmap.mmap(file, size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    at = 0
    while at < size:
        at += os.pwrite(file, bytes(min(SEGMENT, size - at)), at)


Frame = tuple[int, bytes]
"""An entry and what its CRC-32 should be."""


def frames_of(segment: Segment, end: int | None, most: int) -> tuple[list[Frame], int, bool]:
    """The next entries: (entries, the place behind them, whether these are the last until `end`)."""
    file = os.open(segment.path, os.O_RDONLY)
    try:
        size = _CHUNK
        while True:
            data = os.pread(file, size if end is None else min(size, end - segment.done), segment.done)
            found, place, ended = _parsed(data, most, whole=len(data) < size)
            if found or ended:
                return found, segment.done + place, ended
            size *= 2  # one entry that is longer
    finally:
        os.close(file)


def _parsed(data: bytes, most: int, *, whole: bool) -> tuple[list[Frame], int, bool]:
    found: list[Frame] = []
    place = 0
    while len(found) < most:
        body = place + FRAME.size
        size, crc = FRAME.unpack_from(data, place) if body <= len(data) else (0, 0)
        if not size or body + size > len(data):
            # Behind the last entry, or in the middle of one: of what was cut off by the chunk, or by the death of the process.
            return found, place, whole or (body <= len(data) and not size)
        found.append((crc, data[body : body + size]))
        place = body + size
    return found, place, False


def charge_in(frame: Frame) -> Charge | None:
    """The charge of an entry; None where its checksum says that it is none."""
    crc, entry = frame
    if crc32(entry) != crc:
        return None
    try:
        return charge_of(thawed(entry))
    except (ValueError, TypeError, EOFError):
        return None


def note(segment: Segment, place: int) -> None:
    """Write down up to where a segment is delivered."""
    file = os.open(segment.path, os.O_WRONLY)
    try:
        os.pwrite(file, b"%016x\n" % place, 0)
    finally:
        os.close(file)
    segment.done = place


def delivered_of(path: Path) -> int:
    """Up to where a segment is delivered, as its head says."""
    with path.open("rb") as file:
        try:
            return max(HEAD, int(file.read(HEAD), 16))
        except ValueError:  # killed before it had its head
            return HEAD


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Those whose names end so, in order."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))
    except FileNotFoundError:
        return []


def bytes_in(folder: Path) -> int:
    """How much a folder takes on the disk."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total


def taken(path: Path) -> Source | None:
    """The files of a process that lives no more; None when it lives, or somebody else has taken them."""
    try:
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    source = Source(lock, path)
    names = [each for each in files_in(path.parent, SUFFIX) if each.name.startswith(f"{path.stem}.")]
    source.segments.extend(Segment(each, delivered_of(each)) for each in names)
    if source.segments and os.fstat(lock).st_nlink:
        return source
    source.segments.clear()
    source.release()
    return None
