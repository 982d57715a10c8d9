"""A whole world in one thread: `python tests/faults/simulation.py --seeds 10000`; `--seed 17` plays one again.

Processes with a real guard and real leases share one real store, over a network that loses requests, loses answers, repeats, delays,
refuses and parts. Agents hold, send, grow, settle and release; a provider keeps its own bill. Processes are killed in the middle of
anything, also of a call to the store, and paused for longer than what they hold lasts; clocks run up to 3 % fast or slow. Then the faults stop, and
whoever is left has to get what is left. Time, chance, ids, the order of events and the way to the store all come from one seed.

The judge wants, for every account:
    sound      the bill is not above the limit, nor is what the store counts
    truthful   the store has counted no less than the bill, and no more than it can say why
    live       once the faults have stopped calls get through at once, the limit is used up to 95 %, nobody waits for ever, and what
               was held goes back within twice its time to live
"""

from __future__ import annotations

import argparse
import copy
import heapq
import itertools
import json
import logging
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any
from unittest import mock
from zlib import crc32

from aifinops import errors
from aifinops.budgets.budget import MICRO, ActiveBudget, Budget
from aifinops.budgets.guard import Guard, Reservation
from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import (
    Accounts,
    Adjust,
    Capabilities,
    Draw,
    Extend,
    Journal,
    MarkSent,
    Node,
    Operation,
    Outcome,
    Read,
    Reserve,
    State,
    Sweep,
)
from aifinops.budgets.stores.journaled import JournaledStore
from aifinops.budgets.stores.leases import LeasedStore
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.waiting import Wait, keep_ticket
from aifinops.budgets.witness import Witness
from aifinops.errors import BudgetExceeded, StoreError, StoreReset, StoreUnavailable

SECOND = 1_000_000_000
EPOCH = 1_800_000_000 * SECOND
DOLLAR = 1_000_000_000
USABLE = 0.95
SOON_S = 2.0
"""After the faults have stopped a guard may leave a store alone for a second more."""
SWEPT_S = 60.0
_BY_SERVER = (Reserve, Extend, Draw, Sweep)
Steps = Generator[float, None, None]


class Killed(BaseException):
    """The process is no more: nothing of it runs any further."""


class Found(AssertionError):
    """What the judge has found."""


# --- time ------------------------------------------------------------------------------------------------------------------


class World:
    """One queue of events, and the time."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 0
        self.events = 0
        self._queue: list[tuple[int, int, Process | None, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._ids = itertools.count()
        self.trace = 0

    def at(self, seconds: float, event: Callable[[], object], owner: Process | None = None) -> None:
        """Have something happen, to a process or to the world."""
        heapq.heappush(self._queue, (self.now + int(seconds * SECOND), next(self._numbers), owner, event))

    def run(self, until: int) -> None:
        """Let time pass. A process that is inside a call to the store has its own events after it."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            at, _, owner, event = heapq.heappop(queue)
            self.now = max(self.now, at)
            if owner is None:
                event()
            elif owner.stuck():
                owner.put_off.append(event)
            elif not owner.gone:
                self._happen(event)
        self.now = max(self.now, until)

    def _happen(self, event: Callable[[], object]) -> None:
        self.events += 1
        with suppress(Killed):
            Context().run(event)  # what happens inside of somebody else's call knows nothing of that

    def note(self, *what: object) -> None:
        """Two plays of a seed are the same when this is."""
        self.trace = crc32(repr((self.now, *what)).encode(), self.trace)

    def new_id(self) -> str:
        return f"id-{next(self._ids)}"


class DriftingClock:
    """The clock of one process."""

    def __init__(self, world: World, rate: float, ahead_s: float) -> None:
        self._world, self._rate = world, rate
        self._wall = EPOCH + int(ahead_s * SECOND)

    def monotonic_ns(self) -> int:
        return int(self._world.now * self._rate)

    def time_ns(self) -> int:
        return self._wall + int(self._world.now * self._rate)


# --- the store and the way to it -------------------------------------------------------------------------------------------------


@dataclass
class Weather:
    """What may go wrong, as shares of all messages; `kills`, `pauses` and `cuts` a second. Each seed has some of it."""

    lost: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    refused: float = 0.0
    kills: float = 0.0
    pauses: float = 0.0
    cuts: float = 0.0
    losses: float = 0.0
    """Of all that the store had, every so often."""
    slow: float = 0.0
    drift: float = 0.0
    ahead_s: float = 0.0


