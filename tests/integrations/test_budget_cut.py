"""Streams that begin with a small hold and are ended where there is no room for more of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

import aifinops as af
from aifinops import metering
from aifinops.errors import StreamCut
from aifinops.integrations import growing
from aifinops.testing import FakeProvider, capture_charges
from aifinops.testing.wire import Wire, sent

pytestmark = [
    pytest.mark.filterwarnings("ignore:The model 'claude:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # a stream that is ended
]

ASK: Any = [{"role": "user", "content": "hi"}]
# library -> (module, class, path, model)
LIBRARIES = {
    "openai": ("openai", "OpenAI", "/chat/completions", "gpt-4o-mini"),
    "anthropic": ("anthropic", "Anthropic", "/v1/messages", "claude-haiku-4-5"),
    "groq": ("groq", "Groq", "/openai/v1/chat/completions", "llama-3.3-70b-versatile"),
}
TOKENS = 1500


class Slow:
    """A provider that writes a token at a time, as long as somebody listens, and counts what it has written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = LIBRARIES[name][3]
        self.written = 0

    def answer(self) -> Any:
        return "text/event-stream", self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        yield from map(sent, self._begun())
        for _ in range(TOKENS):
            self.written += 1
            yield sent(self._token("word "))
            time.sleep(0.0005)
        yield from map(sent, self._over())

    def _begun(self) -> list[Any]:
        if self.name != "anthropic":
            return []
        message = {
            "id": "m", "type": "message", "role": "assistant", "model": self.model, "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 1},
        }  # fmt: skip
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        return [("message_start", {"type": "message_start", "message": message}), ("content_block_start", block)]

    def _token(self, text: str) -> Any:
        if self.name == "anthropic":
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
            return "content_block_delta", delta
        return self._chunk([{"index": 0, "delta": {"content": text}, "finish_reason": None}])

    def _over(self) -> list[Any]:
        if self.name == "anthropic":
            end = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": TOKENS}}  # fmt: skip
            return [("message_delta", end), ("message_stop", {"type": "message_stop"})]
        usage = {"prompt_tokens": 5, "completion_tokens": TOKENS, "total_tokens": TOKENS + 5}
        return [self._chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]), self._chunk([], usage), "[DONE]"]

    def _chunk(self, choices: list[Any], usage: Any = None) -> dict[str, Any]:
        said = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": self.model, "choices": choices}
        return said if usage is None else {**said, "usage": usage}

    def bill(self) -> Decimal:
        """What it charges for what it has written."""
        price = af.price(self.model, provider=self.name, input_tokens=5, output_tokens=self.written)
        assert price.amount is not None
        return price.amount


@pytest.fixture
def wire() -> Iterator[Wire]:
    af.init(ledger="memory")
    with Wire() as running:
        yield running
    af.uninstrument()


def client_of(slow: Slow, wire: Wire, prefix: str = "") -> Any:
    module, kind, path, _ = LIBRARIES[slow.name]
    loaded = pytest.importorskip(module)
    af.instrument(slow.name)
    wire.answers[f"POST {path}"] = slow.answer
    return getattr(loaded, prefix + kind)(base_url=wire.url, api_key="test", max_retries=0)


def stream(slow: Slow, client: Any, **more: Any) -> Any:
    ask = {"model": slow.model, "messages": ASK, "stream": True, **more}
    if slow.name == "anthropic":
        return client.messages.create(**{"max_tokens": 8000, **ask})
    return client.chat.completions.create(**ask)


def read(running: Any) -> tuple[int, StreamCut | None]:
    """How many events came, and what ended them."""
    events = 0
    try:
        for _ in running:
            events += 1
    except StreamCut as cut:
        return events, cut
    return events, None


