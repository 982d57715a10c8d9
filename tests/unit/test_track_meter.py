"""`@track_cost(meter=...)`: a call of a function is one charge of whatever it is that it costs."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

import aifinops as af
from aifinops import runtime
from aifinops.charges import Charge
from aifinops.errors import BudgetExceeded, ConfigurationError
from aifinops.meters import METERS, define


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def searches(price: str | None = "0.005") -> Any:
    define("searches")
    if price is not None:
        af.register_price("search", provider="serp", rates={"searches": price})

    @af.track_cost(meter={"searches": 1}, sku="serp/search", feature="research")
    def find(query: str) -> list[str]:
        """Find it."""
        if query == "broken":
            raise TimeoutError("too slow")
        return [query]

    return find


def test_a_call_is_one_charge_of_its_meter() -> None:
    """With the price that was registered, the tags of the decorator, and the function as it was."""
    find = searches()
    assert find("a") == ["a"]
    assert (find.__name__, find.__doc__) == ("find", "Find it.")
    (charge,) = rows()
    assert (charge.provider, charge.model, charge.service, charge.quantities) == (
        "serp",
        "search",
        "other",
        {"searches": 1},
    )
    assert (charge.amount, charge.basis) == (5_000_000, "priced")
    assert charge.tags["feature"] == "research"
    assert [row.cost.amount for row in af.report(by=["feature"])] == [Decimal("0.005")]


def test_without_a_price_the_cost_is_unknown_and_the_usage_is_kept() -> None:
    """Never zero."""
    searches(None)("a")
    (charge,) = rows()
    assert (charge.amount, charge.basis, charge.quantities) == (None, "unknown", {"searches": 1})


def test_a_budget_holds_before_the_call() -> None:
    """The price is known before: there is room for two searches and no third, in money and in the meter itself."""
    find = searches()
    for limit in ("$0.01", "2 searches"):
        with af.budget(limit):
            find("a")
            find("a")
            with pytest.raises(BudgetExceeded):
                find("a")
    assert len(rows()) == 4


async def test_a_count_may_be_read_from_the_result() -> None:
    """Sandbox minutes that the answer tells; what the function calls is charged for itself, in the same block."""

    @af.track_cost(meter={"sandbox_minutes": lambda result: result["minutes"]})
    async def run_it(minutes: Any) -> dict[str, Any]:
        af.record(usage={"requests": 1}, cost="0.01 USD")
        return {"minutes": minutes}

    with af.track("job") as job:
        await run_it(Decimal("2.5"))
        await run_it("nothing")
    counted = [charge for charge in job.charges if charge.provider == "custom" and charge.model]
    assert [charge.quantities for charge in counted] == [{"sandbox_minutes": Decimal("2.5")}, {}]
    assert {charge.amount for charge in counted} == {None}
    assert len(job.charges) == 4


def test_a_failed_call_has_an_unknown_cost() -> None:
    """It may have been billed: between nothing and its price. The user's exception goes on."""
    with pytest.raises(TimeoutError, match="too slow"):
        searches()("broken")
    (charge,) = rows()
    assert (charge.status, charge.amount, charge.lower, charge.upper) == ("error", None, 0, 5_000_000)


@pytest.mark.parametrize(
    "arguments",
    [{"meter": {}}, {"meter": {"Not A Name": 1}}, {"meter": {"tokens": 1}}, {"meter": {"searches": 1}, "sku": "serp"}],
)
def test_what_cannot_be_is_said_when_it_is_decorated(arguments: dict[str, Any]) -> None:
    """Not in a call."""
    with pytest.raises(ConfigurationError):
        af.track_cost(**arguments)(lambda: None)


def test_generators_and_classes_are_refused() -> None:
    """A call of those is no moment at which something was bought."""

    def pieces() -> Any:
        yield 1

    for target in (pieces, Charge, 3):
        with pytest.raises(ConfigurationError, match="meter="):
            af.track_cost(meter={"searches": 1})(target)


def test_a_meter_of_the_table_is_itself() -> None:
    """Nothing that is known is made anew, and a new one is priced for each."""
    assert define("requests") is METERS["requests"]
    assert METERS[define("sandbox_minutes").name].per == 1
