"""The seam for google-genai, for the Gemini API and for Vertex AI.

`_request` and `_async_request` of its `BaseApiClient` are where every call passes: models, chats, each turn of automatic function calling,
embeddings and images. Each try that the library makes inside of one is `_request_once` or `_async_request_once`; with aiohttp, that makes
a second one itself, for which it asks for its session again. A plain answer is the text that they return. A stream is seen as the parsed pieces
that the library makes of it, whatever it is transported by (httpx, aiohttp or requests): per piece that is one append.

Interactions and decisions are sent by a library of another make within this one, with httpx: those are seen by the seam for that.
"""

from __future__ import annotations

import json
import re
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aifinops.errors import swallow
from aifinops.integrations.calls import Calls, acalled, called, settle_body
from aifinops.integrations.changing import ADDRESS, How, changed, rewritten
from aifinops.integrations.later import Lines
from aifinops.integrations.passing import Opened, PassingEvents, aguarded, apassed, guarded, passed
from aifinops.integrations.patching import Patch, Undoable, applied
from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.seams import http
from aifinops.integrations.tries import ahold_again, hold_again, note

__all__ = ["Seam"]

_VERTEX = "gcp.vertex_ai"
_FETCH = "fetchPredictOperation"
"""A POST that asks for what was asked for before."""

_NEVER_SENT = frozenset({"ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorCertificateError"})
"""aiohttp's exceptions that prove that no request left: https://docs.aiohttp.org/en/stable/client_reference.html#client-exceptions."""


class _Url(NamedTuple):
    scheme: str
    host: str
    port: int | None


class _Form(NamedTuple):
    """One form of a method's answers."""

    key: str
    route: Route
    prefix: str

    def is_for(self, model: str) -> bool:
        return bool(self.prefix and model.startswith(self.prefix))


