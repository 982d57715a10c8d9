"""The clock that moves when it is told to."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from aifinops.clock import Clock
from aifinops.errors import ConfigurationError
from aifinops.testing import FakeClock


def test_stands_still() -> None:
    """Time does not pass by itself."""
    clock: Clock = FakeClock(datetime(2026, 3, 1, tzinfo=UTC))
    assert (clock.time_ns(), clock.monotonic_ns()) == (1_772_323_200_000_000_000, 0)
    assert clock.time_ns() == 1_772_323_200_000_000_000


def test_advance_moves_both() -> None:
    """Wall and monotonic time move by the same step, exact to the microsecond."""
    clock = FakeClock()
    start = clock.now
    assert clock.advance(0.000001, minutes=1, hours=1, days=400) - start == timedelta(400, 3660, 1)
    assert clock.monotonic_ns() == (400 * 86_400 + 3660) * 10**9 + 1000


def test_wall_clock_may_go_back() -> None:
    """`advance` never goes back; the wall clock may be put right, and the monotonic one stays."""
    clock = FakeClock(10**18)
    with pytest.raises(ConfigurationError, match="set_wall"):
        clock.advance(-1)
    clock.advance(5)
    clock.set_wall(datetime(2020, 1, 1, tzinfo=UTC))
    assert (clock.now.year, clock.monotonic_ns()) == (2020, 5 * 10**9)


def test_threads() -> None:
    """No step is lost between threads."""
    clock = FakeClock(0)
    threads = [threading.Thread(target=lambda: [clock.advance(1) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.time_ns() == clock.monotonic_ns() == 1600 * 10**9
