"""What everybody knows about a cluster's GPUs: who waits, who holds, who is asked, what teams have used. Notes in the store of budgets.

    gpu/<cluster>/lock            whoever decides, for a few seconds
    gpu/<cluster>/wait/<slot>     a request, and when its holder was last alive
    gpu/<cluster>/hold/<slot>     a holder, likewise
    gpu/<cluster>/yield/<slot>    the request for which it is asked to give back what it holds
    gpu/<cluster>/used/<team>     the moving average of the GPUs that it held

What must never be passed, the capacity of a pool and the hard limit of a team, is not left to notes: a slot is a reservation at two nodes of the
store, which takes all or nothing in one step whoever else decides at the same moment. The lock only makes the finer rules exact.

A reservation's own lease is endless, for what a budget store forfeits it counts as spent; GPUs of a holder who died come back. Whoever reads the
board and finds a note that nobody has renewed for its lease releases the reservation: that can be repeated, and done by several at once.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import (
    Accounts,
    Extend,
    IdInUse,
    Node,
    Notes,
    Outcome,
    Put,
    Release,
    Reserve,
    State,
    Store,
    Take,
)
from aifinops.charges import new_id
from aifinops.clock import Clock
from aifinops.errors import ConfigurationError
from aifinops.gpu.admission import Holder, Plan, Request, Usage, decayed, decide, penalised
from aifinops.gpu.quota import Quotas

__all__ = ["Board", "Entry", "View"]

_NS = 1_000_000_000
_UNIT = 1_000_000_000
"""What a GPU counts in the store, so that `aifinops budget list` shows it as one."""
_FOREVER = 3650 * 86_400 * _NS
_LOCK_S = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A note about a slot.

    Attributes:
        id: of the slot, and of its reservation. team, pool, gpus, priority: as asked. since: when it began to wait or to hold, seconds.
        beat: when its process was last alive. lease: after how many seconds without a beat it is dead.
        host, pid, name: where and what it is. rate: USD an hour of one GPU, None where unknown; source: of the rate.
        held_s, busy_s: device-seconds held, and of these the busy ones as far as they were measured, None where nobody measures.
    """

    id: str
    team: str
    pool: str
    gpus: int
    priority: int
    since: float
    beat: float
    lease: float
    host: str = ""
    pid: int = 0
    name: str = ""
    rate: str | None = None
    source: str = ""
    held_s: float | None = None
    busy_s: float | None = None

    @classmethod
    def new(cls, team: str, pool: str, gpus: int, priority: int, now: float, lease: float, name: str) -> Entry:
        """One of this process."""
        return cls(new_id(), team, pool, gpus, priority, now, now, lease, socket.gethostname(), os.getpid(), name)

    def dead(self, now: float) -> bool:
        """Whether nobody has renewed it for its lease."""
        return now - self.beat > self.lease

    def text(self) -> str:
        """As a note."""
        return json.dumps(
            {name: getattr(self, name) for name in Entry.__slots__ if name != "id"}, separators=(",", ":")
        )

    @classmethod
    def read(cls, id: str, text: str) -> Entry | None:
        """From a note; None for one that cannot be read."""
        try:
            table = json.loads(text)
            found = cls(id, **{name: table[name] for name in cls.__slots__ if name in table})
        except (ValueError, TypeError):
            return None
        return found if found.sound else None

    @property
    def sound(self) -> bool:
        """Whether everything in it is what it has to be: others write these notes, too."""
        return (
            all(isinstance(text, str) for text in (self.team, self.pool, self.host, self.name, self.source))
            and all(_is_number(value) for value in (self.priority, self.since, self.beat, self.lease))
            and all(value is None or _is_number(value) for value in (self.held_s, self.busy_s))
            and isinstance(self.gpus, int)
            and self.gpus > 0
            and (self.rate is None or _is_decimal(self.rate))
        )


@dataclass(frozen=True, slots=True)
class View:
    """The board at one moment.

    Attributes:
        waiting, holding: live entries by id. dead: those whose processes are gone. asked: slot -> request that it is asked to yield to.
        usage: team -> average when it last changed. now: seconds since the epoch.
    """

    waiting: Mapping[str, Entry]
    holding: Mapping[str, Entry]
    dead: tuple[Entry, ...]
    asked: Mapping[str, str]
    usage: Mapping[str, Usage]
    now: float

    @property
    def requests(self) -> list[Request]:
        """The queue."""
        return [Request(one.id, one.team, one.pool, one.gpus, one.priority, one.since) for one in self.waiting.values()]

    @property
    def holders(self) -> list[Holder]:
        """Who holds what; a request that is gone asks for nothing any more."""
        found = []
        for one in self.holding.values():
            wants = self.asked.get(one.id, "")
            asked = wants if wants in self.waiting else ""
            found.append(Holder(one.id, one.team, one.pool, one.gpus, one.priority, one.since, asked))
        return found

    def held(self, team: str, pool: str = "") -> int:
        """GPUs that a team holds, in one pool or in all."""
        return sum(one.gpus for one in self.holding.values() if one.team == team and pool in {"", one.pool})

    def plan(self, quotas: Quotas) -> Plan:
        """What is to be done; teams and pools that this file does not know are left out."""
        holders = [one for one in self.holders if one.team in quotas.teams and one.pool in quotas.pools]
        queue = [one for one in self.requests if one.team in quotas.teams and one.pool in quotas.pools]
        return decide(quotas, holders, queue, self.usage, self.now)


