"""Cohere bills `billed_units`, which are fewer than its `tokens`: https://docs.cohere.com/reference/chat. Its counts are floats."""

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
    "chat", _billed("usage.billed_units."), ("usage.billed_units",), event="", text=("message.content.text", "delta.message.content.text"),
    limits=("max_tokens",), created="", tier="", finish="finish_reason", known=_known("usage."),
)  # fmt: skip
_META = Route(
    "embeddings", _billed("meta.billed_units."), ("meta.billed_units",), created="", tier="", raw="meta", known=_known("meta."),
)  # fmt: skip

COHERE = Provider(
    "cohere",
    routes={
        "chat": _CHAT,
        "message-end": replace(_CHAT, signs=("type=message-end", "delta.usage.billed_units"), event="delta"),
        "rerank": replace(_META, operation="rerank", signs=("meta.billed_units.search_units",)),
        "embed and classify": _META,
    },
)
