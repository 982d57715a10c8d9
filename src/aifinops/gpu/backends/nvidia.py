"""NVIDIA through NVML: the driver's ring of utilisation samples, GPM on Hopper and later, the energy counter, memory, processes.

The ring (`nvmlDeviceGetSamples`) has one mean a period with the time that it was taken, so that looks that are nearer together than its span
miss nothing (https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html). A sample is the mean of the period *before* its time.
GPM is the mean of hardware counters between two samples of ours, at least 100 ms apart; a MIG slice is read through its parent.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

from aifinops.clock import Clock
from aifinops.gpu.backends.base import Device, Inventory, Process, Reading, Stretch
from aifinops.gpu.backends.null import NullProbe
from aifinops.gpu.nvml import Lost, Nvml, session

__all__ = ["NvidiaBackend", "NvidiaProbe"]

GPM_APART_NS = 100_000_000
"""The least time between two GPM samples, in nanoseconds: the counters are renewed no faster."""
ROUNDING = 0.005
"""Samples of the ring are whole percents."""

PATIENCE_S = 1.0
"""How long the list of devices waits for another thread that is in a call of the driver, in seconds."""

_GPU_UTILIZATION = 1  # nvmlSamplingType_t
_GRAPHICS, _SM, _TENSOR = 1, 2, 5  # nvmlGpmMetricId_t: graphics and compute engine, SMs, any tensor pipe
_METRICS = (_GRAPHICS, _SM, _TENSOR)
_VALUE = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal"}  # nvmlValueType_t
_MIB = 2**20


class NvidiaBackend:
    """All GPUs and MIG slices that NVML shows."""

    vendor = "nvidia"

    def __init__(self, nvml: Nvml = session) -> None:
        self._nvml = nvml

    def likely(self) -> bool:
        """Always: without a driver the answer says why there is none, which a user wants to know."""
        return True

    def inventory(self) -> Inventory:
        """Ask NVML once; a machine without driver or devices is an answer, not an error, and a lost GPU hides no other."""
        # Somebody may be in a call that does not come back: a GPU that has crashed can hold the driver up.
        if not self._nvml.lock.acquire(timeout=PATIENCE_S):
            return Inventory(reason="the driver does not answer")
        try:
            reason = self._nvml.acquire()
            if reason:
                return Inventory(reason=reason)
            try:
                return self._listed()
            except self._nvml.module.NVMLError as error:
                return Inventory(reason=f"NVML failed: {error}")
            finally:
                self._nvml.release()
        finally:
            self._nvml.lock.release()

    def probe(self, device: Device) -> NvidiaProbe | NullProbe:
        """A reader of this device; it holds NVML open until it is closed."""
        if self._nvml.acquire():
            return NullProbe()
        return NvidiaProbe(device, self._nvml)

    def event_factory(self) -> Callable[[], Any] | None:
        """`torch.cuda.Event` once CUDA is in use; torch is never imported for it."""
        torch = sys.modules.get("torch")
        cuda = getattr(torch, "cuda", None)
        if cuda is None or not cuda.is_initialized():
            return None
        return lambda: cuda.Event(enable_timing=True)

    def _listed(self) -> Inventory:
        found: list[Device] = []
        wrong: list[str] = []
        for index in range(self._nvml.call("nvmlDeviceGetCount")):
            try:
                found += self._at(index)
            except (Lost, self._nvml.module.NVMLError) as error:
                wrong.append(f"device {index}: {error}")
        driver = _text(self._nvml.call("nvmlSystemGetDriverVersion"))
        if not found and not wrong:
            wrong.append("the driver sees no device")
        return Inventory(tuple(found), driver, "; ".join(wrong))

    def _at(self, index: int) -> list[Device]:
        handle = self._nvml.call("nvmlDeviceGetHandleByIndex", index)
        uuid = _text(self._nvml.call("nvmlDeviceGetUUID", handle))
        self._nvml.adopt(uuid, handle)
        # The name goes past `ask`: a device that cannot say it is of no use, and the error says why.
        name = _text(self._nvml.call("nvmlDeviceGetName", handle))
        memory = self._nvml.ask(uuid, "nvmlDeviceGetMemoryInfo")  # unified-memory systems report none
        whole = Device(index, uuid, name, int(memory.total) if memory else None)
        mode = self._nvml.ask(uuid, "nvmlDeviceGetMigMode")
        return [whole, *self._slices(whole)] if mode and mode[0] else [whole]

    def _slices(self, whole: Device) -> Iterable[Device]:
        most = self._nvml.ask(whole.uuid, "nvmlDeviceGetMaxMigDeviceCount") or 7
        for number in range(most):
            handle = self._nvml.ask(whole.uuid, "nvmlDeviceGetMigDeviceHandleByIndex", number)
            if handle is not None:
                yield self._slice(whole, handle, most)

    def _slice(self, whole: Device, handle: Any, most: int) -> Device:
        uuid = _text(self._nvml.call("nvmlDeviceGetUUID", handle))
        self._nvml.adopt(uuid, handle)
        instance = "/".join(
            "" if value is None else str(value)
            for value in (self._nvml.ask(uuid, f"nvmlDeviceGet{kind}InstanceId") for kind in ("Gpu", "Compute"))
        )
        parts = self._nvml.ask(uuid, "nvmlDeviceGetAttributes_v2")
        if parts is None:  # what it costs is then not known better than that it is not the whole
            return Device(whole.index, uuid, whole.name, None, "nvidia", whole.uuid, 1 / most, "low", instance)
        memory = int(parts.memorySizeMB) * _MIB
        return Device(
            whole.index, uuid, whole.name, memory, "nvidia", whole.uuid, _share(parts, memory, whole, most),
            instance=instance,
        )  # fmt: skip


def _share(parts: Any, memory: int, whole: Device, most: int) -> float:
    """What a slice takes away from others: the larger of its compute slices / 7 and its memory slices / 8; of an instance, its part."""
    compute = parts.gpuInstanceSliceCount / most
    eighths = max(1, round(8 * memory / whole.memory)) / 8 if whole.memory else 0.0
    of_instance = parts.computeInstanceSliceCount / parts.gpuInstanceSliceCount if parts.gpuInstanceSliceCount else 1.0
    return float(min(1.0, max(compute, eighths)) * min(1.0, of_instance))


class NvidiaProbe:
    """Reads one GPU or MIG slice; each question that the driver refuses is dropped for good, the others go on."""

    ring_ns: int | None = None
    busy_source = "nvml_samples"
    active_source = "gpm"
    memory_source = "nvml_memory"
    energy_source = "nvml_energy_counter"

    def __init__(self, device: Device, nvml: Nvml = session) -> None:
        self._device = device
        self._nvml = nvml
        self._uuid = device.uuid
        self._sampled_us = 0  # time of the newest sample of the ring that was seen
        self._shared_us = 0  # the same of the shares of processes
        self._period_us = 0
        self._gpm = _Gpm(device, nvml)
        limit = self._quietly("nvmlDeviceGetEnforcedPowerLimit")
        self.power_limit_w = limit / 1000 if limit else None

    def read(self, clock: Clock) -> Reading:
        """One look: at most seven questions to the driver. Raises nothing for a device that is gone: it says so."""
        with self._nvml.lock:
            if self._nvml.module is None:  # forked: the session is the parent's
                return Reading(clock.monotonic_ns())
            try:
                return self._read(clock)
            except Lost:
                return Reading(clock.monotonic_ns(), lost=True)

    def close(self) -> None:
        """Free the GPM samples and let NVML go."""
        with self._nvml.lock:
            if self._nvml.module is not None:  # else forked: all of it is the parent's
                self._gpm.close()
            self._nvml.release()

    def _read(self, clock: Clock) -> Reading:
        before = clock.monotonic_ns()
        gpm = self._gpm.look(clock)
        energy = self._nvml.ask(self._uuid, "nvmlDeviceGetTotalEnergyConsumption") if not self._device.parent else None
        memory = self._nvml.ask(self._uuid, "nvmlDeviceGetMemoryInfo")
        at = clock.monotonic_ns()
        processes = self._processes()
        return Reading(
            at,
            at - before,
            self._ring(clock),
            None,
            gpm.get(_GRAPHICS),
            gpm.get(_SM),
            gpm.get(_TENSOR),
            int(memory.used) if memory else None,
            energy / 1000 if energy is not None else None,
            processes,
            # Alone there is nothing to tell apart.
            self._active() if processes is not None and len(processes) > 1 else None,
        )

    def _ring(self, clock: Clock) -> tuple[Stretch, ...]:
        answer = self._nvml.ask(self._uuid, "nvmlDeviceGetSamples", _GPU_UTILIZATION, self._sampled_us)
        if not answer:
            return ()
        kind = _VALUE.get(answer[0], "uiVal")
        # Each field of a structure of pynvml is dear: it is asked for once.
        rows = [
            (at, float(getattr(row.sampleValue, kind))) for row in answer[1] if (at := row.timeStamp) > self._sampled_us
        ]
        if not rows:
            return ()
        self._learn(rows)
        # The driver's times are wall time in microseconds. The difference to monotonic time is taken anew at each look, so that a clock
        # that is put right moves at most what came since the look before.
        offset = clock.monotonic_ns() - clock.time_ns()
        stretches = []
        last = self._sampled_us
        for at, percent in rows:
            # After a pause the sample stands for its own period only, and the time before it is unknown.
            start = last if 0 < at - last <= 2 * self._period_us else at - self._period_us
            if 0 <= percent <= 100 and start < at:
                stretches.append(Stretch(start * 1000 + offset, at * 1000 + offset, percent / 100, ROUNDING))
            last = at
        self._sampled_us = last
        return tuple(stretches)

    def _learn(self, rows: list[tuple[int, float]]) -> None:
        """Period and span of the ring, which differ between products: the first look sees all of it."""
        steps = [after[0] - before[0] for before, after in itertools.pairwise(rows) if after[0] > before[0]]
        if self._sampled_us and steps:
            self._period_us = min(self._period_us or steps[0], round(statistics.median(steps)))
        elif steps:
            self._period_us = round(statistics.median(steps))
            self.ring_ns = (rows[-1][0] - rows[0][0]) * 1000

    def _processes(self) -> tuple[Process, ...] | None:
        rows = self._nvml.ask(self._uuid, "nvmlDeviceGetComputeRunningProcesses")
        if rows is None:
            return None
        return tuple(Process(int(row.pid), row.usedGpuMemory) for row in rows)

    def _active(self) -> dict[int, float] | None:
        """SM share by pid in the driver's last sample; empty when there is no newer one."""
        rows = self._nvml.ask(self._uuid, "nvmlDeviceGetProcessUtilization", self._shared_us)
        if rows is None:
            return None if self._nvml.without(self._uuid, "nvmlDeviceGetProcessUtilization") else {}
        fresh = [row for row in rows if row.timeStamp > self._shared_us]
        self._shared_us = max((int(row.timeStamp) for row in fresh), default=self._shared_us)
        return {int(row.pid): used / 100 for row in fresh if (used := row.smUtil) <= 100}

    def _quietly(self, name: str) -> Any:
        try:
            return self._nvml.ask(self._uuid, name)
        except Lost:
            return None


