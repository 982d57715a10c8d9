"""Finalizers and signal handlers that make calls in the middle of calls: nothing hangs, nothing is counted twice or not at all.

3,000 calls in the middle of others for each way and store; `AIFINOPS_FAULTS=all` makes 200,000 of each, a million and a half in all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from types import FrameType

import pytest
import reentry

from aifinops import metering
from aifinops.budgets.stores.base import Node, Reserve, Settle
from aifinops.budgets.stores.leases import LeasedStore
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.integrations import extract
from aifinops.telemetry import guests

COUNT = 200_000 if os.environ.get("AIFINOPS_FAULTS") == "all" else 3000
SLOW = {"direct": 20}
"""What waits for a file with every call makes so many times fewer."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.parametrize("store", reentry.STORES)
@pytest.mark.parametrize("way", reentry.WAYS)
def test_calls_in_the_middle_of_calls(way: str, store: str) -> None:
    """In a process of its own, which says where it hangs and ends."""
    count = COUNT // SLOW.get(store, 1)
    command = [sys.executable, "-W", "error", reentry.__file__, way, store, "--count", str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found["right"], found
    assert found["inner"] >= count
    assert found.get("outer refused", 0) == 0, found


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.parametrize("leased", [False, True])
def test_nothing_is_given_twice_to_who_comes_in_between(leased: bool) -> None:
    """A handler holds in the middle of a hold, of money that is there for one of them only."""
    inner = MemoryStore()
    store = LeasedStore(inner, often=1, denied_s=0, every_s=0) if leased else inner
    numbers, over = iter(range(10**9)), list[int]()
    nodes = (Node("org", 0, "USD", 1000), Node("team", 0, "USD", 1000))

    def hold() -> str | None:
        id = f"call-{next(numbers)}"
        return id if Reserve(id, nodes, (10, 10), 0, 10**18).execute(store).applied else None

    open_ids: list[str] = []

    def handler(_: int, frame: FrameType | None) -> None:
        id = hold()
        if id is not None:
            open_ids.append(id)
        signal.setitimer(signal.ITIMER_REAL, 0.00005)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.00005)
    try:
        for _ in range(
            COUNT // 15 if leased else COUNT
        ):  # a lease waits where it is interrupted; see also `test_interrupted`
            id = hold()
            if id is not None:
                open_ids.append(id)
            over += [account.reserved for account in inner._accounts.values() if account.reserved > 1010]
            if len(open_ids) > 90:
                while open_ids:
                    Settle(open_ids.pop(), nodes, (0, 0), 0).execute(store)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not over
    for id in open_ids:
        Settle(id, nodes, (0, 0), 0).execute(store)
    if leased:
        assert isinstance(store, LeasedStore)
        store.close()
    assert [account.reserved for account in inner._accounts.values()] == [0, 0]
    assert [account.spent for account in inner._accounts.values()] == [0, 0]


@pytest.mark.parametrize("what", ["charged", "late", "drift"])
def test_who_holds_a_lock_may_come_back(what: str) -> None:
    """The collector may settle a stream of somebody while this thread notes something about another one."""
    owner = {"charged": metering.charged, "late": guests.late, "drift": extract}[what]
    again = {
        "charged": lambda: metering.charged.seen("openai", "x"),
        "late": lambda: guests.late.take(0, "x"),
        "drift": extract.drift,
    }[what]
    came_back = threading.Event()

    def work() -> None:
        with owner._lock:  # type: ignore[attr-defined]
            again()
        came_back.set()

    threading.Thread(target=work, daemon=True).start()
    assert came_back.wait(10)
