"""Connections to PostgreSQL that a caller, blocking or not, waits for no longer than he wants to.

What happens on a connection is written once, as a generator of what it waits for: a `Wait` at a time. `finish` drives one by blocking
the thread, `afinish` by awaiting in the event loop; both throw a `TimeoutError` into it when its time is over.

The driver opens connections (in a thread of its own, since looking up a name may take any time) and speaks the protocol. Its cursors are
not used: a blocking one waits for a server that was stopped as long as that takes.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

__all__ = ["Connection", "Link", "Pool", "Result", "Speaker", "Steps", "Wait", "afinish", "ask", "finish"]

R = TypeVar("R")


class Result(Protocol):
    """What is used of the driver's `pq.PGresult`."""

    status: int
    ntuples: int
    error_message: bytes

    def get_value(self, row: int, column: int, /) -> bytes | None:
        """One value, as text."""
        ...

    def error_field(self, field: int, /) -> bytes | None:
        """A part of an error."""
        ...


class Speaker(Protocol):
    """What is used of the driver's `pq.PGconn`, which is libpq's connection."""

    socket: int

    def send_query_params(self, command: bytes, parameters: list[bytes], /) -> None:
        """Begin to send a command."""
        ...

    def flush(self) -> int:
        """Send; 1 when there is more."""
        ...

    def consume_input(self) -> None:
        """Read what is there."""
        ...

    def is_busy(self) -> int:
        """Whether there is no whole result yet."""
        ...

    def get_result(self) -> Result | None:
        """The next result; None at the end."""
        ...


class Connection(Protocol):
    """What is used of the driver's `Connection`."""

    pgconn: Speaker

    def close(self) -> None:
        """Close it."""
        ...


_abandoned: list[Link] = []
"""Connections of a parent process. Even closing one would tell the server to end the parent's session."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a generator waits for: a future, or a socket to be readable (or writable as well)."""

    future: Future[Link] | None = None
    fd: int = -1
    writable: bool = False


Steps = Generator[Wait, Any, R]
"""What is done on a connection, as what it waits for on the way to its result."""


class Link:
    """One connection.

    Attributes:
        connection: the driver's. pgconn: what speaks the protocol. pid: of the process that opened it.
    """

    __slots__ = ("connection", "pgconn", "pid")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pgconn = connection.pgconn
        self.pid = os.getpid()

    def usable(self) -> bool:
        """False when the server has closed it, or has said something that nobody asked for."""
        try:
            fd = self.pgconn.socket
        except Exception:  # the driver's: it has noticed already
            return False
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close it, or in a child of who opened it: let go of it."""
        if self.pid != os.getpid():
            _abandoned.append(self)
            with suppress(Exception):  # it was closed in the parent already
                os.close(self.pgconn.socket)
            return
        self.connection.close()


class Pool:
    """Up to so many connections of a process, for all of its threads and tasks; whoever waits for one longest gets the next.

    Args:
        connect: opens one. most: how many.
    """

    def __init__(self, connect: Callable[[], Connection], most: int) -> None:
        self._connect = connect
        self._most = most
        self._start()

    def _start(self) -> None:
        # Re-entrant: a finalizer or a signal handler may come in here in the thread that is in here.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._idle: list[Link] = []
        self._waiting: deque[Future[Link]] = deque()
        self._count = 0

    def take(self) -> Steps[Link]:
        """A connection, to be given back or dropped."""
        with self._lock:
            while self._idle:
                link = self._idle.pop()
                if link.usable():
                    return link
                self._count -= 1
                link.close()
            future: Future[Link] = Future()
            self._waiting.append(future)
        self._open_more()
        try:
            found: Link = yield Wait(future)
            return found
        except BaseException:
            if future.cancel():
                with self._lock, suppress(ValueError):
                    self._waiting.remove(future)
            elif not future.exception():
                self.give(future.result())  # it came while this one went away
            raise

    def give(self, link: Link) -> None:
        """Give one back that can be used again."""
        if link.pid != self._pid:
            link.close()
            return
        with self._lock:
            while self._waiting:
                future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_result(link)
                    return
            self._idle.append(link)

    def drop(self, link: Link) -> None:
        """Close one that nobody can use again."""
        with self._lock:
            if link.pid == self._pid:
                self._count -= 1
        link.close()
        self._open_more()

    def close(self) -> None:
        """Close those that lie idle. A later operation opens new ones."""
        if self.inherited():
            self.reset_after_fork()
        with self._lock:
            links = list(self._idle)
            self._idle.clear()
            self._count -= len(links)
        for link in links:
            link.close()

    def inherited(self) -> bool:
        """True in a child of the process that uses it, until `reset_after_fork`."""
        return self._pid != os.getpid()

    def reset_after_fork(self) -> None:
        """In a forked child: a new lock and no connections; those are the parent's."""
        links = self._idle
        self._start()
        for link in links:
            link.close()

    def _open_more(self) -> None:
        with self._lock:
            if not self._waiting or self._count >= self._most:
                return
            self._count += 1
        try:
            threading.Thread(target=self._open, name="aifinops-postgres", daemon=True).start()
        except RuntimeError:
            self._open()  # the interpreter is going down, and starts no more threads

    def _open(self) -> None:
        try:
            link = Link(self._connect())
        except BaseException as error:
            # All who wait, since nobody opens one for those whose turn would have come later.
            with self._lock:
                self._count -= 1
                waiting, self._waiting = self._waiting, deque()
            for future in waiting:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
        else:
            self.give(link)


def ask(pgconn: Speaker, command: bytes, parameters: list[bytes]) -> Steps[Result]:
    """Send one command and read its result."""
    pgconn.send_query_params(command, parameters)
    while pgconn.flush():
        yield Wait(fd=pgconn.socket, writable=True)
        pgconn.consume_input()  # a server that is still sending does not read
    last: Result | None = None
    while True:
        while pgconn.is_busy():
            yield Wait(fd=pgconn.socket)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            break
        if last is None or not last.error_message:  # after what the server says at its end comes that it is gone
            last = result
    assert last is not None  # noqa: S101 - the protocol answers every command
    return last


def finish(steps: Steps[R], timeout_s: float) -> R:
    """Drive a generator to its end in this thread.

    Raises:
        TimeoutError: when it does not handle that its time is over.
    """
    until = time.monotonic() + timeout_s
    try:
        wait = next(steps)
        while True:
            try:
                found = _block(wait, until - time.monotonic())
            except BaseException as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(found)
    except StopIteration as end:
        result: R = end.value
        return result


async def afinish(steps: Steps[R], timeout_s: float) -> R:
    """Drive a generator to its end, awaiting.

    Raises:
        TimeoutError: as `finish`.
    """
    until = time.monotonic() + timeout_s
    try:
        wait = next(steps)
        while True:
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    found = await _await(wait)
            except BaseException as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(found)
    except StopIteration as end:
        result: R = end.value
        return result


def _block(wait: Wait, left_s: float) -> Link | None:
    left_s = max(0.0, left_s)
    if wait.future is not None:
        return wait.future.result(left_s)
    poll = select.poll()
    poll.register(wait.fd, select.POLLIN | select.POLLOUT if wait.writable else select.POLLIN)
    if not poll.poll(left_s * 1000):
        raise TimeoutError
    return None


async def _await(wait: Wait) -> Link | None:
    if wait.future is not None:
        return await asyncio.wrap_future(wait.future)
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(wait.fd, ready.set)
    if wait.writable:
        loop.add_writer(wait.fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(wait.fd)
        if wait.writable:
            loop.remove_writer(wait.fd)
    return None
