"""Vector databases: one charge a call with the units that the answer reports; what is not reported is unknown; nothing is owned below."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

import aifinops as af
from aifinops import runtime, scope
from aifinops.charges import Charge
from aifinops.errors import BudgetExceeded
from aifinops.integrations.patching import Patch
from aifinops.integrations.resources import seam
from aifinops.integrations.resources.table import RESOURCES, Resource, Row
from aifinops.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients: they are not ours to keep free of warnings


@pytest.fixture(autouse=True)
def uninstrumented() -> Iterator[None]:
    yield
    af.uninstrument()


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


class Wire:
    """An HTTP server that answers what it is told to, by the end of the path."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.seen: list[str] = []
        wire = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                path = self.path.partition("?")[0]
                wire.seen.append(f"{self.command} {path}")
                found = next((body for end, body in answers.items() if path.endswith(end)), None)
                content = json.dumps({"message": "no"} if found is None else found).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = _answer

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


MATCHES = {"matches": [], "namespace": "", "usage": {"readUnits": 5}}


def test_pinecone_reports_read_units() -> None:
    """A query costs what its answer says; the fetch and the failed one as well; all have the tags in force."""
    pytest.importorskip("pinecone")
    af.instrument("pinecone")
    from pinecone import Pinecone

    with Wire({"/query": MATCHES, "/vectors/fetch": {"vectors": {}, "usage": {"readUnits": 1}}}) as wire:
        index = Pinecone(api_key="test").Index(host=wire.url)
        with af.track("search", team="shop") as block:
            index.query(vector=[0.1, 0.2], top_k=3)
            index.fetch(ids=["a"])
        index.close()
    query, fetch = rows()
    assert (query.provider, query.operation, query.model, query.service) == ("pinecone", "query", "standard", "vector")
    assert query.quantities == {"read_units": 5}
    assert query.amount == 80_000  # 5 x $16 / 1,000,000, in nano-dollars
    assert fetch.quantities == {"read_units": 1}
    assert {charge.tags["team"] for charge in (query, fetch)} == {"shop"}
    assert block.cost.amount == Decimal("0.000096")
    assert len(wire.seen) == 2


def test_what_pinecone_does_not_report_is_unknown() -> None:
    """An upsert is recorded; its write units are in no answer, so it has no cost, which is not zero."""
    pytest.importorskip("pinecone")
    af.instrument("pinecone")
    from pinecone import Pinecone

    with Wire({"/vectors/upsert": {"upsertedCount": 1}}) as wire:
        index = Pinecone(api_key="test").Index(host=wire.url)
        index.upsert(vectors=[("a", [0.1, 0.2])])
        index.close()
    (charge,) = rows()
    assert (charge.operation, charge.quantities, charge.amount, charge.basis) == (
        "upsert",
        {"requests": 1},
        None,
        "unknown",
    )


async def test_pinecone_asynchronously() -> None:
    """The same in the other colour."""
    pytest.importorskip("pinecone.async_client.async_index")
    af.instrument("pinecone")
    from pinecone import AsyncPinecone

    with Wire({"/query": MATCHES}) as wire:
        async with AsyncPinecone(api_key="test") as client:
            index = (
                client.IndexAsyncio(host=wire.url) if hasattr(client, "IndexAsyncio") else client.index(host=wire.url)
            )
            async with index:
                await index.query(vector=[0.1, 0.2], top_k=3)
    assert [charge.quantities for charge in rows()] == [{"read_units": 5}]


def test_a_budget_counts_read_units() -> None:
    """A budget in read units refuses the call after the one that used them up; nothing is sent."""
    pytest.importorskip("pinecone")
    af.instrument("pinecone")
    from pinecone import Pinecone

    with Wire({"/query": MATCHES}) as wire:
        index = Pinecone(api_key="test").Index(host=wire.url)
        with af.budget("2 requests"):
            index.query(vector=[0.1], top_k=1)
            index.query(vector=[0.1], top_k=1)
            with pytest.raises(BudgetExceeded):
                index.query(vector=[0.1], top_k=1)
        index.close()
    assert len(wire.seen) == 2


