"""Apple silicon: the one GPU of the chip, and what torch's MPS has allocated. Load and power need root there, so they are unknown."""

from __future__ import annotations

import ctypes
import platform
import sys
import uuid
from collections.abc import Callable
from typing import Any

from aifinops.clock import Clock
from aifinops.gpu.backends.base import Device, Inventory, Reading

__all__ = ["AppleBackend", "AppleProbe"]


class AppleBackend:
    """The GPU of this Mac."""

    vendor = "apple"

    def __init__(self, library: Any = None) -> None:
        self._library = library  # libSystem; tests bring their own

    def likely(self) -> bool:
        """Whether this is a Mac with Apple silicon."""
        return self._library is not None or (sys.platform == "darwin" and platform.machine() == "arm64")

    def inventory(self) -> Inventory:
        """Name and memory by `sysctl`, the identity by `gethostuuid`; no process is started."""
        if not self.likely():
            return Inventory(reason="no Apple silicon")
        try:
            library = self._library or ctypes.CDLL(None)
            name = _text(library, b"machdep.cpu.brand_string") or "Apple GPU"
            return Inventory((Device(0, f"APPLE-{_host(library)}", name, _number(library, b"hw.memsize"), "apple"),))
        except (OSError, AttributeError) as error:
            return Inventory(reason=f"the system cannot be asked: {error}")

    def probe(self, device: Device) -> AppleProbe:
        """A reader of what torch has allocated."""
        return AppleProbe()

    def event_factory(self) -> Callable[[], Any] | None:
        """`torch.mps.Event`, where torch is loaded and has MPS."""
        mps = _mps()
        return None if mps is None else lambda: mps.Event(enable_timing=True)


class AppleProbe:
    """Reads what this process has allocated on the GPU through torch."""

    ring_ns: int | None = None
    power_limit_w: float | None = None
    busy_source = active_source = energy_source = ""
    memory_source = "torch_mps"

    def read(self, clock: Clock) -> Reading:
        """One look."""
        mps = _mps()
        return Reading(clock.monotonic_ns(), memory=None if mps is None else int(mps.driver_allocated_memory()))

    def close(self) -> None:
        """Nothing is held."""


def _mps() -> Any:
    torch = sys.modules.get("torch")
    backend = getattr(getattr(torch, "backends", None), "mps", None)
    return getattr(torch, "mps", None) if backend is not None and backend.is_available() else None


def _text(library: Any, name: bytes) -> str:
    raw = _sysctl(library, name)
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _number(library: Any, name: bytes) -> int | None:
    raw = _sysctl(library, name)
    return int.from_bytes(raw[:8], sys.byteorder) if len(raw) >= 8 else None


def _sysctl(library: Any, name: bytes) -> bytes:
    size = ctypes.c_size_t(256)
    buffer = ctypes.create_string_buffer(size.value)
    if library.sysctlbyname(name, buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return b""
    return buffer.raw[: size.value]


def _host(library: Any) -> str:
    buffer = ctypes.create_string_buffer(16)
    wait = (ctypes.c_long * 2)(0, 0)  # struct timespec
    if library.gethostuuid(buffer, ctypes.byref(wait)) != 0:
        return f"{uuid.getnode():012x}"
    return str(uuid.UUID(bytes=buffer.raw))
