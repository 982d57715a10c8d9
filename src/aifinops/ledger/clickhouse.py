"""A ledger in ClickHouse, for fleets: columns, batches, and roll-ups that stay exact although the engine knows neither transactions nor keys.

An id that comes twice is ignored where it can be seen before; where two writers come with it at the same moment both entries go in,
and every question takes one of them (`FINAL` over a table that keeps the first entry of an id and moment).

Roll-ups cannot be made by views on insertion, which would count both. Instead an hour is rolled up as a whole once it is quiet, from
what `FINAL` leaves of it. Before anybody writes entries of an hour he *touches* it. A roll-up has the sum of touches as it was before the
roll-up was made; where that is no longer the sum, the hour is read entry by entry. A later correction changes which entries are unsure: the
hours of what was corrected lately are read entry by entry, and then touched. See decision 0027, and `aifinops.ledger.clickhouse_compaction`
for what becomes of old days.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger import clickhouse_compaction as compaction
from aifinops.ledger.base import (
    DAY_NS,
    HOUR_NS,
    Capabilities,
    Compaction,
    Group,
    GroupKey,
    Ledger,
    LedgerInfo,
    Progress,
    Query,
    Verification,
    check_compacted,
    group_keys,
    start_of,
    verify_rows,
)
from aifinops.ledger.clickhouse_compaction import Gone, gone_of, left, step_of
from aifinops.ledger.clickhouse_link import Link, literal, open_link
from aifinops.ledger.codec import COLUMNS, METER_COLUMNS, TAG_COLUMNS, charge_of, clean_text, load_quantities, row_of
from aifinops.ledger.sql import (
    DIMENSIONS,
    SUMS,
    Period,
    answered_by_cells,
    fits,
    group_of,
    load_sums,
    period_of,
    sums_of_entry,
    verify_days,
)
from aifinops.usage import Quantity

__all__ = ["QUIET_S", "SCHEMA", "ClickHouseLedger", "ClickHouseView", "open_url"]

SCHEMA = 1
"""Version of the tables."""

QUIET_S = 300.0
"""How long nobody must have touched an hour before it is rolled up, seconds: longer than any insertion takes."""

TIMEOUT_S = 60.0
_PAGE = 5000
_BATCH = 100_000
_HOURS = 31 * 24
_RANGES = 8
_TRIES = 30
"""How often a question is asked again because something was compacted meanwhile."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

# --- the tables ---------------------------------------------------------------------------------------------------------

_FEW = frozenset(
    {
        "provider",
        "operation",
        "model",
        "response_model",
        "service",
        "tier",
        "region",
        "currency",
        "basis",
        "price_id",
        "price_as_of",
        "price_source",
        "status",
        "error",
        *TAG_COLUMNS,
    }
)
_NULLABLE = frozenset({"price_id", "price_as_of", "price_source", *TAG_COLUMNS, "quantities", "tags", "lines", "raw"})
_NULLABLE_INTEGERS = frozenset({"amount", "lower", "upper", *METER_COLUMNS})


def _type(name: str) -> str:
    if name in ("at", "duration"):
        return "Int64 CODEC(Delta, ZSTD)" if name == "at" else "Int64 CODEC(ZSTD)"
    if name == "stream":
        return "UInt8"
    if name in _NULLABLE_INTEGERS:
        return "Nullable(Int64) CODEC(ZSTD)"
    text = "Nullable(String)" if name in _NULLABLE else "String"
    return f"LowCardinality({text})" if name in _FEW else f"{text} CODEC(ZSTD)"


_MORE = ("names Array(String)", "values Array(Decimal(76, 30))", "odd Array(String)")
"""Meters without a column: those whose quantity has a form as a decimal, and the JSON of those that have none."""

