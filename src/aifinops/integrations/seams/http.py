"""The seam for client libraries that send with httpx: mistralai, cohere, ollama, huggingface_hub, litellm, and any other by its row.

Every road through httpx ends in `send` of one of its two clients: plain, streamed, retried, and a stream that is begun only when
somebody reads it. There one physical call is one invocation, and the bytes of its answer are seen. Which of all requests of a process
are a library's is known from the library: its row names what is about to send (`senders`) and where that keeps its httpx client,
which is noted. A request through any other client passes with one look-up.

What a library does around a call (retries, fallbacks, parsing, streams of its own) is not touched, so nothing of it can change. Each
try that the provider answers is a call of its own; one that it refuses costs nothing and is no ledger row.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import lru_cache, partial, reduce
from inspect import isawaitable, iscoroutine
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from aifinops import metering
from aifinops.errors import BudgetExceeded, ConfigurationError, swallow
from aifinops.forking import in_child
from aifinops.integrations.calls import Calls, acalled, called, path_of, read_httpx, settle
from aifinops.integrations.changing import How, changed, rewritten
from aifinops.integrations.passing import Opened, Tap, aguarded, guarded, refusals
from aifinops.integrations.patching import Patch, Undoable, applied
from aifinops.integrations.provider import Provider, Route
from aifinops.telemetry.guests import hosted

__all__ = ["Refused", "Seam"]

RESULT = "()"
"""In `Provider.senders`: what the function returns."""

_Found = tuple[str, Route, str]
_Target = tuple[str, dict[str, Any]]

_marked: WeakKeyDictionary[Any, Seam] = WeakKeyDictionary()
"""httpx client -> whose it is."""


class Refused(Exception):
    """The provider answered with an error status, which the library is about to raise in its own way."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status


