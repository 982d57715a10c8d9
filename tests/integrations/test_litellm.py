"""litellm's paths to several providers: one row for each answer that was paid for, in the provider's own words."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network at import
litellm = pytest.importorskip("litellm")

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.errors import BudgetExceeded  # noqa: E402
from aifinops.integrations.passing import finish_open_streams  # noqa: E402
from aifinops.testing import ScriptedProvider  # noqa: E402
from aifinops.testing.wire import Wire  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # litellm's own, of which there are many

OLD = tuple(map(int, version("litellm").split(".")[:2])) < (1, 100)
CANARY = "canary-7c1f the weather is fine"
OPENAI = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1_790_000_000, "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": CANARY}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200, "prompt_tokens_details": {"cached_tokens": 600}},
}  # fmt: skip
CLAUDE_USAGE = {
    "input_tokens": 100, "cache_read_input_tokens": 500, "cache_creation_input_tokens": 400, "output_tokens": 200,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 300},
}  # fmt: skip
CLAUDE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5-20250929", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": CANARY}], "usage": CLAUDE_USAGE,
}  # fmt: skip
GEMINI = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": CANARY}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 100, "thoughtsTokenCount": 400, "totalTokenCount": 1500},
    "modelVersion": "gemini-2.5-flash", "responseId": "r1",
}  # fmt: skip
OLLAMA = {
    "model": "llama3.2", "created_at": "2026-11-10T12:00:00Z", "done": True, "done_reason": "stop", "prompt_eval_count": 26,
    "eval_count": 282, "message": {"role": "assistant", "content": CANARY},
}  # fmt: skip
EMBEDDED = {
    "object": "list", "model": "text-embedding-3-small", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "usage": {"prompt_tokens": 15, "total_tokens": 15},
}  # fmt: skip


def events(*parts: dict[str, Any], named: bool = False) -> str:
    return "".join(
        f"{'event: ' + part['type'] + chr(10) if named else ''}data: {json.dumps(part)}\n\n" for part in parts
    )


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None,
    }  # fmt: skip


OPENAI_STREAM = (
    events(
        chunk({"role": "assistant", "content": "canary-7c1f"}),
        chunk({}, "stop"),
        {**chunk({}), "choices": [], "usage": OPENAI["usage"]},
    )
    + "data: [DONE]\n\n"
)
CLAUDE_STREAM = events(
    {"type": "message_start", "message": {**CLAUDE, "content": [], "stop_reason": None, "usage": {**CLAUDE_USAGE, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": CANARY}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 200}},
    {"type": "message_stop"}, named=True,
)  # fmt: skip
GEMINI_STREAM = events({**GEMINI, "usageMetadata": {"promptTokenCount": 1000}}, GEMINI)
OLLAMA_STREAM = (
    json.dumps({"model": "llama3.2", "message": {"role": "assistant", "content": "canary"}, "done": False})
    + "\n"
    + json.dumps(OLLAMA)
    + "\n"
)

PATHS: dict[str, tuple[str, str, str, Any, str, dict[str, Any], str]] = {
    # name: model, path below the server, path that is asked, answer, stream, provider, told, basis
    "openai": ("openai/gpt-4o", "/v1", "/v1/chat/completions", OPENAI, OPENAI_STREAM,
               {"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 200}, "openai"),
    "anthropic": ("anthropic/claude-sonnet-4-5-20250929", "", "/v1/messages", CLAUDE, CLAUDE_STREAM,
                  {"input_tokens": 100, "cache_read_tokens": 500, "cache_write_tokens": 100, "cache_write_1h_tokens": 300,
                   "output_tokens": 200}, "anthropic"),
    "gemini": ("gemini/gemini-2.5-flash", "", "generateContent", GEMINI, GEMINI_STREAM,
               {"input_tokens": 1000, "output_tokens": 100, "reasoning_tokens": 400}, "gcp.gemini"),
    "ollama": ("ollama_chat/llama3.2", "", "/api/chat", OLLAMA, OLLAMA_STREAM,
               {"input_tokens": 26, "output_tokens": 282}, "ollama"),
}  # fmt: skip
LEFT: list[Any] = []
KINDS = (socket.socket, asyncio.Task)
SAID = [{"role": "user", "content": CANARY}]


@pytest.fixture
def server() -> Iterator[ScriptedProvider]:
    with ScriptedProvider({}) as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("litellm")
    yield
    af.uninstrument()


@pytest.fixture(autouse=True, scope="module")
def left() -> Iterator[None]:
    """Keep what litellm leaves open."""
    yield
    # It leaves connections and tasks of a loop that has ended; they may live on, but not be an error of some later test.
    LEFT.extend(found for found in gc.get_objects() if type(found) in KINDS or isinstance(found, asyncio.BaseTransport))


def arguments(name: str, server: ScriptedProvider, *, stream: bool = False) -> dict[str, Any]:
    """What `completion` is called with, after the server was told its answer."""
    model, below, path, answer, streamed, _, _ = PATHS[name]
    base = f"{server.url}{below}"
    if path == "generateContent":
        path = f"/models/gemini-2.5-flash:{'streamGenerateContent' if stream else path}"
        base += "/models/gemini-2.5-flash"  # older versions add what is asked for, newer ones the whole path
        server.answers[f"/models/gemini-2.5-flash{path}"] = streamed if stream else answer
    server.answers[path] = streamed if stream else answer
    return {"model": model, "messages": SAID, "api_base": base, "api_key": "test", "stream": stream, "num_retries": 0}


def ended() -> None:
    """Nobody holds the stream any more; older versions keep the last one for their own log until the process ends."""
    gc.collect()
    if OLD:
        finish_open_streams()


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def only(name: str) -> Charge:
    (charge,) = rows()
    assert "canary-7c1f" not in repr(charge)
    assert (charge.provider, dict(charge.quantities)) == (PATHS[name][6], PATHS[name][5])
    return charge


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("beside", ["alone", "with openai"])
def test_a_completion_is_one_row(name: str, beside: str, server: ScriptedProvider) -> None:
    """Each path is one row in the provider's own words, also where the openai library is metered as well."""
    if beside == "with openai":
        af.instrument("openai")
    assert litellm.completion(**arguments(name, server)).choices[0].message.content == CANARY
    assert len(server.requests) == 1
    assert not only(name).stream


