"""The curves against a truth that is known: whatever the load, the answer is within its own bound, and never below zero."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.gpu.backends.base import Stretch
from aifinops.gpu.measured import Counter, Curve, Level, Measured, from_events

MS = 1_000_000
# Busy or not, by millisecond.
LOADS = st.lists(st.tuples(st.booleans(), st.integers(1, 300)), min_size=1, max_size=30).map(
    lambda runs: [busy for busy, length in runs for _ in range(length)]
)


def curve_of(load: list[bool], period: int) -> Curve:
    """Means over periods of so many milliseconds."""
    curve = Curve()
    for start in range(0, len(load), period):
        part = load[start : start + period]
        curve.add(Stretch(start * MS, (start + len(part)) * MS, sum(part) / len(part)))
    return curve


@given(LOADS, st.integers(1, 200), st.data())
def test_any_span_of_any_load_is_within_its_bound(load: list[bool], period: int, data: st.DataObject) -> None:
    """However a span cuts the samples, the truth is no farther off than the answer says."""
    start = data.draw(st.integers(0, len(load) - 1))
    end = data.draw(st.integers(start + 1, len(load)))
    truth = sum(load[start:end]) / 1e3
    found = curve_of(load, period).between(start * MS, end * MS)
    assert found.covered_s == pytest.approx((end - start) / 1e3)
    assert abs(found.value - truth) <= found.error + 1e-9
    assert found.error <= 2 * period / 4 / 1e3 + 1e-9


@given(LOADS, st.integers(1, 50), st.data())
def test_a_hole_is_in_the_bound(load: list[bool], period: int, data: st.DataObject) -> None:
    """Samples are missing: the figure for the whole span is still within its bound, or there is none."""
    curve = Curve()
    kept = data.draw(st.lists(st.booleans(), min_size=len(load) // period + 1, max_size=len(load) // period + 1))
    for number, start in enumerate(range(0, len(load), period)):
        part = load[start : start + period]
        if kept[number]:
            curve.add(Stretch(start * MS, (start + len(part)) * MS, sum(part) / len(part)))
    seconds = len(load) / 1e3
    found = curve.between(0, len(load) * MS)
    whole = found.over(seconds)
    if whole is None:
        assert found.covered_s < seconds / 2
    else:
        assert abs(whole[0] - sum(load) / 1e3) <= whole[1] + 1e-9


def test_parts_of_a_span_add_up() -> None:
    """Spans that follow one another make the whole, so that no second is counted twice or lost between two steps."""
    curve = curve_of([True, False, True, True] * 500, 7)
    edges = [0, 333, 334, 1001, 1999, 2000]
    parts = [curve.between(a * MS, b * MS).value for a, b in itertools.pairwise(edges)]
    assert sum(parts) == pytest.approx(curve.between(0, 2000 * MS).value)


def test_what_overlaps_is_counted_once() -> None:
    """A sample that begins before the last one ended, as after a clock was put back, counts from there on."""
    curve = Curve()
    curve.add(Stretch(0, 10 * MS, 1.0))
    curve.add(Stretch(5 * MS, 20 * MS, 1.0))
    curve.add(Stretch(2 * MS, 18 * MS, 1.0))
    assert curve.between(0, 20 * MS).value == pytest.approx(0.020)


def test_many_samples_stay_small_and_right() -> None:
    """Sixty thousand samples of a sixth of a second take no more room than four thousand; sums are the same, and of late as fine as ever."""
    curve = Curve()
    for number in range(60_000):
        curve.add(Stretch(number * 166 * MS, (number + 1) * 166 * MS, 0.25))
    assert len(curve._pieces) <= 4096
    whole = curve.between(0, 60_000 * 166 * MS)
    assert whole.value == pytest.approx(60_000 * 0.166 / 4)
    recent = curve.between(59_000 * 166 * MS, 60_000 * 166 * MS)
    assert recent.value == pytest.approx(1000 * 0.166 / 4)
    assert recent.error < 0.09


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1e6)), min_size=2, max_size=50), st.data())
def test_a_counter_never_goes_below_zero(readings: list[tuple[int, float]], data: st.DataObject) -> None:
    """Whatever the counter says, resets and all, no span has a negative sum, and parts add up to the whole."""
    counter, at = Counter(), 0
    for step, value in readings:
        at += step
        counter.add(at * MS, value)
    middle = data.draw(st.integers(0, at))
    whole = counter.between(0, at * MS)
    parts = [counter.between(0, middle * MS), counter.between(middle * MS, at * MS)]
    assert min(part.value for part in parts) >= 0
    assert sum(part.value for part in parts) == pytest.approx(whole.value)
    assert sum(part.covered_s for part in parts) == pytest.approx(whole.covered_s)


def test_a_long_counter_keeps_its_holes() -> None:
    """Ten thousand readings with a reset every thousand: the sum is right and each reset is missing from what is covered."""
    counter, value = Counter(), 0.0
    for second in range(10_000):
        value = 0.0 if second % 1000 == 0 else value + 5
        counter.add(second * 1000 * MS, value)
    found = counter.between(0, 9_999 * 1000 * MS)
    assert found.value == pytest.approx(5 * 9_990)
    assert found.covered_s == pytest.approx(9_990)


def test_a_level_moves_evenly_between_two_readings() -> None:
    """The area under it, and as its bound what a jump anywhere between two readings would change."""
    level = Level()
    for at, value in ((0, 10.0), (1000, 10.0), (2000, 30.0), (2000, 99.0), (1500, 99.0)):
        level.add(at * MS, value)
    found = level.between(0, 2000 * MS)
    assert found.value == pytest.approx(10 + 20)
    assert found.error == pytest.approx(10)
    assert level.between(500 * MS, 1500 * MS).value == pytest.approx(5 + 0.5 * 15)
    assert level.between(3000 * MS, 4000 * MS).covered_s == 0


def test_a_long_level_stays_small() -> None:
    """An amount that is read ten thousand times is the same amount."""
    level = Level()
    for second in range(10_000):
        level.add(second * 1000 * MS, 2.0)
    assert level.between(0, 9_999 * 1000 * MS).value == pytest.approx(2 * 9_999)
    assert len(level._at) <= 4096


def test_events_stand_in_where_the_driver_knows_nothing() -> None:
    """The seconds between events are taken, as an upper bound without an error, unless there is a measured figure."""
    assert from_events(Measured(), 3.5).busy_source == "cuda_event"
    assert from_events(Measured(), 3.5).busy_s == 3.5
    assert from_events(Measured(), 3.5).busy_error_s is None
    measured = Measured(busy_s=3.0, busy_source="gpm")
    assert from_events(measured, 3.5) is measured
