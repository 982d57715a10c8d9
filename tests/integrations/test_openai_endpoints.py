"""Every endpoint of the real openai client that costs something, and polls and batches: charged once, exactly, or with bounds."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.integrations import later  # noqa: E402
from aifinops.money import from_nanos  # noqa: E402
from aifinops.testing.wire import CANARY, Wire  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

MODEL = "gpt-5-mini"
AT = 1_794_304_800
# The usage of the comparison of instrumentations: 1000 in (600 cached, 100 written), 200 out (120 reasoning).
CHAT_USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
    "completion_tokens_details": {"reasoning_tokens": 120},
}  # fmt: skip
RESPONSE_USAGE = {
    "input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200,
    "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100}, "output_tokens_details": {"reasoning_tokens": 120},
}  # fmt: skip
COUNTS = {
    "input_tokens": 300,
    "cache_read_tokens": 600,
    "cache_write_tokens": 100,
    "output_tokens": 80,
    "reasoning_tokens": 120,
}
CHAT = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": AT, "model": MODEL, "usage": CHAT_USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": CANARY}}],
}  # fmt: skip
MESSAGES = [{"role": "user", "content": CANARY}]


def response(status: str = "completed", usage: Any = RESPONSE_USAGE, **more: Any) -> dict[str, Any]:
    """A response as the API answers it."""
    text = {"type": "output_text", "text": CANARY, "annotations": []}
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    return {
        "id": "resp_1", "object": "response", "created_at": AT, "model": MODEL, "status": status, "usage": usage, "output": [message],
        "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, **more,
    }  # fmt: skip


def events(*made: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Numbered events of a stream."""
    return [(event["type"], {"sequence_number": number, **event}) for number, event in enumerate(made)]


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("openai")
    yield
    af.uninstrument()
    later.settle_held()
    later._held.files.clear()


