"""From the names that people and providers use to the names of a price list.

A name matches exactly, or by a clause that the list itself declares. A clause that names only the beginning (`starts_with`) or
a part (`contains`) of a name counts when what remains is a form of the same model and never another model:

* after it: nothing, a dated snapshot (`-2025-08-07`, `-20250807`, `@20250807`, `-0613`, `-09-2025`), `-latest`, a preview of these
  (`-preview-05-06`), a version (`-v1`, `:0`, `-v2:0`, `-001`);
* before it (`contains` and `ends_with` only): nothing, a path (`publishers/anthropic/models/`) or dotted namespaces (`us.anthropic.`).
  A geography of Amazon Bedrock other than `us.` and `global.` has prices of its own: it counts only where the clause itself names it, or
  for Anthropic's models, which cost the same in each but the government's. Likewise a region in a path or an ARN, where no geography
  of an inference profile decides instead.

A name after a declared prefix (`PREFIXES`) is looked up at the provider that the prefix names.

So `gpt-5.6` is never priced as `gpt-5`, nor `gpt-5-mini` as `gpt-5`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any

__all__ = ["PREFIXES", "PROVIDERS", "Names", "is_match", "nearest", "provider_id", "without_prefix"]

PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        # OpenTelemetry's `gen_ai.provider.name` -> id in the bundled list.
        "aws.bedrock": "aws",
        "azure.ai.inference": "azure",
        "azure.ai.openai": "azure",
        "gcp.gemini": "google",
        "gcp.gen_ai": "google",
        "gcp.vertex_ai": "google",
        "mistral_ai": "mistral",
        "moonshot_ai": "moonshotai",
        "x_ai": "x-ai",
        # Spellings of SDKs and gateways.
        "azure_openai": "azure",
        "bedrock": "aws",
        "fireworks_ai": "fireworks",
        "gemini": "google",
        "google_genai": "google",
        "mistralai": "mistral",
        "moonshot": "moonshotai",
        "together-ai": "together",
        "together_ai": "together",
        "vertex_ai": "google",
        "vertexai": "google",
        "xai": "x-ai",
    }
)
"""Provider names whose meaning is certain. Any other name must be the list's own id: a provider is never guessed."""

PREFIXES: Mapping[str, str] = MappingProxyType(
    {
        # The first part of LiteLLM's names (https://docs.litellm.ai/docs/providers) -> id in the bundled list.
        "anthropic": "anthropic",
        "azure": "azure",
        "azure_ai": "azure",
        "azure_text": "azure",
        "baseten": "baseten",
        "bedrock": "aws",
        "bedrock_mantle": "aws",
        "bigmodel": "zhipuai",
        "cerebras": "cerebras",
        "cloudflare": "cloudflare",
        "codestral": "mistral",
        "cohere": "cohere",
        "cohere_chat": "cohere",
        "databricks": "databricks",
        "deepseek": "deepseek",
        "fireworks_ai": "fireworks",
        "gemini": "google",
        "github_copilot": "github-copilot",
        "groq": "groq",
        "meta": "meta",
        "minimax": "minimax",
        "mistral": "mistral",
        "moonshot": "moonshotai",
        "novita": "novita",
        "openai": "openai",
        "openrouter": "openrouter",
        "ovhcloud": "ovhcloud",
        "perplexity": "perplexity",
        "text-completion-codestral": "mistral",
        "text-completion-openai": "openai",
        "together_ai": "together",
        "vertex_ai": "google",
        "voyage": "voyageai",
        "xai": "x-ai",
        "zai": "zai",
        # The resource names of Gemini's API: `models/gemini-2.5-flash`.
        "models": "google",
        "publishers/google/models": "google",
    }
)
"""What may stand before a name and says who sells it. A place in between (`azure/eu/`, `bedrock/eu-west-1/`) has prices of its own."""

