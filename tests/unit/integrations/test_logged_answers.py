"""Answers as logs, tables and other libraries hand them back: other number types, snapshots, sums without details."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

import aifinops as af
from aifinops.errors import ImpossibleUsage
from aifinops.integrations.responses import read_response


class Whole:
    """A number of a numerical library: not an `int`, and exact all the same."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


class Real(float):
    """A float of a numerical library."""


def answer(**usage: Any) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "model": "claude-sonnet-4-5", "usage": usage}


@pytest.mark.parametrize("number", [Decimal, Whole, Real])
def test_counts_of_other_number_types_are_counted(number: Any) -> None:
    """A row of a database or a data frame has its own numbers; dropping one silently would price the call too low."""
    body = answer(input_tokens=number(1_000), cache_read_input_tokens=500, output_tokens=number(100))
    assert read_response(body, "anthropic").quantities == {
        "input_tokens": 1_000, "cache_read_tokens": 500, "output_tokens": 100,
    }  # fmt: skip
    assert read_response(body, "anthropic").raw == {
        "input_tokens": 1_000, "cache_read_input_tokens": 500, "output_tokens": 100,
    }  # fmt: skip


@pytest.mark.parametrize("number", [Decimal("NaN"), Decimal("sNaN"), Decimal(-1), Decimal("1.5"), Decimal("Infinity")])
def test_a_decimal_that_is_no_count_is_refused(number: Decimal) -> None:
    """As a float of the same value is."""
    with pytest.raises(ImpossibleUsage, match="input_tokens"):
        read_response(answer(input_tokens=number, output_tokens=10), "anthropic")


@pytest.mark.parametrize(
    ("model", "searches"),
    [
        ("gemini-2.0-flash-001", 1),
        ("gemini-2.5-flash-preview-09-2025", 1),
        ("gemini-2.5-pro", 1),
        ("gemini-3-pro-preview", 3),
    ],
)
@pytest.mark.parametrize("in_batch", [False, True])
def test_searches_before_gemini_3_are_billed_by_the_prompt(model: str, searches: int, *, in_batch: bool) -> None:
    """A snapshot is of its generation: three queries of one prompt were one grounded prompt before Gemini 3, also in a batch."""
    body: dict[str, Any] = {
        "modelVersion": model,
        "usageMetadata": {"promptTokenCount": 1_000, "candidatesTokenCount": 10},
        "candidates": [{"groundingMetadata": {"webSearchQueries": ["a", "b", "c"]}}],
    }
    usage = read_response({"response": body} if in_batch else body, "google")
    assert usage.quantities["web_search_requests"] == searches


def test_a_cached_prompt_of_audio_needs_no_details_of_the_cache() -> None:
    """900 of 1,000 tokens are audio and 900 were cached: at least 800 of the cached ones must be audio."""
    body = {
        "modelVersion": "gemini-2.5-flash",
        "usageMetadata": {
            "promptTokenCount": 1_000,
            "candidatesTokenCount": 10,
            "cachedContentTokenCount": 900,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}, {"modality": "AUDIO", "tokenCount": 900}],
        },
    }
    assert read_response(body, "google").quantities == {
        "input_audio_tokens": 100, "cache_read_tokens": 100, "cache_read_audio_tokens": 800, "output_tokens": 10,
    }  # fmt: skip
    assert af.price_response(body, provider="google").basis == "priced"


def test_the_total_of_xai_shows_that_reasoning_is_beside_the_completion() -> None:
    """The counts of an answer that Google Cloud documents for Grok: our disjoint parts add up to its total, 837.

    https://docs.cloud.google.com/vertex-ai/generative-ai/docs/partner-models/grok/capabilities/reasoning
    """
    usage = {
        "completion_tokens": 50, "prompt_tokens": 663, "total_tokens": 837, "cost_in_usd_ticks": 0, "num_sources_used": 0,
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0, "audio_tokens": 0, "reasoning_tokens": 124, "rejected_prediction_tokens": 0,
        },
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 654, "image_tokens": 0, "text_tokens": 663},
    }  # fmt: skip
    body = {
        "object": "chat.completion",
        "id": "a",
        "created": 1775523905,
        "model": "grok-4.1-fast-reasoning",
        "usage": usage,
    }
    counts = read_response(body, "xai").quantities
    assert counts == {"input_tokens": 9, "cache_read_tokens": 654, "output_tokens": 50, "reasoning_tokens": 124}
    assert sum(counts.values()) == usage["total_tokens"]