@pytest.fixture
def at_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the provider, so that what it says of its own time is not long ago."""
    from aifinops.testing import FakeClock

    af.init(ledger="memory", clock=FakeClock(AT * 10**9))


@pytest.fixture
def client(wire: Wire) -> Iterator[Any]:
    with openai.OpenAI(base_url=wire.url, api_key="test", max_retries=0) as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def only_row() -> Charge:
    (charge,) = rows()
    return charge


def usd(charge: Charge) -> Decimal:
    assert charge.amount is not None
    return from_nanos(charge.amount)


def need(holder: Any, name: str) -> Any:
    """A method that older versions do not have."""
    if not hasattr(holder, name):
        pytest.skip(f"openai {openai.__version__} has no {name}")
    return getattr(holder, name)


# --- E1: shapes of chat and responses --------------------------------------------------------------------------------------


def exact(charge: Charge, id: str = "chatcmpl-1") -> None:
    assert dict(charge.quantities) == COUNTS
    assert (charge.basis, charge.status, charge.response_id) == ("priced", "ok", id)
    assert usd(charge) == af.price(MODEL, **COUNTS).amount


def chat_stream(usage: bool = True) -> list[Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": AT, "model": MODEL}
    said = [
        {**head, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in ("a", "b")
    ]
    return [*said, *([{**head, "choices": [], "usage": CHAT_USAGE}] if usage else []), "[DONE]"]


def read(manager: Any) -> None:
    with manager as answer:
        assert answer.read()


E1: dict[str, tuple[str, Any, Callable[[Any], Any]]] = {
    "chat": ("/chat/completions", CHAT, lambda c: c.chat.completions.create(model=MODEL, messages=MESSAGES)),
    "chat raw": (
        "/chat/completions", CHAT, lambda c: c.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES).parse(),
    ),
    "chat streaming response": (
        "/chat/completions", CHAT, lambda c: read(c.chat.completions.with_streaming_response.create(model=MODEL, messages=MESSAGES)),
    ),
    "chat stream with usage": (
        "/chat/completions", chat_stream(),
        lambda c: list(c.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True})),
    ),
    "chat raw stream": (
        "/chat/completions", chat_stream(),
        lambda c: list(c.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, stream=True).parse()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("cell", E1)
def test_e1_cells_have_every_bucket(cell: str, client: Any, wire: Wire) -> None:
    """Cached, written and reasoning tokens of chat, in every shape."""
    path, answer, call = E1[cell]
    wire.answers[f"POST {path}"] = answer
    call(client)
    exact(only_row())


@pytest.mark.parametrize("raw", [False, True])
def test_e1_a_stream_broken_early_is_an_estimate_that_holds_the_truth(raw: bool, client: Any, wire: Wire) -> None:
    """The provider may have written on and bills it: the bound is what the model can write, where the request states no limit."""
    wire.answers["POST /chat/completions"] = chat_stream()
    create = client.chat.completions
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 1000}], "stream": True}
    stream = create.with_raw_response.create(**ask).parse() if raw else create.create(**ask)
    for _ in stream:
        break
    del stream
    gc.collect()
    charge = only_row()
    true = af.price(MODEL, **COUNTS).amount
    assert true is not None
    assert (charge.basis, charge.status) == ("estimated", "abandoned")
    assert charge.amount
    assert from_nanos(charge.lower or 0) <= true <= from_nanos(charge.upper or 0)


@pytest.mark.parametrize("last", ["completed", "incomplete", "failed"])
def test_e1_a_responses_stream_has_its_usage_however_it_ends(last: str, client: Any, wire: Wire) -> None:
    """`response.incomplete` and `response.failed` were paid for too."""
    started = {"type": "response.created", "response": response("in_progress", None)}
    wire.answers["POST /responses"] = events(started, {"type": f"response.{last}", "response": response(last)})
    responses = need(client, "responses")
    assert len(list(responses.create(model=MODEL, input=CANARY, stream=True))) == 2
    exact(only_row(), "resp_1")


# --- E2: endpoints -----------------------------------------------------------------------------------------------------------

IMAGES = {
    "created": AT, "data": [{"b64_json": "aGVsbG8="}],
    "usage": {
        "input_tokens": 50, "input_tokens_details": {"text_tokens": 50, "image_tokens": 0}, "output_tokens": 4000,
        "output_tokens_details": {"image_tokens": 4000, "text_tokens": 0}, "total_tokens": 4050,
    },
}  # fmt: skip
TRANSCRIPT = {
    "text": CANARY,
    "usage": {
        "type": "tokens", "input_tokens": 300, "input_token_details": {"text_tokens": 10, "audio_tokens": 290},
        "output_tokens": 20, "total_tokens": 320,
    },
}  # fmt: skip
SECONDS = {"text": CANARY, "usage": {"type": "duration", "seconds": 61}}
COMPACTED = {
    "id": "resp_c", "object": "response.compaction", "created_at": AT, "output": [],
    "usage": {
        "input_tokens": 9000, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 700,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 9700,
    },
}  # fmt: skip
EMBEDDED = {
    "object": "list", "model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8},
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
}  # fmt: skip
COMPLETED = {
    "id": "cmpl-1", "object": "text_completion", "created": AT, "model": "gpt-3.5-turbo-instruct",
    "choices": [{"index": 0, "text": CANARY, "finish_reason": "stop", "logprobs": None}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
}  # fmt: skip
MODERATED = {"id": "modr-1", "model": "omni-moderation-latest", "results": []}
MP3 = ("audio/mpeg", b"ID3\x04" + b"\xff\xfb\x90\x64" * 500)


def sound() -> Any:
    return ("speech.wav", io.BytesIO(b"RIFF"), "audio/wav")


# endpoint -> (path, answer, call, operation, counts, dollars)
E2: dict[str, tuple[str, Any, Callable[[Any], Any], str, dict[str, int], str]] = {
    "images.generate": (
        "/images/generations", IMAGES, lambda c: c.images.generate(model="gpt-image-1", prompt=CANARY),
        "image_generation", {"input_tokens": 50, "output_image_tokens": 4000}, "0.16025",
    ),
    "images.edit": (
        "/images/edits", IMAGES, lambda c: c.images.edit(model="gpt-image-1", prompt=CANARY, image=("i.png", b"png")),
        "image_generation", {"input_tokens": 50, "output_image_tokens": 4000}, "0.16025",
    ),
    "images by number": (
        "/images/generations", {"created": AT, "data": [{"url": "https://x.invalid/1"}]},
        lambda c: c.images.generate(model="dall-e-3", prompt=CANARY, size="1024x1792", quality="hd"),
        "image_generation", {"images": 1}, "0.12",
    ),
    "transcriptions by token": (
        "/audio/transcriptions", TRANSCRIPT, lambda c: c.audio.transcriptions.create(model="gpt-4o-transcribe", file=sound()),
        "transcription", {"input_tokens": 10, "input_audio_tokens": 290, "output_tokens": 20}, "0.001965",
    ),
    "transcriptions by second": (
        "/audio/transcriptions", SECONDS, lambda c: c.audio.transcriptions.create(model="whisper-1", file=sound()),
        "transcription", {"audio_seconds": 61}, "0.0061",
    ),
    "verbose transcription": (
        "/audio/transcriptions", {"task": "transcribe", "language": "english", "duration": 61.0, "text": CANARY},
        lambda c: c.audio.transcriptions.create(model="whisper-1", file=sound(), response_format="verbose_json"),
        "transcription", {"audio_seconds": 61}, "0.0061",
    ),
    "translations": (
        "/audio/translations", SECONDS, lambda c: c.audio.translations.create(model="whisper-1", file=sound()),
        "transcription", {"audio_seconds": 61}, "0.0061",
    ),
    "speech": (
        "/audio/speech", MP3, lambda c: c.audio.speech.create(model="tts-1", voice="alloy", input="x" * 1000).content,
        "speech", {"characters": 1000}, "0.015",
    ),
    "moderations": (
        "/moderations", MODERATED, lambda c: c.moderations.create(input=CANARY, model="omni-moderation-latest"),
        "moderation", {"requests": 1}, "0",
    ),
    "responses.compact": (
        "/responses/compact", COMPACTED, lambda c: need(need(c, "responses"), "compact")(model=MODEL, input=CANARY),
        "chat", {"input_tokens": 9000, "output_tokens": 700}, "0.00365",
    ),
    "completions": (
        "/completions", COMPLETED, lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt=CANARY),
        "text_completion", {"input_tokens": 7, "output_tokens": 5}, "0.0000205",
    ),
    "post": ("/responses", response(), lambda c: c.post("/responses", body={"model": MODEL}, cast_to=object), "chat", COUNTS, ""),
    "embeddings": (
        "/embeddings", EMBEDDED, lambda c: c.embeddings.create(model="text-embedding-3-small", input=CANARY),
        "embeddings", {"input_tokens": 8}, "0.00000016",
    ),
}  # fmt: skip


@pytest.mark.parametrize("cell", E2)
def test_e2_every_endpoint_is_one_exact_row(cell: str, client: Any, wire: Wire) -> None:
    """Operation, buckets and money of each."""
    path, answer, call, operation, counts, dollars = E2[cell]
    wire.answers[f"POST {path}"] = answer
    call(client)
    charge = only_row()
    assert (charge.operation, dict(charge.quantities)) == (operation, counts)
    assert usd(charge) == (Decimal(dollars) if dollars else af.price(MODEL, **counts).amount)
    assert charge.basis == ("free" if cell == "moderations" else "priced")


@pytest.mark.parametrize("cell", ["images by number", "speech", "moderations", "embeddings"])
def test_what_the_request_alone_prices_is_held_exactly(cell: str, client: Any, wire: Wire) -> None:
    """Pictures and characters are known before the call: a budget holds neither less nor much more than their price."""
    path, answer, call, _, _, dollars = E2[cell]
    wire.answers[f"POST {path}"] = answer
    held: list[Decimal] = []
    with af.budget("$1") as block:
        wire.during = lambda: held.append(block.reserved)
        call(client)
        assert block.spent == Decimal(dollars)
        assert block.reserved == 0
    assert held[0] == Decimal(dollars) or (cell == "embeddings" and Decimal(dollars) < held[0] < Decimal("0.0001"))


@pytest.mark.parametrize(
    ("cell", "model", "most"),
    [
        ("transcriptions by second", "whisper-1", "0.1"),
        ("transcriptions by token", "gpt-4o-transcribe", "0.5"),
        ("images.generate", "", "0.5"),
    ],
)
def test_what_a_file_or_a_picture_may_cost_is_held(cell: str, model: str, most: str, client: Any, wire: Wire) -> None:
    """A minute of sound by the size of its file, tokens by what the model can read, a picture by the largest: above the truth, not far."""
    path, answer, call, _, _, dollars = E2[cell]
    wire.answers[f"POST {path}"] = answer
    held: list[Decimal] = []
    content = io.BytesIO(bytes(61 * 1000))  # 8 kilobits a second
    content.seek(7)
    with af.budget("$1") as block:
        wire.during = lambda: held.append(block.reserved)
        if model:
            client.audio.transcriptions.create(model=model, file=("speech.ogg", content, "audio/ogg"))
        else:
            call(client)
        assert block.spent == Decimal(dollars)
    assert Decimal(dollars) < held[0] < Decimal(most)


@pytest.mark.parametrize("model", ["whisper-1", "gpt-4o-transcribe"])
def test_a_transcript_without_a_usage_is_an_estimate(model: str, client: Any, wire: Wire) -> None:
    """Plain text tells nothing: the size of the file, or what the model can read, gives bounds that hold the truth."""
    wire.answers["POST /audio/transcriptions"] = ("text/plain", f"{CANARY}\n".encode())
    file = ("speech.mp3", bytes(61 * 6000), "audio/mpeg")
    assert CANARY in client.audio.transcriptions.create(model=model, file=file, response_format="text")
    charge = only_row()
    true = {"whisper-1": {"audio_seconds": 61}, "gpt-4o-transcribe": {"input_audio_tokens": 610, "output_tokens": 30}}[
        model
    ]
    cost = af.price(model, **true).amount
    assert cost is not None
    assert charge.basis == "estimated"
    assert from_nanos(charge.lower or 0) <= cost <= from_nanos(charge.upper or 0)
    assert charge.amount


def test_measuring_a_file_does_not_read_it() -> None:
    """A file is as it was; what can only be read has no size and is left alone."""
    from aifinops.integrations.calls import _size

    class Once:
        def read(self, size: int = -1) -> bytes:
            raise AssertionError("read by us")

    content = io.BytesIO(b"0123456789")
    content.seek(4)
    assert _size([("file", ("a.wav", content)), ("file", b"12")]) == 12
    assert content.tell() == 4
    assert _size([("file", ("speech.wav", Once()))]) is None
    assert _size(None) is None


def test_speech_is_handed_on_byte_by_byte(client: Any, wire: Wire) -> None:
    """A streamed download of sound is the user's: the same bytes, one charge."""
    wire.answers["POST /audio/speech"] = (MP3[0], [MP3[1][:700], MP3[1][700:]])
    with client.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input="x" * 1000) as answer:
        assert b"".join(answer.iter_bytes()) == MP3[1]
    assert (dict(only_row().quantities), usd(only_row())) == ({"characters": 1000}, Decimal("0.015"))


