"""Usage that comes later than its call: answers that are polled for, batches, and endpoints that only their answer makes known.

An answer that is still being made leaves its invocation open here, with what is held for it, until a poll brings its usage. What a poll,
a batch or a batch's file says is charged once however often it is asked for, by whatever process: its ledger entry has an id that is
made of the provider's own, and an answer that was charged when it was made is found in the ledger by its response id.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from aifinops.errors import swallow
from aifinops.integrations.extract import Reader
from aifinops.integrations.passing import Opened, Passing, Tap, guarded
from aifinops.integrations.paths import Names, plain, split, word
from aifinops.integrations.responses import holds, sign_of
from aifinops.ledger.base import Query
from aifinops.metering import Call, Watched, watch
from aifinops.reading import Reading
from aifinops.runtime import Runtime

__all__ = ["Files", "Later", "Lines", "Poll", "Unknown", "settle_held"]

MOST_HELD = 1_000
"""Answers that may wait for their polls at once; beyond it the oldest is settled as an estimate."""

MOST_FILES = 1_000
"""Output files of batches that are remembered."""

_SKEW = 600 * 1_000_000_000
"""Nanoseconds by which the provider's clock and ours may differ."""

_PAGE = 200


def entry_id(*parts: str) -> str:
    """The id of the ledger entry of something that has an id at its provider: the same in every process."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class Polled(Reading):
    """A reading with when the answer was made (nanoseconds, 0 for not known) and the file that a batch has put its answers into."""

    created: int = 0
    output: str = ""


class _PollReader:
    """A reader whose readings are `Polled`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.route, self.marks, self.otherwise = reader.route, reader.marks, None
        self.text, self.event_body = reader.text, reader.event_body

    def tolerant(self, body: Any) -> Reading | None:
        reading = self._reader.tolerant(body)
        return None if reading is None else self._polled(reading, body)

    def describe(self, body: Any) -> Reading:
        return self._polled(self._reader.describe(body), body)

    def begun(self, event: Any) -> Reading:
        return self._polled(self._reader.begun(event), self.event_body(event))

    def _polled(self, reading: Reading, body: Any) -> Polled:
        values = {one.name: getattr(reading, one.name) for one in fields(Reading)}
        return Polled(**values, created=self._reader.created(body) or 0, output=word(plain(body, _OUTPUT_FILE)))


_OUTPUT_FILE: Names = split("output_file_id")


class _Held:
    """What this process is waiting for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.calls: dict[tuple[str, str], tuple[Opened, Reading, str, int]] = {}
        self.files: dict[tuple[str, str], str] = {}  # output file -> the batch, where that told no usage itself


_held = _Held()


def _after_fork() -> None:
    # What waits is the parent's to settle.
    _held.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)


def hold(opened: Opened, about: Reading, text: str = "", pieces: int = 0) -> bool:
    """Keep an invocation open whose answer says that it is still being made; False for any other.

    Args:
        opened: the call. about: what the answer says. text, pieces: what has come of a stream.
    """
    status = about.finish_reasons[:1]
    if not status or status[0] not in opened.reader.route.later or not about.response_id:
        return False
    key = (opened.invocation.call.provider, about.response_id)
    opened.invocation.id = entry_id(*key)
    with _held.lock:
        oldest = next(iter(_held.calls)) if len(_held.calls) >= MOST_HELD else None
        dropped = None if oldest is None else _held.calls.pop(oldest)
        _held.calls[key] = (opened, about, text, pieces)
    if dropped is not None:
        _give_up(*dropped)
    return True


def _give_up(opened: Opened, about: Reading, text: str, pieces: int) -> None:
    opened.invocation.settle_estimated(text, pieces, about, "abandoned")


def settle_held() -> None:
    """At the end of the process: settle as estimates what nobody has polled to its end."""
    while _held.calls:
        with _held.lock:
            key = next(iter(_held.calls), None)
            waiting = None if key is None else _held.calls.pop(key)
        if waiting is not None:
            guarded("held", _give_up, *waiting)


atexit.register(settle_held)


def _known(engines: Runtime, query: Query) -> set[str]:
    """The ids of the entries that the ledger has."""
    return {charge.id for charge in engines.ledger.rows(query)}


class Later(Opened):
    """A call whose answer may still be in the making when the call is over."""

    def unsaid(self, about: Reading, text: str, pieces: int, status: str) -> None:
        """Wait for a poll."""
        if not hold(self, about, text, pieces):
            super().unsaid(about, text, pieces, status)


class Watching(Opened):
    """A call that is only looked at."""

    def wants(self, http: Any) -> bool:
        """Only what can have a usage: nobody's download is kept."""
        kind = http.headers.get("content-type", "")
        return "json" in kind or "event-stream" in kind

    def unsaid(self, about: Reading, text: str, pieces: int, status: str) -> None:
        """An answer without usage costs nothing."""
        self.invocation.settle_estimated(text, pieces, about, status)


class Unknown(Watching):
    """A POST to an endpoint that no route knows."""

    @classmethod
    def open(cls, call: Call, reader: Reader) -> Self | None:
        """Look at it, unless a call further out is metered."""
        watched = watch(call, _charge_usage)
        return None if watched is None else cls(reader, watched)


def _charge_usage(watched: Watched, reading: Reading, text: str) -> None:
    """Charge an answer once: what nobody knows may be a thing that every request about it answers with."""
    if reading.quantities or reading.problem:
        own = reading.response_id
        id = entry_id(watched.call.provider, own) if own else ""
        if not id or not _known(watched.engines, Query(where={"id": id}, limit=1)):
            watched.charge(reading, id=id)


