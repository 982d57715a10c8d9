"""Our prices beside the table in LiteLLM's wheel: for every model that both can name, the same tokens.

    python benchmarks/compare_litellm.py [--table FILE] [--envs DIR] [--at 2026-11-24] [--examples 3] [--json FILE]

Every key of LiteLLM of mode chat, completion, responses or embedding with a price per token is taken apart into our provider, model and
region by the rules of `seller`, never by trial. Each rate that LiteLLM gives (fresh, cached and written input, output; batch, flex and
priority; above a threshold) is compared with what `PriceBook.price` says for such tokens, exactly: LiteLLM's numbers are floats and are
read as they are written, to twelve digits. A difference is put in the first class of `classify` that explains it. The wheel is installed without what it
needs, in an environment of its own, and only its table is read.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

from environments import ROOT, environment

sys.path.insert(0, str(ROOT / "src"))  # the list of this checkout, whatever is installed
import aifinops
from aifinops.clock import to_ns
from aifinops.meters import METERS
from aifinops.pricing.book import PriceBook
from aifinops.pricing.prices import Entry, Price
from aifinops.usage import Sku, Usage

VERSION = "1.110.2"
TABLE = "model_prices_and_context_window_backup.json"
MODES = frozenset({"chat", "completion", "responses", "embedding"})

PROVIDERS = {
    # LiteLLM's provider -> (our provider, the first part of its keys, which is not a part of the model's name).
    "openai": ("openai", ""), "text-completion-openai": ("openai", ""),
    "azure": ("azure", "azure/"), "azure_text": ("azure", "azure/"), "azure_ai": ("azure", "azure_ai/"),
    "anthropic": ("anthropic", ""),
    "bedrock": ("aws", "bedrock/"), "bedrock_converse": ("aws", "bedrock/"), "bedrock_mantle": ("aws", "bedrock_mantle/"),
    "gemini": ("google", "gemini/"), "vertex_ai": ("google", "vertex_ai/"),
    "fireworks_ai": ("fireworks", "fireworks_ai/"), "fireworks_ai-embedding-models": ("fireworks", "fireworks_ai/"),
    "together_ai": ("together", "together_ai/"),
    "mistral": ("mistral", "mistral/"), "codestral": ("mistral", "codestral/"),
    "text-completion-codestral": ("mistral", "text-completion-codestral/"),
    "xai": ("x-ai", "xai/"), "deepseek": ("deepseek", "deepseek/"), "groq": ("groq", "groq/"), "cerebras": ("cerebras", "cerebras/"),
    "cohere": ("cohere", "cohere/"), "cohere_chat": ("cohere", "cohere_chat/"), "perplexity": ("perplexity", "perplexity/"),
    "databricks": ("databricks", "databricks/"), "novita": ("novita", "novita/"), "moonshot": ("moonshotai", "moonshot/"),
    "minimax": ("minimax", "minimax/"), "zai": ("zai", "zai/"), "bigmodel": ("zhipuai", "bigmodel/"), "voyage": ("voyageai", "voyage/"),
    "cloudflare": ("cloudflare", "cloudflare/"), "github_copilot": ("github-copilot", "github_copilot/"),
    "baseten": ("baseten", "baseten/"), "ovhcloud": ("ovhcloud", "ovhcloud/"), "meta": ("meta", "meta/"),
    "openrouter": ("openrouter", "openrouter/"),
}  # fmt: skip

METER = {
    "input_cost_per_token": "input_tokens",
    "output_cost_per_token": "output_tokens",
    "cache_read_input_token_cost": "cache_read_tokens",
    "cache_creation_input_token_cost": "cache_write_tokens",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h_tokens",
}
TIERS = {"": "", "_batches": "batch", "_flex": "flex", "_priority": "priority"}
_KEY = re.compile(
    rf"({'|'.join(sorted(METER, key=len, reverse=True))})(?:_above_(\d+)k_tokens)?({'|'.join(filter(None, TIERS))})?"
)
_REGION = re.compile(r"[a-z]{2}(?:-gov)?-[a-z]+-\d")
_AZURE = {"us": "us", "eu": "eu", "apac": "apac", "us-gov": "us-gov", "global": "", "global-standard": ""}
_TWELVE = Context(prec=12)
"""Their floats carry noise behind the twelfth digit: 3.6000000000000003e-06."""
_BELOW = 1_000
"""Tokens that are priced below any threshold."""


@dataclass(frozen=True)
class Seller:
    """Where a key of LiteLLM is found with us."""

    provider: str
    model: str
    region: str = ""


def seller(key: str, litellm_provider: str) -> Seller | None:
    """The provider, model and region that a key means; None for a provider that our list does not have."""
    found = PROVIDERS.get("vertex_ai" if litellm_provider.startswith("vertex_ai-") else litellm_provider)
    if found is None:
        return None
    provider, prefix = found
    model = key.removeprefix(prefix)
    head, _, rest = model.partition("/")
    if provider == "azure" and rest and head in _AZURE:
        return Seller(provider, rest, _AZURE[head])
    if provider == "aws" and rest and _REGION.fullmatch(head):
        return Seller(provider, rest, head)
    if provider == "aws" and rest and head in {"invoke", "converse"}:
        return Seller(provider, rest)
    return Seller(provider, model)


@dataclass(frozen=True)
class Rated:
    """One rate of LiteLLM: USD a token."""

    meter: str
    tier: str
    above: int
    price: Decimal

    @property
    def part(self) -> str:
        """What is compared, in a word or two."""
        return " ".join(
            filter(
                None,
                [self.meter.removesuffix("_tokens"), self.tier, f"above {self.above // 1000}k" if self.above else ""],
            )
        )


def rates(row: dict[str, Any]) -> Iterator[Rated]:
    """The rates of a row that our meters can say."""
    for key, value in row.items():
        found = _KEY.fullmatch(key)
        if found and isinstance(value, int | float):
            name, above, tier = found.groups()
            yield Rated(METER[name], TIERS[tier or ""], int(above or 0) * 1000, _TWELVE.create_decimal(repr(value)))


def ours(book: PriceBook, sku: Sku, rate: Rated, at: int) -> Decimal | None:
    """USD of one more token of that meter with us, so that fees of a request are not in it; None when it is unknown."""
    start = {"input_tokens": rate.above + 1} if rate.above else {}
    once, twice = (
        book.price(Usage({**start, rate.meter: start.get(rate.meter, 0) + times * _BELOW}, sku, at)).amount
        for times in (1, 2)
    )
    return None if once is None or twice is None else (twice - once) / _BELOW


@dataclass
class Compared:
    """A key of LiteLLM, and what came of it."""

    key: str
    litellm_provider: str
    seller: Seller | None
    verdict: str
    kind: str = ""
    entry: str = ""
    parts: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    """Part -> (ours, theirs) a million tokens, of every rate that is not equal."""
    equal: int = 0
    compared: int = 0
    missing: list[str] = field(default_factory=list)
    """Parts that LiteLLM prices and we do not."""
    source: str = ""


def compare(book: PriceBook, key: str, row: dict[str, Any], at: int) -> Compared:
    where = seller(key, row["litellm_provider"])
    result = Compared(key, row["litellm_provider"], where, "", source=str(row.get("source", "")))
    if where is None:
        result.verdict = "provider unknown to us"
        return result
    entry = book.lists[0].find(where.provider, where.model)
    if entry is None:
        result.verdict = "model unknown to us"
        return result
    result.entry = f"{entry.provider}/{entry.model}"
    found: dict[Rated, Decimal] = {}
    for rate in rates(row):
        price = ours(book, Sku(where.provider, where.model, tier=rate.tier, region=where.region), rate, at)
        if price is None:
            result.missing.append(rate.part)
        else:
            found[rate] = price
    base = {rate: price for rate, price in found.items() if not (rate.tier or rate.above)}
    if not base:
        result.verdict = "price unknown to us"
        result.kind = "region" if where.region else ("no price in our list" if not entry.prices else "this moment")
        return result
    wrong = {rate: price for rate, price in found.items() if price != rate.price}
    result.compared, result.equal = len(found), len(found) - len(wrong)
    result.parts = {rate.part: (_million(price), str(_million(rate.price))) for rate, price in wrong.items()}
    result.verdict = "equal" if not wrong else "different"
    if wrong:
        result.kind = classify(Case(key, row, where, entry, wrong, found, at))
    return result


def _million(price: Decimal) -> str:
    return f"{(price * 1_000_000).normalize():f}"


@dataclass(frozen=True)
class Case:
    """A row that differs, and everything that may explain it."""

    key: str
    row: dict[str, Any]
    where: Seller
    entry: Entry
    wrong: dict[Rated, Decimal]
    found: dict[Rated, Decimal]
    at: int

    @property
    def base(self) -> dict[Rated, Decimal]:
        """The differences in the standard price below any threshold."""
        return {rate: price for rate, price in self.wrong.items() if not (rate.tier or rate.above)}

    @property
    def factors(self) -> set[Decimal]:
        """Theirs to ours, of the differences in `base`; zero where either is zero."""
        return {(rate.price / price if price else Decimal(0)) for rate, price in self.base.items()}

    def all_rates(self, test: Callable[[Rated, Decimal], bool]) -> bool:
        return all(test(rate, price) for rate, price in self.wrong.items())

    def has_rate(self, rate: Rated) -> bool:
        """Whether our list itself gives that rate, with a threshold if theirs has one: else it is billed like its whole."""
        given = [
            price.rates[rate.meter] for price in (*self.entry.prices, *self.entry.variants) if rate.meter in price.rates
        ]
        return any(one.above or not rate.above for one in given)


def _off_peak(case: Case) -> bool:
    cheap = case.row.get("off_peak_pricing", {})
    names = {meter: key for key, meter in METER.items()}
    return bool(cheap) and case.all_rates(
        lambda rate, price: rate.price == 0 or _TWELVE.create_decimal(repr(cheap.get(names[rate.meter], -1))) == price
    )


def _near(rate: Rated, price: Decimal) -> bool:
    return bool(price) and abs(rate.price / price - 1) < Decimal("0.015")


def _at_another_date(case: Case) -> bool:
    return any(_says(price, case) for price in case.entry.prices if not price.in_force(case.at))


def _says(price: Price, case: Case) -> bool:
    base = case.base
    return bool(base) and all(
        rate.meter in price.rates and price.rates[rate.meter].at(_BELOW) / price.rates[rate.meter].per == rate.price
        for rate in base
    )


def _is_retired(case: Case) -> bool:
    day = case.row.get("deprecation_date", "")
    return bool(day) and to_ns(datetime.fromisoformat(day).replace(tzinfo=UTC)) <= case.at


_TENTH = {Decimal("1.1"), Decimal(1) / Decimal("1.1")}
_PROFILE = re.compile(r"(?:us|us-gov|eu|apac|jp|au|ca|global)\.")

CLASSES: dict[str, Callable[[Case], bool]] = {
    # The first that explains every difference of a row is its class; docs/explanation/prices-compared-with-litellm.md says more.
    "government cloud": lambda one: "us-gov" in one.key,
    "off-peak hours": _off_peak,
    "zero with them": lambda one: one.all_rates(lambda rate, _: rate.price == 0),
    "free with us": lambda one: one.entry.free,
    "rounded or converted from credits": lambda one: one.all_rates(_near),
    "another currency": lambda one: one.where.provider in {"ovhcloud", "zhipuai"},
    "a part that we bill like its whole": lambda one: one.all_rates(lambda rate, _: not rate.above and not one.has_rate(rate)),
    "a threshold that we do not have": lambda one: one.all_rates(lambda rate, _: bool(rate.above) and not one.has_rate(rate)),
    "only above a threshold": lambda one: one.all_rates(lambda rate, _: bool(rate.above)),
    "only another tier": lambda one: one.all_rates(lambda rate, _: bool(rate.tier)),
    "bedrock id without a profile": lambda one: one.where.provider == "aws" and not _PROFILE.match(one.where.model) and one.factors <= _TENTH,
    "geography of a bedrock profile": lambda one: one.where.provider == "aws" and bool(_PROFILE.match(one.where.model)),
    "regional premium in a plain azure name": lambda one: one.where.provider == "azure" and one.factors <= _TENTH,
    "resold at another price": lambda one: one.entry.provider != one.where.provider,
    "dated price change": _at_another_date,
    "an alias that moved": lambda one: one.where.provider == "mistral" and ("latest" in one.key or one.where.model == "mistral-medium"),
    "retired": _is_retired,
    "only the cache": lambda one: not {rate.meter for rate in one.base} & {"input_tokens", "output_tokens"},
    "another price": lambda _: True,
}  # fmt: skip


def classify(case: Case) -> str:
    """The first class that explains every difference of a row."""
    return next(name for name, holds in CLASSES.items() if holds(case))


def rows_of(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows with a price per token."""
    return {
        key: row
        for key, row in table.items()
        if isinstance(row, dict) and row.get("mode") in MODES and row.get("litellm_provider")
        and (row.get("input_cost_per_token") is not None or row.get("output_cost_per_token") is not None)
    }  # fmt: skip


