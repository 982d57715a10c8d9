"""`aifinops import`: usage that was recorded elsewhere, into the ledger."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from aifinops.importing import Outcome

__all__ = ["import_"]

_SHOWN = 10
"""Malformed rows that are shown; `--rejects` has all of them."""


def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Exports, gzipped or not; '-' for standard input.")],
    form: Annotated[str | None, typer.Option("--format", metavar="NAME", help="What the files are (default: each is looked at).")] = None,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", metavar="COLUMN=MEANING", help="What a column of a table is: time, model, a meter, tag:KEY.")
    ] = None,
    constants: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="What every row of a table is: model=gpt-5-mini.")
    ] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="A tag for every entry.")] = None,
    ledger: Annotated[str | None, typer.Option("--ledger", metavar="PATH", help="Ledger to write to (default: the one of the settings).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be written.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing when any row is malformed.")] = False,
    theirs: Annotated[bool, typer.Option("--their-costs", help="Take the costs in the files over our prices.")] = False,
    anyway: Annotated[bool, typer.Option("--add-anyway", help="Also where the ledger has the period from another source.")] = False,
    rejects: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the malformed rows' places and reasons there (CSV).")] = None,
    output: Annotated[str, typer.Option("--output", metavar="table|json", help="How the outcome is written.")] = "table",
) -> None:  # fmt: skip
    """Read exports of OpenAI, Anthropic, LiteLLM and Langfuse, span dumps and plain tables into the ledger, each row once."""
    from aifinops import runtime
    from aifinops.cli.ledger import progress_bar
    from aifinops.cli.reporting import filters
    from aifinops.config import load
    from aifinops.importing import import_files

    if output not in ("table", "json"):
        raise ConfigurationError(f"--output {output!r} is unknown; write table or json")
    with _on_disk(files) as paths, progress_bar("Reading") as told:
        target = runtime.open_ledger(load({"ledger": ledger}))
        try:
            outcome = import_files(
                paths, target, runtime.get().book, form=form, mapping=_pairs("--map", mapping), constants=_pairs("--set", constants),
                tags=_single(filters(tags or [])), write=not dry_run, anyway=anyway, theirs=theirs, strict=strict, progress=lambda _, done, total: told(done, total),
            )  # fmt: skip
        finally:
            target.close()
    if rejects is not None:
        _reject(rejects, outcome)
    if output == "json":
        sys.stdout.write(json.dumps(_plain(outcome), indent=1) + "\n")
    else:
        _tell(outcome, dry_run)
    if outcome.malformed:
        raise typer.Exit(1)


@contextmanager
def _on_disk(files: list[Path]) -> Iterator[list[Path]]:
    """The files; what comes through standard input is kept for the second reading."""
    if str(Path("-")) not in map(str, files):
        yield files
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "standard-input"
        with kept.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        yield [kept if str(path) == "-" else path for path in files]


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in given or []:
        key, equals, value = pair.rpartition("=") if option == "--map" else pair.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ConfigurationError(f"{option} {pair!r}: write {option} name=meaning")
        found[key.strip()] = value.strip()
    return found


def _single(found: dict[str, str | list[str]]) -> dict[str, str]:
    twice = next((key for key, value in found.items() if isinstance(value, list)), None)
    if twice is not None:
        raise ConfigurationError(f"--tag {twice} is given twice; an entry has one value of a tag")
    return {key: str(value) for key, value in found.items()}


def _reject(path: Path, outcome: Outcome) -> None:
    import csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("file", "place", "reason"))
        rows.writerows(outcome.malformed)


def _plain(outcome: Outcome) -> dict[str, Any]:
    from aifinops.money import format_money, from_nanos

    return {
        "read": outcome.read,
        "written": outcome.written,
        "known": outcome.known,
        "unpriced": outcome.unpriced,
        "estimated": outcome.estimated,
        "amounts": {
            currency: format_money(from_nanos(nanos), currency, places=9).lstrip("$")
            for currency, nanos in outcome.amounts.items()
        },
        "first": _moment(outcome.first),
        "last": _moment(outcome.last),
        "formats": outcome.formats,
        "left": dict(outcome.left),
        "ignored": outcome.ignored,
        "malformed": [{"file": file, "place": place, "reason": reason} for file, place, reason in outcome.malformed],
    }


def _moment(at: int | None) -> str | None:
    from aifinops.clock import to_datetime

    return None if at is None else to_datetime(at).isoformat()


def _tell(outcome: Outcome, dry_run: bool) -> None:
    from rich.text import Text

    from aifinops.cli import show
    from aifinops.importing import FORMATS
    from aifinops.money import format_money, from_nanos

    out = show.console()
    for file, name in outcome.formats.items():
        out.print(Text(f"{file}: {FORMATS[name].what}"))
    for file, columns in outcome.ignored.items():
        out.print(Text(f"{file}: not read: {', '.join(columns)} (--map COLUMN=MEANING for what they are)", style="dim"))
    if outcome.first is not None and outcome.last is not None:
        out.print(Text(f"from {_moment(outcome.first)} to {_moment(outcome.last)}"))
    sums = ", ".join(format_money(from_nanos(nanos), currency) for currency, nanos in sorted(outcome.amounts.items()))
    verb = "would be written" if dry_run else "written"
    out.print(Text(f"{outcome.written:,} entries {verb}{f', {sums}' if sums else ''}", style="bold"))
    for number, words in (
        (outcome.known, "were in the ledger already"),
        (outcome.unpriced, "of the new ones have no price (aifinops report shows them apart)"),
        (outcome.estimated, "of the new ones are estimates with bounds"),
    ):
        if number:
            out.print(Text(f"{number:,} {words}"))
    for why, number in sorted(outcome.left.items()):
        out.print(Text(f"{number:,} left out: {why}"))
    if outcome.malformed:
        out.print(Text(f"{len(outcome.malformed):,} malformed rows were skipped:", style="bold red"))
        for file, place, reason in outcome.malformed[:_SHOWN]:
            out.print(Text(f"  {Path(file).name}, {place}: {reason}"))
        if len(outcome.malformed) > _SHOWN:
            out.print(
                Text(f"  and {len(outcome.malformed) - _SHOWN:,} more: --rejects FILE writes them all", style="dim")
            )
