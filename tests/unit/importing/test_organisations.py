"""Usage and costs of organisations, as OpenAI and Anthropic answer; OpenAI's pages are accepted by its own SDK's types."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from aifinops.errors import ConfigurationError
from aifinops.ledger.memory import MemoryLedger
from aifinops.money import from_nanos
from aifinops.testing.ledger import example_charge

Bring = Callable[..., Any]

_BUCKET = {"object": "bucket", "start_time": 1793491200, "end_time": 1793577600}
_USAGE = {
    "object": "organization.usage.completions.result", "input_tokens": 1_000_000, "output_tokens": 100_000,
    "input_cached_tokens": 400_000, "num_model_requests": 50, "project_id": "proj_1", "user_id": None, "api_key_id": None,
    "model": "gpt-5-mini-2025-08-07", "batch": False, "service_tier": "default",
}  # fmt: skip


def _page(*results: dict[str, Any]) -> dict[str, Any]:
    return {"object": "page", "data": [{**_BUCKET, "results": list(results)}], "has_more": False, "next_page": None}


def test_usage_of_openai_is_one_entry_a_row(bring: Bring) -> None:
    """Disjoint counts, the number of requests, the period, the project; the price of the model."""
    outcome, (charge,) = bring(_page(_USAGE))
    assert outcome.formats.popitem()[1] == "openai-usage"
    assert charge.quantities == {
        "input_tokens": 600_000,
        "cache_read_tokens": 400_000,
        "output_tokens": 100_000,
        "requests": 50,
    }
    # USD for a million: 0.25 fresh, 0.025 cached, 2 output.
    assert from_nanos(charge.amount) == Decimal("0.15") + Decimal("0.01") + Decimal("0.2")
    assert (charge.at, charge.duration) == (1793491200 * 10**9, 86400 * 10**9)
    assert (charge.tags["project"], charge.basis, charge.tier) == ("proj_1", "priced", "")


def test_the_newer_fields_of_openai_are_disjoint_too(bring: Bring) -> None:
    """Audio and images, cached or not, are taken out of the totals that hold them."""
    row = {
        **_USAGE, "model": "gpt-realtime", "input_tokens": 1000, "input_uncached_tokens": 700, "input_text_tokens": 500,
        "input_audio_tokens": 150, "input_image_tokens": 50, "input_cached_tokens": 300, "input_cached_text_tokens": 200,
        "input_cached_audio_tokens": 70, "input_cached_image_tokens": 30, "output_tokens": 90, "output_audio_tokens": 40,
        "output_text_tokens": 50,
    }  # fmt: skip
    _, (charge,) = bring(_page(row))
    assert charge.quantities == {
        "input_tokens": 500, "input_audio_tokens": 150, "input_image_tokens": 50, "cache_read_tokens": 200,
        "cache_read_audio_tokens": 70, "cache_read_image_tokens": 30, "output_tokens": 50, "output_audio_tokens": 40, "requests": 50,
    }  # fmt: skip


def test_openai_pages_are_what_the_sdk_reads() -> None:
    """The SDK's own types take them, with every field in its place."""
    types = pytest.importorskip("openai.types.admin.organization", reason="an openai SDK before the usage endpoints")
    page = types.UsageCompletionsResponse.model_validate(_page(_USAGE))
    assert page.data[0].results[0].input_cached_tokens == 400_000


@pytest.mark.parametrize(
    ("row", "counts"),
    [
        ({"object": "organization.usage.embeddings.result", "input_tokens": 9, "num_model_requests": 2, "model": "text-embedding-3-small"},
         {"input_tokens": 9, "requests": 2}),
        ({"object": "organization.usage.images.result", "images": 3, "num_model_requests": 2, "model": "dall-e-3", "size": "1024x1024"},
         {"images": 3, "requests": 2}),
        ({"object": "organization.usage.audio_transcriptions.result", "seconds": 60, "num_model_requests": 1, "model": "whisper-1"},
         {"audio_seconds": 60, "requests": 1}),
        ({"object": "organization.usage.code_interpreter_sessions.result", "num_sessions": 4}, {"code_interpreter_sessions": 4}),
        ({"object": "organization.usage.web_searches.result", "num_requests": 4, "num_model_requests": 3, "model": "gpt-5-mini"},
         {"web_search_requests": 4, "requests": 3}),
    ],
)  # fmt: skip
def test_each_kind_of_usage_has_its_meter(bring: Bring, row: dict[str, Any], counts: dict[str, int]) -> None:
    """What is counted is what the row says."""
    _, (charge,) = bring(_page(row))
    assert charge.quantities == counts


def test_rows_that_cannot_be_used_are_told_with_their_bucket(bring: Bring) -> None:
    """One without a model, one whose parts are above the whole; the good one is kept."""
    wrong = [
        {**_USAGE, "model": None},
        {**_USAGE, "input_cached_tokens": 2_000_000},
        {**_USAGE, "object": "organization.usage.moods.result"},
    ]
    page = _page(_USAGE)
    page["data"].append({**_BUCKET, "results": wrong})
    outcome, charges = bring(page)
    assert [place for _, place, _ in outcome.malformed] == [
        f"item 1, bucket 2, result {number}" for number in (1, 2, 3)
    ]
    assert "group_by=model" in outcome.malformed[0][2]
    assert len(charges) == 1


