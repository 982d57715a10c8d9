"""The journal beside a ledger file: who takes it in, when it goes, what a damaged one does."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest

from aifinops.errors import StoreError
from aifinops.ledger import journal, sqlite
from aifinops.ledger.codec import frozen, line_of, packed, row_of
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.testing.ledger import example_charge

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def files(path: Path) -> list[Path]:
    return journal.journals(path.with_name(f"{path.name}-spool"), sqlite.ROWS)


def test_an_entry_is_in_the_journal_first_and_every_reader_finds_it(tmp_path: Path) -> None:
    """Another ledger object on the same file sees what is only in a living one's journal, once."""
    path = tmp_path / "l.db"
    writing, reading = SqliteLedger(path), SqliteLedger(path)
    charge = example_charge(1, amount=7)
    writing.enqueue(charge)
    assert len(files(path)) == 1
    assert list(reading.rows()) == [charge]
    assert len(files(path)) == 1, "the journal of a living process stays"
    assert list(writing.rows()) == [charge]
    assert reading.info().entries == 1
    writing.close()
    assert files(path) == []
    reading.close()


def test_entries_go_into_the_tables_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many entries a thread puts them into the tables; readers take what is left."""
    monkeypatch.setattr(sqlite, "FOLD", 5)
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path)
    for number in range(12):
        ledger.enqueue(example_charge(number))
    for thread in threading.enumerate():
        if thread.name == "aifinops-ledger":
            thread.join(30)
    assert sum(own.entries for own in ledger._journals) < 5
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM charges").fetchone()[0] >= 8
    assert ledger.info().entries == 12
    assert [own.entries for own in ledger._journals] == [0, 0]
    ledger.close()


def test_a_dead_processs_journal_is_taken_in_and_deleted(tmp_path: Path) -> None:
    """Whoever reads next puts it into the tables."""
    path = tmp_path / "l.db"
    code = (
        "import os, sys; from aifinops.ledger import open_ledger; from aifinops.testing.ledger import example_charge\n"
        "ledger = open_ledger(sys.argv[1])\n"
        "for n in range(3): ledger.enqueue(example_charge(n))\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], env=ENV, check=True)
    assert len(files(path)) == 1
    ledger = SqliteLedger(path)
    assert ledger.info().entries == 3
    assert files(path) == []
    ledger.close()


def test_a_damaged_entry_costs_only_itself(tmp_path: Path) -> None:
    """An entry whose checksum is wrong is left out, whatever it says; the entries around it are kept."""
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path)
    for number in range(3):
        ledger.enqueue(example_charge(number, model=f"model-{number}"))
    (file,) = files(path)
    file.write_bytes(file.read_bytes().replace(b"model-1", b"model-9"))
    assert [row[0] for row in journal.Foreign(file).rows] == [example_charge(0).id, example_charge(2).id]
    ledger._in_child()
    ledger.close()


def test_a_damaged_length_ends_the_journal(tmp_path: Path) -> None:
    """What is behind it cannot be found; nothing is invented and nothing is raised."""
    own = journal.Journal(tmp_path, 1)
    for number in range(3):
        own.append(frozen(example_charge(number)))
    (file,) = journal.journals(tmp_path, 1)
    data = bytearray(file.read_bytes())
    second = 8 + len(frozen(example_charge(0)))
    data[second : second + 4] = b"\xff\xff\xff\x7f"
    file.write_bytes(data)
    assert [row[0] for row in journal.Foreign(file).rows] == [example_charge(0).id]
    own.clear()
    own.close()


def test_a_journal_of_lines_is_still_taken_in(tmp_path: Path) -> None:
    """What a process of an earlier version has left: lines of a checksum and JSON, here as it wrote them."""
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path)
    spool = path.with_name(f"{path.name}-spool")
    spool.mkdir()
    charges = [example_charge(number) for number in range(3)]
    lines = [line_of(packed(charge)).encode() for charge in charges]
    damaged = lines[1].replace(b"350500", b"999999")
    old = spool / "1-abc.v1.2.journal"
    old.write_bytes(
        b"".join(
            b"%08x%b\n" % (crc32(right), text) for right, text in zip(lines, [lines[0], damaged, lines[2]], strict=True)
        )
        + b"\0"
        + b"%08x%b\n" % (crc32(lines[1]), lines[1])
    )
    assert list(ledger.rows()) == [charges[0], charges[2]]
    assert not old.exists()
    ledger.close()


def test_an_entry_from_within_another_one_comes_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler or a finalizer may run in the middle of an `append` of its own thread, and append as well."""
    own = journal.Journal(tmp_path, 1)
    inner = iter([frozen(example_charge(2))])

    def interrupted(entry: bytes) -> int:
        for late in inner:
            own.append(late)
        return crc32(entry)

    monkeypatch.setattr(journal, "crc32", interrupted)
    own.append(frozen(example_charge(1)))
    monkeypatch.undo()
    assert [row[0] for row in own.read()] == [example_charge(1).id, example_charge(2).id]
    own.clear()
    own.close()


