"""The SQLite budget store: locks, forks, crashes, damage."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import Accounts, Adjust, Node, Put, Read, Reserve, Settle, Sweep
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.errors import ConfigurationError, StoreError

NODE = Node("team", 0, "USD", 1000)
OPEN = Node("team", 0, "USD", None)
HOUR = 3600 * 10**9
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "b.db")
    yield made
    made.close()


def hold(store: SqliteStore, id: str, amount: int = 1, *, ttl: int = HOUR, now: int = 0) -> bool:
    return Reserve(id, (NODE,), (amount,), now, ttl).execute(store).applied


def test_the_file_is_private(store: SqliteStore) -> None:
    """Who spends what is nobody else's business."""
    hold(store, "a")
    modes = {path.name: path.stat().st_mode & 0o777 for path in store.path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A ledger is no budget store."""
    from aifinops.ledger.sqlite import SqliteLedger

    SqliteLedger(tmp_path / "l.db").close()
    with pytest.raises(ConfigurationError, match="database of another program"):
        SqliteStore(tmp_path / "l.db")


def test_balances_are_there_after_closing(store: SqliteStore) -> None:
    """And the store opens again by itself."""
    hold(store, "a", 5)
    store.close()
    assert Read((NODE,)).execute(store) == (Balance(1000, reserved=5),)
    again = SqliteStore(store.path)
    Settle("a", (NODE,), (3,), 0).execute(again)
    assert Read((NODE,)).execute(store) == (Balance(1000, spent=3),)
    again.close()


def test_a_locked_file_is_an_error_in_time(tmp_path: Path) -> None:
    """A call does not wait longer than it was told for somebody who holds the file; and nothing was held."""
    store = SqliteStore(tmp_path / "b.db", timeout_s=0.1)
    hold(store, "a", 5)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(StoreError, match="locked"):
            hold(store, "b", 5)
        assert 0.1 <= time.monotonic() - started < 0.25
        other.execute("ROLLBACK")
    assert Read((NODE,)).execute(store) == (Balance(1000, reserved=5),)
    store.close()


def test_a_reader_does_not_wait_for_a_writer(store: SqliteStore) -> None:
    """What is spent can be read while somebody holds the file."""
    hold(store, "a", 5)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert Read((NODE,)).execute(store) == (Balance(1000, reserved=5),)
        other.execute("ROLLBACK")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_a_signal_handler_in_the_middle_of_it_is_refused(store: SqliteStore) -> None:
    """A handler of the application that makes a metered call must neither hang nor spoil the operation that it interrupts."""
    refused: list[str] = []
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += 1
        try:
            Reserve(f"handler-{count}", (OPEN,), (1,), 0, HOUR).execute(store)
        except StoreError as error:
            refused.append(str(error))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        until, number = time.monotonic() + 1, 0
        while time.monotonic() < until:
            number += 1
            Adjust(f"{number}", (NODE,), (1,), 0).execute(store)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all("in the middle of another operation" in text for text in refused)
    (balance,) = Read((NODE,)).execute(store)
    assert balance.spent == number
    assert balance.reserved == count - len(refused)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_both_sides_of_a_fork_go_on(store: SqliteStore) -> None:
    """The file is open across no fork, also not while other threads are at work in it."""
    over = threading.Event()

    def work(name: str) -> None:
        number = 0
        while not over.is_set():
            number += 1
            Adjust(f"{name}-{number}", (NODE,), (1,), 0).execute(store)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if Reserve(f"child-{number}", (OPEN,), (1,), 0, HOUR).execute(store).applied else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert Read((NODE,)).execute(store)[0].reserved == 20


def _race(path: str, number: int, results: multiprocessing.Queue[int]) -> None:
    store, bill = SqliteStore(path, timeout_s=30), 0
    for call in range(200):
        id = f"{number}-{call}"
        if Reserve(id, (NODE,), (7,), 0, HOUR).execute(store).applied:
            bill += 5
            Settle(id, (NODE,), (5,), 0).execute(store)
    store.close()
    results.put(bill)


def test_processes_share_a_limit(tmp_path: Path) -> None:
    """Eight of them get all of it together and not a step more."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    path = str(tmp_path / "b.db")
    workers = [context.Process(target=_race, args=(path, number, results)) for number in range(8)]
    for worker in workers:
        worker.start()
    bills = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    store = SqliteStore(path)
    (balance,) = Read((NODE,)).execute(store)
    store.close()
    assert sum(bills) == balance.spent
    assert 1000 - 7 < balance.spent <= 1000
    assert balance.reserved == 0


KILLED = """
import sys, itertools
from aifinops.budgets.stores.base import Node, Reserve, Settle
from aifinops.budgets.stores.sqlite import SqliteStore
store = SqliteStore(sys.argv[1], timeout_s=30)
nodes = (Node("org", 0, "USD", None), Node("team", 0, "USD", 10**9), Node("run", 0, "USD", 10**9))
for number in itertools.count():
    id = f"{sys.argv[2]}-{number}"
    Reserve(id, nodes, (7, 7, 7), 0, 10**9).execute(store)
    print(id, flush=True)   # the provider's bill: it was sent
    Settle(id, nodes, (5, 5, 5), 0).execute(store)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_kill_forgets_nothing(tmp_path: Path) -> None:
    """Whenever a process is killed, all levels agree, and what it may have sent is paid for."""
    path, bill, kills = tmp_path / "b.db", 0, 20
    for number in range(kills):
        worker = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(number)], env=ENV, stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(0.003 * number)
        worker.kill()
        bill += 1 + len(worker.stdout.readlines())
        worker.wait()
        worker.stdout.close()
    store = SqliteStore(path)
    forfeited = Sweep(2 * 10**9).execute(store).forfeited
    balances = [balance for _, balance in Accounts().execute(store)]
    store.close()
    assert len(forfeited) <= kills
    assert {(one.spent, one.reserved, one.forfeited) for one in balances} == {
        (balances[0].spent, 0, 7 * len(forfeited))
    }
    assert 5 * bill <= balances[0].spent <= 5 * bill + 7 * kills
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_is_finished_is_dropped_in_time(store: SqliteStore) -> None:
    """The file does not grow with the number of calls."""
    for number in range(300):
        now = number * 60 * 10**9
        hold(store, f"{number}", 0, now=now, ttl=60 * 10**9)
        Settle(f"{number}", (NODE,), (0,), now).execute(store)
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("SELECT count(*) FROM reservation").fetchone()[0] < 62 + 64


def test_a_full_disk_loses_nothing(store: SqliteStore) -> None:
    """The operation fails as a whole, and works again when there is room."""
    hold(store, "a", 5)
    with store._file.lock:
        connection = store._file.connection
        assert connection is not None
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(1000):
            Put(f"note {number}", "x" * 1000, 0).execute(store)

    def spend() -> None:
        for number in range(1000):
            hold(store, f"full {number}", 0)

    for more in (fill, spend):
        with pytest.raises(StoreError, match="full"):
            more()
    with store._file.lock:
        connection.execute("PRAGMA max_page_count = 1073741823")
    assert hold(store, "b", 5)
    assert Read((NODE,)).execute(store)[0].reserved == 10
