"""The form of a user's price file, checked by pydantic. Imported only when there is such a file."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from aifinops.errors import ConfigurationError
from aifinops.meters import meter
from aifinops.pricing.match import is_match, provider_id

__all__ = ["read_user_list"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError('write a number, e.g. "0.25"')
    return value


def _meter(name: str) -> str:
    try:
        return meter(name).name
    except ConfigurationError as error:
        raise ValueError(str(error)) from None


def _clause(value: dict[str, str]) -> dict[str, str]:
    if len(value) != 1 or not value.keys() <= {"equals", "starts_with", "contains", "ends_with", "regex"}:
        raise ValueError('write one of {starts_with = "..."}, {contains = "..."}, {ends_with = "..."}, {regex = "..."}')
    try:
        is_match(value, "probe")
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _clock(value: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError('write a time of the UTC day, e.g. "06:00"')
    return value


# A field of a model may be called `date`, and inside that model the name is then no type any more.
Day = date
Money = Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]
MeterName = Annotated[str, AfterValidator(_meter)]
Clause = Annotated[dict[str, str], AfterValidator(_clause)]
Clock = Annotated[str, AfterValidator(_clock)]


class _Rate(_Strict):
    base: Money
    per: Annotated[int, Field(gt=0)] | None = None
    above: dict[Annotated[int, Field(ge=0)], Money] = {}


def _rate(value: object) -> object:
    """A bare number is the price of the customary quantity of its meter."""
    return value if isinstance(value, (Mapping, _Rate)) else {"base": value}


Rates = dict[MeterName, Annotated[_Rate, BeforeValidator(_rate)]]


class _Price(_Strict):
    rates: Rates
    starts: Day | None = Field(None, alias="from")
    until: Day | None = None
    hours: tuple[Clock, Clock] | None = None
    days: list[Annotated[int, Field(ge=0, le=6)]] | None = None
    note: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> _Price:
        if self.starts and self.until and self.until <= self.starts:
            raise ValueError(f"until {self.until} must be after from {self.starts}")
        return self


class _Variant(_Price):
    tier: str = ""
    region: str = ""

    @model_validator(mode="after")
    def _names_something(self) -> _Variant:
        if not (self.tier or self.region):
            raise ValueError('a variant needs tier = "..." or region = "..."')
        return self


class _Model(_Strict):
    provider: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    name: str = ""
    names: list[str] = []
    match: list[Clause] = []
    context_window: Annotated[int, Field(gt=0)] | None = None
    max_output: Annotated[int, Field(gt=0)] | None = None
    free: bool = False
    rates: Rates | None = None
    prices: list[_Price] = []
    variants: list[_Variant] = []

    @model_validator(mode="after")
    def _has_one_price(self) -> _Model:
        if sum((self.free, self.rates is not None, bool(self.prices))) != 1:
            raise ValueError("give exactly one of rates, prices or free = true")
        return self


class _List(_Strict):
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: str = ""
    date: Day | None = None
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    source: str = ""
    models: Annotated[list[_Model], Field(min_length=1)]


def read_user_list(path: Path) -> dict[str, Any]:
    """The validated content: `id`, `version`, `date`, `currency`, `source` and `models` as `prices.read_entry` takes them.

    Raises:
        ConfigurationError: naming the file, the line or the key, the value and what to type instead.
    """
    raw = _parsed(path)
    try:
        given = _List.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError(_explain(path, error)) from None
    twice = _claimed_twice(given)
    if twice:
        raise ConfigurationError(f"price file {path}: {twice}")
    return {
        "id": given.id,
        "version": given.version,
        "date": given.date,
        "currency": given.currency,
        "source": given.source or str(path),
        "models": [_model_row(one) for one in given.models],
    }


def _parsed(path: Path) -> Any:
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": lambda text: tomllib.loads(text, parse_float=Decimal),
        ".json": lambda text: json.loads(text, parse_float=Decimal),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(f"price file {path} must end in .toml or .json, not {path.suffix!r}")
    try:
        return reader(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"price file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        # Both decoders say the line and the column.
        raise ConfigurationError(f"price file {path} is no valid {path.suffix[1:].upper()}: {error}") from error


def _claimed_twice(given: _List) -> str:
    """A name that two entries claim, as one sentence; empty when there is none."""
    owners: dict[tuple[str, str], int] = {}
    for number, one in enumerate(given.models):
        for name in dict.fromkeys((one.model.lower(), *map(str.lower, one.names))):
            provider = provider_id(one.provider) or ""
            first = owners.setdefault((provider, name), number)
            if first != number:
                return f"models[{number}] and models[{first}] both claim {name!r} of {provider!r}; name it once"
    return ""


def _explain(path: Path, error: ValidationError) -> str:
    rows = [f"price file {path} is wrong in {error.error_count()} place(s); nothing of it is used:"]
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        value = f" = {item['input']!r}"[:80] if item["type"] != "missing" else ""
        rows.append(f"  {_place(item['loc'])}{value}: {message}{_hint(item)}")
    return "\n".join(rows)


def _place(location: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if part != "[key]"]
    return "".join(parts).removeprefix(".") or "the file"


def _hint(item: Any) -> str:
    if item["type"] != "extra_forbidden":
        return ""
    fields = sorted(
        {info.alias or name for kind in (_List, _Model, _Variant, _Rate) for name, info in kind.model_fields.items()}
    )
    near = difflib.get_close_matches(str(item["loc"][-1]), fields, n=1)
    return f". Did you mean {near[0]}?" if near else f". Known keys: {', '.join(fields)}"


def _model_row(one: _Model) -> dict[str, Any]:
    prices = one.prices or ([_Price.model_validate({"rates": one.rates})] if one.rates is not None else [])
    return {
        **one.model_dump(
            include={"provider", "model", "name", "names", "match", "context_window", "max_output", "free"}
        ),
        "prices": [_price_row(price) for price in prices],
        "variants": [
            {**_price_row(price), "tier": price.tier.lower(), "region": price.region} for price in one.variants
        ],
    }


def _price_row(price: _Price) -> dict[str, Any]:
    return {
        "from": price.starts,
        "until": price.until,
        "hours": price.hours,
        "days": price.days,
        "note": price.note,
        "rates": {name: rate.model_dump(exclude_none=True) for name, rate in price.rates.items()},
    }
