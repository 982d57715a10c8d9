"""What a budget says: limits, a window, and what happens at the limit. Checked completely when it is made."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from aifinops.budgets.actions import ACTIONS, Action, Ask, Chain, Clamp, Cut, Downgrade, parse_action
from aifinops.budgets.stores.base import MAX_AMOUNT, Node, node_key
from aifinops.charges import new_id
from aifinops.clock import to_datetime, to_ns
from aifinops.errors import ConfigurationError
from aifinops.meters import GROUPS, METERS, resolve_unit
from aifinops.money import NANO, SYMBOLS, decimal, format_money
from aifinops.tags import Tags, make_tags

if TYPE_CHECKING:
    from aifinops.errors import BudgetExceeded

__all__ = [
    "MICRO",
    "PARTS",
    "ActiveBudget",
    "Budget",
    "Limit",
    "LimitLike",
    "OnExceed",
    "OnStoreDown",
    "Unknown",
    "Window",
    "WindowKind",
    "exact",
    "is_currency",
    "make_node",
    "parse_limit",
    "seconds_of",
    "to_units",
    "unit_scale",
]

MICRO = 1_000_000
"""Meters are counted in millionths of their unit."""

OnExceed = Literal["raise", "throttle", "warn"] | Action | Chain | Callable[["BudgetExceeded"], str]
"""What happens at the limit; a callable is given the error that would be raised and returns `"raise"`, `"throttle"` or `"allow"`."""

OnStoreDown = Literal["deny", "allow"]
MAX_WAIT_S = 30.0
"""How long a call waits for room, seconds."""

Unknown = Literal["raise", "reserve", "allow"]
WindowKind = Literal["run", "total", "minute", "hour", "day", "week", "month", "rolling"]
LimitLike = str | int | Decimal | float | Mapping[str, object] | Sequence[object]

PARTS = 24
"""Parts of a rolling window."""

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_LENGTHS = {
    ("s", "sec", "second", "seconds"): 1,
    ("m", "min", "minute", "minutes"): 60,
    ("h", "hour", "hours"): 3600,
    ("d", "day", "days"): 86_400,
}
_SPAN_MOST = 366 * 86_400
_WAIT_MOST = 31 * 86_400
_ACTIONS = ("raise", "throttle", "warn")
_FORMS = 'write "$5", "5 USD", "2M tokens", "1.5k requests", "200 gpu_hours", or {"USD": 5, "tokens": "2M"}'
# Our own, for enough digits; without traps, so that an absurd exponent becomes an infinity or a zero, to be refused.
_EXACT = Context(prec=100, traps=[])
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_NUMBER = r"(?P<number>(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?:\s*(?P<scale>[kKmMbBtT])(?![\w-]))?"
_AMOUNT = re.compile(rf"^(?P<sign>[+-]?)\s*(?:(?P<symbol>[$€£¥])\s*(?P<inner>[+-]?))?\s*{_NUMBER}\s*(?P<unit>\S.*)?$")
_CODE_FIRST = re.compile(rf"^(?P<unit>[A-Za-z]{{3}})\s+(?P<sign>[+-]?)\s*{_NUMBER}$")
_NAME = re.compile(r"^\w[\w .:/@-]{0,127}$")
_MAX_SOFT = 10  # ten times the limit: a budget that only warns may be far over it
_MOST_SHOWN = 80  # characters of a value in a message
# ISO 4217, https://www.iso.org/iso-4217-currency-codes.html, without funds, metals and test codes.
_ISO_4217 = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY
COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR
ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK
MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF
SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU
UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
"""
_CURRENCIES = frozenset(_ISO_4217.split())


