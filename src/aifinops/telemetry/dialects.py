"""What backends read in place of our names: one table, applied to a copy of a span when it is exported.

Which backend reads what was looked up in their sources in November 2026; docs/reference/telemetry.md has the table with the evidence.
Money is written only where it is USD, since nobody of these reads a currency; `otel-cost` is the one that carries its currency along.
The tokens are written also where a price is unknown, and no cost then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aifinops.telemetry import names

__all__ = ["DIALECTS", "CostHistogram", "Dialect", "Json", "Text", "figures", "spoken"]

_Figures = Mapping[str, Any]


class Text(NamedTuple):
    """A value that is the same on every span."""

    text: str


class Json(NamedTuple):
    """An object, written as JSON text: key -> figure, or an object of such inside."""

    keys: Mapping[str, Any]


class CostHistogram(NamedTuple):
    """A histogram of what calls cost, beside ours.

    Attributes:
        name, unit: as created. currency: attribute that says the currency; empty for one that takes USD alone.
    """

    name: str
    unit: str
    currency: str = ""


class Dialect(NamedTuple):
    """One row.

    Attributes:
        name: in `AIFINOPS_DIALECTS`. reader: who reads it. evidence: how we know.
        adds: attribute -> figure, `Text` or `Json`; one whose figures are unknown is left out.
        histograms: of cost, beside ours. token_types: whether `gen_ai.client.token.usage` gets cached and reasoning tokens as types, too.
        drops: attributes that are taken away. strict: whether all is taken away that is neither of the conventions nor ours.
        written_early: whether the attributes are put on the span itself, so that they are there whoever exports it.
    """

    name: str
    reader: str
    evidence: str
    adds: Mapping[str, Any] = {}
    histograms: tuple[CostHistogram, ...] = ()
    token_types: bool = False
    drops: tuple[str, ...] = ()
    strict: bool = False
    written_early: bool = False


_OPENLIT = CostHistogram(names.COMPAT_COST, "USD")
_USAGE = {
    "input": "tokens.fresh", "input_cached_tokens": "tokens.cache_read", "input_cache_creation": "tokens.cache_write",
    "output": "tokens.visible", "output_reasoning_tokens": "tokens.reasoning", "total": "tokens.total",
}  # fmt: skip

_TABLE = (
    Dialect(
        "compat", "Langfuse, OpenLIT, SigNoz, Grafana Cloud", "read in their sources and dashboards",
        {names.COMPAT_COST: "usd.total"}, (_OPENLIT,), written_early=True,
    ),
    Dialect(
        "otel-cost", "whoever follows semantic-conventions-genai pull request 443", "text of the pull request, open in August 2026",
        {"gen_ai.usage.cost.amount": "cost.total", "gen_ai.usage.cost.currency": "cost.currency", "gen_ai.usage.cost.source": "cost.source"},
        (CostHistogram("gen_ai.client.operation.cost", "{currency}", "gen_ai.usage.cost.currency"),), drops=(names.COMPAT_COST,),
    ),
    Dialect(
        "langfuse", "Langfuse", "read in its ingestion",
        {
            "langfuse.observation.cost_details": Json({
                "input": "usd.fresh", "input_cached_tokens": "usd.cache_read", "input_cache_creation": "usd.cache_write",
                "output": "usd.output", "total": "usd.total",
            }),
            "langfuse.observation.usage_details": Json(_USAGE),
            "user.id": "user",
            "session.id": "session",
        },
    ),
    Dialect(
        "openinference", "Arize AX, Phoenix (tokens)", "Arize's page on cost tracking; OpenInference's conventions",
        {
            "openinference.span.kind": "kind", "llm.model_name": "model", "llm.provider": "provider",
            "llm.token_count.prompt": "tokens.input", "llm.token_count.completion": "tokens.output", "llm.token_count.total": "tokens.total",
            "llm.token_count.prompt_details.cache_read": "tokens.cache_read",
            "llm.token_count.prompt_details.cache_write": "tokens.cache_write",
            "llm.token_count.completion_details.reasoning": "tokens.reasoning",
            "llm.cost.prompt": "usd.prompt", "llm.cost.completion": "usd.output", "llm.cost.total": "usd.total",
            "llm.cost.prompt_details.input": "usd.fresh", "llm.cost.prompt_details.cache_read": "usd.cache_read",
            "llm.cost.prompt_details.cache_write": "usd.cache_write", "llm.cost.completion_details.output": "usd.visible",
            "llm.cost.completion_details.reasoning": "usd.reasoning",
        },
    ),
    Dialect(
        "logfire", "Pydantic Logfire", "read in logfire and pydantic-ai",
        {"operation.cost": "usd.total"}, (CostHistogram("operation.cost", "{USD}"),),
    ),
    Dialect(
        "mlflow", "MLflow 3", "read in mlflow",
        {
            "mlflow.llm.cost": Json({"input_cost": "usd.prompt", "output_cost": "usd.output", "total_cost": "usd.total"}),
            "mlflow.chat.tokenUsage": Json({
                "input_tokens": "tokens.input", "output_tokens": "tokens.output", "total_tokens": "tokens.total",
                "cache_read_input_tokens": "tokens.cache_read", "cache_creation_input_tokens": "tokens.cache_write",
            }),
            "mlflow.llm.model": "model",
        },
    ),
    Dialect(
        "sentry", "Sentry", "read in sentry-conventions",
        {"gen_ai.cost.total_tokens": "usd.total", "gen_ai.cost.input_tokens": "usd.prompt", "gen_ai.cost.output_tokens": "usd.output"},
    ),
    Dialect(
        "langsmith", "LangSmith", "tests of producers; its page does not promise it",
        {
            "langsmith.span.kind": Text("llm"),
            "langsmith.usage_metadata": Json({
                "input_tokens": "tokens.input", "output_tokens": "tokens.output", "total_tokens": "tokens.total",
                "input_cost": "usd.prompt", "output_cost": "usd.output", "total_cost": "usd.total",
                "input_token_details": {"cache_read": "tokens.cache_read", "cache_creation": "tokens.cache_write"},
                "output_token_details": {"reasoning": "tokens.reasoning"},
            }),
        },
    ),
    Dialect(
        "latitude", "Latitude", "read in its repository",
        {"gen_ai.usage.input_cost": "usd.prompt", "gen_ai.usage.output_cost": "usd.output", "gen_ai.usage.total_cost": "usd.total"},
    ),
    Dialect(
        "braintrust", "Braintrust", "unverified: tests of its SDK, not of what it takes over OTLP",
        {
            "braintrust.metrics": Json({
                "prompt_tokens": "tokens.input", "completion_tokens": "tokens.output", "tokens": "tokens.total",
                "prompt_cached_tokens": "tokens.cache_read", "prompt_cache_creation_tokens": "tokens.cache_write",
                "completion_reasoning_tokens": "tokens.reasoning", "estimated_cost": "usd.total",
            }),
        },
    ),
    Dialect("openlit", "Grafana Cloud's AI dashboards, OpenLIT", "read in LiteLLM's page and OpenLIT's dashboards", histograms=(_OPENLIT,)),
    Dialect("agento11y", "Grafana agento11y, which prices by token type", "read in its repository", token_types=True),
    Dialect("strict", "whoever wants nothing but the conventions and `aifinops.*`", "the conventions", strict=True),
)  # fmt: skip

DIALECTS = {row.name: row for row in _TABLE}
"""Every dialect by name; `aifinops.config` says which of them go together."""

_KINDS = {"embeddings": "EMBEDDING", "rerank": "RERANKER"}
_COSTS = ("input", "output", "cache_read", "cache_write", "reasoning")
_TOKENS = {
    "input": (names.INPUT_TOKENS,), "output": (names.OUTPUT_TOKENS,), "cache_read": (names.CACHE_READ_TOKENS,),
    "cache_write": (names.CACHE_WRITE_TOKENS, names.CACHE_WRITE_TOKENS_LATEST), "reasoning": (names.REASONING_TOKENS,),
}  # fmt: skip


def figures(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What dialects are made of, from the attributes of the span of a call.

    Returns:
        `tokens.*` (totals and disjoint parts), `cost.*` in the currency of the call, `usd.*` only where that is USD, and `model`, `provider`,
        `kind`, `user`, `session`. What is unknown is not there.
    """
    found: dict[str, Any] = {
        "model": attributes.get(names.RESPONSE_MODEL) or attributes.get(names.REQUEST_MODEL),
        "provider": attributes.get(names.PROVIDER),
        "kind": _KINDS.get(attributes.get(names.OPERATION, ""), "LLM"),
        "user": attributes.get(names.TAG_PREFIX + "user"),
        "session": attributes.get(names.CONVERSATION_ID),
        **_tokens(attributes),
        **_costs(attributes),
    }
    return {name: value for name, value in found.items() if value is not None}


