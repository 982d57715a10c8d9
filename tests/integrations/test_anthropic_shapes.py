"""Every shape of a call through the real anthropic client, on each platform: one exact row, the user's own objects."""

from __future__ import annotations

import base64
import binascii
import gc
import json
import logging
import struct
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from aifinops.testing.wire import CANARY, Wire

anthropic = pytest.importorskip("anthropic")

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.money import from_nanos  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude:DeprecationWarning")

MODEL = "claude-sonnet-4-5"
ASK = {"model": MODEL, "max_tokens": 400, "messages": [{"role": "user", "content": CANARY}]}
USAGE = {
    "input_tokens": 100,
    "cache_creation_input_tokens": 400,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 300},
    "cache_read_input_tokens": 500,
    "output_tokens": 200,
    "service_tier": "standard",
}
COUNTS = {
    "input_tokens": 100,
    "cache_write_tokens": 100,
    "cache_write_1h_tokens": 300,
    "cache_read_tokens": 500,
    "output_tokens": 200,
}
TRUE = Decimal("0.005625")
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5-20250929", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": f"Paris. {CANARY}"}], "usage": USAGE,
}  # fmt: skip


def events(**usage: Any) -> list[tuple[str, dict[str, Any]]]:
    """A stream as the API sends it: the input and a placeholder first, cumulative counts at the end."""
    start = {**MESSAGE, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1, **usage}}
    made = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"Paris. {CANARY}"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " Yes."}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 200},
        },
        {"type": "message_stop"},
    ]
    return [(event["type"], event) for event in made]


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        asked_for = lambda: events() if b'"stream":true' in running.asked[-1][1].replace(b" ", b"") else MESSAGE  # noqa: E731
        running.answers["POST /v1/messages"] = asked_for
        running.answers["POST /v1/messages/count_tokens"] = {"input_tokens": 12}
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
    return list(runtime.get().ledger.rows())


def only_row() -> Charge:
    (charge,) = rows()
    assert CANARY not in repr(charge)
    return charge


def exact(charge: Charge) -> None:
    """The buckets and the money of the one true usage."""
    assert dict(charge.quantities) == COUNTS
    assert (charge.basis, charge.status, charge.response_id) == ("priced", "ok", "msg_1")
    assert from_nanos(charge.amount or 0) == TRUE


def helper(client: Any) -> None:
    with client.messages.stream(**ASK) as stream:
        assert "".join(stream.text_stream).startswith("Paris.")
        assert stream.get_final_message().usage.output_tokens == 200


def lines(client: Any) -> None:
    with client.messages.with_streaming_response.create(**ASK, stream=True) as response:
        assert list(response.iter_lines())


def body(client: Any) -> None:
    with client.messages.with_streaming_response.create(**ASK) as response:
        assert response.parse().id == "msg_1"


