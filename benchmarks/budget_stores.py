"""What an operation of a budget store takes: p50, p99 and the longest of reserve and settle, in one process and in several at once.

    python benchmarks/budget_stores.py memory
    python benchmarks/budget_stores.py sqlite /tmp/budgets.db
    python benchmarks/budget_stores.py redis redis://127.0.0.1:6379/0
    python benchmarks/budget_stores.py redis unix:///run/valkey.sock --processes 1 4 --calls 20000
    python benchmarks/budget_stores.py your.module:Store argument

A call holds an amount of four nodes (organisation, team, user, run) and settles at half of it. All processes share the first two.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from importlib import import_module
from statistics import quantiles
from typing import Any

from aifinops.budgets.stores.base import Node, Read, Reserve, Settle, Store

STORES = {
    "memory": "aifinops.budgets.stores.memory:MemoryStore",
    "sqlite": "aifinops.budgets.stores.sqlite:SqliteStore",
    "redis": "aifinops.budgets.stores.redis:RedisStore",
    "postgres": "aifinops.budgets.stores.postgres:PostgresStore",
}
TTL = 900 * 10**9


def make(name: str, arguments: list[str]) -> Store:
    module, _, attribute = STORES.get(name, name).partition(":")
    store: Store = getattr(import_module(module), attribute)(*arguments)
    return store


def nodes_of(run: str, number: int) -> tuple[Node, ...]:
    keys = (f"org-{run}", f"team-{run}", f"user-{run}-{number}", f"run-{run}-{number}")
    return tuple(Node(key, 0, "USD", 10**15, 0, (5 * 10**14, 10**15), key) for key in keys)


def work(name: str, arguments: list[str], run: str, number: int, calls: int, start: Any, results: Any) -> None:
    store, nodes = make(name, arguments), nodes_of(run, number)
    held, cost = (1000,) * len(nodes), (500,) * len(nodes)
    Read(nodes).execute(store)
    start.wait()
    begun = time.perf_counter()
    reserve, settle = [], []
    for call in range(calls):
        id, now = f"{run}-{number}-{call}", time.time_ns()
        first = time.perf_counter_ns()
        held_it = Reserve(id, nodes, held, now, TTL).execute(store)
        second = time.perf_counter_ns()
        settled = Settle(id, nodes, cost, now).execute(store)
        third = time.perf_counter_ns()
        assert held_it.applied, held_it
        assert settled.applied, settled
        reserve.append(second - first)
        settle.append(third - second)
    results.put((reserve, settle, begun, time.perf_counter()))
    store.close()


def measure(name: str, arguments: list[str], processes: int, calls: int) -> dict[str, Any]:
    run, context = f"{os.getpid()}.{time.time_ns()}", multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=work, args=(name, arguments, run, number, calls, start, results))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    if name != "memory":
        store = make(name, arguments)
        (spent, *_) = Read(nodes_of(run, 0)).execute(store)
        store.close()
        assert (spent.spent, spent.reserved) == (processes * calls * 500, 0), spent
    took = max(one[3] for one in found) - min(one[2] for one in found)
    row: dict[str, Any] = {"processes": processes, "operations_a_second": round(2 * processes * calls / took)}
    for position, operation in enumerate(("reserve", "settle")):
        times = sorted(time for one in found for time in one[position])
        cuts = quantiles(times, n=100)
        row[operation] = {"p50_us": round(cuts[49] / 1000, 1), "p99_us": round(cuts[98] / 1000, 1), "most_us": round(times[-1] / 1000)}  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help=f"{', '.join(STORES)}, or module:name")
    parser.add_argument("arguments", nargs="*", help="what the store is made with: a path, a URL")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--calls", type=int, default=5000, help="of each process")
    options = parser.parse_args()
    for processes in options.processes:
        print(json.dumps(measure(options.store, options.arguments, processes, options.calls)), flush=True)


if __name__ == "__main__":
    main()
