"""Amazon Bedrock: Converse has a form of its own, InvokeModel passes on what each maker answers.

Inclusion rules: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html. `inputTokens` leaves out the cache,
which `totalTokens` includes. The answer does not name its model, except behind a prompt router.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.providers.anthropic import MESSAGE
from aifinops.integrations.providers.openai import CHAT

_CONVERSE = Route(
    "chat",
    {
        "input_tokens": "usage.inputTokens",
        "cache_read_tokens": "usage.cacheReadInputTokens | usage.cacheReadInputTokenCount",
        "cache_write_tokens": "usage.cacheWriteInputTokens | usage.cacheDetails[].inputTokens",
        "cache_write_1h_tokens": "usage.cacheDetails[ttl=1h].inputTokens",
        "output_tokens": "usage.outputTokens",
    },
    ("usage.inputTokens",),
    text=("output.message.content.text", "contentBlockDelta.delta.text"),
    model="trace.promptRouter.invokedModelId",
    response_id="ResponseMetadata.RequestId",
    created="",
    tier="serviceTier.type",
    tiers={"default": "", "reserved": "provisioned"},
    options={"latency": "performanceConfig[latency!=standard].latency"},
    finish="stopReason",
    known=("usage.totalTokens", "usage.cacheWriteInputTokenCount"),
)

BEDROCK = Provider(
    "aws.bedrock",
    routes={
        # The id of the request (`us.`, `global.`) decides the price, not the maker's own name for the model in the body.
        "InvokeModel claude": replace(MESSAGE, model=""),
        "/v1/messages": replace(MESSAGE, model=""),  # by Anthropic's own client
        "InvokeModel openai": replace(CHAT, model=""),
        "Converse": _CONVERSE,
        "ConverseStream": replace(_CONVERSE, signs=("metadata.usage",), event="metadata"),
    },
)
