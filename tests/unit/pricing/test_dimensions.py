"""Tiers, regions and options that multiply, graduated prices, minimum charges, calendars, provisioned throughput."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aifinops.charges import Amounts, Cost, CostLine
from aifinops.clock import to_ns
from aifinops.meters import METERS
from aifinops.pricing.book import PriceBook
from aifinops.pricing.lists import PriceList, from_table
from aifinops.pricing.schema import read_rows
from aifinops.pricing.sheet import make_cost
from aifinops.usage import Quantities, Sku, Usage

AT = to_ns(datetime(2026, 11, 24, 12, tzinfo=UTC))
MILLION = {"input_tokens": 1_000_000}


def price_list(*models: dict[str, Any], **tables: Any) -> PriceList:
    rows = [{"provider": "p", "model": "m", **model} for model in models]
    return from_table(
        read_rows({"id": "mine", "source": "order form", "models": rows, **tables}, "price table", "test")
    )


def book(*models: dict[str, Any], **tables: Any) -> PriceBook:
    return PriceBook([price_list(*models, **tables)])


def cost(one: PriceBook, quantities: Quantities, *, at: str = "", so_far: Quantities | None = None, **sku: Any) -> Cost:
    moment = to_ns(datetime.fromisoformat(at).replace(tzinfo=UTC)) if at else AT
    usage = Usage(quantities, Sku("p", "m", **sku), moment)
    found = one.price(usage, so_far or {})
    if found.amount is not None:
        assert sum((line.amount for line in found.lines), Decimal(0)) == found.amount
    if not so_far and found.basis == "priced":
        quick = one.amounts("p", "m", quantities, at=moment, **sku)
        assert quick in (None, Amounts.of(found))
    return found


def test_the_quick_way_to_make_a_cost_makes_the_same_cost() -> None:
    """Setting the slots directly gives what the constructor gives, field by field."""
    sheet = price_list({"rates": {"input_tokens": "1"}, "url": "https://x", "confidence": "low"}).find("p", "m")
    assert sheet is not None
    found = sheet.sheet(AT)
    assert not isinstance(found, str)
    line = CostLine("input_tokens", 1, Decimal(1), 1_000_000, Decimal("0.000001"))
    made = make_cost(found, Decimal(3), "estimated", Decimal(1), Decimal(4), (line,), Decimal(3), ("why",))
    assert made == Cost(
        amount=Decimal(3),
        currency="USD",
        basis="estimated",
        lower=Decimal(1),
        upper=Decimal(4),
        lines=(line,),
        price_id="mine/p/m",
        as_of=None,
        source="order form",
        model="m",
        notes=("why",),
        list_amount=Decimal(3),
        confidence="low",
        url="https://x",
    )
    assert repr(made).count("=") == repr(Cost(None)).count("=") + repr(line).count("=")


# Provenance -----------------------------------------------------------------------------------------------------------


def test_a_row_may_have_provenance_of_its_own() -> None:
    """Source, date, confidence and page of a row win over those of its list, and are told."""
    row = {
        "rates": {"input_tokens": "1"},
        "source": "vendor's page",
        "as_of": "2026-05-24",
        "confidence": "low",
        "url": "https://example.com/prices",
    }
    found = cost(book(row), MILLION)
    assert (found.source, found.confidence, found.url) == ("vendor's page", "low", "https://example.com/prices")
    assert str(found.as_of) == "2026-05-24"
    text = found.explain()
    assert "source vendor's page (confidence low)" in text
    assert "read from https://example.com/prices" in text
    unknown = cost(book(row), {"pages": 1})
    assert (unknown.amount, unknown.source, unknown.confidence) == (None, "vendor's page", "low")
    assert cost(book(row), MILLION, tier="flex").url == "https://example.com/prices"


# Orthogonal dimensions ------------------------------------------------------------------------------------------------

GRID = {
    "rates": {"input_tokens": "5", "output_tokens": "25", "web_search_requests": "10"},
    "variants": [{"tier": "batch", "rates": {"input_tokens": "2.5", "output_tokens": "12.5"}}],
    "adjust": [
        {"region": "us", "multiply": "1.1", "note": "US-only inference", "source": "https://example.com/geo"},
        {"tier": "fast", "multiply": 2},
    ],
}


@pytest.mark.parametrize(
    ("tier", "region", "amount"),
    [
        ("", "", "5"),
        ("", "us", "5.5"),
        ("batch", "", "2.5"),
        ("batch", "us", "2.75"),
        ("fast", "", "10"),
        ("fast", "us", "11"),
    ],
)
def test_tier_and_region_multiply_without_a_table_of_their_product(tier: str, region: str, amount: str) -> None:
    """Each dimension is named once; a variant and a factor, or two factors, work together."""
    assert cost(book(GRID), MILLION, tier=tier, region=region).amount == Decimal(amount)


@pytest.mark.parametrize(("tier", "region"), [("flex", ""), ("", "eu"), ("batch", "eu"), ("flex", "us")])
def test_what_neither_a_variant_nor_a_factor_names_is_unknown(tier: str, region: str) -> None:
    """Half of the answer is no answer."""
    found = cost(book(GRID), MILLION, tier=tier, region=region)
    assert (found.amount, found.basis) == (None, "unknown")
    assert "it has +batch, +fast, +us" in found.notes[0]


def test_a_factor_is_told_in_the_line_and_its_source_in_the_notes() -> None:
    """`explain()` says what was multiplied and why."""
    found = cost(book(GRID), MILLION, region="us")
    assert "x $5.50 per 1,000,000 = $5.500000000  (x 1.1 region us)" in found.explain()
    assert found.notes == ("x 1.1 region us: US-only inference, source https://example.com/geo",)
    assert found.price_id == "mine/p/m+us"


def test_a_factor_leaves_tools_alone_unless_it_names_them() -> None:
    """A search costs the same everywhere; `meters` says otherwise."""
    assert cost(book(GRID), {"web_search_requests": 1000}, region="us").amount == 10
    named = {
        **GRID,
        "adjust": [{"region": "us", "multiply": "1.1", "meters": ["output_tokens", "web_search_requests"]}],
    }
    assert cost(book(named), {"web_search_requests": 1000, **MILLION}, region="us").amount == 16
    tokens = {**GRID, "adjust": [{"region": "us", "multiply": "1.1", "meters": ["tokens"]}]}
    assert cost(book(tokens), {"web_search_requests": 1000, **MILLION}, region="us").amount == Decimal("15.5")


def test_an_exact_variant_wins_over_a_factor() -> None:
    """Who writes the price of tier and region together means it."""
    exact = {**GRID, "variants": [*GRID["variants"], {"tier": "batch", "region": "us", "rates": {"input_tokens": "3"}}]}
    assert cost(book(exact), MILLION, tier="batch", region="us").amount == 3
    assert cost(book(exact), MILLION, tier="batch").amount == Decimal("2.5")


def test_factors_have_dates_and_the_last_one_in_force_counts() -> None:
    """A factor of another day does not hold, and then the price is unknown again."""
    dated = {
        "rates": {"input_tokens": "10"},
        "adjust": [
            {"region": "eu", "multiply": "1.1", "from": "2026-01-01"},
            {"region": "eu", "multiply": "1.2", "from": "2026-06-01", "until": "2026-07-01"},
        ],
    }
    one = book(dated)
    amounts = [
        cost(one, MILLION, region="eu", at=day).amount
        for day in ("2025-12-31", "2026-01-01", "2026-06-30", "2026-07-01")
    ]
    assert amounts == [None, 11, 12, 11]


IMAGES = {
    "rates": {"images": "0.04"},
    "variants": [
        {"options": {"quality": "hd", "size": "1024x1024"}, "rates": {"images": "0.08"}},
        {"options": {"size": "1024x1024"}, "rates": {"images": "0.04"}},
        {"options": {"size": "1024x1792"}, "rates": {"images": "0.08"}},
    ],
    "adjust": [{"options": {"quality": "hd"}, "multiply": "1.5"}],
}


@pytest.mark.parametrize(
    ("options", "amount"),
    [
        ((), "0.04"),
        ((("size", "1024x1024"),), "0.04"),
        ((("quality", "hd"), ("size", "1024x1024")), "0.08"),
        ((("quality", "hd"), ("size", "1024x1792")), "0.12"),
        ((("size", "64x64"),), None),
        ((("quality", "odd"), ("size", "1024x1792")), None),
    ],
)
def test_an_image_is_priced_by_size_and_quality(options: tuple[tuple[str, str], ...], amount: str | None) -> None:
    """Options choose a variant as tiers do, exact ones first, and are unknown as tiers are."""
    assert cost(book(IMAGES), {"images": 1}, options=options).amount == (None if amount is None else Decimal(amount))


def test_the_bound_before_the_call_knows_the_region() -> None:
    """A bound at the standard price would not hold where inference costs more."""
    one = book(GRID)
    bound, _ = one.bound("p", "m", input_tokens_upper=1000, output_tokens_upper=0, at=AT, region="us")
    assert bound == Decimal("0.0055")
    dearest = one.dearest("p", input_tokens_upper=1_000_000, output_tokens_upper=0)
    assert dearest >= 11


# Graduated prices -----------------------------------------------------------------------------------------------------

STORAGE = {"rates": {"gb_months": {"base": "0.023", "graduated": {"51200": "0.022", "512000": "0.021"}}}}


def test_each_step_of_a_graduated_price_is_billed_at_its_own() -> None:
    """What is below a threshold keeps its price: S3's first 50 TB do not get cheaper because of the next."""
    found = cost(book(STORAGE), {"gb_months": 600_000})
    assert [(line.quantity, line.rate) for line in found.lines] == [
        (51_200, Decimal("0.023")),
        (460_800, Decimal("0.022")),
        (88_000, Decimal("0.021")),
    ]
    assert found.amount == Decimal("1177.6") + Decimal("10137.6") + Decimal(1848)
    assert "(above 51,200)" in found.explain()