@pytest.mark.parametrize("name", PATHS)
async def test_an_asynchronous_completion_is_one_row(name: str, server: ScriptedProvider) -> None:
    """The same in the other colour."""
    await litellm.acompletion(**arguments(name, server))
    only(name)


@pytest.mark.parametrize("name", PATHS)
def test_a_stream_keeps_its_class_and_is_one_row(name: str, server: ScriptedProvider) -> None:
    """The wrapper of streams is litellm's own, and the row has the usage of the end."""
    stream = litellm.completion(**arguments(name, server, stream=True))
    assert type(stream) is litellm.CustomStreamWrapper
    assert "canary" in "".join(part.choices[0].delta.content or "" for part in stream)
    del stream
    ended()
    assert only(name).stream


@pytest.mark.parametrize("name", PATHS)
async def test_an_asynchronous_stream_is_one_row(name: str, server: ScriptedProvider) -> None:
    """The same in the other colour."""
    stream = await litellm.acompletion(**arguments(name, server, stream=True))
    assert len([part async for part in stream]) > 0
    del stream
    ended()
    only(name)


@pytest.mark.parametrize(("answered", "searches"), [("gemini-2.5-flash", 1), ("gemini-3-flash-preview", 3)])
def test_grounding_is_counted_by_the_generation_that_answered(
    answered: str, searches: int, server: ScriptedProvider
) -> None:
    """Three searches of one prompt: one grounded prompt before Gemini 3, and three searches since."""
    call = arguments("gemini", server)
    found = {**GEMINI["candidates"][0], "groundingMetadata": {"webSearchQueries": ["a", "b", "c"]}}
    for path in list(server.answers):
        server.answers[path] = {**GEMINI, "modelVersion": answered, "candidates": [found]}
    litellm.completion(**call)
    (charge,) = rows()
    assert charge.quantities["web_search_requests"] == searches


