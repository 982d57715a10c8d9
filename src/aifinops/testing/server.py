"""A provider on the loopback interface: speaks the OpenAI API, counts and bills what it serves, fails on demand.

    with FakeProvider() as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="test")
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])
        server.bill[-1].usage["completion_tokens"]

It is written on plain sockets rather than on `http.server`, which spends more time on parsing headers than the SDK
needs for the whole call; a test or a benchmark should wait for the client, not for its fake.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self

from aifinops.clock import Clock, SystemClock
from aifinops.errors import ConfigurationError
from aifinops.testing.bodies import Answer, Bodies, error_body
from aifinops.testing.counting import BadRequest, Hints, PromptCache

__all__ = ["FakeProvider", "Served"]

_MAX_HEAD = 64 * 1024
_MAX_BODY = 64 * 1024 * 1024
_BURST = 8 * 1024
_TOTALS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class Served:
    """One line of the server's bill.

    Attributes:
        endpoint: `chat`, `responses`, `completions` or `embeddings`.
        model: as asked. id: the response id, empty for embeddings.
        usage: the provider's usage object, in this endpoint's own words.
        stream: whether it was streamed. complete: False when the server cut the stream on purpose; it is billed in full
            all the same, since the answer was made.
    """

    endpoint: str
    model: str
    id: str
    usage: Mapping[str, Any]
    stream: bool = False
    complete: bool = True

    @property
    def totals(self) -> dict[str, int]:
        """Inclusive counts in one vocabulary: input (cached ones included) and output (reasoning included) tokens."""
        usage = self.usage
        read = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        made = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
        counts = (
            usage.get("prompt_tokens", usage.get("input_tokens", 0)),
            read.get("cached_tokens", 0),
            usage.get("completion_tokens", usage.get("output_tokens", 0)),
            made.get("reasoning_tokens", 0),
        )
        return dict(zip(_TOTALS, counts, strict=True))


@dataclass(slots=True)
class _Fault:
    status: int
    message: str
    times: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def hints(self) -> Hints:
        return Hints(_whole(self.headers, "x-fake-output-tokens"), _whole(self.headers, "x-fake-input-tokens"))


@dataclass(slots=True)
class _State:
    """What the threads share; every access under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: int = 0
    bill: list[Served] = field(default_factory=list)
    faults: list[_Fault] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    open: dict[socket.socket, threading.Thread] = field(default_factory=dict)


