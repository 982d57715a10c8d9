"""Roll-ups of the SQLite ledger: whatever was rolled up when, sums are those of the rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aifinops.errors import StoreError
from aifinops.ledger import rollups
from aifinops.ledger.base import DAY_NS, HOUR_NS, Query
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.testing.ledger import START, example_charge, random_charges

IDS = [f"{number:032x}" for number in range(24)]
MOMENTS = st.integers(0, 3 * DAY_NS) | st.sampled_from(
    [0, HOUR_NS, DAY_NS - 1, DAY_NS, 2 * DAY_NS, 2 * DAY_NS + HOUR_NS]
)
CHARGES = st.builds(
    example_charge,
    st.just(0),
    id=st.sampled_from(IDS),
    at=MOMENTS,
    model=st.sampled_from(["a", "b"]),
    amount=st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 100),
    currency=st.sampled_from(["USD", "USD", "EUR"]),
    basis=st.sampled_from(["priced", "estimated", "unknown"]),
    lower=st.none() | st.integers(0, 50),
    upper=st.none() | st.integers(50, 99) | st.just(2**63 - 1),
    duration=st.integers(0, 9) | st.just(2**63 - 1),
    status=st.sampled_from(["ok", "error"]),
    corrects=st.just("") | st.sampled_from(IDS),
    tags=st.dictionaries(st.sampled_from(["team", "run", "user"]), st.sampled_from(["", "x", "y"])),
    quantities=st.dictionaries(
        st.sampled_from(["input_tokens", "output_tokens", "input_audio_tokens", "requests", "gpu_seconds"]),
        st.integers(0, 2**60) | st.decimals(0, 100, places=6),
    ),
)
QUERIES = st.builds(
    Query,
    since_ns=st.none() | MOMENTS,
    until_ns=st.none() | MOMENTS,
    where=st.dictionaries(
        st.sampled_from(["team", "model", "status", "day", "hour"]),
        st.sampled_from(["", "x", "a", "ok", "1970-01-02", "1970-01-02T00"]),
        max_size=1,
    ),
)
BYS = st.lists(
    st.sampled_from(["team", "model", "basis", "day", "hour", "month", "run", "user"]), max_size=3, unique=True
)
STEPS = st.lists(
    st.tuples(st.just("append"), CHARGES)
    | st.tuples(st.just("many"), st.lists(CHARGES, max_size=4))
    | st.tuples(st.sampled_from(["roll", "vacuum", "ask"]), st.none()),
    max_size=20,
)


def settle(ledger: SqliteLedger, step: str) -> None:
    """Do something to the file that no answer may show."""
    connection = ledger._file.connection or ledger._file.open()
    if step == "roll":
        rollups.roll_up(connection)
    elif step == "vacuum":
        with closing(sqlite3.connect(ledger.path)) as other:
            other.execute("VACUUM")


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(STEPS, st.lists(st.tuples(QUERIES, BYS), min_size=1, max_size=6), st.integers(1, 4))
def test_sums_are_those_of_the_rows_whenever_they_were_rolled_up(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], asks: list[Any], batch: int
) -> None:
    """Corrections before and after what they correct, numbers beyond 64 bits, fractions, bounds inside an hour: always exact."""
    memory, ledger = MemoryLedger(), SqliteLedger(tmp_path_factory.mktemp("l") / "l.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollups, "BATCH", batch)
        for step, what in steps:
            if step == "append":
                assert ledger.append(what) == memory.append(what)
            elif step == "many":
                assert ledger.append_many(what) == memory.append_many(what)
            else:
                settle(ledger, step)
        for query, by in asks:
            assert ledger.summarize(query, by) == memory.summarize(query, by)
        assert ledger.info().entries == memory.info().entries
    ledger.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    made = SqliteLedger(tmp_path / "l.db", timeout_s=0.01)
    yield made
    made.close()


def whole(ledger: SqliteLedger, **changes: Any) -> list[Any]:
    return ledger.summarize(Query(**changes), ["team", "model", "day"])


def test_a_report_rolls_up_what_is_behind_and_reads_the_rest(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole batches are rolled up; a few newest rows are read as they are."""
    monkeypatch.setattr(rollups, "BATCH", 50)
    charges = random_charges(1, 230)
    ledger.append_many(charges)
    assert ledger.info().behind == 230
    memory = MemoryLedger()
    memory.append_many(charges)
    assert whole(ledger) == whole(memory)  # type: ignore[arg-type]
    assert (ledger.info().behind, ledger.info().entries) == (30, 230)


def test_a_report_of_a_locked_file_reads_rows(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that holds the file keeps roll-ups behind, and no answer away."""
    monkeypatch.setattr(rollups, "BATCH", 10)
    ledger.append_many(random_charges(2, 40))
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        (group,) = ledger.summarize(Query(where={"currency": "USD"}))
        other.execute("ROLLBACK")
    assert ledger.info().behind == 40
    assert ledger.summarize(Query(where={"currency": "USD"})) == [group]
    assert ledger.info().behind == 0


def test_a_lost_mark_has_everything_rolled_up_anew(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who deletes entries by hand gets the sums of what is left."""
    monkeypatch.setattr(rollups, "BATCH", 10)
    charges = [example_charge(number, amount=1) for number in range(40)]
    ledger.append_many(charges)
    assert ledger.summarize()[0].amount == 40
    with closing(sqlite3.connect(ledger.path)) as other:
        other.execute("DELETE FROM charges WHERE id = ?", (charges[-1].id,))
        other.commit()
    assert ledger.summarize()[0].amount == 39
    assert ledger.info().entries == 39


def test_roll_ups_answer_without_a_look_at_the_rows(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question by bounded keys and whole hours is answered though every row is gone."""
    monkeypatch.setattr(rollups, "BATCH", 10)
    charges = [example_charge(number, at=START + number * HOUR_NS) for number in range(100)]
    ledger.append_many(charges)
    before = whole(ledger)
    with closing(sqlite3.connect(ledger.path)) as other:
        other.execute("DELETE FROM charges WHERE id <> ?", (charges[-1].id,))
        other.commit()
    assert whole(ledger) == before


def test_a_roll_up_that_fails_changes_nothing(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction is whole or not at all."""
    ledger.append_many([example_charge(number) for number in range(5)])
    connection = ledger._file.connection
    assert connection is not None

    def fail(*arguments: object, **values: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(rollups, "remember", fail)
    with pytest.raises(sqlite3.OperationalError):
        rollups.roll_up(connection)
    assert connection.execute("SELECT count(*) FROM rollups").fetchone() == (0,)
    assert not connection.in_transaction


def test_journals_are_in_the_sums_of_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ledgers on one file, one of which only has a journal: both answer the same."""
    monkeypatch.setattr(rollups, "BATCH", 3)
    one, other = SqliteLedger(tmp_path / "l.db"), SqliteLedger(tmp_path / "l.db")
    for number in range(10):
        (one if number % 2 else other).enqueue(example_charge(number, amount=5))
        assert one.summarize()[0].amount == other.summarize()[0].amount == 5 * (number + 1)
    one.close()
    other.close()


def test_a_damaged_roll_up_is_a_store_error(ledger: SqliteLedger) -> None:
    """A missing table is told, not taken for nothing."""
    with closing(sqlite3.connect(ledger.path)) as other:
        other.execute("DROP TABLE rollups")
    with pytest.raises(StoreError, match="rollups"):
        ledger.info()
