"""The rule, on its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.budgets.policy import Balance, decide, fits

amounts = st.integers(0, 200)
balances = st.builds(
    Balance, limit=st.none() | amounts, spent=amounts, reserved=amounts, resets_at=st.none() | st.integers(1000, 9000)
)


def test_what_fits_exactly_is_allowed() -> None:
    """The limit itself may be spent, one step more may not."""
    balance = Balance(limit=100, spent=60, reserved=30)
    assert decide([balance], [10], 0).allowed
    assert not decide([balance], [11], 0).allowed
    assert balance.remaining == 10


def test_held_is_not_spent() -> None:
    """What only collides with money held by calls in flight is refused as transient."""
    balance = Balance(limit=100, spent=60, reserved=30)
    assert decide([balance], [40], 0).transient
    assert not decide([balance], [41], 0).transient


def test_every_node_must_agree() -> None:
    """One node without room refuses for all, and is the one that is named."""
    decision = decide([Balance(100), Balance(5), Balance(100)], [6, 6, 6], 17)
    assert not decision.allowed
    assert decision.refusal is not None
    assert (decision.refusal.index, decision.refusal.asked, decision.at) == (1, 6, 17)


def test_a_lasting_refusal_is_named_before_a_transient_one() -> None:
    """Waiting for the outer node would not help, so the inner one is the reason."""
    decision = decide([Balance(10, reserved=10), Balance(10, spent=10)], [1, 1], 0)
    assert [refusal.transient for refusal in decision.refusals] == [True, False]
    assert decision.refusal is not None
    assert decision.refusal.index == 1
    assert not decision.transient


def test_what_takes_nothing_needs_no_room() -> None:
    """A free call passes a budget that is used up or that allows nothing."""
    assert decide([Balance(0), Balance(10, spent=25)], [0, 0], 0).allowed
    assert not decide([Balance(0)], [1], 0).allowed


def test_without_a_limit_everything_fits() -> None:
    """A node without a limit accumulates."""
    assert fits(None, 10**30, 10**30, 10**30)
    assert Balance(None, spent=5).remaining is None


def test_when_to_ask_again() -> None:
    """At the latest reset of what is spent; at once when it is only held; never when no window would help."""
    spent = Balance(10, spent=10, resets_at=500)
    assert decide([spent, Balance(10, spent=10, resets_at=900)], [1, 1], 100).retry_at == 900
    assert decide([Balance(10, reserved=10, resets_at=900)], [1], 100).retry_at == 100
    assert decide([spent, Balance(10, spent=10)], [1, 1], 100).retry_at is None
    assert decide([spent], [11], 100).retry_at is None, "it is larger than the whole limit"


def test_lengths_must_agree() -> None:
    """A missing amount is a mistake, not a zero."""
    with pytest.raises(ValueError, match="argument 2"):
        decide([Balance(1), Balance(1)], [1], 0)


@given(st.lists(st.tuples(balances, amounts), max_size=5))
def test_allowed_means_within_every_limit(pairs: list[tuple[Balance, int]]) -> None:
    """After an allowed call no node that gave something is above its limit; a refused one has a node that would be."""
    decision = decide([pair[0] for pair in pairs], [pair[1] for pair in pairs], 0)
    over = [
        index
        for index, (one, amount) in enumerate(pairs)
        if amount and one.limit is not None and one.spent + one.reserved + amount > one.limit
    ]
    assert [refusal.index for refusal in decision.refusals] == over
    assert decision.allowed == (not over)


@given(balances, amounts, amounts)
def test_less_is_never_refused_where_more_is_allowed(balance: Balance, first: int, second: int) -> None:
    """The rule is monotone."""
    less, more = sorted((first, second))
    assert decide([balance], [less], 0).allowed or not decide([balance], [more], 0).allowed
