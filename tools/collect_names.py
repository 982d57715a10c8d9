"""Collect real model names, with what each must resolve to, into `tests/unit/pricing/data/names.tsv`.

    python tools/collect_names.py --litellm model_prices_and_context_window_backup.json [--recorded NAMES.tsv ...]

What a name must resolve to is worked out here from the installed `genai-prices`, our own list beside it and LiteLLM's prices, not from `aifinops`: the table
would prove nothing if it came from what it tests. The header of the table says how each class of rows was derived. The rules are those of
`docs/reference/prices.md`, written a second time over words instead of one regular expression. Names under `HAND` were written by hand.
Recorded names are lines of `provider<TAB>name`, as requests and responses of real traffic have them.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "src")]

from compare_litellm import METER, seller  # noqa: E402
from genai_prices import __version__ as genai_version  # noqa: E402
from genai_prices import types  # noqa: E402
from genai_prices.data import providers as PROVIDERS  # noqa: E402

TARGET = ROOT / "tests" / "unit" / "pricing" / "data" / "names.tsv"
BY_ID = {provider.id: provider for provider in PROVIDERS}
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
REFUSED = "-"

HEADER = """\
# Model names and what they must resolve to, made by tools/collect_names.py from genai-prices {genai}, LiteLLM {litellm}, our own list and recorded traffic.
# provider <TAB> class <TAB> expected <TAB> name <TAB> name ...
# expected: provider/model of the list; "=" is the name itself at that provider; "-" is refused; a "?" at the end also allows refusal.
# An empty provider is one that the caller did not name.
# class, and how "expected" was derived:
#   E  the name is, letter for letter, an id or an exact name of the source; a name of two models is left out.
#   P  a clause of the source admits the name, all words that it does not name are dates or versions (a
#      regular expression counts as it stands), and LiteLLM has the same price.
#   T  the same without a price of LiteLLM to confirm it, or with another price (docs/explanation/prices-compared-with-litellm.md).
#   F  at a provider that the source says resells others' models: E to T at the maker.
#   O  a model of our own list, which lies over the source: its id, or a beginning that it declares and no word but dates and owners after it.
#   N  the source itself refuses the name, at that provider and at those whose models it resells.
#   W  the source would take the name for a model whose name it only begins with or contains: another word follows, so it is another model.
#   X  no list has the provider.
#   A  an ARN of Amazon Bedrock; the name in it decides, an application inference profile names none.
#   G  a path or prefix of a gateway before a name of E to T; after a prefix alone it is that model, with a place after it it may be refused.
#   H  written by hand from the providers' documentation.
#   S  made up: a beginning or part that the source declares, with the date of a snapshot.
#   V  made up: a known name with a word, letter or number that no provider has. Every one is refused.
"""


class Row(NamedTuple):
    provider: str
    kind: str
    expected: str
    name: str


# What a clause admits ---------------------------------------------------------------------------------------------------

_WORD = re.compile(
    r"latest|default|preview|exp|experimental|beta|v\d+|20\d{6}|20\d\d|\d{6}|\d{3,4}|0\d|1[0-2]|[12]\d|3[01]"
)
_ALONE = re.compile(r"0\d|1[0-2]|[12]\d|3[01]")


def is_version(rest: str) -> bool:
    """Whether what follows a name is only dates and versions: every word of it, and no two digits outside a date."""
    if not rest:
        return True
    if rest[0] not in "-@:":
        return False
    rest, _, number = rest.partition(":")
    if number and not number.isdigit():
        return False
    words = re.split(r"[-@]", rest)[1:] if rest else []
    pairs = [word for word in words if _ALONE.fullmatch(word)]
    years = [word for word in words if re.fullmatch(r"20\d\d", word)]
    # 05-06, 2025-08-07 and 09-2025 are dates; 32768, 5 and 2 are not.
    dated = len(pairs) in {0, 2} or (len(pairs) == 1 and len(years) == 1)
    return dated and all(_WORD.fullmatch(word) for word in words)


def is_place(before: str, declared: str) -> bool:
    """Whether what stands before a name is a path or a namespace that does not change the price."""
    if not before or before.endswith("/"):
        return True
    last = before.rpartition("/")[2]
    if not re.fullmatch(r"(?:[a-z0-9-]+\.)+", last):
        return False
    geography, _, rest = last.partition(".")
    if geography == "us" or not (len(geography) == 2 or geography in {"apac", "us-gov"}):
        return True
    return geography != "us-gov" and f"{rest}{declared}".startswith("anthropic.")


def follows(declared: str, name: str) -> bool:
    if declared.endswith(".ft-"):
        return True
    cut = re.sub(r"(?:[-@:](?:20\d\d-?|0)?|-v)$", "", declared)
    rests = [name[len(declared) :], name[len(cut) :]]
    if declared.startswith("ft:"):
        rests = [rest.partition(":")[0] for rest in rests]
    return any(is_version(rest) for rest in rests)


def admits(clause: Any, name: str) -> bool:
    """Whether a clause of the source admits a name by the rules; a regular expression counts as it stands."""
    if isinstance(clause, types.ClauseOr):
        return any(admits(one, name) for one in clause.or_)
    if isinstance(clause, types.ClauseAnd):
        return all(admits(one, name) for one in clause.and_)
    if not clause.is_match(name):
        return False
    if isinstance(clause, types.ClauseRegex | types.ClauseEquals):
        return True
    declared = next(iter(vars(clause).values())).lower()
    if isinstance(clause, types.ClauseEndsWith):
        return declared.startswith("/") or is_place(name.removesuffix(declared), declared)
    start = name.find(declared)
    return is_place(name[:start], declared) and follows(declared, name[start:])


def exact_names(clause: Any) -> Iterator[str]:
    for one in getattr(clause, "or_", None) or [clause]:
        if isinstance(one, types.ClauseEquals):
            yield one.equals.lower()
        elif isinstance(one, types.ClauseOr):
            yield from exact_names(one)


def exact(provider: Any) -> dict[str, set[str]]:
    """Exact name -> models that claim it."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for model in provider.models:
        for name in {model.id.lower(), *exact_names(model.match)}:
            found[name].add(model.id)
    return found


