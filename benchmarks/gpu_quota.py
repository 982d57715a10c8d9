"""What quotas with borrowing do to a cluster: utilisation and waiting time on a public trace, with the decisions of `aifinops.gpu.admission`.

    python benchmarks/gpu_quota.py --trace DIR [--plot docs/images/gpu-quota.svg] [--json FILE]

DIR has `openb_pod_list_default.csv` of alibaba/clusterdata (cluster-trace-gpu-v2023): pods with the GPUs that they asked for and when they ran.
The trace names no teams. Pods that ask for the same CPU, memory and GPU share are taken to be of one owner, and owners are dealt to four teams so
that each has about the same GPU hours. Fractions of a GPU are rounded up to one. The priority is that of the QoS. Each team owns a quarter of
the cluster. A job that is asked to yield needs a minute to save, leaves, and waits again with what is left of it;
one that has held its GPUs for less than ten minutes is not asked.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import itertools
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aifinops.gpu.admission import Holder, Request, Usage, decayed, decide, penalised
from aifinops.gpu.quota import Quotas, read_table

DAY, HOUR = 86_400.0, 3600.0
TEAMS = ("amber", "birch", "cedar", "dune")
PRIORITY = {"LS": 500, "Guaranteed": 500, "Burstable": 100, "BE": 0}
CHECKPOINT_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    team: str
    gpus: int
    priority: int
    arrives: float
    runs: float


@dataclass(slots=True)
class Result:
    name: str
    capacity: int
    waits: list[float] = field(default_factory=list)
    late: int = 0
    yields: int = 0
    saved_s: float = 0.0
    most: Counter[str] = field(default_factory=Counter)
    limits: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    in_use: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0

    def busy(self, start: float, end: float) -> float:
        """GPU-seconds in use in a time."""
        total, held, since = 0.0, 0, start
        for at, gpus in self.in_use:
            if at > start:
                total += held * max(0.0, min(at, end) - since)
                since = min(max(at, start), end)
            held = gpus
        return total + held * max(0.0, end - since)


def read_trace(folder: Path, first_day: float, last_day: float) -> list[Job]:
    with (folder / "openb_pod_list_default.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["num_gpu"])]
    rows = [row for row in rows if first_day * DAY <= float(row["creation_time"]) < last_day * DAY]
    owners = _dealt(rows)
    jobs = []
    for row in rows:
        began = float(row["scheduled_time"] or row["creation_time"])
        runs = max(1.0, float(row["deletion_time"]) - began)
        jobs.append(
            Job(
                row["name"],
                owners[_shape(row)],
                int(row["num_gpu"]),
                PRIORITY[row["qos"]],
                float(row["creation_time"]),
                runs,
            )
        )
    return sorted(jobs, key=lambda job: (job.arrives, job.id))


def _shape(row: dict[str, str]) -> tuple[str, ...]:
    return (row["cpu_milli"], row["memory_mib"], row["num_gpu"], row["gpu_milli"])


def _dealt(rows: list[dict[str, str]]) -> dict[tuple[str, ...], str]:
    """The largest owner first, each to the team that has least so far."""
    hours: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        hours[_shape(row)] += int(row["num_gpu"]) * (float(row["deletion_time"]) - float(row["creation_time"]))
    load = dict.fromkeys(TEAMS, 0.0)
    owners = {}
    for shape, used in sorted(hours.items(), key=lambda pair: (-pair[1], pair[0])):
        team = min(load, key=lambda name: (load[name], name))
        owners[shape] = team
        load[team] += used
    return owners


def quotas(gpus: int, kind: str) -> Quotas:
    """`own`: nobody borrows. `half`: half of the own quota more at most. `borrow`: whatever is free."""
    own = gpus // len(TEAMS)
    row: dict[str, Any] = {"nominal": own}
    if kind == "half":
        row["borrowing_limit"] = own // 2
    team: dict[str, Any] = {"x": row} if kind == "own" else {"x": row, "cohort": "all"}
    return read_table({"pools": {"x": gpus}, "teams": dict.fromkeys(TEAMS, team), "fair_share": {"patience_hours": 24, "exempt_minutes": 10}})  # fmt: skip


class Cluster:
    """A discrete simulation: arrivals, ends and leaves in the order of time, and a decision after each."""

    def __init__(self, rules: Quotas, jobs: Sequence[Job], name: str) -> None:
        self.rules = rules
        self.result = Result(name, rules.pools["x"].gpus)
        self.result.limits = {team: rules.hard_limit(team, "x") for team in rules.teams}
        self.order = itertools.count()
        self.events: list[tuple[float, int, str, str]] = []
        self.left: dict[str, float] = {}
        self.jobs: dict[str, Job] = {}
        self.waited: dict[str, float] = {}
        self.holders: dict[str, Holder] = {}
        self.queue: dict[str, Request] = {}
        self.usage: dict[str, Usage] = {}
        self.held: Counter[str] = Counter()
        for job in jobs:
            # What a team could never have is nothing that a quota can help.
            if job.gpus > self.result.limits[job.team]:
                self.result.late += 1
                continue
            self.jobs[job.id], self.left[job.id] = job, job.runs
            self.push(job.arrives, "arrive", job.id)

    def push(self, at: float, kind: str, id: str) -> None:
        heapq.heappush(self.events, (at, next(self.order), kind, id))

    def run(self) -> Result:
        began = time.perf_counter()
        while self.events:
            now = self.events[0][0]
            while self.events and self.events[0][0] == now:
                _, _, kind, id = heapq.heappop(self.events)
                getattr(self, kind)(now, id)
            self.decide(now)
            self.check(now)
        assert not self.queue, f"{len(self.queue)} jobs were never let in"
        self.result.seconds = time.perf_counter() - began
        return self.result

    def arrive(self, now: float, id: str) -> None:
        job = self.jobs[id]
        self.queue[id] = Request(id, job.team, "x", job.gpus, job.priority, now)
        self.waited.setdefault(id, 0.0)

    def end(self, now: float, id: str) -> None:
        holder = self.holders.get(id)
        # One that has left meanwhile ends later; the time at which it would have ended is no event any more.
        if holder is None or abs(holder.since + self.left[id] - now) > 1e-6:
            return
        self.release(now, id)
        self.result.waits.append(self.waited.pop(id))

    def leave(self, now: float, id: str) -> None:
        holder = self.holders.get(id)
        if holder is None:
            return
        self.left[id] -= max(0.0, now - holder.since - CHECKPOINT_S)
        self.result.saved_s += CHECKPOINT_S * holder.gpus
        self.result.yields += 1
        self.release(now, id)
        self.arrive(now, id)

    def release(self, now: float, id: str) -> None:
        holder = self.holders.pop(id)
        self.account(now, holder.team)
        self.held[holder.team] -= holder.gpus

    def account(self, now: float, team: str) -> None:
        self.usage[team] = decayed(self.usage.get(team, Usage(0.0, now)), self.held[team], now, self.rules.fair_share)

    def decide(self, now: float) -> None:
        if not self.queue:
            return
        plan = decide(self.rules, list(self.holders.values()), list(self.queue.values()), self.usage, now)
        for holder, request in plan.reclaim:
            asked = self.holders[holder]
            self.holders[holder] = replace(asked, yields_to=request)
            self.push(min(now + CHECKPOINT_S, asked.since + self.left[holder]), "leave", holder)
        for id in plan.admit:
            request = self.queue.pop(id)
            self.waited[id] += now - request.since
            self.holders[id] = Holder(id, request.team, "x", request.gpus, request.priority, now)
            self.account(now, request.team)
            self.usage[request.team] = penalised(self.usage[request.team], request.gpus, self.rules.fair_share)
            self.held[request.team] += request.gpus
            self.push(now + self.left[id], "end", id)

    def check(self, now: float) -> None:
        total = sum(self.held.values())
        assert total <= self.result.capacity, (now, total)
        for team, gpus in self.held.items():
            assert 0 <= gpus <= self.result.limits[team], (now, team, gpus)
            self.result.most[team] = max(self.result.most[team], gpus)
        self.result.peak = max(self.result.peak, total)
        self.result.in_use.append((now, total))


def facts(result: Result, start: float, end: float) -> dict[str, Any]:
    waits = sorted(result.waits)
    return {
        "quotas": result.name,
        "gpus": result.capacity,
        "jobs": len(waits),
        "refused": result.late,
        "utilisation": result.busy(start, end) / (result.capacity * (end - start)),
        "wait_mean_s": statistics.fmean(waits),
        "wait_median_s": statistics.median(waits),
        "wait_p95_s": _quantile(waits, 0.95),
        "wait_p99_s": _quantile(waits, 0.99),
        "waited_over_10_min": sum(wait > 600 for wait in waits) / len(waits),
        "yields": result.yields,
        "checkpoint_gpu_hours": result.saved_s / HOUR,
        "peak_gpus": result.peak,
        "most_of_a_team": dict(sorted(result.most.items())),
        "hard_limits": dict(sorted(result.limits.items())),
        "seconds": round(result.seconds, 1),
    }


def _quantile(values: Sequence[float], q: float) -> float:
    return values[min(len(values) - 1, math.ceil(q * len(values)) - 1)]


# --- the plot ----------------------------------------------------------------------------------------------------------------

COLORS = {"own": "#8a8f98", "half": "#d08700", "borrow": "#2563eb"}
SAID = {"own": "no borrowing", "half": "borrowing up to half of one's own", "borrow": "borrowing whatever is free"}


def plot(results: Sequence[Result], start: float, end: float) -> str:
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 640" font-family="sans-serif" font-size="13" fill="#444">',
        '<rect width="880" height="640" fill="#ffffff"/>',
        *_in_use_panel(results, start, end),
        *_wait_panel(results),
    ]
    for number, result in enumerate(results):
        x = 70 + 270 * number
        parts.append(f'<rect x="{x}" y="612" width="22" height="4" fill="{COLORS[result.name]}"/>')
        parts.append(f'<text x="{x + 30}" y="619">{SAID[result.name]}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _axes(x: float, y: float, width: float, height: float, title: str) -> Iterator[str]:
    yield f'<text x="{x}" y="{y - 14}" font-size="15" font-weight="bold" fill="#222">{title}</text>'
    yield f'<path d="M{x} {y}V{y + height}H{x + width}" fill="none" stroke="#999"/>'


def _in_use_panel(results: Sequence[Result], start: float, end: float) -> Iterator[str]:
    x, y, width, height = 70.0, 44.0, 790.0, 220.0
    most = results[0].capacity
    yield from _axes(x, y, width, height, f"GPUs in use, mean of six hours ({most} there are)")
    step = 6 * HOUR
    for part in range(5):
        level = most * part / 4
        at = y + height - height * level / most
        yield f'<path d="M{x} {at:.1f}h{width}" stroke="#e5e5e5"/><text x="{x - 10}" y="{at + 4:.1f}" text-anchor="end">{level:.0f}</text>'  # fmt: skip
    for day in range(0, int((end - start) / DAY) + 1, 5):
        at = x + width * day * DAY / (end - start)
        yield f'<text x="{at:.1f}" y="{y + height + 20}" text-anchor="middle">day {day}</text>'
    for result in results:
        points = []
        for number in range(int((end - start) / step)):
            begins = start + number * step
            mean = result.busy(begins, begins + step) / step
            points.append(f"{x + width * (begins + step / 2 - start) / (end - start):.1f},{y + height - height * mean / most:.1f}")  # fmt: skip
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{COLORS[result.name]}" stroke-width="1.6"/>'


def _wait_panel(results: Sequence[Result]) -> Iterator[str]:
    x, y, width, height = 70.0, 340.0, 790.0, 220.0
    low, high = 0.0, 6.0  # 1 s to 10^6 s
    yield from _axes(x, y, width, height, "share of jobs that waited longer than")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = y + height - height * share
        yield f'<path d="M{x} {at:.1f}h{width}" stroke="#e5e5e5"/><text x="{x - 10}" y="{at + 4:.1f}" text-anchor="end">{share:.0%}</text>'  # fmt: skip
    for seconds, said in (
        (1, "1 s"),
        (60, "1 min"),
        (600, "10 min"),
        (3600, "1 h"),
        (36_000, "10 h"),
        (345_600, "4 d"),
    ):
        at = x + width * (math.log10(seconds) - low) / (high - low)
        yield f'<path d="M{at:.1f} {y}v{height}" stroke="#efefef"/>'
        yield f'<text x="{at:.1f}" y="{y + height + 20}" text-anchor="middle">{said}</text>'
    for result in results:
        waits = sorted(result.waits)
        points = []
        for number in range(241):
            seconds = 10 ** (low + (high - low) * number / 240)
            longer = sum(wait > seconds for wait in waits) / len(waits)
            points.append(f"{x + width * number / 240:.1f},{y + height - height * longer:.1f}")
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{COLORS[result.name]}" stroke-width="2"/>'


# --- the command -------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="folder of openb_pod_list_default.csv")
    parser.add_argument("--gpus", type=int, default=32, help="of the cluster; a quarter is each team's own")
    parser.add_argument("--days", type=float, nargs=2, default=(120.0, 150.0), help="of the trace")
    parser.add_argument("--kinds", nargs="+", default=["own", "half", "borrow"], choices=["own", "half", "borrow"])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    jobs = read_trace(given.trace, *given.days)
    start, end = given.days[0] * DAY, max(job.arrives for job in jobs)
    offered = sum(job.gpus * job.runs for job in jobs) / (given.gpus * (end - start))
    print(f"{len(jobs)} jobs in {(end - start) / DAY:.1f} days, {given.gpus} GPUs, offered load {offered:.0%}")
    results = []
    for kind in given.kinds:
        results.append(Cluster(quotas(given.gpus, kind), jobs, kind).run())
        print(json.dumps(facts(results[-1], start, end)), flush=True)
    if given.json:
        given.json.write_text(json.dumps([facts(one, start, end) for one in results], indent=2) + "\n")
    if given.plot:
        given.plot.write_text(plot(results, start, end))
    return 0


if __name__ == "__main__":
    sys.exit(main())
