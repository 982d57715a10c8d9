"""The seam for client libraries made by Stainless' generator (openai, anthropic, groq, together, cerebras and others).

`request` of their two base clients is where every call begins: plain, streamed, parsed, raw, helpers and `client.post`. There the
invocation is opened, and there an exception is seen. `_process_response` is the last place that has the HTTP answer however the
library then hands it out, and also when parsing it fails after it was paid for. Plain answers are read from the SDK's object.
Streams are read from the bytes as they pass: per chunk that is one append, and the user's stream object is not touched.
"""

from __future__ import annotations

import atexit
import sys
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import chain, filterfalse, islice
from typing import Any

from aifinops import metering
from aifinops.errors import BudgetExceeded, swallow
from aifinops.integrations.extract import Reader, first_event, read_events
from aifinops.integrations.patching import Patch
from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.registry import answers, knows
from aifinops.metering import Call, Invocation
from aifinops.reading import Reading

__all__ = ["Seam"]

MAX_KEPT = 8 * 1024 * 1024
"""Bytes of a stream that are kept for reading its end; beyond it the oldest are let go."""

SEGMENT = 63
"""Chunks that pass between two looks at how many bytes are kept."""


_DEARER_TIERS = {"priority": "priority", "fast": "priority"}
"""Tiers whose bound is above the standard one; for the cheaper ones the standard bound is sound, whatever is served."""


class _Open:
    """An invocation with what the seam needs to close it."""

    __slots__ = ("invocation", "reader")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.invocation: Invocation


