"""Receivers that are not ours, and the program that sends to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by their paths: what is beside them is not found

from receiving import Rotel

from aifinops.testing import FakeProvider


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    """What the clients of the program talk to."""
    with FakeProvider() as server:
        yield server


@pytest.fixture
def rotel(tmp_path: Path) -> Iterator[Rotel]:
    """A running agent; skipped where its package is not installed, or has no agent for this machine."""
    agent = Rotel.find()
    if agent is None:
        pytest.skip("rotel is not installed: pip install --group receivers")
    with Rotel(agent, tmp_path) as running:
        yield running
