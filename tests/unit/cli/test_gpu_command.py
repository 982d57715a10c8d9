"""`aifinops gpu`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import aifinops as af
from aifinops import gpu, runtime
from aifinops.budgets.stores.base import Node, Read, Take
from aifinops.charges import Charge, new_id
from aifinops.gpu.board import Board
from aifinops.gpu.quota import read_quotas
from aifinops.gpu.slots import slot
from aifinops.ledger import open_ledger
from aifinops.testing import FakeClock

Run = Callable[..., tuple[int, str, str]]
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR = 3600
QUOTAS = """
name = "lab"
[pools.h100]
gpus = 8
accelerator = "H100 SXM"
[teams.nlp]
cohort = "c"
h100 = 4
[teams.vision]
cohort = "c"
h100 = 4
"""


class Lab:
    """A ledger, a store and quotas on disk, at a moment that stands still."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(NOW)
        self.ledger, self.store, self.quotas = folder / "ledger.db", folder / "budgets.db", folder / "quotas.toml"
        self.quotas.write_text(QUOTAS)
        af.init(ledger=str(self.ledger), gpu_quotas=str(self.quotas), gpu_usd_per_hour="3.60", clock=self.clock)

    def charge(
        self, team: str, minutes_ago: int, gpu_s: int, amount: int | None, busy_s: float | None, **gpu: Any
    ) -> None:
        at = self.clock.time_ns() - minutes_ago * 60 * 10**9
        facts = {
            "model": "NVIDIA H100 80GB HBM3",
            "uuids": ["GPU-1"],
            **gpu,
            **({} if busy_s is None else {"busy_s": busy_s}),
        }
        charge = Charge(
            new_id(), at, provider="local", operation="gpu", model="H100 SXM", quantities={"gpu_seconds": gpu_s}, amount=amount,
            basis="unknown" if amount is None else "priced", service="gpu", duration=60 * 10**9,
            tags={"team": team, "run": f"run-{team}"}, raw={"gpu": facts},
        )  # fmt: skip
        ledger = open_ledger(str(self.ledger))
        ledger.append(charge)
        ledger.close()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path)
    monkeypatch.setenv("AIFINOPS_LEDGER", str(made.ledger))
    return made


def reserved(lab: Lab) -> int:
    """GPUs of the pool that the store counts as taken."""
    [balance] = runtime.get().store_at(str(lab.store)).run(Read((Node("gpu/lab/h100", 0, "gpus", None),)))
    return balance.reserved // 10**9


@pytest.fixture
def run(run: Run, lab: Lab) -> Run:
    """Type `aifinops gpu` and what follows: (exit status, standard output, standard error)."""
    return partial(run, "gpu")


def test_nobody(run: Run) -> None:
    """Where nobody holds anything each command says so, and makes no file."""
    status, out, _ = run("top", "--watch", "0")
    assert (status, out) == (
        0,
        "Nobody holds a GPU here: no slot, no run in the last minutes, no device that a driver knows.\n",
    )
    assert run("idle")[1] == "No GPU time in this ledger since 24h.\n"


def test_top(run: Run, lab: Lab) -> None:
    """Slots with their price and whoever waits, and the runs that made a charge in the last minutes."""
    lab.charge("nlp", 1, 480, 480_000_000, 120.0)
    lab.charge("old", 30, 480, 480_000_000, 480.0)
    with slot(team="nlp", gpus=8, quotas=str(lab.quotas), store=str(lab.store), lease_s=10**6, name="finetune") as held:
        held.measured(30.0, 120.0)
        held._beat()
        lab.clock.advance(1800)
        board = Board(runtime.get().store_at(str(lab.store)), read_quotas(lab.quotas), lab.clock)
        from aifinops.gpu.board import Entry

        board.wait(Entry.new("vision", "h100", 4, 100, board.now, 10**6, "eval"))
        board.ask(board.view().plan(board.quotas))
        status, out, _ = run("top", "--watch", "0", "--store", str(lab.store))
        assert status == 0
        first, *rows = (line.split() for line in out.splitlines() if line.strip())
        assert first[:2] == ["team", "pool"]
        assert rows[0][:8] == ["nlp", "h100", "8", "30", "min", "25%", "$3.60", "$14.40"]
        assert rows[0][8:11] == ["asked", "to", "yield"]
        assert rows[1][:6] == ["vision", "h100", "4", "0", "s", "waits"]
        assert "run-nlp" not in out  # half an hour later its charge is old
        facts = json.loads(run("top", "--watch", "0", "--store", str(lab.store), "--json")[1])
        assert (facts["slots"][0]["cost_usd"], facts["slots"][0]["asked_to_yield"]) == ("14.4", True)
        assert facts["waiting"][0]["cost_usd"] is None
        assert facts["devices"] == []


