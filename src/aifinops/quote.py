"""What something costs, without anything being metered: `price`, `estimate`, `price_self_hosted`. Loads settings and prices only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from aifinops import runtime
from aifinops.charges import Cost
from aifinops.usage import Moment, moment, quantities

if TYPE_CHECKING:
    from aifinops.pricing.selfhosted import SelfHosted

__all__ = ["estimate", "price", "price_self_hosted"]


def price(
    model: str,
    *,
    provider: str | None = None,
    tier: str = "",
    region: str = "",
    options: Mapping[str, str] | None = None,
    at: Moment | None = None,
    **usage: Any,
) -> Cost:
    """What a usage costs: `price("gpt-5-mini", input_tokens=1000, output_tokens=200)`.

    Args:
        model: any name that a price list declares. provider: needed only where several sell the same name.
        tier, region: as served. options: what else decides the price: `{"size": "1024x1792", "quality": "hd"}` of an image.
        at: the moment whose price counts (default: now): ISO 8601 text, a date or a datetime.
        **usage: disjoint quantities per meter; `input_tokens` are fresh ones, cached ones go to `cache_read_tokens`.

    Returns:
        The exact cost; basis `unknown` with the nearest names when no list knows the model. `.explain()` tells why.

    Raises:
        ConfigurationError: for an unknown meter. ImpossibleUsage: for a negative or NaN quantity.
    """
    engines = runtime.get()
    return engines.book.cost(
        provider or "",
        model,
        quantities(usage, own=True),
        at=engines.clock.time_ns() if at is None else moment(at),
        tier=tier,
        region=region,
        options=_pairs(options) if options else (),
    )


def _pairs(options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((str(name), str(value)) for name, value in options.items()))


def price_self_hosted(
    gpu: str,
    *,
    count: int = 1,
    tokens_per_second: Decimal | float | str,
    utilisation: Decimal | float | str,
    input_tokens_per_second: Decimal | float | str | None = None,
    usd_per_gpu_hour: Decimal | float | str | None = None,
    provider: str | None = None,
    region: str = "",
    tier: str = "",
    at: Moment | None = None,
) -> SelfHosted:
    """What tokens cost on GPUs of your own: `price_self_hosted("H100", count=8, tokens_per_second=2400, utilisation=0.6)`.

    Formula: price of a token = GPUs x price of a GPU hour / (tokens a second x 3600 x utilisation). GPU hours are all that is in
    it; add the share of hosts, network and people to `usd_per_gpu_hour` if they should be.

    Args:
        gpu: name of the device in a price list, or any name beside `usd_per_gpu_hour`. count: GPUs of the deployment.
        tokens_per_second: output tokens of the whole deployment while it serves, as measured.
        utilisation: share of the hours paid for in which it serves so, above 0, at most 1.
        input_tokens_per_second: prompt tokens read in the same time; then input and output tokens share the cost alike.
        usd_per_gpu_hour: price of one GPU for an hour; without it the price lists decide, by provider, region and tier at that moment.
        provider, region, tier: of the GPU in a price list (`tier="spot"`). at: the moment whose price counts (default: now): ISO 8601 text, a date or a datetime.

    Returns:
        `.per_hour`, `.per_million_output`, `.per_million`, `.break_even(model, input_share=0.8)` against an API, and `.to_price(name)`
        for `register_price(**...)`, so that calls of the model are priced by it.

    Raises:
        ConfigurationError: for an input that cannot be (utilisation above 1, no GPUs), or a GPU without a price: it says what to pass.
    """
    from aifinops.pricing.selfhosted import self_hosted

    engines = runtime.get()
    return self_hosted(
        engines.book, gpu=gpu, count=count, tokens_per_second=tokens_per_second, utilisation=utilisation,
        input_tokens_per_second=input_tokens_per_second, usd_per_gpu_hour=usd_per_gpu_hour, provider=provider, region=region,
        tier=tier, at=engines.clock.time_ns() if at is None else moment(at),
    )  # fmt: skip


def estimate(
    model: str,
    *,
    messages: Any = None,
    input: Any = None,
    max_tokens: int | None = None,
    provider: str | None = None,
    tier: str = "",
    region: str = "",
    at: Moment | None = None,
    **body: Any,
) -> Cost:
    """What a request may cost, before it is made: `.lower`, `.amount` (expected), `.upper` (sound bound).

    The bound takes every byte of the prompt as a token at its dearest rate. The expected amount counts the prompt with the model's
    tokenizer where its encoding is on this machine (`aifinops tokens status`), else by its length; `.notes` say which.

    Args:
        model: as in the request. messages, input: the prompt as it will be sent; tools and the like go into `**body`.
        max_tokens: the output limit; without it the model's own maximum counts. provider, tier, region, at: as in `price`.

    Returns:
        Basis `estimated`, or `unknown` when no list knows the model.
    """
    from aifinops import scope
    from aifinops.pricing.learned import Kind
    from aifinops.pricing.tokens import prompt_estimate, text_upper_bound

    engines = runtime.get()
    request = {key: value for key, value in {"messages": messages, "input": input, **body}.items() if value is not None}
    when = engines.clock.time_ns() if at is None else moment(at)
    bound = text_upper_bound(request, model=model)
    most = engines.book.estimate(
        provider or "",
        model,
        input_tokens_upper=bound,
        output_tokens_upper=max_tokens,
        at=when,
        tier=tier,
        region=region,
    )
    if most.basis != "estimated":
        return most
    seller = provider or (most.price_id or "//").split("/")[1]
    kind = Kind(seller, model, scope.current().tags.get("feature", ""))
    prompt = prompt_estimate(request, model=model, bound=bound, share=engines.learned.share(kind))
    answer = next((line.quantity for line in most.lines if line.meter == "output_tokens"), 0)
    usual = engines.learned.output(kind)
    if usual is not None:
        answer = round(usual) if max_tokens is None else min(round(usual), max_tokens)
    counts = quantities({"input_tokens": min(prompt.tokens, bound), "output_tokens": answer})
    middle = engines.book.cost(provider or "", model, counts, at=when, tier=tier, region=region)
    if middle.amount is None or most.upper is None:
        return most
    note = f"prompt: {prompt.tokens:,} tokens by {_TOLD_BY[prompt.by]}"
    return replace(most, amount=min(middle.amount, most.upper), lines=middle.lines, notes=(*most.notes, note))


_TOLD_BY = {"tokenizer": "the model's tokenizer", "learned": "earlier calls", "length": "the length of its text"}
