"""What differs between two price lists."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aifinops.clock import to_ns
from aifinops.pricing.changes import changes
from aifinops.pricing.lists import PriceList, bundled_lists, from_table

NOON = to_ns(datetime(2026, 11, 24, 12, tzinfo=UTC))
METERS = ("input_tokens", "output_tokens", "cache_read_tokens", "requests")


def listed(*models: Mapping[str, Any], currency: str = "USD") -> PriceList:
    """A list of these rows."""
    rows = [{"provider": "acme", **row} for row in models]
    head = {"id": "own", "version": "", "date": None, "source": "test", "currency": currency}
    return from_table({**head, "models": rows})


def priced(model: str = "m", **more: Any) -> dict[str, Any]:
    """A row with one standard price unless it says otherwise."""
    return {"model": model, "prices": [{"rates": {"input_tokens": "2", "output_tokens": "8"}}], **more}


def told(old: PriceList, new: PriceList) -> list[tuple[str, str, str, str]]:
    """(price, before, after, percent) of what changed."""
    return [(one.meter, one.before, one.after, one.percent) for one in changes(old, new, at=NOON)]


def test_models_that_came_and_went() -> None:
    """Each is named once; the prices of a model that only one list has are not told one by one."""
    found = changes(listed(priced("gone"), priced("same")), listed(priced("same"), priced("new")), at=NOON)
    assert [(one.kind, one.model, one.meter) for one in found] == [("added", "new", ""), ("removed", "gone", "")]


def test_a_price_that_moved_came_or_went() -> None:
    """With plain digits and the share; nothing is called zero that is not there."""
    new = priced(prices=[{"rates": {"input_tokens": "2.50", "cache_read_tokens": "0.1"}}])
    assert told(listed(priced()), listed(new)) == [
        ("input_tokens", "2", "2.5", "+25.0 %"),
        ("cache_read_tokens", "", "0.1", ""),
        ("output_tokens", "8", "", ""),
    ]


def test_the_same_price_for_another_quantity_is_no_change() -> None:
    """0.36 an hour is 0.006 a minute; a quotient without end is compared exactly and shown rounded."""
    hour = priced(prices=[{"rates": {"audio_seconds": {"base": "1", "per": 3600}}}])
    minutes = priced(prices=[{"rates": {"audio_seconds": {"base": "3", "per": 10800}}}])
    assert told(listed(hour), listed(minutes)) == []
    dearer = priced(prices=[{"rates": {"audio_seconds": {"base": "2", "per": 3600}}}])
    [(_, before, after, percent)] = told(listed(hour), listed(dearer))
    assert percent == "+100.0 %"
    assert max(len(before), len(after)) <= 16


def test_prices_of_other_hours_of_the_day_are_compared_too() -> None:
    """The comparison does not depend on the hour at which it is made."""
    night = {"hours": ["01:00", "04:00"], "days": [0, 1, 2, 3, 4], "rates": {"input_tokens": "1"}}
    cheaper = {**night, "rates": {"input_tokens": "0.5"}}
    standard = {"rates": {"input_tokens": "2"}}
    old, new = listed(priced(prices=[standard, night])), listed(priced(prices=[standard, cheaper]))
    assert told(old, new) == [("input_tokens 01:00-04:00 UTC Mon-Fri", "1", "0.5", "-50.0 %")]


def test_a_variant_keeps_its_name_when_its_date_changes() -> None:
    """`+batch` since another day at the same price is no change, at another price it is one."""
    old = priced(variants=[{"tier": "batch", "from": "2026-01-01", "rates": {"input_tokens": "1"}}])
    same = priced(variants=[{"tier": "batch", "from": "2026-02-01", "rates": {"input_tokens": "1"}}])
    other = priced(variants=[{"tier": "batch", "from": "2026-02-01", "rates": {"input_tokens": "0.9"}}])
    assert told(listed(old), listed(same)) == []
    assert told(listed(old), listed(other)) == [("input_tokens +batch", "1", "0.9", "-10.0 %")]


def test_of_two_variants_alike_the_one_that_is_billed_counts() -> None:
    """The first that has a meter wins, as in the engine."""
    first, second = ({"tier": "batch", "rates": {"input_tokens": base}} for base in ("1", "0.7"))
    assert told(listed(priced(variants=[first, second])), listed(priced(variants=[first]))) == []


def test_another_currency_changes_every_price() -> None:
    """One dollar and one euro are told apart, and no share is made of them."""
    assert told(listed(priced()), listed(priced(), currency="EUR")) == [
        ("input_tokens", "2 USD", "2 EUR", ""),
        ("output_tokens", "8 USD", "8 EUR", ""),
    ]


def test_what_else_decides_a_cost_is_compared() -> None:
    """Free, cliffs, steps, factors, least quantities and charges."""
    rates = {"input_tokens": {"base": "2", "above": {"200000": "4"}}, "output_tokens": "8"}
    new = priced(
        prices=[{"rates": rates, "minimum_charge": "0.01"}],
        adjust=[{"region": "us", "multiply": "1.1"}],
        minimum={"audio_seconds": 10},
    )
    assert told(listed(priced()), listed(new)) == [
        ("input_tokens above 200,000", "", "4", ""),
        ("minimum charge", "", "0.01", ""),
        ("factor of region us", "", "1.1", ""),
        ("least audio_seconds", "", "10", ""),
    ]
    assert told(listed(priced()), listed(priced(free=True)))[0] == ("free", "", "yes", "")


def test_the_bundled_lists_do_not_differ_from_themselves() -> None:
    """Over every entry that we ship."""
    for one in bundled_lists():
        assert changes(one, one, at=NOON) == []


_rates = st.dictionaries(
    st.sampled_from(METERS), st.decimals("0.0001", "100", places=4).map(lambda value: f"{value:f}"), min_size=1
)
_models = st.dictionaries(st.sampled_from("abcd"), _rates)


def _listed(models: Mapping[str, Mapping[str, str]]) -> PriceList:
    return listed(*({"model": model, "prices": [{"rates": dict(rates)}]} for model, rates in models.items()))


@given(_models)
def test_a_list_does_not_differ_from_itself(models: dict[str, dict[str, str]]) -> None:
    """changes(a, a) is empty."""
    assert changes(_listed(models), _listed(models), at=NOON) == []


@given(_models, _models)
def test_exactly_the_differences_are_named(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> None:
    """Putting the changes on the old list gives the new one, and no change is told of what stayed."""
    state = {model: {meter: Decimal(rate) for meter, rate in rates.items()} for model, rates in old.items()}
    wanted = {model: {meter: Decimal(rate) for meter, rate in rates.items()} for model, rates in new.items()}
    for one in changes(_listed(old), _listed(new), at=NOON):
        if one.kind == "added":
            state[one.model] = wanted[one.model]
        elif one.kind == "removed":
            del state[one.model]
        else:
            assert one.before != one.after
            assert (Decimal(one.before) if one.before else None) == state[one.model].pop(one.meter, None)
            if one.after:
                state[one.model][one.meter] = Decimal(one.after)
    assert state == wanted
