"""What is left of a run that was killed, and the attempt that closes it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

import aifinops as af
from aifinops import gpu, runtime
from aifinops.charges import Charge
from aifinops.gpu import journal
from aifinops.ledger import open_ledger
from aifinops.testing.clock import FakeClock

DEVICE = {"devices": {"X": 2}, "price": "3.60"}
_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def rows(path: Path) -> list[Charge]:
    with closing(open_ledger(path)) as ledger:
        return sorted(ledger.rows(), key=lambda charge: charge.at)


def of_another_process(path: Path) -> None:
    """One that is gone."""
    text = path.read_text(encoding="utf-8").replace(f'"pid": {os.getpid()}', '"pid": 999999999')
    seen = path.stat().st_mtime_ns
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(seen, seen))


def killed(run: gpu.Run) -> None:
    """As SIGKILL leaves it: nothing is closed, and the process of the file is gone."""
    found = run._journal
    assert found is not None
    of_another_process(found.path)
    run.forget()
    from aifinops.gpu.keeper import open_runs

    open_runs.remove(run)


def test_the_next_attempt_charges_what_the_killed_one_held_to_its_last_sign_of_life(tmp_path: Path) -> None:
    """One minute is in the ledger; of the seconds after it the heartbeat knows, and the next attempt writes them down as lost, once."""
    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, clock=clock)
    with af.tags(team="nlp"):
        first = gpu.track("train", run_id="r", **DEVICE).start()
    for _ in range(75):
        clock.advance(1)
        first.step()
    clock.advance(5)
    first.beat()
    clock.advance(4)  # of which nobody knows
    killed(first)
    clock.advance(600)
    with gpu.track("train", run_id="r", **DEVICE) as second:
        (lost,) = second.lost
        assert (lost.attempt, lost.steps, lost.checkpoint, second.attempt) == (1, 60, None, 2)
        assert (lost.wasted_s, lost.wasted_usd) == (160, Decimal("0.16"))
    found = rows(ledger)
    assert [charge.quantities["gpu_seconds"] for charge in found] == [120, 40]
    assert (found[1].status, found[1].error) == ("error", "Lost")
    assert [charge.raw["gpu"]["name"] for charge in found if charge.raw is not None] == ["train", "train"]
    assert found[1].tags == {"team": "nlp", "run": "r", "attempt": "1", "phase": "lost"}
    assert found[1].amount == 40_000_000
    assert second._journal is not None
    of_another_process(second._journal.path)
    with gpu.track("train", run_id="r", **DEVICE) as third:
        assert third.lost == []
        assert third.attempt == 3
    assert len(rows(ledger)) == 2


def test_a_checkpoint_makes_what_came_before_it_safe(tmp_path: Path) -> None:
    """Wasted is what comes after the last one, over the charge of a minute and the rest."""
    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, clock=clock)
    first = gpu.track(run_id="r", **DEVICE).start()
    for _ in range(50):
        clock.advance(1)
        first.step()
    with first.checkpoint():
        clock.advance(2)
    for _ in range(20):
        clock.advance(1)
        first.step()
    assert first.usage().wasted_s == 40
    first.beat()
    killed(first)
    with gpu.track(run_id="r", **DEVICE) as second:
        assert second.lost[0].wasted_s == 40
        assert second.lost[0].wasted_usd == Decimal("0.04")


def test_runs_that_nobody_comes_back_for_are_closed_by_the_next_one_of_any_name(tmp_path: Path) -> None:
    """A run without a name of its own has no next attempt."""
    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, clock=clock)
    first = gpu.track(**DEVICE).start()
    clock.advance(9)
    first.beat()
    killed(first)
    with gpu.track("other", **DEVICE) as other:
        assert other.lost == []
    assert [charge.quantities["gpu_seconds"] for charge in rows(ledger)] == [18]


def test_a_run_that_ended_leaves_its_number_and_one_without_a_name_leaves_nothing(tmp_path: Path) -> None:
    """Files do not pile up."""
    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, clock=clock)
    for number in (1, 2, 3):
        for _ in range(2):  # two blocks of one process are one attempt
            with gpu.track(run_id="r", **DEVICE) as run:
                clock.advance(1)
                assert run.attempt == number
        assert run._journal is not None
        of_another_process(run._journal.path)
    with gpu.track(**DEVICE):
        clock.advance(1)
    assert len(list((tmp_path / "ledger.db.runs").iterdir())) == 1


def test_a_living_process_of_the_same_run_is_no_lost_one(tmp_path: Path) -> None:
    """Two processes of one run share the attempt; so their charges for the same device and window are one in the ledger."""
    from aifinops.gpu.devices import Device

    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, clock=clock)
    shared = {"devices": [Device(0, "GPU-a", "X")], "price": "3.60"}
    first = gpu.track(run_id="r", **shared).start()
    folder = journal.folder_beside(ledger)
    assert list(journal.lost_attempts(folder, "r", 0, clock.time_ns())) == []
    assert journal.next_attempt(folder, "r", 0) == 1
    clock.advance(10)
    first.close()
    again = gpu.Run("", run_id="r", **shared).start()
    again._meter._key = first._meter._key  # as in another process
    clock.advance(10)
    again.close()
    assert [charge.quantities["gpu_seconds"] for charge in rows(ledger)] == [10]


def test_of_a_process_on_another_machine_its_heartbeat_tells(tmp_path: Path) -> None:
    """A shared disk: a fresh heartbeat is a living process, an old one is not."""
    folder = tmp_path / "runs"
    now = time.time_ns()
    made = journal.Journal(folder, "r", 0, 1, now, groups=[], tags={})
    made.abandon()
    text = made.path.read_text(encoding="utf-8").replace(socket.gethostname(), "elsewhere")
    made.path.write_text(text, encoding="utf-8")
    assert list(journal.lost_attempts(folder, "r", 0, now)) == []
    assert journal.next_attempt(folder, "r", 0) == 1
    os.utime(made.path, ns=(now - 60 * 10**9, now - 60 * 10**9))
    assert journal.next_attempt(folder, "r", 0) == 2
    (lost,) = journal.lost_attempts(folder, "r", 0, now)
    assert lost.run == "r"
    assert list(journal.lost_attempts(folder, "r", 0, now)) == []


def test_what_somebody_closes_is_his_alone_and_keeps_its_number(tmp_path: Path) -> None:
    """Ranks that begin at once find the same file: one deals with it, and none of them takes the run for a first attempt meanwhile."""
    folder, now = tmp_path / "runs", time.time_ns()
    made = journal.Journal(folder, "r", 1, 1, now, groups=[], tags={})
    made.abandon()
    of_another_process(made.path)
    closing = journal.lost_attempts(folder, "r", 0, now)
    assert next(closing).rank == 1
    assert list(journal.lost_attempts(folder, "r", 1, now)) == []
    assert journal.next_attempt(folder, "r", 1) == 2
    assert list(closing) == []
    assert journal.next_attempt(folder, "r", 1) == 2
    assert list(journal.lost_attempts(folder, "other", 0, now)) == []


def test_whoever_dies_while_he_closes_leaves_it_to_the_next(tmp_path: Path) -> None:
    """His mark is good for half a minute."""
    folder, now = tmp_path / "runs", time.time_ns()
    made = journal.Journal(folder, "r", 0, 1, now, groups=[], tags={})
    made.abandon()
    of_another_process(made.path)
    mark = made.path.with_suffix(".taken")
    mark.touch()
    assert list(journal.lost_attempts(folder, "r", 0, now)) == []
    os.utime(mark, ns=(now - 60 * 10**9, now - 60 * 10**9))
    assert len(list(journal.lost_attempts(folder, "r", 0, now))) == 1
    assert not mark.exists()


def test_a_file_that_is_none_of_ours_is_left_alone(tmp_path: Path) -> None:
    """Whatever lies in the folder, a run begins."""
    (tmp_path / "x~0~1.jsonl").write_text("{", encoding="utf-8")
    (tmp_path / "y~0~1.jsonl").write_text("", encoding="utf-8")
    assert list(journal.lost_attempts(tmp_path, "r", 0, 1)) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_a_line_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    """A process may die in the middle of a line; the rest of its file is read."""
    folder = tmp_path / "runs"
    made = journal.Journal(folder, "r", 0, 1, 10**18, groups=[], tags={})
    made.note(10**18 + 5, checkpoint=10**18 + 5, step=7)
    made.abandon()
    text = made.path.read_text(encoding="utf-8").replace(f'"pid": {os.getpid()}', '"pid": 999999999')
    made.path.write_text(text + '{"checkpoint": 99', encoding="utf-8")
    (lost,) = journal.lost_attempts(folder, "r", 0, 2 * 10**18)
    assert (lost.checkpoint, lost.steps) == (10**18 + 5, 7)


def test_a_forked_child_leaves_the_run_to_its_parent(tmp_path: Path) -> None:
    """What a child does with the block that it has a copy of is paid for once, by the parent."""
    ledger = tmp_path / "ledger.db"
    runtime.init(ledger=ledger)
    with gpu.track(run_id="r", **DEVICE) as run:
        child = os.fork()
        if child == 0:
            run.step()
            run.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert journal.next_attempt(journal.folder_beside(ledger), "r", 0) == 1
    assert len(rows(ledger)) == 1


_LOOP = """
import sys, time
import aifinops as af
from aifinops import gpu
from aifinops.gpu import billing
billing.WINDOW_NS = 10**9  # a minute in a second
gpu_keeper = __import__("aifinops.gpu.keeper", fromlist=["x"])
gpu_keeper.BEAT_S = 0.1
with gpu.track("train", devices={"X": 2}, price="3.60", total_steps=10**6) as run:
    while True:
        time.sleep(0.01)
        run.step()
        if run.steps == 100:
            with run.checkpoint():
                pass
            print("saved", flush=True)
