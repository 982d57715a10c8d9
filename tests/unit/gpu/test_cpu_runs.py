"""Runs on machines without accelerators: which processors are held, what an hour of them costs there, and what pays for it."""

from __future__ import annotations

import json
import logging
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import aifinops as af
from aifinops import gpu, runtime
from aifinops.charges import Charge
from aifinops.errors import BudgetExceeded, ConfigurationError, RunStopped
from aifinops.gpu import billing, cpus, devices, paying, rates
from aifinops.gpu.backends import nvidia
from aifinops.gpu.backends.base import Inventory
from aifinops.gpu.cpus import Cpus
from aifinops.gpu.distributed import Rank
from aifinops.gpu.holdings import gpu_entries
from aifinops.gpu.journal import Group
from aifinops.gpu.rates import cpu_rate, has_accelerators
from aifinops.gpu.usage import span_values, total
from aifinops.gpu.where import Place, from_environ
from aifinops.telemetry import names
from aifinops.testing.clock import FakeClock

LARGE = "cloud.provider=aws,cloud.region=us-east-1,host.type=m5.large"  # 2 vCPUs, 0.096 USD an hour
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID")
AT = 1_800_000_000 * 10**9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """A machine of two processors and nothing else."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "inventory", lambda: Inventory(reason="no driver"))
    monkeypatch.setattr("aifinops.gpu.backends.present", lambda: (nvidia.NvidiaBackend(),))
    monkeypatch.setattr(billing, "_ACCELERATORS", ())
    monkeypatch.setattr(cpus, "processors", lambda: Cpus(Decimal(2), "machine", 2))
    monkeypatch.setattr("aifinops.gpu.where.from_environ", _no_place)
    clock = FakeClock()
    runtime.init(ledger="memory", clock=clock)
    return clock


def _no_place(environ: Any) -> Place:
    """What the environment of a test says, and nothing of the machine it runs on."""
    return from_environ({key: value for key, value in environ.items() if key.startswith("OTEL_")})


def rows() -> list[Charge]:
    runtime.get().writer.flush()
    return sorted(runtime.get().ledger.rows(), key=lambda charge: charge.at)


def step_until_stopped(clock: FakeClock, run: gpu.Run) -> None:
    while True:
        clock.advance(1)
        run.step()


# --- what is charged ---------------------------------------------------------------------------------------------------------


def test_an_instance_is_charged_by_the_second_at_its_price(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two vCPUs of an m5.large for 150 s: three charges of 120, 120 and 60 vCPU-seconds, 0.096 USD an hour in all, with source and day."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", LARGE)
    with gpu.track("prepare", team="nlp") as run:
        for _ in range(150):
            clock.advance(1)
            run.step()
    found = rows()
    assert [charge.quantities for charge in found] == [{"cpu_seconds": 120}, {"cpu_seconds": 120}, {"cpu_seconds": 60}]
    assert sum(Decimal(charge.amount or 0) for charge in found) == Decimal("0.096") * 150 / 3600 * 10**9
    first = found[0]
    assert (first.service, first.provider, first.model, first.region) == ("cpu", "aws", "m5.large", "us-east-1")
    assert first.tags == {"team": "nlp", "run": run.run_id, "attempt": "1"}
    assert first.raw is not None
    assert first.raw["cpu"]["cpus"] == "2"
    assert (first.raw["cpu"]["cpus_source"], first.raw["cpu"]["machine_cpus"]) == ("machine", 2)
    used = run.usage()
    assert (used.cpu_s, used.cost, used.usd_per_hour) == (300, Decimal("0.004"), Decimal("0.096"))
    assert (used.price_source, used.price_as_of) == ("karpenter-provider-aws", "2026-07-20")
    assert (used.allocated_s, used.models, used.uuids, used.mfu) == (0, {}, (), None)
    assert used.wasted_s == 300


def test_processors_are_no_gpus_in_any_report(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU time in the entries that `aifinops gpu top` and `idle` read, in the report, or on the span; no GPU-hour of a budget."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", LARGE)
    with af.budget("1 gpu_hours") as limit:
        with gpu.track("prepare") as run:
            clock.advance(100)
        assert (limit.spent, limit.reserved) == (0, 0)
    runtime.get().writer.flush()
    assert list(gpu_entries(runtime.get().ledger)) == []
    report = af.report(by="run")
    assert [(row.gpu_seconds, row.cost.amount) for row in report.rows] == [(0, Decimal("0.002666667"))]
    values = span_values(run.usage(), 0)
    assert (values[names.GPU_COUNT], values[names.GPU_ALLOCATED]) == (0, 0)
    assert (values[names.CPU_COUNT], values[names.CPU_SOURCE], values[names.CPU_MACHINE]) == (2, "machine", 2)
    assert values[names.CPU_ALLOCATED] == 200


def test_without_a_price_the_cost_is_unknown_and_the_time_is_counted(clock: FakeClock) -> None:
    """A laptop: nobody knows what its processors cost."""
    with gpu.track() as run:
        clock.advance(90)
    assert [(charge.quantities, charge.amount, charge.basis) for charge in rows()] == [
        ({"cpu_seconds": 180}, None, "unknown")
    ]
    assert (run.usage().cpu_s, run.usage().cost, run.usage().usd_per_hour) == (180, None, None)


def test_the_decorator_charges_them_too(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """`@track_cost(gpu="auto")` on a machine without GPUs, and `gpu="cpu"` on any."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", LARGE)

    @af.track_cost(gpu="auto", project="a")
    def first() -> None:
        clock.advance(36)

    @af.track_cost(gpu="cpu", project="b")
    def second() -> None:
        clock.advance(36)

    first()
    second()
    assert [(charge.tags["project"], charge.quantities["cpu_seconds"]) for charge in rows()] == [("a", 72), ("b", 72)]


