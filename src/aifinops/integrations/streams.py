"""From the bytes or objects of a whole stream to its usage, by the row of its route; and to its text where no usage came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from aifinops.integrations.extract import Reader, plain_copy
from aifinops.integrations.paths import plain, split
from aifinops.reading import Reading

__all__ = ["StreamText", "collected", "first_event", "read_events", "read_objects", "said"]


class StreamText:
    """What a stream without usage delivered: its text and in how many pieces."""

    def __init__(self) -> None:
        self.text = ""
        self.pieces = 0
        self.finished = False


def _data_lines(data: bytes) -> list[bytes]:
    return [line[5:].strip() for line in data.splitlines() if line.startswith(b"data:")]


def _json_lines(data: bytes) -> list[bytes]:
    """The events of a stream that is one JSON object a line."""
    return [line for line in data.splitlines() if line.startswith(b"{")]


def read_events(data: bytes, reader: Reader) -> tuple[Reading | None, StreamText]:
    """Read the bytes of a whole answer: server-sent events, one JSON object a line, or one JSON body.

    Returns:
        The last usage that was reported (later reports replace earlier ones), or None; and, for that case, the text that came.
    """
    found = _merged_usage(data, reader) if reader.route.merge else _last_usage(data, reader)
    if found is not None:
        return found, StreamText()
    lines = _data_lines(data)
    body = _json(data) if not lines else None
    if isinstance(body, dict):
        found = reader.tolerant(body)
        return (found, StreamText()) if found is not None else (None, _whole(body, reader))
    if isinstance(body, list):  # of vectors, mostly
        return read_objects(body, reader) if body and isinstance(body[0], dict) else (None, _whole(body, reader))
    return None, _collect(lines or _json_lines(data), reader)


def collected(data: bytes, reader: Reader) -> StreamText:
    """The text of part of a stream: whole lines of it."""
    return _collect(_data_lines(data) or _json_lines(data), reader)


def said(data: bytes, reader: Reader) -> Any:
    """What an answer said, for those who have asked for it: the text of a stream, or the body of one that is none."""
    lines = _data_lines(data)
    return _collect(lines, reader).text if lines else first_event(data)


def _last_usage(data: bytes, reader: Reader) -> Reading | None:
    """The newest event that has a usage, looked for from the end: of a long stream only one or two lines are ever parsed."""
    for mark in reader.marks:
        end, nothing, spaced = len(data), mark + b":null", mark + b": null"
        while (at := data.rfind(mark, 0, end)) >= 0:
            start = data.rfind(b"\n", 0, at) + 1
            stop = data.find(b"\n", at)
            line = data[start : stop if stop >= 0 else len(data)]
            event = line[5:] if line.startswith(b"data:") else line if line.startswith(b"{") else b""
            # Most servers put "usage": null into every chunk: looking at the bytes first saves parsing them all.
            if event and nothing not in event and spaced not in event:
                found = reader.tolerant(reader.event_body(_json(event)))
                if found is not None:
                    return found
            end = start
    return None


def read_objects(events: list[Any], reader: Reader, *, tools: bool = True) -> tuple[Reading | None, StreamText]:
    """`read_events` for a stream that its library hands out as objects, or as dicts, of which some may be lost from the beginning.

    Args:
        tools: False when the request offered none, so that nobody need look for them in every event.
    """
    found = None
    if reader.route.running:
        found = _running(events, reader, tools=tools)
    elif reader.route.merge:
        found = _merged(iter(events), reader)
    else:
        found = next(filter(None, (reader.tolerant(reader.event_body(event)) for event in reversed(events))), None)
    if found is not None and (found.finish_reasons or not reader.route.running):
        return found, StreamText()
    collected, pieces = StreamText(), list(filter(None, map(reader.text, events)))
    collected.text, collected.pieces = "".join(pieces), len(pieces)
    return found, collected


def _merged_usage(data: bytes, reader: Reader) -> Reading | None:
    lines = (line for line in data.splitlines() if line.startswith(b"data:") and b'"usage"' in line)
    return _merged((_json(line[5:]) for line in lines), reader)


def _merged(events: Iterator[Any], reader: Reader) -> Reading | None:
    """The usage of a stream whose events add to one another: of each field the newest value that is not null.

    None when no event after the first has a usage: what the first says of the output is only a beginning.
    """
    body: dict[str, Any] = {}
    final = False
    for event in events:
        for source, target in reader.route.merge:
            piece = plain(event, split(source))
            if piece is not None:
                piece = plain_copy(piece) if type(piece) is not dict else piece
                _overlay(body, {target: piece} if target else piece)
                final = final or target == reader.route.raw
    return reader.tolerant(body) if final else None


def _running(events: list[Any], reader: Reader, *, tools: bool) -> Reading | None:
    """The newest event, with of each field of the usage the newest value that is not null, and the most of each tool."""
    usage: dict[str, Any] = {}
    name, path = reader.route.raw, split(reader.route.raw)
    last = None
    for event in events:
        newer = event.get(name) if type(event) is dict else plain_copy(plain(event, path))
        if newer and type(newer) is dict:
            last = event
            usage.update(newer if None not in newer.values() else {k: v for k, v in newer.items() if v is not None})
    if last is None:
        return None
    newest = {**events[-1], name: usage} if type(events[-1]) is dict else last
    reading = reader.tolerant(newest)
    return reader.most_tools(reading, events) if tools and reading is not None else reading


def _overlay(body: dict[str, Any], newer: Any) -> None:
    """Put one into the other, copying: an event is perhaps the user's own."""
    for name, value in newer.items() if isinstance(newer, dict) else ():
        if isinstance(value, dict):
            inner = body.get(name)
            if not isinstance(inner, dict):
                inner = body[name] = {}
            _overlay(inner, value)
        elif value is not None:
            body[name] = value


def _whole(body: Any, reader: Reader) -> StreamText:
    collected = StreamText()
    collected.text, collected.finished = reader.text(body), True
    return collected


def _collect(lines: list[bytes], reader: Reader) -> StreamText:
    collected, pieces, ended = StreamText(), [], reader.route.ended
    for line in lines:
        if line == b"[DONE]":
            collected.finished = True
            continue
        event = _json(line)
        if ended and isinstance(event, dict) and event.get("type") == ended:
            collected.finished = True
        text = reader.text(event)
        if text:
            pieces.append(text)
    collected.text, collected.pieces = "".join(pieces), len(pieces)
    return collected


def first_event(data: bytes) -> Any:
    """The first event of a stream, which names model and id, or a whole JSON body; None when there is none."""
    for line in _data_lines(data) or [data, *_json_lines(data)]:
        event = _json(line)
        if event is not None:
            return event
    return None


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # a line cut in half by a broken connection
        return None
