"""Tokens on GPUs of one's own: exact prices, break-even, and refusal of what cannot be."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aifinops as af
from aifinops.errors import ConfigurationError
from aifinops.pricing.book import PriceBook, load_bundled
from aifinops.pricing.lists import from_table
from aifinops.pricing.schema import read_rows
from aifinops.pricing.selfhosted import SelfHosted, self_hosted

GPUS = {
    "id": "gpus",
    "date": "2026-05-24",
    "source": "vendor's page",
    "models": [
        {
            "provider": "lambda",
            "model": "H100",
            "service": "gpu",
            "rates": {"gpu_seconds": "3.00"},
            "variants": [{"tier": "spot", "rates": {"gpu_seconds": "1.20"}}],
        },
        {"provider": "cloud", "model": "gpt-free", "free": True},
        {"provider": "cloud", "model": "euro", "currency": "EUR", "rates": {"input_tokens": 1, "output_tokens": 1}},
        {
            "provider": "cloud",
            "model": "steep",
            "rates": {"input_tokens": {"base": 1, "above": {"1": 9}}, "output_tokens": 4, "requests": 50},
        },
    ],
}
BOOK = PriceBook([from_table(read_rows(GPUS, "price table", "test")), load_bundled()])


def hosted(**change: Any) -> SelfHosted:
    given_ = {"gpu": "H100", "count": 8, "tokens_per_second": 2500, "utilisation": "0.5", **change}
    return self_hosted(BOOK, **given_)


def test_the_price_of_a_token_is_the_hour_over_its_tokens() -> None:
    """8 GPUs at $3 an hour that write 2,500 tokens a second half of the time: $24 for 4.5 million tokens."""
    one = hosted()
    assert (one.per_hour, one.per_month) == (24, 17520)
    assert one.per_million_output == Decimal("5.333333333333333333333333333")
    assert one.per_million is None
    assert (one.source, str(one.as_of), one.currency) == ("vendor's page", "2026-05-24", "USD")


def test_prompts_share_the_cost_when_their_throughput_is_known() -> None:
    """The same hour over all the tokens that were served."""
    one = hosted(input_tokens_per_second=7500)
    assert one.per_million == Decimal(24) / 18
    assert one.per_million_output == hosted().per_million_output


def test_the_hour_is_found_by_provider_and_tier_or_given() -> None:
    """A price that the caller passes wins over every list."""
    assert hosted(tier="spot", provider="lambda").per_hour == Decimal("9.6")
    given_ = hosted(usd_per_gpu_hour=2.5, gpu="anything")
    assert (given_.per_hour, given_.source, given_.as_of) == (20, "given", None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gpu": "H900"}, r"no hourly price of 'H900'.*Pass usd_per_gpu_hour"),
        ({"gpu": "H100", "region": "mars"}, "no price of region 'mars'"),
        ({"gpu": "gpt-4o"}, "no rate for gpu_seconds"),
        ({"gpu": " "}, "must name a device"),
        ({"count": 0}, "count=0 must be a whole number"),
        ({"count": True}, "count=True"),
        ({"count": 1.5}, r"count=1\.5"),
        ({"utilisation": 60}, "write 0.6 for 60 %"),
        ({"utilisation": 0}, "utilisation=0 must be above 0"),
        ({"tokens_per_second": -1}, "tokens_per_second=-1 must be above 0"),
        ({"tokens_per_second": float("nan")}, "tokens_per_second must be finite"),
        ({"tokens_per_second": "fast"}, "tokens_per_second must be a number"),
        ({"input_tokens_per_second": 0}, "input_tokens_per_second=0"),
        ({"usd_per_gpu_hour": 0}, "usd_per_gpu_hour=0 must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(change: dict[str, Any], named: str) -> None:
    """Each message names the value and what to write."""
    with pytest.raises(ConfigurationError, match=named):
        hosted(**change)


def test_break_even_is_where_the_months_cost_the_same() -> None:
    """$17,520 a month against gpt-4o at $2.50 in and $10 out, four of five tokens read: $4.00 a million."""
    found = hosted().break_even("gpt-4o", provider="openai", input_share="0.8")
    assert found.api_per_million == 4
    assert found.tokens_per_month == 4_380_000_000
    capacity = 2500 * 5 * 3600 * 730
    assert found.utilisation == Decimal(4_380_000_000) / capacity
    assert (found.pays, found.pays_now) == (True, True)


def test_break_even_out_of_reach_is_said() -> None:
    """A cheap API needs more tokens than the GPUs can serve."""
    found = hosted().break_even("gpt-4o-mini", provider="openai", input_share=0)
    assert found.utilisation is not None
    assert found.utilisation > 1
    assert (found.pays, found.pays_now) == (False, False)
    busy = hosted(utilisation="0.1").break_even("gpt-4o", provider="openai", input_share="0.8")
    assert (busy.pays, busy.pays_now) == (True, False)


def test_break_even_takes_the_share_of_the_throughputs() -> None:
    """Who measured both has told the mix."""
    one = hosted(input_tokens_per_second=10_000)
    assert one.break_even("gpt-4o", provider="openai") == one.break_even("gpt-4o", provider="openai", input_share="0.8")


def test_nothing_pays_against_a_free_api() -> None:
    """There is no number of tokens that makes a GPU cheaper than nothing."""
    found = hosted().break_even("gpt-free", provider="cloud", input_share="0.5")
    assert (found.tokens_per_month, found.utilisation, found.pays) == (None, None, False)


def test_break_even_looks_at_tokens_and_not_at_cliffs_or_fees() -> None:
    """A single fresh token of each kind is asked for; what a request costs besides is not a token's price."""
    assert hosted().break_even("steep", provider="cloud", input_share="0.5").api_per_million == Decimal("2.5")


