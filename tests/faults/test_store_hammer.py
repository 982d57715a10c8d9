"""Whoever is killed and whenever: nothing is overspent, nothing is forgotten, nothing stays held, and all levels agree."""

from __future__ import annotations

import os
import signal

import pytest
import servers
from store_hammer import hammer

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
KILLS = 200 if os.environ.get("AIFINOPS_FAULTS") == "all" else 12


@pytest.mark.parametrize("leased", [False, True])
@pytest.mark.parametrize("store", ["sqlite", "redis", "postgres"])
def test_kills(store: str, leased: bool) -> None:
    """Workers are killed at any moment; on a server, the server is, too."""
    if store == "redis":
        pytest.importorskip("redis")
    if store == "postgres":
        pytest.importorskip("psycopg")
    if {"redis": servers.VALKEY, "postgres": servers.POSTGRES}.get(store, True) is None:
        pytest.skip("the package that brings the server is not installed")
    verdict = hammer(store, kills=KILLS, workers=4, with_server=True, leased=leased)
    assert verdict.calls > 100, verdict
    assert not verdict.overspent, verdict
    assert not verdict.forgotten, verdict
    assert verdict.agree, verdict
    assert verdict.held == 0, verdict