def room(slow: Slow, output: int) -> dict[str, Decimal]:
    upper = af.estimate(slow.model, provider=slow.name, messages=ASK, max_tokens=output).upper
    assert upper is not None
    return {"USD": upper}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_stream_is_ended_where_there_is_no_room_for_more(name: str, wire: Wire) -> None:
    """What came was handed out, the connection is closed, the provider's bill is within the limit, and the charge is no less than it."""
    slow = Slow(name)
    with (
        client_of(slow, wire) as client,
        capture_charges() as charges,
        af.budget(room(slow, 900), on_exceed="cut") as b,
    ):
        running = stream(slow, client)
        events, cut = read(running)
        limit, spent, reserved = b.limit, b.spent, b.reserved
    assert running.response.is_closed
    assert 0 < events < TOKENS
    assert slow.bill() <= spent <= limit
    assert reserved == 0
    (charge,) = charges
    assert (charge.status, charge.tags["budget_action"]) == ("abandoned", "cut")
    assert charge.upper is not None
    assert charge.amount is not None
    assert charge.amount <= charge.upper <= limit * 10**9
    assert cut is not None
    assert "the stream was ended, since there was no room for" in str(cut)
    assert cut.limit == limit


@pytest.mark.parametrize("name", LIBRARIES)
async def test_a_stream_is_ended_in_the_other_colour(name: str, wire: Wire) -> None:
    """The same of an asynchronous client, whose tasks run on meanwhile."""
    slow, events = Slow(name), 0
    async with client_of(slow, wire, "Async") as client:
        with capture_charges() as charges, af.budget(room(slow, 900), on_exceed="cut") as b:
            running = await stream(slow, client)
            error = None
            try:
                async for _ in running:
                    events += 1
            except StreamCut as cut:
                error = cut
            assert slow.bill() <= b.spent <= b.limit
    assert error is not None
    assert 0 < events < TOKENS
    assert running.response.is_closed
    assert charges[0].tags["budget_action"] == "cut"


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_stream_with_room_for_all_of_it_is_what_it_is_without_us(name: str, wire: Wire) -> None:
    """It holds little at first and more as it goes; its true cost takes the place of that, and no tag says anything."""
    slow = Slow(name)
    limit = room(slow, 8 * TOKENS)
    with client_of(slow, wire) as client, capture_charges() as charges, af.budget(limit, on_exceed="cut") as b:
        running = stream(slow, client, max_tokens=50_000)
        first = next(iter(running))
        held = b.reserved
        events = [first, *running]
    assert held < limit["USD"] / 10
    assert len(events) > TOKENS
    (charge,) = charges
    assert (charge.basis, charge.status, dict(charge.tags)) == ("priced", "ok", {})
    assert b.spent == slow.bill()
    assert b.reserved == 0


def test_a_stream_that_fits_whole_holds_its_whole_bound(wire: Wire) -> None:
    """There is nothing to follow then."""
    slow = Slow("openai")
    with client_of(slow, wire) as client, af.budget(room(slow, 5000), on_exceed="cut") as b:
        running = stream(slow, client, max_tokens=4000)
        held = b.reserved
        running.close()
    assert held == room(slow, 4000)["USD"]


def test_where_there_is_no_room_to_begin_nothing_is_sent(wire: Wire) -> None:
    """256 tokens are the least; and what is no stream is refused as ever."""
    slow = Slow("openai")
    with client_of(slow, wire) as client:
        with af.budget(room(slow, 200), on_exceed="cut"), pytest.raises(af.BudgetExceeded, match="Nothing was sent"):
            stream(slow, client)
        with af.budget(room(slow, 900), on_exceed="cut"), pytest.raises(af.BudgetExceeded, match="this call has none"):
            client.chat.completions.create(model=slow.model, messages=ASK)
    assert not wire.asked


@pytest.mark.parametrize(
    ("more", "model"),
    [({}, "gpt-5-mini"), ({"reasoning_effort": "low"}, "gpt-4o-mini")],
)
def test_thoughts_that_nobody_sees_are_not_followed(wire: Wire, more: dict[str, Any], model: str) -> None:
    """A model that thinks unseen bills tokens that no event shows: the budget raises, and says what to use."""
    slow = Slow("openai")
    slow.model = model
    with (
        client_of(slow, wire) as client,
        af.budget(room(slow, 900), on_exceed="cut"),
        pytest.raises(af.BudgetExceeded, match='thoughts are billed that are not shown; use "clamp"'),
    ):
        stream(slow, client, **more)
    assert not wire.asked


