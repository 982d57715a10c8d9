"""The SQL of a ledger in PostgreSQL: its tables, the statements over them, and how entries and text go to and fro."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from aifinops.charges import Charge
from aifinops.ledger.base import HOUR_NS, Group, GroupKey, Query
from aifinops.ledger.codec import COLUMNS, METER_COLUMNS, TAG_COLUMNS, charge_of, clean_text
from aifinops.ledger.sql import DIMENSIONS, SUMS, Period, group_of, load_sums, sums_of_entry

__all__ = [
    "CELL",
    "MIGRATIONS",
    "MORE",
    "SELECTED",
    "added",
    "cells_statement",
    "entries_of",
    "fixes",
    "fold_statement",
    "insert_statement",
    "lock_statement",
    "payload",
    "read_charge",
    "read_group",
    "summary",
    "where_of",
]

_INTEGERS = frozenset({"at", "duration", "amount", "lower", "upper", "stream", *METER_COLUMNS})
MORE = ("quantities", "unpriced_quantities")
"""Sums of meters without a column, beside `SUMS`."""

# --- the tables ---------------------------------------------------------------------------------------------------------


def _type(name: str) -> str:
    if name in _INTEGERS:
        return "bigint"
    return "jsonb" if name == "tags" else 'text COLLATE "C"'


CELL = f"sha256(convert_to(json_build_array(at, {', '.join(DIMENSIONS)})::text, 'UTF8'))"
"""SQL: the key of a cell."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE {schema}.charges (seq bigint GENERATED ALWAYS AS IDENTITY, "
        + ", ".join(f"{name} {_type(name)}{' PRIMARY KEY' if name == 'id' else ''}" for name in COLUMNS)
        + ")",
        "CREATE INDEX charges_at ON {schema}.charges (at, id)",
        "CREATE INDEX charges_seq ON {schema}.charges (seq)",
        "CREATE INDEX charges_corrects ON {schema}.charges (corrects) WHERE corrects <> ''",
        *(
            statement
            for table in ("hourly", "daily")
            for statement in (
                f"CREATE TABLE {{schema}}.{table} (cell bytea PRIMARY KEY, at bigint NOT NULL, "
                + ", ".join(f'{name} text COLLATE "C" NOT NULL' for name in DIMENSIONS)
                + ", "
                + ", ".join(f"{name} numeric" for name in SUMS)
                + ", quantities jsonb, unpriced_quantities jsonb)",
                f"CREATE INDEX {table}_at ON {{schema}}.{table} (at)",
            )
        ),
        'CREATE TABLE {schema}.gone (id text COLLATE "C" PRIMARY KEY)',
        """CREATE TABLE {schema}.state (one boolean PRIMARY KEY DEFAULT true CHECK (one), version integer NOT NULL, mark bigint NOT NULL,
            compacted bigint NOT NULL DEFAULT 0, first_day bigint, until_day bigint, first_at bigint, last_at bigint)""",
        "INSERT INTO {schema}.state (version, mark) VALUES (1, 0)",
        # STRICT: the aggregate passes rows without such quantities over, which is most of them, without calling it.
        """CREATE FUNCTION {schema}.add_quantities(total jsonb, more jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
            SELECT jsonb_object_agg(name, value) FROM (
                SELECT name, sum(value::numeric) AS value
                FROM (SELECT * FROM jsonb_each_text(total) UNION ALL SELECT * FROM jsonb_each_text(more)) AS every (name, value) GROUP BY name
            ) AS sums
        $$""",
        "CREATE AGGREGATE {schema}.quantity_sum(jsonb) (sfunc = {schema}.add_quantities, stype = jsonb)",
        # A statement inside a function sees what was committed when it begins, so also by whom the insertion has waited for.
        """CREATE FUNCTION {schema}.pass_over_gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT 1 FROM {schema}.gone WHERE gone.id = NEW.id) THEN RETURN NULL; END IF;
            RETURN NEW;
        END $$""",
    ),
)
"""A migration is a list of statements that takes the tables from the version before to its own. They run in one transaction."""
# --- text ---------------------------------------------------------------------------------------------------------------

