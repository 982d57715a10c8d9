"""Google's TPUs: chips by their device files, load and memory through `libtpu.sdk.tpumonitoring` where the program has libtpu.

The library's figures are gauges, one string per chip: polled, without an error bound
(https://cloud.google.com/tpu/docs/tpu-monitoring-library). The name that prices know comes from `TPU_ACCELERATOR_TYPE`, which Cloud TPU sets.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aifinops.clock import Clock
from aifinops.gpu.backends.base import Device, Inventory, Reading
from aifinops.gpu.backends.null import NullProbe

__all__ = ["TpuBackend", "TpuProbe"]

_NAMES = {
    "v2": "TPU v2",
    "v3": "TPU v3",
    "v4": "TPU v4",
    "v5litepod": "TPU v5e",
    "v5e": "TPU v5e",
    "v5p": "TPU v5p",
    "v6e": "TPU v6e",
    "tpu7x": "TPU7x",
}


class TpuBackend:
    """The chips of this host."""

    vendor = "google"

    def __init__(self, dev: Path = Path("/dev"), environ: Mapping[str, str] = os.environ) -> None:
        self._dev = dev
        self._environ = environ

    def likely(self) -> bool:
        """Whether there are device files of TPUs: `/dev/accel*`, or `/dev/vfio/*` where Cloud TPU has set its variables."""
        return bool(self._chips())

    def inventory(self) -> Inventory:
        """One device a chip; its UUID is made of the host's name and the chip's number, since TPUs have none."""
        kind = self._environ.get("TPU_ACCELERATOR_TYPE", "").partition("-")[0]
        name = _NAMES.get(kind, f"TPU {kind}".strip())
        host = self._environ.get("TPU_WORKER_HOSTNAMES", "") or socket.gethostname()
        worker = self._environ.get("TPU_WORKER_ID", "0")
        found = tuple(
            Device(index, f"TPU-{host}/{worker}/{index}", name, None, "google", confidence="high" if kind else "low")
            for index, _ in enumerate(self._chips())
        )
        return Inventory(found, reason="" if found else "no device files of TPUs")

    def probe(self, device: Device) -> TpuProbe | NullProbe:
        """A reader of one chip."""
        monitoring = _monitoring()
        return TpuProbe(monitoring, device.index) if monitoring is not None else NullProbe()

    def event_factory(self) -> Callable[[], Any] | None:
        """XLA has no timing events."""
        return None

    def _chips(self) -> list[Path]:
        found = sorted(self._dev.glob("accel[0-9]*"))
        if not found and "TPU_ACCELERATOR_TYPE" in self._environ:
            found = sorted(self._dev.glob("vfio/[0-9]*"))
        return found


class TpuProbe:
    """Reads one chip."""

    ring_ns: int | None = None
    power_limit_w: float | None = None
    busy_source = "tpu_duty_cycle_polled"
    active_source = ""
    memory_source = "tpu_hbm"
    energy_source = ""

    def __init__(self, monitoring: Any, index: int) -> None:
        self._monitoring = monitoring
        self._index = index

    def read(self, clock: Clock) -> Reading:
        """One look."""
        load = self._gauge("duty_cycle_pct")
        memory = self._gauge("hbm_capacity_usage")
        return Reading(
            clock.monotonic_ns(),
            polled=None if load is None else min(1.0, load / 100),
            memory=None if memory is None else int(memory),
        )

    def close(self) -> None:
        """Nothing is held."""

    def _gauge(self, name: str) -> float | None:
        try:
            return float(self._monitoring.get_metric(name).data()[self._index])
        except Exception:  # not supported on this chip, or no program runs on it yet: the list is then empty
            return None


def _monitoring() -> Any:
    try:
        return importlib.import_module("libtpu.sdk").tpumonitoring
    except Exception:  # no libtpu, one without the monitoring library, or one for another machine
        return None
