"""Sessions over a WebSocket: OpenAI's Realtime API and Gemini's Live API.

A session is no call: each answer in it is one. OpenAI tells the usage of a response once, in the `response.done` that ends it, and that of
a transcription in an event of its own. Gemini tells the usage of a turn again and again while it grows, so of each field the newest value
is the turn's, and nothing is ever added up. What a session had not ended when it was closed or dropped is settled then.
"""

from __future__ import annotations

import contextlib
import json
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from aifinops import metering
from aifinops.errors import swallow
from aifinops.integrations.calls import Calls
from aifinops.integrations.extract import Reader, dig
from aifinops.integrations.passing import Opened, at_exit, guarded
from aifinops.integrations.patching import Patch, applied
from aifinops.integrations.paths import word
from aifinops.integrations.provider import Provider
from aifinops.reading import Reading

__all__ = ["patch_google", "patch_openai"]


class _Url(NamedTuple):
    scheme: str
    host: str
    port: int | None


class _NotDone(Exception):
    """The server refused to answer."""


def _settle(opened: Opened, read: Callable[[], Reading | None], status: str = "ok") -> None:
    """End one answer of a session with what is read of it. What we fail to read is of unknown cost, and a row."""
    metering.ending("sessions.settle", opened.invocation, _settle_read, opened, read, status)


def _settle_read(opened: Opened, read: Callable[[], Reading | None], status: str) -> None:
    opened.invocation.settle(guarded("sessions.read", read) or Reading(), status)


def _refused(opened: Opened) -> None:
    """The server did not answer what was asked."""
    metering.ending("sessions.refused", opened.invocation, partial(opened.invocation.fail, _NotDone(), refused=True))


class _Session:
    """What is open in one session, and its single end. It does not refer to the user's object, which it outlives."""

    def __init__(self, calls: Calls, provider: str, url: _Url, model: str) -> None:
        self._calls, self._provider, self._url = calls, provider, url
        self.model = model
        self.done = False
        at_exit(self, wanted=True)

    def opened(self, key: str, *, asked: bool, body: dict[str, Any] | None = None, model: str = "") -> Opened | None:
        """One more answer begins; BudgetExceeded when it is asked for and a budget has no room."""
        found = self._calls.open(
            self, self._url, key, self._calls.row.routes[key], body or {}, stream=True, model=model or self.model,
            provider=self._provider, asked=asked,
        )  # fmt: skip
        if found is not None and asked:
            try:
                found.invocation.leave()
            except Exception:  # nobody will end it
                found.invocation.give_up()
                raise
        return found

    def lost(self) -> None:
        """The session was dropped; called by the garbage collector, so no lock may be taken."""
        if not self.done:
            metering.enqueue(self.finish)

    def finish(self) -> None:
        """Settle what is open, once."""
        if not self.done:
            self.done = True
            at_exit(self, wanted=False)
            metering.settle_later(self._settle_all)

    def _settle_all(self) -> None:
        left = guarded("sessions.left", self.left) or []
        try:
            self.settle()
        except Exception as failure:  # nothing of the session stays open
            for one in left:
                one.invocation.give_up()
            swallow("sessions.settle", failure)

    def left(self) -> list[Opened]:
        """What is open."""
        raise NotImplementedError

    def settle(self) -> None:
        """End what is open."""
        raise NotImplementedError


# --- OpenAI ------------------------------------------------------------------------------------------------------------

_HEAD = 300
"""Bytes of a message among which its type stands, if it is one of the many that carry sound or text."""

_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"