"""


def test_kill_9_loses_at_most_a_moment_and_the_resumed_run_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, a real SIGKILL: what it held is in the ledger but for the last beat, and its successor says what was wasted."""
    ledger = tmp_path / "ledger.db"
    environment = {**os.environ, "AIFINOPS_LEDGER": str(ledger), "AIFINOPS_RUN_ID": "job-1"}
    began = time.time()
    process = subprocess.Popen([sys.executable, "-c", _LOOP], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"saved\n"
    time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    ended = time.time()
    charged = sum(row.quantities["gpu_seconds"] for row in rows(ledger))
    assert charged > 2  # already there
    monkeypatch.setenv("AIFINOPS_RUN_ID", "job-1")
    runtime.init(ledger=ledger)
    with gpu.track("train", **DEVICE) as resumed:
        assert resumed.attempt == 2
        (lost,) = resumed.lost
        assert lost.checkpoint is not None
        assert 4 <= lost.wasted_s <= Decimal(repr(2 * (ended - began)))
        in_all = sum(row.quantities["gpu_seconds"] for row in rows(ledger) if row.tags["attempt"] == "1")
    held = Decimal(repr(2 * (lost.last_seen / 1e9 - lost.started / 1e9)))
    assert abs(in_all - held) < Decimal("0.001")
    assert ended - lost.last_seen / 1e9 < 2
    assert [row.error for row in rows(ledger) if row.tags.get("phase") == "lost"] == (["Lost"] if lost.rest_ns else [])


def test_what_a_killed_run_held_of_its_budget_is_settled_by_the_next_attempt(tmp_path: Path) -> None:
    """Not a slice and the allowance count as spent, but what was held of the devices: the budget has what the ledger has, and nothing is held."""
    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, store=tmp_path / "budgets.db", clock=clock)
    limit = af.budget("$100", name="lab")
    with limit:
        first = gpu.track("train", run_id="r", **DEVICE).start()
        for _ in range(75):
            clock.advance(1)
            first.step()
        first.beat()
        clock.advance(4)  # of which nobody knows
        assert limit.reserved > Decimal("0.06")
        killed(first)
        clock.advance(5)
        with gpu.track("train", run_id="r", **DEVICE) as second:
            assert second.lost[0].holds
            clock.advance(10)
    runtime.get().writer.flush()
    assert limit.reserved == 0
    assert limit.spent == Decimal("0.150") + Decimal("0.020")
    assert limit.spent == sum(Decimal(charge.amount or 0) for charge in rows(ledger)) / 10**9
    assert not list((tmp_path / "ledger.db.runs").glob("*.held"))


