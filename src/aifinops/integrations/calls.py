"""How a call of a provider's client library begins and ends for us; what every seam has in common."""

from __future__ import annotations

import io
import json
import os
import re
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from aifinops import metering
from aifinops.errors import swallow
from aifinops.integrations import amazon, others
from aifinops.integrations.changing import Changes, How
from aifinops.integrations.extract import Reader, dig
from aifinops.integrations.later import Files, Later, Lines, Poll, Unknown
from aifinops.integrations.passing import Opened, Tap
from aifinops.integrations.paths import compiled
from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.registry import answers, knows
from aifinops.integrations.streams import first_event, read_events
from aifinops.metering import Call, ending
from aifinops.reading import Reading

__all__ = [
    "Calls",
    "acalled",
    "called",
    "ended",
    "failed",
    "look_again",
    "path_of",
    "read_httpx",
    "settle",
    "settle_body",
]


_Target = tuple[str, dict[str, Any], bool]
_Polled = tuple[type[Poll | Lines], tuple[str, ...], str]


class Calls:
    """Opens the calls of one provider's row."""

    def __init__(self, row: Provider) -> None:
        self.row = row
        self._readers: dict[tuple[str, str], Reader] = {}
        answers_of = ((Poll, row.polls), (Lines, row.results), (Files, row.files))
        self._polls = [
            (kind, _ending(pattern), (keys,) if isinstance(keys, str) else keys)
            for kind, table in answers_of
            for pattern, keys in table.items()
        ]
        # By identity: a client may be of a class that cannot be hashed, or that is equal to another one of another host.
        self._targets: dict[int, tuple[weakref.ref[Any], Any, _Target]] = {}
        self.others = others.presence(row.module)

    def open(
        self,
        client: Any,
        url: Any,
        path: str,
        route: Route,
        body: dict[str, Any],
        *,
        stream: bool,
        model: str = "",
        files: Any = None,
        provider: str = "",
        region: str = "",
        tier: str = "",
        asked: bool = True,
        how: How | None = None,
    ) -> Opened | None:
        """Begin a call, or None when it is not to be metered.

        Args:
            client: whose `url` (scheme, host and port, as of httpx) it is. path, route: the endpoint. body: the request.
            stream: True when the answer comes in pieces. model: for requests whose body does not name it.
            files: what is sent beside the body, as httpx takes it.
            provider, region: where the client itself says more than its host does. tier: that the request asks for elsewhere than in
                its body. asked: False for what is under way already, which no budget can refuse. how: what the seam can send instead,
                where it sends what `Call.sent` says.

        Raises:
            BudgetExceeded: when a budget has no room; nothing was sent.
        """
        at_host, facts, native = self.target(client, url)
        target = (provider or at_host, facts)
        return self.open_at(
            target, path, route, body, stream=stream, model=model, files=files, region=region, tier=tier, asked=asked,
            native=native, how=how,
        )  # fmt: skip

    def open_at(
        self,
        target: tuple[str, dict[str, Any]],
        path: str,
        route: Route,
        body: dict[str, Any],
        *,
        stream: bool,
        model: str,
        files: Any = None,
        region: str = "",
        tier: str = "",
        asked: bool = True,
        native: bool = False,
        how: How | None = None,
    ) -> Opened | None:
        """`open` for a library whose clients have no address of their own: the target is provider and server attributes."""
        provider, facts = target
        reader = self.reader(provider, path)
        make = partial(self._call, provider, facts, route, stream, files, region, tier)
        call = make(body, model)
        if how is not None and route.limits:
            call.change = Changes(make, reader.route, how, model)
        if native:
            call.host = 2
        elif self.others.any:
            call.host = self.others.rank(route.operation)
        # Last, so that next to nothing can fail between opening an invocation and handing it over.
        begin = metering.begin if asked else metering.observe
        invocation = begin(call)
        if invocation is None:
            return None
        try:
            if route.later and (not stream or body.get("background") is True):
                return Later(reader, invocation)
            if stream and invocation.guest is not None:
                invocation.guest.hold()
            return Opened(reader, invocation)
        except Exception:  # nobody will end it
            invocation.give_up()
            raise

    def reader(self, provider: str, path: str) -> Reader:
        """How this provider's answers are read: one client library reaches many, and each adds something of its own."""
        found = self._readers.get((provider, path))
        if found is None:
            route = answers(provider)[1].routes.get(path) if knows(provider) else None
            found = self._readers[provider, path] = Reader(route or self.row.routes[path], provider)
        return found

    def poll(self, client: Any, url: Any, path: str, *, stream: bool) -> Opened | None:
        """Look at a GET, when it can say what an earlier call has used."""
        found = self.polled(path)
        return None if found is None else self.poll_at(self.target(client, url)[:2], found, stream=stream)

    def polled(self, path: str) -> _Polled | None:
        """(how it is looked at, the routes that read it, what it is about) of the path of a GET that can say it."""
        for kind, pattern, keys in self._polls:
            found = pattern.search(path)
            if found is not None:
                return kind, keys, found[1]
        return None

    def poll_at(
        self, target: tuple[str, dict[str, Any]], polled: _Polled, *, stream: bool, region: str = ""
    ) -> Opened | None:
        """`poll` for a library whose clients have no address of their own."""
        provider, facts = target
        kind, keys, subject = polled
        readers = [self.reader(provider, key) for key in keys]
        route = readers[0].route
        call = Call(provider, route.operation, "", stream=stream, facts={**facts, **route.facts}, region=region)
        return kind.open(call, readers, subject)

    def unknown(self, client: Any, url: Any, path: str, body: dict[str, Any], *, stream: bool) -> Opened | None:
        """Look at a POST to an endpoint that no route knows, in case its answer has a usage."""
        operation = path.rpartition("/")[2]
        if self.row.other is None or operation == "cancel":  # it answers with what is cancelled, and what that has used
            return None
        provider, facts, _ = self.target(client, url)
        asked = body.get("model")
        call = Call(provider, operation, asked if isinstance(asked, str) else "", stream=stream, facts=facts)
        reader = self._readers.get((provider, ""))
        if reader is None:
            reader = self._readers[provider, ""] = Reader(self.row.other, provider)
        return Unknown.open(call, reader, path)

    def path(self, url: str) -> str:
        """The path of a URL as `routes` have it."""
        path = path_of(url)
        return path.removeprefix(self.row.prefix) if self.row.prefix else path

    def _call(
        self,
        provider: str,
        facts: dict[str, Any],
        route: Route,
        stream: bool,
        files: Any,
        region: str,
        tier: str,
        body: dict[str, Any],
        model: str,
    ) -> Call:
        # -1 is how some servers are told that there is none.
        limit = next((found for name in route.limits if type(found := _asked(body, name)) is int and found >= 0), None)
        written, shown = _answers(body, route.choices)
        if not model:
            asked = body.get("model")
            model = asked if isinstance(asked, str) else _first(body, route.named)
        if limit is None and route.most:
            limit = route.most.get(model)
        return Call(
            provider=provider,
            operation=route.operation,
            model=model,
            body=body,
            stream=stream,
            max_output=limit,
            choices=written,
            tier=_dearer(tier, route) if tier else _tier(body, route),
            facts={**facts, **route.facts} if route.facts else facts,
            region=region or _region(body, route) or self.row.residency.get(facts["server.address"], ""),
            unseen=written > shown or (bool(route.unseen) and model.startswith(route.unseen)),
            loose=_looseness(route.loose) if route.loose else None,
            **_billed(body, route, files, written) if route.billed or route.hidden else _NOTHING,
        )

    def target(self, client: Any, url: Any) -> _Target:
        """Provider and server attributes of a client, and whether it makes spans itself; worked out once for each."""
        key = id(client)
        known = self._targets.get(key)
        if known is not None and known[0]() is client and (known[1] is url or known[1] == url):
            return known[2]
        kinds = " ".join(kind.__name__ for kind in type(client).__mro__)
        named = next((name for part, name in self.row.clients.items() if part in kinds), "")
        provider = named or self.row.provider_at(url.host)
        facts = {"server.address": url.host, "server.port": url.port or (443 if url.scheme == "https" else 80)}
        found, targets = (provider, facts, others.native(client)), self._targets
        targets[key] = (weakref.ref(client, lambda _: targets.pop(key, None)), url, found)
        others.presence(self.row.module)
        return found


