"""The ledger in ClickHouse keeps the published contract, and its roll-ups stay exact when entries come twice, late, or in between.

The engine is the real one, from the package `chdb`: once in this process, once behind the driver `clickhouse-connect` and a stand-in for
ClickHouse's HTTP interface (`clickhouse_server.py`). `AIFINOPS_TEST_CLICKHOUSE` names a server to use instead of the stand-in.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from clickhouse_server import HAVE_DRIVER, HAVE_ENGINE, Server

from aifinops.charges import Charge
from aifinops.clock import to_datetime
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger import clickhouse, open_ledger, path_of
from aifinops.ledger.base import Query
from aifinops.ledger.clickhouse import ClickHouseLedger, open_url
from aifinops.ledger.clickhouse_link import EngineLink, Link, open_link
from aifinops.ledger.clickhouse_rollups import Rollups
from aifinops.ledger.memory import MemoryLedger
from aifinops.testing.ledger import CHECKS, HOUR, START, example_charge, random_charges

if not HAVE_ENGINE:
    pytest.skip("needs chdb", allow_module_level=True)

GIVEN = os.environ.get("AIFINOPS_TEST_CLICKHOUSE", "")
NUMBERS = itertools.count(1)
BYS = ((), ("team", "model", "day"), ("hour", "basis"), ("model", "status"), ("customer",), ("user",))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not HAVE_DRIVER:
        pytest.skip("needs clickhouse-connect")
    made = Server()
    yield made
    made.close()


def _name() -> str:
    return f"aifinops_test_{os.getpid()}_{next(NUMBERS)}"


@pytest.fixture(params=["chdb", "http"])
def make_link(request: pytest.FixtureRequest) -> Callable[..., Link]:
    """Makes ways to one database, or with another name to another."""
    here = _name()
    if request.param == "chdb":
        path = request.getfixturevalue("engine_folder")
        return lambda name=here: open_link(f"chdb:///{path}?database={name}", 60)
    if GIVEN:
        return lambda name=here: open_link(f"{GIVEN.rstrip('/')}/{name}", 60)
    own: Server = request.getfixturevalue("server")
    return lambda name=here: open_link(own.url(name), 60)


@pytest.fixture
def engine(engine_folder: Path) -> Callable[..., Link]:
    """The same in this process only, where what is tested is not the driver."""
    here = _name()
    return lambda name=here: open_link(f"chdb:///{engine_folder}?database={name}", 60)


@pytest.mark.parametrize("name", CHECKS)
def test_contract(name: str, make_link: Callable[..., Link]) -> None:
    """Each promise of the interface holds, where entries are added up one by one."""
    CHECKS[name](lambda: ClickHouseLedger(make_link(_name())))


@pytest.mark.parametrize(
    "name", [name for name in CHECKS if "sum" in name or "correction" in name or "compact" in name]
)
def test_contract_with_roll_ups(name: str, engine: Callable[..., Link]) -> None:
    """Each promise about sums holds where every hour is rolled up at once."""
    CHECKS[name](lambda: ClickHouseLedger(engine(_name()), quiet_s=0))


def agree(ledger: ClickHouseLedger, charges: list[Charge], **query: Any) -> None:
    """The sums are those of a ledger in memory which has had each entry once."""
    wanted = MemoryLedger()
    wanted.append_many(charges)
    for by in BYS:
        found = ledger.summarize(Query(**query), by)
        assert found == wanted.summarize(Query(**query), by), by


def rolled(ledger: ClickHouseLedger) -> int:
    return sum(1 for hour in ledger._rollups.hours() if hour.build)


class Blind(ClickHouseLedger):
    """A writer that does not see what another one writes at the same moment."""

    def _known(self, ids: Any) -> list[str]:
        return []


@pytest.mark.parametrize("quiet_s", [0, 300])
def test_an_entry_of_two_writers_at_once_counts_once(quiet_s: int, make_link: Callable[..., Link]) -> None:
    """Two writers with the same entries, neither of which sees the other's: rows, sums, roll-ups and counts have each once."""
    charges = random_charges(3, 200)
    first, second = (Blind(make_link(), quiet_s=quiet_s) for _ in range(2))
    first.append_many(charges)
    if quiet_s == 0:
        agree(first, charges)
        assert rolled(first)
    second.append_many(charges[50:] + charges[50:60])
    for ledger in (first, second):
        agree(ledger, charges)
        assert ledger.info().entries == 200
        assert sorted(charge.id for charge in ledger.rows()) == sorted(charge.id for charge in charges)
    physical = first._link.query(f"SELECT count() FROM {first._db}.aifinops_charges")
    assert int(physical[0][0]) > 200, "the engine has packed the duplicates away already, so that this shows nothing"


