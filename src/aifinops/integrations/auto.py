"""Metering without a line of code: what `aifinops run` and `opentelemetry-instrument` switch on in a process, and what it says at the end."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifinops.errors import AIFinOpsError, swallow

if TYPE_CHECKING:
    from aifinops.analytics.reports import ReportRow

__all__ = ["FOLDER", "AIFinOpsInstrumentor", "environment", "start", "summary"]

FOLDER = Path(__file__).with_name("zero_code")
"""What lies here is loaded by Python itself."""

_OFF = {"0", "false", "no", "off"}


def environment(run: str, *, summary: bool) -> dict[str, str]:
    """The environment of a program that is to be metered, and of all that it starts.

    Args:
        run: id of the run, a tag of everything in it. summary: whether the process of this id says at its end what it cost.
    """
    paths = [str(FOLDER), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    changed = {"AIFINOPS_AUTO": "1", "AIFINOPS_RUN": run, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    if summary:
        changed["AIFINOPS_RUN_PID"] = str(os.getpid())  # exec keeps it; whatever the program starts has another
    return {**os.environ, **changed}


def start() -> None:
    """Instrument this process as its environment says; never an error: the program runs unmetered then, and one line says why."""
    if os.environ.get("AIFINOPS_AUTO", "1").strip().lower() in _OFF:
        return
    try:
        from aifinops import runtime
        from aifinops.integrations.registry import instrument

        settings = runtime.get().config
        if not settings.enabled:
            return
        instrument(*settings.instrument)
        if os.environ.get("AIFINOPS_RUN_PID") == str(os.getpid()) and settings.summary:
            # Loaded now: a dataclass that is made at the end (by `exec`) would make Python forget that it ends by Ctrl-C.
            import aifinops.analytics.reports  # noqa: F401

            atexit.register(_say)
    except AIFinOpsError as error:
        print(f"aifinops: nothing is metered: {error}", file=sys.stderr)  # noqa: T201 - there is no logging yet
    except Exception as failure:  # whatever it is, the program was asked for, not us
        swallow("auto.start", failure)


def _say() -> None:
    if os.environ.get("AIFINOPS_RUN_PID") != str(os.getpid()):  # a fork of it
        return
    try:
        print(f"aifinops: {summary()}", file=sys.stderr, flush=True)  # noqa: T201 - asked for by `aifinops run`
    except (
        Exception
    ) as failure:  # a closed stderr, a ledger that cannot be read: the program has ended well all the same
        swallow("auto.summary", failure)


def summary() -> str:
    """What this run has cost so far, in one line: with all processes of it whose ledger is the same."""
    from aifinops import runtime
    from aifinops.analytics.reports import report

    passing: Any = sys.modules.get("aifinops.integrations.passing")
    if passing is not None:
        passing.finish_open_streams()
    runtime.flush(runtime.EXIT_FLUSH_S)
    engines = runtime.get()
    run = engines.config.tags.get("run", "")
    own = os.environ.get("AIFINOPS_RUN", "")
    since = int(own[:16], 16) if own and run == own else None
    made = report(engines.ledger, by=(), since=since, where={"run": run} if run else None)
    if not made.totals:
        return "no call was metered"
    hint = f"; aifinops report --where run={run}" if run and engines.ledger.info().kind != "memory" else ""
    return " and ".join(_told(row) for row in made.totals) + hint


def _told(row: ReportRow) -> str:
    from aifinops.money import format_money

    calls = f"{row.calls:,} call" + ("" if row.calls == 1 else "s")
    missing = f", {row.unpriced_calls:,} of them without a price" if row.unpriced_calls else ""
    about = "about " if row.cost.basis == "estimated" else ""
    return f"{about}{format_money(row.amount, row.currency)} in {calls}{missing}"


class AIFinOpsInstrumentor:
    """What `opentelemetry-instrument` loads: the entry point `aifinops` of the group `opentelemetry_instrumentor`.

    It has the methods of `opentelemetry.instrumentation.instrumentor.BaseInstrumentor`, of which only those below are called, and does
    not need that package (https://opentelemetry-python-contrib.readthedocs.io/en/latest/instrumentation/base/instrumentor.html).
    Spans and metrics go to the providers that the process has set; `tracer_provider` and its like are not needed.
    """

    _instance: AIFinOpsInstrumentor | None = None

    def __new__(cls) -> AIFinOpsInstrumentor:
        """The one of this process."""
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance.is_instrumented_by_opentelemetry = False
        return cls._instance

    is_instrumented_by_opentelemetry: bool

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        """None: a library that is missing is simply never imported."""
        return ()

    def instrument(self, **_: Any) -> None:
        """Meter the libraries that the settings name, or all."""
        start()
        self.is_instrumented_by_opentelemetry = True

    def uninstrument(self, **_: Any) -> None:
        """Restore exactly what was there."""
        from aifinops.integrations.registry import uninstrument

        uninstrument()
        self.is_instrumented_by_opentelemetry = False
