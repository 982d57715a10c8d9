"""Nodes, operations and the table of a reservation's life."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    TRANSITIONS,
    Adjust,
    Extend,
    Node,
    Operation,
    Reserve,
    Settle,
    State,
)
from aifinops.budgets.stores.memory import MemoryStore

NODES = (Node("a", 0, "USD", 10),)


def test_only_an_expiry_can_be_put_right() -> None:
    """Settled and released are for good; a forfeit is open for the late truth and nothing else."""
    ends = {State.SETTLED, State.RELEASED}
    assert not [before for before, _ in TRANSITIONS if before in ends]
    assert {event: after for (before, event), after in TRANSITIONS.items() if before is State.FORFEITED} == {
        "settle": State.SETTLED,
        "release": State.RELEASED,
    }


def test_an_expiry_never_gives_back() -> None:
    """Whatever was held when the lease ran out counts as spent, sent or not."""
    assert {after for (_, event), after in TRANSITIONS.items() if event == "expire"} == {State.FORFEITED}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reserve("a", NODES, (1, 2), 0, 1),
        lambda: Reserve("a", NODES, (-1,), 0, 1),
        lambda: Reserve("a", NODES, (MAX_AMOUNT + 1,), 0, 1),
        lambda: Settle("a", NODES, (), 0),
        lambda: Settle("a", NODES, (-1,), 0),
        lambda: Extend("a", NODES, 0, 1, (MAX_AMOUNT + 1,)),
        lambda: Extend("a", NODES, 0, 1, ()),
        lambda: Adjust("a", NODES, (-MAX_AMOUNT - 1,), 0),
    ],
)
def test_amounts_that_no_store_could_keep_are_refused(make: type[Operation[object]]) -> None:
    """An operation is checked when it is made, so that a store may take it as it is."""
    with pytest.raises(ValueError, match=r"nodes and|must be between 0 and"):
        make()


def test_limit_and_amount_together_fit_an_int64() -> None:
    """A store that compares in 64 bits never overflows."""
    assert MAX_AMOUNT + MAX_AMOUNT < 2**63


def test_operations_cannot_be_changed() -> None:
    """They are values: what was asked for stays what it was."""
    with pytest.raises(FrozenInstanceError):
        NODES[0].limit = 5  # type: ignore[misc]


async def test_execute_and_aexecute_are_one_operation() -> None:
    """Both ways lead to the same balances."""
    store = MemoryStore()
    assert Reserve("a", NODES, (6,), 0, 1).execute(store).applied
    assert not (await Reserve("b", NODES, (6,), 0, 1).aexecute(store)).applied
    assert (await Settle("a", NODES, (2,), 0).aexecute(store)).applied
    assert (await Reserve("b", NODES, (6,), 0, 1).aexecute(store)).applied
