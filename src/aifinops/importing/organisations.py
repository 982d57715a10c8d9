"""What providers say of a whole organisation: pages of usage and of costs, as their administration interfaces answer.

OpenAI: https://platform.openai.com/docs/api-reference/usage (fields as in the types of the openai SDK 3.57,
`openai.types.admin.organization`). Anthropic: https://docs.anthropic.com/en/api/usage-cost-api (costs are decimal text in cents).
Each row sums up many calls, so it is one entry with their number under `requests`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from aifinops.errors import ImpossibleUsage
from aifinops.importing.records import Malformed, Record, count, moment_ns, money, tags_of, text
from aifinops.reading import Reading
from aifinops.usage import leaves

__all__ = ["anthropic_costs", "anthropic_usage", "buckets", "openai_costs", "openai_usage"]

Row = Mapping[str, Any]

_KINDS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "completions": ("chat", "llm", {}),
    "embeddings": ("embeddings", "llm", {}),
    "moderations": ("moderation", "llm", {}),
    "images": ("image_generation", "llm", {"images": "images"}),
    "audio_speeches": ("speech", "llm", {"characters": "characters"}),
    "audio_transcriptions": ("transcription", "llm", {"seconds": "audio_seconds"}),
    "code_interpreter_sessions": ("code_interpreter", "tool", {"num_sessions": "code_interpreter_sessions"}),
    "file_searches": ("file_search", "tool", {"num_requests": "file_search_requests"}),
    "web_searches": ("web_search", "tool", {"num_requests": "web_search_requests"}),
}
"""`organization.usage.<kind>.result` -> operation, service, and the fields that are meters beside tokens."""


def buckets(value: Row) -> Iterator[tuple[str, Row]]:
    """The results of a page, or of one bucket of it, each with the period that it is of."""
    pages = value.get("data") if isinstance(value.get("data"), list) else [value]
    for number, bucket in enumerate(pages or [], 1):
        place = f"bucket {number}" if len(pages or []) > 1 else ""
        results = bucket.get("results") if isinstance(bucket, Mapping) else None
        if results is None and isinstance(bucket, Mapping):
            results = bucket.get("result")  # as OpenAI called it once
        if not isinstance(results, list):
            yield place, {}
            continue
        period = {name: found for name, found in bucket.items() if name not in {"results", "result", "object"}}
        for index, result in enumerate(results, 1):
            inside = f"{place}, result {index}".removeprefix(", ")
            yield inside, {**period, **result} if isinstance(result, Mapping) else {}


def openai_usage(row: Row) -> Record:
    """One row of `/v1/organization/usage/...`."""
    began, ended = _period(row, "start_time", "end_time")
    kind = text(row.get("object")).removeprefix("organization.usage.").removesuffix(".result")
    if kind == "vector_stores":
        raise Malformed("bytes in vector stores are no usage of a call; import the costs instead")
    if kind not in _KINDS:
        raise Malformed(f"object {row.get('object')!r} is no kind of usage that is known")
    operation, service, others = _KINDS[kind]
    counts = _openai_tokens(row)
    counts.update({meter: count(row.get(name), name) for name, meter in others.items()})
    model = text(row.get("model"))
    if not model and service == "llm":
        raise Malformed("names no model; export the usage again with group_by=model")
    tier = "batch" if row.get("batch") is True else text(row.get("service_tier"))
    size = text(row.get("size"))
    requests = count(row.get("num_model_requests"), "num_model_requests")
    return Record(
        provider="openai", model=model, operation=operation, service=service, at=began, duration=ended - began,
        reading=Reading(
            _some(counts, requests), raw=_raw(row), tier="" if tier == "default" else tier,
            options=(("size", size),) if size else (),
        ),
        key=_key(row, "start_time", "object", "model", "project_id", "user_id", "api_key_id", "batch", "service_tier", "size", "source",
                 "context_level", "vector_store_id", "api_source"),
        requests=requests or 1, tags=_openai_tags(row),
    )  # fmt: skip


def _openai_tokens(row: Row) -> dict[str, int]:
    """Disjoint counts of OpenAI's fields; in an older answer, which has no `input_uncached_tokens`, audio stands beside the totals."""
    get = {name: count(row.get(name), name) for name in row if name.endswith("_tokens")}.get
    writes = get("input_cache_write_30m_tokens", 0), get("input_cache_write_12h_tokens", 0)
    parts = {
        "cache_write_30m_tokens": writes[0],
        "cache_write_12h_tokens": writes[1],
        "cache_write_tokens": max(get("input_cache_write_tokens", 0) - sum(writes), 0),
    }
    if "input_uncached_tokens" not in row:
        parts["cache_read_tokens"] = get("input_cached_tokens", 0)
        return {
            **parts,
            "input_tokens": _rest(get("input_tokens", 0), parts, "input_tokens"),
            "output_tokens": get("output_tokens", 0),
            "input_audio_tokens": get("input_audio_tokens", 0),
            "output_audio_tokens": get("output_audio_tokens", 0),
        }
    cached = get("input_cached_audio_tokens", 0), get("input_cached_image_tokens", 0)
    parts |= {
        "cache_read_audio_tokens": cached[0],
        "cache_read_image_tokens": cached[1],
        "cache_read_tokens": _rest(
            get("input_cached_tokens", 0), dict(zip("ai", cached, strict=True)), "input_cached_tokens"
        ),
        "input_audio_tokens": get("input_audio_tokens", 0),
        "input_image_tokens": get("input_image_tokens", 0),
    }
    outputs = {
        "output_audio_tokens": get("output_audio_tokens", 0),
        "output_image_tokens": get("output_image_tokens", 0),
    }
    return {
        **parts,
        **outputs,
        "input_tokens": _rest(get("input_tokens", 0), parts, "input_tokens"),
        "output_tokens": _rest(get("output_tokens", 0), outputs, "output_tokens"),
    }


