"""What several suites of ledgers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of this process's ClickHouse engine, which is kept open: it takes one directory at a time."""
    from aifinops.ledger.clickhouse_link import EngineLink

    path = tmp_path_factory.mktemp("engine")
    keep = EngineLink(path, "default", 60)
    keep.query("SELECT 1")
    yield path
    keep.close()
