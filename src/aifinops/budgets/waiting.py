"""Waiting for room: a queue for each node, first come, first served.

Whoever has to wait leaves the engines with a `Wait` in hand, waits outside of them, in a thread or in a task, and asks again. While
there is a queue nobody passes it. What waits holds nothing, so it may be cancelled at any time.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from aifinops.errors import BudgetExceeded

__all__ = ["Queues", "Ticket", "Wait", "in_event_loop", "keep_ticket", "ticket_in_hand"]

_ticket: ContextVar[Ticket | None] = ContextVar("aifinops_ticket", default=None)


class Ticket:
    """A place in one queue.

    Attributes:
        key: of the node that is waited for. deadline: monotonic nanoseconds after which waiting is no use.
        since: when the waiting began, monotonic nanoseconds. place: the store and the node that are waited for now.
    """

    __slots__ = ("_again", "_queues", "_wake", "deadline", "key", "place", "since")

    def __init__(self, queues: Queues, deadline: int, since: int = 0) -> None:
        self.key = ""
        self.deadline = deadline
        self.since = since
        self.place: Any = None
        self._queues = queues
        self._again = threading.Event()
        self._wake: Callable[[], object] = self._again.set

    def wake(self) -> None:
        """Something has changed: ask again. From any thread."""
        self._wake()

    def leave(self) -> None:
        """Give the place up; the next one is told."""
        self._queues.leave(self)

    def wait(self, seconds: float) -> None:
        """Wait in this thread until something has changed, so long at most."""
        self._again.wait(seconds)
        self._again.clear()

    async def await_(self, seconds: float) -> None:
        """Wait in this task, likewise."""
        import asyncio  # whoever is in a task has it

        loop, again = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(again.set)
        if self._again.is_set():  # it came between the answer and now
            again.set()
        try:
            # Not `wait_for`, which on Python 3.11 forgets that it was cancelled where it is woken at the same moment.
            async with asyncio.timeout(seconds):
                await again.wait()
        except TimeoutError:
            pass
        finally:
            self._wake = self._again.set
            self._again.clear()


class Wait(BudgetExceeded):
    """There is no room now and there may be some later. Only seams see it; whoever cannot wait raises its `error`.

    Attributes:
        error: what to raise in the end. ticket: the place in the queue. seconds: how long to wait before asking again, at most.
    """

    def __init__(self, error: BudgetExceeded, ticket: Ticket, seconds: float) -> None:
        Exception.__init__(self)
        self.__dict__.update(vars(error))
        self.error = error
        self.ticket = ticket
        self.seconds = seconds


class Queues:
    """Who waits for what."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: dict[str, deque[Ticket]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def ahead(self, key: str, ticket: Ticket | None) -> bool:
        """Whether somebody else is first in the queue of a node."""
        queue = self._waiting.get(key)
        return queue is not None and queue[0] is not ticket

    def join(self, ticket: Ticket, key: str) -> None:
        """Stand at the end of the queue of a node, or stay where one stands in it."""
        with self._lock:
            if ticket.key == key:
                return
            self.leave(ticket)
            ticket.key = key
            self._waiting.setdefault(key, deque()).append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Not to wait any longer; whoever is first now asks again."""
        with self._lock:
            key, ticket.key = ticket.key, ""
            queue = self._waiting.get(key)
            if not queue:
                return
            first = queue[0] is ticket
            queue.remove(ticket)
            if not queue:
                del self._waiting[key]
            elif first:
                queue[0].wake()

    def changed(self, keys: Iterator[str]) -> None:
        """There may be room at these nodes."""
        with self._lock:
            for key in keys:
                queue = self._waiting.get(key)
                if queue is not None:
                    queue[0].wake()

    def reset_after_fork(self) -> None:
        """Who waited does so in the parent."""
        self._lock = threading.RLock()
        self._waiting.clear()


def in_event_loop() -> bool:
    """Whether an event loop runs in this thread, which must not be held up."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def ticket_in_hand() -> Ticket | None:
    """The place of the call that asks again in this context."""
    return _ticket.get()


@contextmanager
def keep_ticket(ticket: Ticket) -> Iterator[None]:
    """Ask again with this place."""
    token = _ticket.set(ticket)
    try:
        yield
    finally:
        _ticket.reset(token)