EXACT = {provider.id: exact(provider) for provider in PROVIDERS}


def compact_date(name: str) -> str:
    return re.sub(r"-(20\d\d)(\d\d)(\d\d)(?=-|:|$)", r"-\1-\2-\3", name)


def at(provider: Any, name: str) -> tuple[str, str] | None:
    """(class, model) of a name at one provider; ("W", "") when only the source's own looser rule admits it."""
    for form in dict.fromkeys((name, compact_date(name))):
        claimed = EXACT[provider.id].get(form, set())
        if len(claimed) > 1:
            return None
        if claimed:
            return "E", next(iter(claimed))
        for model in provider.models:
            if admits(model.match, form):
                return "T", model.id
    return ("W", "") if any(model.is_match(name) for model in provider.models) else ("N", "")


def own_models() -> list[dict[str, Any]]:
    """The models that our own list adds, wherever it lies."""
    places = [ROOT / "src" / "aifinops" / "pricing" / "data" / "llm.toml", ROOT / "tools" / "prices" / "llm.toml"]
    path = next(path for path in places if path.exists())
    found: list[dict[str, Any]] = tomllib.loads(path.read_text("utf-8"))["models"]
    return found


OWN = own_models()


def at_own(provider_id: str, name: str) -> str:
    """The model of our own list that a name means there."""
    for row in (row for row in OWN if row["provider"] == provider_id):
        names = [row["model"], *row.get("names", ())]
        starts = [clause["starts_with"] for clause in row.get("match", ()) if "starts_with" in clause]
        if name in map(str.lower, names) or any(name.startswith(start) and follows(start, name) for start in starts):
            return f"{provider_id}/{row['model']}"
    return ""


