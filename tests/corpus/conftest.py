"""The recorded traffic is read by one module beside the tests, and what became of it is printed as one table after them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(
    0, str(Path(__file__).parent)
)  # tests are imported by their paths, so that a module beside them is not found

import recorded_traffic


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """provider x endpoint: how many interactions there are, and how they were metered."""
    if recorded_traffic.TALLY:
        terminalreporter.section("recorded traffic")
        for line in recorded_traffic.table():
            terminalreporter.write_line(line)
