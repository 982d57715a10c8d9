"""An append-only log of every decision that is not a plain yes, each line chained to the one before by SHA-256.

A line is a JSON object with sorted keys; its last member, `hash`, is the SHA-256 of the hash before it, a line feed and the line without
that member. Whoever edits, deletes or moves a line breaks the chain there. Whoever writes everything anew, or cuts the end off, breaks
nothing inside the file: for that a head hash is kept elsewhere and given back to `verify`.

Every process that writes reads the last hash under a lock of the file, so the chain goes on whoever writes. What a killed process left of
a line is closed off, and the next entry, `torn`, says how long it is and what its SHA-256 is.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from aifinops.budgets.budget import exact, to_units
from aifinops.budgets.stores.base import Node
from aifinops.clock import Clock, SystemClock, to_datetime
from aifinops.errors import ConfigurationError, swallow

__all__ = ["NOTHING_BEFORE", "Audit", "Entry", "Verdict", "entries", "head_note", "verify"]

NOTHING_BEFORE = "0" * 64
"""What stands in the place of the hash before the first entry."""

_NS = 1_000_000_000
_REPEAT_NS, _REPEAT_MOST_NS = _NS, 16 * _NS
"""Of the same kind at the same node the first is written; what follows is added up in one entry after a second, after two, after four, ..."""
_REST_NS = _NS
"""A file that is locked or cannot be written is left alone so long; entries wait meanwhile."""
_LOCK_S, _NAP_S = 0.02, 0.0005
_WAITING_MOST = 10_000
_REPEATS_MOST, _SINCE_MOST = 4096, 10_000
_TEXT_MOST, _LIST_MOST = 300, 50
_BLOCK = 65_536
_LINE = re.compile(rb'^(?P<body>\{"[^\n]*),"hash":"(?P<hash>[0-9a-f]{64})"\}$')
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)\S+")


class _Repeats:
    """What is not written yet of one kind at one node. A deque is filled and emptied by many threads without a lock."""

    __slots__ = ("due", "node", "pause", "since")

    def __init__(self, node: Node, now: int) -> None:
        self.node = node
        self.pause = _REPEAT_NS
        self.due = now + self.pause
        self.since: deque[tuple[int, float]] = deque()

    def goes_on(self, now: int) -> None:
        self.pause = min(2 * self.pause, _REPEAT_MOST_NS)
        self.due = now + self.pause

    def take(self) -> tuple[int, int, float]:
        times, amounts, seconds = 0, 0, 0.0
        while True:
            try:
                amount, lasted = self.since.popleft()
            except IndexError:
                return times, amounts, seconds
            times, amounts, seconds = times + 1, amounts + amount, seconds + lasted


class Audit:
    """One log. Nothing that goes wrong with it reaches the caller, and a call waits for another writer 20 ms at most.

    Args:
        path: the file, made with mode 0600 at the first entry; None keeps nothing. clock: when things happened.

    Attributes:
        lost: entries that were given up because the file could not be written for long.
        head: hash of the last entry that this process wrote; empty for none.
    """

    def __init__(self, path: str | os.PathLike[str] | None, clock: Clock | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.lost = 0
        self.head = ""
        self._clock: Clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._waiting: deque[dict[str, Any]] = deque()
        self._repeats: dict[tuple[str, str], _Repeats] = {}
        self._closed_until = 0
        self._file: int | None = None

    def add(self, kind: str, **facts: object) -> None:
        """Write an entry, now where that is possible.

        Args:
            kind: what happened, such as `limit_set`. facts: what is known of it: texts, numbers, lists of them. No prompt, no address with a
                password: what looks like a URL is cut after its scheme.
        """
        if self.path is None:
            return
        try:
            self._waiting.append(self._entry(kind, facts))
            if len(self._waiting) > _WAITING_MOST:
                self._waiting.popleft()
                self.lost += 1
            self._write()
        except Exception as failure:  # what is decided stands, written down or not
            swallow("budgets.audit", failure)

    def tell(
        self,
        kind: str,
        node: Node,
        amount: int,
        detail: Callable[[], Mapping[str, object]] = dict,
        *,
        seconds: float = 0.0,
    ) -> None:
        """Write what may happen a thousand times a second: the first at once, then the number and the sum of the others, now and then.

        Args:
            kind: what happened. node: where. amount: in its steps. detail: what else is known of the first. seconds: how long it lasted.
        """
        if self.path is None:
            return
        now, key = self._clock.monotonic_ns(), (kind, node.key)
        known = self._repeats.get(key)
        if known is None:
            if len(self._repeats) >= _REPEATS_MOST:
                self.tidy(everything=True)
            first = _Repeats(node, now)
            known = self._repeats.setdefault(key, first)
            if known is first:
                lasted = {"seconds": round(seconds, 3)} if seconds else {}
                self.add(kind, **_where(node), amount=to_units(node.unit, amount), **lasted, **detail())
                return
        known.since.append((amount, seconds))
        # Or many came in that second, or it was tidied away meanwhile.
        if now >= known.due or len(known.since) >= _SINCE_MOST or self._repeats.get(key) is not known:
            known.goes_on(now)
            self._tell_repeats(kind, known)

    def tidy(self, *, everything: bool = False) -> None:
        """Write what was added up and is due, and forget what does not go on; or do both with everything."""
        now = self._clock.monotonic_ns()
        for key, known in list(self._repeats.items()):
            if everything or now >= known.due:
                known.goes_on(now)
                if everything or not known.since:
                    self._repeats.pop(key, None)
                self._tell_repeats(key[0], known)
        if self._waiting:
            self._write_safely()

    def flush(self) -> bool:
        """Write everything that waits; True when nothing is left."""
        self._closed_until = 0
        self.tidy(everything=True)
        return not self._waiting

    def reset_after_fork(self) -> None:
        """In a forked child: a new lock; what waits is the parent's."""
        self._lock = threading.Lock()
        self._waiting.clear()
        self._repeats.clear()
        if self._file is not None:
            # The lock of the file belongs to whoever has it open: not to be let go of here, but not to be kept either.
            os.close(self._file)
            self._file = None

    def _tell_repeats(self, kind: str, known: _Repeats) -> None:
        times, amount, seconds = known.take()
        if times:
            lasted = {"seconds": round(seconds, 3)} if seconds else {}
            self.add(kind, **_where(known.node), amount=to_units(known.node.unit, amount), times=times, **lasted)

    def _entry(self, kind: str, facts: Mapping[str, object]) -> dict[str, Any]:
        at = to_datetime(self._clock.time_ns()).isoformat(timespec="microseconds").replace("+00:00", "Z")
        known = {name: _plain(value) for name, value in facts.items() if value is not None}
        return {**known, "at": at, "kind": kind, "pid": os.getpid()}

    # --- the file -----------------------------------------------------------------------------------------------------

    def _write_safely(self) -> None:
        try:
            self._write()
        except Exception as failure:  # as in `add`
            swallow("budgets.audit", failure)

    def _write(self) -> None:
        """Write what waits, unless somebody in this process is at it: he looks again before he leaves."""
        while self._waiting and self._clock.monotonic_ns() >= self._closed_until and self._lock.acquire(blocking=False):
            try:
                with self._open() as file:
                    self._drain(file)
            except OSError:
                self._closed_until = self._clock.monotonic_ns() + _REST_NS
                raise
            finally:
                self._lock.release()

    def _drain(self, file: int) -> None:
        end = _end_of(file)
        if not end.number and not end.junk:
            opening = {"log": os.urandom(16).hex(), "format": 1}
            end = _append(file, end, self._entry("opened", opening))
        if end.junk:
            torn = {"bytes": len(end.closed), "sha256": hashlib.sha256(end.closed).hexdigest()}
            end = _append(file, end, self._entry("torn", torn))
        while self._waiting:
            end = _append(file, end, self._waiting[0])
            self._waiting.popleft()
        self.head = end.hash

    @contextmanager
    def _open(self) -> Iterator[int]:
        path = self.path
        if path is None:  # nothing is kept
            raise OSError("no file")
        import fcntl

        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        self._file = file = os.open(path, flags, 0o600)
        try:
            _lock_file(file, path)
            try:
                yield file
            finally:
                # Not left to `close`: a forked child may have the same open file.
                fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            self._file = None
            os.close(file)


