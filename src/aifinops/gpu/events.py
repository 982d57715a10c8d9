"""Steps timed on the device itself, by pairs of events on its stream, without ever waiting for it.

An event costs the host a microsecond or two; when the device has come past it, `query()` says so, and only then is its time read. Nothing
here synchronises: under `torch.cuda.set_sync_debug_mode("error")` nothing is raised. What lies between an event on the way into a step and one
on the way out is an upper bound of the time that the device was busy, since the gaps between kernels are in it. What lies between the way
out and the next way in is time that the device waited for the host, if it waited: 0 where the host runs ahead.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from aifinops import errors
from aifinops.gpu import backends
from aifinops.gpu.backends.base import Device

__all__ = ["CAPACITY", "StepEvents", "StepTimes", "for_device"]

CAPACITY = 256
"""How many events may wait for the device at most; what comes beyond is not timed, and is counted."""

_AT_ONCE = 4  # how many events that the device has passed are read at each mark: more than a step makes


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What the device has come past so far.

    Attributes:
        step_s: seconds inside steps. stall_s: seconds between them. steps: how many ended.
        dropped: marks that were not timed: the queue was full, a graph was being captured, or an event failed.
        pending: marks that the device has not come past.
    """

    step_s: float = 0.0
    stall_s: float = 0.0
    steps: int = 0
    dropped: int = 0
    pending: int = 0


class StepEvents:
    """Times the steps of one device. Marks come from the thread that runs them; any thread may ask for the times.

    Args:
        make: makes an event with `record()`, `query()` and `elapsed_time(later)` in milliseconds, as `torch.cuda.Event` has them.
        capturing: whether a graph is being captured: an event recorded then would be part of the graph.
        capacity: how many events may wait for the device.
    """

    def __init__(
        self, make: Callable[[], Any], *, capturing: Callable[[], bool] = lambda: False, capacity: int = CAPACITY
    ) -> None:
        self._make = make
        self._capturing = capturing
        self._capacity = capacity
        self._free: list[Any] = []
        # What the device has not come past: "in", "out", or "gap" without an event, where a mark is missing.
        self._waiting: deque[tuple[str, Any]] = deque()
        self._last: tuple[str, Any] | None = None
        self._step_ms = self._stall_ms = 0.0
        self._steps = self._dropped = 0
        self._events = 0
        self._broken = False
        self._thread = 0  # whose marks these are: it alone reads events

    def enter(self) -> None:
        """The host begins a step: what it now queues is the step's. With accumulated gradients every micro-batch may call it."""
        self._mark("in")

    def leave(self) -> None:
        """The host has queued all of a step."""
        self._mark("out")

    def pause(self) -> None:
        """What comes until the next mark is neither step nor stall: an evaluation, a checkpoint."""
        self._gap()

    def times(self) -> StepTimes:
        """What is known by now; asks no more than whether the device has come past an event."""
        if threading.get_ident() == self._thread:
            try:
                self._resolve(len(self._waiting))
            except Exception as error:
                self._fail(error)
        return StepTimes(self._step_ms / 1e3, self._stall_ms / 1e3, self._steps, self._dropped, self._events)

    def _mark(self, kind: Literal["in", "out"]) -> None:
        if self._broken:
            self._dropped += 1
            return
        try:
            self._resolve(_AT_ONCE)
            if self._events >= self._capacity or self._capturing():
                self._skip()
                return
            event = self._free.pop() if self._free else self._make()
            event.record()
        except Exception as error:  # a device that is gone, a stream of another device: never the user's step
            self._skip()
            self._fail(error)
            return
        if not self._thread:
            self._thread = threading.get_ident()
        self._events += 1
        self._waiting.append((kind, event))

    def _fail(self, error: Exception) -> None:
        self._broken = True
        errors.swallow("gpu.events", error)

    def _skip(self) -> None:
        self._dropped += 1
        self._gap()

    def _gap(self) -> None:
        if not self._waiting or self._waiting[-1][0] != "gap":
            self._waiting.append(("gap", None))

    def _resolve(self, most: int) -> None:
        """Read the events that the device has come past, in order, this many at most."""
        waiting = self._waiting
        while waiting and most > 0:
            kind, event = waiting[0]
            if event is not None and not event.query():
                return
            waiting.popleft()
            most -= 1
            self._passed(kind, event)

    def _passed(self, kind: str, event: Any) -> None:
        last, self._last = self._last, (kind, event) if event is not None else None
        if event is not None:
            self._events -= 1
        if last is None:
            self._steps += kind == "out"
            return
        if event is not None:
            elapsed = last[1].elapsed_time(event)
            if last[0] == "out" and kind == "in":
                self._stall_ms += elapsed
            else:
                self._step_ms += elapsed
            self._steps += kind == "out"
        self._free.append(last[1])


def for_device(device: Device) -> StepEvents | None:
    """Events on the stream that is current when they are recorded; None where the framework that has them is not in use yet."""
    make = backends.of(device).event_factory()
    if make is None:
        return None
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    capturing = getattr(cuda, "is_current_stream_capturing", None) if device.vendor in {"nvidia", "amd"} else None
    return StepEvents(make, capturing=capturing or (lambda: False))