# --- limits --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limit:
    """So much of one unit.

    Attributes:
        unit: ISO 4217 currency code, meter, or group of meters (`tokens`).
        amount: nano-units (1e-9) of a currency, millionths of a meter; 0 refuses whatever costs anything.
    """

    unit: str
    amount: int

    @property
    def quantity(self) -> Decimal:
        """The amount as people say it: dollars, tokens, seconds."""
        return to_units(self.unit, self.amount)

    def __str__(self) -> str:
        quantity = self.quantity
        return (
            format_money(quantity, self.unit)
            if is_currency(self.unit)
            else f"{_EXACT.normalize(quantity):,f} {self.unit}"
        )


def is_currency(unit: str) -> bool:
    """True for a currency code, False for a meter or a group of meters."""
    return unit not in METERS and unit not in GROUPS


def unit_scale(unit: str) -> int:
    """How many integer steps one unit has: 10^9 for a currency, 10^6 for a meter."""
    return NANO if is_currency(unit) else MICRO


def to_units(unit: str, amount: int) -> Decimal:
    """Integer steps back to what people say, exactly."""
    return _EXACT.scaleb(Decimal(amount), -9 if is_currency(unit) else -6) if amount else Decimal(0)


def exact(quantity: Decimal) -> str:
    """The shortest text that is that quantity, without an exponent: for records."""
    text = f"{quantity:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_limit(limit: LimitLike | Limit) -> tuple[Limit, ...]:
    """Limits as typed -> limits in integers; every one of them holds.

    Args:
        limit: `"$5"`, `"5 USD"`, `"2M tokens"`, `"1.5k requests"`, `"200 gpu_hours"`; a number is US dollars (a float is read
            as it is printed); `{"USD": 5, "tokens": "2M"}` or a list for several. `k`, `M`, `B` and `T` are 10^3 to 10^12.

    Raises:
        ConfigurationError: for what is negative, no number, unknown or too large; it names the value and what to type.
    """
    if isinstance(limit, Mapping):
        found = [_entry(unit, value) for unit, value in limit.items()]
    elif isinstance(limit, Sequence) and not isinstance(limit, (str, bytes)):
        found = [_one(item) for item in limit]
    else:
        found = [_one(limit)]
    if not found:
        raise ConfigurationError(f"budget limit {limit!r} is empty; {_FORMS}")
    twice = [item.unit for index, item in enumerate(found) if item.unit in {other.unit for other in found[:index]}]
    if twice:
        raise ConfigurationError(f"budget limit {limit!r} has {twice[0]} twice; give each unit one limit")
    return tuple(found)


def _one(value: object) -> Limit:
    if isinstance(value, Limit):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (int, float, Decimal)):
        return _limit(decimal(value, "budget limit"), "USD", value)
    raise ConfigurationError(f"budget limit {value!r} is a {type(value).__name__}; {_FORMS}")


def _text(text: str) -> Limit:
    found = _AMOUNT.match(text.strip()) or _CODE_FIRST.match(text.strip())
    if found is None:
        raise ConfigurationError(f"budget limit {text!r} is not understood; {_FORMS}")
    parts = found.groupdict()
    symbol, unit = parts.get("symbol"), parts["unit"]
    if symbol and unit:
        raise ConfigurationError(f"budget limit {text!r} has two units, {symbol!r} and {unit!r}; {_FORMS}")
    if not symbol and not unit:
        raise ConfigurationError(
            f'budget limit {text!r} has no unit; write "${text.strip()}" or "{text.strip()} tokens"'
        )
    return _limit(_number(parts), symbol or unit or "", text)


def _entry(unit: object, value: object) -> Limit:
    if not isinstance(unit, str):
        raise ConfigurationError(f"budget limit has the unit {unit!r}; {_FORMS}")
    place = f"{unit}={value!r}"
    if not isinstance(value, str):
        if not isinstance(value, (int, float, Decimal)):
            raise ConfigurationError(f"budget limit {place} is a {type(value).__name__}; {_FORMS}")
        return _limit(decimal(value, f"budget limit {unit}"), unit, value)
    found = _AMOUNT.match(value.strip())
    if found is None or found["unit"] or found["symbol"]:
        raise ConfigurationError(f'budget limit {place} must be a number such as 5 or "2M"; the unit is the key')
    return _limit(_number(found.groupdict()), unit, value)