def test_a_run_inside_of_another_pays_for_the_processors_and_they_are_paid_once(clock: FakeClock) -> None:
    """Like a device, they are paid for by the run that took them last."""
    with gpu.track("outer", run_id="outer", devices="cpu", price="0.05") as outer:
        clock.advance(10)
        with gpu.track("inner", run_id="inner", devices="cpu", price="0.05") as inner:
            clock.advance(20)
        clock.advance(5)
    assert (outer.usage().cpu_s, inner.usage().cpu_s) == (30, 40)
    assert sum(charge.quantities["cpu_seconds"] for charge in rows()) == 70


def test_a_price_that_was_given_is_that_of_a_gpu_unless_processors_were_asked_for(clock: FakeClock) -> None:
    """`price="2.49"` of a script that finds no GPU says nothing of a vCPU; with `devices="cpu"` it does. Neither does the price of a GPU."""
    runtime.init(ledger="memory", clock=clock, gpu_usd_per_hour="3.60")
    with gpu.track(price="2.49") as run:
        clock.advance(10)
    assert run.usage().cost is None
    with gpu.track(devices="cpu", price="0.36") as named:
        clock.advance(10)
    assert named.usage().cost == Decimal("0.002")
    with pytest.raises(ConfigurationError, match="price="), gpu.track(devices="cpu", price="much"):
        pytest.fail("it has begun")


