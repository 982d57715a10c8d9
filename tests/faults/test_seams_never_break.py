"""Fault injection at every other seam: each of our functions on a call's way raises in turn, and the user must not notice.

`test_never_break` does the same for openai, and for the engines below.
"""

from __future__ import annotations

import contextvars
import gc
import importlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

import aifinops as af
from aifinops import errors, metering, runtime
from aifinops.integrations import calls, extract, hiding, later, others, passing, responses
from aifinops.integrations.seams import botocore, google_genai, http, stainless
from aifinops.telemetry import guests
from aifinops.testing import ScriptedProvider

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

SHARED = (calls, passing, hiding, later, others, extract, responses, guests, metering)

CONTAINERS = {
    "passing.guarded", "errors.swallow",  # what contains all others
    "stainless.Seam._request", "stainless.Seam._arequest", "stainless._process_response", "calls.called", "calls.acalled",
    "http._send", "http._asend", "http._outermost", "http._aoutermost", "http._own", "http._Result.mark", "http._Result._amark",
    "google_genai.Seam._request", "google_genai.Seam._arequest",
    "botocore.Seam._call", "botocore.Seam._acall", "botocore._close", "botocore._Bound.__call__",
    "botocore._Whole._chunks",  # what the user pulls on
    "botocore._Whole._read_some", "botocore._Whole._aread", "botocore._Whole._areadinto", "botocore._Whole._close",
    "passing.Tap._iter_bytes", "passing.Tap._aiter_bytes", "passing.Tap._segments", "passing.Tap._apass", "passing.Tap._close",
    "passing.Tap._aclose", "passing.Tap._original", "passing.Tap._iter_raw", "passing.Tap._aiter_raw", "passing.Tap._tapped",
    "passing.Tap._atapped", "passing._watched", "passing._awatched", "passing.passed", "passing.apassed", "passing._until_lost",
    "hiding.replaced", "hiding.hide", "hiding.Veil.__init__", "hiding.Veil._iter_bytes", "hiding.Veil._iter_raw",
    "hiding.Veil._aiter_bytes", "hiding.Veil._aiter_raw", "hiding._sized", "hiding._asized", "hiding._cut", "hiding._acut",
    "others._quiet", "others._aquiet", "others._switched", "others.leave",
    "metering.attach_span", "metering.detach_span", "metering.end_block_span", "metering.block_span", "metering.budget_figures",
}  # fmt: skip

SAID = [{"role": "user", "content": "canary-51aa"}]


def functions(module: ModuleType) -> Iterator[tuple[Any, str, str]]:
    short = module.__name__.rpartition(".")[2]
    for name, member in vars(module).items():
        if getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(member):
            yield module, name, f"{short}.{name}"
        elif inspect.isclass(member) and not issubclass(member, BaseException):
            for method, inner in vars(member).items():
                if inspect.isfunction(inner) and (not method.startswith("__") or method == "__init__"):
                    yield member, method, f"{short}.{name}.{method}"


def events(*parts: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts)


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the library raises
        call()
    return f"{type(caught.value).__name__}: {getattr(caught.value, 'status_code', getattr(caught.value, 'code', ''))}"


# --- one client library each: what the server says, a client, and what a user does with it ---------------------------------

MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": 10, "output_tokens": 5},
}  # fmt: skip
MESSAGE_STREAM = "".join(
    f"event: {part['type']}\ndata: {json.dumps(part)}\n\n"
    for part in (
        {"type": "message_start", "message": {**MESSAGE, "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 5},
        },
        {"type": "message_stop"},
    )
)


def anthropic_client(server: ScriptedProvider) -> Any:
    import anthropic

    return anthropic.Anthropic(base_url=server.url, api_key="test", max_retries=0)


def anthropic_use(client: Any, server: ScriptedProvider) -> list[Any]:
    asked = {"model": "claude-haiku-4-5", "max_tokens": 20, "messages": SAID}
    server.answers = {"/v1/messages": MESSAGE}
    seen = [client.messages.create(**asked).model_dump()]
    seen.append(client.messages.with_raw_response.create(**asked).parse().model_dump())
    server.answers = {"/v1/messages": MESSAGE_STREAM}
    seen += [part.model_dump() for part in client.messages.create(**asked, stream=True)]
    with client.messages.stream(**asked) as stream:
        seen.append("".join(stream.text_stream))
    with client.messages.create(**asked, stream=True) as stream:
        seen.append(next(iter(stream)).model_dump())
    server.answers = {"/v1/messages": 400}
    return [*seen, error_of(lambda: client.messages.create(**asked))]


GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "hi"}], "role": "model"}, "index": 0, "finishReason": "STOP"}],
    "modelVersion": "gemini-2.5-flash", "responseId": "r1",
    "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15},
}  # fmt: skip


def google_client(server: ScriptedProvider) -> Any:
    from google import genai
    from google.genai import types

    return genai.Client(
        api_key="test", http_options=types.HttpOptions(base_url=server.url, api_version="v1beta"), vertexai=False
    )


