"""Who held what, how much of it was of use, and what it cost: from the ledger's entries of GPU time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from aifinops.charges import Charge
from aifinops.gpu.carbon import Co2
from aifinops.ledger.base import Query, group_keys
from aifinops.money import from_nanos

__all__ = ["Holding", "gpu_entries", "holdings"]


@dataclass(slots=True)
class Holding:
    """GPU time of one key.

    Attributes:
        key: values in the order asked for. device_s: device-seconds allocated, which are what the bill is. first, last: nanoseconds.
        measured_s: the part of them of which somebody knows how busy it was; busy_s: the busy ones of these.
        cost: USD of those with a price; None where none has one. unpriced_s: device-seconds without a price, which are in no cost.
        idle_cost: USD of what was measured and not busy, of those with a price; None where there is none of both.
        co2_kg, energy_kwh: of the part of which both are known, PUE included; None where nothing is. co2_s: that part, device-seconds.
        co2_bases: by which intensities and PUEs.
        devices: UUIDs seen. models: names of devices, instance types where nobody named a device. runs: tags of runs. names: of those that
            have one.
    """

    key: tuple[str, ...]
    device_s: Decimal = Decimal(0)
    measured_s: Decimal = Decimal(0)
    busy_s: Decimal = Decimal(0)
    cost: Decimal | None = None
    idle_cost: Decimal | None = None
    unpriced_s: Decimal = Decimal(0)
    co2_kg: Decimal | None = None
    energy_kwh: Decimal | None = None
    co2_s: Decimal = Decimal(0)
    co2_bases: set[str] = field(default_factory=set)
    first: int = 0
    last: int = 0
    devices: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    @property
    def idle_s(self) -> Decimal:
        """Device-seconds that were measured and not busy."""
        return max(Decimal(0), self.measured_s - self.busy_s)

    @property
    def busy_share(self) -> Decimal | None:
        """Of what was measured; None where nothing was."""
        return min(Decimal(1), self.busy_s / self.measured_s) if self.measured_s else None

    def add(self, charge: Charge) -> None:
        """Take in one entry."""
        seconds = Decimal(charge.quantities.get("gpu_seconds", 0))
        facts = _facts(charge)
        self.device_s += seconds
        self.first = min(self.first or charge.at, charge.at)
        self.last = max(self.last, charge.at + charge.duration)
        self.devices.update(map(str, facts.get("uuids") or ()))
        self.models.add(str(facts.get("model") or charge.model))
        self.runs.add(charge.tags.get("run", ""))
        self.names.update(str(name) for name in (facts.get("name"),) if name)
        amount = None if charge.amount is None or charge.currency != "USD" else from_nanos(charge.amount)
        if amount is None:
            self.unpriced_s += seconds
        else:
            self.cost = (self.cost or Decimal(0)) + amount
        self._add_co2(facts.get("co2"), seconds)
        busy = _number(facts.get("busy_s"))
        if busy is not None and seconds:
            self.measured_s += seconds
            self.busy_s += min(busy, seconds)
            if amount is not None:
                self.idle_cost = (self.idle_cost or Decimal(0)) + amount * max(Decimal(0), 1 - busy / seconds)

    def _add_co2(self, facts: Any, seconds: Decimal) -> None:
        try:
            found = Co2.from_json(facts)
        except (KeyError, TypeError, ValueError, ArithmeticError):  # not known of this entry
            return
        self.co2_kg = (self.co2_kg or Decimal(0)) + found.kg
        self.energy_kwh = (self.energy_kwh or Decimal(0)) + found.energy_kwh
        self.co2_s += seconds
        self.co2_bases.add(found.basis)


def _facts(charge: Charge) -> dict[str, Any]:
    found = None if charge.raw is None else charge.raw.get("gpu")
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> Decimal | None:
    return Decimal(repr(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def gpu_entries(ledger: Any, since_ns: int | None = None, until_ns: int | None = None) -> Iterable[Charge]:
    """The entries of GPU time of a ledger, in a period."""
    rows = ledger.rows(Query(since_ns, until_ns, {"service": "gpu"}))
    return (charge for charge in rows if charge.quantities.get("gpu_seconds") or charge.status == "correction")


def holdings(charges: Iterable[Charge], by: Sequence[str]) -> list[Holding]:
    """Sums per key, the dearest first.

    Args:
        charges: as `gpu_entries` gives them. by: `team`, `run`, `model`, `day` or any tag.

    Raises:
        ConfigurationError: for a key that cannot be one.
    """
    keys = group_keys(by)
    found: dict[tuple[str, ...], Holding] = {}
    for charge in charges:
        key = tuple(one.of(charge) for one in keys)
        found.setdefault(key, Holding(key)).add(charge)
    return sorted(found.values(), key=lambda one: (-(one.cost or 0), -one.device_s, one.key))