def test_speech_of_a_model_that_is_billed_by_tokens_is_an_estimate(client: Any, wire: Wire) -> None:
    """Nobody tells its tokens: bounds that hold a minute of speech for a thousand letters."""
    wire.answers["POST /audio/speech"] = MP3
    client.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="x" * 1000)
    charge = only_row()
    true = af.price("gpt-4o-mini-tts", input_tokens=250, output_tokens=60 * 20).amount
    assert true is not None
    assert charge.basis == "estimated"
    assert from_nanos(charge.lower or 0) < true < from_nanos(charge.upper or 0)


def test_speech_in_events_tells_its_usage(client: Any, wire: Wire) -> None:
    """`stream_format="sse"` ends with the tokens."""
    usage = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
    wire.answers["POST /audio/speech"] = [
        {"type": "speech.audio.delta", "audio": "aGVsbG8="},
        {"type": "speech.audio.done", "usage": usage},
    ]
    create = client.audio.speech.with_streaming_response.create
    with create(model="gpt-4o-mini-tts", voice="alloy", input=CANARY, extra_body={"stream_format": "sse"}) as answer:
        assert answer.read()
    charge = only_row()
    assert dict(charge.quantities) == {"input_tokens": 14, "output_audio_tokens": 101}
    assert charge.basis == "priced"


