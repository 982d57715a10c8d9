"""Balances of this process: one lock and integers."""

from __future__ import annotations

import threading
from builtins import id as id_of
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.accounts import (
    APPLIED,
    UNCHANGED,
    UNKNOWN,
    Account,
    Record,
    adjust,
    draw,
    extend,
    forfeit,
    mark_sent,
    reached,
    refusal,
    release,
    repeated,
    settle,
)
from aifinops.budgets.stores.base import (
    Accounts,
    Adjust,
    Capabilities,
    Crossing,
    Draw,
    Extend,
    Forget,
    MarkSent,
    Node,
    Notes,
    Operation,
    Outcome,
    Put,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Sweep,
    Swept,
    Take,
    other_amounts,
)

__all__ = ["MemoryStore"]

R = TypeVar("R")

_KEPT_NS = 7 * 86_400 * 1_000_000_000  # so that a clock put back finds the window that it was in
_PATHS_MOST = 1024
_NOW_HELD, _NOW_SETTLED, _NOW_FORFEITED = (APPLIED[state] for state in (State.HELD, State.SETTLED, State.FORFEITED))
_Held = tuple[tuple[Node, ...], tuple[int, ...], Sequence[Account], int]
"""A reservation that nothing has happened to yet: nodes, amounts, accounts, end of the lease. Made in a tenth of the time of a `Record`."""


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
        # Nodes and their accounts, by the identity of the former: budgets make theirs once a window.
        self._paths: dict[int, tuple[tuple[Node, ...], list[Account]]] = {}
        self._nodes: dict[str, Node] = {}  # of the accounts
        self._beside: dict[str, Account] = {}  # parts of rolling windows that nobody has used yet
        self._notes: dict[str, tuple[str, int]] = {}  # key -> value, until
        self._open: dict[str, Record | _Held] = {}
        self._done: dict[str, Record | tuple[_Held, tuple[int, ...]]] = {}  # a pair: settled at so much
        self._order: deque[str] = deque()  # ids of `_done`, oldest first
        self._entries: OrderedDict[str, Adjust] = OrderedDict()
        self._handlers: dict[type, Callable[[Any], Any]] = {
            Reserve: self._reserve,
            MarkSent: self._mark_sent,
            Settle: self._settle,
            Release: self._release,
            Extend: self._extend,
            Draw: self._draw,
            Adjust: self._adjust,
            Sweep: self._sweep,
            Read: self._read,
            Accounts: self._all,
            Forget: self._forget,
            Put: self._put,
            Take: self._take,
            Notes: self._list,
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
        return self.quick_reserve(operation.id, operation.nodes, operation.amounts, operation.now, operation.ttl)

    def quick_reserve(self, id: str, nodes: tuple[Node, ...], amounts: tuple[int, ...], now: int, ttl: int) -> Outcome:
        """`Reserve` without the operation: the way of every call. Nothing is checked of the amounts."""
        with self._lock:
            if id in self._open or id in self._done:
                return repeated(self._known(id), Reserve(id, nodes, amounts, now, ttl))
            path = self._paths.get(id_of(nodes))
            accounts = path[1] if path is not None and path[0] is nodes else self._path(nodes)
            # Held before it is looked at: a signal handler or a finalizer may come in between, in this very thread, and hold as well.
            # `policy.fits`, written out: a call for each node is a third of the whole operation.
            for index, account in enumerate(accounts):
                limit, amount = nodes[index].limit, amounts[index]
                account.reserved += amount
                if limit is not None and amount:
                    taken = account.taken() if account.beside else account.spent + account.reserved
                    if taken > limit:
                        for back in range(index + 1):
                            accounts[back].reserved -= amounts[back]
                        decision = refusal(nodes, accounts, amounts, now)
                        if decision.allowed:  # somebody who came in between has given something back
                            return self.quick_reserve(id, nodes, amounts, now, ttl)
                        return Outcome(None, applied=False, decision=decision)
            self._open[id] = nodes, amounts, accounts, now + ttl
        return _NOW_HELD

    def quick_settle(self, id: str, nodes: tuple[Node, ...], amounts: tuple[int | None, ...], now: int) -> Outcome:
        """`Settle` without the operation, likewise."""
        with self._lock:
            one = self._open.get(id)
            if type(one) is not tuple or len(amounts) != len(one[1]):
                record = self._find(id)
                operation = Settle(id, nodes, amounts, now)
                return UNKNOWN if record is None else self._finished(id, record, settle(record, operation))
            _, held, accounts, _ = one
            if None in amounts:
                amounts = tuple(was if cost is None else cost for cost, was in zip(amounts, held, strict=True))
            actual: tuple[int, ...] = amounts  # type: ignore[assignment]  # there is no None among them
            crossed: list[Crossing] = []
            for index, account in enumerate(accounts):
                node, was, cost = nodes[index], held[index], actual[index]
                account.reserved -= was
                account.spent += cost
                if cost > was:
                    account.overrun += cost - was
                if node.marks and (
                    account.beside or (account.fired < node.marks[-1] and account.spent >= node.marks[0])
                ):
                    crossed += reached(node, account)
            # `_keep`, written out.
            del self._open[id]
            self._done[id] = one, actual
            self._order.append(id)
            if len(self._done) > self._remember:
                del self._done[self._order.popleft()]
        return Outcome(State.SETTLED, applied=True, crossed=tuple(crossed)) if crossed else _NOW_SETTLED

    def _mark_sent(self, operation: MarkSent) -> Outcome:
        record = self._find(operation.id)
        return UNKNOWN if record is None else mark_sent(record)

    def _settle(self, operation: Settle) -> Outcome:
        return self.quick_settle(operation.id, operation.nodes, operation.amounts, operation.now)

    def _release(self, operation: Release) -> Outcome:
        record = self._find(operation.id)
        return UNKNOWN if record is None else self._finished(operation.id, record, release(record))

    def _extend(self, operation: Extend) -> Outcome:
        record = self._find(operation.id)
        return UNKNOWN if record is None else extend(record, operation)

    def _draw(self, operation: Draw) -> Outcome:
        record = self._find(operation.id)
        return UNKNOWN if record is None else draw(record, operation)

    def _sweep(self, operation: Sweep) -> Swept:
        crossed: list[Crossing] = []
        late = sorted(
            id
            for id, one in list(self._open.items())
            if (one[3] if type(one) is tuple else one.expires) <= operation.now  # type: ignore[union-attr]
        )
        for id in late:
            record = self._known(id)
            crossed += forfeit(record)
            self._finished(id, record, _NOW_FORFEITED)
        self._drop_old_windows(operation.now - _KEPT_NS)
        return Swept(tuple(late), tuple(crossed))

    def _finished(self, id: str, record: Record, outcome: Outcome) -> Outcome:
        if outcome.applied and id in self._open:
            self._keep(id, record)
        return outcome

    def _keep(self, id: str, one: Record | tuple[_Held, tuple[int, ...]]) -> None:
        del self._open[id]
        self._done[id] = one
        self._order.append(id)
        if len(self._done) > self._remember:
            del self._done[self._order.popleft()]

    def _find(self, id: str) -> Record | None:
        return self._known(id) if id in self._open or id in self._done else None

    def _known(self, id: str) -> Record:
        """The record of a reservation; made of what was noted of it, where nothing but the ordinary has happened to it."""
        one = self._open.get(id)
        if one is not None:
            if type(one) is tuple:
                one = self._open[id] = Record(*one)
            return one  # type: ignore[return-value]
        done = self._done[id]
        if type(done) is tuple:
            record = self._done[id] = Record(*done[0])
            record.state, record.actual = State.SETTLED, done[1]
            return record
        return done  # type: ignore[return-value]

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
        return tuple((self._accounts.get(node.key) or self._unused(node)).balance(node) for node in operation.nodes)

    def _all(self, operation: Accounts) -> tuple[tuple[Node, Balance], ...]:
        nodes = [node for node in list(self._nodes.values()) if operation.budget in (None, node.budget)]
        return tuple(
            (node, self._accounts[node.key].balance(node)) for node in sorted(nodes, key=lambda node: node.key)
        )

    def _forget(self, operation: Forget) -> None:
        for node in operation.nodes:
            self._drop(node.key)

    def _account(self, node: Node) -> Account:
        found = self._accounts.get(node.key)
        if found is None:
            # What comes in between, in this thread, may have made it.
            found = self._accounts.setdefault(node.key, self._unused(node))
            self._nodes[node.key] = node
            self._beside.pop(node.key, None)
        return found

    def _path(self, nodes: tuple[Node, ...]) -> list[Account]:
        if len(self._paths) >= _PATHS_MOST:
            self._paths.clear()
        accounts = [self._account(node) for node in nodes]
        self._paths[id_of(nodes)] = nodes, accounts
        return accounts

    def _unused(self, node: Node) -> Account:
        account = self._beside.get(node.key) or Account()
        if node.also:
            # Kept where they are missing: a clock that was put back may bring one of them to use.
            account.beside = [self._accounts.get(key) or self._beside.setdefault(key, Account()) for key in node.also]
        return account

    def _drop(self, key: str) -> None:
        self._paths.clear()
        self._accounts.pop(key, None)
        self._beside.pop(key, None)
        self._nodes.pop(key, None)

    def _drop_old_windows(self, before: int) -> None:
        old = [node for node in list(self._nodes.values()) if 0 < (node.kept or node.until) < before]
        for node in old:
            if not self._accounts[node.key].reserved:
                for key in (node.key, *node.also):
                    self._drop(key)

    # --- notes ----------------------------------------------------------------------------------------------------------

    def _put(self, operation: Put) -> bool:
        if operation.new and self._note(operation.key, operation.now) is not None:
            return False
        self._notes[operation.key] = operation.value, operation.until
        return True

    def _take(self, operation: Take) -> str | None:
        value = self._note(operation.key, operation.now)
        self._notes.pop(operation.key, None)
        return value

    def _list(self, operation: Notes) -> tuple[tuple[str, str], ...]:
        found = (
            (key, self._note(key, operation.now)) for key in sorted(self._notes) if key.startswith(operation.prefix)
        )
        return tuple((key, value) for key, value in found if value is not None)

    def _note(self, key: str, now: int) -> str | None:
        value, until = self._notes.get(key, (None, 0))
        return value if not until or now < until else None