def unknown_to_them(book: PriceBook, results: list[Compared], at: int) -> dict[str, list[str]]:
    """Our models with a price per token, of providers that LiteLLM has, that no key of theirs is found as."""
    known = {one.entry for one in results if one.entry}
    sold = {one.seller.provider for one in results if one.seller}
    found: dict[str, list[str]] = collections.defaultdict(list)
    for entry in book.lists[0].entries():
        sheet = entry.sheet(at)
        if entry.provider not in sold or isinstance(sheet, str) or f"{entry.provider}/{entry.model}" in known:
            continue
        if any(METERS[meter].family == "tokens" for meter in sheet.units):
            found[entry.provider].append(entry.model)
    return found


def table_of(envs: Path) -> Path:
    """The table in the wheel."""
    python = environment(envs, "litellm-table", ["--no-deps", f"litellm=={VERSION}"])
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(where.stdout.strip()) / "litellm" / TABLE


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def summary(results: list[Compared], missing: dict[str, list[str]], examples: int) -> str:
    count = collections.Counter(one.verdict for one in results)
    both = [one for one in results if one.verdict in {"equal", "different"}]
    same_base = [one for one in both if not set(one.parts) & {"input", "output"}]
    rated, equal = sum(one.compared for one in both), sum(one.equal for one in both)
    lines = [
        "| | keys |", "|---|---|", f"| of LiteLLM with a price per token | {len(results)} |",
        *(f"| {verdict} | {number} |" for verdict, number in count.most_common()),
        "",
        "".join(
            [
                f"Both know {len(both)} keys. Input and output prices are equal in {len(same_base)} ",
                f"({share(len(same_base), len(both))}), every rate in {count['equal']} ({share(count['equal'], len(both))}). ",
                f"Of {rated} rates {equal} are equal ({share(equal, rated)}).",
            ]
        ),
        "",
        "| our provider | their keys | unknown to us | no price with us | both | input and output equal | all rates equal | rates | rates equal | ours that they lack |",
        "|" + "---|" * 10,
    ]  # fmt: skip
    by_provider: dict[str, list[Compared]] = collections.defaultdict(list)
    for one in results:
        if one.seller:
            by_provider[one.seller.provider].append(one)
    for provider, rows in sorted(by_provider.items(), key=lambda item: -len(item[1])):
        known = [one for one in rows if one.verdict in {"equal", "different"}]
        basic = sum(not set(one.parts) & {"input", "output"} for one in known)
        lines.append(
            f"| {provider} | {len(rows)} | {sum(one.verdict == 'model unknown to us' for one in rows)} | "
            f"{sum(one.verdict == 'price unknown to us' for one in rows)} | {len(known)} | {basic} ({share(basic, len(known))}) | "
            f"{sum(one.verdict == 'equal' for one in known)} | {sum(one.compared for one in known)} | "
            f"{share(sum(one.equal for one in known), sum(one.compared for one in known))} | {len(missing.get(provider, []))} |"
        )
    lines += ["", *classes(results, examples)]
    gaps = collections.Counter(_gap(part) for one in both for part in one.missing)
    lines += ["", "| rate that they have and we do not, for a model that both know | rates |", "|---|---|"]
    lines += [f"| {part} | {number} |" for part, number in gaps.most_common()]
    return "\n".join(lines)


