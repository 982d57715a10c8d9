"""What people type: limits, windows and budgets."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.budgets.budget import ActiveBudget, Budget, Limit, Window, is_currency, parse_limit, to_units
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError

HOUR = 3600 * 10**9


@pytest.mark.parametrize(
    ("typed", "limits"),
    [
        ("$5", [("USD", 5 * 10**9)]),
        ("5 USD", [("USD", 5 * 10**9)]),
        ("5usd", [("USD", 5 * 10**9)]),
        ("EUR 2.50", [("EUR", 2_500_000_000)]),
        ("2.50€", [("EUR", 2_500_000_000)]),
        ("$1,000.50", [("USD", 1_000_500_000_000)]),
        ("$5k", [("USD", 5 * 10**12)]),
        ("2M tokens", [("tokens", 2 * 10**12)]),
        ("2 tokens", [("tokens", 2 * 10**6)]),
        ("9 T tokens", None),
        ("1.5k requests", [("requests", 1_500 * 10**6)]),
        ("1e3 output_tokens", [("output_tokens", 10**9)]),
        ("200 gpu_hours", [("gpu_seconds", 200 * 3600 * 10**6)]),
        ("0.5 GPU hours", [("gpu_seconds", 1800 * 10**6)]),
        (5, [("USD", 5 * 10**9)]),
        (0, [("USD", 0)]),
        (Decimal("1.000000001"), [("USD", 1_000_000_001)]),
        (0.1, [("USD", 10**8)]),
        ({"USD": 5, "tokens": "2M"}, [("USD", 5 * 10**9), ("tokens", 2 * 10**12)]),
        ({"$": "1.5", "gpu_hours": 2}, [("USD", 1_500_000_000), ("gpu_seconds", 7200 * 10**6)]),
        (["$5", "2M tokens"], [("USD", 5 * 10**9), ("tokens", 2 * 10**12)]),
        (Limit("USD", 7), [("USD", 7)]),
    ],
)
def test_limits_as_people_type_them(typed: object, limits: list[tuple[str, int]] | None) -> None:
    """Each spelling has one meaning, exact to the last step."""
    if limits is None:  # nine trillion tokens are more than the integers hold
        with pytest.raises(ConfigurationError, match="too large"):
            parse_limit(typed)  # type: ignore[arg-type]
        return
    assert parse_limit(typed) == tuple(Limit(unit, amount) for unit, amount in limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("-$5", r"'-\$5' is negative; the least is 0"),
        ("$-5", r"'\$-5' is negative"),
        (-1, "-1 is negative"),
        ({"USD": -1}, "-1 is negative"),
        ("5", r'has no unit; write "\$5" or "5 tokens"'),
        ("", "is not understood; write"),
        ("five dollars", "is not understood; write"),
        ("$nan", "is not understood"),
        (float("nan"), "must be finite, not nan"),
        (float("inf"), "must be finite, not inf"),
        (Decimal("sNaN"), "must be finite"),
        (True, "must be a number, not True"),
        (None, "is a NoneType; write"),
        (b"$5", "is a bytes; write"),
        ("5 tokn", "unknown unit 'tokn'. Did you mean token"),
        ("5 BTC", "unknown unit 'BTC'"),
        ("$5 tokens", "two units"),
        ("$5e30", r"too large; the most is 4,611,686,018 USD"),
        ("$1e999999999999", "too large"),
        pytest.param(10**5000, "too large", id="5001 digits"),
        (Decimal("1e999999"), "too large"),
        ("0.0000000001 USD", "less than the smallest step, 0.000000001 USD"),
        ({}, "is empty; write"),
        ([], "is empty; write"),
        (["$5", "5 USD"], "has USD twice; give each unit one limit"),
        ({"USD": "$5"}, "must be a number such as 5"),
        ({"USD": None}, "USD=None is a NoneType"),
        ({5: 5}, "has the unit 5"),
    ],
)
def test_bad_limits_say_what_to_type(typed: object, says: str) -> None:
    """A wrong limit is refused when it is made, by a message with the value and the way out."""
    with pytest.raises(ConfigurationError, match=says):
        parse_limit(typed)  # type: ignore[arg-type]


@given(st.decimals(0, 4_000_000_000, places=9), st.sampled_from(["USD", "JPY", "tokens", "gpu_seconds"]))
def test_a_limit_is_never_stored_above_what_was_typed(amount: Decimal, unit: str) -> None:
    """Rounding goes down, by less than one step."""
    smallest = Decimal("1e-9") if is_currency(unit) else Decimal("1e-6")
    if 0 < amount < smallest:
        return
    (limit,) = parse_limit({unit: amount})
    assert 0 <= amount - limit.quantity < smallest


def test_limits_do_not_depend_on_the_decimal_context() -> None:
    """An application that computes with three digits still gets the limit that it typed."""
    with localcontext() as context:
        context.prec = 3
        (limit,) = parse_limit("1234.56789 USD")
        assert (limit.amount, str(limit)) == (1_234_567_890_000, "$1,234.57")
        assert str(parse_limit("1234567 tokens")[0]) == "1,234,567 tokens"
        assert to_units("USD", 1_234_567_890_123) == Decimal("1234.567890123")


# --- windows -------------------------------------------------------------------------------------------------------------


def berlin(text: str) -> int:
    return to_ns(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC))


@pytest.mark.parametrize(("date", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_a_day_ends_at_local_midnight(date: str, hours: int) -> None:
    """The days on which clocks change have 23 and 25 hours."""
    start = berlin(date)
    for at in (start, start + HOUR, start + hours * HOUR - 1):
        assert Window("day", "Europe/Berlin").bounds(at) == (start, start + hours * HOUR)


@pytest.mark.parametrize(
    ("kind", "start", "end", "hours"),
    [
        ("week", "2026-03-23", "2026-03-30", 167),  # Monday to Monday, clocks go forward on Sunday
        ("week", "2026-10-19", "2026-10-26", 169),
        ("month", "2026-03-01", "2026-04-01", 31 * 24 - 1),
        ("month", "2026-10-01", "2026-11-01", 31 * 24 + 1),
        ("month", "2028-02-01", "2028-03-01", 29 * 24),
        ("month", "2026-12-01", "2027-01-01", 31 * 24),
    ],
)
def test_weeks_and_months_keep_local_midnights(kind: str, start: str, end: str, hours: int) -> None:
    """A week starts on Monday, a month on its first, both at local midnight."""
    window = Window(kind, "Europe/Berlin")  # type: ignore[arg-type]
    assert berlin(end) - berlin(start) == hours * HOUR
    for at in (berlin(start), berlin(end) - 1):
        assert window.bounds(at) == (berlin(start), berlin(end))


def test_both_hours_of_the_night_on_which_clocks_go_back_are_hours() -> None:
    """Two o'clock comes twice, as two windows."""
    first = berlin("2026-10-25T00:00:00") + 2 * HOUR
    assert Window("hour", "Europe/Berlin").bounds(first + 5) == (first, first + HOUR)
    assert Window("hour", "Europe/Berlin").bounds(first + HOUR) == (first + HOUR, first + 2 * HOUR)


