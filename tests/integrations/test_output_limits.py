"""What a caller allowed at most is the most that an estimate says, whatever library the stream came through and however it ended."""

from __future__ import annotations

import base64
import importlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aifinops as af
from aifinops import metering
from aifinops.charges import Charge
from aifinops.integrations import registry
from aifinops.integrations.paths import compiled
from aifinops.metering import Call
from aifinops.reading import Reading
from aifinops.testing import capture_charges
from aifinops.testing.wire import Wire

pytestmark = [
    pytest.mark.filterwarnings("ignore:The model 'claude:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # streams that are left are what this is about
]

MODEL = "counted"
ASK = [{"role": "user", "content": "hi"}]
NANO = 10**9


@dataclass(frozen=True)
class Library:
    """One client library: how a stream is asked for with a limit, and what its provider sends.

    `client` makes the client for an address; `stream` asks, with the limit and a number of answers; `events` frames pieces of text.
    """

    module: str
    name: str
    provider: str
    path: str
    client: Callable[[Any, str], Any]
    stream: Callable[[Any, int, int], Any]
    events: Callable[[list[str]], Any]
    model: str = MODEL
    answers: bool = False
    more: dict[str, Any] = field(default_factory=dict)


def sse(make: Callable[[str], Any]) -> Callable[[list[str]], Any]:
    return lambda pieces: (
        "text/event-stream",
        _broken(b"data: %s\n\n" % json.dumps(make(piece)).encode() for piece in pieces),
    )


def ndjson(make: Callable[[str], Any]) -> Callable[[list[str]], Any]:
    return lambda pieces: (
        "application/x-ndjson",
        _broken(json.dumps(make(piece)).encode() + b"\n" for piece in pieces),
    )


class Broken(Exception):
    """The server goes away in the middle of its answer."""


def _broken(pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield from pieces
    raise Broken


def chat(text: str) -> dict[str, Any]:
    delta = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [delta]}


def completion(text: str) -> dict[str, Any]:
    return {"id": "c1", "object": "text_completion", "created": 1, "model": MODEL, "choices": [{"index": 0, "text": text, "finish_reason": None}]}  # fmt: skip


def response(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text, "item_id": "i", "output_index": 0, "content_index": 0, "sequence_number": 1, "logprobs": []}  # fmt: skip


def message(pieces: list[str]) -> Any:
    begun = {
        "id": "m1", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in pieces
    ]
    events = [{"type": "message_start", "message": begun}, {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, *deltas]  # fmt: skip
    lines = (b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events)  # type: ignore[attr-defined]
    return "text/event-stream", _broken(lines)


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


def converse(pieces: list[str]) -> Any:
    frames = (frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}}) for piece in pieces)
    return "application/vnd.amazon.eventstream", _broken(frames)


def invoke(pieces: list[str]) -> Any:
    bodies = ({"generation": piece} for piece in pieces)
    frames = (frame("chunk", {"bytes": base64.b64encode(json.dumps(body).encode()).decode()}) for body in bodies)
    return "application/vnd.amazon.eventstream", _broken(frames)


def bedrock(boto3: Any, url: str) -> Any:
    from botocore.config import Config

    return boto3.client(
        "bedrock-runtime", region_name="us-east-1", endpoint_url=url, aws_access_key_id="test", aws_secret_access_key="test",
        config=Config(retries={"max_attempts": 1}),
    )  # fmt: skip


def stainless(kind: str, suffix: str = "", **more: Any) -> Callable[[Any, str], Any]:
    return lambda module, url: getattr(module, kind)(base_url=url + suffix, api_key="test", max_retries=0, **more)


def google(genai: Any, url: str) -> Any:
    return genai.Client(
        api_key="test", http_options={"base_url": url, "api_version": "v1beta", "retry_options": {"attempts": 1}}
    )