def expect(provider_id: str, name: str) -> tuple[str, str] | None:
    """(class, expected) of a name; None when the source leaves it open."""
    if provider_id == "google":
        name = name.removeprefix("models/")  # a resource name of the API
    own = at_own(provider_id, name.lower())
    if own:
        return "O", own
    provider = BY_ID.get(provider_id)
    if provider is None:
        return "X", REFUSED
    found = at(provider, name.lower())
    if found is None:
        return None
    kind, model = found
    if model:
        return kind, f"{provider_id}/{model}"
    for other in provider.fallback_model_providers or ():
        resold = at(BY_ID[other], name.lower())
        if resold is None:
            return None
        if resold[1]:
            return "F", f"{other}/{resold[1]}"
        kind = "W" if "W" in {kind, resold[0]} else kind
    return kind, REFUSED


# Names ------------------------------------------------------------------------------------------------------------------


def of_the_source() -> Iterator[Row]:
    for provider in PROVIDERS:
        for name, models in EXACT[provider.id].items():
            if len(models) == 1 and not any(character in name for character in "\t\n"):
                yield Row(provider.id, "E", f"{provider.id}/{next(iter(models))}", name)
        for model in provider.models:
            for clause in getattr(model.match, "or_", None) or [model.match]:
                if isinstance(clause, types.ClauseStartsWith | types.ClauseContains):
                    text = next(iter(vars(clause).values()))
                    dated = f"{text}-20250807"
                    if (
                        not text.endswith(tuple("-@:0"))
                        and not re.search(r"20\d\d|v\d", text)
                        and expect(provider.id, dated)
                    ):
                        yield Row(provider.id, "S", expect(provider.id, dated)[1], dated)
                    found = expect(provider.id, text)
                    if found:
                        yield Row(provider.id, *found, text)


def of_litellm(table: dict[str, Any]) -> Iterator[Row]:
    strangers = 0
    for key, row in table.items():
        if not isinstance(row, dict) or not row.get("litellm_provider") or " " in key:
            continue
        where = seller(key, row["litellm_provider"])
        if where is None:
            own = row["litellm_provider"]
            if own not in BY_ID:
                # A third of them says as much.
                strangers += 1
                if strangers % 3 == 0:
                    yield Row(own, "X", REFUSED, key.removeprefix(f"{own}/"))
            continue
        found = expect(where.provider, where.model)
        if found is None:
            continue
        kind, expected = found
        if kind == "T" and _same_price(row, *expected.split("/", 1)):
            kind = "P"
        yield Row(where.provider, kind, expected, where.model)
        if (
            kind not in {"N", "W"}
            and where.model != key
            and expect(where.provider, key) in {("N", REFUSED), ("W", REFUSED)}
        ):
            # Only the prefix itself is declared; a place after it may have prices of its own.
            yield Row(where.provider, "G", expected if key.partition("/")[2] == where.model else f"{expected}?", key)


def _same_price(row: dict[str, Any], provider: str, model: str) -> bool:
    entry = next(one for one in BY_ID[provider].models if one.id == model)
    given = [(key, row[key]) for key in ("input_cost_per_token", "output_cost_per_token") if row.get(key)]
    prices = entry.get_prices(NOW)
    return bool(given) and all(
        _price(getattr(prices, FIELD[METER[key]], None)) == round(Decimal(repr(value)) * 1_000_000, 9)
        for key, value in given
    )


FIELD = {"input_tokens": "input_mtok", "output_tokens": "output_mtok"}


def _price(value: Any) -> Decimal | None:
    return getattr(value, "base", value)


def arns(rows: Iterable[Row]) -> Iterator[Row]:
    for row in [row for row in rows if row.provider == "aws" and row.kind in {"E", "P", "T"}][::3]:
        if "." in row.name and "/" not in row.name and not row.name.startswith("regional."):
            if row.name.split(".")[0] in {"us", "eu", "apac", "global", "jp", "au", "in", "us-gov"}:
                arn = f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{row.name}"
            else:
                arn = f"arn:aws:bedrock:us-east-1::foundation-model/{row.name}"
            yield Row("aws", "A", f"{row.expected}?", arn)


