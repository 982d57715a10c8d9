"""What is held before a call is never below what the call can be billed at: every model of the list, its tiers and regions."""

from __future__ import annotations

from functools import lru_cache

from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.meters import METERS
from aifinops.pricing.book import PriceBook, load_bundled
from aifinops.pricing.prices import Entry
from aifinops.usage import Sku, Usage

AT = st.integers(1_780_000_000_000_000_000, 1_810_000_000_000_000_000)
INPUTS, OUTPUTS = (
    sorted(name for name, row in METERS.items() if row.family == "tokens" and row.direction == direction)
    for direction in ("input", "output")
)
DEARER = {"priority", "fast"}


@lru_cache(maxsize=1)
def entries() -> list[Entry]:
    return [
        entry
        for entry in load_bundled().entries()
        if entry.provider in {"openai", "anthropic", "google", "aws", "x-ai", "deepseek"}
    ]


@lru_cache(maxsize=1)
def book() -> PriceBook:
    return PriceBook([load_bundled()])


def split(total: int, shares: list[int], names: list[str]) -> dict[str, int]:
    """A total given to meters in any way."""
    whole = sum(shares) or 1
    parts = {name: total * share // whole for name, share in zip(names, shares, strict=True)}
    parts[names[0]] += total - sum(parts.values())
    return {name: value for name, value in parts.items() if value}


@given(st.data())
@settings(max_examples=1_000, deadline=None)
def test_no_answer_costs_more_than_what_was_held(data: st.DataObject) -> None:
    """However a prompt is split into fresh, cached, written and other tokens, and an answer into its kinds; for the tier that was asked
    for or the standard one, in the region that was asked for, at any hour; with fewer tokens than the bounds too."""
    entry = data.draw(st.sampled_from(entries()))
    at = data.draw(AT)
    tier = data.draw(st.sampled_from(sorted({"", *(one.tier for one in (*entry.variants, *entry.adjust))})))
    region = data.draw(st.sampled_from(sorted({"", *(one.region for one in (*entry.variants, *entry.adjust))})))
    most_in, most_out = data.draw(st.integers(0, 2_000_000)), data.draw(st.integers(0, 100_000))
    upper, currency = book().bound(
        entry.provider, entry.model, input_tokens_upper=most_in, output_tokens_upper=most_out, at=at,
        tier=tier if tier in DEARER else "", region=region,
    )  # fmt: skip
    shares = st.lists(st.integers(0, 3), min_size=len(INPUTS), max_size=len(INPUTS))
    counts = {
        **split(data.draw(st.integers(0, most_in)), data.draw(shares), INPUTS),
        **split(data.draw(st.integers(0, most_out)), data.draw(shares)[: len(OUTPUTS)], OUTPUTS),
    }
    for served in {tier, ""}:
        cost = book().price(Usage(counts, Sku(entry.provider, entry.model, tier=served, region=region), at))
        if upper is not None and cost.amount is not None:
            assert cost.currency == currency
            assert cost.amount <= upper