def test_an_embedding_is_one_row(server: ScriptedProvider) -> None:
    """Other functions go the same way."""
    server.answers["/v1/embeddings"] = EMBEDDED
    litellm.embedding(
        model="openai/text-embedding-3-small", input=[CANARY], api_base=f"{server.url}/v1", api_key="test"
    )
    (charge,) = rows()
    assert (charge.operation, dict(charge.quantities), charge.basis) == ("embeddings", {"input_tokens": 15}, "priced")


def test_a_fallback_is_charged_to_who_answered(server: ScriptedProvider) -> None:
    """A model that refuses is no row; the one that litellm falls back to is."""
    asked = arguments("anthropic", server)
    other = arguments("openai", server)
    server.answers["/v1/messages"] = 500
    answer = litellm.completion(**asked, fallbacks=[{key: other[key] for key in ("model", "api_base", "api_key")}])
    assert answer.choices[0].message.content == CANARY
    only("openai")


def test_a_router_is_no_charge_of_its_own(server: ScriptedProvider) -> None:
    """A Router's retry after a refusal is one row of the call that was answered."""
    asked = arguments("anthropic", server)
    server.answers["/v1/messages"] = (500, CLAUDE)
    named = {"model_name": "claude", "litellm_params": {key: asked[key] for key in ("model", "api_base", "api_key")}}
    router = litellm.Router(model_list=[named], num_retries=1, retry_after=0)
    router.completion(model="claude", messages=SAID)
    assert len(server.requests) == 2
    only("anthropic")


def test_an_answer_that_nobody_was_asked_for_is_free(server: ScriptedProvider) -> None:
    """A mocked answer is no call of a provider."""
    litellm.completion(model="gpt-4o", messages=SAID, mock_response="hello")
    assert rows() == []


@pytest.mark.parametrize("name", PATHS)
def test_a_refused_budget_comes_out_as_itself(name: str, server: ScriptedProvider) -> None:
    """litellm makes an error of a provider of every exception: not of this one, and nothing is sent."""
    call = {**arguments(name, server), "max_tokens": 100}
    with af.budget("1 requests"):
        litellm.completion(**call)
        with pytest.raises(BudgetExceeded):
            litellm.completion(**call)
    assert sum("/api/show" not in request.path for request in server.requests) == 1


async def test_a_refused_budget_comes_out_of_a_coroutine_as_itself(server: ScriptedProvider) -> None:
    """The same in the other colour."""
    call = {**arguments("anthropic", server), "max_tokens": 100}
    with af.budget("1 requests"):
        await litellm.acompletion(**call)
        with pytest.raises(BudgetExceeded):
            await litellm.acompletion(**call)
    assert len(server.requests) == 1


# --- Bedrock ------------------------------------------------------------------------------------------------------------


def frame(name: str, said: dict[str, Any]) -> bytes:
    """One message of the encoding `application/vnd.amazon.eventstream`."""
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    head = b"".join(
        struct.pack(f"!B{len(key)}sBH{len(value)}s", len(key), key.encode(), 7, len(value), value.encode())
        for key, value in headers.items()
    )
    payload = json.dumps(said).encode()
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    prelude += struct.pack("!I", zlib.crc32(prelude))
    body = prelude + head + payload
    return body + struct.pack("!I", zlib.crc32(body))


def made(said: dict[str, Any]) -> bytes:
    """A piece of a maker's own stream in its frame."""
    return frame("chunk", {"bytes": base64.b64encode(json.dumps(said).encode()).decode(), "p": "abc"})


