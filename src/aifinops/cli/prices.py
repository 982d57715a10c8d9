"""`aifinops prices`: look up, compare, refresh and check price lists. Only the lists are read; nothing here uses the network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from aifinops.cli.doctor import Finding
    from aifinops.pricing.lists import PriceList
    from aifinops.pricing.prices import Entry, Price, Rate

__all__ = ["app"]

app = typer.Typer(
    help="Price lists: look a price up, compare lists, refresh the list of models, check files of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_MOST = 40
_COLUMNS = {"input": "input_tokens", "cached": "cache_read_tokens", "output": "output_tokens"}


@app.command()
def search(
    words: Annotated[
        list[str], typer.Argument(help="Parts of a provider's, model's or device's name; all must be there.")
    ],
    provider: Annotated[str | None, typer.Option(help="Only of this provider.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The most rows.")] = _MOST,
) -> None:
    """Models, GPUs, storage and databases whose name has all the words, with their price of today."""
    from aifinops.cli import show

    found = list(_matching(words, provider))
    if not found:
        print(f"nothing in the price lists is called {' '.join(words)!r}; try fewer or shorter words", file=sys.stderr)
        raise typer.Exit(1)
    out = show.console()
    out.print(_hits(found[:limit]))
    if len(found) > limit:
        out.print(f"{len(found) - limit:,} more: give another word, --provider, or --limit {len(found)}", style="dim")


def _matching(words: Iterable[str], provider: str | None) -> Iterator[Entry]:
    wanted = [word.lower() for word in words]
    for one in _lists():
        for entry in one.entries(provider):
            text = f"{entry.provider} {entry.model} {entry.name}".lower()
            if all(word in text for word in wanted):
                yield entry


def _lists() -> tuple[PriceList, ...]:
    from aifinops import runtime

    return runtime.get().book.lists


def _hits(entries: Iterable[Entry]) -> Table:
    from rich.table import Table

    from aifinops.cli.show import plain

    table = Table(box=None)
    for name in ("provider", "model"):
        table.add_column(name, overflow="fold")
    for name in (*_COLUMNS, "other"):
        table.add_column(name, justify="right")
    for name in ("also priced", "as of"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        rates = _standing(entry)
        cells = [_money(rates.get(meter), entry.currency) for meter in _COLUMNS.values()]
        other = next((name for name in rates if name not in _COLUMNS.values()), None) if not any(cells) else None
        cells.append(
            "" if other is None else f"{_money(rates[other], entry.currency)} {_unit(other, rates[other].per)}"
        )
        state = "free" if entry.free else ("" if rates else "no price")
        also = ", ".join(dict.fromkeys([*filter(None, [state]), *_kinds(entry)]))
        day = entry.as_of.isoformat() if entry.as_of else ""
        table.add_row(plain(entry.provider), plain(entry.model), *cells, also, day)
    return table


def _standing(entry: Entry) -> Mapping[str, Rate]:
    """The standard rates of this moment."""
    now = _now()
    holding = [price for price in entry.prices if price.in_force(now)]
    return holding[-1].rates if holding else {}


def _now() -> int:
    from aifinops import runtime

    return runtime.get().clock.time_ns()


def _money(rate: Rate | None, currency: str) -> str:
    from aifinops.money import format_rate

    return "" if rate is None else format_rate(rate.base, currency)


def _unit(meter: str, per: int) -> str:
    """What one price is for: `an hour of GPU`, `1M characters`."""
    names = {("gpu_seconds", 3600): "a GPU-hour", ("cpu_seconds", 3600): "a CPU-hour", ("gb_months", 1): "a GiB-month"}
    if (meter, per) in names:
        return names[meter, per]
    what = "tokens" if meter.endswith("_tokens") else meter.replace("_", " ")
    return f"each of {what}" if per == 1 else f"per {per:,} {what}"


def _kinds(entry: Entry) -> Iterator[str]:
    """What else has a price: tiers, regions, options, dates, hours, steps."""
    for tier, region, options in ((one.tier, one.region, one.options) for one in entry.variants):
        yield from filter(None, (tier, region, *(name for name, _ in options)))
    for tier, region, options in ((one.tier, one.region, one.options) for one in entry.adjust):
        yield from filter(None, (tier, region, *(name for name, _ in options)))
    if any(rate.above for price in entry.prices for rate in price.rates.values()):
        yield "long prompts"
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
    if entry.free:
        yield "  free"
    if entry.provisioned:
        yield "  capacity that is paid for by the hour: one more call costs nothing"
    for price in (*entry.prices, *entry.variants):
        yield from _price(price, entry.currency)
    for factor in entry.adjust:
        note = f"  ({factor.note})" if factor.note else ""
        yield f"  {factor.label}: all prices x {factor.multiply}{note}"
    yield from (f"  note: {note}" for note in entry.notes)


def _price(price: Price, currency: str) -> Iterator[str]:
    from aifinops.money import format_rate

    when = price.label or ("at any time" if price.unconditional else "at some hours")
    ended = f" until {_day(price.ends)}" if price.ends is not None else ""
    yield f"  {when}{ended}{f', if {price.when}' if price.when else ''}" + (f"  ({price.note})" if price.note else "")
    if price.unknown:
        yield f"    unknown: {price.unknown}"
    for meter, rate in price.rates.items():
        yield f"    {meter:<26} {format_rate(rate.base, currency):>12} {_unit(meter, rate.per)}"
        for least, dearer in rate.above:
            yield f"    {'':<26} {format_rate(dearer, currency):>12} with a prompt above {least:,} tokens"
        for least, marginal in rate.graduated:
            yield f"    {'':<26} {format_rate(marginal, currency):>12} for what a month has above {least:,}"


def _day(moment: int) -> str:
    from aifinops.clock import to_datetime

    return to_datetime(moment).date().isoformat()


# --- compare ----------------------------------------------------------------------------------------------------------


@app.command()
def diff(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="'current', 'bundled', 'installed' (genai-prices), or a file.")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Likewise.")],
    form: Annotated[str, typer.Option("--format", metavar="table|json", help="Written as.")] = "table",
) -> None:
    """What changed between two price lists: models that came and went, and every price that moved."""
    from aifinops.pricing.changes import changes

    found = changes(_named(old), _named(new), at=_now())
    if form == "json":
        sys.stdout.write(json.dumps([one.as_dict() for one in found], indent=1) + "\n")
    elif form == "table":
        _tell(found)
    else:
        raise ConfigurationError(f"--format {form!r} is unknown; write table or json")


def _named(name: str) -> PriceList:
    from aifinops.pricing import refresh
    from aifinops.pricing.lists import from_file, load_bundled, read_list

    if name == "bundled":
        return load_bundled()
    if name == "current":
        return refresh.current(_folder())
    if name == "installed":
        return refresh.installed(_today())[0]
    path = Path(name).expanduser()
    return read_list(path) if path.suffix == ".jsonl" else from_file(path)


def _folder() -> Path:
    from aifinops.config import load
    from aifinops.pricing.refresh import folder

    return folder(load({}).price_folder)


def _today() -> date:
    return datetime.fromtimestamp(_now() / 1e9, UTC).date()


def _tell(found: Any) -> None:
    from rich.table import Table

    from aifinops.cli import show

    out = show.console()
    moved = [one for one in found if one.kind == "changed"]
    if moved:
        table = Table(box=None)
        for name in ("provider", "model", "price"):
            table.add_column(name, overflow="fold")
        for name in ("before", "after", "change"):
            table.add_column(name, justify="right")
        for one in moved:
            table.add_row(
                show.plain(one.provider),
                show.plain(one.model),
                one.meter,
                one.before or "-",
                one.after or "-",
                one.percent,
            )
        out.print(table)
    counts = {
        kind: len({(one.provider, one.model) for one in found if one.kind == kind}) for kind in ("added", "removed")
    }
    models = len({(one.provider, one.model) for one in moved})
    out.print(
        f"{counts['added']:,} models added, {counts['removed']:,} removed, {len(moved):,} prices of {models:,} changed"
    )


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
            f"{fresh.id} {fresh.version} of {fresh.date} is not newer than what is in use ({now.version} of {now.date})"
            + ("" if source else ": pip install -U genai-prices")
        )
        return
    _tell(changes(now, fresh, at=_now()))
    for reason in skipped:
        print(f"left out, the new list decides: {reason}", file=sys.stderr)
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
    from aifinops.pricing import refresh
    from aifinops.pricing.lists import bundled_lists

    own = [Path(path) for path in load({}).prices] if files is None else files
    for path in own:
        try:
            yield _age(_named(str(path)), str(path))
        except AIFinOpsError as error:
            yield Finding(path.name, "bad", str(error))
    if files is None:
        current = refresh.current(_folder())
        for one in (current, *bundled_lists()[1:]):
            yield _age(one, one.source)


def _age(one: PriceList, where: str) -> Finding:
    from aifinops.cli.doctor import Finding
    from aifinops.pricing.refresh import STALE_DAYS

    said = f"{one.count:,} entries" + (f" and a contract of {one.id}" if one.contract else "") + f", {where}"
    if one.date is None:
        return Finding(one.id, "note", f"{said}; no date: add date = YYYY-MM-DD, so that its age can be told")
    days = (_today() - one.date).days
    if days > STALE_DAYS:
        return Finding(one.id, "bad", f"{said}; {days} days old: aifinops prices update, or check it and set its date")
    return Finding(one.id, "good", f"{said}; of {one.date.isoformat()}, {max(days, 0)} days old")
