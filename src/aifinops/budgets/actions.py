"""What a budget may do with a call for which it has no room, other than to refuse it: have it changed so that it fits.

The guard leaves with a `Change` in hand. Whoever knows what the call is, and what a smaller one would cost, makes it smaller outside of
the engines and asks again; whoever cannot raises its `error`, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from aifinops.errors import BudgetExceeded, ConfigurationError

__all__ = [
    "ACTIONS",
    "Action",
    "Ask",
    "Chain",
    "Change",
    "Clamp",
    "Cut",
    "Downgrade",
    "parse_action",
    "recast",
    "room_for",
    "with_hint",
]

E = TypeVar("E", bound=BudgetExceeded)

ACTIONS = ("downgrade", "clamp", "cut", "ask")
"""Actions with values of their own, in the words of `on_exceed`."""

LEAST_OUTPUT = 16
"""Output tokens below which an answer is no use; OpenAI's Responses API takes no smaller limit."""

START_OUTPUT = 256
"""Output tokens that a stream holds when it starts, and by which its hold grows."""

_FORMS = {
    "downgrade": 'write {"downgrade": {"gpt-5": "gpt-5-mini", "gpt-5-mini": "gpt-5-nano"}}, model asked for -> model to use instead',
    "clamp": 'write "clamp", or {"clamp": 200} for the fewest output tokens that an answer may be cut down to',
    "cut": 'write "cut"',
    "ask": 'write "ask" (answered by `aifinops approvals`), {"ask": "console"}, {"ask": "https://..."}, {"ask": "file:/a/folder"} or {"ask": function}',
}


@dataclass(frozen=True, slots=True)
class Downgrade:
    """Use a cheaper model.

    Attributes:
        steps: (model asked for, model to use instead); several make a chain. any: True when every model does all that its requests may ask
            for, so that also those with tools, formats and pictures are changed.
    """

    name: ClassVar[str] = "downgrade"
    steps: tuple[tuple[str, str], ...]
    any: bool = False

    def after(self, model: str) -> str | None:
        """The next cheaper model."""
        return next((cheaper for asked, cheaper in self.steps if asked == model), None)


@dataclass(frozen=True, slots=True)
class Clamp:
    """Lower the output limit of the request to what remains buys.

    Attributes:
        least: output tokens below which the call is refused.
    """

    name: ClassVar[str] = "clamp"
    least: int = LEAST_OUTPUT


