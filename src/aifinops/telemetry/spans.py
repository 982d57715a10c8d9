"""One span for one call, made late.

A span of the SDK costs most of its time at its start (ids, locks, attribute cleaning). So ids and parent are fixed before the
call, a non-recording span with those ids is put into the context (children such as the HTTP client's span find their parent),
and the finished `ReadableSpan` is handed to the processors after the call. Where anything in the pipeline wants to see a span
start (a processor with an `on_start` of its own, attribute limits, a foreign SDK), an ordinary span is started instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from aifinops.errors import swallow
from aifinops.telemetry import names
from aifinops.telemetry.guests import Guest, quieten

__all__ = ["OpenSpan", "Spans", "end_at_least", "error_type", "guarded_finish", "is_placeholder"]

_EXPORT_MODULE = "opentelemetry.sdk.trace.export"


class OpenSpan:
    """A call's span between its begin and its end; `trace_id` and `span_id` are hex."""

    __slots__ = ("_ids", "attached", "context", "name", "parent", "pipeline", "sampled_attributes", "span", "start")

    def __init__(self, name: str, start: int, context: Any, parent: Any, pipeline: Any, span: Any) -> None:
        self.name = name
        self.start = start
        self.context = context
        self.parent = parent
        self.pipeline = pipeline
        self.span = span
        self.attached: Any = None
        self.sampled_attributes: Any = None

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return f"{self.context.trace_id:032x}"

    @property
    def span_id(self) -> str:
        """16 hex digits."""
        return f"{self.context.span_id:016x}"

    def detach(self) -> None:
        """Take the span out of the current context (same thread or task as `begin`); idempotent."""
        attached, self.attached = self.attached, None
        if attached is not None:
            _otel().detach(attached)


class _Api:
    """The parts of the OpenTelemetry API that are used per call, looked up once."""

    def __init__(self) -> None:
        from opentelemetry import context, trace
        from opentelemetry.context import _RUNTIME_CONTEXT
        from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
        from opentelemetry.trace.status import Status, StatusCode

        self.trace = trace
        self.get_provider = trace.get_tracer_provider
        self.current_span = trace.get_current_span
        self.in_context = trace.set_span_in_context
        self.attach = context.attach
        self._detach = _RUNTIME_CONTEXT.detach
        self.non_recording = NonRecordingSpan
        self.span_context = SpanContext
        self.flags = (TraceFlags(TraceFlags.DEFAULT), TraceFlags(TraceFlags.SAMPLED))
        self.trace_flags = TraceFlags
        self.client, self.internal = SpanKind.CLIENT, SpanKind.INTERNAL
        self.unset = Status(StatusCode.UNSET)
        self.status, self.error = Status, StatusCode.ERROR

    def detach(self, token: Any) -> None:
        # The public detach logs an error when a stream is closed in another context; that context is gone: nothing to undo.
        try:
            self._detach(token)
        except (ValueError, RuntimeError):
            return


_api: _Api | None = None


def _otel() -> _Api:
    global _api  # noqa: PLW0603 - a cache of imported names
    if _api is None:
        _api = _Api()
    return _api


class _Pipeline:
    """What of a tracer provider decides how spans are made; rebuilt when its processors change."""

    def __init__(self, provider: Any, version: str, schema_url: str) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer(names.SCOPE, version, schema_url)
        self.processor: Any = None
        self.processors: Any = None
        self.late = False
        try:
            self._inspect(provider)
        except (
            AttributeError,
            TypeError,
        ):  # another SDK, or one whose inside has moved: ordinary spans work everywhere
            self.late = False

    def _inspect(self, provider: Any) -> None:
        if not type(provider).__module__.startswith("opentelemetry.sdk.trace"):
            return
        self.processor = provider._active_span_processor
        self.processors = self.processor._span_processors
        self.sampler, self.ids, self.resource = provider.sampler, provider.id_generator, provider.resource
        limits = provider._span_limits
        self.scope = self.tracer._instrumentation_scope
        enabled = getattr(self.tracer, "_is_enabled", lambda: True)()
        plain = all(type(item).__module__ == _EXPORT_MODULE for item in self.processors)
        unlimited = limits.max_span_attribute_length is None and limits.max_attribute_length is None
        roomy = limits.max_span_attributes is None or limits.max_span_attributes >= 64
        self.random_flag = 2 if getattr(self.ids, "is_trace_id_random", lambda: False)() else 0
        from opentelemetry.sdk.trace import ReadableSpan

        self.readable = ReadableSpan
        self.late = bool(enabled and plain and unlimited and roomy)

    def stale(self, provider: Any) -> bool:
        return self.provider is not provider or (
            self.processor is not None and self.processor._span_processors is not self.processors
        )


