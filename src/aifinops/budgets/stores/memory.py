"""Balances of this process: one lock and integers."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from aifinops.budgets.policy import Balance, decide, fits
from aifinops.budgets.stores.base import (
    TRANSITIONS,
    Adjust,
    Capabilities,
    Crossing,
    Event,
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
_UNKNOWN = Outcome(None, applied=False)
# Answers that carry nothing of their own are made once: this is the path of every call.
_APPLIED = {state: Outcome(state, applied=True) for state in State}
_UNCHANGED = {state: Outcome(state, applied=False) for state in State}
# Attributes of an enum are looked up slowly on Python 3.11.
_HELD, _SENT, _SETTLED, _FORFEITED = State.HELD, State.SENT, State.SETTLED, State.FORFEITED
_NOW_HELD = _APPLIED[_HELD]


class _Account:
    """The integers of one node."""

    __slots__ = ("fired", "forfeited", "overrun", "reserved", "spent", "until")

    def __init__(self, until: int) -> None:
        self.spent = 0
        self.reserved = 0
        self.overrun = 0
        self.forfeited = 0
        self.fired = 0  # the highest mark reported
        self.until = until

    def balance(self, node: Node) -> Balance:
        return Balance(node.limit, self.spent, self.reserved, self.overrun, self.forfeited, node.until or None)


class _Record:
    """One reservation."""

    __slots__ = ("accounts", "actual", "asked", "expires", "held", "state")

    def __init__(self, operation: Reserve, accounts: list[_Account]) -> None:
        self.asked = operation  # as it first came: what a repeated id is compared with
        self.accounts = accounts
        self.held = operation.amounts
        self.actual: tuple[int, ...] = ()
        self.expires = operation.now + operation.ttl
        self.state = _HELD

    def revive(self) -> None:
        """Make what was forfeited a hold again: its holder has come back with the truth."""
        for account, held in zip(self.accounts, self.held, strict=True):
            account.reserved += held
            account.forfeited -= held
            # A credit may have taken part of it out already: spent never falls below zero.
            account.spent = max(0, account.spent - held)


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
        self._accounts: dict[str, _Account] = {}
        self._open: dict[str, _Record] = {}
        self._done: dict[str, _Record] = {}
        self._finished: deque[str] = deque()  # ids of `_done`, oldest first
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
        if id in self._open or id in self._done:
            return _repeated(self._open.get(id) or self._done[id], operation)
        known = self._accounts
        accounts = [known.get(node.key) or self._account(node) for node in nodes]
        for node, account, amount in zip(nodes, accounts, amounts):  # noqa: B905 - `Reserve` has seen to the lengths
            # `policy.fits`, written out: a call for each node is a third of the whole operation.
            limit = node.limit
            if limit is not None and account.spent + account.reserved + amount > limit and amount:
                return _refused(None, nodes, accounts, amounts, operation.now)
        for account, amount in zip(accounts, amounts):  # noqa: B905
            account.reserved += amount
        self._open[id] = _Record(operation, accounts)
        return _NOW_HELD

    def _mark_sent(self, operation: MarkSent) -> Outcome:
        record = self._find(operation.id)
        if record is None:
            return _UNKNOWN
        return self._move(operation.id, record, "mark_sent")

    def _settle(self, operation: Settle) -> Outcome:
        id, amounts = operation.id, operation.amounts
        record = self._open.get(id) or self._done.get(id)
        if record is None:
            return _UNKNOWN
        actual = _truth(record, operation)
        before = record.state
        if before is _SETTLED and record.actual != actual:
            raise other_amounts(id, record.actual, amounts)
        outcome = self._move(id, record, "settle")
        if not outcome.applied:
            return outcome
        record.actual = actual
        if before is _FORFEITED:
            record.revive()
        crossed: list[Crossing] = []
        for node, account, held, spent in zip(operation.nodes, record.accounts, record.held, actual):  # noqa: B905 - `_truth`
            account.reserved -= held
            account.spent += spent
            if spent > held:
                account.overrun += spent - held
            if node.marks and account.spent >= node.marks[0]:
                crossed += _reached(node, account)
        return Outcome(_SETTLED, applied=True, crossed=tuple(crossed)) if crossed else outcome

    def _release(self, operation: Release) -> Outcome:
        record = self._find(operation.id)
        if record is None:
            return _UNKNOWN
        before = record.state
        outcome = self._move(operation.id, record, "release")
        if outcome.applied:
            if before is _FORFEITED:
                record.revive()
            for account, held in zip(record.accounts, record.held, strict=True):
                account.reserved -= held
        return outcome

    def _extend(self, operation: Extend) -> Outcome:
        record = self._find(operation.id)
        if record is None or (record.state, "extend") not in TRANSITIONS:
            return _UNKNOWN if record is None else _UNCHANGED[record.state]
        wanted = record.held if operation.amounts is None else operation.amounts
        growth = tuple(new - old for new, old in zip(wanted, record.held, strict=True))
        for node, account, more in zip(operation.nodes, record.accounts, growth, strict=True):
            if not fits(node.limit, account.spent, account.reserved, more):
                return _refused(record.state, operation.nodes, record.accounts, growth, operation.now)
        for account, more in zip(record.accounts, growth, strict=True):
            account.reserved += more
        record.held = wanted
        record.expires = operation.now + operation.ttl
        return _APPLIED[record.state]

    def _sweep(self, operation: Sweep) -> Swept:
        crossed: list[Crossing] = []
        late = [id for id, record in self._open.items() if record.expires <= operation.now]
        for id in late:
            record = self._open[id]
            self._move(id, record, "expire")
            for node, account, held in zip(record.asked.nodes, record.accounts, record.held, strict=True):
                account.reserved -= held
                account.forfeited += held
                crossed += _spend(node, account, held)
        self._drop_old_windows(operation.now - _KEPT_NS)
        return Swept(tuple(late), tuple(crossed))

    def _move(self, id: str, record: _Record, event: Event) -> Outcome:
        after = TRANSITIONS.get((record.state, event))
        if after is None:
            return _UNCHANGED[record.state]
        record.state = after
        if after is not _SENT and self._open.pop(id, None) is not None:
            self._done[id] = record
            self._finished.append(id)
            if len(self._finished) > self._remember:
                del self._done[self._finished.popleft()]
        return _APPLIED[after]

    def _find(self, id: str) -> _Record | None:
        return self._open.get(id) or self._done.get(id)

    # --- entries, reading, forgetting -------------------------------------------------------------------------------------

    def _adjust(self, operation: Adjust) -> Outcome:
        known = self._entries.get(operation.id)
        if known is not None:
            if (known.nodes, known.amounts) != (operation.nodes, operation.amounts):
                raise other_amounts(operation.id, known.amounts, operation.amounts)
            return _UNCHANGED[_SETTLED]
        self._entries[operation.id] = operation
        if len(self._entries) > self._remember:
            self._entries.popitem(last=False)
        crossed: list[Crossing] = []
        for node, amount in zip(operation.nodes, operation.amounts, strict=True):
            account = self._accounts.get(node.key) or self._account(node)
            account.overrun += max(0, amount)
            crossed += _spend(node, account, max(amount, -account.spent))
        return Outcome(_SETTLED, applied=True, crossed=tuple(crossed))

    def _read(self, operation: Read) -> tuple[Balance, ...]:
        return tuple((self._accounts.get(node.key) or _Account(node.until)).balance(node) for node in operation.nodes)

    def _forget(self, operation: Forget) -> None:
        for node in operation.nodes:
            self._accounts.pop(node.key, None)

    def _account(self, node: Node) -> _Account:
        return self._accounts.setdefault(node.key, _Account(node.until))

    def _drop_old_windows(self, before: int) -> None:
        ended = [key for key, account in self._accounts.items() if 0 < account.until < before and not account.reserved]
        for key in ended:
            del self._accounts[key]


def _repeated(known: _Record, operation: Reserve) -> Outcome:
    asked = known.asked
    if asked.amounts != operation.amounts or _keys(asked.nodes) != _keys(operation.nodes):
        raise other_amounts(operation.id, asked.amounts, operation.amounts)
    return _UNCHANGED[known.state]


def _keys(nodes: Iterable[Node]) -> list[str]:
    return [node.key for node in nodes]


def _refused(
    state: State | None, nodes: Iterable[Node], accounts: Iterable[_Account], amounts: tuple[int, ...], now: int
) -> Outcome:
    balances = [account.balance(node) for node, account in zip(nodes, accounts, strict=True)]
    return Outcome(state, applied=False, decision=decide(balances, amounts, now))


def _truth(record: _Record, operation: Settle) -> tuple[int, ...]:
    amounts = operation.amounts
    if len(amounts) != len(record.held):
        raise other_amounts(operation.id, record.held, amounts)
    if None not in amounts:
        return amounts  # type: ignore[return-value]  # there is no None among them
    # What was held stands in for what nobody knows.
    return tuple(held if amount is None else amount for amount, held in zip(amounts, record.held, strict=True))


def _spend(node: Node, account: _Account, amount: int) -> list[Crossing]:
    account.spent += amount
    return _reached(node, account)


def _reached(node: Node, account: _Account) -> list[Crossing]:
    """Marks that were never reached before; each is reported once, also when a correction takes `spent` below it again."""
    if account.spent <= account.fired:
        return []
    crossed = [Crossing(node, mark, account.spent) for mark in node.marks if account.fired < mark <= account.spent]
    if crossed:
        account.fired = crossed[-1].mark
    return crossed
