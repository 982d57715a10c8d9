"""The accelerators of the machine, by UUID, and which of them this process may use: what the drivers say, read as the runtimes read it.

Nothing is asked at import. Which are ours is said by environment variables:

- `CUDA_VISIBLE_DEVICES`: indices, as `strtoul` reads them, or UUIDs (`GPU-...`, `MIG-...`) that may be cut short; the first entry decides
  which. The list ends at the first entry that names nothing; a device that is named twice makes it empty
  (https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables).
- A GPU that is cut into slices (MIG) cannot be used as a whole: its first slice stands for it, and CUDA uses no more than that one
  (https://docs.nvidia.com/datacenter/tesla/mig-user-guide/).
- `NVIDIA_VISIBLE_DEVICES` is for the container runtime: inside, the drivers show nothing else and count from 0 again, so that its indices say
  nothing; UUIDs, and `none`, do.
- `ROCR_VISIBLE_DEVICES` and, among what it leaves, `HIP_VISIBLE_DEVICES` or else `CUDA_VISIBLE_DEVICES` for AMD
  (https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html); `TPU_VISIBLE_CHIPS` for TPUs.
- `LOCAL_RANK` of torchrun: the one device of this rank.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aifinops.forking import in_child
from aifinops.gpu import backends
from aifinops.gpu.backends.base import Device, Inventory

__all__ = ["Device", "Inventory", "forget", "held", "inventory", "visible"]

_KEPT_S = 60.0
"""For how long an answer of the drivers is good, in seconds: opening NVML takes a large part of a second on a machine with eight GPUs."""


class _Known:
    """The last answer of the drivers, for this process."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.found: Inventory | None = None
        self.asked = 0.0
        self.driver: Any = None


_known = _Known()
in_child(_known.forget)


def forget() -> None:
    """Ask the drivers again the next time."""
    _known.forget()


def inventory() -> Inventory:
    """The devices of all vendors; a machine without driver or devices is an answer, not an error. An answer is kept for a minute."""
    # A test may put another driver in its place.
    driver = sys.modules.get("pynvml")
    known = _known.found
    if known is not None and known.devices and _known.driver is driver and time.monotonic() - _known.asked < _KEPT_S:
        return known
    answers = [backend.inventory() for backend in backends.present()]
    devices = tuple(device for answer in answers for device in answer.devices)
    reasons = "; ".join(answer.reason for answer in answers if answer.reason and (answer.devices or not devices))
    found = Inventory(devices, next((answer.driver for answer in answers if answer.driver), ""), reasons)
    _known.found, _known.asked, _known.driver = found, time.monotonic(), sys.modules.get("pynvml")
    return found


