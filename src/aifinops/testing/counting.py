"""How the fake provider counts: words, messages, cached prefixes, output limits. Pure but for the cache.

The rules are simple on purpose, so that a test can say beforehand what a call will cost:

- a text has as many tokens as it has words between whitespace; each message costs 4 more, an image 85;
- tools count as the words of their JSON;
- leading messages that an earlier request to the same model had as well are cached tokens, when they are long enough;
- reasoning models (`o...`, `gpt-5...`) think for a number of tokens that their effort decides.

Words are never more than UTF-8 bytes, so an upper bound made from bytes holds here as it does with a real tokenizer.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BadRequest",
    "Hints",
    "Output",
    "Prompt",
    "PromptCache",
    "is_reasoning",
    "measure",
    "plan",
    "value_for",
    "words",
]

PER_MESSAGE = 4
PER_IMAGE = 85
EFFORTS = {"none": 0, "minimal": 0, "low": 8, "medium": 16, "high": 32, "xhigh": 64}
_REASONING = re.compile(r"^(o\d|gpt-5(?!-chat))")
_CAPS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


class BadRequest(Exception):
    """The request is refused with `status` and an error body as the provider would send it."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code


@dataclass(frozen=True, slots=True)
class Hints:
    """What the caller asked of the fake itself, beside the request.

    Attributes:
        output_tokens: exactly so many output tokens, reasoning included (header `x-fake-output-tokens`, or
            `metadata={"words": "12"}`); None leaves it to the fake.
        input_tokens: count the prompt as so many tokens (header `x-fake-input-tokens`); None counts it.
    """

    output_tokens: int | None = None
    input_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A counted prompt: all tokens, and the part of them that was read from the prompt cache."""

    tokens: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """How long one answer is, in tokens: visible ones, reasoning ones, and whether the caller's limit cut it."""

    visible: int
    reasoning: int = 0
    capped: bool = False

    @property
    def tokens(self) -> int:
        """What is billed: visible and reasoning."""
        return self.visible + self.reasoning


class PromptCache:
    """Remembers the leading messages of earlier prompts, per model, up to `size` prefixes."""

    def __init__(self, minimum: int, size: int = 10_000) -> None:
        self._minimum = minimum
        self._size = size
        self._seen: dict[Hashable, None] = {}
        self._lock = threading.Lock()

    def read(self, model: str, parts: Sequence[tuple[Hashable, int]]) -> int:
        """Tokens of the longest known prefix (never the whole prompt); remembers this one."""
        key: Hashable = model
        tokens = cached = 0
        with self._lock:
            for position, (part, count) in enumerate(parts, start=1):
                key, tokens = hash((key, part)), tokens + count
                if tokens < self._minimum:
                    continue
                if key not in self._seen:
                    self._remember(key)
                elif position < len(parts):
                    cached = tokens
        return cached

    def _remember(self, key: Hashable) -> None:
        if len(self._seen) >= self._size:
            self._seen.pop(next(iter(self._seen)))
        self._seen[key] = None


def words(text: str) -> int:
    """Whitespace-separated words."""
    return len(text.split())


def is_reasoning(model: str) -> bool:
    """Whether this model thinks before it answers."""
    return _REASONING.match(model) is not None


def measure(model: str, messages: Iterable[object], tools: object, cache: PromptCache, hints: Hints) -> Prompt:
    """Count a prompt made of messages (or response input items) and tools.

    Raises:
        BadRequest: for a message that is no object.
    """
    # Tools come first, as in the provider's own prompt: other tools, other prefix.
    parts: list[tuple[Hashable, int]] = []
    if tools:
        text = json.dumps(tools)
        parts.append((text, words(text)))
    parts += [_message(message) for message in messages]
    cached = cache.read(model, parts)
    tokens = sum(count for _, count in parts) if hints.input_tokens is None else hints.input_tokens
    return Prompt(tokens, min(cached, tokens))


