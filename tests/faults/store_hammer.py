"""Kill, kill, kill: `python tests/faults/store_hammer.py sqlite|redis|postgres [--kills 200] [--server]`.

Workers reserve, note on a bill of their own what they are about to send, and settle. They are killed at any moment and started again, with
`--server` the server is, too. In the end, when every lease has run out: the bill is not above the limit (nothing overspent), the store has
counted no less than the bill (nothing forgotten), nothing is held any more and all levels agree.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

LIMIT = 50_000_000
TTL_S = 1.0
LEAST_BYTES, PATIENCE_S = 40, 3.0
"""How much longer the bill is to be before the next kill, ten calls; for so long it is waited for that."""


@dataclass
class Verdict:
    """What is left when the dust has settled. `bill`, `spent`, `forfeited` and `held` in steps of the limit."""

    store: str
    calls: int
    kills: int
    server_kills: int
    bill: int
    spent: int
    forfeited: int
    held: int
    agree: bool
    overspent: bool
    forgotten: bool


def nodes() -> Any:
    from aifinops.budgets.stores.base import Node

    return Node("org", 0, "USD", None), Node("team", 0, "USD", LIMIT), Node("run", 0, "USD", 2 * LIMIT)


def open_store(url: str, leased: bool) -> Any:
    from aifinops.budgets.stores import open_store
    from aifinops.budgets.stores.leases import LeasedStore

    store = open_store(url)
    return LeasedStore(store, ttl_s=2, every_s=0.1) if leased else store


def work(url: str, name: str, bill: str, leased: bool) -> None:
    """Make calls until killed. The line on the bill is written before the call would be sent."""
    from aifinops.budgets.stores.base import Reserve, Settle

    store, path = open_store(url, leased), nodes()
    chance, number = random.Random(name), 0
    file = os.open(bill, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    while True:
        number += 1
        id, now = f"{name}-{number}", time.time_ns()
        if not again(partial(Reserve(id, path, (1000,) * 3, now, int(TTL_S * 1e9)).execute, store)).applied:
            time.sleep(0.01)
            continue
        cost = chance.randrange(200, 1000)
        os.write(file, f"{cost}\n".encode())
        time.sleep(chance.uniform(0, 0.002))
        again(partial(Settle(id, path, (cost,) * 3, time.time_ns()).execute, store))


def again(operation: Any) -> Any:
    """Until the store answers: the same operation under the same id."""
    from aifinops.errors import StoreError

    while True:
        try:
            return operation()
        except StoreError:
            time.sleep(0.05)


@contextlib.contextmanager
def server(kind: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """(URL of the store, the server where there is one)."""
    if kind == "sqlite":
        yield f"{folder}/budgets.db", None
        return
    from servers import PostgresServer, ValkeyServer

    if kind == "redis":
        valkey = ValkeyServer("--appendonly", "yes", "--appendfsync", "everysec")
        try:
            yield f"{valkey.url}?timeout_s=2", valkey
        finally:
            valkey.end()
        return
    postgres = PostgresServer()
    try:
        postgres.start()
        yield f"{postgres.dsn}?timeout_s=2", postgres
    finally:
        postgres.close()


def hammer(
    kind: str, *, kills: int, workers: int = 8, with_server: bool = False, leased: bool = False, seed: int = 0
) -> Verdict:
    """Run it; see the module."""
    chance, killed, server_killed = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder, server(kind, Path(folder)) as (url, process):
        bill = Path(folder) / "bill"
        open_store(url, leased=False).close()
        names = iter(range(10**9))

        def start() -> subprocess.Popen[bytes]:
            command = [sys.executable, __file__, "--worker", url, f"w{next(names)}", str(bill), str(int(leased))]
            return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})

        running = [start() for _ in range(workers)]
        time.sleep(1.5)
        next_server = time.monotonic() + 2.5
        while killed < kills:
            grown = size(bill) + LEAST_BYTES
            time.sleep(chance.uniform(0.02, 0.2))
            wait_for(bill, grown)
            index = chance.randrange(workers)
            running[index].send_signal(signal.SIGKILL)
            running[index].wait()
            running[index] = start()
            killed += 1
            if with_server and process is not None and time.monotonic() > next_server:
                process.kill()
                process.start()
                server_killed += 1
                next_server = time.monotonic() + 2.5
        for one in running:
            one.kill()
            one.wait()
        return judge(kind, url, bill, killed + workers, server_killed)


def size(bill: Path) -> int:
    return bill.stat().st_size if bill.exists() else 0


def wait_for(bill: Path, grown: int) -> None:
    """On a busy machine to start a worker takes longer than to kill one: kills of those that do nothing yet prove nothing."""
    until = time.monotonic() + PATIENCE_S
    while size(bill) < grown and time.monotonic() < until:
        time.sleep(0.02)


def judge(kind: str, url: str, bill: Path, kills: int, server_kills: int) -> Verdict:
    """Let every lease run out, then compare."""
    from aifinops.budgets.stores.base import Read, Sweep

    store, path = open_store(url, leased=False), nodes()
    until = time.monotonic() + 60
    while True:
        time.sleep(0.5)
        again(lambda: Sweep(time.time_ns()).execute(store))
        balances = again(lambda: Read(path).execute(store))
        if not any(balance.reserved for balance in balances) or time.monotonic() > until:
            break
    store.close()
    lines = [int(line) for line in bill.read_text().split()]
    spent = {balance.spent for balance in balances}
    return Verdict(
        kind, len(lines), kills, server_kills, sum(lines), balances[1].spent, balances[1].forfeited, balances[1].reserved,
        agree=len(spent) == 1, overspent=sum(lines) > LIMIT or balances[1].spent > LIMIT, forgotten=balances[1].spent < sum(lines),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", choices=["sqlite", "redis", "postgres"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--leased", action="store_true")
    parser.add_argument("--worker", nargs=4)
    options = parser.parse_args()
    if options.worker:
        url, name, bill, leased = options.worker
        work(url, name, bill, leased == "1")
    verdict = hammer(options.store, kills=options.kills, with_server=options.server, leased=options.leased)
    sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
    return int(verdict.overspent or verdict.forgotten or not verdict.agree or verdict.held > 0)


if __name__ == "__main__":
    sys.exit(main())
