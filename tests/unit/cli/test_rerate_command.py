"""`aifinops rerate`, as it is typed."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.charges import Charge, new_id
from aifinops.cli import rerating
from aifinops.errors import StoreError
from aifinops.ledger import open_ledger
from aifinops.ledger.base import Group, Query, group_keys
from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.sqlite import SqliteLedger
from aifinops.pricing.book import PriceBook
from aifinops.pricing.lists import PriceList, from_table
from aifinops.tags import make_tags

Run = Callable[..., tuple[int, str, str]]
DAY = 86_400_000_000_000
NOON = 20_400 * DAY + DAY // 2  # 2025-11-08
CENT = 10_000_000

FILE = """
id = "own"
currency = "{currency}"

[[models]]
provider = "openai"
model = "gpt-4o"
rates = {{ input_tokens = "{price}" }}
"""


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """Type a command on the test's ledger: (exit status, standard output, standard error)."""

    def typed(*words: object, command: str = "rerate") -> tuple[int, str, str]:
        return run(command, *words, "--ledger", tmp_path / "ledger.db")

    return typed


def call(amount: int | None = 2 * CENT, **more: Any) -> Charge:
    """A call of 10,000 input tokens, which cost 2 cents at 2 dollars a million."""
    given: dict[str, Any] = {
        "id": new_id(),
        "at": NOON,
        "provider": "openai",
        "operation": "chat",
        "model": "gpt-4o",
        "quantities": {"input_tokens": 10_000},
        "amount": amount,
        "basis": "unknown" if amount is None else "priced",
        "price_id": None if amount is None else "old/openai/gpt-4o",
        "tags": make_tags({"team": "search"}),
    }
    return Charge(**given | more)


def keep(tmp_path: Path, charges: Iterable[Charge]) -> None:
    """Put them into the ledger."""
    book = open_ledger(tmp_path / "ledger.db")
    book.append_many(list(charges))
    book.close()


def prices(tmp_path: Path, price: str, currency: str = "USD") -> Path:
    """A list in which a million input tokens of gpt-4o have this price."""
    path = tmp_path / f"{price}{currency}.toml"
    path.write_text(FILE.format(price=price, currency=currency), "utf-8")
    return path


def sums(tmp_path: Path, *by: str) -> list[Group]:
    """What a report adds up."""
    book = open_ledger(tmp_path / "ledger.db", create=False)
    try:
        return book.summarize(by=by)
    finally:
        book.close()


def rows(run: Run, *words: object) -> dict[str, Any]:
    """The JSON form."""
    status, out, _ = run(*words, "--format", "json")
    assert status == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_nothing_is_written_unless_asked_for(run: Run, tmp_path: Path) -> None:
    """The table says what would have been, the ledger stays."""
    keep(tmp_path, [call(), call(), call(at=NOON + DAY, tags=make_tags({"team": "support"}))])
    status, out, error = run("--with", prices(tmp_path, "3"), "--by", "team,day")
    assert (status, error) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["search", "2025-11-08", "2", "$0.0400", "$0.0600", "$0.0200", "+50.0", "%"] in lines
    assert ["total", "3", "$0.0600", "$0.0900", "$0.0300", "+50.0", "%"] in lines
    assert [group.amount for group in sums(tmp_path)] == [6 * CENT]


def test_corrections_are_written_once(run: Run, tmp_path: Path) -> None:
    """A second run finds nothing to do; the report has the new sums by every key; the price can come back."""
    keep(tmp_path, [call(), call(at=NOON + DAY)])
    for price, written, amount in (("3", 2, 6), ("3", 0, 6), ("2", 2, 4), ("3", 2, 6), ("3", 0, 6)):
        _, _, error = run("--with", prices(tmp_path, price), "--write")
        assert error == f"{written} corrections written\n"
        [group] = sums(tmp_path, "team", "model")
        assert (group.key, group.calls, group.amount) == (("search", "gpt-4o"), 2, amount * CENT)
    assert [group.amount for group in sums(tmp_path, "day")] == [3 * CENT, 3 * CENT]
    assert "$0.0600" in run(command="report")[1]


