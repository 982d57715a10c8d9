"""OpenAI Agents SDK: agent, tool and conversation are on the charges of the calls that it makes; it makes no charge of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("agents.tracing")

import agents
import openai
from agents import tracing

import aifinops as af
from aifinops import runtime, scope
from aifinops.charges import Charge
from aifinops.integrations.frameworks import agents_sdk as ours
from aifinops.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore")  # of the framework: they are not ours to keep free of warnings


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    before = list(tracing.get_trace_provider()._multi_processor._processors)
    agents.set_trace_processors([])  # the SDK's own would send traces away
    af.instrument("openai", "agents")
    yield
    af.uninstrument()
    assert tracing.get_trace_provider()._multi_processor._processors == ()
    agents.set_trace_processors(before)


@pytest.fixture
async def client(server: FakeProvider) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def agent_of(client: Any, name: str = "researcher", **more: Any) -> Any:
    model = agents.OpenAIChatCompletionsModel(model="gpt-4o-mini", openai_client=client)
    return agents.Agent(name=name, instructions="be brief", model=model, **more)


def tool_of(client: Any) -> Any:
    @agents.function_tool
    async def look_up(query: str) -> str:
        """Look something up."""
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": query}])
        return "found"

    return look_up


GROUP = agents.RunConfig(group_id="conversation-7")


async def test_agent_tool_and_conversation_are_on_the_charges(client: Any, server: FakeProvider) -> None:
    """Each physical call is one charge, with the agent's name; those inside a tool have the tool's as well."""
    await agents.Runner.run(agent_of(client, tools=[tool_of(client)]), "hello", run_config=GROUP)
    charges = rows()
    assert [(charge.model, charge.tags.get("tool")) for charge in charges] == [
        ("gpt-4o-mini", None),
        ("gpt-4o", "look_up"),
        ("gpt-4o-mini", None),
    ]
    assert {(charge.tags["agent"], charge.tags["conversation"]) for charge in charges} == {
        ("researcher", "conversation-7")
    }
    assert len(charges) == len(server.bill)
    assert [row.key["agent"] for row in af.report(by=["agent"])] == ["researcher"]
    assert scope.current() is scope.NOTHING


async def test_a_streamed_run_does_so_too(client: Any) -> None:
    """The run is a task of its own: its calls are the agent's, and what is called between its events is not."""
    result = agents.Runner.run_streamed(agent_of(client), "hello", run_config=GROUP)
    async for _ in result.stream_events():
        assert scope.current().tags == {}
    assert [charge.tags.get("agent") for charge in rows()] == ["researcher"]


async def test_agents_side_by_side_keep_their_own(client: Any) -> None:
    """Ten agents in ten tasks."""
    names = [f"agent {number}" for number in range(10)]
    await asyncio.gather(*(agents.Runner.run(agent_of(client, name), "hello") for name in names))
    assert sorted(charge.tags["agent"] for charge in rows()) == names


async def test_a_handoff_changes_the_agent(client: Any) -> None:
    """The call after a handoff is the other agent's."""
    await agents.Runner.run(agent_of(client, "first", handoffs=[agent_of(client, "second")]), "hello")
    assert [charge.tags["agent"] for charge in rows()] == ["first", "second"]


async def test_an_error_ends_the_tags(client: Any, server: FakeProvider) -> None:
    """The user's exception goes on, and nothing stays in force."""
    server.fail_next(400)
    with pytest.raises(openai.BadRequestError):
        await agents.Runner.run(agent_of(client), "hello")
    assert scope.current() is scope.NOTHING


async def test_the_processor_can_be_added_by_hand(client: Any) -> None:
    """Without `instrument("agents")`."""
    af.uninstrument("agents")
    agents.add_trace_processor(ours.processor())
    await agents.Runner.run(agent_of(client), "hello")
    agents.set_trace_processors([])
    await agents.Runner.run(agent_of(client, "untagged"), "hello")
    assert [charge.tags.get("agent") for charge in rows()] == ["researcher", None]


def test_a_module_of_that_name_that_is_not_the_sdk_is_left_alone() -> None:
    """Many programs have a package `agents` of their own."""
    assert ours.hook(object()) == []
