"""Pricing a raw answer that was not metered: a log, a queue, a batch file, another process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

from aifinops import runtime
from aifinops.charges import Cost
from aifinops.errors import ConfigurationError
from aifinops.integrations import registry
from aifinops.integrations.extract import Reader
from aifinops.integrations.paths import Names, plain, split, word
from aifinops.integrations.provider import Route
from aifinops.money import format_money
from aifinops.reading import Reading, believed, price
from aifinops.usage import Moment, Sku, Usage, moment

__all__ = ["holds", "price_response", "read_response", "reader_for", "sign_of"]

_DAY = 86_400 * 1_000_000_000
_Sign = tuple[Names, bool, frozenset[str]]


def price_response(body: Any, provider: str, at: Moment | None = None, *, model: str = "") -> Cost:
    """What one answer cost, read from the answer alone: model, served tier, speed, region, cache, tools, models of its parts.

    What the provider says it charged wins; ours is then in the notes.

    Args:
        body: the JSON body as a dict, or the SDK's object; also a line of a batch's output file, or a final stream event.
        provider: `"openai"`, `"anthropic"`, `"bedrock"` and so on; OpenTelemetry's names are understood as well.
        at: when it was made (ISO 8601 text, a date or a datetime); by default the answer's own time of creation where it has one, else now.
        model: what was asked for, for answers that do not name their model (images, transcriptions, Bedrock, Cohere).

    Returns:
        The cost; basis `unknown` when no list knows the model, tier or region.

    Raises:
        ConfigurationError: for an unknown provider or a body without usage. ImpossibleUsage: for counts that contradict each other.
    """
    engines = runtime.get()
    reading, form, name, inner = _read(body, provider, brief=True)
    if at is not None:
        when = moment(at)
    else:
        now, created = engines.clock.time_ns(), form.reader.created(inner)
        when = created if created is not None and created <= now + _DAY else now
    if reading.parts:
        cost = price(engines.book, _as_usage(reading, name, model, when), reading.parts)
    else:
        cost = engines.book.cost(
            name,
            reading.model or model,
            reading.quantities,
            at=when,
            tier=reading.tier,
            region=reading.region,
            options=reading.options,
        )
    if reading.notes:
        cost = replace(cost, notes=(*cost.notes, *reading.notes))
    return cost if reading.reported is None else _as_reported(cost, reading.reported, (reading.model, model))


def read_response(body: Any, provider: str, *, model: str = "") -> Usage:
    """The usage of one answer and what decides its price, without pricing it.

    Args:
        body, provider, model: as in `price_response`.

    Returns:
        Usage of the SKU that was served; `at` is the answer's own time of creation, 0 when it has none.

    Raises:
        ConfigurationError, ImpossibleUsage: as `price_response`.
    """
    reading, form, name, inner = _read(body, provider)
    return _as_usage(reading, name, model, form.reader.created(inner) or 0)


def reader_for(body: Any, provider: str) -> Reader | None:
    """What reads an answer of this form; None for a form that is not known. Its usage may still be missing."""
    return next(
        (form.reader for form, signs in _forms(provider).of(body) if all(holds(sign, body) for sign in signs)), None
    )


def _read(body: Any, provider: str, *, brief: bool = False) -> tuple[Reading, _Form, str, Any]:
    """(what the answer says, the form that it has, its provider, what of the body the form is about); `brief` as in `Reader.read`."""
    forms = _forms(provider)
    for form, signs in forms.of(body):
        if signs and not all(holds(sign, body) for sign in signs):
            continue
        inner = form.reader.event_body(body)
        if inner is None:
            continue  # the route's streams carry it in an event, and this is none
        reading = form.reader.read(inner, brief=brief)
        if reading is not None:
            return reading, form, forms.provider, inner
    raise ConfigurationError(
        f"an answer with {_described(body)} has no usage that {provider} is known to report; known: "
        + "; ".join(dict.fromkeys(form.text for form in forms.every))
    )


def _as_usage(reading: Reading, provider: str, model: str, at: int) -> Usage:
    sku = Sku(provider, reading.model or model, "llm", reading.tier, reading.region, reading.options)
    return Usage(reading.quantities, sku, at, reading.raw)


def _as_reported(cost: Cost, charged: Decimal, models: tuple[str, ...]) -> Cost:
    """The provider's own amount in place of ours, which is told beside it; a zero that nobody else confirms only beside ours."""
    if believed(cost, charged, *models) is None:
        return replace(
            cost,
            reported=charged,
            notes=(*cost.notes, "no list says that the model is free: a reported zero is not a price"),
        )
    ours = f"priced from usage: {format_money(cost.amount, cost.currency, places=9)} by {cost.price_id or 'no price'}"
    return replace(
        cost, amount=charged, currency="USD", basis="reported", lower=charged, upper=charged, lines=(), source="provider",
        notes=(*cost.notes, ours), reported=charged,
    )  # fmt: skip


class _Form:
    """A route, and by what one sees that a body is one of its answers."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.text = " and ".join(reader.route.signs)
        self.signs = [sign_of(text) for text in reader.route.signs]


class _Forms:
    """The forms of a provider's answers. Those of one `object` and `type` are looked for once."""

    def __init__(self, provider: str, routes: Iterable[Route]) -> None:
        self.provider = provider
        self.every = [_Form(Reader(route, provider)) for route in routes]
        self._by_kind: dict[tuple[str, str], list[tuple[_Form, list[_Sign]]]] = {}

    def of(self, body: Any) -> list[tuple[_Form, list[_Sign]]]:
        """The forms of bodies with this `object` and `type`, in their order, each with what else such a body must have."""
        if type(body) is dict:
            kind = (body.get("object", ""), body.get("type", ""))
            if type(kind[0]) is not str or type(kind[1]) is not str:
                kind = (word(kind[0]), word(kind[1]))
        else:
            kind = (word(plain(body, _OBJECT)), word(plain(body, _TYPE)))
        return self._by_kind.get(kind) or self._kind(kind)

    def _kind(self, kind: tuple[str, str]) -> list[tuple[_Form, list[_Sign]]]:
        said = {"object": kind[0] or None, "type": kind[1] or None}
        found = [
            (form, [sign for sign in form.signs if sign[0] not in {_OBJECT, _TYPE}])
            for form in self.every
            if all(holds(sign, said) for sign in form.signs if sign[0] in {_OBJECT, _TYPE})
        ]
        if kind[0]:  # with an `object` it is an answer, not an event that carries one: those forms are asked last
            found.sort(key=lambda one: bool(one[0].reader.route.event))
        if len(self._by_kind) < _KINDS:  # the words come from outside
            self._by_kind[kind] = found
        return found


_OBJECT, _TYPE = split("object"), split("type")
_KINDS = 200


def sign_of(text: str) -> _Sign:
    """A sign of `Route.signs`, read."""
    path, _, values = text.removeprefix("!").partition("=")
    return split(path), not text.startswith("!"), frozenset(values.split(",")) if values else frozenset()


def holds(sign: _Sign, body: Any) -> bool:
    """Whether a body has a sign."""
    path, there, values = sign
    found = plain(body, path)
    return word(found) in values if values else (found is not None) is there


@lru_cache(maxsize=64)
def _forms(provider: str) -> _Forms:
    name, row = registry.answers(provider)
    return _Forms(name, row.routes.values())


def _described(body: Any) -> str:
    said = [f"{key}={found!r}" for key in ("object", "type") if (found := word(plain(body, split(key))))]
    return " ".join(said) or f"neither object nor type ({type(body).__name__})"
