"""Leases: a process that makes many calls takes a share of a shared budget in advance, and spends it without asking.

A lease is a reservation of the shared store that many calls use up. What is held in it is taken off for everybody else, so leases never
overspend; what they cost is money that lies with one process while another could use it, for a second or two. So a lease is taken only for
what comes often, is small beside the limit, and goes back when it is not used.

    hold      from the lease, in this process ──► no room in it: `Draw` (or `Reserve`) a larger one ──► refused: exactly this call, or no
    settle    into the lease; the store is told once a second

Should the process die, its lease runs out and counts as spent, as every hold does. Should the store not answer, what is left of the lease can
still be spent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from aifinops.budgets.policy import Balance, Decision
from aifinops.budgets.stores.accounts import APPLIED, UNCHANGED
from aifinops.budgets.stores.base import (
    Adjust,
    Capabilities,
    Crossing,
    Draw,
    Extend,
    InTheMiddle,
    MarkSent,
    Node,
    Operation,
    Outcome,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Store,
)
from aifinops.charges import new_id
from aifinops.clock import Clock, SystemClock
from aifinops.errors import StoreError, swallow

__all__ = ["OFTEN", "TTL_S", "LeasedStore"]

R = TypeVar("R")
Amounts = tuple[int, ...]

OFTEN = 20
"""Calls of one path within a second from which on it is leased."""

_NS = 1_000_000_000
TTL_S = 30.0
"""How long a lease lasts that is not renewed, seconds. From four fifths of it on nothing is given any more: it may be about to count as spent."""
_SHARE = 50
"""A lease takes at most one part in so many of each limit in advance; what half of that would not hold two of is never leased."""
_FORGET_NS = 60 * _NS
_OVER_NS = 1_000_000
_BUSY_S = 0.1
"""How long a call waits for another one of its path that talks to the store, before it does so itself."""
_CHANGE_S = 1.0
"""And a call that wants more, or whoever tells the store what was spent."""
_OF_CALLS = frozenset({Settle, Release, MarkSent, Extend})
_HELD, _SENT, _SETTLED, _RELEASED = (
    APPLIED[state] for state in (State.HELD, State.SENT, State.SETTLED, State.RELEASED)
)


class _Path:
    """What this process has of one set of nodes. Amounts are one a node.

    What the store holds for the lease is always `free`, `flying` and `used` together.

    Attributes:
        id, step: of the reservation that is the lease, empty for none. until: when it was not renewed for too long, monotonic.
        free: to be given to calls. flying: with calls in flight. used: settled, and not yet told to the store.
        calls: in flight, by id. changes: counts what comes and goes. count, since, last: how often it is asked. given: when it last had what was asked for.
        ttl: how long a call may hold something, nanoseconds. seen: when a call in flight was first seen in a look around, by id. handing: of those for
            which the store was asked to hold itself, and did not say whether it does.
        denied, denied_until: the last refusal, and how long it stands. pending: a draw of which nobody knows whether it had its effect.
        closing: the last word on a lease that is no more, until the store has taken it.
        busy: held by whoever talks to the store of it.
    """

    __slots__ = (
        "busy", "calls", "changes", "closing", "count", "denied", "denied_until", "flying", "free", "given", "handing", "id", "last", "nodes", "pending", "seen",
        "since", "step", "ttl", "until", "used",
    )  # fmt: skip

    def __init__(self, nodes: tuple[Node, ...], now: int) -> None:
        self.nodes = nodes
        self.busy = threading.Lock()
        self.id, self.step, self.until = "", 0, 0
        self.free, self.flying, self.used = ([0] * len(nodes) for _ in range(3))
        self.calls: dict[str, Amounts] = {}
        self.changes = 0
        self.ttl = 0
        self.seen: dict[str, int] = {}
        self.handing: set[str] = set()
        self.count, self.since, self.last, self.given = 0, now, now, now
        self.denied: Outcome | None = None
        self.denied_until = 0
        self.pending: Draw | None = None
        self.closing: Settle | Adjust | None = None

    def take(self, id: str, amounts: Amounts, now: int) -> bool:
        """Give a call what it asks for, where that is here."""
        if now >= self.until:
            return False
        # Taken before it is looked at: a signal handler or a finalizer may come in between, in this very thread, and take some as well. It never
        # comes within a few lines without a call or an end of a loop; on that all sums of a lease rely: what is free, flying and used is
        # always what the store holds, and too much is given back before anybody sees it.
        for index, amount in enumerate(amounts):
            self.free[index] -= amount
            self.flying[index] += amount
            if self.free[index] < 0:
                self.free[index] += amount
                self.flying[index] -= amount
                for back in range(index):
                    self.free[back] += amounts[back]
                    self.flying[back] -= amounts[back]
                return False
        self.calls[id] = amounts
        self.given = now
        self.changes += 1
        return True

    def put(self, id: str, actual: Sequence[int | None]) -> bool:
        """A call has ended; False where it took more than there was."""
        flying, used, enough = self.flying, self.used, True
        for index, amount in enumerate(self.calls.pop(id)):
            spent = actual[index]
            cost = amount if spent is None else spent
            flying[index] -= amount
            used[index] += cost
            if self.id:
                self.free[index] += amount - cost
                if self.free[index] < 0:
                    enough = False
        self.changes += 1
        return enough

    def hand(self, id: str) -> None:
        """The store itself holds for a call from now on: it is none of the lease, which gives up as much when it is told."""
        for index, amount in enumerate(self.calls.pop(id)):
            self.flying[index] -= amount

    def owed(self) -> tuple[Amounts, Amounts]:
        """What is flying and what is used, at one and the same time: a call that ends in between would be in both, or in neither."""
        while True:
            changes = self.changes
            flying, used = tuple(self.flying), tuple(self.used)
            if self.changes == changes:
                return flying, used

    def overdue(self, now: int) -> list[str]:
        """Calls that have been in flight for longer than they may hold something."""
        self.seen = {id: self.seen.get(id, now) for id in list(self.calls)}
        return [id for id, since in list(self.seen.items()) if now - since >= self.ttl]

    def asked(self, now: int) -> None:
        """Count how often."""
        self.last = now
        if now - self.since >= _NS:
            self.count, self.since = 0, now
        self.count += 1

    def small(self, amounts: Amounts) -> bool:
        """Whether such calls are small beside every limit."""
        pairs = zip(self.nodes, amounts, strict=True)
        return all(node.limit is None or amount * _SHARE * 2 <= node.limit for node, amount in pairs)

    def in_advance(self, amounts: Amounts) -> Amounts:
        """What to take: for a second, at most a share of each limit."""
        pairs = zip(self.nodes, amounts, strict=True)
        return tuple(
            amount * self.count if node.limit is None else min(amount * self.count, node.limit // _SHARE)
            for node, amount in pairs
        )

    def lifted(self, nodes: Sequence[Node]) -> bool:
        """Whether a budget lets a call through that has no room: nothing that is known of the limit is an answer then."""
        return nodes is not self.nodes and any(
            node.limit is None and known.limit is not None for node, known in zip(nodes, self.nodes, strict=True)
        )

    def holds(self, held: Amounts) -> None:
        """The store holds so much for the lease: what is neither with calls nor used is free."""
        for index, amount in enumerate(held):
            self.free[index] = amount - self.flying[index] - self.used[index]

    def told(self, used: Amounts) -> None:
        """The store knows of so much that was used."""
        for index, amount in enumerate(used):
            self.used[index] -= amount

    def drop(self) -> None:
        """There is no lease any more."""
        self.id, self.until, self.pending = "", 0, None
        self.free = [0] * len(self.free)


class LeasedStore:
    """A shared store whose busy budgets are spent from leases.

    Args:
        inner: where balances live. clock: for leases. on_crossed: told of the marks that are reached when the store is told what was spent.
        often: calls of one path within a second from which on it is leased. ttl_s: see `TTL_S`.
        every_s: how often the store is told, seconds; 0 leaves it to `sync`. denied_s: how long a refusal of what is spent is remembered: a
            program that goes on asking asks the store no more often than that.
    """

    def __init__(
        self,
        inner: Store,
        clock: Clock | None = None,
        *,
        on_crossed: Callable[[Iterable[Crossing]], None] = lambda _: None,
        often: int = OFTEN,
        ttl_s: float = TTL_S,
        every_s: float = 1.0,
        denied_s: float = 0.05,
    ) -> None:
        self.inner = inner
        self._clock = clock or SystemClock()
        self._on_crossed = on_crossed
        self._often = often
        self._ttl = int(ttl_s * _NS)
        self._every_s = every_s
        self._denied_ns = int(denied_s * _NS)
        self._paths: dict[str | tuple[str, ...], _Path] = {}
        self._where: dict[str, _Path] = {}
        self._orphans: deque[Release] = deque()
        self._reset()

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store within."""
        return replace(self.inner.capabilities, io="blocking")

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._paths.clear()
        self._where.clear()
        self._orphans.clear()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def run(self, operation: Operation[R]) -> R:
        """Execute one operation, here where that can be done.

        Raises:
            StoreError: as the store within.
        """
        kind: Any = type(operation)
        one: Any = operation
        answer: Any
        if kind is Reserve and not one.alone:
            answer = self.quick_reserve(one.id, one.nodes, one.amounts) or self._ask(one)
        elif kind is Read:
            answer = self._read(one)
        elif kind in _OF_CALLS and one.id in self._where:
            answer = self._here(one)
        else:
            answer = operation.execute(self.inner)
        return answer  # type: ignore[no-any-return]

    # --- one call -------------------------------------------------------------------------------------------------------

    def quick_reserve(
        self, id: str, nodes: tuple[Node, ...], amounts: Amounts, now: int = 0, ttl: int = 0
    ) -> Outcome | None:
        """The answer to a `Reserve` without the store; None when it has to be asked. `now` and `ttl` are no matter: a lease has its own."""
        now = self._clock.monotonic_ns()
        key = nodes[0].key if len(nodes) == 1 else _key(nodes)
        with self._lock:
            if id in self._where:
                return UNCHANGED[State.HELD]
            path = self._paths.get(key) or self._paths.setdefault(key, _Path(nodes, now))
            if nodes is not path.nodes and path.lifted(nodes):
                return None
            if path.take(id, amounts, now):
                path.asked(now)
                self._where[id] = path
                return _HELD
            if now < path.denied_until and path.denied is not None and _denies(path.denied, amounts):
                path.asked(now)
                return path.denied
        return None

    def quick_settle(
        self, id: str, nodes: tuple[Node, ...], amounts: tuple[int | None, ...], now: int
    ) -> Outcome | None:
        """The answer to a `Settle` without the store; None when it has to be asked."""
        return self._end(id, amounts, _SETTLED) if id in self._where else None

    def _ask(self, operation: Reserve) -> Outcome:
        path = self._paths.get(_key(operation.nodes))
        if path is None or path.lifted(operation.nodes):  # None: it was forgotten between two lines
            return operation.execute(self.inner)
        path.asked(self._clock.monotonic_ns())
        if path.count >= self._often and path.small(operation.amounts) and path.busy.acquire(timeout=_BUSY_S):
            try:  # the others of this path wait for what comes
                path.ttl = operation.ttl
                wanted = _sum(operation.amounts, path.in_advance(operation.amounts))
                if self._taken(path, operation):
                    return _HELD
                path.nodes = operation.nodes
                if self._grow(path, wanted, operation.now) is None and self._taken(path, operation):
                    return _HELD
            finally:
                path.busy.release()
        outcome = operation.execute(self.inner)
        if outcome.decision is not None and not outcome.decision.transient:
            path.denied, path.denied_until = outcome, self._clock.monotonic_ns() + self._denied_ns
        return outcome

    def _taken(self, path: _Path, operation: Reserve) -> bool:
        with self._lock:
            taken = path.take(operation.id, operation.amounts, self._clock.monotonic_ns())
            if taken:
                self._where[operation.id] = path
            return taken

    def _here(self, operation: Settle | Release | MarkSent | Extend) -> Outcome:
        if isinstance(operation, Settle):
            return self._end(operation.id, operation.amounts, _SETTLED)
        if isinstance(operation, Release):
            return self._end(operation.id, (0,) * len(operation.nodes), _RELEASED)
        if isinstance(operation, Extend) and operation.amounts is not None:
            return self._change(operation, operation.amounts)
        if isinstance(operation, Extend):
            return self._renew(operation.id)
        return _SENT

    def _renew(self, id: str) -> Outcome:
        with self._lock:
            path = self._where.get(id)
            if path is not None:
                path.seen.pop(id, None)
        return _HELD

    def _end(self, id: str, actual: Sequence[int | None], outcome: Outcome) -> Outcome:
        with self._lock:
            path = self._where.pop(id, None)
            if path is None:  # another thread was quicker
                return UNCHANGED[State.SETTLED]
            enough = path.put(id, actual)
            path.denied = None
        if not enough and path.busy.acquire(timeout=_BUSY_S):
            try:
                with suppress(StoreError):  # nothing is forgotten: it is told the next time
                    self._settle_up(path)
            finally:
                path.busy.release()
        return outcome

    def _change(self, operation: Extend, amounts: Amounts) -> Outcome:
        """Another hold for a call in flight, as another call for what it takes more."""
        path = self._where.get(operation.id)
        if path is None:  # another thread has ended it
            return UNCHANGED[State.SETTLED]
        if not path.busy.acquire(timeout=_CHANGE_S):  # a signal handler may have come in between
            raise InTheMiddle("the lease is being changed by another call already")
        try:  # what is held for it is not handed over meanwhile
            return self._change_alone(path, operation, amounts)
        finally:
            path.busy.release()

    def _change_alone(self, path: _Path, operation: Extend, amounts: Amounts) -> Outcome:
        with self._lock:
            held = path.calls.get(operation.id)
        if held is None:  # it was handed over, or another thread has ended it
            return operation.execute(self.inner)
        more = tuple(max(0, new - old) for new, old in zip(amounts, held, strict=True))
        extra = Reserve(f"{operation.id}+", path.nodes, more, operation.now, operation.ttl)
        if not self._taken(path, extra):
            decision = self._grow(path, more, operation.now)
            if operation.id not in path.calls:
                return operation.execute(self.inner)
            if decision is not None or not self._taken(path, extra):
                return Outcome(State.HELD, applied=False, decision=decision)
        with self._lock:
            del self._where[extra.id], path.calls[extra.id]
            now_held = path.calls[operation.id] = _sum(held, more)
            for index, (new, old) in enumerate(zip(amounts, now_held, strict=True)):
                path.flying[index] += new - old
                path.free[index] += old - new
            path.calls[operation.id] = amounts
            path.seen.pop(operation.id, None)
        return _HELD

    def _read(self, operation: Read) -> tuple[Balance, ...]:
        balances = operation.execute(self.inner)
        with self._lock:
            return tuple(self._corrected(*pair) for pair in zip(operation.nodes, balances, strict=True))

    def _corrected(self, node: Node, balance: Balance) -> Balance:
        """How it stands if the store had been told all that this process knows."""
        spent = idle = 0
        keys = {node.key, *node.also}
        for path in list(self._paths.values()):
            if path.id:
                for index, other in enumerate(path.nodes):
                    if other.key in keys:
                        spent += path.used[index]
                        idle += path.free[index]
        if not spent and not idle:
            return balance
        return replace(balance, spent=balance.spent + spent, reserved=balance.reserved - spent - idle)

    # --- the lease; all of it under `busy` --------------------------------------------------------------------------------

    def _grow(self, path: _Path, wanted: Amounts, now: int) -> Decision | None:
        """Take a lease, or a larger one; a decision where there is no room for that."""
        if path.id:
            return self._draw(path, wanted, now)
        self._finish(path)
        with self._lock:
            # Calls of a lease that was lost may still be in flight, or not be told yet.
            held = _sum(wanted, *path.owed())
        id = new_id()
        try:
            outcome = Reserve(id, path.nodes, held, now, self._ttl).execute(self.inner)
        except BaseException:
            self._orphans.append(Release(id, path.nodes))  # whether it holds is not known; it may
            raise
        if outcome.decision is None:
            with self._lock:
                path.id, path.step, path.until = id, 0, self._clock.monotonic_ns() + self._ttl * 8 // 10
                path.holds(held)
            self._watch()
        return outcome.decision

    def _draw(self, path: _Path, wanted: Amounts, now: int) -> Decision | None:
        """Tell what was spent, and have so much free from now on; a decision where there is no room for that."""
        if path.pending is not None:
            self._execute(path, path.pending)
            if not path.id:
                return self._grow(path, wanted, now)
        with self._lock:
            # Nothing is given away while the store is asked; what comes back meanwhile is put in order after it.
            free, path.free = path.free, [0] * len(wanted)
            kept = tuple(max(0, min(pair)) for pair in zip(free, wanted, strict=True))
            flying, used = path.owed()
            # The least is what the store holds already, so that it is the same whether or not an answer comes.
            operation = Draw(
                path.id, path.nodes, path.step + 1, used, _sum(flying, wanted), _sum(flying, kept), now, self._ttl
            )
        return self._execute(path, operation)

    def _execute(self, path: _Path, operation: Draw) -> Decision | None:
        try:
            outcome = operation.execute(self.inner)
        except BaseException:
            with self._lock:
                path.pending = operation
                # Whether or not it had its effect, this much is held.
                path.holds(_sum(operation.least, operation.spent))
            raise
        repeated = not outcome.applied and outcome.state in (State.HELD, State.SENT)
        if not outcome.applied and not repeated:
            self._lost(path, operation)
            return None
        with self._lock:
            path.pending, path.step = None, operation.step
            path.until = self._clock.monotonic_ns() + self._ttl * 8 // 10
            path.told(operation.spent)
            path.holds(operation.least if repeated or outcome.decision is not None else operation.held)
        if outcome.crossed:
            self._on_crossed(outcome.crossed)
        return outcome.decision

    def _lost(self, path: _Path, operation: Draw) -> None:
        """The lease ran out and counts as spent: put in its place what was. For calls in flight the store holds from now on. Where the answer to
        the last step had been lost as well, that step may be counted twice: never too little."""
        self._hand_over(path, list(path.calls), path.ttl)
        with self._lock:
            path.drop()
            path.closing = Settle(operation.id, operation.nodes, operation.spent, operation.now)
        self._finish(path)

    def _hand_over(self, path: _Path, ids: Iterable[str], ttl: int) -> None:
        """Have the store hold for calls what their lease holds for them: they outlast it."""
        lifted = tuple(replace(node, limit=None) for node in path.nodes)  # it is in the lease already: there is room
        for id in sorted(path.handing - path.calls.keys()):  # it has ended, and the store may hold for it
            self._orphans.append(Release(id, path.nodes))
            path.handing.discard(id)
        for id in ids:
            with self._lock:
                amounts = path.calls.get(id)
            if amounts is None:
                continue
            path.handing.add(id)
            Reserve(id, lifted, amounts, self._clock.time_ns(), ttl).execute(self.inner)
            with self._lock:
                if self._where.pop(id, None) is None:
                    continue  # it has ended meanwhile: see above
                path.hand(id)
            path.handing.discard(id)

    def _close(self, path: _Path, now: int) -> bool:
        """Give the lease back; False where it is in use after all."""
        with self._lock:
            until, path.until = path.until, 0  # from here on nothing is taken, before it is looked whether anything was
            flying, used = path.owed()
            if path.calls or any(flying) or path.pending is not None:
                path.until = until
                return False
            path.closing = Settle(path.id, path.nodes, used, now)
            path.drop()
        self._finish(path)
        return True

    def _finish(self, path: _Path) -> None:
        """Tell the store the last word on a lease; where that fails it stays to be told."""
        operation: Any = path.closing
        if operation is None:
            return
        outcome = operation.execute(self.inner)
        if outcome.state is None:  # the store does not know the lease any more
            outcome = Adjust(f"{operation.id}+", operation.nodes, operation.amounts, operation.now).execute(self.inner)
        with self._lock:
            path.closing = None
            path.told(operation.amounts)
        if outcome.crossed:
            self._on_crossed(outcome.crossed)

    def _settle_up(self, path: _Path, *, idle: bool = False) -> None:
        """Tell the store what was spent, and give back what nobody uses."""
        now, wall = self._clock.monotonic_ns(), self._clock.time_ns()
        # What is asked for and is too little for any call is idle, too: with what lies elsewhere it may be enough.
        idle = idle or now - path.given >= _NS
        self._finish(path)
        self._let_run_out(path, now)
        with self._lock:
            keep = (0,) * len(path.free) if idle else tuple(max(0, amount) for amount in path.free)
        if path.id:
            if not (idle and self._close(path, wall)):
                self._draw(path, keep, wall)
        elif any(owed := path.owed()[1]):  # of a lease that was lost
            path.closing = Adjust(new_id(), path.nodes, owed, wall)
            self._finish(path)

    def _let_run_out(self, path: _Path, now: int) -> None:
        """A call that nobody ends is not renewed with its lease."""
        if path.pending is not None:  # what the lease holds is not known
            return
        with self._lock:
            overdue = path.overdue(now)
        if overdue or path.handing:
            self._hand_over(path, overdue, _OVER_NS)

    def sync(self) -> None:
        """Tell the store what was spent from leases, renew those in use and give back the others. It happens once a second by itself.

        Raises:
            StoreError: when the store fails; nothing is forgotten.
        """
        now = self._clock.monotonic_ns()
        while self._orphans:
            self._orphans[0].execute(self.inner)
            self._orphans.popleft()
        with self._lock:
            paths = list(self._paths.items())
        for key, path in paths:
            if path.id or any(path.used) or path.calls or path.handing:
                self._alone(path)
            with self._lock:
                if not path.id and not path.calls and not any(path.used) and now - path.last > _FORGET_NS:
                    self._paths.pop(key, None)

    def _alone(self, path: _Path, *, idle: bool = False) -> None:
        # Not for ever: this may be a signal handler that came in where its own thread holds it, and is about to tell the store.
        if path.busy.acquire(timeout=_CHANGE_S):
            try:
                self._settle_up(path, idle=idle)
            finally:
                path.busy.release()

    # --- life -----------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._every_s and self._thread is None:
            with self._lock:
                if self._thread is None:
                    arguments = (self._stop,)
                    self._thread = threading.Thread(
                        target=self._work, args=arguments, name="aifinops-leases", daemon=True
                    )
                    self._thread.start()

    def _work(self, stop: threading.Event) -> None:
        while not stop.wait(self._every_s):
            try:
                self.sync()
            except StoreError:
                pass  # the next time; whoever makes a call is told
            except Exception as failure:
                swallow("budgets.leases", failure)

    def reset_after_fork(self) -> None:
        """In a forked child: the leases are the parent's."""
        self._reset()
        self.inner.reset_after_fork()

    def close(self) -> None:
        """Tell the store what was spent, give back every lease that has no call in flight, and close the store.

        Raises:
            StoreError: when the store fails.
        """
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=1)
        self._stop = threading.Event()
        try:
            for path in list(self._paths.values()):
                if path.id or any(path.used):
                    self._alone(path, idle=True)
        finally:
            self.inner.close()


def _key(nodes: Sequence[Node]) -> str | tuple[str, ...]:
    """By which a path is found."""
    return nodes[0].key if len(nodes) == 1 else tuple([node.key for node in nodes])


def _sum(*amounts: Sequence[int]) -> Amounts:
    return tuple(map(sum, zip(*amounts, strict=True)))


def _denies(outcome: Outcome, amounts: Amounts) -> bool:
    decision = outcome.decision
    return decision is not None and any(amounts[refusal.index] >= refusal.asked for refusal in decision.refusals)
