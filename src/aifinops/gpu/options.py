"""What a run is told when it is made; `aifinops.gpu.track` says what each of it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aifinops import runtime
from aifinops.errors import ConfigurationError
from aifinops.gpu.peaks import peak_given

__all__ = ["Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The arguments of `track`, but for its name and tags.

    Raises:
        ConfigurationError: for times that are none, and a peak that is none.
    """

    devices: Any = "auto"
    price: Any = "auto"
    run_id: str = ""
    checkpoint: Callable[[], object] | None = None
    slice_s: float = 10.0
    allowance_s: float = 30.0
    total_steps: int | None = None
    flops_per_step: float | None = None
    peak_flops: float | str | None = None
    idle_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.idle_minutes is not None and self.idle_minutes < 0:
            raise ConfigurationError(f"idle_minutes={self.idle_minutes!r} must be minutes, or 0 for never")
        if self.slice_s <= 0 or self.allowance_s < 0:
            raise ConfigurationError(
                f"slice_s={self.slice_s!r} must be above 0 and allowance_s={self.allowance_s!r} no less than 0"
            )
        peak_given(self.peak_flops)

    @property
    def idle_s(self) -> float:
        """After how many seconds idle devices are told of: as given, else as the setting has it."""
        minutes = runtime.get().config.gpu_idle_minutes if self.idle_minutes is None else self.idle_minutes
        return 60 * minutes
