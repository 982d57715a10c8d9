"""A ledger, and one elsewhere that is given a copy of every entry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aifinops.charges import Charge
from aifinops.errors import StoreError, swallow
from aifinops.ledger.base import Capabilities, Compaction, Group, Ledger, LedgerInfo, Progress, Query, Verification
from aifinops.ledger.spool import Spooled

__all__ = ["Copied"]


class Copied:
    """Everything is asked of `ledger`; what is new there goes to `copies` as well, whose troubles are no one else's.

    Args:
        ledger: the one that counts. copies: the other, behind its spool.
    """

    def __init__(self, ledger: Ledger, copies: Spooled) -> None:
        self.ledger, self.copies = ledger, copies
        self._unsent = 0

    @property
    def capabilities(self) -> Capabilities:
        """Those of the ledger."""
        return self.ledger.capabilities

    @property
    def dropped(self) -> int:
        """Entries of the ledger that were lost, and copies that will not be sent."""
        return int(getattr(self.ledger, "dropped", 0)) + self.copies.dropped + self._unsent

    def enqueue(self, charge: Charge) -> None:
        """Keep one entry and send a copy.

        Raises:
            StoreError: when the ledger cannot keep it; no copy is sent then.
        """
        self.ledger.enqueue(charge)
        self._send(charge)

    def append(self, charge: Charge) -> bool:
        """Keep one entry; when it is new, send a copy.

        Raises:
            StoreError: when the ledger cannot keep it; no copy is sent then.
        """
        new = self.ledger.append(charge)
        if new:
            self._send(charge)
        return new

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several, all or none, and send copies; how many were new.

        Raises:
            StoreError: when none was kept; no copy is sent then.
        """
        new = self.ledger.append_many(charges)
        if new:
            for charge in charges:  # which were new is not said; whoever takes the copies knows them by their ids
                self._send(charge)
        return new

    def _send(self, charge: Charge) -> None:
        try:
            self.copies.enqueue(charge)
        except StoreError as error:  # a full disk: the entry itself is in the ledger
            self._unsent += 1
            self.copies.spool.say("unsent", f"copies cannot be kept ({error}); they are lost, and counted")
        except Exception as failure:
            self._unsent += 1
            swallow("ledger.copies", failure)

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """The entries of the ledger.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when it cannot be read.
        """
        return self.ledger.rows(query)

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - as above
        """Sums by the ledger.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when it cannot be read.
        """
        return self.ledger.summarize(query, by)

    def info(self) -> LedgerInfo:
        """What the ledger says of itself.

        Raises:
            StoreError: when it cannot be read.
        """
        return self.ledger.info()

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Compact the ledger.

        Raises:
            ConfigurationError: when it cannot do it. StoreError: when it cannot be written.
        """
        return self.ledger.compact(before_ns, progress=progress)

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Look through the ledger.

        Raises:
            ConfigurationError: when it cannot do it. StoreError: when it cannot be read.
        """
        return self.ledger.verify(progress=progress)

    def flush(self, timeout_s: float) -> bool:
        """Send what is waiting, of entries and of copies; False when something still waits."""
        flush = getattr(self.ledger, "flush", None)
        own = flush is None or bool(flush(timeout_s))
        return self.copies.flush(timeout_s) and own

    def close(self) -> None:
        """Send what is waiting, for two seconds at most, and let go."""
        try:
            self.copies.close()
        finally:
            self.ledger.close()

    def reset_after_fork(self) -> None:
        """In a forked child: nothing of the parent's is ours to send."""
        self._unsent = 0
        self.ledger.reset_after_fork()
        self.copies.reset_after_fork()