def test_what_was_there_before_is_never_read_again(tmp_path: Path) -> None:
    """An emptied journal is written over; neither the rest of an old line nor old lines behind it count."""
    own = journal.Journal(tmp_path, 1)
    for number in range(5):
        own.append(frozen(example_charge(number, model="long" * 50)))
    own.clear()
    (file,) = journal.journals(tmp_path, 1)
    assert journal.Foreign(file).rows == []
    own.append(frozen(example_charge(7)))
    assert journal.Foreign(file).rows == list(own.read()) == [row_of(example_charge(7))]
    own.clear()
    own.close()


def test_a_journal_grows_with_what_it_has_to_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries larger than the reserved size, and many of them, are all there; also for another process."""
    monkeypatch.setattr(journal, "SIZE", 256)
    own = journal.Journal(tmp_path, 1)
    charges = [example_charge(number, raw={"text": "x" * 100 * number}) for number in range(30)]
    rows = list(map(row_of, charges))
    for charge in charges:
        own.append(frozen(charge))
    (file,) = journal.journals(tmp_path, 1)
    assert list(own.read()) == journal.Foreign(file).rows == rows
    assert own.entries == 30
    own.close()
    assert journal.Foreign(file).rows == rows


def test_a_journal_of_another_schema_is_left_alone(tmp_path: Path) -> None:
    """A newer version's journal waits for that version, and so does one whose lines have another form."""
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path)
    spool = path.with_name(f"{path.name}-spool")
    spool.mkdir()
    others = [spool / "1-abc.v99.3.journal", spool / f"1-abc.v{sqlite.ROWS}.1.journal"]
    for other in others:
        other.write_text("[]\n")
    assert ledger.info().entries == 0
    assert all(other.exists() for other in others)
    ledger.close()


def test_a_known_id_is_ignored(tmp_path: Path) -> None:
    """The same entry given twice, or taken in twice, is one row."""
    ledger = SqliteLedger(tmp_path / "l.db")
    for _ in range(2):
        ledger.enqueue(example_charge(1))
    ledger.append(example_charge(1))
    assert ledger.info().entries == 1
    ledger.close()


def test_a_locked_file_holds_up_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process holds the tables, entries stay in the journal and nothing is raised."""
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path, timeout_s=0.001)
    monkeypatch.setattr(sqlite, "FOLD", 3)
    monkeypatch.setattr(sqlite, "MOST_WAITING", 8)
    ledger._renew()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for number in range(20):
        ledger.enqueue(example_charge(number))
    assert sum(own.entries for own in ledger._journals) == 20
    other.execute("ROLLBACK")
    other.close()
    assert ledger.info().entries == 20
    ledger.close()


def test_what_no_ledger_can_hold_is_refused_at_once(tmp_path: Path) -> None:
    """A number beyond 64 bits never gets into the journal, where it would stand before the others."""
    ledger = SqliteLedger(tmp_path / "l.db")
    with pytest.raises(OverflowError):
        ledger.enqueue(example_charge(1, at=2**80))
    ledger.enqueue(example_charge(2))
    assert ledger.info().entries == 1
    ledger.close()


def test_an_unusable_folder_is_a_store_error(tmp_path: Path) -> None:
    """The writer above keeps such a charge and tries again."""
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path)
    path.with_name(f"{path.name}-spool").touch()
    with pytest.raises(StoreError):
        ledger.enqueue(example_charge(1))
    path.with_name(f"{path.name}-spool").unlink()
    ledger.enqueue(example_charge(1))
    ledger.close()


def test_without_file_locks_entries_go_to_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without `fcntl` there is no journal."""
    monkeypatch.setattr(sqlite, "AVAILABLE", False)
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path)
    ledger.enqueue(example_charge(1))
    assert files(path) == []
    assert ledger.info().entries == 1
    ledger.close()


