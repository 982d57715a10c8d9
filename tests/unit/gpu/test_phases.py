"""What the time of a run went into, and how fast its steps are."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.gpu.account import Account, hourly, idle_usd
from aifinops.gpu.journal import Group
from aifinops.gpu.measured import Measured
from aifinops.gpu.phases import Pace, Phases
from aifinops.gpu.usage import GpuUsage, Sums, total

NS = 1_000_000_000
DOING = st.lists(
    st.tuples(st.sampled_from(["step", "wait", "eval", "save", "leave"]), st.integers(min_value=0, max_value=10 * NS)),
    max_size=40,
)


@given(DOING)
def test_phases_always_add_up_to_the_time_that_passed(doing: list[tuple[str, int]]) -> None:
    """Whatever begins inside of what, and whether or not it has ended: nothing is counted twice or lost, and news are what came."""
    now, open_ = 0, 0
    phases = Phases(now)
    news: dict[str, float] = {}
    for what, length in doing:
        before, now = now, now + length
        if what == "step":
            phases.first(now)
        elif what == "wait":
            phases.wait(before, now)
        elif what == "leave":
            if open_:
                phases.leave(now)
                open_ -= 1
        else:
            phases.enter(what, now)
            open_ += 1
        for name, seconds in phases.news(now).items():
            news[name] = news.get(name, 0.0) + seconds
    found = phases.totals(now)
    assert sum(found.values()) == now
    assert all(length > 0 for length in found.values())
    assert phases.inside == bool(open_)
    assert sum(news.values()) == pytest.approx(now / NS, abs=1e-6)


def test_what_is_restored_before_the_first_step_is_no_startup() -> None:
    """Nor is it taken from the steps that come after it."""
    phases = Phases(0)
    phases.enter("restore", 5 * NS)
    phases.leave(65 * NS)
    phases.wait(65 * NS, 66 * NS)
    phases.first(70 * NS)
    expected = {"restore": 60 * NS, "data_wait": NS, "startup": 9 * NS}
    assert phases.totals(70 * NS) == expected
    assert phases.totals(100 * NS) == {**expected, "step": 30 * NS}


def test_the_pace_leaves_out_startup_and_phases_of_their_own() -> None:
    """A minute of startup and ten seconds of evaluation say nothing about a step of two seconds."""
    pace = Pace(0)
    pace.note(60 * NS, 1, 0)
    assert pace.step_s is None
    pace.note(80 * NS, 11, 0)
    assert pace.step_s == pytest.approx(2)
    pace.note(110 * NS, 21, 10 * NS)
    assert pace.step_s == pytest.approx(2)


def test_the_pace_follows_slowly_what_changes() -> None:
    """A moving average over five minutes: steps that take twice as long from now on are half believed after three and a half minutes."""
    pace = Pace(0)
    pace.note(NS, 1, 0)
    pace.note(101 * NS, 101, 0)
    now, steps = 101, 101
    while now < 101 + 208:
        now, steps = now + 4, steps + 2
        pace.note(now * NS, steps, 0)
    assert pace.step_s == pytest.approx(1.5, abs=0.02)


def test_steps_that_are_counted_from_zero_again_are_no_pace() -> None:
    """When somebody begins to count himself, the hook's count is forgotten."""
    pace = Pace(0)
    pace.note(10 * NS, 10, 0)
    pace.note(11 * NS, 1, 0)
    assert pace.step_s is None
    pace.note(13 * NS, 3, 0)
    assert pace.step_s is not None


def group(usd: str | None, held: str = "2") -> Group:
    return Group("X", (), Decimal(held), "local", "X", usd_per_hour=None if usd is None else Decimal(usd))


def test_money_is_unknown_as_soon_as_a_part_of_it_is() -> None:
    """Unknown is never zero; time is known all the same."""
    account = Account()
    account.add(group("36"), Decimal(5), Decimal("0.1"), None, Sums())
    assert account.with_open([group("3.60")], Decimal(10)) == (30, 0, Decimal("0.12"))
    assert account.idle is None
    account.add(group(None), Decimal(5), None, None, Sums())
    assert account.with_open([group("3.60")], Decimal(10)) == (40, 0, None)
    assert hourly([]) is None
    assert hourly([group("1"), group(None)]) is None
    assert hourly([group("1"), group("2")], 1800) == 3


def test_idle_is_never_negative_and_unknown_without_a_measurement() -> None:
    """A measurement may be off by its bound, and say more than all."""
    assert idle_usd(group("3.60"), Decimal(10), None) == (None, None)
    assert idle_usd(group("3.60"), Decimal(10), 20.5) == (0, 0)
    assert idle_usd(group("3.60"), Decimal(10), 5.0) == (15, Decimal("0.015"))
    assert idle_usd(group(None), Decimal(10), 5.0) == (15, None)


def test_a_figure_that_one_device_does_not_tell_is_unknown_of_all() -> None:
    """Half of the truth would look like idle time."""
    sums = Sums()
    assert sums.get("busy_s") is None
    sums.add(Measured(busy_s=2.0, busy_source="gpm", busy_error_s=0.1, energy_j=5.0))
    sums.add(Measured(busy_s=3.0, busy_source="nvml_samples", busy_error_s=0.2), 0.5)
    assert sums.get("busy_s") == 3.5
    assert sums.error == pytest.approx(0.2)
    assert sums.source == "gpm+nvml_samples"
    assert sums.get("energy_j") is None
    other = Sums()
    other.merge(sums)
    other.merge(Sums())
    assert other.values == sums.values


def usage(rank: int, **more: object) -> GpuUsage:
    values: dict[str, object] = {
        "run": "r", "attempt": 1, "rank": rank, "world": 2, "models": {"X": 1}, "uuids": (f"GPU-{rank}",), "elapsed_s": 10.0 + rank,
        "allocated_s": Decimal(10), "busy_s": 5.0, "busy_source": "gpm", "busy_error_s": 0.1, "sm_active_s": None, "tensor_active_s": None,
        "memory_gib_s": None, "energy_j": 7.0, "attribution": "pid", "stall_s": 1.0, "steps": 4 + rank, "mfu": 0.4, "cost": Decimal("0.1"),
        "idle_cost": Decimal("0.05"), "usd_per_hour": Decimal(36), "price_as_of": "2026-11-01", "price_source": "s", "wasted_s": Decimal(2),
        "wasted_cost": None, "phases": {"step": 9.0},
    }  # fmt: skip
    return GpuUsage(**{**values, **more})  # type: ignore[arg-type]


def test_ranks_add_up() -> None:
    """Devices, seconds and money are sums, steps and time those of the rank that has most; what one does not know nobody does."""
    found = total([usage(0), usage(1, mfu=0.2, busy_source="nvml_samples")])
    assert (found.rank, found.models, found.uuids) == (-1, {"X": 2}, ("GPU-0", "GPU-1"))
    assert (found.allocated_s, found.busy_s, found.cost, found.wasted_cost) == (20, 10.0, Decimal("0.2"), None)
    assert (found.steps, found.elapsed_s, found.busy_source) == (5, 11.0, "gpm+nvml_samples")
    assert found.mfu == pytest.approx(0.3)
    assert found.phases == {"step": 18.0}
    assert (found.idle_s, found.utilisation) == (10.0, 0.5)
    assert total([usage(0), usage(1, busy_s=None)]).idle_s is None
    assert total([usage(1)]) == usage(1)
