"""A fake server of what is not OpenAI's, and calls through the client libraries that are not of Stainless' generator."""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CANARY = "canary-5d1f"
MODELS = {"mistral": "mistral-small-latest", "google": "gemini-2.5-flash", "bedrock": "amazon.nova-lite-v1:0"}
TOKENS = {
    "anthropic": {"input_tokens": 300, "cache_write_tokens": 100, "cache_read_tokens": 600, "output_tokens": 200},
    "mistral": {"input_tokens": 600, "cache_read_tokens": 400, "output_tokens": 200},
    "google": {"input_tokens": 60, "cache_read_tokens": 40, "output_tokens": 7, "reasoning_tokens": 20},
    "bedrock": {"input_tokens": 10, "cache_read_tokens": 30, "cache_write_tokens": 10, "output_tokens": 5},
}
"""What each answer of this server has used."""

_COUNT = iter(range(1, 1_000_000))


def message() -> dict[str, Any]:
    """A plain answer of Anthropic's."""
    return {
        "id": f"msg_{next(_COUNT):06}", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": "an answer"}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 300, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 600, "output_tokens": 200,
                  "service_tier": "standard", "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0}},
    }  # fmt: skip


def message_events() -> bytes:
    """The same, streamed."""
    whole = message()
    start = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "an answer"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 200}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events)


def _mistral(stream: bool) -> list[bytes]:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "total_tokens": 1200,
        "prompt_tokens_details": {"cached_tokens": 400},
    }
    about = {"id": f"c{next(_COUNT)}", "created": 1_790_000_000, "model": MODELS["mistral"]}
    said = {"role": "assistant", "content": "an answer"}
    if not stream:
        choice = {"index": 0, "finish_reason": "stop", "message": said}
        return [json.dumps({**about, "object": "chat.completion", "usage": usage, "choices": [choice]}).encode()]
    about["object"] = "chat.completion.chunk"
    parts = [
        {**about, "choices": [{"index": 0, "delta": said, "finish_reason": None}]},
        {**about, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}], "usage": usage},
    ]
    return [*(f"data: {json.dumps(part)}\n\n".encode() for part in parts), b"data: [DONE]\n\n"]


def _google(stream: bool) -> list[bytes]:
    usage = {
        "promptTokenCount": 100, "cachedContentTokenCount": 40, "candidatesTokenCount": 7, "thoughtsTokenCount": 20,
        "totalTokenCount": 127,
    }  # fmt: skip
    candidate = {"content": {"parts": [{"text": "an answer"}], "role": "model"}, "index": 0}
    about = {"modelVersion": MODELS["google"], "responseId": f"r{next(_COUNT)}"}
    whole = {**about, "candidates": [{**candidate, "finishReason": "STOP"}], "usageMetadata": usage}
    if not stream:
        return [json.dumps(whole).encode()]
    return [f"data: {json.dumps(part)}\r\n\r\n".encode() for part in ({**about, "candidates": [candidate]}, whole)]


def _frame(name: str, said: dict[str, Any]) -> bytes:
    payload = json.dumps(said).encode()
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    head = b"".join(
        struct.pack(f"!B{len(key)}sBH{len(value)}s", len(key), key.encode(), 7, len(value), value.encode())
        for key, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return body + struct.pack("!I", zlib.crc32(body))


def _bedrock(stream: bool) -> list[bytes]:
    usage = {
        "inputTokens": 10,
        "outputTokens": 5,
        "totalTokens": 55,
        "cacheReadInputTokens": 30,
        "cacheWriteInputTokens": 10,
    }
    if not stream:
        message = {"role": "assistant", "content": [{"text": "an answer"}]}
        whole = {"output": {"message": message}, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 7}}
        return [json.dumps(whole).encode()]
    return [
        _frame("messageStart", {"role": "assistant"}),
        _frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "an answer"}}),
        _frame("contentBlockStop", {"contentBlockIndex": 0}),
        _frame("messageStop", {"stopReason": "end_turn"}),
        _frame("metadata", {"usage": usage, "metrics": {"latencyMs": 7}}),
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kind = "text/event-stream"
        if self.path.endswith("/messages"):
            stream = bool(body.get("stream"))
            chunks = [message_events() if stream else json.dumps(message()).encode()]
        elif "/model/" in self.path:
            stream = self.path.endswith("-stream")
            chunks, kind = _bedrock(stream), "application/vnd.amazon.eventstream"
        elif ":" in self.path:
            stream = "stream" in self.path
            chunks = _google(stream)
        else:
            stream = bool(body.get("stream"))
            chunks = _mistral(stream)
        self.send_response(200)
        self.send_header("x-amzn-requestid", f"q{next(_COUNT)}")
        self.send_header("content-type", kind if stream else "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def server() -> Iterator[str]:
    """The address of a server that answers as Anthropic, Mistral, Gemini and Bedrock do."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}"
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def calls(library: str, url: str, run: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    """The shapes of a call that a library has; `run` runs a coroutine."""
    return {"mistral": _mistral_calls, "google": _google_calls, "bedrock": _bedrock_calls}[library](url, run)


def _mistral_calls(url: str, run: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    import os

    from mistralai.client import Mistral

    client = Mistral(api_key="test", server_url=url)
    if os.environ.get("STACKING_NATIVE"):
        from mistralai.extra.observability.telemetry import configure_telemetry

        configure_telemetry(client, "global")
    asked: Any = {"model": MODELS["mistral"], "messages": [{"role": "user", "content": f"{CANARY} hello"}]}

    async def stream() -> None:
        async for _ in await client.chat.stream_async(**asked):
            pass

    return {
        "chat": lambda: client.chat.complete(**asked),
        "stream": lambda: list(client.chat.stream(**asked)),
        "async chat": lambda: run(client.chat.complete_async(**asked)),
        "async stream": lambda: run(stream()),
    }


def _google_calls(url: str, run: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    from google import genai
    from google.genai import types

    client = genai.Client(api_key="test", http_options=types.HttpOptions(base_url=url))
    asked: Any = {"model": MODELS["google"], "contents": f"{CANARY} hello"}

    async def stream() -> None:
        async for _ in await client.aio.models.generate_content_stream(**asked):
            pass

    return {
        "chat": lambda: client.models.generate_content(**asked),
        "stream": lambda: list(client.models.generate_content_stream(**asked)),
        "async chat": lambda: run(client.aio.models.generate_content(**asked)),
        "async stream": lambda: run(stream()),
    }


def _bedrock_calls(url: str, run: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    import boto3

    session = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
    client = session.client("bedrock-runtime", endpoint_url=url)
    asked: Any = {
        "modelId": MODELS["bedrock"],
        "messages": [{"role": "user", "content": [{"text": f"{CANARY} hello"}]}],
    }
    return {
        "chat": lambda: client.converse(**asked),
        "stream": lambda: list(client.converse_stream(**asked)["stream"]),
    }
