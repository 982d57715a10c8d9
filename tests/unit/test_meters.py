"""The table of what can be counted, and the units that people type."""

from __future__ import annotations

import pytest

from aifinops.errors import ConfigurationError
from aifinops.meters import GROUPS, METERS, UNITS, meter, resolve_unit


def test_each_meter_is_under_its_own_name() -> None:
    """The key and the row agree, and every meter says its unit."""
    assert all(name == row.name and row.unit for name, row in METERS.items())


def test_tokens_are_the_sum_of_all_token_meters() -> None:
    """The group holds exactly the meters of the token family; each has a direction and the customary million."""
    tokens = {name for name, row in METERS.items() if row.family == "tokens"}
    assert GROUPS["tokens"] == tokens
    assert all(METERS[name].direction in {"input", "output"} and METERS[name].per == 1_000_000 for name in tokens)


def test_only_input_is_cached() -> None:
    """A cached or written token is an input token."""
    assert {row.direction for row in METERS.values() if row.cache} == {"input"}


def test_written_tokens_say_how_long_they_are_kept() -> None:
    """Each lifetime has a meter of its own, and nothing else has a lifetime."""
    times = {row.name: row.ttl for row in METERS.values() if row.ttl}
    assert set(times) == {row.name for row in METERS.values() if row.cache == "write"}
    assert len(set(times.values())) == len(times)


def test_tools_are_counted_by_calls() -> None:
    """A tool has one meter, named after it."""
    tools = [row for row in METERS.values() if row.tool]
    assert all(row.family == "calls" and row.name.startswith(row.tool) for row in tools)
    assert len({row.tool for row in tools}) == len(tools)


def test_the_table_cannot_be_changed() -> None:
    """Facts are read-only."""
    with pytest.raises(TypeError):
        METERS["input_tokens"] = METERS["requests"]  # type: ignore[index]


def test_a_known_meter_is_found() -> None:
    """The row comes back as it is in the table."""
    assert meter("gpu_seconds") is METERS["gpu_seconds"]


def test_an_unknown_meter_is_answered_with_the_nearest() -> None:
    """A misspelt name gets the one that was probably meant."""
    with pytest.raises(ConfigurationError, match=r"'input_token'.*input_tokens"):
        meter("input_token")


@pytest.mark.parametrize(
    ("typed", "resolved"),
    [
        ("tokens", ("tokens", 1)),
        ("token", ("tokens", 1)),
        ("gpu_hours", ("gpu_seconds", 3600)),
        (" GPU hours ", ("gpu_seconds", 3600)),
        ("GPU-Hour", ("gpu_seconds", 3600)),
        ("cpu_hours", ("cpu_seconds", 3600)),
        ("calls", ("requests", 1)),
        ("output_tokens", ("output_tokens", 1)),
    ],
)
def test_units_are_read_as_people_type_them(typed: str, resolved: tuple[str, int]) -> None:
    """Case, spaces, hyphens and singular do not matter."""
    assert resolve_unit(typed) == resolved


def test_every_other_spelling_leads_to_a_meter_or_a_group() -> None:
    """No alias points nowhere."""
    assert all(name in METERS or name in GROUPS for name, _ in UNITS.values())


@pytest.mark.parametrize("typed", ["bananas", "", "gpuhours"])
def test_an_unknown_unit_is_answered_with_what_to_type(typed: str) -> None:
    """The message has the word and examples that work."""
    with pytest.raises(ConfigurationError, match="unknown unit") as caught:
        resolve_unit(typed)
    assert repr(typed) in str(caught.value)
    assert '"200 gpu_hours"' in str(caught.value)
