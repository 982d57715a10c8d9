"""The user's program cannot tell that we are there: every shape of a call is made without us and with us, and looked at closely.

Both times the same scripted server answers. What is compared is what a program can see: types, contents, order, attributes, headers,
exceptions with their arguments and causes, what can be copied and pickled, what is open and closed.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import inspect
import json
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.integrations.registry import PROVIDERS

CANARY = "canary-31ce"

# --- a server that does what its path says -------------------------------------------------------------------------------

JSON = "application/json"
BROKEN = b'event: error\ndata: {"error": {"message": "overloaded", "type": "overloaded_error"}}\n\n'


@dataclass
class Script:
    """What a client library's provider answers, by path; `stream` when the request asks for one."""

    plain: dict[str, Any]
    stream: dict[str, bytes]


class Server:
    """On the loopback interface. The first part of a path says what to do: `ok`, a status, `hang`, `cut`, `close`, `half`, `error`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.stop = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.arrived = 0
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.workers: list[threading.Thread] = []
        self.thread.start()

    def close(self) -> None:
        self.stop.set()
        with socket.create_connection(("127.0.0.1", self.port)):
            self.thread.join()
        self.listener.close()
        for worker in self.workers:
            worker.join()

    def _accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            if self.stop.is_set():
                connection.close()
                return
            worker = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self.workers.append(worker)
            worker.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection)
        except OSError:
            pass  # the client has gone

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += connection.recv(65536)
        self.arrived += 1
        _, how, path = head.split(b" ")[1].decode().partition("?")[0].split("/", 2)
        request = json.loads(body) if body else {}
        self._act(connection, how, f"/{path}", request)

    def _act(self, connection: socket.socket, how: str, path: str, request: dict[str, Any]) -> None:
        if how == "hang":
            self.stop.wait(20)
        elif how == "close":
            return
        elif how.isdecimal() and (status := int(how)) >= 400:
            error = {"error": {"message": f"no: {status}", "type": "bad", "param": "model", "code": f"c{status}"}}
            _send(connection, status, JSON, json.dumps(error).encode())
        elif how == "text":
            _send(connection, 502, "text/html", b"<html>bad gateway</html>")
        elif how == "error":
            _send(connection, 200, JSON, b'{"error": {"message": "no", "code": 17}}')
        elif how == "junk":
            _send(connection, 200, JSON, b'{"id": "half an ans')
        elif how == "half":
            _send(connection, 200, JSON, b'{"id":', more=100)
        elif request.get("stream"):
            data = self.script.stream[path]
            asked = (request.get("stream_options") or {}).get("include_usage")
            data = asked_for_usage(data) if asked else data
            events = data.split(b"\n\n")
            if how == "cut":
                data = b"\n\n".join((*events[:2], events[2][:40]))
            elif how == "sse":
                data = b"\n\n".join((*events[:2], BROKEN))
            _stream(connection, data, whole=how != "cut")
        else:
            _send(connection, 200, JSON, json.dumps(self.script.plain[path]).encode())


def _send(connection: socket.socket, status: int, kind: str, body: bytes, more: int = 0) -> None:
    head = f"HTTP/1.1 {status} Said\r\ncontent-type: {kind}\r\nx-request-id: req_7\r\nrequest-id: req_7\r\nretry-after-ms: 1\r\nconnection: close\r\n"
    connection.sendall(f"{head}content-length: {len(body) + more}\r\n\r\n".encode() + body)


def _stream(connection: socket.socket, data: bytes, *, whole: bool) -> None:
    head = b"HTTP/1.1 200 Said\r\ncontent-type: text/event-stream\r\nx-request-id: req_7\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    end = b"0\r\n\r\n" if whole else b""
    connection.sendall(b"%b%x\r\n%b\r\n%b" % (head, len(data), data, end))


def asked_for_usage(data: bytes) -> bytes:
    """The stream of a server that was asked for usage, from the one that was not."""
    events = data.removesuffix(b"data: [DONE]\n\n").replace(b"}\n\n", b',"usage":null}\n\n')
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    last = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini", "choices": [], "usage": usage}  # fmt: skip
    return events + b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"


# --- what a program can see ---------------------------------------------------------------------------------------------


def picture(value: Any) -> Any:
    """Anything, as plain data that can be compared."""
    if isinstance(value, BaseException):
        return _exception(value)
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(picture, value)]
    if isinstance(value, dict):
        return {key: picture(item) for key, item in value.items()}
    if hasattr(value, "model_dump"):
        return _model(value)
    if hasattr(value, "reason_phrase"):
        return _http(value)
    if hasattr(value, "http_response"):
        return [_name(value), _http(value.http_response), sorted(vars(value)), value.request_id, value.retries_taken]
    if value is None or isinstance(value, (str, bytes, int, float, bool)):
        return value
    return _name(value)


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _model(value: Any) -> Any:
    return [
        _name(value), [kind.__name__ for kind in type(value).__mro__], value.model_dump(warnings=False), sorted(value.model_fields_set),
        sorted(value.__dict__), picture(value.model_extra), sorted(value.__pydantic_private__ or {}), getattr(value, "_request_id", None),
        repr(value), value.to_json(warnings=False) if hasattr(value, "to_json") else None,
    ]  # fmt: skip


def _http(response: Any) -> Any:
    return [
        _name(response), response.status_code, response.reason_phrase, sorted(response.headers.items()), response.is_closed,
        response.is_stream_consumed, response.http_version, str(response.url), response.request.method, sorted(response.request.headers),
        response.encoding, len(response.history),
    ]  # fmt: skip


def _exception(error: BaseException) -> Any:
    seen = {
        name: picture(found)
        for name in ("message", "body", "status_code", "code", "param", "type", "request_id", "response", "completion")
        if (found := getattr(error, name, None)) is not None
    }
    chain, cause = [], error.__cause__
    while cause is not None:
        cancelled = isinstance(cause, asyncio.CancelledError)  # says in which task, and where that was
        chain.append((_name(cause), "" if cancelled else str(cause)))
        cause = None if cancelled else cause.__cause__
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return [
        _name(error),
        kinds,
        str(error),
        picture(error.args),
        seen,
        chain,
        error.__suppress_context__,
        sorted(vars(error)),
    ]


def caught(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        return error


def copies(value: Any) -> list[Any]:
    """What becomes of it when it is copied and pickled, where that works."""
    made = []
    for way in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        again = caught(lambda: way(value))  # noqa: B023
        made.append(picture(again) if not isinstance(again, Exception) else type(again).__name__)
    return made


def streamed(stream: Any) -> list[Any]:
    """A stream read to its end, and what is left of it."""
    before = [_name(stream), sorted(vars(stream)), _name(iter(stream)), stream.response.is_closed]
    chunks = [picture(chunk) for chunk in stream]
    return [before, chunks, picture(stream.response), caught(lambda: next(stream)).__class__.__name__, stream.close()]


def first_only(stream: Any) -> list[Any]:
    with stream as same:
        assert same is stream
        chunk = next(iter(stream))
    return [picture(chunk), picture(stream.response), caught(lambda: next(stream)).__class__.__name__, stream.close()]


def cut_short(stream: Any) -> list[Any]:
    """What came before it failed, and how it failed."""
    came: list[Any] = []
    error = caught(lambda: came.extend(map(picture, stream)) or [came.append(picture(chunk)) for chunk in stream])
    return [len(came), picture(error), picture(stream.response)]


# --- the client libraries, as data --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sdk:
    """One client library of the family: what to call, with what, and what is answered."""

    name: str
    kinds: tuple[str, str]
    root: str
    create: str
    arguments: dict[str, Any]
    post: str
    script: Script
    more: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)

    @property
    def module(self) -> ModuleType:
        return pytest.importorskip(self.name)

    def resource(self, client: Any, *, beta: bool = False) -> Any:
        found = client
        for part in self.create.split("."):
            found = getattr(found, part)
        return found

    def client(self, server: Server, how: str, *, colour: int = 0, **options: Any) -> Any:
        url = f"http://127.0.0.1:{server.port}/{how}{self.root}"
        return getattr(self.module, self.kinds[colour])(
            **{"base_url": url, "api_key": "k", "max_retries": 0, **options}
        )


def sse(*events: dict[str, Any], named: bool = False) -> bytes:
    made = [(f"event: {one['type']}\n" if named else "") + f"data: {json.dumps(one)}\n\n" for one in events]
    return "".join(made).encode()


CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
MESSAGE = {"role": "assistant", "content": '{"answer": "canary-31ce"}', "refusal": None}
OPENAI = Sdk(
    "openai", ("OpenAI", "AsyncOpenAI"), "/v1", "chat.completions",
    {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"say {CANARY}"}]}, "/chat/completions",
    Script(
        {
            "/v1/chat/completions": {
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "new_field": {"a": [1]},
                "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": None}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
            },
            "/v1/models": {"object": "list", "data": [{"id": "m1", "object": "model", "created": 1, "owned_by": "x"}]},
            "/v1/embeddings": {"object": "list", "model": "e", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}], "usage": {"prompt_tokens": 3, "total_tokens": 3}},
        },
        {
            "/v1/chat/completions": sse(
                {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
                {**CHUNK, "choices": [{"index": 0, "delta": {"content": '{"answer": "'}, "finish_reason": None}]},
                {**CHUNK, "choices": [{"index": 0, "delta": {"content": f'{CANARY}"}}'}, "finish_reason": None}]},
                {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            ) + b"data: [DONE]\n\n",
        },
    ),
    {
        "parse": lambda sdk, c: picture(sdk.resource(c).parse(**sdk.arguments, response_format=verdict())),
        "embeddings": lambda sdk, c: picture(c.embeddings.create(model="e", input="x", encoding_format="float")),
        "page": lambda sdk, c: [_name(c.models.list()), [picture(one) for one in c.models.list()]],
        "page async parsed": lambda sdk, c: picture(c.models.with_raw_response.list().parse().data),
    },
)  # fmt: skip
_ANTHROPIC = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-next", "content": [], "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 1}}  # fmt: skip
ANTHROPIC = Sdk(
    "anthropic", ("Anthropic", "AsyncAnthropic"), "", "messages",
    {"model": "claude-next", "max_tokens": 50, "messages": [{"role": "user", "content": f"say {CANARY}"}]}, "/v1/messages",
    Script(
        {
            "/v1/messages": {**_ANTHROPIC, "content": [{"type": "text", "text": CANARY}], "stop_reason": "end_turn", "usage": {"input_tokens": 9, "output_tokens": 4}},
        },
        {
            "/v1/messages": sse(
                {"type": "message_start", "message": _ANTHROPIC},
                {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": CANARY}},
                {"type": "content_block_stop", "index": 0},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 4}},
                {"type": "message_stop"},
                named=True,
            ),
        },
    ),
)  # fmt: skip
SDKS = [OPENAI, ANTHROPIC]


@cache
def verdict() -> Any:
    from pydantic import BaseModel

    class Verdict(BaseModel):
        answer: str

    return Verdict


@pytest.fixture(scope="module", params=SDKS, ids=lambda sdk: sdk.name)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    pytest.importorskip(request.param.name)
    if request.param.name not in PROVIDERS:
        pytest.skip(f"{request.param.name} cannot be instrumented yet")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def server(sdk: Sdk) -> Iterator[Server]:
    running = Server(sdk.script)
    yield running
    running.close()


@pytest.fixture(params=["library", "client"])
def patched(request: pytest.FixtureRequest, sdk: Sdk) -> Iterator[Callable[[Any], None]]:
    """How we come in: for a whole client library, or for one client; with streams asked for their usage."""
    af.init(stream_usage="always")
    yield lambda client: af.instrument(sdk.name if request.param == "library" else client)
    af.uninstrument()


def same_with_us(make: Callable[[], Any], use: Callable[[Any], Any], patched: Callable[[Any], None]) -> Any:
    """Use a client without us, and another one with us; what was seen must be equal. Returns it."""
    with make() as client:
        without = use(client)
    with make() as client:
        patched(client)
        assert use(client) == without
    af.flush()
    assert CANARY not in repr([list(runtime.get().ledger.rows()), af_failures()])
    return without


def af_failures() -> Any:
    from aifinops import errors

    return errors.failures()


def through(manager: Any, read: Callable[[Any], Any]) -> Any:
    with manager as response:
        seen = [picture(response), read(response)]
    return [*seen, picture(response)]


def helper(manager: Any) -> Any:
    with manager as stream:
        events = [picture(event) for event in stream]
        final = getattr(stream, "get_final_completion", None) or stream.get_final_message
        return [_name(manager), _name(stream), events, picture(final())]


def many(sdk: Sdk, client: Any, **more: Any) -> Any:
    return sdk.resource(client).create(**sdk.arguments, **more)


def raw(sdk: Sdk, client: Any, **more: Any) -> Any:
    return sdk.resource(client).with_raw_response.create(**sdk.arguments, **more)


def streaming(sdk: Sdk, client: Any, **more: Any) -> Any:
    return sdk.resource(client).with_streaming_response.create(**sdk.arguments, **more)


def raw_seen(response: Any) -> Any:
    parsed = response.parse()
    return [
        picture(response),
        picture(parsed),
        parsed is response.parse(),
        response.http_response.text,
        response.http_response.content,
        copies(parsed),
    ]


def raw_streamed(response: Any) -> Any:
    return [picture(response), streamed(response.parse()), picture(response)]


def pickled_after(stream: Any) -> Any:
    list(stream)
    return copies(stream.response)


def pickled_read(response: Any) -> Any:
    http = response.http_response
    http.read()
    return [http.content, list(http.iter_bytes()), list(http.iter_lines()), copies(http), http.text]


SHAPES: dict[str, Callable[[Sdk, Any], Any]] = {
    "create": lambda sdk, c: picture(many(sdk, c)),
    "copies": lambda sdk, c: copies(many(sdk, c)),
    "stream": lambda sdk, c: streamed(many(sdk, c, stream=True)),
    "stream left": lambda sdk, c: first_only(many(sdk, c, stream=True)),
    "stream pickled": lambda sdk, c: pickled_after(many(sdk, c, stream=True)),
    "stream helper": lambda sdk, c: helper(sdk.resource(c).stream(**sdk.arguments)),
    "raw": lambda sdk, c: raw_seen(raw(sdk, c)),
    "raw stream": lambda sdk, c: raw_streamed(raw(sdk, c, stream=True)),
    "raw stream read": lambda sdk, c: pickled_read(raw(sdk, c, stream=True)),
    "streaming read": lambda sdk, c: through(streaming(sdk, c), lambda r: r.read()),
    "streaming json": lambda sdk, c: through(streaming(sdk, c), lambda r: r.json()),
    "streaming parse": lambda sdk, c: through(streaming(sdk, c), lambda r: picture(r.parse())),
    "streaming unread": lambda sdk, c: through(streaming(sdk, c), lambda r: None),
    "streaming lines": lambda sdk, c: through(streaming(sdk, c, stream=True), lambda r: list(r.iter_lines())),
    "streaming bytes": lambda sdk, c: through(streaming(sdk, c, stream=True), lambda r: b"".join(r.iter_bytes())),
    "streaming pieces": lambda sdk, c: through(streaming(sdk, c, stream=True), lambda r: list(r.iter_bytes(10))),
    "streaming text": lambda sdk, c: through(streaming(sdk, c, stream=True), lambda r: "".join(r.iter_text())),
    "streaming events": lambda sdk, c: through(streaming(sdk, c, stream=True), lambda r: streamed(r.parse())),
    "post": lambda sdk, c: picture(c.post(sdk.post, cast_to=object, body=dict(sdk.arguments))),
    "post stream": lambda sdk, c: [picture(one) for one in c.post(sdk.post, cast_to=object, body={**sdk.arguments, "stream": True}, stream=True, stream_cls=sdk.module.Stream[object])],
    "copy": lambda sdk, c: [_name(c.copy()), picture(many(sdk, c.copy(timeout=5)))],
    "with_options": lambda sdk, c: picture(many(sdk, c.with_options(max_retries=1, timeout=5))),
    "client": lambda sdk, c: [isinstance(c, sdk.module.Client), _name(c), c.timeout, c.max_retries, c.is_closed(), str(inspect.signature(c.request)), inspect.ismethod(c.request) or callable(c.request), str(inspect.signature(sdk.resource(c).create))],
    "iterated twice": lambda sdk, c: [(s := many(sdk, c, stream=True)) and len(list(s)), len(list(s)), picture(caught(lambda: s.response.read()))],
    "wrong argument": lambda sdk, c: picture(caught(lambda: many(sdk, c, nonsense=1))),
}  # fmt: skip


@pytest.mark.parametrize("shape", [*SHAPES, *OPENAI.more])
def test_every_shape_is_the_same(shape: str, sdk: Sdk, server: Server, patched: Callable[[Any], None]) -> None:
    """Objects, types, chunks in their order, attributes, headers and what can be done with them."""
    use = SHAPES.get(shape) or sdk.more.get(shape)
    if use is None:
        pytest.skip(f"{sdk.name} has no {shape}")

    try:
        with sdk.client(server, "ok") as client:
            use(sdk, client)
    except AttributeError as missing:
        pytest.skip(f"{sdk.name} {sdk.module.__version__}: {missing}")
    same_with_us(lambda: sdk.client(server, "ok"), lambda client: use(sdk, client), patched)


FAULTS: dict[str, tuple[str, Callable[[Sdk, Any], Any]]] = {
    **{f"status {status}": (str(status), lambda sdk, c: picture(caught(lambda: many(sdk, c)))) for status in (400, 401, 403, 404, 409, 422, 429, 500, 503)},
    **{f"status {status} of a stream": (str(status), lambda sdk, c: picture(caught(lambda: many(sdk, c, stream=True)))) for status in (400, 429, 500)},
    "status of a raw call": ("404", lambda sdk, c: picture(caught(lambda: raw(sdk, c)))),
    "status of a streaming response": ("404", lambda sdk, c: picture(caught(lambda: through(streaming(sdk, c), lambda r: r.read())))),
    "status of a helper": ("400", lambda sdk, c: picture(caught(lambda: helper(sdk.resource(c).stream(**sdk.arguments))))),
    "error page": ("text", lambda sdk, c: picture(caught(lambda: many(sdk, c)))),
    "200 with an error": ("error", lambda sdk, c: picture(caught(lambda: many(sdk, c)))),
    "invalid json": ("junk", lambda sdk, c: picture(caught(lambda: many(sdk, c)))),
    "invalid json of a raw call": ("junk", lambda sdk, c: [picture(r := raw(sdk, c)), picture(caught(r.parse)), r.http_response.text]),
    "half a body": ("half", lambda sdk, c: picture(caught(lambda: many(sdk, c)))),
    "closed without a word": ("close", lambda sdk, c: picture(caught(lambda: many(sdk, c)))),
    "retried": ("500", lambda sdk, c: picture(caught(lambda: many(sdk, c.with_options(max_retries=2))))),
    "timed out after sending": ("hang", lambda sdk, c: picture(caught(lambda: many(sdk, c, timeout=0.3)))),
    "stream timed out": ("hang", lambda sdk, c: picture(caught(lambda: many(sdk, c, timeout=0.3, stream=True)))),
    "stream cut": ("cut", lambda sdk, c: cut_short(many(sdk, c, stream=True))),
    "stream cut below": ("cut", lambda sdk, c: picture(caught(lambda: through(streaming(sdk, c, stream=True), lambda r: b"".join(r.iter_bytes()))))),
    "error within a stream": ("sse", lambda sdk, c: cut_short(many(sdk, c, stream=True))),
    "helper cut": ("cut", lambda sdk, c: picture(caught(lambda: helper(sdk.resource(c).stream(**sdk.arguments))))),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_failure_is_the_same(fault: str, sdk: Sdk, server: Server, patched: Callable[[Any], None]) -> None:
    """Type, arguments, attributes and causes of every exception, and what came before it."""
    how, use = FAULTS[fault]
    seen = same_with_us(lambda: sdk.client(server, how), lambda client: use(sdk, client), patched)
    assert seen


def test_a_connection_that_is_refused(sdk: Sdk, server: Server, patched: Callable[[Any], None]) -> None:
    """Nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = {"base_url": f"http://127.0.0.1:{port}{sdk.root}"}
    look = lambda client: picture(caught(lambda: many(sdk, client)))  # noqa: E731
    (name, *_) = same_with_us(lambda: sdk.client(server, "ok", **url), look, patched)
    assert name.endswith("APIConnectionError")