def head_note(path: str | os.PathLike[str]) -> str:
    """Key of the note in a store with the head of the log at that path of this machine."""
    place = f"{platform.node()}:{Path(path).absolute()}"
    return f"audit\x1f{hashlib.sha256(place.encode()).hexdigest()}"


def _lock_file(file: int, path: Path) -> None:
    import fcntl

    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise TimeoutError(f"audit log {path} is locked by another process") from None
        time.sleep(_NAP_S)


@dataclass(frozen=True, slots=True)
class _End:
    """Where a file ends: number and hash of the last entry, what comes after it that is none, and whether a line feed is missing."""

    number: int
    hash: str
    junk: bytes = b""
    open: bool = False

    @property
    def closed(self) -> bytes:
        """The junk as it is once it is a line."""
        return self.junk if self.junk.endswith(b"\n") else self.junk + b"\n"


def _end_of(file: int) -> _End:
    """Read backwards, block by block, to the last line that is an entry."""
    size = os.fstat(file).st_size
    read = b""
    while len(read) < size:
        start = max(0, size - max(2 * len(read), _BLOCK))
        read = os.pread(file, size - start, start)
        lines = read.split(b"\n")
        is_open = lines[-1] != b""
        # The first is whole only where the file begins. The last may lack no more than its line feed.
        for place in range(len(lines) - 1, -1 if start == 0 else 0, -1):
            found = _LINE.match(lines[place])
            if found is not None:
                junk = b"\n".join(lines[place + 1 :])
                return _End(_number(lines[place]), found["hash"].decode(), junk, is_open)
    return _End(0, NOTHING_BEFORE, read, open=bool(read) and not read.endswith(b"\n"))


