"""The frames of Amazon's event streams: read wherever the bytes begin and end, and never past what is there."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifinops.integrations import amazon, registry
from aifinops.integrations.extract import Reader

READER = Reader(registry.provider("bedrock").routes["ConverseStream"], "aws.bedrock")
USAGE = {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 30, "cacheWriteInputTokens": 10}


def frame(name: str, payload: bytes, kind: str = "event", more: bytes = b"") -> bytes:
    names = {f":{'event' if kind == 'event' else kind}-type": name, ":message-type": kind}
    head = more + b"".join(
        struct.pack(f"!B{len(key)}sBH{len(value)}s", len(key), key.encode(), 7, len(value), value.encode())
        for key, value in names.items()
    )
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    prelude += struct.pack("!I", zlib.crc32(prelude))
    return prelude + head + payload + struct.pack("!I", zlib.crc32(prelude + head + payload))


def event(name: str, said: Any) -> bytes:
    return frame(name, json.dumps(said).encode())


STREAM = [
    event("messageStart", {"role": "assistant"}),
    *(event("contentBlockDelta", {"delta": {"text": f"word {number} "}}) for number in range(30)),
    event("messageStop", {"stopReason": "end_turn"}),
    event("metadata", {"usage": USAGE}),
]
DATA = b"".join(STREAM)


@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)))
def test_every_whole_frame_of_any_part_of_a_stream_is_read(start: int, stop: int) -> None:
    """The oldest bytes of a long stream are let go and a broken one lacks its end: the frames between are all there, in order."""
    begins = [0]
    for one in STREAM:
        begins.append(begins[-1] + len(one))
    whole = [STREAM[n] for n in range(len(STREAM)) if start <= begins[n] and begins[n + 1] <= stop]
    assert amazon.as_lines(amazon.frames(DATA[start:stop])) == amazon.as_lines(
        [found for one in whole for found in amazon.frames(one)]
    )
    assert len(amazon.frames(DATA[start:stop])) == len(whole)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_frames_are_none(data: bytes) -> None:
    """Nothing is made up and nothing raised."""
    assert amazon.frames(data) == []


def test_the_end_of_a_stream_has_its_usage() -> None:
    """With only the last frames left, too; without them there is the text that came."""
    for data in (DATA, DATA[len(DATA) // 2 :]):
        reading, _ = amazon.read_stream(amazon.frames(data), amazon.told_of({"x-amzn-requestid": "r-1"}), READER)
        assert reading is not None
        assert reading.quantities == {
            "input_tokens": 10,
            "cache_read_tokens": 30,
            "cache_write_tokens": 10,
            "output_tokens": 5,
        }
        assert reading.response_id == "r-1"
    reading, came = amazon.read_stream(amazon.frames(b"".join(STREAM[:-1])), amazon.told_of({}), READER)
    assert reading is None
    assert came.text == "".join(f"word {number} " for number in range(30))


@pytest.mark.parametrize(
    "bad",
    [
        frame("chunk", b'{"bytes": "!"}'),
        frame("chunk", b"[]"),
        frame("metadata", b"{"),
        frame("throttlingException", b'{"message": "slow down"}', "exception"),
        frame("metadata", b"{}", more=b"\x09a"),  # a header that is longer than all of them
        frame("metadata", b"{}", more=b"\x01a\x00"),  # a header of a kind that this service has none of
    ],
)
def test_a_damaged_event_hides_no_other(bad: bytes) -> None:
    """An exception is no event, and a payload that cannot be read is left out."""
    reading, _ = amazon.read_stream(amazon.frames(STREAM[0] + bad + STREAM[-1]), amazon.told_of({}), READER)
    assert reading is not None
    assert reading.quantities["output_tokens"] == 5
