"""The price book: known amounts, honest ignorance, layers, bounds."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.charges import Amounts, Cost
from aifinops.clock import to_ns
from aifinops.errors import UnknownModel
from aifinops.meters import METERS
from aifinops.pricing.book import PriceBook, from_file, load_bundled
from aifinops.pricing.tokens import UNBOUNDED
from aifinops.usage import Quantities, Sku, Usage

AT = to_ns(datetime(2026, 11, 24, 12, tzinfo=UTC))
BOOK = PriceBook()


class At:
    """A clock that stands still."""

    def __init__(self, moment: int) -> None:
        self.moment = moment

    def time_ns(self) -> int:
        return self.moment

    def monotonic_ns(self) -> int:
        return self.moment


def usage(
    provider: str, model: str, quantities: Quantities, *, tier: str = "", region: str = "", at: int = AT
) -> Usage:
    return Usage(quantities, Sku(provider, model, tier=tier, region=region), at)


TOKENS_1000_100 = {"input_tokens": 1000, "output_tokens": 100}

GOLDEN = [
    # provider, model, tier, quantities, amount; the rates are those published in November 2026
    ("openai", "gpt-4o", "", {"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 200}, "0.00375"),
    (
        "openai",
        "gpt-4o-2024-08-06",
        "default",
        {"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 200},
        "0.00375",
    ),
    (
        "anthropic",
        "claude-sonnet-4-5-20250929",
        "standard",
        {
            "input_tokens": 100,
            "cache_write_tokens": 100,
            "cache_write_1h_tokens": 300,
            "cache_read_tokens": 500,
            "output_tokens": 200,
        },
        "0.005625",
    ),
    (
        "gcp.gemini",
        "gemini-2.5-flash",
        "",
        {"input_tokens": 1000, "output_tokens": 100, "reasoning_tokens": 400},
        "0.00155",
    ),
    ("openai", "o3-2025-04-16", "priority", {"input_tokens": 1_000_000}, "3.50"),
    ("anthropic", "claude-opus-5", "fast", TOKENS_1000_100, "0.0150"),
    ("anthropic", "claude-opus-5", "batch", TOKENS_1000_100, "0.00375"),
    ("openai", "gpt-4o-mini", "batch", {"input_tokens": 1_000_000, "output_tokens": 1_000_000}, "0.375"),
    ("openai", "gpt-5.6-sol", "", {"input_tokens": 272_000, "output_tokens": 1000}, "1.108"),
    ("openai", "gpt-5.6-sol", "", {"input_tokens": 272_001, "output_tokens": 1000}, "2.206008"),
    ("openai", "gpt-5.6-sol", "flex", {"input_tokens": 272_001, "output_tokens": 1000}, "1.103004"),
    ("openai", "text-embedding-3-small", "", {"input_tokens": 1_000_000}, "0.02"),
    ("openai", "gpt-4o", "", {"input_tokens": 1000, "web_search_requests": 4}, "0.0425"),
    ("azure.ai.openai", "gpt-4o", "", TOKENS_1000_100, "0.0035"),
    ("groq", "whisper-large-v3", "", {"audio_seconds": 3600}, "0.111"),
    ("groq", "whisper-large-v3", "", {"audio_seconds": Decimal("1.5")}, "0.000308333333333334"),
    ("perplexity", "sonar", "", TOKENS_1000_100, "0.0131"),
]


@pytest.mark.parametrize(("provider", "model", "tier", "quantities", "amount"), GOLDEN)
def test_known_amounts(provider: str, model: str, tier: str, quantities: Quantities, amount: str) -> None:
    """Amounts worked out by hand from published rates come out to the last digit."""
    cost = BOOK.price(usage(provider, model, quantities, tier=tier))
    assert cost.amount == Decimal(amount)
    assert cost.basis == "priced"
    assert (cost.lower, cost.upper) == (cost.amount, cost.amount)
    assert sum(line.amount for line in cost.lines) == cost.amount


@pytest.mark.parametrize(
    ("moment", "amount"),
    [
        (datetime(2025, 6, 9, 23, 59, 59, tzinfo=UTC), "10"),
        (datetime(2025, 6, 10, tzinfo=UTC), "2"),
        (datetime(2026, 11, 24, tzinfo=UTC), "2"),
    ],
)
def test_a_call_is_priced_by_the_price_of_its_moment(moment: datetime, amount: str) -> None:
    """o3 became cheaper on 10 June 2025: a call of the day before keeps the old price."""
    assert BOOK.price(usage("openai", "o3", {"input_tokens": 1_000_000}, at=to_ns(moment))).amount == Decimal(amount)


def test_usage_without_a_moment_is_priced_now() -> None:
    """`at == 0` means now, as the book's clock tells it."""
    old = PriceBook(clock=At(to_ns(datetime(2025, 1, 1, tzinfo=UTC))))
    assert old.price(usage("openai", "o3", {"input_tokens": 1_000_000}, at=0)).amount == 10
    assert PriceBook(clock=At(AT)).price(usage("openai", "o3", {"input_tokens": 1_000_000}, at=0)).amount == 2


