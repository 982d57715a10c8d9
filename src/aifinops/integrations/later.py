"""Usage that comes later than its call: answers that are polled for, batches, and endpoints that only their answer makes known.

An answer that is still being made leaves its invocation open here, with what is held for it, until a poll brings its usage. What a poll,
a batch or a batch's file says is charged once however often it is asked for, by whatever process: its ledger entry has an id that is
made of the provider's own, and an answer that was charged when it was made is found in the ledger by its response id.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any, Self

from aifinops.charges import Charge
from aifinops.errors import swallow
from aifinops.forking import in_child
from aifinops.integrations.extract import Reader, added
from aifinops.integrations.passing import Opened, Passing, Tap, guarded
from aifinops.integrations.paths import compiled, plain, split, word
from aifinops.integrations.responses import holds, sign_of
from aifinops.ledger.base import Query
from aifinops.metering import Call, Watched, watch
from aifinops.meters import METERS
from aifinops.money import from_nanos
from aifinops.reading import Part, Reading
from aifinops.runtime import Runtime
from aifinops.usage import Quantity

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
    """A reading with what only a poll asks for.

    Attributes:
        created: when the answer was made, nanoseconds; 0 for not known. output: the file that a batch has put its answers into.
        lines: the answers of a batch that it has in itself, by their place; None where one has no usage.
        made: of what was asked for, how much was made; None where that decides nothing.
        elsewhere: True when the answers of a batch are where nobody looks.
    """

    created: int = 0
    output: str = ""
    lines: Sequence[Reading | None] = ()
    made: int | None = None
    elsewhere: bool = False


class _PollReader:
    """A reader whose readings are `Polled`.

    Args:
        reader: of the answer. lines: of the answers in it, where it is a batch.
    """

    def __init__(self, reader: Reader, lines: Sequence[Reader] = ()) -> None:
        self._reader = reader
        self._lines = _LineReader(lines)
        self.route = route = reader.route
        self.marks, self.otherwise = reader.marks, None
        self.text, self.event_body = reader.text, reader.event_body
        self._output = split(route.output)
        self._within = compiled(route.lines) if route.lines else None
        self._made = compiled(route.made) if route.made else None
        self._elsewhere = compiled(route.elsewhere) if route.elsewhere else None

    def tolerant(self, body: Any) -> Reading | None:
        reading = self._reader.tolerant(body)
        return None if reading is None else self._polled(reading, body)

    def describe(self, body: Any) -> Reading:
        return self._polled(self._reader.describe(body), body)

    def begun(self, event: Any) -> Reading:
        return self._polled(self._reader.begun(event), self.event_body(event))

    def _polled(self, reading: Reading, body: Any) -> Polled:
        values = {one.name: getattr(reading, one.name) for one in fields(Reading)}
        polled = Polled(**values, created=self._reader.created(body) or 0)
        # The last part of a path (`files/abc`) is what a download is asked for by.
        polled.output = word(plain(body, self._output)).rpartition("/")[2]
        if self._within is not None:
            polled.lines = [self._lines.read(entry) for entry in self._within.first(body)]
        if self._made is not None:
            polled.made = int(self._made.number("made", body) or 0)
        if self._elsewhere is not None:
            polled.elsewhere = self._elsewhere.any(body)
        return polled


class _LineReader:
    """Reads one answer of a batch by whichever of several routes it has the signs of."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = [(reader, list(map(sign_of, reader.route.signs))) for reader in readers]

    def read(self, entry: Any) -> Reading | None:
        """What it says; None for what has no usage, such as an error."""
        for reader, signs in self._readers:
            if all(holds(sign, entry) for sign in signs):
                return reader.tolerant(reader.event_body(entry))
        return None


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


in_child(_after_fork)


def hold(opened: Opened, about: Reading, text: str = "", pieces: int = 0) -> bool:
    """Keep an invocation open whose answer says that it is still being made; False for any other.

    Args:
        opened: the call. about: what the answer says. text, pieces: what has come of a stream.
    """
    if not _under_way(opened.reader, about) or not about.response_id:
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


def _under_way(reader: Reader, about: Reading) -> bool:
    return next(iter(about.finish_reasons), "") in reader.route.later


def _give_up(opened: Opened, about: Reading, text: str, pieces: int) -> None:
    Opened.unsaid(opened, about, text, pieces, "abandoned")  # not the one of `Later`, which would wait on


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


