"""What a token costs on GPUs of one's own, and when that pays.

    cost of an hour     = GPUs x price of a GPU hour
    tokens of an hour   = tokens a second x 3600 x utilisation
    price of a token    = cost of an hour / tokens of an hour

An idle GPU costs what a busy one does, so the price of a token falls with utilisation: `utilisation` is the share of all hours paid
for in which the deployment serves at the throughput given. Nothing but GPU hours is in it: hosts, storage, network and people are
for the caller to add to the hourly price. The formula is the usual one for amortised capacity (FinOps Foundation, unit economics).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING, Any

from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError
from aifinops.money import decimal, format_money
from aifinops.pricing.sheet import plainly
from aifinops.usage import Sku, Usage

if TYPE_CHECKING:
    from datetime import datetime

    from aifinops.pricing.book import PriceBook

__all__ = ["HOURS_PER_MONTH", "BreakEven", "SelfHosted", "self_hosted"]

HOURS_PER_MONTH = 730
"""8760 / 12: what clouds reckon a month as."""

_EXACT = Context(prec=60)
_multiply, _divide, _add, _subtract = _EXACT.multiply, _EXACT.divide, _EXACT.add, _EXACT.subtract
_ONE, _HOUR, _MILLION = Decimal(1), 3600, 1_000_000
_SHOWN = Context(prec=28)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """When a deployment of one's own costs less than an API.

    Attributes:
        model: of the API. currency: ISO 4217.
        api_per_million: what a million tokens of that mix cost at the API.
        tokens_per_month: input and output tokens a month from which the deployment costs less; None when the API is free.
        utilisation: the share of the deployment's capacity that these are; above 1 it cannot serve enough to pay.
        pays: whether it can. pays_now: whether it does at the utilisation that was given.
    """

    model: str
    currency: str
    api_per_million: Decimal
    tokens_per_month: int | None
    utilisation: Decimal | None
    pays: bool
    pays_now: bool


@dataclass(frozen=True, slots=True)
class SelfHosted:
    """A model on GPUs of one's own. Make it with `price_self_hosted(...)`.

    Attributes:
        gpu, count: the device and how many of them.
        per_gpu_hour: price of one for an hour, in `currency`. source, as_of: where that is from.
        tokens_per_second: output tokens of the whole deployment while it serves. input_tokens_per_second: prompt tokens read in the
            same time, None when not known.
        utilisation: share of the hours paid for in which it serves, above 0, at most 1.
    """

    gpu: str
    count: int
    per_gpu_hour: Decimal
    tokens_per_second: Decimal
    utilisation: Decimal
    input_tokens_per_second: Decimal | None = None
    currency: str = "USD"
    source: str = "given"
    as_of: date | None = None
    _book: PriceBook | None = field(default=None, repr=False, compare=False)

    @property
    def per_hour(self) -> Decimal:
        """Cost of an hour, exact."""
        return _multiply(self.per_gpu_hour, self.count)

    @property
    def per_month(self) -> Decimal:
        """Cost of a month of 730 hours, exact."""
        return _multiply(self.per_hour, HOURS_PER_MONTH)

    @property
    def per_million_output(self) -> Decimal:
        """Cost of a million output tokens when prompts count nothing, to 28 digits."""
        return self._per_million(self.tokens_per_second)

    @property
    def per_million(self) -> Decimal | None:
        """Cost of a million tokens, input and output alike, to 28 digits; None without `input_tokens_per_second`."""
        if self.input_tokens_per_second is None:
            return None
        return self._per_million(_add(self.tokens_per_second, self.input_tokens_per_second))

    def _hourly(self, tokens_per_second: Decimal) -> Decimal:
        return _multiply(_multiply(tokens_per_second, _HOUR), self.utilisation)

    def _per_million(self, tokens_per_second: Decimal) -> Decimal:
        return _SHOWN.plus(_divide(_multiply(self.per_hour, _MILLION), self._hourly(tokens_per_second)))

    def to_price(self, model: str, provider: str = "local") -> dict[str, Any]:
        """The arguments of `register_price`, so that calls of the model are priced by it: `register_price(**it.to_price("llama"))`.

        The price is kept as a fraction (money of an hour per tokens of an hour), so nothing is rounded before the amount of a call.
        With `input_tokens_per_second` every token costs the same; without it output tokens carry everything and prompts nothing.
        """
        total = self.tokens_per_second
        if self.input_tokens_per_second is not None:
            total = _add(total, self.input_tokens_per_second)
        tokens = self._hourly(total).normalize(_EXACT)
        places = max(0, -int(tokens.as_tuple().exponent))
        rate = {"base": _multiply(self.per_hour, 10**places), "per": int(tokens.scaleb(places))}
        blended = self.input_tokens_per_second is not None
        row: dict[str, Any] = {
            "model": model,
            "provider": provider,
            "currency": self.currency,
            "source": self._said(),
            "prices": [
                {
                    "rates": {"output_tokens": rate, "input_tokens": rate if blended else "0"},
                    "note": f"amortised: {self._said()}",
                }
            ],
        }
        return {**row, "as_of": self.as_of} if self.as_of else row

    def _said(self) -> str:
        rate = format_money(self.per_gpu_hour, self.currency)
        read = f" and {plainly(self.input_tokens_per_second)} read" if self.input_tokens_per_second is not None else ""
        share = plainly(_multiply(self.utilisation, 100))
        speed = f"{plainly(self.tokens_per_second)} output tokens{read} a second"
        return f"{self.count} x {self.gpu} at {rate} an hour ({self.source}), {speed}, {share} % utilised"

    def break_even(
        self,
        model: str,
        *,
        input_share: Decimal | float | str | None = None,
        provider: str | None = None,
        at: datetime | None = None,
    ) -> BreakEven:
        """From how many tokens a month the deployment costs less than an API model.

        The API is taken at its price per fresh input and per output token, without caches, cliffs and fees of a request. The
        capacity of the deployment is what it can serve at full utilisation with that mix: output tokens a second / (1 - input share).

        Args:
            model, provider: as in `price`.
            input_share: input tokens of all tokens, from 0 to below 1; default: that of the throughputs given.
            at: the moment whose price counts (default: now).

        Raises:
            ConfigurationError: for an impossible share, a model without a price per token, or another currency.
        """
        share = self._share(input_share)
        each = self._api(model, provider, 0 if at is None else to_ns(at))
        api = _add(_multiply(each["input_tokens"], share), _multiply(each["output_tokens"], _subtract(_ONE, share)))
        shown = _SHOWN.plus(_multiply(api, _MILLION))
        if not api:
            return BreakEven(model, self.currency, shown, None, None, pays=False, pays_now=False)
        tokens = int(_divide(self.per_month, api).to_integral_value(ROUND_CEILING, _EXACT))
        full = _divide(_multiply(self.tokens_per_second, _HOUR * HOURS_PER_MONTH), _subtract(_ONE, share))
        needed = _SHOWN.divide(Decimal(tokens), full)
        return BreakEven(
            model,
            self.currency,
            shown,
            tokens,
            needed,
            pays=needed <= 1,
            pays_now=_multiply(full, self.utilisation) >= tokens,
        )

    def _share(self, given: Decimal | float | str | None) -> Decimal:
        if given is None:
            read = self.input_tokens_per_second
            if read is None:
                raise ConfigurationError(
                    "break_even() needs input_share=0.8 (input tokens of all), or input_tokens_per_second"
                )
            return _divide(read, _add(read, self.tokens_per_second))
        share = decimal(given, "input_share")
        if not 0 <= share < 1:
            raise ConfigurationError(f"input_share={given!r} must be from 0 to below 1: input tokens / all tokens")
        return share

    def _api(self, model: str, provider: str | None, at: int) -> Mapping[str, Decimal]:
        """Price of one fresh input token and of one output token."""
        if self._book is None:
            raise ConfigurationError("break_even() needs prices of models: make it with price_self_hosted(...)")
        found = self._book.price(Usage({"input_tokens": 1, "output_tokens": 1}, Sku(provider or "", model), at))
        each = {line.meter: _divide(line.rate, Decimal(line.per)) for line in found.lines}
        if found.basis == "free":
            each = {"input_tokens": Decimal(0), "output_tokens": Decimal(0)}
        if found.amount is None or not {"input_tokens", "output_tokens"} <= each.keys():
            why = "; ".join(found.notes) or f"basis {found.basis}"
            raise ConfigurationError(f"{model!r} has no price of input and output tokens to compare with: {why}")
        if found.currency != self.currency:
            raise ConfigurationError(
                f"{model!r} is priced in {found.currency}, the GPUs in {self.currency}; add [[exchange]] rates to the price file"
            )
        return each


def self_hosted(
    book: PriceBook,
    *,
    gpu: str,
    count: int,
    tokens_per_second: Decimal | float | str,
    utilisation: Decimal | float | str,
    input_tokens_per_second: Decimal | float | str | None = None,
    usd_per_gpu_hour: Decimal | float | str | None = None,
    provider: str | None = None,
    region: str = "",
    tier: str = "",
    at: int = 0,
) -> SelfHosted:
    """`price_self_hosted` over a given book; see there."""
    if not isinstance(gpu, str) or not gpu.strip():
        raise ConfigurationError(f'gpu={gpu!r} must name a device, e.g. gpu="H100"')
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"count={count!r} must be a whole number of GPUs, at least 1")
    busy = _positive(utilisation, "utilisation")
    if busy > 1:
        raise ConfigurationError(f"utilisation={utilisation!r} must be above 0 and at most 1: write 0.6 for 60 %")
    speed = _positive(tokens_per_second, "tokens_per_second")
    read = None if input_tokens_per_second is None else _positive(input_tokens_per_second, "input_tokens_per_second")
    if usd_per_gpu_hour is not None:
        hour = _positive(usd_per_gpu_hour, "usd_per_gpu_hour")
        return SelfHosted(gpu, count, hour, speed, busy, read, _book=book)
    found = book.price(Usage({"gpu_seconds": _HOUR}, Sku(provider or "", gpu, "gpu", tier, region), at))
    if not found.amount:
        why = "; ".join(found.notes) or f"basis {found.basis}"
        raise ConfigurationError(
            f'no hourly price of {gpu!r}: {why}. Pass usd_per_gpu_hour="2.50", or provider= and region= of a price list'
        )
    source = found.source or "price list"
    return SelfHosted(gpu, count, found.amount, speed, busy, read, found.currency, source, found.as_of, _book=book)


def _positive(value: Decimal | float | str, what: str) -> Decimal:
    number = decimal(value, what)
    if number <= 0:
        raise ConfigurationError(f"{what}={value!r} must be above 0")
    return number
