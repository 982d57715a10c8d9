"""Patches that belong together are all made or none, and switches of others are what they were, whatever fails in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context

import aifinops as af
from aifinops import errors
from aifinops.integrations import others
from aifinops.integrations.patching import Patch, applied
from aifinops.telemetry.guests import SUPPRESS


class Client:
    """Somebody's class."""

    def one(self) -> int:
        """A method."""
        return 1

    def two(self) -> int:
        """Another."""
        return 2


def passing(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **kwargs)


def test_where_one_patch_cannot_be_made_the_others_are_taken_back() -> None:
    """A version that lacks one of several methods keeps what it has as it was."""
    before = dict(vars(Client))
    with pytest.raises(AttributeError):
        applied([(Client, "one", passing), (Client, "two", passing), (Client, "three", passing)])
    assert dict(vars(Client)) == before


def test_patches_that_can_be_made_are_in_order() -> None:
    """All of them, to be undone by whoever asked."""
    before = dict(vars(Client))
    made = applied([(Client, "one", passing), (Client, "two", passing)])
    assert Client().one() + Client().two() == 3
    assert vars(Client)["one"] is not before["one"]
    for patch in reversed(made):
        patch.undo()
    assert dict(vars(Client)) == before


@pytest.fixture
def presence() -> Iterator[others.Presence]:
    made = others.Presence("somebody")
    yield made
    made.step_aside()


def test_what_stands_in_front_is_taken_back_when_the_next_fails(presence: others.Presence) -> None:
    """A failure between two patches in front of others leaves none of them behind."""
    errors.reraise_failures(False)
    before = dict(vars(Client))

    def front() -> Iterator[Patch]:
        yield Patch(Client, "one", passing)
        raise RuntimeError("injected")

    presence.front = front
    with pytest.raises(RuntimeError):
        presence.step_in()
    assert vars(Client)["one"] is not before["one"]
    presence.step_aside()
    assert dict(vars(Client)) == before


def test_one_that_cannot_be_taken_away_does_not_keep_the_others(presence: others.Presence) -> None:
    """Each patch in front is undone on its own."""
    errors.reraise_failures(False)
    before = dict(vars(Client))

    class Stuck:
        def undo(self) -> None:
            raise RuntimeError("injected")

    presence.front = lambda: [Patch(Client, "one", passing), Stuck(), Patch(Client, "two", passing)]  # type: ignore[list-item]
    presence.step_in()
    presence.step_aside()
    assert dict(vars(Client)) == before
    assert errors.failures() == {"integrations.others.undo": 1}


def test_a_quiet_call_leaves_the_switches_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the call returns or raises, and whichever function of ours fails meanwhile."""
    errors.reraise_failures(False)
    af.init(spans="emit")
    seen: list[Any] = []

    def call() -> None:
        seen.append(context.get_value(SUPPRESS))
        # From here on everything of ours in that module is broken.
        for name in ("_hush", "_owned", "guarded", "quieten"):
            monkeypatch.setattr(others, name, None)
        raise ConnectionError

    before = context.get_current()
    with pytest.raises(ConnectionError):
        others._quiet(call, None, (), {})
    assert seen == [True]
    assert context.get_current() == before


def test_somebody_is_switched_on_while_one_more_library_is_seen() -> None:
    """Another thread may look for one more library meanwhile."""
    af.init()

    def switch() -> str:
        others.presence("one more")
        return "on"

    try:
        others.presence("the first")
        assert others._switched(switch, None, (), {}) == "on"
    finally:
        others._presences.pop("one more")
        others._presences.pop("the first")
        others.leave()
