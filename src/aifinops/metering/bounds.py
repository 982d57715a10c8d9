"""The most that a call can cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aifinops.errors import UnknownModel
from aifinops.metering.units import MICRO
from aifinops.money import to_nanos
from aifinops.pricing import tokens

if TYPE_CHECKING:
    from decimal import Decimal

    from aifinops.charges import Cost
    from aifinops.metering.call import Call
    from aifinops.pricing.book import PriceBook
    from aifinops.usage import Quantities

__all__ = ["Bound", "allowance", "bound_of", "coarse", "cost_of", "outputs_of", "prompt_of", "regional", "why_unpriced"]


@dataclass(slots=True)
class Bound:
    """The most that a call can cost.

    Attributes:
        amounts: in every unit that a budget may count. upper: in money; None where no price is known. currency: of it.
        prompt: tokens of the request; 0 is not known.
    """

    amounts: dict[str, int]
    upper: Decimal | None
    currency: str
    prompt: int = 0


def bound_of(book: PriceBook, call: Call, at: int) -> Bound:
    """The most that a call can cost that is made then, nanoseconds since the epoch."""
    counted = call.most or call.counts
    if counted:
        cost = cost_of(book, call, counts=counted, at=at)
        if cost.amount is not None or call.service != "llm":
            amounts = {"requests": MICRO, **{name: int(value * MICRO) for name, value in counted.items()}}
            if cost.amount is not None:
                amounts[cost.currency] = to_nanos(cost.amount)
            return Bound(amounts, cost.amount, cost.currency)
    prompt = tokens.UNBOUNDED if call.hidden else tokens.text_upper_bound(call.body or {}, model=call.model)
    inputs = min(prompt, book.input_limit(call.provider, call.model))
    outputs = _outputs_held(book, call)
    upper, currency = book.bound(
        call.provider,
        call.model,
        input_tokens_upper=inputs,
        output_tokens_upper=outputs,
        at=at,
        operation=call.operation,
        tier=call.tier,
        region=regional(book, call.provider, call.model, call.region) if call.region else "",
    )
    amounts = {"requests": MICRO, "input_tokens": inputs * MICRO}
    if upper is not None:
        amounts[currency] = to_nanos(upper)
    else:
        dearest = book.dearest(call.provider, input_tokens_upper=inputs, output_tokens_upper=outputs)
        amounts["USD:dearest"] = to_nanos(dearest)
    if outputs is None:
        outputs = book.output_limit(call.provider, call.model) or book.input_limit(call.provider, call.model)
    amounts["output_tokens"] = outputs * MICRO
    amounts["tokens"] = (inputs + outputs) * MICRO
    return Bound(amounts, upper, currency, prompt)


def coarse(book: PriceBook, call: Call, at: int) -> Bound | None:
    """The most that a call can cost whatever is in its request: all that its model can take. None where that is no bound."""
    return None if call.most or call.counts else bound_of(book, replace(call, body=None, hidden=True), at)


def _outputs_held(book: PriceBook, call: Call) -> int | None:
    """Output tokens to hold for; None for the model's own maximum of one answer."""
    outputs = call.output_bound()
    if outputs is None and call.choices > 1:
        outputs = (book.output_limit(call.provider, call.model) or 0) * call.choices or None
    if call.start is not None:
        outputs = call.start if outputs is None else min(call.start, outputs)
    return outputs


def cost_of(book: PriceBook, call: Call, counts: Quantities, at: int) -> Cost:
    """What so much costs by the request's own words."""
    return book.cost(call.provider, call.model, counts, at=at, tier=call.tier, options=call.options)


def outputs_of(book: PriceBook, call: Call) -> int:
    """Output tokens that may come, over all choices."""
    stated = call.output_bound()
    if stated is not None:
        return stated
    most = book.output_limit(call.provider, call.model) or book.input_limit(call.provider, call.model)
    return most * max(call.choices, 1)


def prompt_of(book: PriceBook, call: Call) -> int:
    """The most tokens that a prompt can be billed as, whatever its tokenizer."""
    if call.hidden:
        return book.input_limit(call.provider, call.model)
    return tokens.text_upper_bound(call.body) if call.body else 0


def allowance(book: PriceBook, call: Call) -> int:
    """The most output tokens of an answer whose end was not seen: the provider may have written on, and billed it."""
    stated = call.output_bound()
    if stated is not None and (not stated or call.output_cap() is not None):
        return stated
    return max(stated or 0, (book.output_limit(call.provider, call.model) or 0) * call.choices)


def regional(book: PriceBook, provider: str, model: str, region: str) -> str:
    """The region where the list has a price of the model for it; elsewhere the model costs what it costs everywhere."""
    try:
        entry = book.resolve(provider, model)
    except UnknownModel:
        return ""
    known = {*(one.region for one in entry.variants), *(one.region for one in entry.adjust)}
    return region if region in known else ""


def why_unpriced(book: PriceBook, call: Call, at: int) -> UnknownModel:
    """Why no price is known of a call."""
    try:
        book.resolve(call.provider, call.model)
    except UnknownModel as unknown:
        return unknown
    why = book.estimate(call.provider, call.model, input_tokens_upper=0, output_tokens_upper=0, at=at).notes
    return UnknownModel(call.model, provider=call.provider, lists=why)
