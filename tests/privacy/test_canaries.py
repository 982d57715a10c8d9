"""Nothing that was said leaves the process by us: canaries in every place where text can be, looked for everywhere we write.

Spans, metrics, ledger and its journal, log lines with their tracebacks, our exceptions, the doctor, what a crash leaves behind: none has
any, unless OpenTelemetry's own variable asks for content, which then is on the spans and nowhere else.
"""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import aifinops as af
from aifinops import errors, runtime
from aifinops.cli import doctor
from aifinops.errors import BudgetExceeded
from aifinops.integrations import registry
from aifinops.telemetry.content import VARIABLE
from aifinops.telemetry.metrics import Metrics
from aifinops.telemetry.spans import Spans

PROMPT, SYSTEM, ARGUMENTS, RESULT, COMPLETION, FILE, SCHEMA = CANARIES = tuple(
    f"canary-{place}-7c1d" for place in ("prompt", "system", "arguments", "result", "completion", "file", "schema")
)
ANY = "canary-"

USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": json.dumps({"q": ARGUMENTS})}}
CHAT = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "usage": USAGE,
    "choices": [{"index": 0, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": COMPLETION, "refusal": None, "tool_calls": [CALL]}}],
}  # fmt: skip
RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-4o-mini", "status": "completed", "error": None,
    "incomplete_details": None, "instructions": SYSTEM, "metadata": {}, "parallel_tool_calls": True, "temperature": 1,
    "tool_choice": "auto", "tools": [], "top_p": 1,
    "output": [
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": COMPLETION, "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look_up", "arguments": ARGUMENTS,
         "status": "completed"},
    ],
    "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 3,
              "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 12},
}  # fmt: skip
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "stop_reason": "end_turn",
    "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 3},
    "content": [{"type": "text", "text": COMPLETION},
                {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"q": ARGUMENTS}}],
}  # fmt: skip
EMBEDDINGS = {"object": "list", "model": "text-embedding-3-small", "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}],
              "usage": {"prompt_tokens": 9, "total_tokens": 9}}  # fmt: skip
TRANSCRIPTION = {"text": COMPLETION, "usage": {"type": "duration", "seconds": 3}}
PLAIN = {
    "/chat/completions": CHAT, "/responses": RESPONSE, "/messages": MESSAGE, "/embeddings": EMBEDDINGS,
    "/audio/transcriptions": TRANSCRIPTION,
}  # fmt: skip


def chunk(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini",
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}], **more}  # fmt: skip