def test_top_has_the_runs_of_the_last_minutes(run: Run, lab: Lab) -> None:
    """A run without a slot is seen by its charges; one that made none for three minutes is over."""
    lab.charge("nlp", 1, 480, 480_000_000, 120.0, name="finetune llama")
    lab.charge("old", 30, 480, 480_000_000, 480.0, name="ancient")
    lab.charge("dark", 1, 480, 480_000_000, None)
    out = run("top", "--watch", "0")[1]
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["finetune"][:4] == ["finetune", "llama", "nlp", "run-nlp"]
    assert "run-old" not in out
    assert "ancient" not in out
    facts = {row["run"]: row["name"] for row in json.loads(run("top", "--watch", "0", "--json")[1])["runs"]}
    assert facts == {"run-nlp": "finetune llama", "run-dark": None}


def test_top_has_the_name_of_a_run_that_holds_devices(run: Run, lab: Lab) -> None:
    """It comes with the charges of the run itself."""
    with gpu.track("finetune", team="nlp", devices={"NVIDIA H100 80GB HBM3": 2}):
        lab.clock.advance(90)
    with gpu.track(devices={"NVIDIA H100 80GB HBM3": 2}):
        lab.clock.advance(30)
    runtime.get().writer.flush()
    names = [row["name"] for row in json.loads(run("top", "--watch", "0", "--json")[1])["runs"]]
    assert sorted(names, key=str) == [None, "finetune"]


def test_idle(run: Run, lab: Lab) -> None:
    """Held, busy and idle hours and dollars of each team; what nobody measured or priced is unknown, never zero."""
    lab.charge("nlp", 60, 8 * HOUR, 28_800_000_000, 2.0 * HOUR)
    lab.charge("nlp", 50, 2 * HOUR, 7_200_000_000, None)
    lab.charge("vision", 40, 4 * HOUR, None, 4.0 * HOUR)
    lab.charge("dark", 30, HOUR, 3_600_000_000, None)
    lab.charge("old", 60 * 48, HOUR, 3_600_000_000, 0.0)
    status, out, _ = run("idle", "--ledger", str(lab.ledger))
    assert status == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows["nlp"][-5:] == ["10.00", "25%", "6.00", "$36.00", "$21.60"]
    assert rows["vision"][-5:] == ["4.00", "100%", "0.00", "unknown", "unknown"]
    assert rows["dark"][-5:] == ["1.00", "unknown", "unknown", "$3.60", "unknown"]
    assert "old" not in rows
    assert "4.00 GPU-h have no price and are in no cost above" in out
    facts = {row["team"]: row for row in json.loads(run("idle", "--json")[1])}
    assert facts["nlp"]["idle_cost_usd"] == "21.6"
    assert facts["nlp"]["unmeasured_gpu_hours"] == "2"
    assert facts["dark"]["busy_gpu_hours"] is None
    assert facts["vision"]["cost_usd"] is None
    assert [row["day"] for row in json.loads(run("idle", "--by", "day", "--since", "7d", "--json")[1])] == ["2026-11-30", "2026-11-28"]  # fmt: skip


def test_quota(run: Run, lab: Lab) -> None:
    """How each team stands in each pool."""
    with slot(team="nlp", gpus=6, quotas=str(lab.quotas), store=str(lab.store), lease_s=10**6):
        status, out, _ = run("quota", "--store", str(lab.store))
        assert status == 0
        rows = [line.split() for line in out.splitlines()]
        assert rows[1][:7] == ["h100", "nlp", "4", "6", "2", "2", "8"]
        assert rows[2][:6] == ["h100", "vision", "4", "0", "2", "8"]
        [nlp, vision] = json.loads(run("quota", "--store", str(lab.store), "--json")[1])
        assert (nlp["held"], nlp["borrowed"], vision["available"], vision["nominal"]) == (6, 2, 2, 4)


