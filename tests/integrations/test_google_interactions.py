"""Interactions and decisions through the real google-genai client: one row each, also in the background, in streams and on Vertex AI."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

genai = pytest.importorskip("google.genai")
if not hasattr(genai.Client, "interactions"):
    pytest.skip("this version has no interactions", allow_module_level=True)

from google.genai import types  # noqa: E402
from google.oauth2.credentials import Credentials  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.integrations import later  # noqa: E402
from aifinops.money import from_nanos  # noqa: E402
from aifinops.testing import FakeClock  # noqa: E402
from aifinops.testing.wire import CANARY, Wire  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*experimental:UserWarning"),
]

MODEL = "gemini-2.5-flash"
MADE, AT = "2026-11-10T12:00:00Z", 1_794_312_000
USAGE = {
    "total_tokens": 1220, "total_input_tokens": 1000, "total_cached_tokens": 300, "total_output_tokens": 100, "total_tool_use_tokens": 70,
    "total_thought_tokens": 50, "input_tokens_by_modality": [{"modality": "text", "tokens": 800}, {"modality": "image", "tokens": 200}],
}  # fmt: skip
BUCKETS = {
    "input_tokens": 570, "input_image_tokens": 200, "cache_read_tokens": 300, "output_tokens": 100, "reasoning_tokens": 50,
}  # fmt: skip
ASKED = "/v1beta/interactions"


def interaction(status: str = "completed", **more: Any) -> dict[str, Any]:
    """An interaction as the API answers it."""
    said = {"type": "model_output", "content": [{"type": "text", "text": CANARY}]}
    usage = {} if status in {"in_progress", "queued", "failed"} else {"usage": USAGE}
    return {
        "id": "v1_a", "object": "interaction", "status": status, "model": MODEL, "created": MADE, "updated": MADE, "service_tier": "standard",
        "steps": [said], **usage, **more,
    }  # fmt: skip


def stream() -> list[Any]:
    """Its events, of which the last has the usage."""
    begun = {"id": "v1_a", "status": "in_progress", "object": "interaction", "model": MODEL}
    told = [
        {"event_type": "interaction.created", "interaction": begun},
        {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": CANARY}},
        {"event_type": "step.stop", "index": 0},
        {"event_type": "interaction.completed", "interaction": interaction(steps=[])},
    ]
    return [*((event["event_type"], event) for event in told), ("done", "[DONE]")]


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.init(ledger="memory", clock=FakeClock(AT * 10**9))
    af.instrument("google")
    yield
    af.uninstrument()
    later.settle_held()


def options(wire: Wire) -> Any:
    return types.HttpOptions(base_url=wire.url, timeout=20_000, api_version="v1beta")


@pytest.fixture
def client(wire: Wire) -> Iterator[Any]:
    made = genai.Client(api_key="test", vertexai=False, http_options=options(wire))
    yield made
    made.close()


@pytest.fixture
async def aclient(client: Any) -> AsyncIterator[Any]:
    yield client.aio
    await client.aio.aclose()


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def exact(provider: str = "gcp.gemini") -> Charge:
    (charge,) = rows()
    assert dict(charge.quantities) == BUCKETS
    assert (charge.provider, charge.model, charge.response_id) == (provider, MODEL, "v1_a")
    assert (charge.basis, charge.status, charge.tier) == ("priced", "ok", "")
    assert charge.amount is not None
    assert from_nanos(charge.amount) == af.price(MODEL, provider=provider, **BUCKETS).amount
    return charge


def test_an_interaction_is_one_exact_row(client: Any, wire: Wire) -> None:
    """Cached tokens are inside the input, thoughts and prompts of tools outside; the user has the library's own object."""
    wire.answers[f"POST {ASKED}"] = interaction()
    with af.budget("$1") as block:
        made = client.interactions.create(model=MODEL, input=CANARY, generation_config={"max_output_tokens": 500})
        assert type(made).__name__ == "Interaction"
        charge = exact()
        assert (block.reserved, block.spent) == (0, from_nanos(charge.amount or 0))


