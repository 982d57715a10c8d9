"""An answer that comes in pieces, seen go by: what is kept of it, and its single end.

Bytes of an HTTP answer of httpx pass a `Tap`: per chunk that is one append, and the user's stream object is not touched. Events that a
library hands out as objects pass `watched` or `awatched`.
"""

from __future__ import annotations

import atexit
import sys
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from inspect import isawaitable
from itertools import chain, filterfalse, islice
from typing import Any, TypeVar

from aifinops import metering
from aifinops.budgets.waiting import Wait
from aifinops.errors import BudgetExceeded, swallow
from aifinops.forking import in_child
from aifinops.integrations import amazon
from aifinops.integrations.extract import Reader
from aifinops.integrations.growing import Growth
from aifinops.integrations.streams import StreamText, first_event, read_events, read_objects, said
from aifinops.metering import Invocation
from aifinops.reading import Reading

__all__ = [
    "Opened", "Passing", "PassingEvents", "Tap", "apassed", "at_exit", "awatched", "finish_open_streams", "guarded", "passed", "watched",
]  # fmt: skip

_G = TypeVar("_G")

refusals: ContextVar[list[BudgetExceeded] | None] = ContextVar("aifinops_refusals", default=None)
"""Refused budgets inside a library that hides exceptions, for whoever is outermost in it."""

MAX_KEPT = 8 * 1024 * 1024
"""Bytes of a stream that are kept for reading its end; beyond it the oldest are let go."""

MOST_EVENTS = 100_000
"""Events of a stream of objects that are kept; beyond it the oldest are let go."""

SEGMENT = 63
"""Chunks that pass between two looks at how many bytes are kept."""


class Opened:
    """An invocation with what a seam needs to close it."""

    __slots__ = ("hides", "invocation", "options", "reader")

    def __init__(self, reader: Reader, invocation: Invocation) -> None:
        self.reader = reader
        self.invocation = invocation
        self.options: Any = None  # of the request that is sent in place of the caller's, see `hiding` and `changing`
        self.hides = False  # True where its answer has something that the caller did not ask for

    def passing(self) -> Passing:
        """What keeps an answer of this call that comes in pieces."""
        return Passing(self)

    def wants(self, http: Any) -> bool:
        """Whether an answer that comes in pieces is to be seen."""
        return True

    def unsaid(self, about: Reading, text: str, pieces: int, status: str) -> None:
        """Settle an answer that says no usage.

        Args:
            about: what it does say. text, pieces: of a stream. status: `ok` or `abandoned`.
        """
        if self.invocation.call.counts:
            self.invocation.settle_asked(text, pieces, about, status)
        else:
            self.invocation.settle_estimated(text, pieces, about, status)


