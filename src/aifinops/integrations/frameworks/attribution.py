"""Tags of a framework's runs, in force while each runs: what the calls inside are attributed to.

Frameworks tell beginnings and ends, not blocks: an end may come in another thread, in another order, or never. So each run is a frame
of a chain in a context variable. Its end takes it out when it is the innermost here, with all that have ended below it; elsewhere the
frame is only marked, and whoever is innermost takes it out later. Tasks and threads that copy the context keep their tags.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from aifinops import scope
from aifinops.errors import swallow
from aifinops.scope import Scope
from aifinops.tags import EMPTY, Tags, make_tags

__all__ = ["Attribution", "tagged", "tags_of"]

MOST_OPEN = 10_000
"""Runs that may be open at once in one process; beyond it the oldest are forgotten (their end never came)."""

_LONGEST = 256


def tags_of(values: Mapping[str, object]) -> Tags:
    """Tags of whatever a framework says: empty ones left out, long ones cut, never an error.

    A name that a model made up (a tool that does not exist) may be anything, so what is no text or number is left out as well.
    """
    clean = {
        key: str(value)[:_LONGEST]
        for key, value in values.items()
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
    }
    return make_tags(clean) if clean else EMPTY


class _Frame:
    """One run that is open here."""

    __slots__ = ("before", "done", "inside", "outer")

    def __init__(self, outer: _Frame | None, before: Scope, inside: Scope) -> None:
        self.outer = outer
        self.before = before
        self.inside = inside
        self.done = False


_innermost: ContextVar[_Frame | None] = ContextVar("aifinops_framework_run", default=None)


class Attribution:
    """The open runs of one framework."""

    def __init__(self) -> None:
        self._open: OrderedDict[Hashable, _Frame] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, run: Hashable, tags: Tags) -> None:
        """A run begins here: its tags are in force in this context, and in those that copy it, until its end."""
        if not tags:
            return
        outer = _trim(_innermost.get())
        before = scope.current()
        scope.enter(tags=tags)
        frame = _Frame(outer, before, scope.current())
        _innermost.set(frame)
        with self._lock:
            self._open[run] = frame
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)

    def end(self, run: Hashable) -> None:
        """A run has ended; one that never began, or has ended before, is ignored."""
        with self._lock:
            frame = self._open.pop(run, None)
        if frame is not None:
            frame.done = True
            _trim(_innermost.get())

    def forget(self) -> None:
        """End every run (the framework is let go)."""
        with self._lock:
            frames, self._open = list(self._open.values()), OrderedDict()
        for frame in frames:
            frame.done = True
        _trim(_innermost.get())

    def __len__(self) -> int:
        return len(self._open)


def _trim(frame: _Frame | None) -> _Frame | None:
    """Take the frames that have ended off this context; what is innermost then."""
    if frame is None or not frame.done:
        return frame
    while frame is not None and frame.done:
        if scope.current() is frame.inside:  # else a block of the user's own is open in it, and will leave by itself
            scope.set_scope(frame.before)
        frame = frame.outer
    _innermost.set(frame)
    return frame


@contextmanager
def tagged(values: Mapping[str, object]) -> Iterator[None]:
    """Tags in force for a block, of a framework that does have blocks."""
    try:
        token = scope.enter(tags=tags_of(values))
    except Exception as failure:  # attribution is a courtesy; the user's call goes on
        swallow("frameworks.tags", failure)
        token = None
    try:
        yield
    finally:
        if token is not None:
            scope.leave(token)
