"""What becomes of the lists that are maintained by hand.

GPUs, storage and vector databases (`tools/prices/`) become price lists of their own; `data/llm.toml` is laid over the rows of
genai-prices. Every price names one of the sources at the top of its file, and a source has a date and a confidence. Whatever is
unknown, double or without a source stops the compilation. `docs/reference/price-lists.md` describes the form.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

from aifinops.errors import PricingError
from aifinops.pricing.lists import NOWHERE

OVERLAYS = Path(__file__).parent.parent / "data" / "llm.toml"
SCHEMA = 1

HOUR = 3600
GIB = 1 << 30
CONFIDENCE = {"high", "medium", "low"}
ACCELERATOR = "accelerator"
_CENTS = Decimal("0.0001")

Row = dict[str, Any]


class WrongList(PricingError):
    """A list says something that must not get into a price."""


def read(path: Path) -> Row:
    """One list, as it is written."""
    return tomllib.loads(path.read_text("utf-8"))


def exact(value: Decimal) -> str:
    """A price as plain digits, without exponent and trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(text: Any, where: str) -> Decimal:
    """A price that was written as text."""
    try:
        value = Decimal(text) if isinstance(text, str) else Decimal("NaN")
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0:
        raise WrongList(f'{where}: {text!r} is no price; write it as text: "1.25"')
    return value


def rate(value: Any, meter: str, where: str, usual: Mapping[str, int]) -> Any:
    """One unit price: text, or a table with what is not customary about it."""
    if meter not in usual:
        raise WrongList(f"{where}: unknown meter {meter!r}")
    if not isinstance(value, dict):
        return exact(money(value, where))
    if unknown := value.keys() - {"base", "per", "above", "graduated", "bytes"}:
        raise WrongList(f"{where}: unknown keys {sorted(unknown)} of the price of {meter}")
    # Some sell gigabytes of 10**9 bytes; the meter counts those of 2**30.
    times = Decimal(GIB) / Decimal(value.get("bytes", GIB))
    table: Row = {"base": exact(money(value["base"], where) * times)}
    for steps in ("above", "graduated"):
        if steps in value:
            table[steps] = {str(int(n)): exact(money(price, where) * times) for n, price in value[steps].items()}
    if value.get("per", usual[meter]) != usual[meter]:
        table["per"] = value["per"]
    return table if len(table) > 1 else table["base"]


def rates(given: Mapping[str, Any], where: str, usual: Mapping[str, int]) -> Row:
    """Meter -> unit price, by name."""
    return {meter: rate(value, meter, where, usual) for meter, value in sorted(given.items())}


def provenance(document: Mapping[str, Any], key: str, where: str) -> Row:
    """Where a price is from, of what day, and how sure it is."""
    found = document["sources"].get(key)
    if found is None:
        raise WrongList(f"{where}: no source {key!r} among {', '.join(document['sources'])}")
    day = found.get("as_of")
    if not isinstance(day, date) or found.get("confidence") not in CONFIDENCE or not found.get("name"):
        raise WrongList(
            f"source {key!r} needs a name, a date as_of and a confidence of {', '.join(sorted(CONFIDENCE))}"
        )
    told = {"source": found["name"], "as_of": day.isoformat(), "confidence": found["confidence"]}
    return told | ({"url": found["url"]} if "url" in found else {})


# One row from the offers of a type: where, on which terms and since when it is sold at what price ---------------------------


def row(offers: Sequence[Row], document: Mapping[str, Any], where: str) -> Row:
    """The prices of a model. The first region named is the one taken where usage names none; each has a variant of its own."""
    main = next((offer for offer in offers if not offer.get("tier")), None)
    told = provenance(document, (main or offers[0])["source"], where)
    seen: set[tuple[Any, ...]] = set()
    prices: list[Row] = []
    variants: list[Row] = []
    tiers: set[str] = set()
    for offer in offers:
        tier, region = offer.get("tier", ""), offer.get("region", "")
        key = (tier, region, offer.get("from"), offer.get("until"))
        if key in seen:
            raise WrongList(f"{where}: two prices of tier {tier!r} and region {region!r}")
        seen.add(key)
        if main is not None and not tier and region == main.get("region", ""):
            prices.append(entry(offer, {}, told, document, where, anywhere=bool(region)))
        elif tier and region and tier not in tiers:
            variants.append(entry(offer, {"tier": tier}, told, document, where, anywhere=True))
        tiers.add(tier)
        if tier or region:
            terms = {name: value for name, value in (("tier", tier), ("region", region)) if value}
            variants.append(entry(offer, terms, told, document, where))
    return {**told, **({"prices": prices} if prices else {}), **({"variants": variants} if variants else {})}


