"""Connections to a Valkey or Redis server, in threads and in tasks: a command goes out, its answer comes back.

redis-py does the protocol. Its pools are not used: they take a lock, which a finalizer or signal handler that comes in between would
wait for, for ever; and its clients try again by themselves for seconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from aifinops.errors import ConfigurationError

__all__ = ["Link", "Refused", "Unreachable"]

Command = Sequence[bytes]

_ALIASES = {"valkey://": "redis://", "valkeys://": "rediss://"}
_TASKS_MOST = 64
# Without the URL, which may have a password in it; so may the driver's error.
_TYPE = (
    "the URL of the budget store cannot be read. Type redis://host:6379/0, rediss://user:password@host:6380/0, "
    "valkey://host:6379/0 or unix:///path/to/socket?db=0, with special characters of the password as %XX"
)
_IN_PARENT: list[Any] = []  # see `Link.reset_after_fork`


class Unreachable(Exception):
    """The server did not answer in time, or not at all; the driver's error is the cause."""


class Refused(Exception):
    """The server answered with an error.

    Attributes:
        kind: redis-py's name for it. elsewhere: this server has become a replica, so the name leads to another one now.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.kind = type(error).__name__
        self.elsewhere = self.kind == "ReadOnlyError"


class Link:
    """Connections to one server: one for every thread that is inside, some for the tasks of an event loop.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `valkey://` or `valkeys://`. timeout_s: for connecting and for every answer, seconds.

    Attributes:
        where: the server, for messages: without user and password.

    Raises:
        ConfigurationError: when the URL cannot be read or redis-py is not installed.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._connection_class, self._options = _options(url, timeout_s)
        self.where = _where(self._options)
        self._idle: deque[Any] = deque()
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        try:
            self._idle.append(self.connection())
        except (TypeError, ValueError):
            raise ConfigurationError(_TYPE) from None

    def call(self, command: Command) -> Any:
        """Send a command and wait for its answer.

        Raises:
            Unreachable: when none came. Refused: when it was an error.
        """
        try:
            connection = self._idle.pop()  # one step: no lock is needed
        except IndexError:
            connection = self.connection()
        try:
            connection.send_packed_command(_packed(command))
            answer = connection.read_response()
        except BaseException as error:
            refused = _refused(error)
            if refused is not None and not refused.elsewhere:
                self._idle.append(connection)
                raise refused from error
            connection.disconnect()
            self._drop_idle()  # the server has gone away, so they are of no use
            if refused is not None:
                raise refused from error
            if isinstance(error, Exception):
                raise Unreachable(str(error)) from error
            raise
        self._idle.append(connection)
        return answer

    async def acall(self, command: Command) -> Any:
        """`call`, without blocking the event loop.

        Raises:
            Unreachable: when no answer came. Refused: when it was an error.
        """
        since = time.monotonic()
        loop = await self._loop()
        async with loop.turns:
            if loop.failed > since:
                raise Unreachable(f"{self.where} did not answer those before")
            return await loop.call(command)

    def connection(self, *, asynchronous: bool = False) -> Any:
        """A new one, which connects when it is used."""
        made = self._connection_class
        if asynchronous:
            made = getattr(import_module("redis.asyncio.connection"), made.__name__)
        return made(**self._options)

    def reset_after_fork(self) -> None:
        """In a forked child: no connections; those that are open are the parent's."""
        # Kept from being finalized: what an event loop does then, such as leaving its selector, it would do to the parent's.
        _IN_PARENT.append((self._idle, self._loops))
        self._idle = deque()
        self._loops = {}

    def close(self) -> None:
        """Close what is idle; a later call opens it again."""
        self._drop_idle()
        for asyncio_loop, loop in list(self._loops.items()):
            if not asyncio_loop.is_closed():
                asyncio_loop.call_soon_threadsafe(loop.end)

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                self._idle.pop().disconnect()
            except IndexError:
                return

    async def _loop(self) -> _Loop:
        running = asyncio.get_running_loop()
        found = self._loops.get(running)
        if found is None:
            for other in [loop for loop in list(self._loops) if loop.is_closed()]:
                self._loops.pop(other, None)
            found = self._loops[running] = _Loop(self)
            await anext(found.life)
        return found


class _Loop:
    """Connections of one event loop, which cannot be used in another; closed when it ends."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._idle: list[Any] = []
        self._running = asyncio.get_running_loop()
        self.turns = asyncio.Semaphore(
            _TASKS_MOST
        )  # a burst of tasks waits here rather than open a thousand connections
        self.failed = -math.inf
        # `asyncio.run` ends the generators of its loop: that is how we are told.
        self.life = self._live()

    async def call(self, command: Command) -> Any:
        connection = self._idle.pop() if self._idle else self._link.connection(asynchronous=True)
        try:
            await connection.send_packed_command(_packed(command))
            answer = await connection.read_response()
        except BaseException as error:
            refused = _refused(error)
            if refused is not None and not refused.elsewhere:
                self._idle.append(connection)
                raise refused from error
            # Also of a task that was cancelled: the answer that is still to come must not be taken for the next one's.
            await self._drop([connection])
            if refused is not None:
                await self._drop(self._idle)
                raise refused from error
            if isinstance(error, Exception):
                self.failed = time.monotonic()
                await self._drop(self._idle)
                raise Unreachable(str(error)) from error
            raise
        self._idle.append(connection)
        return answer

    def end(self) -> None:
        """Close what is idle; to be called in the loop."""
        self._link._loops.pop(self._running, None)
        self._ending = self._running.create_task(self._drop(self._idle))

    async def _live(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._link._loops.pop(self._running, None)
            await self._drop(self._idle)

    async def _drop(self, connections: list[Any]) -> None:
        while connections:
            await connections.pop().disconnect(nowait=True)


def _packed(command: Command) -> list[bytes]:
    """A command as the protocol has it; redis-py's own way takes three times as long."""
    parts = [b"*%d\r\n" % len(command)]
    parts += [b"$%d\r\n%b\r\n" % (len(part), part) for part in command]
    return [b"".join(parts)]


def _refused(error: BaseException) -> Refused | None:
    answered: type[Exception] = import_module("redis.exceptions").ResponseError
    return Refused(error) if isinstance(error, answered) else None


def _options(url: str, timeout_s: float) -> tuple[type, dict[str, Any]]:
    try:
        driver = import_module("redis.connection")
    except ImportError as error:
        raise ConfigurationError('budgets on Valkey or Redis need redis-py: pip install "aifinops[redis]"') from error
    for alias, scheme in _ALIASES.items():
        if url.startswith(alias):
            url = scheme + url.removeprefix(alias)
    try:
        options: dict[str, Any] = driver.parse_url(url)
    except ValueError:
        raise ConfigurationError(_TYPE) from None
    connection_class: type = options.pop("connection_class", driver.Connection)
    options.pop("max_connections", None)
    options.pop("timeout", None)
    # Nothing that makes connecting take more than one answer: see the timeout.
    options |= {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry_on_timeout": False,
        "protocol": 2,
    }
    options |= {"driver_info": None} if find_spec("redis.driver_info") else {"lib_name": None, "lib_version": None}
    return connection_class, options


def _where(options: dict[str, Any]) -> str:
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
