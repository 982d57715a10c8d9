"""Gemini, on its own API and on Vertex AI. Inclusion rules: https://ai.google.dev/api/generate-content#UsageMetadata.

Cached tokens are inside the prompt; thoughts and prompts of tools are outside candidates and prompt. Documents count as text.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.providers.anthropic import MESSAGE

_U = "usageMetadata."


def _modality(name: str, *lists: str) -> str:
    return " + ".join(f"{_U}{one}[modality={name}].tokenCount" for one in lists)


_KINDS = ("audio", "image", "video")
_PROMPT = ("promptTokensDetails", "toolUsePromptTokensDetails")
_ANSWER = ("candidatesTokensDetails", "responseTokensDetails")
_USAGE = {
    "input_total": f"{_U}promptTokenCount + {_U}toolUsePromptTokenCount",
    "input_audio_total": _modality("AUDIO", *_PROMPT),
    "input_image_total": _modality("IMAGE", *_PROMPT),
    "input_video_total": _modality("VIDEO", *_PROMPT),
    "cache_read_total": f"{_U}cachedContentTokenCount",
    "cache_read_audio_tokens": _modality("AUDIO", "cacheTokensDetails"),
    "cache_read_image_tokens": _modality("IMAGE", "cacheTokensDetails"),
    "cache_read_video_tokens": _modality("VIDEO", "cacheTokensDetails"),
    # A Live message has `response...` in place of `candidates...`.
    "output_total": f"{_U}candidatesTokenCount + {_U}responseTokenCount + {_U}thoughtsTokenCount",
    "reasoning_tokens": f"{_U}thoughtsTokenCount",
    "output_audio_tokens": _modality("AUDIO", *_ANSWER),
    "output_image_tokens": _modality("IMAGE", *_ANSWER),
    "output_video_tokens": _modality("VIDEO", *_ANSWER),
}
_TIERS = {
    "TRAFFIC_TYPE_UNSPECIFIED": "", "ON_DEMAND": "", "ON_DEMAND_PRIORITY": "priority", "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_OFFPEAK": "offpeak", "PROVISIONED_THROUGHPUT": "provisioned", "PRIORITY": "priority", "FLEX": "flex",
    "OFFPEAK": "offpeak", "unspecified": "", "standard": "",
}  # fmt: skip
_GROUNDED = "candidates[].groundingMetadata"

# https://ai.google.dev/gemini-api/docs/pricing: from Gemini 3 on each search is billed, before that each prompt with searches. What is not
# named is taken for a newer model.
_OLDER = ("gemini-1", "gemini-2", "gemini-live-2", "gemini-exp-1")
_CONTENT = Route(
    "generate_content", _USAGE, ("usageMetadata",),
    tools={
        "web_search_requests": f"#{_GROUNDED}.webSearchQueries", "image_search_requests": f"#{_GROUNDED}.imageSearchQueries",
        "maps_requests": f"?{_GROUNDED}.googleMapsWidgetContextToken",
    },
    tools_of={
        begin: {
            "web_search_requests": f"?{_GROUNDED}.webSearchQueries[]", "image_search_requests": f"#{_GROUNDED}.imageSearchQueries",
            "maps_requests": f"?{_GROUNDED}.googleMapsWidgetContextToken",
        }
        for begin in _OLDER
    },
    # https://ai.google.dev/gemini-api/docs/thinking#set-budget
    thinking=tuple(f"generationConfig.thinkingConfig.{name}" for name in ("thinkingBudget", "thinking_budget")),
    plain=("gemini-1", "gemini-2.0-", "gemini-2.5-flash-lite", "gemma-3"),
    running=True, text=("candidates.content.parts.text",), limits=("generationConfig.maxOutputTokens",),
    choices="generationConfig.candidateCount", model="modelVersion", response_id="responseId", created="",
    tier=f"{_U}trafficType | {_U}serviceTier", tiers=_TIERS, finish="candidates.finishReason", raw="usageMetadata",
    known=(f"{_U}totalTokenCount",),
)  # fmt: skip
_I = "usage."
_TOOLS = {"web_search_requests": "google_search", "maps_requests": "google_maps"}
# https://ai.google.dev/api/interactions-api: a stream's last event has the interaction; what is made in the background is asked for.
_INTERACTION = Route(
    "generate_content",
    {
        "input_total": f"{_I}total_input_tokens + {_I}total_tool_use_tokens",
        **{f"input_{kind}_total": f"{_I}input_tokens_by_modality[modality={kind}].tokens" for kind in _KINDS},
        "cache_read_total": f"{_I}total_cached_tokens",
        **{f"cache_read_{kind}_tokens": f"{_I}cached_tokens_by_modality[modality={kind}].tokens" for kind in _KINDS},
        "output_total": f"{_I}total_output_tokens + {_I}total_thought_tokens",
        "reasoning_tokens": f"{_I}total_thought_tokens",
        **{f"output_{kind}_tokens": f"{_I}output_tokens_by_modality[modality={kind}].tokens" for kind in _KINDS},
    },
    ("usage.total_input_tokens",),
    tools={meter: f"{_I}grounding_tool_count[type={tool}].count" for meter, tool in _TOOLS.items()},
    tools_of={
        begin: {meter: f"?{_I}grounding_tool_count[type={tool}][count!=0].type" for meter, tool in _TOOLS.items()}
        for begin in _OLDER
    },
    event="interaction", text=("steps.content.text", "outputs.text", "delta.text", "delta.content.text"), unseen=("gemini-",),
    limits=("generation_config.max_output_tokens",), choices="", named=("agent",), model="model | agent", created="created", tier="service_tier", tiers=_TIERS,
    finish="status", later=("queued", "in_progress"),
    known=(f"{_I}total_tokens", f"{_I}initial_input_tokens", f"{_I}tool_use_tokens_by_modality"),
)  # fmt: skip

# https://cloud.google.com/vertex-ai/generative-ai/pricing: Gemini's embeddings are billed by tokens, the older models by characters.
_EMBEDDING = Route(
    "embeddings",
    {
        "input_total": f"{_U}promptTokenCount | predictions[].embeddings.statistics.token_count", "input_audio_total": _modality("AUDIO", _PROMPT[0]),
        "input_image_total": _modality("IMAGE", _PROMPT[0]), "input_video_total": _modality("VIDEO", _PROMPT[0]),
    },
    ("embeddings", "usageMetadata"), model="", response_id="", created="", tier="", raw="usageMetadata", also=("metadata",),
    known=(f"{_U}totalTokenCount", f"{_U}candidatesTokenCount"),
)  # fmt: skip
_CHARACTERS = Route(
    "embeddings", {"characters": "metadata.billableCharacterCount"}, ("metadata.billableCharacterCount",), model="", response_id="",
    created="", tier="", raw="metadata",
)  # fmt: skip
# https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/imagen-api: what was filtered out has no type, and is not billed.
_IMAGEN = Route(
    "image_generation", {"images": " + ".join(f"#predictions[mimeType=image/{kind}]" for kind in ("png", "jpeg", "webp"))},
    ("predictions",), model="", response_id="", created="", tier="", raw="",
)  # fmt: skip

# https://ai.google.dev/api/batch-api#Batch: answers stand in the batch or in a file. On Vertex AI they are in a bucket or a table of the user's.
_BATCH = Route(
    "batch", {}, ("metadata.state", "!state"), model="metadata.model", response_id="name", created="metadata.endTime | metadata.createTime",
    tier="=batch", raw="", finish="metadata.state",
    later=tuple(f"{kind}_STATE_{word}" for kind in ("BATCH", "JOB") for word in ("UNSPECIFIED", "PENDING", "QUEUED", "RUNNING")),
    lines="metadata.output.inlinedResponses.inlinedResponses[] | response.inlinedResponses.inlinedResponses[]",
    output="metadata.output.responsesFile",
)  # fmt: skip
_JOB = replace(
    _BATCH, signs=("state", "outputInfo"), model="model", created="endTime | createTime", finish="state", lines="", output="",
    elsewhere="outputInfo.gcsOutputDirectory | outputInfo.bigqueryOutputTable | outputInfo.vertexMultimodalDatasetName",
    later=tuple(f"JOB_STATE_{word}" for word in ("UNSPECIFIED", "QUEUED", "PENDING", "RUNNING", "CANCELLING", "PAUSED", "UPDATING")),
)  # fmt: skip
# https://ai.google.dev/gemini-api/docs/video: billed by the second of what was made; eight where the request does not say.
_VIDEO = Route(
    "video_generation", {}, ("done", "response"), model="", response_id="name", created="", tier="", raw="", finish="done", later=("",),
    made="#response.generateVideoResponse.generatedSamples + #response.videos", choices="parameters.sampleCount",
    billed={"video_seconds": "parameters.durationSeconds"}, usual={"video_seconds": 8}, alone=True, given={"resolution": "parameters.resolution"},
)  # fmt: skip
_LINES = ("batch line", "batch line of embeddings")

GOOGLE = Provider(
    "gcp.gemini",
    module="google.genai",
    package="google-genai",
    minimum="1.20",
    seam="google_genai",
    hosts={"generativelanguage.googleapis.com": "gcp.gemini", ".googleapis.com": "gcp.vertex_ai"},
    # Interactions and decisions are sent by a library within the library.
    senders={
        "google.genai._gaos.basesdk:BaseSDK.do_request": "sdk_configuration.client",
        "google.genai._gaos.basesdk:AsyncBaseSDK.do_request_async": "sdk_configuration.async_client",
        # In version 1 by one of another make.
        "google.genai._interactions._base_client:SyncAPIClient.request": "_client",
        "google.genai._interactions._base_client:AsyncAPIClient.request": "_client",
    },
    outermost=tuple(
        f"google.genai._interactions.resources.interactions:{kind}InteractionsResource.create" for kind in ("", "Async")
    ),
    connections=("_api_client._httpx_client", "_api_client._async_httpx_client"),
    polls={
        "/interactions/{}": "/interactions", "/batches/{}": ("batch", *_LINES), "/batchPredictionJobs/{}": "batch job",
        "/models/{}/operations/{}": "video", ":fetchPredictOperation": "video",
    },
    files={"/files/{}:download": _LINES},
    # The first word of a key is the method of the call, a second one how the names of its models begin.
    routes={
        "generateContent": _CONTENT,
        "interactions": replace(_INTERACTION, event=""),
        "/interactions": replace(_INTERACTION, signs=("interaction.usage",)),
        "/decisions": replace(_INTERACTION, event="", signs=("answers", "usage.total_input_tokens"), text=(), later=()),
        "batch line": replace(_CONTENT, signs=("response.usageMetadata",), event="response", tier="=batch"),
        "batch line of embeddings": replace(
            _EMBEDDING, usage={"input_total": "tokenCount"}, signs=("response.tokenCount",), event="response", tier="=batch", raw="",
        ),
        "batch": _BATCH, "batch job": _JOB, "video": _VIDEO, "predictLongRunning": _VIDEO,
        "embedContent characters": _CHARACTERS,
        "embedContent": _EMBEDDING,
        "claude": MESSAGE,
        "batchEmbedContents": _EMBEDDING,
        "predict text": replace(_CHARACTERS, signs=("predictions", "metadata.billableCharacterCount")),
        "predict": replace(_EMBEDDING, signs=("predictions",)),
        "predict imagen": _IMAGEN,
    },
)  # fmt: skip
