"""Every shape of a call through the real google-genai client: the same usage, one ledger row a physical call, the user's own object."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

genai = pytest.importorskip("google.genai")

from google.genai import errors, types  # noqa: E402
from google.oauth2.credentials import Credentials  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402

# What the library does to aiohttp, where that is installed.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")

MODEL = "gemini-2.5-flash"
CANARY = "canary-7f3a"
USAGE = {
    "promptTokenCount": 100, "cachedContentTokenCount": 40, "candidatesTokenCount": 7, "thoughtsTokenCount": 20, "totalTokenCount": 127,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}], "trafficType": "ON_DEMAND",
}  # fmt: skip
BUCKETS = {"input_tokens": 60, "cache_read_tokens": 40, "output_tokens": 7, "reasoning_tokens": 20}


def answer(text: str = CANARY, *, usage: Any = USAGE, finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    part = more.pop("part", {"text": text})
    candidate = {"content": {"parts": [part], "role": "model"}, "index": 0, **more}
    if finish:
        candidate["finishReason"] = finish
    body = {"candidates": [candidate], "modelVersion": MODEL, "responseId": "resp-1"}
    return body if usage is None else {**body, "usageMetadata": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server: Any = self.server
        with server.lock:
            server.requests.append((self.path, body))
            status, chunks, whole = server.answers.pop(0)
        self.send_response(status)
        self.send_header("content-type", "text/event-stream" if "alt=sse" in self.path else "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if whole:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client went away
            pass
        if not whole:
            self.close_connection = True


class Wire:
    """A server on the loopback interface that gives the answers it was told to."""

    def __init__(self) -> None:
        self.server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.lock = threading.Lock()
        self.server.requests, self.server.answers = [], []
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def say(self, *bodies: Any, status: int = 200) -> None:
        for body in bodies:
            self.server.answers.append((status, [json.dumps(body).encode()], True))

    def stream(self, *events: Any, whole: bool = True, split: int = 0) -> None:
        data = [
            event if isinstance(event, bytes) else b"data: %s\r\n\r\n" % json.dumps(event).encode() for event in events
        ]
        if split:
            joined = b"".join(data)
            data = [joined[at : at + split] for at in range(0, len(joined), split)]
        self.server.answers.append((200, data, whole))

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("google")
    yield
    af.uninstrument()


def options(wire: Wire, **more: Any) -> Any:
    return types.HttpOptions(base_url=wire.url, timeout=20_000, **more)


@pytest.fixture
def client(wire: Wire) -> Any:
    return genai.Client(api_key="test", http_options=options(wire), vertexai=False)


@pytest.fixture
def vertex(wire: Wire) -> Any:
    return genai.Client(
        vertexai=True, project="p", location="us-central1", credentials=Credentials(token="t"), http_options=options(wire)
    )  # fmt: skip


@pytest.fixture
async def aclient(client: Any) -> AsyncIterator[Any]:
    yield client.aio
    if hasattr(client.aio, "aclose"):
        await client.aio.aclose()


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def exact(charge: Charge, buckets: dict[str, int] = BUCKETS) -> None:
    assert dict(charge.quantities) == buckets
    assert (charge.status, charge.basis) == ("ok", "priced")


PARTS = (answer("a", usage={"trafficType": "ON_DEMAND"}, finish=None), answer("b", usage=None, finish=None), answer())


def test_a_plain_call_is_one_exact_row(client: Any, wire: Wire) -> None:
    """Cached tokens are inside the prompt, thoughts outside the candidates; model, id and provider are those of the answer."""
    wire.say(answer())
    result = client.models.generate_content(model=MODEL, contents=CANARY)
    assert type(result) is types.GenerateContentResponse
    assert result.text == CANARY
    (charge,) = rows()
    exact(charge)
    assert (charge.provider, charge.model, charge.response_id) == ("gcp.gemini", MODEL, "resp-1")
    assert charge.operation == "generate_content"


async def test_an_async_call_is_one_exact_row(aclient: Any, wire: Wire) -> None:
    """The same, asynchronous."""
    wire.say(answer())
    result = await aclient.models.generate_content(model=MODEL, contents=CANARY)
    assert result.text == CANARY
    (charge,) = rows()
    exact(charge)


@pytest.mark.parametrize("split", [0, 7])
def test_a_stream_is_one_exact_row(client: Any, wire: Wire, split: int) -> None:
    """Of the running usage each field's newest value counts once, however the bytes are cut."""
    wire.stream(*PARTS, split=split)
    seen = [chunk.text for chunk in client.models.generate_content_stream(model=MODEL, contents="x")]
    assert seen == ["a", "b", CANARY]
    (charge,) = rows()
    exact(charge)
    assert charge.stream


