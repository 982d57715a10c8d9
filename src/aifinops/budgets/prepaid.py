"""Jobs that pay as they run, such as training: a slice of time is held in advance, and an allowance for the way to a safe end.

    open    hold a slice and the allowance             ──► no room: nothing begins
    step    a slice is nearly used up: pay for it and hold the next one, in one step of the store
            no room for a whole one: a shorter one, then only what is held already
            no more than the allowance is left: stop at this step, save what there is, end
    close   pay for what was used, give back the rest

Nothing is overspent as long as a step and a checkpoint together take no longer than the allowance. A process that is killed leaves at most
a slice and the allowance, which count as spent when the lease runs out; a process that comes back late corrects that.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, Protocol

from aifinops.budgets.actions import Change
from aifinops.budgets.budget import ActiveBudget, is_currency
from aifinops.budgets.guard import Guard
from aifinops.budgets.policy import Balance
from aifinops.budgets.reservations import Part, Reservation
from aifinops.budgets.stores.base import Node
from aifinops.budgets.waiting import Wait
from aifinops.charges import new_id
from aifinops.errors import BudgetExceeded, StoreUnavailable, UnknownModel

__all__ = ["HoldLog", "Prepaid", "settle_left"]

_NS = 1_000_000_000
_EARLY = 4
"""The next slice is asked for when one part in so many of this one is left, and then so often in what is left."""
_LEASE_SLICES = 3
_LEASE_LEAST_S = 30.0


class HoldLog(Protocol):
    """Where a job writes down what it holds, for whoever comes after it has been killed. It must not raise."""

    def changing(self, id: str) -> None:
        """What this reservation holds is about to change: until `holds` nobody knows."""
        ...

    def holds(self, id: str, facts: Mapping[str, Any]) -> None:
        """It holds this; `settle_left` understands it."""
        ...

    def over(self, id: str) -> None:
        """It holds nothing any more."""
        ...


class Prepaid:
    """Time that is paid for in advance. Threads may share one.

    Args:
        guard: of the budgets. budgets: outermost first. rate: unit -> amount a second: nano-units of a currency, millionths of a meter.
        slice_s: how much is held in advance, seconds. allowance_s: what a step and a checkpoint take, seconds; longer ones that are seen
            raise it.
        unpriced: why the rate has no money in it; None when it has. log: where what is held is written down; None for nowhere.

    Attributes:
        error: why there is no more; None as long as there is.
    """

    def __init__(
        self,
        guard: Guard,
        budgets: Sequence[ActiveBudget],
        rate: Mapping[str, int | Decimal],
        *,
        slice_s: float = 10.0,
        allowance_s: float = 30.0,
        unpriced: UnknownModel | None = None,
        log: HoldLog | None = None,
    ) -> None:
        self._log = log
        self.error: BudgetExceeded | None = None
        self._unpriced = unpriced
        self._guard = guard
        self._clock = guard.clock
        self._budgets = budgets
        self._rate = {unit: Decimal(amount).as_integer_ratio() for unit, amount in rate.items()}
        self._slice = int(slice_s * _NS)
        self._allowance = int(allowance_s * _NS)
        self._longest = self._checkpoint = 0
        self._lock = threading.RLock()
        self._held: Reservation | None = None
        self._since = self._paid_at = self._paid_until = self._stepped = self._due = 0
        self._told: dict[str, int] = {}

    @property
    def allowance(self) -> int:
        """What is kept for the way to a safe end, nanoseconds."""
        return max(self._allowance, self._longest + self._checkpoint)

    @property
    def left(self) -> int:
        """Time that is paid for in advance, nanoseconds; negative when the job has used more."""
        return self._paid_until - self._clock.monotonic_ns()

    @property
    def due(self) -> int:
        """When to look next, on the monotonic clock: before that `tick` does nothing."""
        return self._due

    def open(self, now: int | None = None) -> None:
        """Hold the first slice, and the allowance.

        Args:
            now: since when it is used, on the monotonic clock; default: this moment.

        Raises:
            BudgetExceeded: when a budget has no room for them.
            Wait: as `Guard.reserve`.
        """
        with self._lock:
            now = self._clock.monotonic_ns() if now is None else now
            self._since = self._paid_at = self._stepped = now
            self._told = dict.fromkeys(self._rate, 0)
            self._begin(now, self._slice + self.allowance)

    def step(self) -> bool:
        """A step has ended; False when the job has to save what it has and end. Most of the time it only looks at a clock."""
        now = self._clock.monotonic_ns()
        self._longest = max(self._longest, now - self._stepped)
        self._stepped = now
        return self._look(now)

    def tick(self) -> bool:
        """As `step`, in the middle of one: for whoever keeps the lease of a long step alive."""
        return self._look(self._clock.monotonic_ns())

    def expect(self, nanoseconds: int) -> None:
        """The way to the end of a step may take so long: for whoever times steps himself, and ends some steps after he is told to."""
        self._longest = max(self._longest, nanoseconds)

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long: it is no part of a step, and the allowance has room for another one."""
        self._checkpoint = max(self._checkpoint, int(seconds * _NS))
        self._stepped = self._clock.monotonic_ns()

    def lasts(self) -> float | None:
        """For how many seconds from now the tightest budget has room, if nobody else spends; None when none limits this in its window.

        Raises:
            StoreError: when a store fails.
        """
        with self._lock:
            now, wall = self._clock.monotonic_ns(), self._clock.time_ns()
            held = self._held
            ours = (
                {}
                if held is None
                else {node.key: amount for node, amount in zip(held.nodes, held.amounts, strict=True)}
            )
            unpaid = self._used(now)
            found = [
                seconds
                for active in self._budgets
                for node, balance in zip(active.nodes(wall), self._guard.balances(active).values(), strict=True)
                if (seconds := self._seconds(node, balance, ours, unpaid)) is not None
                and not 0 < node.until < wall + seconds * _NS
            ]
        return min(found, default=None)

    def _seconds(
        self, node: Node, balance: Balance, ours: Mapping[str, int], unpaid: Mapping[str, int]
    ) -> float | None:
        amount, of = self._rate.get(node.unit, (0, 1))
        if not amount or balance.limit is None:
            return None
        room = balance.limit - balance.spent - balance.reserved + ours.get(node.key, 0) - unpaid[node.unit]
        return max(0, room) * of / amount

    def close(self, now: int | None = None) -> None:
        """Pay for what was used since the last time, and give back the rest; `now` as in `open`."""
        with self._lock:
            used = self._used(self._clock.monotonic_ns() if now is None else now)
            held, self._held = self._held, None
            if held is not None:
                self._settle(held, used)
            elif any(used.values()):  # there was no room for it
                self._guard.post(self._budgets, used, id=new_id(), at=self._clock.time_ns())

    # --- paying -----------------------------------------------------------------------------------------------------------

    def _look(self, now: int) -> bool:
        if now >= self._due:
            with self._lock:
                if now >= self._due:
                    self._pay(now)
        return self.error is None

    def _pay(self, now: int) -> None:
        try:
            self._renew(now, self._slice + self.allowance)
        except BudgetExceeded as refused:
            refusal = refused
            if isinstance(refused, Wait):  # time goes on meanwhile
                refused.ticket.leave()
                refusal = refused.error
            left = max(0, self._paid_until - now)
            seconds = self._room(refusal, left)
            if seconds > left:
                with suppress(BudgetExceeded):  # somebody else was quicker
                    self._renew(now, seconds)
            if self._paid_until - now <= self.allowance:
                self.error = refusal
            self._wait(now)

    def _renew(self, now: int, wanted: int) -> None:
        """Pay until now, and hold so many nanoseconds."""
        held = self._held
        over = held is None or any(0 < node.until <= self._clock.time_ns() for node in held.nodes)
        if held is None or over:
            self._turn(now, wanted)
            return
        spent = self._used(now)
        self._paid_at = now
        for unit, amount in spent.items():
            self._told[unit] += amount
        self._changing(held)
        try:
            alive = self._guard.draw(held, self._budgets, spent, self._amounts(wanted), slice_s=self._lease())
        finally:  # without room, too, it was paid
            self._holds(held)
        if alive:
            self._paid_until = now + wanted
            self._wait(now)
        else:  # the lease ran out; in place of what was held comes what was used
            self._settle(held, spent)
            self._held = None
            self._begin(now, wanted)

    def _turn(self, now: int, wanted: int) -> None:
        """A window has ended: what was used belongs to it, and what comes to the next one."""
        spent, held = self._used(now), self._held
        if held is not None:
            for unit, amount in spent.items():
                self._told[unit] += amount
            self._paid_at = now
            self._held = None
            self._settle(held, spent)
        self._begin(now, wanted)

    def _begin(self, now: int, wanted: int) -> None:
        self._paid_until = now
        at, lease = self._clock.time_ns(), self._lease()
        try:
            self._held = self._guard.reserve(
                self._budgets, self._amounts(wanted), id=new_id(), at=at, slice_s=lease, unpriced=self._unpriced
            )
        except Change as change:  # there is nothing smaller than time
            raise change.error from None
        self._paid_until = now + wanted
        if self._held is not None:
            self._holds(self._held)
        self._wait(now)

    def _settle(self, held: Reservation, used: Mapping[str, int]) -> None:
        self._changing(held)
        self._guard.settle(held, used)
        if self._log is not None:
            self._log.over(held.id)

    # --- what is written down ---------------------------------------------------------------------------------------------

    def _changing(self, held: Reservation) -> None:
        if self._log is not None:
            self._log.changing(held.id)

    def _holds(self, held: Reservation) -> None:
        """Of stores that others see, too: what is held in memory is gone with the process."""
        parts = [part for part in held.parts if part.store.capabilities.shared] if self._log is not None else []
        if self._log is None or not parts:
            return
        since = self._clock.time_ns() - (self._clock.monotonic_ns() - self._since)
        facts = {
            "since": since, "at": since + self._paid_at - self._since, "rate": self._rate, "paid": self._told,
            "parts": [
                {"nodes": [_node_facts(node) for node in part.nodes], "amounts": list(part.amounts)} for part in parts
            ],
        }  # fmt: skip
        self._log.holds(held.id, facts)

    def _wait(self, now: int) -> None:
        """When to look again: early, so that money which is only held by others can come back in time."""
        left = self._paid_until - now - self.allowance
        self._due = now + max(left - self._slice // _EARLY, left // _EARLY, 0)

    # --- amounts ----------------------------------------------------------------------------------------------------------

    def _lease(self) -> float:
        return max(_LEASE_SLICES * (self._slice + self.allowance) / _NS, _LEASE_LEAST_S)

    def _amounts(self, nanoseconds: int) -> dict[str, int]:
        """What so long costs, rounded up."""
        return {unit: -(-amount * nanoseconds // (of * _NS)) for unit, (amount, of) in self._rate.items()}

    def _used(self, now: int) -> dict[str, int]:
        """What was used and is not paid; the sum of all parts is rounded once."""
        return {unit: amount - self._told[unit] for unit, amount in self._amounts(now - self._since).items()}

    def _room(self, refusal: BudgetExceeded, left: int) -> int:
        """Nanoseconds for which the refusing budget has room in all."""
        amount, of = self._rate.get(refusal.unit, (0, 1))
        if not amount or isinstance(refusal, StoreUnavailable):
            return left
        room = int(refusal.remaining.scaleb(9 if is_currency(refusal.unit) else 6))
        return room * of * _NS // amount


_NODE = ("budget", "window", "unit", "limit", "until", "marks", "label", "also", "kept")


def _node_facts(node: Node) -> list[Any]:
    return [getattr(node, name) for name in _NODE]


def _node_of(facts: Sequence[Any]) -> Node:
    given = dict(zip(_NODE, facts, strict=True))
    return Node(**{**given, "marks": tuple(given["marks"]), "also": tuple(given["also"])})


def settle_left(guard: Guard, budgets: Sequence[ActiveBudget], id: str, facts: Mapping[str, Any], until: int) -> bool:
    """Put what a job had used in the place of what it held when it was killed. Doing it again changes nothing.

    Args:
        guard: of the budgets. budgets: those in force now; by them the stores are found. id, facts: as its log has them.
        until: when it was last alive, nanoseconds since the epoch.

    Returns:
        Whether every part was settled; where none of these budgets is in a store of it, that part counts as spent when its lease runs out.

    Raises:
        KeyError, TypeError, ValueError: for facts that nobody has written.
    """
    length = max(0, until - int(facts["since"]))
    used = {
        unit: max(0, -(-int(amount) * length // (int(of) * _NS)) - int(facts["paid"][unit]))
        for unit, (amount, of) in facts["rate"].items()
    }
    stores = {}
    for active in budgets:
        guard.prepare(active)
        stores[active.key] = active.store
    found: list[Part] = []
    for part in facts["parts"]:
        nodes = tuple(map(_node_of, part["nodes"]))
        store = next((stores[node.budget] for node in nodes if node.budget in stores), None)
        if store is not None:
            found.append(Part(store, nodes, tuple(map(int, part["amounts"]))))
    if found:
        guard.settle(Reservation(id, found), used)
    return len(found) == len(facts["parts"])