# A migration is a list of statements that takes the tables from the version before to its own. There are no transactions: each statement
# may be run again.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE IF NOT EXISTS {db}.aifinops_charges ("
        + ", ".join(f"{name} {_type(name)}" for name in COLUMNS)
        + ", "
        + ", ".join(_MORE)
        + """,
            uncertain UInt8 MATERIALIZED isNull(amount) OR basis = 'estimated',
            earlier UInt64 DEFAULT 18446744073709551615 - toUInt64(toUnixTimestamp64Nano(now64(9))),
            INDEX ids id TYPE minmax GRANULARITY 1,
            INDEX some_ids id TYPE bloom_filter(0.001) GRANULARITY 1,
            INDEX corrections corrects TYPE minmax GRANULARITY 1,
            INDEX uncertainties uncertain TYPE minmax GRANULARITY 1
        ) ENGINE = ReplacingMergeTree(earlier)
        PARTITION BY toYYYYMM(fromUnixTimestamp64Nano(at, 'UTC')) ORDER BY (at, id)""",
        """CREATE TABLE IF NOT EXISTS {db}.aifinops_touches (
            at Int64, times SimpleAggregateFunction(sum, UInt64), mark SimpleAggregateFunction(sum, UInt64),
            last SimpleAggregateFunction(max, DateTime64(3, 'UTC')) DEFAULT now64(3)
        ) ENGINE = AggregatingMergeTree ORDER BY at""",
        *(
            f"CREATE TABLE IF NOT EXISTS {{db}}.{table} (at Int64 CODEC(Delta, ZSTD), build UInt64, "
            + ", ".join(f"{name} LowCardinality(String)" for name in DIMENSIONS)
            + ", "
            + ", ".join(
                f"{name} {'Nullable(Int128)' if name in METER_COLUMNS else 'Int128'} CODEC(ZSTD)" for name in SUMS
            )
            + ", "
            + ", ".join([*_MORE, *(f"unpriced_{column}" for column in _MORE)])
            + """) ENGINE = MergeTree
            PARTITION BY toYYYYMM(fromUnixTimestamp64Nano(at, 'UTC')) ORDER BY (at, build)"""
            for table in ("aifinops_hourly", compaction.DAILY)
        ),
        """CREATE TABLE IF NOT EXISTS {db}.aifinops_builds (at Int64, build UInt64, times UInt64, mark UInt64)
        ENGINE = ReplacingMergeTree(build) ORDER BY at""",
        "CREATE TABLE IF NOT EXISTS {db}.aifinops_corrections (until UInt64) ENGINE = ReplacingMergeTree ORDER BY tuple()",
        *compaction.TABLES,
    ),
)
assert len(_MIGRATIONS) == SCHEMA  # noqa: S101 - one for each version
_TABLE = "aifinops_charges"
_KEPT = "18446744073709551615 - earlier"
"""When an entry was inserted, by the server's clock, nanoseconds."""
_VERSIONS = "CREATE TABLE IF NOT EXISTS {db}.aifinops_schema (version UInt32, since DateTime DEFAULT now()) ENGINE = MergeTree ORDER BY version"


# --- the ledger ---------------------------------------------------------------------------------------------------------


def open_url(url: str, *, create: bool = True) -> ClickHouseLedger | ClickHouseView:
    """A ledger from one text.

    Args:
        url: `clickhouse://user:password@host:8123/database`, `clickhouses://` for TLS, or `chdb:///directory?database=name`.
            With `?view=name` it is a view over a collector's tables, which can only be read.
        create: False refuses a database without our tables.

    Raises:
        ConfigurationError: when it cannot be read, its driver is not installed, or the tables are of a newer version or not there.
        StoreError: when the server cannot be reached.
    """
    view = dict(parse_qsl(urlsplit(url).query)).get("view")
    if view is not None and create:
        raise ConfigurationError(
            f"the view {view!r} can only be read: aifinops report --ledger, or open_ledger(..., create=False)"
        )
    link = open_link(url, TIMEOUT_S)
    return ClickHouseLedger(link, create=create) if view is None else ClickHouseView(link, view)


class _Hour(NamedTuple):
    """An hour in which there are entries: when it begins, what it was touched with, the roll-up that is right (0: none), and whether it is quiet."""

    at: int
    times: int
    mark: int
    build: int
    quiet: bool