class Wire:
    """A provider that says canaries; `x-wire` in a request asks for a failure."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers.get("content-length") or 0))
                kind = self.headers.get("x-wire", "")
                if kind == "hang":
                    sys.stdout.flush()
                    threading.Event().wait(30)
                elif kind in {"400", "500"}:  # providers like to repeat what was sent
                    self._send(
                        int(kind), {"error": {"message": f"bad: {PROMPT} {SYSTEM}", "type": "x", "param": PROMPT}}
                    )
                elif kind == "broken":
                    self._raw(200, b'{"choices": [{"message": {"content": "' + COMPLETION.encode())
                elif b'"stream":true' in sent.replace(b" ", b""):
                    self._stream(kind, usage=b"include_usage" in sent)
                else:
                    self._send(200, next(body for end, body in PLAIN.items() if self.path.endswith(end)))

            def _send(self, status: int, body: Any) -> None:
                self._raw(status, json.dumps(body).encode())

            def _raw(self, status: int, content: bytes, kind: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _stream(self, kind: str, *, usage: bool) -> None:
                events = [chunk(COMPLETION), chunk(ARGUMENTS), *([chunk("", usage=USAGE)] if usage else [])]
                lines = [f"data: {json.dumps(event)}\n\n" for event in events]
                if kind != "cut":
                    lines.append("data: [DONE]\n\n")
                content = "".join(lines).encode()
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("content-length", str(len(content) + (99 if kind == "cut" else 0)))
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": SCHEMA, "parameters": {"type": "object", "properties": {}}},
}
ASK: dict[str, Any] = {
    "model": "gpt-4o-mini", "tools": [TOOL], "user": "u",
    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT},
                 {"role": "assistant", "content": None, "tool_calls": [CALL]},
                 {"role": "tool", "tool_call_id": "call_1", "content": RESULT}],
}  # fmt: skip


def _openai(url: str) -> Iterator[Callable[[], Any]]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url, api_key="test", max_retries=0) as client:
        chat = client.chat.completions
        yield lambda: chat.create(**ASK)
        yield lambda: chat.with_raw_response.create(**ASK)
        yield lambda: list(chat.create(**ASK, stream=True, stream_options={"include_usage": True}))
        yield lambda: list(chat.create(**ASK, stream=True))
        yield lambda: list(chat.create(**ASK, stream=True, extra_headers={"x-wire": "cut"}))
        yield lambda: next(chat.create(**ASK, stream=True)).id  # abandoned
        for kind in ("400", "500", "broken"):
            yield lambda kind=kind: chat.create(**ASK, extra_headers={"x-wire": kind})  # type: ignore[misc]
        yield lambda: client.responses.create(model="gpt-4o-mini", instructions=SYSTEM, input=PROMPT)
        yield lambda: client.embeddings.create(model="text-embedding-3-small", input=[PROMPT])
        yield lambda: client.audio.transcriptions.create(model="whisper-1", file=(f"{FILE}.mp3", b"x"), prompt=PROMPT)
        yield lambda: client.post("/chat/completions", body=ASK, cast_to=object)


def _anthropic(url: str) -> Iterator[Callable[[], Any]]:
    anthropic = pytest.importorskip("anthropic")
    if "anthropic" not in registry.PROVIDERS:
        pytest.skip("there is no integration for it")
    ask = {
        "model": "claude-opus-5",
        "max_tokens": 9,
        "system": SYSTEM,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    with anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="test", max_retries=0) as client:
        yield lambda: client.messages.create(**ask)
        yield lambda: client.messages.with_raw_response.create(**ask)
        for kind in ("400", "500", "broken"):
            yield lambda kind=kind: client.messages.create(**ask, extra_headers={"x-wire": kind})  # type: ignore[misc]


CLIENTS = {"openai": _openai, "anthropic": _anthropic}


class Ordinary(SpanProcessor):
    """Something that wants to see a span start: spans are made the ordinary way then."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        return


class Everything:
    """Whatever we write, as text."""

    def __init__(self, folder: Path, *, ordinary: bool) -> None:
        self.folder = folder
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers, meters = TracerProvider(), MeterProvider([self.reader])
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        if ordinary:
            tracers.add_span_processor(Ordinary())
        engines = runtime.get()
        _ = engines.guard  # all engines are made at once, when the first is asked for
        engines.spans = Spans("1", lambda: tracers)
        engines.metrics = Metrics("1", ("team",), get_provider=lambda: meters)
        self.logged = io.StringIO()
        self._handler = logging.StreamHandler(self.logged)
        self._handler.setFormatter(logging.Formatter("%(message)s %(args)s %(exc_info)s %(exc_text)s"))
        logger = logging.getLogger("aifinops")
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self._handler)
        self.raised: list[BaseException] = []

    def close(self) -> None:
        logging.getLogger("aifinops").removeHandler(self._handler)

    def spans(self) -> str:
        return "\n".join(span.to_json() for span in self.exporter.get_finished_spans())

    def found(self) -> dict[str, str]:
        af.flush()
        data = self.reader.get_metrics_data()
        files = b"".join(path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file())
        ours = [error for error in self.raised if type(error).__module__.startswith("aifinops")]
        return {
            "spans": self.spans(),
            "metrics": "" if data is None else data.to_json(),
            "ledger": files.decode("utf-8", "replace"),
            "rows": repr(list(runtime.get().ledger.rows())),
            "report": f"{af.report(by=['model', 'operation', 'status'])} {af.report(by=['error']).to_json()}",
            "log": self.logged.getvalue(),
            "exceptions": "".join(
                f"{error} {error!r} {error.args} {vars(error)} {pickle.dumps(error)!r}" for error in ours
            ),
            "failures": repr(errors.failures()),
        }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "ledger"
    made.mkdir()
    monkeypatch.setenv("AIFINOPS_LEDGER", str(made / "ledger.db"))
    return made


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture(autouse=True)
def uninstrumented() -> Iterator[None]:
    yield
    af.uninstrument()


