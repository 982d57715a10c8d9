"""A provider on the loopback interface that keeps its own bill judges a budget: `python tests/faults/budget_truth.py [--json FILE]`.

A limit of 0.10 USD, calls that cost about 0.0125, real clients, many workers that ask for much more than there is. For each way to call,
the bill of the provider must not be above the limit, and what the ledger has (at its upper bounds where a cost is estimated or unknown) not
below the bill. Prices and counts are written out here, so that nothing of ours tells the provider what to bill.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIMIT = Decimal("0.10")
CHUNK, PAUSE_S, LEFT_AFTER = 10, 0.002, 200
"""Tokens that are written at once, what the provider takes for that, and how many chunks of a stream its caller reads before he leaves."""


@dataclass(frozen=True)
class Sdk:
    """One client library: what is asked, and what the provider bills for it."""

    name: str
    model: str
    prompt: str
    input_tokens: int
    output_tokens: int
    input_usd: Decimal  # a token
    output_usd: Decimal

    def cost(self, output: int | None = None) -> Decimal:
        return self.input_tokens * self.input_usd + (self.output_tokens if output is None else output) * self.output_usd


M = Decimal(1_000_000)
SDKS = {
    # https://openai.com/api/pricing/ and https://www.anthropic.com/pricing, 24 November 2026: USD for a million tokens.
    "openai": Sdk("openai", "gpt-5-mini", "word " * 200, 1000, 6100, Decimal("0.25") / M, 2 / M),
    "anthropic": Sdk("anthropic", "claude-haiku-4-5", "word " * 50, 250, 2400, 1 / M, 5 / M),
    # https://ai.google.dev/gemini-api/docs/pricing and https://aws.amazon.com/bedrock/pricing/, 30 November 2026.
    "google": Sdk("google", "gemini-2.5-flash", "word " * 50, 250, 4900, Decimal("0.3") / M, Decimal("2.5") / M),
    "bedrock": Sdk("bedrock", "amazon.nova-pro-v1:0", "word " * 50, 250, 3800, Decimal("0.8") / M, Decimal("3.2") / M),
}
SCENARIOS = ("serial", "burst", "stream", "abandon", "timeout", "retries")
WORKERS = ("threads", "tasks", "processes")
NO_TASKS = ("bedrock", "tasks")
"""boto3 has one colour."""
_PACKAGES = {"google": "google-genai", "bedrock": "boto3"}


# --- the provider --------------------------------------------------------------------------------------------------------


class Provider:
    """Bills what it has written, whoever still listens.

    Args:
        late: seconds before it answers.
    """

    def __init__(self, late: float = 0.01) -> None:
        self.late = late
        self.bills: list[Decimal] = []
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.provider = self
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def bill(self) -> Decimal:
        with self.lock:
            return sum(self.bills, Decimal(0))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    provider: Provider


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        sdk = next(SDKS[name] for word, name in _PATHS.items() if word in self.path)
        provider = self.server.provider
        try:
            if body.get("stream") or "stream" in self.path.lower():
                self._stream(sdk, body)
            else:
                with provider.lock:  # it is being written from now on, and billed
                    provider.bills.append(sdk.cost())
                time.sleep(provider.late)
                self._send(json.dumps(_answer(sdk)).encode(), "application/json")
        except OSError:
            self.close_connection = True

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, sdk: Sdk, body: dict[str, Any]) -> None:
        self.send_response(200)
        kind = "application/vnd.amazon.eventstream" if sdk.name == "bedrock" else "text/event-stream"
        self.send_header("content-type", kind)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        written, provider = 0, self.server.provider
        try:
            for event, tokens in _events(sdk, body):
                self.wfile.write(event)
                written += tokens
                time.sleep(PAUSE_S)
        finally:
            with provider.lock:
                provider.bills.append(sdk.cost(written))


_PATHS = {"/messages": "anthropic", "/completions": "openai", "enerateContent": "google", "/converse": "bedrock"}


def _answer(sdk: Sdk) -> dict[str, Any]:
    text = "word " * sdk.output_tokens
    if sdk.name == "google":
        return _piece(sdk, text, finishReason="STOP")
    if sdk.name == "bedrock":
        message = {"message": {"role": "assistant", "content": [{"text": text}]}}
        return {"output": message, "stopReason": "end_turn", **_metadata(sdk)}
    if sdk.name == "anthropic":
        return {
            "id": _id("msg"), "type": "message", "role": "assistant", "model": sdk.model, "stop_reason": "end_turn", "stop_sequence": None,
            "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": sdk.input_tokens, "output_tokens": sdk.output_tokens},
        }  # fmt: skip
    return {
        "id": _id("chatcmpl"), "object": "chat.completion", "created": 1_790_000_000, "model": sdk.model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}], "usage": _usage(sdk),
    }  # fmt: skip


def _usage(sdk: Sdk) -> dict[str, int]:
    total = sdk.input_tokens + sdk.output_tokens
    return {"prompt_tokens": sdk.input_tokens, "completion_tokens": sdk.output_tokens, "total_tokens": total}


def _piece(sdk: Sdk, text: str, **more: Any) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}
    counts = {"promptTokenCount": sdk.input_tokens, "candidatesTokenCount": sdk.output_tokens}
    usage = {**counts, "totalTokenCount": sum(counts.values())}
    return {
        "candidates": [candidate], "modelVersion": sdk.model, "responseId": _id("r"), **({"usageMetadata": usage} if more else {})
    }  # fmt: skip


def _metadata(sdk: Sdk) -> dict[str, Any]:
    counts = {"inputTokens": sdk.input_tokens, "outputTokens": sdk.output_tokens}
    return {"usage": {**counts, "totalTokens": sum(counts.values())}, "metrics": {"latencyMs": 7}}


def _framed(name: str, said: dict[str, Any]) -> bytes:
    """One message of `application/vnd.amazon.eventstream`: lengths and their CRC, headers, payload, CRC of it all."""
    payload, told = json.dumps(said).encode(), {":event-type": name, ":message-type": "event"}
    head = b"".join(
        struct.pack(f"!B{len(key)}sBH{len(value)}s", len(key), key.encode(), 7, len(value), value.encode())
        for key, value in told.items()
    )
    begun = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    whole = begun + struct.pack("!I", zlib.crc32(begun)) + head + payload
    return whole + struct.pack("!I", zlib.crc32(whole))


def _conversed(sdk: Sdk) -> Iterator[tuple[bytes, int]]:
    yield _framed("messageStart", {"role": "assistant"}), 0
    text = {"contentBlockIndex": 0, "delta": {"text": "word " * CHUNK}}
    for _ in range(sdk.output_tokens // CHUNK):
        yield _framed("contentBlockDelta", text), CHUNK
    yield _framed("messageStop", {"stopReason": "end_turn"}), 0
    yield _framed("metadata", _metadata(sdk)), 0


def _events(sdk: Sdk, body: dict[str, Any]) -> Iterator[tuple[bytes, int]]:
    """(an event, tokens that are in it)."""
    if sdk.name == "bedrock":
        yield from _conversed(sdk)
        return
    if sdk.name == "google":
        for _ in range(sdk.output_tokens // CHUNK):
            yield _data(_piece(sdk, "word " * CHUNK)), CHUNK
        yield _data(_piece(sdk, "", finishReason="STOP")), 0
        return
    if sdk.name == "anthropic":
        message = {**_answer(sdk), "content": [], "stop_reason": None}
        message["usage"] = {"input_tokens": sdk.input_tokens, "output_tokens": 1}
        yield _named("message_start", {"message": message}), 0
        yield _named("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}), 0
        for _ in range(sdk.output_tokens // CHUNK):
            yield (
                _named("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "word " * CHUNK}}),
                CHUNK,
            )
        yield _named("content_block_stop", {"index": 0}), 0
        end = {
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": sdk.output_tokens},
        }
        yield _named("message_delta", end), 0
        yield _named("message_stop", {}), 0
        return
    chunk: dict[str, Any] = {
        "id": _id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": sdk.model,
    }
    for _ in range(sdk.output_tokens // CHUNK):
        choice = {"index": 0, "delta": {"content": "word " * CHUNK}, "finish_reason": None}
        yield _data({**chunk, "choices": [choice]}), CHUNK
    yield _data({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), 0
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _data({**chunk, "choices": [], "usage": _usage(sdk)}), 0
    yield b"data: [DONE]\n\n", 0


def _named(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def _data(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


_numbers = iter(range(10**9))


def _id(kind: str) -> str:
    return f"{kind}-{next(_numbers)}"


# --- the callers ---------------------------------------------------------------------------------------------------------


class Caller:
    """Makes calls of one kind, in one colour."""

    def __init__(self, sdk: Sdk, url: str, scenario: str, *, asynchronous: bool) -> None:
        patience = {"timeout": 0.15, "retries": 0.15}.get(scenario, 60.0)
        self.scenario = scenario
        make = {"google": _google, "bedrock": _bedrock}.get(sdk.name, _stainless)
        self.client, self.create, self.errors = make(
            sdk, url, patience, 2 if scenario == "retries" else 0, asynchronous, self.streams
        )

    @property
    def streams(self) -> bool:
        return self.scenario in ("stream", "abandon")

    def call(self) -> None:
        if not self.streams:
            self.create()
            return
        with contextlib.closing(self.create()) as stream:
            for number, _ in enumerate(stream):
                if self.scenario == "abandon" and number > LEFT_AFTER:
                    break

    async def acall(self) -> None:
        if not self.streams:
            await self.create()
            return
        number, stream = 0, await self.create()
        try:
            async for _ in stream:
                number += 1
                if self.scenario == "abandon" and number > LEFT_AFTER:
                    break
        finally:
            await (stream.aclose() if hasattr(stream, "aclose") else stream.close())

    async def close(self) -> None:
        """Of an asynchronous client."""
        await (self.client.close() if hasattr(self.client, "api_key") else self.client.aio.aclose())


Made = tuple[Any, Callable[[], Any], tuple[type[Exception], ...]]
"""A client, what makes one call with it, and the errors of its own that end one."""


def _stainless(sdk: Sdk, url: str, patience: float, retries: int, asynchronous: bool, streams: bool) -> Made:
    module, openai = import_module(sdk.name), sdk.name == "openai"
    kind = ("Async" if asynchronous else "") + ("OpenAI" if openai else "Anthropic")
    client = getattr(module, kind)(
        base_url=url + ("/v1" if openai else ""), api_key="test", timeout=patience, max_retries=retries
    )
    limit = {"max_completion_tokens" if openai else "max_tokens": sdk.output_tokens}
    ask = {"model": sdk.model, "messages": [{"role": "user", "content": sdk.prompt}], **limit}
    create = client.chat.completions.create if openai else client.messages.create
    more = {"stream": True} if streams else {}
    return client, lambda: create(**ask, **more), (module.APIConnectionError,)


def _google(sdk: Sdk, url: str, patience: float, retries: int, asynchronous: bool, streams: bool) -> Made:
    genai = import_module("google.genai")
    again = genai.types.HttpRetryOptions(attempts=retries + 1, initial_delay=0.01, max_delay=0.02)
    options = genai.types.HttpOptions(base_url=url, timeout=int(patience * 1000), retry_options=again)
    client = genai.Client(api_key="test", http_options=options, vertexai=False)
    models = client.aio.models if asynchronous else client.models
    create = models.generate_content_stream if streams else models.generate_content
    ask = {"model": sdk.model, "contents": sdk.prompt, "config": {"max_output_tokens": sdk.output_tokens}}
    found = {"httpx": "HTTPError", "httpx2": "HTTPError", "aiohttp": "ClientError"}
    errors = tuple(getattr(sys.modules[name], kind) for name, kind in found.items() if name in sys.modules)
    return client, lambda: create(**ask), (*errors, TimeoutError)


def _bedrock(sdk: Sdk, url: str, patience: float, retries: int, asynchronous: bool, streams: bool) -> Made:
    config = import_module("botocore.config").Config(
        retries={"total_max_attempts": retries + 1, "mode": "standard"}, read_timeout=patience, max_pool_connections=64
    )
    session = import_module("boto3").session.Session("x", "x", region_name="us-east-1")
    client = session.client("bedrock-runtime", endpoint_url=url, config=config)
    ask = {
        "modelId": sdk.model, "messages": [{"role": "user", "content": [{"text": sdk.prompt}]}],
        "inferenceConfig": {"maxTokens": sdk.output_tokens},
    }  # fmt: skip
    errors = (import_module("botocore.exceptions").BotoCoreError,)
    if streams:
        return client, lambda: client.converse_stream(**ask)["stream"], errors
    return client, lambda: client.converse(**ask), errors


def work(sdk: Sdk, url: str, scenario: str, store: str | None, calls: int, workers: int, *, tasks: bool) -> None:
    """Make so many calls by so many workers, under one budget; refusals and the client's own errors end a call and not the worker."""
    import aifinops as af

    af.instrument(sdk.name)
    caller = Caller(sdk, url, scenario, asynchronous=tasks)
    ends = (af.BudgetExceeded, *caller.errors)

    def one() -> None:
        for _ in range(calls):
            with contextlib.suppress(*ends):
                caller.call()

    async def aone() -> None:
        for _ in range(calls):
            with contextlib.suppress(*ends):
                await caller.acall()

    async def together() -> None:
        await asyncio.gather(*(aone() for _ in range(workers)))
        await caller.close()

    with af.budget(f"${LIMIT}", name="judged", store=store):
        if tasks:
            asyncio.run(together())
        elif workers == 1:
            one()
        else:
            _threads(one, workers)
    af.flush()