SHAPES: dict[str, Callable[[Any], Any]] = {
    "create": lambda c: c.messages.create(**ASK),
    "stream": lambda c: list(c.messages.create(**ASK, stream=True)),
    "stream helper": helper,
    "raw": lambda c: c.messages.with_raw_response.create(**ASK),
    "raw stream": lambda c: list(c.messages.with_raw_response.create(**ASK, stream=True).parse()),
    "streaming response": body,
    "streaming response lines": lines,
    "beta": lambda c: c.beta.messages.create(**ASK),
    "beta with betas": lambda c: c.beta.messages.create(**ASK, betas=["fast-mode-2026-02-01"]),
    "beta stream": lambda c: list(c.beta.messages.create(**ASK, stream=True)),
    "with_options": lambda c: c.with_options(timeout=9).messages.create(**ASK),
    "copy": lambda c: c.copy(api_key="other").messages.create(**ASK),
    "post": lambda c: c.post("/v1/messages", body=ASK, cast_to=object),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_one_exact_row(shape: str, client: Any) -> None:
    """Plain, streamed, helper, raw, beta and by hand: the same disjoint buckets and the same money."""
    SHAPES[shape](client)
    charge = only_row()
    exact(charge)
    assert charge.stream == ("stream" in shape.replace("streaming", "") or "lines" in shape)


async def ahelper(client: Any) -> None:
    async with client.messages.stream(**ASK) as stream:
        assert (await stream.get_final_message()).usage.output_tokens == 200


async def astream(client: Any) -> None:
    async for _ in await client.messages.create(**ASK, stream=True):
        pass


ASYNC: dict[str, Callable[[Any], Any]] = {
    "create": lambda c: c.messages.create(**ASK),
    "stream": astream,
    "stream helper": ahelper,
    "beta": lambda c: c.beta.messages.create(**ASK),
    "raw": lambda c: c.messages.with_raw_response.create(**ASK),
}


@pytest.mark.parametrize("shape", ASYNC)
async def test_every_async_shape_is_one_exact_row(shape: str, wire: Wire) -> None:
    """The same in the other colour."""
    async with anthropic.AsyncAnthropic(base_url=wire.url, api_key="test", max_retries=0) as client:
        await ASYNC[shape](client)
    exact(only_row())


def test_counting_tokens_is_free(client: Any) -> None:
    """`count_tokens` costs nothing, holds nothing and leaves no row, under a budget too."""
    with af.budget("$0.000001") as block:
        assert client.messages.count_tokens(model=MODEL, messages=ASK["messages"]).input_tokens == 12
        assert block.spent == block.reserved == 0
    assert rows() == []


@pytest.mark.parametrize("how", ["cut", "dropped"])
def test_a_stream_that_only_began_is_an_estimate_that_holds_the_truth(how: str, client: Any, wire: Wire) -> None:
    """`message_start` tells the input and a placeholder: the output is estimated, never taken from it."""
    wire.cut = 1 if how == "cut" else None
    stream = client.messages.create(**ASK, stream=True)
    if how == "cut":
        with pytest.raises(Exception):  # noqa: B017,PT011 - whatever the transport calls a broken connection
            list(stream)
    else:
        next(iter(stream))
    del stream
    gc.collect()
    charge = only_row()
    assert (charge.basis, charge.response_id) == ("estimated", "msg_1")
    assert charge.lower is not None
    assert charge.upper is not None
    assert charge.amount
    assert charge.lower <= TRUE * 10**9 <= charge.upper
    told = {name: count for name, count in COUNTS.items() if name != "output_tokens"}
    assert {name: count for name, count in charge.quantities.items() if name != "output_tokens"} == told


@pytest.mark.parametrize(
    ("asked", "served", "factor"),
    [
        ({"speed": "fast"}, {"speed": "fast"}, "2"),
        ({"inference_geo": "us"}, {"inference_geo": "us"}, "1.1"),
        ({"inference_geo": "global"}, {"inference_geo": "global"}, "1"),
        ({"service_tier": "standard_only"}, {}, "1"),
        ({"service_tier": "auto"}, {"service_tier": "standard"}, "1"),
    ],
    ids=str,
)
def test_what_is_asked_for_is_held_and_what_was_served_is_charged(
    asked: dict[str, str], served: dict[str, str], factor: str, client: Any, wire: Wire
) -> None:
    """Fast mode and a region cost more: the budget holds it before anything is sent, the answer says what it was."""
    held: list[Decimal] = []
    usage = {"input_tokens": 1000, "output_tokens": 100}
    wire.answers["POST /v1/messages"] = {**MESSAGE, "model": "claude-opus-5", "usage": usage}
    amounts = []
    for body, more in (({}, {}), (asked, served)):
        wire.answers["POST /v1/messages"]["usage"] = {**usage, **more}
        with af.budget("$50") as block:
            wire.during = lambda: held.append(block.reserved)
            client.messages.create(**{**ASK, "model": "claude-opus-5"}, extra_body=body)
        amounts.append(block.spent)
    # The words that ask for it are held as prompt as well.
    assert 0 < held[0] * Decimal(factor) <= held[1] < held[0] * Decimal(factor) * Decimal("1.1")
    assert amounts[1] == amounts[0] * Decimal(factor) == Decimal("0.0075") * Decimal(factor)


def test_clients_made_before_and_after_are_metered(wire: Wire) -> None:
    """The class is patched, not the object; copies of either are no exception."""
    af.uninstrument()
    with anthropic.Anthropic(base_url=wire.url, api_key="test") as before:
        af.instrument("anthropic")
        before.messages.create(**ASK)
        before.copy().messages.create(**ASK)
        with anthropic.Anthropic(base_url=wire.url, api_key="test") as after:
            after.messages.create(**ASK)
    assert len(rows()) == 3


def test_objects_are_the_sdks_own(client: Any) -> None:
    """Types of answers, streams and events are what the SDK makes without us."""
    assert type(client.messages.create(**ASK)) is anthropic.types.Message
    with client.messages.create(**ASK, stream=True) as stream:
        assert type(stream) is anthropic.Stream
        seen = [event.type for event in stream]
    assert seen == [name for name, _ in events()]


def test_an_error_of_the_provider_passes_unchanged_and_costs_nothing(client: Any, wire: Wire) -> None:
    """A 404 reaches the user as the SDK made it; nothing is charged and nothing stays held."""
    wire.answers.clear()
    with af.budget("$1") as block, pytest.raises(anthropic.NotFoundError):
        client.messages.create(**ASK)
    assert rows() == []
    assert block.spent == block.reserved == 0


def test_no_text_is_logged(client: Any, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """Neither prompt nor answer is in a log of ours, also when the stream breaks."""
    wire.cut = 3
    with caplog.at_level(logging.DEBUG, "aifinops"), pytest.raises(Exception):  # noqa: B017,PT011 - as above
        list(client.messages.create(**ASK, stream=True))
    assert CANARY not in repr(only_row())
    assert CANARY not in caplog.text


# --- platforms ----------------------------------------------------------------------------------------------------------


def frame(event: dict[str, Any]) -> bytes:
    """One message of an Amazon event stream, with its checksums."""
    payload = json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode()}).encode()
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in ((":event-type", "chunk"), (":content-type", "application/json"), (":message-type", "event"))
    )
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    head = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + payload
    return head + struct.pack(">I", binascii.crc32(head))


