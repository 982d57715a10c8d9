"""Hold an upper bound before a call, put the true cost in its place after it. The way from budgets to stores."""

from __future__ import annotations

import logging
import threading
from builtins import id as id_of
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import finalize

from aifinops.budgets.actions import Action, Ask, Change, Clamp, Cut, Downgrade, recast, with_hint
from aifinops.budgets.budget import ActiveBudget, is_currency, to_units
from aifinops.budgets.caretaker import EVERY_NS, Caretaker
from aifinops.budgets.policy import Balance, Decision, Refusal
from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    Adjust,
    Crossing,
    Extend,
    Forget,
    MarkSent,
    Node,
    Operation,
    Outcome,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Store,
    Sweep,
)
from aifinops.budgets.waiting import Queues, Ticket, Wait, in_event_loop, ticket_in_hand
from aifinops.budgets.witness import Witness
from aifinops.clock import Clock, to_datetime
from aifinops.errors import (
    ApprovalDenied,
    ApprovalPending,
    BudgetExceeded,
    ConfigurationError,
    StoreError,
    StoreReset,
    StoreUnavailable,
    UnknownModel,
    UnpricedCall,
    swallow,
)
from aifinops.meters import GROUPS, METERS

if TYPE_CHECKING:
    from aifinops.budgets.approvals import Approvals, Grant

__all__ = ["LEASE_S", "Guard", "Part", "Reservation", "SoftLimit"]

R = TypeVar("R")

logger = logging.getLogger("aifinops.budgets")

LEASE_S = 900
"""A hold that is neither settled nor extended for so long counts as spent, in seconds; a late settlement corrects it."""

_NS = 1_000_000_000
_SWEEP_NS = 60 * _NS
_WARNED_KEPT = 4096
_OWED_MOST = 100_000
_CLOSED_NS, _CLOSED_MOST_NS = _NS // 20, _NS
"""A store that failed is left alone for 0.1 s, doubled with each further failure up to a second."""
_GROW_TRIES = 8
_POLL_S, _OWN_POLL_S, _LONG_POLL_S, _ASK_POLL_S = 0.02, 1.0, 60.0, 0.25
"""How often whoever waits asks again by himself: another process may have made room, a clock may have been put right."""
_WARNING_FROM = Decimal("0.8")
_TOKENS = GROUPS["tokens"]
_NOT_IN_MODEL_CALLS = frozenset(
    name for name, meter in METERS.items() if meter.family == "storage" or name in ("gpu_seconds", "cpu_seconds")
)


class Part:
    """What one call holds in one store.

    Attributes:
        store: where. nodes, amounts: what is held of which, outermost budget first. enforced: the nodes without the limits that were lifted.
    """

    __slots__ = ("amounts", "enforced", "nodes", "store")

    def __init__(self, store: Store, nodes: tuple[Node, ...], amounts: tuple[int, ...]) -> None:
        self.store = store
        self.nodes = self.enforced = nodes
        self.amounts = amounts


