"""A whole run on the fake driver: what is paid, what was busy, and what was idle, each of the right devices and to the second."""

from __future__ import annotations

from decimal import Decimal

import pytest
from nvml_scene import GIB, LOST, FakeNvml

from aifinops import gpu, runtime
from aifinops.gpu import sampler


@pytest.fixture
def machine(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """Two GPUs; time is the driver's."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sampler, "PATIENCE_S", 60.0)  # the thread is real, and this machine may be busy
    runtime.init(ledger="memory", clock=fake)
    return fake


def test_paid_is_what_was_held_and_idle_is_what_was_not_busy(
    machine: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GPU by UUID for a minute at 3.60 an hour, busy for 45 of 60 seconds: six cents, of which a cent and a half for nothing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a1")
    machine.from_now(0, 1.0, watts=700)
    machine.from_now(1, 1.0, sm=0.4, tensor=0.2, watts=400, used=10 * GIB)
    with gpu.track("finetune", price="3.60", devices="visible") as run:
        machine.advance(45)
        run.step()
        machine.from_now(1, 0.0, used=10 * GIB)
        machine.advance(15)
        run.step()
        found = run.usage()
    assert found.uuids == ("GPU-a1010101-0000-4000-8000-000000000001",)
    assert found.allocated_s == 60
    assert found.busy_s == pytest.approx(45, abs=1e-6)
    assert found.busy_source == "gpm"
    assert found.busy_error_s is not None
    assert found.busy_error_s < 0.01
    assert found.sm_active_s == pytest.approx(18, abs=1e-6)
    assert found.tensor_active_s == pytest.approx(9, abs=1e-6)
    assert found.energy_j == pytest.approx(45 * 400)
    assert found.memory_gib_s == pytest.approx(600, rel=0.01)
    assert found.cost == Decimal("0.06")
    assert found.idle_cost is not None
    assert float(found.idle_cost) == pytest.approx(0.015)


def test_a_slice_pays_for_its_share(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a GPU (3g.40gb) for a minute: half a GPU-minute, and busy half of that; energy is unknown."""
    place = machine.mig(0, "MIG-22222222-bbbb", 1, 0, 3, 3, 40192 * 2**20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-22222222-bbbb")
    machine.from_now(place, 0.5, used=GIB)
    with gpu.track("finetune", price="3.60", devices="visible") as run:
        machine.advance(60)
        run.step()
        found = run.usage()
    assert found.allocated_s == 30
    assert found.busy_s == pytest.approx(15, abs=1e-6)
    assert found.cost == Decimal("0.03")
    assert found.energy_j is None


def test_a_gpu_that_is_lost_is_paid_for_and_does_nothing(machine: FakeNvml) -> None:
    """It falls off after half a minute: a minute of two devices is paid, and three of four half minutes were busy."""
    for one in (0, 1):
        machine.from_now(one, 1.0)
    with gpu.track("finetune", price="3.60", devices="visible") as run:
        machine.advance(30)
        run.usage()
        machine.error(0, "", LOST)
        machine.advance(0.2)
        run.usage()
        machine.advance(29.8)
        run.step()
        found = run.usage()
    assert found.allocated_s == 120
    assert found.busy_s is not None
    assert found.busy_error_s is not None
    assert abs(found.busy_s - 90) <= found.busy_error_s + 1e-6
    assert found.busy_error_s < 1
