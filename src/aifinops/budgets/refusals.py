"""What becomes of a call that has no room: it waits, is changed, is allowed by somebody, or is refused."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aifinops.budgets.actions import Action, Ask, Chain, Change, Clamp, Cut, Downgrade, recast, with_hint
from aifinops.budgets.budget import ActiveBudget, to_units
from aifinops.budgets.policy import Decision, Refusal
from aifinops.budgets.reservations import Part, Reservation
from aifinops.budgets.stores.base import Node, Read, Store
from aifinops.budgets.waiting import Queues, Ticket, Wait, in_event_loop, ticket_in_hand
from aifinops.budgets.witness import Witness
from aifinops.clock import Clock, to_datetime
from aifinops.errors import (
    ApprovalDenied,
    ApprovalPending,
    BudgetExceeded,
    ConfigurationError,
    StoreError,
    UnknownModel,
    UnpricedCall,
    swallow,
)

if TYPE_CHECKING:
    from aifinops.budgets.approvals import Approvals, Grant

__all__ = ["Asking", "Refusals", "exceeded", "granted"]

logger = logging.getLogger("aifinops.budgets")

_NS = 1_000_000_000
_WARNED_KEPT = 4096
_POLL_S, _OWN_POLL_S, _LONG_POLL_S, _ASK_POLL_S = 0.02, 1.0, 60.0, 0.25
"""How often whoever waits asks again by himself: another process may have made room, a clock may have been put right."""


class Asking:
    """One call that asks for room, and what was found out about it.

    Attributes:
        id, at, hint, budgets: as in `Guard.reserve`. why: there is no price. exceeded: budgets that let it through all the same.
        about: what whoever is asked for an approval is told. grants: approvals that it uses, with the store and the name of the budget of each.
        sent: True for what is under way: it neither waits nor changes. ttl: of its lease, nanoseconds. alone: as in `Reserve`.
        paced: whether one of the budgets has a pace. past: key of a budget -> how many actions of its chain were of no use.
    """

    __slots__ = (
        "about", "alone", "at", "budgets", "exceeded", "grants", "hint", "id", "paced", "past", "sent", "ttl", "why",
    )  # fmt: skip

    def __init__(self, id: str, at: int, budgets: Sequence[ActiveBudget], ttl: int, *, sent: bool = False) -> None:
        self.id = id
        self.at = at
        self.budgets = budgets
        self.hint = ""
        self.why: UnknownModel | None = None
        self.exceeded: list[BudgetExceeded] = []
        self.about: Callable[[], Mapping[str, str]] = dict
        self.grants: tuple[tuple[Store, Grant, str], ...] = ()
        self.sent = sent
        self.ttl = ttl
        self.alone = self.paced = False
        self.past: Mapping[str, int] = {}

    def by_key(self, key: str) -> ActiveBudget:
        """The budget of a node."""
        return next(active for active in self.budgets if active.key == key)

    def unpriced(self, node: Node) -> UnpricedCall:
        """What is raised where a node wants a price."""
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


class Refusals:
    """Judges what stores refuse, by what the budgets say.

    Args:
        clock: for how long calls wait. witness: is told of every answer. queues: of those who wait. held: what calls in flight hold, by id.
        approval_key: file of the key that signs approvals; default one that only this process has.
    """

    def __init__(
        self, clock: Clock, witness: Witness, queues: Queues, held: Mapping[str, Reservation], approval_key: str | None
    ) -> None:
        self._clock = clock
        self._witness = witness
        self._queues = queues
        self._held = held
        self._approval_key = approval_key
        self._desk: Approvals | None = None
        self._warned: OrderedDict[str, None] = OrderedDict()

    # --- waiting --------------------------------------------------------------------------------------------------------

    def queue_up(self, part: Part, asking: Asking) -> None:
        """Whoever comes while others wait for the same stands behind them.

        Raises:
            Wait: with a place in the queue.
            StoreError: when the store does not say how it stands.
        """
        ticket = ticket_in_hand()
        for node, amount in zip(part.nodes, part.amounts, strict=True):
            if amount and self._queues.ahead(node.key, ticket):
                active = asking.by_key(node.budget)
                if active.budget.max_wait:
                    balances = self._witness.ask(part.store, Read((node,)))
                    if balances is None:
                        raise StoreError("it does not answer")
                    refusal = Refusal(0, balances[0], amount)
                    error = exceeded(node, refusal, transient=True, id=asking.id, hint=asking.hint)
                    raise self._wait(error, active, node, part.store, amount)

    def _wait(
        self, error: BudgetExceeded, active: ActiveBudget, node: Node, store: Store, asked: int, until: int = 0
    ) -> Wait:
        ticket = ticket_in_hand()
        if ticket is None:
            now = self._clock.monotonic_ns()
            ticket = Ticket(self._queues, now + int(active.budget.max_wait * _NS), now)
        ticket.place = store, node, asked
        self._queues.join(ticket, node.key)
        seconds = _POLL_S if store.capabilities.shared else _OWN_POLL_S
        if until:
            seconds = max(seconds, min((until - self._clock.time_ns()) / _NS, _LONG_POLL_S))
        return Wait(error, ticket, seconds)

    def served(self, id: str) -> None:
        """A call that waited has found room."""
        ticket = ticket_in_hand()
        if ticket is not None:
            ticket.leave()
        if ticket is not None and ticket.place is not None:
            store, node, _ = ticket.place
            self._witness.waited(store, node, (self._clock.monotonic_ns() - ticket.since) / _NS, id)

    def changed(self, reservation: Reservation) -> None:
        """There may be room now for those who wait."""
        self._queues.changed(node.key for part in reservation.parts for node in part.nodes)

    def _waits_for_others(self, active: ActiveBudget, node: Node, refusal: Refusal, decision: Decision) -> bool:
        """Held is not spent: what is only held by calls in flight may be free in a moment."""
        if not decision.transient or not active.budget.max_wait or active.budget.last_resort == "warn":
            return False
        return not self._holds_all(node, refusal)

    def _room_at(self, active: ActiveBudget, decision: Decision) -> int | None:
        """When there is a new window, if that is soon enough to wait for: nanoseconds since the epoch."""
        at = decision.retry_at
        if at is None or at - self._clock.time_ns() > active.budget.max_wait * _NS:
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

    def let_through(self, part: Part, nodes: tuple[Node, ...], decision: Decision, asking: Asking) -> tuple[Node, ...]:
        """The nodes again, without the limits whose budgets agree to go on; BudgetExceeded when one does not."""
        lifted = list(nodes)
        transient, first = decision.transient, decision.refusal
        # The one to name comes first, so that it is the one that is raised.
        for refusal in sorted(decision.refusals, key=lambda refusal: refusal is not first):
            node = nodes[refusal.index]
            active = asking.by_key(node.budget)
            error = exceeded(node, refusal, transient=transient, id=asking.id, hint=asking.hint)
            waits = not asking.sent and self._waits_for_others(active, node, refusal, decision)
            action = "wait" if waits else self.action(active, node, error, asking)
            if action in ("wait", "throttle") and not asking.sent:
                until = 0 if action == "wait" else self._room_at(active, decision)
                if until is not None:
                    raise self._wait(error, active, node, part.store, refusal.asked, until)
            if isinstance(action, (Downgrade, Clamp, Cut)) and not asking.sent:
                place = (part.store, node, refusal.asked)
                raise Change(error, action, _room(nodes, decision), place, more=_has_more(active, asking))
            if isinstance(action, Ask) and not asking.sent:
                try:
                    self._approve(action, part.store, node, refusal, error, asking)
                except Wait:
                    raise
                except BudgetExceeded as refused:
                    self._witness.refused(part.store, node, refused, refusal.asked)
                    raise
                action = "allow"
            if action != "allow":
                self._witness.refused(part.store, node, error, refusal.asked)
                raise error
            self._witness.let_through(part.store, node, error, refusal.asked)
            asking.exceeded.append(error)
            lifted[refusal.index] = replace(node, limit=None)
        return tuple(lifted)

    def _approve(
        self, ask: Ask, store: Store, node: Node, refusal: Refusal, error: BudgetExceeded, asking: Asking
    ) -> None:
        """Come back with a grant, which is used up; else wait for one, or raise what was answered."""
        from aifinops.budgets import approvals, approvers  # most programs ask nobody

        ticket = ticket_in_hand()
        if ticket is None:
            wait = asking.by_key(node.budget).budget.max_wait
            now = self._clock.monotonic_ns()
            ticket = Ticket(self._queues, now + int(wait * _NS), now)
        ticket.place = store, node, refusal.asked
        if self._desk is None:
            self._desk = approvals.Approvals(self._clock, approvals.Key(self._approval_key), self._witness.audit)
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

    def give_back(self, store: Store, grant: Grant, _: str) -> None:
        """The call that an approval was used for is not made: it can be used again."""
        try:
            if self._desk is not None:
                self._desk.give_back(store, grant)
        except StoreError as failure:  # the refusal goes on; whoever wants to go above the limit asks again
            swallow("budgets.give_back", failure)

    def action(
        self, active: ActiveBudget, node: Node, error: BudgetExceeded, asking: Asking | None = None
    ) -> str | Action:
        """What the budget says to a lasting refusal: `raise`, `throttle`, `allow`, or a change of the call.

        Args:
            asking: the call; None for one that no change makes fit.
        """
        action = active.budget.on_exceed
        if isinstance(action, Chain):
            action = _of_chain(action, active, asking)
        if action == "warn":
            self._warn_once(node, error)
            return "allow"
        return _ask_callable(action, error) if callable(action) else action

    def _warn_once(self, node: Node, error: BudgetExceeded) -> None:
        self._log_once(node.key, error, "It only warns, so this call and later ones go on.")

    def changed_call(self, error: BudgetExceeded, said: str) -> None:
        """A call was made smaller for a budget, in place of this error: logged once for each way in which it is."""
        self._log_once(f"{error.budget} {said}", error, said)

    def fitted(self, change: Change, refusal: BudgetExceeded | None = None) -> None:
        """A call was made smaller as a budget says, or could not be, and is refused with that error."""
        store, node, asked = change.place
        if refusal is None:
            self._witness.changed(store, node, change.error, asked, change.action.name)
        else:
            self._witness.refused(store, node, refusal, asked)

    def _log_once(self, key: str, error: BudgetExceeded, said: str) -> None:
        if key in self._warned:
            return
        self._warned[key] = None
        if len(self._warned) > _WARNED_KEPT:
            self._warned.popitem(last=False)
        logger.warning("aifinops: %s %s", _what(error), said)

    def gave_up(self, wait: Wait) -> BudgetExceeded:
        """Waiting is no use any longer, or not possible: the error to raise."""
        if wait.ticket.place is not None:
            store, node, asked = wait.ticket.place
            waited = (self._clock.monotonic_ns() - wait.ticket.since) / _NS
            self._witness.refused(store, node, wait.error, asked, waited)
        return wait.error

    def patience(self, wait: Wait) -> float:
        """How long to wait until asking again, seconds.

        Raises:
            BudgetExceeded: when waiting any longer is no use.
        """
        left = (wait.ticket.deadline - self._clock.monotonic_ns()) / _NS
        if left <= 0:
            raise self.gave_up(wait)
        return min(wait.seconds, left)


def _of_chain(chain: Chain, active: ActiveBudget, asking: Asking | None) -> Any:
    if asking is None or asking.alone:
        return chain.last
    if asking.sent:  # a stream that has begun with a small hold is ended; nothing else of it can be changed
        return chain.cut or chain.last
    return chain.at(asking.past.get(active.key, 0))


def _has_more(active: ActiveBudget, asking: Asking) -> bool:
    chain = active.budget.on_exceed
    return isinstance(chain, Chain) and not chain.ends(asking.past.get(active.key, 0))


def _room(nodes: Sequence[Node], decision: Decision) -> dict[str, int]:
    """What is left of each unit that was refused."""
    room: dict[str, int] = {}
    for refusal in decision.refusals:
        unit, left = nodes[refusal.index].unit, refusal.balance.remaining or 0
        room[unit] = min(room.get(unit, left), left)
    return room


def exceeded(node: Node, refusal: Refusal, *, transient: bool, id: str, hint: str) -> BudgetExceeded:
    """The error that tells of a refusal."""
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


def granted(asking: Asking) -> dict[str, str]:
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
