"""Discounts, commitments, markup and exchange rates over the prices of other lists."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.charges import Amounts, Cost
from aifinops.clock import to_ns
from aifinops.pricing.book import PriceBook, load_bundled
from aifinops.pricing.lists import PriceList, from_table
from aifinops.pricing.schema import read_rows
from aifinops.usage import Quantities, Sku, Usage

AT = to_ns(datetime(2026, 11, 24, 12, tzinfo=UTC))
MILLION = {"input_tokens": 1_000_000}


def table(name: str = "acme", **tables: Any) -> PriceList:
    return from_table(read_rows({"id": name, **tables}, "price table", "test"))


def book(**tables: Any) -> PriceBook:
    return PriceBook([table(**tables), load_bundled()])


def cost(
    one: PriceBook,
    quantities: Quantities,
    model: str = "gpt-4o",
    *,
    provider: str = "openai",
    at: int = AT,
    so_far: Quantities | None = None,
    **sku: Any,
) -> Cost:
    found = one.price(Usage(quantities, Sku(provider, model, **sku), at), so_far or {})
    if found.amount is not None:
        assert sum((line.amount for line in found.lines), Decimal(0)) == found.amount
    return found


def day(text: str) -> int:
    return to_ns(datetime.fromisoformat(text).replace(tzinfo=UTC))


# Discounts ------------------------------------------------------------------------------------------------------------


def test_a_discount_is_taken_off_every_rate_and_the_list_amount_is_kept() -> None:
    """What was saved can be told from the cost alone."""
    found = cost(book(discounts=[{"provider": "openai", "percent": 10}]), MILLION)
    assert (found.amount, found.list_amount, found.basis) == (Decimal("2.25"), Decimal("2.5"), "priced")
    assert found.lines[0].rate == Decimal("2.25")
    assert "(x 0.9 discount 10 % of acme)" in found.explain()
    assert "$2.50 at list prices" in found.explain()
    assert found.price_id == "genai-prices/openai/gpt-4o+acme"


@pytest.mark.parametrize(
    ("scope", "discounted"),
    [
        ({}, ["openai/gpt-4o", "openai/gpt-4o-mini", "anthropic/claude-opus-5"]),
        ({"provider": "openai"}, ["openai/gpt-4o", "openai/gpt-4o-mini"]),
        ({"model": "gpt-4o-*"}, ["openai/gpt-4o-mini"]),
        ({"model": "GPT-4O"}, ["openai/gpt-4o"]),
        ({"provider": "azure.ai.openai"}, []),
        ({"service": "gpu"}, []),
        ({"tier": "standard"}, ["openai/gpt-4o", "openai/gpt-4o-mini", "anthropic/claude-opus-5"]),
        ({"tier": "batch"}, []),
        ({"from": "2026-11-25"}, []),
        (
            {"from": "2026-11-24", "until": "2026-11-25"},
            ["openai/gpt-4o", "openai/gpt-4o-mini", "anthropic/claude-opus-5"],
        ),
        ({"until": "2026-11-24"}, []),
    ],
)
def test_a_discount_is_for_what_it_names(scope: dict[str, Any], discounted: list[str]) -> None:
    """Provider, pattern of models, service, tier and dates narrow it; what is not named is anything."""
    one = book(discounts=[{**scope, "percent": "50"}])
    found = []
    for name in ("openai/gpt-4o", "openai/gpt-4o-mini", "anthropic/claude-opus-5"):
        provider, _, model = name.partition("/")
        paid = cost(one, MILLION, model, provider=provider)
        if paid.amount != paid.list_amount:
            found.append(name)
    assert found == discounted


def test_the_first_discount_that_fits_counts_and_they_do_not_add_up() -> None:
    """The special one is written before the general one."""
    one = book(discounts=[{"model": "gpt-4o", "percent": 20}, {"provider": "openai", "percent": 10}])
    assert cost(one, MILLION).amount == 2
    assert cost(one, MILLION, "gpt-4o-mini").amount == Decimal("0.135")


def test_a_discount_of_a_tier_is_on_top_of_the_price_of_the_tier() -> None:
    """Batch has its own price, and the contract takes something off that."""
    one = book(discounts=[{"tier": "batch", "percent": 10}])
    assert cost(one, MILLION, tier="batch").amount == Decimal("1.125")
    assert cost(one, MILLION).amount == Decimal("2.5")


def test_a_resellers_discount_is_not_the_makers() -> None:
    """Azure sells gpt-4o at OpenAI's price here; each has a contract of its own."""
    one = book(discounts=[{"provider": "azure", "percent": 10}])
    assert cost(one, MILLION, provider="azure.ai.openai").amount == Decimal("2.25")
    assert cost(one, MILLION).amount == Decimal("2.5")


def test_a_rate_in_the_contract_itself_is_contracted_already() -> None:
    """Discounts are for prices of lists with less authority: a user's list and the bundled one, not their own."""
    model = {"provider": "openai", "model": "gpt-4o", "rates": {"input_tokens": "2"}}
    discount = [{"provider": "openai", "percent": 10}]
    assert cost(book(models=[model], discounts=discount), MILLION).amount == 2
    layered = PriceBook([table(discounts=discount), table("user", models=[model]), load_bundled()])
    assert cost(layered, MILLION).amount == Decimal("1.8")
    assert cost(layered, MILLION, "gpt-4o-mini").amount == Decimal("0.135")