SONNET, NOVA = "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "us.amazon.nova-lite-v1:0"
LLAMA, TITAN = "meta.llama3-8b-instruct-v1:0", "amazon.titan-embed-text-v2:0"
CONVERSED_USAGE = {
    "inputTokens": 10,
    "outputTokens": 5,
    "totalTokens": 55,
    "cacheReadInputTokens": 30,
    "cacheWriteInputTokens": 10,
}
CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": CANARY}]}}, "stopReason": "end_turn", "usage": CONVERSED_USAGE,
    "metrics": {"latencyMs": 7},
}  # fmt: skip
CONVERSED_STREAM = [
    frame("messageStart", {"role": "assistant"}),
    *(frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}) for text in ("canary", "-7c1f ", "the ") * 10),
    frame("contentBlockStop", {"contentBlockIndex": 0}), frame("messageStop", {"stopReason": "end_turn"}),
    frame("metadata", {"usage": CONVERSED_USAGE, "metrics": {"latencyMs": 7}}),
]  # fmt: skip
METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 10, "outputTokenCount": 5, "invocationLatency": 7}}
LLAMA_STREAM = [
    *(made({"generation": text, "prompt_token_count": None, "generation_token_count": 1, "stop_reason": None}) for text in ("canary", "-7c1f")),
    made({"generation": "", "prompt_token_count": 10, "generation_token_count": 5, "stop_reason": "stop", **METRICS}),
]  # fmt: skip
COUNTED = {"input_tokens": 10, "cache_read_tokens": 30, "cache_write_tokens": 10, "output_tokens": 5}
PLAIN = {"input_tokens": 10, "output_tokens": 5}
BEDROCK: dict[str, tuple[str, str, Any, list[bytes], dict[str, int]]] = {
    # name: model of litellm, path, answer, stream, told
    "converse": (f"bedrock/converse/{NOVA}", f"/model/{NOVA}/converse", CONVERSED, CONVERSED_STREAM, COUNTED),
    "converse by itself": (f"bedrock/{SONNET}", f"/model/{SONNET}/converse", CONVERSED, CONVERSED_STREAM, COUNTED),
    "invoke claude": (
        f"bedrock/invoke/{SONNET}", f"/model/{SONNET}/invoke", CLAUDE,
        [made(json.loads(line[6:])) for line in CLAUDE_STREAM.splitlines() if line.startswith("data: ")], PATHS["anthropic"][5],
    ),
    "invoke llama": (
        f"bedrock/invoke/{LLAMA}", f"/model/{LLAMA}/invoke",
        {"generation": CANARY, "prompt_token_count": 10, "generation_token_count": 5, "stop_reason": "stop"}, LLAMA_STREAM, PLAIN,
    ),
    "invoke nova": (f"bedrock/invoke/{NOVA}", f"/model/{NOVA}/invoke", CONVERSED, CONVERSED_STREAM, COUNTED),
}  # fmt: skip
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region_name": "us-east-1"}


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


def on_bedrock(name: str, wire: Wire, *, stream: bool = False, piece: int = 0) -> dict[str, Any]:
    """What `completion` is called with, after the server was told its answer; `piece` splits the frames anew."""
    pytest.importorskip("boto3")
    model, path, answer, frames, _ = BEDROCK[name]
    if stream:
        data = b"".join(frames)
        pieces = [data[at : at + piece] for at in range(0, len(data), piece)] if piece else frames
        path += "-stream" if path.endswith("converse") else "-with-response-stream"
        answer = ("application/vnd.amazon.eventstream", pieces)
    for spelling in {path, quote(path)}:  # with a colon, or with what stands for one
        wire.answers[f"POST {spelling}"] = answer
    return {"model": model, "messages": SAID, "aws_bedrock_runtime_endpoint": wire.url, "stream": stream, "num_retries": 0, "max_tokens": 90, **KEYS}  # fmt: skip


