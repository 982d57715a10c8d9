"""The writer: what happens to a charge while its ledger cannot take it."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aifinops.charges import Charge
from aifinops.errors import StoreError
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.ledger.writer import PAUSE_NS, Writer
from aifinops.testing.ledger import example_charge


class Lockable:
    """A ledger that can be made to refuse: its file is locked, and a file lies where the folder of its journals should be."""

    def __init__(self, path: Path) -> None:
        self.ledger = SqliteLedger(path, timeout_s=0.001)
        self.now = 0
        self.writer = Writer(self.ledger, capacity=3, monotonic_ns=lambda: self.now)
        self._other = sqlite3.connect(path, isolation_level=None)
        self._obstacle = path.with_name(f"{path.name}-spool")

    def lock(self) -> None:
        self.ledger.close()
        self._obstacle.touch()
        self._other.execute("BEGIN EXCLUSIVE")

    def unlock(self) -> None:
        self._other.execute("ROLLBACK")
        self._obstacle.unlink()

    def amounts(self) -> list[int | None]:
        return [charge.amount for charge in self.ledger.rows()]

    def close(self) -> None:
        if self._other.in_transaction:
            self.unlock()
        self._other.close()
        self.ledger.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Lockable]:
    made = Lockable(tmp_path / "l.db")
    yield made
    made.close()


def test_a_charge_is_in_the_ledger_when_write_returns(file: Lockable) -> None:
    """Nothing is held back while all is well."""
    file.writer.write(example_charge(1, amount=1))
    assert (file.amounts(), file.writer.pending, file.writer.dropped) == ([1], 0, 0)


def test_what_a_locked_ledger_refuses_is_written_later(file: Lockable) -> None:
    """The caller sees no error, and the next write after the pause brings everything in."""
    file.lock()
    file.writer.write(example_charge(1, amount=1))
    file.writer.write(example_charge(2, amount=2))
    assert file.writer.pending == 2
    file.unlock()
    file.now += PAUSE_NS
    file.writer.write(example_charge(3, amount=3))
    assert (file.amounts(), file.writer.pending) == ([1, 2, 3], 0)


def test_a_failing_ledger_is_left_alone_for_a_while(file: Lockable) -> None:
    """During the pause a write only queues, even if the ledger would work again."""
    file.lock()
    file.writer.write(example_charge(1))
    file.unlock()
    file.now += PAUSE_NS - 1
    file.writer.write(example_charge(2))
    assert (file.amounts(), file.writer.pending) == ([], 2)


def test_flush_does_not_wait_for_the_pause(file: Lockable) -> None:
    """It tries at once and says whether anything is left."""
    file.lock()
    file.writer.write(example_charge(1, amount=1))
    assert file.writer.flush() is False
    file.unlock()
    assert file.writer.flush() is True
    assert file.amounts() == [1]
    assert file.writer.flush() is True


def test_what_does_not_fit_is_counted(file: Lockable, caplog: pytest.LogCaptureFixture) -> None:
    """The queue is bounded; losses are counted and logged once."""
    file.lock()
    with caplog.at_level(logging.WARNING, logger="aifinops"):
        for number in range(6):
            file.writer.write(example_charge(number, amount=number))
    assert (file.writer.pending, file.writer.dropped) == (3, 3)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["aifinops", "aifinops"]
    assert "cannot be written" in caplog.text
    assert "more than 3 charges wait" in caplog.text
    file.unlock()
    assert file.writer.flush()
    assert file.amounts() == [0, 1, 2]


def test_a_charge_that_no_ledger_can_hold_does_not_block_the_others(file: Lockable) -> None:
    """It is dropped and counted, and the rest is written."""
    file.lock()
    file.writer.write(example_charge(1, amount=1))
    file.writer.write(example_charge(2, at=2**80))
    file.writer.write(example_charge(3, amount=3))
    file.unlock()
    assert file.writer.flush()
    assert (file.amounts(), file.writer.dropped) == ([1, 3], 1)


def test_closing_writes_what_waits(file: Lockable) -> None:
    """Close is a flush first."""
    file.lock()
    file.writer.write(example_charge(1, amount=1))
    file.unlock()
    file.writer.close()
    assert file.amounts() == [1]


def test_closing_says_what_is_lost(file: Lockable, caplog: pytest.LogCaptureFixture) -> None:
    """A ledger that still fails at the end is told with the number of charges."""
    file.lock()
    file.writer.write(example_charge(1))
    file.writer.close()
    assert "1 charges could not be written" in caplog.text


def test_a_child_starts_with_nothing_of_its_parent(file: Lockable) -> None:
    """What waits belongs to the parent, which writes it itself."""
    file.lock()
    file.writer.write(example_charge(1))
    file.writer.reset_after_fork()
    assert (file.writer.pending, file.writer.dropped) == (0, 0)
    file.unlock()
    file.writer.write(example_charge(2, amount=2))
    assert file.amounts() == [2]


def test_threads_share_one_writer_through_an_outage(file: Lockable) -> None:
    """Every charge of every thread is written once, before, during and after."""
    writer = Writer(file.ledger, monotonic_ns=lambda: file.now)
    file.lock()
    barrier = threading.Barrier(5)

    def work(first: int) -> None:
        for number in range(first, first + 20):
            writer.write(example_charge(number))
        barrier.wait()
        barrier.wait()
        for number in range(first + 20, first + 40):
            writer.write(example_charge(number))

    threads = [threading.Thread(target=work, args=(base * 100,)) for base in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait()
    assert writer.pending == 80
    file.unlock()
    file.now += PAUSE_NS
    barrier.wait()
    for thread in threads:
        thread.join()
    assert writer.flush()
    assert (len(file.amounts()), writer.dropped) == (160, 0)


def test_an_error_that_is_not_the_stores_gets_out() -> None:
    """The writer hides outages, not mistakes: the metering layer counts those."""

    class Broken(MemoryLedger):
        def enqueue(self, charge: object) -> None:
            raise TypeError("a bug")

    with pytest.raises(TypeError):
        Writer(Broken()).write(example_charge(1))


def test_store_errors_are_the_only_ones_kept() -> None:
    """A third-party ledger that raises StoreError is retried like ours."""

    class Away(MemoryLedger):
        away = True

        def append(self, charge: object) -> bool:
            if self.away:
                raise StoreError("away")
            return super().append(charge)  # type: ignore[arg-type]

    ledger = Away()
    writer = Writer(ledger)
    writer.write(example_charge(1))
    ledger.away = False
    assert writer.flush()
    assert ledger.info().entries == 1


def test_a_charge_that_comes_in_the_middle_of_writing_takes_no_other_ones_place() -> None:
    """A signal handler records something while this very thread writes what has waited: everything is written."""

    class Interrupted(MemoryLedger):
        away, between = True, 0

        def enqueue(self, charge: Charge) -> None:
            if self.away:
                raise StoreError("away")
            super().append(charge)
            if self.between:
                self.between -= 1
                writer.write(example_charge(10 + self.between))

    ledger = Interrupted()
    writer = Writer(ledger, monotonic_ns=lambda: 0)
    for number in range(3):
        writer.write(example_charge(number))
    ledger.away, ledger.between = False, 2
    assert writer.flush()
    assert sorted(charge.id for charge in ledger.rows()) == sorted(example_charge(n).id for n in (0, 1, 2, 10, 11))
