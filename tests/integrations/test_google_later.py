"""What google-genai answers later: batches are charged once, at their rate, answer by answer; videos by the seconds that were made."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

genai = pytest.importorskip("google.genai")

from google.genai import types  # noqa: E402
from google.oauth2.credentials import Credentials  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.integrations import later  # noqa: E402
from aifinops.money import from_nanos  # noqa: E402
from aifinops.testing import FakeClock  # noqa: E402
from aifinops.testing.wire import CANARY, Wire  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The generate_videos method:DeprecationWarning"),
]

MODEL, VEO = "gemini-2.5-flash", "veo-3.1-generate-preview"
ENDED, AT = "2026-11-10T12:00:00.123456789Z", 1_794_312_000
USAGE = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100}
COUNTS = {"input_tokens": 1000, "output_tokens": 100}
COST = Decimal("0.000275")  # half of 0.30 and 2.50 a million


def answer() -> dict[str, Any]:
    """One answer of a batch."""
    said = {"content": {"role": "model", "parts": [{"text": CANARY}]}, "finishReason": "STOP", "index": 0}
    return {"candidates": [said], "usageMetadata": USAGE, "modelVersion": MODEL, "responseId": "r"}


def batch(state: str = "SUCCEEDED", **output: Any) -> dict[str, Any]:
    """A batch as the Gemini API answers it, where it is an operation that tells its output twice."""
    about = {"model": f"models/{MODEL}", "state": f"BATCH_STATE_{state}", "createTime": ENDED, "name": "batches/b1"}
    if state != "SUCCEEDED":
        return {"name": "batches/b1", "metadata": about}
    return {
        "name": "batches/b1",
        "done": True,
        "metadata": {**about, "endTime": ENDED, "output": output},
        "response": output,
    }


INLINE = {"inlinedResponses": {"inlinedResponses": [
    {"response": answer(), "metadata": {"key": CANARY}}, {"error": {"code": 3, "message": CANARY}}, {"response": answer(), "metadata": {"key": CANARY}},
]}}  # fmt: skip
LINES = b"".join(json.dumps({"key": key, "response": answer()}).encode() + b"\n" for key in ("a", "b"))


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.init(ledger="memory", clock=FakeClock((AT + 3600) * 10**9))
    af.instrument("google")
    yield
    af.uninstrument()
    later.settle_held()
    later._held.files.clear()


@pytest.fixture
def client(wire: Wire) -> Iterator[Any]:
    made = genai.Client(
        api_key="test",
        vertexai=False,
        http_options=types.HttpOptions(base_url=wire.url, timeout=20_000, api_version="v1beta"),
    )
    yield made
    made.close()


@pytest.fixture
async def aclient(client: Any) -> AsyncIterator[Any]:
    yield client.aio
    await client.aio.aclose()


@pytest.fixture
def vertex(wire: Wire) -> Iterator[Any]:
    where = {"project": "p", "location": "us-central1", "credentials": Credentials(token="t")}
    made = genai.Client(vertexai=True, http_options=types.HttpOptions(base_url=wire.url, timeout=20_000), **where)
    yield made
    made.close()


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def two_lines() -> None:
    """Both answers of the batch, each once and at half the price."""
    found = rows()
    assert [(dict(row.quantities), row.tier, row.model) for row in found] == [(COUNTS, "batch", MODEL)] * 2
    assert [from_nanos(row.amount or 0) for row in found] == [COST, COST]


# --- batches ------------------------------------------------------------------------------------------------------------------


def test_a_batch_with_its_answers_inside_is_charged_once(client: Any, wire: Wire) -> None:
    """Under way it is free; at its end each answer is a row, however often it is asked for, and an error is none."""
    wire.answers["POST /v1beta/models/gemini-2.5-flash:batchGenerateContent"] = batch("PENDING")
    wire.answers["GET /v1beta/batches/b1"] = batch("RUNNING")
    asked = [{"contents": [{"role": "user", "parts": [{"text": CANARY}]}]}]
    with af.budget("$1") as block:
        client.batches.create(model=MODEL, src=asked)
        client.batches.get(name="batches/b1")
        assert rows() == []
        wire.answers["GET /v1beta/batches/b1"] = batch(**INLINE)
        for _ in range(3):
            assert len(client.batches.get(name="batches/b1").dest.inlined_responses) == 3
        two_lines()
        assert {row.at for row in rows()} == {AT * 10**9}
        assert block.spent == 2 * COST


@pytest.mark.parametrize("way", ["bytes", "path", "stream"])
def test_a_batch_with_a_file_is_charged_by_its_lines(way: str, client: Any, wire: Wire, tmp_path: Path) -> None:
    """When somebody downloads it, in whatever way, and not a second time; other files are nobody's business."""
    wire.answers["GET /v1beta/files/out:download"] = ("application/jsonl", LINES)
    wire.answers["GET /v1beta/files/other:download"] = ("application/jsonl", LINES)
    wire.answers["GET /v1beta/batches/b1"] = batch(responsesFile="files/out")
    assert client.batches.get(name="batches/b1").dest.file_name == "files/out"
    assert rows() == []
    options: dict[str, Any] = {}
    target = io.BytesIO()
    for _ in range(2):
        if way != "bytes":
            options = {"destination": tmp_path / "out.jsonl" if way == "path" else target}
        try:
            found = client.files.download(file="files/out", **options)
        except TypeError:
            pytest.skip("this version returns the bytes only")
    assert (
        found
        if way == "bytes"
        else (tmp_path / "out.jsonl").read_bytes()
        if way == "path"
        else target.getvalue()[: len(LINES)]
    ) == LINES
    client.files.download(file="files/other")
    two_lines()


