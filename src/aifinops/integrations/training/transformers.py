"""A callback for the Trainer of Hugging Face: `Trainer(..., callbacks=[CostCallback()])`.

Imported by whoever trains with transformers, and by nobody else.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback  # type: ignore[import-not-found, unused-ignore]  # it is not installed where types are checked

from aifinops.gpu.run import Run, track

__all__ = ["CostCallback"]


class CostCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]  # it has no types where transformers is not installed
    """Counts steps, times evaluation and checkpoints, and ends the training when a budget does: it saves and stops, as early stopping does.

    Args:
        run: a run that is open already; without one, one is begun and ended with the training.
        **arguments: of `aifinops.gpu.track`.

    Attributes:
        run: the run; None before the training begins. Its `error` says why a budget has ended it.
    """

    def __init__(self, run: Run | None = None, **arguments: Any) -> None:
        self.run = run
        self._arguments = arguments
        self._own = run is None
        self._phase: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin."""
        if self._own:
            self.run = track(**{"name": "trainer", **self._arguments})
            self.run.__enter__()
        run = self._open_run
        run.counts_itself = True
        run.total_steps = state.max_steps

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
        self._leave()
        if self._own and self.run is not None:
            self.run.__exit__(None, None, None)

    @property
    def _open_run(self) -> Run:
        if self.run is None:
            raise RuntimeError("the training has not begun")
        return self.run

    def _enter(self, name: str) -> None:
        self._leave()
        if name:
            self._phase = self._open_run.timed(name)

    def _leave(self) -> float:
        phase, self._phase = self._phase, None
        return 0.0 if phase is None else phase.end()
