"""What an hour of a GPU costs that was bought: its price written off, upkeep, electricity; and the energy and CO2 of a run.

    USD per GPU-hour = [capex x (1 - residual) / (years x 8760) + upkeep a year / 8760 + kW x PUE x USD per kWh] / GPUs

That is what a GPU costs in every hour of its life, used or not. Divided by the share of hours in which it is used it is what a used hour
costs; runs are charged the first, and the rest of the fleet's bill is idle. Energy is joules / 3.6e6 x PUE, CO2 is energy x the factor of the
grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Any

from aifinops.errors import ConfigurationError
from aifinops.money import decimal

__all__ = ["CARBON", "HOURS_A_YEAR", "JOULES_A_KWH", "Carbon", "Owned", "co2_grams", "energy_kwh", "read_owned"]

HOURS_A_YEAR = 8760
JOULES_A_KWH = 3_600_000

_EXACT = Context(prec=28)
_add, _divide, _multiply = _EXACT.add, _EXACT.divide, _EXACT.multiply
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Owned:
    """Machines of one's own. Money is USD.

    Attributes:
        capex: what they cost when they were bought. gpus: how many there are in all; of `cpu_owned`, how many vCPUs.
        years: over which they are written off. residual: the share of the price that they are still worth then.
        upkeep_per_year: people, space, support, repairs. kw: electricity drawn by all of it. usd_per_kwh: its price.
        pue: power usage effectiveness of the room, 1 or more: cooling and losses are in it.
        models: names of the devices that this is for; empty for all. as_of, source: of the figures.
    """

    capex: Decimal
    gpus: int
    years: Decimal
    residual: Decimal = Decimal(0)
    upkeep_per_year: Decimal = Decimal(0)
    kw: Decimal = Decimal(0)
    usd_per_kwh: Decimal = Decimal(0)
    pue: Decimal = _ONE
    models: tuple[str, ...] = ()
    as_of: date | None = None
    source: str = ""

    @property
    def parts(self) -> Mapping[str, Decimal]:
        """USD per GPU-hour of each part: `capex`, `upkeep`, `energy`."""
        worn = _multiply(self.capex, _ONE - self.residual)
        hourly = {
            "capex": _divide(worn, _multiply(self.years, Decimal(HOURS_A_YEAR))),
            "upkeep": _divide(self.upkeep_per_year, Decimal(HOURS_A_YEAR)),
            "energy": _multiply(_multiply(self.kw, self.pue), self.usd_per_kwh),
        }
        return {name: _divide(amount, Decimal(self.gpus)) for name, amount in hourly.items()}

    @property
    def usd_per_gpu_hour(self) -> Decimal:
        """What a GPU costs in every hour of its life."""
        total = Decimal(0)
        for amount in self.parts.values():
            total = _add(total, amount)
        return total

    def usd_per_used_hour(self, utilisation: Decimal) -> Decimal:
        """What a used hour costs where so large a share of all hours is used.

        Args:
            utilisation: above 0, at most 1.

        Raises:
            ConfigurationError: for any other share.
        """
        if not 0 < utilisation <= 1:
            raise ConfigurationError(f"utilisation={utilisation} must be above 0 and at most 1, e.g. 0.7")
        return _divide(self.usd_per_gpu_hour, utilisation)

    def covers(self, model: str) -> bool:
        """Whether these are devices of that name."""
        return not self.models or model.lower() in {name.lower() for name in self.models}


_FORM = 'gpu_owned = { capex = "320000", gpus = 8, years = 3, residual = "0.3", upkeep_per_year = "25600", kw = "10.2", pue = "1.3", usd_per_kwh = "0.10" }'  # fmt: skip
_NUMBERS = ("capex", "years", "residual", "upkeep_per_year", "kw", "usd_per_kwh", "pue")


_CPU_FORM = 'cpu_owned = { capex = "9000", cpus = 128, years = 4, kw = "0.6", pue = "1.3", usd_per_kwh = "0.10" }'


def read_owned(table: Any, setting: str = "gpu_owned") -> Owned:
    """What a table of the configuration says.

    Args:
        table: as it stands there. setting: its name; that of `cpu_owned` has `cpus` in place of `gpus`, and no `models`.

    Raises:
        ConfigurationError: naming the key, the value and what to type.
    """
    if isinstance(table, Owned):
        return table
    on_cpu = setting == "cpu_owned"
    unit, form = ("cpus", _CPU_FORM) if on_cpu else ("gpus", _FORM)
    known = {one.name for one in fields(Owned)}
    known = known - {"gpus", "models"} | {"cpus"} if on_cpu else known
    if not isinstance(table, Mapping) or not set(table) <= known or not {"capex", unit, "years"} <= set(table):
        raise ConfigurationError(f"{setting} needs capex, {unit} and years, and knows {', '.join(sorted(known))}; write {form}")  # fmt: skip
    values = {key: decimal(table[key], f"{setting}.{key}") for key in _NUMBERS if key in table}
    _bounded(values, setting, form)
    count = table[unit]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigurationError(
            f"{setting}.{unit}={count!r} must be a whole number of {unit[:-1].upper()}s, 1 or more"
        )
    day = table.get("as_of")
    if day is not None and not isinstance(day, date):
        try:
            day = date.fromisoformat(str(day))
        except ValueError:
            raise ConfigurationError(f"{setting}.as_of={day!r} is no date; write 2026-11-30") from None
    models = table.get("models", ())
    if isinstance(models, str):
        models = (models,)
    return Owned(**values, gpus=count, models=tuple(map(str, models)), as_of=day, source=str(table.get("source", "")))


def _bounded(values: Mapping[str, Decimal], setting: str, form: str) -> None:
    for key, value in values.items():
        least = 1 if key == "pue" else 0
        if value < least or (key == "years" and not value) or (key == "residual" and value > 1):
            raise ConfigurationError(f"{setting}.{key}={value} is out of range; write {form}")


# --- energy and CO2 ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carbon:
    """Grams of CO2 for one kWh of a grid.

    Attributes:
        grams_per_kwh: on the average of a year. year: which. source: who says it.
    """

    grams_per_kwh: Decimal
    year: int
    source: str


def _carbon(grams: int, year: int = 2023, source: str = "CodeCarbon 3.3.2, global_energy_mix.json") -> Carbon:
    return Carbon(Decimal(grams), year, source)


CARBON: Mapping[str, Carbon] = MappingProxyType(
    {
        "world": _carbon(475, 2019, "IEA, Global Energy & CO2 Status Report 2019"),
        "ARE": _carbon(561, 2022),
        "AUS": _carbon(549),
        "AUT": _carbon(111),
        "BEL": _carbon(138),
        "BHR": _carbon(905, 2022),
        "BRA": _carbon(98),
        "CAN": _carbon(170),
        "CHE": _carbon(35),
        "CHL": _carbon(291),
        "CHN": _carbon(582),
        "DEU": _carbon(381),
        "ESP": _carbon(174),
        "FIN": _carbon(79),
        "FRA": _carbon(56),
        "GBR": _carbon(238),
        "HKG": _carbon(699, 2022),
        "IDN": _carbon(676, 2022),
        "IND": _carbon(713),
        "IRL": _carbon(291),
        "ISR": _carbon(583, 2022),
        "ITA": _carbon(331),
        "JPN": _carbon(485),
        "KOR": _carbon(431),
        "MEX": _carbon(507),
        "MYS": _carbon(606, 2022),
        "NLD": _carbon(268),
        "NOR": _carbon(30),
        "NZL": _carbon(113),
        "POL": _carbon(662),
        "QAT": _carbon(602),
        "SAU": _carbon(707, 2022),
        "SGP": _carbon(471),
        "SWE": _carbon(41),
        "THA": _carbon(550),
        "TWN": _carbon(642),
        "USA": _carbon(369),
        "ZAF": _carbon(708),
    }
)
"""By ISO 3166 country, and `world`. Averages of a country hide much: put the factor of your own supplier in their place where you know it."""


def energy_kwh(joules: Decimal | float | None, *, pue: Decimal | int = 1) -> Decimal | None:
    """What the meter of the building has counted for it; None stays None.

    Args:
        joules: of the devices. pue: power usage effectiveness of the room, 1 or more.

    Raises:
        ConfigurationError: for a PUE below 1.
    """
    if pue < 1:
        raise ConfigurationError(
            f"pue={pue} must be 1 or more: what cools the room is drawn beside what the devices draw"
        )
    if joules is None:
        return None
    return _multiply(_divide(decimal(joules, "joules"), Decimal(JOULES_A_KWH)), Decimal(pue))


def co2_grams(kwh: Decimal | None, grid: str | Decimal) -> Decimal | None:
    """Grams of CO2; None where the energy is not known, or the country is not in `CARBON`.

    Args:
        kwh: as `energy_kwh` gives it. grid: ISO 3166 country (`DEU`), `world`, or grams for one kWh.
    """
    if kwh is None:
        return None
    factor = CARBON[grid].grams_per_kwh if isinstance(grid, str) and grid in CARBON else grid
    return None if isinstance(factor, str) else _multiply(kwh, factor)
