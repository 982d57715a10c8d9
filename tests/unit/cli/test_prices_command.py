"""`aifinops prices`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aifinops import runtime
from aifinops.pricing import lists, refresh
from aifinops.pricing.lists import load_bundled
from aifinops.testing import FakeClock

BUNDLED = Path(lists.BUNDLED)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Type `aifinops prices` and what follows, with a folder of refreshed lists of the test's own: (exit status, standard output, standard error)."""
    monkeypatch.setenv("AIFINOPS_PRICE_FOLDER", str(tmp_path / "refreshed"))
    monkeypatch.setattr(refresh, "_said", set())
    return partial(run, "prices")


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The bundled list of a later version, in which gpt-4o is dearer and another model is missing."""
    lines = BUNDLED.read_text("utf-8").splitlines()
    header = json.loads(lines[0])
    provider, kept = "", [json.dumps({**header, "version": "999.0", "models": header["models"] - 1})]
    for line in lines[1:]:
        row = json.loads(line)
        if "provider" in row:
            provider = row["provider"]
            if provider == "openai":
                row["models"] -= 1
        if provider == "openai" and row.get("model") == "gpt-4o":
            row["prices"][0]["rates"]["input_tokens"] = "5"
        if provider != "openai" or row.get("model") != "o3-mini":
            kept.append(json.dumps(row))
    path = tmp_path / "newer.jsonl"
    path.write_text("\n".join(kept) + "\n", "utf-8")
    return path


def own_list(path: Path, **more: str) -> Path:
    """A list of the user with one model."""
    head = "".join(f"{key} = {value}\n" for key, value in {"id": '"own"', "date": "2026-11-01", **more}.items())
    rates = 'rates = { input_tokens = "1", output_tokens = "3" }'
    path.write_text(f'{head}[[models]]\nprovider = "openai"\nmodel = "gpt-4o"\n{rates}\n', "utf-8")
    return path


class TestSearch:
    """`prices search`."""

    def test_a_row_a_model_with_its_usual_prices(self, run: Run) -> None:
        """All words must be there; columns that nothing is in are left out, and a name is on one line."""
        status, out, _ = run("search", "gpt-4o", "mini", "--provider", "openai")
        assert status == 0
        [row] = [line.split() for line in out.splitlines() if line.split()[1:2] == ["gpt-4o-mini"]]
        assert row[:5] == ["openai", "gpt-4o-mini", "$0.15", "$0.075", "$0.60"]
        assert "other" not in out
        assert "for a million tokens, as of" in out

    def test_devices_have_a_price_in_their_own_unit(self, run: Run) -> None:
        """Without columns for tokens."""
        _, out, _ = run("search", "h100", "lambda")
        assert "a GPU-hour" in out
        assert "cached" not in out
        assert "million tokens" not in out

    @pytest.mark.parametrize("width", ["60", "80", "100"])
    def test_a_name_stays_on_one_line(self, run: Run, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
        """Other columns give way first."""
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        _, out, _ = run("search", "claude-opus-4", "--provider", "anthropic")
        names = [line.split()[1] for line in out.splitlines() if line.strip().startswith("anthropic")]
        assert {"claude-opus-4-5", "claude-opus-4-8"} <= set(names)

    def test_json_holds_every_standing_rate(self, run: Run) -> None:
        """Digits as text."""
        _, out, _ = run("search", "gpt-4o-mini", "--provider", "openai", "--format", "json")
        [found] = [row for row in json.loads(out) if row["model"] == "gpt-4o-mini"]
        assert found["rates"]["input_tokens"] == {"price": "0.15", "per": 1_000_000}
        assert (found["list"], found["currency"]) == ("genai-prices", "USD")
        assert "batch" in found["also_priced"]

    def test_more_than_the_limit_is_said_apart(self, run: Run) -> None:
        """On standard error, so that JSON stays JSON."""
        _, out, error = run("search", "gpt", "--limit", 2, "--format", "json")
        assert len(json.loads(out)) == 2
        assert "more: give another word, --provider, or --limit" in error

    def test_nothing_found(self, run: Run) -> None:
        """Exit status 1; JSON is an empty list."""
        assert run("search", "no-such-model") == (
            1,
            "",
            "nothing in the price lists is called 'no-such-model'; try fewer or shorter words\n",
        )
        assert run("search", "no-such-model", "--format", "json")[:2] == (1, "[]\n")

    def test_a_provider_that_no_list_has(self, run: Run) -> None:
        """Exit status 2 with the nearest name, in place of an empty answer."""
        status, _, error = run("search", "gpt", "--provider", "opneai")
        assert status == 2
        assert "did you mean openai?" in error

    def test_a_declared_name_finds_its_model(self, run: Run) -> None:
        """A dated snapshot is no part of a model's name in the list."""
        _, out, _ = run("search", "gpt-4o-mini-2024-07-18", "--format", "json")
        assert json.loads(out)[0]["model"] == "gpt-4o-mini"

    def test_of_two_lists_the_one_that_prices_calls(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The user's own."""
        monkeypatch.setenv("AIFINOPS_PRICES", str(own_list(tmp_path / "own.toml")))
        _, out, _ = run("search", "gpt-4o", "--provider", "openai", "--format", "json")
        assert [row["list"] for row in json.loads(out) if row["model"] == "gpt-4o"] == ["own"]


class TestShow:
    """`prices show`."""

    def test_everything_about_a_model(self, run: Run) -> None:
        """Dates, tiers, cliffs, source; hours and weekdays in words; the price of this moment is marked."""
        _, out, _ = run("show", "gemini-2.5-pro")
        assert "with a prompt above 200,000 tokens" in out
        assert "tier batch" in out
        assert "source genai-prices" in out
        _, out, _ = run("show", "deepseek-v4-pro")
        assert "01:00-04:00 UTC Mon-Fri" in out
        assert out.count("<- now") == 1

    def test_minimum_charges_and_least_quantities(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What else a request costs."""
        _, out, _ = run("show", "whisper-large-v3", "--provider", "groq")
        assert "at least 10 audio_seconds are billed for a request" in out
        assert "an hour of audio" in out

    def test_the_terms_of_a_contract(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are over the prices that are shown."""
        path = tmp_path / "c.toml"
        path.write_text(
            'id = "acme"\n[contract]\nmarkup = "5"\n[[discounts]]\nprovider = "openai"\npercent = "10"\n', "utf-8"
        )
        monkeypatch.setenv("AIFINOPS_PRICES", str(path))
        _, out, _ = run("show", "gpt-4o", "--provider", "openai")
        assert "10 %" in out
        assert "markup x 1.05" in out

    def test_an_unknown_model(self, run: Run) -> None:
        """Names the lists asked and the nearest names."""
        status, _, error = run("show", "gpt-4oo")
        assert status == 1
        assert "gpt-4o" in error


class TestDiff:
    """`prices diff`."""

    def test_what_moved_came_and_went(self, run: Run, newer: Path) -> None:
        """A model's prices below its name, and one line of counts."""
        status, out, _ = run("diff", "bundled", newer)
        assert status == 0
        assert out.splitlines()[1] == "openai/gpt-4o"
        assert out.splitlines()[2].split() == ["input_tokens", "2.5", "5", "+100.0", "%"]
        assert out.splitlines()[3:] == [
            "- openai/o3-mini",
            "0 models added, 1 removed, 1 price of 1 model changed",
        ]

    def test_json(self, run: Run, newer: Path) -> None:
        """Every difference."""
        _, out, _ = run("diff", "current", newer, "--format", "json")
        assert [(row["kind"], row["model"]) for row in json.loads(out)] == [
            ("changed", "gpt-4o"),
            ("removed", "o3-mini"),
        ]

    def test_what_cannot_be_compared(self, run: Run, tmp_path: Path) -> None:
        """An error in one line; a contract is said to be left out."""
        assert run("diff", "bundled", tmp_path / "none.jsonl")[0] == 2
        assert "--format 'csv' is unknown" in run("diff", "bundled", "current", "--format", "csv")[2]
        path = tmp_path / "c.toml"
        path.write_text('id = "acme"\n[[discounts]]\npercent = "10"\n', "utf-8")
        assert "not compared" in run("diff", path, path)[2]


class TestUpdate:
    """`prices update`."""

    def test_there_and_back(self, run: Run, newer: Path, tmp_path: Path) -> None:
        """A dry run writes nothing; the list is used from the next start on; `--undo` takes it back, once."""
        status, out, _ = run("update", newer, "--dry-run")
        assert (status, out.splitlines()[-1]) == (0, "nothing was written")
        assert not (tmp_path / "refreshed").exists()
        _, out, _ = run("update", newer)
        assert "openai/gpt-4o" in out
        assert "is in use from now on" in out
        runtime.reset()
        assert "$5.00" in run("show", "gpt-4o", "--provider", "openai")[1]
        assert "is not newer than what is in use (999.0" in run("update", newer)[1]
        assert run("update", "--undo")[1] == "the bundled list is in use again\n"
        assert run("update", "--undo")[1] == "the bundled list is in use already\n"
        runtime.reset()
        assert "$2.50" in run("show", "gpt-4o", "--provider", "openai")[1]

    def test_an_older_list_is_not_taken(self, run: Run, newer: Path, tmp_path: Path) -> None:
        """With both versions."""
        run("update", newer)
        _, out, _ = run("update", BUNDLED)
        assert load_bundled().version in out
        assert "999.0" in out
        assert "nothing was changed" in out

    def test_wrong_input(self, run: Run, tmp_path: Path) -> None:
        """Exit status 2 and one line."""
        for words in (("--date", "soon"), (tmp_path / "own.toml",), (tmp_path / "none.jsonl",)):
            status, _, error = run("update", *words)
            assert (status, error.count("\n")) == (2, 1)

    def test_a_folder_that_cannot_be_written(
        self, run: Run, newer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error names it."""
        (tmp_path / "file").write_text("", "utf-8")
        monkeypatch.setenv("AIFINOPS_PRICE_FOLDER", str(tmp_path / "file" / "x"))
        status, _, error = run("update", newer)
        assert status == 2
        assert "cannot be written: Not a directory; nothing was changed" in error


class TestCheck:
    """`prices check`."""

    def test_what_is_bundled_is_good(self, run: Run) -> None:
        """Every list with its date and its age."""
        day = load_bundled().date
        assert day is not None
        _clock(datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=3))
        status, out, _ = run("check")
        assert status == 0
        assert "3 days old" in " ".join(out.split())
        assert "aifinops-vector" in out

    def test_a_stale_list_fails(self, run: Run) -> None:
        """A script can see it."""
        day = load_bundled().date
        assert day is not None
        _clock(datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=refresh.STALE_DAYS + 1))
        status, out, _ = run("check")
        assert status == 1
        assert "181 days old: aifinops prices update" in " ".join(out.split())

    def test_own_files(self, run: Run, tmp_path: Path) -> None:
        """Each is told about, the wrong one with its place; a list without a date is only noted."""
        good = own_list(tmp_path / "good.toml")
        wrong = tmp_path / "wrong.toml"
        wrong.write_text("id = 3\n", "utf-8")
        undated = tmp_path / "undated.toml"
        undated.write_text(good.read_text("utf-8").replace("date = 2026-11-01\n", ""), "utf-8")
        _clock(datetime(2026, 11, 24, tzinfo=UTC))
        status, out, _ = run("check", good, wrong, undated)
        flat = " ".join(out.split())
        assert status == 1
        assert "1 entry" in flat
        assert "wrong.toml" in flat
        assert "no date: add date = YYYY-MM-DD" in flat
        assert run("check", good, undated)[0] == 0

    def test_a_wrong_file_of_the_settings_is_a_finding(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It does not keep the others from being looked at."""
        wrong = tmp_path / "wrong.toml"
        wrong.write_text("id = 3\n", "utf-8")
        monkeypatch.setenv("AIFINOPS_PRICES", str(wrong))
        status, out, _ = run("check")
        assert status == 1
        assert "wrong.toml" in out
        assert "aifinops-gpu" in out

    def test_a_damaged_or_outdated_refreshed_list(self, run: Run, newer: Path, tmp_path: Path) -> None:
        """The one is bad news, the other worth a note."""
        run("update", newer)
        path = tmp_path / "refreshed" / "llm.jsonl"
        path.write_bytes(path.read_bytes()[:-100])
        status, out, _ = run("check")
        assert status == 1
        assert "is damaged" in " ".join(out.split())
        refresh.put(path.parent, BUNDLED.read_text("utf-8"))
        _clock(datetime(2026, 11, 24, tzinfo=UTC))
        status, out, _ = run("check")
        assert "is not newer than the bundled" in " ".join(out.split())
        assert status == 0


def _clock(moment: datetime) -> Any:
    """Stop the clock of the runtime there."""
    runtime.get().clock = FakeClock(moment)
