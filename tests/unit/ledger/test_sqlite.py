"""The SQLite ledger: locks, damage, forks, many processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aifinops.charges import Charge
from aifinops.errors import StoreError
from aifinops.files import forks
from aifinops.ledger.base import Query
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SCHEMA, SqliteLedger
from aifinops.testing.ledger import example_charge

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
WRITE = """
import sys
from aifinops.ledger import open_ledger
from aifinops.testing.ledger import example_charge
ledger = open_ledger(sys.argv[1])
first = int(sys.argv[2])
for number in range(first, first + 500):
    assert ledger.append(example_charge(number, amount=1))
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    made = SqliteLedger(tmp_path / "l.db", timeout_s=0.01)
    yield made
    made.close()


def test_two_processes_write_one_file(ledger: SqliteLedger) -> None:
    """Five hundred entries of each arrive, and the file is sound."""
    started = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(ledger.path), str(first)], env=ENV, stderr=subprocess.PIPE)
        for first in (0, 10_000)
    ]
    assert [process.communicate()[1].decode() for process in started] == ["", ""]
    (group,) = ledger.summarize()
    assert (group.calls, group.amount) == (1000, 1000)
    with closing(sqlite3.connect(ledger.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_locked_file_is_a_store_error_and_nothing_is_lost(ledger: SqliteLedger) -> None:
    """The driver's error is the cause, and the same charge can be given again."""
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked") as caught:
            ledger.append(example_charge(1))
        with pytest.raises(StoreError, match="locked"):
            ledger.append_many([example_charge(1)])
        other.execute("ROLLBACK")
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert str(ledger.path) in str(caught.value)
    assert ledger.append(example_charge(1))


def test_several_are_kept_together_or_not_at_all(ledger: SqliteLedger) -> None:
    """One entry that no database can hold keeps the others out too."""
    with pytest.raises(OverflowError):
        ledger.append_many([example_charge(1), example_charge(2, at=2**80)])
    assert list(ledger.rows()) == []
    assert ledger.append_many([example_charge(1)]) == 1


def test_a_damaged_file_is_a_store_error(tmp_path: Path) -> None:
    """Reading a file whose pages were overwritten says so and invents nothing."""
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.append_many([example_charge(number) for number in range(200)])
    ledger.close()
    with ledger.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 40_000)
    with pytest.raises(StoreError):
        ledger.summarize(by=["model"])
    with pytest.raises(StoreError):
        list(ledger.rows())
    ledger.close()


def test_a_file_that_was_replaced_while_closed_is_a_store_error(ledger: SqliteLedger) -> None:
    """What cannot be opened again is told as a failure of the store: set-up is long over."""
    ledger.close()
    ledger.path.unlink()
    ledger.path.mkdir()
    with pytest.raises(StoreError, match="is a directory"):
        ledger.append(example_charge(1))
    ledger.path.rmdir()


def test_a_missing_file_is_a_store_error_for_readers(ledger: SqliteLedger) -> None:
    """A report of a ledger that was deleted does not make an empty one."""
    ledger.close()
    ledger.path.unlink()
    with pytest.raises(StoreError):
        ledger.info()
    assert not ledger.path.exists()


def test_a_reader_sees_a_file_that_another_process_writes(tmp_path: Path) -> None:
    """An entry is visible to every other process as soon as `append` has returned."""
    writer, reader = SqliteLedger(tmp_path / "l.db"), SqliteLedger(tmp_path / "l.db")
    writer.append(example_charge(1))
    assert [charge.id for charge in reader.rows()] == [example_charge(1).id]
    writer.close()
    reader.close()


def test_rows_can_be_read_while_entries_are_added(ledger: SqliteLedger) -> None:
    """A half-read iterator holds no lock."""
    ledger.append_many([example_charge(number) for number in range(1500)])
    rows = ledger.rows()
    first = next(rows)
    assert ledger.append(example_charge(9999))
    assert len({first.id, *(charge.id for charge in rows)}) == 1501


def test_info_counts_the_log_as_well(ledger: SqliteLedger) -> None:
    """The size is what lies on the disk."""
    before = ledger.info()
    ledger.append_many([example_charge(number) for number in (3, 1, 2)])
    after = ledger.info()
    assert (after.kind, after.location, after.schema, after.entries) == ("sqlite", str(ledger.path), SCHEMA, 3)
    assert (after.first_at, after.last_at) == (example_charge(1).at, example_charge(3).at)
    assert after.size_bytes > before.size_bytes > 0


def test_a_query_cannot_write(ledger: SqliteLedger) -> None:
    """Reports use a connection that refuses every change."""
    with pytest.raises(StoreError, match="readonly"):
        ledger._read("DELETE FROM charges", [])


def test_values_are_bound_and_not_pasted(ledger: SqliteLedger) -> None:
    """A value that looks like SQL is only a value."""
    nasty = "x'); DROP TABLE charges; --"
    ledger.append(example_charge(1, tags={"team": nasty, "user": nasty}))
    for key in ("team", "user"):
        assert [group.key for group in ledger.summarize(Query(where={key: nasty}), [key])] == [(nasty,)]


SMALL = st.builds(
    example_charge,
    st.just(0),
    id=st.sampled_from([f"{number:032x}" for number in range(12)]),
    at=st.integers(0, 3 * 86_400 * 10**9),
    model=st.sampled_from(["a", "b"]),
    amount=st.none() | st.integers(-(2**63), 2**63 - 1),
    currency=st.sampled_from(["USD", "EUR"]),
    basis=st.sampled_from(["priced", "estimated", "unknown"]),
    lower=st.none() | st.integers(0, 50),
    upper=st.none() | st.integers(50, 99),
    status=st.sampled_from(["ok", "error"]),
    corrects=st.just("") | st.sampled_from([f"{number:032x}" for number in range(12)]),
    tags=st.dictionaries(st.sampled_from(["team", "user"]), st.sampled_from(["", "x", "y"])),
    quantities=st.dictionaries(
        st.sampled_from(["input_tokens", "input_audio_tokens", "requests", "gpu_seconds"]),
        st.integers(0, 2**60) | st.decimals(0, 100, places=6),
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(SMALL, max_size=12),
    st.lists(st.sampled_from(["team", "user", "model", "day", "basis"]), max_size=3, unique=True),
    st.dictionaries(st.sampled_from(["team", "user", "model"]), st.sampled_from(["", "x", "a"]), max_size=2),
)
def test_sql_sums_equal_the_sums_in_python(
    tmp_path_factory: pytest.TempPathFactory, charges: list[Charge], by: list[str], where: dict[str, str]
) -> None:
    """Whatever is in the ledger, SQLite and the plain loop of the memory ledger give the same groups."""
    memory, file = MemoryLedger(), SqliteLedger(tmp_path_factory.mktemp("l") / "l.db")
    for charge in charges:
        assert memory.append(charge) == file.append(charge)
    assert file.summarize(Query(where=where), by) == memory.summarize(Query(where=where), by)
    file.close()


# --- forks ------------------------------------------------------------------------------------------------------------

FORK = """
import os, sys
from aifinops.ledger import open_ledger
from aifinops.testing.ledger import example_charge
ledger = open_ledger(sys.argv[1])
ledger.append(example_charge(0))
ready, go = os.pipe()
child = os.fork()
if child == 0:
    ledger.append(example_charge(1))
    os.read(ready, 1)  # until the parent has closed the ledger
    for number in range(2, 600):
        ledger.append(example_charge(number))
    os._exit(0)
for number in range(1000, 1300):
    ledger.append(example_charge(number))
ledger.close()
os.write(go, b"x")
assert os.waitpid(child, 0)[1] == 0
"""

FORK_WITH_THREADS = """
import os, sys, threading
from aifinops.ledger import open_ledger
from aifinops.testing.ledger import example_charge
ledger = open_ledger(sys.argv[1])
stop = threading.Event()
written = []

def write(first):
    number = first
    while not stop.is_set():
        ledger.append(example_charge(number))
        ledger.info()
        written.append(number)
        number += 1

threads = [threading.Thread(target=write, args=(base,)) for base in (10_000, 20_000)]
for thread in threads:
    thread.start()
children = []
for number in range(6):
    child = os.fork()
    if child == 0:
        for step in range(20):
            ledger.append(example_charge(100 * number + step))
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
stop.set()
for thread in threads:
    thread.join()
assert ledger.info().entries == len(written) + 120, (ledger.info().entries, len(written))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(("script", "least"), [(FORK, 900), (FORK_WITH_THREADS, 120)])
def test_parent_and_child_both_write(tmp_path: Path, script: str, least: int) -> None:
    """Neither a close in the parent nor a thread of the parent costs the child an entry, and nothing deadlocks."""
    path = tmp_path / "l.db"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(path)], env=ENV, capture_output=True, timeout=60, check=False
    )
    assert done.stderr.decode() == ""
    ledger = SqliteLedger(path)
    assert ledger.info().entries >= least
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_no_file_is_open_across_a_fork(ledger: SqliteLedger) -> None:
    """Before the fork the ledger lets go of its file; both sides take it again at their next entry."""
    ledger.append(example_charge(0))
    child = os.fork()
    if child == 0:
        os._exit(0 if ledger._file.connection is None and ledger.append(example_charge(1)) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger._file.connection is None
    assert ledger.append(example_charge(2))
    assert ledger.info().entries == 3


def test_a_connection_of_another_process_is_left_alone(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork that nobody announced, the parent's connection is neither used nor closed."""
    inherited = ledger._file.connection
    assert inherited is not None
    ledger._file._pid = os.getpid() + 1
    ledger.reset_after_fork()
    assert ledger._file.connection is None
    assert forks._abandoned.pop() is inherited
    assert ledger.append(example_charge(1))
    inherited.close()


def test_resetting_in_the_same_process_keeps_the_connection(ledger: SqliteLedger) -> None:
    """It is harmless to call it where nothing was forked."""
    before = ledger._file.connection
    ledger.reset_after_fork()
    assert ledger._file.connection is before
