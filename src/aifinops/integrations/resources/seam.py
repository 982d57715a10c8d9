"""The seam for functions: one wrapper around a function that is one charge of something other than tokens.

Such a call owns nothing below it: a collection that embeds its query with a model makes that call inside, and it is charged for itself.
Only functions of the same table inside one another are one charge, that of the outermost.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from typing import Any

from aifinops import metering
from aifinops.errors import ImpossibleUsage, swallow
from aifinops.integrations.passing import aguarded, guarded
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
    test, plain = TESTS.get(row.when), inspect.unwrap(function)
    # What the answer will tell is held as one unit: it is billed for some, and how many nobody knows.
    expected = {**row.counts, **dict.fromkeys(row.reads, 1)}
    call = (resource.provider, row.operation, resource.model, resource.service)

    def opened(owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Invocation | None:
        if test is not None and not test(owner, args, kwargs):
            return None
        return begin(
            *call, expected if not row.each else {"requests": _number(_argument(function, row.each, args, kwargs))}
        )

    def wrapped_call(wrapped: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        invocation = guarded("resources.begin", opened, owner, args, kwargs)
        if invocation is None:
            return wrapped(*args, **kwargs)
        with _ended(invocation):
            result = wrapped(*args, **kwargs)
        guarded("resources.settle", settled, invocation, row, result)
        return result

    async def awrapped_call(wrapped: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        invocation = await aguarded("resources.begin", opened, owner, args, kwargs)
        if invocation is None:
            return await wrapped(*args, **kwargs)
        with _ended(invocation):
            result = await wrapped(*args, **kwargs)
        guarded("resources.settle", settled, invocation, row, result)
        return result

    def sent(message: Any) -> None:
        if not hasattr(message, "HasField") or message.HasField("data"):
            invocation = begin(*call, row.counts, asked=False)
            if invocation is not None:
                settled(invocation, row, None)

    def wrapped_stream(wrapped: Any, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if row.sent and row.sent in kwargs:
            return wrapped(*args, **{**kwargs, row.sent: _counted(kwargs[row.sent], sent)})
        return _streamed(lambda: guarded("resources.begin", opened, owner, args, kwargs), row, wrapped(*args, **kwargs))

    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        return wrapped_stream
    return awrapped_call if inspect.iscoroutinefunction(plain) else wrapped_call


def _streamed(opened: Callable[[], Invocation | None], row: Row, items: Any) -> Any:
    """The same generator, whose call begins when somebody takes its first item, and is charged once that has come: it was made then."""
    return _astreamed(opened, row, items) if hasattr(items, "__anext__") else _plainly_streamed(opened, row, items)


def _plainly_streamed(opened: Callable[[], Invocation | None], row: Row, items: Any) -> Iterator[Any]:
    with closing(items):
        invocation = opened()
        with _answering(invocation):
            first = next(items, _END)
        guarded("resources.settle", settled, invocation, row, None)
        if first is not _END:
            yield first
            yield from items


async def _astreamed(opened: Callable[[], Invocation | None], row: Row, items: Any) -> AsyncIterator[Any]:
    async with aclosing(items):
        invocation = opened()
        with _answering(invocation):
            first = await anext(items, _END)
        guarded("resources.settle", settled, invocation, row, None)
        if first is not _END:
            yield first
            async for item in items:
                yield item


_END = object()


def _counted(messages: Any, sent: Callable[[Any], None]) -> Any:
    """The same messages on their way to the server. A budget cannot refuse what is under way."""
    return _acounted(messages, sent) if hasattr(messages, "__aiter__") else _plainly_counted(messages, sent)


def _plainly_counted(messages: Any, sent: Callable[[Any], None]) -> Iterator[Any]:
    for message in messages:
        guarded("resources.sent", sent, message)
        yield message


async def _acounted(messages: Any, sent: Callable[[Any], None]) -> AsyncIterator[Any]:
    async for message in messages:
        guarded("resources.sent", sent, message)
        yield message


def _argument(function: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """An argument of a method by its name, also where it was given by its place."""
    if name in kwargs:
        return kwargs[name]
    place = list(inspect.signature(function).parameters).index(name) - 1  # without `self`
    return args[place] if place < len(args) else None


def _number(entries: Any) -> int:
    """How many entries; at least one, and one for what does not say."""
    return max(len(entries), 1) if hasattr(entries, "__len__") else 1


def begin(
    provider: str, operation: str, model: str, service: str, expected: Mapping[str, int], *, asked: bool = True
) -> Invocation | None:
    """Open a call whose usage is known beforehand, but for what its answer adds.

    Args:
        provider, operation, model, service: of the charge. expected: its usage. asked: False for what is under way already.

    Raises:
        BudgetExceeded: when a budget has no room; nothing was sent.
    """
    if _inside.get():
        return None
    call = Call(provider, operation, model, service=service, counts=quantities(expected))
    invocation = metering.begin(call) if asked else metering.observe(call)
    if invocation is not None:
        invocation.leave()  # it owns nothing below it
    return invocation


@contextmanager
def _ended(invocation: Invocation) -> Iterator[None]:
    token = _inside.set(True)
    try:
        with _answering(invocation):
            yield
    finally:
        _inside.reset(token)


@contextmanager
def _answering(invocation: Invocation | None) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if invocation is not None:
            guarded("resources.failed", invocation.fail, error)
        raise


def settled(invocation: Invocation | None, row: Row, result: Any) -> None:
    """Read what the answer reports, or else count the call; None is no call."""
    if invocation is None:
        return
    reported = {}
    for meter, path in row.reads.items():
        value = dig(result, path)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            reported[meter] = value
    try:
        counts = row.counts if row.reads else invocation.call.counts
        reading = Reading(quantities(reported or counts), raw=dict(reported) or None)
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


def _has_data(_connection: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    message = kwargs.get("request", args[-1] if args else None)
    return hasattr(message, "HasField") and message.HasField("data")


TESTS: Mapping[str, Callable[[Any, tuple[Any, ...], Mapping[str, Any]], bool]] = {
    "qdrant is elsewhere": _qdrant_is_elsewhere,
    "chroma is elsewhere": _chroma_is_elsewhere,
    "statement compares vectors": _compares_vectors,
    "message has data": _has_data,
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