def test_a_half_hour_zone_counts_hours_from_its_own_midnight() -> None:
    """An hour in Kolkata begins at half past by UTC."""
    at = to_ns(datetime(2026, 1, 1, 12, 45, tzinfo=UTC))
    start = to_ns(datetime(2026, 1, 1, 12, 30, tzinfo=UTC))
    assert Window("hour", "Asia/Kolkata").bounds(at) == (start, start + HOUR)
    assert Window("minute", "Asia/Kolkata").bounds(at + 1) == (at, at + 60 * 10**9)


def test_run_and_total_never_end() -> None:
    """They have no bounds."""
    assert Window("run").bounds(0) is None
    assert Window("total").bounds(10**18) is None


ODD_ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",  # until 2011 clocks changed a minute after midnight: a date came back
    "Australia/Lord_Howe",  # changes by half an hour
    "America/Havana",  # changes at midnight: a day may have two, or none
    "Pacific/Apia",  # had no 30 December 2011
    "Asia/Kathmandu",
    "Africa/Casablanca",
]


@settings(max_examples=300)
@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)),  # noqa: DTZ001 - what hypothesis asks for
    st.sampled_from(ODD_ZONES),
    st.sampled_from(["minute", "hour", "day", "week", "month"]),
)
def test_windows_have_no_gap_and_no_overlap(moment: datetime, zone: str, kind: str) -> None:
    """Each moment is in one window, whose neighbours begin where it ends, in every zone there is."""
    window = Window(kind, zone)  # type: ignore[arg-type]
    at = to_ns(moment)
    bounds = window.bounds(at)
    assert bounds is not None
    start, end = bounds
    assert start <= at < end
    assert window.bounds(start) == window.bounds(end - 1) == bounds
    before, after = window.bounds(start - 1), window.bounds(end)
    assert before is not None
    assert before[1] == start
    assert after is not None
    assert after[0] == end
    assert end - start <= 32 * 24 * HOUR