def guarded(place: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call something of ours; its failure is counted and is None. Only a budget's refusal gets out."""
    try:
        return function(*args)
    except BudgetExceeded as refusal:
        _note(refusal)
        raise
    except Exception as failure:  # the user's call goes on as if we were not there
        swallow(f"integrations.{place}", failure)
        return None


async def aguarded(place: str, function: Callable[..., Any], *args: Any) -> Any:
    """`guarded` for what opens a call, in a task: where the call has to wait for room, the task does."""
    try:
        return await metering.begin_patiently(guarded, place, function, *args)
    except BudgetExceeded as refusal:
        _note(refusal)
        raise


def _note(refusal: BudgetExceeded) -> None:
    refused = refusals.get()
    if refused is not None and not isinstance(refusal, Wait) and refusal not in refused:
        refused.append(refusal)


class Passing:
    """What is kept of an answer that is passing, and its single end. It must not refer to the answer: it outlives it."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self.kept: deque[bytes] = deque()
        self.size = 0
        self.newest: list[bytes] = []  # what has come since the last `pack`
        self.done = False
        starts = opened.invocation.call.start
        self.growth = None if starts is None else Growth(opened.invocation, opened.reader)
        self.told: dict[str, Any] | None = (
            None  # by the headers of one of Amazon's event streams, which come in binary frames
        )
        _passing.add(self)

    def pack(self, chunk: bytes) -> None:
        """Take in one more chunk, with what has come before it, and let the oldest bytes go when there are too many."""
        if not self.kept:
            invocation = self._opened.invocation
            invocation.first_chunk = invocation.engines.clock.monotonic_ns()
        self.newest.append(chunk)
        packed = b"".join(self.newest)
        self.newest.clear()
        self.kept.append(packed)
        self.size += len(packed)
        while self.size > MAX_KEPT:
            self.size -= len(self.kept.popleft())

    def lost(self) -> None:
        """The answer was dropped; called by the garbage collector, anywhere, so no lock may be taken."""
        if not self.done:
            metering.enqueue(self.finish)

    def finish(self) -> None:
        """Settle, once; a later end is ignored."""
        if not self.done:
            self.done = True
            _passing.discard(self)
            metering.settle_later(partial(metering.ending, "stream", self._opened.invocation, self._settle))

    def forget(self) -> None:
        """It cannot be seen after all: whoever wanted to see it ends the call in another way."""
        self.done = True
        _passing.discard(self)

    def _settle(self) -> None:
        try:
            self._settle_read()
        except Exception as failure:  # recorded as a call whose cost is unknown
            self._opened.invocation.settle(Reading())
            swallow("integrations.stream", failure)

    def _settle_read(self) -> None:
        invocation, reader = self._opened.invocation, self._opened.reader
        reading, came, first = self._read(reader)
        if reading is None:
            about = reader.begun(first)
            self._opened.unsaid(about, came.text, came.pieces, "ok" if came.finished else "abandoned")
        elif reader.route.running and not (came.finished or reading.finish_reasons or reading.problem):
            invocation.settle_partly(came.text, came.pieces, reading)
        else:
            invocation.settle(reading)

    def _read(self, reader: Reader) -> tuple[Reading | None, StreamText, Any]:
        """(the usage that came, or else the text and the first event)."""
        data = b"".join([*self.kept, *self.newest])
        self.kept.clear()
        self.newest.clear()
        reading = None
        if self.told is not None:
            said_in = amazon.frames(data)
            reading, data = amazon.read_stream(said_in, self.told, reader)[0], amazon.as_lines(said_in)
        if self._opened.invocation.engines.capture:
            self._opened.invocation.said = said(data, reader)
        if reading is not None:
            return reading, StreamText(), None
        reading, came = read_events(data, reader)
        return reading, came, None if reading is not None else first_event(data)


class PassingEvents(Passing):
    """The same for events that are objects.

    Attributes:
        look: called with each event before it goes on, where a stream says in one that it has broken.
        close: lets go of the connection, of a stream that is ended. It must not refer to the answer either.
    """

    look: Callable[[Any], None] | None = None
    close: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self.events: deque[Any] = deque(maxlen=MOST_EVENTS)
        self.ended = False

    def first(self) -> None:
        """The first event has come."""
        invocation = self._opened.invocation
        invocation.first_chunk = invocation.engines.clock.monotonic_ns()

    def end(self) -> None:
        """The stream was read to its end."""
        self.ended = True
        self.finish()

    def part(self, event: Any, reader: Reader) -> tuple[Reading | None, StreamText]:
        """What one event tells."""
        return read_objects([event], reader, tools=False)

    def grow(self, event: Any) -> None:
        """An event was handed out; BudgetExceeded when the stream is to be ended."""
        if self.growth is not None:
            self.growth.took(*self.part(event, self._opened.reader))

    def _read(self, reader: Reader) -> tuple[Reading | None, StreamText, Any]:
        events = list(self.events)
        self.events.clear()
        invocation = self._opened.invocation
        if invocation.engines.capture:
            invocation.said = "".join(map(reader.text, events))
        body = invocation.call.body
        offered = not isinstance(body, dict) or bool(body.get("tools"))
        reading, came = read_objects(events, reader, tools=offered)
        came.finished = came.finished or self.ended
        return reading, came, next(iter(events), None)


def watched(opened: Opened, events: Iterable[Any]) -> Iterator[Any]:
    """A generator of the same events, seen go by; its end, however it comes, is the end of the call."""
    return passed(PassingEvents(opened), events)


def passed(passing: PassingEvents, events: Iterable[Any]) -> Iterator[Any]:
    """`watched`, for a call whose passing events are known already."""
    return _until_lost(_watched(passing, events), passing)


def awatched(opened: Opened, events: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """`watched` for an asynchronous iterable."""
    return apassed(PassingEvents(opened), events)


def apassed(passing: PassingEvents, events: AsyncIterable[Any]) -> AsyncIterator[Any]:
    """`awatched`, for a call whose passing events are known already."""
    return _until_lost(_awatched(passing, events), passing)


def _until_lost(generator: _G, passing: Passing) -> _G:
    # A generator that was never started gets no GeneratorExit when it is dropped.
    guarded("until_lost", _when_lost, generator, passing)
    return generator


def _when_lost(generator: Any, passing: Passing) -> None:
    weakref.finalize(generator, guarded, "lost", passing.lost).atexit = False


def _watched(passing: PassingEvents, events: Iterable[Any]) -> Iterator[Any]:
    keep, kept, look = passing.events.append, passing.events, passing.look
    grows = passing.growth is not None
    try:
        for event in events:
            if not kept:
                guarded("first", passing.first)
            keep(event)
            if look is not None:
                guarded("look", look, event)
            yield event
            if grows:
                guarded("grow", passing.grow, event)
    except GeneratorExit:
        guarded("lost", passing.lost)  # perhaps by the garbage collector
        raise
    except BudgetExceeded:  # there is no room for more of it
        guarded("finish", passing.finish)
        guarded("close", passing.close)
        raise
    except BaseException:
        guarded("finish", passing.finish)
        raise
    guarded("finish", passing.end)


async def _awatched(passing: PassingEvents, events: AsyncIterable[Any]) -> AsyncIterator[Any]:
    keep, kept, look = passing.events.append, passing.events, passing.look
    grows = passing.growth is not None
    try:
        async for event in events:
            if not kept:
                guarded("first", passing.first)
            keep(event)
            if look is not None:
                guarded("look", look, event)
            yield event
            if grows:
                guarded("grow", passing.grow, event)
    except GeneratorExit:
        guarded("lost", passing.lost)
        raise
    except BudgetExceeded:  # there is no room for more of it
        guarded("finish", passing.finish)
        await _closed(passing)
        raise
    except BaseException:
        guarded("finish", passing.finish)
        raise
    guarded("finish", passing.end)


async def _closed(passing: PassingEvents) -> None:
    closed = guarded("close", passing.close)
    if isawaitable(closed):
        try:
            await closed
        except Exception as failure:  # the stream is over all the same
            swallow("integrations.close", failure)


_TAPPED = ("iter_bytes", "iter_raw", "close", "aiter_bytes", "aiter_raw", "aclose")


class Tap:
    """Attributes of one HTTP answer that let us see its bytes go by; its class, and every other answer, stay as they are.

    The answer holds the tap and the tap the answer. The SDK's stream is such a circle already (it holds a generator of its own
    method), so an abandoned one is freed as it was; and a weak reference would be dead when the collector lets the SDK's generator
    close the answer.
    """

    def __init__(self, opened: Opened, http: Any) -> None:
        self._passing = passing = opened.passing()
        if "amazon.eventstream" in http.headers.get("content-type", ""):
            passing.told = amazon.told_of(http.headers)
        self._source: Any = None
        try:
            self._put_on(http)
        except Exception:
            passing.forget()
            raise

    def _put_on(self, http: Any) -> None:
        self._http = http
        self._lost = weakref.finalize(http, guarded, "lost", self._passing.lost)
        self._lost.atexit = False
        if hasattr(http, "iter_bytes"):
            http.iter_bytes, http.iter_raw, http.close = self._iter_bytes, self._iter_raw, self._close
        if hasattr(http, "aiter_bytes"):
            http.aiter_bytes, http.aiter_raw, http.aclose = self._aiter_bytes, self._aiter_raw, self._aclose

    @staticmethod
    def move(old: Any, new: Any) -> None:
        """Some libraries make another answer of one that is under way, with all attributes of it, and drop the first one."""
        tap = getattr(vars(old).get("iter_bytes") or vars(old).get("aiter_bytes"), "__self__", None)
        if not isinstance(tap, Tap) or new is old or tap._source is not None:
            return
        tap._leave()
        tap._lost.detach()
        for name in _TAPPED:
            vars(new).pop(name, None)
        tap._put_on(new)

    def _original(self, name: str) -> Any:
        return getattr(type(self._http), name).__get__(self._http)

    def _iter_bytes(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        return self._tapped("iter_bytes", args, kwargs)

    def _iter_raw(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        if self._source is not None:  # asked by `iter_bytes`, whose bytes are seen already
            return self._original("iter_raw")(*args, **kwargs)  # type: ignore[no-any-return]
        return self._tapped("iter_raw", args, kwargs)

    def _tapped(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[bytes]:
        self._source = source = self._original(name)(*args, **kwargs)
        growth = self._passing.growth
        return chain.from_iterable(self._segments(source)) if growth is None else self._grown(source, growth)

    def _grown(self, chunks: Iterator[bytes], growth: Growth) -> Iterator[bytes]:
        """The chunks of a stream that is ended when there is no room for more of it."""
        passing = self._passing
        try:
            for chunk in chunks:
                guarded("keep", passing.pack, chunk)
                yield chunk
                guarded("grow", growth.take, chunk)
        except GeneratorExit:
            guarded("lost", passing.lost)
            raise
        except BudgetExceeded:
            guarded("finish", self._finished)
            self._original("close")()
            raise
        guarded("finish", self._finished)

    def _segments(self, chunks: Iterator[bytes]) -> Iterator[Iterable[bytes]]:
        """The chunks, all but one in `SEGMENT` passed on and kept without a step of Python: `append` answers None, so
        `filterfalse` lets everything by. An interpreter's generator in their way would cost each several times as much."""
        passing = self._passing
        passed = filterfalse(passing.newest.append, chunks)
        try:
            for chunk in chunks:
                guarded("keep", passing.pack, chunk)
                yield (chunk,)
                yield islice(passed, SEGMENT)
        except GeneratorExit:  # nobody reads on, though some keep the answer open for long
            guarded("lost", passing.lost)
            raise
        guarded("finish", self._finished)

    def _aiter_bytes(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        return self._atapped("aiter_bytes", args, kwargs)

    def _aiter_raw(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        if self._source is not None:
            return self._original("aiter_raw")(*args, **kwargs)  # type: ignore[no-any-return]
        return self._atapped("aiter_raw", args, kwargs)

    def _atapped(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[bytes]:
        self._source = source = self._original(name)(*args, **kwargs)
        return self._apass(source)

    async def _apass(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        passing, newest, keep = self._passing, self._passing.newest, self._passing.newest.append
        growth = passing.growth
        try:
            async for chunk in chunks:
                if passing.kept and len(newest) < SEGMENT:
                    keep(chunk)
                else:
                    guarded("keep", passing.pack, chunk)
                yield chunk
                if growth is not None:
                    guarded("grow", growth.take, chunk)
        except GeneratorExit:
            guarded("lost", passing.lost)
            raise
        except BudgetExceeded:
            guarded("finish", self._finished)
            await self._original("aclose")()
            raise
        guarded("finish", self._finished)

    # Settled first: a library that makes spans ends them when it closes, and who reads those must find that the call is charged.

    def _close(self) -> None:
        guarded("closed", self._closed, "gi_running")
        self._original("close")()

    async def _aclose(self) -> None:
        guarded("closed", self._closed, "ag_running")
        await self._original("aclose")()

    def _closed(self, running: str) -> None:
        if sys.exc_info()[0] is GeneratorExit:
            self._passing.lost()  # a dropped generator is closed by the garbage collector
            self._leave()
        # httpx closes an answer itself when it has read the last bytes, before it hands them out: not the end yet.
        elif not getattr(self._source, running, False):
            self._finished()

    def _finished(self) -> None:
        self._leave()
        self._passing.finish()

    def _leave(self) -> None:
        """Take our attributes away again: what is over can be pickled and read again as if we had not been there."""
        mine = vars(self._http)
        for name in _TAPPED:
            mine.pop(name, None)


_passing: set[Any] = set()


def at_exit(item: Any, *, wanted: bool) -> None:
    """Whether to `finish` something when the process ends; it is kept until then."""
    (_passing.add if wanted else _passing.discard)(item)


def finish_open_streams() -> None:
    """At the end of the process: settle what nobody has read to its end."""
    for item in list(_passing):
        guarded("exit", item.finish)  # one that fails does not keep the others from being settled


atexit.register(finish_open_streams)

# A child of a fork ends by itself: what its parent reads is the parent's to settle.
in_child(_passing.clear)
