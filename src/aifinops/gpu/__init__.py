"""GPU time and GPU dollars: what this process holds, for how long, at what price, how much of it was of use, and whose turn it is.

Names are loaded when they are first used: importing this touches no device, starts no thread and asks nobody.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifinops.gpu.quota import read_quotas
    from aifinops.gpu.rates import rate
    from aifinops.gpu.run import Run, track
    from aifinops.gpu.serving import Serving
    from aifinops.gpu.slots import current_slot, slot
    from aifinops.gpu.usage import Forecast, GpuUsage, total
    from aifinops.gpu.where import place

__all__ = [
    "Forecast",
    "GpuUsage",
    "Run",
    "Serving",
    "current_slot",
    "place",
    "rate",
    "read_quotas",
    "slot",
    "total",
    "track",
]

_HOMES = {
    "Forecast": "usage",
    "GpuUsage": "usage",
    "Run": "run",
    "Serving": "serving",
    "current_slot": "slots",
    "place": "where",
    "rate": "rates",
    "read_quotas": "quota",
    "slot": "slots",
    "total": "usage",
    "track": "run",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value