class Server:
    """The store that all share, with a clock of its own."""

    def __init__(self, world: World, make: Callable[[], Any]) -> None:
        self.world = world
        self.make = make
        self.store: Any = make()
        self.counts: Counter[int] = Counter()  # operations of each client; lost with everything else
        self.life = 0
        self.lost: Counter[str] = Counter()
        self._copy: dict[str, Any] = {}
        self._counts_then: Counter[int] = Counter()

    def run(self, operation: Operation[Any]) -> Any:
        if isinstance(operation, _BY_SERVER):
            operation = replace(operation, now=EPOCH + self.world.now)
        answer = self.store.run(operation)
        self.world.note(type(operation).__name__, str(answer))
        return answer

    def late(self, client: int, life: int, operation: Operation[Any]) -> None:
        """It arrives when nobody waits for it any more; what was on its way to a server that has died never arrives."""
        if self.life == life:
            self.counts[client] += 1
            with suppress(StoreError):
                self.run(operation)

    def balances(self) -> dict[str, tuple[Node, Balance]]:
        return {node.key: (node, balance) for node, balance in self.store.run(Accounts())}

    _STATE = ("_accounts", "_nodes", "_beside", "_notes", "_open", "_done", "_order", "_entries")

    def snapshot(self) -> None:
        self._copy = copy.deepcopy({name: getattr(self.store, name) for name in self._STATE})
        self._counts_then = self.counts.copy()

    def lose(self) -> None:
        """It starts again from an old copy, or from nothing."""
        before = self.balances()
        self.store = self.make()
        for name, value in copy.deepcopy(self._copy).items():
            setattr(self.store, name, value)
        after = self.balances()
        for key, (_, balance) in before.items():
            left = after[key][1] if key in after else Balance(None)
            self.lost[key] += max(0, balance.spent - left.spent) + balance.reserved
        self.counts = self._counts_then.copy()
        self.life += 1


