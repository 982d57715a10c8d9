"""Plain tables: columns by their usual names, bad rows told with their line, nothing twice."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aifinops as af
from aifinops.errors import ConfigurationError
from aifinops.importing import import_files
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.money import from_nanos
from aifinops.pricing.book import PriceBook

Bring = Callable[..., Any]

_HEAD = "time,model,provider,input_tokens,cache_read_tokens,output_tokens,team\n"
_ROW = "2026-11-01T10:00:00Z,gpt-5-mini,openai,600,400,200,search\n"


def test_a_row_is_priced_as_a_call_of_that_day(bring: Bring) -> None:
    """The entry has the quantities, the tag, and the amount that `price` says for that moment."""
    outcome, (charge,) = bring(_HEAD + _ROW)
    said = af.price("gpt-5-mini", input_tokens=600, cache_read_tokens=400, output_tokens=200, at="2026-11-01")
    assert (outcome.written, outcome.formats.popitem()[1]) == (1, "table")
    assert from_nanos(charge.amount) == said.amount
    assert charge.tags == {"team": "search", "import": "table"}
    assert (charge.provider, charge.model, charge.basis, charge.price_id) == (
        "openai",
        "gpt-5-mini",
        "priced",
        said.price_id,
    )


def test_totals_are_taken_apart(bring: Bring) -> None:
    """`prompt_tokens` holds the cached ones, `completion_tokens` the reasoning ones."""
    _, (charge,) = bring(
        "timestamp;model_name;prompt_tokens;completion_tokens;cached_tokens;reasoning_tokens\n"
        "1793523600;gpt-5-mini;1000;200;400;150\n"
    )
    assert charge.quantities == {
        "input_tokens": 600,
        "cache_read_tokens": 400,
        "output_tokens": 50,
        "reasoning_tokens": 150,
    }
    assert charge.provider == "openai", "the price list says whose model it is"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("yesterday,gpt-5-mini,openai,1,0,1,a", "time='yesterday' is no moment"),
        (",gpt-5-mini,openai,1,0,1,a", "time='' is no moment"),
        ("1969-12-31T00:00:00Z,gpt-5-mini,openai,1,0,1,a", "before 1970"),
        ("2026-11-01T10:00:00Z,,openai,1,0,1,a", "names no model"),
        ("2026-11-01T10:00:00Z,gpt-5-mini,openai,-1,0,1,a", "input_tokens='-1' is negative"),
        ("2026-11-01T10:00:00Z,gpt-5-mini,openai,1.5,0,1,a", "no whole number"),
        ("2026-11-01T10:00:00Z,gpt-5-mini,openai,NaN,0,1,a", "no whole number"),
        ("2026-11-01T10:00:00Z,gpt-5-mini,openai,many,0,1,a", "no number"),
        ("2026-11-01T10:00:00Z,gpt-5-mini,openai,99999999999999999999,0,1,a", "more than can be"),
        ("2026-11-01T10:00:00Z,gpt-5-mini,openai,0,0,0,a", "neither usage nor a cost"),
        ("2026-11-01T10:00:00Z,gpt-5-mini,openai,1", "has 4 fields where the heading has 7"),
        ("2026-11-01T10:00:00Z,gpt-5-mini,openai,1,1,1,a,b", "has 8 fields where the heading has 7"),
    ],
)
def test_a_malformed_row_is_told_with_its_line_and_the_others_are_kept(bring: Bring, row: str, reason: str) -> None:
    """The row between two good ones is named, and both of those are in the ledger."""
    outcome, charges = bring(f"{_HEAD}{_ROW}{row}\n{_ROW}")
    ((_, place, said),) = outcome.malformed
    assert place == "line 3"
    assert reason in said
    assert len(charges) == outcome.written == 2


def test_a_quoted_field_of_several_lines_keeps_the_numbers_right(bring: Bring) -> None:
    """The line is that of the file, not the number of the row."""
    outcome, _ = bring('time,model,input_tokens,note\n2026-11-01,gpt-5-mini,1,"a\nb\nc"\nnever,gpt-5-mini,1,\n')
    assert [place for _, place, _ in outcome.malformed] == ["line 5"]


def test_a_second_run_imports_nothing_and_a_grown_file_only_what_is_new(bring: Bring) -> None:
    """Rows that are alike are two calls; the same file again has none that is new."""
    first, _ = bring(_HEAD + _ROW * 2)
    again, _ = bring(_HEAD + _ROW * 2)
    grown, charges = bring(_HEAD + _ROW * 3)
    assert [(one.written, one.known) for one in (first, again, grown)] == [(2, 0), (0, 2), (1, 2)]
    assert len(charges) == 3


def test_a_dry_run_writes_nothing_and_says_what_it_would(bring: Bring) -> None:
    """The same figures as a real run, and an empty ledger."""
    dry, charges = bring(_HEAD + _ROW * 2, write=False)
    wet, _ = bring(_HEAD + _ROW * 2)
    assert not charges
    assert (dry.written, dry.amounts) == (wet.written, wet.amounts)


def test_strict_writes_nothing_when_a_row_is_malformed(bring: Bring, ledger: MemoryLedger) -> None:
    """The error names the first of them."""
    with pytest.raises(
        ConfigurationError, match=r"1 malformed rows, nothing is written; the first: .*line 3: names no model"
    ):
        bring(f"{_HEAD}{_ROW}2026-11-01,,openai,1,0,1,a\n", strict=True)
    assert not list(ledger.rows())


def test_a_model_without_a_price_is_unknown_and_not_free(bring: Bring) -> None:
    """Its tokens are there, its amount is not."""
    outcome, (charge,) = bring("time,model,input_tokens\n2026-11-01,nobody-knows-this,5\n")
    assert (charge.amount, charge.basis, outcome.unpriced) == (None, "unknown", 1)


def test_a_cost_in_the_table_is_what_was_billed(bring: Bring) -> None:
    """It stands over our price, in its currency, exact."""
    _, (charge,) = bring("time,model,input_tokens,cost,currency\n2026-11-01,gpt-5-mini,5,0.123456789,eur\n")
    assert (charge.amount, charge.currency, charge.basis) == (123_456_789, "EUR", "reported")


def test_a_row_of_many_requests_is_not_one_long_prompt(bring: Bring) -> None:
    """A price that depends on the length of a prompt is known between bounds, and by the average prompt in between."""
    rows = "time,model,provider,input_tokens,requests\n2026-11-01,claude-sonnet-4-5,anthropic,1000000,500\n"
    outcome, (charge,) = bring(rows)
    short, long = Decimal(3), Decimal(6)  # USD for a million tokens, below and above 200,000 of a prompt
    assert (from_nanos(charge.amount), from_nanos(charge.lower), from_nanos(charge.upper)) == (short, short, long)
    assert (charge.basis, outcome.estimated, charge.quantities["requests"]) == ("estimated", 1, 500)


def test_columns_are_named_and_constants_set(bring: Bring) -> None:
    """`--map` and `--set` say what a heading does not; what is left means nothing and is told."""
    outcome, (charge,) = bring(
        "when,in,out,who,note\n2026-11-01,10,5,search,x\n",
        mapping={"when": "time", "in": "input_tokens", "out": "output_tokens", "who": "tag:squad"},
        constants={"model": "gpt-5-mini"},
        tags={"project": "migration"},
    )
    assert charge.tags == {"squad": "search", "project": "migration", "import": "table"}
    assert charge.quantities == {"input_tokens": 10, "output_tokens": 5}
    assert list(outcome.ignored.values()) == [["note"]]


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("a,b\n1,2\n", {}, "no column of a, b is the time of a call; say which: --map a=time"),
        ("time,b\n1,2\n", {}, "or the same for all: --set model=NAME"),
        ("time,model\n1,2\n", {"mapping": {"x": "model"}}, "there is no column 'x'; the table has time, model"),
        ("time,model,x\n1,2,3\n", {"mapping": {"x": "inptu_tokens"}}, "--map x=inptu_tokens: a column can be time"),
        ("time,model\n1,2\n", {"constants": {"colour": "red"}}, "--set colour=...: a field can be time"),
        ("", {}, "is empty"),
        ("{not json", {}, "neither JSON nor JSON lines"),
        ('{"data": [1, 2]}', {}, "nothing in it is an export that is known; name what it is"),
        ("time,model\n1,2\n", {"form": "xls"}, "format 'xls' is unknown; write one of openai-usage"),
        ('{"attributes": {}}\n', {"mapping": {"x": "model"}}, "--map and --set are for tables"),
    ],
)
def test_what_cannot_be_read_says_what_to_type(bring: Bring, content: str, options: dict[str, Any], said: str) -> None:
    """Each is one error, before anything is written."""
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        bring(content, **options)


def test_a_file_that_is_not_there_is_named(ledger: MemoryLedger, book: PriceBook, tmp_path: Path) -> None:
    """So is one that is no text."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.csv: No such file"):
        import_files([tmp_path / "nowhere.csv"], ledger, book)
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\xfd")
    with pytest.raises(ConfigurationError, match="no text in UTF-8"):
        import_files([tmp_path / "picture"], ledger, book)


