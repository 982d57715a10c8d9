"""What Amazon Bedrock tells of an answer, by whichever library it was asked.

Converse answers in a form of its own. InvokeModel hands on what the maker of a model answers, and tells the counts beside it: in headers of
a plain answer, in the last event of a stream. Streams come in frames (`application/vnd.amazon.eventstream`), each with a checksum of its
first twelve bytes: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aifinops.integrations.extract import Reader
from aifinops.integrations.responses import reader_for
from aifinops.integrations.streams import StreamText, read_objects
from aifinops.reading import Reading
from aifinops.usage import output_total

__all__ = [
    "FORMS", "Form", "Frame", "as_lines", "beside", "decoded", "form_of", "frames", "read_stream", "read_whole", "told_of",
]  # fmt: skip

Frame = tuple[str, bytes]
"""Name of an event and its payload."""

_HEADERS = {
    "x-amzn-bedrock-input-token-count": "inputTokens",
    "x-amzn-bedrock-output-token-count": "outputTokens",
    "x-amzn-bedrock-cache-read-input-token-count": "cacheReadInputTokens",
    "x-amzn-bedrock-cache-write-input-token-count": "cacheWriteInputTokens",
}
_METRICS = "amazon-bedrock-invocationMetrics"
_COUNTS = {
    "inputTokenCount": "inputTokens",
    "outputTokenCount": "outputTokens",
    "cacheReadInputTokenCount": "cacheReadInputTokens",
    "cacheWriteInputTokenCount": "cacheWriteInputTokens",
}
"""What InvokeModel tells in its headers, and its stream in the last event -> the word of Converse."""

_EDGE = 6
"""Events at either end of a stream among which those are that tell its usage."""


class Form(NamedTuple):
    """A form of requests of InvokeModel, which is the maker's own.

    Attributes:
        name: for messages. models: beginnings of the ids of those that take it, without the part for a place (`us.`).
        has: a field that every request has. limit: field (plain path) that states the output limit.
    """

    name: str
    models: tuple[str, ...]
    has: str
    limit: str


# https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html, and for Nova
# https://docs.aws.amazon.com/nova/latest/userguide/complete-request-schema.html. What is not listed is not known to take a form.
FORMS = (
    Form("Anthropic's Messages", ("anthropic.claude-",), "anthropic_version", "max_tokens"),
    Form("Anthropic's completions", ("anthropic.claude-v2", "anthropic.claude-instant-v1"), "prompt", "max_tokens_to_sample"),
    Form("Amazon Titan Text", ("amazon.titan-text-",), "inputText", "textGenerationConfig.maxTokenCount"),
    Form(
        "Amazon Nova",
        tuple(f"amazon.nova-{kind}" for kind in ("micro", "lite", "pro", "premier", "2-lite", "2-pro")),
        "messages", "inferenceConfig.maxTokens",
    ),
    Form("Meta Llama", ("meta.llama",), "prompt", "max_gen_len"),
    Form(
        "Mistral's completions",
        tuple(f"mistral.{kind}" for kind in ("mistral-7b-instruct", "mixtral-8x7b-instruct", "mistral-small-2402", "mistral-large-2402")),
        "prompt", "max_tokens",
    ),
    Form("Mistral's chat", ("mistral.mistral-large-24", "mistral.pixtral-large"), "messages", "max_tokens"),
    Form("Cohere Command R", ("cohere.command-r-",), "message", "max_tokens"),
    Form("Cohere Command", ("cohere.command-text", "cohere.command-light-text"), "prompt", "max_tokens"),
    Form("AI21 Jamba", ("ai21.jamba-",), "messages", "max_tokens"),
    Form("OpenAI's chat", ("openai.gpt-oss-",), "messages", "max_completion_tokens"),
)  # fmt: skip


def form_of(request: Mapping[str, Any], model: str) -> Form | None:
    """The form of a request of InvokeModel for a model; None where that is not known to take one like it."""
    maker = model.partition(".")[2] if model.split(".", 1)[0] in _PLACES else model
    return next((form for form in FORMS if form.has in request and maker.startswith(form.models)), None)


_PLACES = frozenset({"us", "eu", "apac", "jp", "au", "ca", "us-gov", "global"})
"""What ids of inference profiles begin with: https://docs.aws.amazon.com/bedrock/latest/userguide/inference-profiles-support.html."""


def told_of(
    headers: Mapping[str, str], *, request_id: Any = None, tier: Any = None, latency: Any = None
) -> dict[str, Any]:
    """What an answer tells beside its body, in the words of Converse.

    Args:
        headers: names in small letters, or of any case where they are looked up so. request_id, tier, latency: where a library has taken
            them out of the headers already.
    """
    usage = {word: int(headers[name]) for name, word in _HEADERS.items() if str(headers.get(name, "")).isdecimal()}
    return {
        "ResponseMetadata": {"RequestId": request_id or headers.get("x-amzn-requestid")},
        "usage": usage or None,
        "serviceTier": {"type": tier or headers.get("x-amzn-bedrock-service-tier")},
        "performanceConfig": {
            "latency": latency or headers.get("x-amzn-bedrock-performanceconfig-latency") or "standard"
        },
    }


