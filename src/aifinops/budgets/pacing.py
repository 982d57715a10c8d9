"""Pacing: what a window has is spread over it, so that it is not gone on its first morning.

A budget with `pace=0.1` lets calls through as long as what is spent and held is at most a tenth of the limit ahead of even spending:
`limit x (time that has passed / length of the window + pace)`. What is ahead of that meets `on_exceed`, as what is above the limit does:
it waits, is sent to a cheaper model, and so on. The limit itself is held by the store; the pace is judged here, before, from figures that
may be a quarter of a second old, so calls of several processes may get a little ahead of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from aifinops.budgets.budget import ActiveBudget
from aifinops.budgets.policy import Balance, Decision, Refusal
from aifinops.budgets.reservations import Part
from aifinops.budgets.stores.base import Node, Read, Store

__all__ = ["Pacer"]

_FRESH_NS = 250_000_000
_SEEN_MOST = 1024


class Pacer:
    """Judges calls by the pace of their budgets."""

    def __init__(self) -> None:
        # When it was read, what it was, and what was let through since.
        self._seen: OrderedDict[str, tuple[int, Balance, int]] = OrderedDict()

    def judge(self, part: Part, budgets: Sequence[ActiveBudget], at: int) -> Decision | None:
        """Why a call would be ahead of a pace; None when it is not.

        Args:
            part: what it asks of one store. budgets: of the call. at: when, nanoseconds since the epoch.

        Raises:
            StoreError: when the store fails.
        """
        paces = {active.key: active.budget.pace for active in budgets if active.budget.pace is not None}
        refusals: list[Refusal] = []
        room_at = at
        taken: list[tuple[Node, int]] = []
        for index, (node, amount) in enumerate(zip(part.nodes, part.amounts, strict=True)):
            pace = paces.get(node.budget)
            if pace is None or node.limit is None or not amount:
                continue
            balance = self._balance(part.store, node, at)
            allowed = _allowed(node, pace, at)
            if balance.spent + balance.reserved + amount > allowed:
                refusals.append(Refusal(index, replace(balance, limit=allowed), amount))
                room_at = max(room_at, _when(node, pace, balance.spent + amount))
            taken.append((node, amount))
        if refusals:
            return Decision(False, tuple(refusals), at, room_at)
        for node, amount in taken:
            known = self._seen.get(node.key)
            if known is not None:
                self._seen[node.key] = known[0], known[1], known[2] + amount
        return None

    def _balance(self, store: Store, node: Node, at: int) -> Balance:
        """How a node stands, with what was let through since that was read."""
        read, balance, more = self._seen.get(node.key, (0, Balance(0), 0))
        if not 0 <= at - read < _FRESH_NS or store.capabilities.io == "none":
            (balance,) = Read((node,)).execute(store)
            more = 0
            self._seen[node.key] = at, balance, more
            self._seen.move_to_end(node.key)
            if len(self._seen) > _SEEN_MOST:
                self._seen.popitem(last=False)
        return replace(balance, reserved=balance.reserved + more)


def _allowed(node: Node, pace: Decimal, at: int) -> int:
    """What may be spent and held at that moment."""
    limit, length = node.limit or 0, node.until - node.window
    ahead, of = pace.as_integer_ratio()
    return min(limit, limit * (at - node.window) // length + limit * ahead // of)


def _when(node: Node, pace: Decimal, taken: int) -> int:
    """When so much will be allowed: nanoseconds since the epoch, at most the end of the window."""
    limit, length = node.limit or 0, node.until - node.window
    ahead, of = pace.as_integer_ratio()
    behind = taken - limit * ahead // of
    return min(node.until, node.window + -(-behind * length // limit) + 1) if limit else node.until
