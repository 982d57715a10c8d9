"""Sessions over a real WebSocket: a row a response, no usage is added up, and what was not ended is settled when the session is."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", minversion="13")

import aifinops as af
from aifinops import runtime
from aifinops.charges import Charge
from aifinops.testing.wire import SocketWire

BODIES = Path(__file__).parents[1] / "providers" / "bodies"
CANARY = "canary-7f3a"
pytestmark = pytest.mark.filterwarnings(  # what the libraries do to aiohttp and to websockets
    "ignore:Inheritance class:DeprecationWarning", "ignore:connect.. must be used as:DeprecationWarning"
)


def body(name: str) -> dict[str, Any]:
    return json.loads((BODIES / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.fixture
def wire() -> Iterator[SocketWire]:
    with SocketWire() as running:
        yield running


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


# --- OpenAI ------------------------------------------------------------------------------------------------------------

SPOKEN = {
    "input_tokens": 400, "cache_read_tokens": 200, "input_audio_tokens": 600, "cache_read_audio_tokens": 300, "output_tokens": 100,
    "output_audio_tokens": 300,
}  # fmt: skip
GREETING = {
    "type": "session.created", "event_id": "e0",
    "session": {"type": "realtime", "model": "gpt-realtime", "audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}}},
}  # fmt: skip


def response(number: int) -> list[dict[str, Any]]:
    done = body("openai/realtime_done")
    done["response"]["id"] = f"resp_{number}"
    begun = {
        "type": "response.created",
        "event_id": "e1",
        "response": {"id": f"resp_{number}", "object": "realtime.response"},
    }
    delta = {
        "type": "response.output_audio_transcript.delta",
        "event_id": "e2",
        "response_id": f"resp_{number}",
        "delta": CANARY,
    }
    return [begun, delta, done]


@pytest.fixture
def openai() -> Iterator[Any]:
    module = pytest.importorskip("openai")
    if not hasattr(module.OpenAI, "realtime"):
        pytest.skip("this version has no client.realtime")
    af.instrument("openai")
    yield module
    af.uninstrument()


def client(module: Any, wire: SocketWire) -> Any:
    return module.OpenAI(api_key="test", base_url=f"http://{wire.base}/v1", websocket_base_url=f"ws://{wire.base}/v1")


def hear(connection: Any, last: str, times: int = 1) -> None:
    while times:
        times -= connection.recv().type == last


def test_every_response_of_a_session_is_one_row(openai: Any, wire: SocketWire) -> None:
    """Whether it was asked for or the server began it: its own usage, never that of the session so far."""
    wire.greeting = [GREETING]
    wire.replies = [[*response(1), *response(2)]]
    with client(openai, wire).realtime.connect(model="gpt-realtime") as connection:
        assert type(connection).__name__ == "RealtimeConnection"
        connection.response.create()
        hear(connection, "response.done", 2)
    found = rows()
    assert [dict(charge.quantities) for charge in found] == [SPOKEN, SPOKEN]
    assert [charge.response_id for charge in found] == ["resp_1", "resp_2"]
    assert {(charge.model, charge.status, charge.basis, charge.provider) for charge in found} == {
        ("gpt-realtime", "ok", "priced", "openai")
    }


async def test_async_sessions(openai: Any, wire: SocketWire) -> None:
    """The same, asynchronous, and read as raw bytes."""
    wire.greeting = [GREETING]
    wire.replies = [response(1)]
    made = openai.AsyncOpenAI(
        api_key="test", base_url=f"http://{wire.base}/v1", websocket_base_url=f"ws://{wire.base}/v1"
    )
    async with made.realtime.connect(model="gpt-realtime") as connection:
        await connection.response.create()
        while b"response.done" not in await connection.recv_bytes():
            pass
    await made.close()
    (charge,) = rows()
    assert dict(charge.quantities) == SPOKEN


def test_a_transcription_is_a_row_of_its_own_model(openai: Any, wire: SocketWire) -> None:
    """Seconds or tokens, of the model that the session has for it."""
    tokens = {**body("openai/realtime_transcription"), "transcript": CANARY, "usage": {
        "type": "tokens", "total_tokens": 22, "input_tokens": 13, "output_tokens": 9, "input_token_details": {"audio_tokens": 13},
    }}  # fmt: skip
    wire.greeting = [GREETING, body("openai/realtime_transcription"), tokens]
    with client(openai, wire).realtime.connect(model="gpt-realtime") as connection:
        hear(connection, tokens["type"], 2)
    found = rows()
    assert [dict(charge.quantities) for charge in found] == [
        {"audio_seconds": 3.5}, {"input_audio_tokens": 13, "output_tokens": 9},
    ]  # fmt: skip
    assert {(charge.model, charge.operation) for charge in found} == {("gpt-4o-mini-transcribe", "transcription")}


@pytest.mark.parametrize("dropped", [False, True])
def test_a_response_that_never_ended_is_unknown(openai: Any, wire: SocketWire, dropped: bool) -> None:
    """Closed or dropped in the middle of it: it was billed, and nobody said what."""
    wire.greeting = [GREETING]
    wire.replies = [response(1)[:2]]
    manager = client(openai, wire).realtime.connect(model="gpt-realtime")
    connection = manager.enter()
    connection.response.create()
    hear(connection, "response.output_audio_transcript.delta")
    if dropped:
        connection._connection.close()
        del connection, manager
        gc.collect()
    else:
        connection.close()
    (charge,) = rows()
    assert (charge.basis, charge.status, charge.amount) == ("unknown", "abandoned", None)


def test_a_refused_response_is_no_row(openai: Any, wire: SocketWire) -> None:
    """The server's `error` in place of a response."""
    wire.greeting = [GREETING]
    wire.replies = [[{"type": "error", "event_id": "e", "error": {"type": "invalid_request_error", "message": CANARY}}]]
    with client(openai, wire).realtime.connect(model="gpt-realtime") as connection:
        connection.response.create()
        hear(connection, "error")
    assert rows() == []


