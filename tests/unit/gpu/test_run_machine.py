"""Runs as they may come: whatever begins, steps, saves, is kept or ends in whatever order, each device is paid for once and exactly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

import aifinops as af
from aifinops import gpu, runtime
from aifinops.gpu.cpus import Cpus
from aifinops.gpu.devices import Device
from aifinops.gpu.keeper import open_runs
from aifinops.testing.clock import FakeClock

DEVICES = [Device(number, f"GPU-{number}", "X") for number in range(3)]
PROCESSORS = 3
"""As a device: two processors, which are held by the name `cpu`."""
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(min_value=0.001, max_value=90)),
        st.tuples(st.just("begin"), st.sets(st.integers(min_value=0, max_value=2), min_size=1)),
        st.tuples(st.just("begin"), st.just({PROCESSORS})),
        st.tuples(st.sampled_from(["end", "step", "beat", "save", "usage"]), st.integers(min_value=0, max_value=3)),
    ),
    max_size=30,
)
NO_LAUNCHER = dict.fromkeys(
    ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "JOB_UUID"), ""
)


class World:
    """The runs of one process, and what their devices should come to."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        runtime.init(ledger="memory", clock=self.clock)
        self.limit = af.budget("$1000000")
        self.open: list[tuple[gpu.Run, set[int]]] = []
        self.held = self.held_cpus = Decimal(0)

    def move(self, what: str, value: Any) -> None:
        if what == "pass":
            before = self.clock.monotonic_ns()
            self.clock.advance(value)
            taken = set().union(*(mine for _, mine in self.open)) if self.open else set()
            passed = Decimal(self.clock.monotonic_ns() - before).scaleb(-9)
            self.held += len(taken - {PROCESSORS}) * passed
            self.held_cpus += 2 * passed if PROCESSORS in taken else 0
        elif what == "begin":
            devices = "cpu" if PROCESSORS in value else [DEVICES[number] for number in sorted(value)]
            run = gpu.track("r", devices=devices, price="3.60").start()
            self.open.append((run, set(value)))
        elif value < len(self.open):
            self.on(what, value)

    def on(self, what: str, place: int) -> None:
        run, mine = self.open[place]
        if what == "end":
            run.close()
            self.open.remove((run, mine))
        elif what == "step":
            run.step()
        elif what == "beat":
            run.beat()
        elif what == "save":
            run.checkpointed()
        else:
            used = run.usage()
            assert not (used.allocated_s and used.cpu_s)
            assert used.wasted_s <= used.allocated_s + used.cpu_s
            assert used.cost == (used.allocated_s + used.cpu_s) * Decimal("0.001")


@settings(max_examples=int(os.environ.get("AIFINOPS_EXAMPLES", "0")) or 60)
@given(MOVES)
def test_each_device_is_paid_for_once_and_exactly(moves: Sequence[tuple[str, Any]]) -> None:
    """The seconds of all charges are those for which a device, or the processors, were in at least one run; the budget has what the ledger has."""
    two = Cpus(Decimal(2), "machine", 2)
    with patch.dict(os.environ, NO_LAUNCHER), patch("aifinops.gpu.cpus.processors", lambda: two):
        world = World()
        with world.limit:
            for what, value in moves:
                world.move(what, value)
            while world.open:
                world.on("end", 0)
            charges = list(runtime.get().ledger.rows())
            for meter, held in (("gpu_seconds", world.held), ("cpu_seconds", world.held_cpus)):
                assert sum((charge.quantities.get(meter, Decimal(0)) for charge in charges), Decimal(0)) == held
            money = Decimal(sum(charge.amount or 0 for charge in charges)) / 10**9
            # Each charge is rounded up to a billionth, and each run's budget once.
            assert abs(world.limit.spent - money) <= Decimal(len(charges) + len(moves)) / 10**9
            assert world.limit.reserved == 0
            assert len({charge.id for charge in charges}) == len(charges)
        assert open_runs.runs == []
