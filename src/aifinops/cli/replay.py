"""`aifinops demo --trace FILE`: a recorded load through the real client, under a budget, checked against the file's sums."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import aifinops as af
from aifinops import scope
from aifinops.charges import Charge
from aifinops.cli import show
from aifinops.cli.stage import Open, Stage, farewell, tally
from aifinops.money import format_money, from_nanos
from aifinops.testing.trace import Replay, TraceRow, read_trace, replay, sender
from aifinops.usage import tokens_total

__all__ = ["Options", "run"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay.

    Attributes:
        model: priced as. budget: a limit as for `af.budget`, or None. speed: time compression, or None for no waiting.
        workers: requests in flight. limit: first rows only, or None for all.
    """

    model: str = "gpt-4o-mini"
    budget: str | None = None
    speed: float | None = None
    workers: int = 1
    limit: int | None = None


@dataclass(slots=True)
class _Sums:
    """What has been charged so far, for the progress bar; a tracker."""

    nanos: int = 0
    tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, charge: Charge) -> None:
        with self._lock:
            self.nanos += charge.amount or 0
            self.tokens += tokens_total(charge.quantities)

    def told(self, limit: Decimal | None) -> str:
        spent = from_nanos(self.nanos)
        used = f", {spent / limit:.0%} of the budget" if limit else ""
        return f"{self.tokens:,} tokens, {format_money(spent, places=4)}{used}"


def run(stage: Stage, path: Path, options: Options) -> bool:
    """Replay the trace; True when the bill, the ledger and the file agree, and no budget was passed.

    Raises:
        ConfigurationError: for a file, a setting or an environment that is wrong.
    """
    rows = read_trace(path, limit=options.limit)
    budget = None if options.budget is None else af.budget(options.budget)
    with stage.open() as play:
        with budget or nullcontext():
            result = _play(play, rows, options, budget)
        held = _stopped(play, result, budget)
        play.stage.out.print()
        show.report(play.report("model"), play.stage.out, f"Replay of {path.name}")
        play.stage.out.print()
        agreed = _compared(play, rows, result) and tally(play)
        farewell(play)
    return agreed and held


def _play(play: Open, rows: Sequence[TraceRow], options: Options, budget: Any) -> Replay:
    limit = _money_limit(budget)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=play.stage.out, transient=True) as progress, _tracked() as sums:
        bar = progress.add_task("replay", total=len(rows), told="")
        return replay(
            rows,
            sender(play.client, options.model),
            workers=options.workers,
            speed=options.speed,
            on_answer=lambda row: progress.update(bar, advance=1, told=sums.told(limit)),
        )


def _money_limit(budget: Any) -> Decimal | None:
    """The limit in money, for the share that is shown; None for no budget or one in another unit."""
    if budget is None:
        return None
    found = budget.spent
    return budget.remaining + found if isinstance(found, Decimal) else None


@contextmanager
def _tracked() -> Iterator[_Sums]:
    sums = _Sums()
    token = scope.enter(tracker=sums)
    try:
        yield sums
    finally:
        scope.leave(token)


def _stopped(play: Open, result: Replay, budget: Any) -> bool:
    """Say how it ended; False when a budget was passed, which must never be."""
    out = play.stage.out
    if budget is None:
        return True
    if result.refused is None:
        out.print(Text(f"The budget was never in the way; it has {budget.remaining} left."))
        return True
    refused = result.refused
    out.print(f"Stopped by the budget after {result.sent:,} requests.", style="bold")
    out.print(Text(f"  {refused}"))
    return refused.spent <= refused.limit


def _compared(play: Open, rows: Sequence[TraceRow], result: Replay) -> bool:
    """The file's sums beside what the ledger has, in a table; True when all that was sent is there, to the token."""
    total = play.report("run").total
    table = Table(box=None)
    for name in ("", "requests", "input", "output"):
        table.add_column(name, justify="right" if name else "left")
    whole = (len(rows), sum(row.input_tokens for row in rows), sum(row.output_tokens for row in rows))
    sent = (result.sent, result.input_tokens, result.output_tokens)
    kept = (total.calls, total.input_tokens, total.output_tokens)
    for name, counts in (("in the file", whole), ("sent", sent), ("in the ledger", kept)):
        table.add_row(name, *(f"{count:,}" for count in counts))
    play.stage.out.print(table)
    same = kept == sent
    words = "equal to the token" if same else "NOT EQUAL"
    play.stage.out.print(f"Sent and in the ledger: {words}.", style="green" if same else "bold red")
    return same
