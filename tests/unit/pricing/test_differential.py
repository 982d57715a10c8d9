"""Beside the installed genai-prices, the source of the bundled list: the same names, the same amounts.

Our usage has disjoint leaves, genai-prices takes inclusive totals; `inclusive` translates. Every difference that is meant is named
here with its reason.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import pytest

from aifinops.clock import to_ns
from aifinops.meters import METERS
from aifinops.pricing.book import PriceBook
from aifinops.pricing.compiling import own
from aifinops.pricing.lists import load_bundled
from aifinops.pricing.prices import Entry, Sheet
from aifinops.usage import Sku, Usage, input_total, output_total

genai = pytest.importorskip("genai_prices", reason="the source of the bundled list is not installed")

from genai_prices.data import providers  # noqa: E402
from genai_prices.data_snapshot import get_snapshot  # noqa: E402

if version("genai-prices") != load_bundled().version:
    pytest.skip("another version of genai-prices is installed than was compiled", allow_module_level=True)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MOMENTS = [
    NOW,
    datetime(2025, 1, 15, 7, 30, tzinfo=UTC),
    datetime(2025, 9, 30, 20, tzinfo=UTC),
    datetime(2026, 8, 21, tzinfo=UTC),
]

# The list of genai-prices has daily windows for these without weekdays or start dates; ours has both, from its comments.
WINDOWED = {"deepseek-flash", "deepseek-v4-flash", "deepseek-v4-pro"}

# Priced differently in a context that usage does not tell: unknown with us, the default context with genai-prices.
UNDECIDED = {("openrouter", "mistralai/mistral-large-4-0"), ("perplexity", "perplexity/sonar")}

# What `tools/prices/llm.toml` adds: models and prices of which genai-prices knows nothing.
OVERLAY = own.read(own.OVERLAYS)
REPRICED = {name for one in OVERLAY["overlays"] if "rates" in one for name in one.get("models", ())}
ADDED_METERS = {"code_interpreter_sessions"}

READS = ("cache_read_tokens", "cache_read_audio_tokens", "cache_read_image_tokens", "cache_read_video_tokens")
WRITES = ("cache_write_tokens", "cache_write_1h_tokens", "cache_write_30m_tokens", "cache_write_12h_tokens")
OTHER = {
    "web_search_requests": "web_searches",
    "file_search_requests": "storage_searches",
    "search_units": "rerank_searches",
    "characters": "input_characters",
    "pages": "input_document_pages",
}


def inclusive(quantities: dict[str, int]) -> dict[str, int]:
    """The same usage in the totals that genai-prices expects."""
    given = {
        "input_tokens": input_total(quantities),
        "output_tokens": output_total(quantities),
        "cache_read_tokens": sum(quantities.get(name, 0) for name in READS),
        "cache_write_tokens": sum(quantities.get(name, 0) for name in WRITES),
        "cache_write_1h_tokens": quantities.get("cache_write_1h_tokens", 0),
        "output_reasoning_tokens": quantities.get("reasoning_tokens", 0),
        "audio_seconds": quantities.get("audio_seconds", 0),
        "input_audio_seconds": quantities.get("audio_seconds", 0),
    }
    for kind in ("audio", "image", "video"):
        read = quantities.get(f"cache_read_{kind}_tokens", 0)
        given[f"input_{kind}_tokens"] = quantities.get(f"input_{kind}_tokens", 0) + read
        given[f"cache_{kind}_read_tokens"] = read
        given[f"output_{kind}_tokens"] = quantities.get(f"output_{kind}_tokens", 0)
    given |= {theirs: quantities.get(ours, 0) for ours, theirs in OTHER.items()}
    return given


def leaves(match: Any) -> Iterator[tuple[str, str]]:
    """(kind, text) of every clause below a match."""
    nested = getattr(match, "or_", None) or getattr(match, "and_", None)
    if nested:
        for one in nested:
            yield from leaves(one)
    else:
        yield type(match).__name__, next(iter(vars(match).values()))


def random_usage(entry: Entry, sheet: Sheet, rng: random.Random) -> dict[str, int]:
    """Quantities of some meters that the model prices, now and then above a cliff."""
    known = sorted(sheet.units.keys() - ADDED_METERS)
    meters = rng.sample(known, k=min(len(known), rng.randint(1, 6)))
    tokens = rng.choice([900, 60_000, 600_000])
    return {
        name: rng.randint(1, tokens if METERS[name].family == "tokens" else 40)
        for name in meters
        if name != "requests" and name not in entry.minimum
    }


def test_every_declared_name_means_the_same_model() -> None:
    """Names of the source, and snapshots of its declared beginnings, resolve to the model that it resolves them to."""
    snapshot, ours = get_snapshot(), load_bundled()
    compared, wrong = 0, []
    for provider in providers:
        names = {text for model in provider.models for kind, text in leaves(model.match) if kind != "ClauseRegex"}
        for name in sorted(names | {f"{name}-2025-08-07" for name in names}):
            entry = ours.find(provider.id, name)
            if entry is None:
                continue
            compared += 1
            try:
                theirs = snapshot.find_provider_model(name, None, provider.id, None)[1].id
            except LookupError:
                theirs = None
            if theirs != entry.model:
                wrong.append((provider.id, name, theirs, entry.model))
    assert wrong == []
    assert compared > 2_500


def test_every_exact_name_of_the_source_is_known() -> None:
    """No model and no declared name was lost in compiling."""
    ours = load_bundled()
    names = [
        (provider.id, text)
        for provider in providers
        for model in provider.models
        for kind, text in leaves(model.match)
        if kind == "ClauseEquals"
    ]
    assert len(names) > 2_000
    assert [name for name in names if ours.find(*name) is None] == []
    assert ours.count == sum(len(provider.models) for provider in providers) + len(OVERLAY["models"])


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.date().isoformat())
def test_every_model_costs_the_same(moment: datetime) -> None:
    """For each model random usages of its priced meters come to the same amount, at several moments."""
    rng, book, compared, wrong = random.Random(moment.isoformat()), PriceBook(), 0, []
    for provider in providers:
        for model in provider.models:
            entry = book.lists[0].find(provider.id, model.id)
            assert entry is not None
            sheet = entry.sheet(to_ns(moment))
            if not isinstance(sheet, Sheet) or model.id in WINDOWED | REPRICED or (provider.id, model.id) in UNDECIDED:
                continue
            quantities = random_usage(entry, sheet, rng)
            ours = book.price(Usage(quantities, Sku(provider.id, model.id), to_ns(moment))).amount
            theirs = model.calc_price(genai.Usage(**inclusive(quantities)), provider, genai_request_timestamp=moment)
            compared += 1
            if ours is None or abs(ours - theirs.total_price) > Decimal("1e-17"):
                wrong.append((provider.id, model.id, quantities, ours, theirs.total_price))
    assert wrong == []
    assert compared > 2_200


def tier_of(when: dict[str, str]) -> str:
    return next(iter(when.values()))


def test_every_tier_costs_the_same() -> None:
    """Flex, priority, fast and batch prices come to the same amount as with an explicit price context."""
    rng, book, compared, wrong = random.Random(7), PriceBook(), 0, []
    for provider in providers:
        for model in provider.models:
            for when in {tuple(variant.when.items()): variant.when for variant in model.price_variants or ()}.values():
                entry = book.lists[0].find(provider.id, model.id)
                sheet = entry.sheet(to_ns(NOW), tier_of(when)) if entry else None
                if entry is None or not isinstance(sheet, Sheet) or tier_of(when) == "default":
                    continue
                quantities = random_usage(entry, sheet, rng)
                ours = book.price(Usage(quantities, Sku(provider.id, model.id, tier=tier_of(when)), to_ns(NOW))).amount
                theirs = model.calc_price(
                    genai.Usage(**inclusive(quantities)), provider, genai_request_timestamp=NOW, price_context=when
                ).total_price
                compared += 1
                if ours is None or abs(ours - theirs) > Decimal("1e-17"):
                    wrong.append((provider.id, model.id, when, quantities, ours, theirs))
    assert wrong == []
    assert compared > 150


def test_the_minimum_of_groq_is_the_same() -> None:
    """Ten seconds are billed for any shorter recording."""
    groq = next(provider for provider in providers if provider.id == "groq")
    for name in ("whisper-large-v3", "whisper-large-v3-turbo"):
        model = groq.find_model(name)
        assert model is not None
        for seconds in (1, 9, 10, 11, 3600):
            theirs = model.calc_price(genai.Usage(**inclusive({"audio_seconds": seconds})), groq).total_price
            ours = PriceBook().price(Usage({"audio_seconds": seconds}, Sku("groq", name), to_ns(NOW))).amount
            assert ours is not None
            assert abs(ours - theirs) < Decimal("1e-17")


def test_windows_agree_where_the_source_can_say_them() -> None:
    """On a weekday after the windows began the corrected models cost what the source says."""
    deepseek = next(provider for provider in providers if provider.id == "deepseek")
    for name in sorted(WINDOWED):
        model = deepseek.find_model(name)
        assert model is not None
        for hour in range(24):
            moment = datetime(2026, 11, 24, hour, 30, tzinfo=UTC)
            theirs = model.calc_price(
                genai.Usage(input_tokens=1000), deepseek, genai_request_timestamp=moment
            ).total_price
            assert (
                PriceBook().price(Usage({"input_tokens": 1000}, Sku("deepseek", name), to_ns(moment))).amount == theirs
            )


def test_free_and_unlisted_are_told_apart() -> None:
    """Where the source has no rates it says zero; we say free where somebody says so, and unknown elsewhere."""
    free = unlisted = 0
    for provider in providers:
        for model in provider.models:
            entry = load_bundled().find(provider.id, model.id)
            if entry is not None and not entry.prices and isinstance(model.prices, genai.types.ModelPrice):
                assert not any(value is not None for value in vars(model.prices).values())
                free += entry.free
                unlisted += not entry.free
    assert free > 150
    assert 0 < unlisted < 20