_DATE = r"(?:20\d\d-\d\d-\d\d|20\d{6}|\d\d-20\d\d|\d\d-\d\d|\d{6}|\d{3,4})"
_REST = re.compile(
    rf"(?:-(?:preview|exp|experimental|beta))?(?:[-@]{_DATE})?(?:[-@](?:latest|default))?(?:-v\d+)?(?::\d+)?"
)
_BEFORE = re.compile(r"(?:.*/)?(?:[a-z0-9-]+\.)*")
# LiteLLM 1.110.2, after Amazon's price pages: Nova Pro costs 0.80 by `us.`, 0.84 by `apac.`, 1.05 by `eu.`; the government a fifth more.
_GEOGRAPHY = re.compile(r"(?:.*/)?(us-gov|apac|(?!us\.)[a-z]{2})\.(.*)")
# Regions that have the prices of the list are those of the United States without the government's.
_REGION = re.compile(r"(?<![a-z0-9])(?!us-[a-z]+-\d)[a-z]{2}(?:-(?:gov|iso[a-z]?))?-[a-z]+-\d(?!\d)")
_APART = re.compile(r"(?<![a-z0-9])(?:us-gov|aws-us-gov|aws-cn|us-iso[a-z]?)(?![a-z0-9])")
# A foundation model has the price of its region, a profile that of the geography in its name.
_ARN = re.compile(r"arn:aws:bedrock:([a-z0-9-]+):\d*:(foundation-model|inference-profile)/")
_MODES = re.compile(r"(?i:converse_like|converse|invoke)/")
_PLACES = re.compile(r"(?i:global-standard|global)/")
# A fine-tune carries the names of its owner after the dated base model.
_TUNED = re.compile(rf"(?:[-@]{_DATE})?(?::.*)?")
# The beginning of a date, or a dangling separator, at the end of a clause: `claude-sonnet-4-2025`, `claude-sonnet-4@`.
_CUT = re.compile(r"[-@:](?:20\d\d-?|0)?$")
_COMPACT = re.compile(r"(-)(20\d\d)(\d\d)(\d\d)(?=-|:|$)")


def provider_id(provider: str | None) -> str | None:
    """The list's id of a provider; None when none was given."""
    if not provider:
        return None
    name = provider.strip().lower()
    return PROVIDERS.get(name, name)


def without_prefix(provider: str | None, model: str) -> tuple[str, str] | None:
    """(provider, name) of a name that a declared prefix stands before; None without one, or where it is of another provider.

    Args:
        provider: id in the list, or None when the caller named none: then the prefix decides. model: the name as it was given.
    """
    arn = _ARN.match(model.lower())
    if arn is not None:
        name = model.lower()[arn.end() :]
        at_home = arn[2] == "inference-profile" or arn[1].startswith("us-") or name.startswith("anthropic.")
        return ("aws", name) if at_home and provider in (None, "aws") else None
    first, slash, name = model.partition("/")
    seller = PREFIXES.get(first.lower())
    if seller is None and first.lower() == "publishers":
        first, slash, name = model[:24], model[24:25], model[25:]
        seller = PREFIXES.get(first.lower())
    if not slash or not name or seller is None or provider not in (None, seller):
        return None
    if seller in _INSIDE:
        found = _INSIDE[seller].match(name)
        name = name[found.end() :] if found else name
        if "/" in name:  # a place, whose prices are its own
            return None
    return seller, name


_INSIDE = {"aws": _MODES, "azure": _PLACES}
"""What LiteLLM writes between prefix and name without another price."""


def is_match(clause: Mapping[str, Any], name: str) -> bool:
    """Whether a lower-case name satisfies a declared clause, by the rules of this module."""
    [(kind, value)] = clause.items()
    if kind == "or":
        return any(is_match(item, name) for item in value)
    if kind == "and":
        return all(is_match(item, name) for item in value)
    if kind == "regex":
        return re.search(value, name) is not None
    return _TESTS[kind](value.lower(), name)


