"""What a budget store is: nodes, operations on them, the life of a reservation, and the interface.

A **node** is one unit of one budget in one window. A **reservation** holds amounts of several nodes, all or none, under
an id that its caller chose before anything was sent; every operation may be repeated with the same id and has its effect once.

    reserve ──► HELD ──mark_sent──► SENT ──settle──► SETTLED       what was held becomes what it cost
                 │                   │ ────release─► RELEASED      with proof that nothing was sent or billed
                 └───── expire ──────┴─────────────► FORFEITED     the holder vanished: spent at what was held,
                                                                   until a late settle or release puts it right

`extend` and `draw` leave it where it is: the one with another hold, the other with part of the hold spent as well.

**Notes** are small texts by key beside the balances: approvals, limits set by hand, what was told already.

Operations are values. A store executes them in `run`; one whose driver is asynchronous has `arun` as well, and only
that last layer exists in both colours.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from aifinops.budgets.policy import Balance, Decision
from aifinops.errors import ConfigurationError, StoreError, StoreReset

__all__ = [
    "MAX_AMOUNT",
    "TRANSITIONS",
    "Accounts",
    "Adjust",
    "AsyncStore",
    "Capabilities",
    "Crossing",
    "Draw",
    "Extend",
    "Forget",
    "IdInUse",
    "InTheMiddle",
    "Journal",
    "MarkSent",
    "Node",
    "Notes",
    "Operation",
    "Outcome",
    "Put",
    "Read",
    "Release",
    "Reserve",
    "Settle",
    "State",
    "Store",
    "Sweep",
    "Swept",
    "Take",
    "node_key",
    "other_amounts",
    "split_settings",
]

MAX_AMOUNT = 2**62 - 1
"""The largest limit and the largest amount: their sum, which every store has to compare, still fits an int64."""

_KEY_MOST, _VALUE_MOST = 256, 65_536

R = TypeVar("R")


class State(StrEnum):
    """Where a reservation is in its life."""

    HELD = "held"
    SENT = "sent"
    SETTLED = "settled"
    RELEASED = "released"
    FORFEITED = "forfeited"


Event = Literal["mark_sent", "settle", "release", "extend", "draw", "expire"]

TRANSITIONS: MappingProxyType[tuple[State, Event], State] = MappingProxyType(
    {
        (State.HELD, "mark_sent"): State.SENT,
        (State.HELD, "settle"): State.SETTLED,
        (State.SENT, "settle"): State.SETTLED,
        (State.HELD, "release"): State.RELEASED,
        (State.SENT, "release"): State.RELEASED,
        (State.HELD, "extend"): State.HELD,
        (State.SENT, "extend"): State.SENT,
        (State.HELD, "draw"): State.HELD,
        (State.SENT, "draw"): State.SENT,
        (State.HELD, "expire"): State.FORFEITED,  # nobody can prove that it was not sent
        (State.SENT, "expire"): State.FORFEITED,
        (State.FORFEITED, "settle"): State.SETTLED,  # the late truth takes the place of the bound
        (State.FORFEITED, "release"): State.RELEASED,
    }
)
"""Every change there is; an event that is not here leaves a reservation as it is."""


@dataclass(frozen=True, slots=True)
class Node:
    """One unit of one budget in one window, as the caller knows it.

    Attributes:
        budget: key of the budget. window: start of the window, nanoseconds since the epoch; 0 for one without an end.
        unit: currency code, meter or group.
        limit: the limit that holds for operations with this node; None accumulates without refusing.
        until: end of the window, nanoseconds; 0 when it never ends.
        marks: ascending amounts; the store reports each once a window, in the operation that brings `spent` up to it.
        label: the budget's name for people.
        also: keys of accounts whose `spent` and `reserved` count against this limit, too: earlier parts of a rolling window. What is
            reported of the node is the sum; what an operation changes is the account of the node.
        kept: when the account may be forgotten, nanoseconds; 0 for `until`.
        key: budget, window and unit in one text, by which stores find the node.
    """

    budget: str
    window: int
    unit: str
    limit: int | None
    until: int = 0
    marks: tuple[int, ...] = ()
    label: str = field(default="", compare=False)
    also: tuple[str, ...] = ()
    kept: int = field(default=0, compare=False)
    key: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", node_key(self.budget, self.window, self.unit))


def node_key(budget: str, window: int, unit: str) -> str:
    """The text by which stores find a node."""
    return f"{budget}\x1f{window}\x1f{unit}"


@dataclass(frozen=True, slots=True)
class Crossing:
    """`spent` of a node has reached one of its marks for the first time.

    Attributes:
        node: which. mark: the amount that was reached. spent: the amount at that moment.
    """

    node: Node
    mark: int
    spent: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation on a reservation did.

    Attributes:
        state: where the reservation is now; None when there is none of that id (refused, or forgotten long ago).
        applied: False when nothing changed: refused, repeated, or too late.
        decision: why it was refused; None unless it was.
        crossed: marks reached by it.
    """

    state: State | None
    applied: bool
    decision: Decision | None = None
    crossed: tuple[Crossing, ...] = ()


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did.

    Attributes:
        forfeited: ids whose lease had run out. crossed: marks reached because of them.
    """

    forfeited: tuple[str, ...] = ()
    crossed: tuple[Crossing, ...] = ()


class InTheMiddle(StoreError):
    """A signal handler or a finalizer came in the middle of an operation of its own thread. Nothing was done; the store itself is well."""


class Operation(Generic[R]):
    """One atomic step; `R` is what it answers."""

    __slots__ = ()

    def execute(self, store: Store) -> R:
        """Do it, in this thread.

        Raises:
            StoreError: when the store cannot, or the id is known with other amounts.
        """
        return store.run(self)

    async def aexecute(self, store: Store) -> R:
        """Do it without blocking the event loop.

        Raises:
            StoreError: as `execute`.
        """
        io = store.capabilities.io
        if io == "async":
            return await cast("AsyncStore", store).arun(self)
        if io == "blocking":
            import asyncio

            return await asyncio.to_thread(store.run, self)
        return store.run(self)


@dataclass(
    slots=True, unsafe_hash=True
)  # never changed; frozen would take twice the time to make, which every call does
class Reserve(Operation[Outcome]):
    """Hold amounts of every node, or of none.

    Attributes:
        id: chosen by the caller before anything is sent. nodes: outermost budget first; each at most once.
        amounts: upper bounds, one a node, 0 to `MAX_AMOUNT`.
        now: the caller's wall clock, nanoseconds since the epoch; a store with a clock of its own uses that.
        ttl: lease, nanoseconds. After it the hold counts as spent.
        alone: True for one that will be drawn from: it is never part of a process's lease.
    """

    id: str
    nodes: tuple[Node, ...]
    amounts: tuple[int, ...]
    now: int
    ttl: int
    alone: bool = False

    def __post_init__(self) -> None:
        _check(self.id, self.nodes, self.amounts)


@dataclass(frozen=True, slots=True)
class MarkSent(Operation[Outcome]):
    """Note that the request is about to leave; from now on only a proof of refusal releases it.

    Attributes:
        id: of the reservation.
    """

    id: str


@dataclass(
    slots=True, unsafe_hash=True
)  # never changed; frozen would take twice the time to make, which every call does
class Settle(Operation[Outcome]):
    """Put what it cost in the place of what was held. More than was held is recorded as overrun, never refused.

    Attributes:
        id: of the reservation. nodes: as reserved.
        amounts: one a node; None where the truth is unknown: what was held is then what it cost.
        now: nanoseconds since the epoch.
    """

    id: str
    nodes: tuple[Node, ...]
    amounts: tuple[int | None, ...]
    now: int

    def __post_init__(self) -> None:
        _check(self.id, self.nodes, self.amounts)


@dataclass(frozen=True, slots=True)
class Release(Operation[Outcome]):
    """Give everything back: nothing was sent, or the provider refused it.

    Attributes:
        id: of the reservation. nodes: as reserved.
    """

    id: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Extend(Operation[Outcome]):
    """A new lease and, if wanted, another hold: a stream that grows, a bound that the provider has made smaller.

    Attributes:
        id: of the reservation. nodes: as reserved. now, ttl: as in `Reserve`.
        amounts: what shall be held from now on, one a node; None leaves the hold. Growth needs room in every node.
    """

    id: str
    nodes: tuple[Node, ...]
    now: int
    ttl: int
    amounts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.amounts is not None:
            _check(self.id, self.nodes, self.amounts)


@dataclass(frozen=True, slots=True)
class Draw(Operation[Outcome]):
    """Spend part of a hold and go on holding, in one step: a lease that many calls use up, a job that pays as it runs.

    The outcome is applied and has a decision where there was room for `least` only.

    Attributes:
        id: of the reservation. nodes: as reserved.
        step: 1, 2, 3 ... of this reservation; one that came before has no effect.
        spent: since the step before, one a node. More than was held is overrun.
        held: what shall be held from now on, one a node. least: what is held where there is no room for that; never refused.
        now, ttl: as in `Reserve`: the lease is new.
    """

    id: str
    nodes: tuple[Node, ...]
    step: int
    spent: tuple[int, ...]
    held: tuple[int, ...]
    least: tuple[int, ...]
    now: int
    ttl: int

    def __post_init__(self) -> None:
        for amounts in (self.spent, self.held, self.least):
            _check(self.id, self.nodes, amounts)


@dataclass(frozen=True, slots=True)
class Adjust(Operation[Outcome]):
    """Post what has happened already: a charge that no reservation announced, a refund, a reconciliation.

    Never refused. What is added counts as overrun, since nothing was held for it; `spent` never falls below zero.

    Attributes:
        id: of this entry, its own, once. nodes: where. amounts: signed, one a node, at most `MAX_AMOUNT` either way. now: nanoseconds since the epoch.
    """

    id: str
    nodes: tuple[Node, ...]
    amounts: tuple[int, ...]
    now: int

    def __post_init__(self) -> None:
        _check(self.id, self.nodes, tuple(map(abs, self.amounts)))


@dataclass(frozen=True, slots=True)
class Sweep(Operation[Swept]):
    """Forfeit every reservation whose lease has run out, in the order of their ids: spent at what was held.

    Attributes:
        now: nanoseconds since the epoch; a store with a clock of its own uses that.
    """

    now: int


@dataclass(frozen=True, slots=True)
class Read(Operation[tuple[Balance, ...]]):
    """How nodes stand, in one consistent view and in the order given.

    Attributes:
        nodes: which; one that was never used is all zeros.
    """

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Forget(Operation[None]):
    """Drop nodes that nobody can reach any more (the blocks of a long-lived process, old windows).

    Attributes:
        nodes: which.
    """

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Accounts(Operation[tuple[tuple[Node, Balance], ...]]):
    """Every account of a store or of one budget, with its node as an operation had it, by key.

    Attributes:
        budget: key of the budget; None for all.
    """

    budget: str | None = None


@dataclass(frozen=True, slots=True)
class Put(Operation[bool]):
    """Leave a note; True when it was left.

    Attributes:
        key, value: up to 256 and 65,536 characters. until: when it vanishes, nanoseconds since the epoch; 0 never.
        now: nanoseconds since the epoch. new: only where there is none of that key.
    """

    key: str
    value: str
    now: int
    until: int = 0
    new: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.key) <= _KEY_MOST or len(self.value) > _VALUE_MOST:
            raise ValueError(f"note {self.key[:40]!r} has {len(self.key)} + {len(self.value)} characters; {_KEY_MOST} + {_VALUE_MOST} is the most")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Take(Operation[str | None]):
    """Take a note away; its text, for one caller only. None when there is none.

    Attributes:
        key: which. now: nanoseconds since the epoch.
    """

    key: str
    now: int


@dataclass(frozen=True, slots=True)
class Notes(Operation[tuple[tuple[str, str], ...]]):
    """The notes whose keys begin with a text: pairs of key and value, by key.

    Attributes:
        prefix: of the keys. now: nanoseconds since the epoch.
    """

    prefix: str
    now: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store promises.

    Attributes:
        shared: other processes see the same balances. durable: they outlive the process.
        io: `none` (never waits), `blocking`, or `async` (has `arun` too).
    """

    shared: bool
    durable: bool
    io: Literal["none", "blocking", "async"] = "blocking"