def _number(parts: Mapping[str, str | None]) -> Decimal:
    digits = (parts["number"] or "").replace("_", "").replace(",", "")
    number = _EXACT.multiply(_EXACT.create_decimal(digits), Decimal(_SCALES[(parts["scale"] or "").lower()]))
    return -number if "-" in (parts["sign"], parts.get("inner")) else number


def _limit(amount: Decimal, unit: str, typed: object) -> Limit:
    name, factor = _unit(unit, typed)
    if amount < 0:
        raise ConfigurationError(
            f"budget limit {_shown(typed)} is negative; the least is 0, which refuses every call that costs"
        )
    if amount > MAX_AMOUNT or (exact := _EXACT.multiply(amount, Decimal(factor * unit_scale(name)))) > MAX_AMOUNT:
        most = to_units(name, MAX_AMOUNT).to_integral_value(ROUND_FLOOR)
        raise ConfigurationError(f"budget limit {_shown(typed)} is too large; the most is {most:,f} {name}")
    steps = int(exact.to_integral_value(ROUND_FLOOR))  # a limit is never stored above what was typed
    if amount and not steps:
        raise ConfigurationError(
            f"budget limit {_shown(typed)} is less than the smallest step, {to_units(name, 1):f} {name}"
        )
    return Limit(name, steps)


def _shown(typed: object) -> str:
    # Python refuses to print an int of thousands of digits; a Decimal has no such limit.
    text = str(Decimal(typed)) if isinstance(typed, int) else repr(typed)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _unit(unit: str, typed: object) -> tuple[str, int]:
    text = unit.strip()
    code = SYMBOLS.get(text, text.upper())
    if code in _CURRENCIES:
        return code, 1
    try:
        return resolve_unit(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"budget limit {_shown(typed)}: {error}") from None


