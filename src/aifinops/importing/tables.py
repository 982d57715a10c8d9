"""A plain table: a row a call, with columns for the time, the model and the tokens, by whatever names people give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aifinops.errors import ConfigurationError, ImpossibleUsage
from aifinops.importing.records import TAG_NAMES, Malformed, Record, count, moment_ns, money, tags_of, text
from aifinops.meters import METERS
from aifinops.reading import Reading
from aifinops.usage import leaves

__all__ = ["FIELDS", "Table"]

FIELDS: Mapping[str, tuple[str, ...]] = {
    "time": ("time", "timestamp", "at", "date", "datetime", "created_at", "created", "start_time", "starttime", "started_at"),
    "end": ("end", "end_time", "endtime", "ended_at", "finished_at", "completed_at"),
    "duration_ms": ("duration_ms", "latency_ms"),
    "duration_s": ("duration_s", "duration", "latency", "latency_s"),
    "model": ("model", "model_name", "model_id", "request_model"),
    "provider": ("provider", "provider_name", "vendor", "gen_ai.provider.name"),
    "operation": ("operation", "endpoint", "call_type"),
    "prompt_tokens": ("prompt_tokens", "total_input_tokens", "contexttokens"),
    "completion_tokens": ("completion_tokens", "total_output_tokens", "generatedtokens"),
    "cached_tokens": ("cached_tokens", "cached_input_tokens"),
    "cost": ("cost", "cost_usd", "total_cost", "spend", "amount"),
    "currency": ("currency",),
    "tier": ("tier", "service_tier"),
    "region": ("region",),
    "id": ("id", "request_id", "call_id"),
    "response_id": ("response_id",),
    "requests": ("requests", "calls", "num_requests", "num_model_requests"),
    "error": ("error", "error_type"),
}  # fmt: skip
"""What a column can mean, and the names (in small letters) that it is known by without `--map`."""

_MEANING = {name: field for field, names in FIELDS.items() for name in names}


class Table:
    """Reads rows by their heading.

    Attributes:
        ignored: columns that mean nothing.

    Args:
        head: the columns. mapping: column -> field, meter or `tag:KEY`, over what its name says.
        constants: field -> what it is in every row: `{"model": "gpt-5-mini"}` for a table without a column of that.

    Raises:
        ConfigurationError: for a mapping that names no column or nothing that a column can mean, and for a table without a time or model.
    """

    def __init__(self, head: Sequence[str], mapping: Mapping[str, str], constants: Mapping[str, str]) -> None:
        strange = [field for field in constants if field not in FIELDS]
        if strange:
            raise ConfigurationError(f"--set {strange[0]}=...: a field can be {', '.join(FIELDS)}")
        self._constants = constants
        wrong = [column for column in mapping if column not in head]
        if wrong:
            raise ConfigurationError(f"there is no column {wrong[0]!r}; the table has {', '.join(head)}")
        self._places: dict[str, str] = {}
        self.ignored: list[str] = []
        for column in head:
            meaning = _meaning(column, mapping.get(column))
            if meaning is None:
                self.ignored.append(column)
            elif meaning in self._places and column not in mapping:
                self.ignored.append(column)  # two names of one thing: the first counts
            else:
                self._places[meaning] = column
        for needed in ("time", "model"):
            if needed not in self._places and needed not in constants:
                raise ConfigurationError(
                    f"no column of {', '.join(head)} is the {needed} of a call; say which: --map {head[0]}={needed}"
                    + (", or the same for all: --set model=NAME" if needed == "model" else "")
                )

    def record(self, row: Mapping[str, Any]) -> Record:
        """The call of a row."""
        get = {**{meaning: row.get(column) for meaning, column in self._places.items()}, **self._constants}.get
        model = text(get("model"))
        if not model:
            raise Malformed("names no model")
        began = moment_ns(get("time"), self._places.get("time", "time"))
        counts, requests = self._counts(row), count(get("requests"), "requests")
        theirs = money(get("cost"), "cost")
        if not counts and theirs is None:
            raise Malformed("has neither usage nor a cost")
        found = text(get("response_id"))
        return Record(
            provider=text(get("provider")).lower(), model=model, operation=text(get("operation")) or "chat", at=began,
            duration=self._duration(row, began), reading=Reading(
                {**counts, "requests": requests} if requests else counts, response_id=found, tier=text(get("tier")), region=text(get("region")),
            ),
            key=found or text(get("id")), requests=requests if requests > 1 else None, theirs=theirs, currency=_currency(get("currency")),
            paid=theirs is not None, error=text(get("error")), tags=self._tags(row),
        )  # fmt: skip

    def _counts(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Columns named after a meter are disjoint; `prompt_tokens` and `completion_tokens` are totals of which others are parts."""
        counts = {
            meter: count(row.get(column), column)
            for meter, column in self._places.items()
            if meter in METERS and meter != "requests"
        }
        cached = self._places.get("cached_tokens")
        if cached is not None:
            counts["cache_read_tokens"] = count(row.get(cached), cached)
        for whole, rest, direction in (
            ("prompt_tokens", "input_tokens", "input"),
            ("completion_tokens", "output_tokens", "output"),
        ):
            column = self._places.get(whole)
            if column is not None:
                parts = {
                    meter: number
                    for meter, number in counts.items()
                    if METERS[meter].direction == direction and METERS[meter].family == "tokens" and meter != rest
                }
                try:
                    counts[rest] = int(leaves(count(row.get(column), column), parts, whole_name=column))
                except ImpossibleUsage as error:
                    raise Malformed(str(error)) from None
        return {meter: number for meter, number in counts.items() if number}

    def _duration(self, row: Mapping[str, Any], began: int) -> int:
        for field, factor in (("duration_ms", 10**6), ("duration_s", 10**9)):
            column = self._places.get(field)
            if column is not None and row.get(column):
                found = money(row[column], column)
                return int(found * factor) if found is not None else 0
        column = self._places.get("end")
        return max(moment_ns(row[column], column) - began, 0) if column is not None and row.get(column) else 0

    def _tags(self, row: Mapping[str, Any]) -> Mapping[str, str]:
        return tags_of(
            {
                meaning.removeprefix("tag:"): text(row.get(column))
                for meaning, column in self._places.items()
                if meaning.startswith("tag:")
            }
        )


def _meaning(column: str, told: str | None) -> str | None:
    """A field, a meter or `tag:KEY`; None for a column that says nothing to us."""
    if told is not None:
        if told in FIELDS or told in METERS or told.startswith("tag:") or told in TAG_NAMES:
            return f"tag:{told}" if told in TAG_NAMES else told
        known = ", ".join([*FIELDS, "a meter such as input_tokens", "tag:KEY"])
        raise ConfigurationError(f"--map {column}={told}: a column can be {known}")
    name = column.strip().lower().replace(" ", "_").replace("-", "_")
    if name in _MEANING:
        return _MEANING[name]
    if name in METERS:
        return name
    if name in TAG_NAMES or name == "user":
        return f"tag:{name}"
    return column if column.startswith("tag:") else None


def _currency(value: Any) -> str:
    found = text(value).upper() or "USD"
    if len(found) != 3 or not found.isalpha():
        raise Malformed(f"currency {value!r} is none; write USD")
    return found
