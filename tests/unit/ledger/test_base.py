"""Keys, queries and groups."""

from __future__ import annotations

from decimal import Decimal

import pytest

from aifinops.errors import ConfigurationError
from aifinops.ledger.base import Group, GroupKey, Query, add_quantities, group_key, group_keys
from aifinops.testing.ledger import example_charge
from aifinops.usage import Quantity


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "gpt-5-mini"),
        ("response_model", "gpt-5-mini-2025-08-07"),
        ("team", "search"),
        ("tag:team", "search"),
        ("tag:model", ""),
        ("x.y-z", "dotted"),
        ("nobody", ""),
        ("month", "2025-11"),
        ("day", "2025-11-24"),
        ("hour", "2025-11-24T02"),
    ],
)
def test_a_key_reads_field_time_or_tag(name: str, value: str) -> None:
    """Fields and times have fixed names; everything else is a tag."""
    assert group_key(name).of(example_charge(1)) == value


@pytest.mark.parametrize("name", ["", "tag:", "a b", "1st", "model;", "x" * 65, "tag:tag:model", "é"])
def test_what_can_be_no_key_is_refused(name: str) -> None:
    """The error lists what can."""
    with pytest.raises(ConfigurationError, match="response_model"):
        group_key(name)


def test_text_in_place_of_a_list_is_refused() -> None:
    """Its letters would be taken for tags."""
    with pytest.raises(ConfigurationError, match=r"\['team', 'model'\]"):
        group_keys("team,model")


def test_a_period_holds_its_beginning_and_not_its_end() -> None:
    """Two periods that touch share no entry."""
    query = Query(since_ns=10, until_ns=20)
    assert [at for at in (9, 10, 19, 20) if query.covers(at)] == [10, 19]
    assert Query().covers(0)


def test_filters_are_read_once() -> None:
    """One value and several values become the same form."""
    filters = Query(where={"model": "a", "user": ["b", "c"]}).filters()
    assert filters == ((GroupKey("model", "field", "model"), ("a",)), (GroupKey("user", "tag", "user"), ("b", "c")))


def test_a_group_gives_inclusive_totals() -> None:
    """Cached tokens are a part of the input, reasoning a part of the output."""
    group = Group(
        (),
        "USD",
        quantities={
            "input_tokens": 1,
            "cache_read_tokens": 2,
            "output_tokens": 4,
            "reasoning_tokens": 8,
            "requests": 9,
        },
    )
    assert (group.input_tokens, group.cached_tokens) == (3, 2)
    assert (group.output_tokens, group.reasoning_tokens) == (12, 8)
    assert (group.tokens, group.gpu_seconds) == (15, 0)


def test_sums_of_quantities_are_exact() -> None:
    """Not rounded to the 28 digits of the default decimal context."""
    total: dict[str, Quantity] = {}
    add_quantities(total, {"gpu_seconds": 10**30})
    add_quantities(total, {"gpu_seconds": Decimal("1e-20")})
    assert total == {"gpu_seconds": Decimal(f"1{'0' * 30}.{'0' * 19}1")}
