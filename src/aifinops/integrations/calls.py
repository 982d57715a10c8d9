"""How a call of a provider's client library begins and ends for us; what every seam has in common."""

from __future__ import annotations

import weakref
from typing import Any

from aifinops import metering
from aifinops.errors import swallow
from aifinops.integrations.extract import Reader, first_event, read_events
from aifinops.integrations.passing import Opened, Tap
from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.registry import answers, knows
from aifinops.metering import Call
from aifinops.reading import Reading

__all__ = ["Calls", "answered", "failed", "path_of"]

_DEARER_TIERS = {"priority": "priority", "fast": "priority"}
"""Tiers whose bound is above the standard one; for the cheaper ones the standard bound is sound, whatever is served."""


class Calls:
    """Opens the calls of one provider's row."""

    def __init__(self, row: Provider) -> None:
        self.row = row
        self._readers: dict[tuple[str, str], Reader] = {}
        # By identity: a client may be of a class that cannot be hashed, or that is equal to another one of another host.
        self._targets: dict[int, tuple[weakref.ref[Any], Any, tuple[str, dict[str, Any]]]] = {}

    def open(
        self, client: Any, url: Any, path: str, route: Route, body: dict[str, Any], *, stream: bool, model: str = ""
    ) -> Opened | None:
        """Begin a call, or None when it is not to be metered.

        Args:
            client: whose `url` (scheme, host and port, as of httpx) it is. path, route: the endpoint. body: the request.
            stream: True when the answer comes in pieces. model: for requests whose body does not name it.

        Raises:
            BudgetExceeded: when a budget has no room; nothing was sent.
        """
        provider, facts = self.target(client, url)
        reader = self.reader(provider, path)
        # Last, so that nothing can fail between opening an invocation and handing it over.
        invocation = metering.begin(self._call(provider, facts, body, route, stream, model))
        return None if invocation is None else Opened(reader, invocation)

    def reader(self, provider: str, path: str) -> Reader:
        """How this provider's answers are read: one client library reaches many, and each adds something of its own."""
        found = self._readers.get((provider, path))
        if found is None:
            route = answers(provider)[1].routes.get(path) if knows(provider) else None
            found = self._readers[provider, path] = Reader(route or self.row.routes[path], provider)
        return found

    def _call(
        self, provider: str, facts: dict[str, Any], body: dict[str, Any], route: Route, stream: bool, model: str
    ) -> Call:
        limit = next((body[name] for name in route.limits if isinstance(body.get(name), int)), None)
        choices = body.get(route.choices)
        asked = body.get("model")
        model = model or (asked if isinstance(asked, str) else "")
        return Call(
            provider=provider,
            operation=route.operation,
            model=model,
            body=body,
            stream=stream,
            max_output=limit,
            choices=choices if isinstance(choices, int) and choices > 0 else 1,
            tier=_DEARER_TIERS.get(body.get("service_tier"), ""),  # type: ignore[arg-type]
            facts={**facts, **route.facts} if route.facts else facts,
            region=self.row.residency.get(facts["server.address"], ""),
            unseen=bool(route.unseen) and model.startswith(route.unseen),
        )

    def target(self, client: Any, url: Any) -> tuple[str, dict[str, Any]]:
        """Provider and server attributes of a client, worked out once for each."""
        key = id(client)
        known = self._targets.get(key)
        if known is not None and known[0]() is client and (known[1] is url or known[1] == url):
            return known[2]
        provider = self.row.provider_at(url.host)
        if "Azure" in type(client).__name__:
            provider = "azure.ai.openai"
        facts = {"server.address": url.host, "server.port": url.port or (443 if url.scheme == "https" else 80)}
        targets = self._targets
        targets[key] = (weakref.ref(client, lambda _: targets.pop(key, None)), url, (provider, facts))
        return provider, facts


def path_of(url: str) -> str:
    """The path of a URL, or of what a library takes for one, without query and with a leading slash only."""
    if url.startswith(("http://", "https://")):
        url = "/" + url.split("/", 3)[-1]
    path = url.partition("?")[0].rstrip("/")
    return path if path.startswith("/") else f"/{path}"


def answered(opened: Opened, result: Any) -> None:
    """The call returned: read a plain answer now, a stream while it passes."""
    invocation = opened.invocation
    try:
        invocation.leave()
        http, invocation.answer = invocation.answer, None  # nothing of ours may keep a dropped stream alive
        if http is None:
            http = getattr(result, "http_response", None) or getattr(result, "response", None)
        if http is not None and (invocation.call.stream or not http.is_closed):
            Tap(opened, http)
            return
        _settle(opened, result, http)
    except Exception as failure:  # the answer is the user's, whatever we could not read in it
        swallow("integrations.answered", failure)
        invocation.settle(Reading())


def failed(opened: Opened, error: BaseException) -> None:
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
        swallow("integrations.failed", failure)
    invocation.fail(error)


def _settle(opened: Opened, result: Any, http: Any) -> None:
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
