"""What an image or a sound counts as in tokens, by the formula that its provider publishes; read from the header, never decoded.

Each rule gives two numbers: `expected`, by the formula as it is known to be applied, and `most`, which holds whatever of the published
rules applies. `most` is None where no rule gives an end (a picture behind an address, for a model that takes pictures of any size).

| rule | source, as read in November 2026 |
|---|---|
| OpenAI tiles: fit 2,048 x 2,048, shorter side to 768, 512-pixel tiles, base + tiles | developers.openai.com/api/docs/guides/images-vision |
| OpenAI patches: 32 pixels, shrunk to the budget of 1,536, 2,500 or 10,000, times a factor | the same |
| factors that are billed (1.2, 1.5) where the page says 1.62 or 2.46 | community.openai.com/t/1377015, 2026-03 |
| GPT-5.5 shrinks to 10,000 patches by itself, GPT-6 does not; `high` is 2,500 patches | hf.co/datasets/JOHNISKING/image-token-cost, 2026 |
| Claude: 28-pixel patches; longest side 1,568 and 1,568 tokens, from Opus 4.7 on 2,576 and 4,784 | platform.claude.com/docs/en/build-with-claude/vision |
| Claude before that page: width x height / 750 | the same page until 2026 |
| Gemini 1.5 to 2.5: 258 up to 384 pixels, else 258 a tile of a side of min/1.5, 256 to 768 | ai.google.dev/gemini-api/docs/tokens; Vertex AI, image understanding |
| Gemini 3: 280, 560, 1,120 or 2,240 by media resolution | ai.google.dev/gemini-api/docs/media-resolution |
| sound in: OpenAI one token for 100 ms, Gemini 32 a second; sound out: OpenAI one for 50 ms | platform.openai.com/docs/guides/realtime-costs; ai.google.dev/gemini-api/docs/tokens |
"""

from __future__ import annotations

import binascii
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

__all__ = ["Counted", "audio_tokens", "duration", "image_size", "image_tokens", "inline", "speech_tokens"]


class Counted(NamedTuple):
    """Tokens of one attachment: expected, and at most (None when there is no end to tell)."""

    expected: int
    most: int | None


Size = tuple[int, int]
"""Width and height, pixels."""

_TYPICAL: Size = (1024, 1024)
"""What a picture of unknown size is expected to be. No bound depends on it."""


# Rules ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tiles:
    """OpenAI's older rule. `detail: low` is the base alone."""

    base: int
    tile: int

    def count(self, size: Size | None, detail: str) -> Counted:
        if detail == "low":
            return Counted(self.base, self.base)
        most = self.base + _MOST_TILES * self.tile
        if size is None:
            return Counted(self.base + _tiles(_TYPICAL) * self.tile, most)
        # The page does not say that small pictures are left small, so the bound takes the larger of both readings.
        larger = max(_tiles(size), min(_tiles(size, enlarge=True), _MOST_TILES))
        return Counted(self.base + _tiles(size) * self.tile, self.base + larger * self.tile)


_MOST_TILES = 8
"""2,048 by 768 pixels in squares of 512."""


def _tiles(size: Size, *, enlarge: bool = False) -> int:
    width, height = size
    scale = min(1.0, 2048 / max(size))
    shorter = min(size) * scale
    if shorter > 768 or enlarge:
        scale *= 768 / shorter
    return max(1, _ceil(width * scale / 512)) * max(1, _ceil(height * scale / 512))


@dataclass(frozen=True, slots=True)
class _Patches:
    """OpenAI's newer rule. The factor in hundredths, and the budget of patches for `high` and for any other detail."""

    factor: int
    high: int
    auto: int | None
    low: int = 256

    def count(self, size: Size | None, detail: str) -> Counted:
        budget = self.high if detail == "high" else self.auto
        if size is None:
            most = None if self.auto is None else _times(max(self.high, self.auto), _DEAREST_FACTOR)
            return Counted(_times(self._patches(_TYPICAL, budget, detail), self.factor), most)
        every = _ceil(size[0] / 32) * _ceil(size[1] / 32)
        # Whether `low` and `high` are honoured has changed from model to model: the bound does not lean on them.
        largest = every if self.auto is None else min(every, max(self.high, self.auto))
        return Counted(_times(self._patches(size, budget, detail), self.factor), _times(largest, _DEAREST_FACTOR))

    def _patches(self, size: Size, budget: int | None, detail: str) -> int:
        if detail == "low" and self.auto != _SMALL:
            budget = self.low
        return _within(size, budget)


