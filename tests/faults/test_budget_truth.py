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

ALL = [cell for cell in product(truth.SDKS, truth.WORKERS, truth.SCENARIOS) if cell[:2] != truth.NO_TASKS]
MODULES = {"google": "google.genai", "bedrock": "boto3"}
FEW = [
    ("openai", "processes", "burst"),
    ("openai", "tasks", "retries"),
    ("openai", "threads", "abandon"),
    ("anthropic", "processes", "timeout"),
    ("anthropic", "tasks", "stream"),
    ("google", "threads", "retries"),
    ("google", "tasks", "retries"),
    ("bedrock", "threads", "retries"),
]
"""One of each; `AIFINOPS_FAULTS=all` judges every cell."""


@pytest.mark.parametrize(("sdk", "workers", "scenario"), ALL if os.environ.get("AIFINOPS_FAULTS") == "all" else FEW)
def test_the_bill(sdk: str, workers: str, scenario: str) -> None:
    """Many workers, one limit, a judge from outside."""
    pytest.importorskip(MODULES.get(sdk, sdk))
    verdict = truth.judge(sdk, scenario, workers)
    assert not verdict.over, verdict
    assert not verdict.under, verdict
    if scenario in ("serial", "burst", "stream"):
        assert verdict.used >= 95, verdict
