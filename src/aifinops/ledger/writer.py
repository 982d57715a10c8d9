"""The way into a ledger for the metered call: it writes at once, and keeps in memory what could not be written."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from aifinops.charges import Charge
from aifinops.errors import StoreError
from aifinops.ledger.base import Ledger

__all__ = ["Writer"]

logger = logging.getLogger("aifinops")

CAPACITY = 10_000
PAUSE_NS = 1_000_000_000
"""Nanoseconds without an attempt after a failure: a locked file must not hold up every call for its whole timeout."""


class Writer:
    """Writes charges, and survives a ledger that is full, locked or away for a while.

    Attributes:
        ledger: where to.

    Args:
        ledger: where to.
        capacity: the most charges that wait in memory.
        monotonic_ns: clock for the pause between attempts, nanoseconds.
    """

    def __init__(
        self, ledger: Ledger, *, capacity: int = CAPACITY, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.ledger = ledger
        self._lost = 0
        self._capacity = capacity
        self._now = monotonic_ns
        self._forget()

    def _forget(self) -> None:
        self._waiting: deque[Charge] = deque()
        self._paused_until = 0
        self._lock = threading.RLock()
        self._turn = threading.Lock()  # not re-entrant: a signal handler in the middle of it writes nothing in between
        self._said: set[str] = set()

    @property
    def dropped(self) -> int:
        """Charges that are lost: more than `capacity` waited here, or the ledger itself has lost them on their way."""
        return self._lost + int(getattr(self.ledger, "dropped", 0))

    @property
    def pending(self) -> int:
        """Charges that wait in memory for the next attempt."""
        return len(self._waiting)

    def write(self, charge: Charge) -> None:
        """Write one charge; when the ledger fails, keep it for later. A `StoreError` never gets out."""
        if self._waiting and not self._catch_up():
            self._keep(charge)
            return
        try:
            self.ledger.enqueue(charge)
        except StoreError as error:
            self._pause(error)
            self._keep(charge)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Try at once to write what waits, here and on its way to a ledger elsewhere.

        Args:
            timeout_s: how long a ledger elsewhere may take for it, seconds.

        Returns:
            True when nothing waits any more.
        """
        written = self._write_waiting()
        send: Callable[[float], bool] | None = getattr(self.ledger, "flush", None)
        return (send is None or send(timeout_s)) and written

    def _write_waiting(self) -> bool:
        self._paused_until = 0
        return not self._waiting or self._catch_up()

    def close(self) -> None:
        """Write what waits, say what could not be saved, and close the ledger."""
        if not self._write_waiting():
            logger.error("aifinops: %d charges could not be written to the ledger and are lost", self.pending)
        self.ledger.close()

    def reset_after_fork(self) -> None:
        """In a forked child: what waits is the parent's to write, so the child starts with nothing."""
        self._forget()
        self._lost = 0
        self.ledger.reset_after_fork()

    def _catch_up(self) -> bool:
        """Write what waits, oldest first; False when something still waits."""
        if self._now() < self._paused_until or not self._turn.acquire(blocking=False):
            return False  # too early, or somebody is at it: nobody waits here
        try:
            while self._waiting:
                self._write_oldest()
        except StoreError as error:
            self._pause(error)
            return False
        finally:
            self._turn.release()
        return True

    def _write_oldest(self) -> None:
        charge = self._waiting[0]
        try:
            self.ledger.enqueue(charge)
        except StoreError:
            raise
        except Exception as error:  # this one can never be written; it must not stand before the others for ever
            self._drop(f"charge {charge.id} cannot be written: {error!r}")
        self._waiting.popleft()

    def _keep(self, charge: Charge) -> None:
        if len(self._waiting) >= self._capacity:
            self._drop(f"more than {self._capacity} charges wait for the ledger")
        else:
            self._waiting.append(charge)

    def _drop(self, why: str) -> None:
        with self._lock:
            self._lost += 1
        self._say("drop", f"{why}; it is lost, and further losses are only counted")

    def _pause(self, error: StoreError) -> None:
        self._paused_until = self._now() + PAUSE_NS
        self._say("fail", f"the ledger cannot be written ({error}); charges wait in memory and are tried again")

    def _say(self, topic: str, text: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            logger.warning("aifinops: %s", text)
