"""See the charges that a piece of code makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aifinops import scope
from aifinops.charges import Charge

__all__ = ["capture_charges"]


@dataclass(frozen=True, slots=True)
class _Collector:
    charges: list[Charge]

    def add(self, charge: Charge) -> None:
        self.charges.append(charge)


@contextmanager
def capture_charges() -> Iterator[list[Charge]]:
    """Collect the charges made inside the block, in order: one a physical call.

        with capture_charges() as charges:
            answer("hi")
        assert [charge.model for charge in charges] == ["gpt-5-mini"]

    It sees what is made in this thread or task and in those that inherit its scope; the ledger gets the charges
    as well.
    """
    charges: list[Charge] = []
    token = scope.enter(tracker=_Collector(charges))
    try:
        yield charges
    finally:
        scope.leave(token)