class _Gpm:
    """The last GPM sample of a device, and what the counters say between it and the next: nothing of the time between two looks is missed."""

    def __init__(self, device: Device, nvml: Nvml) -> None:
        self._nvml = nvml
        self._of = device.parent or device.uuid
        instance = device.instance.partition("/")[0]
        self._arguments: tuple[Any, ...] = (int(instance),) if device.parent and instance.isdigit() else ()
        self._name = "nvmlGpmMigSampleGet" if device.parent else "nvmlGpmSampleGet"
        self._samples: list[Any] = []
        self._asked: Any = None
        self._last: tuple[int, int] | None = None
        self._on: bool | None = None

    def look(self, clock: Clock) -> dict[int, Stretch]:
        """Means by metric since the last look; empty when there are none, or when the last look is less than 100 ms ago."""
        if self._on is None:
            self._on = self._supported()
        if not self._on or (self._last and clock.monotonic_ns() - self._last[1] < GPM_APART_NS):
            return {}
        before = clock.monotonic_ns()
        if self._nvml.ask(self._of, self._name, *self._arguments, self._samples[1]) is None:
            self._on = not self._nvml.without(self._of, self._name)
            self._last = None  # what the counters did meanwhile is not known
            return {}
        taken = (before, clock.monotonic_ns())
        last, self._last = self._last, taken
        found = self._between(last, taken) if last else {}
        self._samples.reverse()
        return found

    def close(self) -> None:
        """Free both samples."""
        module = (
            self._nvml.module
        )  # none any more where the session was begun anew meanwhile: the samples went with the old one
        for sample in self._samples if module is not None else ():
            try:
                module.nvmlGpmSampleFree(sample)
            except module.NVMLError:
                break
        self._samples, self._on = [], False

    def _supported(self) -> bool:
        module = self._nvml.module
        support = self._nvml.ask(self._of, "nvmlGpmQueryDeviceSupport")
        if (
            support is None
            or not support.isSupportedDevice
            or not (self._arguments or self._name == "nvmlGpmSampleGet")
        ):
            return False
        try:
            self._samples = [module.nvmlGpmSampleAlloc(), module.nvmlGpmSampleAlloc()]
        except module.NVMLError:
            return False
        return True

    def _between(self, last: tuple[int, int], now: tuple[int, int]) -> dict[int, Stretch]:
        module = self._nvml.module
        asked = self._asked
        if asked is None:  # room for some hundred metrics: made once
            asked = self._asked = module.c_nvmlGpmMetricsGet_t()
            asked.version = module.NVML_GPM_METRICS_GET_VERSION
            asked.numMetrics = len(_METRICS)
            for place, metric in enumerate(_METRICS):
                asked.metrics[place].metricId = metric
        asked.sample1, asked.sample2 = self._samples
        try:
            module.nvmlGpmMetricsGet(asked)
        except module.NVMLError:
            return {}
        # When inside the call the counters were read is not known: half of what both calls took, of the time between.
        start, end = sum(last) // 2, sum(now) // 2
        if end <= start:
            return {}
        doubt = (last[1] - last[0] + now[1] - now[0]) / 2 / (end - start)
        return {
            metric: Stretch(start, end, value / 100, doubt)
            for place, metric in enumerate(_METRICS)
            if (row := asked.metrics[place]).nvmlReturn == 0 and 0 <= (value := row.value) <= 100.0001
        }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
