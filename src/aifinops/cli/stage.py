"""What both demos stand on: a fake provider, the real client pointed at it, a ledger of its own, and the bill at the end."""

from __future__ import annotations

import importlib.util
import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import aifinops as af
from aifinops import runtime
from aifinops.analytics.reports import Report
from aifinops.cli.doctor import reachable
from aifinops.errors import ConfigurationError
from aifinops.ledger import default_path
from aifinops.testing import FakeProvider

__all__ = ["Open", "Stage", "tally"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a demo plays.

    Attributes:
        out: the terminal. ledger: path, or None for the demo's own file beside the user's ledger. otlp: collector, or None.
    """

    out: Console
    ledger: str | None = None
    otlp: str | None = None

    @property
    def path(self) -> str:
        """The ledger that is written to. It is appended to like any other: each run has a tag of its own."""
        return str(default_path().with_name("demo.db")) if self.ledger is None else self.ledger

    @contextmanager
    def open(self) -> Iterator[Open]:
        """Everything running and instrumented; all of it is put away again at the end.

        Raises:
            ConfigurationError: without openai, with a ledger that cannot be opened, or when no collector answers.
        """
        if importlib.util.find_spec("openai") is None:
            raise ConfigurationError(
                "the demo drives the real openai client, which is missing: pip install 'aifinops[demo]'"
            )
        if self.otlp is not None and (problem := reachable(self.otlp)):
            raise ConfigurationError(f"--otlp {self.otlp}: {problem}")
        run = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        runtime.init(ledger=self.path, otlp=self.otlp, tags={"run": run, "environment": "demo"})
        af.instrument("openai")
        import openai

        try:
            with (
                _messages_to(self.out) as messages,
                FakeProvider() as server,
                openai.OpenAI(base_url=server.base_url, api_key="demo", max_retries=2) as client,
            ):
                yield Open(self, run, server, client, messages)
        finally:
            af.uninstrument()
            af.shutdown()


@dataclass(frozen=True, slots=True)
class Open:
    """A stage that is open.

    Attributes:
        run: value of the tag `run` of everything that is charged here. server: the provider. client: an `openai.OpenAI`.
        messages: what was logged meanwhile.
    """

    stage: Stage
    run: str
    server: FakeProvider
    client: Any
    messages: Messages

    def report(self, *by: str) -> Report:
        """What this run has cost so far."""
        return af.report(by=list(by), where={"run": self.run})


def tally(play: Open) -> bool:
    """Compare the provider's bill with the ledger, count by count, and print the result; True when they agree."""
    billed = play.server.usage_totals()
    rows = [row for row in play.report("service") if row.key["service"] == "llm"]
    kept = {name: sum(getattr(row, name) for row in rows) for name in billed}
    shown = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in billed.items())
    if kept == billed:
        play.stage.out.print(f"The provider's bill and the ledger agree: {shown}.", style="green")
        return True
    wrong = ", ".join(
        f"{name} {billed[name]:,} on the bill and {kept[name]:,} in the ledger"
        for name in billed
        if billed[name] != kept[name]
    )
    play.stage.out.print(f"The provider's bill and the ledger differ: {wrong}.", style="bold red")
    return False


def farewell(play: Open) -> None:
    """Where the ledger lies, where telemetry went, and what to type next."""
    out, path = play.stage.out, play.stage.path
    shown = str(Path(path).resolve()) if path != "memory" else path
    out.print()
    out.print(Text(f"Ledger: {shown}"))
    if play.stage.otlp:
        # The exporters log what a collector has refused; a flush alone does not tell.
        sent = af.flush() and not play.messages.errors
        out.print(Text(f"{'Sent' if sent else 'Not everything was sent'} to {play.stage.otlp}."))
    out.print("Next:")
    for command in (
        f"aifinops report --by team,model --ledger {shlex.quote(shown)}",
        "aifinops price gpt-5-mini --input 1000 --output 200",
        "aifinops doctor",
    ):
        out.print(Text(f"  {command}", style="bold"))
    out.print(
        "In your code: import aifinops as af; af.instrument(); then @af.track_cost(team=...) and with af.budget(...)"
    )


class Messages(logging.Handler):
    """Prints what is logged, a line each, and counts the errors."""

    def __init__(self, write: Callable[[Text], None]) -> None:
        super().__init__(logging.INFO)
        self.errors = 0
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        self.errors += record.levelno >= logging.ERROR
        self._write(Text(f"  {record.getMessage()}", style="dim"))


@contextmanager
def _messages_to(out: Console) -> Iterator[Messages]:
    """Messages of budgets and exporters appear above the progress bar in place of across it."""
    messages = Messages(out.print)
    loggers = [logging.getLogger(name) for name in ("aifinops", "opentelemetry")]
    for logger in loggers:
        logger.addHandler(messages)
    try:
        yield messages
    finally:
        for logger in loggers:
            logger.removeHandler(messages)
