"""Providers that answer in OpenAI's form, each with what it adds: where cached tokens stand, what it charged, models of its own."""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Parts, Provider
from aifinops.integrations.providers.openai import (
    ANSWERED,
    ANY,
    CHAT,
    COMPLETION_KNOWN,
    COMPLETION_USAGE,
    COMPLETIONS,
    EMBEDDINGS,
    FILES,
    POLLS,
    RERANK,
    RESPONSES,
)

_ALL = {
    "/chat/completions": CHAT, "/responses": RESPONSES, "response": replace(RESPONSES, signs=("object=response",), event=""),
    "/completions": COMPLETIONS, "/embeddings": EMBEDDINGS, "/rerank": RERANK,
    **{path: ANSWERED[path] for path in ("/audio/transcriptions", "/audio/translations", "/audio/speech")},
    **{key: ANSWERED[key] for key in ("batch", *FILES["/files/{}/content"])},
}  # fmt: skip

# https://docs.together.ai/reference/chat-completions-1, https://api-docs.deepseek.com/api/create-chat-completion and
# https://docs.perplexity.ai/api-reference/chat-completions-post: the limit has its first name there.
_FIRST_NAME = ("max_tokens", "max_completion_tokens")

# vLLM and SGLang report cached tokens only when they are started so; what they report is never a list price.
COMPATIBLE = Provider("openai_compatible", routes=_ALL)
TOGETHER = Provider(
    "together", routes={**_ALL, "/chat/completions": replace(CHAT, limits=_FIRST_NAME)}, module="together", package="together",
    minimum="2.0", seam="stainless", prefix="/v1", polls=POLLS, files=FILES, other=ANY, hosts={"api.together.xyz": "together", "api.together.ai": "together"},
)  # fmt: skip
CEREBRAS = Provider(
    "cerebras", routes=_ALL, module="cerebras.cloud.sdk", package="cerebras-cloud-sdk", minimum="1.0", seam="stainless",
    prefix="/v1", other=ANY, hosts={"api.cerebras.ai": "cerebras"},
)  # fmt: skip

# https://api-docs.deepseek.com/api/create-chat-completion: hit + miss = prompt_tokens.
_DEEPSEEK = {
    **COMPLETION_USAGE,
    "input_total": "usage.prompt_tokens | usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens",
    "cache_read_tokens": "usage.prompt_cache_hit_tokens | usage.prompt_tokens_details.cached_tokens",
}
DEEPSEEK = Provider(
    "deepseek", routes={**_ALL, "/chat/completions": replace(CHAT, usage=_DEEPSEEK, limits=_FIRST_NAME)}
)

# https://console.groq.com/docs/api-reference: a compound answer has one usage for each model that worked on it.
_GROQ_USAGE = {
    meter: f"{path} | {path.replace('usage.', 'x_groq.usage.', 1)}" for meter, path in COMPLETION_USAGE.items()
}
_GROQ_MODELS = Parts(
    "usage_breakdown.models | x_groq.usage_breakdown.models", COMPLETION_USAGE, kind="", inside=("*",)
)  # fmt: skip
# Several models work on one answer, each up to a limit of its own.
_COMPOUND = " | ".join(
    f"request[model={name}].model" for name in ("groq/compound", "groq/compound-mini", "compound-beta", "compound-beta-mini")
)  # fmt: skip
_GROQ_CHAT = replace(
    CHAT, loose=_COMPOUND, usage=_GROQ_USAGE, parts=(_GROQ_MODELS,), also=("usage_breakdown", "x_groq.usage", "x_groq.usage_breakdown"),
    known=(*COMPLETION_KNOWN, "usage.queue_time", "usage.prompt_time", "usage.completion_time", "usage.total_time"),
)  # fmt: skip
GROQ = Provider(
    "groq", routes={**_ALL, "/chat/completions": _GROQ_CHAT}, module="groq", package="groq", minimum="0.9", seam="stainless",
    prefix="/openai/v1", polls=POLLS, files=FILES, other=ANY, hosts={"api.groq.com": "groq"},
)  # fmt: skip

# https://openrouter.ai/docs/use-cases/usage-accounting: with a key of one's own the model's maker charges beside OpenRouter.
_OPENROUTER_CHAT = replace(
    CHAT, reported="usage.cost + usage[is_byok!=false].cost_details.upstream_inference_cost",
    known=(
        *COMPLETION_KNOWN, "usage.cost_details.upstream_inference_prompt_cost",
        "usage.cost_details.upstream_inference_completions_cost", "usage.completion_tokens_details.image_tokens",
        "usage.prompt_tokens_details.video_tokens",
    ),
    tools={"web_search_requests": "usage.server_tool_use.web_search_requests"},
)  # fmt: skip
OPENROUTER = Provider("openrouter", routes={**_ALL, "/chat/completions": _OPENROUTER_CHAT})

# https://docs.perplexity.ai/api-reference/chat-completions-post.
_PERPLEXITY_CHAT = replace(
    CHAT, limits=_FIRST_NAME, loose="request.messages", signs=("usage",), tools={"web_search_requests": "usage.num_search_queries"},
    reported="usage.cost.total_cost",
    known=(
        *COMPLETION_KNOWN, "usage.citation_tokens", "usage.reasoning_tokens", "usage.cost.input_tokens_cost",
        "usage.cost.output_tokens_cost", "usage.cost.request_cost", "usage.cost.reasoning_tokens_cost",
        "usage.cost.citation_tokens_cost", "usage.cost.search_queries_cost",
    ),
)  # fmt: skip
PERPLEXITY = Provider("perplexity", routes={"/chat/completions": _PERPLEXITY_CHAT})

# https://docs.x.ai/developers/cost-tracking: ten thousand million ticks to the dollar. Reasoning is beside completion_tokens,
# and total_tokens is all three: so in https://docs.cloud.google.com/vertex-ai/generative-ai/docs/partner-models/grok/capabilities/reasoning,
# whose answer has 663 + 50 + 124 = 837, and in what the vendor's own SDK prints.
_XAI_COST = "usage.cost_in_usd_ticks / 10000000000"
_XAI_CHAT = replace(
    CHAT, loose="request.messages", reported=_XAI_COST, known=(*COMPLETION_KNOWN, "usage.num_sources_used"),
    usage={**COMPLETION_USAGE, "output_total": "usage.completion_tokens + usage.completion_tokens_details.reasoning_tokens"},
)  # fmt: skip
_XAI_RESPONSES = replace(RESPONSES, reported=_XAI_COST)
XAI = Provider(
    "x_ai",
    routes={
        **_ALL, "/chat/completions": _XAI_CHAT, "/responses": _XAI_RESPONSES,
        "response": replace(_XAI_RESPONSES, signs=("object=response",), event=""),
    },
)  # fmt: skip
