"""Measured seconds on the fake driver, through the real pynvml: what is measured is what was."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from nvml_scene import DENIED, GIB, LOST, UNSUPPORTED, FakeNvml, Stage


def no_gpm(fake: FakeNvml, gpu: int = 0) -> None:
    """An Ampere: the ring of samples, and no hardware counters."""
    fake.device(gpu, f"GPU-{gpu}", "NVIDIA A100-SXM4-80GB", 80 * GIB, 0, 1)
    fake.ring(gpu, 200_000, 100)


def test_seconds_of_the_ring_are_exact_where_its_samples_are(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Ten busy seconds of thirty, read once a second: ten seconds, and a bound that is the rounding of whole percents."""
    no_gpm(fake)
    scene = stage()
    scene.run(10)
    fake.from_now(0, 1.0)
    scene.run(10)
    fake.from_now(0, 0.0)
    scene.run(10)
    found = scene.between(0, 30)
    assert found.busy_s == pytest.approx(10, abs=1e-9)
    assert found.busy_source == "nvml_samples"
    assert found.busy_error_s == pytest.approx(30 * 0.005)
    assert found.covered == pytest.approx(1)
    assert scene.between(0, 10).busy_s == pytest.approx(0, abs=1e-9)
    assert scene.between(10, 20).busy_s == pytest.approx(10, abs=1e-9)
    assert scene.between(15, 25).busy_s == pytest.approx(5, abs=1e-9)


@pytest.mark.parametrize("every", [0.5, 1.0, 5.0, 19.0])
def test_nothing_is_missed_however_seldom_the_ring_is_read(
    fake: FakeNvml, stage: Callable[[], Stage], every: float
) -> None:
    """As long as looks are nearer together than the ring's 20 seconds, the answer is the same."""
    no_gpm(fake)
    scene = stage()
    for _ in range(20):
        fake.from_now(0, 1.0)
        fake.load(0, fake.now() + 1_800_000, 0.0, 0.0, 0.0, 0.0, 0)
        fake.load(0, fake.now() + 3_000_000, 1.0, 0.0, 0.0, 0.0, 0)
        fake.load(0, fake.now() + 4_800_000, 0.0, 0.0, 0.0, 0.0, 0)
        scene.run(6, every)
    found = scene.between(0, 120)
    assert found.busy_s == pytest.approx(72, abs=1e-6)


