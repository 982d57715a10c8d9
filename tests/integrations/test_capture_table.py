"""The shapes of a call that instrumentations are compared by, through the real clients of OpenAI and Anthropic: each cell of the table
is one row, exact, or an estimate whose bounds hold what the provider billed. The endpoints of OpenAI are in `test_openai_endpoints`."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.charges import Charge
from aifinops.money import from_nanos
from aifinops.testing.wire import CANARY, Wire

pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude:DeprecationWarning")

AT = 1_794_304_800
GPT, CLAUDE = "gpt-5-mini", "claude-sonnet-4-5"
# What was billed, in every cell: 1000 in, of which 600 were cached and 100 written to the cache; 200 out, of which 120 were thought.
COUNTS = {
    "input_tokens": 300, "cache_read_tokens": 600, "cache_write_tokens": 100, "output_tokens": 80, "reasoning_tokens": 120,
}  # fmt: skip
CHAT_USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
    "completion_tokens_details": {"reasoning_tokens": 120},
}  # fmt: skip
RESPONSE_USAGE = {
    "input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200,
    "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100}, "output_tokens_details": {"reasoning_tokens": 120},
}  # fmt: skip
CLAUDE_USAGE = {
    "input_tokens": 300, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 600, "output_tokens": 200,
    "output_tokens_details": {"thinking_tokens": 120},
}  # fmt: skip
# Long enough that the counted input is not below what was billed.
WORDS = f"{CANARY} " + "word " * 1000
ASK: dict[str, Any] = {"model": GPT, "messages": [{"role": "user", "content": WORDS}]}
CHAT = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": AT, "model": GPT, "usage": CHAT_USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f'{{"said": "{CANARY}"}}'}}],
}  # fmt: skip


def chat_stream(asked: bytes) -> list[Any]:
    """As a server answers that tells the usage of a stream when it is asked for it."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": AT, "model": GPT}
    usage = b'"include_usage":true' in asked.replace(b" ", b"")
    said = [
        {**head, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in ("a", CANARY)
    ]
    return [*said, *([{**head, "choices": [], "usage": CHAT_USAGE}] if usage else []), "[DONE]"]


def response_stream() -> list[Any]:
    """It ends since there was no room for more, which is billed like any other."""
    response = {
        "id": "resp_1", "object": "response", "created_at": AT, "model": GPT, "status": "in_progress", "usage": None, "output": [],
        "tools": [], "tool_choice": "auto", "parallel_tool_calls": True,
    }  # fmt: skip
    ended = {
        **response,
        "status": "incomplete",
        "usage": RESPONSE_USAGE,
        "incomplete_details": {"reason": "max_output_tokens"},
    }
    return [
        ("response.created", {"type": "response.created", "sequence_number": 0, "response": response}),
        ("response.incomplete", {"type": "response.incomplete", "sequence_number": 1, "response": ended}),
    ]


MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": CLAUDE, "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": CANARY}], "usage": CLAUDE_USAGE,
}  # fmt: skip
MESSAGE_ASK: dict[str, Any] = {"model": CLAUDE, "max_tokens": 400, "messages": [{"role": "user", "content": WORDS}]}


def message_stream() -> list[Any]:
    """The count at the beginning is a part of the one at the end, never to be added to it."""
    start = {
        **MESSAGE,
        "content": [],
        "stop_reason": None,
        "usage": {**CLAUDE_USAGE, "output_tokens": 1, "output_tokens_details": None},
    }
    ended = {"output_tokens": 200, "output_tokens_details": {"thinking_tokens": 120}}
    made: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": CANARY}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": ended},
        {"type": "message_stop"},
    ]
    return [(event["type"], event) for event in made]


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        streamed = lambda: b'"stream":true' in running.asked[-1][1].replace(b" ", b"")  # noqa: E731
        running.answers = {
            "POST /chat/completions": lambda: chat_stream(running.asked[-1][1]) if streamed() else CHAT,
            "POST /responses": response_stream(),
            "POST /v1/messages": lambda: message_stream() if streamed() else MESSAGE,
        }
        yield running


@pytest.fixture(autouse=True)
def uninstrumented() -> Iterator[None]:
    yield
    af.uninstrument()


# --- one colour for both: what is awaited is awaited ---------------------------------------------------------------------


