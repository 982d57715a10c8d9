"""Every exception that `aifinops` raises, and the one place where its own failures go.

    AIFinOpsError
    ├─ ConfigurationError          says what to type
    ├─ PricingError
    │  ├─ UnknownModel             names the lists asked and the nearest names
    │  └─ ImpossibleUsage          names both numbers
    ├─ BudgetExceeded
    │  ├─ ApprovalDenied
    │  ├─ ApprovalPending
    │  ├─ RunStopped               a run on GPUs has ended at a step, before its limit
    │  ├─ SlotUnavailable          there were no GPUs of the team's quota in time
    │  ├─ StreamCut                a stream was ended where there was no room for more of it
    │  ├─ StoreUnavailable         nobody knows whether there is room
    │  │  └─ DecisionFailed        since something of ours has failed
    │  └─ UnpricedCall             also an UnknownModel: a money budget met a call that has no price
    └─ StoreError                  wraps the driver's error
       └─ StoreReset               the store has lost what it had confirmed

Only `BudgetExceeded` (by policy) and `ConfigurationError` (at set-up) ever reach a metered call. Everything else that
goes wrong inside is given to `swallow`, which counts it and logs it once per place; where it keeps a budget from deciding, that refuses.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

__all__ = [
    "AIFinOpsError",
    "ApprovalDenied",
    "ApprovalPending",
    "BudgetExceeded",
    "ConfigurationError",
    "DecisionFailed",
    "ImpossibleUsage",
    "PricingError",
    "RunStopped",
    "SlotUnavailable",
    "StoreError",
    "StoreReset",
    "StoreUnavailable",
    "StreamCut",
    "UnknownModel",
    "UnpricedCall",
    "failures",
    "reraise_failures",
    "swallow",
]


class AIFinOpsError(Exception):
    """Base of everything that this package raises on purpose."""


class ConfigurationError(AIFinOpsError, ValueError):
    """A setting, argument or file is wrong. The message names the value, the place and what to type instead."""


class PricingError(AIFinOpsError):
    """A price could not be found or applied."""


class UnknownModel(PricingError, LookupError):
    """No price list knows this model.

    Attributes:
        provider: the provider asked, or None when none was given.
        model: the name as it was given.
        lists: the ids of the price lists that were asked, in order.
        nearest: known names that look like it; never used as a guess.
    """

    def __init__(
        self, model: str, *, provider: str | None = None, lists: Sequence[str] = (), nearest: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.provider = provider
        self.lists = tuple(lists)
        self.nearest = tuple(nearest)
        super().__init__(self._text())

    def _text(self) -> str:
        where = f" of provider {self.provider!r}" if self.provider else ""
        asked = f" (asked: {', '.join(self.lists)})" if self.lists else ""
        near = f" Nearest names: {', '.join(self.nearest)}." if self.nearest else ""
        return f"no price for model {self.model!r}{where}{asked}.{near}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_unknown_model, (self.model, self.provider, self.lists, self.nearest))


def _unknown_model(model: str, provider: str | None, lists: Sequence[str], nearest: Sequence[str]) -> UnknownModel:
    return UnknownModel(model, provider=provider, lists=lists, nearest=nearest)


class ImpossibleUsage(PricingError, ValueError):
    """Reported counts contradict each other (a part above its whole, a negative, a NaN). Names both numbers."""


class BudgetExceeded(AIFinOpsError):
    """A budget refused a call before it was sent.

    It is no subclass of any provider's error, so that retry wrappers do not swallow it, and it can be pickled.

    Attributes:
        budget: the name of the budget (or a description of an unnamed one).
        unit: currency code, or the meter that ran out.
        limit, spent, reserved, asked: in that unit, as Decimal.
        resets_at: when the window ends (aware, UTC), or None when it never does.
        decision_id: the id under which the decision was taken.
        transient: True when only money held by calls in flight stood in the way.
    """

    def __init__(
        self,
        budget: str,
        *,
        unit: str = "USD",
        limit: Decimal = Decimal(0),
        spent: Decimal = Decimal(0),
        reserved: Decimal = Decimal(0),
        asked: Decimal = Decimal(0),
        resets_at: datetime | None = None,
        decision_id: str = "",
        transient: bool = False,
        hint: str = "",
    ) -> None:
        self.budget = budget
        self.unit = unit
        self.limit = limit
        self.spent = spent
        self.reserved = reserved
        self.asked = asked
        self.resets_at = resets_at
        self.decision_id = decision_id
        self.transient = transient
        self.hint = hint
        # Not super(): in UnpricedCall the next class is UnknownModel, which would take the text for the name of a model.
        Exception.__init__(self)

    @property
    def args(self) -> tuple[str]:  # type: ignore[override]
        """The text alone. It is made when it is read: a program that goes on asking is refused often, and reads it seldom."""
        return (self._text(),)

    def __str__(self) -> str:
        return self._text()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._text()!r})"

    @property
    def remaining(self) -> Decimal:
        """What is neither spent nor held, in `unit`; never below zero."""
        return max(Decimal(0), self.limit - self.spent - self.reserved)

    def _text(self) -> str:
        held = f", {self.reserved:f} held by calls in flight" if self.reserved else ""
        resets = f" It resets at {self.resets_at.isoformat()}." if self.resets_at else ""
        hint = f" {self.hint}" if self.hint else ""
        return (
            f"budget {self.budget!r}: {self.spent:f} of {self.limit:f} {self.unit} spent{held}; "
            f"this call may cost up to {self.asked:f}. Nothing was sent.{resets}{hint}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.budget, _state(self)))


def _state(error: BudgetExceeded) -> dict[str, object]:
    return {key: value for key, value in vars(error).items() if key != "budget"}


def _rebuild(cls: type[BudgetExceeded], budget: str, state: Mapping[str, object]) -> BudgetExceeded:
    error = cls.__new__(cls)
    error.__dict__.update(state, budget=budget)
    return error


class ApprovalDenied(BudgetExceeded):
    """Somebody was asked and said no."""


class ApprovalPending(BudgetExceeded):
    """Somebody was asked and has not answered in time."""


class SlotUnavailable(BudgetExceeded):
    """There were no GPUs of a team's quota in the time that was given; `hint` says what stood in the way."""

    def _text(self) -> str:
        return (
            f"no {self.asked:f} GPUs for {self.budget}: {self.reserved:f} of {self.limit:f} are held. Nothing was started. {self.hint}"
        ).rstrip()


