"""The figures of a run at a moment, and where it will end: put together from what its parts know."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from aifinops.gpu.account import hourly
from aifinops.gpu.usage import Forecast, GpuUsage

if TYPE_CHECKING:
    from aifinops.gpu.distributed import Rank
    from aifinops.gpu.events import StepEvents, StepTimes
    from aifinops.gpu.meter import Meter
    from aifinops.gpu.peaks import Flops
    from aifinops.gpu.phases import Phases

__all__ = ["forecast", "usage_of"]

_NS = 1_000_000_000


def usage_of(
    meter: Meter, phases: Phases, events: StepEvents | None, flops: Flops, now: int,
    *, run: str, attempt: int, rank: Rank, steps: int,
) -> GpuUsage:  # fmt: skip
    """What a run has used up to now, with what is not charged yet.

    Args:
        meter, phases, events, flops: of the run. now: of the monotonic clock. run, attempt, rank, steps: as `GpuUsage` has them.
    """
    allocated, cpu_s, cost, sums, idle = meter.with_open(now)
    account, priced, devices = meter.account, meter.priced, meter.devices
    models: dict[str, int] = {}
    for one in devices:
        models[one.device.name] = models.get(one.device.name, 0) + 1
    price = priced[0] if priced else None
    known = busy = sums.get("busy_s")
    source = sums.source
    timed = _timed(events)
    if busy is None and timed is not None:  # an upper bound, where the driver knows nothing
        busy, source = timed.step_s * devices[0].device.share, "cuda_event"
    return GpuUsage(
        run=run,
        attempt=attempt,
        rank=rank.rank,
        world=rank.world,
        models=models,
        uuids=tuple(one.device.uuid for one in devices if one.device.uuid),
        elapsed_s=(now - meter.started) / _NS,
        allocated_s=allocated,
        busy_s=busy,
        busy_source=source,
        busy_error_s=sums.error if sums.spans else None,
        sm_active_s=sums.get("sm_active_s"),
        tensor_active_s=sums.get("tensor_active_s"),
        memory_gib_s=sums.get("memory_gib_s"),
        energy_j=sums.get("energy_j"),
        attribution=sums.attribution,
        stall_s=phases.waited / _NS,
        device_stall_s=None if timed is None else timed.stall_s,
        steps=steps,
        mfu=flops.mfu(steps, allocated, devices),
        cost=cost,
        idle_cost=None if known is None else idle,
        usd_per_hour=hourly(priced),
        price_as_of=price.as_of if price else "",
        price_source=price.source if price else "",
        wasted_s=allocated + cpu_s - account.saved_s,
        wasted_cost=None if cost is None else cost - account.saved_cost,
        phases={name: ns / _NS for name, ns in phases.totals(now).items()},
        cpu_s=cpu_s,
        cpus=meter.cpus,
        co2=meter.co2(sums),
    )


def _timed(events: StepEvents | None) -> StepTimes | None:
    """Steps by events of the device; None where there were none."""
    timed = None if events is None else events.times()
    return timed if timed is not None and timed.steps else None


def forecast(
    steps: int, total: int, step_s: float | None, usd_per_s: Decimal | None, lasts: float | None, kept: float
) -> Forecast:
    """Where a run ends if it goes on like this.

    Args:
        steps: made; total: of the whole run. step_s: what a step takes. usd_per_s: what a second costs. Each is None when unknown.
        lasts: for how many seconds the tightest budget has room, None when none limits it. kept: seconds of it that are kept for the end.
    """
    left = max(0, total - steps)
    seconds = None if step_s is None else left * step_s
    per_step = None if usd_per_s is None or step_s is None else usd_per_s * Decimal(repr(step_s))
    fits = None if seconds is None or lasts is None else seconds <= lasts
    last = total
    if fits is False and step_s and lasts is not None:
        last = min(total, steps + int(max(0.0, lasts - kept) / step_s))
    return Forecast(left, seconds, per_step, None if per_step is None else per_step * left, lasts, fits, last)
