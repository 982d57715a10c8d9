"""What an OpenTelemetry Collector writes into ClickHouse can be reported on: its standard tables, our views, the sums of the ledger.

The tables are those that the collector's exporter makes
(https://github.com/open-telemetry/opentelemetry-collector-contrib/blob/main/exporter/clickhouseexporter/internal/sqltemplates/logs_table.sql
and traces_table.sql beside it), on the engine itself. Rows are written as the exporter does it: each attribute as pdata's `AsString` has it.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger import open_ledger
from aifinops.ledger.base import Query
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.otel_views import LOGS_VIEW, TRACES_VIEW, otel_sql
from aifinops.ledger.otlp import export_request
from aifinops.telemetry import names
from aifinops.telemetry.attributes import inference
from aifinops.testing.ledger import HOUR, START, example_charge, random_charges

if importlib.util.find_spec("chdb") is None:
    pytest.skip("needs chdb", allow_module_level=True)

from aifinops.ledger.clickhouse_link import EngineLink

NUMBERS = itertools.count(1)
MAP = "Map(LowCardinality(String), String) CODEC(ZSTD(1))"
LOGS = f"""CREATE TABLE otel_logs (
    Timestamp DateTime64(9) CODEC(Delta(8), ZSTD(1)), TimestampTime DateTime DEFAULT toDateTime(Timestamp),
    TraceId String, SpanId String, TraceFlags UInt8, SeverityText LowCardinality(String), SeverityNumber UInt8,
    ServiceName LowCardinality(String), Body String, ResourceSchemaUrl LowCardinality(String), ResourceAttributes {MAP},
    ScopeSchemaUrl LowCardinality(String), ScopeName String, ScopeVersion LowCardinality(String), ScopeAttributes {MAP}, LogAttributes {MAP},
    EventName String CODEC(ZSTD(1)),
    INDEX idx_log_attr_key mapKeys(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_log_attr_value mapValues(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = MergeTree PARTITION BY toDate(TimestampTime) PRIMARY KEY (ServiceName, TimestampTime)
ORDER BY (ServiceName, TimestampTime, Timestamp) SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1"""
TRACES = f"""CREATE TABLE otel_traces (
    Timestamp DateTime64(9) CODEC(Delta(8), ZSTD(1)), TraceId String, SpanId String, ParentSpanId String, TraceState String,
    SpanName LowCardinality(String), SpanKind LowCardinality(String), ServiceName LowCardinality(String), ResourceAttributes {MAP},
    ScopeName String, ScopeVersion String, SpanAttributes {MAP}, Duration UInt64 CODEC(T64, ZSTD(1)),
    StatusCode LowCardinality(String), StatusMessage String,
    Events Nested (Timestamp DateTime64(9), Name LowCardinality(String), Attributes Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    Links Nested (TraceId String, SpanId String, TraceState String, Attributes Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
    INDEX idx_span_attr_key mapKeys(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = MergeTree PARTITION BY toDate(Timestamp) PRIMARY KEY (ServiceName, SpanName, toDateTime(Timestamp))
ORDER BY (ServiceName, SpanName, toDateTime(Timestamp), Timestamp) SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1"""


def as_string(value: Any) -> str:
    """As pdata's `Value.AsString`: numbers as JSON has them in Go, lists as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}" if value == 0 or 1e-6 <= abs(value) < 1e21 else f"{value:e}"
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture
def collector(engine_folder: Path) -> EngineLink:
    """A database with the exporter's tables and our views."""
    link = EngineLink(engine_folder, f"otel_{os.getpid()}_{next(NUMBERS)}", 60)
    link.command(f"CREATE DATABASE {link.database}")
    for table in (LOGS, TRACES):
        link.command(table.replace("CREATE TABLE ", f"CREATE TABLE {link.database}."))
    for statement in otel_sql(link.database).split(";\n"):
        if statement.strip():
            link.command(statement)
    return link


def write_logs(link: EngineLink, charges: Sequence[Charge], *, event_name: bool = True) -> None:
    """The rows of one push."""
    request = export_request(charges, beside=_beside, resource={"service.name": "shop"})
    rows = []
    for record in request.resource_logs[0].scope_logs[0].log_records:
        attributes = {one.key: as_string(getattr(one.value, one.value.WhichOneof("value"))) for one in record.attributes}  # fmt: skip
        seconds = f"{record.time_unix_nano // 10**9}.{record.time_unix_nano % 10**9:09d}"
        rows.append(
            [
                seconds,
                record.trace_id.hex(),
                record.span_id.hex(),
                0,
                record.severity_text,
                record.severity_number,
                "shop",
                "",
                "",
                {"service.name": "shop"},
                "",
                "aifinops",
                "0",
                {},
                attributes,
                record.event_name if event_name else "",
            ]
        )
    columns = ["Timestamp", "TraceId", "SpanId", "TraceFlags", "SeverityText", "SeverityNumber", "ServiceName", "Body", "ResourceSchemaUrl", "ResourceAttributes", "ScopeSchemaUrl", "ScopeName", "ScopeVersion", "ScopeAttributes", "LogAttributes", "EventName"]  # fmt: skip
    link.insert(f"{link.database}.otel_logs", columns, "\n".join(map(json.dumps, rows)).encode())


def _beside(charge: Charge) -> dict[str, Any]:
    """The attributes of the span; counts that no integer of OTLP holds are in the charge alone."""
    attributes = inference(charge, {}, compat=True)
    return {name: value for name, value in attributes.items() if not isinstance(value, int) or abs(value) < 2**63}


def write_spans(link: EngineLink, charges: Sequence[Charge]) -> None:
    """The rows of one push."""
    rows = []
    for charge in charges:
        attributes = {name: as_string(value) for name, value in inference(charge, _facts(charge), compat=True).items()}
        seconds = f"{charge.at // 10**9}.{charge.at % 10**9:09d}"
        rows.append([seconds, charge.trace_id, charge.span_id, "", "", "chat gpt", "Client", "shop", {}, "aifinops", "0", attributes, charge.duration, "Unset", "", [], [], [], [], [], [], []])  # fmt: skip
    columns = ["Timestamp", "TraceId", "SpanId", "ParentSpanId", "TraceState", "SpanName", "SpanKind", "ServiceName", "ResourceAttributes", "ScopeName", "ScopeVersion", "SpanAttributes", "Duration", "StatusCode", "StatusMessage", "Events.Timestamp", "Events.Name", "Events.Attributes", "Links.TraceId", "Links.SpanId", "Links.TraceState", "Links.Attributes"]  # fmt: skip
    link.insert(f"{link.database}.otel_traces", columns, "\n".join(map(json.dumps, rows)).encode())


def _facts(charge: Charge) -> dict[str, str]:
    return {names.ERROR_TYPE: charge.error} if charge.error else {}


def reading(link: EngineLink, view: str) -> Any:
    return open_ledger(f"chdb:///{link.path}?database={link.database}&view={view}", create=False)


def test_charges_from_logs_are_those_of_the_ledger(collector: EngineLink) -> None:
    """Whole charges come out of the collector's log table, each once, however often and in whatever order it was delivered."""
    charges = [replace(charge, trace_id="ab" * 16, span_id="cd" * 8) for charge in random_charges(31, 150)]
    charges += [
        example_charge(
            1000, quantities={"gpu_seconds": Decimal("1E-40"), "input_tokens": 2**70, "output_tokens": 2**53}
        ),
        example_charge(1001, tags={"team": "", "odd": "a\"b'c\\d é😀"}, raw={}, lines=()),
        example_charge(1002, amount=2**63 - 1, lower=-(2**63 - 1), upper=0, duration=0, trace_id="", span_id=""),
    ]
    delivered = charges + charges[20:70]
    random.Random(1).shuffle(delivered)
    for start in range(0, len(delivered), 50):
        write_logs(collector, delivered[start : start + 50], event_name=bool(start % 100))
    ledger = reading(collector, LOGS_VIEW)
    expected = MemoryLedger()
    expected.append_many(charges)
    assert list(ledger.rows()) == list(expected.rows())
    for by in ((), ("team", "model", "day"), ("hour", "basis"), ("odd",), ("customer",)):
        for query in (Query(), Query(since_ns=START + 10 * 24 * HOUR, where={"currency": "USD"})):
            assert ledger.summarize(query, by) == expected.summarize(query, by), by
    assert ledger.info().entries == len(charges)
    assert ledger.verify().entries == len(charges)


def test_money_and_tokens_from_spans_are_those_of_the_ledger(collector: EngineLink) -> None:
    """What spans say of calls adds up to what the ledger has: amounts, calls, tokens, unpriced calls, tags."""
    source = random.Random(2)
    tokens = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "output_tokens", "reasoning_tokens")  # fmt: skip
    charges = [
        example_charge(
            number,
            at=START + number * HOUR // 5,
            model=source.choice(["gpt-5", "claude"]),
            quantities={name: source.randrange(1, 10**6) for name in tokens},
            amount=amount,
            lower=amount,
            upper=amount,
            basis="unknown" if amount is None else "priced",
            error=source.choice(["", "", "TimeoutError"]),
            tags={"team": source.choice("ab"), "cost_center": source.choice("12"), "other": "x"},
        )
        for number, amount in enumerate(
            source.choice([None, source.randrange(10**10), 1, 999_999_999]) for _ in range(200)
        )
    ]
    charges = [replace(charge, status="error" if charge.error else "ok") for charge in charges]
    write_spans(collector, charges + charges[:40])
    ledger = reading(collector, TRACES_VIEW)
    expected = MemoryLedger()
    expected.append_many(charges)
    for by in ((), ("team", "model", "day"), ("cost_center",), ("other", "status"), ("provider", "tier", "basis")):
        assert ledger.summarize(by=by) == expected.summarize(by=by), by
    found = {charge.id: charge for charge in ledger.rows()}
    wanted = next(charge for charge in charges if charge.amount)
    for name in ("id", "at", "provider", "operation", "response_id", "price_id", "trace_id", "span_id", "stream", "tags", "duration"):  # fmt: skip
        assert getattr(found[wanted.id], name) == getattr(wanted, name), name


def test_other_peoples_records_are_passed_over(collector: EngineLink) -> None:
    """Logs and spans of others are in the same tables and in neither view."""
    collector.insert(f"{collector.database}.otel_logs", ("Timestamp", "LogAttributes"), b'["1700000000.0", {"http.method": "GET"}]')  # fmt: skip
    collector.insert(f"{collector.database}.otel_traces", ("Timestamp", "SpanAttributes"), b'["1700000000.0", {"gen_ai.provider.name": "openai"}]')  # fmt: skip
    for view in (LOGS_VIEW, TRACES_VIEW):
        ledger = reading(collector, view)
        assert list(ledger.rows()) == []
        assert ledger.summarize() == []
        assert ledger.info().entries == 0


def test_a_view_can_only_be_read(collector: EngineLink) -> None:
    """Charges go to the collector, and the error says how."""
    ledger = reading(collector, LOGS_VIEW)
    with pytest.raises(StoreError, match="AIFINOPS_LEDGER=otlp://"):
        ledger.append(example_charge(1))
    with pytest.raises(ConfigurationError, match="can only be read"):
        open_ledger(f"chdb:///{collector.path}?database={collector.database}&view={LOGS_VIEW}")
    with pytest.raises(ConfigurationError, match=r"there is no view 'nothing'.*ledger sql --otel"):
        reading(collector, "nothing")
    with pytest.raises(ConfigurationError, match="no name of a view"):
        reading(collector, "a;b")


def test_every_name_in_the_views_is_one_that_we_emit() -> None:
    """The statements and `aifinops.telemetry.names` cannot drift apart."""
    emitted = {value for value in vars(names).values() if isinstance(value, str)} | set(names.TAGS.values())
    emitted |= {names.TAG_PREFIX, *(f"aifinops.usage.{part}" for part in ("cache_write_1h.input_tokens",))}
    attributes = inference(example_charge(1, quantities={"cache_write_1h_tokens": 1}), {}, compat=True)
    assert "aifinops.usage.cache_write_1h.input_tokens" in attributes
    _, _, traces = otel_sql().partition(f"{TRACES_VIEW} AS")
    used = set(re.findall(r"'((?:aifinops|gen_ai|error)\.[a-z0-9_.]+)'", traces))
    assert used
    assert used <= emitted


def test_a_name_that_is_none_is_refused() -> None:
    """Nothing but names gets into the statements."""
    with pytest.raises(ConfigurationError, match="no name of a database"):
        otel_sql("a; DROP TABLE b")
