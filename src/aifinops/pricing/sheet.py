"""Prices compiled to integers: everything needed to price one request, made once for each price in force, then only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from aifinops.charges import Basis, Cost, CostLine, even
from aifinops.meters import METERS
from aifinops.money import MAX_NANOS, format_money
from aifinops.usage import EMPTY_QUANTITIES, Quantities, Quantity

if TYPE_CHECKING:
    from aifinops.pricing.contract import Volume

__all__ = ["UNBILLED", "UNBOUNDED", "Sheet", "Unit", "Units", "make_cost", "make_line", "plainly"]

UNBILLED = frozenset({"requests", "tool_calls"})
"""Meters that count beside others without costing, unless a list gives them a price. Alone they are all that is billed: then a price is
missing, and unknown is not zero."""

UNBOUNDED = 1 << 40
"""Stands for "not to be told from the request" (an earlier response, a file, a stored prompt): at most the context window."""

# Our own context: the caller's may have any precision, and money must not depend on it.
_EXACT = Context(prec=60)
_multiply, _divide, _add, _subtract = _EXACT.multiply, _EXACT.divide, _EXACT.add, _EXACT.subtract
_INPUTS = frozenset(name for name, row in METERS.items() if row.family == "tokens" and row.direction == "input")
_ATTO = Decimal("1e-18")
_ZERO = Decimal(0)

# A frozen dataclass sets each field through `object.__setattr__`, which is most of the time of pricing a call. The slots' own
# setters (of a `CostLine`) and the dict (of a `Cost`) do the same in half of it and less; tests hold both ways equal.
_new, _set_inside = object.__new__, object.__setattr__
_set_meter, _set_quantity, _set_rate, _set_per, _set_amount, _set_note = (
    vars(CostLine)[one.name].__set__ for one in fields(CostLine)
)


def make_line(meter: str, quantity: Quantity, rate: Decimal, per: int, amount: Decimal, note: str) -> CostLine:
    """`CostLine(...)`, quicker."""
    line = _new(CostLine)
    _set_meter(line, meter)
    _set_quantity(line, quantity)
    _set_rate(line, rate)
    _set_per(line, per)
    _set_amount(line, amount)
    _set_note(line, note)
    return line


def make_cost(
    sheet: Sheet,
    amount: Decimal | None,
    basis: Basis,
    lower: Decimal | None,
    upper: Decimal | None,
    lines: tuple[CostLine, ...] = (),
    listed: Decimal | None = None,
    notes: tuple[str, ...] = (),
) -> Cost:
    """A `Cost` with the provenance of a sheet, quicker than by its constructor."""
    cost = _bare(sheet, amount, basis, lower, upper, listed)
    inside = cost.__dict__
    inside["lines"] = lines
    if notes:
        inside["notes"] = (*sheet.notes, *notes)
    return cost


def _bare(
    sheet: Sheet,
    amount: Decimal | None,
    basis: Basis,
    lower: Decimal | None,
    upper: Decimal | None,
    listed: Decimal | None,
) -> Cost:
    """A `Cost` without its lines. What is not set has the value of its default, which the class has."""
    cost = _new(Cost)
    inside = cost.__dict__
    inside.update(sheet.provenance)
    inside["amount"] = amount
    inside["basis"] = basis
    inside["lower"] = lower
    inside["upper"] = upper
    inside["list_amount"] = listed
    if sheet.markup is not None and amount is not None:
        inside["billed_amount"] = _multiply(amount, sheet.markup)
    return cost


def plainly(number: Decimal) -> str:
    """A factor or a percentage as people write it: no exponent, no trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Unit(NamedTuple):
    """One meter, compiled.

    Attributes:
        number: price of one quantity as an integer multiple of the sheet's scale; 0 where `rate / per` has no finite decimal.
        rate, per, note: as they appear in a `CostLine`.
        finite: whether `rate / per`, and that of every step, has a finite decimal.
        steps: graduated prices, ascending: (n, price of `per` quantities above n).
    """

    number: int
    rate: Decimal
    per: int
    note: str
    finite: bool = True
    steps: tuple[tuple[int, Decimal], ...] = ()


Units = Mapping[str, Unit]