def test_a_stream_of_events_is_one_exact_row(client: Any, wire: Wire) -> None:
    """Its last event has the usage; the user has all of them."""
    wire.answers[f"POST {ASKED}"] = stream()
    assert len(list(client.interactions.create(model=MODEL, input=CANARY, stream=True))) == 5
    assert exact().stream is True


def test_a_stream_that_is_left_is_an_estimate_that_holds_the_truth(client: Any, wire: Wire) -> None:
    """What it thought nobody has seen: the bound holds that too."""
    wire.answers[f"POST {ASKED}"] = stream()
    config = {"max_output_tokens": 500}
    left = client.interactions.create(model=MODEL, input="word " * 1500, stream=True, generation_config=config)
    next(iter(left))
    left.close()
    del left
    gc.collect()
    (charge,) = rows()
    true = af.price(MODEL, provider="gcp.gemini", input_tokens=1000, output_tokens=100, reasoning_tokens=50).amount
    assert true is not None
    assert charge.basis == "estimated"
    assert from_nanos(charge.lower or 0) <= true <= from_nanos(charge.upper or 0)


def test_the_background_and_its_polls_are_one_charge(client: Any, wire: Wire) -> None:
    """Begun, polled in vain, to its end and again: one row, and nothing stays held."""
    wire.answers[f"POST {ASKED}"] = interaction("in_progress")
    wire.answers[f"GET {ASKED}/v1_a"] = interaction("in_progress")
    with af.budget("$1") as block:
        client.interactions.create(
            model=MODEL, input=CANARY, background=True, generation_config={"max_output_tokens": 500}
        )
        client.interactions.get("v1_a")
        assert rows() == []
        assert block.reserved > 0
        wire.answers[f"GET {ASKED}/v1_a"] = interaction()
        for _ in range(3):
            client.interactions.get("v1_a")
        charge = exact()
        assert (block.reserved, block.spent) == (0, from_nanos(charge.amount or 0))


def test_an_agent_in_the_background_is_known_by_its_name(client: Any, wire: Wire) -> None:
    """An agent has no model and no price that is known: its tokens are kept, and its cost is unknown."""
    agent = {"agent": "deep-research-pro-preview-12-2025", "model": None}
    wire.answers[f"POST {ASKED}"] = interaction("in_progress", **agent)
    wire.answers[f"GET {ASKED}/v1_a"] = interaction(**agent)
    client.interactions.create(agent="deep-research-pro-preview-12-2025", input=CANARY, background=True)
    client.interactions.get("v1_a")
    (charge,) = rows()
    assert (charge.model, charge.basis, charge.amount) == ("deep-research-pro-preview-12-2025", "unknown", None)
    assert dict(charge.quantities) == BUCKETS


def test_what_was_charged_when_it_was_made_is_free_to_get(client: Any, wire: Wire) -> None:
    """A stored interaction may be read again, also as a stream."""
    wire.answers[f"POST {ASKED}"] = interaction()
    client.interactions.create(model=MODEL, input=CANARY)
    wire.answers[f"GET {ASKED}/v1_a"] = interaction()
    client.interactions.get("v1_a")
    wire.answers[f"GET {ASKED}/v1_a"] = stream()
    assert len(list(client.interactions.get("v1_a", stream=True))) == 5
    exact()


def test_an_interaction_made_elsewhere_is_charged_once(client: Any, wire: Wire) -> None:
    """The first poll that has the usage is its charge, at its own time."""
    wire.answers[f"GET {ASKED}/v1_a"] = interaction()
    for _ in range(2):
        client.interactions.get("v1_a")
    assert exact().at == AT * 10**9


def test_a_background_that_failed_is_an_estimate(client: Any, wire: Wire) -> None:
    """It says nothing of what it used, which is not nothing."""
    wire.answers[f"POST {ASKED}"] = interaction("queued")
    wire.answers[f"GET {ASKED}/v1_a"] = interaction("failed")
    client.interactions.create(model=MODEL, input="word " * 100, background=True)
    client.interactions.get("v1_a")
    (charge,) = rows()
    assert (charge.basis, charge.status) == ("estimated", "abandoned")
    assert charge.amount