BEDROCK = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"


@pytest.fixture
def bedrock(wire: Wire) -> Iterator[Any]:
    pytest.importorskip("botocore")
    wire.answers[f"POST /model/{BEDROCK}/invoke"] = MESSAGE
    stream = "application/vnd.amazon.eventstream", [frame(event) for _, event in events()]
    wire.answers[f"POST /model/{BEDROCK}/invoke-with-response-stream"] = stream
    keys = {"aws_access_key": "a", "aws_secret_key": "b", "aws_region": "us-east-1"}
    with anthropic.AnthropicBedrock(base_url=wire.url, **keys, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("how", ["create", "stream", "stream helper", "beta"])
def test_bedrock_is_priced_by_the_id_of_its_request(how: str, bedrock: Any) -> None:
    """The model goes into the path and the stream comes in binary frames: one exact row at the regional price, a tenth dearer."""
    ask = {**ASK, "model": BEDROCK}
    if how == "create":
        bedrock.messages.create(**ask)
    elif how == "stream":
        assert len(list(bedrock.messages.create(**ask, stream=True))) == len(events())
    elif how == "stream helper":
        with bedrock.messages.stream(**ask) as stream:
            stream.until_done()
    else:
        bedrock.beta.messages.create(**ask)
    charge = only_row()
    assert (charge.provider, charge.model, dict(charge.quantities)) == ("aws.bedrock", BEDROCK, COUNTS)
    assert from_nanos(charge.amount or 0) == TRUE * Decimal("1.1")


async def test_async_bedrock(wire: Wire, bedrock: Any) -> None:
    """The same in the other colour."""
    keys = {"aws_access_key": "a", "aws_secret_key": "b", "aws_region": "us-east-1"}
    async with anthropic.AsyncAnthropicBedrock(base_url=wire.url, **keys, max_retries=0) as client:
        async for _ in await client.messages.create(**{**ASK, "model": BEDROCK}, stream=True):
            pass
    charge = only_row()
    assert (charge.provider, dict(charge.quantities)) == ("aws.bedrock", COUNTS)


@pytest.mark.parametrize("streamed", [False, True])
def test_vertex_is_its_own_provider(streamed: bool, wire: Wire) -> None:
    """Vertex puts project, region and model into the path; provider and model are of the request."""
    pytest.importorskip("google.auth")
    model = "claude-sonnet-4-5@20250929"
    at = f"POST /projects/p/locations/us-east5/publishers/anthropic/models/{model}"
    wire.answers = {f"{at}:rawPredict": MESSAGE, f"{at}:streamRawPredict": events()}
    client = anthropic.AnthropicVertex(base_url=wire.url, region="us-east5", project_id="p", access_token="t")
    with client:
        made = client.messages.create(**{**ASK, "model": model}, stream=streamed)
        assert not streamed or len(list(made)) == len(events())
    charge = only_row()
    assert (charge.provider, charge.model, dict(charge.quantities)) == ("gcp.vertex_ai", model, COUNTS)
    assert from_nanos(charge.amount or 0) == TRUE


def test_foundry_is_azure(wire: Wire) -> None:
    """Claude in Microsoft's Foundry is Azure's, at the maker's prices."""
    if not hasattr(anthropic, "AnthropicFoundry"):
        pytest.skip(f"anthropic {anthropic.__version__} has no Foundry client")
    with anthropic.AnthropicFoundry(base_url=wire.url, api_key="test") as client:
        client.messages.create(**ASK)
    charge = only_row()
    assert charge.provider == "azure.ai.inference"
    exact(charge)


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://bedrock-runtime.eu-west-1.amazonaws.com", "aws.bedrock"),
        ("https://us-east5-aiplatform.googleapis.com/v1", "gcp.vertex_ai"),
        ("https://me.services.ai.azure.com/anthropic/", "azure.ai.inference"),
        ("https://api.anthropic.com", "anthropic"),
    ],
)
def test_an_address_says_whose_it_is(url: str, provider: str) -> None:
    """Someone may point the plain client at another platform."""
    from aifinops.integrations.calls import Calls
    from aifinops.integrations.registry import provider as row

    with anthropic.Anthropic(base_url=url, api_key="test") as client:
        assert Calls(row("anthropic")).target(client, client.base_url)[0] == provider