@pytest.mark.parametrize("kind", ["ConnectTimeout", "PoolTimeout", "ConnectError", "ReadError", "WriteTimeout"])
def test_what_the_transport_raises(kind: str, sdk: Sdk, server: Server, patched: Callable[[Any], None]) -> None:
    """Before anything is sent, or in the middle of it."""
    base = importlib.import_module(f"{sdk.name}._base_client")
    library = getattr(base, "httpx2", None) or base.httpx

    def broken(request: Any) -> Any:
        raise getattr(library, kind)("from below", request=request)

    def make() -> Any:
        return sdk.client(server, "ok", http_client=library.Client(transport=library.MockTransport(broken)))

    (name, *_) = same_with_us(make, lambda client: picture(caught(lambda: many(sdk, client))), patched)
    assert name.endswith("APITimeoutError" if "Timeout" in kind else "APIConnectionError")


# --- the other colour ---------------------------------------------------------------------------------------------------


async def acaught(awaitable: Any) -> Any:
    try:
        return await awaitable
    except BaseException as error:
        return error


async def astreamed(stream: Any) -> list[Any]:
    before = [_name(stream), sorted(vars(stream)), stream.response.is_closed]
    chunks = [picture(chunk) async for chunk in stream]
    return [before, chunks, picture(stream.response), type(await acaught(anext(stream))).__name__, await stream.close()]


