"""What was measured of a device over a span of time: curves that grow as the driver is read, and figures worked out of them with their bounds.

A `Curve` holds means over stretches of time (how busy, how many SMs); a `Counter` the readings of a counter that only grows (energy); a
`Level` the readings of an amount (memory). Each answers for any span: what it knows of it, for how much of the span, and how far off the
answer may be. Where a stretch sticks out over an end of the span, how much of it lies inside is not known: of a stretch of length p with
mean v, of which the part f lies inside, between max(0, v + f - 1) p and min(f, v) p; `v f p` is taken, and the distance to the farther of
the two is the bound. It is 0 for an idle and for a full stretch, and at most p / 4.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace

from aifinops.gpu.backends.base import Stretch

__all__ = ["Amount", "Counter", "Curve", "Level", "Measured", "from_events"]

SHORT_S = 1.0
"""Spans up to this long are told by the time beside them where nothing of them was seen, in seconds."""

_BESIDE_NS = 2_000_000_000
_MOST = 4096
"""Of how many stretches a curve is made at most; beyond, the older half is told in half as many."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one device did in a span of time. Unknown is None, never 0.

    Attributes:
        busy_s: seconds in which at least one kernel ran. busy_source: `gpm`, `nvml_samples`, `cuda_event`, `amdsmi_polled`, ...
        busy_error_s: the most by which `busy_s` may be off as a reading of its source; None where that is not known (polled, events).
        sm_active_s: seconds x share of SMs that had work. tensor_active_s: the same of the tensor cores.
        memory_gib_s: GiB in use x seconds. energy_j: joules, by a counter of the device.
        attribution: whose the figures are: `pid` or `memory` (this process's part), `sole` (it is the only one there), `device` (all that
            ran there, since it cannot be told apart); empty when unknown.
        covered: the part of the span that the source of `busy_s` has seen, 0 to 1.
        active_source, active_error_s: of `sm_active_s` and `tensor_active_s`.
        memory_source, memory_error_gib_s: bound if the amount went up or down no more than once between two looks.
        energy_source, energy_error_j.
    """

    busy_s: float | None = None
    busy_source: str = ""
    busy_error_s: float | None = None
    sm_active_s: float | None = None
    tensor_active_s: float | None = None
    memory_gib_s: float | None = None
    energy_j: float | None = None
    attribution: str = ""
    covered: float | None = None
    active_source: str = ""
    active_error_s: float | None = None
    memory_source: str = ""
    memory_error_gib_s: float | None = None
    energy_source: str = ""
    energy_error_j: float | None = None


def from_events(measured: Measured, busy_s: float) -> Measured:
    """`measured`, with the seconds between CUDA events where the driver knows nothing better. They are an upper bound: launch gaps are in."""
    if measured.busy_s is not None:
        return measured
    return replace(measured, busy_s=busy_s, busy_source="cuda_event", busy_error_s=None)


@dataclass(frozen=True, slots=True)
class Amount:
    """The answer of a curve.

    Attributes:
        value: of the part of the span that is known. covered_s: how long that part is.
        error: the most by which `value` may be off, for that part.
    """

    value: float = 0.0
    covered_s: float = 0.0
    error: float = 0.0

    def over(self, seconds: float) -> tuple[float, float] | None:
        """The value for all of `seconds`, of which `covered_s` were seen, and its bound; None when less than half was seen.

        What was not seen is taken to be as what was; it may have been anything from nothing to all of the time.
        """
        if self.covered_s <= 0 or self.covered_s < seconds / 2:
            return None
        missing = max(0.0, seconds - self.covered_s)
        mean = min(1.0, self.value / self.covered_s)
        return self.value + mean * missing, self.error + missing * max(mean, 1 - mean)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a curve: `value` seconds (or the like) in the `covered_s` seconds that are known of the time from start to end."""

    start: int
    end: int
    covered_s: float
    value: float
    doubt: float

    def inside(self, start: int, end: int) -> Amount:
        part = (min(end, self.end) - max(start, self.start)) / (self.end - self.start)
        if part >= 1:
            return Amount(self.value, self.covered_s, self.doubt)
        mean = self.value / self.covered_s if self.covered_s else 0.0
        most = min(part, mean) - mean * part
        least = mean * part - max(0.0, mean + part - 1)
        return Amount(
            self.value * part, self.covered_s * part, self.covered_s * max(most, least, 0.0) + self.doubt * part
        )


