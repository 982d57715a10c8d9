"""AMD through `amdsmi`, asked only where the kernel has its compute driver: without the library its import prints and raises `KeyError`.

The driver keeps no ring: its load is polled, says nothing of the time between two looks, and has no error bound. The energy counter and the
list of processes are exact (https://rocm.docs.amd.com/projects/amdsmi/en/latest/reference/amdsmi-py-api.html).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aifinops.clock import Clock
from aifinops.gpu.backends.base import Device, Inventory, Process, Reading
from aifinops.gpu.backends.null import NullProbe

__all__ = ["AmdBackend", "AmdProbe"]

_KFD = Path("/dev/kfd")


class AmdBackend:
    """All GPUs that amdsmi shows."""

    vendor = "amd"

    def __init__(self, kfd: Path = _KFD) -> None:
        self._kfd = kfd

    def likely(self) -> bool:
        """Whether the kernel has AMD's compute driver."""
        return self._kfd.exists()

    def inventory(self) -> Inventory:
        """Ask amdsmi once."""
        smi, reason = _opened() if self.likely() else (None, f"{self._kfd} is not there")
        if smi is None:
            return Inventory(reason=reason)
        try:
            handles = smi.amdsmi_get_processor_handles()
            found = tuple(_device(smi, index, handle) for index, handle in enumerate(handles))
            driver = _asked(smi, "amdsmi_get_gpu_driver_info", handles[0]) if handles else None
        except Exception as error:  # amdsmi raises its own, KeyError and OSError
            return Inventory(reason=f"amdsmi failed: {error}")
        finally:
            _shut(smi)
        return Inventory(found, str((driver or {}).get("driver_version", "")), "" if found else "amdsmi sees no GPU")

    def probe(self, device: Device) -> AmdProbe | NullProbe:
        """A reader of this device; it holds amdsmi open until it is closed."""
        smi, _ = _opened()
        if smi is None:
            return NullProbe()
        try:
            handles = {smi.amdsmi_get_gpu_device_uuid(handle): handle for handle in smi.amdsmi_get_processor_handles()}
            handle = handles[device.uuid.removeprefix("GPU-")]
        except Exception:  # gone since it was listed
            _shut(smi)
            return NullProbe()
        return AmdProbe(smi, handle)

    def event_factory(self) -> Callable[[], Any] | None:
        """torch for ROCm has `torch.cuda.Event` too."""
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is None or not cuda.is_initialized():
            return None
        return lambda: cuda.Event(enable_timing=True)


class AmdProbe:
    """Reads one GPU."""

    ring_ns: int | None = None
    busy_source = "amdsmi_polled"
    active_source = ""
    memory_source = "amdsmi_memory"
    energy_source = "amdsmi_energy_counter"

    def __init__(self, smi: Any, handle: Any) -> None:
        self._smi = smi
        self._handle = handle
        cap = _number((_asked(smi, "amdsmi_get_power_cap_info", handle) or {}).get("power_cap"))
        self.power_limit_w = cap / 1e6 if cap else None  # microwatts

    def read(self, clock: Clock) -> Reading:
        """One look; what amdsmi cannot say is None."""
        before = clock.monotonic_ns()
        energy = _asked(self._smi, "amdsmi_get_energy_count", self._handle)
        load = _number((_asked(self._smi, "amdsmi_get_gpu_activity", self._handle) or {}).get("gfx_activity"))
        at = clock.monotonic_ns()
        return Reading(
            at,
            at - before,
            polled=None if load is None else load / 100,
            memory=_asked(self._smi, "amdsmi_get_gpu_memory_usage", self._handle, self._smi.AmdSmiMemoryType.VRAM),
            energy_j=_joules(energy),
            processes=_processes(_asked(self._smi, "amdsmi_get_gpu_process_list", self._handle)),
        )

    def close(self) -> None:
        """Let amdsmi go."""
        _shut(self._smi)


def _opened() -> tuple[Any, str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its library is missing
            amdsmi = importlib.import_module("amdsmi")
        amdsmi.amdsmi_init()
    except Exception as error:
        return None, f"amdsmi cannot be used: {type(error).__name__}: {error}"
    return amdsmi, ""


def _shut(smi: Any) -> None:
    with contextlib.suppress(Exception):
        smi.amdsmi_shut_down()


def _asked(smi: Any, name: str, *arguments: Any) -> Any:
    try:
        return getattr(smi, name)(*arguments)
    except Exception:  # "not supported" is one of its library's codes; on guests of a hypervisor many are
        return None


def _device(smi: Any, index: int, handle: Any) -> Device:
    uuid = str(smi.amdsmi_get_gpu_device_uuid(handle))
    name = str((_asked(smi, "amdsmi_get_gpu_asic_info", handle) or {}).get("market_name", "")) or "AMD GPU"
    memory = _number(_asked(smi, "amdsmi_get_gpu_memory_total", handle, smi.AmdSmiMemoryType.VRAM))
    return Device(
        index, uuid if uuid.startswith("GPU-") else f"GPU-{uuid}", name, int(memory) if memory else None, "amd"
    )


def _joules(energy: Any) -> float | None:
    counted = _number((energy or {}).get("energy_accumulator"))
    unit = _number((energy or {}).get("counter_resolution"))  # microjoules
    return None if counted is None or unit is None else counted * unit / 1e6


def _processes(rows: Any) -> tuple[Process, ...] | None:
    if rows is None:
        return None
    return tuple(Process(int(row["pid"]), row.get("memory_usage", {}).get("vram_mem")) for row in rows)


def _number(value: Any) -> float | None:
    """Numbers only: amdsmi says "N/A" for what it does not know."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
