"""Tags of a framework's runs: in force until the run is over, wherever its end comes, and in every context that has them."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from typing import Any

import pytest

import aifinops as af
from aifinops import scope
from aifinops.integrations.frameworks import attribution
from aifinops.integrations.frameworks.attribution import Attribution, tagged, tags_of
from aifinops.tags import make_tags


def tags() -> dict[str, str]:
    return dict(scope.current().tags)


@pytest.fixture
def runs() -> Attribution:
    return Attribution()


def test_inner_runs_add_to_outer_ones(runs: Attribution) -> None:
    """The inner one wins key by key, and everything is as it was at the end."""
    runs.start(1, make_tags({"agent": "a", "node": "x"}))
    runs.start(2, make_tags({"node": "y"}))
    assert tags() == {"agent": "a", "node": "y"}
    runs.end(2)
    assert tags() == {"agent": "a", "node": "x"}
    runs.end(1)
    assert scope.current() is scope.NOTHING
    assert len(runs) == 0


def test_ends_may_come_in_any_order(runs: Attribution) -> None:
    """An outer run that ends first leaves the inner one in force, and nothing after that."""
    runs.start(1, make_tags({"agent": "a"}))
    runs.start(2, make_tags({"agent": "b"}))
    runs.end(1)
    assert tags() == {"agent": "b"}
    runs.end(2)
    assert tags() == {}


def test_an_end_in_another_thread_is_the_end_here(runs: Attribution) -> None:
    """And in every context that was copied while it ran."""
    runs.start(1, make_tags({"agent": "a"}))
    copied = copy_context()
    assert copied.run(tags) == {"agent": "a"}
    thread = threading.Thread(target=runs.end, args=(1,))
    thread.start()
    thread.join()
    assert tags() == {}
    assert copied.run(tags) == {}


async def test_an_end_in_a_task_of_its_own_is_the_end_here(runs: Attribution) -> None:
    """Frameworks shield their last words from cancellation by a task."""

    async def end() -> None:
        runs.end(1)

    runs.start(1, make_tags({"agent": "a"}))
    await asyncio.shield(end())
    assert tags() == {}


def test_blocks_of_the_user_stay_blocks(runs: Attribution) -> None:
    """A block around a run keeps its tags, one inside keeps them until it is left, and budgets go on holding."""
    with af.tags(team="search"), af.budget("$1"):
        runs.start(1, make_tags({"agent": "a"}))
        assert tags() == {"team": "search", "agent": "a"}
        assert len(scope.current().budgets) == 1
        with af.tags(customer="acme"):
            runs.end(1)
            assert tags() == {"team": "search", "agent": "a", "customer": "acme"}
        assert tags() == {"team": "search"}
    assert tags() == {}


def test_a_function_bound_in_a_run_has_its_tags_while_it_lasts(runs: Attribution) -> None:
    """`bind` carries them into a thread."""
    runs.start(1, make_tags({"agent": "a"}))
    seen: list[Any] = []
    bound = af.bind(lambda: seen.append(tags()))
    for _ in range(2):
        thread = threading.Thread(target=bound)
        thread.start()
        thread.join()
        runs.end(1)
    assert seen == [{"agent": "a"}, {}]


def test_ends_without_a_beginning_are_ignored(runs: Attribution) -> None:
    """And a second end, and a run without tags."""
    runs.end(1)
    runs.start(1, make_tags({}))
    runs.start(2, make_tags({"agent": "a"}))
    runs.end(2)
    runs.end(2)
    assert scope.current() is scope.NOTHING


def test_runs_that_never_end_are_forgotten(runs: Attribution, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, so that memory is bounded."""
    monkeypatch.setattr(attribution, "MOST_OPEN", 3)
    for number in range(10):
        copy_context().run(runs.start, number, make_tags({"agent": "a"}))
    assert len(runs) == 3


def test_whatever_a_framework_says_becomes_tags_or_nothing() -> None:
    """Empty values, objects and truth values are left out, long texts are cut, and nothing raises."""
    assert tags_of({"a": "x", "b": "", "c": None, "d": object(), "e": 7, "f": True}) == {"a": "x", "e": "7"}
    assert len(tags_of({"tool": "x" * 1000})["tool"]) == 256
    with tagged({"tool": "find"}):
        assert tags() == {"tool": "find"}
    assert tags() == {}
