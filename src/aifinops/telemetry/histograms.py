"""Many points into one histogram at a fraction of what `record` costs for each.

`Histogram.record` takes 5 to 7 microseconds a point, nearly all of it for finding out where the point belongs: context, exemplars,
views, the hash of the attributes. For a batch of points of one attribute set that is the same answer every time. So the first point
goes the public way, which makes whatever has to be made and keeps an exemplar, and the others are added to the aggregation that took it. The inside of
the SDK is looked at before anything is touched: where it is not what we know, or a view has changed it, every point goes the public
way. `tests/unit/telemetry/test_histograms.py` holds both ways equal, and `nox -s minimums` does with the oldest SDK.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["record_all"]

_INSIDE = frozenset({"_lock", "_value", "_sum", "_min", "_max", "_boundaries", "_record_min_max"})
_BY_HAND = 3
"""Points below which looking inside costs more than it saves."""


def record_all(
    histogram: Any, values: Sequence[float], attributes: Mapping[str, Any], traced: tuple[float, Any] | None = None
) -> None:
    """`histogram.record(value, attributes)` for every value.

    Args:
        histogram: of any SDK. values: finite and not negative. attributes: of all of them.
        traced: one of the values and the context of the span in which it came about, which makes it an exemplar. The others are recorded
            in no context: that of whoever collects has nothing to do with them.
    """
    if not values:
        return
    from opentelemetry.context import Context

    # Not empty: the SDK takes the current context in place of an empty one.
    first, rest, nowhere = values[0], values[1:], Context({"aifinops": "collected"})
    context = nowhere
    if traced is not None:
        first, context = traced[0], _inside(traced[1])
        rest = list(values)
        rest.remove(first)
    histogram.record(first, attributes, context)
    known = _matches(histogram, attributes) if len(values) > _BY_HAND else None
    if known is None:
        for value in rest:
            histogram.record(value, attributes, nowhere)
        return
    key, matches = known
    for match in matches:
        with match._lock:  # a reader of deltas takes the aggregation away under this lock
            aggregation = match._attributes_aggregation.get(key)
            _add(aggregation or match._get_or_create_aggregation(key, dict(attributes)), rest)


def _inside(span_context: Any) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(span_context), Context())


def _matches(histogram: Any, attributes: Mapping[str, Any]) -> tuple[Any, list[Any]] | None:
    """The key of these attributes and the SDK's places for them, one for each reader and view; None when not sure."""
    try:
        key, found = _key(attributes), []
        for storage in histogram._measurement_consumer._reader_storages.values():
            for match in storage._get_or_init_view_instrument_match(histogram):
                aggregation = match._attributes_aggregation[key]
                if type(aggregation).__name__ == "_DropAggregation":
                    continue
                if type(aggregation).__name__ != "_ExplicitBucketHistogramAggregation":
                    return None
                if not vars(aggregation).keys() >= _INSIDE:
                    return None
                found.append(match)
    except (AttributeError, ImportError, KeyError, TypeError):  # another SDK, one whose inside has moved, or a view
        return None
    return key, found


def _key(attributes: Mapping[str, Any]) -> Any:
    from opentelemetry.sdk.metrics._internal import _view_instrument_match as inside

    hashed = getattr(inside, "_hash_attributes", None)
    return frozenset(attributes.items()) if hashed is None else hashed(attributes)


def _add(aggregation: Any, values: Sequence[float]) -> None:
    bounds = aggregation._boundaries
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    with aggregation._lock:
        before = aggregation._value
        aggregation._value = counts if before is None else [old + new for old, new in zip(before, counts, strict=True)]
        aggregation._sum += sum(values)
        if aggregation._record_min_max:
            aggregation._min = min(aggregation._min, *values)
            aggregation._max = max(aggregation._max, *values)
