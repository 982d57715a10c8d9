"""What the ledgers on servers share: the sums of a group as columns, hourly roll-ups, and which period a roll-up can answer.

A roll-up has one row, a *cell*, for each hour and combination of `DIMENSIONS`, with the same sums as a group. A question that groups and
filters by nothing else is answered from cells for the whole hours of its period, and from entries for the parts of an hour at its ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import (
    DAY_NS,
    HOUR_NS,
    ROLLUP_FIELDS,
    ROLLUP_TAGS,
    Filters,
    Group,
    GroupKey,
    Problem,
    Query,
    Verification,
    add_quantities,
)
from aifinops.ledger.codec import METER_COLUMNS
from aifinops.usage import Quantity, tokens_total

__all__ = [
    "DIMENSIONS",
    "SUMS",
    "TOKENS",
    "Period",
    "answered_by_cells",
    "check_numbers",
    "check_version",
    "group_of",
    "load_sums",
    "period_of",
    "sums_of_entry",
    "verify_days",
]

DIMENSIONS = (*ROLLUP_FIELDS, *ROLLUP_TAGS)
"""What a cell is of, beside its hour; `currency` among them."""

SUMS = (
    "calls",
    "corrections",
    "errors",
    "known",
    "amount",
    "estimated",
    "lower",
    "upper",
    "open_ends",
    "unpriced",
    "unpriced_tokens",
    "duration",
    *METER_COLUMNS,
)
"""What is added up, as columns: `known` counts entries with an amount, `open_ends` unsure ones without an upper bound; the others are
those of `Group`. The sums of meters are NULL where no entry has them."""

TOKENS = " + ".join(f"coalesce({name}, 0)" for name in METER_COLUMNS if name.endswith("_tokens"))

_INT64 = 2**63 - 1


def sums_of_entry(integer: str, wide: str = "{}") -> tuple[dict[str, str], dict[str, str]]:
    """SQL for each of `SUMS` but the meters, of one entry: as if it were sure, and what is added to that when it is unsure.

    Args:
        integer, wide: turn a condition into 0 or 1, and a column into a type with room for differences; `{}` stands for either.
    """
    amount, lower, upper = (
        wide.format(text)
        for text in ("coalesce(amount, 0)", "coalesce(lower, amount, 0)", "coalesce(upper, amount, 0)")
    )
    unpriced = "amount IS NULL AND corrects = ''"
    sure = {
        "calls": integer.format("corrects = ''"),
        "corrections": integer.format("corrects <> ''"),
        "errors": integer.format("status = 'error' AND corrects = ''"),
        "known": integer.format("amount IS NOT NULL"),
        "amount": amount,
        "estimated": "0",
        "lower": amount,
        "upper": amount,
        "open_ends": "0",
        "unpriced": "0",
        "unpriced_tokens": "0",
        "duration": wide.format("duration"),
    }
    unsure = {
        "estimated": amount,
        "lower": f"{lower} - {amount}",
        "upper": f"{upper} - {amount}",
        "open_ends": integer.format("amount IS NULL AND upper IS NULL"),
        "unpriced": integer.format(unpriced),
        "unpriced_tokens": f"CASE WHEN {unpriced} THEN {wide.format(TOKENS)} ELSE 0 END",
    }
    return sure, unsure


def check_numbers(charges: Iterable[Charge]) -> None:
    """Refuse entries whose numbers do not fit into the 64 bits of a column.

    Raises:
        OverflowError: naming the first.
    """
    for charge in charges:
        numbers = (charge.at, charge.duration, charge.amount, charge.lower, charge.upper)
        if any(value is not None and not -_INT64 <= value <= _INT64 for value in numbers):
            raise OverflowError(f"charge {charge.id} has a number beyond 64 bits")


def check_version(location: str, version: int | None, known: int, *, create: bool) -> None:
    """Refuse tables of a later version, and with `create=False` a place without any.

    Args:
        location: of the ledger. version: of its tables, None where there are none. known: the latest that this code knows.

    Raises:
        ConfigurationError: with what to do.
    """
    if version is None:
        if not create:
            raise ConfigurationError(
                f"there is no ledger at {location}; make the first metered call, or correct AIFINOPS_LEDGER"
            )
    elif version > known:
        raise ConfigurationError(
            f"the ledger {location} has schema {version}; this one knows up to {known}: pip install --upgrade aifinops"
        )


class Period(NamedTuple):
    """A period in three parts: `since` to `first` and `last` to `until` hold no whole hour, `first` to `last` holds only whole ones.

    Nanoseconds; None for no bound. A period without a whole hour has no `whole`.
    """

    since: int | None
    first: int | None
    last: int | None
    until: int | None
    whole: bool

    @property
    def ends(self) -> list[tuple[int | None, int | None]]:
        """The parts that only entries can answer."""
        if not self.whole:
            return [(self.since, self.until)]
        parts = [(self.since, self.first), (self.last, self.until)]
        return [(start, end) for start, end in parts if start is not None and end is not None and start < end]


def period_of(query: Query) -> Period:
    """The period of a question, cut at whole hours."""
    since, until = query.since_ns, query.until_ns
    first = None if since is None else -(-since // HOUR_NS) * HOUR_NS
    last = None if until is None else until // HOUR_NS * HOUR_NS
    whole = first is None or last is None or first < last
    return Period(since, first, last, until, whole)


def answered_by_cells(keys: Iterable[GroupKey], filters: Filters) -> bool:
    """Whether cells know all that is grouped and filtered by."""
    return all(
        key.kind == "time" or key.source in (ROLLUP_TAGS if key.kind == "tag" else ROLLUP_FIELDS)
        for key in (*keys, *(key for key, _ in filters))
    )


def verify_days(
    found: Verification,
    rolled: Callable[[Query, Sequence[str]], list[Group]],
    one_by_one: Callable[[Query, Sequence[str]], list[Group]],
) -> Verification:
    """What was found, and each day whose roll-ups are not the sum of its entries.

    Args:
        found: in the entries. rolled, one_by_one: a summary from roll-ups, and from entries alone.
    """
    problems = []
    suspects = _differing(rolled, one_by_one, Query())
    for day in suspects:
        start = int(datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()) * 1_000_000_000
        of_day = Query(since_ns=start, until_ns=start + DAY_NS)
        if all(_differing(rolled, one_by_one, of_day) for _ in range(3)):  # not something that was written in between
            problems.append(Problem("rollup", day, "its roll-ups are not the sum of its entries"))
    kept = (*found.problems, *problems)[: Verification.MOST]
    return Verification(found.entries, kept, found.found + len(problems))


def _differing(
    rolled: Callable[[Query, Sequence[str]], list[Group]],
    one_by_one: Callable[[Query, Sequence[str]], list[Group]],
    query: Query,
) -> list[str]:
    first, second = (
        {(group.key, group.currency): group for group in ask(query, ("day", "model", "team"))}
        for ask in (rolled, one_by_one)
    )
    return sorted({place[0][0] for place in first.keys() | second.keys() if first.get(place) != second.get(place)})


def load_sums(text: str | None) -> dict[str, Quantity]:
    """Sums of quantities from JSON: numbers of any size and precision, or text of them."""
    if not text:
        return {}
    values = json.loads(text, parse_float=Decimal)
    return {name: Decimal(value) if isinstance(value, str) else value for name, value in values.items()}


def group_of(
    key: Sequence[str],
    currency: str,
    sums: Mapping[str, Any],
    more: Sequence[Mapping[str, Quantity]] = (),
    unpriced_more: Sequence[Mapping[str, Quantity]] = (),
) -> Group:
    """A group from its sums.

    Args:
        key, currency: of the group. sums: by the names of `SUMS`.
        more, unpriced_more: sums of meters without a column; those of calls of unknown cost.
    """
    quantities: dict[str, Quantity] = {name: int(sums[name]) for name in METER_COLUMNS if sums[name] is not None}
    for values in more:
        add_quantities(quantities, values)
    without_price: dict[str, Quantity] = {}
    for values in unpriced_more:
        add_quantities(without_price, values)
    return Group(
        key=tuple(key),
        currency=currency,
        calls=int(sums["calls"]),
        corrections=int(sums["corrections"]),
        errors=int(sums["errors"]),
        amount=int(sums["amount"]) if sums["known"] else None,
        estimated=int(sums["estimated"]),
        lower=int(sums["lower"]),
        upper=None if sums["open_ends"] else int(sums["upper"]),
        unpriced_calls=int(sums["unpriced"]),
        unpriced_tokens=int(sums["unpriced_tokens"]) + tokens_total(without_price),
        quantities=MappingProxyType(quantities),
        duration=int(sums["duration"]),
    )
