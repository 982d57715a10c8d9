"""LlamaIndex: agent, step and tool of the calls made inside, by a span handler of its instrumentation.

`instrument()` adds it to the root dispatcher; or do so yourself: `get_dispatcher().add_span_handler(span_handler())`. What you name with
`instrument_tags({"conversation": ...})` is taken as well. See
https://developers.llamaindex.ai/python/framework/module_guides/observability/instrumentation/.

Steps of a workflow and tools put their tags into force. The run itself does not: it returns a future, in a context that goes on.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from importlib import import_module
from typing import Any

from aifinops.errors import swallow
from aifinops.integrations.frameworks.attribution import MOST_OPEN, Attribution, tags_of

__all__ = ["hook", "span_handler"]

_STEP = "llamaindex.step.input_event"
"""A tag that the workflow runtime sets on the spans of its steps."""

_CONVERSATION = ("conversation", "conversation_id", "session_id", "thread_id")


class Runs:
    """What the handler does, free of LlamaIndex's base class."""

    def __init__(self) -> None:
        self.attribution = Attribution()
        self._agents: OrderedDict[str, str] = OrderedDict()  # span of a workflow's run -> the agent that has the floor

    def enter(self, span: str, bound: Any, instance: Any, parent: str | None, tags: dict[str, Any] | None) -> None:
        """A span begins here."""
        try:
            step = (
                instance is None and tags and _STEP in tags
            )  # what a step calls has its tags as well, and an instance
            values = self._of_step(span, bound, parent) if step else self._of_instance(span, instance)
            if not values:
                return
            conversation = next((tags[key] for key in _CONVERSATION if tags.get(key)), "") if tags else ""
            self.attribution.start(span, tags_of({**values, "conversation": conversation}))
        except Exception as failure:  # attribution is a courtesy; the workflow goes on
            swallow("frameworks.llama_index", failure)

    def _of_step(self, span: str, bound: Any, parent: str | None) -> dict[str, Any]:
        agent = self._agents.get(parent or "", "")
        values: dict[str, Any] = {"node": span.rpartition(".")[2].partition("-")[0]}
        for event in bound.arguments.values():
            named = getattr(event, "current_agent_name", None)
            if isinstance(named, str) and named:
                agent = named
                self._remember(parent or "", named)
            tool = getattr(event, "tool_name", None)
            if isinstance(tool, str) and values["node"] == "call_tool":
                values["tool"] = tool
        return {**values, "agent": agent}

    def _of_instance(self, span: str, instance: Any) -> dict[str, Any]:
        """A tool names itself; an agent's run is remembered for its steps."""
        if hasattr(instance, "take_step"):
            name = getattr(instance, "name", "")
            if isinstance(name, str) and name:
                self._remember(span, name)
            return {}
        metadata = getattr(instance, "metadata", None)
        if metadata is not None and (".acall-" in span or ".call-" in span):
            return {"tool": getattr(metadata, "name", None)}
        return {}

    def _remember(self, run: str, agent: str) -> None:
        self._agents[run] = agent
        if len(self._agents) > MOST_OPEN:
            self._agents.popitem(last=False)

    def leave(self, span: str) -> None:
        """It has ended."""
        self._agents.pop(span, None)
        self.attribution.end(span)


@lru_cache(maxsize=1)
def _class() -> Any:
    base: Any = import_module("llama_index.core.instrumentation.span_handlers").BaseSpanHandler

    class AIFinOpsSpanHandler(base):  # type: ignore[misc]
        """Keeps no spans; see `Runs`."""

        def __init__(self) -> None:
            super().__init__()
            object.__setattr__(self, "_aifinops_runs", Runs())

        def span_enter(
            self,
            id_: str,
            bound_args: Any,
            instance: Any = None,
            parent_id: str | None = None,
            tags: dict[str, Any] | None = None,
            **_: Any,
        ) -> None:
            self._aifinops_runs.enter(id_, bound_args, instance, parent_id, tags)

        def span_exit(self, id_: str, *_: Any, **__: Any) -> None:
            self._aifinops_runs.leave(id_)

        def span_drop(self, id_: str, *_: Any, **__: Any) -> None:
            self._aifinops_runs.leave(id_)

        def new_span(self, *_: Any, **__: Any) -> None:
            return None

        def prepare_to_exit_span(self, *_: Any, **__: Any) -> None:
            return None

        def prepare_to_drop_span(self, *_: Any, **__: Any) -> None:
            return None

    return AIFinOpsSpanHandler


def span_handler() -> Any:
    """A handler for `get_dispatcher().add_span_handler(...)`; LlamaIndex must be installed."""
    return _class()()


class _Added:
    """Our handler among those of the root dispatcher."""

    def __init__(self, module: Any) -> None:
        self._handlers: list[Any] = module.get_dispatcher().span_handlers
        self._handler = span_handler()
        module.get_dispatcher().add_span_handler(self._handler)

    def undo(self) -> None:
        """Take it out again."""
        self._handlers[:] = [one for one in self._handlers if one is not self._handler]


def hook(module: Any) -> list[Any]:
    """Register with `llama_index.core.instrumentation`."""
    try:
        return [_Added(module)]
    except Exception as failure:  # a version that has moved: the workflow runs without our tags
        swallow("frameworks.llama_index.hook", failure)
        return []