HAND = [
    # OpenAI, "Fine-tuning": ft:<base>:<organisation>:<suffix>:<id>.
    ("openai", "openai/ft:gpt-4.1-mini?", "ft:gpt-4.1-mini-2025-04-14:acme::Abc123"),
    ("openai", "openai/ft:gpt-4.1-mini?", "ft:gpt-4.1-mini-2025-04-14:acme:support:Abc123"),
    ("openai", "openai/ft:gpt-4o", "ft:gpt-4o-2024-08-06:acme::Abc123"),
    ("openai", "openai/ft:gpt-4o-mini", "ft:gpt-4o-mini-2024-07-18:acme::Abc123"),
    ("openai", "openai/ft:gpt-3.5-turbo-", "ft:gpt-3.5-turbo-0125:acme::Abc123"),
    ("openai", REFUSED, "ft:gpt-4.1-mega-2025-04-14:acme::Abc123"),
    ("openai", REFUSED, "ft:gpt-99-2025-04-14:acme::Abc123"),
    # `NAMES` of tools/compile_prices.py: the source's comments say that these are meant by a bare beginning.
    ("anthropic", "anthropic/claude-2", "claude-2.0"),
    ("anthropic", "anthropic/claude-2", "claude-2.1"),
    ("openai", "openai/moderation", "omni-moderation-latest"),
    ("openai", "openai/moderation", "omni-moderation-2024-09-26"),
    # Amazon, "Inference profiles": an application profile has an id of its own and says no model.
    ("aws", REFUSED, "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3d4e5f6"),
    ("aws", REFUSED, "arn:aws:bedrock:eu-central-1:123456789012:provisioned-model/a1b2c3d4e5f6"),
    ("aws", REFUSED, "arn:aws:bedrock:us-east-1:123456789012:custom-model/amazon.nova-pro/a1b2c3d4e5f6"),
    ("aws", REFUSED, "arn:aws:sagemaker:us-east-1:123456789012:endpoint/endpoint-quick-start-idr7y"),
    ("aws", REFUSED, "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.amazon.nova-pro-v1:0"),
    ("aws", REFUSED, "eu.amazon.nova-pro-v1:0"),
    ("aws", REFUSED, "us-gov.amazon.nova-pro-v1:0"),
    # Azure: a deployment has the name that its owner gave it.
    ("azure", REFUSED, "my-deployment"),
    ("azure", REFUSED, "prod-gpt4"),
    ("azure", REFUSED, "chat"),
    ("azure", REFUSED, "gpt4o-eastus"),
    # Google: paths of the two APIs.
    ("google", "google/gemini-2.5-flash?", "models/gemini-2.5-flash"),
    ("google", "google/gemini-2.5-pro?", "publishers/google/models/gemini-2.5-pro"),
    ("google", "google/gemini-2.5-flash?", "projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash"),
    ("google", REFUSED, "projects/p/locations/us-central1/endpoints/1234567890"),
    ("google", REFUSED, "tunedModels/my-model-1234"),
    ("openai", REFUSED, "this-model-does-not-exist"),
]  # fmt: skip

KNOWN = {
    "openai": ["gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-5", "gpt-5-mini", "gpt-5.2", "gpt-5.6", "o1", "o3", "o3-mini", "o4-mini",
               "gpt-3.5-turbo", "gpt-4", "gpt-4-turbo", "text-embedding-3-small"],
    "azure": ["gpt-4o", "gpt-4.1", "gpt-5", "o3"],
    "anthropic": ["claude-opus-5", "claude-opus-4-1", "claude-sonnet-4-5", "claude-haiku-4-5", "claude-3-5-sonnet", "claude-3-haiku", "claude-2"],
    "google": ["gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.0-flash", "gemini-1.5-pro", "gemini-3-pro-preview"],
    "aws": ["anthropic.claude-sonnet-4-5-20250929-v1:0", "us.anthropic.claude-opus-4-1-20250805-v1:0", "amazon.nova-pro-v1:0", "amazon.nova-lite-v1:0",
            "meta.llama3-1-70b-instruct-v1:0", "us.amazon.nova-micro-v1:0"],
    "mistral": ["mistral-large", "mistral-small-latest", "codestral", "ministral-8b"],
    "deepseek": ["deepseek-chat", "deepseek-reasoner", "deepseek-flash"],
    "x-ai": ["grok-3", "grok-3-mini", "grok-4"],
    "groq": ["llama-3.1-8b-instant", "openai/gpt-oss-20b"],
    "cohere": ["command-r", "command-r-plus", "command-a-03-2025"],
    "openrouter": ["openai/gpt-4o", "anthropic/claude-sonnet-4.5", "google/gemini-2.5-flash"],
    "together": ["meta-llama/Llama-3.3-70B-Instruct-Turbo"],
    "fireworks": ["accounts/fireworks/models/llama-v3p1-8b-instruct"],
    "perplexity": ["sonar", "sonar-pro"],
}  # fmt: skip
TWISTS = (
    "-foo",
    "y",
    "5",
    "-minimal",
    ".9",
    "-99b",
    "-minix",
    "-turbofied",
    "-proxy",
    "_v2x",
    "-2",
    "-32768",
    " plus",
    "/x",
    "-v1.5",
    "-20259999x",
)