def entry(offer: Row, terms: Row, told: Row, document: Mapping[str, Any], where: str, *, anywhere: bool = False) -> Row:
    """One price with its conditions, and its own source where it is not that of the row."""
    found = dict(terms)
    found |= {name: offer[name].isoformat() for name in ("from", "until") if name in offer}
    found["rates"] = offer["rates"]
    notes = [offer["note"]] if offer.get("note") else []
    if anywhere:
        notes.append(f"where no region is named: the price of {offer['region']}")
    if notes:
        found["note"] = "; ".join(notes)
    own = provenance(document, offer["source"], where)
    return found | {name: value for name, value in own.items() if told.get(name) != value}


# Instances and accelerators -------------------------------------------------------------------------------------------------


def instance_offers(document: Mapping[str, Any]) -> dict[tuple[str, str], list[Row]]:
    """(provider, type) -> its offers. In a block without `accelerator` the types are accelerators themselves."""
    found: dict[tuple[str, str], list[Row]] = {}
    for number, block in enumerate(document["instances"]):
        meter = block.get("meter", "gpu_seconds")
        for name, (count, price) in block["hourly"].items():
            where = f"instances[{number}] {block['provider']}/{name}"
            accelerator = "" if meter == "cpu_seconds" else block.get("accelerator", name)
            terms = {key: block[key] for key in ("tier", "region", "from", "until", "note", "source") if key in block}
            offer = {
                **terms,
                "accelerator": accelerator,
                "count": count,
                "each": Fraction(money(price, where)) / count,
                "rates": {meter: hourly(money(price, where), count)},
            }
            found.setdefault((block["provider"], name), []).append(offer)
    return found


def hourly(price: Decimal, count: int) -> Any:
    """The price of one accelerator (or vCPU) for an hour; of all of them where the quotient has no end (six, twelve)."""
    each = Fraction(price) / count
    odd = each.denominator
    for prime in (2, 5):
        while odd % prime == 0:
            odd //= prime
    if odd == 1:
        return exact(price / count)
    return {"base": exact(price), "per": HOUR * count}


def instance_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """(provider, row) of every type, then of every accelerator on its own."""
    chips = {chip["id"]: chip for chip in document["accelerators"]}
    offers = instance_offers(document)
    for (provider, name), group in offers.items():
        where = f"{provider}/{name}"
        kinds = {(offer["accelerator"], offer["count"]) for offer in group}
        if len(kinds) > 1:
            raise WrongList(f"{where}: {sorted(kinds)} cannot all be true of one type")
        [(accelerator, count)] = kinds
        if accelerator and accelerator not in chips:
            raise WrongList(f"{where}: no accelerator {accelerator!r} in the table")
        about: Row = {"names": list(chips[accelerator]["names"])} if name == accelerator else {}
        about |= {"accelerator": accelerator} if accelerator else {}
        yield provider, {"model": name, **about, "count": count, **row(group, document, where)}
    for chip in document["accelerators"]:
        yield ACCELERATOR, accelerator_row(chip, offers, document)


def accelerator_row(chip: Row, offers: Mapping[tuple[str, str], list[Row]], document: Mapping[str, Any]) -> Row:
    """The last resort where neither provider nor type is known: the median over providers of what they ask on demand."""
    asked: dict[str, list[Fraction]] = {}
    days: set[str] = set()
    for (provider, name), group in offers.items():
        main = next((offer for offer in group if not offer.get("tier")), None)
        if main is not None and main["accelerator"] == chip["id"]:
            asked.setdefault(provider, []).append(main["each"])
            days.add(provenance(document, main["source"], name)["as_of"])
    if not asked:
        raise WrongList(f"accelerator {chip['id']!r}: nobody sells it on demand in this list")
    each = sorted(median(values) for values in asked.values())
    middle, low, high = (Decimal(one.numerator) / one.denominator for one in (median(each), each[0], each[-1]))
    span = f"{exact(low.quantize(_CENTS))} to {exact(high.quantize(_CENTS))} USD an hour"
    which = f"the median of {len(asked)} providers, {span}" if len(asked) > 1 else f"the price of {next(iter(asked))}"
    note = f"without provider and instance type: {which}"
    return {
        "model": chip["id"],
        "names": list(chip["names"]),
        "accelerator": chip["id"],
        "count": 1,
        "source": f"on-demand prices of {', '.join(sorted(asked))} in this list",
        # The oldest price in it decides how old the median is.
        "as_of": min(days),
        "confidence": "low",
        "prices": [{"rates": {"gpu_seconds": exact(middle.quantize(_CENTS))}, "note": note}],
    }