@pytest.mark.parametrize(
    ("moment", "amount"),
    [
        (datetime(2026, 11, 28, 2, tzinfo=UTC), "0.15"),  # Saturday
        (datetime(2026, 11, 27, 2, tzinfo=UTC), "0.30"),  # Friday, peak
        (datetime(2026, 11, 27, 5, tzinfo=UTC), "0.15"),  # Friday, between the peaks
        (datetime(2026, 11, 27, 9, 59, tzinfo=UTC), "0.30"),
    ],
)
def test_deepseek_has_no_peak_at_weekends(moment: datetime, amount: str) -> None:
    """The source cannot say weekdays; its maintainers' comment can, and so can our file."""
    cost = BOOK.price(usage("deepseek", "deepseek-flash", {"input_tokens": 1_000_000}, at=to_ns(moment)))
    assert cost.amount == Decimal(amount)
    assert any("Chinese public holidays" in note for note in cost.notes) is (amount == "0.30")


def test_a_peak_price_that_nobody_recorded_is_unknown() -> None:
    """In the weeks of deepseek-v4-flash's first peak windows the list has no peak price, so there is no amount."""
    moment = to_ns(datetime(2026, 8, 25, 2, tzinfo=UTC))
    cost = BOOK.price(usage("deepseek", "deepseek-v4-flash", {"input_tokens": 1000}, at=moment))
    assert (cost.amount, cost.basis) == (None, "unknown")
    assert "peak price" in cost.notes[0]


def test_a_cost_explains_itself() -> None:
    """Every rate, the tier, the source and the date are in the text."""
    text = BOOK.price(
        usage("openai", "gpt-5.6-sol", {"input_tokens": 300_000, "reasoning_tokens": 50}, tier="flex")
    ).explain()
    assert text.splitlines() == [
        "$1.20 (priced) for gpt-5.6-sol",
        "       300,000 input_tokens               x $4.00 per 1,000,000 = $1.200000000  (prompt above 272,000 tokens)",
        (
            "            50 reasoning_tokens           x $15.00 per 1,000,000 = $0.000750000"
            "  (at the output_tokens rate; prompt above 272,000 tokens)"
        ),
        "  price genai-prices/openai/gpt-5.6-sol@2026-08-21@2026-10-12+flex, as of 2026-11-10",
        "  source genai-prices 0.2.3, https://github.com/pydantic/genai-prices",
    ]


def test_an_unknown_model_is_unknown_and_never_zero() -> None:
    """The cost has no amount, and says which lists were asked and which names are near."""
    cost = BOOK.price(usage("openai", "gpt-5-mimi", TOKENS_1000_100))
    assert (cost.amount, cost.lower, cost.upper, cost.basis) == (None, None, None, "unknown")
    assert cost.model == "gpt-5-mimi"
    assert (
        "no price for model 'gpt-5-mimi' of provider 'openai' (asked: genai-prices, aifinops-gpu, aifinops-storage, aifinops-vector). Nearest names: gpt-5-mini"
        in cost.notes[0]
    )
    assert "$0" not in cost.explain()