def test_embeddings_of_a_batch_are_of_its_model(client: Any, wire: Wire) -> None:
    """Their lines do not name one."""
    said = {"response": {"embedding": {"values": [0.1]}, "tokenCount": 12}}
    told = batch(inlinedResponses={"inlinedResponses": [said]})
    told["metadata"]["model"] = "models/gemini-embedding-001"
    wire.answers["GET /v1beta/batches/b1"] = told
    client.batches.get(name="batches/b1")
    (row,) = rows()
    assert (row.model, row.tier, dict(row.quantities)) == ("gemini-embedding-001", "batch", {"input_tokens": 12})


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "EXPIRED"])
def test_a_batch_that_came_to_nothing_is_no_row(state: str, client: Any, wire: Wire) -> None:
    """It has no answers."""
    wire.answers["GET /v1beta/batches/b1"] = batch(state)
    client.batches.get(name="batches/b1")
    assert rows() == []


def test_a_batch_on_vertex_ai_whose_answers_are_in_a_bucket_is_of_unknown_cost(vertex: Any, wire: Wire) -> None:
    """Once, and it is said why: never zero."""
    path = "/v1beta1/projects/p/locations/us-central1/batchPredictionJobs/7"
    told = {
        "name": path.removeprefix("/v1beta1/"),
        "state": "JOB_STATE_RUNNING",
        "model": f"publishers/google/models/{MODEL}",
    }
    wire.answers[f"GET {path}"] = told
    name = told["name"]
    vertex.batches.get(name=name)
    assert rows() == []
    ended = {"state": "JOB_STATE_SUCCEEDED", "endTime": ENDED, "outputInfo": {"gcsOutputDirectory": "gs://bucket/out"}}
    wire.answers[f"GET {path}"] = {**told, **ended}
    for _ in range(2):
        vertex.batches.get(name=name)
    (row,) = rows()
    assert (row.basis, row.amount, row.tier, row.provider) == ("unknown", None, "batch", "gcp.vertex_ai")
    assert row.at == AT * 10**9


async def test_the_same_in_the_other_colour(aclient: Any, wire: Wire) -> None:
    """Inside and in a file."""
    wire.answers["GET /v1beta/batches/b1"] = batch(**INLINE)
    for _ in range(2):
        await aclient.batches.get(name="batches/b1")
    two_lines()
    told = batch(responsesFile="files/out")
    wire.answers["GET /v1beta/batches/b2"] = {**told, "name": "batches/b2"}
    wire.answers["GET /v1beta/files/out:download"] = ("application/jsonl", LINES)
    await aclient.batches.get(name="batches/b2")
    assert await aclient.files.download(file="files/out") == LINES
    assert [dict(row.quantities) for row in rows()] == [COUNTS] * 4


# --- videos -------------------------------------------------------------------------------------------------------------------

HOME = f"projects/p/locations/us-central1/publishers/google/models/{VEO}"
OPERATION = f"{HOME}/operations/o1"
BEGIN, ASK = f"POST /v1beta1/{HOME}:predictLongRunning", f"POST /v1beta1/{HOME}:fetchPredictOperation"


def video(made: int, blocked: int = 0) -> dict[str, Any]:
    """The end of an operation."""
    videos = [{"gcsUri": "gs://b/v.mp4", "mimeType": "video/mp4"}] * made
    told = {"videos": videos, **({"raiMediaFilteredCount": blocked} if blocked else {})}
    return {"name": OPERATION, "done": True, "response": told}


@pytest.fixture
def priced() -> None:
    for provider in ("gcp.gemini", "gcp.vertex_ai"):
        af.register_price(VEO, provider=provider, rates={"video_seconds": "0.4"})


