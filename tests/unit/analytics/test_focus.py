"""FOCUS files: to the nano-unit what the ledger has, every row as FOCUS has it, and what has no price told apart."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from aifinops.analytics import focus
from aifinops.analytics.focus import CUSTOM, FOCUS_COLUMNS, Unpriced, export_focus, focus_rows
from aifinops.analytics.focus_rules import COLUMNS, MANDATORY, Finding, lint, lint_header, lint_row
from aifinops.analytics.reports import report
from aifinops.charges import LISTED, Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger.base import DAY_NS, Query
from aifinops.ledger.memory import MemoryLedger
from aifinops.meters import METERS, define
from aifinops.money import from_nanos
from aifinops.testing.ledger import HOUR, START, example_charge, random_charges


def ledger_of(*charges: Charge) -> MemoryLedger:
    made = MemoryLedger()
    made.append_many(list(charges))
    return made


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="ascii", newline="") as file:
        return list(csv.DictReader(file))


def in_time(charges: list[Charge]) -> list[Charge]:
    return sorted(charges, key=lambda charge: (charge.at, charge.id))


def sums(rows: list[dict[str, str]], column: str) -> dict[str, Decimal]:
    found: Counter[str] = Counter()
    for row in rows:
        found[row["BillingCurrency"]] += Decimal(row[column] or 0)  # type: ignore[assignment] # Counter adds any number
    return dict(found)  # type: ignore[arg-type]


# --- rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["hour", "day"])
@pytest.mark.parametrize("tags", [None, (), ("team",)])
@pytest.mark.parametrize("seed", range(5))
def test_amounts_and_tokens_are_those_of_the_ledger(
    seed: int, tags: tuple[str, ...] | None, per: focus.Per, tmp_path: Path
) -> None:
    """Sums of each currency and of each kind of token are exact, however rows are cut, and the lint finds nothing."""
    charges = random_charges(seed, 300)
    path = tmp_path / "f.csv"
    done = export_focus(ledger_of(*charges), path, per=per, tags=tags)
    known = [charge for charge in charges if charge.amount is not None]
    wanted: dict[str, Decimal] = {}
    for charge in known:
        wanted[charge.currency] = wanted.get(charge.currency, Decimal(0)) + from_nanos(charge.amount or 0)
    rows = read(path)
    assert sums(rows, "BilledCost") == sums(rows, "EffectiveCost") == wanted
    assert {currency: from_nanos(amount) for currency, amount in done.billed.items()} == wanted
    assert (done.rows, done.entries) == (len(rows), len(known))
    tokens = sum(
        (Decimal(charge.quantities.get(name, 0)) for charge in known for name, one in METERS.items() if one.direction == "input" and one.family == "tokens"),
        Decimal(0),
    )  # fmt: skip
    assert sum((Decimal(row["x_InputTokens"] or 0) for row in rows), Decimal(0)) == tokens
    assert list(lint(path)) == []


def test_a_call_is_a_row_for_each_meter(tmp_path: Path) -> None:
    """Every column of one call, and meters that were charged nothing are there with nothing."""
    call = example_charge(tags={"team": "search", "project": "shop", "user": "u-1"})
    export_focus(ledger_of(call, example_charge(1, tags=call.tags)), tmp_path / "f.csv", account="acme")
    rows = {row["SkuMeter"]: row for row in read(tmp_path / "f.csv")}
    assert sorted(rows) == ["Cached Input Tokens", "Input Tokens", "Output Tokens", "Reasoning Tokens"]
    assert {name: value for name, value in rows["Input Tokens"].items() if value} == {
        "BilledCost": "0.00045",
        "BillingAccountId": "acme",
        "BillingAccountName": "acme",
        "BillingAccountType": "Account",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": "2025-12-01T00:00:00Z",
        "BillingPeriodStart": "2025-11-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeDescription": "gpt-5-mini-2025-08-07 Input Tokens",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2025-11-25T00:00:00Z",
        "ChargePeriodStart": "2025-11-24T00:00:00Z",
        "ConsumedQuantity": "1800.0",
        "ConsumedUnit": "Tokens",
        "ContractedCost": "0.00045",
        "ContractedUnitPrice": "0.25",
        "EffectiveCost": "0.00045",
        "InvoiceIssuerName": "OpenAI",
        "ListCost": "0.00045",
        "ListUnitPrice": "0.25",
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "PricingCurrencyContractedUnitPrice": "0.25",
        "PricingCurrencyEffectiveCost": "0.00045",
        "PricingCurrencyListUnitPrice": "0.25",
        "PricingQuantity": "0.0018",
        "PricingUnit": "1000000 Tokens",
        "ProviderName": "OpenAI",
        "PublisherName": "OpenAI",
        "RegionId": "eu",
        "RegionName": "eu",
        "ResourceId": "openai/gpt-5-mini-2025-08-07",
        "ResourceName": "gpt-5-mini-2025-08-07",
        "ResourceType": "Model",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "OpenAI API",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "openai/gpt-5-mini-2025-08-07/input_tokens",
        "SkuMeter": "Input Tokens",
        "SkuPriceDetails": '{"x_ModelId": "gpt-5-mini-2025-08-07", "x_ProcessingTier": "flex", "x_TokenDirection": "Input", '
        '"x_TokenCacheAction": "None", "x_TokenModality": "Text"}',
        "SkuPriceId": "openai/gpt-5-mini-2025-08-07/input_tokens/flex/eu",
        "SubAccountId": "shop",
        "SubAccountName": "shop",
        "SubAccountType": "Project",
        "Tags": '{"project": "shop", "team": "search"}',
        "x_Calls": "2",
        "x_CostBasis": "priced",
        "x_InputTokens": "1800.0",
        "x_Operation": "chat",
        "x_PriceAsOf": "2025-11-01",
        "x_PriceId": "list/openai/gpt-5-mini",
        "x_PriceSource": "list 1.0",
    }
    cached = rows["Cached Input Tokens"]
    assert (cached["BilledCost"], cached["ListUnitPrice"]) == ("0.0", "0.0")
    assert (cached["x_InputTokens"], cached["x_CachedInputTokens"]) == ("200.0", "200.0")
    assert (rows["Reasoning Tokens"]["x_OutputTokens"], rows["Reasoning Tokens"]["x_ReasoningTokens"]) == (
        "16.0",
        "16.0",
    )


def test_the_file_has_all_columns_of_focus() -> None:
    """All 57 of FOCUS 1.2, the mandatory ones among them, and ours begin with x_."""
    assert len(COLUMNS) == 57
    assert set(MANDATORY) <= set(FOCUS_COLUMNS)
    assert all(name.startswith("x_") for name in CUSTOM)
    assert lint_header(FOCUS_COLUMNS) == []


def test_what_has_no_price_is_in_no_row_and_told(tmp_path: Path) -> None:
    """Unknown is never zero: such a call is told with its model and tokens, and no longer when a correction names it."""
    unknown = example_charge(1, amount=None, basis="unknown", lines=(), model="new", lower=None, upper=None)
    mended = example_charge(2, amount=None, basis="unknown", lines=(), model="other", lower=None, upper=None)
    correction = example_charge(3, corrects=mended.id, status="correction", amount=70, quantities={}, lines=())
    done = export_focus(ledger_of(example_charge(), unknown, mended, correction), tmp_path / "f.csv")
    assert done.unpriced == (Unpriced("openai", "new", 1, 1048),)
    assert done.entries == 2
    rows = read(tmp_path / "f.csv")
    (adjusted,) = [row for row in rows if row["ChargeCategory"] == "Adjustment"]
    assert adjusted["BilledCost"] == adjusted["ListCost"] == "0.00000007"
    assert [name for name in COLUMNS if adjusted[name] and name.startswith(("Consumed", "Pricing", "Sku"))] == [
        "PricingCurrency",
        "PricingCurrencyEffectiveCost",
    ]
    assert sum(Decimal(row["x_InputTokens"] or 0) for row in rows) == 1000


def test_a_sum_without_lines_is_a_row_of_calls(tmp_path: Path) -> None:
    """What a provider told as one number is not spread by guess; its tokens are in columns of ours."""
    call = example_charge(basis="reported", lines=())
    export_focus(ledger_of(call, example_charge(1, basis="reported", lines=())), tmp_path / "f.csv")
    (row,) = read(tmp_path / "f.csv")
    assert (row["SkuMeter"], row["ConsumedQuantity"], row["ConsumedUnit"]) == ("Calls", "2.0", "Calls")
    assert (row["BilledCost"], row["ListUnitPrice"]) == ("0.000701", "0.0003505")
    assert (row["x_InputTokens"], row["x_OutputTokens"]) == ("2000.0", "96.0")


def test_a_credit_has_no_quantity(tmp_path: Path) -> None:
    """An amount below zero that corrects nothing is a credit."""
    export_focus(ledger_of(example_charge(amount=-5, lines=(), quantities={})), tmp_path / "f.csv")
    (row,) = read(tmp_path / "f.csv")
    assert (row["ChargeCategory"], row["BilledCost"], row["ConsumedQuantity"]) == ("Credit", "-0.000000005", "")


def test_a_discount_is_between_list_and_contracted_cost(tmp_path: Path) -> None:
    """List prices are spread over the lines as the amount is, without losing a nano-unit."""
    call = example_charge(raw={LISTED: 500_001})
    export_focus(ledger_of(call), tmp_path / "f.csv")
    rows = read(tmp_path / "f.csv")
    assert sums(rows, "ListCost") == {"USD": from_nanos(500_001)}
    assert sums(rows, "ContractedCost") == {"USD": from_nanos(350_500)}
    (fresh,) = [row for row in rows if row["SkuMeter"] == "Input Tokens"]
    assert Decimal(fresh["ListCost"]) == from_nanos(225_000 * 500_001 // 350_500)


def test_committed_calls_are_billed_nothing_and_told(tmp_path: Path) -> None:
    """Capacity that is paid for by the hour: the list price of what it served stays, and the file says whose it is."""
    call = example_charge(amount=0, basis="committed", lines=(), raw={LISTED: 350_500}, lower=0, upper=0)
    done = export_focus(ledger_of(call), tmp_path / "f.csv")
    (row,) = read(tmp_path / "f.csv")
    assert done.committed == 1
    assert (row["PricingCategory"], row["BilledCost"], row["ListCost"]) == ("Committed", "0.0", "0.0003505")


def test_free_calls_have_their_meters(tmp_path: Path) -> None:
    """Nothing was charged, and it is known of which."""
    call = example_charge(amount=0, basis="free", lines=(), quantities={"input_tokens": 5, "output_tokens": 2})
    export_focus(ledger_of(call), tmp_path / "f.csv")
    assert [(row["SkuMeter"], row["BilledCost"]) for row in read(tmp_path / "f.csv")] == [
        ("Input Tokens", "0.0"),
        ("Output Tokens", "0.0"),
    ]


def test_gpu_time_is_gpu_hours(tmp_path: Path) -> None:
    """A third of an hour has no end as a decimal number, and the unit price still gives the cost."""
    call = example_charge(
        provider="aws", service="gpu", operation="gpu", model="H100", response_model="", amount=1_366_666_667,
        quantities={"gpu_seconds": 1200}, lines=(("gpu_seconds", 1_366_666_667),),
    )  # fmt: skip
    export_focus(ledger_of(call), tmp_path / "f.csv")
    (row,) = read(tmp_path / "f.csv")
    assert (row["ServiceCategory"], row["ServiceSubcategory"]) == ("Compute", "Virtual Machines")
    assert (row["SkuMeter"], row["ConsumedUnit"], row["PricingUnit"]) == ("GPU Hours", "GPU-Hours", "GPU-Hours")
    assert row["ConsumedQuantity"].startswith("0.33333333333")
    assert row["ListUnitPrice"] == "4.1"


@pytest.mark.parametrize("name", [*METERS, "focus_test_minutes"])
def test_every_meter_has_units_of_focus(name: str) -> None:
    """Those of our table and one that a user defined; a price for one customary quantity comes out as it was."""
    meter = define(name)
    call = example_charge(amount=12_340_000_000, quantities={name: meter.per}, lines=((name, 12_340_000_000),))
    (row,) = focus_rows([call])
    assert lint_row(row) == []
    assert row["PricingQuantity"] == "1.0"
    assert row["ListUnitPrice"] == "12.34"


def test_other_letters_are_escaped(tmp_path: Path) -> None:
    """The file is ASCII, as its readers demand, and what was there can be had back."""
    call = example_charge(model="模型\n1", response_model="", tags={"team": "Zürich"})
    export_focus(ledger_of(call), tmp_path / "f.csv")
    row = read(tmp_path / "f.csv")[0]
    assert row["ResourceName"] == "\\u6a21\\u578b\\n1"
    assert json.loads(row["Tags"]) == {"team": "Zürich"}
    assert json.loads(row["SkuPriceDetails"])["x_ModelId"] == "模型\n1"


def test_rows_come_when_their_day_is_over() -> None:
    """Memory holds one period: the first rows are there before the third day is read."""
    taken: list[int] = []

    def days() -> Iterator[Charge]:
        for day in range(100):
            taken.append(day)
            yield example_charge(day, at=START + day * DAY_NS)

    rows = focus_rows(days())
    assert next(rows)["ChargePeriodStart"] == "2025-11-24T00:00:00Z"
    assert taken == [0, 1]
    assert len(list(rows)) == 399


def test_periods_and_tags_tell_rows_apart() -> None:
    """An hour or a day; a key that was not asked for tells nothing apart."""
    calls = [example_charge(hour, at=START + hour * HOUR, tags={"run": str(hour)}) for hour in range(3)]
    assert len(list(focus_rows(calls, per="day"))) == 4
    assert len(list(focus_rows(calls, per="hour"))) == 12
    assert len(list(focus_rows(calls, per="day", tags=None))) == 12
    december = example_charge(at=1_767_222_000_000_000_000)  # 2025-12-31T23:00:00Z
    (row, *_) = focus_rows([december], per="hour")
    assert (row["ChargePeriodEnd"], row["BillingPeriodEnd"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")


# --- files --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_told_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    """A currency that is none: the error says which entries and what to type, and an earlier file stays."""
    path = tmp_path / "f.csv"
    path.write_text("earlier")
    with pytest.raises(ConfigurationError, match=r"'ZZZ' is no code of ISO 4217.*--where currency=USD"):
        export_focus(ledger_of(example_charge(currency="ZZZ")), path, replace_file=True)
    assert [one.name for one in tmp_path.iterdir()] == ["f.csv"]
    assert path.read_text() == "earlier"


def test_a_ledger_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    """No half file stands for a whole one."""

    class Broken(MemoryLedger):
        def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - as the interface has it
            yield from super().rows(query)
            raise StoreError("gone")

    ledger = Broken()
    ledger.append(example_charge())
    with pytest.raises(StoreError, match="gone"):
        export_focus(ledger, tmp_path / "f.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"per": "week"}, "write hour or day"),
        ({"tags": "team,project"}, r"such as \['team', 'project'\]"),
        ({"account": " "}, "account is empty"),
        ({"profile": "focus-9"}, "use focus-1.2"),
    ],
)
def test_wrong_options_are_told(options: dict[str, str], said: str, tmp_path: Path) -> None:
    """Each error says what to type."""
    with pytest.raises(ConfigurationError, match=said):
        export_focus(ledger_of(example_charge()), tmp_path / "f.csv", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    """It is replaced only when that is said; progress is told to the end."""
    told: list[tuple[int, int]] = []
    export_focus(ledger_of(example_charge()), tmp_path / "f.csv")
    with pytest.raises(ConfigurationError, match="is there already"):
        export_focus(ledger_of(), tmp_path / "f.csv")
    ledger = ledger_of(*(replace(example_charge(number), raw=None) for number in range(5001)))
    export_focus(ledger, tmp_path / "f.csv", replace_file=True, progress=lambda done, total: told.append((done, total)))
    assert told == [(5000, 5001), (5001, 5001)]
    assert len(read(tmp_path / "f.csv")) == 4


def test_a_report_writes_its_own_period_and_filter(tmp_path: Path) -> None:
    """The file adds up to the report's total; one that was put together by hand has no entries."""
    calls = [example_charge(number, at=START + number * DAY_NS, tags={"team": "ab"[number % 2]}) for number in range(6)]
    made = report(ledger_of(*calls), "model", since="2025-11-25", where={"team": "a"}, now_ns=START + 9 * DAY_NS)
    done = made.to_focus(tmp_path / "f.csv", per="hour", account="acme")
    assert done.entries == 2
    assert sums(read(tmp_path / "f.csv"), "BilledCost") == {"USD": made.total.amount}
    with pytest.raises(ConfigurationError, match=r"make it by af\.report"):
        replace(made, source=None).to_focus(tmp_path / "g.csv")


