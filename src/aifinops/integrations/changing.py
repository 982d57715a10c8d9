"""Send another request than the one that was asked for, where a budget has no room for that: a cheaper model, a lower output limit.

A request is changed as data, by the fields that its route names, before anything is held for it. What the caller has given stays as it
is: copies are made along the way to each field, and only the copy is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aifinops.integrations.provider import Route
from aifinops.metering import Call

if TYPE_CHECKING:
    from aifinops.integrations.passing import Opened

__all__ = ["ADDRESS", "Changes", "How", "changed", "placed", "rewritten", "with_json"]

ADDRESS = "@address"
"""In `Call.sent`: the model that the address names."""

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
_THOUGHTS = ("thinking.budget_tokens", "additionalModelRequestFields.thinking.budget_tokens")
_PARTS = frozenset({"image", "document", "video", "inlineData", "fileData", "images"})
_FORMATS = (
    "response_format.type", "text.format.type", "output_format.type", "output_config.format.type", "format",
    "generationConfig.responseMimeType", "generationConfig.responseSchema", "outputConfig.textFormat.type",
)  # fmt: skip
_THINKING = (
    "thinking", "reasoning", "reasoning_effort",
    *(f"additionalModelRequestFields.{name}" for name in ("thinking", "reasoningConfig", "reasoning_config", "reasoning_effort")),
)  # fmt: skip


class How(NamedTuple):
    """What a seam can send in place of a request.

    Attributes:
        named: field that says the model; `ADDRESS` where the address does. cuts: whether it can end a stream.
        given: True where only a limit that the request has can be lowered, since what it would be called depends on the model.
        form: of a request for a model, where each maker has its own: a model that does not take the same one is not used in place of
            another, and its limit has the name that it has there.
    """

    named: str = "model"
    cuts: bool = True
    given: bool = False
    form: Callable[[Mapping[str, Any], str], Form | None] | None = None


class Form(Protocol):
    """What is known of the form of a request: its name for messages, and the field that states its output limit."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def limit(self) -> str:
        """Plain path."""
        ...


class Changes:
    """How the request of one call is changed.

    Args:
        make: a call of another request and model. route: of the call, with the fields that it names. how: what can be sent.
        model: of the call, where the request does not name it.
    """

    __slots__ = ("_how", "_make", "_model", "_route")

    def __init__(self, make: Callable[[dict[str, Any], str], Call], route: Route, how: How, model: str) -> None:
        self._make = make
        self._route = route
        self._how = how
        self._model = model

    def with_model(self, call: Call, model: str, *, features: bool) -> Call | str:
        """See `metering.Changer`."""
        asks = next(_features(call.body), "") if not features else ""
        if asks:
            return (
                f"The request has {asks}, which {model!r} may not take; write "
                f'on_exceed={{"downgrade": {{...}}, "any": True}} where it does.'
            )
        why = self._other_form(call, model)
        if why:
            return why
        named = self._how.named
        if named != ADDRESS and call.body.get(named) != call.model:
            return f"The request does not name its model in {named!r}."
        return self._changed(call, named, model, model if self._model else "")

    def with_output(self, call: Call, most: int) -> Call | str:
        """See `metering.Changer`."""
        limits = self._route.limits
        field = next((name for name in limits if type(_found(call.body, name)) is int), "")
        field = field or self._limit(call)
        if not field:
            return "The request has no output limit that could be lowered; give it one."
        return self._changed(call, field, most, self._model and call.model)

    def _limit(self, call: Call) -> str:
        """Where a limit goes in a request that has none; empty where that is not known."""
        if self._how.form is not None:
            form = self._how.form(call.body, call.model)
            return "" if form is None else form.limit
        return "" if self._how.given else self._route.limits[0]

    def _other_form(self, call: Call, model: str) -> str:
        """Why a model does not take this request; empty where it does."""
        if self._how.form is None:
            return ""
        form, other = self._how.form(call.body, call.model), self._how.form(call.body, model)
        if form is None:
            return "The form of the request is not known, so it cannot be sent to another model; use converse()."
        return "" if other == form else f"{model!r} does not take requests in the form of {form.name}; use converse()."

    def least_output(self, call: Call) -> int:
        """See `metering.Changer`."""
        # https://platform.claude.com/docs/en/build-with-claude/extended-thinking: max_tokens must be above it.
        found = (_found(call.body, name) for name in _THOUGHTS)
        return next((thinking for thinking in found if type(thinking) is int), 0)

    def streams(self, call: Call) -> str:
        """See `metering.Changer`."""
        if not self._how.cuts or not self._route.text:
            return 'on_exceed="cut" cannot end streams that are made in this way.'
        if self._how.form is not None and self._how.form(call.body, call.model) is None:
            return _UNSEEN.format("it is not known where it has its text")
        if call.unseen or any(_found(call.body, name) for name in _THINKING) or self._thinks(call):
            return _UNSEEN.format("thoughts are billed that are not shown")
        if call.loose is not None and call.loose(call.body):
            return _UNSEEN.format("tools of the provider are billed that are not shown")
        return ""

    def _thinks(self, call: Call) -> bool:
        if not self._route.thinking:
            return False
        found = (_found(call.body, name) for name in self._route.thinking)
        asked = next((budget for budget in found if budget is not None), None)
        return not call.model.startswith(self._route.plain) if asked is None else asked != 0

    def _changed(self, call: Call, field: str, value: Any, model: str) -> Call:
        body = call.body if field == ADDRESS else placed(call.body, field, value)
        made = self._make(body, model)
        return replace(made, host=call.host, start=call.start, change=self, sent={**call.sent, field: value})


def placed(request: Mapping[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The request with another value in a field, which may be inside of others (`generationConfig.maxOutputTokens`)."""
    first, _, rest = field.partition(".")
    inner = request.get(first)
    return {**request, first: placed(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value}


def changed(opened: Opened, make: Callable[..., Any], *args: Any) -> Any:
    """`make(sent, *args)`: what is sent for a call in place of what was asked; where that cannot be made, nothing is.

    Raises:
        BudgetExceeded: the one that the budget would have raised without a change.
    """
    invocation = opened.invocation
    try:
        return make(invocation.call.sent, *args)
    except Exception as failure:
        refusal = invocation.changed or failure
        invocation.fail(refusal)
        raise refusal from failure


def with_json(sent: Mapping[str, Any], options: Any) -> Any:
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


def rewritten(request: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """A request with all that is sent otherwise than it was asked; the model in an address is not of it."""
    made = dict(request)
    for field, value in sent.items():
        made = made if field == ADDRESS else placed(made, field, value)
    return made


def _found(request: Any, field: str) -> Any:
    for name in field.split("."):
        request = request.get(name) if isinstance(request, Mapping) else None
    return request


def _features(request: Mapping[str, Any]) -> Iterator[str]:
    """What a request asks for that not every model does."""
    if any(request.get(name) for name in ("tools", "functions", "toolConfig")):
        yield "tools"
    for field in _FORMATS:
        if _found(request, field) not in (None, "text", "text/plain"):
            yield "a format for its answer"
    if request.get("images"):  # beside a prompt
        yield "pictures or files"
    if request.get("modalities") not in (None, ["text"]):
        yield "sound"
    todo = [request.get(name) for name in ("messages", "input", "system", "contents")]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, Mapping):
            if item.get("type") in _PICTURES:
                yield "pictures or files"
            if _PARTS & item.keys():  # as Amazon and Google name them
                yield "pictures or files"
            todo += [item.get("content"), item.get("parts")]