def say_everything(name: str, wire: Wire, everything: Everything) -> int:
    """Every call of one client, once freely and once where a budget refuses it; how many."""
    calls = 0
    for call in CLIENTS[name](wire.url):
        calls += 1
        for block in (af.track("everything", team="search"), af.budget("0.000000001 USD", unknown="allow")):
            with suppress(Exception), block:
                try:
                    call()
                except Exception as error:
                    everything.raised.append(error)
                    raise
            # httpcore waits for ever when a stream that was left is collected while it assigns a connection, also without us.
            gc.collect()
    return calls


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("ordinary", [False, True])
def test_nothing_that_was_said_is_written_anywhere(folder: Path, wire: Wire, name: str, ordinary: bool) -> None:
    """Every shape of a call, good and bad, with spans made late and made the ordinary way."""
    pytest.importorskip(name)
    if name in registry.PROVIDERS:
        af.instrument(name)
    everything = Everything(folder, ordinary=ordinary)
    try:
        calls = say_everything(name, wire, everything)
        found = everything.found()
    finally:
        everything.close()
    assert [place for place, text in found.items() if ANY in text] == []
    if name == "openai":  # the other one makes its spans itself, and gets our attributes onto those
        assert found["spans"].count("gen_ai.request.model") >= calls / 2, "there was something to look through"
    assert any(isinstance(error, BudgetExceeded) for error in everything.raised)
    assert "gpt" in found["ledger"] or "claude" in found["ledger"]


