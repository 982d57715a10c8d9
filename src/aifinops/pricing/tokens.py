"""How many tokens a request has, before it is sent: a bound that holds, and the number to expect.

Nothing here ever touches the network or raises: a count that cannot be had is None, a bound that cannot be had is `UNBOUNDED`.
The formulas of pictures and sounds are in `media`, the tokenizers' files in `encodings`, what was learned from earlier calls in `learned`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, NamedTuple

from aifinops.pricing.sheet import UNBOUNDED

__all__ = ["UNBOUNDED", "PromptEstimate", "count_tokens", "prompt_estimate", "text_upper_bound"]

_NOT_SHOWN = frozenset(
    {
        "model", "messages", "max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "top_p", "top_k", "n",
        "stream", "stream_options", "stop", "stop_sequences", "seed", "user", "metadata", "store", "service_tier", "logit_bias",
        "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "parallel_tool_calls", "safety_identifier",
        "prompt_cache_key", "prompt_cache_retention", "truncation", "background", "include", "modalities", "verbosity",
        "reasoning_effort", "dimensions", "encoding_format", "timeout", "extra_headers", "extra_query",
    }
)  # fmt: skip
"""Fields that are no prompt (`messages` is counted by itself). Whatever else a body has is counted: a new field may be prompt."""

_ELSEWHERE = frozenset(
    {
        "previous_response_id", "conversation", "conversation_id", "web_search_options", "search_parameters", "cached_content",
        "cachedContent", "mcp_servers", "data_sources", "connectors", "plugins", "agent_id", "assistant_id", "thread_id",
    }
)  # fmt: skip
"""Fields that bring in a prompt which the body does not contain."""

_AS_JSON = frozenset({"tools", "functions", "response_format", "text", "toolConfig", "generationConfig"})
"""Fields that a provider writes out for the model: quotes and letters beyond ASCII may be escaped there, which makes them longer."""

_OWN_TOOLS = frozenset({"function", "custom"})
"""Tools that the caller runs. Any other runs at the provider, and what it finds becomes prompt."""

_OWN_TOOL_KEYS = frozenset({"functionDeclarations", "function_declarations", "toolSpec", "cachePoint"})
"""What the tools of Gemini and Bedrock Converse, which have no type and no name, may hold when the caller runs them."""

_OVERHEAD = 8
"""Tokens of structure for each object. OpenAI's chat format takes 3 for a message, 1 for a name, 3 to prime the answer."""

_FIELD = 64
"""Tokens of structure for each field: headings around tools, schemas and formats, and whatever a model is told by itself."""

_TOOL_PROMPT = 800
"""Tokens that a maker other than OpenAI may add when there are tools. Anthropic documents 159 to 530 by model and up to 735 more."""

_PLAIN = frozenset({"text", "input_text", "output_text"})
_IMAGES = frozenset({"image_url", "input_image", "image", "computer_screenshot"})
_FILES = frozenset(
    {"file", "input_file", "input_video", "video_url", "audio_url", "document_url", "video", "item_reference"}
)
_REFERENCES = ("file_id", "file_url", "file_data", "video_url", "audio_url", "document_url", "fileUri", "file_uri")

_MAX_TEXT = 1_000_000
"""Characters that are tokenized at most: a byte-pair encoder is slow on very long text, and this runs before a call."""


# A bound --------------------------------------------------------------------------------------------------------------


def text_upper_bound(body: Mapping[str, Any], *, model: str = "") -> int:
    """A number of prompt tokens that this request cannot exceed, for any byte-level tokenizer.

    A token stands for at least one byte, so the UTF-8 length bounds text, taken after NFKC where that is longer (some tokenizers
    normalise); tools and schemas count as they are written in JSON, and each object and field adds some for structure. Pictures and
    sounds add what `media` says they count as at most. What the body only points to (an earlier response, a stored prompt, a file,
    what a tool of the provider will find) makes it `UNBOUNDED`.

    Args:
        body: the JSON body of a request to OpenAI (chat, responses, completions, embeddings), Anthropic, Gemini, Bedrock or a
            server that speaks like one of them, as Python objects.
        model: decides about pictures and sounds where the body has no `model`.
    """
    if _points_elsewhere(body):
        return UNBOUNDED
    if not model:
        named = body.get("model")
        model = named if type(named) is str else ""
    total = _FIELD
    messages = body.get("messages")
    if messages is not None:
        total += _bound(messages, model, _utf8) + _FIELD
    for key, value in body.items():
        if key not in _NOT_SHOWN and value is not None:
            total += _bound(value, model, _escaped if key in _AS_JSON else _utf8) + _FIELD
    if "tools" in body or "toolConfig" in body:
        total += 0 if model.startswith(("gpt-", "o1", "o3", "o4")) else _TOOL_PROMPT
    return min(total, UNBOUNDED)


