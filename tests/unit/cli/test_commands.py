"""The commands, as they are typed."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from aifinops import runtime
from aifinops._version import __version__
from aifinops.charges import Charge, new_id
from aifinops.cli import with_default_endpoint
from aifinops.ledger import open_ledger
from aifinops.money import NANO
from aifinops.tags import make_tags
from aifinops.testing.clock import FakeClock
from aifinops.testing.ledger import example_charge

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger file with three charges of two teams."""
    path = tmp_path / "ledger.db"
    book = open_ledger(path)
    for team, nanos, day in (("search", 250_000_000, 1), ("support", 750_000_000, 2), ("search", None, 3)):
        book.append(
            Charge(
                id=new_id(),
                at=day * 86_400_000_000_000,
                provider="openai",
                operation="chat",
                model="gpt-4o",
                amount=nanos,
                basis="priced" if nanos else "unknown",
                quantities={"input_tokens": 100, "output_tokens": 10},
                tags=make_tags({"team": team}),
            )
        )
    book.close()
    return path


@pytest.fixture
def week(tmp_path: Path) -> Path:
    """A ledger of two weeks that end now; it is the 24th of November 2026, noon UTC."""
    clock = FakeClock(datetime(2026, 11, 24, 12, tzinfo=UTC))
    path = tmp_path / "week.db"
    book = open_ledger(path)
    day = 86_400 * NANO
    for number, (team, dollars, ago, model) in enumerate(
        [("search", "2", 2, "gpt-5"), ("search", "1", 1, "gpt-5"), ("search", "2", 9, "gpt-5"), ("support", "1.25", 4, "gpt-5-mini"),
         ("lab", "3", 8, "claude-opus-4-5"), ("lab", "1", 10, "o3")]
    ):  # fmt: skip
        amount = int(Decimal(dollars) * NANO)
        changes = {
            "amount": amount,
            "lower": amount,
            "upper": amount,
            "at": clock.time_ns() - ago * day,
            "model": model,
        }
        book.append(example_charge(number, tags={"team": team}, **changes))
    book.close()
    runtime.init(ledger="memory", clock=clock)
    return path


def squeezed(text: str) -> list[str]:
    """Lines with one space between words: what is aligned how is rich's business."""
    return [" ".join(line.split()) for line in text.strip().splitlines()]


