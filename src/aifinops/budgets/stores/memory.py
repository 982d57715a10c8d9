"""Balances of this process: one lock and integers."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeVar

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.accounts import (
    APPLIED,
    UNCHANGED,
    UNKNOWN,
    Account,
    Record,
    adjust,
    extend,
    forfeit,
    mark_sent,
    release,
    repeated,
    reserve,
    settle,
)
from aifinops.budgets.stores.base import (
    Adjust,
    Capabilities,
    Crossing,
    Extend,
    Forget,
    MarkSent,
    Node,
    Operation,
    Outcome,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Sweep,
    Swept,
    other_amounts,
)

__all__ = ["MemoryStore"]

R = TypeVar("R")

_KEPT_NS = 7 * 86_400 * 1_000_000_000  # so that a clock put back finds the window that it was in
_NOW_HELD, _NOW_FORFEITED = APPLIED[State.HELD], APPLIED[State.FORFEITED]


class MemoryStore:
    """Balances in this process, for threads and tasks alike; gone with it.

    Args:
        remember: how many finished reservations and entries keep their id, so that a repetition is known as one. What is
            in flight is always known. Windows are kept for a week after their end.
    """

    capabilities = Capabilities(shared=False, durable=False, io="none")

    def __init__(self, *, remember: int = 10_000) -> None:
        self._remember = remember
        # Re-entrant: a signal handler of the application may make a metered call while this thread is in here.
        self._lock = threading.RLock()
        self._accounts: dict[str, Account] = {}
        self._open: dict[str, Record] = {}
        self._done: dict[str, Record] = {}
        self._order: deque[str] = deque()  # ids of `_done`, oldest first
        self._entries: OrderedDict[str, Adjust] = OrderedDict()
        self._handlers: dict[type, Callable[[Any], Any]] = {
            Reserve: self._reserve,
            MarkSent: self._mark_sent,
            Settle: self._settle,
            Release: self._release,
            Extend: self._extend,
            Adjust: self._adjust,
            Sweep: self._sweep,
            Read: self._read,
            Forget: self._forget,
        }

    def run(self, operation: Operation[R]) -> R:
        """Execute one operation.

        Raises:
            StoreError: when the id is known with other amounts.
        """
        with self._lock:
            answer: R = self._handlers[type(operation)](operation)
            return answer

    def reset_after_fork(self) -> None:
        """In a forked child: a new lock, what was spent so far, and no reservations; those are the parent's to settle."""
        self._lock = threading.RLock()
        self._open.clear()
        for account in self._accounts.values():
            account.reserved = 0

    def close(self) -> None:
        """Nothing to let go of; the balances stay."""

    # --- the life of a reservation --------------------------------------------------------------------------------------

    def _reserve(self, operation: Reserve) -> Outcome:
        id, nodes, amounts = operation.id, operation.nodes, operation.amounts
        known = self._open.get(id) or self._done.get(id)
        if known is not None:
            return repeated(known, operation)
        found = self._accounts
        accounts = [found.get(node.key) or self._account(node) for node in nodes]
        refusal = reserve(nodes, accounts, amounts, operation.now)
        if refusal is not None:
            return Outcome(None, applied=False, decision=refusal)
        self._open[id] = Record(nodes, amounts, accounts, operation.now + operation.ttl)
        return _NOW_HELD

    def _mark_sent(self, operation: MarkSent) -> Outcome:
        record = self._find(operation.id)
        return UNKNOWN if record is None else mark_sent(record)

    def _settle(self, operation: Settle) -> Outcome:
        record = self._find(operation.id)
        return UNKNOWN if record is None else self._finished(operation.id, record, settle(record, operation))

    def _release(self, operation: Release) -> Outcome:
        record = self._find(operation.id)
        return UNKNOWN if record is None else self._finished(operation.id, record, release(record))

    def _extend(self, operation: Extend) -> Outcome:
        record = self._find(operation.id)
        return UNKNOWN if record is None else extend(record, operation)

    def _sweep(self, operation: Sweep) -> Swept:
        crossed: list[Crossing] = []
        late = [id for id, record in self._open.items() if record.expires <= operation.now]
        for id in late:
            record = self._open[id]
            crossed += forfeit(record)
            self._finished(id, record, _NOW_FORFEITED)
        self._drop_old_windows(operation.now - _KEPT_NS)
        return Swept(tuple(late), tuple(crossed))

    def _finished(self, id: str, record: Record, outcome: Outcome) -> Outcome:
        if outcome.applied and self._open.pop(id, None) is not None:
            self._done[id] = record
            self._order.append(id)
            if len(self._order) > self._remember:
                del self._done[self._order.popleft()]
        return outcome

    def _find(self, id: str) -> Record | None:
        return self._open.get(id) or self._done.get(id)

    # --- entries, reading, forgetting -------------------------------------------------------------------------------------

    def _adjust(self, operation: Adjust) -> Outcome:
        known = self._entries.get(operation.id)
        if known is not None:
            if (known.nodes, known.amounts) != (operation.nodes, operation.amounts):
                raise other_amounts(operation.id, known.amounts, operation.amounts)
            return UNCHANGED[State.SETTLED]
        self._entries[operation.id] = operation
        if len(self._entries) > self._remember:
            self._entries.popitem(last=False)
        return adjust(operation, [self._account(node) for node in operation.nodes])

    def _read(self, operation: Read) -> tuple[Balance, ...]:
        return tuple((self._accounts.get(node.key) or Account(node.until)).balance(node) for node in operation.nodes)

    def _forget(self, operation: Forget) -> None:
        for node in operation.nodes:
            self._accounts.pop(node.key, None)

    def _account(self, node: Node) -> Account:
        return self._accounts.setdefault(node.key, Account(node.until))

    def _drop_old_windows(self, before: int) -> None:
        ended = [key for key, account in self._accounts.items() if 0 < account.until < before and not account.reserved]
        for key in ended:
            del self._accounts[key]
