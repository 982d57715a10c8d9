"""The edges: other people's code. Nothing here is imported before somebody asks for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifinops.integrations.registry import instrument, state, uninstrument
    from aifinops.integrations.responses import price_response

__all__ = ["instrument", "price_response", "state", "uninstrument"]

_HOMES = {"instrument": "registry", "price_response": "responses", "state": "registry", "uninstrument": "registry"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value