class TestReport:
    """`aifinops report`."""

    def test_table(self, run: Run, ledger: Path) -> None:
        """The table has a row a key, shares, and what has no price apart."""
        status, out, _ = run("report", "--by", "team,model", "--ledger", ledger)
        assert status == 0
        assert out.index("support") < out.index("search") < out.index("Without a price")
        assert "$1.00" in out
        assert "75%" in out

    def test_json_and_csv(self, run: Run, ledger: Path) -> None:
        """The machine-readable forms are valid, and have the same numbers."""
        _, text, _ = run("report", "--by", "team", "--ledger", ledger, "--format", "json")
        rows = {row["key"]["team"]: row for row in json.loads(text)["rows"]}
        assert (rows["support"]["cost"], rows["search"]["unpriced_calls"]) == ("0.75", 1)
        _, text, _ = run("report", "--by", "team", "--ledger", ledger, "--format", "csv")
        lines = {line["team"]: line for line in csv.DictReader(io.StringIO(text))}
        assert {team: line["cost"] for team, line in lines.items()} == {"support": "0.75", "search": "0.25"}

    @pytest.mark.parametrize(
        ("words", "total"),
        [
            (["--where", "team=search"], "$0.25"),
            (["--where", "team=search", "--where", "team=support"], "$1.00"),
            (["--since", "1970-01-03"], "$0.75"),
            (["--until", "1970-01-03"], "$0.25"),
            (["--since", "7d"], "No calls"),
        ],
    )
    def test_filters(self, run: Run, ledger: Path, words: list[str], total: str) -> None:
        """Only what was asked for is added up; one key with two values means either."""
        status, out, _ = run("report", "--ledger", ledger, *words)
        assert status == 0
        assert total in out.strip().splitlines()[-1] or total in out.split("Without")[0].strip().splitlines()[-1]

    def test_the_environment_names_the_ledger(self, run: Run, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without an option the settings decide which ledger is read."""
        monkeypatch.setenv("AIFINOPS_LEDGER", str(ledger))
        assert "$1.00" in run("report")[1]

    def test_the_week_before(self, run: Run, week: Path) -> None:
        """`--compare` says what changed, what is new and what is gone; the whole answer, as it is printed."""
        _, out, _ = run(
            "report", "--by", "team", "--since", "7d", "--compare", "--trend", "--unit-cost", "--ledger", week
        )
        assert squeezed(out) == [
            "team calls input cached output cost change % a call 1k tokens trend share",
            "search 2 2,000 200 96 $3.00 +$1.00 +50% $1.50 $1.43 ·····█▄· ███████████▎ 71%",
            "support 1 1,000 100 48 $1.25 +$1.25 new $1.25 $1.19 ···█···· ████▊ 29%",
            "lab 0 0 0 0 $0.00 -$4.00 gone ········ 0%",
            "total 3 3,000 300 144 $4.25 -$1.75 -29% $1.42 $1.35 ···▅·█▄·",
            "change: against 2026-11-10 12:00 to 2026-11-17 12:00 UTC, the period of the same length before.",
            "trend: from the beginning of the period to its end, each row by itself; its highest mark is its dearest time.",
        ]

    def test_top_and_sort(self, run: Run, week: Path) -> None:
        """The first rows and the sum of all others; any column can come first."""
        _, out, _ = run("report", "--by", "model", "--top", 1, "--sort", "calls", "--ledger", week)
        body = [line.split()[0] for line in out.splitlines() if "%" in line]
        assert body == ["gpt-5", "(3"]
        assert "(3 others)" in out
        status, _, err = run("report", "--sort", "size", "--ledger", week)
        assert status == 2
        assert "size" in err

    def test_a_comparison_needs_a_beginning(self, run: Run, week: Path) -> None:
        """What to type is told."""
        status, out, err = run("report", "--compare", "--ledger", week)
        assert (status, out) == (2, "")
        assert "--since 7d" in err

    def test_plain_terminals_have_trends(self, run: Run, week: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where block characters cannot be written, a trend is made of ASCII."""
        monkeypatch.setattr("aifinops.cli.show.can_draw", lambda out: False)
        _, out, _ = run("report", "--by", "team", "--since", "7d", "--trend", "--ledger", week)
        assert "_____%=_" in out
        assert out.isascii()

    def test_a_page(self, run: Run, week: Path, tmp_path: Path) -> None:
        """`--html` writes one file with charts, comparison and the budgets of the store beside the ledger, and says where."""
        target = tmp_path / "report.html"
        status, out, _ = run(
            "report", "--by", "team", "--since", "7d", "--html", target, "--title", "Our week", "--ledger", week
        )
        assert status == 0
        assert out.startswith(f"{target}: ")
        page = target.read_text(encoding="utf-8")
        assert page.startswith("<!doctype html>")
        for text in ("Our week", "search", "$4.25", "against", 'class="plot"', "Top models"):
            assert text in page, text

    def test_a_page_cannot_be_written(self, run: Run, week: Path, tmp_path: Path) -> None:
        """One line and status 2."""
        status, out, err = run("report", "--html", tmp_path / "none" / "report.html", "--ledger", week)
        assert (status, out) == (2, "")
        assert "report.html" in err

    def test_an_empty_ledger_says_what_to_do(self, run: Run, tmp_path: Path) -> None:
        """Nothing there yet: how calls get in."""
        open_ledger(tmp_path / "new.db").close()
        status, out, _ = run("report", "--ledger", tmp_path / "new.db")
        assert status == 0
        assert out.startswith("No calls yet: the ledger ")
        assert "aifinops run app.py" in out

    def test_a_filter_that_finds_nothing_names_what_there_is(self, run: Run, week: Path) -> None:
        """A misspelt team: the period of the ledger, and the teams."""
        _, out, _ = run("report", "--where", "team=serch", "--ledger", week)
        assert "has 6 entries from 2026-11-1" in out
        assert "Values of team in this period: lab, search, support." in out

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--ledger", "{}/missing.db"], "missing.db"),
            (["--ledger", "{}"], "{}"),
            (["--ledger", "redis://host/1"], "redis"),
            (["--since", "soon"], "soon"),
            (["--by", "a b"], "a b"),
            (["--where", "team"], "team"),
        ],
    )
    def test_wrong_input(self, run: Run, ledger: Path, tmp_path: Path, words: list[str], told: str) -> None:
        """Wrong input is one line that names it, status 2, no traceback, and no file is made."""
        given = [word.format(tmp_path) for word in words]
        status, out, err = run("report", *([] if "--ledger" in given else ["--ledger", ledger]), *given)
        assert (status, out) == (2, "")
        assert err.startswith("aifinops: ")
        assert told.format(tmp_path) in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "missing.db").exists()


