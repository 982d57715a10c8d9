"""`verify`: whatever is wrong in a ledger is named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from aifinops.ledger.base import DAY_NS, Problem, Verification, problems_of
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.testing.ledger import START, example_charge


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    made = SqliteLedger(tmp_path / "l.db")
    made.append_many([example_charge(number) for number in range(20)])
    made.migrate()
    yield made
    made.close()


def by_hand(ledger: SqliteLedger, *statements: str) -> None:
    with closing(sqlite3.connect(ledger.path)) as other:
        for statement in statements:
            other.execute(statement)
        other.commit()


def test_a_sound_ledger_has_no_problems(ledger: SqliteLedger) -> None:
    """Everything was looked at, and progress told."""
    seen: list[tuple[int, int]] = []
    assert ledger.verify(progress=lambda *done: seen.append(done)) == Verification(20)
    assert seen == [(20, 20)]
    assert ledger.verify().sound


ID = example_charge(3).id
WRONG: dict[str, tuple[str, Callable[[Problem], bool]]] = {
    "lines": (
        f"UPDATE charges SET lines = '[[\"input_tokens\",1]]' WHERE id = '{ID}'",
        lambda problem: problem.where == ID and "add up to 1 nano-units" in problem.text,
    ),
    "unreadable": (
        f"UPDATE charges SET quantities = '{{broken' WHERE id = '{ID}'",
        lambda problem: problem.where == ID and "JSONDecodeError" in problem.text,
    ),
    "rollup": (
        f"UPDATE charges SET amount = 350501, lines = NULL WHERE id = '{ID}'",
        lambda problem: (
            problem.where == "2025-11-24" and "amount 7010000" in problem.text and "7010001" in problem.text
        ),
    ),
    "duplicate": (
        f"INSERT INTO gone VALUES ('{ID}')",
        lambda problem: problem.where == ID and "counts twice" in problem.text,
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_each_kind_of_problem_is_named(ledger: SqliteLedger, kind: str) -> None:
    """With the entry or the day that it is in."""
    statement, expected = WRONG[kind]
    by_hand(ledger, statement)
    found = [problem for problem in ledger.verify().problems if problem.kind == kind]
    assert found
    assert all(map(expected, found))


def test_a_roll_up_that_is_missing_or_too_many_is_named(ledger: SqliteLedger) -> None:
    """By hour and by day."""
    by_hand(
        ledger, "DELETE FROM rollups WHERE grain = 1", "UPDATE rollups SET at = at - 86400000000000 WHERE grain = 2"
    )
    texts = sorted((problem.where, problem.text.split(" roll-up")[0]) for problem in ledger.verify().problems)
    assert texts == [("2025-11-23", "its"), ("2025-11-24", "an hour's"), ("2025-11-24", "its")]


def test_a_lost_mark_is_named_and_migrate_mends_it(ledger: SqliteLedger) -> None:
    """The roll-ups are made anew."""
    by_hand(ledger, "UPDATE state SET value = 'nobody' WHERE name = 'rolled'")
    (problem,) = ledger.verify().problems
    assert (problem.kind, "migrate" in problem.text) == ("rollup", True)
    assert ledger.migrate() == 20
    assert ledger.verify().sound


def test_wrong_roll_ups_are_made_anew(ledger: SqliteLedger) -> None:
    """From the entries, and from what is gone of compacted days."""
    ledger.append_many([example_charge(number, at=START + 3 * DAY_NS) for number in range(100, 110)])
    ledger.compact(START + 2 * DAY_NS)
    before = ledger.summarize(by=["day", "team"])
    by_hand(ledger, "UPDATE rollups SET amount = 1 WHERE grain <> 0")
    assert not ledger.verify().sound
    assert ledger.migrate(anew=True) == 10
    assert ledger.verify().sound
    assert ledger.summarize(by=["day", "team"]) == before


def test_compacted_days_are_looked_through_as_well(ledger: SqliteLedger) -> None:
    """What is gone is in the sums of the day."""
    ledger.compact(START + 2 * DAY_NS)
    assert ledger.verify() == Verification(0)
    by_hand(ledger, "UPDATE rollups SET amount = amount + 1 WHERE grain = 0")
    (problem,) = ledger.verify().problems
    assert problem.kind == "rollup"


def test_a_damaged_page_is_named(ledger: SqliteLedger) -> None:
    """SQLite's own check comes first; what can be read is looked through, and the rest is said to be unreadable."""
    ledger.append_many([example_charge(number) for number in range(100, 400)])
    ledger.close()
    size = ledger.path.stat().st_size
    with ledger.path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(b"\xff" * 40_000)
    found = ledger.verify()
    assert not found.sound
    assert {problem.kind for problem in found.problems} >= {"damaged"}


def test_only_so_many_problems_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are counted."""
    monkeypatch.setattr(Verification, "MOST", 3)
    memory = MemoryLedger()
    memory.append_many([example_charge(number, amount=1) for number in range(9)])
    found = memory.verify()
    assert (len(found.problems), found.found, found.entries, found.sound) == (3, 9, 9, False)


def test_an_entry_without_lines_or_amount_has_nothing_to_add_up() -> None:
    """Corrections have no lines, unknown costs no amount."""
    assert problems_of(example_charge(1, lines=(), amount=5)) == []
    assert problems_of(example_charge(1, amount=None)) == []
    assert [problem.kind for problem in problems_of(example_charge(1, amount=5))] == ["lines"]
