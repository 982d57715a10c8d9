"""`aifinops ledger`: what is in a ledger, and what keeps it fast, small and sound."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.cli.options import LedgerPath, Since, TableOrJson, Until, Where
from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from aifinops.ledger.base import Ledger, LedgerInfo, Progress, Verification

__all__ = ["app", "opened", "progress_bar"]

app = typer.Typer(
    help="What is in the ledger; bring it up to date, make old entries daily sums, write it to files, look for damage.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


_SHOWN = 20


@app.command()
def info(ledger: LedgerPath = None, form: TableOrJson = "table") -> None:
    """Where the ledger is, how much is in it and of when, and what is compacted."""
    with opened(ledger, form) as source:
        found = source.info()
    _tell(_facts(found), _info_rows(found), form)


@app.command()
def migrate(
    anew: Annotated[bool, typer.Option("--anew", help="Make all roll-ups again, from the entries.")] = False,
    ledger: LedgerPath = None,
    form: TableOrJson = "table",
) -> None:
    """Bring the tables up to date: those of an earlier version, and roll-ups of what came since."""
    with opened(ledger, form) as source:
        bring = getattr(source, "migrate", None)  # others have theirs brought up to date when they are opened
        before = getattr(source, "migrated_from", None)
        with progress_bar("Rolling up") as progress:
            rolled = 0 if bring is None else bring(anew=anew, progress=progress)
        found = source.info()
    facts = {
        "ledger": found.location,
        "schema_before": before or found.schema,
        "schema": found.schema,
        "rolled_up": rolled,
    }
    said = (
        f"schema {found.schema}, as it was"
        if before in (None, found.schema)
        else f"schema {before} is now {found.schema}"
    )
    _tell(facts, [("ledger", found.location), ("tables", said), ("entries rolled up", f"{rolled:,}")], form)


@app.command()
def compact(
    before: Annotated[
        str, typer.Option(metavar="TIME", help='Days before it: "90d", "2026-09-01".', show_default=False)
    ],
    ledger: LedgerPath = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    form: TableOrJson = "table",
) -> None:
    """Keep sums by day in place of old entries. Entries of which the cost is not sure stay; what goes cannot be had back."""
    from aifinops import runtime
    from aifinops.analytics.periods import parse_since
    from aifinops.ledger.base import DAY_NS, ROLLUP_FIELDS, ROLLUP_TAGS, start_of

    until = start_of(parse_since(before, runtime.get().clock.time_ns()), DAY_NS)
    with opened(ledger, form) as source:
        if not source.capabilities.compacts:
            raise ConfigurationError(f"{source.info().location} cannot be compacted; see aifinops ledger info")
        kept = ", ".join((*ROLLUP_FIELDS, *ROLLUP_TAGS))
        question = f"Of entries before {_day(until)} only daily sums by {kept} will be left. Shall they go?"
        if not yes and not typer.confirm(question, err=True):
            raise typer.Exit(1)
        with progress_bar("Compacting") as progress:
            done = source.compact(until, progress=progress)
    since = None if done.since_ns is None else _day(done.since_ns)
    facts = {
        "entries": done.entries,
        "kept": done.kept,
        "since": since,
        "until": _day(done.until_ns),
        "freed_bytes": done.freed_bytes,
    }
    rows = [
        ("entries compacted", f"{done.entries:,}"),
        ("kept in detail", f"{done.kept:,}"),
        ("days", f"{since} up to {_day(done.until_ns)}" if since else f"none before {_day(done.until_ns)}"),
        ("freed", _bytes(done.freed_bytes)),
    ]
    _tell(facts, rows, form)


@app.command()
def export(
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Ends with .csv, .jsonl, .parquet or .duckdb.")],
    since: Since = None,
    until: Until = None,
    where: Where = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="csv|jsonl|parquet|duckdb", help="When the name does not say it.")
    ] = None,
    by_day: Annotated[bool, typer.Option("--by-day", help="A folder with a file a day.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Write over what is there.")] = False,
    ledger: LedgerPath = None,
) -> None:
    """Write entries to a file: CSV, JSON lines, Parquet or DuckDB."""
    from aifinops import runtime
    from aifinops.analytics.periods import period
    from aifinops.cli.reporting import filters
    from aifinops.ledger import export as files

    asked = period(since, until, filters(where or []), runtime.get().clock.time_ns())
    kind: Any = form  # what is no format is told below
    with opened(ledger) as source, progress_bar("Writing") as progress:
        gone = source.info().compacted_until_ns
        count = files.export(source, to, query=asked, format=kind, by_day=by_day, replace=replace, progress=progress)
    print(f"{count:,} entries in {to}")
    if gone is not None and (asked.since_ns is None or asked.since_ns < gone):
        print(f"Of the days before {_day(gone)} the ledger has daily sums only; those are not in it.", file=sys.stderr)


@app.command()
def verify(ledger: LedgerPath = None, form: TableOrJson = "table") -> None:
    """Look through everything: is the store sound, can each entry be read, do lines and roll-ups add up?"""
    with opened(ledger, form) as source:
        if not source.capabilities.verifies:
            raise ConfigurationError(f"{source.info().location} cannot be verified; see aifinops ledger info")
        with progress_bar("Looking") as progress:
            found = source.verify(progress=progress)
    if form == "json":
        problems = [{"kind": one.kind, "where": one.where, "text": one.text} for one in found.problems]
        _tell({"entries": found.entries, "found": found.found, "problems": problems}, [], form)
    else:
        _verdict(found)
    if not found.sound:
        raise typer.Exit(1)


@app.command(name="sql")
def statements(
    otel: Annotated[
        bool, typer.Option("--otel", help="Views over what a collector writes to ClickHouse, to report on.")
    ] = False,
    postgres: Annotated[
        bool, typer.Option("--postgres", help="The tables of a ledger in PostgreSQL, for who makes them by hand.")
    ] = False,
    database: Annotated[str, typer.Option(help="With --otel: the collector's database.")] = "otel",
    logs: Annotated[str, typer.Option(help="With --otel: its table of logs.")] = "otel_logs",
    traces: Annotated[str, typer.Option(help="With --otel: its table of spans.")] = "otel_traces",
    schema: Annotated[str, typer.Option(help="With --postgres: in which schema.")] = "aifinops_ledger",
    role: Annotated[str | None, typer.Option(help="With --postgres: who may write and read afterwards.")] = None,
) -> None:
    """Print the SQL that a database needs, to be run there."""
    if otel == postgres:
        raise ConfigurationError("say for what: aifinops ledger sql --otel, or aifinops ledger sql --postgres")
    if otel:
        from aifinops.ledger.otel_views import otel_sql

        print(otel_sql(database, logs=logs, traces=traces), end="")
    else:
        from aifinops.ledger.postgres import setup_sql

        print(setup_sql(schema, role=role), end="")


# --- parts ------------------------------------------------------------------------------------------------------------


@contextmanager
def opened(named: str | None, form: str = "table") -> Iterator[Ledger]:
    """A ledger that is there, closed afterwards; `form` is what `--format` said.

    Raises:
        ConfigurationError: when there is none, or for an unknown format.
    """
    from aifinops.config import load
    from aifinops.ledger import open_ledger

    if form not in ("table", "json"):
        raise ConfigurationError(f"--format {form!r} is unknown; write table or json")
    source = open_ledger(load({"ledger": named}).ledger, create=False)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A progress bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    out = Console(stderr=True)
    if not out.is_terminal:  # older versions of rich write an empty line there even of a bar that is disabled
        yield lambda done, total: None
        return
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _tell(facts: dict[str, Any], rows: list[tuple[str, str]], form: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from aifinops.cli import show

    if form == "json":
        sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, show_header=False)
    for name, value in rows:
        table.add_row(Text(name, style="dim"), show.plain(value))
    show.console().print(table)


def _facts(found: LedgerInfo) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "location": found.location,
        "schema": found.schema,
        "entries": found.entries,
        "first_at": _moment(found.first_at),
        "last_at": _moment(found.last_at),
        "size_bytes": found.size_bytes,
        "compacted": found.compacted,
        "compacted_until": None if found.compacted_until_ns is None else _day(found.compacted_until_ns),
        "behind": found.behind,
    }


def _info_rows(found: LedgerInfo) -> list[tuple[str, str]]:
    rows = [
        ("ledger", found.location),
        ("kind", f"{found.kind}, schema {found.schema}"),
        ("entries", f"{found.entries:,}"),
        ("from", _moment(found.first_at) or "-"),
        ("to", _moment(found.last_at) or "-"),
        ("size", _bytes(found.size_bytes)),
    ]
    if found.compacted_until_ns is not None:
        rows.append(("compacted", f"{found.compacted:,} entries before {_day(found.compacted_until_ns)}: daily sums"))
    if found.behind:
        rows.append(("not rolled up", f"{found.behind:,} (reports do it, or aifinops ledger migrate)"))
    return rows


def _verdict(found: Verification) -> None:
    from rich.text import Text

    from aifinops.cli import show

    out = show.console()
    if found.sound:
        out.print(Text(f"{found.entries:,} entries: everything is sound.", style="green"))
        return
    out.print(Text(f"{found.entries:,} entries, {found.found:,} problems:", style="bold red"))
    for one in found.problems[:_SHOWN]:
        out.print(show.plain(f"  {one.kind}  {one.where}  {one.text}"))
    if found.found > _SHOWN:
        out.print(f"  and {found.found - _SHOWN:,} more (--format json lists a thousand)")


def _moment(at: int | None) -> str | None:
    from aifinops.clock import to_datetime

    return None if at is None else to_datetime(at).isoformat(timespec="seconds")


def _day(at: int) -> str:
    from aifinops.clock import to_datetime

    return to_datetime(at).date().isoformat()


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
