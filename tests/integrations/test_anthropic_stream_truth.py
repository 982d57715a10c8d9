"""However a stream of Messages ends, it is one row: exact when its last counts came, or an estimate whose bounds hold what was billed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic")

import anthropic._base_client as base  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import errors, runtime  # noqa: E402
from aifinops.integrations import passing  # noqa: E402
from aifinops.testing.wire import CANARY, Wire  # noqa: E402

library = getattr(base, "httpx2", None) or base.httpx
pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude:DeprecationWarning")

MODEL = "claude-sonnet-4-5"
COUNTS = {"input_tokens": 300, "cache_read_tokens": 600, "cache_write_tokens": 100, "output_tokens": 200}
USAGE = {
    "input_tokens": 300, "cache_read_input_tokens": 600, "cache_creation_input_tokens": 100, "output_tokens": 3, "service_tier": "standard",
}  # fmt: skip
ASK: dict[str, Any] = {
    "model": MODEL, "max_tokens": 400, "messages": [{"role": "user", "content": f"{CANARY} " + "word " * 1000}],
}  # fmt: skip
TEXT = [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"word {CANARY} "}}] * 9


def events(last: bool = True) -> list[tuple[str, dict[str, Any]]]:
    """A stream as the API sends it; without its last counts when it is told to leave them out."""
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": None, "stop_sequence": None,
        "usage": USAGE,
    }  # fmt: skip
    ended = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 200},
    }
    made: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *TEXT,
        {"type": "content_block_stop", "index": 0},
        *([ended] if last else []),
        {"type": "message_stop"},
    ]
    return [(event["type"], event) for event in made]


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        running.answers["POST /v1/messages"] = events()
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("anthropic")
    yield
    af.uninstrument()


class TooMuch(Exception):
    """The user's own."""


def settled_once(budget: Any, basis: str, status: str) -> None:
    gc.collect()
    af.flush()
    (charge,) = list(runtime.get().ledger.rows())
    assert CANARY not in repr(charge)
    true = af.price(MODEL, **COUNTS).amount
    assert true is not None
    assert (charge.basis, charge.status) == (basis, status)
    assert charge.amount
    if basis == "priced":
        assert dict(charge.quantities) == COUNTS
        assert charge.amount == true * 10**9
    else:
        assert charge.lower is not None
        assert charge.upper is not None
        assert charge.lower <= true * 10**9 <= charge.upper
        assert charge.amount <= charge.upper
    assert budget.reserved == 0
    assert budget.spent * 10**9 == (charge.amount if charge.upper is None else charge.upper)
    assert not passing._passing
    assert errors.failures() == {}


# --- without colour: how it is left ---------------------------------------------------------------------------------------


def _break(stream: Any) -> None:
    for _ in stream:
        break


def _raise(stream: Any) -> None:
    with pytest.raises(TooMuch):  # noqa: PT012 - the loop is what is tested
        for _ in stream:
            raise TooMuch


def _raise_within(stream: Any) -> None:
    with pytest.raises(TooMuch), stream:  # noqa: PT012
        for _ in stream:
            raise TooMuch


def _close_twice(stream: Any) -> None:
    next(stream)
    stream.close()
    stream.close()


def _dropped(stream: Any) -> None:
    next(stream)


def _unread(stream: Any) -> None:
    pass


def _thrown(stream: Any) -> None:
    next(stream)
    with pytest.raises(TooMuch):
        stream._iterator.throw(TooMuch())


def _cut(stream: Any) -> None:
    with pytest.raises((anthropic.APIConnectionError, library.RemoteProtocolError)):
        list(stream)


def _exhausted(stream: Any) -> None:
    assert list(stream)


ENDS: dict[str, Callable[[Any], None]] = {
    "break": _break, "exception": _raise, "exception in with": _raise_within, "close twice": _close_twice, "dropped": _dropped,
    "unread": _unread, "thrown": _thrown, "cut": _cut, "exhausted": _exhausted,
}  # fmt: skip


@pytest.mark.parametrize("shape", ["create", "raw"])
@pytest.mark.parametrize("how", ENDS)
def test_a_stream_that_is_left(how: str, shape: str, wire: Wire) -> None:
    """`message_start` has a first count of the output, which is never taken for the whole."""
    wire.cut = 5 if how == "cut" else None
    with anthropic.Anthropic(base_url=wire.url, api_key="test", max_retries=0) as client, af.budget("$5") as budget:
        messages = client.messages if shape == "create" else client.messages.with_raw_response
        stream = messages.create(**ASK, stream=True)
        assert budget.reserved > 0
        if shape == "raw":
            stream = stream.parse()
        ENDS[how](stream)
        del stream
        settled_once(budget, *(("priced", "ok") if how == "exhausted" else ("estimated", "abandoned")))


def test_a_stream_that_ends_without_its_last_counts(wire: Wire) -> None:
    """It came to its end, and yet nobody said what it cost."""
    wire.answers["POST /v1/messages"] = events(last=False)
    with anthropic.Anthropic(base_url=wire.url, api_key="test", max_retries=0) as client, af.budget("$5") as budget:
        assert list(client.messages.create(**ASK, stream=True))
        settled_once(budget, "estimated", "ok")


