"""Room for a call is found before it is made: its bound is held in every budget, of a smaller call where a budget says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aifinops.budgets.actions import Change, Downgrade
from aifinops.charges import new_id
from aifinops.errors import swallow
from aifinops.metering import bounds, fitting
from aifinops.metering.fitting import LONGEST
from aifinops.tags import make_tags, merge

if TYPE_CHECKING:
    from aifinops.metering.invocation import Invocation

__all__ = ["hold"]

_MOST_CHANGES = 64
_ENDLESS = "The budgets around this call change it again and again."
_FIXED = "The request is under way, so on_exceed cannot change it."
_NO_LIMIT = "The request states no output limit, so the model's own maximum is held; set max_completion_tokens."


def hold(invocation: Invocation, budgets: Any, id: str, *, fixed: bool) -> None:
    """Hold the upper bound of a call in every budget, under an id that is new.

    Where a budget says so the call is changed until it fits, unless it is `fixed`: under way already.

    Raises:
        BudgetExceeded: when one has no room.
    """
    try:
        _hold(invocation, budgets, id)
    except Change as change:
        _hold_smaller(invocation, budgets, change, _FIXED if fixed else "")


def _hold_smaller(invocation: Invocation, budgets: Any, change: Change, why_not: str) -> None:
    past: dict[str, int] = {}  # key of a budget -> how many actions of its chain were of no use
    whys: dict[str, list[str]] = {}
    before: dict[str, tuple[Any, ...]] = {}
    for _ in range(_MOST_CHANGES):
        key, was = change.place[1].budget, (invocation.call, invocation.changed, invocation.tags)
        why = fitting.refit(invocation, change, why_not)
        if why is None:
            if not isinstance(change.action, Downgrade):
                before.setdefault(key, was)
        else:
            whys.setdefault(key, []).append(why)
            if not change.more:
                raise fitting.refused(invocation, change, " ".join(dict.fromkeys(whys[key]))) from None
            past[key] = past.get(key, 0) + 1
            # A small answer, or one that may be ended, is of no use where it does not fit either; a cheaper model is.
            invocation.call, invocation.changed, invocation.tags = before.pop(key, was)
        try:
            # A new id: what a budget of another store has held and given back has used the first one up.
            _hold(invocation, budgets, new_id(), past)
        except Change as another:
            change = another
        else:
            return
    raise fitting.refused(invocation, change, _ENDLESS)


def _hold(invocation: Invocation, budgets: Any, id: str, past: Mapping[str, int] | None = None) -> None:
    engines, call = invocation.engines, invocation.call
    bound = _bound(invocation)
    invocation.take(bound)
    invocation.reservation = reservation = engines.guard.reserve(
        budgets,
        bound.amounts,
        id=id,
        at=invocation.wall,
        unpriced=bounds.why_unpriced(engines.book, call, invocation.wall) if bound.upper is None else None,
        hint=_NO_LIMIT if bound.upper is not None and call.output_bound() is None else "",
        about=lambda: _about(invocation),
        past=past,
    )
    if reservation is not None and reservation.granted:
        invocation.tags = merge(invocation.tags, make_tags(reservation.granted))


def _bound(invocation: Invocation) -> bounds.Bound:
    book, call, at = invocation.engines.book, invocation.call, invocation.wall
    try:
        return bounds.bound_of(book, call, at)
    except Exception as failure:  # a request that we cannot read is no more than the largest one
        coarse = bounds.coarse(book, call, at)
        if coarse is None:
            raise
        swallow("metering.bound", failure)
        return coarse


def _about(invocation: Invocation) -> dict[str, str]:
    """What whoever is asked for an approval is told of a call."""
    call = invocation.call
    said = {"provider": call.provider, "operation": call.operation, "model": call.model, **invocation.tags}
    return {key: value[:LONGEST] for key, value in said.items()}
