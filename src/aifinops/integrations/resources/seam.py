"""The seam for functions: one wrapper around a function that is one charge of something other than tokens.

Such a call owns nothing below it: a collection that embeds its query with a model makes that call inside, and it is charged for itself.
Only functions of the same table inside one another are one charge, that of the outermost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from aifinops import metering
from aifinops.errors import ImpossibleUsage, swallow
from aifinops.integrations.passing import guarded
from aifinops.integrations.patching import Patch
from aifinops.integrations.resources.table import RESOURCES, Resource, Row
from aifinops.metering import Call, Invocation
from aifinops.reading import Reading
from aifinops.usage import quantities

__all__ = ["TESTS", "begin", "dig", "hook", "settled", "wrapper_of"]

_inside: ContextVar[bool] = ContextVar("aifinops_resource", default=False)


def hook(name: str, module: Any) -> list[Any]:
    """Patch what the table names of an imported module."""
    resource = RESOURCES[name]
    patches: list[Any] = []
    for row in resource.rows:
        owner = getattr(module, row.owner, None) if row.module == module.__name__ else None
        for method in row.methods if owner is not None else ():
            function = getattr(owner, method, None)
            if function is None:
                continue
            try:
                patches.append(Patch(owner, method, wrapper_of(resource, row, function)))
            except Exception as failure:  # a class that cannot be patched: its calls are not charged
                swallow(f"resources.{name}.hook", failure)
    return patches


def wrapper_of(resource: Resource, row: Row, function: Any) -> Callable[..., Any]:
    """The wrapper for one function, in its own colour."""
    test = TESTS.get(row.when)
    # What the answer will tell is held as one unit: it is billed for some, and how many nobody knows.
    expected = {**row.counts, **dict.fromkeys(row.reads, 1)}
    call = (resource.provider, row.operation, resource.model, resource.service, expected)

    def opened(owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Invocation | None:
        if test is not None and not test(owner, args, kwargs):
            return None
        return begin(*call)

    def wrapped_call(wrapped: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        invocation = guarded("resources.begin", opened, owner, args, kwargs)
        if invocation is None:
            return wrapped(*args, **kwargs)
        with _ended(invocation):
            result = wrapped(*args, **kwargs)
        guarded("resources.settle", settled, invocation, row, result)
        return result

    async def awrapped_call(wrapped: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        invocation = guarded("resources.begin", opened, owner, args, kwargs)
        if invocation is None:
            return await wrapped(*args, **kwargs)
        with _ended(invocation):
            result = await wrapped(*args, **kwargs)
        guarded("resources.settle", settled, invocation, row, result)
        return result

    return awrapped_call if inspect.iscoroutinefunction(inspect.unwrap(function)) else wrapped_call


def begin(provider: str, operation: str, model: str, service: str, expected: Mapping[str, int]) -> Invocation | None:
    """Open a call whose usage is known beforehand, but for what its answer adds.

    Raises:
        BudgetExceeded: when a budget has no room; nothing was sent.
    """
    if _inside.get():
        return None
    call = Call(provider, operation, model, service=service, counts=quantities(expected))
    invocation = metering.begin(call)
    if invocation is not None:
        invocation.leave()  # it owns nothing below it
    return invocation


@contextmanager
def _ended(invocation: Invocation) -> Iterator[None]:
    token = _inside.set(True)
    try:
        yield
    except BaseException as error:
        guarded("resources.failed", invocation.fail, error)
        raise
    finally:
        _inside.reset(token)


def settled(invocation: Invocation, row: Row, result: Any) -> None:
    """Read what the answer reports, or else count the call."""
    reported = {}
    for meter, path in row.reads.items():
        value = dig(result, path)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            reported[meter] = value
    try:
        reading = Reading(quantities(reported or row.counts), raw=dict(reported) or None)
    except ImpossibleUsage as problem:
        reading = Reading(problem=str(problem), raw={name: repr(value) for name, value in reported.items()})
    invocation.settle(reading)


def dig(found: Any, path: str) -> Any:
    """Follow a dotted path through attributes and mappings; None where it breaks off."""
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
        if found is None:
            return None
    return found


# --- what is charged at all ---------------------------------------------------------------------------------------------


def _qdrant_is_elsewhere(client: Any, _args: Any, _kwargs: Any) -> bool:
    return "Local" not in type(getattr(client, "_client", None)).__name__


def _chroma_is_elsewhere(collection: Any, _args: Any, _kwargs: Any) -> bool:
    return "FastAPI" in type(getattr(collection, "_client", None)).__name__


_OPERATORS = ("<->", "<#>", "<=>", "<+>", "<~>", "<%>")
"""Distances of pgvector: https://github.com/pgvector/pgvector#querying."""


def _compares_vectors(_cursor: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    statement = args[0] if args else kwargs.get("query")
    if isinstance(statement, (bytes, bytearray)):
        statement = statement.decode("utf-8", "replace")
    elif not isinstance(statement, str):
        statement = repr(statement)  # a composed one (psycopg.sql)
    return any(operator in statement for operator in _OPERATORS)


TESTS: Mapping[str, Callable[[Any, tuple[Any, ...], Mapping[str, Any]], bool]] = {
    "qdrant is elsewhere": _qdrant_is_elsewhere,
    "chroma is elsewhere": _chroma_is_elsewhere,
    "statement compares vectors": _compares_vectors,
}
"""A database inside this process costs nothing by itself, and most statements have nothing to do with vectors."""


def pinecone(module: Any) -> list[Any]:
    """The table's rows of Pinecone."""
    return hook("pinecone", module)


def qdrant(module: Any) -> list[Any]:
    """The table's rows of Qdrant."""
    return hook("qdrant", module)


def chroma(module: Any) -> list[Any]:
    """The table's rows of Chroma."""
    return hook("chroma", module)


def weaviate(module: Any) -> list[Any]:
    """The table's rows of Weaviate."""
    return hook("weaviate", module)


def pgvector(module: Any) -> list[Any]:
    """The table's rows of psycopg."""
    return hook("pgvector", module)
