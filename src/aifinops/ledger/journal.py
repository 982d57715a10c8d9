"""What a process has metered and not yet put into its ledger file: lines beside the file, one journal a process.

A journal is a file of reserved size that the process has mapped into its memory: an entry is a copy of some hundred bytes, where a
`write()` costs ten times that between calls of a client, and a transaction much more. What is in such a mapping is in the operating
system's hands, so it survives a SIGKILL, and entries go into the tables by the hundred. Nobody has to clean up: whoever reads the
ledger takes in every journal first, its own, those of living processes and those of dead ones. That is safe at any time and any number
of times, because the ledger knows each entry by its id. A living process holds a lock on its journal; only an unlocked one is deleted.

An entry is eight bytes, its length and the CRC-32 of the rest, and then a charge as `aifinops.ledger.codec.frozen` makes it; four zero
bytes stand where the next one would begin. An entry is there once its first eight bytes are. Emptying a journal puts that zero at its
beginning, and what is behind it is written over. A reader may come while an entry is being copied, over an older one: only the checksum
tells such a mixture from an entry. Earlier versions wrote lines of JSON; those that are left are still taken in.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from aifinops.ledger.codec import row_of_line, thawed

try:
    import fcntl
except ImportError:  # no such locks on this system: the ledger then writes its tables at once
    fcntl = None  # type: ignore[assignment]

__all__ = ["AVAILABLE", "Foreign", "Journal", "journals", "lock"]

AVAILABLE = fcntl is not None


def lock(file: int) -> bool:
    """Lock an open file for this process, for as long as it has it open; False where another one has, which is alive then."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


_FORM, _LINES = 3, 2  # of entries; a journal of another form is left to the version that knows it


def _suffix(schema: int, form: int = _FORM) -> str:
    return f".v{schema}.{form}.journal"


SIZE = 1 << 20
"""Bytes that a journal reserves; it grows when the tables cannot be written for a while."""

Row = Sequence[Any]
_HEAD = struct.Struct("<II")
_END = bytes(4)
_NOTHING = memoryview(b"")


class Journal:
    """This process's own. Not thread-safe: the ledger's lock is around it.

    Args:
        folder: where journals are. schema: of the entries; a journal of another schema is left to who knows it.

    Attributes:
        entries: how many since the last `clear`. busy: an `append` is at work.
    """

    def __init__(self, folder: Path, schema: int) -> None:
        self._folder = folder
        self._suffix = _suffix(schema)
        self._file: int | None = None
        self._path: Path | None = None
        self._map: Any = _NOTHING
        self._size = self._end = self.entries = 0
        self.busy = False
        self._interrupting: deque[bytes] = deque()

    def append(self, entry: bytes) -> None:
        """Keep one entry; it survives a SIGKILL once this has returned.

        Raises:
            OSError: when there is no room for it (a full disk); it is not there then, and what was there still is.
        """
        if (
            self.busy
        ):  # a signal handler or a finalizer in the middle of another one, on the same thread: that one takes it along
            self._interrupting.append(entry)
            return
        self.busy = True
        try:
            self._append(entry)
            while self._interrupting:
                self._append(self._interrupting.popleft())
        finally:
            self.busy = False

    def _append(self, entry: bytes) -> None:
        start = self._end
        body = start + 8
        end = body + len(entry)
        if end + 4 > self._size:
            self._make_room(end + 4)
        self._map[body : end + 4] = entry + _END
        _HEAD.pack_into(self._map, start, len(entry), crc32(entry))
        self._end = end
        self.entries += 1

    def _make_room(self, least: int) -> None:
        """Reserve more on the disk before it is touched: a mapped page without a place on the disk would end the process."""
        file = self._file if self._file is not None else self._open()
        size = max(SIZE, self._size)
        while size < least:
            size *= 2
        at = self._size
        while at < size:
            at += os.pwrite(file, bytes(min(SIZE, size - at)), at)
        self._map, self._size = mmap.mmap(file, size), size

    def _open(self) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        fresh = self._folder / f"{name}.new"
        self._file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # Locked before it has the name that others look for, so that no one takes it for a dead process's.
        lock(self._file)
        self._path = fresh.rename(self._folder / f"{name}{self._suffix}")
        return self._file

    def read(self) -> Iterator[Row]:
        """Its entries, as rows."""
        return _rows(self._map, self._end)

    def clear(self) -> None:
        """Everything in it is in the ledger."""
        if self._size:
            self._map[:4] = _END
        self.entries = self._end = 0

    def close(self) -> None:
        """Let go of it; an empty one is deleted, another is left for the next reader."""
        path, entries = self._path, self.entries
        if path is not None and not entries:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # another process's journal is in there
                self._folder.rmdir()
        self.abandon()

    def abandon(self) -> None:
        """Close it and start with none. In a forked child that is a copy: the parent's lock stays."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._path, self._map = None, None, _NOTHING
        self._size = self._end = self.entries = 0
        self.busy = False
        self._interrupting.clear()

    def owns(self, path: Path) -> bool:
        """Whether that file is this one."""
        return path == self._path


def journals(folder: Path, schema: int) -> list[Path]:
    """The journals of that schema beside a ledger, in the order of their names."""
    try:
        return sorted(
            path for path in folder.iterdir() if path.name.endswith((_suffix(schema), _suffix(schema, _LINES)))
        )
    except FileNotFoundError:
        return []


class Foreign:
    """Another process's journal, taken in: `rows`, and `done()` once they are in the ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR)
        self._dead = lock(self._file)  # else its process lives, and will delete it
        data = path.read_bytes()
        read = _lines(data) if path.name.endswith(f".{_LINES}.journal") else _rows(data, len(data))
        self.rows = list(read)

    def done(self) -> None:
        """Delete it when nobody will write to it any more."""
        if self._dead:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)


def _rows(data: Any, size: int) -> Iterator[Row]:
    start = 0
    while start + 8 <= size:
        length, checksum = _HEAD.unpack_from(data, start)
        start += 8
        if not length or start + length > size:
            return
        entry = bytes(data[start : start + length])
        start += length
        # Any other one is being written at this moment: no call has returned for it.
        if crc32(entry) == checksum:
            yield thawed(entry)


def _lines(data: bytes) -> Iterator[Row]:
    """The form of earlier versions: lines of a checksum in hex and JSON, and a zero byte behind the last."""
    for line in data.partition(b"\0")[0].split(b"\n"):
        if line and line[:8] == b"%08x" % crc32(line[8:]):
            yield row_of_line(line[8:])
