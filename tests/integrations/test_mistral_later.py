"""Batches, speech and responses through the real mistralai client: a batch is charged once, answer by answer, at its rate."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("mistralai")

import aifinops as af
from aifinops import runtime
from aifinops.charges import Charge
from aifinops.integrations import later
from aifinops.money import from_nanos
from aifinops.testing import FakeClock
from aifinops.testing.wire import CANARY, Wire

MODEL, AT = "mistral-small-latest", 1_794_312_000
CHAT = {
    "id": "c1", "object": "chat.completion", "created": AT, "model": MODEL,
    "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200},
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": CANARY}}],
}  # fmt: skip
OCR = {"model": "mistral-ocr-latest", "usage_info": {"pages_processed": 12, "doc_size_bytes": 9}, "pages": []}
EMBEDDED = {"id": "e1", "object": "list", "model": "mistral-embed", "usage": {"prompt_tokens": 15, "total_tokens": 15}, "data": []}  # fmt: skip
HEARD = {
    "model": "voxtral-mini-latest", "text": CANARY, "language": "en", "segments": [],
    "usage": {"prompt_audio_seconds": 203, "prompt_tokens": 4, "total_tokens": 3264, "completion_tokens": 635},
}  # fmt: skip
TOLD = {"input_tokens": 1000, "output_tokens": 200}


def line(name: str, body: Any, status: int = 200) -> dict[str, Any]:
    """One answer of a batch."""
    return {"id": f"batch-{name}", "custom_id": name, "response": {"status_code": status, "body": body}, "error": None}


def job(status: str, **more: Any) -> dict[str, Any]:
    """A job as the API answers it."""
    return {
        "id": "job_1", "object": "batch", "input_files": [], "endpoint": "/v1/chat/completions", "errors": [], "status": status, "model": MODEL,
        "created_at": AT - 600, "completed_at": AT if status == "SUCCESS" else None, "total_requests": 2, "completed_requests": 2,
        "succeeded_requests": 2, "failed_requests": 0, "metadata": None, **more,
    }  # fmt: skip


LINES = [line("a", CHAT), line("b", {"message": CANARY}, 422), line("c", CHAT)]
PATH = "GET /v1/batch/jobs/job_1"


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.init(ledger="memory", clock=FakeClock((AT + 3600) * 10**9))
    af.instrument("mistral")
    yield
    af.uninstrument()
    later.settle_held()
    later._held.files.clear()


@pytest.fixture
def client(wire: Wire) -> Iterator[Any]:
    for home in ("mistralai.client", "mistralai"):
        kind = getattr(importlib.import_module(home), "Mistral", None)
        if kind is not None:
            break
    assert kind is not None
    with kind(api_key="test", server_url=wire.url) as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def two_lines() -> None:
    """Both answers, each once, at half the price of the list."""
    found = rows()
    assert [(dict(row.quantities), row.tier, row.model) for row in found] == [(TOLD, "batch", MODEL)] * 2
    half = (af.price(MODEL, provider="mistral", **TOLD).amount or Decimal(0)) / 2
    assert [from_nanos(row.amount or 0) for row in found] == [half, half]


def test_a_job_with_its_answers_inside_is_charged_once(client: Any, wire: Wire) -> None:
    """Under way it is free; at its end each answer is a row, however often it is asked for, and an error is none."""
    wire.answers["POST /v1/batch/jobs"] = job("QUEUED")
    client.batch.jobs.create(endpoint="/v1/chat/completions", model=MODEL, input_files=["f"])
    for status in ("QUEUED", "RUNNING"):
        wire.answers[PATH] = job(status)
        client.batch.jobs.get(job_id="job_1")
    assert rows() == []
    wire.answers[PATH] = job("SUCCESS", outputs=LINES)
    with af.budget("$1") as block:
        for _ in range(3):
            assert client.batch.jobs.get(job_id="job_1").status == "SUCCESS"
        two_lines()
        assert {row.at for row in rows()} == {AT * 10**9}
        assert block.spent == sum(from_nanos(row.amount or 0) for row in rows())


def test_a_job_with_a_file_is_charged_by_its_lines(client: Any, wire: Wire) -> None:
    """When somebody downloads it, and not a second time; other files are nobody's business."""
    wire.answers[PATH] = job("SUCCESS", output_file="file_1")
    data = b"".join(json.dumps(one).encode() + b"\n" for one in LINES)
    for name in ("file_1", "file_2"):
        wire.answers[f"GET /v1/files/{name}/content"] = ("application/octet-stream", data)
    client.batch.jobs.get(job_id="job_1")
    assert rows() == []
    assert client.files.download(file_id="file_2").read() == data
    assert rows() == []
    for _ in range(2):
        assert client.files.download(file_id="file_1").read() == data
    two_lines()


