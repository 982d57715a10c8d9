"""Which runs are open in this process, which device is paid for by which of them, and the thread that keeps them while a step is long.

A device is paid for once: by the run that took it last. Where one begins inside of another, or beside it in another thread, the other pays
for it up to that moment, and again from when the new one ends.
"""

from __future__ import annotations

import atexit
import threading
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING

from aifinops import scope
from aifinops.clock import SystemClock
from aifinops.errors import swallow
from aifinops.forking import in_child

if TYPE_CHECKING:
    from aifinops.budgets.budget import ActiveBudget
    from aifinops.gpu.run import Run

__all__ = ["BEAT_S", "current_run", "innermost", "open_runs"]

BEAT_S = 2.0
"""Between two looks of the thread at the open runs, in seconds."""

innermost: ContextVar[Run | None] = ContextVar("aifinops_gpu_run", default=None)


class _Open:
    """The runs of this process, oldest first."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runs: list[Run] = []
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._registered = False
        self._blocks: Counter[str] = Counter()

    def block(self, run_id: str) -> int:
        """How many runs of that name this process has begun before."""
        with self.lock:
            self._blocks[run_id] += 1
            return self._blocks[run_id] - 1

    def add(self, run: Run) -> None:
        """A run has begun."""
        with self.lock:
            self.runs.append(run)
            if not self._registered:
                self._registered = True
                atexit.register(self._close_all)
                scope.budget_listeners.append(self)
            # A clock that a test moves is not kept by a thread that waits for a real one.
            if isinstance(run.clock, SystemClock) and (self._thread is None or not self._thread.is_alive()):
                self._wake.clear()
                self._thread = threading.Thread(target=self._keep, name="aifinops-gpu-runs", daemon=True)
                self._thread.start()

    def remove(self, run: Run) -> None:
        """A run has ended."""
        with self.lock:
            if run in self.runs:
                self.runs.remove(run)
            if not self.runs:
                self._wake.set()
                self._thread = None

    def _keep(self) -> None:
        wake = self._wake
        while not wake.wait(BEAT_S):
            for run in list(self.runs):
                try:
                    run.beat()
                except Exception as failure:  # the others are kept all the same
                    swallow("gpu.keeper", failure)

    def _close_all(self) -> None:
        for run in reversed(list(self.runs)):
            try:
                run.close()
            except Exception as failure:  # the process ends in any case
                swallow("gpu.exit", failure)

    def budget_entered(self, active: ActiveBudget) -> None:
        """A block with a budget was entered: the run of this context may have to pay it, too."""
        try:
            run = current_run()
            if run is not None:
                run.budget_entered(active)
        except Exception as failure:  # the block is the user's
            swallow("gpu.budget_entered", failure)

    def budget_left(self, active: ActiveBudget) -> None:
        """It was left: no run pays it any longer."""
        for run in list(self.runs):
            try:
                run.budget_left(active)
            except Exception as failure:  # the others all the same
                swallow("gpu.budget_left", failure)

    def reset_after_fork(self) -> None:
        """In a forked child: the devices are held, and paid for, by the parent."""
        runs, self.runs = self.runs, []
        self.lock = threading.RLock()
        self._wake = threading.Event()
        self._thread = None
        self._blocks.clear()
        for run in runs:
            run.forget()


open_runs = _Open()
in_child(open_runs.reset_after_fork)


def current_run() -> Run | None:
    """The run that a step belongs to: the innermost of this context, else the one that began last."""
    run = innermost.get()
    if run is not None and run.is_open:
        return run
    runs = open_runs.runs
    return runs[-1] if runs else None
