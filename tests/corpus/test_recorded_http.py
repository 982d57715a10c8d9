"""Recorded traffic of Mistral, Cohere and Ollama through their real clients with us on: exact buckets, one row, the same answers.

Reads `cassettes.jsonl.gz` as `test_recorded_openai` does. What is expected is read here from the recorded bytes alone.
"""

from __future__ import annotations

import gzip
import importlib
import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from recorded_traffic import tally

import aifinops as af
from aifinops import runtime
from aifinops.testing import ScriptedProvider

pytestmark = pytest.mark.corpus

Call = Callable[[str, dict[str, Any]], Any]


def cassette() -> Path:
    folder = os.environ.get("AIFINOPS_CORPUS")
    if not folder:
        pytest.skip("AIFINOPS_CORPUS names no folder of recorded traffic")
    path = Path(folder) / "cassettes.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def events(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer, or the events of its stream."""
    whole = parsed(item["resp"])
    lines = [whole] if whole is not None else [parsed(line.removeprefix("data:")) for line in item["resp"].splitlines()]
    return [line for line in lines if isinstance(line, dict)]


def mistral_buckets(item: dict[str, Any]) -> dict[str, Any]:
    usage = next((event["usage"] for event in reversed(events(item)) if event.get("usage")), {})
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or usage.get("num_cached_tokens") or 0
    return {
        "input_tokens": usage.get("prompt_tokens", 0) - cached, "cache_read_tokens": cached,
        "output_tokens": 0 if item["url"].endswith("embeddings") else usage.get("completion_tokens", 0),
    }  # fmt: skip


def cohere_buckets(item: dict[str, Any]) -> dict[str, Any]:
    for event in reversed(events(item)):
        for holder in (event, event.get("delta") or {}, event.get("response") or {}):
            units = ((holder.get("usage") or holder.get("meta") or {}) if isinstance(holder, dict) else {}).get(
                "billed_units"
            )
            if units:
                return {name: int(count) for name, count in units.items()}
    return {}


def ollama_buckets(item: dict[str, Any]) -> dict[str, Any]:
    last = events(item)[-1]
    return {"input_tokens": last.get("prompt_eval_count", 0), "output_tokens": last.get("eval_count", 0)}


def mistral_client(url: str) -> tuple[Any, Call]:
    for home in ("mistralai.client", "mistralai"):
        try:
            made = importlib.import_module(home).Mistral(api_key="test", server_url=url)
            break
        except (ImportError, AttributeError):
            continue

    def call(path: str, body: dict[str, Any]) -> Any:
        if path.endswith("embeddings"):
            return made.embeddings.create(inputs=body.pop("input"), **known(made.embeddings.create, body))
        streamed = body.pop("stream", False)
        function = made.chat.stream if streamed else made.chat.complete
        answer = function(**known(function, body))
        return list(answer) if streamed else answer

    return made.sdk_configuration.client, call


def cohere_client(url: str) -> tuple[Any, Call]:
    cohere = importlib.import_module("cohere")
    first, second = cohere.Client(api_key="test", base_url=url), cohere.ClientV2(api_key="test", base_url=url)

    def call(path: str, body: dict[str, Any]) -> Any:
        made = second if path.startswith("/v2") else first
        name = path.rpartition("/")[2]
        streamed = body.pop("stream", False)
        function = getattr(made, f"{name}_stream" if streamed else name)
        answer = function(**known(function, body))
        return list(answer) if streamed else answer

    class Both:
        def close(self) -> None:
            for made in (first, second):
                made._client_wrapper.httpx_client.httpx_client.close()

    return Both(), call


def ollama_client(url: str) -> tuple[Any, Call]:
    made = importlib.import_module("ollama").Client(host=url)

    def call(path: str, body: dict[str, Any]) -> Any:
        function = getattr(made, path.rpartition("/")[2])
        answer = function(**known(function, body))
        return list(answer) if body.get("stream") else answer

    return made._client, call


