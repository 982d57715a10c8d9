"""Charge -> span attributes. Unknown cost means no cost attribute at all: zero would mean free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aifinops.charges import Charge
from aifinops.meters import METERS
from aifinops.money import NANO
from aifinops.tags import Tags
from aifinops.telemetry import names
from aifinops.usage import input_total, output_total

__all__ = ["add_tags", "enrichment", "inference", "request"]

_SPLIT = {
    "cache_write_tokens": "aifinops.usage.cache_write_5m.input_tokens",
    "cache_write_1h_tokens": "aifinops.usage.cache_write_1h.input_tokens",
    "cache_write_30m_tokens": "aifinops.usage.cache_write_30m.input_tokens",
    "cache_write_12h_tokens": "aifinops.usage.cache_write_12h.input_tokens",
}


_AZURE = {names.AZURE_NAMESPACE: "Microsoft.CognitiveServices"}


def request(provider: str, operation: str, model: str) -> dict[str, Any]:
    """What is known before the call; samplers see this."""
    attributes = {names.OPERATION: operation, names.PROVIDER: provider}
    if model:
        attributes[names.REQUEST_MODEL] = model
    return attributes


def inference(
    charge: Charge, facts: Mapping[str, Any], *, compat: bool, latest: bool = False, request_tier: str = ""
) -> dict[str, Any]:
    """All attributes of an inference span.

    Args:
        charge: the ledger entry. facts: further attributes by name (server, finish reasons).
        compat: also write `gen_ai.usage.cost`, for backends that read only that (USD).
        latest: the names of semantic-conventions-genai, and tokens by modality. request_tier: that the request asked for.
    """
    provider = charge.provider
    attributes = request(provider, charge.operation, charge.model)
    attributes[names.RECORD_ID] = charge.id
    if charge.response_model:
        attributes[names.RESPONSE_MODEL] = charge.response_model
    if charge.response_id:
        attributes[names.RESPONSE_ID] = charge.response_id
    if charge.stream:
        attributes[names.REQUEST_STREAM] = True
    if charge.tier:
        attributes[names.PRICE_TIER] = charge.tier
    if provider in _SAYS_MORE:
        _add_vendor(attributes, provider, charge.tier, request_tier)
    attributes.update(facts)
    # Tokens that we estimated go to the ledger only: the conventions want reported counts on gen_ai.usage.*.
    if charge.basis != "estimated" or charge.status == "ok":
        _add_tokens(attributes, charge, _TOKEN_KEYS_LATEST if latest else _TOKEN_KEYS)
    _add_cost(attributes, charge, compat)
    if charge.tags:
        add_tags(attributes, charge.tags)
    return attributes


def enrichment(charge: Charge, *, compat: bool) -> dict[str, Any]:
    """What we know of a call that the span of somebody else does not say: money, where it comes from, whose it is."""
    attributes: dict[str, Any] = {names.RECORD_ID: charge.id}
    if charge.tier:
        attributes[names.PRICE_TIER] = charge.tier
    for name, quantity in charge.quantities.items():
        for key in _TOKEN_KEYS.get(name, ()):
            if key.startswith(names.USAGE_PREFIX):
                attributes[key] = attributes.get(key, 0) + int(quantity)
    _add_cost(attributes, charge, compat)
    if charge.tags:
        add_tags(attributes, charge.tags)
    return attributes


_SAYS_MORE = {"openai": {}, "azure.ai.openai": _AZURE, "azure.ai.inference": _AZURE}
"""Providers with attributes of their own in the conventions, and those that are the same of every call."""


def _add_vendor(attributes: dict[str, Any], provider: str, tier: str, request_tier: str) -> None:
    attributes.update(_SAYS_MORE[provider])
    if provider == "openai":
        if tier:
            attributes[names.OPENAI_SERVICE_TIER] = tier
        if request_tier and request_tier != "auto":
            attributes[names.OPENAI_REQUEST_TIER] = request_tier


def _add_tokens(attributes: dict[str, Any], charge: Charge, token_keys: Mapping[str, tuple[str, ...]]) -> None:
    quantities = charge.quantities
    if not quantities:
        return
    inputs, outputs = input_total(quantities), output_total(quantities)
    if charge.service == "llm" or inputs or outputs:  # a search has no tokens, not zero of them
        attributes[names.INPUT_TOKENS] = inputs
        if charge.operation != "embeddings":
            attributes[names.OUTPUT_TOKENS] = outputs
    for name, quantity in quantities.items():
        for key in token_keys.get(name, ()):
            attributes[key] = attributes.get(key, 0) + int(quantity)


def _token_keys(name: str) -> tuple[str, ...]:
    """The attributes that a meter adds to, beyond the inclusive totals."""
    if name.startswith("cache_read"):
        return (names.CACHE_READ_TOKENS,)
    if name in _SPLIT:
        return (names.CACHE_WRITE_TOKENS, _SPLIT[name])
    if name == "reasoning_tokens":
        return (names.REASONING_TOKENS,)
    if name.endswith("_requests"):
        return (f"aifinops.usage.tool_calls.{name.removesuffix('_requests')}",)
    return ()


def _token_keys_latest(name: str) -> tuple[str, ...]:
    """The same with the newest names: parts by modality as well, each an inclusive total of its kind."""
    meter = METERS[name]
    keys = tuple(
        names.CACHE_WRITE_TOKENS_LATEST if key == names.CACHE_WRITE_TOKENS else key for key in _token_keys(name)
    )
    if meter.family == "tokens" and meter.modality in names.MODALITIES_LATEST:
        whole = f"gen_ai.usage.{meter.modality}"
        keys += (f"{whole}.{meter.direction}_tokens",)
        if meter.cache == "read":
            keys += (f"{whole}.cache_read.input_tokens",)
    return keys


_TOKEN_KEYS = {name: _token_keys(name) for name in METERS}
_TOKEN_KEYS_LATEST = {name: _token_keys_latest(name) for name in METERS}


def _add_cost(attributes: dict[str, Any], charge: Charge, compat: bool) -> None:
    if charge.amount is None:
        attributes[names.COST_BASIS] = "unknown_price"
        return
    attributes[names.COST_BASIS] = charge.basis
    attributes[names.COST_TOTAL] = total = charge.amount / NANO
    attributes[names.COST_CURRENCY] = charge.currency
    attributes[names.COST_SOURCE] = "provider" if charge.basis == "reported" else "local"
    listed = charge.list_amount
    if listed:
        attributes[names.COST_LIST] = listed / NANO
    if charge.price_id:
        attributes[names.PRICE_ID] = charge.price_id
    if charge.price_source:
        attributes[names.PRICE_VERSION] = charge.price_source
    for meter_name, amount in charge.lines:
        key = names.COST_PREFIX + names.component(meter_name)
        attributes[key] = attributes.get(key, 0.0) + amount / NANO
        if meter_name == "reasoning_tokens":
            attributes[names.COST_REASONING] = amount / NANO
    if compat and charge.currency == "USD":
        attributes[names.COMPAT_COST] = total


def add_tags(attributes: dict[str, Any], tags: Tags) -> None:
    """Each tag under its own name where it has one, else under `aifinops.tag.<key>`."""
    for key, value in tags.items():
        attributes[names.TAGS.get(key) or names.TAG_PREFIX + key] = value