def _message(message: object) -> tuple[Hashable, int]:
    if not isinstance(message, Mapping):
        raise BadRequest(
            f"Invalid type for a message: expected an object, got {type(message).__name__}.", param="messages"
        )
    text, images = _content(message.get("content"))
    for extra in (message.get("arguments"), message.get("output")):
        if isinstance(extra, str):
            text += f" {extra}"
    for call in message.get("tool_calls") or ():
        text += f" {call.get('function', {}).get('arguments', '')}"
    key = (message.get("role") or message.get("type"), text, images)
    return key, PER_MESSAGE + words(text) + PER_IMAGE * images


def _content(content: object) -> tuple[str, int]:
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        return "", 0
    texts = [str(part["text"]) for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    images = sum(1 for part in content if isinstance(part, Mapping) and "image" in str(part.get("type")))
    return "\n".join(texts), images


def plan(request: Mapping[str, Any], natural: int, hints: Hints) -> Output:
    """How long the answer to `request` is when the fake would say `natural` words.

    Raises:
        BadRequest: for an output limit that is no positive whole number.
    """
    effort = request.get("reasoning_effort") or (request.get("reasoning") or {}).get("effort") or "medium"
    thinking = EFFORTS.get(str(effort), EFFORTS["medium"]) if is_reasoning(str(request.get("model"))) else 0
    wanted = natural + thinking if hints.output_tokens is None else hints.output_tokens
    thinking = min(thinking, wanted if hints.output_tokens is None else wanted // 2)
    limit = _limit(request)
    if limit is None or wanted <= limit:
        return Output(wanted - thinking, thinking)
    thinking = min(thinking, limit)
    return Output(limit - thinking, thinking, capped=True)


def _limit(request: Mapping[str, Any]) -> int | None:
    for name in _CAPS:
        value = request.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadRequest(f"Invalid '{name}': expected a whole number of at least 1, got {value!r}.", param=name)
        return value
    return None


_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "email": "someone@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
}


def value_for(schema: object, root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """A value that satisfies a JSON schema of the kind that structured outputs allow (the smallest of each type).

    Nullable parts are null, and deep lists are empty, so that a recursive schema comes to an end.
    """
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return None
    root = schema if root is None else root
    if "$ref" in schema:
        return value_for(_resolve(str(schema["$ref"]), root), root, depth + 1)
    for keyword in ("const", "default"):
        if keyword in schema:
            return schema[keyword]
    if schema.get("enum"):
        return schema["enum"][0]
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            options = schema[keyword]
            return None if {"type": "null"} in options else value_for(options[0], root, depth + 1)
    if schema.get("allOf"):
        return _merged([value_for(part, root, depth + 1) for part in schema["allOf"]])
    return _typed(schema, root, depth + 1)


_DEEPEST = 32


def _resolve(reference: str, root: Mapping[str, Any]) -> object:
    found: Any = root
    for name in reference.lstrip("#/").split("/") if reference != "#" else ():
        found = found.get(name, {}) if isinstance(found, Mapping) else {}
    return found


def _merged(values: list[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        return {key: item for value in values for key, item in value.items()}
    return values[0]


def _typed(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = "null" if "null" in kind else kind[0]
    match kind:
        case "object":
            return {name: value_for(part, root, depth) for name, part in schema.get("properties", {}).items()}
        case "array":
            least = int(schema.get("minItems", depth < _DEEPEST // 4))
            return [value_for(schema.get("items"), root, depth) for _ in range(least)]
        case "string":
            return _FORMATS.get(schema.get("format", ""), "sample").ljust(int(schema.get("minLength", 0)), "x")
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case _:
            return None


def _number(schema: Mapping[str, Any]) -> Any:
    if "minimum" in schema:
        return schema["minimum"]
    if "exclusiveMinimum" in schema:
        return schema["exclusiveMinimum"] + 1
    return min(1, schema.get("maximum", 1))
