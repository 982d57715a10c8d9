"""What is in force here: tags, budgets and trackers of the blocks around the current line of code.

One immutable `Scope` in one `ContextVar`: tasks and `asyncio.to_thread` copy it by themselves, worker threads get it
through `bind` (or through `instrument()`, which binds what is submitted to a `ThreadPoolExecutor`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from aifinops.tags import EMPTY, Tags, merge

if TYPE_CHECKING:
    from aifinops.budgets.budget import ActiveBudget
    from aifinops.charges import Charge

__all__ = [
    "NOTHING",
    "BudgetListener",
    "Run",
    "Scope",
    "Tracker",
    "begin_run",
    "bind",
    "budget_listeners",
    "current",
    "end_run",
    "enter",
    "leave",
    "narrowed",
    "set_scope",
]

P = ParamSpec("P")
R = TypeVar("R")


class Tracker(Protocol):
    """Whoever wants to see each charge made inside its block."""

    def add(self, charge: Charge) -> None:
        """Called once for each charge, in the thread or task that made it."""
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything that the blocks around us have said.

    Attributes:
        tags: merged tags, inner over outer.
        budgets: outermost first; a call needs room in every one.
        trackers: blocks that collect charges, outermost first.
        span: the OpenTelemetry span of the innermost `track` block, parent for threads that lost the OTel context.
        run: the framework's run that this scope is for; when it is over, what was before it is in force, in every context that has a
            copy. None for a block, which is left where it was entered.
    """

    tags: Tags = field(default_factory=lambda: EMPTY)
    budgets: tuple[ActiveBudget, ...] = ()
    trackers: tuple[Tracker, ...] = ()
    span: Any = None
    run: Run | None = None


class Run:
    """Something that begins and ends without being a block: the end may come in another thread, in another order, or never."""

    __slots__ = ("before", "over")

    def __init__(self, before: Scope) -> None:
        self.before = before
        self.over = False


class BudgetListener(Protocol):
    """Whoever has to know when a block with a budget is entered or left: what pays for time, and was begun before."""

    def budget_entered(self, active: ActiveBudget) -> None:
        """Called once it is in force, in its thread or task; it must not raise."""
        ...

    def budget_left(self, active: ActiveBudget) -> None:
        """Called when it is in force no longer, in its thread or task; it must not raise."""
        ...


budget_listeners: list[BudgetListener] = []
"""Told by blocks with a budget; nobody is removed."""

NOTHING = Scope()
"""The scope outside every block."""
_scope: ContextVar[Scope] = ContextVar("aifinops_scope", default=NOTHING)


def current() -> Scope:
    """The scope in force; never None."""
    found = _scope.get()
    while found.run is not None and found.run.over:
        found = found.run.before
    return found


def begin_run(tags: Tags) -> Run:
    """Put tags into force until `end_run`, in this context and in those that copy it."""
    before = current()
    run = Run(before)
    _scope.set(Scope(merge(before.tags, tags), before.budgets, before.trackers, before.span, run))
    return run


def end_run(run: Run) -> None:
    """The run is over, wherever it was begun."""
    run.over = True
    if _scope.get().run is run:
        _scope.set(run.before)


def enter(
    *,
    tags: Tags = EMPTY,
    budget: ActiveBudget | None = None,
    tracker: Tracker | None = None,
    span: Any = None,
) -> Token[Scope]:
    """Push one block; give the token to `leave` in a `finally`."""
    outer = current()
    return _scope.set(
        Scope(
            tags=merge(outer.tags, tags),
            budgets=outer.budgets if budget is None else _with_budget(outer.budgets, budget),
            trackers=outer.trackers if tracker is None else (*outer.trackers, tracker),
            span=outer.span if span is None else span,
        )
    )


def _with_budget(outer: tuple[ActiveBudget, ...], budget: ActiveBudget) -> tuple[ActiveBudget, ...]:
    # The same named budget entered twice is one node of the tree, not two charges.
    return outer if any(item.key == budget.key for item in outer) else (*outer, budget)


def leave(token: Token[Scope]) -> None:
    """Undo `enter`. A token of another context (a generator closed elsewhere) is ignored: that context is gone."""
    try:
        _scope.reset(token)
    except ValueError:
        return


def set_scope(scope: Scope) -> Token[Scope]:
    """Put a captured scope in force; give the token to `leave`."""
    return _scope.set(scope)


@contextmanager
def narrowed(scope: Scope) -> Iterator[None]:
    """Run a block under a captured scope."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        leave(token)


def bind(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, to be called from another thread under the tags and budgets in force now.

    >>> threading.Thread(target=aifinops.bind(work)).start()  # doctest: +SKIP
    """
    scope = current()

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _scope.set(scope)
        try:
            return function(*args, **kwargs)
        finally:
            leave(token)

    return bound