class Seam:
    """Wrappers for one provider's row."""

    def __init__(self, row: Provider) -> None:
        self._row = row
        self._calls = Calls(row)
        self._methods = _forms(row)
        self._http = _Http(row)

    def patch_module(self, module: Any) -> Sequence[Undoable]:
        """Patch the client of an imported library; a version without it degrades to one warning."""
        if module.__name__ != self._row.module:
            return self._http.patch_module(module)
        try:
            return self._patch(sys.modules[f"{module.__name__}._api_client"].BaseApiClient)
        except Exception as failure:  # an unknown future version: the user's program goes on unmetered, and is told so
            swallow(f"integrations.{self._row.name}.patch", failure)
            return []

    def patch_client(self, client: Any) -> list[Undoable]:
        """Patch one client object only (and so its `aio`, which shares what sends)."""
        return [*self._patch(client._api_client), *self._http.patch_client(client)]

    def _patch(self, owner: Any) -> list[Patch]:
        calls = ((owner, "_request", self._request), (owner, "_async_request", self._arequest))
        downloads = (("download_file", self._download), ("async_download_file", self._adownload))
        if not hasattr(owner, "_request_once") and hasattr(sys.modules.get(owner.__module__), "retry_args"):
            swallow(
                f"integrations.{self._row.name}.tries",
                AttributeError("this version tries again in a way that is not known"),
            )
        wanted = (*calls, *((owner, name, wrapper) for name, wrapper in (*downloads, *_TRIES) if hasattr(owner, name)))
        return applied(wanted)

    # --- the two colours of the last thin layer ---------------------------------------------------------------------------

    def _request(self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        opened = guarded("google_genai.begin", self._begin, client, args, kwargs)
        args, kwargs = _instead(opened, args, kwargs)
        return called(opened, wrapped, args, kwargs, _read, _refused)

    async def _arequest(
        self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        opened = await aguarded("google_genai.begin", self._begin, client, args, kwargs)
        args, kwargs = _instead(opened, args, kwargs)
        return await acalled(opened, wrapped, args, kwargs, _read, _refused)

    def _download(self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        opened = guarded("google_genai.begin", self._begin_file, client, args, kwargs)
        if opened is None:
            return wrapped(*args, **kwargs)
        kwargs, copy = _copied(kwargs)
        return called(opened, wrapped, args, kwargs, lambda opened, told: _read_file(opened, told, copy))

    async def _adownload(
        self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        opened = guarded("google_genai.begin", self._begin_file, client, args, kwargs)
        if opened is None:
            return await wrapped(*args, **kwargs)
        kwargs, copy = _copied(kwargs)
        return await acalled(opened, wrapped, args, kwargs, lambda opened, told: _read_file(opened, told, copy))

    # --- begin --------------------------------------------------------------------------------------------------------

    def _begin(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened | None:
        request = args[0] if args else kwargs["http_request"]
        # .../models/gemini-2.5-flash:streamGenerateContent?alt=sse
        path = request.url.partition("?")[0]
        name, _, method = path.rpartition(":")
        method = method.partition(";")[0]
        if request.method.lower() == "get" or method == _FETCH:
            return self._poll(client, request.url, path)
        forms = self._methods.get(method)
        if forms is None or request.method.lower() != "post":
            return None
        model = name.rpartition("/")[2]
        form = next((form for form in forms if form.is_for(model)), forms[-1])
        vertex = bool(getattr(client, "vertexai", False))
        body = request.data if isinstance(request.data, dict) else {}
        opened = self._calls.open(
            client,
            _url(request.url),
            form.key,
            form.route,
            body,
            stream=method.startswith("stream"),
            model=model,
            provider=_VERTEX if vertex else "",
            region=(getattr(client, "location", None) or "") if vertex else "",
            tier=str(body.get("serviceTier") or "").lower().removeprefix("service_tier_"),
            how=_HOW,
        )
        if opened is not None and opened.invocation.call.sent:
            opened.options = changed(opened, _changed, request, model)
        return opened

    def _poll(self, client: Any, url: str, path: str) -> Opened | None:
        found = self._calls.polled(path)
        if found is None:
            return None
        vertex = bool(getattr(client, "vertexai", False))
        provider, facts, _ = self._calls.target(client, _url(url))
        target = (_VERTEX if vertex else provider, facts)
        region = (getattr(client, "location", None) or "") if vertex else ""
        return self._calls.poll_at(target, found, stream=False, region=region)

    def _begin_file(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened | None:
        path = args[0] if args else kwargs["path"]
        return self._poll(client, str(client._http_options.base_url), "/" + path.partition("?")[0])


_HOW = How(ADDRESS)


def _changed(sent: Mapping[str, Any], request: Any, model: str) -> Any:
    """A copy of the request with another body, and perhaps another model in its address."""
    made = copy(request)
    made.data = rewritten(request.data, sent)
    if ADDRESS in sent:
        before, _, after = request.url.rpartition(f"/{model}:")
        made.url = f"{before}/{sent[ADDRESS]}:{after}"
    return made


def _instead(opened: Opened | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if opened is None or opened.options is None:
        return args, kwargs
    return ((opened.options, *args[1:]), kwargs) if args else (args, {**kwargs, "http_request": opened.options})


# --- the tries inside of one call ----------------------------------------------------------------------------------------


def _once(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    hold_again("google_genai.again", refused=_refused)
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        guarded("google_genai.tried", note, error)
        raise


async def _aonce(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    await ahold_again("google_genai.again", refused=_refused)
    try:
        return await wrapped(*args, **kwargs)
    except Exception as error:
        guarded("google_genai.tried", note, error)
        raise


async def _asession(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    error = sys.exc_info()[1]
    if error is not None and _caught_in(error) == "_async_request_once":  # it asks from where it has caught that
        await ahold_again("google_genai.again", error, _refused)
    return await wrapped(*args, **kwargs)


def _caught_in(error: BaseException) -> str:
    seen = error.__traceback__
    return "" if seen is None else seen.tb_frame.f_code.co_name


_TRIES = (("_request_once", _once), ("_async_request_once", _aonce), ("_get_aiohttp_session", _asession))

_PLACE = re.compile(r"/locations/([^/]+)/")


class _Http(http.Seam):
    """What this library sends in the other way; Vertex AI says in the path where it is."""

    def mark(self, client: Any) -> None:
        """An asynchronous client of newer versions has one of httpx for each event loop."""
        super().mark(client)
        if client is not None and self.uses:
            self.mark_inner(client, "_client_for_running_loop")

    def place(self, path: str) -> tuple[str, str]:
        """(provider, region) of the path of a request."""
        found = _PLACE.search(path)
        return (_VERTEX, found[1]) if found is not None else ("", "")


class _Copy:
    """Writes to where the user wants it, and keeps what passes: a library that downloads only writes."""

    def __init__(self, destination: Any) -> None:
        self._write = destination.write
        self.kept: list[bytes] = []

    def write(self, chunk: bytes) -> Any:
        self.kept.append(chunk)
        return self._write(chunk)


def _copied(kwargs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """(the arguments of a download, where a copy of it can be read afterwards); nothing where the caller is given the bytes."""
    destination = kwargs.get("destination")
    if not hasattr(destination, "write"):
        return kwargs, destination
    copy = _Copy(destination)
    return {**kwargs, "destination": copy}, copy


def _read_file(opened: Opened, told: Any, copy: Any) -> None:
    if not isinstance(opened, Lines):
        return
    if isinstance(told, bytes):
        opened.take(told.split(b"\n"))
    elif isinstance(copy, _Copy):
        opened.take(b"".join(copy.kept).split(b"\n"))
    elif copy is not None:
        opened.take(Path(copy).read_bytes().split(b"\n"))


def _forms(row: Provider) -> dict[str, list[_Form]]:
    """Method -> its forms; the one for all other models is the last."""
    methods: dict[str, list[_Form]] = {}
    for key, route in row.routes.items():
        method, _, word = key.partition(" ")
        methods.setdefault(method, []).append(_Form(key, route, word))
    for forms in methods.values():
        forms.sort(key=lambda form: not form.prefix)
    methods["streamGenerateContent"] = methods["generateContent"]
    return {name: forms for name, forms in methods.items() if any(not form.prefix for form in forms)}


def _url(text: str) -> _Url:
    found = urlsplit(text)
    return _Url(found.scheme, found.hostname or "", found.port)


def _read(opened: Opened, response: Any) -> None:
    if opened.invocation.call.stream:
        _watch(opened, response)
        return
    text = response.response_stream[0] if response.response_stream else ""
    try:
        body = json.loads(text)
    except ValueError:  # the library will say so itself
        body = None
    settle_body(opened, body)


def _watch(opened: Opened, response: Any) -> None:
    """Let the pieces of one answer be seen, by two attributes of it, the first use of which takes them away again."""
    passing = PassingEvents(opened)
    # The library takes the pieces with its next step, or never: then it drops the answer.
    weakref.finalize(response, guarded, "lost", passing.lost).atexit = False

    def whole() -> Any:
        del response.segments, response.async_segments
        return passed(passing, response.segments())

    def awhole() -> Any:
        del response.segments, response.async_segments
        return apassed(passing, response.async_segments())

    response.segments, response.async_segments = whole, awhole
    passing.close = partial(_close, weakref.ref(response))


def _close(ref: weakref.ref[Any]) -> Any:
    """Let go of the connection, whichever library has it; a coroutine where it is to be awaited."""
    http = getattr(ref(), "response_stream", None)
    # One class of httpx is of both colours, by what it reads from.
    is_async = hasattr(http, "aclose") and hasattr(getattr(http, "stream", None), "__aiter__")
    close: Callable[[], Any] = getattr(http, "aclose" if is_async else "close", lambda: None)
    return close()


def _refused(error: BaseException) -> bool:
    status = getattr(error, "code", None)
    if isinstance(status, int) and status >= 400:
        return True
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__name__ in _NEVER_SENT or _is_login(seen):
            return True
        seen = seen.__cause__
    return False


def _is_login(error: BaseException) -> bool:
    # A TransportError of google-auth is also what its session makes of a connection that broke after the request was sent.
    return type(error).__module__.startswith("google.auth") and type(error).__name__ != "TransportError"
