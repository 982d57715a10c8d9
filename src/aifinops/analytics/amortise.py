"""Capacity that is paid for by the hour, spread over the calls that it served.

A call that provisioned throughput or a commitment has served costs nothing more, so its amount in the ledger is zero: FOCUS calls that
its BilledCost. Its EffectiveCost is its part of what the capacity costs in the same time. Parts are nano-units that add up to the cost
of the capacity exactly: the largest remainders get the units that rounding leaves over (Hare and Niemeyer's method).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Ledger, Query, group_keys
from aifinops.money import to_nanos
from aifinops.pricing.match import provider_id
from aifinops.pricing.prices import tier_name

if TYPE_CHECKING:
    from aifinops.pricing.contract import Capacity

__all__ = ["Amortised", "amortise", "amortised_calls", "largest_remainder"]

_EXACT = Context(prec=60)
_K = TypeVar("_K", bound=Hashable)
_Key = tuple[str, ...]
_ELSEWHERE = None
"""Where calls go that the filter of a report leaves out: they have used the capacity all the same."""


@dataclass(frozen=True, slots=True)
class Amortised:
    """One capacity in one time, spread over what it served. Amounts are integer nano-units of `currency`.

    Attributes:
        name, currency: of the capacity. start_ns, end_ns: the part of the time in which it was paid for.
        cost: what it cost then; `used` + `idle` + `elsewhere`.
        used: the sum of `shares`. shares: values of the keys -> the part of the calls that have them.
        idle: what nobody used. Without a known throughput that is all of it or nothing: all when no call was served.
        elsewhere: the part of calls that the filter left out.
        calls: served, in `shares`. utilisation: 0 to 1, None when the throughput of the capacity is not known.
    """

    name: str
    currency: str
    start_ns: int
    end_ns: int
    cost: int
    used: int = 0
    idle: int = 0
    elsewhere: int = 0
    calls: int = 0
    utilisation: Decimal | None = None
    shares: Mapping[_Key, int] = field(default_factory=lambda: MappingProxyType({}))


def largest_remainder(total: int, weights: Mapping[_K, Decimal]) -> dict[_K, int]:
    """A whole number divided in proportion to weights, so that the parts add up to it exactly.

    Args:
        total: not negative. weights: not negative. When all are zero every key has the same weight.

    Returns:
        Key -> part, none further than one from its exact share; empty without keys. Ties go to the key that comes first.
    """
    shares = {key: Fraction(weight) for key, weight in weights.items()}
    whole = sum(shares.values())
    if not whole:
        shares, whole = dict.fromkeys(shares, Fraction(1)), Fraction(len(shares))
    exact = {key: total * share / whole for key, share in shares.items()}
    parts = {key: int(value) for key, value in exact.items()}
    left = total - sum(parts.values())
    for key in sorted(exact, key=lambda one: parts[one] - exact[one])[:left]:
        parts[key] += 1
    return parts


def amortise(
    ledger: Ledger, capacity: Iterable[Capacity], query: Query, by: Sequence[str] = (), *, now_ns: int
) -> tuple[list[Amortised], int]:
    """What each capacity costs in the time of a query, spread over the calls that it served, by their share of the tokens.

    A call belongs to the first capacity that covers its provider, model, region, tier and moment. Filters of the query choose what is
    in `shares`, never how much that is.

    Args:
        ledger: where to read. capacity: `PriceBook.capacity`. by: keys as of a report.
        query: since, until and where. Without `since_ns` each begins when it was bought; time ends at `now_ns` at the latest.
        now_ns: the present, nanoseconds since the epoch.

    Returns:
        One for each capacity that costs something in this time, and how many `committed` calls none of them covers.

    Raises:
        ConfigurationError: for a wrong key; or without a beginning, in the query or in the contract.
        StoreError: when the ledger cannot be read.
    """
    keys, conditions = group_keys(tuple(by)), query.filters()
    spreads = list(_spreads(capacity, query, now_ns))
    uncovered = 0
    for charge in _committed(ledger, query, now_ns):
        inside = all(key.of(charge) in values for key, values in conditions)
        spread = _first(spreads, charge)
        if spread is None:
            uncovered += inside
        else:
            spread.add(tuple(key.of(charge) for key in keys) if inside else _ELSEWHERE, charge)
    return [spread.divided() for spread in spreads], uncovered


def amortised_calls(
    ledger: Ledger, capacity: Iterable[Capacity], query: Query, *, now_ns: int
) -> Iterator[tuple[Charge, int]]:
    """Each call that a capacity served, with its part of it in nano-units of the capacity's currency, in the order of time.

    Parts of one capacity add up to its `cost` less what is idle, to the nano-unit. All calls of the time are held in memory.

    Args:
        ledger, capacity, query, now_ns: as of `amortise`.
    """
    conditions = query.filters()
    spreads = list(_spreads(capacity, query, now_ns))
    found: list[tuple[Charge, _Spread]] = []
    for charge in _committed(ledger, query, now_ns):
        spread = _first(spreads, charge)
        if spread is not None:
            spread.add((charge.id,), charge)
            found.append((charge, spread))
    parts = {id(spread): spread.divided().shares for spread in spreads}
    for charge, spread in found:
        if all(key.of(charge) in values for key, values in conditions):
            yield charge, parts[id(spread)][charge.id,]


@dataclass(slots=True)
class _Spread:
    """A capacity, and what has used it so far."""

    capacity: Capacity
    start: int
    end: int
    weights: dict[_Key | None, Decimal] = field(default_factory=dict)
    calls: int = 0

    def covers(self, charge: Charge) -> bool:
        scope = self.capacity.scope
        names = (charge.model, charge.response_model, _priced_model(charge))
        return (
            scope.covers(provider_id(charge.provider) or "", names, charge.service)
            and scope.in_force(charge.at, tier_name(charge.tier))
            and self.capacity.region in ("", charge.region)
        )

    def add(self, key: _Key | None, charge: Charge) -> None:
        self.weights[key] = _EXACT.add(self.weights.get(key, Decimal(0)), self.capacity.weight(charge.quantities))
        self.calls += key is not _ELSEWHERE

    def divided(self) -> Amortised:
        cost = to_nanos(self.capacity.over(self.start, self.end))
        utilisation = self._utilisation()
        used = cost if self.weights else 0
        if utilisation is not None:
            used = int(used * utilisation)  # down: what is idle is never made smaller than it is
        parts = largest_remainder(used, self.weights)
        elsewhere = parts.pop(_ELSEWHERE, 0)
        return Amortised(
            self.capacity.name,
            self.capacity.currency,
            self.start,
            self.end,
            cost,
            used - elsewhere,
            cost - used,
            elsewhere,
            self.calls,
            None if utilisation is None else _EXACT.divide(utilisation.numerator, utilisation.denominator),
            MappingProxyType({key: part for key, part in parts.items() if key is not None}),
        )

    def _utilisation(self) -> Fraction | None:
        most = self.capacity.serves(self.start, self.end)
        if most is None:
            return None
        return min(Fraction(1), sum(map(Fraction, self.weights.values()), Fraction(0)) / Fraction(most))


def _spreads(capacity: Iterable[Capacity], query: Query, now_ns: int) -> Iterator[_Spread]:
    end = now_ns if query.until_ns is None else min(query.until_ns, now_ns)  # hours to come have cost nothing yet
    for one in capacity:
        start = one.scope.starts if query.since_ns is None else query.since_ns
        if start is None:
            raise ConfigurationError(
                f'what {one.name} costs has no beginning: ask since="30d", or write from = 2026-11-01 in its contract'
            )
        low, high = one.scope.within(start, end)
        if low < high:
            yield _Spread(one, low, high)


def _committed(ledger: Ledger, query: Query, now_ns: int) -> Iterator[Charge]:
    until = now_ns + 1 if query.until_ns is None else query.until_ns
    everybody = replace(query, until_ns=until, where={"basis": "committed"}, limit=None, newest_first=False)
    return (charge for charge in ledger.rows(everybody) if not charge.corrects)


def _first(spreads: Iterable[_Spread], charge: Charge) -> _Spread | None:
    return next((spread for spread in spreads if spread.covers(charge)), None)


def _priced_model(charge: Charge) -> str:
    """The name that the price list has for it: `list/provider/MODEL+provisioned`."""
    return (charge.price_id or "").rpartition("+")[0].split("/", 2)[-1]
