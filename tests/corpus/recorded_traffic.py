"""Recorded traffic, the answers to it on the transport of a real client, and one tally of what became of every interaction.

Reads `cassettes.jsonl.gz` in the folder that `AIFINOPS_CORPUS` names: one JSON object a line with `source` and `k` (which recording),
`url`, `method`, `req` (the request body), `status`, `rsh` (answer headers) and `resp` (answer body; `{"b64": ...}` where it is no text).
What is expected is read here from the recorded bytes alone.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import inspect
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import aifinops as af
from aifinops import runtime

_HOP = {"content-length", "transfer-encoding", "content-encoding", "connection"}
_HOSTS = {
    r"api\.openai\.com": "openai", r".*\.openai\.azure\.com": "azure", r"api\.anthropic\.com": "anthropic",
    r"generativelanguage\.googleapis\.com": "google", r".*aiplatform\.googleapis\.com": "vertex", r"bedrock-runtime.*\.amazonaws\.com": "bedrock",
    r"api\.mistral\.ai": "mistral", r"api\.groq\.com": "groq", r"openrouter\.ai": "openrouter", r"api\.cohere\.(com|ai)": "cohere",
    r"api\.together\.(xyz|ai)": "together", r"api\.deepseek\.com": "deepseek", r"api\.writer\.com": "writer", r".*ml\.cloud\.ibm\.com": "watsonx",
    r"api\.replicate\.com": "replicate", r"api\.voyageai\.com": "voyage", r"api\.portkey\.ai": "portkey",
}  # fmt: skip
_PATHS = {
    r"/chat/completions$": "chat completions", r"/responses$": "responses", r"/completions$": "completions", r"/complete$": "complete",
    r"/v1/messages$": "messages", r"/(embeddings|embed)$|:(batchE|e)mbedContents?$": "embeddings", r"/rerank$": "rerank",
    r":(streamG|g)enerateContent$|/generate$": "generate", r"/converse(-stream)?$": "converse", r"/invoke(-with-response-stream)?$": "invoke",
    r"/v\d/chat$|/api/chat$": "chat", r"/(assistants|threads)(/|$)": "assistants", r"/images/": "images", r"/audio/": "audio",
    r"/interactions": "interactions", r"cachedContents": "cached contents", r"/apply$": "guardrail", r"/traces/": "traces",
}  # fmt: skip


@dataclass
class Recorded:
    """One recorded request and its answer."""

    key: tuple[str, int]
    method: str
    url: str
    request: Any
    status: int
    headers: dict[str, str]
    body: bytes
    sent: Any = None

    @functools.cached_property
    def provider(self) -> str:
        return provider_of(self.url)

    @functools.cached_property
    def endpoint(self) -> str:
        return endpoint_of(self.url)

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.url).path)

    @functools.cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.url).query)

    @functools.cached_property
    def sse(self) -> bool:
        return bool(re.match(rb"\s*(event|data|:)[: ]", self.body[:40]))

    @functools.cached_property
    def events(self) -> list[dict[str, Any]]:
        """The answer, or what the events of a stream hold."""
        if self.status >= 400:
            return []
        whole = parsed(self.body)
        lines = [line[5:] for line in self.body.split(b"\n") if line.startswith(b"data:")]
        found = [whole] if whole is not None else [parsed(line) for line in lines]
        return [event for event in found if isinstance(event, dict)]


def parsed(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def provider_of(url: str) -> str:
    """Whose host that is."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1"):
        return "ollama" if parts.port == 11434 else "local server"
    return next((name for pattern, name in _HOSTS.items() if re.fullmatch(pattern, host)), host or "no address")


def endpoint_of(url: str) -> str:
    """Which endpoint that is, in a word."""
    path = unquote(urlsplit(url).path).rstrip("/")
    return next((name for pattern, name in _PATHS.items() if re.search(pattern, path)), "other")


def lines() -> Iterator[dict[str, Any]]:
    """The file as it is; the test is skipped where it is not there."""
    folder = os.environ.get("AIFINOPS_CORPUS")
    path = Path(folder or "") / "cassettes.jsonl.gz"
    if not folder or not path.is_file():
        pytest.skip("AIFINOPS_CORPUS names no folder of recorded traffic")
    with gzip.open(path, "rt", encoding="utf-8") as found:
        yield from map(json.loads, found)


