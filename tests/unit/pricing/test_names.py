"""Thousands of real names against a table that was not made by the code that it tests; see the head of `data/names.tsv`."""

from __future__ import annotations

import collections
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

from aifinops.pricing.book import PriceBook
from aifinops.pricing.lists import PriceList, load_bundled
from aifinops.usage import Sku, Usage

TABLE = Path(__file__).parent / "data" / "names.tsv"
REFUSED = "-"


class Row(NamedTuple):
    provider: str
    kind: str
    expected: str
    name: str


def read() -> Iterator[Row]:
    for line in TABLE.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            provider, kind, expected, *names = line.split("\t")
            for name in names:
                yield Row(provider, kind, f"{provider}/{name}" if expected == "=" else expected, name)


ROWS = list(read())


@pytest.fixture(autouse=True)
def blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is looked up in the network."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def bundled() -> PriceList:
    return load_bundled()


def found(bundled: PriceList, row: Row) -> str:
    entry = bundled.find(row.provider or None, row.name)
    return REFUSED if entry is None else f"{entry.provider}/{entry.model}"


def test_every_name_resolves_or_is_refused_as_the_table_says(bundled: PriceList) -> None:
    """The entry that a name leads to is the one of the table; where it allows refusal, that or nothing."""
    wrong = []
    for row in ROWS:
        got = found(bundled, row)
        allowed = {row.expected} if not row.expected.endswith("?") else {row.expected[:-1], REFUSED}
        if got not in allowed:
            wrong.append((*row, got))
    assert wrong == []


def test_the_table_is_as_large_and_as_varied_as_it_claims() -> None:
    """At least four thousand different names, of every class, provider by provider, resolved and refused."""
    assert len({(row.provider, row.name.lower()) for row in ROWS}) == len(ROWS)
    by_kind = collections.Counter(row.kind for row in ROWS)
    real = [row for row in ROWS if row.kind not in {"A", "S", "V"}]
    assert len(real) > 4_000
    assert set(by_kind) == set("EPTFONWXAGHSV")
    assert min(by_kind.values()) >= 5
    assert sum(row.expected == REFUSED for row in real) > 1_000
    assert sum(not row.expected.endswith(("?", REFUSED)) for row in real) > 3_000
    assert set(load_bundled().providers) <= {row.provider for row in ROWS}


def test_no_made_up_name_is_priced() -> None:
    """A name that only begins or ends with a known one costs nothing that we know: the basis is unknown, with the nearest names."""
    book = PriceBook()
    for row in ROWS:
        if row.kind in {"V", "W"}:
            cost = book.price(Usage({"input_tokens": 1_000}, Sku(row.provider, row.name), 1_790_000_000_000_000_000))
            assert (cost.amount, cost.basis) == (None, "unknown"), row
            assert cost.notes


def test_the_case_of_a_name_does_not_matter(bundled: PriceList) -> None:
    """Providers and gateways disagree on capitals."""
    for row in ROWS[::7]:
        assert found(bundled, row) == found(bundled, row._replace(name=row.name.upper())), row
