"""Answers that no provider should give, and clients that somebody has bent: no exception of ours, a counter, and an honest cost."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

openai = pytest.importorskip("openai")

import openai._base_client as base  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import errors, runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.integrations import passing  # noqa: E402
from aifinops.testing import FakeProvider  # noqa: E402

library = getattr(base, "httpx2", None) or base.httpx

CANARY = "canary-b4d0"
CHAT: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": f"say {CANARY}"}],
    "max_tokens": 50,
}
USAGE = {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "usage": USAGE,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": CANARY}, "finish_reason": "stop"}],
}  # fmt: skip
CHUNK: dict[str, Any] = {
    "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini",
    "choices": [{"index": 0, "delta": {"content": CANARY}, "finish_reason": None}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_in_production() -> Iterator[None]:
    """Our own failures are counted and logged, as they are outside of tests, and streams are asked for usage everywhere."""
    errors.reraise_failures(False)
    logging.getLogger("aifinops").setLevel(logging.CRITICAL)
    af.init(stream_usage="always")
    af.instrument("openai")
    yield
    af.uninstrument()
    logging.getLogger("aifinops").setLevel(logging.NOTSET)


class Bytes(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[name-defined, misc]
    def __init__(self, data: bytes, size: int = 7) -> None:
        self.parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part


def client(answer: Callable[[Any], Any], kind: Any = None, **options: Any) -> Any:
    made = library.Client(transport=library.MockTransport(answer))
    return (kind or openai.OpenAI)(api_key="k", http_client=made, **{"max_retries": 0, **options})


def answering(body: bytes, status: int = 200, kind: str = "application/json") -> Callable[[Any], Any]:
    return lambda _: library.Response(status, content=body, headers={"content-type": kind})


def streaming(body: bytes) -> Callable[[Any], Any]:
    return lambda _: library.Response(200, stream=Bytes(body), headers={"content-type": "text/event-stream"})


def outcome(call: Callable[[], Any]) -> Any:
    """What a program gets: what it can print of the answer, or the error."""
    try:
        found = call()
    except Exception as error:
        return type(error).__name__, str(error)
    return repr(found)


def rows() -> list[Charge]:
    if passing._passing:
        gc.collect()  # an exception that is over held what it came through
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    assert not passing._passing
    return found


def without_us(call: Callable[[], Any]) -> Any:
    af.uninstrument()
    try:
        return outcome(call)
    finally:
        af.instrument("openai")


def honest(charge: Charge) -> None:
    """An amount only with numbers that can be true; otherwise unknown or estimated."""
    assert charge.basis in {"priced", "estimated", "unknown", "free", "reported"}
    if charge.basis == "unknown":
        assert charge.amount is None
    else:
        assert charge.amount is not None
        assert charge.amount >= 0
    assert all(quantity >= 0 for quantity in charge.quantities.values())


# --- plain answers ------------------------------------------------------------------------------------------------------

STRANGE = {
    "no usage": {**ANSWER, "usage": None},
    "usage is a text": {**ANSWER, "usage": "twelve"},
    "usage is a list": {**ANSWER, "usage": [1, 2]},
    "usage is a number": {**ANSWER, "usage": 12},
    "usage is empty": {**ANSWER, "usage": {}},
    "texts for counts": {**ANSWER, "usage": {"prompt_tokens": "12", "completion_tokens": "six"}},
    "negative counts": {**ANSWER, "usage": {"prompt_tokens": -12, "completion_tokens": 6}},
    "fractions": {**ANSWER, "usage": {"prompt_tokens": 1.5, "completion_tokens": 6}},
    "huge counts": {**ANSWER, "usage": {"prompt_tokens": 10**30, "completion_tokens": 10**40}},
    "large floats": {**ANSWER, "usage": {"prompt_tokens": 1e300, "completion_tokens": 1e308}},
    "booleans": {**ANSWER, "usage": {"prompt_tokens": True, "completion_tokens": False}},
    "parts above their whole": {**ANSWER, "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 99}}},
    "details of a wrong type": {**ANSWER, "usage": {**USAGE, "prompt_tokens_details": [1], "completion_tokens_details": "x"}},
    "new fields": {**ANSWER, "usage": {**USAGE, "brand_new_tokens": 4, "deep": {"er": {"x": 1}}}, "novel": {"a": 1}},
    "no id": {key: value for key, value in ANSWER.items() if key != "id"},
    "id of a wrong type": {**ANSWER, "id": {"a": 1}},
    "no model": {key: value for key, value in ANSWER.items() if key != "model"},
    "model of a wrong type": {**ANSWER, "model": ["x"]},
    "tier of a wrong type": {**ANSWER, "service_tier": {"x": 1}},
    "tier that nobody knows": {**ANSWER, "service_tier": "warp"},
    "choices of a wrong type": {**ANSWER, "choices": "none", "usage": None},
    "choices of nulls": {**ANSWER, "choices": [None, 1, "x"], "usage": None},
    "an error in a 200": {"error": {"message": "no", "code": 400}},
    "a list": [ANSWER],
    "a text": "hello",
    "null": None,
    "deep": {**ANSWER, "x": json.loads("[" * 80 + "]" * 80)},
}  # fmt: skip
REMAINS_EXACT = {"new fields", "no id", "id of a wrong type"}


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_answer_is_the_users_and_honestly_charged(case: str) -> None:
    """The program gets what it would have got; the ledger one row that claims nothing which was not said."""
    with client(answering(json.dumps(STRANGE[case]).encode())) as made, af.budget("$5") as budget:
        call = lambda: made.chat.completions.create(**CHAT)  # noqa: E731
        expected = without_us(call)
        assert outcome(call) == expected
        assert budget.reserved == 0
        (charge,) = rows()
        honest(charge)
        if charge.amount is not None:
            assert charge.amount > 0
            assert budget.spent * 10**9 == (charge.amount if charge.upper is None else charge.upper)
        else:
            assert budget.spent > 0  # what nobody can price keeps what was held
    if case in REMAINS_EXACT:
        assert charge.basis == "priced"
        assert dict(charge.quantities) == {"input_tokens": 12, "output_tokens": 6}


RAW = {
    "half a body": b'{"id": "chatcmpl-1", "object": "chat.comp',
    "nothing": b"",
    "no utf-8": b'{"id": "\xff\xfe"}',
    "html": b"<html>hello</html>",
    "not a number": b'{"usage": {"prompt_tokens": NaN, "completion_tokens": Infinity}}',
    "the same key twice": b'{"usage": null, "usage": {"prompt_tokens": 1}}',
    "lone surrogate": b'{"id": "\\ud800", "usage": null}',
}


@pytest.mark.parametrize("kind", ["application/json", "text/html"])
@pytest.mark.parametrize("case", RAW)
def test_a_body_that_is_no_answer(case: str, kind: str) -> None:
    """Invalid JSON and other bytes with status 200: the SDK's own outcome, and a row that does not invent a price."""
    with client(answering(RAW[case], kind=kind)) as made:
        call = lambda: made.chat.completions.create(**CHAT)  # noqa: E731
        expected = without_us(call)
        assert outcome(call) == expected
    (charge,) = rows()
    honest(charge)
    assert charge.basis in ({"priced"} if case == "the same key twice" else {"unknown", "estimated"})


