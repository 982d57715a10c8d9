"""A ledger in this process's memory: for tests, notebooks and short scripts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from aifinops.charges import Charge
from aifinops.ledger.base import (
    DAY_NS,
    ROLLUP_FIELDS,
    ROLLUP_TAGS,
    Capabilities,
    Compaction,
    Filters,
    Group,
    LedgerInfo,
    Progress,
    Query,
    Verification,
    add_quantities,
    check_compacted,
    group_keys,
    start_of,
    verify_rows,
)
from aifinops.usage import Quantity, tokens_total

__all__ = ["MemoryLedger"]

_Key = tuple[int, tuple[str, ...], tuple[tuple[str, str], ...]]
"""Of a daily roll-up: its day, then what it keeps of fields and of tags."""


class MemoryLedger:
    """Entries in a dictionary; gone with the process, and a fork gets a copy of its own."""

    capabilities = Capabilities(durable=False, shared=False, compacts=True, verifies=True)

    def __init__(self) -> None:
        self._charges: dict[str, Charge] = {}
        self._corrected: set[str] = set()
        self._compacted: dict[str, int] = {}  # id -> `at` of entries that are only in the roll-ups
        self._daily: dict[_Key, _Sum] = {}
        self._until: int | None = None
        # Re-entrant: the garbage collector may settle an abandoned stream while this thread is in here.
        self._lock = threading.RLock()

    def append(self, charge: Charge) -> bool:
        """Keep one entry; False when its id was known."""
        with self._lock:
            if charge.id in self._charges or charge.id in self._compacted:
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
        keys, filters = group_keys(by), query.filters()
        sums: dict[tuple[tuple[str, ...], str], _Sum] = {}

        def place(charge: Charge) -> _Sum:
            return sums.setdefault((tuple(key.of(charge) for key in keys), charge.currency), _Sum())

        with self._lock:
            check_compacted(query, keys, min((key[0] for key in self._daily), default=None), self._until)
            for charge in self._matching(query):
                place(charge).add(charge, corrected=charge.id in self._corrected)
            for rolled, own in ((_face(key), own) for key, own in self._daily.items()):
                if query.covers(rolled.at) and _passes(rolled, filters):
                    place(rolled).merge(own)
        return [sums[key].group(*key) for key in sorted(sums)]

    def info(self) -> LedgerInfo:
        """How much is in it."""
        with self._lock:
            moments = [*(charge.at for charge in self._charges.values()), *self._compacted.values()]
            return LedgerInfo(
                "memory",
                "memory",
                1,
                len(moments),
                min(moments, default=None),
                max(moments, default=None),
                0,
                len(self._compacted),
                self._until,
            )

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Sure entries of whole days before a moment become daily roll-ups."""
        until = start_of(before_ns, DAY_NS)
        with self._lock:
            old = [charge for charge in self._charges.values() if charge.at < until]
            gone = self._compactable(old)
            for charge in gone:
                self._daily.setdefault(_rolled(charge), _Sum()).add(charge, corrected=charge.id in self._corrected)
                self._compacted[charge.id] = charge.at
                del self._charges[charge.id]
            if gone:
                self._until = max(until, self._until or until)
        if progress is not None:
            progress(len(gone), len(gone))
        since = min((start_of(charge.at, DAY_NS) for charge in gone), default=None)
        return Compaction(len(gone), len(old) - len(gone), since, until)

    def _compactable(self, old: Sequence[Charge]) -> list[Charge]:
        sure = {charge.id: charge for charge in old if not _doubtful(charge) or charge.id in self._corrected}
        while True:
            # A correction stays as long as the entry that it makes sure, or may yet make sure when that arrives.
            needed = [
                charge.id
                for charge in sure.values()
                if charge.corrects and charge.corrects not in sure and not self._is_sure_alone(charge.corrects)
            ]
            if not needed:
                return list(sure.values())
            for name in needed:
                del sure[name]

    def _is_sure_alone(self, name: str) -> bool:
        charge = self._charges.get(name)
        return name in self._compacted if charge is None else not _doubtful(charge)

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Whether the lines of each entry add up."""
        return verify_rows(self, progress)

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


def _doubtful(charge: Charge) -> bool:
    """Whether it takes a correction with an amount to make this entry sure."""
    return charge.amount is None or charge.basis == "estimated"


def _rolled(charge: Charge) -> _Key:
    """What a roll-up keeps of a charge: everything that its sums are kept by."""
    tags = tuple((name, charge.tags.get(name, "")) for name in ROLLUP_TAGS)
    return start_of(charge.at, DAY_NS), tuple(getattr(charge, name) for name in ROLLUP_FIELDS), tags


def _face(key: _Key) -> Charge:
    """A charge that answers for its keys as all those in the roll-up would."""
    at, values, tags = key
    fields: dict[str, Any] = {
        "operation": "",
        "provider": "",
        "model": "",
        **dict(zip(ROLLUP_FIELDS, values, strict=True)),
    }
    return Charge(id="", at=at, tags=dict(tags), **fields)


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

    def merge(self, other: _Sum) -> None:
        """Add what another has added up."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        add_quantities(self.quantities, other.quantities)
        add_quantities(self.unpriced_quantities, other.unpriced_quantities)

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


_COUNTS = tuple(one.name for one in fields(_Sum) if "quantities" not in one.name)
