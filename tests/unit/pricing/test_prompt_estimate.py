"""The prompt tokens to expect: by tokenizer, by what was learned, by length; and its structure, maker by maker."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.pricing import encodings
from aifinops.pricing.tokens import UNBOUNDED, prompt_estimate, text_upper_bound

WORDS = "gpt-4o"
"""A model that is counted with a tokenizer: one token a word, in these tests."""


@pytest.fixture
def one_token_a_word(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A faster tokenizer is installed, whose counts can be read off a test."""
    module = types.ModuleType("toktok")
    module.__version__ = "1"  # type: ignore[attr-defined]
    module.batch_count = lambda texts, encoding, _: [  # type: ignore[attr-defined]
        encodings._PROVED[encoding] if text == encodings._PROOF else len(text.split()) for text in texts
    ]
    monkeypatch.setitem(sys.modules, "toktok", module)
    monkeypatch.setattr(encodings, "_counters", {})
    encodings._toktok.cache_clear()
    yield
    encodings._toktok.cache_clear()


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setitem(sys.modules, "toktok", None)
    monkeypatch.setattr(encodings, "_counters", {})
    encodings._toktok.cache_clear()
    yield
    encodings._toktok.cache_clear()


def chat(*messages: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"model": WORDS, "messages": list(messages), **rest}


SAY = {"role": "user", "content": "one two three"}
IN_A_MESSAGE = 3 + 1  # its frame, and its role


@pytest.mark.usefixtures("one_token_a_word")
@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (chat(SAY), 3 + IN_A_MESSAGE + 3),
        (chat(SAY, SAY), 2 * (3 + IN_A_MESSAGE) + 3),
        (chat({**SAY, "name": "ann"}), 3 + IN_A_MESSAGE + 2 + 3),
        (chat({"role": "user", "content": [{"type": "text", "text": "one two"}]}), 2 + IN_A_MESSAGE + 3),
        ({"model": WORDS, "input": "one two"}, 2 + IN_A_MESSAGE + 3),
        ({"model": WORDS, "input": "one two", "instructions": "be kind"}, 4 + 2 * IN_A_MESSAGE + 3),
        ({"model": WORDS, "input": [SAY]}, 3 + IN_A_MESSAGE + 3),
        ({"model": "gpt-3.5-turbo-instruct", "prompt": "one two"}, 2),
        ({"model": "gpt-3.5-turbo-instruct", "prompt": ["one two", "three"]}, 3),
        ({"model": "gpt-3.5-turbo-instruct", "prompt": [11, 12, 13]}, 3),
        ({"model": "text-embedding-3-small", "input": "one two"}, 2),
        ({"model": "text-embedding-3-small", "input": ["one", "two"]}, 2),
        ({"model": "text-embedding-3-small", "input": [[1, 2], [3]]}, 3),
        # Identifiers are not shown to the model.
        (chat({"role": "tool", "content": "one", "tool_call_id": "call 1 2 3"}), 1 + IN_A_MESSAGE + 3),
        (
            {"model": WORDS, "input": [SAY, {"type": "reasoning", "encrypted_content": "a b c"}]},
            3 + IN_A_MESSAGE + 3 + 3,
        ),
    ],
)
def test_the_chat_format_of_openai(body: dict[str, Any], tokens: int) -> None:
    """Three tokens around each message, one role, three to begin the answer; none of that around plain prompts."""
    assert prompt_estimate(body) == (tokens, "tokenizer")


@pytest.mark.usefixtures("one_token_a_word")
def test_tools_are_counted_as_the_declarations_that_the_model_reads() -> None:
    """Not as JSON: descriptions, names and types, with references followed and recursion ended."""
    parameters = {
        "type": "object",
        "required": ["city"],
        "properties": {
            "city": {"type": "string", "description": "The city"},
            "unit": {"enum": ["c", "f"]},
            "days": {"type": "array", "items": {"type": "integer"}},
            "tree": {"$ref": "#/$defs/Tree"},
            "any": True,
        },
        "$defs": {"Tree": {"type": "object", "properties": {"child": {"$ref": "#/$defs/Tree"}}}},
    }
    plain = prompt_estimate(chat(SAY)).tokens
    bare = prompt_estimate(chat(SAY, tools=[{"type": "function", "function": {"name": "f"}}])).tokens
    full = {"type": "function", "function": {"name": "f", "description": "Say it", "parameters": parameters}}
    counted = prompt_estimate(chat(SAY, tools=[full])).tokens
    assert plain < bare < counted < bare + 60
    # A system message makes room for tools that is otherwise made for them.
    system = {"role": "system", "content": "x"}
    assert prompt_estimate(chat(system, SAY, tools=[full])).tokens == counted + 1 + IN_A_MESSAGE - 4


