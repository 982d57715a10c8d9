"""In which order the entries of a ledger with tables are compacted.

An entry may go when nothing can change any more what it adds to the sums: it is sure (see `aifinops.ledger.base.Group`), and it is not
the correction that makes another entry sure which is still there, or may still come. So entries go first and their corrections after
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from aifinops.ledger.base import DAY_NS

__all__ = ["DayByDay", "Passes"]


class Passes(ABC):
    """A compaction up to a day, pass after pass over the entries before it; a ledger says what a pass does.

    Args:
        until: the day, nanoseconds.

    Attributes:
        entries: that are gone. since: the first day of which there were any, nanoseconds.
    """

    def __init__(self, until: int) -> None:
        self._until = until
        self.entries = 0
        self.since: int | None = None

    def _passes(self, first: str, then: str) -> Iterator[int]:
        """Take the entries of one condition, and then those of another until there are none left; how many went in each step."""
        yield from self._counted(first)
        while True:  # a correction may itself have been corrected
            before = self.entries
            yield from self._counted(then)
            if self.entries == before:
                break

    def _counted(self, which: str) -> Iterator[int]:
        for day, gone in self._pass(which):
            self.entries += gone
            if gone:
                self.since = day if self.since is None else min(day, self.since)
            yield gone

    @abstractmethod
    def _pass(self, which: str) -> Iterator[tuple[int, int]]:
        """Take what a condition chooses: of which day, and how many went, for each step."""


class DayByDay(Passes):
    """Passes that take the days one after the other, each in transactions of so many entries."""

    def _pass(self, which: str) -> Iterator[tuple[int, int]]:
        day: int | None = None
        while (day := self._next(day)) is not None:
            while gone := self._step(day, which):
                yield day, gone
            day += DAY_NS

    @abstractmethod
    def _next(self, since: int | None) -> int | None:
        """The day of the earliest entry from there on, None where there is none."""

    @abstractmethod
    def _step(self, day: int, which: str) -> int:
        """Take some entries of a day in one transaction; how many, 0 when none are left."""
