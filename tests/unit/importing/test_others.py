"""Spans, spend logs and observations: what others have recorded of single calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aifinops.ledger.memory import MemoryLedger
from aifinops.ledger.otlp import export_request
from aifinops.money import from_nanos
from aifinops.testing.ledger import example_charge, random_charges

Bring = Callable[..., Any]

_CALL = {
    "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5-mini",
    "gen_ai.response.model": "gpt-5-mini-2025-08-07", "gen_ai.response.id": "chatcmpl-1", "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 200, "gen_ai.usage.cache_read.input_tokens": 400, "aifinops.team": "search", "aifinops.tag.tier": "gold",
}  # fmt: skip
_AMOUNT = Decimal("0.00015") + Decimal("0.00001") + Decimal("0.0004")


def _spans(*tree: dict[str, Any]) -> list[Any]:
    """Finished spans of the real SDK, each below the one before."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "desk", "deployment.environment.name": "prod"}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer, context, made = provider.get_tracer("app"), None, []
    for attributes in tree:
        span = tracer.start_span("span", context, attributes=attributes, start_time=1793523600 * 10**9)
        context = trace.set_span_in_context(span, context)
        made.append(span)
    for span in reversed(made):
        span.end(1793523602 * 10**9)
    return list(kept.get_finished_spans())


