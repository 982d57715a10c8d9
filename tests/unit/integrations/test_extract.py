"""From an answer to a reading: decomposition, whatever comes, streams, parts, and numbers that nobody knows."""

from __future__ import annotations

import contextlib
import json
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aifinops.errors import ConfigurationError, ImpossibleUsage
from aifinops.integrations import extract, registry
from aifinops.integrations.extract import Reader
from aifinops.integrations.paths import compiled
from aifinops.integrations.provider import TOTALS, WHOLES, Route
from aifinops.integrations.providers.anthropic import MESSAGE
from aifinops.integrations.providers.openai import CHAT, RESPONSES
from aifinops.integrations.responses import read_response
from aifinops.integrations.streams import read_events
from aifinops.meters import METERS
from aifinops.usage import input_total, output_total


@lru_cache(maxsize=1)
def routes() -> list[tuple[str, Route]]:
    """Every form of every provider."""
    rows = {id(row): row for name in registry.ANSWERS for row in [registry.answers(name)[1]]}
    return [(f"{row.name} {form}", route) for row in rows.values() for form, route in row.routes.items()]


READERS = [Reader(route, name) for name, route in routes()]

# --- the rows themselves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "route"), routes(), ids=[name for name, _ in routes()])
def test_a_row_is_of_the_language_and_names_meters_that_exist(name: str, route: Route) -> None:
    """A row is data: a test reads it so that no answer has to."""
    for usage in (route.usage, route.tools, *(part.usage for part in route.parts)):
        for meter, text in usage.items():
            assert meter in METERS or meter in TOTALS or meter in WHOLES
            assert compiled(text).alternatives
    assert all(
        compiled(text) for text in (*route.notes, *route.options.values(), *filter(None, (route.reported, route.tier)))
    )
    assert route.signs


def test_names_of_rows_are_names_that_open_telemetry_and_the_price_list_know() -> None:
    """Each key finds its row, and the seam knows the same providers."""
    for name in registry.ANSWERS:
        given_name, row = registry.answers(name.upper())
        assert (given_name, bool(row.routes), registry.knows(name)) == (name, True, True)
    with pytest.raises(ConfigurationError, match="no provider None"):
        registry.answers(None)  # type: ignore[arg-type]


# --- decomposition -------------------------------------------------------------------------------------------------------

small = st.integers(0, 500)


@given(small, small, small, small, small, small, small)
def test_a_decomposition_keeps_every_token_once(
    fresh: int, cached: int, written: int, audio: int, text: int, reasoning: int, spoken: int
) -> None:
    """The leaves add up to the provider's inclusive counts."""
    prompt, completion = fresh + cached + written + audio, text + reasoning + spoken
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written, "audio_tokens": audio},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": spoken},
    }
    reading = Reader(CHAT).read({"usage": usage})
    assert reading is not None
    assert (input_total(reading.quantities), output_total(reading.quantities)) == (prompt, completion)
    assert reading.quantities.get("input_tokens", 0) == fresh
    assert reading.quantities.get("output_tokens", 0) == text
    assert all(reading.quantities.values())


def test_cached_tokens_without_a_modality_may_be_audio() -> None:
    """800 audio and 900 cached of 1000 are possible: at least 700 are both."""
    usage = {"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 900, "audio_tokens": 800}}
    reading = Reader(CHAT).read({"usage": usage})
    assert reading is not None
    assert reading.quantities == {"cache_read_tokens": 200, "input_audio_tokens": 100, "cache_read_audio_tokens": 700}


def test_more_written_for_an_hour_than_written_is_refused() -> None:
    """Inner parts are checked as well, and both numbers are named."""
    usage = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 10,
             "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 20}}  # fmt: skip
    with pytest.raises(ImpossibleUsage, match=r"cache_write_1h_tokens 20.*cache_creation_input_tokens 10"):
        Reader(MESSAGE).read({"usage": usage})


def test_counts_that_cannot_be_are_a_problem_and_are_kept() -> None:
    """`tolerant` keeps raw usage, model and id, and says why the cost is unknown."""
    body = {"id": "x", "model": "m", "usage": {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 11}}}
    reading = Reader(CHAT).tolerant(body)
    assert reading is not None
    assert "11" in reading.problem
    assert (dict(reading.quantities), reading.raw, reading.model, reading.response_id) == ({}, body["usage"], "m", "x")


# --- whatever comes ---------------------------------------------------------------------------------------------------------

