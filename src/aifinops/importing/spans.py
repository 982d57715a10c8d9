"""Spans that were written to files: OTLP/JSON of any exporter, and one span a line as OpenTelemetry's SDKs print them.

OTLP/JSON: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding (ids in hex, 64-bit numbers as text). What a span says is
read by the same table as for spans in flight (`aifinops.telemetry.foreign`). A span that another call stands below repeats what its
child says; such parents are found first, in a pass of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from aifinops.importing.records import Left, Malformed, Record, moment_ns, tags_of, text
from aifinops.reading import Reading
from aifinops.tags import KNOWN
from aifinops.telemetry import names
from aifinops.telemetry.foreign import is_inference, read

__all__ = ["Spans", "spans"]

_MEASURED = tuple(f"{names.COST_PREFIX}{name}" for name in ("total", "basis"))
_TAGS = {attribute: tag for tag, attribute in names.TAGS.items() if tag in KNOWN}
_MORE_TAGS = {
    "user.id": "user",
    "enduser.id": "user",
    "session.id": "session",
    "deployment.environment.name": "environment",
    "deployment.environment": "environment",
    "service.name": "service",
}
_VALUES = ("stringValue", "intValue", "doubleValue", "boolValue", "bytesValue")

_Span = Mapping[str, Any]


def spans(value: Mapping[str, Any]) -> Iterator[tuple[str, _Span]]:
    """The spans in an item of a file, each with its attributes as a plain mapping, those of its resource under `resource`."""
    groups = value.get("resourceSpans", value.get("resource_spans"))
    if groups is None:
        yield "", _plain(value)
        return
    number = 0
    for group in _list(groups):
        resource = _attributes((group.get("resource") or {}).get("attributes"))
        for scope in _list(group.get("scopeSpans", group.get("scope_spans", group.get("instrumentationLibrarySpans")))):
            told = scope.get("scope") or scope.get("instrumentationLibrary") or {}
            for span in _list(scope.get("spans")):
                number += 1
                yield f"span {number}", {**_plain(span), "resource": resource, "scope": text(told.get("name"))}


def _list(value: Any) -> Sequence[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _plain(span: Mapping[str, Any]) -> dict[str, Any]:
    """One spelling of what exporters write in several."""
    context = span.get("context") if isinstance(span.get("context"), Mapping) else {}
    resource = span.get("resource")
    scope = span.get("instrumentation_scope", span.get("scope"))
    return {
        "attributes": _attributes(span.get("attributes")),
        "resource": _attributes(resource.get("attributes", resource)) if isinstance(resource, Mapping) else {},
        "scope": text(scope.get("name")) if isinstance(scope, Mapping) else text(scope),
        "trace_id": _hex(_first(span, "traceId", "trace_id") or _first(context or {}, "trace_id", "traceId"), 32),
        "span_id": _hex(_first(span, "spanId", "span_id") or _first(context or {}, "span_id", "spanId"), 16),
        "parent": _hex(_first(span, "parentSpanId", "parent_span_id", "parent_id"), 16),
        "start": _first(span, "startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime", "timestamp"),
        "end": _first(span, "endTimeUnixNano", "end_time_unix_nano", "end_time", "endTime"),
    }


def _first(value: Mapping[str, Any], *keys: str) -> Any:
    return next((value[key] for key in keys if value.get(key) not in (None, "")), None)


def _hex(value: Any, digits: int) -> str:
    """An id in hex without what some write before it; nothing for what is none."""
    found = text(value).lower().removeprefix("0x")
    try:
        return f"{int(found, 16):0{digits}x}" if found and int(found, 16) else ""
    except ValueError:
        return found  # another tool's own form of an id: as good to tell spans apart


def _attributes(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {key: _number(found) for key, found in value.items()}
    return {text(pair.get("key")): _value(pair.get("value")) for pair in _list(value)}


def _value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _number(value)
    if "arrayValue" in value:
        return [_value(one) for one in _list((value["arrayValue"] or {}).get("values"))]
    found = next((value[name] for name in _VALUES if name in value), None)
    if "intValue" in value and isinstance(found, str):
        try:
            return int(found)
        except ValueError:
            raise Malformed(f"intValue {found!r} is no number") from None
    return _number(found)


def _number(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


class Spans:
    """Reads spans, knowing which of them only repeat what others say."""

    def __init__(self) -> None:
        self._repeat: set[tuple[str, str]] = set()

    def prepare(self, parts: Iterable[_Span]) -> None:
        """Look at every span once: those above a call are not calls of their own.

        A framework's spans stand in a chain over the client's: each that is above a call, at any height, is left out where it would count
        as one itself.
        """
        above: dict[tuple[str, str], str] = {}
        calls: list[tuple[str, str]] = []
        for span in parts:
            place = (span["trace_id"], span["span_id"])
            if span["parent"]:
                above[place] = span["parent"]
            if is_inference(span["scope"], span["attributes"]) or names.RECORD_ID in span["attributes"]:
                calls.append(place)
        for trace, one in calls:
            upper = above.get((trace, one))
            while upper is not None and (trace, upper) not in self._repeat:
                self._repeat.add((trace, upper))
                upper = above.get((trace, upper))

    def record(self, span: _Span) -> Record:
        """The call that a span tells.

        Raises:
            Left: for what is no call of a model. Malformed: for a call without what it takes to price it.
        """
        said, scope = span["attributes"], span["scope"]
        if not is_inference(scope, said):
            raise Left("spans that are no call of a model")
        if (span["trace_id"], span["span_id"]) in self._repeat:
            raise Left("spans that repeat what a call below them says")
        call = read(scope, said)
        if call is None:
            failed = text(said.get(names.ERROR_TYPE))
            if failed:
                raise Left("calls that failed without usage")
            raise Malformed(f"is a call of a model, but names no {_missing(said)}")
        began = moment_ns(span["start"], "start time")
        ended = moment_ns(span["end"], "end time") if span["end"] is not None else began
        record_id = text(said.get(names.RECORD_ID))
        return Record(
            provider=call.provider, model=call.model, operation=call.operation, stream=call.stream, at=began,
            duration=max(ended - began, 0), reading=_own(call.reading, said),
            key=record_id or f"{span['trace_id']}|{span['span_id']}".strip("|"), error=text(said.get(names.ERROR_TYPE)).rpartition(".")[2],
            tags=_tags(said, span["resource"]), trace_id=span["trace_id"], span_id=span["span_id"],
        )  # fmt: skip


def _missing(said: Mapping[str, Any]) -> str:
    lacking = [
        word
        for word, keys in (
            ("provider", (names.PROVIDER, "gen_ai.system", "llm.provider", "llm.system")),
            ("model", (names.REQUEST_MODEL, names.RESPONSE_MODEL, "llm.model_name", "llm.request.model")),
        )
        if not any(text(said.get(key)) for key in keys)
    ]
    return " and no ".join(lacking) or "tokens"


def _own(reading: Reading, said: Mapping[str, Any]) -> Reading:
    """What our own spans say beyond the conventions: the tier that was priced."""
    reading.tier = reading.tier or text(said.get(names.PRICE_TIER))
    return reading


def _tags(said: Mapping[str, Any], resource: Mapping[str, Any]) -> Mapping[str, str]:
    found: dict[str, Any] = {tag: resource[key] for key, tag in _MORE_TAGS.items() if key in resource}
    found |= {tag: said[key] for key, tag in _MORE_TAGS.items() if key in said}
    for key, value in said.items():
        if key in _TAGS:
            found[_TAGS[key]] = value
        elif key.startswith(names.TAG_PREFIX):
            found[key.removeprefix(names.TAG_PREFIX)] = value
    return tags_of({tag: value for tag, value in found.items() if isinstance(value, (str, int))})