async def test_an_async_stream_is_one_exact_row(aclient: Any, wire: Wire) -> None:
    """The same, asynchronous."""
    wire.stream(*PARTS)
    seen = [chunk.text async for chunk in await aclient.models.generate_content_stream(model=MODEL, contents="x")]
    assert seen == ["a", "b", CANARY]
    (charge,) = rows()
    exact(charge)


def test_vertex_is_its_own_provider(vertex: Any, wire: Wire) -> None:
    """Calls of a Vertex client are those of Vertex AI, whatever host they go to."""
    wire.say(answer())
    vertex.models.generate_content(model=MODEL, contents="x")
    (charge,) = rows()
    exact(charge)
    assert (charge.provider, charge.model) == ("gcp.vertex_ai", MODEL)


def test_a_chat_is_a_row_a_turn(client: Any, wire: Wire) -> None:
    """Each message of a chat is a call of its own."""
    wire.say(answer(), answer())
    chat = client.chats.create(model=MODEL)
    chat.send_message("one")
    chat.send_message("two")
    assert len(rows()) == 2


def test_automatic_function_calling_is_a_row_a_request(client: Any, wire: Wire) -> None:
    """The library calls the model again with what the function gave: two requests are billed, and two rows are there."""

    def weather(city: str) -> str:
        """The weather in a city."""
        return f"rain in {city}"

    wire.say(answer(part={"functionCall": {"name": "weather", "args": {"city": "Rome"}}}), answer())
    client.models.generate_content(model=MODEL, contents="x", config=types.GenerateContentConfig(tools=[weather]))
    assert len(wire.server.requests) == 2
    first, second = rows()
    exact(first)
    exact(second)


def test_counting_tokens_is_free(client: Any, wire: Wire) -> None:
    """There is no row for a call that is not billed."""
    wire.say({"totalTokens": 7})
    assert client.models.count_tokens(model=MODEL, contents="x").total_tokens == 7
    assert rows() == []


def test_embeddings_that_tell_no_tokens_are_estimated(client: Any, wire: Wire) -> None:
    """The Gemini API gives vectors only: the input is counted by us, and said to be."""
    wire.say({"embeddings": [{"values": [0.1, 0.2]}]})
    client.models.embed_content(model="gemini-embedding-001", contents=CANARY * 3)
    (charge,) = rows()
    assert charge.basis == "estimated"
    assert charge.quantities["input_tokens"] > 3
    assert charge.lower is not None
    assert charge.upper is not None
    assert charge.lower <= (charge.amount or 0) <= charge.upper


def test_embeddings_of_vertex_by_tokens_and_by_characters(vertex: Any, wire: Wire) -> None:
    """Gemini's embeddings are billed by token, the older models by character; the answer tells both."""
    body = {
        "predictions": [{"embeddings": {"values": [0.1], "statistics": {"token_count": 5, "truncated": False}}}],
        "metadata": {"billableCharacterCount": 19},
    }
    wire.say(body, body)
    vertex.models.embed_content(model="gemini-embedding-001", contents="x")
    vertex.models.embed_content(model="text-embedding-005", contents="x")
    assert [dict(charge.quantities) for charge in rows()] == [{"input_tokens": 5}, {"characters": 19}]


