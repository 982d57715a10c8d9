"""A whole run on the fake driver: what is paid, what was busy, and what was idle, each of the right devices and to the second."""

from __future__ import annotations

import logging
import sys
import types
from decimal import Decimal
from typing import Any

import pytest
from nvml_scene import GIB, LOST, UNSUPPORTED, FakeNvml

from aifinops import gpu, runtime
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.gpu import backends, billing, cpus, devices, sampler
from aifinops.gpu.backends import nvidia
from aifinops.gpu.quota import read_table
from aifinops.gpu.usage import span_values

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID")


@pytest.fixture
def machine(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """Two GPUs; time is the driver's."""
    for name in LAUNCHERS:
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


class Stream:
    """torch with CUDA in use: one stream, whose time is the driver's; work on it takes its time after what was queued before."""

    def __init__(self, clock: FakeNvml) -> None:
        self.clock = clock
        self.done_at = 0
        stream = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0

            def record(self) -> None:
                self.at = max(stream.done_at, clock.monotonic_ns())

            def query(self) -> bool:
                return self.at <= clock.monotonic_ns()

            def elapsed_time(self, later: Event) -> float:
                return (later.at - self.at) / 1e6

        self.cuda = types.SimpleNamespace(
            Event=Event,
            is_initialized=lambda: True,
            is_current_stream_capturing=lambda: False,
            device_count=lambda: 1,
            get_device_properties=lambda index: types.SimpleNamespace(uuid="a0000000-0000-4000-8000-000000000000"),
            memory_reserved=lambda index: 0,
        )

    def queue(self, seconds: float) -> None:
        self.done_at = max(self.done_at, self.clock.monotonic_ns()) + round(seconds * 1e9)


def test_steps_are_timed_on_the_device_where_it_says_nothing_itself(
    machine: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No utilisation from the driver: busy is the time between events, an upper bound; the device's stall is its own, an evaluation is neither."""
    machine.machine(1)
    machine.device(0, "GPU-a0000000-0000-4000-8000-000000000000", "NVIDIA A100-SXM4-80GB", 80 * GIB, 0, 1)
    machine.error(0, "nvmlDeviceGetSamples", UNSUPPORTED)
    stream = Stream(machine)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=stream.cuda))
    with gpu.track("finetune", price="3.60", devices="visible") as run:

        def step() -> None:
            began = machine.monotonic_ns()
            machine.advance(0.2)  # loading
            run.waited(began, machine.monotonic_ns())
            stream.queue(0.8)
            machine.advance(0.01)
            run.optimizer_step()
            machine.advance(0.79)

        for _ in range(20):
            step()
        first = run.usage()
        with run.phase("eval"):
            machine.advance(100)
        for _ in range(20):
            step()
        found = run.usage()
    assert first.busy_source == "cuda_event"
    assert first.busy_error_s is None
    # Events begin once CUDA is seen to be in use: at the first look, after the first step.
    assert first.busy_s == pytest.approx(19 * 0.8)
    assert first.device_stall_s == pytest.approx(18 * 0.2)
    assert span_values(first, 1)["aifinops.gpu.device_stall_s"] == first.device_stall_s
    assert found.busy_s == pytest.approx(39 * 0.8)
    assert found.device_stall_s == pytest.approx(37 * 0.2)
    assert found.idle_cost is None  # an upper bound of busy is a lower bound of idle
    assert found.allocated_s == 140


def test_the_drivers_figure_goes_before_the_events(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """With counters of the device, events tell the stall only."""
    machine.machine(1)
    machine.from_now(0, 0.5)
    stream = Stream(machine)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=stream.cuda))
    with gpu.track("finetune", price="3.60", devices="visible") as run:
        for _ in range(10):
            run.waited(machine.monotonic_ns(), machine.monotonic_ns())
            stream.queue(1.0)
            run.step()
            machine.advance(1)
        found = run.usage()
    assert found.busy_source == "gpm"
    assert found.busy_s == pytest.approx(5, abs=1e-6)
    assert found.device_stall_s == pytest.approx(0, abs=1e-9)


