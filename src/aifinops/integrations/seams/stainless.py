"""The seam for client libraries made by Stainless' generator (openai, anthropic, groq, together, cerebras and others).

`request` of their two base clients is where every call begins: plain, streamed, parsed, raw, helpers and `client.post`. There the
invocation is opened, and there an exception is seen. `_process_response` is the last place that has the HTTP answer however the
library then hands it out, and also when parsing it fails after it was paid for. Plain answers are read from the SDK's object.
Streams are read from the bytes as they pass: per chunk that is one append, and the user's stream object is not touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from aifinops import metering
from aifinops.errors import swallow
from aifinops.integrations.calls import Calls, answered, failed, path_of
from aifinops.integrations.hiding import ask, hide, replaced
from aifinops.integrations.passing import Opened, guarded
from aifinops.integrations.patching import Patch
from aifinops.integrations.provider import Provider

__all__ = ["Seam"]


class Seam:
    """Wrappers for one provider's row."""

    def __init__(self, row: Provider) -> None:
        self._row = row
        self._calls = Calls(row)

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
        opened = guarded("stainless.begin", self._begin, client, args, kwargs)
        if opened is None:
            return wrapped(*args, **kwargs)
        if opened.options is not None:
            args, kwargs = replaced(opened, args, kwargs)
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            guarded("failed", failed, opened, error)
            raise
        guarded("answered", answered, opened, result)
        if opened.options is not None:
            guarded("hide", hide, result)
        return result

    async def _arequest(
        self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        opened = guarded("stainless.begin", self._begin, client, args, kwargs)
        if opened is None:
            return await wrapped(*args, **kwargs)
        if opened.options is not None:
            args, kwargs = replaced(opened, args, kwargs)
        try:
            result = await wrapped(*args, **kwargs)
        except BaseException as error:
            guarded("failed", failed, opened, error)
            raise
        guarded("answered", answered, opened, result)
        if opened.options is not None:
            guarded("hide", hide, result)
        return result

    # --- begin --------------------------------------------------------------------------------------------------------

    def _begin(self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened | None:
        options = args[1] if len(args) > 1 else kwargs["options"]
        path = path_of(options.url)
        route = self._row.routes.get(path)
        if route is None or options.method.lower() != "post":
            return None
        body = options.json_data
        extra = getattr(options, "extra_json", None)
        if extra and isinstance(body, dict):
            body = {**body, **extra}
        if not isinstance(body, dict):
            body = {}
        opened = self._calls.open(client, client.base_url, path, route, body, stream=bool(body.get("stream")))
        if opened is not None and route.usage_option and kwargs.get("stream"):
            guarded("ask", ask, opened, self._row, route, client.base_url.host, options)
        return opened


def _process_response(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Remember the HTTP answer of the call in flight; the same for both colours, since it only looks at the arguments."""
    guarded("stainless.process_response", _remember, kwargs.get("response"))
    return wrapped(*args, **kwargs)


def _remember(response: Any) -> None:
    invocation = metering.in_flight()
    if invocation is not None:
        invocation.answer = response
