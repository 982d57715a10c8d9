"""LangChain and LangGraph: whose call it was is on the charge; what it cost is charged once, by the provider's client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import pytest

pytest.importorskip("langchain_openai")
pytest.importorskip("langgraph")

import langchain_core.tracers.context as configured
import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

import aifinops as af
from aifinops import runtime, scope
from aifinops.charges import Charge
from aifinops.integrations.frameworks import langchain as ours
from aifinops.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks: they are not ours to keep free of warnings


class State(TypedDict):
    text: str


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    af.instrument("openai", "langchain")
    yield
    af.uninstrument()


@pytest.fixture
def model(server: FakeProvider) -> Any:
    return ChatOpenAI(model="gpt-4o-mini", base_url=server.base_url, api_key="test", max_retries=0)


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def graph_of(model: Any, name: str | None = "support desk", *, streaming: bool = False) -> Any:
    def draft(state: State) -> State:
        if streaming:
            return {"text": "".join(str(piece.content) for piece in model.stream(state["text"]))}
        return {"text": str(model.invoke(state["text"]).content)}

    async def check(state: State) -> State:
        return {"text": str((await model.ainvoke(state["text"])).content)}

    def check_sync(state: State) -> State:
        return {"text": str(model.invoke(state["text"]).content)}

    from langchain_core.runnables import RunnableLambda

    graph = StateGraph(State)
    graph.add_node("draft", draft)
    graph.add_node("check", RunnableLambda(check_sync, check))
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "check")
    graph.add_edge("check", END)
    return graph.compile(name=name) if name else graph.compile()


def said(charge: Charge) -> tuple[str | None, str | None, str | None]:
    return charge.tags.get("agent"), charge.tags.get("node"), charge.tags.get("conversation")


CONFIG = {"configurable": {"thread_id": "conversation-7"}}
EXPECTED = [("support desk", "draft", "conversation-7"), ("support desk", "check", "conversation-7")]


def test_a_graph_names_agent_node_and_conversation(model: Any, server: FakeProvider) -> None:
    """Each call of a graph's nodes has the graph's name, the node's and the thread's id, and is charged once."""
    graph_of(model).invoke({"text": "hello"}, CONFIG)
    assert [said(charge) for charge in rows()] == EXPECTED
    assert len(server.bill) == 2
    assert scope.current() is scope.NOTHING


async def test_an_asynchronous_graph_does_so_too(model: Any, server: FakeProvider) -> None:
    """Handlers of asynchronous calls run where the call is made."""
    await graph_of(model).ainvoke({"text": "hello"}, CONFIG)
    assert [said(charge) for charge in rows()] == EXPECTED
    assert scope.current() is scope.NOTHING


async def test_tasks_side_by_side_keep_their_own(model: Any, server: FakeProvider) -> None:
    """Ten conversations at once: each call belongs to its own."""
    graph = graph_of(model)
    configs = [{"configurable": {"thread_id": f"conversation-{number}"}} for number in range(10)]
    await asyncio.gather(*(graph.ainvoke({"text": "hello"}, config) for config in configs))
    found = sorted((charge.tags["conversation"], charge.tags["node"]) for charge in rows())
    assert found == sorted((f"conversation-{number}", node) for number in range(10) for node in ("draft", "check"))


def test_threads_side_by_side_keep_their_own(model: Any, server: FakeProvider) -> None:
    """`batch` runs in threads, and a pool of the user's own does so as well."""
    graph = graph_of(model)
    configs: list[Any] = [{"configurable": {"thread_id": f"conversation-{number}"}} for number in range(6)]
    graph.batch([{"text": "hello"}] * 3, configs[:3])
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda config: graph.invoke({"text": "hello"}, config), configs[3:]))
    found = sorted((charge.tags["conversation"], charge.tags["node"]) for charge in rows())
    assert found == sorted((f"conversation-{number}", node) for number in range(6) for node in ("draft", "check"))


