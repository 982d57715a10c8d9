"""A ledger in memory, the bundled prices, and files to import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aifinops import runtime
from aifinops.charges import Charge
from aifinops.importing import Outcome, import_files
from aifinops.ledger.memory import MemoryLedger
from aifinops.pricing.book import PriceBook


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def book() -> PriceBook:
    return runtime.get().book


@pytest.fixture
def bring(ledger: MemoryLedger, book: PriceBook, tmp_path: Path) -> Callable[..., tuple[Outcome, list[Charge]]]:
    """Imports what is given (text, or what JSON is made of; a list of those is JSON lines); what came of it and what the ledger has."""

    def run(*contents: Any, name: str = "export", **options: Any) -> tuple[Outcome, list[Charge]]:
        paths = []
        for number, content in enumerate(contents):
            path = tmp_path / f"{name}{number}"
            if isinstance(content, list):
                content = "\n".join(json.dumps(one) for one in content)  # noqa: PLW2901 - written as it is read
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
            paths.append(path)
        return import_files(paths, ledger, book, **options), list(ledger.rows())

    return run
