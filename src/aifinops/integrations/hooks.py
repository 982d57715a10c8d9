"""What `instrument()` hooks besides providers: frameworks, which add tags, training loops, whose steps count, and resources, which are charged."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FRAMEWORKS", "HOOKS", "RESOURCES", "TRAINING", "Hook"]

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

_DEEPSPEED = ("deepspeed", "aifinops.integrations.training.deepspeed:hook")

TRAINING = {"torch": Hook("torch", "torch", (("torch", "aifinops.integrations.training.torch:hook"), _DEEPSPEED))}
"""Steps and waiting for data: hooked by `instrument()` without names. They are told to the run that is open, else to nobody."""

_RESOURCES = "aifinops.integrations.resources."


def _resource(name: str, package: str, *modules: str) -> Hook:
    return Hook(
        package, modules[0].partition(".")[0], tuple((module, f"{_RESOURCES}seam:{name}") for module in modules)
    )


RESOURCES = {
    "training": Hook("torch", "torch", (("torch", "aifinops.integrations.training.torch:hook_runs"), _DEEPSPEED)),
    "pinecone": _resource(
        "pinecone",
        "pinecone",
        "pinecone.index",
        "pinecone.async_client.async_index",
        "pinecone.grpc",
        "pinecone.db_data.index",
        "pinecone.db_data.index_asyncio",
    ),
    "qdrant": _resource("qdrant", "qdrant-client", "qdrant_client.qdrant_client", "qdrant_client.async_qdrant_client"),
    "chroma": _resource("chroma", "chromadb", "chromadb.api.models.Collection", "chromadb.api.models.AsyncCollection"),
    "weaviate": _resource("weaviate", "weaviate-client", "weaviate.connect.v4"),
    "pgvector": _resource("pgvector", "psycopg", "psycopg"),
    "s3": Hook(
        "botocore",
        "botocore",
        (
            ("botocore.client", f"{_RESOURCES}storage:hook"),
            ("aiobotocore.client", f"{_RESOURCES}storage:hook"),
        ),
    ),
}
"""Charged: hooked when they are named. What a program reads from its own database is no surprise in a report then."""

HOOKS = {**FRAMEWORKS, **TRAINING, **RESOURCES}
"""Everything that can be named."""