def test_all_of_the_price_can_be_taken_off() -> None:
    """A hundred per cent is priced at nothing, which is not free: the list amount is there."""
    found = cost(book(discounts=[{"percent": 100}]), MILLION)
    assert (found.amount, found.list_amount, found.basis) == (0, Decimal("2.5"), "priced")


def test_a_bound_before_the_call_has_the_discount() -> None:
    """A budget holds back what the call can cost under the contract."""
    one = book(discounts=[{"percent": 10}])
    bound, _ = one.bound("openai", "gpt-4o", input_tokens_upper=1_000_000, output_tokens_upper=0, at=AT)
    assert bound == Decimal("2.25")


# Discounts by volume --------------------------------------------------------------------------------------------------

VOLUME = [{"provider": "openai", "tiers": [{"above": 1000, "percent": 5}, {"above": 2000, "percent": 10}]}]


@pytest.mark.parametrize(
    ("spent", "amount"),
    [(0, "2.5"), (999, "2.425"), (1000, "2.375"), ("1998.5", "2.325"), (5000, "2.25")],
)
def test_a_volume_discount_is_for_what_lies_above_its_threshold(spent: int | str, amount: str) -> None:
    """A call over a threshold has each part at its own percentage; the caller tells what was spent before."""
    found = cost(book(discounts=VOLUME), MILLION, so_far={"spend": Decimal(spent)})
    assert (found.amount, found.list_amount) == (Decimal(amount), Decimal("2.5"))


def test_a_volume_discount_explains_itself() -> None:
    """The parts and their percentages are in the line."""
    found = cost(book(discounts=VOLUME), MILLION, so_far={"spend": 1999})
    assert found.lines[0].note == "less 5 % of 1 and 10 % of 1.5, volume discount of acme"


def test_a_volume_may_be_a_quantity() -> None:
    """Thresholds in tokens count every token meter, and tools have no part in it."""
    tiers = [{"above": 1_000_000, "percent": 50}]
    one = book(discounts=[{"percent": "0", "volume": "tokens", "tiers": tiers}])
    found = cost(one, {"input_tokens": 1_500_000, "output_tokens": 100_000, "web_search_requests": 1})
    assert [line.amount for line in found.lines] == [Decimal("3.125"), Decimal("0.5"), Decimal("0.01")]
    assert cost(one, MILLION, so_far={"tokens": 10**9}).amount == Decimal("1.25")


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.integers(1, 10**9), min_size=1, max_size=5),
    unit=st.sampled_from(["spend", "tokens", "input_tokens"]),
    base=st.integers(0, 30),
)
def test_a_month_in_parts_costs_what_the_month_costs(parts: list[int], unit: str, base: int) -> None:
    """Whoever tells the volume so far gets the same money however the month is cut, up to 1e-15 of rounding."""
    tiers = [{"above": 700, "percent": 33}, {"above": 10**8, "percent": 70}]
    one = book(discounts=[{"percent": base, "volume": unit, "tiers": tiers}])
    whole = cost(one, {"input_tokens": sum(parts)}).amount
    total, tokens, spend = Decimal(0), 0, Decimal(0)
    for part in parts:
        found = cost(one, {"input_tokens": part}, so_far={"spend": spend, "tokens": tokens, "input_tokens": tokens})
        assert found.amount is not None
        assert found.list_amount is not None
        total, tokens, spend = total + found.amount, tokens + part, spend + found.list_amount
    assert whole is not None
    assert 0 <= total - whole < Decimal("1e-15")


# Commitments ----------------------------------------------------------------------------------------------------------

PTU = {"name": "PTU", "provider": "azure", "model": "gpt-4o", "amount": "3100", "per": "month", "from": "2026-11-01"}


def test_a_call_that_a_commitment_covers_costs_nothing_more() -> None:
    """It is committed, with the commitment's name, and what it would have cost beside it."""
    one = book(commitments=[PTU])
    found = cost(one, MILLION, provider="azure")
    assert (found.amount, found.basis, found.list_amount) == (0, "committed", Decimal("2.5"))
    assert "commitment PTU: one more call costs nothing" in found.explain()
    assert cost(one, MILLION, provider="azure", at=day("2026-10-31")).basis == "priced"
    assert cost(one, MILLION).basis == "priced"