def visible(devices: Sequence[Device], environ: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """Those of `devices` that this process may use; under torchrun (`LOCAL_RANK`), the one of its rank.

    A device that is named by an index which may mean another one has `confidence="low"`: the indices of CUDA count from the fastest
    device unless `CUDA_DEVICE_ORDER=PCI_BUS_ID`, those of the driver in PCI order, which is the same where all are of one model.
    """
    chosen = (
        *_of_nvidia([device for device in devices if device.vendor == "nvidia"], environ),
        *_of_amd([device for device in devices if device.vendor == "amd"], environ),
        *_of_google([device for device in devices if device.vendor == "google"], environ),
        *(device for device in devices if device.vendor not in {"nvidia", "amd", "google"}),
    )
    return _of_rank(chosen, environ)


def held(environ: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """The devices of this process. Once torch has CUDA in use, torch says which they are, by UUID; before, the variables do."""
    devices = inventory().devices
    named = _by_torch(devices)
    return _of_rank(named, environ) if named else visible(devices, environ)


def _of_rank(chosen: tuple[Device, ...], environ: Mapping[str, str]) -> tuple[Device, ...]:
    rank = environ.get("LOCAL_RANK", "")
    if not rank.isdigit() or len(chosen) < 2:
        return chosen
    mine = chosen[int(rank) % len(chosen)]
    # More ranks than devices: they share, by what rule only the program knows.
    return (mine,) if int(rank) < len(chosen) else (replace(mine, confidence="low"),)


def _by_torch(devices: Sequence[Device]) -> tuple[Device, ...]:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return ()
    by_number = {device.uuid.partition("-")[2]: device for device in devices}
    numbers = [str(getattr(cuda.get_device_properties(i), "uuid", "")) for i in range(cuda.device_count())]
    found = [by_number.get(number.removeprefix("GPU-").removeprefix("MIG-")) for number in numbers]
    return tuple(device for device in found if device) if all(found) else ()


# --- NVIDIA -----------------------------------------------------------------------------------------------------------


def _of_nvidia(devices: list[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    mine = _of_container(devices, environ.get("NVIDIA_VISIBLE_DEVICES", ""))
    value = environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return _all_of(mine)
    entries = [entry.strip() for entry in value.split(",")]
    for kind in ("GPU-", "MIG-"):
        if entries[0].startswith(kind):
            return _by_uuid(mine, entries, kind)
    unsure = len({device.name for device in mine}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    return _by_index(mine, entries, unsure=unsure)


def _of_container(devices: list[Device], value: str) -> list[Device]:
    if value == "none":
        return []
    entries = [entry.strip() for entry in value.split(",")]
    named = {
        found.uuid for entry in entries if entry.startswith(("GPU-", "MIG-")) and (found := _named(devices, entry))
    }
    if not named:
        return devices
    parents = {device.parent for device in devices if device.uuid in named}
    return [device for device in devices if device.uuid in named or device.uuid in parents or device.parent in named]


def _all_of(devices: list[Device]) -> tuple[Device, ...]:
    """What CUDA enumerates unasked: the whole GPUs, or, where one is cut, the first slice and nothing else."""
    slices = [device for device in devices if device.parent]
    if slices:
        return (slices[0] if len(slices) == 1 else replace(slices[0], confidence="low"),)
    return tuple(devices)


def _by_uuid(devices: list[Device], entries: list[str], kind: str) -> tuple[Device, ...]:
    chosen: list[Device] = []
    for entry in entries:
        found = _usable(devices, _named(devices, entry)) if entry.startswith(kind) else None
        if found is None:
            break
        if found in chosen:
            return ()
        chosen.append(found)
    return tuple(chosen)


def _by_index(devices: list[Device], entries: list[str], *, unsure: bool) -> tuple[Device, ...]:
    whole = [device for device in devices if not device.parent]
    chosen: list[Device] = []
    seen: set[int] = set()
    for entry in entries:
        number = _strtoul(entry)
        if number in seen:
            return ()
        # In order, not by `index`: where a lost GPU is missing, CUDA counts without it.
        found = _usable(devices, whole[number]) if 0 <= number < len(whole) else None
        if found is None:
            break
        seen.add(number)
        chosen.append(found)
    if unsure and len(chosen) < len(whole):
        return tuple(replace(device, confidence="low") for device in chosen)
    return tuple(chosen)


def _strtoul(entry: str) -> int:
    """The number that an entry begins with, as C reads it: `1gpu` is 1; -1 when there is none, or when it is negative."""
    digits = entry[1:] if entry[:1] in {"+", "-"} else entry
    count = next((place for place, letter in enumerate(digits) if letter not in "0123456789"), len(digits))
    if not count or (entry[0] == "-" and int(digits[:count])):
        return -1
    return int(digits[:count])


def _named(devices: Sequence[Device], entry: str) -> Device | None:
    """The one device whose UUID begins with the entry; None when there is none or more than one."""
    parent, _, instance = entry.removeprefix("MIG-").partition("/")
    if instance and parent.startswith("GPU-"):  # before R470: MIG-GPU-<uuid>/<GPU instance>/<compute instance>
        return _only(d for d in devices if d.parent.startswith(parent) and d.instance == instance)
    return _only(device for device in devices if device.uuid.startswith(entry))


def _only(found: Any) -> Device | None:
    matching = list(found)
    return matching[0] if len(matching) == 1 else None


def _usable(devices: Sequence[Device], device: Device | None) -> Device | None:
    """A GPU that is cut is used by its first slice."""
    if device is None or device.parent:
        return device
    return next((slice_ for slice_ in devices if slice_.parent == device.uuid), device)


# --- others -----------------------------------------------------------------------------------------------------------


def _of_amd(devices: list[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    left = _listed(devices, environ.get("ROCR_VISIBLE_DEVICES"))
    return tuple(_listed(left, environ.get("HIP_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))))


def _of_google(devices: list[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    return tuple(_listed(devices, environ.get("TPU_VISIBLE_CHIPS", environ.get("TPU_VISIBLE_DEVICES"))))


def _listed(devices: list[Device], value: str | None) -> list[Device]:
    """Indices and UUIDs, mixed; the list ends at what names nothing or something again."""
    if value is None:
        return devices
    chosen: list[Device] = []
    for entry in (part.strip() for part in value.split(",")):
        number = -1 if entry.startswith("GPU-") else _strtoul(entry)
        found = _named(devices, entry) if entry.startswith("GPU-") else None
        if 0 <= number < len(devices):
            found = devices[number]
        if found is None or found in chosen:
            break
        chosen.append(found)
    return chosen
