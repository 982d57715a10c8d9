"""Every client library and colour at a server on the loopback interface: how it is made, what is asked of it and what is answered.

What a user does with a client is written once, as a coroutine: with a blocking client nothing in it ever waits, so it is driven without a
loop.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import importlib
import inspect
import json
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from aifinops.testing.wire import SocketWire, Wire

CANARY = "canary-51aa"
SAID = [{"role": "user", "content": CANARY}]
INPUT, OUTPUT = 1000, 200


@dataclass(frozen=True)
class Library:
    """One client library in one colour.

    Attributes:
        needs: module that must be there. name: as it is instrumented. make: from the server's address, with
            `retries` that the library makes itself and a `timeout` in seconds. method: what `asked` calls, from the client.
        asked: makes the call, `asked(client, stream)`. path, stream_path: where the server is asked.
        answer, stream: what it says; a stream may be a function of the server. more: further shapes. use: what a user does instead of all
            of these.
        serve: makes the server.
    """

    needs: str
    name: str
    make: Callable[..., Any]
    asked: Callable[[Any, bool], Any] = lambda client, stream: None
    path: str = ""
    stream_path: str = ""
    answer: Any = None
    stream: Any = None
    more: Callable[[Any, Wire], Awaitable[list[Any]]] | None = None
    use: Callable[[Any, Any], Awaitable[list[Any]]] | None = None
    serve: Callable[[], Any] = Wire
    asynchronous: bool = False
    method: str = ""
    usage: tuple[str, ...] = ("usage",)
    counts: tuple[str, str] = ("prompt_tokens", "completion_tokens")
    """Where `answer` tells the usage, and the names of its counts."""
    paid: int = 3
    """Calls of one use that are charged."""


# --- one program for both colours ------------------------------------------------------------------------------------------


async def done(answer: Any) -> Any:
    """What a call gives, when it is here."""
    return await answer if inspect.isawaitable(answer) else answer


async def opened(answer: Any) -> Any:
    """The stream of a call."""
    stream = await done(answer)
    return stream["stream"] if isinstance(stream, dict) else stream


async def pieces(answer: Any) -> AsyncIterator[Any]:
    """All pieces of a stream."""
    stream = await opened(answer)
    if hasattr(stream, "__aiter__"):
        async for piece in stream:
            yield piece
    else:
        for piece in stream:
            yield piece


async def first(answer: Any) -> Any:
    """The first piece of a stream, which is then left."""
    stream = await opened(answer)
    if hasattr(stream, "__aiter__"):
        piece = await anext(aiter(stream))
    else:
        piece = next(iter(stream))
    await leave(stream)
    return piece


async def leave(stream: Any) -> None:
    """Close a stream in the way that its library has."""
    for name in ("aclose", "close"):
        if hasattr(stream, name):
            await done(getattr(stream, name)())
            return
    leaving = getattr(stream, "__aexit__", None) or stream.__exit__
    await done(leaving(None, None, None))


_CLOSING = (
    "close", "_client.close", "_client.aclose", "sdk_configuration.client.close", "sdk_configuration.async_client.aclose",
    "_client_wrapper.httpx_client.httpx_client.close", "_client_wrapper.httpx_client.httpx_client.aclose",
    "_api_client._httpx_client.close", "_api_client._async_httpx_client.aclose", "_api_client._aiohttp_session.close",
)  # fmt: skip
"""What lets go of a client's connections, in one library or another."""


async def shut(client: Any, asynchronous: bool) -> None:
    """Close a client."""
    for path in _CLOSING:
        if "aclose" in path and not asynchronous:
            continue
        found = client
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            with contextlib.suppress(Exception):  # a client that is closed already, or was never used
                await done(found())


def shown(answer: Any) -> Any:
    """What can be seen of an answer or a piece of one, without what differs from call to call."""
    if hasattr(answer, "model_dump"):
        return answer.model_dump(exclude={"sdk_http_response"})
    if isinstance(answer, dict):
        hidden = {"ResponseMetadata", "body", "stream"}
        return {name: value for name, value in answer.items() if name not in hidden}
    return repr(answer)


