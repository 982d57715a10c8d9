"""What a run has used so far, and where it will end: the figures that it hands out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from aifinops.gpu.carbon import Co2, sum_of
from aifinops.gpu.cpus import Cpus
from aifinops.gpu.measured import Measured
from aifinops.telemetry import names

if TYPE_CHECKING:
    from aifinops.gpu.billing import Held

__all__ = ["Forecast", "GpuUsage", "Sums", "span_values", "sums_of", "total"]

_FIGURES = ("busy_s", "sm_active_s", "tensor_active_s", "memory_gib_s", "energy_j")


class Sums:
    """Measured figures of several devices and spans. A figure that is unknown of one of them is unknown of all."""

    def __init__(self) -> None:
        self.values: dict[str, float | None] = dict.fromkeys(_FIGURES, 0.0)
        self.error: float | None = 0.0
        self.source = ""
        self.attribution = ""
        self.spans = 0

    def add(self, measured: Measured, share: float = 1.0) -> None:
        """Take in one device over one span; what is seconds of it counts for its share of the whole device."""
        self.spans += 1
        for name in _FIGURES:
            value, before = getattr(measured, name), self.values[name]
            part = share if name in {"busy_s", "sm_active_s", "tensor_active_s"} else 1.0
            self.values[name] = None if value is None or before is None else before + value * part
        off = measured.busy_error_s
        self.error = None if off is None or self.error is None else self.error + off * share
        self.source = _joined(self.source, measured.busy_source)
        self.attribution = _joined(self.attribution, measured.attribution)

    def merge(self, other: Sums, *, of_all: bool = True) -> None:
        """Take in another one.

        Args:
            of_all: False where an empty one is of devices that were held: then the energy of all is not known any more. Seconds stay those of what
                was measured, as the ledger has them beside the others.
        """
        if not other.spans:
            if not of_all:
                self.values["energy_j"] = None
            return
        self.spans += other.spans
        for name, value in other.values.items():
            before = self.values[name]
            self.values[name] = None if value is None or before is None else before + value
        self.error = None if other.error is None or self.error is None else self.error + other.error
        self.source = _joined(self.source, other.source)
        self.attribution = _joined(self.attribution, other.attribution)

    def facts(self) -> dict[str, Any]:
        """What is known, for a row of the ledger."""
        if not self.spans:
            return {}
        known = {name: value for name, value in self.values.items() if value is not None}
        return {**known, "busy_source": self.source, "busy_error_s": self.error, "attribution": self.attribution}

    def get(self, name: str) -> float | None:
        """One figure; None where nothing was measured."""
        return self.values[name] if self.spans else None


def sums_of(members: Sequence[Held], readings: Sequence[Measured | None]) -> Sums:
    """The figures of some devices; empty where one of them could not be asked."""
    sums = Sums()
    for one, measured in zip(members, readings, strict=True):
        if measured is None:
            return Sums()
        sums.add(measured, one.device.share)
    return sums


def _joined(first: str, second: str) -> str:
    return "+".join(dict.fromkeys(part for part in (*first.split("+"), *second.split("+")) if part))


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """What a run, or several ranks of one, has used so far. Four measures are kept apart: allocated, busy, active, and useful for the model.

    Unknown is None, never 0. Seconds are device-seconds unless they say otherwise; a slice of a device counts for its share.

    Attributes:
        run, attempt, rank, world: which; `rank` is -1 in a total of several.
        models: device model -> how many are held. uuids: which, where the driver says it.
        elapsed_s: wall time of the run. allocated_s: devices x time, exact; it is what the bill is.
        busy_s: at least one kernel ran. busy_source, busy_error_s: how that was measured, and how far it may be off.
        sm_active_s, tensor_active_s: seconds x share of SMs, of tensor cores, that had work.
        memory_gib_s: GiB in use x seconds. energy_j: joules. attribution: whose those figures are: this process's, or the device's.
        stall_s: time in which this process waited for data. device_stall_s: time in which the device waited for this process between two
            steps, by events on its stream: 0 where the process runs ahead; None without events, or with several devices.
        steps: optimizer steps. mfu: share of the devices' peak that went into the model, given `flops_per_step` or `step(flops=...)`, and a
            model whose peak is known.
        cost: USD of what is allocated, None when a price is unknown. idle_cost: of what was not busy. usd_per_hour: at which it runs now.
        price_as_of, price_source: of that price. wasted_s, wasted_cost: since the last checkpoint, of this attempt.
        cpus: the processors of a run on a machine without accelerators; None where there are some, whose price they are in. cpu_s: their
            vCPU-seconds, processors x time; they are in `cost` and `wasted_s`, and in no other figure.
        co2: of `energy_j`, with the intensity of the grid, its source and year, and the PUE; None where the energy or the region is unknown.
        phases: `startup`, `data_wait`, `step`, `checkpoint_save`, `restore`, `eval`, `idle`, ... -> seconds of this process.
    """

    run: str
    attempt: int
    rank: int
    world: int
    models: Mapping[str, int]
    uuids: tuple[str, ...]
    elapsed_s: float
    allocated_s: Decimal
    busy_s: float | None
    busy_source: str
    busy_error_s: float | None
    sm_active_s: float | None
    tensor_active_s: float | None
    memory_gib_s: float | None
    energy_j: float | None
    attribution: str
    stall_s: float
    steps: int
    mfu: float | None
    cost: Decimal | None
    idle_cost: Decimal | None
    usd_per_hour: Decimal | None
    price_as_of: str
    price_source: str
    wasted_s: Decimal
    wasted_cost: Decimal | None
    phases: Mapping[str, float] = field(default_factory=dict)
    device_stall_s: float | None = None
    cpu_s: Decimal = Decimal(0)
    cpus: Cpus | None = None
    co2: Co2 | None = None

    @property
    def idle_s(self) -> float | None:
        """Allocated and not busy."""
        return None if self.busy_s is None else max(0.0, float(self.allocated_s) - self.busy_s)

    @property
    def utilisation(self) -> float | None:
        """Busy part of what is allocated, 0 to 1."""
        return None if self.busy_s is None or not self.allocated_s else self.busy_s / float(self.allocated_s)


def total(parts: Iterable[GpuUsage]) -> GpuUsage:
    """Ranks added up: devices, seconds and money are sums, steps and wall time those of the rank that has most."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    first, models, phases = found[0], dict[str, int](), dict[str, float]()
    for one in found:
        for model, count in one.models.items():
            models[model] = models.get(model, 0) + count
        for phase, seconds in one.phases.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    useful = [(one.mfu, float(one.allocated_s)) for one in found if one.allocated_s]
    weight = sum(seconds for _, seconds in useful)
    known = [(mfu, seconds) for mfu, seconds in useful if mfu is not None]
    return GpuUsage(
        first.run, first.attempt, -1, first.world, models, tuple(uuid for one in found for uuid in one.uuids),
        max(one.elapsed_s for one in found),
        sum((one.allocated_s for one in found), Decimal(0)),
        _sum(one.busy_s for one in found),
        _joined("", "+".join(one.busy_source for one in found)),
        _sum(one.busy_error_s for one in found),
        _sum(one.sm_active_s for one in found),
        _sum(one.tensor_active_s for one in found),
        _sum(one.memory_gib_s for one in found),
        _sum(one.energy_j for one in found),
        _joined("", "+".join(one.attribution for one in found)),
        sum(one.stall_s for one in found),
        max(one.steps for one in found),
        sum(mfu * seconds for mfu, seconds in known) / weight if known and len(known) == len(useful) else None,
        _money(one.cost for one in found),
        _money(one.idle_cost for one in found),
        _money(one.usd_per_hour for one in found),
        first.price_as_of,
        first.price_source,
        sum((one.wasted_s for one in found), Decimal(0)),
        _money(one.wasted_cost for one in found),
        phases,
        _sum(one.device_stall_s for one in found),
        sum((one.cpu_s for one in found), Decimal(0)),
        _processors([one.cpus for one in found if one.cpus is not None]),
        sum_of([one.co2 for one in found]),
    )  # fmt: skip


