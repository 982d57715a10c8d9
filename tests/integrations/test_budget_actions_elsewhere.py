"""Budgets that change calls of libraries that are not of the one family: Mistral's, Google's and Amazon's real clients."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import pytest

import aifinops as af
from aifinops.errors import StreamCut
from aifinops.integrations.changing import placed
from aifinops.testing import capture_charges
from aifinops.testing.wire import Wire

# What google-genai does to aiohttp, where that is installed.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")

CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}}, "stopReason": "end_turn",
    "usage": {"inputTokens": 5, "outputTokens": 2, "totalTokens": 7}, "metrics": {"latencyMs": 7},
}  # fmt: skip
GENERATED = {
    "candidates": [{"content": {"parts": [{"text": "hello"}], "role": "model"}, "index": 0, "finishReason": "STOP"}],
    "modelVersion": "gemini", "responseId": "r", "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7},
}  # fmt: skip
CHAT = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "mistral",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}  # fmt: skip
CLAUDE = {
    "id": "m", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn",
    "model": "claude", "usage": {"input_tokens": 5, "output_tokens": 2},
}  # fmt: skip


class Anything(Wire):
    """Gives one answer to whatever is asked."""

    said: Any = None

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, Iterator[bytes]]:
        self.answers[f"{method} {path}"] = self.said
        return super().answer(method, path, body)

    @property
    def sent(self) -> tuple[str, dict[str, Any]]:
        """(path, body) of what was asked last."""
        key, body = self.asked[-1]
        return unquote(key.partition(" ")[2]), json.loads(body)


@pytest.fixture
def wire() -> Iterator[Anything]:
    af.init(ledger="memory")
    with Anything() as running:
        yield running
    af.uninstrument()


@pytest.fixture
def bedrock(wire: Anything) -> Iterator[Any]:
    boto3 = pytest.importorskip("boto3")
    config = pytest.importorskip("botocore.config").Config(retries={"max_attempts": 0})
    af.instrument("bedrock")
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    made = boto3.client("bedrock-runtime", endpoint_url=wire.url, config=config, **keys)
    yield made
    made.close()


@pytest.fixture
def google(wire: Anything) -> Any:
    genai = pytest.importorskip("google.genai")
    af.instrument("google")
    return genai.Client(api_key="x", http_options=genai.types.HttpOptions(base_url=wire.url), vertexai=False)


def client_of_mistral(wire: Anything) -> Any:
    module = pytest.importorskip("mistralai")
    kind = getattr(module, "Mistral", None) or pytest.importorskip("mistralai.client").Mistral
    af.instrument("mistral")
    return kind(api_key="x", server_url=wire.url)


@pytest.fixture
def mistral(wire: Anything) -> Iterator[Any]:
    with client_of_mistral(wire) as made:
        yield made


def held(wire: Anything, call: Callable[[], Any]) -> Decimal:
    """What a call holds while it is made."""
    seen: list[Decimal] = []
    with af.budget("$1000") as budget:
        wire.during = lambda: seen.append(Decimal(budget.reserved))
        call()
        wire.during = lambda: None
    return seen[0]


def between(wire: Anything, dear: Callable[[], Any], cheap: Callable[[], Any]) -> dict[str, Decimal]:
    """A limit in which the cheap call fits and the dear one does not."""
    most, least = held(wire, dear), held(wire, cheap)
    assert least < most
    return {"USD": (most + least) / 2}


# --- a cheaper model --------------------------------------------------------------------------------------------------------


def test_converse_with_a_cheaper_model(wire: Anything, bedrock: Any) -> None:
    """The model is in the address, which the library makes of what we give it; the caller's own dict stays as it is."""
    dear, cheap = "amazon.nova-pro-v1:0", "amazon.nova-lite-v1:0"
    wire.said = CONVERSED
    ask = {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {"maxTokens": 300}}

    def made(model: str) -> Any:
        return bedrock.converse(modelId=model, **ask)

    limit = between(wire, lambda: made(dear), lambda: made(cheap))
    with capture_charges() as charges, af.budget(limit, on_exceed={"downgrade": {dear: cheap}}):
        assert made(dear)["stopReason"] == "end_turn"
    assert wire.sent[0] == f"/model/{cheap}/converse"
    assert (charges[0].model, charges[0].tags["asked_model"]) == (cheap, dear)


def test_google_with_a_cheaper_model(wire: Anything, google: Any) -> None:
    """The model is in the address there, too."""
    dear, cheap = "gemini-2.5-pro", "gemini-2.5-flash"
    wire.said = GENERATED

    def made(model: str) -> Any:
        return google.models.generate_content(model=model, contents="hi", config={"max_output_tokens": 300})

    limit = between(wire, lambda: made(dear), lambda: made(cheap))
    with capture_charges() as charges, af.budget(limit, on_exceed={"downgrade": {dear: cheap}}):
        assert made(dear).text == "hello"
    assert wire.sent[0].endswith(f"/models/{cheap}:generateContent")
    assert (charges[0].model, charges[0].tags["asked_model"]) == (cheap, dear)


