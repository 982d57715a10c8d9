"""Exports: every entry is in the file to the last digit, in flat memory, and a run that fails leaves no half file."""

from __future__ import annotations

import csv
import importlib.util
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aifinops.charges import Charge
from aifinops.errors import ConfigurationError, StoreError
from aifinops.ledger import export as module
from aifinops.ledger.base import Ledger, Query
from aifinops.ledger.export import EXPORTED, Format, export, format_of
from aifinops.ledger.memory import MemoryLedger
from aifinops.money import from_nanos
from aifinops.testing.ledger import HOUR, example_charge, random_charges

HAVE = {name: importlib.util.find_spec(name) is not None for name in ("pyarrow", "duckdb")}
arrow = pytest.mark.skipif(not HAVE["pyarrow"], reason="needs pyarrow")
duck = pytest.mark.skipif(not (HAVE["pyarrow"] and HAVE["duckdb"]), reason="needs duckdb and pyarrow")


@pytest.fixture
def charges() -> list[Charge]:
    found = random_charges(41, 120)
    found.append(example_charge(500, amount=2**63 - 1, lower=-(2**63 - 1), model="half \ud83d", tags={"team": 'a,"\n'}))
    found.append(example_charge(501, amount=None, basis="unknown", lower=None, upper=None, tags={}, raw=None))
    return sorted(found, key=lambda charge: (charge.at, charge.id))


@pytest.fixture
def ledger(charges: list[Charge]) -> Ledger:
    made = MemoryLedger()
    made.append_many(charges)
    return made


def test_csv_has_every_entry(ledger: Ledger, charges: list[Charge], tmp_path: Path) -> None:
    """With a header, money as a decimal number and empty cells for what is not known."""
    assert export(ledger, tmp_path / "c.csv") == len(charges)
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == EXPORTED
    for row, charge in zip(rows, charges, strict=True):
        assert row["id"] == charge.id
        assert row["amount"] == ("" if charge.amount is None else f"{from_nanos(charge.amount):f}")
        assert row["at"].endswith(f"{charge.at % 10**9:09d}Z")
        assert row["team"] == charge.tags.get("team", "")
    assert rows[0]["day"] == rows[0]["at"][:10]
    assert any(row["model"] == "half ?" for row in rows)


def test_json_lines_have_every_entry(ledger: Ledger, charges: list[Charge], tmp_path: Path) -> None:
    """One object a line, tags and raw usage as objects, and nothing for what is not there."""
    assert export(ledger, tmp_path / "c.jsonl") == len(charges)
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    for row, charge in zip(rows, charges, strict=True):
        assert row["id"] == charge.id
        assert row.get("amount") == (None if charge.amount is None else f"{from_nanos(charge.amount):f}")
        assert row.get("raw") == (charge.raw and json.loads(json.dumps(charge.raw)))
        assert row.get("tags", {}) == {k: v for k, v in charge.tags.items() if k not in ("team", "customer", "run")}  # fmt: skip


@arrow
def test_parquet_is_exact(ledger: Ledger, charges: list[Charge], tmp_path: Path) -> None:
    """Money is a decimal with nine digits behind the point, time has nanoseconds, what is not known is null."""
    import pyarrow as pa
    from pyarrow import parquet

    assert export(ledger, tmp_path / "c.parquet") == len(charges)
    table = parquet.read_table(tmp_path / "c.parquet")
    assert tuple(table.column_names) == EXPORTED
    assert table.schema.field("amount").type == pa.decimal128(38, 9)
    assert table.schema.field("at").type == pa.timestamp("ns")
    assert table["amount"].to_pylist() == [
        None if charge.amount is None else from_nanos(charge.amount) for charge in charges
    ]
    assert table["lower"].to_pylist() == [None if charge.lower is None else from_nanos(charge.lower) for charge in charges]  # fmt: skip
    assert table["at"].cast(pa.int64()).to_pylist() == [charge.at for charge in charges]
    assert table["team"].to_pylist() == [charge.tags.get("team") for charge in charges]
    assert [bool(value) for value in table["stream"].to_pylist()] == [charge.stream for charge in charges]


