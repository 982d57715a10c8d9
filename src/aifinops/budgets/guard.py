"""Hold an upper bound before a call, put the true cost in its place after it. The way from budgets to stores."""

from __future__ import annotations

import logging
from builtins import id as id_of
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from weakref import finalize

from aifinops.budgets.actions import Change
from aifinops.budgets.budget import ActiveBudget, is_currency, to_units
from aifinops.budgets.caretaker import EVERY_NS, Caretaker
from aifinops.budgets.lines import Line, Lines, Settlement
from aifinops.budgets.pacing import Pacer
from aifinops.budgets.policy import Balance
from aifinops.budgets.refusals import Asking, Refusals, granted
from aifinops.budgets.reservations import Part, Reservation
from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    Adjust,
    Crossing,
    Draw,
    Extend,
    Forget,
    Node,
    Outcome,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Store,
    Sweep,
)
from aifinops.budgets.waiting import Queues, Wait
from aifinops.budgets.witness import Witness
from aifinops.clock import Clock
from aifinops.errors import BudgetExceeded, StoreError, StoreUnavailable, UnknownModel, swallow
from aifinops.meters import GROUPS, METERS

__all__ = ["LEASE_S", "Guard", "Part", "Reservation", "SoftLimit"]

logger = logging.getLogger("aifinops.budgets")

LEASE_S = 900
"""A hold that is neither settled nor extended for so long counts as spent, in seconds; a late settlement corrects it."""

