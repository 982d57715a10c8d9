"""Streams of google-genai and Amazon Bedrock that are ended where there is no room for more of them, with the real libraries."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

import aifinops as af
from aifinops import metering
from aifinops.errors import StreamCut
from aifinops.testing import capture_charges
from aifinops.testing.wire import Wire, sent

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),  # what google-genai does to aiohttp
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # a stream that is ended
]

TOKENS, LIMIT = 3000, 60_000
WORD = "word "
CLAUDE = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
NOVA = "amazon.nova-lite-v1:0"
GEMINI = "gemini-2.5-flash-lite"
SAID = [{"role": "user", "content": "hi"}]


def frame(name: str, said: dict[str, Any]) -> bytes:
    """One message of `application/vnd.amazon.eventstream`: lengths and their CRC, headers, payload, CRC of it all."""
    payload, told = (
        json.dumps(said).encode(),
        {":event-type": name, ":content-type": "application/json", ":message-type": "event"},
    )
    head = b"".join(
        struct.pack(f"!B{len(key)}sBH{len(value)}s", len(key), key.encode(), 7, len(value), value.encode())
        for key, value in told.items()
    )
    begun = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    whole = begun + struct.pack("!I", zlib.crc32(begun)) + head + payload
    return whole + struct.pack("!I", zlib.crc32(whole))


def chunk(said: dict[str, Any]) -> bytes:
    return frame("chunk", {"bytes": base64.b64encode(json.dumps(said).encode()).decode(), "p": "abcdefghijkl"})


def metrics(written: int) -> dict[str, Any]:
    return {
        "amazon-bedrock-invocationMetrics": {"inputTokenCount": 5, "outputTokenCount": written, "invocationLatency": 7}
    }


def piece(text: str, written: int, *, told: bool = True, **more: Any) -> dict[str, Any]:
    counts = {"promptTokenCount": 5, "candidatesTokenCount": written, "totalTokenCount": 5 + written}
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}
    return {
        "candidates": [candidate],
        "responseId": "r",
        **({"usageMetadata": counts} if told else {}),
    }


def gemini(written: Iterator[int], *, told: bool = True) -> Iterator[bytes]:
    for number in written:
        yield sent(piece(WORD, number, told=told))
    yield sent(piece("", TOKENS, finishReason="STOP"))


def converse(written: Iterator[int], field: str = "text") -> Iterator[bytes]:
    yield frame("messageStart", {"role": "assistant"})
    for _ in written:
        delta: dict[str, Any] = {"text": WORD}
        if field != "text":
            outer, _, inner = field.partition(".")
            delta = {outer: {inner: WORD}}
        yield frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta, "p": "abcdefghijkl"})
    yield frame("contentBlockStop", {"contentBlockIndex": 0})
    yield frame("messageStop", {"stopReason": "end_turn"})
    usage = {"inputTokens": 5, "outputTokens": TOKENS, "totalTokens": 5 + TOKENS}
    yield frame("metadata", {"usage": usage, "metrics": {"latencyMs": 7}})


def claude(written: Iterator[int]) -> Iterator[bytes]:
    usage = {"input_tokens": 5, "output_tokens": 1}
    yield chunk(
        {
            "type": "message_start",
            "message": {"id": "m", "type": "message", "model": "c", "content": [], "usage": usage},
        }
    )
    for _ in written:
        yield chunk({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORD}})
    yield chunk({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": TOKENS}})
    yield chunk({"type": "message_stop", **metrics(TOKENS)})


def maker(made: Callable[[str], dict[str, Any]]) -> Callable[[Iterator[int]], Iterator[bytes]]:
    def stream(written: Iterator[int]) -> Iterator[bytes]:
        for _ in written:
            yield chunk(made(WORD))
        yield chunk({**made(""), **metrics(TOKENS)})

    return stream


class Slow:
    """A provider that writes a token at a time, as long as somebody listens, and counts what it has written."""

    def __init__(self, kind: str, stream: Callable[[Iterator[int]], Iterator[bytes]]) -> None:
        self.kind = kind
        self._stream = stream
        self.written = 0

    def answer(self) -> Any:
        return self.kind, self._stream(self._tokens())

    def _tokens(self) -> Iterator[int]:
        for _ in range(TOKENS):
            self.written += 1
            yield self.written
            time.sleep(0.0005)


@dataclass(frozen=True)
class Streamed:
    """One way to stream.

    Attributes:
        name, needs: of the integration, and the module. model: asked for. stream: what the provider writes. open: (url, model, more of
            the request) -> the stream, and what closes its client.
    """

    name: str
    needs: str
    model: str
    stream: Callable[[Iterator[int]], Iterator[bytes]]
    open: Callable[..., tuple[Any, Callable[[], Any]]]
    asynchronous: bool = False

    @property
    def provider(self) -> str:
        return "google" if self.name == "google" else "bedrock"

    @property
    def kind(self) -> str:
        return "text/event-stream" if self.name == "google" else "application/vnd.amazon.eventstream"


def _google(url: str, model: str, more: dict[str, Any]) -> Any:
    genai = pytest.importorskip("google.genai")
    return genai.Client(api_key="x", http_options=genai.types.HttpOptions(base_url=url), vertexai=False)


def google(url: str, model: str, more: dict[str, Any]) -> Any:
    client = _google(url, model, more)
    running = client.models.generate_content_stream(
        model=model, contents="hi", config={"max_output_tokens": LIMIT, **more}
    )
    return running, lambda: client


def agoogle(url: str, model: str, more: dict[str, Any]) -> Any:
    client = _google(url, model, more)

    async def events() -> AsyncIterator[Any]:
        ask = {"model": model, "contents": "hi", "config": {"max_output_tokens": LIMIT, **more}}
        async for event in await client.aio.models.generate_content_stream(**ask):
            yield event

    return events(), getattr(client.aio, "aclose", lambda: None)


_KEYS = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}


def _conversed(model: str, more: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": [{"text": "hi"}]}]
    return {"modelId": model, "messages": messages, "inferenceConfig": {"maxTokens": LIMIT}, **more}


def _body(model: str) -> dict[str, Any]:
    if "llama" in model:
        return {"prompt": "hi", "max_gen_len": LIMIT}
    if "titan" in model:
        return {"inputText": "hi", "textGenerationConfig": {"maxTokenCount": LIMIT}}
    if "command" in model:
        return {"message": "hi", "max_tokens": LIMIT}
    if "gpt-oss" in model:
        return {"messages": SAID, "max_completion_tokens": LIMIT}
    if "nova" in model:
        return {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {"maxTokens": LIMIT}}
    return {"anthropic_version": "bedrock-2023-05-31", "max_tokens": LIMIT, "messages": SAID}


def conversed(url: str, model: str, more: dict[str, Any]) -> Any:
    client = pytest.importorskip("boto3").client("bedrock-runtime", endpoint_url=url, **_KEYS)
    return client.converse_stream(**_conversed(model, more))["stream"], client.close


def invoked(url: str, model: str, more: dict[str, Any]) -> Any:
    client = pytest.importorskip("boto3").client("bedrock-runtime", endpoint_url=url, **_KEYS)
    body = json.dumps({**_body(model), **more})
    return client.invoke_model_with_response_stream(modelId=model, body=body)["body"], client.close


def _awaited(method: str, ask: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Any:
    def begun(url: str, model: str, more: dict[str, Any]) -> Any:
        session = pytest.importorskip("aiobotocore.session").get_session()

        async def events() -> AsyncIterator[Any]:
            async with session.create_client("bedrock-runtime", endpoint_url=url, **_KEYS) as client:
                answer = await getattr(client, method)(**ask(model, more))
                async for event in answer.get("stream") or answer["body"]:
                    yield event

        return events(), lambda: None

    return begun


def _invoked(model: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"modelId": model, "body": json.dumps({**_body(model), **more})}


STREAMS = {
    "google": Streamed("google", "google.genai", GEMINI, gemini, google),
    "google async": Streamed("google", "google.genai", GEMINI, gemini, agoogle, True),
    "converse": Streamed("bedrock", "boto3", NOVA, converse, conversed),
    "invoke": Streamed("bedrock", "boto3", CLAUDE, claude, invoked),
    "aio converse": Streamed(
        "aiobotocore", "aiobotocore", NOVA, converse, _awaited("converse_stream", _conversed), True
    ),
    "aio invoke": Streamed(
        "aiobotocore", "aiobotocore", CLAUDE, claude, _awaited("invoke_model_with_response_stream", _invoked), True
    ),
}
MAKERS = {
    "us.meta.llama3-1-8b-instruct-v1:0": maker(
        lambda text: {"generation": text, "prompt_token_count": None, "generation_token_count": 1}
    ),
    "amazon.titan-text-express-v1": maker(lambda text: {"outputText": text, "index": 0}),
    NOVA: maker(lambda text: {"contentBlockDelta": {"delta": {"text": text}, "contentBlockIndex": 0}}),
    "cohere.command-r-v1:0": maker(lambda text: {"event_type": "text-generation", "text": text, "is_finished": False}),
    "openai.gpt-oss-20b-1:0": maker(
        lambda text: {
            "id": "c",
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": text}}],
        }
    ),
}
"""Forms of the streams of InvokeModel."""


class Anything(Wire):
    """Gives one answer to whatever is asked."""

    slow: Slow

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, Iterator[bytes]]:
        self.answers[f"{method} {path}"] = self.slow.answer
        return super().answer(method, path, body)


@pytest.fixture
def wire() -> Iterator[Anything]:
    af.init(ledger="memory")
    with Anything() as running:
        yield running
    af.uninstrument()


def bill(way: Streamed, written: int) -> Decimal:
    price = af.price(way.model, provider=way.provider, input_tokens=5, output_tokens=written)
    assert price.amount is not None
    return price.amount


def room(way: Streamed, output: int) -> dict[str, Decimal]:
    """What a call with so much output may cost at most, with some more for the form of its request."""
    upper = af.estimate(way.model, provider=way.provider, messages=SAID, max_tokens=output).upper
    assert upper is not None
    prompt = af.price(way.model, provider=way.provider, input_tokens=200, output_tokens=0).amount
    assert prompt is not None
    return {"USD": upper + prompt}


def read(
    way: Streamed, wire: Anything, more: dict[str, Any] | None = None, seen: Callable[[int], None] = lambda _: None
) -> tuple[int, Any]:
    """(how many events came, what ended them)."""
    pytest.importorskip(way.needs)
    af.instrument(way.name)
    wire.slow = Slow(way.kind, way.stream)
    count = 0

    async def aread() -> StreamCut | None:
        nonlocal count
        running, close = way.open(wire.url, way.model, more or {})
        try:
            async for _ in running:
                count += 1
                seen(count)
        except StreamCut as cut:
            return cut
        finally:
            closing = close()
            if closing is not None:
                await closing
        return None

    if way.asynchronous:
        return count, asyncio.run(aread()) or count
    running, close = way.open(wire.url, way.model, more or {})
    ended = None
    try:
        for _ in running:
            count += 1
            seen(count)
    except StreamCut as cut:
        ended = cut
        assert list(running) == []  # it is over
    close()
    return count, ended


def cut_of(
    way: Streamed, wire: Anything, limit: Any, more: dict[str, Any] | None = None
) -> tuple[Any, Any, list[Decimal]]:
    """(the charge, the error, what was held while it went on) of a stream that ends; the bill is within the limit."""
    held: list[Decimal] = []
    counts: list[int] = []
    with capture_charges() as charges, af.budget(limit, on_exceed="cut") as budget:

        def seen(count: int) -> None:
            counts.append(count)
            held.append(Decimal(budget.reserved))

        _, ended = read(way, wire, more, seen)
        spent, reserved = budget.spent, budget.reserved
        most = budget.limit
    assert isinstance(ended, StreamCut)
    time.sleep(0.05)  # until the provider notices
    assert 100 < wire.slow.written < TOKENS
    assert bill(way, wire.slow.written) <= spent <= most
    assert reserved == 0
    assert 0 < counts[-1] < TOKENS
    assert metering.in_flight() is None
    (charge,) = charges
    assert (charge.status, charge.tags["budget_action"]) == ("abandoned", "cut")
    assert charge.amount is not None
    assert charge.upper is not None
    assert bill(way, wire.slow.written) * 10**9 <= charge.upper <= most * 10**9
    return charge, ended, held


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_ended_where_there_is_no_room_for_more(name: str, wire: Anything) -> None:
    """What came was handed out and held for as it came, the connection is closed, and the provider's bill is within the limit."""
    way = STREAMS[name]
    _, ended, held = cut_of(way, wire, room(way, 1500))
    assert "the stream was ended, since there was no room for" in str(ended)
    assert held[0] < held[-1]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_with_room_for_all_of_it_is_what_it_is_without_us(name: str, wire: Anything) -> None:
    """Its true cost takes the place of what was held, and no tag says anything."""
    way = STREAMS[name]
    with capture_charges() as charges, af.budget(room(way, 8 * TOKENS), on_exceed="cut") as budget:
        held: list[Decimal] = []
        _, ended = read(way, wire, None, lambda _: held.append(Decimal(budget.reserved)))
        assert not isinstance(ended, StreamCut)
        assert budget.reserved == 0
    assert held[0] < held[-1]
    (charge,) = charges
    assert (charge.basis, charge.status, dict(charge.tags)) == ("priced", "ok", {})
    assert charge.amount == bill(way, TOKENS) * 10**9


