"""Earlier charges under other prices."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from aifinops.charges import Amounts, Charge
from aifinops.clock import to_ns
from aifinops.money import from_nanos
from aifinops.pricing.book import PriceBook, load_bundled
from aifinops.pricing.lists import from_table
from aifinops.pricing.rerate import Volumes, rerate
from aifinops.pricing.schema import read_rows
from aifinops.usage import Sku, Usage

BUNDLED = PriceBook([load_bundled()])


def day(text: str) -> int:
    return to_ns(datetime.fromisoformat(text).replace(tzinfo=UTC))


def charge(model: str = "gpt-4o", quantities: Any = None, at: str = "2026-11-24", **change: Any) -> Charge:
    """A charge as the bundled list priced it."""
    used = {"input_tokens": 1_000_000} if quantities is None else quantities
    cost = Amounts.of(BUNDLED.price(Usage(used, Sku("openai", model, tier=change.get("tier", "")), day(at))))
    row: dict[str, Any] = {
        "id": "0" * 32, "at": day(at), "provider": "openai", "operation": "chat", "model": model, "quantities": used,
        "amount": cost.amount, "lower": cost.lower, "upper": cost.upper, "basis": cost.basis, "price_id": cost.price_id,
    }  # fmt: skip
    return Charge(**{**row, **change})


def under(*charges: Charge, volumes: Volumes | None = None, **tables: Any) -> list[Decimal | None]:
    book = PriceBook([from_table(read_rows({"id": "acme", **tables}, "price table", "test")), load_bundled()])
    return [cost.amount for _, cost in rerate(charges, book, volumes=volumes)]


def test_the_same_list_gives_the_same_amounts() -> None:
    """Re-rating under the prices in force then changes nothing, tiers and dates included."""
    charges = [
        charge(),
        charge("o3", at="2025-06-09"),
        charge("o3"),
        charge("o3", tier="priority"),
        charge("gpt-4o-mini"),
    ]
    for one, cost in rerate(charges, BUNDLED):
        assert Amounts.of(cost).amount == one.amount


def test_each_charge_is_priced_at_its_own_moment() -> None:
    """A discount from December leaves November alone."""
    terms = {"discounts": [{"percent": 50, "from": "2026-12-01"}]}
    assert under(charge(), charge(at="2026-12-01"), **terms) == [Decimal("2.5"), Decimal("1.25")]


def test_what_no_price_decided_stays_as_it_was() -> None:
    """Reported and given amounts, failed calls and calls without quantities are not ours to price."""
    kept = [
        charge(amount=7, basis="reported"),
        charge(amount=7, basis="priced", price_id=None),
        charge(quantities={}, amount=0, basis="free", status="error"),
        charge(quantities={}, amount=None, basis="unknown"),
    ]
    pairs = list(rerate(kept, PriceBook([])))
    assert [cost for _, cost in pairs] == [one.cost for one in kept]


def test_a_charge_that_was_unknown_gets_its_price() -> None:
    """A list that came later knows the model; the name that was asked for is tried after that of the answer."""
    row = {"provider": "openai", "model": "house", "rates": {"input_tokens": 4}}
    lost = charge("house")
    assert lost.amount is None
    assert under(lost, charge("house", response_model="/models/house"), models=[row]) == [4, 4]


def test_corrections_are_left_out() -> None:
    """The entry that they correct is priced anew."""
    assert under(charge(), charge(corrects="0" * 32, status="correction"), contract={"markup": 1}) == [Decimal("2.5")]


def test_an_estimate_stays_one_and_its_bounds_move_with_it() -> None:
    """The quantities of the bounds are not stored, and a note says what was done."""
    guess = charge(basis="estimated", lower=10**9, upper=5 * 10**9)
    book = PriceBook([from_table(read_rows({"id": "a", "discounts": [{"percent": 50}]}, "t", "t")), load_bundled()])
    [(_, cost)] = rerate([guess], book)
    assert (cost.basis, cost.lower, cost.amount, cost.upper) == (
        "estimated",
        Decimal("0.5"),
        Decimal("1.25"),
        Decimal("2.5"),
    )
    assert "the bounds are the earlier ones" in cost.notes[-1]


def test_volumes_count_each_month_afresh() -> None:
    """The second call of a month falls into the discount that the first one reached; the next month begins at nothing."""
    terms = {"discounts": [{"provider": "openai", "tiers": [{"above": "2.5", "percent": 20}]}]}
    calls = [charge(), charge("o3"), charge(at="2026-12-01")]
    assert under(*calls, volumes=Volumes(), **terms) == [Decimal("2.5"), Decimal("1.6"), Decimal("2.5")]
    assert under(*calls, **terms) == [Decimal("2.5"), 2, Decimal("2.5")]


def test_volumes_carry_graduated_prices_on_per_model() -> None:
    """Quantities of one model do not move another."""
    rates = {"input_tokens": {"base": 2, "graduated": {"1000000": "1"}}}
    rows = [{"provider": "openai", "model": name, "rates": rates} for name in ("a", "b")]
    calls = [charge("a"), charge("b"), charge("a")]
    assert under(*calls, volumes=Volumes(), models=rows) == [2, 2, 1]


def test_a_discount_counts_what_is_in_its_scope_only() -> None:
    """Two discounts that look alike count apart, and a discount on tokens counts those of every model."""
    tiers = [{"above": 1_000_000, "percent": 50}]
    terms = {
        "discounts": [
            {"model": "gpt-4o", "volume": "tokens", "tiers": tiers},
            {"provider": "openai", "volume": "tokens", "tiers": tiers},
        ]
    }
    calls = [charge("gpt-4o"), charge("o3"), charge("gpt-4o-mini"), charge("gpt-4o")]
    assert under(*calls, volumes=Volumes(), **terms) == [Decimal("2.5"), 2, Decimal("0.075"), Decimal("1.25")]


@pytest.mark.parametrize(
    ("options", "nanos"),
    [((("quality", "hd"), ("size", "1024x1792")), 120_000_000), ((), 40_000_000)],
    ids=["large and fine", "as it comes"],
)
def test_the_options_that_decided_a_price_decide_it_again(options: tuple[tuple[str, str], ...], nanos: int) -> None:
    """A fine large picture costs three times the plain one, also when it is priced a second time."""
    at = day("2026-11-24")
    first = BUNDLED.price(Usage({"images": 1}, Sku("openai", "dall-e-3", options=options), at))
    made = Charge("a", at, "openai", "image_generation", "dall-e-3", {"images": 1}, nanos, price_id=first.price_id)
    ((_, again),) = rerate([made], BUNDLED)
    assert again.amount == first.amount == from_nanos(nanos)