class Spans:
    """Begins and finishes spans through whatever tracer provider the application has set; none set, nothing done."""

    def __init__(
        self,
        version: str,
        get_provider: Callable[[], Any] | None = None,
        *,
        alone: bool = False,
        schema_url: str = names.SCHEMA_URL,
    ) -> None:
        self._version = version
        self._schema_url = schema_url
        self._get_provider = get_provider
        self._alone = alone  # other instrumentations are kept from making a span of the same call
        self._pipeline: _Pipeline | None = None

    def pipeline(self) -> _Pipeline | None:
        """The current pipeline, or None while nobody has set a tracer provider."""
        # Whoever sets a provider has imported the API: until then there is nothing to find, and no import to pay for.
        if _api is None and "opentelemetry.trace" not in sys.modules:
            return None
        provider = (self._get_provider or _otel().get_provider)()
        pipeline = self._pipeline
        if pipeline is None or pipeline.stale(provider):
            if is_placeholder(provider):
                return None
            pipeline = self._pipeline = _Pipeline(provider, self._version, self._schema_url)
        return pipeline

    def begin(self, name: str, start: int, attributes: Mapping[str, Any], fallback: Any = None) -> OpenSpan | None:
        """Fix a call's ids and put them into the current context.

        Args:
            name: span name. start: wall clock, nanoseconds. attributes: what a sampler may want to see.
            fallback: span to use as parent where the context has none (a worker thread without the OTel context).

        Returns:
            None when there is no provider; a span that is not sampled is still returned, for its ids.
        """
        pipeline = self.pipeline()
        if pipeline is None:
            return None
        api = _otel()
        parent_span = api.current_span()
        parent: Any = parent_span.get_span_context()
        context = None
        if not parent.is_valid:
            parent = None
            if fallback is not None:
                parent = fallback.get_span_context()
                context = api.in_context(fallback)
        opened = (self._late if pipeline.late else _ordinary)(pipeline, name, start, attributes, parent, context)
        try:
            inside = api.in_context(opened.span)
            opened.attached = api.attach(quieten(inside) if self._alone else inside)
        except Exception:  # nobody knows of the span
            end_at_least(opened)
            raise
        return opened

    def join(self) -> Guest | None:
        """For a call whose span somebody else makes; None while nobody has set a tracer provider."""
        return Guest() if self.pipeline() is not None else None

    @staticmethod
    def _late(
        pipeline: _Pipeline, name: str, start: int, attributes: Mapping[str, Any], parent: Any, context: Any
    ) -> OpenSpan:
        api = _otel()
        trace_id = pipeline.ids.generate_trace_id() if parent is None else parent.trace_id
        verdict = pipeline.sampler.should_sample(context, trace_id, name, api.client, attributes, ())
        flags = api.flags[verdict.decision.is_sampled()]
        random = pipeline.random_flag if parent is None else parent.trace_flags & 2
        if random:
            flags = api.trace_flags(flags | random)
        ids = api.span_context(
            trace_id,
            pipeline.ids.generate_span_id(),
            is_remote=False,
            trace_flags=flags,
            trace_state=verdict.trace_state,
        )
        recording = verdict.decision.is_recording()
        opened = OpenSpan(name, start, ids, parent, pipeline if recording else None, api.non_recording(ids))
        opened.sampled_attributes = verdict.attributes
        return opened

    @staticmethod
    def finish(opened: OpenSpan, attributes: dict[str, Any], end: int, error: BaseException | None = None) -> None:
        """End the span with all its attributes; `error` sets the status and `error.type`."""
        opened.detach()
        api = _otel()
        if error is not None:
            attributes[names.ERROR_TYPE] = error_type(error)
        span, pipeline = opened.span, opened.pipeline
        if pipeline is None:
            if span.is_recording():
                span.set_attributes(attributes)
                if error is not None:
                    # Never its text: providers repeat in it what was sent.
                    span.set_status(api.status(api.error, type(error).__name__))
                span.end(end)
            return
        if opened.sampled_attributes:
            attributes = {**opened.sampled_attributes, **attributes}
        pipeline.processor.on_end(
            pipeline.readable(
                name=opened.name,
                context=opened.context,
                parent=opened.parent,
                resource=pipeline.resource,
                attributes=attributes,
                kind=api.client,
                status=api.unset if error is None else api.status(api.error, type(error).__name__),
                start_time=opened.start,
                end_time=end,
                instrumentation_scope=pipeline.scope,
            )
        )

    def start_block(self, name: str, attributes: Mapping[str, Any], start: int) -> Any:
        """An ordinary INTERNAL span for a `track` block (user code may add to it), or None without a provider."""
        pipeline = self.pipeline()
        if pipeline is None:
            return None
        return pipeline.tracer.start_span(name, kind=_otel().internal, attributes=attributes, start_time=start)

    @staticmethod
    def end_block(span: Any, attributes: Mapping[str, Any], end: int, error: BaseException | None) -> None:
        """End a block's span."""
        api = _otel()
        if attributes:
            span.set_attributes(attributes)
        if error is not None:
            span.set_attribute(names.ERROR_TYPE, error_type(error))
            span.set_status(api.status(api.error, type(error).__name__))
        span.end(end)

    @staticmethod
    def attach(span: Any) -> Any:
        """Make `span` current; give the token to `detach`."""
        api = _otel()
        return api.attach(api.in_context(span))

    @staticmethod
    def detach(token: Any) -> None:
        """Undo `attach`; a token of another context is ignored."""
        _otel().detach(token)


