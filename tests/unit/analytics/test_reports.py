"""Reports: what they add up, what they keep apart, and how they are written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.analytics.periods import parse_since
from aifinops.analytics.reports import Report, report
from aifinops.charges import Charge
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError
from aifinops.ledger.memory import MemoryLedger
from aifinops.money import NANO
from aifinops.testing.ledger import example_charge

NOW = to_ns(datetime(2026, 11, 24, 12, tzinfo=UTC))
HOUR = 3_600 * NANO


def charge(number: int, dollars: str | None = "1", **changes: Any) -> Charge:
    amount = None if dollars is None else int(Decimal(dollars) * NANO)
    basis = "unknown" if amount is None else "priced"
    values: dict[str, Any] = {"amount": amount, "basis": basis, "lower": amount, "upper": amount, "at": NOW - HOUR}
    return example_charge(number, **(values | changes))


def made(charges: Sequence[Charge], by: str | Sequence[str] = ("model",), **arguments: Any) -> Report:
    ledger = MemoryLedger()
    ledger.append_many(charges)
    return report(ledger, by, now_ns=NOW, **arguments)


MIXED = [
    charge(1, "0.5", model="a"),
    charge(2, "2", model="b"),
    charge(3, "0.25", model="a", basis="estimated", lower=NANO // 10, upper=NANO),
    charge(4, None, model="c"),
    charge(5, None, model="a"),
    charge(6, "3", model="a", currency="EUR", status="error"),
]


def test_rows_come_dearest_first_and_unpriced_last() -> None:
    """A row is one key in one currency; what nobody can price stands at the end."""
    found = [(row.key["model"], row.currency, row.amount) for row in made(MIXED)]
    assert found == [
        ("b", "USD", Decimal(2)),
        ("a", "USD", Decimal("0.75")),
        ("a", "EUR", Decimal(3)),
        ("c", "USD", None),
    ]


def test_unknown_is_never_zero() -> None:
    """A key without any price has no amount; a partly priced one says how many calls are missing."""
    rows = {(row.key["model"], row.currency): row for row in made(MIXED)}
    unknown, partly = rows["c", "USD"], rows["a", "USD"]
    assert (unknown.amount, unknown.cost.basis, unknown.unpriced_calls, unknown.calls) == (None, "unknown", 1, 1)
    assert (partly.cost.basis, partly.unpriced_calls, partly.calls, partly.unpriced_tokens) == ("estimated", 1, 3, 1048)
    assert partly.cost.notes == ("1 unpriced, not included",)


def test_the_estimated_part_is_shown_apart_with_its_bounds() -> None:
    """Of the sum, how much is estimated, and how far off it can be; a call without any bound leaves it open."""
    row = made([MIXED[0], MIXED[2]]).total
    assert (row.amount, row.estimated) == (Decimal("0.75"), Decimal("0.25"))
    assert (row.cost.lower, row.cost.upper) == (Decimal("0.6"), Decimal("1.5"))
    assert made(MIXED).total.cost.upper is None


def test_currencies_are_never_added() -> None:
    """One total a currency; `total` is that of most calls."""
    result = made(MIXED)
    assert [(row.currency, row.amount, row.calls) for row in result.totals] == [
        ("USD", Decimal("2.75"), 5),
        ("EUR", Decimal(3), 1),
    ]
    assert result.total is result.totals[0]
    assert result.totals[1].errors == 1


def test_tokens_are_inclusive_totals() -> None:
    """As OpenTelemetry counts them: cached tokens are a part of the input."""
    total = made([charge(1), charge(2)]).total
    assert (total.input_tokens, total.cached_tokens) == (2000, 200)
    assert (total.output_tokens, total.reasoning_tokens) == (96, 16)
    assert total.quantities["input_tokens"] == 1800


def test_gpu_seconds_are_exact() -> None:
    """Fractions of a second are added without rounding."""
    gpu = [charge(n, model="H100", quantities={"gpu_seconds": Decimal("0.1")}) for n in range(10)]
    assert made(gpu).total.gpu_seconds == Decimal(1)


def test_no_calls_cost_nothing() -> None:
    """An empty report has no rows, and its total is a known zero."""
    result = made([])
    assert (len(result), list(result), result.total.amount, result.total.calls) == (0, [], Decimal(0), 0)
    result.assert_under("$0")
    assert "calls" in str(result)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 10**12), st.sampled_from(["USD", "EUR"])),
        max_size=9,
    )
)
def test_totals_are_the_sums_of_the_rows(entries: list[tuple[str, int | None, str]]) -> None:
    """In every currency, for amounts, calls, tokens and what is unpriced."""
    charges = [
        charge(number, None, model=model, amount=amount, basis="unknown" if amount is None else "priced", currency=unit)
        for number, (model, amount, unit) in enumerate(entries)
    ]
    result = made(charges, "model,team")
    for total in result.totals:
        rows = [row for row in result if row.currency == total.currency]
        known = [row.amount for row in rows if row.amount is not None]
        assert total.amount == (sum(known) if known else None)
        for name in ("calls", "unpriced_calls", "unpriced_tokens", "input_tokens", "duration"):
            assert getattr(total, name) == sum(getattr(row, name) for row in rows)


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_keys_may_be_text_or_a_list() -> None:
    """As typed on a command line, or as Python has them; twice the same counts once."""
    for by in ("team, model", ["team", "model"], ("team", "model", "team")):
        assert made(MIXED, by).by == ("team", "model")
    assert made(MIXED, "").rows[0].key == {}


def test_a_period_counts_back_from_now() -> None:
    """Since is inclusive, until is not, and both take every form."""
    charges = [charge(number, at=NOW - number * HOUR) for number in range(1, 6)]
    assert made(charges, since="3h").total.calls == 3
    assert made(charges, since="4h", until="2h").total.calls == 2
    assert made(charges, since=datetime(2026, 11, 24, 10, tzinfo=UTC)).total.calls == 2
    assert made(charges).total.calls == 5


def test_a_filter_keeps_what_matches() -> None:
    """One value, or one of several."""
    assert made(MIXED, where={"model": "a"}).total.calls == 3
    assert made(MIXED, where={"model": ["b", "c"], "team": "search"}).total.calls == 2


def test_a_period_the_wrong_way_round_is_refused() -> None:
    """Nothing would be found, which nobody asks for on purpose."""
    with pytest.raises(ConfigurationError, match="swap"):
        made(MIXED, since="1h", until="2h")


@pytest.mark.parametrize(
    ("typed", "moment"),
    [
        ("90s", NOW - 90 * NANO),
        ("30m", NOW - 30 * 60 * NANO),
        (" 24h ", NOW - 24 * HOUR),
        ("7d", NOW - 7 * 24 * HOUR),
        ("2 w", NOW - 14 * 24 * HOUR),
        ("2026-11-01", to_ns(datetime(2026, 11, 1, tzinfo=UTC))),
        ("2026-11-01T12:30:00", to_ns(datetime(2026, 11, 1, 12, 30, tzinfo=UTC))),
        ("2026-11-01T12:30:00Z", to_ns(datetime(2026, 11, 1, 12, 30, tzinfo=UTC))),
        ("2026-11-01T12:30:00+02:00", to_ns(datetime(2026, 11, 1, 10, 30, tzinfo=UTC))),
        (date(2026, 11, 1), to_ns(datetime(2026, 11, 1, tzinfo=UTC))),
        (datetime(2026, 11, 1, 2), to_ns(datetime(2026, 11, 1, 2, tzinfo=UTC))),  # noqa: DTZ001 - a naive one is the point
        (datetime(2026, 11, 1, 2, tzinfo=timezone(timedelta(hours=2))), to_ns(datetime(2026, 11, 1, tzinfo=UTC))),
        (12345, 12345),
    ],
)
def test_times_are_read_in_every_form(typed: Any, moment: int) -> None:
    """Ago, ISO 8601, date, datetime, nanoseconds; UTC unless said otherwise."""
    assert parse_since(typed, NOW) == moment


@pytest.mark.parametrize("typed", ["", "soon", "7", "7y", "-7d", "1.5h", "2026-13-01", "9999999d", True, "7d7h"])
def test_what_is_no_time_is_refused(typed: Any) -> None:
    """The error shows what was typed and what could be."""
    with pytest.raises(ConfigurationError, match="30m"):
        parse_since(typed, NOW)


# --- what is written --------------------------------------------------------------------------------------------------


def test_json_is_exact_and_complete() -> None:
    """Money is text, so that no reader rounds it; unknown is null."""
    tiny = charge(1, "0.000000001", quantities={"gpu_seconds": Decimal("0.5"), "input_tokens": 3})
    data = json.loads(made([tiny, charge(2, None, model="c")], since="1d", where={"team": "search"}).to_json())
    assert data["by"] == ["model"]
    assert data["since"] == "2026-11-23T12:00:00+00:00"
    assert (data["until"], data["where"]) == (None, {"team": "search"})
    first, second = data["rows"]
    assert (first["key"], first["cost"], first["currency"]) == ({"model": "gpt-5-mini"}, "0.000000001", "USD")
    assert first["quantities"] == {"gpu_seconds": "0.5", "input_tokens": 3}
    assert (second["cost"], second["unpriced_calls"], second["unpriced_tokens"]) == (None, 1, 1048)
    assert data["totals"][0]["calls"] == 2


def test_csv_has_a_header_and_a_line_a_row() -> None:
    """An unknown cost is an empty cell and not a zero."""
    rows = list(csv.DictReader(io.StringIO(made(MIXED, "team,model").to_csv())))
    assert [(row["model"], row["currency"], row["cost"]) for row in rows] == [
        ("b", "USD", "2"),
        ("a", "USD", "0.75"),
        ("a", "EUR", "3"),
        ("c", "USD", ""),
    ]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://x,y")'])
def test_csv_text_is_never_a_formula(name: str) -> None:
    """A spreadsheet shows the text; a number that is negative stays a number."""
    (row,) = csv.DictReader(io.StringIO(made([charge(1, "-2", model=name)]).to_csv()))
    assert (row["model"], row["cost"]) == (f"'{name}", "-2")


def test_csv_text_breaks_no_line() -> None:
    """Control characters in a name become question marks."""
    (row,) = csv.DictReader(io.StringIO(made([charge(1, model="\ta\r\n=b\x1b")]).to_csv()))
    assert row["model"] == "?a??=b?"


def test_the_table_shows_all_and_keeps_the_unpriced_apart() -> None:
    """A column for unpriced calls, totals a currency, and a sentence for what no amount holds."""
    text = str(made(MIXED))
    lines = text.splitlines()
    assert lines[0].split() == ["model", "calls", "input", "output", "cost", "unpriced"]
    assert lines[2].split() == ["b", "1", "1,000", "48", "$2.00"]
    assert lines[5].split() == ["c", "1", "1,000", "48", "unknown", "1"]
    assert [line.split()[0] for line in lines[7:9]] == ["total", "total"]
    assert "2 calls (2,096 tokens) have no price" in text
    assert "$0.25 is estimated; the total lies between $2.60 and no known upper bound." in text


def test_the_table_has_no_column_for_what_there_is_not() -> None:
    """A report without unpriced calls does not mention them."""
    assert "unpriced" not in str(made([MIXED[0]]))
    assert str(made([MIXED[0]], ())).splitlines()[0].split() == ["calls", "input", "output", "cost"]


def test_the_table_cannot_steer_a_terminal() -> None:
    """Escape sequences in a model's name are made visible; an empty name is too."""
    text = str(made([charge(1, model="\x1b[2J\n"), charge(2, model="")]))
    assert "\x1b" not in text
    assert "?[2J?" in text
    assert "(none)" in text