async def outcome(call: Callable[[], Any]) -> Any:
    """The answer of a call, or the error that its user sees."""
    try:
        return shown(await done(call()))
    except Exception as error:
        return error_of(error)


def error_of(error: Exception) -> str:
    """Kind and status of an error."""
    return f"{type(error).__name__}: {getattr(error, 'status_code', getattr(error, 'code', ''))}"


async def use(library: Library, client: Any, server: Any) -> list[Any]:
    """A whole answer, a whole stream, one that is left after its first piece, and a refusal."""
    if library.use is not None:
        return list(await library.use(client, server))
    stream_path = library.stream_path or library.path
    server.answers = {f"POST {library.path}": library.answer}
    seen = [shown(await done(library.asked(client, False)))]
    stream = library.stream
    server.answers = {f"POST {stream_path}": partial(stream, server) if callable(stream) else stream}
    seen += [shown(piece) async for piece in pieces(library.asked(client, True))]
    seen.append(shown(await first(library.asked(client, True))))
    if library.more is not None:
        seen += await library.more(client, server)
    server.answers = {f"POST {library.path}": 400}
    return [*seen, await outcome(lambda: library.asked(client, False))]


class Driver:
    """Runs what a user does with a client, in a context that can be looked at afterwards."""

    def __init__(self, asynchronous: bool) -> None:
        self._runner = asyncio.Runner() if asynchronous else None

    def run(self, program: Coroutine[Any, Any, Any], context: contextvars.Context | None = None) -> Any:
        """Run it to its end."""
        context = context or contextvars.copy_context()
        if self._runner is not None:
            return self._runner.run(program, context=context)
        return context.run(self._at_once, program)

    @staticmethod
    def _at_once(program: Coroutine[Any, Any, Any]) -> Any:
        try:
            program.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("a blocking client waited for a loop")

    def close(self) -> None:
        """Let the loop go."""
        if self._runner is not None:
            self._runner.close()


# --- what providers say --------------------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
HEAD = {"id": "c1", "created": 1_790_000_000, "model": "answered"}
CHAT: dict[str, Any] = {
    **HEAD, "object": "chat.completion", "usage": USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": CANARY}}],
}  # fmt: skip


def chunk(text: str, **more: Any) -> dict[str, Any]:
    """One event of a stream of chat completions."""
    said = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [said], **more}


CHUNKS: list[Any] = [chunk("a"), chunk("b"), {**chunk(""), "choices": [], "usage": USAGE}, "[DONE]"]


def as_asked(server: Wire) -> list[Any]:
    """OpenAI's stream: its usage is told to whoever asks for it."""
    return CHUNKS if b"include_usage" in server.asked[-1][1] else [*CHUNKS[:2], "[DONE]"]


LAST_CHUNK: list[Any] = [chunk("a"), chunk("b"), chunk("", usage=USAGE), "[DONE]"]
"""The same for providers whose usage comes in the last event that says something."""