def _points_elsewhere(body: Mapping[str, Any]) -> bool:
    if not _ELSEWHERE.isdisjoint(body) and any(body.get(key) for key in _ELSEWHERE):
        return True
    if "tools" in body or "toolConfig" in body:
        for holder in (body, body.get("toolConfig")):
            tools = holder.get("tools") if isinstance(holder, Mapping) else None
            if isinstance(tools, (list, tuple)) and any(
                isinstance(tool, Mapping) and _is_hosted(tool) for tool in tools
            ):
                return True
    return "prompt" in body and isinstance(body["prompt"], Mapping)


def _is_hosted(tool: Mapping[str, Any]) -> bool:
    kind = tool.get("type")
    if kind is not None:
        return _word(kind) not in _OWN_TOOLS
    return not ("name" in tool or "function" in tool or _OWN_TOOL_KEYS.issuperset(tool))


def _word(value: Any) -> str:
    """A value that is to be looked up among words; what is no text (a schema may have any key) is none of them."""
    return value if type(value) is str else ""


def _bound(value: Any, model: str, length: Callable[[str], int]) -> int:
    """An iterative walk: request bodies nest as deeply as their author likes, Python's stack does not."""
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        kind = type(item)  # asked first: whether something is a Mapping of whatever kind takes ten times as long
        if kind is str or isinstance(item, str):
            total += length(item)
        elif kind is int or kind is float:
            total += len(repr(item)) + 2
        elif kind is dict or isinstance(item, Mapping):
            counted = _message(item, length)
            if counted is None:
                counted = _attached(item, model)
            if counted is None:
                total += _OVERHEAD + _keys(item, length)
                todo += item.values()
            else:
                total += counted
        elif isinstance(item, (list, tuple)):
            total += _sequence(item, todo)
        elif isinstance(item, (int, float)):
            total += len(repr(item)) + 2
        elif item is not None:
            # A pydantic model, a generator, a file: what it will become is not known here.
            total += _object(item, todo)
    return total


def _utf8(text: str) -> int:
    # ASCII is the common case, and for it the length is known without encoding. Lone surrogates are sent as "?".
    if text.isascii():
        return len(text) + 4
    size = len(text.encode("utf-8", "replace"))
    if not unicodedata.is_normalized("NFKC", text):
        size = max(size, len(unicodedata.normalize("NFKC", text).encode("utf-8", "replace")))
    return size + 4


def _escaped(text: str) -> int:
    return len(encode_basestring_ascii(text)) + 4


def _keys(item: Mapping[Any, Any], length: Callable[[str], int]) -> int:
    return sum(length(str(key)) for key in item)


def _sequence(items: list[Any] | tuple[Any, ...], todo: list[Any]) -> int:
    if items and type(items[0]) is int and all(type(item) is int for item in items):
        return len(items)  # a prompt given as token ids
    todo += items
    return 2 * len(items)


def _object(item: Any, todo: list[Any]) -> int:
    dump = getattr(item, "model_dump", None)
    if callable(dump):
        todo.append(dump())
        return 0
    return UNBOUNDED


_MESSAGE_KEYS = _keys({"role": "", "content": ""}, _utf8) + _OVERHEAD


def _message(item: Mapping[Any, Any], length: Callable[[str], int]) -> int | None:
    """The bound of a plain message or text part, what nearly all of a request is made of; None for anything else."""
    if len(item) == 2:
        content = item.get("content")
        if type(content) is str:
            role = item.get("role")
            return length(role) + length(content) + _MESSAGE_KEYS if type(role) is str else None
        text = item.get("text")
        if type(text) is str and _word(item.get("type")) in _PLAIN:
            return length(text) + _MESSAGE_KEYS
    return None


def _attached(part: Mapping[Any, Any], model: str) -> int | None:
    """The bound of a content part that is not text; None when its text has to be counted."""
    counted = _attachment(part, model)
    if counted is None:
        return None
    return UNBOUNDED if counted[1] is None else counted[1] + _OVERHEAD