def test_an_unknown_provider_is_said() -> None:
    """A provider is not guessed from a name that contains one."""
    cost = BOOK.price(usage("my-openai-proxy", "gpt-4o", TOKENS_1000_100))
    assert cost.basis == "unknown"
    assert cost.notes[1] == "no list has a provider 'my-openai-proxy'"


def test_resolve_names_the_lists_and_the_nearest_models() -> None:
    """The error carries what the message says."""
    assert BOOK.resolve("openai", "gpt-4o").model == "gpt-4o"
    with pytest.raises(UnknownModel, match="Nearest names: claude-opus-5") as caught:
        BOOK.resolve("anthropic", "claude-opus-55")
    assert caught.value.lists == ("genai-prices", "aifinops-gpu", "aifinops-storage", "aifinops-vector")
    assert caught.value.provider == "anthropic"
    assert "claude-opus-5" in caught.value.nearest


def test_an_unknown_tier_is_never_the_standard_price() -> None:
    """A tier without a price of that day gives no amount."""
    cost = BOOK.price(usage("openai", "gpt-4", TOKENS_1000_100, tier="flex"))
    assert (cost.amount, cost.basis) == (None, "unknown")
    assert "no price of tier 'flex' for openai/gpt-4" in cost.notes[0]
    early = BOOK.price(usage("openai", "o3", TOKENS_1000_100, tier="flex", at=to_ns(datetime(2026, 1, 1, tzinfo=UTC))))
    assert early.amount is None


def test_a_region_without_a_rule_is_never_the_standard_price() -> None:
    """US-only inference costs a tenth more at Anthropic, as the list says; of any other region it says nothing."""
    assert BOOK.price(usage("anthropic", "claude-opus-5", TOKENS_1000_100, region="us")).amount == Decimal("0.00825")
    assert BOOK.price(usage("anthropic", "claude-opus-5", TOKENS_1000_100, region="eu")).amount is None


def test_tiers_of_a_resold_model_are_not_assumed() -> None:
    """The list says that Azure charges OpenAI's standard price; it says nothing about tiers there."""
    standard = BOOK.price(usage("azure.ai.openai", "gpt-4o", TOKENS_1000_100))
    assert standard.notes == ("azure has no price of its own here: the standard price of openai, as the list says",)
    assert BOOK.price(usage("azure.ai.openai", "gpt-4o", TOKENS_1000_100, tier="priority")).amount is None


def test_a_meter_without_a_rate_makes_the_whole_unknown_from_below() -> None:
    """What is known becomes the lower bound; the rest is named."""
    cost = BOOK.price(usage("openai", "gpt-4", {"input_tokens": 1_000_000, "code_interpreter_sessions": 1}))
    assert (cost.amount, cost.lower, cost.upper, cost.basis) == (None, Decimal(30), None, "unknown")
    assert cost.notes == ("no rate for code_interpreter_sessions",)


@pytest.mark.parametrize("meter", ["requests", "tool_calls"])
@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-4o"), ("pinecone", "standard")])
def test_a_request_without_a_rate_is_unknown_unless_something_in_it_is_billed(
    provider: str, model: str, meter: str
) -> None:
    """What a call used makes its price; a bare number of calls has none where the list gives it none, by each way of asking."""
    book, at = PriceBook(), to_ns(datetime(2026, 11, 10, tzinfo=UTC))
    for cost in (
        book.cost(provider, model, {meter: 2}, at=at),
        book.price(Usage({meter: 2}, Sku(provider, model), at)),
        book.price(Usage({meter: 2}, Sku(provider, model), at, estimated=True)),
    ):
        assert (cost.amount, cost.basis) == (None, "unknown")
        assert f"no rate for {meter}" in cost.notes
    assert book.amounts(provider, model, {meter: 2}, at=at) is None
    billed = "input_tokens" if provider == "openai" else "read_units"
    assert (
        book.cost(provider, model, {meter: 2, billed: 10}, at=at).amount
        == book.cost(provider, model, {billed: 10}, at=at).amount
    )
    assert book.cost("openai", "omni-moderation-latest", {meter: 1}, at=at).basis == "free"


