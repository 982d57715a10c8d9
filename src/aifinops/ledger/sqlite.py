"""The default ledger: one SQLite file, in WAL mode, that any number of processes may write.

`append` is one statement in its own transaction, on the caller's thread; `enqueue`, which metered calls use, writes a line to a
journal beside the file (see `aifinops.ledger.journal`) and puts lines into the tables by the hundred. When either has returned, the
entry is in the operating system's hands and survives a SIGKILL (https://www.sqlite.org/pragma.html#pragma_synchronous; with
`synchronous=NORMAL` a power failure may take the newest entries but never damages the file).

Checkpoints run inside the transactions, by SQLite's default one every 1,000 pages. Measured with these tables: 3 to 5 ms once in
some 330 entries, 18 us for the median entry. A checkpointing thread took those milliseconds off the one call but tripled
the median under load, because a log that is written while it is copied never starts over and always needs new pages;
rarer checkpoints (4,000 and 10,000 pages) are little cheaper on average and take 14 and 30 ms each.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.files import BUSY_S, Database, Kind
from aifinops.ledger.base import (
    Capabilities,
    Compaction,
    Filters,
    Group,
    GroupKey,
    LedgerInfo,
    Progress,
    Query,
    Verification,
    add_quantities,
    group_keys,
    verify_rows,
)
from aifinops.ledger.codec import (
    COLUMNS,
    METER_COLUMNS,
    TAG_COLUMNS,
    charge_of,
    clean_text,
    dump_quantities,
    load_quantities,
    packed,
    row_of,
)
from aifinops.ledger.journal import AVAILABLE, Foreign, Journal, journals
from aifinops.usage import Quantity, tokens_total

__all__ = ["SCHEMA", "SqliteLedger"]

SCHEMA = 1
"""Version of the tables, kept in `PRAGMA user_version`."""

_PAGE = 1000

_INT64 = 2**63 - 1

FOLD = 100
"""Entries in the journal before they are put into the tables."""

_INTEGERS = frozenset({"at", "duration", "amount", "lower", "upper", "stream", *METER_COLUMNS})


def _column(name: str) -> str:
    if name == "id":
        return "id TEXT NOT NULL PRIMARY KEY"
    return f"{name} {'INTEGER' if name in _INTEGERS else 'TEXT'}"


_TABLES = (
    # Not WITHOUT ROWID: it saves a page a write, but a row above a quarter of a page (a long raw answer) costs it three.
    f"CREATE TABLE charges ({', '.join(map(_column, COLUMNS))})",
    "CREATE INDEX charges_at ON charges (at)",
    "CREATE INDEX charges_corrects ON charges (corrects) WHERE corrects <> ''",
)
_KIND = Kind(
    what="ledger",
    first="make the first metered call",
    application=0x41494650,  # "AIFP"
    schema=SCHEMA,
    tables=_TABLES,
    sqlite=(3, 30, 0),  # aggregate FILTER
    elsewhere='AIFINOPS_LEDGER=/path/to/ledger.db, init(ledger="/path/to/ledger.db"), or "memory"',
    memory='keep charges in memory: AIFINOPS_LEDGER="memory"',
)
_NAMES = ", ".join(COLUMNS)
# Not INSERT OR IGNORE: that would also swallow entries that break another rule.
_INSERT = f"INSERT INTO charges ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT (id) DO NOTHING"  # noqa: S608 - only names of ours; values are bound

_TIME_FORMATS = {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H"}


class SqliteLedger:
    """Charges in an SQLite file, made with mode 0600 (its directory 0700) when it is not there.

    Args:
        path: the file. create: False refuses a file that is not there.
        timeout_s: how long a write waits for another process that holds the file, seconds.

    Raises:
        ConfigurationError: naming the path, when it cannot be opened, is no ledger or is of a newer schema.
    """

    capabilities = Capabilities(durable=True, shared=True)

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True, timeout_s: float = BUSY_S) -> None:
        self._file = Database(path, _KIND, create=create, timeout_s=timeout_s)
        self.path = self._file.path
        self._spool = self.path.with_name(f"{self.path.name}-spool")
        self._journal = Journal(self._spool, SCHEMA)
        self._file.in_child = self._journal.abandon
        self._fold_at = FOLD

    # --- writing ------------------------------------------------------------------------------------------------------

    def append(self, charge: Charge) -> bool:
        """Keep one entry; False when its id was known. It survives a SIGKILL once this has returned.

        Raises:
            StoreError: when the file is full, locked for longer than the timeout, or damaged.
        """
        row = row_of(charge)
        with self._file.lock:
            connection = self._file.connection or self._file.open()
            try:
                return _insert(connection, row)
            except sqlite3.Error as error:
                raise self._file.failed(error) from error

    def enqueue(self, charge: Charge) -> None:
        """Keep one entry in the journal; it survives a SIGKILL once this has returned, and every reader finds it.

        Raises:
            StoreError: when the disk is full.
        """
        if not AVAILABLE:
            self.append(charge)
            return
        if not _fits(charge):
            raise OverflowError(f"charge {charge.id} has a number beyond 64 bits")  # it would stand before all others
        entry = packed(charge)
        with self._file.lock:
            try:
                self._journal.append(entry)
            except OSError as error:
                raise self._file.failed(error) from error
            if self._journal.entries >= self._fold_at:
                self._fold_or_wait()

    def _fold_or_wait(self) -> None:
        try:
            self._fold()
        except StoreError:
            # The entries are safe where they are; a file that is locked or full is tried again some entries later.
            self._fold_at = self._journal.entries + FOLD

    def _fold(self) -> None:
        """Put this process's journal into the tables."""
        if not self._journal.entries:
            return
        with self._file.lock:
            connection = self._file.connection or self._file.open()
            try:
                _insert_all(connection, self._journal.read())
                self._journal.clear()
            except (sqlite3.Error, OSError) as error:
                raise self._file.failed(error) from error
            self._fold_at = FOLD

    def _absorb(self) -> None:
        """Put everybody's journals into the tables, before they are read."""
        self._fold()
        for path in journals(self._spool, SCHEMA):
            if not self._journal.owns(path):
                self._absorb_foreign(path)

    def _absorb_foreign(self, path: Path) -> None:
        try:
            foreign = Foreign(path)
        except FileNotFoundError:
            return  # its own process, or another reader, was quicker
        except OSError as error:
            raise self._file.failed(error) from error
        try:
            with self._file.lock:
                _insert_all(self._file.connection or self._file.open(), foreign.rows)
            foreign.done()
        except sqlite3.Error as error:
            raise self._file.failed(error) from error
        finally:
            foreign.close()

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several in one transaction; how many were new.

        Raises:
            StoreError: when none was kept.
        """
        rows = list(map(row_of, charges))
        with self._file.lock:
            connection = self._file.connection or self._file.open()
            try:
                return _insert_all(connection, rows)
            except sqlite3.Error as error:
                raise self._file.failed(error) from error

    # --- reading ------------------------------------------------------------------------------------------------------

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """The entries that match, by time and then by id; read a page at a time, so that memory stays flat.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the file cannot be read.
        """
        where, values = _where(query, query.filters())
        return self._pages(query, where, values)

    def _pages(self, query: Query, where: str, values: list[Any]) -> Iterator[Charge]:
        sign, order = ("<", "DESC") if query.newest_first else (">", "ASC")
        left = query.limit
        last: list[Any] = []
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            after = f" AND (at, id) {sign} (?, ?)" if last else ""
            select = f"SELECT {_NAMES} FROM charges WHERE {where}{after} ORDER BY at {order}, id {order} LIMIT ?"  # noqa: S608 - as above
            page = self._read(select, [*values, *last, size])
            yield from map(charge_of, page)
            if len(page) < size:
                return
            last = [page[-1][1], page[-1][0]]
            left = None if left is None else left - size

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - frozen
        """Sums per key and currency, added up by SQLite.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the file cannot be read.
        """
        keys = group_keys(by)
        where, values = _where(query, query.filters())
        expressions = [_expression(key) for key in keys]
        values = [value for _, bound in expressions for value in bound] + values
        rows = self._sums([text for text, _ in expressions], where, values)
        return sorted((_group(row, len(keys)) for row in rows), key=lambda group: (group.key, group.currency))

    def _sums(self, keys: list[str], where: str, values: list[Any]) -> list[tuple[Any, ...]]:
        try:
            return self._read(_summary(keys, where, "sum"), values)
        except StoreError as error:
            # Beyond 9.2 billion units of a currency SQLite's own sum gives up; the slow one is exact at any size.
            if "integer overflow" not in str(error):
                raise
            return self._read(_summary(keys, where, "exact_sum"), values)

    def info(self) -> LedgerInfo:
        """Path, schema, entries, period and bytes on disk (with the write-ahead log).

        Raises:
            StoreError: when the file cannot be read.
        """
        ((entries,),) = self._read("SELECT count(*) FROM charges", [])
        ((first,),) = self._read("SELECT min(at) FROM charges", [])  # apart, so that each is one step in the index
        ((last,),) = self._read("SELECT max(at) FROM charges", [])
        ((schema,),) = self._read("PRAGMA user_version", [])
        parts = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        size = sum(part.stat().st_size for part in parts if part.exists())
        return LedgerInfo("sqlite", str(self.path), schema, entries, first, last, size)

    def _read(self, select: str, values: list[Any]) -> list[tuple[Any, ...]]:
        self._absorb()
        try:
            with self._file.reading() as connection:
                connection.create_aggregate("quantity_sum", 1, _QuantitySum)
                connection.create_aggregate("exact_sum", 1, _ExactSum)
                return connection.execute(select, values).fetchall()
        except sqlite3.Error as error:
            raise self._file.failed(error) from error

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Not in this version of the file.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(f"{self.path} keeps every entry; it cannot be compacted before {before_ns}")

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Whether each entry can be read and its lines add up."""
        return verify_rows(self, progress)

    # --- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; the last one to close it folds the write-ahead log in. A later call opens it again.

        Raises:
            StoreError: when SQLite cannot close it.
        """
        with self._file.lock:
            try:
                self._fold()
            finally:
                self._journal.close()
            self._file.close()

    def reset_after_fork(self) -> None:
        """In a forked child: fresh locks; the connection was closed before the fork and opens again when needed."""
        self._file.reset_after_fork()


def _fits(charge: Charge) -> bool:
    return all(
        value is None or -_INT64 <= value <= _INT64
        for value in (charge.at, charge.duration, charge.amount, charge.lower, charge.upper)
    )


def _insert(connection: sqlite3.Connection, row: tuple[Any, ...]) -> bool:
    try:
        return connection.execute(_INSERT, row).rowcount == 1
    except UnicodeEncodeError:  # found out by failing: looking through every text would cost every call
        return connection.execute(_INSERT, clean_text(row)).rowcount == 1


def _insert_all(connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> int:
    before = connection.total_changes
    connection.execute("BEGIN IMMEDIATE")
    try:
        try:
            connection.executemany(_INSERT, rows)
        except UnicodeEncodeError:
            connection.executemany(_INSERT, map(clean_text, rows))  # those that are in already are ignored
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors, a full disk for one, have rolled back already
            connection.execute("ROLLBACK")
        raise
    return connection.total_changes - before


# --- asking -----------------------------------------------------------------------------------------------------------


def _expression(key: GroupKey) -> tuple[str, list[str]]:
    """SQL for a key and the values bound in it. Names come from our own tables, what the user wrote is bound."""
    if key.kind == "time":
        return "strftime(?, at / 1000000000, 'unixepoch')", [_TIME_FORMATS[key.source]]
    if key.kind == "field":
        return key.source, []
    if key.source in TAG_COLUMNS:
        return f"coalesce({key.source}, '')", []
    return "coalesce(json_extract(tags, ?), '')", [f'$."{key.source}"']


def _where(query: Query, filters: Filters) -> tuple[str, list[Any]]:
    conditions, bound = ["1"], list[Any]()
    for value, operator in ((query.since_ns, ">="), (query.until_ns, "<")):
        if value is not None:
            conditions.append(f"at {operator} ?")
            bound.append(value)
    for key, values in filters:
        text, own = _expression(key)
        conditions.append(f"{text} IN ({', '.join('?' * len(values))})")
        bound += [*own, *values]
    return " AND ".join(conditions), bound


_UNSURE = """CASE WHEN amount IS NULL OR basis = 'estimated' THEN NOT EXISTS (
    SELECT 1 FROM charges AS fix WHERE fix.corrects <> '' AND fix.corrects = charges.id AND fix.amount IS NOT NULL
) ELSE 0 END"""
_UNPRICED = "unsure AND amount IS NULL AND corrects = ''"
_TOKENS = " + ".join(f"coalesce({name}, 0)" for name in METER_COLUMNS if name.endswith("_tokens"))

# What is added up, in the order in which `_group` reads it: summed expressions, then others.
_SUMMED = (
    "corrects = ''",
    "corrects <> ''",
    "status = 'error' AND corrects = ''",
    "amount",
    "CASE WHEN unsure AND amount IS NOT NULL THEN amount ELSE 0 END",
    "CASE WHEN unsure THEN coalesce(lower, amount, 0) ELSE coalesce(amount, 0) END",
    "CASE WHEN unsure THEN coalesce(upper, amount, 0) ELSE coalesce(amount, 0) END",
    _UNPRICED,
    f"CASE WHEN {_UNPRICED} THEN {_TOKENS} ELSE 0 END",
    "duration",
    *METER_COLUMNS,
)
_OTHERS = (
    "count(amount)",
    "count(*) FILTER (WHERE unsure AND amount IS NULL AND upper IS NULL)",
    "quantity_sum(quantities) FILTER (WHERE quantities IS NOT NULL)",
    f"quantity_sum(quantities) FILTER (WHERE quantities IS NOT NULL AND {_UNPRICED})",
)


def _summary(keys: list[str], where: str, summing: str) -> str:
    names = [f"k{place}" for place in range(len(keys))]
    inner = "".join(f"{text} AS {name}, " for text, name in zip(keys, names, strict=True))
    grouping = ", ".join([*names, "currency"])
    sums = ", ".join([*(f"{summing}({text})" for text in _SUMMED), *_OTHERS])
    return (
        f"SELECT {grouping}, {sums} "  # noqa: S608 - only names of ours; values are bound
        f"FROM (SELECT {inner}*, {_UNSURE} AS unsure FROM charges WHERE {where}) GROUP BY {grouping}"
    )


def _group(row: Sequence[Any], keys: int) -> Group:
    key, currency, values = tuple(row[:keys]), row[keys], row[keys + 1 :]
    sums, (known, open_ends, more, unpriced_more) = values[: len(_SUMMED)], values[len(_SUMMED) :]
    meters = sums[-len(METER_COLUMNS) :]
    calls, corrections, errors, amount, estimated, lower, upper, unpriced, unpriced_tokens, duration = (
        int(value or 0) for value in sums[: -len(METER_COLUMNS)]
    )
    return Group(
        key=key,
        currency=currency,
        calls=calls,
        corrections=corrections,
        errors=errors,
        amount=amount if known else None,
        estimated=estimated,
        lower=lower,
        upper=None if open_ends else upper,
        unpriced_calls=unpriced,
        unpriced_tokens=unpriced_tokens + (tokens_total(load_quantities(unpriced_more)) if unpriced_more else 0),
        quantities=_meters(meters, more),
        duration=duration,
    )


def _meters(columns: Sequence[Any], more: str | None) -> MappingProxyType[str, Quantity]:
    found: dict[str, Quantity] = {
        name: int(value) for name, value in zip(METER_COLUMNS, columns, strict=True) if value is not None
    }
    if more:
        add_quantities(found, load_quantities(more))
    return MappingProxyType(found)


class _QuantitySum:
    """Aggregate for the JSON column of meters: exact sums by meter, as JSON again."""

    def __init__(self) -> None:
        self._total: dict[str, Quantity] = {}

    def step(self, text: Any) -> None:
        add_quantities(self._total, load_quantities(text))

    def finalize(self) -> Any:
        return dump_quantities(self._total) if self._total else None


class _ExactSum:
    """`sum` without the limit of 64 bits; the result is text, since SQLite has no larger integers."""

    def __init__(self) -> None:
        self._total: int | None = None

    def step(self, value: Any) -> None:
        if value is not None:
            self._total = (self._total or 0) + value

    def finalize(self) -> Any:
        return None if self._total is None else str(self._total)
