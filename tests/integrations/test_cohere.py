"""Every endpoint and shape of a call through the real cohere clients of both API versions: billed units, one row."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

cohere = pytest.importorskip("cohere")
httpx = pytest.importorskip("httpx")

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.errors import BudgetExceeded  # noqa: E402
from aifinops.testing import ScriptedProvider  # noqa: E402

CANARY = "canary-7c1f the weather is fine"
MODEL = "command-a-03-2025"
UNITS = {"input_tokens": 1000.0, "output_tokens": 200.0}
USAGE = {"billed_units": UNITS, "tokens": {"input_tokens": 1496.0, "output_tokens": 215.0}}
META = {"api_version": {"version": "1"}, **USAGE}
TOLD = {"input_tokens": 1000, "output_tokens": 200}
CHAT = {
    "id": "c-1", "finish_reason": "COMPLETE", "usage": USAGE,
    "message": {"role": "assistant", "content": [{"type": "text", "text": CANARY}]},
}  # fmt: skip
FIRST_CHAT = {"text": CANARY, "generation_id": "g-1", "response_id": "r-1", "finish_reason": "COMPLETE", "meta": META}
GENERATED = {"id": "g-1", "prompt": CANARY, "generations": [{"id": "g-2", "text": CANARY}], "meta": META}
RANKED = {
    "id": "k-1",
    "results": [{"index": 0, "relevance_score": 0.9}],
    "meta": {"billed_units": {"search_units": 2.0}},
}
EMBEDDED = {
    "id": "e-1", "embeddings": {"float": [[0.5]]}, "texts": [CANARY], "response_type": "embeddings_by_type",
    "meta": {"billed_units": {"input_tokens": 5000.0}},
}  # fmt: skip
CLASSIFIED = {
    "id": "l-1", "meta": {"billed_units": {"classifications": 3.0}},
    "classifications": [
        {"id": "1", "input": CANARY, "prediction": "a", "predictions": ["a"], "confidence": 1.0, "confidences": [1.0], "labels": {},
         "classification_type": "single-label"}
    ],
}  # fmt: skip
ANSWERS = {
    "/v2/chat": CHAT, "/v1/chat": FIRST_CHAT, "/v1/generate": GENERATED, "/v1/rerank": RANKED, "/v2/rerank": RANKED,
    "/v1/embed": EMBEDDED, "/v2/embed": EMBEDDED, "/v1/classify": CLASSIFIED,
}  # fmt: skip


def sent(*events: dict[str, Any]) -> str:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


STREAM = sent(
    {"type": "message-start", "id": "c-1", "delta": {"message": {"role": "assistant", "content": []}}},
    {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "canary-7c1f the"}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": " weather is fine"}}}},
    {"type": "content-end", "index": 0},
    {"type": "message-end", "id": "c-1", "delta": {"finish_reason": "COMPLETE", "usage": USAGE}},
)
FIRST_STREAM = "".join(
    json.dumps(event) + "\n"
    for event in (
        {"is_finished": False, "event_type": "stream-start", "generation_id": "g-1"},
        {"is_finished": False, "event_type": "text-generation", "text": "canary-7c1f the"},
        {"is_finished": False, "event_type": "text-generation", "text": " weather is fine"},
        {"is_finished": True, "event_type": "stream-end", "finish_reason": "COMPLETE", "response": FIRST_CHAT},
    )
)
SAID = [{"role": "user", "content": CANARY}]
EXAMPLES = [{"text": text, "label": label} for label in "ab" for text in "xy"]
Wanted = tuple[bool, Callable[[Any], Any], dict[str, Any], str, dict[str, Any], str]
SHAPES: dict[str, Wanted] = {
    "chat 2": (True, lambda c: c.chat, {"model": MODEL, "messages": SAID}, "chat", TOLD, "priced"),
    "chat 1": (False, lambda c: c.chat, {"model": MODEL, "message": CANARY}, "chat", TOLD, "priced"),
    "generate": (False, lambda c: c.generate, {"model": MODEL, "prompt": CANARY}, "text_completion", TOLD, "priced"),
    "rerank 2": (
        True, lambda c: c.rerank, {"model": "rerank-v3.5", "query": CANARY, "documents": [CANARY]}, "rerank",
        {"search_units": 2}, "unknown",
    ),
    "rerank 1": (
        False, lambda c: c.rerank, {"model": "rerank-v3.5", "query": CANARY, "documents": [CANARY]}, "rerank",
        {"search_units": 2}, "unknown",
    ),
    "embed 2": (
        True, lambda c: c.embed,
        {"model": "embed-v4.0", "texts": [CANARY], "input_type": "search_query", "embedding_types": ["float"]}, "embeddings",
        {"input_tokens": 5000}, "priced",
    ),
    "classify": (
        False, lambda c: c.classify, {"model": "embed-v4.0", "inputs": [CANARY], "examples": EXAMPLES}, "classification",
        {"classifications": 3}, "unknown",
    ),
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(ANSWERS) as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("cohere")
    yield
    af.uninstrument()


@pytest.fixture
def client(server: ScriptedProvider) -> Iterator[Callable[..., Any]]:
    """A maker of clients, which are closed after the test."""
    with ExitStack() as stack:

        def make(*, second: bool = True) -> Any:
            kind = cohere.ClientV2 if second else cohere.Client
            made = kind(api_key="test", base_url=server.url)
            stack.callback(made._client_wrapper.httpx_client.httpx_client.close)
            return made

        yield make


@asynccontextmanager
async def aclient(server: ScriptedProvider, *, second: bool = True) -> AsyncIterator[Any]:
    kind = cohere.AsyncClientV2 if second else cohere.AsyncClient
    made = kind(api_key="test", base_url=server.url)
    yield made
    await made._client_wrapper.httpx_client.httpx_client.aclose()


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def only() -> Charge:
    (charge,) = rows()
    assert "canary-7c1f" not in repr(charge)
    assert charge.provider == "cohere"
    return charge


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_an_endpoint_makes_one_exact_row(
    shape: str, colour: str, client: Callable[..., Any], server: ScriptedProvider
) -> None:
    """A call of any endpoint of both API versions, in both colours, is one row with the units that are billed."""
    second, method, arguments, operation, told, basis = SHAPES[shape]
    if colour == "sync":
        answer = method(client(second=second))(**arguments)
    else:
        async with aclient(server, second=second) as made:
            answer = await method(made)(**arguments)
    assert answer.id if hasattr(answer, "id") else answer.text
    charge = only()
    assert (charge.operation, dict(charge.quantities), charge.basis, charge.stream) == (operation, told, basis, False)
    assert charge.model == arguments["model"]


STREAMS = {
    "2": (True, {"model": MODEL, "messages": SAID}, "/v2/chat", STREAM, 6),
    "1": (False, {"model": MODEL, "message": CANARY}, "/v1/chat", FIRST_STREAM, 4),
}


@pytest.mark.parametrize("version", STREAMS)
def test_a_stream_is_read_as_it_passes(version: str, client: Callable[..., Any], server: ScriptedProvider) -> None:
    """Server-sent events of version 2 and lines of JSON of version 1: the same objects for the caller, and one exact row."""
    second, arguments, path, answer, number = STREAMS[version]
    server.answers[path] = answer
    af.uninstrument()
    bare = [repr(event) for event in client(second=second).chat_stream(**arguments)]
    af.instrument("cohere")
    assert [repr(event) for event in client(second=second).chat_stream(**arguments)] == bare
    assert len(bare) == number
    charge = only()
    assert (dict(charge.quantities), charge.stream, charge.basis) == (TOLD, True, "priced")


@pytest.mark.parametrize("version", STREAMS)
async def test_an_asynchronous_stream_is_read_as_it_passes(version: str, server: ScriptedProvider) -> None:
    """The same in the other colour."""
    second, arguments, path, answer, number = STREAMS[version]
    server.answers[path] = answer
    async with aclient(server, second=second) as made:
        assert len([event async for event in made.chat_stream(**arguments)]) == number
    assert (dict(only().quantities), only().stream) == (TOLD, True)


@pytest.mark.parametrize("version", STREAMS)
def test_a_cut_stream_is_an_estimate(version: str, client: Callable[..., Any], server: ScriptedProvider) -> None:
    """A connection that breaks is the library's own error for the caller and a marked estimate in the ledger."""
    second, arguments, path, answer, _ = STREAMS[version]
    server.answers[path] = answer
    server.cut = 6 if version == "2" else 3
    with pytest.raises(httpx.RemoteProtocolError):
        list(client(second=second).chat_stream(**arguments))
    charge = only()
    assert (charge.basis, charge.status) == ("estimated", "abandoned")
    assert charge.amount