MESSAGE: dict[str, Any] = {
    "id": "c1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": CANARY}], "usage": {"input_tokens": INPUT, "output_tokens": OUTPUT},
}  # fmt: skip
MESSAGES: list[Any] = [
    (event["type"], event)
    for event in (
        {"type": "message_start", "message": {**MESSAGE, "content": [], "usage": {"input_tokens": INPUT, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": OUTPUT}},
        {"type": "message_stop"},
    )
]  # fmt: skip
GEMINI: dict[str, Any] = {
    "candidates": [{"content": {"parts": [{"text": CANARY}], "role": "model"}, "index": 0, "finishReason": "STOP"}],
    "modelVersion": "gemini-2.5-flash", "responseId": "r1",
    "usageMetadata": {"promptTokenCount": INPUT, "candidatesTokenCount": OUTPUT, "totalTokenCount": INPUT + OUTPUT},
}  # fmt: skip
COHERE_USAGE = {"billed_units": {"input_tokens": float(INPUT), "output_tokens": float(OUTPUT)}}
COHERE: dict[str, Any] = {
    "id": "c-1", "finish_reason": "COMPLETE", "usage": COHERE_USAGE,
    "message": {"role": "assistant", "content": [{"type": "text", "text": CANARY}]},
}  # fmt: skip
COHERE_STREAM: list[Any] = [
    (event["type"], event)
    for event in (
        {"type": "message-start", "id": "c-1", "delta": {"message": {"role": "assistant", "content": []}}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": CANARY}}}},
        {"type": "content-end", "index": 0},
        {"type": "message-end", "id": "c-1", "delta": {"finish_reason": "COMPLETE", "usage": COHERE_USAGE}},
    )
]
OLLAMA: dict[str, Any] = {
    "model": "llama3.2", "created_at": "2026-11-10T12:00:00Z", "message": {"role": "assistant", "content": CANARY}, "done": True,
    "done_reason": "stop", "prompt_eval_count": INPUT, "eval_count": OUTPUT,
}  # fmt: skip


def lines(*parts: dict[str, Any]) -> tuple[str, bytes]:
    """A stream of one JSON object a line."""
    return "application/x-ndjson", b"".join(json.dumps(part).encode() + b"\n" for part in parts)


OLLAMA_STREAM = lines({key: OLLAMA[key] for key in ("model", "created_at", "message")} | {"done": False}, OLLAMA)
CONVERSED: dict[str, Any] = {
    "output": {"message": {"role": "assistant", "content": [{"text": CANARY}]}}, "stopReason": "end_turn",
    "usage": {"inputTokens": INPUT, "outputTokens": OUTPUT, "totalTokens": INPUT + OUTPUT}, "metrics": {"latencyMs": 7},
}  # fmt: skip


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of Amazon's event streams: prelude and its CRC, headers, payload, CRC of it all."""
    head = b"".join(
        struct.pack(f"!B{len(name)}sBH{len(value)}s", len(name), name.encode(), 7, len(value), value.encode())
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    prelude += struct.pack("!I", zlib.crc32(prelude))
    body = prelude + head + payload
    return body + struct.pack("!I", zlib.crc32(body))


def frames(*events: tuple[str, dict[str, Any]]) -> tuple[str, bytes]:
    """A stream of Amazon's events, each (name, what it says)."""
    made = [
        frame({":event-type": name, ":content-type": "application/json", ":message-type": "event"}, json.dumps(said).encode())
        for name, said in events
    ]  # fmt: skip
    return "application/vnd.amazon.eventstream", b"".join(made)


BEDROCK_EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("messageStart", {"role": "assistant"}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": CANARY}}),
    ("messageStop", {"stopReason": "end_turn"}),
    ("metadata", {"usage": CONVERSED["usage"], "metrics": {"latencyMs": 7}}),
]
INVOKED: list[tuple[str, dict[str, Any]]] = [
    ("chunk", {"bytes": base64.b64encode(json.dumps(event).encode()).decode()}) for _, event in MESSAGES
]

# --- Stainless' client libraries -------------------------------------------------------------------------------------------------


def stainless(
    asynchronous: bool, needs: str, kind: str, path: str, model: str, stream: Any, name: str = "", **options: Any
) -> Library:
    """A library of the family."""

    def make(url: str, retries: int = 0, timeout: float = 30) -> Any:
        made = getattr(importlib.import_module(needs), ("Async" if asynchronous else "") + kind)
        return made(base_url=url, api_key="test", max_retries=retries, timeout=timeout, **options)

    def asked(client: Any, stream: bool) -> Any:
        body = {"model": model, "messages": SAID, "max_tokens": 300, **({"stream": True} if stream else {})}
        return (client.messages if kind == "Anthropic" else client.chat.completions).create(**body)

    async def more(client: Any, server: Wire) -> list[Any]:
        """A client made of another one, and a raw answer."""
        server.answers = {f"POST {path}": answer}
        other = client.with_options(timeout=9)
        resource = client.messages if kind == "Anthropic" else client.chat.completions
        raw = await done(resource.with_raw_response.create(model=model, messages=SAID, max_tokens=300))
        return [shown(await done(asked(other, False))), shown(await done(raw.parse()))]

    answer = {**(MESSAGE if kind == "Anthropic" else CHAT), "model": model}
    messages = kind == "Anthropic"
    return Library(
        needs, name or needs, make, asked, path, "", answer, stream, more, asynchronous=asynchronous, paid=5,
        method="messages.create" if messages else "chat.completions.create",
        counts=("input_tokens", "output_tokens") if messages else ("prompt_tokens", "completion_tokens"),
    )  # fmt: skip


# --- all others ------------------------------------------------------------------------------------------------------------------------


def google(asynchronous: bool) -> Library:
    """google-genai at the Gemini API."""

    def make(url: str, retries: int = 0, timeout: float = 30) -> Any:
        from google import genai
        from google.genai import types

        again = types.HttpRetryOptions(attempts=retries + 1, initial_delay=0.01, max_delay=0.01)
        options = types.HttpOptions(
            base_url=url, api_version="v1beta", timeout=int(timeout * 1000), retry_options=again if retries else None
        )
        return genai.Client(api_key="test", http_options=options, vertexai=False)

    def asked(client: Any, stream: bool) -> Any:
        models = client.aio.models if asynchronous else client.models
        call = models.generate_content_stream if stream else models.generate_content
        return call(model="gemini-2.5-flash", contents=CANARY)

    path = "/v1beta/models/gemini-2.5-flash:"
    stream = [{key: value for key, value in GEMINI.items() if key != "usageMetadata"}, GEMINI]
    return Library(
        "google.genai", "google", make, asked, f"{path}generateContent", f"{path}streamGenerateContent", GEMINI, stream,
        asynchronous=asynchronous, method="aio.models.generate_content" if asynchronous else "models.generate_content",
        usage=("usageMetadata",), counts=("promptTokenCount", "candidatesTokenCount"),
    )  # fmt: skip


def bedrock() -> Library:
    """boto3 at Bedrock."""
    model = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    base = f"/model/{model.replace(':', '%3A')}/"

    def make(url: str, retries: int = 0, timeout: float = 30) -> Any:
        import boto3
        from botocore.config import Config

        session = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
        config = Config(retries={"max_attempts": retries}, read_timeout=timeout, connect_timeout=timeout)
        return session.client("bedrock-runtime", endpoint_url=url, config=config)

    def asked(client: Any, stream: bool) -> Any:
        messages = [{"role": "user", "content": [{"text": CANARY}]}]
        return (client.converse_stream if stream else client.converse)(modelId=model, messages=messages)

    async def more(client: Any, server: Wire) -> list[Any]:
        """InvokeModel: read whole, in part, and as a stream; and a stream that is no such."""
        streamed = f"POST {base}invoke-with-response-stream"
        server.answers = {f"POST {base}invoke": MESSAGE, streamed: frames(*INVOKED)}
        invoked = {"modelId": model, "body": json.dumps({"messages": SAID, "max_tokens": 300})}
        whole = client.invoke_model(**invoked)
        seen: list[Any] = [shown(whole), whole["body"].read()]
        part = client.invoke_model(**invoked)
        seen.append(part["body"].read(4))
        part["body"].close()
        seen += list(client.invoke_model_with_response_stream(**invoked)["body"])
        server.answers = {streamed: ("application/vnd.amazon.eventstream", b"not framed at all")}
        broken = client.invoke_model_with_response_stream(**invoked)["body"]
        return [*seen, await outcome(lambda: list(broken))]

    return Library(
        "boto3", "bedrock", make, asked, f"{base}converse", f"{base}converse-stream", CONVERSED, frames(*BEDROCK_EVENTS), more, paid=7,
        method="converse", counts=("inputTokens", "outputTokens"),
    )  # fmt: skip


def mistral(asynchronous: bool) -> Library:
    """mistralai, which has one client for both colours."""

    def make(url: str, retries: int = 0, timeout: float = 30) -> Any:
        try:
            made = importlib.import_module("mistralai.client").Mistral
        except (ImportError, AttributeError):
            made = importlib.import_module("mistralai").Mistral
        return made(api_key="test", server_url=url, timeout_ms=int(timeout * 1000))

    def asked(client: Any, stream: bool) -> Any:
        call = getattr(client.chat, ("stream" if stream else "complete") + ("_async" if asynchronous else ""))
        return call(model="mistral-small-latest", messages=SAID)

    path = "/v1/chat/completions"
    answer = {**CHAT, "model": "mistral-small-latest"}
    return Library(
        "mistralai", "mistral", make, asked, path, "", answer, LAST_CHUNK, asynchronous=asynchronous,
        method="chat.complete_async" if asynchronous else "chat.complete",
    )  # fmt: skip


def cohere(asynchronous: bool) -> Library:
    """cohere's second client."""

    def make(url: str, retries: int = 0, timeout: float = 30) -> Any:
        kind = "AsyncClientV2" if asynchronous else "ClientV2"
        return getattr(importlib.import_module("cohere"), kind)(api_key="test", base_url=url, timeout=timeout)

    def asked(client: Any, stream: bool) -> Any:
        once = {"request_options": {"max_retries": 0}}  # the only place where it can be said
        return (client.chat_stream if stream else client.chat)(model="command-a-03-2025", messages=SAID, **once)

    return Library(
        "cohere", "cohere", make, asked, "/v2/chat", "", COHERE, COHERE_STREAM, asynchronous=asynchronous,
        method="chat", usage=("usage", "billed_units"), counts=("input_tokens", "output_tokens"),
    )  # fmt: skip


def ollama(asynchronous: bool) -> Library:
    """ollama."""

    def make(url: str, retries: int = 0, timeout: float = 30) -> Any:
        kind = "AsyncClient" if asynchronous else "Client"
        return getattr(importlib.import_module("ollama"), kind)(host=url, timeout=timeout)

    def asked(client: Any, stream: bool) -> Any:
        return client.chat(model="llama3.2", messages=SAID, stream=stream)

    return Library(
        "ollama", "ollama", make, asked, "/api/chat", "", OLLAMA, OLLAMA_STREAM, asynchronous=asynchronous, method="chat",
        usage=(), counts=("prompt_eval_count", "eval_count"),
    )  # fmt: skip


def hub(asynchronous: bool) -> Library:
    """huggingface_hub's inference."""

    def make(url: str) -> Any:
        kind = "AsyncInferenceClient" if asynchronous else "InferenceClient"
        return getattr(importlib.import_module("huggingface_hub"), kind)(model=url, token="test")

    def asked(client: Any, stream: bool) -> Any:
        return client.chat_completion(SAID, stream=stream)

    return Library(
        "huggingface_hub", "huggingface", make, asked, "/v1/chat/completions", "", CHAT, LAST_CHUNK, asynchronous=asynchronous
    )  # fmt: skip


# --- sessions ----------------------------------------------------------------------------------------------------------------------------


def spoken(number: int) -> list[dict[str, Any]]:
    """The events of one response of the Realtime API."""
    about = {"id": f"resp_{number}", "object": "realtime.response"}
    usage = {"input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    delta = {"type": "response.output_text.delta", "event_id": "e2", "response_id": f"resp_{number}", "delta": CANARY}
    return [
        {"type": "response.created", "event_id": "e1", "response": about},
        delta,
        {"type": "response.done", "event_id": "e3", "response": {**about, "status": "completed", "output": [], "usage": usage}},
    ]  # fmt: skip


GREETING = {"type": "session.created", "event_id": "e0", "session": {"type": "realtime", "model": "gpt-realtime"}}


def realtime(asynchronous: bool) -> Library:
    """OpenAI's Realtime API: two responses, and one in whose middle the session is closed."""

    def make(url: str) -> Any:
        kind = "AsyncOpenAI" if asynchronous else "OpenAI"
        made = getattr(importlib.import_module("openai"), kind)
        if not hasattr(made, "realtime"):
            pytest.skip("this version has no client.realtime")
        return made(api_key="test", base_url=f"http://{url}/v1", websocket_base_url=f"ws://{url}/v1")

    async def used(client: Any, server: SocketWire) -> list[Any]:
        server.greeting, server.replies = [GREETING], [spoken(1), spoken(2), spoken(3)[:2]]
        manager = client.realtime.connect(model="gpt-realtime")
        connection = await done(manager.enter())
        seen: list[Any] = []
        for last in ("response.done", "response.done", "response.output_text.delta"):
            await done(connection.response.create(response={"max_output_tokens": 300}))
            while not seen or seen[-1]["type"] != last:
                seen.append((await done(connection.recv())).model_dump())
            seen.append({"type": "next"})
        await done(connection.close())
        return seen

    return Library("openai", "openai", make, use=used, serve=sockets, asynchronous=asynchronous)


LIVE = "gemini-2.5-flash-native-audio-preview-09-2025"


def live() -> Library:
    """Gemini's Live API: two turns, and one in whose middle the session is closed."""

    def make(url: str) -> Any:
        made = importlib.import_module("google.genai").Client(api_key="test", vertexai=False)
        api = made._api_client  # the library speaks TLS only: these are where it says so
        api._websocket_base_url = lambda *_args: f"ws://{url}"
        api._websocket_ssl_ctx = {}
        return made

    def turn(made: int, complete: bool = True) -> list[dict[str, Any]]:
        usage = {"promptTokenCount": INPUT, "responseTokenCount": made, "totalTokenCount": INPUT + made}
        end = {"serverContent": {"turnComplete": True}} if complete else {}
        talk = {"serverContent": {"modelTurn": {"parts": [{"text": CANARY}]}}}
        return [
            talk,
            {"usageMetadata": {**usage, "responseTokenCount": 1, "totalTokenCount": INPUT + 1}},
            {"usageMetadata": usage, **end},
        ]

    async def say(session: Any) -> None:
        await session.send_client_content(turns={"role": "user", "parts": [{"text": CANARY}]}, turn_complete=True)

    async def used(client: Any, server: SocketWire) -> list[Any]:
        server.greeting, server.replies = [], [[{"setupComplete": {}}], turn(OUTPUT), turn(OUTPUT), turn(9, False)]
        seen: list[Any] = []
        async with client.aio.live.connect(model=LIVE) as session:
            for _ in range(2):
                await say(session)
                seen += [shown(message) async for message in session.receive()]
            await say(session)
            seen.append(shown(await session._receive()))
        return seen

    return Library("google.genai", "google", make, use=used, serve=sockets, asynchronous=True)


@contextlib.contextmanager
def sockets() -> Iterator[SocketWire]:
    """A server for sessions, where the libraries can have any."""
    pytest.importorskip("websockets", minversion="13")
    with SocketWire() as running:
        yield running


_COLOURS = {"sync": False, "async": True}
_BOTH: dict[str, Callable[[bool], Library]] = {
    "openai": partial(stainless, needs="openai", kind="OpenAI", path="/chat/completions", model="gpt-4o-mini", stream=as_asked),
    "anthropic": partial(
        stainless, needs="anthropic", kind="Anthropic", path="/v1/messages", model="claude-haiku-4-5", stream=MESSAGES
    ),
    "groq": partial(
        stainless, needs="groq", kind="Groq", path="/openai/v1/chat/completions", model="llama-3.3-70b-versatile",
        stream=[chunk("a"), chunk("b", x_groq={"id": "r", "usage": USAGE}), "[DONE]"],
    ),
    "together": partial(
        stainless, needs="together", kind="Together", path="/v1/chat/completions",
        model="meta-llama/Llama-3.3-70B-Instruct-Turbo", stream=LAST_CHUNK,
    ),
    "cerebras": partial(
        stainless, needs="cerebras.cloud.sdk", name="cerebras", kind="Cerebras", path="/v1/chat/completions",
        model="gpt-oss-120b", stream=LAST_CHUNK, warm_tcp_connection=False,
    ),
    "mistral": mistral, "cohere": cohere, "ollama": ollama, "huggingface": hub, "google": google, "realtime": realtime,
}  # fmt: skip

LIBRARIES: dict[str, Library] = {
    **{f"{name} {colour}": make(flag) for name, make in _BOTH.items() for colour, flag in _COLOURS.items()},
    "bedrock sync": bedrock(),
    "live async": live(),
}
