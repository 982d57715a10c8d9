"""What a ledger is: the interface, what can be asked of it, and what it answers.

A ledger only ever grows. A second entry with a known id is ignored, so that a retry or a replay cannot charge twice, and
a mistake is mended by a further entry that names the first in `Charge.corrects` and holds the difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal
from types import MappingProxyType
from typing import ClassVar, Literal, Protocol, TypeVar

from aifinops.charges import Charge
from aifinops.clock import to_datetime
from aifinops.errors import ConfigurationError
from aifinops.meters import METERS
from aifinops.usage import EMPTY_QUANTITIES, Quantities, Quantity, input_total, output_total, tokens_total

__all__ = [
    "DAY_NS",
    "FIELD_KEYS",
    "HOUR_NS",
    "ROLLUP_FIELDS",
    "ROLLUP_TAGS",
    "TIME_KEYS",
    "Capabilities",
    "Compaction",
    "Filters",
    "Group",
    "GroupKey",
    "Ledger",
    "LedgerInfo",
    "Problem",
    "Progress",
    "Query",
    "Verification",
    "add_quantities",
    "check_compacted",
    "earliest",
    "group_key",
    "group_keys",
    "is_rolled_up",
    "latest",
    "paged",
    "problems_of",
    "start_of",
    "verify_rows",
]

FIELD_KEYS = frozenset(
    {
        "id",
        "provider",
        "model",
        "response_id",
        "response_model",
        "operation",
        "service",
        "tier",
        "region",
        "status",
        "error",
        "basis",
        "currency",
    }
)
"""Keys that are fields of a charge; `model` is the model that was asked for."""

TIME_KEYS: Mapping[str, int] = MappingProxyType({"month": 7, "day": 10, "hour": 13})
"""Keys made from `Charge.at`, in UTC: how much of `2026-11-24T03:25:00` each keeps, in characters."""

ROLLUP_FIELDS = (
    "currency",
    "provider",
    "operation",
    "model",
    "response_model",
    "service",
    "tier",
    "region",
    "status",
    "error",
    "basis",
)
"""Fields that roll-ups keep: those with few values. Ids are in none."""

ROLLUP_TAGS = ("team", "project", "feature", "environment")
"""Tags that roll-ups keep. Customers and runs come without end, so they are in detailed entries only."""

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS

Progress = Callable[[int, int], None]
"""Told from time to time how many entries are done, and of how many in all."""

_TAG = re.compile(r"^[A-Za-z_][A-Za-z0-9_.\-]{0,63}$")
_CACHED = frozenset(name for name, meter in METERS.items() if meter.cache == "read")
_EXACT = Context(prec=200)  # sums of quantities must not be rounded to the 28 digits of the default context
_NO_FILTER: Mapping[str, str | Sequence[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class GroupKey:
    """One thing to group or filter by.

    Attributes:
        name: as it was asked for. kind: a field of the charge, one of its tags, or a part of its time.
        source: name of the field, key of the tag, or `month`, `day` or `hour`.
    """

    name: str
    kind: Literal["field", "tag", "time"]
    source: str

    def of(self, charge: Charge) -> str:
        """This key's value for a charge; empty where the charge has none."""
        if self.kind == "tag":
            return charge.tags.get(self.source, "")
        if self.kind == "field":
            return str(getattr(charge, self.source))
        return to_datetime(charge.at).isoformat()[: TIME_KEYS[self.source]]


def group_key(name: str) -> GroupKey:
    """Read a key: a field, `month`, `day`, `hour`; anything else is a tag (`tag:provider` for a tag of that name).

    Raises:
        ConfigurationError: for a name that cannot be any of them.
    """
    if name in FIELD_KEYS:
        return GroupKey(name, "field", name)
    if name in TIME_KEYS:
        return GroupKey(name, "time", name)
    tag = str(name).removeprefix("tag:")
    if not _TAG.match(tag):
        known = ", ".join(sorted(FIELD_KEYS | TIME_KEYS.keys()))
        raise ConfigurationError(f"cannot group or filter by {name!r}; use one of {known}, or the key of a tag")
    return GroupKey(name, "tag", tag)


