"""Ollama counts tokens that it evaluated: a prompt that was kept from before lowers `prompt_eval_count` or leaves it out.

https://github.com/ollama/ollama/blob/main/docs/api.md. Its streams are one JSON object a line, of which the last has the counts. What a
call costs is machine time; durations (nanoseconds) are kept raw.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.providers.compatible import COMPATIBLE

_CHAT = Route(
    "chat", {"input_tokens": "prompt_eval_count", "output_tokens": "eval_count"}, ("model", "eval_count"),
    text=("message.content", "message.thinking", "response", "thinking"), limits=("options.num_predict",), choices="", response_id="", created="", tier="", finish="done_reason", raw="",
    known=("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"),
)  # fmt: skip
_EMBED = replace(_CHAT, operation="embeddings", signs=("embeddings", "prompt_eval_count"), text=())

OLLAMA = Provider(
    "ollama",
    module="ollama",
    package="ollama",
    minimum="0.4",
    seam="http",
    senders={
        f"ollama._client:{kind}.{name}": "_client" for kind in ("Client", "AsyncClient") for name in ("_request", "_request_raw")
    },
    connections=("_client",),
    routes={
        "/api/chat": _CHAT,
        "/api/generate": replace(_CHAT, operation="text_completion"),
        "/api/embed": _EMBED,
        "/api/embeddings": _EMBED,
        **COMPATIBLE.routes,
    },
)  # fmt: skip
