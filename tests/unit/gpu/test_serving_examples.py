"""The examples of self-hosted serving, run as a reader would."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def run(name: str) -> str:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AIFINOPS_LEDGER": "memory"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
def test_vllm() -> None:
    """Against a stand-in of vLLM's server the requests of each team, the idle part and the price of a token are told."""
    out = run("serving_vllm.py")
    assert "24 requests" in out
    assert "for a million output tokens" in out
    assert {"search", "support", "platform"} <= {line.split()[0] for line in out.splitlines() if line}


def test_transformers() -> None:
    """A pipeline with a tiny model is charged by request; without transformers the example says what it needs."""
    out = run("serving_transformers.py")
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        assert "6 requests, 48 tokens written" in out
    else:
        assert "pip install transformers torch" in out