def test_a_graduated_price_goes_on_from_the_volume_so_far() -> None:
    """Two halves of a month cost what the month costs."""
    one = book(STORAGE)
    first = cost(one, {"gb_months": Decimal("50000.5")})
    second = cost(one, {"gb_months": Decimal("9999.5")}, so_far={"gb_months": Decimal("50000.5")})
    assert first.amount is not None
    assert second.amount is not None
    assert first.amount + second.amount == cost(one, {"gb_months": 60_000}).amount


def test_the_bound_of_a_graduated_price_is_its_dearest_step() -> None:
    """Steps may rise as well."""
    one = book({"rates": {"input_tokens": {"base": "1", "graduated": {"10": "3"}}}})
    bound, _ = one.bound("p", "m", input_tokens_upper=1_000_000, output_tokens_upper=0, at=AT)
    assert bound == 3


# Minimum charges ------------------------------------------------------------------------------------------------------


def test_a_request_costs_at_least_its_minimum_charge() -> None:
    """The difference is a line of its own, for each request; a larger amount is left as it is."""
    one = book({"rates": {"characters": "10"}, "minimum_charge": "0.001"})
    small = cost(one, {"characters": 10})
    assert small.amount == Decimal("0.001")
    assert small.lines[-1].note == "up to the minimum charge of $0.00100 a request"
    assert cost(one, {"characters": 10, "requests": 3}).amount == Decimal("0.003")
    assert cost(one, {"characters": 1_000_000}).amount == 10
    assert cost(one, {}).amount == 0
    assert one.dearest("p", input_tokens_upper=0, output_tokens_upper=0) == Decimal("0.001")


