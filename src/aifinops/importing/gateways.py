"""What gateways and trace stores export: LiteLLM's spend logs and Langfuse's observations.

LiteLLM: rows of `LiteLLM_SpendLogs`, as `/spend/logs` answers or the table is dumped
(https://github.com/BerriAI/litellm/blob/main/schema.prisma). Langfuse: observations of its interface, of the export in its pages and
of the one to blob storage (https://langfuse.com/docs/api-and-data-platform/features/blob-storage-export-fields).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from aifinops.importing.records import Left, Malformed, Record, count, moment_ns, money, tags_of, text
from aifinops.reading import Reading
from aifinops.tags import KNOWN

__all__ = ["is_langfuse", "is_litellm", "langfuse", "litellm"]

Row = Mapping[str, Any]

_OPERATIONS = {"embedding": "embeddings", "text_completion": "text_completion", "image_generation": "image_generation",
               "speech": "speech", "transcription": "transcription", "rerank": "rerank", "moderation": "moderation"}  # fmt: skip
_SPELLINGS = {"vertex_ai": "gcp.vertex_ai", "gemini": "gcp.gemini", "bedrock": "aws.bedrock", "azure": "azure.ai.openai",
              "mistral": "mistral_ai", "xai": "x_ai"}  # fmt: skip
_BEDROCK = "bedrock_converse"


def is_litellm(keys: Mapping[str, Any]) -> bool:
    """Whether something has the columns of a spend log."""
    return {"request_id", "spend", "call_type"} <= keys.keys()


def is_langfuse(keys: Mapping[str, Any]) -> bool:
    """Whether something has the columns of an observation."""
    return bool({"traceId", "trace_id"} & keys.keys()) and bool(
        {"usageDetails", "usage_details", "calculatedTotalCost", "total_cost", "costDetails", "cost_details"}
        & keys.keys()
    )


def litellm(row: Row) -> Record:
    """One spend log."""
    told = _object(row.get("metadata"), "metadata")
    usage = _object(told.get("usage_object"), "metadata.usage_object")
    prompt, completion = (
        count(row.get(name), name) or count(usage.get(name), name) for name in ("prompt_tokens", "completion_tokens")
    )
    failed = text(row.get("status")) == "failure" or text(told.get("status")) == "failure"
    if failed and not prompt and not completion:
        raise Left("calls that failed without usage")
    began = moment_ns(row.get("startTime"), "startTime")
    ended = moment_ns(row["endTime"], "endTime") if row.get("endTime") else began
    counts = _inclusive(prompt, completion, usage, _object(told.get("additional_usage_values"), "metadata"))
    cached = text(row.get("cache_hit")).lower() == "true"
    if not counts:
        raise Malformed("has no tokens")
    provider, request_id = text(row.get("custom_llm_provider")).lower(), text(row.get("request_id"))
    model = text(row.get("model"))
    if not model:
        raise Malformed("names no model")
    provider = "bedrock" if provider == _BEDROCK else provider
    return Record(
        provider=_SPELLINGS.get(provider, provider), model=model.removeprefix(f"{provider}/") if provider else model,
        operation=_OPERATIONS.get(text(row.get("call_type")).removeprefix("a"), "chat"), at=began, duration=max(ended - began, 0),
        reading=Reading({} if cached else counts, response_id="" if cached else request_id, notes=("LiteLLM's own cache",) if cached else ()),
        key=request_id, theirs=Decimal(0) if cached else money(row.get("spend"), "spend") or None, paid=cached,
        error="failure" if failed else "", tags=_litellm_tags(row, told),
    )  # fmt: skip


def _litellm_tags(row: Row, told: Row) -> Mapping[str, str]:
    found: dict[str, Any] = {
        "team": told.get("user_api_key_team_alias") or row.get("team_id"),
        "user": row.get("user"),
        "customer": row.get("end_user"),
        "api_key": told.get("user_api_key_alias"),
        "conversation": row.get("session_id"),
    }
    for tag in _texts(row.get("request_tags")):
        key, colon, value = tag.replace("=", ":", 1).partition(":")
        if colon and key.strip() in KNOWN:
            found[key.strip()] = value.strip()
    return tags_of(found)


def _inclusive(prompt: int, completion: int, usage: Row, more: Row) -> dict[str, int]:
    """Disjoint counts of totals with parts, in OpenAI's names and in Anthropic's."""
    inside, outside = (
        _object(usage.get(name) or more.get(name), name)
        for name in ("prompt_tokens_details", "completion_tokens_details")
    )
    parts = {
        "cache_read_tokens": count(inside.get("cached_tokens"), "cached_tokens")
        or count(usage.get("cache_read_input_tokens", more.get("cache_read_input_tokens")), "cache_read_input_tokens"),
        "cache_write_tokens": count(
            usage.get("cache_creation_input_tokens", more.get("cache_creation_input_tokens")),
            "cache_creation_input_tokens",
        ),
        "input_audio_tokens": count(inside.get("audio_tokens"), "audio_tokens"),
    }
    outputs = {
        "reasoning_tokens": count(outside.get("reasoning_tokens"), "reasoning_tokens"),
        "output_audio_tokens": count(outside.get("audio_tokens"), "audio_tokens"),
    }
    counts = {"input_tokens": _less(prompt, parts), **parts, "output_tokens": _less(completion, outputs), **outputs}
    return {meter: number for meter, number in counts.items() if number}


def _less(whole: int, parts: Mapping[str, int]) -> int:
    """The rest of a total; one that is below its parts can only be of a version that leaves them out."""
    told = sum(parts.values())
    return whole - told if told <= whole else whole


_LANGFUSE = {
    "cache_read_tokens": ("input_cached_tokens", "cache_read_input_tokens", "input_cache_read"),
    "cache_write_tokens": (
        "input_cache_creation",
        "cache_creation_input_tokens",
        "input_cache_write",
        "cache_write_tokens",
    ),
    "input_audio_tokens": ("input_audio_tokens",),
    "reasoning_tokens": ("output_reasoning_tokens", "reasoning_tokens"),
    "output_audio_tokens": ("output_audio_tokens",),
}
_LANGFUSE_INPUT = ("input", "input_tokens", "prompt_tokens", "promptTokens")
_LANGFUSE_OUTPUT = ("output", "output_tokens", "completion_tokens", "completionTokens")
_LANGFUSE_KINDS = {"EMBEDDING": "embeddings"}


def langfuse(row: Row) -> Record:
    """One observation."""
    kind = text(row.get("type")).upper() or "GENERATION"
    if kind not in {"GENERATION", "EMBEDDING"}:
        raise Left("observations that are no generation")
    model = text(_get(row, "provided_model_name", "providedModelName", "model", "internal_model_id", "internalModelId"))
    if not model:
        raise Malformed("names no model")
    counts, note = _langfuse_counts(row)
    if not counts:
        if text(row.get("level")).upper() == "ERROR":
            raise Left("calls that failed without usage")
        raise Malformed("has no usage")
    began = moment_ns(_get(row, "startTime", "start_time"), "startTime")
    last = _get(row, "endTime", "end_time")
    ended = moment_ns(last, "endTime") if last else began
    costs = _object(_get(row, "costDetails", "cost_details"), "costDetails")
    theirs = _get(row, "totalCost", "total_cost", "calculatedTotalCost") or costs.get("total")
    meta = _object(row.get("metadata"), "metadata")
    trace, span = text(_get(row, "traceId", "trace_id")), text(row.get("id"))
    return Record(
        model=model, operation=_LANGFUSE_KINDS.get(kind, "chat"), at=began, duration=max(ended - began, 0),
        reading=Reading(counts, notes=(note,) if note else ()), key=f"{trace}|{span}", theirs=money(theirs, "totalCost") or None,
        error="error" if text(row.get("level")).upper() == "ERROR" else "", trace_id=trace, span_id=span, tags=_langfuse_tags(row, meta),
    )  # fmt: skip


def _langfuse_tags(row: Row, meta: Row) -> Mapping[str, str]:
    found: dict[str, Any] = {key: meta[key] for key in KNOWN if isinstance(meta.get(key), (str, int))}
    found |= {
        "user": _get(row, "userId", "user_id"),
        "conversation": _get(row, "sessionId", "session_id"),
        "environment": row.get("environment") if text(row.get("environment")) != "default" else None,
    }
    return tags_of(found)


def _langfuse_counts(row: Row) -> tuple[dict[str, int], str]:
    """(disjoint counts, what to say of them). The total tells whether the parts are in `input` and `output` or beside them."""
    told = _object(_get(row, "usageDetails", "usage_details"), "usageDetails") or _object(row.get("usage"), "usage")
    told = told or {name: row[name] for name in ("promptTokens", "completionTokens", "totalTokens") if row.get(name)}
    get = {name: count(value, name) for name, value in told.items() if not isinstance(value, (Mapping, list, str))}.get
    inputs, outputs = (
        next((get(name, 0) for name in names if get(name)), 0) for names in (_LANGFUSE_INPUT, _LANGFUSE_OUTPUT)
    )
    parts = {
        meter: next((get(name, 0) for name in names if get(name)), 0)
        for meter, names in _LANGFUSE.items()
        if not set(names) & {*_LANGFUSE_INPUT, *_LANGFUSE_OUTPUT}
    }
    total = get("total", 0) or get("totalTokens", 0) or get("total_tokens", 0)
    note = ""
    if sum(parts.values()) and total == inputs + outputs:
        inputs = _less(inputs, {meter: number for meter, number in parts.items() if not _is_output(meter)})
        outputs = _less(outputs, {meter: number for meter, number in parts.items() if _is_output(meter)})
    elif total and total != inputs + outputs + sum(parts.values()):
        note = f"{total} tokens in all, but {inputs + outputs + sum(parts.values())} in parts"
    counts = {"input_tokens": inputs, "output_tokens": outputs, **parts}
    return {meter: number for meter, number in counts.items() if number}, note


def _is_output(meter: str) -> bool:
    return meter.startswith(("output", "reasoning"))


def _get(row: Row, *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _object(value: Any, name: str) -> Row:
    """An object, also where it is written as text, as tables do."""
    if isinstance(value, str):
        if not value.strip():
            return {}
        try:
            value = json.loads(value, parse_float=Decimal)
        except ValueError:
            raise Malformed(f"{name} is no JSON") from None
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
