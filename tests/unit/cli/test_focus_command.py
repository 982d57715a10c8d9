"""`aifinops focus`, as it is typed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from aifinops.ledger import open_ledger
from aifinops.ledger.base import DAY_NS, start_of
from aifinops.testing.ledger import START, example_charge

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run) -> Run:
    """Type `aifinops focus` and what follows: (exit status, standard output, standard error)."""
    return partial(run, "focus")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Calls of two teams on two days, one without a price and one of committed capacity."""
    ledger = open_ledger(tmp_path / "l.db")
    ledger.append_many(
        [
            example_charge(0, tags={"team": "search", "run": "1"}),
            example_charge(1, at=START + DAY_NS, tags={"team": "ads", "run": "2"}, currency="EUR"),
            example_charge(2, amount=None, basis="unknown", lower=None, upper=None, lines=(), model="new"),
            example_charge(3, amount=0, basis="committed", lower=0, upper=0, lines=()),
        ]
    )
    ledger.close()
    return tmp_path / "l.db"


def test_what_is_exported_is_right_and_told(run: Run, path: Path, tmp_path: Path) -> None:
    """Sums on standard output, what has no price on standard error, and the lint of the file finds nothing."""
    status, out, err = run("export", tmp_path / "f.csv", "--ledger", path)
    assert status == 0
    assert out == f"12 rows in {tmp_path / 'f.csv'}: €0.000351, $0.000351, from 3 entries of the ledger\n"
    assert "Without a price, and in no row, since nobody knows what it cost: 1 call\n" in err
    assert "  openai new: 1 call, 1,048 tokens" in err
    assert "Of capacity that is paid for by the hour: 1 call, whose part" in err
    assert run("lint", tmp_path / "f.csv") == (0, f"{tmp_path / 'f.csv'}: nothing wrong\n", "")


def test_options_of_the_export(run: Run, path: Path, tmp_path: Path) -> None:
    """A period, a filter, an hour a row, all tags, an account; a file is replaced only when that is said."""
    words = ("export", tmp_path / "f.csv", "--ledger", path, "--since", "2025-11-25", "--until", "2025-11-26")
    status, out, _ = run(*words, "--where", "team=ads", "--per", "hour", "--tags", "all", "--account", "acme")
    assert (status, out) == (0, f"4 rows in {tmp_path / 'f.csv'}: €0.000351, from 1 entries of the ledger\n")
    text = (tmp_path / "f.csv").read_text(encoding="ascii")
    assert '""run"": ""2""' in text
    assert ",acme," in text
    status, _, err = run(*words)
    assert status == 2
    assert "is there already" in err
    assert run(*words, "--replace", "--tags", "team, run", "--profile", "focus-1.2")[0] == 0


def test_findings_are_printed_with_status_one(run: Run, path: Path, tmp_path: Path) -> None:
    """Line, column, rule and value; after fifty only how many more."""
    run("export", tmp_path / "f.csv", "--ledger", path, "--per", "hour")
    wrong = (tmp_path / "f.csv").read_text(encoding="ascii").replace(",EUR,", ",UDS,")
    (tmp_path / "f.csv").write_text(wrong, encoding="ascii")
    status, out, _ = run("lint", tmp_path / "f.csv")
    assert status == 1
    assert "BillingCurrency  currency: 'UDS' is no code of ISO 4217" in out
    (tmp_path / "f.csv").write_text("BilledCost\n" + "1,0\n" * 60, encoding="ascii")
    assert run("lint", tmp_path / "f.csv")[1].splitlines()[-1].startswith("and ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--per", "week"), "write hour or day"),
        (("--profile", "focus-2"), "use focus-1.2"),
        (("--since", "soon"), "soon"),
    ],
)
def test_what_is_typed_wrongly_is_told(run: Run, path: Path, words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Exit status 2 and what to type; no file."""
    status, _, err = run("export", tmp_path / "f.csv", "--ledger", path, *words)
    assert status == 2
    assert said in err
    assert not (tmp_path / "f.csv").exists()


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    """Of the lint, too."""
    status, _, err = run("lint", tmp_path / "none.csv")
    assert status == 2
    assert "cannot be read" in err


def test_days_that_are_compacted_are_told(run: Run, path: Path, tmp_path: Path) -> None:
    """Daily sums have no lines: they are in no file, and that is said."""
    ledger = open_ledger(path)
    ledger.compact(start_of(START, DAY_NS) + DAY_NS)
    ledger.close()
    _, out, err = run("export", tmp_path / "f.csv", "--ledger", path)
    assert "€0.000351, from 1 entries" in out
    assert "Of compacted days the ledger has daily sums only" in err
