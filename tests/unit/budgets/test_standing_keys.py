"""Keys of budgets, there and back."""

from __future__ import annotations

import pytest

from aifinops.budgets.budget import ActiveBudget, Budget, Window


@pytest.mark.parametrize(
    "per", ["minute", "hour", "day", "week", "week from sunday", "month", "total", "rolling 90 min"]
)
@pytest.mark.parametrize("tz", ["UTC", "Europe/Berlin"])
def test_a_key_tells_name_and_window(per: str, tz: str) -> None:
    """Whoever reads a store knows what its keys mean."""
    active = ActiveBudget(Budget.parse("$1", name="a.b:c/d @-", per=per, tz=tz))
    name, window = ActiveBudget.parse_key(active.key)
    assert name == "a.b:c/d @-"
    assert window == (Window(window.kind, span=window.span) if window.span or per == "total" else active.budget.window)


def test_a_block_has_no_name() -> None:
    """Its key is its run."""
    active = ActiveBudget(Budget.parse("$1"))
    assert ActiveBudget.parse_key(active.key) == (active.run_id, Window("run"))
