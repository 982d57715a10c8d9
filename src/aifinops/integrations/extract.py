"""From a provider's answer (JSON or SDK object) to disjoint usage, by the paths of its row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aifinops.errors import ImpossibleUsage
from aifinops.integrations.provider import TOTALS, Route
from aifinops.metering import Reading
from aifinops.meters import METERS
from aifinops.usage import leaves

__all__ = ["Reader", "StreamText", "dig", "first_event", "read_events"]

_Tree = tuple[tuple[str, Any], ...]

# A part of a part: the TTLs of a cache write are inside its total.
_INNER = {"cache_write_tokens": ("cache_write_30m_tokens", "cache_write_12h_tokens", "cache_write_1h_tokens")}


def field(value: Any, name: str) -> Any:
    """One name of a dict or object, None when it is not there.

    A pydantic model answers for a name that it does not have by raising, which takes longer than all the rest of reading an answer;
    its fields are in `__dict__`, and what its class does not know is in `__pydantic_extra__`.
    """
    if type(value) is dict:
        return value.get(name)
    inner = getattr(value, "__dict__", _NOTHING).get(name)
    if inner is not None:
        return inner
    extra = getattr(value, "__pydantic_extra__", _NOTHING)
    if extra is not _NOTHING:
        return extra.get(name) if extra else None
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


_NOTHING: dict[str, Any] = {}


def dig(value: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of names into dicts and objects; None when anything on the way is missing."""
    for name in path:
        if value is None:
            return None
        value = field(value, name)
    return value


