"""A callback for the Trainer of Hugging Face: `Trainer(..., callbacks=[CostCallback()])`.

Imported by whoever trains with transformers, and by nobody else.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback  # type: ignore[import-not-found, unused-ignore]  # it is not installed where types are checked

from aifinops.integrations.training.callback import RunCallback

__all__ = ["CostCallback"]


class CostCallback(RunCallback, TrainerCallback):  # type: ignore[misc, unused-ignore]  # it has no types where transformers is not installed
    """Counts steps, times evaluation and checkpoints, and ends the training when a budget does: it saves and stops, as early stopping does.

    Args:
        run: a run that is open already; without one, one is begun and ended with the training.
        **arguments: of `aifinops.gpu.track`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin."""
        self._begin("trainer").total_steps = state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step has ended; what the trainer does next is known already."""
        if not self._open_run.advance():
            control.should_save = control.should_training_stop = True
        self._enter("eval" if control.should_evaluate else "checkpoint_save" if control.should_save else "")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The evaluation is over."""
        self._enter("checkpoint_save" if control.should_save else "")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written."""
        seconds = self._leave()
        self._open_run.checkpointed(seconds)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The next step begins."""
        self._leave()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End."""
        self._end()
