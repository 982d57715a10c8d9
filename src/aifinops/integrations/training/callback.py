"""What the callbacks of trainers share: a run that is theirs or somebody else's, and the phase that it is in."""

from __future__ import annotations

from typing import Any

from aifinops.gpu.run import Run, track

__all__ = ["RunCallback"]


class RunCallback:
    """Holds a run from the beginning of a training to its end.

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

    def _begin(self, name: str) -> Run:
        """The run, begun under that name where it is ours; from now on the trainer counts its steps."""
        if self._own:
            self.run = track(**{"name": name, **self._arguments})
            self.run.__enter__()
        self._open_run.counts_itself = True
        return self._open_run

    def _end(self, error: BaseException | None = None) -> None:
        self._leave()
        if self._own and self.run is not None and self.run.is_open:
            self.run.__exit__(None if error is None else type(error), error, None)

    @property
    def _open_run(self) -> Run:
        if self.run is None:
            raise RuntimeError("the training has not begun")
        return self.run

    def _enter(self, name: str) -> None:
        """Another phase; none for an empty name."""
        self._leave()
        if name:
            self._phase = self._open_run.timed(name)

    def _leave(self) -> float:
        """The phase is over; the seconds that it took."""
        phase, self._phase = self._phase, None
        return 0.0 if phase is None else phase.end()
