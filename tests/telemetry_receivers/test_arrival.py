"""What real clients cost arrives at receivers that are not ours, attribute by attribute, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from receiving import Item, Rotel, free_port, run_program

pytest.importorskip("openai")

from aifinops import _version
from aifinops.telemetry import names
from aifinops.testing import FakeProvider

Row = dict[str, Any]
SCOPE = f"aifinops {_version.__version__} "


def port_of(provider: FakeProvider) -> int:
    return int(provider.base_url.partition("//")[2].partition("/")[0].rpartition(":")[2])


def of_call(row: Row, port: int, *, latest: bool = False) -> dict[str, Any]:
    """All attributes that the span of a call has, from its row and from what the provider answers; no more and no less."""
    quantities, chat = row["quantities"], row["operation"] == "chat"
    reasoning = quantities.get("reasoning_tokens", 0)
    usd = {
        "gpt-5-mini": {"input_tokens": 250, "output_tokens": 2000, "reasoning_tokens": 2000},
        "text-embedding-3-small": {"input_tokens": 20},
    }
    parts = {meter: count * usd[row["model"]][meter] / 10**9 for meter, count in quantities.items()}
    found = {
        "gen_ai.operation.name": row["operation"], "gen_ai.provider.name": "openai", "gen_ai.request.model": row["model"],
        "gen_ai.response.model": row["model"], "aifinops.record.id": row["id"], "server.address": "127.0.0.1", "server.port": port,
        "gen_ai.usage.input_tokens": quantities["input_tokens"], "aifinops.cost.basis": "priced", "aifinops.cost.total": row["amount"] / 10**9,
        "aifinops.cost.currency": "USD", "aifinops.cost.source": "local", "aifinops.cost.input": parts["input_tokens"],
        "gen_ai.usage.cost": row["amount"] / 10**9, "aifinops.team": "search",
    }  # fmt: skip
    if chat:
        found |= {
            "gen_ai.response.id": row["response_id"], "gen_ai.response.finish_reasons": ["stop"], "openai.api.type": "chat_completions",
            "openai.response.service_tier": "default", "aifinops.price.tier": "default", "aifinops.feature": "rerank",
            "gen_ai.usage.output_tokens": quantities["output_tokens"] + reasoning, "gen_ai.usage.reasoning.output_tokens": reasoning,
            "aifinops.cost.output": parts["output_tokens"] + parts["reasoning_tokens"], "aifinops.cost.reasoning": parts["reasoning_tokens"],
        }  # fmt: skip
    if row["stream"]:
        del found["gen_ai.response.finish_reasons"]
        found["gen_ai.request.stream"] = True
    if latest:
        found["gen_ai.usage.text.input_tokens"] = found["gen_ai.usage.input_tokens"]
        if chat:
            found["gen_ai.usage.text.output_tokens"] = found["gen_ai.usage.output_tokens"]
    return found


def assert_call(attributes: dict[str, Any], row: Row, port: int, *, latest: bool = False) -> None:
    left = dict(attributes)
    assert left.pop("aifinops.price.id") == f"genai-prices/openai/{row['model']}"
    assert left.pop("aifinops.price.version").startswith("genai-prices ")
    if row["stream"]:
        assert 0 < left.pop("gen_ai.response.time_to_first_chunk") < 60
    expected = of_call(row, port, latest=latest)
    assert left.keys() == expected.keys()
    for name, value in expected.items():
        assert left[name] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), name


def assert_spans(
    spans: dict[str, tuple[str, dict[str, Any]]], rows: list[Row], port: int, *, latest: bool = False
) -> None:
    """`spans`: id -> (name, attributes)."""
    assert len(rows) == 3
    for row in rows:
        name, attributes = spans.pop(row["span_id"])
        assert name == f"{row['operation']} {row['model']}"
        assert_call(attributes, row, port, latest=latest)
    ((name, block),) = spans.values()
    assert name == "invoke_workflow answer"
    inside = [row for row in rows if row["operation"] == "chat"]
    assert block.pop("aifinops.aggregate.cost.total") == pytest.approx(sum(row["amount"] for row in inside) / 10**9)
    assert block == {
        "gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": "answer", "aifinops.feature": "rerank",
        "aifinops.aggregate.calls": 2, "aifinops.aggregate.cost.currency": "USD",
        "aifinops.aggregate.input_tokens": sum(row["quantities"]["input_tokens"] for row in inside),
        "aifinops.aggregate.output_tokens": sum(
            row["quantities"]["output_tokens"] + row["quantities"]["reasoning_tokens"] for row in inside
        ),
    }  # fmt: skip


def assert_record(attributes: dict[str, Any], row: Row) -> None:
    """The log record of a charge: what its span says of tokens, money and tags, and the whole row beside it."""
    whole = {name: value for name, value in attributes.items() if name.startswith("aifinops.record.")}
    told = {name: value for name, value in attributes.items() if name not in whole or name == "aifinops.record.id"}
    assert told.pop("aifinops.price.id") == f"genai-prices/openai/{row['model']}"
    assert told.pop("aifinops.price.version").startswith("genai-prices ")
    of_the_wire = ("server.", "openai.api.type", "gen_ai.response.finish_reasons")
    expected = {name: value for name, value in of_call(row, 0).items() if not name.startswith(of_the_wire)}
    assert told.keys() == expected.keys()
    for name, value in expected.items():
        assert told[name] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), name
    assert whole["aifinops.record.amount"] == row["amount"]
    assert {
        name.removeprefix("aifinops.record.quantity."): value for name, value in whole.items() if ".quantity." in name
    } == row["quantities"]


def last_points(items: list[Item]) -> dict[str, list[Item]]:
    """The points of each metric in the last export that has it."""
    found: dict[str, dict[frozenset[Any], Item]] = {}
    for item in items:
        if item.kind == "point":
            found.setdefault(item.facts["Name"], {})[frozenset(item.attributes.items())] = item
    return {name: list(points.values()) for name, points in found.items()}


def assert_metrics(points: dict[str, list[Item]], rows: list[Row]) -> None:
    total = sum(row["amount"] for row in rows) / 10**9
    assert sum(float(point.facts["Value"]) for point in points["aifinops.cost"]) == pytest.approx(total)
    assert {point.attributes["aifinops.cost.currency"] for point in points["aifinops.cost"]} == {"USD"}
    assert sum(int(point.facts["Value"]) for point in points["aifinops.calls"]) == 3
    for name in ("aifinops.client.operation.cost", "gen_ai.usage.cost"):
        assert sum(float(point.facts["Sum"]) for point in points[name]) == pytest.approx(total)
        assert sum(int(point.facts["Count"]) for point in points[name]) == 3
    assert {point.facts["Unit"] for point in points["gen_ai.usage.cost"]} == {"USD"}
    tokens = {"input": 0, "output": 0}
    for row in rows:
        quantities = row["quantities"]
        tokens["input"] += quantities["input_tokens"]
        tokens["output"] += quantities.get("output_tokens", 0) + quantities.get("reasoning_tokens", 0)
    told = {"input": 0, "output": 0}
    for point in points["gen_ai.client.token.usage"]:
        told[point.attributes["gen_ai.token.type"]] += int(float(point.facts["Sum"]))
    assert told == tokens
    assert sum(int(point.facts["Count"]) for point in points["gen_ai.client.operation.duration"]) == 3
    assert [point.facts["Count"] for point in points["gen_ai.client.operation.time_to_first_chunk"]] == ["1"]
    budget = {name: points[f"aifinops.budget.{name}"][0] for name in ("limit", "spent", "remaining", "decisions")}
    assert float(budget["limit"].facts["Value"]) == 1
    inside = sum(row["amount"] for row in rows if row["operation"] == "chat") / 10**9
    assert float(budget["spent"].facts["Value"]) == pytest.approx(inside)
    assert float(budget["remaining"].facts["Value"]) == pytest.approx(1 - inside)
    assert budget["spent"].attributes == {
        "aifinops.budget.id": "search", "aifinops.budget.period": "day", "aifinops.budget.unit": "USD",
    }  # fmt: skip
    assert budget["decisions"].attributes == {"aifinops.budget.id": "search", "aifinops.budget.action": "allow"}
    assert budget["decisions"].facts["Value"] == "2"


def assert_exemplars(items: list[Item], rows: list[Row]) -> None:
    """Each exemplar leads to the span of one of the calls; the export after the call has it, a later one does not."""
    spans = {(row["trace_id"], row["span_id"]) for row in rows}
    for name in ("aifinops.client.operation.cost", "gen_ai.client.operation.duration", "gen_ai.client.token.usage"):
        found = [one for item in items if item.facts.get("Name") == name for one in item.exemplars]
        assert found, name
        assert {(one["Trace ID"], one["Span ID"]) for one in found} <= spans, name


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_and_metrics_arrive_at_an_agent(protocol: str, rotel: Rotel, provider: FakeProvider) -> None:
    """rotel's agent has every span and every total as our ledger has them, under the scope and the resource that they belong to."""
    rows = run_program(rotel.endpoints[protocol], provider, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    items = rotel.received()
    spans = {item.facts["ID"]: (item.facts["Name"], item.attributes) for item in items if item.kind == "span"}
    kinds = {item.facts["ID"]: item.facts["Kind"] for item in items if item.kind == "span"}
    traces = {item.facts["ID"]: item.facts["Trace ID"] for item in items if item.kind == "span"}
    assert {kinds[row["span_id"]] for row in rows} == {"SPAN_KIND_CLIENT"}
    assert all(traces[row["span_id"]] == row["trace_id"] for row in rows)
    assert_spans(spans, rows, port_of(provider))
    assert_metrics(last_points(items), rows)
    assert_exemplars(items, rows)
    assert {item.scope for item in items} == {SCOPE + names.SCHEMA_URL}
    assert {item.resource["service.name"] for item in items} == {"shop"}
    assert not [name for item in items for name in item.resource if name.startswith("aifinops.")]


def test_the_newest_conventions_and_dialects_arrive(rotel: Rotel, provider: FakeProvider) -> None:
    """What the environment asks for is what is sent: other names, another schema URL, the attributes of a backend."""
    rows = run_program(
        rotel.endpoints["http/protobuf"],
        provider,
        OTEL_SEMCONV_STABILITY_OPT_IN="gen_ai_latest_experimental",
        AIFINOPS_DIALECTS="compat,sentry,openinference",
    )
    items = rotel.received()
    calls = {item.facts["ID"]: item.attributes for item in items if item.kind == "span"}
    for row in rows:
        attributes = calls[row["span_id"]]
        assert attributes.pop("gen_ai.cost.total_tokens") == pytest.approx(row["amount"] / 10**9)
        assert attributes.pop("llm.cost.total") == pytest.approx(row["amount"] / 10**9)
        others = [name for name in attributes if name.startswith(("gen_ai.cost.", "llm.", "openinference."))]
        assert_call(
            {name: value for name, value in attributes.items() if name not in others},
            row,
            port_of(provider),
            latest=True,
        )
    points = last_points(items)
    usage = {point.attributes["gen_ai.token.modality"]: int(point.facts["Value"])
             for point in points["gen_ai.client.inference.usage.input_tokens"]}  # fmt: skip
    assert usage == {"text": sum(row["quantities"]["input_tokens"] for row in rows if row["operation"] == "chat")}
    assert "gen_ai.client.token.usage" not in points
    assert {item.scope for item in items} == {SCOPE + names.SCHEMA_URL_LATEST}


def test_charges_arrive_as_log_records(rotel: Rotel, provider: FakeProvider, tmp_path: Path) -> None:
    """A copy of the ledger over OTLP: one event for each row, in the trace of its call, with the attributes of its span."""
    endpoint = rotel.endpoints["http/protobuf"]
    rows = run_program(
        endpoint,
        provider,
        AIFINOPS_LEDGER=str(tmp_path / "ledger.db"),
        AIFINOPS_COPY_TO=f"otlp://127.0.0.1:{rotel.http}",
    )
    items = [item for item in rotel.received() if item.kind == "log"]
    logs = {item.facts["Span ID"]: item for item in items}
    assert len(items) == len(logs) == len(rows) == 3
    for row in rows:
        item = logs[row["span_id"]]
        assert item.facts["EventName"] == names.EVENT_COST_RECORDED
        assert (item.facts["Trace ID"], item.facts["SeverityText"], item.facts["Body"]) == (
            row["trace_id"],
            "INFO",
            "Empty",
        )
        assert item.scope == SCOPE + names.SCHEMA_URL
        assert item.resource["service.name"] == "shop"
        assert_record(item.attributes, row)


@pytest.mark.skipif(
    importlib.util.find_spec("oteltap") is None, reason="oteltap is not installed: pip install --group receivers"
)
def test_all_three_signals_arrive_at_a_test_receiver(provider: FakeProvider, tmp_path: Path) -> None:
    """oteltap decodes them by itself, over HTTP, and has the same."""
    from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

    port = free_port()
    spans: list[Any] = []
    metrics: list[Any] = []
    logs: list[Any] = []

    async def gather(stream: Any, into: list[Any]) -> None:
        async for one in stream:
            into.append(one)  # noqa: PERF401 - a comprehension would lose what came before it is cancelled

    async def exchange() -> list[Row]:
        async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as receiver:
            tasks = [
                asyncio.create_task(gather(receiver.stream_traces(), spans)),
                asyncio.create_task(gather(receiver.stream_metrics(), metrics)),
                asyncio.create_task(gather(receiver.stream_logs(), logs)),
            ]
            variables = {"AIFINOPS_LEDGER": str(tmp_path / "ledger.db"), "AIFINOPS_COPY_TO": f"otlp://127.0.0.1:{port}"}
            rows = await asyncio.to_thread(run_program, f"http://127.0.0.1:{port}", provider, **variables)
            for _ in range(200):
                if len(spans) >= 4 and len(logs) >= 3 and any(metric.name == "aifinops.cost" for metric in metrics):
                    break
                await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return rows

    rows = asyncio.run(exchange())
    told = {span.span_id.hex(): (span.name, {one.key: plain(one.value) for one in span.attributes}) for span in spans}
    assert_spans(told, rows, port_of(provider))
    assert len(logs) == 3
    for row in rows:
        (record,) = [one for one in logs if one.span_id.hex() == row["span_id"]]
        assert record.event_name == names.EVENT_COST_RECORDED
        assert_record({one.key: plain(one.value) for one in record.attributes}, row)
    costs = {}
    for metric in metrics:
        if metric.name == "aifinops.cost":
            costs = {number: point.as_double for number, point in enumerate(metric.sum.data_points)}
            assert metric.unit == "{currency}"
            assert metric.sum.is_monotonic
    assert sum(costs.values()) == pytest.approx(sum(row["amount"] for row in rows) / 10**9)


def plain(value: Any) -> Any:
    """A value of the protocol as Python has it."""
    kind = value.WhichOneof("value")
    return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
