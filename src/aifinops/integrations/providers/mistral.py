"""Mistral. Inclusion rules: https://docs.mistral.ai/api. Its usage allows extra fields, which is where cached tokens are.

Tokens of connectors are beside prompt and completion: the three add up to `total_tokens`. Version 3 of its library emits spans of its
own; the ledger row is ours all the same.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.providers.openai import RESPONSES

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

_EMBEDDINGS = Route(
    "embeddings", {"input_total": "usage.prompt_tokens"}, ("object=list",), created="", tier="",
    known=("usage.total_tokens", "usage.completion_tokens", "usage.prompt_audio_seconds"),
)  # fmt: skip
_OCR = Route(
    "ocr", {"pages": "usage_info.pages_processed"}, ("usage_info.pages_processed",), response_id="", created="", tier="",
    raw="usage_info", known=("usage_info.doc_size_bytes",),
)  # fmt: skip
_HEARD = Route(  # billed by the minute: the tokens are told and cost nothing more
    "transcription", {"audio_seconds": "usage.prompt_audio_seconds"}, ("text", "usage.prompt_audio_seconds"), text=("text",),
    response_id="", created="", tier="", known=("usage.total_tokens", "usage.prompt_tokens", "usage.completion_tokens"),
)  # fmt: skip
# https://docs.mistral.ai/capabilities/audio/text_to_speech: billed by the characters that are spoken, whatever tokens a stream tells.
_SPEECH = Route(
    "speech", {}, ("audio_data",), response_id="", created="", tier="", model="", billed={"characters": "input"}, alone=True,
)  # fmt: skip
# https://docs.mistral.ai/capabilities/batch: half the price; the answers stand in the job where that was asked for, or else in a file.
_LINE = "response.body"
_JOB = Route(
    "batch", {}, ("object=batch", "input_files"), created="completed_at | created_at", tier="=batch", raw="", finish="status", lines="outputs[]",
    output="output_file", later=("QUEUED", "RUNNING", "CANCELLATION_REQUESTED"),
)  # fmt: skip
_BATCHED = {
    "batch line of pages": replace(_OCR, signs=("custom_id", f"{_LINE}.usage_info"), event=_LINE, tier="=batch"),
    "batch line of sound": replace(
        _HEARD, signs=("custom_id", f"{_LINE}.usage.prompt_audio_seconds", f"!{_LINE}.choices"), event=_LINE, tier="=batch",
    ),
    "batch line of embeddings": replace(_EMBEDDINGS, signs=("custom_id", f"{_LINE}.object=list"), event=_LINE, tier="=batch"),
    "batch line": replace(_CHAT, signs=("custom_id", f"{_LINE}.usage"), event=_LINE, tier="=batch"),
}  # fmt: skip

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
    polls={"/batch/jobs/{}": ("batch job", *_BATCHED)},
    files={"/files/{}/content": tuple(_BATCHED)},
    routes={
        "/chat/completions": _CHAT,
        "/fim/completions": replace(_CHAT, operation="text_completion"),
        "/agents/completions": replace(_CHAT, operation="invoke_agent"),
        "/conversations": _CONVERSATION,
        "/conversations/{id}": _CONVERSATION,
        "/conversations/{id}/restart": _CONVERSATION,
        "/responses": RESPONSES, "response": replace(RESPONSES, signs=("object=response", "usage"), event=""),
        "/embeddings": _EMBEDDINGS, "/audio/transcriptions": _HEARD, "/audio/speech": _SPEECH, "/ocr": _OCR,
        "/moderations": _JUDGED,
        "/chat/moderations": _JUDGED,
        "/classifications": replace(_JUDGED, operation="classification"),
        "/chat/classifications": replace(_JUDGED, operation="classification"),
        **_BATCHED, "batch job": _JOB,
    },
)  # fmt: skip
