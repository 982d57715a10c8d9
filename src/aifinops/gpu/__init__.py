"""GPU time: which devices this process holds, for how long, at what price, and how much of it was of use.

Names are loaded when they are first used: importing this touches no device, starts no thread and asks nobody.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifinops.gpu.run import Run, track
    from aifinops.gpu.usage import Forecast, GpuUsage, total

__all__ = ["Forecast", "GpuUsage", "Run", "total", "track"]

_HOMES = {"Forecast": "usage", "GpuUsage": "usage", "Run": "run", "total": "usage", "track": "run"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value
