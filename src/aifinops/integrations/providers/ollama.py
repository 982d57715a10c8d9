"""Ollama counts tokens that it evaluated: a prompt that was kept from before lowers `prompt_eval_count` or leaves it out.

https://github.com/ollama/ollama/blob/main/docs/api.md. What a call costs is machine time; durations (nanoseconds) are kept raw.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.providers.compatible import COMPATIBLE

_CHAT = Route(
    "chat", {"input_tokens": "prompt_eval_count", "output_tokens": "eval_count"}, ("model", "eval_count"), text=("message.content", "response"),
    response_id="", created="", tier="", finish="done_reason", raw="",
    known=("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"),
)  # fmt: skip

OLLAMA = Provider(
    "ollama",
    routes={
        "chat": _CHAT,
        "embed": replace(_CHAT, operation="embeddings", signs=("embeddings", "prompt_eval_count")),
        **COMPATIBLE.routes,
    },
)
