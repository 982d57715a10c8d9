"""All budgets that a run pays: those in force when it began, and those that begin inside of it.

    with gpu.track(...) as run:
        with budget("$1"):      # pays for the run, too, since a step ends in it
            ...
            run.step()

A budget inside pays if it is in force where a step ends: since it was entered, until it is left. One that is entered and left between two
steps, or in another thread, as those of single calls of a model are, has nothing to do with what the run holds. What the ledger says of the
run is the same with it and without: it is paid beside the charges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aifinops.gpu.paying import Paying

if TYPE_CHECKING:
    from aifinops.budgets.budget import ActiveBudget
    from aifinops.budgets.prepaid import HoldLog
    from aifinops.budgets.stores.base import Store
    from aifinops.errors import BudgetExceeded
    from aifinops.gpu.journal import Group
    from aifinops.scope import Scope

__all__ = ["Purse"]

_MOST = 256  # entered and never left: their contexts are gone


@dataclass(slots=True)
class _Inner:
    """A budget inside, and since when nothing was paid to it."""

    paying: Paying
    since: int


class Purse:
    """What a run pays with. Not for several threads at once, but for `entered`.

    Args:
        scope: of the run when it began. slice_s, allowance_s: as in `Prepaid`.
    """

    def __init__(self, scope: Scope, slice_s: float, allowance_s: float) -> None:
        self._times = slice_s, allowance_s
        self._own = Paying(slice_s, allowance_s, scope)
        self._outer = scope.budgets
        self._inner: dict[str, _Inner] = {}
        self._entered: dict[str, int] = {}
        self._groups: Sequence[Group] = ()

    # --- all of them ------------------------------------------------------------------------------------------------------

    @property
    def _all(self) -> list[Paying]:
        return [self._own, *(one.paying for one in self._inner.values())]

    @property
    def budgets(self) -> tuple[ActiveBudget, ...]:
        """Those that are paid."""
        return tuple(budget for paying in self._all for budget in paying.budgets)

    @property
    def keys(self) -> frozenset[str]:
        """Of those that are paid in advance and in force around the run: no charge is posted to them again."""
        return self._own.keys

    def open(self, groups: Sequence[Group], now: int, log: HoldLog | None = None) -> None:
        """Hold a first slice of these devices; raises `BudgetExceeded` like `Paying.open`. `log`: as in `Prepaid`."""
        self._groups = groups
        self._own.log = log
        self._own.open(groups, now)

    def reopen(self, groups: Sequence[Group], now: int) -> None:
        """Pay for other devices, or at another price, from now on; without room for it the run ends at its next step."""
        self._groups, before = groups, self._groups
        self._own.reopen(groups, now)
        for one in self._inner.values():
            self._settle(one, before, now)
            one.paying.reopen(groups, now)

    def close(self, now: int) -> None:
        """Pay for what was used, and give back the rest."""
        for key in list(self._inner):
            self._drop(key, now)
        self._own.close(now)

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self._own.forget()
        self._inner.clear()

    @property
    def refusal(self) -> BudgetExceeded | None:
        """Why there is no more; None as long as there is."""
        return next((why for one in self._all if (why := one.refusal) is not None), None)

    @property
    def due(self) -> int:
        """When to look again, on the monotonic clock."""
        return min(one.due for one in self._all)

    def tick(self, way: int = 0) -> None:
        """As `Paying.tick`."""
        for one in self._all:
            one.tick(way)

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long."""
        for one in self._all:
            one.saved(seconds)

    def lasts(self) -> tuple[float | None, float]:
        """As `Paying.lasts`, of the tightest."""
        known = [(room, kept) for room, kept in (one.lasts() for one in self._all) if room is not None]
        return min(known, key=lambda one: one[0], default=(None, 0.0))

    def shared_store(self) -> Store | None:
        """A store of one of the budgets that other processes see."""
        return next((store for one in self._all if (store := one.shared_store()) is not None), None)

    # --- those inside -----------------------------------------------------------------------------------------------------

    def entered(self, active: ActiveBudget, now: int) -> None:
        """A block with this budget has begun, at this moment of the monotonic clock."""
        if len(self._entered) >= _MOST:
            self._entered.pop(next(iter(self._entered)), None)
        self._entered.setdefault(active.key, now)

    def left(self, active: ActiveBudget, now: int) -> None:
        """A block with it has ended: it is paid up to now, and no longer."""
        self._entered.pop(active.key, None)
        self._drop(active.key, now)

    def take(self, here: tuple[ActiveBudget, ...], now: int, since: int) -> bool:
        """Pay those that are in force here, too, beside the ones around the run; True when there was a new one.

        Args:
            here: in force where a step ends. now: of the monotonic clock. since: from when on they pay at the earliest.
        """
        new = []
        if here != self._outer:
            known = {one.key for one in (*self._outer, *self._own.budgets)} | set(self._inner)
            new = [one for one in here if one.key not in known]
        for active in new:
            one = _Inner(Paying(*self._times, budgets=(active,)), max(self._entered.get(active.key, now), since))
            self._inner[active.key] = one
            one.paying.log = self._own.log
            # What it has used by now is asked for with the first slice.
            one.paying.reopen(self._groups, one.since)
        return bool(new)

    def _drop(self, key: str, now: int) -> None:
        one = self._inner.pop(key, None)
        if one is not None:
            self._settle(one, self._groups, now)

    def _settle(self, one: _Inner, groups: Sequence[Group], now: int) -> None:
        if one.paying.holds:
            one.paying.close(now)
        else:  # there was no room, or the store did not answer: what was held is counted all the same
            one.paying.post(groups, now - one.since)
        one.since = now
