"""Amazon Bedrock: Converse has a form of its own, InvokeModel passes on what each maker answers.

Inclusion rules: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html. `inputTokens` leaves out the cache,
which `totalTokens` includes. The answer does not name its model, except behind a prompt router.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Parts, Provider, Route
from aifinops.integrations.providers.anthropic import MESSAGE
from aifinops.integrations.providers.openai import CHAT, COMPLETIONS

_CONVERSE = Route(
    "chat",
    {
        "input_tokens": "usage.inputTokens",
        "cache_read_tokens": "usage.cacheReadInputTokens | usage.cacheReadInputTokenCount",
        "cache_write_tokens": "usage.cacheWriteInputTokens | usage.cacheWriteInputTokenCount | usage.cacheDetails[].inputTokens",
        "cache_write_1h_tokens": "usage.cacheDetails[ttl=1h].inputTokens",
        "output_tokens": "usage.outputTokens",
    },
    ("usage.inputTokens",),
    text=(
        "output.message.content.text",
        "contentBlockDelta.delta.text",
        "contentBlockDelta.delta.toolUse.input",
        "contentBlockDelta.delta.reasoningContent.text",
    ),
    limits=("inferenceConfig.maxTokens",),
    choices="",
    model="trace.promptRouter.invokedModelId",
    response_id="ResponseMetadata.RequestId",
    created="",
    tier="serviceTier.type",
    tiers={"default": "", "reserved": "provisioned"},
    options={"latency": "performanceConfig[latency!=standard].latency"},
    finish="stopReason",
    known=("usage.totalTokens",),
)
# What InvokeModel and its streams tell beside the maker's body has the words of Converse; this is where the makers have theirs.
_INVOKE = replace(
    _CONVERSE,
    signs=("InvokeModel",),
    makers=True,
    text=(
        "completion", "generation", "outputText", "results.outputText", "outputs.text", "generations.text", "text", "content.text", "delta.text",
        "choices.message.content", "choices.delta.content", "choices.text", "delta.thinking", "delta.partial_json",
        "choices.delta.reasoning_content", "choices.delta.reasoning", "choices.delta.tool_calls.function.arguments", *_CONVERSE.text,
    ),
    limits=(
        "max_tokens", "max_completion_tokens", "max_gen_len", "max_tokens_to_sample", "maxTokens", "inferenceConfig.maxTokens",
        "inferenceConfig.max_new_tokens", "textGenerationConfig.maxTokenCount",
    ),
    choices="num_generations|numResults|n",
)  # fmt: skip
_TITAN = Route(
    "chat", {"input_tokens": "inputTextTokenCount", "output_tokens": "results[].tokenCount"}, ("results", "inputTextTokenCount"),
    model="", response_id="", created="", tier="", raw="", finish="results.completionReason",
)  # fmt: skip

# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_GuardrailUsage.html: each policy counts and costs by itself.
_GUARDRAIL = Route(
    "guardrail",
    {
        "guardrail_content_units": "usage.contentPolicyUnits", "guardrail_topic_units": "usage.topicPolicyUnits",
        "guardrail_word_units": "usage.wordPolicyUnits", "guardrail_pii_units": "usage.sensitiveInformationPolicyUnits",
        "guardrail_grounding_units": "usage.contextualGroundingPolicyUnits", "guardrail_image_units": "usage.contentPolicyImageUnits",
        "guardrail_reasoning_units": "usage.automatedReasoningPolicyUnits",
    },
    ("action", "usage.contentPolicyUnits"), model="=guardrails", response_id="ResponseMetadata.RequestId", created="", tier="",
    known=("usage.sensitiveInformationPolicyFreeUnits", "usage.automatedReasoningPolicies"),
)  # fmt: skip
# An agent asks models as often as it likes: its trace, where that is switched on, tells of each what it used.
_USED = {"input_tokens": "usage.inputTokens", "output_tokens": "usage.outputTokens"}
_AGENT = Route(
    "invoke_agent", {meter: f"invocations[].{path}" for meter, path in _USED.items()}, ("invocations",), named=("foundationModel",),
    parts=(Parts("invocations", _USED, inside=("*",), kind=""),), raw="", also=("invocations",), running=True, model="", response_id="id",
    created="", tier="", hidden=True, traced=True,
)  # fmt: skip
_CONFIGURED = "retrieveAndGenerateConfiguration"
_PASSAGES = Route(  # what was found and given to the model is not told
    "chat", {}, ("citations", "output.text"), hidden=True, model="", response_id="ResponseMetadata.RequestId", created="", tier="", raw="",
    text=("output.text",), choices="",
    named=tuple(f"{_CONFIGURED}.{kind}.modelArn" for kind in ("knowledgeBaseConfiguration", "externalSourcesConfiguration")),
    limits=tuple(
        f"{_CONFIGURED}.{kind}.generationConfiguration.inferenceConfig.textInferenceConfig.maxTokens"
        for kind in ("knowledgeBaseConfiguration", "externalSourcesConfiguration")
    ),
)  # fmt: skip
_RETRIEVED = Route(  # what was found by which model of embeddings is said in the knowledge base
    "retrieval", {"requests": "?ResponseMetadata.HTTPStatusCode"}, ("retrievalResults",), model="=knowledge-base",
    response_id="ResponseMetadata.RequestId", created="", tier="", raw="",
)  # fmt: skip
# https://docs.aws.amazon.com/bedrock/latest/userguide/rerank-pricing.html: one unit for each hundred documents that are begun.
_RERANKED = Route(
    "rerank", {}, ("results", "!usage", "!inputTextTokenCount"), model="", response_id="ResponseMetadata.RequestId", created="", tier="", raw="",
    named=("rerankingConfiguration.bedrockRerankingConfiguration.modelConfiguration.modelArn",),
    billed={"search_units": "sources"}, alone=True, per={"search_units": 100}, split=256,
)  # fmt: skip

_ROUTES = {
    # The id of the request (`us.`, `global.`) decides the price, not the maker's own name for the model in the body.
    "InvokeModel claude": replace(MESSAGE, model=""),
    "/v1/messages": replace(MESSAGE, model=""),  # by Anthropic's own client
    "InvokeModel openai": replace(CHAT, model=""),
    "InvokeModel jamba": replace(CHAT, signs=("choices", "!object", "usage.prompt_tokens"), model=""),
    "InvokeModel completion": replace(COMPLETIONS, model=""),
    "InvokeModel titan": _TITAN,
    "InvokeModel llama": replace(
        _TITAN, usage={"input_tokens": "prompt_token_count", "output_tokens": "generation_token_count"},
        signs=("generation", "generation_token_count"), finish="stop_reason",
    ),
    "InvokeModel embeddings": replace(
        _TITAN, operation="embeddings", usage={"input_tokens": "inputTextTokenCount"}, signs=("embedding", "inputTextTokenCount"), finish="",
    ),
    "InvokeModel embed": replace(_INVOKE, operation="embeddings", signs=("InvokeModel embed",), limits=()),
    "InvokeModel": _INVOKE,
    "Converse": _CONVERSE,
    "ConverseStream": replace(_CONVERSE, signs=("metadata.usage",), event="metadata"),
    "ApplyGuardrail": _GUARDRAIL, "InvokeAgent": _AGENT, "RetrieveAndGenerate": _PASSAGES, "Retrieve": _RETRIEVED, "Rerank": _RERANKED,
}  # fmt: skip

BEDROCK = Provider("aws.bedrock", _ROUTES, module="botocore.client", package="boto3", minimum="1.40", seam="botocore")

AIOBOTOCORE = Provider(
    "aws.bedrock", _ROUTES, module="aiobotocore.client", package="aiobotocore", minimum="2.15", seam="botocore"
)
