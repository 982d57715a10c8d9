"""What is taken out of a stream that was asked for its usage by us: that, and not one byte more, however it is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifinops import errors
from aifinops.integrations import hiding
from aifinops.integrations.hiding import Hider, _cut

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
TALE = ['a ,"usage":null b', '"usage"', "usage", "\n\n", '{"choices":[],"usage":{"prompt_tokens":1}}', "π\r\n\r\n", ""]


def event(body: Any, end: str, spaced: bool = False) -> bytes:
    text = json.dumps(body, separators=(", ", ": ") if spaced else (",", ":"))
    return f"data: {text}{end}{end}".encode()


def stream(texts: list[str], end: str, asked: bool, spaced: bool = False, comment: bool = False) -> bytes:
    """A stream of chat completions as a server makes it, that was asked for usage or was not."""
    null = {"usage": None} if asked else {}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk"}
    made = [
        event({**head, "choices": [{"index": 0, "delta": {"content": text}}], **null}, end, spaced) for text in texts
    ]
    made.insert(0, event({"choices": [], "prompt_filter_results": [], **null}, end, spaced))  # Azure begins with one
    if comment:
        made.insert(1, f": waiting{end}{end}".encode())
    if asked:
        made.append(event({**head, "choices": [], "usage": USAGE}, end, spaced))
    return b"".join([*made, f"data: [DONE]{end}{end}".encode()])


def shown(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return list(Hider().all(iter([data[a:b] for a, b in pairwise(edges)])))


@settings(deadline=None)
@given(
    texts=st.lists(st.sampled_from(TALE) | st.text(), max_size=5),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    spaced=st.booleans(),
    comment=st.booleans(),
    cuts=st.lists(st.integers(0, 5000), max_size=40),
)
def test_what_is_left_is_the_stream_that_was_not_asked(
    texts: list[str], end: str, spaced: bool, comment: bool, cuts: list[int]
) -> None:
    """Byte for byte the stream that the same server sends unasked, wherever the pieces are cut and whatever is said in it."""
    asked = stream(texts, end, True, spaced, comment)
    assert b"".join(shown(asked, cuts)) == stream(texts, end, False, spaced, comment)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_event_goes_on_with_the_byte_that_ends_it(end: str, size: int) -> None:
    """Nothing waits longer than the client itself would make it wait: for the end of an event."""
    data = event({"choices": [{"delta": {"content": "one"}}], "usage": None}, end)
    plain = event({"choices": [{"delta": {"content": "one"}}]}, end)
    hider, come = Hider(), b""
    for at in range(0, len(data), size):
        come += hider.take(data[at : at + size])
    assert come == plain
    assert hider.rest() == b""


def test_usage_beside_choices_is_the_servers_own() -> None:
    """A chunk that has choices is never hidden, and what it says of usage stays."""
    data = event({"choices": [{"delta": {"content": "x"}}], "usage": USAGE}, "\n")
    assert b"".join(shown(data, [])) == data


@pytest.mark.parametrize(
    "data",
    [b"", b"data: {broken \"usage\" json\n\n", b"data: [1]\n\n", b'{"error":{"message":"usage"},"usage":{}}', b"\xff\xfe\n\n", b"data: \"usage\"\n\n"],
)  # fmt: skip
def test_what_is_no_such_event_passes(data: bytes) -> None:
    """Errors, other JSON and broken events come out as they went in."""
    assert b"".join(shown(data, [3, 5])) == data


def test_what_came_before_a_connection_broke_is_passed_on() -> None:
    """Half an event is handed over before the error goes on."""

    def broken() -> Any:
        yield b"data: {}\n\ndata: {ha"
        raise ConnectionError

    come = []
    with pytest.raises(ConnectionError):
        come.extend(come.append(part) or [part] for part in Hider().all(broken()))  # type: ignore[func-returns-value]
    assert b"".join(part for part in come if isinstance(part, bytes)) == b"data: {}\n\ndata: {ha"


def test_no_stream_of_events_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound without an end of an event, everything passes as it is."""
    monkeypatch.setattr(hiding, "MAX_EVENT", 1000)
    hider = Hider()
    come = [hider.take(b"x" * 100) for _ in range(20)]
    assert max(map(len, come)) <= 1100
    assert b"".join(come) + hider.rest() == b"x" * 2000


def test_a_failure_of_ours_shows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be looked into is passed on, and counted."""
    errors.reraise_failures(False)
    monkeypatch.setattr(hiding, "_without", lambda data: 1 / 0)
    data = stream(["one", "two"], "\n", True)
    assert USAGE["prompt_tokens"] == 9
    assert b'"prompt_tokens":9' in b"".join(shown(data, [50, 120]))
    assert errors.failures()["integrations.hiding"] == 1


@settings(deadline=None)
@given(
    place=st.sampled_from(["_joined", "_kept", "_without", "_shown", "_without_null", "Hider.take", "Hider.taking"]),
    at=st.integers(0, 6),
    error=st.sampled_from([RuntimeError, KeyError, MemoryError, StopIteration]),
    texts=st.lists(st.sampled_from(TALE), min_size=1, max_size=4),
    spaced=st.booleans(),
    cuts=st.lists(st.integers(0, 2000), max_size=20),
)  # fmt: skip
def test_a_failure_of_ours_at_any_step_loses_no_byte_and_repeats_none(
    place: str, at: int, error: type[Exception], texts: list[str], spaced: bool, cuts: list[int]
) -> None:
    """Whichever step fails, and whenever: hiding what is left in what came out gives the stream that was not asked."""
    errors.reraise_failures(False)
    asked = stream(texts, "\n", True, spaced)
    owner, name = (hiding.Hider, place.partition(".")[2]) if "." in place else (hiding, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), at, error))
        come = b"".join(shown(asked, cuts))
    assert b"".join(shown(come, [])) == stream(texts, "\n", False, spaced)


def failing(function: Any, at: int, error: type[Exception]) -> Any:
    """A function that fails when it is called for the time after `at` others."""
    calls = iter(range(10**6))

    def call(*args: Any) -> Any:
        if next(calls) == at:
            raise error("injected")
        return function(*args)

    return call


async def test_a_failure_of_ours_in_an_asynchronous_stream_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in the other colour."""
    errors.reraise_failures(False)
    asked = stream(["one", "two", "three"], "\n", True, True)

    async def pieces() -> Any:
        for at in range(0, len(asked), 50):
            yield asked[at : at + 50]

    monkeypatch.setattr(hiding, "_kept", failing(hiding._kept, 1, MemoryError))
    come = b"".join([part async for part in hiding._aall(Hider(), pieces())])
    assert b"".join(shown(come, [])) == stream(["one", "two", "three"], "\n", False, True)
    assert errors.failures() == {"integrations.hiding": 1}


def test_the_end_of_a_stream_is_not_lost_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What still waits when a stream ends without an end of its last event goes on as it is."""
    errors.reraise_failures(False)
    data = stream(["one"], "\n", True, True)[:-3]
    monkeypatch.setattr(hiding, "_kept", failing(hiding._kept, 0, RuntimeError))
    assert b"".join(shown(data[-9:], [])) == data[-9:]
    assert errors.failures() == {"integrations.hiding": 1}


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=20), st.integers(1, 30))
def test_pieces_of_a_size(parts: list[bytes], size: int) -> None:
    """All but the last are of the size that was asked for, and nothing is lost."""
    pieces = list(_cut(iter(parts), size))
    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) == size for piece in pieces[:-1])