def test_costs_of_openai_are_billed_amounts(bring: Bring) -> None:
    """Exact to the digit that the export has, under the line item."""
    row = {"object": "organization.costs.result", "amount": {"value": 0.06123456, "currency": "usd"}, "line_item": "gpt-5-mini, input",
           "project_id": "proj_1"}  # fmt: skip
    _, (charge,) = bring(_page(row))
    assert (charge.amount, charge.basis, charge.model, charge.service) == (
        61_234_560,
        "reported",
        "gpt-5-mini, input",
        "bill",
    )


_ANTHROPIC = {
    "uncached_input_tokens": 1_000_000, "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
    "cache_read_input_tokens": 200, "output_tokens": 500, "server_tool_use": {"web_search_requests": 10}, "api_key_id": None,
    "workspace_id": "wrkspc_1", "model": "claude-sonnet-4-5-20250929", "service_tier": "standard", "context_window": "0-200k",
}  # fmt: skip


def _report(*results: dict[str, Any]) -> dict[str, Any]:
    bucket = {"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z", "results": list(results)}
    return {"data": [bucket], "has_more": False, "next_page": None}


@pytest.mark.parametrize(
    ("window", "amount", "basis"),
    [
        # USD: a million at 3, 1000 x 6, 500 x 3.75, 200 x 0.3, 500 x 15 a million, ten searches of a cent; long prompts twice, output 22.5
        (
            "0-200k",
            Decimal(3)
            + Decimal("0.006")
            + Decimal("0.001875")
            + Decimal("0.00006")
            + Decimal("0.0075")
            + Decimal("0.1"),
            "priced",
        ),
        (
            "200k-1M",
            Decimal(6)
            + Decimal("0.012")
            + Decimal("0.00375")
            + Decimal("0.00012")
            + Decimal("0.01125")
            + Decimal("0.1"),
            "priced",
        ),
        (None, None, "estimated"),
    ],
)
def test_the_window_of_anthropic_tells_how_long_prompts_were(
    bring: Bring, window: str | None, amount: Decimal | None, basis: str
) -> None:
    """With it the price is exact; without it the cost lies between the two."""
    _, (charge,) = bring(_report({**_ANTHROPIC, "context_window": window}))
    assert charge.basis == basis
    if amount is None:
        assert from_nanos(charge.lower) < Decimal("3.2")
        assert from_nanos(charge.upper) > Decimal(6)
    else:
        assert from_nanos(charge.amount) == amount


def test_costs_of_anthropic_are_in_cents(bring: Bring) -> None:
    """`123.78912` is a dollar and 23.78912 cents."""
    row = {"currency": "USD", "amount": "123.78912", "workspace_id": None, "description": "Claude Sonnet 4 Usage - Input Tokens",
           "cost_type": "tokens", "context_window": "0-200k", "model": "claude-sonnet-4-5", "service_tier": "standard",
           "token_type": "uncached_input_tokens"}  # fmt: skip
    _, (charge,) = bring(_report(row))
    assert (charge.amount, charge.basis) == (1_237_891_200, "reported")


def test_usage_and_costs_of_one_period_are_not_added(bring: Bring, ledger: MemoryLedger) -> None:
    """The second is refused with what to type, and taken when told to."""
    cost = {
        "object": "organization.costs.result",
        "amount": {"value": 1, "currency": "usd"},
        "line_item": "x",
        "project_id": None,
    }
    bring(_page(_USAGE))
    with pytest.raises(ConfigurationError, match=r"the ledger has 1 openai-usage entries of openai.*--add-anyway"):
        bring(_page(cost))
    assert len(list(ledger.rows())) == 1
    _, charges = bring(_page(cost), anyway=True)
    assert len(charges) == 2


def test_usage_of_an_organisation_is_not_added_to_metered_calls(bring: Bring, ledger: MemoryLedger) -> None:
    """Both ways: totals over calls, and calls over totals; another provider or period is in nobody's way."""
    at = 1793491200 * 10**9 + 5
    ledger.append(example_charge(1, provider="openai", at=at))
    with pytest.raises(ConfigurationError, match="the ledger has 1 metered entries of openai"):
        bring(_page(_USAGE))
    bring(_report(_ANTHROPIC))
    with pytest.raises(ConfigurationError, match="1 anthropic-usage entries"):
        bring("time,model,provider,input_tokens\n2026-11-01T05:00:00Z,claude-sonnet-4-5,anthropic,5\n")
    bring("time,model,provider,input_tokens\n2026-11-02T00:00:00Z,claude-sonnet-4-5,anthropic,5\n")


def test_pages_may_come_a_line_or_in_a_list_and_only_once(bring: Bring) -> None:
    """However they are kept, each row is one entry."""
    pages = [_page(_USAGE), _page({**_USAGE, "model": "gpt-5-nano"})]
    first, _ = bring(pages)
    again, charges = bring(f"[{','.join(json.dumps(page) for page in pages)}]")
    assert (first.written, again.written, again.known, len(charges)) == (2, 0, 2, 2)