def test_a_lease_that_ran_out_meanwhile_is_corrected(tmp_path: Path) -> None:
    """An hour later all that was held counts as spent, until the next attempt knows better; by then it may be another block of the same budget."""
    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, store=tmp_path / "budgets.db", clock=clock)
    with af.budget("$100", name="lab") as limit:
        first = gpu.track("train", run_id="r", **DEVICE).start()
        for _ in range(20):
            clock.advance(1)
            first.step()
        first.beat()
        killed(first)
        clock.advance(minutes=20)
        assert limit.spent > Decimal("0.08")  # what it held, for lack of better knowledge
    with af.budget("$100", name="lab") as limit:
        with gpu.track("train", run_id="r", **DEVICE):
            clock.advance(10)
        assert (limit.spent, limit.reserved) == (Decimal("0.040") + Decimal("0.020"), 0)


def test_a_kill_in_the_middle_of_paying_leaves_it_to_the_lease(tmp_path: Path) -> None:
    """Whether the slice was paid is not known then: nothing is settled, and nothing is counted twice."""
    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, store=tmp_path / "budgets.db", clock=clock)
    with af.budget("$100", name="lab") as limit:
        first = gpu.track("train", run_id="r", **DEVICE).start()
        clock.advance(3)
        first.beat()
        assert first._journal is not None
        (held,) = first._journal._holds
        first._journal.changing(held)
        reserved = limit.reserved
        killed(first)
        with gpu.track("train", run_id="r", **DEVICE) as second:
            assert second.lost[0].holds == {held: None}
        assert (limit.spent, limit.reserved) == (0, reserved)
        clock.advance(hours=1)
        assert limit.spent == reserved


def test_a_run_without_room_leaves_no_file(tmp_path: Path) -> None:
    """Nothing has begun."""
    runtime.init(ledger=tmp_path / "ledger.db", store=tmp_path / "budgets.db", clock=FakeClock())
    with af.budget("$0.0001", name="lab"), pytest.raises(af.BudgetExceeded):
        gpu.track("train", run_id="r", **DEVICE).start()
    assert list((tmp_path / "ledger.db.runs").iterdir()) == []


def test_a_payment_is_a_sign_of_life(tmp_path: Path) -> None:
    """Killed right after it has paid a slice, before its thread has shown that it lives: what is paid is in the ledger, too."""
    ledger, clock = tmp_path / "ledger.db", FakeClock()
    runtime.init(ledger=ledger, store=tmp_path / "budgets.db", clock=clock)
    with af.budget("$100", name="lab") as limit:
        first = gpu.track("train", run_id="r", slice_s=1, **DEVICE).start()
        for _ in range(20):
            clock.advance(1)
            first.step()
        killed(first)
        with gpu.track("train", run_id="r", **DEVICE):
            pass
        runtime.get().writer.flush()
        assert limit.spent == sum(Decimal(charge.amount or 0) for charge in rows(ledger)) / 10**9 > Decimal("0.03")
