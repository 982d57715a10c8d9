"""Test doubles and published test suites: for users, and for those who write a store or a ledger of their own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifinops.testing.budget_store import check_budget_store
    from aifinops.testing.capture import capture_charges
    from aifinops.testing.clock import FakeClock
    from aifinops.testing.ledger import check_ledger
    from aifinops.testing.linearizability import check_linearizable
    from aifinops.testing.scripted import Request, ScriptedProvider
    from aifinops.testing.server import FakeProvider, Served

__all__ = [
    "FakeClock",
    "FakeProvider",
    "Request",
    "ScriptedProvider",
    "Served",
    "capture_charges",
    "check_budget_store",
    "check_ledger",
    "check_linearizable",
]

_HOMES = {
    "FakeClock": "clock",
    "FakeProvider": "server",
    "Request": "scripted",
    "ScriptedProvider": "scripted",
    "Served": "server",
    "capture_charges": "capture",
    "check_budget_store": "budget_store",
    "check_ledger": "ledger",
    "check_linearizable": "linearizability",
}


def __getattr__(name: str) -> Any:
    """Load a name from its module on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
