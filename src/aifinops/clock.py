"""Time, as a value that can be injected. Wall time is for records, monotonic time for durations."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "to_datetime", "to_ns"]


class Clock(Protocol):
    """What the engines ask of time. Both methods return integer nanoseconds."""

    def time_ns(self) -> int:
        """Wall clock: nanoseconds since the Unix epoch, UTC."""
        ...

    def monotonic_ns(self) -> int:
        """A clock that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's own clocks."""

    # Static references to the C functions: this is read twice in every metered call.
    time_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.perf_counter_ns)


def to_datetime(ns: int) -> datetime:
    """An aware UTC datetime, to the microsecond."""
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).replace(microsecond=ns % 1_000_000_000 // 1000)


def to_ns(moment: datetime) -> int:
    """Nanoseconds since the epoch, exact to the microsecond; a naive datetime is taken as UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000_000 + delta.microseconds * 1000
