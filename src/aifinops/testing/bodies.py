"""Answers of the OpenAI API, true to the SDK's types: chat completions, responses, completions, embeddings, models.

Pure: a request (a parsed JSON object) goes in, an `Answer` comes out, and nothing here touches a socket. Every field
that the SDK's types require is there, and the ones that a real answer always has.

The shapes follow https://platform.openai.com/docs/api-reference (July 2026).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from typing import Any

from aifinops.clock import Clock, SystemClock
from aifinops.testing.counting import BadRequest, Hints, Output, Prompt, PromptCache, measure, plan, value_for, words

__all__ = ["MODELS", "Answer", "Bodies", "error_body", "sse"]

Json = dict[str, Any]

MODELS = ("gpt-5", "gpt-5-mini", "gpt-4o", "gpt-4o-mini", "gpt-4.1-mini", "o4-mini", "text-embedding-3-small")
"""What `GET /v1/models` lists; any other name is served as well."""

DONE = b"data: [DONE]\n\n"

_VOCABULARY = ["we", "have", "checked", "your", "order", "and", "the", "parcel", "will", "arrive", "on", "time"]
_PIECE = re.compile(r"\S+\s*|\s+")
_dumps = json.JSONEncoder(separators=(",", ":")).encode


def sse(event: Mapping[str, Any]) -> bytes:
    """One server-sent event; with an `event:` line where the API names it (responses), without elsewhere (chat)."""
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {_dumps(event)}\n\n".encode()


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> Json:
    """The body of a refused request."""
    kind = {401: "authentication_error", 429: "rate_limit_exceeded"}.get(status)
    kind = kind or ("server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request gets, and what it is billed.

    Attributes:
        endpoint: `chat`, `responses`, `completions` or `embeddings`.
        model: as asked. id: the response id, empty where the API has none (embeddings).
        usage: the provider's usage object of this endpoint, as it is in the body (or would be: a chat stream without
            `stream_options.include_usage` does not show it).
        body: the JSON body, for a plain answer.
        events: makes the encoded server-sent events, for a stream; None for a plain answer.
    """

    endpoint: str
    model: str
    id: str
    usage: Json
    body: Json
    events: Callable[[], Iterator[bytes]] | None = None


@dataclass(frozen=True, slots=True)
class _Reply:
    """The content of one answer before it gets a shape: a text, or the call of a tool, already cut to its length."""

    text: str
    output: Output
    tool: str | None = None
    call_id: str = ""

    @property
    def pieces(self) -> list[str]:
        return _PIECE.findall(self.text)


