"""A callback for Lightning: `Trainer(..., callbacks=[CostCallback()])`. Imported by whoever trains with it, and by nobody else."""

from __future__ import annotations

import sys
from typing import Any

if "lightning" in sys.modules or "pytorch_lightning" not in sys.modules:
    from lightning.pytorch.callbacks import Callback  # type: ignore[import-not-found, unused-ignore]  # it is not installed where types are checked
else:
    from pytorch_lightning.callbacks import Callback  # type: ignore[import-not-found, unused-ignore]  # it is not installed where types are checked

from aifinops.gpu.run import Run
from aifinops.integrations.training.callback import RunCallback

__all__ = ["CostCallback"]


class CostCallback(RunCallback, Callback):  # type: ignore[misc, unused-ignore]  # it has no types where Lightning is not installed
    """Counts optimizer steps, times validation and checkpoints, and ends the training when a budget does, after the `checkpoint` of the run.

    Args:
        run: a run that is open already; without one, one is begun and ended with the training.
        **arguments: of `aifinops.gpu.track`.
    """

    def __init__(self, run: Run | None = None, **arguments: Any) -> None:
        super().__init__(run, **arguments)
        self._made = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        run = self._begin("lightning")
        total = trainer.estimated_stepping_batches
        run.total_steps = int(total) if total not in {float("inf"), -1} else None
        self._made = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is done, and with it perhaps a step."""
        while self._made < trainer.global_step:
            self._made += 1
            if not self._open_run.advance():
                trainer.should_stop = True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Validation begins."""
        if self.run is not None and not trainer.sanity_checking:
            self._enter("eval")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Validation is over."""
        self._leave()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """A checkpoint is being written."""
        if self.run is not None:
            self.run.checkpointed()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The training has failed."""
        self._end(exception)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self._end()
