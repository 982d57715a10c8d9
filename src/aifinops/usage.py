"""How much of what: disjoint quantities per meter, of one SKU, at one moment, beside the provider's raw numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError, ImpossibleUsage
from aifinops.meters import METERS, meter

__all__ = [
    "EMPTY_QUANTITIES",
    "Moment",
    "Quantities",
    "Quantity",
    "Sku",
    "Usage",
    "input_total",
    "leaves",
    "moment",
    "output_total",
    "quantities",
    "tokens_total",
]

Quantity = int | Decimal
Quantities = Mapping[str, Quantity]
"""Meter name -> quantity in that meter's unit. Disjoint: nothing is counted under two meters."""

EMPTY_QUANTITIES: Quantities = MappingProxyType({})

Moment = datetime | date | str | int
"""A moment as people give it: ISO 8601 text, a date, a datetime, or nanoseconds since the epoch; UTC unless it says otherwise."""


@dataclass(frozen=True, slots=True)
class Sku:
    """What was bought.

    Attributes:
        provider: OpenTelemetry's `gen_ai.provider.name` (`openai`, `anthropic`, `azure.ai.openai`), a cloud or `local`.
        model: model, device or instance name as the provider reports it (`gpt-5-mini-2025-08-07`, `NVIDIA H100 80GB HBM3`).
        service: `llm`, `gpu`, `storage`, `vector` or another service of the provider. Reports group by it; it chooses no price: a
            provider has one name for one thing, and the scope of a contract goes by the service that the price list gives.
        tier: the tier that was served (`default`, `flex`, `priority`, `fast`, `batch`, `provisioned`), empty for the standard one.
        region: region or residency when it decides the price, else empty.
        options: whatever else decides the price, sorted pairs: `(("quality", "hd"), ("size", "1024x1792"))` of an image.
    """

    provider: str
    model: str
    service: str = "llm"
    tier: str = ""
    region: str = ""
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Disjoint quantities of one SKU.

    Attributes:
        quantities: meter -> quantity; see `aifinops.meters.METERS` for the units.
        sku: what was used.
        at: wall clock, nanoseconds since the epoch; it selects the price that was in force.
        raw: the provider's own usage object, untouched, for re-rating and for finding drift.
        estimated: True when the provider did not report these numbers and we counted them.
        lower, upper: bounds per meter, given where `estimated`.
    """

    quantities: Quantities
    sku: Sku
    at: int = 0
    raw: Mapping[str, Any] | None = None
    estimated: bool = False
    lower: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    upper: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)


def quantities(values: Mapping[str, object], *, own: bool = False) -> dict[str, Quantity]:
    """Validated quantities: known meters, finite, not negative, no bool; zeros are dropped.

    Args:
        values: a mapping, or with `own` a dict that nobody else has: that is what is returned then if nothing is wrong with it.

    Raises:
        ConfigurationError: for an unknown meter (with the nearest names).
        ImpossibleUsage: for a negative, NaN or non-numeric quantity.
    """
    for name, value in values.items():
        if type(value) is not int or value <= 0 or name not in METERS:
            break
    else:
        return values if own else dict(values)  # type: ignore[return-value, arg-type]  # as looked at just now
    clean: dict[str, Quantity] = {}
    for name, value in values.items():
        if name not in METERS:
            meter(name)  # raises, with the nearest names
        number = value if type(value) is int and value >= 0 else _quantity(name, value)
        if number:
            clean[name] = number
    return clean


def _quantity(name: str, value: object) -> Quantity:
    if isinstance(value, int) and not isinstance(value, bool):
        number: Quantity = value
    elif isinstance(value, (Decimal, float, str)):
        try:
            number = Decimal(repr(value) if isinstance(value, float) else value)
        except InvalidOperation:
            raise ImpossibleUsage(f"{name}={value!r} is no number") from None
        if not number.is_finite():
            raise ImpossibleUsage(f"{name}={value!r} is not finite")
        if number == number.to_integral_value():
            number = int(number)
    else:
        raise ImpossibleUsage(f"{name}={value!r} is no number")
    if number < 0:
        raise ImpossibleUsage(f"{name}={value!r} is negative")
    return number


def moment(value: Moment, name: str = "at") -> int:
    """A moment as given -> nanoseconds since the epoch. A date is its first moment; what names no zone is UTC.

    Args:
        value: see `Moment`. name: of the argument, for the message.

    Raises:
        ConfigurationError: for what is none of these, saying what to type.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        if isinstance(value, datetime):
            return to_ns(value)
        if isinstance(value, date):
            return to_ns(datetime(value.year, value.month, value.day, tzinfo=UTC))
    except (ValueError, OverflowError):
        pass
    raise ConfigurationError(
        f'{name}={value!r} is no moment; write "2026-11-01", "2026-11-01T12:00:00+00:00", a date or a datetime'
    )


def leaves(whole: Quantity, parts: Mapping[str, Quantity], *, whole_name: str) -> Quantity:
    """What is left of an inclusive total when its parts are taken out: the fresh, plain leaf.

    Raises:
        ImpossibleUsage: when the parts are above the whole; it names both numbers.
    """
    total = sum(parts.values())
    if total > whole:
        detail = " + ".join(f"{name} {count}" for name, count in parts.items() if count)
        raise ImpossibleUsage(f"{detail} = {total} is above {whole_name} {whole}, of which they are parts")
    return whole - total


def _total(test: Callable[[str], bool]) -> Callable[[Quantities], int]:
    names = frozenset(name for name in METERS if test(name))

    def total(values: Quantities) -> int:
        found: Quantity = 0
        for name, value in values.items():  # no generator: this runs several times in every metered call
            if name in names:
                found += value
        return int(found)

    return total


input_total = _total(lambda name: METERS[name].family == "tokens" and METERS[name].direction == "input")
"""OpenTelemetry's inclusive `gen_ai.usage.input_tokens`: fresh, cached and written tokens of every modality."""

output_total = _total(lambda name: METERS[name].family == "tokens" and METERS[name].direction == "output")
"""OpenTelemetry's inclusive `gen_ai.usage.output_tokens`: visible and reasoning tokens of every modality."""

tokens_total = _total(lambda name: METERS[name].family == "tokens")
"""All tokens, each once."""