# --- windows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which a limit holds.

    Attributes:
        kind: `run` (one block or object), `total`, a calendar unit, or `rolling`: the time before every moment.
        tz: IANA time zone of the calendar. A day lasts from one local midnight to the next: 23 or 25 hours when clocks change.
        first: day on which a week starts, 0 is Monday.
        span: of a rolling window, seconds. It is counted in `PARTS` parts, the oldest of them whole although it is over in part, so that
            no time of that length ever sees more than the limit. Measured at a steady load, 95.5 % of the limit can be used.
    """

    kind: WindowKind = "run"
    tz: str = "UTC"
    first: int = 0
    span: int = 0

    @classmethod
    def parse(cls, per: str, tz: str = "UTC") -> Window:
        """`"day"`, `"week from sunday"`, `"rolling 24h"`, `"rolling 90 min"`.

        Raises:
            ConfigurationError: for anything else; it says what to type.
        """
        _zone(tz)
        words = per.lower().split() if isinstance(per, str) else []
        if words[:1] == ["rolling"]:
            return cls("rolling", tz, span=_span(per, "".join(words[1:])))
        if words[:2] == ["week", "from"] and len(words) == 3 and words[2] in _DAYS:
            return cls("week", tz, _DAYS.index(words[2]))
        kinds = get_args(WindowKind)
        if per in kinds:
            return cls(cast("WindowKind", per), tz)
        near = _nearest(per, kinds)
        examples = '"week from sunday", "rolling 24h"'
        raise ConfigurationError(
            f"budget per={per!r} is no window.{near} Use one of {', '.join(kinds[:-1])}, {examples}."
        )

    @property
    def part(self) -> int:
        """Length of a part of a rolling window, nanoseconds."""
        return self.span * NANO // PARTS

    def bounds(self, at_ns: int) -> tuple[int, int] | None:
        """Start and end of the window, or of the part of a rolling one, that holds `at_ns`; None for one that never ends.

        Windows of one kind and zone follow each other without gap or overlap. Hours and minutes are counted from local
        midnight, so that they do so in zones that shift by half an hour, too.

        Args:
            at_ns: nanoseconds since the epoch, as are both results.
        """
        if self.kind in ("run", "total"):
            return None
        if self.kind == "rolling":
            start = at_ns // self.part * self.part
            return start, start + self.part
        zone = _zone(self.tz)
        day = self.kind if self.kind in ("week", "month") else "day"
        first = _first_day(to_datetime(at_ns).astimezone(zone).date(), day, self.first)
        start, end = _midnight(first, zone), _midnight(_next(first, day), zone)
        if at_ns >= end:
            # Clocks were put back across midnight (as in St. John's until 2011): that date was over once already.
            first = _next(first, day)
            start, end = end, _midnight(_next(first, day), zone)
        step = {"minute": 60 * NANO, "hour": 3600 * NANO}.get(self.kind)
        if step is None:
            return start, end
        start += (at_ns - start) // step * step
        return start, min(start + step, end)

    def __str__(self) -> str:
        if self.kind == "rolling":
            return f"in any {_length(self.span)}"
        zone = "" if self.tz == "UTC" or self.kind in ("run", "total") else f" ({self.tz})"
        start = f" from {_DAYS[self.first].capitalize()}" if self.first else ""
        return f"{'in total' if self.kind == 'total' else f'per {self.kind}'}{start}{zone}"


def seconds_of(text: str, place: str) -> int:
    """`30m`, `1h`, `2 days` -> seconds.

    Args:
        place: where it was typed, for the message.

    Raises:
        ConfigurationError: for what is no such length, or none of time.
    """
    found = _seconds("".join(text.lower().split()))
    if not found:
        raise ConfigurationError(f"{place} {text!r} is no length of time; write one such as 30m, 1h or 2d")
    return found


def _seconds(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([a-z]+)", text)
    unit = next((seconds for names, seconds in _LENGTHS.items() if found and found[2] in names), 0)
    return int(found[1]) * unit if found else 0


def _span(per: str, text: str) -> int:
    span = _seconds(text)
    if not PARTS <= span <= _SPAN_MOST:
        raise ConfigurationError(
            f'budget per={per!r} must be such as "rolling 24h", "rolling 90 min" or "rolling 30 days", of {PARTS} seconds to 366 days'
        )
    return span


def _length(span: int) -> str:
    # 24 hours rather than 1 days.
    names, seconds = next(item for item in reversed(_LENGTHS.items()) if span % item[1] == 0 and span > item[1])
    return f"{span // seconds} {names[-1]}"


def _first_day(day: date, kind: str, first: int) -> date:
    if kind == "week":
        return day - timedelta(days=(day.weekday() - first) % 7)
    return day.replace(day=1) if kind == "month" else day


def _next(first: date, kind: str) -> date:
    if kind == "month":
        return (first.replace(day=28) + timedelta(days=4)).replace(day=1)
    return first + timedelta(days=7 if kind == "week" else 1)


def _midnight(day: date, zone: tzinfo) -> int:
    # fold=0: of two midnights the first; for a midnight that is skipped, the moment at which it is.
    return to_ns(datetime.combine(day, time(), zone).astimezone(UTC))


def _zone(name: object) -> tzinfo:
    if name == "UTC":
        return UTC  # also where there is no time zone database
    from zoneinfo import ZoneInfo

    try:
        if isinstance(name, str) and name:
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, malformed, a directory of the database
        pass
    raise ConfigurationError(
        f'budget tz={name!r} is no time zone; write an IANA name such as "Europe/Berlin" or "UTC" '
        f"(where the system has no time zones: pip install tzdata)"
    )


# --- budgets -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit that holds: what, for how long, for whom, and what happens when it is reached. Make it with `Budget.parse`.

    Attributes:
        limits: all of them hold. window: in what time. name: shared by everybody who uses it; None for this object alone.
        match: only calls with these tags count, for standing budgets.
        on_exceed: `raise`, `throttle` (wait for the next window), `warn`, an `Action`, a callable, or a `Chain` of them.
        soft: ascending shares of the limit that are reported once a window.
        unknown: what to do with a call without a price: `raise`, `reserve` (the dearest rates) or `allow`.
        store: where balances live, as `open_store` takes it or a store; None for the process (without a name) or what is set up.
        max_wait: how long a call waits where what it needs is only held by calls in flight, or with `throttle` for a new window, seconds.
        on_store_down: `deny` or `allow` calls while the store does not answer, or where something of ours fails while the budget decides.
        pace: share of the limit that may be spent ahead of even spending over the window; None for no pace.
    """

    limits: tuple[Limit, ...]
    window: Window = Window()
    name: str | None = None
    match: Tags | None = field(default=None, hash=False)
    on_exceed: OnExceed = "raise"
    soft: tuple[Decimal, ...] = ()
    unknown: Unknown = "raise"
    store: Any = field(default=None, compare=False)
    max_wait: float = MAX_WAIT_S
    on_store_down: OnStoreDown = "deny"
    pace: Decimal | None = None

    @property
    def last_resort(self) -> Any:
        """What happens to a call that nothing has made fit."""
        return self.on_exceed.last if isinstance(self.on_exceed, Chain) else self.on_exceed

    @property
    def tz(self) -> str:
        """Time zone of the window."""
        return self.window.tz

    @classmethod
    def parse(
        cls,
        limit: LimitLike | Limit,
        *,
        per: str | None = None,
        name: str | None = None,
        match: Mapping[str, object] | None = None,
        on_exceed: object = "raise",
        soft: Sequence[float | Decimal | str] = (0.5, 0.8, 1.0),
        unknown: str = "raise",
        tz: str = "UTC",
        store: object = None,
        max_wait: float | None = None,
        on_store_down: str = "deny",
        pace: float | Decimal | str | None = None,
    ) -> Budget:
        """Check everything that was typed, then make the budget.

        Args:
            limit: see `parse_limit`. per: see `Window.parse`; default `total` with a name, else `run`.
            name, match, on_exceed, soft, unknown, tz, store, max_wait, on_store_down, pace: see the attributes and `Window`.

        Raises:
            ConfigurationError: for anything that is wrong; it names the value and what to type instead.
        """
        action = _on_exceed(on_exceed)
        if Ask() in (action, action.last if isinstance(action, Chain) else None) and name is None and store is None:
            raise ConfigurationError(
                'budget on_exceed="ask" needs a name, by which other processes find it (name="search"), or somebody to ask '
                'in this one, such as {"ask": "console"}'
            )
        window = Window.parse(per if per is not None else ("run" if name is None else "total"), tz)
        return cls(
            limits=parse_limit(limit),
            window=window,
            name=_name(name),
            match=None if match is None else make_tags(match),
            on_exceed=action,
            soft=_soft(soft),
            unknown=cast("Unknown", _one_of("unknown", unknown, get_args(Unknown))),
            store=store,
            max_wait=_max_wait(max_wait),
            on_store_down=cast("OnStoreDown", _one_of("on_store_down", on_store_down, get_args(OnStoreDown))),
            pace=_pace(pace, window),
        )

    def describe(self) -> str:
        """For people: `search: $50.00 per day`."""
        text = f"{' and '.join(map(str, self.limits))} {self.window}"
        return f"{self.name}: {text}" if self.name else text


