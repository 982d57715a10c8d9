"""A place on GPUs under the quotas of teams: queue, be admitted, be asked to give it back.

    with gpu.slot(team="nlp", gpus=8, priority="batch") as slot:      # or `async with`
        for step in range(steps):
            train(step)
            if slot.should_yield():
                save(step)
                break

Nothing here schedules processes: whoever wants GPUs asks before it uses them, and whoever holds some looks now and then whether somebody else
has a better right to them. One thread a process shows that its slots are alive; those of a process that dies come back when their lease is over.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextvars import ContextVar, Token
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

from aifinops import runtime, scope
from aifinops.errors import ConfigurationError, SlotUnavailable, StoreError, swallow
from aifinops.forking import in_child
from aifinops.gpu.board import Board, Entry, View
from aifinops.gpu.quota import Quotas, read_quotas
from aifinops.tags import make_tags

__all__ = ["Slot", "SlotRequest", "current_slot", "quotas_in_force", "slot"]

logger = logging.getLogger("aifinops.gpu")

_NS = 1_000_000_000
_BEATS = 4
"""How often a lease is renewed while it lasts."""
_SOON_S = 0.05
_TRIES = 20

current_slot: ContextVar[Slot | None] = ContextVar("aifinops_slot", default=None)
"""The innermost slot of this context."""


def quotas_in_force(given: Quotas | str | os.PathLike[str] | None = None) -> Quotas:
    """The quotas that are meant: those given, else the file of the setting `gpu_quotas`.

    Raises:
        ConfigurationError: where there are none.
    """
    if isinstance(given, Quotas):
        return given
    path = given or runtime.get().config.gpu_quotas
    if not path:
        raise ConfigurationError(
            "there are no GPU quotas; name their file: AIFINOPS_GPU_QUOTAS=quotas.toml or init(gpu_quotas=...)"
        )
    return read_quotas(Path(path))


def slot(
    *,
    team: str = "",
    gpus: int = 1,
    priority: str | int = "normal",
    pool: str = "",
    max_wait: float | timedelta | None = None,
    name: str = "",
    quotas: Quotas | str | os.PathLike[str] | None = None,
    store: Any = None,
    lease_s: float = 60.0,
    poll_s: float = 2.0,
) -> SlotRequest:
    """Ask for GPUs of a team's quota: `with gpu.slot(team="nlp", gpus=8, priority="batch") as slot:`, or `async with`.

    Args:
        team: as in the quota file; default: the tag `team` in force. gpus: how many, all of them or none.
        priority: a name of the file, or a number. pool: which GPUs; needed where there are several pools.
        max_wait: seconds to wait at most; 0 not at all, None for as long as it takes. Waiting can be interrupted or cancelled.
        name: what it is for, for people. quotas: a file or quotas; default: the setting `gpu_quotas`.
        store: where the board is; default: that of the budgets. lease_s: after so long without a sign of life it is given to others.
        poll_s: how often the board is looked at for what other processes have done.

    Raises:
        ConfigurationError: for a team, pool or priority that is not in the file, or more GPUs than the team can ever have.
    """
    rules = quotas_in_force(quotas)
    tags = runtime.get().tags(scope.current())
    whose = rules.team(team or tags.get("team", ""))
    place = rules.pool(pool)
    most = rules.hard_limit(whose.name, place.name)
    if isinstance(gpus, bool) or not isinstance(gpus, int) or not 0 < gpus <= most:
        raise ConfigurationError(
            f"slot(gpus={gpus!r}): team {whose.name!r} can have 1 to {most} GPUs of {place.name}, its own and what it may borrow"
        )
    seconds = max_wait.total_seconds() if isinstance(max_wait, timedelta) else max_wait
    engines = runtime.get()
    board = Board(
        engines.store_at(runtime.shared_store(engines.config) if store is None else store), rules, engines.clock
    )
    entry = Entry.new(whose.name, place.name, gpus, rules.rank(priority), board.now, lease_s, name)
    return (SlotRequest if engines.config.enabled else _Free)(board, entry, seconds, poll_s)


class Slot:
    """GPUs that are held.

    Attributes:
        id: of the slot. team, pool, gpus, priority: what was asked for. lease_s: after so long without a sign of life it is lost.
    """

    def __init__(self, board: Board, entry: Entry) -> None:
        self.id, self.team, self.pool = entry.id, entry.team, entry.pool
        self.gpus, self.priority = entry.gpus, entry.priority
        self._board = board
        self._entry = entry
        self._lock = threading.Lock()
        self.lease_s = entry.lease
        self._yields_to = ""
        self._lost = self._left = False

    def should_yield(self) -> bool:
        """Whether somebody else has a better right to these GPUs: save what there is, and leave the block. A flag, nothing is asked."""
        return bool(self._yields_to) or self._lost

    @property
    def lost(self) -> bool:
        """Whether the slot was given to others, because this process showed no sign of life for its lease."""
        return self._lost

    def measured(self, busy_s: float | None, held_s: float) -> None:
        """Tell what was measured of the devices: device-seconds that they were busy, and held; shown by `aifinops gpu top`."""
        with self._lock:
            self._entry = replace(self._entry, busy_s=busy_s, held_s=held_s)

    def _beat(self) -> None:
        """Show that it is alive, and learn what others want."""
        with self._lock:
            if self._left:
                return
            asked = self._board.beat(self._entry)
        if asked is None:
            self._lost = True
        else:
            self._yields_to = asked

    def _release(self) -> None:
        _keeper.drop(self)
        with self._lock:
            self._left = True
            for _ in range(_TRIES):
                with self._board.deciding() as mine:
                    if mine:  # so that nobody else writes at the same time what the team has used
                        self._board.release(self._entry, self._board.view())
                        break
                time.sleep(_SOON_S)
            else:
                self._board.release(self._entry)
        _changed.announce()


class SlotRequest:
    """What `slot()` returns: a context manager for both colours."""

    def __init__(self, board: Board, entry: Entry, max_wait: float | None, poll_s: float) -> None:
        self._board = board
        self._entry = entry
        self._poll = poll_s
        self._clock = runtime.get().clock
        self._began = self._clock.monotonic_ns()
        self._max_wait = max_wait
        self._alone = threading.Lock()  # an attempt in a thread, and leaving because the task was cancelled
        self._over = False
        self._soon = False
        self._slot: Slot | None = None
        self._why = ""
        self._tokens: tuple[Token[Slot | None], Token[Any]] | None = None

    # --- both colours -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Slot:
        self._begin()
        try:
            while not self._attempt():
                _changed.wait(self._pause())
        except BaseException:
            self._leave()
            raise
        return self._entered()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left()
        self._leave()

    async def __aenter__(self) -> Slot:
        import asyncio

        self._begin()
        try:
            while not await asyncio.to_thread(self._attempt):
                await _changed.await_(self._pause())
        except BaseException:
            # Not given up half-way by a second cancellation.
            await asyncio.shield(asyncio.to_thread(self._leave))
            raise
        return self._entered()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        self._left()
        await asyncio.shield(asyncio.to_thread(self._leave))

    # --- what they have in common -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._over or self._slot is not None:
            raise ConfigurationError("a slot is asked for once; write gpu.slot(...) again for another one")
        self._began = self._clock.monotonic_ns()

    def _attempt(self) -> bool:
        """Look at the board, do what is to be done there, and take the GPUs if it is our turn."""
        with self._alone:
            if self._over:
                return False
            try:
                return self._admitted()
            except StoreError as error:
                swallow("gpu.slot", error, "The slot is asked for again")
                self._why = f"the store does not answer: {error}"
                return False

    def _admitted(self) -> bool:
        board = self._board
        board.wait(self._entry)
        view = board.view()
        plan = view.plan(board.quotas)
        self._why = plan.waiting.get(self._entry.id, "")
        # Most of the time there is nothing to do, and then nobody is kept from deciding.
        if not (view.dead or plan.reclaim or self._entry.id in plan.admit):
            return False
        with board.deciding() as mine:
            self._soon = not mine  # whoever decides is done in a moment
            return mine and self._decide(board.view())

    def _decide(self, view: View) -> bool:
        board = self._board
        if view.dead:
            board.bury(view)
            view = board.view()
        plan = view.plan(board.quotas)
        board.ask(plan)
        self._why = plan.waiting.get(self._entry.id, "")
        if self._entry.id not in plan.admit:
            return False
        held = board.admit(_priced(self._entry, board.quotas), view)
        if held is None:
            self._why = "the store holds more than the board shows"
            return False
        self._slot = Slot(board, held)
        logger.info("aifinops: slot %s: team %r holds %d GPUs of %s", held.id, held.team, held.gpus, held.pool)
        return True

    def _pause(self) -> float:
        """How long to wait before looking again.

        Raises:
            SlotUnavailable: when the time is over.
        """
        pause = _SOON_S if self._soon else self._poll
        if self._max_wait is None:
            return pause
        left = self._max_wait - (self._clock.monotonic_ns() - self._began) / _NS
        if left <= 0:
            raise self._refusal()
        return min(pause, left)

    def _refusal(self) -> SlotUnavailable:
        entry, quotas = self._entry, self._board.quotas
        held = 0
        try:
            held = self._board.view().held(entry.team, entry.pool)
        except StoreError as error:
            swallow("gpu.slot", error, "The refusal says so without it")
        return SlotUnavailable(
            f"team {entry.team!r} in {entry.pool}",
            unit="gpus",
            limit=Decimal(quotas.hard_limit(entry.team, entry.pool)),
            reserved=Decimal(held),
            asked=Decimal(entry.gpus),
            transient=True,
            hint=self._why,
        )

    def _entered(self) -> Slot:
        found = self._slot
        assert found is not None  # noqa: S101 - an attempt was successful
        _keeper.keep(found)
        self._tokens = current_slot.set(found), scope.enter(tags=make_tags({"team": found.team}))
        return found

    def _left(self) -> None:
        if self._tokens is not None:
            mine, tags = self._tokens
            self._tokens = None
            scope.leave(tags)
            current_slot.reset(mine)

    def _leave(self) -> None:
        """Give up the place, or the GPUs."""
        with self._alone:
            self._over = True
            held, self._slot = self._slot, None
            try:
                if held is not None:
                    held._release()
                else:
                    self._board.leave(self._entry)
            except StoreError as error:  # the others will see that nobody renews it
                swallow("gpu.slot", error)


class _Free(SlotRequest):
    """With metering turned off, everybody has what he asks for."""

    def _attempt(self) -> bool:
        self._slot = Slot(self._board, self._entry)
        return True

    def _entered(self) -> Slot:
        return Slot(self._board, self._entry)

    def _leave(self) -> None:
        self._slot = None


def _priced(entry: Entry, quotas: Quotas) -> Entry:
    """With what an hour of such a GPU costs here, for whoever looks at the board."""
    from aifinops.gpu.rates import rate
    from aifinops.gpu.where import place

    settings = runtime.get().config
    where = place(allow_network=settings.gpu_metadata, term=settings.gpu_term or "")
    found = rate(quotas.pools[entry.pool].accelerator, where, at=int(entry.beat * _NS))
    usd = None if found.usd_per_hour is None else f"{found.usd_per_hour.normalize():f}"
    return replace(entry, rate=usd, source=found.source)


# --- signs of life -----------------------------------------------------------------------------------------------------------


class _Changed:
    """Tells those of this process who wait that something was given back."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiters: set[Any] = set()

    def announce(self) -> None:
        with self._condition:
            self._condition.notify_all()
            for wake in list(self._waiters):
                wake()

    def wait(self, seconds: float) -> None:
        with self._condition:
            self._condition.wait(seconds)

    async def await_(self, seconds: float) -> None:
        import asyncio

        loop, again = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(again.set)

        with self._condition:
            self._waiters.add(wake)
        try:
            async with asyncio.timeout(seconds):
                await again.wait()
        except TimeoutError:
            pass
        finally:
            with self._condition:
                self._waiters.discard(wake)


class _Keeper:
    """One daemon thread, alive as long as the process holds a slot."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._slots: dict[str, Slot] = {}
        self._thread: threading.Thread | None = None

    def keep(self, held: Slot) -> None:
        with self._changed:
            self._slots[held.id] = held
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="aifinops-slots", daemon=True)
                self._thread.start()

    def drop(self, held: Slot) -> None:
        with self._changed:
            self._slots.pop(held.id, None)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(min((one.lease_s for one in self._slots.values()), default=0.0) / _BEATS)
                if not self._slots:
                    self._thread = None
                    return
                slots = list(self._slots.values())
            for one in slots:
                try:
                    one._beat()
                except Exception as failure:  # of the store or its driver: the next beat may come through
                    swallow("gpu.slot_beat", failure, "The slot is held as long as its lease lasts")


_changed = _Changed()
_keeper = _Keeper()


def _after_fork() -> None:
    """The slots are the parent's, and so is the thread that keeps them."""
    global _changed, _keeper
    _changed, _keeper = _Changed(), _Keeper()
    current_slot.set(None)


in_child(_after_fork)
