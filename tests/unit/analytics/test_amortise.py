"""Capacity that is paid for by the hour: how it is declared, spread over calls, and kept exact."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import aifinops as af
from aifinops import runtime
from aifinops.analytics.amortise import amortise, amortised_calls, largest_remainder
from aifinops.analytics.reports import Report, report
from aifinops.charges import Charge
from aifinops.cli.app import app
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Query
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.money import from_nanos, to_nanos
from aifinops.pricing.contract import Capacity
from aifinops.pricing.lists import from_table
from aifinops.pricing.schema import read_rows
from aifinops.tags import make_tags

NOON = to_ns(datetime(2026, 11, 24, 12, tzinfo=UTC))
MIDNIGHT = NOON - 12 * 3_600_000_000_000
PTU = {"provider": "azure", "model": "gpt-4o", "units": 15, "rate": "1", "from": "2026-11-24"}


def declared(*rows: dict[str, Any], **tables: Any) -> tuple[Capacity, ...]:
    """Capacity as a price file declares it."""
    from aifinops.pricing.book import PriceBook

    given: dict[str, Any] = {"id": "acme", **tables}
    if rows:
        given["provisioned"] = list(rows)
    return PriceBook([from_table(read_rows(given, "price table", "test"))]).capacity


def call(number: int, tokens: int = 100, team: str = "search", **change: Any) -> Charge:
    """A call that provisioned throughput has served, at no cost of its own."""
    fields: dict[str, Any] = {
        "id": f"{number:032x}", "at": NOON - 3_600_000_000_000, "provider": "azure", "operation": "chat", "model": "gpt-4o",
        "quantities": {"input_tokens": tokens} if tokens else {"requests": 1}, "amount": 0, "lower": 0, "upper": 0,
        "basis": "committed", "price_id": "genai-prices/azure/gpt-4o+provisioned", "tier": "provisioned",
        "tags": make_tags({"team": team}),
    }  # fmt: skip
    return Charge(**{**fields, **change})


def made(charges: list[Charge], capacity: tuple[Capacity, ...], by: Any = "team", **asked: Any) -> Report:
    ledger = MemoryLedger()
    ledger.append_many(charges)
    return report(ledger, by, now_ns=NOON, capacity=capacity, **asked)


def shares(found: Report) -> dict[str, Decimal | None]:
    return {row.idle or row.key["team"]: row.amortised for row in found}


def test_capacity_is_spread_by_tokens_and_adds_up() -> None:
    """15 units at 1 USD for 12 hours are 180 USD: a third and two thirds, to the nano-unit."""
    found = made([call(1, 100, "search"), call(2, 150, "support"), call(3, 50, "support")], declared(PTU))
    assert shares(found) == {"search": Decimal(60), "support": Decimal(120)}
    assert [row.amount for row in found] == [0, 0]
    assert found.total.amortised == found.total.effective == Decimal(180)
    assert found.capacity is not None
    assert (found.capacity[0].cost, found.capacity[0].calls) == (to_nanos(Decimal(180)), 3)


def test_without_asking_nothing_is_spread() -> None:
    """A plain report says what is billed and nothing of capacity, in any form."""
    ledger = MemoryLedger()
    ledger.append(call(1))
    plain = report(ledger, "team", now_ns=NOON)
    assert plain.capacity is None
    assert [row.amortised for row in plain] == [None]
    assert "amortised" not in plain.to_json() + plain.to_csv() + str(plain)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 10**9)), max_size=30),
    st.decimals("0.000000001", 10**6, places=9),
    st.one_of(st.none(), st.decimals("0.001", 10**9, places=3)),
)
def test_rows_add_up_to_the_cost_whatever_the_calls(
    calls: list[tuple[str, int]], rate: Decimal, per_minute: Decimal | None
) -> None:
    """Used and idle of all rows are what the capacity costs, exactly, and none is negative."""
    row = {**PTU, "rate": rate, "units": 3, "tokens_per_minute": per_minute}
    found = made([call(number, tokens, team) for number, (team, tokens) in enumerate(calls)], declared(row))
    parts = [to_nanos(one.amortised or Decimal(0)) for one in found]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == to_nanos(Decimal(3) * rate * 12)
    assert found.total.effective == from_nanos(sum(parts))


@given(st.integers(0, 10**18), st.dictionaries(st.integers(), st.decimals(0, 10**12, places=6), max_size=40))
def test_no_part_is_further_than_one_from_its_share(total: int, weights: dict[int, Decimal]) -> None:
    """The method of largest remainders: the parts add up, and each is its exact share rounded down or up."""
    parts = largest_remainder(total, weights)
    assert parts.keys() == weights.keys()
    assert not weights or sum(parts.values()) == total
    whole = sum(weights.values())
    for key, part in parts.items() if whole else ():
        assert abs(part * whole - total * weights[key]) < whole


def test_what_nobody_used_is_apart_when_the_throughput_is_known() -> None:
    """3,600 of 10,800 tokens that 15 units serve in twelve hours at one a minute: a third is used, the rest idle."""
    row = {**PTU, "tokens_per_minute": 1, "name": "PTU of search"}
    found = made([call(1, 3_600)], declared(row))
    assert shares(found) == {"search": Decimal(60), "PTU of search": Decimal(120)}
    assert found.capacity is not None
    assert found.capacity[0].utilisation is not None
    assert round(found.capacity[0].utilisation, 9) == Decimal("0.333333333")
    assert "(idle: PTU of search)" in str(found)
    assert made([call(1, 36_000)], declared(row)).total.amortised == Decimal(
        180
    )  # more than it serves: all of it, no more
    assert shares(made([], declared(row))) == {"PTU of search": Decimal(180)}


def test_heavier_tokens_take_more_of_it() -> None:
    """An output token that takes four times an input token gets four times its part."""
    calls = [
        call(1, team="search", quantities={"input_tokens": 100}),
        call(2, team="support", quantities={"output_tokens": 50}),
    ]
    found = made(calls, declared({**PTU, "weights": {"output_tokens": 4}}))
    assert shares(found) == {"search": Decimal(60), "support": Decimal(120)}


@pytest.mark.parametrize(
    ("change", "declaration"),
    [
        ({"provider": "openai"}, {}),
        ({"model": "gpt-4o-mini", "price_id": "genai-prices/azure/gpt-4o-mini+provisioned"}, {}),
        ({"region": "eastus"}, {"region": "westeurope"}),
        ({"at": MIDNIGHT - 1}, {}),
    ],
    ids=["another provider", "another model", "another region", "before it was bought"],
)
def test_calls_that_it_does_not_serve_get_nothing(change: dict[str, Any], declaration: dict[str, Any]) -> None:
    """They are counted, and said to be in no amount."""
    found = made([call(1, **change)], declared({**PTU, **declaration}))
    assert found.uncovered_calls == 1
    assert sum(row.amortised or 0 for row in found if not row.idle) == 0
    assert "1 call of committed capacity belongs to none" in str(found)


def test_priced_calls_pay_for_no_capacity() -> None:
    """Who pays by the token while others have provisioned throughput shares none of its cost."""
    paid = call(2, team="support", basis="priced", amount=5_000_000_000, tier="")
    found = made([call(1), paid], declared(PTU))
    assert shares(found) == {"search": Decimal(180), "support": Decimal(0)}
    assert found.total.effective == Decimal(185)


def test_the_name_of_the_price_list_is_the_model_too() -> None:
    """A dated or a deployed name belongs to the capacity of its model."""
    deployed = call(1, model="our-deployment", response_model="gpt-4o-2024-08-06")
    assert shares(made([deployed], declared(PTU))) == {"search": Decimal(180)}


def test_a_filter_changes_no_part() -> None:
    """The part of one team is the same whether the others are looked at or not; what is theirs stays apart."""
    found = made([call(1, 100, "search"), call(2, 200, "support")], declared(PTU), where={"team": "search"})
    assert shares(found) == {"search": Decimal(60)}
    assert found.capacity is not None
    assert (found.capacity[0].used, found.capacity[0].elsewhere) == (to_nanos(Decimal(60)), to_nanos(Decimal(120)))


def test_only_the_time_that_was_asked_for_is_spread() -> None:
    """Six of the twelve hours are half the cost; after the last day nothing is."""
    assert made([call(1)], declared(PTU), since=NOON - 6 * 3_600_000_000_000).total.amortised == Decimal(90)
    ended = declared({**PTU, "from": "2026-11-01", "until": "2026-11-02"})
    assert made([call(1)], ended, since="2026-11-24").capacity == ()


def test_hours_to_come_have_cost_nothing_yet() -> None:
    """A report until the end of the month, made at noon of the first day, spreads twelve hours."""
    assert made([call(1)], declared(PTU), until="2026-12-01").total.amortised == Decimal(180)


def test_commitments_are_spread_alike() -> None:
    """24 USD a day that were committed are 12 USD at noon; without a beginning one must be asked for."""
    promise = {"name": "EA", "amount": 24, "per": "day", "provider": "azure"}
    capacity = declared(commitments=[promise])
    assert made([call(1)], capacity, since="2026-11-24").total.amortised == Decimal(12)
    with pytest.raises(ConfigurationError, match='what EA costs has no beginning: ask since="30d"'):
        made([call(1)], capacity)


def test_the_first_that_covers_a_call_has_it() -> None:
    """Two declarations of the same model do not both give it a part."""
    first, second = {**PTU, "name": "a", "region": "eastus"}, {**PTU, "name": "b", "rate": 2}
    found = made([call(1, region="eastus"), call(2, team="support")], declared(first, second))
    assert shares(found) == {"search": Decimal(180), "support": Decimal(360)}


def test_other_currencies_have_rows_of_their_own() -> None:
    """Capacity in euros is no part of an amount in dollars."""
    found = made([call(1)], declared({**PTU, "currency": "EUR"}))
    assert {(row.key["team"], row.currency): row.amortised for row in found} == {
        ("search", "USD"): 0,
        ("search", "EUR"): Decimal(180),
    }
    assert {row.currency: row.effective for row in found.totals} == {"USD": 0, "EUR": Decimal(180)}


def test_each_call_gets_its_part() -> None:
    """Parts of single calls add up too, also where they cannot be equal."""
    ledger = MemoryLedger()
    ledger.append_many([call(number) for number in range(7)])
    capacity = declared(PTU)
    parts = [part for _, part in amortised_calls(ledger, capacity, Query(), now_ns=NOON)]
    assert sum(parts) == to_nanos(Decimal(180))
    assert max(parts) - min(parts) == 1
    ((one,), _) = amortise(ledger, capacity, Query(), now_ns=NOON)
    assert (one.used, one.shares) == (to_nanos(Decimal(180)), {(): to_nanos(Decimal(180))})


def test_calls_without_tokens_share_alike() -> None:
    """Where nothing was counted, each row has the same part."""
    assert shares(made([call(1, 0), call(2, 0, "support")], declared(PTU))) == {
        "search": Decimal(90),
        "support": Decimal(90),
    }


def test_it_is_written_in_every_form() -> None:
    """JSON and CSV have the part, the sum and the idle row; JSON also what each capacity was."""
    found = made([call(1, 3_600)], declared({**PTU, "tokens_per_minute": 1, "name": "=PTU"}))
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [(row["team"], row["amortised"], row["effective"], row["idle"]) for row in rows] == [
        ("", "120", "120", "'=PTU"),
        ("search", "60", "60", ""),
    ]
    plain = json.loads(found.to_json())
    assert [(row["amortised"], row["idle"]) for row in plain["rows"]] == [("120", "=PTU"), ("60", None)]
    assert plain["capacity"][0]["cost"] == "180"
    assert plain["uncovered_calls"] == 0


def test_a_limit_holds_for_what_it_really_costs() -> None:
    """Calls at no cost of their own do not pass a limit that their capacity breaks."""
    found = made([call(1)], declared(PTU))
    found.assert_under("$180")
    with pytest.raises(AssertionError, match=r"180\.000000000 USD in 1 call is above 179"):
        found.assert_under("$179")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"from": None}, "give from = 2026-11-01"),
        ({"units": 0}, r"provisioned\[0\].units"),
        ({"rate": True}, r"provisioned\[0\].rate"),
        ({"weights": {"output_token": 4}}, "Did you mean output_tokens"),
        ({"tokens_per_minut": 1}, "Did you mean tokens_per_minute"),
        ({"until": "2026-11-24"}, "must be after from"),
    ],
)
def test_a_wrong_declaration_says_what_to_write(change: dict[str, Any], wanted: str) -> None:
    """The place and the remedy are named, as in every price file."""
    row = {key: value for key, value in {**PTU, **change}.items() if value is not None}
    with pytest.raises(ConfigurationError, match=wanted):
        declared(row)


def test_from_a_file_to_the_command_and_the_function(tmp_path: Path) -> None:
    """A price file declares it; `aifinops report --amortised` and `report(amortised=True)` show the same."""
    prices = tmp_path / "ptu.toml"
    prices.write_text(
        'id = "acme"\n[[provisioned]]\nname = "PTU"\nprovider = "azure"\nmodel = "gpt-4o"\nunits = 15\nrate = "1.00"\n'
        'from = 2025-11-24\nuntil = 2025-11-25\nsource = "order form 4711"\nas_of = 2025-11-20\n'
    )
    path = tmp_path / "ledger.db"
    then = to_ns(datetime(2025, 11, 24, 12, tzinfo=UTC))
    ledger = SqliteLedger(path)
    ledger.append_many([call(1, 100, at=then), call(2, 300, "support", at=then)])
    ledger.close()
    runtime.init(ledger=str(path), prices=[str(prices)])
    told = CliRunner().invoke(
        app,
        ["report", "--by", "team", "--until", "2025-11-25", "--amortised", "--format", "json", "--ledger", str(path)],
    )
    assert told.exit_code == 0, told.output
    rows = json.loads(told.output)["rows"]
    assert {row["key"]["team"]: row["amortised"] for row in rows} == {"support": "270", "search": "90"}
    table = CliRunner().invoke(
        app, ["report", "--by", "team", "--until", "2025-11-25", "--amortised", "--ledger", str(path)]
    )
    assert "effective" in table.output
    assert "$270.00" in table.output
    assert "PTU: $360.00 in this time, 2 calls served." in table.output
    found = af.report(by="team", until="2025-11-25", amortised=True)
    assert shares(found) == {"support": Decimal(270), "search": Decimal(90)}


def test_a_metered_call_of_a_deployment_pays_its_part(tmp_path: Path) -> None:
    """Azure's answers do not say that provisioned throughput served them: the deployment is declared, and its calls pay for it."""
    prices = tmp_path / "ptu.toml"
    prices.write_text(
        'id = "acme"\n[[models]]\nprovider = "azure"\nmodel = "chat-ptu"\nprovisioned = true\n'
        'rates = { input_tokens = "2.5", output_tokens = "10" }\n'
        '[[provisioned]]\nprovider = "azure"\nmodel = "chat-ptu"\nunits = 2\nrate = "0.5"\nfrom = 2025-11-24\n'
    )
    runtime.init(ledger="memory", prices=[str(prices)])
    at = datetime(2025, 11, 24, 6, tzinfo=UTC)
    usage = {"input_tokens": 1_000_000}
    charge = af.record(usage=usage, model="chat-ptu", provider="azure.ai.openai", service="llm", at=at)
    assert (charge.amount, charge.basis, charge.list_amount) == (0, "committed", 2_500_000_000)
    found = af.report(by="model", since="2025-11-24", until=datetime(2025, 11, 24, 10, tzinfo=UTC), amortised=True)
    ((row,), (one,)) = (found.rows, found.capacity or ())
    assert (row.key["model"], row.amount, row.amortised, row.effective) == ("chat-ptu", 0, 10, 10)
    assert (one.name, one.calls, one.utilisation) == ("azure/chat-ptu", 1, None)


def test_the_cost_of_a_time_is_asked_for_in_any_form() -> None:
    """15 USD an hour are 360 a day, whatever the day is written as."""
    (one,) = declared(PTU)
    assert one.amortised("2026-11-24", "2026-11-25") == one.amortised(MIDNIGHT, MIDNIGHT + 86_400 * 10**9) == 360
    with pytest.raises(ConfigurationError, match="end='x' is no moment"):
        one.amortised("2026-11-24", "x")
