"""Compile the bundled price lists into `src/aifinops/pricing/data/*.jsonl`.

    python tools/compile_prices.py                 # write
    python tools/compile_prices.py --check         # exit 1 when a file is not what would be written
    python tools/compile_prices.py --date 2026-11-10

`llm.jsonl` is the price list of an installed `genai-prices` with `tools/prices/llm.toml` laid over it; the others are made from the
hand-maintained lists in `tools/prices/` (`own_lists.py`).

The output is deterministic: the same version of genai-prices and the same date give the same bytes. The format is described in
`docs/reference/prices.md`. A structure that this script does not know stops it; none is dropped in silence.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import own_lists
from own_lists import exact

DATA = Path(__file__).resolve().parent.parent / "src" / "aifinops" / "pricing" / "data"
TARGET = DATA / "llm.jsonl"
NOTICE = DATA / "LICENSE-genai-prices"
SCHEMA = 1

# Price key of genai-prices -> our meter and the quantity that one price of the list is for (`genai_prices.data_units`).
METERS = {
    "input_mtok": ("input_tokens", 1_000_000),
    "cache_read_mtok": ("cache_read_tokens", 1_000_000),
    "cache_write_mtok": ("cache_write_tokens", 1_000_000),
    "cache_write_1h_mtok": ("cache_write_1h_tokens", 1_000_000),
    "input_audio_mtok": ("input_audio_tokens", 1_000_000),
    "cache_audio_read_mtok": ("cache_read_audio_tokens", 1_000_000),
    "input_image_mtok": ("input_image_tokens", 1_000_000),
    "cache_image_read_mtok": ("cache_read_image_tokens", 1_000_000),
    "input_video_mtok": ("input_video_tokens", 1_000_000),
    "cache_video_read_mtok": ("cache_read_video_tokens", 1_000_000),
    "output_mtok": ("output_tokens", 1_000_000),
    "output_reasoning_mtok": ("reasoning_tokens", 1_000_000),
    "output_audio_mtok": ("output_audio_tokens", 1_000_000),
    "output_image_mtok": ("output_image_tokens", 1_000_000),
    "output_video_mtok": ("output_video_tokens", 1_000_000),
    "input_mchars": ("characters", 1_000_000),
    "input_document_kpages": ("pages", 1000),
    "audio_hours": ("audio_seconds", 3600),
    "input_audio_hours": ("audio_seconds", 3600),
    "web_searches_kcount": ("web_search_requests", 1000),
    "storage_searches_kcount": ("file_search_requests", 1000),
    "rerank_searches_kcount": ("search_units", 1000),
    "requests_kcount": ("requests", 1000),
}

# What one price of a meter is for unless the data says otherwise: the `per` of `aifinops.meters`.
USUAL = {"audio_seconds": 60, "characters": 1_000_000}
USUAL |= {meter: per for meter, per in METERS.values() if meter not in USUAL}

# Priced by the list, counted by no meter of ours: kept and named in a note of the cost, never dropped in silence.
UNMETERED = {"input_annotated_document_kpages", "input_text_messages_kcount", "output_citation_mtok"}

# Request contexts that a served tier tells. Any other context (`route`, `search_type`) cannot be told from usage.
STANDARD = {"default", "standard", "auto"}

# Empty price sets are free only where somebody says so; elsewhere "no price listed" means that the price is unknown.
_FREE = re.compile(r"free of charge|included in the subscription", re.IGNORECASE)
FREE = {("openai", "moderation"): "https://developers.openai.com/api/docs/models/omni-moderation-latest"}

# Names that the source matches with a bare beginning or part, which we do not accept as proof. Its entries say that they are meant.
NAMES = {
    ("anthropic", "claude-2"): ("claude-2.0", "claude-2.1"),
    ("openai", "moderation"): (
        "omni-moderation-latest",
        "omni-moderation-2024-09-26",
        "text-moderation-latest",
        "text-moderation-stable",
        "text-moderation-007",
    ),
}

# genai-prices bills these in code, not in data (`genai_prices.types.ModelInfo.calc_price`): at least ten seconds a request.
MINIMUM = {
    ("groq", "whisper-large-v3"): {"audio_seconds": 10},
    ("groq", "whisper-large-v3-turbo"): {"audio_seconds": 10},
}

# Daily windows of the source carry neither a start date nor weekdays (its issue 582). The maintainers' comments on these
# models say both, so the windows are put right here: from, until, weekdays (0 is Monday) or None, is the peak price known.
_WORKDAYS = [0, 1, 2, 3, 4]
_PEAK_UNKNOWN = "the peak price of this model in these weeks is not in the list"
_HOLIDAYS = "Chinese public holidays are off-peak and not modelled here: on such a day this is an upper bound"
WINDOWS: Mapping[tuple[str, str], tuple[tuple[str | None, str | None, list[int] | None, bool], ...]] = {
    ("deepseek", "deepseek-flash"): ((None, None, _WORKDAYS, True),),
    ("deepseek", "deepseek-v4-flash"): (
        ("2026-08-17", "2026-08-23", None, False),
        ("2026-08-23", "2026-09-10", _WORKDAYS, False),
        ("2026-09-10", None, _WORKDAYS, True),
    ),
    ("deepseek", "deepseek-v4-pro"): (
        ("2026-08-17", "2026-08-23", None, True),
        ("2026-08-23", None, _WORKDAYS, True),
    ),
}


class UnknownStructure(SystemExit):
    """The source says something that this script has no rule for."""


def rate(value: Any, meter: str, per: int) -> Any:
    """One unit price: text, or a table when it has cliffs or is for an unusual quantity."""
    table: dict[str, Any] = {}
    if isinstance(value, Decimal):
        base = exact(value)
    else:
        base = exact(value.base)
        table["above"] = {str(tier.start): exact(tier.price) for tier in value.tiers}
    if per != USUAL[meter]:
        table["per"] = per
    return {"base": base, **table} if table else base


def rates(prices: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    """(meter -> unit price, names of the units that no meter counts) of one price set."""
    found: dict[str, Any] = {}
    unmetered: list[str] = []
    for key, value in prices.__dict__.items():
        if key.startswith("_") or value is None:
            continue
        if key in UNMETERED:
            unmetered.append(key)
            continue
        if key not in METERS:
            raise UnknownStructure(f"{where}: no meter for price key {key!r}; add it to METERS or UNMETERED")
        meter, per = METERS[key]
        entry = rate(value, meter, per)
        if found.setdefault(meter, entry) != entry:
            raise UnknownStructure(f"{where}: two prices for {meter}: {found[meter]} and {entry}")
    return dict(sorted(found.items())), unmetered


def condition(constraint: Any) -> dict[str, Any]:
    """A constraint as keys of our price table."""
    if constraint is None:
        return {}
    kind = type(constraint).__name__
    if kind == "StartDateConstraint":
        return {"from": constraint.start_date.isoformat()}
    if kind == "TimeOfDateConstraint":
        times = (constraint.start_time, constraint.end_time)
        if any(time.utcoffset() or time.second or time.microsecond for time in times):
            raise UnknownStructure(f"window {times} is not in whole minutes of UTC")
        return {"hours": [f"{time:%H:%M}" for time in times]}
    raise UnknownStructure(f"unknown constraint {kind}")


def windows(key: tuple[str, str], entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The entry itself, or what the maintainers' comments make of a daily window."""
    if "hours" not in entry or key not in WINDOWS:
        yield entry
        return
    for start, end, days, known in WINDOWS[key]:
        given = {"from": start, "until": end, "hours": entry["hours"], "days": days}
        tail: dict[str, Any] = {"rates": entry["rates"]} if known else {"unknown": _PEAK_UNKNOWN}
        if known and days:
            tail["note"] = _HOLIDAYS
        yield {name: value for name, value in given.items() if value is not None} | tail


