"""Engines of DeepSpeed on the CPU: a step is one, however often the optimizers inside of it are called."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)


def engine(*arguments: str) -> dict[str, Any]:
    """What a process of its own has found: an engine sets up process groups, logging and signals."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"DS_ACCELERATOR": "cpu", "AIFINOPS_LEDGER": "memory", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("engines.py")), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return found


@pytest.mark.parametrize("kind", ["zero0", "zero1", "zero2", "zero3", "bf16"])
def test_a_step_of_an_engine_is_one_step(kind: str) -> None:
    """Two groups of parameters, for each of which ZeRO calls the optimizer: four steps are four, and what an engine does when it is made is none."""
    assert engine(kind) == {"steps": 4, "engine": 4}


def test_a_step_of_a_pipeline_is_one_step() -> None:
    """`train_batch` makes them."""
    assert engine("pipeline") == {"steps": 3, "engine": 3}


@pytest.mark.parametrize("also", [[], ["training"]])
def test_optimizers_beside_an_engine_count_as_ever(also: list[str]) -> None:
    """Two that ask for the hooks make one step of it; and once nobody asks, the class is what it was."""
    found = engine("beside", *also)
    assert found["steps"] == 2
    assert found["engine"] == 2
    if also:  # the other one still asks
        assert (found["after"], found["wrapped"]) == (3, ["__init__", "step"])
    else:
        assert (found["after"], found["wrapped"]) == (2, [])


def test_a_budget_ends_an_engine_at_its_step_after_the_checkpoint() -> None:
    """As any other loop; what was spent is below the limit."""
    found = engine("stopped")
    assert found["steps"] == found["engine"] == found["step"]
    assert found["saved"] == [found["step"]]
    assert 0 < Decimal(found["spent"]) <= Decimal("0.002")
