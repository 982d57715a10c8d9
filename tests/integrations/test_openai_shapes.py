"""Every shape of a call through the real openai client: the same usage, the same cost, one ledger row, the user's own object."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")

from pydantic import BaseModel  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.testing import FakeProvider  # noqa: E402

MODEL = "gpt-4o-mini"
MESSAGES = [{"role": "user", "content": "please answer in a few words"}]
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("openai")
    yield
    af.uninstrument()


@pytest.fixture
def client(server: FakeProvider) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        yield made


@pytest.fixture
async def aclient(server: FakeProvider) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        yield made


class Verdict(BaseModel):
    answer: str


def has(path: Callable[[Any], Any]) -> bool:
    """Whether the installed version has this method (`.parse` and `.stream` came to the stable client late)."""
    try:
        path(openai.OpenAI(api_key="test"))
    except AttributeError:
        return False
    return True


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def only_row(server: FakeProvider) -> Charge:
    """The single ledger row, checked against the server's own bill."""
    (charge,) = rows()
    (line,) = server.bill
    totals = line.totals
    counts = charge.quantities
    assert counts.get("input_tokens", 0) + counts.get("cache_read_tokens", 0) == totals["input_tokens"]
    assert counts.get("output_tokens", 0) + counts.get("reasoning_tokens", 0) == totals["output_tokens"]
    assert charge.basis == "priced"
    assert charge.amount is not None
    assert charge.amount > 0
    assert charge.response_id == line.id
    assert charge.status == "ok"
    return charge


def drain(stream: Any) -> int:
    return sum(1 for _ in stream)


def consume_events(manager: Any) -> None:
    with manager as stream:
        for _ in stream:
            pass


def read_raw_stream(response: Any) -> None:
    drain(response.parse())


def read_lines(manager: Any) -> None:
    with manager as response:
        assert [line for line in response.iter_lines() if line.startswith("data:")]


def read_body(manager: Any) -> None:
    with manager as response:
        assert response.read()


def parse_body(manager: Any) -> None:
    with manager as response:
        assert response.parse().id


def parse_stream(manager: Any) -> None:
    with manager as response:
        drain(response.parse())


def nothing(result: Any) -> None:
    assert result is not None


CHAT = {"model": MODEL, "messages": MESSAGES}
RESPONSE = {"model": MODEL, "input": "please answer in a few words"}

SYNC: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "chat": (lambda c: c.chat.completions.create(**CHAT), nothing),
    "chat stream": (lambda c: c.chat.completions.create(**CHAT, stream=True, **USAGE), drain),
    "chat raw": (lambda c: c.chat.completions.with_raw_response.create(**CHAT), lambda r: r.parse().id),
    "chat raw unparsed": (lambda c: c.chat.completions.with_raw_response.create(**CHAT), nothing),
    "chat raw stream": (
        lambda c: c.chat.completions.with_raw_response.create(**CHAT, stream=True, **USAGE),
        read_raw_stream,
    ),
    "chat streaming response": (lambda c: c.chat.completions.with_streaming_response.create(**CHAT), read_body),
    "chat streaming response parsed": (lambda c: c.chat.completions.with_streaming_response.create(**CHAT), parse_body),
    "chat streaming response lines": (
        lambda c: c.chat.completions.with_streaming_response.create(**CHAT, stream=True, **USAGE),
        read_lines,
    ),
    "chat streaming response stream": (
        lambda c: c.chat.completions.with_streaming_response.create(**CHAT, stream=True, **USAGE),
        parse_stream,
    ),
    "chat parse": (
        lambda c: c.chat.completions.parse(**CHAT, response_format=Verdict),
        lambda r: r.choices[0].message.parsed,
    ),
    "chat beta parse": (lambda c: c.beta.chat.completions.parse(**CHAT, response_format=Verdict), nothing),
    "chat stream helper": (lambda c: c.chat.completions.stream(**CHAT, **USAGE), consume_events),
    "chat beta stream helper": (lambda c: c.beta.chat.completions.stream(**CHAT, **USAGE), consume_events),
    "chat post": (lambda c: c.post("/chat/completions", body=CHAT, cast_to=object), nothing),
    "responses": (lambda c: c.responses.create(**RESPONSE), nothing),
    "responses stream": (lambda c: c.responses.create(**RESPONSE, stream=True), drain),
    "responses parse": (lambda c: c.responses.parse(**RESPONSE, text_format=Verdict), nothing),
    "responses stream helper": (lambda c: c.responses.stream(**RESPONSE), consume_events),
    "responses raw": (lambda c: c.responses.with_raw_response.create(**RESPONSE), lambda r: r.parse()),
    "completions": (lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="say hi"), nothing),
    "completions stream": (
        lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="say hi", stream=True, **USAGE),
        drain,
    ),
    "with_options": (lambda c: c.with_options(timeout=9).chat.completions.create(**CHAT), nothing),
}