def test_a_slot_is_told_how_busy_its_gpus_are(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run inside a slot tells it what was measured, for whoever looks at the board, and asks it whether to give the GPUs back."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a1")
    machine.from_now(1, 0.5)
    quotas = read_table({"pools": {"h100": 2}, "teams": {"nlp": {"h100": 2}}})
    with (
        gpu.slot(team="nlp", gpus=1, quotas=quotas, store=MemoryStore(), lease_s=10**6) as slot,
        gpu.track("finetune", price="3.60", devices="visible") as run,
    ):
        assert not run.should_yield()
        machine.advance(60)
        run.step()
        run.close()
        slot._yields_to = "somebody"
        assert run.should_yield()
        assert slot._entry.held_s == 60
        assert slot._entry.busy_s == pytest.approx(30, abs=0.1)


def run_for(machine: FakeNvml, run: gpu.Run, seconds: int) -> None:
    for _ in range(seconds):
        machine.advance(1)
        assert run._meter.watch is not None
        run._meter.watch._sampler.look()
        run.step()


def test_allocated_busy_and_idle_are_told_apart_and_add_up(machine: FakeNvml) -> None:
    """Two devices for a hundred seconds, one of them busy for half of it: 200 device-seconds, 50 of them busy, and three quarters of the money idle."""
    with gpu.track("train", price="3.60") as run:
        machine.from_now(0, 1.0, sm=0.6, tensor=0.4, watts=500)
        run_for(machine, run, 50)
        machine.from_now(0, 0.0, watts=100)
        run_for(machine, run, 50)
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


