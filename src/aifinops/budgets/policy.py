"""The rule: balances and amounts in, a decision out. No clock, no lock, no store.

Every store is proved equal to `decide` by `aifinops.testing.check_budget_store`, whatever language it decides in.
All quantities are integers: nano-units of a currency, millionths of a meter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Balance", "Decision", "Refusal", "decide", "fits"]


@dataclass(frozen=True, slots=True)
class Balance:
    """How one node stands: one unit of one budget in one window.

    Attributes:
        limit: what may be spent; None accumulates without refusing.
        spent: settled, forfeited or posted.
        reserved: held by calls in flight.
        overrun: the part of `spent` that nothing had been held for.
        forfeited: the part of `spent` whose holder vanished; a late settlement takes it out again.
        resets_at: end of the window, nanoseconds since the epoch; None when it never ends.
    """

    limit: int | None
    spent: int = 0
    reserved: int = 0
    overrun: int = 0
    forfeited: int = 0
    resets_at: int | None = None

    @property
    def remaining(self) -> int | None:
        """Neither spent nor held, never below zero; None without a limit."""
        return None if self.limit is None else max(0, self.limit - self.spent - self.reserved)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One node that had no room.

    Attributes:
        index: its place in the balances that were given. balance: how it stood. asked: what it could not give.
    """

    index: int
    balance: Balance
    asked: int

    @property
    def transient(self) -> bool:
        """True when only amounts held by calls in flight stand in the way: held is not spent."""
        limit = self.balance.limit
        return limit is None or self.balance.spent + self.asked <= limit


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes to every node, or no to all of them.

    Attributes:
        allowed: True when every node has room.
        refusals: the nodes that have none, in the order in which they were given (outermost budget first).
        at: when it was taken, nanoseconds since the epoch. room_at: when there will be room, where that is not the end of a window.
    """

    allowed: bool
    refusals: tuple[Refusal, ...] = ()
    at: int = 0
    room_at: int | None = None

    @property
    def transient(self) -> bool:
        """True when waiting for calls in flight could be enough at every node that refused."""
        refusals = self.refusals
        if len(refusals) == 1:
            return not self.allowed and refusals[0].transient
        return not self.allowed and all(refusal.transient for refusal in refusals)

    @property
    def refusal(self) -> Refusal | None:
        """The node to name: the first that is spent rather than held, else the first."""
        refusals = self.refusals
        if len(refusals) == 1:
            return refusals[0]
        lasting = (refusal for refusal in refusals if not refusal.transient)
        return next(lasting, refusals[0] if refusals else None)

    @property
    def retry_at(self) -> int | None:
        """When every lasting refusal has a new window, nanoseconds; `at` when none lasts; None when one never ends."""
        if self.room_at is not None:
            return self.room_at
        latest = self.at
        for refusal in self.refusals:
            if refusal.transient:
                continue
            if refusal.balance.resets_at is None or refusal.asked > (refusal.balance.limit or 0):
                return None  # a new window does not help a call that is larger than the whole limit
            latest = max(latest, refusal.balance.resets_at)
        return latest


def fits(limit: int | None, spent: int, reserved: int, amount: int) -> bool:
    """Whether one node has room for `amount` more. What takes nothing needs no room, also where there is none left."""
    return amount <= 0 or limit is None or spent + reserved + amount <= limit


def decide(balances: Sequence[Balance], amounts: Sequence[int], now: int) -> Decision:
    """All or nothing over every node and unit.

    Args:
        balances: one a node, outermost budget first. amounts: what the call may take from each, in the same order.
        now: nanoseconds since the epoch, kept in the decision.

    Raises:
        ValueError: when the two are of different length.
    """
    pairs = enumerate(zip(balances, amounts, strict=True))
    refusals = tuple(
        Refusal(index, balance, amount)
        for index, (balance, amount) in pairs
        if not fits(balance.limit, balance.spent, balance.reserved, amount)
    )
    return Decision(not refusals, refusals, now)
