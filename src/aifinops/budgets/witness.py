"""What the guard has to tell: to the audit log, and to whoever wants alerts. Nothing in here can fail a call."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from aifinops.budgets.alerts import Alert, Alerts
from aifinops.budgets.audit import Audit, head_note
from aifinops.budgets.budget import ActiveBudget, to_units
from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import Node, Operation, Put, Store
from aifinops.errors import (
    ApprovalDenied,
    ApprovalPending,
    BudgetExceeded,
    DecisionFailed,
    StoreUnavailable,
    UnpricedCall,
    swallow,
)

__all__ = ["Witness", "note_key"]

P = ParamSpec("P")

logger = logging.getLogger("aifinops.budgets")

_IDS_MOST, _TOLD_MOST, _TALLY_MOST, _COUNTED_MOST = 20, 4096, 1024, 256
_KEY_MOST = 200


def note_key(kind: str, node: Node) -> str:
    """The key of a note about one node, short enough for any store."""
    key = node.key if len(node.key) <= _KEY_MOST else hashlib.sha256(node.key.encode()).hexdigest()
    return f"{kind}\x1f{key}"


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
        audit_of: finds the log that belongs to a store; None keeps none. alerts: who wants to know.

    Attributes:
        ask: how a store is told something that it may as well be told another time; None where it does not answer. Set by the guard.
    """

    def __init__(self, audit_of: Callable[[Store], Audit] | None = None, alerts: Alerts | None = None) -> None:
        self._audit_of = audit_of
        self.alerts = alerts or Alerts()
        self.ask: Callable[[Store, Operation[Any]], Any] = lambda store, operation: None
        self._told: OrderedDict[str, None] = OrderedDict()
        self._audits: dict[int, tuple[Store, Audit]] = {}
        self._heads: dict[int, str] = {}
        self._tally: Counter[tuple[str, str]] = Counter()
        self._tally_lock = threading.Lock()
        self._counted: deque[tuple[str, str]] = deque()
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

    @_quietly
    def keep_heads(self, now: int) -> None:
        """Leave the head of each log in the store that it is of: a log whose end was cut off shows against it."""
        for store, audit in list(self._audits.values()):
            head = audit.head
            if not head or audit.path is None or self._heads.get(id(store)) == head or not store.capabilities.durable:
                continue
            if self.ask(store, Put(head_note(audit.path), head, now)) is not None:
                self._heads[id(store)] = head

    def tidy(self) -> None:
        """Write what was added up and is due."""
        for _, audit in list(self._audits.values()):
            audit.tidy()

    def flush(self) -> None:
        """Write everything that waits."""
        for _, audit in list(self._audits.values()):
            audit.flush()

    def close(self) -> None:
        """No further alerts; what waits was waited for in `flush` of whoever closes."""
        self.alerts.close()

    def reset_after_fork(self) -> None:
        """In a forked child: what waits is the parent's."""
        self.alerts.reset_after_fork()
        self._tally, self._tally_lock, self._counted = Counter(), threading.Lock(), deque()
        for _, audit in list(self._audits.values()):
            audit.reset_after_fork()

    # --- tally ---------------------------------------------------------------------------------------------------------

    def decisions(self) -> dict[tuple[str, str], int]:
        """(key of a budget with a name, what it did) -> how often in this process: `allow`, `block`, `let_through`, `wait`, or an action.

        Beyond so many names the key is empty: all the others together.
        """
        self._add_up(timeout_s=1.0)
        return dict(self._tally)

    def allowed(self, budgets: Sequence[ActiveBudget]) -> None:
        """A call has room in all of these."""
        for active in budgets:
            self._count(active.key, "allow")

    def _count(self, key: str, action: str) -> None:
        if not key.startswith("#"):  # of a block there is one for each run of it
            self._counted.append((key, action))
            if len(self._counted) >= _COUNTED_MOST:
                self._add_up(timeout_s=0.0)

    def _add_up(self, timeout_s: float) -> None:
        """Take in what was counted. Nobody who makes a call waits here: he may be a signal handler in the middle of somebody who is at it."""
        if not self._tally_lock.acquire(timeout=timeout_s):
            return
        try:
            while self._counted:
                key, action = self._counted.popleft()
                if len(self._tally) >= _TALLY_MOST and (key, action) not in self._tally:
                    key = ""  # names that somebody makes by the thousand are told of together
                self._tally[key, action] += 1
        finally:
            self._tally_lock.release()

    # --- decisions ----------------------------------------------------------------------------------------------------

    @_quietly
    def refused(self, store: Store, node: Node, error: BudgetExceeded, asked: int, waited: float = 0.0) -> None:
        """A call was refused; `asked` in steps of the node, after `waited` seconds."""
        self._count(node.budget, "block")
        self.audit(store).tell("refused", node, asked, lambda: _of_error(error), seconds=waited)

    @_quietly
    def let_through(self, store: Store, node: Node, error: BudgetExceeded | None, asked: int) -> None:
        """A call went on although there was no room, or without an error although nobody knew of any: the store is down."""
        self._count(node.budget, "let_through")
        audit = self.audit(store)
        audit.tell("let_through", node, asked, lambda: {"why": "store is down"} if error is None else _of_error(error))

    @_quietly
    def changed(self, store: Store, node: Node, error: BudgetExceeded, asked: int, action: str) -> None:
        """A call was made smaller: another model, fewer output tokens, a stream that may be ended."""
        self._count(node.budget, action)
        self.audit(store).tell("changed", node, asked, lambda: {"action": action, **_of_error(error)})

    @_quietly
    def waited(self, store: Store, node: Node, seconds: float, id: str) -> None:
        """A call got its room after a while."""
        self._count(node.budget, "wait")
        self.audit(store).tell("waited", node, 0, lambda: {"id": id}, seconds=seconds)

    # --- corrections --------------------------------------------------------------------------------------------------

    @_quietly
    def forfeited(self, store: Store, ids: Sequence[str]) -> None:
        """Holders vanished: what they held counts as spent."""
        if ids:
            self.audit(store).add("forfeited", ids=list(ids[:_IDS_MOST]), times=len(ids))

    @_quietly
    def overrun(self, store: Store, node: Node, more: int, id: str, now: int) -> None:
        """A call has cost more than was held for it."""
        self.audit(store).tell("overrun", node, more, lambda: {"id": id})
        if self._first(store, "overrun", node, now):
            self._alert("overrun", node, node.limit, None, amount=to_units(node.unit, more))

    @_quietly
    def late(self, store: Store, node: Node, actual: int | None, id: str) -> None:
        """The truth about a call came after its lease had run out."""
        self.audit(store).tell("late", node, actual or 0, lambda: {"id": id, "known": actual is not None})

    @_quietly
    def posted(self, store: Store, node: Node, amount: int, id: str) -> None:
        """Something was counted that nothing had been held for."""
        self.audit(store).tell("posted", node, amount, lambda: {"id": id})

    @_quietly
    def lost(self, store: Store, node: Node, balance: Balance, now: int) -> None:
        """What vanished holders had held counts as spent here."""
        if self._first(store, "forfeit", node, now):
            self._alert("forfeit", node, balance.limit, balance.spent, amount=to_units(node.unit, balance.forfeited))

    @_quietly
    def will_not_last(
        self, store: Store, node: Node, balance: Balance, projected: int, seconds: float, now: int
    ) -> None:
        """At this rate the limit is reached before the window ends."""
        if self._first(store, "forecast", node, now):
            amount = to_units(node.unit, projected)
            self._alert("forecast", node, balance.limit, balance.spent, amount=amount, seconds=seconds)

    def _alert(self, kind: str, node: Node, limit: int | None, spent: int | None, **more: Any) -> None:
        alert = Alert(
            kind,
            node.label or node.budget,
            node.unit,
            limit=None if limit is None else to_units(node.unit, limit),
            spent=None if spent is None else to_units(node.unit, spent),
            resets_at=node.until or None,
            **more,
        )
        logger.warning("aifinops: %s", alert.text)
        self.alerts.tell(alert)

    def _first(self, store: Store, kind: str, node: Node, now: int) -> bool:
        """Whether nobody has told this in this window; of all processes one hears yes, and where the store does not answer none."""
        key = note_key(f"told\x1f{kind}", node)
        if key in self._told:
            return False
        first = self.ask(store, Put(key, "", now, node.kept or node.until, new=True))
        if first is not None:
            self._told[key] = None
            if len(self._told) > _TOLD_MOST:
                self._told.popitem(last=False)
        return first is True

    @_quietly
    def store_reset(self, store: Store, why: object) -> None:
        """The store has lost what it had."""
        self.audit(store).add("store_reset", why=why)


def _of_error(error: BudgetExceeded) -> dict[str, object]:
    if isinstance(error, StoreUnavailable):
        why = "decision failed" if isinstance(error, DecisionFailed) else "store is down"
        return {"id": error.decision_id, "limit": error.limit, "why": why}
    if isinstance(error, UnpricedCall):
        return {"id": error.decision_id, "limit": error.limit, "why": f"no price for {error.model}"}
    approval = isinstance(error, (ApprovalDenied, ApprovalPending))
    return {
        "id": error.decision_id,
        "why": type(error).__name__ if approval else None,
        "limit": error.limit,
        "spent": error.spent,
        "reserved": error.reserved,
        "transient": error.transient or None,
    }