@pytest.mark.usefixtures("one_token_a_word")
def test_a_schema_of_the_answer_is_part_of_the_prompt() -> None:
    """In the chat and in the responses form."""
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "x", "description": "a b c", "schema": {"title": "one two"}},
    }
    assert prompt_estimate(chat(SAY, response_format=schema)).tokens > prompt_estimate(chat(SAY)).tokens + 3
    form = {"format": {"type": "json_schema", "name": "x", "schema": {"title": "one two"}}}
    plain = prompt_estimate({"model": WORDS, "input": "one"}).tokens
    assert prompt_estimate({"model": WORDS, "input": "one", "text": form}).tokens > plain
    assert prompt_estimate({"model": WORDS, "input": "one", "text": {"format": {"type": "text"}}}).tokens == plain


@pytest.mark.usefixtures("one_token_a_word")
def test_pictures_count_by_their_formula() -> None:
    """The base of a tile model alone when little detail is asked for."""
    picture = {"type": "image_url", "image_url": {"url": "https://e.test/x.png", "detail": "low"}}
    assert prompt_estimate(chat({"role": "user", "content": [picture]})).tokens == 85 + IN_A_MESSAGE + 3


@pytest.mark.usefixtures("no_tokenizer")
def test_without_a_tokenizer_what_was_learned_counts_then_the_length() -> None:
    """The share of the bound that earlier prompts had; a quarter of the bytes without any."""
    body = {"model": "claude-opus-4-8", "system": "x" * 400, "messages": [{"role": "user", "content": "y" * 400}]}
    bound = text_upper_bound(body)
    assert prompt_estimate(body, share=0.25) == (round(bound / 4), "learned")
    tokens, by = prompt_estimate(body)
    assert by == "length"
    assert 200 <= tokens <= 220
    elsewhere = {**body, "mcp_servers": [{}]}
    assert text_upper_bound(elsewhere) == UNBOUNDED
    assert prompt_estimate(elsewhere, share=0.25).by == "length"


@pytest.mark.usefixtures("no_tokenizer")
def test_gemini_counts_what_is_said_and_nothing_around_it() -> None:
    """No frame around turns, as its reports show."""
    body = {"contents": [{"role": "user", "parts": [{"text": "x" * 400}]}]}
    assert 100 <= prompt_estimate(body, model="gemini-3-pro").tokens <= 102


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    ["messages", "input", "prompt", "tools", "functions", "text", "response_format", "system", "contents", "model", "x"]
)
words = st.sampled_from(
    ["type", "role", "content", "function", "parameters", "properties", "image_url", "source", "audio"]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, json_values | st.lists(st.dictionaries(words, json_values, max_size=4), max_size=3)))
def test_no_body_makes_an_estimate_fail(body: dict[str, Any]) -> None:
    """It runs before the user's call: whatever is in the body, there are numbers."""
    assert text_upper_bound(body) > 0
    assert prompt_estimate(body).tokens >= 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=4), st.sampled_from(["gpt-4o", "claude-opus-4-8", "gemini-3-pro", "x"]))
def test_what_is_expected_is_below_the_bound(contents: list[str], model: str) -> None:
    """Whichever way it was told."""
    body = {"model": model, "messages": [{"role": "user", "content": text} for text in contents]}
    assert prompt_estimate(body).tokens <= text_upper_bound(body)


def test_deep_and_self_containing_bodies_end() -> None:
    """Nesting is as deep as its author likes, and a schema may contain itself."""
    deep: Any = "x"
    for _ in range(20_000):
        deep = [deep]
    assert prompt_estimate({"input": deep}).tokens > 0
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"again": schema}
    assert prompt_estimate(chat(SAY, tools=[{"function": {"name": "f", "parameters": schema}}])).tokens > 0


@pytest.mark.usefixtures("one_token_a_word")
def test_a_schema_that_refers_to_itself_many_times_ends_soon() -> None:
    """Ten references to itself in each of eight levels would be a hundred million fields."""
    node = {"type": "object", "properties": {f"f{one}": {"$ref": "#/$defs/Node"} for one in range(10)}}
    parameters = {"type": "object", "properties": {"root": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}}
    begun = time.perf_counter()
    assert prompt_estimate(chat(SAY, tools=[{"function": {"name": "f", "parameters": parameters}}])).tokens > 100
    assert time.perf_counter() - begun < 2


@pytest.mark.parametrize("content", ["x" * 10_000_000, "é" * 5_000_000, "\ufdfa" * 100_000, "漢" * 3_000_000])
def test_ten_megabytes_are_bounded_in_linear_time(content: str) -> None:
    """A tenth of the text takes about a tenth of the time; here, all of it well under a second."""
    begun = time.perf_counter()
    assert text_upper_bound(chat({"role": "user", "content": content})) >= len(content)
    assert time.perf_counter() - begun < 2


def test_many_parts_are_bounded_in_linear_time() -> None:
    """A hundred thousand parts of one message."""
    parts = [{"type": "text", "text": "hello " * 8}] * 100_000
    begun = time.perf_counter()
    assert text_upper_bound(chat({"role": "user", "content": parts})) > 4_800_000
    assert time.perf_counter() - begun < 5
