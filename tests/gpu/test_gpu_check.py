"""The script for a machine with a GPU: the sections that ask the driver only run here, on the fake one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu_check.py"


def test_the_sections_of_the_driver(driver_folder: str, tmp_path: Path) -> None:
    """Ring, GPM and energy counter of the fake are read as they are set, and the JSON is written."""
    pytest.importorskip("pynvml")
    environ = os.environ | {"FAKE_GPUS": "1", "FAKE_BUSY": "0.5", "FAKE_WATTS": "300", "LD_LIBRARY_PATH": driver_folder}
    command = [sys.executable, SCRIPT, "--sections", "nvml,energy", "--out", tmp_path / "found.json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert report == json.loads(done.stdout)
    ring = report["sections"]["nvml"]["found"]["ring"]
    assert ring["depth"] == 120
    assert ring["period_ms"][1] == pytest.approx(166.667)
    assert report["sections"]["nvml"]["found"]["gpm"]["intervals"]["100"] == [0, pytest.approx(50)]
    assert report["sections"]["energy"]["found"]["ratio"] == pytest.approx(1, abs=0.05)