class FakeProvider:
    """A server for tests, examples and `aifinops demo`. Use it with `with`, or `start()` and `stop()`.

    Args:
        words: visible output tokens of an answer when the request does not say (`x-fake-output-tokens: N` as a header
            or `metadata={"words": "N"}` in the body ask for exactly N, reasoning included).
        cache_from: leading messages seen before count as cached from so many tokens on.
        delay: seconds to wait before each answer.
        clock: gives the `created` times.
    """

    def __init__(
        self, *, words: int = 16, cache_from: int = 64, delay: float = 0.0, clock: Clock | None = None
    ) -> None:
        if words < 0 or cache_from < 1 or delay < 0:
            raise ConfigurationError(
                f"FakeProvider(words={words}, cache_from={cache_from}, delay={delay}): words and delay are 0 or more, "
                "cache_from is 1 or more"
            )
        self.delay = delay
        self._bodies = Bodies(words, PromptCache(cache_from), clock or SystemClock())
        self._state = _State()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen on 127.0.0.1, on a port that the system chooses."""
        if self._listener is not None:
            raise ConfigurationError("this FakeProvider is running already; make another one")
        self._stopping.clear()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), name="fake-provider", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close every connection and wait for the threads; a second call does nothing."""
        listener, thread = self._listener, self._thread
        if listener is None or thread is None:
            return
        self._stopping.set()
        # Closing a socket does not wake a thread that waits in accept(), on every system; a connection does.
        with socket.create_connection(listener.getsockname()):
            thread.join()
        listener.close()
        self._listener = self._thread = None
        for connection, worker in self._connections():
            _hang_up(connection)
            worker.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """What `openai.OpenAI(base_url=...)` wants.

        Raises:
            ConfigurationError: when the server is not running.
        """
        if self._listener is None:
            raise ConfigurationError("FakeProvider is not running; use `with FakeProvider() as server:`")
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    # -- the bill ------------------------------------------------------------------------------------------------------

    @property
    def requests(self) -> int:
        """Requests received, those that failed included."""
        with self._state.lock:
            return self._state.requests

    @property
    def bill(self) -> list[Served]:
        """What was served, in the order of serving: a copy."""
        with self._state.lock:
            return list(self._state.bill)

    def usage_totals(self, model: str | None = None) -> dict[str, int]:
        """Sums over the bill: `calls`, `input_tokens`, `cached_tokens`, `output_tokens`, `reasoning_tokens`.

        Cached tokens are a part of the input ones, reasoning tokens a part of the output ones, as the provider counts.
        """
        served = [line for line in self.bill if model is None or line.model == model]
        totals = dict.fromkeys(_TOTALS, 0)
        for line in served:
            for name, count in line.totals.items():
                totals[name] += count
        return {"calls": len(served), **totals}

    # -- faults --------------------------------------------------------------------------------------------------------

    def fail_next(
        self, status: int = 500, times: int = 1, message: str = "The server had an error.", **headers: str
    ) -> None:
        """Answer the next `times` requests with an error (a 429 or 5xx is retried by the SDK, 1 ms later).

        Args:
            status: HTTP status, 400 to 599.
            times: how many requests.
            message: of the error body.
            headers: further headers, with underscores for hyphens (`retry_after="2"`).
        """
        if not 400 <= status <= 599 or times < 1:
            raise ConfigurationError(f"fail_next({status}, times={times}): status is 400 to 599, times 1 or more")
        named = {"retry-after-ms": "1"} | {name.replace("_", "-"): value for name, value in headers.items()}
        with self._state.lock:
            self._state.faults.append(_Fault(status, message, times, named))

    def cut_stream_after(self, events: int, times: int = 1) -> None:
        """Break the connection of the next `times` streams after so many server-sent events."""
        if events < 0 or times < 1:
            raise ConfigurationError(f"cut_stream_after({events}, times={times}): events is 0 or more, times 1 or more")
        with self._state.lock:
            self._state.cuts += [events] * times

    # -- connections ---------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            if self._stopping.is_set():
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            worker = threading.Thread(target=self._serve, args=(connection,), name="fake-provider", daemon=True)
            with self._state.lock:
                self._state.open[connection] = worker
            worker.start()

    def _connections(self) -> list[tuple[socket.socket, threading.Thread]]:
        with self._state.lock:
            return list(self._state.open.items())

    def _serve(self, connection: socket.socket) -> None:
        try:
            for request in _requests(connection):
                if not self._answer(connection, request):
                    break
        except OSError:
            pass  # the client has hung up: an abandoned stream, or a test that is over
        finally:
            with self._state.lock:
                self._state.open.pop(connection, None)
            _hang_up(connection)
            connection.close()

    def _answer(self, connection: socket.socket, request: _Request) -> bool:
        """One request; False when the connection is to be closed after it."""
        fault = self._arrived()
        if self.delay and self._stopping.wait(self.delay):
            return False
        if fault is not None:
            body = error_body(fault.message, fault.status)
            connection.sendall(_response(fault.status, body, fault.headers))
            return True
        try:
            answer = self._route(request)
        except BadRequest as refused:
            body = error_body(refused.message, refused.status, param=refused.param, code=refused.code)
            connection.sendall(_response(refused.status, body))
            return True
        if isinstance(answer, dict):
            connection.sendall(_response(200, answer))
            return True
        return self._deliver(connection, answer)

    def _arrived(self) -> _Fault | None:
        state = self._state
        with state.lock:
            state.requests += 1
            if not state.faults:
                return None
            fault = state.faults[0]
            fault.times -= 1
            if fault.times == 0:
                state.faults.pop(0)
            return fault

    def _route(self, request: _Request) -> Answer | dict[str, Any]:
        path = request.path.partition("?")[0].removeprefix("/v1")
        if request.method == "GET" and path == "/models":
            return self._bodies.models()
        if request.method == "GET" and path.startswith("/models/"):
            return self._bodies.model(path.removeprefix("/models/"))
        makers: dict[str, Callable[[dict[str, Any], Hints], Answer]] = {
            "/chat/completions": self._bodies.chat,
            "/responses": self._bodies.responses,
            "/completions": self._bodies.completions,
            "/embeddings": self._bodies.embeddings,
        }
        maker = makers.get(path)
        if maker is None or request.method != "POST":
            raise BadRequest(f"Invalid URL ({request.method} {request.path})", status=404)
        body = _parsed(request.body)
        return maker(body, _with_metadata(request.hints, body))

    def _deliver(self, connection: socket.socket, answer: Answer) -> bool:
        stream = answer.events is not None
        with self._state.lock:
            cut = self._state.cuts.pop(0) if stream and self._state.cuts else None
            # Billed before the last byte leaves, so that whoever has the answer finds it on the bill.
            line = Served(answer.endpoint, answer.model, answer.id, answer.usage, stream, cut is None)
            self._state.bill.append(line)
        if answer.events is None:
            connection.sendall(_response(200, answer.body, {"x-request-id": f"req_{answer.id}"}))
            return True
        connection.sendall(_STREAM_HEAD)
        for burst in _bursts(answer.events(), cut):
            connection.sendall(b"%x\r\n%b\r\n" % (len(burst), burst))
        if cut is not None:
            return False
        connection.sendall(b"0\r\n\r\n")
        return True


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_encode = json.JSONEncoder(separators=(",", ":")).encode