_NOTHING: dict[str, Any] = {}


def _ending(pattern: str) -> re.Pattern[str]:
    """A pattern of `Provider.polls` as the end of a path; its last id is what a poll is about."""
    *outer, last = map(re.escape, pattern.split("{}"))  # one without an id begins after it
    return re.compile(f"{'[^/]+'.join(outer)}([^/]+){last}$")


def _billed(body: dict[str, Any], route: Route, files: Any, many: int) -> dict[str, Any]:
    """What the request says of its own price, as attributes of its `Call`."""
    said = {meter: _asked(body, name) for meter, name in route.billed.items()}
    each = {meter: _count(route.usual.get(meter, 1) if value is None else value) for meter, value in said.items()}
    counts = {meter: count * many if route.made else count for meter, count in each.items() if count}
    counts |= {meter: -(-counts[meter] // number) for meter, number in route.per.items() if meter in counts}
    given = ((option, _asked(body, name)) for option, name in route.given.items())
    options = tuple((option, said) for option, said in given if isinstance(said, str) and said != "auto")
    size = _size(files) if route.sound else None
    most = {}
    if size is not None:
        counts, most = {"audio_seconds": size // _USUAL_SOUND + 1}, {"audio_seconds": size // route.sound + 1}
    elif route.split:
        pieces = {
            meter: sum(len(json.dumps(one, default=str)) // route.split + 1 for one in said[meter]) for meter in counts
        }
        upper = {meter: -(-pieces[meter] // route.per.get(meter, 1)) for meter in counts}
        most = {} if upper == counts else upper
    return {"counts": counts, "most": most, "options": options, "hidden": route.hidden, "alone": route.alone}


_USUAL_SOUND = 16_000
"""Bytes of a second of sound, as MP3 usually has them. Only what is expected depends on it, no bound."""


def _size(files: Any) -> int | None:
    """Bytes of all files; None when one does not say."""
    total = 0
    for _, one in files.items() if isinstance(files, Mapping) else files or ():
        content = one[1] if isinstance(one, tuple) else one
        content = getattr(content, "file", content)  # of a temporary file, the file
        if isinstance(content, (bytes, bytearray)):
            total += len(content)
        elif isinstance(content, io.IOBase) and content.seekable():
            at = content.tell()
            total += content.seek(0, os.SEEK_END)
            content.seek(at)
        else:
            return None
    return total or None


def _count(value: Any) -> int:
    if isinstance(value, (str, list)):
        return len(value)
    return value if type(value) is int and value > 0 else 0


def _tier(body: dict[str, Any], route: Route) -> str:
    """The dearer tier that a request asks for; empty where the bound of the standard one is sound, whatever is served."""
    for name, words in route.asks.items():
        asked = body.get(name)
        if type(asked) is str and asked in words:
            return words[asked]
    return ""


def _dearer(tier: str, route: Route) -> str:
    return next((words[tier] for words in route.asks.values() if tier in words), "")


def _region(body: dict[str, Any], route: Route) -> str:
    """The region that a request asks for, where that is a region."""
    asked = body.get(route.place) if route.place else None
    return route.regions.get(asked, asked) if isinstance(asked, str) else ""


def _first(body: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((asked for name in names if isinstance(asked := _asked(body, name), str)), "")


def _asked(body: dict[str, Any], name: str) -> Any:
    return body.get(name) if "." not in name else dig(body, tuple(name.split(".")))


def _answers(body: dict[str, Any], names: str) -> tuple[int, int]:
    """How many answers a request has written, and how many it is shown: a list of fields, of which the last says that."""
    counts = [found if type(found := _asked(body, name)) is int and found > 0 else 1 for name in names.split("|")]
    return max(counts), counts[-1]


@lru_cache(maxsize=64)
def _looseness(text: str) -> Callable[[Any], bool]:
    expression = compiled(text)
    return lambda body: expression.any({"request": body})


def path_of(url: str) -> str:
    """The path of a URL, or of what a library takes for one, without query and with a leading slash only."""
    if url.startswith(("http://", "https://")):
        url = "/" + url.split("/", 3)[-1]
    path = url.partition("?")[0].rstrip("/")
    return path if path.startswith("/") else f"/{path}"


def look_again() -> None:
    """To be called where the answer of the call in flight arrives: the span of somebody who begins it further in is current there."""
    invocation = metering.in_flight()
    if invocation is not None and invocation.guest is not None:
        invocation.guest.look_again()


Read = Callable[[Opened, Any], None]
Refused = Callable[[BaseException], bool]


def called(
    opened: Opened | None,
    wrapped: Callable[..., Any],
    args: Any,
    kwargs: Any,
    read: Read,
    refused: Refused | None = None,
) -> Any:
    """Make the call of a client library, and see to it that its end is read, however it comes; None for `opened` only makes it.

    Args:
        opened: the call, begun. wrapped, args, kwargs: what the library would have called. read, refused: see `ended` and `failed`.
    """
    if opened is None:
        return wrapped(*args, **kwargs)
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        ending("failed", opened.invocation, failed, opened, error, refused)
        raise
    ending("answered", opened.invocation, ended, opened, read, result)
    return result


async def acalled(
    opened: Opened | None,
    wrapped: Callable[..., Any],
    args: Any,
    kwargs: Any,
    read: Read,
    refused: Refused | None = None,
) -> Any:
    """`called` for a coroutine function."""
    if opened is None:
        return await wrapped(*args, **kwargs)
    try:
        result = await wrapped(*args, **kwargs)
    except BaseException as error:
        ending("failed", opened.invocation, failed, opened, error, refused)
        raise
    ending("answered", opened.invocation, ended, opened, read, result)
    return result


def ended(opened: Opened, read: Read, answer: Any) -> None:
    """The call returned: `read` what the answer says, or see to it that it is read. What we cannot read is of unknown cost, and a row."""
    invocation = opened.invocation
    try:
        invocation.leave()
        read(opened, answer)
    except Exception as failure:  # the answer is the user's, whatever we could not read in it
        swallow("integrations.answered", failure)
        invocation.settle(Reading())


def read_httpx(opened: Opened, result: Any) -> None:
    """A call of a library that sends with httpx returned: read a plain answer now, a stream while it passes."""
    invocation = opened.invocation
    http, invocation.answer = invocation.answer, None  # nothing of ours may keep a dropped stream alive
    if http is None:
        http = getattr(result, "http_response", None) or getattr(result, "response", None)
    if http is None or (http.is_closed and not invocation.call.stream):
        settle(opened, result, http)
    elif opened.wants(http):
        Tap(opened, http)


def settle_body(opened: Opened, body: Any) -> None:
    """A whole answer is here, as plain JSON; None for one that could not be read."""
    reader, invocation = opened.reader, opened.invocation
    reading = reader.tolerant(body)
    if reading is not None or body is None:
        invocation.settle(reading or Reading())
    else:
        opened.unsaid(reader.describe(body), reader.text(body), 0, "ok")


def failed(opened: Opened, error: BaseException, refused: Refused | None = None) -> None:
    """The call raised: its own error goes on; an answer that was paid for before is settled for what it says.

    Args:
        refused: whether the library's error proves that nothing was billed, for what only its seam can tell.
    """
    invocation = opened.invocation
    proof = False
    try:
        http, invocation.answer = invocation.answer, None
        if http is not None and http.is_success and http.is_closed:
            reading = _read_whole(http, opened.reader)
            if reading is not None:
                invocation.leave()
                invocation.settle(reading, "error", error)
                return
        proof = refused is not None and refused(error)
    except Exception as failure:  # the bound is kept instead
        swallow("integrations.failed", failure)
    invocation.fail(error, refused=proof)


def settle(opened: Opened, result: Any, http: Any) -> None:
    """Settle an answer that has come whole, from the library's object or from the HTTP answer."""
    reader, invocation = opened.reader, opened.invocation
    if isinstance(opened, Lines):
        opened.take(http.content.split(b"\n"))
        return
    if invocation.engines.capture:
        invocation.said = result if http is None or hasattr(result, "usage") else first_event(http.content)
    reading = None
    if hasattr(result, "usage"):
        reading = reader.tolerant(result)
    elif http is not None:
        reading = _read_whole(http, reader)
    if reading is not None:
        invocation.settle(reading)
        return
    body = result if http is None else first_event(http.content)
    other = reader.otherwise
    reading = None if other is None else other.tolerant(body)
    if reading is not None:
        reading.options = reading.options or invocation.call.options
        invocation.settle(reading)
        return
    opened.unsaid(reader.describe(body), reader.text(body), 0, "ok")


def _read_whole(http: Any, reader: Reader) -> Reading | None:
    """The usage of an answer of httpx that was read to its end."""
    if not reader.route.makers:
        return read_events(http.content, reader)[0]
    told = amazon.told_of(http.headers)
    if "eventstream" in http.headers.get("content-type", ""):
        return amazon.read_stream(amazon.frames(http.content), told, reader)[0]
    return amazon.read_whole(first_event(http.content), told, reader)