async def afirst(stream: Any) -> list[Any]:
    async with stream as same:
        assert same is stream
        chunk = await anext(aiter(stream))
    return [picture(chunk), picture(stream.response), await stream.close()]


async def acut(stream: Any) -> list[Any]:
    came = []

    async def read() -> None:
        async for chunk in stream:
            came.append(picture(chunk))  # noqa: PERF401 - what came before it failed counts

    return [picture(await acaught(read())), came, picture(stream.response)]


async def athrough(manager: Any, read: Callable[[Any], Any]) -> Any:
    async with manager as response:
        seen = [picture(response), await read(response)]
    return [*seen, picture(response)]


async def ahelper(manager: Any) -> Any:
    async with manager as stream:
        events = [picture(event) async for event in stream]
        final = getattr(stream, "get_final_completion", None) or stream.get_final_message
        return [_name(manager), _name(stream), events, picture(await final())]


async def alist(values: Any) -> list[Any]:
    return [value async for value in values]


async def cancelled(call: Any) -> Any:
    task = asyncio.create_task(call)
    await asyncio.sleep(0.3)
    task.cancel()
    error = await acaught(task)
    return [picture(error), task.cancelled()]


async def aall(*calls: Any) -> list[Any]:
    return [picture(one) for one in await asyncio.gather(*calls)]


