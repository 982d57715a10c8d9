"""MCP: the tool of the calls made inside, at both ends: in a client's `call_tool`, and in the server that runs the tool.

Servers are those of `mcp.server.fastmcp` (1.x) and `mcp.server.mcpserver` (2.x) that are made after `instrument()`. A tool of a
low-level server is yours to tag: `with af.tags(tool="search"):`.
"""

from __future__ import annotations

from typing import Any

from aifinops.errors import swallow
from aifinops.integrations.frameworks.attribution import tagged
from aifinops.integrations.patching import Patch

__all__ = ["hook_client", "hook_server"]


async def _call_tool(wrapped: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with tagged({"tool": args[0] if args else kwargs.get("name")}):
        return await wrapped(*args, **kwargs)


def hook_client(module: Any) -> list[Any]:
    """Patch `ClientSession.call_tool`."""
    return _patch(module, ("ClientSession",))


def hook_server(module: Any) -> list[Any]:
    """Patch `call_tool` of the server's class, as its version calls it."""
    return _patch(module, ("MCPServer", "FastMCP"))


def _patch(module: Any, classes: tuple[str, ...]) -> list[Any]:
    try:
        found = (getattr(module, name, None) for name in classes)
        # 1.x imports its low-level server under the name that the high-level one has in 2.x.
        owner = next(one for one in found if getattr(one, "__module__", "") == module.__name__)
        return [Patch(owner, "call_tool", _call_tool)]
    except Exception as failure:  # a version that has moved: tools run without our tags
        swallow("frameworks.mcp.hook", failure)
        return []
