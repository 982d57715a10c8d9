"""Dividing a cluster's bill: the sources' examples, and that nothing is ever lost or made."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.errors import ConfigurationError
from aifinops.gpu.allocation import (
    Split,
    adjusted_gpu_hours,
    allocate,
    charge_back,
    device_share,
    share_out,
    workload_hours,
)

D = Decimal


def test_the_greater_of_request_and_usage() -> None:
    """OpenCost: who requests two and uses one pays for two, who requests one and uses two, too."""
    assert workload_hours(D(2), D(1)) == workload_hours(D(1), D(2)) == 2


def test_idle_is_what_nobody_kept() -> None:
    """A node of 8 GPUs at 4 USD for 10 hours, half of it kept: half of its cost is idle, a line of its own."""
    made = allocate(320, D(80), {"a": (D(20), D(5)), "b": (D(10), D(20))})
    assert made == Split({"a": 80, "b": 80}, 160, 320)
    assert made.idle_share == D("0.5")


def test_rules_for_idle() -> None:
    """It is spread by what each pays, or equally."""
    jobs = {"a": (D(30), D(0)), "b": (D(10), D(0))}
    assert allocate(320, D(80), jobs, idle="weighted").parts == {"a": 240, "b": 80}
    assert allocate(320, D(80), jobs, idle="even").parts == {"a": 200, "b": 120}
    assert allocate(320, D(80), {}, idle="weighted") == Split({}, 320, 320)


def test_more_used_than_there_was() -> None:
    """Where more was used than there was, the cost is divided by usage: nothing is negative, nothing idle."""
    assert allocate(100, D(10), {"a": (D(15), D(15)), "b": (D(5), D(5))}) == Split({"a": 75, "b": 25}, 0, 100)


def test_adjusted_gpu_hours() -> None:
    """NCSA charges 120 units for an H100 and 48 for an A100: an hour of the first counts 2.5 of the second."""
    weight = D(120) / D(48)
    assert adjusted_gpu_hours(D(10), type_weight=weight) == 25
    assert adjusted_gpu_hours(D(10), type_weight=weight, share=D("0.5"), priority="urgent") == 25
    assert adjusted_gpu_hours(D(10), priority="preemptible") == 5
    assert adjusted_gpu_hours(D(10), priority=D(3)) == 30
    with pytest.raises(ConfigurationError, match="priority='now' has no factor; known: urgent"):
        adjusted_gpu_hours(D(1), priority="now")


def test_the_larger_share_of_a_device() -> None:
    """A MIG instance of 2 of 7 compute and 3 of 8 memory slices keeps 3/8 from others."""
    assert device_share(D(2) / 7, D(3) / 8) == D("0.375")


def test_a_bill_adds_up_to_the_cent() -> None:
    """A hundred dollars for three equal owners: one of them pays the odd cent."""
    assert charge_back(D("100.00"), {"a": 1, "b": 1, "c": 1}) == {"a": D("33.34"), "b": D("33.33"), "c": D("33.33")}
    assert charge_back(D("100.00"), {"a": D("2.5"), "b": D("1.5")}) == {"a": D("62.50"), "b": D("37.50")}
    assert charge_back(D("10.00"), {"a": 3, "b": 1}, shared=D("4.00")) == {"a": D("10.50"), "b": D("3.50")}
    assert charge_back(D("10.00"), {"a": 3, "b": 1}, shared=D("4.00"), rule="even") == {"a": D("9.50"), "b": D("4.50")}
    assert charge_back(D("10.00"), {"a": 3, "b": 1}, shared=D("4.00"), rule="none") == {"a": D("7.50"), "b": D("2.50")}
    assert charge_back(D(1000), {"a": 1, "b": 2}, places=0) == {"a": D(333), "b": D(667)}


def test_a_credit_is_divided_like_a_bill() -> None:
    """A negative amount has negative parts, to the unit."""
    assert share_out(-10, [1, 1, 1]) == [-4, -3, -3]


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [D("nan")]])
def test_weights_that_cannot_be(weights: list[Decimal]) -> None:
    """Nothing can be divided by nothing."""
    with pytest.raises(ConfigurationError, match="weights"):
        share_out(1, weights)


def test_half_a_cent_is_no_bill() -> None:
    """An amount that is no whole number of cents is refused, rather than rounded."""
    with pytest.raises(ConfigurationError, match="more than 2 decimal places"):
        charge_back(D("1.005"), {"a": 1})
    with pytest.raises(ConfigurationError, match="0 or more"):
        allocate(-1, D(1), {})


WEIGHTS = st.lists(st.decimals(0, 10**6, places=6), min_size=1, max_size=8).filter(any)


@given(st.integers(-(10**12), 10**12), WEIGHTS)
def test_parts_add_up_and_are_near(amount: int, weights: list[Decimal]) -> None:
    """The parts add up exactly, each is within one unit of its exact share, and who weighs nothing gets nothing more than that."""
    parts = share_out(amount, weights)
    assert sum(parts) == amount
    total = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - amount * weight / total) <= 1 + D("1e-9")


@given(
    st.integers(0, 10**12),
    st.decimals(0, 10**5, places=3),
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.decimals(0, 10**4, places=3), st.decimals(0, 10**4, places=3))
    ),
    st.sampled_from(["none", "weighted", "even"]),
)
def test_an_asset_is_neither_lost_nor_made(
    cost: int, capacity: Decimal, jobs: dict[str, tuple[Decimal, Decimal]], rule: str
) -> None:
    """Whatever the rule, parts and idle are the cost of the asset to the nano-unit, also in any selection of it."""
    made = allocate(cost, capacity, jobs, idle=rule)  # type: ignore[arg-type]  # one of the three
    assert sum(made.parts.values()) + made.idle == cost
    assert all(part >= 0 for part in made.parts.values())
    assert made.idle >= 0
