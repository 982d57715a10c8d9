"""The language of a provider's row."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.errors import ImpossibleUsage
from aifinops.integrations.paths import MOST, compiled, count, twin

BODY = {
    "usage": {"a": 3, "b": 4, "ms": 1500, "none": None, "promptTokenCount": 7},
    "details": [{"modality": "AUDIO", "n": 5}, {"modality": "TEXT", "n": 2}, {"modality": "audio", "n": 1}],
    "output": [
        {"type": "call", "action": {"type": "search"}},
        {"type": "call", "action": {"type": "open"}},
        {"type": "call"},
        {"type": "message"},
    ],
    "choices": [{"queries": ["x", "y"]}, {"queries": ["z"]}, {}],
    "tier": "",
    "other_tier": "FLEX",
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("usage.a", 3),
        ("usage.missing", None),
        ("usage.none | usage.b", 4),
        ("usage.a | usage.b", 3),
        ("usage.a + usage.b", 7),
        ("usage.a + usage.none + usage.missing", 3),
        ("usage.none + usage.missing | usage.b + usage.a", 7),
        ("usage.ms / 1000", Decimal("1.5")),
        ("usage.ms / 500", 3),
        ("details[modality=AUDIO].n", 6),
        ("details[modality!=audio].n", 2),
        ("details[].n", 8),
        ("details[modality=VIDEO].n", None),
        ("usage[a=3].b", 4),
        ("usage[a=4].b", None),
        ("usage[missing!=true].b", 4),
        ("#output[type=call]", 3),
        ("#output[type=call][action.type=search]", 1),
        ("#output[type=call][action.type!=search]", 2),
        ("#output[type=none]", 0),
        ("#nothing[type=call]", 0),
        ("#output", 4),
        ("#choices[].queries", 3),
        ("?choices[].queries", 1),
        ("?output[type=none]", 0),
        ("usage.a.b.c", None),
        ("details.n", None),
    ],
)
def test_numbers(text: str, value: Any) -> None:
    """Alternatives, sums, tests, counts and units, each as its line in the table of the language says."""
    assert compiled(text).number("requests", BODY) == value


def test_dicts_objects_and_both_spellings_are_read_alike() -> None:
    """A camelCase name finds the snake_case field of an SDK's object; a snake_case name has no other spelling."""
    snake = SimpleNamespace(usage=SimpleNamespace(prompt_token_count=7))
    assert compiled("usage.promptTokenCount").number("input_tokens", BODY) == 7
    assert compiled("usage.promptTokenCount").number("input_tokens", snake) == 7
    assert (twin("promptTokenCount"), twin("prompt_token_count")) == ("prompt_token_count", "")


@pytest.mark.parametrize(
    ("text", "names", "word"),
    [
        ("tier | other_tier", {}, "FLEX"),
        ("tier | other_tier", {"FLEX": "flex"}, "flex"),
        ("other_tier | tier", {"FLEX": ""}, ""),
        ("=batch", {}, "batch"),
        ("usage.a", {}, ""),
    ],
)
def test_words(text: str, names: dict[str, str], word: str) -> None:
    """The first text that is not empty under its standard name; a number is no text."""
    assert compiled(text).word(BODY, names) == word


@pytest.mark.parametrize("text", ["", "a..b", "a[b", "a + ", "-a"])
def test_what_is_not_of_the_language_is_refused(text: str) -> None:
    """A mistake in a row is seen when it is compiled, not in an answer."""
    with pytest.raises(ValueError, match="no step of a path"):
        compiled(text)


@pytest.mark.parametrize(
    ("meter", "value", "quantity"),
    [
        ("input_tokens", 5, 5),
        ("input_tokens", 5.0, 5),
        ("audio_seconds", 2.5, Decimal("2.5")),
        ("input_tokens", MOST, MOST),
        ("input_tokens", 0, 0),
    ],
)
def test_counts(meter: str, value: Any, quantity: Any) -> None:
    """Whole numbers, also as floats; parts of a second are exact decimals."""
    found = count(meter, value)
    assert (found, type(found)) == (quantity, type(quantity))


@pytest.mark.parametrize(
    "value", [True, -1, -0.5, float("nan"), float("inf"), 2.5, "5", MOST + 1, 10**40, [1], {"a": 1}, Decimal("NaN")]
)
def test_what_is_no_count_is_refused_with_its_meter(value: Any) -> None:
    """The message names meter and value, and stays short."""
    with pytest.raises(ImpossibleUsage, match=r"^input_tokens=.* is no count") as caught:
        count("input_tokens", value)
    assert len(str(caught.value)) < 80


@given(st.floats(0, 1e9))
def test_a_fraction_of_a_second_loses_nothing(seconds: float) -> None:
    """What is read is the shortest decimal that is this float."""
    found = count("audio_seconds", seconds)
    assert found is not None
    assert float(found) == seconds
