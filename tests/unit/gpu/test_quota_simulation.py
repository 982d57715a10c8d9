"""The simulation of quotas on a cluster trace: a small trace made here, and a part of the public one where it lies."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

CORPUS = os.environ.get("AIFINOPS_CORPUS")
SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_quota.py"
HEAD = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"


@pytest.fixture(scope="module")
def script() -> Any:
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not a part of a source distribution")
    spec = importlib.util.spec_from_file_location("gpu_quota", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gpu_quota"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_trace(folder: Path) -> Path:
    """Four owners, of whom one comes with twelve jobs of an hour at once."""
    rows = [f"a{n},1,1,1,1000,,BE,Succeeded,{n},{n + 3600},{n}" for n in range(12)]
    rows += [f"{owner},{cpu},1,1,1000,,LS,Succeeded,1800,2400,1800" for cpu, owner in enumerate("bcd", 2)]
    rows += ["cpu,9,1,0,0,,LS,Succeeded,0,10,0"]
    (folder / "openb_pod_list_default.csv").write_text(HEAD + "\n".join(rows) + "\n")
    return folder


def test_a_small_trace(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With borrowing the burst of one team runs on what the others do not use, these get their own back, and the plot is drawn."""
    out = tmp_path / "facts.json"
    given = ["--trace", str(small_trace(tmp_path)), "--gpus", "8", "--days", "0", "1", "--json", str(out), "--plot", str(tmp_path / "p.svg")]  # fmt: skip
    assert script.main(given) == 0
    own, half, borrow = json.loads(out.read_text())
    assert own["jobs"] == half["jobs"] == borrow["jobs"] == 15
    assert max(own["most_of_a_team"].values()) == 2
    assert max(half["most_of_a_team"].values()) == 3
    assert max(borrow["most_of_a_team"].values()) == 8
    for one in (own, half, borrow):
        assert one["peak_gpus"] <= 8
        assert all(gpus <= one["hard_limits"][team] for team, gpus in one["most_of_a_team"].items())
    assert own["wait_mean_s"] > half["wait_mean_s"] > borrow["wait_mean_s"]
    assert own["utilisation"] < borrow["utilisation"]
    # The twelve on two GPUs take six hours: 0, 0, 1, 1 ... 5, 5; the three others do not wait.
    assert own["wait_mean_s"] == pytest.approx(12 * 2.5 * 3600 / 15, rel=0.01)
    assert borrow["yields"] == 3
    ET.parse(tmp_path / "p.svg")
    assert "15 jobs" in capsys.readouterr().out


@pytest.mark.corpus
@pytest.mark.skipif(CORPUS is None, reason="AIFINOPS_CORPUS names no folder")
def test_the_public_trace(script: Any) -> None:
    """Three days of the trace: no team is ever above its hard limit, and borrowing shortens the waiting."""
    jobs = script.read_trace(Path(CORPUS or "") / "openb", 136, 139)
    assert len(jobs) == 560
    waits = {}
    for kind in ("own", "borrow"):
        result = script.Cluster(script.quotas(32, kind), jobs, kind).run()
        assert len(result.waits) == len(jobs)
        assert all(gpus <= result.limits[team] for team, gpus in result.most.items())
        waits[kind] = sum(result.waits)
    assert waits["borrow"] < waits["own"]
