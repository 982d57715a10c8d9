"""A server on the loopback interface that answers what a test tells it to, where `FakeProvider` has no endpoint of its own."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

CANARY = "canary-7c1e-never-leaves-the-process"
"""Stands in every prompt and every answer; no span, ledger row or log may have it."""

Answer = Any
"""A dict is JSON, a list is server-sent events (`(event, data)` or data), a number is an error status, `(content type, bytes or pieces)`
goes out as it is, a function makes one of these."""


class Wire:
    """Answers by method and path (without query), and remembers what was asked.

    Attributes:
        answers: `"POST /v1/messages"` -> answer. asked: (method and path, body) in order.
        during: called while a request is being answered. cut: server-sent events before the connection breaks; None for all of them.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, bytes]] = []
        self.during: Callable[[], None] = lambda: None
        self.cut: int | None = None
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, Iterator[bytes]]:
        """(status, content type, pieces of the body)."""
        key = f"{method} {path}"
        self.asked.append((key, body))
        self.during()
        found = self.answers.get(key)
        if callable(found):
            found = found()
        if found is None:
            return 404, "application/json", iter([b'{"error": {"message": "nothing here"}}'])
        if isinstance(found, int):
            return found, "application/json", iter([_REFUSAL])
        if isinstance(found, tuple):
            kind, content = found
            return 200, kind, iter([content] if isinstance(content, bytes) else content)
        if isinstance(found, list):
            return 200, "text/event-stream", map(sent, found)
        return 200, "application/json", iter([json.dumps(found).encode()])


_REFUSAL = b'{"error": {"message": "scripted", "type": "scripted"}, "message": "scripted"}'


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what some tests are about."""


def sent(event: Any) -> bytes:
    """A server-sent event as bytes: `(name, data)` or data."""
    name, data = event if isinstance(event, tuple) else ("", event)
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def _handler(wire: Wire) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # headers and the first piece in one packet

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            status, kind, pieces = wire.answer(self.command, urlsplit(self.path).path, self.rfile.read(length))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("transfer-encoding", "chunked")
            if status >= 400:
                self.send_header("retry-after-ms", "1")  # whoever tries again by himself does so at once
            self.end_headers()
            for number, piece in enumerate(pieces):
                if kind == "text/event-stream" and number == wire.cut:
                    self.close_connection = True
                    return
                if piece:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


class SocketWire:
    """A WebSocket server on the loopback interface, for sessions. It needs the package `websockets`.

    Attributes:
        greeting: what it says when a session opens. replies: what it says after each message that it gets; `"close"` ends the session.
        got: what was sent to it. base: host and port.
    """

    def __init__(self) -> None:
        serve = importlib.import_module("websockets.sync.server").serve  # only whoever tries sessions has it
        self.greeting: list[Any] = []
        self.replies: list[list[Any]] = []
        self.got: list[Any] = []
        self._server = serve(self._session, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.base = f"127.0.0.1:{self._server.socket.getsockname()[1]}"

    def __enter__(self) -> SocketWire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()

    def _session(self, connection: Any) -> None:
        for message in self.greeting:
            connection.send(json.dumps(message).encode())
        for message in connection:
            self.got.append(json.loads(message))
            for reply in self.replies.pop(0) if self.replies else []:
                if reply == "close":
                    connection.close()
                    return
                connection.send(json.dumps(reply).encode())
