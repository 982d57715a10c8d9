"""Hold an upper bound before a call, put the true cost in its place after it. The way from budgets to stores."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from weakref import finalize

from aifinops.budgets.budget import ActiveBudget, is_currency, to_units
from aifinops.budgets.policy import Balance, Decision, Refusal
from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    Adjust,
    Crossing,
    Extend,
    Forget,
    MarkSent,
    Node,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Store,
    Sweep,
)
from aifinops.clock import Clock, to_datetime
from aifinops.errors import BudgetExceeded, StoreError, UnknownModel, UnpricedCall, swallow
from aifinops.meters import GROUPS, METERS

__all__ = ["LEASE_S", "Guard", "Reservation", "SoftLimit"]

logger = logging.getLogger("aifinops.budgets")

LEASE_S = 900
"""A hold that is neither settled nor extended for so long counts as spent, in seconds; a late settlement corrects it."""

_NS = 1_000_000_000
_SWEEP_NS = 60 * _NS
_WARNED_KEPT = 4096
_WARNING_FROM = Decimal("0.8")
_TOKENS = GROUPS["tokens"]
_NOT_IN_MODEL_CALLS = frozenset(
    name for name, meter in METERS.items() if meter.family == "storage" or name in ("gpu_seconds", "cpu_seconds")
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one call holds.

    Attributes:
        id: chosen by the caller. nodes, amounts: what is held where, outermost budget first.
        exceeded: budgets that had no room and let it through all the same (`on_exceed="warn"` or a callable).
    """

    id: str
    nodes: tuple[Node, ...]
    amounts: tuple[int, ...]
    exceeded: tuple[BudgetExceeded, ...] = ()

    @property
    def unit(self) -> str:
        """The one that every node counts; empty where they count several."""
        first, *others = self.nodes
        return first.unit if all(node.unit == first.unit for node in others) else ""


@dataclass(frozen=True, slots=True)
class SoftLimit:
    """A budget has spent a share of its limit, for the first time in its window.

    Attributes:
        budget: its name or description. unit: currency code or meter. share: of the limit, 0.8 for 80 %.
        limit, spent: in that unit. resets_at: end of the window, nanoseconds since the epoch; None when it never ends.
    """

    budget: str
    unit: str
    share: Decimal
    limit: Decimal
    spent: Decimal
    resets_at: int | None = None


@dataclass(frozen=True, slots=True)
class _Unpriced:
    """What is known of a call without a price, until a budget asks."""

    why: UnknownModel | None
    id: str
    exceeded: list[BudgetExceeded]

    def error(self, node: Node) -> UnpricedCall:
        why = self.why or UnknownModel("")
        error = UnpricedCall(
            node.label,
            why.model,
            provider=why.provider,
            lists=why.lists,
            nearest=why.nearest,
            unit=node.unit,
            limit=to_units(node.unit, node.limit or 0),
        )
        error.decision_id = self.id
        return error


