"""An answer that several models have served is one charge, each part at its own price."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import aifinops as af
from aifinops import metering, runtime
from aifinops.charges import Charge
from aifinops.ledger import open_ledger
from aifinops.metering import Call
from aifinops.money import from_nanos, to_nanos
from aifinops.pricing.lists import from_file
from aifinops.pricing.rerate import rerate
from aifinops.reading import Part, Reading, options_of, parts_of, price
from aifinops.telemetry.attributes import inference
from aifinops.testing import capture_charges
from aifinops.usage import Sku, Usage


def settled(reading: Reading, *, asked: str = "claude-haiku-4-5") -> Charge:
    """The one charge of a call that ended with this reading."""
    with capture_charges() as charges:
        invocation = metering.begin(Call("anthropic", "chat", asked))
        assert invocation is not None
        invocation.leave()
        invocation.settle(reading)
    (charge,) = charges
    return charge


def reading(*parts: Part, **more: Any) -> Reading:
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.quantities.items():
            total[name] = total.get(name, 0) + value
    return Reading(total, model="claude-haiku-4-5", parts=parts, **more)


def in_euros(folder: Path) -> None:
    """A contract by which a dollar is half a euro."""
    contract = folder / "contract.toml"
    contract.write_text('id = "ours"\n[[exchange]]\nfrom = "USD"\nto = "EUR"\nrate = "0.5"\ndate = 2020-01-01\n')
    runtime.init(ledger="memory", prices=[str(contract)])


HAIKU = Part({"input_tokens": 1000, "output_tokens": 100}, "claude-haiku-4-5", "message")
OPUS = Part({"input_tokens": 900, "output_tokens": 1500}, "claude-opus-5", "advisor_message")
UNKNOWN = Part({"input_tokens": 10}, "claude-99", "advisor_message")


def test_parts_are_one_charge_whose_lines_add_up() -> None:
    """1000 x 1 + 100 x 5 + 900 x 5 + 1500 x 25 millionths, under each meter once."""
    charge = settled(reading(HAIKU, OPUS))
    assert from_nanos(charge.amount or 0) == Decimal("0.0435")
    assert dict(charge.quantities) == {"input_tokens": 1900, "output_tokens": 1600}
    assert sum(amount for _, amount in charge.lines) == charge.amount
    assert [meter for meter, _ in charge.lines] == ["input_tokens", "output_tokens"]
    assert charge.basis == "priced"


def test_a_part_without_a_price_makes_the_whole_unknown_from_below() -> None:
    """What is known of it is the lower bound."""
    charge = settled(reading(HAIKU, UNKNOWN))
    assert (charge.amount, charge.upper, charge.basis) == (None, None, "unknown")
    assert from_nanos(charge.lower or 0) == Decimal("0.0015")


def test_a_part_without_a_model_is_of_the_answer_s_own() -> None:
    """The model of the answer prices it."""
    charge = settled(reading(Part({"input_tokens": 1000})))
    assert from_nanos(charge.amount or 0) == Decimal("0.001")


def test_the_tier_of_the_answer_is_that_of_its_parts() -> None:
    """A batch is a batch for every model in it."""
    charge = settled(reading(HAIKU, OPUS, tier="batch"))
    assert from_nanos(charge.amount or 0) == Decimal("0.02175")


def test_what_the_provider_says_it_charged_is_exact() -> None:
    """A reported amount is its own bounds, also where nothing else is known."""
    charge = settled(reading(HAIKU, UNKNOWN, reported=Decimal("0.5")))
    assert {charge.amount, charge.lower, charge.upper} == {500_000_000}
    assert charge.basis == "reported"
    charge = settled(Reading(reported=Decimal("0.25")))
    assert (charge.amount, charge.basis) == (250_000_000, "reported")


@pytest.mark.parametrize("models", [("claude-opus-5", "claude-haiku-4-5"), ("claude-opus-5", "claude-opus-5")])
def test_every_line_names_its_part(models: tuple[str, str]) -> None:
    """A cost of several models can be explained."""
    parts = [Part({"input_tokens": 10}, model, "message") for model in models]
    usage = Usage({"input_tokens": 20}, Sku("anthropic", "claude-opus-5"))
    cost = price(runtime.get().book, usage, parts)
    assert [line.note for line in cost.lines] == [f"message by {model}" for model in models]
    assert sum(line.amount for line in cost.lines) == cost.amount


def test_what_the_provider_charged_is_dollars_also_under_a_contract_in_euros(tmp_path: Path) -> None:
    """The reported amount is in USD; lines in another currency cannot be its parts."""
    in_euros(tmp_path)
    charge = settled(replace(reading(HAIKU), reported=Decimal("0.01")))
    assert (charge.amount, charge.currency, charge.basis, charge.lines) == (10_000_000, "USD", "reported", ())
    assert (charge.lower, charge.upper) == (10_000_000, 10_000_000)


@pytest.mark.parametrize("spoilt", ["failed", "impossible"])
def test_the_bound_of_an_unknown_cost_is_in_the_currency_of_its_price(tmp_path: Path, spoilt: str) -> None:
    """A bound in euros that is called dollars would be another amount."""
    in_euros(tmp_path)
    with capture_charges() as charges, af.budget("5 EUR"):
        invocation = metering.begin(Call("anthropic", "chat", "claude-haiku-4-5", body={}, max_output=100))
        assert invocation is not None
        if spoilt == "failed":
            invocation.fail(TimeoutError())
        else:
            invocation.leave()
            invocation.settle(Reading(problem="reasoning above output"))
    (charge,) = charges
    assert (charge.amount, charge.currency) == (None, "EUR")
    assert invocation.upper is not None
    assert charge.upper == to_nanos(invocation.upper)


def test_parts_are_priced_again_each_at_its_own_model(tmp_path: Path) -> None:
    """The ledger keeps what was told apart, so that rating a period again gives the same cost, from a file too."""
    charge = settled(reading(HAIKU, OPUS, raw={"input_tokens": 1000}))
    ledger = open_ledger(tmp_path / "ledger.db")
    ledger.append(charge)
    ((_, cost),) = rerate(ledger.rows(), runtime.get().book)
    ledger.close()
    assert to_nanos(cost.amount or Decimal(0)) == charge.amount
    assert charge.raw is not None
    assert charge.raw["input_tokens"] == 1000


@pytest.mark.parametrize(
    "spoilt", [None, {}, {"aifinops.parts": 5}, {"aifinops.parts": [["m"]]}, {"aifinops.parts": [[1, 2, 3]]}]
)
def test_parts_that_somebody_has_spoilt_are_none(spoilt: Any) -> None:
    """A changed usage object is no reason to fail."""
    assert parts_of(spoilt) == ()


PICTURE = (("quality", "ultra"), ("size", "8x8"))


def test_options_of_a_call_without_a_price_are_kept_for_another_list(tmp_path: Path) -> None:
    """A picture of a quality that no list knew is priced as that quality when a list does, and never as a plain one."""
    runtime.init(ledger=str(tmp_path / "ledger.db"))
    reading = Reading({"images": 2}, model="dall-e-3", options=PICTURE, raw={"output": 1})
    with capture_charges() as charges:
        invocation = metering.begin(Call("openai", "image_generation", "dall-e-3"))
        assert invocation is not None
        invocation.leave()
        invocation.settle(reading)
    af.flush()
    assert charges[0].amount is None
    (kept,) = runtime.get().ledger.rows()
    assert kept.raw is not None
    assert kept.raw["output"] == 1
    list_file = tmp_path / "images.toml"
    list_file.write_text(
        'id = "new"\n[[models]]\nprovider = "openai"\nmodel = "dall-e-3"\nrates = { images = "0.04" }\n'
        '[[models.variants]]\noptions = { quality = "ultra", size = "8x8" }\nrates = { images = "0.5" }\n'
    )
    book = runtime.get().book
    ((_, cost),) = rerate([kept], book.over([from_file(list_file), *book.lists]))
    assert cost.amount == Decimal("1.0")
    assert cost.price_id == "new/openai/dall-e-3+quality=ultra+size=8x8"


@pytest.mark.parametrize("spoilt", [None, {}, {"aifinops.options": 3}, {"aifinops.options": [["a"]]}, []])
def test_options_that_somebody_has_changed_are_none(spoilt: Any) -> None:
    """A usage object from elsewhere may hold anything under that name."""
    assert options_of(spoilt) == ()


def discounted(folder: Path, rows: str = 'percent = "20"') -> None:
    """A contract over the prices of Anthropic."""
    contract = folder / "contract.toml"
    contract.write_text(f'id = "ours"\n[[discounts]]\nprovider = "anthropic"\n{rows}\n')
    runtime.init(ledger=str(folder / "ledger.db"), prices=[str(contract)])


USED = {"input_tokens": 1000, "output_tokens": 100}


@pytest.mark.parametrize(
    "rows",
    ['percent = "20"', 'tiers = [{ above = 0, percent = "20" }]'],
    ids=["in a plain sheet", "by volume"],
)
def test_the_list_amount_of_a_discounted_call_is_kept(tmp_path: Path, rows: str) -> None:
    """1500 millionths at list prices, less a fifth: the ledger and the span know both, from a file too."""
    discounted(tmp_path, rows)
    charge = settled(Reading(USED, model="claude-haiku-4-5", raw={"input_tokens": 1000}))
    assert (charge.amount, charge.list_amount) == (1_200_000, 1_500_000)
    af.flush()
    (kept,) = runtime.get().ledger.rows()
    assert kept.list_amount == 1_500_000
    assert kept.cost.list_amount == Decimal("0.0015")
    assert "$0.00150 at list prices" in kept.cost.explain()
    assert kept.raw is not None
    assert kept.raw["input_tokens"] == 1000
    assert inference(kept, {}, compat=False)["aifinops.cost.list"] == 0.0015
    ((_, again),) = rerate([kept], runtime.get().book)
    assert to_nanos(again.list_amount or Decimal(0)) == 1_500_000


def test_parts_keep_the_list_amount_of_all_of_them(tmp_path: Path) -> None:
    """Two models under one discount: both list amounts are added, not only the first."""
    discounted(tmp_path)
    charge = settled(reading(HAIKU, OPUS))
    assert (charge.amount, charge.list_amount) == (34_800_000, 43_500_000)


def test_a_call_without_a_contract_keeps_nothing_more() -> None:
    """The list price is the price: no key beside the usage, no attribute, the very same object."""
    raw = {"input_tokens": 1000}
    charge = settled(Reading(USED, model="claude-haiku-4-5", raw=raw))
    assert charge.raw is raw
    assert charge.list_amount is None
    assert "aifinops.cost.list" not in inference(charge, {}, compat=False)


def test_committed_calls_keep_what_they_would_have_cost(tmp_path: Path) -> None:
    """BilledCost is zero and ListCost is not."""
    contract = tmp_path / "contract.toml"
    contract.write_text(
        'id = "ours"\n[[commitments]]\nname = "PTU"\namount = 100\nper = "day"\nprovider = "anthropic"\n'
    )
    runtime.init(ledger="memory", prices=[str(contract)])
    charge = settled(Reading(USED, model="claude-haiku-4-5"))
    assert (charge.amount, charge.basis, charge.list_amount) == (0, "committed", 1_500_000)


def test_what_the_provider_charged_has_no_list_amount_of_ours(tmp_path: Path) -> None:
    """Its own discounts are in it: our list price beside it would tell a saving that nobody made."""
    discounted(tmp_path)
    charge = settled(Reading(USED, model="claude-haiku-4-5", reported=Decimal("0.001")))
    assert (charge.amount, charge.list_amount) == (1_000_000, None)