_SMALL = 1536
_DEAREST_FACTOR = 246
"""The highest factor on the page (gpt-4.1-nano), in hundredths: for what is listed with one and billed with another."""


def _within(size: Size, budget: int | None) -> int:
    """Patches of 32 pixels, after shrinking to the budget in the way that the page describes step by step."""
    width, height = size
    every = _ceil(width / 32) * _ceil(height / 32)
    if budget is None or every <= budget:
        return every
    scale = math.sqrt(budget * 1024 / (width * height))
    columns, rows = width * scale / 32, height * scale / 32
    scale *= min(max(1, math.floor(columns)) / columns, max(1, math.floor(rows)) / rows)
    return min(budget, max(1, _ceil(width * scale / 32)) * max(1, _ceil(height * scale / 32)))


@dataclass(frozen=True, slots=True)
class _Claude:
    """28-pixel patches within a longest side and a number of tokens; `certain` when both are published for the model."""

    side: int
    tokens: int
    certain: bool = True

    def count(self, size: Size | None, detail: str) -> Counted:
        if size is None:
            return Counted(self._shrunk(_TYPICAL), self._cap(_CLAUDE_LARGEST))
        width, height = size
        patches = _ceil(width / 28) * _ceil(height / 28)
        # The rule of earlier years is width x height / 750; which one a model follows has been measured, not promised.
        return Counted(self._shrunk(size), self._cap(max(patches, _ceil(width * height / 750))))

    def _cap(self, tokens: int) -> int:
        return (min(tokens, max(self.tokens, _CLAUDE_OLD_MOST)) if self.certain else tokens) + _CLAUDE_FRAME

    def _shrunk(self, size: Size) -> int:
        """The tokens of the largest picture of the same shape that fits."""
        width, height = size
        patches = _ceil(width / 28) * _ceil(height / 28)
        if max(size) <= self.side and patches <= self.tokens:
            return patches
        best, largest = 1, 0.0
        for across, along in ((width, height), (height, width)):
            for count in range(1, self.side // 28 + 1):
                scale = 28 * count / across
                fitting = count * _ceil(along * count / across)
                if largest < scale <= self.side / max(size) and fitting <= self.tokens:
                    best, largest = fitting, scale
        return best


_CLAUDE_OLD_MOST = 1_640
_CLAUDE_FRAME = 64
"""Up to 40 tokens more than the patches were measured for pictures that had to be shrunk."""

_CLAUDE_LARGEST = max(math.ceil(8000 / 28) ** 2, math.ceil(8000 * 8000 / 750))
"""By either rule; larger pictures than 8,000 by 8,000 pixels are refused."""


@dataclass(frozen=True, slots=True)
class _GeminiTiles:
    """Gemini before 3: 258 tokens a tile."""

    def count(self, size: Size | None, detail: str) -> Counted:
        if size is None:
            return Counted(258 * self._tiles(_TYPICAL), None)
        fixed = _ceil(size[0] / 768) * _ceil(size[1] / 768)
        # Both ways to cut are published, and a small overview may come on top.
        most = max(self._tiles(size), fixed) + 1
        return Counted(258 * self._tiles(size), 258 * most)

    @staticmethod
    def _tiles(size: Size) -> int:
        if max(size) <= 384:
            return 1
        unit = min(768.0, max(256.0, math.floor(min(size) / 1.5)))
        return _ceil(size[0] / unit) * _ceil(size[1] / unit)


@dataclass(frozen=True, slots=True)
class _GeminiLevels:
    """Gemini 3: a budget by `media_resolution`, whatever the size. The expected number is the budget."""

    def count(self, size: Size | None, detail: str) -> Counted:
        level = detail.lower().removeprefix("media_resolution_").replace("-", "_")
        return Counted(_LEVELS.get(level, _LEVELS["high"]), _LEVELS["ultra_high"] + 16)


_LEVELS = {"low": 280, "medium": 560, "high": 1_120, "ultra_high": 2_240}


@dataclass(frozen=True, slots=True)
class _Unknown:
    """A model of none of these makers: no rule gives its end without a size; with one, the dearest of all that are known."""

    def count(self, size: Size | None, detail: str) -> Counted:
        if size is None:
            return Counted(1_024, None)
        width, height = size
        # 16-pixel patches with a separator for each row (Pixtral) are the finest of any published rule.
        finest = _ceil(width / 16 + 1) * _ceil(height / 16)
        return Counted(_ceil(width / 32) * _ceil(height / 32), max(2_833 + _MOST_TILES * 5_667, finest))


_Rule = _Tiles | _Patches | _Claude | _GeminiTiles | _GeminiLevels | _Unknown

# Longest start of the name first. Fine-tuned and dated names start as their model does.
_OPENAI: tuple[tuple[str, _Rule], ...] = (
    ("gpt-4o-mini", _Tiles(2_833, 5_667)),
    ("gpt-4o", _Tiles(85, 170)),
    ("chatgpt-4o", _Tiles(85, 170)),
    ("gpt-4-turbo", _Tiles(85, 170)),
    ("gpt-4-vision", _Tiles(85, 170)),
    ("gpt-4-1106-vision", _Tiles(85, 170)),
    ("gpt-4.1-mini", _Patches(162, _SMALL, _SMALL)),
    ("gpt-4.1-nano", _Patches(246, _SMALL, _SMALL)),
    ("gpt-4.1", _Tiles(85, 170)),
    ("gpt-4.5", _Tiles(85, 170)),
    ("o4-mini", _Patches(172, _SMALL, _SMALL)),
    ("codex-mini", _Patches(172, _SMALL, _SMALL)),
    ("o1", _Tiles(75, 150)),
    ("o3", _Tiles(75, 150)),
    ("computer-use-preview", _Tiles(65, 129)),
    ("gpt-5-mini", _Patches(120, _SMALL, _SMALL)),
    ("gpt-5-nano", _Patches(150, _SMALL, _SMALL)),
    ("gpt-5.4-mini", _Patches(120, 2_500, 2_500)),
    ("gpt-5.4-nano", _Patches(120, 2_500, 2_500)),
    ("gpt-5.1", _Patches(120, _SMALL, 10_000)),
    ("gpt-5.2", _Patches(120, _SMALL, _SMALL)),
    ("gpt-5.3", _Patches(120, _SMALL, _SMALL)),
    ("gpt-5.4", _Patches(120, 2_500, 10_000)),
    ("gpt-5.5", _Patches(120, 2_500, 10_000)),
    ("gpt-5.", _Patches(120, 2_500, None)),
    ("gpt-5", _Tiles(70, 140)),
    ("gpt-", _Patches(120, 2_500, None)),
)

_HIGH_CLAUDE = re.compile(r"claude-(?:opus-4-[78]|(?:opus|sonnet|haiku|fable|mythos)-5)\b")
_MEASURED_CLAUDE = re.compile(r"claude-(?:opus|sonnet)-5-5\b")
_LOW_CLAUDE = re.compile(r"claude-(?:3|(?:opus|sonnet|haiku)-4|instant|2)")


@lru_cache(maxsize=256)
def _rule(model: str) -> _Rule:
    name = model.lower()
    if "claude" in name:
        return _claude(name.replace(".", "-"))
    if "gemini" in name:
        return (
            _GeminiTiles()
            if re.search(r"gemini-(?:1|2)(?:\D|$)|gemini-(?:pro|flash)-vision", name)
            else _GeminiLevels()
        )
    name = name.rsplit("/", 1)[-1].removeprefix("ft:")
    found = [(len(start), rule) for start, rule in _OPENAI if name.startswith(start)]
    return max(found, key=lambda pair: pair[0])[1] if found else _Unknown()


def _claude(name: str) -> _Rule:
    if _MEASURED_CLAUDE.search(name):
        return _Claude(2_016, 4_784)
    if _HIGH_CLAUDE.search(name):
        return _Claude(2_576, 4_784)
    return _Claude(1_568, 1_568) if _LOW_CLAUDE.search(name) else _Claude(2_576, 4_784, certain=False)


def image_tokens(model: str, size: Size | None, detail: str = "") -> Counted:
    """Tokens of one picture.

    Args:
        model: any spelling; a name of no known family is bounded by the dearest of all rules.
        size: width and height in pixels, or None when it is not known.
        detail: OpenAI's `detail`, or Gemini's media resolution.
    """
    if size is not None and min(size) < 1:
        size = None
    return _rule(model).count(size, detail)


# Sound ----------------------------------------------------------------------------------------------------------------

_PER_SECOND_IN = {"openai": 10, "google": 32}
_PER_SECOND_OUT = 20
_SLOWEST_MP3 = 1_000
"""Bytes a second: 8 kbit/s is the lowest rate of MPEG audio layer III."""


def audio_tokens(model: str, data: bytes, size: int, kind: str = "") -> Counted:
    """Tokens of a recording in a prompt.

    Args:
        model: any spelling; the rate of an unknown maker is the highest that is known.
        data: the first bytes; a WAV header gives its length in seconds.
        size: bytes of the whole.
        kind: `mp3`, `wav` or a media type. Formats that can hold any silence in no bytes have no bound.
    """
    rate = _PER_SECOND_IN["google" if "gemini" in model.lower() or not _is_openai(model) else "openai"]
    seconds = duration(data, size)
    if seconds is not None:
        exact = _ceil(seconds * rate)
        return Counted(exact, exact + rate)
    expected = _ceil(size * rate / 16_000)  # 128 kbit/s, the usual rate of MP3
    if "mp3" in kind or "mpeg" in kind or data[:3] == b"ID3" or data[:1] == b"\xff":
        return Counted(expected, _ceil(size * rate / _SLOWEST_MP3) + rate)
    return Counted(expected, None)


def speech_tokens(seconds: float) -> int:
    """Tokens of speech that an OpenAI model says: one for each 50 milliseconds."""
    return _ceil(seconds * _PER_SECOND_OUT)


def _is_openai(model: str) -> bool:
    name = model.lower().rsplit("/", 1)[-1].removeprefix("ft:")
    return name.startswith(("gpt-", "o1", "o3", "o4", "chatgpt", "whisper", "tts"))


_UNPACKED = frozenset({1, 3, 6, 7, 0xFFFE})
"""WAV formats of a fixed number of bytes a second: PCM, float, A-law, mu-law, extensible."""


def duration(data: bytes, size: int) -> float | None:
    """Seconds of a WAV recording of `size` bytes by its header; None for any other or a damaged one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    at = 12
    while at + 24 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"fmt ":
            form, rate, block = (
                int.from_bytes(data[at + first : at + last], "little") for first, last in ((8, 10), (12, 16), (20, 22))
            )
            # What is in the file counts, not what its header says is: a stream is written with a length of 0 or 2^32 - 1.
            return (size - at) / (rate * block) if form in _UNPACKED and rate and block else None
        at += 8 + length + length % 2
    return None


# Headers --------------------------------------------------------------------------------------------------------------

_HEAD = 1 << 18
"""Characters that are looked at: a JPEG may carry a preview and a colour profile before it says its size."""


def inline(text: str) -> tuple[bytes, int] | None:
    """The first bytes of base64 text or of a `data:` URL, and the bytes of the whole; None for an address or other text."""
    if text.startswith("data:"):
        comma = text.find(",", 0, 256)
        if comma < 0 or ";base64" not in text[:comma]:
            return None
        start = comma + 1
    elif "://" in text[:16]:
        return None
    else:
        start = 0
    length = (len(text) - start) * 3 // 4
    head = _decoded(text[start : start + 1024])
    if head is not None and length > len(head) and head[:2] == b"\xff\xd8" and _jpeg(head) is None:
        head = _decoded(text[start : start + _HEAD])
    return None if head is None else (head, length)


def _decoded(text: str) -> bytes | None:
    try:
        return binascii.a2b_base64(text[: len(text) // 4 * 4])
    except ValueError:  # binascii.Error, or characters that are not ASCII
        return None


def image_size(data: bytes) -> Size | None:
    """Width and height of a PNG, JPEG, GIF or WebP from its first bytes; None when they do not say."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _size(data, 16, 20, 4, "big")
    if data[:6] in {b"GIF87a", b"GIF89a"}:
        return _size(data, 6, 8, 2, "little")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return _jpeg(data) if data[:2] == b"\xff\xd8" else None


def _size(data: bytes, width: int, height: int, length: int, order: Literal["big", "little"]) -> Size | None:
    if len(data) < max(width, height) + length:
        return None
    found = (
        int.from_bytes(data[width : width + length], order),
        int.from_bytes(data[height : height + length], order),
    )
    return found if min(found) > 0 else None


def _webp(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        found = int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
        return found if min(found) > 0 else None
    return None


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers that begin a frame and carry its size."""

_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a length."""


def _jpeg(data: bytes) -> Size | None:
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
        elif marker in _FRAMES:
            return _size(data, at + 7, at + 5, 2, "big")
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 2:
                return None
            at += 2 + length
    return None


# Arithmetic -----------------------------------------------------------------------------------------------------------


def _ceil(value: float) -> int:
    # A side of exactly n tiles, scaled by a fraction, must not become n + 1.
    return math.ceil(value - 1e-9)


def _times(patches: int, hundredths: int) -> int:
    return -(-patches * hundredths // 100)