def test_a_direct_call_inside_a_node_is_the_nodes(server: FakeProvider) -> None:
    """Calls that never went through LangChain are attributed as well."""
    client = openai.OpenAI(base_url=server.base_url, api_key="test")

    def ask(state: State) -> State:
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
        return {"text": str(answer.choices[0].message.content)}

    graph = StateGraph(State)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    graph.compile(name="asker").invoke({"text": "x"}, CONFIG)
    client.close()
    assert [said(charge) for charge in rows()] == [("asker", "ask", "conversation-7")]


def test_the_body_of_a_loop_over_a_stream_is_not_the_graphs(model: Any, server: FakeProvider) -> None:
    """What is called between two chunks of a graph or a model belongs to whoever reads them."""
    client = openai.OpenAI(base_url=server.base_url, api_key="test")
    say = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
    for _ in graph_of(model, streaming=True).stream({"text": "hello"}, CONFIG):
        client.chat.completions.create(**say)
    for number, _ in enumerate(model.stream("hello")):
        if number == 1:
            client.chat.completions.create(**say)
    client.close()
    assert {said(charge) for charge in rows() if charge.model == "gpt-4o"} == {(None, None, None)}
    assert [said(charge) for charge in rows() if charge.model == "gpt-4o-mini"][:2] == EXPECTED


def test_a_stream_that_is_dropped_leaves_nothing_in_force(model: Any) -> None:
    """Neither a graph's stream nor a model's, read for one chunk, tags what comes after."""
    for _ in graph_of(model).stream({"text": "hello"}, CONFIG):
        break
    for _ in model.stream("hello"):
        break
    assert scope.current().tags == {}


def test_a_tool_is_named(model: Any, server: FakeProvider) -> None:
    """An agent with a tool that asks a model: its call has the agent's name and the tool's."""
    try:
        from langchain.agents import create_agent
    except ImportError:  # before 1.0 it was LangGraph's
        from langgraph.prebuilt import create_react_agent as create_agent

    client = openai.OpenAI(base_url=server.base_url, api_key="test")

    @tool
    def look_up(query: str) -> str:
        """Look something up."""
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": query}])
        return "found"

    create_agent(model, [look_up], name="researcher").invoke({"messages": [("user", "hello")]}, CONFIG)
    client.close()
    charges = rows()
    assert {charge.tags.get("agent") for charge in charges} == {"researcher"}
    assert [charge.tags.get("tool") for charge in charges] == [None, "look_up", None]
    made = af.report(by=["agent", "tool"])
    assert {(row.key["agent"], row.key["tool"]): row.calls for row in made} == {
        ("researcher", ""): 2,
        ("researcher", "look_up"): 1,
    }


def test_an_error_in_a_node_ends_its_tags(model: Any, server: FakeProvider) -> None:
    """The user's exception goes on, and nothing stays in force."""
    server.fail_next(400)
    with pytest.raises(openai.BadRequestError):
        graph_of(model).invoke({"text": "hello"}, CONFIG)
    assert scope.current() is scope.NOTHING


def test_uninstrument_takes_the_handler_out(model: Any) -> None:
    """LangChain's hooks are as they were, and calls have no tags."""
    af.uninstrument("langchain")
    assert not [entry for entry in configured._configure_hooks if "aifinops" in entry[0].name]
    graph_of(model).invoke({"text": "hello"}, CONFIG)
    assert [dict(charge.tags) for charge in rows()] == [{}, {}]


def test_the_handler_can_be_passed(model: Any) -> None:
    """Without `instrument("langchain")`, in the config of one call."""
    af.uninstrument("langchain")
    graph_of(model).invoke({"text": "hello"}, {**CONFIG, "callbacks": [ours.handler()]})
    assert [said(charge) for charge in rows()] == EXPECTED


def test_a_graph_without_a_name_has_nodes_only(model: Any) -> None:
    """LangGraph's own default is nobody's agent."""
    graph_of(model, None).invoke({"text": "hello"}, CONFIG)
    assert [said(charge) for charge in rows()] == [(None, "draft", "conversation-7"), (None, "check", "conversation-7")]
