"""What other meters of GPUs get wrong, each as they were found to: `CUDA_VISIBLE_DEVICES` by UUID, slices, zero for unknown, everybody's work
counted as ours, every rank counting everything."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from nvml_scene import GIB, UNSUPPORTED, FakeNvml, Stage, run_python

from aifinops.gpu.devices import inventory, visible


@pytest.mark.parametrize("value", ["1", "GPU-a1010101-0000-4000-8000-000000000001", "GPU-a1"])
def test_the_energy_of_the_device_that_is_named(fake: FakeNvml, value: str) -> None:
    """1.5 kWh in an hour on the second GPU: by index, by UUID and by a short UUID (CodeCarbon 3.3: 0.0 by UUID; Zeus 0.16: ValueError)."""
    fake.from_now(0, 1.0, watts=100)
    fake.from_now(1, 1.0, watts=1500)
    scene = Stage(fake, visible(inventory().devices, {"CUDA_VISIBLE_DEVICES": value}))
    scene.run(3600, every=15)
    found = scene.between(0, 3600)
    scene.watch.close()
    assert found.energy_j is not None
    assert found.energy_j / 3.6e6 == pytest.approx(1.5)


def test_a_slice_is_metered(fake: FakeNvml) -> None:
    """On a MIG slice the counters of its instance say what it did (Zeus refuses it); its energy is not known, since the counter is the GPU's."""
    place = fake.mig(0, "MIG-11111111-aaaa", 7, 0, 1, 1, 9856 * 2**20)
    other = fake.mig(0, "MIG-22222222-bbbb", 1, 0, 3, 3, 40192 * 2**20)
    fake.from_now(0, 1.0, watts=600)
    fake.from_now(place, 0.4, sm=0.2, used=4 * GIB)
    fake.from_now(other, 1.0, sm=1.0, used=30 * GIB)
    scene = Stage(fake, visible(inventory().devices, {"CUDA_VISIBLE_DEVICES": "MIG-1"}))
    scene.run(60)
    found = scene.between(0, 60)
    scene.watch.close()
    assert found.busy_s == pytest.approx(24)
    assert found.busy_source == "gpm"
    assert found.sm_active_s == pytest.approx(12)
    assert found.memory_gib_s == pytest.approx(240)
    assert found.energy_j is None


def test_a_slice_without_counters_is_unknown(fake: FakeNvml) -> None:
    """On an A100 slices have neither samples nor GPM: busy is None, not 0, and memory is there."""
    fake.device(0, "GPU-a100", "NVIDIA A100-SXM4-40GB", 40 * GIB, 0, 1)
    place = fake.mig(0, "MIG-1", 7, 0, 1, 1, 5 * GIB)
    fake.from_now(place, 1.0, used=2 * GIB)
    scene = Stage(fake, visible(inventory().devices, {"CUDA_VISIBLE_DEVICES": "MIG-1"}))
    scene.run(10)
    found = scene.between(0, 10)
    scene.watch.close()
    assert (found.busy_s, found.sm_active_s, found.energy_j) == (None, None, None)
    assert found.memory_gib_s == pytest.approx(20)


def test_no_program_on_the_path_is_needed(driver_folder: str) -> None:
    """With an empty PATH, hence no `nvidia-smi`, both GPUs are found (CodeCarbon 3.3 finds none)."""
    code = """
import ctypes
ctypes.CDLL("libnvidia-ml.so.1").fake_reset(2)
from aifinops.gpu.devices import inventory
print(len(inventory().devices))
"""
    assert run_python(code, driver_folder, PATH="") == "2"


def test_one_figure_that_is_refused_silences_no_other(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """Each of the driver's questions in turn is not supported: the others are answered (MLflow #14736: no GPU metric at all)."""
    fake.from_now(0, 0.5, sm=0.5, watts=100, used=GIB)
    scene = stage()
    scene.run(10)
    whole = scene.between(0, 10)
    figures = ("busy_s", "sm_active_s", "memory_gib_s", "energy_j")
    assert all(getattr(whole, name) is not None for name in figures)
    scene.watch.close()
    for question, missing in {
        "nvmlDeviceGetTotalEnergyConsumption": {"energy_j"},
        "nvmlDeviceGetMemoryInfo": {"memory_gib_s"},
        "nvmlGpmQueryDeviceSupport": {"sm_active_s"},
        "nvmlDeviceGetSamples": set(),
        "nvmlDeviceGetComputeRunningProcesses_v3": set(),
        "nvmlDeviceGetEnforcedPowerLimit": set(),
        "nvmlDeviceGetMigMode": set(),
    }.items():
        fake.machine(1)
        fake.from_now(0, 0.5, sm=0.5, watts=100, used=GIB)
        fake.error(0, question, UNSUPPORTED)
        each = Stage(fake, inventory().devices[:1])
        each.run(10)
        found = each.between(0, 10)
        each.watch.close()
        assert {name for name in figures if getattr(found, name) is None} == missing, question


def test_the_work_of_others_is_not_ours(fake: FakeNvml, stage: Callable[[], Stage]) -> None:
    """A neighbour does nine tenths of the work: a tenth of busy time, energy and its own memory are ours (CodeCarbon counts all of it)."""
    fake.process(0, os.getpid(), 8 * GIB, 0.1)
    fake.process(0, 4_000_001, 60 * GIB, 0.9)
    fake.from_now(0, 1.0, watts=600, used=70 * GIB)
    scene = stage()
    scene.run(60)
    found = scene.between(0, 60)
    assert found.busy_s == pytest.approx(6)
    assert found.energy_j == pytest.approx(3600)
    assert found.memory_gib_s == pytest.approx(480)
    assert found.attribution == "pid"


def test_eight_ranks_make_one_machine(fake: FakeNvml) -> None:
    """Each of eight ranks meters its own GPU, so that the sum is the machine's energy once (CodeCarbon #544: eight times)."""
    fake.machine(8)
    for gpu in range(8):
        fake.from_now(gpu, 1.0, watts=100 * (gpu + 1))
    ranks = [Stage(fake, visible(inventory().devices, {"LOCAL_RANK": str(rank)})) for rank in range(8)]
    for _ in range(60):
        fake.advance(1.0)
        for rank in ranks:
            rank.sampler.look()
    found = [rank.between(0, 60) for rank in ranks]
    for rank in ranks:
        rank.watch.close()
    assert [each.energy_j for each in found] == pytest.approx([6000.0 * (gpu + 1) for gpu in range(8)])
    assert sum(each.energy_j or 0 for each in found) == pytest.approx(60 * 3600)
    assert sum(each.busy_s or 0 for each in found) == pytest.approx(8 * 60)


def test_the_same_device_by_two_names_is_one(fake: FakeNvml) -> None:
    """A GPU that is reached by index and by UUID has one UUID, by which a ledger can tell that it is one (dask #4117: counted twice)."""
    devices = inventory().devices
    by_index = visible(devices, {"CUDA_VISIBLE_DEVICES": "1"})
    by_uuid = visible(devices, {"CUDA_VISIBLE_DEVICES": devices[1].uuid})
    assert by_index == by_uuid
    assert {device.uuid for device in (*by_index, *by_uuid)} == {devices[1].uuid}