def test_mistral_with_a_cheaper_model(wire: Anything, mistral: Any) -> None:
    """The request that goes out is another one of the same kind, with its own length."""
    dear, cheap = "mistral-large-latest", "mistral-small-latest"
    wire.said = CHAT

    def made(model: str) -> Any:
        return mistral.chat.complete(model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=300)

    limit = between(wire, lambda: made(dear), lambda: made(cheap))
    with capture_charges() as charges, af.budget(limit, on_exceed={"downgrade": {dear: cheap}}):
        assert made(dear).choices[0].message.content == "hello"
    assert wire.sent[1]["model"] == cheap
    assert (charges[0].model, charges[0].tags["asked_model"]) == (cheap, dear)


async def test_mistral_in_the_other_colour(wire: Anything) -> None:
    """The same request of the asynchronous method."""
    wire.said = CHAT
    ask = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "hi"}]}
    async with client_of_mistral(wire) as mistral, af.budget("300 output_tokens", on_exceed="clamp"):
        answer = await mistral.chat.complete_async(**ask)
    assert answer.choices[0].message.content == "hello"
    assert wire.sent[1]["max_tokens"] == 300


# --- a lower output limit ------------------------------------------------------------------------------------------------------


def test_a_lower_limit_of_converse(wire: Anything, bedrock: Any) -> None:
    """Inside of another field, of which the caller's dict is not touched."""
    wire.said = CONVERSED
    ask = {"modelId": "amazon.nova-lite-v1:0", "messages": [{"role": "user", "content": [{"text": "hi"}]}]}
    config = {"temperature": 0.5, "maxTokens": 4000}
    with af.budget("300 output_tokens", on_exceed="clamp"):
        bedrock.converse(**ask, inferenceConfig=config)
        assert wire.sent[1]["inferenceConfig"] == {"temperature": 0.5, "maxTokens": 300}
    assert config == {"temperature": 0.5, "maxTokens": 4000}
    with af.budget("300 output_tokens", on_exceed="clamp"):
        bedrock.converse(**ask)
    assert wire.sent[1]["inferenceConfig"] == {"maxTokens": 300}


SONNET, HAIKU = "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "us.anthropic.claude-haiku-4-5-20251001-v1:0"
MESSAGES = [{"role": "user", "content": "hi"}]
NOVA_SAID = [{"role": "user", "content": [{"text": "hi"}]}]
TITAN = {"inputTextTokenCount": 5, "results": [{"tokenCount": 2, "outputText": "hello", "completionReason": "FINISH"}]}
LLAMA = {"generation": "hello", "prompt_token_count": 5, "generation_token_count": 2, "stop_reason": "stop"}
MAKERS = {
    # dear, cheap, request, where its limit stands, answer
    "Claude": (SONNET, HAIKU, {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 300, "messages": MESSAGES}, "max_tokens", CLAUDE),
    "Nova": (
        "amazon.nova-pro-v1:0", "us.amazon.nova-lite-v1:0", {"messages": NOVA_SAID, "inferenceConfig": {"maxTokens": 300, "topP": 1}},
        "inferenceConfig.maxTokens", CONVERSED,
    ),
    "Titan": (
        "amazon.titan-text-premier-v1:0", "amazon.titan-text-express-v1",
        {"inputText": "hi", "textGenerationConfig": {"maxTokenCount": 300, "topP": 1}}, "textGenerationConfig.maxTokenCount", TITAN,
    ),
    "Llama": ("meta.llama3-70b-instruct-v1:0", "us.meta.llama3-8b-instruct-v1:0", {"prompt": "hi", "max_gen_len": 300}, "max_gen_len", LLAMA),
    "Mistral": (
        "mistral.mistral-large-2402-v1:0", "mistral.mistral-7b-instruct-v0:2", {"prompt": "hi", "max_tokens": 300}, "max_tokens",
        {"outputs": [{"text": "hello", "stop_reason": "stop"}]},
    ),
}  # fmt: skip
"""Makers whose requests have a form of their own."""


def invoked(bedrock: Any, model: str, body: Any) -> Any:
    return json.loads(bedrock.invoke_model(modelId=model, body=json.dumps(body))["body"].read())


