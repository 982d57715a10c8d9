"""Bounds of a prompt before it is sent, and exact counts where the encoding is on disk."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops.pricing import encodings
from aifinops.pricing.encodings import encoding_path
from aifinops.pricing.tokens import UNBOUNDED, count_tokens, text_upper_bound


def chat(*content: Any, **rest: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": one} for one in content], **rest}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), max_size=5), json_values)
def test_the_bound_is_at_least_the_bytes_of_everything_sent(messages: list[dict[str, str]], schema: Any) -> None:
    """No byte-level tokenizer makes more tokens than bytes, and each message has room for its structure."""
    body = {
        "model": "gpt-4o",
        "messages": messages,
        "tools": [{"type": "function", "function": {"parameters": schema}}],
    }
    bound = text_upper_bound(body)
    text = sum(len(one["content"].encode("utf-8", "replace")) + 8 for one in messages)
    assert bound >= text
    if bound < UNBOUNDED:
        written = json.dumps(body["tools"], ensure_ascii=False, separators=(",", ":"))
        assert bound >= text + len(written.encode("utf-8", "replace"))


def test_wide_characters_count_in_bytes() -> None:
    """A token can be a part of one character."""
    assert text_upper_bound(chat("😀" * 100)) - text_upper_bound(chat("")) == 400


@pytest.mark.parametrize("key", ["input", "prompt", "instructions", "system"])
def test_every_field_that_becomes_prompt_counts(key: str) -> None:
    """Chat, responses, completions and embeddings name their prompt differently."""
    assert text_upper_bound({key: "x" * 1000}) > 1000


def test_what_the_model_never_sees_does_not_count() -> None:
    """Metadata and settings are no prompt."""
    assert text_upper_bound(chat("hi", metadata={"a": "x" * 10_000}, user="y" * 10_000)) == text_upper_bound(chat("hi"))


def test_token_ids_are_counted_as_tokens() -> None:
    """A prompt given as ids has as many tokens as ids."""
    assert text_upper_bound({"input": list(range(100_000, 101_000))}) < 1000 + 200
    assert text_upper_bound({"input": [[1, 2, 3], [4, 5]]}) >= 5


IMAGE = "data:image/png;base64," + "A" * 500_000


@pytest.mark.parametrize(
    ("model", "part", "least", "most"),
    [
        ("gpt-4o", {"type": "image_url", "image_url": {"url": IMAGE}}, 1_445, 30_000),
        ("gpt-4o-mini", {"type": "image_url", "image_url": {"url": IMAGE}}, 48_169, 50_000),
        ("gpt-4o-mini", {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}, 2_833, 4_000),
        ("gpt-5.4", {"type": "input_image", "image_url": IMAGE}, 10_000, 30_000),
        ("gpt-5.4", {"type": "input_image", "file_id": "file-1"}, 10_000, 30_000),
        ("gpt-5", {"type": "computer_screenshot", "image_url": "https://e.test/x.png"}, 1_190, 1_500),
        ("gpt-6-astra", {"type": "input_image", "image_url": "https://e.test/x.png"}, UNBOUNDED, UNBOUNDED),
        ("my-deployment", {"type": "input_image", "image_url": "https://e.test/x.png"}, UNBOUNDED, UNBOUNDED),
        ("claude-opus-4-8", {"type": "image", "source": {"type": "url", "url": "https://e.test/x"}}, 4_784, 5_100),
        ("claude-opus-4-8", {"type": "image", "source": {"type": "base64", "data": IMAGE[22:]}}, 4_784, 5_100),
        ("gemini-3-pro", {"inlineData": {"mimeType": "image/png", "data": IMAGE[22:]}}, 2_240, 2_500),
        ("gemini-3-pro", {"inline_data": {"mime_type": "image/png", "data": b"\x89PNG"}}, 2_240, 2_500),
        ("anthropic.claude-3-haiku", {"image": {"format": "png", "source": {"bytes": b"\x89PNG"}}}, 1_568, 1_900),
    ],
)
def test_an_image_counts_its_documented_maximum(model: str, part: dict[str, Any], least: int, most: int) -> None:
    """Not its base64 text, and not the length of its address."""
    assert least <= text_upper_bound({**chat([part]), "model": model}) <= most


def test_audio_counts_what_its_bytes_can_hold() -> None:
    """One token for 100 ms, at no less than a kilobyte a second."""
    part = {"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "mp3"}}
    assert 3_000 <= text_upper_bound(chat([part])) <= 3_300
    assert text_upper_bound(chat([{"type": "input_audio"}])) == UNBOUNDED


@pytest.mark.parametrize(
    "body",
    [
        {"input": "hi", "previous_response_id": "resp_1"},
        {"input": "hi", "conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"messages": [], "web_search_options": {"search_context_size": "low"}},
        {"input": "hi", "tools": [{"type": "web_search"}]},
        {"input": "hi", "tools": [{"type": "mcp", "server_label": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
        {"contents": [{"parts": [{"fileData": {"fileUri": "gs://bucket/x.pdf"}}]}]},
        {"contents": [{"parts": [{"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}]}]},
        {"contents": [{"parts": [{"inlineData": {"mimeType": "audio/flac", "data": "AAAA"}}]}]},
        {"contents": [], "tools": [{"googleSearch": {}}]},
        {"messages": [], "toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}},
        {"messages": [{"content": [{"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://a/b"}}}}]}]},
        {"messages": [{"content": [{"type": "document_url", "document_url": "https://e.test/x.pdf"}]}]},
        {"contents": [], "cachedContent": "cachedContents/1"},
        {"messages": [{"content": [{"type": "document", "source": {"type": "base64", "data": "JVBERi0="}}]}]},
        {"messages": [{"content": [{"document": {"name": "x", "source": {"bytes": b"%PDF"}}}]}]},
        {"messages": [], "mcp_servers": [{"url": "https://e.test"}]},
        {"messages": (one for one in [])},
    ],
)
def test_what_lies_elsewhere_cannot_be_bounded_from_the_body(body: dict[str, Any]) -> None:
    """Earlier responses, files and finds of the provider's tools are not in the request."""
    assert text_upper_bound(body) == UNBOUNDED


