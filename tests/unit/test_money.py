"""Exact money: reading what people type, nano-units, and text for people."""

from __future__ import annotations

import decimal as stdlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.errors import ConfigurationError
from aifinops.money import NANO, decimal, format_money, from_nanos, parse_money, to_nanos

AMOUNTS = st.decimals(min_value="-9e9", max_value="9e9", allow_nan=False, allow_infinity=False, places=25)


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [
        ("$5", "5", "USD"),
        ("$ 5", "5", "USD"),
        ("5 USD", "5", "USD"),
        ("5usd", "5", "USD"),
        ("5$", "5", "USD"),
        ("EUR 2.50", "2.50", "EUR"),
        ("€.5", "0.5", "EUR"),
        ("£1_000", "1000", "GBP"),
        ("¥1,234.5", "1234.5", "JPY"),
        ("1e3 USD", "1000", "USD"),
        (" 0 CHF ", "0", "CHF"),
        ("-$5", "-5", "USD"),
        ("$-5", "-5", "USD"),
        ("-5 EUR", "-5", "EUR"),
    ],
)
def test_money_is_read_as_people_write_it(text: str, amount: str, currency: str) -> None:
    """A sign, a code before or after, separators and exponents are all understood, and a minus is kept."""
    assert parse_money(text) == (Decimal(amount), currency)


@pytest.mark.parametrize(
    "text", ["", "5", "$", "USD", "2M tokens", "five dollars", "200 gpu_hours", "$5 USD", "eur 5", "-"]
)
def test_what_is_no_money_is_not_guessed(text: str) -> None:
    """Anything without both a number and a currency is None, so that the caller can try it as a meter."""
    assert parse_money(text) is None


@pytest.mark.parametrize(
    ("value", "expected"), [(1, "1"), ("1.50", "1.50"), (0.1, "0.1"), (1e-7, "1E-7"), (Decimal(2), "2")]
)
def test_numbers_become_the_decimal_that_was_typed(value: Decimal | int | str | float, expected: str) -> None:
    """A float is read by its shortest text, never by its binary value."""
    assert decimal(value) == Decimal(expected)


@pytest.mark.parametrize(
    "value", [True, False, "abc", "", float("nan"), float("inf"), "NaN", "-Infinity", None, [], object()]
)
def test_what_is_no_finite_number_is_refused_by_name(value: object) -> None:
    """The message names the argument and the value."""
    with pytest.raises(ConfigurationError, match="limit must be") as caught:
        decimal(value, "limit")  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


@given(AMOUNTS)
def test_nanos_are_never_below_the_exact_amount(amount: Decimal) -> None:
    """Rounding goes up by less than one nano-unit, whatever the number of digits."""
    with stdlib.localcontext() as context:
        context.prec = 100
        excess = Decimal(to_nanos(amount)) - amount * NANO
    assert 0 <= excess < 1


@given(st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1))
def test_nanos_round_trip(nanos: int) -> None:
    """What a store holds comes back as the same integer."""
    assert to_nanos(from_nanos(nanos)) == nanos


@given(st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1))
def test_the_applications_decimal_context_does_not_reach_our_money(nanos: int) -> None:
    """An application that works with three digits still gets exact charges."""
    exact = from_nanos(nanos)
    with stdlib.localcontext() as context:
        context.prec = 3
        assert from_nanos(nanos) == exact
        assert to_nanos(exact) == nanos


@pytest.mark.parametrize("amount", ["9223372036.854775808", "-9223372036.854775808", "1e30"])
def test_an_amount_beyond_int64_is_an_overflow(amount: str) -> None:
    """No amount is cut to fit."""
    with pytest.raises(OverflowError, match="does not fit"):
        to_nanos(Decimal(amount))


def test_the_largest_amount_fits() -> None:
    """The bound itself is inside."""
    assert to_nanos(Decimal("9223372036.854775807")) == 2**63 - 1


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (None, "USD", "unknown"),
        ("0", "USD", "$0.00"),
        ("1234.5", "USD", "$1,234.50"),
        ("0.1", "EUR", "€0.10"),
        ("0.05", "USD", "$0.0500"),
        ("0.00000123", "USD", "$0.00000123"),
        ("0.000000000000001", "USD", "$0.000000000000"),
        ("0.005125", "USD", "$0.00513"),
        ("0.125", "USD", "$0.13"),
        ("-2.5", "GBP", "-£2.50"),
        ("-2.5", "CHF", "-2.50 CHF"),
        ("3", "CHF", "3.00 CHF"),
    ],
)
def test_text_for_people_keeps_three_significant_digits(amount: str | None, currency: str, text: str) -> None:
    """Small amounts are not shown as zero, unknown ones not as a number."""
    assert format_money(None if amount is None else Decimal(amount), currency) == text


def test_places_can_be_asked_for() -> None:
    """A fixed number of places overrules the significant digits."""
    assert format_money(Decimal("1.23456789"), places=4) == "$1.2346"
