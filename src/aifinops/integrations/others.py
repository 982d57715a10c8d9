"""Who else instruments a client library: found by looking, told by one table.

Looked for when a library is patched, when one of them is switched on or off, and when a client makes its first call; never in every
call. Nothing of theirs is imported: one that is not loaded is not active.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from aifinops import runtime
from aifinops.errors import swallow
from aifinops.integrations.passing import guarded
from aifinops.integrations.patching import Patch, Patches, applied
from aifinops.telemetry.guests import hosted, quieten

__all__ = ["OTHERS", "Other", "Presence", "native", "presence"]

_EVERY = frozenset({"chat", "text_completion", "embeddings", "generate_content"})
_CHAT = frozenset({"chat"})


@dataclass(frozen=True, slots=True)
class Other:
    """One instrumentation of one client library.

    Attributes:
        name: as people know it. library: the top-level module that it instruments, `*` for a framework above all of them.
        module: loaded when it can be active. operations: that it makes spans of.
        quiet: whether a context keeps it from making a span (see `quieten`), and we can stand in front of it to set that context.
        instrumentor: class in `module`, where that has another one as well.
        marked: attribute that it leaves on the library's client classes; empty for an instrumentor of OpenTelemetry's kind, which knows
            itself whether it is active.
    """

    name: str
    library: str
    module: str
    operations: frozenset[str] = _EVERY
    quiet: bool = False
    marked: str = ""
    instrumentor: str = ""

    def active(self) -> bool:
        """Whether it is switched on."""
        module = sys.modules.get(self.module)
        if module is None:
            return False
        if self.marked:
            library = sys.modules.get(self.library)
            return any(getattr(kind, self.marked, False) for kind in _classes(library))
        return any(
            getattr(kind, "_is_instrumented_by_opentelemetry", False) for kind in _instances(module, self.instrumentor)
        )


def _classes(module: Any) -> list[type]:
    return [] if module is None else [kind for kind in list(vars(module).values()) if isinstance(kind, type)]


def _instances(module: Any, named: str) -> Iterator[Any]:
    """The instrumentors of a module that exist: each class has one instance at most."""
    for kind in _classes(module):
        if kind.__name__ == named if named else kind.__name__.endswith("Instrumentor"):
            made = vars(kind).get("_instance")
            if made is not None:
                yield made


_T, _OI, _OTEL = (
    "opentelemetry.instrumentation.",
    "openinference.instrumentation.",
    "opentelemetry.instrumentation.genai.",
)

OTHERS = (
    Other("OpenTelemetry", "openai", f"{_OTEL}openai", frozenset({"chat", "embeddings"}), quiet=True),
    Other("OpenTelemetry", "anthropic", f"{_OTEL}anthropic", _CHAT, quiet=True),
    Other("OpenTelemetry", "google", f"{_T}google_genai", frozenset({"generate_content", "embeddings"}), quiet=True),
    Other("OpenTelemetry", "botocore", f"{_T}botocore", instrumentor="BotocoreInstrumentor"),
    Other("OpenTelemetry", "aiobotocore", f"{_T}botocore", instrumentor="AiobotocoreInstrumentor"),
    Other("Traceloop", "openai", f"{_T}openai", frozenset({"chat", "text_completion", "embeddings"}), quiet=True),
    *(
        Other("Traceloop", library, f"{_T}{library}", quiet=True)
        for library in ("anthropic", "groq", "together")
    ),
    *(
        Other("Traceloop", library, f"{_T}{module}")
        for library, module in {
            "botocore": "bedrock", "cohere": "cohere", "mistralai": "mistralai", "ollama": "ollama", "google": "google_generativeai",
        }.items()
    ),
    Other("Traceloop", "*", f"{_T}langchain"),
    Other("OpenInference", "openai", f"{_OI}openai"),
    *(
        Other("OpenInference", library, f"{_OI}{module}")
        for library, module in {
            "anthropic": "anthropic", "botocore": "bedrock", "google": "google_genai", "groq": "groq", "mistralai": "mistralai",
        }.items()
    ),
    *(
        Other("OpenLIT", library, f"openlit.instrumentation.{library}")
        for library in ("openai", "anthropic", "cohere", "groq", "ollama", "together")
    ),
    *(
        Other("OpenLIT", library, f"openlit.instrumentation.{module}")
        for library, module in {"botocore": "bedrock", "google": "google_ai_studio", "mistralai": "mistral"}.items()
    ),
    Other("Logfire", "openai", "logfire", marked="_is_instrumented_by_logfire"),
    Other("Logfire", "anthropic", "logfire", marked="_is_instrumented_by_logfire"),
)  # fmt: skip
"""Modules and classes as in the newest releases of November 2026."""

_SWITCHES = (
    ("opentelemetry.instrumentation.instrumentor", "BaseInstrumentor", ("instrument", "uninstrument")),
    ("logfire._internal.integrations.llm_providers.llm_provider", "", ("instrument_llm_provider",)),
)
"""Where others are switched on and off: module, class, functions."""


class Presence:
    """Who else makes spans of one library's calls, as of the last look.

    Attributes:
        any: False when nobody does: nothing else needs to be asked then. names: who, for people.
        front: what a seam wants to put in front of others, made anew after each of their changes.
        stands: whether that is done, and others are silenced: for a whole library, never for a single client of it.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self.any = False
        self.names: tuple[str, ...] = ()
        self._ranks: dict[str, int] = {}
        self._above = False
        self.front: Callable[[], Iterable[Patch]] | None = None
        self._in_front: list[Patch] = []
        self.stands = self._silenced = False

    def rank(self, operation: str) -> int:
        """`Call.host` for a call: 0 nobody, 1 somebody who can be kept from a span, 2 somebody who cannot."""
        found = self._ranks.get(operation, 0)
        if not found:
            return 2 if self._above and hosted() else 0
        return found if self.stands and (self._silenced or not _owned()) else 2

    def look(self) -> None:
        """See who is there now."""
        here = [one for one in OTHERS if one.library in {self.library, "*"} and one.active()]
        ranks: dict[str, int] = {}
        for one in here:
            for operation in one.operations if one.library != "*" else ():
                ranks[operation] = max(ranks.get(operation, 0), 1 if one.quiet else 2)
        self._ranks, self._above = ranks, any(one.library == "*" for one in here)
        self.names = tuple(dict.fromkeys(one.name for one in here))
        self.any = bool(here)

    def step_in(self) -> None:
        """Stand in front of others where that is needed."""
        self.step_aside()
        self.stands = True
        if self.front is not None:
            self._in_front += self.front()  # one after the other: what is done when another one fails can be taken back
        self._silenced = _owned()
        if self.any and self._silenced:
            self._in_front += _silence(self.library)

    def step_aside(self) -> None:
        """Take away what stands in front of others: they find what they wrapped only where they have put it."""
        while self._in_front:
            guarded("others.undo", self._in_front.pop().undo)  # one that fails does not keep the others in front


