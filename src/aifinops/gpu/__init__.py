"""GPU time and GPU dollars: what a process holds, for how long, at what price, and whose turn it is. Nothing is touched before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifinops.gpu.quota import read_quotas
    from aifinops.gpu.rates import rate
    from aifinops.gpu.slots import current_slot, slot
    from aifinops.gpu.where import place

__all__ = ["current_slot", "place", "rate", "read_quotas", "slot"]

_HOMES = {
    "current_slot": "slots",
    "place": "where",
    "rate": "rates",
    "read_quotas": "quota",
    "slot": "slots",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