# Calendars ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "amount"),
    [
        ("2026-11-24T00:59", 1),  # Tuesday 08:59 in Shanghai
        ("2026-11-24T01:00", 2),  # 09:00
        ("2026-11-24T09:59", 2),  # 17:59
        ("2026-11-24T10:00", 1),  # 18:00
        ("2026-11-28T02:00", 1),  # Saturday
        ("2026-10-01T02:00", 1),  # National Day
        ("2026-10-02T02:00", 2),
    ],
)
def test_windows_have_a_clock_and_holidays(at: str, amount: int) -> None:
    """Peak hours are those of the provider's city, on its working days."""
    peak = {
        "hours": ["09:00", "18:00"],
        "days": [0, 1, 2, 3, 4],
        "tz": "Asia/Shanghai",
        "holidays": ["2026-10-01"],
        "rates": {"input_tokens": "2"},
    }
    assert cost(book({"prices": [{"rates": {"input_tokens": "1"}}, peak]}), MILLION, at=at).amount == amount


def test_a_clock_that_changes_to_summer_time_is_followed() -> None:
    """06:00 in Berlin is 05:00 UTC in winter and 04:00 in summer."""
    night = {"hours": ["22:00", "06:00"], "tz": "Europe/Berlin", "rates": {"input_tokens": "1"}}
    one = book({"prices": [{"rates": {"input_tokens": "2"}}, night]})
    assert [cost(one, MILLION, at=f"2026-{day}T04:30").amount for day in ("01-15", "07-15")] == [1, 2]


