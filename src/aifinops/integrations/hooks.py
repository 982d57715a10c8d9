"""What `instrument()` hooks besides providers: frameworks, which add tags, and resources, which are charged."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FRAMEWORKS", "HOOKS", "Hook"]

_FRAMEWORKS = "aifinops.integrations.frameworks."


@dataclass(frozen=True, slots=True)
class Hook:
    """One package that we hook.

    Attributes:
        package: what to install. top: the module by which it is known to be there.
        targets: (module, function of ours that is given it once it is imported and returns what can be undone).
    """

    package: str
    top: str
    targets: tuple[tuple[str, str], ...]


FRAMEWORKS = {
    "langchain": Hook(
        "langchain-core", "langchain_core", (("langchain_core.tracers.context", f"{_FRAMEWORKS}langchain:hook"),)
    ),
    "agents": Hook("openai-agents", "agents", (("agents.tracing", f"{_FRAMEWORKS}agents_sdk:hook"),)),
    "llama_index": Hook(
        "llama-index-core",
        "llama_index.core",
        (("llama_index.core.instrumentation", f"{_FRAMEWORKS}llama_index:hook"),),
    ),
    "pydantic_ai": Hook("pydantic-ai-slim", "pydantic_ai", (("pydantic_ai.agent", f"{_FRAMEWORKS}pydantic_ai:hook"),)),
    "mcp": Hook(
        "mcp",
        "mcp",
        (
            ("mcp.client.session", f"{_FRAMEWORKS}mcp:hook_client"),
            ("mcp.server.fastmcp.server", f"{_FRAMEWORKS}mcp:hook_server"),
            ("mcp.server.mcpserver.server", f"{_FRAMEWORKS}mcp:hook_server"),
        ),
    ),
}
"""Tags only: hooked by `instrument()` without names."""

HOOKS = {**FRAMEWORKS}
"""Everything that can be named."""