def _tokens(attributes: Mapping[str, Any]) -> dict[str, int]:
    told = {part: next((attributes[key] for key in keys if key in attributes), None) for part, keys in _TOKENS.items()}
    found = {f"tokens.{part}": count for part, count in told.items() if count is not None}
    if told["input"] is not None:
        found["tokens.total"] = told["input"] + (told["output"] or 0)
        found["tokens.fresh"] = told["input"] - (told["cache_read"] or 0) - (told["cache_write"] or 0)
    if told["output"] is not None:
        found["tokens.visible"] = told["output"] - (told["reasoning"] or 0)
    return found


def _costs(attributes: Mapping[str, Any]) -> dict[str, Any]:
    total = attributes.get(names.COST_TOTAL)
    if total is None:
        return {}
    currency = attributes.get(names.COST_CURRENCY)
    found = {"cost.total": total, "cost.currency": currency, "cost.source": attributes.get(names.COST_SOURCE)}
    if currency != "USD":
        return found
    parts: dict[str, Any] = {part: attributes.get(names.COST_PREFIX + part) for part in _COSTS}
    found["usd.total"] = total
    if all(parts[part] is None for part in ("input", "output", "cache_read", "cache_write")):
        return found  # the provider told a sum: of its parts nothing is known
    inputs: list[float] = [parts[part] for part in ("input", "cache_read", "cache_write") if parts[part] is not None]
    found |= {
        "usd.fresh": parts["input"], "usd.cache_read": parts["cache_read"], "usd.cache_write": parts["cache_write"],
        "usd.prompt": round(sum(inputs), 9) if inputs else None, "usd.output": parts["output"], "usd.reasoning": parts["reasoning"],
        "usd.visible": None if parts["output"] is None else round(parts["output"] - (parts["reasoning"] or 0.0), 9),
    }  # fmt: skip
    return found  # nine places: amounts are whole nano-units, and floats only here


