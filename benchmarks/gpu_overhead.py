"""CPU time that metering adds to a step of a training loop: ours, beside Zeus and CodeCarbon on the same loop.

    python benchmarks/gpu_overhead.py [--envs DIR] [--rounds 15] [--torch] [--json FILE]

Every system has a process and an environment of its own. The loop does a fixed piece of work a step, a few microseconds, and all of them
run it in shuffled rounds, each round once with the system and once without. The figure is the median over the rounds of (with - without) in CPU
time of the whole process, threads included, by step. The GPUs are two of a fake driver under the real bindings (tests/gpu/fake_nvml.c, which
needs a C compiler), so that no system is spared its calls; a real driver takes longer for each.

`window` is what each calls at the edges of a step; `around` is a monitor around the whole loop that sees no step. `--torch` adds the hooks in a
real torch (200 MB) around a real optimizer step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environments import ROOT, Worker, environment, left_out

NVML = "nvidia-ml-py==13.615.71"
ENVIRONMENTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "ours": (
        [str(ROOT), NVML],
        ("aifinops step", "aifinops step+budget", "aifinops step, busy read", "aifinops step, processors"),
    ),
    "torch": ([str(ROOT), NVML, "torch==2.13.0"], ("aifinops hooks in torch", "aifinops hooks, no run")),
    "zeus": ([NVML, "zeus==0.16.0"], ("zeus window", "zeus around")),
    "codecarbon": ([NVML, "codecarbon==3.3.2"], ("codecarbon task", "codecarbon around")),
}
STEPS = {"zeus window": 3000, "codecarbon task": 50}
MANY = 50_000


# --- in a worker -----------------------------------------------------------------------------------------------------------


def work() -> int:
    """A step: a few microseconds of arithmetic; a longer one would hide what is to be measured in its own noise."""
    total = 0
    for number in range(100):
        total += number & 7
    return total


class Nothing:
    """A system: `begin` and `end` around the loop, `edge` after each step."""

    def __init__(self) -> None:
        self.step: Callable[[], Any] = work

    def begin(self) -> None: ...
    def edge(self) -> None: ...
    def end(self) -> None: ...


class Ours(Nothing):
    def __init__(self, *, budget: bool = False, devices: Any = None) -> None:
        super().__init__()
        import aifinops as af

        self.af, self.budget, self.devices = af, budget, devices or {"X": 2}
        af.init(ledger="memory")

    def begin(self) -> None:
        from aifinops import gpu

        self.limit = self.af.budget("$1000000") if self.budget else None
        if self.limit is not None:
            self.limit.__enter__()
        self.run = gpu.track("bench", devices=self.devices, price="2.50")
        self.run.__enter__()
        self.edge = self.run.step  # type: ignore[method-assign]

    def end(self) -> None:
        self.run.__exit__(None, None, None)
        if self.limit is not None:
            self.limit.__exit__(None, None, None)


class Hooks(Nothing):
    def __init__(self, *, open_run: bool) -> None:
        super().__init__()
        import torch

        import aifinops as af

        af.init(ledger="memory")
        torch.set_num_threads(1)
        net = torch.nn.Linear(4, 4)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
        net(torch.ones(1, 4)).sum().backward()
        self.af, self.open_run, self.step = af, open_run, optimizer.step

    def begin(self) -> None:
        from aifinops import gpu

        self.af.instrument("torch")
        self.run = gpu.track("bench", devices={"X": 2}, price="2.50").__enter__() if self.open_run else None

    def end(self) -> None:
        if self.run is not None:
            self.run.__exit__(None, None, None)
        self.af.uninstrument("torch")


class Zeus(Nothing):
    def __init__(self, *, steps: bool) -> None:
        super().__init__()
        from zeus.monitor import ZeusMonitor

        self.monitor, self.steps = ZeusMonitor(gpu_indices=[0, 1], cpu_indices=[]), steps

    def begin(self) -> None:
        self.monitor.begin_window("w", sync_execution=False)

    def edge(self) -> None:
        if self.steps:
            self.monitor.end_window("w", sync_execution=False)
            self.monitor.begin_window("w", sync_execution=False)

    def end(self) -> None:
        self.monitor.end_window("w", sync_execution=False)


class CodeCarbon(Nothing):
    def __init__(self, *, steps: bool) -> None:
        super().__init__()
        from codecarbon import OfflineEmissionsTracker

        self.make = lambda: OfflineEmissionsTracker(country_iso_code="USA", save_to_file=False, log_level="error")
        self.steps = steps

    def begin(self) -> None:
        self.tracker = self.make()
        self.tracker.start_task() if self.steps else self.tracker.start()

    def edge(self) -> None:
        if self.steps:
            self.tracker.stop_task()
            self.tracker.start_task()

    def end(self) -> None:
        if self.steps:
            self.tracker.stop_task()
        self.tracker.stop()


SYSTEMS: dict[str, Callable[[], Nothing]] = {
    "aifinops step": Ours,
    "aifinops step+budget": lambda: Ours(budget=True),
    "aifinops step, busy read": lambda: Ours(devices="auto"),
    "aifinops step, processors": lambda: Ours(devices="cpu"),
    "aifinops hooks in torch": lambda: Hooks(open_run=True),
    "aifinops hooks, no run": lambda: Hooks(open_run=False),
    "zeus window": lambda: Zeus(steps=True),
    "zeus around": lambda: Zeus(steps=False),
    "codecarbon task": lambda: CodeCarbon(steps=True),
    "codecarbon around": lambda: CodeCarbon(steps=False),
}


def loop(system: Nothing, steps: int) -> float:
    """CPU microseconds a step; beginning and end of the monitor are not in it."""
    system.begin()
    step, edge = system.step, system.edge
    before = time.process_time_ns()
    for _ in range(steps):
        step()
        edge()
    after = time.process_time_ns()
    system.end()
    return (after - before) / steps / 1000


def worker(name: str) -> None:
    """One line in, one line out: CPU microseconds a step with the system, and without."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is not an answer
    system, bare = SYSTEMS[name](), Nothing()
    bare.step = system.step
    steps = STEPS.get(name, MANY)
    loop(system, 10), loop(bare, 10)
    print(json.dumps({"name": name, "steps": steps}), file=out, flush=True)
    for _ in sys.stdin:
        halves = [("on", system), ("off", bare)]
        random.shuffle(halves)
        print(json.dumps({half: loop(one, steps) for half, one in halves}), file=out, flush=True)


