"""How budgets stand, read from their store alone: for people who look from outside of the processes that spend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from aifinops.budgets.budget import ActiveBudget, Limit, Window, make_node
from aifinops.budgets.caretaker import LIMIT, RATE, limit_note
from aifinops.budgets.forecast import Burn, outlook
from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import MAX_AMOUNT, Accounts, Adjust, Node, Notes, Put, Read, Store, Take
from aifinops.budgets.witness import note_key

__all__ = ["ByHand", "Standing", "clear_limit", "forget_spent", "past", "post", "present", "set_limit"]

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ByHand:
    """A limit that somebody has set.

    Attributes:
        limit: in steps. by: who. at: when, nanoseconds since the epoch.
    """

    limit: int
    by: str
    at: int

    @classmethod
    def from_text(cls, text: str) -> ByHand | None:
        """A note back again; None for anything else."""
        try:
            found = json.loads(text)
            limit, by, at = int(found["limit"]), str(found.get("by", "")), int(found.get("at", 0))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return None
        return cls(limit, by, at) if 0 <= limit <= MAX_AMOUNT else None


@dataclass(frozen=True, slots=True)
class Standing:
    """One unit of one budget in one window.

    Attributes:
        name: of the budget. window: its kind. node, balance: where it is kept and how it stands, with the limit in force.
        rate: steps a second; None where there is no telling. seconds: until the limit is reached at that rate; None for never.
        crosses: True when that is before the window ends. by_hand: the limit that somebody has set.
    """

    name: str
    window: Window
    node: Node
    balance: Balance
    rate: float | None = None
    seconds: float | None = None
    crosses: bool = False
    by_hand: ByHand | None = None


def present(store: Store, now: int) -> list[Standing]:
    """Every budget of a store in the window that holds `now`, also where nothing was spent in it yet.

    Raises:
        StoreError: when the store fails.
    """
    latest: dict[tuple[str, str], Node] = {}
    for node, _ in Accounts().execute(store):
        known = latest.get((node.budget, node.unit))
        if known is None or node.window > known.window:
            latest[node.budget, node.unit] = node
    set_ones = _by_hand(store, now)
    nodes = [_at(node, set_ones.get((node.budget, node.unit)), now) for node in latest.values()]
    balances = Read(tuple(nodes)).execute(store)
    rates = dict(Notes(f"{RATE}\x1f", now).execute(store))
    return sorted(
        (
            _standing(node, balance, rates, set_ones.get((node.budget, node.unit)), now)
            for node, balance in zip(nodes, balances, strict=True)
        ),
        key=lambda one: (one.name, one.node.budget, one.node.unit),
    )


def past(store: Store, now: int) -> list[Standing]:
    """The windows that are over and still kept, newest first.

    Raises:
        StoreError: when the store fails.
    """
    over = [(node, balance) for node, balance in Accounts().execute(store) if 0 < node.until <= now and not node.also]
    found = [Standing(*ActiveBudget.parse_key(node.budget), node, balance) for node, balance in over]
    return sorted(found, key=lambda one: (-one.node.window, one.name, one.node.unit))


def _by_hand(store: Store, now: int) -> dict[tuple[str, str], ByHand]:
    found = {}
    for key, value in Notes(f"{LIMIT}\x1f", now).execute(store):
        budget, _, unit = key.partition("\x1f")[2].rpartition("\x1f")
        known = ByHand.from_text(value)
        if known is not None:
            found[budget, unit] = known
    return found


def _at(node: Node, by_hand: ByHand | None, now: int) -> Node:
    """The node of the window that holds `now`."""
    limit = node.limit if by_hand is None else by_hand.limit
    _, window = ActiveBudget.parse_key(node.budget)
    bounds = window.bounds(now)
    if bounds is None or limit is None or bounds[0] == node.window:
        return replace(node, limit=limit)
    return make_node(node.budget, window, *bounds, Limit(node.unit, limit), label=node.label)


def _standing(node: Node, balance: Balance, rates: Mapping[str, str], by_hand: ByHand | None, now: int) -> Standing:
    name, window = ActiveBudget.parse_key(node.budget)
    standing = Standing(node.label or name, window, node, balance, by_hand=by_hand)
    if window.span:
        rate = balance.spent / window.span
        return replace(standing, rate=rate)
    if not node.until:
        return standing
    known = Burn.from_text(rates.get(note_key(RATE, node), ""))
    burn = Burn.begin(node, balance.spent, now) if known is None else known.next(node, balance.spent, now)
    ahead = outlook(node, balance, burn, now)
    return replace(standing, rate=burn.rate, seconds=ahead.seconds, crosses=ahead.crosses)


# --- by hand ---------------------------------------------------------------------------------------------------------


def set_limit(store: Store, key: str, limit: Limit, by: str, now: int) -> None:
    """Have another limit than the code says, in every process within seconds.

    Raises:
        StoreError: when the store fails.
    """
    value = json.dumps({"limit": limit.amount, "by": by, "at": now})
    Put(limit_note(key, limit.unit), value, now).execute(store)


def clear_limit(store: Store, key: str, unit: str, now: int) -> bool:
    """Have the limit of the code again; False when no other was set.

    Raises:
        StoreError: when the store fails.
    """
    return Take(limit_note(key, unit), now).execute(store) is not None


def post(store: Store, node: Node, amount: int, id: str, now: int) -> None:
    """Count what no call has told; never refused.

    Args:
        node: in its present window. amount: in steps; negative takes out, at most what is spent. id: of the entry, new.

    Raises:
        StoreError: when the store fails.
    """
    Adjust(id, (node,), (amount,), now).execute(store)


def forget_spent(store: Store, key: str, id: str, now: int) -> list[tuple[Node, int]]:
    """Take out what is spent in the present window; what calls in flight hold stays. The nodes with what was taken out.

    Args:
        key: of the budget. id: of the entry, new.

    Raises:
        StoreError: when the store fails.
    """
    counted = [
        node
        for node, _ in Accounts(key).execute(store)
        if not node.until or node.window <= now < (node.kept or node.until)
    ]
    # Each part of a rolling window by itself, not with the others that count beside it.
    alone = Read(tuple(replace(node, also=()) for node in counted)).execute(store)
    taken = [(node, balance.spent) for node, balance in zip(counted, alone, strict=True) if balance.spent]
    if taken:
        nodes = tuple(node for node, _ in taken)
        Adjust(id, nodes, tuple(-amount for _, amount in taken), now).execute(store)
    return taken
