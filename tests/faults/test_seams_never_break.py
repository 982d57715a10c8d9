"""Fault injection at every seam: each of our functions on the way of a call raises in turn, and the user must not notice.

The functions are found by watching what a user does with each client library, in both colours. What is entered from somebody else's code is
left out, as nothing of ours is above it that could contain it; so are the few in `EXCUSED`, which do nothing but contain others.

By default a part of the functions is broken, in one of the colours, another one each day; `AIFINOPS_FAULTS=all` breaks each of them in every
way.
"""

from __future__ import annotations

import contextvars
import gc
import itertools
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from types import CodeType
from typing import Any

import pytest
from breaking import Functions, Seen, label
from opentelemetry import context as otel
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import get_current_span
from real_clients import CANARY, CHUNKS, INPUT, LIBRARIES, OUTPUT, Driver, Library, shut, use

import aifinops as af
from aifinops import errors, metering, runtime
from aifinops.integrations import passing
from aifinops.telemetry import spans

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"
)

ALL = os.environ.get("AIFINOPS_FAULTS") == "all"
PARTS = 36
ERRORS = (RuntimeError, KeyError, MemoryError)
TODAY = datetime.now(UTC).toordinal()

NUMBERS = itertools.count()

_CONTEXT = frozenset({"a call in the context", "a span in the context", "switches in the context"})
_EVERYTHING = frozenset({*"*"})
EXCUSED: dict[str, frozenset[str]] = {
    # What contains all others, and what the user pulls on.
    **dict.fromkeys(
        (
            "calls.called",
            "calls.acalled",
            "passing.guarded",
            "invocation.ending",
            "errors.swallow",
            "errors._Failures.add",
        ),
        _EVERYTHING,
    ),
    **dict.fromkeys(
        (f"passing.Tap.{name}" for name in ("_iter_bytes", "_iter_raw", "_tapped", "_original")), _EVERYTHING
    ),
    **dict.fromkeys((f"passing.Tap.{name}" for name in ("_aiter_bytes", "_aiter_raw", "_atapped")), _EVERYTHING),
    "hiding.Hider.taking.<locals>.take": _EVERYTHING,
    # What takes a call out of the context can only be done once.
    **dict.fromkeys(("invocation.Invocation.leave", "spans.OpenSpan.detach", "spans._Api.detach"), _CONTEXT),
    # The last step of an end: what it leaves is ended when the process is.
    **dict.fromkeys(("passing.Passing.finish", "deferred.settle_later"), frozenset({"streams", "spans", "a hold"})),
}
"""What somebody may notice where one of these fails; `*` is anything."""

UNHIDDEN = "the user gets something else"
"""What cannot be read is not hidden: then a stream has the event that we have asked for, and all of its own: see test_hiding."""
STORES = frozenset({"base", "budget", "guard", "lines", "memory", "reservations"})
"""Modules of the store of budgets: where it fails, what is held stays and expires as spent."""


def excused(code: CodeType, noticed: str) -> bool:
    """Whether it is known and said that this can be noticed."""
    module, _, _ = label(code).partition(".")
    known = EXCUSED.get(label(code), frozenset())
    if known is _EVERYTHING or noticed in known:
        return True
    if noticed == "a hold":
        return module in STORES
    # Tokenizers are somebody else's and often absent: what they do not count is estimated, which is no failure.
    return (module, noticed) in {("hiding", UNHIDDEN), ("encodings", "nothing counted")}


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
        if (
            not self.library.asynchronous
        ):  # with it spans are begun at the beginning, and without they are made at the end
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


COLOUR = ("sync", "async")[TODAY % 2]
PART = [name for name in LIBRARIES if ALL or name.partition(" ")[2] == COLOUR]


@pytest.fixture
def quiet() -> Iterator[None]:
    """Failures that are made on purpose are not printed. By itself, so that a test that is skipped half-way leaves the logger as it was."""
    logging.getLogger("aifinops").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("aifinops").setLevel(logging.NOTSET)


@pytest.fixture(params=PART)
def armed(request: pytest.FixtureRequest, tmp_path: Any, quiet: None) -> Iterator[Armed]:
    library = LIBRARIES[request.param]
    pytest.importorskip(library.needs)
    errors.reraise_failures(False)
    driver = Driver(library.asynchronous)
    with library.serve() as server:
        made = Armed(library, server, driver)
        made.arm(tmp_path / "ledger.db")
        gc.freeze()  # what is collected in a test is only what a use has left
        yield made
        gc.unfreeze()
        af.uninstrument()
        driver.run(shut(made.client, library.asynchronous))
        driver.close()
    passing.finish_open_streams()  # what a broken end has left, which no later test made
    runtime.reset()
    gc.collect()


