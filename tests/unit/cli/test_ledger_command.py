"""`aifinops ledger`, as it is typed."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from aifinops.ledger import open_ledger
from aifinops.testing.ledger import START, example_charge

Run = Callable[..., tuple[int, str, str]]
DAY = 86_400 * 10**9


@pytest.fixture
def run(run: Run) -> Run:
    """Type `aifinops ledger` and what follows: (exit status, standard output, standard error)."""
    return partial(run, "ledger")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten entries of two days, the first of which has one without a price."""
    ledger = open_ledger(tmp_path / "l.db")
    charges = [example_charge(number, at=START + number % 2 * DAY) for number in range(9)]
    ledger.append_many([*charges, example_charge(10, amount=None, basis="unknown", lower=None, upper=None, lines=())])
    ledger.close()
    return tmp_path / "l.db"


def test_info(run: Run, path: Path) -> None:
    """How much, of when, and what reports still have to do."""
    status, out, _ = run("info", "--ledger", path)
    assert status == 0
    assert str(path) in out
    assert "2025-11-25" in out
    assert "10 (reports do it, or aifinops ledger migrate)" in out
    facts = json.loads(run("info", "--ledger", path, "--format", "json")[1])
    assert (facts["entries"], facts["schema"], facts["compacted"], facts["behind"]) == (10, 2, 0, 10)


def test_migrate(run: Run, path: Path) -> None:
    """It rolls everything up; a second time there is nothing to do."""
    status, out, _ = run("migrate", "--ledger", path)
    assert status == 0
    assert "schema 2, as it was" in out
    facts = json.loads(run("migrate", "--ledger", path, "--format", "json")[1])
    assert (facts["rolled_up"], facts["schema_before"], facts["schema"]) == (0, 2, 2)
    assert json.loads(run("info", "--ledger", path, "--format", "json")[1])["behind"] == 0


def test_migrate_says_what_the_file_was(run: Run, path: Path) -> None:
    """A file of schema 1 is one of schema 2 afterwards."""
    with closing(sqlite3.connect(path)) as other:
        for table in ("dimensions", "rollups", "state", "gone"):
            other.execute(f"DROP TABLE {table}")
        other.execute("PRAGMA user_version = 1")
        other.commit()
    status, out, _ = run("migrate", "--ledger", path)
    assert (status, "schema 1 is now 2" in out) == (0, True)
    assert run("verify", "--ledger", path)[0] == 0


def test_compact(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks, says what has gone and what stays, and later questions by what is gone are told why not."""
    monkeypatch.setattr("typer.confirm", lambda question, **_: False)
    status, _, _ = run("compact", "--before", "2025-11-25", "--ledger", path)
    assert status == 1
    assert json.loads(run("info", "--ledger", path, "--format", "json")[1])["compacted"] == 0
    status, out, _ = run("compact", "--before", "2025-11-25T12:00", "--ledger", path, "--yes", "--format", "json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["entries"], facts["kept"], facts["since"], facts["until"]) == (5, 1, "2025-11-24", "2025-11-25")
    assert "5 entries before 2025-11-25: daily sums" in run("info", "--ledger", path)[1]
    assert "none before 2025-11-25" in run("compact", "--before", "2025-11-25", "--ledger", path, "--yes")[1]


def test_export(run: Run, path: Path, tmp_path: Path) -> None:
    """The entries that were asked for; what is compacted is said not to be there."""
    to = tmp_path / "out.csv"
    status, out, err = run("export", to, "--since", "2025-11-25", "--ledger", path)
    assert (status, out, err) == (0, f"4 entries in {to}\n", "")
    with to.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    run("compact", "--before", "2025-11-25", "--ledger", path, "--yes")
    status, out, err = run("export", tmp_path / "out.jsonl", "--ledger", path)
    assert (status, out) == (0, f"5 entries in {tmp_path / 'out.jsonl'}\n")
    assert "before 2025-11-25 the ledger has daily sums only" in err
    status, _, err = run("export", tmp_path / "out.txt", "--ledger", path)
    assert status == 2
    assert ".parquet" in err


def test_verify(run: Run, path: Path) -> None:
    """Sound: 0. Something wrong: 1, and what."""
    assert run("verify", "--ledger", path)[:2] == (0, "10 entries: everything is sound.\n")
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE charges SET amount = 1 WHERE amount IS NOT NULL")
        other.commit()
    status, out, _ = run("verify", "--ledger", path)
    assert status == 1
    assert "10 entries, 9 problems:" in out
    assert "its amount is 1" in out
    status, out, _ = run("verify", "--ledger", path, "--format", "json")
    assert (status, json.loads(out)["found"], json.loads(out)["problems"][0]["kind"]) == (1, 9, "lines")


def test_many_problems_are_not_all_printed(run: Run, tmp_path: Path) -> None:
    """Twenty, and how many more."""
    ledger = open_ledger(tmp_path / "l.db")
    ledger.append_many([example_charge(number, amount=1) for number in range(30)])
    ledger.close()
    status, out, _ = run("verify", "--ledger", tmp_path / "l.db")
    assert (status, out.count("lines"), "and 10 more" in out) == (1, 40, True)


@pytest.mark.parametrize(
    "words",
    [
        ("info", "--format", "csv"),
        ("compact", "--before", "yesterday", "--yes"),
        ("verify", "--ledger", "/nowhere/l.db"),
    ],
)
def test_what_is_typed_wrongly_is_told(run: Run, path: Path, words: tuple[str, ...]) -> None:
    """In one line, with exit code 2."""
    status, out, err = run(*words, *(() if "--ledger" in words else ("--ledger", path)))
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1


def test_sql_is_printed_to_be_run_elsewhere(run: Run) -> None:
    """Views over a collector's tables, or the tables of a ledger in PostgreSQL; without a word for what, it asks."""
    status, out, _ = run("sql", "--otel", "--database", "telemetry")
    assert status == 0
    assert "CREATE OR REPLACE VIEW telemetry.aifinops_otel_logs AS" in out
    assert "FROM telemetry.otel_traces" in out
    status, out, _ = run("sql", "--postgres", "--schema", "spend", "--role", "app")
    assert status == 0
    assert out.startswith("CREATE SCHEMA IF NOT EXISTS spend;")
    assert 'GRANT SELECT, INSERT ON spend.charges TO "app";' in out
    status, _, error = run("sql")
    assert status != 0
    assert "aifinops ledger sql --otel" in error
