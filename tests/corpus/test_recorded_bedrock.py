"""Recorded traffic of Amazon Bedrock through the real boto3 client with us on: exact buckets, one row, nothing changed for the user.

The file is that of `test_recorded_openai.py`; its answers that are no text are `{"b64": ...}`, or hexadecimal. What is expected is read
here from the recorded bytes: bodies and headers as they are, streams by a decoder of their framing that is written out in this file.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

boto3 = pytest.importorskip("boto3")

from botocore.config import Config  # noqa: E402
from recorded_traffic import tally  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402

pytestmark = pytest.mark.corpus

HOP = {"content-length", "transfer-encoding", "content-encoding", "connection"}
STREAM = "application/vnd.amazon.eventstream"
CALL = re.compile(r"^/model/(.+)/(converse|converse-stream|invoke|invoke-with-response-stream)$")

GUARDRAIL = re.compile(r"^/guardrail/([^/]+/version/[^/]+)/(apply)$")
UNITS = {
    "topicPolicyUnits": "topic", "contentPolicyUnits": "content", "wordPolicyUnits": "word", "sensitiveInformationPolicyUnits": "pii",
    "contextualGroundingPolicyUnits": "grounding", "contentPolicyImageUnits": "image", "automatedReasoningPolicyUnits": "reasoning",
}  # fmt: skip


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
            call = CALL.match(unquote(url.path)) or GUARDRAIL.match(url.path)
            if item["method"] != "POST" or call is None or "amazonaws" not in (url.hostname or "") or not item["req"]:
                continue
            key = json.dumps([item["url"], item["req"], item["status"], item["resp"]])
            if key in seen or not isinstance(item["req"], str):
                continue
            seen.add(key)
            item["model"], item["call"] = call.groups()
            item["bytes"] = answer(item)
            found.append(item)
    return found


def answer(item: dict[str, Any]) -> bytes:
    said = item["resp"]
    if isinstance(said, dict):
        return base64.b64decode(said["b64"])
    if item["status"] < 400 and "stream" in item["call"] and re.fullmatch(r"[0-9a-f]+", said):
        return bytes.fromhex(said)
    return said.encode()  # type: ignore[no-any-return]


def messages(data: bytes) -> Iterator[dict[str, Any]]:
    """The events of a stream: total length, length of headers, a CRC, the headers, the payload, a CRC."""
    at = 0
    while at + 16 <= len(data):
        total, headers = struct.unpack_from("!II", data, at)
        payload = json.loads(data[at + 12 + headers : at + total - 4])
        yield json.loads(base64.b64decode(payload["bytes"])) if "bytes" in payload else payload
        at += total


def recorded(item: dict[str, Any]) -> dict[str, int] | None:
    """Disjoint buckets, written out by hand for this test."""
    if item["status"] >= 400:
        return None
    if item["call"] == "apply":
        units = json.loads(item["bytes"])["usage"]
        return {f"guardrail_{policy}_units": units[name] for name, policy in UNITS.items() if units[name]}
    usage: dict[str, Any] = {}
    if "stream" in item["call"]:
        for event in messages(item["bytes"]):
            for source in (
                event.get("usage"),
                (event.get("message") or {}).get("usage"),
                event.get("amazon-bedrock-invocationMetrics"),
            ):
                usage.update({name: count for name, count in (source or {}).items() if isinstance(count, int)})
    else:
        body = json.loads(item["bytes"])
        usage = dict(body.get("usage") or {})
        headers = {
            name.removeprefix("x-amzn-bedrock-"): int(value)
            for name, value in item["rsh"].items()
            if name.endswith("token-count")
        }
        usage = {**usage, **headers} if not usage or "claude" not in item["model"] else usage
        usage.setdefault("inputTokenCount", usage.pop("input-token-count", None))
        usage.setdefault("outputTokenCount", usage.pop("output-token-count", None))
    names = {
        "input_tokens": ("input_tokens", "inputTokens", "inputTokenCount", "prompt_tokens"),
        "output_tokens": ("output_tokens", "outputTokens", "outputTokenCount", "completion_tokens"),
        "cache_read_tokens": ("cache_read_input_tokens", "cacheReadInputTokens", "cacheReadInputTokenCount"),
        "cache_write_tokens": ("cache_creation_input_tokens", "cacheWriteInputTokens", "cacheWriteInputTokenCount"),
    }
    found = {
        meter: next((usage[name] for name in spellings if usage.get(name) is not None), None)
        for meter, spellings in names.items()
    }
    if found["input_tokens"] is None and found["output_tokens"] is None:
        return None
    return {meter: count for meter, count in found.items() if count}


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
        self.send_response(item["status"])
        for name, value in item["rsh"].items():
            if name not in HOP and value.isascii() and "\n" not in value:
                self.send_header(name, value)
        if "content-type" not in item["rsh"]:
            self.send_header("content-type", STREAM if "stream" in item["call"] else "application/json")
        size = server.split or len(item["bytes"]) or 1
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for at in range(0, len(item["bytes"]), size):
            part = item["bytes"][at : at + size]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture(params=[0, 7], ids=["whole", "in pieces of 7 bytes"])
def replay(request: pytest.FixtureRequest) -> Iterator[Any]:
    items = interactions()
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.items, server.split = items, request.param
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield items, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def outcome(session: Any, item: dict[str, Any], number: int, base: str) -> Any:
    """What the user sees: everything that came, or the exception."""
    client = session.client(
        "bedrock-runtime", endpoint_url=f"{base}/i/{number}", config=Config(retries={"total_max_attempts": 1})
    )
    try:
        if item["call"].startswith("converse"):
            asked = {"modelId": item["model"], **json.loads(item["req"])}
            found = client.converse(**asked) if item["call"] == "converse" else client.converse_stream(**asked)
        elif item["call"] == "apply":
            guardrail, _, version = item["model"].split("/")
            asked = {"guardrailIdentifier": guardrail, "guardrailVersion": version, **json.loads(item["req"])}
            found = client.apply_guardrail(**asked)
        elif item["call"] == "invoke":
            found = client.invoke_model(modelId=item["model"], body=item["req"])
        else:
            found = client.invoke_model_with_response_stream(modelId=item["model"], body=item["req"])
        if "body" in found:
            found["body"] = found["body"].read() if item["call"] == "invoke" else list(found["body"])
        if "stream" in found:
            found["stream"] = list(found["stream"])
        found["ResponseMetadata"].pop("HTTPHeaders")  # they have the date
        return found
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        client.close()


def test_recorded_traffic_is_metered_exactly_and_unchanged(replay: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """All recorded calls: what the user sees and sends is the same with us on, and each billed call is one exact row."""
    items, base = replay
    session = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
    bare = [outcome(session, item, number, base) for number, item in enumerate(items)]
    sent = [item.pop("sent", None) for item in items]
    af.instrument("bedrock")
    kinds: Counter[str] = Counter()
    wrong = []
    try:
        for number, item in enumerate(items):
            before = len(list(runtime.get().ledger.rows()))
            same = outcome(session, item, number, base) == bare[number] and item.get("sent") == sent[number]
            af.flush()
            kinds[item["call"]] += 1
            kinds["usage recorded"] += recorded(item) is not None
            rows = list(runtime.get().ledger.rows())[before:]
            problem = judge(item, rows, same=same, raised=isinstance(bare[number], tuple))
            tally((item["source"], item["k"]), rows, usage=recorded(item) is not None, problem=problem)
            if problem:
                wrong.append(f"{number} {item['source']} {item['call']} {item['model']}: {problem}")
    finally:
        af.uninstrument()
    with capsys.disabled():
        sys.stdout.write(f"\ncorpus: {len(items)} interactions, {dict(kinds)}; wrong {len(wrong)}\n")
    assert not wrong, "\n".join(wrong[:20])
    assert len(items) > 50


def judge(item: dict[str, Any], rows: list[Any], *, same: bool, raised: bool) -> str:
    if not same:
        return "the user's call changed"
    if item["status"] >= 400 or (raised and "sent" not in item):
        return f"{len(rows)} rows for an error answer" if rows else ""
    if len(rows) != 1:
        return f"{len(rows)} rows"
    expected = recorded(item)
    if expected is None:
        return "" if rows[0].basis in {"estimated", "unknown"} else "no usage recorded, yet not marked as an estimate"
    return "" if dict(rows[0].quantities) == expected else f"{dict(rows[0].quantities)} for {expected}"
