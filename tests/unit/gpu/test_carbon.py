"""CO2 of a run: which grid, which PUE, and that nothing unknown becomes zero."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.errors import ConfigurationError
from aifinops.gpu.carbon import COUNTRIES, PUES, Co2, grid_at, sum_of
from aifinops.gpu.holdings import Holding
from aifinops.gpu.owned import CARBON
from aifinops.gpu.usage import Sums
from aifinops.gpu.where import Place
from aifinops.pricing.lists import bundled_lists

FRANKFURT = Place("aws", "eu-central-1", "p5.48xlarge")
KWH = 3_600_000.0
OWN = {"capex": 1, "gpus": 1, "years": 1, "pue": "1.3", "source": "meter of the room"}


def co2_of(where: Place, joules: float | None = KWH, **settings: Any) -> Co2 | None:
    af.init(ledger="memory", **settings)
    grid = grid_at(where, runtime.get().config)
    return None if grid is None else grid.co2(joules)


def test_energy_times_pue_times_the_intensity_of_the_country() -> None:
    """One kWh of GPUs in Frankfurt: 1.14 kWh of the room by AWS's own figure, at 381 g of Germany in 2023."""
    found = co2_of(FRANKFURT)
    assert found is not None
    assert (found.energy_kwh, found.kg) == (Decimal("1.14"), Decimal("0.43434"))
    assert (found.country, found.year, found.grams_per_kwh, found.pue) == ("DEU", 2023, 381, Decimal("1.14"))
    assert "CodeCarbon" in found.source
    assert found.basis == (
        "381 g/kWh (DEU, 2023, CodeCarbon 3.3.2, global_energy_mix.json), PUE 1.14 (AWS, average of 2025, sustainability.aboutamazon.com)"
    )
    assert Co2.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "where",
    [Place(), Place("aws"), Place("aws", "eu-nowhere-1"), Place("runpod", "EU-RO-1"), Place("gcp", "eu-central-1")],
)
def test_an_unknown_region_has_no_co2(where: Place) -> None:
    """No country, no factor: None, and not that of the world."""
    assert co2_of(where) is None


def test_unknown_energy_has_no_co2_and_none_at_all_has_none() -> None:
    """None stays None; a device that drew nothing emitted nothing."""
    assert co2_of(FRANKFURT, None) is None
    nothing = co2_of(FRANKFURT, 0.0)
    assert nothing is not None
    assert nothing.kg == 0


def test_settings_come_first() -> None:
    """The grams of a supplier, another country, the world; the PUE of the room by its setting, or by the hardware of one's own."""
    given = co2_of(FRANKFURT, gpu_grid="20", gpu_pue="1.5")
    assert given is not None
    assert (given.kg, given.country, given.year, given.source) == (Decimal("0.03"), "", None, "gpu_grid")
    assert given.basis == "20 g/kWh (gpu_grid), PUE 1.5 (gpu_pue)"
    swedish = co2_of(Place(), gpu_grid="swe", gpu_owned=OWN)
    assert swedish is not None
    assert (swedish.kg, swedish.pue_source) == (Decimal("0.0533"), "meter of the room")
    rented = co2_of(FRANKFURT, gpu_owned=OWN)
    assert rented is not None
    assert rented.pue == PUES["aws"].value
    world = co2_of(Place(), gpu_grid="World")
    assert world is not None
    assert (world.country, world.year, world.pue, world.pue_source) == ("world", 2019, 1, "")
    assert "nobody says it" in world.basis


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpu_grid": "-1"}, "grams of CO2 for one kWh"),
        ({"gpu_grid": "D3U"}, "write a country such as SWE"),
        ({"gpu_pue": "0.9"}, "1 or more"),
        ({"gpu_pue": True}, "1 or more"),
    ],
)
def test_a_wrong_setting_says_what_to_type(settings: dict[str, Any], said: str) -> None:
    """Nothing is applied then."""
    with pytest.raises(ConfigurationError, match=said):
        af.init(ledger="memory", **settings)


def test_a_country_without_figures_is_said_before_anything_begins() -> None:
    """A setting is no guess: what it names must be there."""
    af.init(ledger="memory", gpu_grid="XYZ")
    with pytest.raises(ConfigurationError, match="gpu_grid='XYZ' is no country"):
        grid_at(FRANKFURT, runtime.get().config)
    with pytest.raises(ConfigurationError, match="gpu_grid='XYZ'"), af.gpu.track(devices={"X": 1}, price="1"):
        pytest.fail("it has begun")


def test_every_region_has_a_country_with_figures_and_every_figure_a_source() -> None:
    """The tables fit together, also with the regions that the price list names of these providers."""
    assert set(COUNTRIES.values()) <= set(CARBON)
    assert all(one.grams_per_kwh > 0 and 2019 <= one.year <= 2023 and one.source for one in CARBON.values())
    assert all(1 < one.value < 2 and one.source for one in PUES.values())
    priced = {
        (entry.provider, variant.region)
        for one in bundled_lists()
        if one.id == "aifinops-gpu"
        for entry in one.entries()
        for variant in entry.variants
        if variant.region and entry.provider in PUES
    }
    assert priced
    assert priced <= set(COUNTRIES)


def test_ranks_add_up_and_one_unknown_makes_all_unknown() -> None:
    """Sums of kg and kWh; None with a None."""
    one = co2_of(FRANKFURT)
    assert one is not None
    both = sum_of([one, one])
    assert both is not None
    assert (both.kg, both.energy_kwh, both.source) == (Decimal("0.86868"), Decimal("2.28"), one.source)
    assert sum_of([one, None]) is None
    assert sum_of([]) is None


def test_energy_is_unknown_as_soon_as_that_of_a_device_is() -> None:
    """A stretch that nobody measured has no energy, and so has the whole; one of no length takes nothing away."""
    known = Sums()
    known.spans, known.values["energy_j"] = 1, 5.0
    known.merge(Sums())
    assert known.get("energy_j") == 5
    known.merge(Sums(), of_all=False)
    assert known.get("energy_j") is None
    assert known.get("busy_s") == 0


def test_a_row_that_says_nonsense_has_no_co2() -> None:
    """Others may write into the ledger, too."""
    holding = Holding(("a",))
    for facts in (None, 3, {"kg": "1"}, {"kg": "x", "energy_kwh": "1", "pue": "1", "grams_per_kwh": "1"}):
        holding._add_co2(facts, Decimal(60))
    assert (holding.co2_kg, holding.energy_kwh, holding.co2_s) == (None, None, 0)