NEEDS: dict[str, Callable[[Any], Any]] = {
    "chat parse": lambda c: c.chat.completions.parse,
    "chat stream helper": lambda c: c.chat.completions.stream,
    "chat beta stream helper": lambda c: c.beta.chat.completions.stream,
    "chat beta parse": lambda c: c.beta.chat.completions.parse,
    "responses": lambda c: c.responses,
    "responses stream": lambda c: c.responses,
    "responses raw": lambda c: c.responses,
    "responses parse": lambda c: c.responses.parse,
    "responses stream helper": lambda c: c.responses.stream,
}


def wanted(shape: str) -> None:
    if shape in NEEDS and not has(NEEDS[shape]):
        pytest.skip(f"openai {openai.__version__} has no {shape}")


@pytest.mark.parametrize("shape", SYNC)
def test_sync_shape_makes_one_exact_row(shape: str, client: Any, server: FakeProvider) -> None:
    """A synchronous call of any shape is one row that equals the server's bill."""
    wanted(shape)
    call, use = SYNC[shape]
    use(call(client))
    charge = only_row(server)
    assert charge.stream == ("stream" in shape.replace("streaming", "") or "lines" in shape)


async def adrain(stream: Any) -> None:
    async for _ in stream:
        pass


async def aconsume(manager: Any) -> None:
    async with manager as stream:
        async for _ in stream:
            pass


async def araw(response: Any) -> None:
    parsed = response.parse()
    await adrain(await parsed if inspect.isawaitable(parsed) else parsed)


async def aread(manager: Any) -> None:
    async with manager as response:
        assert await response.read()


async def alines(manager: Any) -> None:
    async with manager as response:
        assert [line async for line in response.iter_lines()]


async def anothing(result: Any) -> None:
    assert result is not None


ASYNC: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "chat": (lambda c: c.chat.completions.create(**CHAT), anothing),
    "chat stream": (lambda c: c.chat.completions.create(**CHAT, stream=True, **USAGE), adrain),
    "chat raw": (lambda c: c.chat.completions.with_raw_response.create(**CHAT), anothing),
    "chat raw stream": (lambda c: c.chat.completions.with_raw_response.create(**CHAT, stream=True, **USAGE), araw),
    "chat streaming response": (lambda c: c.chat.completions.with_streaming_response.create(**CHAT), aread),
    "chat streaming response lines": (
        lambda c: c.chat.completions.with_streaming_response.create(**CHAT, stream=True, **USAGE),
        alines,
    ),
    "chat parse": (lambda c: c.chat.completions.parse(**CHAT, response_format=Verdict), anothing),
    "chat stream helper": (lambda c: c.chat.completions.stream(**CHAT, **USAGE), aconsume),
    "responses": (lambda c: c.responses.create(**RESPONSE), anothing),
    "responses stream": (lambda c: c.responses.create(**RESPONSE, stream=True), adrain),
    "responses parse": (lambda c: c.responses.parse(**RESPONSE, text_format=Verdict), anothing),
    "responses stream helper": (lambda c: c.responses.stream(**RESPONSE), aconsume),
    "completions": (lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="say hi"), anothing),
}


