"""What every test gets: a clean environment, a ledger in memory, and our own failures as errors instead of log lines."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from opentelemetry import context

from aifinops import errors, scope

sys.path.insert(
    0, str(Path(__file__).parent)
)  # tests are imported by their paths: `servers` beside this file is not found
# An example may take long on a busy machine; time is measured in benchmarks/.
hypothesis.settings.register_profile("aifinops", deadline=None)
hypothesis.settings.load_profile("aifinops")

_KEPT = frozenset({"AIFINOPS_CORPUS", "AIFINOPS_EXAMPLES", "AIFINOPS_FAULTS", "AIFINOPS_SOAK"})


@pytest.fixture(autouse=True, scope="module")
def light_heap() -> None:
    """Many tests have the garbage collected; what is there before them, most of it other people's modules, is not looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and no test reaches the user's ledger or price list."""
    for key in list(os.environ):
        if key.startswith(("AIFINOPS_", "OTEL_")) and key not in _KEPT:
            monkeypatch.delenv(key)
    monkeypatch.setenv("AIFINOPS_LEDGER", "memory")
    monkeypatch.setenv("AIFINOPS_PRICE_FOLDER", os.devnull + "/none")


@pytest.fixture(autouse=True)
def loud_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal failure that a user's call would survive fails the test; each test counts from zero."""
    monkeypatch.setattr(errors, "_failures", errors._Failures())
    errors.reraise_failures(True)


@pytest.fixture(autouse=True)
def fresh_context() -> Iterator[None]:
    """No block, call or span of an earlier test is in force, and what a test leaves open ends with it."""
    outer, token = scope.set_scope(scope.NOTHING), context.attach(context.Context())
    yield
    context.detach(token)
    scope.leave(outer)
    if "aifinops.metering.invocation" in sys.modules:
        sys.modules["aifinops.metering.invocation"]._in_flight.set(None)


@pytest.fixture(autouse=True)
def fresh_ids() -> None:
    """No answer of an earlier test is charged already: made-up ids come again in other files."""
    if "aifinops.metering.seen" in sys.modules:
        sys.modules["aifinops.metering.seen"].charged.__init__()


@pytest.fixture(autouse=True)
def fresh_runtime(clean_environment: None, fresh_context: None) -> Iterator[None]:
    """Each test builds its own runtime; what it left open is closed after it."""
    _forget_runtime()
    yield
    _forget_runtime()


def _forget_runtime() -> None:
    # A test of the facts never loads the engines, and this fixture does not do it for them.
    if "aifinops.runtime" in sys.modules:
        sys.modules["aifinops.runtime"].reset()
