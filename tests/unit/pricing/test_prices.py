"""Conditions, cliffs and compiled sheets of one model."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from aifinops.charges import CostLine
from aifinops.clock import to_ns
from aifinops.meters import METERS
from aifinops.pricing.prices import FALLBACK, Entry, Sheet, read_entry, tier_name
from aifinops.pricing.sheet import make_line


def at(text: str) -> int:
    return to_ns(datetime.fromisoformat(text).replace(tzinfo=UTC))


def entry(**row: Any) -> Entry:
    return read_entry({"model": "m", **row}, provider="p", list_id="l", source="s", as_of=None, currency="USD")


def sheet(one: Entry, moment: str = "2026-06-01T12:00", tier: str = "", region: str = "") -> Sheet:
    found = one.sheet(at(moment), tier, region)
    assert isinstance(found, Sheet), found
    return found


def amount(
    one: Entry, quantities: dict[str, int | Decimal], moment: str = "2026-06-01T12:00", tier: str = ""
) -> Decimal:
    lines, total, missing = sheet(one, moment, tier).lines(quantities)
    assert missing == ()
    assert sum((line.amount for line in lines), Decimal(0)) == total
    return total


def test_the_quick_way_to_make_a_line_makes_the_same_line() -> None:
    """Setting the slots directly gives what the constructor gives."""
    parts = ("input_tokens", 3, Decimal("2.5"), 1_000_000, Decimal("0.0000075"), "why")
    assert make_line(*parts) == CostLine(*parts)
    assert repr(make_line(*parts)) == repr(CostLine(*parts))


def test_a_cliff_bills_every_token_at_the_level_reached() -> None:
    """At the threshold the base price holds, one token above it the dearer price holds for all tokens, output included."""
    tiered = {
        "input_tokens": {"base": "1", "above": {"200000": "2"}},
        "output_tokens": {"base": "10", "above": {"200000": "15"}},
    }
    one = entry(prices=[{"rates": tiered}])
    assert amount(one, {"input_tokens": 200_000, "output_tokens": 100}) == Decimal("0.201")
    assert amount(one, {"input_tokens": 200_001, "output_tokens": 100}) == Decimal("0.401502")


def test_a_cliff_is_measured_by_all_input_tokens() -> None:
    """Cached and written tokens count towards the threshold."""
    tiered = {
        "input_tokens": {"base": "1", "above": {"1000": "2"}},
        "cache_read_tokens": {"base": "0.1", "above": {"1000": "0.2"}},
    }
    one = entry(prices=[{"rates": tiered}])
    assert amount(one, {"input_tokens": 600, "cache_read_tokens": 400}) == Decimal("0.00064")
    assert amount(one, {"input_tokens": 600, "cache_read_tokens": 401}) == Decimal("0.0012802")
    assert amount(one, {"input_tokens": 999, "output_tokens": 0, "cache_write_tokens": 2}) == Decimal("0.002002")


def test_several_cliffs_take_the_highest_reached() -> None:
    """Thresholds are read in numeric order, whatever the order of the file."""
    one = entry(prices=[{"rates": {"input_tokens": {"base": "1", "above": {"1000": "3", "200": "2"}}}}])
    assert [amount(one, {"input_tokens": n}) * 1_000_000 / n for n in (200, 201, 1000, 1001)] == [1, 2, 2, 3]


def test_the_price_of_the_moment_is_used() -> None:
    """The last price in force counts, from the first nanosecond of its start day in UTC."""
    one = entry(prices=[{"rates": {"input_tokens": "10"}}, {"from": "2025-06-10", "rates": {"input_tokens": "2"}}])
    million = {"input_tokens": 1_000_000}
    assert amount(one, million, "2025-06-09T23:59:59.999999") == 10
    assert amount(one, million, "2025-06-10T00:00") == 2
    assert sheet(one, "2025-06-10T00:00").price_id == "l/p/m@2025-06-10"


def test_validity_has_an_end() -> None:
    """A price that has ended and one that has not begun are not used; nothing in force is said in words."""
    one = entry(prices=[{"from": "2025-01-01", "until": "2025-02-01", "rates": {"input_tokens": "1"}}])
    assert amount(one, {"input_tokens": 1_000_000}, "2025-01-31T23:59") == 1
    for moment in ("2024-12-31T23:59", "2025-02-01T00:00"):
        assert "has no price for p/m at " in str(one.sheet(at(moment)))


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-23T00:59:59", 1),  # Monday
        ("2026-11-23T01:00", 2),
        ("2026-11-23T03:59:59", 2),
        ("2026-11-23T04:00", 1),
        ("2026-11-28T02:00", 1),  # Saturday
        ("2026-11-29T02:00", 1),  # Sunday
        ("2026-11-27T02:00", 2),  # Friday
    ],
)
def test_daily_windows_hold_on_their_weekdays(moment: str, expected: int) -> None:
    """A window is from inclusive to exclusive, in UTC, on the days it names."""
    peak = {"hours": ["01:00", "04:00"], "days": [0, 1, 2, 3, 4], "rates": {"input_tokens": "2"}}
    one = entry(prices=[{"rates": {"input_tokens": "1"}}, peak])
    assert amount(one, {"input_tokens": 1_000_000}, moment) == expected


@pytest.mark.parametrize(
    ("moment", "expected"), [("2026-01-01T23:00", 2), ("2026-01-02T01:59", 2), ("2026-01-02T02:00", 1)]
)
def test_a_window_may_cross_midnight(moment: str, expected: int) -> None:
    """An end before the start is on the next day."""
    one = entry(
        prices=[{"rates": {"input_tokens": "1"}}, {"hours": ["22:00", "02:00"], "rates": {"input_tokens": "2"}}]
    )
    assert amount(one, {"input_tokens": 1_000_000}, moment) == expected


def test_a_tier_overrides_meter_by_meter() -> None:
    """A variant that does not price cached tokens leaves them at the standard rate, and the first that prices a meter wins."""
    one = entry(
        prices=[{"rates": {"input_tokens": "2", "cache_read_tokens": "0.2", "output_tokens": "8"}}],
        variants=[
            {"tier": "batch", "rates": {"input_tokens": "1"}},
            {"tier": "batch", "rates": {"input_tokens": "9", "output_tokens": "4"}},
        ],
    )
    usage = {"input_tokens": 1_000_000, "cache_read_tokens": 1_000_000, "output_tokens": 1_000_000}
    assert amount(one, usage) == Decimal("10.2")
    assert amount(one, usage, tier="batch") == Decimal("5.2")
    assert sheet(one, tier="batch").price_id == "l/p/m+batch"


def test_an_unknown_tier_or_region_is_never_the_standard_price() -> None:
    """Without a price for what was served there is a sentence, not a sheet."""
    one = entry(
        prices=[{"rates": {"input_tokens": "2"}}],
        variants=[{"tier": "flex", "from": "2026-01-01", "rates": {"input_tokens": "1"}}],
    )
    assert "no price of tier 'priority' for p/m on 2026-06-01; it has @2026-01-01+flex" in str(
        one.sheet(at("2026-06-01"), "priority")
    )
    assert "no price of tier 'flex'" in str(one.sheet(at("2025-12-31"), "flex"))
    assert "region 'eu'" in str(one.sheet(at("2026-06-01"), "", "eu"))
    assert "tier 'flex' and region 'eu'" in str(one.sheet(at("2026-06-01"), "flex", "eu"))
    assert amount(one, {"input_tokens": 1_000_000}, "2026-01-01T00:00", "flex") == 1


def test_tier_and_region_are_one_key() -> None:
    """A price of a tier in a region is chosen for both together only."""
    one = entry(
        prices=[{"rates": {"input_tokens": "2"}}],
        variants=[{"tier": "flex", "region": "eu", "rates": {"input_tokens": "3"}}],
    )
    assert sheet(one, tier="flex", region="eu").lines({"input_tokens": 1_000_000})[1] == 3
    assert isinstance(one.sheet(0, "flex"), str)


def test_a_price_that_depends_on_what_usage_cannot_tell_is_no_price() -> None:
    """Meters of an undecidable context lose their rate, and what falls back to them too; the others keep theirs."""
    one = entry(
        prices=[{"rates": {"input_tokens": "2", "output_tokens": "4", "web_search_requests": "10"}}],
        variants=[{"when": {"route": "eu"}, "rates": {"output_tokens": "5"}}],
    )
    lines, total, missing = sheet(one).lines({"input_tokens": 1_000_000, "output_tokens": 1, "reasoning_tokens": 1})
    assert (total, missing) == (2, ("output_tokens", "reasoning_tokens"))
    assert [line.meter for line in lines] == ["input_tokens"]
    assert "output_tokens: the price depends on route=eu, which usage does not tell" in sheet(one).notes


def test_a_price_that_the_list_declares_unknown_is_said_so() -> None:
    """A condition whose price is missing hides the price that would otherwise hold."""
    one = entry(
        prices=[{"rates": {"input_tokens": "2"}}, {"hours": ["01:00", "02:00"], "unknown": "peak not published"}]
    )
    assert one.sheet(at("2026-01-01T01:30")) == "p/m: peak not published"
    assert amount(one, {"input_tokens": 1_000_000}, "2026-01-01T02:00") == 2


@pytest.mark.parametrize(
    ("meter", "priced", "source"),
    [
        ("cache_write_tokens", ["input_tokens"], "input_tokens"),
        ("cache_write_1h_tokens", ["input_tokens", "cache_write_tokens"], "cache_write_tokens"),
        ("cache_read_audio_tokens", ["input_tokens", "cache_read_tokens"], "cache_read_tokens"),
        ("cache_read_audio_tokens", ["input_tokens", "cache_read_tokens", "input_audio_tokens"], "input_audio_tokens"),
        ("reasoning_tokens", ["output_tokens"], "output_tokens"),
        ("output_audio_tokens", ["output_tokens"], "output_tokens"),
        ("reasoning_tokens", ["output_tokens", "reasoning_tokens"], "reasoning_tokens"),
    ],
)
def test_a_part_without_a_rate_is_billed_like_its_whole(meter: str, priced: list[str], source: str) -> None:
    """The nearest priced whole is used and the line says so."""
    one = entry(prices=[{"rates": {name: str(number + 1) for number, name in enumerate(priced)}}])
    [line] = sheet(one).lines({meter: 1_000_000})[0]
    assert line.rate == priced.index(source) + 1
    assert line.note == ("" if source == meter else f"at the {source} rate")


def test_fallbacks_stay_within_one_direction() -> None:
    """No input token is ever billed as output, and each fallback is a meter of the same family."""
    for meter, sources in FALLBACK.items():
        for source in sources:
            assert METERS[source].direction == METERS[meter].direction
            assert METERS[source].family == METERS[meter].family


def test_a_meter_without_any_rate_is_reported() -> None:
    """Output tokens of a model that prices only input have no price; counters that bill nothing are no gap."""
    one = entry(prices=[{"rates": {"input_tokens": "1"}}])
    lines, total, missing = sheet(one).lines(
        {"input_tokens": 1, "output_tokens": 5, "requests": 1, "tool_calls": 2, "pages": 0}
    )
    assert missing == ("output_tokens",)
    assert [line.meter for line in lines] == ["input_tokens"]
    assert total == Decimal("0.000001")


def test_a_request_fee_is_billed_once_even_when_requests_are_not_counted() -> None:
    """A list that prices each request prices this one."""
    one = entry(prices=[{"rates": {"input_tokens": "1", "requests": "5"}}])
    assert amount(one, {"input_tokens": 1_000_000}) == Decimal("1.005")
    assert amount(one, {"input_tokens": 1_000_000, "requests": 1}) == Decimal("1.005")
    assert amount(one, {"requests": 3}) == Decimal("0.015")


def test_a_least_quantity_is_billed() -> None:
    """Below the minimum the minimum is billed, and the line says both."""
    one = entry(prices=[{"rates": {"audio_seconds": {"base": "0.36", "per": 3600}}}], minimum={"audio_seconds": 10})
    [line] = sheet(one).lines({"audio_seconds": Decimal("2.5")})[0]
    assert (line.quantity, line.amount, line.note) == (10, Decimal("0.001"), "at least 10 are billed, 2.5 were used")
    assert amount(one, {"audio_seconds": 20}) == Decimal("0.002")


def test_a_rate_without_a_finite_decimal_is_rounded_at_the_eighteenth_place_only() -> None:
    """0.04 an hour is 0.0000111... a second: the error is below one attodollar."""
    one = entry(prices=[{"rates": {"audio_seconds": {"base": "0.04", "per": 3600}}}])
    exact = Decimal("0.04") * 100
    assert abs(amount(one, {"audio_seconds": 100}) * 3600 - exact) < Decimal("1e-14")
    assert amount(one, {"audio_seconds": 3600}) == Decimal("0.04")


def test_prices_with_many_digits_stay_exact() -> None:
    """A price that a float conversion left with eighteen places is multiplied as it stands."""
    one = entry(prices=[{"rates": {"input_tokens": "0.099999999999999995"}}])
    assert amount(one, {"input_tokens": 7}) == Decimal("7e-6") * Decimal("0.099999999999999995")


def test_the_callers_decimal_context_changes_nothing() -> None:
    """Money is computed in a context of our own."""
    from decimal import localcontext

    one = entry(prices=[{"rates": {"input_tokens": "1.234567"}}])
    with localcontext(prec=3):
        total = sheet(one).lines({"input_tokens": 987_654_321})[1]
    assert total == Decimal("987.654321") * Decimal("1.234567")


def test_free_is_free_in_every_meter() -> None:
    """A model that the list calls free costs nothing, whatever was counted and whatever the tier."""
    one = entry(free=True)
    assert sheet(one, tier="batch").lines({"input_tokens": 5, "pages": 2}) == ([], Decimal(0), ())


def test_no_price_at_all_is_said() -> None:
    """An entry without prices is not free."""
    assert entry().sheet(0) == "l knows p/m but gives no price for it"


def test_what_no_meter_counts_is_noted() -> None:
    """A unit that is priced by the list and counted by nobody appears in the notes."""
    one = entry(prices=[{"rates": {"pages": "1"}}], unmetered=["input_annotated_document_kpages"])
    assert sheet(one).notes == ("the list also prices input_annotated_document_kpages, which no meter counts",)


@pytest.mark.parametrize("tier", ["", "default", "Default", "auto", "standard", "on_demand"])
def test_spellings_of_the_standard_tier(tier: str) -> None:
    """These are all billed at the standard price."""
    assert tier_name(tier) == ""


def test_other_tiers_are_lower_case() -> None:
    """Google writes `FLEX`, OpenAI `flex`."""
    assert tier_name("FLEX") == "flex"


def test_the_form_of_a_compiled_list_has_texts_only() -> None:
    """JSON knows neither dates nor decimals: factors, charges, days and provenance are read from texts."""
    one = entry(
        prices=[
            {"rates": {"images": "0.04"}, "minimum_charge": "0.01"},
            {
                "rates": {"images": {"base": "2", "per": 100, "graduated": {"1000": "1"}}},
                "hours": ["08:00", "12:00"],
                "tz": "Asia/Tokyo",
                "holidays": ["2026-01-01"],
            },
        ],
        variants=[{"options": {"size": "512x512", "quality": "hd"}, "rates": {"images": "0.08"}}],
        adjust=[
            {"region": "eu", "multiply": "1.25", "from": "2026-01-01", "until": "2027-01-01", "meters": ["images"]}
        ],
        minimum_charge="0.02",
        as_of="2026-05-24",
        source="page",
        confidence="low",
        url="https://example.com",
        service="image",
    )
    assert (one.source, one.confidence, one.url, one.service) == ("page", "low", "https://example.com", "image")
    assert str(one.as_of) == "2026-05-24"
    assert amount(one, {"images": 1}) == Decimal("0.04")
    assert amount(one, {"images": 2000}, "2026-06-01T00:00") == 30
    assert amount(one, {"images": 1}, "2026-01-01T00:00") == Decimal("0.04")
    found = one.sheet(at("2026-06-01T12:00"), "", "eu", (("quality", "hd"), ("size", "512x512")))
    assert isinstance(found, Sheet)
    assert found.lines({"images": 1})[1] == Decimal("0.1")
    assert [price.minimum_charge for price in one.prices] == [Decimal("0.01"), Decimal("0.02")]


def test_a_fee_above_a_cliff_is_in_the_bound() -> None:
    """A request that may pass the threshold holds the dearer fee, also where there is none below."""
    one = entry(prices=[{"rates": {"input_tokens": "1", "requests": {"base": "0", "above": {"10": "5"}}}}])
    assert sheet(one).fee == Decimal("0.005")
    assert amount(one, {"input_tokens": 10}) == Decimal("0.00001")
    assert amount(one, {"input_tokens": 11}) == Decimal("0.005011")
