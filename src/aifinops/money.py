"""Exact money: `Decimal` in Python, int64 nano-units (1e-9 of the currency) in stores. Never a float."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, ROUND_HALF_UP, Context, Decimal, InvalidOperation

from aifinops.errors import ConfigurationError

__all__ = [
    "MAX_NANOS",
    "NANO",
    "SYMBOLS",
    "decimal",
    "format_money",
    "format_rate",
    "from_nanos",
    "parse_money",
    "to_nanos",
]

NANO = 1_000_000_000
MAX_NANOS = 2**63 - 1
_NANO_EXPONENT = Decimal("1e-9")
_NANO_DECIMAL = Decimal(NANO)
# Our own: the application may have set its context to a few digits, and 28 are not enough for a sum of products.
_EXACT = Context(prec=100)

SYMBOLS = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}
_SIGNS = {code: sign for sign, code in SYMBOLS.items()}
_NUMBER = r"[+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FORMS = (
    re.compile(rf"^(?P<unit>[$€£¥])\s*(?P<number>{_NUMBER})$"),
    re.compile(rf"^(?P<number>{_NUMBER})\s*(?P<unit>[$€£¥]|[A-Za-z]{{3}})$"),
    re.compile(rf"^(?P<unit>[A-Z]{{3}})\s*(?P<number>{_NUMBER})$"),
)


def decimal(value: Decimal | int | str | float, what: str = "amount") -> Decimal:
    """A finite Decimal; a float is read as it is printed (0.1 is 0.1), since that is what was typed.

    Raises:
        ConfigurationError: for a bool, NaN, an infinity or text that is no number.
    """
    if isinstance(value, bool):
        raise ConfigurationError(f"{what} must be a number, not {value!r}")
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except (InvalidOperation, TypeError, ValueError):
        raise ConfigurationError(f"{what} must be a number, not {value!r}") from None
    if not number.is_finite():
        raise ConfigurationError(f"{what} must be finite, not {value!r}")
    return number


def parse_money(text: str) -> tuple[Decimal, str] | None:
    """`"$5"`, `"5 USD"`, `"EUR 2.50"` -> (amount, ISO 4217 code); None when it does not look like money.

    A sign is kept (`"-$5"` and `"$-5"` are both minus five), so that the caller can refuse it by name.
    """
    text = text.strip()
    negative = len(text) > 1 and text[0] == "-" and text[1] in SYMBOLS
    for form in _FORMS:
        found = form.match(text[1:] if negative else text)
        if found:
            amount = Decimal(found["number"].replace("_", "").replace(",", ""))
            unit = found["unit"]
            return (-amount if negative else amount), SYMBOLS.get(unit, unit.upper())
    return None


def to_nanos(amount: Decimal) -> int:
    """Nano-units, rounded up: a charge is never stored below its exact value (error < 1e-9 a charge).

    Raises:
        OverflowError: beyond the 9.2 billion units that an int64 holds.
    """
    nanos = int(_EXACT.multiply(amount, _NANO_DECIMAL).to_integral_value(ROUND_CEILING))
    if not -MAX_NANOS <= nanos <= MAX_NANOS:
        raise OverflowError(f"{amount} does not fit into int64 nano-units")
    return nanos


def from_nanos(nanos: int) -> Decimal:
    """The exact Decimal of stored nano-units."""
    return _EXACT.multiply(Decimal(nanos), _NANO_EXPONENT)


def format_rate(rate: Decimal, currency: str = "USD") -> str:
    """A unit price for people: every digit that it has, two places at least; prices are never rounded for show."""
    places = max(2, -int(rate.normalize().as_tuple().exponent))
    return format_money(rate, currency, places=places)


def format_money(amount: Decimal | None, currency: str = "USD", *, places: int | None = None) -> str:
    """Text for people: two places from ten cents upwards, else enough for three significant digits; unknown is `unknown`."""
    if amount is None:
        return "unknown"
    if places is None:
        places = 2 if amount == 0 or abs(amount) >= Decimal("0.1") else min(12, 2 - amount.adjusted())
    # Half up, as people do it, whatever the application's own context rounds to.
    rounded = amount.copy_abs().quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP, _EXACT)
    text = f"{rounded:,f}"
    sign = "-" if amount < 0 else ""
    return f"{sign}{_SIGNS[currency]}{text}" if currency in _SIGNS else f"{sign}{text} {currency}"