Counted = tuple[int, int | None]
"""Tokens expected and at most, as `media.Counted`: that module is loaded for the first picture or sound, not for text."""

_ENDLESS: Counted = (0, None)


def _attachment(part: Mapping[Any, Any], model: str) -> Counted | None:
    """What a content part that is not text counts as; None when it is text, or holds others.

    Values must be text to count as a reference: in the schema of a tool, `image_url` and `file_id` may be names of parameters.
    """
    kind = _word(part.get("type"))
    link = part.get("image_url")
    if kind in _IMAGES or isinstance(link, str):
        return _picture(part, link, model)
    if kind == "input_audio":
        sound = part.get("input_audio")
        return _sound(sound.get("data"), sound.get("format"), model) if isinstance(sound, Mapping) else _ENDLESS
    for name in ("inline_data", "inlineData", "image", "document", "video", "audio"):
        inner = part.get(name)
        if isinstance(inner, Mapping):
            found = _enclosed(name, inner, part, model)
            if found is not None:
                return found
    if kind == "document":
        return _document(part)
    if kind in _FILES or any(isinstance(part.get(key), str) for key in _REFERENCES):
        return _ENDLESS
    return None


def _picture(part: Mapping[Any, Any], link: Any, model: str) -> Counted:
    """A picture as OpenAI (`image_url`), Anthropic and others (`source`) write it."""
    detail = part.get("detail")
    if isinstance(link, Mapping):
        detail, link = detail or link.get("detail"), link.get("url")
    source = part.get("source")
    if isinstance(source, Mapping):
        link = source.get("data")
    return _image(link, detail if isinstance(detail, str) else "", model)


def _enclosed(name: str, inner: Mapping[Any, Any], part: Mapping[Any, Any], model: str) -> Counted | None:
    """What Gemini and Bedrock put in an object of its own."""
    if name == "audio":  # an earlier answer of OpenAI's, by its id
        return _ENDLESS if isinstance(inner.get("id"), str) else None
    data = inner.get("data")
    if name in {"inline_data", "inlineData"} and isinstance(data, (str, bytes)):
        kind = str(inner.get("mime_type") or inner.get("mimeType") or "")
        if kind.startswith("image/"):
            level = part.get("media_resolution") or part.get("mediaResolution")
            level = level.get("level") if isinstance(level, Mapping) else level
            return _image(data, str(level or ""), model)
        return _sound(data, kind, model) if kind.startswith("audio/") else _ENDLESS
    source = inner.get("source")
    if isinstance(source, Mapping) and ("bytes" in source or "s3Location" in source):
        return _image(source.get("bytes"), "", model) if name == "image" else _ENDLESS
    return None


def _document(part: Mapping[Any, Any]) -> Counted | None:
    """Anthropic's documents: text is counted, pages and addresses cannot be."""
    source = part.get("source")
    return None if isinstance(source, Mapping) and _word(source.get("type")) in {"text", "content"} else _ENDLESS


def _image(data: Any, detail: str, model: str) -> Counted:
    from aifinops.pricing import media

    head = _head(data)
    return media.image_tokens(model, None if head is None else media.image_size(head[0]), detail)


def _sound(data: Any, kind: Any, model: str) -> Counted:
    from aifinops.pricing import media

    head = _head(data)
    return _ENDLESS if head is None else media.audio_tokens(model, *head, str(kind or ""))


def _head(data: Any) -> tuple[bytes, int] | None:
    if isinstance(data, bytes):
        return data[: 1 << 18], len(data)
    if not isinstance(data, str):
        return None
    from aifinops.pricing import media

    return media.inline(data)


# The number to expect -------------------------------------------------------------------------------------------------


class PromptEstimate(NamedTuple):
    """Prompt tokens to expect, and what they were told by: the model's tokenizer, earlier calls, or the length of the text."""

    tokens: int
    by: Literal["tokenizer", "learned", "length"]


_BYTES_PER_TOKEN = 4
"""English prose and code have about 4 bytes a token, and so have most other scripts in UTF-8."""

_PER_MESSAGE = 3
_PRIMING = 3
"""OpenAI, "How to count tokens with tiktoken": 3 tokens around each message, 3 to begin the answer."""


