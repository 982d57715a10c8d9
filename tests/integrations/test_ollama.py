"""Every shape of a call through the real ollama clients: counts of the last line of a stream, one row."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

ollama = pytest.importorskip("ollama")

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.testing import ScriptedProvider  # noqa: E402

CANARY = "canary-7c1f the weather is fine"
MODEL = "llama3.2"
AT = {"model": MODEL, "created_at": "2026-11-10T12:00:00Z"}
COUNTS = {
    "done": True, "done_reason": "stop", "total_duration": 9_000_000, "load_duration": 1_000_000, "prompt_eval_count": 26,
    "prompt_eval_duration": 4_000_000, "eval_count": 282, "eval_duration": 4_000_000,
}  # fmt: skip
TOLD = {"input_tokens": 26, "output_tokens": 282}


def lines(*parts: dict[str, Any]) -> str:
    return "".join(json.dumps({**AT, **part}) + "\n" for part in parts)


def said(content: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content}, "done": False}


CHAT_STREAM = lines(said("canary-7c1f the"), said(" weather"), said(" is fine"), {**said(""), **COUNTS})
GENERATE_STREAM = lines({"response": "canary-7c1f", "done": False}, {"response": "", **COUNTS})
ANSWERS = {
    "/api/chat": {**AT, **said(CANARY), **COUNTS},
    "/api/generate": {**AT, "response": CANARY, **COUNTS},
    "/api/embed": {
        "model": MODEL,
        "embeddings": [[0.5]],
        "total_duration": 9,
        "load_duration": 1,
        "prompt_eval_count": 8,
    },
    "/api/embeddings": {"embedding": [0.5]},
}
SAID = [{"role": "user", "content": CANARY}]
Shape = tuple[Callable[[Any], Any], str, dict[str, Any]]
SHAPES: dict[str, Shape] = {
    "chat": (lambda c: c.chat(model=MODEL, messages=SAID), "chat", TOLD),
    "generate": (lambda c: c.generate(model=MODEL, prompt=CANARY), "text_completion", TOLD),
    "embed": (lambda c: c.embed(model=MODEL, input=CANARY), "embeddings", {"input_tokens": 8}),
}


@pytest.fixture
def server() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(ANSWERS) as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("ollama")
    yield
    af.uninstrument()


@pytest.fixture
def client(server: ScriptedProvider) -> Iterator[Any]:
    made = ollama.Client(host=server.url)
    yield made
    made._client.close()


@pytest.fixture
async def aclient(server: ScriptedProvider) -> AsyncIterator[Any]:
    made = ollama.AsyncClient(host=server.url)
    yield made
    await made._client.aclose()


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def only() -> Charge:
    (charge,) = rows()
    assert "canary-7c1f" not in repr(charge)
    assert (charge.provider, charge.model) == ("ollama", MODEL)
    return charge


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_makes_one_exact_row(shape: str, client: Any) -> None:
    """A plain call is one row with the tokens that were evaluated; what they cost is not in any list."""
    call, operation, told = SHAPES[shape]
    assert call(client)
    charge = only()
    assert (charge.operation, dict(charge.quantities), charge.basis, charge.stream) == (
        operation,
        told,
        "unknown",
        False,
    )


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_asynchronous_call_makes_one_exact_row(shape: str, aclient: Any) -> None:
    """The same in the other colour."""
    call, operation, told = SHAPES[shape]
    assert await call(aclient)
    charge = only()
    assert (charge.operation, dict(charge.quantities)) == (operation, told)


def test_durations_are_kept_beside_the_counts(client: Any) -> None:
    """What a call costs on one's own machine is time: it is in the row's raw usage, in nanoseconds."""
    client.chat(model=MODEL, messages=SAID)
    assert only().raw["total_duration"] == 9_000_000


@pytest.mark.parametrize(("path", "answer"), [("/api/chat", CHAT_STREAM), ("/api/generate", GENERATE_STREAM)])
@pytest.mark.parametrize("piece", [7, 100_000])
def test_a_stream_of_lines_is_read_as_it_passes(
    path: str, answer: str, piece: int, client: Any, server: ScriptedProvider
) -> None:
    """The caller gets the same objects whatever pieces the lines come in; the row has the counts of the last line."""
    server.answers[path], server.piece = answer, piece

    def call() -> Any:
        if path == "/api/chat":
            return client.chat(model=MODEL, messages=SAID, stream=True)
        return client.generate(model=MODEL, prompt=CANARY, stream=True)

    af.uninstrument()
    bare = list(call())
    af.instrument("ollama")
    stream = call()
    assert rows() == []  # nothing has been sent yet
    assert list(stream) == bare
    charge = only()
    assert (dict(charge.quantities), charge.stream, charge.status) == (TOLD, True, "ok")


async def test_an_asynchronous_stream_is_read_as_it_passes(aclient: Any, server: ScriptedProvider) -> None:
    """The same in the other colour."""
    server.answers["/api/chat"] = CHAT_STREAM
    parts = [part async for part in await aclient.chat(model=MODEL, messages=SAID, stream=True)]
    assert len(parts) == 4
    assert (dict(only().quantities), only().stream) == (TOLD, True)


def test_a_stream_that_is_never_read_is_no_call(client: Any, server: ScriptedProvider) -> None:
    """The library sends when the first part is asked for: before that nothing was used, nothing is held and no row is made."""
    with af.budget("1000 requests", name="calls") as budget:
        stream = client.chat(model=MODEL, messages=SAID, stream=True)
        assert not budget.reserved
        del stream
        gc.collect()
    assert rows() == []
    assert server.requests == []


def test_an_abandoned_stream_is_counted_with_bounds(client: Any, server: ScriptedProvider) -> None:
    """Who stops reading half-way gets a row of what came, marked."""
    server.answers["/api/chat"], server.piece = CHAT_STREAM, 16
    stream = client.chat(model=MODEL, messages=SAID, stream=True)
    next(stream)
    del stream
    gc.collect()
    charge = only()
    assert charge.status == "abandoned"
    assert charge.quantities["output_tokens"] > 0


def test_an_error_inside_a_stream_is_the_users_own(client: Any, server: ScriptedProvider) -> None:
    """A line that says `error` is the library's exception; what came before it is a row, marked."""
    server.answers["/api/chat"] = lines(said("canary-7c1f")) + json.dumps({"error": "out of memory"}) + "\n"
    with pytest.raises(ollama.ResponseError, match="out of memory"):
        list(client.chat(model=MODEL, messages=SAID, stream=True))
    charge = only()
    assert charge.status == "abandoned"