@pytest.mark.parametrize(
    ("config", "made", "seconds"),
    [({}, 1, 8), ({"duration_seconds": 4}, 1, 4), ({"duration_seconds": 6, "number_of_videos": 2}, 1, 6)],
)
def test_videos_are_charged_by_the_seconds_that_were_made(
    config: dict[str, Any], made: int, seconds: int, priced: None, vertex: Any, wire: Wire
) -> None:
    """What was asked for is held; what was blocked is not charged; asking again is free."""
    wire.answers[BEGIN] = wire.answers[ASK] = {"name": OPERATION}
    with af.budget("$100") as block:
        operation = vertex.models.generate_videos(model=VEO, prompt=CANARY, config=config)
        operation = vertex.operations.get(operation)
        assert not operation.done
        assert rows() == []
        many = config.get("number_of_videos", 1)
        assert block.reserved == Decimal("0.4") * seconds * many
        wire.answers[ASK] = video(made, many - made)
        for _ in range(3):
            assert vertex.operations.get(operation).done
        (row,) = rows()
        assert (row.operation, row.model, dict(row.quantities)) == ("video_generation", VEO, {"video_seconds": seconds})
        assert (row.basis, row.status, row.response_id) == ("priced", "ok", OPERATION)
        assert (block.reserved, block.spent) == (0, Decimal("0.4") * seconds)


@pytest.mark.parametrize("end", ["blocked", "error"])
def test_a_video_that_was_not_made_is_not_charged(end: str, priced: None, vertex: Any, wire: Wire) -> None:
    """What was held is given back."""
    wire.answers[BEGIN] = {"name": OPERATION}
    failed = {"name": OPERATION, "done": True, "error": {"code": 13, "message": CANARY}}
    wire.answers[ASK] = video(0, 1) if end == "blocked" else failed
    with af.budget("$100") as block:
        operation = vertex.models.generate_videos(model=VEO, prompt=CANARY)
        assert vertex.operations.get(operation).done
        assert (rows(), block.reserved, block.spent) == ([], 0, 0)


def test_a_video_that_nobody_asks_for_again_is_charged_as_asked(priced: None, vertex: Any, wire: Wire) -> None:
    """At the end of the process: it goes on at the provider."""
    wire.answers[BEGIN] = {"name": OPERATION}
    vertex.models.generate_videos(model=VEO, prompt=CANARY)
    later.settle_held()
    (row,) = rows()
    assert (dict(row.quantities), row.status) == ({"video_seconds": 8}, "abandoned")


def test_a_video_without_a_price_is_of_unknown_cost(vertex: Any, wire: Wire) -> None:
    """Its seconds are kept: they can be priced when somebody gives a price."""
    wire.answers[BEGIN], wire.answers[ASK] = {"name": OPERATION}, video(1)
    vertex.operations.get(vertex.models.generate_videos(model=VEO, prompt=CANARY))
    (row,) = rows()
    assert (row.basis, row.amount, dict(row.quantities)) == ("unknown", None, {"video_seconds": 8})


def test_a_video_that_another_process_asked_for_is_of_unknown_cost(priced: None, vertex: Any, wire: Wire) -> None:
    """Its length was said there."""
    wire.answers[ASK] = video(1)
    for _ in range(2):
        vertex.operations.get(types.GenerateVideosOperation(name=OPERATION))
    (row,) = rows()
    assert (row.basis, row.amount) == ("unknown", None)


def test_videos_of_the_gemini_api(priced: None, client: Any, wire: Wire) -> None:
    """Newer versions begin them on Vertex AI only: here with what those methods send. A GET asks, and the answer has another form."""
    name = f"models/{VEO}/operations/o1"
    wire.answers[f"POST /v1beta/models/{VEO}:predictLongRunning"] = {"name": name}
    asked = {"instances": [{"prompt": CANARY}], "parameters": {"durationSeconds": 4}}
    client._api_client.request("post", f"models/{VEO}:predictLongRunning", asked)
    samples = {"generatedSamples": [{"video": {"uri": "https://example.com/v"}}]}
    wire.answers[f"GET /v1beta/{name}"] = {"name": name, "done": True, "response": {"generateVideoResponse": samples}}
    client.operations.get(types.GenerateVideosOperation(name=name))
    (row,) = rows()
    assert (row.provider, dict(row.quantities), row.basis) == ("gcp.gemini", {"video_seconds": 4}, "priced")


async def test_videos_in_the_other_colour(priced: None, vertex: Any, wire: Wire) -> None:
    """Begun, polled in vain, to its end and again."""
    wire.answers[BEGIN] = wire.answers[ASK] = {"name": OPERATION}
    operation = await vertex.aio.models.generate_videos(model=VEO, prompt=CANARY, config={"duration_seconds": 4})
    operation = await vertex.aio.operations.get(operation)
    assert rows() == []
    wire.answers[ASK] = video(1)
    for _ in range(2):
        await vertex.aio.operations.get(operation)
    (row,) = rows()
    assert (row.provider, row.model, dict(row.quantities)) == ("gcp.vertex_ai", VEO, {"video_seconds": 4})
    assert from_nanos(row.amount or 0) == Decimal("1.6")
    await vertex.aio.aclose()
