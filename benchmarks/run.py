"""Added time per call of aifinops, of a hand-written span (the floor) and of peers, interleaved in one run.

    python benchmarks/run.py [--quick] [--kinds chat async-chat ...] [--only openlit ...] [--json FILE] [--envs DIR]

Each system has a process of its own; peers and their pins have an environment of their own, made on first use under `--envs`. In each
round every process makes the same calls of each kind, with the system and without it, one process after the other in shuffled order.
The figure is the median over the rounds of (with - without) in CPU time of the whole process; the ratio is to the floor's in the same
environment, or in the main one. No round but the first is begun that would not end within `--minutes`. A system that fails is a row that says so, and
the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import HERE, ROOT, Worker, environment, left_out
from worker import CHUNKS, KINDS

OPENAI, SDK = "openai==3.54.0", "opentelemetry-sdk==1.45.2"
ENVIRONMENTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "main": ([f"{ROOT}", OPENAI, SDK], ("floor", "aifinops", "aifinops+budget", "aifinops+shared")),
    "otel": ([OPENAI, SDK, "opentelemetry-instrumentation-genai-openai==1.3b0"], ("otel-genai-openai",)),
    "traceloop": ([OPENAI, SDK, "opentelemetry-instrumentation-openai==0.62.4"], ("traceloop-openai",)),
    "openinference": ([OPENAI, SDK, "openinference-instrumentation-openai==0.1.66"], ("openinference-openai",)),
    "langfuse": ([OPENAI, SDK, "langfuse==5.0.4"], ("langfuse",)),
    "logfire": ([OPENAI, SDK, "logfire==5.4.0"], ("logfire",)),
    # It does not go together with openai 3, nor with the newest SDK: a floor of its own.
    "openlit": (["openai==2.54.0", "opentelemetry-sdk==1.45.1", "openlit==1.45.0"], ("floor", "openlit")),
}
Key = tuple[str, str]
"""(environment, system)"""


@dataclass
class Row:
    """What was measured of one kind of call with one system; microseconds a call.

    Attributes:
        cpu, wall: (with, without) of each round.
    """

    kind: str
    key: Key
    cpu: list[tuple[float, float]] = field(default_factory=list)
    wall: list[tuple[float, float]] = field(default_factory=list)
    spans: float = 0.0
    error: str = ""

    @property
    def added(self) -> float:
        return statistics.median(on - off for on, off in self.cpu)

    @property
    def spread(self) -> float:
        """Half of the range in which the middle half of the rounds lies."""
        values = [on - off for on, off in self.cpu]
        if len(values) < 4:
            return (max(values) - min(values)) / 2
        low, _, high = statistics.quantiles(values, n=4)
        return (high - low) / 2

    def figures(self, floor: Row | None) -> dict[str, Any]:
        said = {"kind": self.kind, "system": self.key[1], "environment": self.key[0]}
        if self.error or not self.cpu:
            return {**said, "error": self.error or "not measured"}
        bare = statistics.median(off for _, off in self.cpu)
        wall = statistics.median(on - off for on, off in self.wall)
        return {
            **said,
            "bare_us": round(bare, 1), "added_us": round(self.added, 1), "spread_us": round(self.spread, 1), "added_wall_us": round(wall, 1),
            "to_floor": _ratio(self, floor), "to_bare": round((bare + self.added) / bare, 3), "spans_per_call": self.spans,
            **({"added_us_per_chunk": round(self.added / CHUNKS, 2)} if self.kind.endswith("stream") else {}),
        }  # fmt: skip


def _ratio(row: Row, floor: Row | None) -> float | None:
    """Of what is added to what the floor adds; None where that cannot be told from noise, as in a stream."""
    if floor is None or floor.error or not floor.cpu or floor.added <= 3 * floor.spread:
        return None
    return round(row.added / floor.added, 2)


@dataclass
class Run:
    """The workers and what they have said."""

    workers: dict[Key, Worker]
    kinds: Sequence[str]
    calls: int
    rows: dict[tuple[str, Key], Row] = field(init=False)
    lost: dict[Key, str] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    rounds: int = 0

    def __post_init__(self) -> None:
        self.rows = {(kind, key): Row(kind, key) for kind in self.kinds for key in self.workers}

    def count(self, kind: str) -> int:
        return max(3, self.calls // 12) if kind.endswith("stream") else self.calls

    def ask(self, row: Row, line: str) -> dict[str, Any]:
        """One answer; {} when the row is lost, by this or earlier."""
        if row.error:
            return {}
        try:
            answer = self.workers[row.key].ask(line)
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as failure:
            answer = {"error": str(failure)}
        row.error = answer.get("error", "")
        if row.error:
            print(f"{row.kind}, {row.key[1]}: {row.error}", file=sys.stderr)
        return {} if row.error else answer

    def warm(self, kind: str) -> None:
        for key in self.workers:
            row = self.rows[kind, key]
            times = max(3, self.count(kind) // 4)
            row.spans = self.ask(row, f"{kind} {times} on").get("spans", 0.0)
            self.ask(row, f"{kind} {times} off")

    def round(self) -> None:
        """Every kind with every system, with it and without."""
        for kind in random.sample(self.kinds, len(self.kinds)):
            for key in random.sample(list(self.workers), len(self.workers)):
                row = self.rows[kind, key]
                took = {on: self.ask(row, f"{kind} {self.count(kind)} {on}") for on in random.sample(["on", "off"], 2)}
                if not row.error:
                    row.cpu.append((took["on"]["cpu_us"], took["off"]["cpu_us"]))
                    row.wall.append((took["on"]["wall_us"], took["off"]["wall_us"]))
        self.rounds += 1
        self.loads.append(os.getloadavg()[0])

    def check(self) -> None:
        """Ask each system whether all of it has happened; one that has to say no has no figures."""
        for key in self.workers:
            whole = Row("all", key)
            self.ask(whole, "check")
            for row in (row for row in self.rows.values() if row.key == key and whole.error):
                row.error = row.error or whole.error

    def figures(self) -> list[dict[str, Any]]:
        found = []
        for kind in self.kinds:
            for key in self.workers:
                floor = self.rows.get((kind, (key[0], "floor"))) or self.rows.get((kind, ("main", "floor")))
                found.append(self.rows[kind, key].figures(floor))
            found += [Row(kind, key, error=error).figures(None) for key, error in self.lost.items()]
        return found

    def save(self, file: Path | None) -> None:
        """After every round, so that a run which is cut off has its figures."""
        if file is None:
            return
        about = {
            "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "python": platform.python_version(), "machine": platform.machine(),
            "cores": os.cpu_count(), "load": self.loads, "rounds": self.rounds, "calls": self.calls,
            "versions": {"/".join(key): worker.about for key, worker in self.workers.items()},
        }  # fmt: skip
        raw = [
            {"kind": row.kind, "system": "/".join(row.key), "cpu": row.cpu, "wall": row.wall}
            for row in self.rows.values()
        ]
        file.write_text(json.dumps({"about": about, "rows": self.figures(), "rounds": raw}, indent=1))


def start(folder: Path, only: Sequence[str], mode: str) -> tuple[dict[Key, Worker], dict[Key, str]]:
    """(the workers, the systems whose environment could not be made or that did not start and why)."""
    workers: dict[Key, Worker] = {}
    lost: dict[Key, str] = {}
    for name in only or ENVIRONMENTS:
        packages, systems = ENVIRONMENTS[name]
        print(f"{name}: making its environment, starting {', '.join(systems)}", file=sys.stderr)
        try:
            python = environment(folder, name, packages)
        except subprocess.SubprocessError as error:
            left_out(name, error)
            lost |= {(name, system): str(error) for system in systems}
            continue
        for system in systems:
            try:
                workers[name, system] = Worker(python, HERE / "worker.py", system, mode)
            except (subprocess.SubprocessError, RuntimeError) as error:
                left_out(system, error)
                lost[name, system] = str(error)
    return workers, lost


def measure(run: Run, rounds: int, until: float, file: Path | None) -> None:
    """As many rounds as there is time for, `until` on the clock of `time.monotonic`."""
    began = time.monotonic()
    for kind in run.kinds:
        run.warm(kind)
        print(f"{kind}: warm, {time.monotonic() - began:.0f} s", file=sys.stderr)
    longest = 0.0
    while run.rounds < rounds and (not run.rounds or time.monotonic() + 1.1 * longest < until):
        began = time.monotonic()
        run.round()
        took = time.monotonic() - began
        longest = max(longest, took)
        left = min((rounds - run.rounds) * longest, max(0.0, until - time.monotonic()))
        print(
            f"round {run.rounds} of {rounds}: {took:.0f} s, load {run.loads[-1]:.1f}, at most {left / 60:.1f} min left",
            file=sys.stderr,
        )
        run.save(file)
    run.check()
    run.save(file)


COLUMNS: dict[str, Callable[[dict[str, Any]], object]] = {
    "call": lambda row: row["kind"],
    "system": lambda row: (
        row["system"] + (" (openlit's environment)" if row["environment"] == "openlit" != row["system"] else "")
    ),
    "bare us": lambda row: row["bare_us"],
    "added us": lambda row: row["added_us"],
    "+-": lambda row: row["spread_us"],
    "to floor": lambda row: "" if row["to_floor"] is None else row["to_floor"],
    "(bare + added) / bare": lambda row: row["to_bare"],
    "added wall us": lambda row: row["added_wall_us"],
    "spans a call": lambda row: f"{row['spans_per_call']:g}",
    "added us a chunk": lambda row: row.get("added_us_per_chunk", ""),
}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['kind']} | {row['system']} | error: {row['error']} |" + " |" * (len(COLUMNS) - 3))
        else:
            lines.append("| " + " | ".join(str(cell(row)) for cell in COLUMNS.values()) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="at most")
    # Hundreds, so that every round has as much of what a system does only now and then (our journal goes into the tables each
    # hundred); few, so that the calls with a system and those without it are made within half a second.
    parser.add_argument("--calls", type=int, default=200, help="of each kind in a round; of streams a twelfth")
    parser.add_argument("--minutes", type=float, default=12.0, help="the time for everything but making environments")
    parser.add_argument(
        "--quick", action="store_true", help="two short rounds, to see that everything works; no figures to quote"
    )
    parser.add_argument(
        "--mode", choices=["spans", "metrics"], default="metrics", help="with a meter provider or without"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "--only", nargs="+", choices=list(ENVIRONMENTS), default=[], metavar="ENV", help=", ".join(ENVIRONMENTS)
    )
    parser.add_argument("--envs", type=Path, default=ROOT / ".bench", help="where the environments are kept")
    parser.add_argument("--json", type=Path, help="keep the figures, and every round's, in this file")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.calls = 2, 36
    return options


def main() -> int:
    options = arguments()
    workers, lost = start(options.envs, options.only, options.mode)
    began = time.monotonic()
    run = Run(workers, options.kinds, options.calls, lost=lost)
    measure(run, options.rounds, began + 60 * options.minutes, options.json)
    for worker in workers.values():
        worker.stop()
    rows = run.figures()
    print(table(rows))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