def test_an_error_status_is_no_row(client: Any, server: ScriptedProvider) -> None:
    """A model that is not there was not run."""
    server.answers["/api/chat"] = 404
    with pytest.raises(ollama.ResponseError):
        client.chat(model=MODEL, messages=SAID)
    assert rows() == []


def test_other_requests_of_the_library_are_let_by(client: Any, server: ScriptedProvider) -> None:
    """Lists, deletions and pulls are no calls of a model."""
    server.answers |= {"/api/tags": {"models": []}, "/api/show": {"details": {}, "model_info": {}, "modified_at": None}}
    client.list()
    client.show(MODEL)
    assert len(server.requests) == 2
    assert rows() == []


def test_a_client_that_was_made_before_is_metered_as_well(server: ScriptedProvider, client: Any) -> None:
    """`ollama.chat` calls a client that was made at import, long before `instrument`."""
    af.uninstrument()
    chat = client.chat
    af.instrument("ollama")
    chat(model=MODEL, messages=SAID)
    assert dict(only().quantities) == TOLD


def test_one_client_alone(client: Any, server: ScriptedProvider) -> None:
    """`instrument(client)` meters that client and no other."""
    af.uninstrument()
    other = ollama.Client(host=server.url)
    af.instrument(client)
    for made in (client, other):
        made.chat(model=MODEL, messages=SAID)
    other._client.close()
    assert dict(only().quantities) == TOLD
