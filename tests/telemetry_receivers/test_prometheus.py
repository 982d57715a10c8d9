"""The names under which the official Prometheus exporter shows our metrics: those that dashboards and alert rules ask for."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.prometheus", reason="pip install --group receivers")

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest

from aifinops.charges import Charge
from aifinops.telemetry.metrics import BudgetState, DeviceState, Metrics

CALL: dict[str, Any] = {
    "id": "r", "at": 1, "provider": "openai", "operation": "chat", "model": "gpt-4o", "amount": 3_000_000, "basis": "priced",
    "quantities": {"input_tokens": 400, "cache_read_tokens": 600, "output_tokens": 200}, "duration": 2 * 10**9,
    "lines": (("input_tokens", 1_000_000), ("output_tokens", 2_000_000)), "tags": {"team": "search"},
}  # fmt: skip


def shown(**options: Any) -> str:
    """What a scrape of one call, one budget and one device gives."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader()
    # The reader registers itself with the global registry, of which a test leaves nothing.
    from prometheus_client import REGISTRY

    REGISTRY.unregister(reader._collector)
    registry.register(reader._collector)
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    metrics = Metrics(
        "0", ("team",), get_provider=lambda: provider,
        budgets=lambda most: [BudgetState("search", "day", "USD", 50.0, 20.0, 25.0, 1.5)],
        decisions=lambda: {("search", "allow"): 9}, **options,
    )  # fmt: skip
    metrics.devices = lambda: [DeviceState("GPU-1", "H100", "nvidia", "", 0.75, 40e9, 80e9, 1200.0, 400.0)]
    metrics.record(Charge(**CALL), first_chunk=0.5)
    metrics.gpu_time(Charge(**{**CALL, "service": "gpu"}), {"allocated": 2.0})
    return generate_latest(registry).decode()


def names_in(text: str) -> set[str]:
    return {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line and line[0] != "#"}


def test_metrics_have_the_names_that_dashboards_ask_for() -> None:
    """Counters end in `_total`, units in braces are no part of a name, the unit USD is."""
    text = shown(dialects=("compat", "logfire"))
    told = names_in(text)
    assert told >= {
        "aifinops_cost_total", "aifinops_tokens_total", "aifinops_calls_total", "aifinops_client_operation_cost_sum",
        "aifinops_client_operation_cost_bucket", "aifinops_client_operation_cost_count", "gen_ai_usage_cost_USD_sum",
        "gen_ai_usage_cost_USD_bucket", "gen_ai_usage_cost_USD_count", "operation_cost_sum", "gen_ai_client_token_usage_sum",
        "gen_ai_client_operation_duration_seconds_sum", "gen_ai_client_operation_time_to_first_chunk_seconds_count",
        "aifinops_budget_limit", "aifinops_budget_spent", "aifinops_budget_remaining", "aifinops_budget_decisions_total",
        "aifinops_gpu_time_seconds_total", "hw_energy_joules_total", "hw_power_watts", "hw_gpu_memory_usage_bytes",
        "aifinops_ledger_dropped_total",
    }  # fmt: skip
    # Newer versions of the exporter add `_ratio` to a gauge of unit 1, older ones do not.
    for gauge in ("aifinops_budget_utilization", "aifinops_budget_burn_rate", "hw_gpu_utilization"):
        assert {gauge, f"{gauge}_ratio"} & told, gauge


def test_labels_are_the_attributes_with_underscores() -> None:
    """Currency, component, model and team of a cost; they select it in a query."""
    (line,) = [
        one for one in shown().splitlines() if one.startswith("aifinops_cost_total{") and 'component="output"' in one
    ]
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    assert labels.items() >= {
        "aifinops_cost_currency": "USD", "aifinops_cost_kind": "llm", "gen_ai_provider_name": "openai", "gen_ai_request_model": "gpt-4o",
        "gen_ai_operation_name": "chat", "aifinops_team": "search",
    }.items()  # fmt: skip
    assert float(line.rpartition(" ")[2]) == 0.002