def test_a_request_of_a_list_that_needs_care_is_unknown_too(tmp_path: Path) -> None:
    """Graduated prices go another way through the engine; a minimum charge is a price of the request itself."""
    path = tmp_path / "list.toml"
    path.write_text(
        'id = "ours"\n[[models]]\nprovider = "acme"\nmodel = "steps"\n'
        'rates = { input_tokens = { base = "2", graduated = { 1000 = "1" } } }\n'
        '[[models]]\nprovider = "acme"\nmodel = "least"\nminimum_charge = "0.01"\nrates = { input_tokens = "2" }\n'
    )
    book = PriceBook([from_file(path)])
    assert book.cost("acme", "steps", {"requests": 1}, at=1).amount is None
    assert book.cost("acme", "least", {"requests": 1}, at=1).amount == Decimal("0.01")


def test_a_search_of_unknown_kind_is_unknown_but_its_tokens_are_not() -> None:
    """Where usage does not tell which of two search prices holds, only calls with searches become unknown."""
    assert BOOK.price(usage("perplexity", "perplexity/sonar", {"input_tokens": 1_000_000})).amount == Decimal("0.25")
    cost = BOOK.price(usage("perplexity", "perplexity/sonar", {"input_tokens": 1_000_000, "web_search_requests": 1}))
    assert (cost.amount, cost.lower) == (None, Decimal("0.25"))
    assert any("search_type=fast" in note for note in cost.notes)


def test_free_is_not_unknown_and_unlisted_is_not_free() -> None:
    """Only what the list calls free costs nothing; a model that it lists without a price is unknown."""
    free = BOOK.price(usage("openai", "omni-moderation-latest", {"input_tokens": 1000}))
    assert (free.amount, free.basis) == (0, "free")
    unlisted = BOOK.price(usage("cerebras", "qwen-3-coder-480b", {"input_tokens": 1000}))
    assert (unlisted.amount, unlisted.basis) == (None, "unknown")
    assert "gives no price for it" in unlisted.notes[0]


def test_estimated_usage_gives_bounds() -> None:
    """The bounds of the quantities become bounds of the money."""
    guess = Usage(
        {"input_tokens": 1000, "output_tokens": 100},
        Sku("openai", "gpt-4o"),
        AT,
        estimated=True,
        lower={"output_tokens": 50},
        upper={"output_tokens": 400},
    )
    cost = BOOK.price(guess)
    assert (cost.lower, cost.amount, cost.upper) == (Decimal("0.003"), Decimal("0.0035"), Decimal("0.0065"))
    assert cost.basis == "estimated"
    assert "between $0.00300 and $0.00650" in cost.explain()


def test_an_open_upper_bound_stays_open() -> None:
    """When the upper quantities include a meter without a rate there is no upper bound."""
    guess = Usage({"input_tokens": 10}, Sku("openai", "gpt-4"), AT, estimated=True, upper={"pages": 3})
    assert BOOK.price(guess).upper is None


# Layers ---------------------------------------------------------------------------------------------------------------

CONTRACT = """
id = "acme-2026"
date = 2026-11-01
source = "order form 4711"

[[models]]
provider = "openai"
model = "gpt-4o"
names = ["gpt-4o-2024-08-06"]
rates = { input_tokens = "1.25", output_tokens = 5, cache_read_tokens = 0.625 }

[[models]]
provider = "local"
model = "llama-house"
max_output = 2048
context_window = 8192
prices = [{ rates = { input_tokens = { base = "0.1", above = { 1000 = "0.2" } }, output_tokens = "0.3" } }]
variants = [{ tier = "batch", rates = { input_tokens = "0.05" } }]
"""


def contract(folder: Path) -> PriceBook:
    path = folder / "contract.toml"
    path.write_text(CONTRACT, "utf-8")
    return PriceBook([from_file(path), load_bundled()])


