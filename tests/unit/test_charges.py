"""Costs that know how sure they are, their sums, and the ledger's entry."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.charges import BASES, Charge, Cost, CostLine, make_charge, nanos, new_id, total

AMOUNTS = st.decimals(min_value=0, max_value=10_000, places=9, allow_nan=False, allow_infinity=False)


@st.composite
def costs(draw: st.DrawFn) -> Cost:
    """Any cost that the engines may make, in one of two currencies."""
    currency = draw(st.sampled_from(["USD", "EUR"]))
    kind = draw(st.sampled_from(["priced", "estimated", "unknown", "free"]))
    if kind == "unknown":
        upper = draw(st.none() | AMOUNTS)
        return Cost(None, currency, "unknown", lower=draw(st.sampled_from([None, Decimal(0)])), upper=upper)
    if kind == "free":
        return Cost(Decimal(0), currency, "free")
    amount = draw(AMOUNTS)
    if kind == "priced":
        return Cost(amount, currency)
    return Cost(amount, currency, "estimated", lower=amount / 2, upper=amount * 2)


def test_an_explanation_has_every_part() -> None:
    """Rates, tier, bounds, what the provider said, price, date, source and notes are all in the text."""
    cost = Cost(
        amount=Decimal("0.00375"),
        basis="estimated",
        lower=Decimal("0.003"),
        upper=Decimal("0.005"),
        lines=(
            CostLine("input_tokens", 1000, Decimal("2.5"), 1_000_000, Decimal("0.0025")),
            CostLine("cache_read_tokens", 1000, Decimal("1.25"), 1_000_000, Decimal("0.00125"), note="cached"),
        ),
        price_id="genai-prices/openai/gpt-4o",
        as_of=date(2026, 3, 1),
        source="genai-prices 0.2.3",
        model="gpt-4o",
        notes=("counted, not reported",),
        reported=Decimal("0.0038"),
    )
    text = cost.explain()
    head, first, second, *rest = text.splitlines()
    assert head == "$0.00375 (estimated) for gpt-4o"
    assert "1,000 input_tokens" in first
    assert "$2.50 per 1,000,000 = $0.002500000" in first
    assert second.endswith("$0.001250000  (cached)")
    assert [line.strip() for line in rest] == [
        "between $0.00300 and $0.00500",
        "the provider reported $0.00380",
        "price genai-prices/openai/gpt-4o, as of 2026-03-01",
        "source genai-prices 0.2.3",
        "note: counted, not reported",
    ]


def test_an_unknown_cost_is_never_shown_as_a_number() -> None:
    """Text and explanation say unknown."""
    cost = Cost(None, basis="unknown", price_id="x")
    assert not cost.known
    assert str(cost) == "unknown (unknown)"
    assert cost.explain().splitlines() == ["unknown (unknown)", "  price x"]


@pytest.mark.parametrize(
    ("basis", "text"),
    [("priced", "$1.00"), ("reported", "$1.00"), ("estimated", "$1.00 (estimated)"), ("free", "$1.00 (free)")],
)
def test_a_cost_that_is_not_plain_says_so(basis: str, text: str) -> None:
    """Only priced and reported amounts stand without a word."""
    assert basis in BASES
    assert str(Cost(Decimal(1), basis=basis)) == text  # type: ignore[arg-type]


def test_costs_cannot_be_changed() -> None:
    """A fact stays what it was."""
    with pytest.raises(FrozenInstanceError):
        Cost(Decimal(1)).amount = Decimal(2)  # type: ignore[misc]


def test_the_sum_of_nothing_is_free() -> None:
    """No charges cost nothing, and that is known."""
    nothing = total([])
    assert (nothing.amount, nothing.basis, nothing.notes) == (Decimal(0), "free", ())


def test_priced_parts_make_a_priced_sum() -> None:
    """Exact parts add up exactly, and the bounds are the amount."""
    cost = total([Cost(Decimal("0.1")), Cost(Decimal("0.2"), basis="reported")])
    assert (cost.amount, cost.lower, cost.upper, cost.basis) == (
        Decimal("0.3"),
        Decimal("0.3"),
        Decimal("0.3"),
        "priced",
    )


def test_an_unknown_part_opens_the_sum() -> None:
    """What is missing is noted; without a bound of its own the sum has no upper one."""
    cost = total([Cost(Decimal(1)), Cost(None, basis="unknown")])
    assert (cost.amount, cost.lower, cost.upper, cost.basis) == (Decimal(1), Decimal(1), None, "estimated")
    assert cost.notes == ("1 unpriced, not included",)


def test_an_unknown_part_with_a_bound_keeps_the_sum_closed() -> None:
    """A call that failed after it was sent costs at most its bound."""
    cost = total([Cost(Decimal(1)), Cost(None, basis="unknown", lower=Decimal(0), upper=Decimal(2))])
    assert (cost.lower, cost.upper) == (Decimal(1), Decimal(3))


def test_only_unknown_parts_make_an_unknown_sum() -> None:
    """Unknown is never zero, also not in a sum."""
    cost = total([Cost(None, basis="unknown"), Cost(None, basis="unknown")])
    assert (cost.amount, cost.basis, cost.notes) == (None, "unknown", ("2 unpriced, not included",))


def test_currencies_are_never_added() -> None:
    """Another currency is noted and left out."""
    cost = total([Cost(Decimal(1)), Cost(Decimal(5), "EUR")])
    assert (cost.amount, cost.currency) == (Decimal(1), "USD")
    assert cost.notes == ("1 in another currency, not included",)
    assert total([Cost(Decimal(5), "EUR")], "EUR").amount == Decimal(5)


@given(st.lists(costs(), max_size=8))
def test_a_sum_is_inside_its_bounds_and_says_what_it_left_out(parts: list[Cost]) -> None:
    """Amount = known parts of the currency, lower <= amount <= upper, and nothing is left out silently."""
    cost = total(parts)
    own = [part for part in parts if part.currency == "USD" and part.amount is not None]
    missing = [part for part in parts if part.amount is None]
    foreign = len(parts) - len(own) - len(missing)
    if cost.amount is None:
        assert missing
        assert not own
    else:
        assert cost.amount == sum((part.amount for part in own if part.amount is not None), Decimal(0))
        assert cost.lower is not None
        assert cost.lower <= cost.amount
        assert cost.upper is None or cost.amount <= cost.upper
    assert any("unpriced" in note for note in cost.notes) == bool(missing)
    assert any("another currency" in note for note in cost.notes) == bool(foreign)


def test_a_charge_gives_back_its_cost() -> None:
    """Stored nano-units and dates become the exact cost; the model that answered is the one named."""
    charge = Charge(
        "id", 1, "openai", "chat", "gpt-5-mini",
        amount=1_500_000, basis="estimated", lower=1, upper=2_000_000_000, price_id="list/openai/gpt-5-mini",
        price_as_of="2026-03-01", price_source="list 1", response_model="gpt-5-mini-2025-08-07",
    )  # fmt: skip
    cost = charge.cost
    assert (cost.amount, cost.lower, cost.upper) == (Decimal("0.0015"), Decimal("1e-9"), Decimal(2))
    assert (cost.basis, cost.price_id, cost.as_of, cost.source) == (
        "estimated", "list/openai/gpt-5-mini", date(2026, 3, 1), "list 1",
    )  # fmt: skip
    assert cost.model == "gpt-5-mini-2025-08-07"


def test_a_charge_without_a_price_stays_unknown() -> None:
    """The default of every amount is unknown, not zero."""
    cost = Charge("id", 1, "openai", "chat", "gpt-9").cost
    assert (cost.amount, cost.lower, cost.upper, cost.as_of, cost.basis, cost.model) == (
        None,
        None,
        None,
        None,
        "unknown",
        "gpt-9",
    )


def test_unknown_nanos_stay_unknown() -> None:
    """None is not turned into a number."""
    assert nanos(None) is None
    assert nanos(Decimal("1.5")) == 1_500_000_000


def test_ids_are_unique_and_ascend_in_time() -> None:
    """32 hex digits each, sorted as they were made."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(item) == 32 and int(item, 16) for item in ids)
    assert [item[:16] for item in ids] == sorted(item[:16] for item in ids)


