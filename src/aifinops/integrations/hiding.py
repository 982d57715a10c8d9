"""Ask for the usage of a stream whose caller did not, and keep the answer to that question from him.

A stream of chat completions says what it used only when it is asked to, in one more event without choices, and then has `usage: null`
in every other event. Programs that never asked index `choices[0]` of each event. So what the question added is taken out of the bytes,
before anybody reads them: the event, and the nulls. Every other byte stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from aifinops.errors import swallow
from aifinops.integrations.passing import Opened, guarded

if TYPE_CHECKING:
    from aifinops.integrations.provider import Provider, Route

__all__ = ["Hider", "ask", "hide", "replaced"]

MAX_EVENT = 8 * 1024 * 1024
"""Bytes without the end of an event after which this is taken for no stream of events: it passes as it is from there on."""

_ENDS = (b"\n\n", b"\n\r\n")
_LAST_ENDS = (*_ENDS, b"\r\r")
_END = re.compile(rb"\r\n\r\n|\n\r?\n|\r\r")
_ABSENT = frozenset({"NotGiven", "Omit"})
_LF = 10
_USAGE, _NULL = b'"usage"', b',"usage":null'
"""Inside of a JSON text each quotation mark has a backslash before it, so these bytes are never something that was said."""
_SPACED_NULL = re.compile(rb'\s*,\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


def ask(opened: Opened, row: Provider, route: Route, host: str, options: Any) -> None:
    """Leave in `opened` the options of a request that asks for usage too, when this stream is to be asked.

    The caller's own dicts stay as they are, and whoever has said himself whether he wants usage is left as asked.

    Args:
        options: of the request, as Stainless' client libraries have them.
    """
    how = opened.invocation.engines.config.stream_usage
    if how == "never" or not route.usage_option or (how == "known" and not _is_known(row, host)):
        return
    field, _, flag = route.usage_option.partition(".")
    body = options.json_data
    extra = getattr(options, "extra_json", None) or {}
    if not isinstance(body, dict) or field in extra:
        return
    given = body.get(field)
    if (
        given is None or type(given).__name__ in _ABSENT
    ):  # some versions leave that out only when they write the request
        given = {}
    if not isinstance(given, dict) or flag in given:
        return
    copy = getattr(options, "model_copy", None) or options.copy  # pydantic 2, else 1
    opened.options = copy(update={"json_data": {**body, field: {**given, flag: True}}})
    opened.hides = True


def _is_known(row: Provider, host: str) -> bool:
    return any(host == known or (known[0] == "." and host.endswith(known)) for known in row.usage_hosts)


def replaced(opened: Opened, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the request with the options that are sent instead."""
    if len(args) > 1:
        return (args[0], opened.options, *args[2:]), kwargs
    return args, {**kwargs, "options": opened.options}


