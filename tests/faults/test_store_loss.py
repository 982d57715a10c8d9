"""Whatever a server loses while everybody works, balances are what was billed when everybody has gone home."""

from __future__ import annotations

import os

import pytest
import servers
from store_loss import lose

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
