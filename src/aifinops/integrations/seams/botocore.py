"""The seam for botocore (boto3) and aiobotocore, of which Amazon Bedrock's inference, guardrails, agents and knowledge bases are metered and
every other service is left alone.

`_make_api_call` of the client is where every operation of every service passes. Each try that the library makes inside of it, in every mode
of its retries, is `_get_response` of the endpoint, which returns an error and does not raise it. Converse answers with a dict. InvokeModel answers with a body of bytes that only the user may read, so it is seen
while it is read, and what the headers tell stands in for it when it is not. Streams are seen as the messages that the library cuts the
bytes into, before it parses them: per message that is one append.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aifinops.errors import swallow
from aifinops.integrations import amazon
from aifinops.integrations.calls import Calls, acalled, called, look_again, settle_body
from aifinops.integrations.changing import ADDRESS, How, changed, rewritten
from aifinops.integrations.extract import Reader, dig
from aifinops.integrations.passing import Opened, Passing, PassingEvents, aguarded, apassed, guarded, passed
from aifinops.integrations.patching import Patch, applied
from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.streams import StreamText
from aifinops.integrations.tries import ahold_again, hold_again, note
from aifinops.reading import Reading

__all__ = ["Seam"]

_OPERATIONS = {
    "Converse": "Converse",
    "ConverseStream": "ConverseStream",
    "InvokeModel": "InvokeModel",
    "InvokeModelWithResponseStream": "InvokeModel",
    "ApplyGuardrail": "ApplyGuardrail",
}
_AGENTS = {
    "InvokeAgent": "InvokeAgent",
    "InvokeInlineAgent": "InvokeAgent",
    "RetrieveAndGenerate": "RetrieveAndGenerate",
    "RetrieveAndGenerateStream": "RetrieveAndGenerate",
    "Retrieve": "Retrieve",
    "Rerank": "Rerank",
}
_SERVICES = {"bedrock-runtime": _OPERATIONS, "bedrock-agent-runtime": _AGENTS}
"""Service -> its metered operation -> key of the route."""

_UNTRACED = "without a trace (enableTrace) an agent does not tell what its models used"

_NAMED = ("inference-profile/", "foundation-model/")
"""Kinds of ARN that end with the id of a model."""


class _Url(NamedTuple):
    scheme: str
    host: str
    port: int | None


class Seam:
    """Wrappers for one provider's row."""

    def __init__(self, row: Provider) -> None:
        self._row = row
        self._calls = Calls(row)

    def patch_module(self, module: Any) -> list[Patch]:
        """Patch the base of all clients; a version without it degrades to one warning."""
        try:
            if hasattr(module, "AioBaseClient"):
                owner, call = module.AioBaseClient, self._acall
            else:
                owner, call = module.BaseClient, self._call
            self._calls.others.front = lambda: self._look(owner)
            return applied([(owner, "_make_api_call", call), *_closing(), *self._tries(owner)])
        except Exception as failure:  # an unknown future version: the user's program goes on unmetered, and is told so
            swallow(f"integrations.{self._row.name}.patch", failure)
            return []

    def patch_client(self, client: Any) -> list[Patch]:
        """Patch one client object only."""
        is_async = any(kind.__name__ == "AioBaseClient" for kind in type(client).__mro__)
        call = self._acall if is_async else self._call
        return applied([(client, "_make_api_call", call), *_closing(), *self._tries(client)])

    def _tries(self, owner: Any) -> list[tuple[Any, str, Callable[..., Any]]]:
        """Of a client, or of all: where its endpoint makes one try. Where that is not known, a call is one hold."""
        try:
            is_async = hasattr(owner, "__aexit__")
            if isinstance(owner, type):
                endpoint = sys.modules[f"{owner.__module__.partition('.')[0]}.endpoint"]
                owner = endpoint.AioEndpoint if is_async else endpoint.Endpoint
            else:
                owner = owner._endpoint
            wanted = (owner, "_get_response", _aonce if is_async else _once)
            return [wanted] if callable(owner._get_response) else []
        except Exception as failure:  # an unknown version: what it tries again is not held for
            swallow(f"integrations.{self._row.name}.tries", failure)
            return []

    def _look(self, owner: Any) -> list[Patch]:
        """While somebody else is there: whoever wrapped `_make_api_call` before us begins a span inside of ours, around `_make_request`."""
        if not self._calls.others.any:
            return []
        return [Patch(owner, "_make_request", _amade if owner.__name__ == "AioBaseClient" else _made)]

    # --- the two colours of the last thin layer ---------------------------------------------------------------------------

    def _call(self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operations = _SERVICES.get(client._service_model.service_name)
        if operations is None:
            return wrapped(*args, **kwargs)
        opened = guarded("botocore.begin", self._begin, operations, client, args, kwargs)
        args, kwargs = _instead(opened, args, kwargs)
        return called(opened, wrapped, args, kwargs, _read, _refused)

    async def _acall(
        self, wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        operations = _SERVICES.get(client._service_model.service_name)
        if operations is None:
            return await wrapped(*args, **kwargs)
        opened = await aguarded("botocore.begin", self._begin, operations, client, args, kwargs)
        args, kwargs = _instead(opened, args, kwargs)
        return await acalled(opened, wrapped, args, kwargs, _read, _refused)

    # --- begin --------------------------------------------------------------------------------------------------------

    def _begin(
        self, operations: Mapping[str, str], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Opened | None:
        operation = args[0] if args else kwargs["operation_name"]
        key = operations.get(operation)
        if key is None:
            return None
        params = args[1] if len(args) > 1 else kwargs["api_params"]
        model = _model(params.get("modelId"))
        if key == "InvokeModel" and "embed" in model:
            key = "InvokeModel embed"
        route = self._row.routes[key]
        tier = params.get("serviceTier")
        opened = self._calls.open(
            client,
            _url(client.meta.endpoint_url),
            key,
            route,
            _body(params) if key.startswith("InvokeModel") else params,
            stream=operation.endswith("Stream") or route.traced,
            model=model or _named(params, route),
            region=client.meta.region_name or "",
            tier=str((tier.get("type") if isinstance(tier, dict) else tier) or ""),
            how=_CONVERSE if key.startswith("Converse") else _INVOKE if key == "InvokeModel" else _OTHER,
        )
        if opened is not None and opened.invocation.call.sent:
            opened.options = changed(opened, _changed, params, key.startswith("InvokeModel"))
        return opened


_CONVERSE = How("modelId")
_INVOKE = How(ADDRESS, form=amazon.form_of)
_OTHER = How("modelId", cuts=False, given=True)


def _changed(sent: Mapping[str, Any], params: Mapping[str, Any], in_body: bool) -> dict[str, Any]:
    """The parameters that a budget has room for: other ones, or another body, which is in its maker's own words."""
    if not in_body:
        return rewritten(params, sent)
    made = dict(params)
    if ADDRESS in sent:
        made["modelId"] = sent[ADDRESS]
    if sent.keys() - {ADDRESS}:
        made["body"] = json.dumps(rewritten(json.loads(params["body"]), sent))
    return made


def _instead(opened: Opened | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if opened is None or opened.options is None:
        return args, kwargs
    if len(args) > 1:
        return (args[0], opened.options, *args[2:]), kwargs
    return args, {**kwargs, "api_params": opened.options}


def _made(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    guarded("botocore.look", look_again)
    return wrapped(*args, **kwargs)


async def _amade(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    guarded("botocore.look", look_again)
    return await wrapped(*args, **kwargs)


# --- the tries inside of one call ----------------------------------------------------------------------------------------


def _once(wrapped: Callable[..., Any], endpoint: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _is_ours(args, kwargs):
        return wrapped(*args, **kwargs)
    hold_again("botocore.again", refused=_refused)
    result = wrapped(*args, **kwargs)
    guarded("botocore.tried", _note, result)
    return result


async def _aonce(wrapped: Callable[..., Any], endpoint: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _is_ours(args, kwargs):
        return await wrapped(*args, **kwargs)
    await ahold_again("botocore.again", refused=_refused)
    result = await wrapped(*args, **kwargs)
    guarded("botocore.tried", _note, result)
    return result


def _is_ours(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a request is of the call in flight: the library asks other services for credentials meanwhile."""
    model = args[1] if len(args) > 1 else kwargs.get("operation_model")
    service = getattr(getattr(model, "service_model", None), "service_name", "")
    return getattr(model, "name", "") in _SERVICES.get(service, ())


def _note(result: Any) -> None:
    note(result[1])


def _model(given: Any) -> str:
    """The id of a model, out of the ARN of one or of an inference profile; what is opaque stays whole."""
    text = given if isinstance(given, str) else ""
    if text.startswith("arn:") and any(f":{kind}" in text for kind in _NAMED):
        return text.rpartition("/")[2]
    return text


def _named(params: Mapping[str, Any], route: Route) -> str:
    """What is asked for in a request that has no id of a model."""
    found = (dig(params, tuple(path.split("."))) for path in route.named)
    return _model(next(filter(None, found), "")) or route.model.partition("=")[2]


def _body(params: Mapping[str, Any]) -> dict[str, Any]:
    """The maker's request; empty for one that is a file, which only the library may read."""
    sent = params.get("body")
    try:
        found = json.loads(sent) if isinstance(sent, (str, bytes, bytearray)) else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _url(text: str) -> _Url:
    found = urlsplit(text)
    return _Url(found.scheme, found.hostname or "", found.port)


# --- the end of a call -----------------------------------------------------------------------------------------------


def _refused(error: BaseException) -> bool:
    """With proof: an error status, or a failure before anything was sent."""
    answer = getattr(error, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    if isinstance(status, int):
        return status >= 400
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"}:
        return True
    # https://github.com/boto/botocore/blob/develop/botocore/exceptions.py: all others are about settings, credentials and arguments.
    return "BotoCoreError" in kinds and not kinds & {"HTTPClientError", "IncompleteReadError"}


def _read(opened: Opened, answer: dict[str, Any]) -> None:
    body = next((answer[name] for name in ("stream", "body", "completion") if name in answer), None)
    if hasattr(body, "_event_generator"):
        _Messages(opened, answer).watch(body)
    elif hasattr(body, "_raw_stream"):
        _Whole(opened, answer).watch(body)
    elif body is None:
        settle_body(opened, answer)
    else:  # a body of a version that cannot be seen
        opened.invocation.settle(amazon.beside(None, _told(answer), opened.reader) or Reading())


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    """What an answer tells beside its body, in the words of Converse. It is copied, since the answer is the user's."""
    about = answer.get("ResponseMetadata") or {}
    return amazon.told_of(
        about.get("HTTPHeaders") or {},
        request_id=about.get("RequestId"),
        tier=answer.get("serviceTier"),
        latency=answer.get("performanceConfigLatency"),
    )


class _Whole(Passing):
    """A body of InvokeModel, seen while the user reads it."""

    def __init__(self, opened: Opened, answer: dict[str, Any]) -> None:
        self._told = _told(answer)  # first: what `super` makes is waited for
        super().__init__(opened)
        length = (answer.get("ResponseMetadata") or {}).get("HTTPHeaders", {}).get("content-length", "")
        self._length = int(length) if str(length).isdecimal() else None

    def watch(self, body: Any) -> None:
        """Attributes of what the bytes come from, so that every way of reading passes here and no class is another."""
        owner: Any
        wrap: dict[str, Callable[..., Any]]
        names: tuple[str, ...]
        if hasattr(body, "__aenter__"):
            owner, names = (
                body,
                ("read", "readinto", "close", "aclose"),
            )  # the transport's own object differs by version
            wrap = {"read": self._aread, "readinto": self._areadinto}
        else:
            owner, names = body._raw_stream, ("read", "read1", "read_chunked", "close")
            wrap = {"read": self._read_some, "read1": self._read_some, "read_chunked": self._chunks}
        ref = weakref.ref(owner)
        for name in names:
            method = getattr(type(owner), name, None)
            if method is not None:
                setattr(owner, name, _Bound(ref, method, wrap.get(name, self._close)))
        weakref.finalize(owner, guarded, "lost", self.lost).atexit = False

    def _read_some(self, method: Callable[..., bytes], *args: Any, **kwargs: Any) -> bytes:
        chunk = method(*args, **kwargs)
        guarded("keep", self._seen, chunk, args[1] if len(args) > 1 else kwargs.get("amt"))
        return chunk

    def _chunks(self, method: Callable[..., Iterator[bytes]], *args: Any, **kwargs: Any) -> Iterator[bytes]:
        for chunk in method(*args, **kwargs):
            guarded("keep", self._seen, chunk, len(chunk))
            yield chunk
        guarded("finish", self.finish)

    async def _aread(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> bytes:
        chunk: bytes = await method(*args, **kwargs)
        guarded("keep", self._seen, chunk, args[1] if len(args) > 1 else kwargs.get("amt"))
        return chunk

    async def _areadinto(self, method: Callable[..., Any], body: Any, into: Any) -> int:
        size: int = await method(body, into)
        guarded("keep", self._seen, bytes(into[:size]), len(into))
        return size

    def _close(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        finally:
            guarded("finish", self.finish)

    def _seen(self, chunk: bytes, asked: int | None) -> None:
        if self.done:
            return
        self.pack(chunk)
        if asked is None or asked < 0 or (asked and not chunk) or (self._length or sys.maxsize) <= self.size:
            self.finish()

    def _read(self, reader: Reader) -> tuple[Reading | None, StreamText, Any]:
        try:
            body = json.loads(b"".join(self.kept))
        except ValueError:  # not read to its end, or an image
            body = None
        self.kept.clear()
        reading, came = amazon.read_whole(body, self._told, reader), StreamText()
        if reading is None and body is not None:
            came.text = reader.text(body)
        came.finished = True
        return reading, came, self._told


class _Bound:
    """A method of one object that calls `seen` with the original; it does not keep the object alive."""

    __slots__ = ("_method", "_ref", "_seen")

    def __init__(self, ref: weakref.ref[Any], method: Callable[..., Any], seen: Callable[..., Any]) -> None:
        self._ref, self._method, self._seen = ref, method, seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._seen(self._method, self._ref(), *args, **kwargs)


class _Messages(PassingEvents):
    """The messages of an event stream."""

    def __init__(self, opened: Opened, answer: dict[str, Any]) -> None:
        self._told = _told(answer)  # first: what `super` makes is waited for
        super().__init__(opened)

    def watch(self, stream: Any) -> None:
        """Put ourselves between where the stream cuts its bytes into messages and where it parses them."""
        source = stream._event_generator
        stream._event_generator = (apassed if hasattr(source, "__anext__") else passed)(self, source)
        stream._aifinops = self
        self.close = partial(_shut, weakref.ref(stream))
        weakref.finalize(stream, guarded, "lost", self.lost).atexit = False

    def part(self, event: Any, reader: Reader) -> tuple[Reading | None, StreamText]:
        """What one message tells."""
        return amazon.read_stream([(event.headers.get(":event-type", ""), event.payload)], {}, reader)

    def look(self, message: Any) -> None:
        """A message that is no event: the library raises what it says."""
        if message.headers.get(":message-type") != "event":
            self.finish()

    def _read(self, reader: Reader) -> tuple[Reading | None, StreamText, Any]:
        frames = [(message.headers.get(":event-type", ""), message.payload) for message in self.events]
        self.events.clear()
        if reader.route.traced:
            return self._traced([amazon.decoded(*frame) for frame in frames], reader)
        reading, came = amazon.read_stream(frames, self._told, reader)
        came.finished = came.finished or self.ended
        return reading, came, self._told

    def _traced(self, events: list[Any], reader: Reader) -> tuple[Reading | None, StreamText, Any]:
        """What an agent's trace tells of each call of a model; without it nobody knows how many there were."""
        came = StreamText()
        invocations = _invocations(events)
        came.finished = self.ended or not invocations
        reading = reader.tolerant({"invocations": invocations, "id": self._told["ResponseMetadata"]["RequestId"]})
        return reading or Reading(notes=(_UNTRACED,)), came, self._told


def _invocations(events: list[Any]) -> list[dict[str, Any]]:
    """The calls of models in the trace of an agent: each says its model when it begins and its usage when it ends."""
    models: dict[str, str] = {}
    found = []
    for event in events:
        for step in (dig(event, ("trace", "trace")) or {}).values():
            asked, told = dig(step, ("modelInvocationInput",)), dig(step, ("modelInvocationOutput",))
            if asked:
                models[asked.get("traceId")] = _model(asked.get("foundationModel"))
            usage = dig(told, ("metadata", "usage"))
            if usage:
                found.append({"model": models.get(told.get("traceId"), ""), "usage": usage})
    return found


def _shut(ref: weakref.ref[Any]) -> None:
    stream = ref()
    if stream is not None:
        stream.close()


def _closing() -> list[tuple[Any, str, Callable[..., Any]]]:
    """`close()` of an event stream is its end; where the library is not there to be patched, dropping it is."""
    module = sys.modules.get("botocore.eventstream")
    return [] if module is None else [(module.EventStream, "close", _close)]


def _close(wrapped: Callable[..., Any], stream: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return wrapped(*args, **kwargs)
    finally:
        passing = getattr(stream, "_aifinops", None)
        if passing is not None:
            guarded("finish", passing.finish)
