"""Which providers there are, as import strings: naming one imports nothing, and nobody else's package is ever imported by us."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
from functools import lru_cache
from typing import Any

from aifinops import runtime, scope
from aifinops.errors import ConfigurationError, swallow
from aifinops.integrations.hooks import FRAMEWORKS, HOOKS, TRAINING
from aifinops.integrations.patching import Patch, Patches
from aifinops.integrations.provider import Provider
from aifinops.pricing.match import PROVIDERS as SPELLINGS
from aifinops.pricing.match import provider_id

__all__ = ["ANSWERS", "PROVIDERS", "answers", "instrument", "knows", "provider", "state", "uninstrument"]

_ROWS = "aifinops.integrations.providers."

PROVIDERS = {
    "openai": f"{_ROWS}openai:OPENAI",
    "anthropic": f"{_ROWS}anthropic:ANTHROPIC",
    "groq": f"{_ROWS}compatible:GROQ",
    "together": f"{_ROWS}compatible:TOGETHER",
    "cerebras": f"{_ROWS}compatible:CEREBRAS",
    "mistral": f"{_ROWS}mistral:MISTRAL",
    "cohere": f"{_ROWS}cohere:COHERE",
    "ollama": f"{_ROWS}ollama:OLLAMA",
    "huggingface": f"{_ROWS}huggingface:HUGGINGFACE",
    "litellm": f"{_ROWS}litellm:LITELLM",
    "google": f"{_ROWS}google:GOOGLE",
    "aiobotocore": f"{_ROWS}bedrock:AIOBOTOCORE",  # first: its clients are botocore's as well
    "bedrock": f"{_ROWS}bedrock:BEDROCK",
}
"""Name -> row of a client library that can be instrumented. Rows of others are added when they are first asked for."""

ANSWERS = {
    "openai": f"{_ROWS}openai:OPENAI",
    "azure": f"{_ROWS}openai:AZURE",
    "anthropic": f"{_ROWS}anthropic:ANTHROPIC",
    "google": f"{_ROWS}google:GOOGLE",
    "aws": f"{_ROWS}bedrock:BEDROCK",
    "mistral": f"{_ROWS}mistral:MISTRAL",
    "cohere": f"{_ROWS}cohere:COHERE",
    "ollama": f"{_ROWS}ollama:OLLAMA",
    "huggingface": f"{_ROWS}huggingface:HUGGINGFACE",
    "deepseek": f"{_ROWS}compatible:DEEPSEEK",
    "groq": f"{_ROWS}compatible:GROQ",
    "openrouter": f"{_ROWS}compatible:OPENROUTER",
    "perplexity": f"{_ROWS}compatible:PERPLEXITY",
    "together": f"{_ROWS}compatible:TOGETHER",
    "x-ai": f"{_ROWS}compatible:XAI",
    **dict.fromkeys(
        (
            "baseten", "cerebras", "databricks", "fireworks", "meta", "minimax", "moonshotai", "novita", "ovhcloud", "sglang",
            "vllm", "voyageai", "zai", "zhipuai",
        ),
        f"{_ROWS}compatible:COMPATIBLE",
    ),
}  # fmt: skip
"""Provider, by its id in the price list -> row of how it answers."""

_SEAMS = {
    "stainless": "aifinops.integrations.seams.stainless:Seam",
    "http": "aifinops.integrations.seams.http:Seam",
    "google_genai": "aifinops.integrations.seams.google_genai:Seam",
    "botocore": "aifinops.integrations.seams.botocore:Seam",
}

_SESSIONS = {
    "openai": (
        "aifinops.integrations.seams.sessions:patch_openai",
        (
            "openai.resources.realtime.realtime",
            "openai.resources.beta.realtime.realtime",
            "openai.resources.live.sideband",
        ),
    ),
    "google": ("aifinops.integrations.seams.sessions:patch_google", ("google.genai.live",)),
}
"""Name -> what patches its sessions, and the modules that have them, which are imported when somebody opens one."""

_patches = Patches()


GROUP = "aifinops.providers"
"""Entry points of this group are names of `Provider` rows in other people's distributions."""


