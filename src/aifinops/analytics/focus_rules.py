"""What FOCUS 1.2 asks of a Cost and Usage file, as a table of columns and a lint that says line, column and rule.

It checks what both outside validators check and what each of them misses: values of lists, dates, units, keys, arithmetic.
Source of columns, values and rules: the FOCUS specification 1.2 (https://focus.finops.org/focus-specification/v1-2/).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from aifinops.errors import ConfigurationError

__all__ = ["COLUMNS", "MANDATORY", "SUBCATEGORIES", "Column", "Finding", "lint", "lint_header", "lint_row"]

Kind = Literal["text", "choice", "decimal", "price", "time", "currency", "unit", "keys", "details"]


class Column(NamedTuple):
    """One column of FOCUS: the `kind` of its values, whether it is `mandatory` in a file, and `nullable` (empty) in a row."""

    kind: Kind
    mandatory: bool
    nullable: bool


# Name, kind, then `!` for mandatory and never empty, `m` for mandatory, `r` for never empty where it is there.
_TABLE = """
BilledCost decimal !
BillingAccountId text !
BillingAccountName text m
BillingAccountType text
BillingCurrency currency !
BillingPeriodEnd time !
BillingPeriodStart time !
CapacityReservationId text
CapacityReservationStatus choice
ChargeCategory choice !
ChargeClass choice m
ChargeDescription text m
ChargeFrequency choice r
ChargePeriodEnd time !
ChargePeriodStart time !
CommitmentDiscountCategory choice
CommitmentDiscountId text
CommitmentDiscountName text
CommitmentDiscountQuantity decimal
CommitmentDiscountStatus choice
CommitmentDiscountType text
CommitmentDiscountUnit unit
ConsumedQuantity decimal
ConsumedUnit unit
ContractedCost decimal !
ContractedUnitPrice price
EffectiveCost decimal !
InvoiceId text
InvoiceIssuerName text !
ListCost decimal !
ListUnitPrice price
PricingCategory choice
PricingCurrency text r
PricingCurrencyContractedUnitPrice price
PricingCurrencyEffectiveCost decimal r
PricingCurrencyListUnitPrice price
PricingQuantity decimal m
PricingUnit unit m
ProviderName text !
PublisherName text !
RegionId text
RegionName text
ResourceId text
ResourceName text
ResourceType text
ServiceCategory choice !
ServiceName text !
ServiceSubcategory choice r
SkuId text
SkuMeter text
SkuPriceDetails details
SkuPriceId text
SubAccountId text
SubAccountName text
SubAccountType text
Tags keys
AvailabilityZone text
"""


def _columns() -> dict[str, Column]:
    found: dict[str, Column] = {}
    for line in _TABLE.split("\n")[1:-1]:
        name, kind, mark = [*line.split(), ""][:3]
        found[name] = Column(kind, mark in {"!", "m"}, mark not in {"!", "r"})  # type: ignore[arg-type] # the table above
    return found


COLUMNS: Mapping[str, Column] = MappingProxyType(_columns())
"""Every column of Cost and Usage in FOCUS 1.2."""

MANDATORY = tuple(name for name, column in COLUMNS.items() if column.mandatory)
"""Columns that every file has."""

_PARENTS = {
    "AI and Machine Learning": "AI Platforms|Bots|Generative AI|Machine Learning|Natural Language Processing",
    "Analytics": "Analytics Platforms|Business Intelligence|Data Processing|Search|Streaming Analytics",
    "Business Applications": "Productivity and Collaboration",
    "Compute": "Containers|End User Computing|Quantum Compute|Serverless Compute|Virtual Machines",
    "Databases": "Caching|Data Warehouses|Ledger Databases|NoSQL Databases|Relational Databases|Time Series Databases",
    "Developer Tools": "Developer Platforms|Continuous Integration and Deployment|Development Environments"
    "|Source Code Management|Quality Assurance",
    "Identity": "Identity and Access Management",
    "Integration": "API Management|Messaging|Workflow Orchestration",
    "Internet of Things": "IoT Analytics|IoT Platforms",
    "Management and Governance": "Architecture|Compliance|Cost Management|Data Governance|Disaster Recovery"
    "|Endpoint Management|Observability|Support",
    "Media": "Content Creation|Gaming|Media Streaming|Mixed Reality",
    "Migration": "Data Migration|Resource Migration",
    "Mobile": "",
    "Multicloud": "Multicloud Integration",
    "Networking": "Application Networking|Content Delivery|Network Connectivity|Network Infrastructure|Network Routing"
    "|Network Security",
    "Security": "Secret Management|Security Posture Management|Threat Detection and Response",
    "Storage": "Backup Storage|Block Storage|File Storage|Object Storage|Storage Platforms",
    "Web": "Application Platforms",
    "Other": "",
}

SUBCATEGORIES: Mapping[str, frozenset[str]] = MappingProxyType(
    {name: frozenset({*text.split("|"), f"Other ({name})"} - {""}) for name, text in _PARENTS.items()}
)
"""`ServiceCategory` -> its values of `ServiceSubcategory`."""

_CHOICES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "CapacityReservationStatus": frozenset({"Used", "Unused"}),
        "ChargeCategory": frozenset({"Usage", "Purchase", "Tax", "Credit", "Adjustment"}),
        "ChargeClass": frozenset({"Correction"}),
        "ChargeFrequency": frozenset({"One-Time", "Recurring", "Usage-Based"}),
        "CommitmentDiscountCategory": frozenset({"Spend", "Usage"}),
        "CommitmentDiscountStatus": frozenset({"Used", "Unused"}),
        "PricingCategory": frozenset({"Standard", "Dynamic", "Committed", "Other"}),
        "ServiceCategory": frozenset(SUBCATEGORIES),
        "ServiceSubcategory": frozenset(name for names in SUBCATEGORIES.values() for name in names),
    }
)

# ISO 4217 with its codes for funds and metals, and two that were withdrawn lately (CUC, ANG).
_ISO_4217 = """
AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE
CHF CHW CLF CLP CNY COP COU CRC CUC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ
GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD
MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG
QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SLL SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD
TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XAG XAU XBA XBB XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU
XTS XUA XXX YER ZAR ZMW ZWG ZWL
"""
_CURRENCIES = frozenset(_ISO_4217.split())

_DETAILS = frozenset(
    {
        "CoreCount", "DiskMaxIops", "DiskSpace", "DiskType", "GpuCount", "InstanceSeries", "InstanceType", "MemorySize",
        "NetworkMaxIops", "NetworkMaxThroughput", "OperatingSystem", "Redundancy", "StorageClass",
    }
)  # fmt: skip
_TIME = r"(?:Year|Month|Day|Hour|Minute|Second)"
_WORDS = r"[A-Za-z][A-Za-z0-9]*(?: [A-Za-z][A-Za-z0-9]*)*"
# `1M Tokens` is neither a number with a unit nor words.
_UNIT = re.compile(rf"(?:[1-9]\d* )?{_WORDS}(?:-{_TIME}s|/{_TIME}|/[1-9]\d* {_TIME}s)?")
_DECIMAL = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE]-?\d{1,3})?")  # what has more digits is a slip, and no Decimal
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_ID_COLUMNS = {"BillingAccount": ("BillingAccountType",), "SubAccount": ("SubAccountName", "SubAccountType"), "Resource": ("ResourceName", "ResourceType"), "Region": ("RegionName",)}  # fmt: skip
_COMMITMENT = ("CommitmentDiscountCategory", "CommitmentDiscountName", "CommitmentDiscountType", "CommitmentDiscountQuantity", "CommitmentDiscountStatus")  # fmt: skip
_OF_SKU = ("SkuMeter", "SkuPriceDetails")
_NOT_OF_TAX = ("ConsumedQuantity", "ContractedUnitPrice", "ListUnitPrice", "PricingCategory", "PricingQuantity", "SkuId", "SkuPriceId")  # fmt: skip
_PRICED = ("ContractedUnitPrice", "ListUnitPrice", "PricingCategory", "PricingQuantity", "SkuId", "SkuPriceId")
_EXACT = Context(prec=100)
_NANO = Decimal("1e-9")
_SHARE = Decimal("1e-12")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a file that FOCUS does not allow.

    Attributes:
        line: of the file, the header being 1. column: its name, may be empty. rule: short name. text: what is wrong, for people.
    """

    line: int
    column: str
    rule: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}  {self.column or '-'}  {self.rule}: {self.text}"