def _otlp(spans: list[Any]) -> dict[str, Any]:
    """As an exporter writes OTLP/JSON: ids in hex."""
    from google.protobuf.json_format import MessageToDict

    found = MessageToDict(encode_spans(spans))
    import base64

    for resource in found["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if span.get(name):
                        span[name] = base64.b64decode(span[name]).hex()
    return found


@pytest.mark.parametrize("as_otlp", [True, False])
def test_a_span_is_a_call(bring: Bring, as_otlp: bool) -> None:
    """As OTLP/JSON and as the SDK prints it: counts, price, ids, tags, and how long it took."""
    spans = _spans(_CALL)
    outcome, (charge,) = bring([_otlp(spans)] if as_otlp else spans[0].to_json())
    assert outcome.formats.popitem()[1] == "spans"
    assert charge.quantities == {"input_tokens": 600, "cache_read_tokens": 400, "output_tokens": 200}
    assert from_nanos(charge.amount) == _AMOUNT
    assert (charge.response_id, charge.duration) == ("chatcmpl-1", 2 * 10**9)
    assert charge.trace_id == f"{spans[0].context.trace_id:032x}"
    assert charge.tags == {
        "team": "search",
        "tier": "gold",
        "service": "desk",
        "environment": "prod",
        "import": "spans",
    }


def test_both_forms_of_one_span_are_one_entry(bring: Bring) -> None:
    """So is a call that was metered here: the id of its answer tells."""
    spans = _spans(_CALL)
    bring([_otlp(spans)])
    again, charges = bring(spans[0].to_json())
    assert (again.known, len(charges)) == (1, 1)


def test_a_metered_call_is_not_imported_from_its_span(bring: Bring, ledger: MemoryLedger) -> None:
    """The ledger has the answer of that id already."""
    ledger.append(example_charge(1, response_id="chatcmpl-1", at=1793523600 * 10**9 - 10**9))
    outcome, charges = bring([_otlp(_spans(_CALL))])
    assert (outcome.written, outcome.known, len(charges)) == (0, 1, 1)


def test_spans_above_a_call_repeat_it(bring: Bring) -> None:
    """Of a framework's call, an agent and the client's call below them one is charged."""
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a"}
    framework = {**_CALL, "gen_ai.response.id": "run-1"}
    outcome, (charge,) = bring([_otlp(_spans(framework, agent, _CALL))])
    assert charge.response_id == "chatcmpl-1"
    assert outcome.left == {"spans that repeat what a call below them says": 1, "spans that are no call of a model": 1}


def test_a_call_without_tokens_or_model_is_told(bring: Bring) -> None:
    """What is missing is named, with the span; one that failed is left out."""
    lacking = {key: value for key, value in _CALL.items() if "usage" not in key}
    nameless = {key: value for key, value in _CALL.items() if "model" not in key}
    failed = {**lacking, "error.type": "RateLimitError"}
    outcome, charges = bring([_otlp(_spans(one)) for one in (lacking, nameless, failed)])
    assert [(place, why) for _, place, why in outcome.malformed] == [
        ("line 1, span 1", "is a call of a model, but names no tokens"),
        ("line 2, span 1", "is a call of a model, but names no model"),
    ]
    assert outcome.left == {"calls that failed without usage": 1}
    assert not charges


def test_a_broken_line_of_spans_costs_only_itself(bring: Bring) -> None:
    """The lines before and after it are read."""
    good, other = _spans(_CALL)[0], _spans({**_CALL, "gen_ai.response.id": "chatcmpl-2"})[0]
    text = "\n".join(
        (json.dumps(json.loads(good.to_json())), '{"attributes": {', "7", json.dumps(json.loads(other.to_json())))
    )
    outcome, charges = bring(text)
    assert [place for _, place, _ in outcome.malformed] == ["line 2", "line 3"]
    assert len(charges) == 2


_LOG = {
    "request_id": "chatcmpl-9", "call_type": "acompletion", "api_key": "88dc28", "spend": 0.00056, "total_tokens": 1200,
    "prompt_tokens": 1000, "completion_tokens": 200, "startTime": "2026-11-01T10:00:00.000000+00:00", "endTime": "2026-11-01T10:00:02+00:00",
    "model": "openai/gpt-5-mini", "custom_llm_provider": "openai", "user": "u1", "team_id": "t1", "end_user": "acme", "cache_hit": "False",
    "request_tags": '["feature:rerank", "blue"]', "status": "success",
    "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 400}}, "user_api_key_team_alias": "search"},
}  # fmt: skip


def test_a_spend_log_of_litellm_is_priced_by_us_and_keeps_their_amount(bring: Bring) -> None:
    """The cached part counts; team, customer and tags come along."""
    outcome, (charge,) = bring([_LOG, _LOG])
    assert outcome.formats.popitem()[1] == "litellm"
    assert from_nanos(charge.amount) == _AMOUNT
    assert charge.raw == {"import.cost": "0.00056"}
    assert charge.tags == {"team": "search", "user": "u1", "customer": "acme", "feature": "rerank", "import": "litellm"}


def test_litellm_tells_parts_beside_the_usage_object_too(bring: Bring) -> None:
    """As its 1.110 writes them: metadata is text, the parts are under `additional_usage_values`, and a cached count stands there twice."""
    more = {"prompt_tokens_details": {"cached_tokens": 400, "audio_tokens": None}, "completion_tokens_details": {"reasoning_tokens": 50},
            "cache_read_input_tokens": 400}  # fmt: skip
    _, (charge,) = bring([{**_LOG, "metadata": json.dumps({"additional_usage_values": more})}])
    assert charge.quantities == {
        "input_tokens": 600,
        "cache_read_tokens": 400,
        "output_tokens": 150,
        "reasoning_tokens": 50,
    }


def test_their_amount_counts_where_we_have_no_price_or_are_told_so(bring: Bring) -> None:
    """It is an estimate then, of which the upper bound is open."""
    unknown = {**_LOG, "request_id": "r2", "model": "our-own", "custom_llm_provider": "hosted_vllm"}
    _, charges = bring([unknown])
    assert [(one.amount, one.basis, one.upper) for one in charges] == [(560_000, "estimated", None)]
    _, charges = bring([_LOG], theirs=True)
    assert sorted(one.amount for one in charges) == [560_000, 560_000]


def test_what_litellm_answered_from_its_cache_was_free(bring: Bring) -> None:
    """And a failure without tokens is left out, since nobody can say that it cost nothing."""
    outcome, (charge,) = bring([{**_LOG, "cache_hit": "True", "spend": 0}, {**_LOG, "status": "failure", "prompt_tokens": 0,
                               "completion_tokens": 0, "request_id": "r3"}])  # fmt: skip
    assert (charge.amount, charge.basis) == (0, "free")
    assert outcome.left == {"calls that failed without usage": 1}


def test_spend_logs_come_as_a_table_too(bring: Bring) -> None:
    """As a dump of the table is: JSON in its fields."""
    import csv
    import io

    out = io.StringIO()
    rows = csv.DictWriter(out, _LOG)
    rows.writeheader()
    rows.writerow({**_LOG, "metadata": json.dumps(_LOG["metadata"])})
    outcome, (charge,) = bring(out.getvalue())
    assert outcome.formats.popitem()[1] == "litellm"
    assert from_nanos(charge.amount) == _AMOUNT


_SEEN = {
    "id": "obs-1", "traceId": "trace-1", "type": "GENERATION", "startTime": "2026-11-01T10:00:00.000Z", "endTime": "2026-11-01T10:00:02.000Z",
    "model": "gpt-5-mini", "usageDetails": {"input": 600, "input_cached_tokens": 400, "output": 200, "total": 1200},
    "costDetails": {"input": 0.1, "total": 0.2}, "metadata": {"team": "search"}, "userId": "u1", "sessionId": "s1", "environment": "default",
}  # fmt: skip


def test_an_observation_of_langfuse_is_a_call(bring: Bring) -> None:
    """With the parts beside the input, and with them in it: the total tells."""
    inside = {
        **_SEEN,
        "id": "obs-2",
        "usageDetails": {"input": 1000, "input_cached_tokens": 400, "output": 200, "total": 1200},
    }
    outcome, charges = bring({"data": [_SEEN, inside, {**_SEEN, "id": "x", "type": "SPAN"}], "meta": {"page": 1}})
    assert outcome.formats.popitem()[1] == "langfuse"
    assert [from_nanos(one.amount) for one in charges] == [_AMOUNT] * 2
    assert charges[0].tags == {"team": "search", "user": "u1", "conversation": "s1", "import": "langfuse"}
    assert outcome.left == {"observations that are no generation": 1}


def test_the_export_to_blob_storage_has_other_names(bring: Bring) -> None:
    """Snake case, and moments without a zone in UTC."""
    row = {"id": "o", "trace_id": "t", "type": "GENERATION", "start_time": "2026-11-01 10:00:00.000000", "end_time": "2026-11-01 10:00:02.500000",
           "provided_model_name": "gpt-5-mini", "usage_details": {"input": 600, "input_cached_tokens": 400, "output": 200, "total": 1200},
           "total_cost": "0.2", "user_id": "u1"}  # fmt: skip
    _, (charge,) = bring([row])
    assert (charge.at, charge.duration) == (1793527200 * 10**9, 2_500_000_000)
    assert from_nanos(charge.amount) == _AMOUNT


def test_records_of_our_own_come_back_whole(bring: Bring) -> None:
    """What was sent as log records and kept by a collector is the same entry again, once, beside records of others and a broken one."""
    from google.protobuf.json_format import MessageToDict

    sent = random_charges(7, 40)
    document = MessageToDict(export_request(sent))
    records = document["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    broken = json.loads(json.dumps(records[0]))
    broken["attributes"] = [one for one in broken["attributes"] if one["key"] != "aifinops.record.duration"]
    records += [{"timeUnixNano": "1", "body": {"stringValue": "somebody else's"}}, broken]
    outcome, charges = bring([document])
    again, _ = bring([document])
    assert outcome.formats.popitem()[1] == "records"
    assert sorted(charges, key=lambda one: one.id) == sorted(sent, key=lambda one: one.id)
    assert [place for _, place, _ in outcome.malformed] == ["item 1, record 42"]
    assert (outcome.left, again.written) == ({"log records that are no costs": 1}, 0)