def test_a_document_of_text_counts_its_text() -> None:
    """Anthropic's plain text documents are in the request, and so can be bounded."""
    part = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x" * 5_000}}
    assert 5_000 <= text_upper_bound(chat([part])) < 5_400


@pytest.mark.parametrize(
    "body",
    [
        {"model": "claude-opus-4-8", "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]},
        {"model": "gemini-3-pro", "tools": [{"functionDeclarations": [{"name": "f"}]}]},
        {"model": "nova", "tools": [{"toolSpec": {"name": "f"}}]},
    ],
)
def test_tools_that_the_caller_runs_are_bounded_whoever_the_maker(body: dict[str, Any]) -> None:
    """Each maker writes them in a form of its own; what a model is told about tools in general comes on top."""
    assert 800 < text_upper_bound(body) < 1_200


def test_unknown_fields_count() -> None:
    """A field that is not known to stay outside may be prompt, however new it is."""
    assert text_upper_bound({"messages": [], "skills": ["x" * 2_000]}) > 2_000


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_normalised_text_is_bounded_too(text: str) -> None:
    """Some tokenizers normalise first, which can make a text longer: one ligature becomes eighteen letters."""
    normal = unicodedata.normalize("NFKC", text).encode("utf-8", "replace")
    assert text_upper_bound(chat(text)) >= len(normal)


def test_escaped_schemas_are_bounded() -> None:
    """A provider may write tools with quotes and letters beyond ASCII escaped."""
    tool = {"type": "function", "function": {"name": "f", "description": '"ü"' * 1_000}}
    assert text_upper_bound(chat("hi", tools=[tool])) >= len(json.dumps([tool]))


def test_names_of_parameters_are_no_references() -> None:
    """A tool may have parameters that are called as content parts are."""
    properties = {
        "image_url": {"type": "string"},
        "file_id": {"type": "string"},
        "type": {"type": "string"},
        "audio": {"type": "x"},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    assert text_upper_bound(chat("hi", tools=[tool])) < 1_000


def test_objects_of_the_sdk_are_read_through_their_dump() -> None:
    """Messages may be given as the SDK's own models."""

    class Message:
        def model_dump(self) -> dict[str, str]:
            return {"role": "assistant", "content": "x" * 500}

    assert 500 <= text_upper_bound({"messages": [Message()]}) < 800


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    """The walk is iterative."""
    deep: Any = "x"
    for _ in range(50_000):
        deep = [deep]
    assert 50_000 <= text_upper_bound({"input": deep}) < UNBOUNDED


def test_an_empty_body_has_a_small_bound() -> None:
    """Nothing but structure."""
    assert 0 < text_upper_bound({}) <= 100


# Exact counts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No socket, and no tokenizer that has its encodings within itself: a count needs a file."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setitem(sys.modules, "toktok", None)
    encodings._toktok.cache_clear()
    yield
    encodings._toktok.cache_clear()


@pytest.mark.usefixtures("no_network")
def test_without_the_encoding_on_disk_there_is_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken is never asked to download."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(encodings, "_counters", {})
    assert count_tokens("hello", "gpt-4o") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_network")
def test_a_damaged_encoding_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken would delete it and download again; it is not asked."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(encodings, "_counters", {})
    path = encoding_path("o200k_base")
    assert path is not None
    path.write_bytes(b"half a file")
    assert count_tokens("hello", "gpt-4o") is None
    assert path.read_bytes() == b"half a file"


@pytest.mark.usefixtures("no_network")
def test_a_cache_that_is_switched_off_gives_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache folder tiktoken downloads at each use; so it is not used."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setattr(encodings, "_counters", {})
    assert encoding_path("o200k_base") is None
    assert count_tokens("hello", "gpt-4o") is None


@pytest.mark.usefixtures("no_network")
def test_a_model_that_tiktoken_does_not_know_has_no_count() -> None:
    """Other makers' tokenizers are not guessed."""
    assert count_tokens("hello", "claude-opus-5") is None
    assert encoding_path("no_such_encoding") is None


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder and the file name are those that tiktoken uses."""
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path))
    url = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
    assert encoding_path("o200k_base") == tmp_path / hashlib.sha1(url.encode()).hexdigest()
    monkeypatch.delenv("DATA_GYM_CACHE_DIR")
    assert str(encoding_path("cl100k_base")).endswith("data-gym-cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4")


def test_known_encodings_are_those_of_tiktoken() -> None:
    """Addresses and hashes agree with the installed tiktoken, so that a good file is never taken for a damaged one."""
    source = Path(pytest.importorskip("tiktoken_ext.openai_public").__file__).read_text("utf-8")
    for one in encodings.ENCODINGS.values():
        assert encodings.HOST + one.file in source
        assert one.sha256 in source


def test_a_text_without_end_is_not_counted() -> None:
    """A byte-pair encoder needs seconds for millions of characters, and this runs before a call."""
    assert count_tokens("x" * 1_000_001, "gpt-4o") is None


ENCODING = encoding_path("o200k_base")


@pytest.mark.skipif(ENCODING is None or not ENCODING.is_file(), reason="the o200k_base encoding is not on disk")
@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_the_bound_is_never_below_the_count(text: str) -> None:
    """With the real tokenizer: special tokens in the text are plain text, and the bound holds."""
    count = count_tokens(text + "<|endoftext|>", "gpt-4o")
    assert count is not None
    assert count <= text_upper_bound(chat(text + "<|endoftext|>"))
