"""Metrics: every call counted once, disjoint token types, histograms filled at collection, bounded series."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from aifinops.charges import Charge
from aifinops.telemetry import metrics as module
from aifinops.telemetry.metrics import Metrics

CALL: dict[str, Any] = {
    "id": "r", "at": 1, "provider": "openai", "operation": "chat", "model": "gpt-4o", "amount": 3_000_000, "basis": "priced",
    "quantities": {"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 80, "reasoning_tokens": 120},
    "lines": (("input_tokens", 1_000_000), ("output_tokens", 2_000_000)), "duration": 2 * 10**9,
    "tags": {"team": "search", "customer": "acme"},
}  # fmt: skip


def made(**options: Any) -> tuple[Metrics, InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    return Metrics("0", ("team",), get_provider=lambda: provider, **options), reader


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    found: dict[str, list[Any]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name] = list(metric.data.data_points)
    return found


def test_counters_add_up_and_histograms_fill_at_collection() -> None:
    """Two calls: cost by component, tokens by disjoint type, calls; durations and costs in histograms."""
    metrics, reader = made()
    for _ in range(2):
        metrics.record(Charge(**CALL), first_chunk=0.5)
    got = points(reader)
    assert {point.attributes["aifinops.cost.component"]: point.value for point in got["aifinops.cost"]} == {
        "input": 0.002,
        "output": 0.004,
    }
    assert {point.attributes["aifinops.token.type"]: point.value for point in got["aifinops.tokens"]} == {
        "input_fresh": 800,
        "cache_read": 1200,
        "output": 400,
        "reasoning": 240,
    }
    (calls,) = got["aifinops.calls"]
    assert calls.value == 2
    assert calls.attributes["aifinops.team"] == "search"
    assert "aifinops.customer" not in calls.attributes
    (cost,) = got["aifinops.client.operation.cost"]
    assert (cost.count, round(cost.sum, 9)) == (2, 0.006)
    (duration,) = got["gen_ai.client.operation.duration"]
    assert duration.sum == 4
    usage = {point.attributes["gen_ai.token.type"]: point.sum for point in got["gen_ai.client.token.usage"]}
    assert usage == {"input": 2000, "output": 400}
    (first,) = got["gen_ai.client.operation.time_to_first_chunk"]
    assert first.sum == 1


def test_nothing_is_counted_twice_over_collections() -> None:
    """A second collection shows the same cumulative sums, and new histogram points once."""
    metrics, reader = made()
    metrics.record(Charge(**CALL))
    points(reader)
    metrics.record(Charge(**CALL))
    got = points(reader)
    assert got["aifinops.calls"][0].value == 2
    assert got["gen_ai.client.operation.duration"][0].count == 2


def test_unpriced_and_failed_calls_are_told_apart() -> None:
    """An unpriced call adds no cost and is counted as such; an error has its type."""
    metrics, reader = made()
    metrics.record(Charge(**{**CALL, "amount": None, "lines": ()}))
    metrics.record(Charge(**{**CALL, "amount": None, "lines": (), "quantities": {}}), error="openai.APITimeoutError")
    got = points(reader)
    assert got.get("aifinops.cost", []) == []
    assert got["aifinops.price.missing"][0].value == 1
    assert {point.attributes.get("error.type"): point.value for point in got["aifinops.calls"]} == {
        None: 1,
        "openai.APITimeoutError": 1,
    }


def test_a_child_process_starts_from_zero() -> None:
    """After a fork the parent's sums are the parent's to export."""
    metrics, reader = made()
    metrics.record(Charge(**CALL))
    metrics.reset_after_fork()
    metrics.record(Charge(**CALL))
    assert points(reader)["aifinops.calls"][0].value == 1


def test_too_many_attribute_sets_fold_into_one() -> None:
    """Totals stay right beyond the bound; the overflow is marked."""
    metrics, reader = made()
    count = module.MAX_SERIES + 50
    for number in range(count):
        metrics.record(Charge(**{**CALL, "tags": {"team": f"t{number}"}}))
    got = points(reader)["aifinops.calls"]
    assert sum(point.value for point in got) == count
    (overflow,) = [point for point in got if point.attributes.get("otel.metric.overflow")]
    assert overflow.value == 50


def test_waiting_points_are_bounded(monkeypatch: Any) -> None:
    """When nobody collects, histogram points are recorded at once instead of piling up."""
    monkeypatch.setattr(module, "MAX_POINTS", 10)
    monkeypatch.setattr(module, "BATCH", 1)
    metrics, reader = made()
    for _ in range(25):
        metrics.record(Charge(**CALL))
    assert metrics._points <= 10
    assert points(reader)["gen_ai.client.operation.duration"][0].count == 25


def test_official_metrics_can_be_left_to_somebody_else() -> None:
    """Where another instrumentation emits `gen_ai.client.*`, ours stay out; cost stays."""
    metrics, reader = made()
    metrics.full = False
    metrics.record(Charge(**CALL))
    got = points(reader)
    assert "gen_ai.client.operation.duration" not in got
    assert got["aifinops.client.operation.cost"][0].count == 1


def test_dropped_records_and_internal_failures_are_metrics() -> None:
    """The self-monitoring is there."""
    metrics, reader = made(dropped=lambda: 7)
    metrics.record(Charge(**CALL))
    assert points(reader)["aifinops.ledger.dropped"][0].value == 7
