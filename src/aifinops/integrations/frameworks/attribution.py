"""Tags of a framework's runs, in force while each runs: what the calls inside are attributed to.

Frameworks tell beginnings and ends, not blocks: an end may come in another thread or task, in another order, or never. `scope.Run` holds
in every context that has copied it and is over in all of them at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress

from aifinops import scope
from aifinops.errors import swallow
from aifinops.scope import Run
from aifinops.tags import EMPTY, Tags, make_tags

__all__ = ["Attribution", "tagged", "tags_of"]

MOST_OPEN = 10_000
"""Runs that may be open at once in one process; beyond it the oldest are forgotten (their end never came)."""

_LONGEST = 256


def tags_of(values: Mapping[str, object]) -> Tags:
    """Tags of whatever a framework says: empty ones left out, long ones cut, never an error.

    A name that a model made up (a tool that does not exist) may be anything, so what is no text or number is left out as well.
    """
    clean = {
        key: str(value)[:_LONGEST]
        for key, value in values.items()
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
    }
    return make_tags(clean) if clean else EMPTY


class Attribution:
    """The open runs of one framework."""

    def __init__(self) -> None:
        self._open: OrderedDict[Hashable, Run] = (
            OrderedDict()
        )  # no lock, which a fork could leave held: each step below is one

    def start(self, run: Hashable, tags: Tags) -> None:
        """A run begins here: its tags are in force in this context, and in those that copy it, until its end."""
        if not tags:
            return
        begun = scope.begin_run(tags)
        self._open[run] = begun
        if len(self._open) > MOST_OPEN:
            with suppress(KeyError):
                self._open.popitem(last=False)[1].over = True

    def end(self, run: Hashable) -> None:
        """A run has ended; one that never began, or has ended before, is ignored."""
        begun = self._open.pop(run, None)
        if begun is not None:
            scope.end_run(begun)

    def __len__(self) -> int:
        return len(self._open)


@contextmanager
def tagged(values: Mapping[str, object]) -> Iterator[None]:
    """Tags in force for a block, of a framework that does have blocks."""
    try:
        token = scope.enter(tags=tags_of(values))
    except Exception as failure:  # attribution is a courtesy; the user's call goes on
        swallow("frameworks.tags", failure)
        token = None
    try:
        yield
    finally:
        if token is not None:
            scope.leave(token)
