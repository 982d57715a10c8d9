"""No driver to ask: the time that a device is held can be metered all the same, and everything else is unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aifinops.clock import Clock
from aifinops.gpu.backends.base import Device, Inventory, Reading

__all__ = ["NullBackend", "NullProbe"]


class NullProbe:
    """Knows what time it is and nothing else."""

    ring_ns: int | None = None
    power_limit_w: float | None = None
    busy_source = active_source = memory_source = energy_source = ""

    def read(self, clock: Clock) -> Reading:
        """A reading without a figure."""
        return Reading(clock.monotonic_ns())

    def close(self) -> None:
        """Nothing is held."""


class NullBackend:
    """Stands in for a vendor that cannot be asked."""

    vendor = ""

    def likely(self) -> bool:
        """There is nothing to ask."""
        return False

    def inventory(self) -> Inventory:
        """No devices, and why."""
        return Inventory(reason="no driver that can be asked")

    def probe(self, device: Device) -> NullProbe:
        """A probe that reads nothing."""
        return NullProbe()

    def event_factory(self) -> Callable[[], Any] | None:
        """There are no timing events."""
        return None