def openai_costs(row: Row) -> Record:
    """One row of `/v1/organization/costs`."""
    began, ended = _period(row, "start_time", "end_time")
    amount = row.get("amount")
    if not isinstance(amount, Mapping) or amount.get("value") is None:
        raise Malformed("has no amount")
    item = text(row.get("line_item"))
    return Record(
        provider="openai", model=item, operation="billed", service="bill", at=began, duration=ended - began,
        reading=Reading(raw=_raw(row)), theirs=money(amount["value"], "amount.value"),
        currency=_currency(amount.get("currency")), paid=True,
        key=_key(row, "start_time", "line_item", "project_id", "user_id", "api_key_id", "organization_id", "api_source"),
        requests=1, tags=_openai_tags(row),
    )  # fmt: skip


def anthropic_usage(row: Row) -> Record:
    """One row of `/v1/organizations/usage_report/messages`."""
    began, ended = _period(row, "starting_at", "ending_at")
    model = text(row.get("model"))
    if not model:
        raise Malformed("names no model; export the usage again with group_by[]=model")
    written = row.get("cache_creation") or {}
    tools = row.get("server_tool_use") or {}
    if not isinstance(written, Mapping) or not isinstance(tools, Mapping):
        raise Malformed("cache_creation or server_tool_use is no object")
    counts = {
        "input_tokens": count(row.get("uncached_input_tokens"), "uncached_input_tokens"),
        "cache_read_tokens": count(row.get("cache_read_input_tokens"), "cache_read_input_tokens"),
        "cache_write_tokens": count(written.get("ephemeral_5m_input_tokens"), "ephemeral_5m_input_tokens"),
        "cache_write_1h_tokens": count(written.get("ephemeral_1h_input_tokens"), "ephemeral_1h_input_tokens"),
        "output_tokens": count(row.get("output_tokens"), "output_tokens"),
        "web_search_requests": count(tools.get("web_search_requests"), "web_search_requests"),
    }
    tier, speed, geo = text(row.get("service_tier")), text(row.get("speed")), text(row.get("inference_geo"))
    return Record(
        provider="anthropic", model=model, at=began, duration=ended - began,
        reading=Reading(
            _some(counts, 0), raw=_raw(row), tier="fast" if speed == "fast" else "" if tier == "standard" else tier,
            region="" if geo in {"global", "not_available"} else geo,
        ),
        key=_key(row, "starting_at", "model", "workspace_id", "api_key_id", "service_tier", "context_window", "speed",
                 "inference_geo", "account_id", "service_account_id"),
        requests=0, prompts={"0-200k": "short", "200k-1M": "long"}.get(text(row.get("context_window")), ""),
        tags=_anthropic_tags(row),
    )  # fmt: skip


def anthropic_costs(row: Row) -> Record:
    """One row of `/v1/organizations/cost_report`."""
    began, ended = _period(row, "starting_at", "ending_at")
    cents = money(row.get("amount"), "amount")
    if cents is None:
        raise Malformed("has no amount")
    return Record(
        provider="anthropic", model=text(row.get("model")) or text(row.get("description")), operation="billed", service="bill",
        at=began, duration=ended - began, reading=Reading(raw=_raw(row)), theirs=cents / Decimal(100),
        currency=_currency(row.get("currency")), paid=True,
        key=_key(row, "starting_at", "workspace_id", "description", "cost_type", "model", "service_tier", "token_type", "context_window",
                 "inference_geo", "speed"),
        requests=1, tags=_anthropic_tags(row),
    )  # fmt: skip


def _period(row: Row, first: str, last: str) -> tuple[int, int]:
    if row.get(first) is None:
        raise Malformed(f"has no {first}")
    began = moment_ns(row[first], first)
    ended = moment_ns(row[last], last) if row.get(last) is not None else began
    if ended < began:
        raise Malformed(f"{last} is before {first}")
    return began, ended


def _rest(whole: int, parts: Mapping[str, int], name: str) -> int:
    try:
        return int(leaves(whole, parts, whole_name=name))
    except ImpossibleUsage as error:
        raise Malformed(str(error)) from None


def _some(counts: Mapping[str, int], requests: int) -> dict[str, int]:
    found = {meter: number for meter, number in counts.items() if number}
    if not found and not requests:
        raise Malformed("has no usage")
    return {**found, "requests": requests} if requests else found


def _currency(value: Any) -> str:
    found = text(value).upper() or "USD"
    if len(found) != 3 or not found.isalpha():
        raise Malformed(f"currency {value!r} is none")
    return found


def _key(row: Row, *names: str) -> str:
    return "|".join(text(row.get(name)) or str(row.get(name) or "") for name in names)


def _raw(row: Row) -> dict[str, Any]:
    """What the row said, without what the entry has in places of its own."""
    return {
        name: str(value) if isinstance(value, Decimal) else value for name, value in row.items() if value is not None
    }


def _openai_tags(row: Row) -> Mapping[str, str]:
    return tags_of(
        {
            "project": row.get("project_name") or row.get("project_id"),
            "user": row.get("user_id"),
            "api_key": row.get("api_key_id"),
        }
    )


def _anthropic_tags(row: Row) -> Mapping[str, str]:
    return tags_of({"project": row.get("workspace_id"), "api_key": row.get("api_key_id")})
