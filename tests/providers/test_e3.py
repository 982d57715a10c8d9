"""Cases that cost tables and proxies get wrong: each answer is priced exact from itself alone, at rates that were published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

import aifinops as af
from aifinops.integrations.responses import read_response

AT = datetime(2026, 11, 10, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """An answer, what was served, and what it costs."""

    name: str
    provider: str
    amount: str
    quantities: dict[str, int]
    tier: str = ""
    region: str = ""
    moment: datetime | None = AT


ROWS = [
    Row("openai/chat_cached", "openai", "0.00375", {"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 200}, "default"),
    Row("anthropic/cache_ttl", "anthropic", "0.005625",
        {"input_tokens": 100, "cache_write_tokens": 100, "cache_write_1h_tokens": 300, "cache_read_tokens": 500, "output_tokens": 200}),
    Row("google/thoughts", "google", "0.00155", {"input_tokens": 1000, "output_tokens": 100, "reasoning_tokens": 400}),
    Row("openai/chat_priority", "openai", "3.50", {"input_tokens": 1_000_000}, "priority"),
    Row("anthropic/compaction", "anthropic", "0.3075", {"input_tokens": 51_000, "output_tokens": 2100}),
    Row("anthropic/fast", "anthropic", "0.0150", {"input_tokens": 1000, "output_tokens": 100}, "fast"),
    Row("anthropic/geo_us", "anthropic", "0.00825", {"input_tokens": 1000, "output_tokens": 100}, region="us"),
    Row("anthropic/batch", "anthropic", "0.00375", {"input_tokens": 1000, "output_tokens": 100}, "batch"),
    Row("openai/response_web_search", "openai", "0.04045",
        {"input_tokens": 1000, "output_tokens": 100, "web_search_requests": 4}, "default"),
    Row("openrouter/cost", "openrouter", "0.0042", {"input_tokens": 1000, "output_tokens": 100}),
    Row("deepseek/saturday", "deepseek", "0.15", {"input_tokens": 1_000_000}, "default", moment=None),
    Row("google/traffic_provisioned", "google", "0",
        {"input_tokens": 1000, "output_tokens": 100, "reasoning_tokens": 400}, "provisioned"),
    Row("openai/chat_fine_tuned", "openai", "0.00144", {"input_tokens": 1000, "output_tokens": 200}, "default"),
]  # fmt: skip

every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@every
def test_what_was_served_is_read_from_the_answer(row: Row, body: Callable[[str], Any]) -> None:
    """Buckets, tier and region need nothing but the answer."""
    usage = read_response(body(row.name), row.provider)
    assert dict(usage.quantities) == row.quantities
    assert (usage.sku.tier, usage.sku.region) == (row.tier, row.region)


@every
def test_the_cost_is_exact(row: Row, body: Callable[[str], Any]) -> None:
    """To the last digit."""
    assert af.price_response(body(row.name), row.provider, row.moment).amount == Decimal(row.amount)


def test_what_has_no_price_is_unknown_and_never_zero(body: Callable[[str], Any]) -> None:
    """A model that no list knows has no amount, and the notes say why."""
    cost = af.price_response(body("openai/chat_unknown_model"), "openai", AT)
    assert (cost.amount, cost.basis) == (None, "unknown")
    assert "no price for model" in cost.notes[0]
