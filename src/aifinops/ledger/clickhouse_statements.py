"""The SQL of a ledger in ClickHouse: its tables, the statements over them, and how entries go to and fro."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from aifinops.charges import Charge
from aifinops.ledger.base import Group, GroupKey, Query
from aifinops.ledger.clickhouse_compaction import DAILY, TABLES
from aifinops.ledger.clickhouse_link import literal
from aifinops.ledger.codec import COLUMNS, METER_COLUMNS, TAG_COLUMNS, charge_of, clean_text, load_quantities, row_of
from aifinops.ledger.sql import DIMENSIONS, SUMS, group_of, load_sums, sums_of_entry
from aifinops.usage import Quantity

__all__ = [
    "INSERTED",
    "KEPT",
    "MIGRATIONS",
    "VERSIONS",
    "add_up",
    "cell_keys",
    "cells_of",
    "entries_of",
    "keys_of",
    "payload",
    "read_charge",
    "read_group",
    "summary",
    "sure_entries",
    "utf8",
    "where_of",
]

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

MIGRATIONS: tuple[tuple[str, ...], ...] = (
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
            for table in ("aifinops_hourly", DAILY)
        ),
        """CREATE TABLE IF NOT EXISTS {db}.aifinops_builds (at Int64, build UInt64, times UInt64, mark UInt64)
        ENGINE = ReplacingMergeTree(build) ORDER BY at""",
        "CREATE TABLE IF NOT EXISTS {db}.aifinops_corrections (until UInt64) ENGINE = ReplacingMergeTree ORDER BY tuple()",
        *TABLES,
    ),
)
"""A migration is a list of statements that takes the tables from the version before to its own. There are no transactions: each statement
may be run again."""
KEPT = "18446744073709551615 - earlier"
"""When an entry was inserted, by the server's clock, nanoseconds."""
VERSIONS = "CREATE TABLE IF NOT EXISTS {db}.aifinops_schema (version UInt32, since DateTime DEFAULT now()) ENGINE = MergeTree ORDER BY version"
"""The table of versions, before all others."""


# --- rows ---------------------------------------------------------------------------------------------------------------

INSERTED = (*COLUMNS, "names", "values", "odd")
"""The columns of a line of a `payload`."""
_QUANTITIES = COLUMNS.index("quantities")
_TAGS = COLUMNS.index("tags")
_INTEGER_PLACES = frozenset(
    place for place, name in enumerate(COLUMNS) if name in ("at", "duration") or name in _NULLABLE_INTEGERS
)
_ROOM = Decimal(10) ** 44  # two digits are left for the sum
_dump = json.JSONEncoder(separators=(",", ":")).encode
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def utf8(text: str) -> str:
    """Text without what UTF-8 has no form for."""
    return text.encode("utf-8", "replace").decode("utf-8")


def payload(charges: Iterable[Charge]) -> bytes:
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


def read_charge(row: list[Any]) -> Charge:
    """The entry of a row of `COLUMNS`, in which integers are text."""
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


def where_of(query: Query, period: tuple[int | None, int | None]) -> str:
    """SQL for the filters of a question and a period, nanoseconds; the same for entries and for cells."""
    conditions = ["1"]
    for value, operator in zip(period, (">=", "<"), strict=True):
        if value is not None:
            conditions.append(f"at {operator} {value}")
    for key, values in query.filters():
        written = ", ".join(literal(utf8(value)) for value in values)
        conditions.append(f"{_expression(key)} IN ({written})" if values else "0")
    return " AND ".join(conditions)


def keys_of(keys: Sequence[GroupKey]) -> str:
    """SQL for what a summary groups by, as `summary` calls it."""
    found = [f"toString({_expression(key)}) AS k{place}" for place, key in enumerate(keys)]
    return ", ".join([*found, "toString(currency) AS money"])


_NOTHING = "CAST([] AS Array(String)) AS {}, CAST([] AS Array(Decimal(76, 30))) AS {}, CAST([] AS Array(String)) AS {}"
_SURE_MORE = "names AS q_names, values AS q_values, odd AS q_odd, " + _NOTHING.format("u_names", "u_values", "u_odd")
_UNSURE_MORE = (
    _NOTHING.format("q_names", "q_values", "q_odd")
    + f", if({_UNPRICED}, names, []) AS u_names, if({_UNPRICED}, values, []) AS u_values, if({_UNPRICED}, odd, []) AS u_odd"
)
_CELL_MORE = "names AS q_names, values AS q_values, odd AS q_odd, unpriced_names AS u_names, unpriced_values AS u_values, unpriced_odd AS u_odd"


def sure_entries(source: str, keys: str, where: str) -> str:
    """The sums of entries one by one, all taken for sure."""
    return f"SELECT {keys}, {_SURE_SUMS}, {_SURE_MORE} FROM {source} WHERE {where}"  # noqa: S608 - names of ours and literals


def cells_of(table: str, keys: str, where: str) -> str:
    """The sums of cells one by one."""
    return f"SELECT {keys}, {_CELL_SUMS}, {_CELL_MORE} FROM {table} WHERE {where}"  # noqa: S608 - names of ours and literals


def entries_of(source: str, keys: str, where: str) -> str:
    """The sums of entries one by one.

    Args:
        source: the table, with `FINAL` where it may have an entry twice. keys: what is selected beside the sums. where: which.
    """
    return f"{sure_entries(source, keys, where)} UNION ALL {_uncertain(source, keys, where)}"


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


def cell_keys(at: str) -> str:
    """SQL for what cells are of, as `add_up` calls it; they begin at `at`."""
    return ", ".join([f"{at} AS start", *(f"{_dimension(name)} AS d_{name}" for name in DIMENSIONS)])


def add_up(table: str, build: int, entries: str) -> str:
    """The statement that writes cells: the sums of `entries` by `cell_keys`."""
    more = ", ".join(f"{name}{column}" for name in ("", "unpriced_") for column in ("names", "values", "odd"))
    dimensions = ", ".join(f"d_{name}" for name in DIMENSIONS)
    sums = ", ".join(f"{_sum(name)}(s_{name})" for name in SUMS)
    added = ", ".join(_added(one) for one in "qu")
    return (
        f"INSERT INTO {table} (at, build, {', '.join((*DIMENSIONS, *SUMS))}, {more}) "  # noqa: S608 - names of ours and integers
        f"SELECT start, {build}, {dimensions}, {sums}, {added} FROM ({entries}) GROUP BY start, {dimensions} "
        "SETTINGS do_not_merge_across_partitions_select_final = 1, max_query_size = 16777216"
    )


def summary(parts: Sequence[str], keys: int) -> str:
    """The statement that adds up parts, each selected by so many `keys_of`."""
    grouping = ", ".join([*(f"k{place}" for place in range(keys)), "money"])
    sums = ", ".join(f"{_sum(name)}(s_{name})" for name in SUMS)
    more = ", ".join(
        f"groupUniqArrayArray({one}_names), sumMap({one}_names, {one}_values), groupArrayArray({one}_odd)"
        for one in "qu"
    )
    return f"SELECT {grouping}, {sums}, {more} FROM ({' UNION ALL '.join(parts)}) GROUP BY {grouping}"  # noqa: S608 - names of ours and literals


def read_group(row: Sequence[Any], keys: int) -> Group:
    """The group of a row of a `summary`, of which the first columns are its keys."""
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
