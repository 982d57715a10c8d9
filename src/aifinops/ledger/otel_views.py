"""Views in ClickHouse over what the OpenTelemetry Collector writes there, with the columns of our own table of charges.

The exporter's tables: https://github.com/open-telemetry/opentelemetry-collector-contrib/tree/main/exporter/clickhouseexporter, whose
attributes are maps of texts. Records of the log event `aifinops.cost.recorded` (`aifinops.ledger.otlp`) are whole charges, so that their
view is exact. Spans say less (see `TRACES_SAY`), and are sampled away where the application samples.

A collector delivers at least once: each view has one row for each record id.
"""

from __future__ import annotations

from aifinops.errors import ConfigurationError
from aifinops.ledger.codec import METER_COLUMNS, TAG_COLUMNS
from aifinops.ledger.otlp import PREFIX

__all__ = ["LOGS_VIEW", "TRACES_SAY", "TRACES_VIEW", "otel_sql"]

LOGS_VIEW = "aifinops_otel_logs"
TRACES_VIEW = "aifinops_otel_traces"

TRACES_SAY = (
    "Amounts are binary fractions there, rounded back to a billionth: exact up to 9 million in one call. Tokens are totals, so that those "
    "of pictures and sound count as plain ones. Bounds of estimates, lines and raw usage are not on spans."
)

_LARGEST = 2**53  # see `aifinops.ledger.codec`: larger counts have no column

_FORM = "match(v, '^-?[0-9]{1,44}([.][0-9]{1,30})?$')"
"""That a quantity has a form as Decimal(76, 30) to its last digit: reading it as one would round it."""

_TEXTS = ("provider", "operation", "model", "response_model", "response_id", "service", "tier", "region", "currency", "basis", "status", "error", "corrects")  # fmt: skip


def otel_sql(database: str = "otel", *, logs: str = "otel_logs", traces: str = "otel_traces") -> str:
    """Statements that make both views.

    Args:
        database: of the exporter. logs, traces: names of its tables.

    Raises:
        ConfigurationError: for what is no name.
    """
    for name in (database, logs, traces):
        if not name.replace("_", "a").isalnum() or not name.isascii():
            raise ConfigurationError(f"{name!r} is no name of a database or table; use letters, digits and _")
    return f"{_logs(database, logs)};\n\n{_traces(database, traces)};\n"


# --- logs ---------------------------------------------------------------------------------------------------------------


def _of(name: str) -> str:
    return f"LogAttributes['{PREFIX}{name}']"


def _has(name: str) -> str:
    return f"mapContains(LogAttributes, '{PREFIX}{name}')"


def _below(what: str, columns: tuple[str, ...], more: str = "") -> str:
    """The map of attributes below a name, without it, but for those that have a column."""
    prefix = f"{PREFIX}{what}."
    named = ", ".join(f"'{column}'" for column in columns)
    return (
        f"mapFromArrays(arrayMap(k -> substring(k, {len(prefix) + 1}), arrayFilter((k, v) -> startsWith(k, '{prefix}') AND "
        f"NOT (substring(k, {len(prefix) + 1}) IN ({named}){more}), mapKeys(LogAttributes), mapValues(LogAttributes))), "
        f"arrayFilter((v, k) -> startsWith(k, '{prefix}') AND "
        f"NOT (substring(k, {len(prefix) + 1}) IN ({named}){more}), mapValues(LogAttributes), mapKeys(LogAttributes)))"
    )


