"""The tries that real clients make inside of one call, against a provider that bills what it answers too late."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import inspect
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import pytest

import aifinops as af
from aifinops import metering, runtime
from aifinops.testing import capture_charges
from aifinops.testing.wire import Wire

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),  # what google-genai does to aiohttp
    pytest.mark.filterwarnings("ignore:The model 'claude:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # a connection that a client has given up
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHAT = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}  # fmt: skip
CLAUDE = {
    "id": "m", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn",
    "stop_sequence": None, "model": "claude", "usage": {"input_tokens": 5, "output_tokens": 2},
}  # fmt: skip
GENERATED = {
    "candidates": [{"content": {"parts": [{"text": "hello"}], "role": "model"}, "index": 0, "finishReason": "STOP"}],
    "modelVersion": "gemini", "responseId": "r", "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7},
}  # fmt: skip
CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}}, "stopReason": "end_turn",
    "usage": {"inputTokens": 5, "outputTokens": 2, "totalTokens": 7}, "metrics": {"latencyMs": 7},
}  # fmt: skip
COMMANDED = {
    "id": "r", "finish_reason": "COMPLETE", "message": {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
    "usage": {"billed_units": {"input_tokens": 5, "output_tokens": 2}, "tokens": {"input_tokens": 5, "output_tokens": 2}},
}  # fmt: skip
SAID: Any = [{"role": "user", "content": "hi"}]
AIOHTTP = importlib.util.find_spec("aiohttp") is not None
"""google-genai sends with it where it is installed, and makes no other try then for what is late."""
PATIENCE_S, LATE_S = 0.25, 0.6
"""How long a client waits for an answer, and how long the provider takes for one that is late."""


@dataclass(frozen=True)
class Tried:
    """One client.

    Attributes:
        name, needs: of the integration, and the module. make: (url, tries) -> what makes a call, and what closes the client.
        answer: to any request. asynchronous: where the call is awaited. hangs_up: for a client that makes another try where the connection
            has ended without an answer, and none for one that is late.
    """

    name: str
    needs: str
    make: Callable[[str, int], tuple[Callable[[], Any], Callable[[], Any]]]
    answer: Any
    asynchronous: bool = False
    hangs_up: bool = False


def stainless(kind: str) -> Callable[[str, int], Any]:
    def make(url: str, tries: int) -> Any:
        module = pytest.importorskip(kind.removeprefix("Async").lower())
        client = getattr(module, kind)(base_url=url, api_key="x", timeout=PATIENCE_S, max_retries=tries - 1)
        if "Anthropic" in kind:
            return lambda: client.messages.create(model="claude-haiku-4-5", messages=SAID, max_tokens=300), client.close
        ask = {"model": "gpt-4o-mini", "messages": SAID, "max_tokens": 300}
        return lambda: client.chat.completions.create(**ask), client.close

    return make


def google(*, asynchronous: bool = False, stream: bool = False, each: bool = False, implicit: bool = False) -> Any:
    """google-genai.

    Args:
        each: the tries are asked for with the call, and not with the client. implicit: nothing is asked for.
    """

    def make(url: str, tries: int) -> Any:
        genai = pytest.importorskip("google.genai")
        if int(version("google-genai").partition(".")[0]) < 3:
            pytest.skip("older versions make no other try for what is late")
        again = genai.types.HttpRetryOptions(
            attempts=tries, initial_delay=0.01, max_delay=0.02, exp_base=1, jitter=0.001
        )
        options = genai.types.HttpOptions(
            base_url=url, timeout=int(PATIENCE_S * 1000), retry_options=None if each or implicit else again
        )
        client = genai.Client(api_key="x", http_options=options, vertexai=False)
        config = {"max_output_tokens": 300, **({"http_options": {"retry_options": again}} if each else {})}
        ask = {"model": "gemini-2.5-flash", "contents": "hi", "config": config}
        models = client.aio.models if asynchronous else client.models

        async def streamed() -> Any:
            return [piece async for piece in await models.generate_content_stream(**ask)]

        def call() -> Any:
            if not stream:
                return models.generate_content(**ask)
            return streamed() if asynchronous else list(models.generate_content_stream(**ask))

        return call, getattr(client.aio, "aclose", client) if asynchronous else getattr(client, "close", client)

    return make


def bedrock(mode: str, method: str = "converse") -> Any:
    def make(url: str, tries: int) -> Any:
        boto3 = pytest.importorskip("boto3")
        config = pytest.importorskip("botocore.config").Config(
            retries={"total_max_attempts": tries, "mode": mode}, read_timeout=PATIENCE_S, connect_timeout=5
        )
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        client = boto3.client("bedrock-runtime", endpoint_url=url, config=config, **keys)
        return lambda: _asked_of_bedrock(client, method), client.close

    return make


def _asked_of_bedrock(client: Any, method: str) -> Any:
    model = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    if method == "converse":
        messages = [{"role": "user", "content": [{"text": "hi"}]}]
        return client.converse(modelId=model, messages=messages, inferenceConfig={"maxTokens": 300})
    body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 300, "messages": SAID}
    return client.invoke_model(modelId=model, body=json.dumps(body))["body"].read()


def aiobedrock(url: str, tries: int) -> Any:
    aiobotocore = pytest.importorskip("aiobotocore.session")
    config = pytest.importorskip("aiobotocore.config").AioConfig(
        retries={"total_max_attempts": tries, "mode": "standard"}, read_timeout=PATIENCE_S, connect_timeout=5
    )
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}

    async def call() -> Any:
        async with aiobotocore.get_session().create_client(
            "bedrock-runtime", endpoint_url=url, config=config, **keys
        ) as client:
            return await _asked_of_bedrock(client, "converse")

    return call, lambda: None


def mistral(*, asynchronous: bool = False) -> Any:
    def make(url: str, tries: int) -> Any:
        module = pytest.importorskip("mistralai")
        if not hasattr(module, "Mistral"):
            module = pytest.importorskip("mistralai.client")
        utils = pytest.importorskip(f"{module.__name__}.utils")
        # It counts no tries but the time that they take.
        backoff = utils.BackoffStrategy(1, 2, 1.0, int((tries - 1) * 1000 * PATIENCE_S * 3) if tries > 1 else 1)
        again = utils.RetryConfig("backoff", backoff, True)
        client = module.Mistral(api_key="x", server_url=url, timeout_ms=int(PATIENCE_S * 1000), retry_config=again)
        ask = {"model": "mistral-small-latest", "messages": SAID, "max_tokens": 300}
        chat = client.chat.complete_async if asynchronous else client.chat.complete
        return lambda: chat(**ask), lambda: None

    return make


def cohere(kind: str) -> Any:
    def make(url: str, tries: int) -> Any:
        client = getattr(pytest.importorskip("cohere"), kind)(api_key="x", base_url=url, timeout=PATIENCE_S)
        ask = {"model": "command-r7b-12-2024", "messages": SAID, "max_tokens": 300}
        again = {"max_retries": tries - 1, "retry_remote_protocol_errors": True}
        return lambda: client.chat(**ask, request_options=again), lambda: None

    return make


def litellm(*, asynchronous: bool = False) -> Any:
    def make(url: str, tries: int) -> Any:
        pytest.importorskip("tenacity")
        module = pytest.importorskip("litellm")
        ask = {
            "model": "anthropic/claude-haiku-4-5", "messages": SAID, "max_tokens": 300, "api_base": url, "api_key": "x",
            "timeout": PATIENCE_S, "num_retries": tries - 1,
        }  # fmt: skip
        call = module.acompletion if asynchronous else module.completion
        return lambda: call(**ask), lambda: None

    return make


INSIDE = [
    Tried("openai", "openai", stainless("OpenAI"), CHAT),
    Tried("openai", "openai", stainless("AsyncOpenAI"), CHAT, True),
    Tried("anthropic", "anthropic", stainless("Anthropic"), CLAUDE),
    Tried("anthropic", "anthropic", stainless("AsyncAnthropic"), CLAUDE, True),
    Tried("google", "google.genai", google(), GENERATED),
    Tried("google", "google.genai", google(each=True), GENERATED),
    Tried("google", "google.genai", google(stream=True), [GENERATED]),
    Tried("google", "google.genai", google(asynchronous=True), GENERATED, True, AIOHTTP),
    Tried("google", "google.genai", google(asynchronous=True, each=True), GENERATED, True, AIOHTTP),
    Tried("google", "google.genai", google(asynchronous=True, stream=True), [GENERATED], True, AIOHTTP),
    Tried("bedrock", "boto3", bedrock("legacy"), CONVERSED),
    Tried("bedrock", "boto3", bedrock("standard"), CONVERSED),
    Tried("bedrock", "boto3", bedrock("adaptive"), CONVERSED),
    Tried("bedrock", "boto3", bedrock("standard", "invoke_model"), CLAUDE),
    Tried("aiobotocore", "aiobotocore", aiobedrock, CONVERSED, True),
]
"""Clients that try again inside of what is one call for us."""
OUTSIDE = [
    Tried("mistral", "mistralai", mistral(), CHAT),
    Tried("mistral", "mistralai", mistral(asynchronous=True), CHAT, True),
    Tried("cohere", "cohere", cohere("ClientV2"), COMMANDED, hangs_up=True),
    Tried("cohere", "cohere", cohere("AsyncClientV2"), COMMANDED, True, hangs_up=True),
    *(Tried("litellm", "litellm", litellm(asynchronous=colour), CLAUDE, colour) for colour in (False, True)),
]
"""Clients that send with httpx, of which each try is a call for us: a refusal knows nothing of the tries before. litellm asks again for one
that was refused, each time without sending anything."""


def named(tried: Tried) -> str:
    return f"{tried.name}-{'async' if tried.asynchronous else 'sync'}"


class Late(Wire):
    """Bills every request that it gets; the first few are answered too late.

    Attributes:
        late: how many. refuse: how many after those are answered with an error status.
    """

    def __init__(self, tried: Tried) -> None:
        super().__init__()
        self._answer, self._hangs_up = tried.answer, tried.hangs_up
        self.late = self.refuse = 0
        self.during = self._wait

    def _wait(self) -> None:
        if len(self.asked) > self.late:
            return
        if self._hangs_up:
            raise ConnectionAbortedError
        time.sleep(LATE_S)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, Iterator[bytes]]:
        refused = self.late <= len(self.asked) < self.late + self.refuse
        self.answers[f"{method} {path}"] = 503 if refused else self._answer
        return super().answer(method, path, body)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    af.init(ledger="memory")
    yield
    af.uninstrument()
    gc.collect()  # what clients have left open, here, where that is no error


def made(tried: Tried, wire: Wire, tries: int) -> Any:
    """Make one call with a client that makes so many tries."""
    if tried.name == "litellm":
        warnings.simplefilter("ignore")  # its own, of which there are many
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network at import
    pytest.importorskip(tried.needs)
    af.instrument(tried.name)
    call, close = tried.make(wire.url, tries)

    async def together() -> Any:
        try:
            return await call()
        finally:
            closed = close() if callable(close) else None
            if inspect.isawaitable(closed):
                await closed

    if tried.asynchronous:
        return asyncio.run(together())
    try:
        return call()
    finally:
        if callable(close):
            close()


def bound_of(tried: Tried) -> Decimal:
    """What one try holds, USD."""
    seen: list[Decimal] = []
    with Late(tried) as wire, af.budget("$1000") as budget:
        wire.during = lambda: seen.append(Decimal(budget.reserved))
        made(tried, wire, 1)
    return seen[0]


@pytest.mark.parametrize("tried", [*INSIDE, *OUTSIDE], ids=named)
def test_a_try_that_may_have_been_billed_is_a_charge(tried: Tried) -> None:
    """The first answer comes too late and is billed; the second one comes: two charges, and nothing of either is counted twice."""
    bound = bound_of(tried)
    with Late(tried) as wire, capture_charges() as charges, af.budget("$1000") as budget:
        wire.late = 1
        made(tried, wire, 3)
        spent, reserved = budget.spent, budget.reserved
    assert len(wire.asked) == 2
    assert reserved == 0
    lost, answered = charges
    assert (lost.basis, lost.status, lost.amount) == ("unknown", "error", None)
    assert lost.upper == bound * 10**9
    assert (answered.basis, answered.status) == ("priced", "ok")
    assert lost.id != answered.id
    assert spent * 10**9 == lost.upper + answered.amount


@pytest.mark.parametrize("tried", [*INSIDE, *OUTSIDE], ids=named)
def test_a_try_without_room_is_not_made(tried: Tried) -> None:
    """Two tries fit: the third is refused, comes out as what it is, and is not tried again."""
    limit = bound_of(tried) * Decimal("2.5")
    with Late(tried) as wire, capture_charges() as charges, af.budget({"USD": limit}) as budget:
        wire.late = 99
        with pytest.raises(af.BudgetExceeded) as refusal:
            made(tried, wire, 5)
        spent, reserved = budget.spent, budget.reserved
    assert len(wire.asked) == 2
    assert (len(charges), reserved) == (2, 0)
    assert spent == sum(Decimal(charge.upper or 0) for charge in charges) / 10**9 <= limit
    if tried in INSIDE:
        assert isinstance(refusal.value.__cause__, Exception)
        assert not isinstance(refusal.value.__cause__, af.BudgetExceeded)


@pytest.mark.parametrize("tried", INSIDE, ids=named)
def test_a_try_that_was_refused_is_no_charge(tried: Tried) -> None:
    """An error status is not billed: the same hold serves the next try, in a budget that has room for one."""
    limit = bound_of(tried) * Decimal("1.5")
    with Late(tried) as wire, capture_charges() as charges, af.budget({"USD": limit}) as budget:
        wire.refuse = 1
        made(tried, wire, 3)
        assert budget.reserved == 0
    assert len(wire.asked) == 2
    (charge,) = charges
    assert (charge.basis, charge.status) == ("priced", "ok")


@pytest.mark.parametrize("tried", INSIDE, ids=named)
def test_the_last_try_is_charged_once(tried: Tried) -> None:
    """Where all of them come too late the library raises its own error, and there are as many charges as the provider has bills."""
    with Late(tried) as wire, capture_charges() as charges, af.budget("$1000") as budget:
        wire.late = 99
        with pytest.raises(Exception) as error:  # noqa: PT011 - each library has another
            made(tried, wire, 2)
        assert budget.reserved == 0
    assert not isinstance(error.value, af.BudgetExceeded)
    assert len(wire.asked) == len(charges) == 2
    assert len({charge.id for charge in charges}) == 2
    assert budget.spent * 10**9 == sum(charge.upper or 0 for charge in charges)
    assert metering.in_flight() is None


@pytest.mark.parametrize("tried", INSIDE, ids=named)
def test_our_own_failure_between_two_tries_changes_nothing(tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next try is made, on the hold that is there."""

    def failing(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(metering.Invocation, "lose", failing)
    af.errors.reraise_failures(False)  # type: ignore[attr-defined]
    with Late(tried) as wire, capture_charges() as charges, af.budget("$1000") as budget:
        wire.late = 1
        made(tried, wire, 3)
        assert budget.reserved == 0
    assert len(wire.asked) == 2
    assert [charge.status for charge in charges] == ["ok"]


def test_one_client_alone() -> None:
    """`instrument(client)` sees the tries of that client as well, and of no other."""
    boto3 = pytest.importorskip("boto3")
    config = pytest.importorskip("botocore.config").Config(
        retries={"total_max_attempts": 3, "mode": "standard"}, read_timeout=PATIENCE_S
    )
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1", "config": config}
    with Late(INSIDE[-1]) as wire, capture_charges() as charges, af.budget("$1000"):
        wire.late = 1
        ours, other = (boto3.client("bedrock-runtime", endpoint_url=wire.url, **keys) for _ in range(2))
        af.instrument(ours)
        _asked_of_bedrock(ours, "converse")
        _asked_of_bedrock(other, "converse")
        ours.close()
        other.close()
    assert len(wire.asked) == 3
    assert [charge.status for charge in charges] == ["error", "ok"]


@pytest.mark.skipif(not AIOHTTP, reason="aiohttp is not installed")
def test_a_try_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With aiohttp google-genai makes a second try of its own where a connection has ended: that is held for as well."""
    pytest.importorskip("google.genai")
    monkeypatch.setattr("google.genai._api_client.random.randint", lambda *_: 0)
    tried = Tried("google", "google.genai", google(asynchronous=True, implicit=True), GENERATED, True, hangs_up=True)
    bound = bound_of(tried)
    with Late(tried) as wire, capture_charges() as charges, af.budget({"USD": bound * Decimal("2.5")}):
        wire.late = 1
        made(tried, wire, 1)
    assert [charge.status for charge in charges] == ["error", "ok"]
    with Late(tried) as wire, af.budget({"USD": bound * Decimal("1.5")}) as budget:
        wire.late = 1
        with pytest.raises(af.BudgetExceeded) as refusal:
            made(tried, wire, 1)
        assert (budget.reserved, budget.spent) == (0, bound)
    assert len(wire.asked) == 1
    assert type(refusal.value.__cause__).__name__ == "ServerDisconnectedError"


def test_a_request_for_credentials_is_no_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """What botocore asks another service meanwhile has nothing to do with the call in flight."""
    from aifinops.integrations.seams import botocore

    class Model:
        name = "AssumeRole"
        service_model = type("Service", (), {"service_name": "sts"})

    def failing(*_: Any) -> Any:
        raise AssertionError("it was taken for a try")

    monkeypatch.setattr(botocore, "hold_again", failing)
    answer = (None, OSError("late"))
    assert botocore._once(lambda *_: answer, None, (None, Model, {}), {}) is answer


def test_a_version_that_tries_in_another_way_is_one_hold(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of the library that we do not know is needed for the call: one warning, and one hold for all of it."""
    pytest.importorskip("boto3")
    from aifinops.integrations.providers.bedrock import BEDROCK
    from aifinops.integrations.seams.botocore import Seam

    af.errors.reraise_failures(False)  # type: ignore[attr-defined]
    caplog.set_level(logging.WARNING, "aifinops")
    import boto3

    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    with Late(INSIDE[-1]) as wire:
        client = boto3.client("bedrock-runtime", endpoint_url=wire.url, **keys)
        endpoint = client._endpoint

        class Other:
            make_request = endpoint.make_request
            close = endpoint.close

        client._endpoint = Other()
        patches = Seam(BEDROCK).patch_client(client)
        with capture_charges() as charges:
            _asked_of_bedrock(client, "converse")
        for patch in patches:
            patch.undo()
        client.close()
    assert len(charges) == 1
    assert sum("tries" in record.getMessage() for record in caplog.records) == 1
    assert runtime.get() is not None