class StoreUnavailable(BudgetExceeded):
    """The store of a budget does not answer, so that nobody knows whether there is room; the driver's error is the `__cause__`."""

    def _text(self) -> str:
        return f"budget {self.budget!r} refused the call: its store does not answer. Nothing was sent. {self.hint}".rstrip()


class DecisionFailed(StoreUnavailable):
    """Something of ours has failed, so that nobody knows whether a budget has room; what has failed is the `__cause__`."""

    def _text(self) -> str:
        return f"budget {self.budget!r} refused the call: aifinops has failed to find out whether there is room. Nothing was sent. {self.hint}".rstrip()


class StreamCut(BudgetExceeded):
    """A budget with `on_exceed="cut"` has ended a stream; what came before is paid for, and was handed out. `asked` is what more was wanted."""

    def _text(self) -> str:
        held = f", {self.reserved:f} held by calls in flight" if self.reserved else ""
        return (
            f"budget {self.budget!r}: {self.spent:f} of {self.limit:f} {self.unit} spent{held}; the stream was ended, since there was "
            f"no room for {self.asked:f} more. {self.hint}"
        ).rstrip()


class RunStopped(BudgetExceeded):
    """A run that pays for its GPUs as it goes has ended at a step: what is left of the budget is no more than a step and a checkpoint take.

    Attributes:
        step: at whose end, counted from 1.
    """

    step: int

    def __init__(self, budget: str, *, step: int = 0, **figures: Any) -> None:
        self.step = step
        super().__init__(budget, **figures)

    def _text(self) -> str:
        resets = f" It resets at {self.resets_at.isoformat()}." if self.resets_at else ""
        return (
            f"budget {self.budget!r}: {self.spent:f} of {self.limit:f} {self.unit} spent; the run was ended after step {self.step}, while there "
            f"was still enough to save it.{resets} {self.hint}"
        ).rstrip()


