"""Recorded traffic of real providers through the real openai client with us on: exact buckets, one row, nothing changed for the user.

Reads `cassettes.jsonl.gz` in the folder that `AIFINOPS_CORPUS` names: one JSON object a line with `url`, `method`, `req` (the request
body), `status`, `rsh` (answer headers) and `resp` (answer body). What is expected is read here from the recorded bytes alone.
"""

from __future__ import annotations

import gzip
import inspect
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

openai = pytest.importorskip("openai")

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402

pytestmark = pytest.mark.corpus

ENDPOINTS = {
    "/chat/completions": lambda c: c.chat.completions.create,
    "/responses": lambda c: c.responses.create,
    "/completions": lambda c: c.completions.create,
    "/embeddings": lambda c: c.embeddings.create,
}
HOP = {"content-length", "transfer-encoding", "content-encoding", "connection"}
HOSTS = ("api.openai.com",)


def cassette() -> Path:
    folder = os.environ.get("AIFINOPS_CORPUS")
    if not folder:
        pytest.skip("AIFINOPS_CORPUS names no folder of recorded traffic")
    path = Path(folder) / "cassettes.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


def endpoint(url: str) -> str | None:
    path = unquote(urlsplit(url).path).rstrip("/")
    if path.endswith("/chat/completions"):
        return "/chat/completions"
    return next((name for name in ENDPOINTS if path.endswith(name)), None)