@arrow
def test_a_directory_with_a_file_a_day(ledger: Ledger, charges: list[Charge], tmp_path: Path) -> None:
    """Named as others read it; all of it together is all there is."""
    from pyarrow import parquet

    assert export(ledger, tmp_path / "days", format="parquet", by_day=True) == len(charges)
    folders = sorted(folder.name for folder in (tmp_path / "days").iterdir())
    assert len(folders) == len({charge.at // (24 * HOUR) for charge in charges})
    assert all(folder.startswith("day=20") for folder in folders)
    found = [
        one
        for folder in folders
        for one in parquet.ParquetFile(tmp_path / "days" / folder / "part-0.parquet").read()["id"].to_pylist()
    ]
    assert found == [charge.id for charge in charges]


@duck
def test_duckdb_adds_up_to_the_same(ledger: Ledger, charges: list[Charge], tmp_path: Path) -> None:
    """Sums by team and model in a DuckDB file and over Parquet are those of the ledger, to the billionth."""
    import duckdb

    export(ledger, tmp_path / "c.duckdb")
    export(ledger, tmp_path / "c.parquet")
    select = "SELECT coalesce(team, ''), model, currency, sum(amount) FROM {} GROUP BY ALL"
    wanted = {
        (*group.key, group.currency): None if group.amount is None else from_nanos(group.amount)
        for group in ledger.summarize(by=["team", "model"])
    }
    wanted = {(team, model.replace("\ud83d", "?"), currency): amount for (team, model, currency), amount in wanted.items()}  # fmt: skip
    for place, source in ((str(tmp_path / "c.duckdb"), "charges"), (":memory:", f"'{tmp_path}/c.parquet'")):
        with duckdb.connect(place) as connection:
            rows = connection.execute(select.format(source)).fetchall()
            assert {row[:3]: row[3] for row in rows} == wanted
            ((first,),) = connection.execute(f'SELECT epoch_ns(min("at")) FROM {source}').fetchall()
            assert first == charges[0].at
    assert not list(tmp_path.glob("*.wal"))


def test_a_query_chooses_and_progress_is_told(ledger: Ledger, charges: list[Charge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Only what matches is written, in the order that is asked for, and who waits is told how far it is."""
    monkeypatch.setattr(module, "_CHUNK", 10)
    told: list[tuple[int, int]] = []
    query = Query(where={"currency": "USD"}, newest_first=True)
    wanted = [charge.id for charge in reversed(charges) if charge.currency == "USD"]
    assert export(ledger, tmp_path / "c.jsonl", query=query, progress=lambda *one: told.append(one)) == len(wanted)
    assert [json.loads(line)["id"] for line in (tmp_path / "c.jsonl").read_text().splitlines()] == wanted
    assert told[0] == (10, len(wanted))
    assert told[-1] == (len(wanted), len(wanted))
    assert export(ledger, tmp_path / "few.jsonl", query=replace(query, limit=7)) == 7


@pytest.mark.parametrize(
    "kind", ["csv", "jsonl", pytest.param("parquet", marks=arrow), pytest.param("duckdb", marks=duck)]
)
def test_a_run_that_fails_leaves_what_was_there(kind: Format, tmp_path: Path) -> None:
    """The old file stays whole until the new one is."""

    class Broken(MemoryLedger):
        def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - as in the protocol
            yield from random_charges(1, 10)
            raise StoreError("the disk is gone")

    path = tmp_path / f"c.{kind}"
    path.write_text("old")
    with pytest.raises(StoreError, match="gone"):
        export(Broken(), path, replace=True)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    made = MemoryLedger()
    made.append_many(random_charges(1, 10))
    assert export(made, path, replace=True) == 10
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "kind", ["csv", "jsonl", pytest.param("parquet", marks=arrow), pytest.param("duckdb", marks=duck)]
)
def test_nothing_is_a_file_as_well(kind: Format, tmp_path: Path) -> None:
    """An empty ledger makes a file that can be read."""
    assert export(MemoryLedger(), tmp_path / f"c.{kind}") == 0
    assert (tmp_path / f"c.{kind}").exists()


@pytest.mark.parametrize("kind", ["csv", "jsonl", pytest.param("parquet", marks=arrow)])
def test_memory_is_flat(kind: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the entries take no more memory in Python than a part of them."""
    monkeypatch.setattr(module, "_CHUNK", 100)
    monkeypatch.setattr(module, "_GROUP", 500)

    class Endless(MemoryLedger):
        count = 0

        def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - as in the protocol
            return (example_charge(number) for number in range(self.count))

    def peak(count: int) -> int:
        source = Endless()
        source.count = count
        tracemalloc.start()
        try:
            assert export(source, tmp_path / f"{count}.{kind}") == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # imports
    assert peak(8000) < 1.5 * peak(800)


def test_what_cannot_be_done_says_what_to_type(tmp_path: Path) -> None:
    """An unknown ending, a name that is taken, a wrong key."""
    made = MemoryLedger()
    with pytest.raises(ConfigurationError, match=r"end it with one of \.csv"):
        export(made, tmp_path / "c.xls")
    with pytest.raises(ConfigurationError, match="use one of csv"):
        export(made, tmp_path / "c", format="xls")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="leave by_day out"):
        export(made, tmp_path / "c.duckdb", by_day=True)
    (tmp_path / "c.csv").write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        export(made, tmp_path / "c.csv")
    with pytest.raises(ConfigurationError, match="cannot group or filter"):
        export(made, tmp_path / "d.csv", query=Query(where={"a b": "x"}))
    assert (tmp_path / "c.csv").read_text() == "mine"
    assert format_of("x.NDJSON") == "jsonl"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'aifinops\[parquet\]'"):
        export(MemoryLedger(), tmp_path / "c.parquet")
    assert list(tmp_path.iterdir()) == []
