"""A clock that moves when it is told to."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from aifinops.clock import to_datetime, to_ns
from aifinops.errors import ConfigurationError

__all__ = ["FakeClock"]


class FakeClock:
    """An `aifinops.clock.Clock` for tests; safe to share between threads.

    >>> clock = FakeClock(datetime(2026, 1, 31, tzinfo=UTC))
    >>> clock.advance(days=1).month
    2

    Args:
        start: the wall time it begins at; a naive datetime is taken as UTC, an int as nanoseconds since the epoch.
    """

    def __init__(self, start: datetime | int = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._wall = start if isinstance(start, int) else to_ns(start)
        self._monotonic = 0
        self._lock = threading.Lock()

    def time_ns(self) -> int:
        """Wall clock: nanoseconds since the Unix epoch, UTC."""
        return self._wall

    def monotonic_ns(self) -> int:
        """Nanoseconds since this clock was made."""
        return self._monotonic

    @property
    def now(self) -> datetime:
        """The wall time as an aware UTC datetime."""
        return to_datetime(self._wall)

    def advance(self, seconds: float = 0, *, minutes: float = 0, hours: float = 0, days: float = 0) -> datetime:
        """Move both clocks forward, exact to the microsecond, and return the new wall time.

        Raises:
            ConfigurationError: for a step back; use `set_wall` for a wall clock that is put right.
        """
        step = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)
        if step < timedelta(0):
            raise ConfigurationError(
                f"advance({step.total_seconds()} s) would go back; set_wall() moves the wall clock"
            )
        nanoseconds = (step.days * 86_400 + step.seconds) * 1_000_000_000 + step.microseconds * 1000
        with self._lock:
            self._wall += nanoseconds
            self._monotonic += nanoseconds
        return self.now

    def set_wall(self, moment: datetime) -> None:
        """Put the wall clock somewhere else, also back, as NTP does; the monotonic clock stays."""
        with self._lock:
            self._wall = to_ns(moment)
