"""What survives when the process is killed or the disk is full."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from aifinops.ledger import open_ledger

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")

APPEND = """
import sys
from aifinops.ledger import open_ledger
from aifinops.testing.ledger import example_charge
ledger = open_ledger(sys.argv[1])
number = int(sys.argv[2])
while True:
    charge = example_charge(number)
    getattr(ledger, sys.argv[3])(charge)
    sys.stdout.write(charge.id + "\\n")
    sys.stdout.flush()
    number += 1
"""


def _killed_after(path: Path, first: int, entries: int, way: str) -> list[str]:
    """Run the appending process, kill it after it has told of so many entries; every id that it has told."""
    command = [sys.executable, "-c", APPEND, str(path), str(first), way]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(entries)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.readlines()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    return [line.decode().strip() for line in told if line.endswith(b"\n")]


@POSIX
@pytest.mark.parametrize("way", ["append", "enqueue"])
def test_sigkill_loses_nothing_that_has_returned(way: str, tmp_path: Path) -> None:
    """Killed at random moments, four times in a row: every entry told of is there, and the file is sound."""
    path = tmp_path / "l.db"
    told: list[str] = []
    for turn in range(4):
        told += _killed_after(path, turn * 1_000_000, random.randrange(1, 1200), way)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger = open_ledger(path)
    kept = {charge.id for charge in ledger.rows()}
    assert set(told) <= kept
    assert len(kept) <= len(told) + 4  # at most the one entry of each turn that was written but not told
    ledger.close()


FULL = """
import resource, sys
from aifinops.errors import StoreError
from aifinops.ledger import open_ledger
from aifinops.ledger.writer import Writer
from aifinops.testing.ledger import example_charge
ledger = open_ledger(sys.argv[1])
writer = Writer(ledger, monotonic_ns=lambda: 0)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
number = 0
while not writer.pending:
    writer.write(example_charge(number))
    number += 1
    assert number < 5000
direct = 0
while direct < 5000:
    try:
        ledger.append(example_charge(100_000 + direct))
    except StoreError as error:
        print("refused", error)
        break
    direct += 1
for number in range(number, number + 50):
    writer.write(example_charge(number))
waiting = writer.pending
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert writer.flush(), "still failing"
print("waited", waiting, "wrote", number + 1, "dropped", writer.dropped, "pending", writer.pending, "direct", direct)
"""


@POSIX
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """Appends fail as StoreError, the writer keeps the charges, and writes them when there is room again."""
    path = tmp_path / "l.db"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], env=ENV, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, summary = done.stdout.splitlines()
    assert refused.startswith(f"refused ledger {path}")
    words = summary.split()
    assert (words[1], words[5], words[7]) == ("51", "0", "0")
    ledger = open_ledger(path)
    assert ledger.info().entries == int(words[3]) + int(words[9])
    ledger.close()


EXIT = """
import os, sys
from aifinops.ledger import open_ledger
from aifinops.testing.ledger import example_charge
open_ledger(sys.argv[1]).append(example_charge(1))
os._exit(1)
"""


def test_an_exit_without_cleaning_up_loses_nothing(tmp_path: Path) -> None:
    """`os._exit`, as in a forked worker, runs no handlers and needs none."""
    path = tmp_path / "l.db"
    assert subprocess.run([sys.executable, "-c", EXIT, str(path)], env=ENV, check=False).returncode == 1
    ledger = open_ledger(path)
    assert ledger.info().entries == 1
    ledger.close()


CALLS = """
import sys
import aifinops as af
import openai
from aifinops.testing import FakeProvider
af.init(ledger=sys.argv[1])
af.instrument("openai")
with FakeProvider() as server:
    client = openai.OpenAI(base_url=server.base_url, api_key="test")
    while True:
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
        sys.stdout.write(answer.id + "\\n")
        sys.stdout.flush()
"""


@POSIX
def test_sigkill_right_after_a_call_returned_loses_no_call(tmp_path: Path) -> None:
    """The real client in a process that is killed: every answer that the program has seen is a row."""
    pytest.importorskip("openai")
    path = tmp_path / "l.db"
    for wanted in (1, 7, 40):
        process = subprocess.Popen([sys.executable, "-c", CALLS, str(path)], env=ENV, stdout=subprocess.PIPE)
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(wanted)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.readlines()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        seen = {line.decode().strip() for line in told if line.endswith(b"\n")}
        ledger = open_ledger(path)
        assert seen <= {charge.response_id for charge in ledger.rows()}
        ledger.close()