QDRANT = {"/points/query": {"result": {"points": []}, "status": "ok", "time": 0.0}}


def test_qdrant_counts_requests_and_has_the_price_that_you_give_it() -> None:
    """Without a price the cost is unknown; with one it is known; free is free."""
    qdrant = pytest.importorskip("qdrant_client")
    af.instrument("qdrant")
    with Wire(QDRANT) as wire:
        client = qdrant.QdrantClient(url=wire.url, check_compatibility=False)
        client.query_points("house", query=[0.1, 0.2])
        af.register_price("qdrant", provider="qdrant", rates={"requests": "0.10"})
        client.query_points("house", query=[0.1, 0.2])
        af.register_price("qdrant", provider="qdrant", free=True)
        client.query_points("house", query=[0.1, 0.2])
        client.close()
    assert [(charge.amount, charge.basis) for charge in rows()] == [(None, "unknown"), (100_000, "priced"), (0, "free")]


async def test_qdrant_asynchronously() -> None:
    """The same in the other colour."""
    qdrant = pytest.importorskip("qdrant_client")
    af.instrument("qdrant")
    with Wire(QDRANT) as wire:
        client = qdrant.AsyncQdrantClient(url=wire.url, check_compatibility=False)
        await client.query_points("house", query=[0.1, 0.2])
        await client.close()
    assert [charge.quantities for charge in rows()] == [{"requests": 1}]


def test_a_database_in_this_process_costs_nothing_by_itself() -> None:
    """Qdrant in memory and Chroma without a server are no charges."""
    qdrant = pytest.importorskip("qdrant_client")
    af.instrument("qdrant")
    from qdrant_client import models

    client = qdrant.QdrantClient(":memory:")
    client.create_collection("house", vectors_config=models.VectorParams(size=2, distance="Cosine"))
    client.query_points("house", query=[0.1, 0.2])
    client.close()
    assert rows() == []


def test_chroma_owns_nothing_below_it() -> None:
    """A collection that embeds its query with a model: the search is one charge, and the embedding is another, its own."""
    chromadb = pytest.importorskip("chromadb")
    openai = pytest.importorskip("openai")
    af.instrument("chroma", "openai")
    from chromadb.api.models.Collection import Collection

    made = {"id": "6f1f2b9e-7a39-4b8b-9d3a-111111111111", "name": "house", "tenant": "default_tenant",
            "database": "default_database", "metadata": None, "dimension": None, "version": 0, "log_position": 0,
            "configuration_json": {}, "schema": None}  # fmt: skip
    found = {"ids": [["a"]], "distances": [[0.1]], "documents": [["d"]], "metadatas": [[None]], "embeddings": None,
             "uris": None, "data": None, "include": ["documents"]}  # fmt: skip
    with FakeProvider() as provider, openai.OpenAI(base_url=provider.base_url, api_key="test") as model:

        class Embedding(chromadb.EmbeddingFunction[Any]):
            def __init__(self) -> None:
                return

            def __call__(self, texts: Any) -> Any:
                answer = model.embeddings.create(model="text-embedding-3-small", input=list(texts))
                return [line.embedding for line in answer.data]

            @staticmethod
            def name() -> str:
                return "default"

        answers = {"/query": found, "/auth/identity": {"user_id": "", "tenant": "default_tenant", "databases": []},
                   "/collections": made, "/tenants/default_tenant": {"name": "default_tenant"},
                   "/databases/default_database": {"id": made["id"], "name": "default_database", "tenant": "default_tenant"},
                   "/version": "1.0.0", "/heartbeat": {"nanosecond heartbeat": 1}, "/pre-flight-checks": {"max_batch_size": 100}}  # fmt: skip
        with Wire(answers) as wire:
            host, _, port = wire.url.removeprefix("http://").partition(":")
            client = chromadb.HttpClient(host, int(port), settings=chromadb.Settings(anonymized_telemetry=False))
            collection = client.create_collection("house", embedding_function=Embedding())
            assert isinstance(collection, Collection)
            collection.query(query_texts=["hello"], n_results=1)
    assert {(charge.service, charge.operation) for charge in rows()} == {("llm", "embeddings"), ("vector", "query")}
    assert len(rows()) == 2


