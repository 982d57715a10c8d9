"""Several ranks by torchrun on gloo: each pays for its own device, and all stop at the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from aifinops.ledger import open_ledger


def torchrun(
    folder: Path, task: str, kind: str = "ddp", *, fails: bool = False, restarts: int = 0, **environment: str
) -> list[dict[str, Any]]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        f"--max-restarts={restarts}",
        str(Path(__file__).with_name("ranks.py")), task, kind, str(folder),
    ]  # fmt: skip
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AIFINOPS_", "SLURM_"))}
    settings = {"AIFINOPS_LEDGER": str(folder / "ledger.db"), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env={**clean, **settings}, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    if fails:
        return []
    return [json.loads((folder / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "zero"])
def test_each_rank_pays_for_its_device_and_the_first_for_what_nobody_claims(kind: str, tmp_path: Path) -> None:
    """Three devices and two ranks: one and one, and the third with the first; five steps on each, also where two optimizers are nested."""
    first, second = torchrun(tmp_path, "count", kind, AIFINOPS_RUN_ID="run-7")
    assert (first["steps"], second["steps"]) == (5, 5)
    assert (first["devices"], second["devices"]) == (2, 1)
    assert (first["all"], second["all"]) == (3, 3)
    with closing(open_ledger(tmp_path / "ledger.db")) as ledger:
        rows = list(ledger.rows())
    held = Counter((row.tags["rank"], row.tags.get("phase", "")) for row in rows)
    assert set(held) == {("0", ""), ("0", "unclaimed"), ("1", "")}
    assert {row.tags["run"] for row in rows} == {"run-7"}
    assert Decimal(first["seconds"]) == sum(row.quantities["gpu_seconds"] for row in rows if row.tags["rank"] == "0")
    assert float(second["seconds"]) == pytest.approx(second["elapsed"], abs=1e-6)


@pytest.mark.parametrize("where", ["around", "inside"])
def test_two_ranks_stop_at_the_same_step_after_the_checkpoint_and_below_the_limit(where: str, tmp_path: Path) -> None:
    """One budget in a shared store, one step for both, also where it begins inside of the run: nobody is left waiting in a collective, and what was spent is within the limit."""
    first, second = torchrun(tmp_path, "stop", where)
    assert first["steps"] == second["steps"] > 10
    assert first["saved"] == second["saved"] == [first["steps"]]
    assert first["why"] == second["why"] == f"ranks after step {first['steps']}"
    assert Decimal(first["spent"]) <= Decimal("0.04")
    with closing(open_ledger(tmp_path / "ledger.db")) as ledger:
        rows = list(ledger.rows())
    assert sum(row.amount or 0 for row in rows) <= 40_000_000
    assert Decimal(first["cost"]) + Decimal(second["cost"]) == Decimal(sum(row.amount or 0 for row in rows)) / 10**9


@pytest.mark.parametrize("restarts", [0, 1])
def test_the_next_attempt_of_a_run_of_several_ranks_closes_the_one_that_was_killed(
    restarts: int, tmp_path: Path
) -> None:
    """SIGKILL for one rank ends the other as well, by an error or a signal: what both have held is in the ledger, what was killed as lost, once.

    The next attempt is one of the same torchrun (`--max-restarts`), which has a name of its own for it, or of the next one of that name. What the
    killed ones had paid in advance is settled: the budget has what the ledger has, and holds nothing.
    """
    if restarts:
        # More than one: gloo itself may fail to connect the new ranks.
        first, second = torchrun(tmp_path, "crash", restarts=4)
    else:
        torchrun(tmp_path, "crash", fails=True, AIFINOPS_RUN_ID="job")
        first, second = torchrun(tmp_path, "crash", AIFINOPS_RUN_ID="job")
    assert first["attempt"] == second["attempt"] >= 2
    assert (first["steps"], second["steps"]) == (200, 200)
    with closing(open_ledger(tmp_path / "ledger.db")) as ledger:
        rows = list(ledger.rows())
    lost = sorted([int(row.tags["rank"]), int(row.tags["attempt"])] for row in rows if row.tags.get("phase") == "lost")
    assert lost in ([[1, 1]], [[0, 1], [1, 1]])
    if first["attempt"] == 2:  # else it is an attempt in between that has closed them
        assert sorted([*first["lost"], *second["lost"]]) == lost
    for rank in "01":
        held = sum(
            row.quantities["gpu_seconds"] for row in rows if (row.tags["rank"], row.tags["attempt"]) == (rank, "1")
        )
        assert held > 1
    assert {first["reserved"], second["reserved"]} == {"0"}
    paid = sum(Decimal(row.amount or 0) for row in rows) / 10**9
    # Of each attempt the parts of an amount are rounded up once in the ledger and once in the budget.
    assert float(Decimal(first["spent"]) - paid) == pytest.approx(0, abs=1e-6)