# --- the benchmark ---------------------------------------------------------------------------------------------------------


def fake_driver(folder: Path) -> None:
    """Build the fake driver, and let workers find it and an `nvidia-smi`, without which CodeCarbon sees no GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    source = ROOT / "tests" / "gpu" / "fake_nvml.c"
    setup = folder / "setup.c"
    setup.write_text(SETUP)
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-fPIC",
            "-O2",
            "-Wl,-soname,libnvidia-ml.so.1",
            "-o",
            str(library),
            str(source),
            str(setup),
            "-lm",
        ],
        check=True,
    )
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    os.environ["LD_LIBRARY_PATH"] = str(folder)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


SETUP = """
typedef unsigned int u32; typedef unsigned long long u64;
u64 fake_now(void);
void fake_reset(u32 gpus);
void fake_load(u32 i, u64 from, double busy, double sm, double tensor, double watts, u64 used);
static __attribute__((constructor)) void begin(void) {
  fake_reset(2);
  for (u32 i = 0; i < 2; i++) fake_load(i, fake_now(), 0.5, 0.3, 0.2, 300.0, 1ull << 34);
}
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--envs", type=Path, default=Path(".bench/gpu"))
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--torch", action="store_true")
    options.add_argument("--json", type=Path)
    options.add_argument("--worker")
    chosen = options.parse_args()
    if chosen.worker:
        worker(chosen.worker)
        return 0
    fake_driver((chosen.envs / "driver").resolve())
    workers: dict[str, Worker] = {}
    failed = False
    for name, (packages, systems) in ENVIRONMENTS.items():
        if name == "torch" and not chosen.torch:
            continue
        for system in systems:
            try:
                python = environment(chosen.envs.resolve(), name, packages)
                workers[system] = Worker(python, Path(__file__).resolve(), "--worker", system)
            except (subprocess.CalledProcessError, RuntimeError) as error:
                left_out(system, error)
                failed = True
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    for _ in range(chosen.rounds):
        for name in random.sample(list(workers), len(workers)):
            answer = workers[name].ask("round")
            found[name].append((answer["on"], answer["off"]))
    for one in workers.values():
        one.stop()
    report(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))
    return failed


def report(found: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{'system':<28}{'added us/step':>14}{'+-':>8}{'bare us':>9}   (load {os.getloadavg()[0]:.1f})")
    for name, rounds in found.items():
        added = [on - off for on, off in rounds]
        quarters = statistics.quantiles(added, n=4) if len(added) > 3 else [min(added), 0, max(added)]
        bare = statistics.median(off for _, off in rounds)
        print(f"{name:<28}{statistics.median(added):>14.2f}{(quarters[2] - quarters[0]) / 2:>8.2f}{bare:>9.1f}")


if __name__ == "__main__":
    sys.exit(main())
