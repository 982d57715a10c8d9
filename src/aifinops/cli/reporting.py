"""`aifinops report`: spend by any key, as a table, as data, or as a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.cli.options import LedgerPath, Since, Until, Where
from aifinops.errors import AIFinOpsError, ConfigurationError

if TYPE_CHECKING:
    from aifinops.analytics.reports import Report
    from aifinops.budgets.standing import Standing
    from aifinops.config import Config
    from aifinops.ledger.base import Ledger

__all__ = ["filters", "report"]

_VALUES = 12
"""The most values of a tag that an empty answer names."""


class Form(StrEnum):
    """How a report is written."""

    table = "table"
    json = "json"
    csv = "csv"


class Sort(StrEnum):
    """What comes first; `aifinops.analytics.reports.SORTS` says what each means."""

    cost = "cost"
    calls = "calls"
    tokens = "tokens"
    change = "change"
    per_call = "per_call"
    per_1k_tokens = "per_1k_tokens"
    unpriced = "unpriced"
    name = "name"


def report(
    by: Annotated[
        str, typer.Option(help="Keys with commas: team, feature, model, provider, day, ... or any tag.")
    ] = "model",
    since: Since = None,
    until: Until = None,
    where: Where = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Beside the period of the same length before; needs --since.")
    ] = False,
    trend: Annotated[bool, typer.Option("--trend", help="How it went: a small chart in each row.")] = False,
    unit_cost: Annotated[bool, typer.Option("--unit-cost", help="What a call and a thousand tokens cost.")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="So many rows; all others are added up in one.")
    ] = None,
    sort: Annotated[Sort, typer.Option(help="What comes first.")] = Sort.cost,
    amortised: Annotated[
        bool, typer.Option("--amortised", help="Spread capacity that is paid for by the hour over the calls it served.")
    ] = False,
    form: Annotated[Form, typer.Option("--format", help="Written as.")] = Form.table,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write one page with charts; - for standard output.")
    ] = None,
    title: Annotated[str, typer.Option(help="With --html: what stands at the top of the page.")] = "Spend",
    ledger: LedgerPath = None,
) -> None:
    """Spend by team, model or any other key, from the ledger; calls without a price are shown apart."""
    from aifinops import runtime
    from aifinops.analytics.reports import report as make
    from aifinops.config import load
    from aifinops.ledger import open_ledger

    engines = runtime.get()
    capacity = engines.book.capacity if amortised else None
    settings = engines.config if ledger is None else load({"ledger": ledger})
    source = open_ledger(settings.ledger, create=False)
    try:
        made = make(
            source, by=by, since=since, until=until, where=filters(where or []), now_ns=engines.clock.time_ns(),
            capacity=capacity, compare=compare, trend=trend or html is not None, top=top, sort=sort.value,
        )  # fmt: skip
        if html is not None:
            _write_page(html, made.to_html(title=title, budgets=_budgets(settings, made.made_ns)))
        else:
            _print(made, form, unit_cost=unit_cost, empty="" if made.rows else nothing_found(source, made))
    finally:
        source.close()


def _print(made: Report, form: Form, *, unit_cost: bool, empty: str) -> None:
    from aifinops.cli import show

    if form is Form.table:
        show.report(made, show.console(), unit_cost=unit_cost, empty=empty)
    else:
        sys.stdout.write(made.to_csv() if form is Form.csv else f"{made.to_json()}\n")


def _write_page(target: str, text: str) -> None:
    if target == "-":
        sys.stdout.buffer.write(text.encode())
        return
    path = Path(target).expanduser()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--html {target}: {error.strerror}; name a file that can be written") from error
    print(f"{path}: {len(text.encode()) / 1000:,.0f} kB; open it in a browser")


def _budgets(settings: Config, now_ns: int) -> Sequence[Standing]:
    """The budgets in use, where their store is there; a page without them is better than none."""
    from aifinops import runtime
    from aifinops.budgets.standing import present
    from aifinops.cli.audit import file_of
    from aifinops.cli.gpu import SLOTS

    target = runtime.shared_store(settings)
    path = file_of(target)
    if target == "memory" or (path is not None and not path.exists()):
        return ()
    try:
        found = present(runtime.get().store_at(target), now_ns)
    except AIFinOpsError as error:
        print(f"aifinops: the page has no budgets: {error}", file=sys.stderr)
        return ()
    return [one for one in found if one.node.unit != SLOTS]


def filters(pairs: list[str]) -> dict[str, str | list[str]]:
    """`["team=search", "team=support"]` -> `{"team": ["search", "support"]}`.

    Raises:
        ConfigurationError: for a part without `=`.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(f"--where {pair!r} is no filter; write --where key=value")
        found.setdefault(key.strip(), []).append(value.strip())
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def nothing_found(ledger: Ledger, made: Report) -> str:
    """Why a report has no rows, and what to type: `No calls ...`."""
    from aifinops.ledger.base import Query

    place = ledger.info()
    if not place.entries:
        return (
            f"No calls yet: the ledger {place.location} is empty. Meter a program with `aifinops run app.py` "
            "(or af.instrument() in it), or see `aifinops demo`."
        )
    parts = [f"No calls in this period and filter; the ledger {place.location} has {place.entries:,} entries"]
    if place.first_at is not None and place.last_at is not None:
        parts.append(f" from {_day(place.first_at)} to {_day(place.last_at)}")
    period = Query(made.since_ns, made.until_ns)
    unmet = [_values_of(ledger, period, key, value) for key, value in made.where.items()]
    return "".join(parts) + "." + "".join(f" {text}" for text in unmet if text)


def _values_of(ledger: Ledger, period: Any, key: str, value: str | Sequence[str]) -> str:
    """Which values there are of a key of which the wanted one is not; empty where it is there."""
    from aifinops.cli.show import plain

    wanted = {value} if isinstance(value, str) else set(value)
    known = sorted({group.key[0] for group in ledger.summarize(period, (key,))})
    if not known or wanted & set(known):
        return ""
    names = ", ".join(plain(name).plain for name in known[:_VALUES])
    return f"Values of {key} in this period: {names}{' ...' if len(known) > _VALUES else ''}."


def _day(at: int) -> str:
    from aifinops.clock import to_datetime

    return f"{to_datetime(at):%Y-%m-%d %H:%M}"
