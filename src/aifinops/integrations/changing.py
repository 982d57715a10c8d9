"""Send another request than the one that was asked for, where a budget has no room for that: a cheaper model, a lower output limit.

A request is changed as data, by the fields that its route names, before anything is held for it. What the caller has given stays as it
is: copies are made along the way to each field, and only the copy is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from aifinops.integrations.provider import Route
from aifinops.metering import Call

__all__ = ["Changes", "placed", "with_json"]

_UNSEEN = 'on_exceed="cut" follows what comes of a stream, and of this one {0}; use "clamp".'
_PICTURES = frozenset(
    {
        "image",
        "image_url",
        "input_image",
        "document",
        "file",
        "input_file",
        "audio",
        "input_audio",
        "video",
        "video_url",
    }
)
_THINKING = ("thinking", "reasoning", "reasoning_effort")


class Changes:
    """How the request of one call is changed.

    Args:
        make: a call of another request and model. route: of the call, with the fields that it names. named: field that says the model.
        cuts: whether the seam can end a stream.
    """

    __slots__ = ("_cuts", "_make", "_named", "_route")

    def __init__(self, make: Callable[..., Call], route: Route, named: str = "model", *, cuts: bool = True) -> None:
        self._make = make
        self._route = route
        self._named = named
        self._cuts = cuts

    def with_model(self, call: Call, model: str, *, features: bool) -> Call | str:
        """See `metering.Changer`."""
        asks = next(_features(call.body), "") if not features else ""
        if asks:
            return (
                f"The request has {asks}, which {model!r} may not take; write "
                f'on_exceed={{"downgrade": {{...}}, "any": True}} where it does.'
            )
        if call.model != call.body.get(self._named):
            return f"The request does not name its model in {self._named!r}."
        return self._changed(call, self._named, model)

    def with_output(self, call: Call, most: int) -> Call:
        """See `metering.Changer`."""
        limits = self._route.limits
        return self._changed(
            call, next((name for name in limits if type(_found(call.body, name)) is int), limits[0]), most
        )

    def least_output(self, call: Call) -> int:
        """See `metering.Changer`."""
        # https://platform.claude.com/docs/en/build-with-claude/extended-thinking: max_tokens must be above it.
        thinking = _found(call.body, "thinking.budget_tokens")
        return thinking if type(thinking) is int else 0

    def streams(self, call: Call) -> str:
        """See `metering.Changer`."""
        if not self._cuts or not self._route.text:
            return 'on_exceed="cut" cannot end streams that are made in this way.'
        if call.unseen or any(call.body.get(name) for name in _THINKING):
            return _UNSEEN.format("thoughts are billed that are not shown")
        if call.loose is not None and call.loose(call.body):
            return _UNSEEN.format("tools of the provider are billed that are not shown")
        return ""

    def _changed(self, call: Call, field: str, value: Any) -> Call:
        made = self._make(placed(call.body, field, value))
        return replace(made, host=call.host, start=call.start, change=self, sent={**call.sent, field: value})


def placed(request: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The request with another value in a field, which may be inside of others (`generationConfig.maxOutputTokens`)."""
    first, _, rest = field.partition(".")
    inner = request.get(first)
    return {**request, first: placed(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value}


def with_json(options: Any, sent: Mapping[str, Any]) -> Any:
    """The options of a request of Stainless' client libraries with other fields in its body."""
    body, extra = options.json_data, getattr(options, "extra_json", None)
    update: dict[str, Any] = {}
    for field, value in sent.items():
        if extra and field.partition(".")[0] in extra:  # it is laid over the body
            extra = update["extra_json"] = placed(extra, field, value)
        else:
            body = update["json_data"] = placed(body, field, value)
    copy = getattr(options, "model_copy", None) or options.copy  # pydantic 2, else 1
    return copy(update=update)


def _found(request: Any, field: str) -> Any:
    for name in field.split("."):
        request = request.get(name) if isinstance(request, Mapping) else None
    return request


def _features(request: Mapping[str, Any]) -> Iterator[str]:
    """What a request asks for that not every model does."""
    if request.get("tools") or request.get("functions"):
        yield "tools"
    for field in ("response_format.type", "text.format.type", "output_format.type", "output_config.format.type"):
        if _found(request, field) not in (None, "text"):
            yield "a format for its answer"
    if request.get("modalities") not in (None, ["text"]):
        yield "sound"
    todo = [request.get(name) for name in ("messages", "input", "system")]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, Mapping):
            if item.get("type") in _PICTURES:
                yield "pictures or files"
            todo.append(item.get("content"))
