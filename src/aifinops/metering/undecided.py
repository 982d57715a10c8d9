"""A decision about a call that something of ours has kept from being taken: a limit holds all the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aifinops import runtime
from aifinops.errors import AIFinOpsError, DecisionFailed, swallow
from aifinops.scope import current

if TYPE_CHECKING:
    from aifinops.budgets.budget import ActiveBudget

__all__ = ["in_force", "judge"]

_EFFECT = "A call was refused, since nobody knows whether its budgets have room"


def judge(place: str, budgets: Iterable[ActiveBudget], failure: Exception) -> None:
    """Count a failure of ours that has kept budgets from deciding. The call goes on where none of them may refuse it.

    Raises:
        DecisionFailed: of the first one that may.
    """
    refusing = next((active for active in budgets if _may_refuse(active)), None)
    if refusing is None:
        swallow(place, failure)
        return
    swallow(place, failure, _EFFECT)
    # The text of an exception that is not ours may repeat what is said in the call.
    why = (
        f"{failure}."
        if isinstance(failure, AIFinOpsError)
        else f"This is a bug ({type(failure).__name__}, see the log)."
    )
    error = DecisionFailed(_label(refusing), hint=f'{why} Use on_store_down="allow" to go on where that happens.')
    try:
        runtime.get().guard.undecided(refusing, error)
    except Exception as another:  # it is refused, also where that cannot be written down
        swallow("metering.undecided", another)
    raise error from failure


def in_force() -> tuple[ActiveBudget, ...]:
    """The budgets around a call; where we fail to tell which standing ones it belongs to, all of them."""
    scope = current()
    standing: tuple[ActiveBudget, ...] = ()
    try:
        engines = runtime.get()
        if not engines.config.enabled:
            return ()
        standing = engines.policies
        return engines.budgets(scope, engines.tags(scope))
    except Exception as failure:  # it is what has failed already
        swallow("metering.in_force", failure)
        return (*scope.budgets, *standing)


def _may_refuse(active: ActiveBudget) -> bool:
    budget = active.budget
    return budget.last_resort != "warn" and budget.on_store_down == "deny"


def _label(active: ActiveBudget) -> str:
    try:
        return active.label
    except Exception as failure:  # of whatever name, it refuses
        swallow("metering.label", failure)
        return active.budget.name or active.key