def test_threads_that_write_the_same_entries_count_them_once(engine: Callable[..., Link]) -> None:
    """Four writers, all with the same batches in different orders, and a reader that rolls up in between."""
    charges = random_charges(5, 120)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            ledger = Blind(engine(), quiet_s=0)
            batches = [charges[start : start + 20] for start in range(0, 120, 20)]
            random.Random(seed).shuffle(batches)
            for batch in batches:
                ledger.append_many(batch)
        except BaseException as error:  # carried into the main thread below
            errors.append(error)

    ledger = ClickHouseLedger(engine())
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    agree(ledger, charges)
    ledger._quiet_s = 0
    assert ledger.roll_up()
    agree(ledger, charges)


def test_the_first_entry_of_an_id_stays(make_link: Callable[..., Link]) -> None:
    """Where two writers give one id and moment to different entries, all questions have the first."""
    first, second = (Blind(make_link(), quiet_s=0) for _ in range(2))
    charge = example_charge(1, amount=5)
    first.append(charge)
    second.append(replace(charge, amount=7))
    assert list(first.rows()) == [charge]
    assert [group.amount for group in first.summarize(by=["model"])] == [5]


def test_an_hour_is_rolled_up_once_it_is_quiet(engine: Callable[..., Link]) -> None:
    """Until then it is read entry by entry."""
    ledger = ClickHouseLedger(engine(), quiet_s=3600)
    charges = random_charges(7, 60)
    ledger.append_many(charges)
    agree(ledger, charges)
    assert rolled(ledger) == 0
    ledger._quiet_s = 0
    agree(ledger, charges)
    assert rolled(ledger) == len({charge.at // HOUR for charge in charges})


def test_what_comes_late_is_counted(engine: Callable[..., Link]) -> None:
    """An entry of an hour that was rolled up makes the roll-up stale; the next one has it."""
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    charges = random_charges(8, 100)
    ledger.append_many(charges[:90])
    agree(ledger, charges[:90])
    hours = rolled(ledger)
    ledger._quiet_s = 3600
    ledger.append_many(charges[90:])
    assert rolled(ledger) < hours + 1
    agree(ledger, charges)
    ledger._quiet_s = 0
    agree(ledger, charges)


def test_what_comes_while_an_hour_is_rolled_up_is_counted(
    engine: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at touches and the look at entries, or behind both: no roll-up is taken for right that is not."""
    charges = random_charges(9, 80)
    late = {"before": charges[60:70], "after": charges[70:]}

    build = Rollups._build

    def interrupted(rollups: Rollups, hours: Any) -> None:
        ClickHouseLedger(engine()).append_many(late.pop("before", []))
        build(rollups, hours)
        ClickHouseLedger(engine()).append_many(late.pop("after", []))

    monkeypatch.setattr(Rollups, "_build", interrupted)
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    ledger.append_many(charges[:60])
    ledger.summarize(by=["model"])
    assert late == {}
    agree(ledger, charges)
    assert rolled(ledger)


def test_a_writer_that_was_killed_between_touch_and_entries_does_no_harm(engine: Callable[..., Link]) -> None:
    """An hour that was touched and has no entries has empty sums; entries that come later are counted."""
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    charges = random_charges(10, 30)
    ledger._rollups.touch(sorted({charge.at // HOUR * HOUR for charge in charges}))
    agree(ledger, [])
    ledger.append_many(charges)
    agree(ledger, charges)


@pytest.mark.parametrize("quiet_s", [0, 3600])
def test_a_correction_reaches_roll_ups_that_are_made(quiet_s: int, engine: Callable[..., Link]) -> None:
    """What a correction changes of an older hour is right at once, and after it has been rolled up again."""
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    unsure = [
        example_charge(1, amount=None, basis="unknown", lower=0, upper=None, quantities={"input_tokens": 2**60}),
        example_charge(2, amount=10, basis="estimated", lower=5, upper=20),
        example_charge(3, amount=None, basis="unknown", upper=90, quantities={"output_image_tokens": Decimal("1.5")}),
    ]
    ledger.append_many(unsure)
    agree(ledger, unsure)
    assert rolled(ledger) == 1
    fixes = [
        example_charge(100 + place, at=START + 50 * HOUR, corrects=one.id, status="correction", amount=7, quantities={})
        for place, one in enumerate(unsure)
    ]
    ledger._quiet_s = quiet_s
    for place in range(3):
        ledger.append(fixes[place])
        agree(ledger, unsure + fixes[: place + 1])
    ledger._quiet_s = 0
    agree(ledger, unsure + fixes)
    assert rolled(ledger) == 2
    assert ledger._rollups.settle() == set()


def test_a_correction_that_comes_while_an_hour_is_rolled_up_is_counted(
    engine: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roll-up may have been made with or without it: the hour is read entry by entry until it is rolled up again."""
    unsure = [example_charge(number, amount=10, basis="estimated", upper=99) for number in range(2)]
    fixes = [example_charge(100 + number, at=START + 50 * HOUR, corrects=unsure[number].id, amount=1) for number in range(2)]  # fmt: skip
    late = {"before": fixes[0], "after": fixes[1]}

    build = Rollups._build

    def interrupted(rollups: Rollups, hours: Any) -> None:
        for moment in ("before", "after"):
            if moment in late:
                ClickHouseLedger(engine()).append(late.pop(moment))
            if moment == "before":
                build(rollups, hours)

    monkeypatch.setattr(Rollups, "_build", interrupted)
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    ledger.append_many(unsure)
    ledger.summarize()
    ledger._quiet_s = 3600
    agree(ledger, unsure + fixes)
    ledger._quiet_s = 0
    agree(ledger, unsure + fixes)


def test_who_may_only_read_adds_up_entries(engine: Callable[..., Link], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to roll up a question is answered all the same, also after a correction."""
    link = engine()
    ledger = ClickHouseLedger(link, quiet_s=0)
    charges = random_charges(14, 60)
    ledger.append_many(charges)

    def refused(*_: Any) -> None:
        raise StoreError("not enough privileges")

    monkeypatch.setattr(link, "insert", refused)
    monkeypatch.setattr(link, "command", refused)
    agree(ledger, charges)
    assert rolled(ledger) == 0


def test_a_meter_whose_sum_is_zero_is_there(engine: Callable[..., Link]) -> None:
    """A correction that takes all of a quantity away leaves a sum of zero, as in every ledger."""
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    charges = [example_charge(number, quantities={"gpu_seconds": Decimal(value)}) for number, value in enumerate((10, -10))]  # fmt: skip
    ledger.append_many(charges)
    (group,) = ledger.summarize()
    assert group.quantities == {"gpu_seconds": 0}
    assert rolled(ledger) == 1


def test_a_roll_up_that_is_wrong_is_found_and_made_anew(engine: Callable[..., Link]) -> None:
    """Somebody has put a sum in by hand: the day is named, and made again from its entries."""
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    charges = [replace(charge, lines=()) for charge in random_charges(28, 40)]
    ledger.append_many(charges)
    sound = ledger.verify()
    assert (sound.sound, sound.entries) == (True, 40)
    hour = next(hour for hour in ledger._rollups.hours() if hour.build)
    ledger._link.insert(f"{ledger._db}.aifinops_hourly", ("at", "build", "currency", "amount", "known"), f'[{hour.at}, {hour.build}, "USD", "1", "1"]'.encode())  # fmt: skip
    found = ledger.verify()
    day = to_datetime(hour.at).date().isoformat()
    assert [(one.kind, one.where) for one in found.problems] == [("rollup", day)]
    assert ledger.migrate(anew=True) == len({charge.at // HOUR for charge in charges})
    assert ledger.verify().sound
    agree(ledger, charges)


def test_periods_that_cut_hours_are_exact(engine: Callable[..., Link]) -> None:
    """The ends of a period are read entry by entry, the whole hours between from roll-ups."""
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    charges = [replace(one, at=START + place * HOUR // 7) for place, one in enumerate(random_charges(11, 70))]
    ledger.append_many(charges)
    for since, until in ((1, 3), (0, 70 * HOUR), (HOUR // 3, 5 * HOUR + 7), (2 * HOUR, None), (None, 4 * HOUR // 3)):
        edges = {
            "since_ns": None if since is None else START + since,
            "until_ns": None if until is None else START + until,
        }
        agree(ledger, charges, **edges)
    assert rolled(ledger)


def test_odd_quantities_are_exact(engine: Callable[..., Link]) -> None:
    """Digits and sizes beyond the engine's decimals, and zero, add up to the last digit."""
    values = [Decimal("1E-40"), Decimal("0.1"), 10**60, 2**64, 0, Decimal(0), Decimal("-3.25")]
    charges = [
        example_charge(place, quantities={"gpu_seconds": value, "requests": 0, "input_tokens": 2**52})
        for place, value in enumerate(values)
    ]
    for quiet_s in (0, 300):
        ledger = ClickHouseLedger(engine(_name()), quiet_s=quiet_s)
        ledger.append_many(charges)
        (group,) = ledger.summarize()
        assert Fraction(group.quantities["gpu_seconds"]) == sum(map(Fraction, values))
        assert group.quantities["input_tokens"] == 7 * 2**52
        assert "requests" in group.quantities


def test_batches_are_cut_and_may_be_sent_again(engine: Callable[..., Link], monkeypatch: pytest.MonkeyPatch) -> None:
    """More entries than one insertion takes are several; after an error in the middle the same ones may be given again."""
    monkeypatch.setattr(clickhouse, "_BATCH", 10)
    charges = random_charges(12, 45)
    link = engine()
    ledger = ClickHouseLedger(link)
    insert, calls = link.insert, itertools.count()

    def failing(*arguments: Any) -> None:
        if next(calls) == 5:
            raise StoreError("the wire was cut")
        insert(*arguments)

    monkeypatch.setattr(link, "insert", failing)
    with pytest.raises(StoreError, match="wire"):
        ledger.append_many(charges)
    assert ledger.append_many(charges) == 25
    assert ledger.append_many(charges) == 0
    agree(ledger, charges)


def test_a_number_beyond_64_bits_is_refused_before_anything_is_sent(engine: Callable[..., Link]) -> None:
    """The others of the batch are not half written."""
    ledger = ClickHouseLedger(engine())
    with pytest.raises(OverflowError, match="64 bits"):
        ledger.append_many([example_charge(1), example_charge(2, amount=2**63)])
    assert ledger.info().entries == 0


def test_a_ledger_that_is_not_there_can_be_refused(make_link: Callable[..., Link]) -> None:
    """A misspelt database is not made by who only wants to read."""
    with pytest.raises(ConfigurationError, match="there is no ledger at"):
        ClickHouseLedger(make_link(), create=False)
    ClickHouseLedger(make_link()).append(example_charge(1))
    assert ClickHouseLedger(make_link(), create=False).info().entries == 1


def test_a_newer_schema_is_refused(engine: Callable[..., Link]) -> None:
    """A ledger of a later version says so, with both versions and the command."""
    ledger = ClickHouseLedger(engine())
    ledger._link.insert(f"{ledger._db}.aifinops_schema", ("version",), b"[99]")
    with pytest.raises(ConfigurationError, match=r"schema 99; this one knows up to 1.*pip install --upgrade"):
        ClickHouseLedger(engine())


def test_a_migration_that_was_interrupted_goes_on(engine: Callable[..., Link], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are half there are completed by the next who opens the ledger."""
    link = engine()
    command, calls = link.command, itertools.count()

    def failing(statement: str) -> None:
        if next(calls) == 3:
            raise StoreError("killed")
        command(statement)

    monkeypatch.setattr(link, "command", failing)
    ledger = ClickHouseLedger(link)
    assert not ledger._ready
    assert ledger._bare.query(f"SELECT count() FROM system.tables WHERE database = '{ledger._db}'") != [["0"]]
    other = ClickHouseLedger(engine())
    assert other._ready
    assert ledger.append(example_charge(1))
    assert other.info().entries == 1


def test_the_engine_has_one_directory_at_a_time(engine_folder: Path, tmp_path: Path) -> None:
    """A second directory is refused with what to do."""
    link = EngineLink(tmp_path / "other", "x", 60)
    with pytest.raises(StoreError, match=r"close that first, or use \?database="):
        link.query("SELECT 1")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("chdb://", "names no directory"),
        ("clickhouse:///db", "names no host"),
        ("clickhouse://u:secret@h:x/db", "no number"),
        ("clickhouse://u:secret@127.0.0.1:1/a-b", "no name for a database"),
    ],
)
def test_a_wrong_address_says_what_to_write(url: str, match: str) -> None:
    """And shows no password."""
    if url.startswith("clickhouse") and not HAVE_DRIVER:
        pytest.skip("needs clickhouse-connect")
    with pytest.raises(ConfigurationError, match=match) as caught:
        open_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(not HAVE_DRIVER, reason="needs clickhouse-connect")
def test_a_server_that_is_away_keeps_no_program_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charges wait in the spool until it is there; who only reads is told at once, and the password is shown to nobody."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    url = "clickhouse://user:secret@127.0.0.1:1/db"
    ledger = open_ledger(url)
    ledger.enqueue(example_charge(1))
    with pytest.raises(StoreError) as caught:
        ledger.info()
    assert "secret" not in str(caught.value)
    ledger.close()
    with pytest.raises(StoreError, match="look whether the server runs") as caught:
        open_ledger(url, create=False)
    assert "secret" not in str(caught.value)
    assert path_of(url) == tmp_path / "aifinops" / "ledger.db"


def test_what_waits_on_disk_arrives_when_the_server_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is killed and started again has each entry once, through the real driver and the spool."""
    if not HAVE_DRIVER:
        pytest.skip("needs clickhouse-connect")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    own = Server()
    try:
        ledger = open_ledger(own.url("fleet"))
        charges = random_charges(13, 60)
        for charge in charges[:30]:
            ledger.enqueue(charge)
        assert ledger.info().entries == 30
        own.kill()
        for charge in charges[30:]:
            ledger.enqueue(charge)
        own.start()
        for _ in range(50):
            try:
                entries = ledger.info().entries
                break
            except StoreError:
                continue
        assert entries == 60
        assert {charge.id for charge in ledger.rows()} == {charge.id for charge in charges}
        ledger.close()
    finally:
        own.close()


# --- compaction ---------------------------------------------------------------------------------------------------------

DAY = 24 * HOUR
BOUNDARY = START - START % DAY + 4 * DAY
KEPT_BYS = (("team", "model", "day"), ("month", "status", "basis"))


def of_few_days(seed: int, count: int) -> list[Charge]:
    """Random charges of seven days; a day costs many statements."""
    return [replace(one, at=START + (one.at - START) % (7 * DAY)) for one in random_charges(seed, count)]


def agree_kept(ledger: ClickHouseLedger, charges: list[Charge]) -> None:
    """The sums that are kept are those of a ledger in memory which has had each entry once, and so are details of later days."""
    wanted = MemoryLedger()
    wanted.append_many(charges)
    for by in KEPT_BYS:
        assert ledger.summarize(by=by) == wanted.summarize(by=by), by
    later = Query(since_ns=BOUNDARY)
    assert ledger.summarize(later, ["user", "hour"]) == wanted.summarize(later, ["user", "hour"])


class Watched(ClickHouseLedger):
    """A ledger of whose statements somebody hears before each, once `heard` is set."""

    def listen(self, heard: Callable[[str], object]) -> None:
        command, insert = self._bare.command, self._bare.insert

        def commanded(statement: str) -> None:
            heard(statement)
            command(statement)

        def inserted(table: str, columns: Any, rows: bytes) -> None:
            heard(f"INSERT INTO {table}")
            insert(table, columns, rows)

        self._bare.command = commanded  # type: ignore[method-assign]  # each link is an object of its own
        self._bare.insert = inserted  # type: ignore[method-assign]


@pytest.mark.parametrize("quiet_s", [0, 300])
def test_sums_are_exact_before_each_statement_of_a_compaction(quiet_s: int, engine: Callable[..., Link]) -> None:
    """Another ledger asks, and writes late entries, corrections and duplicates, wherever the compaction may be."""
    charges = of_few_days(41, 90)
    random.Random(quiet_s).shuffle(charges)
    ledger, other = Watched(engine(), quiet_s=quiet_s), ClickHouseLedger(engine(), quiet_s=quiet_s)
    there, late = charges[:60], charges[60:]
    ledger.append_many(there)
    agree_kept(other, there)  # rolled up before, where it is quiet
    heard: list[str] = []

    def meanwhile(statement: str) -> None:
        heard.append(statement.split(" ", 1)[0])
        if late and len(heard) % 3 == 0:
            there.append(late.pop())
            assert other.append(there[-1])
        if len(heard) % 4 == 0:
            assert other.append_many(there[:10]) == 0
        agree_kept(other, there)
        assert other.info().entries == len(there)

    ledger.listen(meanwhile)
    first = ledger.compact(BOUNDARY)
    assert first.entries > 5
    assert {"INSERT", "RENAME", "DELETE"} <= set(heard)
    other.append_many(late)
    second = other.compact(BOUNDARY)
    agree_kept(other, charges)
    assert other.append_many(charges) == 0
    assert (other.info().entries, other.info().compacted) == (90, first.entries + second.entries)
    assert [one for one in other.verify().problems if one.kind == "rollup"] == []
    other.migrate(anew=True)
    agree_kept(other, charges)


class Killed(BaseException):
    """SIGKILL, as far as one process can have it: nothing that comes after it is done."""


@pytest.mark.parametrize("place", range(1, 15))
def test_a_compaction_that_was_killed_at_any_statement_goes_on(place: int, engine: Callable[..., Link]) -> None:
    """What was committed stays, what was not is as if it had never been; the next one takes over and does the rest."""
    charges = of_few_days(42, 40)
    ledger = Watched(engine())
    ledger.append_many(charges)
    left = [place]

    def until(statement: str) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise Killed

    ledger.listen(until)
    with pytest.raises(Killed):
        ledger.compact(BOUNDARY)
    other = ClickHouseLedger(engine(), lease_s=0.2)
    agree_kept(other, charges)
    part = other.info().compacted
    done = other.compact(BOUNDARY)
    assert other.info().compacted == part + done.entries > 0
    agree_kept(other, charges)
    assert other.append_many(charges) == 0
    assert other.compact(BOUNDARY).entries == 0
    assert len(list(other.rows())) == 40 - part - done.entries


def test_a_question_that_a_compaction_overtakes_is_asked_again(engine: Callable[..., Link]) -> None:
    """Days are compacted and their entries deleted after it has looked at what is compacted, and before it adds up."""
    charges = of_few_days(47, 40)
    other = ClickHouseLedger(engine())
    other.append_many(charges)
    overtaken: list[int] = []

    class Overtaken(ClickHouseLedger):
        def _asked(self, parts: Any, keys: int) -> Any:
            if len(overtaken) < 3:
                overtaken.append(other.compact(BOUNDARY - (2 - len(overtaken)) * DAY).entries)
            return super()._asked(parts, keys)

    ledger = Overtaken(engine())
    wanted = MemoryLedger()
    wanted.append_many(charges)
    assert ledger.summarize(by=["team", "day"]) == wanted.summarize(by=["team", "day"])
    assert sum(overtaken) > 5
    assert overtaken[0] * overtaken[1]
    overtaken.clear()
    later = Overtaken(engine())
    other.append_many([replace(charge, id=f"again {charge.id}", corrects="") for charge in charges])
    with pytest.raises(ConfigurationError, match="daily roll-ups are kept"):
        later.summarize(Query(until_ns=BOUNDARY + DAY), ["user"])


def test_a_month_that_is_compacted_gives_its_room_back(engine: Callable[..., Link]) -> None:
    """The month of the last day keeps the room until it is over; sums and duplicates are as before."""
    month = 30 * DAY
    charges = [example_charge(place, at=START + place % 2 * month + place * HOUR // 1000) for place in range(4000)]
    ledger = ClickHouseLedger(engine(), quiet_s=0)
    ledger.append_many(charges)
    before = ledger.summarize(by=["model", "month"])

    def rows() -> dict[str, int]:
        select = f"SELECT partition, sum(rows) FROM system.parts WHERE active AND database = '{ledger._db}' AND table = 'aifinops_charges' GROUP BY partition"
        return {str(partition): int(count) for partition, count in ledger._link.query(select) if int(count)}

    _, second = sorted(rows())
    done = ledger.compact(START + month + DAY)
    assert (done.entries, done.kept) == (4000, 0)
    assert rows() == {second: 2000}
    assert ledger.compact(START + 3 * month).entries == 0
    assert rows() == {}, "the second month is over"
    assert ledger.summarize(by=["model", "month"]) == before
    assert ledger.append_many(charges) == 0


def test_who_was_taken_over_from_cannot_commit(engine: Callable[..., Link]) -> None:
    """It stood still for longer than the lease, between its sums and its commit; another one has done the work meanwhile."""
    charges = of_few_days(43, 40)
    slow = Watched(engine())
    slow.append_many(charges)
    other = ClickHouseLedger(engine(), lease_s=0.2)
    renames = itertools.count()

    def late(statement: str) -> None:
        if statement.startswith("RENAME") and next(renames) == 1:  # the first takes, the second commits
            assert other.compact(BOUNDARY).entries > 5

    slow.listen(late)
    with pytest.raises(StoreError, match="somebody else compacts it and has taken over"):
        slow.compact(BOUNDARY)
    agree_kept(other, charges)
    assert other.compact(BOUNDARY).entries == 0
    agree_kept(other, charges)


def test_two_compactors_writers_and_a_reader_at_once(engine: Callable[..., Link]) -> None:
    """Threads, with writers that do not see each other's entries: no entry is lost or counted twice."""
    charges = of_few_days(44, 120)
    first = ClickHouseLedger(engine())
    first.append_many(charges[:80])
    errors: list[BaseException] = []
    compacted: list[int] = []

    def safely(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # carried into the main thread below
            errors.append(error)

    def writing() -> None:
        ledger = Blind(engine())
        for start in range(0, 120, 12):
            ledger.append_many(charges[start : start + 12])

    def reading() -> None:
        ledger = ClickHouseLedger(engine())
        for _ in range(15):
            assert sum(group.calls + group.corrections for group in ledger.summarize()) in range(80, 121)

    work = [lambda: compacted.append(ClickHouseLedger(engine()).compact(BOUNDARY).entries)] * 2 + [writing, writing, reading]  # fmt: skip
    threads = [threading.Thread(target=safely, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    agree_kept(first, charges)
    assert (first.info().entries, first.info().compacted) == (120, sum(compacted))
    first.compact(BOUNDARY)
    agree_kept(first, charges)
    assert first.info().entries == 120


def test_a_long_day_is_compacted_by_the_hour(engine: Callable[..., Link], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums are exact all the same, and there are fewer entries in each step."""
    monkeypatch.setattr(clickhouse.compaction, "STEP", 20)
    charges = [replace(one, at=START + place * HOUR // 3) for place, one in enumerate(of_few_days(45, 60))]
    ledger = ClickHouseLedger(engine())
    ledger.append_many(charges)
    steps: list[int] = []
    done = ledger.compact(BOUNDARY, progress=lambda at, _: steps.append(at))
    assert len(steps) > 8
    assert done.entries == steps[-1] == ledger.info().compacted
    wanted = MemoryLedger()
    wanted.append_many(charges)
    for by in KEPT_BYS:
        assert ledger.summarize(by=by) == wanted.summarize(by=by)


def test_a_compaction_outlives_the_server(tmp_path: Path) -> None:
    """The server is killed in the middle of it and started again: sums are right at once, and it goes on."""
    if not HAVE_DRIVER:
        pytest.skip("needs clickhouse-connect")
    own = Server()
    try:
        url = own.url(_name())
        charges = of_few_days(46, 40)
        ledger = Watched(open_link(url, 60))
        ledger.append_many(charges)
        heard = itertools.count(1)

        def kill(statement: str) -> None:
            if next(heard) == 12:
                own.kill()

        ledger.listen(kill)
        with pytest.raises(StoreError):
            ledger.compact(BOUNDARY)
        own.start()
        other = ClickHouseLedger(open_link(url, 60), lease_s=0.2)
        agree_kept(other, charges)
        assert other.compact(BOUNDARY).entries > 0
        agree_kept(other, charges)
        assert other.append_many(charges) == 0
        other.close()
    finally:
        own.close()