def watched(armed: Armed) -> list[CodeType]:
    """The functions of ours that a use of a client passes and that something of ours is above, in order."""
    with af.budget("$1000000", name="watched", unknown="allow"), Seen() as seen:
        for _ in range(2):
            armed.use()
    inner = [code for code in seen.codes - seen.outermost if EXCUSED.get(label(code)) is not _EVERYTHING]
    return sorted(inner, key=lambda code: (label(code), code.co_firstlineno))


def wrong(armed: Armed, functions: Functions, code: CodeType, error: type[Exception]) -> list[str]:
    """Break one function, use the client, and say what somebody could notice."""
    hits: list[None] = []

    def fault() -> Any:
        hits.append(None)
        raise error("injected")

    counted = sum(errors.failures().values())
    found = []
    with af.budget("$1000000", name=f"faults {next(NUMBERS)}", unknown="allow", on_exceed="warn") as budget:
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
    return [noticed for noticed in found if not excused(code, noticed)]


def assert_seen(armed: Armed) -> None:
    """The use does go through us: each paid call is one row, and nothing of ours fails."""
    assert armed.use() == armed.expected
    gc.collect()
    af.flush()
    rows = [row for row in runtime.get().ledger.rows() if row.status != "error"]
    assert len(rows) == armed.library.paid
    assert CANARY not in repr(rows)
    assert errors.failures() == {}


def test_a_broken_internal_never_changes_what_the_user_gets(armed: Armed) -> None:
    """Whichever function of ours raises, a user gets the bare client's answers, pieces and errors, and nothing is left open."""
    assert_seen(armed)
    codes, functions = watched(armed), Functions()
    assert len(codes) > 60
    todo = [(code, error) for code in codes for error in ERRORS]
    found = {
        f"{label(code)} {error.__name__}": noticed
        for code, error in (todo if ALL else todo[TODAY % PARTS :: PARTS])
        if (noticed := wrong(armed, functions, code, error))
    }
    assert not found, "\n".join(f"{where}: {', '.join(what)}" for where, what in found.items())


READING = frozenset({
    "extract.Reader.tolerant", "extract.Reader.text", "extract.Reader.describe", "calls.settle", "calls.settle_body", "streams.read_events",
    "streams.read_objects", "passing.Tap.__init__", "passing.PassingEvents.__init__", "passing.Passing.__init__", "botocore._told",
    "botocore._refused", "google_genai._watch", "google_genai._is_login", "google_genai._refused", "sessions._Live._tell",
    "sessions._said_at_end", "sessions._response_of",
})  # fmt: skip


def test_a_call_whose_answer_we_fail_to_read_is_still_a_row(armed: Armed) -> None:
    """A failure of ours between an answer and its settlement costs the figures, never the row."""
    functions, lost = Functions(), []
    reading = [code for code in watched(armed) if label(code) in READING]
    for code in reading if ALL else reading[TODAY % 6 :: 6]:
        before = len(list(runtime.get().ledger.rows()))
        with functions.breaking(code, _broken):
            armed.use()
            gc.collect()
            af.flush()
        rows = list(runtime.get().ledger.rows())[before:]
        if len([row for row in rows if row.status != "error"]) < armed.library.paid:
            lost.append(f"{label(code)}: {len(rows)} rows")
    assert lost == []


def _broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("injected")


@pytest.mark.parametrize("again", ["init", "reset", "shutdown"])
def test_a_stream_that_is_open_while_all_is_set_up_anew_is_still_a_row(again: str, tmp_path: Any) -> None:
    """What is under way when the engines are replaced ends with those that it began with, and its row is in their ledger."""
    pytest.importorskip("openai")
    library, ledger = LIBRARIES["openai sync"], tmp_path / "ledger.db"
    with library.serve() as server:
        server.answers = {f"POST {library.path}": CHUNKS}
        af.init(ledger=ledger)
        af.instrument("openai")
        client = library.make(server.url)
        with af.budget("$1") as budget:
            stream = library.asked(client, True)
            next(stream)
            {"init": lambda: af.init(ledger=ledger), "reset": runtime.reset, "shutdown": af.shutdown}[again]()
            assert len(list(stream)) == 2
            assert budget.reserved == 0
        client.close()
        af.uninstrument()
    runtime.reset()
    af.init(ledger=ledger)
    (charge,) = runtime.get().ledger.rows()
    assert dict(charge.quantities) == {"input_tokens": INPUT, "output_tokens": OUTPUT}
    assert not passing._passing


def test_a_region_that_cannot_be_looked_up_loses_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region of a request only refines the price: without it the call is charged all the same."""
    from aifinops.reading import Reading

    invocation = metering.begin(metering.Call("aws", "chat", "amazon.nova-lite-v1:0", region="us-east-1"))
    assert invocation is not None
    errors.reraise_failures(False)
    monkeypatch.setattr("aifinops.metering.bounds.regional", _broken)
    invocation.leave()
    invocation.settle(Reading({"input_tokens": 10}))
    (row,) = runtime.get().ledger.rows()
    assert dict(row.quantities) == {"input_tokens": 10}
    assert errors.failures()["metering.region"] == 1
