"""The price of a device hour: who decides it, what is said about it, and that unknown is never zero."""

from __future__ import annotations

import logging
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError
from aifinops.gpu import rates
from aifinops.gpu.owned import CARBON, Owned, co2_grams, energy_kwh, read_owned
from aifinops.gpu.rates import Rate, cpu_rate, rate
from aifinops.gpu.where import Place

AT = to_ns(__import__("datetime").datetime(2026, 11, 30))
H100 = "NVIDIA H100 80GB HBM3"
P5 = Place("aws", "us-east-1", "p5.48xlarge", "on_demand", "high", "test")


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_told", rates._Told())


def test_instance_type_and_region() -> None:
    """A known instance type has the price of its row, with source and day."""
    found = rate(H100, P5, at=AT)
    assert found.usd_per_hour == Decimal("6.88")
    assert (found.as_of, found.confidence, found.term) == (date(2026, 7, 20), "high", "on_demand")
    assert "karpenter-provider-aws" in found.source
    assert found.sku.model == "p5.48xlarge"
    assert not found.stale
    assert found.price_id == "aifinops-gpu/aws/p5.48xlarge+us-east-1"


def test_terms_choose_the_price() -> None:
    """Spot has its own price where the list has one."""
    place = Place("gcp", "us-central1", "a3-highgpu-8g", "spot", "high")
    assert rate(H100, place, at=AT).usd_per_hour == Decimal("6.326192602739725")
    assert rate(H100, place, at=AT).term == "spot"


def test_a_term_without_a_price_is_said_to_be_on_demand() -> None:
    """AWS's spot prices move and are not in the list: the price on demand stands in, and says so."""
    found = rate(H100, Place("aws", "us-east-1", "p5.48xlarge", "spot", "high"), at=AT)
    assert found.usd_per_hour == Decimal("6.88")
    assert (found.term, found.confidence) == ("on_demand", "low")
    assert found.notes[0] == "no price for spot in the list: the one on demand"


def test_another_region_is_a_guess() -> None:
    """A region that is not listed has the price of the first one, with low confidence."""
    found = rate(H100, Place("aws", "eu-north-1", "p5.48xlarge", "", "high"), at=AT)
    assert found.usd_per_hour == Decimal("6.88")
    assert found.confidence == "low"
    assert found.notes[0] == "the price of another region than eu-north-1"


def test_clouds_that_sell_by_the_accelerator() -> None:
    """RunPod has no instance types: its price is found by the driver's name of the device."""
    assert rate(H100, Place("runpod", "EU-RO-1", "", "", "high"), at=AT).usd_per_hour == Decimal("3.29")


def test_sagemaker_is_not_cheaper_than_ec2() -> None:
    """SageMaker's types have no row of their own: EC2's price stands in, and says so."""
    found = rate("NVIDIA A100-SXM4-40GB", Place("aws", "us-east-1", "ml.p4d.24xlarge", "", "high"), at=AT)
    assert found.usd_per_hour == Decimal("2.74470525")
    assert found.confidence == "low"
    assert "SageMaker" in found.notes[0]


def test_the_accelerator_alone_is_a_median() -> None:
    """Without a place the median over providers is all there is; a MIG instance has the price of its device."""
    found = rate(H100, Place(), at=AT)
    assert found.usd_per_hour == Decimal("3.67")
    assert found.confidence == "low"
    assert rate(f"{H100} MIG 1g.10gb", Place(), at=AT).usd_per_hour == Decimal("3.67")


def test_unknown_is_none() -> None:
    """A device that no list knows has no price: its cost is unknown and its seconds are still there."""
    found = rate("Acme Brainwave 9", Place(), at=AT)
    assert found.usd_per_hour is None
    assert not found.known
    assert found.nanos_per_second() is None
    cost = found.cost(3600)
    assert (cost.amount, cost.basis) == (None, "unknown")
    assert cost.notes == ("no price for Acme Brainwave 9: its hours are counted, their cost is unknown",)