def test_an_error_is_the_users_and_no_row(client: Any, wire: Wire) -> None:
    """What was refused is not billed, and a cancellation answers with what was charged elsewhere."""
    with pytest.raises(Exception, match="nothing here"):
        client.interactions.create(model=MODEL, input=CANARY)
    wire.answers[f"POST {ASKED}/v1_a/cancel"] = interaction("cancelled")
    client.interactions.cancel("v1_a")
    assert rows() == []


def test_a_budget_refuses_before_anything_is_sent(client: Any, wire: Wire) -> None:
    """As itself, through the library."""
    config = {"max_output_tokens": 100_000}
    with af.budget("$0.0001"), pytest.raises(af.BudgetExceeded):
        client.interactions.create(model=MODEL, input=CANARY, generation_config=config)
    assert wire.asked == []


def test_decisions_tell_their_tokens(client: Any, wire: Wire) -> None:
    """The answer does not name its model; the request does."""
    if not hasattr(client, "decisions"):
        pytest.skip("this version has no decisions")
    wire.answers["POST /v1beta/decisions"] = {"answers": {}, "usage": USAGE}
    client.decisions.create(model=MODEL, input=[{"type": "text", "text": CANARY}], questions={})
    (charge,) = rows()
    assert (charge.model, dict(charge.quantities)) == (MODEL, BUCKETS)


def test_vertex_ai_and_its_region(wire: Wire) -> None:
    """The path says where it is, which decides the price where the list says so."""
    dear = {"region": "us-central1", "rates": {"input_tokens": "7", "output_tokens": "7"}}
    af.register_price(
        "gemini-house", provider="gcp.vertex_ai", rates={"input_tokens": "1", "output_tokens": "1"}, variants=[dear]
    )
    where = {"project": "p", "location": "us-central1", "credentials": Credentials(token="t")}
    made = genai.Client(vertexai=True, http_options=types.HttpOptions(base_url=wire.url, timeout=20_000), **where)
    path = "/v1beta1/projects/p/locations/us-central1/interactions"
    wire.answers[f"POST {path}"] = interaction("in_progress")
    wire.answers[f"GET {path}/v1_a"] = interaction()
    made.interactions.create(model=MODEL, input=CANARY, background=True)
    made.interactions.get("v1_a")
    exact("gcp.vertex_ai")
    wire.answers[f"POST {path}"] = interaction(id="v1_b", model="gemini-house")
    made.interactions.create(model="gemini-house", input=CANARY)
    wire.answers[f"GET {path}/v1_c"] = interaction(id="v1_c", model="gemini-house")
    made.interactions.get("v1_c")
    made.close()
    assert sorted(row.region for row in rows()) == ["", "us-central1", "us-central1"]


def test_one_client_only(wire: Wire) -> None:
    """`instrument(client)` meters its interactions, and those of no other client."""
    af.uninstrument()
    wire.answers[f"POST {ASKED}"] = interaction()
    mine, other = (genai.Client(api_key="test", vertexai=False, http_options=options(wire)) for _ in range(2))
    af.instrument(mine)
    other.interactions.create(model=MODEL, input=CANARY)
    assert rows() == []
    mine.interactions.create(model=MODEL, input=CANARY)
    exact()
    for one in (mine, other):
        one.close()


async def test_the_same_in_the_other_colour(aclient: Any, wire: Wire) -> None:
    """Plain, streamed and polled."""
    wire.answers[f"POST {ASKED}"] = interaction("in_progress")
    await aclient.interactions.create(model=MODEL, input=CANARY, background=True)
    wire.answers[f"GET {ASKED}/v1_a"] = interaction()
    for _ in range(2):
        await aclient.interactions.get("v1_a")
    exact()
    wire.answers[f"POST {ASKED}"] = stream()
    told = await aclient.interactions.create(model=MODEL, input=CANARY, stream=True)
    assert len([event async for event in told]) == 5
    wire.answers[f"POST {ASKED}"] = interaction()
    await aclient.interactions.create(model=MODEL, input=CANARY)
    assert [dict(row.quantities) for row in rows()] == [BUCKETS] * 3
