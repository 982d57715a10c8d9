"""The seam for client libraries made by Stainless' generator (openai, anthropic, groq, together, cerebras and others).

`request` of their two base clients is where every call begins: plain, streamed, parsed, raw, helpers and `client.post`. There the
invocation is opened, and there an exception is seen. `_process_response` is the last place that has the HTTP answer however the
library then hands it out, and also when parsing it fails after it was paid for. Plain answers are read from the SDK's object.
Streams are read from the bytes as they pass: per chunk that is one append, and the user's stream object is not touched.
`_sleep_for_retry` is where the library has given up one try and not yet made the next.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from aifinops import metering
from aifinops.errors import swallow
from aifinops.integrations.calls import Calls, acalled, called, read_httpx
from aifinops.integrations.changing import How, changed, with_json
from aifinops.integrations.hiding import ask, hide, replaced
from aifinops.integrations.passing import Opened, aguarded, guarded
from aifinops.integrations.patching import Patch, applied
from aifinops.integrations.provider import Provider
from aifinops.integrations.tries import ahold_again, hold_again

__all__ = ["Seam"]

_HOW = How()


class Seam:
    """Wrappers for one provider's row."""

    def __init__(self, row: Provider) -> None:
        self._row = row
        self._calls = Calls(row)

    def patch_module(self, module: Any) -> list[Patch]:
        """Patch both base clients of an imported library; a version without them degrades to one warning."""
        try:
            base = sys.modules[f"{module.__name__}._base_client"]
            sync, asynchronous = base.SyncAPIClient, base.AsyncAPIClient
            patches = applied([*self._wanted(sync, "sync"), *self._wanted(asynchronous, "async")])
            self._calls.others.front = lambda: (
                Patch(kind, "request", self._wrapper(colour))
                for owner, colour in ((sync, "sync"), (asynchronous, "async"))
                for kind in _around(owner, self._wrapper(colour))
            )
            return patches
        except Exception as failure:  # an unknown future version: the user's program goes on unmetered, and is told so
            swallow(f"integrations.{self._row.name}.patch", failure)
            return []

    def patch_client(self, client: Any) -> list[Patch]:
        """Patch one client object only."""
        is_async = any(kind.__name__ == "AsyncAPIClient" for kind in type(client).__mro__)
        return applied(self._wanted(client, "async" if is_async else "sync"))

    def _wanted(self, owner: Any, colour: str) -> list[tuple[Any, str, Callable[..., Any]]]:
        wanted = [(owner, "request", self._wrapper(colour))]
        if hasattr(owner, "_process_response"):
            wanted.append((owner, "_process_response", _process_response))
        if hasattr(owner, "_sleep_for_retry"):
            wanted.append((owner, "_sleep_for_retry", _before_retry if colour == "sync" else _abefore_retry))
        return wanted

    def _wrapper(self, colour: str) -> Callable[..., Any]:
        return self._request if colour == "sync" else self._arequest

    # --- the two colours of the last thin layer ---------------------------------------------------------------------------

    def _request(self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        opened = guarded("stainless.begin", self._begin, client, args, kwargs)
        if opened is None:
            return wrapped(*args, **kwargs)
        if opened.options is not None:
            args, kwargs = guarded("ask", replaced, opened, args, kwargs) or (args, kwargs)
        result = called(opened, wrapped, args, kwargs, read_httpx)
        if opened.hides:
            guarded("hide", hide, result)
        return result

    async def _arequest(
        self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        opened = await aguarded("stainless.begin", self._begin, client, args, kwargs)
        if opened is None:
            return await wrapped(*args, **kwargs)
        if opened.options is not None:
            args, kwargs = guarded("ask", replaced, opened, args, kwargs) or (args, kwargs)
        result = await acalled(opened, wrapped, args, kwargs, read_httpx)
        if opened.hides:
            guarded("hide", hide, result)
        return result

    # --- begin --------------------------------------------------------------------------------------------------------

    def _begin(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened | None:
        options = args[1] if len(args) > 1 else kwargs["options"]
        method = options.method.lower()
        path = self._calls.path(options.url)
        if method == "get":
            return self._calls.poll(client, client.base_url, path, stream=bool(kwargs.get("stream")))
        if method != "post":
            return None
        body = _body(options)
        stream = bool(body.get("stream"))
        route = self._row.routes.get(path)
        if route is None:
            return self._calls.unknown(client, client.base_url, path, body, stream=stream)
        opened = self._calls.open(
            client, client.base_url, path, route, body, stream=stream, files=options.files, how=_HOW
        )
        if opened is not None and opened.invocation.call.sent:
            options = opened.options = changed(opened, with_json, options)
        if opened is not None and route.usage_option and kwargs.get("stream"):
            guarded("ask", ask, opened, self._row, route, client.base_url.host, options)
        return opened


# --- the tries inside of one call ----------------------------------------------------------------------------------------


def _before_retry(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if _gave_up(kwargs):
        hold_again("stainless.again", sys.exc_info()[1])
    return wrapped(*args, **kwargs)


async def _abefore_retry(
    wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if _gave_up(kwargs):
        await ahold_again("stainless.again", sys.exc_info()[1])
    return await wrapped(*args, **kwargs)


def _gave_up(kwargs: dict[str, Any]) -> bool:
    """Whether a try has failed without an answer, which the library tells from where it has caught that. One with an error answer was not
    billed."""
    return kwargs.get("response") is None


def _body(options: Any) -> dict[str, Any]:
    """The request as it will be sent; empty for one that is no JSON object."""
    body = options.json_data
    if not isinstance(body, dict):
        return {}
    # Some versions leave out what was not given only when they write the request.
    absent = [name for name, value in body.items() if type(value) not in _JSON and type(value).__name__ in _ABSENT]
    if absent:
        body = {name: value for name, value in body.items() if name not in absent}
    extra = getattr(options, "extra_json", None)
    return {**body, **extra} if extra else body


_JSON = frozenset({str, int, float, bool, list, dict, type(None)})
_ABSENT = frozenset({"NotGiven", "Omit"})


def _around(owner: type, ours: Callable[..., Any]) -> list[type]:
    """Client classes on which somebody has wrapped the `request` that they inherit: such a wrapper calls the function that was there
    before us, and so does what they leave behind; only in front of it are all calls seen. A class that overrides `request` calls ours,
    as often as it likes."""
    original = inspect.unwrap(vars(owner)["request"])
    found: list[type] = []
    todo: list[type] = owner.__subclasses__()
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        own = vars(kind).get("request")
        if own is not None and inspect.unwrap(own) is original and not _has(own, ours):
            found.append(kind)
    return found


def _has(function: Any, ours: Callable[..., Any]) -> bool:
    """Whether a wrapper of ours, in force, is in a chain of wrappers."""
    while function is not None:
        if getattr(function, "_self_wrapper", None) == ours and function._self_enabled():
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _process_response(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Remember the HTTP answer of the call in flight; the same for both colours, since it only looks at the arguments."""
    guarded("stainless.process_response", _remember, kwargs.get("response"))
    return wrapped(*args, **kwargs)


def _remember(response: Any) -> None:
    invocation = metering.in_flight()
    if invocation is not None:
        invocation.answer = response
        if type(invocation) is metering.Watched and invocation.early is not None:
            invocation.early(response)
        if invocation.guest is not None:
            invocation.guest.look_again()
