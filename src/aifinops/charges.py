"""The facts that the ledger keeps: what one thing cost, and whose it was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aifinops.money import format_money, format_rate, from_nanos, to_nanos
from aifinops.tags import EMPTY, Tags
from aifinops.usage import EMPTY_QUANTITIES, Quantities, Quantity

__all__ = [
    "BASES",
    "LISTED",
    "Amounts",
    "Basis",
    "Charge",
    "Cost",
    "CostLine",
    "make_charge",
    "nanos",
    "new_id",
    "total",
]

LISTED = "aifinops.list"
"""Key beside the provider's usage object: nano-units at list prices, kept only where a contract made the amount another."""

Basis = Literal["reported", "priced", "estimated", "unknown", "free", "committed"]
BASES: tuple[Basis, ...] = ("reported", "priced", "estimated", "unknown", "free", "committed")
"""How an amount came about: told by the provider, usage x price, counted by us with bounds, no price, free, prepaid."""


@dataclass(frozen=True, slots=True)
class CostLine:
    """One meter's share of a cost.

    Attributes:
        meter: meter name. quantity: in the meter's unit. rate: price of `per` units, in the cost's currency.
        amount: quantity x rate / per, exact. note: why this rate (tier, context threshold, cache), may be empty.
    """

    meter: str
    quantity: Quantity
    rate: Decimal
    per: int
    amount: Decimal
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """An amount of money that knows how sure it is and where it comes from.

    Attributes:
        amount: exact Decimal in `currency`; None when the basis is `unknown`. Unknown is never zero.
        currency: ISO 4217.
        basis: one of `BASES`.
        lower, upper: bounds; equal to `amount` unless estimated. `upper` may be known where `amount` is not.
        lines: the parts, which add up to `amount`.
        price_id: list, provider, model and variant of the price, e.g. `genai-prices/openai/gpt-5-mini`.
        as_of: the date on which the list's maintainers last checked or changed that price.
        source: where the price is from (list name and version, a URL, or `provider`).
        model: the canonical model that was matched, or the name that was asked for.
        notes: assumptions made, warnings, nearest names for an unknown model.
        reported: what the provider itself said it cost, kept beside ours.
        list_amount: the same usage at list prices, before negotiated discounts; equal to `amount` without any, None when not known.
        billed_amount: what is charged on to whoever used it: `amount` with the markup of the contract; None without one.
        confidence: of the price, as its list says it (`high`, `low`), empty when it does not. url: the page that it was read from.
    """

    amount: Decimal | None
    currency: str = "USD"
    basis: Basis = "priced"
    lower: Decimal | None = None
    upper: Decimal | None = None
    lines: tuple[CostLine, ...] = field(default_factory=tuple)
    price_id: str | None = None
    as_of: date | None = None
    source: str | None = None
    model: str | None = None
    notes: tuple[str, ...] = ()
    reported: Decimal | None = None
    list_amount: Decimal | None = None
    billed_amount: Decimal | None = None
    confidence: str = ""
    url: str = ""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Whoever prices by the thousand asks for the amount. The lines are worked out when somebody asks for them.
            later = self.__dict__.get("_later") if name == "lines" else None
            if later is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            make, *arguments = later
            found = self.__dict__[name] = make(*arguments)
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def known(self) -> bool:
        """True when there is an amount (exact or estimated)."""
        return self.amount is not None

    def explain(self) -> str:
        """Every rate, tier, source and date that made this number, as text of several lines."""
        head = f"{format_money(self.amount, self.currency)} ({self.basis})"
        if self.model:
            head += f" for {self.model}"
        rows = [head, *map(self._explain_line, self.lines)]
        if self.basis == "estimated" and self.lower is not None and self.upper is not None:
            rows.append(
                f"  between {format_money(self.lower, self.currency)} and {format_money(self.upper, self.currency)}"
            )
        if self.reported is not None:
            rows.append(f"  the provider reported {format_money(self.reported, self.currency)}")
        if self.list_amount is not None and self.list_amount != self.amount:
            rows.append(f"  {format_money(self.list_amount, self.currency)} at list prices")
        if self.billed_amount is not None:
            rows.append(f"  {format_money(self.billed_amount, self.currency)} with markup")
        if self.price_id:
            rows.append(f"  price {self.price_id}" + (f", as of {self.as_of.isoformat()}" if self.as_of else ""))
        if self.source:
            sure = f" (confidence {self.confidence})" if self.confidence else ""
            rows.append(f"  source {self.source}{sure}")
        if self.url:
            rows.append(f"  read from {self.url}")
        rows += [f"  note: {note}" for note in self.notes]
        return "\n".join(rows)

    def _explain_line(self, line: CostLine) -> str:
        note = f"  ({line.note})" if line.note else ""
        return (
            f"  {line.quantity:>12,} {line.meter:<26} x {format_rate(line.rate, self.currency)} per {line.per:,}"
            f" = {format_money(line.amount, self.currency, places=9)}{note}"
        )

    def __str__(self) -> str:
        return f"{format_money(self.amount, self.currency)}{'' if self.basis in ('priced', 'reported') else f' ({self.basis})'}"


