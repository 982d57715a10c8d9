"""Time and memory of a price, beside peers, interleaved in one run.

    python benchmarks/pricing.py [--rounds 15] [--milliseconds 30] [--fresh 9] [--json FILE] [--envs DIR] [--only SYSTEM ...]

Each system has an environment of its own, made on first use under `--envs`, and a process of its own. In each round every process prices
the same usage in every way that it offers, one process after the other, in shuffled order; the figure is the median of the rounds with
its interquartile range. The first price is that of a fresh process, import and load included, once a round for every system. Ratios are
to ours in the same run. An amount that is not the published price of the usage is marked.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from environments import HERE, ROOT, Worker, environment, left_out

TRUE = 0.00375
PEERS = {
    "aifinops": [str(ROOT)],
    "genai-prices": ["genai-prices==0.2.3"],
    "litellm": ["litellm==1.110.2"],
    "tokencost": ["tokencost==0.1.26"],
    "openai-cost-calculator": ["openai-cost-calculator==1.3.0"],
}
TARGETS = {"counts": 2.0, "chat": 5.0, "responses": 5.0}
"""Microseconds of a warm call of ours."""
FIRST = {"total_ms": 30.0, "added_mib": 15.0}
"""What our first price in a fresh process may take."""
ALONE = {"aifinops": ("counts", "chat", "book")}
"""Operations whose first price is measured; `counts` is the only one of a peer."""


def script() -> Path:
    return HERE / "pricing_worker.py"


def start(envs: Path, only: list[str]) -> tuple[dict[str, Worker], dict[str, Path]]:
    workers, pythons = {}, {}
    for name, packages in PEERS.items():
        if only and name not in only:
            continue
        try:
            pythons[name] = environment(envs, name, packages)
            workers[name] = Worker(pythons[name], script(), name)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            left_out(name, error)
        else:
            for operation, why in workers[name].about["refused"].items():
                left_out(f"{name}, {operation}", RuntimeError(why))
    return workers, pythons


def warm(workers: dict[str, Worker], rounds: int, milliseconds: float) -> dict[tuple[str, str], list[float]]:
    """Microseconds of CPU a call, of every operation of every system."""
    counts, keys = {}, [(name, operation) for name, worker in workers.items() for operation in worker.about["amounts"]]
    for name, operation in keys:
        workers[name].ask(f"{operation} 20")
        once = workers[name].ask(f"{operation} 20")["wall_us"]
        counts[name, operation] = max(10, int(milliseconds * 1000 / once))
    figures: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    for number in range(rounds + 1):
        for name, operation in random.sample(keys, len(keys)):
            answer = workers[name].ask(f"{operation} {counts[name, operation]}")
            if number:  # the round before the first one warms up
                figures[name, operation].append(answer["cpu_us"])
    return figures


def fresh(workers: dict[str, Worker], pythons: dict[str, Path], rounds: int) -> dict[tuple[str, str], list[Any]]:
    """The first price of fresh processes. The round before the first one fills the caches of the disk."""
    keys = [(name, operation) for name in workers for operation in ALONE.get(name, ("counts",))]
    figures: dict[tuple[str, str], list[Any]] = {key: [] for key in keys}
    for number in range(rounds + 1):
        for name, operation in random.sample(keys, len(keys)):
            done = subprocess.run(
                [pythons[name], script(), name, operation], cwd=HERE, check=True, capture_output=True, text=True
            )
            if number:
                figures[name, operation].append(json.loads(done.stdout.splitlines()[-1]))
    return figures


def spread(values: list[float]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile)."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return middle, low, high


def warm_rows(figures: dict[tuple[str, str], list[float]], workers: dict[str, Worker]) -> list[dict[str, Any]]:
    rows = []
    for (name, operation), values in figures.items():
        middle, low, high = spread(values)
        ours = figures.get(("aifinops", operation.partition(",")[0]))
        rows.append(
            {
                "operation": operation, "system": name, "version": workers[name].about["version"], "us": round(middle, 3),
                "from": round(low, 3), "to": round(high, 3), "to_ours": round(middle / spread(ours)[0], 1) if ours else None,
                "target_us": TARGETS.get(operation) if name == "aifinops" else None,
                "amount": workers[name].about["amounts"][operation],
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row["operation"], row["us"]))


def fresh_rows(figures: dict[tuple[str, str], list[Any]], workers: dict[str, Worker]) -> list[dict[str, Any]]:
    rows = []
    base = {key: spread([one[key] for one in figures["aifinops", "counts"]])[0] for key in FIRST} if ("aifinops", "counts") in figures else {}  # fmt: skip
    for (name, operation), values in figures.items():
        middle = {
            key: spread([one[key] for one in values]) for key in ("total_ms", "import_ms", "price_ms", "added_mib")
        }
        rows.append(
            {
                "operation": operation, "system": name, "version": workers[name].about["version"],
                **{key: round(value[0], 2) for key, value in middle.items()},
                "total_from": round(middle["total_ms"][1], 2), "total_to": round(middle["total_ms"][2], 2),
                "modules": values[0]["modules"],
                "time_to_ours": round(middle["total_ms"][0] / base["total_ms"], 1) if base else None,
                "memory_to_ours": round(middle["added_mib"][0] / base["added_mib"], 1) if base else None,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: float(row["total_ms"]))


def tables(result: dict[str, Any]) -> str:
    lines = ["| operation | system | us a call | quartiles | to ours | target | amount |", "|" + "---|" * 7]
    for row in result["warm"]:
        right = abs(row["amount"] - TRUE) < 1e-9
        target = (
            ""
            if row["target_us"] is None
            else f"{row['target_us']:g}{'' if row['us'] <= row['target_us'] else ' missed'}"
        )
        lines.append(
            f"| {row['operation']} | {row['system']} {row['version']} | {row['us']} | {row['from']} to {row['to']} | "
            f"{row['to_ours'] or ''} | {target} | {row['amount']:.8g}{'' if right else ' wrong'} |"
        )
    lines += [
        "",
        "| first price | system | ms | quartiles | of it import | added MiB | modules | time to ours | memory to ours |",
        "|" + "---|" * 9,
    ]
    lines += [
        f"| {row['operation']} | {row['system']} {row['version']} | {row['total_ms']} | {row['total_from']} to {row['total_to']} | "
        f"{row['import_ms']} | {row['added_mib']} | {row['modules']} | {row['time_to_ours']} | {row['memory_to_ours']} |"
        for row in result["first"]
    ]
    lines += ["", f"Targets of a first price: {FIRST['total_ms']:g} ms and {FIRST['added_mib']:g} MiB."]
    return "\n".join(lines)


def missed(result: dict[str, Any]) -> list[str]:
    found = [
        f"{row['operation']}: {row['us']} us, target {row['target_us']:g}"
        for row in result["warm"]
        if row["target_us"] is not None and row["us"] > row["target_us"]
    ]
    for row in result["first"]:
        if row["system"] == "aifinops":
            found += [
                f"first {row['operation']}: {key} {row[key]}, target {most:g}"
                for key, most in FIRST.items()
                if row[key] > most
            ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--milliseconds", type=float, default=30, help="what a system works for in a round, roughly")
    parser.add_argument("--fresh", type=int, default=9, help="fresh processes of each system")
    parser.add_argument("--envs", type=Path, default=ROOT / ".bench" / "pricing")
    parser.add_argument("--only", nargs="*", default=[], metavar="SYSTEM", help=", ".join(PEERS))
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target of ours is missed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    workers, pythons = start(options.envs, options.only)
    result = {
        "python": platform.python_version(), "machine": platform.machine(),
        "warm": warm_rows(warm(workers, options.rounds, options.milliseconds), workers),
        "first": fresh_rows(fresh(workers, pythons, options.fresh), workers),
    }  # fmt: skip
    for worker in workers.values():
        worker.stop()
    print(tables(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    late = missed(result)
    for line in late:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(1 if late and options.strict else 0)


if __name__ == "__main__":
    main()