def _guarded(place: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call something of ours; its failure is counted and is None. Only a budget's refusal gets out."""
    try:
        return function(*args)
    except BudgetExceeded:
        raise
    except Exception as failure:  # the user's call goes on as if we were not there
        swallow(f"integrations.stainless.{place}", failure)
        return None


class Seam:
    """Wrappers for one provider's row."""

    def __init__(self, row: Provider) -> None:
        self._row = row
        self._readers: dict[tuple[str, str], Reader] = {}
        self._targets: weakref.WeakKeyDictionary[Any, tuple[str, dict[str, Any]]] = weakref.WeakKeyDictionary()

    def patch_module(self, module: Any) -> list[Patch]:
        """Patch both base clients of an imported library; a version without them degrades to one warning."""
        try:
            base = sys.modules[f"{module.__name__}._base_client"]
            return [*self._patch(base.SyncAPIClient, "sync"), *self._patch(base.AsyncAPIClient, "async")]
        except Exception as failure:  # an unknown future version: the user's program goes on unmetered, and is told so
            swallow(f"integrations.{self._row.name}.patch", failure)
            return []

    def patch_client(self, client: Any) -> list[Patch]:
        """Patch one client object only."""
        is_async = any(kind.__name__ == "AsyncAPIClient" for kind in type(client).__mro__)
        return self._patch(client, "async" if is_async else "sync")

    def _patch(self, owner: Any, colour: str) -> list[Patch]:
        request = self._request if colour == "sync" else self._arequest
        patches = [Patch(owner, "request", request)]
        if hasattr(owner, "_process_response"):
            patches.append(Patch(owner, "_process_response", _process_response))
        return patches

    # --- the two colours of the last thin layer ---------------------------------------------------------------------------

    def _request(self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        opened = _guarded("begin", self._begin, client, args, kwargs)
        if opened is None:
            return wrapped(*args, **kwargs)
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            _guarded("failed", _failed, opened, error)
            raise
        _guarded("answered", _answered, opened, result)
        return result

    async def _arequest(
        self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        opened = _guarded("begin", self._begin, client, args, kwargs)
        if opened is None:
            return await wrapped(*args, **kwargs)
        try:
            result = await wrapped(*args, **kwargs)
        except BaseException as error:
            _guarded("failed", _failed, opened, error)
            raise
        _guarded("answered", _answered, opened, result)
        return result

    # --- begin --------------------------------------------------------------------------------------------------------

    def _begin(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Open | None:
        options = args[1] if len(args) > 1 else kwargs["options"]
        path = _path(options.url)
        route = self._row.routes.get(path)
        if route is None or options.method.lower() != "post":
            return None
        provider, facts = self._target(client)
        opened = _Open(self._reader(provider, path))
        # Last, so that nothing can fail between opening an invocation and handing it over.
        invocation = metering.begin(self._call(provider, facts, options, route))
        if invocation is None:
            return None
        opened.invocation = invocation
        return opened

    def _reader(self, provider: str, path: str) -> Reader:
        """How this provider's answers are read: one client library reaches many, and each adds something of its own."""
        found = self._readers.get((provider, path))
        if found is None:
            route = answers(provider)[1].routes.get(path) if knows(provider) else None
            found = self._readers[provider, path] = Reader(route or self._row.routes[path], provider)
        return found

    def _call(self, provider: str, facts: dict[str, Any], options: Any, route: Route) -> Call:
        body = options.json_data
        extra = getattr(options, "extra_json", None)
        if extra and isinstance(body, dict):
            body = {**body, **extra}
        if not isinstance(body, dict):
            body = {}
        limit = next((body[name] for name in route.limits if isinstance(body.get(name), int)), None)
        choices = body.get(route.choices)
        return Call(
            provider=provider,
            operation=route.operation,
            model=body["model"] if isinstance(body.get("model"), str) else "",
            body=body,
            stream=bool(body.get("stream")),
            max_output=limit,
            choices=choices if isinstance(choices, int) and choices > 0 else 1,
            tier=_DEARER_TIERS.get(body.get("service_tier"), ""),  # type: ignore[arg-type]
            facts={**facts, **route.facts} if route.facts else facts,
            region=self._row.residency.get(facts["server.address"], ""),
        )

    def _target(self, client: Any) -> tuple[str, dict[str, Any]]:
        """Provider and server attributes of a client, worked out once for each."""
        found = self._targets.get(client)
        if found is None:
            url = client.base_url
            provider = self._row.provider_at(url.host)
            if "Azure" in type(client).__name__:
                provider = "azure.ai.openai"
            facts = {"server.address": url.host, "server.port": url.port or (443 if url.scheme == "https" else 80)}
            found = self._targets[client] = (provider, facts)
        return found


def _path(url: str) -> str:
    if url.startswith(("http://", "https://")):
        url = "/" + url.split("/", 3)[-1]
    path = url.partition("?")[0].rstrip("/")
    return path if path.startswith("/") else f"/{path}"


# --- end -----------------------------------------------------------------------------------------------------------------


def _process_response(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Remember the HTTP answer of the call in flight; the same for both colours, since it only looks at the arguments."""
    _guarded("process_response", _remember, kwargs.get("response"))
    return wrapped(*args, **kwargs)


def _remember(response: Any) -> None:
    invocation = metering.in_flight()
    if invocation is not None:
        invocation.answer = response


def _answered(opened: _Open, result: Any) -> None:
    """The call returned: read a plain answer now, a stream while it passes."""
    invocation = opened.invocation
    try:
        invocation.leave()
        http, invocation.answer = invocation.answer, None  # nothing of ours may keep a dropped stream alive
        if http is None:
            http = getattr(result, "http_response", None) or getattr(result, "response", None)
        if http is not None and (invocation.call.stream or not http.is_closed):
            _Tap(opened, http)
            return
        _settle(opened, result, http)
    except Exception as failure:  # the answer is the user's, whatever we could not read in it
        swallow("integrations.stainless.answered", failure)
        invocation.settle(Reading())


def _failed(opened: _Open, error: BaseException) -> None:
    """The call raised: its own error goes on; an answer that was paid for before is settled for what it says."""
    invocation = opened.invocation
    try:
        http, invocation.answer = invocation.answer, None
        if http is not None and http.is_success and http.is_closed:
            reading, _ = read_events(http.content, opened.reader)
            if reading is not None:
                invocation.leave()
                invocation.settle(reading, "error", error)
                return
    except Exception as failure:  # the bound is kept instead
        swallow("integrations.stainless.failed", failure)
    invocation.fail(error)


def _settle(opened: _Open, result: Any, http: Any) -> None:
    reader, invocation = opened.reader, opened.invocation
    reading = None
    if hasattr(result, "usage"):
        reading = reader.tolerant(result)
    elif http is not None:
        reading, _ = read_events(http.content, reader)
    if reading is not None:
        invocation.settle(reading)
        return
    body = result if http is None else first_event(http.content)
    invocation.settle_estimated(reader.text(body), 0, reader.describe(body), "ok")


class _Passing:
    """What is kept of an answer that is passing, and its single end. It must not refer to the answer: it outlives it."""

    def __init__(self, opened: _Open) -> None:
        self._opened = opened
        self.kept: deque[bytes] = deque()
        self.size = 0
        self.newest: list[bytes] = []  # what has come since the last `pack`
        self.done = False
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
            metering.settle_later(self._settle)

    def _settle(self) -> None:
        invocation, reader = self._opened.invocation, self._opened.reader
        data = b"".join([*self.kept, *self.newest])
        self.kept.clear()
        self.newest.clear()
        try:
            reading, came = read_events(data, reader)
        except Exception as failure:  # recorded as a call whose cost is unknown
            swallow("integrations.stainless.stream", failure)
            invocation.settle(Reading())
            return
        if reading is not None:
            invocation.settle(reading)
            return
        about = reader.describe(reader.event_body(first_event(data)) or {})
        invocation.settle_estimated(came.text, came.pieces, about, "ok" if came.finished else "abandoned")


class _Tap:
    """Attributes of one HTTP answer that let us see its bytes go by; its class, and every other answer, stay as they are.

    The answer holds the tap and the tap the answer. The SDK's stream is such a circle already (it holds a generator of its own
    method), so an abandoned one is freed as it was; and a weak reference would be dead when the collector lets the SDK's generator
    close the answer.
    """

    def __init__(self, opened: _Open, http: Any) -> None:
        self._http = http
        self._passing = _Passing(opened)
        self._source: Any = None
        if hasattr(http, "iter_bytes"):
            http.iter_bytes = self._iter_bytes
            http.close = self._close
        if hasattr(http, "aiter_bytes"):
            http.aiter_bytes = self._aiter_bytes
            http.aclose = self._aclose
        weakref.finalize(http, _guarded, "lost", self._passing.lost).atexit = False

    def _original(self, name: str) -> Any:
        return getattr(type(self._http), name).__get__(self._http)

    def _iter_bytes(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        self._source = source = self._original("iter_bytes")(*args, **kwargs)
        return chain.from_iterable(self._segments(source))

    def _segments(self, chunks: Iterator[bytes]) -> Iterator[Iterable[bytes]]:
        """The chunks, all but one in `SEGMENT` passed on and kept without a step of Python: `append` answers None, so
        `filterfalse` lets everything by. An interpreter's generator in their way would cost each several times as much."""
        passing = self._passing
        passed = filterfalse(passing.newest.append, chunks)
        for chunk in chunks:
            _guarded("keep", passing.pack, chunk)
            yield (chunk,)
            yield islice(passed, SEGMENT)
        _guarded("finish", passing.finish)

    def _aiter_bytes(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        self._source = source = self._original("aiter_bytes")(*args, **kwargs)
        return self._apass(source)

    async def _apass(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        passing, newest, keep = self._passing, self._passing.newest, self._passing.newest.append
        async for chunk in chunks:
            if passing.kept and len(newest) < SEGMENT:
                keep(chunk)
            else:
                _guarded("keep", passing.pack, chunk)
            yield chunk
        _guarded("finish", passing.finish)

    def _close(self) -> None:
        try:
            self._original("close")()
        finally:
            _guarded("closed", self._closed, "gi_running")

    async def _aclose(self) -> None:
        try:
            await self._original("aclose")()
        finally:
            _guarded("closed", self._closed, "ag_running")

    def _closed(self, running: str) -> None:
        if sys.exc_info()[0] is GeneratorExit:
            self._passing.lost()  # a dropped generator is closed by the garbage collector
        # httpx closes an answer itself when it has read the last bytes, before it hands them out: not the end yet.
        elif not getattr(self._source, running, False):
            self._passing.finish()


_passing: set[_Passing] = set()


def finish_open_streams() -> None:
    """At the end of the process: settle what nobody has read to its end."""
    for item in list(_passing):
        item.finish()


atexit.register(finish_open_streams)