class Amounts(NamedTuple):
    """A cost in the integers that the ledger keeps: nano-units, each rounded up, with lines that add up to the amount.

    Attributes:
        amount, lower, upper: nano-units or None. lines: (meter, nano-units).
        as_of: ISO date. currency, basis, price_id, source: as in `Cost`.
        listed: at list prices, where a contract made the amount another; else None.
    """

    amount: int | None
    currency: str
    basis: Basis
    lower: int | None
    upper: int | None
    lines: tuple[tuple[str, int], ...] = ()
    price_id: str | None = None
    as_of: str | None = None
    source: str | None = None
    listed: int | None = None

    @classmethod
    def of(cls, cost: Cost, reported: Decimal | None = None) -> Amounts:
        """The integers of a cost; with `reported`, what the provider says it charged takes the place of its amount."""
        amount, basis, listed = nanos(cost.amount), cost.basis, nanos(cost.list_amount)
        if reported is not None:
            # What the provider says it charged has its own discounts in it, which our list knows nothing of.
            amount, basis, listed = nanos(reported), "reported", None
        return cls(
            amount,
            cost.currency,
            basis,
            nanos(cost.lower),
            nanos(cost.upper),
            () if amount is None else even([(line.meter, to_nanos(line.amount)) for line in cost.lines], amount),
            cost.price_id,
            cost.as_of.isoformat() if cost.as_of else None,
            cost.source,
            listed if listed != amount else None,
        )


def even(lines: list[tuple[str, int]], amount: int) -> tuple[tuple[str, int], ...]:
    """The lines with what they are off by (rounding, or another total) put on the largest, so that they add up to `amount`."""
    rest = amount - sum([value for _, value in lines])
    if rest and lines:
        place = max(range(len(lines)), key=lambda number: lines[number][1])
        meter, value = lines[place]
        lines[place] = (meter, value + rest)
    return tuple(lines)


