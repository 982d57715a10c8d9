"""The cost layer for AI code: prices, attributes and budgets every model call and GPU second of a process.

A list of names and nothing else. Each is loaded from its home when it is first used, so that `import aifinops` costs next to
nothing and brings in no third-party package.

PYTEST_DONT_REWRITE: with `aifinops run -m pytest` this is loaded before pytest is, which would complain.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifinops import gpu as gpu
    from aifinops._version import __version__
    from aifinops.budgets.budget import Budget
    from aifinops.charges import Charge, Cost, CostLine
    from aifinops.errors import (
        AIFinOpsError,
        ApprovalDenied,
        ApprovalPending,
        BudgetExceeded,
        ConfigurationError,
        DecisionFailed,
        ImpossibleUsage,
        PricingError,
        RunStopped,
        SlotUnavailable,
        StoreError,
        StoreReset,
        StoreUnavailable,
        StreamCut,
        UnknownModel,
        UnpricedCall,
    )
    from aifinops.integrations import instrument, price_response, uninstrument
    from aifinops.integrations.span_pricer import SpanPricer
    from aifinops.quote import estimate, price, price_self_hosted
    from aifinops.runtime import flush, init, register_price, shutdown
    from aifinops.scope import bind
    from aifinops.telemetry.exporting import DialectExporter
    from aifinops.track import budget, record, report, tags, track, track_cost
    from aifinops.usage import Sku, Usage

__all__ = [
    "AIFinOpsError",
    "ApprovalDenied",
    "ApprovalPending",
    "Budget",
    "BudgetExceeded",
    "Charge",
    "ConfigurationError",
    "Cost",
    "CostLine",
    "DecisionFailed",
    "DialectExporter",
    "ImpossibleUsage",
    "PricingError",
    "RunStopped",
    "Sku",
    "SlotUnavailable",
    "SpanPricer",
    "StoreError",
    "StoreReset",
    "StoreUnavailable",
    "StreamCut",
    "UnknownModel",
    "UnpricedCall",
    "Usage",
    "__version__",
    "bind",
    "budget",
    "estimate",
    "flush",
    "init",
    "instrument",
    "price",
    "price_response",
    "price_self_hosted",
    "record",
    "register_price",
    "report",
    "shutdown",
    "tags",
    "track",
    "track_cost",
    "uninstrument",
]

_HOMES = {
    "_version": ("__version__",),
    "budgets.budget": ("Budget",),
    "charges": ("Charge", "Cost", "CostLine"),
    "errors": (
        "AIFinOpsError",
        "ApprovalDenied",
        "ApprovalPending",
        "BudgetExceeded",
        "ConfigurationError",
        "DecisionFailed",
        "ImpossibleUsage",
        "PricingError",
        "RunStopped",
        "SlotUnavailable",
        "StoreError",
        "StoreReset",
        "StoreUnavailable",
        "StreamCut",
        "UnknownModel",
        "UnpricedCall",
    ),
    "integrations": ("instrument", "price_response", "uninstrument"),
    "integrations.span_pricer": ("SpanPricer",),
    "runtime": ("flush", "init", "register_price", "shutdown"),
    "scope": ("bind",),
    "quote": ("estimate", "price", "price_self_hosted"),
    "telemetry.exporting": ("DialectExporter",),
    "track": ("budget", "record", "report", "tags", "track", "track_cost"),
    "usage": ("Sku", "Usage"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Face(ModuleType):
    """This package as a module object on which a public name always wins over a submodule of that name.

    `track` and `tags` are functions for users and modules inside. The import system binds every submodule to its package as
    soon as it is loaded; that binding is left out for these names (`from aifinops.tags import ...` needs none).
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name == "gpu":  # `af.gpu.track(...)`: a module, which binds itself here once it is loaded
        return import_module(f"{__name__}.gpu")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