# PostgreSQL's text has no NUL: it is written as DLE and 0, and DLE as DLE and 1.
_NUL, _DLE = "\0", "\x10"


def written(text: str) -> str:
    """Text in the form in which it can be kept."""
    if _NUL in text or _DLE in text:
        text = text.replace(_DLE, _DLE + "1").replace(_NUL, _DLE + "0")
    return text


def as_read(text: str) -> str:
    """The text that is kept in that form."""
    return text.replace(_DLE + "0", _NUL).replace(_DLE + "1", _DLE) if _DLE in text else text


_TAGS_PLACE = COLUMNS.index("tags")
_dump = json.JSONEncoder(separators=(",", ":")).encode
_ODD = re.compile(r"\\u(?:00[01]0|d[89a-f])")


def payload(rows: list[tuple[Any, ...]]) -> str:
    """Rows as one JSON array of arrays, in which PostgreSQL can read every text."""
    text = _dump(rows)
    return _dump([_clean(row) for row in rows]) if _ODD.search(text) else text


def _clean(row: tuple[Any, ...]) -> list[Any]:
    tags = row[_TAGS_PLACE]
    values = [written(value) if isinstance(value, str) else value for value in clean_text(row)]
    if tags is not None:
        found = json.loads(tags)
        names = clean_text(list(found.values()))
        values[_TAGS_PLACE] = _dump({name: written(value) for name, value in zip(found, names, strict=True)})
    return values


def read_charge(row: tuple[Any, ...]) -> Charge:
    """The entry of a row of `SELECTED`."""
    if any(_DLE in value for value in row if isinstance(value, str)) or "\\u0010" in (row[_TAGS_PLACE] or ""):
        values = [as_read(value) if isinstance(value, str) else value for value in row]
        if values[_TAGS_PLACE] is not None:
            tags = json.loads(values[_TAGS_PLACE])
            values[_TAGS_PLACE] = json.dumps({name: as_read(value) for name, value in tags.items()})
        row = tuple(values)
    return charge_of(row)


# --- statements -----------------------------------------------------------------------------------------------------------

SELECTED = ", ".join("tags::text" if name == "tags" else name for name in COLUMNS)
"""SQL: the columns of an entry."""
_FORMATS = {"month": "YYYY-MM", "day": "YYYY-MM-DD", "hour": 'YYYY-MM-DD"T"HH24'}

Bound = tuple[str, list[Any]]


def _lock_key(schema: str) -> str:
    return f"hashtextextended('aifinops ledger {schema}', 0)"


def lock_statement(schema: str) -> str:
    """When this lock is held, nobody has taken a number and not yet committed: who puts entries in shares it."""
    return f"SELECT pg_advisory_xact_lock({_lock_key(schema)})"


def insert_statement(schema: str) -> str:
    """What puts in a `payload`, but for known ids."""
    # The number of an entry is taken behind the lock: it stands in the list of what is selected from both.
    values = ", ".join(_value(place, name) for place, name in enumerate(COLUMNS))
    return (
        f"WITH held AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared({_lock_key(schema)})) "  # noqa: S608 - only names of ours; values are bound
        f"INSERT INTO {schema}.charges ({', '.join(COLUMNS)}) SELECT {values} "
        "FROM held, jsonb_array_elements(%s::jsonb) AS r(v) ORDER BY 1 ON CONFLICT (id) DO NOTHING"
    )


def _value(place: int, name: str) -> str:
    cast = {"tags": "::jsonb"}.get(name, "::bigint" if name in _INTEGERS else "")
    return f"(v->>{place}){cast}"


def _expression(key: GroupKey) -> Bound:
    """SQL for a key and the values bound in it; the same for entries and for cells."""
    if key.kind == "time":
        return "to_char(to_timestamp(at / 1000000000) AT TIME ZONE 'UTC', %s)", [_FORMATS[key.source]]
    if key.kind == "field":
        return key.source, []
    if key.source in TAG_COLUMNS:
        return f"coalesce({key.source}, '')", []
    return "coalesce(tags->>%s, '')", [key.source]