def test_ranks_of_one_machine_pay_for_their_own_devices(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three devices and two ranks: each its own, and the first one what is left, told apart by its phase."""
    machine.machine(3)
    devices.forget()
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    paid: list[str] = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with gpu.track(price="1", run_id="r") as run:
            machine.advance(10)
        paid += run.usage().uuids
    assert len(paid) == len(set(paid)) == 3
    charges = list(runtime.get().ledger.rows())
    assert sorted((c.tags["rank"], c.tags.get("phase", "")) for c in charges) == [
        ("0", ""),
        ("0", "unclaimed"),
        ("1", ""),
    ]


@pytest.fixture
def no_accelerators(machine: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A driver that has no device, and a machine of four processors that shows none either."""
    machine.machine(0)
    devices.forget()
    monkeypatch.setattr(backends, "present", lambda: (nvidia.NvidiaBackend(),))
    monkeypatch.setattr(billing, "_ACCELERATORS", ())
    monkeypatch.setattr(cpus, "processors", lambda: cpus.Cpus(Decimal(4), "machine", 4))
    return machine


def test_a_machine_without_devices_charges_its_processors_and_no_device_time(no_accelerators: FakeNvml) -> None:
    """No device: four processors are held, at a price that nobody knows here; the loop runs and its steps count."""
    with gpu.track() as run:
        no_accelerators.advance(5)
        run.step()
    used = run.usage()
    assert (used.allocated_s, used.steps, used.models, used.uuids) == (0, 1, {}, ())
    assert (used.cpu_s, used.cpus, used.cost) == (20, cpus.Cpus(Decimal(4), "machine", 4), None)
    assert (used.usd_per_hour, used.busy_s, used.energy_j) == (None, None, None)
    (charge,) = runtime.get().ledger.rows()
    assert (charge.service, charge.quantities, charge.amount) == ("cpu", {"cpu_seconds": 20}, None)
    with gpu.track(devices=()) as nothing:
        no_accelerators.advance(5)
    assert (nothing.usage().cpu_s, nothing.usage().cost) == (0, 0)


@pytest.mark.parametrize("hidden", ["", "none"])
def test_a_machine_with_devices_that_are_hidden_pays_for_no_processors(
    machine: FakeNvml, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    """Its price is that of its GPUs, and the processors are in it, whoever holds them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with gpu.track() as run:
        machine.advance(5)
    assert (run.usage().cpu_s, run.usage().cpus) == (0, None)
    assert list(runtime.get().ledger.rows()) == []


def test_an_instance_with_accelerators_whose_driver_says_nothing_pays_for_no_processors(
    no_accelerators: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price list knows that a p5.48xlarge has GPUs; asked for by name, its processors are counted without a price of their own."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "cloud.provider=aws,cloud.region=us-east-1,host.type=p5.48xlarge")
    with gpu.track():
        no_accelerators.advance(5)
    assert list(runtime.get().ledger.rows()) == []
    with gpu.track(devices="cpu") as named:
        no_accelerators.advance(5)
    assert (named.usage().cpu_s, named.usage().cost) == (20, None)


def minutes(machine: FakeNvml, run: gpu.Run, count: int) -> None:
    for _ in range(count):
        machine.advance(60)
        run.step()


def told_of_idle(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "did nothing" in record.getMessage()]


def test_a_device_that_does_nothing_is_told_once_with_what_an_hour_of_it_costs(
    machine: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    """One of two works: after a quarter of an hour the other one is named, to the log and to whoever wants alerts, and never again."""
    told: list[Any] = []
    runtime.init(ledger="memory", clock=machine, alerts=[told.append])
    with caplog.at_level(logging.WARNING, "aifinops.gpu"), gpu.track("finetune", price="3.60") as run:
        machine.from_now(0, 1.0)
        minutes(machine, run, 14)
        assert told_of_idle(caplog) == []
        minutes(machine, run, 30)
    (text,) = told_of_idle(caplog)
    idle = "GPU-a1010101-0000-4000-8000-000000000001"
    assert text == f"aifinops: Run 'finetune' holds 1 device that did nothing for 15 minutes, at $3.60 an hour: {idle}."
    (alert,) = told
    assert (alert.kind, alert.amount, alert.devices, alert.run) == ("idle", Decimal("3.60"), (idle,), "finetune")
    assert alert.fields() == {
        "kind": "idle", "unit": "USD", "amount": "3.6", "seconds": 900, "run": "finetune", "devices": [idle],
    }  # fmt: skip
    assert alert.subject == "idle devices of run finetune"


def test_work_in_between_begins_the_quarter_of_an_hour_anew(
    machine: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten idle minutes, one of work, fourteen idle ones: nothing is said before the fifteenth."""
    machine.machine(1)
    with caplog.at_level(logging.WARNING, "aifinops.gpu"), gpu.track(price="3.60") as run:
        minutes(machine, run, 10)
        machine.from_now(0, 0.5)
        minutes(machine, run, 1)
        machine.from_now(0, 0.0)
        minutes(machine, run, 14)
        assert told_of_idle(caplog) == []
        minutes(machine, run, 1)
        assert len(told_of_idle(caplog)) == 1


def test_what_is_unknown_is_not_idle(machine: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    """A driver that does not say how busy its device is raises no alarm, however long it is held."""
    machine.machine(1)
    machine.device(0, "GPU-a0000000-0000-4000-8000-000000000000", "NVIDIA A100-SXM4-80GB", 80 * GIB, 0, 1)
    for call in ("nvmlDeviceGetSamples", "nvmlDeviceGetUtilizationRates"):
        machine.error(0, call, UNSUPPORTED)
    with caplog.at_level(logging.WARNING, "aifinops.gpu"), gpu.track(price="3.60") as run:
        minutes(machine, run, 60)
        assert run.usage().busy_s is None
    assert told_of_idle(caplog) == []


@pytest.mark.parametrize(("setting", "argument", "first"), [(5, None, 5), (5, 2, 2), (0, None, None), (5, 0, None)])
def test_how_long_is_a_setting_and_an_argument(
    setting: float, argument: float | None, first: int | None, machine: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    """The argument goes before the setting; 0 is never."""
    runtime.init(ledger="memory", clock=machine, gpu_idle_minutes=setting)
    seen: list[int] = []
    with caplog.at_level(logging.WARNING, "aifinops.gpu"), gpu.track(idle_minutes=argument) as run:
        for number in range(1, 20):
            minutes(machine, run, 1)
            if told_of_idle(caplog) and not seen:
                seen.append(number)
    assert seen == ([] if first is None else [first])
    if first is not None:
        assert "2 devices" in told_of_idle(caplog)[0]


def test_the_alarm_is_an_event_on_the_span_of_the_run(machine: FakeNvml) -> None:
    """Also where the charge is made by the thread that keeps runs."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = runtime.get().spans
    assert spans is not None
    spans._get_provider = lambda: provider
    machine.machine(1)
    run = gpu.track("finetune", price="3.60", idle_minutes=1).start()
    machine.advance(60)
    run.beat()
    run.close()
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert event.name == "aifinops.gpu.idle"
    assert event.attributes is not None
    assert event.attributes["aifinops.gpu.idle.amount"] == "3.6"
    assert event.attributes["aifinops.gpu.idle.devices"] == ("GPU-a0000000-0000-4000-8000-000000000000",)
