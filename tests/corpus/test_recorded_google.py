"""Recorded traffic of Gemini and Vertex AI through the real google-genai client: exact buckets, one row, nothing changed for the user.

The file is that of `test_recorded_openai.py`. What is expected is read here from the recorded bytes alone. Other clients have recorded
streams as one JSON list; the same pieces are sent as server-sent events, which is what google-genai asks for.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

genai = pytest.importorskip("google.genai")

from google.genai import types  # noqa: E402
from google.oauth2.credentials import Credentials  # noqa: E402
from recorded_traffic import tally  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402

pytestmark = [
    pytest.mark.corpus,
    pytest.mark.filterwarnings("ignore::Warning"),  # the library's own, of models and arguments of yesterday
]

CALL = re.compile(r"/(v1\w*)/(?:projects/([^/]+)/locations/([^/]+)/publishers/google/)?(models/[^/:]+):(\w+)$")
INTERACTIONS = re.compile(r"/(v1\w*)/interactions$")
CONFIG = ("systemInstruction", "tools", "toolConfig", "safetySettings", "cachedContent", "labels", "serviceTier")
MODALITIES = ("AUDIO", "IMAGE", "VIDEO")


def interactions() -> list[dict[str, Any]]:
    folder = os.environ.get("AIFINOPS_CORPUS")
    path = Path(folder or "") / "cassettes.jsonl.gz"
    if not folder or not path.is_file():
        pytest.skip("AIFINOPS_CORPUS names no folder of recorded traffic")
    found, seen = [], set()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            url = urlsplit(item["url"])
            call = CALL.search(unquote(url.path))
            asked = INTERACTIONS.search(url.path)
            if item["method"] != "POST" or not (url.hostname or "").endswith("googleapis.com") or not (call or asked):
                continue
            key = json.dumps([item["url"], item["req"], item["status"], item["resp"]])
            if key in seen or not isinstance(item["req"], str) or not isinstance(item["resp"], str):
                continue
            seen.add(key)
            groups = call.groups() if call else (asked[1], None, None, None, "interactions")  # type: ignore[index]
            item["version"], item["project"], item["location"], item["model"], item["call"] = groups
            found.append(item)
    return found


def pieces(item: dict[str, Any]) -> list[dict[str, Any]]:
    text = item["resp"]
    if text.lstrip()[:1] == "[":
        return json.loads(text)  # type: ignore[no-any-return]
    if "data:" in text and text.lstrip()[:1] != "{":
        said = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
        return [json.loads(line) for line in said if line != "[DONE]"]
    return [json.loads(text)]


def interaction(item: dict[str, Any]) -> dict[str, int] | None:
    """The same of an interaction, which has words of its own; a stream tells all at its end."""
    last = pieces(item)[-1]
    usage = last.get("interaction", last).get("usage")
    if usage is None:
        return None
    found = {
        f"input_{one['modality']}_tokens": one["tokens"]
        for one in usage["input_tokens_by_modality"]
        if one["modality"] != "text"
    }
    found["input_tokens"] = usage["total_input_tokens"] - sum(found.values())
    found |= {"output_tokens": usage["total_output_tokens"], "reasoning_tokens": usage["total_thought_tokens"]}
    assert not usage["total_cached_tokens"] + usage["total_tool_use_tokens"]
    return {name: count for name, count in found.items() if count}


def recorded(item: dict[str, Any]) -> dict[str, int] | None:
    """Disjoint buckets, written out by hand for this test: of each field the newest value."""
    if item["call"] == "interactions":
        return interaction(item)
    usage: dict[str, Any] = {}
    for piece in pieces(item):
        usage.update(piece.get("usageMetadata") or {})

    def of(modality: str, *names: str) -> int:
        return sum(
            one.get("tokenCount", 0) for name in names for one in usage.get(name, ()) if one.get("modality") == modality
        )

    if not any(name.endswith("TokenCount") for name in usage):
        return None
    found: dict[str, int] = {"reasoning_tokens": usage.get("thoughtsTokenCount", 0)}
    for modality in MODALITIES:
        cached = of(modality, "cacheTokensDetails")
        found[f"cache_read_{modality.lower()}_tokens"] = cached
        found[f"input_{modality.lower()}_tokens"] = (
            of(modality, "promptTokensDetails", "toolUsePromptTokensDetails") - cached
        )
        found[f"output_{modality.lower()}_tokens"] = of(modality, "candidatesTokensDetails")
    parts = {
        side: sum(count for name, count in found.items() if name.startswith(side))
        for side in ("cache_read", "input", "output")
    }
    cached = usage.get("cachedContentTokenCount", 0)
    found["cache_read_tokens"] = cached - parts["cache_read"]
    found["input_tokens"] = (
        usage.get("promptTokenCount", 0) + usage.get("toolUsePromptTokenCount", 0) - cached - parts["input"]
    )
    found["output_tokens"] = usage.get("candidatesTokenCount", 0) - parts["output"]
    return {name: count for name, count in found.items() if count}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["content-length"]))
        server: Any = self.server
        item = server.items[int(self.path.split("/")[2])]
        item["sent"] = (self.path, sent)
        events = item["resp"].startswith("event:")  # as they are, with their names
        streamed = events or ("alt=sse" in self.path and item["status"] < 400)
        content = item["resp"].encode()
        if streamed and not events:
            content = b"".join(b"data: %s\r\n\r\n" % json.dumps(piece).encode() for piece in pieces(item))
        self.send_response(item["status"])
        self.send_header("content-type", "text/event-stream" if streamed else "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        size = server.split or len(content) or 1
        for at in range(0, len(content), size):
            part = content[at : at + size]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def replay() -> Iterator[Any]:
    items = interactions()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.items, server.split = items, 0
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield items, f"http://127.0.0.1:{server.server_address[1]}", server
    server.shutdown()
    thread.join()
    server.server_close()


def client(item: dict[str, Any], number: int, base: str) -> Any:
    options = types.HttpOptions(base_url=f"{base}/i/{number}", api_version=item["version"], timeout=20_000)
    if item["project"]:
        login = {"project": item["project"], "location": item["location"], "credentials": Credentials(token="t")}
        return genai.Client(vertexai=True, http_options=options, **login)
    return genai.Client(api_key="test", http_options=options, vertexai=False)


def call(owner: Any, item: dict[str, Any]) -> Any:
    """Turn the recorded request back into a call of the public method."""
    body = json.loads(item["req"])
    if item["call"] == "interactions":
        return owner.interactions.create(**body)
    models = owner.models
    if item["call"] == "batchEmbedContents":
        asked = body["requests"]
        given = {key: asked[0][key] for key in ("outputDimensionality", "taskType", "title") if key in asked[0]}
        contents = [types.Content.model_validate(one["content"]) for one in asked]
        return models.embed_content(
            model=item["model"], contents=contents, config=types.EmbedContentConfig.model_validate(given)
        )
    known = {field.alias or name for name, field in types.GenerateContentConfig.model_fields.items()}
    given = {**(body.get("generationConfig") or {}), **{key: body[key] for key in CONFIG if key in body}}
    config = types.GenerateContentConfig.model_validate({key: value for key, value in given.items() if key in known})
    contents = body["contents"] if isinstance(body["contents"], list) else [body["contents"]]
    method = models.generate_content_stream if item["call"].startswith("stream") else models.generate_content
    return method(model=item["model"], contents=[types.Content.model_validate(one) for one in contents], config=config)


def plain(part: Any) -> Any:
    found = part.model_dump(mode="json", exclude={"sdk_http_response"})
    found.pop("automatic_function_calling_history", None)
    return found


def outcome(item: dict[str, Any], number: int, base: str) -> Any:
    """What the user sees: everything that came, or the exception."""
    owner = client(item, number, base)  # it closes what its models use when it is dropped
    try:
        result = call(owner, item)
        return [plain(part) for part in ([result] if hasattr(result, "model_dump") else result)]
    except Exception as error:
        return type(error).__name__, str(error)


async def aoutcome(item: dict[str, Any], number: int, base: str) -> Any:
    owner = client(item, number, base)
    made = owner.aio
    try:
        result = await call(made, item)
        return [plain(result)] if hasattr(result, "model_dump") else [plain(part) async for part in result]
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        await made.aclose()


@pytest.mark.parametrize(("colour", "split"), [("sync", 0), ("sync", 7), ("async", 7)])
def test_recorded_traffic_is_metered_exactly_and_unchanged(
    replay: Any, colour: str, split: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All recorded calls: what the user sees and sends is the same with us on, and each billed call is one exact row."""
    items, base, server = replay
    server.split = split

    def run(number: int) -> tuple[Any, Any]:
        item = items[number]
        seen = outcome(item, number, base) if colour == "sync" else asyncio.run(aoutcome(item, number, base))
        return seen, item.pop("sent", None)

    bare = [run(number) for number in range(len(items))]
    af.instrument("google")
    kinds: Counter[str] = Counter()
    wrong = []
    try:
        for number, item in enumerate(items):
            before = {row.id for row in runtime.get().ledger.rows()}
            again = run(number)
            seen, sent = again
            if isinstance(seen, tuple):  # a stream that the library failed to read ends when it is dropped
                gc.collect()
            af.flush()
            kinds[item["call"]] += 1
            kinds["usage recorded"] += recorded(item) is not None
            kinds["not sent by the client"] += sent is None
            rows = [row for row in runtime.get().ledger.rows() if row.id not in before]
            problem = judge(
                item, rows, same=again == bare[number], sent=sent is not None, raised=isinstance(seen, tuple)
            )
            if sent is not None:  # some requests of yesterday are refused by the client of today
                tally((item["source"], item["k"]), rows, usage=recorded(item) is not None, problem=problem)
            if problem:
                wrong.append(f"{number} {item['source']} {item['call']} {item['model']}: {problem}")
    finally:
        af.uninstrument()
    with capsys.disabled():
        sys.stdout.write(f"\ncorpus: {len(items)} interactions, {dict(kinds)}; wrong {len(wrong)}\n")
    assert not wrong, "\n".join(wrong[:20])
    assert len(items) > 50


def judge(item: dict[str, Any], rows: list[Any], *, same: bool, sent: bool, raised: bool) -> str:
    if not same:
        return "the user's call changed"
    if item["status"] >= 400 or not sent:
        return f"{len(rows)} rows for what was not billed" if rows else ""
    expected = recorded(item)
    if item["call"] == "interactions" and expected is None:  # only begun, and waited for
        return f"{len(rows)} rows for what is under way" if rows else ""
    if len(rows) != 1:
        return f"{len(rows)} rows"
    if expected is None:
        return "" if rows[0].basis in {"estimated", "unknown"} else "no usage recorded, yet not marked as an estimate"
    if raised and rows[0].basis == "estimated":  # the library cannot read its own stream, and gave it up
        return ""
    tokens = {name: count for name, count in rows[0].quantities.items() if name.endswith("_tokens")}
    return "" if tokens == expected else f"{tokens} for {expected}"
