"""The real inference clients of huggingface_hub: who serves decides the price, and what tells no usage is an estimate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

hub = pytest.importorskip("huggingface_hub")
if int(hub.__version__.partition(".")[0]) < 1:
    pytest.skip("older versions do not send with httpx", allow_module_level=True)

from huggingface_hub import constants  # noqa: E402
from huggingface_hub.hf_api import InferenceProviderMapping  # noqa: E402
from huggingface_hub.inference._providers import _common  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.errors import ConfigurationError  # noqa: E402
from aifinops.integrations import registry  # noqa: E402
from aifinops.integrations.seams.http import Seam  # noqa: E402
from aifinops.testing import ScriptedProvider  # noqa: E402

CANARY = "canary-7c1f the weather is fine"
MODEL = "meta-llama/Llama-3.3-70B-Instruct"
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
CHAT = {
    "id": "c1", "object": "chat.completion", "created": 1_790_000_000, "model": MODEL, "system_fingerprint": "", "usage": USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": CANARY}}],
}  # fmt: skip
TOLD = {"input_tokens": 1000, "output_tokens": 200}
DETAILS = {"finish_reason": "length", "generated_tokens": 20, "prefill": [], "tokens": [], "seed": None}
GENERATED = [{"generated_text": CANARY, "details": DETAILS}]
SAID = [{"role": "user", "content": CANARY}]


def events(*parts: dict[str, Any]) -> str:
    return "".join(f"data:{json.dumps(part)}\n\n" for part in parts)


def chunk(content: str, **more: Any) -> dict[str, Any]:
    delta = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [delta], **more}


CHAT_STREAM = events(chunk("canary-7c1f"), chunk(" is fine"), chunk("", usage=USAGE)) + "data: [DONE]\n\n"


def token(text: str, **more: Any) -> dict[str, Any]:
    return {
        "index": 1,
        "token": {"id": 1, "text": text, "logprob": 0.0, "special": False},
        "generated_text": None,
        "details": None,
        **more,
    }


GENERATED_STREAM = events(
    token("canary-7c1f"), token(" is"),
    token(" fine", generated_text=CANARY, details={"finish_reason": "length", "generated_tokens": 20, "input_length": 7, "seed": None}),
)  # fmt: skip


@pytest.fixture
def server() -> Iterator[ScriptedProvider]:
    with ScriptedProvider({"/v1/chat/completions": CHAT, "/": GENERATED, "/generate": GENERATED}) as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("huggingface")
    yield
    af.uninstrument()
    hub.close_session()


@pytest.fixture
def client(server: ScriptedProvider) -> Iterator[Any]:
    """A client of an endpoint of one's own."""
    with hub.InferenceClient(model=server.url, token="test") as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def only() -> Charge:
    (charge,) = rows()
    assert "canary-7c1f" not in repr(charge)
    return charge


def test_a_chat_is_one_exact_row(client: Any) -> None:
    """Chat tells its usage in OpenAI's form."""
    assert client.chat_completion(SAID).choices[0].message.content == CANARY
    charge = only()
    assert (charge.provider, charge.operation, charge.response_model) == ("huggingface", "chat", MODEL)
    assert (dict(charge.quantities), charge.stream, charge.basis) == (TOLD, False, "unknown")


async def test_an_asynchronous_chat_is_one_exact_row(server: ScriptedProvider) -> None:
    """The same in the other colour."""
    async with hub.AsyncInferenceClient(model=server.url, token="test") as client:
        await client.chat_completion(SAID)
        assert dict(only().quantities) == TOLD


def test_a_stream_is_read_as_it_passes(client: Any, server: ScriptedProvider) -> None:
    """The caller gets the same objects, and the row has the usage of the last."""
    server.answers["/v1/chat/completions"] = CHAT_STREAM
    af.uninstrument()
    bare = list(client.chat_completion(SAID, stream=True))
    af.instrument("huggingface")
    assert list(client.chat_completion(SAID, stream=True)) == bare
    assert len(bare) == 3
    charge = only()
    assert (dict(charge.quantities), charge.stream, charge.status) == (TOLD, True, "ok")


async def test_an_asynchronous_stream_is_read_as_it_passes(server: ScriptedProvider) -> None:
    """The same in the other colour."""
    server.answers["/v1/chat/completions"] = CHAT_STREAM
    async with hub.AsyncInferenceClient(model=server.url, token="test") as client:
        assert len([part async for part in await client.chat_completion(SAID, stream=True)]) == 3
    assert dict(only().quantities) == TOLD


def test_generated_text_with_details_is_counted(client: Any) -> None:
    """Details tell how many tokens were made."""
    client.text_generation(CANARY, details=True)
    charge = only()
    assert charge.operation == "text_completion"
    assert charge.quantities["output_tokens"] == 20


