"""What has been read of one device, made ours, and the figures of a span.

A device may be used by several processes. Before a reading is added to the curves it is scaled to the part of this process, where that can be
told: by its number in the driver's list, because it is alone there, or by the memory that torch in it has reserved.
"""

from __future__ import annotations

import os
import sys

from aifinops.gpu.backends.base import Device, Probe, Process, Reading, Stretch
from aifinops.gpu.backends.null import NullProbe
from aifinops.gpu.measured import SHORT_S, Counter, Curve, Level, Measured

__all__ = ["Track"]

_GIB = 2**30
_ENERGY_LATE_S = 0.1  # counters of energy are renewed every 20 to 100 ms
_CONTEXT = 700 * 2**20  # what CUDA itself holds of a device beside what torch has reserved, at most
_RANK = ("pid", "sole", "memory", "device")


class Track:
    """One device: its reader and what it has read.

    Attributes:
        device: which. watchers: how many want it read. probe: the reader, None until it was first read.
        busy, polled, graphics, sm, tensor, memory, energy: what is known by now. lost: it has fallen off.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.watchers = 0
        self.probe: Probe | None = None
        self.busy, self.polled, self.graphics, self.sm, self.tensor = (Curve() for _ in range(5))
        self.memory = Level()
        self.energy = Counter()
        self.lost = False
        self._last_ns: int | None = None
        self._share = 1.0
        self._kinds: list[tuple[int, str, bool]] = []  # from when, whose the figures are, whether they were split
        self._of_process = False

    def take(self, reading: Reading) -> None:
        """Add one reading to the curves."""
        kind, share, ours = self._ours(reading)
        split = kind not in {"", "device"} and len(reading.processes or ()) > 1
        if kind and (not self._kinds or self._kinds[-1][1:] != (kind, split)):
            self._kinds.append((self._last_ns or reading.at_ns, kind, split))
            del self._kinds[:-1000]
        for curve, stretches in (
            (self.busy, reading.busy),
            (self.graphics, (reading.graphics,)),
            (self.sm, (reading.sm,)),
            (self.tensor, (reading.tensor,)),
            (self.polled, (self._since_last(reading, reading.polled),)),
        ):
            for stretch in stretches:
                if stretch is not None:
                    curve.add(_scaled(stretch, share))
        if reading.lost:
            self._stands_still(reading.at_ns)
        self._of_process = ours is not None and ours.memory is not None
        used = ours.memory if ours is not None and ours.memory is not None else reading.memory
        if used is not None:
            self.memory.add(reading.at_ns, used)
        if reading.energy_j is not None:
            self.energy.add(reading.at_ns, reading.energy_j, share)
        elif not reading.lost:
            self.energy.skip()
        self._last_ns = reading.at_ns

    def between(self, start_ns: int, end_ns: int) -> Measured:
        """What is known of a span."""
        probe: Probe = self.probe or NullProbe()
        seconds = (end_ns - start_ns) / 1e9
        kind, split = self._whose(start_ns, end_ns)
        source, curve, bounded = self._best(probe, start_ns, end_ns)
        busy_s, busy_error = curve.over(start_ns, end_ns) or (None, None)
        seen = curve.between(start_ns, end_ns).covered_s
        sm, tensor = (one.over(start_ns, end_ns) for one in (self.sm, self.tensor))
        memory_gib_s, memory_error = self._memory(start_ns, end_ns, seconds)
        energy_j, energy_error = self._energy(probe, start_ns, end_ns, seconds)
        known = any(value is not None for value in (busy_s, memory_gib_s, energy_j))
        return Measured(
            busy_s=busy_s,
            busy_source=source if busy_s is not None else "",
            busy_error_s=busy_error if bounded and not split else None,
            sm_active_s=sm[0] if sm else None,
            tensor_active_s=tensor[0] if tensor else None,
            memory_gib_s=memory_gib_s,
            energy_j=energy_j,
            attribution=kind if known else "",
            covered=min(1.0, seen / seconds) if busy_s is not None and seconds > 0 else None,
            active_source=probe.active_source if sm or tensor else "",
            active_error_s=max(part[1] for part in (sm, tensor) if part) if (sm or tensor) and not split else None,
            memory_source=self._memory_source(probe) if memory_gib_s is not None else "",
            memory_error_gib_s=memory_error,
            energy_source=probe.energy_source if energy_j is not None else "",
            energy_error_j=None if split else energy_error,
        )

    def sources(self, start_ns: int, end_ns: int) -> dict[str, tuple[float, float | None]]:
        """Busy seconds of a span and their bound by every source that has seen at least half of it."""
        probe: Probe = self.probe or NullProbe()
        found: dict[str, tuple[float, float | None]] = {}
        for name, curve in ((probe.active_source, self.graphics), (probe.busy_source, self.busy)):
            over = curve.over(start_ns, end_ns)
            if over is not None:
                found[name] = over
        polled = self.polled.over(start_ns, end_ns)
        if polled is not None:
            found.setdefault(probe.busy_source, (polled[0], None))
        return found

    def _since_last(self, reading: Reading, value: float | None) -> Stretch | None:
        if value is None or self._last_ns is None or reading.at_ns <= self._last_ns:
            return None
        return Stretch(self._last_ns, reading.at_ns, value)

    def _stands_still(self, at_ns: int) -> None:
        """A device that has fallen off does nothing from then on. What it did between the last good look and the first bad is not known."""
        if self.lost and self._last_ns is not None and at_ns > self._last_ns:
            for curve in (self.busy, self.graphics, self.sm, self.tensor):
                if curve.end_ns is not None:
                    curve.add(Stretch(self._last_ns, at_ns, 0.0))
        self.lost = True

    def _best(self, probe: Probe, start_ns: int, end_ns: int) -> tuple[str, Curve, bool]:
        """Hardware counters before samples before polling, among those that have seen nearly all of the span; else what has seen most.

        And whether its bound is one: what was polled says nothing of the time between.
        """
        known = [
            (probe.active_source, self.graphics, True),
            (probe.busy_source, self.busy, True),
            (probe.busy_source, self.polled, False),
        ]
        known = [row for row in known if row[1].end_ns is not None] or known
        seen = [row[1].between(start_ns, end_ns).covered_s for row in known]
        enough = 0.9 * (end_ns - start_ns) / 1e9
        return next((row for row, s in zip(known, seen, strict=True) if s >= enough), known[seen.index(max(seen))])

    def _memory(self, start_ns: int, end_ns: int, seconds: float) -> tuple[float | None, float | None]:
        amount = self.memory.between(start_ns, end_ns)
        if amount.covered_s <= 0 or amount.covered_s < seconds / 2:
            last = self.memory.last(end_ns) if seconds <= SHORT_S else None
            return (None, None) if last is None else (last * seconds / _GIB, None if seconds else 0.0)
        whole = amount.covered_s >= 0.99 * seconds
        return amount.value / amount.covered_s * seconds / _GIB, amount.error / _GIB if whole else None

    def _energy(self, probe: Probe, start_ns: int, end_ns: int, seconds: float) -> tuple[float | None, float | None]:
        """What the counter says, nothing added for what it has not seen; the bound has that, at the device's power limit."""
        amount = self.energy.between(start_ns, end_ns)
        if amount.covered_s < seconds / 2 or not self.energy.counts:
            return None, None
        if not seconds:
            return 0.0, 0.0
        if probe.power_limit_w is None:
            return amount.value, None
        unseen = max(0.0, seconds - amount.covered_s) + _ENERGY_LATE_S
        return amount.value, amount.error + unseen * probe.power_limit_w

    def _memory_source(self, probe: Probe) -> str:
        return f"{probe.memory_source}_of_process" if self._of_process else probe.memory_source

    def _whose(self, start_ns: int, end_ns: int) -> tuple[str, bool]:
        """The weakest of what held in the span, and whether figures of several processes were told apart in it."""
        inside = [
            row
            for place, row in enumerate(self._kinds)
            if row[0] < end_ns and (place + 1 == len(self._kinds) or self._kinds[place + 1][0] > start_ns)
        ]
        kind = max((row[1] for row in inside), key=_RANK.index, default="device")
        return kind, any(row[2] for row in inside)

    def _ours(self, reading: Reading) -> tuple[str, float, Process | None]:
        """Whose the figures of this reading are, this process's share of them, and its row in the driver's list."""
        there = {process.pid: process for process in reading.processes or ()}
        if reading.processes is None:
            return "device", 1.0, None
        if not there:
            return "", 1.0, None
        kind, ours = self._found(there)
        if ours is None or len(there) == 1:
            return kind, 1.0, ours
        active = reading.active
        # In a container the list may have its own numbers and the shares the host's: then nothing can be told apart.
        if active is None or not set(active) <= set(there):
            return "device", 1.0, None
        if total := sum(active.values()):
            self._share = active.get(ours.pid, 0.0) / total
        return kind, self._share, ours

    def _found(self, there: dict[int, Process]) -> tuple[str, Process | None]:
        if ours := there.get(os.getpid()):
            return "pid", ours
        if len(there) == 1:  # the host's number of this process, as older drivers show it in a container
            return "sole", next(iter(there.values()))
        reserved = _reserved(self.device)
        if reserved is not None and reserved >= _GIB:
            alike = [p for p in there.values() if p.memory and reserved <= p.memory <= 1.05 * reserved + _CONTEXT]
            if len(alike) == 1:
                return "memory", alike[0]
        return "device", None


def _scaled(stretch: Stretch, share: float) -> Stretch:
    if share == 1.0:
        return stretch
    return Stretch(stretch.start_ns, stretch.end_ns, stretch.value * share, stretch.doubt * share)


def _reserved(device: Device) -> int | None:
    """Bytes that torch in this process has reserved on the device; None where it does not say. Nothing is synchronised."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    for index in range(cuda.device_count()):
        if device.uuid.endswith(str(getattr(cuda.get_device_properties(index), "uuid", None))):
            return int(cuda.memory_reserved(index))
    return None
