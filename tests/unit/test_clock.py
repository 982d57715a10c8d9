"""Time as integers: conversions are exact."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.clock import Clock, SystemClock, to_datetime, to_ns

MOMENTS = st.datetimes(timezones=st.just(UTC))  # from the year 1 on


@given(MOMENTS)
def test_datetimes_round_trip_to_the_microsecond(moment: datetime) -> None:
    """No float is on the way, so no microsecond is lost."""
    assert to_datetime(to_ns(moment)) == moment


@given(st.integers(min_value=0, max_value=7 * 10**18))
def test_nanoseconds_lose_less_than_a_microsecond(ns: int) -> None:
    """A datetime is the moment cut to the microsecond, never rounded up."""
    assert 0 <= ns - to_ns(to_datetime(ns)) < 1000


@pytest.mark.parametrize("ns", [0, 1_000, 1_699_999_999_999_999_999])
def test_datetimes_are_aware(ns: int) -> None:
    """Every datetime that leaves us says that it is UTC."""
    assert to_datetime(ns).tzinfo is UTC


def test_a_naive_datetime_is_utc() -> None:
    """The machine's own zone never decides a price or a window."""
    naive = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - that is what is tested
    assert to_ns(naive) == to_ns(datetime(2026, 3, 1, 12, tzinfo=UTC))


def test_other_zones_are_the_same_moment() -> None:
    """The offset is taken into account."""
    berlin = timezone(timedelta(hours=1))
    assert to_ns(datetime(2026, 3, 1, 13, tzinfo=berlin)) == to_ns(datetime(2026, 3, 1, 12, tzinfo=UTC))


def test_before_the_epoch_is_exact_too() -> None:
    """A date of long ago is a negative number, exact to the microsecond."""
    moment = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert to_ns(moment) == -1000
    assert to_datetime(-1000) == moment


def test_the_machines_clocks_are_integers_that_do_not_go_back() -> None:
    """Both methods return nanoseconds as int."""
    clock: Clock = SystemClock()
    first, second = clock.monotonic_ns(), clock.monotonic_ns()
    assert second >= first
    assert to_datetime(clock.time_ns()).year >= 2026
