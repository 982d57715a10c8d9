"""A call that does not fit: it is made smaller as its budgets say, before it is sent or while its answer comes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from aifinops.budgets.actions import START_OUTPUT, Change, Clamp, Cut, Downgrade, recast, room_for, with_hint
from aifinops.errors import BudgetExceeded, StreamCut, swallow
from aifinops.metering import bounds
from aifinops.metering.estimates import ALLOWANCE
from aifinops.tags import make_tags, merge
from aifinops.telemetry import names

if TYPE_CHECKING:
    from aifinops.metering.call import Call, Changer
    from aifinops.metering.invocation import Invocation

__all__ = ["LONGEST", "grow", "refit", "refused"]

LONGEST = 256
"""Characters of a value that budgets put on a charge, or show to somebody."""

_CANNOT = "on_exceed with {0!r} cannot change calls that are made in this way."


def refit(invocation: Invocation, change: Change, why_not: str) -> str | None:
    """Make a call smaller as a budget says.

    Args:
        why_not: why it cannot be; empty where it may.

    Returns:
        Why it cannot be; None where it was.
    """
    asked = invocation.call
    if asked.change is None or why_not:
        return why_not or _CANNOT.format(change.action.name)
    try:
        made = _made(invocation, asked.change, change)
    except Exception as failure:  # a limit holds, whatever fails
        swallow("metering.refit", failure)
        made = "on_exceed failed."
    if isinstance(made, str):
        return made
    invocation.call, invocation.changed = made, change.error
    invocation.engines.guard.refusals.fitted(change)
    _note(invocation, asked, change)
    return None


def refused(invocation: Invocation, change: Change, why: str) -> BudgetExceeded:
    """The error of a call that cannot be made smaller."""
    error = with_hint(change.error, why)
    invocation.engines.guard.refusals.fitted(change, error)
    return error


def _made(invocation: Invocation, changer: Changer, change: Change) -> Call | str:
    action, call = change.action, invocation.call
    if isinstance(action, Downgrade):
        model = action.after(call.model)
        if model is None:
            return f"on_exceed has no model to use instead of {call.model!r}."
        return changer.with_model(call, model, features=action.any)
    if isinstance(action, Clamp):
        return _clamped(invocation, changer, action, change.room)
    return _started(invocation, changer, action)


def _clamped(invocation: Invocation, changer: Changer, action: Clamp, room: Mapping[str, int]) -> Call | str:
    """The call with the output limit that what is left buys."""
    call = invocation.call

    def taking(output: int) -> dict[str, int]:
        return _bound(invocation, replace(call, max_output=output, choices=1)).amounts

    answers, least = max(call.choices, 1), max(action.least, changer.least_output(call) + 1)
    had = bounds.outputs_of(invocation.engines.book, call)
    most = room_for(room, taking(0), taking(had), had)
    if most is None:
        return "The output limit of this call has no part in what it may take."
    if most > 0 and not _fit(room, taking(most)):  # of a price that does not grow evenly
        most = bisect_left(range(most), True, key=lambda output: not _fit(room, taking(output))) - 1
    each = max(most // answers, least)
    if each * answers >= had:  # there may be room for the least in a while, so that is asked for once
        return f'What remains does not buy {least} output tokens, the least for on_exceed="clamp".'
    return changer.with_output(call, each)


def _fit(room: Mapping[str, int], amounts: Mapping[str, int]) -> bool:
    return all(amounts.get(unit, 0) <= left for unit, left in room.items())


def _started(invocation: Invocation, changer: Changer, action: Cut) -> Call | str:
    """The call with the hold that a stream starts with."""
    call = invocation.call
    if call.start is not None or not call.stream:
        return "" if call.stream else 'on_exceed="cut" ends streams; this call has none.'
    why = changer.streams(call)
    start = action.step * max(call.choices, 1)
    fewer = bounds.outputs_of(invocation.engines.book, call) > start
    return why or (replace(call, start=start) if fewer else "")


def grow(invocation: Invocation, counted: int) -> None:
    """Hold on for a stream that began with little; see `Invocation.grow`."""
    call, reservation = invocation.call, invocation.reservation
    if call.start is None or reservation is None or counted + ALLOWANCE <= call.start:
        return
    for start in (counted + ALLOWANCE + START_OUTPUT, counted + ALLOWANCE):
        bound = _bound(invocation, replace(call, start=start))
        invocation.take(bound)
        try:
            invocation.engines.guard.grow(reservation, invocation.asked, bound.amounts)
        except BudgetExceeded as refusal:
            refused = refusal
        else:
            call.start = start
            return
    raise _ended(invocation, refused) from None


def _ended(invocation: Invocation, refusal: BudgetExceeded) -> BudgetExceeded:
    """The error with which a stream ends; its charge will say why it did."""
    invocation.changed = cut = recast(StreamCut, refusal)
    tags = make_tags({"budget_action": Cut.name, "budget_name": cut.budget[:LONGEST]})
    invocation.tags = merge(invocation.tags, tags)
    invocation.engines.guard.refusals.changed_call(cut, "Streams are ended where there is no room for more.")
    return cut


def _bound(invocation: Invocation, call: Call) -> bounds.Bound:
    """What another call than ours would take at most; at the dearest rates where it has no price."""
    bound = bounds.bound_of(invocation.engines.book, call, invocation.wall)
    amounts = bound.amounts
    for name in [name for name in amounts if name.endswith(":dearest")]:
        amounts.setdefault(name.partition(":")[0], amounts[name])
    return bound


def _note(invocation: Invocation, asked: Call, change: Change) -> None:
    """Have the charge and the span say what was asked for, and why it is not what was sent."""
    made, tags = invocation.call, {"budget_action": change.action.name, "budget_name": change.budget[:LONGEST]}
    if made.start != asked.start:
        return  # a stream that is not ended is what it is without us
    said = ""
    if made.model != asked.model:
        tags["asked_model"] = invocation.tags.get("asked_model") or asked.model
        said = f"{made.model!r} is used in place of {asked.model!r}."
    elif made.max_output != asked.max_output:
        tags["asked_output"] = invocation.tags.get("asked_output") or str(asked.max_output or "unlimited")
        made.facts = {**made.facts, names.REQUEST_MAX_TOKENS: made.max_output}
        said = "The output limit of requests is lowered to what remains buys."
    invocation.tags = merge(invocation.tags, make_tags(tags))
    invocation.engines.guard.refusals.changed_call(change.error, said)