def test_a_slot_is_freed_by_hand_when_its_process_is_gone(run: Run, lab: Lab) -> None:
    """Never while it is alive, but for `--force`; also where the team is no longer in the file, where nobody else would give it back."""
    where = ("--store", str(lab.store))
    with slot(team="nlp", gpus=6, quotas=str(lab.quotas), store=str(lab.store), lease_s=100) as held:
        status, _, err = run("quota", "free", held.id, *where)
        assert status == 2
        assert "is alive" in err
        assert "--force" in err
        assert reserved(lab) == 6
        lab.clock.advance(101)
        lab.quotas.write_text(QUOTAS.replace("teams.nlp", "teams.speech"))
        out = run("quota", *where)[1]
        assert f"slot {held.id} of team nlp, 6 GPUs of h100: no sign of life for 101 s" in out
        assert run("quota", "free", held.id, *where)[1] == f"Freed slot {held.id} of team nlp: 6 GPUs of h100.\n"
        assert reserved(lab) == 0
        assert held.id not in run("quota", *where)[1]
        held._beat()
        assert held.lost
    status, _, err = run("quota", "free", held.id, *where)
    assert status == 2
    assert "no slot" in err


def test_a_slot_whose_note_is_lost_is_freed_by_the_id_that_was_logged(
    run: Run, lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """The reservation alone is left: `quota` says that there is one, and the id of the log frees it, and no other."""
    where = ("--store", str(lab.store))
    caplog.set_level("INFO", "aifinops.gpu")
    mine = {"quotas": str(lab.quotas), "store": str(lab.store), "lease_s": 10**6}
    with slot(team="nlp", gpus=2, **mine) as held, slot(team="vision", gpus=3, **mine):
        assert "reserved for" not in run("quota", *where)[1]
        store = runtime.get().store_at(str(lab.store))
        with held._lock:  # its process is gone: it renews nothing any more
            held._left = True
        assert store.run(Take(f"gpu/lab/hold/{held.id}", lab.clock.time_ns())) is not None
        assert "2 GPUs of h100 are reserved for team nlp by a slot of which nothing is known" in run("quota", *where)[1]
        assert f"slot {held.id}: team 'nlp' holds 2 GPUs of h100" in caplog.text
        assert run("quota", "free", held.id, *where)[1] == f"Freed slot {held.id}.\n"
        assert reserved(lab) == 3
        assert "reserved for" not in run("quota", *where)[1]


def test_a_living_slot_is_taken_by_force_only(run: Run, lab: Lab) -> None:
    """Its process learns that it is lost, and is asked to leave."""
    with slot(team="nlp", gpus=2, quotas=str(lab.quotas), store=str(lab.store), lease_s=10**6) as held:
        assert run("quota", "free", held.id, "--store", str(lab.store), "--force")[0] == 0
        assert reserved(lab) == 0
        held._beat()
        assert held.lost
        assert held.should_yield()
    assert reserved(lab) == 0


def test_check_and_export(run: Run, lab: Lab, tmp_path: Path) -> None:
    """A file is checked and written as what clusters read; a mistake has the status of wrong input."""
    assert run("quota", "check", str(lab.quotas))[1] == "h100: 8 GPUs, 8 of teams, 0 shared, 0 nobody's\n"
    for form, word in {"kueue": "ClusterQueue", "k8s": "ResourceQuota", "slurm": "sacctmgr"}.items():
        status, out, _ = run("quota", "export", "--format", form)
        assert status == 0
        assert word in out
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[pools.h100]\ngpus = 1\n[teams.nlp]\nh100 = 2\n")
    status, _, err = run("quota", "check", str(wrong))
    assert status == 2
    assert "promised are nlp 2" in err


def test_without_quotas(run: Run, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """`top` works without a quota file; `quota` says how to name one."""
    af.init(ledger="memory")
    assert run("top", "--watch", "0")[0] == 0
    status, _, err = run("quota")
    assert status == 2
    assert "AIFINOPS_GPU_QUOTAS" in err
    status, _, err = run("quota", "--quotas", str(lab.quotas), "--store", "memory")
    assert status == 2
    assert "slots in memory are seen by their own process only" in err