class Guard:
    """Budgets in front of one store.

    Args:
        store: where balances live. clock: for leases and windows, where the caller gives no time.
        on_soft: called with each `SoftLimit`, after it was logged. lease_s: see `LEASE_S`.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        on_soft: Sequence[Callable[[SoftLimit], object]] = (),
        lease_s: float = LEASE_S,
    ) -> None:
        self.store = store
        self.clock = clock
        self.on_soft = list(on_soft)
        self._ttl = int(lease_s * _NS)
        self._next_sweep = 0
        self._warned: OrderedDict[str, None] = OrderedDict()
        # Filled by finalizers, which may run anywhere, also inside the store: they only append.
        self._gone: deque[tuple[Node, ...]] = deque()

    def reserve(
        self,
        budgets: Sequence[ActiveBudget],
        amounts: Mapping[str, int],
        *,
        id: str,
        at: int,
        unpriced: UnknownModel | None = None,
        hint: str = "",
    ) -> Reservation | None:
        """Hold `amounts` in every budget, or in none.

        A meter that a budget limits and that `amounts` does not have is bounded by the tokens of its direction. Where
        there is no bound at all it takes the smallest step, so that a quota that is used up refuses and one that is not lets
        through; what a call of its kind cannot use (GPU time in a model call, which is one with `requests`) is no matter. A currency that `amounts` does not have (no price, or a price in another currency) goes by `Budget.unknown`.

        Args:
            budgets: outermost first. amounts: unit -> upper bound: nano-units of a currency, millionths of a meter;
                `USD:dearest` is the bound at the dearest rates.
            id: of the call, new. at: when it is made, nanoseconds since the epoch; it selects the window.
            unpriced: why there is no price. hint: a sentence for the message when it is refused.

        Returns:
            None when no budget limits anything that this call takes.

        Raises:
            BudgetExceeded: when a budget has no room; nothing is held then, and nothing was called.
            UnpricedCall: when there is no price and a budget wants one.
            StoreError: when the store fails.
        """
        self._tidy(at)
        exceeded: list[BudgetExceeded] = []
        nodes, asked = self._ask(budgets, amounts, at, _Unpriced(unpriced, id, exceeded))
        if not nodes:
            return None
        outcome = Reserve(id, nodes, asked, at, self._ttl).execute(self.store)
        enforced = nodes
        while outcome.decision is not None:
            enforced = self._let_through(budgets, enforced, outcome.decision, id, hint, exceeded)
            outcome = Reserve(id, enforced, asked, at, self._ttl).execute(self.store)
        if not outcome.applied and outcome.state not in (State.HELD, State.SENT):
            raise StoreError(f"reservation {id!r} is {outcome.state} already; every call needs a new id")
        return Reservation(id, nodes, asked, tuple(exceeded))

    def mark_sent(self, reservation: Reservation) -> None:
        """The request is about to leave.

        Raises:
            StoreError: when the store fails.
        """
        MarkSent(reservation.id).execute(self.store)

    def extend(self, reservation: Reservation) -> bool:
        """A new lease for a long call; False when it had run out and its hold counts as spent already.

        Raises:
            StoreError: when the store fails.
        """
        now = self.clock.time_ns()
        return Extend(reservation.id, reservation.nodes, now, self._ttl).execute(self.store).applied

    def settle(self, reservation: Reservation, actual: Mapping[str, int]) -> None:
        """Put the truth in the place of the hold; more than was held is recorded, never refused.

        Args:
            reservation: what `reserve` gave. actual: unit -> quantity, as in `reserve`. A currency that is missing has
                cost what was held. So has every meter when no usage is given; else a meter that is missing is 0.

        Raises:
            StoreError: when the store fails; the hold then stays, and expires as spent.
        """
        counted = any(name != "requests" and not is_currency(name) for name in actual)
        truth = tuple([_actual(node.unit, actual, counted) for node in reservation.nodes])
        outcome = Settle(reservation.id, reservation.nodes, truth, self.clock.time_ns()).execute(self.store)
        if outcome.crossed:
            self._report(outcome.crossed)

    def release(self, reservation: Reservation) -> None:
        """Give everything back: with proof that nothing was sent, or that the provider refused it.

        Raises:
            StoreError: when the store fails.
        """
        Release(reservation.id, reservation.nodes).execute(self.store)

    def post(self, budgets: Sequence[ActiveBudget], amounts: Mapping[str, int], *, id: str, at: int) -> None:
        """Count what has happened already; never refused. Units that are not in `amounts` add nothing.

        Args:
            budgets: outermost first. amounts: unit -> quantity, as in `reserve`; negative for a credit.
            id: of the entry, new. at: when it happened, nanoseconds since the epoch.

        Raises:
            StoreError: when the store fails.
        """
        nodes = tuple(node for budget in _each(budgets) for node in self._nodes(budget, at) if amounts.get(node.unit))
        if nodes:
            posted = tuple(max(-MAX_AMOUNT, min(amounts[node.unit], MAX_AMOUNT)) for node in nodes)
            self._report(Adjust(id, nodes, posted, at).execute(self.store).crossed)

    def balances(self, active: ActiveBudget) -> dict[str, Balance]:
        """How a budget stands in its current window: unit -> balance, integers as in `reserve`.

        Raises:
            StoreError: when the store fails.
        """
        now = self.clock.time_ns()
        self._tidy(now)
        nodes = self._nodes(active, now)
        balances = Read(nodes).execute(self.store)
        return {node.unit: balance for node, balance in zip(nodes, balances, strict=True)}

    def sweep(self) -> tuple[str, ...]:
        """Count holds whose lease has run out as spent; their ids. It also happens by itself, at most once a minute.

        Raises:
            StoreError: when the store fails.
        """
        swept = Sweep(self.clock.time_ns()).execute(self.store)
        self._report(swept.crossed)
        return swept.forfeited

    def reset_after_fork(self) -> None:
        """In a forked child: what is in flight is the parent's."""
        self.store.reset_after_fork()

    # --- what to ask for -------------------------------------------------------------------------------------------------

    def _ask(
        self, budgets: Sequence[ActiveBudget], amounts: Mapping[str, int], at: int, unpriced: _Unpriced
    ) -> tuple[tuple[Node, ...], tuple[int, ...]]:
        nodes: list[Node] = []
        asked: list[int] = []
        for active in _each(budgets):
            for node in self._nodes(active, at):
                amount = amounts.get(node.unit)
                if amount is None:
                    amount = self._bound(active, node, amounts, unpriced)
                nodes.append(node)
                asked.append(amount if 0 <= amount <= MAX_AMOUNT else max(0, min(amount, MAX_AMOUNT)))
        return tuple(nodes), tuple(asked)

    def _bound(self, active: ActiveBudget, node: Node, amounts: Mapping[str, int], unpriced: _Unpriced) -> int:
        unit, unknown = node.unit, active.budget.unknown
        if not is_currency(unit):
            return _meter_bound(unit, amounts)
        dearest = amounts.get(f"{unit}:dearest")
        if unknown == "reserve" and dearest is not None:
            return dearest
        if unknown != "allow":
            error = unpriced.error(node)
            if not self._allows(active, node, error):
                raise error
            unpriced.exceeded.append(error)
        return 0

    def _nodes(self, active: ActiveBudget, at: int) -> tuple[Node, ...]:
        nodes = active.nodes(at)
        if active.watcher is not self:
            active.watcher = self
            if not active.shared:
                finalize(active, self._gone.append, nodes).atexit = False
        return nodes

    def _tidy(self, now: int) -> None:
        while self._gone:
            Forget(self._gone.popleft()).execute(self.store)
        if not self._next_sweep - _SWEEP_NS <= now < self._next_sweep:  # also after a clock was put back
            self._next_sweep = now + _SWEEP_NS
            self.sweep()

    # --- when there is no room -------------------------------------------------------------------------------------------

    def _let_through(
        self,
        budgets: Sequence[ActiveBudget],
        nodes: tuple[Node, ...],
        decision: Decision,
        id: str,
        hint: str,
        exceeded: list[BudgetExceeded],
    ) -> tuple[Node, ...]:
        """The nodes again, without the limits whose budgets agree to go on; BudgetExceeded when one does not."""
        by_key = {active.key: active for active in budgets}
        lifted = list(nodes)
        # The one to name comes first, so that it is the one that is raised.
        for refusal in sorted(decision.refusals, key=lambda refusal: refusal is not decision.refusal):
            node = nodes[refusal.index]
            error = _exceeded(node, refusal, decision, id, hint)
            if not self._allows(by_key[node.budget], node, error):
                raise error
            exceeded.append(error)
            lifted[refusal.index] = replace(node, limit=None)
        return tuple(lifted)

    def _allows(self, active: ActiveBudget, node: Node, error: BudgetExceeded) -> bool:
        action = active.budget.on_exceed
        if action == "raise":
            return False
        if action == "warn":
            self._warn_once(node, error)
            return True
        return _ask_callable(action, error)

    def _warn_once(self, node: Node, error: BudgetExceeded) -> None:
        if node.key in self._warned:
            return
        self._warned[node.key] = None
        if len(self._warned) > _WARNED_KEPT:
            self._warned.popitem(last=False)
        logger.warning("aifinops: %s It only warns, so this call and later ones go on.", _what(error))

    def _report(self, crossed: Iterable[Crossing]) -> None:
        for crossing in crossed:
            event = _soft_limit(crossing)
            level = logging.WARNING if event.share >= _WARNING_FROM else logging.INFO
            share, spent = f"{event.share * 100:.0f}", f"{event.spent:f} of {event.limit:f} {event.unit}"
            logger.log(
                level, "aifinops: budget %r has reached %s %% of its limit: %s spent", event.budget, share, spent
            )
            for listener in self.on_soft:
                try:
                    listener(event)
                except Exception as failure:  # somebody's listener; the settlement stands
                    swallow("budgets.on_soft", failure)


