"""Every endpoint and shape of a call through the real mistralai client: one exact row, the same answer, nothing said kept."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("mistralai")

import aifinops as af
from aifinops import runtime
from aifinops.charges import Charge
from aifinops.errors import BudgetExceeded
from aifinops.testing import ScriptedProvider

CANARY = "canary-7c1f the weather is fine"
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 200,
    "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 400},
}
MESSAGE = {"role": "assistant", "content": CANARY}
CHAT = {
    "id": "c1", "object": "chat.completion", "created": 1_790_000_000, "model": "mistral-small-latest", "usage": USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": MESSAGE}],
}  # fmt: skip
CONVERSATION = {
    "object": "conversation.response", "conversation_id": "conv_1", "usage": {**USAGE, "connector_tokens": 300},
    "outputs": [{"type": "message.output", "object": "entry", "id": "m1", "role": "assistant", "content": CANARY,
                 "model": "mistral-medium-latest"}],
}  # fmt: skip
EMBEDDED = {
    "id": "e1", "object": "list", "model": "mistral-embed", "usage": {"prompt_tokens": 15, "completion_tokens": 0, "total_tokens": 15},
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
}  # fmt: skip
OCR = {
    "model": "mistral-ocr-latest", "usage_info": {"pages_processed": 12, "doc_size_bytes": 9},
    "pages": [{"index": 0, "markdown": CANARY, "images": [], "dimensions": None}],
}  # fmt: skip
HEARD = {
    "model": "voxtral-mini-latest", "text": CANARY, "language": "en", "segments": [],
    "usage": {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3264, "completion_tokens": 635},
}  # fmt: skip
JUDGED = {"id": "m1", "model": "mistral-moderation-latest", "results": [{"categories": {}, "category_scores": {}}]}


def chunk(content: str, **more: Any) -> dict[str, Any]:
    delta = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": None}
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "mistral-small-latest",
        "choices": [delta],
        **more,
    }


def events(*parts: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"


STREAM = events(chunk("canary-7c1f"), chunk(" the weather"), chunk(" is fine", usage=USAGE))
TOLD = {"input_tokens": 600, "cache_read_tokens": 400, "output_tokens": 200}
ANSWERS = {
    "/v1/chat/completions": CHAT, "/v1/fim/completions": CHAT, "/v1/agents/completions": CHAT, "/v1/conversations": CONVERSATION,
    "/v1/conversations/conv_1": CONVERSATION, "/v1/embeddings": EMBEDDED, "/v1/ocr": OCR, "/v1/audio/transcriptions": HEARD,
    "/v1/moderations": JUDGED,
}  # fmt: skip
SAID = [{"role": "user", "content": CANARY}]
Wanted = tuple[Callable[[Any], Any], str, dict[str, Any], str]
SHAPES: dict[str, Wanted] = {
    "chat": (lambda c: (c.chat.complete, {"model": "mistral-small-latest", "messages": SAID}), "chat", TOLD, "priced"),
    "fim": (lambda c: (c.fim.complete, {"model": "codestral-latest", "prompt": CANARY}), "text_completion", TOLD, "priced"),
    "agents": (lambda c: (c.agents.complete, {"agent_id": "ag_1", "messages": SAID}), "invoke_agent", TOLD, "priced"),
    "conversation": (
        lambda c: (c.beta.conversations.start, {"model": "mistral-medium-latest", "inputs": CANARY}), "chat",
        {"input_tokens": 900, "cache_read_tokens": 400, "output_tokens": 200}, "priced",
    ),
    "conversation goes on": (
        lambda c: (c.beta.conversations.append, {"conversation_id": "conv_1", "inputs": CANARY}), "chat",
        {"input_tokens": 900, "cache_read_tokens": 400, "output_tokens": 200}, "unknown",
    ),
    "embeddings": (
        lambda c: (c.embeddings.create, {"model": "mistral-embed", "inputs": [CANARY]}), "embeddings", {"input_tokens": 15}, "priced",
    ),
    "ocr": (
        lambda c: (c.ocr.process, {"model": "mistral-ocr-latest", "document": {"type": "document_url", "document_url": "https://x.y"}}),
        "ocr", {"pages": 12}, "priced",
    ),
    "transcription": (
        lambda c: (c.audio.transcriptions.complete, {"model": "voxtral-mini-latest", "file": {"file_name": "a", "content": b"x"}}),
        "transcription", {"audio_seconds": 203}, "priced",
    ),
}  # fmt: skip


def mistral() -> Any:
    for home in ("mistralai.client", "mistralai"):
        try:
            return importlib.import_module(home).Mistral
        except (ImportError, AttributeError):
            continue
    raise AssertionError("no class Mistral")


@pytest.fixture
def server() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(ANSWERS) as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("mistral")
    yield
    af.uninstrument()


@pytest.fixture
def client(server: ScriptedProvider) -> Iterator[Any]:
    with mistral()(api_key="test", server_url=server.url) as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def only() -> Charge:
    (charge,) = rows()
    assert "canary-7c1f" not in repr(charge)
    assert charge.provider == "mistral_ai"
    return charge


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_an_endpoint_makes_one_exact_row(shape: str, colour: str, client: Any) -> None:
    """A call of any endpoint, in both colours, is one row with the buckets of the answer."""
    made, operation, told, basis = SHAPES[shape]
    function, arguments = made(client)
    if colour == "async":
        function = getattr(function.__self__, f"{function.__name__}_async")

        async def call() -> Any:
            async with client:
                return await function(**arguments)

        answer = asyncio.run(call())
    else:
        answer = function(**arguments)
    assert answer is not None
    charge = only()
    assert (charge.operation, dict(charge.quantities), charge.basis, charge.stream) == (operation, told, basis, False)


def test_the_cost_is_that_of_the_list(client: Any) -> None:
    """Pages and minutes are priced by the page and the minute."""
    client.ocr.process(model="mistral-ocr-latest", document={"type": "document_url", "document_url": "https://x.y"})
    assert Decimal(only().amount or 0) / 1_000_000_000 == Decimal("0.048")


def test_an_answer_without_counts_is_estimated(client: Any) -> None:
    """A moderation tells no usage and has no price in the list: the row says that it is not known, and never zero."""
    client.classifiers.moderate(model="mistral-moderation-latest", inputs=[CANARY])
    charge = only()
    assert (charge.operation, charge.basis, charge.amount) == ("moderation", "unknown", None)


def test_a_stream_is_read_as_it_passes(client: Any, server: ScriptedProvider) -> None:
    """The events that the caller gets are the same, and the row is that of the last one's usage."""
    server.answers["/v1/chat/completions"] = STREAM
    af.uninstrument()
    bare = [event.model_dump_json() for event in client.chat.stream(model="mistral-small-latest", messages=SAID)]
    af.instrument("mistral")
    seen = [event.model_dump_json() for event in client.chat.stream(model="mistral-small-latest", messages=SAID)]
    assert seen == bare
    charge = only()
    assert dict(charge.quantities) == TOLD
    assert (charge.stream, charge.basis, charge.status, charge.response_id) == (True, "priced", "ok", "c1")