def _logs(database: str, table: str) -> str:
    small = f" AND ifNull(abs(toInt64OrNull(v)) < {_LARGEST}, 0)"
    columns = {
        "id": _of("id"),
        "at": "toInt64(toUnixTimestamp64Nano(Timestamp))",
        "duration": f"toInt64OrZero({_of('duration')})",
        **{name: _of(name) for name in _TEXTS},
        **{name: f"toInt64OrNull({_of(name)})" for name in ("amount", "lower", "upper")},
        **{
            name: f"if({_has(name)}, {_of(name)}, CAST(NULL AS Nullable(String)))"
            for name in ("price_id", "price_as_of", "price_source", "lines", "raw")
        },
        **{
            name: f"if({_has(f'tag.{name}')}, {_of(f'tag.{name}')}, CAST(NULL AS Nullable(String)))"
            for name in TAG_COLUMNS
        },
        **{
            name: f"if(abs(toInt64OrNull({_of(f'quantity.{name}')})) < {_LARGEST}, toInt64OrNull({_of(f'quantity.{name}')}), NULL)"
            for name in METER_COLUMNS
        },
        "stream": f"toUInt8({_of('stream')} = 'true')",
        "trace_id": f"if({_has('trace_id')}, {_of('trace_id')}, TraceId)",
        "span_id": f"if({_has('span_id')}, {_of('span_id')}, SpanId)",
        "tags": "if(empty(more_tags), NULL, toJSONString(more_tags))",
        "quantities": "if(empty(more), NULL, toJSONString(more))",
        "names": f"arrayFilter((k, v) -> {_FORM}, mapKeys(more), mapValues(more))",
        "values": f"arrayMap(v -> toDecimal256(v, 30), arrayFilter(v -> {_FORM}, mapValues(more)))",
        "odd": f"if(arrayExists(v -> NOT {_FORM}, mapValues(more)), [toJSONString(mapFilter((k, v) -> NOT {_FORM}, more))], [])",
        "uncertain": f"toUInt8(isNull(toInt64OrNull({_of('amount')})) OR {_of('basis')} = 'estimated')",
    }
    listed = ",\n    ".join(f"{text} AS {name}" for name, text in columns.items())
    return (
        f"CREATE OR REPLACE VIEW {database}.{LOGS_VIEW} AS\n"
        f"WITH\n    {_below('tag', TAG_COLUMNS)} AS more_tags,\n    {_below('quantity', METER_COLUMNS, small)} AS more\n"
        f"SELECT\n    {listed}\nFROM {database}.{table}\nWHERE {_has('id')} AND {_has('duration')}\nLIMIT 1 BY {_of('id')}"
    )


# --- traces -------------------------------------------------------------------------------------------------------------

_SPAN_TEXTS = {
    "id": "aifinops.record.id",
    "provider": "gen_ai.provider.name",
    "operation": "gen_ai.operation.name",
    "model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "response_id": "gen_ai.response.id",
    "tier": "aifinops.price.tier",
    "error": "error.type",
}
_SPAN_MAYBE = {"price_id": "aifinops.price.id", "price_source": "aifinops.price.version"}
_SPAN_TAGS = {
    "team": "aifinops.team",
    "project": "aifinops.project",
    "feature": "aifinops.feature",
    "customer": "aifinops.customer",
    "environment": "aifinops.environment",
    "run": "aifinops.run.id",
}
_SPAN_MORE_TAGS = {"cost_center": "aifinops.cost_center"}
_SPAN_TAG_PREFIX = "aifinops.tag."
_SPAN_TOKENS = {
    "input": ("gen_ai.usage.input_tokens",),
    "output": ("gen_ai.usage.output_tokens",),
    "cache_read": ("gen_ai.usage.cache_read.input_tokens",),
    "cache_write": ("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_write.input_tokens"),
    "cache_write_1h": ("aifinops.usage.cache_write_1h.input_tokens",),
    "reasoning": ("gen_ai.usage.reasoning.output_tokens",),
}
_SPAN_COST = {
    "amount": "aifinops.cost.total",
    "currency": "aifinops.cost.currency",
    "basis": "aifinops.cost.basis",
    "stream": "gen_ai.request.stream",
}


def _attribute(name: str) -> str:
    return f"SpanAttributes['{name}']"


def _tokens(part: str) -> str:
    return f"coalesce({', '.join(f'toInt64OrNull({_attribute(name)})' for name in _SPAN_TOKENS[part])}, 0)"