# Provisioned throughput -----------------------------------------------------------------------------------------------


def test_provisioned_throughput_costs_nothing_more_and_says_so() -> None:
    """The capacity is paid for by the hour: the call is committed, with its list price beside it."""
    found = cost(book(GRID), MILLION, tier="provisioned")
    assert (found.amount, found.basis, found.lower, found.upper, found.list_amount) == (0, "committed", 0, 0, 5)
    assert "one more call costs nothing" in found.explain()
    assert found.price_id == "mine/p/m+provisioned"
    bound = book(GRID).bound("p", "m", input_tokens_upper=10, output_tokens_upper=10, at=AT, tier="provisioned")
    assert bound == (0, "USD")


def test_provisioned_throughput_of_an_unlisted_model_costs_nothing_more_either() -> None:
    """Whatever its price would be, the provider told that this call was served by capacity paid for already."""
    found = PriceBook([price_list(GRID)]).price(Usage(MILLION, Sku("p", "other", tier="Provisioned"), AT))
    assert (found.amount, found.basis, found.list_amount) == (0, "committed", None)


def test_a_list_may_say_that_a_deployment_is_provisioned() -> None:
    """Azure's provisioned deployments answer with no tier; the row says it."""
    found = cost(book({"provisioned": True, "rates": {"input_tokens": "2"}}), MILLION)
    assert (found.amount, found.basis, found.list_amount) == (0, "committed", 2)
    assert cost(book({"provisioned": True}), MILLION).list_amount is None


def test_a_variant_for_the_provisioned_tier_is_a_price_like_any_other() -> None:
    """Who bills provisioned calls all the same writes what they cost."""
    one = book({"rates": {"input_tokens": "2"}, "variants": [{"tier": "provisioned", "rates": {"input_tokens": "1"}}]})
    found = cost(one, MILLION, tier="provisioned")
    assert (found.amount, found.basis) == (1, "priced")


# Properties -----------------------------------------------------------------------------------------------------------

money = st.decimals("0", "1000", places=6)
thresholds = st.integers(1, 10**6)
rate = st.one_of(
    money.map(lambda base: {"base": str(base)}),
    st.builds(
        lambda base, steps, per: {
            "base": str(base),
            "per": per,
            "graduated": {str(n): str(p) for n, p in steps.items()},
        },
        money,
        st.dictionaries(thresholds, money, min_size=1, max_size=3),
        st.sampled_from([1, 3, 60, 3600, 1000, 1_000_000]),
    ),
    st.builds(
        lambda base, extra, n: {"base": str(base), "above": {str(n): str(base + extra)}}, money, money, thresholds
    ),
)
SOME = ["input_tokens", "cache_read_tokens", "output_tokens", "requests", "images", "gpu_seconds", "gb_months"]
models = st.fixed_dictionaries(
    {"rates": st.dictionaries(st.sampled_from(SOME), rate, min_size=1)},
    optional={
        "minimum_charge": money,
        "adjust": st.lists(
            st.fixed_dictionaries({"region": st.just("us"), "multiply": st.decimals("0", "3", places=3)}), max_size=2
        ),
    },
)
counts = st.dictionaries(
    st.sampled_from(sorted(METERS)), st.integers(0, 10**7) | st.decimals("0", "100000", places=4), max_size=5
)


