"""What a call holds."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from aifinops.budgets.stores.base import Node, Store
from aifinops.errors import BudgetExceeded

__all__ = ["Part", "Reservation"]


class Part:
    """What one call holds in one store.

    Attributes:
        store: where. nodes, amounts: what is held of which, outermost budget first. enforced: the nodes without the limits that were lifted.
        short: True where the store holds less than that: it was down when the call grew, or what was held had run out.
    """

    __slots__ = ("amounts", "enforced", "nodes", "short", "store")

    def __init__(self, store: Store, nodes: tuple[Node, ...], amounts: tuple[int, ...]) -> None:
        self.store = store
        self.nodes = self.enforced = nodes
        self.amounts = amounts
        self.short = False


class Reservation:
    """What one call holds.

    Attributes:
        id: chosen by the caller. parts: one a store. unheld: of stores that did not answer; their budgets let the call through.
        exceeded: budgets that had no room and let it through all the same (`on_exceed="warn"` or a callable).
        granted: tags that say who allowed it to go above a limit. unit: the one that every node counts; empty where they count several.
        thread: that made it. until: end of the lease, nanoseconds since the epoch. step: how often it was drawn from.
    """

    __slots__ = ("exceeded", "granted", "id", "parts", "step", "thread", "unheld", "unit", "until")

    def __init__(
        self,
        id: str,
        parts: Sequence[Part],
        exceeded: Sequence[BudgetExceeded] = (),
        unheld: Sequence[Part] = (),
        until: int = 2**63,
    ) -> None:
        self.id = id
        self.until = until
        self.step = 0
        self.parts = parts
        self.unheld = unheld
        self.exceeded = tuple(exceeded)
        self.granted: Mapping[str, str] | None = None
        self.thread = threading.get_ident()
        nodes = (parts or unheld)[0].nodes
        unit = nodes[0].unit
        if len(nodes) + len(parts) + len(unheld) > 2:  # else there is no other node
            same = all(node.unit == unit for part in (*parts, *unheld) for node in part.nodes)
            unit = unit if same else ""
        self.unit = unit

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Of all parts."""
        return tuple(node for part in self.parts for node in part.nodes)

    @property
    def amounts(self) -> tuple[int, ...]:
        """One a node."""
        return tuple(amount for part in self.parts for amount in part.amounts)
