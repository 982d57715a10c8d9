"""What is looked at every few seconds for budgets that are shared: limits that were set by hand, and whether the money will last.

No thread of its own: a call that comes after the time has come looks, the others pay nothing.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakSet

from aifinops.budgets.budget import ActiveBudget
from aifinops.budgets.forecast import Burn, outlook
from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import MAX_AMOUNT, Node, Notes, Put, Read, Store
from aifinops.budgets.witness import Witness, note_key
from aifinops.errors import swallow

__all__ = ["EVERY_NS", "LIMIT", "RATE", "Caretaker", "by_hand", "limit_note"]

_NS = 1_000_000_000
EVERY_NS = 5 * _NS
"""How often it is looked: a limit that was set by hand is in force everywhere after that time."""
LIMIT, RATE = "limit", "rate"
"""Kinds of notes: a limit that was set by hand, a rate that was measured."""
_RATE_EVERY_NS = 60 * _NS
_NODES_MOST = 64
_RATES_MOST, _LATEST_MOST = 4096, 1024


def limit_note(budget: str, unit: str) -> str:
    """Key of the note with the limit of a budget (its key) that was set by hand."""
    return f"{LIMIT}\x1f{budget}\x1f{unit}"


def by_hand(notes: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Notes of that kind -> key of the budget -> unit -> limit in steps; what is no such note is left out."""
    found: dict[str, dict[str, int]] = {}
    for key, value in notes:
        _, _, rest = key.partition("\x1f")
        budget, _, unit = rest.rpartition("\x1f")
        try:
            limit = json.loads(value)["limit"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(limit, int) and 0 <= limit <= MAX_AMOUNT:
            found.setdefault(budget, {})[unit] = limit
    return found


class _Known:
    """What is known of one node: its rate, and when a note of it was left."""

    __slots__ = ("burn", "noted")

    def __init__(self, burn: Burn, noted: int) -> None:
        self.burn = burn
        self.noted = noted


class Caretaker:
    """Looks after the budgets that somebody uses here.

    Args:
        witness: is told what it finds, and asks stores.
    """

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._lock = threading.RLock()
        self._actives: WeakSet[ActiveBudget] = WeakSet()
        # A block may be gone when the time to look has come: of each budget one object stays.
        self._latest: OrderedDict[tuple[int, str], ActiveBudget] = OrderedDict()
        self._limits: dict[int, tuple[Store, Mapping[str, Mapping[str, int]]]] = {}
        self._rates: OrderedDict[str, _Known] = OrderedDict()
        self._turn = 0

    def reset_after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._lock = threading.RLock()

    def take(self, active: ActiveBudget, now: int) -> None:
        """A shared budget that is used for the first time: what was set by hand holds for it at once."""
        try:
            store = active.store
            with self._lock:
                self._actives.add(active)
                self._latest[id(store), active.key] = active
                self._latest.move_to_end((id(store), active.key))
                if len(self._latest) > _LATEST_MOST:
                    self._latest.popitem(last=False)
            if id(store) not in self._limits:
                self._read_limits(store, now)
            self._apply(active)
        except Exception as failure:  # then the limits of the code hold
            swallow("budgets.caretaker", failure)

    def look(self, now: int) -> None:
        """Read what was set by hand, and see whether the money will last."""
        try:
            with self._lock:
                actives, latest = list(self._actives), list(self._latest.values())
            for store in {id(active.store): active.store for active in latest}.values():
                self._read_limits(store, now)
            for active in actives:
                self._apply(active)
            self._foresee(latest, now)
        except Exception as failure:  # the call that came by goes on
            swallow("budgets.caretaker", failure)

    def present(self, now: int, most: int) -> list[tuple[Node, Balance, float | None]]:
        """How the shared budgets stand that were used here lately, the newest `most` of them.

        Returns:
            (node, balance, steps a second), the last None where there is no telling. What a store that does not answer has is left out.
        """
        with self._lock:
            latest = list(self._latest.values())[-most:]
        by_store: dict[int, tuple[Store, dict[str, tuple[ActiveBudget, Node]]]] = {}
        for active in latest:
            _, nodes = by_store.setdefault(id(active.store), (active.store, {}))
            nodes.update((node.key, (active, node)) for node in active.nodes(now))
        found = []
        for store, pairs in by_store.values():
            balances: Any = self._witness.ask(store, Read(tuple(node for _, node in pairs.values()))) or ()
            for (active, node), balance in zip(pairs.values(), balances, strict=False):
                found.append((node, balance, self._rate(active, node, balance, now)))
        return found

    def _rate(self, active: ActiveBudget, node: Node, balance: Balance, now: int) -> float | None:
        span = active.budget.window.span
        if span:
            return balance.spent / span
        if not node.until:
            return None
        known = self._rates.get(node.key)
        return (
            Burn.begin(node, balance.spent, now) if known is None else known.burn.next(node, balance.spent, now)
        ).rate

    # --- limits -------------------------------------------------------------------------------------------------------

    def _read_limits(self, store: Store, now: int) -> None:
        notes = self._witness.ask(store, Notes(f"{LIMIT}\x1f", now))
        if notes is not None:  # else what was read before holds
            self._limits[id(store)] = store, by_hand(notes)

    def _apply(self, active: ActiveBudget) -> None:
        known = self._limits.get(id(active.store))
        if known is not None:
            active.set_limits(known[1].get(active.key, {}))

    # --- rates --------------------------------------------------------------------------------------------------------

    def _foresee(self, actives: Iterable[ActiveBudget], now: int) -> None:
        by_store: dict[int, tuple[Store, dict[str, Node]]] = {}
        for active in actives:
            _, nodes = by_store.setdefault(id(active.store), (active.store, {}))
            nodes.update((node.key, node) for node in active.nodes(now) if node.limit)
        for store, found in by_store.values():
            some = self._some(list(found.values()))
            balances: Any = self._witness.ask(store, Read(some)) if some else None
            for node, balance in zip(some, balances or (), strict=False):
                self._see(store, node, balance, now)

    def _some(self, nodes: list[Node]) -> tuple[Node, ...]:
        """Not all at once where there are very many."""
        if len(nodes) <= _NODES_MOST:
            return tuple(nodes)
        self._turn = (self._turn + _NODES_MOST) % len(nodes)
        return tuple((nodes + nodes)[self._turn : self._turn + _NODES_MOST])

    def _see(self, store: Store, node: Node, balance: Balance, now: int) -> None:
        if balance.forfeited:
            self._witness.lost(store, node, balance, now)
        if not node.until or node.also:  # no end, or one that moves on
            return
        known = self._rates.get(node.key)
        if known is None:
            known = self._first_look(store, node, balance, now)
        else:
            known.burn = known.burn.next(node, balance.spent, now)
        if now - known.noted >= _RATE_EVERY_NS:
            known.noted = now
            self._witness.ask(store, Put(note_key(RATE, node), known.burn.to_text(), now, node.until))
        ahead = outlook(node, balance, known.burn, now)
        if ahead.crosses and ahead.seconds is not None:
            self._witness.will_not_last(store, node, balance, ahead.projected, ahead.seconds, now)

    def _first_look(self, store: Store, node: Node, balance: Balance, now: int) -> _Known:
        key = note_key(RATE, node)
        notes: Any = self._witness.ask(store, Notes(key, now)) or ()
        before = next((Burn.from_text(text) for name, text in notes if name == key), None)
        burn = Burn.begin(node, balance.spent, now) if before is None else before.next(node, balance.spent, now)
        known = self._rates[node.key] = _Known(burn, now - _RATE_EVERY_NS)
        if len(self._rates) > _RATES_MOST:
            self._rates.popitem(last=False)
        return known