@pytest.mark.parametrize(
    "change",
    [
        datetime(2010, 11, 7, 2, 31, tzinfo=UTC),
        datetime(2011, 12, 30, 10, tzinfo=UTC),
        datetime(2026, 4, 4, 15, tzinfo=UTC),
    ],
)
@pytest.mark.parametrize("zone", ["America/St_Johns", "Pacific/Apia", "Australia/Lord_Howe"])
@pytest.mark.parametrize("kind", ["hour", "day"])
def test_windows_around_odd_changes_follow_each_other(change: datetime, zone: str, kind: str) -> None:
    """Walking from window to window through the strangest nights loses and repeats nothing."""
    window = Window(kind, zone)  # type: ignore[arg-type]
    at = to_ns(change - timedelta(days=2))
    while at < to_ns(change + timedelta(days=2)):
        bounds = window.bounds(at)
        assert bounds is not None
        assert bounds[1] > at
        assert window.bounds(bounds[1] - 1) == bounds
        at = bounds[1]


def test_utc_needs_no_time_zone_database() -> None:
    """Slim containers have none, and the default has to work there."""
    code = (
        "import sys; sys.modules['zoneinfo'] = None\n"
        "from aifinops.budgets.budget import Budget, Window\n"
        "assert Window('day').bounds(0) == (0, 86400 * 10**9)\n"
        "assert Budget.parse('$5', per='month').tz == 'UTC'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- budgets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"per": "dya"}, "per='dya' is no window. Did you mean 'day'"),
        ({"per": ""}, "per='' is no window"),
        ({"per": 5}, "per=5 is no window"),
        ({"tz": "Europe/Berlun"}, "tz='Europe/Berlun' is no time zone; write an IANA name"),
        ({"tz": "../../etc/passwd"}, "is no time zone"),
        ({"tz": ""}, "is no time zone"),
        ({"tz": None}, "tz=None is no time zone"),
        ({"name": ""}, "name='' must be text"),
        ({"name": "a\nb"}, "must be text of 1 to 128"),
        ({"name": "#a"}, "must be text"),
        ({"name": "{a}"}, "must be text"),
        ({"name": 5}, "name=5 must be text"),
        ({"name": "x" * 129}, "must be text of 1 to 128"),
        ({"max_wait": -1}, "max_wait=-1 must be seconds from 0"),
        ({"max_wait": True}, "max_wait=True must be seconds"),
        ({"on_store_down": "open"}, "on_store_down='open' is no choice.* Use one of deny, allow"),
        ({"per": "rolling"}, 'must be such as "rolling 24h"'),
        ({"per": "rolling 5 s"}, "of 24 seconds to 366 days"),
        ({"per": "rolling 24 moons"}, 'must be such as "rolling 24h"'),
        ({"per": "week from sundy"}, "per='week from sundy' is no window"),
        ({"on_exceed": {"gpt-5": "gpt-5-mini"}}, r'is not understood; write \{"downgrade": '),
        ({"on_exceed": {"downgrade": {}}}, r'is not understood; write \{"downgrade": '),
        ({"on_exceed": {"downgrade": "gpt-5-mini"}}, "model asked for -> model to use instead"),
        ({"on_exceed": {"downgrade": {"gpt-5": 5}}}, "model asked for -> model to use instead"),
        ({"on_exceed": {"downgrade": {"a": "b", "b": "a"}}}, "goes round in a circle at 'a'"),
        ({"on_exceed": {"downgrade": {"a": "a"}}}, "goes round in a circle at 'a'"),
        ({"on_exceed": {"downgrade": {"a": "b"}, "any": "yes"}}, '"any" must be True or False'),
        ({"on_exceed": {"downgrade": {"a": "b"}, "clamp": 5}}, 'write .* write "clamp"'),
        ({"on_exceed": {"clamp": 0}}, 'write "clamp", or {"clamp": 200}'),
        ({"on_exceed": {"clamp": True}}, 'write "clamp", or {"clamp": 200}'),
        ({"on_exceed": "downgrade"}, r'Please use .*\{"downgrade": '),
        ({"on_exceed": "clmp"}, "Did you mean 'clamp'"),
        ({"on_exceed": "rais"}, "on_exceed='rais' is no action. Did you mean 'raise'"),
        ({"on_exceed": None}, "on_exceed=None is no action"),
        ({"soft": (0.5, 0)}, "share 0 must be above 0"),
        ({"soft": (80,)}, "share 80 must be above 0 and at most 10; 0.8 is 80 %"),
        ({"soft": 0.8}, "soft=0.8 must be a list"),
        ({"soft": "0.8"}, "soft='0.8' must be a list"),
        ({"soft": (float("nan"),)}, "must be finite"),
        ({"unknown": "rasie"}, "unknown='rasie' is no choice. Did you mean 'raise'"),
        ({"unknown": None}, "unknown=None is no choice"),
        ({"match": {"te am": "x"}}, "tag key 'te am'"),
        ({"match": {"team": ["a"]}}, "must be text, not list"),
    ],
)
def test_bad_arguments_say_what_to_type(arguments: dict[str, object], says: str) -> None:
    """Everything is checked before anything is made."""
    with pytest.raises(ConfigurationError, match=says):
        Budget.parse("$5", **arguments)  # type: ignore[arg-type]