@dataclass(slots=True)
class Bodies:
    """Makes the answers of one fake provider.

    Attributes:
        words: how many words an answer has when nobody asks for a length.
        cache: the prompt cache.
        clock: gives `created`.
    """

    words: int = 16
    cache: PromptCache = field(default_factory=lambda: PromptCache(64))
    clock: Clock = field(default_factory=SystemClock)
    _serial: Iterator[int] = field(default_factory=lambda: count(1))
    _prefix: str = field(default_factory=lambda: os.urandom(6).hex())

    def chat(self, request: Json, hints: Hints) -> Answer:
        """`POST /v1/chat/completions`."""
        model = _required(request, "model", str)
        messages = _required(request, "messages", list)
        prompt = measure(model, messages, request.get("tools"), self.cache, hints)
        chat_format = request.get("response_format") or {}
        reply = self._reply(request, _wants_tool(request, messages), chat_format, chat_format.get("json_schema"), hints)
        choices = _choices(request)
        usage = _chat_usage(prompt, reply.output, choices)
        head = self._head("chatcmpl", "chat.completion", request)
        body = {**head, "choices": [_chat_choice(index, reply) for index in range(choices)], "usage": usage}
        return Answer("chat", model, head["id"], usage, body, self._chat_stream(request, head, usage, reply, choices))

    def _chat_stream(
        self, request: Json, head: Json, usage: Json, reply: _Reply, choices: int
    ) -> Callable[[], Iterator[bytes]] | None:
        if not request.get("stream"):
            return None
        head = {**head, "object": "chat.completion.chunk"}
        shown = usage if (request.get("stream_options") or {}).get("include_usage") else None

        def chunk(index: int, delta: Json, finish: str | None = None) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            # A provider that will send usage at the end says `usage: null` in every chunk before.
            return sse({**head, "choices": [choice], **({"usage": None} if shown else {})})

        def events() -> Iterator[bytes]:
            for index in range(choices):
                for delta in _chat_deltas(reply):
                    yield chunk(index, delta)
                yield chunk(index, {}, _finish(reply))
            if shown:
                yield sse({**head, "choices": [], "usage": shown})
            yield DONE

        return events

    def responses(self, request: Json, hints: Hints) -> Answer:
        """`POST /v1/responses`."""
        model = _required(request, "model", str)
        items = _input_items(request)
        prompt = measure(model, items, request.get("tools"), self.cache, hints)
        text_format = (request.get("text") or {}).get("format") or {}
        reply = self._reply(request, _wants_tool(request, items), text_format, text_format, hints)
        body = self._response(request, prompt, reply)
        events = (lambda: _response_events(body, reply)) if request.get("stream") else None
        return Answer("responses", model, body["id"], body["usage"], body, events)

    def completions(self, request: Json, hints: Hints) -> Answer:
        """`POST /v1/completions` (legacy)."""
        model = _required(request, "model", str)
        prompts = _texts(request.get("prompt", ""))
        tokens = sum(map(_tokens_of, prompts)) if hints.input_tokens is None else hints.input_tokens
        # The legacy endpoint has no reasoning models; its cap is `max_tokens`, 16 when absent.
        output = plan({**request, "model": "", "max_tokens": request.get("max_tokens") or 16}, self.words, hints)
        reply = _Reply(_prose(output.visible), output)
        choices = _choices(request) * len(prompts)
        usage = _legacy_usage(tokens, output.tokens * choices)
        head = self._head("cmpl", "text_completion", request)
        body = {
            **head,
            "choices": [_legacy_choice(index, reply.text, reply) for index in range(choices)],
            "usage": usage,
        }
        events = None
        if request.get("stream"):
            shown = usage if (request.get("stream_options") or {}).get("include_usage") else None
            events = lambda: _legacy_events(head, reply, choices, shown)  # noqa: E731 - a closure, as in the others
        return Answer("completions", model, head["id"], usage, body, events)

    def embeddings(self, request: Json, hints: Hints) -> Answer:
        """`POST /v1/embeddings`; the vectors are unit length and depend on the text alone."""
        model = _required(request, "model", str)
        inputs = _texts(request.get("input"))
        if not any(map(_tokens_of, inputs)):
            raise BadRequest("'input' must not be empty.", param="input")
        tokens = sum(map(_tokens_of, inputs)) if hints.input_tokens is None else hints.input_tokens
        size = int(request.get("dimensions") or (3072 if "large" in model else 1536))
        encode: Callable[[Sequence[float]], Any] = _base64 if request.get("encoding_format") == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": encode(_vector(item, size))}
            for index, item in enumerate(inputs)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Answer("embeddings", model, "", usage, {"object": "list", "data": data, "model": model, "usage": usage})

    def models(self) -> Json:
        """`GET /v1/models`."""
        return {"object": "list", "data": [self.model(name) for name in MODELS]}

    def model(self, name: str) -> Json:
        """`GET /v1/models/{name}`."""
        return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "aifinops-fake"}

    def _reply(self, request: Json, tool: Json | None, wanted: Json, schema: Json | None, hints: Hints) -> _Reply:
        if tool is not None:
            function = tool.get("function", tool)
            text = json.dumps(value_for(function.get("parameters") or {"type": "object"}))
            output = plan(request, 1 + words(text), hints)
            return _Reply(_cut(text, output), output, str(function.get("name")), self._id("call"))
        if wanted.get("type") in ("json_schema", "json_object"):
            default: Json = {"type": "object", "properties": {"answer": {"type": "string"}}}
            text = json.dumps(value_for((schema or {}).get("schema") or default))
            output = plan(request, words(text), hints)
            return _Reply(_cut(text, output), output)
        output = plan(request, self.words, hints)
        return _Reply(_prose(output.visible), output)

    def _response(self, request: Json, prompt: Prompt, reply: _Reply) -> Json:
        output: list[Json] = []
        if reply.output.reasoning:
            output.append({"id": self._id("rs"), "type": "reasoning", "summary": []})
        status = "incomplete" if reply.output.capped else "completed"
        if reply.tool is not None:
            call = {"type": "function_call", "call_id": reply.call_id, "name": reply.tool, "arguments": reply.text}
            output.append({"id": self._id("fc"), "status": status, **call})
        elif reply.text:
            part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
            message = {"type": "message", "role": "assistant", "status": status, "content": [part]}
            output.append({"id": self._id("msg"), **message})
        return {
            "id": self._id("resp"),
            "object": "response",
            "created_at": self._created(),
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if reply.output.capped else None,
            "model": request["model"],
            "output": output,
            "usage": _response_usage(prompt, reply.output),
            "service_tier": _tier(request),
            **{name: request.get(name, default) for name, default in _ECHOED.items()},
        }

    def _head(self, prefix: str, kind: str, request: Json) -> Json:
        head = {"id": self._id(prefix), "object": kind, "created": self._created(), "model": request["model"]}
        if prefix == "chatcmpl":
            head["service_tier"] = _tier(request)
        head["system_fingerprint"] = "fp_fake"
        return head

    def _id(self, prefix: str) -> str:
        # Random per instance and counted within: unique over processes too, since a ledger may be shared by them.
        return f"{prefix}{'-' if 'cmpl' in prefix else '_'}{self._prefix}{next(self._serial):08d}"

    def _created(self) -> int:
        return self.clock.time_ns() // 1_000_000_000