def test_retries_are_one_charge(
    client: Callable[..., Any], server: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tries that were refused and one that was answered, one row is left."""
    from cohere.core import http_client

    monkeypatch.setattr(http_client.time, "sleep", lambda _: None)
    server.answers["/v2/chat"] = (503, 503, CHAT)
    client().chat(model=MODEL, messages=SAID)
    assert len(server.requests) == 3
    assert dict(only().quantities) == TOLD


def test_a_budget_refuses_before_anything_is_sent(client: Callable[..., Any], server: ScriptedProvider) -> None:
    """BudgetExceeded comes out of the library as it is."""
    with af.budget("$0.0000001"), pytest.raises(BudgetExceeded):
        client().chat(model=MODEL, messages=SAID, max_tokens=100)
    assert server.requests == []


def test_one_client_alone(client: Callable[..., Any]) -> None:
    """`instrument(client)` meters that client and no other."""
    af.uninstrument()
    ours, other = client(), client()
    af.instrument(ours)
    for made in (ours, other):
        made.chat(model=MODEL, messages=SAID)
    assert dict(only().quantities) == TOLD


def test_nothing_that_was_said_is_logged(client: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """Neither the prompt nor the answer is in our log."""
    with caplog.at_level(logging.DEBUG, logger="aifinops"):
        client().chat(model=MODEL, messages=SAID)
    assert "canary-7c1f" not in caplog.text