_FORKS = """
import os
from aifinops.charges import new_id
new_id()
for _ in range(3):
    if os.fork() == 0:
        os.write(1, "".join(new_id() + "\\n" for _ in range(100)).encode())
        os._exit(0)
for _ in range(3):
    os.wait()
"""


def test_forked_processes_never_share_an_id() -> None:
    """Randomness comes from the operating system, not from a state that a fork copies."""
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, text=True, check=True, timeout=60)
    made = [line[16:] for line in done.stdout.splitlines()]
    assert len(set(made)) == len(made) == 300


def test_a_plain_explanation_is_one_line() -> None:
    """A cost without lines, price, source or notes has nothing more to tell."""
    assert Cost(Decimal(1)).explain() == "$1.00 (priced)"


def test_a_charge_that_is_made_quickly_is_an_ordinary_one() -> None:
    """Equal, with the same hash, text, copies and defaults; and as little to be changed."""
    values: dict[str, Any] = {
        "id": "1", "at": 5, "provider": "openai", "operation": "chat", "model": "gpt-4o", "quantities": {"input_tokens": 3}, "tags": {},
    }  # fmt: skip
    quick, ordinary = make_charge(**values), Charge(**values)
    assert quick == ordinary
    assert repr(quick) == repr(ordinary)
    assert replace(quick, amount=7) == replace(ordinary, amount=7)
    assert pickle.loads(pickle.dumps(quick)) == ordinary
    with pytest.raises(FrozenInstanceError):
        quick.amount = 5  # type: ignore[misc]