@pytest.mark.parametrize("shape", ASYNC)
async def test_async_shape_makes_one_exact_row(shape: str, aclient: Any, server: FakeProvider) -> None:
    """An asynchronous call of any shape is one row that equals the server's bill."""
    wanted(shape)
    call, use = ASYNC[shape]
    result = call(aclient)
    await use(await result if inspect.iscoroutine(result) else result)
    only_row(server)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_make_one_row_of_input_tokens(encoding: str | None, client: Any, server: FakeProvider) -> None:
    """Embeddings have input tokens and nothing else."""
    options = {} if encoding is None else {"encoding_format": encoding}
    client.embeddings.create(model="text-embedding-3-small", input=["one two three", "four"], **options)
    (charge,) = rows()
    assert charge.operation == "embeddings"
    assert dict(charge.quantities) == {"input_tokens": server.usage_totals()["input_tokens"]}
    assert charge.basis == "priced"


async def test_async_embeddings(aclient: Any, server: FakeProvider) -> None:
    """The same in the other colour."""
    await aclient.embeddings.create(model="text-embedding-3-small", input="one two three")
    (charge,) = rows()
    assert dict(charge.quantities) == {"input_tokens": server.usage_totals()["input_tokens"]}


def test_stream_without_usage_is_estimated_and_marked(client: Any, server: FakeProvider) -> None:
    """No usage in the stream: an estimate with bounds that hold the truth, never zero."""
    drain(client.chat.completions.create(**CHAT, stream=True))
    (charge,) = rows()
    truth = server.usage_totals()
    assert charge.basis == "estimated"
    assert charge.status == "ok"
    assert charge.lower is not None
    assert charge.upper is not None
    assert charge.amount is not None
    assert 0 < charge.lower <= charge.amount <= charge.upper
    true_cost = af.price(MODEL, input_tokens=truth["input_tokens"], output_tokens=truth["output_tokens"]).amount
    assert true_cost is not None
    assert charge.lower <= true_cost * 10**9 <= charge.upper


@pytest.mark.parametrize("how", ["break", "close", "drop", "with", "unread"])
def test_abandoned_stream_settles_once_and_not_at_zero(how: str, client: Any, server: FakeProvider) -> None:
    """However a stream is left, it is one row, marked, above zero."""
    stream = client.chat.completions.create(
        **CHAT, stream=True, max_tokens=50, extra_headers={"x-fake-output-tokens": "40"}
    )
    if how == "break":
        for _ in stream:
            break
    elif how == "close":
        next(stream)
        stream.close()
    elif how == "with":
        with stream:
            next(stream)
    elif how == "drop":
        next(stream)
    if how != "unread":
        client.models.list()  # the connection is the server's again
    del stream
    gc.collect()
    (charge,) = rows()
    assert charge.status == "abandoned"
    assert charge.basis == "estimated"
    assert charge.amount
    assert charge.upper is not None
    assert charge.upper >= charge.amount


async def test_abandoned_async_stream_settles_once(aclient: Any) -> None:
    """Leaving an async stream early is one marked row."""
    stream = await aclient.chat.completions.create(**CHAT, stream=True)
    async for _ in stream:
        break
    await stream.close()
    (charge,) = rows()
    assert charge.status == "abandoned"
    assert charge.amount


async def test_cancelled_call_keeps_its_bound(server: FakeProvider) -> None:
    """A task cancelled while the request is out may have been billed: the budget keeps the bound, the ledger says unknown."""
    server.delay = 5
    made = openai.AsyncOpenAI(base_url=server.base_url, api_key="test", max_retries=0)
    async with made as client, af.budget("$1") as b:
        task = asyncio.create_task(client.chat.completions.create(**CHAT, max_tokens=100))
        while server.requests == 0:  # noqa: ASYNC110 - the server runs in a thread and has no event of this loop
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert b.spent > 0
        assert b.reserved == 0
    (charge,) = rows()
    assert charge.amount is None
    assert charge.upper
    assert charge.status == "error"


def test_error_of_the_provider_passes_unchanged_and_costs_nothing(client: Any, server: FakeProvider) -> None:
    """A 400 reaches the user as the SDK made it; nothing is charged and nothing stays held."""
    server.fail_next(400)
    with af.budget("$1") as b, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CHAT, max_tokens=10)
    assert caught.value.status_code == 400
    assert rows() == []
    assert b.spent == 0
    assert b.reserved == 0


