"""Pricing a raw answer that was not metered: a log, a queue, another process."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from aifinops import runtime
from aifinops.charges import Cost
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError
from aifinops.integrations.extract import Reader, dig
from aifinops.integrations.registry import provider as find_provider
from aifinops.usage import Sku, Usage

__all__ = ["price_response"]


def price_response(body: Any, provider: str, at: datetime | None = None) -> Cost:
    """What one answer cost, read from the answer alone: model, tier, cached and reasoning tokens.

    Args:
        body: the JSON body as a dict, or the SDK's object. provider: `"openai"`. at: when it was made (default: now).

    Returns:
        The cost; basis `unknown` when no list knows the model.

    Raises:
        ConfigurationError: for an unknown provider or a body without usage. ImpossibleUsage: for counts that contradict each other.
    """
    row = find_provider(provider)
    kind = dig(body, ("object",))
    for route in row.routes.values():
        if route.kind != kind:
            continue
        reading = Reader(route).read(body)
        if reading is not None:
            engines = runtime.get()
            sku = Sku(row.name, reading.model, tier=reading.tier)
            moment = engines.clock.time_ns() if at is None else to_ns(at)
            return engines.book.price(Usage(reading.quantities, sku, moment, reading.raw))
    raise ConfigurationError(
        f"a body with object={kind!r} has no usage that {provider} is known to report; "
        f"known: {', '.join(route.kind for route in row.routes.values())}"
    )
