"""The ledger at scale: what an entry costs the caller, how fast the tables take them, and what a report over millions of rows takes.

    AIFINOPS_CORPUS=/path python benchmarks/ledger.py [--rows 10000000] [--rate 50000] [--seconds 20] [--keep FILE] [--json FILE] [--only STEP ...]

Entries are those of a real service (`servegen.py`). Each step has a process of its own, so that its memory is its own.

caller     CPU and elapsed time of one entry on the calling thread, beside a plain insert of the same row and a line of JSON; the median of
           the rounds. All but `buffered` have given their bytes to the operating system when they return: they survive a SIGKILL.
killed     a process is killed with SIGKILL amid entries: those that it had reported are counted in the ledger.
sustained  entries at a fixed rate for some seconds, and then as many as go; how far the tables were behind, and the process's memory.
report     a file of so many rows, kept with --keep FILE for the next time: rolling up, reports from roll-ups and from rows, memory.
compact    the same file up to its seventh day: entries a second, the longest that another process had to wait for its own entry.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import servegen

from aifinops.analytics.reports import report
from aifinops.charges import Charge, make_charge
from aifinops.ledger.base import DAY_NS, Query
from aifinops.ledger.codec import COLUMNS, line_of, packed, row_of
from aifinops.ledger.sqlite import SqliteLedger

STEPS = ("caller", "killed", "sustained", "report", "compact")
ROUND = 2_000
BY = ["team", "model", "day"]
Figures = dict[str, Any]


def rss() -> float:
    """Resident memory of this process, MiB; without pages of files, where the system tells them apart."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) / 1024
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def copies(templates: list[Charge]) -> Iterator[Charge]:
    """The same entries over and over, each with a time and an id of its own, 50,000 to a second."""
    number = 0
    while True:
        for one in templates:
            number += 1
            values = one.__dict__.copy()
            values["at"] = at = servegen.START_NS + number * 20_000  # ids ascend in time, as those of real calls do
            values["id"] = f"{at:016x}{os.getpid() << 40 | number:016x}"
            yield make_charge(**values)


# --- the caller -------------------------------------------------------------------------------------------------------