class Reservation:
    """What one call holds.

    Attributes:
        id: chosen by the caller. parts: one a store. unheld: of stores that did not answer; their budgets let the call through.
        exceeded: budgets that had no room and let it through all the same (`on_exceed="warn"` or a callable).
        granted: tags that say who allowed it to go above a limit. unit: the one that every node counts; empty where they count several.
        thread: that made it. until: end of the lease, nanoseconds since the epoch.
    """

    __slots__ = ("exceeded", "granted", "id", "parts", "thread", "unheld", "unit", "until")

    def __init__(
        self,
        id: str,
        parts: Sequence[Part],
        exceeded: Sequence[BudgetExceeded] = (),
        unheld: Sequence[Part] = (),
        until: int = 2**63,
    ) -> None:
        self.id = id
        self.until = until
        self.parts = parts
        self.unheld = unheld
        self.exceeded = tuple(exceeded)
        self.granted: Mapping[str, str] | None = None
        self.thread = threading.get_ident()
        unit = (parts or unheld)[0].nodes[0].unit
        self.unit = unit if all(node.unit == unit for part in (*parts, *unheld) for node in part.nodes) else ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Of all parts."""
        return tuple(node for part in self.parts for node in part.nodes)

    @property
    def amounts(self) -> tuple[int, ...]:
        """One a node."""
        return tuple(amount for part in self.parts for amount in part.amounts)


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


class _Line:
    """The way to one store, and what it is still to be told.

    Attributes:
        owed: operations that it did not take. closed_until: not to be asked before, monotonic nanoseconds; a store that does not answer
            would make every call wait for its timeout. hold: its own quick way to `Reserve`, where it never waits.
    """

    __slots__ = ("closed_until", "failures", "hold", "owed", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.owed: deque[Operation[Outcome]] = deque(maxlen=_OWED_MOST)
        self.failures = 0
        self.closed_until = 0
        self.hold: Callable[..., Outcome] | None = getattr(store, "hold", None)

    def failed(self, now: int, error: StoreError) -> None:
        self.failures += 1
        if self.failures == 1:
            logger.warning("aifinops: the store of a budget does not answer: %s", error)
        self.closed_until = now + min(_CLOSED_NS << min(self.failures, 5), _CLOSED_MOST_NS)


class _Asking:
    """One call that asks for room."""

    __slots__ = ("about", "at", "budgets", "exceeded", "grants", "hint", "id", "sent")

    def __init__(
        self, id: str, at: int, hint: str, budgets: Sequence[ActiveBudget], exceeded: list[BudgetExceeded]
    ) -> None:
        self.id = id
        self.at = at
        self.hint = hint
        self.budgets = budgets
        self.exceeded = exceeded
        self.about: Callable[[], Mapping[str, str]] = dict
        self.grants: tuple[tuple[Store, Grant, str], ...] = ()  # with the budget of each
        self.sent = False  # True for what is under way: it neither waits nor changes

    def by_key(self, key: str) -> ActiveBudget:
        return next(active for active in self.budgets if active.key == key)


class Guard:
    """Budgets in front of their stores.

    Args:
        store: where balances live of budgets that have no store of their own. clock: for leases and windows, where the caller gives no time.
        on_soft: called with each `SoftLimit`, after it was logged. lease_s: see `LEASE_S`.
        store_of: finds the store of a budget when it is used for the first time. witness: is told what is not a plain yes.
        approval_key: file of the key that signs approvals; default one that only this process has.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        on_soft: Sequence[Callable[[SoftLimit], object]] = (),
        lease_s: float = LEASE_S,
        store_of: Callable[[ActiveBudget], Store] | None = None,
        witness: Witness | None = None,
        approval_key: str | None = None,
    ) -> None:
        self.store = store
        self.witness = witness or Witness()
        self.witness.ask = lambda store, operation: self._tell(self._line(store), operation)
        self._care = Caretaker(self.witness)
        self._next_look = 0
        self.clock = clock
        self.on_soft = list(on_soft)
        self._store_of = store_of
        self._approval_key = approval_key
        self._desk: Approvals | None = None
        self._ttl = int(lease_s * _NS)
        self._next_sweep = 0
        self._warned: OrderedDict[str, None] = OrderedDict()
        self._queues = Queues()
        self._held: dict[str, Reservation] = {}
        self._lines: dict[int, _Line] = {}
        # Filled by finalizers, which may run anywhere, also inside the store: they only append.
        self._gone: deque[tuple[Store, tuple[Node, ...]]] = deque()
        self._line(store)

    def reserve(
        self,
        budgets: Sequence[ActiveBudget],
        amounts: Mapping[str, int],
        *,
        id: str,
        at: int,
        unpriced: UnknownModel | None = None,
        hint: str = "",
        about: Callable[[], Mapping[str, str]] = dict,
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
            about: says what whoever is asked for an approval is told of the call.

        Returns:
            None when no budget limits anything that this call takes.

        Raises:
            Wait: when there may be room in a while; nothing is held. `pause` waits, and then this is called again.
            Change: when a smaller call may have room; nothing is held.
            BudgetExceeded: when a budget has no room; nothing is held then, and nothing was called.
            StoreUnavailable: when a store does not answer and its budgets then deny.
            UnpricedCall: when there is no price and a budget wants one.
        """
        self._tidy(at)
        exceeded: list[BudgetExceeded] = []
        parts = self._ask(budgets, amounts, at, _Unpriced(unpriced, id, exceeded))
        if not parts:
            return None
        asking = _Asking(id, at, hint, budgets, exceeded)
        asking.about = about
        held: list[Part] = []
        try:
            held.extend(part for part in parts if self._hold(part, asking))
        except BaseException:
            for part in held:
                self._owe(part.store, Release(id, part.nodes))
            for grant in asking.grants:
                self._give_back(*grant)
            raise
        unheld = () if len(held) == len(parts) else [part for part in parts if part not in held]
        reservation = self._held[id] = Reservation(id, held, exceeded, unheld, at + self._ttl)
        if asking.grants:
            reservation.granted = _granted(asking)
        if self._queues:
            self._served(id)
        return reservation

    def mark_sent(self, reservation: Reservation) -> None:
        """The request is about to leave.

        Raises:
            StoreError: when a store fails.
        """
        for part in reservation.parts:
            MarkSent(reservation.id).execute(part.store)

    def extend(self, reservation: Reservation) -> bool:
        """A new lease for a long call; False when it had run out and its hold counts as spent already.

        Raises:
            StoreError: when a store fails.
        """
        now = self.clock.time_ns()
        outcomes = [
            Extend(reservation.id, part.nodes, now, self._ttl).execute(part.store) for part in reservation.parts
        ]
        reservation.until = now + self._ttl
        return all(outcome.applied for outcome in outcomes)

    def grow(self, reservation: Reservation, budgets: Sequence[ActiveBudget], amounts: Mapping[str, int]) -> None:
        """Hold more for a call that is under way, under a new lease.

        Args:
            reservation: what `reserve` gave, for `budgets`. amounts: unit -> what shall be held from now on; less than is held changes nothing.

        Raises:
            BudgetExceeded: when a budget has no room for it; what was held stays.
            StoreUnavailable: when a store does not answer and its budgets then deny.
        """
        now = self.clock.time_ns()
        asking = _Asking(reservation.id, now, "", budgets, [])
        asking.sent = True
        for part in reservation.parts:
            wanted = tuple(
                max(held, min(amounts.get(node.unit, held), MAX_AMOUNT))
                for node, held in zip(part.nodes, part.amounts, strict=True)
            )
            try:
                self._grow(part, wanted, asking)
            except StoreError as error:
                self._without_store(part, asking, error)

    def _grow(self, part: Part, wanted: tuple[int, ...], asking: _Asking) -> None:
        line = self._lines.get(id_of(part.store)) or self._line(part.store)
        for _ in range(_GROW_TRIES):
            outcome = self._execute(line, Extend(asking.id, part.enforced, asking.at, self._ttl, wanted))
            gone = outcome.state not in (State.HELD, State.SENT)  # forfeited: it counts as spent already
            if outcome.applied or gone:
                break
            if outcome.decision is not None:  # else what there was is another call's by now
                part.enforced = self._let_through(part, part.enforced, outcome.decision, asking)
        else:
            raise StoreError("other calls were quicker again and again")
        if outcome.applied:
            part.amounts = wanted

    def settle(self, reservation: Reservation, actual: Mapping[str, int]) -> None:
        """Put the truth in the place of the hold; more than was held is recorded, never refused.

        Args:
            reservation: what `reserve` gave. actual: unit -> quantity, as in `reserve`. A currency that is missing has
                cost what was held. So has every meter when no usage is given; else a meter that is missing is 0.

        A store that does not answer is told when it does again; until then the hold stays, and in the end it would expire as spent.
        """
        counted = any(name != "requests" and not is_currency(name) for name in actual)
        now = self.clock.time_ns()
        self._held.pop(reservation.id, None)
        for part in reservation.parts:
            truth: list[int | None] = []
            over = False
            for node, held in zip(part.nodes, part.amounts):  # noqa: B905 - one a node, both
                amount = _actual(node.unit, actual, counted)
                truth.append(amount)
                if amount is not None and amount > held:
                    over = True
            outcome = self._owe(part.store, Settle(reservation.id, part.nodes, tuple(truth), now))
            if over:
                self._overrun(reservation.id, part, truth, now)
            if outcome is not None and outcome.crossed:
                self.report(outcome.crossed)
        for part in reservation.unheld:
            known = zip(part.nodes, part.amounts, strict=True)
            posted = [
                most if (amount := _actual(node.unit, actual, counted)) is None else amount for node, most in known
            ]
            self._owe(part.store, Adjust(reservation.id, part.nodes, tuple(posted), now))
        if now >= reservation.until:
            self._late(reservation, actual, counted)
        if self._queues:
            self._changed(reservation)

    def release(self, reservation: Reservation) -> None:
        """Give everything back: with proof that nothing was sent, or that the provider refused it. As `settle`, it never fails."""
        self._held.pop(reservation.id, None)
        for part in reservation.parts:
            self._owe(part.store, Release(reservation.id, part.nodes))
        if self._queues:
            self._changed(reservation)

    def post(self, budgets: Sequence[ActiveBudget], amounts: Mapping[str, int], *, id: str, at: int) -> None:
        """Count what has happened already; never refused. Units that are not in `amounts` add nothing. As `settle`, it never fails.

        Args:
            budgets: outermost first. amounts: unit -> quantity, as in `reserve`; negative for a credit.
            id: of the entry, new. at: when it happened, nanoseconds since the epoch.
        """
        found: dict[int, tuple[Store, list[Node]]] = {}
        for budget in _each(budgets):
            nodes = [node for node in self._nodes(budget, at) if amounts.get(node.unit)]
            if nodes:
                found.setdefault(id_of(budget.store), (budget.store, []))[1].extend(nodes)
        for store, nodes in found.values():
            posted = tuple(max(-MAX_AMOUNT, min(amounts[node.unit], MAX_AMOUNT)) for node in nodes)
            outcome = self._owe(store, Adjust(id, tuple(nodes), posted, at))
            for node, amount in zip(nodes, posted, strict=True):
                self.witness.posted(store, node, amount, id)
            if outcome is not None:
                self.report(outcome.crossed)

    def pause(self, wait: Wait) -> None:
        """Wait in this thread, outside of everything, until it is worth asking again.

        Raises:
            BudgetExceeded: when waiting any longer is no use.
        """
        wait.ticket.wait(self._patience(wait))

    async def apause(self, wait: Wait) -> None:
        """`pause` in a task; the event loop goes on."""
        await wait.ticket.await_(self._patience(wait))

    def gave_up(self, wait: Wait) -> BudgetExceeded:
        """Waiting is no use any longer, or not possible: the error to raise."""
        if wait.ticket.place is not None:
            store, node, asked = wait.ticket.place
            waited = (self.clock.monotonic_ns() - wait.ticket.since) / _NS
            self.witness.refused(store, node, wait.error, asked, waited)
        return wait.error

    def _patience(self, wait: Wait) -> float:
        left = (wait.ticket.deadline - self.clock.monotonic_ns()) / _NS
        if left <= 0:
            raise self.gave_up(wait)
        return min(wait.seconds, left)

    def prepare(self, active: ActiveBudget) -> None:
        """Open the store of a budget, so that what is wrong with it shows at set-up.

        Raises:
            ConfigurationError: when it cannot be opened.
        """
        self._nodes(active, self.clock.time_ns())

    def balances(self, active: ActiveBudget) -> dict[str, Balance]:
        """How a budget stands in its current window: unit -> balance, integers as in `reserve`.

        Raises:
            StoreError: when the store fails.
        """
        now = self.clock.time_ns()
        self._tidy(now)
        nodes = self._nodes(active, now)
        self.pay_debts()
        balances = Read(nodes).execute(active.store)
        return {node.unit: balance for node, balance in zip(nodes, balances, strict=True)}

    def sweep(self) -> tuple[str, ...]:
        """Count holds whose lease has run out as spent; their ids. It also happens by itself, at most once a minute."""
        now = self.clock.time_ns()
        return tuple(id for line in list(self._lines.values()) for id in self._sweep(line, now))

    def _sweep(self, line: _Line, now: int) -> tuple[str, ...]:
        swept = self._tell(line, Sweep(now))
        if swept is None:
            return ()
        self.report(swept.crossed)
        self.witness.forfeited(line.store, swept.forfeited)
        for id in swept.forfeited:
            self._held.pop(id, None)
        return swept.forfeited

    def pay_debts(self) -> bool:
        """Tell stores what they could not be told before; True when nothing is left to tell."""
        return sum(not self._pay(line) for line in list(self._lines.values())) == 0

    def flush(self) -> bool:
        """`pay_debts`, and write what waits to be written down."""
        self.witness.flush()
        told = self.pay_debts()
        self.witness.keep_heads(self.clock.time_ns())
        return told

    def close(self) -> None:
        """Tell what is left to tell, as far as the stores answer."""
        self.flush()
        self.witness.close()

    def reset_after_fork(self) -> None:
        """In a forked child: what is in flight is the parent's."""
        self._queues.reset_after_fork()
        self.witness.reset_after_fork()
        self._care.reset_after_fork()
        self._held.clear()
        for line in self._lines.values():
            line.owed.clear()
            line.store.reset_after_fork()

    # --- one store ----------------------------------------------------------------------------------------------------

    def _line(self, store: Store) -> _Line:
        line = self._lines.get(id_of(store))
        if line is None:
            line = self._lines[id_of(store)] = _Line(store)
        return line

    def _hold(self, part: Part, asking: _Asking) -> bool:
        """Hold one part; False when its budgets let the call through although their store does not answer."""
        if self._queues:
            self._queue_up(part, asking)
        enforced = part.nodes
        while True:
            try:
                outcome = self._reserve(part, enforced, asking)
            except StoreError as error:
                return self._without_store(part, asking, error)
            if outcome.decision is None:
                break
            enforced = self._let_through(part, enforced, outcome.decision, asking)
        if not outcome.applied and outcome.state not in (State.HELD, State.SENT):
            raise StoreError(f"reservation {asking.id!r} is {outcome.state} already; every call needs a new id")
        part.enforced = enforced
        return True

    def _reserve(self, part: Part, nodes: tuple[Node, ...], asking: _Asking) -> Outcome:
        line = self._lines.get(id_of(part.store)) or self._line(part.store)
        if line.hold is not None:
            return line.hold(asking.id, nodes, part.amounts, asking.at, self._ttl)
        if not self._answers(line):
            raise StoreError("it did not answer a moment ago")
        operation = Reserve(asking.id, nodes, part.amounts, asking.at, self._ttl)
        try:
            return self._execute(line, operation)
        except StoreError:
            # Whether it holds is not known. It may: to be given back, under the same id, once it answers.
            line.owed.append(Release(asking.id, nodes))
            raise

    def _without_store(self, part: Part, asking: _Asking, error: StoreError) -> bool:
        for node, asked in zip(part.nodes, part.amounts, strict=True):
            if asking.by_key(node.budget).budget.on_store_down == "deny":
                unavailable = StoreUnavailable(
                    node.label,
                    unit=node.unit,
                    limit=to_units(node.unit, node.limit or 0),
                    decision_id=asking.id,
                    hint=f'{error} Use on_store_down="allow" to go on without it.',
                )
                self.witness.refused(part.store, node, unavailable, asked)
                raise unavailable from error
        for node, asked in zip(part.nodes, part.amounts, strict=True):
            self.witness.let_through(part.store, node, None, asked)
        return False

    def _owe(self, store: Store, operation: Operation[Outcome]) -> Outcome | None:
        """Tell a store what has happened; what it cannot be told now it is told later."""
        line = self._lines.get(id_of(store)) or self._line(store)
        try:
            if self._answers(line):
                return self._execute(line, operation)
        except StoreError:
            pass
        line.owed.append(operation)
        return None

    def _tell(self, line: _Line, operation: Operation[R]) -> R | None:
        """Tell a store what it may as well be told another time."""
        try:
            return self._execute(line, operation) if self._answers(line) else None
        except StoreError:
            return None

    def _answers(self, line: _Line) -> bool:
        if line.hold is not None:
            return True
        return self.clock.monotonic_ns() >= line.closed_until and (not line.owed or self._pay(line))

    def _execute(self, line: _Line, operation: Operation[R]) -> R:
        try:
            try:
                answer = operation.execute(line.store)
            except StoreReset as reset:
                self.witness.store_reset(line.store, reset)
                answer = operation.execute(line.store)
        except StoreError as error:
            line.failed(self.clock.monotonic_ns(), error)
            raise
        line.failures = 0
        return answer

    def _pay(self, line: _Line) -> bool:
        while line.owed:
            try:
                operation = line.owed.popleft()
            except IndexError:  # another thread was quicker
                break
            try:
                self.report(self._execute(line, operation).crossed)
            except StoreError:
                line.owed.appendleft(operation)
                return False
        return True

    # --- what to ask for -------------------------------------------------------------------------------------------------

    def _ask(
        self, budgets: Sequence[ActiveBudget], amounts: Mapping[str, int], at: int, unpriced: _Unpriced
    ) -> list[Part]:
        parts: list[Part] = []
        for active in _each(budgets):
            nodes = self._nodes(active, at)
            asked = []
            for node in nodes:
                amount = amounts.get(node.unit)
                if amount is None:
                    amount = self._bound(active, node, amounts, unpriced)
                asked.append(amount if 0 <= amount <= MAX_AMOUNT else max(0, min(amount, MAX_AMOUNT)))
            same = next((part for part in parts if part.store is active.store), None)
            if same is None:
                parts.append(Part(active.store, nodes, tuple(asked)))
            else:
                same.nodes += nodes
                same.amounts += tuple(asked)
        if len(parts) > 1:
            # First what never waits: a refusal there costs nobody anything.
            parts.sort(key=lambda part: part.store.capabilities.io != "none")
        return parts

    def _bound(self, active: ActiveBudget, node: Node, amounts: Mapping[str, int], unpriced: _Unpriced) -> int:
        unit, unknown = node.unit, active.budget.unknown
        if not is_currency(unit):
            return _meter_bound(unit, amounts)
        dearest = amounts.get(f"{unit}:dearest")
        if unknown == "reserve" and dearest is not None:
            return dearest
        if unknown != "allow":
            error = unpriced.error(node)
            if self._action(active, node, error) != "allow":
                self.witness.refused(active.store, node, error, 0)
                raise error
            self.witness.let_through(active.store, node, error, 0)
            unpriced.exceeded.append(error)
        return 0

    def _nodes(self, active: ActiveBudget, at: int) -> tuple[Node, ...]:
        nodes = active.nodes(at)
        if active.watcher is not self:
            active.store = self.store if self._store_of is None else self._store_of(active)
            active.watcher = self
            if id_of(active.store) not in self._lines:
                self._sweep(self._line(active.store), at)  # what processes that are gone have left
            if not active.shared:
                gone = (active.store, nodes)
                finalize(active, self._gone.append, gone).atexit = False
            else:
                self._care.take(active, at)
                nodes = active.nodes(at)  # a limit may have been set by hand
        return nodes

    def _tidy(self, now: int) -> None:
        while self._gone:
            store, nodes = self._gone.popleft()
            self._tell(self._line(store), Forget(nodes))
        if not self._next_look - EVERY_NS <= now < self._next_look:  # also after a clock was put back
            self._next_look = now + EVERY_NS
            self._look(now)

    def _look(self, now: int) -> None:
        if not self._next_sweep - _SWEEP_NS <= now < self._next_sweep:
            self._next_sweep = now + _SWEEP_NS
            self.sweep()
            self.witness.keep_heads(now)
        self._care.look(now)
        self.witness.tidy()

    # --- waiting --------------------------------------------------------------------------------------------------------

    def _queue_up(self, part: Part, asking: _Asking) -> None:
        """Whoever comes while others wait for the same stands behind them."""
        ticket = ticket_in_hand()
        for node, amount in zip(part.nodes, part.amounts, strict=True):
            if amount and self._queues.ahead(node.key, ticket):
                active = asking.by_key(node.budget)
                if active.budget.max_wait:
                    (balance,) = Read((node,)).execute(part.store)
                    refusal = Refusal(0, balance, amount)
                    error = _exceeded(node, refusal, transient=True, id=asking.id, hint=asking.hint)
                    raise self._wait(error, active, node, part.store, amount)

    def _wait(
        self, error: BudgetExceeded, active: ActiveBudget, node: Node, store: Store, asked: int, until: int = 0
    ) -> Wait:
        ticket = ticket_in_hand()
        if ticket is None:
            now = self.clock.monotonic_ns()
            ticket = Ticket(self._queues, now + int(active.budget.max_wait * _NS), now)
        ticket.place = store, node, asked
        self._queues.join(ticket, node.key)
        seconds = _POLL_S if store.capabilities.shared else _OWN_POLL_S
        if until:
            seconds = max(seconds, min((until - self.clock.time_ns()) / _NS, _LONG_POLL_S))
        return Wait(error, ticket, seconds)

    def _served(self, id: str) -> None:
        ticket = ticket_in_hand()
        if ticket is not None:
            ticket.leave()
        if ticket is not None and ticket.place is not None:
            store, node, _ = ticket.place
            self.witness.waited(store, node, (self.clock.monotonic_ns() - ticket.since) / _NS, id)

    def _changed(self, reservation: Reservation) -> None:
        self._queues.changed(node.key for part in reservation.parts for node in part.nodes)

    def _waits_for_others(self, active: ActiveBudget, node: Node, refusal: Refusal, decision: Decision) -> bool:
        """Held is not spent: what is only held by calls in flight may be free in a moment."""
        if not decision.transient or not active.budget.max_wait or active.budget.on_exceed == "warn":
            return False
        return not self._holds_all(node, refusal)

    def _room_at(self, active: ActiveBudget, decision: Decision) -> int | None:
        """When there is a new window, if that is soon enough to wait for: nanoseconds since the epoch."""
        at = decision.retry_at
        if at is None or at - self.clock.time_ns() > active.budget.max_wait * _NS:
            return None
        return at

    def _holds_all(self, node: Node, refusal: Refusal) -> bool:
        """True when this very thread holds all that stands in the way: it would wait for itself."""
        if in_event_loop():
            return False  # another task may hold it
        own = 0
        for reservation in list(self._held.values()):
            if reservation.thread == threading.get_ident():
                own += sum(
                    amount
                    for part in reservation.parts
                    for other, amount in zip(part.nodes, part.amounts, strict=True)
                    if other.key == node.key
                )
        return own >= refusal.balance.reserved

    # --- when there is no room -------------------------------------------------------------------------------------------

    def _let_through(
        self, part: Part, nodes: tuple[Node, ...], decision: Decision, asking: _Asking
    ) -> tuple[Node, ...]:
        """The nodes again, without the limits whose budgets agree to go on; BudgetExceeded when one does not."""
        lifted = list(nodes)
        # The one to name comes first, so that it is the one that is raised.
        for refusal in sorted(decision.refusals, key=lambda refusal: refusal is not decision.refusal):
            node = nodes[refusal.index]
            active = asking.by_key(node.budget)
            error = _exceeded(node, refusal, transient=decision.transient, id=asking.id, hint=asking.hint)
            waits = not asking.sent and self._waits_for_others(active, node, refusal, decision)
            action = "wait" if waits else self._action(active, node, error)
            if action in ("wait", "throttle") and not asking.sent:
                until = 0 if action == "wait" else self._room_at(active, decision)
                if until is not None:
                    raise self._wait(error, active, node, part.store, refusal.asked, until)
            if isinstance(action, (Downgrade, Clamp, Cut)) and not asking.sent:
                raise Change(error, action, _room(nodes, decision), (part.store, node, refusal.asked))
            if isinstance(action, Ask) and not asking.sent:
                try:
                    self._approve(action, part.store, node, refusal, error, asking)
                except Wait:
                    raise
                except BudgetExceeded as refused:
                    self.witness.refused(part.store, node, refused, refusal.asked)
                    raise
                action = "allow"
            if action != "allow":
                self.witness.refused(part.store, node, error, refusal.asked)
                raise error
            self.witness.let_through(part.store, node, error, refusal.asked)
            asking.exceeded.append(error)
            lifted[refusal.index] = replace(node, limit=None)
        return tuple(lifted)

    def _approve(
        self, ask: Ask, store: Store, node: Node, refusal: Refusal, error: BudgetExceeded, asking: _Asking
    ) -> None:
        """Come back with a grant, which is used up; else wait for one, or raise what was answered."""
        from aifinops.budgets import approvals, approvers  # most programs ask nobody

        ticket = ticket_in_hand()
        if ticket is None:
            wait = asking.by_key(node.budget).budget.max_wait
            now = self.clock.monotonic_ns()
            ticket = Ticket(self._queues, now + int(wait * _NS), now)
        ticket.place = store, node, refusal.asked
        if self._desk is None:
            self._desk = approvals.Approvals(self.clock, approvals.Key(self._approval_key), self.witness.audit)
        desk = self._desk
        approver = approvers.approver_of(ask.approver)
        wanted = approvals.Request(
            "",
            node.label,
            node.budget,
            0 if node.also else node.window,  # the part of a rolling window is soon another one
            node.unit,
            refusal.asked,
            refusal.balance.limit or 0,
            refusal.balance.spent,
            dict(asking.about()),
        )

        def asked(request: approvals.Request) -> None:
            logger.warning("aifinops: an approval is wanted: %s", request.as_text())
            if approver is not None:
                approver.asked(desk, store, request, ticket.wake)

        try:
            answer = desk.answer(store, wanted, asked)
            if approver is not None and isinstance(answer, approvals.Request):
                approver.look(desk, store, answer)
        except (StoreError, ConfigurationError) as failure:
            raise with_hint(error, f"Nobody can be asked for an approval: {failure}") from failure
        except Exception as failure:  # a limit that cannot ask holds
            swallow("budgets.approval", failure)
            raise with_hint(error, "Asking for an approval failed.") from failure
        if isinstance(answer, approvals.Grant):
            asking.grants += ((store, answer, node.label),)
            logger.warning("aifinops: %s It goes on: %s has allowed it.", _what(error), answer.approver)
        elif isinstance(answer, approvals.Denied):
            raise recast(ApprovalDenied, error, f"{answer.approver} has said no to request {answer.request.id}.")
        else:
            how = f"Nobody has answered request {answer.id} yet: aifinops approvals grant {answer.id}"
            raise Wait(recast(ApprovalPending, error, how), ticket, _ASK_POLL_S)

    def _give_back(self, store: Store, grant: Grant, _: str) -> None:
        try:
            if self._desk is not None:
                self._desk.give_back(store, grant)
        except StoreError as failure:  # the refusal goes on; whoever wants to go above the limit asks again
            swallow("budgets.give_back", failure)

    def _action(self, active: ActiveBudget, node: Node, error: BudgetExceeded) -> str | Action:
        """What the budget says to a lasting refusal: `raise`, `throttle`, `allow`, or a change of the call."""
        action = active.budget.on_exceed
        if action == "warn":
            self._warn_once(node, error)
            return "allow"
        return _ask_callable(action, error) if callable(action) else action

    def _overrun(self, id: str, part: Part, truth: Sequence[int | None], now: int) -> None:
        for node, amount, held in zip(part.nodes, truth, part.amounts, strict=True):
            if amount is not None and amount > held:
                self.witness.overrun(part.store, node, amount - held, id, now)

    def _late(self, reservation: Reservation, actual: Mapping[str, int], counted: bool) -> None:
        for part in reservation.parts:
            for node in part.nodes:
                self.witness.late(part.store, node, _actual(node.unit, actual, counted), reservation.id)

    def _warn_once(self, node: Node, error: BudgetExceeded) -> None:
        self._log_once(node.key, error, "It only warns, so this call and later ones go on.")

    def changed_call(self, error: BudgetExceeded, said: str) -> None:
        """A call was made smaller for a budget, in place of this error: logged once for each way in which it is."""
        self._log_once(f"{error.budget} {said}", error, said)

    def fitted(self, change: Change, refusal: BudgetExceeded | None = None) -> None:
        """A call was made smaller as a budget says, or could not be, and is refused with that error."""
        store, node, asked = change.place
        if refusal is None:
            self.witness.changed(store, node, change.error, asked, change.action.name)
        else:
            self.witness.refused(store, node, refusal, asked)

    def _log_once(self, key: str, error: BudgetExceeded, said: str) -> None:
        if key in self._warned:
            return
        self._warned[key] = None
        if len(self._warned) > _WARNED_KEPT:
            self._warned.popitem(last=False)
        logger.warning("aifinops: %s %s", _what(error), said)

    def report(self, crossed: Iterable[Crossing]) -> None:
        """Tell everybody of the marks that were reached."""
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


def _room(nodes: Sequence[Node], decision: Decision) -> dict[str, int]:
    """What is left of each unit that was refused."""
    room: dict[str, int] = {}
    for refusal in decision.refusals:
        unit, left = nodes[refusal.index].unit, refusal.balance.remaining or 0
        room[unit] = min(room.get(unit, left), left)
    return room


def _exceeded(node: Node, refusal: Refusal, *, transient: bool, id: str, hint: str) -> BudgetExceeded:
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
        transient=transient,
        hint=hint,
    )


