"""A charge as one row of columns, and back. Shared by every ledger that speaks SQL.

What reports group by and add up has a column; the rest of usage, tags, lines and the raw answer is compact JSON, present
only where there is something to say. Exact: integers stay integers, `Decimal` quantities are text.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from aifinops.charges import Charge
from aifinops.tags import EMPTY, Tags
from aifinops.usage import EMPTY_QUANTITIES, Quantities, Quantity

__all__ = [
    "COLUMNS",
    "METER_COLUMNS",
    "PLAIN_COLUMNS",
    "TAG_COLUMNS",
    "charge_of",
    "clean_text",
    "dump_json",
    "dump_quantities",
    "frozen",
    "line_of",
    "load_quantities",
    "packed",
    "row_of",
    "row_of_line",
    "thawed",
    "unpacked",
]

PLAIN_COLUMNS = (
    "id",
    "at",
    "duration",
    "provider",
    "operation",
    "model",
    "response_model",
    "response_id",
    "service",
    "tier",
    "region",
    "amount",
    "currency",
    "basis",
    "lower",
    "upper",
    "price_id",
    "price_as_of",
    "price_source",
    "status",
    "error",
    "trace_id",
    "span_id",
    "corrects",
)
"""Columns that hold the field of the same name as it is."""

TAG_COLUMNS = ("team", "project", "feature", "customer", "environment", "run")
"""Tags with a column of their own; NULL where the tag was not given."""

METER_COLUMNS = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "requests",
)
"""Meters with a column of their own; NULL where there was no such usage."""

COLUMNS = (*PLAIN_COLUMNS, "stream", *TAG_COLUMNS, *METER_COLUMNS, "quantities", "tags", "lines", "raw")
"""Every column, in the order of `row_of`."""

_PLAIN = len(PLAIN_COLUMNS)
_TAGS = _PLAIN + 1
_METERS = _TAGS + len(TAG_COLUMNS)
_JSON = _METERS + len(METER_COLUMNS)
_TAG_PLACE = {name: place for place, name in enumerate(TAG_COLUMNS)}
_METER_PLACE = {name: place for place, name in enumerate(METER_COLUMNS)}
_NO_TAGS = (None,) * len(TAG_COLUMNS)
_NO_METERS = (None,) * len(METER_COLUMNS)

# Larger counts go to JSON, so that sums of a few columns stay within the integers of every engine.
_LARGEST = 2**53


def _plain(value: object) -> Any:
    """What JSON has no form for: mappings and sequences of other types become plain ones, anything else its text."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    return str(value)


def _encoder() -> Callable[[Any], str]:
    """A function from a value to compact JSON: `JSONEncoder.encode` without making its machinery anew for each value.

    In ASCII, where half a surrogate pair is an escape and not an error."""
    slow = json.JSONEncoder(separators=(",", ":"), default=_plain)
    try:
        make: Any = vars(json.encoder)["c_make_encoder"]
        parts = make(None, _plain, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, True)
        if "".join(parts(_PROBE, 0)) == slow.encode(_PROBE):
            return lambda value: "".join(parts(value, 0))
    except (KeyError, TypeError):  # a Python without the C encoder, or with another one
        pass
    return slow.encode


_PROBE = [None, True, 1, 0.5, "é\n", {"a": {"b": [Decimal(1)]}}]
_dump = _encoder()
dump_json = _dump
"""Compact JSON of whatever a provider's answer holds."""


_values = attrgetter(*PLAIN_COLUMNS, "stream", "tags", "quantities")

Packed = tuple[Any, ...]
"""A charge in the hand: plain fields, stream, tags and quantities as they are, lines and raw as JSON."""


def packed(charge: Charge) -> Packed:
    """What is kept of a charge until it is a row: nothing in it changes any more, and nothing is done twice."""
    lines, raw = charge.lines, charge.raw
    return (*_values(charge), _dump(lines) if lines else None, None if raw is None else _dump(raw))


def row_of(charge: Charge) -> tuple[Any, ...]:
    """The values of `COLUMNS`."""
    return unpacked(packed(charge))


def unpacked(values: Packed) -> tuple[Any, ...]:
    """The values of `COLUMNS`, of a packed charge."""
    stream, tags, quantities, lines, raw = values[_PLAIN:]
    meter_values, more_quantities = _split_quantities(quantities) if quantities else (_NO_METERS, None)
    tag_values, more_tags = _split_tags(tags) if tags else (_NO_TAGS, None)
    return (*values[:_PLAIN], 1 if stream else 0, *tag_values, *meter_values, more_quantities, more_tags, lines, raw)


def line_of(values: Packed) -> str:
    """A packed charge as one line of JSON."""
    return f"{_dump(values[:-2])[:-1]},{values[-2] or 'null'},{values[-1] or 'null'}]"


