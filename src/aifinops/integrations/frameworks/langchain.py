"""LangChain and LangGraph: agent, node, tool and conversation of the calls made inside, by their callbacks.

`instrument()` registers the handler with `langchain_core.tracers.context.register_configure_hook`, which LangChain publishes for
tracers; or pass one yourself: `graph.invoke(..., config={"callbacks": [handler()]})`. See
https://reference.langchain.com/python/langchain_core/callbacks/.

The handler runs inline: LangChain runs other handlers of asynchronous calls in tasks of their own, where a context variable is lost.
Nodes, tools, models and retrievers put their tags into force. Whole graphs and chains do not: they may be generators, and what is set
in a generator is in force for whoever reads it, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from aifinops.errors import swallow
from aifinops.integrations.frameworks.attribution import MOST_OPEN, Attribution, tags_of
from aifinops.tags import EMPTY, Tags, merge

__all__ = ["handler", "hook"]

_CONVERSATION = ("thread_id", "conversation_id", "session_id")
"""Metadata that names the conversation: LangGraph's own key, and those that people use."""

_UNNAMED = frozenset({"", "LangGraph"})
"""What a graph is called when nobody has given it a name."""


class Runs:
    """What the handler does, free of LangChain's base class."""

    raise_error = False
    run_inline = True

    def __init__(self) -> None:
        self._attribution = Attribution()
        self._known: OrderedDict[Any, tuple[str, Tags]] = OrderedDict()  # run -> its name, its tags
        self.on = True

    def _begin(
        self, kwargs: Mapping[str, Any], name: str, own: Mapping[str, object], *, in_force: bool, node: bool = False
    ) -> None:
        if not self.on:
            return
        try:
            run, metadata = kwargs.get("run_id"), kwargs.get("metadata") or {}
            parent_name, inherited = self._known.get(kwargs.get("parent_run_id"), ("", EMPTY))
            values = dict(own)
            for key in _CONVERSATION:
                if metadata.get(key):
                    values["conversation"] = str(metadata[key])
                    break
            agent = metadata.get("lc_agent_name") or (parent_name if node and parent_name not in _UNNAMED else "")
            if agent:
                values["agent"] = agent
            if metadata.get("langgraph_node"):
                values["node"] = metadata["langgraph_node"]
            tags = merge(inherited, tags_of(values))
            self._known[run] = (name, tags)
            if len(self._known) > MOST_OPEN:
                self._known.popitem(last=False)
            if in_force:
                self._attribution.start(run, tags)
        except Exception as failure:  # attribution is a courtesy; the user's graph goes on
            swallow("frameworks.langchain", failure)

    def _end(self, kwargs: Mapping[str, Any]) -> None:
        run = kwargs.get("run_id")
        self._known.pop(run, None)
        self._attribution.end(run)

    # --- chains and the nodes of graphs ---

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        """A chain, a graph or a node begins."""
        name = str(kwargs.get("name") or "")
        node = bool(name) and name == (kwargs.get("metadata") or {}).get("langgraph_node")
        self._begin(kwargs, name, {}, in_force=node, node=node)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        """It has ended."""
        self._end(kwargs)

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        """It has failed."""
        self._end(kwargs)

    # --- models ---

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        """A chat model is about to be called."""
        self._begin(kwargs, "", {}, in_force=True)

    def on_llm_start(self, serialized: Any, prompts: Any, **kwargs: Any) -> None:
        """A completion model is about to be called."""
        self._begin(kwargs, "", {}, in_force=True)

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        """The call is made; what its reader does between the tokens is the reader's own."""
        self._attribution.end(kwargs.get("run_id"))

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        """The model has answered."""
        self._end(kwargs)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        """The model has failed."""
        self._end(kwargs)

    # --- tools and retrievers ---

    def on_tool_start(self, serialized: Any, input_str: Any, **kwargs: Any) -> None:
        """A tool begins."""
        name = kwargs.get("name") or (serialized or {}).get("name") or ""
        self._begin(kwargs, str(name), {"tool": name}, in_force=True)

    def on_tool_end(self, output: Any, **kwargs: Any) -> None:
        """It has ended."""
        self._end(kwargs)

    def on_tool_error(self, error: BaseException, **kwargs: Any) -> None:
        """It has failed."""
        self._end(kwargs)

    def on_retriever_start(self, serialized: Any, query: Any, **kwargs: Any) -> None:
        """A retriever begins: what it embeds and searches is its own."""
        self._begin(kwargs, "", {}, in_force=True)

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        """It has ended."""
        self._end(kwargs)

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        """It has failed."""
        self._end(kwargs)


def handler() -> Any:
    """A callback handler for `config={"callbacks": [...]}`; LangChain must be installed."""
    base = import_module("langchain_core.callbacks.base").BaseCallbackHandler
    return type("AIFinOpsHandler", (Runs, base), {"__doc__": Runs.__doc__})()


class _Registered:
    """The handler among LangChain's configure hooks."""

    def __init__(self, module: Any) -> None:
        self._hooks: list[Any] = module._configure_hooks
        self._handler = handler()
        variable: ContextVar[Any] = ContextVar("aifinops_langchain", default=self._handler)
        before = list(self._hooks)
        module.register_configure_hook(variable, inheritable=True)
        self._added = [entry for entry in self._hooks if entry not in before]

    def undo(self) -> None:
        """LangChain has no way back, so the entry is taken out of its list."""
        self._handler.on = False
        for entry in self._added:
            if entry in self._hooks:
                self._hooks.remove(entry)


def hook(module: Any) -> list[Any]:
    """Register with `langchain_core.tracers.context`."""
    try:
        return [_Registered(module)]
    except Exception as failure:  # a version that has moved: the graph runs without our tags
        swallow("frameworks.langchain.hook", failure)
        return []
