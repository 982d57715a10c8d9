"""What was said, on the span of its call: only where OpenTelemetry's own variable asks for it, and nowhere else.

The forms are those of the semantic conventions: JSON texts under `gen_ai.input.messages`, `gen_ai.output.messages` and
`gen_ai.system_instructions` (https://github.com/open-telemetry/semantic-conventions/blob/v1.41.1/docs/gen-ai/gen-ai-input-messages.json).
Parts that are no text, no tool call and no answer of a tool are named by their type, without their bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aifinops.telemetry import names

__all__ = ["VARIABLE", "attributes", "wanted"]

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""`SPAN_ONLY` and `SPAN_AND_EVENT` put content on spans, and so does the older `true`; events we do not make."""

_ON = frozenset({"span_only", "span_and_event", "true"})
_SYSTEM = frozenset({"system", "developer"})


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether content is asked for; anything that is not one of the words is a no."""
    return environ.get(VARIABLE, "").strip().lower() in _ON


def attributes(request: Any, said: Any, finish_reasons: Sequence[str] = ()) -> dict[str, str]:
    """The attributes of one call.

    Args:
        request: its body. said: the answer, as a mapping, an object of a client library, or the text of a stream; None for none.
        finish_reasons: of the answer, in the order of its choices.
    """
    import json  # only whoever asks for content needs it

    inputs: list[Any] = []
    system: list[Any] = []
    if isinstance(request, Mapping):
        for key in ("system", "instructions", "systemInstruction", "system_instruction"):
            system += _parts(request.get(key))
        for key in ("messages", "input", "prompt", "contents", "inputs"):
            for message in _messages(request.get(key), "user"):
                if message["role"] in _SYSTEM:
                    system += message["parts"]
                else:
                    inputs.append(message)
    outputs = list(_outputs(said))
    for place, message in enumerate(outputs):
        reason = finish_reasons[min(place, len(finish_reasons) - 1)] if finish_reasons else "stop"
        message.setdefault("finish_reason", reason)
    found = {names.INPUT_MESSAGES: inputs, names.OUTPUT_MESSAGES: outputs, names.SYSTEM_INSTRUCTIONS: system}
    return {name: json.dumps(value, ensure_ascii=False, default=repr) for name, value in found.items() if value}


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json", exclude_none=True)
    return value


def _outputs(said: Any) -> Iterator[dict[str, Any]]:
    said = _plain(said)
    if isinstance(said, str):
        if said:
            yield {"role": "assistant", "parts": [{"type": "text", "content": said}]}
        return
    if not isinstance(said, Mapping):
        return
    if isinstance(said.get("choices"), list):
        for choice in said["choices"]:
            if isinstance(choice, Mapping):
                told = choice.get("message") or {"role": "assistant", "content": choice.get("text")}
                yield from _messages([told], "assistant", choice.get("finish_reason"))
    elif isinstance(said.get("candidates"), list):
        for candidate in said["candidates"]:
            if isinstance(candidate, Mapping):
                yield from _messages([candidate.get("content")], "assistant", candidate.get("finishReason"))
    elif isinstance(said.get("output"), list):
        parts = [part for item in said["output"] for part in _parts([item])]
        if parts:
            yield {"role": "assistant", "parts": parts}
    else:
        yield from _messages([said.get("message") or said], "assistant")


def _messages(value: Any, role: str, finish: Any = None) -> Iterator[dict[str, Any]]:
    items = value if isinstance(value, (list, tuple)) else [value]
    for item in map(_plain, items):
        parts = _parts(item)
        if not parts:
            continue
        said_by = item.get("role") if isinstance(item, Mapping) else None
        message: dict[str, Any] = {"role": str(said_by or role).replace("model", "assistant"), "parts": parts}
        if isinstance(finish, str):
            message["finish_reason"] = finish
        yield message


def _parts(value: Any) -> list[dict[str, Any]]:
    """The parts of a message, an item of it, or a list of items, whoever's words they are in."""
    value = _plain(value)
    if isinstance(value, str):
        return [{"type": "text", "content": value}] if value else []
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in _parts(item)]
    if not isinstance(value, Mapping):
        return []
    kind = value.get("type")
    if kind in {"function_call", "tool_use"}:
        arguments = value.get("arguments", value.get("input"))
        return [_call(value.get("call_id") or value.get("id"), value.get("name"), arguments)]
    if value.get("role") == "tool" or kind in {"function_call_output", "tool_result"}:
        told = value.get("tool_call_id") or value.get("call_id") or value.get("tool_use_id")
        return [{"type": "tool_call_response", "id": told, "response": value.get("output", value.get("content"))}]
    if isinstance(value.get("text"), str):
        return _parts(value["text"])
    found = [*_parts(value.get("content")), *_parts(value.get("parts"))]
    found += [
        _call(call.get("id"), call["function"].get("name"), call["function"].get("arguments"))
        for call in value.get("tool_calls") or ()
        if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)
    ]
    if not found and isinstance(kind, str) and kind != "message":
        found.append({"type": kind})
    return found


def _call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}
