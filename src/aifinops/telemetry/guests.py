"""Calls whose span somebody else makes: our cost goes onto their span, and in mode `emit` theirs is kept from being made.

A span that has ended takes no attributes, also not in a processor's `_on_ending`
(https://opentelemetry.io/docs/specs/otel/trace/sdk/#onending describes it; the Python SDK 1.45 only warns). So a cost reaches a foreign
span while it is open, or the copy of it that is exported: what came too late waits in `late`, until the exporter asks for it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from aifinops.telemetry import names
from aifinops.telemetry.foreign import is_inference

__all__ = ["Guest", "hosted", "late", "quieten"]

MOST_LATE = 4096
"""Costs that wait for the exporter; beyond it the oldest are let go."""

SUPPRESS = "suppress_language_model_instrumentation"
"""The context key that Traceloop's instrumentations, and others after them, look at before they make a span."""

_MISTRAL = "mistralai_sdk_tracer"
_GENAI = "opentelemetry.util.genai.invocation"
_KINDS = (
    ("CLIENT_INFERENCE_CONTEXT_KEY", "InferenceData"),
    ("CLIENT_EMBEDDING_CONTEXT_KEY", "EmbeddingData"),
    ("CLIENT_FETCH_RESPONSE_CONTEXT_KEY", "FetchResponseData"),
    ("CLIENT_RETRIEVAL_CONTEXT_KEY", "RetrievalData"),
)
"""What silences the official instrumentations: a context value of the right class, which they then fill. `True` does nothing."""


def quieten(context: Any) -> Any:
    """A context in which the official instrumentations and Traceloop's make no span; spans of HTTP clients are still made."""
    from opentelemetry.context import set_value

    context = set_value(SUPPRESS, True, context)
    module = sys.modules.get(_GENAI)
    for key, kind in _KINDS if module is not None else ():
        made = getattr(module, kind, None)
        if made is not None:
            context = set_value(getattr(module, key), made(), context)
    return context


def hosted() -> bool:
    """Whether the current span is somebody else's, of a model call, or somebody has said that there is one."""
    if "opentelemetry.trace" not in sys.modules:
        return False
    from opentelemetry.context import get_value

    return get_value(SUPPRESS) is True or _is_host(_current())


def _current() -> Any:
    from opentelemetry import trace

    return trace.get_current_span()


def _is_host(span: Any) -> bool:
    if not span.is_recording():
        return False
    scope = getattr(_bare(span), "instrumentation_scope", None)
    name = "" if scope is None else scope.name
    # Mistral's client calls agents and conversations `invoke_agent`; its span is current only while that one request is sent.
    return name != names.SCOPE and (name == _MISTRAL or is_inference(name, _said(span)))


def _bare(span: Any) -> Any:
    """The SDK's span inside a wrapper that does not show its attributes (Logfire's)."""
    while getattr(span, "instrumentation_scope", None) is None and hasattr(span, "span"):
        span = span.span
    return span


def _said(span: Any) -> Mapping[str, Any]:
    return getattr(_bare(span), "attributes", None) or {}


class Guest:
    """A call under a foreign span, from its beginning until its cost is on it.

    Attributes:
        context: ids of the foreign span, else of the span around the call.
    """

    __slots__ = ("_held", "_span", "context")

    def __init__(self) -> None:
        current = _current()
        self.context = current.get_span_context()
        self._span = current if _is_host(current) else None
        self._held: _Held | None = None

    @property
    def found(self) -> bool:
        """Whether the foreign span is known; `context` is its own then."""
        return self._span is not None

    @property
    def taken(self) -> bool:
        """Whether the foreign span has the cost of another call already: some are around several, each of which is billed."""
        return self._span is not None and names.RECORD_ID in _said(self._span)

    def hold(self) -> None:
        """Let the foreign span wait for the cost of a stream: some end it at the last piece but one, or before the stream is closed.

        One that waits for another call already is left to that.
        """
        span = self._span
        try:
            if span is not None and span.is_recording() and "end" not in vars(span):
                self._held = _Held(span)
        except (AttributeError, TypeError):  # a span that takes no attributes of its own ends when it likes
            return

    def look_again(self) -> None:
        """To be called where the answer arrives: some spans begin further in than we stand, and end before we know the cost.

        Such a span is held: its end keeps its time and comes when the cost is on it.
        """
        current = _current()
        if self._span is None and _is_host(current):
            self._span, self.context = current, current.get_span_context()
            self._held = _Held(current)

    def add(self, attributes: Mapping[str, Any]) -> bool:
        """Put attributes on the foreign span, without changing any that it has; False when it is unknown or has ended."""
        span = self._span
        if span is None or not span.is_recording():
            return False
        theirs = _said(span)
        span.set_attributes({name: value for name, value in attributes.items() if name not in theirs})
        return True

    def release(self) -> None:
        """Let the span end, when it wanted to; idempotent."""
        held, self._held = self._held, None
        if held is not None:
            held.release()


class _Held:
    """A span whose `end` waits for us."""

    def __init__(self, span: Any) -> None:
        self._span = span
        self._end = span.end
        self._lock = threading.RLock()
        self._at: int | None = None
        self._released = False
        span.end = self

    def __call__(self, end_time: int | None = None) -> None:
        with self._lock:
            if not self._released:
                self._at = self._at or end_time or time.time_ns()
                return
        self._end(end_time)

    def release(self) -> None:
        with self._lock:
            self._released = True
            at = self._at
        vars(self._span).pop("end", None)
        if at is not None:
            self._end(at)


class _Late:
    """Attributes that came when their span had ended, by response id; kept only while somebody `wants` them."""

    def __init__(self) -> None:
        self.wanted = False
        self._lock = threading.RLock()
        self._kept: OrderedDict[str, list[tuple[int, Mapping[str, Any]]]] = OrderedDict()

    def put(self, trace_id: int, response_id: str, attributes: Mapping[str, Any]) -> None:
        """Keep attributes; `trace_id` 0 where the call was made outside of any trace."""
        if self.wanted and response_id:
            with self._lock:
                self._kept.setdefault(response_id, []).append((trace_id, attributes))
                while len(self._kept) > MOST_LATE:
                    self._kept.popitem(last=False)

    def take(self, trace_id: int, response_id: str) -> Mapping[str, Any] | None:
        """The attributes for a span, once; None when there are none. Of several with one id, those of its trace, else the oldest."""
        with self._lock:
            found = self._kept.get(response_id)
            if not found:
                return None
            place = next((place for place, (trace, _) in enumerate(found) if trace == trace_id), 0)
            _, attributes = found.pop(place)
            if not found:
                del self._kept[response_id]
            return attributes

    def clear(self) -> None:
        """Forget everything (a forked child: the spans are its parent's)."""
        self._lock = threading.RLock()
        self._kept = OrderedDict()


late = _Late()
