"""A run on the fake driver, through the real pynvml: the devices, what was busy of them, and what the rest cost."""

from __future__ import annotations

from decimal import Decimal

import pytest
from nvml_scene import FakeNvml

from aifinops import gpu, runtime
from aifinops.gpu import devices

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def run_for(fake: FakeNvml, run: gpu.Run, seconds: int) -> None:
    for _ in range(seconds):
        fake.advance(1)
        assert run._watch is not None
        run._watch._sampler.look()
        run.step()


def test_allocated_busy_and_idle_are_told_apart_and_add_up(fake: FakeNvml) -> None:
    """Two devices for a hundred seconds, one of them busy for half of it: 200 device-seconds, 50 of them busy, and three quarters of the money idle."""
    runtime.init(ledger="memory", clock=fake)
    with gpu.track("train", price="3.60") as run:
        fake.from_now(0, 1.0, sm=0.6, tensor=0.4, watts=500)
        run_for(fake, run, 50)
        fake.from_now(0, 0.0, watts=100)
        run_for(fake, run, 50)
        used = run.usage()
        assert used.models == {"NVIDIA H100 80GB HBM3": 2}
        assert len(used.uuids) == 2
        assert (used.allocated_s, used.cost) == (200, Decimal("0.2"))
        assert used.busy_s == pytest.approx(50, abs=2)
        assert used.busy_source == "gpm"
        assert used.sm_active_s == pytest.approx(30, abs=2)
        assert used.tensor_active_s == pytest.approx(20, abs=2)
        assert used.idle_cost == pytest.approx(Decimal("0.15"), abs=Decimal("0.002"))
        assert used.utilisation == pytest.approx(0.25, abs=0.01)
    charges = list(runtime.get().ledger.rows())
    assert sum(charge.quantities["gpu_seconds"] for charge in charges) == 200
    told = [charge.raw["gpu"] for charge in charges if charge.raw is not None]
    assert sum(facts["busy_s"] for facts in told) == pytest.approx(50, abs=2)
    assert sum(Decimal(facts["idle_usd"]) for facts in told) == pytest.approx(Decimal("0.15"), abs=Decimal("0.002"))
    assert {tuple(facts["uuids"]) for facts in told} == {used.uuids}


def test_a_slice_costs_its_share_of_the_device(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sevenths of the compute and half of the memory: the larger share is what is paid for, in seconds and in money."""
    fake.mig(0, "MIG-one", 1, 0, 3, 3, 40 << 30)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-one")
    devices.forget()
    runtime.init(ledger="memory", clock=fake)
    with gpu.track(price="7.20") as run:
        fake.advance(100)
        (held,) = run._held
    (charge,) = runtime.get().ledger.rows()
    share = Decimal(str(held.device.share))
    assert Decimal("0.4") < share <= Decimal("0.5")
    assert charge.quantities["gpu_seconds"] == share * 100
    assert charge.amount == pytest.approx(int(share * 200_000_000), abs=1)


def test_ranks_of_one_machine_pay_for_their_own_devices(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three devices and two ranks: each its own, and the first one what is left, told apart by its phase."""
    fake.machine(3)
    devices.forget()
    runtime.init(ledger="memory", clock=fake)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    paid: list[str] = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with gpu.track(price="1", run_id="r") as run:
            fake.advance(10)
        paid += run.usage().uuids
    assert len(paid) == len(set(paid)) == 3
    charges = list(runtime.get().ledger.rows())
    assert sorted((c.tags["rank"], c.tags.get("phase", "")) for c in charges) == [
        ("0", ""),
        ("0", "unclaimed"),
        ("1", ""),
    ]


def test_a_machine_without_a_driver_meters_nothing_and_says_nothing(fake: FakeNvml) -> None:
    """No device, no charge, no failure; the loop runs and its steps count."""
    fake.machine(0)
    devices.forget()
    runtime.init(ledger="memory", clock=fake)
    with gpu.track() as run:
        fake.advance(5)
        run.step()
    used = run.usage()
    assert (used.allocated_s, used.steps, used.models) == (0, 1, {})
    assert used.usd_per_hour is None
    assert list(runtime.get().ledger.rows()) == []
