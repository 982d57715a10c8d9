"""The form of a user's price file, checked by pydantic. Imported only when there is such a file."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from aifinops.errors import ConfigurationError
from aifinops.meters import GROUPS, meter
from aifinops.pricing.contract import SPEND
from aifinops.pricing.match import is_match, provider_id
from aifinops.pricing.prices import STANDARD_TIERS

__all__ = ["read_row", "read_rows", "read_user_list"]


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
    if not isinstance(value, str) or not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError('write a time of the day in quotes, e.g. "06:00"')
    return value


def _volume(name: str) -> str:
    return name if name == SPEND or name in GROUPS else _meter(name)


def _meters(name: str) -> str:
    return name if name in GROUPS else _meter(name)


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError('write the IANA name of a time zone, e.g. "Asia/Shanghai"') from None
    return name


# A field of a model may be called `date`, and inside that model the name is then no type any more.
Day = date
Money = Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]
MeterName = Annotated[str, AfterValidator(_meter)]
Clause = Annotated[dict[str, str], AfterValidator(_clause)]
Clock = Annotated[str, BeforeValidator(_clock)]
Percent = Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, le=100, allow_inf_nan=False)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
Text = Annotated[str, Field(min_length=1)]


class _Rate(_Strict):
    base: Money
    per: Annotated[int, Field(gt=0)] | None = None
    above: dict[Annotated[int, Field(ge=0)], Money] = {}
    graduated: dict[Annotated[int, Field(gt=0)], Money] = {}

    @model_validator(mode="after")
    def _one_kind(self) -> _Rate:
        if self.above and self.graduated:
            raise ValueError(
                "give above (the whole request at one price) or graduated (each step at its own), not both"
            )
        return self


def _rate(value: object) -> object:
    """A bare number is the price of the customary quantity of its meter."""
    return value if isinstance(value, (Mapping, _Rate)) else {"base": value}


Rates = dict[MeterName, Annotated[_Rate, BeforeValidator(_rate)]]


class _Span(_Strict):
    starts: Day | None = Field(None, alias="from")
    until: Day | None = None

    @model_validator(mode="after")
    def _in_order(self) -> _Span:
        if self.starts and self.until and self.until <= self.starts:
            raise ValueError(f"until {self.until} must be after from {self.starts}")
        return self


class _Price(_Span):
    rates: Rates
    hours: tuple[Clock, Clock] | None = None
    days: list[Annotated[int, Field(ge=0, le=6)]] | None = None
    tz: Annotated[str, AfterValidator(_timezone)] | None = None
    holidays: list[Day] = []
    minimum_charge: Money | None = None
    note: str = ""


class _Served(_Strict):
    tier: str = ""
    region: str = ""
    options: dict[Text, Text] = {}

    @model_validator(mode="after")
    def _names_something(self) -> _Served:
        if not (self.tier or self.region or self.options):
            raise ValueError(f'{self._what} needs tier = "...", region = "..." or options = {{ size = "..." }}')
        return self

    @property
    def _what(self) -> str:
        return "a variant" if isinstance(self, _Price) else "an adjustment"


class _Variant(_Served, _Price):
    pass


class _Adjust(_Served, _Span):
    multiply: Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]
    meters: list[Annotated[str, AfterValidator(_meters)]] = []
    note: str = ""
    source: str = ""


class _Model(_Strict):
    provider: Text
    model: Text
    name: str = ""
    names: list[str] = []
    match: list[Clause] = []
    service: str = ""
    context_window: Annotated[int, Field(gt=0)] | None = None
    max_output: Annotated[int, Field(gt=0)] | None = None
    free: bool = False
    provisioned: bool = False
    rates: Rates | None = None
    prices: list[_Price] = []
    variants: list[_Variant] = []
    adjust: list[_Adjust] = []
    minimum_charge: Money | None = None
    minimum: dict[MeterName, Annotated[int, Field(gt=0)]] = {}
    currency: Currency | None = None
    source: str = ""
    as_of: Day | None = None
    confidence: str = ""
    url: str = ""

    @model_validator(mode="after")
    def _has_one_price(self) -> _Model:
        given = sum((self.free, self.rates is not None, bool(self.prices)))
        if given > 1 or not (given or self.provisioned):
            raise ValueError("give exactly one of rates, prices or free = true")
        return self


class _Scope(_Span):
    provider: str = ""
    model: str = ""
    service: str = ""
    tier: str = ""


class _Step(_Strict):
    above: Money
    percent: Percent


class _Discount(_Scope):
    percent: Percent | None = None
    volume: Annotated[str, AfterValidator(_volume)] = SPEND
    tiers: list[_Step] = []
    note: str = ""

    @model_validator(mode="after")
    def _takes_something_off(self) -> _Discount:
        if self.percent is None and not self.tiers:
            raise ValueError('a discount needs percent = "..." or tiers = [{ above = 10000, percent = 5 }]')
        if self.percent is not None and any(step.above == 0 for step in self.tiers):
            raise ValueError("percent is the tier above 0; give one of them")
        if len({step.above for step in self.tiers}) < len(self.tiers):
            raise ValueError("two tiers begin at the same volume; give one of them")
        return self


class _Commitment(_Scope):
    name: Text
    amount: Money
    per: Literal["hour", "day", "month", "year", "term"]
    currency: Currency | None = None

    @model_validator(mode="after")
    def _has_a_term(self) -> _Commitment:
        if self.per == "term" and not (self.starts and self.until):
            raise ValueError('per = "term" spreads the amount from one day until another: give from and until')
        return self


class _Provisioned(_Span):
    provider: Text
    model: Text
    region: str = ""
    name: str = ""
    units: Annotated[Decimal, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
    rate: Money
    currency: Currency | None = None
    tokens_per_minute: Annotated[Decimal, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)] | None = None
    weights: dict[MeterName, Money] = {}
    source: str = ""
    as_of: Day | None = None

    @model_validator(mode="after")
    def _has_a_beginning(self) -> _Provisioned:
        if not self.starts:
            raise ValueError("give from = 2026-11-01, the day from which it is paid for")
        return self


class _Exchange(_Strict):
    source: Currency = Field(alias="from")
    to: Currency
    rate: Annotated[Decimal, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
    date: Day


class _Contract(_Strict):
    currency: Currency | None = None
    markup: Annotated[Decimal, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)] | None = None


class _List(_Strict):
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: str = ""
    date: Day | None = None
    currency: Currency = "USD"
    source: str = ""
    models: list[_Model] = []
    contract: _Contract = _Contract()
    discounts: list[_Discount] = []
    commitments: list[_Commitment] = []
    provisioned: list[_Provisioned] = []
    exchange: list[_Exchange] = []

    @model_validator(mode="after")
    def _says_something(self) -> _List:
        tables = (self.models, self.discounts, self.commitments, self.provisioned, self.exchange)
        if not (any(tables) or self.contract.markup):
            raise ValueError(
                "write at least one of [[models]], [[discounts]], [[commitments]], [[provisioned]], [[exchange]] "
                "or [contract] markup"
            )
        if not self.contract.currency and len({rate.to for rate in self.exchange}) > 1:
            raise ValueError(
                'exchange rates go to several currencies: write [contract] currency = "..." for the one of costs'
            )
        return self


def read_user_list(path: Path) -> dict[str, Any]:
    """The validated content: `id`, `version`, `date`, `currency`, `source` and `models` as `prices.read_entry` takes them.

    Raises:
        ConfigurationError: naming the file, the line or the key, the value and what to type instead.
    """
    return read_rows(_parsed(path), f"price file {path}", str(path))


def read_rows(raw: object, what: str, source: str) -> dict[str, Any]:
    """The same from a parsed table.

    Args:
        raw: the table. what: begins the message of an error. source: where prices are from, when the table does not say.

    Raises:
        ConfigurationError: naming the key, the value and what to type instead.
    """
    try:
        given = _List.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError(_explain(what, error)) from None
    twice = _claimed_twice(given)
    if twice:
        raise ConfigurationError(f"{what}: {twice}")
    return {
        "id": given.id,
        "version": given.version,
        "date": given.date,
        "currency": given.currency,
        "source": given.source or source,
        "models": [_model_row(one) for one in given.models],
        **_terms(given),
    }


def read_row(raw: Mapping[str, Any], what: str) -> tuple[tuple[str, str], dict[str, Any]]:
    """((provider, model), the validated row) of one model that is given in code.

    Raises:
        ConfigurationError: naming the key, the value and what to type instead.
    """
    try:
        given = _Model.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigurationError(_explain(what, error)) from None
    return (provider_id(given.provider) or "", given.model.lower()), _model_row(given)


def _terms(given: _List) -> dict[str, Any]:
    head = given.contract.model_dump(exclude_none=True)
    targets = {rate.to for rate in given.exchange}
    if not given.contract.currency and targets:
        head["currency"] = targets.pop()
    return {
        "contract": head,
        "discounts": [_scoped(one) for one in given.discounts],
        "commitments": [{**_scoped(one), "currency": one.currency or given.currency} for one in given.commitments],
        "provisioned": [
            {**one.model_dump(by_alias=True, exclude_none=True), "currency": one.currency or given.currency}
            for one in given.provisioned
        ],
        "exchange": [one.model_dump(by_alias=True) for one in given.exchange],
    }


def _scoped(one: _Scope) -> dict[str, Any]:
    row = one.model_dump(by_alias=True, exclude_none=True)
    tier = one.tier.lower()
    # An empty tier is any; whoever means the standard one says so.
    row["tier"] = "standard" if tier and tier in STANDARD_TIERS else tier
    return row


def _parsed(path: Path) -> Any:
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": lambda text: tomllib.loads(text, parse_float=Decimal),
        ".json": lambda text: json.loads(text, parse_float=Decimal),
        ".yaml": _yaml,
        ".yml": _yaml,
    }
    suffix = path.suffix.lower()
    reader = readers.get(suffix)
    if reader is None:
        raise ConfigurationError(f"price file {path} must end in .toml, .json or .yaml, not {path.suffix!r}")
    try:
        return reader(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"price file {path} cannot be read: {error.strerror or error}") from error
    except ImportError as error:
        raise ConfigurationError(
            f'price file {path} is YAML, which needs PyYAML: pip install "aifinops[yaml]", or write it as TOML or JSON'
        ) from error
    except ValueError as error:
        # Every decoder says the line and the column.
        kind = "YAML" if suffix == ".yml" else suffix[1:].upper()
        raise ConfigurationError(f"price file {path} is no valid {kind}: {error}") from error


def _yaml(text: str) -> Any:
    yaml: Any = import_module("yaml")  # optional, without types of its own, and only for such a file

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Numbers with a point are read as they are written, and a key that is there twice is an error."""

    def number(loader: Any, node: Any) -> Decimal:
        try:
            return Decimal(str(loader.construct_scalar(node)).replace("_", ""))
        except ArithmeticError:
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is no price", node.start_mark
            ) from None

    def table(loader: Any, node: Any) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        return dict(loader.construct_mapping(node, deep=True))

    Loader.add_constructor("tag:yaml.org,2002:float", number)
    Loader.add_constructor("tag:yaml.org,2002:map", table)
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


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


