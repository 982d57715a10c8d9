"""Added time per call of aifinops, of a hand-written span (the floor) and of peers, interleaved in one run.

    python benchmarks/run.py [--mode spans|metrics] [--rounds 11] [--calls 500] [--json FILE] [--envs DIR]

Each system has a process of its own; peers and their pins have an environment of their own, made on first use under `--envs`. In each
round every process makes the same calls, one process after the other, in shuffled order. The figure is the median over the rounds of
(system - bare of the same environment) in CPU time of the whole process; the ratio is to the floor's.
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

ENVIRONMENTS = {
    "main": ([f"{ROOT}", "openai==3.54.0"], ("bare", "floor", "aifinops", "aifinops+budget")),
    "otel": (["openai==3.54.0", "opentelemetry-instrumentation-genai-openai", "opentelemetry-sdk"], ("bare", "otel-genai-openai")),
    "traceloop": (["openai==3.54.0", "opentelemetry-instrumentation-openai", "opentelemetry-sdk"], ("bare", "traceloop-openai")),
    "openinference": (
        ["openai==3.54.0", "openinference-instrumentation-openai", "opentelemetry-sdk"],
        ("bare", "openinference-openai"),
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
    figures: dict[str, dict[tuple[str, str], list[float]]] = {kind: {key: [] for key in workers} for kind in KINDS}
    spans: dict[str, dict[tuple[str, str], float]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        count = max(5, options.calls // 10) if kind == "stream" else options.calls
        for key, worker in workers.items():
            spans[kind][key] = worker.ask(f"{kind} {count}")["spans"] / count  # also warms up
        for _ in range(options.rounds):
            for key in random.sample(list(workers), len(workers)):
                figures[kind][key].append(workers[key].ask(f"{kind} {count}")["cpu_us"])
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
        added = {
            key: statistics.median(a - b for a, b in zip(values, by_key[key[0], "bare"], strict=True))
            for key, values in by_key.items()
            if key[1] != "bare"
        }
        floor = added.get(("main", "floor"))
        for key, value in added.items():
            bare = statistics.median(by_key[key[0], "bare"])
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