# --- once, and what has come to it since ------------------------------------------------------------------------------------


def _charge_growth(watched: Watched, reading: Reading, id: str, created: int = 0) -> None:
    """Charge what this or another process has not charged yet: all of it, or what the usage of one id has grown by.

    Args:
        id: of the first ledger entry. Each further one has an id made of it and of its number, so that processes that see the same
            growth charge it once.
    """
    before, number = _charged(watched, id, reading.response_id, created or watched.wall)
    more = _growth(reading, before)
    if more is not None:
        watched.charge(more, id=entry_id(id, str(number)) if number else id, at=created)


def _charged(watched: Watched, id: str, response_id: str, made: int) -> tuple[list[Charge], int]:
    """(the entries of an answer, how many of them have an id that is made of its own)."""
    ledger = watched.engines.ledger
    found: dict[str, Charge] = {}
    page, number = 0, 0
    while number == page:
        ids = [entry_id(id, str(one)) if one else id for one in range(page, page + _GROWN)]
        found |= {charge.id: charge for charge in ledger.rows(Query(where={"id": ids}))}
        number, page = len(found), page + _GROWN
    if response_id:
        own = {"response_id": response_id, "provider": watched.call.provider}
        found |= {charge.id: charge for charge in ledger.rows(Query(made - _SKEW, made + _SKEW, own))}
    return list(found.values()), number


_GROWN = 16
"""Entries of one answer that are looked for at once."""


def _growth(reading: Reading, before: Sequence[Charge]) -> Reading | None:
    """What a usage has more than was charged of it; None for nothing. What was an estimate stays one."""
    if not before:
        return reading
    if reading.problem or any(charge.basis == "estimated" or not charge.quantities for charge in before):
        return None
    had = added(charge.quantities for charge in before)
    more: dict[str, Quantity] = {}
    for names in _together({**had, **reading.quantities}):
        # By their sum: a later answer may only tell more of what the same tokens were.
        left = sum(reading.quantities.get(name, 0) - had.get(name, 0) for name in names)
        for name in names:
            grown = min(reading.quantities.get(name, 0) - had.get(name, 0), left)
            if grown > 0:
                more[name] = grown
                left -= grown
    if not more:
        return None
    return replace(reading, quantities=more, parts=_parts_of(reading.parts, more), reported=_reported(reading, before))