_ECHOED: Json = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def _required(request: Json, name: str, *kinds: type) -> Any:
    value = request.get(name)
    if value is None:
        raise BadRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(value, kinds) or not value:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise BadRequest(f"Invalid '{name}': expected {wanted} that is not empty, got {repr(value)[:40]}.", param=name)
    return value


_MOST_CHOICES = 128


def _choices(request: Json) -> int:
    value = request.get("n") or 1
    if not isinstance(value, int) or not 1 <= value <= _MOST_CHOICES:
        raise BadRequest(f"Invalid 'n': expected 1 to 128, got {value!r}.", param="n")
    return int(value)


def _tier(request: Json) -> str:
    tier = request.get("service_tier")
    return str(tier) if tier and tier != "auto" else "default"


def _input_items(request: Json) -> list[object]:
    given = _required(request, "input", str, list)
    items: list[object] = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    if request.get("instructions"):
        items.insert(0, {"role": "system", "content": request["instructions"]})
    return items


def _wants_tool(request: Json, messages: Sequence[object]) -> Json | None:
    """The tool that is called: the one demanded, else the first, unless the last message is a tool's result."""
    choice = request.get("tool_choice") or "auto"
    tools = [tool for tool in request.get("tools") or () if tool.get("type") == "function"]
    if not tools or choice == "none":
        return None
    if isinstance(choice, Mapping):
        name = choice.get("function", choice).get("name")
        return next((tool for tool in tools if tool.get("function", tool).get("name") == name), None)
    last = messages[-1]
    done = isinstance(last, Mapping) and (last.get("role") == "tool" or last.get("type") == "function_call_output")
    return None if done and choice == "auto" else tools[0]


def _texts(given: object) -> list[object]:
    """One text, several, one list of token ids, or several: always as a list of items."""
    if isinstance(given, list) and given and isinstance(given[0], (str, list)):
        return given
    if isinstance(given, (str, list)):
        return [given]
    raise BadRequest("'input' or 'prompt' must be a text, a list of texts or a list of token ids.", param="input")


def _tokens_of(item: object) -> int:
    return words(item) if isinstance(item, str) else len(item) if isinstance(item, list) else 0