def test_images_in_a_stream(client: Any, wire: Wire) -> None:
    """The last event of a stream of pictures has the usage."""
    made = [
        {"type": "image_generation.partial_image", "b64_json": "aGk=", "partial_image_index": 0},
        {"type": "image_generation.completed", "b64_json": "aGk=", "created_at": AT, "usage": IMAGES["usage"]},
    ]
    wire.answers["POST /images/generations"] = events(*made)
    try:
        stream = client.images.generate(model="gpt-image-1", prompt=CANARY, stream=True)
    except TypeError:
        pytest.skip(f"openai {openai.__version__} has no stream of pictures")
    assert len(list(stream)) == 2
    assert usd(only_row()) == Decimal("0.16025")


# --- endpoints that no row knows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"input_tokens": 5, "output_tokens": 3}, {"input_tokens": 5, "output_tokens": 3}),
        ({"prompt_tokens": 5, "completion_tokens": 3}, {"input_tokens": 5, "output_tokens": 3}),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_new_endpoint_with_a_usage_is_charged(
    usage: Any, counts: dict[str, int], streamed: bool, client: Any, wire: Wire
) -> None:
    """Whatever it is: the name of the operation is the last part of its path, and the budget is told."""
    body = {"id": "new_1", "model": MODEL, "usage": usage}
    wire.answers["POST /some/new_thing"] = [{"delta": "x"}, body, "[DONE]"] if streamed else body
    with af.budget("$1") as block:
        if streamed:
            ask = {"model": MODEL, "stream": True}
            list(
                client.post("/some/new_thing", body=ask, cast_to=object, stream=True, stream_cls=openai.Stream[object])
            )
        else:
            client.post("/some/new_thing", body={"model": MODEL}, cast_to=object)
        charge = only_row()
        assert block.spent == usd(charge) == af.price(MODEL, **counts).amount
    assert (charge.operation, charge.model, dict(charge.quantities)) == ("new_thing", MODEL, counts)


def test_endpoints_without_a_usage_are_not_touched(client: Any, wire: Wire) -> None:
    """Files, lists, deletions, cancellations and jobs leave no row, even where the answer repeats an earlier usage."""
    page = {
        "object": "list",
        "data": [{"id": "x", "object": "model", "created": AT, "owned_by": "o"}],
        "has_more": False,
    }
    wire.answers = {
        "GET /models": page,
        "GET /chat/completions": {**page, "data": [CHAT]},
        "POST /responses/resp_1/cancel": response("cancelled"),
        "DELETE /responses/resp_1": {},
        "POST /files": {"id": "f", "object": "file", "bytes": 3, "created_at": AT, "filename": "f", "purpose": "batch"},
        "POST /vector_stores": {"id": "v", "object": "vector_store", "usage_bytes": 12},
        "GET /batches": {**page, "data": [batch()]},
    }
    with af.budget("$0.000001"):
        assert len(list(client.models.list())) == 1
        client.post("/responses/resp_1/cancel", cast_to=object)
        client.delete("/responses/resp_1", cast_to=object)
        client.files.create(file=("f", b"{}\n"), purpose="batch")
        client.post("/vector_stores", body={"name": "x"}, cast_to=object)
        client.get("/chat/completions", cast_to=object)
        list(client.batches.list())
    assert rows() == []


# --- polls -----------------------------------------------------------------------------------------------------------------


