"""Which calls are in flight at this moment, told by every process to whoever looks, `aifinops top` for one.

A process that makes calls has a small mapped file beside its ledger, with a place for each call: when it began and its model. To begin and to end one
is to write into memory; nothing is written to a disk that anybody waits for, and nothing is lost with it. A living process holds a lock on its
file; what a dead one has left is deleted by the next that looks or begins.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifinops.ledger.journal import AVAILABLE, lock

__all__ = ["PLACES", "Presence", "Present", "folder_of", "present"]

PLACES = 1023
"""Calls that a process shows at a time; more are made all the same."""

_SUFFIX = ".live"
_HEAD = struct.Struct("<8sq48x")
_PLACE = struct.Struct("<q56s")  # 0 for a free one
_MARK = b"AIFPliv1"
_SIZE = _HEAD.size + PLACES * _PLACE.size
_MOST_NAMES = 1000

Token = tuple[Any, int]


def folder_of(ledger: Path) -> Path:
    """Where what processes keep for a ledger's file lies: its journals and these."""
    return ledger.with_name(f"{ledger.name}-spool")


class Presence:
    """This process's own. Nothing here raises: where there is no room for the file, calls are not shown.

    Args:
        folder: gives the folder, asked at the first call; None for nowhere.
    """

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        self._find = folder
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._file: int | None = None
        self._path: Path | None = None
        self._map: Any = None
        self._closed = False
        self._free: list[int] = []
        self._names: dict[str, bytes] = {}

    def begin(self, model: str, at: int) -> Token | None:
        """A call begins; what `end` is to be given, None where it is not shown.

        Args:
            model: as the request names it. at: nanoseconds since the epoch.
        """
        place = self._map
        if place is None and (self._closed or (place := self._open()) is None):
            return None
        try:
            start = self._free.pop()
        except IndexError:
            return None
        _PLACE.pack_into(place, start, at, self._names.get(model) or self._name(model))
        return place, start

    def end(self, token: Token | None) -> None:
        """It has ended. What the parent of a forked child has begun is no matter to the child."""
        if token is not None:
            place, start = token
            if place is self._map:
                place[start : start + 8] = bytes(8)
                self._free.append(start)

    def _name(self, model: str) -> bytes:
        if len(self._names) >= _MOST_NAMES:
            self._names.clear()
        name = self._names[model] = model.encode("utf-8", "replace")
        return name

    def _open(self) -> Any:
        with self._lock:
            if self._map is None and not self._closed:
                try:
                    self._make()
                except (OSError, ValueError):  # no room, no permission: nothing but the view of it is lost
                    self.close()
            return self._map

    def _make(self) -> None:
        folder = self._find() if AVAILABLE else None
        if folder is None:
            self._closed = True
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        present(folder)  # what dead processes have left
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        fresh = folder / f"{name}.new"
        self._path = fresh
        self._file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        lock(self._file)  # before it has the name that others look for
        # Written out before it is mapped: a page without a place on the disk would end the process.
        os.pwrite(self._file, _HEAD.pack(_MARK, os.getpid()) + bytes(_SIZE - _HEAD.size), 0)
        self._path = fresh.rename(folder / f"{name}{_SUFFIX}")
        self._free = list(range(_HEAD.size, _SIZE, _PLACE.size))
        self._map = mmap.mmap(self._file, _SIZE)

    def close(self) -> None:
        """No call is shown any more."""
        path = self._path
        self._abandon()
        self._closed = True
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # there are others in it
                path.parent.rmdir()

    def reset_after_fork(self) -> None:
        """In a forked child: the file is the parent's."""
        self._abandon()
        self._renew()

    def _abandon(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._path, self._map = None, None, None


@dataclass(frozen=True, slots=True)
class Present:
    """What one process is doing.

    Attributes:
        process: its number, in its own container. calls: began at (nanoseconds since the epoch) and model of each, the oldest first.
        full: there may be more.
    """

    process: int
    calls: tuple[tuple[int, str], ...]
    full: bool


def present(folder: Path) -> list[Present]:
    """Every living process that shows its calls there, by number; what dead ones have left is deleted."""
    try:
        paths = [path for path in folder.iterdir() if path.name.endswith(_SUFFIX)]
    except OSError:
        return []
    found = [_read(path) for path in paths] if AVAILABLE else []
    return sorted((one for one in found if one is not None), key=lambda one: one.process)


def _read(path: Path) -> Present | None:
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:  # its process, or somebody else who looks, was quicker
        return None
    try:
        if lock(file):
            path.unlink(missing_ok=True)
            return None
        data = os.pread(file, _SIZE, 0)
    finally:
        os.close(file)
    if len(data) != _SIZE or not data.startswith(_MARK):  # of another version
        return None
    places = _PLACE.iter_unpack(data[_HEAD.size :])
    calls = sorted((at, name.rstrip(b"\0").decode("utf-8", "ignore")) for at, name in places if at)
    return Present(_HEAD.unpack_from(data)[1], tuple(calls), len(calls) == PLACES)
