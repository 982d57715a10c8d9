"""Fault injection at every seam: each of our functions on the way of a call raises in turn, and the user must not notice.

The functions are found by watching what a user does with each client library, in both colours. What is entered from somebody else's code is
left out, as nothing of ours is above it that could contain it; so are the few in `THIN`, which do nothing but contain others.

By default a part of the functions is broken, another one each day; `AIFINOPS_FAULTS=all` breaks each of them in every way.
"""

from __future__ import annotations

import contextvars
import gc
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import CodeType
from typing import Any

import pytest
from breaking import Functions, Seen, label
from opentelemetry import context as otel
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import get_current_span
from real_clients import LIBRARIES, Driver, Library, use

import aifinops as af
from aifinops import errors, metering, runtime
from aifinops.integrations import passing
from aifinops.telemetry import spans

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"
)

ALL = os.environ.get("AIFINOPS_FAULTS") == "all"
PARTS = 18
ERRORS = (RuntimeError, KeyError, MemoryError)
TODAY = datetime.now(UTC).toordinal()

NUMBERS = itertools.count()

THIN: frozenset[str] = frozenset()


class Count(SpanProcessor):
    """How many spans are open."""

    def __init__(self) -> None:
        self.open = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.open += 1

    def on_end(self, span: Any) -> None:
        self.open -= 1


class Armed:
    """A client with us in its way, and what its user gets without us."""

    def __init__(self, library: Library, server: Any, driver: Driver) -> None:
        self.library, self.server, self.driver = library, server, driver
        self.address = getattr(server, "url", "") or server.base
        self.client = library.make(self.address)
        self.expected = self.use()
        assert self.use() == self.expected
        self.count = Count()

    def use(self, context: contextvars.Context | None = None) -> Any:
        """What a user does."""
        return self.driver.run(use(self.library, self.client, self.server), context)

    def arm(self, ledger: Any) -> None:
        """Meter it from now on."""
        af.init(ledger=ledger, stream_usage="always")
        assert runtime.get().guard  # the engines are made together when one is first asked for
        provider = TracerProvider(shutdown_on_exit=False)
        if not self.library.asynchronous:  # with it spans are begun at the beginning, and without they are made at the end
            provider.add_span_processor(self.count)
        runtime.get().spans = spans.Spans("0", lambda: provider)
        af.instrument(self.library.name)
        self.client = self.library.make(self.address)

    def left(self, context: contextvars.Context) -> list[str]:
        """What is still open, and should not be."""
        gc.collect()
        af.flush()
        found = {
            "a call in the context": context.run(metering.in_flight) is not None,
            "a span in the context": context.run(get_current_span).get_span_context().is_valid,
            "switches in the context": bool(context.run(otel.get_current)),
            "streams": bool(passing._passing),
            "spans": self.count.open != 0,
        }
        passing._passing.clear()
        self.count.open = 0
        return [what for what, open in found.items() if open]


@pytest.fixture(params=LIBRARIES)
def armed(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Armed]:
    library = LIBRARIES[request.param]
    pytest.importorskip(library.needs)
    errors.reraise_failures(False)
    logging.getLogger("aifinops").setLevel(logging.CRITICAL)
    driver = Driver(library.asynchronous)
    with library.serve() as server:
        made = Armed(library, server, driver)
        made.arm(tmp_path / "ledger.db")
        yield made
        af.uninstrument()
        driver.close()
    passing.finish_open_streams()  # what a broken end has left, which no later test made
    logging.getLogger("aifinops").setLevel(logging.NOTSET)
    runtime.reset()
    gc.collect()


def watched(armed: Armed) -> list[CodeType]:
    """The functions of ours that a use of a client passes and that something of ours is above, in order."""
    with af.budget("$1000000", name="watched", unknown="allow"), Seen() as seen:
        for _ in range(2):
            armed.use()
    inner = [code for code in seen.codes - seen.outermost if label(code) not in THIN]
    return sorted(inner, key=lambda code: (label(code), code.co_firstlineno))


def wrong(armed: Armed, functions: Functions, code: CodeType, error: type[Exception]) -> list[str]:
    """Break one function, use the client, and say what somebody could notice."""
    hits: list[None] = []

    def fault() -> Any:
        hits.append(None)
        raise error("injected")

    counted = sum(errors.failures().values())
    found = []
    with af.budget("$1000000", name=f"faults {next(NUMBERS)}", unknown="allow") as budget:
        context = contextvars.copy_context()
        outside = context.run(otel.get_current)
        assert not outside
        with functions.breaking(code, fault):
            try:
                got = armed.use(context)
            except BaseException as failure:
                got = f"{type(failure).__name__}: {failure}"
        if got != armed.expected:
            found.append(f"the user gets {got if isinstance(got, str) else 'something else'}")
        found += armed.left(context)
        if budget.reserved:
            found.append("a hold")
    if hits and error is MemoryError and sum(errors.failures().values()) == counted:
        found.append("nothing counted")
    return found


def test_a_broken_internal_never_changes_what_the_user_gets(armed: Armed) -> None:
    """Whichever function of ours raises, a user gets the bare client's answers, pieces and errors, and nothing is left open."""
    codes, functions = watched(armed), Functions()
    assert len(codes) > 60
    todo = [(code, error) for code in codes for error in ERRORS]
    gc.freeze()  # what is collected each time is only what a use has left
    try:
        found = {
            f"{label(code)} {error.__name__}": noticed
            for code, error in (todo if ALL else todo[TODAY % PARTS :: PARTS])
            if (noticed := wrong(armed, functions, code, error))
        }
    finally:
        gc.unfreeze()
    assert not found, "\n".join(f"{where}: {', '.join(what)}" for where, what in found.items())
