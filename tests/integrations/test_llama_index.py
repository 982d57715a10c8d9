"""LlamaIndex: agent, step and tool are on the charges of the calls that it makes; it makes no charge of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.core.agent.workflow")
pytest.importorskip("llama_index.llms.openai_like")

import httpx
import openai
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index.llms.openai_like import OpenAILike

import aifinops as af
from aifinops import runtime, scope
from aifinops.charges import Charge
from aifinops.integrations.frameworks import llama_index as ours
from aifinops.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore")  # of the framework: they are not ours to keep free of warnings


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    before = list(get_dispatcher().span_handlers)
    af.instrument("openai", "llama_index")
    yield
    af.uninstrument()
    assert get_dispatcher().span_handlers == before


@pytest.fixture
async def client(server: FakeProvider) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


@pytest.fixture
async def model(server: FakeProvider) -> AsyncIterator[Any]:
    async with httpx.AsyncClient() as http:
        yield OpenAILike(
            model="gpt-4o-mini", api_base=server.base_url, api_key="test", is_chat_model=True,
            is_function_calling_model=True, async_http_client=http,
        )  # fmt: skip


def agent_of(model: Any, name: str = "researcher", tools: Any = (), **more: Any) -> Any:
    return FunctionAgent(name=name, description="d", tools=list(tools), llm=model, streaming=False, **more)


def tool_of(client: Any) -> Any:
    async def look_up(query: str = "x") -> str:
        """Look something up."""
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": query}])
        return "found"

    return look_up


async def test_agent_step_and_tool_are_on_the_charges(client: Any, model: Any, server: FakeProvider) -> None:
    """Each physical call is one charge, with the agent's name; those inside a tool have the tool's as well."""
    with instrument_tags({"conversation": "conversation-7"}):
        await agent_of(model, tools=[tool_of(client)]).run("hello")
    charges = rows()
    assert [(charge.model, charge.tags.get("node"), charge.tags.get("tool")) for charge in charges] == [
        ("gpt-4o-mini", "run_agent_step", None),
        ("gpt-4o", "call_tool", "look_up"),
        ("gpt-4o-mini", "run_agent_step", None),
    ]
    assert {charge.tags["agent"] for charge in charges} == {"researcher"}
    assert {charge.tags["conversation"] for charge in charges} == {"conversation-7"}
    assert len(charges) == len(server.bill)
    assert scope.current() is scope.NOTHING


async def test_several_agents_in_one_workflow_keep_their_own(client: Any, model: Any, server: FakeProvider) -> None:
    """The one that has the floor is the one that is named, also for its tools."""
    root = agent_of(model, "first", [tool_of(client)])
    await AgentWorkflow(agents=[root, agent_of(model, "second")], root_agent="first").run("hello")
    assert {charge.tags["agent"] for charge in rows()} == {"first"}
    assert [charge.tags.get("tool") for charge in rows()][:2] == [None, "look_up"]


async def test_agents_side_by_side_keep_their_own(model: Any) -> None:
    """Ten agents in ten tasks."""
    names = [f"agent {number}" for number in range(10)]
    await asyncio.gather(*(asyncio.wait_for(agent_of(model, name).run("hello"), 60) for name in names))
    assert sorted(charge.tags["agent"] for charge in rows()) == names


async def test_a_workflow_of_ones_own_has_its_steps(client: Any) -> None:
    """Steps are nodes, whoever wrote them."""

    class Flow(Workflow):
        @step
        async def ask(self, event: StartEvent) -> StopEvent:
            await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
            return StopEvent(result="done")

    assert await Flow().run() == "done"
    assert [charge.tags.get("node") for charge in rows()] == ["ask"]


async def test_the_handler_can_be_added_by_hand(model: Any) -> None:
    """Without `instrument("llama_index")`."""
    af.uninstrument("llama_index")
    handler = ours.span_handler()
    get_dispatcher().add_span_handler(handler)
    await agent_of(model).run("hello")
    get_dispatcher().span_handlers.remove(handler)
    await agent_of(model, "untagged").run("hello")
    assert [charge.tags.get("agent") for charge in rows()] == ["researcher", None]