class Link:
    """One process's way to the store. It counts what was confirmed to it, and tells a journal, as the ways to real servers do."""

    capabilities = Capabilities(shared=True, durable=True, io="blocking")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.world, self.server = process.world, process.scene.server
        self.journal: Journal | None = None
        self.confirmed = 0
        self.era = object()
        self.current: Operation[Any] | None = None

    def run(self, operation: Operation[Any]) -> Any:
        self.process.alive()
        self.process.inside, self.current = True, operation
        try:
            return self._carry(operation)
        finally:
            self.process.inside, self.current = False, None
            self.process.go_on()

    def _carry(self, operation: Operation[Any]) -> Any:
        chance, scene = self.world.chance, self.process.scene
        weather = scene.weather
        latency = chance.uniform(0.0002, 0.002) + (chance.uniform(0, 0.09) if chance.random() < weather.slow else 0)
        fate = self._fate(weather)
        if fate == "refused":
            self._wait(latency)
            raise StoreError("refused")
        if fate in ("lost", "late"):
            if fate == "late":
                self._again_later(operation)
            self._wait(0.1)
            raise StoreError("timeout")
        self._wait(latency)
        counts, client = self.server.counts, self.process.number
        if counts[client] < self.confirmed:
            self._lost(counts[client])
        counts[client] += 1
        number, era = counts[client], self.era
        answer = scene.serve(self, operation)
        if fate == "twice":
            self._again_later(operation)
        if fate == "unanswered":
            self._wait(0.1)
            raise StoreError("timeout")
        self._wait(latency)
        self.confirmed = number
        if self.journal is not None:
            self.journal.wrote(operation, answer, era, client, number)
        return answer

    def _again_later(self, operation: Operation[Any]) -> None:
        client, life = self.process.number, self.server.life
        self.world.at(self.world.chance.expovariate(0.3), lambda: self.server.late(client, life, operation))

    def _lost(self, count: int) -> None:
        reset = StoreReset("it has lost what it had", survived={self.process.number: count}, era=self.era)
        if self.journal is not None:
            self.journal.reset(reset)
        self.confirmed, self.era = count, object()
        raise reset

    def _fate(self, weather: Weather) -> str:
        if self.world.now < self.process.cut_until:
            return self.world.chance.choice(("lost", "refused"))
        where = self.world.chance.random()
        for name in ("lost", "unanswered", "late", "twice", "refused"):
            where -= getattr(weather, name)
            if where < 0:
                return name
        return ""

    def _wait(self, seconds: float) -> None:
        """The others go on meanwhile, and anything may happen to this process."""
        self.world.run(self.world.now + int(seconds * SECOND))
        self.process.alive()
        while self.process.paused_until > self.world.now:
            self.world.run(self.process.paused_until)
            self.process.alive()

    def wait(self, seconds: float) -> None:
        self._wait(seconds)

    def reset_after_fork(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to let go of."""


# --- processes and agents ---------------------------------------------------------------------------------------------------------


class Told(Witness):
    """Counts what the guard tells."""

    resets = 0

    def store_reset(self, store: Any, why: object) -> None:
        self.resets += 1

    def count_reset(self, why: object) -> None:
        self.resets += 1


class Process:
    """A guard, leases, agents. Killed, all of it is gone; paused, none of it runs."""

    def __init__(self, scene: Scene, number: int) -> None:
        self.scene, self.world, self.number = scene, scene.world, number
        weather, chance = scene.weather, scene.world.chance
        self.gone = self.inside = self.closed = False
        self.paused_until = self.cut_until = 0
        self.put_off: list[Callable[[], object]] = []
        self.clock = DriftingClock(
            self.world, 1 + chance.uniform(-1, 1) * weather.drift, chance.uniform(-1, 1) * weather.ahead_s
        )
        self.link = Link(self)
        self.told = Told()
        self.store = LeasedStore(
            scene.journal(self.link, self.clock, on_reset=self.told.count_reset) if scene.journaled else self.link,
            self.clock,
            on_crossed=self.crossed,
            often=scene.often,
            ttl_s=scene.lease_s,
            every_s=0,
        )
        self.guard = scene.guard(self.store, self.clock, lease_s=scene.hold_s, witness=self.told)
        self.budgets = {name: ActiveBudget(budget, name) for name, budget in scene.budgets.items()}
        self.agents: dict[int, Agent] = {}
        self._count_doubtful()
        self.world.at(chance.random(), self._sync, self)

    def _count_doubtful(self) -> None:
        """An answer that was lost, and then the lease with it: nobody knows whether that step was counted, so it is."""
        lost, scene = self.store._lost, self.scene

        def count(path: Any, operation: Any) -> None:
            if path.pending is operation:
                for node, spent in zip(operation.nodes, operation.spent, strict=True):
                    scene.excess[node.key] += spent
            lost(path, operation)

        self.store._lost = count  # type: ignore[method-assign]

    def crossed(self, crossed: Any) -> None:
        self.guard.report(crossed)

    def stuck(self) -> bool:
        """Whether what happens to it has to wait."""
        if self.paused_until > self.world.now and not self.gone:
            return True
        return self.inside and not self.gone

    def alive(self) -> None:
        if self.gone:
            raise Killed

    def go_on(self) -> None:
        events, self.put_off = self.put_off, []
        for event in events:
            self.world.at(0, event, self)

    def pause(self, seconds: float) -> None:
        self.paused_until = max(self.paused_until, self.world.now + int(seconds * SECOND))
        self.world.at(seconds, self._unpause)

    def _unpause(self) -> None:
        if not self.stuck():
            self.go_on()

    def kill(self) -> None:
        self.gone = True
        self.put_off.clear()
        for agent in self.agents.values():
            agent.die()
        self.agents.clear()
        for line in self.guard._lines:  # what was let through, and is told to nobody now, or was just about to be
            for operation in (*line.owed, self.link.current):
                if isinstance(operation, Adjust):
                    for node, amount in zip(operation.nodes, operation.amounts, strict=True):
                        self.scene.hidden[node.key] += amount

    def _sync(self) -> None:
        with suppress(StoreError):  # as the thread that does it otherwise
            self.store.sync()
        if not self.closed:
            self.world.at(1.0, self._sync, self)

    def look(self) -> None:
        """Somebody looks at a budget now and then: the guard tidies up."""
        with suppress(StoreError):
            self.guard.balances(self.budgets["org"])
        if not self.closed:
            self.world.at(10.0, self.look, self)

    def close(self) -> None:
        """An orderly end."""
        self.guard.flush()
        self.store.close()
        self.closed = True


class Agent:
    """Makes one call after the other, until there is nothing to be had any more."""

    def __init__(self, process: Process, number: int) -> None:
        self.process, self.number = process, number
        self.scene, self.world = process.scene, process.world
        self.guard, self.clock = process.guard, process.clock
        self.turn = self.calls = self.refusals = 0
        self.open: Call | None = None
        self.steps = self.live()
        chance = self.world.chance
        names = [["org", team, f"{team} a minute"] for team in ("red", "blue")][chance.randrange(2)]
        self.path = [process.budgets[name] for name in names if name in process.budgets]
        process.agents[number] = self
        self.world.at(chance.random(), self.step, process)

    def step(self) -> None:
        self.turn += 1
        try:
            seconds = next(self.steps)
        except StopIteration:
            del self.process.agents[self.number]
            return
        turn = self.turn
        self.world.at(seconds, lambda: self.step() if turn == self.turn else None, self.process)

    def wake(self) -> None:
        turn = self.turn
        self.world.at(0, lambda: self.step() if turn == self.turn else None, self.process)

    def die(self) -> None:
        if self.open is not None:
            self.scene.left(self.open)

    def live(self) -> Steps:
        chance, scene = self.world.chance, self.scene
        while self.refusals < 3:
            yield chance.expovariate(1 / scene.think_s)
            call = yield from self.hold()
            if call is not None:
                self.open = call
                yield from self.make(call)
                self.open = None
            else:
                yield 2.0 if scene.calm else 0.3

    def hold(self) -> Generator[float, None, Call | None]:
        """Ask, and ask again where the guard says that there may be room later."""
        chance, scene = self.world.chance, self.scene
        self.calls += 1
        id = f"{self.process.number}/{self.number}/{self.calls}"
        bound = scene.bound() if not scene.calm or chance.random() < 0.5 else scene.small
        since, wait = self.world.now, None
        try:
            while True:
                try:
                    reservation = self.ask(id, bound, wait)
                except Wait as again:
                    wait = again
                    wait.ticket._wake = self.wake
                    try:
                        patience = self.guard.refusals.patience(wait)
                    except BudgetExceeded as refusal:
                        self.refused(refusal, bound, since)
                        return None
                except BudgetExceeded as refusal:
                    self.refused(refusal, bound, since)
                    return None
                else:
                    self.refusals = 0
                    return None if reservation is None else Call(self, reservation, bound)
                yield max(patience, chance.uniform(0.1, 1.0))  # the machine is busy: later than it would like to
        finally:
            if wait is not None and not self.process.gone:
                wait.ticket.leave()

    def ask(self, id: str, bound: int, wait: Wait | None) -> Reservation | None:
        amounts, at = {"USD": bound, "requests": MICRO}, self.clock.time_ns()
        if wait is None:
            return self.guard.reserve(self.path, amounts, id=id, at=at)
        with keep_ticket(wait.ticket):
            return self.guard.reserve(self.path, amounts, id=id, at=at)

    def refused(self, error: BudgetExceeded, bound: int, since: int) -> None:
        scene = self.scene
        self.world.note(type(error).__name__, bound)
        if isinstance(error, StoreUnavailable):
            quiet = max(scene.calm_at, self.process.paused_until, self.process.cut_until) + int(SOON_S * SECOND)
            if scene.calm and since > quiet:
                scene.problems.append(
                    f"DENIED {error} - {(since - scene.calm_at) / SECOND:.1f} s after the faults have stopped"
                )
            return
        scene.refusals += 1
        if bound == scene.small and not error.transient and error.resets_at is None:
            self.refusals += 1

    def make(self, call: Call) -> Steps:
        """What happens to one call."""
        chance, scene = self.world.chance, self.scene
        # Nothing but this agent holds for it: as another thread.
        call.reservation.thread = -self.number - 1
        yield chance.choice((0.0, 0.0, 0.001, 0.05))
        fate = chance.random()
        if fate < 0.04:  # it was never sent, or the provider said no
            self.guard.release(call.reservation)
            return
        if scene.marks:
            with suppress(StoreError):
                for part in call.reservation.parts:
                    MarkSent(call.reservation.id).execute(part.store)
        yield from self.wait_and_grow(call)
        cost = scene.cost(call)
        if fate < 0.08:  # the client gives up, the provider goes on, or never heard of it
            if fate < 0.07:
                self.world.at(chance.expovariate(0.5), lambda: scene.bill(call, cost))
            scene.unknown(call, cost if fate < 0.07 else 0)
            self.guard.settle(call.reservation, {"requests": MICRO})
            return
        scene.bill(call, cost)
        yield chance.choice((0.0, 0.0, 0.01, 0.3))
        if fate < 0.09:  # nobody tells what it cost
            scene.left(call)
            return
        self.guard.settle(call.reservation, {"USD": cost, "requests": MICRO})
        scene.settled(call)

    def wait_and_grow(self, call: Call) -> Steps:
        chance, scene = self.world.chance, self.scene
        yield chance.expovariate(1 / scene.call_s)
        if chance.random() < 0.005:  # a long one, whose lease is renewed
            for _ in range(3):
                yield scene.hold_s / 3
                with suppress(StoreError):
                    self.guard.extend(call.reservation)
        while chance.random() < scene.grows:
            try:
                more = call.bound + scene.small
                self.guard.grow(call.reservation, self.path, {"USD": more})
                call.bound = more
            except StoreUnavailable:
                call.doubtful = scene.small  # it may be held all the same
                return
            except BudgetExceeded:
                return
            yield chance.expovariate(1 / scene.call_s)


@dataclass(eq=False)
class Call:
    """One call, as its agent knows it; the provider only knows what it cost."""

    agent: Agent
    reservation: Reservation
    bound: int
    billed: int = 0
    doubtful: int = 0
    keys: tuple[tuple[str, str], ...] = field(init=False)
    unheld: set[str] = field(init=False)

    def __post_init__(self) -> None:
        # What is let through while the store is down is held nowhere, and posted when it is over.
        self.unheld = {node.key for part in self.reservation.unheld for node in part.nodes}
        nodes = (*self.reservation.nodes, *(node for part in self.reservation.unheld for node in part.nodes))
        self.keys = tuple((node.key, node.unit) for node in nodes)
        self.agent.scene.nodes.update((node.key, node) for node in nodes)


# --- one seed -----------------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one seed came to."""

    seed: int
    calls: int
    events: int
    kills: int
    losses: int
    used: float
    forfeited: float
    simulated_s: float
    trace: int
    found: str = ""


class Scene:
    """One seed: who there is, what goes wrong, and the judge.

    Args:
        seed: of everything. store, guard, serve, journal: others, to see whether the judge finds what is wrong with them.
    """

    def __init__(
        self,
        seed: int,
        *,
        store: Callable[[], Any] = lambda: MemoryStore(remember=10**6),
        guard: Callable[..., Guard] = Guard,
        serve: Callable[[Link, Operation[Any]], Any] | None = None,
        journal: Callable[..., Any] = JournaledStore,
    ) -> None:
        self.seed, self.guard, self.journal = seed, guard, journal
        self.world = World(seed)
        chance = self.world.chance
        self._serve = serve
        self.server = Server(self.world, store)
        self.weather = _weather(chance)
        self.problems: list[str] = []
        self.bills_of: dict[int, Counter[str]] = defaultdict(Counter)  # of each process
        self.bills: Counter[str] = Counter()
        self.nodes: dict[str, Node] = {}  # that somebody was billed for
        self.excess: Counter[str] = Counter()  # what the store may count above the bill
        self.overruns: Counter[str] = Counter()
        self.hidden: Counter[str] = Counter()  # overruns that nobody has told the store of
        self.calls = self.refusals = self.kills = self.losses = 0
        self.calm, self.calm_at = False, 2**62
        self.limit = chance.choice((1, 3, 10)) * DOLLAR
        self.small = self.limit // chance.choice((100, 150, 200))
        self.often = chance.choice((1, 3, 20, 10**9))
        self.lease_s = chance.choice((3.0, 10.0, 30.0))
        self.hold_s = chance.choice((60.0, 90.0))
        self.think_s = chance.choice((0.02, 0.1, 0.3))
        self.call_s = chance.choice((0.02, 0.2, 1.0, 3.0))
        self.max_wait = chance.choice((0.0, 5.0, 30.0))
        self.grows = chance.choice((0.0, 0.0, 0.1))
        self.full = chance.random() < 0.5
        self.overrun = chance.random() < 0.1
        self.store_down = "allow" if chance.random() < 0.15 else "deny"
        self.journaled = chance.random() < 0.5
        self.marks = chance.random() < 0.3
        self.large = chance.choice((0.0, 0.02, 0.1))
        self.budgets = self._budgets(chance)
        self.processes = [Process(self, number) for number in range(chance.randint(2, 5))]
        self._agents = chance.randint(1, 3)

    def _budgets(self, chance: random.Random) -> dict[str, Budget]:
        limit = self.limit
        budgets = {
            "org": _budget("org", limit * chance.choice((2, 3)) // 2, self.max_wait, on_store_down=self.store_down)
        }
        for team in ("red", "blue"):
            requests = chance.choice((None, None, 250))
            budgets[team] = _budget(team, limit, self.max_wait, requests, on_store_down=self.store_down)
        if chance.random() < 0.3:
            each = limit // chance.choice((2, 4))
            for team in ("red", "blue"):
                name = f"{team} a minute"
                budgets[name] = _budget(
                    name,
                    each,
                    self.max_wait,
                    per="minute",
                    on_exceed=chance.choice(("raise", "throttle")),
                    on_store_down=self.store_down,
                )
        return budgets

    # --- what agents ask ------------------------------------------------------------------------------------------------------------

    def bound(self) -> int:
        return self.small * 10 if self.world.chance.random() < self.large else self.small

    def cost(self, call: Call) -> int:
        chance = self.world.chance
        if self.overrun and chance.random() < 0.05:
            return call.bound + chance.randrange(call.bound)
        if self.full or chance.random() < 0.5:
            return call.bound
        return chance.choice((0, chance.randrange(call.bound + 1)))

    def bill(self, call: Call, cost: int) -> None:
        """The provider writes its bill."""
        self.calls += 1
        call.billed = cost
        mine = self.bills_of[call.agent.process.number]
        for key, unit in call.keys:
            amount = cost if unit == "USD" else MICRO
            self.bills[key] += amount
            mine[key] += amount
            if unit == "USD":
                self.overruns[key] += max(0, cost - call.bound)

    def unknown(self, call: Call, cost: int) -> None:
        """Nobody will ever say what it has cost."""
        for key, unit in call.keys:
            self.hidden[key] += max(0, cost - call.bound) if unit == "USD" else 0
            self.excess[key] += max(0, call.bound + call.doubtful - cost) if unit == "USD" else MICRO

    def left(self, call: Call) -> None:
        """Its agent is gone: it counts at what is held for it."""
        self.unknown(call, 0)
        for key, unit in call.keys:
            self.hidden[key] += max(0, call.billed - call.bound) if unit == "USD" else 0
            if key in call.unheld:  # and nobody will post it
                self.hidden[key] += min(call.billed, call.bound) if unit == "USD" else MICRO

    def settled(self, call: Call) -> None:
        """All is told."""

    def serve(self, link: Link, operation: Operation[Any]) -> Any:
        return self.server.run(operation) if self._serve is None else self._serve(link, operation)

    # --- the play -----------------------------------------------------------------------------------------------------------------------

    def play(self) -> Result:
        """From the first event to the verdict."""
        world, found = self.world, ""
        with _patched(world):
            try:
                self._faults()
                self._calm()
                self._end()
                self._judge()
            except Found as error:
                found = str(error)
        return Result(
            self.seed, self.calls, world.events, self.kills, self.losses, self._used(), self._forfeited(),
            world.now / SECOND, world.trace, found,
        )  # fmt: skip

    def _faults(self) -> None:
        chance, weather = self.world.chance, self.weather
        for process in self.processes:
            for number in range(self._agents):
                Agent(process, number)
        for rate, event in (
            (weather.kills, self._kill),
            (weather.pauses, self._pause),
            (weather.cuts, self._cut),
            (weather.losses, self._lose),
        ):
            if rate:
                self._again(rate, event)
        if weather.losses:
            self._again(0.3, self.server.snapshot)
        self._run(chance.choice((10.0, 30.0, 90.0)))

    def _run(self, seconds: float) -> None:
        """Let time pass, and look several times a second."""
        until = self.world.now + int(seconds * SECOND)
        while self.world.now < until:
            self.world.run(min(until, self.world.now + SECOND // 5))
            self._watch()

    def _watch(self) -> None:
        """What was billed is spent or held at every moment: nothing else keeps it from being given again."""
        accounts = self.server.store._accounts if self.store_down == "deny" else None
        for key, bill in self.bills.items() if accounts is not None else ():
            account = accounts.get(key)
            counted = 0 if account is None else account.spent + account.reserved
            if counted + self.server.lost[key] + self.overruns[key] < bill:
                raise Found(f"UNCOVERED {_name(key)}: {bill} billed, and only {counted} spent or held")
        if self.problems:
            raise Found(self.problems[0])

    def _again(self, rate: float, event: Callable[[], None]) -> None:
        def happen() -> None:
            if not self.calm:
                event()
                self.world.at(self.world.chance.expovariate(rate), happen)

        self.world.at(self.world.chance.expovariate(rate), happen)

    def _living(self) -> list[Process]:
        return [process for process in self.processes if not process.gone]

    def _kill(self) -> None:
        """With another one in its place."""
        chance = self.world.chance
        chance.choice(self._living()).kill()
        self.kills += 1
        process = Process(self, len(self.processes))
        self.processes.append(process)
        for number in range(self._agents):
            Agent(process, number)

    def _pause(self) -> None:
        longest = max(self.lease_s, self.hold_s)
        chance = self.world.chance
        chance.choice(self._living()).pause(chance.choice((0.5, self.lease_s, 2 * self.lease_s, 1.3 * longest)))

    def _cut(self) -> None:
        chance = self.world.chance
        some = chance.sample(self._living(), chance.randint(1, len(self._living())))
        until = self.world.now + int(chance.expovariate(1 / chance.choice((1.0, 5.0, self.lease_s))) * SECOND)
        for process in some:
            process.cut_until = until

    def _lose(self) -> None:
        self.losses += 1
        self.server.lose()

    def _calm(self) -> None:
        """No more faults: whoever is left gets what is left."""
        world = self.world
        self.calm, self.calm_at = True, world.now
        self.weather = Weather()
        for process in self._living():
            process.cut_until = 0
            process.paused_until = min(process.paused_until, world.now)
            if not process.inside:
                process.go_on()
        for process in (
            self._living()
        ):  # also who has nothing to do: what it had told a store that lost it is put back when it asks again
            process.look()
        horizon = world.now + 1800 * SECOND
        while any(process.agents for process in self._living()):
            self._run(1.0)
            if world.now > horizon:
                raise Found("half an hour after the faults have stopped somebody still waits")
        waiting = [process.number for process in self._living() if process.guard._queues]
        if waiting:
            raise Found(f"nobody asks any more and yet processes {waiting} have somebody in a queue")
        longest = max(self.lease_s, self.hold_s)
        self._run(2 * longest + max(0.0, longest - (world.now - self.calm_at) / SECOND))
        held = {key: balance.reserved for key, (_, balance) in self.server.balances().items() if balance.reserved}
        if held:
            raise Found(f"{2 * longest:.0f} s after the last call the store still holds {held}")

    def _end(self) -> None:
        world, longest = self.world, max(self.lease_s, self.hold_s)
        for process in self._living():
            world.at(0, process.close, process)
        self._run(2 * longest + SWEPT_S)
        self.server.run(Sweep(0))

    def _judge(self) -> None:
        balances = self.server.balances()
        lost = self.server.lost
        used = []
        for key, bill in self.bills.items():
            node = self.nodes[key]
            balance = balances[key][1] if key in balances else Balance(node.limit)
            limit, spare = node.limit or 0, self.overruns[key] + lost[key]
            if bill > limit + spare and self.store_down == "deny":
                raise Found(
                    f"OVERSPENT {_name(key)}: the bill is {bill}, {(bill - limit) / limit:.2%} above the limit of {limit}"
                )
            if balance.spent < bill - self._gone(key) - self.hidden[key]:
                raise Found(f"UNDERCOUNTED {_name(key)}: {balance.spent} counted, {bill} billed")
            if balance.reserved:
                raise Found(f"LEFT {_name(key)}: {balance.reserved} still held")
            known = bill + balance.forfeited + self.excess[key]
            if not lost and balance.spent > known:
                raise Found(f"OVERCOUNTED {_name(key)}: {balance.spent} counted, {known} is all that can be explained")
            if not node.until:
                used.append(balance.spent / limit)
        if not used or max(used) < USABLE:
            raise Found(f"UNUSED: of no account more than {max(used, default=0):.1%} was spent")

    def _gone(self, key: str) -> int:
        """What the store has lost and nobody can put back: with a journal, only what processes had spent that are no more."""
        lost = self.server.lost[key]
        if not self.journaled:
            return lost
        return min(lost, sum(self.bills_of[process.number][key] for process in self.processes if process.gone))

    def _used(self) -> float:
        """The largest share of a limit that was billed."""
        return max(self._shares(self.bills), default=0)

    def _forfeited(self) -> float:
        found = {key: balance.forfeited for key, (_, balance) in self.server.balances().items()}
        return max(self._shares(found), default=0)

    def _shares(self, amounts: Mapping[str, int]) -> Iterator[float]:
        """Of each limit that is not for a window only."""
        for key, node in self.nodes.items():
            if node.limit and not node.until:
                yield amounts.get(key, 0) / node.limit


def _weather(chance: random.Random) -> Weather:
    """Each kind of fault with an even chance, so that some seeds have one kind only."""

    def some(most: float, often: float = 0.5) -> float:
        return chance.random() * most if chance.random() < often else 0.0

    return Weather(
        lost=some(0.1), unanswered=some(0.1), late=some(0.1), twice=some(0.1), refused=some(0.1), kills=some(0.3), pauses=some(0.2),
        cuts=some(0.2), losses=some(0.1, 0.25), slow=some(0.2), drift=some(0.03), ahead_s=some(2.0),
    )  # fmt: skip


def _budget(name: str, amount: int, max_wait: float, requests: int | None = None, **more: Any) -> Budget:
    limits = {"USD": f"{amount / DOLLAR:.9f}"} | ({} if requests is None else {"requests": str(requests)})
    return Budget.parse(limits, name=name, max_wait=max_wait, **more)


def _name(key: str) -> str:
    return "/".join(key.split("\x1f"))


@contextmanager
def _patched(world: World) -> Iterator[None]:
    """Ids come from the seed, too."""
    with (
        mock.patch("aifinops.budgets.stores.leases.new_id", world.new_id),
        mock.patch("aifinops.budgets.stores.journaled.new_id", world.new_id),
    ):
        yield


# --- what the judge has to find ---------------------------------------------------------------------------------------------------


class ExpiryReturns(MemoryStore):
    """What ran out was not spent: so do most."""

    def _sweep(self, operation: Sweep) -> Any:
        for id in list(self._open):
            record = self._known(id)
            if record.expires > operation.now:
                continue
            for account, held in zip(record.accounts, record.held, strict=True):
                account.reserved -= held
            record.state = State.RELEASED
            self._finished(id, record, Outcome(State.RELEASED, applied=True))
        return super()._sweep(operation)


def check_then_add(link: Link, operation: Operation[Any]) -> Any:
    """Reads, decides, and adds later."""
    from aifinops.budgets.policy import decide

    server = link.server
    if not isinstance(operation, Reserve):
        return server.run(operation)
    decision = decide(server.run(Read(operation.nodes)), operation.amounts, operation.now)
    link.wait(0.05)
    if not decision.allowed:
        return Outcome(None, applied=False, decision=decision)
    nodes = tuple(replace(node, limit=None) for node in operation.nodes)
    return server.run(Reserve(operation.id, nodes, operation.amounts, operation.now, operation.ttl))


class UnknownIsNothing(Guard):
    """A call of which nobody says what it cost has cost nothing."""

    def settle(self, reservation: Reservation, actual: Any) -> None:
        if "USD" in actual:
            super().settle(reservation, actual)
        else:
            self.release(reservation)


class Forgetful(MemoryStore):
    """Takes what comes twice for something new."""

    def _draw(self, operation: Draw) -> Outcome:
        record = self._find(operation.id)
        if record is not None:
            record.step = min(record.step, operation.step - 1)
        return super()._draw(operation)


BROKEN: dict[str, dict[str, Any]] = {
    "expiry returns the money": {"store": lambda: ExpiryReturns(remember=10**6)},
    "check, then add": {"serve": check_then_add},
    "what is unknown is nothing": {"guard": UnknownIsNothing},
    "what the store has lost is lost": {"journal": lambda inner, clock, on_reset: inner},
    "a step that comes twice counts twice": {"store": lambda: Forgetful(remember=10**6)},
}
"""Worlds that are wrong on purpose."""


# --- many seeds -----------------------------------------------------------------------------------------------------------------


def play(seed: int, broken: str = "") -> Result:
    """One seed, from the start to the verdict."""
    return Scene(seed, **BROKEN[broken] if broken else {}).play()


def how_to_replay(result: Result) -> str:
    return f"seed {result.seed}: {result.found}\nagain: python tests/faults/simulation.py --seed {result.seed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--broken", default="", choices=["", *BROKEN])
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    errors.reraise_failures(True)
    logging.getLogger("aifinops").setLevel(logging.CRITICAL)
    since, results = time.monotonic(), []
    with get_context("fork").Pool(1 if options.seed is not None else options.workers) as pool:
        for result in pool.imap(_Play(options.broken), seeds, chunksize=4 if len(seeds) > 1 else 1):
            results.append(result)
            if result.found:
                sys.stdout.write(how_to_replay(result) + "\n")
                sys.stdout.flush()
    sys.stdout.write(json.dumps(summary(results) | {"seconds": round(time.monotonic() - since)}) + "\n")
    return int(any(result.found for result in results))


class _Play:
    """`play`, for the processes of a pool."""

    def __init__(self, broken: str) -> None:
        self.broken = broken

    def __call__(self, seed: int) -> Result:
        try:
            return play(seed, self.broken)
        except Exception as error:
            raise RuntimeError(f"seed {seed}: python tests/faults/simulation.py --seed {seed}") from error


def summary(results: list[Result]) -> dict[str, Any]:
    """Figures of many seeds."""
    used = sorted(result.used for result in results)
    return {
        "seeds": len(results),
        "found": sum(bool(result.found) for result in results),
        "calls": sum(result.calls for result in results),
        "events": sum(result.events for result in results),
        "kills": sum(result.kills for result in results),
        "losses of the store": sum(result.losses for result in results),
        "simulated hours": round(sum(result.simulated_s for result in results) / 3600, 1),
        "billed of the limit, median": round(used[len(used) // 2], 4),
        "billed of the limit, least": round(used[0], 4),
        "forfeited of the limit, mean": round(sum(result.forfeited for result in results) / len(results), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
