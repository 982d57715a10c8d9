"""Pricing a raw answer that was not metered: a log, a queue, a batch file, another process."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from aifinops import runtime
from aifinops.charges import Cost
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError
from aifinops.integrations import registry
from aifinops.integrations.extract import Reader
from aifinops.integrations.paths import Names, plain, split, word
from aifinops.metering import Reading, price
from aifinops.money import format_money
from aifinops.usage import Sku, Usage

__all__ = ["price_response", "read_response"]

_DAY = 86_400 * 1_000_000_000


def price_response(body: Any, provider: str, at: datetime | None = None, *, model: str = "") -> Cost:
    """What one answer cost, read from the answer alone: model, served tier, speed, region, cache, tools, models of its parts.

    What the provider says it charged wins; ours is then in the notes.

    Args:
        body: the JSON body as a dict, or the SDK's object; also a line of a batch's output file, or a final stream event.
        provider: `"openai"`, `"anthropic"`, `"bedrock"` and so on; OpenTelemetry's names are understood as well.
        at: when it was made; by default the answer's own time of creation where it has one, else now.
        model: what was asked for, for answers that do not name their model (images, transcriptions, Bedrock, Cohere).

    Returns:
        The cost; basis `unknown` when no list knows the model, tier or region.

    Raises:
        ConfigurationError: for an unknown provider or a body without usage. ImpossibleUsage: for counts that contradict each other.
    """
    engines = runtime.get()
    usage, reading = _usage(body, provider, model)
    now = engines.clock.time_ns()
    moment = to_ns(at) if at is not None else usage.at if 0 < usage.at <= now + _DAY else now
    cost = price(engines.book, replace(usage, at=moment), reading.parts)
    if reading.notes:
        cost = replace(cost, notes=(*cost.notes, *reading.notes))
    return cost if reading.reported is None else _as_reported(cost, reading)


def read_response(body: Any, provider: str, *, model: str = "") -> Usage:
    """The usage of one answer and what decides its price, without pricing it.

    Args:
        body, provider, model: as in `price_response`.

    Returns:
        Usage of the SKU that was served; `at` is the answer's own time of creation, 0 when it has none.

    Raises:
        ConfigurationError, ImpossibleUsage: as `price_response`.
    """
    return _usage(body, provider, model)[0]


def _usage(body: Any, provider: str, model: str) -> tuple[Usage, Reading]:
    name, forms = _forms(provider)
    for form in forms:
        if form.fits(body):
            inner = form.reader.event_body(body)
            reading = form.reader.read(inner)
            if reading is not None:
                sku = Sku(
                    name, reading.model or model, "llm", reading.tier, reading.region, reading.options
                )  # fmt: skip
                return Usage(reading.quantities, sku, form.reader.created(inner) or 0, reading.raw), reading
    raise ConfigurationError(
        f"an answer with {_described(body)} has no usage that {provider} is known to report; known: "
        + "; ".join(dict.fromkeys(form.text for form in forms))
    )


def _as_reported(cost: Cost, reading: Reading) -> Cost:
    """The provider's own amount in place of ours, which is told beside it."""
    ours = f"priced from usage: {format_money(cost.amount, cost.currency, places=9)} by {cost.price_id or 'no price'}"
    charged = reading.reported
    return replace(
        cost, amount=charged, currency="USD", basis="reported", lower=charged, upper=charged, lines=(), source="provider",
        notes=(*cost.notes, ours), reported=charged,
    )  # fmt: skip


class _Form:
    """A route, and by what one sees that a body is one of its answers."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.text = " and ".join(reader.route.signs)
        self._signs = [_sign(text) for text in reader.route.signs]

    def fits(self, body: Any) -> bool:
        return all(_is(sign, body) for sign in self._signs)


def _sign(text: str) -> tuple[Names, bool, frozenset[str]]:
    path, _, values = text.removeprefix("!").partition("=")
    return split(path), not text.startswith("!"), frozenset(values.split(",")) if values else frozenset()


def _is(sign: tuple[Names, bool, frozenset[str]], body: Any) -> bool:
    path, there, values = sign
    found = plain(body, path)
    return word(found) in values if values else (found is not None) is there


@lru_cache(maxsize=64)
def _forms(provider: str) -> tuple[str, tuple[_Form, ...]]:
    name, row = registry.answers(provider)
    return name, tuple(_Form(Reader(route, name)) for route in row.routes.values() if route.signs)


def _described(body: Any) -> str:
    said = [f"{key}={found!r}" for key in ("object", "type") if (found := word(plain(body, split(key))))]
    return " ".join(said) or f"neither object nor type ({type(body).__name__})"