def test_a_stream_of_generated_text_tells_both_counts(client: Any, server: ScriptedProvider) -> None:
    """The last event of a stream has the details also where the caller did not ask for them."""
    server.answers["/"] = GENERATED_STREAM
    assert "".join(client.text_generation(CANARY, stream=True)) == "canary-7c1f is fine"
    charge = only()
    assert (dict(charge.quantities), charge.stream) == ({"input_tokens": 7, "output_tokens": 20}, True)


def test_generated_text_without_details_is_an_estimate(client: Any, server: ScriptedProvider) -> None:
    """What tells no counts is counted from its text, both ways, and never zero."""
    server.answers["/"] = [{"generated_text": CANARY}]
    assert client.text_generation(CANARY) == CANARY
    charge = only()
    assert charge.quantities["input_tokens"] > 0
    assert charge.quantities["output_tokens"] > 0
    assert charge.amount is None


def test_features_are_an_estimate(server: ScriptedProvider) -> None:
    """Vectors come without any usage: the prompt is estimated, and there is no output."""
    path = "/hf-inference/models/org/name/pipeline/feature-extraction"
    server.answers[path] = [[0.5] * 384]
    with hub.InferenceClient(model=server.url + path, token="test") as client, suppress(ImportError):
        client.feature_extraction(CANARY)  # it makes an array of numpy, perhaps, when the answer is there
    charge = only()
    assert (charge.operation, charge.model, charge.amount) == ("embeddings", "org/name", None)
    assert charge.quantities["input_tokens"] > 0
    assert not charge.quantities.get("output_tokens")


HOSTS = {
    "https://router.huggingface.co/groq/openai/v1/chat/completions": ("huggingface_groq", "/chat/completions", ""),
    "https://router.huggingface.co/together/v1/completions": ("huggingface_together", "/completions", ""),
    "https://router.huggingface.co/v1/chat/completions": ("huggingface", "/chat/completions", ""),
    "https://api.together.xyz/v1/chat/completions": ("together", "/chat/completions", ""),
    "https://router.huggingface.co/hf-inference/models/org/name": ("huggingface", "/hf-inference/models/*", "org/name"),
    "https://router.huggingface.co/hf-inference/models/org/name/pipeline/feature-extraction": (
        "huggingface", "/hf-inference/models/*/pipeline/feature-extraction", "org/name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("url", HOSTS)
def test_who_serves_is_read_from_the_address(url: str) -> None:
    """The router's path, else the host, names who serves; the path names endpoint and model."""
    httpx = pytest.importorskip("httpx")
    asked = httpx.URL(url)
    seam = Seam(registry.provider("huggingface"))
    found = seam.route(asked.path)
    assert found is not None
    key, _, model = found
    provider, _ = seam.target(asked.scheme, asked.host, asked.port, asked.path.split("/", 2)[1], key)
    assert (provider, key, model) == HOSTS[url]


def routed(monkeypatch: pytest.MonkeyPatch, server: ScriptedProvider) -> Callable[[], Any]:
    """A client of `together` by way of the router, where the router is ours and the mapping of models is not asked for."""
    monkeypatch.setattr(constants, "INFERENCE_PROXY_TEMPLATE", f"{server.url}/{{provider}}")
    mapping = InferenceProviderMapping(
        provider="together", hf_model_id=MODEL, providerId="llama", task="conversational", status="live"
    )
    monkeypatch.setitem(_common.HARDCODED_MODEL_INFERENCE_MAPPING["together"], MODEL, mapping)
    return lambda: hub.InferenceClient(provider="together", token="hf_test")


def test_a_routed_call_is_one_row(monkeypatch: pytest.MonkeyPatch, server: ScriptedProvider) -> None:
    """By way of the router the model is the server's own name of it."""
    server.answers["/together/v1/chat/completions"] = CHAT
    with routed(monkeypatch, server)() as client:
        client.chat.completions.create(model=MODEL, messages=SAID)
    charge = only()
    assert (charge.model, dict(charge.quantities)) == ("llama", TOLD)


def test_requests_to_the_hub_are_no_calls_of_a_model(client: Any, server: ScriptedProvider) -> None:
    """The Hub is reached through the same connection: what is written there makes no row."""
    client.chat_completion(SAID)
    paths = ("/api/models/org/name/commit/main", "/api/models/org/name/preupload/main", "/api/validate-yaml")
    for path in paths:
        server.answers[path] = {}
        hub.utils.get_session().post(server.url + path, json={"inputs": CANARY}).raise_for_status()
    assert len(server.requests) == 1 + len(paths)
    assert len(rows()) == 1


def test_one_client_alone_is_refused(client: Any) -> None:
    """All clients share one connection, so that one of them cannot be told apart; that is said at set-up."""
    af.uninstrument()
    with pytest.raises(ConfigurationError, match="no connection of its own"):
        af.instrument(client)


def test_an_error_is_the_users_own(client: Any, server: ScriptedProvider) -> None:
    """An error status is the library's exception and no row."""
    server.answers["/v1/chat/completions"] = 503
    with pytest.raises(hub.errors.HfHubHTTPError):
        client.chat_completion(SAID)
    assert rows() == []
