"""A ledger in this process's memory: for tests, notebooks and short scripts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from aifinops.charges import Charge
from aifinops.ledger.base import Capabilities, Filters, Group, LedgerInfo, Query, add_quantities, group_keys
from aifinops.usage import Quantity, tokens_total

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """Entries in a dictionary; gone with the process, and a fork gets a copy of its own."""

    capabilities = Capabilities(durable=False, shared=False)

    def __init__(self) -> None:
        self._charges: dict[str, Charge] = {}
        self._corrected: set[str] = set()
        # Re-entrant: the garbage collector may settle an abandoned stream while this thread is in here.
        self._lock = threading.RLock()

    def append(self, charge: Charge) -> bool:
        """Keep one entry; False when its id was known."""
        with self._lock:
            if charge.id in self._charges:
                return False
            self._charges[charge.id] = charge
            if charge.corrects and charge.amount is not None:
                self._corrected.add(charge.corrects)
            return True

    def enqueue(self, charge: Charge) -> None:
        """`append`, for who does not care whether the id was known."""
        self.append(charge)

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several; how many were new."""
        with self._lock:
            return sum(map(self.append, charges))

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """The entries that match, by time and then by id."""
        found = sorted(self._matching(query), key=lambda charge: (charge.at, charge.id), reverse=query.newest_first)
        return iter(found if query.limit is None else found[: query.limit])

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - frozen
        """Sums per key and currency."""
        keys = group_keys(by)
        sums: dict[tuple[tuple[str, ...], str], _Sum] = {}
        for charge in self._matching(query):
            place = (tuple(key.of(charge) for key in keys), charge.currency)
            sums.setdefault(place, _Sum()).add(charge, corrected=charge.id in self._corrected)
        return [sums[place].group(*place) for place in sorted(sums)]

    def info(self) -> LedgerInfo:
        """How much is in it."""
        with self._lock:
            moments = [charge.at for charge in self._charges.values()]
        return LedgerInfo(
            "memory", "memory", 1, len(moments), min(moments, default=None), max(moments, default=None), 0
        )

    def close(self) -> None:
        """Nothing to let go of; the entries stay."""

    def reset_after_fork(self) -> None:
        """A lock that another thread of the parent held would stay locked for ever."""
        self._lock = threading.RLock()

    def _matching(self, query: Query) -> list[Charge]:
        filters = query.filters()
        with self._lock:
            charges = list(self._charges.values())
        return [charge for charge in charges if query.covers(charge.at) and _passes(charge, filters)]


def _passes(charge: Charge, filters: Filters) -> bool:
    return all(key.of(charge) in values for key, values in filters)


@dataclass(slots=True)
class _Sum:
    """A `Group` while it grows."""

    calls: int = 0
    corrections: int = 0
    errors: int = 0
    known: int = 0
    amount: int = 0
    estimated: int = 0
    lower: int = 0
    upper: int = 0
    open_ends: int = 0
    unpriced: int = 0
    duration: int = 0
    quantities: dict[str, Quantity] = field(default_factory=dict)
    unpriced_quantities: dict[str, Quantity] = field(default_factory=dict)

    def add(self, charge: Charge, *, corrected: bool) -> None:
        correction = bool(charge.corrects)
        self.corrections += correction
        self.calls += not correction
        self.errors += charge.status == "error" and not correction
        self.duration += charge.duration
        add_quantities(self.quantities, charge.quantities)
        unsure = (charge.amount is None or charge.basis == "estimated") and not corrected
        if charge.amount is not None:
            self.known += 1
            self.amount += charge.amount
            self.estimated += charge.amount if unsure else 0
        elif unsure and not correction:
            self.unpriced += 1
            add_quantities(self.unpriced_quantities, charge.quantities)
        self._bound(charge, unsure)

    def _bound(self, charge: Charge, unsure: bool) -> None:
        amount = charge.amount or 0
        self.lower += amount if not unsure or charge.lower is None else charge.lower
        self.upper += amount if not unsure or charge.upper is None else charge.upper
        self.open_ends += unsure and charge.amount is None and charge.upper is None

    def group(self, key: tuple[str, ...], currency: str) -> Group:
        quantities: Mapping[str, Quantity] = MappingProxyType(self.quantities)
        return Group(
            key=key,
            currency=currency,
            calls=self.calls,
            corrections=self.corrections,
            errors=self.errors,
            amount=self.amount if self.known else None,
            estimated=self.estimated,
            lower=self.lower,
            upper=None if self.open_ends else self.upper,
            unpriced_calls=self.unpriced,
            unpriced_tokens=tokens_total(self.unpriced_quantities),
            quantities=quantities,
            duration=self.duration,
        )