def _bursts(events: Iterator[bytes], cut: int | None) -> Iterator[bytes]:
    """The first event by itself (time to first token is real), then bursts of some kilobytes: few system calls."""
    waiting = bytearray()
    for position, event in enumerate(events):
        if position == cut:
            break
        waiting += event
        if position == 0 or len(waiting) >= _BURST:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


def _response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
    content = _encode(body).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status in _KNOWN else 'Error'}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n{extra}\r\n".encode() + content


_KNOWN = frozenset(map(int, HTTPStatus))


def _requests(connection: socket.socket) -> Iterator[_Request]:
    """Requests of one keep-alive connection, until the client closes it or sends what is no HTTP/1.1."""
    waiting = b""
    while True:
        while (end := waiting.find(b"\r\n\r\n")) < 0:
            more = connection.recv(65536)
            if not more or len(waiting) > _MAX_HEAD:
                return
            waiting += more
        method, path, headers = _head(waiting[:end])
        length = int(headers.get("content-length", "0"))
        if not method or length > _MAX_BODY or "transfer-encoding" in headers:
            connection.sendall(_response(400, error_body("This server wants HTTP/1.1 with a content-length.", 400)))
            return
        if headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts, have = [waiting[end + 4 :]], len(waiting) - end - 4
        while have < length:
            more = connection.recv(min(1 << 20, max(65536, length - have)))
            if not more:
                return
            parts.append(more)
            have += len(more)
        content = b"".join(parts)
        waiting = content[length:]
        yield _Request(method, path, headers, content[:length])
        if headers.get("connection", "").lower() == "close":
            return


def _head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    path, _, version = rest.rpartition(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    sound = version.startswith("HTTP/1.") and headers.get("content-length", "0").isdecimal()
    return (method, path, headers) if sound else ("", "", {})


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except ValueError:
        raise BadRequest("We could not parse the JSON body of your request.") from None
    if not isinstance(parsed, dict):
        raise BadRequest("The JSON body of your request is no object.")
    return parsed


def _with_metadata(hints: Hints, body: Mapping[str, Any]) -> Hints:
    metadata = body.get("metadata")
    if hints.output_tokens is not None or not isinstance(metadata, Mapping) or "words" not in metadata:
        return hints
    return Hints(_whole(metadata, "words"), hints.input_tokens)


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    if not str(text).isdecimal():
        raise BadRequest(f"{name}: {text!r} is no whole number.", param=name)
    return int(text)


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already, by the other side or by its own thread