def test_terms_and_places_have_their_prices(clock: FakeClock) -> None:
    """On demand and elsewhere from the list, spot where the list has it or on demand with low confidence, one's own by `cpu_owned`."""
    east = Place("aws", "us-east-1", "m5.large", "", "high")
    assert cpu_rate(east, at=AT).usd_per_hour == Decimal("0.048")
    spot = cpu_rate(Place("gcp", "us-central1", "e2-standard-4", "spot", "high"), at=AT)
    assert (spot.usd_per_hour, spot.term, spot.confidence) == (Decimal("0.020106"), "spot", "high")
    reserved = cpu_rate(Place("aws", "us-east-1", "m5.large", "reserved", "high"), at=AT)
    assert (reserved.usd_per_hour, reserved.term, reserved.confidence) == (Decimal("0.048"), "on_demand", "low")
    assert reserved.notes == ("no price for reserved in the list: the one on demand",)
    elsewhere = cpu_rate(Place("aws", "eu-west-1", "m5.large", "", "high"), at=AT)
    assert (elsewhere.usd_per_hour, elsewhere.confidence) == (Decimal("0.048"), "low")
    owned = {"capex": "8760", "cpus": 10, "years": 1, "source": "invoice 3", "as_of": "2026-11-01"}
    runtime.init(ledger="memory", clock=clock, cpu_owned=owned)
    mine = cpu_rate(Place(term="owned"), at=AT)
    assert (mine.usd_per_hour, mine.source, mine.term, mine.confidence) == (
        Decimal("0.1"),
        "invoice 3",
        "owned",
        "high",
    )
    assert cpu_rate(Place(), at=AT).usd_per_hour == Decimal("0.1")
    assert cpu_rate(east, at=AT).usd_per_hour == Decimal("0.048")
    with gpu.track() as run:
        clock.advance(36)
    assert run.usage().cost == Decimal("0.002")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"capex": 1, "years": 1}, "cpu_owned needs capex, cpus and years"),
        ({"capex": 1, "years": 1, "gpus": 8}, "cpu_owned needs capex, cpus and years"),
        ({"capex": 1, "years": 1, "cpus": 0}, "cpu_owned.cpus=0 must be a whole number of CPUs"),
        ({"capex": 1, "years": 0, "cpus": 1}, "cpu_owned.years=0"),
    ],
)
def test_a_wrong_table_of_own_machines_says_what_to_type(table: dict[str, Any], said: str) -> None:
    """The setting, the key and an example."""
    runtime.init(ledger="memory", cpu_owned=table)
    with pytest.raises(ConfigurationError, match=said):
        cpu_rate(Place(), at=AT)


def test_the_price_of_an_instance_with_accelerators_holds_its_processors(clock: FakeClock) -> None:
    """No price of their own, and why; an instance without any has one."""
    gpus = Place("aws", "us-east-1", "p5.48xlarge", "", "high")
    assert has_accelerators(gpus, at=AT)
    found = cpu_rate(gpus, at=AT)
    assert (found.usd_per_hour, found.notes) == (
        None,
        ("the processors of p5.48xlarge are in the price of its accelerators",),
    )
    assert not has_accelerators(Place("aws", "us-east-1", "m5.large"), at=AT)
    assert not has_accelerators(Place(), at=AT)


# --- budgets, steps, what is lost --------------------------------------------------------------------------------------------


def test_cpu_hours_end_a_run_at_a_step_below_the_limit(clock: FakeClock) -> None:
    """A tenth of a vCPU-hour is 180 s of two: the run is told in time, saves, and ends; nothing is posted twice, priced or not."""
    saved: list[int] = []
    with af.budget("0.1 cpu_hours") as limit:
        with (
            pytest.raises(RunStopped) as stopped,
            gpu.track(devices="cpu", allowance_s=5, checkpoint=lambda: saved.append(1)) as run,
        ):
            step_until_stopped(clock, run)
        assert stopped.value.step == run.steps
        assert limit.spent == sum(charge.quantities["cpu_seconds"] for charge in rows())
        assert limit.reserved == 0
    assert saved == [1]
    assert 165 <= run.steps <= 180


def test_hours_of_the_other_kind_that_are_used_up_stop_nobody(clock: FakeClock) -> None:
    """A quota in GPU-hours is no matter of a run on processors, and one in CPU-hours none of a run on GPUs."""
    with af.budget("0.01 gpu_hours") as gpus, af.budget("0.01 cpu_hours") as processors:
        with gpu.track(devices={"X": 1}, price="1", slice_s=36, allowance_s=0):
            clock.advance(36)
        assert (gpus.spent, gpus.remaining, processors.spent) == (36, 0, 0)
        with pytest.raises(BudgetExceeded), gpu.track(devices={"X": 1}, price="1"):
            pytest.fail("it has begun")
        with gpu.track(devices="cpu", price="1", slice_s=1, allowance_s=1) as second:
            while second.advance():
                clock.advance(1)
        assert gpus.spent == 36
        assert 30 <= processors.spent <= 36
        assert processors.spent == second.usage().cpu_s


def test_dollars_are_paid_in_advance_and_the_budget_has_what_the_ledger_has(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for processors, and they have a price: a limit in money holds for them like for GPUs."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", LARGE)
    with af.budget("$0.01") as limit:
        with gpu.track(allowance_s=5) as run:
            while run.advance():
                clock.advance(1)
        assert Decimal("0.0095") < limit.spent <= Decimal("0.01")
        assert limit.spent == sum(Decimal(charge.amount or 0) for charge in rows()) / 10**9
    assert isinstance(run.error, BudgetExceeded)