@pytest.mark.parametrize("mode", ["SPAN_ONLY", "span_and_event"])
def test_content_that_is_asked_for_is_on_the_spans_and_nowhere_else(
    folder: Path, wire: Wire, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the form of the semantic conventions; the ledger never has it."""
    pytest.importorskip("openai")
    monkeypatch.setenv(VARIABLE, mode)
    af.instrument("openai")
    everything = Everything(folder, ordinary=False)
    try:
        say_everything("openai", wire, everything)
        found = everything.found()
    finally:
        everything.close()
    assert [place for place, text in found.items() if ANY in text] == ["spans"]
    whole, *_ = everything.exporter.get_finished_spans()
    told = {key: json.loads(value) for key, value in whole.attributes.items() if key.startswith(("gen_ai.input", "gen_ai.output", "gen_ai.system_"))}  # fmt: skip
    call = {"type": "tool_call", "id": "call_1", "name": "look_up", "arguments": CALL["function"]["arguments"]}  # type: ignore[index]
    assert told == {
        "gen_ai.system_instructions": [{"type": "text", "content": SYSTEM}],
        "gen_ai.input.messages": [
            {"role": "user", "parts": [{"type": "text", "content": PROMPT}]},
            {"role": "assistant", "parts": [call]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": RESULT}]},
        ],
        "gen_ai.output.messages": [
            {"role": "assistant", "parts": [{"type": "text", "content": COMPLETION}, call], "finish_reason": "stop"}
        ],
    }
    outputs = [span.attributes.get("gen_ai.output.messages") for span in everything.exporter.get_finished_spans()]
    streamed = [json.loads(str(text)) for text in outputs if text and f"{COMPLETION}{ARGUMENTS}" in str(text)]
    assert streamed[0] == [
        {"role": "assistant", "parts": [{"type": "text", "content": COMPLETION + ARGUMENTS}], "finish_reason": "stop"}
    ]


@pytest.mark.parametrize("mode", ["", "NO_CONTENT", "EVENT_ONLY", "false", "yes please"])
def test_every_other_word_is_a_no(folder: Path, wire: Wire, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are not made, and what cannot be read asks for nothing."""
    openai = pytest.importorskip("openai")
    monkeypatch.setenv(VARIABLE, mode)
    af.instrument("openai")
    everything = Everything(folder, ordinary=False)
    try:
        with openai.OpenAI(base_url=wire.url, api_key="test") as client:
            client.chat.completions.create(**ASK)
        found = everything.found()
    finally:
        everything.close()
    assert [place for place, text in found.items() if ANY in text] == []


def test_a_failure_of_our_own_is_logged_without_what_was_said(
    folder: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An internal failure whose text has a part of the answer in it: the log says where and what kind, not what it said."""
    openai = pytest.importorskip("openai")
    monkeypatch.setattr(errors._failures, "reraise", False)
    af.instrument("openai")
    everything = Everything(folder, ordinary=False)
    engines = runtime.get()

    def break_down(charge: Any, *_: Any) -> None:
        raise ValueError(f"could not convert {COMPLETION}")

    monkeypatch.setattr(engines.metrics, "record", break_down)
    try:
        with openai.OpenAI(base_url=wire.url, api_key="test") as client:
            assert client.chat.completions.create(**ASK).id == "chatcmpl-1"
        found = everything.found()
    finally:
        everything.close()
    assert "metering.metrics" in found["log"]
    assert "ValueError" in found["log"]
    assert [place for place, text in found.items() if ANY in text] == []


def test_the_doctor_says_nothing_of_it(folder: Path, wire: Wire) -> None:
    """It looks at a ledger of calls that had canaries."""
    openai = pytest.importorskip("openai")
    af.instrument("openai")
    with openai.OpenAI(base_url=wire.url, api_key="test") as client:
        client.chat.completions.create(**ASK)
    af.flush()
    findings = doctor.examine(str(folder / "ledger.db"))
    assert any("1 entries" in finding.text for finding in findings)
    assert ANY not in repr(findings)


CRASH = """
import faulthandler, os, sys, threading
faulthandler.enable()
import openai
import aifinops as af
sys.path.insert(0, sys.argv[2])
from test_canaries import ASK
af.instrument("openai")
client = openai.OpenAI(base_url=sys.argv[1], api_key="test", max_retries=0)
client.chat.completions.create(**ASK)
af.flush()
threading.Timer(0.5, os.abort).start()
with af.budget("$1"):
    client.chat.completions.create(**ASK, extra_headers={"x-wire": "hang"})
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_crash_leaves_nothing_of_it_behind(folder: Path, wire: Wire) -> None:
    """The process aborts in the middle of a call: its dump and its files have no canary."""
    pytest.importorskip("openai")
    source = str(Path(af.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CRASH, wire.url, str(Path(__file__).parent)], capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, "PYTHONPATH": source}, cwd=folder,
    )  # fmt: skip
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error" in done.stderr
    assert "stainless.py" in done.stderr, "we were in the call"
    files = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "core")
    assert b"gpt-4o-mini" in files
    assert ANY.encode() not in files
    assert ANY not in done.stderr + done.stdout


def test_an_exception_of_the_client_is_the_users_as_it_was(folder: Path, wire: Wire) -> None:
    """What the provider repeats is in the SDK's own exception, and no frame of ours adds to what a traceback shows."""
    openai = pytest.importorskip("openai")
    af.instrument("openai")
    with (
        openai.OpenAI(base_url=wire.url, api_key="test", max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.chat.completions.create(**ASK, extra_headers={"x-wire": "400"})
    assert PROMPT in str(caught.value)
    ours = [line for line in traceback.format_exception(caught.value) if "aifinops" in line]
    assert ANY not in "".join(ours)