def test_budgets_hold_in_a_session(openai: Any, wire: SocketWire) -> None:
    """What the server began is counted; the next response that is asked for is refused before it is sent."""
    wire.greeting = [GREETING, *response(1)]
    with af.budget("$0.001") as budget, client(openai, wire).realtime.connect(model="gpt-realtime") as connection:
        hear(connection, "response.done")
        assert budget.spent > 0.001
        with pytest.raises(af.BudgetExceeded):
            connection.response.create(response={"max_output_tokens": 10})
    assert wire.got == []
    assert len(rows()) == 1


def test_damaged_events_never_break_a_session(openai: Any, wire: SocketWire) -> None:
    """Usage of wrong types, a response without id: the user gets each event, and the rows have no cost."""
    damaged = body("openai/realtime_done")
    damaged["response"]["usage"] = {"input_tokens": -4, "output_tokens": "many"}
    wire.greeting = [GREETING, damaged, {"type": "response.done", "event_id": "e", "response": {"usage": None}}]
    with client(openai, wire).realtime.connect(model="gpt-realtime") as connection:
        hear(connection, "response.done", 2)
    assert [(charge.basis, charge.amount) for charge in rows()] == [("unknown", None)] * 2


# --- Gemini ------------------------------------------------------------------------------------------------------------

LIVE = "gemini-2.5-flash-native-audio-preview-09-2025"
TURN = {"input_tokens": 400, "input_audio_tokens": 1600, "output_audio_tokens": 500, "reasoning_tokens": 40}


@pytest.fixture
def gemini(wire: SocketWire) -> Iterator[Any]:
    genai = pytest.importorskip("google.genai")
    af.instrument("google")
    made = genai.Client(api_key="test", vertexai=False)
    api = made._api_client  # the library speaks TLS only: these are where it says so
    api._websocket_base_url = lambda *_args: f"ws://{wire.base}"
    api._websocket_ssl_ctx = {}
    yield made
    af.uninstrument()


def told(**counts: int) -> dict[str, Any]:
    found = body("google/live")
    del found["serverContent"]
    found["usageMetadata"] |= counts
    return found


