"""OpenAI and everything that its client reaches by `base_url`. Inclusion rules: https://platform.openai.com/docs/api-reference.

Cached, written, audio and image tokens are inside `prompt_tokens` and `input_tokens`; reasoning, audio and predictions, also rejected
ones, inside `completion_tokens`. `tool_usage` is outside `usage`. The tier is the one that was served.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Parts, Provider, Route

COMPLETION_USAGE = {
    "input_total": "usage.prompt_tokens",
    "cache_read_tokens": "usage.prompt_tokens_details.cached_tokens",
    "cache_write_tokens": "usage.prompt_tokens_details.cache_write_tokens",
    "input_audio_tokens": "usage.prompt_tokens_details.audio_tokens",
    "input_image_tokens": "usage.prompt_tokens_details.image_tokens",
    "output_total": "usage.completion_tokens",
    "reasoning_tokens": "usage.completion_tokens_details.reasoning_tokens",
    "output_audio_tokens": "usage.completion_tokens_details.audio_tokens",
}
COMPLETION_KNOWN = (
    "usage.total_tokens", "usage.prompt_tokens_details.text_tokens", "usage.completion_tokens_details.text_tokens",
    "usage.completion_tokens_details.accepted_prediction_tokens", "usage.completion_tokens_details.rejected_prediction_tokens",
)  # fmt: skip

_RESPONSE_USAGE = {
    "input_total": "usage.input_tokens",
    "cache_read_tokens": "usage.input_tokens_details.cached_tokens",
    "cache_write_tokens": "usage.input_tokens_details.cache_write_tokens",
    "cache_write_30m_tokens": "usage.input_tokens_details.cache_write_tokens_details.ttl_30m_tokens",
    "cache_write_12h_tokens": "usage.input_tokens_details.cache_write_tokens_details.ttl_12h_tokens",
    "output_total": "usage.output_tokens",
    "reasoning_tokens": "usage.output_tokens_details.reasoning_tokens",
}
_RESPONSE_TOOLS = {
    "web_search_requests": "tool_usage.web_search.num_requests | #output[type=web_search_call][action.type=search]",
    "file_search_requests": "#output[type=file_search_call]",
}
_IMAGE_TOOL = Parts(  # the tool's tokens are of a model of its own, which the answer repeats from the request
    "tool_usage.image_gen",
    {
        "input_total": "input_tokens",
        "input_image_total": "input_tokens_details.image_tokens",
        "cache_read_total": "cached_tokens",
        "cache_read_image_tokens": "cached_tokens_details.cached_image_tokens",
        "output_total": "output_tokens",
        "output_image_tokens": "output_tokens_details.image_tokens",
    },
    model="", model_in_body="tools[type=image_generation].model", kind="",
)  # fmt: skip
_REALTIME_USAGE = {
    "input_total": "usage.input_tokens",
    "input_audio_total": "usage.input_token_details.audio_tokens",
    "input_image_total": "usage.input_token_details.image_tokens",
    "cache_read_total": "usage.input_token_details.cached_tokens",
    "cache_read_audio_tokens": "usage.input_token_details.cached_tokens_details.audio_tokens",
    "cache_read_image_tokens": "usage.input_token_details.cached_tokens_details.image_tokens",
    "output_total": "usage.output_tokens",
    "output_audio_tokens": "usage.output_token_details.audio_tokens",
    "reasoning_tokens": "usage.output_token_details.reasoning_tokens",
}
_TRANSCRIPTION_USAGE = {
    "input_total": "usage.input_tokens",
    "input_audio_tokens": "usage.input_token_details.audio_tokens",
    "output_total": "usage.output_tokens",
    "audio_seconds": "usage.seconds",
}
_IMAGE_USAGE = {
    "input_total": "usage.input_tokens",
    "input_image_tokens": "usage.input_tokens_details.image_tokens",
    "output_total": "usage.output_tokens",
    "output_image_tokens": "usage.output_tokens_details.image_tokens",
}
_SVG = Parts(
    "svg_usage",
    {"input_tokens": "input_tokens", "output_total": "output_tokens", "reasoning_tokens": "reasoning_tokens"}, kind="",
)  # fmt: skip

# Capacity that was bought beforehand has no price by the token.
TIERS = {"scale": "provisioned"}

# Written by the model, so it is counted when nobody says how many tokens it was.
_CHAT_TEXT = tuple(
    f"choices.{where}.{what}"
    for where in ("message", "delta")
    for what in (
        "content", "refusal", "reasoning_content", "reasoning", "tool_calls.function.name", "tool_calls.function.arguments",
        "function_call.name", "function_call.arguments",
    )
)  # fmt: skip
# https://platform.openai.com/docs/guides/reasoning: billed as output, not in the answer.
_UNSEEN = ("o1", "o3", "o4", "gpt-5", "gpt-oss", "codex")
_USAGE_OPTION = "stream_options.include_usage"

CHAT = Route(
    "chat", COMPLETION_USAGE, ("object=chat.completion,chat.completion.chunk",),
    text=_CHAT_TEXT, limits=("max_completion_tokens", "max_tokens"), usage_option=_USAGE_OPTION, unseen=_UNSEEN, tiers=TIERS,
    finish="choices.finish_reason", known=COMPLETION_KNOWN, facts={"openai.api.type": "chat_completions"},
)  # fmt: skip
RESPONSES = Route(
    "chat", _RESPONSE_USAGE, ("object=response",), _RESPONSE_TOOLS, "tools", (_IMAGE_TOOL,), event="response",
    text=("output.content.text", "delta"), limits=("max_output_tokens",), unseen=_UNSEEN, created="created_at", tiers=TIERS,
    finish="status", also=("tool_usage",), known=("usage.total_tokens",), facts={"openai.api.type": "responses"},
    later=("queued", "in_progress"),
)  # fmt: skip
COMPLETIONS = Route(
    "text_completion", COMPLETION_USAGE, ("object=text_completion",), text=("choices.text",), limits=("max_tokens",), choices="best_of|n",
    usage_option=_USAGE_OPTION, finish="choices.finish_reason", known=COMPLETION_KNOWN,
)  # fmt: skip
EMBEDDINGS = Route(
    "embeddings", {"input_total": "usage.prompt_tokens | usage.total_tokens"}, ("object=list",), response_id="", created="", tier="",
    known=("usage.total_tokens",),
)  # fmt: skip

# dall-e reports no tokens: number, quality and size make the price. https://developers.openai.com/api/docs/guides/image-generation
_BY_NUMBER = Route(
    "image_generation", {"images": "#data"}, ("data", "!usage", "!object"), response_id="", tier="", raw="",
    options={"quality": "quality", "size": "size"},
)  # fmt: skip
_IMAGES = Route(
    "image_generation", _IMAGE_USAGE, ("data", "usage", "!object"), parts=(_SVG,), response_id="", tier="", also=("svg_usage",),
    known=("usage.total_tokens", "usage.input_tokens_details.text_tokens", "usage.output_tokens_details.text_tokens"),
)  # fmt: skip
# 6,240 for the largest picture in high quality and 100 for each of three on the way (the page above); newer models take any size.
_GENERATED = replace(
    _IMAGES, otherwise=_BY_NUMBER, given={"quality": "quality", "size": "size"}, billed={"images": "n"},
    most={"gpt-image-1": 6_540, "gpt-image-1-mini": 6_540},
)  # fmt: skip
_TRANSCRIPTION = Route(
    "transcription", _TRANSCRIPTION_USAGE, ("text", "usage.type=tokens,duration"), response_id="", created="", tier="",
    known=("usage.total_tokens", "usage.input_token_details.text_tokens"),
)  # fmt: skip
_DURATION = Route(
    "transcription", {"audio_seconds": "duration"}, ("text", "duration"), response_id="", created="", tier="", raw=""
)
# The narrowest codec that is taken, Opus, has 6 kilobits of speech a second; pauses may take less.
_TRANSCRIBED = replace(_TRANSCRIPTION, otherwise=_DURATION, hidden=True, sound=400)
_SPEECH = Route(  # the answer is sound; only its events tell a usage
    "speech", {"input_tokens": "usage.input_tokens", "output_audio_tokens": "usage.output_tokens"},
    ("type=speech.audio.done",), response_id="", created="", tier="", known=("usage.total_tokens",), billed={"characters": "input"},
)  # fmt: skip
_MODERATION = Route("moderation", {}, ("results", "model"), created="", tier="", billed={"requests": ""})
_REALTIME = Route(
    "chat", _REALTIME_USAGE, ("type=response.done",), event="response", limits=("max_output_tokens",), finish="status", created="", tier="",
    known=(
        "usage.total_tokens", "usage.input_token_details.text_tokens", "usage.output_token_details.text_tokens",
        "usage.input_token_details.cached_tokens_details.text_tokens",
    ),
)  # fmt: skip
# https://platform.openai.com/docs/api-reference/runs/object: its details of the prompt are told in the singular.
_RUN_CACHED = f"{COMPLETION_USAGE['cache_read_tokens']} | usage.prompt_token_details.cached_tokens"
_RUN = replace(
    CHAT, operation="invoke_agent", usage={**COMPLETION_USAGE, "cache_read_tokens": _RUN_CACHED}, signs=("object=thread.run", "usage"),
    created="completed_at | created_at", tier="", finish="status", facts={"openai.api.type": "assistants"},
    later=("queued", "in_progress", "requires_action", "cancelling"),
)  # fmt: skip
# Voyage, Jina, Together and vLLM have it in OpenAI's manner: tokens of query and documents together.
RERANK = replace(EMBEDDINGS, operation="rerank")
_COMPACTION = replace(RESPONSES, signs=("object=response.compaction",), event="", parts=(), tools={}, later=())
_LINE = "response.body"
_LINES = ("batch line of responses", "batch line of embeddings", "batch line")

POLLS = {
    "/responses/{}": "/responses", "/chat/completions/{}": "/chat/completions", "/batches/{}": "batch",
}  # fmt: skip
_POLLS = {**POLLS, "/threads/{}/runs/{}": "run"}
FILES = {"/files/{}/content": _LINES}

# An endpoint that came after this file: it counts in one of OpenAI's two ways, so far.
ANY = Route(
    "", {meter: f"{path} | {_RESPONSE_USAGE[meter]}" if meter in _RESPONSE_USAGE else path for meter, path in _RUN.usage.items()},
    tiers=TIERS,
)  # fmt: skip

ANSWERED = {
    "/chat/completions": CHAT, "/responses": RESPONSES, "/completions": COMPLETIONS, "/embeddings": EMBEDDINGS, "/rerank": RERANK,
    "run": _RUN, "response event": replace(RESPONSES, signs=("type=response.completed,response.incomplete,response.failed",)),
    "response": replace(RESPONSES, signs=("object=response", "usage"), event=""),
    "compaction": _COMPACTION, "/responses/compact": _COMPACTION,
    "/images/generations": _GENERATED, "/images/edits": replace(_GENERATED, hidden=True),
    "/images/variations": replace(_GENERATED, hidden=True),
    "/audio/transcriptions": _TRANSCRIBED, "/audio/translations": _TRANSCRIBED, "/audio/speech": _SPEECH,
    "/moderations": _MODERATION,
    "images": _IMAGES,
    "images by number": _BY_NUMBER,
    "image event": replace(
        _IMAGES, signs=("type=image_generation.completed,image_edit.completed",), parts=(), created="created_at",
    ),
    "transcription": _TRANSCRIPTION,
    "transcription event": replace(
        _TRANSCRIPTION, signs=("type=transcript.text.done,conversation.item.input_audio_transcription.completed", "usage"),
    ),
    "realtime": _REALTIME,
    "live": Route(  # cumulative: the newest event is the session, and is never added to an older one
        "chat", {"session_seconds": "usage.seconds"}, ("type=session.usage.updated,session.closed",), model="session.model",
        response_id="session.id", created="", tier="", known=("usage.active_seconds", "usage.paused_seconds"),
    ),
    "batch": replace(
        RESPONSES, signs=("object=batch",), event="", parts=(), tools={}, tier="=batch", created="completed_at",
        later=("validating", "in_progress", "finalizing", "cancelling"),
    ),
    "batch line": replace(CHAT, signs=("custom_id", f"{_LINE}.object=chat.completion"), event=_LINE, tier="=batch"),
    "batch line of responses": replace(RESPONSES, signs=("custom_id", f"{_LINE}.object=response"), event=_LINE, tier="=batch"),
    "batch line of embeddings": replace(EMBEDDINGS, signs=("custom_id", f"{_LINE}.object=list"), event=_LINE, tier="=batch"),
    "agent turn": replace(
        RESPONSES, signs=("type=agent.session.turn.completed,agent.session.turn.failed,agent.session.turn.cancelled", "usage"),
        event="", parts=(), tools={}, response_id="turn_id", created="turn.completed_at", tier="", finish="turn.status",
    ),
    "decision": replace(RESPONSES, signs=("answers", "usage"), event="", parts=(), tools={}, response_id="", tier=""),
}  # fmt: skip

OPENAI = Provider(
    name="openai",
    module="openai",
    package="openai",
    minimum="1.50",
    seam="stainless",
    routes=ANSWERED,
    hosts={
        "api.openai.com": "openai", ".openai.azure.com": "azure.ai.openai", ".services.ai.azure.com": "azure.ai.inference",
        "api.deepseek.com": "deepseek", "api.groq.com": "groq", "api.x.ai": "x_ai", "api.mistral.ai": "mistral_ai",
        "openrouter.ai": "openrouter", "api.together.xyz": "together", "api.fireworks.ai": "fireworks",
        "api.perplexity.ai": "perplexity", "api.voyageai.com": "voyageai", "generativelanguage.googleapis.com": "gcp.gemini",
    },
    polls=_POLLS,
    files=FILES,
    other=ANY,
    clients={"Azure": "azure.ai.openai", "Bedrock": "aws.bedrock"},
    # Azure refuses the option in older API versions; the other hosts above send the usage of a stream unasked.
    usage_hosts=("api.openai.com", ".api.openai.com"),
    # https://developers.openai.com/api/docs/guides/data-residency: models since March 2026 cost a tenth more there.
    residency={f"{region}.api.openai.com": region for region in ("us", "eu", "au", "in", "jp", "ae")},
)  # fmt: skip

AZURE = Provider("azure.ai.openai", routes=ANSWERED)