# Storage, egress, vector databases ------------------------------------------------------------------------------------------


def service_rows(document: Mapping[str, Any], usual: Mapping[str, int]) -> Iterator[tuple[str, Row]]:
    """(provider, row) of every service."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for number, service in enumerate(document["services"]):
        where = f"services[{number}] {service['provider']}/{service['model']}"
        offer = {**service, "rates": rates(service["rates"], where, usual)}
        groups.setdefault((service["provider"], service["model"]), []).append(offer)
    for (provider, model), group in groups.items():
        about: Row = {key: group[0][key] for key in ("name", "names", "unmetered") if key in group[0]}
        yield provider, {"model": model, **about, **row(group, document, f"{provider}/{model}")}


# A list of its own ----------------------------------------------------------------------------------------------------------


def compiled(path: Path, usual: Mapping[str, int]) -> list[Row]:
    """The lines of a list: a header, then each provider followed by its models."""
    document = read(path)
    rows: dict[str, list[Row]] = {}
    found = instance_rows(document) if "instances" in document else service_rows(document, usual)
    for provider, one in found:
        rows.setdefault(provider, []).append(one)
    for provider, models in rows.items():
        single(models, provider)
    if unused := document["sources"].keys() - used(document):
        raise WrongList(f"{path.name}: nothing is from {', '.join(sorted(unused))}")
    header = {
        "schema": SCHEMA,
        "id": document["id"],
        "version": document["version"],
        "date": document["date"].isoformat(),
        "currency": document["currency"],
        "source": document["source"],
        "generated": "by tools/compile_prices.py; do not edit",
        "models": sum(map(len, rows.values())),
    }
    lines = [header]
    # A service called "standard" belongs to nobody until its provider is named; instance types have names of their own.
    home = {"home": NOWHERE} if "services" in document else {}
    for provider, models in rows.items():
        about = {"provider": provider, "name": document["providers"][provider], "models": len(models)}
        lines += [about | home, *models]
    return lines


def used(document: Mapping[str, Any]) -> set[str]:
    """The sources that something refers to."""
    parts = ("instances", "services", "overlays", "models")
    return {item["source"] for part in parts for item in document.get(part, ())}


def single(models: Iterable[Row], provider: str) -> None:
    """Refuse two rows of one provider that claim the same name."""
    owners: dict[str, str] = {}
    for model in models:
        for name in (model["model"], *model.get("names", ())):
            if owners.setdefault(name.lower(), model["model"]) != model["model"]:
                raise WrongList(f"{provider}: {model['model']} and {owners[name.lower()]} both claim {name!r}")


# Overlays on genai-prices ---------------------------------------------------------------------------------------------------


def overlay(
    providers: Sequence[tuple[Row, list[Row]]], usual: Mapping[str, int], skipped: list[str] | None = None
) -> Row:
    """Lay `llm.toml` over the rows of genai-prices, in place; returns the sources that it is from.

    An overlay adds meters, variants, adjustments and names to models that the source has; it never changes a price of the source.

    Args:
        providers: the rows. usual: what one price of each meter is for.
        skipped: takes what does not fit the source (a model is gone, or has the price now); None makes that an error.

    Raises:
        WrongList: for an overlay that does not fit.
    """
    document = read(OVERLAYS)
    found = {row["provider"]: (row, models) for row, models in providers}
    for number, item in enumerate(document["overlays"]):
        with _fitting(skipped):
            where = f"llm.toml: overlays[{number}] ({item['source']})"
            told = provenance(document, item["source"], where)
            for model in chosen(found, item, where):
                with _fitting(skipped):
                    add(model, item, told, where, usual)
    for number, item in enumerate(document["models"]):
        with _fitting(skipped):
            where = f"llm.toml: models[{number}] {item['provider']}/{item['model']}"
            add_model(found, item, document, where, usual)
    for row, models in providers:
        row["models"] = len(models)
    return {key: provenance(document, key, "llm.toml") for key in sorted(used(document))}


@contextmanager
def _fitting(skipped: list[str] | None) -> Iterator[None]:
    try:
        yield
    except WrongList as error:
        if skipped is None:
            raise
        skipped.append(str(error))


def chosen(found: Mapping[str, tuple[Row, list[Row]]], item: Row, where: str) -> list[Row]:
    """The rows that an overlay is for: named, `like` a regular expression, or `having` a price of some meter."""
    if item["provider"] not in found:
        raise WrongList(f"{where}: genai-prices has no provider {item['provider']!r} any more")
    models = found[item["provider"]][1]
    if "models" in item:
        known = {model["model"]: model for model in models}
        if gone := [name for name in item["models"] if name not in known]:
            raise WrongList(f"{where}: genai-prices has no {', '.join(gone)} of {item['provider']} any more")
        return [known[name] for name in item["models"]]
    picked = [
        model
        for model in models
        if re.search(item.get("like", ""), model["model"]) and ("having" not in item or item["having"] in meters(model))
    ]
    if not picked or not item.keys() & {"like", "having"}:
        raise WrongList(f"{where}: no model of {item['provider']} is meant by it any more")
    return picked


def meters(model: Mapping[str, Any]) -> list[str]:
    """Every meter that a row prices."""
    every = (*model.get("prices", ()), *model.get("variants", ()))
    return sorted({meter for price in every for meter in price.get("rates", ())})


def add(model: Row, item: Row, told: Row, where: str, usual: Mapping[str, int]) -> None:
    """One overlay on one row."""
    where = f"{where}: {model['model']}"
    fresh = rates(item.get("rates", {}), where, usual)
    if double := fresh.keys() & set(meters(model)):
        raise WrongList(f"{where}: genai-prices has {', '.join(sorted(double))} now; take it out of the overlay")
    variants = [own_variant(variant, where, usual) for variant in item.get("variants", ())]
    if "provisioned" in item:
        tokens = [meter for meter in sorted({*meters(model), *fresh}) if meter.endswith("_tokens")]
        if tokens:
            variants.append({"tier": "provisioned", "rates": dict.fromkeys(tokens, "0"), "note": item["provisioned"]})
    taken = {terms(variant) for variant in model.get("variants", ())}
    if any(terms(variant) in taken for variant in variants):
        raise WrongList(f"{where}: genai-prices has such a variant now; take it out of the overlay")
    # Nothing is changed before all is known to fit.
    for price in model.get("prices", ()):
        if "rates" in price:
            price["rates"] = dict(sorted((price["rates"] | fresh).items()))
    if variants:
        model["variants"] = [*model.get("variants", ()), *variants]
    if "adjust" in item:
        dated = {"source": told["source"], "as_of": told["as_of"]}
        model["adjust"] = [*model.get("adjust", ()), *({**adjust(one, where), **dated} for one in item["adjust"])]
    model["overlays"] = list(dict.fromkeys([*model.get("overlays", ()), item["source"]]))


def terms(variant: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must have been served for a variant to count."""
    options = tuple(sorted(variant.get("options", {}).items()))
    return variant.get("tier", ""), variant.get("region", ""), options, variant.get("from"), str(variant.get("when"))