class Store(Protocol):
    """Where balances live. Every operation is atomic, also against other threads, tasks and processes."""

    @property
    def capabilities(self) -> Capabilities:
        """What this store promises."""
        ...

    def run(self, operation: Operation[R]) -> R:
        """Execute one operation.

        Raises:
            StoreError: when it cannot, or the id is known with other amounts.
        """
        ...

    def reset_after_fork(self) -> None:
        """In a forked child: new locks and connections, and no reservations; those are the parent's."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class AsyncStore(Store, Protocol):
    """A store whose driver is asynchronous too."""

    async def arun(self, operation: Operation[R]) -> R:
        """`run`, awaiting the driver."""
        ...


class Journal(Protocol):
    """Who keeps what a store has confirmed, so that it can be put back; a store with the attribute `journal` tells it, when it is set."""

    def wrote(self, operation: Operation[Any], answer: Any, era: object, row: Hashable, number: int) -> None:
        """An operation was confirmed.

        Args:
            era: the span of time, between two losses, in which it was done. row, number: by which `StoreReset.survived` counts it; one that
                wrote nothing has the number of the last that did.
        """
        ...

    def reset(self, reset: StoreReset) -> None:
        """The store has lost something; told before anything is done in the era that follows, and perhaps by several threads."""
        ...

    def forget(self) -> None:
        """This is a forked child: what was confirmed was confirmed to the parent."""
        ...


class IdInUse(StoreError):
    """An id came back with other amounts or nodes: it was made for something else."""


def split_settings(url: str, known: Mapping[str, Callable[[str], Any]], what: str) -> tuple[str, dict[str, Any]]:
    """Take the settings of a store out of its URL: the URL as its driver takes it, and what stands behind the `?` for us.

    Args:
        url: of a server. known: name -> what reads its text. what: the store, for messages.

    Raises:
        ConfigurationError: for a value that cannot be read.
    """
    address, _, query = url.partition("?")
    ours: dict[str, Any] = {}
    others: list[str] = []
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name not in known:
            others.append(part)
            continue
        try:
            ours[name] = known[name](value)
        except ValueError:
            raise ConfigurationError(f"budget store {what}: {name}={value!r} is no number") from None
    return "?".join(filter(None, (address, "&".join(others)))), ours


def other_amounts(id: str, first: Sequence[int | None], second: Sequence[int | None]) -> StoreError:
    """The error for an id that comes back with other amounts or nodes."""
    return IdInUse(f"reservation {id!r} is known with amounts {list(first)}, not {list(second)}; use a new id")


def _check(id: str, nodes: Sequence[Node], amounts: Sequence[int | None]) -> None:
    if len(nodes) != len(amounts):
        raise ValueError(f"{id!r} has {len(nodes)} nodes and {len(amounts)} amounts; each node needs one")
    for amount in amounts:
        if amount is not None and not 0 <= amount <= MAX_AMOUNT:
            raise ValueError(f"{id!r} has an amount of {amount}; it must be between 0 and {MAX_AMOUNT} (2**62 - 1)")