def _each(budgets: Sequence[ActiveBudget]) -> Iterable[ActiveBudget]:
    # One budget named twice is one node: held once.
    return budgets if len(budgets) < 2 else {active.key: active for active in budgets}.values()


def _meter_bound(unit: str, amounts: Mapping[str, int]) -> int:
    if unit in _TOKENS:
        found = amounts.get(f"{METERS[unit].direction}_tokens", amounts.get("tokens"))
        if found is not None:
            return found
    # What a call of this kind cannot use is no matter to it; of everything else at least one step may come.
    return 0 if (unit in _NOT_IN_MODEL_CALLS) == ("requests" in amounts) else 1


def _actual(unit: str, actual: Mapping[str, int], counted: bool) -> int | None:
    amount = actual.get(unit)
    if amount is None:
        return 0 if counted and not is_currency(unit) else None
    return amount if 0 <= amount <= MAX_AMOUNT else max(0, min(amount, MAX_AMOUNT))


def _exceeded(node: Node, refusal: Refusal, decision: Decision, id: str, hint: str) -> BudgetExceeded:
    balance, unit = refusal.balance, node.unit
    return BudgetExceeded(
        node.label,
        unit=unit,
        limit=to_units(unit, balance.limit or 0),
        spent=to_units(unit, balance.spent),
        reserved=to_units(unit, balance.reserved),
        asked=to_units(unit, refusal.asked),
        resets_at=to_datetime(node.until) if node.until else None,
        decision_id=id,
        transient=decision.transient,
        hint=hint,
    )