def made_up() -> Iterator[Row]:
    """Known names with something after or before them that no provider has."""
    for provider, names in KNOWN.items():
        for name in names:
            # A number after `:0` is a version, and what stands before a dot is a namespace.
            before = [] if "." in name.split("-")[0] else [f"not-{name}", f"x{name}"]
            after = [f"{name}{twist}" for twist in TWISTS if not (name.endswith(":0") and twist.isdigit())]
            for twisted in [*before, *after, name[:-1] + "_"]:
                at_all = [provider, *(BY_ID[provider].fallback_model_providers or ())]
                if not any(twisted.lower() in EXACT[one] for one in at_all):
                    yield Row(provider, "V", REFUSED, twisted)


def without_provider(rows: Iterable[Row]) -> Iterator[Row]:
    """The makers' own names, asked without a provider."""
    makers = {"openai", "anthropic", "x-ai", "deepseek"}
    for row in rows:
        if row.provider in makers and row.kind == "E" and "/" not in row.name:
            yield Row("", row.kind, f"{row.expected}?", row.name)


def collect(table: dict[str, Any], recorded: list[tuple[str, str]]) -> list[Row]:
    found: dict[tuple[str, str], Row] = {}

    def add(rows: Iterable[Row]) -> None:
        for row in rows:
            if "\t" not in row.name:
                found.setdefault((row.provider, row.name.lower()), row)

    add(Row(provider, "A" if name.startswith("arn:") else "H", expected, name) for provider, expected, name in HAND)
    add(of_litellm(table))
    add(of_the_source())
    add(Row(provider, *expected, name) for provider, name in recorded if (expected := expect(provider, name)))
    add(arns(list(found.values())))
    add(made_up())
    add(without_provider(list(found.values())))
    return sorted(found.values())


def write(rows: list[Row], litellm: str) -> str:
    groups: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for row in rows:
        own = row.expected == f"{row.provider}/{row.name}"
        groups[row.provider, row.kind, "=" if own else row.expected].append(row.name)
    lines = [HEADER.format(genai=genai_version, litellm=litellm).rstrip("\n")]
    for key, names in sorted(groups.items()):
        line = "\t".join(key)
        for name in names:
            if len(line) > 140:
                lines.append(line)
                line = "\t".join(key)
            line += f"\t{name}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", type=Path, required=True, help="the table in LiteLLM's wheel")
    parser.add_argument("--version", default="1.110.2", help="of LiteLLM")
    parser.add_argument("--recorded", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    recorded = [tuple(line.split("\t")) for path in options.recorded for line in path.read_text("utf-8").splitlines()]
    rows = collect(json.loads(options.litellm.read_text("utf-8")), [(one[0], one[1]) for one in recorded])
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(write(rows, options.version), "utf-8")
    print(
        f"{TARGET}: {len(rows)} names, {TARGET.stat().st_size:,} bytes; {dict(collections.Counter(row.kind for row in rows))}"
    )


if __name__ == "__main__":
    main()