def caller(options: argparse.Namespace, folder: Path) -> Figures:
    """What one entry costs, by turns."""
    source = copies(list(islice(servegen.load().charges(options.rows), ROUND)))
    ledger, direct = SqliteLedger(folder / "l.db"), SqliteLedger(folder / "append.db")
    plain = sqlite3.connect(folder / "plain.db", isolation_level=None)
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = NORMAL")
    plain.execute(f"CREATE TABLE charges (id TEXT PRIMARY KEY, {', '.join(COLUMNS[1:])})")
    insert = f"INSERT INTO charges VALUES ({', '.join('?' * len(COLUMNS))})"
    file = os.open(folder / "lines.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    buffered = (folder / "buffered.jsonl").open("w")
    ways: dict[str, Callable[[Charge], object]] = {
        "enqueue": ledger.enqueue,
        "append": direct.append,
        "plain insert": lambda charge: plain.execute(insert, row_of(charge)),
        "line, write()": lambda charge: os.write(file, f"{line_of(packed(charge))}\n".encode()),
        "line, buffered": lambda charge: buffered.write(f"{line_of(packed(charge))}\n"),
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            found[name].append(_timed(way, list(islice(source, ROUND))))
            time.sleep(0.05)  # a service has other things to do as well; the thread that fills the tables has its turn
    for close in (ledger.close, direct.close, plain.close, buffered.close):
        close()
    os.close(file)
    return {name: _told(rounds) for name, rounds in found.items()}


def _told(rounds: list[tuple[float, float, float]]) -> dict[str, float]:
    """Medians; and the CPU time of the best round, which is what a machine with nothing else to do takes."""
    cpu, elapsed, slow = zip(*rounds, strict=True)
    facts = {
        "cpu_us": statistics.median(cpu),
        "least_cpu_us": min(cpu),
        "us": statistics.median(elapsed),
        "p99_us": statistics.median(slow),
    }
    return {name: round(value, 2) for name, value in facts.items()}


def _timed(way: Callable[[Charge], object], charges: list[Charge]) -> tuple[float, float, float]:
    each = []
    gc.collect()
    gc.freeze()  # walking through what a benchmark holds is not what an entry costs
    cpu, begun = time.thread_time(), time.perf_counter()
    for charge in charges:
        way(charge)
    cpu, whole = time.thread_time() - cpu, time.perf_counter() - begun
    for charge in charges[:500]:  # alone, and known already: the clock would cost as much as the entry
        begun = time.perf_counter()
        way(_renamed(charge))
        each.append(time.perf_counter() - begun)
    return cpu / len(charges) * 1e6, whole / len(charges) * 1e6, sorted(each)[len(each) * 99 // 100] * 1e6


def _renamed(charge: Charge) -> Charge:
    return make_charge(**{**charge.__dict__, "id": charge.id[:16] + charge.id[:15:-1]})


KILLED = """
import os, sys
sys.path[:0] = {path!r}
import servegen
from ledger import copies
from itertools import islice
from aifinops.ledger.sqlite import SqliteLedger
ledger = SqliteLedger(sys.argv[1])
for number, charge in enumerate(copies(list(islice(servegen.load().charges(1_000_000), 500))), 1):
    ledger.enqueue(charge)
    os.write(1, b".")
"""


def killed(options: argparse.Namespace, folder: Path) -> Figures:
    """What a process had given is there after its SIGKILL."""
    lost = told = 0
    for number in range(5):
        path = folder / f"{number}.db"
        code = KILLED.format(path=sys.path[:1])
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            count = len(os.read(process.stdout.fileno(), 1))  # it has begun
            begun = time.monotonic()
            while time.monotonic() - begun < 1 + number:
                count += len(os.read(process.stdout.fileno(), 1 << 16))
            process.send_signal(signal.SIGKILL)
            count += len(process.stdout.read())
        ledger = SqliteLedger(path)
        lost += max(0, count - ledger.info().entries)
        told += count
        ledger.close()
    return {"entries": told, "lost": lost}


# --- at a rate --------------------------------------------------------------------------------------------------------


def sustained(options: argparse.Namespace, folder: Path) -> Figures:
    """At the rate that was asked for, then as many as go."""
    templates = list(islice(servegen.load().charges(options.rows), ROUND))
    return {
        "at_rate": _fed(folder / "rate.db", copies(templates), options.seconds, options.rate),
        "as_many_as_go": _fed(folder / "most.db", copies(templates), options.seconds, None),
    }


def _fed(path: Path, source: Iterator[Charge], seconds: float, rate: int | None) -> Figures:
    ledger = SqliteLedger(path)
    behind, memory = [], [rss()]
    cpu, spent, given = 0.0, 0.0, 0
    begun, used = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - begun) < seconds:
        part = list(islice(source, 500))
        if rate is not None and given > rate * passed:
            time.sleep(given / rate - passed)
        cpu, spent = cpu - time.thread_time(), spent - time.perf_counter()
        for charge in part:
            ledger.enqueue(charge)
        cpu, spent = cpu + time.thread_time(), spent + time.perf_counter()
        given += len(part)
        if given % 25_000 == 0:
            behind.append(sum(one.entries for one in ledger._journals))
            memory.append(rss())
    fed = time.perf_counter() - begun
    ledger.close()
    whole, used = time.perf_counter() - begun, time.process_time() - used
    entries = SqliteLedger(path).info().entries
    middle = memory[len(memory) // 2]
    return {
        "given_per_s": round(given / fed),
        "in_tables_per_s": round(entries / whole),
        "lost": given - entries,
        "caller_cpu_us": round(cpu / given * 1e6, 2),
        "caller_us": round(spent / given * 1e6, 2),
        "process_cpu_us": round(used / given * 1e6, 2),
        "most_behind": max(behind, default=0),
        "rss_mib": {"before": round(memory[0], 1), "middle": round(middle, 1), "most": round(max(memory), 1), "end": round(rss(), 1)},
    }  # fmt: skip


# --- millions of rows -------------------------------------------------------------------------------------------------


def filled(options: argparse.Namespace, folder: Path) -> tuple[Path, Figures]:
    """The large file, made when it is not there."""
    path = Path(options.keep) if options.keep else folder / "large.db"
    if path.exists():
        return path, {}
    ledger, memory = SqliteLedger(path), []
    source = servegen.load().charges(options.rows)
    begun = time.perf_counter()
    done = 0
    while part := list(islice(source, 5_000)):
        done += ledger.append_many(part)
        if done % 500_000 == 0:
            memory.append(rss())
            print(f"{done:,} rows, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    ledger.close()
    seconds = time.perf_counter() - begun
    facts = {"fill_s": round(seconds, 1), "fill_rows_per_s": round(done / seconds)}
    return path, facts | ({"fill_rss_mib": [round(memory[0], 1), round(memory[-1], 1)]} if memory else {})


def large(options: argparse.Namespace, folder: Path) -> Figures:
    """Reports over the large file."""
    path, facts = filled(options, folder)
    ledger = SqliteLedger(path)
    begun = time.perf_counter()
    rolled = ledger.migrate()
    if rolled:
        facts |= {"roll_up_s": round(time.perf_counter() - begun, 1)}
    info = ledger.info()
    day = info.first_at // DAY_NS * DAY_NS if info.first_at is not None else 0
    facts |= {"rows": info.entries, "bytes": info.size_bytes, "rss_before_mib": round(rss(), 1)}
    asks: dict[str, Callable[[], object]] = {
        "team, model, day: summarize": lambda: ledger.summarize(Query(), BY),
        "team, model, day: report": lambda: report(ledger, by=BY),
        "team, hour of one day": lambda: ledger.summarize(Query(day + 3 * DAY_NS, day + 4 * DAY_NS), ["team", "hour"]),
        "team, from 10:07:03 on for 3 days": lambda: ledger.summarize(
            Query(day + DAY_NS + 36_423 * 10**9, day + 4 * DAY_NS + 36_423 * 10**9), ["team"]
        ),
        "info": ledger.info,
    }
    facts["ms"] = {name: _best(ask) for name, ask in asks.items()}
    begun = time.perf_counter()
    with sqlite3.connect(
        path
    ) as plain:  # the same question, without roll-ups: what everybody else's table of calls has to do
        plain.execute(
            "SELECT team, model, strftime('%Y-%m-%d', at / 1000000000, 'unixepoch') AS day, currency, count(*), sum(amount), "
            "sum(input_tokens), sum(output_tokens) FROM charges GROUP BY 1, 2, 3, 4"
        ).fetchall()
    facts["ms"]["team, model, day: plain SQL over the rows"] = round((time.perf_counter() - begun) * 1e3)
    begun = time.perf_counter()
    ledger.summarize(Query(), ["customer"])
    facts["ms"]["customer (a key that is not rolled up)"] = round((time.perf_counter() - begun) * 1e3)
    facts["rss_reports_mib"] = round(rss(), 1)
    facts |= _read(ledger, options.read)
    ledger.close()
    return facts


def _best(ask: Callable[[], object]) -> dict[str, float]:
    times, used = [], []
    for _ in range(9):
        begun, cpu = time.perf_counter(), time.thread_time()
        ask()
        times.append((time.perf_counter() - begun) * 1e3)
        used.append((time.thread_time() - cpu) * 1e3)
    return {
        "median": round(statistics.median(times), 1),
        "worst": round(max(times), 1),
        "cpu": round(statistics.median(used), 1),
    }


def _read(ledger: SqliteLedger, most: int) -> Figures:
    memory = []
    begun = time.perf_counter()
    done = 0
    for done, _ in enumerate(ledger.rows(Query(limit=most)), 1):
        if done % 100_000 == 0:
            memory.append(rss())
    seconds = time.perf_counter() - begun
    return {
        "read_rows_per_s": round(done / seconds),
        "read_rss_mib": [round(one, 1) for one in memory[:: max(1, len(memory) // 4)]],
    }


def compacted(options: argparse.Namespace, folder: Path) -> Figures:
    """Seven days become daily sums while another connection writes an entry every few milliseconds."""
    path, _ = filled(options, folder)
    copy = folder / "copy.db"
    shutil.copy(path, copy)
    ledger, other = SqliteLedger(copy), SqliteLedger(copy, timeout_s=60)
    ledger.migrate()
    before = ledger.summarize(Query(), BY)
    waits: list[float] = []
    over = threading.Event()
    source = copies(list(islice(servegen.load().charges(1_000_000), 100)))

    def write() -> None:
        while not over.wait(0.005):
            charge = make_charge(**{**next(source).__dict__, "at": servegen.START_NS + 20 * DAY_NS})
            begun = time.perf_counter()
            other.append(charge)
            waits.append(time.perf_counter() - begun)

    writer = threading.Thread(target=write)
    writer.start()
    begun = time.perf_counter()
    done = ledger.compact(servegen.START_NS + 7 * DAY_NS)
    seconds = time.perf_counter() - begun
    over.set()
    writer.join()
    after = ledger.summarize(Query(until_ns=servegen.START_NS + 19 * DAY_NS), BY)
    ordered = sorted(waits)
    return {
        "entries": done.entries,
        "entries_per_s": round(done.entries / seconds),
        "freed_bytes": done.freed_bytes,
        "same_sums": after == before,
        "writers_wait_ms": {
            "median": round(ordered[len(ordered) // 2] * 1e3, 1),
            "p99": round(ordered[len(ordered) * 99 // 100] * 1e3, 1),
            "longest": round(ordered[-1] * 1e3, 1),
        },
    }


# --- together ---------------------------------------------------------------------------------------------------------

RUN = {"caller": caller, "killed": killed, "sustained": sustained, "report": large, "compact": compacted}


def main() -> int:
    """Run the steps and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the large file")
    parser.add_argument("--rate", type=int, default=50_000, help="entries a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--read", type=int, default=1_000_000, help="rows that are read one by one")
    parser.add_argument("--keep", metavar="FILE", help="the large file: used when it is there, else made and kept")
    parser.add_argument("--folder", help="for files; those of a step are deleted after it")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(RUN[options.step](options, Path(folder))))
        return 0
    found: Figures = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    for step in options.only:
        print(f"{step}; load of the machine {os.getloadavg()[0]:.1f}", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--step", step], stdout=subprocess.PIPE, check=True
        )
        found[step] = json.loads(done.stdout)
        print(json.dumps({step: found[step]}, indent=1))
        if options.json:
            Path(options.json).write_text(json.dumps(found, indent=1))
    wrong = found.get("killed", {}).get("lost") or not found.get("compact", {}).get("same_sums", True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
