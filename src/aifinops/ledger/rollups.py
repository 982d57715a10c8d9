"""Sums of an SQLite ledger: of its rows, and of roll-ups by hour and by day that are kept beside them.

Entries only ever come to the end of the table `charges`, so one mark says what is rolled up: everything up to the entry whose id is in
`state.rolled`. Roll-ups are, at every moment, what a summary of the rows up to that mark would be, with the corrections up to that mark.
A summary is then roll-ups + the rows behind the mark + the rows at both ends of the period that fill no hour. Two things make it exact:

- A correction may make an entry sure that is rolled up already (see `aifinops.ledger.base.Group`). What the entry has added to sums of
  doubt is taken out again: for good when the correction is rolled up, and for the time of one question while it is not.
- A sum of SQLite that leaves 64 bits is an error and never a rounded number; the slow sums of Python take its place then.

The mark is an id and no row number, because a VACUUM by hand may number the rows anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from aifinops.ledger.base import (
    DAY_NS,
    HOUR_NS,
    ROLLUP_FIELDS,
    ROLLUP_TAGS,
    Filters,
    Group,
    GroupKey,
    Query,
    add_quantities,
    check_compacted,
    is_rolled_up,
    start_of,
)
from aifinops.ledger.codec import METER_COLUMNS, TAG_COLUMNS, dump_quantities, load_quantities
from aifinops.usage import Quantity, tokens_total

__all__ = [
    "BATCH",
    "DAY",
    "DIMENSIONS",
    "GONE",
    "HOUR",
    "SUMS",
    "TABLES",
    "State",
    "add_functions",
    "behind",
    "by_dimension",
    "fill_batch",
    "forget_rollups",
    "joined",
    "pour_batch",
    "remember",
    "roll_up",
    "summarize",
    "where_of",
]

GONE, HOUR, DAY = 0, 1, 2
"""What a roll-up covers: a day, of entries that are in no other place; an hour; a day, of all entries."""

BATCH = 5_000
"""Entries that are rolled up in one transaction."""

_FEW = 4 * BATCH

DIMENSIONS = (*ROLLUP_FIELDS, *ROLLUP_TAGS)
"""What roll-ups are kept by, beside the time."""

_UNSURE = """CASE WHEN amount IS NULL OR basis = 'estimated' THEN NOT EXISTS (
    SELECT 1 FROM charges AS fix WHERE fix.corrects <> '' AND fix.corrects = charges.id AND fix.amount IS NOT NULL{until}
) ELSE 0 END"""
_TOKENS = " + ".join(f"coalesce({name}, 0)" for name in METER_COLUMNS if name.endswith("_tokens"))
_UNPRICED = "amount IS NULL AND corrects = ''"

# What is added up: name of the sum -> what each row adds to it.
_SOLID = {
    "calls": "corrects = ''",
    "corrections": "corrects <> ''",
    "errors": "status = 'error' AND corrects = ''",
    "known": "amount IS NOT NULL",
    "amount": "amount",
    "duration": "duration",
    **{name: name for name in METER_COLUMNS},
}
# What only an unsure row adds. The amount of such rows is `estimated`, so bounds are `amount - estimated + lower` (or `upper`).
_DOUBT = {
    "estimated": "coalesce(amount, 0)",
    "lower": "coalesce(lower, amount, 0)",
    "upper": "coalesce(upper, amount, 0)",
    "unpriced": _UNPRICED,
    "unpriced_tokens": f"CASE WHEN {_UNPRICED} THEN {_TOKENS} ELSE 0 END",
    "open_ends": "amount IS NULL AND upper IS NULL",
}
_NUMBERS = (*_SOLID, *_DOUBT)
_TEXTS = ("quantities", "unpriced_quantities")
SUMS = (*_NUMBERS, *_TEXTS)
"""Every sum, in the order in which all questions here give them."""

_PLACE = {name: place for place, name in enumerate(SUMS)}

TABLES = (
    f"""CREATE TABLE dimensions (id INTEGER PRIMARY KEY, {", ".join(f"{name} TEXT NOT NULL" for name in DIMENSIONS)},
    UNIQUE ({", ".join(DIMENSIONS)}))""",
    # No types: a sum beyond 64 bits is text.
    f"""CREATE TABLE rollups (grain INTEGER NOT NULL, at INTEGER NOT NULL, dimension INTEGER NOT NULL,
    {", ".join(SUMS)}, PRIMARY KEY (grain, at, dimension)) WITHOUT ROWID""",
    "CREATE TABLE state (name TEXT NOT NULL PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE gone (id TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID",
)
"""What schema 2 adds to the table of charges."""

_TIME_FORMATS = {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H"}

Row = tuple[Any, ...]


# --- functions that SQLite lacks --------------------------------------------------------------------------------------


class _QuantitySum:
    """Aggregate for the JSON column of meters: exact sums by meter, as JSON again; added with +1, taken away with -1."""

    def __init__(self) -> None:
        self._total: dict[str, Quantity] = {}

    def step(self, text: Any, sign: int) -> None:
        values = load_quantities(text)
        add_quantities(self._total, values if sign > 0 else {name: -value for name, value in values.items()})

    def finalize(self) -> Any:
        return dump_quantities(self._total) if self._total else None


class _ExactSum:
    """`sum` without the limit of 64 bits."""

    def __init__(self) -> None:
        self._total: int | None = None

    def step(self, value: Any) -> None:
        if value is not None:
            self._total = (self._total or 0) + int(value)

    def finalize(self) -> Any:
        return _stored(self._total)


class _ExactMinus(_ExactSum):
    """The same, of opposite sign."""

    def finalize(self) -> Any:
        return None if self._total is None else _stored(-self._total)


def _stored(value: int | None) -> int | str | None:
    """Text where SQLite has no integer for it."""
    return value if value is None or -(2**63) <= value < 2**63 else str(value)


def _plus(one: Any, other: Any) -> Any:
    return _stored(int(one) + int(other))


def _plus_quantities(one: str, other: str) -> str:
    total = load_quantities(one)
    add_quantities(total, load_quantities(other))
    return dump_quantities(total)


def add_functions(connection: sqlite3.Connection) -> None:
    """Teach a connection what the questions here use."""
    two_arguments: Any = _QuantitySum  # typeshed knows aggregates of one
    connection.create_aggregate("quantity_sum", 2, two_arguments)
    connection.create_aggregate("exact_sum", 1, _ExactSum)
    connection.create_aggregate("exact_minus", 1, _ExactMinus)
    connection.create_function("plus", 2, _plus, deterministic=True)
    connection.create_function("plus_quantities", 2, _plus_quantities, deterministic=True)


# --- where the mark is ------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """What the table `state` says.

    Attributes:
        rolled: rows up to this number are in the roll-ups; 0 for none, None when the mark is lost (the entry was deleted by hand).
        first, until: the days of which detailed entries were compacted, nanoseconds, up to the end of the last; None for none.
        first_at, last_at: earliest and latest `Charge.at` of compacted entries.
    """

    rolled: int | None
    first: int | None
    until: int | None
    first_at: int | None
    last_at: int | None

    @classmethod
    def of(cls, connection: sqlite3.Connection) -> State:
        """Read it."""
        values = dict(connection.execute("SELECT name, value FROM state"))
        rolled: int | None = 0
        if values.get("rolled") is not None:
            found = connection.execute("SELECT rowid FROM charges WHERE id = ?", (values["rolled"],)).fetchone()
            rolled = found[0] if found else None
        return cls(rolled, *(values.get(name) for name in ("first", "until", "first_at", "last_at")))


def remember(connection: sqlite3.Connection, **values: Any) -> None:
    """Write to the table `state`."""
    connection.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", values.items())


def behind(connection: sqlite3.Connection, state: State) -> int:
    """How many entries, at most, are not in the roll-ups."""
    ((last,),) = connection.execute("SELECT max(rowid) FROM charges")
    return max(0, (last or 0) - (state.rolled or 0))


# --- sums of rows -----------------------------------------------------------------------------------------------------


class _Keys(NamedTuple):
    """Expressions to group by, without the currency, and what is bound in them."""

    texts: Sequence[str]
    bound: Sequence[Any] = ()

    @property
    def named(self) -> str:
        return "".join(f"{text} AS k{place}, " for place, text in enumerate(self.texts))

    @property
    def names(self) -> str:
        return ", ".join([*(f"k{place}" for place in range(len(self.texts))), "currency"])


def _raw(keys: _Keys, where: str, total: str, until: int | None = None) -> str:
    """SELECT of keys, currency and `SUMS` over rows; with `until`, only corrections up to that row make others sure."""
    unsure = _UNSURE.format(until="" if until is None else f" AND fix.rowid <= {until}")
    sums = [
        *(f"{total}({text})" for text in _SOLID.values()),
        *(f"{total}(CASE WHEN unsure THEN {text} ELSE 0 END)" for text in _DOUBT.values()),
        "quantity_sum(quantities, 1) FILTER (WHERE quantities IS NOT NULL)",
        f"quantity_sum(quantities, 1) FILTER (WHERE quantities IS NOT NULL AND unsure AND {_UNPRICED})",
    ]
    return (
        f"SELECT {keys.names}, {', '.join(sums)} "  # noqa: S608 - only names of ours; values are bound
        f"FROM (SELECT {keys.named}*, {unsure} AS unsure FROM charges WHERE {where}) GROUP BY {keys.names}"
    )


def _settled(keys: _Keys, where: str, after: int, until: int | None = None) -> str:
    """SELECT like `_raw`: what goes out of doubt because of corrections in rows behind `after`, of entries up to there."""
    later = "" if until is None else f" AND rowid <= {until}"
    fixed = f"SELECT corrects FROM charges WHERE rowid > {after}{later} AND corrects <> '' AND amount IS NOT NULL"  # noqa: S608 - numbers
    sums = [
        *("NULL" for _ in _SOLID),
        *(f"exact_minus({text})" for text in _DOUBT.values()),
        "NULL",
        f"quantity_sum(quantities, -1) FILTER (WHERE quantities IS NOT NULL AND {_UNPRICED})",
    ]
    return (
        f"SELECT {keys.names}, {', '.join(sums)} FROM (SELECT {keys.named}* FROM charges "  # noqa: S608 - as above
        f"WHERE id IN ({fixed}) AND +rowid <= {after} AND (amount IS NULL OR basis = 'estimated') AND NOT EXISTS ("
        "SELECT 1 FROM charges AS fix WHERE fix.corrects <> '' AND fix.corrects = charges.id AND fix.amount IS NOT NULL "
        f"AND fix.rowid <= {after}) AND {where}) GROUP BY {keys.names}"
    )


# --- rolling up -------------------------------------------------------------------------------------------------------


def _floor(text: str, length: int) -> str:
    return f"{text} - (({text} % {length}) + {length}) % {length}"


_BATCH_KEYS = _Keys([_floor("at", HOUR_NS), *(f"coalesce({name}, '')" for name in DIMENSIONS if name != "currency")])
_BATCH_COLUMNS = ("hour", *(name for name in DIMENSIONS if name != "currency"), "currency", *SUMS)
_NAMES = ", ".join(DIMENSIONS)


def by_dimension(where: str, total: str = "sum", until: int | None = None) -> str:
    """SELECT of hour, dimensions, currency and `SUMS` over rows."""
    return _raw(_BATCH_KEYS, where, total, until)


def fill_batch(connection: sqlite3.Connection, where: str, until: int, *, settling: int | None = None) -> None:
    """Add the rows for which `where` holds up in the temporary table `batch`, by hour and dimension.

    Args:
        until: only corrections up to that row count. settling: also what those behind this row make sure before it.
    """
    connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS batch ({', '.join(_BATCH_COLUMNS)})")
    connection.execute("DELETE FROM batch")
    try:
        connection.execute(f"INSERT INTO batch {by_dimension(where, until=until)}")
    except sqlite3.OperationalError as error:
        if "integer overflow" not in str(error):
            raise
        connection.execute("DELETE FROM batch")  # groups before the one that failed are in it
        connection.execute(f"INSERT INTO batch {by_dimension(where, 'exact_sum', until)}")
    if settling is not None:
        connection.execute(f"INSERT INTO batch {_settled(_BATCH_KEYS, '1', settling, until)}")
    connection.execute(f"INSERT OR IGNORE INTO dimensions ({_NAMES}) SELECT DISTINCT {_NAMES} FROM batch")  # noqa: S608 - as above


def pour_batch(connection: sqlite3.Connection, grain: int, where: str = "1") -> None:
    """Add `batch` to the roll-ups of a grain."""
    at = "hour" if grain == HOUR else _floor("hour", DAY_NS)
    same = " AND ".join(f"dimensions.{name} = batch.{name}" for name in DIMENSIONS)
    connection.execute(
        f"INSERT INTO rollups SELECT {grain}, {at}, dimensions.id, {', '.join(SUMS)} "  # noqa: S608 - as above
        f"FROM batch JOIN dimensions ON {same} WHERE {where} "
        f"ON CONFLICT (grain, at, dimension) DO UPDATE SET {', '.join(map(_added, SUMS))}"
    )


def _added(name: str) -> str:
    new = f"excluded.{name}"
    if name in _TEXTS:
        return (
            f"{name} = CASE WHEN {new} IS NULL THEN {name} WHEN {name} IS NULL THEN {new} "
            f"ELSE plus_quantities({name}, {new}) END"
        )
    # Beyond 64 bits, and with text in it, a sum of SQLite is a float.
    both = f"{name} + {new}"
    return f"{name} = CASE typeof({both}) WHEN 'real' THEN plus({name}, {new}) ELSE coalesce({both}, {name}, {new}) END"


def roll_up(connection: sqlite3.Connection) -> int:
    """Roll up the next `BATCH` entries, in one transaction; how many there were.

    Raises:
        sqlite3.Error: when nothing was changed.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = _roll_up(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return done


def _roll_up(connection: sqlite3.Connection) -> int:
    state = State.of(connection)
    if state.rolled is None:
        forget_rollups(connection)
        state = State.of(connection)
    after = state.rolled or 0
    count, last = connection.execute(
        "SELECT count(*), max(number) FROM (SELECT rowid AS number FROM charges WHERE rowid > ? ORDER BY rowid LIMIT ?)",
        (after, BATCH),
    ).fetchone()
    if count:
        fill_batch(connection, f"rowid > {after} AND rowid <= {last}", last, settling=after)
        pour_batch(connection, DAY)
        pour_batch(connection, HOUR, f"NOT (hour >= {state.first} AND hour < {state.until})" if state.until else "1")
        ((mark,),) = connection.execute("SELECT id FROM charges WHERE rowid = ?", (last,))
        remember(connection, rolled=mark)
    return int(count)


def forget_rollups(connection: sqlite3.Connection) -> None:
    """Have only those left of which the entries are gone; the rest is rolled up anew."""
    connection.execute("DELETE FROM rollups WHERE grain <> ?", (GONE,))
    connection.execute(
        f"INSERT INTO rollups SELECT {DAY}, at, dimension, {', '.join(SUMS)} FROM rollups WHERE grain = {GONE}"  # noqa: S608 - as above
    )
    remember(connection, rolled=None)


# --- questions --------------------------------------------------------------------------------------------------------


def where_of(query: Query, filters: Filters) -> tuple[str, list[Any]]:
    """SQL for which rows a query wants, and the values bound in it."""
    return _all([*_period("at", query.since_ns, query.until_ns), *_conditions(filters, _of_row)])


_Part = tuple[str, list[Any]]


def _all(parts: Iterable[_Part]) -> _Part:
    texts, bound = ["1"], list[Any]()
    for text, own in parts:
        texts.append(text)
        bound += own
    return " AND ".join(texts), bound


def _period(name: str, since: int | None, until: int | None) -> list[_Part]:
    return [(f"{name} {sign} ?", [at]) for at, sign in ((since, ">="), (until, "<")) if at is not None]


def _conditions(filters: Filters, expression: Callable[[GroupKey], _Part]) -> Iterator[_Part]:
    for key, values in filters:
        text, own = expression(key)
        yield f"{text} IN ({', '.join('?' * len(values))})", [*own, *values]


def _of_row(key: GroupKey) -> _Part:
    """SQL for a key of a row and the values bound in it. Names come from our own tables, what the user wrote is bound."""
    if key.kind == "time":
        return "strftime(?, at / 1000000000, 'unixepoch')", [_TIME_FORMATS[key.source]]
    if key.kind == "field":
        return key.source, []
    if key.source in TAG_COLUMNS:
        return f"coalesce({key.source}, '')", []
    return "coalesce(json_extract(tags, ?), '')", [f'$."{key.source}"']


def _of_rollup(key: GroupKey) -> _Part:
    if key.kind == "time":
        return "strftime(?, rollups.at / 1000000000, 'unixepoch')", [_TIME_FORMATS[key.source]]
    return f"dimensions.{key.source}", []


class _Question(NamedTuple):
    """What is asked, and what roll-ups may answer."""

    query: Query
    keys: tuple[GroupKey, ...]
    filters: Filters
    state: State
    behind: int

    def by(self, expression: Callable[[GroupKey], _Part]) -> _Keys:
        parts = [expression(key) for key in self.keys]
        return _Keys([text for text, _ in parts], [value for _, bound in parts for value in bound])

    def pieces(self, total: str) -> Iterator[_Part]:
        """SELECTs whose sums, added up, are the answer."""
        since, until = self.query.since_ns, self.query.until_ns
        first = None if since is None else -start_of(-since, HOUR_NS)
        last = None if until is None else start_of(until, HOUR_NS)
        rolled = self.state.rolled
        empty = first is not None and last is not None and first >= last
        if empty or not self._served or (not rolled and self.state.until is None):
            yield self._rows(total, since, until)
            return
        # A plus keeps SQLite from an index: times find nothing here that numbers do not, unless the file was never rolled up.
        few = self.behind <= _FEW
        yield self._rows(total, since, until, f"{'' if few else '+'}rowid > {rolled or 0}", "+at" if few else "at")
        if first != since:
            yield self._rows(total, since, first, f"+rowid <= {rolled or 0}")
        if last != until:
            yield self._rows(total, last, until, f"+rowid <= {rolled or 0}")
        if rolled is None:  # the mark is lost: only what is in no row is sure to be right
            yield self._rollups(total, GONE, first, last)
            return
        yield self._doubt(first, last)
        yield from (self._rollups(total, grain, begin, end) for grain, begin, end in self._grains(first, last))

    @property
    def _served(self) -> bool:
        used = (*self.keys, *(key for key, _ in self.filters))
        return all(is_rolled_up(key) or (key.kind == "time" and key.source == "hour") for key in used)

    def _grains(self, first: int | None, last: int | None) -> Iterator[tuple[int, int | None, int | None]]:
        """Whole days where they serve, hours before and after them."""
        if any(key.kind == "time" and key.source == "hour" for key in (*self.keys, *(key for key, _ in self.filters))):
            yield HOUR, first, last
            return
        day = None if first is None else -start_of(-first, DAY_NS)
        end = None if last is None else start_of(last, DAY_NS)
        if day is not None and end is not None and day >= end:
            yield HOUR, first, last
            return
        yield DAY, day, end
        if day != first:
            yield HOUR, first, day
        if end != last:
            yield HOUR, end, last

    def _rows(self, total: str, since: int | None, until: int | None, also: str = "1", at: str = "at") -> _Part:
        keys = self.by(_of_row)
        where, bound = _all([*_period(at, since, until), *_conditions(self.filters, _of_row)])
        return _raw(keys, f"{also} AND {where}", total), [*keys.bound, *bound]

    def _doubt(self, since: int | None, until: int | None) -> _Part:
        keys = self.by(_of_row)
        where, bound = _all([*_period("at", since, until), *_conditions(self.filters, _of_row)])
        return _settled(keys, where, self.state.rolled or 0), [*keys.bound, *bound]

    def _rollups(self, total: str, grain: int, since: int | None, until: int | None) -> _Part:
        keys = self.by(_of_rollup)
        where, bound = _all([*_period("rollups.at", since, until), *_conditions(self.filters, _of_rollup)])
        sums = [
            *(f"{total}(rollups.{name})" for name in _NUMBERS),
            *(f"quantity_sum({name}, 1) FILTER (WHERE {name} IS NOT NULL)" for name in _TEXTS),
        ]
        select = (
            f"SELECT {keys.named}currency, {', '.join(sums)} FROM rollups JOIN dimensions ON dimensions.id = dimension "  # noqa: S608 - as above
            f"WHERE grain = {grain} AND {where} GROUP BY {keys.names}"
        )
        return select, [*keys.bound, *bound]


def summarize(
    connection: sqlite3.Connection, query: Query, keys: tuple[GroupKey, ...], filters: Filters
) -> list[Group]:
    """Sums per key and currency, of one view of the file.

    Raises:
        ConfigurationError: for what compacted days do not tell any more.
        sqlite3.Error: when the file cannot be read.
    """
    state = State.of(connection)
    check_compacted(query, keys, state.first, state.until)
    question = _Question(query, keys, filters, state, behind(connection, state))
    width = len(keys) + 1
    try:
        sums = _merged(_answers(connection, question, "sum"), width)
    except (sqlite3.OperationalError, OverflowError) as error:
        if "integer overflow" not in str(error):
            raise
        # Beyond 9.2 billion units of a currency; the slow sum is exact at any size.
        sums = _merged(_answers(connection, question, "exact_sum"), width)
    return [_group(place[:-1], place[-1], sums[place]) for place in sorted(sums)]


def _answers(connection: sqlite3.Connection, question: _Question, total: str) -> Iterator[Row]:
    for select, values in question.pieces(total):
        for row in connection.execute(select, values):
            if float in map(type, row):  # a roll-up beyond 64 bits is text, of which `sum` makes a float
                raise OverflowError("integer overflow")
            yield row


def _merged(rows: Iterable[Row], width: int) -> dict[Row, Row]:
    found: dict[Row, Row] = {}
    for row in rows:
        place, values = row[:width], row[width:]
        found[place] = joined(found[place], values) if place in found else values
    return found


_COUNT = len(_NUMBERS)


def joined(one: Row, other: Row) -> Row:
    """`SUMS` of two, added up."""
    numbers = (
        second if first is None else first if second is None else int(first) + int(second)
        for first, second in zip(one[:_COUNT], other[:_COUNT], strict=True)
    )
    texts = (
        second if first is None else first if second is None else _plus_quantities(first, second)
        for first, second in zip(one[_COUNT:], other[_COUNT:], strict=True)
    )
    return (*numbers, *texts)


_METERS = slice(_PLACE[METER_COLUMNS[0]], _PLACE[METER_COLUMNS[0]] + len(METER_COLUMNS))


def _group(key: tuple[str, ...], currency: str, row: Row) -> Group:
    calls, corrections, errors, known, amount, duration = (int(value or 0) for value in row[: _METERS.start])
    estimated, lower, upper, unpriced, unpriced_tokens, open_ends = (
        int(value or 0) for value in row[_METERS.stop : _COUNT]
    )
    more, unpriced_more = row[_COUNT:]
    return Group(
        key=key,
        currency=currency,
        calls=calls,
        corrections=corrections,
        errors=errors,
        amount=amount if known else None,
        estimated=estimated,
        lower=amount - estimated + lower,
        upper=None if open_ends else amount - estimated + upper,
        unpriced_calls=unpriced,
        unpriced_tokens=unpriced_tokens + (tokens_total(load_quantities(unpriced_more)) if unpriced_more else 0),
        quantities=_meters(row[_METERS], more),
        duration=duration,
    )


def _meters(columns: Sequence[Any], more: str | None) -> MappingProxyType[str, Quantity]:
    found: dict[str, Quantity] = {
        name: int(value) for name, value in zip(METER_COLUMNS, columns, strict=True) if value is not None
    }
    if more:
        add_quantities(found, load_quantities(more))
    return MappingProxyType(found)
