"""Ledger entries as a FOCUS 1.2 Cost and Usage file (https://focus.finops.org): what finance tools read.

A row is what one meter of one model cost in an hour or a day, under one price, for one set of tags. The sum of `BilledCost` in a currency is the
ledger's, to the nano-unit. What has no price is in no row, since FOCUS has no unknown cost and ours is never zero: it is told apart.

- A line of an entry whose meter has a quantity makes a row of that meter. What an entry cost beyond such lines (the provider told a sum only)
  makes a row with `SkuMeter` `Calls`, whose tokens are in `x_` columns. So tokens are in one row each, and sums of `x_InputTokens` add up.
- An entry that corrects another is an `Adjustment`, an amount below zero a `Credit`: both have costs, and neither quantities nor unit prices.
- A unit price is the shortest number that gives the cost when it is multiplied with the quantity, to a nano-unit: the ledger keeps amounts, and the
  rate is in the price list under `x_PriceId`.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from aifinops.analytics.focus_rules import COLUMNS, lint_row
from aifinops.charges import Charge
from aifinops.clock import to_datetime
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import DAY_NS, HOUR_NS, ROLLUP_TAGS, Group, Ledger, Progress, Query, add_quantities, start_of
from aifinops.meters import METERS, Meter
from aifinops.money import from_nanos
from aifinops.usage import Quantity

__all__ = ["CUSTOM", "FOCUS_COLUMNS", "PROFILES", "Exported", "Per", "Unpriced", "export_focus", "focus_rows"]

Per = Literal["hour", "day"]

PROFILES = ("focus-1.2",)
"""Versions that can be written."""

_LENGTHS: Mapping[str, int] = MappingProxyType({"hour": HOUR_NS, "day": DAY_NS})

CUSTOM = (
    "x_Calls",
    "x_CostBasis",
    "x_InputTokens",
    "x_CachedInputTokens",
    "x_CacheWriteTokens",
    "x_OutputTokens",
    "x_ReasoningTokens",
    "x_Operation",
    "x_PriceAsOf",
    "x_PriceId",
    "x_PriceSource",
)
"""Columns of our own, for what FOCUS has no place for."""

FOCUS_COLUMNS = (*COLUMNS, *CUSTOM)
"""Columns of our files, in order: all of FOCUS, then ours. Reservations, commitments, zones and invoices are always empty."""

_EXACT = Context(prec=100)
_QUOTIENT = Context(prec=28)
_NANO = Decimal("1e-9")
_CHUNK = 5_000

# Who sells, and what it is called on an invoice; any other provider stands for itself.
_SELLERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "anthropic": ("Anthropic", "Claude API"),
        "aws.bedrock": ("AWS", "Amazon Bedrock"),
        "azure.ai.inference": ("Microsoft", "Azure AI Foundry"),
        "azure.ai.openai": ("Microsoft", "Azure OpenAI"),
        "cohere": ("Cohere", "Cohere API"),
        "deepseek": ("DeepSeek", "DeepSeek API"),
        "gcp.gemini": ("Google", "Gemini API"),
        "gcp.vertex_ai": ("Google Cloud", "Vertex AI"),
        "groq": ("Groq", "GroqCloud"),
        "mistral_ai": ("Mistral AI", "Mistral API"),
        "openai": ("OpenAI", "OpenAI API"),
        "x_ai": ("xAI", "xAI API"),
    }
)
_SERVICES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "llm": ("AI and Machine Learning", "Generative AI", "Model"),
        "bill": ("AI and Machine Learning", "Generative AI", "Model"),
        "gpu": ("Compute", "Virtual Machines", "GPU"),
        "storage": ("Storage", "Object Storage", "Storage"),
        "vector": ("Databases", "Other (Databases)", "Database"),
    }
)
"""`Charge.service` -> category, subcategory, kind of resource."""

_OTHER_SERVICE = ("Other", "Other (Other)", "Service")
_METER_NAMES = {
    "cache_read_": "cached_input_",
    "gpu_seconds": "gpu_hours",
    "cpu_seconds": "cpu_hours",
    "gb_months": "storage",
}


@dataclass(frozen=True, slots=True)
class Unpriced:
    """Calls of one model that no row holds, because nobody knows what they cost; `tokens` counts each once."""

    provider: str
    model: str
    calls: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Exported:
    """What a file holds, and what it does not.

    Attributes:
        rows: how many. entries: ledger entries that are in them. billed: currency -> sum of `BilledCost`, nano-units.
        unpriced: what is in no row; see `Unpriced`. A call that a later entry corrected is not among them.
        committed: entries of capacity that is paid for by the hour: they were billed nothing, and their part of that capacity's price is in
            no `EffectiveCost` (`aifinops report --amortised` has it).
    """

    rows: int
    entries: int
    billed: Mapping[str, int]
    unpriced: tuple[Unpriced, ...]
    committed: int


def export_focus(
    ledger: Ledger,
    path: str | Path,
    *,
    query: Query = Query(),  # noqa: B008 - frozen, so one default can serve all calls
    per: Per = "day",
    tags: Sequence[str] | None = ROLLUP_TAGS,
    account: str = "unspecified",
    profile: str = "focus-1.2",
    replace_file: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write entries as a FOCUS file: CSV, in ASCII, every number with a decimal point. Each row is checked before it is written.

    The file appears when all of it is written. Memory holds the rows of one hour or day.

    Args:
        ledger: from where. path: to where. query: which entries.
        per: how long a row's charge period is, in UTC. tags: keys that tell rows apart and are in `Tags`; None for all that entries have,
            runs and users among them. `project` is also the sub-account.
        account: `BillingAccountId` and `BillingAccountName`: the ledger does not know who is billed.
        profile: one of `PROFILES`. replace_file: write over what is there.
        progress: told how many entries are done, and of how many.

    Raises:
        ConfigurationError: for a wrong option or query, a path that is taken, or entries that FOCUS cannot hold (a currency that is none).
        StoreError: when the ledger cannot be read. OSError: when the file cannot be written.
    """
    target = Path(path)
    if profile not in PROFILES:
        raise ConfigurationError(f"profile {profile!r} cannot be written; use {', '.join(PROFILES)}")
    if target.exists() and not replace_file:
        raise ConfigurationError(f"{target} is there already; name another file, or say that it may be replaced")
    groups = ledger.summarize(query, ("provider", "model"))
    left = _unpriced(groups)
    seen = _Seen(sum(group.calls + group.corrections for group in groups), progress)
    charges = seen.watch(ledger.rows(replace(query, newest_first=False)))
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        count = _write(partial, focus_rows(charges, per=per, tags=tags, account=account))
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return Exported(count, seen.entries, MappingProxyType(dict(seen.billed)), left, seen.committed)


