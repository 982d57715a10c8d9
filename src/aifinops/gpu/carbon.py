"""The CO2 of a run: joules of its devices x what the room takes for each (PUE) x grams for each kWh of the grid that the machine hangs on.

    kg = joules / 3.6e6 x PUE x grams per kWh / 1000

Which grid: the setting `gpu_grid`, else the country of the cloud's region. Where neither says it, the CO2 is unknown. The factor is an average of a
country over a year: neither the hour nor certificates of the provider are in it (location-based, as the GHG Protocol calls it), nor what it took to
make the hardware.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from aifinops.errors import ConfigurationError
from aifinops.gpu.owned import CARBON, Carbon, co2_grams, energy_kwh, read_owned

if TYPE_CHECKING:
    from aifinops.config import Config
    from aifinops.gpu.where import Place

__all__ = ["COUNTRIES", "PUES", "Co2", "Grid", "Pue", "grid_at", "sum_of"]


@dataclass(frozen=True, slots=True)
class Pue:
    """Power usage effectiveness: energy of the whole room for each unit of the machines' own.

    Attributes:
        value: 1 or more. source: who says it, with the year that it is of; empty where nobody does, and then `value` is 1: the least it can be.
    """

    value: Decimal = Decimal(1)
    source: str = ""


PUES: Mapping[str, Pue] = MappingProxyType(
    {
        "aws": Pue(Decimal("1.14"), "AWS, average of 2025, sustainability.aboutamazon.com"),
        "azure": Pue(Decimal("1.18"), "Microsoft, average as of 2024, datacenterdynamics.com"),
        "gcp": Pue(Decimal("1.1"), "Google, average as of 2024, datacenterdynamics.com"),
    }
)
"""Averages over all data centres of a provider, as each has published it."""


@dataclass(frozen=True, slots=True)
class Co2:
    """What the electricity of a run has emitted.

    Attributes:
        kg: of CO2e. energy_kwh: of the devices, times the PUE. pue, pue_source: as in `Pue`.
        grams_per_kwh: of the grid. country: ISO 3166, `world`, or empty where the grams were given. year: of which it is an average, None where
            they were given. source: who says it.
    """

    kg: Decimal
    energy_kwh: Decimal
    pue: Decimal
    pue_source: str
    grams_per_kwh: Decimal
    country: str
    year: int | None
    source: str

    @property
    def basis(self) -> str:
        """For people: intensity, PUE, and where both are from."""
        grid = ", ".join(filter(None, (self.country, str(self.year or ""), self.source)))
        room = self.pue_source or "nobody says it: cooling is not in it"
        return f"{self.grams_per_kwh:f} g/kWh ({grid}), PUE {self.pue:f} ({room})"

    def to_json(self) -> dict[str, Any]:
        """For a row of the ledger; amounts are texts, so that they stay exact."""
        return {
            "kg": str(self.kg), "energy_kwh": str(self.energy_kwh), "pue": str(self.pue), "pue_source": self.pue_source,
            "grams_per_kwh": str(self.grams_per_kwh), "country": self.country, "year": self.year, "source": self.source,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Co2:
        """Back again; raises KeyError, TypeError, ValueError or ArithmeticError for what is none."""
        return cls(
            kg=Decimal(value["kg"]),
            energy_kwh=Decimal(value["energy_kwh"]),
            pue=Decimal(value["pue"]),
            pue_source=str(value["pue_source"]),
            grams_per_kwh=Decimal(value["grams_per_kwh"]),
            country=str(value["country"]),
            year=None if value["year"] is None else int(value["year"]),
            source=str(value["source"]),
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of a place, and its room.

    Attributes:
        carbon: grams for one kWh; of year 0 where the user has said them. country: ISO 3166, `world`, or empty. pue: of the room.
    """

    carbon: Carbon
    country: str = ""
    pue: Pue = Pue()

    def co2(self, joules: float | None) -> Co2 | None:
        """Of so much energy of the devices; None where it is unknown."""
        kwh = energy_kwh(joules, pue=self.pue.value)
        grams = co2_grams(kwh, self.carbon.grams_per_kwh)
        if kwh is None or grams is None:
            return None
        return Co2(
            grams / 1000, kwh, self.pue.value, self.pue.source, self.carbon.grams_per_kwh, self.country, self.carbon.year or None,
            self.carbon.source,
        )  # fmt: skip


def grid_at(where: Place, settings: Config) -> Grid | None:
    """The grid that a machine hangs on; None where nobody knows it.

    Args:
        where: the machine. settings: of the process: `gpu_grid` and `gpu_pue` come first, `gpu_owned` has the PUE of one's own room.

    Raises:
        ConfigurationError: for a country that is not in `CARBON`, and hardware of one's own that is none.
    """
    given, pue = settings.gpu_grid, _pue(where, settings)
    if isinstance(given, Decimal):
        return Grid(Carbon(given, 0, "gpu_grid"), pue=pue)
    if given is not None and given not in CARBON:
        raise ConfigurationError(
            f"gpu_grid={given!r} is no country that we have figures of; write one of {', '.join(sorted(CARBON))}, or grams for one kWh, e.g. 120"
        )
    country = given or COUNTRIES.get((where.provider, where.region.lower()), "")
    found = CARBON.get(country)
    return None if found is None else Grid(found, country, pue)