class Seam:
    """Wrappers for one provider's row."""

    def __init__(self, row: Provider) -> None:
        self._row = row
        self._calls = Calls(row)
        self.route = lru_cache(maxsize=1024)(_Routes(row).find)
        self.target = lru_cache(maxsize=1024)(self._target)
        self.uses = 0
        self.libraries: set[Any] = set()

    def patch_module(self, module: ModuleType) -> list[Undoable]:
        """Note the clients of one of the library's modules from now on; a version that is built otherwise is one warning."""
        done: list[Undoable] = [_Use(self)]
        wrappers = {place: self._marker(path) for place, path in self._row.senders.items()}
        wrappers |= dict.fromkeys(self._row.outermost, _outermost)
        wrappers |= dict.fromkeys(self._row.copies, _copied)
        for place, wrapper in wrappers.items():
            home, _, name = place.partition(":")
            if home != module.__name__:
                continue
            try:
                *outer, last = name.split(".")
                done.append(Patch(reduce(getattr, outer, module), last, wrapper))
            except Exception as failure:  # an unknown version: the user's program goes on unmetered, and is told so
                swallow(f"integrations.{self._row.name}.patch", failure)
        return done

    def patch_client(self, client: Any) -> list[Undoable]:
        """Note the httpx clients of one client object only.

        Raises:
            ConfigurationError: for a client that shares its connections with all others of its library.
        """
        found = [inner for path in self._row.connections if (inner := _follow(client, path.split("."))) is not None]
        if not found:
            kind = f"{type(client).__module__}.{type(client).__qualname__}"
            raise ConfigurationError(
                f"{kind} has no connection of its own, so it cannot be metered alone: give instrument() the library's name"
            )
        use = _Use(self)
        for inner in found:
            self.mark(inner)
        return [use]

    # --- whose client it is -------------------------------------------------------------------------------------------

    def mark(self, client: Any) -> None:
        """Requests of this client are the library's."""
        if client is None or not self.uses or _marked.get(client) is self:
            return
        library = _library_of(client)
        if library is None:
            raise ConfigurationError(
                f"{type(client)} is no client of httpx: what it sends for {self._row.module} is not metered"
            )
        _take(self, library, [(library.Client, "send", _send), (library.AsyncClient, "send", _asend)])
        _marked[client] = self
        _look_up_late(client)

    def mark_inner(self, client: Any, method: str) -> None:
        """Of a client that sends through others, which a method of it gives: those are the library's as well."""
        kind = type(client)
        if hasattr(kind, method):
            _take(self, kind, [(kind, method, _given)])

    def mark_of(self, owner: Any, path: list[str]) -> None:
        """The same for the client at a path from an object."""
        self.mark(_follow(owner, path))

    def _marker(self, path: str) -> Callable[..., Any]:
        first, *names = path.split(".")
        if first == RESULT:
            return _Result(self, names).mark
        names = [first, *names]

        def mark(wrapped: Callable[..., Any], owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            guarded("http.mark", self.mark_of, owner, names)
            return wrapped(*args, **kwargs)

        return mark

    # --- begin --------------------------------------------------------------------------------------------------------

    def begin(self, client: Any, request: Any) -> Opened | None:
        """Open the call of a request of an httpx client, or None when it is none that is metered."""
        url = request.url
        further_out = metering.in_flight()
        if further_out is not None and not _is_another(further_out, request.method, url.path):
            return None
        if request.method == "GET":
            return self._poll(url, url.path)
        found = self.route(url.path) if request.method == "POST" else None
        body = None if found is None else _body(request)
        if found is None or body is None:
            return None
        key, route, model = found
        target, region = self._where(url, key)
        stream = bool(body.get("stream")) or "stream" in key.lower()
        # A library that makes spans itself stands in front of the `send` of its own client, with the span current.
        native = "send" in vars(client) and hosted()
        opened = self._calls.open_at(
            target,
            key,
            route,
            body,
            stream=stream,
            model=model,
            region=region,
            native=native,
            how=_HOW if body and not _is_signed(request) else None,
        )
        if opened is not None and opened.invocation.call.sent:
            opened.options = changed(opened, _changed, request)
        return opened

    def _poll(self, url: Any, path: str) -> Opened | None:
        found = self._calls.polled(path)
        if found is None:
            return None
        target, region = self._where(url, "")
        return self._calls.poll_at(target, found, stream="stream=true" in str(url.query), region=region)

    def place(self, path: str) -> tuple[str, str]:
        """(provider, region) where the path of a request says them; empty where it does not."""
        return "", ""

    def _where(self, url: Any, key: str) -> tuple[_Target, str]:
        provider, facts = self.target(url.scheme, url.host, url.port, url.path.split("/", 2)[1], key)
        named, region = self.place(url.path)
        return (named or provider, facts), region

    def _target(self, scheme: str, host: str, port: int | None, first: str, key: str) -> _Target:
        row = self._row
        provider = row.hosts.get(f"{host}/{first}") or row.provider_at(host)
        if provider == row.name:
            provider = row.speaks.get(key, provider)
        return provider, {"server.address": host, "server.port": port or (443 if scheme == "https" else 80)}


_HOW = How()


def _is_signed(request: Any) -> bool:
    """Whether something in the request would not be true of another body."""
    headers = request.headers
    return headers.get("authorization", "").startswith("AWS4-") or any(name in headers for name in _OF_BODY)


_OF_BODY = ("x-amz-content-sha256", "content-md5", "digest", "content-digest", "signature")


def _changed(sent: Mapping[str, Any], request: Any) -> Any:
    """The request with another body; the one that the library has made stays as it is."""
    headers = request.headers.copy()
    del headers["content-length"]
    content = json.dumps(rewritten(json.loads(request.content), sent)).encode()
    return type(request)(request.method, request.url, headers=headers, content=content, extensions=request.extensions)


def _instead(opened: Opened | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if opened is None or opened.options is None:
        return args, kwargs
    return ((opened.options, *args[1:]), kwargs) if args else (args, {**kwargs, "request": opened.options})


class _Result:
    """Notes the client in what a function returns."""

    def __init__(self, seam: Seam, path: list[str]) -> None:
        self._seam, self._path = seam, path

    def mark(self, wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A wrapper."""
        result = wrapped(*args, **kwargs)
        if isawaitable(result):
            return self._amark(result)
        guarded("http.mark", self._seam.mark_of, result, self._path)
        return result

    async def _amark(self, waiting: Any) -> Any:
        result = await waiting
        guarded("http.mark", self._seam.mark_of, result, self._path)
        return result


class _Routes:
    """The paths of a row."""

    def __init__(self, row: Provider) -> None:
        # The longest first: `/models/*` would take `/models/*/pipeline/feature-extraction` as well.
        paths = sorted((key for key in row.routes if key.startswith("/")), key=len, reverse=True)
        self._patterns = [(_pattern(key), key, row.routes[key]) for key in paths]

    def find(self, path: str) -> _Found | None:
        """(the key in the row, its route, the model that the path names), of the path of a request."""
        path = path_of(path)
        for pattern, key, route in self._patterns:
            found = pattern.search(path)
            if found is not None:
                return key, route, path[found.start(1) : found.end(found.re.groups)] if found.re.groups else ""
        return None


def _is_another(further_out: metering.Invocation, method: str, path: str) -> bool:
    """Whether a request is none of what a library further out is only looking at, which may send with a client of ours."""
    watched = further_out if type(further_out) is metering.Watched else None
    return watched is not None and method == "POST" and not (watched.path and path.endswith(watched.path))


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(re.escape(key).replace(r"\*", "(.+)").replace(re.escape("{id}"), "[^/]+") + "$")


def _follow(owner: Any, path: Iterable[str]) -> Any:
    for name in path:
        owner = getattr(owner, name, None)
    return owner


def _body(request: Any) -> dict[str, Any] | None:
    """The body of a request as far as it is known: of a form nothing, and None for what is neither that nor JSON."""
    kind = request.headers.get("content-type", "")
    if kind and "json" not in kind:  # some leave it out
        return {} if kind.startswith("multipart/") else None
    try:
        parsed = json.loads(request.content)
    except (ValueError, RuntimeError):  # sent in pieces, and perhaps not to be had twice
        return {} if kind else None
    return parsed if isinstance(parsed, dict) else {}


# --- httpx itself -------------------------------------------------------------------------------------------------------


def _library_of(client: Any) -> ModuleType | None:
    """The library whose client this is, perhaps through a class of the user's; None for a client that is not httpx's."""
    roots = {kind.__module__.partition(".")[0] for kind in type(client).__mro__}
    return next((sys.modules[name] for name in ("httpx", "httpx2") if name in roots), None)


def _look_up_late(client: Any) -> None:
    """Somebody who stands in front of one client's `send` has kept the method of its class, perhaps as it was before us: from now on that
    is looked up with each request, which is what it would be without them."""
    for cell in getattr(vars(client).get("send"), "__closure__", None) or ():
        kept = cell.cell_contents
        if getattr(kept, "__self__", None) is client and getattr(kept, "__name__", "") == "send":
            cell.cell_contents = partial(_sent, client)


def _sent(client: Any, *args: Any, **kwargs: Any) -> Any:
    return type(client).send(client, *args, **kwargs)


class _Use:
    """The use that one row makes of `send`. The wrapper is there while anybody uses it, and only once."""

    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        with _lock:
            seam.uses += 1

    def undo(self) -> None:
        """Take it back."""
        seam = self._seam
        with _lock:
            seam.uses -= 1
            if seam.uses:
                return
            for client, owner in list(_marked.items()):
                if owner is seam:
                    del _marked[client]
            for library in seam.libraries:
                _release(library)
            seam.libraries.clear()


def _take(seam: Seam, owner: Any, wanted: list[tuple[Any, str, Callable[..., Any]]]) -> None:
    with _lock:
        if owner in seam.libraries:
            return
        seam.libraries.add(owner)
        patches, users = _wires.get(owner, ((), 0))
        _wires[owner] = (patches if users else tuple(applied(wanted))), users + 1


def _release(owner: Any) -> None:
    patches, users = _wires[owner]
    _wires[owner] = patches, users - 1
    if users == 1:
        for patch in reversed(patches):
            patch.undo()


_lock = threading.RLock()
_wires: dict[Any, tuple[tuple[Patch, ...], int]] = {}
"""What is patched: a module of httpx, or the class of a client that sends through others -> (patches, how many seams use them)."""


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the thread that may have held it is not here
    _lock = threading.RLock()


in_child(_after_fork)


# --- the two colours of the last thin layer -------------------------------------------------------------------------------


def _send(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    opened = guarded("http.begin", _begin, client, args, kwargs)
    args, kwargs = _instead(opened, args, kwargs)
    return called(opened, wrapped, args, kwargs, _read)


async def _asend(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    opened = await aguarded("http.begin", _begin, client, args, kwargs)
    args, kwargs = _instead(opened, args, kwargs)
    return await acalled(opened, wrapped, args, kwargs, _read)


def _outermost(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let a refused budget out of a library as itself, unless the library found another way."""
    refused: list[BudgetExceeded] = []
    token = refusals.set(refused)
    try:
        result = wrapped(*args, **kwargs)
    except Exception as error:
        raise _own(error, refused) from error.__cause__
    finally:
        refusals.reset(token)
    return _aoutermost(result) if iscoroutine(result) else result


async def _aoutermost(waiting: Coroutine[Any, Any, Any]) -> Any:
    refused: list[BudgetExceeded] = []
    token = refusals.set(refused)
    try:
        return await waiting
    except Exception as error:
        raise _own(error, refused) from error.__cause__
    finally:
        refusals.reset(token)


def _own(error: Exception, refused: list[BudgetExceeded]) -> Exception:
    return refused[-1] if refused else error


def _begin(client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened | None:
    seam = _marked.get(client)
    return None if seam is None or not seam.uses else seam.begin(client, args[0] if args else kwargs["request"])


def _given(wrapped: Callable[..., Any], outer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A client that another one sends through is of the same library."""
    inner = wrapped(*args, **kwargs)
    seam = _marked.get(outer)
    if seam is not None:
        guarded("http.mark", seam.mark, inner)
    return inner


def _copied(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What sees an answer pass goes with it."""
    response = wrapped(*args, **kwargs)
    guarded("http.copied", Tap.move, args[0] if args else kwargs["resp"], response)
    return response


def _read(opened: Opened, response: Any) -> None:
    if not response.is_success:
        opened.invocation.fail(Refused(response.status_code))
    elif not response.is_closed:
        opened.invocation.answer = response
        read_httpx(opened, None)
    else:  # read to its end already, also where a stream was asked for
        settle(opened, None, response)