class _Reader:
    """What can be asked of a table or view with our columns, entry by entry.

    Args:
        link: the way to it. source: its name, with `FINAL` where it may have an entry twice.
    """

    def __init__(self, link: Link, source: str) -> None:
        if not _NAME.fullmatch(link.database):
            raise ConfigurationError(f"{link.database!r} is no name for a database here; use letters, digits and _")
        self._bare = link
        self._db = link.database
        self._source = f"{link.database}.{source}"

    @property
    def _link(self) -> Link:
        """The way to it, once it is known to be there."""
        return self._bare

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """The entries that match, by time and then by id; read a page at a time, so that memory stays flat.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the server cannot be read.
        """
        return self._pages(query, _where(query, (query.since_ns, query.until_ns)))

    def _only(self) -> str:
        """SQL: which entries of the table count."""
        return "1"

    def _pages(self, query: Query, where: str) -> Iterator[Charge]:
        sign, order = ("<", "DESC") if query.newest_first else (">", "ASC")
        left = query.limit
        after = ""
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            page = self._link.query(
                f"SELECT {', '.join(COLUMNS)} FROM {self._source} WHERE {where} AND {self._only()}{after} "  # noqa: S608 - names of ours and literals
                f"ORDER BY at {order}, id {order} LIMIT {size}"
            )
            yield from map(_charge_of, page)
            if len(page) < size:
                return
            at, last = int(page[-1][1]), literal(page[-1][0])
            after = f" AND at {sign}= {at} AND (at, id) {sign} ({at}, {last})"  # the first lets it skip what was before
            left = None if left is None else left - size

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Whether each entry can be read and its lines add up.

        Raises:
            StoreError: when the server cannot be read.
        """
        return verify_rows(cast("Ledger", self), progress)

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - frozen
        """Sums per key and currency, added up by ClickHouse entry by entry.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the server cannot be read.
        """
        keys = group_keys(by)
        return self._asked(
            [_entries(self._source, _keys(keys), _where(query, (query.since_ns, query.until_ns)))], len(keys)
        )

    def close(self) -> None:
        """Let go of connections, or of the directory. A later call takes them again."""
        self._bare.close()

    def _asked(self, parts: Sequence[str], keys: int) -> list[Group]:
        rows = self._link.query(_summary(parts, keys)) if parts else []
        return sorted((_group(row, keys) for row in rows), key=lambda group: (group.key, group.currency))

    def _span(self, only: str = "1") -> tuple[int, int | None, int | None]:
        """How many entries, and the first and last moment."""
        ((entries, first, last),) = self._link.query(
            f"SELECT count(), min(at), max(at) FROM {self._source} WHERE {only}"  # noqa: S608 - names of ours
        )
        return (int(entries), int(first), int(last)) if int(entries) else (0, None, None)


class ClickHouseView(_Reader):
    """A view over what an OpenTelemetry Collector has written (see `aifinops.ledger.otel_views`), as a ledger that can only be read.

    Args:
        link: the way to the collector's database. view: name of the view.

    Raises:
        ConfigurationError: when the name is none. StoreError: when the view cannot be read.
    """

    def __init__(self, link: Link, view: str) -> None:
        if not _NAME.fullmatch(view):
            raise ConfigurationError(f"view={view!r} is no name of a view here; use letters, digits and _")
        super().__init__(link, view)
        self.capabilities = Capabilities(durable=True, shared=link.shared, verifies=True)
        where = f"database = {literal(self._db)} AND name = {literal(view)}"
        if not link.query(f"SELECT name FROM system.tables WHERE {where}"):  # noqa: S608 - literals
            raise ConfigurationError(f"there is no view {view!r} at {link.location}; make it with what aifinops ledger sql --otel prints")  # fmt: skip

    def append(self, charge: Charge) -> bool:
        """Not here.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"{self._bare.location} is read from a collector's tables; send charges to the collector: AIFINOPS_LEDGER=otlp://collector:4318")  # fmt: skip

    def enqueue(self, charge: Charge) -> None:
        """Not here.

        Raises:
            StoreError: always.
        """
        self.append(charge)

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Not here, but for nothing.

        Raises:
            StoreError: for any charge.
        """
        return sum(map(self.append, charges))

    def info(self) -> LedgerInfo:
        """Where and how much.

        Raises:
            StoreError: when the server cannot be read.
        """
        return LedgerInfo(f"{self._bare.kind} view", self._bare.location, SCHEMA, *self._span(), 0)

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Not here.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("a collector's tables cannot be compacted from here; its exporter has a setting ttl")

    def reset_after_fork(self) -> None:
        """In a forked child: no connections."""
        self._bare.reset_after_fork()


_Found = TypeVar("_Found")


class ClickHouseLedger(_Reader):
    """Charges in tables of a ClickHouse database (`aifinops_...`), which are made where they are not there.

    Args:
        link: the way to it, see `open_url`. quiet_s: see `QUIET_S`; less only where no other process writes.
        lease_s: how long another one's compaction may stand still before this one takes over, seconds.
        create: False refuses a database without our tables.

    Raises:
        ConfigurationError: when the tables are of a newer version or not there.
        StoreError: when the server cannot be reached and `create` is False; otherwise the first operation tries again.
    """

    def __init__(
        self, link: Link, *, quiet_s: float = QUIET_S, lease_s: float = compaction.LEASE_S, create: bool = True
    ) -> None:
        super().__init__(link, f"{_TABLE} FINAL")
        self._quiet_s = quiet_s
        self._lease_s = lease_s
        self._gone: Gone | None = None
        self._lock = threading.RLock()
        self.capabilities = Capabilities(durable=True, shared=link.shared, compacts=True, verifies=True)
        self._ready = False
        try:
            self._get_ready(create=create)
        except StoreError:
            if not create:
                raise
            # A server that is away must not keep a program from starting: what it spends waits in the spool.

    # --- writing ----------------------------------------------------------------------------------------------------------

    def append(self, charge: Charge) -> bool:
        """Keep one entry; False when its id was known. ClickHouse wants batches: one by one is slow.

        Raises:
            StoreError: when the server cannot be reached or refuses it. OverflowError: for a number beyond 64 bits.
        """
        return self.append_many((charge,)) == 1

    def enqueue(self, charge: Charge) -> None:
        """`append`, for who does not care whether the id was known."""
        self.append_many((charge,))

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several; how many were new, as far as could be seen before.

        Up to 100,000 entries of one month are one insertion, which is done or not. Where there are more, some may be in after an error:
        the same entries may be given again.

        Raises:
            StoreError: when not all were kept. OverflowError: for a number beyond 64 bits.
        """
        for charge in charges:
            if not fits(charge):
                raise OverflowError(f"charge {charge.id} has a number beyond 64 bits")
        with self._lock:
            batches = (charges[start : start + _BATCH] for start in range(0, len(charges), _BATCH))
            return sum(map(self._insert, batches))

    def _insert(self, charges: Sequence[Charge]) -> int:
        first: dict[str, Charge] = {}
        for charge in charges:
            first.setdefault(charge.id, charge)
        for known in self._known(first):
            del first[known]
        if not first:
            return 0
        hours = sorted({charge.at // HOUR_NS * HOUR_NS for charge in first.values()})
        rows = _payload(first.values())
        begun = time.monotonic()
        self._touch(hours)
        self._link.insert(f"{self._db}.aifinops_charges", _INSERTED, rows)
        if time.monotonic() - begun > self._quiet_s / 2:
            self._touch(hours)  # it took so long that somebody may have rolled the hours up meanwhile
        return len(first)

    def _known(self, ids: Iterable[str]) -> list[str]:
        written = ", ".join(literal(_utf8(one)) for one in ids)
        # First entries, then what is gone: an id is written there before its entry is deleted.
        selects = (f"SELECT DISTINCT id FROM {self._db}.{table} WHERE id IN ({written})" for table in (_TABLE, "aifinops_gone"))  # fmt: skip  # noqa: S608 - literals
        return list(dict.fromkeys(row[0] for select in selects for row in self._link.query(select)))

    def _touch(self, hours: Sequence[int]) -> None:
        mark = int.from_bytes(os.urandom(8), "big")
        rows = "\n".join(f"[{at}, 1, {mark}]" for at in hours)
        self._link.insert(f"{self._db}.aifinops_touches", ("at", "times", "mark"), rows.encode())

    # --- adding up --------------------------------------------------------------------------------------------------------

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - frozen
        """Sums per key and currency, added up by ClickHouse: from hourly roll-ups where these have all that is asked for.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the server cannot be read.
        """
        keys = group_keys(by)
        filters = query.filters()
        if any(not values for _, values in filters):
            return []  # no value is allowed, so that nothing matches
        return self._steadily(lambda gone: self._answer(query, keys, gone), query, keys)

    def _answer(self, query: Query, keys: Sequence[GroupKey], gone: Gone) -> list[Group]:
        period = period_of(query)
        only = left(self._db, gone)
        if not period.whole or not answered_by_cells(keys, query.filters()):
            where = f"{_where(query, (query.since_ns, query.until_ns))} AND {only}"
            return self._asked([_entries(self._source, _keys(keys), where)], len(keys))
        hours = self._rolled(period, gone)
        parts = _rolled_parts(self._db, query, keys, period, hours, only)
        return self._asked([*parts, *_gone_parts(self._db, query, keys, period, gone)], len(keys))

    def _one_by_one(self, query: Query, by: Sequence[str]) -> list[Group]:
        """A summary without roll-ups, but for those of what is gone."""
        keys = group_keys(by)

        def answer(gone: Gone) -> list[Group]:
            where = _where(query, (query.since_ns, query.until_ns))
            parts = [_entries(self._source, _keys(keys), f"{where} AND {left(self._db, gone)}")]
            return self._asked([*parts, *_daily(self._db, _keys(keys), gone, where)], len(keys))

        return self._steadily(answer, query, keys)

    def _steadily(self, ask: Callable[[Gone], _Found], query: Query, keys: Sequence[GroupKey]) -> _Found:
        """What is found when nothing is compacted between the look at what is gone and the end of the question."""
        for _ in range(_TRIES):
            gone = self._gone
            if (
                gone is not None
            ):  # what was known at the last question; if it still holds in the end, it has held all the time
                check_compacted(query, keys, gone.first, gone.until)
                found = ask(gone)
                if self._holds(gone):
                    return found
            self._gone = gone_of(self._link, self._db)
        raise StoreError(f"the ledger {self._bare.location} is compacted faster than it can answer; ask again when that is done, or for a shorter period")  # fmt: skip

    def _holds(self, gone: Gone) -> bool:
        return step_of(self._link, self._db) // 2 == gone.step // 2  # to begin with a build changes nothing

    def _only(self) -> str:
        gone = self._gone
        if gone is None or not self._holds(gone):
            gone = self._gone = gone_of(self._link, self._db)
        return left(self._db, gone)

    def info(self) -> LedgerInfo:
        """Where, schema, entries, period and bytes on disk (0 where `system.parts` must not be read).

        Raises:
            StoreError: when the server cannot be read.
        """
        size = self._size()
        gone, (entries, first, last) = self._steadily(
            lambda gone: (gone, self._span(left(self._db, gone))), Query(), ()
        )
        first = min((at for at in (first, gone.first_at) if at is not None), default=None)
        last = max((at for at in (last, gone.last_at) if at is not None), default=None)
        return LedgerInfo(
            self._link.kind,
            self._link.location,
            self._version() or 0,
            entries + gone.entries,
            first,
            last,
            size,
            gone.entries,
            gone.until,
        )

    def _size(self) -> int:
        try:
            ((size,),) = self._link.query(
                f"SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = {literal(self._db)} AND startsWith(table, 'aifinops_')"  # noqa: S608 - a literal
            )
        except StoreError:
            return 0
        return int(size)

    # --- roll-ups ---------------------------------------------------------------------------------------------------------

    def roll_up(self) -> int:
        """Roll up all quiet hours that have changed; how many there were. Reports do it by themselves.

        Raises:
            StoreError: when the server cannot be written.
        """
        self._settle()
        gone = gone_of(self._link, self._db)
        stale = [hour for hour in self._hours() if not hour.build and hour.quiet and not _of(hour, gone)]
        self._roll_up(stale)
        return len(stale)

    def _rolled(self, period: Period, gone: Gone) -> list[_Hour]:
        """The hours of a period that are of no compacted day, rolled up where that can be."""
        lately = self._settle()
        hours = [hour for hour in self._hours() if _within(hour.at, period) and not _of(hour, gone)]
        stale = [hour for hour in hours if not hour.build and hour.quiet]
        if stale:
            with suppress(
                StoreError
            ):  # who may only read adds up entries; a server that is away fails the question itself
                self._roll_up(stale)
            hours = [hour for hour in self._hours() if _within(hour.at, period) and not _of(hour, gone)]
        return [hour._replace(build=0) if hour.at in lately else hour for hour in hours]

    def _settle(self) -> set[int]:
        """Touch the hours of what was corrected, once no correction of that time can be on its way any more.

        Returns:
            Hours whose roll-ups may have been made without a correction.
        """
        ((until, now),) = self._link.query(
            f"SELECT (SELECT max(until) FROM {self._db}.aifinops_corrections), toUnixTimestamp64Nano(now64(9))"  # noqa: S608 - names of ours
        )
        since, cut = int(until), int(now) - int(self._quiet_s * 1e9)
        old, new = self._corrected(since, cut), self._corrected(max(since, cut), None)
        if old:
            try:
                self._touch(sorted(old))
                self._link.insert(f"{self._db}.aifinops_corrections", ("until",), f"[{cut}]".encode())
            except StoreError:
                return old | new  # as in `_rolled`
        return new

    def _corrected(self, since: int, until: int | None) -> set[int]:
        """The hours of unsure entries whose corrections were kept in a period."""
        kept = f"corrects <> '' AND amount IS NOT NULL AND {_KEPT} >= {since}" + (f" AND {_KEPT} < {until}" if until is not None else "")  # fmt: skip
        table = f"{self._db}.{_TABLE}"
        ((count,),) = self._link.query(f"SELECT count() FROM {table} WHERE {kept}")  # noqa: S608 - names of ours and integers
        if count == "0":
            return set()
        rows = self._link.query(
            f"SELECT DISTINCT at - at % {HOUR_NS} FROM {table} WHERE uncertain AND id IN (SELECT corrects FROM {table} WHERE {kept})"  # noqa: S608 - names of ours and integers
        )
        return {int(at) for (at,) in rows}

    def _hours(self) -> list[_Hour]:
        rows = self._link.query(f"""
            SELECT touched.at, touched.times, touched.mark,
                if(built.times = touched.times AND built.mark = touched.mark, built.build, 0),
                touched.last < now64(3) - toIntervalMillisecond({int(self._quiet_s * 1000)})
            FROM (SELECT at, sum(times) AS times, sum(mark) AS mark, max(last) AS last FROM {self._db}.aifinops_touches GROUP BY at) AS touched
            LEFT JOIN (SELECT at, build, times, mark FROM {self._db}.aifinops_builds FINAL) AS built ON touched.at = built.at
            ORDER BY touched.at""")  # noqa: S608 - names of ours
        return [
            _Hour(int(at), int(times), int(mark), int(build), bool(quiet)) for at, times, mark, build, quiet in rows
        ]

    def _roll_up(self, hours: Sequence[_Hour]) -> None:
        for start in range(0, len(hours), _HOURS):
            self._build(hours[start : start + _HOURS])

    def _build(self, hours: Sequence[_Hour]) -> None:
        """Roll some hours up. Their touches were read before, the entries are read now: what comes in between makes the roll-up wrong,
        and is seen by its touch."""
        build = time.time_ns() // 1000 * 1000 + int.from_bytes(os.urandom(2), "big") % 1000  # newer ones are greater
        entries = _entries(self._source, _cell_keys(f"at - at % {HOUR_NS}"), _in(hours))
        self._link.command(_add_up(f"{self._db}.aifinops_hourly", build, entries))
        rows = "\n".join(f"[{hour.at}, {build}, {hour.times}, {hour.mark}]" for hour in hours)
        self._link.insert(f"{self._db}.aifinops_builds", ("at", "build", "times", "mark"), rows.encode())

    # --- care --------------------------------------------------------------------------------------------------------------

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Turn sure entries of whole days (UTC) before a moment into daily roll-ups; see `aifinops.ledger.base.Ledger`.

        A step is a day, or an hour where a day has more than half a million entries. Nobody waits for it but who compacts as well. When one was
        killed, the next waits a minute and a half before it takes over. `freed_bytes` is what is free when it returns: of months that are
        compacted as a whole. The engine gives the rest back when it merges parts.

        Raises:
            StoreError: when the server cannot be written, or somebody else has taken over.
        """
        until = start_of(before_ns, DAY_NS)
        before, old = self._size(), self._older(until)
        run = compaction.Run(self._link, self._db, until, self._daily_statement, lease_s=self._lease_s)
        for _ in run.steps():
            if progress is not None:
                progress(run.entries, max(old, run.entries))
        with suppress(StoreError):  # who must not look at parts leaves that to the engine
            run.make_room()
        return Compaction(run.entries, self._older(until), run.since, until, max(0, before - self._size()))

    def _daily_statement(self, build: int, day: int, where: str) -> str:
        keys, source = _cell_keys(f"toInt64({day})"), self._source
        entries = f"SELECT {keys}, {_SURE_SUMS}, {_SURE_MORE} FROM {source} WHERE {where}"  # noqa: S608 - names of ours and literals
        return _add_up(f"{self._db}.{compaction.DAILY}", build, entries)

    def _older(self, until: int) -> int:
        """Entries of that time that are not compacted."""
        return self._steadily(lambda gone: self._span(f"at < {until} AND {left(self._db, gone)}")[0], Query(), ())

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Whether each entry can be read, its lines add up, and roll-ups are the sums of entries.

        Raises:
            StoreError: when the server cannot be read.
        """
        return verify_days(super().verify(progress=progress), self.summarize, self._one_by_one)

    def migrate(self, *, anew: bool = False, progress: Progress | None = None) -> int:
        """Roll up all quiet hours that have changed, or with `anew` all of them; how many hours there were.

        Raises:
            StoreError: when the server cannot be written.
        """
        if anew:
            self._touch([hour.at for hour in self._hours()])
        count = self.roll_up()
        if progress is not None:
            progress(count, count)
        return count

    # --- life -------------------------------------------------------------------------------------------------------------

    @property
    def _link(self) -> Link:
        """The way to it, once its tables are known to be there."""
        if not self._ready:
            self._get_ready(create=True)
        return self._bare

    def _get_ready(self, *, create: bool) -> None:
        version = self._version()
        if version is None and not create:
            raise ConfigurationError(
                f"there is no ledger at {self._bare.location}; make the first metered call, or correct AIFINOPS_LEDGER"
            )
        if version is None or version < SCHEMA:
            self._migrate(version or 0)
        elif version > SCHEMA:
            raise ConfigurationError(
                f"the ledger {self._bare.location} has schema {version}; this one knows up to {SCHEMA}: pip install --upgrade aifinops"
            )
        self._ready = True

    def _version(self) -> int | None:
        """None when it is not there, or is not yet whole."""
        where = f"database = {literal(self._db)} AND name = 'aifinops_schema'"
        if not self._bare.query(f"SELECT name FROM system.tables WHERE {where}"):  # noqa: S608 - a literal
            return None
        ((version,),) = self._bare.query(f"SELECT max(version) FROM {self._db}.aifinops_schema")  # noqa: S608 - names of ours
        return int(version) or None

    def _migrate(self, version: int) -> None:
        if not self._bare.query(f"SELECT name FROM system.databases WHERE name = {literal(self._db)}"):  # noqa: S608 - a literal
            self._bare.command(f"CREATE DATABASE IF NOT EXISTS {self._db}")
        self._bare.command(_VERSIONS.format(db=self._db))
        for number, migration in enumerate(_MIGRATIONS[version:], version + 1):
            for statement in migration:
                self._bare.command(statement.format(db=self._db))
            self._bare.insert(f"{self._db}.aifinops_schema", ("version",), f"[{number}]".encode())

    def reset_after_fork(self) -> None:
        """In a forked child: a new lock and no connections."""
        self._lock = threading.RLock()
        self._bare.reset_after_fork()


# --- rows ---------------------------------------------------------------------------------------------------------------

_INSERTED = (*COLUMNS, "names", "values", "odd")
_QUANTITIES = COLUMNS.index("quantities")
_TAGS = COLUMNS.index("tags")
_INTEGER_PLACES = frozenset(
    place for place, name in enumerate(COLUMNS) if name in ("at", "duration") or name in _NULLABLE_INTEGERS
)
_ROOM = Decimal(10) ** 44  # two digits are left for the sum
_dump = json.JSONEncoder(separators=(",", ":")).encode
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _payload(charges: Iterable[Charge]) -> bytes:
    """A line of JSON for each, with every text in UTF-8."""
    return "\n".join(map(_line, charges)).encode()


def _line(charge: Charge) -> str:
    row = row_of(charge)
    values = [*row, *_more(row[_QUANTITIES])]
    text = _dump(values)
    return _dump(_clean(values)) if _HALF.search(text) else text


def _clean(values: list[Any]) -> list[Any]:
    cleaned = list(clean_text(values))
    if cleaned[_TAGS] is not None:
        tags = json.loads(cleaned[_TAGS])
        cleaned[_TAGS] = _dump(dict(zip(tags, clean_text(list(tags.values())), strict=True)))
    return cleaned


def _more(text: str | None) -> tuple[list[str], list[str], list[str]]:
    if text is None:
        return [], [], []
    names, values = list[str](), list[str]()
    odd: dict[str, str] = {}
    for name, value in load_quantities(text).items():
        if _has_form(value):
            names.append(name)
            values.append(f"{Decimal(value):f}")
        else:
            odd[name] = str(value)
    return names, values, [_dump(odd)] if odd else []


def _has_form(value: Quantity) -> bool:
    """Whether a Decimal(76, 30) has it to the last digit, with room for sums."""
    number = Decimal(value)
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= -30 and abs(number) < _ROOM


def _charge_of(row: list[Any]) -> Charge:
    for place in _INTEGER_PLACES:
        if row[place] is not None:
            row[place] = int(row[place])
    return charge_of(row)


# --- questions ------------------------------------------------------------------------------------------------------------

_FORMATS = {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H"}
_SURE, _UNSURE = sums_of_entry("toInt128({})", "toInt128({})")
_UNPRICED = "amount IS NULL AND corrects = ''"


def _zero(name: str) -> str:
    return "CAST(NULL AS Nullable(Int128))" if name in METER_COLUMNS else "toInt128(0)"


def _sure(name: str) -> str:
    if name in METER_COLUMNS:
        return f"toInt128({name})"  # a sum in 64 bits would start over at its end, and not say so
    return _zero(name) if _SURE[name] == "0" else _SURE[name]


_SURE_SUMS = ", ".join(f"{_sure(name)} AS s_{name}" for name in SUMS)
_UNSURE_SUMS = ", ".join(f"{_UNSURE.get(name, _zero(name))} AS s_{name}" for name in SUMS)
_CELL_SUMS = ", ".join(f"{name} AS s_{name}" for name in SUMS)


def _sum(name: str) -> str:
    return "sumOrNull" if name in METER_COLUMNS else "sum"


def _dimension(name: str) -> str:
    return f"coalesce({name}, '')" if name in TAG_COLUMNS else name


def _expression(key: GroupKey) -> str:
    """SQL for a key; the same for entries and for cells."""
    if key.kind == "time":
        return f"formatDateTime(fromUnixTimestamp64Nano(at, 'UTC'), {literal(_FORMATS[key.source])})"
    if key.kind == "field" or key.source in TAG_COLUMNS:
        return _dimension(key.source)
    return f"JSONExtractString(coalesce(tags, ''), {literal(key.source)})"


def _where(query: Query, period: tuple[int | None, int | None]) -> str:
    conditions = ["1"]
    for value, operator in zip(period, (">=", "<"), strict=True):
        if value is not None:
            conditions.append(f"at {operator} {value}")
    for key, values in query.filters():
        written = ", ".join(literal(_utf8(value)) for value in values)
        conditions.append(f"{_expression(key)} IN ({written})" if values else "0")
    return " AND ".join(conditions)


def _keys(keys: Sequence[GroupKey]) -> str:
    found = [f"toString({_expression(key)}) AS k{place}" for place, key in enumerate(keys)]
    return ", ".join([*found, "toString(currency) AS money"])


_NOTHING = "CAST([] AS Array(String)) AS {}, CAST([] AS Array(Decimal(76, 30))) AS {}, CAST([] AS Array(String)) AS {}"
_SURE_MORE = "names AS q_names, values AS q_values, odd AS q_odd, " + _NOTHING.format("u_names", "u_values", "u_odd")
_UNSURE_MORE = (
    _NOTHING.format("q_names", "q_values", "q_odd")
    + f", if({_UNPRICED}, names, []) AS u_names, if({_UNPRICED}, values, []) AS u_values, if({_UNPRICED}, odd, []) AS u_odd"
)
_CELL_MORE = "names AS q_names, values AS q_values, odd AS q_odd, unpriced_names AS u_names, unpriced_values AS u_values, unpriced_odd AS u_odd"


def _entries(source: str, keys: str, where: str) -> str:
    """The sums of entries one by one.

    Args:
        source: the table, with `FINAL` where it may have an entry twice. keys: what is selected beside the sums. where: which.
    """
    sure = f"SELECT {keys}, {_SURE_SUMS}, {_SURE_MORE} FROM {source} WHERE {where}"  # noqa: S608 - names of ours and literals
    return f"{sure} UNION ALL {_uncertain(source, keys, where)}"


def _uncertain(source: str, keys: str, where: str) -> str:
    """What unsure entries add to the sums of entries that were all taken for sure."""
    every = source.removesuffix(" FINAL")  # a correction that is there twice corrects no more than once
    fixes = f"SELECT corrects FROM {every} WHERE corrects <> '' AND amount IS NOT NULL"  # noqa: S608 - names of ours
    return (
        f"SELECT {keys}, {_UNSURE_SUMS}, {_UNSURE_MORE} FROM {source} "  # noqa: S608 - names of ours and literals
        f"WHERE uncertain AND id NOT IN ({fixes}) AND {where}"
    )


def _added(one: str) -> str:
    """Names, sums and odd ones of quantities. The engine leaves a sum of zero out, which is put in again."""
    put_in = f"if(has(m_{one}.1, name), m_{one}.2[indexOf(m_{one}.1, name)], toDecimal256(0, 30))"
    return (
        f"groupUniqArrayArray({one}_names) AS n_{one}, "
        f"arrayMap(name -> (sumMap({one}_names, {one}_values) AS m_{one}, {put_in}).2, n_{one}), groupArrayArray({one}_odd)"
    )


def _cell_keys(at: str) -> str:
    return ", ".join([f"{at} AS start", *(f"{_dimension(name)} AS d_{name}" for name in DIMENSIONS)])


def _add_up(table: str, build: int, entries: str) -> str:
    """The statement that writes cells: the sums of `entries` by `_cell_keys`."""
    more = ", ".join(f"{name}{column}" for name in ("", "unpriced_") for column in ("names", "values", "odd"))
    dimensions = ", ".join(f"d_{name}" for name in DIMENSIONS)
    sums = ", ".join(f"{_sum(name)}(s_{name})" for name in SUMS)
    added = ", ".join(_added(one) for one in "qu")
    return (
        f"INSERT INTO {table} (at, build, {', '.join((*DIMENSIONS, *SUMS))}, {more}) "  # noqa: S608 - names of ours and integers
        f"SELECT start, {build}, {dimensions}, {sums}, {added} FROM ({entries}) GROUP BY start, {dimensions} "
        "SETTINGS do_not_merge_across_partitions_select_final = 1, max_query_size = 16777216"
    )


def _of(hour: _Hour, gone: Gone) -> bool:
    """Whether an hour is of a compacted day."""
    return start_of(hour.at, DAY_NS) in gone.days


def _gone_parts(db: str, query: Query, keys: Sequence[GroupKey], period: Period, gone: Gone) -> list[str]:
    """What to add up of compacted days: their sums, and the entries that are left. A question has such days as a whole or not at all."""
    days = sorted(day for day in gone.days if _within(day, period))
    if not days:
        return []
    filters = _where(query, (period.first, period.last))
    entries = f"at >= {days[0]} AND at < {days[-1] + DAY_NS} AND at - at % {DAY_NS} IN ({', '.join(map(str, days))})"
    selected = _keys(keys)
    return [
        _entries(f"{db}.{_TABLE} FINAL", selected, f"{entries} AND {filters} AND {left(db, gone)}"),
        *_daily(db, selected, gone, filters),
    ]


def _daily(db: str, selected: str, gone: Gone, where: str) -> list[str]:
    if not gone.builds:
        return []
    builds = ", ".join(map(str, gone.builds))
    return [f"SELECT {selected}, {_CELL_SUMS}, {_CELL_MORE} FROM {db}.{compaction.DAILY} WHERE build IN ({builds}) AND {where}"]  # fmt: skip  # noqa: S608 - names of ours and literals


def _rolled_parts(
    db: str, query: Query, keys: Sequence[GroupKey], period: Period, hours: Sequence[_Hour], only: str
) -> list[str]:
    """What to add up: cells of the hours that have a right roll-up, entries of the others and of the ends."""
    source = f"{db}.{_TABLE} FINAL"
    rolled = [hour for hour in hours if hour.build]
    others = [hour for hour in hours if not hour.build]
    filters = _where(query, (None, None))
    selected = _keys(keys)
    parts = []
    if rolled:
        builds = ", ".join(f"({hour.at}, {hour.build})" for hour in rolled)
        parts.append(f"SELECT {selected}, {_CELL_SUMS}, {_CELL_MORE} FROM {db}.aifinops_hourly WHERE (at, build) IN ({builds}) AND {filters}")  # fmt: skip  # noqa: S608 - names of ours and literals
    if others:
        parts.append(_entries(source, selected, f"{_in(others)} AND {filters} AND {only}"))
    parts += [_entries(source, selected, f"{_where(query, end)} AND {only}") for end in period.ends]
    return parts


def _within(at: int, period: Period) -> bool:
    return (period.first is None or at >= period.first) and (period.last is None or at < period.last)


def _in(hours: Sequence[_Hour]) -> str:
    """SQL: an entry is of one of these hours, which are in order."""
    ranges: list[tuple[int, int]] = []
    for hour in hours:
        if ranges and ranges[-1][1] == hour.at:
            ranges[-1] = (ranges[-1][0], hour.at + HOUR_NS)
        else:
            ranges.append((hour.at, hour.at + HOUR_NS))
    if len(ranges) <= _RANGES:
        return "(" + " OR ".join(f"(at >= {start} AND at < {end})" for start, end in ranges) + ")"
    every = ", ".join(str(hour.at) for hour in hours)
    return f"at >= {ranges[0][0]} AND at < {ranges[-1][1]} AND at - at % {HOUR_NS} IN ({every})"


def _summary(parts: Sequence[str], keys: int) -> str:
    grouping = ", ".join([*(f"k{place}" for place in range(keys)), "money"])
    sums = ", ".join(f"{_sum(name)}(s_{name})" for name in SUMS)
    more = ", ".join(
        f"groupUniqArrayArray({one}_names), sumMap({one}_names, {one}_values), groupArrayArray({one}_odd)"
        for one in "qu"
    )
    return f"SELECT {grouping}, {sums}, {more} FROM ({' UNION ALL '.join(parts)}) GROUP BY {grouping}"  # noqa: S608 - names of ours and literals


def _group(row: Sequence[Any], keys: int) -> Group:
    values = row[keys + 1 :]
    sums = {name: None if value is None else int(value) for name, value in zip(SUMS, values, strict=False)}
    q_names, q_sums, q_odd, u_names, u_sums, u_odd = values[len(SUMS) :]
    return group_of(
        row[:keys], row[keys], sums, _quantities(q_names, q_sums, q_odd), _quantities(u_names, u_sums, u_odd)
    )


def _quantities(names: list[str], sums: list[list[str]], odd: list[str]) -> list[dict[str, Quantity]]:
    """The engine leaves a sum of zero out, so names come apart."""
    found: dict[str, Quantity] = dict.fromkeys(names, 0)
    found.update((name, _number(value)) for name, value in zip(*sums, strict=True))
    return [found, *map(load_sums, odd)]


def _number(text: str) -> Quantity:
    return Decimal(text) if "." in text else int(text)
