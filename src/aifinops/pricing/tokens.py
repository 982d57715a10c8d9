"""How many tokens a request can have, before it is sent: a sound bound from its text, and an exact count where that is possible.

Nothing here ever touches the network or raises: a count that cannot be had is None, a bound that cannot be had is `UNBOUNDED`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["UNBOUNDED", "count_tokens", "encoding_path", "text_upper_bound"]

UNBOUNDED = 1 << 40
"""Stands for "not to be told from the request" (an earlier response, a file, a stored prompt): at most the context window."""

_PROMPT_KEYS = frozenset(
    {
        "messages",
        "input",
        "prompt",
        "instructions",
        "system",
        "tools",
        "functions",
        "tool_choice",
        "function_call",
        "response_format",
        "text",
    }
)
"""Fields of a request body that become prompt. The rest (model, temperature, metadata) is not shown to the model."""

_ELSEWHERE = frozenset({"previous_response_id", "conversation", "web_search_options"})
"""Fields that bring in a prompt which the body does not contain."""

_OWN_TOOLS = frozenset({"function", "custom"})
"""Tools that the caller runs. Any other runs at the provider, and what it finds becomes prompt."""

_OVERHEAD = 8
"""Tokens of structure for each object. OpenAI's chat format takes 3 for a message, 1 for a name, 3 to prime the answer."""

_FIELD = 64
"""Tokens of structure for each field: headings around tools, schemas and formats, and whatever a model is told by itself."""

# OpenAI, "Images and vision", calculating costs. Tiles: after scaling to 2048 and 768 pixels at most 8 of 512 pixels, at
# 5,667 tokens each and 2,833 for the image (gpt-4o-mini, the dearest). Patches: at most 10,000 of 32 pixels, times 2.46.
_IMAGE_LOW = 2_833
_IMAGE_TILES = 2_833 + 8 * 5_667
_IMAGE_PATCHES = 24_600

_IMAGES = ("image_url", "input_image", "image", "computer_screenshot")
_FILES = ("file", "input_file", "input_video", "video_url", "item_reference", "document")
_REFERENCES = ("file_id", "file_url", "file_data", "video_url")

# Audio is one token for each 100 ms; the least that a frame of MP3 takes is 8 kbit/s, so 1,000 bytes hold at most 10 tokens.
_AUDIO_BYTES_PER_TOKEN = 100

_MAX_TEXT = 1_000_000
"""Characters that `count_tokens` takes at most: a byte-pair encoder is slow on very long text, and this runs before a call."""


# A bound --------------------------------------------------------------------------------------------------------------


def text_upper_bound(body: Mapping[str, Any]) -> int:
    """A number of prompt tokens that this request cannot exceed, for any byte-level tokenizer.

    A token stands for at least one byte, so the UTF-8 length bounds text; tools and schemas count as they are written in
    JSON, and each object and field adds some for structure. An image adds the documented maximum of its model family, audio
    what its bytes can hold at the lowest bit rate. What the body only points to (an earlier response, a stored prompt, a
    file, what a tool of the provider will find) makes it `UNBOUNDED`.

    Args:
        body: the JSON body of a chat, responses, completions or embeddings request, as Python objects.
    """
    if _points_elsewhere(body):
        return UNBOUNDED
    image = _IMAGE_TILES if "4o-mini" in str(body.get("model", "")) else _IMAGE_PATCHES
    total = _FIELD
    for key, value in body.items():
        if key in _PROMPT_KEYS and value is not None:
            total += _bound(value, image) + _FIELD
    return min(total, UNBOUNDED)


def _points_elsewhere(body: Mapping[str, Any]) -> bool:
    tools = body.get("tools")
    hosted = isinstance(tools, (list, tuple)) and any(
        isinstance(tool, Mapping) and tool.get("type", "function") not in _OWN_TOOLS for tool in tools
    )
    if hosted or isinstance(body.get("prompt"), Mapping):
        return True
    return not _ELSEWHERE.isdisjoint(body) and any(body.get(key) for key in _ELSEWHERE)


def _bound(value: Any, image: int) -> int:
    """An iterative walk: request bodies nest as deeply as their author likes, Python's stack does not."""
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            total += _utf8(item)
        elif isinstance(item, Mapping):
            counted = _message(item) or _part(item, image)
            if counted is None:
                total += _OVERHEAD + _keys(item)
                todo += item.values()
            else:
                total += counted
        elif isinstance(item, (list, tuple)):
            total += _sequence(item, todo)
        elif isinstance(item, (int, float)):
            total += len(repr(item)) + 2
        elif item is not None:
            # A pydantic model, a generator, a file: what it will become is not known here.
            total += _object(item, todo)
    return total


def _utf8(text: str) -> int:
    # ASCII is the common case, and for it the length is known without encoding. Lone surrogates are sent as "?".
    return (len(text) if text.isascii() else len(text.encode("utf-8", "replace"))) + 4