TALK = {"serverContent": {"modelTurn": {"parts": [{"text": CANARY}]}}}
SMALL = told(promptTokenCount=2000, responseTokenCount=100, thoughtsTokenCount=40, totalTokenCount=2140)
SMALL["usageMetadata"]["responseTokensDetails"] = [{"modality": "AUDIO", "tokenCount": 100}]


async def say(session: Any) -> int:
    await session.send_client_content(turns={"role": "user", "parts": [{"text": CANARY}]}, turn_complete=True)
    return len([message async for message in session.receive()])


async def test_a_turn_is_one_row_of_its_newest_usage(gemini: Any, wire: SocketWire) -> None:
    """The usage grows from message to message: each turn is its last, and a session of two is two rows."""
    wire.replies = [
        [{"setupComplete": {}}],
        [TALK, SMALL, TALK, body("google/live")],
        [TALK, {**SMALL, **body("google/live")}],
    ]
    async with gemini.aio.live.connect(model=LIVE) as session:
        assert type(session).__name__ == "AsyncSession"
        assert await say(session) == 4
        assert await say(session) == 2
    found = rows()
    assert [dict(charge.quantities) for charge in found] == [TURN, TURN]
    assert {(charge.model, charge.status, charge.basis, charge.provider) for charge in found} == {
        (LIVE, "ok", "priced", "gcp.gemini")
    }


@pytest.mark.parametrize(("model", "searches"), [(LIVE, 1), ("gemini-3-flash-live-preview", 3)])
async def test_a_turn_with_searches_is_charged_for_them(
    gemini: Any, wire: SocketWire, model: str, searches: int
) -> None:
    """Before Gemini 3 the turn is one search however many it made, later each is; a query that is told twice is one."""
    first = {"serverContent": {"groundingMetadata": {"webSearchQueries": ["a", "b"]}}}
    second = {"serverContent": {"groundingMetadata": {"webSearchQueries": ["b", "c"]}}}
    wire.replies = [
        [{"setupComplete": {}}],
        [TALK, first, SMALL, second, body("google/live")],
        [TALK, body("google/live")],
    ]
    async with gemini.aio.live.connect(model=model) as session:
        await say(session)
        await say(session)
    assert [charge.quantities.get("web_search_requests") for charge in rows()] == [searches, None]


async def test_a_turn_that_was_cut_is_no_less_than_it_told(gemini: Any, wire: SocketWire) -> None:
    """The server went away in the middle of it; what was told is the least."""
    wire.replies = [[{"setupComplete": {}}], [TALK, SMALL, TALK, "close"]]
    with pytest.raises(Exception, match="1000"):  # by version, the library's own error or that of websockets
        async with gemini.aio.live.connect(model=LIVE) as session:
            await say(session)
    (charge,) = rows()
    assert (charge.basis, charge.status) == ("estimated", "abandoned")
    assert charge.quantities["output_audio_tokens"] == 100
    assert charge.lower


async def test_a_turn_without_usage_is_unknown_and_silence_is_nothing(gemini: Any, wire: SocketWire) -> None:
    """A turn was billed even if its usage never came; what nobody answered was not a turn."""
    wire.replies = [[{"setupComplete": {}}], [TALK, {"serverContent": {"turnComplete": True}}], []]
    async with gemini.aio.live.connect(model=LIVE) as session:
        await say(session)
        await session.send_client_content(turns={"role": "user", "parts": [{"text": "x"}]})
    (charge,) = rows()
    assert (charge.basis, charge.status, charge.amount) == ("unknown", "ok", None)


async def test_a_budget_refuses_the_next_turn(gemini: Any, wire: SocketWire) -> None:
    """Before anything of it is sent."""
    wire.replies = [[{"setupComplete": {}}]]
    with af.budget("$0.0000001"):
        async with gemini.aio.live.connect(model=LIVE) as session:
            with pytest.raises(af.BudgetExceeded):
                await say(session)
    assert len(wire.got) == 1
    assert rows() == []