@pytest.mark.parametrize("maker", MAKERS)
def test_invoke_model_with_a_cheaper_model(wire: Anything, bedrock: Any, maker: str) -> None:
    """The model is in the address, and the body goes out as it was given; the hold is that of the cheap one."""
    dear, cheap, body, _, wire.said = MAKERS[maker]
    text = json.dumps(body, indent=1)
    af.register_price(dear, provider="aws.bedrock", rates={"input_tokens": "3", "output_tokens": "15"})
    af.register_price(cheap, provider="aws.bedrock", rates={"input_tokens": "1", "output_tokens": "5"})

    def made(model: str) -> Any:
        return json.loads(bedrock.invoke_model(modelId=model, body=text)["body"].read())

    limit = between(wire, lambda: made(dear), lambda: made(cheap))
    with capture_charges() as charges, af.budget(limit, on_exceed={"downgrade": {dear: cheap}}) as budget:
        assert made(dear) == wire.said
        assert budget.reserved == 0
    assert wire.sent[0] == f"/model/{cheap}/invoke"
    assert wire.asked[-1][1].decode() == text
    assert (charges[0].model, charges[0].tags["asked_model"]) == (cheap, dear)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_lower_limit_in_the_words_of_a_maker(wire: Anything, bedrock: Any, maker: str) -> None:
    """InvokeModel passes on what each maker calls it: where a request has no limit it is set under its own name."""
    _, model, body, field, wire.said = MAKERS[maker]
    before = json.dumps(body)
    with af.budget("100 output_tokens", on_exceed="clamp"):
        assert invoked(bedrock, model, body) == wire.said
    assert wire.sent[1] == placed(body, field, 100)
    outer, _, inner = field.partition(".")
    body = {name: value for name, value in body.items() if name != outer}
    if inner:
        body[outer] = {"topP": 1}
    with af.budget("100 output_tokens", on_exceed="clamp"):
        invoked(bedrock, model, body)
    assert wire.sent[1] == placed(body, field, 100)
    assert json.dumps(MAKERS[maker][2]) == before


def test_both_changes_of_one_request(wire: Anything, bedrock: Any) -> None:
    """Two budgets, of which one wants another model and the other one a lower limit."""
    wire.said = CLAUDE
    _, _, body, _, _ = MAKERS["Claude"]
    most = held(wire, lambda: invoked(bedrock, HAIKU, body))
    with (
        af.budget({"USD": most}, on_exceed={"downgrade": {SONNET: HAIKU}}),
        af.budget("200 output_tokens", on_exceed="clamp"),
    ):
        invoked(bedrock, SONNET, body)
    assert wire.sent == (f"/model/{HAIKU}/invoke", {**body, "max_tokens": 200})


def test_the_same_of_a_stream(wire: Anything, bedrock: Any) -> None:
    """The streamed operation is changed in the same way."""
    wire.said = ("application/vnd.amazon.eventstream", [])
    _, _, body, _, _ = MAKERS["Claude"]

    def made(model: str) -> Any:
        return list(bedrock.invoke_model_with_response_stream(modelId=model, body=json.dumps(body))["body"])

    limit = between(wire, lambda: made(SONNET), lambda: made(HAIKU))
    with af.budget(limit, on_exceed={"downgrade": {SONNET: HAIKU}}):
        made(SONNET)
    assert wire.sent == (f"/model/{HAIKU}/invoke-with-response-stream", body)


@pytest.mark.parametrize(
    ("maker", "cheap", "change", "why"),
    [
        (
            "Claude",
            "us.amazon.nova-lite-v1:0",
            {},
            "does not take requests in the form of Anthropic's Messages; use converse",
        ),
        ("Nova", "meta.llama3-8b-instruct-v1:0", {}, "does not take requests in the form of Amazon Nova"),
        ("Mistral", "meta.llama3-8b-instruct-v1:0", {}, "does not take requests in the form of Mistral's completions"),
        ("Claude", HAIKU, {"anthropic_version": None, "messages": None}, "form of the request is not known"),
        ("Claude", HAIKU, {"tools": [{"name": "t", "input_schema": {}}]}, "has tools, which .* may not take"),
        (
            "Llama",
            "us.meta.llama3-8b-instruct-v1:0",
            {"images": ["aGk="]},
            "has pictures or files, which .* may not take",
        ),
    ],
)
def test_a_model_that_does_not_take_the_same_request(
    wire: Anything, bedrock: Any, maker: str, cheap: str, change: dict[str, Any], why: str
) -> None:
    """Nothing is sent to a model that may not understand it, and the error says what to do."""
    dear, _, body, _, _ = MAKERS[maker]
    body = {name: value for name, value in {**body, **change}.items() if value is not None}
    with (
        af.budget("1 output_tokens", on_exceed={"downgrade": {dear: cheap}}),
        pytest.raises(af.BudgetExceeded, match=why),
    ):
        invoked(bedrock, dear, body)
    assert not wire.asked


