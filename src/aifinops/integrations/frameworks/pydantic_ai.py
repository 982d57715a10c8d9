"""pydantic-ai: agent, tool and conversation of the calls made inside, by a capability with hooks around model requests and tools.

A streamed answer is requested by whoever reads it, outside those hooks: there the tags are in force while the reader waits for an event,
and not between two events.

`instrument()` gives it to every run (`Agent.iter`, through which all ways of running go); or give it to one agent:
`Agent(..., capabilities=[capability()])`. See https://ai.pydantic.dev/capabilities/.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from functools import lru_cache
from importlib import import_module
from typing import Any

from aifinops.errors import swallow
from aifinops.integrations.frameworks.attribution import tagged
from aifinops.integrations.patching import Patch

__all__ = ["capability", "hook"]


def _whose(ctx: Any) -> dict[str, object]:
    return {
        "agent": getattr(getattr(ctx, "agent", None), "name", None) or "",
        "conversation": getattr(ctx, "conversation_id", None) or "",
    }


@lru_cache(maxsize=1)
def _class() -> Any:
    base = import_module("pydantic_ai.capabilities").AbstractCapability

    async def wrap_model_request(self: Any, ctx: Any, *, request_context: Any, handler: Any) -> Any:
        with tagged(_whose(ctx)):
            return await handler(request_context)

    async def wrap_tool_execute(self: Any, ctx: Any, *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
        with tagged({**_whose(ctx), "tool": call.tool_name}):
            return await handler(args)

    async def wrap_run_event_stream(self: Any, ctx: Any, *, stream: Any) -> AsyncIterator[Any]:
        events, whose = aiter(stream), _whose(ctx)
        while True:
            try:
                with tagged(whose):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            yield event

    members = {
        "wrap_model_request": wrap_model_request,
        "wrap_tool_execute": wrap_tool_execute,
        "wrap_run_event_stream": wrap_run_event_stream,
        # A capability that wants to see events makes every run a streamed one; ours only looks on where it is one already.
        "has_wrap_run_event_stream": property(lambda _: False),
        "__doc__": __doc__,
    }
    return type("AIFinOpsTags", (base,), members)


def capability() -> Any:
    """A capability for `Agent(capabilities=[...])`; pydantic-ai must be installed, in a version that has them."""
    return _class()()


def _iter(wrapped: Any, agent: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    try:
        given = kwargs.get("capabilities")
        more = {**kwargs, "capabilities": [*(given or ()), capability()]}
    except Exception as failure:  # attribution is a courtesy; the agent runs without it
        swallow("frameworks.pydantic_ai", failure)
        more = kwargs
    return wrapped(*args, **more)


def hook(module: Any) -> list[Any]:
    """Patch `Agent.iter` of `pydantic_ai.agent`; versions without capabilities are left alone."""
    try:
        if "capabilities" not in inspect.signature(module.Agent.iter).parameters:
            return []
        return [Patch(module.Agent, "iter", _iter)]
    except Exception as failure:  # a version that has moved
        swallow("frameworks.pydantic_ai.hook", failure)
        return []