def test_a_background_response_and_its_polls_are_one_charge(client: Any, wire: Wire, at_the_time: None) -> None:
    """Created, polled in vain, polled to its end and again: one row, of the first call, and nothing stays held."""
    responses = need(client, "responses")
    wire.answers["POST /responses"] = response("queued", None)
    wire.answers["GET /responses/resp_1"] = response("in_progress", None)
    with af.budget("$1", name="background") as block:
        responses.create(model=MODEL, input=CANARY, background=True, max_output_tokens=500)
        responses.retrieve("resp_1")
        assert rows() == []
        held = block.reserved
        assert held > 0
        wire.answers["GET /responses/resp_1"] = response()
        for _ in range(3):
            assert responses.retrieve("resp_1").usage.output_tokens == 200
        exact(only_row(), "resp_1")
        assert block.reserved == 0
        assert block.spent == usd(only_row()) < held


def test_polling_by_a_stream(client: Any, wire: Wire, at_the_time: None) -> None:
    """`retrieve(stream=True)` that breaks leaves the call open; the one that reaches the end settles it."""
    responses = need(client, "responses")
    wire.answers["POST /responses"] = response("queued", None)
    responses.create(model=MODEL, input=CANARY, background=True)
    started = {"type": "response.created", "response": response("in_progress", None)}
    wire.answers["GET /responses/resp_1"] = events(started, {"type": "response.completed", "response": response()})
    try:
        stream = responses.retrieve("resp_1", stream=True)
    except TypeError:
        pytest.skip(f"openai {openai.__version__} cannot stream a retrieval")
    next(iter(stream))
    stream.close()
    assert rows() == []
    assert len(list(responses.retrieve("resp_1", stream=True))) == 2
    exact(only_row(), "resp_1")


def test_a_background_stream_that_breaks_is_finished_by_a_poll(client: Any, wire: Wire, at_the_time: None) -> None:
    """It goes on at the provider: the poll brings the truth in place of an estimate."""
    responses = need(client, "responses")
    started = {"type": "response.created", "response": response("in_progress", None, background=True)}
    wire.answers["POST /responses"] = events(started, {"type": "response.completed", "response": response()})
    stream = responses.create(model=MODEL, input=CANARY, background=True, stream=True)
    next(iter(stream))
    stream.close()
    assert rows() == []
    wire.answers["GET /responses/resp_1"] = response()
    responses.retrieve("resp_1")
    exact(only_row(), "resp_1")


