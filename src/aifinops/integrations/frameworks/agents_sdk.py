"""OpenAI Agents SDK: agent, tool and conversation (the group of the trace) of the calls made inside, by a tracing processor.

`instrument()` adds it with `agents.add_trace_processor`; or do so yourself: `add_trace_processor(processor())`. The SDK calls it where
the span starts, in the task that makes the calls. With tracing disabled (`set_tracing_disabled`, `RunConfig(tracing_disabled=True)`)
there are no spans, and so no tags. See https://openai.github.io/openai-agents-python/tracing/.
"""

from __future__ import annotations

from typing import Any

from aifinops.errors import swallow
from aifinops.integrations.frameworks.attribution import Attribution, tags_of

__all__ = ["Processor", "hook", "processor"]


class Processor:
    """What the SDK calls `TracingProcessor`."""

    def __init__(self) -> None:
        self._attribution = Attribution()
        self._groups: dict[str, str] = {}  # open traces that belong to a conversation
        self.on = True

    def on_trace_start(self, trace: Any) -> None:
        """Remember the conversation that a trace belongs to."""
        group = getattr(trace, "group_id", None)
        if self.on and group:
            self._groups[trace.trace_id] = str(group)

    def on_trace_end(self, trace: Any) -> None:
        """The trace is over."""
        self._groups.pop(getattr(trace, "trace_id", ""), None)

    def on_span_start(self, span: Any) -> None:
        """An agent or a tool begins; other spans say nothing about who it is."""
        if not self.on:
            return
        try:
            data = span.span_data
            kind = getattr(data, "type", "")
            if kind == "agent":
                values = {"agent": data.name, "conversation": self._groups.get(span.trace_id, "")}
            elif kind == "function":
                values = {"tool": data.name}
            else:
                return
            self._attribution.start(span.span_id, tags_of(values))
        except Exception as failure:  # attribution is a courtesy; the agent goes on
            swallow("frameworks.agents", failure)

    def on_span_end(self, span: Any) -> None:
        """It has ended."""
        self._attribution.end(getattr(span, "span_id", None))

    def shutdown(self) -> None:
        """Nothing waits here."""
        self._groups.clear()

    def force_flush(self) -> None:
        """Nothing waits here."""


def processor() -> Processor:
    """A processor for `agents.add_trace_processor`."""
    return Processor()


class _Added:
    """Our processor among those of the SDK's provider."""

    def __init__(self, module: Any) -> None:
        self._processor = Processor()
        self._module = module
        module.add_trace_processor(self._processor)

    def undo(self) -> None:
        """The SDK can only set the whole list, so it is set to what it is without ours; failing that, ours does nothing any more."""
        self._processor.on = False
        try:
            multi = self._module.get_trace_provider()._multi_processor
            multi.set_processors([one for one in multi._processors if one is not self._processor])
        except AttributeError:
            return


def hook(module: Any) -> list[Any]:
    """Register with `agents.tracing`."""
    if not hasattr(module, "add_trace_processor"):  # somebody else's package of that name
        return []
    try:
        return [_Added(module)]
    except Exception as failure:  # a version that has moved: the agent runs without our tags
        swallow("frameworks.agents.hook", failure)
        return []
