"""Reads the devices that somebody watches, from one daemon thread, and answers what each of them did in a span of time.

The thread lives while a `Watch` is open. It looks often enough that the driver's ring of samples never runs over, and no more often than its
own measured cost allows; a driver that hangs holds up the thread, never the program: whoever asks waits a quarter of a second at most and
gets what is known by then. What is read is made ours first: where other processes use the same device, only the part of this one counts, if
it can be told apart (`attribution`). A forked child has no thread and no figures: the device is metered by its parent.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aifinops import errors
from aifinops.clock import Clock
from aifinops.forking import in_child
from aifinops.gpu import backends
from aifinops.gpu.backends.base import Backend, Device, Reading
from aifinops.gpu.backends.null import NullProbe
from aifinops.gpu.measured import Measured
from aifinops.gpu.tracks import Track

if TYPE_CHECKING:
    from aifinops.telemetry.metrics import DeviceState

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
        self._tracks: dict[str, Track] = {}
        self._closed: list[Track] = []
        self._told: dict[
            str, tuple[int, float | None]
        ] = {}  # up to when `states` has told of a device, and its joules by then
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
                self._tracks.setdefault(device.uuid, Track(device)).watchers += 1
                self._told.setdefault(device.uuid, (self.clock.monotonic_ns(), None))
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
                        self._told.pop(device.uuid, None)
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

    def states(self) -> list[DeviceState]:
        """What each watched device has done since this was asked the last time, from what is known by now: no driver is waited for."""
        from aifinops.telemetry.metrics import DeviceState

        if os.getpid() != self.pid:
            return []
        found = []
        with self._lock:
            now = self._until_ns
            if now is None:
                return []
            for uuid, track in self._tracks.items():
                since, joules = self._told[uuid]
                device, seconds = track.device, (now - since) / 1e9
                if seconds <= 0:
                    continue
                measured = track.between(since, now)
                energy = measured.energy_j
                if energy is not None:
                    joules = (joules or 0.0) + energy
                self._told[uuid] = now, joules
                gib_s = measured.memory_gib_s
                found.append(
                    DeviceState(
                        uuid, device.name, device.vendor, device.parent,
                        utilization=None if measured.busy_s is None else min(1.0, measured.busy_s / seconds),
                        memory=None if gib_s is None else gib_s * 2**30 / seconds,
                        memory_limit=device.memory,
                        energy_j=joules,
                        power_w=None if energy is None else energy / seconds,
                    )
                )  # fmt: skip
        return found

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

    def _read(self, track: Track) -> None:
        if track.probe is None:
            track.probe = self._backend_of(track.device).probe(track.device)
        reading = Reading(self.clock.monotonic_ns(), lost=True) if track.lost else track.probe.read(self.clock)
        with self._lock:
            track.take(reading)

    def _interval(self, tracks: Sequence[Track]) -> float:
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


def _close(tracks: Sequence[Track]) -> None:
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
in_child(_shared.renew)


def watch(devices: Sequence[Device], *, clock: Clock | None = None) -> Watch:
    """Watch devices: the first one starts the thread, closing the last one ends it.

    Args:
        devices: from `aifinops.gpu.devices`; none is fine, then there is no thread.
        clock: the clock of the spans that will be asked for; by default that of the runtime.
    """
    if clock is None:
        from aifinops import runtime

        clock = runtime.get().clock
        runtime.get().metrics.devices = _shared.for_clock(clock).states
    return Watch(_shared.for_clock(clock), devices)