def lint(path: str | Path) -> Iterator[Finding]:
    """Everything that is wrong with a CSV file, in its order and in flat memory (one entry for each price of a SKU).

    Raises:
        ConfigurationError: when the file cannot be read, or is no CSV in UTF-8.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield from _lint_lines(csv.reader(file, strict=True))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} is no CSV in UTF-8: {error}") from error


def _lint_lines(reader: Any) -> Iterator[Finding]:
    header: list[str] = next(reader, [])
    yield from lint_header(header)
    parents: dict[str, str] = {}
    for cells in reader:
        line = reader.line_num
        if len(cells) != len(header):
            yield Finding(line, "", "cells", f"{len(cells)} cells, and the header has {len(header)}")
            continue
        row = dict(zip(header, cells, strict=True))
        yield from lint_row(row, line)
        price, sku = row.get("SkuPriceId", ""), row.get("SkuId", "")
        if price and parents.setdefault(price, sku) != sku:
            yield Finding(line, "SkuPriceId", "sku-parent", f"{price!r} belongs to {parents[price]!r} and to {sku!r}")


def lint_header(columns: Sequence[str]) -> list[Finding]:
    """What is wrong with the names of columns: a mandatory one is missing, one is twice there, one of our own without `x_`."""
    found = [Finding(1, name, "missing-column", "every file must have it") for name in MANDATORY if name not in columns]
    found += [
        Finding(1, name, "twice", "it is there twice")
        for name in dict.fromkeys(columns)
        if list(columns).count(name) > 1
    ]
    found += [
        Finding(1, name, "custom-column", "it is not in FOCUS 1.2; a column of one's own begins with x_")
        for name in columns
        if name not in COLUMNS and not name.startswith("x_")
    ]
    return found


def lint_row(row: Mapping[str, str], line: int = 0) -> list[Finding]:
    """What is wrong with one row: column -> text, empty for null."""
    found = [(name, *wrong) for name, text in row.items() for wrong in _of_cell(name, text)]
    broken = {name for name, *_ in found}
    for name, rule, text in _of_row(row):
        if name not in broken:  # what is no number cannot be multiplied
            found.append((name, rule, text))
    return [Finding(line, *wrong) for wrong in found]


_Wrong = tuple[str, str]


def _of_cell(name: str, text: str) -> Iterable[_Wrong]:
    if not text.isascii():
        yield "ascii", f"{text!r} has other letters than ASCII"
    column = COLUMNS.get(name)
    if column is None:
        return
    if not text.strip():
        if text or not column.nullable:
            yield "not-null", "it must not be empty"
        return
    wrong = _of_kind(name, column.kind, text)
    if wrong is not None:
        yield wrong


def _of_kind(name: str, kind: Kind, text: str) -> _Wrong | None:
    if kind in {"decimal", "price"}:
        if not _DECIMAL.fullmatch(text):
            return "decimal", f"{text!r} is no number as 1200000.0 or 1.2E6 is"
        if kind == "price" and text.startswith("-") and Decimal(text):
            return "non-negative", f"a unit price of {text} is below zero"
    elif kind == "time":
        if _time(text) is None:
            return "date-time", f"{text!r} is no time as 2026-11-01T00:00:00Z is"
    elif kind == "currency":
        if text not in _CURRENCIES:
            return "currency", f"{text!r} is no code of ISO 4217"
    elif kind == "unit":
        if not _UNIT.fullmatch(text):
            return "unit", f"{text!r} is no unit as Tokens, 1000000 Tokens or GPU-Hours is"
    elif kind == "choice":
        if text not in _CHOICES[name]:
            return "value", f"{text!r} is none of {', '.join(sorted(_CHOICES[name]))}"
    elif kind in {"keys", "details"}:
        return _of_keys(text, kind == "details")
    return None


def _of_keys(text: str, details: bool) -> _Wrong | None:
    pairs: list[tuple[str, Any]] = []

    def gather(given: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = given  # the outermost object is the last to be made
        return dict(given)

    try:
        value = json.loads(text, object_pairs_hook=gather)
    except (ValueError, RecursionError):
        return "key-value", f"{text!r} is no JSON"
    if not isinstance(value, dict):
        return "key-value", f"{text!r} is no JSON object"
    if len(value) != len(pairs):
        return "key-value", "a key is there twice"
    nested = sorted(name for name, inner in value.items() if isinstance(inner, dict | list))
    if nested:
        return "nested", f"{', '.join(nested)}: a value must be a text, a number, true, false or null"
    own = sorted(name for name in value if not name.startswith("x_") and name not in _DETAILS)
    return ("custom-key", f"{', '.join(own)}: a key of one's own begins with x_") if details and own else None


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if _MOMENT.fullmatch(text) else None
    except ValueError:
        return None


_Found = tuple[str, str, str]


def _of_row(row: Mapping[str, str]) -> Iterator[_Found]:
    yield from _periods(row)
    yield from _pairs(row)
    yield from _by_category(row)
    yield from _commitment(row)
    yield from _arithmetic(row)
    parent, child = row.get("ServiceCategory", ""), row.get("ServiceSubcategory", "")
    if child and parent in SUBCATEGORIES and child not in SUBCATEGORIES[parent]:
        yield "ServiceSubcategory", "subcategory", f"{child!r} does not belong to {parent!r}"


def _periods(row: Mapping[str, str]) -> Iterator[_Found]:
    for name in ("BillingPeriod", "ChargePeriod"):
        start, end = _time(row.get(f"{name}Start", "")), _time(row.get(f"{name}End", ""))
        if start is not None and end is not None and start >= end:
            yield f"{name}End", "period", "it ends before it begins"


def _pairs(row: Mapping[str, str]) -> Iterator[_Found]:
    """What stands together or not at all, where the file has both columns."""
    for kind in ("Consumed", "Pricing", "CommitmentDiscount"):
        quantity, unit = f"{kind}Quantity", f"{kind}Unit"
        if quantity in row and unit in row and bool(row[quantity]) != bool(row[unit]):
            yield unit, "quantity-unit", f"{quantity} and {unit} stand together or not at all"
    for owner, others in _ID_COLUMNS.items():
        for name in others:
            if f"{owner}Id" in row and name in row and bool(row[f"{owner}Id"]) != bool(row[name]):
                yield name, "id-name", f"{owner}Id and {name} stand together or not at all"
    for name in _OF_SKU:
        owner = "SkuId" if name == "SkuMeter" else "SkuPriceId"
        if row.get(name) and owner in row and not row[owner]:
            yield name, "sku", f"it must be empty where {owner} is"


def _by_category(row: Mapping[str, str]) -> Iterator[_Found]:
    category, corrects = row.get("ChargeCategory", ""), row.get("ChargeClass") == "Correction"
    unused = row.get("CommitmentDiscountStatus") == "Unused"
    if category == "Tax":
        yield from ((name, "tax", "it must be empty for a tax") for name in _NOT_OF_TAX if row.get(name))
    if category in {"Usage", "Purchase"} and not corrects:
        yield from ((name, "priced", f"a {category} must have it") for name in _PRICED if row.get(name) == "")
    if row.get("ConsumedQuantity") and (category != "Usage" or unused):
        yield "ConsumedQuantity", "consumed", "only usage that was used has it"
    if row.get("ConsumedQuantity") == "" and category == "Usage" and not unused and not corrects:
        yield "ConsumedQuantity", "consumed", "usage must have it"
    if category == "Purchase" and row.get("ChargeFrequency") == "Usage-Based":
        yield "ChargeFrequency", "frequency", "a purchase is One-Time or Recurring"


def _commitment(row: Mapping[str, str]) -> Iterator[_Found]:
    owner = row.get("CommitmentDiscountId", "")
    if not owner:
        yield from ((name, "commitment", "it must be empty where CommitmentDiscountId is") for name in _COMMITMENT if row.get(name))  # fmt: skip
    elif row.get("ChargeCategory") == "Usage" and not row.get("CommitmentDiscountStatus"):
        yield "CommitmentDiscountStatus", "commitment", "usage of a commitment is Used or Unused"


def _arithmetic(row: Mapping[str, str]) -> Iterator[_Found]:
    if row.get("ChargeClass") == "Correction":
        return
    quantity = _number(row, "PricingQuantity")
    for kind in ("List", "Contracted"):
        cost, price = _number(row, f"{kind}Cost"), _number(row, f"{kind}UnitPrice")
        if cost is None:
            continue
        if price is not None and quantity is not None:
            product = _EXACT.multiply(price, quantity)
            # To a nano-unit, the finest that is charged: a unit price with no end is cut off somewhere.
            if abs(_EXACT.subtract(product, cost)) > max(_NANO, abs(cost) * _SHARE):
                yield f"{kind}Cost", "arithmetic", f"{price} x {quantity} = {product}, not {cost}"
        elif row.get("ChargeCategory") in {"Credit", "Adjustment"} and cost != _number(row, "BilledCost"):
            yield f"{kind}Cost", "arithmetic", "without a unit price it is equal to BilledCost"


def _number(row: Mapping[str, str], name: str) -> Decimal | None:
    text = row.get(name, "")
    return Decimal(text) if _DECIMAL.fullmatch(text) else None
