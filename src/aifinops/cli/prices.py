"""`aifinops prices`: look up, compare, refresh and check price lists. Only the lists are read; nothing here uses the network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.cli.options import TableOrJson
from aifinops.errors import ConfigurationError, PricingError

if TYPE_CHECKING:
    from rich.table import Table

    from aifinops.cli.doctor import Finding
    from aifinops.pricing.changes import Change
    from aifinops.pricing.lists import PriceList
    from aifinops.pricing.prices import Adjust, Entry, Price, Rate

__all__ = ["app", "price_list"]

app = typer.Typer(
    help="Price lists: look a price up, compare lists, refresh the list of models, check files of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_MOST = 40
_COLUMNS = {"input": "input_tokens", "cached": "cache_read_tokens", "output": "output_tokens"}
_KINDS = 2
_NAMED = 20
_METER = 44


@app.command()
def search(
    words: Annotated[
        list[str], typer.Argument(help="Parts of a provider's, model's or device's name; all must be there.")
    ],
    provider: Annotated[str | None, typer.Option(help="Only of this provider.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The most rows.")] = _MOST,
    form: TableOrJson = "table",
) -> None:
    """Models, GPUs, storage and databases whose name has all the words, with their price of today."""
    from aifinops.cli import show

    _check_form(form)
    _check_provider(provider)
    entries = (*_declared(words, provider), *_matching(words, provider))
    found = list({(entry.provider, entry.model): entry for entry in entries}.values())
    if form == "json":
        sys.stdout.write(json.dumps([_plain(entry) for entry in found[:limit]], indent=1) + "\n")
    elif found:
        out = show.console()
        out.print(_hits(found[:limit], out.width))
        out.print(_legend(found[:limit]), style="dim")
    else:
        whose = f" of {provider}" if provider else ""
        print(
            f"nothing{whose} in the price lists is called {' '.join(words)!r}; try fewer or shorter words",
            file=sys.stderr,
        )
    if len(found) > limit:
        more = f"{len(found) - limit:,} more: give another word, --provider, or --limit {len(found)}"
        print(more, file=sys.stderr)
    if not found:
        raise typer.Exit(1)


def _check_form(form: str) -> None:
    if form not in ("table", "json"):
        raise ConfigurationError(f"--format {form!r} is unknown; write table or json")


def _check_provider(provider: str | None) -> None:
    from aifinops.pricing.match import nearest, provider_id

    known = sorted({key for one in _lists() for key in one.providers})
    if provider is not None and provider_id(provider) not in known:
        near = ", ".join(nearest(provider, known))
        hint = f"; did you mean {near}?" if near else f"; the lists have {', '.join(known)}"
        raise ConfigurationError(f"--provider {provider!r} is in no price list{hint}")


def _matching(words: Iterable[str], provider: str | None) -> Iterator[Entry]:
    """Of what several lists have, the entry of the first, by which calls are priced."""
    wanted = [word.lower() for word in words]
    seen = set()
    for one in _lists():
        for entry in one.entries(provider):
            key = (entry.provider, entry.model)
            text = f"{entry.provider} {entry.model} {entry.name}".lower()
            if key not in seen and all(word in text for word in wanted):
                seen.add(key)
                yield entry


def _declared(words: Sequence[str], provider: str | None) -> Iterator[Entry]:
    """The model that declares the word as one of its names, such as a dated snapshot."""
    from aifinops import runtime

    if len(words) == 1:
        with suppress(PricingError):
            yield runtime.get().book.resolve(provider, words[0])


def _lists() -> tuple[PriceList, ...]:
    from aifinops import runtime

    return runtime.get().book.lists


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "provider": entry.provider,
        "model": entry.model,
        "name": entry.name or entry.model,
        "list": entry.list_id,
        "as_of": entry.as_of.isoformat() if entry.as_of else None,
        "currency": entry.currency,
        "free": entry.free,
        "rates": {meter: {"price": f"{rate.base:f}", "per": rate.per} for meter, rate in _standing(entry).items()},
        "also_priced": list(dict.fromkeys(_kinds(entry))),
    }


def _hits(entries: Sequence[Entry], width: int) -> Table:
    """Only the columns that something is in, so that names stay on one line."""
    from rich.table import Table

    from aifinops.cli.show import plain

    rows = [_cells(entry) for entry in entries]
    names = ["provider", "model", *(name for name in _OPTIONAL if any(row[name] for row in rows))]
    if len({row["as of"] for row in rows}) == 1:
        names = [name for name in names if name != "as of"]  # the legend says it
    for least in ("also priced", "as of"):
        if least in names and _width(rows, names) > width:
            names.remove(least)
    fits = _width(rows, names) <= width
    table = Table(box=None)
    for name in names:
        table.add_column(
            name,
            justify="right" if name in (*_COLUMNS, "other") else "left",
            no_wrap=fits or name != "model",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(plain(row[name]) if row[name] else "" for name in names))
    return table


_OPTIONAL = (*_COLUMNS, "other", "also priced", "as of")


def _width(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    return sum(max(len(name), *(len(row[name]) for row in rows)) + 2 for name in names)


def _cells(entry: Entry) -> dict[str, str]:
    rates = _standing(entry)
    cells = {name: _usual(meter, rates.get(meter), entry.currency) for name, meter in _COLUMNS.items()}
    other = next((name for name in rates if name not in _COLUMNS.values()), None) if not any(cells.values()) else None
    cells["other"] = "" if other is None else f"{_money(rates[other], entry.currency)} {_unit(other, rates[other].per)}"
    state = "free" if entry.free else ("" if rates else "no price now")
    kinds = list(dict.fromkeys([*filter(None, [state]), *_kinds(entry)]))
    more = f" +{len(kinds) - _KINDS}" if len(kinds) > _KINDS else ""
    return cells | {
        "provider": entry.provider,
        "model": entry.model,
        "also priced": ", ".join(kinds[:_KINDS]) + more,
        "as of": entry.as_of.isoformat() if entry.as_of else "",
    }


def _legend(entries: Sequence[Entry]) -> str:
    days = {entry.as_of for entry in entries}
    said = []
    if any(meter in _standing(entry) for entry in entries for meter in _COLUMNS.values()):
        said.append("for a million tokens")
    if len(days) == 1 and (day := days.pop()):
        said.append(f"as of {day.isoformat()}")
    return ", ".join([*said, "at list prices; all of one: aifinops prices show MODEL"])


def _standing(entry: Entry) -> Mapping[str, Rate]:
    """The standard rates of this moment."""
    now = _now()
    holding = [price for price in entry.prices if price.in_force(now)]
    return holding[-1].rates if holding else {}


def _now() -> int:
    from aifinops import runtime
    from aifinops.clock import SystemClock

    try:
        return runtime.get().clock.time_ns()
    except ConfigurationError:  # a wrong price file of the settings is what `check` is there to tell
        return SystemClock().time_ns()


def _usual(meter: str, rate: Rate | None, currency: str) -> str:
    """The price of the quantity that is customary for the meter, whatever the list counts in."""
    from aifinops.meters import METERS
    from aifinops.money import format_rate

    if rate is None:
        return ""
    return format_rate(rate.times(Decimal(METERS[meter].per) / Decimal(rate.per)).base, currency)


def _money(rate: Rate | None, currency: str) -> str:
    from aifinops.money import format_rate

    return "" if rate is None else format_rate(rate.base, currency)


_UNITS = {
    ("gpu_seconds", 3600): "a GPU-hour",
    ("cpu_seconds", 3600): "a CPU-hour",
    ("audio_seconds", 3600): "an hour of audio",
    ("audio_seconds", 60): "a minute of audio",
    ("gb_months", 1): "a GiB-month",
    ("bytes_egress", 1_000_000_000): "a GB of egress",
}


def _unit(meter: str, per: int) -> str:
    """What one price is for: `a GPU-hour`, `per 1,000,000 characters`."""
    if (meter, per) in _UNITS:
        return _UNITS[meter, per]
    if per == 1:
        return "each"
    return f"per {per:,} {'tokens' if meter.endswith('_tokens') else meter.replace('_', ' ')}"


def _kinds(entry: Entry) -> Iterator[str]:
    """What else has a price: tiers, regions, options, long prompts, hours, volume."""
    served = [(one.tier, one.region, one.options) for one in entry.variants]
    for tier, region, options in [*served, *((one.tier, one.region, one.options) for one in entry.adjust)]:
        yield from filter(None, (tier, region, *(name for name, _ in options)))
    rates = [rate for price in entry.prices for rate in price.rates.values()]
    if any(rate.above for rate in rates):
        yield "long prompts"
    if any(rate.graduated for rate in rates):
        yield "volume"
    if any(price.windowed for price in entry.prices):
        yield "hours"


@app.command(name="show")
def show_model(
    model: Annotated[str, typer.Argument(help="Any name that a price list declares.")],
    provider: Annotated[str | None, typer.Option(help="Needed where several sell the same name.")] = None,
) -> None:
    """Everything that the lists say about one model: every price with its dates, tiers, steps, and where it is from."""
    from aifinops import runtime

    book = runtime.get().book
    entry = book.resolve(provider, model)
    print("\n".join(_described(entry)))


def _described(entry: Entry) -> Iterator[str]:
    named = f"  ({entry.name})" if entry.name and entry.name != entry.model else ""
    yield f"{entry.provider}/{entry.model}{named}"
    yield f"  list {entry.list_id}" + (f", as of {entry.as_of.isoformat()}" if entry.as_of else "")
    sure = f" (confidence {entry.confidence})" if entry.confidence else ""
    yield f"  source {entry.source}{sure}"
    if entry.url:
        yield f"  read from {entry.url}"
    for what, count in (("context window", entry.context_window), ("longest answer", entry.max_output)):
        if count:
            yield f"  {what} {count:,} tokens"
    yield from (f"  {line}" for line in _facts(entry))
    standing = [price for price in entry.prices if price.in_force(_now())]
    for price in entry.prices:
        now = len(entry.prices) > 1 and price is standing[-1] if standing else False
        yield from _price(price, entry.currency, now=now)
    for price in entry.variants:
        yield from _price(price, entry.currency)
    for factor in entry.adjust:
        what = ", ".join(sorted(factor.meters)) or "all prices of it"
        note = f"  ({factor.note})" if factor.note else ""
        yield f"  {factor.label}{_dates(factor)}: {what} x {factor.multiply}{note}"
    yield from _terms(entry)
    yield from (f"  note: {note}" for note in entry.notes)


def _facts(entry: Entry) -> Iterator[str]:
    if entry.free:
        yield "free"
    if entry.provisioned:
        yield "capacity that is paid for by the hour: one more call costs nothing"
    if not (entry.free or entry.provisioned or entry.prices):
        yield "no price: the list knows the model only"
    for meter, least in entry.minimum.items():
        yield f"at least {least:,} {meter} are billed for a request"
    for name in entry.unmetered:
        yield f"also sold, and counted by no meter: {name}"


def _terms(entry: Entry) -> Iterator[str]:
    """What a contract of the settings makes of these prices."""
    terms = entry.terms
    if terms is None:
        return
    for discount in terms.discounts:
        off = "by volume" if discount.volume else f"{discount.percent} %"
        yield f"  your contract: discount {discount.name} {off}"
    for commitment in terms.commitments:
        yield f"  your contract: commitment {commitment.name}"
    if terms.markup is not None:
        yield f"  your contract: markup x {terms.markup}, in billed amounts only"
    if terms.target and terms.target != terms.source:
        yield f"  your contract: costs are in {terms.target}"


def _price(price: Price, currency: str, *, now: bool = False) -> Iterator[str]:
    from aifinops.money import format_money, format_rate

    yield f"  {_when(price)}" + ("  <- now" if now else "") + (f"  ({price.note})" if price.note else "")
    if price.unknown:
        yield f"    unknown: {price.unknown}"
    for meter, rate in price.rates.items():
        yield f"    {meter:<26} {format_rate(rate.base, currency):>12} {_unit(meter, rate.per)}"
        for least, dearer in rate.above:
            yield f"    {'':<26} {format_rate(dearer, currency):>12} with a prompt above {least:,} tokens"
        for least, marginal in rate.graduated:
            yield f"    {'':<26} {format_rate(marginal, currency):>12} for what a month has above {least:,}"
    if price.minimum_charge:
        yield f"    {'a request at least':<26} {format_money(price.minimum_charge, currency):>12}"


def _when(price: Price) -> str:
    """What must be so for a price to hold: `tier batch, from 2026-10-14`."""
    from aifinops.pricing.changes import window

    named = [("tier", price.tier), ("region", price.region), *price.options]
    parts = [f"{name} {value}" for name, value in named if value]
    parts += [part for part in (_dates(price).strip(), window(price) if price.windowed else "") if part]
    if price.when:
        parts.append(f"only if {price.when}, which no usage tells")
    return ", ".join(parts) or "at any time"


def _dates(price: Price | Adjust) -> str:
    start = f" from {_day(price.starts)}" if price.starts is not None else ""
    return start + (f" until {_day(price.ends)}" if price.ends is not None else "")


def _day(moment: int) -> str:
    from aifinops.clock import to_datetime

    found = to_datetime(moment)
    return found.date().isoformat() if found.time() == time() else f"{found:%Y-%m-%d %H:%M} UTC"


# --- compare ----------------------------------------------------------------------------------------------------------


@app.command()
def diff(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="'current', 'bundled', 'installed' (genai-prices), or a file.")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Likewise.")],
    form: TableOrJson = "table",
) -> None:
    """What changed between two price lists: models that came and went, and every price that moved. Discounts are left out."""
    from aifinops.pricing.changes import changes

    _check_form(form)
    before, after = price_list(old), price_list(new)
    found = changes(before, after, at=_now())
    if form == "json":
        sys.stdout.write(json.dumps([one.as_dict() for one in found], indent=1) + "\n")
    else:
        _tell(found)
    if before.contract or after.contract:
        print("discounts, commitments and exchange rates of a contract are not compared", file=sys.stderr)


def price_list(name: str) -> PriceList:
    """The list that was meant: `current`, `bundled`, `installed`, or a file of one's own or a compiled one.

    Raises:
        ConfigurationError: when there is none, or it is wrong.
    """
    from aifinops.pricing import refresh
    from aifinops.pricing.lists import from_file, load_bundled

    if name == "bundled":
        return load_bundled()
    if name == "current":
        return refresh.current(_folder())
    if name == "installed":
        found, _, skipped = refresh.installed(_today())
        _tell_skipped(skipped)
        return found
    path = Path(name).expanduser()
    return refresh.compiled(path) if path.suffix == ".jsonl" else from_file(path)


def _folder() -> Path:
    from aifinops.config import load
    from aifinops.pricing.refresh import folder

    return folder(load({}).price_folder)


def _today() -> date:
    return datetime.fromtimestamp(_now() // 1_000_000_000, UTC).date()


def _tell(found: Sequence[Change]) -> None:
    """Plain lines, a model's prices below its name: no name is broken, whatever the width."""
    lines = [_cleaned(line) for line in _changed([one for one in found if one.kind == "changed"])]
    for kind, sign in (("added", "+"), ("removed", "-")):
        names = [f"{one.provider}/{one.model}" for one in found if one.kind == kind]
        lines += [_cleaned(f"{sign} {name}") for name in names[:_NAMED]]
        if len(names) > _NAMED:
            lines.append(f"{sign} and {len(names) - _NAMED:,} more: aifinops prices diff OLD NEW --format json")
    counts = {kind: sum(one.kind == kind for one in found) for kind in ("added", "removed", "changed")}
    models = len({(one.provider, one.model) for one in found if one.kind == "changed"})
    lines.append(
        f"{_counted(counts['added'], 'model')} added, {counts['removed']:,} removed,"
        f" {_counted(counts['changed'], 'price')} of {_counted(models, 'model')} changed"
    )
    print("\n".join(lines))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _changed(moved: Sequence[Change]) -> Iterator[str]:
    if not moved:
        return
    widths = [max(len(getattr(one, name)) for one in moved) for name in ("meter", "before", "after", "percent")]
    name, before, after, percent = (max(width, least) for width, least in zip(widths, (5, 6, 5, 6), strict=True))
    name = min(name, _METER)  # a longer name pushes its own numbers only
    yield f"  {'':<{name}}  {'before':>{before}}  {'after':>{after}}  {'change':>{percent}}"
    last = None
    for one in moved:
        if last != (last := (one.provider, one.model)):
            yield f"{one.provider}/{one.model}"
        cells = (one.before or "-", one.after or "-", one.percent)
        yield f"  {one.meter:<{name}}  {cells[0]:>{before}}  {cells[1]:>{after}}  {cells[2]:>{percent}}".rstrip()