_METHODS = {"google": "google.genai.models"}
"""Library -> where the methods are that its users call, if not in `resources`."""


def _silence(library: str) -> Iterator[Patch]:
    """Stand in front of those who begin their span further out than we do, so that they see that the call has an owner."""
    for owner, name, method in _wrapped_methods(library):
        yield Patch(owner, name, _aquiet if inspect.iscoroutinefunction(inspect.unwrap(method)) else _quiet)


def _wrapped_methods(library: str) -> list[tuple[type, str, Any]]:
    """Methods of the library's resources that somebody has wrapped."""
    import wrapt

    found = []
    prefix = _METHODS.get(library, f"{library}.resources")
    for place, module in list(sys.modules.items()):
        if module is None or not place.startswith(prefix):
            continue
        for kind in _classes(module):
            if kind.__module__ == place:
                found += [
                    (kind, name, value)
                    for name, value in list(vars(kind).items())
                    if isinstance(value, wrapt.FunctionWrapper)
                ]
    return found


def _owned() -> bool:
    settings = runtime.get().config
    return settings.spans == "emit" and settings.enabled


def _quiet(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    restore = guarded("others.quiet", _hush)
    try:
        return wrapped(*args, **kwargs)
    finally:
        if restore is not None:
            restore()


async def _aquiet(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    restore = guarded("others.quiet", _hush)
    try:
        return await wrapped(*args, **kwargs)
    finally:
        if restore is not None:
            restore()


def _hush() -> Callable[[], None] | None:
    """Say in the context that the call has an owner; None where it has none.

    Returns:
        What takes it back, with nothing of ours in it that could fail: OpenTelemetry's own, which never raises.
    """
    if not _owned():
        return None
    from opentelemetry import context

    return partial(context.detach, context.attach(quieten(context.get_current())))


_presences: dict[str, Presence] = {}
_patches = Patches()


def presence(library: str) -> Presence:
    """Who else is there for a library (a module of it), kept up to date from now on."""
    library = library.partition(".")[0]
    found = _presences.get(library)
    if found is None:
        found = _presences[library] = Presence(library)
    if not _patches.state():
        for place, owner, functions in _SWITCHES:
            _patches.when_imported(place, place, partial(_watch, owner, functions))
    guarded("others.look", found.look)
    return found


def _watch(owner: str, functions: tuple[str, ...], module: Any) -> list[Patch]:
    try:
        place = getattr(module, owner) if owner else module
        return applied((place, name, _switched) for name in functions)
    except Exception as failure:  # a version without these: found at the next new client instead
        swallow("integrations.others.watch", failure)
        return []


def _switched(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    here = list(_presences.values())  # another thread may see one more library
    for one in here:
        guarded("others.step_aside", one.step_aside)
    try:
        return wrapped(*args, **kwargs)
    finally:
        for one in here:
            guarded("others.look", one.look)
            if one.stands:
                guarded("others.step_in", one.step_in)


def leave(library: str | None = None) -> None:
    """Take back what was put in front of others for one library; for None, for all, and no longer see them switched."""
    for one in list(_presences.values()):
        if library is None or library.partition(".")[0] == one.library:
            one.front, one.stands = None, False
            one.step_aside()
    if library is None:
        _patches.undo()


# --- client libraries that make spans themselves ------------------------------------------------------------------------------


def native(client: Any) -> bool:
    """Whether a client makes spans of its own, as it is set."""
    module = type(client).__module__.partition(".")[0]
    found = _NATIVE.get(module)
    try:
        return found is not None and bool(found(client))
    except Exception as failure:  # a client of another version, or somebody's subclass
        swallow("integrations.others.native", failure)
        return False


def _anthropic(client: Any) -> Any:
    # `Anthropic(open_telemetry=...)` or ANTHROPIC_OPEN_TELEMETRY, on by default since 2.0: `anthropic/_tracing.py`.
    return (getattr(client, "_open_telemetry", None) or {}).get("traces", {}).get("enabled")


def _mistral(client: Any) -> Any:
    # `configure_telemetry(client)` or MISTRAL_SDK_TELEMETRY, off by default: `mistralai/extra/observability/telemetry.py`.
    hooks = getattr(getattr(client, "sdk_configuration", None), "_hooks", None)
    for hook in getattr(hooks, "before_request_hooks", ()):
        if type(hook).__name__ == "TracingHook":
            return hook.tracer_provider is not None or hook._telemetry_use_global_provider
    return False


_NATIVE: dict[str, Callable[[Any], Any]] = {"anthropic": _anthropic, "mistralai": _mistral}