def test_the_first_list_that_knows_a_model_wins(tmp_path: Path) -> None:
    """A contract is asked before the bundled list, which still serves the rest."""
    book = contract(tmp_path)
    cost = book.price(usage("openai", "gpt-4o", {"input_tokens": 1_000_000, "cache_read_tokens": 1_000_000}))
    assert cost.amount == Decimal("1.875")
    assert (cost.price_id, cost.source, cost.as_of) == ("acme-2026/openai/gpt-4o", "order form 4711", date(2026, 11, 1))
    assert book.price(usage("openai", "gpt-4o-mini", TOKENS_1000_100)).price_id == "genai-prices/openai/gpt-4o-mini"
    assert [one.id for one in book.lists] == ["acme-2026", "genai-prices"]


def test_a_model_of_ones_own_is_priced_like_any_other(tmp_path: Path) -> None:
    """Cliffs, tiers and fallbacks work in user lists; a lone name finds its only provider."""
    book = contract(tmp_path)
    assert book.price(usage("local", "llama-house", {"input_tokens": 1000})).amount == Decimal("0.0001")
    assert book.price(usage("local", "llama-house", {"input_tokens": 1001})).amount == Decimal("0.0002002")
    assert book.price(usage("", "llama-house", {"reasoning_tokens": 10})).amount == Decimal("0.000003")
    assert book.price(usage("local", "llama-house", {"input_tokens": 1000}, tier="batch")).amount == Decimal("0.00005")


def test_an_unknown_model_names_every_list(tmp_path: Path) -> None:
    """All lists were asked, and the nearest names come from all."""
    with pytest.raises(UnknownModel) as caught:
        contract(tmp_path).resolve("local", "llama-hause")
    assert caught.value.lists == ("acme-2026", "genai-prices")
    assert caught.value.nearest[0] == "llama-house"


def test_lists_tell_what_they_are() -> None:
    """Id, version, date and count are there for `aifinops doctor`."""
    bundled, *others = BOOK.lists
    assert [one.id for one in others] == ["aifinops-gpu", "aifinops-storage", "aifinops-vector"]
    assert (bundled.id, bundled.version, bundled.currency) == ("genai-prices", "0.2.3", "USD")
    assert bundled.date == date(2026, 11, 10)
    assert bundled.count == sum(1 for _ in bundled.entries()) > 2000


def test_the_cache_of_names_is_bounded() -> None:
    """Model names can come from outside; the book forgets rather than grows."""
    from aifinops.pricing import book as module

    book = PriceBook([load_bundled()])
    for number in range(20):
        book._found[("openai", f"seen-{number}")] = book.resolve("openai", "gpt-4o")
    for number in range(module._CACHE):
        book._found[("x", str(number))] = book.resolve("openai", "gpt-4o")
    book.resolve("openai", "o3")
    assert len(book._found) == 1


# Bounds before the call -----------------------------------------------------------------------------------------------


def test_an_estimate_is_bounded_by_the_dearest_rates() -> None:
    """Input may be written to the one-hour cache at twice the fresh price; output is at most the limit."""
    cost = BOOK.estimate("anthropic", "claude-opus-5", input_tokens_upper=1000, output_tokens_upper=100, at=AT)
    assert cost.basis == "estimated"
    assert (cost.lower, cost.amount, cost.upper) == (0, Decimal("0.0075"), Decimal("0.0125"))


def test_an_estimate_reckons_with_a_cliff_that_the_prompt_can_reach() -> None:
    """Above 272,000 input tokens all rates of gpt-5.6-sol are dearer; the bound of the prompt decides."""
    below = BOOK.estimate("openai", "gpt-5.6-sol", input_tokens_upper=272_000, output_tokens_upper=1000, at=AT)
    above = BOOK.estimate("openai", "gpt-5.6-sol", input_tokens_upper=272_001, output_tokens_upper=1000, at=AT)
    assert below.upper == 272_000 * Decimal("0.000005") + 1000 * Decimal("0.00002")
    assert above.upper == 272_001 * Decimal("0.00001") + 1000 * Decimal("0.00003")


