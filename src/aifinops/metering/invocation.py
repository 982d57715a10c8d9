"""One call between its beginning and its single end.

Each step of the settlement is guarded on its own: a broken exporter cannot lose a ledger row, a broken ledger cannot lose
what a budget has spent, and none of them reaches the call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from aifinops.charges import Amounts, Charge, Cost, new_id
from aifinops.errors import BudgetExceeded, swallow
from aifinops.metering import charging, estimates, fitting, holding, telling, undecided, units, waiting
from aifinops.metering.deferred import busy
from aifinops.reading import Reading
from aifinops.telemetry import attributes as span_attributes
from aifinops.telemetry.spans import OpenSpan, end_at_least

if TYPE_CHECKING:
    from aifinops import runtime
    from aifinops.budgets.reservations import Reservation
    from aifinops.metering.bounds import Bound
    from aifinops.metering.call import Call
    from aifinops.scope import Scope
    from aifinops.tags import Tags
    from aifinops.telemetry.guests import Guest

__all__ = ["Invocation", "ending", "in_flight"]

_NOT_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError"})
"""httpx's exceptions that prove that no request left: https://www.python-httpx.org/exceptions/."""

_in_flight: ContextVar[Invocation | None] = ContextVar("aifinops_in_flight", default=None)


def in_flight() -> Invocation | None:
    """The call that is being made in this context, if it is metered."""
    return _in_flight.get()


