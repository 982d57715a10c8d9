"""A run on GPUs: exact time, charges by the minute, budgets paid in advance, and an end at a step."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import aifinops as af
from aifinops import gpu, runtime
from aifinops.charges import Charge
from aifinops.errors import (
    BudgetExceeded,
    ConfigurationError,
    DecisionFailed,
    RunStopped,
    StoreError,
    failures,
    reraise_failures,
)
from aifinops.gpu.devices import Device
from aifinops.gpu.keeper import current_run
from aifinops.gpu.peaks import peak
from aifinops.scope import bind as af_bind
from aifinops.testing.clock import FakeClock

TWO = {"NVIDIA H100 80GB HBM3": 2}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID"):
        monkeypatch.delenv(name, raising=False)
    clock = FakeClock()
    runtime.init(ledger="memory", clock=clock)
    return clock


def rows() -> list[Charge]:
    runtime.get().writer.flush()
    return sorted(runtime.get().ledger.rows(), key=lambda charge: charge.at)


def run_of(**arguments: Any) -> gpu.Run:
    return gpu.track("finetune", **{"devices": TWO, "price": "3.60", "team": "nlp", **arguments})


def test_a_minute_is_a_charge_and_the_time_is_exact(clock: FakeClock) -> None:
    """Two devices for 150 s at $3.60 an hour: three charges, 300 device-seconds, 30 cents, whatever the steps were."""
    with run_of() as run:
        for _ in range(150):
            clock.advance(1)
            run.step()
    charges = rows()
    assert [charge.quantities["gpu_seconds"] for charge in charges] == [120, 120, 60]
    assert [charge.amount for charge in charges] == [120_000_000, 120_000_000, 60_000_000]
    assert {charge.service for charge in charges} == {"gpu"}
    assert charges[0].tags == {"team": "nlp", "run": run.run_id, "attempt": "1"}
    assert sum(charge.duration for charge in charges) == 150 * 10**9
    assert [charge.at + charge.duration for charge in charges[:-1]] == [charge.at for charge in charges[1:]]


def test_without_a_price_the_cost_is_unknown_and_the_hours_are_counted(clock: FakeClock) -> None:
    """Nobody knows what it costs; that it was held is known all the same."""
    with gpu.track(devices={"Some Prototype": 4}) as run:
        clock.advance(90)
    (charge,) = rows()
    assert (charge.amount, charge.basis) == (None, "unknown")
    assert charge.quantities == {"gpu_seconds": 360}
    used = run.usage()
    assert (used.allocated_s, used.cost, used.usd_per_hour, used.busy_s, used.idle_cost) == (
        360,
        None,
        None,
        None,
        None,
    )


def test_usage_tells_what_is_not_charged_yet(clock: FakeClock) -> None:
    """In the middle of a minute the figures are those of this moment."""
    with run_of() as run:
        clock.advance(10)
        run.step()
        used = run.usage()
        assert rows() == []
        assert (used.allocated_s, used.cost, used.steps) == (20, Decimal("0.02"), 1)
        assert used.models == TWO
    assert run.usage().allocated_s == 20
    clock.advance(10)
    assert run.usage().allocated_s == 20


def test_phases_add_up_to_the_time_of_the_run(clock: FakeClock) -> None:
    """Startup, steps, waiting for data, evaluation and checkpoints share the wall time without gap or overlap."""
    with run_of() as run:
        clock.advance(7)
        run.step()
        for _ in range(3):
            before = clock.monotonic_ns()
            clock.advance(0.5)
            run.waited(before, clock.monotonic_ns())
            clock.advance(1.5)
            run.step()
        with run.phase("eval"):
            clock.advance(3)
            with run.phase("restore"):
                clock.advance(1)
            run.waited(0, 10**9)  # it is evaluation that waits
        with run.checkpoint():
            clock.advance(2)
    phases = run.usage().phases
    assert phases == {"startup": 7, "data_wait": 1.5, "step": 4.5, "eval": 3, "restore": 1, "checkpoint_save": 2}
    assert sum(phases.values()) == run.usage().elapsed_s
    (charge,) = rows()
    assert charge.raw is not None
    assert charge.raw["gpu"]["phases"] == phases
    assert charge.raw["gpu"]["steps"] == 4


def test_a_money_budget_ends_the_run_at_a_step_below_its_limit_after_the_checkpoint(clock: FakeClock) -> None:
    """Two cents in ten seconds, a limit of a dollar: the run is told in time, saves, and ends below the limit; nothing is posted twice."""
    saved: list[int] = []

    def save() -> None:
        clock.advance(4)
        saved.append(run.steps)

    with af.budget("$1") as limit:
        with pytest.raises(RunStopped) as stopped, run_of(checkpoint=save, allowance_s=10) as run:  # noqa: PT012 - it is the loop that is ended
            while True:
                clock.advance(1)
                run.step()
        assert saved == [stopped.value.step] == [run.steps]
        assert Decimal("0.90") < limit.spent <= 1
        assert limit.spent == sum(Decimal(charge.amount or 0) for charge in rows()) / 10**9
        assert limit.reserved == 0
    assert isinstance(stopped.value, BudgetExceeded)
    assert run.usage().wasted_s == 0


def test_gpu_hours_are_a_limit_too_and_need_no_price(clock: FakeClock) -> None:
    """A quota in GPU-hours ends a run whose price nobody knows."""
    with af.budget("0.1 gpu_hours") as limit:  # 360 device-seconds, 180 s of two
        with gpu.track(devices={"Some Prototype": 2}, allowance_s=5) as run:
            while run.advance():
                clock.advance(1)
        assert limit.spent == sum(charge.quantities["gpu_seconds"] for charge in rows())
    assert 165 <= run.steps <= 180
    assert run.should_stop


def test_a_run_without_room_does_not_begin(clock: FakeClock) -> None:
    """Where there is not even room for a slice and the way out, the loop is never entered and nothing is charged."""
    with af.budget("$0.01"), pytest.raises(BudgetExceeded), run_of():
        pytest.fail("it has begun")
    assert rows() == []
    assert current_run() is None


def test_an_unpriced_device_under_a_money_budget_is_refused_by_name(clock: FakeClock) -> None:
    """A limit in money cannot hold for what has no price: the budget's `unknown` decides."""
    with (
        af.budget("$1"),
        pytest.raises(BudgetExceeded, match="Some Prototype"),
        gpu.track(devices={"Some Prototype": 1}),
    ):
        pytest.fail("it has begun")
    with af.budget("$1", unknown="allow") as limit, gpu.track(devices={"Some Prototype": 1}):
        clock.advance(100)
    assert limit.spent == 0


