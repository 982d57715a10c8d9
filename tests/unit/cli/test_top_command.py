"""`aifinops top`, as it is typed, and as it is looked at."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aifinops import ledger, runtime
from aifinops.analytics.live import Pulse
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.guard import Guard
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.charges import Charge
from aifinops.cli.top import Frame, render
from aifinops.ledger import open_ledger
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.presence import Presence, folder_of
from aifinops.testing.clock import FakeClock
from aifinops.testing.ledger import example_charge

Run = Callable[..., tuple[int, str, str]]
CENT = 10_000_000
NOW = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)


def charge(number: int, cents: int | None, seconds_ago: float, team: str = "search", **changes: Any) -> Charge:
    clock = FakeClock(NOW)
    values: dict[str, Any] = {
        "amount": None if cents is None else cents * CENT, "basis": "unknown" if cents is None else "priced",
        "lower": None, "upper": None, "at": clock.time_ns() - int(seconds_ago * 1e9), "tags": {"team": team}, "model": "gpt-5",
    }  # fmt: skip
    return example_charge(number, **(values | changes))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A ledger, and beside it a store with two budgets, one of them with a call in flight."""
    book = open_ledger(tmp_path / "ledger.db")
    book.append_many(
        [
            charge(1, 25, 10),
            charge(2, 50, 40, "support"),
            charge(3, 100, 300),
            charge(4, None, 20, "lab", model="house-llama"),
            charge(5, 10, 600, basis="estimated"),
        ]
    )
    book.close()
    clock = FakeClock(NOW)
    store = SqliteStore(tmp_path / "budgets.db")
    guard = Guard(store, clock)
    for number, (name, limit, unit, spent, held) in enumerate(
        [
            ("search", "$10", "USD", 7 * 100 * CENT, 150 * CENT),
            ("words", "3M output_tokens", "output_tokens", 10**12, 0),
        ]
    ):
        active = ActiveBudget(Budget.parse(limit, name=name, per="day", max_wait=0))
        guard.settle(guard.reserve([active], {unit: spent}, id=f"s{number}", at=clock.time_ns()), {unit: spent})
        if held:
            guard.reserve([active], {unit: held}, id=f"h{number}", at=clock.time_ns())
    store.close()
    runtime.init(ledger=str(tmp_path / "ledger.db"), clock=clock)
    return tmp_path


@pytest.fixture
def run(run: Run) -> Run:
    """Type `aifinops top` and what follows: (exit status, standard output, standard error)."""
    return partial(run, "top")


GOLDEN = """\
aifinops top  2026-11-24 12:00:30 UTC
$0.75 in the last minute   $0.30 a minute over 5, $0.0267 over 60   3 calls
··················································▁····█···▄  the last hour
of this hour: 1 without a price, ~$0.10 estimated

team     model        last min  5 min   60 min   hour  calls
search   gpt-5           $0.25  $0.20  $0.0183  $1.35      1  ················▁·█·
support  gpt-5           $0.50  $0.10  $0.00833  $0.50      1  ···················█
lab      house-llama   unknown  $0.00    $0.00  unknown      1  ····················

budget  window                limit  spent   held    left  share              rate  lasts
search  per day              $10.00  $7.00  $1.50   $1.50  ███████     70%  $0.58/h  5 h
words   per day  3.00M output_tokens  1.00M      0   2.00M  ███▍        33%  83,276/h  to the end
"""


def squeezed(text: str) -> list[str]:
    """Lines with one space between words: what is aligned how is rich's business."""
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def test_one_look(run: Run, place: Path) -> None:
    """Spend of the last minute, averages, each team and model, what has no price, and budgets with what calls in flight hold."""
    status, out, _ = run("--once")
    assert status == 0
    assert squeezed(out) == squeezed(GOLDEN)


def test_a_pipe_gets_one_look(run: Run, place: Path) -> None:
    """Where nobody sits at a terminal it does not run for ever."""
    assert run()[1] == run("--once")[1]