def own_variant(variant: Mapping[str, Any], where: str, usual: Mapping[str, int]) -> Row:
    """A variant as it is written here."""
    if unknown := variant.keys() - {"tier", "region", "options", "note", "rates"}:
        raise WrongList(f"{where}: unknown keys {sorted(unknown)} of a variant")
    found = {key: variant[key] for key in ("tier", "region", "options", "note") if key in variant}
    return found | {"rates": rates(variant["rates"], where, usual)}


def adjust(given: Mapping[str, Any], where: str) -> Row:
    """A factor on all prices of some meters, whatever the tier."""
    if unknown := given.keys() - {"tier", "region", "multiply", "meters", "from", "until", "note"}:
        raise WrongList(f"{where}: unknown keys {sorted(unknown)} of an adjustment")
    days = {name: given[name].isoformat() for name in ("from", "until") if name in given}
    return {**given, "multiply": exact(money(given["multiply"], where)), **days}


def add_model(
    found: Mapping[str, tuple[Row, list[Row]]], item: Row, document: Row, where: str, usual: Mapping[str, int]
) -> None:
    """A model that genai-prices lacks."""
    if item["provider"] not in found:
        raise WrongList(f"{where}: genai-prices has no provider {item['provider']!r} any more")
    models = found[item["provider"]][1]
    price = {"rates": rates(item["rates"], where, usual), **({"note": item["note"]} if "note" in item else {})}
    model: Row = {key: item[key] for key in ("model", "name", "names", "match", "context_window") if key in item}
    model |= {**provenance(document, item["source"], where), "prices": [price]}
    if "variants" in item:
        model["variants"] = [own_variant(variant, where, usual) for variant in item["variants"]]
    claimed = {name.lower() for row in models for name in (row["model"], *row.get("names", ()))}
    if double := [name for name in (item["model"], *item.get("names", ())) if name.lower() in claimed]:
        raise WrongList(f"{where}: genai-prices has {', '.join(double)} now; take it out of llm.toml")
    models.append(model)