def prompt_estimate(
    body: Mapping[str, Any], *, model: str = "", share: float | None = None, bound: int | None = None
) -> PromptEstimate:
    """The prompt tokens to expect of a request. No bound: for that there is `text_upper_bound`.

    Args:
        body, model: as in `text_upper_bound`.
        share: what part of their bounds earlier calls of this kind had, as `learned.Learned` tells it; used without a tokenizer.
        bound: the bound of this request, where it is known already.
    """
    if not model:
        named = body.get("model")
        model = named if type(named) is str else ""
    texts, fixed = _visible(body, model)
    exact = count_all(texts, model)
    if exact is not None:
        return PromptEstimate(exact + fixed, "tokenizer")
    if share is not None:
        most = text_upper_bound(body, model=model) if bound is None else bound
        if most < UNBOUNDED:
            return PromptEstimate(max(1, round(most * share)), "learned")
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return PromptEstimate(-(-size // _BYTES_PER_TOKEN) + fixed, "length")


def _visible(body: Mapping[str, Any], model: str) -> tuple[list[str], int]:
    """The texts that a model is shown, and the tokens of everything else: structure, pictures, sounds."""
    texts: list[str] = []
    around = _PER_MESSAGE if "gemini" not in model else 0  # Gemini counts what is said and nothing around it
    fixed = count = 0
    system = False
    for item in _messages(body, model):
        count += 1
        system = system or (isinstance(item, Mapping) and _word(item.get("role")) in _SYSTEM)
        fixed += around + _read(item, texts, model)
    if count and around:
        fixed += _PRIMING - ("gpt-5" in model)
    for key in ("prompt", "input"):
        value = body.get(key)
        if isinstance(value, str) and (key == "prompt" or "embedding" in model):
            texts.append(value)
        elif isinstance(value, (list, tuple)) and (key == "prompt" or "embedding" in model):
            fixed += _given(value, texts)
    tools = body.get("tools") or body.get("functions")
    if isinstance(tools, (list, tuple)) and tools:
        fixed += _tools(tools, texts, model, system=system)
    texts += _format(body)
    return texts, fixed


_SYSTEM = frozenset({"system", "developer"})


def _messages(body: Mapping[str, Any], model: str) -> Iterator[Any]:
    """Every message of a body, whoever's form it has; instructions and system prompts are messages too."""
    for key in ("instructions", "system", "system_instruction", "systemInstruction"):
        value = body.get(key)
        if isinstance(value, (str, list, tuple, Mapping)) and value:
            yield {"role": "system", "content": value}
    for key in ("messages", "contents", "input"):
        value = body.get(key)
        if key == "input" and "embedding" in model:
            continue
        if isinstance(value, str):
            yield {"role": "user", "content": value}
        elif isinstance(value, (list, tuple)):
            yield from value


def _given(values: list[Any] | tuple[Any, ...], texts: list[str]) -> int:
    """Several prompts in one request, as texts or as token ids."""
    if values and all(type(value) is int for value in values):
        return len(values)
    total = 0
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, (list, tuple)):
            total += len(value)
    return total


_HIDDEN = frozenset(
    {"id", "call_id", "tool_call_id", "tool_use_id", "type", "status", "cache_control", "signature", "annotations"}
)
"""Keys of messages and parts that the model is not shown."""


def _read(item: Any, texts: list[str], model: str) -> int:
    """Collect the texts of one message; the tokens of what is in it that is not text. Iterative, as `_bound` is."""
    total, todo = 0, [item]
    while todo:
        found = todo.pop()
        if isinstance(found, str):
            texts.append(found)
        elif isinstance(found, Mapping):
            counted = _attachment(found, model)
            if counted is not None:
                total += counted[0]
            elif found.get("type") != "reasoning":  # earlier thoughts are sent back, and mostly left out of the prompt
                total += _structure(found)
                todo += [value for key, value in found.items() if key not in _HIDDEN]
        elif isinstance(found, (list, tuple)):
            todo += found
        elif hasattr(found, "model_dump"):
            todo.append(found.model_dump())
    return total


def _structure(item: Mapping[Any, Any]) -> int:
    """Tokens around names and calls. Fitted to recorded requests: nobody documents them."""
    kind = _word(item.get("type"))
    if kind in _AROUND_CALL:
        return _AROUND_CALL[kind]
    calls = item.get("tool_calls")
    if isinstance(calls, (list, tuple)) and calls:
        return 3 * len(calls) + (_PARALLEL if len(calls) > 1 else 0)
    return 1 if "name" in item and "role" in item else 0


_AROUND_CALL = {"function_call": 6, "function_call_output": 3}
_PARALLEL = 20


def _format(body: Mapping[str, Any]) -> list[str]:
    """A schema that the answer must follow is shown to the model."""
    wanted = body.get("response_format")
    if wanted is None and isinstance(body.get("text"), Mapping):
        wanted = body["text"].get("format")
    schema = wanted.get("json_schema", wanted) if isinstance(wanted, Mapping) else None
    if not isinstance(schema, Mapping) or "schema" not in schema:
        return []
    return [str(schema.get("description") or ""), _json(schema["schema"])]


def _json(value: Any) -> str:
    import json

    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a schema that contains itself
        return ""


_AROUND_TOOLS = 9
_CLAUDE_TOOLS = 346
"""Anthropic, "Tool use": what Claude 4 is told about tools in general."""


def _tools(tools: list[Any] | tuple[Any, ...], texts: list[str], model: str, *, system: bool) -> int:
    """Tools as the model is shown them: OpenAI's chat models read TypeScript, the others JSON."""
    from aifinops.pricing import encodings

    if encodings.encoding_of(model) is None:
        texts += [_json(tool) for tool in tools]
        return _CLAUDE_TOOLS if "claude" in model else 0
    lines = ["namespace functions {", ""]
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if isinstance(function, Mapping):
            lines += _declared(function)
    texts.append("\n".join([*lines, "} // namespace functions"]))
    return _AROUND_TOOLS - (4 if system else 0)  # they are appended to a system message, or make one


def _declared(function: Mapping[str, Any]) -> list[str]:
    lines = [f"// {function['description']}"] if function.get("description") else []
    parameters = function.get("parameters")
    fields = _Schema(parameters).fields(parameters) if isinstance(parameters, Mapping) else []
    name = function.get("name", "")
    if not fields:
        return [*lines, f"type {name} = () => any;", ""]
    return [*lines, f"type {name} = (_: {{", *fields, "}) => any;", ""]


class _Schema:
    """The JSON schema of one tool's parameters, written as TypeScript."""

    DEEPEST = 8
    """Levels that are written out: a schema may contain itself."""

    DESCRIBED = 2
    """Levels whose descriptions are shown."""

    MOST = 2_000
    """Fields that are written out: one that refers to itself ten times over would be written a hundred million times."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        found = root.get("$defs") or root.get("definitions")
        self.named = found if isinstance(found, Mapping) else {}
        self.left = self.MOST

    def fields(self, schema: Mapping[str, Any], depth: int = 0) -> list[str]:
        properties, required = schema.get("properties"), schema.get("required") or ()
        lines = []
        for name, given in properties.items() if isinstance(properties, Mapping) else ():
            if self.left < 0:
                break
            field = given if isinstance(given, Mapping) else {}
            if depth < self.DESCRIBED and field.get("description"):
                lines.append(f"// {field['description']}")
            lines.append(f"{name}{'' if name in required else '?'}: {self.typed(field, depth)},")
        return lines

    def typed(self, field: Any, depth: int) -> str:
        self.left -= 1
        if not isinstance(field, Mapping) or depth >= self.DEEPEST or self.left < 0:
            return "any"
        reference = field.get("$ref")
        if isinstance(reference, str):
            return self.typed(self.named.get(reference.rsplit("/", 1)[-1]), depth + 1)
        if isinstance(field.get("enum"), (list, tuple)):
            return " | ".join(_json(value) for value in field["enum"])
        for key in ("anyOf", "oneOf"):
            if isinstance(field.get(key), (list, tuple)):
                return " | ".join(self.typed(one, depth + 1) for one in field[key])
        kind = field.get("type", "any")
        if kind == "array":
            return f"{self.typed(field.get('items'), depth + 1)}[]"
        if kind == "object":
            inner = self.fields(field, depth + 1)
            return "\n".join(["{", *inner, "}"]) if inner else "object"
        return "number" if _word(kind) in {"integer", "number"} else str(kind)


def count_all(texts: list[str], model: str) -> int | None:
    """Exact tokens of all texts together; None as in `count_tokens`."""
    if sum(map(len, texts)) > _MAX_TEXT:
        return None
    from aifinops.pricing import encodings

    return encodings.count(texts, model)


def count_tokens(text: str, model: str) -> int | None:
    """Exact tokens of a text, or None.

    None when the model is not one of OpenAI's, when no tokenizer or no file of its encoding is on this machine (it is never
    downloaded), when that file is damaged, or when the text is above a million characters.

    Args:
        text: special tokens in it are counted as plain text.
        model: as OpenAI names it.
    """
    return count_all([text], model)