def google_use(client: Any, server: ScriptedProvider) -> list[Any]:
    def shown(answer: Any) -> Any:
        return answer.model_dump(exclude={"sdk_http_response"})

    asked = {"model": "gemini-2.5-flash", "contents": "canary-51aa"}
    path = "/v1beta/models/gemini-2.5-flash:"
    server.answers = {
        f"{path}generateContent": GEMINI,
        f"{path}streamGenerateContent": events(GEMINI | {"usageMetadata": None}, GEMINI),
    }
    seen = [shown(client.models.generate_content(**asked))]
    seen += [shown(part) for part in client.models.generate_content_stream(**asked)]
    seen.append(shown(next(iter(client.models.generate_content_stream(**asked)))))
    server.answers = {f"{path}generateContent": 400}
    return [*seen, error_of(lambda: client.models.generate_content(**asked))]


CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}}, "stopReason": "end_turn",
    "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}, "metrics": {"latencyMs": 7},
}  # fmt: skip


def botocore_client(server: ScriptedProvider) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
    config = Config(retries={"max_attempts": 0})
    return session.client("bedrock-runtime", endpoint_url=server.url, config=config)


def botocore_use(client: Any, server: ScriptedProvider) -> list[Any]:
    model = "amazon.nova-lite-v1:0"
    asked = {"modelId": model, "messages": [{"role": "user", "content": [{"text": "canary-51aa"}]}]}
    invoked = {"modelId": model, "body": json.dumps({"messages": asked["messages"]})}
    converse, invoke = f"/model/{model.replace(':', '%3A')}/converse", f"/model/{model.replace(':', '%3A')}/invoke"
    server.answers = {converse: CONVERSED, invoke: CONVERSED, f"{converse}-stream": "not framed at all"}

    def shown(answer: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in answer.items() if name not in {"ResponseMetadata", "body", "stream"}}

    seen: list[Any] = [shown(client.converse(**asked))]
    whole = client.invoke_model(**invoked)
    seen += [shown(whole), whole["body"].read()]
    part = client.invoke_model(**invoked)
    seen.append(part["body"].read(4))
    part["body"].close()
    seen.append(error_of(lambda: list(client.converse_stream(**asked)["stream"])))
    client.converse_stream(**asked)["stream"].close()
    server.answers = {converse: 400}
    return [*seen, error_of(lambda: client.converse(**asked))]


CHAT = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "mistral-small-latest",
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
}  # fmt: skip
CHAT_STREAM = (
    events(
        *(
            {
                "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "mistral-small-latest",
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}],
                **({"usage": CHAT["usage"]} if text == "b" else {}),
            }
            for text in ("a", "b")
        )
    )
    + "data: [DONE]\n\n"
)  # fmt: skip


def mistral_client(server: ScriptedProvider) -> Any:
    try:
        made = importlib.import_module("mistralai.client").Mistral
    except (ImportError, AttributeError):
        made = importlib.import_module("mistralai").Mistral
    return made(api_key="test", server_url=server.url)


def mistral_use(client: Any, server: ScriptedProvider) -> list[Any]:
    asked = {"model": "mistral-small-latest", "messages": SAID}
    path = "/v1/chat/completions"
    server.answers = {path: CHAT}
    seen = [client.chat.complete(**asked).model_dump()]
    server.answers = {path: CHAT_STREAM, f"{path}#stream": CHAT_STREAM}
    seen += [event.data.model_dump() for event in client.chat.stream(**asked)]
    with client.chat.stream(**asked) as stream:
        seen.append(next(iter(stream)).data.model_dump())
    server.answers = {path: 400}
    return [*seen, error_of(lambda: client.chat.complete(**asked))]


LINES = "".join(
    json.dumps({"model": "llama3.2", "created_at": "2026-11-10T12:00:00Z", **part}) + "\n"
    for part in (
        {"message": {"role": "assistant", "content": "hi"}, "done": False},
        {"message": {"role": "assistant", "content": ""}, "done": True, "prompt_eval_count": 10, "eval_count": 5},
    )
)


def ollama_client(server: ScriptedProvider) -> Any:
    import ollama

    return ollama.Client(host=server.url)


def ollama_use(client: Any, server: ScriptedProvider) -> list[Any]:
    server.answers = {"/api/chat": json.loads(LINES.splitlines()[1])}
    seen = [client.chat(model="llama3.2", messages=SAID).model_dump()]
    server.answers = {"/api/chat": LINES}
    seen += [part.model_dump() for part in client.chat(model="llama3.2", messages=SAID, stream=True)]
    stream = client.chat(model="llama3.2", messages=SAID, stream=True)
    seen.append(next(stream).model_dump())
    stream.close()
    server.answers = {"/api/chat": 400}
    return [*seen, error_of(lambda: client.chat(model="llama3.2", messages=SAID))]


@dataclass(frozen=True)
class Library:
    """One client library on its seam."""

    needs: str
    seam: ModuleType
    make: Callable[[ScriptedProvider], Any]
    use: Callable[[Any, ScriptedProvider], list[Any]]
    paid: int
    """Calls of one use that are charged."""