def _helper_break(stream: Any) -> None:
    for _ in stream:
        break


def _helper_text(stream: Any) -> None:
    assert next(iter(stream.text_stream))


def _helper_raise(stream: Any) -> None:
    for _ in stream:
        raise TooMuch


def _helper_final(stream: Any) -> None:
    assert stream.get_final_message().usage.output_tokens == 200


HELPS: dict[str, tuple[Callable[[Any], None], bool]] = {
    "break": (_helper_break, False), "text": (_helper_text, False), "exception": (_helper_raise, False), "unread": (_unread, False),
    "closed": (lambda stream: stream.close(), False), "final message": (_helper_final, True),
    "until done": (lambda stream: stream.until_done(), True),
}  # fmt: skip


@pytest.mark.parametrize("how", HELPS)
def test_the_helper_that_is_left(how: str, wire: Wire) -> None:
    """`messages.stream()`, whose manager closes what its block leaves."""
    leave, whole = HELPS[how]
    with anthropic.Anthropic(base_url=wire.url, api_key="test", max_retries=0) as client, af.budget("$5") as budget:
        try:
            with client.messages.stream(**ASK) as stream:
                leave(stream)
        except TooMuch:
            assert how == "exception"
        del stream
        settled_once(budget, *(("priced", "ok") if whole else ("estimated", "abandoned")))


# --- the other colour -----------------------------------------------------------------------------------------------------


async def _abreak(stream: Any) -> None:
    async for _ in stream:
        break
    await stream.close()


async def _araise(stream: Any) -> None:
    with pytest.raises(TooMuch):  # noqa: PT012
        async with stream:
            async for _ in stream:
                raise TooMuch


async def _acancelled(stream: Any) -> None:
    came = asyncio.Event()

    async def read() -> None:
        async with stream:
            async for _ in stream:
                came.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _atimeout(stream: Any) -> None:
    with pytest.raises(TimeoutError):  # noqa: PT012
        async with asyncio.timeout(0.01), stream:
            async for _ in stream:
                await asyncio.Event().wait()


async def _acut(stream: Any) -> None:
    with pytest.raises((anthropic.APIConnectionError, library.RemoteProtocolError)):
        async for _ in stream:
            pass


async def _aclose(stream: Any) -> None:
    await stream.close()
    await stream.close()


async def _aexhausted(stream: Any) -> None:
    async for _ in stream:
        pass


async def _adropped(stream: Any) -> None:
    await anext(aiter(stream))


AENDS: dict[str, Callable[[Any], Any]] = {
    "break": _abreak, "exception": _araise, "cancelled": _acancelled, "timeout": _atimeout, "cut": _acut, "unread": _aclose,
    "dropped": _adropped, "exhausted": _aexhausted,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("shape", ["create", "helper"])
@pytest.mark.parametrize("how", AENDS)
async def test_an_asynchronous_stream_that_is_left(how: str, shape: str, wire: Wire) -> None:
    """The same in the other colour, when its task is cancelled, and when it is left to the garbage collector."""
    wire.cut = 5 if how == "cut" else None
    made = anthropic.AsyncAnthropic(base_url=wire.url, api_key="test", max_retries=0)
    async with made as client, af.budget("$5") as budget:
        if shape == "create":
            stream = await client.messages.create(**ASK, stream=True)
            await AENDS[how](stream)
            del stream
        else:
            async with client.messages.stream(**ASK) as stream:
                await AENDS[how](stream)
            del stream
        gc.collect()
        for _ in range(5):  # the event loop closes what was dropped, one generator within another
            await asyncio.sleep(0)
        settled_once(budget, *(("priced", "ok") if how == "exhausted" else ("estimated", "abandoned")))


@pytest.mark.parametrize("stream", [False, True])
def test_the_older_completions_are_estimated(stream: bool, wire: Wire) -> None:
    """`/v1/complete` tells no usage, and is not free."""
    body = {
        "type": "completion",
        "id": "compl_1",
        "completion": f" {CANARY}",
        "stop_reason": "stop_sequence",
        "model": MODEL,
    }
    wire.answers["POST /v1/complete"] = [("completion", body)] if stream else body
    asked = {
        "model": MODEL,
        "prompt": f"\n\nHuman: {CANARY}\n\nAssistant:",
        "max_tokens_to_sample": 50,
        "stream": stream,
    }
    streams = {"stream": True, "stream_cls": anthropic.Stream[object]} if stream else {}
    with anthropic.Anthropic(base_url=wire.url, api_key="test", max_retries=0) as client:
        answer = client.post("/v1/complete", cast_to=object, body=asked, **streams)
        assert len(list(answer)) == 1 if stream else answer["completion"] == f" {CANARY}"
    gc.collect()
    af.flush()
    (charge,) = list(runtime.get().ledger.rows())
    assert CANARY not in repr(charge)
    assert (charge.basis, charge.operation) == ("estimated", "text_completion")
    assert charge.amount
    assert (charge.lower or 0) <= charge.amount <= (charge.upper or 0)
    assert charge.quantities["output_tokens"] <= 500