def _unpriced(groups: Iterable[Group]) -> tuple[Unpriced, ...]:
    """A model each: the same one may be there in several currencies, which say nothing of what has no price."""
    found: dict[tuple[str, ...], list[int]] = {}
    for group in groups:
        if group.unpriced_calls:
            counts = found.setdefault(group.key, [0, 0])
            counts[0] += group.unpriced_calls
            counts[1] += group.unpriced_tokens
    return tuple(Unpriced(key[0], key[1], *counts) for key, counts in found.items())


@dataclass(slots=True)
class _Seen:
    """Counts entries on their way."""

    total: int
    progress: Progress | None
    entries: int = 0
    committed: int = 0
    billed: dict[str, int] = field(default_factory=dict)

    def watch(self, charges: Iterable[Charge]) -> Iterator[Charge]:
        done = 0
        for done, charge in enumerate(charges, 1):
            if charge.amount is not None:
                self.entries += 1
                self.committed += charge.basis == "committed"
                self.billed[charge.currency] = self.billed.get(charge.currency, 0) + charge.amount
            yield charge
            if self.progress is not None and done % _CHUNK == 0:
                self.progress(done, max(done, self.total))
        if self.progress is not None:
            self.progress(done, done)


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> int:
    count = 0
    # Lines end as RFC 4180 says, and what a cell has of line ends was escaped.
    with path.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FOCUS_COLUMNS)
        for row in rows:
            _check(row)
            writer.writerow([row[name] for name in FOCUS_COLUMNS])
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def _check(row: Mapping[str, str]) -> None:
    found = lint_row(row)
    if found:
        said = "; ".join(f"{one.column}: {one.text}" for one in found[:3])
        raise ConfigurationError(
            f"entries of {row['ChargePeriodStart']}, {row['SkuId'] or row['ServiceName']}, cannot be told in FOCUS ({said}). Nothing was written; "
            "mend them by a correction, or leave them out: --where currency=USD"
        )