_given: dict[str, Provider] = {}
"""Rows that were given to `instrument` as they are."""


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    if not module:
        return _given[name]
    return getattr(importlib.import_module(module), name)


@lru_cache(maxsize=1)
def _find_others() -> None:
    """Load the rows of other distributions, once; one that is broken is one warning."""
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        try:
            row = _load(point.value)
            if not isinstance(row, Provider):
                raise ConfigurationError(f"{point.value} is no aifinops Provider")
            if point.name in PROVIDERS:
                raise ConfigurationError(f"the name {point.name!r} is taken; give {point.value} another")
            if row.seam:
                _seam_class(row.seam)
                PROVIDERS[point.name] = point.value
            _answers_of(row, point.value)
        except Exception as failure:  # somebody else's mistake must not keep the rest from being metered
            swallow(f"integrations.entry_point.{point.name}", failure)


def _answers_of(row: Provider, reference: str) -> None:
    for name in (row.name, *row.hosts.values()):
        if not knows(name):
            ANSWERS[provider_id(name) or name] = reference


def _take(row: Provider) -> str:
    """The name of a row that was given as it is."""
    if row.name in PROVIDERS and _given.get(row.name) != row:
        raise ConfigurationError(f"there is an integration {row.name!r} already; give your row another name")
    if row.name not in _given:
        _seam_class(row.seam)
        _given[row.name] = row
        PROVIDERS[row.name] = f":{row.name}"
        _answers_of(row, f":{row.name}")
    return row.name


def _seam_class(name: str) -> Any:
    return _load(_SEAMS.get(name, name))


@lru_cache(maxsize=64)
def provider(name: str) -> Provider:
    """The row of a provider.

    Raises:
        ConfigurationError: for an unknown name, with the nearest.
    """
    reference = PROVIDERS.get(name)
    if reference is None:
        _find_others()
        reference = PROVIDERS.get(name)
    if reference is None:
        near = difflib.get_close_matches(name, [*PROVIDERS, *HOOKS], n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"no integration {name!r}.{hint} There are: {', '.join([*PROVIDERS, *HOOKS])}.")
    row: Provider = _load(reference)
    return row