@pytest.mark.filterwarnings("ignore::Warning:google.genai", "ignore:The generate_images method:Warning")
def test_images_are_counted(vertex: Any, wire: Wire) -> None:
    """An image that was filtered out is not billed."""
    wire.say({"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": "aGk="}, {"raiFilteredReason": "x"}]})
    vertex.models.generate_images(model="imagen-4.0-generate-001", prompt="x", config={"number_of_images": 2})
    (charge,) = rows()
    assert dict(charge.quantities) == {"images": 1}
    assert (charge.operation, charge.basis) == ("image_generation", "unknown")


def test_grounding_is_counted_by_the_generation_of_the_model(client: Any, wire: Wire) -> None:
    """Before Gemini 3 a prompt with searches is one unit; after that each search is, also when an early chunk tells them."""
    grounded = {"webSearchQueries": ["a", "b"]}
    wire.say(answer(groundingMetadata=grounded))
    newer = [answer(groundingMetadata=grounded, finish=None), answer()]
    wire.stream(*({**event, "modelVersion": "gemini-3-pro"} for event in newer))
    search = types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())])
    client.models.generate_content(model=MODEL, contents="x", config=search)
    for _ in client.models.generate_content_stream(model="gemini-3-pro", contents="x", config=search):
        pass
    assert [charge.quantities["web_search_requests"] for charge in rows()] == [1, 2]


@pytest.mark.parametrize(
    ("alias", "answered", "searches"),
    [
        ("gemini-flash-latest", "gemini-2.5-flash-preview-09-2025", 1),
        ("gemini-flash-latest", "gemini-3-flash-preview", 3),
        ("gemini-2.5-flash-native-audio-latest", "gemini-2.5-flash-native-audio-preview-09-2025", 1),
        ("gemini-1.5-pro", "gemini-1.5-pro-002", 1),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_grounding_goes_by_the_model_that_answered(
    alias: str, answered: str, searches: int, streamed: bool, client: Any, wire: Wire
) -> None:
    """An alias says nothing of the generation behind it, and a snapshot that nobody has listed is of its generation."""
    said = {**answer(groundingMetadata={"webSearchQueries": ["a", "b", "c"]}), "modelVersion": answered}
    search = types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())])
    if streamed:
        wire.stream(said)
        list(client.models.generate_content_stream(model=alias, contents="x", config=search))
    else:
        wire.say(said)
        client.models.generate_content(model=alias, contents="x", config=search)
    assert [charge.quantities["web_search_requests"] for charge in rows()] == [searches]


def test_a_refused_call_costs_nothing(client: Any, wire: Wire) -> None:
    """An error answer raises the library's own error and leaves no row."""
    wire.say({"error": {"code": 400, "message": CANARY, "status": "INVALID_ARGUMENT"}}, status=400)
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=MODEL, contents="x")
    assert caught.value.code == 400
    assert rows() == []