def _gap(part: str) -> str:
    words = part.split()
    return next(
        (word for word in words if word in TIERS.values() and word),
        "above a threshold" if "above" in words else words[0],
    )


def classes(results: list[Compared], examples: int) -> list[str]:
    """Every class of difference with its count, its providers and some examples."""
    by_kind: dict[str, list[Compared]] = collections.defaultdict(list)
    for one in results:
        if one.kind:
            by_kind[f"{one.verdict}: {one.kind}"].append(one)
    lines = ["| class | keys | providers | examples: ours, theirs (USD a million tokens) |", "|" + "---|" * 4]
    for kind, rows in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        sold = collections.Counter(one.seller.provider for one in rows if one.seller)
        shown = "; ".join(
            f"`{one.key}` {_shown(one)}" for one in rows[:: max(1, len(rows) // max(1, examples))][:examples]
        )
        lines.append(
            f"| {kind} | {len(rows)} | {', '.join(f'{name} {n}' for name, n in sold.most_common(5))} | {shown} |"
        )
    return lines


def _shown(one: Compared) -> str:
    return ", ".join(f"{part} {pair[0]}, {pair[1]}" for part, pair in list(one.parts.items())[:3]) or one.entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help=f"LiteLLM's {TABLE}, instead of the wheel's")
    parser.add_argument("--envs", type=Path, default=ROOT / ".bench" / "pricing")
    parser.add_argument(
        "--at", type=date.fromisoformat, default=datetime.now(tz=UTC).date(), help="noon UTC of this day"
    )
    parser.add_argument("--examples", type=int, default=3)
    parser.add_argument("--show", nargs="*", default=[], help="print every row of these classes or verdicts")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    path = options.table or table_of(options.envs)
    at = to_ns(datetime(options.at.year, options.at.month, options.at.day, 12, tzinfo=UTC))
    book = PriceBook()
    rows = rows_of(json.loads(path.read_text("utf-8")))
    results = [compare(book, key, row, at) for key, row in rows.items()]
    missing = unknown_to_them(book, results, at)
    bundled = book.lists[0]
    print(f"aifinops {aifinops.__version__}: {bundled.source}, {bundled.date}, {bundled.count} models")
    print(
        f"LiteLLM: {path.name} of {VERSION if not options.table else options.table}, {len(rows)} rows. Prices of {options.at}.\n"
    )
    print(summary(results, missing, options.examples))
    for one in results:
        if {one.kind, one.verdict} & set(options.show):
            print(f"{one.verdict} | {one.kind} | {one.key} | {one.entry} | {one.parts} | {one.source}")
    if options.json:
        options.json.write_text(
            json.dumps([vars(one) | {"seller": vars(one.seller) if one.seller else None} for one in results], indent=1)
        )


if __name__ == "__main__":
    main()