def asked(name: str) -> Callable[[Any, int, int], Any]:
    """`chat.completions` with one of the names of its limit."""
    return lambda c, limit, n: c.chat.completions.create(model=MODEL, messages=ASK, stream=True, n=n, **{name: limit})


def converse_stream(c: Any, limit: int, _: int) -> Any:
    said = [{"role": "user", "content": [{"text": "hi"}]}]
    return c.converse_stream(modelId=MODEL, messages=said, inferenceConfig={"maxTokens": limit})["stream"]


def invoke_stream(c: Any, limit: int, _: int) -> Any:
    body = json.dumps({"prompt": "hi", "max_gen_len": limit})
    return c.invoke_model_with_response_stream(modelId=MODEL, body=body)["body"]


def gemini(text: str) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}],
        "modelVersion": MODEL,
    }


def gemini_told(text: str) -> dict[str, Any]:
    return {**gemini(text), "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}}


def generate(c: Any, limit: int, n: int) -> Any:
    config = {"max_output_tokens": limit, "candidate_count": n}
    return c.models.generate_content_stream(model=MODEL, contents="hi", config=config)


def cohere_event(text: str) -> dict[str, Any]:
    return {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}}


LIBRARIES = {
    "openai max_tokens": Library("openai", "openai", "openai", "/chat/completions", stainless("OpenAI"), asked("max_tokens"), sse(chat), answers=True),
    "openai max_completion_tokens": Library(
        "openai", "openai", "openai", "/chat/completions", stainless("OpenAI"), asked("max_completion_tokens"), sse(chat), answers=True,
    ),
    "openai of a model that thinks": Library(
        "openai", "openai", "openai", "/chat/completions", stainless("OpenAI"),
        lambda c, limit, n: c.chat.completions.create(model="o3", messages=ASK, stream=True, max_completion_tokens=limit, n=n),
        sse(chat), model="o3", answers=True,
    ),
    "openai completions": Library(
        "openai", "openai", "openai", "/completions", stainless("OpenAI"),
        lambda c, limit, n: c.completions.create(model=MODEL, prompt="hi", stream=True, max_tokens=limit, n=n), sse(completion), answers=True,
    ),
    "openai responses": Library(
        "openai", "openai", "openai", "/responses", stainless("OpenAI"),
        lambda c, limit, _: c.responses.create(model=MODEL, input="hi", stream=True, max_output_tokens=limit), sse(response),
    ),
    "anthropic": Library(
        "anthropic", "anthropic", "anthropic", "/v1/messages", stainless("Anthropic"),
        lambda c, limit, _: c.messages.create(model=MODEL, messages=ASK, stream=True, max_tokens=limit), message,
    ),
    "anthropic thinking": Library(
        "anthropic", "anthropic", "anthropic", "/v1/messages", stainless("Anthropic"),
        lambda c, limit, _: c.messages.create(
            model=MODEL, messages=ASK, stream=True, max_tokens=limit, thinking={"type": "enabled", "budget_tokens": 1024}
        ), message,
    ),
    "groq": Library("groq", "groq", "groq", "/openai/v1/chat/completions", stainless("Groq"), asked("max_completion_tokens"), sse(chat), answers=True),
    "together": Library("together", "together", "together", "/v1/chat/completions", stainless("Together"), asked("max_tokens"), sse(chat), answers=True),
    "mistral": Library(
        "mistralai", "mistral", "mistral_ai", "/v1/chat/completions",
        lambda module, url: (getattr(module, "Mistral", None) or importlib.import_module("mistralai.client").Mistral)(api_key="test", server_url=url),
        lambda c, limit, n: c.chat.stream(model=MODEL, messages=ASK, max_tokens=limit, n=n), sse(chat), answers=True,
    ),
    "cohere": Library(
        "cohere", "cohere", "cohere", "/v2/chat", lambda module, url: module.ClientV2(api_key="test", base_url=url),
        lambda c, limit, _: c.chat_stream(model=MODEL, messages=ASK, max_tokens=limit), sse(cohere_event),
    ),
    "ollama": Library(
        "ollama", "ollama", "ollama", "/api/chat", lambda module, url: module.Client(host=url),
        lambda c, limit, _: c.chat(model=MODEL, messages=ASK, stream=True, options={"num_predict": limit}),
        ndjson(lambda text: {"model": MODEL, "message": {"role": "assistant", "content": text}, "done": False}),
    ),
    "google": Library("google.genai", "google", "gcp.gemini", f"/v1beta/models/{MODEL}:streamGenerateContent", google, generate, sse(gemini), answers=True),
    "google, which told so far": Library(
        "google.genai", "google", "gcp.gemini", f"/v1beta/models/{MODEL}:streamGenerateContent", google, generate, sse(gemini_told), answers=True,
    ),
    "bedrock converse": Library("boto3", "bedrock", "aws.bedrock", f"/model/{MODEL}/converse-stream", bedrock, converse_stream, converse),
    "bedrock invoke": Library("boto3", "bedrock", "aws.bedrock", f"/model/{MODEL}/invoke-with-response-stream", bedrock, invoke_stream, invoke),
    "huggingface": Library(
        "huggingface_hub", "huggingface", "huggingface", "/v1/chat/completions",
        lambda module, url: module.InferenceClient(base_url=f"{url}/v1", token="test"),
        lambda c, limit, n: c.chat_completion(ASK, model=MODEL, stream=True, max_tokens=limit, n=n), sse(chat), answers=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture(autouse=True)
def taken_back() -> Iterator[None]:
    yield
    af.uninstrument()


def priced(library: Library) -> None:
    """A token of the answer costs a dollar and one of the prompt nothing, so that amounts are tokens of the answer."""
    af.register_price(
        library.model,
        provider=library.provider,
        rates={"input_tokens": "0", "output_tokens": "1000000"},
        max_output=100_000,
    )


def left(
    library: Library, client: Any, limit: int, answers: int, pieces: list[str], take: int | None, wire: Wire
) -> Charge:
    """The one row of a stream of which `take` events are read before it is closed; None reads until it breaks."""
    wire.answers[f"POST {library.path}"] = lambda: library.events(pieces)
    with capture_charges() as charges:
        stream = library.stream(client, limit, answers)
        with suppress(Exception):  # in the words of each library: the connection broke
            for _ in islice(stream, take):
                pass
        close = getattr(stream, "close", None)
        if close is not None:
            close()
        del stream
        af.flush()
        (charge,) = charges
    return charge


def within(charge: Charge, most: int, pieces: int) -> None:
    assert charge.basis == "estimated", charge
    assert charge.lower is not None
    assert charge.amount is not None
    assert charge.upper is not None
    assert charge.lower <= charge.amount <= charge.upper <= most * NANO
    assert charge.quantities["output_tokens"] <= most
    assert charge.lower <= min(pieces, most) * NANO


TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12),
    min_size=1,
    max_size=20,
)


