"""A batch of points arrives in the SDK's histograms as if each had been recorded by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, ExponentialBucketHistogramAggregation, View

from aifinops.telemetry import histograms
from aifinops.telemetry.histograms import record_all

BOUNDS = (0.0, 1.0, 10.0, 100.0)
ATTRIBUTES = {"gen_ai.request.model": "gpt-5-mini", "server.port": 443}
DELTA = {Histogram: AggregationTemporality.DELTA}
VALUES = st.lists(st.integers(0, 200) | st.sampled_from([0.5, 1.0, 10.0, 99.5]), max_size=20)

SHAPES: dict[str, dict[str, Any]] = {
    "cumulative": {"readers": [{}]},
    "delta": {"readers": [{"preferred_temporality": DELTA}]},
    "two readers": {"readers": [{}, {"preferred_temporality": DELTA}]},
    "a view of fewer attributes": {"views": [View(instrument_name="points", attribute_keys={"server.port"})]},
    "a view of other buckets": {"views": [View(instrument_name="points", aggregation=ExponentialBucketHistogramAggregation())]},
    "a view that drops": {"views": [View(instrument_name="points", aggregation=DropAggregation())]},
    "two views": {"views": [View(instrument_name="points"), View(instrument_name="points", name="again")]},
}  # fmt: skip


def made(shape: dict[str, Any]) -> tuple[Any, list[InMemoryMetricReader]]:
    readers = [InMemoryMetricReader(**options) for options in shape.get("readers", [{}])]
    provider = MeterProvider(metric_readers=readers, views=shape.get("views", ()), shutdown_on_exit=False)
    meter = provider.get_meter("test")
    return meter.create_histogram("points", explicit_bucket_boundaries_advisory=BOUNDS), readers


def collected(readers: list[InMemoryMetricReader]) -> list[Any]:
    found = []
    for reader in readers:
        data = reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        counts = getattr(point, "bucket_counts", None) or (point.positive, point.zero_count)
                        sums = (point.count, pytest.approx(point.sum), point.min, point.max)
                        found.append((metric.name, dict(point.attributes), counts, sums))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@given(batches=st.lists(VALUES, max_size=4))
def test_a_batch_equals_its_points(shape: str, batches: list[list[float]]) -> None:
    """The same counts, sums and extremes over several collections, whatever the reader and the views."""
    ours, our_readers = made(SHAPES[shape])
    theirs, their_readers = made(SHAPES[shape])
    for values in batches:
        record_all(ours, values, ATTRIBUTES)
        for value in values:
            theirs.record(value, ATTRIBUTES)
        assert collected(our_readers) == collected(their_readers)


def test_the_quick_way_is_taken_with_this_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a plain reader only the first point is recorded the public way."""
    histogram, readers = made({})
    seen: list[float] = []
    record = histogram.record
    monkeypatch.setattr(histogram, "record", lambda value, *rest: (seen.append(value), record(value, *rest)))
    record_all(histogram, [1, 2, 3, 400], ATTRIBUTES)
    assert seen == [1]
    ((_, _, counts, (count, *_)),) = collected(readers)
    assert (count, counts) == (4, (0, 1, 2, 0, 1))


def test_another_sdk_gets_every_point_the_public_way() -> None:
    """Nothing is known of its inside, and nothing is lost."""

    class Foreign:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def record(self, value: float, attributes: Any, context: Any) -> None:
            self.seen.append(value)

    foreign = Foreign()
    record_all(foreign, [1, 2, 3, 4, 5], {})
    assert foreign.seen == [1, 2, 3, 4, 5]


def test_an_inside_that_has_moved_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An aggregation without the fields that we know is never written to."""
    monkeypatch.setattr(histograms, "_INSIDE", frozenset({"_moved"}))
    histogram, readers = made({})
    record_all(histogram, [1, 2, 3, 4, 5], ATTRIBUTES)
    ((_, _, _, (count, *_)),) = collected(readers)
    assert count == 5


def test_a_reader_of_deltas_that_comes_between_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection after the first point has gone in takes that one; the others come with the next."""
    histogram, (reader,) = made(SHAPES["delta"])
    counts: list[int] = []
    found = histograms._matches

    def interrupted(*arguments: Any) -> Any:
        matches = found(*arguments)
        counts.extend(sums[0] for *_, sums in collected([reader]))
        return matches

    monkeypatch.setattr(histograms, "_matches", interrupted)
    record_all(histogram, [1, 2, 3, 4, 5], ATTRIBUTES)
    counts.extend(sums[0] for *_, sums in collected([reader]))
    assert sum(counts) == 5
