"""`af.estimate`: expected, at least and at most, before the call."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

import aifinops as af

TEXT = "What is the capital of France? " * 50
MESSAGES = [{"role": "user", "content": TEXT}]


def test_the_expected_amount_is_near_and_the_bound_far() -> None:
    """A quarter of the bytes is expected, every byte is bounded; the answer counts at its limit in both."""
    cost = af.estimate("gpt-4o", messages=MESSAGES, max_tokens=100)
    answer = Decimal("0.001")  # 100 tokens at $10 a million
    assert cost.basis == "estimated"
    assert cost.amount is not None
    assert cost.upper is not None
    assert Decimal("0.0008") < cost.amount - answer < Decimal("0.0011")
    assert Decimal("0.0038") < cost.upper - answer < Decimal("0.0045")
    assert cost.lower == 0
    assert [line.meter for line in cost.lines] == ["input_tokens", "output_tokens"]
    assert sum(line.amount for line in cost.lines) == cost.amount
    assert any(note.startswith("prompt: ") and " tokens by " in note for note in cost.notes)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash"])
@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        "",
        [{"type": "image_url", "image_url": {"url": "https://e.test/x.png"}}],
        "漢字" * 200,
        '{"a": [1, 2]}' * 50,
    ],
)
def test_expected_lies_between_the_bounds(model: str, content: Any) -> None:
    """For text of any kind, for pictures, with and without an output limit."""
    for limit in (None, 0, 50):
        cost = af.estimate(model, messages=[{"role": "user", "content": content}], max_tokens=limit)
        assert cost.lower is not None
        assert cost.amount is not None
        assert cost.upper is not None
        assert cost.lower <= cost.amount <= cost.upper


def test_the_model_decides_what_a_picture_costs() -> None:
    """gpt-4o-mini takes 33 times the tokens of gpt-4o for the same picture, and the bound knows."""
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://e.test/x.png"}}]}]
    small = af.estimate("gpt-4o-mini", messages=picture, max_tokens=0)
    assert small.upper is not None
    assert small.upper >= 48_169 * Decimal("0.15") / 1_000_000


def test_the_region_raises_what_is_expected_as_it_raises_the_bound() -> None:
    """A regional endpoint costs a tenth more, in the middle of the estimate too."""
    plain, regional = (
        af.estimate("gpt-5.4", messages=MESSAGES, max_tokens=100, provider="openai", region=region)
        for region in ("", "eu")
    )
    assert plain.amount is not None
    assert plain.upper is not None
    assert regional.amount == plain.amount * Decimal("1.1")
    assert regional.upper == plain.upper * Decimal("1.1")


def test_an_unknown_model_has_no_estimate() -> None:
    """Unknown is never zero."""
    cost = af.estimate("no-such-model", messages=MESSAGES)
    assert (cost.amount, cost.basis) == (None, "unknown")