class Poll(Watching):
    """A GET of one answer or batch."""

    @classmethod
    def open(cls, call: Call, readers: list[Reader], subject: str) -> Self | None:
        """Look at it, unless a call further out is metered."""
        (reader,) = readers
        watched = watch(call, lambda *end: _polled(reader, *end))
        return None if watched is None else cls(_PollReader(reader), watched)  # type: ignore[arg-type]


def _polled(reader: Reader, watched: Watched, reading: Reading, text: str) -> None:
    """An answer was asked for again."""
    status = reading.finish_reasons[:1]
    if not isinstance(reading, Polled) or not reading.response_id or (status and status[0] in reader.route.later):
        return
    key = (watched.call.provider, reading.response_id)
    with _held.lock:  # two threads may poll the same answer
        waiting = _held.calls.pop(key, None)
        if waiting is not None:
            opened, about, came, pieces = waiting
            if reading.quantities or reading.problem:
                opened.invocation.settle(reading)
            else:  # it failed or was cancelled, and says nothing of what that used
                opened.invocation.settle_estimated(text or came, pieces, about, "abandoned")
        elif reading.quantities or reading.problem:
            _charge_once(watched, reading, entry_id(*key))
        elif reading.output:
            _remember(key[0], reading.output, reading.response_id)


def _charge_once(watched: Watched, reading: Polled, id: str) -> None:
    """Charge what this or another process has not charged yet."""
    if _known(watched.engines, Query(where={"id": id}, limit=1)):
        return
    made = reading.created or watched.wall
    own = {"response_id": reading.response_id, "provider": watched.call.provider}
    if not _known(watched.engines, Query(made - _SKEW, made + _SKEW, own, limit=1)):
        watched.charge(reading, id=id, at=reading.created)


def _remember(provider: str, file: str, batch: str) -> None:
    files = _held.files
    files[provider, file] = batch
    while len(files) > MOST_FILES:
        files.pop(next(iter(files)))


class Lines(Watching):
    """A file of answers, one a line."""

    def __init__(self, readers: list[Reader], watched: Watched, batch: str) -> None:
        super().__init__(readers[0], watched)
        self._readers = [(reader, list(map(sign_of, reader.route.signs))) for reader in readers]
        self._batch = batch
        self._watched = watched
        self._tapped = False

    @classmethod
    def open(cls, call: Call, readers: list[Reader], subject: str) -> Self | None:
        """Look at it, unless a call further out is metered, or it is no answers of a batch."""
        batch = cls._of(call.provider, subject)
        if not batch:
            return None
        watched = watch(call, lambda *_: None)
        if watched is None:
            return None
        opened = cls(readers, watched, batch)
        watched.early = opened.tap
        return opened

    @staticmethod
    def _of(provider: str, subject: str) -> str:
        """The batch that a path is about."""
        return subject

    def passing(self) -> Passing:
        """Lines are read as they come: a file may be larger than what is kept of a stream."""
        return _PassingLines(self)

    def tap(self, http: Any) -> None:
        """See the lines go by. A decoder of lines asks for the bytes when it is made, and not when they are wanted."""
        if not http.is_closed:
            self._tapped = True
            Tap(self, http)

    def wants(self, http: Any) -> bool:
        """Whatever a server calls a file of lines, once."""
        return not self._tapped

    def take(self, lines: Sequence[bytes], *, to_the_end: bool = True) -> None:
        """Charge every line that has a usage and is not charged yet; the end of a file that was left or cut may be half a line."""
        found = dict(self._read(lines, len(lines) - 1 if to_the_end else -1))
        for start in range(0, len(found), _PAGE):
            ids = list(found)[start : start + _PAGE]
            known = _known(self._watched.engines, Query(where={"id": ids}))
            for id in ids:
                if id not in known:
                    self._watched.charge(found[id], id=id)

    def _read(self, lines: Sequence[bytes], last: int) -> Iterator[tuple[str, Reading]]:
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line) if line.strip() else None
            except ValueError as failure:  # the other lines count
                if number != last:
                    swallow("later.line", failure)
                continue
            name = word(plain(entry, _CUSTOM)) if isinstance(entry, dict) else ""
            reading = self._reading(entry) if name else None
            if reading is not None and (reading.quantities or reading.problem):
                yield entry_id(self._watched.call.provider, self._batch, name), reading

    def _reading(self, entry: Any) -> Reading | None:
        for reader, signs in self._readers:
            if all(holds(sign, entry) for sign in signs):
                return reader.tolerant(reader.event_body(entry))
        return None


class Files(Lines):
    """A download, which is looked at when it is known to be the output of a batch that told no usage itself."""

    @staticmethod
    def _of(provider: str, subject: str) -> str:
        return _held.files.get((provider, subject), "")


_CUSTOM: Names = split("custom_id")


class _PassingLines(Passing):
    """Lines, charged as they come."""

    def __init__(self, opened: Lines) -> None:
        super().__init__(opened)
        self._lines = opened
        self._rest = b""

    def pack(self, chunk: bytes) -> None:
        """Charge the lines that are complete."""
        if not self.kept:
            self.kept.append(b"")  # the first chunk has come, and is not kept
        self.newest.append(chunk)
        *lines, self._rest = b"".join([self._rest, *self.newest]).split(b"\n")
        self.newest.clear()
        self._lines.take(lines, to_the_end=False)

    def _settle(self) -> None:
        self._lines.take(b"".join([self._rest, *self.newest]).split(b"\n"))