def _pue(where: Place, settings: Config) -> Pue:
    if settings.gpu_pue is not None:
        return Pue(settings.gpu_pue, "gpu_pue")
    if settings.gpu_owned is not None and (not where.provider or where.term == "owned"):
        owned = read_owned(settings.gpu_owned)
        return Pue(owned.pue, owned.source or "gpu_owned") if owned.pue > 1 else Pue()
    return PUES.get(where.provider, Pue())


def sum_of(parts: Sequence[Co2 | None]) -> Co2 | None:
    """Of several ranks or stretches; unknown where one of them is. What they are reckoned with is that of the first, the sources of all."""
    known = [one for one in parts if one is not None]
    if not known or len(known) < len(parts):
        return None
    return replace(
        known[0],
        kg=sum((one.kg for one in known), Decimal(0)),
        energy_kwh=sum((one.energy_kwh for one in known), Decimal(0)),
        source=" and ".join(dict.fromkeys(one.source for one in known)),
    )


# --- regions -----------------------------------------------------------------------------------------------------------------

_AWS = {
    "ARE": "me-central-1",
    "AUS": "ap-southeast-2 ap-southeast-4",
    "BHR": "me-south-1",
    "BRA": "sa-east-1",
    "CAN": "ca-central-1 ca-west-1",
    "CHE": "eu-central-2",
    "CHN": "cn-north-1 cn-northwest-1",
    "DEU": "eu-central-1",
    "ESP": "eu-south-2",
    "FRA": "eu-west-3",
    "GBR": "eu-west-2",
    "HKG": "ap-east-1",
    "IDN": "ap-southeast-3",
    "IND": "ap-south-1 ap-south-2",
    "IRL": "eu-west-1",
    "ISR": "il-central-1",
    "ITA": "eu-south-1",
    "JPN": "ap-northeast-1 ap-northeast-3",
    "KOR": "ap-northeast-2",
    "MEX": "mx-central-1",
    "MYS": "ap-southeast-5",
    "NZL": "ap-southeast-6",
    "SGP": "ap-southeast-1",
    "SWE": "eu-north-1",
    "THA": "ap-southeast-7",
    "TWN": "ap-east-2",
    "USA": "us-east-1 us-east-2 us-west-1 us-west-2 us-gov-east-1 us-gov-west-1",
    "ZAF": "af-south-1",
}
_AZURE = {
    "ARE": "uaenorth uaecentral",
    "AUS": "australiaeast australiasoutheast australiacentral australiacentral2",
    "AUT": "austriaeast",
    "BEL": "belgiumcentral",
    "BRA": "brazilsouth brazilsoutheast",
    "CAN": "canadacentral canadaeast",
    "CHE": "switzerlandnorth switzerlandwest",
    "CHL": "chilecentral",
    "DEU": "germanywestcentral germanynorth",
    "ESP": "spaincentral",
    "FRA": "francecentral francesouth",
    "GBR": "uksouth ukwest",
    "HKG": "eastasia",
    "IDN": "indonesiacentral",
    "IND": "centralindia southindia westindia jioindiawest jioindiacentral",
    "IRL": "northeurope",
    "ISR": "israelcentral",
    "ITA": "italynorth",
    "JPN": "japaneast japanwest",
    "KOR": "koreacentral koreasouth",
    "MEX": "mexicocentral",
    "MYS": "malaysiawest",
    "NLD": "westeurope",
    "NOR": "norwayeast norwaywest",
    "NZL": "newzealandnorth",
    "POL": "polandcentral",
    "QAT": "qatarcentral",
    "SGP": "southeastasia",
    "SWE": "swedencentral swedensouth",
    "USA": "eastus eastus2 centralus northcentralus southcentralus westcentralus westus westus2 westus3",
    "ZAF": "southafricanorth southafricawest",
}
_GCP = {
    "AUS": "australia-southeast1 australia-southeast2",
    "BEL": "europe-west1",
    "BRA": "southamerica-east1",
    "CAN": "northamerica-northeast1 northamerica-northeast2",
    "CHE": "europe-west6",
    "CHL": "southamerica-west1",
    "DEU": "europe-west3 europe-west10",
    "ESP": "europe-southwest1",
    "FIN": "europe-north1",
    "FRA": "europe-west9",
    "GBR": "europe-west2",
    "HKG": "asia-east2",
    "IDN": "asia-southeast2",
    "IND": "asia-south1 asia-south2",
    "ISR": "me-west1",
    "ITA": "europe-west8 europe-west12",
    "JPN": "asia-northeast1 asia-northeast2",
    "KOR": "asia-northeast3",
    "MEX": "northamerica-south1",
    "NLD": "europe-west4",
    "POL": "europe-central2",
    "QAT": "me-central1",
    "SAU": "me-central2",
    "SGP": "asia-southeast1",
    "SWE": "europe-north2",
    "TWN": "asia-east1",
    "USA": "us-central1 us-east1 us-east4 us-east5 us-south1 us-west1 us-west2 us-west3 us-west4",
    "ZAF": "africa-south1",
}


def _regions() -> Iterator[tuple[tuple[str, str], str]]:
    for provider, table in (("aws", _AWS), ("azure", _AZURE), ("gcp", _GCP)):
        for country, regions in table.items():
            for region in regions.split():
                yield (provider, region), country


COUNTRIES: Mapping[tuple[str, str], str] = MappingProxyType(dict(_regions()))
"""(provider, region) -> ISO 3166 country, by the providers' own lists: docs.aws.amazon.com/global-infrastructure, learn.microsoft.com/azure/reliability
(regions list) and cloud.google.com/about/locations.
"""
