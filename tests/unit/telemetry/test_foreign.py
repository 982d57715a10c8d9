"""What spans of other instrumentations are read to say: three vocabularies, one call."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.telemetry.foreign import is_inference, read
from aifinops.usage import input_total, output_total

NEWEST = {
    "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.response.model": "gpt-4o-mini-2024-07-18", "gen_ai.response.id": "chatcmpl-1", "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 200, "gen_ai.usage.cache_read.input_tokens": 600, "gen_ai.usage.cache_write.input_tokens": 100,
    "gen_ai.usage.reasoning.output_tokens": 120, "openai.response.service_tier": "flex", "gen_ai.request.stream": True,
}  # fmt: skip
V141 = {
    **{key: value for key, value in NEWEST.items() if "cache_write" not in key},
    "gen_ai.usage.cache_creation.input_tokens": 100,
}
OPENINFERENCE = {
    "openinference.span.kind": "LLM", "llm.provider": "openai", "llm.system": "openai", "llm.model_name": "gpt-4o-mini",
    "llm.token_count.prompt": 1000, "llm.token_count.completion": 200, "llm.token_count.total": 1200,
    "llm.token_count.prompt_details.cache_read": 600, "llm.token_count.prompt_details.cache_write": 100,
    "llm.token_count.completion_details.reasoning": 120,
}  # fmt: skip
TRACELOOP = {
    "llm.request.type": "chat", "gen_ai.system": "OpenAI", "gen_ai.request.model": "gpt-4o-mini", "gen_ai.usage.prompt_tokens": 1000,
    "gen_ai.usage.completion_tokens": 200, "llm.usage.total_tokens": 1200, "gen_ai.usage.cache_read_input_tokens": 600,
    "gen_ai.usage.cache_creation_input_tokens": 100, "gen_ai.usage.reasoning_tokens": 120,
}  # fmt: skip
DISJOINT = {
    "input_tokens": 300, "cache_read_tokens": 600, "cache_write_tokens": 100, "output_tokens": 80, "reasoning_tokens": 120,
}  # fmt: skip


@pytest.mark.parametrize(
    "said", [NEWEST, V141, OPENINFERENCE, TRACELOOP], ids=["newest", "1.41", "openinference", "traceloop"]
)
def test_each_vocabulary_says_the_same_call(said: dict[str, Any]) -> None:
    """The same numbers under the names of any instrumentation are the same disjoint quantities of the same model."""
    call = read("somebody", said)
    assert call is not None
    assert call.reading.quantities == DISJOINT
    assert (call.provider, call.operation, call.model) == ("openai", "chat", "gpt-4o-mini")


def test_what_only_some_say() -> None:
    """Response id, model as answered, tier and stream are read where they are told."""
    call = read("somebody", NEWEST)
    assert call is not None
    reading = call.reading
    assert (reading.response_id, reading.model, reading.tier) == ("chatcmpl-1", "gpt-4o-mini-2024-07-18", "flex")
    assert call.stream


def test_the_time_that_a_cache_entry_lives() -> None:
    """Anthropic's own spans tell how many of the written tokens live for an hour; those have a price of their own."""
    said = {**NEWEST, "anthropic.usage.cache_creation.ephemeral_1h_input_tokens": 40}
    call = read("com.anthropic.sdk.python", said)
    assert call is not None
    assert call.reading.quantities["cache_write_tokens"] == 60
    assert call.reading.quantities["cache_write_1h_tokens"] == 40


def test_cached_audio_is_told_twice_and_counted_once() -> None:
    """Cached tokens of a kind are among the cached ones and among those of their kind."""
    said = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-audio", "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.cache_read.input_tokens": 50, "gen_ai.usage.audio.input_tokens": 60, "gen_ai.usage.audio.cache_read.input_tokens": 30,
    }  # fmt: skip
    call = read("somebody", said)
    assert call is not None
    assert call.reading.quantities == {
        "input_tokens": 20, "cache_read_tokens": 20, "cache_read_audio_tokens": 30, "input_audio_tokens": 30,
    }  # fmt: skip


def test_a_total_without_its_parts_is_noted() -> None:
    """An instrumentation that leaves cached tokens out of the total is taken at its word, and the reading says so."""
    call = read("somebody", {**NEWEST, "gen_ai.usage.input_tokens": 300})
    assert call is not None
    assert call.reading.quantities["input_tokens"] == 300
    assert "700 tokens in parts of 300" in call.reading.notes[0]


@pytest.mark.parametrize(
    "said",
    [
        {**NEWEST, "gen_ai.operation.name": "invoke_agent"},
        {**NEWEST, "gen_ai.operation.name": "invoke_workflow"},
        {**NEWEST, "gen_ai.operation.name": "fetch_response"},
        {**NEWEST, "gen_ai.operation.name": "execute_tool"},
        {**OPENINFERENCE, "openinference.span.kind": "AGENT"},
        {**OPENINFERENCE, "openinference.span.kind": "CHAIN"},
        {"traceloop.span.kind": "workflow", "gen_ai.usage.input_tokens": 5, "gen_ai.request.model": "m", "gen_ai.system": "openai"},
        {key: value for key, value in NEWEST.items() if "usage" not in key},
        {key: value for key, value in NEWEST.items() if "provider" not in key},
        {"http.request.method": "POST", "url.full": "http://x/v1/chat/completions"},
        {},
    ],
)  # fmt: skip
def test_no_call(said: dict[str, Any]) -> None:
    """Agents, workflows, tools and fetches repeat what calls say; a span without tokens or provider tells no cost."""
    assert read("somebody", said) is None


def test_who_made_a_span_tells_where_it_does_not() -> None:
    """Some instrumentations fill their span at its end: by their scope it is a call from its beginning."""
    assert is_inference("openlit.otel.tracing", {})
    assert is_inference("opentelemetry.instrumentation.openai.v1", {})
    assert not is_inference("opentelemetry.instrumentation.httpx", {})
    assert not is_inference("openlit.otel.tracing", {"gen_ai.operation.name": "invoke_agent"})


VALUES = st.one_of(
    st.integers(-5, 10**12), st.floats(allow_nan=True), st.text(max_size=3), st.booleans(), st.lists(st.integers())
)


@given(st.dictionaries(st.sampled_from(sorted({*NEWEST, *V141, *OPENINFERENCE, *TRACELOOP})), VALUES))
def test_nonsense_is_no_call_or_an_honest_one(said: dict[str, Any]) -> None:
    """Values of wrong types never raise, and never give a negative quantity or fewer tokens than the parts."""
    call = read("somebody", {**said, "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"})
    if call is not None:
        counts = call.reading.quantities
        assert all(type(count) is int and count > 0 for count in counts.values())
        assert input_total(counts) + output_total(counts) > 0