def _processors(found: Sequence[Cpus]) -> Cpus | None:
    """Those of all ranks; of which machine is not known any more."""
    if not found:
        return None
    return Cpus(sum((one.count for one in found), Decimal(0)), _joined("", "+".join(one.source for one in found)))


def _sum(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None


def _money(values: Iterable[Decimal | None]) -> Decimal | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known, Decimal(0)) if len(known) == len(found) else None


def span_values(used: GpuUsage, devices: int) -> dict[str, Any]:
    """The attributes of the span of a run; what is unknown has none."""
    values: dict[str, Any] = {
        names.GPU_COUNT: devices,
        names.GPU_MODEL: ",".join(used.models),
        names.GPU_UUIDS: list(used.uuids),
        names.GPU_ALLOCATED: float(used.allocated_s),
        names.GPU_BUSY: used.busy_s,
        names.GPU_BUSY_SOURCE: used.busy_source or None,
        names.GPU_BUSY_ERROR: used.busy_error_s,
        names.GPU_STALL: used.stall_s,
        names.GPU_DEVICE_STALL: used.device_stall_s,
        names.GPU_SM_ACTIVE: used.sm_active_s,
        names.GPU_TENSOR_ACTIVE: used.tensor_active_s,
        names.GPU_MEMORY: used.memory_gib_s,
        names.GPU_ENERGY: used.energy_j,
        **_co2_values(used.co2),
        names.GPU_MFU: used.mfu,
        names.GPU_ATTRIBUTION: used.attribution or None,
        names.GPU_STEPS: used.steps,
        names.CPU_COUNT: None if used.cpus is None else float(used.cpus.count),
        names.CPU_SOURCE: None if used.cpus is None else used.cpus.source or None,
        names.CPU_MACHINE: None if used.cpus is None else used.cpus.machine,
        names.CPU_ALLOCATED: None if used.cpus is None else float(used.cpu_s),
        names.GPU_WASTED: float(used.wasted_s),
        names.COST_TOTAL: None if used.cost is None else float(used.cost),
        names.COST_CURRENCY: None if used.cost is None else "USD",
        names.GPU_IDLE_COST: None if used.idle_cost is None else float(used.idle_cost),
        names.GPU_RATE: None if used.usd_per_hour is None else float(used.usd_per_hour),
        names.PRICE_AS_OF: used.price_as_of or None,
        names.PRICE_SOURCE: used.price_source or None,
        **{f"{names.PHASE_PREFIX}{name}_s": seconds for name, seconds in used.phases.items()},
    }
    return {key: value for key, value in values.items() if value is not None}


def _co2_values(found: Co2 | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        names.CO2_KG: float(found.kg),
        names.CO2_INTENSITY: float(found.grams_per_kwh),
        names.CO2_COUNTRY: found.country or None,
        names.CO2_YEAR: found.year,
        names.CO2_SOURCE: found.source,
        names.ENERGY_KWH: float(found.energy_kwh),
        names.ENERGY_PUE: float(found.pue),
        names.ENERGY_PUE_SOURCE: found.pue_source or None,
    }


@dataclass(frozen=True, slots=True)
class Forecast:
    """Where a run ends if it goes on as it did lately.

    Attributes:
        steps: that are left. seconds: that they take; None before there was a second step. usd_per_step: moving average; None without a
            price. cost: USD that is still to come, None when unknown.
        lasts_s: for how many seconds the tightest budget has room, None when none limits it.
        ends_before_limit: whether the last step comes before that; None when either is unknown.
        last_step: the last one that is made: the last of all, or the one at which a budget will end the run.
    """

    steps: int
    seconds: float | None
    usd_per_step: Decimal | None
    cost: Decimal | None
    lasts_s: float | None
    ends_before_limit: bool | None
    last_step: int