def _bytes(said: Any) -> bytes:
    return base64.b64decode(said["b64"]) if isinstance(said, dict) else said.encode("utf-8", "surrogatepass")


def interactions(wanted: Callable[[Recorded], bool]) -> list[Recorded]:
    """Those that are wanted, in the order of the file."""
    found = (
        Recorded((one["source"], one["k"]), one["method"], one["url"], parsed(_bytes(one["req"])), one["status"], one["rsh"], _bytes(one["resp"]))
        for one in lines()
    )  # fmt: skip
    return [one for one in found if wanted(one)]


# --- on the transport of a client ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class How:
    """How an answer comes: in pieces of a size, broken off in its middle, or with an error in the place of its second half."""

    name: str
    piece: int = 0
    cut: bool = False
    error: bytes = b""


WHOLE, PIECES = How("whole"), How("in pieces of 7 bytes", piece=7)
CUT = How("cut in the middle", cut=True)


class Wire:
    """What a client of httpx or httpx2 talks to; `item` is the interaction that is answered next."""

    def __init__(self, library: Any, how: How) -> None:
        self.library, self.how = library, how
        self.item: Recorded | None = None
        self.client = library.Client(transport=library.MockTransport(self._answer))
        self.aclient = library.AsyncClient(transport=library.MockTransport(self._answer))

    def _answer(self, request: Any) -> Any:
        item = self.item
        assert item is not None
        item.sent = (request.method, str(request.url), request.read())
        headers = {
            name: value for name, value in item.headers.items()
            if name not in _HOP and value.isascii() and "\n" not in value
        }  # fmt: skip
        headers.setdefault("content-type", "text/event-stream" if item.sse else "application/json")
        parts, broken = self._parts(item)
        return self.library.Response(item.status, headers=headers, stream=_stream(self.library, parts, broken, request))

    def _parts(self, item: Recorded) -> tuple[list[bytes], bool]:
        body, how = item.body, self.how
        if how.cut:
            body = body[: len(body) // 2]
        elif how.error:
            events = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", body)
            body = b"".join(events[: len(events) // 2]) + how.error
        size = how.piece or len(body) or 1
        return [body[at : at + size] for at in range(0, len(body), size)], how.cut


def _stream(library: Any, parts: list[bytes], broken: bool, request: Any) -> Any:
    class Stream(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            yield from parts
            if broken:
                raise library.ReadError("broken off", request=request)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for part in self:
                yield part

    return Stream()


def arguments(function: Any, body: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A recorded body as arguments of a public method; what this version does not know goes into `extra_body`."""
    known = inspect.signature(function).parameters
    named = {key: value for key, value in body.items() if key in known}
    extra = {key: value for key, value in body.items() if key not in known}
    return {**named, **({"extra_body": extra} if extra else {}), **more}


def plain(part: Any) -> Any:
    """An object of a client library as data."""
    return part.model_dump(mode="json", warnings=False) if hasattr(part, "model_dump") else repr(part)


def used(call: Callable[[], Any]) -> tuple[str, Any]:
    """What the user sees: everything that came, and the exception."""
    came: list[Any] = []
    try:
        result = call()
        if _streams(result, "__iter__"):
            came.extend(map(plain, result)) if not hasattr(result, "response") else _read(result, came)
        else:
            came.append(plain(result))
    except Exception as error:
        return type(error).__name__, [str(error), came]
    return "ok", came


def _read(result: Any, came: list[Any]) -> None:
    try:
        for part in result:
            came.append(plain(part))  # noqa: PERF401 - what came before it failed counts
    finally:
        result.close()


async def aused(call: Callable[[], Any]) -> tuple[str, Any]:
    """The same in the other colour."""
    came: list[Any] = []
    try:
        result = await call()
        if _streams(result, "__aiter__"):
            try:
                async for part in result:
                    came.append(plain(part))  # noqa: PERF401
            finally:
                await result.close()
        else:
            came.append(plain(result))
    except Exception as error:
        return type(error).__name__, [str(error), came]
    return "ok", came


def _streams(result: Any, name: str) -> bool:
    return (
        hasattr(result, name) and not hasattr(result, "model_dump") and not isinstance(result, (str, bytes, dict, list))
    )


# --- what is expected ---------------------------------------------------------------------------------------------------


def openai_usage(item: Recorded) -> dict[str, Any] | None:
    """The last usage object, wherever a provider that speaks OpenAI's protocol puts it."""
    last: dict[str, Any] | None = None
    for event in item.events:
        holder = event["response"] if isinstance(event.get("response"), dict) else event
        groq = event.get("x_groq") or {}
        last = holder.get("usage") or groq.get("usage") or last
    return last


def openai_tools(item: Recorded) -> dict[str, int]:
    """Billed tool calls in the finished answer: each search of the web (not each page that was opened) and of files."""
    output: list[Any] = []
    for event in item.events:
        holder = event["response"] if isinstance(event.get("response"), dict) else event
        output = holder.get("output") or output if holder.get("object") == "response" else output
    found = {
        "web_search_requests": sum(
            one["type"] == "web_search_call" and (one.get("action") or {}).get("type") == "search" for one in output
        ),
        "file_search_requests": sum(one["type"] == "file_search_call" for one in output),
    }
    return {name: count for name, count in found.items() if count}


def openai_buckets(item: Recorded) -> dict[str, int] | None:
    """Disjoint buckets, written out by hand for these tests: OpenAI counts parts inside totals. A negative one is no usage at all."""
    usage = openai_usage(item)
    if usage is None and item.endpoint == "images" and item.events:
        return {"images": len(item.events[0]["data"])}
    if usage is None:
        return None
    total_in = usage.get("prompt_tokens", usage.get("input_tokens", usage.get("total_tokens", 0))) or 0
    total_out = usage.get("completion_tokens", usage.get("output_tokens", 0)) or 0
    inner = (
        usage.get("prompt_tokens_details")
        or usage.get("input_tokens_details")
        or usage.get("input_token_details")
        or {}
    )
    outer = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    parts = {
        "cache_read_tokens": inner.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0,
        "cache_write_tokens": inner.get("cache_write_tokens") or 0,
        "input_audio_tokens": inner.get("audio_tokens") or 0,
        "input_image_tokens": inner.get("image_tokens") or 0,
    }
    made = {
        "reasoning_tokens": outer.get("reasoning_tokens") or 0,
        "output_audio_tokens": outer.get("audio_tokens") or 0,
    }
    if item.endpoint == "embeddings":  # an embedding has no output, whatever a server calls its total
        total_out = 0
    all_of = {
        "input_tokens": total_in - sum(parts.values()), **parts, "output_tokens": total_out - sum(made.values()), **made,
    }  # fmt: skip
    return {name: count for name, count in all_of.items() if count} | openai_tools(item)


def anthropic_buckets(item: Recorded) -> dict[str, int] | None:
    """Of a stream `message_start` has the input and `message_delta` replaces what it says again. Cached tokens are beside the input."""
    usage: dict[str, Any] = {}
    for event in item.events:
        for told in (event.get("usage"), (event.get("message") or {}).get("usage")):
            usage.update({name: count for name, count in (told or {}).items() if count is not None})
    if not usage:
        return None
    hour = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    thought = (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0
    tools = usage.get("server_tool_use") or {}
    found = {
        "input_tokens": usage.get("input_tokens", 0),
        "cache_read_tokens": usage.get("cache_read_input_tokens", 0),
        "cache_write_tokens": usage.get("cache_creation_input_tokens", 0) - hour,
        "cache_write_1h_tokens": hour,
        "output_tokens": usage.get("output_tokens", 0) - thought,
        "reasoning_tokens": thought,
        "web_search_requests": tools.get("web_search_requests") or 0,
        "tool_calls": tools.get("web_fetch_requests") or 0,
    }
    return {name: count for name, count in found.items() if count}


# --- the tally ----------------------------------------------------------------------------------------------------------

VERDICTS = ("not billed", "exact", "estimated", "missed")
"""From the best to the worst. An interaction that several tests replay has the worst of what they saw."""

TALLY: dict[tuple[str, int], tuple[str, bool]] = {}
"""Recording -> (verdict, whether it has a usage)."""


def tally(key: tuple[str, int], rows: list[Any], *, usage: bool, problem: str) -> None:
    """Remember what became of an interaction."""
    if problem or (usage and not rows):
        verdict = "missed"
    elif not rows:
        verdict = "not billed"
    else:
        verdict = "exact" if usage and rows[0].basis != "estimated" else "estimated"
    before = TALLY.get(key, ("not billed", False))
    worst = max(verdict, before[0], key=VERDICTS.index)
    TALLY[key] = (worst, usage or before[1])


def table() -> list[str]:
    """One line for each provider and endpoint, and the sums, as Markdown. What no test replays is a column of its own."""
    rows: dict[tuple[str, str], Counter[str]] = {}
    for one in lines():
        key = (one["source"], one["k"])
        verdict, usage = TALLY.get(key, ("not replayed", False))
        counts = rows.setdefault((provider_of(one["url"]), endpoint_of(one["url"])), Counter())
        counts.update(["interactions", verdict, *(["with usage"] if usage else [])])
    rows[("all", "")] = sum(rows.values(), Counter())
    columns = ("interactions", "with usage", *VERDICTS[1:], VERDICTS[0], "not replayed")
    head = f"| provider | endpoint | {' | '.join(columns)} |"
    body = [
        f"| {' | '.join(name)} | {' | '.join(str(counts[column]) for column in columns)} |"
        for name, counts in sorted(rows.items(), key=lambda row: (row[0][0] == "all", row[0]))
    ]
    return [head, "|---|---|" + "---:|" * len(columns), *body]


# --- through a client ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A client library, and how its recorded traffic is made again.

    Attributes:
        name: what is instrumented. library: the HTTP library that the clients use, as a module.
        client: (interaction, colour, options) -> client. call: (client, interaction) -> the call, to be made.
        buckets: what an interaction was, or None where its answer does not say. error: an event that ends a stream.
        free: whether it costs nothing, so that no row is right.
    """

    name: str
    library: Any
    client: Callable[[Recorded, str, dict[str, Any]], Any]
    call: Callable[[Any, Recorded], Callable[[], Any]]
    buckets: Callable[[Recorded], dict[str, int] | None]
    error: bytes
    free: Callable[[Recorded], bool] = lambda item: False

    def ways(self) -> list[How]:
        return [WHOLE, PIECES, CUT, How("with an error within", error=self.error)]


@dataclass
class Seen:
    """What came of one interaction."""

    item: Recorded
    same: bool
    raised: bool
    rows: list[Any]


def replay(family: Family, items: list[Recorded], colour: str, how: How) -> list[Seen]:
    """Each interaction without us and with us: whether the user could tell, and the rows that it made."""
    run = asyncio.run(_areplay(family, items, how)) if colour == "async" else _replay(family, items, how)
    return [
        Seen(item, without[0] == seen[0] and _same_request(without[1], seen[1]), seen[0][0] != "ok", rows)
        for item, without, (seen, rows) in zip(items, run[0], run[1], strict=True)
    ]


def _same_request(without: Any, sent: Any) -> bool:
    """Whether it is the request of the user; the usage of a stream may be asked for, when he did not say anything of it."""
    if without == sent:
        return True
    if without is None or sent is None or without[:2] != sent[:2]:
        return False
    before, after = parsed(without[2]), parsed(sent[2])
    if not isinstance(before, dict):  # a form with a file, whose parts are divided by chance
        return before is None and after is None and len(without[2]) == len(sent[2])
    asked = {**(before.get("stream_options") or {}), "include_usage": True}
    return "include_usage" not in (before.get("stream_options") or {}) and after == {**before, "stream_options": asked}


def _options(wire: Wire, colour: str) -> dict[str, Any]:
    return {"api_key": "test", "max_retries": 0, "http_client": wire.client if colour == "sync" else wire.aclient}


def _ids() -> set[str]:
    return {row.id for row in runtime.get().ledger.rows()}


def _rows(seen: Any, before: set[str]) -> tuple[Any, list[Any]]:
    """What is new: a poll's row is of the time when the answer was made, and not the last one."""
    af.flush()
    return seen, [row for row in runtime.get().ledger.rows() if row.id not in before]


def _replay(family: Family, items: list[Recorded], how: How) -> tuple[list[Any], list[Any]]:
    wire = Wire(family.library, how)
    options = _options(wire, "sync")

    def one(item: Recorded) -> Any:
        wire.item, item.sent = item, None
        made = family.client(item, "sync", options)
        return used(lambda: family.call(made, item)()), item.sent

    try:
        without = [one(item) for item in items]
        af.instrument(family.name)
        with_us = []
        for item in items:
            before = _ids()
            with_us.append(_rows(one(item), before))
        return without, with_us
    finally:
        af.uninstrument()
        wire.client.close()


async def _areplay(family: Family, items: list[Recorded], how: How) -> tuple[list[Any], list[Any]]:
    wire = Wire(family.library, how)
    options = _options(wire, "async")

    async def one(item: Recorded) -> Any:
        wire.item, item.sent = item, None
        made = family.client(item, "async", options)
        return await aused(lambda: family.call(made, item)()), item.sent

    try:
        without = [await one(item) for item in items]
        af.instrument(family.name)
        with_us = []
        for item in items:
            before = _ids()
            with_us.append(_rows(await one(item), before))
        return without, with_us
    finally:
        af.uninstrument()
        await wire.aclient.aclose()


def judge(seen: Seen, buckets: dict[str, int] | None, *, free: bool = False) -> str:
    """What is wrong with an answer that came to its end; empty for nothing."""
    rows = seen.rows
    if not seen.same:
        return "the user's call changed"
    if seen.item.sent is None:
        return "the client sent nothing"
    if seen.item.status >= 400 or free:
        return f"{len(rows)} rows for what is free" if rows else ""
    if len(rows) != 1:
        return f"{len(rows)} rows"
    (row,) = rows
    if buckets is None:
        return "" if row.basis in ("estimated", "unknown") else "no usage recorded, yet not marked as an estimate"
    if min(buckets.values(), default=0) < 0:  # a recording edited by hand: its parts are above their whole
        return "" if row.amount is None and row.raw else "impossible usage was believed"
    return "" if dict(row.quantities) == buckets else f"{dict(row.quantities)} for {buckets}"


def judge_half(seen: Seen, whole: Any) -> str:
    """What is wrong with a stream that was broken off: one row, exact or with bounds that hold what the whole was billed at."""
    rows = seen.rows
    if not seen.same:
        return "the user's call changed"
    if len(rows) != 1:
        return f"{len(rows)} rows"
    (row,) = rows
    if row.basis != "estimated":
        exact = row.quantities == whole.quantities
        return "" if exact or row.basis == "unknown" else f"{dict(row.quantities)}, not marked as an estimate"
    if whole.amount is None or whole.basis == "estimated":
        return ""  # nobody knows what it cost
    if row.lower is None or row.upper is None or not row.lower <= whole.amount <= row.upper:
        return f"{whole.amount} is not within {row.lower} and {row.upper}"
    return ""


def whole_and_in_pieces(family: Family, items: list[Recorded], colour: str, how: How) -> str:
    """Replay answers to their ends; returns what to print, and fails with what is wrong."""
    kinds, wrong = Counter[str](), []
    for seen in replay(family, items, colour, how):
        buckets = family.buckets(seen.item)
        problem = judge(seen, buckets, free=family.free(seen.item))
        tally(seen.item.key, seen.rows, usage=buckets is not None, problem=problem)
        kinds[f"{seen.item.endpoint} {'stream' if seen.item.sse else 'plain'}"] += 1
        kinds["usage recorded"] += buckets is not None
        if problem:
            wrong.append(f"{seen.item.key} {seen.item.method} {seen.item.url}: {problem}")
    assert not wrong, f"{len(wrong)} wrong\n" + "\n".join(wrong[:20])
    return f"\ncorpus {family.name}, {colour}, {how.name}: {len(items)} {dict(kinds)}"


def broken_off(family: Family, items: list[Recorded], colour: str, how: How) -> str:
    """Replay the half of each stream; returns what to print, and fails with what is wrong."""
    items = [item for item in items if item.sse and item.status < 400]
    bases, wrong = Counter[str](), []
    wholes = replay(family, items, "sync", WHOLE)
    for seen, whole in zip(replay(family, items, colour, how), wholes, strict=True):
        problem = judge_half(seen, whole.rows[0]) if whole.rows else "no row for the whole"
        bases[f"{seen.rows[0].basis if seen.rows else 'none'} {'raised' if seen.raised else 'ended'}"] += 1
        known = bool(whole.rows) and whole.rows[0].amount is not None and whole.rows[0].basis != "estimated"
        bases["bounds hold what was billed"] += known and bool(seen.rows) and seen.rows[0].basis == "estimated"
        if problem:
            wrong.append(f"{seen.item.key} {seen.item.url}: {problem}")
    assert not wrong, f"{len(wrong)} wrong of {len(items)}\n" + "\n".join(wrong[:20])
    return f"\ncorpus {family.name}, {colour}, {how.name}: {len(items)} streams {dict(bases)}"