def _equals(value: str, name: str) -> bool:
    return name == value


def _starts_with(value: str, name: str) -> bool:
    if not name.startswith(value):
        return False
    rest = _TUNED if value.startswith("ft:") or value.endswith(".ft-") else _REST
    return value.endswith(".ft-") or any(rest.fullmatch(name, cut) for cut in (len(value), len(_CUT.sub("", value))))


def _contains(value: str, name: str) -> bool:
    start = name.find(value)
    return start >= 0 and _may_precede(value, name[:start]) and _starts_with(value, name[start:])


def _ends_with(value: str, name: str) -> bool:
    if not name.endswith(value):
        return False
    # A clause that begins with a slash brings its own boundary.
    return value.startswith("/") or _may_precede(value, name[: len(name) - len(value)])


def _may_precede(value: str, before: str) -> bool:
    """Whether what stands before a declared part leaves it the same model at the same price."""
    if _BEFORE.fullmatch(before) is None or (_APART.search(before) and not value.startswith("us-gov.")):
        return False
    if ":inference-profile/" not in before and _REGION.search(before) and not _is_anthropic(before, value):
        return False
    geography = _GEOGRAPHY.fullmatch(before)
    return geography is None or (geography[1] != "us-gov" and f"{geography[2]}{value}".startswith("anthropic."))


def _is_anthropic(before: str, value: str) -> bool:
    return "anthropic." in f"{before}{value}"


_TESTS = {"equals": _equals, "starts_with": _starts_with, "contains": _contains, "ends_with": _ends_with}


def loosely(clause: Mapping[str, Any], name: str) -> bool:
    """Whether a name looks like one of a provider's. Only where to look is decided by this, never a price."""
    [(kind, value)] = clause.items()
    if kind == "or":
        return any(loosely(item, name) for item in value)
    if kind == "and":
        return all(loosely(item, name) for item in value)
    if kind == "regex":
        return re.search(value, name) is not None
    text = str(value).lower()
    return {
        "equals": name == text,
        "starts_with": name.startswith(text),
        "ends_with": name.endswith(text),
        "contains": text in name,
    }[str(kind)]


@dataclass(slots=True, eq=False, repr=False)
class Names:
    """The names of one provider's models: row numbers by exact name, then clauses in the order of the list."""

    exact: Mapping[str, int]
    clauses: Sequence[tuple[Mapping[str, Any], int]]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Names:
        """Index the model rows of a price file. An earlier row keeps a name that two rows claim."""
        exact: dict[str, int] = {}
        clauses: list[tuple[Mapping[str, Any], int]] = []
        for number, row in enumerate(rows):
            for name in row.get("names", ()):
                exact.setdefault(name.lower(), number)
            clauses += [(clause, number) for clause in row.get("match", ())]
        for number, row in enumerate(rows):
            exact.setdefault(row["model"].lower(), number)
        return cls(exact, clauses)

    def find(self, model: str) -> int | None:
        """The row of a model, or None."""
        name = model.lower()
        for form in dict.fromkeys((name, _dashed(name))):
            number = self.exact.get(form)
            if number is None:
                number = next((n for clause, n in self.clauses if is_match(clause, form)), None)
            if number is not None:
                return number
        return None


def _dashed(name: str) -> str:
    """`gpt-5.2-20251211` -> `gpt-5.2-2025-12-11`: some gateways write the date of a snapshot without dashes."""

    def write(found: re.Match[str]) -> str:
        try:
            day = date(int(found[2]), int(found[3]), int(found[4]))
        except ValueError:
            return found[0]
        return found[1] + day.isoformat()

    return _COMPACT.sub(write, name)


def nearest(model: str, names: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """Known names that look like `model`, best first. For people to read; never used to choose a price."""
    known = {name.lower(): name for name in names}
    import difflib  # only to say what was wrong

    return tuple(known[name] for name in difflib.get_close_matches(model.lower(), known, n=count, cutoff=0.6))