async def test_an_asynchronous_stream_is_read_as_it_passes(client: Any, server: ScriptedProvider) -> None:
    """The same in the other colour."""
    server.answers["/v1/chat/completions"] = STREAM
    async with client:
        stream = await client.chat.stream_async(model="mistral-small-latest", messages=SAID)
        assert len([event async for event in stream]) == 3
    charge = only()
    assert (dict(charge.quantities), charge.stream) == (TOLD, True)


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_an_abandoned_stream_is_an_estimate(how: str, client: Any, server: ScriptedProvider) -> None:
    """Who stops reading half-way gets a marked estimate of what came, never zero and never a second row."""
    server.answers["/v1/chat/completions"] = STREAM
    server.piece = 16
    stream = client.chat.stream(model="mistral-small-latest", messages=SAID, max_tokens=50)
    next(iter(stream))
    if how == "closed":
        stream.response.close()
    del stream
    gc.collect()
    charge = only()
    assert (charge.basis, charge.status) == ("estimated", "abandoned")
    assert charge.amount
    assert charge.quantities["output_tokens"] > 0


def test_a_retry_is_charged_once(client: Any, server: ScriptedProvider) -> None:
    """Tries that the provider refused cost nothing; the one that it answered is one row."""
    server.answers["/v1/chat/completions"] = (500, CHAT)
    retries = importlib.import_module(f"{mistral().__module__.rpartition('.')[0]}.utils.retries")
    client.chat.complete(
        model="mistral-small-latest", messages=SAID,
        retries=retries.RetryConfig("backoff", retries.BackoffStrategy(1, 2, 1.0, 1000), False),
    )  # fmt: skip
    assert len(server.requests) == 2
    assert dict(only().quantities) == TOLD


def raised(client: Any) -> tuple[type, str]:
    try:
        client.chat.complete(model="mistral-small-latest", messages=SAID)
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("nothing was raised")


def test_an_error_is_the_users_own(client: Any, server: ScriptedProvider) -> None:
    """What the library raises is the same with and without us, and an error status is no row."""
    server.answers["/v1/chat/completions"] = 422
    seen = raised(client)
    af.uninstrument()
    assert seen == raised(client)
    assert "scripted" in seen[1]
    assert rows() == []


def test_a_budget_refuses_before_anything_is_sent(client: Any, server: ScriptedProvider) -> None:
    """BudgetExceeded comes out of the library as it is."""
    with af.budget("$0.0000001"), pytest.raises(BudgetExceeded):
        client.chat.complete(model="mistral-small-latest", messages=SAID, max_tokens=100)
    assert server.requests == []


def test_one_client_alone(server: ScriptedProvider) -> None:
    """`instrument(client)` meters that client and no other."""
    af.uninstrument()
    with (
        mistral()(api_key="test", server_url=server.url) as ours,
        mistral()(api_key="test", server_url=server.url) as other,
    ):
        af.instrument(ours)
        for made in (ours, other):
            made.chat.complete(model="mistral-small-latest", messages=SAID)
    assert dict(only().quantities) == TOLD


def test_uninstrument_restores_httpx_and_the_library(client: Any) -> None:
    """After `uninstrument` the very functions are back, and a call makes no row."""
    kind = type(client.sdk_configuration.client)
    client.chat.complete(model="mistral-small-latest", messages=SAID)
    assert hasattr(kind.send, "__wrapped__")
    af.uninstrument()
    assert not hasattr(kind.send, "__wrapped__")
    assert not any(hasattr(base.__dict__.get("do_request"), "__wrapped__") for base in type(client.chat).__mro__)
    client.chat.complete(model="mistral-small-latest", messages=SAID)
    assert len(rows()) == 1