@dataclass(slots=True, eq=False, repr=False)
class Sheet:
    """Everything needed to price one request: made once for each price in force, then only read.

    Attributes:
        units: meter -> unit; every meter that can be billed, fallbacks resolved.
        levels: cliffs, descending: (n, units) for requests with more than n input tokens in all.
        scale: value of one integer step, a power of ten. to_nanos: (times, by), the same in nano-units as a fraction.
        ceilings: ascending: (n, input, output), the dearest price of one token of each direction in a request with more than n
            input tokens in all; None where the list has no token price.
        fee: the most that a request costs by itself. minimum_charge: what it costs at least.
        minimum: meter -> least quantity that is billed when there is any.
        basis: `priced`; `free` or `committed` when nothing is charged for one more call.
        plain: True when nothing needs the careful path: a fee, a minimum, graduated prices, a discount by volume, an endless decimal.
        discount: the factor of a discount in all units, None without one. listed: the sheet without discounts, None when it is this one.
        volume: a discount that depends on the volume of the period. markup: factor of charge-back, None without one.
        price_id, as_of, source, model, notes, currency, confidence, url: provenance, as in `Cost`, together in `provenance`.
        as_of_text: ISO form of the date.
    """

    units: Units
    levels: tuple[tuple[int, Units], ...]
    ceilings: tuple[tuple[int, Decimal | None, Decimal | None], ...]
    scale: Decimal
    to_nanos: tuple[int, int]
    fee: Decimal
    minimum: Mapping[str, int]
    basis: Basis
    plain: bool
    price_id: str
    as_of: date | None
    as_of_text: str | None
    source: str
    model: str
    notes: tuple[str, ...]
    currency: str
    minimum_charge: Decimal = _ZERO
    confidence: str = ""
    url: str = ""
    discount: Decimal | None = None
    listed: Sheet | None = None
    volume: Volume | None = None
    markup: Decimal | None = None
    provenance: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        told = ("currency", "price_id", "as_of", "source", "model", "notes", "confidence", "url")
        provenance = {name: getattr(self, name) for name in told}
        object.__setattr__(self, "provenance", {**provenance, "basis": "priced"})

    @property
    def free(self) -> bool:
        """True when nothing is charged for one more call."""
        return self.basis != "priced"

    def level(self, total_input: Quantity) -> Units:
        """The units for a request with that many input tokens in all."""
        for threshold, units in self.levels:
            if total_input > threshold:
                return units
        return self.units

    def lines(
        self, quantities: Quantities, so_far: Quantities = EMPTY_QUANTITIES
    ) -> tuple[list[CostLine], Decimal, tuple[str, ...]]:
        """(lines, their exact sum, meters without a rate) of disjoint quantities.

        Args:
            quantities: of this request. so_far: what the period had before it, for graduated prices and discounts by volume.
        """
        units = self.level(_prompt(quantities)) if self.levels else self.units
        if not self.plain:
            return self._careful(units, quantities, so_far)
        scale, found = self.scale, []
        total = 0
        missing: tuple[str, ...] = ()
        for meter, quantity in quantities.items():
            unit = units.get(meter)
            if unit is None:
                missing += _missing(meter, quantity)
            elif quantity:
                if type(quantity) is not int:
                    # The product of a Decimal would depend on the context of the caller.
                    return self._careful(units, quantities, so_far)
                number, rate, per, note, _, _ = unit
                steps = number * quantity
                total += steps
                found.append(make_line(meter, quantity, rate, per, _multiply(steps, scale), note))
        return found, _multiply(total, scale), missing if found else missing or _alone(quantities)

    def cost(self, quantities: Quantities) -> Cost | None:
        """What a plain sheet says of whole quantities, with lines that are made when they are asked for; None where only `lines` can
        say it."""
        if not self.plain or self.listed is not None:
            return None
        units = self.level(_prompt(quantities)) if self.levels else self.units
        steps = 0
        for meter, quantity in quantities.items():
            unit = units.get(meter)
            if unit is None:
                if quantity and meter not in UNBILLED:
                    return None
            elif type(quantity) is int:
                steps += unit[0] * quantity  # by its place: a name costs a third of the loop
            else:
                return None
        if not steps and _alone(quantities):
            return None
        amount = _multiply(steps, self.scale)
        inside = self.provenance.copy()
        inside["amount"] = inside["lower"] = inside["upper"] = inside["list_amount"] = amount
        # The caller may change its quantities afterwards.
        kept = quantities.copy() if type(quantities) is dict else dict(quantities)
        inside["_later"] = (_lines, units, kept, self.scale)
        if self.markup is not None:
            inside["billed_amount"] = _multiply(amount, self.markup)
        cost = _new(Cost)
        _set_inside(cost, "__dict__", inside)
        return cost

    def nanos(self, quantities: Quantities) -> tuple[int, tuple[tuple[str, int], ...]] | None:
        """`lines` in integer nano-units, each rounded up, for a plain sheet and whole quantities: a tenth of the time.

        Returns:
            (amount, (meter, amount) of each line), or None where only `lines` can say it.
        """
        if not self.plain:
            return None
        units = self.level(_prompt(quantities)) if self.levels else self.units
        times, by = self.to_nanos
        total, found = 0, []
        for meter, quantity in quantities.items():
            unit = units.get(meter)
            if unit is None:
                if quantity and meter not in UNBILLED:
                    return None
            elif quantity:
                if type(quantity) is not int:
                    return None
                steps = unit.number * quantity * times
                total += steps
                found.append((meter, -(-steps // by)))
        amount = -(-total // by)
        if amount > MAX_NANOS or (not found and _alone(quantities)):
            return None
        return amount, tuple(found) if by == 1 else even(found, amount)

    def list_amount(self, quantities: Quantities, amount: Decimal, so_far: Quantities) -> Decimal | None:
        """The same usage at list prices, before discounts; None when the list has no price for it."""
        if self.listed is None:
            # Committed capacity without an on-demand price has none at list prices either.
            return None if self.basis == "committed" else amount
        if self.plain and self.discount:
            return _divide(amount, self.discount)  # exact: the quotient is a sum of products of list rates
        _, listed, missing = self.listed.lines(quantities, so_far)
        return None if missing else listed

    def _careful(
        self, units: Units, quantities: Quantities, so_far: Quantities
    ) -> tuple[list[CostLine], Decimal, tuple[str, ...]]:
        if self.free:
            return [], _ZERO, ()
        implied = {"requests": 1} if self.fee and not quantities.get("requests") else {}
        found: list[CostLine] = []
        missing: tuple[str, ...] = ()
        for meter, quantity in {**quantities, **implied}.items():
            unit = units.get(meter)
            if unit is None:
                missing += _missing(meter, quantity)
            elif quantity:
                found += self._lines(meter, quantity, unit, so_far.get(meter, 0))
        if self.volume is not None:
            found = self.volume.reduce(found, so_far)
        total = _sum(found)
        if self.minimum_charge:
            found += self._top_up(quantities, total)
            total = _sum(found)
        return found, total, missing if found else missing or _alone(quantities)

    def _lines(self, meter: str, quantity: Quantity, unit: Unit, before: Quantity) -> Iterator[CostLine]:
        billed, note = quantity, unit.note
        least = self.minimum.get(meter, 0)
        if quantity < least:
            billed, note = least, f"at least {least} are billed, {quantity} were used"
        if unit.steps:
            yield from _graduated(meter, billed, unit, before, note)
        else:
            yield CostLine(
                meter, billed, unit.rate, unit.per, _money(billed, unit.rate, unit.per, finite=unit.finite), note
            )

    def _top_up(self, quantities: Quantities, total: Decimal) -> Iterator[CostLine]:
        if any(quantities.values()):
            requests = max(1, quantities.get("requests", 0))
            rest = _subtract(_multiply(self.minimum_charge, requests), total)
            if rest > 0:
                least = format_money(self.minimum_charge, self.currency)
                yield CostLine("requests", 1, rest, 1, rest, f"up to the minimum charge of {least} a request")

    def ceiling(self, total_input: int) -> tuple[Decimal | None, Decimal | None]:
        """The dearest price of one input and of one output token, over all levels that a request of at most that size can reach."""
        reached = self.ceilings[0]
        for row in self.ceilings:
            if total_input > row[0]:
                reached = row
        return reached[1], reached[2]


def _lines(units: Units, quantities: Quantities, scale: Decimal) -> tuple[CostLine, ...]:
    """The lines of `Sheet.cost`."""
    found = []
    for meter, quantity in quantities.items():
        unit = units.get(meter)
        if unit is not None and quantity:
            amount = _multiply(unit.number * int(quantity), scale)  # whole, as `Sheet.cost` saw
            found.append(make_line(meter, quantity, unit.rate, unit.per, amount, unit.note))
    return tuple(found)


def _graduated(meter: str, quantity: Quantity, unit: Unit, before: Quantity, note: str) -> Iterator[CostLine]:
    """One line for each step that the quantities between `before` and `before + quantity` lie in."""
    start, end = Decimal(before), _add(Decimal(before), Decimal(quantity))
    steps = ((0, unit.rate), *unit.steps)
    for number, (above, rate) in enumerate(steps):
        limit = Decimal(steps[number + 1][0]) if number + 1 < len(steps) else end
        low, high = max(start, Decimal(above)), min(end, limit)
        if high > low:
            part = _subtract(high, low)
            whole: Quantity = int(part) if part == part.to_integral_value() else part
            why = f"above {above:,}" if number else f"up to {steps[1][0]:,}"
            amount = _money(whole, rate, unit.per, finite=unit.finite)
            yield CostLine(meter, whole, rate, unit.per, amount, f"{note}; {why}" if note else why)


def _sum(lines: list[CostLine]) -> Decimal:
    total = _ZERO
    for line in lines:
        total = _add(total, line.amount)
    return total


def _prompt(quantities: Quantities) -> Quantity:
    """Input tokens in all: what cliffs are measured by."""
    total: Quantity = 0
    for meter, quantity in quantities.items():
        if meter in _INPUTS:
            total += quantity
    return total


def _missing(meter: str, quantity: Quantity) -> tuple[str, ...]:
    return (meter,) if quantity and meter not in UNBILLED else ()


def _alone(quantities: Quantities) -> tuple[str, ...]:
    """Of a usage that has no line: what it counts. A request is billed by what was used in it; where nothing else is, that is not told."""
    return tuple(meter for meter, quantity in quantities.items() if quantity)


def _money(quantity: Quantity, rate: Decimal, per: int, *, finite: bool) -> Decimal:
    amount = _divide(_multiply(rate, Decimal(quantity)), Decimal(per))
    # Only here is anything rounded: a price such as 0.04 an hour is no finite decimal a second. Up, so that nothing is understated.
    return amount if finite else amount.quantize(_ATTO, ROUND_CEILING, _EXACT)
