"""Every ledger keeps the published contract."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from aifinops.ledger import open_ledger
from aifinops.ledger.base import Ledger
from aifinops.testing.ledger import CHECKS, check_ledger, example_charge


@pytest.fixture(params=["memory", "sqlite"])
def make_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ledger]:
    if request.param == "memory":
        return lambda: open_ledger("memory")
    numbers = count()
    return lambda: open_ledger(tmp_path / f"{next(numbers)}.db")


@pytest.mark.parametrize("name", CHECKS)
def test_contract(name: str, make_ledger: Callable[[], Ledger]) -> None:
    """Each promise of the interface holds."""
    CHECKS[name](make_ledger)


def test_the_suite_finds_a_ledger_that_forgets() -> None:
    """A ledger that breaks a promise does not pass."""

    class Forgetful(type(open_ledger("memory"))):  # type: ignore[misc]
        def append(self, charge: object) -> bool:
            return True

    with pytest.raises(AssertionError, match="entries as read back"):
        check_ledger(Forgetful)


def test_the_suite_finds_a_ledger_that_adds_up_wrongly() -> None:
    """Sums that include what is unknown as zero-cost calls, or lose one, do not pass."""

    class Miscounting(type(open_ledger("memory"))):  # type: ignore[misc]
        def summarize(self, *args: object, **kwargs: object) -> list[object]:
            return super().summarize(*args, **kwargs)[:-1]

    with pytest.raises(AssertionError, match="groups of"):
        check_ledger(Miscounting)


def test_example_charges_differ_only_where_asked() -> None:
    """The public example makes ascending ids and takes changes."""
    assert example_charge(1).id < example_charge(2).id
    assert example_charge(1, amount=5).amount == 5