@pytest.mark.parametrize(
    ("body", "told"),
    [(OCR, {"pages": 12}), (EMBEDDED, {"input_tokens": 15}), (HEARD, {"audio_seconds": 203})],
    ids=["pages", "embeddings", "sound"],
)
def test_a_job_of_any_endpoint(body: Any, told: dict[str, int], client: Any, wire: Wire) -> None:
    """Each line is known by its own form."""
    wire.answers[PATH] = job("SUCCESS", outputs=[line("a", body)])
    client.batch.jobs.get(job_id="job_1")
    (row,) = rows()
    assert (dict(row.quantities), row.tier, row.model) == (told, "batch", body["model"])


async def test_jobs_in_the_other_colour(client: Any, wire: Wire) -> None:
    """The same."""
    wire.answers[PATH] = job("SUCCESS", outputs=LINES)
    async with client:
        for _ in range(2):
            await client.batch.jobs.get_async(job_id="job_1")
    two_lines()


def test_speech_is_billed_by_its_characters(client: Any, wire: Wire) -> None:
    """The answer is sound; the request says what is billed. Without a price in the list the cost is unknown."""
    if not hasattr(client.audio, "speech"):
        pytest.skip("this version has no speech")
    wire.answers["POST /v1/audio/speech"] = {"audio_data": "aGk="}
    client.audio.speech.complete(input="x" * 1500, model="voxtral-mini-tts-2603")
    af.register_price("voxtral-mini-tts-2603", provider="mistral", rates={"characters": "16"})
    client.audio.speech.complete(input="x" * 1500, model="voxtral-mini-tts-2603")
    unknown, known = rows()
    assert (unknown.basis, unknown.amount, dict(unknown.quantities)) == ("unknown", None, {"characters": 1500})
    assert (known.basis, from_nanos(known.amount or 0)) == ("priced", Decimal("0.024"))


def test_a_stream_of_speech_is_billed_by_its_characters(client: Any, wire: Wire) -> None:
    """Its last event tells tokens, which are not what is billed."""
    if not hasattr(client.audio, "speech"):
        pytest.skip("this version has no speech")
    af.register_price("voxtral-mini-tts-2603", provider="mistral", rates={"characters": "16"})
    usage = {"prompt_tokens": 300, "completion_tokens": 900, "total_tokens": 1200}
    wire.answers["POST /v1/audio/speech"] = [
        ("speech.audio.delta", {"type": "speech.audio.delta", "audio_data": "aGk="}),
        ("speech.audio.done", {"type": "speech.audio.done", "usage": usage}),
    ]
    assert list(client.audio.speech.complete(input="x" * 1500, model="voxtral-mini-tts-2603", stream=True))
    (row,) = rows()
    assert (dict(row.quantities), row.basis, row.stream) == ({"characters": 1500}, "priced", True)


def test_responses_are_read_like_those_of_openai(client: Any, wire: Wire) -> None:
    """Mistral answers at the same path in the same form."""
    responses = getattr(client, "responses", None) or getattr(getattr(client, "beta", None), "responses", None)
    if responses is None:
        pytest.skip("this version has no responses")
    wire.answers["POST /v1/responses"] = {
        "id": "resp_1", "object": "response", "created_at": AT, "completed_at": AT, "model": MODEL, "status": "completed", "output": [],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": {
            "input_tokens": 1000, "input_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 0}, "output_tokens": 200,
            "output_tokens_details": {"reasoning_tokens": 50}, "total_tokens": 1200,
        },
    }  # fmt: skip
    assert responses.create(model=MODEL, input=CANARY).id == "resp_1"
    (row,) = rows()
    assert dict(row.quantities) == {
        "input_tokens": 600,
        "cache_read_tokens": 400,
        "output_tokens": 150,
        "reasoning_tokens": 50,
    }
    assert row.response_id == "resp_1"
