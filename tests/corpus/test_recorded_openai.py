"""Recorded traffic of OpenAI and of all who speak its protocol, through the real clients with us on.

What is expected is read from the recorded bytes alone: exact buckets, one row, nothing changed for the user. What the client of today has
no method for (assistants, services of others at their own paths) is sent with its `get` and `post`, which is how one reaches them with it.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import openai._base_client as base  # noqa: E402
from recorded_traffic import (  # noqa: E402
    Family,
    How,
    Recorded,
    arguments,
    broken_off,
    interactions,
    openai_buckets,
    whole_and_in_pieces,
)

pytestmark = [
    pytest.mark.corpus,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the library's own, of models of yesterday
]

METHODS: dict[str, Callable[[Any], Any]] = {
    "chat completions": lambda c: c.chat.completions.create,
    "responses": lambda c: c.responses.create,
    "completions": lambda c: c.completions.create,
    "embeddings": lambda c: c.embeddings.create,
    "images": lambda c: c.images.generate,
}
HOSTS = (
    "openai", "azure", "deepseek", "groq", "local server", "mistral", "openrouter", "portkey", "together", "voyage", "writer",
)  # fmt: skip
FAILED = b'data: {"error": {"message": "The server had an error", "type": "server_error", "code": null}}\n\n'


def root(item: Recorded) -> str:
    """What was `base_url`."""
    return re.sub(
        r"/(chat/completions|responses|completions|embeddings|images/generations|rerank|(assistants|threads)(/.*)?)/?$",
        "", item.url.partition("?")[0],
    )  # fmt: skip


def client(item: Recorded, colour: str, options: dict[str, Any]) -> Any:
    kind = "" if colour == "sync" else "Async"
    azure = re.match(r"(https://[^/]+)/openai/deployments/([^/]+)/", item.url)
    if azure:
        version = (item.query.get("api-version") or ["2024-10-21"])[0]
        where = {"azure_endpoint": azure[1], "azure_deployment": azure[2], "api_version": version}
        return getattr(openai, f"{kind}AzureOpenAI")(**where, **options)
    return getattr(openai, f"{kind}OpenAI")(base_url=root(item), **options)


def call(made: Any, item: Recorded) -> Callable[[], Any]:
    """Turn the recorded request back into a call of the public method."""
    run = re.search(r"/threads/([^/]+)/runs/([^/]+)$", item.path)
    if item.method == "GET" and run:
        return lambda: made.beta.threads.runs.retrieve(run[2], thread_id=run[1])
    if item.method == "GET":
        return lambda: made.get(item.url, cast_to=object)
    if item.endpoint == "audio":  # the recorded form has the sound itself
        sound = ("speech.wav", b"RIFF" + b"\0" * 4000, "audio/wav")
        return lambda: made.audio.transcriptions.create(model="gpt-4o-transcribe", file=sound)
    if item.endpoint not in METHODS or "/prompts/" in item.url:
        streams = {"stream": True, "stream_cls": kinds(made)[object]} if item.sse else {}
        url = "/rerank" if item.endpoint == "rerank" else item.url
        return lambda: made.post(url, cast_to=object, body=item.request, **streams)
    body = dict(item.request)
    if body.get("encoding_format") == "base64":
        body.pop("encoding_format")
    function = METHODS[item.endpoint](made)
    return lambda: function(**arguments(function, body))


def kinds(made: Any) -> Any:
    return openai.AsyncStream if isinstance(made, openai.AsyncOpenAI) else openai.Stream


def free(item: Recorded) -> bool:
    """What makes an assistant or a thread, and the traces of the library for agents, cost nothing."""
    return item.endpoint == "traces" or (item.endpoint == "assistants" and openai_buckets(item) is None)


OPENAI = Family("openai", getattr(base, "httpx2", None) or base.httpx, client, call, openai_buckets, FAILED, free)
INVENTED = "http://localhost:5002/"
"""A server that tells 50 tokens for an answer of hundreds of words: no bound is to hold that."""


def sendable(item: Recorded) -> bool:
    return item.method == "GET" or isinstance(item.request, dict) or item.endpoint in {"audio", "assistants"}


@pytest.fixture(scope="module")
def items() -> list[Recorded]:
    return interactions(lambda one: one.provider in HOSTS and sendable(one))


@pytest.mark.parametrize("how", OPENAI.ways()[:2], ids=lambda how: how.name)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_recorded_traffic_is_metered_exactly_and_unchanged(
    colour: str, how: How, items: list[Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    """All recorded calls: what the user sees and sends is the same with us on, and each billed call is one exact row."""
    said = whole_and_in_pieces(OPENAI, items, colour, how)
    assert len(items) > 800
    with capsys.disabled():
        sys.stdout.write(said)


@pytest.mark.parametrize("how", OPENAI.ways()[2:], ids=lambda how: how.name)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_half_a_recorded_stream_is_one_row_that_holds_the_truth(
    colour: str, how: How, items: list[Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken off in its middle, or ended by an error inside a 200: the same exception, and exact or within bounds."""
    known = [one for one in items if one.endpoint in METHODS and not one.url.startswith(INVENTED)]
    said = broken_off(OPENAI, known, colour, how)
    with capsys.disabled():
        sys.stdout.write(said)


@pytest.mark.parametrize("name", ["groq", "together"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_clients_of_the_family_meter_their_own_traffic(
    name: str, colour: str, items: list[Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same endpoint through its provider's own client."""
    module = pytest.importorskip(name)
    below = importlib.import_module(f"{name}._base_client")
    prefix = {"groq": "", "together": "/v1"}[name]

    def made(item: Recorded, colour: str, options: dict[str, Any]) -> Any:
        url = re.match(r"https://[^/]+", item.url)
        assert url
        kind = {"groq": "Groq", "together": "Together"}[name]
        return getattr(module, kind if colour == "sync" else f"Async{kind}")(base_url=url[0] + prefix, **options)

    family = Family(name, getattr(below, "httpx2", None) or below.httpx, made, call, openai_buckets, FAILED)
    mine = [one for one in items if one.provider == name]
    for how in OPENAI.ways()[:2]:
        said = whole_and_in_pieces(family, mine, colour, how)
        with capsys.disabled():
            sys.stdout.write(said)
