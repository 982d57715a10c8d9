"""One system that keeps a budget, in a process of its own: what its steps take, and whether its limit holds.

    budgets_worker.py SYSTEM [ADDRESS]    reads lines from standard input, answers one JSON line each
    budgets_worker.py servers             Valkey and PostgreSQL on the loopback interface, until standard input ends

    pair COUNT [4]              a check and a record of one call, by the system's own means; of ours reserve and settle, of one node or of four
    guard COUNT                 all that happens around one call: estimate, context, check, usage, price, record; of ours without a budget, too
    denied COUNT store|guard    of ours: a call that has no room, because all is spent
    rate COUNT NODES            of ours: pairs a second of two processes at once
    spend serial|burst|uneven   96 calls of 0.0125 USD against a limit of 0.10 USD, one after the other or from 32 threads, three each;
                                `uneven` is a burst against 0.11 USD, which is no multiple of a call
    network                     how often it has asked for a network

Times are microseconds by the wall clock, of each single step, with the reading of the clock in them (0.1). What is called in `guard` is a
function that has its answer ready. In `spend` it is a provider that keeps its own bill, behind the real openai client where the system takes
one; the caller asks again and again, as a program does that catches the refusal. Each system is used in the way of its manual that
holds best; what that is stands beside it here.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from typing import Any, Protocol

import worker

NANO = 10**9
MODEL = "gpt-4o"
CALL = NANO // 80
"""What a call costs, nano-USD."""
LIMITS = {"serial": NANO // 10, "burst": NANO // 10, "uneven": 11 * NANO // 100}
"""Of `spend`, nano-USD: eight calls; eight calls and most of another one."""
THREADS, EACH, PAUSE_S = 32, 3, 0.01
TURN = 200
"""Calls in a row with a budget, and without."""
PLENTY = "1000000"

REQUEST: dict[str, Any] = {"model": MODEL, "messages": worker.MESSAGES, "max_tokens": 300}
ANSWER = {**worker.CHAT, "model": f"{MODEL}-2024-08-06"}
"""Of `guard`: 1,000 tokens in, 600 of them cached, 200 out."""
LONG: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "words " * 992}], "max_tokens": 1000}
BILLED = {**ANSWER, "usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}}
"""Of `spend`: 1,000 tokens at 2.50 and 1,000 at 10 USD a million are 0.0125 USD."""

Once = Callable[[], object]


class Provider:
    """Serves calls and keeps its own bill. A call that has come is billed, whoever waits for it. Some take three times as long as others.

    Attributes:
        served: calls.
    """

    def __init__(self, seconds: float) -> None:
        self.served = 0
        self._seconds = seconds
        self._lock = threading.Lock()

    def answer(self) -> dict[str, Any]:
        with self._lock:
            self.served += 1
            number = self.served
        time.sleep(self._seconds * (0.5 + number % 8 / 8))
        return {**BILLED, "id": f"chatcmpl-{uuid.uuid4().hex}-{number}"}

    def client(self) -> Any:
        """The real client, with this provider in its transport."""
        import openai

        library = worker.http()
        transport = library.MockTransport(lambda _: library.Response(200, json=self.answer()))
        made = library.Client(transport=transport)
        return openai.OpenAI(api_key="test", base_url="http://bench.invalid/v1", http_client=made, max_retries=0)


class Stub:
    """What a guard of clients takes for one: `chat.completions.create`, with its answer ready."""

    def __init__(self) -> None:
        from openai.types.chat import ChatCompletion

        answer = ChatCompletion.model_validate({**ANSWER, "id": "chatcmpl-1"})
        self.chat = type("Chat", (), {})()
        self.chat.completions = type("Completions", (), {})()
        self.chat.completions.create = lambda **_: answer


class System(Protocol):
    """How one system is used.

    Attributes:
        package: its distribution. note: what is to be known of its figures.
    """

    package: str
    note: str

    def pair(self) -> Once | None:
        """One check and one record; None where it has neither by itself."""
        ...

    def guard(self) -> Once | None:
        """A call with all that happens around it; None where it neither estimates nor prices."""
        ...

    def limited(self, provider: Provider, limit: int) -> AbstractContextManager[Callable[[], bool]]:
        """A new limit, nano-USD, and one call of the provider under it: whether it was let through."""
        ...


# --- peers -----------------------------------------------------------------------------------------------------------------


class Limits:
    """`limits` counts requests; a request may cost more than one, so that nano-USD can be counted. It has no way to give something back:
    what was counted before the call stays (`before`), or the call is counted when it is over, and until then nobody sees it."""

    package = "limits"

    def __init__(self, *, before: bool) -> None:
        from limits import RateLimitItemPerYear
        from limits.storage import MemoryStorage
        from limits.strategies import FixedWindowRateLimiter

        self._before = before
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._item = RateLimitItemPerYear
        self.note = (
            "the caller says what a call costs, here rightly, and cannot correct it"
            if before
            else "as above, counted after the call"
        )

    def pair(self) -> Once:
        hit, test, item = self._limiter.hit, self._limiter.test, self._item(10**15)
        if self._before:
            return lambda: hit(item, "bench", cost=1000)
        return lambda: test(item, "bench", cost=1000) and hit(item, "bench", cost=500)

    def guard(self) -> None:
        return None

    @contextmanager
    def limited(self, provider: Provider, limit: int) -> Iterator[Callable[[], bool]]:
        item, key = self._item(limit), uuid.uuid4().hex

        def one() -> bool:
            if not (self._limiter.hit if self._before else self._limiter.test)(item, key, cost=CALL):
                return False
            provider.answer()
            return self._before or self._limiter.hit(item, key, cost=CALL) or True

        yield one


class LiteLLM:
    """BudgetManager, as its page shows it; `projected_cost` (what is spent and the prompt of this call) in place of `get_current_cost` where the
    whole is meant. It prices as it records, writes `user_cost.json` into the working directory and starts a thread for that at each call."""

    package = "litellm"
    note = "records with its price, and starts a thread to write a file at each call"

    def __init__(self) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads a table
        import litellm

        self._library = litellm
        self._manager = litellm.BudgetManager(project_name="bench")
        self._manager.create_budget(total_budget=float(PLENTY), user="bench")
        self._answer = litellm.ModelResponse(**{**ANSWER, "id": "chatcmpl-1"})

    def pair(self) -> Once:
        manager, answer = self._manager, self._answer
        return lambda: (
            manager.get_current_cost("bench") <= manager.get_total_budget("bench")
            and manager.update_cost(user="bench", completion_obj=answer)
        )

    def guard(self) -> Once:
        return self._call("bench", lambda: self._answer, REQUEST)

    @contextmanager
    def limited(self, provider: Provider, limit: int) -> Iterator[Callable[[], bool]]:
        user = uuid.uuid4().hex
        self._manager.create_budget(total_budget=limit / NANO, user=user)
        yield self._call(user, lambda: self._library.ModelResponse(**provider.answer()), LONG)

    def _call(self, user: str, answer: Callable[[], Any], request: dict[str, Any]) -> Callable[[], bool]:
        manager, messages = self._manager, request["messages"]

        def one() -> bool:
            if manager.projected_cost(MODEL, messages, user) > manager.get_total_budget(user):
                return False
            manager.update_cost(user=user, completion_obj=answer())
            return True

        return one


class Cendor:
    """cendor-tokenguard with `on_exceed="block"`, the mode that refuses before a call. Its context does not reach other threads by itself: it is
    carried there, as its page says. Its tokenizer wants a download, and without a network that raises in the user's call: here words
    are counted, by its own `register`, which is quicker, and right for the words that are sent here."""

    package = "cendor-tokenguard"
    note = "context carried into the threads; words counted as tokens, since its tokenizer needs a download"

    def __init__(self) -> None:
        from cendor import core, tokenguard
        from cendor.core import tokens

        def count(text: Any, _: str) -> int:
            said = text if isinstance(text, str) else " ".join(message["content"] for message in text)
            return len(said.split())

        tokens.register("openai", count)
        tokenguard.configure(on_stale_prices="ignore")
        self._core, self._library = core, tokenguard

    def pair(self) -> None:
        return None

    def guard(self) -> Once:
        client = self._core.instrument(Stub())
        budget = self._library.budget(usd=float(PLENTY), on_exceed="block")
        budget.__enter__()  # for good
        return lambda: client.chat.completions.create(**REQUEST)

    @contextmanager
    def limited(self, provider: Provider, limit: int) -> Iterator[Callable[[], bool]]:
        client = self._core.instrument(provider.client())
        with self._library.budget(usd=Decimal(limit) / NANO, on_exceed="block"):
            yield lambda: _went(self._library.BudgetExceeded, client.chat.completions.create)


class BudgetGuardLLM:
    """budget-guard-llm with a daily total. It knows no price of the model: it is given one. Its loop detection would refuse the eleventh
    call that is like the others: it is off."""

    package = "budget-guard-llm"
    note = "given the price, loop detection off"

    def __init__(self) -> None:
        import budget_guard
        from budget_guard.context import CallContext
        from budget_guard.usage import Usage

        budget_guard.default_pricing().set(
            "openai", MODEL, {"input": "2.50", "cached_input": "1.25", "output": "10.00"}
        )
        self._library = budget_guard
        self._context, self._usage = CallContext(None, None), Usage(input_tokens=1000, output_tokens=200)

    def _guard(self, limit: str) -> Any:
        return self._library.BudgetGuard(limits=self._library.Limits(daily_total=Decimal(limit)), loop_detection=None)

    def pair(self) -> Once:
        guard = self._guard(PLENTY)

        def one() -> None:
            held = guard.before_call("openai", "openai_chat", REQUEST, self._context)
            guard.record("openai", MODEL, self._usage, self._context)
            guard.release(held)

        return one

    def guard(self) -> Once:
        client = self._library.guard(Stub(), budget=self._guard(PLENTY), provider="openai")
        return lambda: client.chat.completions.create(**REQUEST)

    @contextmanager
    def limited(self, provider: Provider, limit: int) -> Iterator[Callable[[], bool]]:
        client = self._library.guard(provider.client(), budget=self._guard(f"{Decimal(limit) / NANO}"))
        yield lambda: _went(self._library.BudgetExceeded, client.chat.completions.create)


def _went(refusal: type[Exception], create: Callable[..., object]) -> bool:
    try:
        create(**LONG)
    except refusal:
        return False
    return True


# --- ours --------------------------------------------------------------------------------------------------------------------


class Ours:
    """A store of ours, at an address as `budget(store=...)` takes it, `leased` or asked for every single call."""

    package = "aifinops"
    note = ""

    def __init__(self, address: str, *, leased: bool) -> None:
        import aifinops
        from aifinops.errors import reraise_failures

        reraise_failures(True)  # a failure of ours ends the run
        aifinops.init(ledger=Path.cwd() / "ledger.db")
        self._library = aifinops
        self._memory = address == "memory"
        self._address = str(Path.cwd() / "budgets.db") if address == "file" else address
        self._leased = leased
        self._direct = None if self._memory or leased else self.store()  # of all budgets here

    def close(self) -> None:
        self._library.shutdown()

    def store(self) -> Any:
        """For operations: as the guard uses it."""
        return make_store(self._address, leased=self._leased)

    def budget(self, limit: str, **more: Any) -> Any:
        """A new budget: of this process, or shared by name. An address is leased, a store that is given is not."""
        if self._memory:
            return self._library.budget(limit, **more)
        store = self._direct or self._address
        return self._library.budget(limit, name=f"bench-{uuid.uuid4().hex}", per="total", store=store, **more)

    def pair(self) -> None:
        return None  # `operations` has its halves apart

    def operations(self, count: int, nodes: int) -> dict[str, Any]:
        """Reserve and settle. The operations are made inside, the ids outside: those are the guard's."""
        run = uuid.uuid4().hex
        reserve, settle = operations(self.store(), run, nodes_of(run, nodes), count)
        both = [one + other for one, other in zip(reserve, settle, strict=True)]
        return {**figures(both), "reserve": figures(reserve), "settle": figures(settle)}

    def guard(self) -> Once:
        from aifinops import metering
        from aifinops.integrations.extract import Reader
        from aifinops.integrations.registry import provider

        reader = Reader(provider("openai").routes["/chat/completions"])
        ids, limit = itertools.count(), REQUEST["max_tokens"]
        facts = {"server.address": "api.openai.com"}

        def one() -> None:
            opened = metering.begin(metering.Call("openai", "chat", MODEL, body=REQUEST, max_output=limit, facts=facts))
            answer = {**ANSWER, "id": f"chatcmpl-{next(ids)}"}
            assert opened is not None
            opened.leave()
            reading = reader.read(answer)
            assert reading is not None
            opened.settle(reading)

        return one

    @contextmanager
    def limited(self, provider: Provider, limit: int) -> Iterator[Callable[[], bool]]:
        self._library.instrument()
        client = provider.client()
        try:
            with self.budget(f"{Decimal(limit) / NANO} USD") as budget:
                yield lambda: _went(self._library.BudgetExceeded, client.chat.completions.create)
                bill = Decimal(provider.served * CALL) / NANO
                if (budget.spent, budget.reserved) != (bill, 0):
                    raise AssertionError(f"{budget.spent} spent and {budget.reserved} held, for a bill of {bill}")
        finally:
            self._library.uninstrument()

    def denied(self, count: int, place: str) -> dict[str, Any]:
        """Of a limit that is spent: the answer of the store, or the error of the guard."""
        return figures((self._denied_here if place == "store" else self._denied_there)(count))

    def _denied_here(self, count: int) -> list[int]:
        from aifinops.budgets.stores.base import Node, Reserve, Settle

        store, run = self.store(), uuid.uuid4().hex
        nodes, now = (Node(f"bench-{run}", 0, "USD", 1000),), time.time_ns()
        Reserve(f"{run}-first", nodes, (1000,), now, TTL).execute(store)
        Settle(f"{run}-first", nodes, (1000,), now).execute(store)
        quick, _ = short_ways(store)
        took = []
        for id in [f"{run}-{number}" for number in range(count)]:
            begun = time.perf_counter_ns()
            outcome = quick(id, nodes, (1000,), now, TTL) or Reserve(id, nodes, (1000,), now, TTL).execute(store)
            took.append(time.perf_counter_ns() - begun)
            assert outcome.decision is not None
        store.close()
        return took

    def _denied_there(self, count: int) -> list[int]:
        from aifinops import runtime
        from aifinops.budgets.budget import ActiveBudget

        guard, run, amounts = runtime.get().guard, uuid.uuid4().hex, {"USD": 1000}
        budgets = [ActiveBudget(self.budget("0.000001 USD", max_wait=0).spec)]
        first = guard.reserve(budgets, amounts, id=f"{run}-first", at=time.time_ns())
        assert first is not None
        guard.settle(first, amounts)
        took, now = [], time.time_ns()
        for id in [f"{run}-{number}" for number in range(count)]:
            begun = time.perf_counter_ns()
            try:
                guard.reserve(budgets, amounts, id=id, at=now)
            except self._library.BudgetExceeded:
                took.append(time.perf_counter_ns() - begun)
        assert len(took) == count
        return took

    def rate(self, count: int, nodes: int) -> dict[str, Any]:
        """Pairs a second of two processes that share all nodes, by the clock, and by CPU time: what two cores do that have no other work.
        That the store knows of every one of them is checked."""
        context, run = multiprocessing.get_context("spawn"), uuid.uuid4().hex
        start, results = context.Barrier(2), context.Queue()
        arguments = (self._address, self._leased, run, nodes, count, start, results)
        workers = [context.Process(target=_rate, args=(number, *arguments)) for number in range(2)]
        for one in workers:
            one.start()
        found = [results.get(timeout=300) for _ in workers]
        for one in workers:
            one.join()
        from aifinops.budgets.stores.base import Read

        store = self.store()
        balances = Read(nodes_of(run, nodes)).execute(store)
        store.close()
        assert all((one.spent, one.reserved) == (2 * count * 500, 0) for one in balances), balances
        wall = max(end for _, end, _ in found) - min(begun for begun, _, _ in found)
        by_cpu = sum(count / cpu for _, _, cpu in found)
        return {"pairs_a_second": round(2 * count / wall), "pairs_by_cpu": round(by_cpu)}