def _name(name: object) -> str | None:
    if name is None or (isinstance(name, str) and _NAME.match(name)):
        return name
    raise ConfigurationError(
        f"budget name={name!r} must be text of 1 to 128 letters, digits, spaces or _.:/@- that starts with a letter or digit"
    )


def _on_exceed(action: object) -> OnExceed:
    return _chain(action) if isinstance(action, (list, tuple)) else _one_action(action)


def _chain(actions: Sequence[object]) -> OnExceed:
    found = [_one_action(action) for action in actions]
    smaller = tuple(action for action in found if isinstance(action, (Downgrade, Clamp, Cut)))
    rest = [action for action in found if not isinstance(action, (Downgrade, Clamp, Cut))]
    if not found or len(rest) > 1 or (rest and found[-1] is not rest[0]):
        raise ConfigurationError(
            f"budget on_exceed={actions!r} is no order of actions: first those that make a call smaller (downgrade, clamp, cut), then at most "
            f'one of "raise", "throttle", "warn", "ask" and a callable, such as [{{"downgrade": {{"gpt-5": "gpt-5-mini"}}}}, "clamp", "warn"]'
        )
    last = rest[0] if rest else "raise"
    if not smaller:
        return last
    return smaller[0] if len(smaller) == 1 and last == "raise" else Chain(smaller, last)


