"""A tracker for Accelerate: `Accelerator(log_with=CostTracker("finetune"))`. Imported by whoever trains with it, and by nobody else.

Steps are counted by the hooks in torch (`aifinops.instrument()`); the tracker holds the run from `init_trackers` to `end_training`.
"""

from __future__ import annotations

from typing import Any

from accelerate.tracking import GeneralTracker  # type: ignore[import-not-found, unused-ignore]  # it is not installed where types are checked

from aifinops.gpu.run import Run, track

__all__ = ["CostTracker"]


class CostTracker(GeneralTracker):  # type: ignore[misc, unused-ignore]  # it has no types where Accelerate is not installed
    """Opens a run on every rank, since each pays for its own device.

    Args:
        run_name: of the run. run: a run that is open already. **arguments: of `aifinops.gpu.track`.

    Attributes:
        run: the run.
    """

    name = "aifinops"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, run_name: str = "accelerate", run: Run | None = None, **arguments: Any) -> None:
        super().__init__()
        self._own = run is None
        self.run: Run = track(**{"name": run_name, **arguments}) if run is None else run

    def start(self) -> None:
        """Begin to hold; Accelerate calls it in `init_trackers`."""
        if self._own and not self.run.attempt:
            self.run.__enter__()

    @property
    def tracker(self) -> Run:
        """The run."""
        return self.run

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Begin, for versions of Accelerate that have no `start`."""
        self.start()

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Metrics of the model are no matter here."""

    def finish(self) -> None:
        """End."""
        if self._own and self.run.is_open:
            self.run.__exit__(None, None, None)