class Invocation:
    """One call between its beginning and its single end."""

    __slots__ = (
        "_once", "_owner", "answer", "asked", "beside", "budgets", "call", "changed", "currency", "engines", "first_chunk", "guest", "id", "place", "prompt_bound",
        "reservation", "said", "scope", "span", "started", "tags", "tried", "upper", "wall",
    )  # fmt: skip

    def __init__(self, engines: runtime.Runtime, call: Call, scope: Scope, tags: Tags) -> None:
        self.engines = engines
        self.call = call
        self.scope = scope
        self.tags = tags
        self.id = new_id()
        self.wall = engines.clock.time_ns()
        self.started = engines.clock.monotonic_ns()
        self.reservation: Reservation | None = None
        self.asked: Any = ()  # the budgets in which room was found
        self.budgets: Any = ()  # in which it is counted without having been reserved
        self.upper: Decimal | None = None
        self.currency = "USD"
        self.changed: BudgetExceeded | None = None  # why something else is sent than was asked for
        self.prompt_bound = 0  # tokens; 0 is not known
        self.span: OpenSpan | None = None
        self.guest: Guest | None = None  # of a foreign span, in place of one of our own
        self.beside = False  # that foreign span has the cost of another call: this one has a span inside of it
        self.first_chunk: int | None = None
        self.answer: Any = None  # the transport's answer, left here by a seam for itself
        self.said: Any = None  # the answer itself; only where content is asked for
        self.tried: BaseException | None = None  # how the last try ended, as long as the library may make another one
        self._owner: Token[Invocation | None] | None = None
        self._once = [True]
        self.place: Any = None  # among the calls in flight that others may see
        try:
            self.place = engines.presence.begin(call.model, self.wall)
        except Exception as failure:  # it is made and metered all the same
            swallow("metering.presence", failure)

    # --- before the call ----------------------------------------------------------------------------------------------

    def reserve(self, budgets: Any, id: str, *, fixed: bool = False) -> None:
        """Hold the upper bound of this call in every budget, under an id that is new; BudgetExceeded when one has no room.

        Where a budget says so the call is changed until it fits, unless it is `fixed`: under way already. Where something of ours fails, and
        no budget may refuse it, the call is counted when it settles.
        """
        busy.on = True
        try:
            holding.hold(self, budgets, id, fixed=fixed)
        except BudgetExceeded:
            raise
        except Exception as failure:  # a limit holds, whatever fails
            self._give_back()
            undecided.judge("metering.reserve", budgets, failure)
            self.budgets = budgets
        finally:
            busy.on = False

    def _give_back(self) -> None:
        reservation, self.reservation = self.reservation, None
        if reservation is not None:
            try:
                self.engines.guard.release(reservation)
            except Exception as failure:  # it expires as spent
                swallow("metering.give_back", failure)

    def take(self, bound: Bound) -> None:
        """This is what the call may cost at most."""
        self.upper, self.currency, self.prompt_bound = bound.upper, bound.currency, bound.prompt

    def grow(self, counted: int) -> None:
        """Hold on for a stream that began with little.

        Args:
            counted: output tokens that have come so far, at most.

        Raises:
            BudgetExceeded: when there is no room for more: the stream is to be ended.
        """
        busy.on = True
        try:
            fitting.grow(self, counted)
        finally:
            busy.on = False

    def own(self) -> None:
        """Put this call into the context: inner instrumentations see that it has an owner."""
        self._owner = _in_flight.set(self)

    def enter(self) -> None:
        """Put ids into the context: children find their parent, inner instrumentations see that the call has an owner."""
        self.own()
        spans = self.engines.spans
        if spans is None:
            return
        try:
            call = self.call
            if call.host >= self.engines.host:
                guest = spans.join()
                self.beside = guest is not None and guest.taken and self.engines.host > 0
                if not self.beside:
                    self.guest = guest
                    return
            name = f"{call.operation} {call.model}" if call.model else call.operation
            start = span_attributes.request(call.provider, call.operation, call.model)
            self.span = spans.begin(name, self.wall, start, self.scope.span)
        except Exception as failure:  # no span is no reason to lose the call or its charge
            swallow("metering.span_begin", failure)

    def leave(self) -> None:
        """Take ids out of the context again (same task as `enter`); the invocation stays open."""
        owner, self._owner = self._owner, None
        self.tried = None  # its traceback refers to us
        if owner is not None:
            try:
                _in_flight.reset(owner)
            except ValueError:  # closed in another context, which is gone
                _in_flight.set(None)
        if self.span is not None:
            self.span.detach()

    # --- between two tries --------------------------------------------------------------------------------------------

    def lose(self, error: BaseException) -> bool:
        """A try of this call has failed and there will be another one; False when nothing can have been billed.

        What may have been billed is a charge of its own, of unknown cost up to the bound, and what was held for it is spent.
        """
        if _was_refused(error):
            return False
        busy.on = True
        try:
            nothing = Reading()
            most = Amounts.of(charging.cost_at_most(self))
            charge = replace(charging.charge_for(self, nothing, most, "error", error), id=new_id())
            self._pay(charge, nothing)
            self.reservation = None
            telling.keep(self, charge)
        finally:
            busy.on = False
        return True

    def hold_again(self) -> None:
        """Room for the next try; BudgetExceeded when there is none."""
        if self.asked:
            waiting.here(self._reserve_again)

    def _reserve_again(self) -> None:
        self.reserve(self.asked, new_id(), fixed=True)

    # --- after the call: one of these, once ---------------------------------------------------------------------------

    def settle(self, reading: Reading, status: str = "ok", error: BaseException | None = None) -> None:
        """Price and record what the answer said; the second and any later end of a call is ignored."""
        if not self._end():
            return
        busy.on = True
        try:
            self._leave_place()
            if self.call.region and not reading.region:
                charging.place(self, reading)
            if reading.quantities or error is None:
                amounts = charging.amounts_for(self, reading)
            else:
                amounts = Amounts.of(charging.cost_at_most(self))
            charge = charging.charge_for(self, reading, amounts, status, error)
            self._pay(charge, reading)
            telling.keep(self, charge)
            telling.learn(self, reading)
            telling.tell(self, charge, reading, error)
        except Exception as failure:  # counted; the answer is the user's whatever happens to its price
            self.give_up()
            swallow("metering.settle", failure)
        finally:
            busy.on = False
            if self.guest is not None:
                self.guest.release()

    def settle_estimated(self, output_text: str, chunks: int, reading: Reading, status: str) -> None:
        """Settle a stream that ended without usage: counted with bounds and marked, never zero and never released.

        Args:
            output_text: the text that arrived. chunks: pieces that it came in; each is at least one token.
            reading: whatever else was read (model, response id, and perhaps the counts of the input). status: `ok` or `abandoned`.
        """
        book, complete = self.engines.book, status == "ok"
        try:
            estimates.estimate(book, self.call, output_text, chunks, reading, complete=complete)
        except Exception as failure:  # without an estimate the charge is recorded with unknown cost
            swallow("metering.estimate", failure)
        self.settle(reading, status)

    def settle_asked(self, output_text: str, chunks: int, reading: Reading, status: str = "ok") -> None:
        """Settle an answer without usage by what the request says is billed, such as the characters that are spoken.

        Args:
            output_text, chunks, status: as in `settle_estimated`. reading: whatever was read of the answer.
        """
        try:
            estimates.asked(self.engines.book, self.call, output_text, chunks, reading, self.wall)
        except Exception as failure:  # recorded with unknown cost
            swallow("metering.asked", failure)
        self.settle(reading, status)

    def settle_partly(self, output_text: str, chunks: int, reading: Reading) -> None:
        """Settle a stream that ended early and had told its usage so far: no less was billed, perhaps up to the output limit.

        Args:
            output_text, chunks: as in `settle_estimated`. reading: the usage so far, which may lag behind the text.
        """
        estimates.partly(self.engines.book, self.call, output_text, chunks, reading)
        self.settle(reading, "abandoned")

    def fail(self, error: BaseException, *, refused: bool = False) -> None:
        """The call raised. Refused or provably not sent: release. Anything else may have been billed: keep the bound."""
        self.leave()
        # The refusal of a budget comes before the next of several tries.
        if refused or isinstance(error, BudgetExceeded) or _was_refused(error):
            self.release(error)
        else:
            self.settle(Reading(), "error", error)

    def release(self, error: BaseException) -> None:
        """The call failed, with proof that nothing is billed: give back what was held, and record no charge."""
        if not self._end():
            return
        busy.on = True
        try:
            self._leave_place()
            if self.reservation is not None:
                self.engines.guard.release(self.reservation)
                self.reservation = None
            charge = charging.charge_for(self, Reading(), Amounts.of(Cost(Decimal(0), basis="free")), "error", error)
            telling.tell(self, charge, Reading(), error)
        except Exception as failure:  # the user's own exception goes on unchanged
            self.give_up()
            swallow("metering.release", failure)
        finally:
            busy.on = False
            if self.guest is not None:
                self.guest.release()

    def give_up(self) -> None:
        """The last resort, where what ends a call has failed itself: nothing of it stays open. What is held is kept as spent, since the
        call was made, and a span ends with what it has."""
        self._once.clear()
        reservation, self.reservation = self.reservation, None
        steps = [self.leave, self._leave_place]
        if reservation is not None:
            steps.append(partial(self.engines.guard.settle, reservation, {}))
        if self.span is not None:
            steps.append(partial(end_at_least, self.span))
        if self.guest is not None:
            steps.append(self.guest.release)
        for step in steps:
            try:
                step()
            except Exception as failure:  # the others are done all the same
                swallow("metering.give_up", failure)

    def _end(self) -> bool:
        try:
            self._once.pop()  # atomic: of two ends (a finalizer and a close, say) only one gets it
        except IndexError:
            return False
        return True

    def _leave_place(self) -> None:
        place, self.place = self.place, None
        try:
            self.engines.presence.end(place)
        except Exception as failure:  # it is shown as in flight for longer than it is
            swallow("metering.presence", failure)

    def _pay(self, charge: Charge, reading: Reading) -> None:
        if self.reservation is None and not self.budgets:
            return
        reservation, self.reservation = self.reservation, None
        try:
            actual = self._actual(charge, reading, reservation)
            if reservation is None:
                self.engines.guard.post(self.budgets, actual, id=charge.id, at=charge.at)
            else:
                self.engines.guard.settle(reservation, actual)
        except Exception as failure:  # the hold stays and expires as spent: never too little
            swallow("metering.budget_settle", failure)

    def _actual(self, charge: Charge, reading: Reading, reservation: Reservation | None) -> dict[str, int]:
        """A charge in budget units; nothing where we fail to tell: then it has cost what was held."""
        try:
            if reading.estimated:
                return units.within(units.soundly(charge, reading), units.actual_amounts(charge), reservation)
            if reservation is not None and charge.amount is not None and reservation.unit == charge.currency:
                return {charge.currency: charge.amount}  # nobody asks for anything else
            return units.actual_amounts(charge)
        except Exception as failure:  # never too little
            swallow("metering.amounts", failure)
            return {}


def _was_refused(error: BaseException) -> bool:
    """True with proof that the provider billed nothing: it answered with an error status, or nothing was sent."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status >= 400
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__name__ in _NOT_SENT:
            return True
        seen = seen.__cause__
    return False


def ending(place: str, invocation: Invocation, function: Callable[..., Any], *args: Any) -> None:
    """Call what ends a call; where it fails, the failure is counted and the call given up, so that nothing of it stays open."""
    try:
        function(*args)
    except Exception as failure:  # the answer, or the error, is the user's as it is
        invocation.give_up()
        swallow(f"integrations.{place}", failure)