@dataclass(frozen=True, slots=True)
class Cut:
    """Let a stream begin with a small hold, and end it when there is no room for more of it.

    Attributes:
        step: output tokens that are held at first, and by which the hold grows.
    """

    name: ClassVar[str] = "cut"
    step: int = START_OUTPUT


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask somebody.

    Attributes:
        approver: whom: `console`, an address to which the request is posted, `file:` and a folder, or a function of a `Request` that returns
            True, False, the amount that is approved, or None for one that is answered elsewhere. Empty for nobody but `aifinops approvals`.
    """

    name: ClassVar[str] = "ask"
    approver: str | Callable[[Any], object] = ""


Smaller = Downgrade | Clamp | Cut
Action = Smaller | Ask


@dataclass(frozen=True, slots=True)
class Chain:
    """Several actions in order. A lower limit or a small hold that does not make the call fit is taken back before the next one is tried; a
    cheaper model stays.

    Attributes:
        smaller: ways to make the call smaller; one that is of no use, or not enough, leads to the next. last: what happens to a call that
            they have not made fit: `raise`, `throttle`, `warn`, an `Ask` or a callable.
    """

    name: ClassVar[str] = "chain"
    smaller: tuple[Smaller, ...]
    last: Any = "raise"

    def at(self, past: int) -> Any:
        """The action after so many that were of no use."""
        return self.smaller[past] if past < len(self.smaller) else self.last

    def ends(self, past: int) -> bool:
        """Whether there is none after that one but to raise."""
        return past + 1 >= len(self.smaller) and self.last == "raise"

    @property
    def cut(self) -> Cut | None:
        """The one that a stream may have begun with."""
        return next((action for action in self.smaller if isinstance(action, Cut)), None)


_PLAIN: Mapping[str, Action] = {"clamp": Clamp(), "cut": Cut(), "ask": Ask()}


def parse_action(action: object) -> Action | None:
    """An action as it was typed; None for what is none of `ACTIONS`.

    Raises:
        ConfigurationError: for an action with something wrong in it; it says what to type.
    """
    if isinstance(action, (Downgrade, Clamp, Cut, Ask)):
        return action
    if not isinstance(action, Mapping):
        return _PLAIN.get(action) if isinstance(action, str) else None
    names = [name for name in ACTIONS if name in action]
    if len(names) != 1 or not set(action) <= {names[0], *(("any",) if names[0] == "downgrade" else ())}:
        raise _wrong(action, names or ACTIONS[:1])
    value = action[names[0]]
    if names[0] == "downgrade":
        return Downgrade(_steps(action, value), _any(action))
    if names[0] == "clamp" and type(value) is int and value > 0:
        return Clamp(value)
    if names[0] == "ask" and (callable(value) or _is_approver(value)):
        return Ask(value)
    raise _wrong(action, names)


def _is_approver(value: object) -> bool:
    if not isinstance(value, str):
        return False
    return value == "console" or (
        value.startswith(("https://", "http://", "file:")) and value.rstrip("/:") not in _BARE
    )


_BARE = frozenset({"https", "http", "file"})


def _steps(action: Mapping[object, object], value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not value:
        raise _wrong(action, ["downgrade"])
    for asked, cheaper in value.items():
        if not (isinstance(asked, str) and isinstance(cheaper, str) and asked and cheaper):
            raise _wrong(action, ["downgrade"])
        seen, model = {asked}, value.get(asked)
        while model is not None:
            if model in seen:
                raise ConfigurationError(
                    f"budget on_exceed={action!r} goes round in a circle at {model!r}; end each chain at its cheapest model"
                )
            seen.add(model)
            model = value.get(model)
    return tuple(value.items())


def _any(action: Mapping[object, object]) -> bool:
    value = action.get("any", False)
    if not isinstance(value, bool):
        raise ConfigurationError(
            f'budget on_exceed={action!r}: "any" must be True or False; True changes requests with tools, formats and pictures, too'
        )
    return value


def _wrong(action: object, names: Iterable[str]) -> ConfigurationError:
    return ConfigurationError(
        f"budget on_exceed={action!r} is not understood; {'; '.join(_FORMS[name] for name in names)}"
    )


class Change(BudgetExceeded):
    """There is no room for this call, and perhaps for a smaller one. Only `metering` sees it.

    Attributes:
        error: what to raise when it cannot be made smaller. action: what to do. room: unit -> what is left of it, in integers as in `reserve`.
        place: the store, the node and what was asked of it. more: True when the budget has another action for a call that this one does
            not make fit.
    """

    def __init__(
        self,
        error: BudgetExceeded,
        action: Smaller,
        room: Mapping[str, int],
        place: tuple[Any, Any, int],
        *,
        more: bool = False,
    ) -> None:
        Exception.__init__(self)
        self.__dict__.update(vars(error))
        self.error = error
        self.action = action
        self.room = dict(room)
        self.place = place
        self.more = more


def recast(kind: type[E], error: BudgetExceeded, hint: str = "") -> E:
    """The same refusal as an error of another kind, with one more sentence."""
    made = kind.__new__(kind)
    made.__dict__.update(vars(error), hint=f"{error.hint} {hint}".strip())
    return made


def with_hint(error: BudgetExceeded, hint: str) -> BudgetExceeded:
    """The error with one more sentence in its message."""
    error.hint = f"{error.hint} {hint}".strip()
    return error


def room_for(room: Mapping[str, int], none: Mapping[str, int], full: Mapping[str, int], output: int) -> int | None:
    """The output tokens that what is left buys, fewer than were asked for; None where their number is no matter.

    Args:
        room: see `Change`. none, full: what the call takes at most without output, and with `output` tokens of it.
    """
    found = output - 1
    for unit, left in room.items():
        fixed, growth = none.get(unit, 0), full.get(unit, 0) - none.get(unit, 0)
        if growth <= 0:
            return None
        found = min(found, (left - fixed) * output // growth)
    return found
