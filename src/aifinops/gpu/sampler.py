"""Reads the devices that somebody watches, from one daemon thread, and answers what each of them did in a span of time.

The thread lives while a `Watch` is open. It looks often enough that the driver's ring of samples never runs over, and no more often than its
own measured cost allows; a driver that hangs holds up the thread, never the program: whoever asks waits a quarter of a second at most and
gets what is known by then. What is read is made ours first: where other processes use the same device, only the part of this one counts, if
it can be told apart (`attribution`). A forked child has no thread and no figures: the device is metered by its parent.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aifinops import errors
from aifinops.clock import Clock
from aifinops.gpu import backends
from aifinops.gpu.backends.base import Backend, Device, Probe, Process, Reading, Stretch
from aifinops.gpu.backends.null import NullProbe
from aifinops.gpu.measured import SHORT_S, Counter, Curve, Level, Measured

__all__ = ["Cost", "Sampler", "Watch", "watch"]

TICK_S = 1.0
"""Between two looks while figures are asked for, in seconds."""
IDLE_TICK_S = 5.0
"""Between two looks while nobody asks, in seconds."""
SLOWEST_S = 10.0
"""Between two looks where they are dear, in seconds."""
COST = 0.005
"""The part of its time that the thread may spend in looks, eight devices: a look of 5 ms a second."""
PATIENCE_S = 0.25
"""The longest that somebody who asks is made to wait for the driver, in seconds."""

_GIB = 2**30
_ENERGY_LATE_S = 0.1  # counters of energy are renewed every 20 to 100 ms
_CONTEXT = 700 * 2**20  # what CUDA itself holds of a device beside what torch has reserved, at most
_RANK = ("pid", "sole", "memory", "device")


@dataclass(frozen=True, slots=True)
class Cost:
    """What the sampler itself has cost so far.

    Attributes:
        looks: rounds over all devices. wall_s, cpu_s: what they took, in all. interval_s: from one to the next, at present.
    """

    looks: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    interval_s: float = TICK_S


class _Track:
    """One device: its reader and what it has read."""

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


class Sampler:
    """The tracks of all watched devices, and the thread that reads them.

    Args:
        clock: the clock of the spans that are asked for.
        threaded: False: nothing runs by itself; who asks, reads (for tests, and for programs that want no thread).
        backend_of: finds the backend of a device.
    """

    def __init__(
        self, clock: Clock, *, threaded: bool = True, backend_of: Callable[[Device], Backend] = backends.of
    ) -> None:
        self.clock = clock
        self.pid = os.getpid()
        self._threaded = threaded
        self._backend_of = backend_of
        self._tracks: dict[str, _Track] = {}
        self._closed: list[_Track] = []
        self._lock = threading.Lock()  # of the tracks and curves: held for microseconds, never in a call of the driver
        self._looked = threading.Condition(self._lock)
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._until_ns: int | None = None  # the devices were read after this moment
        self._idle_looks = 0
        self._cost = Cost()
        self._look_s = 0.0  # what a look takes, smoothed

    @property
    def cost(self) -> Cost:
        """What reading has cost so far."""
        return self._cost

    def add(self, devices: Sequence[Device]) -> None:
        """Begin to read these devices, or count one more who wants them read; returns once they have been read for the first time."""
        with self._lock:
            for device in devices:
                self._tracks.setdefault(device.uuid, _Track(device)).watchers += 1
            if self._tracks and self._threaded and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="aifinops-gpu", daemon=True)
                self._thread.start()
        if devices:
            self.drain(self.clock.monotonic_ns())

    def remove(self, devices: Sequence[Device]) -> None:
        """One less wants these devices read; what nobody wants is closed, and the thread ends with the last."""
        with self._lock:
            for device in devices:
                track = self._tracks.get(device.uuid)
                if track is not None:
                    track.watchers -= 1
                    if not track.watchers:
                        self._closed.append(self._tracks.pop(device.uuid))
            if self._threaded:  # the thread may be in the middle of a call with them: it closes what it has opened
                self._wanted.set()
                return
            closed, self._closed = self._closed, []
        _close(closed)

    def between(self, device: Device, start_ns: int, end_ns: int) -> Measured:
        """What one device did in a span; the devices are read first, unless they were since its end."""
        if os.getpid() != self.pid:
            return Measured()
        self.drain(end_ns)
        with self._lock:
            track = self._tracks.get(device.uuid)
            return track.between(start_ns, end_ns) if track is not None and end_ns >= start_ns else Measured()

    def sources(self, device: Device, start_ns: int, end_ns: int) -> dict[str, tuple[float, float | None]]:
        """Busy seconds and their bound by each source that has them, to compare; `between` takes the best."""
        if os.getpid() != self.pid:
            return {}
        self.drain(end_ns)
        with self._lock:
            track = self._tracks.get(device.uuid)
            return track.sources(start_ns, end_ns) if track is not None and end_ns >= start_ns else {}

    def drain(self, until_ns: int) -> None:
        """See to it that the devices are read once after this moment; a driver that does not answer is not waited for."""
        with self._lock:
            self._idle_looks = 0
            opened = all(track.probe for track in self._tracks.values())
            if not self._tracks or (opened and self._until_ns is not None and self._until_ns >= until_ns):
                return
        if not self._threaded:
            self.look()
            return
        self._wanted.set()
        with self._looked:
            self._looked.wait_for(lambda: self._until_ns is not None and self._until_ns >= until_ns, timeout=PATIENCE_S)

    def look(self) -> None:
        """Read every device once. The curves are locked only to be added to, not while the driver answers."""
        began, spent = time.perf_counter(), time.thread_time()
        moment = self.clock.monotonic_ns()
        with self._lock:
            tracks = list(self._tracks.values())
        for track in tracks:
            try:
                self._read(track)
            except Exception as error:
                track.probe = NullProbe()  # it has shown that it cannot be read
                errors.swallow("gpu.sampler", error)
        wall, cpu = time.perf_counter() - began, time.thread_time() - spent
        with self._looked:
            self._until_ns = moment
            self._idle_looks += 1
            # The first look opens drivers: it says nothing of the next.
            self._look_s = wall if self._cost.looks == 1 else 0.8 * self._look_s + 0.2 * wall
            cost = self._cost
            self._cost = Cost(cost.looks + 1, cost.wall_s + wall, cost.cpu_s + cpu, self._interval(tracks))
            self._looked.notify_all()

    def _read(self, track: _Track) -> None:
        if track.probe is None:
            track.probe = self._backend_of(track.device).probe(track.device)
        reading = Reading(self.clock.monotonic_ns(), lost=True) if track.lost else track.probe.read(self.clock)
        with self._lock:
            track.take(reading)

    def _interval(self, tracks: Sequence[_Track]) -> float:
        """Seconds to the next look: a second, five while nobody asks; more where looks are dear; always within the driver's ring."""
        wanted = TICK_S if self._idle_looks <= IDLE_TICK_S / TICK_S else IDLE_TICK_S
        dear = self._look_s / (COST * max(1.0, len(tracks) / 8)) if self._cost.looks > 1 else 0.0
        rings = [track.probe.ring_ns / 1e9 for track in tracks if track.probe and track.probe.ring_ns]
        ring = min(rings, default=None)
        seconds = max(wanted if ring is None else min(wanted, ring / 3), min(dear, SLOWEST_S))
        return seconds if ring is None else min(seconds, 0.8 * ring)

    def _run(self) -> None:
        while True:
            self._wanted.clear()
            with self._lock:
                closed, self._closed = self._closed, []
                if not self._tracks:
                    self._thread = None
            _close(closed)
            if self._thread is not threading.current_thread():
                return
            try:
                self.look()
            except Exception as error:  # the next look may be better; until then figures are unknown
                errors.swallow("gpu.sampler.look", error)
            self._wanted.wait(self._cost.interval_s)