def test_processors_without_a_price_hold_up_a_run_only_where_they_were_asked_for(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A script is tried out on a laptop under a limit in dollars: it runs, and that is said once. Asked for by name, `unknown` decides."""
    monkeypatch.setattr(paying, "_left_out", paying._Once())
    with caplog.at_level(logging.WARNING, "aifinops.gpu"), af.budget("1 cpu_hours") as hours, af.budget("$1") as money:
        for _ in range(2):
            with gpu.track() as run:
                clock.advance(10)
        assert (hours.spent, money.spent) == (40, 0)
    assert run.error is None
    assert ["no price in USD" in record.getMessage() for record in caplog.records] == [True]
    with af.budget("$1"), pytest.raises(BudgetExceeded, match="CPU"), gpu.track(devices="cpu"):
        pytest.fail("it has begun")
    with af.budget("1 EUR"), gpu.track():
        clock.advance(10)


def test_a_killed_attempt_is_closed_by_the_next_one(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What its file says is charged as lost, as processors, at the price of that time."""
    runtime.init(ledger=tmp_path / "ledger.db", clock=clock)
    first = gpu.track("prepare", run_id="r", devices="cpu", price="0.36").start()
    clock.advance(75)
    first.step()
    clock.advance(5)
    first.beat()
    clock.advance(100)
    assert first._journal is not None
    path = first._journal.path
    said = json.loads(path.read_text(encoding="utf-8").splitlines()[0])["groups"][0]
    assert (said["meter"], said["held"]) == ("cpu_seconds", "2")
    seen = path.stat().st_mtime_ns
    path.write_text(
        path.read_text(encoding="utf-8").replace(f'"pid": {os.getpid()}', '"pid": 999999999'), encoding="utf-8"
    )
    os.utime(path, ns=(seen, seen))
    first.forget()
    from aifinops.gpu.keeper import open_runs

    open_runs.remove(first)
    with (
        caplog.at_level(logging.WARNING, "aifinops.gpu"),
        gpu.track("prepare", run_id="r", devices="cpu", price="0.36") as second,
    ):
        (lost,) = second.lost
    assert (lost.wasted_s, lost.wasted_usd) == (160, Decimal("0.016"))
    assert "160.0 vCPU-seconds" in caplog.text
    found = [(charge.quantities["cpu_seconds"], charge.tags.get("phase", "")) for charge in rows()]
    assert sum(seconds for seconds, _ in found) == 160
    assert found[-1][1] == "lost"
    assert {charge.service for charge in rows()} == {"cpu"}


def test_a_file_of_an_older_version_is_one_of_devices() -> None:
    """What says no meter held GPUs; that of GPUs has no key that an older version does not know."""
    group = Group("X", (), Decimal(2), "local", "X")
    assert "meter" not in group.to_json()
    assert Group.from_json(group.to_json()) == group
    held = Group("CPU", (), Decimal("1.5"), "local", "CPU", meter="cpu_seconds", implied=True)
    assert Group.from_json(json.loads(json.dumps(held.to_json()))) == held


# --- how many ----------------------------------------------------------------------------------------------------------------


def test_ranks_of_one_machine_pay_for_all_of_it_once(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks on two processors: thirds of a thousandth are the first one's, and each has charges of its own."""
    for local in range(3):
        for name, value in (("RANK", local), ("LOCAL_RANK", local), ("WORLD_SIZE", 3), ("LOCAL_WORLD_SIZE", 3)):
            monkeypatch.setenv(name, str(value))
        began = clock.time_ns()
        with gpu.track(run_id="r") as run:
            clock.advance(1)
        assert run.usage().cpu_s == (Decimal("0.668") if local == 0 else Decimal("0.666"))
        assert clock.time_ns() - began == 10**9
    assert sorted(charge.tags["rank"] for charge in rows()) == ["0", "1", "2"]
    assert sum(Decimal(charge.quantities["cpu_seconds"]) for charge in rows()) == 2


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (Rank(), Decimal(8)),
        (Rank(0, 4, 0, 4, alone=False), Decimal(2)),
        (Rank(5, 8, 0, 1, alone=False), Decimal(8)),
        (Rank(0, 0, 0, 0, alone=False), Decimal(8)),
        (Rank(1, 0, 1, 0, alone=False), None),
    ],
)
def test_the_part_of_a_rank(where: Rank, count: Decimal | None) -> None:
    """Equal parts of a machine; all of it where it is alone there; where nobody says how many there are, the first has all."""
    found = cpus.part_of(Cpus(Decimal(8), "machine", 8), where)
    assert (None if found is None else found.count) == count