def test_json(run: Run, place: Path) -> None:
    """One object in one line, with money as text."""
    status, out, _ = run("--once", "--format", "json")
    assert status == 0
    assert out.count("\n") == 1
    data = json.loads(out)
    assert data["at"] == "2026-11-24T12:00:30+00:00"
    (total,) = data["totals"]
    assert (total["last_minute"], total["hour"], total["unpriced_calls"]) == ("0.75", "1.85", 1)
    rows = {(row["key"]["team"], row["key"]["model"]): row for row in data["rows"]}
    assert rows["lab", "house-llama"]["last_minute"] is None
    assert len(rows["search", "gpt-5"]["minutes"]) == 60
    assert next((one["budget"], one["spent"], one["reserved"]) for one in data["budgets"]) == ("search", "7", "1.5")


def test_other_keys_and_filters(run: Run, place: Path) -> None:
    """As of a report."""
    data = json.loads(run("--once", "--format", "json", "--by", "team", "--where", "team=support")[1])
    assert [row["key"] for row in data["rows"]] == [{"team": "support"}]


def test_calls_in_flight(run: Run, place: Path) -> None:
    """How many in how many processes, of which models, and for how long the oldest; a process without any is counted as well."""
    now = FakeClock(NOW).time_ns()
    showing, idle = (Presence(lambda: folder_of(place / "ledger.db")) for _ in range(2))
    first, *others = [
        showing.begin(model, now - ago * 10**9) for model, ago in [("gpt-5", 2), ("house-llama", 12), ("gpt-5", 1)]
    ]
    idle.end(idle.begin("gpt-5", now))
    line = "3 calls in flight in 2 processes, the oldest for 12.0 s 2 gpt-5, 1 house-llama"
    assert line in squeezed(run("--once")[1])
    showing.end(first)
    flying = json.loads(run("--once", "--format", "json")[1])["in_flight"]
    assert flying == {
        "calls": 2,
        "more": False,
        "processes": 2,
        "oldest_s": 12.0,
        "models": {"gpt-5": 1, "house-llama": 1},
    }
    for token in others:
        showing.end(token)
    assert "0 calls in flight in 2 processes" in squeezed(run("--once")[1])
    showing.begin("\x1b[31mred", now)
    assert "1 call in flight in 2 processes, the oldest for 0.0 s 1 ?[31mred" in squeezed(run("--once")[1])
    showing.close()
    idle.close()
    assert "in flight" not in run("--once")[1]


