"""MCP: the tool is on the charges of the calls made inside it; calling a tool is no charge by itself."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("mcp.client.session")

import mcp
import openai

import aifinops as af
from aifinops import runtime, scope
from aifinops.charges import Charge
from aifinops.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore")  # of the framework: they are not ours to keep free of warnings


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("openai", "mcp")
    yield
    af.uninstrument()


@pytest.fixture
async def client(server: FakeProvider) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        yield made


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def server_of(client: Any) -> Any:
    try:
        made = importlib.import_module("mcp.server.mcpserver").MCPServer("house")
    except ModuleNotFoundError:
        made = importlib.import_module("mcp.server.fastmcp").FastMCP("house")

    @made.tool()
    async def look_up(query: str) -> str:
        """Look something up."""
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": query}])
        return "found"

    return made


def session_to(server: Any) -> Any:
    """A client of a server in this process, as its version makes one."""
    if hasattr(mcp, "Client"):
        return mcp.Client(server)
    return importlib.import_module("mcp.shared.memory").create_connected_server_and_client_session(server._mcp_server)


async def test_a_call_inside_a_tool_has_its_name(client: Any, server: FakeProvider) -> None:
    """In the server, whoever called the tool; the transport is the library's own, in memory."""
    async with session_to(server_of(client)) as session:
        result = await session.call_tool("look_up", {"query": "hello"})
    assert "found" in str(result.content)
    (charge,) = rows()
    assert charge.tags["tool"] == "look_up"
    assert len(server.bill) == 1
    assert scope.current() is scope.NOTHING


async def test_a_tool_that_does_not_exist_is_the_users_own_error(client: Any) -> None:
    """What the library says of it is what the user sees, and nothing stays in force."""
    async with session_to(server_of(client)) as session:
        said = ""
        try:
            said = str((await session.call_tool("nothing", {})).content)
        except Exception as error:  # 2.x raises, 1.x answers
            said = str(error)
        assert "nothing" in said
    assert rows() == []
    assert scope.current() is scope.NOTHING


def test_uninstrument_restores_the_client() -> None:
    """Each class is what it was."""
    session = importlib.import_module("mcp.client.session").ClientSession
    af.uninstrument()
    plain = vars(session)["call_tool"]
    af.instrument("mcp")
    assert vars(session)["call_tool"] is not plain
    af.uninstrument("mcp")
    assert vars(session)["call_tool"] is plain
