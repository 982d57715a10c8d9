"""A collector that is down: nothing is lost, and everything arrives once after de-duplication (`outage.py` has the ten minutes)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fcntl")

OUTAGE = Path(__file__).with_name("outage.py")


def load() -> Any:
    spec = importlib.util.spec_from_file_location("outage", OUTAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["outage"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("receiver", ["plain", "oteltap", "rotel"])
def test_every_charge_arrives_whatever_the_collector_does(receiver: str, tmp_path: Path) -> None:
    """It refuses, answers 503, resets, dies before it answers, hangs; workers are killed: all that `put` returned for is there, equal."""
    if receiver != "plain":
        pytest.importorskip(receiver)
    found = tmp_path / "verdict.json"
    subprocess.run(
        [sys.executable, OUTAGE, "--receiver", receiver, "--charges", "3000", "--workers", "2", "--kills", "2", "--json", found],
        check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    verdict = json.loads(found.read_text(encoding="utf-8"))
    assert verdict["holds"], verdict
    assert (verdict["billed"], verdict["kills"]) == (3000, 2)
    assert verdict["arrived"] - verdict["again"] == 3000
    assert {"503", "reset", "die", "hang", "open"} <= verdict["troubles"].keys()


def test_the_judge_sees_what_is_missing_and_what_is_wrong() -> None:
    """One charge that never came, one that was changed, one that nobody put, one twice."""
    outage = load()
    charges = [outage.charge_of(0, number) for number in range(5)]
    changed = outage.charge_of(0, 1)
    object.__setattr__(changed, "amount", changed.amount + 1)

    class Behind:
        def charges(self) -> Any:
            return iter([charges[0], changed, charges[3], charges[3], outage.charge_of(7, 0)])

    verdict = outage.Verdict("x", 4, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)
    outage._judge(verdict, Behind(), [4])
    assert (verdict.arrived, verdict.missing, verdict.wrong, verdict.again) == (5, 1, 2, 1)
    assert not verdict.holds


FULL = """
import resource, sys
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.spool import Spooled
from aifinops.ledger.writer import Writer
from aifinops.testing.ledger import example_charge

target = MemoryLedger()
now = [0]
writer = Writer(Spooled(target, sys.argv[1], thread=False), monotonic_ns=lambda: now[0])
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
for number in range(50):
    writer.write(example_charge(number))
assert (writer.pending, writer.dropped) == (50, 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
now[0] += 2 * 10**9
writer.write(example_charge(50))
assert writer.pending == 0
assert writer.flush(10)
assert [charge.response_id for charge in target.rows()] == [f"chatcmpl-{number}" for number in range(51)]
writer.close()
"""


def test_a_full_disk_costs_nothing_when_there_is_room_again(tmp_path: Path) -> None:
    """Charges wait in memory while the spool cannot be written, and arrive in order afterwards."""
    subprocess.run([sys.executable, "-c", FULL, tmp_path / "spool"], check=True, timeout=60, stderr=subprocess.DEVNULL)