def test_retries_of_the_library_are_one_row(wire: Wire) -> None:
    """Tries that the server refused are not billed: the one that succeeded is the row."""
    if not hasattr(types, "HttpRetryOptions"):
        pytest.skip("this version has no retries")
    wire.say({"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}, status=503)
    wire.say(answer())
    retry = types.HttpRetryOptions(attempts=2, initial_delay=0.001, max_delay=0.001, http_status_codes=[503])
    client = genai.Client(api_key="test", http_options=options(wire, retry_options=retry), vertexai=False)
    client.models.generate_content(model=MODEL, contents="x")
    (charge,) = rows()
    exact(charge)


def cut(client: Any) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 (each transport has its own)
        for _ in client.models.generate_content_stream(model=MODEL, contents="x" * 40):
            pass


def abandon(client: Any) -> None:
    for _ in client.models.generate_content_stream(model=MODEL, contents="x" * 40):
        break


@pytest.mark.parametrize("end", [cut, abandon])
def test_a_stream_that_ends_early_is_an_estimate_above_what_it_told(
    client: Any, wire: Wire, end: Callable[[Any], None]
) -> None:
    """What a chunk says is the usage so far: no less is billed, and the row says that it is not all."""
    running = {**USAGE, "candidatesTokenCount": 2}
    wire.stream(answer("a b c d", usage=running, finish=None), b"data: {", whole=False)
    end(client)
    gc.collect()
    (charge,) = rows()
    assert (charge.basis, charge.status) == ("estimated", "abandoned")
    assert charge.quantities["input_tokens"] == 60
    assert charge.quantities["output_tokens"] >= 2
    assert charge.lower is not None
    assert charge.amount is not None
    assert charge.upper is not None
    assert 0 < charge.lower <= charge.amount <= charge.upper


async def test_abandoned_async_streams_are_settled(aclient: Any, wire: Wire) -> None:
    """Also one whose task was cancelled; one that nobody has begun to read was never sent."""
    for _ in range(2):
        wire.stream(answer("a b c d", usage=None, finish=None), answer())
    async for _ in await aclient.models.generate_content_stream(model=MODEL, contents="x" * 40):
        break
    never = await aclient.models.generate_content_stream(model=MODEL, contents="x" * 40)
    del never

    begun = asyncio.Event()

    async def reader() -> None:
        async for _ in await aclient.models.generate_content_stream(model=MODEL, contents="x" * 40):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(reader())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(10):  # each dropped generator holds the next, and the loop closes them one by one
        gc.collect()
        await asyncio.sleep(0)
    found = rows()
    assert [charge.basis for charge in found] == ["estimated"] * 2
    assert all(charge.amount for charge in found)


def test_an_error_inside_a_stream_is_the_users_and_settled(client: Any, wire: Wire) -> None:
    """A 200 that carries an error after some text raises the library's error; what was made is estimated."""
    wire.stream(
        answer("a b", usage=None, finish=None),
        {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}},
    )
    with contextlib.suppress(errors.ServerError):  # older versions hand it out as one more piece
        list(client.models.generate_content_stream(model=MODEL, contents="x" * 40))
    gc.collect()
    (charge,) = rows()
    assert charge.basis == "estimated"
    assert charge.amount


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"usageMetadata": {"promptTokenCount": -5}}', b'{"usageMetadata": "many"}']
)
def test_damaged_answers_never_break_the_call(client: Any, wire: Wire, body: bytes) -> None:
    """Whatever the library makes of it happens as without us, and the row is no exact cost."""
    outcomes = []
    for metered in (False, True):
        wire.server.answers.append((200, [body], True))
        (af.instrument if metered else af.uninstrument)("google")
        try:
            outcomes.append(type(client.models.generate_content(model=MODEL, contents="x")))
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] is outcomes[1]
    (charge,) = rows()
    assert charge.basis in {"unknown", "estimated"}


def test_a_budget_refuses_before_anything_is_sent(client: Any, wire: Wire) -> None:
    """No request leaves when there is no room; a limit in the request makes the bound small enough."""
    with af.budget("$0.0001"), pytest.raises(af.BudgetExceeded):
        client.models.generate_content(model=MODEL, contents="x")
    assert wire.server.requests == []
    wire.say(answer())
    with af.budget("$0.001"):
        config = types.GenerateContentConfig(max_output_tokens=200)
        client.models.generate_content(model=MODEL, contents="x", config=config)
    assert len(rows()) == 1


def test_one_client_only(wire: Wire) -> None:
    """`instrument(client)` meters that one, `uninstrument()` restores exactly."""
    from google.genai._api_client import BaseApiClient

    af.uninstrument()
    before = dict(vars(BaseApiClient))
    one, other = (genai.Client(api_key="test", http_options=options(wire), vertexai=False) for _ in range(2))
    held = dict(vars(one._api_client))
    af.instrument(one)
    wire.say(answer(), answer(), answer())
    one.models.generate_content(model=MODEL, contents="x")
    other.models.generate_content(model=MODEL, contents="x")
    assert len(rows()) == 1
    af.uninstrument()
    assert vars(one._api_client).keys() == held.keys()
    assert dict(vars(BaseApiClient)) == before
    one.models.generate_content(model=MODEL, contents="x")
    assert len(rows()) == 1