async def raw_parsed(response: Any) -> Any:
    made = await response
    parsed = made.parse()
    return [picture(made), picture(await parsed if inspect.isawaitable(parsed) else parsed)]


async def chained(call: Any, then: Callable[[Any], Any]) -> Any:
    return await then(await call)


ASHAPES: dict[str, tuple[str, Callable[[Sdk, Any], Any]]] = {
    "create": ("ok", lambda sdk, c: chained(many(sdk, c), _apicture)),
    "gathered": ("ok", lambda sdk, c: aall(*(many(sdk, c) for _ in range(5)))),
    "stream": ("ok", lambda sdk, c: chained(many(sdk, c, stream=True), astreamed)),
    "stream left": ("ok", lambda sdk, c: chained(many(sdk, c, stream=True), afirst)),
    "stream helper": ("ok", lambda sdk, c: ahelper(sdk.resource(c).stream(**sdk.arguments))),
    "raw": ("ok", lambda sdk, c: raw_parsed(raw(sdk, c))),
    "streaming read": ("ok", lambda sdk, c: athrough(streaming(sdk, c), lambda r: r.read())),
    "streaming lines": ("ok", lambda sdk, c: athrough(streaming(sdk, c, stream=True), lambda r: alist(r.iter_lines()))),
    "streaming pieces": ("ok", lambda sdk, c: athrough(streaming(sdk, c, stream=True), lambda r: alist(r.iter_bytes(10)))),
    "coroutine": ("ok", lambda sdk, c: _kinds(sdk, c)),
    **{f"status {status}": (str(status), lambda sdk, c: chained(acaught(many(sdk, c)), _apicture)) for status in (400, 401, 404, 429, 500)},
    "invalid json": ("junk", lambda sdk, c: chained(acaught(many(sdk, c)), _apicture)),
    "half a body": ("half", lambda sdk, c: chained(acaught(many(sdk, c)), _apicture)),
    "timed out": ("hang", lambda sdk, c: chained(acaught(many(sdk, c, timeout=0.3)), _apicture)),
    "cancelled": ("hang", lambda sdk, c: cancelled(many(sdk, c))),
    "stream cancelled": ("hang", lambda sdk, c: cancelled(many(sdk, c, stream=True))),
    "wait_for": ("hang", lambda sdk, c: chained(acaught(asyncio.wait_for(many(sdk, c), 0.3)), _apicture)),
    "stream cut": ("cut", lambda sdk, c: chained(many(sdk, c, stream=True), acut)),
    "error within a stream": ("sse", lambda sdk, c: chained(many(sdk, c, stream=True), acut)),
}  # fmt: skip


async def _apicture(value: Any) -> Any:
    return picture(value)


async def _kinds(sdk: Sdk, client: Any) -> Any:
    call = many(sdk, client)
    kinds = [
        inspect.iscoroutine(call),
        inspect.iscoroutinefunction(client.request),
        str(inspect.signature(client.request)),
    ]
    await call
    return kinds


@pytest.mark.parametrize("shape", ASHAPES)
async def test_every_asynchronous_shape_is_the_same(
    shape: str, sdk: Sdk, server: Server, patched: Callable[[Any], None]
) -> None:
    """The same for the asynchronous client, with cancellation."""
    how, use = ASHAPES[shape]
    async with sdk.client(server, how, colour=1) as client:
        without = await use(sdk, client)
    async with sdk.client(server, how, colour=1) as client:
        patched(client)
        assert await use(sdk, client) == without
    af.flush()
    assert CANARY not in repr(list(runtime.get().ledger.rows()))