def _threads(function: Callable[[], None], count: int) -> None:
    import aifinops as af

    threads = [threading.Thread(target=af.bind(function)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- the judge -----------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """One cell: USD as text, so that it can be written as JSON. `used` is the share of the limit that was billed, in percent."""

    sdk: str
    version: str
    scenario: str
    workers: str
    calls_billed: int
    bill: str
    ledger: str
    spent: str
    over: bool
    under: bool
    used: float


def judge(sdk: str, scenario: str, workers: str, store: str | None = None, *, calls: int = 3) -> Verdict:
    """Run one cell in processes of its own and compare the bill with the limit and with the ledger.

    Args:
        sdk, scenario, workers: see `SDKS`, `SCENARIOS`, `WORKERS`. store: of the budget; None for the default beside the ledger.
        calls: by each of 32 workers (8 in each of 4 processes; 1 where the scenario is `serial`).
    """
    provider = Provider(late=0.4 if scenario in ("timeout", "retries") else 0.01)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.db"
        processes, threads = (4, 8) if workers == "processes" else (1, 32)
        if scenario == "serial":
            threads, calls = 1, 12 * calls // processes
        arguments = [sdk, provider.url, scenario, store or "", str(calls), str(threads), workers]
        started = [
            subprocess.Popen([sys.executable, __file__, "--worker", *arguments], env=_environment(ledger))
            for _ in range(processes)
        ]
        codes = [process.wait(timeout=300) for process in started]
        time.sleep(0.6)  # what is still being written for nobody
        provider.close()
        assert not any(codes), codes
        found = subprocess.run(
            [sys.executable, __file__, "--read", store or ""],
            env=_environment(ledger),
            capture_output=True,
            text=True,
            check=True,
        )
        read = json.loads(found.stdout)
    bill, low = provider.bill, Decimal(read["ledger"])
    return Verdict(
        sdk, version(_PACKAGES.get(sdk, sdk)), scenario, workers, len(provider.bills), f"{bill:f}", read["ledger"], read["spent"],
        over=bill > LIMIT, under=low < bill or Decimal(read["spent"]) < bill, used=round(float(bill / LIMIT * 100), 1),
    )  # fmt: skip


def _environment(ledger: Path) -> dict[str, str]:
    import os

    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIFINOPS_", "OTEL_"))}
    return {**kept, "AIFINOPS_LEDGER": str(ledger), "PYTHONPATH": os.pathsep.join(sys.path)}


def read(store: str | None) -> dict[str, str]:
    """What the ledger has, at the upper bound where the cost is unknown, and what the budget counts as spent."""
    import aifinops as af
    from aifinops import runtime
    from aifinops.ledger.base import Query

    total = Decimal(0)
    for charge in runtime.get().ledger.rows(Query()):
        amount = charge.amount if charge.upper is None else charge.upper
        assert amount is not None, charge
        total += Decimal(amount).scaleb(-9)
    with af.budget(f"${LIMIT}", name="judged", store=store) as budget:
        assert budget.reserved == 0, budget.reserved
        return {"ledger": f"{total:f}", "spent": f"{budget.spent:f}"}


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--store")
    parser.add_argument("--sdk", action="append", choices=list(SDKS))
    parser.add_argument("--worker", nargs=7)
    parser.add_argument("--read")
    options = parser.parse_args()
    if options.worker:
        sdk, url, scenario, store, calls, threads, workers = options.worker
        work(SDKS[sdk], url, scenario, store or None, int(calls), int(threads), tasks=workers == "tasks")
        return 0
    if options.read is not None:
        say(json.dumps(read(options.read or None)))
        return 0
    verdicts = []
    say(f"{'':28}{'billed':>7}{'bill':>12}{'ledger':>12}{'used %':>8}")
    for sdk in options.sdk or SDKS:
        for workers in WORKERS:
            for scenario in SCENARIOS if (sdk, workers) != NO_TASKS else ():
                one = judge(sdk, scenario, workers, options.store)
                verdicts.append(one)
                wrong = " OVERSPENT" * one.over + " FORGOTTEN" * one.under
                say(
                    f"{sdk:10}{workers:10}{scenario:8}{one.calls_billed:7}{one.bill:>12}{one.ledger:>12}{one.used:8}{wrong}",
                )
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in verdicts], indent=1))
    return int(any(one.over or one.under for one in verdicts))


if __name__ == "__main__":
    sys.exit(main())