TTL = 900 * NANO


def make_store(address: str, *, leased: bool) -> Any:
    from aifinops.budgets.stores import open_store
    from aifinops.budgets.stores.leases import LeasedStore

    store = open_store(address)
    return LeasedStore(store) if leased else store


def nodes_of(run: str, count: int) -> tuple[Any, ...]:
    """Organisation, team, user, run; one budget has one node."""
    from aifinops.budgets.stores.base import Node

    keys = [f"{kind}-{run}" for kind in ("org", "team", "user", "run")[:count]]
    return tuple(Node(key, 0, "USD", 10**15, 0, (5 * 10**14, 10**15), key) for key in keys)


def operations(store: Any, run: str, nodes: tuple[Any, ...], count: int) -> tuple[list[int], list[int]]:
    """Nanoseconds of each reserve and of each settle, asked for as the guard does: in the short way, where the store has one that answers."""
    from aifinops.budgets.stores.base import Reserve, Settle

    held, cost, clock = (1000,) * len(nodes), (500,) * len(nodes), time.perf_counter_ns
    quick_reserve, quick_settle = short_ways(store)
    reserve, settle = [], []
    for id in [f"{run}-{number}" for number in range(count)]:
        now = time.time_ns()
        first = clock()
        held_it = quick_reserve(id, nodes, held, now, TTL) or Reserve(id, nodes, held, now, TTL).execute(store)
        second = clock()
        settled = quick_settle(id, nodes, cost, now) or Settle(id, nodes, cost, now).execute(store)
        third = clock()
        assert held_it.applied, held_it
        assert settled.applied, settled
        reserve.append(second - first)
        settle.append(third - second)
    store.close()
    return reserve, settle


