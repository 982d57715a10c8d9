"""What a run has come to: device-seconds, money, and what was measured, of what is charged and of what is not charged yet."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from aifinops.gpu.journal import Group
from aifinops.gpu.usage import Sums

__all__ = ["Account", "hourly", "idle_usd"]

_NOTHING = Decimal(0)


class Account:
    """Sums over charges.

    Attributes:
        device_s: allocated. cpu_s: the same of processors, vCPU-seconds; a run has one of the two. cost: USD; None as soon as something has no price. idle: USD of what was not busy; None as soon as that is unknown.
        sums: measured figures. saved_s, saved_cost: what it came to at the last checkpoint.
    """

    def __init__(self) -> None:
        self.device_s = self.cpu_s = self.saved_s = self.saved_cost = _NOTHING
        self.cost: Decimal | None = _NOTHING
        self.idle: Decimal | None = _NOTHING
        self.sums = Sums()

    def add(self, group: Group, seconds: Decimal, cost: Decimal | None, idle: Decimal | None, sums: Sums) -> None:
        """A charge was made for so many seconds of a group."""
        if group.on_cpu:
            self.cpu_s += group.held * seconds
        else:
            self.device_s += group.held * seconds
        self.cost = _plus(self.cost, cost)
        self.idle = _plus(self.idle, idle)
        self.sums.merge(sums, of_all=group.on_cpu or not seconds)

    def with_open(self, groups: Sequence[Group], seconds: Decimal) -> tuple[Decimal, Decimal, Decimal | None]:
        """(device-seconds, vCPU-seconds, cost) with so many seconds that are not charged yet."""
        devices, cpus, cost = self.device_s, self.cpu_s, self.cost
        for group in groups:
            if group.on_cpu:
                cpus += group.held * seconds
            else:
                devices += group.held * seconds
            cost = _plus(cost, group.usd(seconds))
        return devices, cpus, cost

    def save(self, groups: Sequence[Group], seconds: Decimal) -> None:
        """A checkpoint was written."""
        devices, cpus, cost = self.with_open(groups, seconds)
        self.saved_s = devices + cpus
        self.saved_cost = cost or _NOTHING


def _plus(first: Decimal | None, second: Decimal | None) -> Decimal | None:
    return None if first is None or second is None else first + second


def hourly(groups: Sequence[Group], seconds: int = 3600) -> Decimal | None:
    """USD of all groups in an hour, or in so many seconds; None without devices or where one has no price."""
    found: Decimal | None = _NOTHING if groups else None
    for group in groups:
        found = _plus(found, group.usd(Decimal(seconds)))
    return found


def idle_usd(group: Group, seconds: Decimal, busy_s: float | None) -> tuple[Decimal | None, Decimal | None]:
    """(device-seconds that were not busy, what they cost) of so many seconds of a group; None for what is unknown."""
    if busy_s is None:
        return None, None
    idle = max(_NOTHING, group.held * seconds - Decimal(repr(busy_s)))
    return idle, None if group.usd_per_hour is None else group.usd_per_hour * idle / 3600
