"""What a process has metered and not yet put into its ledger file: lines beside the file, one journal a process.

A line costs one `write()`; a transaction costs several times that, and many are as cheap as one. So a call's entry goes to the journal,
from where it survives a SIGKILL, and entries go into the tables by the hundred. Nobody has to clean up: whoever reads the ledger
takes in every journal first, its own, those of living processes and those of dead ones. That is safe at any time and any number of
times, because the ledger knows each entry by its id. A living process holds a lock on its journal; only an unlocked one is deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no such locks on this system: the ledger then writes its tables at once
    fcntl = None  # type: ignore[assignment]

__all__ = ["AVAILABLE", "Journal", "journals"]

AVAILABLE = fcntl is not None


def _suffix(schema: int) -> str:
    return f".v{schema}.jsonl"


_encode = json.JSONEncoder(separators=(",", ":")).encode  # ASCII: half a surrogate pair is an escape, not an error


class Journal:
    """This process's own. Not thread-safe: the ledger's lock is around it.

    Args:
        folder: where journals are. schema: of the rows; a journal of another schema is left to who knows it.

    Attributes:
        entries: lines since the last `clear`.
    """

    def __init__(self, folder: Path, schema: int) -> None:
        self._folder = folder
        self._suffix = _suffix(schema)
        self._file: int | None = None
        self._path: Path | None = None
        self._torn = False
        self.entries = 0

    def append(self, row: Sequence[Any]) -> None:
        """Write one entry; it survives a SIGKILL once this has returned.

        Raises:
            OSError: when it could not be written whole; it is not there then.
        """
        line = f"{_encode(row)}\n".encode()
        file = self._file if self._file is not None else self._open()
        if self._torn:
            line = b"\n" + line  # what a full disk has cut off must not swallow its successor
        written = os.write(file, line)
        self._torn = written != len(line)
        if self._torn:
            raise OSError(28, "the disk is full")
        self.entries += 1

    def _open(self) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        fresh = self._folder / f"{name}.new"
        self._file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        # Locked before it has the name that others look for, so that no one takes it for a dead process's.
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._path = fresh.rename(self._folder / f"{name}{self._suffix}")
        return self._file

    def read(self) -> list[list[Any]]:
        """Its entries."""
        return [] if self._path is None or not self.entries else list(_rows(self._path.read_bytes()))

    def clear(self) -> None:
        """Everything in it is in the ledger."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
        self.entries, self._torn = 0, False

    def close(self) -> None:
        """Let go of it; an empty one is deleted, another is left for the next reader."""
        file, path, entries = self._file, self._path, self.entries
        self.forget()
        if path is not None and not entries:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # another process's journal is in there
                self._folder.rmdir()
        if file is not None:
            os.close(file)

    def forget(self) -> None:
        """In a forked child, after `os.close` of the copy: it is the parent's."""
        self._file = self._path = None
        self._torn, self.entries = False, 0

    def abandon(self) -> None:
        """In a forked child: close the copy and start with none; the parent's lock stays."""
        file = self._file
        self.forget()
        if file is not None:
            os.close(file)

    def owns(self, path: Path) -> bool:
        """Whether that file is this one."""
        return path == self._path


def journals(folder: Path, schema: int) -> list[Path]:
    """The journals of that schema beside a ledger, in the order of their names."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(_suffix(schema)))
    except FileNotFoundError:
        return []


class Foreign:
    """Another process's journal, taken in: `rows`, and `done()` once they are in the ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._dead = True
        except OSError:
            self._dead = False  # its process lives, and will delete it
        self.rows = list(_rows(path.read_bytes()))

    def done(self) -> None:
        """Delete it when nobody will write to it any more."""
        if self._dead:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)


def _rows(data: bytes) -> Iterator[list[Any]]:
    for line in data.split(b"\n"):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:  # cut off by a full disk, or being written at this moment: no call has returned for it
            continue
        if isinstance(row, list):
            yield row
