"""Allocated GPU time of a block: devices held x elapsed time, which is what the bill is. A clock and the device list, nothing else."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

from aifinops import metering, runtime
from aifinops.errors import ConfigurationError
from aifinops.gpu.devices import inventory, visible

__all__ = ["Window", "open_window"]


class Window:
    """Started when made; `close` records one charge per device model."""

    def __init__(self, models: Counter[str]) -> None:
        self._models = models
        self._clock = runtime.get().clock
        self._started = self._clock.monotonic_ns()
        self._wall = self._clock.time_ns()

    def close(self) -> None:
        """Record `gpu_seconds` = devices x elapsed seconds; without a price for the device the cost is unknown, the time is not."""
        elapsed = Decimal(self._clock.monotonic_ns() - self._started).scaleb(-9)
        for model, count in self._models.items():
            metering.record(
                usage={"gpu_seconds": elapsed * count},
                model=model,
                provider="local",
                operation="gpu",
                service="gpu",
                at=self._wall,
            )


def open_window(spec: Any) -> Window:
    """Begin metering the GPUs that `spec` names.

    Args:
        spec: `"auto"`: those that this process may use (`CUDA_VISIBLE_DEVICES`, `LOCAL_RANK`); or a mapping of device
            model to count, for machines where NVML cannot be asked.

    Raises:
        ConfigurationError: for anything else.
    """
    if spec == "auto":
        return Window(Counter(device.name for device in visible(inventory().devices)))
    if isinstance(spec, dict) and all(isinstance(count, int) and count > 0 for count in spec.values()):
        return Window(Counter(spec))
    raise ConfigurationError(f'gpu={spec!r} must be "auto" or a mapping such as {{"NVIDIA H100 80GB HBM3": 8}}')