def test_the_setting_is_over_every_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """`AIFINOPS_GPU_USD_PER_HOUR` holds for every device; an override of the run is over it."""
    monkeypatch.setenv("AIFINOPS_GPU_USD_PER_HOUR", "$2.49")
    found = rate(H100, P5, at=AT)
    assert (found.usd_per_hour, found.source) == (Decimal("2.49"), "AIFINOPS_GPU_USD_PER_HOUR")
    assert rate(H100, P5, at=AT, override="1.10").usd_per_hour == Decimal("1.10")
    assert rate(H100, P5, at=AT, override="auto").usd_per_hour == Decimal("2.49")
    assert rate("Acme Brainwave 9", Place(), at=AT).usd_per_hour == Decimal("2.49")


@pytest.mark.parametrize("value", ["two", "-1", "2 EUR", "nan", True, []])
def test_a_wrong_override_says_what_to_write(value: object) -> None:
    """What is no amount of USD is refused when the run begins."""
    with pytest.raises(ConfigurationError, match="write USD an hour"):
        rate(H100, P5, at=AT, override=value)


def test_a_wrong_setting_says_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise in the environment."""
    monkeypatch.setenv("AIFINOPS_GPU_USD_PER_HOUR", "cheap")
    with pytest.raises(ConfigurationError, match="AIFINOPS_GPU_USD_PER_HOUR = 'cheap': write USD an hour"):
        runtime.get()


def test_price_files_of_the_user_win(tmp_path: Path) -> None:
    """A row of the user's is taken though the bundled list knows the instance type better."""
    file = tmp_path / "mine.toml"
    file.write_text(
        'id = "mine"\ndate = 2026-11-01\nsource = "order form 1"\ncurrency = "USD"\n'
        '[[models]]\nprovider = "local"\nmodel = "H100 SXM"\nnames = ["NVIDIA H100 80GB HBM3"]\nrates = { gpu_seconds = "1.85" }\n'
    )
    af.init(ledger="memory", prices=[str(file)])
    found = rate(H100, P5, at=AT)
    assert (found.usd_per_hour, found.source) == (Decimal("1.85"), "order form 1")
    assert rate("NVIDIA L4", Place("aws", "us-east-1", "g6.xlarge"), at=AT).usd_per_hour == Decimal("0.8048")


def test_an_old_price_is_said_to_be_old_once(caplog: pytest.LogCaptureFixture) -> None:
    """More than 180 days after its day a price is marked, and the log has one line about it."""
    place = Place("gcp", "us-central1", "", "", "high")
    with caplog.at_level(logging.WARNING, "aifinops"):
        found = [rate("TPU v5e", place, at=AT) for _ in range(3)]
    assert all(one.stale and one.usd_per_hour == Decimal("1.2") for one in found)
    assert [record.getMessage().count("is from 2024-12-23") for record in caplog.records] == [1]


def test_cpu_instances() -> None:
    """Machines without accelerators are priced by the vCPU."""
    found = cpu_rate(Place("aws", "us-east-1", "t3.xlarge", "", "high"), at=AT)
    assert (found.usd_per_hour, found.meter) == (Decimal("0.0416"), "cpu_seconds")
    assert cpu_rate(Place(), at=AT).usd_per_hour is None


@pytest.mark.parametrize(
    ("usd", "seconds"), [("6.88", 3600), ("0.04", 1), ("11.0612499878219", Decimal("12.345678901"))]
)
def test_the_cost_is_the_books(usd: str, seconds: int | Decimal) -> None:
    """A frozen rate gives the amount that the price book gives for the same seconds, to the last digit."""
    af.register_price("x", provider="local", rates={"gpu_seconds": usd})
    mine = Rate(Decimal(usd)).cost(seconds)
    theirs = af.price("x", provider="local", gpu_seconds=seconds)
    assert mine.amount == theirs.amount
    assert sum(line.amount for line in mine.lines) == mine.amount


def test_nanos_per_second() -> None:
    """3.60 USD an hour are a million nano-dollars a second."""
    assert Rate(Decimal("3.60")).nanos_per_second() == Decimal(1_000_000)


# --- hardware of one's own ---------------------------------------------------------------------------------------------------

