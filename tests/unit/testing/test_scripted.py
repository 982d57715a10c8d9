"""The server that answers what it is told to."""

from __future__ import annotations

import http.client
import json

import pytest

from aifinops.testing import ScriptedProvider


def post(server: ScriptedProvider, path: str, body: object) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type", ""), answer.read()
    finally:
        connection.close()


def test_each_kind_of_answer() -> None:
    """JSON, events, lines, an error status, one after another, and a path that nobody wrote an answer for."""
    script = {"/a": {"x": 1}, "/e": 'data: {"x": 1}\n\n', "/l": '{"x": 1}\n', "/s": 429, "/t": (500, {"x": 1})}
    with ScriptedProvider(script, piece=3) as server:
        assert post(server, "/a?q=1", {"said": 1}) == (200, "application/json", b'{"x": 1}')
        assert post(server, "/e", {}) == (200, "text/event-stream", b'data: {"x": 1}\n\n')
        assert post(server, "/l", {}) == (200, "application/x-ndjson", b'{"x": 1}\n')
        assert post(server, "/s", {})[0] == 429
        assert [post(server, "/t", {})[0] for _ in range(3)] == [500, 200, 200]
        assert post(server, "/none", {})[0] == 404
        assert server.requests[0].path == "/a?q=1"
        assert server.requests[0].body == {"said": 1}


def test_a_stream_can_be_cut() -> None:
    """The connection breaks after so many pieces."""
    with ScriptedProvider({"/l": "x" * 100}, piece=10, cut=2) as server, pytest.raises(http.client.IncompleteRead):
        post(server, "/l", {})