def test_an_estimate_knows_the_tier() -> None:
    """Asked-for tiers have their own bound, and one without a price has none."""
    standard = BOOK.estimate("openai", "o3", input_tokens_upper=1000, output_tokens_upper=0, at=AT)
    priority = BOOK.estimate("openai", "o3", input_tokens_upper=1000, output_tokens_upper=0, at=AT, tier="priority")
    assert (standard.upper, priority.upper) == (Decimal("0.002"), Decimal("0.0035"))
    assert (
        BOOK.estimate("openai", "o3", input_tokens_upper=1, output_tokens_upper=1, at=AT, tier="x").basis == "unknown"
    )


def test_without_a_limit_the_context_window_bounds_the_answer() -> None:
    """The bound is large, the expected amount is not, and the note says why."""
    cost = BOOK.estimate("openai", "gpt-4o", input_tokens_upper=1000, output_tokens_upper=None, at=AT)
    assert cost.upper == Decimal("0.0025") + 128_000 * Decimal("0.00001")
    assert cost.amount == Decimal("0.0125")
    assert cost.notes == ("no output limit: at most the context window, 128,000 tokens",)


def test_a_known_output_limit_of_the_model_is_used(tmp_path: Path) -> None:
    """A list may say how much a model can write at most."""
    cost = contract(tmp_path).estimate("local", "llama-house", input_tokens_upper=0, output_tokens_upper=None, at=AT)
    assert cost.upper == 2048 * Decimal("0.0000003")
    assert "at most 2,048 tokens" in cost.notes[0]


def test_a_model_without_a_context_window_takes_the_largest_of_its_provider() -> None:
    """Some entries lack the window; the bound stays sound."""
    entry = next(
        one
        for one in load_bundled().entries("openai")
        if one.context_window is None and one.prices and {"input_tokens", "output_tokens"} <= one.prices[0].rates.keys()
    )
    cost = BOOK.estimate("openai", entry.model, input_tokens_upper=0, output_tokens_upper=None, at=AT)
    largest = max(one.context_window or 0 for one in load_bundled().entries("openai"))
    assert cost.notes == (f"no output limit: at most the largest context window of openai, {largest:,} tokens",)


def test_an_unbounded_prompt_is_the_context_window() -> None:
    """A prompt that lies elsewhere is bounded by what the model can read."""
    cost = BOOK.estimate("openai", "gpt-4o", input_tokens_upper=UNBOUNDED, output_tokens_upper=0, at=AT)
    assert cost.upper == 128_000 * Decimal("0.0000025")


def test_embeddings_have_no_output() -> None:
    """Neither by their operation nor by a model that prices no output."""
    cost = BOOK.estimate(
        "openai",
        "text-embedding-3-small",
        input_tokens_upper=1000,
        output_tokens_upper=None,
        at=AT,
        operation="embeddings",
    )
    assert cost.upper == cost.amount == Decimal("0.00002")
    chat = BOOK.estimate(
        "openai", "gpt-4o", input_tokens_upper=1000, output_tokens_upper=None, at=AT, operation="embeddings"
    )
    assert chat.upper == Decimal("0.0025")


def test_what_is_not_priced_by_tokens_has_no_bound_before_the_call() -> None:
    """Seconds of audio are not known from a token bound."""
    cost = BOOK.estimate("groq", "whisper-large-v3", input_tokens_upper=10, output_tokens_upper=0, at=AT)
    assert (cost.basis, cost.upper) == ("unknown", None)
    assert "not priced by tokens" in cost.notes[0]


def test_an_estimate_of_an_unknown_model_is_unknown() -> None:
    """There is no amount and no bound; `dearest` gives one to who wants it."""
    cost = BOOK.estimate("openai", "gpt-99", input_tokens_upper=10, output_tokens_upper=10, at=AT)
    assert (cost.amount, cost.upper, cost.basis) == (None, None, "unknown")