@pytest.mark.parametrize("model", MAKERS)
def test_the_form_of_each_maker_is_followed(model: str, wire: Anything) -> None:
    """InvokeModel hands on what a maker's stream says, where it says it."""
    af.register_price(model, provider="aws.bedrock", rates={"input_tokens": "1", "output_tokens": "5"})
    way = Streamed("bedrock", "boto3", model, MAKERS[model], invoked)
    cut_of(way, wire, room(way, 1500))


@pytest.mark.parametrize("field", ["toolUse.input", "reasoningContent.text"])
def test_what_is_billed_beside_text_is_followed(field: str, wire: Anything) -> None:
    """Arguments of tools and thoughts that are shown are output, too."""
    way = Streamed("bedrock", "boto3", NOVA, lambda written: converse(written, field), conversed)
    cut_of(way, wire, room(way, 1500))


def test_counts_that_a_stream_tells_as_it_goes_are_believed_where_they_are_more(wire: Anything) -> None:
    """Google tells the usage so far in each piece: what no text shows, as the call of a function, is in it."""

    def calls(written: Iterator[int]) -> Iterator[bytes]:
        for number in written:
            said = piece("", number)
            said["candidates"][0]["content"]["parts"] = [{"functionCall": {"name": "f", "args": {"a": WORD}}}]
            yield sent(said)
        yield sent(piece("", TOKENS, finishReason="STOP"))

    way = Streamed("google", "google.genai", GEMINI, calls, google)
    cut_of(way, wire, room(way, 1500))