class _Realtime(_Session):
    """Responses asked for, and begun, in one connection of the Realtime API."""

    def __init__(self, calls: Calls, url: _Url, model: str) -> None:
        self._asked: deque[Opened] = deque()
        self._begun: dict[str, Opened] = {}
        self._listener = ""  # the model that transcribes
        self._total: dict[str, Any] | None = None  # of a session that tells its seconds: the newest event is all of it
        super().__init__(calls, "", url, model)

    def ask(self, event: Any) -> None:
        """The user sends an event; one that asks for a response is what a budget can refuse."""
        if word(dig(event, ("type",))) != "response.create":
            return
        limit = dig(event, ("response", "max_output_tokens"))
        opened = self.opened("realtime", asked=True, body={"max_output_tokens": limit})
        if opened is not None:
            self._asked.append(opened)

    def hear(self, data: Any) -> None:
        """A message came."""
        if not isinstance(data, (bytes, str)) or _is_delta(data):
            return
        event = json.loads(data)
        name = event.get("type") if isinstance(event, dict) else None
        if name == "response.created":
            self._begin(event)
        elif name == "response.done":
            self._end(event)
        elif name in {"session.usage.updated", "session.closed"}:
            self._total = event
        elif name in {"session.created", "session.updated"}:
            self._know(event.get("session") or {})
        elif name == _TRANSCRIBED and event.get("usage"):
            self._transcribed(event)
        elif name == "error" and self._asked:  # it answers what was sent last
            _refused(self._asked.pop())

    def _know(self, session: dict[str, Any]) -> None:
        self.model = word(session.get("model")) or self.model
        paths = (("audio", "input", "transcription", "model"), ("input_audio_transcription", "model"))
        self._listener = next((name for path in paths if (name := word(dig(session, path)))), self._listener)

    def _begin(self, event: dict[str, Any]) -> None:
        key = _response_of(event)  # first: what has left `_asked` must be found by it
        opened = self._asked.popleft() if self._asked else self.opened("realtime", asked=False)
        if opened is not None:
            self._begun[key] = opened

    def _end(self, event: dict[str, Any]) -> None:
        opened = self._begun.pop(_response_of(event), None)
        if opened is None:
            opened = self._asked.popleft() if self._asked else self.opened("realtime", asked=False)
        if opened is not None:
            _settle(opened, partial(_said_at_end, opened.reader, event))

    def _transcribed(self, event: dict[str, Any]) -> None:
        opened = self.opened("transcription event", asked=False, model=self._listener or "unknown")
        if opened is not None:
            _settle(opened, lambda: opened.reader.tolerant(event))

    def left(self) -> list[Opened]:
        """Responses that were begun or asked for."""
        return [*self._begun.values(), *self._asked]

    def settle(self) -> None:
        """Responses that never ended have a cost that nobody knows; a session that tells its seconds has told it all."""
        for one in (*self._begun.values(), *self._asked):
            _settle(one, lambda: None, "abandoned")
        self._begun.clear()
        self._asked.clear()
        total = self._total
        if total is not None and (opened := self.opened("live", asked=False)) is not None:
            _settle(opened, lambda: opened.reader.tolerant(total))


def _said_at_end(reader: Reader, event: dict[str, Any]) -> Reading:
    body = reader.event_body(event) or {}
    return reader.tolerant(body) or reader.describe(body)


def _response_of(event: dict[str, Any]) -> str:
    return str(dig(event, ("response", "id")))


def _is_delta(data: bytes | str) -> bool:
    head = data[:_HEAD]
    return (b'.delta"' in head) if isinstance(head, bytes) else ('.delta"' in head)


def patch_openai(row: Provider, module: Any) -> list[Patch]:
    """Patch every connection that a module has; a version without degrades to one warning."""
    seam = _OpenAI(row)
    try:
        return applied(wanted for kind in _connections(module) for wanted in seam.wanted(kind))
    except Exception as failure:  # an unknown future version
        swallow("integrations.sessions.patch", failure)
        return []


def _connections(module: Any) -> list[Any]:
    return [
        kind
        for name, kind in vars(module).items()
        if name.endswith("Connection") and isinstance(kind, type) and hasattr(kind, "recv_bytes")
    ]