def _keys(item: Mapping[Any, Any]) -> int:
    return sum(_utf8(str(key)) for key in item)


def _sequence(items: list[Any] | tuple[Any, ...], todo: list[Any]) -> int:
    if items and all(type(item) is int for item in items):
        return len(items)  # a prompt given as token ids
    todo += items
    return 2 * len(items)


def _object(item: Any, todo: list[Any]) -> int:
    dump = getattr(item, "model_dump", None)
    if callable(dump):
        todo.append(dump())
        return 0
    return UNBOUNDED


_MESSAGE_KEYS = _keys({"role": "", "content": ""}) + _OVERHEAD


def _message(item: Mapping[Any, Any]) -> int | None:
    """The bound of a plain message, what nearly all of a request is made of; None for anything else."""
    if len(item) == 2:
        role, content = item.get("role"), item.get("content")
        if type(role) is str and type(content) is str:
            return _utf8(role) + _utf8(content) + _MESSAGE_KEYS
    return None


def _part(part: Mapping[Any, Any], image: int) -> int | None:
    """The bound of a content part that is not text; None when its text has to be counted.

    Values must be text to count as a reference: in the schema of a tool, `image_url` and `file_id` may be names of parameters.
    """
    kind, link = part.get("type"), part.get("image_url")
    if kind in _IMAGES or isinstance(link, str):
        detail = part.get("detail") or (link.get("detail") if isinstance(link, Mapping) else None)
        return (_IMAGE_LOW if detail == "low" else image) + _OVERHEAD
    sound = part.get("input_audio")
    if kind == "input_audio":
        data = sound.get("data") if isinstance(sound, Mapping) else None
        return len(data) * 3 // 4 // _AUDIO_BYTES_PER_TOKEN + _OVERHEAD + 10 if isinstance(data, str) else UNBOUNDED
    earlier = part.get("audio")
    if kind in _FILES or any(isinstance(part.get(key), str) for key in _REFERENCES):
        return UNBOUNDED
    return UNBOUNDED if isinstance(earlier, Mapping) and isinstance(earlier.get("id"), str) else None


# An exact count -------------------------------------------------------------------------------------------------------

_HOST = "https://openaipublic.blob.core.windows.net/encodings/"

_ENCODINGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        # tiktoken encoding -> (file, SHA-256), as in `tiktoken_ext.openai_public`.
        "o200k_base": ("o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
        "o200k_harmony": ("o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
        "cl100k_base": ("cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
        "p50k_base": ("p50k_base.tiktoken", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"),
        "r50k_base": ("r50k_base.tiktoken", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    }
)

_MODELS = 64
_encoders: dict[str, Any] = {}
_damaged: set[tuple[str, int, int]] = set()


def encoding_path(encoding: str) -> Path | None:
    """Where tiktoken keeps the file of that encoding; None for an encoding that is not known or a cache that is switched off."""
    if encoding not in _ENCODINGS:
        return None
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder == "":
        return None
    import hashlib
    import tempfile

    name = hashlib.sha1((_HOST + _ENCODINGS[encoding][0]).encode(), usedforsecurity=False).hexdigest()
    return (Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache") / name


def count_tokens(text: str, model: str) -> int | None:
    """Exact tokens of a text by tiktoken, or None.

    None when tiktoken does not know the model or is not installed, when the file of its encoding is not on disk (it is never
    downloaded), when that file is damaged, or when the text is above a million characters.

    Args:
        text: special tokens in it are counted as plain text.
        model: as OpenAI names it.
    """
    if len(text) > _MAX_TEXT:
        return None
    try:
        encoder = _encoder(model)
        return None if encoder is None else len(encoder.encode(text, disallowed_special=()))
    except Exception:  # tiktoken's errors have no common class, and no count is worth a failed call
        return None


def _encoder(model: str) -> Any:
    if model in _encoders:
        return _encoders[model]
    import tiktoken

    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError:
        return None
    if not _is_intact(name):
        return None
    encoder = tiktoken.get_encoding(name)
    if len(_encoders) >= _MODELS:
        _encoders.clear()
    _encoders[model] = encoder
    return encoder


def _is_intact(encoding: str) -> bool:
    """Whether the file is on disk and whole: tiktoken removes and downloads again one whose hash is wrong."""
    path = encoding_path(encoding)
    if path is None or not path.is_file():
        return False
    seen = path.stat()
    key = (str(path), seen.st_mtime_ns, seen.st_size)
    if key not in _damaged:
        import hashlib

        if hashlib.sha256(path.read_bytes()).hexdigest() == _ENCODINGS[encoding][1]:
            return True
        # Some megabytes were hashed: not again for this file before the next call.
        _damaged.add(key)
    return False
