"""`aifinops focus`: the ledger as a FOCUS file, and what is wrong with one."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aifinops.cli.ledger import opened, progress_bar
from aifinops.cli.options import LedgerPath, Since, Until, Where
from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from aifinops.analytics.focus import Exported

__all__ = ["app"]

app = typer.Typer(
    help="Write the ledger as a FOCUS 1.2 file, as finance tools read it; check such a file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_SHOWN = 50


@app.command()
def export(
    to: Annotated[Path, typer.Argument(metavar="FILE", help="The CSV file to write.")],
    since: Since = None,
    until: Until = None,
    where: Where = None,
    per: Annotated[str, typer.Option(metavar="hour|day", help="How long a row's charge period is (UTC).")] = "day",
    tags: Annotated[
        str, typer.Option(metavar="KEYS", help="Tags that tell rows apart, with commas; all for every one.")
    ] = "team,project,feature,environment",
    account: Annotated[str, typer.Option(metavar="ID", help="Who is billed: BillingAccountId.")] = "unspecified",
    profile: Annotated[str, typer.Option(help="Version of FOCUS.")] = "focus-1.2",
    replace: Annotated[bool, typer.Option("--replace", help="Write over what is there.")] = False,
    ledger: LedgerPath = None,
) -> None:
    """Write what was spent as FOCUS 1.2 (CSV); each row is checked before it is written."""
    from aifinops import runtime
    from aifinops.analytics.focus import export_focus
    from aifinops.analytics.periods import period
    from aifinops.cli.reporting import filters

    if per not in ("hour", "day"):
        raise ConfigurationError(f"--per {per!r} is no charge period; write hour or day")
    keys = None if tags == "all" else [key.strip() for key in tags.split(",") if key.strip()]
    asked = period(since, until, filters(where or []), runtime.get().clock.time_ns())
    with opened(ledger) as source, progress_bar("Writing") as progress:
        gone = source.info().compacted_until_ns
        done = export_focus(
            source, to, query=asked, per="hour" if per == "hour" else "day", tags=keys, account=account, profile=profile,
            replace_file=replace, progress=progress,
        )  # fmt: skip
    _tell(to, done)
    if gone is not None and (asked.since_ns is None or asked.since_ns < gone):
        print("Of compacted days the ledger has daily sums only; those are not in it.", file=sys.stderr)


def _tell(to: Path, done: Exported) -> None:
    from aifinops.cli.show import plain
    from aifinops.money import format_money, from_nanos

    sums = ", ".join(format_money(from_nanos(amount), currency) for currency, amount in sorted(done.billed.items()))
    print(f"{done.rows:,} rows in {to}: {sums or 'nothing'}, from {done.entries:,} entries of the ledger")
    if done.unpriced:
        calls = sum(one.calls for one in done.unpriced)
        print(
            f"Without a price, and in no row, since nobody knows what it cost: {_count(calls, 'call')}", file=sys.stderr
        )
        for one in done.unpriced:
            name = plain(f"{one.provider} {one.model}").plain
            print(f"  {name}: {_count(one.calls, 'call')}, {_count(one.tokens, 'token')}", file=sys.stderr)
    if done.committed:
        print(
            f"Of capacity that is paid for by the hour: {_count(done.committed, 'call')}, whose part of its price is in no EffectiveCost "
            "(aifinops report --amortised has it)",
            file=sys.stderr,
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


@app.command()
def lint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A FOCUS 1.2 Cost and Usage file (CSV).")],
) -> None:
    """Look for what FOCUS 1.2 does not allow: line, column, rule; exit code 1 when there is something."""
    from aifinops.analytics.focus_rules import lint as look
    from aifinops.cli.show import plain

    findings = look(file)
    shown = list(islice(findings, _SHOWN))
    for one in shown:
        print(plain(str(one)).plain)
    more = sum(1 for _ in findings)
    if more:
        print(f"and {more:,} more")
    if shown:
        raise typer.Exit(1)
    print(f"{file}: nothing wrong")
