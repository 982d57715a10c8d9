"""The GPUs that this process may use, by UUID, through NVML (`pynvml` of nvidia-ml-py), asked only when somebody wants to know.

`CUDA_VISIBLE_DEVICES` is read as CUDA reads it: indices or UUID prefixes (`GPU-...`, `MIG-...`), up to the first entry that names
nothing; a duplicate makes the list empty (https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Device", "Inventory", "inventory", "visible"]


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU.

    Attributes:
        index: NVML's index (PCI order). uuid: `GPU-...`. name: product name. memory: total bytes, None when not reported.
    """

    index: int
    uuid: str
    name: str
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """What NVML said.

    Attributes:
        devices: all of the machine. driver: version, empty without one. reason: why there are none, else empty.
    """

    devices: tuple[Device, ...] = ()
    driver: str = ""
    reason: str = ""


def inventory() -> Inventory:
    """Ask NVML once; a machine without driver or devices is an answer, not an error."""
    try:
        import pynvml
    except ImportError as error:
        return Inventory(reason=f"pynvml cannot be imported: {error}")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Inventory(reason=f"no NVIDIA driver: {error}")
    try:
        found = tuple(_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
        return Inventory(
            found, _text(pynvml.nvmlSystemGetDriverVersion()), "" if found else "the driver sees no device"
        )
    except pynvml.NVMLError as error:
        return Inventory(reason=f"NVML failed: {error}")
    finally:
        pynvml.nvmlShutdown()


def _device(pynvml: Any, index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        memory: int | None = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:  # unified-memory systems report none
        memory = None
    return Device(index, _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle)), memory)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def visible(devices: Sequence[Device], environ: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """Those of `devices` that this process may use; under torchrun (`LOCAL_RANK`), the one of its rank."""
    chosen = _by_variable(devices, environ.get("CUDA_VISIBLE_DEVICES"))
    rank = environ.get("LOCAL_RANK", "")
    if rank.isdigit() and len(chosen) > 1:
        return chosen[int(rank) : int(rank) + 1]
    return chosen


def _by_variable(devices: Sequence[Device], value: str | None) -> tuple[Device, ...]:
    if value is None:
        return tuple(devices)
    chosen: list[Device] = []
    for entry in (part.strip() for part in value.split(",")):
        found = _named(devices, entry)
        if found is None:
            break
        if found in chosen:
            return ()
        chosen.append(found)
    return tuple(chosen)


def _named(devices: Sequence[Device], entry: str) -> Device | None:
    if entry.isdigit():
        return next((device for device in devices if device.index == int(entry)), None)
    matching = [device for device in devices if entry.startswith("GPU-") and device.uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None
