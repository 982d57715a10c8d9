"""Fault injection where budgets decide: whatever of ours fails, a limit holds, and one that only warns is in nobody's way.

Each function of `budgets`, and of what stands between a call and them, is made to raise in turn, in each of the ways in which a budget
decides. A call is then either refused, or what it cost is counted. The functions are found by watching a call; they are broken by their
code, wherever they are called from.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from breaking import ROOT, Functions, Seen, label

openai = pytest.importorskip("openai")

import aifinops as af  # noqa: E402
from aifinops import errors, metering, runtime  # noqa: E402
from aifinops.budgets.budget import ActiveBudget  # noqa: E402
from aifinops.integrations import passing  # noqa: E402
from aifinops.testing import FakeProvider  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

MODEL, CHEAP = "gpt-4o", "gpt-4o-mini"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "say it"}], "max_tokens": 2000}
NUMBERS = itertools.count()
CONTAINERS = {"invocation.ending", "invocation.in_flight", "opening.begin", "opening._is_owned", "call.Call.<lambda>"}
"""What contains all others, and what comes before any decision."""
FOLDERS = tuple(str(Path(ROOT) / name) for name in ("budgets", "metering"))


@dataclass(frozen=True)
class Way:
    """One way in which a budget decides.

    Attributes:
        limit, more: of the budget. ask: beside `CHAT`. full: True where nothing may be sent.
        held: another thread holds most of it. shared: it has a name, and its balances are in a file. standing: it is in the settings.
    """

    limit: Any = "$100"
    more: dict[str, Any] = field(default_factory=dict)
    ask: dict[str, Any] = field(default_factory=dict)
    full: bool = False
    held: bool = False
    shared: bool = False
    standing: bool = False


NO = "$0.0001"
SEVERAL = {"USD": 100, "tokens": "100k", "requests": "1k"}
HARD = {
    "room": Way(),
    "several limits": Way(SEVERAL),
    "shared": Way(shared=True),
    "standing": Way(standing=True, shared=True),
    "stream": Way(ask={"stream": True}),
    "no room": Way(NO, full=True),
    "no room in a file": Way(NO, full=True, shared=True),
    "throttle": Way(NO, {"on_exceed": "throttle", "per": "minute", "max_wait": 0.01}, full=True),
    "held": Way("$0.035", {"max_wait": 0.03}, full=True, held=True),
    "pace": Way("$1000", {"per": "day", "pace": 0.1}, shared=True),
    "pace without room": Way(NO, {"per": "day", "pace": 0.1}, full=True, shared=True),
    "callable": Way(NO, {"on_exceed": lambda error: "raise"}, full=True),
    "ask": Way(NO, {"on_exceed": {"ask": lambda request: False}, "max_wait": 0.01}, full=True),
    "ask nobody": Way(NO, {"on_exceed": "ask", "max_wait": 0.01}, full=True, shared=True),
    "downgrade": Way("$0.01", {"on_exceed": {"downgrade": {MODEL: CHEAP}}}),
    "clamp": Way("$0.01", {"on_exceed": "clamp"}),
    "clamp in vain": Way(NO, {"on_exceed": "clamp"}, full=True),
    "cut": Way("$0.01", {"on_exceed": "cut"}, {"stream": True}),
}
SOFT = {
    "room": Way(more={"on_exceed": "warn"}),
    "several limits": Way(SEVERAL, {"on_exceed": "warn"}),
    "shared": Way(more={"on_exceed": "warn"}, shared=True),
    "standing": Way(more={"on_exceed": "warn"}, standing=True, shared=True),
    "no room": Way(NO, {"on_exceed": "warn"}),
    "no room in a file": Way(NO, {"on_exceed": "warn"}, shared=True),
    "allow": Way(more={"on_store_down": "allow"}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeProvider]:
    with FakeProvider(cache_from=10_000) as running:
        yield running


@pytest.fixture
def client(server: FakeProvider, tmp_path: Path) -> Iterator[Any]:
    """Metered."""
    logging.getLogger("aifinops").setLevel(logging.CRITICAL)
    af.init(ledger="memory", store=tmp_path / "budgets.db")
    af.instrument("openai")
    with openai.OpenAI(base_url=server.base_url, api_key="test", max_retries=0) as made:
        made.chat.completions.create(**CHAT)
        gc.freeze()
        yield made
        gc.unfreeze()
    af.uninstrument()
    errors.reraise_failures(False)
    passing.finish_open_streams()
    logging.getLogger("aifinops").setLevel(logging.NOTSET)
    runtime.reset()
    gc.collect()


@contextlib.contextmanager
def budget_of(way: Way, tmp_path: Path) -> Iterator[ActiveBudget]:
    """A budget like that, which nobody has used before."""
    name = f"faults {next(NUMBERS)}" if way.shared else None
    if way.standing:
        settings = {"limit": way.limit, "name": name, **way.more}
        af.init(ledger="memory", store=tmp_path / "budgets.db", budgets=[settings])
        yield runtime.get().policies[0]
        return
    with af.budget(way.limit, name=name, **way.more) as block:
        yield block._active


@contextlib.contextmanager
def held(way: Way) -> Iterator[None]:
    """Another thread has a call in flight."""
    made: list[Any] = []

    def hold() -> None:
        made.append(metering.begin(metering.Call("openai", "chat", MODEL, body=CHAT, max_output=2000)))

    if way.held:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(hold,))
        thread.start()
        thread.join()
    yield
    for one in made:
        one.give_up()


def ask(client: Any, way: Way) -> str:
    """What becomes of one call: `sent`, or why not."""
    try:
        answer = client.chat.completions.create(**{**CHAT, **way.ask})
        if way.ask:
            list(answer)
    except af.StreamCut:
        return "sent"
    except af.BudgetExceeded as refusal:
        return type(refusal).__name__
    except Exception as failure:
        return f"a failure of ours: {failure!r}"
    return "sent"


def counted(active: ActiveBudget) -> Decimal:
    """What a budget has spent or holds, in dollars."""
    balance = runtime.get().guard.balances(active)["USD"]
    return Decimal(balance.spent + balance.reserved).scaleb(-9)


def watched(client: Any, way: Way, tmp_path: Path) -> list[CodeType]:
    """The functions between such a call and its budget."""
    with budget_of(way, tmp_path) as active, held(way), Seen() as seen:
        if way.standing:
            assert not active.watcher
        ask(client, way)
    inner = (code for code in seen.codes - seen.outermost if label(code) not in CONTAINERS)
    codes = [code for code in inner if code.co_filename.startswith(FOLDERS)]
    return sorted(codes, key=lambda code: (label(code), code.co_firstlineno))


def wrong(client: Any, server: FakeProvider, way: Way, functions: Functions, code: CodeType, where: Path) -> list[str]:
    """Break one function, make a call, and say what is wrong then."""

    def fault() -> Any:
        raise RuntimeError("injected")

    with budget_of(way, where) as active, held(way):
        before, bill = counted(active), len(server.bill)
        with functions.breaking(code, fault):
            became = contextvars.copy_context().run(ask, client, way)
        af.flush()
        new = server.bill[bill:]
        spent = counted(active) - before
    cost = sum((price(one) for one in new), Decimal(0))
    said = []
    if became.startswith("a failure"):
        said.append(became)
    if way.full and (new or became == "sent"):
        said.append("sent without room")
    if became != "sent" and new:
        said.append(f"sent although it was refused with {became}")
    if spent < cost:
        said.append(f"{spent} counted of {cost}")
    return said


def price(served: Any) -> Decimal:
    counts = {name: served.totals[name] for name in ("input_tokens", "output_tokens")}
    amount = af.price(served.model, provider="openai", **counts).amount
    assert amount is not None
    return amount


@pytest.mark.parametrize("name", HARD)
def test_a_limit_holds_whatever_fails(name: str, client: Any, server: FakeProvider, tmp_path: Path) -> None:
    """Whichever function raises, no call gets through for which there is no room, and none that is not counted."""
    way = HARD[name]
    codes, functions = watched(client, way, tmp_path), Functions()
    assert len(codes) > 20
    errors.reraise_failures(False)
    found = {label(code): said for code in codes if (said := wrong(client, server, way, functions, code, tmp_path))}
    assert not found, "\n".join(f"{where}: {', '.join(said)}" for where, said in found.items())


@pytest.mark.parametrize("name", SOFT)
def test_a_budget_that_only_warns_is_in_nobody_s_way(
    name: str, client: Any, server: FakeProvider, tmp_path: Path
) -> None:
    """Whichever function raises, every call gets through."""
    way = SOFT[name]
    codes, functions = watched(client, way, tmp_path), Functions()
    assert len(codes) > 20
    errors.reraise_failures(False)
    refused = []
    for code in codes:
        with budget_of(way, tmp_path), functions.breaking(code, _broken):
            became = contextvars.copy_context().run(ask, client, way)
            if became != "sent":
                refused.append(f"{label(code)}: {became}")
    assert refused == []


def _broken() -> Any:
    raise RuntimeError("injected")
