"""The commands: what can be typed, and which part answers."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from aifinops.cli import approvals, audit, budgets, focus, gpu, importing, prices, reporting, rerating, tokens, top
from aifinops.cli import ledger as ledgers
from aifinops.cli.options import LedgerPath
from aifinops.errors import ConfigurationError

__all__ = ["app"]

app = typer.Typer(
    help="The cost layer for AI code: what calls and GPU time cost, whose it is, and where it stops.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(approvals.app, name="approvals")
app.add_typer(prices.app, name="prices")
app.add_typer(tokens.app, name="tokens")
app.add_typer(budgets.app, name="budget")
app.add_typer(audit.app, name="audit")
app.add_typer(gpu.app, name="gpu")
app.add_typer(ledgers.app, name="ledger")
app.add_typer(focus.app, name="focus")
app.command()(reporting.report)
app.command()(rerating.rerate)
app.command("import")(importing.import_)
app.command()(top.top)


Tokens = Annotated[int, typer.Option(min=0, metavar="TOKENS")]


@app.command()
def price(
    model: Annotated[str, typer.Argument(help="Any name that a price list declares.")],
    fresh: Annotated[int, typer.Option("--input", min=0, metavar="TOKENS", help="Fresh input tokens.")] = 0,
    output: Annotated[int, typer.Option(min=0, metavar="TOKENS", help="Visible output tokens.")] = 0,
    cached: Annotated[
        int, typer.Option(min=0, metavar="TOKENS", help="Input tokens read from a cache, beside --input.")
    ] = 0,
    written: Annotated[
        int, typer.Option("--cache-write", min=0, metavar="TOKENS", help="Input tokens written to it.")
    ] = 0,
    reasoning: Annotated[int, typer.Option(min=0, metavar="TOKENS", help="Reasoning tokens, beside --output.")] = 0,
    usage: Annotated[
        list[str] | None, typer.Option(metavar="METER=QUANTITY", help="Any other meter, e.g. web_search_requests=3.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Needed where several sell the same name.")] = None,
    tier: Annotated[str, typer.Option(help="Served tier: flex, priority, batch.")] = "",
    at: Annotated[str | None, typer.Option(metavar="DATE", help="The day whose price counts (default: now).")] = None,
) -> None:
    """What a usage costs, with every rate, source and date that made the number."""
    from aifinops.quote import price as price_of

    counts: dict[str, Any] = {
        "input_tokens": fresh,
        "output_tokens": output,
        "cache_read_tokens": cached,
        "cache_write_tokens": written,
        "reasoning_tokens": reasoning,
        **quantities(usage or []),
    }
    cost = price_of(model, provider=provider, tier=tier, at=moment(at), **counts)
    if not cost.known:
        print("\n".join([f"{model}: the cost is unknown", *cost.notes]), file=sys.stderr)
        raise typer.Exit(1)
    print(cost.explain())


def quantities(pairs: list[str]) -> dict[str, Decimal]:
    """`["web_search_requests=3"]` -> `{"web_search_requests": Decimal(3)}`.

    Raises:
        ConfigurationError: for a part without `=` or without a number.
    """
    from aifinops.money import decimal

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--usage {pair!r} is no quantity; write --usage meter=number")
        found[name.strip()] = decimal(value.strip(), f"--usage {name.strip()}")
    return found


def moment(text: str | None) -> datetime | None:
    """A date or time as typed, UTC unless it says otherwise.

    Raises:
        ConfigurationError: for what is neither.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--at {text!r} is no date; write 2026-11-01 or 2026-11-01T12:00:00") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@app.command()
def doctor(ledger: LedgerPath = None) -> None:
    """What works here: libraries, ledger, prices, exporter, GPUs."""
    from aifinops.cli import doctor as examination
    from aifinops.cli import show

    findings = examination.examine(ledger)
    show.findings(findings, show.console())
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(1)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    program: Annotated[
        list[str] | None, typer.Argument(metavar="PROGRAM [ARGUMENTS]...", help="A script, and all that it is given.")
    ] = None,
    module: Annotated[
        str | None,
        typer.Option("-m", metavar="MODULE", help="Run a module as python -m does; what follows is its own."),
    ] = None,
    silent: Annotated[bool, typer.Option("--no-summary", help="Do not say at the end what it cost.")] = False,
) -> None:
    """Run a Python program, metered, without a line of code in it; what it starts is metered as well."""
    from aifinops.cli.run import run as become

    if not program and module is None:
        raise ConfigurationError("aifinops run needs a program: aifinops run app.py, or aifinops run -m package")
    become(program or (), module=module, summary=not silent)


@app.command()
def version() -> None:
    """The version of aifinops."""
    from aifinops._version import __version__

    print(__version__)


@app.command()
def demo(
    otlp: Annotated[
        str | None, typer.Option(metavar="[ENDPOINT]", help="Also send to a collector (default http://localhost:4318).")
    ] = None,
    ledger: Annotated[
        str | None, typer.Option(metavar="PATH", help="Ledger to write to (default: one of the demo's own).")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Replay a CSV of TIMESTAMP,ContextTokens,GeneratedTokens instead."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(metavar="X", help="With --trace: X times as fast as it was (default: as fast as it goes)."),
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="LIMIT", help='With --trace: stop at "$1".')] = None,
    workers: Annotated[int, typer.Option(metavar="N", help="With --trace: requests in flight.")] = 1,
    model: Annotated[str, typer.Option(help="With --trace: the model to price by.")] = "gpt-4o-mini",
    limit: Annotated[int | None, typer.Option(metavar="N", help="With --trace: the first N rows only.")] = None,
) -> None:
    """The whole product in a few seconds, offline: a support desk on a loopback server, metered, budgeted, reported."""
    from aifinops.cli import demo as desk
    from aifinops.cli import replay, show

    stage = desk.Stage(show.console(), ledger, otlp)
    if trace is None:
        if speed is not None or budget is not None or limit is not None:
            raise ConfigurationError("--speed, --budget and --limit belong to --trace FILE")
        works = desk.run(stage)
    else:
        works = replay.run(stage, trace, replay.Options(model, budget, speed, workers, limit))
    if not works:
        raise typer.Exit(1)
