"""Whatever a server loses while everybody works, balances are what was billed when everybody has gone home."""

from __future__ import annotations

import itertools
import json
import logging
import os
from pathlib import Path

import pytest
import servers
from store_loss import lose

from aifinops import runtime
from aifinops.budgets.audit import entries
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.stores.journaled import JournaledStore
from aifinops.cli import main

ALL = os.environ.get("AIFINOPS_FAULTS") == "all"
LOSSES = 10 if ALL else 2
STORES, HOWS = ("redis", "postgres"), ("empty", "restart", "old")
SOME = [("redis", "restart", False), ("redis", "old", True), ("postgres", "empty", True), ("postgres", "old", False)]
CASES = list(itertools.product(STORES, HOWS, (True, False))) if ALL else SOME
PLACES = list(itertools.product(STORES, (True, False))) if ALL else [("redis", True)]


def needs(store: str) -> None:
    pytest.importorskip({"redis": "redis", "postgres": "psycopg"}[store])
    if {"redis": servers.VALKEY, "postgres": servers.POSTGRES}[store] is None:
        pytest.skip("the package that brings the server is not installed")


@pytest.mark.parametrize(("store", "how", "leased"), CASES)
def test_losses(store: str, how: str, leased: bool) -> None:
    """Emptied, started again (Valkey without its data), or put back to an old copy: total spent is the outside bill, to the last step."""
    needs(store)
    verdict = lose(store, how=how, losses=LOSSES, leased=leased)
    assert verdict.calls > 20, verdict
    assert verdict.exact, verdict


@pytest.mark.parametrize(("store", "leased"), PLACES)
def test_nothing_is_overspent(store: str, leased: bool) -> None:
    """With a limit that is reached: processes that come by wait for each other to put back what is theirs."""
    needs(store)
    verdict = lose(store, how="empty", losses=LOSSES, leased=leased, limit=1_000_000)
    assert verdict.exact, verdict
    assert verdict.over == 0, verdict


def test_what_people_see(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """A warning, an entry in the log of decisions, and in the list what was spent and is held, as if nothing had been."""
    needs("redis")
    server = servers.ValkeyServer()
    try:
        engines = runtime.init(ledger=str(tmp_path / "ledger.db"), store=f"{server.tcp}?volatile_ok=true&timeout_s=2")
        active = ActiveBudget(Budget.parse("$1", name="search", per="day", max_wait=0))
        cent = 10_000_000
        calls = [
            engines.guard.reserve([active], {"USD": 20 * cent}, id=f"call-{number}", at=engines.clock.time_ns())
            for number in range(3)
        ]
        assert None not in calls
        engines.guard.settle(calls[0], {"USD": 15 * cent})  # type: ignore[arg-type]
        server.ask("FLUSHALL")
        with caplog.at_level(logging.WARNING):
            engines.guard.settle(calls[1], {"USD": 5 * cent})  # type: ignore[arg-type]
        assert caplog.text.count("put back") == 1
        with pytest.raises(SystemExit):
            main(["budget", "list", "--json"])
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["spent"], found["reserved"], found["limit"]) == ("0.2", "0.2", "1")
        engines.flush(5)
        kinds = [entry.facts["kind"] for entry in entries(tmp_path / "budgets.db.audit")]
        assert kinds.count("store_reset") == 1
        assert isinstance(engines.store_at(active.budget.store or engines.config.store).inner, JournaledStore)  # type: ignore[attr-defined]
    finally:
        server.end()