def _one_action(action: object) -> OnExceed:
    if action in _ACTIONS if isinstance(action, str) else callable(action):
        return cast("OnExceed", action)
    found = parse_action(action)
    if found is not None:
        return found
    near = _nearest(action, (*_ACTIONS, *ACTIONS)) if isinstance(action, str) else ""
    raise ConfigurationError(
        f'budget on_exceed={action!r} is no action.{near} Please use "raise", "throttle", "warn", "clamp", "cut", "ask", '
        f'{{"downgrade": {{"gpt-5": "gpt-5-mini"}}}}, a callable that returns "raise", "throttle" or "allow", or a list of these.'
    )


def _soft(shares: object) -> tuple[Decimal, ...]:
    if isinstance(shares, (str, bytes, Mapping)) or not isinstance(shares, Iterable):
        raise ConfigurationError(f"budget soft={shares!r} must be a list of shares such as (0.5, 0.8, 1.0)")
    found = [decimal(share, "budget soft share") for share in shares]
    for share in found:
        if not 0 < share <= _MAX_SOFT:
            raise ConfigurationError(f"budget soft share {share} must be above 0 and at most {_MAX_SOFT}; 0.8 is 80 %")
    return tuple(sorted(set(found)))


def _one_of(what: str, choice: object, choices: Sequence[str]) -> str:
    if choice not in choices:
        near = _nearest(choice, choices) if isinstance(choice, str) else ""
        raise ConfigurationError(f"budget {what}={choice!r} is no choice.{near} Use one of {', '.join(choices)}.")
    return cast("str", choice)


def _max_wait(seconds: object) -> float:
    if seconds is None:
        return MAX_WAIT_S
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _WAIT_MOST:
        raise ConfigurationError(f"budget max_wait={seconds!r} must be seconds from 0 (never waits) to {_WAIT_MOST}")
    return float(seconds)


def _pace(pace: object, window: Window) -> Decimal | None:
    if pace is None:
        return None
    found = (
        None if isinstance(pace, bool) or not isinstance(pace, (int, float, str, Decimal)) else decimal(pace, "pace")
    )
    if found is None or not 0 <= found < 1:
        raise ConfigurationError(
            f"budget pace={pace!r} must be the share of the limit that may be ahead of even spending, from 0 to below 1; write pace=0.1"
        )
    if window.kind in ("run", "total", "rolling"):
        raise ConfigurationError(
            f'budget pace={pace!r} spreads the limit over a window that ends; write per="day" or another one of the calendar'
        )
    return found


