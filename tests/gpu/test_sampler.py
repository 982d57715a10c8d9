"""How often the driver is looked at, what that costs, and what happens when something in it breaks."""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Callable

import pytest
from nvml_scene import GIB, FakeNvml, Stage

from aifinops import errors, runtime
from aifinops.clock import Clock
from aifinops.gpu import nvml, sampler, tracks
from aifinops.gpu.backends.base import Device, Reading, Stretch
from aifinops.gpu.backends.null import NullBackend, NullProbe
from aifinops.gpu.backends.nvidia import NvidiaBackend
from aifinops.gpu.devices import inventory
from aifinops.gpu.sampler import Sampler, Watch, watch
from aifinops.testing import FakeClock

ONE = Device(0, "GPU-1", "NVIDIA H100 80GB HBM3")


class Backend(NullBackend):
    """Hands out one probe."""

    def __init__(self, probe: NullProbe) -> None:
        self._probe = probe

    def probe(self, device: Device) -> NullProbe:
        return self._probe


def quick(probe: NullProbe | None = None) -> Sampler:
    return Sampler(FakeClock(), threaded=False, backend_of=lambda device: Backend(probe or NullProbe()))


def test_looks_are_a_second_apart_and_five_while_nobody_asks() -> None:
    """Figures that somebody asks for are a second fresh; a run that asks for none is looked at every five."""
    read = quick()
    watched = Watch(read, [ONE])
    assert watched.cost.interval_s == 1.0
    for _ in range(6):
        read.look()
    assert watched.cost.interval_s == 5.0
    watched.between(ONE, 0, 1)
    read.look()
    assert watched.cost.interval_s == 1.0