def _together(names: Iterable[str]) -> list[list[str]]:
    """Meters by what they are parts of: tokens of one direction, and each other one alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        meter = METERS.get(name)
        groups.setdefault(meter.direction if meter and meter.family == "tokens" else name, []).append(name)
    return list(groups.values())


def _parts_of(parts: Sequence[Part], more: Mapping[str, Quantity]) -> tuple[Part, ...]:
    """The newest parts, as far as they are in what has come since."""
    left, found = dict(more), []
    for part in reversed(parts):
        taken = {name: min(count, left[name]) for name, count in part.quantities.items() if left.get(name)}
        for name, count in taken.items():
            left[name] -= count
        if taken:
            found.append(Part(taken, part.model, part.kind, taken))
    return tuple(reversed(found))


def _reported(reading: Reading, before: Sequence[Charge]) -> Decimal | None:
    """What the provider says that the growth cost, where it has said it of all that was before."""
    told = [charge.amount for charge in before if charge.basis == "reported" and charge.amount is not None]
    if reading.reported is None or len(told) != len(before):
        return None
    return max(reading.reported - from_nanos(sum(told)), Decimal(0))


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
    def open(cls, call: Call, reader: Reader, path: str) -> Self | None:
        """Look at it, unless a call further out is metered."""
        watched = watch(call, _charge_usage)
        if watched is None:
            return None
        watched.path = path
        return cls(reader, watched)


def _charge_usage(watched: Watched, reading: Reading, text: str) -> None:
    """Charge an answer once: what nobody knows may be a thing that every request about it answers with, with all it has used so far."""
    if not reading.quantities and not reading.problem:
        return
    if not reading.response_id:
        watched.charge(reading)
        return
    with _held.lock:
        _charge_growth(watched, reading, entry_id(watched.call.provider, reading.response_id))


class Poll(Watching):
    """A request that answers with one answer or batch that was asked for before."""

    @classmethod
    def open(cls, call: Call, readers: list[Reader], subject: str) -> Self | None:
        """Look at it, unless a call further out is metered."""
        reader, *lines = readers
        watched = watch(call, lambda *end: _polled(reader, *end))
        return None if watched is None else cls(_PollReader(reader, lines), watched)  # type: ignore[arg-type]


def _polled(reader: Reader, watched: Watched, reading: Reading, text: str) -> None:
    """An answer was asked for again."""
    if not isinstance(reading, Polled) or not reading.response_id or _under_way(reader, reading):
        return
    key = (watched.call.provider, reading.response_id)
    with _held.lock:  # two threads may poll the same answer
        waiting = _held.calls.pop(key, None)
        if waiting is not None:
            _settle_waiting(*waiting, reading, text)
        elif reading.quantities or reading.problem:
            _charge_growth(watched, reading, entry_id(*key), reading.created)
        elif reading.lines:
            _charge_lines(watched, reading)
        elif reading.output:
            _remember(key[0], reading.output, reading.response_id)
        elif reading.elsewhere or reading.made:
            reading.notes = (*reading.notes, _ELSEWHERE if reading.elsewhere else _ASKED_ELSEWHERE)
            _charge_growth(watched, reading, entry_id(*key), reading.created)


_ELSEWHERE = "the answers of this batch, which tell their usage, are in a place of yours that is not looked into"
_ASKED_ELSEWHERE = "what was asked for, which decides the price, was said by another process"


def _settle_waiting(opened: Opened, about: Reading, came: str, pieces: int, reading: Polled, text: str) -> None:
    """The end of what this process has begun."""
    invocation = opened.invocation
    call = invocation.call
    if reading.made is not None and call.counts:
        # https://ai.google.dev/gemini-api/docs/video: what was blocked is not charged.
        reading.quantities = {name: count // call.choices * reading.made for name, count in call.counts.items()}
        reading.options = reading.options or call.options
        if not reading.made:
            invocation.release(NothingMade(call.model))
            return
    if reading.quantities or reading.problem:
        invocation.settle(reading)
    else:  # it failed or was cancelled, and says nothing of what that used
        Opened.unsaid(opened, about, text or came, pieces, "abandoned")


class NothingMade(Exception):
    """What was asked for was not made, and is not billed: the error of a span."""


def _charge_lines(watched: Watched, reading: Polled) -> None:
    """Charge the answers that a batch has in itself, each once, at the time of the batch."""
    found = {
        entry_id(watched.call.provider, reading.response_id, str(place)): line
        for place, line in enumerate(reading.lines)
        if line is not None and (line.quantities or line.problem)
    }
    for line in found.values():
        line.model = line.model or reading.model.removeprefix("models/")
    _charge_all(watched, found, reading.created)


def _charge_all(watched: Watched, found: Mapping[str, Reading], at: int = 0) -> None:
    """Charge what has no entry yet; entry id -> what it says."""
    ids = list(found)
    for start in range(0, len(ids), _PAGE):
        page = ids[start : start + _PAGE]
        known = _known(watched.engines, Query(where={"id": page}))
        for id in page:
            if id not in known:
                watched.charge(found[id], id=id, at=at)


def _remember(provider: str, file: str, batch: str) -> None:
    files = _held.files
    files[provider, file] = batch
    while len(files) > MOST_FILES:
        files.pop(next(iter(files)))


class Lines(Watching):
    """A file of answers, one a line."""

    def __init__(self, readers: list[Reader], watched: Watched, batch: str) -> None:
        super().__init__(readers[0], watched)
        self._lines = _LineReader(readers)
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
        _charge_all(self._watched, dict(self._read(lines, len(lines) - 1 if to_the_end else -1)))

    def _read(self, lines: Sequence[bytes], last: int) -> Iterator[tuple[str, Reading]]:
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line) if line.strip() else None
            except ValueError as failure:  # the other lines count
                if number != last:
                    swallow("later.line", failure)
                continue
            name = word(plain(entry, _CUSTOM) or plain(entry, _KEY)) if isinstance(entry, dict) else ""
            reading = self._lines.read(entry) if name else None
            if reading is not None and (reading.quantities or reading.problem):
                yield entry_id(self._watched.call.provider, self._batch, name), reading


class Files(Lines):
    """A download, which is looked at when it is known to be the output of a batch that told no usage itself."""

    @staticmethod
    def _of(provider: str, subject: str) -> str:
        return _held.files.get((provider, subject), "")


_CUSTOM, _KEY = split("custom_id"), split("key")
"""The name that whoever asked has given to a line; the second is Google's."""


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
