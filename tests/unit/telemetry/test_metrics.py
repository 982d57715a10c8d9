"""Metrics: every call counted once, disjoint token types, histograms filled at collection, bounded series."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import Counter as SdkCounter
from opentelemetry.sdk.metrics import Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from aifinops import errors
from aifinops.charges import Charge
from aifinops.telemetry import metrics as module
from aifinops.telemetry import names
from aifinops.telemetry.delivery import lost
from aifinops.telemetry.metrics import BudgetState, DeviceState, Metrics
from aifinops.telemetry.tables import METRICS

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


@pytest.mark.parametrize(("service", "component"), [("llm", "other"), ("gpu", "gpu")])
def test_an_amount_without_parts_is_in_the_cost_all_the_same(service: str, component: str) -> None:
    """What a provider says it billed, or somebody recorded by hand, is not told by meters; it is money like any other."""
    metrics, reader = made()
    metrics.record(Charge(**{**CALL, "lines": (), "service": service}), kind=service)
    (point,) = points(reader)["aifinops.cost"]
    assert (point.value, point.attributes["aifinops.cost.component"]) == (0.003, component)


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


# --- totals beyond the bounds ---------------------------------------------------------------------------------------------

DELTA: dict[type, AggregationTemporality] = dict.fromkeys(
    (SdkCounter, ObservableCounter, Histogram), AggregationTemporality.DELTA
)


def overflowed(caplog: pytest.LogCaptureFixture) -> tuple[dict[str, list[Any]], list[dict[str, list[Any]]]]:
    """3,000 teams, two calls of each with errors among them, read by a cumulative reader at the end and by one of deltas every 1,000."""
    whole, parts = InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA)
    provider = MeterProvider(metric_readers=[whole, parts], shutdown_on_exit=False)
    metrics = Metrics("0", ("team",), get_provider=lambda: provider, dialects=("compat",))
    pieces = []
    for number in range(6000):
        metrics.record(Charge(**{**CALL, "tags": {"team": f"t{number % 3000}"}}), error="E" if number % 10 == 0 else "")
        if number % 1000 == 999:
            pieces.append(points(parts))
    return points(whole), pieces


def summed(found: list[Any]) -> float:
    return sum(point.sum if hasattr(point, "sum") else point.value for point in found)


def test_three_thousand_teams_are_warned_about_once_and_totals_stay_exact(caplog: pytest.LogCaptureFixture) -> None:
    """No instrument has more attribute sets than the SDK keeps apart; what it has no room for is in one that says so."""
    got, pieces = overflowed(caplog)
    (warning,) = [record for record in caplog.records if record.name == "aifinops"]
    assert "The tags on metrics are team" in warning.getMessage()
    assert summed(got["aifinops.calls"]) == 6000
    assert round(summed(got["aifinops.cost"]), 9) == 18.0
    for kind, count in {"input_fresh": 400, "cache_read": 600, "output": 200, "reasoning": 120}.items():
        told = [one for one in got["aifinops.tokens"] if one.attributes.get("aifinops.token.type") == kind]
        assert summed(told) == 6000 * count
    for name in ("aifinops.cost", "aifinops.calls", "aifinops.tokens"):
        marked = [one for one in got[name] if one.attributes.get("otel.metric.overflow")]
        assert 0 < len(marked) <= 8, name
        assert len(got[name]) <= 2000, name
    assert round(summed(got["gen_ai.usage.cost"]), 9) == 18.0
    assert sum(point.count for point in got["gen_ai.client.operation.duration"]) == 6000
    for name in got:
        deltas = sum(summed(piece.get(name, [])) for piece in pieces)
        assert deltas == pytest.approx(summed(got[name])), f"{name}: deltas and sums differ"


def test_each_attribute_set_is_the_same_by_deltas_and_by_sums() -> None:
    """Not only the totals: every series of the one reader adds up to that of the other."""
    whole, parts = InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA)
    provider = MeterProvider(metric_readers=[whole, parts], shutdown_on_exit=False)
    metrics = Metrics("0", ("team",), get_provider=lambda: provider)
    added: dict[Any, float] = {}
    for number in range(120):
        metrics.record(Charge(**{**CALL, "amount": 3_000_000 + number, "tags": {"team": f"t{number % 7}"}}))
        if number % 30 == 29:
            for name, found in points(parts).items():
                for point in found:
                    key = name, frozenset(point.attributes.items())
                    added[key] = added.get(key, 0) + summed([point])
    told = {
        (name, frozenset(point.attributes.items())): summed([point])
        for name, found in points(whole).items()
        for point in found
    }
    assert added == pytest.approx(told)


# --- currencies and dialects -----------------------------------------------------------------------------------------------


def test_currencies_are_never_added_up() -> None:
    """A histogram of costs has one series for each currency; what takes dollars alone has no euros."""
    metrics, reader = made(dialects=("compat", "logfire"))
    metrics.record(Charge(**CALL))
    metrics.record(Charge(**{**CALL, "currency": "EUR", "amount": 9_000_000}))
    got = points(reader)
    own = {point.attributes["aifinops.cost.currency"]: point.sum for point in got["aifinops.client.operation.cost"]}
    assert own == {"USD": 0.003, "EUR": 0.009}
    for name in ("gen_ai.usage.cost", "operation.cost"):
        assert [point.sum for point in got[name]] == [0.003], name


@pytest.mark.parametrize(
    ("dialect", "name", "unit"),
    [
        ("compat", "gen_ai.usage.cost", "USD"),
        ("openlit", "gen_ai.usage.cost", "USD"),
        ("logfire", "operation.cost", "{USD}"),
        ("otel-cost", "gen_ai.client.operation.cost", "{currency}"),
    ],
)
def test_a_dialect_has_its_histogram(dialect: str, name: str, unit: str) -> None:
    """Under its name and in its unit, on request only."""
    metrics, reader = made(dialects=(dialect,))
    metrics.record(Charge(**CALL))
    ((metric,),) = [
        [metric for metric in scope.metrics if metric.name == name]
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
    ]
    assert metric.unit == unit
    (point,) = metric.data.data_points
    assert (point.sum, point.attributes["gen_ai.request.model"]) == (0.003, "gpt-4o")
    assert (point.attributes.get("gen_ai.usage.cost.currency") == "USD") == (dialect == "otel-cost")
    metrics, reader = made()
    metrics.record(Charge(**CALL))
    assert name not in points(reader)


def test_agento11y_prices_by_token_types() -> None:
    """Cached and reasoning tokens are further types of the token histogram; without the dialect a sum over types is right."""
    quantities = {**CALL["quantities"], "cache_write_tokens": 7}
    for dialects, expected in (
        (("agento11y",), {"input": 1007, "output": 200, "cache_read": 600, "cache_write": 7, "reasoning": 120}),
        ((), {"input": 1007, "output": 200}),
    ):
        metrics, reader = made(dialects=dialects)
        metrics.record(Charge(**{**CALL, "quantities": quantities}))
        found = points(reader)["gen_ai.client.token.usage"]
        assert {point.attributes["gen_ai.token.type"]: point.sum for point in found} == expected


# --- the newest conventions ------------------------------------------------------------------------------------------------


def test_latest_has_counters_by_modality_in_place_of_the_old_names() -> None:
    """Inclusive totals and their parts, by modality; a call without usage is a 0 of unknown modality; nothing under the old names."""
    metrics, reader = made(latest=True)
    spoken = {
        "input_audio_tokens": 30,
        "cache_read_audio_tokens": 10,
        "output_audio_tokens": 5,
        "input_video_tokens": 2,
    }
    metrics.record(
        Charge(**{**CALL, "quantities": {**CALL["quantities"], **spoken, "cache_write_1h_tokens": 7}}), first_chunk=0.5
    )
    metrics.record(Charge(**{**CALL, "amount": None, "lines": (), "quantities": {}}), error="openai.APITimeoutError")
    got = points(reader)
    usage = "gen_ai.client.inference.usage."
    found = {
        (name.removeprefix(usage), point.attributes["gen_ai.token.modality"]): point.value
        for name, values in got.items()
        if name.startswith(usage)
        for point in values
    }
    assert found == {
        ("input_tokens", "text"): 1007, ("input_tokens", "audio"): 40, ("input_tokens", "unknown"): 2,
        ("output_tokens", "text"): 200, ("output_tokens", "audio"): 5, ("output_tokens", "unknown"): 0,
        ("cache_read.input_tokens", "text"): 600, ("cache_read.input_tokens", "audio"): 10,
        ("cache_write.input_tokens", "text"): 7, ("reasoning.output_tokens", "text"): 120,
    }  # fmt: skip
    assert sum(point.count for point in got["gen_ai.client.inference.duration"]) == 2
    assert got["gen_ai.client.inference.operation.input_tokens"][0].sum == 1049
    assert got["gen_ai.client.inference.operation.output_tokens"][0].sum == 205
    assert got["gen_ai.client.inference.time_to_first_chunk"][0].sum == 0.5
    assert not {
        "gen_ai.client.token.usage",
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
    } & set(got)


def test_latest_tells_embeddings_and_the_rest_apart() -> None:
    """An embedding is no inference there, and neither is a moderation."""
    metrics, reader = made(latest=True)
    metrics.record(Charge(**{**CALL, "operation": "embeddings", "quantities": {"input_tokens": 9}}))
    metrics.record(Charge(**{**CALL, "operation": "moderation", "quantities": {}}))
    got = points(reader)
    assert got["gen_ai.client.embeddings.operation.input_tokens"][0].sum == 9
    assert got["gen_ai.client.embeddings.duration"][0].count == 1
    (other,) = got["gen_ai.client.operation.duration"]
    assert (other.count, other.attributes["gen_ai.operation.name"]) == (1, "moderation")
    assert not [name for name in got if name.startswith("gen_ai.client.inference.")]


def test_the_scope_says_which_conventions() -> None:
    """The schema URL of the meter is that of the names."""
    for latest, url in ((False, names.SCHEMA_URL), (True, names.SCHEMA_URL_LATEST)):
        metrics, reader = made(latest=latest)
        metrics.record(Charge(**CALL))
        (resource,) = reader.get_metrics_data().resource_metrics
        assert [scope.scope.schema_url for scope in resource.scope_metrics] == [url]


# --- exemplars ---------------------------------------------------------------------------------------------------------------


def span_context(number: int) -> trace.SpanContext:
    return trace.SpanContext(number, number, is_remote=False, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))


def test_the_largest_point_leads_to_its_trace() -> None:
    """Each histogram has an exemplar of the dearest or longest call, with the ids of its span; none of a trace that nobody has."""
    metrics, reader = made()
    for number, cost in enumerate((1, 9, 5), start=1):
        changed = {"amount": cost * 1_000_000, "duration": cost * 10**9}
        metrics.record(Charge(**{**CALL, **changed}), context=span_context(number))
    metrics.record(Charge(**{**CALL, "amount": 80_000_000, "duration": 80 * 10**9}))
    got = points(reader)
    for name, value in (("aifinops.client.operation.cost", 0.009), ("gen_ai.client.operation.duration", 9)):
        (point,) = got[name]
        assert point.count == 4
        (exemplar,) = point.exemplars
        assert (exemplar.value, exemplar.trace_id, exemplar.span_id) == (value, 2, 2)


def test_the_trace_of_whoever_collects_has_nothing_to_do_with_calls() -> None:
    """A collection in the middle of some span makes no exemplar of it."""
    metrics, reader = made()
    metrics.record(Charge(**CALL))
    with trace.use_span(trace.NonRecordingSpan(span_context(7))):
        got = points(reader)
    assert got["gen_ai.client.operation.duration"][0].exemplars == []


# --- budgets, devices, ourselves ------------------------------------------------------------------------------------------


def test_budgets_are_gauges_and_their_decisions_a_counter() -> None:
    """What is not known of a budget has no point; the budgets are asked once a collection."""
    asked: list[int] = []

    def budgets(most: int) -> list[BudgetState]:
        asked.append(most)
        return [
            BudgetState("search", "day", "USD", 50.0, 20.0, 25.0, 1.5),
            BudgetState("all", "total", "tokens", None, 7.0, None, None),
        ]

    metrics, reader = made(
        budgets=budgets, decisions=lambda: {("search", "allow"): 9, ("search", "block"): 1, ("", "allow"): 2}
    )
    metrics.record(Charge(**CALL))
    got = points(reader)
    assert asked == [module.MAX_BUDGETS]
    told = {name.removeprefix("aifinops.budget."): [(point.attributes["aifinops.budget.id"], point.value) for point in found]
            for name, found in got.items() if name.startswith("aifinops.budget.") and not name.endswith("decisions")}  # fmt: skip
    assert told == {
        "limit": [("search", 50.0)], "spent": [("search", 20.0), ("all", 7.0)], "remaining": [("search", 25.0)],
        "utilization": [("search", 0.4)], "burn_rate": [("search", 1.5)],
    }  # fmt: skip
    assert dict(got["aifinops.budget.spent"][1].attributes) == {
        "aifinops.budget.id": "all", "aifinops.budget.period": "total", "aifinops.budget.unit": "tokens",
    }  # fmt: skip
    decided = {(point.attributes.get("aifinops.budget.id"), point.attributes.get("aifinops.budget.action")): point.value
               for point in got["aifinops.budget.decisions"]}  # fmt: skip
    assert decided == {("search", "allow"): 9, ("search", "block"): 1, (None, None): 2}


def test_budgets_that_cannot_be_read_leave_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is counted, and everything else is collected."""
    monkeypatch.setattr(errors._failures, "reraise", False)

    def broken(most: int) -> list[BudgetState]:
        raise OSError("no store")

    metrics, reader = made(budgets=broken)
    metrics.record(Charge(**CALL))
    got = points(reader)
    assert got["aifinops.calls"][0].value == 1
    assert "aifinops.budget.spent" not in got
    assert errors.failures() == {"telemetry.metrics.budgets": 1}