def test_looks_are_nearer_together_than_the_ring_is_long(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """A ring of 1.5 seconds is read every half second, also while nobody asks."""
    for gpu in (0, 1):
        fake.ring(gpu, 100_000, 16)
    scene = stage()
    scene.run(10)
    assert scene.watch.cost.interval_s == pytest.approx(0.5)


def test_dear_looks_are_made_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks of 20 ms are 4 seconds apart, so that no more than half a percent of the time is spent in them; never more than ten."""
    now = 0.0

    class Slow(NullProbe):
        takes = 0.020

        def read(self, clock: Clock) -> Reading:
            nonlocal now
            now += self.takes
            return super().read(clock)

    monkeypatch.setattr(sampler.time, "perf_counter", lambda: now)
    probe = Slow()
    read = quick(probe)
    watched = Watch(read, [ONE])
    for _ in range(30):
        read.drain(read.clock.monotonic_ns() + 1)
    assert watched.cost.interval_s == pytest.approx(4.0)
    assert watched.cost.wall_s == pytest.approx(31 * 0.020)
    probe.takes = 0.5
    for _ in range(30):
        read.drain(read.clock.monotonic_ns() + 1)
    assert watched.cost.interval_s == 10.0


def test_a_slow_driver_never_makes_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """However dear a look is, the next one comes before the ring has run over."""

    class Slow(NullProbe):
        ring_ns = 5_000_000_000

    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(sampler.time, "perf_counter", clock)
    read = quick(Slow())
    watched = Watch(read, [ONE])
    for _ in range(5):
        read.look()
    assert watched.cost.interval_s == pytest.approx(4.0)


def test_a_reader_that_breaks_costs_its_figures_and_nothing_else() -> None:
    """An error of ours in one device is counted once; that device is unknown from then on, the other is read."""
    errors.reraise_failures(False)

    class Broken(NullProbe):
        def read(self, clock: Clock) -> Reading:
            raise ZeroDivisionError

        def close(self) -> None:
            raise ZeroDivisionError

    class Counted(NullProbe):
        looks = 0

        def read(self, clock: Clock) -> Reading:
            self.looks += 1
            return super().read(clock)

    two = Device(1, "GPU-2", "NVIDIA H100 80GB HBM3")
    good = Counted()
    read = Sampler(FakeClock(), threaded=False, backend_of=lambda device: Backend(Broken() if device is ONE else good))
    watched = Watch(read, [ONE, two])
    read.look()
    read.look()
    assert good.looks == 3
    assert watched.between(ONE, 0, 1).busy_s is None
    assert errors.failures() == {"gpu.sampler": 1}
    watched.close()


def test_a_device_is_read_once_for_all_who_watch(fake: FakeNvml) -> None:
    """Two watches of one device open it once; it is closed with the last; a closed watch knows nothing."""
    read = Sampler(fake, threaded=False)
    devices = inventory().devices[:1]
    first, second = Watch(read, devices), Watch(read, devices)
    fake.advance(1)
    read.look()
    assert fake.calls("nvmlDeviceGetTotalEnergyConsumption") == 2
    first.close()
    first.close()
    assert first.between(devices[0], fake.at(0), fake.at(1)).energy_j is None
    assert second.between(devices[0], fake.at(0), fake.at(1)).energy_j == 0
    second.close()
    assert fake.calls("nvmlInit") == fake.calls("nvmlShutdown")


def test_a_span_of_no_length_is_nothing(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """It has no seconds, which is known where the device is measured; one that ends before it begins is unknown."""
    fake.from_now(0, 1.0, sm=1.0, watts=100, used=GIB)
    scene = stage()
    scene.run(6)
    found = scene.between(5, 5)
    assert [found.busy_s, found.sm_active_s, found.energy_j, found.memory_gib_s, found.busy_error_s] == [0.0] * 5
    assert scene.between(5, 4).busy_s is None


@pytest.mark.parametrize("gpm", [0, 1])
def test_a_short_span_is_told_by_the_time_beside_it(fake: FakeNvml, stage: Callable[[], Stage], gpm: int) -> None:
    """A charge, and 50 ms later somebody asks: the driver has nothing newer, which makes no sum of spans unknown; the bound has it."""
    for number in (0, 1):
        fake.device(number, f"GPU-{number}", "NVIDIA H100 80GB HBM3", 80 * GIB, gpm, 1)
        fake.ring(number, 200_000, 100)
    fake.from_now(0, 0.8, sm=0.5, watts=100, used=GIB)
    scene = stage()
    scene.run(60)
    fake.advance(0.05)
    found = scene.between(60, 60.05)
    assert found.busy_s == pytest.approx(0.8 * 0.05)
    assert found.busy_error_s == pytest.approx(0.8 * 0.05)
    assert found.covered == 0
    assert found.energy_j == pytest.approx(5)
    assert found.memory_gib_s == pytest.approx(0.05)
    fake.advance(9.95)
    assert scene.between(60.05, 70).busy_s == pytest.approx(0.8 * 9.95)


def test_who_asks_twice_for_one_moment_reads_once(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """The spans of eight devices that end together take one look at the driver."""
    scene = stage()
    scene.run(3)
    fake.advance(1)
    looks = scene.watch.cost.looks
    for device in scene.watch.devices:
        scene.between(0, 4, device)
    assert scene.watch.cost.looks == looks + 1


def test_the_runtimes_clock_is_the_default() -> None:
    """Spans of a run under a clock of tests are asked for in its time; another clock has a sampler of its own."""
    clock = FakeClock()
    runtime.init(clock=clock)
    watched = watch([])
    assert watched._sampler.clock is clock
    other = watch([], clock=FakeClock())
    assert other._sampler is not watched._sampler


def test_a_wall_clock_that_is_put_right_moves_no_more_than_one_look(
    fake: FakeNvml, stage: Callable[[], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver stamps its samples with wall time. The clock jumps an hour ahead, and the samples with it: busy seconds stay what they were."""
    import pynvml

    for gpu in (0, 1):
        fake.device(gpu, f"GPU-{gpu}", "NVIDIA A100-SXM4-80GB", 80 * GIB, 0, 1)
        fake.ring(gpu, 200_000, 100)
    fake.from_now(0, 1.0)
    scene = stage()
    scene.run(30)
    jump_us = 3_600_000_000
    real_time, real_samples = fake.time_ns, pynvml.nvmlDeviceGetSamples
    jumped_at = fake.now()

    def samples(handle: object, kind: int, since: int) -> tuple[int, list[object]]:
        value, rows = real_samples(handle, kind, since - jump_us if since > jumped_at + jump_us // 2 else since)
        for row in rows:
            row.timeStamp += jump_us
        return value, rows

    monkeypatch.setattr(pynvml, "nvmlDeviceGetSamples", samples)
    monkeypatch.setattr(fake, "time_ns", lambda: real_time() + jump_us * 1000, raising=False)
    scene.run(30)
    found = scene.between(0, 60)
    assert found.busy_s is not None
    assert found.busy_error_s is not None
    assert abs(found.busy_s - 60) <= found.busy_error_s + 1e-6
    assert found.covered == pytest.approx(1, abs=0.02)


def test_sources_can_be_compared(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Each source with its own figure and bound, where `between` takes the best."""
    fake.from_now(0, 0.5)
    scene = stage()
    scene.run(30)
    device = scene.watch.devices[0]
    found = scene.watch.sources(device, fake.at(0), fake.at(30))
    assert found["gpm"] == (pytest.approx(15), pytest.approx(0, abs=1e-6))
    value, bound = found["nvml_samples"]
    assert bound is not None
    assert abs(value - 15) <= bound
    scene.watch.close()
    assert scene.watch.sources(device, fake.at(0), fake.at(30)) == {}


def test_what_torch_has_reserved_is_asked_of_its_own_number_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By UUID, since torch counts the devices in its own order; None without torch, without CUDA in use, or on a device that it has not."""
    uuids = ["b", "a"]
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda index: types.SimpleNamespace(uuid=uuids[index]),
        memory_reserved=lambda index: [GIB, 2 * GIB][index],
    )
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert tracks._reserved(Device(0, "GPU-a", "")) is None
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert tracks._reserved(Device(0, "GPU-a", "")) == 2 * GIB
    assert tracks._reserved(Device(0, "GPU-c", "")) is None
    cuda.is_initialized = lambda: False
    assert tracks._reserved(Device(0, "GPU-a", "")) is None


# --- NVML itself ------------------------------------------------------------------------------------------------------


@pytest.fixture
def session(fake: FakeNvml) -> nvml.Nvml:
    """NVML, open, with the devices known."""
    opened = nvml.Nvml()
    assert opened.acquire() == ""
    return opened


def test_an_error_that_means_nothing_in_particular_is_borne_three_times(fake: FakeNvml, session: nvml.Nvml) -> None:
    """`Unknown` may pass; the third in a row is the last, and one that answers in between begins the count anew."""
    uuid = inventory().devices[0].uuid
    name = "nvmlDeviceGetMemoryInfo"

    def ask(code: int) -> object:
        fake.error(0, name, code)
        return session.ask(uuid, name)

    assert [ask(999), ask(999)] == [None, None]
    assert ask(0) is not None
    assert [ask(999), ask(999), ask(999)] == [None] * 3
    assert ask(0) is None
    assert session.without(uuid, name)
    assert session.ask(uuid, "nvmlDeviceGetTotalEnergyConsumption") == 0


@pytest.mark.parametrize("code", [6, 7, 10, 21])
def test_nothing_now_is_not_never(fake: FakeNvml, session: nvml.Nvml, code: int) -> None:
    """No sample, no data, a list that grew, a timeout: None, and the next question is asked."""
    uuid = inventory().devices[0].uuid
    for _ in range(5):
        fake.error(0, "nvmlDeviceGetMemoryInfo", code)
        assert session.ask(uuid, "nvmlDeviceGetMemoryInfo") is None
    fake.error(0, "nvmlDeviceGetMemoryInfo", 0)
    assert session.ask(uuid, "nvmlDeviceGetMemoryInfo").used == 0


@pytest.mark.parametrize("code", [15, 16, 28])
def test_gone_is_told(fake: FakeNvml, session: nvml.Nvml, code: int) -> None:
    """Lost, in need of a reset, not found any more."""
    uuid = inventory().devices[0].uuid
    fake.error(0, "nvmlDeviceGetMemoryInfo", code)
    with pytest.raises(nvml.Lost, match="GPU-a0000000"):
        session.ask(uuid, "nvmlDeviceGetMemoryInfo")


def test_a_stale_handle_is_fetched_again(fake: FakeNvml, session: nvml.Nvml) -> None:
    """After a reset of the device its handle is invalid: it is looked up by UUID once more."""
    import pynvml

    devices = inventory().devices
    session.adopt(devices[0].uuid, ctypes.cast(4096, pynvml.c_nvmlDevice_t))
    assert session.ask(devices[0].uuid, "nvmlDeviceGetMemoryInfo").total == devices[0].memory


def test_a_function_that_this_pynvml_lacks_is_unknown(fake: FakeNvml, session: nvml.Nvml) -> None:
    """An older nvidia-ml-py has fewer functions: None, and no error."""
    assert session.ask(inventory().devices[0].uuid, "nvmlDeviceGetWhatIsToCome") is None


def test_no_driver_is_a_probe_that_reads_nothing(fake: FakeNvml) -> None:
    """The driver was unloaded since the devices were listed."""
    device = inventory().devices[0]
    fake.init_error(9)
    assert isinstance(NvidiaBackend().probe(device), NullProbe)


def test_metrics_are_told_what_devices_did_since_they_asked() -> None:
    """Busy part, memory, energy since the watch began and mean power, each over the time since the last collection; else unknown."""

    class Steady(NullProbe):
        """A device that is half busy, holds 10 GiB and draws 100 W."""

        energy_source = "nvml_total"
        busy_source = "nvml_samples"
        memory_source = "nvml"
        last = 0

        def read(self, clock: Clock) -> Reading:
            now, before = clock.monotonic_ns(), self.last
            self.last = now
            busy = (Stretch(before, now, 0.5),) if before else ()
            return Reading(now, busy=busy, memory=10 * GIB, energy_j=now / 1e9 * 100)

    device = Device(0, "GPU-1", "NVIDIA H100 80GB HBM3", memory=80 * GIB)
    read = quick(Steady())
    clock = read.clock
    assert isinstance(clock, FakeClock)
    clock.advance(1)
    with Watch(read, [device]):
        assert read.states() == []
        for seconds in (10, 30):
            clock.advance(seconds)
            read.look()
            (state,) = read.states()
            assert (state.id, state.model, state.vendor) == ("GPU-1", "NVIDIA H100 80GB HBM3", "nvidia")
            assert state.utilization == pytest.approx(0.5)
            assert (state.memory, state.memory_limit) == (pytest.approx(10 * GIB), 80 * GIB)
            assert state.power_w == pytest.approx(100, rel=0.05)
        assert state.energy_j == pytest.approx(4000, rel=0.05)
        assert read.states() == []
    assert read.states() == []


def test_a_device_that_tells_nothing_is_unknown_in_the_metrics() -> None:
    """Its size is known, and no figure is a zero."""
    read = quick()
    assert isinstance(read.clock, FakeClock)
    with Watch(read, [ONE]):
        read.clock.advance(5)
        read.look()
        (state,) = read.states()
    assert (state.utilization, state.memory, state.energy_j, state.power_w) == (None, None, None, None)


def test_whoever_watches_without_a_clock_is_in_the_metrics() -> None:
    """The runtime's metrics ask the shared sampler from then on."""
    runtime.init(ledger="memory")
    with watch([]):
        devices = runtime.get().metrics.devices
        assert devices is not None
        assert list(devices()) == []
