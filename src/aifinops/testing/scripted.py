"""A server on the loopback interface that answers what it is told to: for trying a provider's own client library.

with ScriptedProvider({"/v1/chat": {"text": "hello", "usage": {"tokens": 3}}}) as server:
    client = somebodys_sdk.Client(base_url=server.url)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

__all__ = ["Request", "ScriptedProvider"]


@dataclass(frozen=True, slots=True)
class Request:
    """What arrived.

    Attributes:
        path: with the query. headers: names in small letters. body: parsed where it is JSON, else the bytes.
    """

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Any = field(repr=False)


class ScriptedProvider:
    """Answers each path with what is written for it. Use it with `with`.

    Args:
        answers: path without query -> answer. A dict or a list is JSON. Text is a stream: server-sent events when it begins like one, else
            one JSON object a line. An int is an error status. A tuple is one answer after another, of which the last stays.
        piece: bytes of a stream that are sent at once.
        cut: streams break after so many pieces; None for never.
    """

    def __init__(self, answers: Mapping[str, Any], *, piece: int = 64, cut: int | None = None) -> None:
        self.answers = dict(answers)
        self.piece, self.cut = piece, cut
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.script = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="scripted-provider", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _next(self, request: Request) -> Any:
        path = request.path.partition("?")[0]
        with self._lock:
            self.requests.append(request)
            answer = self.answers.get(path, 404)
            if isinstance(answer, tuple):
                answer, *rest = answer
                if rest:
                    self.answers[path] = tuple(rest)
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    script: ScriptedProvider


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        content = self._content()
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.loads(content) if content and "json" in headers.get("content-type", "") else content
        answer = self.server.script._next(Request(self.path, headers, body))
        try:
            if isinstance(answer, int):
                self._whole(answer, {"error": {"message": "scripted", "type": "scripted"}, "message": "scripted"})
            elif isinstance(answer, str):
                self._stream(answer)
            else:
                self._whole(200, answer)
        except OSError:
            self.close_connection = True  # the client has hung up: an abandoned stream

    do_GET = do_POST

    def _content(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _whole(self, status: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, answer: str) -> None:
        content, script = answer.encode(), self.server.script
        events = answer.startswith(("data:", "event:", ":"))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if events else "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, at in enumerate(range(0, len(content), script.piece)):
            if number == script.cut:
                self.close_connection = True
                return
            piece = content[at : at + script.piece]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
