"""Golden bodies: full answers, each true to the types of the provider's SDK."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BODIES = Path(__file__).parent / "bodies"


@pytest.fixture
def body() -> Callable[[str], Any]:
    """The answer of that name, read afresh."""
    return lambda name: json.loads((BODIES / f"{name}.json").read_text(encoding="utf-8"))