@lru_cache(maxsize=256)
def answers(name: str) -> tuple[str, Provider]:
    """(the name without surrounding space and capitals, the row of how that provider answers), for any of its spellings.

    Raises:
        ConfigurationError: for an unknown name, with the nearest.
    """
    given = name.strip().lower() if isinstance(name, str) else ""
    if not knows(given):
        _find_others()
    reference = ANSWERS.get(provider_id(given) or given)
    if reference is None:
        near = difflib.get_close_matches(given, [*ANSWERS, *SPELLINGS], n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(
            f"no provider {name!r} whose answers are known.{hint} There are: {', '.join(ANSWERS)}."
        )
    row: Provider = _load(reference)
    return given, row


def knows(name: str) -> bool:
    """Whether `answers` has a row for a name."""
    return (provider_id(name) or name) in ANSWERS


@lru_cache(maxsize=64)
def _seam(name: str) -> Any:
    row = provider(name)
    return _seam_class(row.seam)(row)


def instrument(*targets: Any) -> None:
    """Meter every call of the installed client libraries; safe to call twice, before or after they are imported.

    Args:
        *targets: names (`"openai"`), client objects (only that client then) or rows of your own; none for all client libraries of
            models, the frameworks above them, which add tags, and torch, whose steps count for the run that is open. Databases, storage
            and the GPUs of a training process (`"pinecone"`, `"s3"`, `"training"`) are charged when they are named.

    Raises:
        ConfigurationError: for an unknown name, a named library that is not installed, or wrong settings.
    """
    import aifinops.track  # noqa: F401 - where a thread loads it while the process forks, the child waits for that for ever

    engines = runtime.get()
    _ = engines.writer  # a ledger that cannot be opened is said now, not inside a call
    if engines.config.threads:
        _patches.when_imported("threads", "concurrent.futures.thread", _patch_threads)
    if not targets:
        _find_others()
    for target in targets or (*PROVIDERS, *FRAMEWORKS, *TRAINING):
        if isinstance(target, Provider):
            _instrument_name(_take(target), asked=True)
        elif isinstance(target, str):
            _instrument_name(target, asked=bool(targets))
        else:
            _instrument_client(target)


def _instrument_name(name: str, *, asked: bool) -> None:
    if name in HOOKS:
        _instrument_hook(name, asked=asked)
        return
    row = provider(name)
    if asked and row.module not in sys.modules and not _installed(row.module):
        raise ConfigurationError(f"{row.module} is not installed: pip install {row.package}")
    for home in _homes(row):
        _patches.when_imported(name, home, lambda module: _patch(name, row.module, module))
    patch, modules = _SESSIONS.get(name, ("", ()))
    for place in modules:
        _patches.when_imported(f"{name} sessions in {place}", place, lambda module: list(_load(patch)(row, module)))


def _homes(row: Provider) -> list[str]:
    """The modules that are patched when they are imported: of a library with a seam of its own, its first one as well."""
    homes = [place.partition(":")[0] for place in (*row.senders, *row.outermost, *row.copies)]
    return list(dict.fromkeys(homes if row.seam == "http" else [row.module, *homes]))


def _instrument_hook(name: str, *, asked: bool) -> None:
    found = HOOKS[name]
    if asked and found.top.partition(".")[0] not in sys.modules and not _installed(found.top):
        raise ConfigurationError(f"{found.top} is not installed: pip install {found.package}")
    for place, (module, reference) in enumerate(found.targets):
        # One key for each module, and the plain name for the first: that is what `uninstrument(name)` is given.
        key = name if not place else f"{name} ({module})"
        _patches.when_imported(key, module, functools.partial(_call, reference))


def _call(reference: str, loaded: Any) -> list[Any]:
    made: list[Any] = _load(reference)(loaded)
    return made


def _installed(module: str) -> bool:
    """Whether there is such a module; without importing a package, other than one that several distributions share."""
    top, _, rest = module.partition(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not rest or spec.origin is not None:
        return spec is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it is inside of is missing
        return False


def _patch(name: str, library: str, module: Any) -> list[Patch]:
    from aifinops.integrations import others
    from aifinops.integrations.passing import guarded

    patches = list(_seam(name).patch_module(module))
    guarded("others.step_in", others.presence(library).step_in)
    return patches


def _instrument_client(client: Any) -> None:
    modules = [f"{kind.__module__}." for kind in type(client).__mro__]
    _find_others()
    for name in PROVIDERS:
        home = f"{provider(name).module}."
        if any(module.startswith(home) for module in modules):
            if name in _patches.state():
                return  # its class is patched already: once is enough
            _patches.apply(f"{name} client at {id(client):#x}", lambda: list(_seam(name).patch_client(client)))  # noqa: B023
            return
    raise ConfigurationError(
        f"{type(client).__module__}.{type(client).__qualname__} is no client that is known here; "
        f"there are integrations for {', '.join(PROVIDERS)}"
    )


def uninstrument(*targets: str) -> None:
    """Restore exactly what was there; nothing named takes back everything."""
    others = sys.modules.get(f"{__package__}.others")
    for target in targets or (None,):
        _patches.undo(target)
        for module, _ in HOOKS[target].targets[1:] if target in HOOKS else ():
            _patches.undo(f"{target} ({module})")
        for key in [key for key in _patches.state() if key.startswith(f"{target} sessions in ")]:
            _patches.undo(key)
        if others is not None:
            others.leave(provider(target).module if target in PROVIDERS else target)


def state() -> dict[str, str]:
    """What is instrumented: key -> `active` or `waiting for import`."""
    return _patches.state()


def _patch_threads(module: Any) -> list[Patch]:
    return [Patch(module.ThreadPoolExecutor, "submit", _submit)]


def _submit(wrapped: Any, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry tags and budgets into the worker; the OpenTelemetry context is left to OpenTelemetry."""
    from aifinops.integrations.passing import guarded

    return wrapped(*(guarded("threads", _bound, args) or args), **kwargs)


def _bound(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (scope.bind(args[0]), *args[1:]) if args and scope.current() is not scope.NOTHING else args