# --- lint ---------------------------------------------------------------------------------------------------------------

GOOD = next(row for row in focus_rows([example_charge(tags={"project": "shop"})]) if row["SkuMeter"] == "Input Tokens")
CREDIT = next(focus_rows([example_charge(amount=-5, lines=(), quantities={})]))

BROKEN = [
    (GOOD, {"BillingCurrency": "UDS"}, "BillingCurrency", "currency"),
    (GOOD, {"BilledCost": ""}, "BilledCost", "not-null"),
    (GOOD, {"ServiceName": "  "}, "ServiceName", "not-null"),
    (GOOD, {"BilledCost": "+1.0"}, "BilledCost", "decimal"),
    (GOOD, {"BilledCost": "1,000.0"}, "BilledCost", "decimal"),
    (GOOD, {"BilledCost": "$1.0"}, "BilledCost", "decimal"),
    (GOOD, {"BilledCost": "1e+3"}, "BilledCost", "decimal"),
    (GOOD, {"BilledCost": "NaN"}, "BilledCost", "decimal"),
    (GOOD, {"ListUnitPrice": "-1e99999999999999999999"}, "ListUnitPrice", "decimal"),
    (GOOD, {"ListUnitPrice": "1e999", "PricingQuantity": "1e999"}, "ListCost", "arithmetic"),
    (GOOD, {"ListUnitPrice": "-0.25"}, "ListUnitPrice", "non-negative"),
    (GOOD, {"ChargePeriodStart": "2025-11-24 00:00:00"}, "ChargePeriodStart", "date-time"),
    (GOOD, {"ChargePeriodStart": "2025-13-24T00:00:00Z"}, "ChargePeriodStart", "date-time"),
    (GOOD, {"ChargePeriodStart": "2025-11-24T00:00:00+00:00"}, "ChargePeriodStart", "date-time"),
    (GOOD, {"ChargePeriodEnd": "2025-11-24T00:00:00Z"}, "ChargePeriodEnd", "period"),
    (GOOD, {"PricingUnit": "1M tokens"}, "PricingUnit", "unit"),
    (GOOD, {"ConsumedUnit": "Tokens-Hour"}, "ConsumedUnit", "unit"),
    (GOOD, {"ConsumedUnit": ""}, "ConsumedUnit", "quantity-unit"),
    (GOOD, {"PricingUnit": ""}, "PricingUnit", "quantity-unit"),
    (GOOD, {"ServiceCategory": "AI"}, "ServiceCategory", "value"),
    (GOOD, {"ServiceSubcategory": "LLM"}, "ServiceSubcategory", "value"),
    (GOOD, {"ServiceSubcategory": "Virtual Machines"}, "ServiceSubcategory", "subcategory"),
    (GOOD, {"ChargeCategory": "usage"}, "ChargeCategory", "value"),
    (GOOD, {"ChargeClass": "Fix"}, "ChargeClass", "value"),
    (GOOD, {"ResourceName": "modèle"}, "ResourceName", "ascii"),
    (GOOD, {"x_Operation": "模"}, "x_Operation", "ascii"),
    (GOOD, {"Tags": "team=search"}, "Tags", "key-value"),
    (GOOD, {"Tags": "[1]"}, "Tags", "key-value"),
    (GOOD, {"Tags": '{"a": 1, "a": 2}'}, "Tags", "key-value"),
    (GOOD, {"Tags": '{"a": {"b": 1}}'}, "Tags", "nested"),
    (GOOD, {"Tags": '{"a": [1]}'}, "Tags", "nested"),
    (GOOD, {"SkuPriceDetails": '{"ModelId": "x"}'}, "SkuPriceDetails", "custom-key"),
    (GOOD, {"ListCost": "1.0"}, "ListCost", "arithmetic"),
    (GOOD, {"ContractedCost": "1.0"}, "ContractedCost", "arithmetic"),
    (GOOD, {"PricingQuantity": "7.0"}, "ListCost", "arithmetic"),
    (CREDIT, {"ListCost": "-1.0"}, "ListCost", "arithmetic"),
    (GOOD, {"PricingQuantity": "", "PricingUnit": ""}, "PricingQuantity", "priced"),
    (GOOD, {"ListUnitPrice": ""}, "ListUnitPrice", "priced"),
    (GOOD, {"SkuPriceId": ""}, "SkuPriceId", "priced"),
    (GOOD, {"SkuPriceId": ""}, "SkuPriceDetails", "sku"),
    (GOOD, {"SkuId": ""}, "SkuMeter", "sku"),
    (GOOD, {"ConsumedQuantity": "", "ConsumedUnit": ""}, "ConsumedQuantity", "consumed"),
    (GOOD, {"ChargeCategory": "Purchase"}, "ConsumedQuantity", "consumed"),
    (GOOD, {"ChargeCategory": "Purchase"}, "ChargeFrequency", "frequency"),
    (GOOD, {"ChargeCategory": "Tax"}, "SkuId", "tax"),
    (GOOD, {"SubAccountName": ""}, "SubAccountName", "id-name"),
    (GOOD, {"ResourceId": ""}, "ResourceType", "id-name"),
    (GOOD, {"CommitmentDiscountName": "PTU"}, "CommitmentDiscountName", "commitment"),
    (GOOD, {"CommitmentDiscountId": "ptu-1"}, "CommitmentDiscountStatus", "commitment"),
]


