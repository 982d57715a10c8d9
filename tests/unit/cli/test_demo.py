"""`aifinops demo`, whole: the real client, the loopback provider, the ledger, the report."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from aifinops.analytics.reports import Report, report
from aifinops.ledger import open_ledger

pytest.importorskip("openai", reason="the demo drives the real openai client")

Run = Callable[..., tuple[int, str, str]]
HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """Type a demo command that writes to a ledger of this test: (exit status, output, errors)."""
    return partial(run, "demo", "--ledger", tmp_path / "demo.db")


def ledger_report(tmp_path: Path, by: str = "model") -> Report:
    """What the demo has left in its ledger."""
    book = open_ledger(tmp_path / "demo.db", create=False)
    try:
        return report(book, by=by)
    finally:
        book.close()


def trace(tmp_path: Path, rows: int = 40) -> Path:
    """A trace of so many rows."""
    path = tmp_path / "trace.csv"
    lines = [f"2026-01-01 00:00:{row % 60:02d}.1234567,{100 + row},{10 + row % 7}\n" for row in range(rows)]
    path.write_text(HEAD + "".join(lines))
    return path


def test_the_desk(run: Run, tmp_path: Path) -> None:
    """Three teams, a stopped agent, an unpriced model, a bill that adds up, and what to type next."""
    status, out, err = run()
    assert (status, err) == (0, "")
    for told in (
        "support",
        "search",
        "research",
        "was stopped at",
        "two requests, one charge",
        "Without a price",
        "desk-house-7b",
        "agree",
        "demo.db",
        "aifinops report --by team,model",
    ):
        assert told in out
    teams = {row.key["team"]: row for row in ledger_report(tmp_path, "team")}
    assert set(teams) == {"support", "search", "research"}
    assert teams["support"].cached_tokens > 0
    assert teams["search"].reasoning_tokens > 0
    assert teams["research"].unpriced_calls == 6


def test_the_agent_stays_under_its_budget(run: Run, tmp_path: Path) -> None:
    """What the agent has spent is above nothing and at most its five cents."""
    run()
    rows = {row.key["feature"]: row for row in ledger_report(tmp_path, "feature")}
    amount = rows["agent"].amount
    assert amount is not None
    assert Decimal("0.02") < amount <= Decimal("0.05")


def test_two_runs_are_two_runs(run: Run, tmp_path: Path) -> None:
    """A second run is added to the ledger, and its report is of itself alone."""
    first, second = run()[1], run()[1]
    assert first.split("Spend by model")[1].split("Ledger:")[0] == second.split("Spend by model")[1].split("Ledger:")[0]
    assert len(ledger_report(tmp_path, "run")) == 2


def test_trace(run: Run, tmp_path: Path) -> None:
    """Every row of a trace is in the ledger, to the token."""
    status, out, err = run("--trace", trace(tmp_path), "--workers", 3)
    assert (status, err) == (0, "")
    assert "equal to the token" in out
    total = ledger_report(tmp_path).total
    sums = (sum(100 + row for row in range(40)), sum(10 + row % 7 for row in range(40)))
    assert (total.calls, total.input_tokens, total.output_tokens, total.cached_tokens) == (40, *sums, 0)


@pytest.mark.parametrize("workers", [1, 4])
def test_trace_under_a_budget(run: Run, tmp_path: Path, workers: int) -> None:
    """A budget of half the cost stops the replay at or below that half, and not far below."""
    run("--trace", trace(tmp_path), "--model", "gpt-4o")
    whole = ledger_report(tmp_path).total.amount
    assert whole is not None
    (tmp_path / "demo.db").unlink()
    half = whole / 2
    status, out, _ = run("--trace", trace(tmp_path), "--model", "gpt-4o", "--budget", f"${half}", "--workers", workers)
    spent = ledger_report(tmp_path).total.amount
    assert status == 0
    assert "Stopped by the budget" in out
    assert spent is not None
    assert half * Decimal("0.8") < spent <= half


def test_trace_budget_in_tokens(run: Run, tmp_path: Path) -> None:
    """A budget may be a quantity; one that is large enough is never in the way."""
    status, out, _ = run("--trace", trace(tmp_path), "--budget", "1M tokens", "--limit", 5)
    assert status == 0
    assert "never in the way" in out
    assert ledger_report(tmp_path).total.calls == 5


def test_trace_in_time(run: Run, tmp_path: Path) -> None:
    """With a speed the rows are sent in time; a high one is over at once."""
    status, out, _ = run("--trace", trace(tmp_path, 10), "--speed", 10_000)
    assert status == 0
    assert "equal to the token" in out


def test_the_public_trace(run: Run, tmp_path: Path) -> None:
    """The first rows of the public trace."""
    corpus = os.environ.get("AIFINOPS_CORPUS")
    if not corpus:
        pytest.skip("AIFINOPS_CORPUS names no folder")
    file = Path(corpus) / "azure" / "AzureLLMInferenceTrace_code.csv"
    status, out, _ = run("--trace", file, "--limit", 300)
    assert status == 0
    assert "equal to the token" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--trace", "{}/missing.csv"], "missing.csv"),
        (["--trace", "{}/trace.csv", "--budget", "-$1"], "-$1"),
        (["--trace", "{}/trace.csv", "--budget", "many"], "many"),
        (["--trace", "{}/trace.csv", "--workers", "0"], "workers=0"),
        (["--trace", "{}/trace.csv", "--speed", "0"], "speed=0"),
        (["--trace", "{}/trace.csv", "--limit", "0"], "limit=0"),
        (["--speed", "2"], "--trace"),
        (["--otlp", "http://127.0.0.1:1"], "127.0.0.1:1"),
        (["--otlp", "collector"], "collector"),
        (["--ledger", "{}"], "{}"),
    ],
)
def test_wrong_input(run: Run, tmp_path: Path, words: list[str], told: str) -> None:
    """Wrong input is one line that names it, with status 2."""
    trace(tmp_path)
    status, _, err = run(*(word.format(tmp_path) for word in words))
    assert status == 2
    assert told.format(tmp_path) in err
    assert len(err.strip().splitlines()) == 1


class Collector(BaseHTTPRequestHandler):
    """An OTLP collector that takes everything and remembers what came."""

    taken: ClassVar[dict[str, bytes]] = {}
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        """Take one export."""
        body = self.rfile.read(int(self.headers["content-length"]))
        body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
        self.taken[self.path] = self.taken.get(self.path, b"") + body
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


def demo_with(collector: type[Collector], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the demo against a collector, in a process of its own: OpenTelemetry's providers can be set once only."""
    with ThreadingHTTPServer(("127.0.0.1", 0), collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        words = ["demo", "--ledger", str(tmp_path / "demo.db"), "--otlp", f"http://127.0.0.1:{server.server_port}"]
        code = "from aifinops.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        server.shutdown()
        thread.join()
    return done


def test_otlp_refused(tmp_path: Path) -> None:
    """A collector that refuses is told of; the ledger has everything all the same."""

    class Refusing(Collector):
        taken: ClassVar[dict[str, bytes]] = {}
        status = 400

    done = demo_with(Refusing, tmp_path)
    assert done.returncode == 0
    assert "Not everything was sent to http://127.0.0.1" in done.stdout
    assert "agree" in done.stdout
    assert len(ledger_report(tmp_path, "team")) == 3


def test_otlp(tmp_path: Path) -> None:
    """With a collector, spans and metrics of every team arrive there."""
    done = demo_with(Collector, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Sent to http://127.0.0.1" in done.stdout
    assert set(Collector.taken) == {"/v1/traces", "/v1/metrics"}
    for body in Collector.taken.values():
        assert all(team in body for team in (b"support", b"search", b"research"))
    assert b"gpt-5-mini" in Collector.taken["/v1/traces"]


def test_training_is_tracked(tmp_path: Path) -> None:
    """The training loop learns, and its block is charged for the GPUs that this machine has, or else for its processors."""
    pytest.importorskip("torch", reason="the training loop needs torch")
    from aifinops.cli.demo import fine_tune
    from aifinops.gpu.devices import inventory, visible
    from aifinops.testing import capture_charges

    with capture_charges() as charges:
        assert fine_tune() < 0.1
    assert len(charges) == max(1, len({device.name for device in visible(inventory().devices)}))


def test_without_openai(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing client is one sentence with the command to type."""
    monkeypatch.setattr("aifinops.cli.stage.importlib.util.find_spec", lambda name: None)
    status, _, err = run()
    assert status == 2
    assert "pip install 'aifinops[demo]'" in err