class Curve:
    """Means over stretches of time; stretches that were not seen are holes in it."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []

    @property
    def end_ns(self) -> int | None:
        """Up to when it is known."""
        return self._pieces[-1].end if self._pieces else None

    def add(self, stretch: Stretch) -> None:
        """Append a stretch; what overlaps with what is known already is cut off."""
        start = max(stretch.start_ns, self._pieces[-1].end) if self._pieces else stretch.start_ns
        if stretch.end_ns <= start:
            return
        seconds = (stretch.end_ns - start) / 1e9
        self._pieces.append(
            _Piece(start, stretch.end_ns, seconds, min(1.0, stretch.value) * seconds, stretch.doubt * seconds)
        )
        if len(self._pieces) > _MOST:
            self._pieces = [*_halved(self._pieces[: _MOST // 2]), *self._pieces[_MOST // 2 :]]

    def over(self, start_ns: int, end_ns: int) -> tuple[float, float] | None:
        """The integral over a span and its bound; None when it is not known.

        A span of less than a second of which nothing was seen yet, since the driver renews its figures only so often, is taken to be as the
        time beside it; the bound is that it may have been otherwise.
        """
        seconds = (end_ns - start_ns) / 1e9
        found = self.between(start_ns, end_ns).over(seconds)
        if found is not None or seconds > SHORT_S or not self._pieces:
            return found
        place = bisect.bisect_right(self._pieces, start_ns, key=lambda piece: piece.end)
        beside = self._pieces[min(place, len(self._pieces) - 1)]
        if max(beside.start - end_ns, start_ns - beside.end) > _BESIDE_NS:
            return None
        mean = beside.value / beside.covered_s
        return mean * seconds, max(mean, 1 - mean) * seconds

    def between(self, start_ns: int, end_ns: int) -> Amount:
        """The integral over a span, as far as it is known."""
        value = covered = error = 0.0
        first = bisect.bisect_right(self._pieces, start_ns, key=lambda piece: piece.end)
        for piece in self._pieces[first:]:
            if piece.start >= end_ns:
                break
            part = piece.inside(start_ns, end_ns)
            value, covered, error = value + part.value, covered + part.covered_s, error + part.error
        return Amount(value, covered, error)


def _halved(pieces: list[_Piece]) -> Iterator[_Piece]:
    for first, second in zip(pieces[::2], pieces[1::2], strict=True):
        yield _Piece(
            first.start,
            second.end,
            first.covered_s + second.covered_s,
            first.value + second.value,
            first.doubt + second.doubt,
        )


class Level:
    """Readings of an amount: between two of them it is taken to move evenly."""

    def __init__(self) -> None:
        self._at: list[int] = []
        self._values: list[float] = []

    def add(self, at_ns: int, value: float) -> None:
        """Append a reading; one that is not newer than the last is left out."""
        if self._at and at_ns <= self._at[-1]:
            return
        self._at.append(at_ns)
        self._values.append(value)
        if len(self._at) > _MOST:
            # Every other one of the older half; the first stays.
            self._at[: _MOST // 2] = self._at[: _MOST // 2 : 2]
            self._values[: _MOST // 2] = self._values[: _MOST // 2 : 2]

    def last(self, at_ns: int) -> float | None:
        """The last reading at a moment or before; None where there is none of the two seconds before it."""
        place = bisect.bisect_right(self._at, at_ns) - 1
        return self._values[place] if place >= 0 and at_ns - self._at[place] <= _BESIDE_NS else None

    def between(self, start_ns: int, end_ns: int) -> Amount:
        """The integral over a span, in value x seconds. Its error is the bound if the amount moved once between two readings."""
        value = covered = error = 0.0
        first = max(0, bisect.bisect_right(self._at, start_ns) - 1)
        for place in range(first, len(self._at) - 1):
            left, right = self._at[place], self._at[place + 1]
            if left >= end_ns:
                break
            start, end = max(left, start_ns), min(right, end_ns)
            if end <= start:
                continue
            low, high = self._values[place], self._values[place + 1]
            middle = low + (high - low) * ((start + end) / 2 - left) / (right - left)
            seconds = (end - start) / 1e9
            value, covered = value + middle * seconds, covered + seconds
            error += max(abs(high - middle), abs(low - middle)) * seconds
        return Amount(value, covered, error)


class Counter:
    """Readings of a counter that grows; where it has fallen, it began again, and what it counted in between is not known."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int, float]] = []  # from, to, how much more
        self._last: tuple[int, float] | None = None

    def add(self, at_ns: int, value: float, share: float = 1.0) -> None:
        """Append a reading; of what came since the one before, `share` is ours."""
        last, self._last = self._last, (at_ns, value)
        if last is None or at_ns <= last[0] or value < last[1]:
            return
        self._pieces.append((last[0], at_ns, (value - last[1]) * share))
        if len(self._pieces) > _MOST:
            self._pieces[: _MOST // 2] = _joined(self._pieces[: _MOST // 2])

    @property
    def counts(self) -> bool:
        """Whether there is such a counter."""
        return bool(self._pieces)

    def skip(self) -> None:
        """Nothing is known until the reading after the next one."""
        self._last = None

    def between(self, start_ns: int, end_ns: int) -> Amount:
        """How much it grew in a span, as far as that is known; what lies over an end of the span is divided evenly."""
        value = covered = error = 0.0
        first = bisect.bisect_right(self._pieces, start_ns, key=lambda piece: piece[1])
        for left, right, grown in self._pieces[first:]:
            if left >= end_ns:
                break
            start, end = max(left, start_ns), min(right, end_ns)
            part = (end - start) / (right - left)
            value, covered = value + grown * part, covered + (end - start) / 1e9
            error += grown * max(part, 1 - part) if part < 1 else 0.0
        return Amount(value, covered, error)


def _joined(pieces: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """Two by two where they touch: a hole stays a hole."""
    joined: list[tuple[int, int, float]] = []
    for number, (start, end, grown) in enumerate(pieces):
        if number % 2 and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end, joined[-1][2] + grown)
        else:
            joined.append((start, end, grown))
    return joined