def test_an_idle_ledger(run: Run, place: Path) -> None:
    """Nothing in the last hour is said; budgets are shown all the same."""
    _, out, _ = run("--once", "--where", "team=nobody")
    assert "No call in the last hour." in out
    assert "$10.00" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ledger", "{}/none.db"], "none.db"),
        (["--store", "{}/none.db"], "none.db"),
        (["--by", "a b"], "a b"),
        (["--where", "x"], "key=value"),
    ],
)
def test_wrong_input(run: Run, place: Path, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what is wrong, status 2, no file is made, and none is left open."""
    opened: list[Any] = []

    def kept(*arguments: Any, **settings: Any) -> Any:
        opened.append(open_ledger(*arguments, **settings))
        return opened[-1]

    monkeypatch.setattr(ledger, "open_ledger", kept)
    status, out, err = run("--once", *(word.format(place) for word in words))
    assert (status, out) == (2, "")
    assert told in err
    assert not (place / "none.db").exists()
    assert len(opened) == (words[0] != "--ledger")
    assert all(one._file.connection is None for one in opened)


def many(count: int) -> Frame:
    """A frame of many teams."""
    ledger = MemoryLedger()
    ledger.append_many([charge(n, n, 5, f"team {n:02}") for n in range(1, count + 1)])
    now = FakeClock(NOW).time_ns()
    return Frame(now, ("team",), Pulse(ledger, ("team",)).look(now))


def test_it_fits_the_screen() -> None:
    """In a terminal of twenty lines it takes no more; those that have no room are one row, and it adds up."""
    out = Console(width=100, height=20, record=True, file=io.StringIO(), force_terminal=True)
    out.print(render(many(40), out, height=20))
    text = out.export_text()
    assert len(text.splitlines()) <= 20
    assert "others)" in text
    shown = [Decimal(found) for found in re.findall(r"team \d\d +\$([\d.]+)", text)]
    (rest,) = re.findall(r"others\) +\$([\d.]+)", text)
    assert sum(shown) + Decimal(rest) == Decimal(sum(range(1, 41))) / 100


def test_plain_terminals() -> None:
    """Where blocks cannot be drawn there are none."""
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=120)
    out.print(render(many(3), out))
    out.file.flush()
    assert "_" * 20 in raw.getvalue().decode("ascii")


WRITER = """
import sys, time
from aifinops.ledger import open_ledger
from aifinops.testing.ledger import example_charge
book = open_ledger(sys.argv[1])
n = 0
while True:
    n += 1
    book.enqueue(example_charge(n, id=f"{n:032x}", at=time.time_ns(), amount=10_000_000, tags={"team": "live"}))
    time.sleep(0.05)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize("key", [b"q", b"\x03", b""], ids=["q", "Ctrl-C", "SIGTERM"])
def test_on_a_terminal_beside_a_writer(tmp_path: Path, key: bytes) -> None:
    """It shows what another process writes, grows, and leaves at a key or a signal with the terminal as it was."""
    import pty
    import termios

    ledger = tmp_path / "ledger.db"
    open_ledger(ledger).close()
    environment = {
        **os.environ,
        "TERM": "xterm",
        "COLUMNS": "120",
        "LINES": "30",
        "AIFINOPS_LEDGER": str(ledger),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    primary, secondary = pty.openpty()
    before = termios.tcgetattr(secondary)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(ledger)], env=environment)
    code = "from aifinops.cli import main; main()"
    top = subprocess.Popen(
        [sys.executable, "-c", code, "top", "--every", "0.3"], stdin=secondary, stdout=secondary, stderr=secondary, env=environment, start_new_session=True,
        preexec_fn=_take_terminal(secondary),  # noqa: PLW1509 - Ctrl-C comes from a terminal that the process has as its own
    )  # fmt: skip
    try:
        seen = _read_until(primary, rb"live +gpt-5-mini +\$0\.\d+.*live +gpt-5-mini +\$0\.\d+")
        amounts = [float(found) for found in re.findall(rb"live +gpt-5-mini +\$([\d.]+)", seen)]
        assert amounts[-1] > amounts[0] > 0
        os.write(primary, key) if key else top.terminate()
        assert top.wait(20) == 0
        assert termios.tcgetattr(secondary)[3] == before[3]
        assert b"\x1b[?1049l" in seen + _read_until(primary, rb"\x1b\[\?1049l")
    finally:
        top.kill()
        writer.kill()
        top.wait()
        writer.wait()
        os.close(primary)
        os.close(secondary)


def _take_terminal(descriptor: int) -> Callable[[], None]:
    def take() -> None:
        import fcntl
        import termios

        fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
        # A job in the background of a shell has Ctrl-C ignored, and what it starts inherits that: these tests may be one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return take


def _read_until(descriptor: int, wanted: bytes, seconds: float = 30) -> bytes:
    found, end = b"", time.monotonic() + seconds
    while time.monotonic() < end and not re.search(
        wanted, re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", found) if b"1049" not in wanted else found, re.DOTALL
    ):
        if select.select([descriptor], [], [], 0.2)[0]:
            found += os.read(descriptor, 65_536)
    return re.sub(rb"\x1b\[[0-9;]*m", b"", found)