def _texts(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Every text at a path; lists on the way are walked through."""
    if isinstance(value, list):
        for item in value:
            yield from _texts(item, path)
    elif not path:
        if isinstance(value, str):
            yield value
    elif value is not None:
        name, *rest = path
        yield from _texts(field(value, name), tuple(rest))


class Reader:
    """A route's paths, compiled once into a tree so that each object on the way is asked once."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self._tree = _tree(route.usage)
        self._model = _path(route.model)
        self._id = _path(route.response_id)
        self._tier = _path(route.tier)
        self._finish = _path(route.finish)
        self._event = _path(route.event)
        self._text = tuple(_path(text) for text in route.text)
        # (inclusive count, the meter that keeps its rest, the meters that are parts of it); inner wholes come first.
        self._wholes = [
            (whole, whole, tuple(name for name in parts if name in route.usage))
            for whole, parts in _INNER.items()
            if any(name in route.usage for name in parts)
        ] + [
            (total, TOTALS[total], tuple(name for name in route.usage if _direction(name) == direction))
            for total, direction in (("input_total", "input"), ("output_total", "output"))
            if total in route.usage
        ]

    def read(self, body: Any) -> Reading | None:
        """What a body says, or None when it has no usage.

        Raises:
            ImpossibleUsage: when parts are above their whole, or a count is no count.
        """
        found: dict[str, int] = {}
        _walk(body, self._tree, found)
        if not found:
            return None
        return self._complete(Reading(self._disjoint(found), raw=_raw(dig(body, ("usage",)))), body)

    def tolerant(self, body: Any) -> Reading | None:
        """`read`, but counts that contradict each other are a problem of the reading: cost unknown, raw usage kept."""
        try:
            return self.read(body)
        except ImpossibleUsage as error:
            return self._complete(Reading(raw=_raw(dig(body, ("usage",))), problem=str(error)), body)

    def describe(self, body: Any) -> Reading:
        """Model, id and tier of a body without usage."""
        return self._complete(Reading(), body)

    def _complete(self, reading: Reading, body: Any) -> Reading:
        reading.model = _word(dig(body, self._model))
        reading.response_id = _word(dig(body, self._id)) if self._id else ""
        reading.tier = _word(dig(body, self._tier))
        if self._finish:
            reading.finish_reasons = tuple(_texts(body, self._finish))
        return reading

    def _disjoint(self, found: dict[str, int]) -> dict[str, int]:
        for whole, rest_of_it, names in self._wholes:
            if whole in found:
                rest = count = found.pop(whole)
                for name in names:
                    rest -= found.get(name, 0)
                if rest < 0:
                    parts = {name: found[name] for name in names if name in found}
                    leaves(count, parts, whole_name=self.route.usage.get(whole, whole))  # raises, naming the numbers
                found[rest_of_it] = rest
        return {name: count for name, count in found.items() if count}

    def event_body(self, event: Any) -> Any:
        """The body inside a stream's event: the event itself, or the object that it carries."""
        return dig(event, self._event) if self._event else event

    def text(self, body: Any) -> str:
        """All generated text of a body or a stream event."""
        return "".join(text for path in self._text for text in _texts(body, path))


def _direction(name: str) -> str:
    return METERS[name].direction if name in METERS else ""


def _tree(usage: Mapping[str, str]) -> _Tree:
    root: dict[str, Any] = {}
    for name, path in usage.items():
        node = root
        *outer, last = path.split(".")
        for part in outer:
            node = node.setdefault(part, {})
        node[last] = name
    return _freeze(root)


def _freeze(node: dict[str, Any]) -> _Tree:
    return tuple((name, child if isinstance(child, str) else _freeze(child)) for name, child in node.items())


def _walk(value: Any, tree: _Tree, found: dict[str, int]) -> None:
    for name, node in tree:
        inner = field(value, name)
        if inner is None:
            continue
        if type(node) is str:
            found[node] = inner if type(inner) is int and inner >= 0 else _count(node, inner)
        else:
            _walk(inner, node, found)


def _count(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer() and value >= 0:
        return int(value)
    raise ImpossibleUsage(f"{name}={value!r} is no count")


def _path(text: str) -> tuple[str, ...]:
    return tuple(text.split(".")) if text else ()


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _raw(usage: Any) -> Mapping[str, Any] | None:
    if isinstance(usage, dict):  # perhaps the user's own, who may change it before it is in the ledger
        return {key: dict(value) if type(value) is dict else value for key, value in usage.items()}
    if usage is None:
        return None
    dump = getattr(usage, "model_dump", None) or getattr(usage, "dict", None)
    return dump(exclude_none=True) if dump is not None else None


# --- streams ---------------------------------------------------------------------------------------------------------


class StreamText:
    """What a stream without usage delivered: its text and in how many pieces."""

    def __init__(self) -> None:
        self.text = ""
        self.pieces = 0
        self.finished = False


def _data_lines(data: bytes) -> list[bytes]:
    return [line[5:].strip() for line in data.splitlines() if line.startswith(b"data:")]


def read_events(data: bytes, reader: Reader) -> tuple[Reading | None, StreamText]:
    """Read the bytes of a whole answer: server-sent events, or one JSON body.

    Returns:
        The last usage that was reported (later reports replace earlier ones), or None; and, for that case, the text that came.
    """
    found = _last_usage(data, reader)
    if found is not None:
        return found, StreamText()
    lines = _data_lines(data)
    body = _json(data) if not lines else None
    if isinstance(body, dict):
        found = reader.tolerant(body)
        return (found, StreamText()) if found is not None else (None, _whole(body, reader))
    return None, _collect(lines, reader)


def _last_usage(data: bytes, reader: Reader) -> Reading | None:
    """The newest event that has a usage, looked for from the end: of a long stream only one or two lines are ever parsed."""
    end = len(data)
    while (at := data.rfind(b'"usage"', 0, end)) >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        stop = data.find(b"\n", at)
        line = data[start : stop if stop >= 0 else len(data)]
        # Most servers put "usage": null into every chunk: looking at the bytes first saves parsing them all.
        if line.startswith(b"data:") and b'"usage":null' not in line and b'"usage": null' not in line:
            found = reader.tolerant(reader.event_body(_json(line[5:])))
            if found is not None:
                return found
        end = start
    return None


def _whole(body: Any, reader: Reader) -> StreamText:
    collected = StreamText()
    collected.text, collected.finished = reader.text(body), True
    return collected


def _collect(lines: list[bytes], reader: Reader) -> StreamText:
    collected, pieces = StreamText(), []
    for line in lines:
        if line == b"[DONE]":
            collected.finished = True
            continue
        text = reader.text(_json(line))
        if text:
            pieces.append(text)
    collected.text, collected.pieces = "".join(pieces), len(pieces)
    return collected


def first_event(data: bytes) -> Any:
    """The first event of a stream, which names model and id, or a whole JSON body; None when there is none."""
    for line in _data_lines(data) or [data]:
        event = _json(line)
        if event is not None:
            return event
    return None


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # a line cut in half by a broken connection
        return None