def _granted(asking: _Asking) -> dict[str, str]:
    """Tags that say who allowed a call to go above a limit."""
    _, grant, budget = asking.grants[-1]
    return {"budget_action": Ask.name, "budget_name": budget[:256], "approval": grant.id, "approver": grant.approver}


def _what(error: BudgetExceeded) -> str:
    if isinstance(error, UnpricedCall):
        return f"budget {error.budget!r} cannot count a call that has no price ({error.model!r})."
    return (
        f"budget {error.budget!r} is exceeded: {error.spent:f} of {error.limit:f} {error.unit} spent, {error.reserved:f} held, "
        f"and this call may cost up to {error.asked:f}."
    )


def _ask_callable(action: Callable[[BudgetExceeded], Any], error: BudgetExceeded) -> str:
    try:
        answer = action(error)
    except Exception as failure:  # a limit that cannot ask holds
        swallow("budgets.on_exceed", failure)
        return "raise"
    if answer in ("raise", "throttle", "allow"):
        return str(answer)
    logger.warning(
        "aifinops: on_exceed of budget %r returned %r; only 'allow' lets a call through", error.budget, answer
    )
    return "raise"


def _soft_limit(crossing: Crossing) -> SoftLimit:
    node = crossing.node
    limit = to_units(node.unit, node.limit or 0)
    # Marks are rounded to whole steps; three places take the share back to what was typed.
    share = (Decimal(crossing.mark) / (node.limit or 1)).quantize(Decimal("0.001"))
    return SoftLimit(node.label, node.unit, share, limit, to_units(node.unit, crossing.spent), node.until or None)
