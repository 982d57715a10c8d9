"""Amazon Bedrock through the real boto3 client, on a server that frames its streams itself: exact buckets, one row a call, nothing changed."""

from __future__ import annotations

import base64
import gc
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", minversion="1.40.40")  # older ones drop what they do not know of an answer

from botocore.config import Config  # noqa: E402
from botocore.eventstream import EventStream  # noqa: E402
from botocore.exceptions import ClientError, EventStreamError, ParamValidationError, ReadTimeoutError  # noqa: E402
from botocore.response import StreamingBody  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402

CANARY = "canary-7f3a"
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
NOVA = "amazon.nova-lite-v1:0"
TITAN = "amazon.titan-text-express-v1"
MESSAGES = [{"role": "user", "content": [{"text": "x" * 40}]}]
USAGE = {
    "inputTokens": 10,
    "outputTokens": 5,
    "totalTokens": 55,
    "cacheReadInputTokens": 30,
    "cacheWriteInputTokens": 10,
}
BUCKETS = {"input_tokens": 10, "cache_read_tokens": 30, "cache_write_tokens": 10, "output_tokens": 5}
ANSWER = {
    "output": {"message": {"role": "assistant", "content": [{"text": CANARY}]}}, "stopReason": "end_turn", "usage": USAGE,
    "metrics": {"latencyMs": 7},
}  # fmt: skip


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of the encoding `application/vnd.amazon.eventstream`: prelude and its CRC, headers, payload, CRC of it all."""
    head = b"".join(
        struct.pack(f"!B{len(name)}sBH{len(value)}s", len(name), name.encode(), 7, len(value), value.encode())
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    prelude += struct.pack("!I", zlib.crc32(prelude))
    body = prelude + head + payload
    return body + struct.pack("!I", zlib.crc32(body))


def event(name: str, said: dict[str, Any]) -> bytes:
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, json.dumps(said).encode())


def chunk(said: dict[str, Any]) -> bytes:
    return event("chunk", {"bytes": base64.b64encode(json.dumps(said).encode()).decode(), "p": "abc"})


def trouble(name: str) -> bytes:
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps({"message": CANARY}).encode())


TEXTS = [
    event("messageStart", {"role": "assistant"}),
    *(event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}) for text in ("a ", "b ", CANARY)),
]
CONVERSED = [
    *TEXTS,
    event("messageStop", {"stopReason": "end_turn"}),
    event("metadata", {"usage": USAGE, "metrics": {"latencyMs": 7}}),
]
METRICS = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 10, "outputTokenCount": 5, "invocationLatency": 7}}
CLAUDE_STREAM = [
    chunk({"type": "message_start", "message": {"id": "msg_1", "type": "message", "model": "claude", "content": [], "usage": {
        "input_tokens": 10, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 10, "output_tokens": 1,
        "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 6},
    }}}),
    *(chunk({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}) for text in ("a ",) * 20),
    chunk({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}),
    chunk({"type": "message_stop", **METRICS}),
]  # fmt: skip
CLAUDE_BUCKETS = {
    "input_tokens": 10, "cache_read_tokens": 30, "cache_write_tokens": 4, "cache_write_1h_tokens": 6, "output_tokens": 5,
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        server: Any = self.server
        with server.lock:
            server.requests.append(self.path)
            status, headers, chunks, whole = server.answers.pop(0)
        if status == 0:  # say nothing until the client gives up
            self.connection.recv(1)
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"x-amzn-requestid": "req-1", "content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        if "content-length" not in headers:
            self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for part in chunks:
                self.wfile.write(part if "content-length" in headers else b"%x\r\n%s\r\n" % (len(part), part))
            if whole and "content-length" not in headers:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client went away
            pass
        self.close_connection = not whole


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

    def say(
        self, body: Any, status: int = 200, *, counts: tuple[int, int] | None = None, sized: bool = True, **headers: str
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if counts is not None:
            given |= {
                f"x-amzn-bedrock-{name}-token-count": str(n)
                for name, n in zip(("input", "output"), counts, strict=True)
            }
        if sized:
            given["content-length"] = str(len(data))
        self.server.answers.append((status, given, [data], True))

    def stream(self, messages: list[bytes], *, whole: bool = True, split: int = 0) -> None:
        data = b"".join(messages)
        chunks = [data[at : at + split] for at in range(0, len(data), split)] if split else messages
        self.server.answers.append((200, {"content-type": "application/vnd.amazon.eventstream"}, chunks, whole))

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
    af.instrument("bedrock")
    yield
    af.uninstrument()


def make(
    wire: Wire, service: str = "bedrock-runtime", region: str = "us-east-1", attempts: int = 1, **more: Any
) -> Any:
    config = Config(retries={"total_max_attempts": attempts, "mode": "standard"}, **more)
    session = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name=region)
    return session.client(service, endpoint_url=wire.url, config=config)


@pytest.fixture
def client(wire: Wire) -> Iterator[Any]:
    made = make(wire)
    yield made
    made.close()


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def only(buckets: dict[str, int]) -> Charge:
    (charge,) = rows()
    assert dict(charge.quantities) == buckets
    assert (charge.provider, charge.status, charge.basis) == ("aws.bedrock", "ok", "priced")
    assert charge.amount
    return charge


def invoke(client: Any, model: str, **body: Any) -> Any:
    return client.invoke_model(modelId=model, body=json.dumps({"prompt": "x" * 40, **body}))


# --- Converse ----------------------------------------------------------------------------------------------------------


def test_converse_is_one_exact_row(client: Any, wire: Wire) -> None:
    """What was read from and written to the cache is beside the input; the id is that of the request."""
    wire.say(ANSWER)
    answer = client.converse(modelId=CLAUDE, messages=MESSAGES)
    assert answer["output"] == ANSWER["output"]
    charge = only(BUCKETS)
    assert (charge.model, charge.response_id, charge.operation) == (CLAUDE, "req-1", "chat")


@pytest.mark.parametrize("split", [0, 7])
def test_a_converse_stream_is_one_exact_row(client: Any, wire: Wire, split: int) -> None:
    """The usage is in the last message, however the bytes are cut; the stream is the library's own."""
    wire.stream(CONVERSED, split=split)
    answer = client.converse_stream(modelId=CLAUDE, messages=MESSAGES)
    assert type(answer["stream"]) is EventStream
    assert [name for event in answer["stream"] for name in event] == [
        "messageStart", *["contentBlockDelta"] * 3, "messageStop", "metadata",
    ]  # fmt: skip
    charge = only(BUCKETS)
    assert charge.stream
    assert charge.response_id == "req-1"


