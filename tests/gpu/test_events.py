"""Steps timed by events of the device, with a device that runs behind the host as a real one does."""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops import errors
from aifinops.gpu import events
from aifinops.gpu.backends.base import Device
from aifinops.gpu.events import StepEvents


class Stream:
    """A device's queue: work takes its time one after the other, and an event is passed when all that was queued before it is done."""

    def __init__(self) -> None:
        self.host = 0.0  # milliseconds
        self.free_at = 0.0  # when the device has done all that is queued
        self.made = 0

    def work(self, ms: float) -> None:
        self.free_at = max(self.free_at, self.host) + ms

    def event(self) -> Event:
        self.made += 1
        return Event(self)


class Event:
    """What torch.cuda.Event does, and what it forbids."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.at: float | None = None

    def record(self) -> None:
        self.at = max(self._stream.free_at, self._stream.host)

    def query(self) -> bool:
        return self.at is not None and self.at <= self._stream.host

    def elapsed_time(self, later: Event) -> float:
        if not (self.query() and later.query()):
            raise RuntimeError("both events must be completed before calculating elapsed time")
        assert self.at is not None
        assert later.at is not None
        return later.at - self.at

    def synchronize(self) -> None:
        raise AssertionError("this would wait for the device")


def test_the_host_runs_ahead_and_nothing_stalls() -> None:
    """Steps of 10 ms that the host queues in 1 ms: step time is the device's, and there is no stall."""
    stream = Stream()
    timed = StepEvents(stream.event)
    for _ in range(20):
        timed.enter()
        stream.work(10)
        stream.host += 1
        timed.leave()
    assert timed.times().pending > 0
    stream.host = 1000
    found = timed.times()
    assert found.step_s == pytest.approx(0.2)
    assert found.stall_s == pytest.approx(0)
    assert found.steps == 20
    assert found.pending == found.dropped == 0


def test_a_device_that_waits_for_data_stalls() -> None:
    """30 ms of loading before every step of 10 ms: the device waited for 20 ms each time, which the wait of the host would not say."""
    stream = Stream()
    timed = StepEvents(stream.event)
    for _ in range(10):
        stream.host += 30
        timed.enter()
        stream.work(10)
        timed.leave()
    stream.host = 1000
    found = timed.times()
    assert found.step_s == pytest.approx(0.1)
    assert found.stall_s == pytest.approx(9 * 0.020)


def test_micro_batches_are_one_step() -> None:
    """Four batches for one optimizer step: one step, with all of their time."""
    stream = Stream()
    timed = StepEvents(stream.event)
    for _ in range(4):
        timed.enter()
        stream.work(5)
    timed.leave()
    stream.host = 100
    assert timed.times().steps == 1
    assert timed.times().step_s == pytest.approx(0.020)


def test_a_full_queue_drops_and_counts_and_never_joins_what_does_not_belong_together() -> None:
    """With room for eight events and a device far behind, the rest is counted as dropped; no interval spans a gap."""
    stream = Stream()
    timed = StepEvents(stream.event, capacity=8)
    for _ in range(10):
        timed.enter()
        stream.work(10)
        timed.leave()
    assert timed.times().dropped == 11  # the device was idle at the first mark, so that one waits no more
    stream.host = 5000
    timed.enter()
    stream.work(10)
    timed.leave()
    stream.host = 6000
    found = timed.times()
    assert found.step_s == pytest.approx(0.050)
    assert found.stall_s == pytest.approx(0)
    assert found.steps == 5


def test_events_are_used_again() -> None:
    """A thousand steps need no more events than may wait at once."""
    stream = Stream()
    timed = StepEvents(stream.event)
    for _ in range(1000):
        timed.enter()
        stream.work(1)
        timed.leave()
        stream.host += 1.5
    assert stream.made < 10
    assert timed.times().steps >= 999


def test_nothing_is_recorded_while_a_graph_is_captured() -> None:
    """An event would become part of the graph: the marks are dropped, and no time is made of what lies around them."""
    stream = Stream()
    capturing = False
    timed = StepEvents(stream.event, capturing=lambda: capturing)
    timed.enter()
    stream.work(10)
    timed.leave()
    capturing = True
    made = stream.made
    timed.enter()
    timed.leave()
    assert stream.made == made
    capturing = False
    stream.host = 100
    timed.enter()
    stream.work(10)
    timed.leave()
    stream.host = 200
    found = timed.times()
    assert found.dropped == 2
    assert found.step_s == pytest.approx(0.020)
    assert found.stall_s == 0


def test_an_event_that_fails_fails_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is gone: the failure is counted once, the marks are dropped, the loop goes on."""
    errors.reraise_failures(False)

    class Broken(Event):
        def record(self) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

    timed = StepEvents(lambda: Broken(Stream()))
    for _ in range(3):
        timed.enter()
        timed.leave()
    assert timed.times().dropped == 6
    assert errors.failures() == {"gpu.events": 1}


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=40))
def test_steps_and_stalls_make_up_all_of_the_devices_time(loop: list[tuple[float, float]]) -> None:
    """Whatever host and device do, the time from the first mark to the last is either step or stall."""
    stream = Stream()
    timed = StepEvents(stream.event)
    first = last = None
    for load, compute in loop:
        stream.host += load
        timed.enter()
        first = max(stream.free_at, stream.host) if first is None else first
        stream.work(compute)
        timed.leave()
        last = max(stream.free_at, stream.host)
    stream.host = 1e6
    found = timed.times()
    assert first is not None
    assert last is not None
    assert found.step_s + found.stall_s == pytest.approx((last - first) / 1e3, abs=1e-6)


def test_torch_is_not_imported_for_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, and with a torch whose CUDA is not in use, there are none; with CUDA in use there are."""
    device = Device(0, "GPU-0", "NVIDIA H100 80GB HBM3")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert events.for_device(device) is None
    made: list[dict[str, bool]] = []
    cuda = types.SimpleNamespace(
        is_initialized=lambda: False,
        is_current_stream_capturing=lambda: True,
        Event=lambda **options: made.append(options) or Event(Stream()),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert events.for_device(device) is None
    cuda.is_initialized = lambda: True
    timed = events.for_device(device)
    assert timed is not None
    timed.enter()
    assert made == []
    cuda.is_current_stream_capturing = lambda: False
    timed = events.for_device(device)
    assert timed is not None
    timed.enter()
    assert made == [{"enable_timing": True}]
