"""What ends where nobody may block: it waits for the next safe moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from aifinops import runtime
from aifinops.errors import swallow

__all__ = ["busy", "drain", "enqueue", "settle_later"]

_waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()


class _Busy(threading.local):
    """Whether this thread is inside the engines: a finalizer that the garbage collector runs there must only enqueue."""

    on = False


busy = _Busy()


def settle_later(job: Callable[[], None]) -> None:
    """Run `job` at the next safe moment: now, or, inside our own engines or a finalizer, before the next call or flush."""
    _waiting.put(job)
    if not busy.on:
        drain()


def drain() -> None:
    """Run what finalizers have left behind."""
    while not busy.on and not _waiting.empty():
        try:
            job = _waiting.get_nowait()
        except Empty:
            return
        try:
            job()
        except Exception as failure:  # one stream's failure must not keep the others waiting
            swallow("metering.drain", failure)


def enqueue(job: Callable[[], None]) -> None:
    """Leave `job` for the next call or flush; safe inside a finalizer and a signal handler."""
    _waiting.put(job)


runtime.on_flush(drain)