def _cleaned(text: str) -> str:
    """Names come from files: no escape sequences for the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _tell_skipped(skipped: Iterable[str]) -> None:
    for reason in skipped:
        print(f"left out of our corrections: {reason}", file=sys.stderr)


# --- refresh ----------------------------------------------------------------------------------------------------------


@app.command()
def update(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A compiled list (.jsonl); default: the installed genai-prices."),
    ] = None,
    day: Annotated[
        str | None,
        typer.Option("--date", metavar="DATE", help="Release day of the installed genai-prices (default: today)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change and write nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the list that came with this version.")] = False,
) -> None:
    """Take a newer list of models into use: from `pip install -U genai-prices`, or from a file. Shows what changes."""
    from aifinops.pricing import refresh
    from aifinops.pricing.changes import changes

    place = _folder()
    if undo:
        print("the bundled list is in use again" if refresh.undo(place) else "the bundled list is in use already")
        return
    if source is None:
        fresh, text, skipped = refresh.installed(_date(day))
    else:
        (fresh, text), skipped = refresh.from_text(source), []
    now = refresh.current(place)
    if not refresh.is_newer(fresh, now):
        print(
            f"{fresh.id} {fresh.version} of {fresh.date} is not newer than what is in use ({now.version} of {now.date}); "
            + ("nothing was changed" if source else "for a newer one: pip install -U genai-prices")
        )
        return
    _tell(changes(now, fresh, at=_now()))
    _tell_skipped(skipped)
    if dry_run:
        print("nothing was written")
        return
    written = refresh.put(place, text)
    print(f"{fresh.id} {fresh.version} of {fresh.date} is in use from now on: {written}")


def _date(text: str | None) -> date:
    if text is None:
        return _today()
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--date {text!r} is no date; write 2026-11-01") from None


@app.command()
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Default: the files of the settings.")
    ] = None,
) -> None:
    """Whether price files are well formed, what they cover, and how old they are. Exit status 1 for a wrong or stale one."""
    from aifinops.cli import show

    found = list(_examined(files))
    show.findings(found, show.console())
    if any(finding.status == "bad" for finding in found):
        raise typer.Exit(1)


def _examined(files: list[Path] | None) -> Iterator[Finding]:
    from aifinops.cli.doctor import Finding
    from aifinops.config import load
    from aifinops.errors import AIFinOpsError

    own = [Path(path) for path in load({}).prices] if files is None else files
    for path in own:
        try:
            yield _age(price_list(str(path)), str(path))
        except AIFinOpsError as error:
            yield Finding(path.name, "bad", str(error))
    if files is None:
        yield from _in_use()


def _in_use() -> Iterator[Finding]:
    from aifinops.cli.doctor import Finding
    from aifinops.pricing import refresh
    from aifinops.pricing.lists import bundled_lists

    used = bundled = bundled_lists()[0]
    try:
        fresh = refresh.refreshed(_folder())
    except ConfigurationError as error:
        yield Finding(
            "refreshed", "bad", f"{error}; the bundled list is used: aifinops prices update, or update --undo"
        )
    else:
        if fresh is not None and refresh.is_newer(fresh, bundled):
            used = fresh
        elif fresh is not None:
            old = f"{fresh.version} of {fresh.date} is not newer than the bundled {bundled.version} and not used"
            yield Finding("refreshed", "note", f"{old}: aifinops prices update --undo deletes it")
    for one in (used, *bundled_lists()[1:]):
        yield _age(one, one.source)


def _age(one: PriceList, where: str) -> Finding:
    from aifinops.cli.doctor import Finding
    from aifinops.pricing.refresh import STALE_DAYS

    said = ("1 entry" if one.count == 1 else f"{one.count:,} entries") + (" and a contract" if one.contract else "")
    said += f", {where}"
    if one.date is None:
        return Finding(one.id, "note", f"{said}; no date: add date = YYYY-MM-DD, so that its age can be told")
    days = (_today() - one.date).days
    if days > STALE_DAYS:
        return Finding(one.id, "bad", f"{said}; {days} days old: aifinops prices update, or check it and set its date")
    return Finding(one.id, "good", f"{said}; of {one.date.isoformat()}, {max(days, 0)} days old")