# --- rows ---------------------------------------------------------------------------------------------------------------


def focus_rows(
    charges: Iterable[Charge],
    *,
    per: Per = "day",
    tags: Sequence[str] | None = ROLLUP_TAGS,
    account: str = "unspecified",
) -> Iterator[dict[str, str]]:
    """Rows of entries that come in the order of time: column -> text, empty for null. Entries without an amount are in none.

    Args:
        charges: ascending in `at`. per, tags, account: as in `export_focus`.

    Raises:
        ConfigurationError: for a wrong `per`, an empty `account`, or text in place of a list of tags.
    """
    length = _LENGTHS.get(per)
    if length is None:
        raise ConfigurationError(f"per={per!r} is no charge period; write {' or '.join(_LENGTHS)}")
    if isinstance(tags, str):
        raise ConfigurationError(f"tags={tags!r} must be a list of keys, such as {tags.split(',')!r}")
    if not account.strip():
        raise ConfigurationError("account is empty; write the id of who is billed, or leave it out")
    wanted = None if tags is None else tuple(tags)
    return _periods(charges, length, wanted, account)


def _periods(
    charges: Iterable[Charge], length: int, tags: tuple[str, ...] | None, account: str
) -> Iterator[dict[str, str]]:
    for start, of_period in groupby(charges, key=lambda charge: start_of(charge.at, length)):
        base = _period_columns(start, length) | {"BillingAccountId": account, "BillingAccountName": account}
        sums: dict[_Key, _Sum] = {}
        for charge in of_period:
            if charge.amount is not None:
                _add(sums, charge, charge.amount, tags)
        for key in sorted(sums):
            yield _row(key, sums[key], base)


class _Key(NamedTuple):
    """What a row is of. `meter` is empty for a sum that no meter has."""

    provider: str
    model: str
    meter: str
    category: str
    currency: str
    service: str
    operation: str
    tier: str
    region: str
    basis: str
    price_id: str
    price_as_of: str
    price_source: str
    project: str
    tags: str


@dataclass(slots=True)
class _Sum:
    """What is added up in a row: nano-units, entries, and quantities by meter."""

    billed: int = 0
    listed: int = 0
    calls: int = 0
    quantities: dict[str, Quantity] = field(default_factory=dict)


class _Part(NamedTuple):
    """A share of an entry: `billed` and `listed` in nano-units, and the meters whose quantities are in it."""

    meter: str
    billed: int
    listed: int
    meters: tuple[str, ...]


def _add(sums: dict[_Key, _Sum], charge: Charge, amount: int, tags: tuple[str, ...] | None) -> None:
    own = {name: value for name, value in charge.tags.items() if tags is None or name in tags}
    model = charge.response_model or charge.model or charge.operation or "unspecified"
    for part in _parts(charge, amount):
        category = "Usage"
        if charge.corrects:
            category = "Adjustment"
        elif part.billed < 0 or part.listed < 0:
            category = "Credit"
        key = _Key(
            charge.provider or "unspecified", model, part.meter, category, charge.currency, charge.service, charge.operation,
            charge.tier, charge.region, charge.basis, charge.price_id or "", charge.price_as_of or "", charge.price_source or "",
            own.get("project", ""), json.dumps(own, sort_keys=True) if own else "",
        )  # fmt: skip
        row = sums.setdefault(key, _Sum())
        row.billed += part.billed
        row.listed += part.listed
        row.calls += 1
        add_quantities(row.quantities, {name: charge.quantities[name] for name in part.meters})


def _parts(charge: Charge, amount: int) -> Iterator[_Part]:
    """An entry as parts that add up to its amount."""
    used = tuple(name for name, value in charge.quantities.items() if value > 0)
    lines: dict[str, int] = {}
    if not charge.corrects:
        for meter, nanos in charge.lines:
            if meter in used and nanos >= 0:
                lines[meter] = lines.get(meter, 0) + nanos
    listed = amount if charge.list_amount is None else charge.list_amount
    rest = amount - sum(lines.values())
    if not (lines or amount or listed or charge.corrects):
        lines = dict.fromkeys(used, 0)  # all of it was free
    elif lines and not rest:
        lines |= {
            name: 0 for name in used if name not in lines
        }  # the lines are all of it: the others were charged nothing
    if listed != amount and (rest or not amount):
        lines, rest = {}, amount  # nothing says what each meter is at list prices
    for meter, nanos, at_list in _at_list(lines, amount, listed):
        yield _Part(meter, nanos, at_list, (meter,))
    if rest or not lines:
        meters = tuple(name for name in used if name not in lines)
        yield _Part("", rest, rest if lines else listed, meters)


