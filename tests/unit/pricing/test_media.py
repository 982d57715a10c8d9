"""Tokens of pictures and sounds: the published examples, what was measured, headers, and bounds that hold."""

from __future__ import annotations

import base64
import struct
import wave
import zlib
from io import BytesIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aifinops.pricing.media import audio_tokens, duration, image_size, image_tokens, inline, speech_tokens
from aifinops.pricing.tokens import UNBOUNDED, text_upper_bound

MODELS = [
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4.1-mini",
    "gpt-4.1-nano",
    "o1",
    "o4-mini",
    "gpt-5",
    "gpt-5-nano",
    "gpt-5.2",
    "gpt-5.4",
    "gpt-6-astra",
    "computer-use-preview",
    "claude-3-opus-20240229",
    "anthropic.claude-haiku-4-5-v1:0",
    "claude-opus-4-8",
    "claude-sonnet-5-5",
    "claude-9",
    "gemini-2.5-flash",
    "models/gemini-3-pro",
    "pixtral-12b",
]
sizes = st.tuples(st.integers(1, 12_000), st.integers(1, 12_000))


@settings(max_examples=400)
@given(st.sampled_from(MODELS), sizes, st.sampled_from(["", "low", "high", "auto", "original"]))
@example("claude-9", (7801, 7864), "")
@example("claude-9", (8000, 8000), "")
def test_the_most_is_never_below_what_is_expected(model: str, size: tuple[int, int], detail: str) -> None:
    """For every family and shape; and with the size unknown, never below it with the size known."""
    known, unknown = image_tokens(model, size, detail), image_tokens(model, None, detail)
    assert known.most is not None
    assert 0 < known.expected <= known.most
    # Claude refuses pictures above 8,000 pixels a side, so the bound of an unknown one ends there.
    if unknown.most is not None and max(size) <= 8_000:
        assert known.most <= unknown.most
        assert unknown.expected <= unknown.most


@pytest.mark.parametrize(
    ("model", "size", "detail", "tokens"),
    [
        # OpenAI, "Images and vision", the examples of the page.
        ("gpt-4o", (1024, 1024), "high", 765),
        ("gpt-4o", (2048, 4096), "high", 1105),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("gpt-4o", (200, 300), "", 255),
        ("o1", (1024, 1024), "", 75 + 4 * 150),
        ("gpt-5", (1024, 1024), "", 70 + 4 * 140),
        ("gpt-4.1-mini", (1024, 1024), "", 1659),
        ("gpt-4.1-mini", (1800, 2400), "", 2353),
        # Hugging Face, JOHNISKING/image-token-cost: billed tokens, less those of the text and of the frame.
        *(
            ("gpt-6-astra", size, "auto", tokens)
            for size, tokens in (((256, 256), 77), ((1280, 720), 1104), ((2560, 1440), 4320), ((4032, 3024), 14364))
        ),
        ("gpt-6-astra", (2560, 1440), "high", 2931),
        ("gpt-6-astra", (4032, 3024), "high", 2942),
        ("gpt-5.5", (3840, 2160), "auto", 9792),
        ("gpt-5.5", (4032, 3024), "auto", 11868),
        *(
            ("claude-haiku-4-5", size, "", tokens)
            for size, tokens in (((256, 256), 100), ((1024, 1024), 1369), ((1920, 1080), 1560), ((4032, 3024), 1564))
        ),
        *(
            ("claude-opus-5-5", size, "", tokens)
            for size, tokens in (((1920, 1080), 2691), ((2560, 1440), 2952), ((4032, 3024), 3888))
        ),
        # Gemini: the page's own examples.
        ("gemini-2.5-flash", (384, 384), "", 258),
        ("gemini-2.0-flash", (960, 540), "", 6 * 258),
        ("gemini-3-pro", (960, 540), "", 1120),
        ("gemini-3-pro", (960, 540), "MEDIA_RESOLUTION_LOW", 280),
    ],
)
def test_published_and_measured_counts(model: str, size: tuple[int, int], detail: str, tokens: int) -> None:
    """The formulas give what their pages say, and what was billed."""
    counted = image_tokens(model, size, detail)
    assert counted.expected == tokens
    assert counted.most is not None
    assert counted.most >= tokens


@pytest.mark.parametrize("model", ["gpt-6-astra", "gemini-2.5-pro", "my-deployment"])
def test_a_picture_of_unknown_size_has_no_end_where_none_is_published(model: str) -> None:
    """Unknown is not zero, and not a guess."""
    assert image_tokens(model, None).most is None
    assert image_tokens(model, (0, 10)).most is None


# Headers --------------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x00\x00\x00"


