"""Which functions of which libraries are charged, and what they count: data over `aifinops.integrations.resources.seam`.

Pinecone reports read units in its answers (https://docs.pinecone.io/guides/manage-cost/understanding-cost). Nobody else reports what a
call has used, and Pinecone does not for writes: such calls count as `requests`, for which the bundled lists have no price, so their cost is
unknown until you give one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["RESOURCES", "Resource", "Row"]

ONE_REQUEST: Mapping[str, int] = {"requests": 1}


@dataclass(frozen=True, slots=True)
class Row:
    """Functions of one class.

    Attributes:
        module, owner: where the class is. methods: its functions, plain, coroutines or generators of either colour. operation: of the charge.
        reads: meter -> where the answer reports it. counts: what a call counts as where the answer reports nothing.
        when: a name in `seam.TESTS`, which says of (object, arguments) whether the call is charged at all; empty for always.
        each: the argument of which each entry is a request, where it says how many it has.
        sent: the argument of a stream that yields messages to the server: each with data in it is a call of its own.
    """

    module: str
    owner: str
    methods: tuple[str, ...]
    operation: str
    reads: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=lambda: ONE_REQUEST)
    when: str = ""
    each: str = ""
    sent: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """One library: the SKU that its calls are of, and its rows. Versions have their classes in different places: what is not there is left."""

    provider: str
    model: str
    service: str
    package: str
    top: str
    rows: tuple[Row, ...]


_READ = {"read_units": "usage.read_units"}
_WRITE = {"write_units": "usage.write_units"}
_PINECONE = (
    ("query", "query_namespaces", "search", "search_records"),
    ("fetch", "fetch_by_metadata"),
    ("upsert", "upsert_records", "update"),
    ("list_paginated",),
)


def _pinecone(module: str, owner: str) -> tuple[Row, ...]:
    query, fetch, write, listing = _PINECONE
    return (
        Row(module, owner, query, "query", _READ),
        Row(module, owner, fetch, "fetch", _READ),
        Row(module, owner, listing, "list", _READ),
        Row(module, owner, write, "upsert", _WRITE),
        Row(module, owner, ("delete",), "delete", _WRITE),
    )


def _qdrant(module: str, owner: str) -> tuple[Row, ...]:
    here = "qdrant is elsewhere"
    return (
        Row(
            module,
            owner,
            ("query_points", "query_batch_points", "query_points_groups", "search", "search_batch", "recommend"),
            "query",
            when=here,
        ),
        Row(module, owner, ("retrieve", "scroll", "count"), "fetch", when=here),
        Row(
            module,
            owner,
            ("upsert", "upload_points", "upload_collection", "update_vectors", "set_payload"),
            "upsert",
            when=here,
        ),
        Row(module, owner, ("delete",), "delete", when=here),
    )


def _chroma(module: str, owner: str) -> tuple[Row, ...]:
    here = "chroma is elsewhere"
    return (
        Row(module, owner, ("query", "search"), "query", when=here),
        Row(module, owner, ("get", "peek", "count"), "fetch", when=here),
        Row(module, owner, ("add", "upsert", "update"), "upsert", when=here),
        Row(module, owner, ("delete",), "delete", when=here),
    )


def _weaviate(owner: str) -> tuple[Row, ...]:
    module = "weaviate.connect.v4"
    return (
        Row(module, owner, ("grpc_search", "grpc_aggregate"), "query"),
        Row(module, owner, ("grpc_batch_objects",), "upsert"),
        Row(module, owner, ("grpc_batch_delete",), "delete"),
        Row(module, owner, ("grpc_batch_stream",), "upsert", sent="requests"),
    )


def _psycopg(prefix: str) -> tuple[Row, ...]:
    vectors = "statement compares vectors"
    return (
        Row("psycopg", f"{prefix}Cursor", ("execute", "stream"), "query", when=vectors),
        Row("psycopg", f"{prefix}Cursor", ("executemany",), "query", when=vectors, each="params_seq"),
        Row("psycopg", f"{prefix}ServerCursor", ("execute",), "query", when=vectors),
    )


RESOURCES = {
    "pinecone": Resource(
        "pinecone", "standard", "vector", "pinecone", "pinecone",
        (
            *_pinecone("pinecone.index", "Index"),
            *_pinecone("pinecone.async_client.async_index", "AsyncIndex"),
            *_pinecone("pinecone.grpc", "GrpcIndex"),
            *_pinecone("pinecone.db_data.index", "Index"),
            *_pinecone("pinecone.db_data.index_asyncio", "_IndexAsyncio"),
        ),
    ),
    "qdrant": Resource(
        "qdrant", "qdrant", "vector", "qdrant-client", "qdrant_client",
        (*_qdrant("qdrant_client.qdrant_client", "QdrantClient"), *_qdrant("qdrant_client.async_qdrant_client", "AsyncQdrantClient")),
    ),
    "chroma": Resource(
        "chroma", "chroma-cloud", "vector", "chromadb", "chromadb",
        (
            *_chroma("chromadb.api.models.Collection", "Collection"),
            *_chroma("chromadb.api.models.AsyncCollection", "AsyncCollection"),
        ),
    ),
    "weaviate": Resource(
        "weaviate", "weaviate", "vector", "weaviate-client", "weaviate",
        (
            *_weaviate("ConnectionSync"),
            *_weaviate("ConnectionAsync"),
            Row("weaviate.connect.v4", "ConnectionAsync", ("grpc_batch_stream_write",), "upsert", when="message has data"),
        ),
    ),
    "pgvector": Resource(
        "postgres", "pgvector", "vector", "psycopg", "psycopg", (*_psycopg(""), *_psycopg("Async")),
    ),
}  # fmt: skip
"""Name for `instrument()` -> library."""
