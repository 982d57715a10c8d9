"""Seeing the charges that a piece of code makes."""

from __future__ import annotations

import threading

import pytest

import aifinops
from aifinops import scope, testing
from aifinops.charges import Charge, new_id
from aifinops.testing import capture_charges


def charge(model: str) -> Charge:
    """Make a charge as metering does: told to every tracker in force."""
    made = Charge(new_id(), 0, "openai", "chat", model)
    for tracker in scope.current().trackers:
        tracker.add(made)
    return made


def test_collects_inside_only() -> None:
    """Charges before and after the block are not in it; those of bound threads are."""
    charge("before")
    with capture_charges() as outer:
        first = charge("first")
        with capture_charges() as inner:
            second = charge("second")
            thread = threading.Thread(target=scope.bind(charge), args=("third",))
            thread.start()
            thread.join()
    charge("after")
    assert inner[0] is second
    assert outer[:2] == [first, second]
    assert [item.model for item in outer] == ["first", "second", "third"]


def test_is_left_on_an_error() -> None:
    """An exception passes, and what was charged before it is kept."""
    charges: list[Charge] = []

    def fail() -> None:
        nonlocal charges
        with capture_charges() as charges:
            charge("paid")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [item.model for item in charges] == ["paid"]
    assert scope.current().trackers == ()


def test_sees_what_is_recorded() -> None:
    """What `record` writes to the ledger is seen."""
    with capture_charges() as charges:
        made = aifinops.record(usage={"read_units": 1200}, cost="0.02 USD", provider="pinecone")
    assert charges == [made]


def test_the_face() -> None:
    """Every published name is there, and nothing else is promised."""
    assert set(testing.__all__) <= set(dir(testing))
    for name in ("FakeClock", "FakeProvider", "Served", "capture_charges"):
        assert getattr(testing, name).__name__ == name
    with pytest.raises(AttributeError, match="fake_everything"):
        testing.fake_everything  # noqa: B018 - the lookup is the test
