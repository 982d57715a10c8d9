"""Cohere bills `billed_units`, which are fewer than its `tokens`: https://docs.cohere.com/reference/chat. Its counts are floats.

Version 2 of its API streams server-sent events, whose last has the usage in `delta`; version 1 one JSON object a line, whose last has
the whole answer in `response`. No answer names its model.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider, Route


def _billed(root: str) -> dict[str, str]:
    return {
        "input_total": f"{root}input_tokens",
        "input_image_tokens": f"{root}image_tokens",
        "output_tokens": f"{root}output_tokens",
        "search_units": f"{root}search_units",
        "classifications": f"{root}classifications",
        "input_images": f"{root}images",
        "pages": f"{root}pages",
    }


def _known(root: str) -> tuple[str, ...]:
    parts = ("tokens.input_tokens", "tokens.output_tokens", "cached_tokens", "billed_units.text_tokens")
    return tuple(f"{root}{part}" for part in parts)


_CHAT = Route(
    "chat", _billed("usage.billed_units."), ("usage.billed_units",), event="",
    text=("message.content.text", "delta.message.content.text", "delta.message.content.thinking"),
    limits=("max_tokens",), loose="request.thinking.token_budget", choices="", created="", tier="", finish="finish_reason", known=_known("usage."),
)  # fmt: skip
_META = Route(
    "embeddings", _billed("meta.billed_units."), ("meta.billed_units",), created="", tier="", raw="meta", known=_known("meta."),
)  # fmt: skip
_END = replace(_CHAT, signs=("type=message-end", "delta.usage.billed_units"), event="delta")
_FIRST = replace(
    _META, operation="chat", signs=("event_type=stream-end", "response.meta.billed_units"), event="response",
    response_id="response_id | generation_id", text=("text", "generations.text"), limits=("max_tokens",), choices="num_generations",
    finish="finish_reason",
)  # fmt: skip
_RERANK = replace(_META, operation="rerank", signs=("meta.billed_units.search_units",))

COHERE = Provider(
    "cohere",
    module="cohere",
    package="cohere",
    minimum="5",
    seam="http",
    senders={
        f"cohere.core.http_client:{kind}.{name}": "httpx_client"
        for kind in ("HttpClient", "AsyncHttpClient")
        for name in ("request", "stream")
    },
    connections=("_client_wrapper.httpx_client.httpx_client",),
    routes={
        "chat": _CHAT,
        "/v2/chat": _END,
        "/v1/chat": _FIRST,
        "/v1/generate": replace(_FIRST, operation="text_completion", response_id="id"),
        "/v1/summarize": replace(_FIRST, response_id="id", text=("summary",)),
        "/v1/rerank": _RERANK,
        "/v2/rerank": _RERANK,
        "/v1/embed": _META,
        "/v2/embed": _META,
        "/v1/classify": replace(_META, operation="classification"),
    },
)
