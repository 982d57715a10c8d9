"""What operations do to balances, in plain integers: for stores that decide in Python under a lock of their own.

A lock keeps out other threads, not a signal handler or a finalizer that makes a call in this very thread. Those come in at a call or at the end of
a loop, so no figure is read before a call and written after it, and money is held before it is looked whether it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from aifinops.budgets.policy import Balance, Decision, decide, fits
from aifinops.budgets.stores.base import (
    TRANSITIONS,
    Adjust,
    Crossing,
    Draw,
    Event,
    Extend,
    Node,
    Outcome,
    Reserve,
    Settle,
    State,
    other_amounts,
)

__all__ = ["APPLIED", "UNCHANGED", "UNKNOWN", "Account", "Record", "adjust", "draw", "extend", "forfeit", "mark_sent", "reached", "refusal", "release", "repeated", "reserve", "settle"]  # fmt: skip

# Answers that carry nothing of their own are made once: this is the path of every call.
APPLIED = {state: Outcome(state, applied=True) for state in State}
UNCHANGED = {state: Outcome(state, applied=False) for state in State}
UNKNOWN = Outcome(None, applied=False)
# Attributes of an enum are looked up slowly on Python 3.11.
_HELD, _SETTLED, _FORFEITED = State.HELD, State.SETTLED, State.FORFEITED


class Account:
    """The integers of one node.

    Attributes:
        spent, reserved, overrun, forfeited: as in `Balance`. fired: the highest mark reported.
        beside: accounts that count against the same limit, for a rolling window.
    """

    __slots__ = ("beside", "fired", "forfeited", "overrun", "reserved", "spent")

    def __init__(self, spent: int = 0, reserved: int = 0, overrun: int = 0, forfeited: int = 0, fired: int = 0) -> None:
        self.beside: Sequence[Account] = ()
        self.spent = spent
        self.reserved = reserved
        self.overrun = overrun
        self.forfeited = forfeited
        self.fired = fired

    def balance(self, node: Node) -> Balance:
        """How the node stands."""
        figures = [self.spent, self.reserved, self.overrun, self.forfeited]
        for other in self.beside:
            more = (other.spent, other.reserved, other.overrun, other.forfeited)
            figures = [one + two for one, two in zip(figures, more, strict=True)]
        spent, reserved, overrun, forfeited = figures
        return Balance(node.limit, spent, reserved, overrun, forfeited, node.until or None)

    def taken(self) -> int:
        """Spent or held, with what is beside it."""
        taken = self.spent + self.reserved
        for other in self.beside:
            taken += other.spent + other.reserved
        return taken


class Record:
    """One reservation.

    Attributes:
        nodes, asked: as it first came: what a repeated id is compared with. accounts: of the nodes. held: now.
        actual: what it was settled at. expires: end of the lease, nanoseconds. state: in its life. step: the last draw.
    """

    __slots__ = ("accounts", "actual", "asked", "expires", "held", "nodes", "state", "step")

    def __init__(
        self, nodes: tuple[Node, ...], asked: tuple[int, ...], accounts: Sequence[Account], expires: int
    ) -> None:
        self.nodes = nodes
        self.asked = self.held = asked
        self.accounts = accounts
        self.actual: tuple[int, ...] = ()
        self.expires = expires
        self.state = _HELD
        self.step = 0

    def _revive(self) -> None:
        """Make what was forfeited a hold again: its holder has come back with the truth."""
        for account, held in zip(self.accounts, self.held, strict=True):
            account.reserved += held
            account.forfeited -= held
            # A credit may have taken part of it out already: spent never falls below zero.
            account.spent -= held
            if account.spent < 0:  # noqa: PLR1730 - `max` is a call, between reading and writing
                account.spent = 0


def reserve(
    nodes: tuple[Node, ...], accounts: Sequence[Account], amounts: tuple[int, ...], now: int
) -> Decision | None:
    """Hold the amounts; a decision where there is no room, and nothing is held."""
    # Held before it is looked at: a signal handler or a finalizer may come in between, in this very thread, and hold as well.
    for index, (node, account, amount) in enumerate(zip(nodes, accounts, amounts)):  # noqa: B905 - `Reserve` has seen to the lengths
        account.reserved += amount
        # `policy.fits`, written out: a call for each node is a third of the whole operation.
        limit = node.limit
        if limit is not None and amount:
            taken = account.taken() if account.beside else account.spent + account.reserved
            if taken > limit:
                for back, given in zip(accounts[: index + 1], amounts):  # noqa: B905
                    back.reserved -= given
                decision = refusal(nodes, accounts, amounts, now)
                # It is allowed where somebody who came in between has given something back: once more.
                return reserve(nodes, accounts, amounts, now) if decision.allowed else decision
    return None


def repeated(record: Record, operation: Reserve) -> Outcome:
    """An id that came before: the same reservation, or an error."""
    if record.asked != operation.amounts or _keys(record.nodes) != _keys(operation.nodes):
        raise other_amounts(operation.id, record.asked, operation.amounts)
    return UNCHANGED[record.state]


def mark_sent(record: Record) -> Outcome:
    """The request is about to leave."""
    return _move(record, "mark_sent")


def settle(record: Record, operation: Settle) -> Outcome:
    """What it cost takes the place of what was held."""
    actual = _truth(record, operation)
    before = record.state
    if before is _SETTLED and record.actual != actual:
        raise other_amounts(operation.id, record.actual, operation.amounts)
    outcome = _move(record, "settle")
    if not outcome.applied:
        return outcome
    record.actual = actual
    if before is _FORFEITED:
        record._revive()
    crossed: list[Crossing] = []
    for node, account, held, spent in zip(operation.nodes, record.accounts, record.held, actual):  # noqa: B905 - `_truth`
        account.reserved -= held
        account.spent += spent
        if spent > held:
            account.overrun += spent - held
        if node.marks and (account.beside or account.spent >= node.marks[0]):
            crossed += reached(node, account)
    return Outcome(_SETTLED, applied=True, crossed=tuple(crossed)) if crossed else outcome


def release(record: Record) -> Outcome:
    """Everything is given back."""
    before = record.state
    outcome = _move(record, "release")
    if outcome.applied:
        if before is _FORFEITED:
            record._revive()
        for account, held in zip(record.accounts, record.held, strict=True):
            account.reserved -= held
    return outcome


def extend(record: Record, operation: Extend) -> Outcome:
    """A new lease and, where there is room, another hold."""
    if (record.state, "extend") not in TRANSITIONS:
        return UNCHANGED[record.state]
    wanted = record.held if operation.amounts is None else operation.amounts
    growth = tuple(new - old for new, old in zip(wanted, record.held, strict=True))
    for account, more in zip(record.accounts, growth, strict=True):
        account.reserved += more
    for node, account, more in zip(operation.nodes, record.accounts, growth, strict=True):
        if not fits(node.limit, account.taken() - max(0, more), 0, more):
            for back, given in zip(record.accounts, growth, strict=True):
                back.reserved -= given
            decision = refusal(operation.nodes, record.accounts, growth, operation.now)
            if decision.allowed:  # as in `reserve`
                return extend(record, operation)
            return Outcome(record.state, applied=False, decision=decision)
    record.held = wanted
    record.expires = operation.now + operation.ttl
    return APPLIED[record.state]


def draw(record: Record, operation: Draw) -> Outcome:
    """Part of the hold is spent, and another one takes its place."""
    if (record.state, "draw") not in TRANSITIONS or operation.step <= record.step:
        return UNCHANGED[record.state]
    crossed: list[Crossing] = []
    for node, account, held, spent, least in zip(  # noqa: B905 - `Draw` has seen to the lengths
        operation.nodes, record.accounts, record.held, operation.spent, operation.least
    ):
        # Both at once, and never below what is kept in any case: who comes in between finds nothing that was let go for a moment only.
        account.reserved += least - held
        account.spent += spent
        if spent > held:
            account.overrun += spent - held
        crossed += reached(node, account)
    record.held = operation.least
    decision = _grow(record, operation)
    record.step = operation.step
    record.expires = operation.now + operation.ttl
    return Outcome(record.state, applied=True, decision=decision, crossed=tuple(crossed))


def _grow(record: Record, operation: Draw) -> Decision | None:
    """From the least to what is asked for; a decision where there is no room for that."""
    nodes, accounts, least, wanted = operation.nodes, record.accounts, operation.least, operation.held
    while True:
        for account, low, high in zip(accounts, least, wanted):  # noqa: B905
            account.reserved += high - low
        record.held = wanted
        triples = zip(nodes, accounts, wanted)  # noqa: B905
        if all(fits(node.limit, account.taken() - amount, 0, amount) for node, account, amount in triples):
            return None
        for account, low, high in zip(accounts, least, wanted):  # noqa: B905
            account.reserved -= high - low
        record.held = least
        balances = [account.balance(node) for node, account in zip(nodes, accounts)]  # noqa: B905
        without = [replace(balance, reserved=balance.reserved - low) for balance, low in zip(balances, least)]  # noqa: B905
        decision = decide(without, wanted, operation.now)
        if not decision.allowed:  # as in `reserve`
            return decision


def forfeit(record: Record) -> list[Crossing]:
    """The lease has run out: what was held counts as spent."""
    _move(record, "expire")
    crossed: list[Crossing] = []
    for node, account, held in zip(record.nodes, record.accounts, record.held, strict=True):
        account.reserved -= held
        account.forfeited += held
        account.spent += held
        crossed += reached(node, account)
    return crossed


def adjust(operation: Adjust, accounts: Sequence[Account]) -> Outcome:
    """What has happened already is added."""
    crossed: list[Crossing] = []
    for node, account, amount in zip(operation.nodes, accounts, operation.amounts, strict=True):
        if amount > 0:
            account.overrun += amount
        account.spent += amount
        if account.spent < 0:  # noqa: PLR1730 - `max` is a call, between reading and writing
            account.spent = 0
        crossed += reached(node, account)
    return Outcome(_SETTLED, applied=True, crossed=tuple(crossed))


def _move(record: Record, event: Event) -> Outcome:
    after = TRANSITIONS.get((record.state, event))
    if after is None:
        return UNCHANGED[record.state]
    record.state = after
    return APPLIED[after]


def _keys(nodes: Iterable[Node]) -> list[str]:
    return [node.key for node in nodes]


def refusal(nodes: Iterable[Node], accounts: Iterable[Account], amounts: tuple[int, ...], now: int) -> Decision:
    """Why there is no room."""
    return decide([account.balance(node) for node, account in zip(nodes, accounts, strict=True)], amounts, now)


def _truth(record: Record, operation: Settle) -> tuple[int, ...]:
    amounts = operation.amounts
    if len(amounts) != len(record.held):
        raise other_amounts(operation.id, record.held, amounts)
    if None not in amounts:
        return amounts  # type: ignore[return-value]  # there is no None among them
    # What was held stands in for what nobody knows.
    return tuple(held if amount is None else amount for amount, held in zip(amounts, record.held, strict=True))


def reached(node: Node, account: Account) -> list[Crossing]:
    """Marks that were never reached before; each is reported once, also when a correction takes `spent` below it again."""
    spent, fired = account.spent, account.fired
    for other in account.beside:
        spent += other.spent
        fired = max(fired, other.fired)
    if spent <= fired:
        return []
    crossed = [Crossing(node, mark, spent) for mark in node.marks if fired < mark <= spent]
    if crossed:
        account.fired = crossed[-1].mark
    return crossed