def test_devices_are_told_under_the_names_of_the_conventions() -> None:
    """Type, model and vendor of a device on each of its points; what is unknown has none."""
    metrics, reader = made()
    metrics.devices = lambda: [
        DeviceState("GPU-1", "H100", "nvidia", "", 0.75, 40e9, 80e9, 1200.0, 400.0),
        DeviceState("MIG-2", "H100", "nvidia", "GPU-2", memory_limit=10e9),
    ]
    metrics.record(Charge(**CALL))
    got = points(reader)
    told = {
        (name, point.attributes["hw.id"]): point.value
        for name, found in got.items()
        if name.startswith("hw.")
        for point in found
    }
    assert told == {
        ("hw.gpu.utilization", "GPU-1"): 0.75, ("hw.gpu.memory.usage", "GPU-1"): 40e9, ("hw.gpu.memory.limit", "GPU-1"): 80e9,
        ("hw.gpu.memory.utilization", "GPU-1"): 0.5, ("hw.energy", "GPU-1"): 1200.0, ("hw.power", "GPU-1"): 400.0,
        ("hw.gpu.memory.limit", "MIG-2"): 10e9,
    }  # fmt: skip
    assert dict(got["hw.gpu.utilization"][0].attributes) == {
        "hw.id": "GPU-1", "hw.type": "gpu", "hw.model": "H100", "hw.vendor": "nvidia", "hw.gpu.task": "general",
    }  # fmt: skip
    assert got["hw.gpu.memory.limit"][1].attributes["hw.parent"] == "GPU-2"


def test_what_could_not_be_delivered_is_a_metric() -> None:
    """By signal."""
    lost.reset()
    lost.add("traces", 3)
    metrics, reader = made()
    metrics.record(Charge(**CALL))
    (point,) = points(reader)["aifinops.export.errors"]
    assert (point.value, dict(point.attributes)) == (3, {"aifinops.signal": "traces"})
    lost.reset()


def test_every_instrument_is_in_the_table_and_has_the_unit_that_it_says() -> None:
    """What is created, in either mode, is what the reference tells of, but for the dialects' own."""
    told = {row.name: row for row in METRICS}
    for latest in (False, True):
        metrics, reader = made(latest=latest, budgets=lambda most: [BudgetState("b", "day", "USD", 1.0, 1.0, 0.0, 1.0)])
        metrics.record(Charge(**CALL), first_chunk=0.1)
        for resource in reader.get_metrics_data().resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    assert (metric.unit, metric.description) == (told[metric.name].unit, told[metric.name].text)
    assert len(told) == len(METRICS)