def _number(line: bytes) -> int:
    try:
        number = json.loads(line)["n"]
    except (ValueError, KeyError):  # somebody was at it; `verify` says so
        return 1
    return number if isinstance(number, int) and number > 0 else 1


def _append(file: int, end: _End, entry: Mapping[str, Any]) -> _End:
    number = end.number + 1
    body = json.dumps({**entry, "n": number}, sort_keys=True, separators=(",", ":"))[:-1].encode("ascii")
    hash = _hash(end.hash, body)
    line = (b"\n" if end.open else b"") + body + b',"hash":"' + hash.encode() + b'"}\n'
    if os.write(file, line) < len(line):  # the disk is full; the next entry closes it off
        raise OSError("an entry was written in part only")
    return _End(number, hash)


def _hash(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + b"\n" + body + b"}").hexdigest()


def _where(node: Node) -> dict[str, object]:
    start = to_datetime(node.window).isoformat() if node.window else None
    return {"budget": node.label or node.budget, "unit": node.unit, "window": start}


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Decimal):
        return exact(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value[:_LIST_MOST]]
    text = _URL.sub(r"\1...", str(value))
    return text if len(text) <= _TEXT_MOST else f"{text[:_TEXT_MOST]}..."


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One line.

    Attributes:
        line: its number in the file, from 1. facts: what it says. hash: its own.
        trouble: why it does not belong there; empty for a good one.
    """

    line: int
    facts: Mapping[str, Any]
    hash: str
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` has found.

    Attributes:
        entries: good ones, up to the first that is not. head: hash of the last of them.
        line: number of the first line that is wrong; None when the chain holds. trouble: what is wrong.
        torn: entries that a killed writer left in part, and that were closed off. open: bytes after the last line that are no entry yet.
    """

    entries: int
    head: str
    line: int | None = None
    trouble: str = ""
    torn: int = 0
    open: int = 0

    @property
    def holds(self) -> bool:
        """True when nothing is wrong."""
        return not self.trouble


def verify(
    path: str | os.PathLike[str], head: str | None = None, progress: Callable[[int], object] | None = None
) -> Verdict:
    """Follow the chain from the first line to the last.

    Args:
        path: the log. head: a hash that was printed earlier: the chain must still have it. progress: called now and then with the line.

    Raises:
        ConfigurationError: when there is no such file.
    """
    count, last, torn, found = 0, NOTHING_BEFORE, 0, head is None
    for entry in entries(path):
        if entry.trouble:
            return Verdict(count, last, entry.line, entry.trouble, torn)
        count, last = count + 1, entry.hash
        torn += entry.facts.get("kind") == "torn"
        found = found or last == head
        if progress is not None and not entry.line % 10_000:
            progress(entry.line)
    left = _left_open(path)
    if not found:
        return Verdict(count, last, None, f"no entry has the hash {head}: the end was cut off, or everything was written anew", torn, left)  # fmt: skip
    return Verdict(count, last, torn=torn, open=left)


def entries(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """The lines of a log in order; the first with `trouble` is the last.

    Raises:
        ConfigurationError: when there is no such file.
    """
    before, count, junk, place = NOTHING_BEFORE, 0, b"", 0
    for number, line in _lines(path):
        found = _LINE.match(line)
        if found is None:
            place, junk = place or number, junk + line + b"\n"
            continue
        try:
            facts = json.loads(line)
        except ValueError:
            facts = {}
        trouble = _trouble(facts, found, before, count, junk)
        if trouble:
            yield Entry(place if junk and "not an entry" in trouble else number, facts, "", trouble)
            return
        before, count, junk, place = facts["hash"], count + 1, b"", 0
        yield Entry(number, facts, before)
    if place:
        yield Entry(place, {}, "", "it is not an entry; where a writer was stopped, the next entry says so")


def _trouble(facts: Mapping[str, Any], found: re.Match[bytes], before: str, count: int, junk: bytes) -> str:
    if junk and not (facts.get("kind") == "torn" and facts.get("sha256") == hashlib.sha256(junk).hexdigest()):
        return "it is not an entry: it was edited, or what follows it was taken away"
    if _hash(before, found["body"]) != found["hash"].decode():
        known = facts.get("n")
        if isinstance(known, int) and known != count + 1:
            return f"entry {known} stands where entry {count + 1} belongs: something was deleted, inserted or moved before it"
        return "its hash does not fit: it was edited, or the one before it was"
    if facts.get("n") != count + 1:
        return f"it calls itself entry {facts.get('n')} in the place of entry {count + 1}"
    return ""


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Whole lines; what a writer is at this moment adding is left out."""
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield number, line[:-1]
    except FileNotFoundError:
        raise ConfigurationError(f"there is no audit log at {os.fspath(path)}; the first refusal makes one") from None
    except OSError as error:
        raise ConfigurationError(f"audit log {os.fspath(path)} cannot be read: {error.strerror}") from None


def _left_open(path: str | os.PathLike[str]) -> int:
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _BLOCK))
        return len(file.read().rpartition(b"\n")[2])
