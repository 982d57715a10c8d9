"""Mistral. Inclusion rules: https://docs.mistral.ai/api. Its usage allows extra fields, which is where cached tokens are.

Tokens of connectors are beside prompt and completion: the three add up to `total_tokens`. Version 3 of its library emits spans of its
own; the ledger row is ours all the same.
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
    text=("choices.message.content", "choices.delta.content", "outputs.content"), limits=("max_tokens",), tier="usage.service_tier",
    tiers={"standard": ""}, finish="choices.finish_reason", known=("usage.total_tokens",),
)  # fmt: skip
_CONVERSATION = replace(
    _CHAT, signs=("type=conversation.response.done",), text=("outputs.content", "content"), response_id="conversation_id",
)  # fmt: skip
# Of what is sent to be judged or spoken the answer tells no counts.
_JUDGED = Route("moderation", {"input_total": "usage.prompt_tokens"}, ("results", "usage"), created="", tier="")

MISTRAL = Provider(
    "mistral_ai",
    module="mistralai",
    package="mistralai",
    minimum="1.9",
    seam="http",
    hosts={"api.mistral.ai": "mistral_ai", ".azure.com": "azure.ai.inference"},
    senders={
        f"{home}:BaseSDK.{name}": f"sdk_configuration.{client}"
        for home in ("mistralai.client.basesdk", "mistralai.basesdk", "mistralai.azure.client.basesdk", "mistralai_azure.basesdk")
        for name, client in (("do_request", "client"), ("do_request_async", "async_client"))
    },
    # With its own telemetry on, a stream is handed out as another answer that ends the library's span when it is closed.
    copies=("mistralai.extra.observability.otel:TracedResponse.from_response",),
    connections=("sdk_configuration.client", "sdk_configuration.async_client"),
    routes={
        "/chat/completions": _CHAT,
        "/fim/completions": replace(_CHAT, operation="text_completion"),
        "/agents/completions": replace(_CHAT, operation="invoke_agent"),
        "/conversations": _CONVERSATION,
        "/conversations/{id}": _CONVERSATION,
        "/conversations/{id}/restart": _CONVERSATION,
        "/embeddings": Route(
            "embeddings", {"input_total": "usage.prompt_tokens"}, ("object=list",), created="", tier="",
            known=("usage.total_tokens", "usage.completion_tokens", "usage.prompt_audio_seconds"),
        ),
        "/audio/transcriptions": Route(  # billed by the minute: the tokens are told and cost nothing more
            "transcription", {"audio_seconds": "usage.prompt_audio_seconds"}, ("text", "usage.prompt_audio_seconds"), text=("text",),
            response_id="", created="", tier="", known=("usage.total_tokens", "usage.prompt_tokens", "usage.completion_tokens"),
        ),
        "/ocr": Route(
            "ocr", {"pages": "usage_info.pages_processed"}, ("usage_info.pages_processed",), response_id="", created="", tier="",
            raw="usage_info", known=("usage_info.doc_size_bytes",),
        ),
        "/moderations": _JUDGED,
        "/chat/moderations": _JUDGED,
        "/classifications": replace(_JUDGED, operation="classification"),
        "/chat/classifications": replace(_JUDGED, operation="classification"),
        "batch line": replace(_CHAT, signs=("custom_id", "response.body.usage"), event="response.body", tier="=batch"),
    },
)  # fmt: skip
