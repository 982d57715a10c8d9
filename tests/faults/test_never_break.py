"""Fault injection: each of our functions on a call's way is made to raise in turn; the user must not notice.

The budget around the calls only warns: one that refuses has to hold whatever fails, see `test_budget_decides`. The outermost wrappers are left out, since they are what contains the others: whoever replaces them has replaced the seam.
"""

from __future__ import annotations

import contextvars
import gc
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

openai = pytest.importorskip("openai")

import aifinops as af  # noqa: E402
from aifinops import charges, errors, metering, money, reading, runtime, scope, usage  # noqa: E402
from aifinops.budgets import guard, lines, policy, refusals, reservations  # noqa: E402
from aifinops.budgets.stores import base as store_base  # noqa: E402
from aifinops.budgets.stores import memory as store_memory  # noqa: E402
from aifinops.integrations import calls, extract, hiding, passing  # noqa: E402
from aifinops.integrations.seams import stainless  # noqa: E402
from aifinops.ledger import codec, journal, presence, sqlite, writer  # noqa: E402
from aifinops.metering import (  # noqa: E402
    blocks,
    bounds,
    call,
    charging,
    deferred,
    estimates,
    fitting,
    holding,
    invocation,
    opening,
    recording,
    seen,
    telling,
    undecided,
    units,
    waiting,
    watched,
)
from aifinops.pricing import book, contract, lists, match, prices, sheet, tokens  # noqa: E402
from aifinops.telemetry import attributes, histograms, metrics, names, spans  # noqa: E402
from aifinops.testing import FakeProvider  # noqa: E402

# A ledger whose opening or closing is broken on purpose leaves its file open; Python 3.13 says so when it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

MODULES = (
    stainless, calls, passing, hiding, extract, metering, blocks, bounds, call, charging, deferred, estimates, fitting, holding, invocation, opening, recording,
    seen, telling, undecided, units, waiting, watched, spans, metrics, histograms, attributes, names, writer, sqlite, journal, presence, codec, guard, lines, policy, refusals, reservations, store_base, store_memory,
    book, contract, lists, match, prices, sheet, tokens, charges, money, reading, usage, runtime, scope,
)  # fmt: skip

CONTAINERS = {
    "stainless.Seam._request", "stainless.Seam._arequest", "stainless._process_response", "passing.guarded", "calls.called", "calls.acalled",  # the outermost wrappers
    "passing.Tap._iter_bytes", "passing.Tap._aiter_bytes", "passing.Tap._segments", "passing.Tap._apass",  # what the user pulls on
    "passing.Tap._close", "passing.Tap._aclose", "passing.Tap._original",
    "passing.Tap._iter_raw", "passing.Tap._aiter_raw", "passing.Tap._tapped", "passing.Tap._atapped",
    "hiding.replaced", "hiding.hide", "hiding.Veil.__init__", "hiding.Veil._iter_bytes", "hiding.Veil._iter_raw",
    "hiding.Veil._aiter_bytes", "hiding.Veil._aiter_raw", "hiding._cut", "hiding._acut", "hiding._aall",
    "hiding.Hider.__init__", "hiding.Hider.take", "hiding.Hider.taking", "hiding.Hider.all", "hiding.Hider.rest",
    "hiding._joined", "hiding._kept", "hiding._without", "hiding._shown", "hiding._without_null",  # what cannot be read is shown, see test_hiding
    "passing._watched", "passing._awatched",
    "scope.enter", "scope.leave", "scope.Scope.__init__",  # the user's own `with`, not the call
}  # fmt: skip
ERRORS: tuple[type[Exception], ...] = (RuntimeError, MemoryError, RecursionError)
ALL = os.environ.get("AIFINOPS_FAULTS") == "all"
"""Every kind of error in every module; else they take turns."""

SET_UP = {"runtime.init", "runtime.reset", "runtime.shutdown", "runtime._install", "runtime.get", "runtime.flush"}