class TestPrice:
    """`aifinops price`."""

    def test_explains(self, run: Run) -> None:
        """The cost comes with its lines, its price's name and its date."""
        status, out, _ = run("price", "gpt-4o", "--input", 1000, "--output", 200, "--cached", 500)
        assert status == 0
        # Per million: 1000 x $2.50, 500 x $1.25, 200 x $10.
        amounts = {line.split("= $")[1] for line in out.splitlines() if "= $" in line}
        assert amounts == {"0.002500000", "0.000625000", "0.002000000"}
        assert all(
            name in out for name in ("input_tokens", "cache_read_tokens", "output_tokens", "openai/gpt-4o", "as of")
        )

    def test_unknown_model(self, run: Run) -> None:
        """An unknown model is status 1 with the nearest names, and never zero."""
        status, out, err = run("price", "gpt-4oo", "--input", 1000)
        assert (status, out) == (1, "")
        assert "unknown" in err
        assert "gpt-4o" in err.replace("gpt-4oo", "")

    @pytest.mark.parametrize("at", ["2026-01-01", "2026-01-01T12:00:00+01:00"])
    def test_a_day(self, run: Run, at: str) -> None:
        """A date, or a time with a zone, chooses the day whose price counts."""
        assert run("price", "gpt-4o", "--input", 1_000_000, "--at", at)[1].startswith("$2.50")

    def test_other_meters(self, run: Run) -> None:
        """Any meter can be given by name; one without a rate makes the cost unknown."""
        assert run("price", "gpt-4o", "--usage", "input_tokens=2000")[1].startswith("$0.005")
        assert run("price", "gpt-4o", "--usage", "gpu_seconds=3")[0] == 1

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--usage", "parsecs=3"], "parsecs"),
            (["--usage", "input_tokens"], "input_tokens"),
            (["--usage", "input_tokens=many"], "many"),
            (["--at", "yesterday"], "yesterday"),
        ],
    )
    def test_wrong_input(self, run: Run, words: list[str], told: str) -> None:
        """Wrong input is named, with status 2."""
        status, out, err = run("price", "gpt-4o", *words)
        assert (status, out) == (2, "")
        assert told in err

    def test_negative_numbers_are_refused(self, run: Run) -> None:
        """Typer's own errors have status 2 as well."""
        assert run("price", "gpt-4o", "--input", "-5")[0] == 2


def test_version(run: Run) -> None:
    """The version, and nothing else."""
    assert run("version") == (0, f"{__version__}\n", "")


def test_help_names_every_command(run: Run) -> None:
    """Without a command the help is shown, with all of them."""
    text = "".join(run()[1:])
    assert all(name in text for name in ("demo", "report", "price", "doctor", "version"))


@pytest.mark.parametrize("command", ["demo", "report", "price", "doctor", "version"])
def test_each_command_has_help(run: Run, command: str) -> None:
    """Each command explains itself."""
    status, out, _ = run(command, "--help")
    assert status == 0
    assert command in out


def test_broken_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting in the environment is one line with the nearest name."""
    monkeypatch.setenv("AIFINOPS_LEGDER", "x")
    status, _, err = run("report")
    assert status == 2
    assert "AIFINOPS_LEDGER" in err


@pytest.mark.parametrize(
    ("words", "filled"),
    [
        (["demo", "--otlp"], ["demo", "--otlp", "http://localhost:4318"]),
        (["demo", "--otlp", "--limit", "3"], ["demo", "--otlp", "http://localhost:4318", "--limit", "3"]),
        (["demo", "--otlp", "http://x:1"], ["demo", "--otlp", "http://x:1"]),
        (["report"], ["report"]),
    ],
)
def test_otlp_without_an_endpoint(words: list[str], filled: list[str]) -> None:
    """`--otlp` alone means the collector on this machine."""
    assert with_default_endpoint(words) == filled


def test_importing_the_command_line_is_cheap() -> None:
    """`aifinops.cli` loads neither typer nor rich nor a client library."""
    code = "import sys, aifinops.cli; print({'typer', 'rich', 'openai', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_closed_pipe_is_no_error(ledger: Path) -> None:
    """`aifinops report | head` ends quietly when the reader has enough."""
    code = "from aifinops.cli import main; main()"
    words = [sys.executable, "-c", code, "report", "--by", "team", "--ledger", str(ledger), "--format", "json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == ""
    assert process.returncode == 1