def only_bedrock(name: str, wire: Wire) -> Charge:
    assert len(wire.asked) == 1, wire.asked
    (charge,) = rows()
    assert "canary-7c1f" not in repr(charge)
    model = BEDROCK[name][1].split("/")[2]
    assert (charge.provider, charge.model, dict(charge.quantities)) == ("aws.bedrock", model, BEDROCK[name][4])
    assert charge.basis != "estimated"
    assert charge.amount
    return charge


@pytest.mark.parametrize("name", BEDROCK)
@pytest.mark.parametrize("colour", ["plain", "async"])
def test_bedrock_by_either_operation_is_one_row(name: str, colour: str, wire: Wire) -> None:
    """Converse and InvokeModel, the latter in the form of each maker: the provider's own counts, written caches by their times too."""
    asked = on_bedrock(name, wire)
    if colour == "async":
        asyncio.run(litellm.acompletion(**asked))
    else:
        litellm.completion(**asked)
    assert not only_bedrock(name, wire).stream


@pytest.mark.parametrize(
    "name", [name for name in BEDROCK if name != "invoke nova"]
)  # of which litellm makes one answer
@pytest.mark.parametrize("piece", [0, 7], ids=["by frame", "in pieces of seven bytes"])
def test_a_bedrock_stream_says_its_usage(name: str, piece: int, wire: Wire) -> None:
    """The frames of an event stream tell it, however the bytes arrive: exact, and no estimate."""
    stream = litellm.completion(**on_bedrock(name, wire, stream=True, piece=piece))
    assert "canary" in "".join(part.choices[0].delta.content or "" for part in stream)
    del stream
    ended()
    assert only_bedrock(name, wire).stream


@pytest.mark.parametrize("name", ["converse", "invoke claude"])
async def test_an_asynchronous_bedrock_stream_says_its_usage(name: str, wire: Wire) -> None:
    """The same in the other colour."""
    stream = await litellm.acompletion(**on_bedrock(name, wire, stream=True))
    assert [part async for part in stream]
    del stream
    ended()
    only_bedrock(name, wire)


@pytest.mark.parametrize("name", ["converse", "invoke claude", "invoke llama"])
def test_a_bedrock_stream_that_breaks_is_an_estimate_within_its_limit(name: str, wire: Wire) -> None:
    """The usage comes last: without it what came is counted, and never above what was asked for at most."""
    asked = on_bedrock(name, wire, stream=True)

    def broken() -> Any:
        yield from BEDROCK[name][3][:-2]
        raise ConnectionResetError

    wire.answers = dict.fromkeys(wire.answers, lambda: ("application/vnd.amazon.eventstream", broken()))
    with pytest.raises(Exception):  # noqa: B017, PT011 - which of its many classes is litellm's to say
        list(litellm.completion(**asked))
    gc.collect()
    finish_open_streams()  # litellm keeps some of them for a log of its own
    (charge,) = rows()
    assert (charge.basis, charge.status) == ("estimated", "abandoned")
    assert 0 < charge.quantities["output_tokens"] <= 90


def test_an_embedding_of_bedrock_is_one_row(wire: Wire) -> None:
    """The operation is known by the model's name, and there is no output."""
    pytest.importorskip("boto3")
    for spelling in (TITAN, quote(TITAN)):
        wire.answers[f"POST /model/{spelling}/invoke"] = {"embedding": [0.5], "inputTextTokenCount": 8}
    litellm.embedding(model=f"bedrock/{TITAN}", input=[CANARY], aws_bedrock_runtime_endpoint=wire.url, **KEYS)
    (charge,) = rows()
    assert (charge.operation, charge.model, dict(charge.quantities)) == ("embeddings", TITAN, {"input_tokens": 8})
    assert charge.basis == "priced"
