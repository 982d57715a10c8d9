"""A provider that keeps its own bill never bills more than the limit, and nothing that it bills is forgotten."""

from __future__ import annotations

import importlib.util
import os
import sys
from itertools import product
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("budget_truth", Path(__file__).with_name("budget_truth.py"))
assert _spec is not None
assert _spec.loader is not None
truth = importlib.util.module_from_spec(_spec)
sys.modules["budget_truth"] = truth
_spec.loader.exec_module(truth)

ALL = list(product(("openai", "anthropic"), truth.WORKERS, truth.SCENARIOS))
FEW = [
    ("openai", "processes", "burst"),
    ("openai", "tasks", "retries"),
    ("openai", "threads", "abandon"),
    ("anthropic", "processes", "timeout"),
    ("anthropic", "tasks", "stream"),
]
"""One of each; `AIFINOPS_FAULTS=all` judges every cell."""


@pytest.mark.parametrize(("sdk", "workers", "scenario"), ALL if os.environ.get("AIFINOPS_FAULTS") == "all" else FEW)
def test_the_bill(sdk: str, workers: str, scenario: str) -> None:
    """Many workers, one limit, a judge from outside."""
    pytest.importorskip(sdk)
    verdict = truth.judge(sdk, scenario, workers)
    assert not verdict.over, verdict
    assert not verdict.under, verdict
    if scenario in ("serial", "burst", "stream"):
        assert verdict.used >= 95, verdict