def _present(part: str, text: str) -> str:
    """NULL where there is no such part, as in our own table."""
    has = " OR ".join(f"mapContains(SpanAttributes, '{name}')" for name in _SPAN_TOKENS[part])
    return f"if({has}, {text}, NULL)"


def _traces(database: str, table: str) -> str:
    amount = f"toInt64(round(toFloat64OrNull({_attribute(_SPAN_COST['amount'])}) * 1e9))"
    basis = (
        f"if({_attribute(_SPAN_COST['basis'])} IN ('unknown_price', ''), 'unknown', {_attribute(_SPAN_COST['basis'])})"
    )
    currency = _attribute(_SPAN_COST["currency"])
    columns = {
        **{name: _attribute(source) for name, source in _SPAN_TEXTS.items()},
        "at": "toInt64(toUnixTimestamp64Nano(Timestamp))",
        "duration": "toInt64(Duration)",
        "service": "if(mapContains(SpanAttributes, 'gen_ai.usage.input_tokens'), 'llm', '')",
        "region": "''",
        "currency": f"if({currency} = '', 'USD', {currency})",
        "basis": basis,
        "amount": amount,
        "lower": amount,
        "upper": amount,
        "price_as_of": "CAST(NULL AS Nullable(String))",
        **{name: f"nullIf({_attribute(source)}, '')" for name, source in _SPAN_MAYBE.items()},
        "status": f"if({_attribute('error.type')} = '', 'ok', 'error')",
        "trace_id": "TraceId",
        "span_id": "SpanId",
        "corrects": "''",
        "stream": f"toUInt8({_attribute(_SPAN_COST['stream'])} = 'true')",
        **{
            name: f"if(mapContains(SpanAttributes, '{source}'), {_attribute(source)}, CAST(NULL AS Nullable(String)))"
            for name, source in _SPAN_TAGS.items()
        },
        "input_tokens": _present("input", f"{_tokens('input')} - {_tokens('cache_read')} - {_tokens('cache_write')}"),
        "cache_read_tokens": _present("cache_read", _tokens("cache_read")),
        "cache_write_tokens": _present("cache_write", f"{_tokens('cache_write')} - {_tokens('cache_write_1h')}"),
        "cache_write_1h_tokens": _present("cache_write_1h", _tokens("cache_write_1h")),
        "output_tokens": _present("output", f"{_tokens('output')} - {_tokens('reasoning')}"),
        "reasoning_tokens": _present("reasoning", _tokens("reasoning")),
        "requests": "CAST(NULL AS Nullable(Int64))",
        "quantities": "CAST(NULL AS Nullable(String))",
        "tags": "if(empty(more_tags), NULL, toJSONString(more_tags))",
        "lines": "CAST(NULL AS Nullable(String))",
        "raw": "CAST(NULL AS Nullable(String))",
        "names": "CAST([] AS Array(String))",
        "values": "CAST([] AS Array(Decimal(76, 30)))",
        "odd": "CAST([] AS Array(String))",
        "uncertain": f"toUInt8(isNull({amount}) OR {basis} = 'estimated')",
    }
    renamed = ", ".join(f"'{source}', '{name}'" for name, source in _SPAN_MORE_TAGS.items())
    more = (
        f"mapApply((k, v) -> (if(startsWith(k, '{_SPAN_TAG_PREFIX}'), substring(k, {len(_SPAN_TAG_PREFIX) + 1}), map({renamed})[k]), v), "
        f"mapFilter((k, v) -> startsWith(k, '{_SPAN_TAG_PREFIX}') OR mapContains(map({renamed}), k), SpanAttributes))"
    )
    listed = ",\n    ".join(f"{text} AS {name}" for name, text in columns.items())
    record = _SPAN_TEXTS["id"]
    return (
        f"CREATE OR REPLACE VIEW {database}.{TRACES_VIEW} AS\nWITH\n    {more} AS more_tags\nSELECT\n    {listed}\n"
        f"FROM {database}.{table}\nWHERE mapContains(SpanAttributes, '{record}')\nLIMIT 1 BY {_attribute(record)}"
    )
