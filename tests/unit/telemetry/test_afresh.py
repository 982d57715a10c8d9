"""Metrics in a forked child: they begin at zero, whatever the parent has measured and exported."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from aifinops.telemetry.afresh import begin_afresh
from aifinops.telemetry.metrics import Metrics
from aifinops.testing.ledger import example_charge

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

DELTA, CUMULATIVE = AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE


def make(temporality: AggregationTemporality) -> tuple[Metrics, InMemoryMetricReader, MeterProvider]:
    reader = InMemoryMetricReader(
        preferred_temporality=dict.fromkeys((Counter, Histogram, ObservableCounter), temporality)
    )
    provider = MeterProvider([reader])
    return Metrics("1", ("team",), get_provider=lambda: provider), reader, provider


def sums(reader: InMemoryMetricReader) -> dict[str, float]:
    """Metric -> sum of its points; calls in a histogram under `<name>.count`."""
    found: dict[str, float] = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    if hasattr(point, "count"):
                        found[f"{metric.name}.count"] = found.get(f"{metric.name}.count", 0) + point.count
                    value = point.sum if hasattr(point, "sum") else point.value
                    found[metric.name] = found.get(metric.name, 0) + value
    return found


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child; the child must end within ten seconds."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            os.write(writes, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as file:
        said = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return json.loads(said)


@pytest.mark.parametrize("temporality", [DELTA, CUMULATIVE])
@pytest.mark.parametrize("collected", [True, False])
def test_a_child_tells_of_its_own_calls(temporality: AggregationTemporality, collected: bool) -> None:
    """Counters and histograms, deltas and totals, whether the parent had exported before the fork or not."""
    metrics, reader, _ = make(temporality)
    for number in range(5):
        metrics.record(example_charge(number))
    if collected:
        sums(reader)

    def child() -> list[dict[str, float]]:
        metrics.reset_after_fork()
        for number in range(2):
            metrics.record(example_charge(10 + number))
        first = sums(reader)
        metrics.record(example_charge(20))
        return [first, sums(reader)]

    first, second = in_child(child)
    for name, each in (
        ("aifinops.calls", 1),
        ("aifinops.client.operation.cost.count", 1),
        ("aifinops.cost", 0.0003505),
    ):
        assert first[name] == pytest.approx(2 * each)
        assert second[name] == pytest.approx((1 if temporality is DELTA else 3) * each)
    metrics.record(example_charge(30))
    assert sums(reader)["aifinops.calls"] == ((1 if collected else 6) if temporality is DELTA else 6)


def test_a_child_of_a_process_that_was_collecting_does_not_hang() -> None:
    """Another thread held the locks of the SDK at the fork."""
    metrics, reader, provider = make(CUMULATIVE)
    metrics.record(example_charge(1))
    inside, go_on = threading.Event(), threading.Event()

    def slow(_: Any) -> list[Any]:
        inside.set()
        go_on.wait(30)
        return []

    provider.get_meter("theirs").create_observable_counter("slow", [slow])
    thread = threading.Thread(target=reader.collect)
    thread.start()
    assert inside.wait(10)

    def child() -> dict[str, float]:
        go_on.set()
        metrics.reset_after_fork()
        metrics.record(example_charge(2))
        return sums(reader)

    assert in_child(child)["aifinops.calls"] == 1
    go_on.set()
    thread.join()


def test_instruments_of_others_are_theirs() -> None:
    """Only ours begin at zero."""
    metrics, reader, provider = make(CUMULATIVE)
    counter = provider.get_meter("theirs").create_counter("their.count")
    counter.add(3)
    metrics.record(example_charge(1))
    sums(reader)
    assert begin_afresh(provider, "aifinops")
    counter.add(4)
    assert sums(reader)["their.count"] == 7


def test_another_sdk_is_left_alone() -> None:
    """What is not as we know it is not touched."""
    assert not begin_afresh(object(), "aifinops")