def _close(tracks: Sequence[_Track]) -> None:
    for track in tracks:
        if track.probe is not None:
            try:
                track.probe.close()
            except Exception as error:
                errors.swallow("gpu.sampler.close", error)


class Watch:
    """Keeps devices read until it is closed. Also a context manager.

    Attributes:
        devices: what is watched.
    """

    def __init__(self, sampler: Sampler, devices: Sequence[Device]) -> None:
        self.devices = tuple(devices)
        self._sampler = sampler
        self._open = True
        sampler.add(self.devices)

    def between(self, device: Device, start_ns: int, end_ns: int) -> Measured:
        """What a device did from one moment to another, of the clock's monotonic nanoseconds; all unknown in a forked child.

        Call it at the end of a span, not long after: the devices are read then, so that the span ends where it ends.
        """
        return self._sampler.between(device, start_ns, end_ns) if self._open else Measured()

    def sources(self, device: Device, start_ns: int, end_ns: int) -> dict[str, tuple[float, float | None]]:
        """Busy seconds of a span and their bound by each source that has them, where `between` takes the best: to compare them."""
        return self._sampler.sources(device, start_ns, end_ns) if self._open else {}

    @property
    def cost(self) -> Cost:
        """What the sampler itself has cost so far, for all who watch."""
        return self._sampler.cost

    def close(self) -> None:
        """Read no more for this one."""
        if self._open:
            self._open = False
            if os.getpid() == self._sampler.pid:
                self._sampler.remove(self.devices)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Shared:
    """The sampler of this process."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.lock = threading.Lock()
        self.sampler: Sampler | None = None

    def for_clock(self, clock: Clock) -> Sampler:
        with self.lock:
            if self.sampler is None or self.sampler.clock is not clock:
                self.sampler = Sampler(clock)
            return self.sampler


_shared = _Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.renew)


def watch(devices: Sequence[Device], *, clock: Clock | None = None) -> Watch:
    """Watch devices: the first one starts the thread, closing the last one ends it.

    Args:
        devices: from `aifinops.gpu.devices`; none is fine, then there is no thread.
        clock: the clock of the spans that will be asked for; by default that of the runtime.
    """
    if clock is None:
        from aifinops import runtime

        clock = runtime.get().clock
    return Watch(_shared.for_clock(clock), devices)