def _explain(what: str, error: ValidationError) -> str:
    rows = [f"{what} is wrong in {error.error_count()} place(s); nothing of it is used:"]
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        value = f" = {item['input']!r}"[:80] if item["type"] != "missing" else ""
        rows.append(f"  {_place(item['loc'])}{value}: {message}{_hint(item)}")
    return "\n".join(rows)


def _place(location: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location if part != "[key]"]
    return "".join(parts).removeprefix(".") or "the file"


_KINDS: tuple[type[_Strict], ...] = (
    _List,
    _Model,
    _Variant,
    _Rate,
    _Adjust,
    _Contract,
    _Discount,
    _Step,
    _Commitment,
    _Provisioned,
    _Exchange,
)


def _hint(item: Any) -> str:
    if item["type"] != "extra_forbidden":
        return ""
    fields = sorted({info.alias or name for kind in _KINDS for name, info in kind.model_fields.items()})
    near = difflib.get_close_matches(str(item["loc"][-1]), fields, n=1)
    return f". Did you mean {near[0]}?" if near else f". Known keys: {', '.join(fields)}"


def _model_row(one: _Model) -> dict[str, Any]:
    prices = one.prices or ([_Price.model_validate({"rates": one.rates})] if one.rates is not None else [])
    return {
        **one.model_dump(exclude={"rates", "prices", "variants", "adjust"}),
        "prices": [_price_row(price) for price in prices],
        "variants": [_price_row(price) for price in one.variants],
        "adjust": [_lower_tier(factor.model_dump(by_alias=True)) for factor in one.adjust],
    }


def _price_row(price: _Price) -> dict[str, Any]:
    row = price.model_dump(by_alias=True)
    row["rates"] = {name: rate.model_dump(exclude_none=True) for name, rate in price.rates.items()}
    return _lower_tier(row)


def _lower_tier(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "tier": row.get("tier", "").lower()}