numbers = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=3))
trees = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)  # fmt: skip
fields = st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details", "x"]),
    numbers | st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens", "reasoning_tokens", "y"]), numbers),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(usage=fields | trees, model=trees, tier=trees, stream=st.booleans())
def test_whatever_is_in_an_answer(usage: Any, model: Any, tier: Any, stream: bool) -> None:
    """Any JSON where usage, model and tier should be, in bodies and in streams: never an exception of ours, never a false amount."""
    more = {"usage": usage, "model": model, "service_tier": tier}
    before = len(rows())
    if stream:
        data = sse({**CHUNK, **more}, {**CHUNK, **more, "choices": []})
        answer = streaming(data)
        call = lambda: [chunk.to_dict(warnings=False) for chunk in made.chat.completions.create(**CHAT, stream=True)]  # noqa: E731
    else:
        answer = answering(json.dumps({**ANSWER, **more}).encode())
        call = lambda: made.chat.completions.create(**CHAT).to_dict(warnings=False)  # noqa: E731
    with client(answer) as made:
        expected = without_us(call)
        got = outcome(call)
    if not stream:  # in a stream, what was asked for by us is hidden
        assert got == expected
    elif isinstance(expected, tuple):
        assert got[0] == expected[0]
    charges = rows()
    assert len(charges) == before + 1
    honest(charges[-1])