def test_sdk_retry_is_one_row_for_the_call_that_was_billed(server: FakeProvider) -> None:
    """Two 500s and a success inside one SDK call are one charge."""
    server.fail_next(500, times=2)
    with openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=2) as client:
        client.chat.completions.create(**CHAT)
    assert server.requests == 3
    only_row(server)


def test_parse_that_fails_after_payment_is_still_charged(client: Any, server: FakeProvider) -> None:
    """`.parse` raises because the answer was cut at the limit: paid for, so charged with the real usage."""
    wanted("chat parse")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            **CHAT, response_format=Verdict, max_tokens=2, extra_headers={"x-fake-output-tokens": "40"}
        )
    (charge,) = rows()
    assert charge.status == "error"
    assert charge.quantities["output_tokens"] == server.usage_totals()["output_tokens"]
    assert charge.amount


def test_objects_are_the_sdks_own(client: Any) -> None:
    """Types of answers and streams are what the SDK makes without us."""
    answer = client.chat.completions.create(**CHAT)
    assert type(answer) is openai.types.chat.ChatCompletion
    with client.chat.completions.create(**CHAT, stream=True) as stream:
        assert type(stream) is openai.Stream
        assert all(type(chunk) is openai.types.chat.ChatCompletionChunk for chunk in stream)


def test_unknown_model_is_a_row_of_unknown_cost(client: Any) -> None:
    """An unpriced model is recorded with its tokens; its cost is unknown, not zero."""
    client.chat.completions.create(model="acme-large-9", messages=MESSAGES)
    (charge,) = rows()
    assert charge.amount is None
    assert charge.basis == "unknown"
    assert charge.quantities["input_tokens"] > 0


def test_uninstrument_restores_exactly(client: Any) -> None:
    """After `uninstrument()` the classes hold the very functions they held before, and nothing is recorded."""
    base = __import__("openai._base_client", fromlist=["x"])
    af.uninstrument()
    before = vars(base.SyncAPIClient)["request"]
    assert inspect.isfunction(before)
    af.instrument("openai")
    assert vars(base.SyncAPIClient)["request"] is not before
    af.instrument("openai")
    af.uninstrument()
    assert vars(base.SyncAPIClient)["request"] is before
    client.chat.completions.create(**CHAT)
    assert rows() == []


def test_one_client_only(server: FakeProvider) -> None:
    """`instrument(client)` meters that client and no other."""
    af.uninstrument()
    with (
        openai.OpenAI(base_url=server.base_url, api_key="test") as metered,
        openai.OpenAI(base_url=server.base_url, api_key="test") as plain,
    ):
        af.instrument(metered)
        metered.chat.completions.create(**CHAT)
        plain.chat.completions.create(**CHAT)
    assert len(rows()) == 1


def test_each_of_several_answers_is_held_when_no_limit_is_stated(client: Any) -> None:
    """`n=4` without an output limit holds four times what the model can write, before anything is sent."""
    held = []
    for choices in (1, 4):
        with pytest.raises(af.BudgetExceeded) as refused, af.budget("$0.000001"):
            client.chat.completions.create(model="gpt-5-mini", messages=[], n=choices)
        held.append(refused.value.asked)
    most = af.price("gpt-5-mini", output_tokens=runtime.get().book.output_limit("openai", "gpt-5-mini") or 0).amount
    assert most is not None
    assert held[1] - held[0] == 3 * most


def test_a_stream_longer_than_what_is_kept_is_read_from_its_end(
    client: Any, server: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound the oldest bytes go; the usage at the end is exact all the same, and every chunk passes."""
    from aifinops.integrations import passing

    monkeypatch.setattr(passing, "MAX_KEPT", 2_000)
    monkeypatch.setattr(passing, "SEGMENT", 2)
    kept = []
    pack = passing.Passing.pack
    monkeypatch.setattr(passing.Passing, "pack", lambda self, chunk: (pack(self, chunk), kept.append(self.size))[0])
    text = "word " * 400
    stream = client.chat.completions.create(
        model="gpt-5-mini",
        messages=[{"role": "user", "content": text}],
        max_completion_tokens=300,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert sum(1 for _ in stream) > 10
    assert max(kept) <= 2_000
    row = only_row(server)
    assert row.basis == "priced"
