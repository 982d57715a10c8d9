"""The vendors, one module each; which of them may have devices here is seen by what costs nothing to look at."""

from __future__ import annotations

from aifinops.gpu.backends.base import Backend, Device
from aifinops.gpu.backends.null import NullBackend

__all__ = ["of", "present"]


def present() -> tuple[Backend, ...]:
    """The backends whose hardware may be here; NVIDIA's always, since its answer says why there is none."""
    from aifinops.gpu.backends import amd, apple, nvidia, tpu

    others: tuple[Backend, ...] = (amd.AmdBackend(), tpu.TpuBackend(), apple.AppleBackend())
    return (nvidia.NvidiaBackend(), *(backend for backend in others if backend.likely()))


def of(device: Device) -> Backend:
    """The backend of a device."""
    return next((backend for backend in present() if backend.vendor == device.vendor), NullBackend())
