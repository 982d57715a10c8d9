"""Quantities: validated, disjoint, and their totals."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aifinops as af
from aifinops.clock import to_ns
from aifinops.errors import ConfigurationError, ImpossibleUsage
from aifinops.meters import METERS
from aifinops.usage import Sku, Usage, input_total, leaves, moment, output_total, quantities, tokens_total

COUNTS = st.dictionaries(st.sampled_from(sorted(METERS)), st.integers(min_value=0, max_value=10**9))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (3.0, 3),
        (0.1, Decimal("0.1")),
        ("12", 12),
        ("1.5", Decimal("1.5")),
        (Decimal("2.0"), 2),
        (10**30, 10**30),
    ],
)
def test_quantities_are_exact(value: object, expected: int | Decimal) -> None:
    """Whole numbers are ints however they were written, others the Decimal that was typed."""
    clean = quantities({"gpu_seconds": value})
    assert clean == {"gpu_seconds": expected}
    assert type(clean["gpu_seconds"]) is type(expected)


def test_zero_is_no_usage() -> None:
    """A meter that counted nothing is not there."""
    assert quantities({"input_tokens": 0, "output_tokens": 0.0, "requests": "0"}) == {}


@pytest.mark.parametrize("value", [True, None, [], {}, "many", float("nan"), float("inf"), "NaN", -1, -0.5, "-3"])
def test_an_impossible_quantity_is_refused_by_name(value: object) -> None:
    """The message has the meter and the value."""
    with pytest.raises(ImpossibleUsage, match="input_tokens=") as caught:
        quantities({"input_tokens": value})
    assert repr(value) in str(caught.value)


def test_an_unknown_meter_is_refused() -> None:
    """Nothing is counted under a name that no price and no budget knows."""
    with pytest.raises(ConfigurationError, match="output_tokens"):
        quantities({"output_token": 3})


def test_the_fresh_leaf_is_what_its_parts_leave() -> None:
    """An inclusive total is taken apart."""
    assert leaves(100, {"cache_read_tokens": 60, "input_audio_tokens": 15}, whole_name="prompt_tokens") == 25


def test_parts_above_their_whole_name_both_numbers() -> None:
    """A contradiction is never turned into a negative count."""
    with pytest.raises(ImpossibleUsage, match=r"a 60 \+ c 50 = 110 is above prompt_tokens 100"):
        leaves(100, {"a": 60, "b": 0, "c": 50}, whole_name="prompt_tokens")


@given(st.lists(st.integers(min_value=0, max_value=10**9), max_size=4), st.integers(min_value=0, max_value=10**9))
def test_leaves_add_up_to_the_whole(parts: list[int], rest: int) -> None:
    """Nothing is lost or counted twice."""
    named = {str(index): part for index, part in enumerate(parts)}
    assert leaves(sum(parts) + rest, named, whole_name="whole") == rest


@given(COUNTS)
def test_each_token_is_in_one_total(counts: dict[str, int]) -> None:
    """Input and output share nothing and make up all tokens; other meters are in neither."""
    assert input_total(counts) + output_total(counts) == tokens_total(counts)
    assert tokens_total(counts) == sum(value for name, value in counts.items() if name.endswith("_tokens"))


def test_totals_are_inclusive() -> None:
    """What is reported to OpenTelemetry has cached and reasoning tokens in it."""
    counts = {
        "input_tokens": 10,
        "cache_read_tokens": 20,
        "cache_write_1h_tokens": 5,
        "output_tokens": 3,
        "reasoning_tokens": 4,
    }
    assert (input_total(counts), output_total(counts)) == (35, 7)


def test_usage_has_defaults_that_cannot_be_shared_by_accident() -> None:
    """Bounds are empty and read-only unless given."""
    usage = Usage({"requests": 1}, Sku("openai", "gpt-5-mini"))
    assert (usage.at, usage.raw, usage.estimated, dict(usage.lower), dict(usage.upper)) == (0, None, False, {}, {})
    with pytest.raises(TypeError):
        usage.lower["requests"] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        (" 2026-01-02T03:04:05Z ", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        (date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC)),
        (datetime(2026, 1, 2, 3), datetime(2026, 1, 2, 3, tzinfo=UTC)),  # noqa: DTZ001 - a naive one is the point
    ],
)
def test_a_moment_is_read_in_every_form(given: Any, expected: datetime) -> None:
    """ISO 8601 text, a date, a datetime, nanoseconds; UTC unless said otherwise."""
    assert moment(given) == to_ns(expected)
    assert moment(to_ns(expected)) == to_ns(expected)


@pytest.mark.parametrize("given", ["", "yesterday", "2026-13-01", True, None, 1.5, b"2026-01-01", []])
def test_what_is_no_moment_says_what_to_type(given: Any) -> None:
    """The error names the argument, what was given and the forms."""
    with pytest.raises(ConfigurationError, match=r'until=.* is no moment; write "2026-11-01"'):
        moment(given, "until")


@pytest.mark.parametrize(
    "ask",
    [
        lambda at: af.price("gpt-4o", input_tokens=1, at=at),
        lambda at: af.estimate("gpt-4o", input="a", max_tokens=1, at=at),
        lambda at: af.price_self_hosted("H100", tokens_per_second=1, utilisation=1, usd_per_gpu_hour="2", at=at),
        lambda at: af.price_response(_ANSWER, "openai", at=at),
        lambda at: af.record(usage={"requests": 1}, at=at).at,
    ],
    ids=["price", "estimate", "price_self_hosted", "price_response", "record"],
)
def test_every_question_takes_its_moment_in_every_form(ask: Any) -> None:
    """The price is that of the moment, however it is written; what is no moment is a sentence, not an AttributeError."""
    assert ask("2025-06-01") == ask(date(2025, 6, 1)) == ask(datetime(2025, 6, 1, tzinfo=UTC))
    with pytest.raises(ConfigurationError, match="at='then' is no moment"):
        ask("then")


def test_the_price_of_a_text_date_is_that_of_the_day() -> None:
    """o3 became cheaper on 2025-06-10."""
    before, after = (af.price("o3", input_tokens=1_000_000, at=day).amount for day in ("2025-06-09", "2025-06-10"))
    assert (before, after) == (Decimal(10), Decimal(2))


_ANSWER = {
    "object": "chat.completion", "id": "c", "created": 1, "model": "gpt-4o",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip
