"""What the guard has to tell: to the audit log, and to whoever wants alerts. Nothing in here can fail a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec

from aifinops.budgets.audit import Audit
from aifinops.budgets.stores.base import Node, Store
from aifinops.errors import BudgetExceeded, StoreUnavailable, UnpricedCall, swallow

__all__ = ["Witness"]

P = ParamSpec("P")

_IDS_MOST = 20


def _quietly(method: Callable[P, None]) -> Callable[P, None]:
    """What was decided stands, also where nobody can be told."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as failure:
            swallow("budgets.witness", failure)

    return guarded


class Witness:
    """The one that the guard tells.

    Args:
        audit_of: finds the log that belongs to a store; None keeps none.
    """

    def __init__(self, audit_of: Callable[[Store], Audit] | None = None) -> None:
        self._audit_of = audit_of
        self._audits: dict[int, tuple[Store, Audit]] = {}
        self._nothing = Audit(None)

    def audit(self, store: Store) -> Audit:
        """The log that belongs to a store."""
        if self._audit_of is None:
            return self._nothing
        known = self._audits.get(id(store))
        if known is None:
            known = self._audits[id(store)] = (
                store,
                self._audit_of(store),
            )  # with the store, so that its id is not given again
        return known[1]

    def tidy(self) -> None:
        """Write what was added up and is due."""
        for _, audit in list(self._audits.values()):
            audit.tidy()

    def flush(self) -> None:
        """Write everything that waits."""
        for _, audit in list(self._audits.values()):
            audit.flush()

    def reset_after_fork(self) -> None:
        """In a forked child: what waits is the parent's."""
        for _, audit in list(self._audits.values()):
            audit.reset_after_fork()

    # --- decisions ----------------------------------------------------------------------------------------------------

    @_quietly
    def refused(self, store: Store, node: Node, error: BudgetExceeded, asked: int, waited: float = 0.0) -> None:
        """A call was refused; `asked` in steps of the node, after `waited` seconds."""
        self.audit(store).tell("refused", node, asked, lambda: _of_error(error), seconds=waited)

    @_quietly
    def let_through(self, store: Store, node: Node, error: BudgetExceeded | None, asked: int) -> None:
        """A call went on although there was no room, or without an error although nobody knew of any: the store is down."""
        audit = self.audit(store)
        audit.tell("let_through", node, asked, lambda: {"why": "store is down"} if error is None else _of_error(error))

    @_quietly
    def waited(self, store: Store, node: Node, seconds: float, id: str) -> None:
        """A call got its room after a while."""
        self.audit(store).tell("waited", node, 0, lambda: {"id": id}, seconds=seconds)

    # --- corrections --------------------------------------------------------------------------------------------------

    @_quietly
    def forfeited(self, store: Store, ids: Sequence[str]) -> None:
        """Holders vanished: what they held counts as spent."""
        if ids:
            self.audit(store).add("forfeited", ids=list(ids[:_IDS_MOST]), times=len(ids))

    @_quietly
    def overrun(self, store: Store, node: Node, more: int, id: str) -> None:
        """A call has cost more than was held for it."""
        self.audit(store).tell("overrun", node, more, lambda: {"id": id})

    @_quietly
    def late(self, store: Store, node: Node, actual: int | None, id: str) -> None:
        """The truth about a call came after its lease had run out."""
        self.audit(store).tell("late", node, actual or 0, lambda: {"id": id, "known": actual is not None})

    @_quietly
    def posted(self, store: Store, node: Node, amount: int, id: str) -> None:
        """Something was counted that nothing had been held for."""
        self.audit(store).tell("posted", node, amount, lambda: {"id": id})

    @_quietly
    def store_reset(self, store: Store, why: object) -> None:
        """The store has lost what it had."""
        self.audit(store).add("store_reset", why=why)


def _of_error(error: BudgetExceeded) -> dict[str, object]:
    if isinstance(error, StoreUnavailable):
        return {"id": error.decision_id, "limit": error.limit, "why": "store is down"}
    if isinstance(error, UnpricedCall):
        return {"id": error.decision_id, "limit": error.limit, "why": f"no price for {error.model}"}
    return {
        "id": error.decision_id,
        "limit": error.limit,
        "spent": error.spent,
        "reserved": error.reserved,
        "transient": error.transient or None,
    }