def test_rows_that_are_right_have_no_findings() -> None:
    """What is broken below is right before."""
    assert lint_row(GOOD) == lint_row(CREDIT) == []


@pytest.mark.parametrize(
    ("row", "changes", "column", "rule"), BROKEN, ids=[f"{one[3]}-{number}" for number, one in enumerate(BROKEN)]
)
def test_each_rule_has_a_row_that_breaks_it(
    row: dict[str, str], changes: dict[str, str], column: str, rule: str
) -> None:
    """Found by column and rule, at the line that was given."""
    found = lint_row(row | changes, 7)
    assert (7, column, rule) in {(one.line, one.column, one.rule) for one in found}


def test_corrections_of_a_closed_period_need_not_multiply() -> None:
    """FOCUS lets quantities and costs of a correction differ."""
    assert (
        lint_row(GOOD | {"ChargeClass": "Correction", "ListCost": "1.0", "SkuPriceId": "", "SkuPriceDetails": ""}) == []
    )


def test_what_our_files_do_not_have_is_right_too() -> None:
    """A commitment that was bought, used and left unused, and a tax."""
    owned = {"CommitmentDiscountId": "ptu-1", "CommitmentDiscountName": "PTU", "CommitmentDiscountCategory": "Usage",
             "CommitmentDiscountType": "Reservation"}  # fmt: skip
    counted = {"CommitmentDiscountQuantity": "20.0", "CommitmentDiscountUnit": "Hours"}
    nothing = {"ConsumedQuantity": "", "ConsumedUnit": ""}
    bought = GOOD | owned | counted | nothing | {"ChargeCategory": "Purchase", "ChargeFrequency": "Recurring"}
    used = GOOD | owned | counted | {"CommitmentDiscountStatus": "Used", "PricingCategory": "Committed"}
    unused = used | nothing | {"CommitmentDiscountStatus": "Unused"}
    tax = CREDIT | {"ChargeCategory": "Tax", "BilledCost": "1.5", "ListCost": "1.5", "ContractedCost": "1.5"}
    assert [lint_row(row) for row in (bought, used, unused, tax)] == [[], [], [], []]
    assert {one.rule for one in lint_row(unused | {"ConsumedQuantity": "1.0", "ConsumedUnit": "Hours"})} == {"consumed"}


