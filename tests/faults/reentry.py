"""Calls that come in the middle of a call: `python tests/faults/reentry.py finalizers|signals memory|file|leases|direct [--count 100000]`.

The garbage collector may run anywhere, also in the middle of a hold, and so may a signal handler, in the very thread that is inside. Here both
do so all the time, and what they run makes calls, settles calls and leaves streams behind. Nothing may hang, and in the end every account has exactly
what was made. Run it in a process of its own: when it hangs it says where, and ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import itertools
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from types import FrameType
from typing import Any

import aifinops as af
from aifinops import errors, metering, runtime
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.errors import BudgetExceeded
from aifinops.metering import Call, Invocation
from aifinops.reading import Reading

CALL = Call("openai", "chat", "gpt-5-mini", body={"messages": []}, max_output=100)
READING = Reading({"input_tokens": 10, "output_tokens": 5}, model="gpt-5-mini")
LIMIT = {"USD": 1_000_000, "requests": 10**9}
EVERY_S = 0.0002
PATIENCE_S = 60


class Bench:
    """Makes calls, and counts what became of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.numbers = itertools.count()
        # Where it comes in between, a call belongs to the block and not to the call that it interrupts.
        self.context = copy_context()

    def inner(self, job: Callable[[], object]) -> None:
        """Do what a finalizer or a handler does."""
        self.context.copy().run(job)

    def begin(self, who: str) -> Invocation | None:
        """Open a call; None where a budget refuses it."""
        try:
            invocation = metering.begin(CALL)
        except BudgetExceeded:
            self.counts[f"{who} refused"] += 1
            return None
        assert invocation is not None
        invocation.leave()
        self.counts[who] += 1
        return invocation

    def call(self, who: str) -> None:
        """A call that ends in one of the ways in which calls end."""
        invocation = self.begin(who)
        if invocation is None:
            return
        if next(self.numbers) % 5:
            invocation.settle(READING)
            return
        invocation.fail(ConnectionRefusedError(), refused=True)
        self.counts["released"] += 1

    @property
    def settled(self) -> int:
        return self.counts["outer"] + self.counts["inner"] - self.counts["released"]


class Left:
    """A stream that somebody drops: garbage in a circle, which only the collector finds."""

    def __init__(self, bench: Bench, invocation: Invocation | None) -> None:
        self.bench, self.invocation, self.circle = bench, invocation, self

    def __del__(self) -> None:
        self.bench.inner(self.end)

    def end(self) -> None:
        invocation = self.invocation
        if invocation is not None:
            # In both ways: as a seam leaves it for later, and at once, as somebody's own finalizer does.
            later = next(self.bench.numbers) % 2
            (metering.settle_later if later else _now)(lambda: invocation.settle(READING))
        self.bench.call("inner")


def _now(job: Callable[[], None]) -> None:
    job()


def finalizers(bench: Bench, count: int) -> None:
    """Every fifth container that is made sets off the collector."""
    before = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        while bench.counts["inner"] < count:
            Left(bench, bench.begin("outer"))
            bench.call("outer")
    finally:
        gc.set_threshold(*before)
        while gc.collect():  # what finalizers have made is garbage, too
            pass


def signals(bench: Bench, count: int) -> None:
    """A timer interrupts whatever is going on."""
    open_calls: list[Invocation] = []

    def work() -> None:
        bench.call("inner")
        if open_calls:
            open_calls.pop().settle(READING)

    def handler(_: int, frame: FrameType | None) -> None:
        bench.inner(work)
        signal.setitimer(
            signal.ITIMER_REAL, EVERY_S
        )  # the next one may come before this one is over, and no more than that

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, EVERY_S)
    try:
        while bench.counts["inner"] < count:
            bench.call("outer")
            invocation = bench.begin("outer")
            if invocation is not None:
                open_calls.append(invocation)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # first: a handler sets the timer again
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for invocation in open_calls:
        invocation.settle(READING)


WAYS = {"finalizers": finalizers, "signals": signals}
STORES = ("memory", "file", "leases", "direct")
"""In the process, in a file as budgets with a name are, in the same where every call is leased, and in the file without leases."""


def run(way: str, store: str, count: int) -> dict[str, Any]:
    """Make `count` calls inside of others; what was made, and what the budget says."""
    errors.reraise_failures(True)
    with tempfile.TemporaryDirectory() as folder:
        af.init(ledger="memory", instrument=[])
        arguments: dict[str, Any] = {}
        if store != "memory":
            path = Path(folder) / "budgets.db"
            arguments = {
                "name": "reentry",
                "store": SqliteStore(path, timeout_s=10) if store == "direct" else str(path),
            }
        with af.budget(LIMIT, **arguments) as budget:
            bench = Bench()
            bench.call("outer")  # what is imported for the first call cannot be imported in the middle of that
            if store == "leases":
                for leased in runtime.get()._stores.values():
                    leased._often = 1  # type: ignore[attr-defined]
            since = time.monotonic()
            WAYS[way](bench, count)
            seconds = time.monotonic() - since
            af.flush()
            for _ in range(50):  # a store that was left alone for a while
                if runtime.get().guard.flush():
                    break
                time.sleep(0.1)
            balances = runtime.get().guard.balances(budget._active)
        requests, money = balances["requests"], balances["USD"]
        af.shutdown()
    return {
        "way": way,
        "store": store,
        **bench.counts,
        "counted": requests.spent / 10**6,
        "held": requests.reserved,
        "money held": money.reserved,
        "right": requests.spent == bench.settled * 10**6 and not requests.reserved and not money.reserved,
        "seconds": round(seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("store", choices=STORES)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    patience = PATIENCE_S + options.count // 200
    faulthandler.dump_traceback_later(patience, exit=True)
    found = run(options.way, options.store, options.count)
    sys.stdout.write(json.dumps(found) + "\n")
    return int(not found["right"])


if __name__ == "__main__":
    sys.exit(main())
