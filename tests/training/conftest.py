"""Real torch on the CPU; the devices are only named, since there are none."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import aifinops as af
from aifinops import gpu, runtime
from aifinops.gpu.keeper import open_runs

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launcher, a ledger in memory, and torch as it was when the test is over."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    runtime.init(ledger="memory")
    yield
    for run in list(open_runs.runs):
        run.close()
    af.uninstrument()
    gc.collect()


@pytest.fixture
def run() -> Iterator[gpu.Run]:
    """An open run, with torch hooked."""
    af.instrument("torch")
    with gpu.track("test", devices={"Some Prototype": 1}) as run:
        yield run