def where_of(query: Query, period: tuple[int | None, int | None]) -> Bound:
    """SQL for the filters of a question and a period, nanoseconds, and the values bound in it; the same for entries and for cells."""
    conditions, bound = ["true"], list[Any]()
    for value, operator in zip(period, (">=", "<"), strict=True):
        if value is not None:
            conditions.append(f"at {operator} %s")
            bound.append(value)
    for key, values in query.filters():
        text, own = _expression(key)
        conditions.append(f"{text} = ANY(%s::text[])")
        bound += [*own, list(map(written, clean_text(values)))]
    return " AND ".join(conditions), bound


# Widened: the difference of two columns may not fit into one.
_SURE, _UNSURE = sums_of_entry("({})::int", "({})::numeric")
_UNPRICED = "unsure AND amount IS NULL AND corrects = ''"


def _entry_sum(name: str) -> str:
    text = _SURE.get(name, name)
    return f"{text} + CASE WHEN unsure THEN {_UNSURE[name]} ELSE 0 END" if name in _UNSURE else text


_ENTRY_SUMS = ", ".join(
    [
        *(f"{_entry_sum(name)} AS {name}" for name in SUMS),
        "quantities::jsonb AS quantities",
        f"CASE WHEN {_UNPRICED} THEN quantities::jsonb END AS unpriced_quantities",
    ]
)


def fixes(schema: str, condition: str) -> str:
    """The corrections of `entry` that make it sure, as far as a further condition holds for `fix`."""
    return f"SELECT 1 FROM {schema}.charges AS fix WHERE fix.corrects <> '' AND fix.corrects = entry.id AND fix.amount IS NOT NULL{condition}"  # noqa: S608 - only names of ours


def entries_of(schema: str, keys: str, where: str, fixed: str = "") -> str:
    """The sums of each entry by itself.

    Args:
        keys: what else of it. where: which. fixed: which corrections count.
    """
    unsure = f"CASE WHEN amount IS NULL OR basis = 'estimated' THEN NOT EXISTS ({fixes(schema, fixed)}) ELSE false END"
    return f"SELECT {keys}, {_ENTRY_SUMS} FROM (SELECT *, {unsure} AS unsure FROM {schema}.charges AS entry WHERE {where}) AS entries"  # noqa: S608 - only names of ours; values are bound


# What a correction takes away from the sums of a cell in which the entry that it corrects was unsure.
_TAKEN_SUMS = ", ".join(
    f"{f'-({_UNSURE[name]})' if name in _UNSURE else 'NULL' if name in METER_COLUMNS else '0'} AS {name}"
    for name in SUMS
)


def _taken(schema: str, keys: str, where: str, mark: str, goal: str = "") -> str:
    """What corrections behind the mark change in the cells before it."""
    negative = """CASE WHEN amount IS NULL AND corrects = '' THEN (
        SELECT jsonb_object_agg(name, -value::numeric) FROM jsonb_each_text(quantities::jsonb) AS q(name, value)) END"""
    named = f"SELECT corrects FROM {schema}.charges WHERE seq > {mark}{goal} AND corrects <> '' AND amount IS NOT NULL"  # noqa: S608 - only names of ours
    return (
        f"SELECT {keys}, {_TAKEN_SUMS}, NULL::jsonb AS quantities, {negative} AS unpriced_quantities FROM {schema}.charges AS entry "  # noqa: S608 - only names of ours; values are bound
        f"WHERE seq <= {mark} AND id IN ({named}) AND (amount IS NULL OR basis = 'estimated') "
        f"AND NOT EXISTS ({fixes(schema, f' AND fix.seq <= {mark}')}) AND {where}"
    )


def added(schema: str) -> str:
    """SQL: the sums of several parts."""
    sums = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    return f"{sums}, {', '.join(f'{schema}.quantity_sum({name}) AS {name}' for name in MORE)}"


