"""How fast money goes, minute by minute, from a ledger that others write to meanwhile.

A look costs what the last two minutes cost to read, however large the ledger is: older minutes are remembered, and read again one after
the other, for calls that took long to settle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Any

from aifinops.analytics.report_text import amount_text
from aifinops.analytics.trends import exact_sum
from aifinops.ledger.base import Group, Ledger, Query
from aifinops.money import from_nanos

__all__ = ["MINUTES", "Pace", "Pulse", "together"]

MINUTES = 60
"""Whole minutes that are kept, beside the one that runs."""

_MINUTE = 60_000_000_000
_ROUNDED = Context(prec=12)  # an average of sixty minutes has no end

Place = tuple[tuple[str, ...], str]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one key spends in one currency. Amounts are of calls by when they began; a call is counted when it is settled.

    Attributes:
        key: values of what was grouped by. currency: ISO 4217.
        now: spent in the last sixty seconds. minutes: in each of the last sixty whole minutes, oldest first; None where calls have no price.
        running: in the minute that has begun. calls: in the last sixty seconds. unpriced_calls: of the hour, in no amount.
        estimated: the part of the hour that is estimated.
    """

    key: tuple[str, ...]
    currency: str
    now: Decimal | None = Decimal(0)
    minutes: tuple[Decimal | None, ...] = (Decimal(0),) * MINUTES
    running: Decimal | None = Decimal(0)
    calls: int = 0
    unpriced_calls: int = 0
    estimated: Decimal = Decimal(0)

    @property
    def hour(self) -> Decimal | None:
        """Spent in all minutes that are kept and in the one that runs, of what has a price; None where nothing of it has one."""
        return _known((*self.minutes, self.running))

    def average(self, minutes: int) -> Decimal | None:
        """Spent a minute, on the average of the last whole ones; None as for `hour`."""
        spent = _known(self.minutes[-minutes:])
        return None if spent is None else _ROUNDED.divide(spent, Decimal(minutes))

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain values; money as text."""
        return {
            "key": dict(zip(names, self.key, strict=True)),
            "currency": self.currency,
            "last_minute": amount_text(self.now),
            "per_minute_5": amount_text(self.average(5)),
            "per_minute_60": amount_text(self.average(60)),
            "hour": amount_text(self.hour),
            "calls_last_minute": self.calls,
            "unpriced_calls": self.unpriced_calls,
            "estimated": amount_text(self.estimated),
            "minutes": list(map(amount_text, self.minutes)),
        }


@dataclass(slots=True)
class Pulse:
    """Reads a ledger again and again.

    Attributes:
        ledger: where to read. by: keys of the rows. where: which entries, as in a report.
    """

    ledger: Ledger
    by: tuple[str, ...]
    where: Mapping[str, str | Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    _known: dict[int, list[Group]] = field(default_factory=dict)
    _turn: int = 0

    def look(self, now_ns: int) -> list[Pace]:
        """How fast each key spends, the dearest hour first. The first look reads an hour, each further one a few minutes.

        Raises:
            ConfigurationError: for a key that cannot be. StoreError: when the ledger cannot be read.
        """
        running = now_ns - now_ns % _MINUTE
        starts = [running - _MINUTE * back for back in range(MINUTES, 0, -1)]
        again = {running, starts[-1], starts[self._turn % MINUTES]}
        self._turn += 1
        known = {start: groups for start, groups in self._known.items() if start >= starts[0]}
        for start in (*starts, running):
            if start in again or start not in known:
                known[start] = self._read(start, start + _MINUTE)
        self._known = known
        # A clock of another machine may be ahead of ours: what it has written counts as of now.
        last = self._read(now_ns - _MINUTE, None)
        return _paces(known, starts, running, last)

    def _read(self, since_ns: int, until_ns: int | None) -> list[Group]:
        return self.ledger.summarize(Query(since_ns, until_ns, self.where), self.by)


def _paces(
    known: Mapping[int, Sequence[Group]], starts: Sequence[int], running: int, last: Sequence[Group]
) -> list[Pace]:
    minutes: dict[Place, dict[int, Group]] = {}
    for start, groups in known.items():
        for group in groups:
            minutes.setdefault((group.key, group.currency), {})[start] = group
    recent = {(group.key, group.currency): group for group in last}
    found = [_pace(place, minutes.get(place, {}), starts, running, recent.get(place)) for place in {*minutes, *recent}]
    return sorted(
        found, key=lambda pace: (-(pace.hour or Decimal(0)), -(pace.now or Decimal(0)), pace.key, pace.currency)
    )


def _pace(place: Place, groups: Mapping[int, Group], starts: Sequence[int], running: int, last: Group | None) -> Pace:
    return Pace(
        *place,
        now=_amount(last),
        minutes=tuple(_amount(groups.get(start)) for start in starts),
        running=_amount(groups.get(running)),
        calls=0 if last is None else last.calls,
        unpriced_calls=sum(group.unpriced_calls for group in groups.values()),
        estimated=exact_sum([from_nanos(group.estimated) for group in groups.values()]),
    )


def _amount(group: Group | None) -> Decimal | None:
    if group is None:
        return Decimal(0)
    return None if group.amount is None else from_nanos(group.amount)


def together(paces: Sequence[Pace], currency: str, key: tuple[str, ...] = ()) -> Pace:
    """The sum of several of one currency; unknown only where nothing is known."""
    own = [pace for pace in paces if pace.currency == currency]
    if not own:
        return Pace(key, currency)
    return Pace(
        key,
        currency,
        _known([pace.now for pace in own]),
        tuple(_known(amounts) for amounts in zip(*(pace.minutes for pace in own), strict=True)),
        _known([pace.running for pace in own]),
        sum(pace.calls for pace in own),
        sum(pace.unpriced_calls for pace in own),
        exact_sum([pace.estimated for pace in own]),
    )


def _known(amounts: Sequence[Decimal | None]) -> Decimal | None:
    """The sum of what is known; None where something is not and nothing else was spent."""
    total = exact_sum(amount for amount in amounts if amount is not None)
    return None if not total and None in amounts else total