@pytest.mark.parametrize(
    ("change", "start", "end", "amount"),
    [
        ({}, "2026-12-01", "2027-01-01", "3100"),
        ({}, "2026-12-01", "2026-12-02", "100"),
        ({}, "2026-10-01", "2026-12-01", "3100"),
        ({"until": "2026-12-02"}, "2026-12-01", "2027-01-01", "100"),
        ({"per": "hour", "amount": "2"}, "2026-12-01T10:30", "2026-12-01T12:00", "3"),
        ({"per": "day", "amount": "24"}, "2026-12-01T10:00", "2026-12-01T11:00", "1"),
        ({"per": "year", "amount": "36500"}, "2027-02-01", "2027-02-02", "100"),
        ({"per": "term", "amount": "300", "until": "2026-12-01"}, "2026-11-05", "2026-11-06", "10"),
        ({}, "2026-12-02", "2026-12-01", "0"),
    ],
)
def test_a_commitment_is_amortised_over_its_period(change: dict[str, Any], start: str, end: str, amount: str) -> None:
    """Each period has its share, by the second, and nothing outside of the term."""
    [one] = book(commitments=[{**PTU, **change}]).commitments
    found = one.amortised(*(datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (start, end)))
    assert (found, one.currency) == (Decimal(amount), "USD")


# Markup ---------------------------------------------------------------------------------------------------------------


def test_a_markup_is_billed_on_and_never_in_the_amount() -> None:
    """List, contracted and billed amounts are three numbers."""
    found = cost(book(contract={"markup": 15}, discounts=[{"percent": 10}]), MILLION)
    assert (found.list_amount, found.amount, found.billed_amount) == (
        Decimal("2.5"),
        Decimal("2.25"),
        Decimal("2.5875"),
    )
    assert "$2.59 with markup" in found.explain()
    assert cost(book(contract={"markup": 15}), {"pages": 1}).billed_amount is None


# Exchange rates -------------------------------------------------------------------------------------------------------

RATES = [
    {"from": "USD", "to": "EUR", "rate": "0.9", "date": "2026-10-01"},
    {"from": "USD", "to": "EUR", "rate": "0.95", "date": "2026-11-01"},
]


@pytest.mark.parametrize(
    ("moment", "amount"),
    [("2026-10-01", "2.25"), ("2026-10-31T23:59", "2.25"), ("2026-11-01", "2.375"), ("2027-01-01", "2.375")],
)
def test_the_rate_of_the_day_or_the_nearest_before_it_converts(moment: str, amount: str) -> None:
    """A cost is in the currency that is wanted, by the user's own rates, and says by which."""
    found = cost(book(exchange=RATES), MILLION, at=day(moment))
    assert (found.amount, found.list_amount, found.currency) == (Decimal(amount), Decimal(amount), "EUR")
    assert "USD to EUR of 2026-1" in found.explain()


def test_without_a_rate_the_cost_is_unknown_and_says_what_to_add() -> None:
    """Nothing is fetched, and no rate is turned around."""
    found = cost(book(exchange=RATES), MILLION, at=day("2026-09-30"))
    assert (found.amount, found.basis) == (None, "unknown")
    assert 'add [[exchange]] from = "USD", to = "EUR", rate = "...", date = 2026-09-30' in found.notes[0]
    other_way = book(contract={"currency": "EUR"}, exchange=[{**RATES[0], "from": "EUR", "to": "USD"}])
    assert cost(other_way, MILLION).amount is None


def test_exchange_discount_and_factor_multiply() -> None:
    """Every factor is in the line, in its order."""
    discounts = [{"percent": 10, "from": "2026-01-01"}]
    found = cost(book(exchange=RATES, discounts=discounts), MILLION)
    assert found.amount == Decimal("2.5") * Decimal("0.95") * Decimal("0.9")
    assert found.list_amount == Decimal("2.375")
    assert found.lines[0].note == "x 0.95 USD to EUR of 2026-11-01; x 0.9 discount 10 % of acme"


# The whole book under a contract --------------------------------------------------------------------------------------

ENTRIES = list(load_bundled().entries())
CONTRACTS = [
    book(discounts=[{"percent": "12.5"}]),
    book(discounts=[{"percent": "33.333", "until": "2027-01-01"}], exchange=RATES, contract={"markup": 3}),
    book(discounts=VOLUME),
]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(min_value=0),
    st.dictionaries(
        st.sampled_from(["input_tokens", "cache_read_tokens", "output_tokens", "requests", "images"]),
        st.integers(0, 10**7),
    ),
    st.sampled_from(["", "batch", "flex", "provisioned"]),
    st.sampled_from(CONTRACTS),
)
def test_integers_and_explanation_agree_under_contracts(
    number: int, quantities: Quantities, tier: str, one: PriceBook
) -> None:
    """Over every entry of the bundled list: the same integers both ways, and never more than list price."""
    entry = ENTRIES[number % len(ENTRIES)]
    found = cost(one, quantities, entry.model, provider=entry.provider, tier=tier)
    quick = one.amounts(entry.provider, entry.model, quantities, at=AT, tier=tier)
    assert quick in (None, Amounts.of(found))
    if found.amount is not None and found.list_amount is not None:
        assert 0 <= found.amount <= found.list_amount


def test_a_discounted_call_keeps_the_quick_way() -> None:
    """A percentage and an exchange rate are in the integers of the sheet; only volumes need the caller."""
    for one in CONTRACTS[:2]:
        assert one.amounts("openai", "gpt-4o", MILLION, at=AT) is not None
        assert one.amounts("openai", "o3", MILLION, at=AT, tier="flex") is not None
    assert CONTRACTS[2].amounts("openai", "gpt-4o", MILLION, at=AT) is None
