"""Batches of the real anthropic client: every answer once at the batch rate, however often and by whom the results are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic")

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.testing.wire import CANARY, Wire  # noqa: E402

MODEL = "claude-opus-5"
COUNTS = {"input_tokens": 1000, "output_tokens": 100}


def line(number: int) -> dict[str, Any]:
    usage = {"input_tokens": 1000, "output_tokens": 100, "service_tier": "batch"}
    message = {
        "id": f"msg_{number}", "type": "message", "role": "assistant", "model": MODEL, "stop_reason": "end_turn", "stop_sequence": None,
        "content": [{"type": "text", "text": CANARY}], "usage": usage,
    }  # fmt: skip
    return {"custom_id": f"ask-{number}", "result": {"type": "succeeded", "message": message}}


def results(count: int = 3) -> bytes:
    errored = {"custom_id": "bad", "result": {"type": "errored", "error": {"type": "invalid_request", "message": "no"}}}
    return "".join(json.dumps(entry) + "\n" for entry in [*map(line, range(count)), errored]).encode()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        batch = {
            "id": "msgbatch_1", "type": "message_batch", "processing_status": "ended", "created_at": "2026-11-01T00:00:00Z",
            "expires_at": "2026-11-02T00:00:00Z", "ended_at": "2026-11-01T01:00:00Z", "archived_at": None, "cancel_initiated_at": None,
            "request_counts": {"processing": 0, "succeeded": 3, "errored": 1, "canceled": 0, "expired": 0},
            "results_url": f"{running.url}/v1/messages/batches/msgbatch_1/results",
        }  # fmt: skip
        running.answers["GET /v1/messages/batches/msgbatch_1"] = batch
        running.answers["GET /v1/messages/batches"] = {
            "data": [batch],
            "has_more": False,
            "first_id": None,
            "last_id": None,
        }
        content = results()
        pieces = [content[start : start + 97] for start in range(0, len(content), 97)]
        running.answers["GET /v1/messages/batches/msgbatch_1/results"] = ("application/x-jsonl", pieces)
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("anthropic")
    yield
    af.uninstrument()


@pytest.fixture
def client(wire: Wire) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=wire.url, api_key="test", max_retries=0) as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def check(found: list[Charge], count: int = 3) -> None:
    assert sorted(row.response_id for row in found) == sorted(f"msg_{number}" for number in range(count))
    cost = af.price(MODEL, tier="batch", **COUNTS).amount
    assert cost is not None
    assert {(row.tier, row.model, row.amount, tuple(sorted(row.quantities.items()))) for row in found} == {
        ("batch", MODEL, cost * 10**9, tuple(sorted(COUNTS.items())))
    }


def test_results_are_one_charge_a_line_however_often_they_are_read(client: Any) -> None:
    """Polls and lists are free, errors too; budgets and blocks around the reading see it once."""
    batches = client.messages.batches
    batches.retrieve("msgbatch_1")
    list(batches.list())
    assert rows() == []
    with af.track("read") as block, af.budget("$1", name="read") as budget:
        for _ in range(2):
            assert [entry.custom_id for entry in batches.results("msgbatch_1")][-1] == "bad"
        check(rows())
        assert len(block.charges) == 3
        assert budget.spent == block.cost.amount


def test_results_by_the_beta(client: Any) -> None:
    """The beta's path is the same with a query."""
    assert len(list(client.beta.messages.batches.results("msgbatch_1"))) == 4
    check(rows())


async def test_async_results(wire: Wire) -> None:
    """The same in the other colour."""
    async with anthropic.AsyncAnthropic(base_url=wire.url, api_key="test", max_retries=0) as client:
        assert len([entry async for entry in await client.messages.batches.results("msgbatch_1")]) == 4
    check(rows())


def test_results_that_are_left_early_are_finished_by_the_next_reading(client: Any) -> None:
    """What has passed is charged; the next reader gets the rest and nothing twice."""
    stream = client.messages.batches.results("msgbatch_1")
    next(iter(stream))
    stream.http_response.close()
    assert len(rows()) < 4
    list(client.messages.batches.results("msgbatch_1"))
    check(rows())


def test_another_process_with_the_same_ledger_charges_nothing_again(client: Any, tmp_path: Path) -> None:
    """The id of an entry is made of the batch's and the line's own."""
    for _ in range(2):
        af.init(ledger=tmp_path / "ledger.db")
        with af.budget("$1") as budget:
            list(client.messages.batches.results("msgbatch_1"))
        check(rows())
        af.shutdown()
    assert budget.spent == 0


def test_a_large_file_of_results_is_read_line_by_line(client: Any, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above what is kept of a stream loses no line."""
    from aifinops.integrations import passing

    monkeypatch.setattr(passing, "MAX_KEPT", 1_000)
    monkeypatch.setattr(passing, "SEGMENT", 2)
    wire.answers["GET /v1/messages/batches/msgbatch_1/results"] = ("application/x-jsonl", [results(450)])
    assert len(list(client.messages.batches.results("msgbatch_1"))) == 451
    check(rows(), 450)