def _files(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "proc", root / "cgroup"


@pytest.mark.parametrize(
    ("files", "bound", "expected"),
    [
        ({}, 16, Cpus(Decimal(16), "machine", 16)),
        ({}, 0, Cpus(Decimal(16), "machine", 16)),
        ({}, 4, Cpus(Decimal(4), "affinity", 16)),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 16, Cpus(Decimal("1.5"), "cgroup", 16)),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, 16, Cpus(Decimal(16), "machine", 16)),
        (
            {
                "proc/self/cgroup": "0::/pods/one\n",
                "cgroup/pods/one/cpu.max": "800000 100000",
                "cgroup/pods/cpu.max": "200000 100000",
            },
            4,
            Cpus(Decimal(2), "cgroup", 16),
        ),
        (
            {"proc/self/cgroup": "0::/of/the/host\n", "cgroup/cpu.max": "300000 100000"},
            16,
            Cpus(Decimal(3), "cgroup", 16),
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n3:cpu,cpuacct:/x\n0::/\n",
                "cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n",
                "cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            16,
            Cpus(Decimal("0.5"), "cgroup", 16),
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
            Cpus(Decimal(16), "machine", 16),
        ),
        ({"proc/self/cgroup": "garbage\n0::/\n", "cgroup/cpu.max": "0 0\n"}, 16, Cpus(Decimal(16), "machine", 16)),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "6400000 100000"}, 16, Cpus(Decimal(16), "machine", 16)),
    ],
)
def test_quota_and_binding_leave_a_part_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], bound: int, expected: Cpus
) -> None:
    """Both hierarchies of cgroups, limits of groups around, paths of the host, and the processors that the process is bound to."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)), raising=False)
    assert cpus.processors(*_files(tmp_path, files)) == expected


def test_nobody_says_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then one is charged, since one there is, and the whole is unknown."""
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(), raising=False)
    assert cpus.processors(*_files(tmp_path, {})) == Cpus(Decimal(1), "", None)


def test_this_machine_has_some() -> None:
    """The real files of this system: at least a thousandth of a processor and no more than there are."""
    found = cpus.processors()
    assert found.source in {"cgroup", "affinity", "machine"}
    assert found.machine is not None
    assert 0 < found.count <= found.machine


def test_ranks_add_up(clock: FakeClock) -> None:
    """The total of several ranks has the processors and vCPU-seconds of all."""
    used = []
    for number in range(2):
        with gpu.track(run_id=f"r{number}", devices="cpu", price="0.36") as run:
            clock.advance(10)
        used.append(run.usage())
    both = total(used)
    assert (both.cpu_s, both.cost, both.cpus) == (40, Decimal("0.004"), Cpus(Decimal(4), "machine"))


def test_an_old_price_is_said_without_naming_a_setting_that_is_for_gpus(caplog: pytest.LogCaptureFixture) -> None:
    """Once a process, with what can be done about it."""
    runtime.init(ledger="memory")
    rates._told.prices.clear()
    with caplog.at_level(logging.WARNING, "aifinops"):
        found = cpu_rate(Place("azure", "eastus", "Standard_D4s_v5", "", "high"), at=AT)
    assert found.stale
    (text,) = [record.getMessage() for record in caplog.records]
    assert text.endswith("days ago (karpenter-provider-azure); set a price list of your own")


def test_what_is_no_device_says_what_to_type(clock: FakeClock) -> None:
    """The name for processors is among what can be typed; a server of models has no use for it."""
    with pytest.raises(ConfigurationError, match='"cpu"'), gpu.track(devices="cpus"):
        pytest.fail("it has begun")
    with pytest.raises(ConfigurationError, match="gpu='cpu' must be"):
        billing.find_devices("cpu", Rank())