@pytest.mark.parametrize(
    ("given", "model"),
    [
        (f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{CLAUDE}", CLAUDE),
        (f"arn:aws:bedrock:us-east-1::foundation-model/{NOVA}", NOVA),
        (f"global.{CLAUDE.partition('.')[2]}", f"global.{CLAUDE.partition('.')[2]}"),
    ],
)
def test_models_behind_arns_and_profiles(client: Any, wire: Wire, given: str, model: str) -> None:
    """An ARN of a profile or of a model ends with the id that has the price."""
    wire.say({**ANSWER, "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}})
    client.converse(modelId=given, messages=MESSAGES)
    assert only({"input_tokens": 10, "output_tokens": 5}).model == model


def test_an_opaque_profile_is_unknown_and_never_zero(client: Any, wire: Wire) -> None:
    """The ARN of an application's own profile says nothing of its model: the tokens are counted, the cost is unknown."""
    wire.say(ANSWER)
    client.converse(
        modelId="arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/ab12", messages=MESSAGES
    )
    (charge,) = rows()
    assert dict(charge.quantities) == BUCKETS
    assert (charge.basis, charge.amount) == ("unknown", None)


# --- InvokeModel -------------------------------------------------------------------------------------------------------

CLAUDE_BODY = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": [{"type": "text", "text": CANARY}],
    "usage": {
        "input_tokens": 10, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 10, "output_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 6},
    },
}  # fmt: skip

READERS: dict[str, Callable[[Any], bytes]] = {
    "read": lambda body: body.read(),
    "read in pieces": lambda body: b"".join(iter(lambda: body.read(7), b"")),
    "read its length": lambda body: body.read(int(body._content_length or 10_000)),
    "chunks": lambda body: b"".join(body.iter_chunks(7)),
    "lines": lambda body: b"".join(body.iter_lines(7)),
    "iteration": lambda body: b"".join(body),
    "json": lambda body: json.dumps(json.load(body)).encode(),
    "readinto": lambda body: _into(body),
    "context": lambda body: _within(body),
}


def _into(body: Any) -> bytes:
    buffer, found = bytearray(7), b""
    while size := body.readinto(buffer):
        found += bytes(buffer[:size])
    return found


def _within(body: Any) -> bytes:
    with body as raw:
        return raw.read()


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("way", READERS)
def test_a_body_is_seen_while_it_is_read(client: Any, wire: Wire, way: str, sized: bool) -> None:
    """Every way of reading it gives the same bytes, from the library's own object, and one row with the maker's own detail."""
    wire.say(CLAUDE_BODY, counts=(10, 5), sized=sized)
    answer = invoke(client, CLAUDE)
    assert type(answer["body"]) is StreamingBody
    assert json.loads(READERS[way](answer["body"])) == CLAUDE_BODY
    answer.clear()  # of a body without a length, only a read past its end is known to be the last
    only(CLAUDE_BUCKETS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_body_that_nobody_reads_is_what_the_headers_tell(client: Any, wire: Wire) -> None:
    """Closed or dropped, it was paid for."""
    for _ in range(2):
        wire.say({"generation": CANARY}, counts=(8, 35))
    invoke(client, "meta.llama3-70b-instruct-v1:0")["body"].close()
    invoke(client, "meta.llama3-70b-instruct-v1:0")
    gc.collect()
    assert [dict(charge.quantities) for charge in rows()] == [{"input_tokens": 8, "output_tokens": 35}] * 2


@pytest.mark.parametrize(
    ("model", "body", "buckets"),
    [
        (TITAN, {"inputTextTokenCount": 28.0, "results": [{"tokenCount": 197.0, "outputText": CANARY}]}, (28, 197)),
        ("meta.llama3-8b-instruct-v1:0", {"generation": CANARY, "prompt_token_count": 8, "generation_token_count": 35}, (8, 35)),
        (NOVA, {"choices": [], "usage": {"prompt_tokens": 16, "completion_tokens": 19}}, (16, 19)),
        (NOVA, {"output": {}, "usage": {"inputTokens": 7, "outputTokens": 53, "totalTokens": 60}}, (7, 53)),
        ("openai.gpt-oss-20b-1:0", {"object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}, (3, 4)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("headers", [True, False])
def test_the_makers_own_bodies(
    client: Any, wire: Wire, model: str, body: dict[str, Any], buckets: tuple[int, int], headers: bool
) -> None:
    """With Bedrock's headers and without them."""
    wire.say(body, counts=buckets if headers else None)
    invoke(client, model)["body"].read()
    only({"input_tokens": buckets[0], "output_tokens": buckets[1]})


def test_what_a_guardrail_left_out_of_the_body(client: Any, wire: Wire) -> None:
    """Behind one, Nova's body tells the input only: the output is in the headers."""
    wire.say({"output": {}, "usage": {"inputTokens": 30}}, counts=(30, 51))
    invoke(client, NOVA)["body"].read()
    only({"input_tokens": 30, "output_tokens": 51})


def test_embeddings_have_no_output(client: Any, wire: Wire) -> None:
    """Also those whose body is vectors only."""
    wire.say({"embedding": [0.1], "inputTextTokenCount": 5})
    wire.say({"embeddings": [[0.1]]}, x_amzn_bedrock_input_token_count="7")
    invoke(client, "amazon.titan-embed-text-v2:0")["body"].read()
    invoke(client, "cohere.embed-english-v3")["body"].read()
    found = rows()
    assert [dict(charge.quantities) for charge in found] == [{"input_tokens": 5}, {"input_tokens": 7}]
    assert {charge.operation for charge in found} == {"embeddings"}


@pytest.mark.parametrize(
    ("model", "messages", "buckets"),
    [
        (CLAUDE, CLAUDE_STREAM, CLAUDE_BUCKETS),
        (NOVA, [chunk({"messageStart": {"role": "assistant"}}), chunk({"contentBlockDelta": {"delta": {"text": CANARY}}, **METRICS})],
         {"input_tokens": 10, "output_tokens": 5}),
        (TITAN, [chunk({"outputText": CANARY}), chunk({"outputText": "", **METRICS})], {"input_tokens": 10, "output_tokens": 5}),
    ],
)  # fmt: skip
def test_a_stream_of_invoke_model(
    client: Any, wire: Wire, model: str, messages: list[bytes], buckets: dict[str, int]
) -> None:
    """The maker's own events say more than the metrics of the last one, where they say anything."""
    wire.stream(messages)
    answer = client.invoke_model_with_response_stream(modelId=model, body=b"{}")
    assert type(answer["body"]) is EventStream
    assert len(list(answer["body"])) == len(messages)
    only(buckets)


# --- ends that are no end ------------------------------------------------------------------------------------------------


def broken(client: Any) -> None:
    stream = client.converse_stream(modelId=NOVA, messages=MESSAGES)["stream"]
    with pytest.raises(Exception, match=r"Connection broken|IncompleteRead|ended prematurely"):
        list(stream)


def closed(client: Any) -> None:
    stream = client.converse_stream(modelId=NOVA, messages=MESSAGES)["stream"]
    for _, _ in zip(range(3), stream, strict=False):
        pass
    stream.close()


def dropped(client: Any) -> None:
    for _, _ in zip(range(3), client.converse_stream(modelId=NOVA, messages=MESSAGES)["stream"], strict=False):
        pass


def untouched(client: Any) -> None:
    client.converse_stream(modelId=NOVA, messages=MESSAGES)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the connection of what was dropped
@pytest.mark.parametrize("end", [broken, closed, dropped, untouched])
def test_streams_that_end_early_are_estimated_once(client: Any, wire: Wire, end: Callable[[Any], None]) -> None:
    """Never zero, never twice, and marked."""
    wire.stream(TEXTS, whole=False)
    end(client)
    gc.collect()
    (charge,) = rows()
    assert (charge.basis, charge.status) == ("estimated", "abandoned")
    assert charge.amount
    assert charge.lower is not None
    assert charge.upper is not None
    assert charge.lower <= charge.amount <= charge.upper


def test_an_error_inside_a_stream(client: Any, wire: Wire) -> None:
    """The library raises its own error; what was made before is estimated."""
    wire.stream([*TEXTS, trouble("modelStreamErrorException")])
    stream = client.converse_stream(modelId=NOVA, messages=MESSAGES)["stream"]
    with pytest.raises(EventStreamError):
        list(stream)
    stream.close()
    (charge,) = rows()
    assert charge.basis == "estimated"
    assert charge.amount


def test_refused_calls_cost_nothing(client: Any, wire: Wire) -> None:
    """An error status, and a call that the library did not even send."""
    wire.say({"message": CANARY}, 400, x_amzn_errortype="ValidationException")
    with pytest.raises(ClientError):
        client.converse(modelId=NOVA, messages=MESSAGES)
    with pytest.raises(ParamValidationError):
        client.converse(modelId=NOVA, messages="x")
    assert rows() == []


def test_retries_that_were_refused_are_one_row(wire: Wire) -> None:
    """Throttled tries are not billed; the one that succeeded is the row."""
    wire.say({"message": "x"}, 429, x_amzn_errortype="ThrottlingException")
    wire.say(ANSWER)
    client = make(wire, attempts=2)
    client.converse(modelId=CLAUDE, messages=MESSAGES)
    client.close()
    assert len(wire.server.requests) == 2
    only(BUCKETS)


def test_a_timeout_after_sending_is_unknown(wire: Wire) -> None:
    """It may have been billed."""
    wire.server.answers.append((0, {}, [], False))
    client = make(wire, read_timeout=0.05)
    with pytest.raises(ReadTimeoutError):
        client.converse(modelId=NOVA, messages=MESSAGES)
    client.close()
    (charge,) = rows()
    assert (charge.basis, charge.status, charge.error) == ("unknown", "error", "ReadTimeoutError")


@pytest.mark.parametrize("usage", [None, {"inputTokens": -1, "outputTokens": 5, "totalTokens": 4}])
def test_damaged_answers_never_break_the_call(client: Any, wire: Wire, usage: Any) -> None:
    """No usage is an estimate, an impossible one is unknown."""
    wire.say({**ANSWER, "usage": usage})
    assert client.converse(modelId=NOVA, messages=MESSAGES)["stopReason"] == "end_turn"
    (charge,) = rows()
    assert charge.basis == ("estimated" if usage is None else "unknown")


# --- everything else -------------------------------------------------------------------------------------------------------


def test_other_services_and_operations_are_left_alone(client: Any, wire: Wire) -> None:
    """No row, no error."""
    wire.say({"QueueUrls": []})
    wire.say({"inputTokens": 7})
    other = make(wire, "sqs")
    other.list_queues()
    other.close()
    client.count_tokens(modelId=NOVA, input={"converse": {"messages": MESSAGES}})
    assert rows() == []


def test_a_budget_refuses_before_anything_is_sent(client: Any, wire: Wire) -> None:
    """The limit of the request is what its bound is made of."""
    with af.budget("$0.000001"), pytest.raises(af.BudgetExceeded):
        client.converse(modelId=NOVA, messages=MESSAGES, inferenceConfig={"maxTokens": 1000})
    assert wire.server.requests == []
    wire.say(ANSWER)
    with af.budget("$0.001"):
        client.converse(modelId=NOVA, messages=MESSAGES, inferenceConfig={"maxTokens": 10})
    assert len(rows()) == 1


def test_one_client_only_and_exact_undoing(wire: Wire) -> None:
    """`instrument(client)` meters that one; afterwards everything is as it was."""
    from botocore.client import BaseClient

    af.uninstrument()
    before, streams = dict(vars(BaseClient)), dict(vars(EventStream))
    one, other = make(wire), make(wire)
    held = set(vars(one))
    af.instrument(one)
    for _ in range(3):
        wire.say(ANSWER)
    one.converse(modelId=CLAUDE, messages=MESSAGES)
    other.converse(modelId=CLAUDE, messages=MESSAGES)
    assert len(rows()) == 1
    af.uninstrument()
    assert (set(vars(one)), dict(vars(BaseClient)), dict(vars(EventStream))) == (held, before, streams)
    one.converse(modelId=CLAUDE, messages=MESSAGES)
    assert len(rows()) == 1
    one.close()
    other.close()


# --- aiobotocore -----------------------------------------------------------------------------------------------------------


async def _read(body: Any) -> bytes:
    return await body.read()  # type: ignore[no-any-return]


async def _read_pieces(body: Any) -> bytes:
    return b"".join([piece async for piece in body.iter_chunks(7)])


async def _read_within(body: Any) -> bytes:
    async with body as inner:
        return await inner.read()  # type: ignore[no-any-return]


@pytest.fixture
async def aclient(wire: Wire) -> Any:
    session = pytest.importorskip("aiobotocore.session")
    from aiobotocore.config import AioConfig

    af.instrument("aiobotocore")
    async with session.get_session().create_client(
        "bedrock-runtime", region_name="us-east-1", endpoint_url=wire.url, aws_access_key_id="a", aws_secret_access_key="b",
        config=AioConfig(retries={"total_max_attempts": 1}),
    ) as made:  # fmt: skip
        yield made


async def test_async_converse_and_its_stream(aclient: Any, wire: Wire) -> None:
    """The same rows as with boto3."""
    wire.say(ANSWER)
    wire.stream(CONVERSED, split=7)
    await aclient.converse(modelId=CLAUDE, messages=MESSAGES)
    answer = await aclient.converse_stream(modelId=CLAUDE, messages=MESSAGES)
    assert type(answer["stream"]).__name__ == "AioEventStream"
    assert len([event async for event in answer["stream"]]) == 6
    assert [dict(charge.quantities) for charge in rows()] == [BUCKETS, BUCKETS]


@pytest.mark.parametrize("way", [_read, _read_pieces, _read_within])
async def test_an_async_body_is_seen_while_it_is_read(aclient: Any, wire: Wire, way: Any) -> None:
    """The same bytes, and one row with the maker's own detail."""
    wire.say(CLAUDE_BODY, counts=(10, 5))
    answer = await aclient.invoke_model(modelId=CLAUDE, body=b"{}")
    assert json.loads(await way(answer["body"])) == CLAUDE_BODY
    only(CLAUDE_BUCKETS)


async def test_async_streams_that_end_early(aclient: Any, wire: Wire) -> None:
    """Broken and abandoned: estimated once each."""
    for _ in range(2):
        wire.stream(TEXTS, whole=False)
    with pytest.raises(Exception):  # noqa: B017, PT011 (each transport has its own)
        async for _ in (await aclient.converse_stream(modelId=NOVA, messages=MESSAGES))["stream"]:
            pass
    stream = (await aclient.converse_stream(modelId=NOVA, messages=MESSAGES))["stream"]
    async for _ in stream:
        break
    stream.close()
    assert [charge.basis for charge in rows()] == ["estimated", "estimated"]
