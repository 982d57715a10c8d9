"""Added time per call of aifinops, of a hand-written span (the floor) and of peers, interleaved in one run.

    python benchmarks/run.py [--mode spans|metrics] [--rounds 11] [--calls 500] [--json FILE] [--envs DIR]

Each system has a process of its own; peers and their pins have an environment of their own, made on first use under `--envs`. In each
round every process makes the same calls, with the system and without it, one process after the other in shuffled order. The figure is
the median over the rounds of (with - without) in CPU time of the whole process; the ratio is to the floor's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from environments import HERE, ROOT, Worker, environment, left_out

KINDS = ("chat", "responses", "embeddings", "stream")
CHUNKS = 200

# What these leave behind when they are switched off is measured with them; they are compared with the floor's process without a floor.
UNCLEAN = {"traceloop-openai"}

ENVIRONMENTS = {
    "main": ([f"{ROOT}", "openai==3.54.0"], ("floor", "aifinops", "aifinops+budget")),
    "otel": (["openai==3.54.0", "opentelemetry-instrumentation-genai-openai", "opentelemetry-sdk"], ("otel-genai-openai",)),
    "traceloop": (["openai==3.54.0", "opentelemetry-instrumentation-openai", "opentelemetry-sdk"], ("traceloop-openai",)),
    "openinference": (
        ["openai==3.54.0", "openinference-instrumentation-openai", "opentelemetry-sdk"],
        ("openinference-openai",),
    ),
}  # fmt: skip


def start(folder: Path, only: list[str], mode: str) -> dict[tuple[str, str], Worker]:
    workers = {}
    for name, (packages, systems) in ENVIRONMENTS.items():
        if only and name not in only:
            continue
        try:
            python = environment(folder, name, packages)
            for system in systems:
                workers[name, system] = Worker(python, HERE / "worker.py", system, mode)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            left_out(name, error)
    return workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    # So many that every round has what a system does only now and then (500: our journal goes into the tables).
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument(
        "--mode", choices=["spans", "metrics"], default="metrics", help="with a meter provider or without"
    )
    parser.add_argument("--envs", type=Path, default=ROOT / ".bench")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    workers = start(options.envs, options.only, options.mode)
    figures: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {}
    spans: dict[str, dict[tuple[str, str], float]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        count = max(5, options.calls // 10) if kind == "stream" else options.calls
        figures[kind] = {key: [] for key in workers}
        for key, worker in workers.items():
            spans[kind][key] = worker.ask(f"{kind} {count} on")["spans"] / count  # also warms up
        for _ in range(options.rounds):
            for key in random.sample(list(workers), len(workers)):
                switches = ["on"] if key[1] in UNCLEAN else random.sample(["on", "off"], 2)
                took = {switch: workers[key].ask(f"{kind} {count} {switch}")["cpu_us"] for switch in switches}
                figures[kind][key].append((took["on"], took.get("off", 0.0)))
            for key in (key for key in workers if key[1] in UNCLEAN):
                figures[kind][key][-1] = (figures[kind][key][-1][0], figures[kind]["main", "floor"][-1][1])
        print(f"{kind}: done", file=sys.stderr)
    for worker in workers.values():
        worker.stop()
    result = summary(figures, spans)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def summary(figures: Any, spans: Any) -> list[dict[str, Any]]:
    rows = []
    for kind, by_key in figures.items():
        added = {key: statistics.median(on - off for on, off in values) for key, values in by_key.items()}
        floor = added.get(("main", "floor"))
        for key, value in added.items():
            bare = statistics.median(off for _, off in by_key[key])
            rows.append(
                {
                    "kind": kind, "system": key[1], "bare_us": round(bare, 1), "added_us": round(value, 1),
                    "to_floor": round(value / floor, 2) if floor else None, "to_bare": round((bare + value) / bare, 3),
                    "spans_per_call": spans[kind][key],
                    **({"added_us_per_chunk": round(value / CHUNKS, 2)} if kind == "stream" else {}),
                }
            )  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| call | system | bare us | added us | to floor | (bare + added) / bare | spans a call | added us a chunk |",
        "|" + "---|" * 8,
    ]
    lines += [
        f"| {row['kind']} | {row['system']} | {row['bare_us']} | {row['added_us']} | {row['to_floor']} | {row['to_bare']} | "
        f"{row['spans_per_call']:g} | {row.get('added_us_per_chunk', '')} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