def standard_prices(key: tuple[str, str], model: Any) -> tuple[list[dict[str, Any]], set[str]]:
    """Standard prices in order (the last one in force counts), and the units that no meter counts."""
    where, unmetered = "/".join(key), set()
    sets = model.prices if isinstance(model.prices, list) else [None]
    found: list[dict[str, Any]] = []
    for item in sets:
        prices, constraint = (model.prices, None) if item is None else (item.prices, item.constraint)
        table, extra = rates(prices, where)
        unmetered.update(extra)
        if not table and len(sets) > 1:
            raise UnknownStructure(
                f"{where}: one of several dated price sets is empty; is the model free then, or gone?"
            )
        if table:
            found += windows(key, {**condition(constraint), "rates": table})
    return found, unmetered


def variant_prices(key: tuple[str, str], model: Any) -> Iterator[dict[str, Any]]:
    """Prices of other tiers: they override the standard ones meter by meter.

    What no meter counts is left out here: `standard_prices` names the same units for the whole model.
    """
    for variant in model.price_variants or ():
        table, _ = rates(variant.prices, "/".join(key))
        if table:
            yield {**context(variant.when), **condition(variant.constraint), "rates": table}


def context(when: Mapping[str, str]) -> dict[str, Any]:
    """`{"service_tier": "flex"}` -> `{"tier": "flex"}`; a context that usage does not tell stays as `when`."""
    if len(when) == 1:
        [(name, value)] = when.items()
        told = name in {"service_tier", "speed"} or (name, value) == ("processing", "batch")
        if told and value not in STANDARD:
            return {"tier": value}
    return {"when": dict(sorted(when.items()))}


def clauses(match: Any) -> tuple[list[str], list[Any]]:
    """(names that match exactly, other clauses) of a match tree whose top is an `or`."""
    names: list[str] = []
    others: list[Any] = []
    for item in getattr(match, "or_", None) or [match]:
        clause = plain(item)
        if "equals" in clause:
            names.append(clause["equals"])
        else:
            others.append(clause)
    return names, others