def test_a_forked_child_has_a_journal_of_its_own(tmp_path: Path) -> None:
    """Parent and child write on after a fork; every entry is there once."""
    path = tmp_path / "l.db"
    code = (
        "import os, sys; from aifinops.ledger import open_ledger; from aifinops.testing.ledger import example_charge\n"
        "ledger = open_ledger(sys.argv[1])\n"
        "ledger.enqueue(example_charge(1))\n"
        "child = os.fork()\n"
        "for n in range(5): ledger.enqueue(example_charge(n + (100 if child else 200)))\n"
        "if child == 0: os._exit(0)\n"
        "os.waitpid(child, 0); ledger.close()"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(path)], env=ENV, check=True)
    ledger = SqliteLedger(path)
    assert ledger.info().entries == 11
    assert files(path) == []
    ledger.close()


def test_an_entry_from_within_another_one_waits_for_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the turn that a thread with the file may be waiting for."""
    ledger = SqliteLedger(tmp_path / "l.db")
    monkeypatch.setattr(ledger, "_fold_at", 1)
    asked: list[int] = []
    monkeypatch.setattr(ledger, "_have_it_folded", asked.append)
    inner = iter([example_charge(2)])

    def interrupted(entry: bytes) -> int:
        for late in inner:
            ledger.enqueue(late)
        return crc32(entry)

    monkeypatch.setattr(journal, "crc32", interrupted)
    ledger.enqueue(example_charge(1))
    monkeypatch.undo()
    assert asked == [2]
    assert ledger.info().entries == 2
    ledger.close()


def test_a_reader_from_within_an_entry_is_told_so(tmp_path: Path) -> None:
    """Another thread has the turn and does not come back: a store error, and no deadlock."""
    ledger = SqliteLedger(tmp_path / "l.db", timeout_s=0.01)
    ledger.enqueue(example_charge(1))
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger._turn:
            held.set()
            over.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    with pytest.raises(StoreError, match="journal is in use"):
        ledger._fold()
    over.set()
    thread.join()
    assert ledger.info().entries == 1
    ledger.close()


def test_without_a_thread_to_be_had_the_caller_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the interpreter no thread can be started any more."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(sqlite, "FOLD", 3)
    ledger = SqliteLedger(tmp_path / "l.db")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for number in range(7):
        ledger.enqueue(example_charge(number))
    assert [own.entries for own in ledger._journals] == [1, 0]
    assert not ledger._folding
    ledger.close()


def test_a_caller_that_is_too_fast_does_it_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the thread cannot keep up, entries do not pile up without end."""
    monkeypatch.setattr(sqlite, "MOST_WAITING", 10)
    monkeypatch.setattr(sqlite, "AT_ONCE", 4)
    monkeypatch.setattr(sqlite, "FOLD", 1)
    ledger = SqliteLedger(tmp_path / "l.db")
    monkeypatch.setattr(ledger, "_folding", True)  # a thread that never gets anything done
    for number in range(35):
        ledger.enqueue(example_charge(number))
    assert sum(own.entries for own in ledger._journals) == 5
    assert ledger.info().entries == 35
    ledger.close()


def test_rows_are_rolled_up_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that fills the tables keeps roll-ups up to date, so that a report has next to nothing to do."""
    monkeypatch.setattr(sqlite.rollups, "BATCH", 10)
    ledger = SqliteLedger(tmp_path / "l.db")
    for number in range(35):
        ledger.enqueue(example_charge(number))
    assert ledger.info().behind == 5
    ledger.close()


def test_entries_come_while_others_close_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A close in one thread costs no entry of another: what comes in between is taken in later."""
    monkeypatch.setattr(sqlite, "FOLD", 20)
    ledger = SqliteLedger(tmp_path / "l.db")
    errors: list[BaseException] = []

    def write(first: int) -> None:
        try:
            for number in range(first, first + 400):
                ledger.enqueue(example_charge(number))
        except BaseException as error:  # carried into the main thread below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ledger.close()
    assert errors == []
    assert ledger.info().entries == 1200
    ledger.close()
    assert files(tmp_path / "l.db") == []