def interactions() -> Iterator[dict[str, Any]]:
    seen = set()
    with gzip.open(cassette(), "rt", encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            host = urlsplit(item["url"]).hostname or ""
            known = host in HOSTS or host.endswith(".openai.azure.com")
            if item["method"] != "POST" or not known or endpoint(item["url"]) is None or not item["req"]:
                continue
            key = (item["url"], item["req"], item["status"], item["resp"])
            if key not in seen and isinstance(_json(item["req"]), dict):
                seen.add(key)
                yield item


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def recorded_usage(item: dict[str, Any]) -> dict[str, Any] | None:
    """The provider's last usage object in the recorded bytes."""
    last = None
    for holder in holders(item):
        last = holder.get("usage") or last
    return last


def holders(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer, or what each event of a stream holds."""
    if item["status"] >= 400:
        return
    body = _json(item["resp"])
    events = (
        [body]
        if isinstance(body, dict)
        else [_json(line[5:]) for line in item["resp"].splitlines() if line.startswith("data:")]
    )
    for event in events:
        if isinstance(event, dict):
            yield event["response"] if isinstance(event.get("response"), dict) else event


def tools(item: dict[str, Any]) -> dict[str, int]:
    """Billed tool calls in the finished answer: each search of the web (not each page that was opened) and of files."""
    output: list[Any] = []
    for holder in holders(item):
        output = holder.get("output") or output if holder.get("object") == "response" else output
    found = {
        "web_search_requests": sum(
            one["type"] == "web_search_call" and (one.get("action") or {}).get("type") == "search" for one in output
        ),
        "file_search_requests": sum(one["type"] == "file_search_call" for one in output),
    }
    return {name: count for name, count in found.items() if count}


def buckets(usage: dict[str, Any]) -> dict[str, int]:
    """Disjoint buckets, written out by hand for this test: OpenAI counts parts inside totals."""
    total_in = usage.get("prompt_tokens", usage.get("input_tokens", 0)) or 0
    total_out = usage.get("completion_tokens", usage.get("output_tokens", 0)) or 0
    inner = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    outer = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    parts = {
        "cache_read_tokens": inner.get("cached_tokens") or 0,
        "cache_write_tokens": inner.get("cache_write_tokens") or 0,
        "input_audio_tokens": inner.get("audio_tokens") or 0,
        "input_image_tokens": inner.get("image_tokens") or 0,
    }
    made = {
        "reasoning_tokens": outer.get("reasoning_tokens") or 0,
        "output_audio_tokens": outer.get("audio_tokens") or 0,
    }
    all_of = {
        "input_tokens": total_in - sum(parts.values()), **parts, "output_tokens": total_out - sum(made.values()), **made,
    }  # fmt: skip
    return {name: count for name, count in all_of.items() if count}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        item = self.server.items[int(self.path.split("/")[2])]  # type: ignore[attr-defined]
        item["sent"] = json.loads(body)
        content = item["resp"].encode()
        self.send_response(item["status"])
        for name, value in item["rsh"].items():
            if name not in HOP and value.isascii() and "\n" not in value:
                self.send_header(name, value)
        if "content-type" not in item["rsh"]:
            self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def replay() -> Iterator[Any]:
    items = list(interactions())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.items = items  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield items, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def client(item: dict[str, Any], number: int, base: str) -> Any:
    url = urlsplit(item["url"])
    options: dict[str, Any] = {"api_key": "test", "max_retries": 0, "timeout": 20}
    azure = re.match(r"(.*?)/openai/deployments/([^/]+)/", unquote(url.path))
    if azure:
        version = (parse_qs(url.query).get("api-version") or ["2024-10-21"])[0]
        return openai.AzureOpenAI(
            azure_endpoint=f"{base}/i/{number}", azure_deployment=azure[2], api_version=version, **options
        )
    return openai.OpenAI(base_url=f"{base}/i/{number}/v1", **options)


def call(made: Any, item: dict[str, Any]) -> list[Any]:
    """Turn the recorded request back into a call of the public method, and use up what it gives."""
    function = ENDPOINTS[endpoint(item["url"]) or ""](made)
    body = json.loads(item["req"])
    if body.get("encoding_format") == "base64":
        body.pop("encoding_format")
    known = inspect.signature(function).parameters
    named = {key: value for key, value in body.items() if key in known}
    extra = {key: value for key, value in body.items() if key not in known}
    result = function(**named, **({"extra_body": extra} if extra else {}))
    return list(result) if body.get("stream") and not hasattr(result, "model_dump") else [result]


def outcome(item: dict[str, Any], number: int, base: str) -> tuple[str, Any]:
    """What the user sees: everything that came, or the exception with its status."""
    with client(item, number, base) as made:
        try:
            return "ok", [
                part.model_dump(mode="json", warnings=False) if hasattr(part, "model_dump") else str(part)
                for part in call(made, item)
            ]
        except Exception as error:
            return type(error).__name__, str(error)


def test_recorded_traffic_is_metered_exactly_and_unchanged(
    replay: Any, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """All recorded openai interactions: what the user sees is the same with us on, and each billed call is one exact row."""
    items, base = replay
    bare = [outcome(item, number, base) for number, item in enumerate(items)]
    sent_bare = [item.pop("sent") for item in items]
    af.instrument("openai")
    try:
        kinds: Counter[str] = Counter()
        wrong = []
        for number, item in enumerate(items):
            before = len(list(runtime.get().ledger.rows()))
            seen = outcome(item, number, base)
            af.flush()
            rows = list(runtime.get().ledger.rows())[before:]
            problem = judge(item, rows, seen == bare[number], item["sent"] == sent_bare[number])
            kinds[f"{endpoint(item['url'])} {'stream' if json.loads(item['req']).get('stream') else 'plain'}"] += 1
            kinds["usage recorded"] += recorded_usage(item) is not None
            if problem:
                wrong.append(f"{number} {item['source']}: {problem}")
    finally:
        af.uninstrument()
    record_property("corpus", f"{len(items)} interactions, {dict(kinds)}, wrong {len(wrong)}")
    with capsys.disabled():
        sys.stdout.write(f"\ncorpus: {len(items)} interactions, {dict(kinds)}; wrong {len(wrong)}\n")
    assert not wrong, "\n".join(wrong[:20])
    assert len(items) > 100


def judge(item: dict[str, Any], rows: list[Any], same: bool, same_request: bool) -> str:
    if not same:
        return "the user's call changed"
    if not same_request:
        return "the request that was sent changed"
    usage = recorded_usage(item)
    if item["status"] >= 400:
        return f"{len(rows)} rows for an error answer" if rows else ""
    if len(rows) != 1:
        return f"{len(rows)} rows"
    if usage is None:
        return "" if rows[0].basis in ("estimated", "unknown") else "no usage recorded, yet not marked as an estimate"
    expected = buckets(usage) | tools(item)
    if min(expected.values(), default=0) < 0:  # a recording edited by hand: its parts are above their whole
        return "" if rows[0].amount is None and rows[0].raw == usage else "impossible usage was believed"
    return "" if dict(rows[0].quantities) == expected else f"{dict(rows[0].quantities)} for {expected}"