LIBRARIES = {
    "anthropic": Library("anthropic", stainless, anthropic_client, anthropic_use, 5),
    "google": Library("google.genai", google_genai, google_client, google_use, 3),
    "bedrock": Library("boto3", botocore, botocore_client, botocore_use, 5),
    "mistral": Library("mistralai", http, mistral_client, mistral_use, 3),
    "ollama": Library("ollama", http, ollama_client, ollama_use, 3),
}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    found = LIBRARIES[request.param]
    pytest.importorskip(found.needs)
    return found


@pytest.fixture
def armed(
    library: Library, request: pytest.FixtureRequest, tmp_path: Any
) -> Iterator[tuple[Any, ScriptedProvider, list[Any]]]:
    """(client, server, what a user gets without us), with us in the way."""
    from opentelemetry.sdk.trace import TracerProvider

    from aifinops.telemetry import spans

    errors.reraise_failures(False)
    logging.getLogger("aifinops").setLevel(logging.CRITICAL)
    with ScriptedProvider({}, piece=10_000) as server:
        bare = library.make(server)
        expected = library.use(bare, server)
        assert library.use(bare, server) == expected
        af.init(ledger=tmp_path / "ledger.db", stream_usage="always")
        assert runtime.get().guard
        provider = TracerProvider(shutdown_on_exit=False)
        runtime.get().spans = spans.Spans("0", lambda: provider)
        af.instrument(next(name for name, one in LIBRARIES.items() if one is library))
        yield library.make(server), server, expected
        af.uninstrument()
    passing.finish_open_streams()  # what a broken end has left, which no later test made
    logging.getLogger("aifinops").setLevel(logging.NOTSET)
    runtime.reset()
    gc.collect()


def broken(error: type[Exception]) -> Callable[..., Any]:
    def raising(*args: Any, **kwargs: Any) -> Any:
        raise error("injected")

    return raising


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, RecursionError])
def test_a_broken_internal_never_changes_what_the_user_gets(
    error: type[Exception],
    library: Library,
    armed: tuple[Any, ScriptedProvider, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever function of ours raises, answers, pieces and exceptions are the ones of the bare client."""
    client, server, expected = armed
    changed = []
    for module in (library.seam, *SHARED):
        for owner, name, label in functions(module):
            if label in CONTAINERS:
                continue
            with monkeypatch.context() as patch, af.budget("$1000000", name="faults", unknown="allow"):
                patch.setattr(owner, name, broken(error))
                try:
                    same = contextvars.copy_context().run(library.use, client, server) == expected
                except BaseException as failure:
                    changed.append(f"{label}: {type(failure).__name__}: {failure}")
                    same = True
                patch.undo()
            if not same:
                changed.append(label)
    assert changed == []


READING = (
    "extract.Reader.tolerant", "extract.Reader.text", "extract.Reader.describe", "calls.settle", "calls.settle_body", "extract.read_events",
    "extract.read_objects", "passing.Tap.__init__", "passing.PassingEvents.__init__", "passing.Passing.__init__", "botocore._told",
    "botocore._refused", "google_genai._watch", "google_genai._is_login", "google_genai._refused",
)  # fmt: skip


def test_a_call_whose_answer_we_fail_to_read_is_still_a_row_and_holds_nothing(
    library: Library, armed: tuple[Any, ScriptedProvider, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of ours between an answer and its settlement costs the figures, never the row or what a budget holds."""
    client, server, _ = armed
    wrong = []
    for module in (library.seam, *SHARED):
        for owner, name, label in functions(module):
            if label not in READING:
                continue
            before = len(list(runtime.get().ledger.rows()))
            with af.budget("$100", name=f"held {label}", unknown="allow") as budget:
                with monkeypatch.context() as patch:
                    patch.setattr(owner, name, broken(RuntimeError))
                    contextvars.copy_context().run(library.use, client, server)
                    gc.collect()
                    af.flush()
                rows = list(runtime.get().ledger.rows())[before:]
                if len([row for row in rows if row.status != "error"]) < library.paid or budget.reserved:
                    wrong.append(f"{label}: {len(rows)} rows, {budget.reserved} held")
    assert wrong == []


def test_all_calls_are_seen_when_nothing_is_broken(
    library: Library, armed: tuple[Any, ScriptedProvider, list[Any]]
) -> None:
    """The uses above do go through us: each paid call is one row."""
    client, server, expected = armed
    assert library.use(client, server) == expected
    gc.collect()
    af.flush()
    rows = [row for row in runtime.get().ledger.rows() if row.status != "error"]
    assert len(rows) == library.paid
    assert "canary-51aa" not in repr(rows)


def test_a_region_that_cannot_be_looked_up_loses_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region of a request only refines the price: without it the call is charged all the same."""
    from aifinops.reading import Reading

    invocation = metering.begin(metering.Call("aws", "chat", "amazon.nova-lite-v1:0", region="us-east-1"))
    assert invocation is not None
    errors.reraise_failures(False)
    monkeypatch.setattr(metering, "_regional", broken(RuntimeError))
    invocation.leave()
    invocation.settle(Reading({"input_tokens": 10}))
    (row,) = runtime.get().ledger.rows()
    assert dict(row.quantities) == {"input_tokens": 10}
    assert errors.failures()["metering.region"] == 1
