"""A charge as a row: nothing is lost on the way there and back."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aifinops.charges import BASES, Charge
from aifinops.ledger import open_ledger
from aifinops.ledger.codec import (
    COLUMNS,
    charge_of,
    clean_text,
    dump_quantities,
    frozen,
    line_of,
    load_quantities,
    packed,
    row_of,
    row_of_line,
    thawed,
)
from aifinops.meters import METERS
from aifinops.testing.ledger import example_charge, random_charges

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
QUANTITY = st.integers(0, 2**80) | st.decimals(0, 10**12, allow_nan=False, places=9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CHARGES = st.builds(
    Charge,
    id=st.uuids().map(lambda value: value.hex),
    at=st.integers(0, 2**63 - 1),
    provider=TEXT,
    operation=TEXT,
    model=TEXT,
    quantities=st.dictionaries(st.sampled_from(sorted(METERS)), QUANTITY, max_size=6),
    amount=st.none() | INT64,
    currency=TEXT,
    basis=st.sampled_from(BASES),
    lower=st.none() | INT64,
    upper=st.none() | INT64,
    lines=st.lists(st.tuples(TEXT, st.integers()), max_size=3).map(tuple),
    price_id=st.none() | TEXT,
    price_as_of=st.none() | st.dates().map(date.isoformat),
    price_source=st.none() | TEXT,
    response_model=TEXT,
    response_id=TEXT,
    service=TEXT,
    tier=TEXT,
    region=TEXT,
    duration=INT64,
    stream=st.booleans(),
    status=TEXT,
    error=TEXT,
    tags=st.dictionaries(TEXT | st.sampled_from(["team", "project", "run"]), TEXT, max_size=4),
    trace_id=TEXT,
    span_id=TEXT,
    corrects=TEXT,
    raw=st.none() | st.dictionaries(TEXT, JSON, max_size=4),
)


@given(CHARGES)
def test_every_charge_survives_the_row(charge: Charge) -> None:
    """The codec alone loses nothing."""
    row = row_of(charge)
    assert len(row) == len(COLUMNS)
    assert charge_of(row) == charge


@given(CHARGES)
def test_every_charge_survives_the_line(charge: Charge) -> None:
    """A journal's line gives the row of the charge; it is one line whatever is in it."""
    row = row_of(charge)
    line = line_of(packed(charge))
    assert "\n" not in line
    assert row_of_line(line.encode()) == row


@pytest.mark.parametrize("line", [b"[1, 2]", b"{}", b'"x"', b"7", b"null", b"\xff", b'["half'])
def test_what_is_no_line_of_ours_is_refused(line: bytes) -> None:
    """Whatever a damaged file says is no entry."""
    with pytest.raises(ValueError, match=r"."):
        row_of_line(line)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHARGES)
def test_every_charge_survives_the_file(tmp_path_factory: pytest.TempPathFactory, charge: Charge) -> None:
    """SQLite's types take every field and give it back."""
    ledger = open_ledger(tmp_path_factory.mktemp("l") / "l.db")
    assert ledger.append(charge)
    assert list(ledger.rows()) == [charge]
    ledger.close()


def test_decimals_stay_decimals_and_integers_integers() -> None:
    """A quantity comes back in the type that it had."""
    charge = example_charge(quantities={"input_tokens": 5, "gpu_seconds": Decimal("0.10"), "pages": 7, "images": 2**90})
    found = charge_of(row_of(charge)).quantities
    assert {name: type(value) for name, value in found.items()} == {
        "input_tokens": int, "gpu_seconds": Decimal, "pages": int, "images": int,
    }  # fmt: skip
    assert str(found["gpu_seconds"]) == "0.10"


def test_a_raw_answer_of_odd_types_is_still_kept() -> None:
    """What JSON has no form for becomes the nearest plain thing."""
    raw = {
        "proxy": MappingProxyType({"a": 1}),
        "tuple": (1, 2),
        "decimal": Decimal("0.1"),
        "bytes": b"x",
        "range": range(2),
        "nan": math.nan,
    }
    found = charge_of(row_of(example_charge(raw=raw))).raw
    assert found is not None
    assert math.isnan(found.pop("nan"))  # type: ignore[attr-defined]
    assert found == {"proxy": {"a": 1}, "tuple": [1, 2], "decimal": "0.1", "bytes": "b'x'", "range": [0, 1]}


def test_common_things_have_columns() -> None:
    """A usual call needs no JSON but for what has no column."""
    row = dict(zip(COLUMNS, row_of(example_charge(tags={"team": "t"}, lines=(), raw=None)), strict=True))
    assert (row["team"], row["input_tokens"], row["cache_read_tokens"]) == ("t", 900, 100)
    assert (row["quantities"], row["tags"], row["lines"], row["raw"]) == (None, None, None, None)


def test_quantities_are_read_as_they_were_written() -> None:
    """Decimals are text in JSON, so that no reader makes floats of them."""
    text = dump_quantities({"gpu_seconds": Decimal("0.1"), "pages": 3})
    assert text == '{"gpu_seconds":"0.1","pages":3}'
    assert load_quantities(text) == {"gpu_seconds": Decimal("0.1"), "pages": 3}


def test_only_text_is_cleaned() -> None:
    """Lone surrogates become question marks; everything else stays."""
    assert clean_text(("a\ud800b", 5, None, "é")) == ("a?b", 5, None, "é")


class Name(str):
    """Text of a type of one's own."""

    __slots__ = ()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantities": {"gpu_seconds": Decimal("0.5"), "input_tokens": 2**70}},
        {"raw": MappingProxyType({"a": MappingProxyType({"b": (1, 2.5, None, True)})}), "lines": ()},
        {"raw": {"of its own": object}, "tags": MappingProxyType({"team": "a", "odd": "é\n\0"})},
        {"model": Name("m"), "tags": {}, "quantities": MappingProxyType({})},
        {"raw": {}, "amount": None, "stream": False},
        {"model": "half \ud83d"},
    ],
)
def test_what_a_journal_holds_of_a_charge_is_its_row(changes: dict[str, Any]) -> None:
    """Whatever it is made of: also what only JSON has a form for."""
    charge = example_charge(1, **changes)
    assert thawed(frozen(charge)) == row_of(charge)


def test_any_charge_of_the_suite_is_frozen_and_thawed() -> None:
    """Fractions, huge counts and odd names included."""
    for charge in random_charges(5, 300):
        assert thawed(frozen(charge)) == row_of(charge)
