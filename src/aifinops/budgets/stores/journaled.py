"""What a shared store has confirmed to this process, kept here, and put back should the store lose it.

A server can begin empty again, or come up from an old copy. It then tells each process once how many of its operations survived
(`StoreReset`). What came after those is put back before anything else is done:

    finished calls     summed up for each set of nodes, one `Adjust` under an id of its own
    what is held       `Reserve` again under its id, whether or not there is room: it is in flight, so it is held
    on the border      what was begun before and finished after the copy was made: again under its id, which the copy knows
    notes              the last word on each

Then, for a second and a half, nothing more is given of what has a limit: other processes have something to put back, too, and those that
have leases come by every second. What they may have had counts as held by them until then, so that whoever asks waits for it as for any
call in flight.

All of it may be repeated, also after it failed in the middle, and counts nothing twice. Amounts that were put back count as overrun.

The last operations are kept one by one, those before in sums; so much for each set of nodes and not more, however long a process lives. With
a copy that is older than what is kept one by one, a sum of which the copy may have a part counts as a whole: too much rather than too little.

What is kept is kept in memory: what a process that has ended had spent is put back by nobody.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import add
from typing import Any, NamedTuple, TypeVar

from aifinops.budgets.policy import Decision, Refusal
from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    Adjust,
    Capabilities,
    Draw,
    Extend,
    IdInUse,
    MarkSent,
    Node,
    Operation,
    Outcome,
    Put,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Store,
    Take,
)
from aifinops.charges import new_id
from aifinops.clock import Clock, SystemClock
from aifinops.errors import StoreError, StoreReset, swallow

__all__ = ["QUIET_S", "RECENT", "JournaledStore"]

R = TypeVar("R")
Amounts = tuple[int, ...]
Nodes = tuple[Node, ...]
Path = tuple[str, ...]

logger = logging.getLogger("aifinops.budgets")

RECENT = 4096
"""Finished operations that are kept one by one."""

QUIET_S = 1.5
"""How long after a loss others are waited for, seconds: a process with leases tells the store something every second."""

_NS = 1_000_000_000
_DAY_NS = 86_400 * _NS
_LATE_NS = 7 * _DAY_NS
"""How long after the end of its lease a hold is waited for; stores forget it then, too."""
_SUMS_MOST = 4096
_TIDY_EVERY = 32
_NOTES_MOST = 1024
_ERAS_MOST = 1024
_TRIES = 8
_OPEN, _SETTLED = (State.HELD, State.SENT), State.SETTLED
_entry = tuple.__new__  # as a named tuple is made, in a quarter of the time


Mark = tuple[Hashable, int]
"""A write, as `StoreReset` counts it: row and number."""
_GONE: Mark = (None, 2**63)
"""Of a write that the store has lost."""
_NEVER: Mark = (None, 0)


class _Hold:
    """A reservation that is open.

    Attributes:
        nodes: as they were given. held: now. until: end of its lease, monotonic. sent: was marked so.
        step: the last draw. begun, changed: the first and the last write to it. begun is None where the first answer was lost, so that
            nobody knows.
    """

    __slots__ = ("begun", "changed", "held", "nodes", "sent", "step", "until")

    def __init__(self, nodes: Nodes, held: Amounts, until: int, begun: Mark | None, changed: Mark) -> None:
        self.nodes = nodes
        self.held = held
        self.until = until
        self.sent = False
        self.step = 0
        self.begun = begun
        self.changed = changed


class _Entry(NamedTuple):
    """Something that is finished.

    Attributes:
        mark: the write that did it. since: the one that began it; None where either may have been an earlier one whose answer was lost.
        operation: what was done, without unknown amounts. amounts: what it has added to what is spent, one a node; none for nothing.
    """

    mark: Mark
    since: Mark | None
    operation: Settle | Release | Draw | Adjust
    amounts: Amounts


class _Sum:
    """Many things that are finished, of one set of nodes.

    Attributes:
        nodes, amounts: what they have added. last: the last write of each row among them.
    """

    __slots__ = ("amounts", "last", "nodes")

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.amounts = [0] * len(nodes)
        self.last: dict[Hashable, int] = {}

    def add(self, amounts: Sequence[int], last: Iterable[Mark] = ()) -> None:
        """One more."""
        self.amounts = list(map(add, self.amounts, amounts))
        known = self.last
        for row, number in last:
            if number > known.get(row, 0):
                known[row] = number


class _Owed(NamedTuple):
    """Something to be put back.

    Attributes:
        operation: what to do. instead: what to post where the store does not know the id; none for nothing.
    """

    operation: Operation[Any]
    instead: Amounts = ()


class JournaledStore:
    """A store that is given back what it has lost.

    Args:
        inner: a store that tells a journal what it has confirmed: one with the attribute `journal`. clock: for leases.
        on_reset: told of every loss, before anything is put back. recent: see `RECENT`.
        quiet_s: how long after a loss nothing more is given, seconds.
    """

    def __init__(
        self,
        inner: Any,
        clock: Clock | None = None,
        *,
        on_reset: Callable[[StoreReset], object] = lambda reset: None,
        recent: int = RECENT,
        quiet_s: float = QUIET_S,
    ) -> None:
        self.inner: Store = inner
        self._clock = clock or SystemClock()
        self._on_reset = on_reset
        self._recent_most = recent
        self._quiet_ns = int(quiet_s * _NS)
        self._begin()
        inner.journal = self

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store within."""
        inner = self.inner.capabilities
        return inner if inner.io == "none" else replace(inner, io="blocking")

    def _begin(self) -> None:
        self._pid = os.getpid()
        # Re-entrant: a finalizer or signal handler may come in here in the thread that is in here. Never held while the store is asked.
        self._lock = threading.RLock()
        self._turn = threading.RLock()  # of whoever puts back
        self._failures = self._putting = self._losses = self._quiet_until = 0
        self._holds: dict[str, _Hold] = {}
        self._recent: deque[_Entry] = deque()
        self._posted: dict[str, None] = {}  # ids of entries among them
        self._sums: dict[Path, list[_Sum]] = {}
        self._sum_ups = 0
        self._notes: dict[str, tuple[Mark, Put | Take]] = {}
        self._ended: dict[object, StoreReset] = {}  # by era, in order
        # What is to be put back.
        self._lost = False
        self._untold: deque[StoreReset] = deque()
        self._owed: deque[_Owed] = deque()
        self._credits: deque[_Owed] = deque()  # after all else, since they never bring `spent` below zero
        self._lost_holds: dict[str, None] = {}
        self._lost_notes: dict[str, None] = {}

    def run(self, operation: Operation[R]) -> R:
        """Execute one operation; what the store has lost is put back first.

        Raises:
            StoreError: as the store within, also while something is put back.
        """
        losses = -1
        for _ in range(_TRIES):
            try:
                if self._lost:
                    self._put_back()
                answer: Any = self._held_back(operation) if self._quiet_until else None
                if answer is None:
                    answer = operation.execute(self.inner)
            except StoreReset:
                continue
            if type(answer) is Outcome and answer.state is None and answer.decision is None:
                one: Any = operation
                if one.id in self._holds:
                    # It came in between the loss, of which another call was told, and what that one puts back.
                    if losses != self._losses:
                        losses = self._losses
                        continue
                    if isinstance(operation, (Settle, Release)):
                        with self._lock:
                            self._holds.pop(one.id, None)  # it was forgotten there, after a very long time
            return answer  # type: ignore[no-any-return]
        raise StoreError("the store of a budget loses again and again what it has confirmed")

    def _held_back(self, operation: Any) -> Outcome | None:
        """The answer to whoever wants more soon after a loss; None for anything else."""
        if self._clock.monotonic_ns() >= self._quiet_until:
            self._quiet_until = 0
            return None
        if isinstance(operation, Draw) and operation.held != operation.least:
            outcome = replace(operation, held=operation.least).execute(self.inner)
            return replace(outcome, decision=self._not_yet(operation, operation.held)) if outcome.applied else outcome
        if isinstance(operation, Reserve) and operation.id not in self._holds:
            decision = self._not_yet(operation, operation.amounts)
            return None if decision is None else Outcome(None, applied=False, decision=decision)
        return None

    def _not_yet(self, operation: Reserve | Draw, amounts: Amounts) -> Decision | None:
        """What others may have had counts as held by them."""
        refusals = [
            Refusal(index, replace(balance, reserved=max(balance.reserved, balance.limit - balance.spent)), amount)
            for index, (balance, amount) in enumerate(
                zip(Read(operation.nodes).execute(self.inner), amounts, strict=True)
            )
            if balance.limit is not None and amount
        ]
        return Decision(allowed=False, refusals=tuple(refusals), at=operation.now) if refusals else None

    def reset_after_fork(self) -> None:
        """In a forked child: what was confirmed to the parent is the parent's to put back."""
        self.forget()
        self.inner.reset_after_fork()

    def close(self) -> None:
        """Close the store within."""
        self.inner.close()

    def forget(self) -> None:
        """See `Journal`."""
        self._begin()

    # --- what is confirmed ------------------------------------------------------------------------------------------------

    def wrote(self, operation: Operation[Any], answer: Any, era: object, row: Hashable, number: int) -> None:
        """See `Journal`."""
        note = _NOTES.get(type(operation))
        if note is None:
            return
        try:
            with self._lock:
                mark = row, number
                if self._ended and self._is_gone(era, mark):
                    mark, self._lost = _GONE, True
                note(self, operation, answer, mark)
        except Exception as failure:  # what was done is done
            swallow("budgets.journal", failure)

    def _is_gone(self, era: object, mark: Mark) -> bool:
        """Whether the era in which it was confirmed has ended since, and it did not survive that."""
        if era not in self._ended:
            return False
        since = itertools.dropwhile(lambda reset: reset.era is not era, self._ended.values())
        return not all(reset.has(*mark) for reset in since)

    def _reserved(self, operation: Reserve, outcome: Outcome, mark: Mark) -> None:
        if outcome.state not in _OPEN:
            return
        hold = self._holds.get(operation.id)
        if hold is not None:
            if outcome.applied:  # put back
                hold.begun = hold.changed = mark
            elif hold.begun is _GONE:
                hold.begun = None
            return
        if self._is_putting_back():
            # Its end, of before the loss, was told meanwhile, and so is put back itself.
            self._owed.append(_Owed(Release(operation.id, operation.nodes)))
            return
        until = self._clock.monotonic_ns() + operation.ttl
        # One that is there already was made by a try of whose answer nobody knows.
        begun = mark if outcome.applied else None
        self._holds[operation.id] = _Hold(operation.nodes, operation.amounts, until, begun, mark)
        if mark is _GONE:
            self._lost_holds[operation.id] = None

    def _changed(self, operation: MarkSent | Extend, outcome: Outcome, mark: Mark) -> None:
        hold = self._holds.get(operation.id)
        if hold is None or outcome.state not in _OPEN or outcome.decision is not None:
            return
        if isinstance(operation, MarkSent):
            hold.sent = True
        else:
            if operation.amounts is not None and outcome.applied:
                hold.held = operation.amounts
            hold.until = self._clock.monotonic_ns() + operation.ttl
        hold.changed = mark
        if mark is _GONE:
            self._lost_holds[operation.id] = None

    def _drawn(self, operation: Draw, outcome: Outcome, mark: Mark) -> None:
        if outcome.state not in _OPEN:
            return
        hold = self._holds.get(operation.id)
        if not outcome.applied and (hold is None or operation.step <= hold.step):
            return
        if hold is not None:
            hold.step = operation.step
            whole = outcome.applied and outcome.decision is None
            hold.held = operation.held if whole else operation.least
            hold.until = self._clock.monotonic_ns() + operation.ttl
            hold.changed = mark
            if mark is _GONE:
                self._lost_holds[operation.id] = None
        self._finish(_Entry(mark, mark, operation, operation.spent))

    def _settled(self, operation: Settle, outcome: Outcome, mark: Mark) -> None:
        if outcome.state is None:
            return
        hold = self._holds.pop(operation.id, None)
        if hold is None and not outcome.applied and not self._is_putting_back():
            return  # it is known here
        begun = hold.begun if hold is not None and outcome.applied else None
        amounts: Any = operation.amounts
        if None in amounts:
            held = hold.held if hold is not None else (0,) * len(amounts)
            amounts = tuple([most if one is None else one for one, most in zip(amounts, held, strict=True)])
            operation = Settle(operation.id, operation.nodes, amounts, operation.now)
        self._finish(_entry(_Entry, (mark, begun, operation, amounts if outcome.state is _SETTLED else ())))

    def _released(self, operation: Release, outcome: Outcome, mark: Mark) -> None:
        if outcome.state is None:
            return
        hold = self._holds.pop(operation.id, None)
        if hold is not None or outcome.applied or self._is_putting_back():
            begun = hold.begun if hold is not None and outcome.applied else None
            self._finish(_Entry(mark, begun, operation, ()))

    def _adjusted(self, operation: Adjust, outcome: Outcome, mark: Mark) -> None:
        if operation.id in self._posted:
            return
        self._posted[operation.id] = None
        amounts = operation.amounts
        if min(amounts, default=0) < 0:
            amounts = self._credited(operation)
        self._finish(_Entry(mark, mark if outcome.applied else None, operation, amounts))

    def _credited(self, operation: Adjust) -> Amounts:
        """A credit never brings `spent` below zero, so it may have done less than it says. That it has taken out what was spent here is sure."""
        spent = dict.fromkeys((node.key for node in operation.nodes), 0)
        posted: Iterable[tuple[Nodes, Sequence[int]]] = (
            *((entry.operation.nodes, entry.amounts) for entry in self._recent),
            *((one.nodes, one.amounts) for some in self._sums.values() for one in some),
        )  # fmt: skip
        for nodes, amounts in posted:
            for node, amount in zip(nodes, amounts, strict=False):  # what was released has no amounts
                if node.key in spent:
                    spent[node.key] += amount
        pairs = zip(operation.nodes, operation.amounts, strict=True)
        return tuple(max(amount, -max(0, spent[node.key])) for node, amount in pairs)

    def _noted(self, operation: Put | Take, answer: Any, mark: Mark) -> None:
        if isinstance(operation, Put) and not answer:
            return
        self._notes.pop(operation.key, None)
        if len(self._notes) >= _NOTES_MOST:
            self._notes.pop(next(iter(self._notes)))
        self._notes[operation.key] = mark, operation
        if mark is _GONE:
            self._lost_notes[operation.key] = None

    def _finish(self, entry: _Entry) -> None:
        if entry.mark is _GONE:
            # It was confirmed before the loss and is told after it.
            self._owe([entry], {}, lambda since: since is not _GONE)
            return
        self._recent.append(entry)
        if len(self._recent) > self._recent_most:
            self._sum_up()

    # --- sums ---------------------------------------------------------------------------------------------------------------

    def _sum_up(self) -> None:
        """Of those that are kept one by one, put the oldest into sums."""
        fresh: dict[Path, _Sum] = {}
        one = _Sum(())
        for _ in range(max(1, self._recent_most // 32)):
            mark, _, operation, amounts = self._recent.popleft()
            if self._posted:
                self._posted.pop(operation.id, None)
            if amounts:
                if operation.nodes is not one.nodes:
                    one = _sum_of(fresh, operation.nodes)
                one.add(amounts, (mark,))
        for path, one in fresh.items():
            self._sums.setdefault(path, []).append(one)
        self._sum_ups += 1
        if not self._sum_ups % _TIDY_EVERY:
            self._tidy()

    def _tidy(self) -> None:
        now = self._clock.time_ns()
        for path in [path for path, some in self._sums.items() if _is_over(some[0].nodes, now)]:
            del self._sums[path]
        while sum(map(len, self._sums.values())) > max(_SUMS_MOST, len(self._sums)):
            self._sums = {path: _halved(some) for path, some in self._sums.items()}
        self._drop_holds()

    def _drop_holds(self) -> None:
        """Holds that nobody has ended and that no store knows any longer: they count as spent."""
        now = self._clock.monotonic_ns()
        for id, hold in [pair for pair in self._holds.items() if pair[1].until + _LATE_NS < now]:
            del self._holds[id]
            _sum = _Sum(hold.nodes)
            _sum.add(hold.held, [hold.changed])
            self._sums.setdefault(_path(hold.nodes), []).append(_sum)

    # --- what was lost --------------------------------------------------------------------------------------------------------

    def reset(self, reset: StoreReset) -> None:
        """See `Journal`."""
        with self._lock:
            if reset.era in self._ended:
                return
            if len(self._ended) >= _ERAS_MOST:
                del self._ended[next(iter(self._ended))]
            self._ended[reset.era] = reset
            self._untold.append(reset)
            self._losses += 1
            self._quiet_until = self._clock.monotonic_ns() + self._quiet_ns
            sums: dict[Path, _Sum] = {}
            for path, some in list(self._sums.items()):
                kept = []
                for one in some:
                    if all(reset.has(row, number) for row, number in one.last.items()):
                        kept.append(one)
                    else:
                        _sum_of(sums, one.nodes).add(one.amounts)
                self._sums[path] = kept
                if not kept:
                    del self._sums[path]
            lost = [entry for entry in self._recent if not reset.has(*entry.mark)]
            if lost:
                self._recent = deque(entry for entry in self._recent if reset.has(*entry.mark))
            self._lose_holds(reset, sums)
            self._owe(lost, sums, lambda since: reset.has(*since))
            for key, (mark, operation) in self._notes.items():
                if not reset.has(*mark):
                    self._notes[key] = _GONE, operation
                    self._lost_notes[key] = None
            # Last: whoever sees it finds everything else.
            self._lost = True

    def _lose_holds(self, reset: StoreReset, sums: dict[Path, _Sum]) -> None:
        for id, hold in self._holds.items():
            if reset.has(*hold.changed):
                continue
            hold.changed = _GONE
            self._lost_holds[id] = None
            if hold.begun is not None and not reset.has(*hold.begun):
                hold.begun = _GONE
            _sum_of(sums, hold.nodes)  # nothing, after what is held: an operation with limits, see `_again`

    def _owe(self, lost: Sequence[_Entry], sums: dict[Path, _Sum], is_known: Callable[[Mark], bool]) -> None:
        for entry in lost:
            self._posted.pop(entry.operation.id, None)
            if entry.since is None or is_known(entry.since):
                # Nobody knows whether a credit is lost of which the first answer was: rather too much than too little.
                if min(entry.amounts, default=0) >= 0:
                    self._owed.append(_Owed(entry.operation, entry.amounts))
            elif entry.amounts:
                _sum_of(sums, entry.operation.nodes).add(entry.amounts)
        now = self._clock.time_ns()
        for one in sums.values():
            added, credited = [max(0, amount) for amount in one.amounts], [min(0, amount) for amount in one.amounts]
            self._owed += [_Owed(Adjust(new_id(), one.nodes, amounts, now)) for amounts in _portions(added)]
            if any(credited):
                self._credits += [_Owed(Adjust(new_id(), one.nodes, amounts, now)) for amounts in _portions(credited)]

    # --- putting back -----------------------------------------------------------------------------------------------------------

    def _put_back(self) -> None:
        """Put back what was lost; one thread does, and the others wait for it.

        Raises:
            StoreError: when the store fails; the next operation goes on with what is left.
        """
        if self._pid != os.getpid():  # forked by somebody who did not tell us
            self.reset_after_fork()
            return
        if self._is_putting_back():
            # A finalizer or signal handler in the middle of it: not in between, and to be told later.
            raise StoreError("what the store of a budget has lost is being put back")
        failures = self._failures
        with self._turn:
            if not self._lost:
                return
            if self._failures != failures:
                raise StoreError("what the store of a budget has lost could not be put back yet")
            self._putting = threading.get_ident()
            try:
                self._tell()
                self._put_back_holds()
                self._put_back_owed(self._owed)
                self._put_back_owed(self._credits)
                self._put_back_notes()
            except StoreReset:
                raise  # there is more to put back, by whoever is next
            except BaseException:  # whatever it was goes on; those who waited for this turn do not try again at once
                self._failures += 1
                raise
            finally:
                self._putting = 0
            with self._lock:
                self._lost = bool(self._lost_holds or self._owed or self._credits or self._lost_notes or self._untold)
            if not self._lost:
                logger.info("aifinops: what the store of a budget had lost of this process is put back")

    def _is_putting_back(self) -> bool:
        return self._putting == threading.get_ident()

    def _tell(self) -> None:
        while self._untold:
            reset = self._untold.popleft()
            logger.warning("aifinops: %s. What this process has spent and holds there is put back", reset)
            try:
                self._on_reset(reset)
            except Exception as failure:  # somebody's listener
                swallow("budgets.on_reset", failure)

    def _put_back_holds(self) -> None:
        # Taken out first: it comes in again when it is lost again meanwhile.
        while self._lost_holds:
            id, _ = self._lost_holds.popitem()
            hold = self._holds.get(id)
            if hold is not None:
                try:
                    self._again(id, hold)
                except BaseException:  # also Ctrl-C: it is still to be put back
                    self._lost_holds[id] = None
                    raise

    def _again(self, id: str, hold: _Hold) -> None:
        # Without limits, whatever the store has now: what is in flight is in flight. The store keeps a node as it was last given,
        # therefore something with limits comes after this.
        nodes = tuple([node if node.limit is None else replace(node, limit=None) for node in hold.nodes])
        now, ttl = self._clock.time_ns(), max(0, hold.until - self._clock.monotonic_ns())
        done = False
        if hold.begun is _GONE or hold.begun is None:
            with suppress(IdInUse):  # the copy has it, with what it held at first
                done = Reserve(id, nodes, hold.held, now, ttl).execute(self.inner).applied
        if not done:
            Extend(id, nodes, now, ttl, hold.held).execute(self.inner)
        if hold.sent:
            MarkSent(id).execute(self.inner)
        if hold.changed is _GONE and id not in self._lost_holds:  # it is forfeited there: its end will correct it
            hold.changed = _NEVER

    def _put_back_owed(self, left: deque[_Owed]) -> None:
        while left:
            owed = left.popleft()
            operation: Any = owed.operation
            try:
                outcome = operation.execute(self.inner)
                if outcome.state is None and any(owed.instead):
                    now = self._clock.time_ns()
                    Adjust(f"{operation.id}~", operation.nodes, owed.instead, now).execute(self.inner)
            except IdInUse:
                logger.warning("aifinops: what %s had done is known otherwise by the store of a budget", operation.id)
            except BaseException:  # likewise
                left.appendleft(owed)
                raise

    def _put_back_notes(self) -> None:
        while self._lost_notes:
            key, _ = self._lost_notes.popitem()
            known = self._notes.get(key)
            if known is not None and known[0] is _GONE:
                try:
                    self._note_again(known[1])
                except BaseException:  # likewise
                    self._lost_notes[key] = None
                    raise

    def _note_again(self, operation: Put | Take) -> None:
        now = self._clock.time_ns()
        if isinstance(operation, Take):
            replace(operation, now=now).execute(self.inner)
        elif not operation.until or now < operation.until:
            replace(operation, now=now, new=True).execute(self.inner)


_NOTES: dict[type, Callable[[JournaledStore, Any, Any, Mark], None]] = {
    Reserve: JournaledStore._reserved,
    MarkSent: JournaledStore._changed,
    Extend: JournaledStore._changed,
    Draw: JournaledStore._drawn,
    Settle: JournaledStore._settled,
    Release: JournaledStore._released,
    Adjust: JournaledStore._adjusted,
    Put: JournaledStore._noted,
    Take: JournaledStore._noted,
}


def _path(nodes: Nodes) -> Path:
    return tuple([node.key for node in nodes])


def _sum_of(sums: dict[Path, _Sum], nodes: Nodes) -> _Sum:
    path = _path(nodes)
    found = sums.get(path)
    if found is None:
        found = sums[path] = _Sum(nodes)
    found.nodes = nodes  # as they were given last
    return found


def _halved(some: list[_Sum]) -> list[_Sum]:
    """Each two neighbours in one."""
    merged = []
    for place in range(0, len(some), 2):
        first, *others = some[place : place + 2]
        for other in others:
            first.add(other.amounts, other.last.items())
            first.nodes = other.nodes
        merged.append(first)
    return merged


def _is_over(nodes: Nodes, now: int) -> bool:
    """Whether the windows of all have ended more than a day ago."""
    return all(0 < (node.kept or node.until) < now - _DAY_NS for node in nodes)


def _portions(amounts: Sequence[int]) -> Iterable[Amounts]:
    """Amounts that each fit into one operation."""
    left = list(amounts)
    while True:
        some = tuple(max(-MAX_AMOUNT, min(amount, MAX_AMOUNT)) for amount in left)
        yield some
        left = [amount - part for amount, part in zip(left, some, strict=True)]
        if not any(left):
            return
