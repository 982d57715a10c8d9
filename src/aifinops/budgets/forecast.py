"""How fast a budget is being spent, and whether that is too fast for its window. Pure: figures in, figures out.

The rate is an exponentially weighted moving average over a twelfth of the window. In the first twelfth nothing is foreseen: the first calls
of a day do not foretell ruin.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import Node

__all__ = ["Burn", "Outlook", "outlook"]

_NS = 1_000_000_000
_SHARE, _LEAST_NS = 12, 60 * _NS


@dataclass(frozen=True, slots=True)
class Burn:
    """A rate that was measured.

    Attributes:
        at: when, nanoseconds since the epoch. spent: of the node then. rate: steps a second.
    """

    at: int
    spent: int
    rate: float

    @classmethod
    def begin(cls, node: Node, spent: int, at: int) -> Burn:
        """The first look at a window."""
        return cls(at, spent, spent * _NS / max(at - node.window, _memory(node)))

    def next(self, node: Node, spent: int, at: int) -> Burn:
        """A later look."""
        passed = at - self.at
        if passed <= 0:  # the clock was put back
            return Burn(at, spent, self.rate)
        weight = -math.expm1(-passed / _memory(node))
        measured = max(0, spent - self.spent) * _NS / passed
        return Burn(at, spent, self.rate + weight * (measured - self.rate))

    def faded(self, node: Node, at: int) -> Burn:
        """What is left of the rate when nothing was spent since."""
        return self.next(node, self.spent, at) if at > self.at else self

    def to_text(self) -> str:
        """For a note."""
        return json.dumps([self.at, self.spent, self.rate])

    @classmethod
    def from_text(cls, text: str) -> Burn | None:
        """Back again; None for anything else."""
        try:
            at, spent, rate = json.loads(text)
            return cls(int(at), int(spent), float(rate))
        except (ValueError, TypeError):
            return None


def _memory(node: Node) -> int:
    return max((node.until - node.window) // _SHARE, _LEAST_NS)


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where it ends if it goes on like this.

    Attributes:
        projected: spent at the end of the window, in steps. seconds: until the limit is reached; None when it is never.
        crosses: True when that is before the window ends, the limit is not reached already, and there was time enough to tell.
    """

    projected: int
    seconds: float | None
    crosses: bool


def outlook(node: Node, balance: Balance, burn: Burn, now: int) -> Outlook:
    """Project a window that has an end."""
    left = max(0, node.until - now) / _NS
    projected = balance.spent + int(burn.rate * left)
    if balance.limit is None or burn.rate <= 0:
        return Outlook(projected, None, crosses=False)
    room = balance.limit - balance.spent
    seconds = max(0, room) / burn.rate
    enough = now - node.window >= _memory(node)
    return Outlook(projected, seconds, crosses=enough and room > 0 and projected > balance.limit)
