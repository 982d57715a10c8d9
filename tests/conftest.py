"""What every test gets: a clean environment, a ledger in memory, and our own failures as errors instead of log lines."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator

import pytest

from aifinops import errors

_RUNTIME_IS_THERE = importlib.util.find_spec("aifinops.runtime") is not None
_KEPT = frozenset({"AIFINOPS_CORPUS"})


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and no test reaches the user's ledger."""
    for key in list(os.environ):
        if key.startswith(("AIFINOPS_", "OTEL_")) and key not in _KEPT:
            monkeypatch.delenv(key)
    monkeypatch.setenv("AIFINOPS_LEDGER", "memory")


@pytest.fixture(autouse=True)
def loud_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal failure that a user's call would survive fails the test; each test counts from zero."""
    monkeypatch.setattr(errors, "_failures", errors._Failures())
    errors.reraise_failures(True)


@pytest.fixture(autouse=True)
def fresh_runtime(clean_environment: None) -> Iterator[None]:
    """Each test builds its own runtime; what it left open is closed after it."""
    _forget_runtime()
    yield
    _forget_runtime()


def _forget_runtime() -> None:
    # A test of the facts never loads the engines, and this fixture does not do it for them.
    if _RUNTIME_IS_THERE and "aifinops.runtime" in sys.modules:
        sys.modules["aifinops.runtime"].reset()
