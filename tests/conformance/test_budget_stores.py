"""Every budget store keeps the published contract, and the suite finds those that do not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aifinops.budgets.policy import decide
from aifinops.budgets.stores.base import (
    Capabilities,
    Outcome,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Store,
    Sweep,
    Swept,
)
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.testing import check_budget_store


class Wrapped:
    """A store around a memory store; subclasses change what they are about."""

    capabilities = Capabilities(shared=False, durable=False, io="blocking")

    def __init__(self) -> None:
        self.inner = MemoryStore()

    def run(self, operation: Any) -> Any:
        return self.inner.run(operation)

    def reset_after_fork(self) -> None:
        self.inner.reset_after_fork()

    def close(self) -> None:
        self.inner.close()


class Async(Wrapped):
    capabilities = Capabilities(shared=False, durable=False, io="async")

    async def arun(self, operation: Any) -> Any:
        return self.inner.run(operation)


@pytest.mark.parametrize("make_store", [MemoryStore, Wrapped, Async])
def test_contract(make_store: Callable[[], Store]) -> None:
    """The store decides as the policy does, and many callers at once get no more out of it than its limits."""
    check_budget_store(make_store, seed=20261124)


def test_contract_of_files(tmp_path: Path) -> None:
    """So does one in a file."""
    numbers = itertools.count()
    check_budget_store(lambda: SqliteStore(tmp_path / f"{next(numbers)}.db", timeout_s=30), seed=20261124)


async def test_the_suite_runs_inside_an_event_loop() -> None:
    """Whoever tests a store in an asynchronous test needs nothing special."""
    check_budget_store(MemoryStore, sequences=2, operations=10, workers=4)


class CheckThenAdd(Wrapped):
    """Reads, decides, and adds later: what most guards do."""

    def run(self, operation: Any) -> Any:
        if not isinstance(operation, Reserve):
            return self.inner.run(operation)
        balances = self.inner.run(Read(operation.nodes))
        time.sleep(0)  # where another thread gets its turn
        nodes = operation.nodes
        if decide(balances, operation.amounts, operation.now).allowed:
            nodes = tuple(replace(node, limit=None) for node in nodes)
        return self.inner.run(replace(operation, nodes=nodes))


class ReturnsWhatExpires(Wrapped):
    """An expired hold is given back, although the call may have been billed."""

    def __init__(self) -> None:
        super().__init__()
        self.expiring: dict[str, Reserve] = {}

    def run(self, operation: Any) -> Any:
        if isinstance(operation, Reserve) and operation.ttl == 0:
            self.expiring.setdefault(operation.id, operation)
        if not isinstance(operation, Sweep):
            return self.inner.run(operation)
        released = [id for id, one in self.expiring.items() if self.inner.run(Release(id, one.nodes)).applied]
        return Swept(tuple(released))


class RefusesOverruns(Wrapped):
    """Records no more than was held."""

    def run(self, operation: Any) -> Any:
        if isinstance(operation, Settle):
            record = self.inner._find(operation.id)
            held = record.held if record else operation.amounts
            amounts = tuple(min(x, h) if x is not None else h for x, h in zip(operation.amounts, held, strict=True))
            operation = Settle(operation.id, operation.nodes, amounts, operation.now)
        return self.inner.run(operation)


class SettlesTwice(Wrapped):
    """Charges a repeated settlement again."""

    def run(self, operation: Any) -> Any:
        answer: Outcome = self.inner.run(operation)
        if isinstance(operation, Settle) and not answer.applied and answer.state is State.SETTLED:
            for node, amount in zip(operation.nodes, operation.amounts, strict=True):
                self.inner._accounts[node.key].spent += amount or 0
        return answer


class HoldsInPart(Wrapped):
    """Takes from one node after the other, and does not give back when a later one refuses."""

    def run(self, operation: Any) -> Any:
        answer = self.inner.run(operation)
        if isinstance(operation, Reserve) and answer.decision is not None:
            first = answer.decision.refusals[0].index
            for node, amount in list(zip(operation.nodes, operation.amounts, strict=True))[:first]:
                self.inner._account(node).reserved += amount
        return answer


class CountsInFloats(Wrapped):
    """Adds as Lua does: exact up to 2**53."""

    def run(self, operation: Any) -> Any:
        answer = self.inner.run(operation)
        for account in self.inner._accounts.values():
            account.spent, account.reserved = int(float(account.spent)), int(float(account.reserved))
        return answer


@pytest.mark.parametrize("broken", [ReturnsWhatExpires, RefusesOverruns, SettlesTwice, HoldsInPart, CountsInFloats])
def test_the_suite_finds_a_broken_store(broken: Callable[[], Store]) -> None:
    """A store with one of the mistakes that are made in practice does not pass."""
    with pytest.raises(AssertionError, match="expected"):
        check_budget_store(broken)


def test_the_suite_finds_a_race_by_its_bill() -> None:
    """Check-then-add decides each single call rightly; only many callers at once show what it is."""
    check_budget_store(CheckThenAdd, workers=1)
    with pytest.raises(AssertionError, match=r"32 t(hreads|asks) spent"):
        check_budget_store(CheckThenAdd, sequences=0)