@pytest.mark.parametrize("name", LIBRARIES)
def test_no_estimate_is_above_what_the_caller_allowed(name: str, wire: Wire) -> None:
    """Left early or broken off: the amount and its upper bound keep to the limit, times the answers asked for."""
    library = LIBRARIES[name]
    module = pytest.importorskip(library.module)
    af.instrument(library.name)
    priced(library)
    client = library.client(module, wire.url)

    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(1, 80), st.integers(1, 3), TEXTS, st.sampled_from([None, 1, 3]))
    def check(limit: int, answers: int, pieces: list[str], take: int | None) -> None:
        answers = answers if library.answers else 1
        within(left(library, client, limit, answers, pieces, take, wire), limit * answers, len(pieces))

    check()
    # What was seen: nine tokens read, and 53 said of an answer that could have 50.
    within(left(library, client, 50, 1, ["What a day it is to be out ", "somewhere."], None, wire), 50, 2)
    getattr(client, "close", lambda: None)()


# --- where the limit does not say it all ------------------------------------------------------------------------------------


def abandoned(call: Call, text: str, pieces: int) -> Charge:
    af.register_price(
        call.model, provider=call.provider, rates={"input_tokens": "0", "output_tokens": "1000000"}, max_output=9_000
    )
    with capture_charges() as charges:
        invocation = metering.begin(call)
        assert invocation is not None
        invocation.leave()
        invocation.settle_estimated(text, pieces, Reading(), "abandoned")
    return charges[0]


