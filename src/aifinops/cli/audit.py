"""`aifinops audit`: whether the log of decisions is whole, and what it says."""

from __future__ import annotations

import json
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aifinops.budgets.audit import Entry

__all__ = ["app", "file_of", "log_path"]

app = typer.Typer(
    help="The log of decisions of budgets: refusals, waits, corrections, limits set by hand, approvals; each line chained to the one before.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LogPath = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="The log (default: the one of the budgets of the settings).")
]
StoreName = Annotated[
    str | None, typer.Option("--store", metavar="STORE", help="The store whose log is meant, as in the settings.")
]
_HEAD = re.compile(r"[0-9a-f]{64}")
_FIRST = ("at", "kind", "budget")
_HIDDEN = ("hash", "n", "pid", *_FIRST)


def log_path(file: Path | None, store: str | None) -> Path:
    """The log that is meant.

    Raises:
        ConfigurationError: when both are given, or there is no log because nothing is kept in a file.
    """
    from aifinops import runtime

    if file is not None:
        if store is not None:
            raise ConfigurationError("give the file of the log or --store, not both")
        return file
    engines = runtime.get()
    found = runtime.audit_path(
        engines.config, file_of(runtime.shared_store(engines.config) if store is None else store)
    )
    if found is None:
        raise ConfigurationError(
            "budgets and ledger are in memory, so no log is kept; name one: aifinops audit verify FILE"
        )
    return Path(found)


def file_of(target: str) -> Path | None:
    """The file of a store as people write it; None for a server and for memory."""
    scheme, is_url, rest = target.partition("://")
    if target == "memory" or (is_url and scheme != "sqlite"):
        return None
    return Path(rest.removeprefix("/") if is_url else target).expanduser()


@app.command()
def verify(
    file: LogPath = None,
    store: StoreName = None,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="A head that was printed earlier: the log must still have it.")
    ] = None,
) -> None:
    """Follow the chain from the first line to the last; exit code 1 at the first line that was edited, deleted or moved."""
    from aifinops.budgets import audit

    if head is not None and not _HEAD.fullmatch(head.lower()):
        raise ConfigurationError(f"--head {head!r} is no hash; write the 64 digits that aifinops audit verify printed")
    path = log_path(file, store)
    kept = head.lower() if head else _kept_head(path, store) if file is None else None
    with _progress(path) as progress:
        verdict = audit.verify(path, kept, progress)
    if not verdict.holds:
        place = f"line {verdict.line}: " if verdict.line else ""
        print(f"{path}: {place}{verdict.trouble}. {verdict.entries:,} entries before that are good.", file=sys.stderr)
        raise typer.Exit(1)
    if verdict.torn:
        print(f"{verdict.torn:,} lines were left in part by a writer that was stopped, and closed off", file=sys.stderr)
    if verdict.open:
        print(f"the last {verdict.open:,} bytes are no entry yet; the next one closes them off", file=sys.stderr)
    print(f"{path}: {verdict.entries:,} entries, none changed")
    print(f"head {verdict.head}")


def _kept_head(path: Path, store: str | None) -> str | None:
    """The head that the store has, where that can be asked."""
    from aifinops import runtime
    from aifinops.budgets.audit import head_note
    from aifinops.budgets.stores.base import Notes
    from aifinops.errors import StoreError

    engines = runtime.get()
    target = runtime.shared_store(engines.config) if store is None else store
    place = file_of(target)
    if target == "memory" or (place is not None and not place.exists()):
        return None
    try:
        notes = Notes(head_note(path), engines.clock.time_ns()).execute(engines.store_at(target))
    except (StoreError, ConfigurationError) as error:
        print(f"the head that the store has is not compared: {error}", file=sys.stderr)
        return None
    return next((head for _, head in notes if _HEAD.fullmatch(head)), None)


@contextmanager
def _progress(path: Path) -> Iterator[Callable[[int], object] | None]:
    shown = False

    def tell(line: int) -> None:
        nonlocal shown
        shown = True
        print(f"\r{line:,} lines", end="", file=sys.stderr, flush=True)

    try:
        yield tell if sys.stderr.isatty() else None
    finally:
        if shown:
            print(file=sys.stderr)


@app.command()
def show(
    file: LogPath = None,
    store: StoreName = None,
    last: Annotated[int, typer.Option("--last", min=1, metavar="N", help="So many entries at most.")] = 50,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only of this kind: refused, let_through, waited, limit_set, ...")
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this budget.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The last entries; exit code 1 where the chain is broken, after those that come before."""
    from aifinops.budgets import audit

    kept: deque[Entry] = deque(maxlen=last)
    trouble: Entry | None = None
    for entry in audit.entries(log_path(file, store)):
        if entry.trouble:
            trouble = entry
        elif kind in (None, entry.facts.get("kind")) and budget in (None, entry.facts.get("budget")):
            kept.append(entry)
    if as_json:
        sys.stdout.writelines(json.dumps(entry.facts, ensure_ascii=False) + "\n" for entry in kept)
    else:
        _table([entry.facts for entry in kept])
    if trouble is not None:
        print(f"line {trouble.line}: {trouble.trouble}", file=sys.stderr)
        raise typer.Exit(1)


def _table(found: list[Mapping[str, Any]]) -> None:
    from rich.table import Table

    from aifinops.cli import show as tables

    if not found:
        print("No entries of that kind.")
        return
    table = Table(box=None)
    for name in ("time", "kind", "budget", "facts"):
        table.add_column(name, no_wrap=name in ("time", "kind"), overflow="fold")
    for facts in found:
        first = [str(facts.get(name, "")) for name in _FIRST]
        first[0] = first[0][:19].replace("T", " ")
        table.add_row(
            *map(tables.plain, first[:2]), tables.key(first[2]) if first[2] else "", tables.plain(_facts(facts))
        )
    tables.console().print(table)


def _facts(facts: Mapping[str, Any]) -> str:
    shown = [f"{name}={_value(value)}" for name, value in facts.items() if name not in _HIDDEN]
    return "  ".join(shown)


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
