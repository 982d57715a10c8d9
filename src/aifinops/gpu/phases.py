"""What the time of a run went into, and how fast its steps are. Nanoseconds of a monotonic clock; no clock is read here."""

from __future__ import annotations

import math

__all__ = ["Pace", "Phases"]

_NS = 1_000_000_000
_MEMORY_S = 300.0


class Phases:
    """Time by phase. Phases may be inside of one another: time belongs to the innermost. What is in none is `startup` up to the end of the
    first step, and `step` from then on, but for waiting for data.

    Attributes:
        waited: for data, outside of phases. outside: in phases of their own. first_step: when the first step ended; None before that.
    """

    def __init__(self, now: int) -> None:
        self.waited = self.outside = 0
        self.first_step: int | None = None
        self._began = now
        self._startup = 0
        self._named: dict[str, int] = {}
        self._open: list[tuple[str, int, int]] = []  # name, counted up to, began
        self._told: dict[str, int] = {}

    def enter(self, name: str, now: int) -> None:
        """A phase begins."""
        self._count(now)
        self._open.append((name, now, now))

    def leave(self, now: int) -> int:
        """The innermost phase has ended; how long it was in all."""
        self._count(now)
        _, _, began = self._open.pop()
        if self._open:
            name, _, outer = self._open[-1]
            self._open[-1] = (name, now, outer)
        else:
            self.outside += now - began
        return now - began

    @property
    def inside(self) -> bool:
        """Whether a phase is open."""
        return bool(self._open)

    def first(self, now: int) -> None:
        """The first step has ended: startup is over, but for what of it was in phases of their own, or waiting."""
        if self.first_step is None:
            self._startup = self.totals(now).get("startup", 0) - self._named.get("startup", 0)
            self.first_step = now

    def wait(self, start: int, end: int) -> None:
        """The loop has waited for data; in a phase of its own it is that phase's time."""
        if not self._open:
            self.waited += end - start

    def totals(self, now: int) -> dict[str, int]:
        """Phase -> nanoseconds up to now; they add up to the time since the beginning."""
        found = dict(self._named)
        if self._open:
            name, since, _ = self._open[-1]
            found[name] = found.get(name, 0) + now - since
        found["data_wait"] = found.get("data_wait", 0) + self.waited
        rest = now - self._began - sum(found.values())
        startup = rest if self.first_step is None else self._startup
        found["startup"] = found.get("startup", 0) + startup
        found["step"] = found.get("step", 0) + rest - startup
        return {name: length for name, length in found.items() if length > 0}

    def news(self, now: int) -> dict[str, float]:
        """Phase -> seconds since the last time that this was asked."""
        found, told = self.totals(now), self._told
        self._told = found
        return {name: (ns - told.get(name, 0)) / _NS for name, ns in found.items() if ns > told.get(name, 0)}

    def _count(self, now: int) -> None:
        if self._open:
            name, since, began = self._open[-1]
            self._named[name] = self._named.get(name, 0) + now - since
            self._open[-1] = (name, now, began)


class Pace:
    """Seconds a step: a moving average over five minutes, without startup and without phases of their own.

    Attributes:
        step_s: the average; None before there were steps enough.
    """

    def __init__(self, now: int) -> None:
        self.step_s: float | None = None
        self._at, self._steps, self._outside = now, 0, 0

    def note(self, now: int, steps: int, outside: int) -> None:
        """So many steps were made until now."""
        made, passed = steps - self._steps, (now - self._at - (outside - self._outside)) / _NS
        first = self._steps == 0
        if made <= 0:
            self._steps = min(self._steps, steps)  # counted from zero again
            return
        self._at, self._steps, self._outside = now, steps, outside
        if first or passed <= 0:
            return
        measured = passed / made
        weight = 1.0 if self.step_s is None else -math.expm1(-passed / _MEMORY_S)
        self.step_s = measured + (1 - weight) * ((self.step_s or 0.0) - measured)
