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

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast
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
    earliest,
    group_keys,
    latest,
    paged,
    start_of,
    verify_rows,
)
from aifinops.ledger.clickhouse_compaction import CHARGES, DAILY, Gone, gone_of, left, step_of
from aifinops.ledger.clickhouse_link import Link, literal, open_link
from aifinops.ledger.clickhouse_rollups import Rollups, daily_parts, gone_parts, rolled_parts
from aifinops.ledger.clickhouse_statements import (
    INSERTED,
    MIGRATIONS,
    VERSIONS,
    add_up,
    cell_keys,
    entries_of,
    keys_of,
    payload,
    read_charge,
    read_group,
    summary,
    sure_entries,
    utf8,
    where_of,
)
from aifinops.ledger.codec import COLUMNS
from aifinops.ledger.sql import answered_by_cells, check_numbers, check_version, period_of, verify_days

__all__ = ["QUIET_S", "SCHEMA", "ClickHouseLedger", "ClickHouseView", "open_url"]

SCHEMA = 1
"""Version of the tables."""
assert len(MIGRATIONS) == SCHEMA  # noqa: S101 - one for each version

QUIET_S = 300.0
"""How long nobody must have touched an hour before it is rolled up, seconds: longer than any insertion takes."""

TIMEOUT_S = 60.0
_PAGE = 5000
_BATCH = 100_000
_TRIES = 30
"""How often a question is asked again because something was compacted meanwhile."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


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
        where = where_of(query, (query.since_ns, query.until_ns))
        sign, order = ("<", "DESC") if query.newest_first else (">", "ASC")

        def page_of(last: list[Any] | None, size: int) -> list[list[Any]]:
            after = ""
            if last is not None:
                at, id = int(last[1]), literal(last[0])
                after = (
                    f" AND at {sign}= {at} AND (at, id) {sign} ({at}, {id})"  # the first lets it skip what was before
                )
            return self._link.query(
                f"SELECT {', '.join(COLUMNS)} FROM {self._source} WHERE {where} AND {self._only()}{after} "  # noqa: S608 - names of ours and literals
                f"ORDER BY at {order}, id {order} LIMIT {size}"
            )

        return map(read_charge, paged(query, _PAGE, page_of))

    def _only(self) -> str:
        """SQL: which entries of the table count."""
        return "1"

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
            [entries_of(self._source, keys_of(keys), where_of(query, (query.since_ns, query.until_ns)))], len(keys)
        )

    def close(self) -> None:
        """Let go of connections, or of the directory. A later call takes them again."""
        self._bare.close()

    def _asked(self, parts: Sequence[str], keys: int) -> list[Group]:
        rows = self._link.query(summary(parts, keys)) if parts else []
        return sorted((read_group(row, keys) for row in rows), key=lambda group: (group.key, group.currency))

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
        super().__init__(link, f"{CHARGES} FINAL")
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
        check_numbers(charges)
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
        rows = payload(first.values())
        begun = time.monotonic()
        self._rollups.touch(hours)
        self._link.insert(f"{self._db}.{CHARGES}", INSERTED, rows)
        if time.monotonic() - begun > self._quiet_s / 2:
            self._rollups.touch(hours)  # it took so long that somebody may have rolled the hours up meanwhile
        return len(first)

    def _known(self, ids: Iterable[str]) -> list[str]:
        written = ", ".join(literal(utf8(one)) for one in ids)
        # First entries, then what is gone: an id is written there before its entry is deleted.
        selects = (f"SELECT DISTINCT id FROM {self._db}.{table} WHERE id IN ({written})" for table in (CHARGES, "aifinops_gone"))  # fmt: skip  # noqa: S608 - literals
        return list(dict.fromkeys(row[0] for select in selects for row in self._link.query(select)))

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
            where = f"{where_of(query, (query.since_ns, query.until_ns))} AND {only}"
            return self._asked([entries_of(self._source, keys_of(keys), where)], len(keys))
        hours = self._rollups.within(period, gone)
        parts = rolled_parts(self._db, query, keys, period, hours, only)
        return self._asked([*parts, *gone_parts(self._db, query, keys, period, gone)], len(keys))

    def _one_by_one(self, query: Query, by: Sequence[str]) -> list[Group]:
        """A summary without roll-ups, but for those of what is gone."""
        keys = group_keys(by)

        def answer(gone: Gone) -> list[Group]:
            where = where_of(query, (query.since_ns, query.until_ns))
            parts = [entries_of(self._source, keys_of(keys), f"{where} AND {left(self._db, gone)}")]
            return self._asked([*parts, *daily_parts(self._db, keys_of(keys), gone, where)], len(keys))

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
        return LedgerInfo(
            self._link.kind,
            self._link.location,
            self._version() or 0,
            entries + gone.entries,
            earliest(first, gone.first_at),
            latest(last, gone.last_at),
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
        return self._rollups.roll_up(gone_of(self._link, self._db))

    @property
    def _rollups(self) -> Rollups:
        return Rollups(self._link, self._quiet_s)

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
        entries = sure_entries(self._source, cell_keys(f"toInt64({day})"), where)
        return add_up(f"{self._db}.{DAILY}", build, entries)

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
            self._rollups.touch([hour.at for hour in self._rollups.hours()])
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
        check_version(self._bare.location, version, SCHEMA, create=create)
        if version is None or version < SCHEMA:
            self._migrate(version or 0)
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
        self._bare.command(VERSIONS.format(db=self._db))
        for number, migration in enumerate(MIGRATIONS[version:], version + 1):
            for statement in migration:
                self._bare.command(statement.format(db=self._db))
            self._bare.insert(f"{self._db}.aifinops_schema", ("version",), f"[{number}]".encode())

    def reset_after_fork(self) -> None:
        """In a forked child: a new lock and no connections."""
        self._lock = threading.RLock()
        self._bare.reset_after_fork()
