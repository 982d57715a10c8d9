"""`aifinops import`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aifinops.cli.app import app
from aifinops.errors import ConfigurationError

_ROWS = "time,model,prompt_tokens,completion_tokens\n2026-11-01,gpt-5-mini,1000,200\nnever,gpt-5-mini,1,1\n"


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "calls.csv").write_text(_ROWS)

    def run(*words: str, **options: Any) -> Any:
        return CliRunner().invoke(app, ["import", *words, "--ledger", str(tmp_path / "ledger.db")], **options)

    return run


def test_it_says_what_it_did_and_a_malformed_row_is_bad_news(typed: Callable[..., Any]) -> None:
    """Exit code 1; the entries, the sum and the row are told; a second run has nothing new."""
    first, second = typed("calls.csv"), typed("calls.csv")
    assert (first.exit_code, second.exit_code) == (1, 1)
    assert "1 entries written, $0.00065" in first.output
    assert "calls.csv, line 3: time='never' is no moment" in first.output
    assert "0 entries written" in second.output
    assert "1 were in the ledger already" in second.output


def test_json_has_everything_and_rejects_go_to_a_file(typed: Callable[..., Any], tmp_path: Path) -> None:
    """For programs: the same figures; and each malformed row in a table of its own."""
    result = typed("calls.csv", "--output", "json", "--rejects", "bad.csv", "--tag", "team=search", "--dry-run")
    told = json.loads(result.stdout)
    assert (told["written"], told["amounts"], told["formats"]) == (1, {"USD": "0.000650000"}, {"calls.csv": "table"})
    assert told["malformed"][0]["place"] == "line 3"
    assert (tmp_path / "bad.csv").read_text().splitlines()[1].startswith("calls.csv,line 3,")


def test_standard_input_is_a_file_too(typed: Callable[..., Any]) -> None:
    """`-` is read twice like any other."""
    result = typed("-", "--set", "model=gpt-5-mini", input="time,input_tokens\n2026-11-01,10\n")
    assert result.exit_code == 0, result.output
    assert "1 entries written" in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["calls.csv", "--map", "x"], "--map 'x': write --map name=meaning"),
        (["calls.csv", "--tag", "a=1", "--tag", "a=2"], "--tag a is given twice"),
        (["calls.csv", "--output", "yaml"], "--output 'yaml' is unknown"),
        (["nothing.csv"], "nothing.csv: No such file"),
    ],
)
def test_what_is_typed_wrongly_is_told(typed: Callable[..., Any], words: list[str], said: str) -> None:
    """As an error of configuration, which the command ends with 2 for."""
    result = typed(*words)
    assert isinstance(result.exception, ConfigurationError)
    assert said in str(result.exception)


def test_what_is_imported_is_copied_like_any_other_entry(
    typed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a collector that is away it waits on the disk."""
    monkeypatch.setenv("AIFINOPS_COPY_TO", "otlp://127.0.0.1:9")
    monkeypatch.setenv("AIFINOPS_SPOOL", str(tmp_path / "spool"))
    assert "1 entries written" in typed("calls.csv").output
    waiting = b"".join(path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file())
    assert b"gpt-5-mini" in waiting