@pytest.mark.parametrize("end", ["exit", "eviction", "failure"])
def test_a_background_response_that_tells_no_usage_is_an_estimate(
    end: str, client: Any, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never polled to its end, or failed: one row whose bounds hold the truth, never zero."""
    responses = need(client, "responses")
    wire.answers["POST /responses"] = response("queued", None)
    responses.create(model=MODEL, input="word " * 1000, background=True)
    if end == "exit":
        later.settle_held()
    elif end == "eviction":
        monkeypatch.setattr(later, "MOST_HELD", 1)
        wire.answers["POST /responses"] = response("queued", None, id="resp_2")
        responses.create(model=MODEL, input="x", background=True)
    else:
        wire.answers["GET /responses/resp_1"] = response("failed", None, output=[])
        responses.retrieve("resp_1")
    charge = only_row()
    true = af.price(MODEL, **COUNTS).amount
    assert true is not None
    assert (charge.basis, charge.status, charge.response_id) == ("estimated", "abandoned", "resp_1")
    assert charge.amount
    assert from_nanos(charge.lower or 0) <= true <= from_nanos(charge.upper or 0)


def test_what_was_charged_when_it_was_made_is_free_to_get(client: Any, wire: Wire, at_the_time: None) -> None:
    """Stored responses and chat completions may be read again."""
    responses = need(client, "responses")
    wire.answers = {
        "POST /responses": response(),
        "GET /responses/resp_1": response(),
        "POST /chat/completions": CHAT,
        "GET /chat/completions/chatcmpl-1": CHAT,
    }
    responses.create(model=MODEL, input=CANARY)
    client.chat.completions.create(model=MODEL, messages=MESSAGES, store=True)
    for _ in range(2):
        responses.retrieve("resp_1")
        client.get("/chat/completions/chatcmpl-1", cast_to=object)
    assert sorted(row.response_id for row in rows()) == ["chatcmpl-1", "resp_1"]


def test_a_response_made_elsewhere_is_charged_once(client: Any, wire: Wire) -> None:
    """No process of this ledger has made it: the first poll with a usage is its charge, at the price of its own time."""
    wire.answers["GET /responses/resp_1"] = response()
    responses = need(client, "responses")
    with af.budget("$1", name="elsewhere"):
        for _ in range(3):
            responses.retrieve("resp_1")
        charge = only_row()
        assert (charge.at, charge.model) == (AT * 10**9, MODEL)
        exact(charge, "resp_1")


def test_threads_that_poll_the_same_response_charge_it_once(client: Any, wire: Wire, at_the_time: None) -> None:
    """Sixteen polls at once."""
    responses = need(client, "responses")
    wire.answers = {"POST /responses": response("queued", None), "GET /responses/resp_1": response()}
    wire.answers["GET /responses/resp_9"] = response(id="resp_9")
    responses.create(model=MODEL, input=CANARY, background=True)
    threads = [threading.Thread(target=responses.retrieve, args=(f"resp_{n % 2 * 8 + 1}",)) for n in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(row.response_id for row in rows()) == ["resp_1", "resp_9"]


def thread_run(status: str = "completed", **more: Any) -> dict[str, Any]:
    """A run of Assistants as the API answers it."""
    return {
        "id": "run_1", "object": "thread.run", "thread_id": "t", "assistant_id": "a", "created_at": AT - 9, "completed_at": AT, "model": MODEL,
        "status": status, "instructions": CANARY, "tools": [], "usage": CHAT_USAGE if status in {"completed", "incomplete"} else None, **more,
    }  # fmt: skip


def grown(usage: dict[str, Any], by: int) -> dict[str, Any]:
    """The same usage after more work: input, output and their sum."""
    more = {name: usage[name] + by for name in ("input_tokens", "output_tokens", "total_tokens")}
    return {**usage, **more}


def test_a_usage_that_grows_under_one_id_is_charged_by_its_growth(client: Any, wire: Wire, at_the_time: None) -> None:
    """Polled at 200, at 260 and at 260 tokens again: what there is at the end, neither the sum of what was told nor the first only."""
    responses = need(client, "responses")
    with af.budget("$1") as block:
        for by in (0, 60, 60):
            wire.answers["GET /responses/resp_1"] = response(usage=grown(RESPONSE_USAGE, by))
            responses.retrieve("resp_1")
        first, more = rows()
        assert {dict(one.quantities)["output_tokens"] for one in (first, more)} == {80, 60}
        total = {name: first.quantities.get(name, 0) + more.quantities.get(name, 0) for name in COUNTS}
        assert total == {**COUNTS, "input_tokens": 360, "output_tokens": 140}
        assert block.spent == af.price(MODEL, **total).amount
        assert first.response_id == more.response_id == "resp_1"


def test_what_was_charged_when_it_was_made_is_charged_for_its_growth(
    client: Any, wire: Wire, at_the_time: None
) -> None:
    """An answer that goes on after its first call: the poll brings what has come since."""
    responses = need(client, "responses")
    wire.answers["POST /responses"] = response()
    wire.answers["GET /responses/resp_1"] = response(usage=grown(RESPONSE_USAGE, 40))
    responses.create(model=MODEL, input=CANARY)
    for _ in range(2):
        responses.retrieve("resp_1")
    assert sorted(row.quantities["output_tokens"] for row in rows()) == [40, 80]


def test_a_later_answer_that_only_tells_more_of_the_same_tokens_has_not_grown(
    client: Any, wire: Wire, at_the_time: None
) -> None:
    """That some of the output was thought is no output of its own."""
    responses = need(client, "responses")
    plain = {**RESPONSE_USAGE, "output_tokens_details": {"reasoning_tokens": 0}}
    wire.answers["POST /responses"] = response(usage=plain)
    wire.answers["GET /responses/resp_1"] = response()
    responses.create(model=MODEL, input=CANARY)
    responses.retrieve("resp_1")
    assert only_row().quantities["output_tokens"] == 200


def test_a_session_at_an_unknown_endpoint_is_charged_by_its_growth(client: Any, wire: Wire) -> None:
    """Every request about it answers with all that it has used so far."""
    for tokens in (5, 9, 9, 20):
        usage = {"input_tokens": tokens, "output_tokens": 2 * tokens}
        wire.answers["POST /sessions/s1/turns"] = {"id": "s1", "model": MODEL, "usage": usage}
        client.post("/sessions/s1/turns", body={"model": MODEL}, cast_to=object)
    assert [dict(row.quantities) for row in rows()] == [
        {"input_tokens": tokens, "output_tokens": 2 * tokens} for tokens in (5, 4, 11)
    ]


def test_processes_that_see_the_same_growth_charge_it_once(client: Any, wire: Wire, at_the_time: None) -> None:
    """What another process has charged is found in the ledger by the id that it has in all of them."""
    responses = need(client, "responses")
    for by in (0, 60):
        wire.answers["GET /responses/resp_1"] = response(usage=grown(RESPONSE_USAGE, by))
        responses.retrieve("resp_1")
    later._after_fork()  # this is another process now
    responses.retrieve("resp_1")
    assert len(rows()) == 2


def test_a_call_inside_of_a_poll_is_a_call_of_its_own(wire: Wire, at_the_time: None) -> None:
    """A hook of the transport that asks a model, while the library further out only looks at an answer that it has."""
    wire.answers = {"GET /responses/resp_1": response(), "POST /chat/completions": CHAT, "POST /new/thing": {"id": "n"}}
    base = sys.modules["openai._base_client"]
    transport = getattr(base, "httpx2", None) or base.httpx
    with openai.OpenAI(base_url=wire.url, api_key="test", max_retries=0) as inner:
        ask = lambda _: inner.chat.completions.create(model=MODEL, messages=MESSAGES)  # noqa: E731 - it is a hook
        hooked = transport.Client(event_hooks={"request": [ask]})
        with openai.OpenAI(base_url=wire.url, api_key="test", max_retries=0, http_client=hooked) as outer:
            need(outer, "responses").retrieve("resp_1")
            assert sorted(row.response_id for row in rows()) == ["chatcmpl-1", "resp_1"]
            outer.post("/new/thing", cast_to=object)
    assert sorted(row.response_id for row in rows()) == ["chatcmpl-1", "chatcmpl-1", "resp_1"]


@pytest.mark.filterwarnings("ignore:The Assistants API:DeprecationWarning")
def test_a_run_of_assistants_is_charged_once_when_its_usage_is_there(
    client: Any, wire: Wire, at_the_time: None
) -> None:
    """Begun and polled in vain it is no row; polled to its end, by a helper and again, it is one."""
    runs = need(client.beta, "threads").runs
    wire.answers["POST /threads/t/runs"] = thread_run("queued")
    wire.answers["GET /threads/t/runs/run_1"] = thread_run("requires_action")
    with af.budget("$1") as block:
        runs.create(thread_id="t", assistant_id="a")
        runs.retrieve("run_1", thread_id="t")
        assert rows() == []
        wire.answers["GET /threads/t/runs/run_1"] = thread_run()
        assert runs.create_and_poll(thread_id="t", assistant_id="a", poll_interval_ms=1).status == "completed"
        runs.retrieve("run_1", thread_id="t")
        exact(only_row(), "run_1")
        assert only_row().operation == "invoke_agent"
        assert block.spent == usd(only_row())


@pytest.mark.filterwarnings("ignore:The Assistants API:DeprecationWarning")
def test_a_streamed_run_of_assistants_is_free_to_poll(client: Any, wire: Wire, at_the_time: None) -> None:
    """Its stream told the usage, of the run and of its steps: neither is charged twice."""
    runs = need(client.beta, "threads").runs
    step = {
        "id": "step_1", "object": "thread.run.step", "run_id": "run_1", "thread_id": "t", "assistant_id": "a", "created_at": AT, "type": "tool_calls",
        "status": "completed", "step_details": {"type": "tool_calls", "tool_calls": []}, "usage": CHAT_USAGE,
    }  # fmt: skip
    wire.answers["POST /threads/t/runs"] = [
        ("thread.run.created", thread_run("queued")), ("thread.run.step.completed", step), ("thread.run.completed", thread_run()), ("done", "[DONE]"),
    ]  # fmt: skip
    wire.answers["GET /threads/t/runs/run_1"] = thread_run()
    assert list(runs.create(thread_id="t", assistant_id="a", stream=True))
    runs.retrieve("run_1", thread_id="t")
    exact(only_row(), "run_1")


def test_documents_are_ranked_by_tokens(client: Any, wire: Wire) -> None:
    """Voyage and others tell one total for query and documents; this client has no method for it, but sends it."""
    wire.answers["POST /rerank"] = {
        "object": "list",
        "data": [],
        "model": "rerank-2-lite",
        "usage": {"total_tokens": 43},
    }
    client.post("/rerank", body={"model": "rerank-2-lite", "query": CANARY, "documents": [CANARY]}, cast_to=object)
    charge = only_row()
    assert (charge.operation, charge.model, dict(charge.quantities)) == (
        "rerank",
        "rerank-2-lite",
        {"input_tokens": 43},
    )


async def test_async_polls(wire: Wire, at_the_time: None) -> None:
    """The same in the other colour."""
    wire.answers = {"POST /responses": response("queued", None), "GET /responses/resp_1": response()}
    async with openai.AsyncOpenAI(base_url=wire.url, api_key="test", max_retries=0) as client:
        responses = need(client, "responses")
        await responses.create(model=MODEL, input=CANARY, background=True)
        await responses.retrieve("resp_1")
        await responses.retrieve("resp_1")
    exact(only_row(), "resp_1")


SCRIPT = """
import os, sys
import openai, aifinops as af
af.init(ledger=sys.argv[2])
af.instrument("openai")
client = openai.OpenAI(base_url=sys.argv[1], api_key="test")
for step in sys.argv[3:]:
    if step == "create":
        client.responses.create(model="gpt-5-mini", input="hello", background=True)
    elif step == "fork":
        child = os.fork()
        if child == 0:
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
    elif step == "batch":
        client.batches.retrieve("batch_1")
    else:
        client.responses.retrieve("resp_1")
"""


def run(wire: Wire, ledger: Path, *steps: str) -> list[Charge]:
    """Another process, and what the ledger has after it."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, wire.url, str(ledger), *steps]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(command, check=True, env=environment, timeout=60, capture_output=True)
    af.init(ledger=ledger)
    return rows()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_end_of_the_process_settles_what_waits_once(wire: Wire, tmp_path: Path) -> None:
    """An answer that nobody polled is an estimate in the ledger; a forked child leaves it to its parent."""
    need(openai.OpenAI(api_key="test"), "responses")
    wire.answers["POST /responses"] = response("queued", None)
    (charge,) = run(wire, tmp_path / "ledger.db", "create", "fork")
    assert (charge.basis, charge.status) == ("estimated", "abandoned")


def test_processes_that_poll_the_same_response_or_batch_charge_it_once(wire: Wire, tmp_path: Path) -> None:
    """One creates and polls, others poll: the ledger that they share has one entry of each."""
    need(openai.OpenAI(api_key="test"), "responses")
    wire.answers = {
        "POST /responses": response("queued", None, created_at=int(time.time())),
        "GET /responses/resp_1": response(created_at=int(time.time())),
        "GET /batches/batch_1": batch(usage=RESPONSE_USAGE),
    }
    for steps in (("create", "poll", "poll"), ("poll", "batch"), ("batch", "poll")):
        found = run(wire, tmp_path / "ledger.db", *steps)
    assert sorted(row.response_id for row in found) == ["batch_1", "resp_1"]


# --- batches -----------------------------------------------------------------------------------------------------------------


def batch(status: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "id": "batch_1", "object": "batch", "endpoint": "/v1/responses", "input_file_id": "in", "completion_window": "24h",
        "status": status, "created_at": AT - 4000, "completed_at": AT, "model": MODEL, "output_file_id": "out_1", **more,
    }  # fmt: skip


def lines() -> bytes:
    chat = {
        "id": "b1",
        "custom_id": "one",
        "response": {"status_code": 200, "request_id": "r", "body": CHAT},
        "error": None,
    }
    made = {"id": "b2", "custom_id": "two", "response": {"status_code": 200, "request_id": "r", "body": response()}}
    lost = {"id": "b3", "custom_id": "three", "response": None, "error": {"code": "batch_expired", "message": "late"}}
    return "".join(json.dumps(line) + "\n" for line in (chat, made, lost)).encode()


HALF = Decimal("0.5")


def test_a_batch_with_a_usage_is_charged_once_at_its_rate(client: Any, wire: Wire) -> None:
    """However often it is polled, and its output is free to read."""
    wire.answers = {
        "GET /batches/batch_1": batch("in_progress"),
        "GET /files/out_1/content": ("application/jsonl", lines()),
    }
    client.batches.retrieve("batch_1")
    assert rows() == []
    wire.answers["GET /batches/batch_1"] = batch(usage=RESPONSE_USAGE)
    for _ in range(3):
        client.batches.retrieve("batch_1")
        assert client.files.content("out_1").read() == lines()
    charge = only_row()
    assert (charge.tier, charge.response_id, charge.at) == ("batch", "batch_1", AT * 10**9)
    assert dict(charge.quantities) == COUNTS
    assert usd(charge) == af.price(MODEL, tier="batch", **COUNTS).amount


@pytest.mark.parametrize("streamed", [False, True])
def test_a_batch_without_a_usage_is_charged_by_its_lines(streamed: bool, client: Any, wire: Wire) -> None:
    """Each answer once, at the batch rate; a line without an answer costs nothing, and other files are not looked at."""
    content = ("application/octet-stream", [lines()[:100], lines()[100:900], lines()[900:]])
    wire.answers = {
        "GET /batches/batch_1": batch(),
        "GET /files/out_1/content": content,
        "GET /files/other/content": content,
    }
    client.files.content("other")
    assert rows() == []
    for _ in range(2):
        client.batches.retrieve("batch_1")
        if streamed:
            with client.files.with_streaming_response.content("out_1") as answer:
                assert b"".join(answer.iter_bytes()) == lines()
        else:
            assert client.files.content("out_1").read() == lines()
    found = rows()
    assert sorted(row.response_id for row in found) == ["chatcmpl-1", "resp_1"]
    for row in found:
        assert (row.tier, dict(row.quantities)) == ("batch", COUNTS)
        assert usd(row) == af.price(MODEL, tier="batch", **COUNTS).amount


def test_a_file_that_is_cut_counts_the_lines_before(client: Any, wire: Wire) -> None:
    """The rest comes with the next download."""
    wire.answers = {"GET /batches/batch_1": batch(), "GET /files/out_1/content": ("text/plain", lines()[:-700])}
    client.batches.retrieve("batch_1")
    client.files.content("out_1")
    assert [row.response_id for row in rows()] == ["chatcmpl-1"]
    wire.answers["GET /files/out_1/content"] = ("text/plain", lines())
    client.files.content("out_1")
    assert sorted(row.response_id for row in rows()) == ["chatcmpl-1", "resp_1"]


def test_embeddings_of_a_server_that_tells_only_a_total(client: Any, wire: Wire) -> None:
    """An embedding has no output: the total is the input."""
    wire.answers["POST /embeddings"] = {**EMBEDDED, "usage": {"total_tokens": 8}}
    client.embeddings.create(model="text-embedding-3-small", input=CANARY, encoding_format="float")
    assert dict(only_row().quantities) == {"input_tokens": 8}