def test_what_is_not_said_has_a_default() -> None:
    """A name makes a total, no name a run; thresholds are sorted and exact."""
    assert Budget.parse("$5").window == Window("run")
    assert Budget.parse("$5", name="search").window == Window("total")
    budget = Budget.parse("$5", soft=(1.0, 0.5, "0.5"), match={"team": "search", "customer": None})
    assert budget.soft == (Decimal("0.5"), Decimal("1.0"))
    assert budget.match == {"team": "search"}
    assert hash(budget) == hash(Budget.parse("$5", soft=(0.5, 1), match={"team": "search"}))


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget.parse("$5"), "$5.00 per run"),
        (Budget.parse("$50", per="day", name="search"), "search: $50.00 per day"),
        (Budget.parse({"USD": 5, "tokens": "2M"}, name="a"), "a: $5.00 and 2,000,000 tokens in total"),
        (Budget.parse("€1", per="week", tz="Europe/Berlin"), "€1.00 per week (Europe/Berlin)"),
    ],
)
def test_describe(budget: Budget, text: str) -> None:
    """A budget says what it is."""
    assert budget.describe() == text


def test_who_shares_a_balance() -> None:
    """The same name and window do; objects without a name, runs, and other windows of that name do not."""
    daily = Budget.parse("$5", per="day", name="search")
    assert ActiveBudget(daily).key == ActiveBudget(daily).key
    others = [
        Budget.parse("$5", name="search"),
        Budget.parse("$5", per="month", name="search"),
        Budget.parse("$5", per="day", name="search", tz="Europe/Berlin"),
        Budget.parse("$5", per="run", name="search"),
        Budget.parse("$5", per="run", name="search"),
        Budget.parse("$5", per="day"),
        Budget.parse("$5"),
    ]
    keys = {ActiveBudget(one).key for one in [daily, *others]}
    assert len(keys) == len(others) + 1
    assert ActiveBudget(daily, "run-1").shared
    assert not ActiveBudget(Budget.parse("$5"), "run-1").shared


def test_nodes_follow_the_window() -> None:
    """A budget has one node a limit in each window, also when the clock goes back."""
    active = ActiveBudget(Budget.parse({"USD": 5, "tokens": 10}, per="day", name="a", soft=(0.5, 1)))
    first = active.nodes(to_ns(datetime(2026, 1, 1, 23, 59, tzinfo=UTC)))
    second = active.nodes(to_ns(datetime(2026, 1, 2, tzinfo=UTC)))
    assert [node.unit for node in first] == ["USD", "tokens"]
    assert {node.until for node in first} == {node.window for node in second}
    assert active.nodes(to_ns(datetime(2026, 1, 1, 12, tzinfo=UTC))) == first
    assert first[0].marks == (2_500_000_000, 5_000_000_000)
    assert len({node.key for node in (*first, *second)}) == 4
    assert active.nodes(0) == active.nodes(1)
    total = ActiveBudget(Budget.parse("$0"))
    assert total.nodes(0) is total.nodes(2**62)
    assert total.nodes(0)[0].marks == ()
    assert "per run" in repr(total)
