"""Guardrails, agents and knowledge bases of Amazon Bedrock through the real boto3 client: what they tell is a row, and what they do not is said."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

boto3 = pytest.importorskip("boto3", minversion="1.40.40")

from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402
from botocore.loaders import Loader  # noqa: E402
from botocore.model import ServiceModel  # noqa: E402
from botocore.validate import ParamValidator  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.money import from_nanos  # noqa: E402
from aifinops.testing.wire import CANARY, Wire  # noqa: E402

CLAUDE, NOVA = "anthropic.claude-sonnet-4-5-20250929-v1:0", "amazon.nova-lite-v1:0"
ARN = f"arn:aws:bedrock:us-east-1::foundation-model/{CLAUDE}"
UNITS = {
    "topicPolicyUnits": 1, "contentPolicyUnits": 2, "wordPolicyUnits": 0, "sensitiveInformationPolicyUnits": 1,
    "sensitiveInformationPolicyFreeUnits": 3, "contextualGroundingPolicyUnits": 0,
}  # fmt: skip
GUARDED = {"action": "NONE", "outputs": [{"text": CANARY}], "assessments": [], "usage": UNITS}
FOUND = {"retrievalResults": [{"content": {"text": CANARY}, "score": 0.5}]}
SAID = {"output": {"text": CANARY}, "citations": [], "sessionId": "s"}


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("bedrock")
    yield
    af.uninstrument()


def made(wire: Wire, service: str) -> Any:
    session = boto3.session.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
    return session.client(service, endpoint_url=wire.url, config=Config(retries={"total_max_attempts": 1}))


@pytest.fixture
def client(wire: Wire) -> Iterator[Any]:
    client = made(wire, "bedrock-agent-runtime")
    yield client
    client.close()


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def only() -> Charge:
    (charge,) = rows()
    assert charge.provider == "aws.bedrock"
    return charge


def event(name: str, said: dict[str, Any]) -> bytes:
    """One message of the encoding `application/vnd.amazon.eventstream`."""
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    head = b"".join(
        struct.pack(f"!B{len(key)}sBH{len(value)}s", len(key), key.encode(), 7, len(value), value.encode())
        for key, value in headers.items()
    )
    payload = json.dumps(said).encode()
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    prelude += struct.pack("!I", zlib.crc32(prelude))
    body = prelude + head + payload
    return body + struct.pack("!I", zlib.crc32(body))


# --- guardrails ---------------------------------------------------------------------------------------------------------------


def guard(wire: Wire) -> Any:
    client = made(wire, "bedrock-runtime")
    try:
        content = [{"text": {"text": CANARY}}]
        return client.apply_guardrail(guardrailIdentifier="g1", guardrailVersion="1", source="INPUT", content=content)
    finally:
        client.close()


def test_a_guardrail_tells_its_units_policy_by_policy(wire: Wire) -> None:
    """Each policy is a meter of its own; those that are free are none. Without a price the cost is unknown."""
    wire.answers["POST /guardrail/g1/version/1/apply"] = GUARDED
    assert guard(wire)["usage"]["contentPolicyUnits"] == 2
    charge = only()
    assert dict(charge.quantities) == {
        "guardrail_content_units": 2, "guardrail_topic_units": 1, "guardrail_pii_units": 1,
    }  # fmt: skip
    assert (charge.operation, charge.model, charge.basis, charge.amount) == ("guardrail", "guardrails", "unknown", None)


def test_a_guardrail_with_a_price_is_priced(wire: Wire) -> None:
    """Under one name for all of them."""
    rates = {"guardrail_content_units": "0.15", "guardrail_topic_units": "0.15", "guardrail_pii_units": "0.10"}
    af.register_price("guardrails", provider="aws.bedrock", rates=rates)
    wire.answers["POST /guardrail/g1/version/1/apply"] = GUARDED
    guard(wire)
    assert from_nanos(only().amount or 0) == Decimal("0.00055")


# --- agents -------------------------------------------------------------------------------------------------------------------


def step(number: int, part: str, **told: Any) -> dict[str, Any]:
    """A step of a trace, true to the service's own types."""
    trace = {"agentId": "a", "sessionId": "ss", "trace": {part: told}}
    model = ServiceModel(Loader().load_service_model("bedrock-agent-runtime", "service-2"))
    assert not ParamValidator().validate(trace, model.shape_for("TracePart")).has_errors()
    return trace


