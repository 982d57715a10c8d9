"""Streams of one JSON object a line, and answers that are lists, beside server-sent events."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.integrations.extract import Reader
from aifinops.integrations.providers.cohere import COHERE
from aifinops.integrations.providers.huggingface import HUGGINGFACE
from aifinops.integrations.providers.mistral import MISTRAL
from aifinops.integrations.providers.ollama import OLLAMA
from aifinops.integrations.streams import first_event, read_events

CHAT = Reader(OLLAMA.routes["/api/chat"], "ollama")
LAST = {"model": "m", "message": {"content": ""}, "done": True, "prompt_eval_count": 26, "eval_count": 282}


def lines(*parts: object) -> bytes:
    return "".join(json.dumps(part) + "\n" for part in parts).encode()


@given(st.lists(st.text(max_size=20), max_size=20))
def test_the_last_line_has_the_counts(pieces: list[str]) -> None:
    """Whatever is said before, also of counts, the usage is that of the last line."""
    said = [{"model": "m", "message": {"content": f'{piece} "eval_count": 7'}, "done": False} for piece in pieces]
    reading, _ = read_events(lines(*said, LAST), CHAT)
    assert reading is not None
    assert dict(reading.quantities) == {"input_tokens": 26, "output_tokens": 282}


@given(st.integers(0, 200))
def test_a_stream_that_was_cut_has_its_text(cut: int) -> None:
    """Without the last line the text of all whole lines is there; half a line is left out and nothing is raised."""
    said = lines(*({"model": "m", "message": {"content": "ab"}, "done": False} for _ in range(4)))[:cut]
    reading, came = read_events(said, CHAT)
    assert reading is None
    whole = sum(1 for line in said.splitlines() if line.endswith(b"false}"))
    assert came.text == "ab" * whole
    assert first_event(said) == ({"model": "m", "message": {"content": "ab"}, "done": False} if whole else None)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[", b"[]", b"null", b"7", b'"x"', b"{}\n{}\n", b"[[0.5, 1]]", b'[{"a": 1}]', b"\xff\n{"]
)
def test_what_is_nothing_is_no_usage(data: bytes) -> None:
    """Damaged and strange bytes have no usage and raise nothing."""
    for reader in (
        CHAT,
        Reader(COHERE.routes["/v1/chat"]),
        Reader(HUGGINGFACE.routes["/"]),
        Reader(MISTRAL.routes["/ocr"]),
    ):
        assert read_events(data, reader)[0] is None


def test_an_answer_that_is_a_list_is_read_by_its_entries() -> None:
    """Text generation answers with a list of one."""
    answer = [{"generated_text": "x", "details": {"generated_tokens": 20, "finish_reason": "length"}}]
    reading, _ = read_events(json.dumps(answer).encode(), Reader(HUGGINGFACE.routes["/"]))
    assert reading is not None
    assert dict(reading.quantities) == {"output_tokens": 20}


def test_a_body_of_one_line_is_read_like_one_of_many() -> None:
    """Whether a whole answer is printed on one line or on many, and where its stream has the usage, is the same."""
    body = {
        "id": "c",
        "usage": {"billed_units": {"input_tokens": 3.0, "output_tokens": 2.0}},
        "message": {"content": []},
    }
    reader = Reader(COHERE.routes["/v2/chat"])
    for text in (json.dumps(body), json.dumps(body, indent=1)):
        reading, _ = read_events(text.encode(), reader)
        assert reading is not None
        assert dict(reading.quantities) == {"input_tokens": 3, "output_tokens": 2}