def test_a_period_and_a_filter(run: Run, tmp_path: Path) -> None:
    """Only what was asked for is rated and corrected."""
    keep(tmp_path, [call(), call(at=NOON + DAY), call(at=NOON + DAY, tags=make_tags({"team": "support"}))])
    run("--with", prices(tmp_path, "3"), "--since", "2025-11-09", "--where", "team=search", "--write")
    assert [(*group.key, group.amount) for group in sums(tmp_path, "team", "day")] == [
        ("search", "2025-11-08", 2 * CENT),
        ("search", "2025-11-09", 3 * CENT),
        ("support", "2025-11-09", 2 * CENT),
    ]


def test_calls_that_get_a_price(run: Run, tmp_path: Path) -> None:
    """Unknown is shown as unknown, and not as nothing."""
    keep(tmp_path, [call(None)])
    _, out, _ = run("--with", prices(tmp_path, "3"))
    assert ["gpt-4o", "1", "unknown", "$0.0300"] in [line.split() for line in out.splitlines()]
    assert "1 call had no price and gets one" in out
    run("--with", prices(tmp_path, "3"), "--write")
    [group] = sums(tmp_path)
    assert (group.amount, group.unpriced_calls) == (3 * CENT, 0)


def test_a_call_that_is_free_now_has_a_known_cost(run: Run, tmp_path: Path) -> None:
    """A correction of zero makes unknown known."""
    keep(tmp_path, [call(None)])
    assert run("--with", prices(tmp_path, "0"), "--write")[2] == "1 corrections written\n"
    [group] = sums(tmp_path)
    assert (group.amount, group.unpriced_calls) == (0, 0)
    assert run("--with", prices(tmp_path, "0"), "--write")[2] == "0 corrections written\n"


def test_calls_that_lose_their_price_keep_their_amount(run: Run, tmp_path: Path) -> None:
    """They are counted as they were, and told about."""
    keep(tmp_path, [call(model="house-7b"), call()])
    _, out, error = run("--with", prices(tmp_path, "3"), "--write")
    assert "1 call ($0.0200) has no price in these lists" in out
    assert error == "1 corrections written\n"
    assert [group.amount for group in sums(tmp_path)] == [5 * CENT]
    assert rows(run)["totals"][0]["lost"] == 1


def test_what_no_list_decides_stays(run: Run, tmp_path: Path) -> None:
    """Reported costs and amounts that were given, also where somebody has corrected them."""
    reported, given = call(basis="reported"), call(price_id=None)
    mended = call(CENT, price_id=None, corrects=reported.id, status="correction", quantities={})
    keep(tmp_path, [reported, given, mended])
    _, out, error = run("--with", prices(tmp_path, "3"), "--write")
    assert error == "0 corrections written\n"
    assert "no price" not in out
    assert [group.amount for group in sums(tmp_path)] == [5 * CENT]