def known(function: Any, body: dict[str, Any]) -> dict[str, Any]:
    """The part of a recorded body that this version of the library still takes."""
    taken = inspect.signature(function).parameters
    anything = any(one.kind is one.VAR_KEYWORD for one in taken.values())
    return {name: value for name, value in body.items() if (anything or name in taken) and value is not None}


LIBRARIES: dict[
    str, tuple[str, str, Callable[[str], tuple[Any, Call]], Callable[[dict[str, Any]], dict[str, Any]], int]
] = {
    "mistral": ("mistralai", "api.mistral.ai", mistral_client, mistral_buckets, 20),
    "cohere": ("cohere", "api.cohere.com", cohere_client, cohere_buckets, 30),
    "ollama": ("ollama", "127.0.0.1", ollama_client, ollama_buckets, 15),
}


def interactions(host: str) -> Iterator[dict[str, Any]]:
    seen = set()
    with gzip.open(cassette(), "rt", encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            url = urlsplit(item["url"])
            key = (item["url"], item["req"], item["resp"])
            named = url.hostname == host and (host != "127.0.0.1" or url.path.startswith("/api/"))
            if item["method"] == "POST" and named and key not in seen and isinstance(parsed(item["req"] or ""), dict):
                seen.add(key)
                yield item


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("piece", [7, 1_000_000])
def test_recorded_traffic_is_metered_exactly_and_unchanged(
    name: str, piece: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All recorded interactions: what the user sees is the same with us on, and each billed call is one exact row."""
    module, host, make, buckets, at_least = LIBRARIES[name]
    pytest.importorskip(module)
    kinds: Counter[str] = Counter()
    wrong = []
    with ScriptedProvider({}, piece=piece) as server:
        connection, call = make(server.url)
        for item in interactions(host):
            path = urlsplit(item["url"]).path
            body = parsed(item["resp"])
            server.answers = {path: item["status"] if item["status"] >= 400 else item["resp"] if body is None else body}
            seen = []
            for metered in (False, True):
                if metered:
                    af.instrument(name)
                before = len(list(runtime.get().ledger.rows()))
                seen.append(outcome(call, path, parsed(item["req"])))
                af.flush()
                rows = list(runtime.get().ledger.rows())[before:]
                af.uninstrument()
            kinds[f"{path} {'stream' if body is None else 'plain'}"] += 1
            problem = judge(item, rows, seen, buckets)
            tally(
                (item["source"], item["k"]),
                rows,
                usage=item["status"] < 400 and any(buckets(item).values()),
                problem=problem,
            )
            if problem:
                wrong.append(f"{item['source']} {path}: {problem}")
        connection.close()
    with capsys.disabled():
        sys.stdout.write(
            f"\ncorpus {name} in pieces of {piece}: {sum(kinds.values())} {dict(kinds)}; wrong {len(wrong)}\n"
        )
    assert not wrong, "\n".join(wrong[:20])
    assert sum(kinds.values()) >= at_least


def outcome(call: Call, path: str, body: dict[str, Any]) -> tuple[str, str]:
    try:
        return "ok", repr(call(path, body))
    except Exception as error:
        return type(error).__name__, str(error)


def judge(item: dict[str, Any], rows: list[Any], seen: list[Any], buckets: Callable[..., dict[str, Any]]) -> str:
    if seen[0] != seen[1]:
        return f"the user's call changed: {seen[0][:1]} {seen[1][:1]} {str(seen)[:300]}"
    if item["status"] >= 400:
        return f"{len(rows)} rows for an error answer" if rows else ""
    if len(rows) != 1:
        return f"{len(rows)} rows; the call was {str(seen[0])[:200]}"
    expected = {meter: count for meter, count in buckets(item).items() if count}
    if not expected:
        return "" if rows[0].basis in ("estimated", "unknown") else "no usage recorded, yet not marked as an estimate"
    return "" if dict(rows[0].quantities) == expected else f"{dict(rows[0].quantities)} for {expected}"