def test_gzip_and_a_byte_order_mark_are_read(ledger: MemoryLedger, book: PriceBook, tmp_path: Path) -> None:
    """What spreadsheets and exporters write is read as it is, with its progress told to the end."""
    path = tmp_path / "calls.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + (_HEAD + _ROW).encode()))
    told: list[tuple[int, int]] = []
    outcome = import_files([path], ledger, book, progress=lambda _, done, total: told.append((done, total)))
    size = path.stat().st_size
    assert outcome.written == 1
    assert told[-1] == (2 * size, 2 * size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["good", "time", "model", "number", "short"]), min_size=1, max_size=40))
def test_every_good_row_is_kept_and_every_bad_one_is_named(book: PriceBook, tmp_path: Path, kinds: list[str]) -> None:
    """Whatever stands between them, and in a ledger on disk; a second run has nothing to add."""
    bad = {
        "time": "when,gpt-5-mini,openai,1,0,1,a",
        "model": "2026-11-01,,openai,1,0,1,a",
        "number": "2026-11-01,gpt-5-mini,openai,x,0,1,a",
        "short": "2026-11-01",
    }
    rows = [
        bad.get(kind) or f"2026-11-01T00:00:{number:02d}Z,gpt-5-mini,openai,{number + 1},0,1,a"
        for number, kind in enumerate(kinds)
    ]
    path = tmp_path / "rows.csv"
    path.write_text(_HEAD + "\n".join(rows) + "\n")
    file = tmp_path / "ledger.db"
    file.unlink(missing_ok=True)
    ledger = SqliteLedger(file)
    first, second = import_files([path], ledger, book), import_files([path], ledger, book)
    found = sorted(one.quantities["input_tokens"] for one in ledger.rows())
    ledger.close()
    for part in tmp_path.glob("ledger.db*"):
        part.unlink() if part.is_file() else part.rmdir()
    wanted = [number + 1 for number, kind in enumerate(kinds) if kind == "good"]
    lines = [f"line {number + 2}" for number, kind in enumerate(kinds) if kind != "good"]
    assert found == wanted
    assert [place for _, place, _ in first.malformed] == lines
    assert (second.written, second.known) == (0, len(wanted))