# --- streams ------------------------------------------------------------------------------------------------------------


def sse(*events: Any, done: bool = True) -> bytes:
    made = b"".join(
        b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in events
    )
    return made + (b"data: [DONE]\n\n" if done else b"")


LAST = {**CHUNK, "choices": [], "usage": USAGE}
STREAMS = {
    "no events": (b"", "estimated"),
    "only the end": (sse(), "estimated"),
    "cut in an event": (sse(CHUNK, CHUNK, done=False) + b'data: {"id": "chatcmpl-1", "obj', "estimated"),
    "cut in the usage": (sse(CHUNK, done=False) + b'data: {"choices": [], "usage": {"prompt_tokens": 12, "compl', "estimated"),
    "no end": (sse(CHUNK, LAST, done=False), "priced"),
    "no blank line at the end": (sse(CHUNK, LAST, done=False)[:-2], "priced"),
    "usage of a wrong type": (sse(CHUNK, {**LAST, "usage": "many"}), "estimated"),
    "usage of nulls": (sse(CHUNK, {**LAST, "usage": {"prompt_tokens": None}}), "estimated"),
    "usage twice": (sse(CHUNK, {**LAST, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}, LAST), "priced"),
    "impossible usage": (sse(CHUNK, {**LAST, "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 99}}}), "unknown"),
    "comments": (b": ping\n\n" + sse(CHUNK) [:-14] + b": ping\n\n" + sse(LAST), "priced"),
    "an error in it": (sse(CHUNK, {"error": {"message": "overloaded", "type": "server_error"}}), "estimated"),
    "invalid json in it": (sse(CHUNK, b"{not json", LAST), "estimated"),
    "lists and texts": (sse(b"[]", b'"x"', b"1", b"null", CHUNK, LAST), "priced"),
    "after the end": (sse(CHUNK, LAST) + sse({**CHUNK, "usage": "x"}), "priced"),
    "a json body": (json.dumps(ANSWER).encode(), "priced"),
    "an error body": (b'{"error": {"message": "no"}}', "estimated"),
    "no utf-8": (b"data: \xff\xfe\n\n" + sse(LAST), "estimated"),
    "a long line": (b"data: " + b"x" * 100_000 + b"\n\n" + sse(LAST), "estimated"),
    "new fields": (sse(CHUNK, {**LAST, "usage": {**USAGE, "brand_new": 3}}), "priced"),
}  # fmt: skip


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("case", STREAMS)
async def test_a_strange_stream_is_the_users_and_honestly_charged(case: str, colour: str) -> None:
    """What came before the trouble comes, the SDK's own exception follows, and the row says how sure it is."""
    data, basis = STREAMS[case]
    sent = streaming(data)

    def read() -> Any:
        came = []
        with client(sent) as made:
            try:
                came += [chunk.to_dict(warnings=False) if hasattr(chunk, "to_dict") else chunk for chunk in made.chat.completions.create(**CHAT, stream=True)]  # fmt: skip
            except Exception as error:
                came.append((type(error).__name__, str(error)))
        return came

    async def aread() -> Any:
        came: list[Any] = []
        wire = library.AsyncClient(transport=library.MockTransport(sent))
        async with openai.AsyncOpenAI(api_key="k", http_client=wire, max_retries=0) as made:
            try:
                stream = await made.chat.completions.create(**CHAT, stream=True)
                came += [
                    chunk.to_dict(warnings=False) if hasattr(chunk, "to_dict") else chunk async for chunk in stream
                ]
            except Exception as error:
                came.append((type(error).__name__, str(error)))
        return came

    af.uninstrument()
    expected = read() if colour == "sync" else await aread()
    af.instrument("openai")
    hidden = [one for one in expected if not (isinstance(one, dict) and one.get("choices") == [] and isinstance(one.get("usage"), dict))]  # fmt: skip
    with af.budget("$5") as budget:
        assert (read() if colour == "sync" else await aread()) == hidden
        for _ in range(
            50
        ):  # an older client leaves the answer open: the loop closes its generators one after the other
            if not passing._passing:
                break
            gc.collect()
            await asyncio.sleep(0)
        (charge,) = rows()
        assert budget.reserved == 0
        assert budget.spent > 0
    honest(charge)
    assert charge.basis == basis
    if basis == "priced":
        assert dict(charge.quantities) == {"input_tokens": 12, "output_tokens": 6}
    if basis == "estimated":
        assert charge.amount
        assert charge.lower is not None
        assert charge.upper is not None
        assert charge.lower <= charge.amount <= charge.upper


# --- storms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_storm_of_refusals_costs_nothing(status: int) -> None:
    """However often the SDK tries again: no charge for what was refused, nothing stays held, and the answer at last is one row."""
    with FakeProvider() as server, af.budget("$1") as budget:
        with openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=3) as made:
            for _ in range(10):
                server.fail_next(status, times=4)
                with pytest.raises(openai.APIStatusError) as caught:
                    made.chat.completions.create(**CHAT)
                assert caught.value.status_code == status
            assert rows() == []
            assert budget.spent == 0
            assert budget.reserved == 0
            server.fail_next(status, times=3)
            made.chat.completions.create(**CHAT)
        assert server.requests == 44
        (charge,) = rows()
        assert charge.basis == "priced"
        assert budget.spent * 10**9 == (charge.amount if charge.upper is None else charge.upper)


async def test_a_storm_in_many_tasks() -> None:
    """Forty tasks, half of whose answers are refusals: as many rows as the provider billed, and nothing is held."""
    seen = iter(range(10**6))

    def answer(_: Any) -> Any:
        if next(seen) % 2:
            return library.Response(500, json={"error": {}}, headers={"retry-after-ms": "1"})
        return library.Response(200, json=ANSWER)

    wire = library.AsyncClient(transport=library.MockTransport(answer))
    async with openai.AsyncOpenAI(api_key="k", http_client=wire, max_retries=0) as made, af.budget("$5") as budget:
        done = await asyncio.gather(*(made.chat.completions.create(**CHAT) for _ in range(40)), return_exceptions=True)
        assert budget.reserved == 0
        served = [one for one in done if not isinstance(one, BaseException)]
        assert len(rows()) == len(served) == 20


@pytest.mark.parametrize(
    ("kind", "sent"), [("ConnectError", False), ("ConnectTimeout", False), ("PoolTimeout", False), ("ReadTimeout", True), ("ReadError", True), ("WriteError", True)]
)  # fmt: skip
def test_what_was_never_sent_is_free_and_what_may_have_been_is_not(kind: str, sent: bool) -> None:
    """Without an answer: nothing for a request that never left, unknown and at its bound for one that may have arrived."""

    def broken(request: Any) -> Any:
        raise getattr(library, kind)("no", request=request)

    with client(broken) as made, af.budget("$5") as budget:
        with pytest.raises(openai.APIConnectionError):
            made.chat.completions.create(**CHAT)
        assert budget.reserved == 0
        assert (budget.spent > 0) is sent
    assert [charge.basis for charge in rows()] == (["unknown"] if sent else [])


# --- clients that somebody has bent ---------------------------------------------------------------------------------------


def _with_own_request() -> Any:
    class Mine(openai.OpenAI):  # type: ignore[misc, name-defined]
        def request(self, *args: Any, **kwargs: Any) -> Any:
            return super().request(*args, **kwargs)

    return Mine


def _with_two_calls() -> Any:
    class Careful(openai.OpenAI):  # type: ignore[misc, name-defined]
        def post(self, *args: Any, **kwargs: Any) -> Any:
            return super().post(*args, **kwargs)

        def _process_response(self, **kwargs: Any) -> Any:
            return super()._process_response(**kwargs)

    return Careful


def _with_slots() -> Any:
    class Named(openai.OpenAI):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.label = "x"
            super().__init__(*args, **kwargs)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Named) and other.label == self.label

        def __hash__(self) -> int:
            raise TypeError("not hashable")

    return Named


BENT = {"its own request": _with_own_request, "its own post": _with_two_calls, "no hash": _with_slots}


@pytest.mark.parametrize("whole", [True, False], ids=["library", "client"])
@pytest.mark.parametrize("case", BENT)
def test_a_subclass_of_the_client(case: str, whole: bool) -> None:
    """Whatever a subclass overrides, a call is one row."""
    with client(answering(json.dumps(ANSWER).encode()), BENT[case]()) as made:
        if not whole:
            af.uninstrument()
            af.instrument(made)
        answer = made.chat.completions.create(**CHAT)
        assert answer.usage.prompt_tokens == 12
    (charge,) = rows()
    assert charge.basis == "priced"


def test_a_method_that_somebody_else_has_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody wraps the resource, the client's method and its class, before and after us: one row, and his wrappers run."""
    ran = []

    def wrapped(label: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            ran.append(label)
            return original(*args, **kwargs)

        return call

    completions = openai.resources.chat.completions.Completions
    monkeypatch.setattr(completions, "create", wrapped("resource", completions.create))
    monkeypatch.setattr(base.SyncAPIClient, "request", wrapped("class", base.SyncAPIClient.request))
    with client(answering(json.dumps(ANSWER).encode())) as made:
        monkeypatch.setattr(made, "post", wrapped("post", made.post))
        monkeypatch.setattr(made, "request", wrapped("client", made.request))
        made.chat.completions.create(**CHAT)
    assert len(rows()) == 1
    assert {"resource", "class"} <= set(ran)


def test_a_client_that_is_a_mock() -> None:
    """A method that was replaced by a stub is the stub's: no row, since nothing was called."""
    with client(answering(b"{}")) as made:
        made.chat.completions.create = lambda **_: "stub"
        assert made.chat.completions.create(**CHAT) == "stub"
    assert rows() == []


@pytest.mark.parametrize(
    "body",
    [{}, {"model": None, "messages": None}, {"model": 7, "messages": 8, "max_tokens": "many", "n": -1, "stream_options": 3}, {"model": "x" * 5000}],
    ids=["empty", "nulls", "wrong types", "long name"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_is_strange(body: dict[str, Any], stream: bool) -> None:
    """What the user sends is his affair: it goes out as it is, and the answer comes back."""
    sent = []

    def answer(request: Any) -> Any:
        sent.append(json.loads(request.content))
        return streaming(sse(CHUNK, LAST))(request) if stream else library.Response(200, json=ANSWER)

    more = {"stream": True} if stream else {}
    given_body = copy.deepcopy({**body, **more})
    with client(answer) as made, af.budget("$100", unknown="allow"):
        options = {"stream": True, "stream_cls": openai.Stream[object]} if stream else {}
        result = made.post("/chat/completions", cast_to=object, body=given_body, **options)
        assert list(result) if stream else result
    assert given_body == {**body, **more}
    assert {**sent[0], "stream_options": None} == {**body, **more, "stream_options": None}
    (charge,) = rows()
    honest(charge)


def test_two_clients_that_are_equal_are_two_hosts() -> None:
    """Clients of a class that compares by name reach the hosts that each of them has, also when one is changed later."""
    kind = _with_slots()
    answer = answering(json.dumps(ANSWER).encode())
    hosts = ["https://api.openai.com/v1", "https://api.deepseek.com"]
    with client(answer, kind, base_url=hosts[0]) as one, client(answer, kind, base_url=hosts[1]) as other:
        one.chat.completions.create(**CHAT)
        other.chat.completions.create(**CHAT)
        one.base_url = "https://api.groq.com/openai/v1"
        one.chat.completions.create(**CHAT)
    assert [charge.provider for charge in rows()] == ["openai", "deepseek", "groq"]