def fold_statement(schema: str) -> str:
    """What puts entries from one number, `%(mark)s`, to another, `%(goal)s`, into the roll-ups of hours."""
    keys = ", ".join(
        [f"at - at %% {HOUR_NS} AS at", *(f"coalesce({name}, '') AS {name}" for name in DIMENSIONS)]
    )  # a modulus, not a value
    new = entries_of(schema, keys, "seq > %(mark)s AND seq <= %(goal)s", " AND fix.seq <= %(goal)s")
    old = _taken(schema, keys, "true", "%(mark)s", " AND seq <= %(goal)s")
    return cells_statement(schema, "hourly", f"{new} UNION ALL {old}")


def cells_statement(schema: str, table: str, parts: str) -> str:
    """What adds the sums of a selection to the cells of a table."""
    columns = ", ".join(("at", *DIMENSIONS))
    return (
        f"INSERT INTO {schema}.{table} (cell, {columns}, {', '.join((*SUMS, *MORE))}) "  # noqa: S608 - only names of ours; values are bound
        f"SELECT {CELL}, {columns}, {added(schema)} FROM ({parts}) AS parts GROUP BY {columns} "
        f"ON CONFLICT (cell) DO UPDATE SET {', '.join(_updates(schema, table))}"
    )


def _updates(schema: str, table: str) -> list[str]:
    """What adds a new cell to one that is there."""
    return [
        *(f"{name} = coalesce({table}.{name} + excluded.{name}, {table}.{name}, excluded.{name})" for name in SUMS),
        *(
            f"{name} = coalesce({schema}.add_quantities({table}.{name}, excluded.{name}), {table}.{name}, excluded.{name})"
            for name in MORE
        ),
    ]


def summary(schema: str, query: Query, keys: Sequence[GroupKey], period: Period | None, *, gone: bool = False) -> Bound:
    """The statement for a summary, from entries alone or, with a period, from cells as well.

    Args:
        gone: add the sums of compacted entries, where cells do not have them.
    """
    expressions = [_expression(key) for key in keys]
    names = [f"k{place}" for place in range(len(keys))]
    selected = "".join(f"{text} AS {name}, " for (text, _), name in zip(expressions, names, strict=True)) + "currency"
    bound = [value for _, values in expressions for value in values]
    parts: list[Bound] = []

    def add(text: str, values: list[Any]) -> None:
        parts.append((text, [*bound, *values]))

    if period is None:
        where, values = where_of(query, (query.since_ns, query.until_ns))
        add(entries_of(schema, selected, where), values)
        if gone:
            add(f"SELECT {selected}, {', '.join((*SUMS, *MORE))} FROM {schema}.daily WHERE {where}", values)  # noqa: S608 - only names of ours; values are bound
    else:
        mark = f"(SELECT mark FROM {schema}.state)"  # noqa: S608 - only names of ours
        where, values = where_of(query, (period.first, period.last))
        cells = f"SELECT {selected}, {', '.join((*SUMS, *MORE))} FROM {schema}.hourly WHERE {where}"  # noqa: S608 - only names of ours; values are bound
        add(cells, values)
        add(entries_of(schema, selected, f"seq > {mark} AND {where}"), values)
        add(_taken(schema, selected, where, mark), values)
        for end in period.ends:
            where, values = where_of(query, end)
            add(entries_of(schema, selected, where), values)
    grouping = ", ".join([*names, "currency"])
    as_text = ", ".join([*SUMS, *(f"{name}::text" for name in MORE)])  # the driver would read numbers in JSON as floats
    return (
        f"SELECT {grouping}, {as_text} FROM (SELECT {grouping}, {added(schema)} FROM ({' UNION ALL '.join(text for text, _ in parts)}) AS parts GROUP BY {grouping}) AS sums",  # noqa: S608 - only names of ours; values are bound
        [value for _, values in parts for value in values],
    )


def read_group(row: Sequence[Any], keys: int) -> Group:
    """The group of a row of a `summary`, of which the first columns are its keys."""
    key = tuple(map(as_read, row[:keys]))
    values = row[keys + 1 :]
    sums = dict(zip(SUMS, values[: len(SUMS)], strict=True))
    more, unpriced = map(load_sums, values[len(SUMS) :])
    return group_of(key, as_read(row[keys]), sums, [more], [unpriced])