@dataclass(frozen=True)
class Charge:
    """One ledger entry: one physical call, one slice of GPU time, or a correction of an earlier entry.

    Amounts are integer nano-units of `currency`, rounded up from the exact cost; times are nanoseconds.

    Attributes:
        id: 32 hex digits, ascending in time; the ledger refuses a second entry of the same id.
        at: wall clock when the call began. duration: nanoseconds until it was settled.
        provider, operation, model: as asked (`openai`, `chat`, `gpt-5-mini`).
        response_model, response_id: as answered, empty when the answer had none.
        quantities: disjoint usage per meter. raw: the provider's usage object.
        amount, lower, upper: nano-units or None; `amount` None means that the cost is unknown.
        lines: (meter, nano-units) parts of the amount.
        basis, price_id, price_as_of, price_source: as in `Cost`.
        tags: whose it is. trace_id, span_id: hex, empty when there was no span.
        error: class name of the exception that ended the call, else empty.
        corrects: id of the entry that this one corrects (its amount is then the difference).
        status: `ok`, `error`, `abandoned` (a stream that was not read to its end) or `correction`.
    """

    id: str
    at: int
    provider: str
    operation: str
    model: str
    quantities: Quantities = field(default_factory=lambda: EMPTY_QUANTITIES)
    amount: int | None = None
    currency: str = "USD"
    basis: Basis = "unknown"
    lower: int | None = None
    upper: int | None = None
    lines: tuple[tuple[str, int], ...] = ()
    price_id: str | None = None
    price_as_of: str | None = None
    price_source: str | None = None
    response_model: str = ""
    response_id: str = ""
    service: str = "llm"
    tier: str = ""
    region: str = ""
    duration: int = 0
    stream: bool = False
    status: str = "ok"
    error: str = ""
    tags: Tags = field(default_factory=lambda: EMPTY)
    trace_id: str = ""
    span_id: str = ""
    corrects: str = ""
    raw: Mapping[str, Any] | None = field(default=None)

    @property
    def list_amount(self) -> int | None:
        """Nano-units at list prices, where a discount or a commitment made `amount` another; else None."""
        raw = self.raw
        found = None if raw is None else raw.get(LISTED)
        return found if type(found) is int else None

    @property
    def cost(self) -> Cost:
        """The stored amount as a `Cost` (no rates: those are in the price list under `price_id`)."""
        return Cost(
            amount=None if self.amount is None else from_nanos(self.amount),
            currency=self.currency,
            basis=self.basis,
            lower=None if self.lower is None else from_nanos(self.lower),
            upper=None if self.upper is None else from_nanos(self.upper),
            price_id=self.price_id,
            as_of=date.fromisoformat(self.price_as_of) if self.price_as_of else None,
            source=self.price_source,
            model=self.response_model or self.model,
            list_amount=None if self.list_amount is None else from_nanos(self.list_amount),
        )


def make_charge(**values: Any) -> Charge:
    """`Charge(...)` in a fifth of its time: a frozen dataclass sets its thirty fields one by one. `quantities` and `tags` must be given."""
    charge = object.__new__(Charge)
    object.__setattr__(charge, "__dict__", values)
    return charge


def total(costs: Iterable[Cost], currency: str = "USD") -> Cost:
    """The sum of several costs: as sure as the least sure of them.

    Unknown parts make the sum `unknown` only when nothing is known; else the sum is `estimated` from below, with a note
    that says how many parts are missing. Costs in another currency are never added: they are noted.
    """
    amount, lower, upper = Decimal(0), Decimal(0), Decimal(0)
    known = unknown = estimated = foreign = 0
    open_end = False
    for cost in costs:
        if cost.currency != currency and cost.amount is not None:
            foreign += 1
        elif cost.amount is None:
            unknown += 1
            open_end = open_end or cost.upper is None
            lower, upper = lower + (cost.lower or 0), upper + (cost.upper or 0)
        else:
            known += 1
            estimated += cost.basis == "estimated"
            amount += cost.amount
            lower += cost.amount if cost.lower is None else cost.lower
            upper += cost.amount if cost.upper is None else cost.upper
    notes = []
    if unknown:
        notes.append(f"{unknown} unpriced, not included")
    if foreign:
        notes.append(f"{foreign} in another currency, not included")
    if unknown and not known:
        return Cost(None, currency, "unknown", notes=tuple(notes))
    basis: Basis = "estimated" if estimated or unknown else ("priced" if known else "free")
    return Cost(amount, currency, basis, lower, None if open_end else upper, notes=tuple(notes))


def new_id() -> str:
    """32 hex digits: 16 of time (nanoseconds), 16 random from the operating system, so that forks never share one."""
    return f"{time.time_ns():016x}{os.urandom(8).hex()}"


def nanos(amount: Decimal | None) -> int | None:
    """`to_nanos` that leaves unknown unknown."""
    return None if amount is None else to_nanos(amount)