def test_throttle_on_held_devices_saves_and_ends_and_never_sleeps(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting would only raise the cost of what is held."""

    def slept(*_: object) -> None:
        raise AssertionError("it waits")

    saved: list[int] = []
    with af.budget("$1", per="day", name="daily", on_exceed="throttle"):
        monkeypatch.setattr("aifinops.budgets.waiting.Ticket.wait", slept)
        with pytest.raises(RunStopped) as stopped, run_of(checkpoint=lambda: saved.append(1), allowance_s=10) as run:  # noqa: PT012
            while True:
                clock.advance(1)
                run.step()
        assert saved == [1]
        assert stopped.value.resets_at is not None
        with pytest.raises(BudgetExceeded), run_of():
            pytest.fail("it has begun")


def test_a_warning_lets_it_go_on(clock: FakeClock) -> None:
    """`on_exceed="warn"` counts and does not stop."""
    with af.budget("$0.10", on_exceed="warn") as limit, run_of() as run:
        for _ in range(300):
            clock.advance(1)
            run.step()
    assert limit.spent == Decimal("0.6")


def test_the_forecast_knows_cost_and_the_step_at_which_it_ends(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A step of two seconds at 0.2 cents a second: a thousand more steps cost four dollars, and a dollar does not last that long."""
    with (
        af.budget("$1"),
        run_of(allowance_s=10, total_steps=1000) as run,
        caplog.at_level(logging.WARNING, "aifinops.gpu"),
    ):
        clock.advance(60)
        run.step()
        for _ in range(35):
            clock.advance(2)
            run.step()
        ahead = run.estimate_remaining()
        assert ahead.steps == 1000 - run.steps
        assert ahead.usd_per_step == Decimal("0.004")
        assert ahead.cost == Decimal("0.004") * ahead.steps
        assert ahead.lasts_s == pytest.approx((1 - 0.26) / 0.002)
        assert ahead.ends_before_limit is False
        assert run.estimate_remaining(200).ends_before_limit is True
        made = ahead.last_step
        while run.advance():
            clock.advance(2)
    assert abs(run.steps - made) <= 3
    assert "will be stopped by its budget at about step" in caplog.text


def test_without_a_number_of_steps_there_is_no_forecast(clock: FakeClock) -> None:
    """It says what to type."""
    with run_of() as run, pytest.raises(ConfigurationError, match="total_steps"):
        run.estimate_remaining()


def test_optimizer_steps_count_until_somebody_counts_himself(clock: FakeClock) -> None:
    """The hook and `run.step()` in one loop are one step, not two."""
    with run_of() as run:
        for _ in range(5):
            clock.advance(1)
            run.optimizer_step()
        assert run.steps == 5
        for _ in range(3):
            run.optimizer_step()
            run.step()
        assert run.steps == 3


def test_a_device_is_paid_for_once_by_the_run_that_took_it_last(clock: FakeClock) -> None:
    """A run inside of another takes its devices over, with its own tags, and gives them back; nothing is counted twice, budgets included."""
    from aifinops.gpu.devices import Device

    devices = [Device(0, "GPU-a", "H100"), Device(1, "GPU-b", "H100")]
    with af.budget("$9") as limit, run_of(devices=devices) as outer:
        clock.advance(10)
        with run_of(devices=devices[:1], project="inner") as inner:
            assert current_run() is inner
            clock.advance(10)
        assert current_run() is outer
        clock.advance(10)
    by_project = {
        name: sum(c.quantities["gpu_seconds"] for c in rows() if c.tags.get("project", "") == name)
        for name in ("", "inner")
    }
    assert by_project == {"": 50, "inner": 10}
    assert limit.spent == Decimal("0.06") == sum(Decimal(charge.amount or 0) for charge in rows()) / 10**9


def test_runs_in_other_orders_still_pay_once(clock: FakeClock) -> None:
    """Two runs of the same device that overlap without one being inside the other: their times add up to the time that passed."""
    from aifinops.gpu.devices import Device

    first = run_of(devices=[Device(0, "GPU-a", "H100")]).start()
    clock.advance(10)
    second = run_of(devices=[Device(0, "GPU-a", "H100")]).start()
    clock.advance(10)
    first.close()
    clock.advance(10)
    second.close()
    assert sum(charge.quantities["gpu_seconds"] for charge in rows()) == 30


def test_a_run_begins_once(clock: FakeClock) -> None:
    """A second beginning would pay twice."""
    with run_of() as run:
        pass
    with pytest.raises(ConfigurationError, match="once"):
        run.start()
    run.close()


def test_switched_off_it_counts_steps_and_nothing_else(clock: FakeClock) -> None:
    """`enabled=False` leaves no charge and asks no budget."""
    runtime.init(ledger="memory", clock=clock, enabled=False)
    with af.budget("$0.000001"), run_of() as run:
        clock.advance(100)
        run.step()
    assert rows() == []
    assert run.steps == 1


def test_the_decorator_pays_from_the_budget_around_it(clock: FakeClock) -> None:
    """`@track_cost(gpu=...)` is a run: the loop inside is ended at a step, and the charges are those of its block."""

    @af.track_cost(gpu={"devices": TWO, "price": "3.60", "allowance_s": 10}, project="llm-ft")
    def train() -> None:
        run = current_run()
        assert run is not None
        while True:
            clock.advance(1)
            run.step()

    with af.budget("$1") as limit:
        with pytest.raises(RunStopped):
            train()
        assert Decimal("0.9") < limit.spent < 1
    assert {charge.tags["project"] for charge in rows()} == {"llm-ft"}


def test_charges_of_a_run_name_the_device_and_its_price(clock: FakeClock, tmp_path: Path) -> None:
    """A price of the list has its id, source and day on the charge, and the hours of a known device have a cost."""
    with gpu.track(devices={"NVIDIA H100 80GB HBM3": 1}):
        clock.advance(3600)
    charge = rows()[0]
    assert charge.amount is not None
    assert charge.price_id
    assert charge.price_as_of
    assert charge.raw is not None
    assert charge.raw["gpu"]["model"] == "NVIDIA H100 80GB HBM3"


def test_a_step_that_takes_long_is_paid_for_while_it_lasts(clock: FakeClock) -> None:
    """What keeps runs pays and holds on in the middle of a step: the lease never runs out, and the end comes at the next step."""
    with af.budget("$1") as limit, run_of(allowance_s=10) as run:
        for _ in range(600):
            clock.advance(1)
            run.beat()
        assert limit.spent > Decimal("0.9")
        assert len(rows()) == 10
        assert run.should_stop
        assert run.should_yield()
        assert not run.advance()
    assert limit.spent == Decimal(
        "1.2"
    )  # the step was longer than anybody could foresee: what it cost is told all the same


def test_the_price_is_asked_again_each_hour(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spot prices move: charges from then on have the new one, and so have the budgets."""
    runtime.init(ledger="memory", clock=clock, gpu_usd_per_hour="3.60")
    with af.budget("$100") as limit, gpu.track(devices={"X": 1}) as run:
        for _ in range(30):
            clock.advance(minutes=1)
            run.step()
        monkeypatch.setattr(runtime.get(), "config", replace(runtime.get().config, gpu_usd_per_hour=Decimal("7.20")))
        assert run.usage().usd_per_hour == Decimal("3.60")
        for _ in range(60):
            clock.advance(minutes=1)
            run.step()
        assert run.usage().usd_per_hour == Decimal("7.20")
    assert limit.spent == sum(Decimal(charge.amount or 0) for charge in rows()) / 10**9
    assert limit.spent == Decimal("3.60") + Decimal("7.20") / 2
    assert sum(charge.quantities["gpu_seconds"] for charge in rows()) == 5400


def test_mfu_is_the_useful_part_of_what_is_paid_for(clock: FakeClock) -> None:
    """Ten steps of 1e15 in ten seconds of two devices that could do 1e15 a second each."""
    with run_of(flops_per_step=1e15, peak_flops=1e15) as run:
        for _ in range(10):
            clock.advance(1)
            run.step()
        assert run.usage().mfu == pytest.approx(0.5)


def test_mfu_needs_the_flops_of_a_step_and_a_model_whose_peak_is_known(clock: FakeClock) -> None:
    """Of an H100 the dense peak is known, not that with sparsity; of others, and of steps that say nothing, MFU is unknown, not 0."""

    def mfu(flops: list[float | None], **arguments: Any) -> float | None:
        with run_of(**arguments) as run:
            for one in flops:
                clock.advance(1)
                run.step(flops=one)
        return run.usage().mfu

    assert mfu([989e12] * 4) == pytest.approx(0.5)  # two devices
    assert mfu([989e12, 3 * 989e12]) == pytest.approx(1.0)
    assert mfu([989e12, None], flops_per_step=989e12) == pytest.approx(0.5)
    assert mfu([989e12] * 4, peak_flops="fp8") == pytest.approx(989 / 1979 / 2)
    assert mfu([989e12] * 4, peak_flops=989e12 / 2) == pytest.approx(1.0)
    assert mfu([989e12, None]) is None
    assert mfu([None, None]) is None
    assert mfu([]) is None
    assert mfu([1e12], devices={"Some Prototype": 1}) is None
    assert mfu([312e12] * 2, devices={"NVIDIA A100-SXM4-80GB": 1, "NVIDIA H100 80GB HBM3": 1}) == pytest.approx(
        312 / (312 + 989)
    )
    for wrong in ("int4", 0, -1.0, True):
        with pytest.raises(ConfigurationError, match="989e12"):
            gpu.track(peak_flops=wrong)


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", None),  # nobody has told us
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA B300 SXM6 AC", 2250),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("Tesla T4", None),
        ("Tesla V100-SXM2-16GB", None),
        ("AMD Instinct MI300X", 1300),
        ("NVIDIA H100", None),  # which of them
    ],
)
def test_the_peak_of_a_model_is_found_by_its_name(name: str, bf16: float | None) -> None:
    """As drivers name them; a name that only begins alike is another model."""
    row = peak(name)
    assert (row.tflops.get("bf16") if row else None) == bf16
    if row is not None:
        assert row.source.startswith("https://")
        assert row.tflops.get("tf32", 0) < row.tflops["fp16"] < row.tflops.get("fp8", 10**9)


def test_of_a_slice_no_peak_is_stated(clock: FakeClock) -> None:
    """A MIG device has the name of its parent and less of it: its MFU is unknown, unless its peak is given."""
    slice_ = [Device(0, "MIG-1", "NVIDIA H100 80GB HBM3", share=0.5)]
    for given, expected in ((None, None), (989e12, pytest.approx(1.0))):
        with run_of(devices=slice_, flops_per_step=0.5 * 989e12, peak_flops=given) as run:
            clock.advance(1)
            run.step()
        assert run.usage().mfu == expected


def test_what_is_no_device_or_price_is_said_with_what_to_type(clock: FakeClock) -> None:
    """Before anything is held."""
    with pytest.raises(ConfigurationError, match="auto"):
        gpu.track(devices={"X": 0}).start()
    with pytest.raises(ConfigurationError, match="price"):
        gpu.track(devices={"X": 1}, price="cheap").start()
    with pytest.raises(ConfigurationError, match="slice_s"):
        gpu.track(slice_s=0)
    with pytest.raises(ConfigurationError, match="0 for never"):
        gpu.track(idle_minutes=-1)
    for wrong in ("soon", -1, True, float("nan")):
        with pytest.raises(ConfigurationError, match="write minutes"):
            runtime.init(ledger="memory", gpu_idle_minutes=wrong)  # type: ignore[arg-type, unused-ignore]  # that is what is tested


def test_a_slot_that_is_wanted_back_is_a_reason_to_yield(clock: FakeClock) -> None:
    """Whoever governs the devices may ask for them; the run passes it on."""
    from aifinops.gpu.slots import current_slot

    class Wanted:
        def should_yield(self) -> bool:
            return True

    with run_of() as run:
        assert not run.should_yield()
        token = current_slot.set(Wanted())  # type: ignore[arg-type]
        assert run.should_yield()
        current_slot.reset(token)


def test_a_checkpoint_that_fails_is_the_users_error(clock: FakeClock) -> None:
    """It is raised as it is; the run is over in any case, and is paid for."""

    def save() -> None:
        raise OSError("disk full")

    with af.budget("$1") as limit:
        with pytest.raises(OSError, match="disk full"), run_of(checkpoint=save, allowance_s=10) as run:  # noqa: PT012
            while True:
                clock.advance(1)
                run.step()
        assert limit.reserved == 0
    assert not run.is_open


def test_the_span_and_the_metrics_of_a_run(clock: FakeClock) -> None:
    """One span for the run and one for each phase, none for a step; device time by state in a counter."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engines = runtime.get()
    assert engines.spans is not None
    engines.spans._get_provider = lambda: provider
    meters = MeterProvider([reader], shutdown_on_exit=False)
    engines.metrics._get_provider = lambda: meters
    with pytest.raises(KeyError), run_of() as run:  # noqa: PT012 - what ends it is seen on its span
        for _ in range(3):
            clock.advance(1)
            run.step()
        with run.phase("eval"):
            clock.advance(1)
        raise KeyError
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"gpu finetune", "gpu eval"}
    whole = spans["gpu finetune"]
    assert whole.attributes is not None
    assert whole.attributes["aifinops.gpu.allocated_s"] == 8
    assert whole.attributes["aifinops.cost.total"] == 0.008
    assert whole.attributes["aifinops.team"] == "nlp"
    assert whole.attributes["aifinops.phase.eval_s"] == 1
    assert whole.attributes["error.type"] == "KeyError"
    assert "aifinops.gpu.busy_s" not in whole.attributes
    assert spans["gpu eval"].parent is not None
    assert whole.context is not None
    assert spans["gpu eval"].parent.span_id == whole.context.span_id
    data = reader.get_metrics_data()
    assert data is not None
    points = {
        metric.name: [(dict(point.attributes or {}), point.value) for point in metric.data.data_points]
        for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
        if metric.name == "aifinops.gpu.time"
    }  # fmt: skip
    ((attributes, seconds),) = points["aifinops.gpu.time"]
    assert (attributes["aifinops.gpu.state"], seconds) == ("allocated", 8)
    meters.shutdown()


def test_blocks_of_one_run_one_after_the_other_are_all_charged(clock: FakeClock) -> None:
    """Training and evaluation in two blocks of one minute, with the name of the job: neither is taken for the other."""
    from aifinops.gpu.devices import Device

    for _ in range(3):
        with run_of(run_id="job", devices=[Device(0, "GPU-a", "X")]):
            clock.advance(5)
    assert [charge.quantities["gpu_seconds"] for charge in rows()] == [5, 5, 5]
    assert {charge.tags["attempt"] for charge in rows()} == {"1"}


def test_a_store_that_does_not_answer_says_nothing_about_the_end(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forecast of time and cost is there all the same."""
    reraise_failures(False)
    with af.budget("$1"), run_of() as run:
        for _ in range(20):
            clock.advance(1)
            run.step()
        monkeypatch.setattr("aifinops.budgets.guard.Guard.balances", _away)
        ahead = run.estimate_remaining(30)
    assert (ahead.lasts_s, ahead.ends_before_limit, ahead.last_step) == (None, None, 30)
    assert ahead.cost == Decimal("0.02")


def _away(*_: object) -> None:
    raise StoreError("away")


# --- what fails of ours ----------------------------------------------------------------------------------------------------


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("ours")


def test_devices_that_cannot_be_found_leave_the_loop_alone(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs unmetered, and the failure is counted."""
    reraise_failures(False)
    monkeypatch.setattr("aifinops.gpu.billing.groups_of", broken)
    with run_of() as run:
        clock.advance(70)
        run.step()
    assert (run.steps, rows()) == (1, [])
    assert failures() == {"gpu.devices": 1}


@pytest.mark.parametrize("on_store_down", ["deny", "allow"])
def test_a_budget_that_we_fail_to_ask_holds_all_the_same(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, on_store_down: str
) -> None:
    """Where it may refuse, the run does not begin; where it may not, what it costs is posted as it is charged."""
    reraise_failures(False)
    monkeypatch.setattr("aifinops.gpu.paying.Prepaid.open", broken)
    with af.budget("$1", on_store_down=on_store_down) as limit:
        if on_store_down == "deny":
            with pytest.raises(DecisionFailed), run_of():
                pytest.fail("it has begun")
        else:
            with run_of():
                clock.advance(100)
        assert limit.spent == (0 if on_store_down == "deny" else Decimal("0.2"))


@pytest.mark.parametrize(
    "place",
    [
        "aifinops.gpu.billing.charge", "aifinops.gpu.ending.Ending.judge", "aifinops.gpu.paying.Paying.tick",
        "aifinops.gpu.phases.Pace.note", "aifinops.gpu.run.Run._begin_span", "aifinops.gpu.run.Run._begin_watch",
        "aifinops.gpu.paying.Paying.close",
    ],
)  # fmt: skip
def test_nothing_of_ours_that_fails_ends_the_loop(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Each part may fail on its own; the loop is the user's."""
    reraise_failures(False)
    with af.budget("$100"):
        run = run_of()
        monkeypatch.setattr(place, broken)
        run.start()
        for _ in range(130):
            clock.advance(1)
            run.step()
        run.close()
    assert run.steps == 130
    assert sum(failures().values()) > 0 or place.endswith("_begin_watch")


def test_a_run_that_finds_no_room_when_it_gets_its_device_back_ends_at_its_next_step(clock: FakeClock) -> None:
    """The run inside has used what there was; what the outer one holds up to its next step is still counted."""
    from aifinops.gpu.devices import Device

    device = [Device(0, "GPU-a", "H100")]
    with af.budget("$0.10") as limit, run_of(devices=device, allowance_s=10) as outer:
        clock.advance(10)
        with pytest.raises(RunStopped), run_of(devices=device, allowance_s=1, slice_s=1) as inner:  # noqa: PT012
            while True:
                clock.advance(1)
                inner.step()
        clock.advance(1)
        assert not outer.advance()
    assert limit.spent == sum(Decimal(charge.amount or 0) for charge in rows()) / 10**9


def test_two_functions_at_once_count_their_own_steps(clock: FakeClock) -> None:
    """The run of a decorated function is the one of its own thread, though another began later."""
    seen: dict[str, bool] = {}
    inside, done = threading.Event(), threading.Event()

    @af.track_cost(gpu={"A": 1})
    def first() -> None:
        mine = current_run()
        thread.start()
        inside.wait(10)
        seen["first"] = current_run() is mine
        done.set()

    @af.track_cost(gpu={"B": 1})
    def second() -> None:
        inside.set()
        done.wait(10)
        run = current_run()
        seen["second"] = run is not None and run.usage().models == {"B": 1}

    thread = threading.Thread(target=second)
    first()
    thread.join()
    assert seen == {"first": True, "second": True}


def held_by(seconds: float) -> Decimal:
    """What two devices at $3.60 an hour cost in so many seconds."""
    return Decimal(str(seconds)) * 2 * Decimal("0.001")


def test_a_budget_that_begins_inside_of_the_run_ends_it_like_one_from_before(clock: FakeClock) -> None:
    """At a step, after the checkpoint, below its limit; what it has spent is what was held since it was entered, and nothing more."""
    saved: list[int] = []

    def save() -> None:
        clock.advance(4)
        saved.append(run.steps)

    with run_of(checkpoint=save, allowance_s=10) as run:
        for _ in range(100):
            clock.advance(1)
            run.step()
        clock.advance(0.25)
        with af.budget("$1") as limit:
            began = clock.monotonic_ns()
            with pytest.raises(RunStopped) as stopped:  # noqa: PT012 - it is the loop that is ended
                while True:
                    clock.advance(1)
                    run.step()
            assert limit.reserved > 0
        assert saved == [stopped.value.step] == [run.steps]
        assert limit.spent == held_by((clock.monotonic_ns() - began) / 1e9)
        assert Decimal("0.9") < limit.spent <= 1
        assert limit.reserved == 0
    assert sum(charge.quantities["gpu_seconds"] for charge in rows()) == run.usage().allocated_s


def test_a_budget_inside_pays_from_its_beginning_to_its_end_beside_the_one_around(clock: FakeClock) -> None:
    """Both count what they should to the nano-dollar: the outer one everything, the inner one its own block, with what was no step."""
    with af.budget("$100") as outer, run_of() as run:
        clock.advance(10)
        run.step()
        clock.advance(0.5)
        with af.budget("$50") as inner:
            for _ in range(70):
                clock.advance(1)
                run.step()
            clock.advance(7)  # an evaluation, say
        clock.advance(20)
        assert inner.spent == held_by(77)
        run.step()
    assert outer.spent == held_by(10 + 0.5 + 77 + 20)
    assert inner.spent == held_by(77)
    assert (inner.reserved, outer.reserved) == (0, 0)


def test_a_named_budget_around_every_step_is_one_and_pays_once(clock: FakeClock) -> None:
    """Entered anew for each step, it is the same budget: no second is counted twice, and none of those inside of it is missing."""
    runtime.init(ledger="memory", store="memory", clock=clock)
    limit = af.budget("$100", name="steps")
    with run_of() as run:
        for _ in range(30):
            with limit:
                clock.advance(1)
                run.step()
            clock.advance(0.5)
    assert limit.spent == held_by(30)
    assert limit.reserved == 0


def test_a_budget_without_room_inside_ends_the_run_at_its_first_step(clock: FakeClock) -> None:
    """Waiting on devices that are held would only cost more."""
    with run_of() as run:
        clock.advance(1)
        run.step()
        clock.advance(1)
        with af.budget("$0.001"), pytest.raises(RunStopped) as stopped:
            run.step()
    assert stopped.value.step == 2


def test_budgets_of_calls_between_steps_have_nothing_to_do_with_the_devices(clock: FakeClock) -> None:
    """A judge with a small budget, in the loop or in a thread of its own, neither pays for the GPUs nor ends the run."""
    judged: list[Decimal] = []

    def judge() -> None:
        with af.budget("$0.0001") as small:
            clock.advance(1)
            judged.append(small.spent)

    with run_of() as run:
        for _ in range(5):
            judge()
            thread = threading.Thread(target=af_bind(judge))
            thread.start()
            thread.join()
            run.step()
    assert judged == [0] * 10
    assert run.usage().allocated_s == 20


def test_a_budget_inside_in_hours_or_without_a_price(clock: FakeClock) -> None:
    """GPU-hours need no price; dollars without one refuse by name."""
    with gpu.track(devices={"Some Prototype": 2}, allowance_s=5) as run, af.budget("0.1 gpu_hours") as limit:
        while run.advance():
            clock.advance(1)
        assert run.error is not None
    assert 300 < limit.spent <= 360
    with gpu.track(devices={"Some Prototype": 2}) as run, af.budget("$1"), pytest.raises(RunStopped) as stopped:
        run.step()
    assert "Some Prototype" in str(stopped.value.__cause__)


def test_a_budget_inside_is_paid_at_the_price_of_its_time(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A price that moves, and devices that another run takes for a while: what was spent is what the ledger has of the block."""
    runtime.init(ledger="memory", clock=clock, gpu_usd_per_hour="3.60")
    device = [Device(0, "GPU-0", "X")]
    with gpu.track(devices=device) as run:
        run.step()
        with af.budget("$100") as limit:
            for minute in range(90):
                clock.advance(minutes=1)
                run.step()
                if minute == 30:
                    dear = replace(runtime.get().config, gpu_usd_per_hour=Decimal("7.20"))
                    monkeypatch.setattr(runtime.get(), "config", dear)
            with gpu.track(devices=device):
                clock.advance(minutes=10)
            clock.advance(minutes=5)
    assert limit.spent == sum(Decimal(charge.amount or 0) for charge in rows()) / 10**9


def test_a_store_that_does_not_answer_when_a_budget_inside_begins(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the budget says that it may go on, the run does, and what was held is counted when the block ends."""
    from aifinops.budgets.guard import Guard

    reraise_failures(False)
    reserve = Guard.reserve
    with run_of() as run:
        run.step()
        with af.budget("$100", on_store_down="allow") as limit:
            monkeypatch.setattr(Guard, "reserve", broken)
            for _ in range(30):
                clock.advance(1)
                run.step()
            monkeypatch.setattr(Guard, "reserve", reserve)
        assert run.error is None
    assert limit.spent == held_by(30)