def _at_list(lines: Mapping[str, int], amount: int, listed: int) -> Iterator[tuple[str, int, int]]:
    """Each line with its share of the amount at list prices; shares add up to it, and without a contract they are the lines."""
    done = before = 0
    for meter, nanos in lines.items():
        done += nanos
        # The share of all lines so far, less what those before had: nothing is lost in rounding.
        until = done if listed == amount else done * listed // amount
        yield meter, nanos, until - before
        before = until


def _period_columns(start: int, length: int) -> dict[str, str]:
    at = to_datetime(start)
    month = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    form = "%Y-%m-%dT%H:%M:%SZ"
    return {
        "BillingPeriodStart": month.strftime(form),
        "BillingPeriodEnd": following.strftime(form),
        "ChargePeriodStart": at.strftime(form),
        "ChargePeriodEnd": to_datetime(start + length).strftime(form),
    }


def _row(key: _Key, row: _Sum, base: Mapping[str, str]) -> dict[str, str]:
    billed = from_nanos(row.billed)
    seller, service = _SELLERS.get(key.provider, (key.provider, key.provider))
    category, subcategory, resource = _SERVICES.get(key.service, _OTHER_SERVICE)
    name = _meter_name(key.meter)
    usage = key.category == "Usage"
    found = {**dict.fromkeys(FOCUS_COLUMNS, ""), **base, **_tokens(row.quantities)}
    found |= {
        "BilledCost": _number(billed),
        "EffectiveCost": _number(billed),
        "ContractedCost": _number(billed),
        "ListCost": _number(from_nanos(row.listed) if usage else billed),
        "BillingAccountType": "Account",
        "BillingCurrency": key.currency,
        "ChargeCategory": key.category,
        "ChargeDescription": f"{key.model} {name if usage else key.category}",
        "ChargeFrequency": "Usage-Based" if usage else "One-Time",
        "InvoiceIssuerName": seller,
        "PricingCurrency": key.currency,
        "PricingCurrencyEffectiveCost": _number(billed),
        "ProviderName": seller,
        "PublisherName": seller,
        "RegionId": key.region,
        "RegionName": key.region,
        "ResourceId": f"{key.provider}/{key.model}",
        "ResourceName": key.model,
        "ResourceType": resource,
        "ServiceCategory": category,
        "ServiceName": service,
        "ServiceSubcategory": subcategory,
        "Tags": key.tags,
        "x_Calls": str(row.calls),
        "x_CostBasis": key.basis,
        "x_Operation": key.operation,
        "x_PriceAsOf": key.price_as_of,
        "x_PriceId": key.price_id,
        "x_PriceSource": key.price_source,
    }
    if key.project:
        found |= {"SubAccountId": key.project, "SubAccountName": key.project, "SubAccountType": "Project"}
    if usage:
        found |= _priced(key, row)
    return {column: _ascii(text) for column, text in found.items()}


def _priced(key: _Key, row: _Sum) -> dict[str, str]:
    """What only usage has: quantities, unit prices, and of which SKU."""
    if key.meter:
        consumed, quantity, units = _measured(METERS.get(key.meter), row.quantities[key.meter])
    else:
        consumed, quantity, units = Decimal(row.calls), Decimal(row.calls), ("Calls", "Calls")
    sku = f"{key.provider}/{key.model}/{key.meter or 'calls'}"
    tier = key.tier or "default"
    contracted, listed = (_number(_unit_price(cost, quantity)) for cost in (row.billed, row.listed))
    return {
        "ConsumedQuantity": _number(consumed),
        "ConsumedUnit": units[0],
        "ContractedUnitPrice": contracted,
        "ListUnitPrice": listed,
        "PricingCurrencyContractedUnitPrice": contracted,
        "PricingCurrencyListUnitPrice": listed,
        "PricingCategory": "Committed" if key.basis == "committed" else "Standard",
        "PricingQuantity": _number(quantity),
        "PricingUnit": units[1],
        "SkuId": sku,
        "SkuMeter": _meter_name(key.meter),
        "SkuPriceDetails": json.dumps(_details(key)),
        "SkuPriceId": "/".join(part for part in (sku, tier, key.region) if part),
    }


