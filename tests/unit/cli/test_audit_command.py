"""`aifinops audit`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from aifinops import runtime
from aifinops.budgets.audit import Audit, head_note, verify
from aifinops.budgets.stores.base import Put
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.cli import main
from aifinops.testing.clock import FakeClock

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run) -> Run:
    """Type `aifinops audit` and what follows: (exit status, standard output, standard error)."""
    return partial(run, "audit")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of three entries beside a store."""
    log = Audit(tmp_path / "budgets.db.audit", FakeClock())
    log.add("refused", budget="search", amount="0.5")
    log.add("limit_set", budget="ingest", by="ann", ids=["a", "b"])
    log.add("refused", budget="[red]x\x1b[0m")
    return tmp_path / "budgets.db.audit"


def test_a_whole_log_gives_its_head(run: Run, path: Path) -> None:
    """And takes it back."""
    code, out, err = run("verify", path)
    assert (code, err) == (0, "")
    assert "4 entries, none changed" in out
    head = out.split("head ")[1].strip()
    Audit(path, FakeClock()).add("refused")
    assert run("verify", path, "--head", head.upper())[0] == 0
    code, out, err = run("verify", path, "--head", "0" * 64)
    assert (code, out) == (1, "")
    assert "cut off" in err


def test_the_broken_line_is_named(run: Run, path: Path) -> None:
    """Exit code 1, the line and what is wrong with it."""
    path.write_text(path.read_text().replace("ann", "bob"))
    code, out, err = run("verify", path)
    assert (code, out) == (1, "")
    assert "line 3: its hash does not fit" in err
    assert "2 entries before that are good" in err
    code, out, err = run("show", path)
    assert code == 1
    assert "search" in out
    assert "bob" not in out
    assert "line 3" in err


def test_a_cut_end_shows_against_the_store(run: Run, path: Path, tmp_path: Path) -> None:
    """The store has the head, so nobody has to keep it."""
    store = SqliteStore(tmp_path / "budgets.db")
    Put(head_note(path), verify(path).head, 0).execute(store)
    store.close()
    assert run("verify", "--store", tmp_path / "budgets.db")[0] == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    code, _, err = run("verify", "--store", tmp_path / "budgets.db")
    assert code == 1
    assert "cut off" in err
    assert run("verify", path)[0] == 0


def test_a_store_that_does_not_answer_is_not_compared(run: Run, path: Path, tmp_path: Path) -> None:
    """The chain is followed all the same, and it says so."""
    (tmp_path / "budgets.db").write_text("no database, " * 100)
    code, out, err = run("verify", "--store", tmp_path / "budgets.db")
    assert code == 0
    assert "none changed" in out
    assert "is not compared" in err


def test_torn_lines_are_told(run: Run, path: Path) -> None:
    """They break nothing."""
    with path.open("ab") as file:
        file.write(b'{"at":')
    assert "the last 6 bytes are no entry yet" in run("verify", path)[2]
    Audit(path, FakeClock()).add("refused")
    code, _, err = run("verify", path)
    assert (code, err) == (0, "1 lines were left in part by a writer that was stopped, and closed off\n")


def test_the_log_is_found_by_its_store(run: Run, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `--store`, by the settings, and beside the ledger for a server."""
    store = tmp_path / "budgets.db"
    assert run("verify", "--store", store)[0] == 0
    assert run("verify", "--store", f"sqlite:///{store}")[0] == 0
    monkeypatch.setenv("AIFINOPS_LEDGER", str(tmp_path / "ledger.db"))
    runtime.reset()
    assert run("verify")[0] == 0
    assert run("verify", "--store", "redis://ann:secret@host/0")[0] == 0
    assert run("verify", "--store", "memory")[0] == 0


def test_what_is_wrong_says_what_to_type(run: Run, path: Path, tmp_path: Path) -> None:
    """No log, two of them, no hash."""
    assert run("verify", tmp_path / "none")[::2] == (
        2,
        f"aifinops: there is no audit log at {tmp_path / 'none'}; the first refusal makes one\n",
    )
    assert "not both" in run("verify", path, "--store", "x")[2]
    assert "64 digits" in run("verify", path, "--head", "abc")[2]
    assert "no log is kept" in run("verify")[2]


def test_the_entries_are_shown(run: Run, path: Path) -> None:
    """A line each, without anything that a terminal would obey."""
    code, out, _ = run("show", path)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["time", "kind", "budget", "facts"]
    assert lines[2] == ["2026-01-01", "00:00:00", "refused", "search", "amount=0.5"]
    assert lines[3][-2:] == ["by=ann", "ids=a,b"]
    assert "[red]x?[0m" in out


def test_only_what_is_asked_for_is_shown(run: Run, path: Path) -> None:
    """By kind, by budget, the last ones, as JSON."""
    assert [json.loads(line)["n"] for line in run("show", path, "--kind", "refused", "--json")[1].splitlines()] == [
        2,
        4,
    ]
    assert [json.loads(line)["n"] for line in run("show", path, "--budget", "ingest", "--json")[1].splitlines()] == [3]
    assert [json.loads(line)["n"] for line in run("show", path, "--last", 1, "--json")[1].splitlines()] == [4]
    assert run("show", path, "--kind", "x")[1] == "No entries of that kind.\n"


def test_what_is_answered_from_the_command_line_is_in_the_log(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grant and a denial, with who has given them, in the log of the store."""
    from aifinops.budgets.approvals import Approvals, Key, Request
    from aifinops.clock import SystemClock

    monkeypatch.setenv("AIFINOPS_LEDGER", str(tmp_path / "ledger.db"))
    runtime.reset()
    store = SqliteStore(tmp_path / "budgets.db")
    desk = Approvals(SystemClock(), Key(tmp_path / "approvals.key"))
    for amount, answer in ((10, "grant"), (20, "deny")):
        wanted = Request("", f"team {answer}", "team|day", 0, "USD", amount * 10**9, 10**9, 0)
        request = desk.answer(store, wanted)
        assert isinstance(request, Request)
        with pytest.raises(SystemExit) as left:
            main(["approvals", answer, request.id, "--by", "ann"])
        assert left.value.code in (0, None), capsys.readouterr().err
    store.close()
    capsys.readouterr()
    granted, denied = (json.loads(line) for line in run("show", "--json")[1].splitlines()[1:])
    assert (granted["kind"], granted["by"], granted["amount"]) == ("approval_granted", "ann", "10")
    assert (denied["kind"], denied["by"], denied["budget"]) == ("approval_denied", "ann", "team deny")
