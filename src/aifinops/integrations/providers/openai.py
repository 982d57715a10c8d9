"""OpenAI and everything that its client reaches by `base_url`. Inclusion rules: https://platform.openai.com/docs/api-reference."""

from __future__ import annotations

from aifinops.integrations.provider import Provider, Route

_COMPLETION_USAGE = {
    "input_total": "usage.prompt_tokens",
    "cache_read_tokens": "usage.prompt_tokens_details.cached_tokens",
    "cache_write_tokens": "usage.prompt_tokens_details.cache_write_tokens",
    "input_audio_tokens": "usage.prompt_tokens_details.audio_tokens",
    "input_image_tokens": "usage.prompt_tokens_details.image_tokens",
    "output_total": "usage.completion_tokens",
    "reasoning_tokens": "usage.completion_tokens_details.reasoning_tokens",
    "output_audio_tokens": "usage.completion_tokens_details.audio_tokens",
}

_RESPONSE_USAGE = {
    "input_total": "usage.input_tokens",
    "cache_read_tokens": "usage.input_tokens_details.cached_tokens",
    "cache_write_tokens": "usage.input_tokens_details.cache_write_tokens",
    "cache_write_30m_tokens": "usage.input_tokens_details.cache_write_tokens_details.ttl_30m_tokens",
    "cache_write_12h_tokens": "usage.input_tokens_details.cache_write_tokens_details.ttl_12h_tokens",
    "output_total": "usage.output_tokens",
    "reasoning_tokens": "usage.output_tokens_details.reasoning_tokens",
    "web_search_requests": "tool_usage.web_search.num_requests",
}

OPENAI = Provider(
    name="openai",
    module="openai",
    package="openai",
    minimum="1.50",
    seam="stainless",
    routes={
        "/chat/completions": Route(
            "chat", _COMPLETION_USAGE, "chat.completion", text=("choices.message.content", "choices.delta.content"),
            limits=("max_completion_tokens", "max_tokens"), finish="choices.finish_reason",
            facts={"openai.api.type": "chat_completions"},
        ),
        "/responses": Route(
            "chat", _RESPONSE_USAGE, "response", event="response", text=("output.content.text", "delta"),
            limits=("max_output_tokens",), finish="status", facts={"openai.api.type": "responses"},
        ),
        "/completions": Route(
            "text_completion", _COMPLETION_USAGE, "text_completion", text=("choices.text",), limits=("max_tokens",),
            finish="choices.finish_reason",
        ),
        "/embeddings": Route("embeddings", {"input_total": "usage.prompt_tokens"}, "list", response_id="", tier=""),
    },
    hosts={
        "api.openai.com": "openai", ".openai.azure.com": "azure.ai.openai", ".services.ai.azure.com": "azure.ai.inference",
        "api.deepseek.com": "deepseek", "api.groq.com": "groq", "api.x.ai": "x_ai", "api.mistral.ai": "mistral_ai",
        "openrouter.ai": "openrouter", "api.together.xyz": "together", "api.fireworks.ai": "fireworks",
        "api.perplexity.ai": "perplexity", "generativelanguage.googleapis.com": "gcp.gemini",
    },
)  # fmt: skip
