"""The fake's rules of counting, and its answers to a schema."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.testing.counting import Hints, PromptCache, measure, plan, value_for, words

MESSAGES = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user"]), st.text())
)


@given(MESSAGES)
def test_never_more_than_bytes(messages: list[dict[str, str]]) -> None:
    """A bound made of UTF-8 bytes and 4 a message holds."""
    prompt = measure("m", messages, None, PromptCache(1), Hints())
    assert prompt.tokens <= sum(4 + len(message["content"].encode()) for message in messages)


@given(st.lists(MESSAGES.filter(bool), min_size=1, max_size=6))
def test_cached_is_a_part(prompts: list[list[dict[str, str]]]) -> None:
    """Cached tokens are always fewer than the prompt's, and a repeated prompt has all but its last message cached."""
    cache = PromptCache(1)
    for messages in prompts:
        first = measure("m", messages, None, cache, Hints())
        again = measure("m", messages, None, cache, Hints())
        assert 0 <= first.cached <= again.cached < again.tokens == first.tokens
        assert again.cached == again.tokens - 4 - words(messages[-1]["content"])


def test_cache_is_bounded() -> None:
    """The oldest prefixes are forgotten."""
    cache = PromptCache(1, size=2)
    parts = [("a", 5), ("b", 5)]
    assert [cache.read("m", parts), cache.read("m", parts)] == [0, 5]
    cache.read("n", [("c", 5), ("d", 5)])
    assert cache.read("m", parts) == 0


@given(st.integers(0, 400), st.one_of(st.none(), st.integers(1, 400)), st.sampled_from(["gpt-4o", "gpt-5", "o3-mini"]))
def test_plan_keeps_to_the_limit(wanted: int, limit: int | None, model: str) -> None:
    """An answer is as long as was asked for or as the limit allows, and says so when it was cut."""
    output = plan({"model": model, "max_completion_tokens": limit}, 16, Hints(output_tokens=wanted))
    assert output.tokens == (wanted if limit is None else min(wanted, limit))
    assert output.capped == (limit is not None and wanted > limit)
    assert 0 <= output.reasoning <= output.tokens
    assert output.reasoning == 0 or model != "gpt-4o"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "sample"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "string", "minLength": 8}, "samplexx"),
        ({"type": "integer", "minimum": 7}, 7),
        ({"type": "integer", "exclusiveMinimum": 7}, 8),
        ({"type": "number", "maximum": -2}, -2),
        ({"type": ["integer", "null"]}, None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 1),
        (
            {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"enum": ["x", "y"]}}}]},
            {"a": 1, "b": "x"},
        ),
        ({"allOf": [{"type": "boolean"}]}, True),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"default": 5}}}, 5),
        ({"type": "odd"}, None),
        (True, None),
    ],
)
def test_values(schema: Any, value: Any) -> None:
    """The smallest value of each kind of schema."""
    assert value_for(schema) == value


def test_recursion_ends() -> None:
    """A schema that needs itself comes to an end, by lists and by references."""
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    assert value_for(tree)["children"][0]["children"]
    endless = {"$ref": "#"}
    assert value_for(endless) is None