def test_an_estimate_of_a_free_model_is_nothing() -> None:
    """Free models reserve nothing."""
    cost = BOOK.estimate("openai", "omni-moderation-latest", input_tokens_upper=10, output_tokens_upper=None, at=AT)
    assert (cost.amount, cost.upper, cost.basis) == (0, 0, "free")


def test_a_request_fee_is_in_the_bound() -> None:
    """Models that charge each request do so before the first token."""
    cost = BOOK.estimate("perplexity", "sonar", input_tokens_upper=0, output_tokens_upper=0, at=AT)
    assert cost.amount == cost.upper == Decimal("0.012")


def test_the_dearest_rates_bound_every_model_of_the_provider() -> None:
    """No model of OpenAI costs more for these tokens."""
    bound = BOOK.dearest("openai", input_tokens_upper=1000, output_tokens_upper=500)
    costs = [
        BOOK.estimate("openai", entry.model, input_tokens_upper=1000, output_tokens_upper=500, at=AT).upper
        for entry in load_bundled().entries("openai")
    ]
    assert 0 < max(cost for cost in costs if cost is not None) <= bound


def test_the_dearest_rates_of_an_unknown_provider_are_those_of_any() -> None:
    """Where nobody is known everybody is reckoned with."""
    nobody = BOOK.dearest("nobody", input_tokens_upper=1000, output_tokens_upper=None)
    assert nobody == BOOK.dearest(None, input_tokens_upper=1000, output_tokens_upper=None)
    assert nobody >= BOOK.dearest("openai", input_tokens_upper=1000, output_tokens_upper=None)
    window = BOOK.input_limit("openai", "no-such-model")
    assert BOOK.dearest("openai", input_tokens_upper=UNBOUNDED, output_tokens_upper=0) == BOOK.dearest(
        "openai", input_tokens_upper=window, output_tokens_upper=0
    )


def test_limits_of_a_model(tmp_path: Path) -> None:
    """What it can read is its window, what it can write its limit, else its window; an unknown model has no output limit."""
    book = contract(tmp_path)
    assert (book.input_limit("local", "llama-house"), book.output_limit("local", "llama-house")) == (8192, 2048)
    assert (BOOK.input_limit("openai", "gpt-4o-mini"), BOOK.output_limit("openai", "gpt-4o-mini")) == (128_000, 128_000)
    assert BOOK.output_limit("openai", "no-such-model") is None
    assert BOOK.input_limit("nobody", "no-such-model") >= 1_000_000


def test_an_unbounded_quantity_is_priced_as_the_context_window() -> None:
    """The bound of a prompt that lies elsewhere becomes money only up to what the model can read."""
    guess = Usage({"input_tokens": 10}, Sku("openai", "gpt-4o"), AT, estimated=True, upper={"input_tokens": UNBOUNDED})
    assert BOOK.price(guess).upper == 128_000 * Decimal("0.0000025")


# Properties -----------------------------------------------------------------------------------------------------------

MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "o3"),
    ("openai", "gpt-5.6-sol"),
    ("openai", "gpt-4o-audio-preview"),
    ("openai", "gpt-realtime"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-5-5"),
    ("gcp.gemini", "gemini-2.5-pro"),
    ("gcp.gemini", "gemini-2.5-flash"),
    ("perplexity", "sonar"),
    ("deepseek", "deepseek-chat"),
]
TOKEN_METERS = [name for name, row in METERS.items() if row.family == "tokens"]
some_tokens = st.dictionaries(st.sampled_from(TOKEN_METERS), st.integers(0, 400_000), max_size=6)
moments = st.integers(to_ns(datetime(2024, 1, 1, tzinfo=UTC)), to_ns(datetime(2027, 1, 1, tzinfo=UTC)))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MODELS), some_tokens, moments)
def test_lines_add_up_and_nothing_is_negative(model: tuple[str, str], tokens: dict[str, int], at: int) -> None:
    """The amount is the exact sum of its lines, each line its quantity at its rate."""
    cost = BOOK.price(usage(*model, tokens, at=at))
    assert cost.amount is not None
    assert cost.amount >= 0
    assert sum((line.amount for line in cost.lines), Decimal(0)) == cost.amount
    assert all(line.amount * line.per == line.quantity * line.rate for line in cost.lines)
    assert {line.meter: line.quantity for line in cost.lines if line.meter != "requests"} == {
        k: v for k, v in tokens.items() if v
    }


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MODELS), some_tokens, st.sampled_from(TOKEN_METERS), st.integers(0, 400_000))
def test_more_tokens_never_cost_less(model: tuple[str, str], tokens: dict[str, int], meter: str, more: int) -> None:
    """The cost rises or stays with every single quantity, cliffs included."""
    less = BOOK.price(usage(*model, tokens)).amount
    grown = BOOK.price(usage(*model, {**tokens, meter: tokens.get(meter, 0) + more})).amount
    assert less is not None
    assert grown is not None
    assert less <= grown


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MODELS), some_tokens)
def test_no_usage_within_the_bounds_costs_more_than_the_estimate(
    model: tuple[str, str], tokens: dict[str, int]
) -> None:
    """However the tokens fall on caches and modalities, the upper bound holds."""
    cost = BOOK.price(usage(*model, tokens))
    directions = {name: METERS[name].direction for name in tokens}
    bound = BOOK.estimate(
        *model,
        input_tokens_upper=sum(n for name, n in tokens.items() if directions[name] == "input"),
        output_tokens_upper=sum(n for name, n in tokens.items() if directions[name] == "output"),
        at=AT,
    )
    assert cost.amount is not None
    assert bound.upper is not None
    assert cost.amount <= bound.upper


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(MODELS),
    some_tokens,
    st.dictionaries(st.sampled_from(TOKEN_METERS), st.integers(0, 9_999), max_size=3),
)
def test_bounds_of_an_estimate_enclose_it(
    model: tuple[str, str], tokens: dict[str, int], upper: dict[str, int]
) -> None:
    """Lower, amount and upper are in order whatever bounds the usage carries."""
    cost = BOOK.price(Usage(tokens, Sku(*model), AT, estimated=True, upper=upper))
    assert cost.lower is not None
    assert cost.amount is not None
    assert cost.upper is not None
    assert cost.lower <= cost.amount <= cost.upper


COUNTS = st.dictionaries(st.sampled_from(sorted(METERS)), st.integers(0, 10**7) | st.just(Decimal("0.5")), max_size=5)


@settings(max_examples=300)
@given(
    number=st.integers(min_value=0),
    quantities=COUNTS,
    tier=st.sampled_from(["", "default", "batch", "flex", "priority"]),
)
def test_the_quick_way_gives_the_integers_of_the_explained_one(number: int, quantities: Quantities, tier: str) -> None:
    """Over every entry of the bundled list: the same amount, lines, price, or an honest None where only `price` can tell."""
    entry = ENTRIES[number % len(ENTRIES)]
    used = usage(entry.provider, entry.model, quantities, tier=tier)
    quick = BOOK.amounts(entry.provider, entry.model, quantities, at=AT, tier=tier)
    cost = BOOK.price(used)
    if quick is None:
        assert cost.basis != "priced" or any(type(count) is not int for count in quantities.values()) or _has_fee(cost)
    else:
        assert quick == Amounts.of(cost)
        assert sum(amount for _, amount in quick.lines) == quick.amount


ENTRIES = list(load_bundled().entries())


def _has_fee(cost: Cost) -> bool:
    entry = BOOK.resolve(None if cost.price_id is None else cost.price_id.split("/")[1], str(cost.model))
    sheet = entry.sheet(AT)
    return isinstance(sheet, str) or not sheet.plain


def test_the_quick_way_leaves_sums_beyond_64_bits_to_the_other() -> None:
    """Nothing is stored that an int64 cannot hold."""
    used = usage("openai", "gpt-4o", {"input_tokens": 10**30})
    assert BOOK.amounts("openai", "gpt-4o", used.quantities, at=AT) is None
    with pytest.raises(OverflowError):
        Amounts.of(BOOK.price(used))