def spoken(attributes: Mapping[str, Any], dialects: Sequence[str]) -> dict[str, Any] | None:
    """The attributes of the span of a call in these dialects; None where they are as they should be.

    Args:
        attributes: of the span. dialects: names of rows, whose order does not matter.
    """
    if names.COST_BASIS not in attributes:  # no call of ours: a block, a device, somebody else's span
        return None
    rows = [DIALECTS[name] for name in dialects]
    changing = any(row.drops or row.strict for row in rows)
    if not changing and all(key in attributes for row in rows for key in row.adds):
        return None
    known = figures(attributes)
    added = {
        key: value
        for row in rows
        for key, source in row.adds.items()
        if key not in attributes and (value := _value(source, known)) is not None
    }
    kept = attributes
    if changing:
        drops = {key for row in rows for key in row.drops}
        strict = any(row.strict for row in rows)
        kept = {
            key: value for key, value in attributes.items() if key not in drops and (not strict or _is_standard(key))
        }
    return None if not added and len(kept) == len(attributes) else {**kept, **added}


def _value(source: Any, known: _Figures) -> Any:
    if isinstance(source, Text):
        return source.text
    if isinstance(source, Json):
        found = _object(source.keys, known)
        return json.dumps(found, separators=(",", ":")) if found else None
    return known.get(source)


def _object(keys: Mapping[str, Any], known: _Figures) -> dict[str, Any]:
    found = {
        key: _object(source, known) if isinstance(source, Mapping) else known.get(source)
        for key, source in keys.items()
    }
    return {key: value for key, value in found.items() if value not in (None, {})}


# --- what the conventions have -----------------------------------------------------------------------------------------

_ROOT_WORDS = """
app artifact aws az azure browser cassandra cicd client cloud cloudevents cloudfoundry code container cpu cpython db deployment destination
device disk dns elasticsearch enduser error event exception faas feature_flag file gcp geo graphql heroku host http hw jsonrpc k8s linux log
mainframe mcp message messaging net network nfs oci onc_rpc openai openshift opentracing oracle oracle_cloud os otel peer pool pprof process
profile rpc security_rule server service session source state system telemetry test thread tls url user user_agent vcs webengine zos aifinops
"""
_ROOTS = frozenset(_ROOT_WORDS.split())
"""First words of the names of semantic-conventions 1.44 (https://github.com/open-telemetry/semantic-conventions), and our own."""

_GENAI_WORDS = """
agent.description agent.id agent.name agent.version conversation.compacted conversation.id data_source.id embeddings.dimension.count
evaluation.explanation evaluation.name evaluation.score.label evaluation.score.value input.messages operation.name output.messages
output.type prompt.name prompt.version provider.name request.choice.count request.encoding_formats request.frequency_penalty
request.max_tokens request.model request.presence_penalty request.previous_response.id request.reasoning.level request.seed
request.stop_sequences request.stream request.temperature request.top_k request.top_p response.finish_reasons response.id response.model
response.time_to_first_chunk retrieval.documents retrieval.query.text retrieval.top_k system_instructions token.modality token.type
tool.call.arguments tool.call.id tool.call.result tool.definitions tool.description tool.name tool.type
usage.cache_creation.input_tokens usage.cache_read.input_tokens usage.cache_write.input_tokens usage.input_tokens usage.output_tokens
usage.reasoning.output_tokens workflow.name
"""
_GENAI = frozenset(_GENAI_WORDS.split()) | {
    f"usage.{modality}.{kind}"
    for modality in names.MODALITIES_LATEST
    for kind in ("input_tokens", "output_tokens", "cache_read.input_tokens")
}
"""What comes after `gen_ai.` in semantic-conventions 1.41.1 and semantic-conventions-genai 1.42.0-dev, without what is deprecated in both."""


def _is_standard(key: str) -> bool:
    root, _, rest = key.partition(".")
    return rest in _GENAI if root == "gen_ai" else root in _ROOTS