class Board:
    """The board of one cluster in one store.

    Args:
        store: of budgets. quotas: of the cluster. clock: for tests.
    """

    def __init__(self, store: Store, quotas: Quotas, clock: Clock) -> None:
        # Below the leases that a process takes for its calls: a slot is released by others, too.
        self._store: Store = getattr(store, "inner", store)
        self.quotas = quotas
        self._clock = clock
        self._prefix = f"gpu/{quotas.name}/"

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.time_ns() / _NS

    # --- reading ----------------------------------------------------------------------------------------------------------

    def view(self) -> View:
        """Everything on it, in one step of the store."""
        now = self._clock.time_ns()
        kinds: dict[str, dict[str, str]] = {"wait": {}, "hold": {}, "yield": {}, "used": {}}
        for key, value in self._store.run(Notes(self._prefix, now)):
            kind, _, name = key.removeprefix(self._prefix).partition("/")
            if name and kind in kinds:
                kinds[kind][name] = value
        at = now / _NS
        entries = {kind: [one for id, text in kinds[kind].items() if (one := Entry.read(id, text))] for kind in ("wait", "hold")}  # fmt: skip
        alive = {kind: {one.id: one for one in found if not one.dead(at)} for kind, found in entries.items()}
        # Between the two notes of an admission a slot is on both lists: it holds.
        waiting = {id: one for id, one in alive["wait"].items() if id not in alive["hold"]}
        dead = tuple(one for found in entries.values() for one in found if one.dead(at) and one.id not in alive["hold"])
        usage = {team: found for team, text in kinds["used"].items() if (found := _usage(text))}
        return View(waiting, alive["hold"], dead, kinds["yield"], usage, at)

    # --- changing ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def deciding(self) -> Iterator[bool]:
        """Whether this is the only one who decides now; if not, try again in a moment."""
        key, token, now = f"{self._prefix}lock", new_id(), self._clock.time_ns()
        mine = self._store.run(Put(key, token, now, now + int(_LOCK_S * _NS), new=True))
        try:
            yield mine
        finally:
            # One that took longer than the lock lasts must not take away that of the next.
            if mine and (key, token) in self._store.run(Notes(key, self._clock.time_ns())):
                self._store.run(Take(key, self._clock.time_ns()))

    def wait(self, entry: Entry) -> None:
        """Stand in the queue, or show that one still stands there."""
        self._put("wait", entry.id, replace(entry, beat=self.now).text())

    def leave(self, entry: Entry) -> None:
        """Not to wait any longer."""
        self._take("wait", entry.id)

    def ask(self, plan: Plan) -> None:
        """Ask those whom the plan names."""
        for holder, request in plan.reclaim:
            self._put("yield", holder, request)

    def admit(self, entry: Entry, view: View) -> Entry | None:
        """Take the GPUs, if the store agrees; the entry of the holder."""
        nodes, amounts = self._nodes(entry)
        now = self._clock.time_ns()
        outcome = self._store.run(Reserve(entry.id, nodes, amounts, now, _FOREVER, alone=True))
        if outcome.state not in {State.HELD, State.SENT}:
            return None
        held = replace(entry, since=self.now, beat=self.now)
        self._put("hold", held.id, held.text())
        self._take("wait", held.id)
        fair = self.quotas.fair_share
        self._used(entry.team, penalised(self._average(view, entry.team), entry.gpus, fair))
        return held

    def beat(self, entry: Entry) -> str | None:
        """Show that the holder is alive.

        Returns:
            The request that it is asked to yield to, empty for none; None when it does not hold anything any more.
        """
        nodes, _ = self._nodes(entry)
        outcome: Outcome = self._store.run(Extend(entry.id, nodes, self._clock.time_ns(), _FOREVER))
        if outcome.state not in {State.HELD, State.SENT}:
            return None
        self._put("hold", entry.id, replace(entry, beat=self.now).text())
        key = f"{self._prefix}yield/{entry.id}"
        asks = self._note(key)
        # Whoever asked may have gone away.
        return asks if asks and self._note(f"{self._prefix}wait/{asks}") else ""

    def release(self, entry: Entry, view: View | None = None) -> None:
        """Give everything back; of a holder who died, likewise.

        Args:
            view: from before, to count what the team has used; None leaves that out.
        """
        nodes, _ = self._nodes(entry)
        if view is not None and entry.id in view.holding:
            self._used(entry.team, self._average(view, entry.team))
        self._store.run(Release(entry.id, nodes))
        for kind in ("hold", "yield", "wait"):
            self._take(kind, entry.id)

    def bury(self, view: View) -> None:
        """Give back what the dead have left."""
        for one in view.dead:
            if one.team in self.quotas.teams and one.pool in self.quotas.pools:
                self.release(one)

    def free(self, id: str, *, force: bool = False) -> Entry | None:
        """Give back by hand what a slot holds whose process is gone, also where the quota file no longer knows its team or its note is lost.

        Args:
            id: of the slot. force: also of one that is alive; its process finds it lost.

        Returns:
            What its note said, None where there was none.

        Raises:
            ConfigurationError: for a slot that is alive, without `force`; and for one that holds nothing and waits for nothing.
        """
        view = self.view()
        alive = view.holding.get(id) or view.waiting.get(id)
        if alive is not None and not force:
            raise ConfigurationError(
                f"slot {id} of team {alive.team!r} is alive: {alive.host}:{alive.pid} has renewed it {view.now - alive.beat:.0f} s ago, and "
                f"{alive.lease:g} s without that make it dead. With --force it is taken from it."
            )
        entry = alive or next((one for one in view.dead if one.id == id), None)
        pairs = self._pairs() if entry is None else [self._places(entry)]
        freed = any(self._freed(id, nodes) for nodes in pairs)
        for kind in ("hold", "yield", "wait"):
            self._take(kind, id)
        if not freed and entry is None:
            raise ConfigurationError(
                f"no slot {id} holds GPUs of cluster {self.quotas.name!r} or waits for some in this store; `aifinops gpu top --json` has their ids"
            )
        return entry

    def unaccounted(self, view: View) -> dict[tuple[str, str], int]:
        """(team, pool) -> GPUs that are reserved, and of which no note says by whom; for a moment that is so of every slot that begins."""
        noted: dict[tuple[str, str], int] = {}
        for one in {one.id: one for one in (*view.dead, *view.waiting.values(), *view.holding.values())}.values():
            noted[one.team, one.pool] = noted.get((one.team, one.pool), 0) + one.gpus
        found = {}
        for node, balance in self._accounts():
            pool, slash, team = node.budget.removeprefix(self._prefix).partition("/")
            more = (balance.reserved + balance.spent) // _UNIT - noted.get((team, pool), 0)
            if slash and more > 0:
                found[team, pool] = more
        return found

    # --- the store --------------------------------------------------------------------------------------------------------

    def _accounts(self) -> list[tuple[Node, Balance]]:
        return [pair for pair in self._store.run(Accounts()) if pair[0].budget.startswith(self._prefix)]

    def _pairs(self) -> list[tuple[Node, ...]]:
        """The nodes of every team in every pool that ever held something: of a slot without a note one of them is right."""
        known = {node.budget: node for node, _ in self._accounts()}
        return [(known[above], node) for key, node in known.items() if (above := key.rpartition("/")[0]) in known]

    def _freed(self, id: str, nodes: tuple[Node, ...]) -> bool:
        try:
            return self._store.run(Release(id, nodes)).applied
        except IdInUse:  # it is of other nodes
            return False

    def _places(self, entry: Entry) -> tuple[Node, ...]:
        """The nodes of a slot, whose team or pool the file may have no longer."""
        place = f"{self._prefix}{entry.pool}"
        return Node(place, 0, "gpus", None), Node(f"{place}/{entry.team}", 0, "gpus", None)

    def _nodes(self, entry: Entry) -> tuple[tuple[Node, ...], tuple[int, ...]]:
        """The pool with its capacity, the team with its hard limit."""
        pool = self.quotas.pools[entry.pool]
        hard = self.quotas.hard_limit(entry.team, entry.pool)
        place = f"{self._prefix}{pool.name}"
        nodes = (
            Node(place, 0, "gpus", pool.gpus * _UNIT, label=f"GPUs {pool.name}"),
            Node(f"{place}/{entry.team}", 0, "gpus", hard * _UNIT, label=f"GPUs {pool.name} of {entry.team}"),
        )
        return nodes, (entry.gpus * _UNIT,) * 2

    def _average(self, view: View, team: str) -> Usage:
        """What a team has used until now."""
        usage = view.usage.get(team, Usage(0.0, self.now))
        return decayed(usage, view.held(team), self.now, self.quotas.fair_share)

    def _used(self, team: str, usage: Usage) -> None:
        self._put("used", team, json.dumps(usage))

    def _note(self, key: str) -> str:
        notes = self._store.run(Notes(key, self._clock.time_ns()))
        return dict(notes).get(key, "")

    def _put(self, kind: str, name: str, text: str) -> None:
        self._store.run(Put(f"{self._prefix}{kind}/{name}", text, self._clock.time_ns()))

    def _take(self, kind: str, name: str) -> None:
        self._store.run(Take(f"{self._prefix}{kind}/{name}", self._clock.time_ns()))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_decimal(value: object) -> bool:
    try:
        return isinstance(value, str) and Decimal(value) >= 0
    except InvalidOperation:
        return False


def _usage(text: str) -> Usage | None:
    try:
        gpus, at = json.loads(text)
    except (ValueError, TypeError):
        return None
    return Usage(float(gpus), float(at)) if _is_number(gpus) and _is_number(at) else None
