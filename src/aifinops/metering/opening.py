"""A call is opened: tags and budgets from the scope, room in every budget, ids in the context."""

from __future__ import annotations

from aifinops import runtime
from aifinops.errors import BudgetExceeded, swallow
from aifinops.metering import deferred, undecided, waiting
from aifinops.metering.call import Call
from aifinops.metering.invocation import Invocation, in_flight
from aifinops.metering.watched import Watched, Watcher
from aifinops.scope import current

__all__ = ["begin", "observe", "watch"]


def begin(call: Call) -> Invocation | None:
    """Open an invocation: reserve in every budget in force, then start the span.

    Returns:
        None when nothing is to be metered (switched off, already metered further out, or our own failure).

    Raises:
        BudgetExceeded: when a budget has no room, or may have none and a failure of ours keeps it from saying so; nothing was sent.
    """
    if _is_owned():
        return None
    try:
        return waiting.here(_begin, call)
    except BudgetExceeded:
        raise
    except Exception as failure:  # metering must never keep a call from being made, where no limit does
        undecided.judge("metering.begin", undecided.in_force(), failure)
        return None


def _begin(call: Call) -> Invocation | None:
    engines = runtime.get()
    if not engines.config.enabled:
        return None
    _drain()
    scope = current()
    tags = engines.tags(scope)
    invocation = Invocation(engines, call, scope, tags)
    budgets = engines.budgets(scope, tags)
    if budgets:
        invocation.asked = budgets
        invocation.reserve(budgets, invocation.id)
    try:
        invocation.enter()
    except Exception as failure:  # the call is made all the same: what it may cost stays counted
        invocation.give_up()
        swallow("metering.enter", failure)
        return None
    return invocation


def _drain() -> None:
    try:
        deferred.drain()
    except Exception as failure:  # what others have left behind is no matter to this call
        swallow("metering.drain", failure)


def observe(call: Call) -> Invocation | None:
    """Open an invocation of what is under way already: no budget can refuse it, and what it costs is counted when it settles.

    Returns:
        None as in `begin`. What is opened is not the call of this context: nothing needs to `leave` it.
    """
    if _is_owned():
        return None
    try:
        engines = runtime.get()
        if not engines.config.enabled:
            return None
        deferred.drain()
        scope = current()
        tags = engines.tags(scope)
        invocation = Invocation(engines, call, scope, tags)
        invocation.budgets = engines.budgets(scope, tags)
        try:
            invocation.enter()
            invocation.leave()
        except Exception:  # nobody will end it
            invocation.give_up()
            raise
        return invocation
    except Exception as failure:  # what is under way goes on
        swallow("metering.observe", failure)
        return None


def _is_owned() -> bool:
    """Whether a call further out is metered. One that is only looked at is not: what is called inside it is a call of its own."""
    further_out = in_flight()
    return further_out is not None and type(further_out) is not Watched


def watch(call: Call, read: Watcher) -> Watched | None:
    """Look at a call that is not held for; None when it is not to be looked at (switched off, or metered further out)."""
    if in_flight() is not None:
        return None
    engines = runtime.get()
    if not engines.config.enabled:
        return None
    deferred.drain()
    scope = current()
    watched = Watched(engines, call, scope, engines.tags(scope), read)
    watched.own()
    return watched