def plain(clause: Any) -> dict[str, Any]:
    """A clause as a one-key table."""
    kind = type(clause).__name__
    if kind in {"ClauseOr", "ClauseAnd"}:
        name = "or" if kind == "ClauseOr" else "and"
        return {name: [plain(item) for item in getattr(clause, f"{name}_")]}
    names = {"ClauseStartsWith": "starts_with", "ClauseEndsWith": "ends_with", "ClauseContains": "contains"}
    names |= {"ClauseRegex": "regex", "ClauseEquals": "equals"}
    if kind not in names:
        raise UnknownStructure(f"unknown clause {kind}")
    return {names[kind]: getattr(clause, names[kind])}


def model_row(provider: str, model: Any) -> dict[str, Any]:
    """Everything about one model, as one line of the file."""
    key = (provider, model.id)
    names, others = clauses(model.match)
    names += NAMES.get(key, ())
    prices, unmetered = standard_prices(key, model)
    row: dict[str, Any] = {"model": model.id}
    if model.name and model.name != model.id:
        row["name"] = model.name
    optional = {
        "names": [name for name in dict.fromkeys(names) if name != model.id],
        "match": others,
        "context_window": model.context_window,
        "prices": prices,
        "variants": list(variant_prices(key, model)),
        "unmetered": sorted(unmetered),
        "minimum": MINIMUM.get(key),
        "free": not prices and is_free(key, model),
    }
    return row | {name: value for name, value in optional.items() if value}


def is_free(key: tuple[str, str], model: Any) -> bool:
    """True where the list's id or comment, or a page named in FREE, says that nothing is charged."""
    return model.id.endswith(":free") or key in FREE or bool(_FREE.search(model.price_comments or ""))


def provider_row(provider: Any) -> dict[str, Any]:
    """What is needed of a provider before its models are read."""
    row: dict[str, Any] = {"provider": provider.id, "name": provider.name, "models": len(provider.models)}
    if provider.model_match is not None:
        row["home"] = plain(provider.model_match)
    if provider.fallback_model_providers:
        row["fallback"] = list(provider.fallback_model_providers)
    return row


def compiled(day: str) -> str:
    """The whole file: a header, then each provider followed by its models, one a line."""
    from genai_prices.data import providers

    version = distribution("genai-prices").version
    rows = [(provider_row(one), [model_row(one.id, model) for model in one.models]) for one in providers]
    overlays = own_lists.overlay(rows, USUAL)
    header = {
        "schema": SCHEMA,
        "id": "genai-prices",
        "version": version,
        "date": day,
        "currency": "USD",
        "source": f"genai-prices {version}, https://github.com/pydantic/genai-prices",
        "license": "MIT, Copyright (c) Pydantic Services Inc. 2025 to present; see LICENSE-genai-prices",
        "generated": "by tools/compile_prices.py; do not edit",
        "models": sum(len(models) for _, models in rows),
        "overlays": overlays,
    }
    return written([header, *(line for provider, models in rows for line in (provider, *models))])


def written(lines: Iterable[Mapping[str, Any]]) -> str:
    """One JSON text a line."""
    return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)


def everything(day: str) -> dict[Path, str]:
    """Every file and what belongs in it."""
    own = {TARGET.with_name(f"{name}.jsonl"): written(own_lists.compiled(name, USUAL)) for name in own_lists.LISTS}
    return {TARGET: compiled(day), **own}


def recorded_date() -> str:
    """The release day in the present file, which must be of the installed version: a new version needs `--date`."""
    version = distribution("genai-prices").version
    header = json.loads(TARGET.read_text("utf-8").partition("\n")[0]) if TARGET.exists() else {}
    if header.get("version") != version:
        raise SystemExit(f"genai-prices {version} is new here: give its release day with --date YYYY-MM-DD")
    return str(header["date"])


def write(files: Mapping[Path, str]) -> None:
    """Replace the data files and the licence notice beside them."""
    DATA.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        draft = path.with_suffix(".tmp")
        draft.write_text(text, "utf-8", newline="\n")
        draft.replace(path)
        print(f"{path}: {len(text.encode()):,} bytes, {text.count(chr(10)):,} lines")
    licence = next(path for path in distribution("genai-prices").files or () if path.name == "LICENSE")
    shutil.copyfile(str(licence.locate()), NOTICE)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compile the bundled price lists.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    parser.add_argument("--date", type=date.fromisoformat, help="release date of genai-prices, YYYY-MM-DD")
    options = parser.parse_args(arguments)
    files = everything(options.date.isoformat() if options.date else recorded_date())
    if not options.check:
        write(files)
        return 0
    old = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    old += [] if NOTICE.exists() else [NOTICE]
    for path in old:
        print(f"{path} is out of date; run: python {sys.argv[0]}", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    raise SystemExit(main())