@settings(max_examples=250, deadline=None)
@given(models, counts, st.sampled_from(["", "us"]), counts)
def test_both_ways_of_pricing_agree_on_any_price_table(
    model: dict[str, Any], quantities: Quantities, region: str, so_far: Quantities
) -> None:
    """Lines add up exactly, nothing is negative, and the integers are those of the explained cost."""
    one = book(model)
    found = cost(one, quantities, region=region)
    assert all(line.amount >= 0 for line in found.lines)
    later = cost(one, quantities, region=region, so_far=so_far)
    assert (later.amount is None) == (found.amount is None)
    if found.amount is not None:
        stored = Amounts.of(found)
        assert stored.amount is not None
        assert 0 <= Decimal(stored.amount) / 10**9 - found.amount < Decimal("1e-9")
        for line in found.lines:
            exact = Fraction(line.quantity) * Fraction(line.rate) / line.per
            assert exact <= Fraction(line.amount) < exact + Fraction(1, 10**18)


@settings(max_examples=250, deadline=None)
@given(models, counts, st.sampled_from(SOME), st.integers(0, 10**6), st.sampled_from(["", "us"]))
def test_more_of_anything_never_costs_less_on_any_price_table(
    model: dict[str, Any], quantities: Quantities, meter: str, more: int, region: str
) -> None:
    """Steps, cliffs, minimum charges and factors are monotone in each quantity."""
    one = book(model)
    less = cost(one, quantities, region=region)
    grown = cost(one, {**quantities, meter: quantities.get(meter, 0) + more}, region=region)
    if less.amount is not None and grown.amount is not None:
        assert less.amount <= grown.amount


@settings(max_examples=250, deadline=None)
@given(
    models,
    st.dictionaries(
        st.sampled_from([name for name, row in METERS.items() if row.family == "tokens"]),
        st.integers(0, 10**6),
        max_size=5,
    ),
    st.sampled_from(["", "us"]),
    st.decimals("0", "100", places=1),
)
# So little at so small a discount that both amounts are the same nano-unit.
@example({"rates": {"input_tokens": {"base": "0.000001"}}}, {"input_tokens": 1}, "", Decimal("0.1"))
def test_the_bound_before_the_call_holds_on_any_price_table(
    model: dict[str, Any], tokens: dict[str, int], region: str, percent: Decimal
) -> None:
    """No request within the token bounds costs more than what was held for it, under a discount and an exchange rate too."""
    rate = {"from": "USD", "to": "EUR", "rate": "0.93", "date": "2026-01-01"}
    one = PriceBook(
        [
            from_table(read_rows({"id": "c", "discounts": [{"percent": percent}], "exchange": [rate]}, "t", "t")),
            price_list(model),
        ]
    )
    found = cost(one, tokens, region=region)
    directions = {name: METERS[name].direction for name in tokens}
    bound, currency = one.bound(
        "p",
        "m",
        input_tokens_upper=sum(n for name, n in tokens.items() if directions[name] == "input"),
        output_tokens_upper=sum(n for name, n in tokens.items() if directions[name] == "output"),
        at=AT,
        region=region,
    )
    if found.amount is not None and bound is not None:
        assert currency == found.currency == "EUR"
        assert found.amount <= bound + Decimal("1e-16")
        assert found.list_amount is not None
        assert found.amount <= found.list_amount
