"""What `aifinops top` costs while it runs: its processor time and memory on a ledger that another process writes to.

    python benchmarks/top.py [--rows 1000000] [--seconds 20] [--rate 50]

It fills a ledger with `--rows` calls of the last 24 hours, starts a writer of `--rate` calls a second in a process of its own, and
`aifinops top` on a pseudo-terminal, as over ssh; presses q at the end, and reads what the kernel says of the process.
"""

from __future__ import annotations

import argparse
import os
import pty
import resource
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aifinops.charges import Charge
from aifinops.ledger import open_ledger
from aifinops.tags import make_tags

TEAMS = [make_tags({"team": f"team-{n}"}) for n in range(12)]
MODELS = ("gpt-5", "gpt-5-mini", "claude-sonnet-4-5", "gemini-2.5-flash")

WRITER = """
import sys, time
sys.path.insert(0, {here!r})
from top import charge
from aifinops.ledger import open_ledger
book = open_ledger({ledger!r})
number = 10**12
while True:
    number += 1
    book.enqueue(charge(number, time.time_ns()))
    time.sleep(1 / {rate})
"""


def charge(number: int, at: int) -> Charge:
    return Charge(
        id=f"{number:032x}", at=at, provider="openai", operation="chat", model=MODELS[number % 4], amount=1_000 + number % 977_000, basis="priced",
        quantities={"input_tokens": 900 + number % 100, "output_tokens": 40}, duration=10**9, tags=TEAMS[number % 12],
    )  # fmt: skip


def fill(ledger: str, rows: int) -> None:
    now, day = time.time_ns(), 86_400 * 10**9
    book = open_ledger(ledger)
    for start in range(0, rows, 50_000):
        book.append_many([charge(n, now - day + day * n // rows) for n in range(start, min(rows, start + 50_000))])
    book.migrate()  # roll-ups are made while a ledger is written; this one was filled all at once
    book.close()


def watch(ledger: str, seconds: float) -> tuple[float, float, int, int]:
    """Seconds of processor, seconds until the first frame, peak memory in MB, and bytes that were drawn."""
    words = [sys.executable, "-c", "from aifinops.cli import main; main()", "top", "--ledger", ledger]
    primary, secondary = pty.openpty()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = subprocess.Popen(
        words,
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(secondary)
    drawn, first = 0, 0.0
    while time.monotonic() - began < seconds:
        if select.select([primary], [], [], 0.2)[0]:
            text = os.read(primary, 65_536)
            drawn += len(text)
            if not first and b"last minute" in text:
                first = time.monotonic() - began
    os.write(primary, b"q")
    while process.poll() is None:
        try:
            if select.select([primary], [], [], 0.1)[0]:
                os.read(primary, 65_536)
        except OSError:
            break
    assert process.wait(10) == 0, process.returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, first, after.ru_maxrss // 1024, drawn


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--seconds", type=float, default=20)
    options.add_argument("--rate", type=float, default=50)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = str(Path(folder) / "ledger.db")
        fill(ledger, given.rows)
        script = WRITER.format(here=str(Path(__file__).parent), ledger=ledger, rate=given.rate)
        with subprocess.Popen([sys.executable, "-c", script]) as writer:
            used, first, memory, drawn = watch(ledger, given.seconds)
            writer.kill()
    print(f"{given.rows:,} rows, {given.rate:g} calls a second written meanwhile, {given.seconds:g} s:")
    print(
        f"first frame after {first:.2f} s; {used:.2f} s of processor, {used / given.seconds:.1%} of a core; {memory} MB; {drawn / given.seconds / 1000:.1f} kB/s drawn"
    )


if __name__ == "__main__":
    main()