class UnpricedCall(BudgetExceeded, UnknownModel):
    """A money budget with `unknown="raise"` met a call whose price is unknown."""

    def __init__(
        self,
        budget: str,
        model: str,
        *,
        provider: str | None = None,
        lists: Sequence[str] = (),
        nearest: Sequence[str] = (),
        unit: str = "USD",
        limit: Decimal = Decimal(0),
    ) -> None:
        self.model, self.provider = model, provider
        self.lists, self.nearest = tuple(lists), tuple(nearest)
        BudgetExceeded.__init__(self, budget, unit=unit, limit=limit)

    def _text(self) -> str:
        # Without a model the price is known, but not in the currency of the budget.
        why = UnknownModel._text(self) if self.model else f"its price is not in {self.unit}."
        return (
            f"budget {self.budget!r} refused the call: {why} Nothing was sent. Add a price "
            f'(aifinops price lists), or use budget(..., unknown="reserve") or unknown="allow".'
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.budget, _state(self)))


class StoreError(AIFinOpsError):
    """A budget store or a ledger failed; the driver's error is its `__cause__`."""


class StoreReset(StoreError):
    """A budget store has lost operations that it had confirmed: it began empty or from an old copy. Told once; nothing was done.

    Whoever keeps a journal posts it again now, under the ids that it had: what the store still knows has no effect a second time.

    Attributes:
        survived: what the store still has of the operations that it had confirmed to this process: row -> how many of its first. A store
            numbers them in one row or in several; of a row that is not named it has none.
        era: the span of time that has ended with it, as the store knows it.
    """

    def __init__(self, message: str, *, survived: Mapping[Hashable, int] | None = None, era: object = None) -> None:
        super().__init__(message)
        self.survived = dict(survived or {})
        self.era = era

    def has(self, row: Hashable, number: int) -> bool:
        """Whether the store still has the operation of this number."""
        return number <= self.survived.get(row, 0)


class _Failures:
    """Counts of our own failures by place, for `aifinops doctor` and for tests."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reraise = False
        self.renew()

    def renew(self) -> None:
        """Take a lock of its own: in a forked child the thread that may have held it is not there."""
        # It may be asked for again by whoever holds it: a finalizer that the garbage collector runs in the middle of `add` may fail too.
        self._lock = threading.RLock()

    def add(self, place: str) -> bool:
        """Count one failure; True when it is the first at this place."""
        with self._lock:
            self.counts[place] += 1
            return self.counts[place] == 1


_failures = _Failures()
os.register_at_fork(after_in_child=lambda: _failures.renew())


def swallow(place: str, error: BaseException, effect: str = "Your call is not affected") -> None:
    """Take an internal failure so that the user's call goes on: count it, log it once per place.

    Args:
        effect: what the log says of the call; something else only where a limit has to hold and the call is refused.

    The log has the frames, which are code. The text of the exception it has only where we or the operating system wrote it: any other
    may repeat what was said in the call.

    Raises:
        BaseException: `error` itself, when `reraise_failures(True)` is in force (our own test suite).
    """
    first = _failures.add(place)
    if _failures.reraise:
        raise error
    if first:
        try:
            _log(place, error, effect)
        except Exception:  # the application's own handler or filter, or no stack left to log with: it is counted
            return


def _log(place: str, error: BaseException, effect: str) -> None:
    import logging  # neither is above: together they take as long as pricing a call, and most programs never need them
    import traceback

    said = f": {error}" if isinstance(error, (AIFinOpsError, OSError)) else ""
    logging.getLogger("aifinops").warning(
        "aifinops: internal failure in %s (%s%s). %s; further ones here are only counted.\n%s",
        place,
        type(error).__name__,
        said,
        effect,
        "".join(traceback.format_tb(error.__traceback__)).rstrip(),
    )


def failures() -> dict[str, int]:
    """Internal failures so far in this process, by place."""
    return dict(_failures.counts)


def reraise_failures(on: bool) -> None:
    """Make `swallow` raise. For test suites of aifinops itself and of integrations written for it."""
    _failures.reraise = on