def _details(key: _Key) -> dict[str, str]:
    found = {"x_ModelId": key.model, "x_ProcessingTier": key.tier or "default"}
    meter = METERS.get(key.meter)
    if meter is not None and meter.family == "tokens":
        found["x_TokenDirection"] = meter.direction.title()
        found["x_TokenCacheAction"] = meter.cache.title() or "None"
        found["x_TokenModality"] = meter.modality.title()
    if meter is not None and meter.tool:
        found["x_Tool"] = meter.tool
    return found


def _meter_name(meter: str) -> str:
    if not meter:
        return "Calls"
    for beginning, other in _METER_NAMES.items():
        if meter.startswith(beginning):
            meter = other + meter.removeprefix(beginning)
    return meter.strip("_").replace("_", " ").title().replace("Gpu", "GPU").replace("Cpu", "CPU")


_TIMES = {60: "Minutes", 3600: "Hours"}


def _measured(meter: Meter | None, value: Quantity) -> tuple[Decimal, Decimal, tuple[str, str]]:
    """A quantity as FOCUS counts it: consumed, priced, and the units of both; a time to 28 digits where hours have no end."""
    number = Decimal(value)
    if meter is None:  # of another version, or defined in another process
        return number, number, ("Units", "Units")
    if meter.unit == "s":
        kind = meter.name.removesuffix("_seconds").upper() if meter.per == 3600 else ""
        unit = _TIMES.get(meter.per, "Seconds")
        spent = _QUOTIENT.divide(number, Decimal(meter.per)) if meter.per > 1 else number
        named = f"{kind}-{unit}" if kind else unit
        return spent, spent, (named, named)
    if meter.unit == "By":
        number = _EXACT.divide(number, Decimal(meter.per))
        return number, number, ("GB", "GB")
    if meter.unit == "GiB.mo":
        return number, number, ("GiB-Months", "GiB-Months")
    word = meter.unit.strip("{}_").replace("_", " ").title()
    unit = word if word.endswith("s") else f"{word}s"
    priced = unit if meter.per == 1 else f"{meter.per} {unit}"
    return number, _EXACT.divide(number, Decimal(meter.per)), (unit, priced)


def _unit_price(cost: int, quantity: Decimal) -> Decimal:
    """The shortest price that gives `cost` (nano-units) for the quantity, to a nano-unit."""
    wanted = from_nanos(cost)
    exact = _QUOTIENT.divide(wanted, quantity)
    for digits in range(1, 28):
        price = Context(prec=digits).plus(exact)
        if _EXACT.multiply(price, quantity).quantize(_NANO, context=_EXACT) == wanted:
            return price
    return exact


def _tokens(quantities: Mapping[str, Quantity]) -> dict[str, str]:
    """Tokens of a row, by kind: cached and written ones are a part of the input, reasoning is a part of the output."""
    found: dict[str, Quantity] = {}
    for name, value in quantities.items():
        meter = METERS.get(name)
        if meter is None or meter.family != "tokens":
            continue
        columns = ["x_InputTokens" if meter.direction == "input" else "x_OutputTokens"]
        columns += {"read": ["x_CachedInputTokens"], "write": ["x_CacheWriteTokens"]}.get(meter.cache, [])
        columns += ["x_ReasoningTokens"] if name == "reasoning_tokens" else []
        for column in columns:
            add_quantities(found, {column: value})
    return {column: _number(Decimal(value)) for column, value in found.items()}


def _number(value: Decimal) -> str:
    """With a decimal point in any case: readers that guess types take `120` for an integer."""
    text = f"{_EXACT.plus(value).normalize(_EXACT):f}"
    return text if "." in text else f"{text}.0"


def _ascii(text: str) -> str:
    """Text in ASCII with everything else escaped as in JSON and Python, so that it can be had back; no control characters."""
    if text.isascii() and text.isprintable():
        return text
    printable = "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
    return printable.encode("ascii", "backslashreplace").decode("ascii")
