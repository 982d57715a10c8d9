"""When a run ends: by its own budget, or at the step that all ranks have agreed on."""

from __future__ import annotations

import logging
from typing import Any

from aifinops.errors import BudgetExceeded, RunStopped, StoreError, swallow
from aifinops.gpu import distributed

__all__ = ["Ending", "stopped"]

logger = logging.getLogger("aifinops.gpu")

_NS = 1_000_000_000
_MARGIN = 2  # the last steps before all ranks stop may be slower than the average


class Ending:
    """The decision to end, of one rank.

    Args:
        board: where ranks leave a note for one another; None for a process that ends alone. rank: for messages.

    Attributes:
        due: when to look at the board next, on the monotonic clock.
    """

    def __init__(self, board: distributed.StopBoard | None, rank: int) -> None:
        self.due = 0
        self._board = board
        self._rank = rank
        self._note: dict[str, Any] | None = None

    @property
    def together(self) -> bool:
        """Whether other ranks end at the same step."""
        return self._board is not None

    @property
    def decided(self) -> bool:
        """Whether a note says at which step it ends."""
        return self._note is not None

    def way(self, longest: int, step_s: float | None) -> int:
        """Nanoseconds that the end may still take: a step, or those that all ranks still make."""
        if self._board is None or step_s is None:
            return longest
        return longest + int(_MARGIN * distributed.steps_ahead(step_s) * step_s * _NS)

    def judge(self, now: int, steps: int, refusal: BudgetExceeded | None, step_s: float) -> BudgetExceeded | None:
        """Why to stop at this step; None to go on.

        Args:
            now: on the monotonic clock. steps: made so far. refusal: of this rank's own budgets. step_s: what a step takes.
        """
        board = self._board
        if board is None:
            return refusal
        if self._note is None and refusal is not None:
            self._note = _proposed(board, steps + distributed.steps_ahead(step_s), refusal)
        elif self._note is None and now >= self.due:
            self.due = now + distributed.LOOK_NS
            self._note = distributed.look(board)
        note = self._note
        if note is None or steps < int(note["step"]):
            return None
        if steps > int(note["step"]):
            logger.warning("aifinops: rank %d saw the note to stop after step %s late", self._rank, note["step"])
        return distributed.stopped(note, steps)


def _proposed(board: distributed.StopBoard, step: int, refusal: BudgetExceeded) -> dict[str, Any] | None:
    try:
        return board.propose(step, refusal)
    except (StoreError, OSError) as failure:  # alone it would leave the others waiting for ever: it is tried again
        swallow("gpu.stop_note", failure)
        return None


def stopped(refusal: BudgetExceeded, step: int) -> RunStopped:
    """What a run raises after this step."""
    error = RunStopped(
        refusal.budget,
        step=step,
        unit=refusal.unit,
        limit=refusal.limit,
        spent=refusal.spent,
        reserved=refusal.reserved,
        asked=refusal.asked,
        resets_at=refusal.resets_at,
        decision_id=refusal.decision_id,
        hint=refusal.hint,
    )
    error.__cause__ = refusal
    return error