def _what(error: BudgetExceeded) -> str:
    if isinstance(error, UnpricedCall):
        return f"budget {error.budget!r} cannot count a call that has no price ({error.model!r})."
    return (
        f"budget {error.budget!r} is exceeded: {error.spent:f} of {error.limit:f} {error.unit} spent, {error.reserved:f} held, "
        f"and this call may cost up to {error.asked:f}."
    )


def _ask_callable(action: Callable[[BudgetExceeded], Any], error: BudgetExceeded) -> bool:
    try:
        answer = action(error)
    except Exception as failure:  # a limit that cannot ask holds
        swallow("budgets.on_exceed", failure)
        return False
    if answer not in ("raise", "allow"):
        logger.warning(
            "aifinops: on_exceed of budget %r returned %r; only 'allow' lets a call through", error.budget, answer
        )
    return bool(answer == "allow")


def _soft_limit(crossing: Crossing) -> SoftLimit:
    node = crossing.node
    limit = to_units(node.unit, node.limit or 0)
    # Marks are rounded to whole steps; three places take the share back to what was typed.
    share = (Decimal(crossing.mark) / (node.limit or 1)).quantize(Decimal("0.001"))
    return SoftLimit(node.label, node.unit, share, limit, to_units(node.unit, crossing.spent), node.until or None)
