"""Entries of any ledger as files that others read: CSV, JSON lines, Parquet, DuckDB. One pass, in flat memory, whole or not at all.

Columns are those of our own tables (`aifinops.ledger.codec`), with two differences: money is a decimal number of the currency
(`decimal(38, 9)` in Parquet and DuckDB, exact), and `at` is a time (UTC, nanoseconds), beside which stands its `day`.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from aifinops.charges import Charge
from aifinops.clock import to_datetime
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import DAY_NS, Ledger, Progress, Query
from aifinops.ledger.codec import COLUMNS, METER_COLUMNS, clean_text, row_of
from aifinops.money import from_nanos

__all__ = ["EXPORTED", "FORMATS", "Format", "export", "format_of"]

Format = Literal["csv", "jsonl", "parquet", "duckdb"]

FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".duckdb": "duckdb",
}
"""The format that the end of a name stands for."""

EXPORTED = ("day", *COLUMNS)
"""Every column, in order."""

_MONEY = frozenset({"amount", "lower", "upper"})
_INTEGERS = frozenset({"duration", "stream", *METER_COLUMNS})
_CHUNK = 5_000
_GROUP = 100_000
"""Rows of a row group: what engines read at a time (https://duckdb.org/docs/stable/data/parquet/tips)."""


def format_of(path: str | Path) -> Format:
    """The format that a name stands for.

    Raises:
        ConfigurationError: for a name that ends in none.
    """
    found = FORMATS.get(Path(path).suffix.lower())
    if found is None:
        raise ConfigurationError(
            f"{str(path)!r} does not say in which format; end it with one of {', '.join(FORMATS)}, or name the format: {', '.join(sorted(set(FORMATS.values())))}"
        )
    return found


def export(
    ledger: Ledger,
    path: str | Path,
    *,
    query: Query = Query(),  # noqa: B008 - frozen, so one default can serve all calls
    format: Format | None = None,
    by_day: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write entries to a file, or to a directory with a file a day.

    What is at `path` appears there when all of it is written; a run that fails or is killed leaves nothing but `path` with `.partial` behind it.

    Args:
        ledger: from where. path: to where. query: which entries, in its order.
        format: None for what the name's end says.
        by_day: make `path` a directory with `day=2026-11-30/part-0.parquet` and so on, as DuckDB, Spark and others read it.
        replace: write over what is there.
        progress: told how many are done, and of how many.

    Returns:
        How many there were.

    Raises:
        ConfigurationError: for an unknown format, a path that is taken, a missing package, or a wrong key in the query.
        StoreError: when the ledger cannot be read. OSError: when the file cannot be written.
    """
    target = Path(path)
    kind = format or format_of(target)
    if kind not in _WRITERS:
        raise ConfigurationError(f"format {kind!r} is none; use one of {', '.join(sorted(_WRITERS))}")
    if by_day and kind == "duckdb":
        raise ConfigurationError("a DuckDB file is one file; leave by_day out, or export to Parquet")
    if target.exists() and not replace:
        raise ConfigurationError(f"{target} is there already; name another file, or say that it may be replaced")
    make = _WRITERS[kind]
    partial = target.with_name(f"{target.name}.partial")
    _remove(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = _counted(ledger, query, progress)
    try:
        count = _write_days(make, partial, kind, rows) if by_day else _write(make, partial, rows)
    except BaseException:
        _remove(partial)
        raise
    _remove(target)
    partial.rename(target)
    return count


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _counted(ledger: Ledger, query: Query, progress: Progress | None) -> Iterator[Charge]:
    if progress is None:
        return ledger.rows(query)
    total = sum(group.calls + group.corrections for group in ledger.summarize(query))
    return _told(ledger.rows(query), total if query.limit is None else min(total, query.limit), progress)


def _told(charges: Iterator[Charge], total: int, progress: Progress) -> Iterator[Charge]:
    done = 0
    for done, charge in enumerate(charges, 1):
        yield charge
        if done % _CHUNK == 0:
            progress(done, max(done, total))
    progress(done, done)


def _write_days(make: _Make, folder: Path, kind: Format, charges: Iterator[Charge]) -> int:
    folder.mkdir()
    count = 0
    for day, of_day in groupby(charges, key=lambda charge: charge.at // DAY_NS):
        own = folder / f"day={_day(day * DAY_NS)}"
        own.mkdir()
        count += _write(make, own / f"part-0.{kind}", of_day)
    return count


def _write(make: _Make, path: Path, charges: Iterator[Charge]) -> int:
    count = 0
    with make(path) as write:
        while chunk := list(islice(charges, _CHUNK)):
            write(chunk)
            count += len(chunk)
    return count


_Write = Callable[[Sequence[Charge]], object]
_Make = Callable[[Path], AbstractContextManager[_Write]]


# --- text ---------------------------------------------------------------------------------------------------------------


def _day(at: int) -> str:
    return to_datetime(at).date().isoformat()


def _time(at: int) -> str:
    return f"{to_datetime(at):%Y-%m-%dT%H:%M:%S}.{at % 1_000_000_000:09d}Z"


def _money(nanos: int | None) -> str | None:
    return None if nanos is None else f"{from_nanos(nanos):f}"


_AT = COLUMNS.index("at")
_MONEY_PLACES = [place for place, name in enumerate(COLUMNS) if name in _MONEY]


@contextmanager
def _csv(path: Path) -> Iterator[_Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(EXPORTED)
        yield lambda charges: writer.writerows(map(_plain_row, charges))


def _plain_row(charge: Charge) -> list[Any]:
    row = list(clean_text(row_of(charge)))
    for place in _MONEY_PLACES:
        row[place] = _money(row[place])
    at = row[_AT]
    row[_AT] = _time(at)
    return [_day(at), *row]


@contextmanager
def _jsonl(path: Path) -> Iterator[_Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda charges: file.writelines(map(_line, charges))


_NESTED = frozenset({"quantities", "tags", "lines", "raw"})
_dump = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


def _line(charge: Charge) -> str:
    """A line of JSON: only what there is, tags and quantities whole, decimals as text."""
    fields = dict(zip(EXPORTED, _plain_row(charge), strict=True))
    row = {
        name: json.loads(value) if name in _NESTED else value
        for name, value in fields.items()
        if value is not None and value != ""
    }
    return _dump(row) + "\n"


# --- columns ------------------------------------------------------------------------------------------------------------


class _Columns:
    """Rows as record batches of Arrow."""

    def __init__(self, arrow: Any) -> None:
        self._arrow = arrow
        self.schema = arrow.schema([(name, self._type(name)) for name in EXPORTED])

    def _type(self, name: str) -> Any:
        arrow = self._arrow
        if name == "day":
            return arrow.date32()
        if name == "at":
            return arrow.timestamp("ns")  # in UTC: with a zone, DuckDB would keep only microseconds
        if name in _MONEY:
            return arrow.decimal128(38, 9)
        if name == "stream":
            return arrow.bool_()
        return arrow.int64() if name in _INTEGERS else arrow.string()

    def batch(self, charges: Sequence[Charge]) -> Any:
        columns = list(zip(*(clean_text(row_of(charge)) for charge in charges), strict=True))
        moments = columns[_AT]
        arrays = [self._arrow.array([at // DAY_NS for at in moments], self._arrow.int32()).cast(self._arrow.date32())]
        arrays += [self._array(name, values) for name, values in zip(COLUMNS, columns, strict=True)]
        return self._arrow.record_batch(arrays, schema=self.schema)

    def _array(self, name: str, values: Sequence[Any]) -> Any:
        arrow = self._arrow
        if name not in _MONEY:
            return arrow.array(values, self._type(name)) if name != "stream" else arrow.array(map(bool, values))
        whole = arrow.array(values, arrow.int64()).cast(arrow.decimal128(38, 0))
        # The same 128 bits, of which nine digits stand behind the point.
        return arrow.Array.from_buffers(arrow.decimal128(38, 9), len(whole), whole.buffers())


class _ParquetFile:
    """A Parquet file that is being written, a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._arrow, parquet = _import_arrow()
        self._columns = _Columns(self._arrow)
        self._writer = parquet.ParquetWriter(path, self._columns.schema, compression="zstd")
        self._batches: list[Any] = []
        self._count = 0

    def __enter__(self) -> _Write:
        return self._add

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()

    def _add(self, charges: Sequence[Charge]) -> None:
        self._batches.append(self._columns.batch(charges))
        self._count += len(charges)
        if self._count >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._batches:
            self._writer.write_table(self._arrow.Table.from_batches(self._batches))
        self._batches, self._count = [], 0


@contextmanager
def _duckdb(path: Path) -> Iterator[_Write]:
    """A DuckDB file with one table, `charges`."""
    arrow, _ = _import_arrow()
    try:
        import duckdb
    except ImportError as error:
        raise ConfigurationError("exporting to DuckDB needs duckdb: pip install 'aifinops[duckdb]'") from error
    columns = _Columns(arrow)
    connection = duckdb.connect(str(path))
    try:
        connection.register("batch", arrow.Table.from_batches([], columns.schema))
        connection.execute("CREATE TABLE charges AS SELECT * FROM batch")

        def write(charges: Sequence[Charge]) -> None:
            connection.register("batch", arrow.Table.from_batches([columns.batch(charges)]))
            connection.execute("INSERT INTO charges SELECT * FROM batch")

        yield write
        connection.unregister("batch")
    finally:
        connection.close()
        path.with_name(f"{path.name}.wal").unlink(missing_ok=True)


def _import_arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigurationError(
            "exporting to Parquet or DuckDB needs pyarrow: pip install 'aifinops[parquet]'"
        ) from error
    return pa, parquet


_WRITERS: dict[Format, _Make] = {"csv": _csv, "jsonl": _jsonl, "parquet": _ParquetFile, "duckdb": _duckdb}
