"""Anthropic's Messages API. Inclusion rules: https://platform.claude.com/docs/en/api/messages and .../build-with-claude/compaction.

`input_tokens` leaves out what was read from and written to the cache; `thinking_tokens` are inside `output_tokens`. `iterations` are told
one by one: sampling (`message`, `fallback_message`) is what the counts above them are made of, compaction and advice are beside them.
In a stream `message_start` has the input and what was served, `message_delta` the final counts.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Parts, Provider, Route


def _usage(root: str) -> dict[str, str]:
    """The paths below a usage object, which an iteration has of its own."""
    return {
        "input_tokens": f"{root}input_tokens",
        "cache_read_tokens": f"{root}cache_read_input_tokens",
        "cache_write_tokens": (
            f"{root}cache_creation_input_tokens | "
            f"{root}cache_creation.ephemeral_5m_input_tokens + {root}cache_creation.ephemeral_1h_input_tokens"
        ),
        "cache_write_1h_tokens": f"{root}cache_creation.ephemeral_1h_input_tokens",
        "output_total": f"{root}output_tokens",
        "reasoning_tokens": f"{root}output_tokens_details.thinking_tokens",
    }


MESSAGE = Route(
    "chat",
    _usage("usage."),
    ("type=message",),
    # A fetched page costs its tokens and nothing else, so a fetch counts as a call of a tool.
    tools={
        "web_search_requests": "usage.server_tool_use.web_search_requests",
        "tool_calls": "usage.server_tool_use.web_fetch_requests",
    },
    parts=(
        Parts(
            "usage.iterations",
            _usage(""),
            inside=("message", "fallback_message"),
            beside=("compaction", "advisor_message"),
            unbilled="message",
            served="fallback_message",
        ),
    ),
    merge=(("message", ""), ("usage", "usage"), ("delta.stop_reason", "stop_reason")),
    ended="message_stop",
    text=("content.text", "delta.text", "delta.thinking", "delta.partial_json"),
    limits=("max_tokens",),
    # Each sampling has the limit for itself, and these make several of one answer.
    loose="request.tools[type!=custom].type | request.mcp_servers | request.context_management",
    choices="",
    created="",
    tier="usage.speed | usage.service_tier",
    tiers={"standard": ""},
    region="usage.inference_geo",
    regions={"global": "", "not_available": ""},
    finish="stop_reason",
    # Priority is capacity that was bought before: `service_tier` never asks for a dearer price.
    asks={"speed": {"fast": "fast"}},
    place="inference_geo",
    notes={
        "usage.fallback_credit[status.type=redeemed]": "a fallback credit was redeemed: what it moved between rates is not in the usage",
    },
)  # fmt: skip

# https://platform.claude.com/docs/en/api/completions: the answer tells no usage, so what it cost is estimated from its text.
COMPLETION = Route(
    "text_completion", {}, ("type=completion", "usage"), text=("completion",), limits=("max_tokens_to_sample",), choices="", created="",
    tier="", finish="stop_reason",
)  # fmt: skip

ANTHROPIC = Provider(
    "anthropic",
    routes={
        "/v1/messages": MESSAGE,
        "/v1/complete": COMPLETION,
        "batch line": replace(MESSAGE, signs=("custom_id", "result.message"), event="result.message", tier="=batch"),
    },
    module="anthropic",
    package="anthropic",
    minimum="0.40",
    seam="stainless",
    hosts={
        "api.anthropic.com": "anthropic", ".amazonaws.com": "aws.bedrock", ".googleapis.com": "gcp.vertex_ai",
        ".services.ai.azure.com": "azure.ai.inference",
    },
    results={"/v1/messages/batches/{}/results": ("batch line",)},
    other=replace(MESSAGE, parts=(), merge=()),
    # These clients put the model into the path after the call has begun here, where it is still in the body.
    clients={"Bedrock": "aws.bedrock", "Vertex": "gcp.vertex_ai", "Foundry": "azure.ai.inference"},
)  # fmt: skip