# --- assert_under -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["$2.5", "2.5 USD", Decimal("2.5"), "$3", 3])
def test_spending_up_to_the_limit_passes(limit: Any) -> None:
    """The limit itself may be spent."""
    made(MIXED[:2]).assert_under(limit)


def test_spending_more_fails_with_the_numbers() -> None:
    """The message says how much, what was allowed, and where most of it went."""
    with pytest.raises(AssertionError) as caught:
        made(MIXED[:3], "model,team").assert_under("$2")
    assert str(caught.value) == (
        "2.750000000 USD in 3 calls is above 2 USD, 0.250000000 of it estimated "
        "(most by model=b, team=search: 2.000000000)"
    )


def test_calls_without_a_price_fail_unless_allowed() -> None:
    """Nobody can say that an unknown cost is under a limit."""
    result = made([charge(1, "0.1"), charge(2, None)])
    with pytest.raises(AssertionError, match=r"1 of 2 calls \(1,048 tokens\) have no price.*allow_unpriced"):
        result.assert_under("$1")
    result.assert_under("$1", allow_unpriced=True)


def test_money_in_another_currency_fails() -> None:
    """A limit in dollars says nothing about euros."""
    with pytest.raises(AssertionError, match=r"€3\.00 were spent in EUR, which USD cannot limit"):
        made([charge(1, "0.1"), charge(2, "3", currency="EUR"), charge(3)]).assert_under("$9")


@pytest.mark.parametrize("limit", ["much", "5", "NaN", float("nan")])
def test_a_limit_that_is_no_money_is_refused(limit: Any) -> None:
    """It is a mistake in the test and not a failure of the code under test."""
    with pytest.raises(ConfigurationError):
        made([]).assert_under(limit)
