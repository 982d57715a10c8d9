"""What exporters could not deliver, by signal; read by the metric `aifinops.export.errors` and by `aifinops doctor`."""

from __future__ import annotations

import threading
from collections import Counter

from aifinops.forking import in_child

__all__ = ["lost"]


class _Lost:
    """Counts by signal: `traces`, `metrics`, `logs`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, signal: str, records: int) -> None:
        """So many spans, metrics or log records did not arrive."""
        with self._lock:
            self._counts[signal] += records

    def counts(self) -> dict[str, int]:
        """All so far in this process."""
        with self._lock:
            return dict(self._counts)

    def reset(self) -> None:
        """In a forked child: what its parent has lost is the parent's to tell."""
        self.__init__()  # type: ignore[misc]  # a new lock, too: the thread that may hold the old one is not here


lost = _Lost()
in_child(lost.reset)
