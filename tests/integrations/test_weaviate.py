"""The real weaviate clients on a server that speaks their protocol: each request that is sent is counted once, in both colours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

weaviate = pytest.importorskip("weaviate")
grpc = pytest.importorskip("grpc")
v4 = pytest.importorskip("weaviate.connect.v4")
if not hasattr(v4.ConnectionSync, "grpc_batch_stream"):
    pytest.skip("an older version, without streams of batches", allow_module_level=True)

from weaviate.connect.v4 import batch_pb2, health_weaviate_pb2, search_get_pb2, weaviate_pb2_grpc  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.errors import BudgetExceeded  # noqa: E402
from aifinops.testing.wire import Wire  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients: they are not ours to keep free of warnings

CANARY = "canary-7c1f"


class Server(weaviate_pb2_grpc.WeaviateServicer):  # type: ignore[misc]
    """What Weaviate answers, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuse = False

    def Search(self, request: Any, context: Any) -> Any:
        self.asked.append("search")
        if self.refuse:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such property")
        return search_get_pb2.SearchReply(took=0.1)

    def BatchObjects(self, request: Any, context: Any) -> Any:
        self.asked.append(f"batch of {len(request.objects)}")
        return batch_pb2.BatchObjectsReply(took=0.1)

    def BatchStream(self, messages: Any, context: Any) -> Any:
        for message in messages:
            if message.HasField("start"):
                yield batch_pb2.BatchStreamReply(started=batch_pb2.BatchStreamReply.Started())
            elif message.HasField("data"):
                ids = [one.uuid for one in message.data.objects.values]
                self.asked.append(f"message of {len(ids)}")
                yield batch_pb2.BatchStreamReply(acks=batch_pb2.BatchStreamReply.Acks(uuids=ids))
                done = [batch_pb2.BatchStreamReply.Results.Success(uuid=one) for one in ids]
                yield batch_pb2.BatchStreamReply(results=batch_pb2.BatchStreamReply.Results(successes=done))
            elif message.HasField("stop"):
                return


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    running = grpc.server(ThreadPoolExecutor(max_workers=4))
    weaviate_pb2_grpc.add_WeaviateServicer_to_server(made, running)
    healthy = health_weaviate_pb2.WeaviateHealthCheckResponse
    check = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: healthy(status=healthy.SERVING),
        request_deserializer=health_weaviate_pb2.WeaviateHealthCheckRequest.FromString,
        response_serializer=healthy.SerializeToString,
    )
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),))
    made.port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    with Wire() as wire:
        wire.answers["GET /v1/meta"] = {"version": "1.36.0", "hostname": wire.url, "modules": {}}
        wire.answers["GET /v1/.well-known/ready"] = {}
        wire.answers["GET /v1/nodes"] = {
            "nodes": [{"name": "one", "status": "HEALTHY", "version": "1.36.0", "gitHash": "x", "shards": None}]
        }
        made.url = wire.url
        yield made
    running.stop(None).wait()


def where(server: Any) -> dict[str, Any]:
    from weaviate.config import AdditionalConfig

    host, _, port = server.url.removeprefix("http://").partition(":")
    return {
        "http_host": host, "http_port": int(port), "http_secure": False, "grpc_host": "127.0.0.1", "grpc_port": server.port,
        "grpc_secure": False, "additional_config": AdditionalConfig(disable_pypi_version_check=True)
        if "disable_pypi_version_check" in getattr(AdditionalConfig, "model_fields", {}) else None, "skip_init_checks": True,
    }  # fmt: skip


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    af.instrument("weaviate")
    made = weaviate.connect_to_custom(**where(server))
    yield made
    made.close()
    af.uninstrument()


def rows() -> list[Charge]:
    af.flush()
    found = list(runtime.get().ledger.rows())
    assert CANARY not in repr(found)
    return found


def counted() -> list[tuple[str, dict[str, Any]]]:
    return [(charge.operation, dict(charge.quantities)) for charge in rows()]


ONE = {"requests": 1}


def test_a_search_is_one_request(client: Any, server: Server) -> None:
    """Of any kind: they all go the same way; the tags in force are on the row, and the words that were searched are not."""
    house = client.collections.use("House")
    with af.track("search", team="shop"):
        house.query.near_vector([0.1, 0.2], limit=3)
        house.query.bm25(CANARY)
        house.query.fetch_objects(limit=1)
    assert server.asked == ["search"] * 3
    assert counted() == [("query", ONE)] * 3
    assert {(charge.provider, charge.amount, charge.tags["team"]) for charge in rows()} == {("weaviate", None, "shop")}


def test_a_search_that_is_refused_raises_the_library_s_error(client: Any, server: Server) -> None:
    """The error goes on; what it cost nobody knows."""
    server.refuse = True
    with pytest.raises(weaviate.exceptions.WeaviateQueryError):
        client.collections.use("House").query.bm25(CANARY)
    assert [(charge.status, charge.amount) for charge in rows()] == [("error", None)]


def test_a_budget_refuses_a_search_before_it_is_sent(client: Any, server: Server) -> None:
    """Nothing arrives at the server."""
    house = client.collections.use("House")
    with af.budget("1 requests"):
        house.query.fetch_objects(limit=1)
        with pytest.raises(BudgetExceeded):
            house.query.fetch_objects(limit=1)
    assert server.asked == ["search"]


def test_a_batch_is_as_many_requests_as_were_sent(client: Any, server: Server) -> None:
    """`insert_many` is one; a batch of a fixed size sends one for so many objects, in threads of the library."""
    house = client.collections.use("House")
    house.data.insert_many([{"name": CANARY}, {"name": "b"}])
    assert server.asked == ["batch of 2"]
    with house.batch.fixed_size(batch_size=2, concurrent_requests=1) as batch:
        for number in range(5):
            batch.add_object({"name": f"{CANARY} {number}"})
    sent = len(server.asked)
    assert sum(int(one.rpartition(" ")[2]) for one in server.asked) == 7
    assert counted() == [("upsert", ONE)] * sent


def test_a_streamed_batch_is_as_many_requests_as_messages_with_data(client: Any, server: Server) -> None:
    """What starts and stops a stream carries nothing, and is nothing."""
    house = client.collections.use("House")
    with house.batch.stream() as batch:
        for number in range(5):
            batch.add_object({"name": f"{CANARY} {number}"})
    assert sum(int(one.rpartition(" ")[2]) for one in server.asked) == 5
    assert not house.batch.failed_objects
    assert counted() == [("upsert", ONE)] * len(server.asked)


async def test_the_other_colour(server: Server) -> None:
    """A search, a batch and a stream of the asynchronous client."""
    af.instrument("weaviate")
    try:
        client = weaviate.use_async_with_custom(**where(server))
        await client.connect()
        house = client.collections.use("House")
        await house.query.near_vector([0.1, 0.2], limit=3)
        await house.data.insert_many([{"name": CANARY}])
        async with house.batch.stream() as batch:
            for number in range(3):
                await batch.add_object({"name": f"{CANARY} {number}"})
        await client.close()
    finally:
        af.uninstrument()
    assert server.asked[:2] == ["search", "batch of 1"]
    assert counted() == [("query", ONE), *[("upsert", ONE)] * (len(server.asked) - 1)]
    assert len(server.asked) > 2