def test_a_limit_of_an_unknown_form_is_only_lowered(wire: Anything, bedrock: Any) -> None:
    """What it is called in a request that has none is not guessed."""
    wire.said, model = CLAUDE, "somebody.new-model-v1:0"
    af.register_price(model, provider="aws.bedrock", rates={"input_tokens": "1", "output_tokens": "5"})
    with af.budget("300 output_tokens", on_exceed="clamp"):
        invoked(bedrock, model, {"words": "hi", "max_tokens": 4000})
    assert wire.sent[1] == {"words": "hi", "max_tokens": 300}
    with (
        af.budget("300 output_tokens", on_exceed="clamp"),
        pytest.raises(af.BudgetExceeded, match="has no output limit"),
    ):
        invoked(bedrock, model, {"words": "hi"})
    assert len(wire.asked) == 1


def test_a_body_that_is_a_file_is_not_changed(wire: Anything, bedrock: Any) -> None:
    """Only the library may read that."""
    with (
        af.budget("1 output_tokens", on_exceed={"downgrade": {SONNET: HAIKU}}),
        pytest.raises(af.BudgetExceeded, match="form of the request is not known"),
    ):
        bedrock.invoke_model(modelId=SONNET, body=io.BytesIO(json.dumps(MAKERS["Claude"][2]).encode()))
    assert not wire.asked


def test_a_lower_limit_of_google(wire: Anything, google: Any) -> None:
    """Inside of another field."""
    wire.said = GENERATED
    ask = {"model": "gemini-2.5-flash", "contents": "hi"}
    with af.budget("300 output_tokens", on_exceed="clamp"):
        google.models.generate_content(**ask)
    assert wire.sent[1]["generationConfig"] == {"maxOutputTokens": 300}


# --- a stream that ends in time -----------------------------------------------------------------------------------------------


def test_a_stream_of_mistral_is_ended(wire: Anything, mistral: Any) -> None:
    """Its library reads the same bytes in another way."""
    events = [
        {
            "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mistral-small-latest",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": "word "}, "finish_reason": None}],
        }
        for _ in range(2000)
    ]  # fmt: skip
    wire.said = [*events, "[DONE]"]
    ask = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "hi"}]}
    seen = 0
    ended = None
    with capture_charges() as charges, af.budget("900 output_tokens", on_exceed="cut") as b:
        try:
            for _ in mistral.chat.stream(**ask):
                seen += 1
        except StreamCut as cut:
            ended = cut
    assert ended is not None
    assert 0 < seen < 2000
    assert b.spent <= 900
    assert charges[0].tags["budget_action"] == "cut"


def test_a_stream_of_ollama_is_clamped_and_ended(wire: Anything) -> None:
    """One JSON object a line is followed as well, and a limit that is inside of another field is made where there is none."""
    ollama = pytest.importorskip("ollama")
    af.instrument("ollama")
    line = json.dumps({"model": "llama3.2", "created_at": "2026-11-10T12:00:00Z", "message": {"role": "assistant", "content": "word "}, "done": False})  # fmt: skip
    wire.said = ("application/x-ndjson", [line.encode() + b"\n" for _ in range(2000)])
    ask = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    client = ollama.Client(host=wire.url)
    with af.budget("900 output_tokens", on_exceed="cut") as b:
        seen, ended = 0, None
        try:
            for _ in client.chat(**ask):
                seen += 1
        except StreamCut as cut:
            ended = cut
        assert ended is not None
        assert 0 < seen < 2000
        assert b.spent <= 900
    with af.budget("300 output_tokens", on_exceed="clamp"):
        next(iter(client.chat(**ask)))
    assert wire.sent[1]["options"] == {"num_predict": 300}
    client._client.close()


def test_cohere_with_a_cheaper_model_and_a_lower_limit(wire: Anything) -> None:
    """Its second API."""
    cohere = pytest.importorskip("cohere")
    af.instrument("cohere")
    wire.said = {
        "id": "r", "finish_reason": "COMPLETE", "message": {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
        "usage": {"billed_units": {"input_tokens": 5, "output_tokens": 2}, "tokens": {"input_tokens": 5, "output_tokens": 2}},
    }  # fmt: skip
    dear, cheap = "command-r-plus-08-2024", "command-r7b-12-2024"
    with cohere.ClientV2(api_key="x", base_url=wire.url) as client:

        def made(model: str) -> Any:
            return client.chat(model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=300)

        limit = between(wire, lambda: made(dear), lambda: made(cheap))
        with af.budget(limit, on_exceed={"downgrade": {dear: cheap}}):
            assert made(dear).message.content[0].text == "hello"
        assert wire.sent[1]["model"] == cheap
        with af.budget("100 output_tokens", on_exceed="clamp"):
            made(cheap)
        assert wire.sent[1]["max_tokens"] == 100