async def got(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def read(stream: Any, most: int = 1 << 30) -> list[Any]:
    """The first pieces of a stream; the stream is left as it is then."""
    found: list[Any] = []
    if hasattr(stream, "__aiter__"):
        async for one in stream:
            found.append(one)
            if len(found) == most:
                break
    else:
        for one in stream:
            found.append(one)
            if len(found) == most:
                break
    return found


async def within(manager: Any, use: Callable[[Any], Any]) -> Any:
    if hasattr(manager, "__aenter__"):
        async with manager as inner:
            return await got(use(inner))
    with manager as inner:
        return await got(use(inner))


async def chat(client: Any, **more: Any) -> Any:
    return await got(client.chat.completions.create(**ASK, **more))


async def raw_chat(client: Any, **more: Any) -> Any:
    raw = await got(client.chat.completions.with_raw_response.create(**ASK, **more))
    return await got(raw.parse())


async def parse(client: Any) -> None:
    from pydantic import BaseModel

    class Said(BaseModel):
        said: str

    parsed = await got(client.chat.completions.parse(**ASK, response_format=Said))
    assert parsed.choices[0].message.parsed == Said(said=CANARY)


async def chat_chunks(client: Any, call: Callable[..., Any], chunks: int, **more: Any) -> None:
    assert len(await read(await call(client, stream=True, **more))) == chunks


async def chat_broken(client: Any, call: Callable[..., Any]) -> None:
    stream = await call(client, stream=True)
    assert len(await read(stream, 1)) == 1
    await got(stream.close())


async def responses(client: Any) -> None:
    if not hasattr(client, "responses"):
        pytest.skip("this version has no responses")
    assert len(await read(await got(client.responses.create(model=GPT, input=WORDS, stream=True)))) == 2


# cell -> (setting of `stream_usage`, the call, what its row is)
OPENAI: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "chat.create": (None, chat, "exact"),
    "chat.parse": (None, parse, "exact"),
    "chat raw": (None, raw_chat, "exact"),
    "chat streaming_response": (
        None, lambda c: within(c.chat.completions.with_streaming_response.create(**ASK), lambda answer: answer.read()), "exact",
    ),
    "chat stream, usage asked for by the caller": (
        None, lambda c: chat_chunks(c, chat, 3, stream_options={"include_usage": True}), "exact",
    ),
    "chat stream, usage asked for by us": ("always", lambda c: chat_chunks(c, chat, 2), "exact"),
    "chat stream, usage asked for by nobody": (None, lambda c: chat_chunks(c, chat, 2), "estimated"),
    "raw + stream, usage asked for by us": ("always", lambda c: chat_chunks(c, raw_chat, 2), "exact"),
    "raw + stream, usage asked for by nobody": (None, lambda c: chat_chunks(c, raw_chat, 2), "estimated"),
    "stream broken early": (None, lambda c: chat_broken(c, chat), "abandoned"),
    "stream broken early, usage asked for by us": ("always", lambda c: chat_broken(c, chat), "abandoned"),
    "raw + stream broken early": (None, lambda c: chat_broken(c, raw_chat), "abandoned"),
    "responses stream that ends incomplete": (None, responses, "exact"),
}  # fmt: skip


def judge(verdict: str, model: str) -> None:
    """One row: the buckets and the money of the one true usage, or bounds that hold it."""
    gc.collect()
    af.flush()
    (charge,) = rows = list(runtime.get().ledger.rows())
    assert CANARY not in repr(rows)
    true = af.price(model, **COUNTS).amount
    assert true is not None
    if verdict == "exact":
        assert dict(charge.quantities) == COUNTS
        assert (charge.basis, charge.status) == ("priced", "ok")
        assert from_nanos(charge.amount or 0) == true
    else:
        bounds(charge, "abandoned" if verdict == "abandoned" else "ok")
        assert from_nanos(charge.lower or 0) <= true <= from_nanos(charge.upper or 0)


def bounds(charge: Charge, status: str) -> None:
    assert (charge.basis, charge.status) == ("estimated", status)
    assert charge.amount
    assert charge.lower is not None
    assert charge.upper is not None
    assert charge.lower <= charge.amount <= charge.upper


@pytest.mark.parametrize("cell", OPENAI)
@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_cell_of_openai(cell: str, colour: str, wire: Wire) -> None:
    """Chat and Responses in every shape, in both colours."""
    openai = pytest.importorskip("openai")
    setting, use, verdict = OPENAI[cell]
    af.init(stream_usage=setting)
    af.instrument("openai")
    kind = openai.OpenAI if colour == "sync" else openai.AsyncOpenAI
    client = kind(base_url=wire.url, api_key="test", max_retries=0)
    await use(client)
    await got(client.close())
    judge(verdict, GPT)


# --- Anthropic, whose client makes a span of its own since 2.0 ------------------------------------------------------------


async def message_broken(client: Any) -> None:
    stream = await got(client.messages.create(**MESSAGE_ASK, stream=True))
    assert len(await read(stream, 1)) == 1
    await got(stream.close())


async def message_chunks(client: Any) -> None:
    assert len(await read(await got(client.messages.create(**MESSAGE_ASK, stream=True)))) == 6


ANTHROPIC: dict[str, tuple[Callable[[Any], Any], str]] = {
    "create": (lambda c: got(c.messages.create(**MESSAGE_ASK)), "exact"),
    "stream": (message_chunks, "exact"),
    "stream helper": (lambda c: within(c.messages.stream(**MESSAGE_ASK), read), "exact"),
    "stream broken early": (message_broken, "abandoned"),
}


@pytest.mark.parametrize("spans", ["native", "ours"])
@pytest.mark.parametrize("cell", ANTHROPIC)
@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_cell_of_anthropic(cell: str, colour: str, spans: str, wire: Wire) -> None:
    """One row and one span: the client's own where it makes one, and ours where that is switched off or older than that."""
    anthropic = pytest.importorskip("anthropic")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from aifinops.telemetry.spans import Spans

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engines = af.init()
    assert not engines.policies  # makes all engines, which would replace this one
    engines.spans = Spans("0", lambda: provider)
    options = {"base_url": wire.url, "api_key": "test", "max_retries": 0}
    if "open_telemetry" in inspect.signature(anthropic.Anthropic).parameters:
        options["open_telemetry"] = {"tracer_provider": provider} if spans == "native" else False
    elif spans == "native":
        pytest.skip(f"anthropic {anthropic.__version__} makes no spans")
    af.instrument("anthropic")
    use, verdict = ANTHROPIC[cell]
    client = (anthropic.Anthropic if colour == "sync" else anthropic.AsyncAnthropic)(**options)
    await use(client)
    await got(client.close())
    judge(verdict, CLAUDE)
    (span,) = exporter.get_finished_spans()
    assert CANARY not in span.to_json()
    if verdict == "exact":
        assert span.attributes["gen_ai.usage.output_tokens"] == 200