def traces() -> list[bytes]:
    """Two calls of one model and one of another, each begun and ended in a step of its own."""
    calls = [("orchestrationTrace", CLAUDE, 1000, 50), ("orchestrationTrace", CLAUDE, 1500, 60), ("postProcessingTrace", NOVA, 300, 20)]  # fmt: skip
    found = []
    for number, (part, model, read, written) in enumerate(calls):
        asked = {"traceId": f"trace-{number}", "text": CANARY, "foundationModel": model}
        told = {
            "traceId": f"trace-{number}",
            "metadata": {"usage": {"inputTokens": read, "outputTokens": written}, "totalTimeMs": 7},
        }
        found += [step(number, part, modelInvocationInput=asked), step(number, part, modelInvocationOutput=told)]
    rationale = step(9, "orchestrationTrace", rationale={"traceId": "trace-1", "text": CANARY})
    return [event("trace", one) for one in (*found[:2], rationale, *found[2:])]


CHUNK = event("chunk", {"bytes": base64.b64encode(CANARY.encode()).decode()})
AGENT = "POST /agents/a/agentAliases/b/sessions/ss/text"


def ask(client: Any, **more: Any) -> Any:
    return client.invoke_agent(agentId="a", agentAliasId="b", sessionId="ss", inputText=CANARY, **more)["completion"]


def stream(*messages: bytes) -> tuple[str, bytes]:
    return "application/vnd.amazon.eventstream", b"".join(messages)


def test_an_agent_with_a_trace_is_charged_for_every_call_of_its_models(client: Any, wire: Wire) -> None:
    """One row, each part at the price of its own model; the stream is the user's."""
    wire.answers[AGENT] = stream(*traces(), CHUNK)
    assert len(list(ask(client, enableTrace=True))) == 8
    charge = only()
    assert dict(charge.quantities) == {"input_tokens": 2800, "output_tokens": 130}
    assert (charge.operation, charge.basis, charge.status, charge.stream) == ("invoke_agent", "priced", "ok", True)
    expected = [
        af.price(model, provider="aws.bedrock", input_tokens=read, output_tokens=written).amount
        for model, read, written in ((CLAUDE, 2500, 110), (NOVA, 300, 20))
    ]
    assert from_nanos(charge.amount or 0) == sum(filter(None, expected))


def test_an_agent_without_a_trace_is_of_unknown_cost(client: Any, wire: Wire) -> None:
    """Nobody knows how often it has asked which model: never zero, and never a guess."""
    wire.answers[AGENT] = stream(CHUNK)
    assert len(list(ask(client))) == 1
    charge = only()
    assert (charge.basis, charge.amount, dict(charge.quantities)) == ("unknown", None, {})


def test_an_agent_that_is_left_is_at_least_what_it_had_told(client: Any, wire: Wire) -> None:
    """It may have gone on."""
    wire.answers[AGENT] = stream(*traces(), CHUNK)
    answer = ask(client, enableTrace=True)
    events = iter(answer)
    for _ in range(2):
        next(events)
    answer.close()
    charge = only()
    assert (charge.status, charge.basis, charge.quantities["input_tokens"]) == ("abandoned", "estimated", 1000)


def test_an_inline_agent_names_its_model(client: Any, wire: Wire) -> None:
    """Of a trace that does not name one it is the model."""
    told = {"traceId": "trace-0", "metadata": {"usage": {"inputTokens": 10, "outputTokens": 5}}}
    wire.answers["POST /agents/ss"] = stream(
        event("trace", step(0, "orchestrationTrace", modelInvocationOutput=told)), CHUNK
    )
    asked = {"foundationModel": CLAUDE, "instruction": "x" * 40, "enableTrace": True}
    list(client.invoke_inline_agent(sessionId="ss", inputText=CANARY, **asked)["completion"])
    charge = only()
    assert (charge.model, charge.basis) == (CLAUDE, "priced")
    assert dict(charge.quantities) == {"input_tokens": 10, "output_tokens": 5}


def test_an_agent_that_refuses_is_no_row(client: Any, wire: Wire) -> None:
    """An error status is not billed."""
    with pytest.raises(ClientError):
        ask(client)
    assert rows() == []


