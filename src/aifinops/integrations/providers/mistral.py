"""Mistral. Inclusion rules: https://docs.mistral.ai/api. Its usage allows extra fields, which is where cached tokens are.

Tokens of connectors are beside prompt and completion: the three add up to `total_tokens`.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider, Route

_CHAT = Route(
    "chat",
    {
        "input_total": "usage.prompt_tokens + usage.connector_tokens",
        "cache_read_tokens": "usage.prompt_tokens_details.cached_tokens | usage.num_cached_tokens",
        "output_total": "usage.completion_tokens",
        "reasoning_tokens": "usage.completion_tokens_details.reasoning_tokens",
        "audio_seconds": "usage.prompt_audio_seconds",
    },
    ("object=chat.completion,chat.completion.chunk,conversation.response",),
    tools={
        "web_search_requests": "usage.connectors.web_search + usage.connectors.web_search_premium",
        "code_execution_requests": "usage.connectors.code_interpreter",
    },
    text=("choices.message.content", "choices.delta.content"),
    limits=("max_tokens",),
    tier="usage.service_tier",
    tiers={"standard": ""},
    finish="choices.finish_reason",
    known=("usage.total_tokens",),
)

MISTRAL = Provider(
    "mistral_ai",
    routes={
        "chat": _CHAT,
        "embeddings": Route(
            "embeddings", {"input_total": "usage.prompt_tokens"}, ("object=list",), created="", tier="",
            known=("usage.total_tokens", "usage.completion_tokens", "usage.prompt_audio_seconds"),
        ),
        "transcription": Route(  # billed by the minute: the tokens are told and cost nothing more
            "transcription", {"audio_seconds": "usage.prompt_audio_seconds"}, ("text", "usage.prompt_audio_seconds"),
            response_id="", created="", tier="", known=("usage.total_tokens", "usage.prompt_tokens", "usage.completion_tokens"),
        ),
        "ocr": Route(
            "ocr", {"pages": "usage_info.pages_processed"}, ("usage_info.pages_processed",), response_id="", created="", tier="",
            raw="usage_info", known=("usage_info.doc_size_bytes",),
        ),
        "batch line": replace(_CHAT, signs=("custom_id", "response.body.usage"), event="response.body", tier="=batch"),
    },
)  # fmt: skip