class _OpenAI:
    """The sessions of all connections, by connection."""

    def __init__(self, row: Provider) -> None:
        self._calls = Calls(row)
        self._sessions: weakref.WeakKeyDictionary[Any, _Realtime] = weakref.WeakKeyDictionary()

    def wanted(self, kind: Any) -> list[tuple[Any, str, Callable[..., Any]]]:
        """What is to be patched of a class of connections."""
        if kind.__name__.startswith("Async"):
            wrappers: Any = {"recv_bytes": self._arecv, "send": self._asend, "close": self._aclose}
        else:
            wrappers = {"recv_bytes": self._recv, "send": self._send, "close": self._close}
        return [(kind, name, wrapper) for name, wrapper in wrappers.items() if hasattr(kind, name)]

    def _session(self, connection: Any) -> _Realtime:
        found = self._sessions.get(connection)
        if found is None:
            url, model = _asked_of(connection)
            found = self._sessions[connection] = _Realtime(self._calls, url, model)
            weakref.finalize(connection, guarded, "lost", found.lost).atexit = False
        return found

    def _hear(self, connection: Any, data: Any) -> None:
        self._session(connection).hear(data)

    def _ask(self, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._session(connection).ask(args[0] if args else kwargs.get("event"))

    def _finish(self, connection: Any) -> None:
        found = self._sessions.get(connection)
        if found is not None:
            found.finish()

    def _recv(self, wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        data = wrapped(*args, **kwargs)
        guarded("sessions.hear", self._hear, connection, data)
        return data

    async def _arecv(
        self, wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        data = await wrapped(*args, **kwargs)
        guarded("sessions.hear", self._hear, connection, data)
        return data

    def _send(self, wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guarded("sessions.ask", self._ask, connection, args, kwargs)
        return wrapped(*args, **kwargs)

    async def _asend(
        self, wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        guarded("sessions.ask", self._ask, connection, args, kwargs)
        return await wrapped(*args, **kwargs)

    def _close(
        self, wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return wrapped(*args, **kwargs)
        finally:
            guarded("sessions.finish", self._finish, connection)

    async def _aclose(
        self, wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return await wrapped(*args, **kwargs)
        finally:
            guarded("sessions.finish", self._finish, connection)


def _asked_of(connection: Any) -> tuple[_Url, str]:
    """Host and model of the request that opened a connection."""
    request = getattr(connection._connection, "request", None)
    host = urlsplit(f"//{request.headers.get('Host', '')}") if request is not None else urlsplit("")
    query = parse_qs(urlsplit(request.path).query) if request is not None else {}
    model = (query.get("model") or query.get("deployment") or [""])[0]
    return _Url("https", host.hostname or "", host.port), model


# --- Gemini ------------------------------------------------------------------------------------------------------------


class _Live(_Session):
    """The turns of one session of the Live API."""

    def __init__(self, calls: Calls, provider: str, url: _Url, model: str) -> None:
        self._turn: Opened | None = None
        self._usage: dict[str, Any] = {}
        self._searched: dict[str, None] = {}  # queries of the turn, each once: messages repeat them
        self._heard = False
        super().__init__(calls, provider, url, model)

    def ask(self) -> None:
        """The user sends; the first of a turn is what a budget can refuse."""
        if self._turn is None:
            self._turn = self.opened("generateContent", asked=True)

    def hear(self, message: Any) -> None:
        """A message came: of the turn it is in, each count is the newest."""
        content = message.server_content
        if self._turn is None and (content is not None or message.tool_call is not None or message.usage_metadata):
            self._turn = self.opened("generateContent", asked=False)
        if self._turn is None:
            return
        self._heard = True
        try:
            if message.usage_metadata is not None:
                self._tell(message)
            grounded = getattr(content, "grounding_metadata", None)
            if grounded is not None:
                self._searched.update(dict.fromkeys(grounded.web_search_queries or ()))
        finally:  # what we fail to read must not make one turn of two
            if content is not None and content.turn_complete:
                self._end()

    def _tell(self, message: Any) -> None:
        assert self._turn is not None  # noqa: S101 (see `hear`)
        raw = dict((self._turn.reader.tolerant(message) or Reading()).raw or {})
        older = self._usage.get("total_token_count") or 0
        if older > (raw.get("total_token_count") or 0) and raw.get("total_token_count"):
            self._end()  # a count that fell is another turn's
            self._turn = self.opened("generateContent", asked=False)
        self._usage.update(raw)

    def _end(self, *, complete: bool = True) -> None:
        turn, usage, heard, searched = self._turn, self._usage, self._heard, list(self._searched)
        self._turn, self._usage, self._heard, self._searched = None, {}, False, {}
        if turn is None:
            return
        if not heard:  # what was sent last, while nobody answered
            _refused(turn)
            return
        said: dict[str, Any] = {"usage_metadata": usage, "model_version": turn.invocation.call.model}
        if searched:
            said["candidates"] = [{"grounding_metadata": {"web_search_queries": searched}}]
        reading = guarded("sessions.read", turn.reader.tolerant, said) if usage else None
        if reading is None or complete:
            _settle(turn, lambda: reading, "ok" if complete else "abandoned")
        else:
            metering.ending("sessions.settle", turn.invocation, turn.invocation.settle_partly, "", 0, reading)

    def left(self) -> list[Opened]:
        """The turn that is in the middle."""
        return [] if self._turn is None else [self._turn]

    def settle(self) -> None:
        """A turn that was cut is charged for what it had told."""
        self._end(complete=False)


def patch_google(row: Provider, module: Any) -> list[Patch]:
    """Patch the sessions of the Live API; a version without degrades to one warning."""
    seam = _Gemini(row)
    try:
        session = module.AsyncSession
        sends = [
            name for name in ("send", "send_client_content", "send_realtime_input", "send_tool_response") if hasattr(session, name)
        ]  # fmt: skip
        wanted: list[tuple[Any, str, Callable[..., Any]]] = [
            (module.AsyncLive, "connect", seam.connect),
            (session, "_receive", seam.receive),
            (session, "close", seam.close),
        ]
        return applied([*wanted, *((session, name, seam.send) for name in sends)])
    except Exception as failure:  # an unknown future version
        swallow("integrations.sessions.patch", failure)
        return []


class _Gemini:
    """The sessions of all clients, by the user's session."""

    def __init__(self, row: Provider) -> None:
        self._calls = Calls(row)
        self._sessions: weakref.WeakKeyDictionary[Any, _Live] = weakref.WeakKeyDictionary()

    def connect(self, wrapped: Callable[..., Any], live: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The library's own context manager, inside one of the same kind: only there are both the model and the session known."""
        manager = wrapped(*args, **kwargs)
        model = kwargs.get("model") or ""

        @contextlib.asynccontextmanager
        async def connected() -> AsyncIterator[Any]:
            async with manager as session:
                guarded("sessions.open", self._open, live, session, model)
                try:
                    yield session
                finally:
                    guarded("sessions.finish", self._finish, session)

        return connected()

    def _open(self, live: Any, session: Any, model: str) -> None:
        api = live._api_client
        base = urlsplit(str(api._http_options.base_url or ""))
        vertex = bool(getattr(api, "vertexai", False))
        url = _Url("https", base.hostname or "", base.port)
        found = _Live(self._calls, "gcp.vertex_ai" if vertex else "", url, model.rpartition("/")[2])
        self._sessions[session] = found
        weakref.finalize(session, guarded, "lost", found.lost).atexit = False

    def _finish(self, session: Any) -> None:
        found = self._sessions.get(session)
        if found is not None:
            found.finish()

    def _hear(self, session: Any, message: Any) -> None:
        found = self._sessions.get(session)
        if found is not None:
            found.hear(message)

    def _ask(self, session: Any) -> None:
        found = self._sessions.get(session)
        if found is not None:
            found.ask()

    async def receive(
        self, wrapped: Callable[..., Any], session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        message = await wrapped(*args, **kwargs)
        guarded("sessions.hear", self._hear, session, message)
        return message

    async def send(
        self, wrapped: Callable[..., Any], session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        guarded("sessions.ask", self._ask, session)
        return await wrapped(*args, **kwargs)

    async def close(
        self, wrapped: Callable[..., Any], session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return await wrapped(*args, **kwargs)
        finally:
            guarded("sessions.finish", self._finish, session)