_NS = 1_000_000_000
_SWEEP_NS = 60 * _NS
_GROW_TRIES = 8
_PAIRS_MOST = 1024
_AGAIN_MOST = 4096
_WARNING_FROM = Decimal("0.8")
_TOKENS = GROUPS["tokens"]
_NOT_IN_MODEL_CALLS = frozenset(
    name for name, meter in METERS.items() if meter.family == "storage" or name in ("gpu_seconds", "cpu_seconds")
)


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
        self._lines = Lines(clock, self.witness, self.report)
        self.witness.ask = lambda store, operation: self._lines.tell(self._lines.to(store), operation)
        self._care = Caretaker(self.witness)
        self._next_look = 0
        self.clock = clock
        self.on_soft = list(on_soft)
        self._store_of = store_of
        self._ttl = int(lease_s * _NS)
        self._next_sweep = 0
        self._pairs: dict[tuple[int, int], tuple[tuple[Node, ...], ...]] = {}
        self._queues = Queues()
        self._pacer = Pacer()
        self._again: OrderedDict[str, str] = OrderedDict()
        self._held: dict[str, Reservation] = {}
        self.refusals = Refusals(clock, self.witness, self._queues, self._held, approval_key)
        # Filled by finalizers, which may run anywhere, also inside the store: they only append.
        self._gone: deque[tuple[Store, tuple[Node, ...]]] = deque()
        self._lines.to(store)

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
        slice_s: float = 0,
        past: Mapping[str, int] | None = None,
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
            slice_s: lease, seconds, of what will be drawn from by and by; 0 for a call.
            past: key of a budget -> how many actions of its chain were of no use for this call.

        Returns:
            None when no budget limits anything that this call takes.

        Raises:
            Wait: when there may be room in a while; nothing is held. `pause` waits, and then this is called again.
            Change: when a smaller call may have room; nothing is held.
            BudgetExceeded: when a budget has no room; nothing is held then, and nothing was called.
            StoreUnavailable: when a store does not answer and its budgets then deny.
            UnpricedCall: when there is no price and a budget wants one.
        """
        try:
            self._tidy(at)
        except Exception as failure:  # it is no part of the decision
            swallow("budgets.tidy", failure)
        call = id
        if self._again:
            id = self._again.pop(call, id)
        asking = Asking(id, at, budgets, int(slice_s * _NS) or self._ttl)
        asking.alone = slice_s > 0
        asking.hint, asking.why, asking.about, asking.past = hint, unpriced, about, past or {}
        parts = self._ask(asking, amounts)
        if not parts:
            return None
        held: list[Part] = []
        try:
            for part in parts:
                if self._hold(part, asking):
                    held.append(part)  # noqa: PERF401 - what is held so far is given back where one refuses
            unheld = () if len(held) == len(parts) else [part for part in parts if part not in held]
            reservation = self._held[id] = Reservation(id, held, asking.exceeded, unheld, at + asking.ttl)
            if asking.grants:
                reservation.granted = granted(asking)
            if self._queues:
                self.refusals.served(id)
            self.witness.allowed(budgets)
        except BudgetExceeded as refusal:
            self._give_back(asking, held)
            if held and isinstance(refusal, (Wait, Change)):
                self._ask_again(call, id)
            raise
        except BaseException:  # whatever it was, and wherever: what may be held is given back
            self._held.pop(id, None)
            self._give_back(asking, parts)
            raise
        return reservation

    def _give_back(self, asking: Asking, parts: Sequence[Part]) -> None:
        for part in parts:
            self._lines.owe(part.store, Release(asking.id, part.nodes))
        for grant in asking.grants:
            self.refusals.give_back(*grant)

    def _ask_again(self, call: str, id: str) -> None:
        """What was held under an id was given back, and the call comes again: stores need another one."""
        self._again[call] = f"{call}~{int(id.removeprefix(call)[1:] or 0) + 1}"
        if len(self._again) > _AGAIN_MOST:  # of calls that have given up
            self._again.popitem(last=False)

    def undecided(self, active: ActiveBudget, error: BudgetExceeded) -> None:
        """Write down that a call was refused for this budget since we have failed to decide."""
        node, *_ = self._nodes(active, self.clock.time_ns())
        self.witness.refused(active.store, node, error, 0)

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
        asking = Asking(reservation.id, now, budgets, self._ttl, sent=True)
        for part in reservation.parts:
            wanted = _grown(part, amounts)
            try:
                self._grow(part, wanted, asking)
            except StoreError as error:
                self._without_store(part, asking, error)
                part.amounts, part.short = wanted, True
        for part in reservation.unheld:
            part.amounts = _grown(part, amounts)

    def _grow(self, part: Part, wanted: tuple[int, ...], asking: Asking) -> None:
        line = self._lines.to(part.store)
        for _ in range(_GROW_TRIES):
            outcome = self._lines.execute(line, Extend(asking.id, part.enforced, asking.at, self._ttl, wanted))
            gone = outcome.state not in (State.HELD, State.SENT)  # forfeited: it counts as spent already
            if outcome.applied or gone:
                break
            if outcome.decision is not None:  # else what there was is another call's by now
                part.enforced = self.refusals.let_through(part, part.enforced, outcome.decision, asking)
        else:
            raise StoreError("other calls were quicker again and again")
        part.amounts = wanted
        if not outcome.applied:
            part.short = True  # its end puts the truth in the place of what counts as spent

    def draw(
        self,
        reservation: Reservation,
        budgets: Sequence[ActiveBudget],
        spent: Mapping[str, int],
        wanted: Mapping[str, int],
        *,
        slice_s: float,
    ) -> bool:
        """Pay from a hold for what was used since the last time, and hold so much from now on.

        Args:
            reservation: what `reserve` gave, for `budgets`. spent, wanted: unit -> amount, as in `reserve`; a unit that is missing is 0.
            slice_s: the new lease, seconds.

        Returns:
            False when the lease had run out: what was held counts as spent until `settle` puts in its place what was.

        Raises:
            BudgetExceeded: when a budget has no room for what is wanted. What was used is paid all the same, and what is left of the hold stays.
            StoreUnavailable: when a store does not answer and its budgets then deny. It is told later what was used.
        """
        now = self.clock.time_ns()
        asking = Asking(reservation.id, now, budgets, int(slice_s * _NS), sent=True)
        alive, refused = True, None
        for part in reservation.parts:
            try:
                alive = self._draw(part, reservation, spent, wanted, asking) and alive
            except BudgetExceeded as refusal:  # the other stores are told all the same
                refused = refusal
        for part in reservation.unheld:
            paid = tuple(min(spent.get(node.unit, 0), MAX_AMOUNT) for node in part.nodes)
            self._lines.owe(part.store, Adjust(f"{reservation.id}-{reservation.step}", part.nodes, paid, now))
        reservation.until = now + asking.ttl
        if refused is not None:
            raise refused
        return alive

    def _draw(
        self,
        part: Part,
        reservation: Reservation,
        spent: Mapping[str, int],
        wanted: Mapping[str, int],
        asking: Asking,
    ) -> bool:
        paid = tuple(min(spent.get(node.unit, 0), MAX_AMOUNT) for node in part.nodes)
        held = tuple(min(wanted.get(node.unit, 0), MAX_AMOUNT) for node in part.nodes)
        while True:
            reservation.step += 1
            part.amounts = tuple(max(0, was - cost) for was, cost in zip(part.amounts, paid, strict=True))
            operation = Draw(
                reservation.id, part.enforced, reservation.step, paid, held, part.amounts, asking.at, asking.ttl
            )
            outcome = self._lines.owe(part.store, operation)
            if outcome is None:
                self._without_store(part, asking, StoreError("it does not answer."))
                return True
            self.report(outcome.crossed)
            if outcome.decision is None:
                break
            part.enforced = self.refusals.let_through(part, part.enforced, outcome.decision, asking)
            paid = (0,) * len(paid)
        if outcome.applied:
            part.amounts = held
        return outcome.applied

    def settle(self, reservation: Reservation, actual: Mapping[str, int]) -> None:
        """Put the truth in the place of the hold; more than was held is recorded, never refused.

        Args:
            reservation: what `reserve` gave. actual: unit -> quantity, as in `reserve`. A currency that is missing has
                cost what was held. So has every meter when no usage is given; else a meter that is missing is 0.

        A store that does not answer is told when it does again; until then the hold stays, and in the end it would expire as spent.
        """
        now = self.clock.time_ns()
        self._held.pop(reservation.id, None)
        for part in reservation.parts:
            truth: list[int | None] = []
            over = False
            for index, node in enumerate(part.nodes):
                amount = actual.get(node.unit)
                if amount is None or not 0 <= amount <= MAX_AMOUNT:
                    amount = _actual(node.unit, actual)
                    if amount is None and part.short:
                        amount = part.amounts[index]
                truth.append(amount)
                if amount is not None and amount > part.amounts[index]:
                    over = True
            outcome = self._settle(part, reservation.id, tuple(truth), now)
            if over:
                self._overrun(reservation.id, part, truth, now)
            if outcome is not None and outcome.crossed:
                self.report(outcome.crossed)
        for part in reservation.unheld:
            known = zip(part.nodes, part.amounts, strict=True)
            posted = [most if (amount := _actual(node.unit, actual)) is None else amount for node, most in known]
            self._lines.owe(part.store, Adjust(reservation.id, part.nodes, tuple(posted), now))
        if now >= reservation.until:
            self._late(reservation, actual)
        if self._queues:
            self.refusals.changed(reservation)

    def _settle(self, part: Part, id: str, truth: tuple[int | None, ...], now: int) -> Outcome | None:
        line = self._lines.to(part.store)
        outcome = None if line.settle is None else line.settle(id, part.nodes, truth, now)
        return outcome or self._lines.owe(part.store, Settlement(Settle(id, part.nodes, truth, now), part.amounts))

    def release(self, reservation: Reservation) -> None:
        """Give everything back: with proof that nothing was sent, or that the provider refused it. As `settle`, it never fails."""
        self._held.pop(reservation.id, None)
        for part in reservation.parts:
            self._lines.owe(part.store, Release(reservation.id, part.nodes))
        if self._queues:
            self.refusals.changed(reservation)

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
            outcome = self._lines.owe(store, Adjust(id, tuple(nodes), posted, at))
            for node, amount in zip(nodes, posted, strict=True):
                self.witness.posted(store, node, amount, id)
            if outcome is not None:
                self.report(outcome.crossed)

    def pause(self, wait: Wait) -> None:
        """Wait in this thread, outside of everything, until it is worth asking again.

        Raises:
            BudgetExceeded: when waiting any longer is no use.
        """
        wait.ticket.wait(self.refusals.patience(wait))

    async def apause(self, wait: Wait) -> None:
        """`pause` in a task; the event loop goes on."""
        await wait.ticket.await_(self.refusals.patience(wait))

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

    def present(self, most: int) -> list[tuple[Node, Balance, float | None]]:
        """How the budgets with a name stand that were used in this process, the newest `most`: node, balance, steps a second or None.

        Those whose store does not answer are left out.
        """
        self.pay_debts()
        return self._care.present(self.clock.time_ns(), most)

    def sweep(self) -> tuple[str, ...]:
        """Count holds whose lease has run out as spent; their ids. It also happens by itself, at most once a minute."""
        now = self.clock.time_ns()
        return tuple(id for line in self._lines for id in self._sweep(line, now))

    def _sweep(self, line: Line, now: int) -> tuple[str, ...]:
        swept = self._lines.tell(line, Sweep(now))
        if swept is None:
            return ()
        self.report(swept.crossed)
        self.witness.forfeited(line.store, swept.forfeited)
        for id in swept.forfeited:
            self._held.pop(id, None)
        return swept.forfeited

    def pay_debts(self) -> bool:
        """Tell stores what they could not be told before; True when nothing is left to tell."""
        return self._lines.pay_debts()

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
        for line in self._lines:
            line.owed.clear()
            line.store.reset_after_fork()

    # --- one store ----------------------------------------------------------------------------------------------------

    def _hold(self, part: Part, asking: Asking) -> bool:
        """Hold one part; False when its budgets let the call through although their store does not answer."""
        if self._queues:
            try:
                self.refusals.queue_up(part, asking)
            except StoreError as error:
                return self._without_store(part, asking, error)
        enforced = part.nodes
        if asking.paced and not asking.alone and not self._keeps_pace(part, asking):
            return False
        while True:
            try:
                outcome = self._reserve(part, enforced, asking)
            except StoreError as error:
                return self._without_store(part, asking, error)
            if outcome.decision is None:
                break
            enforced = self.refusals.let_through(part, enforced, outcome.decision, asking)
        if not outcome.applied and outcome.state not in (State.HELD, State.SENT):
            raise StoreError(f"reservation {asking.id!r} is {outcome.state} already; every call needs a new id")
        part.enforced = enforced
        return True

    def _keeps_pace(self, part: Part, asking: Asking) -> bool:
        """Judge a call by its pace; False when its store does not answer and its budgets let it through all the same."""
        try:
            decision = self._pacer.judge(part, asking.budgets, self.clock.time_ns())
        except StoreError as error:
            return self._without_store(part, asking, error)
        if decision is not None:
            self.refusals.let_through(part, part.nodes, decision, asking)
        return True

    def _reserve(self, part: Part, nodes: tuple[Node, ...], asking: Asking) -> Outcome:
        line = self._lines.to(part.store)
        if line.reserve is not None and not asking.alone:
            outcome = line.reserve(asking.id, nodes, part.amounts, asking.at, asking.ttl)
            if outcome is not None:
                return outcome
        if not self._lines.answers(line):
            raise StoreError("it did not answer a moment ago")
        operation = Reserve(asking.id, nodes, part.amounts, asking.at, asking.ttl, asking.alone)
        try:
            return self._lines.execute(line, operation)
        except StoreError:
            # Whether it holds is not known. It may: to be given back, under the same id, once it answers.
            line.owed.append(Release(asking.id, nodes))
            raise

    def _without_store(self, part: Part, asking: Asking, error: StoreError) -> bool:
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

    # --- what to ask for -------------------------------------------------------------------------------------------------

    def _ask(self, asking: Asking, amounts: Mapping[str, int]) -> list[Part]:
        parts: list[Part] = []
        for active in _each(asking.budgets):
            nodes = self._nodes(active, asking.at)
            if active.budget.pace is not None:
                asking.paced = True
            asked = []
            for node in nodes:
                amount = amounts.get(node.unit)
                if amount is None:
                    amount = self._bound(active, node, amounts, asking)
                asked.append(amount if 0 <= amount <= MAX_AMOUNT else max(0, min(amount, MAX_AMOUNT)))
            same = next((part for part in parts if part.store is active.store), None)
            if same is None:
                parts.append(Part(active.store, nodes, tuple(asked)))
            else:
                same.nodes = same.enforced = self._joined(same.nodes, nodes)
                same.amounts += tuple(asked)
        if len(parts) > 1:
            # First what never waits: a refusal there costs nobody anything.
            parts.sort(key=lambda part: part.store.capabilities.io != "none")
        return parts

    def _joined(self, first: tuple[Node, ...], second: tuple[Node, ...]) -> tuple[Node, ...]:
        """Both, as the same object as long as they are the same: stores find what they know of nodes by identity."""
        key = id_of(first), id_of(second)
        found = self._pairs.get(key)
        if found is None or found[0] is not first or found[1] is not second:
            if len(self._pairs) >= _PAIRS_MOST:
                self._pairs.clear()
            found = self._pairs[key] = first, second, first + second
        return found[2]

    def _bound(self, active: ActiveBudget, node: Node, amounts: Mapping[str, int], asking: Asking) -> int:
        unit, unknown = node.unit, active.budget.unknown
        if not is_currency(unit):
            return _meter_bound(unit, amounts)
        dearest = amounts.get(f"{unit}:dearest")
        if unknown == "reserve" and dearest is not None:
            return dearest
        if unknown != "allow":
            error = asking.unpriced(node)
            if self.refusals.action(active, node, error) != "allow":
                self.witness.refused(active.store, node, error, 0)
                raise error
            self.witness.let_through(active.store, node, error, 0)
            asking.exceeded.append(error)
        return 0

    def _nodes(self, active: ActiveBudget, at: int) -> tuple[Node, ...]:
        nodes = active.nodes(at)
        if active.watcher is not self:
            active.store = self.store if self._store_of is None else self._store_of(active)
            active.watcher = self
            if active.store not in self._lines:
                self._sweep(self._lines.to(active.store), at)  # what processes that are gone have left
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
            self._lines.tell(self._lines.to(store), Forget(nodes))
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

    def _overrun(self, id: str, part: Part, truth: Sequence[int | None], now: int) -> None:
        for node, amount, held in zip(part.nodes, truth, part.amounts, strict=True):
            if amount is not None and amount > held:
                self.witness.overrun(part.store, node, amount - held, id, now)

    def _late(self, reservation: Reservation, actual: Mapping[str, int]) -> None:
        for part in reservation.parts:
            for node in part.nodes:
                self.witness.late(part.store, node, _actual(node.unit, actual), reservation.id)

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


def _grown(part: Part, amounts: Mapping[str, int]) -> tuple[int, ...]:
    pairs = zip(part.nodes, part.amounts, strict=True)
    return tuple(max(held, min(amounts.get(node.unit, held), MAX_AMOUNT)) for node, held in pairs)


def _meter_bound(unit: str, amounts: Mapping[str, int]) -> int:
    if unit in _TOKENS:
        found = amounts.get(f"{METERS[unit].direction}_tokens", amounts.get("tokens"))
        if found is not None:
            return found
    # What a call of this kind cannot use is no matter to it; of everything else at least one step may come.
    return 0 if (unit in _NOT_IN_MODEL_CALLS) == ("requests" in amounts) else 1


def _actual(unit: str, actual: Mapping[str, int]) -> int | None:
    amount = actual.get(unit)
    if amount is not None:
        return max(0, min(amount, MAX_AMOUNT))
    counted = any(name != "requests" and not is_currency(name) for name in actual)
    return 0 if counted and not is_currency(unit) else None


def _soft_limit(crossing: Crossing) -> SoftLimit:
    node = crossing.node
    limit = to_units(node.unit, node.limit or 0)
    # Marks are rounded to whole steps; three places take the share back to what was typed.
    share = (Decimal(crossing.mark) / (node.limit or 1)).quantize(Decimal("0.001"))
    return SoftLimit(node.label, node.unit, share, limit, to_units(node.unit, crossing.spent), node.until or None)
