"""What the meter asks of any accelerator: which devices there are, and what one of them has done since it was last read.

A backend never raises for what a machine lacks: no driver is an `Inventory` with a reason, a figure that cannot be had is None or an
empty tuple, and a device that is gone says `lost`. Times are integer nanoseconds of a `Clock`'s monotonic time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from aifinops.clock import Clock

__all__ = ["Backend", "Device", "Inventory", "Probe", "Process", "Reading", "Stretch"]


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, one slice of a GPU, or one chip of another kind.

    Attributes:
        index: the driver's own number (for NVIDIA in PCI order); a slice has that of its parent.
        uuid: what tells it from every other device: `GPU-...`, `MIG-...`. Two entries with one UUID are the same hardware.
        name: the product as prices name it; a slice has its parent's.
        memory: total bytes, None when not reported.
        vendor: `nvidia`, `amd`, `apple` or `google`.
        parent: the UUID of the GPU that this is a slice of, else empty.
        share: the part of the parent that is held, which is what a slice costs: 1 for a whole device.
        confidence: `high`, or `low` where an index may mean another device (it is no part of what makes two devices equal).
        instance: of a MIG slice, `GPU instance/compute instance`, else empty.
    """

    index: int
    uuid: str
    name: str
    memory: int | None = None
    vendor: str = "nvidia"
    parent: str = ""
    share: float = 1.0
    confidence: Literal["high", "low"] = field(default="high", compare=False)
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the drivers said.

    Attributes:
        devices: all of the machine; of a GPU that is cut into slices the GPU and its slices. driver: version, empty without one.
        reason: why there are none, or what is wrong with one that is missing; else empty.
    """

    devices: tuple[Device, ...] = ()
    driver: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The mean of something over a stretch of time.

    Attributes:
        start_ns, end_ns: of the stretch. value: the mean, 0 to 1.
        doubt: how far the mean may be off by rounding, in the same measure.
    """

    start_ns: int
    end_ns: int
    value: float
    doubt: float = 0.0


@dataclass(frozen=True, slots=True)
class Process:
    """One process that has a context on the device.

    Attributes:
        pid: as the driver numbers it: in a container that may be the number outside of it.
        memory: bytes of the device that it holds, None when not reported.
    """

    pid: int
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at a device has brought, since the look before.

    Attributes:
        at_ns: when. slack_ns: how long the look has taken, hence how far `at_ns` may be off.
        busy: stretches in which at least one kernel ran, from the driver's own samples (`nvml_samples`), without gaps between looks.
        polled: the load at this instant, 0 to 1, from drivers that keep no samples: it says nothing of the time between two looks.
        graphics, sm, tensor: hardware counters over the whole time between two looks (GPM).
        memory: bytes in use. energy_j: a counter of joules; only differences mean anything, and it may begin again.
        processes: who has a context here; None when the driver does not say.
        active: share of the device that each pid had in the last sample; None when the driver does not say.
        lost: the device has fallen off: it does nothing any more.
    """

    at_ns: int
    slack_ns: int = 0
    busy: tuple[Stretch, ...] = ()
    polled: float | None = None
    graphics: Stretch | None = None
    sm: Stretch | None = None
    tensor: Stretch | None = None
    memory: int | None = None
    energy_j: float | None = None
    processes: tuple[Process, ...] | None = None
    active: dict[int, float] | None = None
    lost: bool = False


class Probe(Protocol):
    """Reads one device. Used by one thread at a time.

    Attributes:
        ring_ns: how much time the driver's samples span: looks must be nearer together. None when it keeps none, or is not yet known.
        power_limit_w: the most that the device draws; None when unknown.
        busy_source, active_source, memory_source, energy_source: how the figures are called; empty where there are none.
    """

    ring_ns: int | None
    power_limit_w: float | None
    busy_source: str
    active_source: str
    memory_source: str
    energy_source: str

    def read(self, clock: Clock) -> Reading:
        """Everything that is new since the last look."""
        ...

    def close(self) -> None:
        """Give back what the driver holds for this probe."""
        ...


class Backend(Protocol):
    """One vendor.

    Attributes:
        vendor: as in `Device.vendor`.
    """

    vendor: str

    def likely(self) -> bool:
        """Whether asking is worth it, from what costs nothing to look at: a device file, the platform."""
        ...

    def inventory(self) -> Inventory:
        """The devices of this vendor in the machine."""
        ...

    def probe(self, device: Device) -> Probe:
        """A reader for one device; one that reads nothing where the driver cannot be asked."""
        ...

    def event_factory(self) -> Callable[[], Any] | None:
        """Makes timing events of the device (`record`, `query`, `elapsed_time`), None where the framework that has them is not loaded."""
        ...