def group_keys(names: Sequence[str]) -> tuple[GroupKey, ...]:
    """`group_key` of each; a bare text is refused, since its letters would be taken for keys.

    Raises:
        ConfigurationError: for a wrong name, or for text in place of a list.
    """
    if isinstance(names, str):
        raise ConfigurationError(f"by={names!r} must be a list of keys, such as {names.split(',')!r}")
    return tuple(map(group_key, names))


def is_rolled_up(key: GroupKey) -> bool:
    """Whether daily roll-ups keep this key."""
    if key.kind == "time":
        return key.source != "hour"
    return key.source in (ROLLUP_TAGS if key.kind == "tag" else ROLLUP_FIELDS)


def start_of(at: int, length: int) -> int:
    """The moment at which the hour or day (UTC) begins in which `at` lies; all in nanoseconds."""
    return at - at % length


Filters = tuple[tuple[GroupKey, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries.

    Attributes:
        since_ns, until_ns: `at` from (inclusive) and up to (exclusive), nanoseconds since the epoch; None for no bound.
        where: key -> value, or several values of which one must hold; all keys must hold. An empty value finds entries
            that have none.
        limit: the most entries that `rows` gives; None for all. `summarize` takes no notice of it.
        newest_first: the order of `rows`; otherwise oldest first.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    where: Mapping[str, str | Sequence[str]] = field(default_factory=lambda: _NO_FILTER)
    limit: int | None = None
    newest_first: bool = False

    def filters(self) -> Filters:
        """`where`, read.

        Raises:
            ConfigurationError: for a key that is none.
        """
        return tuple((group_key(name), _values(value)) for name, value in self.where.items())

    def covers(self, at: int) -> bool:
        """True when a moment (nanoseconds) lies in the period."""
        return (self.since_ns is None or at >= self.since_ns) and (self.until_ns is None or at < self.until_ns)


def _values(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, slots=True)
class Group:
    """Sums over the entries that share a key and a currency. Amounts are integer nano-units of `currency`.

    An entry is *unsure* when its amount is unknown or estimated and no correction with an amount names it: a corrected
    entry is as sure as its correction.

    Attributes:
        key: values in the order of `by`; empty text where entries have none.
        currency: ISO 4217; different currencies are different groups and are never added.
        calls: entries that are not corrections. corrections: the others. errors: calls with status `error`.
        amount: sum of what is known; None when nothing is. estimated: the part of it that is estimated.
        lower, upper: bounds of the sum with its unsure entries; `upper` is None when an entry has no upper bound.
        unpriced_calls: calls of unknown cost, which `amount` does not hold. unpriced_tokens: all their tokens.
        quantities: sums per meter. duration: sum of durations, nanoseconds.
    """

    key: tuple[str, ...]
    currency: str
    calls: int = 0
    corrections: int = 0
    errors: int = 0
    amount: int | None = None
    estimated: int = 0
    lower: int = 0
    upper: int | None = 0
    unpriced_calls: int = 0
    unpriced_tokens: int = 0
    quantities: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    duration: int = 0

    @property
    def input_tokens(self) -> int:
        """All input tokens: fresh, read from a cache and written to one, of every modality."""
        return input_total(self.quantities)

    @property
    def output_tokens(self) -> int:
        """All output tokens: visible and reasoning, of every modality."""
        return output_total(self.quantities)

    @property
    def cached_tokens(self) -> int:
        """The part of `input_tokens` that was read from a cache."""
        return int(sum(value for name, value in self.quantities.items() if name in _CACHED))

    @property
    def reasoning_tokens(self) -> int:
        """The part of `output_tokens` that was reasoning."""
        return int(self.quantities.get("reasoning_tokens", 0))

    @property
    def tokens(self) -> int:
        """All tokens, each once."""
        return tokens_total(self.quantities)

    @property
    def gpu_seconds(self) -> Quantity:
        """Device seconds."""
        return self.quantities.get("gpu_seconds", 0)


def check_compacted(query: Query, keys: Sequence[GroupKey], first_ns: int | None, until_ns: int | None) -> None:
    """Refuse a question about days of which only daily roll-ups are left, where those do not answer it.

    Args:
        query: the question. keys: what it groups by. first_ns, until_ns: from the first compacted day up to the end of the last,
            nanoseconds; None when nothing is compacted.

    Raises:
        ConfigurationError: naming what is kept.
    """
    if first_ns is None or until_ns is None:
        return
    if (query.until_ns is not None and query.until_ns <= first_ns) or (
        query.since_ns is not None and query.since_ns >= until_ns
    ):
        return
    until = to_datetime(until_ns).date().isoformat()
    lost = sorted({key.name for key in (*keys, *(key for key, _ in query.filters())) if not is_rolled_up(key)})
    edges = [
        at for at in (query.since_ns, query.until_ns) if at is not None and first_ns < at < until_ns and at % DAY_NS
    ]
    if lost:
        trouble = f"nothing tells {', '.join(map(repr, lost))}"
    elif edges:
        trouble = f"nothing tells what was before {to_datetime(edges[0]).isoformat()} of that day"
    else:
        return
    raise ConfigurationError(
        f"of the days before {until} daily roll-ups are kept, by which {trouble}. They keep day, month, "
        f"{', '.join((*ROLLUP_FIELDS, *ROLLUP_TAGS))}; use those and whole days (UTC), or ask for what was since {until}"
    )


@dataclass(frozen=True, slots=True)
class LedgerInfo:
    """What a ledger says of itself.

    Attributes:
        kind: `memory`, `sqlite` and so on. location: path or URL, without secrets. schema: version of its tables.
        entries: how many, compacted ones as well. first_at, last_at: the earliest and latest `Charge.at`, nanoseconds, None when empty.
        size_bytes: on disk, 0 when it is not on a disk.
        compacted: entries of which only daily roll-ups are left. compacted_until_ns: the day before which that is so, nanoseconds;
            None when nothing was compacted.
        behind: entries that are not in the roll-ups yet; reports read them one by one.
    """

    kind: str
    location: str
    schema: int
    entries: int
    first_at: int | None
    last_at: int | None
    size_bytes: int
    compacted: int = 0
    compacted_until_ns: int | None = None
    behind: int = 0


@dataclass(frozen=True, slots=True)
class Compaction:
    """What `compact` has done.

    Attributes:
        entries: how many became daily roll-ups. kept: entries of that time that stay as they are, because they are unsure (see
            `Group`) or are needed to make another one sure.
        since_ns, until_ns: the period, whole days (UTC), nanoseconds since the epoch; `since_ns` is None when nothing was there to do.
        freed_bytes: room that new entries, or other files, can have now.
    """

    entries: int
    kept: int
    since_ns: int | None
    until_ns: int
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a ledger.

    Attributes:
        kind: `damaged` (the store's own check), `unreadable` (an entry that is no charge), `lines` (they do not add up to the amount),
            `duplicate` (an id that is there twice), `rollup` (it is not the sum of its entries).
        where: id of the entry, or the day of the roll-up. text: what is wrong, for people.
    """

    kind: Literal["damaged", "unreadable", "lines", "duplicate", "rollup"]
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` has found.

    Attributes:
        entries: how many were looked at. problems: what is wrong, at most `MOST` of them. found: how many there were in all.
    """

    MOST: ClassVar[int] = 1000
    entries: int
    problems: tuple[Problem, ...] = ()
    found: int = 0

    @property
    def sound(self) -> bool:
        """True when nothing is wrong."""
        return not self.found


def problems_of(charge: Charge) -> list[Problem]:
    """What is wrong with one entry, as far as it tells by itself."""
    total = sum(amount for _, amount in charge.lines)
    if charge.lines and charge.amount is not None and total != charge.amount:
        return [Problem("lines", charge.id, f"its lines add up to {total} nano-units, its amount is {charge.amount}")]
    return []


_Row = TypeVar("_Row")


def paged(query: Query, most: int, page_of: Callable[[_Row | None, int], Sequence[_Row]]) -> Iterator[_Row]:
    """The rows that a question asks for, a page at a time.

    Args:
        query: of which the limit counts. most: rows of a page.
        page_of: reads as many rows as it is told, from behind the one that it is given on, or from the first on.
    """
    left = query.limit
    last: _Row | None = None
    while left is None or left > 0:
        size = most if left is None else min(left, most)
        page = page_of(last, size)
        yield from page
        if len(page) < size:
            return
        last = page[-1]
        left = None if left is None else left - size


def earliest(*moments: int | None) -> int | None:
    """The first of those that are known, nanoseconds."""
    return min((at for at in moments if at is not None), default=None)


def latest(*moments: int | None) -> int | None:
    """The last of those that are known, nanoseconds."""
    return max((at for at in moments if at is not None), default=None)


def verify_rows(ledger: Ledger, progress: Progress | None = None) -> Verification:
    """What `problems_of` finds in the entries of any ledger that can read them all."""
    entries, every, done = ledger.info().entries, 1000, 0
    problems: list[Problem] = []
    found = 0
    for done, charge in enumerate(ledger.rows(), 1):
        own = problems_of(charge)
        found += len(own)
        problems += own[: Verification.MOST - len(problems)]
        if progress is not None and done % every == 0:
            progress(done, max(done, entries))
    return Verification(done, tuple(problems), found)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of ledger can do.

    Attributes:
        durable: what `append` has returned from survives the death of the process.
        shared: several processes may write the same ledger at once.
        compacts: `compact` works. verifies: `verify` works.
    """

    durable: bool
    shared: bool
    compacts: bool = False
    verifies: bool = False


class Ledger(Protocol):
    """The append-only memory of charges. Every method may be called from any thread.

    `aifinops.testing.ledger.check_ledger` proves that an implementation keeps this contract.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this kind of ledger can do."""
        ...

    def append(self, charge: Charge) -> bool:
        """Keep one entry; in a durable ledger it is safe when this returns.

        Returns:
            False when the id was known already; the first entry stays as it is.

        Raises:
            StoreError: when it could not be kept; the same charge may be given again.
        """
        ...

    def enqueue(self, charge: Charge) -> None:
        """Keep one entry, as safe as `append` does and at the least cost; a known id is ignored. Every reader finds it.

        Raises:
            StoreError: when it could not be kept.
        """
        ...

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several, all or none.

        Returns:
            How many were new.

        Raises:
            StoreError: when none was kept.
        """
        ...

    def rows(self, query: Query = ...) -> Iterator[Charge]:
        """The entries, by time and then by id. Entries added meanwhile may or may not appear.

        Raises:
            ConfigurationError: for a wrong key in the query.
            StoreError: when the store cannot be read.
        """
        ...

    def summarize(self, query: Query = ..., by: Sequence[str] = ()) -> list[Group]:
        """Sums per key and currency, added up where the data is, sorted by key and currency.

        Raises:
            ConfigurationError: for a wrong key.
            StoreError: when the store cannot be read.
        """
        ...

    def info(self) -> LedgerInfo:
        """Where it is and how much is in it.

        Raises:
            StoreError: when the store cannot be read.
        """
        ...

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Turn sure entries of whole days (UTC) before a moment into daily roll-ups, which keep `ROLLUP_FIELDS` and `ROLLUP_TAGS`.

        Sums by those, by day and by month, stay what they were; other questions about that time raise ConfigurationError, `rows` has
        no such entry any more, and a known id is still ignored. Others may write meanwhile. It may be interrupted at any time, and
        goes on where it was when it is called again.

        Raises:
            ConfigurationError: when this kind of ledger cannot do it (`Capabilities.compacts`).
            StoreError: when the store cannot be written.
        """
        ...

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Look through everything: is the store sound, can each entry be read, are ids unique, do lines and roll-ups add up?

        Raises:
            ConfigurationError: when this kind of ledger cannot do it (`Capabilities.verifies`).
            StoreError: when the store cannot be read at all.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections; a later call takes them again."""
        ...

    def reset_after_fork(self) -> None:
        """In a forked child: forget the parent's locks and connections without touching what lies behind them."""
        ...


def add_quantities(total: dict[str, Quantity], values: Quantities) -> None:
    """Add `values` to `total`, meter by meter and exactly."""
    for name, value in values.items():
        before = total.get(name, 0)
        if isinstance(before, Decimal) or isinstance(value, Decimal):
            total[name] = _EXACT.add(Decimal(before), Decimal(value))
        else:
            total[name] = before + value