def test_a_stream_that_tells_no_counts_is_followed_by_its_text(wire: Anything) -> None:
    """Where a server between leaves the usage out, what is shown is counted."""
    way = Streamed("google", "google.genai", GEMINI, lambda written: gemini(written, told=False), google)
    cut_of(way, wire, room(way, 1500))


THINKS = "thoughts are billed that are not shown"
REFUSED = [
    ("google", "gemini-2.5-flash", {}, THINKS),
    ("google", "gemini-3-pro-preview", {}, THINKS),
    ("google", GEMINI, {"thinking_config": {"thinking_budget": 512}}, THINKS),
    (
        "converse",
        CLAUDE,
        {"additionalModelRequestFields": {"thinking": {"type": "enabled", "budget_tokens": 1024}}},
        THINKS,
    ),
    (
        "converse",
        "us.amazon.nova-2-lite-v1:0",
        {"additionalModelRequestFields": {"reasoningConfig": {"type": "enabled"}}},
        THINKS,
    ),
    ("invoke", CLAUDE, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, THINKS),
    ("invoke", CLAUDE, {"anthropic_version": None}, "it is not known where it has its text"),
]


@pytest.mark.parametrize(("name", "model", "more", "why"), REFUSED)
def test_what_nobody_sees_is_not_followed(
    name: str, model: str, more: dict[str, Any], why: str, wire: Anything
) -> None:
    """Where tokens are billed that no event shows the budget raises before anything is sent, and says what to use."""
    way = STREAMS[name]
    if "anthropic_version" in more:
        more = {"anthropic_version": ""}
        model = "somebody.else-v1:0"
        af.register_price(model, provider="aws.bedrock", rates={"input_tokens": "1", "output_tokens": "5"})
    asked = Streamed(way.name, way.needs, model, way.stream, way.open)
    with (
        af.budget("900 output_tokens", on_exceed="cut"),
        pytest.raises(af.BudgetExceeded, match=why + '.*use "clamp"'),
    ):
        read(asked, wire, more)
    assert not wire.asked


def test_a_model_that_is_told_not_to_think_is_followed(wire: Anything) -> None:
    """A budget of no thoughts is none."""
    way = Streamed("google", "google.genai", "gemini-2.5-flash", gemini, google)
    cut_of(way, wire, room(way, 1500), {"thinking_config": {"thinking_budget": 0}})


def test_our_own_failure_lets_the_stream_go_on(wire: Anything, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we cannot follow is handed out to its end, and settled for what it says."""

    def failing(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(metering.Invocation, "grow", failing)
    af.errors.reraise_failures(False)  # type: ignore[attr-defined]
    for name in ("google", "converse"):
        with af.budget("4000 output_tokens", on_exceed="cut") as budget:
            count, ended = read(STREAMS[name], wire)
            assert ended is None
            assert count > TOKENS
            assert budget.spent == TOKENS
