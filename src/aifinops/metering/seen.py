"""Response ids that have a row."""

from __future__ import annotations

import threading
from collections import deque

from aifinops.forking import in_child
from aifinops.pricing.match import provider_id

__all__ = ["Charged", "charged"]


class Charged:
    """Response ids that have a row, for whoever reads an answer again: a poll, a span, an import.

    A call that is made is always a row of its own, whatever id its answer has: servers for tests and caches answer with the same one
    twice. Only a re-reading asks here. It forgets the oldest ids.
    """

    def __init__(self, most: int = 16_384) -> None:
        self._most = most
        self._new: deque[tuple[str, str]] = deque(maxlen=most)
        self._ids: dict[str, set[str]] = {}
        self._lock = threading.RLock()  # a finalizer may ask in the middle of it

    def note(self, provider: str, response_id: str) -> None:
        """That response is charged. One append: it is called for every call."""
        self._new.append((provider, response_id))

    def seen(self, provider: str, response_id: str) -> bool:
        """Whether it is charged; `provider` in any spelling, empty for whichever."""
        with self._lock:
            ids = self._ids
            while True:
                try:
                    name, noted = self._new.popleft()
                except IndexError:
                    break
                ids.setdefault(noted, set()).add(provider_id(name) or "")
            while len(ids) > self._most:
                ids.pop(next(iter(ids)), None)
            found = ids.get(response_id, ())
        return bool(found) if not provider else provider_id(provider) in found

    def reset_after_fork(self) -> None:
        """The lock may have been held by a thread that is not here."""
        self._lock = threading.RLock()


charged = Charged()

in_child(lambda: charged.reset_after_fork())