def functions(module: ModuleType) -> Iterator[tuple[Any, str, str]]:
    short = module.__name__.rpartition(".")[2]
    for name, member in vars(module).items():
        if not _is_of(member, module):
            continue
        if inspect.isfunction(member):
            yield module, name, f"{short}.{name}"
        elif inspect.isclass(member) and not issubclass(member, BaseException):
            for method, inner in vars(member).items():
                if inspect.isfunction(inner) and (not method.startswith("__") or method == "__init__"):
                    yield member, method, f"{short}.{name}.{method}"


def _is_of(member: Any, module: ModuleType) -> bool:
    """What a module has made, or a package has taken from its modules: whoever calls it by the name of the package has that one."""
    home = getattr(member, "__module__", None) or ""
    return home == module.__name__ or (inspect.isfunction(member) and home.startswith(f"{module.__name__}."))


SITES = [
    site for module in MODULES for site in functions(module) if site[2] not in CONTAINERS | SET_UP
]  # fmt: skip

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "say it"}], "max_tokens": 20}


def normal(answer: Any) -> Any:
    """What the user sees, without what differs from call to call."""
    body = answer.model_dump()
    for key in ("id", "created"):
        body.pop(key, None)
    return body


def use(client: Any) -> list[Any]:
    """A plain call, a parsed raw one, a whole stream, an abandoned one, embeddings and an error."""
    seen = [normal(client.chat.completions.create(**CHAT))]
    seen.append(normal(client.chat.completions.with_raw_response.create(**CHAT).parse()))
    seen += [normal(chunk) for chunk in client.chat.completions.create(**CHAT, stream=True)]
    with client.chat.completions.create(**CHAT, stream=True) as stream:
        seen.append(normal(next(iter(stream))))
    seen.append(normal(client.embeddings.create(model="text-embedding-3-small", input="x")))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**CHAT, "messages": "no list"})
    return [*seen, caught.value.status_code]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeProvider]:
    with FakeProvider(cache_from=10_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: FakeProvider) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected(client: Any) -> list[Any]:
    return use(client)


@pytest.fixture
def armed(tmp_path: Any) -> Iterator[None]:
    from opentelemetry.sdk.trace import TracerProvider

    errors.reraise_failures(False)
    logging.getLogger("aifinops").setLevel(logging.CRITICAL)
    af.init(ledger=tmp_path / "ledger.db", stream_usage="always")
    provider = TracerProvider(shutdown_on_exit=False)
    assert runtime.get().guard  # the engines are made together when one is first asked for
    runtime.get().spans = spans.Spans("0", lambda: provider)
    af.instrument("openai")
    yield
    af.uninstrument()
    passing.finish_open_streams()  # what a broken end has left, which no later test made
    logging.getLogger("aifinops").setLevel(logging.NOTSET)
    runtime.reset()
    gc.collect()  # what was left open is said while the filter above is in force, and not in a later test


def broken(error: type[Exception]) -> Callable[..., Any]:
    def raising(*args: Any, **kwargs: Any) -> Any:
        raise error("injected")

    return raising


def test_there_are_many_sites() -> None:
    """The list of sites is found, not written by hand; it must not quietly shrink."""
    assert len(SITES) >= 300


@pytest.mark.parametrize(
    ("module", "error"),
    [
        pytest.param(module, error, id=f"{module.__name__.rpartition('.')[2]}-{error.__name__}")
        for place, module in enumerate(MODULES)
        for error in (ERRORS if ALL else [ERRORS[place % len(ERRORS)]])
    ],
)
def test_a_broken_internal_never_changes_what_the_user_gets(
    module: ModuleType,
    error: type[Exception],
    client: Any,
    expected: list[Any],
    armed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever function of ours raises, answers, chunks and exceptions are the ones of the bare client."""
    changed = []
    for owner, name, label in functions(module):
        if label in CONTAINERS | SET_UP:
            continue
        with monkeypatch.context() as patch, af.budget("$100", name="faults", on_exceed="warn"):
            patch.setattr(owner, name, broken(error))
            try:
                same = contextvars.copy_context().run(use, client) == expected
            except BaseException as failure:
                changed.append(f"{label}: {type(failure).__name__}: {failure}")
                same = True
            patch.undo()
        if not same:
            changed.append(label)
    assert changed == []