def test_a_mark_of_byte_order_is_no_part_of_a_name(tmp_path: Path) -> None:
    """Spreadsheets write it."""
    export_focus(ledger_of(example_charge()), tmp_path / "f.csv")
    (tmp_path / "g.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "f.csv").read_bytes())
    assert list(lint(tmp_path / "g.csv")) == []


def test_headers() -> None:
    """A column that is missing, one that is there twice, one of one's own."""
    found = lint_header([name for name in COLUMNS if name != "BilledCost"] + ["Tags", "ModelId", "x_ok"])
    assert {(one.column, one.rule) for one in found} == {
        ("BilledCost", "missing-column"),
        ("Tags", "twice"),
        ("ModelId", "custom-column"),
    }


def test_files_are_read_line_by_line(tmp_path: Path) -> None:
    """Findings of a file: their lines, cells that are too few, a price of two SKUs."""
    names = [name for name in COLUMNS if name in GOOD]
    rows = [GOOD, GOOD | {"BillingCurrency": "UDS"}, GOOD | {"SkuId": "other"}]
    path = tmp_path / "f.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([names, *([row[name] for name in names] for row in rows), ["short"]])
    assert [(one.line, one.column, one.rule) for one in lint(path)] == [
        (3, "BillingCurrency", "currency"),
        (4, "SkuPriceId", "sku-parent"),
        (5, "", "cells"),
    ]
    assert str(Finding(5, "", "cells", "few")) == "line 5  -  cells: few"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), (b"\xff\xfe", "no CSV in UTF-8"), (b'"a', "no CSV")]
)
def test_what_is_no_file_is_told(content: bytes | None, said: str, tmp_path: Path) -> None:
    """No trace of Python: the name and what is wrong with it."""
    if content is not None:
        (tmp_path / "f.csv").write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        list(lint(tmp_path / "f.csv"))