def test_corrections_of_others_count(run: Run, tmp_path: Path) -> None:
    """Whenever they were made and whatever their tags: the difference is to what the ledger says with them."""
    first = call()
    late = call(CENT // 2, at=NOON + 9 * DAY, corrects=first.id, status="correction", quantities={}, tags=make_tags({}))
    keep(tmp_path, [first, late])
    asked = ("--with", prices(tmp_path, "3"), "--until", "2025-11-10", "--where", "team=search")
    assert rows(run, *asked)["rows"][0]["before"] == "0.025"
    run(*asked, "--write")
    assert sum(group.amount or 0 for group in sums(tmp_path)) == 3 * CENT


def test_estimates_stay_estimates(run: Run, tmp_path: Path) -> None:
    """Their bounds move with them, also when they are rated a second time."""
    keep(tmp_path, [call(basis="estimated", lower=CENT, upper=4 * CENT)])
    for price, factor in (("3", Decimal("1.5")), ("4", Decimal(2)), ("4", Decimal(2)), ("2", Decimal(1))):
        run("--with", prices(tmp_path, price), "--write")
        [group] = sums(tmp_path)
        assert (group.amount, group.estimated) == (2 * CENT * factor, 2 * CENT * factor)
        assert (group.lower, group.upper) == (CENT * factor, 4 * CENT * factor)


def test_another_currency(run: Run, tmp_path: Path) -> None:
    """The amount leaves the one and comes to the other; both are told apart and never added."""
    keep(tmp_path, [call()])
    table = run("--with", prices(tmp_path, "3", "EUR"))[1]
    assert "-$0.0200" in table
    for written in (2, 0):
        assert run("--with", prices(tmp_path, "3", "EUR"), "--write")[2] == f"{written} corrections written\n"
        assert {group.currency: group.amount for group in sums(tmp_path)} == {"USD": 0, "EUR": 3 * CENT}
    assert run("--with", prices(tmp_path, "2"), "--write")[2] == "2 corrections written\n"
    assert {group.currency: group.amount for group in sums(tmp_path)} == {"USD": 2 * CENT, "EUR": 0}


def test_discounts_by_volume_count_the_whole_month(run: Run, tmp_path: Path) -> None:
    """Also calls before the period and of other teams."""
    contract = tmp_path / "contract.toml"
    tiers = '[{ above = "0", percent = "0" }, { above = "0.025", percent = "50" }]'
    contract.write_text(f'id = "acme"\n[[discounts]]\nprovider = "openai"\ntiers = {tiers}\n', "utf-8")
    keep(tmp_path, [call(), call(at=NOON + DAY, tags=make_tags({"team": "support"}))])
    found = rows(run, "--with", contract, "--since", "2025-11-09", "--where", "team=support")
    assert [(row["calls"], row["after"]) for row in found["rows"]] == [(1, "0.0125")]


def test_json(run: Run, tmp_path: Path) -> None:
    """Keys, period, rows and totals; money as text; nothing else on standard output."""
    keep(tmp_path, [call(), call(None, model="house-7b")])
    found = rows(run, "--with", prices(tmp_path, "3"), "--since", "2025-11-01", "--write")
    assert (found["by"], found["since"], found["until"], found["written"]) == (
        ["model"],
        "2025-11-01T00:00:00+00:00",
        None,
        1,
    )
    assert [(row["key"]["model"], row["before"], row["after"]) for row in found["rows"]] == [
        ("gpt-4o", "0.02", "0.03"),
        ("house-7b", None, None),
    ]
    assert found["totals"][0]["unpriced_after"] == 1
    assert rows(run)["written"] is None


def test_a_compiled_list_can_be_rated_by(run: Run, tmp_path: Path) -> None:
    """And the bundled one, by its name."""
    keep(tmp_path, [call()])
    assert rows(run, "--with", "bundled")["rows"][0]["after"] == "0.025"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--with", "none.toml"), "none.toml"),
        (("--by", "no key!"), "no key!"),
        (("--where", "team"), "--where key=value"),
        (("--since", "soon"), "soon"),
        (("--format", "csv"), "write table or json"),
    ],
)
def test_wrong_input(run: Run, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """Exit status 2 and one line that names it."""
    keep(tmp_path, [call()])
    status, _, error = run(*words)
    assert (status, error.count("\n")) == (2, 1)
    assert said in error


def test_no_ledger_and_no_calls(run: Run, tmp_path: Path) -> None:
    """A wrong path is an error, an empty period is none."""
    assert run()[0] == 2
    keep(tmp_path, [call()])
    assert run("--since", "2025-12-01")[1] == "No calls in this ledger, period and filter.\n"


class Breaking(MemoryLedger):
    """A ledger whose disk is full after some batches."""

    batches = 2

    def append_many(self, charges: Any) -> int:
        """Keep two batches."""
        if not self.batches:
            raise StoreError("ledger: database or disk is full")
        self.batches -= 1
        return super().append_many(charges)


KEYS = group_keys(("model",))


def book_of(price: str) -> PriceBook:
    """A book in which a million input tokens of gpt-4o have this price."""
    row = {"provider": "openai", "model": "gpt-4o", "prices": [{"rates": {"input_tokens": price}}]}
    head = {"id": "own", "version": "", "date": None, "source": "test", "currency": "USD"}
    lists: list[PriceList] = [from_table({**head, "models": [row]})]
    return PriceBook(lists)


def test_a_full_disk_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written stays and is told; the next run writes the rest and nothing twice."""
    monkeypatch.setattr(rerating, "_BATCH", 3)
    source = Breaking()
    for number in range(10):
        source.append(call(at=NOON + number))
    with pytest.raises(
        StoreError, match="disk is full; 6 corrections were written before, and the same command writes"
    ):
        rerating._run(source, Query(), book_of("3"), KEYS, write=True)
    source.batches = 10
    assert rerating._run(source, Query(), book_of("3"), KEYS, write=True)[1] == 4
    assert source.summarize()[0].amount == 30 * CENT


def test_two_runs_at_once_write_each_correction_once() -> None:
    """Both have read the same ledger, and make the same entries."""
    source, other = MemoryLedger(), MemoryLedger()
    for charge in (call(), call(basis="estimated", lower=CENT, upper=4 * CENT)):
        source.append(charge)
        other.append(charge)
    for one in (source, other):
        rerating._run(one, Query(), book_of("3"), KEYS, write=True)
    made = [entry for entry in other.rows() if entry.corrects]
    assert len(made) == 3
    assert source.append_many(made) == 0


def test_memory_does_not_grow_with_the_ledger(tmp_path: Path) -> None:
    """Neither with calls nor with corrections, old or new."""
    source = SqliteLedger(tmp_path / "big.db")

    def peak(price: str) -> int:
        tracemalloc.start()
        try:
            rerating._run(source, Query(), book_of(price), KEYS, write=True)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    first = call()
    source.append_many([replace(first, id=f"{number:032x}", at=NOON + number) for number in range(1_500)])
    small = max(peak("3"), peak("4"))
    source.append_many([replace(first, id=f"{number:032x}", at=NOON + number) for number in range(1_500, 6_000)])
    large = max(peak("3"), peak("4"))
    source.close()
    assert large < small * 2  # of four times the entries; when the garbage collector comes is not ours to say


class Terminal:
    """Standard error that is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Keep it."""
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


def test_a_terminal_sees_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one line, which is wiped at the end; a file gets nothing of it."""
    monkeypatch.setattr(rerating, "_TELL_EVERY_S", 0)
    source = MemoryLedger()
    source.append_many([call(at=NOON + number) for number in range(2_500)])
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    rerating._run(source, Query(), book_of("3"), KEYS, write=False)
    assert terminal.text == "\r1,000 calls rated\r2,000 calls rated\r\x1b[K"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**9),
            st.sampled_from(["priced", "estimated", "unknown", "reported"]),
            st.integers(0, 40 * DAY),
        ),
        max_size=8,
    ),
    st.lists(st.decimals("0", "50", places=3), min_size=1, max_size=3),
)
def test_rating_twice_by_one_list_gives_no_difference(calls: list[tuple[int, str, int]], levels: list[Decimal]) -> None:
    """Whatever lists came before: the ledger says what each call costs by the last one, and a second run writes nothing."""
    source = MemoryLedger()
    for tokens, basis, at in calls:
        amount = None if basis == "unknown" else CENT
        bounds = {"lower": CENT // 2, "upper": 2 * CENT} if basis == "estimated" else {}
        source.append(call(amount, basis=basis, at=NOON + at, quantities={"input_tokens": tokens}, **bounds))
    for level in levels:
        book = book_of(f"{level:f}")
        found, _ = rerating._run(source, Query(), book, KEYS, write=True)
        again, written = rerating._run(source, Query(), book, KEYS, write=True)
        assert written == 0
        for key, row in again.items():
            assert (row.before, row.after) == (row.after, found[key].after)
        wanted = sum(CENT if basis == "reported" else tokens * int(level * 1000) for tokens, basis, _ in calls)
        assert sum(group.amount or 0 for group in source.summarize()) == wanted
        estimates = [one for one in calls if one[1] == "estimated"]
        assert bool(estimates and level) >= any(group.estimated for group in source.summarize())


def test_names_of_ones_own_are_known_under_other_lists_too(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`model_map` says what a deployment is, whichever list prices it."""
    monkeypatch.setenv("AIFINOPS_MODEL_MAP", "my-deployment=gpt-4o")
    keep(tmp_path, [call(None, model="my-deployment")])
    status, out, _ = run("--with", prices(tmp_path, "3"), "--format", "json")
    assert status == 0
    assert "0.03" in json.dumps(json.loads(out))
