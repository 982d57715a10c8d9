"""The budgets of a run: paid in advance as long as it holds its devices."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from aifinops import runtime
from aifinops.budgets.budget import MICRO, is_currency
from aifinops.budgets.prepaid import Prepaid
from aifinops.budgets.stores.base import Store
from aifinops.budgets.waiting import Wait
from aifinops.charges import new_id
from aifinops.errors import BudgetExceeded, StoreError, UnknownModel, swallow
from aifinops.metering import undecided

if TYPE_CHECKING:
    from aifinops.budgets.budget import ActiveBudget
    from aifinops.budgets.prepaid import HoldLog
    from aifinops.gpu.journal import Group
    from aifinops.runtime import Runtime
    from aifinops.scope import Scope

__all__ = ["Paying"]

_NS = 1_000_000_000
_NEVER = 1 << 62

logger = logging.getLogger("aifinops.gpu")


class _Once:
    """What is said once a process."""

    def __init__(self) -> None:
        self.said = False

    def first(self) -> bool:
        said, self.said = self.said, True
        return not said


_left_out = _Once()


class Paying:
    """What a run pays its budgets with; it may have none.

    Args:
        slice_s, allowance_s: as in `Prepaid`. scope: whose budgets; without one: `budgets`.

    Attributes:
        log: as in `Prepaid`, from the next `open` on.
        budgets: in force when it began. keys: theirs; to them no charge of the run is posted again.
    """

    def __init__(
        self, slice_s: float, allowance_s: float, scope: Scope | None = None, budgets: tuple[ActiveBudget, ...] = ()
    ) -> None:
        self.budgets = budgets
        self.keys: frozenset[str] = frozenset()
        self.log: HoldLog | None = None
        self._scope = scope
        self._given = budgets
        self._times = slice_s, allowance_s
        self._prepaid: Prepaid | None = None
        self._refusal: BudgetExceeded | None = None

    def open(self, groups: Sequence[Group], now: int) -> None:
        """Hold a first slice of these devices in every budget.

        Raises:
            BudgetExceeded: when one has no room for it, at once: waiting on held devices would only raise their cost.
        """
        engines = runtime.get()
        self.budgets = self._in_force(engines) if groups else ()
        self.keys = frozenset(one.key for one in self.budgets)
        if not self.budgets:
            return
        unpriced = next((group for group in groups if group.usd_per_hour is None and not group.implied), None)
        why = None if unpriced is None else UnknownModel(unpriced.sku or "a GPU", provider=unpriced.provider)
        slice_s, allowance_s = self._times
        prepaid = Prepaid(
            engines.guard, self.budgets, self._rates(groups), slice_s=slice_s, allowance_s=allowance_s, unpriced=why, log=self.log,
        )  # fmt: skip
        try:
            prepaid.open(now)
        except Wait as wait:
            wait.ticket.leave()
            raise wait.error from None
        except BudgetExceeded:
            raise
        except (
            Exception
        ) as failure:  # a limit holds, whatever fails; where none refuses, charges are posted as they come
            undecided.judge("gpu.pay", self.budgets, failure)
            self.keys = frozenset()
            return
        self._prepaid = prepaid

    def _in_force(self, engines: Runtime) -> tuple[ActiveBudget, ...]:
        return self._given if self._scope is None else engines.budgets(self._scope, engines.tags(self._scope))

    def _rates(self, groups: Sequence[Group]) -> dict[str, Decimal]:
        """What a second costs: nano-units of money, millionths of `gpu_seconds` or `cpu_seconds`."""
        # Both, so that a limit on the time of the other kind takes nothing here.
        amounts = {"gpu_seconds": Decimal(0), "cpu_seconds": Decimal(0)}
        for group in groups:
            amounts[group.meter] += group.held * MICRO
        priced = [usd for group in groups if (usd := group.usd(Decimal(_NS))) is not None]
        if len(priced) == len(groups) or (priced and all(one.budget.unknown == "allow" for one in self.budgets)):
            amounts["USD"] = sum(priced, Decimal(0))
        if groups and all(group.implied for group in groups):
            self._leave_out_money(amounts)
        return amounts

    def _leave_out_money(self, amounts: dict[str, Decimal]) -> None:
        """Processors that nobody has asked for take nothing of a limit in money in which they have no price, rather than hold up the run."""
        units = {limit.unit for one in self.budgets for limit in one.limits if is_currency(limit.unit)}
        missing = units - set(amounts)
        amounts.update(dict.fromkeys(missing, Decimal(0)))
        if missing and _left_out.first():
            logger.warning(
                'aifinops: the processors here have no price in %s, so that a limit in it says nothing of their time; gpu.track(devices="cpu", '
                "price=...) says one, and the setting cpu_owned that of your own machines",
                " and ".join(sorted(missing)),
            )

    def reopen(self, groups: Sequence[Group], now: int) -> None:
        """Pay for other devices, or at another price, from now on; without room for it the run ends at its next step."""
        self.close(now)
        try:
            self.open(groups, now)
        except BudgetExceeded as refusal:
            self._refusal = refusal
            self.keys = frozenset()  # what is held up to that step is posted with its charge

    def post(self, groups: Sequence[Group], nanoseconds: int) -> None:
        """Count time that is over, and that nothing was held for."""
        if not self._given or not groups:
            return
        seconds = Decimal(nanoseconds).scaleb(-9)
        used = {unit: math.ceil(rate * seconds) for unit, rate in self._rates(groups).items()}
        engines = runtime.get()
        engines.guard.post(self._given, used, id=new_id(), at=engines.clock.time_ns())

    def close(self, now: int) -> None:
        """Pay for what was used, and give back the rest."""
        prepaid, self._prepaid = self._prepaid, None
        if prepaid is not None:
            prepaid.close(now)

    def forget(self) -> None:
        """In a forked child: it is the parent's."""
        self._prepaid = None

    @property
    def holds(self) -> bool:
        """Whether something is held in advance."""
        return self._prepaid is not None

    @property
    def refusal(self) -> BudgetExceeded | None:
        """Why there is no more; None as long as there is."""
        if self._refusal is not None or self._prepaid is None:
            return self._refusal
        return self._prepaid.error

    @property
    def due(self) -> int:
        """When to look again, on the monotonic clock."""
        return _NEVER if self._prepaid is None else self._prepaid.due

    def tick(self, way: int = 0) -> None:
        """Pay, and hold the next slice where it is time for that; `way`: nanoseconds that the end may take."""
        if self._prepaid is not None:
            self._prepaid.expect(way)
            self._prepaid.tick()

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long: there is to be room for another one."""
        if self._prepaid is not None:
            self._prepaid.saved(seconds)

    def lasts(self) -> tuple[float | None, float]:
        """(seconds for which the tightest budget has room, None when none limits it or its store does not answer; those kept for the end)."""
        if self._prepaid is None:
            return None, 0.0
        try:
            return self._prepaid.lasts(), self._prepaid.allowance / _NS
        except StoreError as failure:
            swallow("gpu.lasts", failure)
            return None, 0.0

    def shared_store(self) -> Store | None:
        """A store of one of the budgets that other processes see."""
        return next((one.store for one in self.budgets if one.store.capabilities.shared), None)