def _ordinary(
    pipeline: _Pipeline, name: str, start: int, attributes: Mapping[str, Any], parent: Any, context: Any
) -> OpenSpan:
    span = pipeline.tracer.start_span(
        name, context=context, kind=_otel().client, attributes=attributes, start_time=start
    )
    try:
        return OpenSpan(name, start, span.get_span_context(), parent, None, span)
    except Exception:  # nobody knows of it
        span.end()
        raise


def is_placeholder(provider: Any) -> bool:
    """Whether a tracer or meter provider is what the API gives while nobody has set one. Logfire's real ones are called proxies too."""
    kind = type(provider)
    return "Proxy" in kind.__name__ and kind.__module__.startswith("opentelemetry.")


def error_type(error: BaseException) -> str:
    """Low-cardinality `error.type`: the class name, qualified unless it is a builtin."""
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def guarded_finish(opened: OpenSpan | None, attributes: dict[str, Any], end: int, error: BaseException | None) -> None:
    """`Spans.finish` that never raises (our own failure must not reach a call)."""
    if opened is None:
        return
    try:
        Spans.finish(opened, attributes, end, error)
    except (
        Exception
    ) as failure:  # an exporter or processor of the application failed: counted, never the call's problem
        end_at_least(opened)
        swallow("telemetry.spans.finish", failure)


def end_at_least(opened: OpenSpan) -> None:
    """End a span that has begun and could not be finished; what there is of it only at its end is not made."""
    if opened.span.is_recording():
        opened.span.end()