def row_of_line(line: bytes) -> tuple[Any, ...]:
    """The row of what `line_of` wrote.

    Raises:
        ValueError: for a line that it did not write.
    """
    values = json.loads(line)
    if not isinstance(values, list) or len(values) != _PLAIN + 5:
        raise ValueError("no line of a journal")
    *first, lines, raw = values
    return unpacked((*first, _dump(lines) if lines else None, None if raw is None else _dump(raw)))


_plain_values = attrgetter(*PLAIN_COLUMNS, "stream")
_FORM = 2  # of marshal: every Python reads it, and it looks for no repetitions


def frozen(charge: Charge) -> bytes:
    """A charge as bytes, in half the time that JSON takes: for what the caller waits for.

    Such bytes are read by programs of the same user only. Reading what was damaged gives an error or nonsense, so they need a checksum.
    """
    tags, quantities = charge.tags, charge.quantities
    if type(tags) is MappingProxyType:
        tags = tags.copy()
    if type(quantities) is MappingProxyType:
        quantities = quantities.copy()
    values: Any = (_plain_values(charge), tags, quantities, charge.lines, charge.raw)
    try:
        return marshal.dumps(values, _FORM)
    except ValueError:  # a Decimal, a mapping of another type, anything that a provider's usage object may hold
        return marshal.dumps(json.loads(_dump(values)), _FORM)


def thawed(data: bytes | memoryview) -> tuple[Any, ...]:
    """The row of what `frozen` made.

    Raises:
        ValueError, EOFError, TypeError: for what it did not make.
    """
    plain, tags, quantities, lines, raw = marshal.loads(data)  # noqa: S302 - holds no code that is run, and is our own
    return unpacked((*plain, tags, quantities, _dump(lines) if lines else None, None if raw is None else _dump(raw)))


def _split_quantities(quantities: Mapping[str, Any]) -> tuple[Sequence[int | None], str | None]:
    columns: list[int | None] = [None] * len(METER_COLUMNS)
    more: dict[str, Any] = {}
    for name, value in quantities.items():
        place = _METER_PLACE.get(name)
        if place is None or type(value) is not int or not -_LARGEST < value < _LARGEST:
            more[name] = value
        else:
            columns[place] = value
    return columns, dump_quantities(more) if more else None


def _split_tags(tags: Tags) -> tuple[Sequence[str | None], str | None]:
    columns: list[str | None] = [None] * len(TAG_COLUMNS)
    more: dict[str, str] = {}
    for name, value in tags.items():
        place = _TAG_PLACE.get(name)
        if place is None:
            more[name] = value
        else:
            columns[place] = value
    return columns, _dump(more) if more else None


def dump_quantities(quantities: Mapping[str, Any]) -> str:
    """Compact JSON; a `Decimal` is text, so that nothing reads it as a float."""
    return _dump({name: str(value) if isinstance(value, Decimal) else value for name, value in quantities.items()})


def load_quantities(text: str) -> dict[str, Quantity]:
    """The quantities that `dump_quantities` wrote."""
    return dict(_exact(json.loads(text)))


def charge_of(row: Sequence[Any]) -> Charge:
    """The charge that `row_of` made this row of."""
    fields: dict[str, Any] = dict(zip(PLAIN_COLUMNS, row[:_PLAIN], strict=True))
    quantities, tags, lines, raw = row[_JSON:]
    return Charge(
        **fields,
        stream=bool(row[_PLAIN]),
        tags=_join_tags(row[_TAGS:_METERS], tags),
        quantities=_join_quantities(row[_METERS:_JSON], quantities),
        lines=tuple((meter, amount) for meter, amount in json.loads(lines)) if lines else (),
        raw=None if raw is None else json.loads(raw),
    )


def _exact(values: Mapping[str, Any]) -> Quantities:
    if not values:
        return EMPTY_QUANTITIES
    return {name: Decimal(value) if isinstance(value, str) else value for name, value in values.items()}


def _join_quantities(columns: Sequence[int | None], more: str | None) -> Quantities:
    found: dict[str, Quantity] = {
        name: value for name, value in zip(METER_COLUMNS, columns, strict=True) if value is not None
    }
    if more:
        found.update(load_quantities(more))
    return MappingProxyType(found) if found else EMPTY_QUANTITIES


def _join_tags(columns: Sequence[str | None], more: str | None) -> Tags:
    found = {name: value for name, value in zip(TAG_COLUMNS, columns, strict=True) if value is not None}
    if more:
        found.update(json.loads(more))
    return MappingProxyType(found) if found else EMPTY


def clean_text(row: Sequence[Any]) -> tuple[Any, ...]:
    """The row with each lone half of a surrogate pair replaced by `?`: it has no UTF-8 form, so no database takes it."""
    return tuple(value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value for value in row)
