"""Who pays for what of a cluster's bill: requests and usage, idle, shared costs, adjusted GPU hours, and shares that add up to the cent.

Pure functions of numbers. The rules are those of the field, each named where it is used:

OpenCost (https://www.opencost.io/docs/specification): a workload costs the greater of what it requested and what it used; what is left of an asset
is idle. NCSA (https://docs.ncsa.illinois.edu/systems/deltaai): a part of a GPU is charged by the larger of its shares of compute and of memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Literal

from aifinops.errors import ConfigurationError

__all__ = ["PRIORITY_FACTORS", "Split", "adjusted_gpu_hours", "allocate", "charge_back", "device_share", "share_out", "workload_hours"]  # fmt: skip

_EXACT = Context(prec=60)
_ZERO = Decimal(0)

PRIORITY_FACTORS: Mapping[str, Decimal] = {
    "urgent": Decimal(2),
    "high": Decimal("1.5"),
    "normal": Decimal(1),
    "preemptible": Decimal("0.5"),
}
"""What an hour counts by priority. Ours; give others."""

Rule = Literal["none", "weighted", "even"]


def workload_hours(requested: Decimal, used: Decimal) -> Decimal:
    """GPU hours that a workload pays for: what it kept from others, or what it took beyond that (OpenCost)."""
    return max(requested, used)


def device_share(compute: Decimal, memory: Decimal) -> Decimal:
    """The part of a device that somebody keeps from others: the larger of its parts of compute and of memory (NCSA).

    Args:
        compute, memory: 0 to 1; of a MIG instance its slices of 7 and of 8.
    """
    return max(compute, memory)


def adjusted_gpu_hours(
    hours: Decimal,
    *,
    type_weight: Decimal = Decimal(1),
    share: Decimal = Decimal(1),
    priority: str | Decimal = "normal",
    factors: Mapping[str, Decimal] = PRIORITY_FACTORS,
) -> Decimal:
    """Hours in units of a reference GPU: `hours x weight of the type x share of the device x factor of the priority`.

    Args:
        hours: allocated, reserved ones among them. type_weight: by price or by a table, e.g. 2.5 for an H100 where an A100 is 1.
        share: as `device_share`. priority: a name of `factors`, or the factor. factors: by name.

    Raises:
        ConfigurationError: for a priority that has no factor.
    """
    if isinstance(priority, str):
        if priority not in factors:
            raise ConfigurationError(f"priority={priority!r} has no factor; known: {', '.join(factors)}")
        priority = factors[priority]
    result = hours
    for factor in (type_weight, share, priority):
        result = _EXACT.multiply(result, factor)
    return result


@dataclass(frozen=True, slots=True)
class Split:
    """The cost of an asset, divided. The parts and `idle` add up to it exactly, in nano-units.

    Attributes:
        parts: workload -> nano-units. idle: nobody's, unless a rule gave it to somebody. cost: of the asset.
    """

    parts: Mapping[str, int]
    idle: int
    cost: int

    @property
    def idle_share(self) -> Decimal:
        """Of the whole cost, 0 to 1."""
        return Decimal(self.idle) / self.cost if self.cost else _ZERO


def allocate(
    cost: int, capacity_hours: Decimal, workloads: Mapping[str, tuple[Decimal, Decimal]], *, idle: Rule = "none"
) -> Split:
    """Divide the cost of an asset among its workloads; what none of them kept is idle.

    Args:
        cost: of the asset, nano-units. capacity_hours: GPU hours that it had.
        workloads: name -> (requested, used) GPU hours. Where these are more than there were, the cost is divided by them and nothing is idle.
        idle: `none` leaves it a line of its own, `weighted` spreads it by what each pays, `even` equally.

    Raises:
        ConfigurationError: for negative numbers.
    """
    hours = {name: workload_hours(*both) for name, both in workloads.items()}
    if cost < 0 or capacity_hours < 0 or any(value < 0 for value in hours.values()):
        raise ConfigurationError("cost, capacity and hours of an allocation must be 0 or more")
    rest = max(_ZERO, capacity_hours - sum(hours.values(), _ZERO))
    names = list(hours)
    # Nobody kept anything of nothing: all of it is idle.
    weights = [*hours.values(), rest] if rest or any(hours.values()) else [*([0] * len(hours)), 1]
    shares = share_out(cost, weights)
    parts, left = dict(zip(names, shares[:-1], strict=True)), shares[-1]
    if idle == "none" or not names or not any(hours.values()):
        return Split(parts, left, cost)
    more = share_out(left, [hours[name] if idle == "weighted" else 1 for name in names])
    return Split({name: parts[name] + extra for name, extra in zip(names, more, strict=True)}, 0, cost)


def share_out(amount: int, weights: Sequence[Decimal | int]) -> list[int]:
    """Divide whole units by weights so that the parts add up to the amount: rounded down, the rest to the largest remainders.

    Args:
        amount: whole units (cents, nano-units), negative for a credit. weights: 0 or more, at least one above 0.

    Raises:
        ConfigurationError: for weights that cannot be.
    """
    exact = [Decimal(weight) for weight in weights]
    if not all(weight.is_finite() and weight >= 0 for weight in exact) or not any(exact):
        raise ConfigurationError(f"weights {[str(weight) for weight in exact]} must be 0 or more, one of them above 0")
    ratios = [weight.as_integer_ratio() for weight in exact]
    # In whole numbers throughout: a weight with many digits must not shift a unit.
    common = math.lcm(*(below for _, below in ratios))
    whole = [above * (common // below) for above, below in ratios]
    total = sum(whole)
    sign, units = (1, amount) if amount >= 0 else (-1, -amount)
    parts = [units * weight // total for weight in whole]
    rests = [units * weight % total for weight in whole]
    # Ties go to the earlier one, so that the same question has the same answer.
    for place in sorted(range(len(parts)), key=lambda number: (-rests[number], number))[: units - sum(parts)]:
        parts[place] += 1
    return [sign * part for part in parts]


def charge_back(
    bill: Decimal,
    weights: Mapping[str, Decimal | int],
    *,
    places: int = 2,
    shared: Decimal = _ZERO,
    rule: Rule = "weighted",
) -> Mapping[str, Decimal]:
    """What each owes of an invoice: `bill x weight / sum of weights`, to the cent, and the cents add up to the bill.

    Args:
        bill: as invoiced, of what the weights measure. weights: owner -> adjusted GPU hours, or measured cost.
        places: of the currency's smallest unit. shared: further cost of all (network, control plane), of the same invoice.
        rule: of the shared cost: `weighted` like the bill, `even`, or `none`: it is left out.

    Raises:
        ConfigurationError: for amounts that have no whole number of smallest units, or weights that cannot be.
    """
    names = list(weights)
    parts = share_out(_units(bill, places), [weights[name] for name in names])
    if shared and rule != "none":
        ways = [weights[name] for name in names] if rule == "weighted" else [1] * len(names)
        parts = [part + more for part, more in zip(parts, share_out(_units(shared, places), ways), strict=True)]
    return {name: Decimal(part).scaleb(-places) for name, part in zip(names, parts, strict=True)}


def _units(amount: Decimal, places: int) -> int:
    units = amount.scaleb(places)
    if units != units.to_integral_value():
        raise ConfigurationError(f"{amount} has more than {places} decimal places; a bill is in whole cents")
    return int(units)