# --- knowledge bases ----------------------------------------------------------------------------------------------------------

CONFIGURED = {
    "type": "KNOWLEDGE_BASE",
    "knowledgeBaseConfiguration": {"knowledgeBaseId": "K123456789", "modelArn": ARN},
}


def test_an_answer_from_a_knowledge_base_is_an_estimate(client: Any, wire: Wire) -> None:
    """What was found and given to the model is not told: between what was said and all that the model can read."""
    wire.answers["POST /retrieveAndGenerate"] = SAID
    client.retrieve_and_generate(input={"text": CANARY}, retrieveAndGenerateConfiguration=CONFIGURED)
    charge = only()
    assert (charge.operation, charge.model, charge.basis) == ("chat", CLAUDE, "estimated")
    true = af.price(CLAUDE, provider="aws.bedrock", input_tokens=50_000, output_tokens=20).amount
    assert true is not None
    assert from_nanos(charge.lower or 0) <= true <= from_nanos(charge.upper or 0)


def test_a_stream_from_a_knowledge_base_is_an_estimate(client: Any, wire: Wire) -> None:
    """The same, piece by piece."""
    wire.answers["POST /retrieveAndGenerateStream"] = stream(*(event("output", {"text": CANARY}) for _ in range(3)))
    asked = client.retrieve_and_generate_stream(input={"text": CANARY}, retrieveAndGenerateConfiguration=CONFIGURED)
    assert len(list(asked["stream"])) == 3
    charge = only()
    assert (charge.model, charge.basis, charge.stream, charge.status) == (CLAUDE, "estimated", True, "ok")
    assert charge.quantities["output_tokens"] >= 3


def test_a_search_in_a_knowledge_base_is_one_request_of_unknown_cost(client: Any, wire: Wire) -> None:
    """The model of its embeddings is said in the knowledge base, and nowhere else."""
    wire.answers["POST /knowledgebases/K123456789/retrieve"] = FOUND
    client.retrieve(knowledgeBaseId="K123456789", retrievalQuery={"text": CANARY})
    charge = only()
    assert (charge.operation, charge.model, charge.basis) == ("retrieval", "knowledge-base", "unknown")
    assert dict(charge.quantities) == {"requests": 1}


def rank(client: Any, documents: list[str]) -> None:
    inline = [{"type": "TEXT", "textDocument": {"text": text}} for text in documents]
    client.rerank(
        queries=[{"type": "TEXT", "textQuery": {"text": CANARY}}],
        sources=[{"type": "INLINE", "inlineDocumentSource": one} for one in inline],
        rerankingConfiguration={
            "type": "BEDROCK_RERANKING_MODEL",
            "bedrockRerankingConfiguration": {
                "modelConfiguration": {"modelArn": "arn:aws:bedrock:us-east-1::foundation-model/amazon.rerank-v1:0"}
            },
        },
    )


RANKED = {"results": [{"index": 0, "relevanceScore": 0.5}]}


@pytest.mark.parametrize(("documents", "units"), [(1, 1), (100, 1), (101, 2)])
def test_documents_are_ranked_by_search_units(documents: int, units: int, client: Any, wire: Wire) -> None:
    """One for each hundred that are begun; the request says it, since the answer does not."""
    wire.answers["POST /rerank"] = RANKED
    rank(client, [CANARY] * documents)
    charge = only()
    assert (charge.operation, charge.model, charge.basis) == ("rerank", "amazon.rerank-v1:0", "unknown")
    assert dict(charge.quantities) == {"search_units": units}


def test_a_budget_holds_the_most_that_long_documents_can_be(client: Any, wire: Wire) -> None:
    """A long one is cut, and its pieces count: the row is an estimate whose bound holds them."""
    af.register_price("amazon.rerank-v1:0", provider="aws.bedrock", rates={"search_units": "1"})
    wire.answers["POST /rerank"] = RANKED
    with af.budget("$1") as block:
        rank(client, ["word " * 10] * 3)
        assert (only().basis, block.spent) == ("priced", Decimal("0.001"))
        rank(client, ["word " * 1000] * 90)
        long = rows()[-1]
        assert (long.basis, dict(long.quantities)) == ("estimated", {"search_units": 1})
        assert from_nanos(long.upper or 0) >= Decimal("0.01")