class Hider:
    """What is taken out of one answer. Whole events go on at once; the beginning of one waits for its end, as it does in the client.

    What waits is changed only when it is known what goes on, so a failure of ours at any step neither loses a byte nor repeats one: from
    there on all bytes go on as they are.
    """

    __slots__ = ("_off", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._off = False

    def take(self, chunk: bytes) -> bytes:
        """What goes on of a chunk and of what waited before it; perhaps nothing yet."""
        if self._off:
            return chunk
        if not self._parts and chunk.endswith(_ENDS):
            return _kept(chunk)
        data, cut = _joined(self._parts, chunk)
        if not cut:  # no event ends here, whatever came before
            self._parts.append(chunk)
            self._size += len(chunk)
            if self._size <= MAX_EVENT:
                return b""
            self._off = True
            return self.waiting()
        shown, tail = _kept(data[:cut]), data[cut:]
        self._parts[:] = [tail] if tail else []
        self._size = len(tail)
        return shown

    def waiting(self) -> bytes:
        """What waits, as it came; it does not wait any longer."""
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return data

    def rest(self) -> bytes:
        """What still waits when no more comes."""
        data = self.waiting()
        try:
            return data if self._off or not data else _kept(data)
        except Exception as failure:  # what cannot be read is not hidden
            swallow("integrations.hiding", failure)
            return data

    def taking(self) -> Callable[[bytes], bytes]:
        """`take`, with what it can do at once done without it, and without its failures."""
        parts, slowly = self._parts, self.take

        def take(chunk: bytes) -> bytes:
            try:
                # One event, as nearly all chunks are. Its null is looked for from the end, near which it is.
                if chunk.find(b"\n") == len(chunk) - 2 and chunk[-1] == _LF and not parts:
                    head, null, tail = chunk.rpartition(_NULL)
                    if null and _USAGE not in tail:
                        return head + tail
                return slowly(chunk)
            except Exception as failure:  # what cannot be read is not hidden
                self._off = True
                unseen = b"".join((*parts, chunk))
                parts.clear()
                swallow("integrations.hiding", failure)
                return unseen

        return take

    def all(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks of an answer without what is hidden; with one step of ours for each."""
        try:
            yield from filter(None, map(guarded("hiding", self.taking) or bytes, chunks))
        except Exception:  # the connection's own error goes on
            if self._parts:  # whoever reads bytes gets all that came before it
                yield self.rest()
            raise
        if self._parts and (last := self.rest()):
            yield last


def _joined(parts: list[bytes], chunk: bytes) -> tuple[bytes, int]:
    """(what waits with a chunk after it, bytes of that up to the end of its last whole event); 0 where none ends."""
    if b"\n" not in chunk and b"\r" not in chunk:
        return b"", 0
    data = b"".join((*parts, chunk))
    return data, max((at + len(end) for end in _LAST_ENDS if (at := data.rfind(end)) >= 0), default=0)


def _kept(data: bytes) -> bytes:
    """Whole events without what is hidden."""
    data = data.replace(_NULL, b"")
    return data if _USAGE not in data else _without(data)


def _without(data: bytes) -> bytes:
    kept, at = [], 0
    for end in _END.finditer(data):
        kept.append(_shown(data[at : end.end()]))
        at = end.end()
    if at < len(data):
        kept.append(_shown(data[at:]))
    return b"".join(kept)


def _shown(event: bytes) -> bytes:
    """An event as it would have come unasked; empty for the one that would not have."""
    if _USAGE not in event:
        return event
    lines = event.splitlines()
    try:
        body = json.loads(b"\n".join(line[5:] for line in lines if line.startswith(b"data:")))
    except ValueError:
        return event
    if not isinstance(body, dict) or "usage" not in body:
        return event
    usage = body.pop("usage")
    if usage is None:
        return _without_null(event, body)
    return b"" if body.get("choices") == [] and isinstance(usage, dict) else event


def _without_null(event: bytes, body: dict[str, Any]) -> bytes:
    edited = _SPACED_NULL.sub(b"", event, count=1)
    try:
        same = json.loads(b"\n".join(line[5:] for line in edited.splitlines() if line.startswith(b"data:"))) == body
    except ValueError:
        return event
    return edited if same else event


class Veil:
    """Attributes of one HTTP answer that hide what our question added to it, from whoever reads it in whatever way."""

    def __init__(self, http: Any) -> None:
        self._below: dict[str, Any] = {}
        self._hider = Hider()
        self._used = False
        for name, shown in (
            ("iter_bytes", self._iter_bytes),
            ("iter_raw", self._iter_raw),
            ("aiter_bytes", self._aiter_bytes),
            ("aiter_raw", self._aiter_raw),
        ):
            if hasattr(http, name):
                self._below[name] = getattr(http, name)
                setattr(http, name, shown)

    def _iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        self._used = True
        chunks = self._hider.all(self._below["iter_bytes"]())
        return chunks if chunk_size is None else _cut(chunks, chunk_size)

    def _iter_raw(self, chunk_size: int | None = None) -> Iterator[bytes]:
        if self._used:  # by `iter_bytes`, which asks for these itself
            return self._below["iter_raw"](chunk_size)  # type: ignore[no-any-return]
        self._used = True
        chunks = self._hider.all(self._below["iter_raw"]())
        return chunks if chunk_size is None else _cut(chunks, chunk_size)

    def _aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        self._used = True
        chunks = _aall(self._hider, self._below["aiter_bytes"]())
        return chunks if chunk_size is None else _acut(chunks, chunk_size)

    def _aiter_raw(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        if self._used:
            return self._below["aiter_raw"](chunk_size)  # type: ignore[no-any-return]
        self._used = True
        chunks = _aall(self._hider, self._below["aiter_raw"]())
        return chunks if chunk_size is None else _acut(chunks, chunk_size)


def hide(result: Any) -> None:
    """Hide in the answer below what the client library hands out."""
    http = getattr(result, "http_response", None) or getattr(result, "response", None)
    if http is not None:
        Veil(http)


def _cut(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of a size, as they are asked of httpx."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


async def _acut(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


async def _aall(hider: Hider, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    take = guarded("hiding", hider.taking) or bytes
    try:
        async for chunk in chunks:
            if shown := take(chunk):
                yield shown
    except Exception:  # the connection's own error goes on; whoever reads bytes gets all that came before it
        if waiting := hider.rest():
            yield waiting
        raise
    if waiting := hider.rest():
        yield waiting
