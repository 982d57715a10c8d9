"""GPU time of a block: what `@track_cost(gpu=...)` opens, a run that is in force as long as the block."""

from __future__ import annotations

from typing import Any

from aifinops.gpu.run import Run

__all__ = ["open_window"]


def open_window(spec: Any, name: str = "") -> Run:
    """Begin metering the GPUs that `spec` names; `close` ends it.

    Args:
        spec: as `devices` of `aifinops.gpu.track`; a mapping with the key `devices` has its other arguments, too. name: of the block.

    Raises:
        ConfigurationError: for anything else. BudgetExceeded: when a budget has no room for a beginning.
    """
    arguments = dict(spec) if isinstance(spec, dict) and "devices" in spec else {"devices": spec}
    return Run(name, **arguments).start()
