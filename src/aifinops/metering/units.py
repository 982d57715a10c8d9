"""Charges in the integers that budgets count."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aifinops.usage import input_total, output_total

if TYPE_CHECKING:
    from aifinops.budgets.reservations import Reservation
    from aifinops.charges import Charge
    from aifinops.reading import Reading

__all__ = ["MICRO", "actual_amounts", "soundly", "within"]

MICRO = 1_000_000
"""Budgets count meters in millionths of their unit."""


def actual_amounts(charge: Charge) -> dict[str, int]:
    """A charge in budget units: nano-units of its currency, millionths of every meter, `tokens` and `requests`.

    A currency whose amount is unknown is left out: the guard then keeps what was held.
    """
    counts = charge.quantities
    amounts = {name: int(value * MICRO) for name, value in counts.items()}
    if counts:
        token_sum = input_total(counts) + output_total(counts)
        amounts["tokens"] = token_sum * MICRO
    amounts.setdefault("requests", MICRO)
    if charge.amount is not None:
        amounts[charge.currency] = charge.amount
    return amounts


def soundly(charge: Charge, reading: Reading) -> dict[str, int]:
    """An estimate in budget units, at the most that it may be: a limit holds also for what nobody has told."""
    upper = replace(
        charge,
        quantities={**reading.quantities, **reading.upper},
        amount=charge.amount if charge.upper is None else charge.upper,
    )
    return actual_amounts(upper)


def within(most: dict[str, int], expected: dict[str, int], reservation: Reservation | None) -> dict[str, int]:
    """An estimate at its upper bound is no more than what was held for the call: of a stream that ends at a limit only what it came to."""
    if reservation is None:
        return most
    held: dict[str, int] = {}
    for node, amount in zip(reservation.nodes, reservation.amounts, strict=True):
        held[node.unit] = max(amount, held.get(node.unit, 0))
    return {
        unit: max(expected.get(unit, 0), min(amount, held[unit])) if unit in held else amount
        for unit, amount in most.items()
    }