def jpeg(width: int, height: int, *, preview: int = 0, fill: bytes = b"", marker: int = 0xC0) -> bytes:
    exif = b"\xff\xe1" + struct.pack(">H", preview + 2) + b"\xff\xc0" * (preview // 2) if preview else b""
    tables = b"\xff\xc4\x00\x04\x00\x00"
    frame = b"\xff" + bytes([marker]) + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x00" * 9
    return b"\xff\xd8" + exif + tables + fill + frame + b"\xff\xd9"


def webp(kind: str, width: int, height: int) -> bytes:
    if kind == "VP8X":
        body = (
            b"VP8X"
            + struct.pack("<I", 10)
            + b"\x00" * 4
            + (width - 1).to_bytes(3, "little")
            + (height - 1).to_bytes(3, "little")
        )
    elif kind == "VP8L":
        body = (
            b"VP8L"
            + struct.pack("<I", 20)
            + b"\x2f"
            + struct.pack("<I", (width - 1) | (height - 1) << 14)
            + b"\x00" * 8
        )
    else:
        body = (
            b"VP8 "
            + struct.pack("<I", 20)
            + b"\x00" * 3
            + b"\x9d\x01\x2a"
            + struct.pack("<HH", width, height)
            + b"\x00" * 8
        )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@given(st.integers(1, 16_383), st.integers(1, 16_383))
def test_every_format_says_its_size(width: int, height: int) -> None:
    """From the first bytes; nothing is decoded."""
    made = [png(width, height), gif(width, height), *(webp(kind, width, height) for kind in ("VP8X", "VP8L", "VP8 "))]
    made += [
        jpeg(width, height),
        jpeg(width, height, preview=60_000),
        jpeg(width, height, fill=b"\xff\xff", marker=0xC2),
    ]
    assert [image_size(data) for data in made] == [(width, height)] * len(made)


@settings(max_examples=300)
@given(
    st.binary(max_size=80)
    | st.sampled_from(
        [png(9, 9), gif(9, 9), jpeg(9, 9), webp("VP8X", 9, 9), webp("VP8L", 9, 9), webp("VP8 ", 9, 9)]
    ).flatmap(lambda data: st.integers(0, len(data)).map(lambda end: data[:end]))
)
def test_damaged_headers_never_raise(data: bytes) -> None:
    """A cut or foreign file is a picture of unknown size."""
    found = image_size(data)
    assert found is None or min(found) > 0
    assert duration(data, len(data)) is None or duration(data, len(data)) >= 0  # type: ignore[operator]


def test_pictures_without_extent_have_no_size() -> None:
    """Zero pixels are an error of the file."""
    assert image_size(png(0, 5)) is None
    assert image_size(gif(5, 0)) is None
    assert image_size(b"\xff\xd8\xff\xe1\x00\x00") is None
    assert image_size(b"\xff\xd8abcdef") is None


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_a_picture_in_the_request_is_bounded_by_its_size() -> None:
    """OpenAI's address, Anthropic's source, Gemini's and Bedrock's bytes."""
    small, plain = png(512, 512), base64.b64encode(png(512, 512)).decode()
    forms = {
        "gpt-4o": {"type": "image_url", "image_url": {"url": url(small)}},
        "gpt-5": {"type": "input_image", "image_url": url(small), "detail": "high"},
        "claude-opus-4-8": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": plain}},
        "gemini-2.5-pro": {"inlineData": {"mimeType": "image/png", "data": plain}},
        "amazon.nova-pro-v1:0": {"image": {"format": "png", "source": {"bytes": small}}},
    }
    for model, part in forms.items():
        most = image_tokens(model, (512, 512)).most
        assert most is not None
        bound = text_upper_bound({"messages": [{"role": "user", "content": [part]}]}, model=model)
        assert most <= bound <= most + 300


def test_a_jpeg_with_a_long_preview_still_says_its_size() -> None:
    """The size may come after sixty thousand bytes of something else."""
    found = inline(url(jpeg(640, 480, preview=60_000), "image/jpeg"))
    assert found is not None
    assert image_size(found[0]) == (640, 480)


@pytest.mark.parametrize(
    "text", ["https://e.test/a.png", "data:image/png,plain", "data:nothing", "data:image/png;base64,ü" + "ü" * 8]
)
def test_what_is_not_base64_has_no_head(text: str) -> None:
    """Addresses, plain data URLs, and text that is neither."""
    assert inline(text) is None


# Sound ----------------------------------------------------------------------------------------------------------------


def wav(seconds: float, rate: int = 8_000, channels: int = 1, width: int = 2) -> bytes:
    made = BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"\x00" * (int(seconds * rate) * channels * width))
    return made.getvalue()


@given(st.floats(0.1, 20), st.sampled_from([8_000, 16_000, 44_100]), st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_wav_says_how_long_it_is(seconds: float, rate: int, channels: int, width: int) -> None:
    """By what is in the file; its own count of bytes may be unset in a stream."""
    data = wav(seconds, rate, channels, width)
    found = duration(data[:64], len(data))
    assert found == pytest.approx(seconds, abs=0.02)
    lying = data[:40] + b"\xff\xff\xff\xff" + data[44:]
    assert duration(lying, len(lying)) == found


def test_sounds_count_by_their_length() -> None:
    """OpenAI hears ten tokens a second, Gemini thirty-two; OpenAI speaks twenty."""
    data = wav(10)
    ten = audio_tokens("gpt-4o-audio-preview", data[:100], len(data))
    assert (ten.expected, ten.most) == (101, 111)  # the header is taken as sound: never too few
    assert audio_tokens("gemini-2.5-flash", data[:100], len(data)).expected == 321
    assert speech_tokens(10) == 200


def test_a_sound_without_a_length_is_bounded_by_its_bytes_or_not_at_all() -> None:
    """MP3 has a lowest rate; FLAC writes silence in nothing."""
    mp3 = audio_tokens("gpt-4o-audio-preview", b"\xff\xfb", 300_000, "mp3")
    assert mp3.most == 3_010
    assert mp3.expected < mp3.most
    assert audio_tokens("gemini-2.5-flash", b"fLaC", 300_000, "audio/flac").most is None
    part = {"inlineData": {"mimeType": "audio/flac", "data": base64.b64encode(b"fLaC" * 9).decode()}}
    assert text_upper_bound({"contents": [{"parts": [part]}]}, model="gemini-3-pro") == UNBOUNDED
