"""Compaction of ledgers: sums stay, details go, and nothing is counted twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError
from aifinops.ledger import compaction, rollups
from aifinops.ledger.base import DAY_NS, HOUR_NS, Ledger, Query
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.testing.ledger import START, example_charge, random_charges

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
IDS = [f"{number:032x}" for number in range(20)]
MOMENTS = st.integers(0, 4 * DAY_NS) | st.sampled_from([DAY_NS * day for day in range(5)])
CHARGES = st.builds(
    example_charge,
    st.just(0),
    id=st.sampled_from(IDS),
    at=MOMENTS,
    model=st.sampled_from(["a", "b"]),
    amount=st.none() | st.integers(0, 100) | st.just(2**63 - 1),
    currency=st.sampled_from(["USD", "EUR"]),
    basis=st.sampled_from(["priced", "estimated", "unknown"]),
    lower=st.none() | st.integers(0, 50),
    upper=st.none() | st.integers(50, 99),
    corrects=st.just("") | st.sampled_from(IDS),
    lines=st.just(()),
    tags=st.dictionaries(st.sampled_from(["team", "user"]), st.sampled_from(["", "x", "y"])),
    quantities=st.dictionaries(
        st.sampled_from(["input_tokens", "input_audio_tokens"]), st.integers(0, 2**60) | st.decimals(0, 100, places=6)
    ),
)
STEPS = st.lists(
    st.tuples(st.just("append"), CHARGES)
    | st.tuples(st.just("many"), st.lists(CHARGES, max_size=6))
    | st.tuples(st.just("compact"), MOMENTS)
    | st.tuples(st.just("vacuum"), st.none()),
    min_size=1,
    max_size=14,
)
QUERIES = st.builds(
    Query,
    since_ns=st.none() | MOMENTS,
    until_ns=st.none() | MOMENTS,
    where=st.dictionaries(st.sampled_from(["team", "model"]), st.sampled_from(["", "x", "a"]), max_size=1),
)
BYS = st.lists(st.sampled_from(["team", "model", "basis", "day", "hour", "month", "user"]), max_size=3, unique=True)


def play(ledger: Ledger, step: str, what: Any) -> object:
    if step == "append":
        return ledger.append(what)
    if step == "many":
        return ledger.append_many(what)
    if step == "compact":
        ledger.compact(what)
    elif isinstance(ledger, SqliteLedger):
        with closing(sqlite3.connect(ledger.path)) as other:
            other.execute("VACUUM")
    return None


def asked(ledger: Ledger, query: Query, by: list[str]) -> object:
    """The answer, or what kept it away."""
    try:
        return ledger.summarize(query, by)
    except ConfigurationError as error:
        return str(error)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(STEPS, st.lists(st.tuples(QUERIES, BYS), min_size=1, max_size=5), st.integers(1, 4))
def test_no_answer_is_another_one_after_compaction(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], asks: list[Any], batch: int
) -> None:
    """Every question is answered as without compaction, or refused; those by kept keys and whole days are never refused."""
    plain, memory, file = MemoryLedger(), MemoryLedger(), SqliteLedger(tmp_path_factory.mktemp("l") / "l.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollups, "BATCH", batch)
        patch.setattr(compaction, "STEP", batch)
        for step, what in steps:
            wanted = None if step == "compact" else play(plain, step, what)
            assert play(memory, step, what) == play(file, step, what) == wanted
        for query, by in asks:
            wanted = plain.summarize(query, by)
            kept = "hour" not in by and "user" not in by
            kept &= all(at is None or at % DAY_NS == 0 for at in (query.since_ns, query.until_ns))
            for ledger in (memory, file):
                found = asked(ledger, query, by)
                assert found == wanted or (not kept and "daily roll-ups are kept" in str(found))
        assert (file.info().entries, memory.info().entries) == (plain.info().entries,) * 2
        assert (file.info().first_at, file.info().last_at) == (plain.info().first_at, plain.info().last_at)
        assert file.verify().problems == ()
    file.close()


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    made: Ledger = MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "l.db")
    yield made
    made.close()


BEFORE = (START // DAY_NS + 1) * DAY_NS


def test_what_is_kept_is_named(ledger: Ledger) -> None:
    """Details of a compacted time are refused, with what can be asked for; details since then are there."""
    later = example_charge(7, at=BEFORE + 5, tags={"customer": "new"})
    ledger.append_many([example_charge(number) for number in range(5)] + [later])
    done = ledger.compact(BEFORE + HOUR_NS)
    assert (done.entries, done.kept, done.since_ns, done.until_ns) == (5, 0, BEFORE - DAY_NS, BEFORE)
    assert [charge.id for charge in ledger.rows()] == [later.id]
    for query, by in [
        (Query(), ["customer"]),
        (Query(), ["hour"]),
        (Query(where={"customer": "acme"}), []),
        (Query(since_ns=START), ["model"]),
    ]:
        with pytest.raises(
            ConfigurationError, match=r"before 2025-11-25 daily roll-ups.*team, project.*since 2025-11-25"
        ):
            ledger.summarize(query, by)
    (group,) = ledger.summarize(Query(since_ns=BEFORE), ["customer"])
    assert (group.key, group.calls) == (("new",), 1)
    assert [group.calls for group in ledger.summarize(Query(), ["day"])] == [5, 1]
    assert (ledger.info().entries, ledger.info().compacted, ledger.info().compacted_until_ns) == (6, 5, BEFORE)


def test_a_late_duplicate_of_a_compacted_entry_is_ignored(ledger: Ledger) -> None:
    """Its id is known for ever, whatever else the second entry says."""
    charge = example_charge(1, amount=7)
    ledger.append(charge)
    ledger.compact(BEFORE)
    again = example_charge(1, amount=9, at=charge.at + 40 * DAY_NS)
    assert not ledger.append(again)
    assert ledger.append_many([again, example_charge(2, amount=1)]) == 1
    ledger.enqueue(again)
    assert [group.amount for group in ledger.summarize()] == [8]


def test_a_late_correction_of_a_compacted_entry_counts(ledger: Ledger) -> None:
    """It is an entry of its own, with its difference."""
    ledger.append(example_charge(1, amount=7))
    ledger.compact(BEFORE)
    ledger.append(example_charge(2, amount=-2, at=BEFORE, corrects=example_charge(1).id, status="correction"))
    (group,) = ledger.summarize()
    assert (group.amount, group.calls, group.corrections) == (5, 1, 1)
    assert ledger.compact(BEFORE + DAY_NS).entries == 1
    assert ledger.summarize() == [group]


def test_unsure_entries_stay_until_they_are_sure(ledger: Ledger) -> None:
    """What has no price is kept in detail; once corrected it goes with its correction."""
    unknown = example_charge(1, amount=None, basis="unknown", lower=0, upper=None, lines=())
    ledger.append_many([unknown, example_charge(2)])
    done = ledger.compact(BEFORE)
    assert (done.entries, done.kept) == (1, 1)
    assert [charge.id for charge in ledger.rows()] == [unknown.id]
    ledger.append(example_charge(3, amount=5, corrects=unknown.id, status="correction", quantities={}))
    (group,) = ledger.summarize()
    assert (group.unpriced_calls, group.upper) == (0, 350_505)
    assert ledger.compact(BEFORE).entries == 2
    assert ledger.summarize() == [group]
    assert list(ledger.rows()) == []


def test_nothing_to_do_is_told(ledger: Ledger) -> None:
    """A ledger without old entries stays as it is, and no question is refused."""
    ledger.append(example_charge(1))
    done = ledger.compact(START - DAY_NS)
    assert (done.entries, done.kept, done.since_ns, done.freed_bytes) == (0, 0, None, 0)
    assert ledger.info().compacted_until_ns is None
    assert len(ledger.summarize(by=["customer"])) == 1


def test_room_is_given_back(tmp_path: Path) -> None:
    """The file becomes smaller, and says by how much."""
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.append_many([example_charge(number) for number in range(6000)])
    ledger.close()
    before = ledger.path.stat().st_size
    seen: list[tuple[int, int]] = []
    done = ledger.compact(BEFORE, progress=lambda so_far, total: seen.append((so_far, total)))
    ledger.close()
    assert before - ledger.path.stat().st_size > 0.8 * done.freed_bytes > 0.5 * before
    assert seen[-1] == (6000, 6000)
    assert len(seen) == 6000 // compaction.STEP


KILLED = """
import sys
from aifinops.ledger import compaction
from aifinops.ledger.sqlite import SqliteLedger
ledger = SqliteLedger(sys.argv[1])
print("ready", flush=True)
compaction.STEP = 5
ledger.compact(int(sys.argv[2]))
"""


def test_a_killed_compaction_is_gone_on_with(tmp_path: Path) -> None:
    """SIGKILL in the middle of it leaves a sound file with the same sums; the next one does the rest."""
    charges = [charge for charge in random_charges(3, 1500) if charge.amount is not None]
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.append_many(charges)
    before = ledger.summarize(Query(), ["team", "model", "day"])
    boundary = START + 40 * DAY_NS
    wanted = MemoryLedger()
    wanted.append_many(charges)
    entries = wanted.compact(boundary).entries
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(ledger.path), str(boundary)], env=ENV, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.15)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert ledger.summarize(Query(), ["team", "model", "day"]) == before
        assert ledger.verify().sound
    ledger.compact(boundary)
    assert ledger.info().compacted == entries
    assert ledger.summarize(Query(), ["team", "model", "day"]) == before
    assert ledger.verify().sound
    ledger.close()


def test_others_write_during_a_compaction(tmp_path: Path) -> None:
    """What comes between two steps is kept, late duplicates of what has just gone are ignored."""
    ledger, other = SqliteLedger(tmp_path / "l.db"), SqliteLedger(tmp_path / "l.db")
    charges: list[Charge] = [example_charge(number, amount=1, lines=()) for number in range(3000)]
    ledger.append_many(charges)

    def write(done: int, total: int) -> None:
        assert not other.append(charges[done - 1])
        assert other.append(example_charge(10_000 + done, amount=1, lines=()))

    assert ledger.compact(BEFORE, progress=write).entries == 3000
    assert [group.amount for group in other.summarize()] == [3003]
    assert ledger.verify().sound
    ledger.close()
    other.close()
