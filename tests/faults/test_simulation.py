"""Whole worlds from a seed: nothing is overspent, nothing forgotten, nothing stays held and nobody waits for ever; and what is broken shows.

40 seeds; `AIFINOPS_FAULTS=all` plays 10,000. A seed that fails prints the command that plays it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulation

SEEDS = 10_000 if os.environ.get("AIFINOPS_FAULTS") == "all" else 40
ENOUGH = 200
"""Seeds within which what is broken has to be found."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Every world logs a hundred marks that were reached."""
    caplog.set_level("CRITICAL", logger="aifinops")


@pytest.mark.parametrize("part", range(10))
def test_any_world(part: int) -> None:
    """The judge has nothing to say."""
    calls = 0
    for seed in range(part, SEEDS, 10):
        result = simulation.play(seed)
        assert not result.found, simulation.how_to_replay(result)
        calls += result.calls
    assert calls > 50 * SEEDS // 10


@pytest.mark.parametrize("broken", simulation.BROKEN)
def test_what_is_broken_is_found(broken: str) -> None:
    """The same judge, and a guard or a store that does what others do."""
    found = next((result for seed in range(ENOUGH) if (result := simulation.play(seed, broken)).found), None)
    assert found is not None
    assert found.found.split()[0] in ("OVERSPENT", "UNDERCOUNTED", "UNCOVERED", "OVERCOUNTED")


def test_a_seed_is_played_again_the_same() -> None:
    """In another process, with other hashes, every answer of the store comes at the same moment."""
    played = simulation.play(11)
    for number in ("1", "2"):
        script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import simulation; print(simulation.play(11).trace)"
        environment = {**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": os.pathsep.join(sys.path)}
        again = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert int(again.stdout) == played.trace
