"""How fast money goes: what a look at a ledger finds, and what it reads for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aifinops.analytics.live import MINUTES, Pace, Pulse, together
from aifinops.analytics.reports import report
from aifinops.charges import Charge
from aifinops.clock import to_ns
from aifinops.ledger.base import Group, Query
from aifinops.ledger.memory import MemoryLedger
from aifinops.money import NANO
from aifinops.testing.ledger import example_charge

NOW = to_ns(datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC))
SECOND, MINUTE = NANO, 60 * NANO


def charge(number: int, dollars: str | None, seconds_ago: float, **changes: Any) -> Charge:
    amount = None if dollars is None else int(Decimal(dollars) * NANO)
    basis = "unknown" if amount is None else "priced"
    values: dict[str, Any] = {"amount": amount, "basis": basis, "lower": amount, "upper": amount}
    return example_charge(number, **(values | {"at": NOW - int(seconds_ago * SECOND)} | changes))


class CountingLedger(MemoryLedger):
    """A ledger that says how often, and how far back, it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Query] = []

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - frozen
        self.asked.append(query)
        return super().summarize(query, by)


def looked(*charges: Charge, by: tuple[str, ...] = ("model",)) -> list[Pace]:
    ledger = MemoryLedger()
    ledger.append_many(charges)
    return Pulse(ledger, by).look(NOW)


def test_last_minute_averages_and_hour() -> None:
    """The last sixty seconds slide; averages are of whole minutes; the hour has the running minute, too."""
    (pace,) = looked(charge(1, "1", 10), charge(2, "2", 45), charge(3, "30", 90 + 60), charge(4, "57", 50 * 60))
    assert (pace.now, pace.calls) == (Decimal(3), 2)
    assert pace.running == 1
    assert pace.minutes[-1] == 2
    assert (pace.average(5), pace.average(60)) == (Decimal("6.4"), Decimal("1.48333333333"))
    assert pace.hour == 90


def test_the_dearest_hour_comes_first_and_older_calls_are_forgotten() -> None:
    """What was spent before the hour is in nothing."""
    found = looked(
        charge(1, "5", 20 * 60, model="b"), charge(2, "9", 10, model="a"), charge(3, "99", 62 * 60, model="c")
    )
    assert [(pace.key, pace.hour) for pace in found] == [(("a",), 9), (("b",), 5)]


def test_what_has_no_price_is_not_nothing() -> None:
    """A minute of calls of unknown cost is unknown, and they are counted."""
    (pace,) = looked(charge(1, None, 90), charge(2, None, 5), charge(3, "1", 300))
    assert (pace.now, pace.running, pace.minutes[-1]) == (None, None, None)
    assert (pace.unpriced_calls, pace.hour) == (2, 1)


def test_an_hour_of_what_has_no_price_is_unknown() -> None:
    """So are its averages: where nothing is known of a span in which there were calls, it is not zero."""
    (pace,) = looked(charge(1, None, 90), charge(2, None, 5))
    assert (pace.hour, pace.average(5), pace.average(60)) == (None, None, None)
    assert pace.to_dict(("model",))["hour"] is None


def test_a_clock_that_is_ahead() -> None:
    """A call that another machine dates into our future counts as of now."""
    (pace,) = looked(charge(1, "4", -20))
    assert pace.now == 4


def test_currencies_stay_apart_and_sums_add_up() -> None:
    """`together` adds one currency only."""
    paces = looked(
        charge(1, "1", 5, model="a"), charge(2, "2", 5, model="b"), charge(3, "8", 5, model="a", currency="EUR")
    )
    assert (together(paces, "USD").now, together(paces, "EUR").now) == (Decimal(3), Decimal(8))
    assert together(paces, "GBP").hour == 0


def test_a_later_look_reads_four_minutes() -> None:
    """The first reads the hour; each further one the last two minutes, one older, and the last sixty seconds."""
    ledger = CountingLedger()
    pulse = Pulse(ledger, ("model",))
    pulse.look(NOW)
    assert len(ledger.asked) == MINUTES + 2
    ledger.asked.clear()
    pulse.look(NOW + SECOND)
    assert len(ledger.asked) <= 4
    ledger.asked.clear()
    pulse.look(NOW + MINUTE)
    assert len(ledger.asked) <= 5


def test_a_call_that_took_long_is_found_within_a_minute_of_looks() -> None:
    """A call is dated when it began and written when it ended: older minutes are read again, one a look."""
    ledger = MemoryLedger()
    pulse = Pulse(ledger, ("model",))
    assert pulse.look(NOW) == []
    ledger.append(charge(1, "7", 20 * 60))
    found = [pulse.look(NOW + n * SECOND // 10) for n in range(MINUTES)][-1]
    assert [pace.hour for pace in found] == [7]


@given(
    st.lists(st.tuples(st.integers(0, 3500), st.none() | st.integers(0, 10**12), st.sampled_from("ab")), max_size=12),
    st.integers(1, 90),
)
def test_it_agrees_with_the_report(entries: list[tuple[int, int | None, str]], looks: int) -> None:
    """However calls come in while somebody looks, in the end the hour is what a report of it says."""
    ledger = MemoryLedger()
    pulse = Pulse(ledger, ("model",))
    charges = [
        charge(n, None, ago, amount=amount, basis="unknown" if amount is None else "priced", model=model)
        for n, (ago, amount, model) in enumerate(entries)
    ]
    for n in range(looks):
        ledger.append_many(charges[n::looks])
        pulse.look(NOW + n)
    found = [pulse.look(NOW + looks + n) for n in range(MINUTES)][-1]
    since = NOW - NOW % MINUTE - MINUTES * MINUTE
    wanted = report(ledger, "model", since=since, now_ns=NOW)
    assert {pace.key[0]: (pace.hour or 0, pace.unpriced_calls) for pace in found} == {
        row.key["model"]: (row.amount or 0, row.unpriced_calls) for row in wanted
    }