def test_a_server_that_writes_on_beyond_the_limit_is_not_capped_by_it() -> None:
    """Forty times the text that the limit has room for: the limit was not heeded, and the estimate is of what came."""
    charge = abandoned(Call("openai", "chat", MODEL, body={}, max_output=50), "word " * 2_000, 2_000)
    assert charge.amount is not None
    assert charge.amount >= 2_000 * NANO
    assert charge.upper is not None
    assert charge.upper >= charge.amount


@pytest.mark.parametrize("limit", [None, -1, 0, True, "inf", 50.0])
def test_what_is_no_limit_caps_nothing(limit: Any, wire: Wire) -> None:
    """Some servers take -1 for none, and none at all is none: then the model's own maximum is the bound."""
    openai = pytest.importorskip("openai")
    library = LIBRARIES["openai max_tokens"]
    af.instrument("openai")
    priced(library)
    with stainless("OpenAI")(openai, wire.url) as client:
        charge = left(library, client, limit, 1, ["one ", "two"], None, wire)
    assert charge.amount is not None
    assert charge.upper is not None
    assert charge.amount >= 2 * NANO
    if limit != 0:
        assert charge.upper == 100_000 * NANO


def test_best_of_is_billed_as_a_whole(wire: Wire) -> None:
    """One answer is shown of three that were written: each of them may reach the limit."""
    openai = pytest.importorskip("openai")
    af.instrument("openai")
    library = LIBRARIES["openai completions"]
    priced(library)
    wire.answers["POST /completions"] = {**completion("x" * 400), "object": "text_completion"}
    with stainless("OpenAI")(openai, wire.url) as client, capture_charges() as charges:
        client.completions.create(model=MODEL, prompt="hi", max_tokens=50, best_of=3)
    assert charges[0].upper is not None
    assert charges[0].upper == 150 * NANO


@pytest.mark.parametrize(
    ("tools", "capped"),
    [
        ([], True),
        ([{"name": "own", "input_schema": {"type": "object"}}], True),
        ([{"type": "web_search_20250305", "name": "web_search"}], False),
    ],
)
def test_tools_of_the_provider_make_it_write_several_times(tools: list[Any], capped: bool, wire: Wire) -> None:
    """Anthropic goes on after each search within one answer, so the limit of one message is none of the whole."""
    anthropic = pytest.importorskip("anthropic")
    af.instrument("anthropic")
    library = LIBRARIES["anthropic"]
    priced(library)
    wire.answers["POST /v1/messages"] = lambda: message(["a word ", "or two"])
    with stainless("Anthropic")(anthropic, wire.url) as client, capture_charges() as charges:
        stream = client.messages.create(
            model=MODEL, messages=ASK, max_tokens=20, stream=True, **({"tools": tools} if tools else {})
        )
        with suppress(Exception):
            list(stream)
        stream.close()
    assert charges[0].upper == (20 if capped else 100_000) * NANO


def test_what_the_rows_say_of_limits_can_be_read() -> None:
    """A place of a limit is written once, and what makes one loose is in the language of paths, below the request."""
    for name in registry.PROVIDERS:
        for path, route in registry.provider(name).routes.items():
            assert len(set(route.limits)) == len(route.limits), (name, path)
            assert not route.loose or compiled(route.loose).roots() == ("request",), (name, path)