def test_a_ring_that_ran_over_is_a_hole_and_not_a_guess(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Half a minute without a look at a ring of 20 seconds: the ten seconds that nobody saw are in the bound."""
    no_gpm(fake)
    scene = stage()
    fake.from_now(0, 1.0)
    scene.run(10)
    scene.run(30, every=30)
    found = scene.between(0, 40)
    assert found.covered == pytest.approx(0.75)
    assert found.busy_s is not None
    assert found.busy_error_s is not None
    assert found.busy_error_s > 10
    assert abs(found.busy_s - 40) <= found.busy_error_s


def test_an_edge_inside_a_sample_is_within_its_bound(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """A span that begins and ends in the middle of the driver's periods: the truth is within the bound that comes with it."""
    no_gpm(fake)
    scene = stage()
    truth = 0.0
    for _ in range(50):
        fake.from_now(0, 1.0)
        fake.advance(0.07)
        fake.from_now(0, 0.0)
        scene.run(0.113)
        truth += 0.07
    found = scene.between(0, 50 * 0.183)
    assert found.busy_s is not None
    assert found.busy_error_s is not None
    assert abs(found.busy_s - truth) <= found.busy_error_s
    assert found.busy_error_s < 0.3


def test_gpm_sees_all_of_the_time_between_two_looks(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """On Hopper the counters say exactly how busy the GPU, its SMs and its tensor cores were."""
    scene = stage()
    scene.run(3.5)
    fake.from_now(0, 0.7, sm=0.5, tensor=0.25)
    scene.run(10)
    fake.from_now(0, 0.1, sm=0.05)
    scene.run(6.5)
    found = scene.between(0, 20)
    assert found.busy_source == found.active_source == "gpm"
    assert found.busy_s == pytest.approx(7.65, abs=1e-6)
    assert found.sm_active_s == pytest.approx(5.325, abs=1e-6)
    assert found.tensor_active_s == pytest.approx(2.5, abs=1e-6)
    assert found.busy_error_s == pytest.approx(0, abs=1e-6)


def test_gpm_that_needs_a_right_is_asked_once(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Without the permission the ring stands in, useful activity is unknown, and nobody asks again."""
    fake.error(-1, "nvmlGpmSampleGet", DENIED)
    scene = stage()
    fake.from_now(0, 1.0, sm=1.0)
    scene.run(10)
    found = scene.between(0, 10)
    assert found.busy_source == "nvml_samples"
    assert found.sm_active_s is None
    assert found.tensor_active_s is None
    assert found.active_source == ""
    assert fake.calls("nvmlGpmSampleGet") == 2  # once for each GPU


def test_energy_is_the_counters(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Joules are the difference of the counter; the bound is the power limit for as long as the counter may be late."""
    fake.from_now(0, 1.0, watts=500)
    scene = stage()
    scene.run(60)
    found = scene.between(0, 60)
    assert found.energy_j == pytest.approx(30_000)
    assert found.energy_source == "nvml_energy_counter"
    assert found.energy_error_j == pytest.approx(70)


def test_a_counter_that_begins_again_loses_that_interval_and_never_goes_below_zero(
    fake: FakeNvml, stage: Callable[[], Stage]
) -> None:
    """The driver was loaded again in the middle of a second: that second is missing, and the bound says by how much that may be."""
    fake.from_now(0, 1.0, watts=500)
    scene = stage()
    scene.run(20)
    fake.advance(0.5)
    fake.counter_reset(0)
    scene.run(0.5)
    scene.run(19)
    found = scene.between(0, 40)
    assert found.energy_j == pytest.approx(39 * 500)
    assert found.energy_error_j is not None
    assert abs(found.energy_j - 40 * 500) <= found.energy_error_j == pytest.approx(1.1 * 700)
    assert scene.between(20, 21).energy_j is None


def test_no_energy_counter_is_unknown_and_not_zero(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """A GPU before Volta has none: None, and every other figure is there."""
    fake.device(0, "GPU-old", "Tesla P100-PCIE-16GB", 16 * GIB, 0, 0)
    fake.from_now(0, 1.0, watts=250)
    scene = stage()
    scene.run(10)
    found = scene.between(0, 10)
    assert found.energy_j is None
    assert found.energy_error_j is None
    assert found.energy_source == ""
    assert found.busy_s == pytest.approx(10, abs=0.01)


def test_memory_is_the_trapezoid(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """40 GiB for ten seconds after ten without: 400 GiB s, off by no more than the step between two looks."""
    scene = stage()
    scene.run(10)
    fake.from_now(0, 1.0, used=40 * GIB)
    scene.run(10)
    found = scene.between(0, 20)
    assert found.memory_gib_s is not None
    assert found.memory_error_gib_s is not None
    assert abs(found.memory_gib_s - 400) <= found.memory_error_gib_s <= 20
    assert found.memory_source == "nvml_memory"


def test_a_lost_gpu_keeps_what_was_known_and_is_idle_from_then_on(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """It falls off after 30 of 60 busy seconds: 30 seconds were busy, within the second in which it was found out; the other goes on."""
    for gpu in (0, 1):
        fake.from_now(gpu, 1.0, watts=400)
    scene = stage()
    scene.run(30)
    fake.error(0, "", LOST)
    scene.run(30)
    found = scene.between(0, 60)
    assert found.busy_s is not None
    assert found.busy_error_s is not None
    assert abs(found.busy_s - 30) <= found.busy_error_s + 1e-9 < 1.1
    assert found.energy_j == pytest.approx(30 * 400)
    assert scene.between(31, 60).busy_s == 0
    other = scene.between(0, 60, scene.watch.devices[1])
    assert other.busy_s == pytest.approx(60, abs=1e-6)
    asked = fake.calls("nvmlDeviceGetSamples")
    scene.run(5)
    assert fake.calls("nvmlDeviceGetSamples") == asked + 2 * 5  # the other's, in two steps each


def test_a_question_that_is_refused_takes_no_other_figure_with_it(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Utilisation is not supported (as on some boards): energy and memory are there, busy is unknown."""
    no_gpm(fake)
    fake.error(0, "nvmlDeviceGetSamples", UNSUPPORTED)
    fake.from_now(0, 1.0, watts=100, used=GIB)
    scene = stage()
    scene.run(10)
    found = scene.between(0, 10)
    assert found.busy_s is None
    assert found.busy_source == ""
    assert found.energy_j == pytest.approx(1000)
    assert found.memory_gib_s == pytest.approx(10)
    assert fake.calls("nvmlDeviceGetSamples") == 1 + 2 * 11  # once of this GPU, at eleven looks of the other


def test_a_library_that_shuts_nvml_down_does_not_end_the_figures(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Somebody calls `nvmlShutdown` once too often: NVML is opened again and the ring has kept what was missed."""
    import pynvml

    no_gpm(fake)
    fake.from_now(0, 1.0, watts=100)
    scene = stage()
    scene.run(5)
    while True:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            break
    scene.run(5)
    found = scene.between(0, 10)
    assert found.busy_s == pytest.approx(10, abs=1e-6)
    assert found.energy_j == pytest.approx(1000)


# --- whose the figures are --------------------------------------------------------------------------------------------


def test_alone_on_the_device(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Our own number in the driver's list, and no other: the device's figures are ours, with our own memory."""
    fake.from_now(0, 0.5, used=30 * GIB)
    fake.process(0, os.getpid(), 20 * GIB, 1.0)
    scene = stage()
    scene.run(10)
    found = scene.between(0, 10)
    assert found.attribution == "pid"
    assert found.busy_s == pytest.approx(5)
    assert found.memory_gib_s == pytest.approx(200)
    assert found.memory_source == "nvml_memory_of_process"


def test_one_process_of_another_number_is_ours(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """In a container an older driver shows the host's number: the only process is ours."""
    fake.process(0, 4_000_001, GIB, 1.0)
    fake.from_now(0, 0.5)
    scene = stage()
    scene.run(10)
    assert scene.between(0, 10).attribution == "sole"


def test_two_processes_are_told_apart_and_add_up(
    fake: FakeNvml, stage: Callable[[], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three quarters of the SM time are the other's: each has its part of busy and energy, and both make the device's."""
    other = os.getpid() + 1
    fake.process(0, os.getpid(), GIB, 0.25)
    fake.process(0, other, 2 * GIB, 0.75)
    fake.from_now(0, 0.8, watts=100)
    ours = stage()
    ours.run(20)
    found = ours.between(0, 20)
    monkeypatch.setattr(os, "getpid", lambda: other)
    theirs = Stage(fake, ours.watch.devices)
    theirs.run(20)
    theirs_found = theirs.between(20, 40)
    theirs.watch.close()
    monkeypatch.undo()
    assert found.attribution == "pid"
    assert found.busy_error_s is None  # the driver says how it was in the last sixth of each second
    assert found.busy_s == pytest.approx(0.25 * 16, rel=0.03)
    assert theirs_found.busy_s == pytest.approx(0.75 * 16, rel=0.03)
    assert found.busy_s + theirs_found.busy_s == pytest.approx(16, rel=1e-6)
    assert found.energy_j == pytest.approx(500, rel=0.03)


def test_numbers_of_two_worlds_are_not_mixed(
    fake: FakeNvml, stage: Callable[[], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list has numbers of the container, the shares those of the host: nothing can be told apart, and the figure says `device`."""
    import pynvml

    fake.process(0, os.getpid(), GIB, 0.25)
    fake.process(0, os.getpid() + 1, GIB, 0.75)
    fake.from_now(0, 1.0)
    real = pynvml.nvmlDeviceGetProcessUtilization

    def of_the_host(handle: object, since: int) -> list[object]:
        rows = list(real(handle, since))
        for row in rows:
            row.pid += 1_000_000
        return rows

    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", of_the_host)
    scene = stage()
    scene.run(10)
    found = scene.between(0, 10)
    assert found.attribution == "device"
    assert found.busy_s == pytest.approx(10)


def test_the_process_with_our_memory_is_ours(
    fake: FakeNvml, stage: Callable[[], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two foreign numbers, and one of them holds what torch here has reserved, and a CUDA context: that one is ours."""
    from aifinops.gpu import tracks

    fake.process(0, 4_000_001, 21 * GIB, 0.5)
    fake.process(0, 4_000_002, 60 * GIB, 0.5)
    fake.from_now(0, 1.0)
    monkeypatch.setattr(tracks, "_reserved", lambda device: round(20.6 * GIB))
    scene = stage()
    scene.run(10)
    found = scene.between(0, 10)
    assert found.attribution == "memory"
    assert found.busy_s == pytest.approx(5)


def test_the_weakest_attribution_of_a_span_is_told(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Where somebody who cannot be told apart was there for a part of the span, the figure of the span is the device's."""
    fake.error(0, "nvmlDeviceGetProcessUtilization", UNSUPPORTED)
    fake.process(0, os.getpid(), GIB, 1.0)
    fake.from_now(0, 1.0)
    scene = stage()
    scene.run(10)
    fake.process(0, 4_000_001, GIB, 0.5)
    scene.run(10)
    assert scene.between(0, 10).attribution == "pid"
    assert scene.between(0, 20).attribution == "device"
