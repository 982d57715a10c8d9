"""Bounds and estimates of recorded requests beside the prompt tokens that their providers reported.

Reads `cassettes.jsonl.gz` in the folder that `AIFINOPS_CORPUS` names, see `tests/corpus`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from aifinops.pricing.tokens import UNBOUNDED, count_tokens, prompt_estimate, text_upper_bound

pytestmark = pytest.mark.corpus

SHORTENED = ("test_prompt_cache.yaml",)
"""Recordings whose prompt was cut out of the request afterwards: 18,000 tokens cannot come from 60 letters."""


class Recorded(NamedTuple):
    """One request, and what the provider said that its prompt had."""

    host: str
    model: str
    body: dict[str, Any]
    tokens: int


def recorded() -> Iterator[Recorded]:
    folder = os.environ.get("AIFINOPS_CORPUS")
    if not folder:
        pytest.skip("AIFINOPS_CORPUS names no folder of recorded traffic")
    path = Path(folder) / "cassettes.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            if item["status"] != 200 or item["source"].endswith(SHORTENED):
                continue
            body, tokens = parsed(item["req"]), prompt_tokens(item["resp"])
            if isinstance(body, dict) and tokens:
                url = urlsplit(item["url"])
                named = re.search(r"/(?:models|model|deployments)/([^/:]+)", unquote(url.path))
                yield Recorded(url.hostname or "", body.get("model") or (named[1] if named else ""), body, tokens)


def parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None


def prompt_tokens(answer: Any) -> int:
    """The largest count of prompt tokens in an answer or its events, cached ones included."""
    if not isinstance(answer, str):
        return 0
    whole = parsed(answer)
    events = (
        [whole] if whole is not None else [parsed(line[5:]) for line in answer.splitlines() if line.startswith("data:")]
    )
    return max((reported(event) for event in events), default=0)


def reported(value: Any) -> int:
    if isinstance(value, list):
        return max(map(reported, value), default=0)
    if not isinstance(value, dict):
        return 0
    best = 0
    for key in ("usage", "usageMetadata"):
        usage = value.get(key)
        if isinstance(usage, dict):
            counts = [
                usage.get(name) or 0 for name in ("prompt_tokens", "input_tokens", "inputTokens", "promptTokenCount")
            ]
            cached = [usage.get(name) or 0 for name in ("cache_read_input_tokens", "cache_creation_input_tokens")]
            best = max(best, max(counts) + sum(cached))
    return max(best, *(reported(value.get(key)) for key in ("response", "message")))


def test_no_recorded_prompt_is_above_its_bound() -> None:
    """Every provider, every form of request: the bound is at least what was billed."""
    found = list(recorded())
    bounds = [text_upper_bound(one.body, model=one.model) for one in found]
    assert len(found) > 800
    assert [one for one, bound in zip(found, bounds, strict=True) if bound < one.tokens] == []
    # And it is a bound of the request, not the context window, for nearly all.
    assert sum(bound < UNBOUNDED for bound in bounds) > 0.95 * len(found)


def errors(*, tools: bool) -> list[float]:
    """Relative errors of the tight estimate of OpenAI's requests that have all of their prompt in them."""
    if count_tokens("x", "gpt-4o") is None or count_tokens("x", "gpt-4") is None:
        pytest.skip("no tokenizer: neither toktok-rs nor the encodings o200k_base and cl100k_base are here")
    found = []
    for one in recorded():
        body, has = one.body, bool(one.body.get("tools") or one.body.get("functions"))
        chat = isinstance(body.get("messages"), list) and "image" not in json.dumps(body)
        if one.host == "api.openai.com" and chat and has is tools and not body.get("response_format"):
            estimate = prompt_estimate(body, model=one.model)
            if estimate.by == "tokenizer":
                found.append(abs(estimate.tokens - one.tokens) / one.tokens)
    return found


def test_plain_chats_are_estimated_exactly_nearly_always() -> None:
    """The documented chat format: exact for six of seven, and five percent off at most for nine of ten."""
    found = sorted(errors(tools=False))
    assert len(found) > 150
    assert sum(error == 0 for error in found) > 0.85 * len(found)
    assert found[int(0.9 * len(found))] < 0.05


def test_chats_with_tools_are_estimated_within_a_few_percent() -> None:
    """Nobody documents how tools are shown; the declarations that models read come within one percent in the middle."""
    found = sorted(errors(tools=True))
    assert len(found) > 50
    assert median(found) < 0.02
    assert found[int(0.9 * len(found))] < 0.10
