"""Files of schema 1, as earlier versions made them, are brought up to date when they are opened."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest

from aifinops.errors import ConfigurationError
from aifinops.ledger import open_ledger
from aifinops.ledger.base import Query
from aifinops.ledger.codec import line_of, packed, row_of
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.testing.ledger import random_charges

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

# What the first versions wrote: it must be readable for ever, whatever the code of today calls its columns.
SCHEMA_1 = (
    """CREATE TABLE charges (id TEXT NOT NULL PRIMARY KEY, at INTEGER, duration INTEGER, provider TEXT, operation
    TEXT, model TEXT, response_model TEXT, response_id TEXT, service TEXT, tier TEXT, region TEXT, amount INTEGER,
    currency TEXT, basis TEXT, lower INTEGER, upper INTEGER, price_id TEXT, price_as_of TEXT, price_source TEXT,
    status TEXT, error TEXT, trace_id TEXT, span_id TEXT, corrects TEXT, stream INTEGER, team TEXT, project TEXT,
    feature TEXT, customer TEXT, environment TEXT, run TEXT, input_tokens INTEGER, cache_read_tokens INTEGER,
    cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER, output_tokens INTEGER, reasoning_tokens INTEGER,
    requests INTEGER, quantities TEXT, tags TEXT, lines TEXT, raw TEXT)""",
    "CREATE INDEX charges_at ON charges (at)",
    "CREATE INDEX charges_corrects ON charges (corrects) WHERE corrects <> ''",
    "PRAGMA application_id = 1095321168",
    "PRAGMA user_version = 1",
)
CHARGES = random_charges(11, 400)
BY = ["team", "model", "day"]


def old_file(path: Path, charges: list[object]) -> None:
    """A file as an earlier version left it, with a journal of a process that has died."""
    with closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA journal_mode = WAL")
        for statement in SCHEMA_1:
            made.execute(statement)
        rows = list(map(row_of, charges[:-5]))
        made.executemany(f"INSERT INTO charges VALUES ({', '.join('?' * len(rows[0]))})", rows)
        made.commit()
    spool = path.with_name(f"{path.name}-spool")
    spool.mkdir()
    lines = [line_of(packed(charge)).encode() for charge in charges[-5:]]
    journal = b"".join(b"%08x%b\n" % (crc32(line), line) for line in lines)
    (spool / "4711-0123456789ab.v1.2.journal").write_bytes(journal + bytes(1000))


def wanted() -> MemoryLedger:
    memory = MemoryLedger()
    memory.append_many(CHARGES)
    return memory


def test_a_file_of_schema_1_is_brought_up_to_date(tmp_path: Path) -> None:
    """Opening it is enough, for reports as well; its entries and those of its journals are all there."""
    path = tmp_path / "l.db"
    old_file(path, CHARGES)
    ledger = open_ledger(path, create=False)
    assert ledger.summarize(Query(), BY) == wanted().summarize(Query(), BY)
    assert list(ledger.rows()) == list(wanted().rows())
    info = ledger.info()
    assert (info.schema, info.entries) == (2, 400)
    assert not list(path.with_name("l.db-spool").glob("*.journal"))
    assert ledger.verify().sound
    ledger.close()
    again = SqliteLedger(path)
    assert again.migrated_from == 2
    again.close()


def test_migrate_rolls_everything_up_and_tells_how_far_it_is(tmp_path: Path) -> None:
    """Of a large old file a report does only a part by itself."""
    path = tmp_path / "l.db"
    old_file(path, CHARGES)
    ledger = SqliteLedger(path)
    seen: list[tuple[int, int]] = []
    assert ledger.migrate(progress=lambda *done: seen.append(done)) == 400
    assert seen[-1] == (400, 400)
    assert ledger.info().behind == 0
    assert ledger.migrated_from == 1
    assert ledger.summarize(Query(), BY) == wanted().summarize(Query(), BY)
    ledger.close()


def test_an_old_process_may_go_on_writing(tmp_path: Path) -> None:
    """It has the file open and knows nothing of roll-ups: its entries are behind the mark."""
    path = tmp_path / "l.db"
    old_file(path, CHARGES[:205])
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("SELECT count(*) FROM charges").fetchone()
        ledger = SqliteLedger(path)
        ledger.migrate()
        for row in map(row_of, CHARGES[205:]):
            old.execute(f"INSERT INTO charges VALUES ({', '.join('?' * len(row))})", row)
        assert ledger.summarize(Query(), BY) == wanted().summarize(Query(), BY)
        ledger.migrate()
        assert ledger.summarize(Query(), BY) == wanted().summarize(Query(), BY)
        ledger.close()


KILLED = """
import os, signal, sys
from aifinops import files
real = files.Database._statements
def slow(self, schema):
    for number, statement in enumerate(real(self, schema)):
        if number == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield statement
files.Database._statements = slow
from aifinops.ledger.sqlite import SqliteLedger
SqliteLedger(sys.argv[1])
"""


@pytest.mark.parametrize("step", range(6))
def test_a_killed_migration_leaves_the_file_as_it_was(tmp_path: Path, step: int) -> None:
    """SIGKILL after any statement of it: the file is still of schema 1, and the next one to open it migrates it."""
    path = tmp_path / "l.db"
    old_file(path, CHARGES)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(step)], env=ENV, check=False)
    assert killed.returncode == -signal.SIGKILL
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
        assert other.execute("SELECT count(*) FROM charges").fetchone() == (395,)
        assert other.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone() == (1,)
    ledger = SqliteLedger(path)
    assert ledger.summarize(Query(), BY) == wanted().summarize(Query(), BY)
    assert ledger.info().schema == 2
    ledger.close()


def test_two_that_open_it_at_once_migrate_it_once(tmp_path: Path) -> None:
    """The second waits for the first and finds it done."""
    path = tmp_path / "l.db"
    old_file(path, CHARGES)
    code = (
        "import sys; from aifinops.ledger.sqlite import SqliteLedger; print(SqliteLedger(sys.argv[1]).info().entries)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    assert [process.communicate() for process in started] == [(b"400\n", b"")] * 3


def test_a_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """With both numbers and what to type."""
    path = tmp_path / "l.db"
    old_file(path, CHARGES)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 3")
    with pytest.raises(ConfigurationError, match=r"schema 3; this one knows up to 2.*pip install --upgrade"):
        SqliteLedger(path)