# Eight H100s: 320,000 USD, 30 % residual after 3 years, 8 % a year for upkeep, 10.2 kW, PUE 1.3, 0.10 USD per kWh.
EIGHT = {
    "capex": "320000", "gpus": 8, "years": 3, "residual": "0.3", "upkeep_per_year": "25600", "kw": "10.2", "pue": "1.3",
    "usd_per_kwh": "0.10",
}  # fmt: skip


def test_the_worked_example() -> None:
    """1.065 + 0.365 + 0.166 = 1.60 USD in every hour; 3.99 for a used hour at 40 %, 2.28 at 70 %."""
    owned = read_owned(read_owned(EIGHT))
    assert {name: round(part, 3) for name, part in owned.parts.items()} == {
        "capex": Decimal("1.065"), "upkeep": Decimal("0.365"), "energy": Decimal("0.166"),
    }  # fmt: skip
    assert round(owned.usd_per_gpu_hour, 2) == Decimal("1.60")
    assert round(owned.usd_per_used_hour(Decimal("0.4")), 2) == Decimal("3.99")
    assert round(owned.usd_per_used_hour(Decimal("0.7")), 2) == Decimal("2.28")


def test_owned_hardware_has_its_own_price() -> None:
    """Where no cloud is known, or the terms are `owned`, the declaration decides; in a cloud it says nothing."""
    af.init(ledger="memory", gpu_owned={**EIGHT, "as_of": "2026-11-01", "source": "invoice 7"})
    found = rate(H100, Place(), at=AT)
    assert round(found.usd_per_hour or 0, 2) == Decimal("1.60")
    assert (found.term, found.source, found.as_of) == ("owned", "invoice 7", date(2026, 11, 1))
    assert rate(H100, P5, at=AT).usd_per_hour == Decimal("6.88")
    assert rate(H100, Place("aws", term="owned"), at=AT).term == "owned"


def test_owned_hardware_of_some_models() -> None:
    """A declaration for some devices leaves the others to the lists."""
    af.init(ledger="memory", gpu_owned={**EIGHT, "models": [H100]})
    assert rate(H100, Place(), at=AT).term == "owned"
    assert rate("NVIDIA L4", Place(), at=AT).usd_per_hour == Decimal("0.9002")


def test_owned_without_a_declaration_is_unknown() -> None:
    """What clouds ask says nothing about hardware of one's own."""
    assert rate(H100, Place(term="owned"), at=AT).usd_per_hour is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gpus": 0}, "gpu_owned.gpus=0"),
        ({"gpus": True}, "gpu_owned.gpus=True"),
        ({"pue": "0.9"}, "gpu_owned.pue=0.9"),
        ({"years": 0}, "gpu_owned.years=0"),
        ({"residual": 2}, "gpu_owned.residual=2"),
        ({"capex": "much"}, "gpu_owned.capex must be a number"),
        ({"as_of": "soon"}, "gpu_owned.as_of='soon'"),
        ({"models": H100, "years": -1}, "gpu_owned.years=-1"),
        ({"color": "red"}, "gpu_owned needs capex, gpus and years"),
    ],
)
def test_wrong_declarations(change: dict[str, object], says: str) -> None:
    """A wrong figure is named, with what to type."""
    with pytest.raises(ConfigurationError, match=says):
        read_owned({**EIGHT, **change})
    with pytest.raises(ConfigurationError, match="utilisation=0"):
        Owned(Decimal(1), 1, Decimal(1)).usd_per_used_hour(Decimal(0))


def test_energy_and_co2() -> None:
    """3.6 MJ are a kWh, the room takes its share, and a kWh in Germany is 381 g; unknown stays unknown."""
    assert energy_kwh(3_600_000) == 1
    assert energy_kwh(7_200_000, pue=Decimal("1.3")) == Decimal("2.6")
    assert co2_grams(Decimal(2), "DEU") == 762
    assert co2_grams(Decimal(2), Decimal(10)) == 20
    assert energy_kwh(None) is None
    assert co2_grams(None, "DEU") is None
    assert co2_grams(Decimal(2), "XXX") is None
    assert all(factor.source and factor.year for factor in CARBON.values())
    with pytest.raises(ConfigurationError, match="pue=0"):
        energy_kwh(1, pue=0)