numbers = st.one_of(st.integers(), st.floats(), st.integers(0, 10**6), st.just(10**400), st.booleans())
values = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=5), st.binary(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def _names(route: Route) -> list[str]:
    texts = [
        *route.usage.values(),
        *route.tools.values(),
        *(part.path for part in route.parts),
        route.model,
        route.tier,
    ]
    texts += [text for part in route.parts for text in part.usage.values()]
    known = {name for text in texts for path in extract._paths(text) for name in path}
    return sorted(known | {"id", "type", "object", "choices", "output", "iterations"})


@st.composite
def answers(draw: st.DrawFn) -> tuple[Reader, Any]:
    """A reader and something whose names it knows, with values that fit and values that do not."""
    reader = draw(st.sampled_from(READERS))
    names = st.sampled_from(_names(reader.route))
    inner = st.dictionaries(names, st.one_of(st.integers(0, 100), values), max_size=6)
    level = st.dictionaries(names, st.one_of(inner, values, st.lists(inner, max_size=3)), max_size=8)
    return reader, draw(st.one_of(values, inner, level, st.dictionaries(names, level, max_size=6)))


@given(answers())
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_tolerant_reader_never_raises(case: tuple[Reader, Any]) -> None:
    """Wrong types, missing ids, huge numbers, lists for objects, nothing at all: a reading, a problem, or none."""
    reader, body = case
    reading = reader.tolerant(body)
    if reading is not None:
        assert isinstance(reading.model, str)
        assert isinstance(reading.response_id, str)
        assert isinstance(reading.tier, str)
        assert all(name in METERS and value > 0 for name, value in reading.quantities.items())
        assert not (reading.problem and reading.quantities)
        assert reading.reported is None or reading.reported >= 0
    reader.describe(body)
    reader.text(body)
    reader.created(body)


@given(st.sampled_from(sorted(registry.ANSWERS)), values)
@settings(max_examples=100, deadline=None)
def test_reading_raises_only_what_it_documents(provider: str, body: Any) -> None:
    """An answer is read, or refused with one of two errors."""
    with contextlib.suppress(ConfigurationError, ImpossibleUsage):
        read_response(body, provider)


def test_an_object_without_end_is_read_to_a_depth() -> None:
    """A usage that contains itself does not end in a recursion."""
    usage: dict[str, Any] = {"prompt_tokens": 5, "completion_tokens": 1}
    usage["self"] = usage
    reading = Reader(CHAT).tolerant({"usage": usage})
    assert reading is not None
    assert reading.quantities == {"input_tokens": 5, "output_tokens": 1}


# --- streams -----------------------------------------------------------------------------------------------------------------


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in events)


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-5", "content": [], "stop_reason": None,
        "usage": {
            "input_tokens": 100, "cache_creation_input_tokens": 400, "cache_read_input_tokens": 500, "output_tokens": 1,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 300}, "service_tier": "standard",
            "speed": "fast", "inference_geo": "us",
        },
    },
}  # fmt: skip
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}


def delta(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage}


def test_events_that_add_to_one_another_are_merged() -> None:
    """Final counts replace, also repeated ones; what only the first event has (lifetimes, speed, region) stays; null changes nothing."""
    events = stream(
        START, TEXT, delta(output_tokens=90), delta(output_tokens=200, input_tokens=150, cache_read_input_tokens=None)
    )
    reading, came = read_events(events, Reader(MESSAGE))
    assert reading is not None
    assert reading.quantities == {
        "input_tokens": 150, "cache_read_tokens": 500, "cache_write_tokens": 100, "cache_write_1h_tokens": 300, "output_tokens": 200,
    }  # fmt: skip
    assert (reading.tier, reading.region, reading.model, reading.response_id) == (
        "fast",
        "us",
        "claude-opus-5",
        "msg_1",
    )
    assert (reading.finish_reasons, came.text) == (("end_turn",), "")


def test_a_beginning_alone_is_no_usage() -> None:
    """A stream that broke off before its final counts gives what came, to be counted."""
    reading, came = read_events(stream(START, TEXT, TEXT), Reader(MESSAGE))
    assert (reading, came.text, came.finished) == (None, "HelloHello", False)


def test_running_values_are_never_added_up() -> None:
    """A server that sends usage with every chunk: the last one is the call's."""
    chunks = [
        {"object": "chat.completion.chunk", "usage": {"prompt_tokens": 10, "completion_tokens": n}} for n in (1, 2, 3)
    ]
    reading, _ = read_events(stream(*chunks), Reader(CHAT))
    assert reading is not None
    assert reading.quantities == {"input_tokens": 10, "output_tokens": 3}


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
def test_every_final_event_has_the_usage(status: str) -> None:
    """A response that was cut or failed was paid for."""
    final = {
        "type": f"response.{status}",
        "response": {"id": "r", "model": "m", "usage": {"input_tokens": 5, "output_tokens": 2}},
    }
    reading, _ = read_events(
        stream({"type": "response.created", "response": {"usage": None}}, final), Reader(RESPONSES)
    )
    assert reading is not None
    assert (reading.quantities, reading.response_id) == ({"input_tokens": 5, "output_tokens": 2}, "r")


# --- numbers that nobody knows ---------------------------------------------------------------------------------------------


def test_names_made_up_by_a_server_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound new names are not counted; known ones still are."""
    monkeypatch.setattr(extract, "_drift", {})
    monkeypatch.setattr(extract, "_MOST_PATHS", 3)
    reader = Reader(CHAT, "openai")
    for number in range(10):
        reader.tolerant({"usage": {"prompt_tokens": 1, f"made_up_{number}": 1, "made_up_0": 1}})
    assert extract.drift() == {("openai", "made_up_0"): 10, ("openai", "made_up_1"): 1, ("openai", "made_up_2"): 1}


def test_unknown_objects_are_looked_through_and_flags_are_no_numbers() -> None:
    """A new group of counts is named by its whole path; texts, flags and nulls are no drift."""
    before = dict(extract.drift())
    usage = {
        "prompt_tokens": 1,
        "cost_details": {"upstream": {"tax": 0.1}},
        "is_byok": True,
        "plan": "x",
        "other": None,
    }
    Reader(CHAT, "drifting").tolerant({"usage": usage})
    assert {key: value for key, value in extract.drift().items() if key not in before} == {
        ("drifting", "cost_details.upstream.tax"): 1
    }