@pytest.mark.parametrize(
    ("model", "share", "named"),
    [
        ("gpt-4o", 1, "input_share=1 must be from 0 to below 1"),
        ("gpt-4o", "-0.1", "input_share='-0.1'"),
        ("gpt-4o", None, "needs input_share=0.8"),
        ("gpt-99", "0.5", "has no price of input and output tokens.*no price for model 'gpt-99'"),
        ("H100", "0.5", "no rate for input_tokens, output_tokens"),
        ("euro", "0.5", "priced in EUR, the GPUs in USD"),
    ],
)
def test_break_even_refuses_what_cannot_be_compared(model: str, share: Any, named: str) -> None:
    """An unknown price is no price to beat."""
    with pytest.raises(ConfigurationError, match=named):
        hosted().break_even(model, input_share=share)


@given(
    tokens=st.decimals("0.1", "10000", places=2),
    busy=st.decimals("0.001", "1", places=3),
    hour=st.decimals("0.01", "50", places=2),
    count=st.integers(1, 64),
)
def test_an_hour_of_its_tokens_costs_the_hour(tokens: Decimal, busy: Decimal, hour: Decimal, count: int) -> None:
    """A full hour at the given load, priced call by call through the registered price, adds up to the GPUs' hour, never below."""
    one = hosted(tokens_per_second=tokens, utilisation=busy, usd_per_gpu_hour=hour, count=count)
    row = one.to_price("mine")
    rate = row["prices"][0]["rates"]["output_tokens"]
    served = tokens * 3600 * busy
    assert rate["base"] / rate["per"] * served == pytest.approx(one.per_hour)
    assert rate["base"] * served == one.per_hour * rate["per"]


def test_calls_of_a_self_hosted_model_are_priced_by_it() -> None:
    """`register_price(**it.to_price(...))` is all there is to do, and the cost says how it came about."""
    one = af.price_self_hosted("H100", count=2, tokens_per_second=1000, utilisation=0.5, usd_per_gpu_hour="2.70")
    af.register_price(**one.to_price("llama-house"))
    cost = af.price("llama-house", provider="local", output_tokens=1_000_000, input_tokens=5_000_000)
    assert cost.amount == 3
    assert cost.source == "2 x H100 at $2.70 an hour (given), 1000 output tokens a second, 50 % utilised"
    blended = af.price_self_hosted(
        "H100", tokens_per_second=1000, input_tokens_per_second=1000, utilisation=1, usd_per_gpu_hour="3.6"
    )
    af.register_price(**blended.to_price("llama-house"))
    assert af.price("llama-house", output_tokens=10**6, cache_read_tokens=10**6).amount == 1


def test_the_moment_chooses_the_price_of_the_gpu() -> None:
    """`at` and `provider` reach the price list."""
    af.register_price("H100", provider="lab", service="gpu", prices=[
        {"rates": {"gpu_seconds": 4}}, {"from": "2027-01-01", "rates": {"gpu_seconds": 2}},
    ])  # fmt: skip
    later = datetime(2027, 2, 1, tzinfo=UTC)
    one = af.price_self_hosted("H100", provider="lab", tokens_per_second=1, utilisation=1, at=later)
    assert one.per_hour == 2