def short_ways(store: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of stores that can answer without an operation."""
    return getattr(store, "quick_reserve", _no_answer), getattr(store, "quick_settle", _no_answer)


def _no_answer(*_: object) -> None:
    return None


def _rate(number: int, address: str, leased: bool, run: str, nodes: int, count: int, start: Any, results: Any) -> None:
    from aifinops.budgets.stores.base import Read, Reserve, Settle

    store, shared = make_store(address, leased=leased), nodes_of(run, nodes)
    held, cost = (1000,) * nodes, (500,) * nodes
    quick_reserve, quick_settle = short_ways(store)
    ids = [f"{run}-{number}-{one}" for one in range(count)]
    Read(shared).execute(store)
    start.wait()
    begun, cpu = time.perf_counter(), time.process_time()
    for id in ids:
        now = time.time_ns()
        held_it = quick_reserve(id, shared, held, now, TTL) or Reserve(id, shared, held, now, TTL).execute(store)
        if not held_it.applied:
            raise AssertionError(f"{id} was refused")
        quick_settle(id, shared, cost, now) or Settle(id, shared, cost, now).execute(store)
    results.put((begun, time.perf_counter(), time.process_time() - cpu))
    store.close()


# --- measuring -----------------------------------------------------------------------------------------------------------------


def figures(took: list[int]) -> dict[str, float]:
    cuts = quantiles(took, n=100)
    return {"p50_us": round(cuts[49] / 1000, 2), "p99_us": round(cuts[98] / 1000, 2)}


def times(once: Once, count: int) -> list[int]:
    clock, took = time.perf_counter_ns, []
    for _ in range(count):
        begun = clock()
        once()
        took.append(clock() - begun)
    return took


def spend(system: System, way: str) -> dict[str, Any]:
    """What the provider has billed, beside the limit; `refused_late` are calls that were served before they were refused."""
    burst, limit = way != "serial", LIMITS[way]
    provider = Provider(0.02 if burst else 0.0)
    with system.limited(provider, limit) as one:
        answers = _burst(one) if burst else [one() for _ in range(THREADS * EACH)]
    late = provider.served - answers.count(True)
    bill = provider.served * CALL
    return {
        "served": provider.served,
        "refused_late": late,
        "over_percent": round(100 * max(0, bill - limit) / limit, 1),
    }


def _burst(one: Callable[[], bool]) -> list[bool]:
    start, answers, errors = threading.Barrier(THREADS), list[bool](), list[Exception]()

    def work() -> None:
        start.wait()
        try:
            for _ in range(EACH):
                answers.append(one())
                time.sleep(PAUSE_S)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=copy_context().run, args=(work,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


class Session:
    """Answers lines. What a system needs for a measurement is made once, before the first one."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._made: dict[str, Once | None] = {}
        self._budget: Any = None

    def offers(self) -> list[str]:
        """What can be asked of it."""
        kinds = [f"spend {way}" for way in LIMITS]
        if isinstance(self.system, Ours):
            return [*kinds, "pair", "guard"]
        self._made = {"pair": self.system.pair(), "guard": self.system.guard()}
        return kinds + [kind for kind, once in self._made.items() if once is not None]

    def answer(self, line: str) -> dict[str, Any]:
        kind, *rest = line.split()
        if kind == "spend":
            return spend(self.system, rest[0])
        if kind == "network":
            return {"asked": worker.Refused.count}
        count = int(rest[0])
        if isinstance(self.system, Ours):
            return self._ours(self.system, kind, count, rest[1:])
        once = self._made[kind]
        assert once is not None
        found = figures(times(once, count))
        for thread in threading.enumerate():  # LiteLLM's; their end is no part of a call
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        return found

    def _ours(self, system: Ours, kind: str, count: int, rest: list[str]) -> dict[str, Any]:
        if kind == "pair":
            return system.operations(count, int(rest[0]) if rest else 1)
        if kind == "denied":
            return system.denied(count, rest[0])
        if kind == "rate":
            return system.rate(count, int(rest[0]))
        return self._guard(system, count)

    def _guard(self, system: Ours, count: int) -> dict[str, Any]:
        """With a budget and without, by turns, so that what slows the machine down slows both down."""
        if self._budget is None:
            self._made["guard"], self._budget = system.guard(), system.budget(f"{PLENTY} USD")
        once = self._made["guard"]
        assert once is not None
        off, on = list[int](), list[int]()
        while len(on) < count:
            off += times(once, TURN)
            with self._budget:
                on += times(once, TURN)
        with_it, without = figures(on), figures(off)
        return {
            **with_it,
            "off": without,
            "off_p99_us": without["p99_us"],
            "added_us": round(with_it["p50_us"] - without["p50_us"], 2),
        }


SYSTEMS: dict[str, Callable[..., System]] = {
    "memory": lambda: Ours("memory", leased=False),
    "sqlite-leased": lambda: Ours("file", leased=True),
    "sqlite": lambda: Ours("file", leased=False),
    "valkey-leased": lambda address: Ours(address, leased=True),
    "valkey": lambda address: Ours(address, leased=False),
    "postgres-leased": lambda address: Ours(address, leased=True),
    "postgres": lambda address: Ours(address, leased=False),
    "limits-before": lambda: Limits(before=True),
    "limits-after": lambda: Limits(before=False),
    "litellm": LiteLLM,
    "cendor-tokenguard": Cendor,
    "budget-guard-llm": BudgetGuardLLM,
}


def servers() -> None:
    """Real servers of packages, as the tests start them; PostgreSQL does not wait for the disk there."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from servers import PostgresServer, ValkeyServer

    with ExitStack() as running:
        valkey = ValkeyServer("--appendonly", "yes", "--appendfsync", "everysec")
        running.callback(valkey.end)
        postgres = PostgresServer()
        running.callback(postgres.close)
        postgres.start()
        print(json.dumps({"valkey": valkey.url, "postgres": postgres.dsn}), flush=True)
        sys.stdin.read()


def main() -> None:
    name, *address = sys.argv[1:]
    if name == "servers":
        return servers()
    # What is logged of a limit that is reached is not to be read here.
    logging.getLogger().addHandler(logging.NullHandler())
    if not address:
        worker.Refused.install()  # whoever has no server of his own to talk to has nothing to look for on a network
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)  # some write where they are
        serve(SYSTEMS[name](*address))
        os.chdir(Path(__file__).parent)
    return None


def serve(system: System) -> None:
    session = Session(system)
    about = {"version": version(system.package), "note": system.note, "offers": session.offers()}
    print(json.dumps(about), flush=True)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(session.answer(line)), flush=True)
    if isinstance(system, Ours):
        system.close()


if __name__ == "__main__":
    main()