def test_several_answers_at_once_share_the_hold(wire: Wire) -> None:
    """A stream of two answers begins with room for both."""
    slow = Slow("openai")
    with client_of(slow, wire) as client, af.budget("1500 output_tokens", on_exceed="cut") as b:
        running = stream(slow, client, n=2)
        assert b.reserved == 512
        running.close()


def test_an_outer_budget_that_only_warns_does_not_end_a_stream(wire: Wire) -> None:
    """Each budget says for itself what happens where it has no room for more."""
    slow = Slow("openai")
    with (
        client_of(slow, wire) as client,
        af.budget("300 output_tokens", on_exceed="warn") as outer,
        af.budget("100k output_tokens", on_exceed="cut"),
        af.budget("1M output_tokens"),
    ):
        assert len(list(stream(slow, client, max_tokens=200_000))) > TOKENS
    assert outer.spent == TOKENS


def test_the_responses_api_is_followed_as_well() -> None:
    """Its events name text in another place; the stream that the fake provider writes is ended, too."""
    openai = pytest.importorskip("openai")
    af.init(ledger="memory")
    af.instrument("openai")
    ask = {"model": "gpt-4o-mini", "input": "hi", "stream": True, "metadata": {"words": "3000"}}
    with FakeProvider() as server, openai.OpenAI(base_url=server.base_url, api_key="x") as client:
        with af.budget("1200 output_tokens", on_exceed="cut") as b, pytest.raises(StreamCut):
            for _ in client.responses.create(**ask):
                pass
        assert 256 < b.spent <= 1200
        with af.budget("20000 output_tokens", on_exceed="cut") as b:
            assert sum(1 for _ in client.responses.create(**ask)) > 3000
        assert b.spent == 3000
    af.uninstrument()


def test_each_byte_is_looked_at_once(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long stream costs as much for each of its pieces as a short one."""
    slow, looked = Slow("openai"), list[int]()
    real = growing.collected

    def counting(data: bytes, reader: Any) -> Any:
        looked.append(len(data))
        return real(data, reader)

    monkeypatch.setattr(growing, "collected", counting)
    with client_of(slow, wire) as client, af.budget("100k output_tokens", on_exceed="cut"):
        list(stream(slow, client, max_tokens=200_000))
    size = sum(len(sent(slow._token("word "))) for _ in range(TOKENS))
    assert size * 0.9 < sum(looked) < size * 1.1
    assert len(looked) <= size / growing.EVERY + 2


def test_our_own_failure_lets_the_stream_go_on(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we cannot follow is handed out to its end, and settled for what it says."""

    def failing(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(metering.Invocation, "grow", failing)
    af.errors.reraise_failures(False)  # type: ignore[attr-defined]
    slow = Slow("openai")
    with client_of(slow, wire) as client, af.budget("10k output_tokens", on_exceed="cut") as b:
        assert len(list(stream(slow, client))) > TOKENS
    assert b.spent == TOKENS


def test_many_streams_at_once_stay_within_the_limit(wire: Wire) -> None:
    """Each holds what it has come to; where there is no room for more of one it is ended, and all of them are paid for."""
    slows: list[Slow] = []

    def answer() -> Any:
        slows.append(Slow("openai"))
        return slows[-1].answer()

    first = Slow("openai")
    with client_of(first, wire) as client, af.budget(room(first, 4000), on_exceed="cut", max_wait=2) as b:
        wire.answers["POST /chat/completions"] = answer

        def work() -> None:
            with contextlib.suppress(af.BudgetExceeded):
                for _ in range(3):
                    list(stream(first, client))

        threads = [threading.Thread(target=af.bind(work)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        limit, spent, reserved = b.limit, b.spent, b.reserved
    assert reserved == 0
    # Without a tokenizer every byte of what came may be a token: five times of what is billed here.
    assert limit * Decimal("0.1") < sum((slow.bill() for slow in slows), Decimal(0)) <= spent <= limit
