"""The way to the stores. One that does not answer is left alone for a while, and is told later what it could not be told."""

from __future__ import annotations

import logging
from builtins import id as id_of
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from aifinops.budgets.stores.base import Adjust, Crossing, InTheMiddle, Operation, Outcome, Settle, Store
from aifinops.budgets.witness import Witness
from aifinops.clock import Clock
from aifinops.errors import StoreError, StoreReset

__all__ = ["Line", "Lines", "Settlement"]

R = TypeVar("R")

logger = logging.getLogger("aifinops.budgets")

_NS = 1_000_000_000
_OWED_MOST = 100_000
_CLOSED_NS, _CLOSED_MOST_NS = _NS // 20, _NS
"""A store that failed is left alone for 0.1 s, doubled with each further failure up to a second."""


class Settlement(Operation[Outcome]):
    """The end of a call, which is counted also where the store has forgotten what was held for it.

    Args:
        settle: the end. held: what was held, which stands in for what nobody knows.
    """

    __slots__ = ("held", "settle")

    def __init__(self, settle: Settle, held: Sequence[int]) -> None:
        self.settle = settle
        self.held = held

    def execute(self, store: Store) -> Outcome:
        """Settle, or post what it cost.

        Raises:
            StoreError: when the store fails.
        """
        settle = self.settle
        outcome = settle.execute(store)
        if outcome.state is not None:
            return outcome
        # The store was emptied, or it has been out of reach for so long that it has settled this and forgotten it: rather too much than too little.
        known = zip(settle.amounts, self.held, strict=True)
        cost = tuple([most if amount is None else amount for amount, most in known])
        return Adjust(f"{settle.id}+", settle.nodes, cost, settle.now).execute(store)


class Line:
    """The way to one store, and what it is still to be told.

    Attributes:
        owed: operations that it did not take. closed_until: not to be asked before, monotonic nanoseconds; a store that does not answer
            would make every call wait for its timeout. reserve, settle: its own quick ways to do so, where it has some; None from them says
            that the store itself has to be asked. waits: False for one that always answers at once.
    """

    __slots__ = ("closed_until", "failures", "owed", "reserve", "settle", "store", "waits")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.owed: deque[Operation[Outcome]] = deque(maxlen=_OWED_MOST)
        self.failures = 0
        self.closed_until = 0
        self.waits = store.capabilities.io != "none"
        self.reserve: Callable[..., Outcome | None] | None = getattr(store, "quick_reserve", None)
        self.settle: Callable[..., Outcome | None] | None = getattr(store, "quick_settle", None)

    def failed(self, now: int, error: StoreError) -> None:
        """The store has not answered: it is left alone for a while."""
        self.failures += 1
        if self.failures == 1:
            logger.warning("aifinops: the store of a budget does not answer: %s", error)
        self.closed_until = now + min(_CLOSED_NS << min(self.failures, 5), _CLOSED_MOST_NS)


class Lines:
    """One line to every store.

    Args:
        clock: for how long a store is left alone. witness: is told when a store has lost its data. report: told of the marks that are reached
            when a store is told later.
    """

    def __init__(self, clock: Clock, witness: Witness, report: Callable[[Iterable[Crossing]], None]) -> None:
        self._clock = clock
        self._witness = witness
        self._report = report
        self._lines: dict[int, Line] = {}

    def __iter__(self) -> Iterator[Line]:
        return iter(list(self._lines.values()))

    def __contains__(self, store: Store) -> bool:
        return id_of(store) in self._lines

    def to(self, store: Store) -> Line:
        """The line to a store, which the first call makes."""
        line = self._lines.get(id_of(store))
        if line is None:
            line = self._lines[id_of(store)] = Line(store)
        return line

    def execute(self, line: Line, operation: Operation[R]) -> R:
        """Have a store do something, twice where it has lost its data in between.

        Raises:
            StoreError: when it fails.
        """
        try:
            try:
                answer = operation.execute(line.store)
            except StoreReset as reset:
                self._witness.store_reset(line.store, reset)
                answer = operation.execute(line.store)
        except InTheMiddle:  # it does answer: whoever is in the middle of it gets on
            raise
        except StoreError as error:
            line.failed(self._clock.monotonic_ns(), error)
            raise
        line.failures = 0
        return answer

    def answers(self, line: Line) -> bool:
        """False while a store is left alone."""
        if not line.waits:
            return True
        return self._clock.monotonic_ns() >= line.closed_until and (not line.owed or self.pay(line))

    def owe(self, store: Store, operation: Operation[Outcome]) -> Outcome | None:
        """Tell a store what has happened; what it cannot be told now it is told later."""
        line = self._lines.get(id_of(store)) or self.to(store)
        try:
            if self.answers(line):
                return self.execute(line, operation)
        except StoreError:
            pass
        line.owed.append(operation)
        return None

    def tell(self, line: Line, operation: Operation[R]) -> R | None:
        """Tell a store what it may as well be told another time."""
        try:
            return self.execute(line, operation) if self.answers(line) else None
        except StoreError:
            return None

    def pay(self, line: Line) -> bool:
        """Tell a store what it is still to be told; False when it does not take it."""
        while line.owed:
            try:
                operation = line.owed.popleft()
            except IndexError:  # another thread was quicker
                break
            try:
                self._report(self.execute(line, operation).crossed)
            except StoreError:
                line.owed.appendleft(operation)
                return False
            except Exception:  # it would fail again, for ever
                raise
            except BaseException:  # somebody pressed Ctrl-C: nothing is wrong with it
                line.owed.appendleft(operation)
                raise
        return True

    def pay_debts(self) -> bool:
        """Tell every store what it is still to be told; True when nothing is left."""
        return sum(not self.pay(line) for line in self) == 0
