"""Which providers there are, as import strings: naming one imports nothing, and nobody else's package is ever imported by us."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from functools import lru_cache
from typing import Any

from aifinops import runtime, scope
from aifinops.errors import ConfigurationError
from aifinops.integrations.patching import Patch, Patches
from aifinops.integrations.provider import Provider
from aifinops.pricing.match import PROVIDERS as SPELLINGS
from aifinops.pricing.match import provider_id

__all__ = ["ANSWERS", "PROVIDERS", "answers", "instrument", "knows", "provider", "state", "uninstrument"]

_ROWS = "aifinops.integrations.providers."

PROVIDERS = {"openai": f"{_ROWS}openai:OPENAI"}
"""Name -> row of a client library that can be instrumented."""

ANSWERS = {
    "openai": f"{_ROWS}openai:OPENAI",
    "azure": f"{_ROWS}openai:AZURE",
    "anthropic": f"{_ROWS}anthropic:ANTHROPIC",
    "google": f"{_ROWS}google:GOOGLE",
    "aws": f"{_ROWS}bedrock:BEDROCK",
    "mistral": f"{_ROWS}mistral:MISTRAL",
    "cohere": f"{_ROWS}cohere:COHERE",
    "ollama": f"{_ROWS}ollama:OLLAMA",
    "deepseek": f"{_ROWS}compatible:DEEPSEEK",
    "groq": f"{_ROWS}compatible:GROQ",
    "openrouter": f"{_ROWS}compatible:OPENROUTER",
    "perplexity": f"{_ROWS}compatible:PERPLEXITY",
    "x-ai": f"{_ROWS}compatible:XAI",
    **dict.fromkeys(
        (
            "baseten", "cerebras", "databricks", "fireworks", "meta", "minimax", "moonshotai", "novita", "ovhcloud", "sglang",
            "together", "vllm", "zai", "zhipuai",
        ),
        f"{_ROWS}compatible:COMPATIBLE",
    ),
}  # fmt: skip
"""Provider, by its id in the price list -> row of how it answers."""

_SEAMS = {"stainless": "aifinops.integrations.seams.stainless:Seam"}

_patches = Patches()


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


@lru_cache(maxsize=64)
def provider(name: str) -> Provider:
    """The row of a provider.

    Raises:
        ConfigurationError: for an unknown name, with the nearest.
    """
    reference = PROVIDERS.get(name)
    if reference is None:
        near = difflib.get_close_matches(name, PROVIDERS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"no integration {name!r}.{hint} There are: {', '.join(PROVIDERS)}.")
    row: Provider = _load(reference)
    return row


@lru_cache(maxsize=256)
def answers(name: str) -> tuple[str, Provider]:
    """(the name without surrounding space and capitals, the row of how that provider answers), for any of its spellings.

    Raises:
        ConfigurationError: for an unknown name, with the nearest.
    """
    given = name.strip().lower() if isinstance(name, str) else ""
    reference = ANSWERS.get(provider_id(given) or "")
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
    return provider_id(name) in ANSWERS


@lru_cache(maxsize=64)
def _seam(name: str) -> Any:
    row = provider(name)
    return _load(_SEAMS[row.seam])(row)


def instrument(*targets: Any) -> None:
    """Meter every call of the installed client libraries; safe to call twice, before or after they are imported.

    Args:
        *targets: names (`"openai"`) or client objects (only that client then); none for all.

    Raises:
        ConfigurationError: for an unknown name, a named library that is not installed, or wrong settings.
    """
    engines = runtime.get()
    _ = engines.writer  # a ledger that cannot be opened is said now, not inside a call
    if engines.config.threads:
        _patches.when_imported("threads", "concurrent.futures.thread", _patch_threads)
    for target in targets or PROVIDERS:
        if isinstance(target, str):
            _instrument_name(target, asked=bool(targets))
        else:
            _instrument_client(target)


def _instrument_name(name: str, *, asked: bool) -> None:
    row = provider(name)
    if asked and row.module not in sys.modules and importlib.util.find_spec(row.module) is None:
        raise ConfigurationError(f"{row.module} is not installed: pip install {row.package}")
    _patches.when_imported(name, row.module, lambda module: _patch(name, row.module, module))


def _patch(name: str, library: str, module: Any) -> list[Patch]:
    from aifinops.integrations import others
    from aifinops.integrations.passing import guarded

    patches = list(_seam(name).patch_module(module))
    guarded("others.step_in", others.presence(library).step_in)
    return patches


def _instrument_client(client: Any) -> None:
    modules = {kind.__module__.partition(".")[0] for kind in type(client).__mro__}
    for name in PROVIDERS:
        if provider(name).module in modules:
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
        if others is not None:
            others.leave(provider(target).module if target in PROVIDERS else target)


def state() -> dict[str, str]:
    """What is instrumented: key -> `active` or `waiting for import`."""
    return _patches.state()


def _patch_threads(module: Any) -> list[Patch]:
    return [Patch(module.ThreadPoolExecutor, "submit", _submit)]


def _submit(wrapped: Any, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry tags and budgets into the worker; the OpenTelemetry context is left to OpenTelemetry."""
    if args and scope.current() is not scope.NOTHING:
        args = (scope.bind(args[0]), *args[1:])
    return wrapped(*args, **kwargs)
