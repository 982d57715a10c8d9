"""A store that loses its data under load: `python tests/faults/store_loss.py redis|postgres [--how empty|restart|old] [--losses 5] [--direct]`.

Processes make calls, from leases or (`--direct`) each by itself, and each writes on a bill of its own what every call has cost. Meanwhile
the store is emptied, started again without its data, or put back to an old copy, again and again. In the end, when every process has gone
home, the store has to count exactly what is on the bills, on all levels, and hold nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

MOST, TTL_S = 1000, 30.0


@dataclass
class Verdict:
    """What is left. `bill`, `spent` and `held` in steps of the limit; `over`: how far the bill is above it."""

    store: str
    how: str
    calls: int
    losses: int
    limit: int
    bill: int
    spent: int
    held: int
    agree: bool
    over: int

    @property
    def exact(self) -> bool:
        """What the store counts is what was billed."""
        return self.spent == self.bill and not self.held and self.agree


def nodes(limit: int) -> Any:
    from aifinops.budgets.stores.base import Node

    return Node("org", 0, "USD", None), Node("team", 0, "USD", limit), Node("run", 0, "USD", 2 * limit)


def open_store(url: str, *, leased: bool) -> Any:
    """As the runtime has it."""
    from aifinops.budgets.stores import open_store
    from aifinops.budgets.stores.journaled import JournaledStore
    from aifinops.budgets.stores.leases import LeasedStore

    store = JournaledStore(open_store(url))
    return LeasedStore(store, every_s=0.2) if leased else store


def again(operation: Any, store: Any) -> Any:
    """Until the store answers: the same operation under the same id."""
    from aifinops.errors import StoreError

    until = time.monotonic() + 60
    while True:
        try:
            return operation.execute(store)
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def work(url: str, name: str, folder: Path, leased: bool, limit: int) -> None:
    """Make calls in two threads until told to stop, then say how much they have cost."""
    from aifinops.budgets.stores.base import MarkSent

    store, path = open_store(url, leased=leased), nodes(limit)
    costs: list[int] = []
    threads = [
        threading.Thread(target=calls, args=(store, path, f"{name}-{number}", folder, costs)) for number in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again(MarkSent("home"), store)  # it says something once more, so that it hears of the last loss
    if leased:
        go_home(store)
    (folder / f"{name}.bill").write_text(json.dumps([sum(costs), len(costs)]))


def make(url: str, limit: int) -> None:
    """So that there is something to copy before anybody works."""
    from aifinops.budgets.stores.base import Read

    store = open_store(url, leased=False)
    again(Read(nodes(limit)), store)
    store.close()


def calls(store: Any, path: Any, name: str, folder: Path, costs: list[int]) -> None:
    from aifinops.budgets.stores.base import Release, Reserve, Settle

    chance, number, stop = random.Random(name), 0, folder / "stop"
    while not stop.exists():
        number += 1
        id = f"{name}-{number}"
        if not again(Reserve(id, path, (MOST,) * 3, time.time_ns(), int(TTL_S * 1e9)), store).applied:
            time.sleep(0.01)
            continue
        time.sleep(chance.uniform(0, 0.002))
        if chance.random() < 0.1:
            again(Release(id, path), store)
            continue
        cost = chance.randrange(200, MOST)
        costs.append(cost)
        outcome = again(Settle(id, path, (cost,) * 3, time.time_ns()), store)
        assert outcome.state is not None


def go_home(store: Any) -> None:
    from aifinops.errors import StoreError

    until = time.monotonic() + 60
    while True:
        try:
            store.close()
            return
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def losing(kind: str, how: str) -> Iterator[tuple[str, Any, Any]]:
    """(URL of the store, what takes a copy, what loses data)."""
    from servers import PostgresServer, ValkeyServer

    if kind == "redis":
        valkey = ValkeyServer()
        try:
            yield (
                f"{valkey.url}?timeout_s=2&volatile_ok=true",
                lambda: how == "old" and valkey.ask("SAVE"),
                lambda: lose_valkey(valkey, how),
            )
        finally:
            valkey.end()
        return
    server = PostgresServer()
    try:
        server.start()
        url = f"{server.dsn}?timeout_s=5"
        yield url, lambda: how == "old" and dump(server), lambda: lose_postgres(server, how)
    finally:
        server.close()


def lose_valkey(server: Any, how: str) -> None:
    if how == "empty":
        server.ask("FLUSHALL")
        return
    server.kill()  # with "old" it finds the copy when it starts
    server.start()


def dump(server: Any) -> None:
    """A copy as people make it, while everybody works."""
    command = [
        server.binaries / "pg_dump",
        "--schema",
        "aifinops",
        "--clean",
        "--if-exists",
        "--file",
        server.home / "copy.sql",
        server.dsn,
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=server.home, timeout=120)


def lose_postgres(server: Any, how: str) -> None:
    if how == "restart":
        server.kill()
        server.start()
    elif how == "empty":
        psql(server, "-c", "DROP SCHEMA aifinops CASCADE")
    else:
        psql(server, "-f", str(server.home / "copy.sql"))


def psql(server: Any, *arguments: str) -> None:
    command = [server.binaries / "psql", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-q", *arguments, server.dsn]
    for _ in range(10):  # of two that wait for each other one is sent away, which may be this one
        done = subprocess.run(command, check=False, capture_output=True, cwd=server.home, timeout=120)
        if not done.returncode:
            return
    raise AssertionError(done.stderr.decode())


def lose(
    kind: str,
    *,
    how: str,
    losses: int = 5,
    workers: int = 4,
    leased: bool = True,
    limit: int = 10**12,
    pause_s: float = 1.0,
) -> Verdict:
    """Run it; see the module."""
    chance = random.Random(how)
    with tempfile.TemporaryDirectory() as name, losing(kind, how) as (url, copy, strike):
        folder = Path(name)
        make(url, limit)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        running = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", url, f"w{number}", str(folder), str(int(leased)), str(limit)],
                env=environment,
                stderr=subprocess.PIPE,
            )
            for number in range(workers)
        ]
        time.sleep(2.5)
        for _ in range(losses):
            copy()
            time.sleep(chance.uniform(0.5, 1.5) * pause_s)
            strike()
            time.sleep(chance.uniform(0.5, 1.5) * pause_s)
        (folder / "stop").touch()
        for one in running:
            _, said = one.communicate(timeout=120)
            if one.returncode:
                raise AssertionError(said.decode())
        return judge(kind, how, url, folder, losses, limit)


def judge(kind: str, how: str, url: str, folder: Path, losses: int, limit: int) -> Verdict:
    from aifinops.budgets.stores import open_store
    from aifinops.budgets.stores.base import Read

    store = open_store(url)
    balances = again(Read(nodes(limit)), store)
    store.close()
    bills = [json.loads(path.read_text()) for path in folder.glob("*.bill")]
    bill = sum(amount for amount, _ in bills)
    return Verdict(
        kind, how, sum(count for _, count in bills), losses, limit, bill, balances[1].spent, balances[1].reserved,
        agree=len({(balance.spent, balance.reserved) for balance in balances}) == 1, over=max(0, bill - limit),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", choices=["redis", "postgres"])
    parser.add_argument("--how", choices=["empty", "restart", "old"], default="empty")
    parser.add_argument("--losses", type=int, default=5)
    parser.add_argument("--limit", type=int, default=10**12)
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--worker", nargs=5)
    options = parser.parse_args()
    if options.worker:
        url, name, folder, leased, limit = options.worker
        work(url, name, Path(folder), leased == "1", int(limit))
        return 0
    verdict = lose(
        options.store, how=options.how, losses=options.losses, leased=not options.direct, limit=options.limit
    )
    sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
    return int(not verdict.exact)


if __name__ == "__main__":
    sys.exit(main())