def _nearest(word: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def make_node(
    key: str, window: Window, start: int, until: int, limit: Limit, marks: tuple[int, ...] = (), *, label: str = ""
) -> Node:
    """The node of one limit in one window, or of the part of a rolling one, that lasts from `start` to `until`."""
    part = window.part
    earlier = range(1, PARTS + 1) if part else ()
    also = tuple(node_key(key, start - number * part, limit.unit) for number in earlier)
    return Node(key, start, limit.unit, limit.amount, until, marks, label, also, until + PARTS * part if part else 0)


class ActiveBudget:
    """A budget in force: its specification and who it is, to which its balances belong.

    Args:
        budget: the specification.
        run_id: identity of a budget that belongs to this object alone; default a new one.

    Attributes:
        key: equal keys share their balances: the name with its window, or the run id.
    """

    __slots__ = ("__weakref__", "_limits", "_nodes", "budget", "key", "run_id", "store", "watcher")

    def __init__(self, budget: Budget, run_id: str | None = None) -> None:
        self.budget = budget
        self.run_id = run_id or new_id()
        self.key = self._key()
        self.watcher: object = None
        """Whoever cleans up after this object; set by the guard."""
        self.store: Any = None
        """Where its balances are; set by the guard."""
        self._limits = budget.limits
        self._nodes: tuple[int, int, tuple[Node, ...]] = (0, 0, ())

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits in force: those of the specification, or what was set by hand in their place."""
        return self._limits

    def set_limits(self, by_hand: Mapping[str, int]) -> None:
        """Have other limits from the next call on: unit -> steps. A unit that is missing has what the specification says."""
        limits = tuple(Limit(one.unit, by_hand.get(one.unit, one.amount)) for one in self.budget.limits)
        if limits != self._limits:
            self._limits = limits
            self._nodes = (0, 0, ())

    def _key(self) -> str:
        # "#" and "|" are in no name, so that none can be mistaken for another.
        budget, window = self.budget, self.budget.window
        if budget.name is None or window.kind == "run":
            return f"#{self.run_id}"
        if window.kind == "total":
            return budget.name
        parts = [budget.name, window.kind]
        parts += [str(window.span)] if window.span else [_DAYS[window.first]] if window.first else []
        return "|".join(parts if window.tz == "UTC" or window.span else [*parts, window.tz])

    @staticmethod
    def parse_key(key: str) -> tuple[str, Window]:
        """Name and window of a key; of a block the name is its run id."""
        if key.startswith("#"):
            return key[1:], Window("run")
        name, *rest = key.split("|")
        if not rest:
            return name, Window("total")
        kind, *rest = rest
        if kind == "rolling":
            return name, Window("rolling", span=int(rest[0]))
        first = _DAYS.index(rest.pop(0)) if rest and rest[0] in _DAYS else 0
        return name, Window(cast("WindowKind", kind), rest[0] if rest else "UTC", first)

    @property
    def label(self) -> str:
        """The name, or what an unnamed budget says."""
        return self.budget.name or self.budget.describe()

    @property
    def shared(self) -> bool:
        """False when the balances can be reached through this object alone."""
        return not self.key.startswith("#")

    def nodes(self, at: int) -> tuple[Node, ...]:
        """One node a limit, in the window that holds `at` (nanoseconds since the epoch)."""
        start, end, nodes = self._nodes
        if start <= at < end:
            return nodes
        start, until = self.budget.window.bounds(at) or (0, 0)
        nodes = tuple(self._node(limit, start, until) for limit in self._limits)
        # One assignment, so that another thread sees the old window or the new one. -2**63: before any time there is.
        self._nodes = (start if until else -(2**63), until or 2**63, nodes)
        return nodes

    def _node(self, limit: Limit, start: int, until: int) -> Node:
        marks = tuple(
            int(_EXACT.multiply(limit.amount, share).to_integral_value(ROUND_CEILING)) for share in self.budget.soft
        )
        return make_node(
            self.key, self.budget.window, start, until, limit, marks if limit.amount else (), label=self.label
        )

    def __repr__(self) -> str:
        return f"ActiveBudget({self.budget.describe()!r}, key={self.key!r})"
