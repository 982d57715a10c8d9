"""What the spans of other instrumentations say: one table of names, read the same way whoever wrote them.

Three vocabularies: OpenTelemetry's semantic conventions 1.41 and newer (https://github.com/open-telemetry/semantic-conventions-genai),
OpenInference (https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md), and the older names of Traceloop's
instrumentations (https://github.com/traceloop/openllmetry). Counts of all three are inclusive totals with parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aifinops.reading import Reading
from aifinops.telemetry import names

__all__ = ["Foreign", "is_inference", "read"]

_OPERATIONS = {
    "chat": "chat", "text_completion": "text_completion", "generate_content": "generate_content", "embeddings": "embeddings",
    "embedding": "embeddings", "completion": "text_completion", "rerank": "rerank", "LLM": "chat", "EMBEDDING": "embeddings",
    "RERANKER": "rerank", "image_generation": "image_generation", "speech": "speech", "transcription": "transcription",
    "moderation": "moderation",
}  # fmt: skip
"""What a span calls a call of a model -> our name of it. Any other (agents, workflows, tools, fetches) repeats what its children say."""

_KINDS = (names.OPERATION, "openinference.span.kind", "llm.request.type", "traceloop.span.kind")

_SCOPES = (
    "com.anthropic.sdk.python", "logfire.anthropic", "logfire.openai", "mistralai_sdk_tracer", "openinference.instrumentation.anthropic",
    "openinference.instrumentation.bedrock", "openinference.instrumentation.google_genai", "openinference.instrumentation.mistralai",
    "openinference.instrumentation.openai", "openlit", "opentelemetry.instrumentation.anthropic", "opentelemetry.instrumentation.bedrock",
    "opentelemetry.instrumentation.genai.", "opentelemetry.instrumentation.google_genai", "opentelemetry.instrumentation.openai",
)  # fmt: skip
"""Beginnings of the scopes whose spans are calls, of which some say so only at their end."""

_PROVIDER = (names.PROVIDER, "gen_ai.system", "llm.provider", "llm.system", "llm.vendor")
_REQUEST_MODEL = (
    names.REQUEST_MODEL,
    "llm.request.model",
    "llm.model_name",
    "embedding.model_name",
    "reranker.model_name",
)
_RESPONSE_MODEL = (names.RESPONSE_MODEL, "llm.response.model")
_RESPONSE_ID = (names.RESPONSE_ID, "llm.response.id")
_TIER = (
    names.OPENAI_SERVICE_TIER, "gen_ai.openai.response.service_tier", "anthropic.response.service_tier", "anthropic.usage.service_tier",
)  # fmt: skip
_STREAM = (names.REQUEST_STREAM, "llm.is_streaming", "gen_ai.is_streaming")

_INPUT = (
    names.INPUT_TOKENS, "llm.token_count.prompt", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens",
)  # fmt: skip
_OUTPUT = (
    names.OUTPUT_TOKENS, "llm.token_count.completion", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens",
)  # fmt: skip
_CACHE_WRITE = (
    names.CACHE_WRITE_TOKENS, "gen_ai.usage.cache_write.input_tokens", "llm.token_count.prompt_details.cache_write",
    "gen_ai.usage.cache_creation_input_tokens", "gen_ai.usage.cache_creation_tokens",
)  # fmt: skip
_CACHE_WRITE_1H = (
    "aifinops.usage.cache_write_1h.input_tokens",
    "anthropic.usage.cache_creation.ephemeral_1h_input_tokens",
)

_INPUT_PARTS = {
    "cache_read_tokens": (
        names.CACHE_READ_TOKENS, "llm.token_count.prompt_details.cache_read", "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.cache_read_tokens",
    ),
    "input_audio_tokens": ("gen_ai.usage.audio.input_tokens", "llm.token_count.prompt_details.audio"),
    "input_image_tokens": ("gen_ai.usage.image.input_tokens",),
}  # fmt: skip
_OUTPUT_PARTS = {
    "reasoning_tokens": (
        names.REASONING_TOKENS, "llm.token_count.completion_details.reasoning", "gen_ai.usage.reasoning_tokens",
        "llm.usage.reasoning_tokens",
    ),
    "output_audio_tokens": ("gen_ai.usage.audio.output_tokens", "llm.token_count.completion_details.audio"),
    "output_image_tokens": ("gen_ai.usage.image.output_tokens",),
}  # fmt: skip

_STANDARD = {"default", "standard", "auto"}
_SPELLINGS = {"google": "gcp.gemini", "aws": "aws.bedrock", "azure": "azure.ai.openai"}
"""Names of OpenInference and of older instrumentations -> OpenTelemetry's."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """One call as a foreign span tells it.

    Attributes:
        provider, operation, model: of the request. stream: True when the answer came in pieces.
        reading: usage and the rest of what the answer said.
    """

    provider: str
    operation: str
    model: str
    stream: bool
    reading: Reading


def is_inference(scope: str, attributes: Mapping[str, Any]) -> bool:
    """Whether a span is one call of a model, by what it says or else by who made it; agents, workflows and tools are not."""
    operation = _operation(attributes)
    if operation is None:
        return names.REQUEST_MODEL in attributes or scope.startswith(_SCOPES)
    return operation != ""


def _operation(attributes: Mapping[str, Any]) -> str | None:
    """Our name of the operation; empty for what is no call of a model, None when the span does not say."""
    for key in _KINDS:
        said = attributes.get(key)
        if said is not None:
            return _OPERATIONS.get(said, "") if isinstance(said, str) else ""
    return None


def read(scope: str, attributes: Mapping[str, Any]) -> Foreign | None:
    """The call that a span tells; None when it is none, or says no tokens, provider or model."""
    if not is_inference(scope, attributes):
        return None
    counts, note = _quantities(attributes)
    provider, model = _text(attributes, _PROVIDER).lower(), _text(attributes, _REQUEST_MODEL)
    answered = _text(attributes, _RESPONSE_MODEL)
    if not counts or not provider or not (model or answered):
        return None
    tier = _text(attributes, _TIER)
    reading = Reading(
        counts,
        model=answered,
        response_id=_text(attributes, _RESPONSE_ID),
        tier="" if tier in _STANDARD else tier,
        notes=(note,) if note else (),
    )
    stream = _first(attributes, _STREAM) is True
    return Foreign(
        _SPELLINGS.get(provider, provider), _operation(attributes) or "chat", model or answered, stream, reading
    )


def _quantities(attributes: Mapping[str, Any]) -> tuple[dict[str, int], str]:
    """(disjoint quantities, what to say about them)."""
    counts: dict[str, int] = {}
    parts = {meter: _count(attributes, keys) for meter, keys in _INPUT_PARTS.items()}
    for kind in ("audio", "image"):  # these are told twice: among the cached tokens and among those of their kind
        both = min(
            _count(attributes, (f"gen_ai.usage.{kind}.cache_read.input_tokens",)),
            parts["cache_read_tokens"],
            parts[f"input_{kind}_tokens"],
        )
        parts[f"cache_read_{kind}_tokens"] = both
        parts["cache_read_tokens"] -= both
        parts[f"input_{kind}_tokens"] -= both
    written, hour = _count(attributes, _CACHE_WRITE), _count(attributes, _CACHE_WRITE_1H)
    parts["cache_write_1h_tokens"] = min(hour, written) if written else hour
    parts["cache_write_tokens"] = max(written - hour, 0)
    note = _split(counts, "input_tokens", _count(attributes, _INPUT), parts)
    parts = {meter: _count(attributes, keys) for meter, keys in _OUTPUT_PARTS.items()}
    note = _split(counts, "output_tokens", _count(attributes, _OUTPUT), parts) or note
    return {meter: count for meter, count in counts.items() if count}, note


def _split(counts: dict[str, int], rest: str, whole: int, parts: Mapping[str, int]) -> str:
    counts.update(parts)
    told = sum(parts.values())
    if told <= whole:
        counts[rest] = whole - told
        return ""
    # The conventions make the total inclusive. One that is below its parts can only be of an instrumentation that leaves them out.
    counts[rest] = whole
    return f"{told} tokens in parts of {whole} {rest}: taken for a total without them"


def _first(attributes: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((attributes[key] for key in keys if attributes.get(key) is not None), None)


def _text(attributes: Mapping[str, Any], keys: Iterable[str]) -> str:
    found = _first(attributes, keys)
    return found.strip() if isinstance(found, str) else ""


def _count(attributes: Mapping[str, Any], keys: Iterable[str]) -> int:
    """The first count that is one; a float that is whole is what some exporters make of an int."""
    for key in keys:
        value = attributes.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int and value >= 0:
            return value
    return 0