def test_weaviate_is_patched_where_it_searches() -> None:
    """The two connections of the installed version have the functions that the table names, in their own colours, and get them back."""
    connections = pytest.importorskip("weaviate.connect.v4")
    plain = vars(connections.ConnectionSync)["grpc_search"]
    af.instrument("weaviate")
    stub = SimpleNamespace(_client=None)
    assert vars(connections.ConnectionSync)["grpc_search"] is not plain
    stub.grpc_stub = SimpleNamespace(Search=lambda request, **_: "found")
    stub.grpc_headers, stub.timeout_config = (lambda: ()), SimpleNamespace(query=1)
    answer = connections.ConnectionSync.grpc_search(stub, SimpleNamespace(collection="house"))
    assert answer == "found"
    (charge,) = rows()
    assert (charge.provider, charge.operation, charge.amount) == ("weaviate", "query", None)
    af.uninstrument("weaviate")
    assert vars(connections.ConnectionSync)["grpc_search"] is plain


@pytest.mark.parametrize(
    ("statement", "charged"),
    [("select * from t order by v <=> %s limit 3", True), (b"select v <-> '[1]' from t", True), ("select 1", False)],
)
def test_only_statements_that_compare_vectors_are_charged(statement: Any, charged: bool) -> None:
    """psycopg runs everything else as well."""
    assert seam.TESTS["statement compares vectors"](None, (statement,), {}) is charged


class House:
    """A library of somebody's."""

    def outer(self) -> Any:
        return self.inner()

    def inner(self) -> Any:
        return SimpleNamespace(usage={"read_units": 2})

    def odd(self) -> Any:
        return {"usage": {"read_units": -1}}

    async def slow(self) -> Any:
        raise TimeoutError("too slow")


@pytest.fixture
def house() -> Iterator[House]:
    resource = Resource("pinecone", "standard", "vector", "house", "house", ())
    patches = [
        Patch(House, name, seam.wrapper_of(resource, Row("house", "House", (name,), "query", {"read_units": "usage.read_units"}), vars(House)[name]))
        for name in ("outer", "inner", "odd", "slow")
    ]  # fmt: skip
    yield House()
    for patch in patches:
        patch.undo()


def test_a_function_inside_another_is_one_charge(house: House) -> None:
    """The outermost one's, whose answer is handed out as it is."""
    assert house.outer().usage == {"read_units": 2}
    assert [charge.quantities for charge in rows()] == [{"read_units": 2}]


def test_an_impossible_count_is_an_unknown_cost(house: House) -> None:
    """The user gets the answer; the charge has what was said, and no amount."""
    assert house.odd() == {"usage": {"read_units": -1}}
    (charge,) = rows()
    assert (charge.amount, charge.basis, charge.raw) == (None, "unknown", {"read_units": "-1"})


async def test_a_failed_call_may_have_been_billed(house: House) -> None:
    """The user's exception goes on; the cost is unknown, since nobody knows whether it was served."""
    with pytest.raises(TimeoutError, match="too slow"):
        await house.slow()
    (charge,) = rows()
    assert (charge.status, charge.error, charge.amount) == ("error", "TimeoutError", None)
    assert scope.current() is scope.NOTHING


def test_every_row_of_the_table_names_something_there() -> None:
    """For each library that is installed, at least one class of each of its hooked modules has its functions."""
    import importlib

    for resource in RESOURCES.values():
        for row in resource.rows:
            try:
                module = importlib.import_module(row.module)
            except ImportError:
                continue
            owner = getattr(module, row.owner, None)
            assert owner is None or any(hasattr(owner, method) for method in row.methods), row