def beside(reading: Reading | None, told: dict[str, Any], reader: Reader) -> Reading | None:
    """Add what only the headers tell to what a body says; without a body's usage theirs is it.

    Args:
        reading: of the body. told: by `told_of`. reader: of the operation.
    """
    headers = reader.tolerant(told)
    if reading is None:
        return headers
    more = headers or reader.describe(told)
    if not output_total(reading.quantities) and not reading.problem:  # a guardrail leaves it out
        made = {name: count for name, count in more.quantities.items() if name == "output_tokens"}
        reading.quantities = {**reading.quantities, **made}
    reading.tier = reading.tier or more.tier
    reading.options = reading.options or more.options
    reading.response_id = reading.response_id or more.response_id
    return reading


# --- streams ------------------------------------------------------------------------------------------------------------


def decoded(name: str, payload: bytes) -> dict[str, Any]:
    """One event: of Converse under its name, a chunk of InvokeModel as the maker's own; empty for a damaged one."""
    try:
        said = json.loads(payload)
        found = json.loads(base64.b64decode(said["bytes"])) if name == "chunk" else {name: said}
    except (ValueError, KeyError, TypeError):  # the others still count
        return {}
    return found if isinstance(found, dict) else {}


def frames(data: bytes) -> list[Frame]:
    """The events in the bytes of a stream. What is cut at either end is left out, and so is an exception, which is no event."""
    found: list[Frame] = []
    at = _next_frame(data, 0)
    while at >= 0:
        total, header_size = struct.unpack_from("!II", data, at)
        start, end = at + 12, at + total
        if not start + header_size <= end - 4 <= len(data) - 4:
            break
        name = _name(data[start : start + header_size])
        if name:
            found.append((name, data[start + header_size : end - 4]))
        at = _next_frame(data, end)
    return found


def as_lines(said: Iterable[Frame]) -> bytes:
    """The same as server-sent events, for whoever reads those."""
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for frame in said if (event := decoded(*frame)))


def _next_frame(data: bytes, at: int) -> int:
    """Where the next frame begins at or after a place; -1 for none. Only where bytes were let go it is not there."""
    view = memoryview(data)
    while at + 16 <= len(data):
        if zlib.crc32(view[at : at + 8]) == int.from_bytes(view[at + 8 : at + 12], "big"):
            return at
        at += 1
    return -1


def _name(headers: bytes) -> str:
    """The name of the event that headers tell; they are texts in this service, and any other kind ends them for us."""
    found: dict[str, str] = {}
    at = 0
    while at < len(headers):
        size = headers[at]
        key, kind = headers[at + 1 : at + 1 + size].decode("utf-8", "replace"), headers[at + 1 + size : at + 2 + size]
        at += 2 + size
        if kind != b"\x07" or at + 2 > len(headers):
            break
        (length,) = struct.unpack_from("!H", headers, at)
        found[key] = headers[at + 2 : at + 2 + length].decode("utf-8", "replace")
        at += 2 + length
    return found.get(":event-type", "") if found.get(":message-type", "event") == "event" else ""


def read_whole(body: Any, told: dict[str, Any], reader: Reader) -> Reading | None:
    """The usage of a plain answer of InvokeModel, which has the form of the maker of the model.

    Args:
        body: parsed, None where it could not be. told: by `told_of`. reader: of the operation.
    """
    form = reader_for(body, "aws.bedrock") if isinstance(body, dict) else None
    return beside(form.tolerant(body) if form is not None else None, told, reader)


def read_stream(said: list[Frame], told: dict[str, Any], reader: Reader) -> tuple[Reading | None, StreamText]:
    """(the usage that a stream told, or else the text that came).

    Args:
        said: its events. told: by `told_of`, of its headers. reader: of the operation.
    """
    edges = said if len(said) <= 2 * _EDGE else [*said[:_EDGE], *said[-_EDGE:]]
    reading = _usage([event for frame in edges if (event := decoded(*frame))], told, reader)
    if reading is not None:
        return reading, StreamText()
    return None, read_objects([decoded(*frame) for frame in said], reader)[1]


def _usage(said: list[dict[str, Any]], told: dict[str, Any], reader: Reader) -> Reading | None:
    reading: Reading | None = None
    opened = (reader_for(begun, "aws.bedrock") for event in said if (begun := _opening(event)) is not None)
    form = next((found for found in opened if found is not None), None)
    if form is not None:
        reading, _ = read_objects(said, form)
    for event in reversed(said):
        counts = event.get(_METRICS)
        if reading is None and isinstance(counts, dict):
            usage = {word: counts[name] for name, word in _COUNTS.items() if name in counts}
            reading = reader.tolerant({**told, "usage": usage})
    if reading is None:
        reading, _ = read_objects(said, reader)
    return None if reading is None else beside(reading, told, reader)


def _opening(event: dict[str, Any]) -> dict[str, Any] | None:
    """Of the makers that have a stream of their own, what the first event says of the form of them all."""
    begun = event.get("message") if event.get("type") == "message_start" else event
    return begun if isinstance(begun, dict) and ("type" in begun or "object" in begun) else None
