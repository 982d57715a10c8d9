"""pydantic-ai: agent, tool and conversation are on the charges of the calls that it makes; it makes no charge of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("pydantic_ai.capabilities")

import openai
import pydantic_ai
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import aifinops as af
from aifinops import runtime, scope
from aifinops.charges import Charge
from aifinops.integrations.frameworks import pydantic_ai as ours
from aifinops.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore")  # of the framework: they are not ours to keep free of warnings


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("openai", "pydantic_ai")
    yield
    af.uninstrument()


@pytest.fixture
async def client(server: FakeProvider) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def agent_of(client: Any, name: str | None = "researcher", **more: Any) -> Any:
    model = OpenAIChatModel("gpt-4o-mini", provider=OpenAIProvider(openai_client=client))
    return pydantic_ai.Agent(model, name=name, **more)


async def test_agent_tool_and_conversation_are_on_the_charges(client: Any, server: FakeProvider) -> None:
    """Each physical call is one charge, with the agent's name; those inside a tool have the tool's as well."""
    agent = agent_of(client)

    @agent.tool_plain
    async def look_up(query: str) -> str:
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": query}])
        return "found"

    await agent.run("hello", conversation_id="conversation-7")
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
    assert scope.current() is scope.NOTHING


async def test_a_streamed_run_does_so_too(client: Any) -> None:
    """Its call is the agent's, and what is called while the answer is read is not."""
    async with agent_of(client).run_stream("hello") as answer:
        async for _ in answer.stream_text():
            assert scope.current().tags == {}
    assert [charge.tags.get("agent") for charge in rows()] == ["researcher"]


async def test_agents_side_by_side_keep_their_own(client: Any) -> None:
    """Ten agents in ten tasks."""
    names = [f"agent {number}" for number in range(10)]
    await asyncio.gather(*(agent_of(client, name).run("hello") for name in names))
    assert sorted(charge.tags["agent"] for charge in rows()) == names


async def test_a_name_is_inferred_as_without_us(client: Any) -> None:
    """pydantic-ai looks for the variable that holds the agent in its caller's frame: ours is not in the way."""
    weather_desk = agent_of(client, None)
    await weather_desk.run("hello")
    assert weather_desk.name == "weather_desk"
    assert [charge.tags.get("agent") for charge in rows()] == ["weather_desk"]


async def test_a_run_is_not_made_a_streamed_one(client: Any, server: FakeProvider) -> None:
    """What is sent is what would be sent without us."""
    await agent_of(client).run("hello")
    assert [line.stream for line in server.bill] == [False]


async def test_an_error_ends_the_tags(client: Any, server: FakeProvider) -> None:
    """The user's exception goes on, and nothing stays in force."""
    server.fail_next(400)
    with pytest.raises(pydantic_ai.exceptions.ModelHTTPError):
        await agent_of(client).run("hello")
    assert scope.current() is scope.NOTHING


async def test_capabilities_of_the_user_stay(client: Any) -> None:
    """Those given to a run are used beside ours, and ours can be given to one agent by hand."""
    af.uninstrument("pydantic_ai")
    await agent_of(client, "by hand", capabilities=[ours.capability()]).run("hello")
    await agent_of(client, "untagged").run("hello")
    af.instrument("pydantic_ai")
    seen = []

    class Watching(pydantic_ai.capabilities.AbstractCapability[Any]):
        async def before_run(self, ctx: Any) -> None:
            seen.append(ctx.agent.name)

    await agent_of(client, "both").run("hello", capabilities=[Watching()])
    assert [charge.tags.get("agent") for charge in rows()] == ["by hand", None, "both"]
    assert seen == ["both"]
