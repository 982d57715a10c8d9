"""Reports beside the period before, step by step, cut and sorted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.analytics.reports import SORTS, Report, report
from aifinops.analytics.trends import Point, Steps, add_points, before
from aifinops.charges import Charge
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError
from aifinops.ledger import open_ledger
from aifinops.ledger.memory import MemoryLedger
from aifinops.money import NANO
from aifinops.testing.ledger import example_charge, random_charges

NOW = to_ns(datetime(2026, 11, 24, 12, tzinfo=UTC))
HOUR = 3_600 * NANO
DAY = 24 * HOUR


def charge(number: int, dollars: str | None, days_ago: float, **changes: Any) -> Charge:
    amount = None if dollars is None else int(Decimal(dollars) * NANO)
    basis = "unknown" if amount is None else "priced"
    values: dict[str, Any] = {"amount": amount, "basis": basis, "lower": amount, "upper": amount}
    return example_charge(number, **(values | {"at": NOW - int(days_ago * DAY)} | changes))


def made(charges: Sequence[Charge], by: str | Sequence[str] = ("model",), **arguments: Any) -> Report:
    ledger = MemoryLedger()
    ledger.append_many(charges)
    return report(ledger, by, now_ns=NOW, **arguments)


TWO_WEEKS = [
    charge(1, "4", 1, model="a"),
    charge(2, "2", 9, model="a"),
    charge(3, "1", 2, model="b"),
    charge(4, "8", 10, model="c"),
    charge(5, "100", 15, model="a"),  # before both periods
    charge(6, None, 3, model="d"),
    charge(7, "3", 8, model="d"),
]


class TestComparison:
    """`compare=True`."""

    def test_each_row_stands_beside_its_earlier_self(self) -> None:
        """Kept, new and gone keys, with the change in money and as a share; unknown is no change of anything."""
        rows = {row.key["model"]: row for row in made(TWO_WEEKS, since="7d", compare=True)}
        assert {name: (row.state, row.change, row.change_share) for name, row in rows.items()} == {
            "a": ("kept", Decimal(2), Decimal(1)),
            "b": ("new", Decimal(1), None),
            "c": ("gone", Decimal(-8), Decimal(-1)),
            "d": ("kept", None, None),
        }
        assert (rows["c"].amount, rows["c"].calls) == (Decimal(0), 0)

    def test_the_totals_are_compared(self) -> None:
        """The total has the change of everything, and the period is told."""
        result = made(TWO_WEEKS, since="7d", compare=True)
        assert (result.total.amount, result.total.change) == (Decimal(5), Decimal(-8))
        assert result.compared == (NOW - 14 * DAY, NOW - 7 * DAY)

    def test_the_sum_of_changes_is_the_change_of_the_total(self) -> None:
        """For what has a price, the rows explain the total exactly."""
        charges = [charge(n, f"{n}.{n}", n % 14, model="abcde"[n % 5]) for n in range(40)]
        result = made(charges, since="7d", compare=True)
        assert sum(row.change or 0 for row in result) == result.total.change

    def test_a_currency_that_is_gone(self) -> None:
        """What was paid in euros before and is not any longer has a row and a total of its own."""
        result = made([charge(1, "1", 1), charge(2, "5", 9, currency="EUR")], since="7d", compare=True)
        assert [(row.currency, row.state, row.change) for row in result.totals] == [
            ("USD", "new", 1),
            ("EUR", "gone", -5),
        ]

    def test_nothing_without_being_asked(self) -> None:
        """A plain report says nothing of changes."""
        row = made(TWO_WEEKS, since="7d").rows[0]
        assert (row.state, row.previous, row.change) == ("", None, None)
        assert "change" not in row.to_dict()

    @pytest.mark.parametrize(
        ("since", "until", "wanted"),
        [
            (-7, None, (-14, -7)),
            (-7, -5, (-9, -7)),
            (-7, 7, (-14, -7)),  # half of it lies ahead: what has been is compared with as much
            (3, 5, (1, 3)),
        ],
    )
    def test_the_period_before(self, since: int, until: int | None, wanted: tuple[int, int]) -> None:
        """As long as the period, and ended by its beginning; in days from now."""
        end = None if until is None else NOW + until * DAY
        assert before(NOW + since * DAY, end, NOW) == (NOW + wanted[0] * DAY, NOW + wanted[1] * DAY)

    def test_it_needs_a_beginning(self) -> None:
        """Nothing comes before everything."""
        with pytest.raises(ConfigurationError, match='since="7d"'):
            made(TWO_WEEKS, compare=True)
        with pytest.raises(ConfigurationError, match="not begun"):
            made(TWO_WEEKS, since=NOW + DAY, compare=True)


class TestTrend:
    """`trend=True`."""

    @given(st.integers(0, 2**20), st.sampled_from(["1h", "5h", "2d", "30d", "9999d"]))
    def test_points_add_up_to_their_row(self, seed: int, since: str) -> None:
        """Amounts, estimates, calls and unpriced calls of all steps are those of the row, in any kind of ledger entry."""
        charges = [
            example_charge(
                n, **{**vars(one), "id": f"{n:032x}", "at": NOW - (one.at * 7919) % (40 * DAY if n % 2 else HOUR)}
            )
            for n, one in enumerate(random_charges(seed, 12))
        ]
        result = made([one for one in charges if not one.corrects], "team", since=since, trend=True)
        for row in [*result.rows, *result.totals]:
            assert row.trend is not None
            total = _summed(row.trend)
            assert (total.amount, total.estimated) == (row.amount, row.estimated)
            assert (total.calls, total.unpriced_calls) == (row.calls, row.unpriced_calls)

    @pytest.mark.parametrize(
        ("length", "name", "count"),
        [
            (HOUR, "minute", 60),
            (5 * HOUR, "5 minutes", 60),
            (DAY, "hour", 24),
            (31 * DAY, "day", 31),
            (400 * DAY, "month", 14),
        ],
    )
    def test_steps_suit_the_period(self, length: int, name: str, count: int) -> None:
        """Enough to see and few enough to draw."""
        midnight = to_ns(datetime(2026, 11, 24, tzinfo=UTC))
        steps = Steps.of(midnight - length, midnight)
        assert (steps.name, len(steps.starts)) == (name, count)
        assert steps.starts[0] <= midnight - length
        assert steps.end >= midnight
        assert len(set(steps.labels())) == count

    @given(st.integers(1, 4000), st.integers(0, 10**6))
    def test_steps_cover_the_period(self, hours: int, shift: int) -> None:
        """Without a gap, never more than a hundred up to eight years, and the end lies in the last."""
        end = NOW + shift * NANO
        steps = Steps.of(end - hours * HOUR, end)
        assert list(steps.starts) == sorted(set(steps.starts))
        assert steps.starts[0] <= end - hours * HOUR
        assert steps.starts[-1] < end <= steps.end
        assert len(steps.starts) <= 100

    def test_what_has_no_price_is_not_nothing(self) -> None:
        """A step with calls of unknown cost is unknown; one without calls is zero."""
        (row,) = made([charge(1, None, 1), charge(2, "1", 3)], since="5d", trend=True).rows
        assert row.trend is not None
        assert [point.amount for point in row.trend] == [0, 0, 1, 0, None, 0]

    def test_without_a_beginning_it_starts_with_the_first_call(self) -> None:
        """The steps are those of what is there."""
        result = made([charge(1, "1", 4), charge(2, "1", 0.5)], trend=True)
        assert result.steps is not None
        assert result.steps.labels() == ("2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23", "2026-11-24")

    def test_a_clock_that_is_ahead_loses_nothing(self) -> None:
        """A call that another machine wrote with a later time has a step."""
        result = made([charge(1, "1", 3), charge(2, "2", -2)], since="4d", trend=True)
        assert result.steps is not None
        assert result.steps.labels()[-1] == "2026-11-26"
        assert _summed(result.total.trend or ()).amount == 3

    def test_nothing_to_draw(self) -> None:
        """No calls, no steps."""
        assert made([], since="7d", trend=True).steps is None

    def test_sums_keep_unknown_apart(self) -> None:
        """Known and unknown together are what is known; unknown alone stays unknown."""
        known, unknown = Point(Decimal(2), calls=1), Point(None, calls=1, unpriced_calls=1)
        assert add_points([[known, unknown, Point()], [unknown, unknown, Point()]]) == (
            Point(Decimal(2), calls=2, unpriced_calls=1),
            Point(None, calls=2, unpriced_calls=2),
            Point(),
        )


def _summed(points: Sequence[Point]) -> Point:
    return add_points([[point] for point in points])[0] if points else Point()


SIX = [charge(n, str(n), 1, model=f"m{n}", quantities={"output_tokens": 1000 * n}) for n in range(1, 7)]


class TestTopAndSort:
    """`top=` and `sort=`."""

    def test_others_are_one_row_and_everything_adds_up(self) -> None:
        """The dearest keep their rows; the rest is added up with its tokens and its share of the previous period."""
        result = made(
            [*SIX, charge(20, "7", 9, model="m1"), charge(21, None, 1, model="x")],
            since="7d",
            top=3,
            compare=True,
        )
        assert [(row.key["model"], row.amount, row.others) for row in result] == [
            ("m6", 6, 0),
            ("m5", 5, 0),
            ("m4", 4, 0),
            ("", 6, 4),
        ]
        others = result.rows[-1]
        assert (others.calls, others.unpriced_calls, others.output_tokens) == (4, 1, 6048)
        assert others.previous is not None
        assert others.previous.amount == 7
        assert sum(row.amount or 0 for row in result) == result.total.amount

    def test_one_more_than_the_top_is_shown(self) -> None:
        """A row for one other key would hide its name and save nothing."""
        assert [row.others for row in made(SIX, top=5)] == [0] * 6

    def test_each_currency_has_others_of_its_own(self) -> None:
        """They are never added."""
        more = [charge(30 + n, "1", 1, model=f"e{n}", currency="EUR") for n in range(3)]
        assert [(row.currency, row.others) for row in made([*SIX, *more], top=4)][4:] == [
            ("USD", 2),
            ("EUR", 3),
        ]

    @pytest.mark.parametrize(
        ("sort", "first"),
        [("cost", "big"), ("calls", "many"), ("tokens", "wordy"), ("change", "grown"), ("per_call", "big"),
         ("per_1k_tokens", "big"), ("unpriced", "dark"), ("name", "big")],
    )  # fmt: skip
    def test_orders(self, sort: str, first: str) -> None:
        """What was asked for comes first, and what is unknown last."""
        charges = [
            charge(1, "50", 1, model="big"),
            charge(2, "49", 9, model="big"),
            charge(3, "9", 1, model="grown"),
            *(charge(10 + n, "1", 1, model="many") for n in range(3)),
            charge(20, "1", 1, model="wordy", quantities={"output_tokens": 10**6}),
            charge(30, None, 1, model="dark"),
        ]
        rows = made(charges, since="7d", compare=True, sort=sort).rows
        assert rows[0].key["model"] == first
        if sort in {"cost", "change", "per_call", "per_1k_tokens"}:
            assert rows[-1].key["model"] == "dark"

    def test_every_order_is_tested(self) -> None:
        """None is forgotten here."""
        assert set(SORTS) == {"cost", "calls", "tokens", "change", "per_call", "per_1k_tokens", "unpriced", "name"}

    def test_wrong_ones(self) -> None:
        """The names are told."""
        with pytest.raises(ConfigurationError, match="per_call"):
            made([], sort="size")
        with pytest.raises(ConfigurationError, match="from 1"):
            made([], top=0)


class TestUnitCost:
    """What a call and a thousand tokens cost."""

    def test_only_what_has_a_price_counts(self) -> None:
        """Calls and tokens without a price are in no average."""
        (row,) = made([charge(1, "0.30", 1), charge(2, "0.10", 1), charge(3, None, 1)]).rows
        assert (row.per_call, row.per_1k_tokens) == (Decimal("0.2"), Decimal("0.190839694656"))

    def test_no_call_no_average(self) -> None:
        """Nothing divided by nothing is unknown, not zero."""
        (row,) = made([charge(1, None, 1)]).rows
        assert (row.per_call, row.per_1k_tokens) == (None, None)
        (gpu,) = made([charge(1, "3", 1, quantities={"gpu_seconds": 5})]).rows
        assert (gpu.per_call, gpu.per_1k_tokens) == (Decimal(3), None)


class TestWritten:
    """JSON and CSV of all that."""

    RESULT = made(TWO_WEEKS, since="7d", compare=True, trend=True, top=2)

    def test_json(self) -> None:
        """Changes, trends and periods are plain values."""
        data = json.loads(self.RESULT.to_json())
        assert data["compared"] == {"since": "2026-11-10T12:00:00+00:00", "until": "2026-11-17T12:00:00+00:00"}
        assert data["steps"]["step"] == "day"
        assert len(data["steps"]["starts"]) == 8
        first = data["rows"][0]
        assert (first["state"], first["change"], first["change_share"], first["previous_cost"]) == (
            "kept",
            "2",
            "1",
            "2",
        )
        assert first["trend"]["cost"] == ["0", "0", "0", "0", "0", "0", "4", "0"]
        assert data["rows"][-1]["others"] == 2

    def test_csv(self) -> None:
        """One column a step, named by its beginning; every line has as many cells as the head."""
        lines = list(csv.reader(io.StringIO(self.RESULT.to_csv())))
        assert {len(line) for line in lines} == {len(lines[0])}
        cells = dict(zip(lines[0], lines[1], strict=True))
        assert (cells["model"], cells["change"], cells["cost 2026-11-23"], cells["others"]) == ("a", "2", "4", "0")

    def test_text(self) -> None:
        """Printed, it has the change and the others."""
        text = str(self.RESULT)
        assert "+$2.00 (+100%)" in text
        assert "(2 others)" in text


def test_the_dearest_row_is_named_whatever_the_order() -> None:
    """`assert_under` says where most went, also when the report is sorted by name."""
    charges = [charge(1, "1", 1, model="a"), charge(2, "9", 1, model="b")]
    with pytest.raises(AssertionError, match="most by model=b: 9"):
        made(charges, sort="name").assert_under("$1")


def test_months_have_their_own_lengths() -> None:
    """A trend of years has a step for each month, also after one of 28 days."""
    steps = Steps.of(to_ns(datetime(2025, 1, 31, tzinfo=UTC)), to_ns(datetime(2025, 12, 1, tzinfo=UTC)))
    assert steps.labels() == tuple(f"2025-{month:02}" for month in range(1, 12))
    assert steps.end == to_ns(datetime(2025, 12, 1, tzinfo=UTC))


@pytest.mark.parametrize("since", ["30m", "5h", "3d", "30d", "2026-01-01", None])
def test_every_ledger_gives_the_same_report(tmp_path: Path, since: str | None) -> None:
    """With its roll-ups, SQLite says of changes, trends and unit costs what the plain sums of a ledger in memory say."""
    charges = [
        replace(
            one,
            id=f"{n:032x}",
            at=NOW - (one.at * 7919 + n * 104_729) % [HOUR, 9 * HOUR, 9 * DAY, 70 * DAY][n % 4],
            corrects="",
        )
        for n, one in enumerate(random_charges(7, 400))
    ]
    memory, file = MemoryLedger(), open_ledger(tmp_path / "ledger.db")
    for ledger in (memory, file):
        ledger.append_many(charges)
    file.migrate()  # type: ignore[attr-defined] # of SQLite: everything is rolled up
    asked: dict[str, Any] = {"since": since, "compare": since is not None, "trend": True, "top": 5, "now_ns": NOW}
    one, other = (report(ledger, "team,model", **asked).to_dict() for ledger in (memory, file))
    assert one == other
    assert len(one["rows"]) >= 6
    file.close()