def _prose(length: int) -> str:
    vocabulary = _VOCABULARY
    return " ".join((vocabulary * (length // len(vocabulary) + 1))[:length])


def _cut(text: str, output: Output) -> str:
    return "".join(_PIECE.findall(text)[: output.visible]) if output.capped else text


def _finish(reply: _Reply) -> str:
    if reply.output.capped:
        return "length"
    return "stop" if reply.tool is None else "tool_calls"


def _chat_usage(prompt: Prompt, output: Output, choices: int) -> Json:
    produced = output.tokens * choices
    return {
        "prompt_tokens": prompt.tokens,
        "completion_tokens": produced,
        "total_tokens": prompt.tokens + produced,
        "prompt_tokens_details": {"cached_tokens": prompt.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": output.reasoning * choices,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _legacy_usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _response_usage(prompt: Prompt, output: Output) -> Json:
    return {
        "input_tokens": prompt.tokens,
        "input_tokens_details": {"cached_tokens": prompt.cached, "cache_write_tokens": 0},
        "output_tokens": output.tokens,
        "output_tokens_details": {"reasoning_tokens": output.reasoning},
        "total_tokens": prompt.tokens + output.tokens,
    }


def _chat_choice(index: int, reply: _Reply) -> Json:
    message: Json = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
    if reply.tool is not None:
        function = {"name": reply.tool, "arguments": reply.text}
        message |= {"content": None, "tool_calls": [{"id": reply.call_id, "type": "function", "function": function}]}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": _finish(reply)}


def _chat_deltas(reply: _Reply) -> Iterator[Json]:
    if reply.tool is None:
        yield {"role": "assistant", "content": "", "refusal": None}
        for piece in reply.pieces:
            yield {"content": piece}
        return
    function = {"name": reply.tool, "arguments": ""}
    call = {"index": 0, "id": reply.call_id, "type": "function", "function": function}
    yield {"role": "assistant", "content": None, "tool_calls": [call]}
    for piece in reply.pieces:
        yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def _legacy_choice(index: int, text: str, reply: _Reply | None) -> Json:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": None if reply is None else _finish(reply)}


def _legacy_events(head: Json, reply: _Reply, choices: int, usage: Json | None) -> Iterator[bytes]:
    for index in range(choices):
        for piece in reply.pieces:
            yield sse({**head, "choices": [_legacy_choice(index, piece, None)]})
        yield sse({**head, "choices": [_legacy_choice(index, "", reply)]})
    if usage:
        yield sse({**head, "choices": [], "usage": usage})
    yield DONE


def _response_events(body: Json, reply: _Reply) -> Iterator[bytes]:
    numbers = count()

    def event(kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, "sequence_number": next(numbers), **fields})

    begun = {**body, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(body["output"]):
        yield event("response.output_item.added", output_index=index, item=_begun_item(item))
        for kind, fields in _item_events(item, reply):
            yield event(kind, item_id=item["id"], output_index=index, **fields)
        yield event("response.output_item.done", output_index=index, item=item)
    yield event(f"response.{body['status']}", response=body)


def _begun_item(item: Json) -> Json:
    kinds: dict[str, Json] = {"message": {"content": []}, "function_call": {"arguments": ""}}
    empty = kinds.get(item["type"])
    return {**item, "status": "in_progress", **empty} if empty else item


def _item_events(item: Json, reply: _Reply) -> Iterator[tuple[str, Json]]:
    if item["type"] == "function_call":
        for piece in reply.pieces:
            yield "response.function_call_arguments.delta", {"delta": piece}
        yield "response.function_call_arguments.done", {"arguments": reply.text, "name": reply.tool}
    elif item["type"] == "message":
        part = item["content"][0]
        yield "response.content_part.added", {"content_index": 0, "part": {**part, "text": ""}}
        for piece in reply.pieces:
            yield "response.output_text.delta", {"content_index": 0, "delta": piece, "logprobs": []}
        yield "response.output_text.done", {"content_index": 0, "text": reply.text, "logprobs": []}
        yield "response.content_part.done", {"content_index": 0, "part": part}


def _vector(item: object, size: int) -> list[float]:
    seed = hashlib.sha256(repr(item).encode()).digest()
    short = [byte - 127.5 for byte in seed]
    vector = (short * (size // len(short) + 1))[:size]
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def _base64(vector: Sequence[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
