"""A run on GPUs: what it holds is paid for as it goes, by step and by minute, and it ends at a step before its budget does.

    start   devices, prices, budgets in force (no room: nothing begins); what a killed attempt left behind is closed
    step    look at a clock and count; every few seconds: pay the budgets in advance, is there a note to stop, how fast is it
    minute  one charge for each price, with what was measured beside it; a line in the journal
    close   the last charge; what was held in advance and not used goes back

Charged is allocated time, which is what the bill is. Busy and idle are told beside it.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from aifinops import metering, runtime, scope
from aifinops.charges import new_id
from aifinops.errors import ConfigurationError, RunStopped, swallow
from aifinops.gpu import billing, distributed, journal
from aifinops.gpu.account import Account, hourly, idle_usd
from aifinops.gpu.ending import Ending, stopped
from aifinops.gpu.idle import IdleAlarm, Stretch, stretches
from aifinops.gpu.idle import tell as tell_of_idle
from aifinops.gpu.keeper import innermost, open_runs
from aifinops.gpu.peaks import Flops, peak_given
from aifinops.gpu.phases import Pace, Phases
from aifinops.gpu.purse import Purse
from aifinops.gpu.usage import Forecast, GpuUsage, Sums, span_values, sums_of
from aifinops.ledger import path_of
from aifinops.tags import EMPTY, Tags, make_tags, merge
from aifinops.telemetry import attributes as span_attributes
from aifinops.telemetry import names

if TYPE_CHECKING:
    from aifinops.budgets.budget import ActiveBudget
    from aifinops.budgets.stores.base import Store
    from aifinops.clock import Clock
    from aifinops.errors import BudgetExceeded
    from aifinops.gpu.billing import Held
    from aifinops.gpu.events import StepEvents, StepTimes
    from aifinops.gpu.journal import Group, Lost
    from aifinops.gpu.measured import Measured
    from aifinops.gpu.slots import Slot

__all__ = ["Run", "track"]

logger = logging.getLogger("aifinops.gpu")

_NS = 1_000_000_000
_LOOK_NS = 5 * _NS
_RATES_NS = 3600 * _NS
_NEVER = 1 << 62
_LATE_NS = 600 * _NS  # ranks of one launch begin within so long


class Run:
    """One run. `with gpu.track("finetune", team="nlp") as run:`, and `run.step()` at the end of each step.

    Make it with `track`. Threads may share it; steps are counted in one.

    Attributes:
        name, run_id, attempt: which. rank: among which processes. clock: where its time comes from.
        steps: made so far. total_steps: of the whole run, None when nobody said it.
        error: why it was stopped; None as long as it may go on. lost: attempts that were killed, closed by this one.
    """

    def __init__(
        self,
        name: str = "",
        *,
        devices: Any = "auto",
        price: Any = "auto",
        run_id: str = "",
        checkpoint: Callable[[], object] | None = None,
        slice_s: float = 10.0,
        allowance_s: float = 30.0,
        total_steps: int | None = None,
        flops_per_step: float | None = None,
        peak_flops: float | str | None = None,
        idle_minutes: float | None = None,
        tags: Tags = EMPTY,
    ) -> None:
        if idle_minutes is not None and idle_minutes < 0:
            raise ConfigurationError(f"idle_minutes={idle_minutes!r} must be minutes, or 0 for never")
        if slice_s <= 0 or allowance_s < 0:
            raise ConfigurationError(
                f"slice_s={slice_s!r} must be above 0 and allowance_s={allowance_s!r} no less than 0"
            )
        self.name = name
        self.run_id = run_id
        self.attempt = 0
        self.rank = distributed.Rank()
        self.steps = 0
        self.total_steps = total_steps
        self.error: RunStopped | None = None
        self.lost: list[Lost] = []
        self.is_open = False
        self.counts_itself = (
            False  # True once `step` was called: then optimizer steps are no longer counted as its steps
        )
        self.clock: Clock = runtime.get().clock
        self._given = devices, price
        self._save = checkpoint
        self._slice_s, self._allowance_s = slice_s, allowance_s
        self._flops = Flops(flops_per_step, peak_given(peak_flops))
        self._idle_minutes = idle_minutes
        self._tags = tags
        self._lock = threading.RLock()
        self._now = self.clock.monotonic_ns
        self._due = _NEVER
        self._held: tuple[Held, ...] = ()
        self._lent: set[str] = set()  # UUIDs that another run of this process pays for at present
        self._groups: list[tuple[Group, list[Held]]] = []
        self._watch: Any = None
        self._events: StepEvents | None = None
        self._journal: journal.Journal | None = None
        self._span: Any = None
        self._scope = scope.NOTHING
        self._slot: Slot | None = None
        self._entered: list[tuple[Any, Any, Any]] = []
        self._warned = False

    # --- beginning -------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to hold and to pay; `with` does it by itself.

        Raises:
            BudgetExceeded: when a budget has no room for a first slice and the allowance; nothing has begun then.
            ConfigurationError: for devices or a price that are none, or a run that was begun before.
        """
        if self.attempt:
            raise ConfigurationError("a run begins once; make another one with gpu.track()")
        engines = runtime.get()
        self.clock, self._now = engines.clock, engines.clock.monotonic_ns
        self.rank = distributed.rank()
        named = self.run_id or distributed.run_id()
        self.run_id = named or new_id()
        self._named = bool(named)
        self._block = open_runs.block(self.run_id) if named else 0
        folder = journal.folder_beside(path_of(engines.config.ledger))
        enabled = engines.config.enabled
        now = self._mono0 = self._now()
        self._wall0 = engines.clock.time_ns()
        self.attempt = self.rank.restart + 1
        if enabled:
            self._close_lost(folder)
        self._scope = self._make_scope()
        self._slot = _innermost_slot()
        self._begin_counting(now)
        self._find(now, enabled=enabled)
        self._attempt_all(folder, self._begin_journal)  # before anything is held of a budget
        try:
            self._take_devices(now)
        except BaseException:
            if self._journal is not None:
                self._journal.close(self._wall0, keep=False)
            raise
        self._attempt_all(folder, self._begin_watch, self._begin_board, self._begin_span)
        return self

    def _attempt_all(self, folder: Any, *parts: Callable[[Any], None]) -> None:
        for part in parts:
            try:
                part(folder)
            except Exception as failure:  # it runs without that part
                swallow(f"gpu.{part.__name__.strip('_')}", failure)

    def _make_scope(self) -> scope.Scope:
        own: dict[str, object] = {"run": self.run_id, "attempt": self.attempt}
        if not self.rank.alone:
            own["rank"] = self.rank.rank
        token = scope.enter(tags=merge(self._tags, make_tags(own)))
        try:
            return scope.current()
        finally:
            scope.leave(token)

    def _begin_counting(self, now: int) -> None:
        self._from, self._part, self._window = now, 0, -1
        self._stepped = self._rated = now
        self._longest = self._told_steps = 0
        self._phases, self._pace, self._account = Phases(now), Pace(now), Account()
        self._purse = Purse(self._scope, self._slice_s, self._allowance_s)
        minutes = runtime.get().config.gpu_idle_minutes if self._idle_minutes is None else self._idle_minutes
        self._idle = IdleAlarm(60 * minutes)
        self._ending = Ending(None, self.rank.rank)
        self._ended: int | None = None

    def _find(self, now: int, *, enabled: bool) -> None:
        """The devices and their prices; where we fail to find them the loop runs all the same, unmetered."""
        try:
            found = billing.find_devices(self._given[0], self.rank)
            self._held = found if enabled else ()
            self._make_groups(now)
        except ConfigurationError:
            raise
        except Exception as failure:  # a driver or a setting that nobody has seen
            self._held, self._groups = (), []
            swallow("gpu.devices", failure)

    def _make_groups(self, now: int) -> None:
        mine = [one for one in self._held if one.device.uuid not in self._lent]
        engines = runtime.get()
        self._groups = (
            billing.groups_of(
                mine, billing.here(engines), at=self._wall(now), price=self._given[1], owner=f"rank {self.rank.rank}"
            )
            if mine
            else []
        )

    def _take_devices(self, now: int) -> None:
        """Pay for these devices from now on, in place of the runs that did."""
        mine = {one.device.uuid for one in self._held if one.device.uuid}
        with open_runs.lock:
            others = [run for run in open_runs.runs if run._lend(mine, now)] if mine else []
            try:
                self._purse.open(self._priced, now, self._journal)
            except BaseException:
                for run in others:
                    run._take_back(mine, now)
                raise
            self.is_open = True
            self._plan(now)
            open_runs.add(self)

    @property
    def _priced(self) -> list[Group]:
        return [group for group, _ in self._groups]

    def _begin_journal(self, folder: Any) -> None:
        if folder is None or not self._groups:
            return
        self._journal = journal.Journal(
            folder, self.run_id, self.rank.rank, self.attempt, self._wall0,
            name=self.name, tags=dict(self._scope.tags), groups=[group.to_json() for group in self._priced],
        )  # fmt: skip

    def _begin_watch(self, _folder: Any) -> None:
        devices = [one.device for one in self._held if one.device.uuid]
        if devices:
            from aifinops.gpu.sampler import watch

            self._watch = watch(devices)

    def _begin_board(self, folder: Any) -> None:
        if self.rank.alone or not self._purse.budgets:
            return
        key = f"gpu-stop/{self.run_id}/{distributed.launch(self.rank)}"
        shared: Store | None = self._purse.shared_store()
        board = distributed.board(shared, folder, key, self._wall0 - _LATE_NS)
        self._ending = Ending(board, self.rank.rank)

    def _begin_span(self, _folder: Any) -> None:
        engines = runtime.get()
        if engines.spans is None:
            return
        values: dict[str, Any] = {}
        span_attributes.add_tags(values, engines.tags(self._scope))
        self._span = engines.spans.start_block(f"gpu {self.name}".strip(), values, self._wall0)

    def _close_lost(self, folder: Any) -> None:
        """Which attempt this is; and write down what processes that were killed have held to their end."""
        try:
            self.attempt = journal.next_attempt(folder, self.run_id, self.rank.rank, self.rank.restart)
            for one in journal.lost_attempts(folder, self.run_id, self.rank.rank, self._wall0):
                billing.charge_lost(one, scope.current())
                billing.settle_lost(one, scope.current())
                if one.run == self.run_id:
                    self.lost.append(one)
                usd = "" if one.wasted_usd is None else f", {one.wasted_usd:.4f} USD"
                logger.warning(
                    "aifinops: attempt %d of run %r (rank %d) was lost after step %d: %s device-seconds%s since its last checkpoint are wasted",
                    one.attempt, one.run, one.rank, one.steps, f"{one.wasted_s:.1f}", usd,
                )  # fmt: skip
        except Exception as failure:  # this attempt begins all the same
            swallow("gpu.lost", failure)

    # --- while it runs ---------------------------------------------------------------------------------------------------

    def step(self, *, flops: float | None = None) -> None:
        """A step has ended.

        Args:
            flops: of the model in this step on this rank, for MFU; default: `flops_per_step`.

        Raises:
            RunStopped: when the budget has no more room than it takes to end here. Before that the checkpoint callback was called.
        """
        if not self.advance(flops=flops) and self.error is not None:
            raise self.error

    def advance(self, *, flops: float | None = None) -> bool:
        """`step` for loops that end by themselves: False when it is over. What `checkpoint` is for has been done then."""
        if not self.counts_itself:
            self.counts_itself = True
            self.steps = self._told_steps = 0
        if flops is not None:
            self._flops.add(flops)
        return self._count()

    def optimizer_step(self) -> None:
        """What the hook in torch calls: a step, as long as nobody counts them by `step`; raises like `step`."""
        if not self.counts_itself and not self._count() and self.error is not None:
            raise self.error

    def _count(self) -> bool:
        # The hot path: a clock and a counter.
        now = self._now()
        self.steps += 1
        if self._events is not None:
            self._events.leave()
        took = now - self._stepped
        self._stepped = now
        if took > self._longest:
            if self._phases.first_step is None:
                self._phases.first(now)
                self._due = 0
            else:
                self._longest = took
        return now < self._due or self._look(now)

    def waited(self, start: int, end: int) -> None:
        """The loop has waited for data from one moment to another, of the monotonic clock."""
        if not self._phases.inside:
            self._phases.wait(start, end)
            if self._events is not None:
                self._events.enter()

    @property
    def should_stop(self) -> bool:
        """Whether the end of this run is decided: by a budget, at this step or, where several ranks stop together, at one that comes."""
        return self.error is not None or self._ending.decided or self._purse.refusal is not None

    def should_yield(self) -> bool:
        """Whether to save and give the devices back: the end is decided, or whoever governs them wants them for somebody else."""
        if self.should_stop:
            return True
        slot = _innermost_slot()
        return slot is not None and slot.should_yield()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time that is no step: `restore`, `eval`, `checkpoint_save`, `idle`, or a name of your own. In a span of its own."""
        span = self._phase_span(name)
        attached = metering.attach_span(span)
        self._enter_phase(name)
        failed: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failed = error
            raise
        finally:
            self._leave_phase()
            metering.detach_span(attached)
            if span is not None:
                metering.end_block_span(span, {}, failed)

    def timed(self, name: str) -> Timed:
        """`phase` for callbacks, which are told of beginning and end apart; end it with its `end()`."""
        return Timed(self, name)

    def _phase_span(self, name: str) -> Any:
        try:
            engines = runtime.get()
            if engines.spans is None:
                return None
            values: dict[str, Any] = {names.PHASE: name, names.TAGS["run"]: self.run_id}
            return engines.spans.start_block(f"gpu {name}", values, engines.clock.time_ns())
        except Exception as failure:  # a phase without a span
            swallow("gpu.phase_span", failure)
            return None

    def _enter_phase(self, name: str) -> None:
        if self._events is not None and not self._phases.inside:
            self._events.pause()
        self._phases.enter(name, self._now())

    def _leave_phase(self) -> int:
        """Nanoseconds that the phase took in all."""
        now = self._now()
        took = self._phases.leave(now)
        if not self._phases.inside:
            self._stepped = now  # it is no part of a step
        return took

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """`with run.checkpoint(): save()`: what was done until now is safe, and how long it takes to save is kept back of the budget."""
        began = self._now()
        with self.phase("checkpoint_save"):
            yield
        self.checkpointed(seconds=(self._now() - began) / _NS)

    def checkpointed(self, seconds: float = 0.0) -> None:
        """A checkpoint was written: what comes after it is wasted if the run is killed.

        Args:
            seconds: that it took, where no `phase` has seen it.
        """
        with self._lock:
            now = self._now()
            if seconds:
                self._purse.saved(seconds)
            self._account.save(self._priced, self._uncharged(now))
            if self._journal is not None:
                self._journal.note(self._wall(now), checkpoint=self._wall(now), step=self.steps)

    # --- every few seconds -----------------------------------------------------------------------------------------------

    def _look(self, now: int) -> bool:
        if self.error is not None:
            return False
        if not self.is_open:
            self._due = _NEVER
            return True
        try:
            with self._lock:
                self._work(now)
            step_s = self._pace.step_s or self._longest / _NS
            refusal = self._ending.judge(now, self.steps, self._purse.refusal, step_s)
            self._plan(now)
        except Exception as failure:  # the loop is the user's
            self._due = now + _NS
            swallow("gpu.look", failure)
            return True
        if refusal is None:
            return True
        self._stop(refusal)
        return False

    def budget_entered(self, active: ActiveBudget) -> None:
        """A block with a budget was entered inside of this run: whether it pays for it is seen at the end of the next step."""
        if self.is_open:
            self._purse.entered(active, self._now())
            self._due = 0

    def budget_left(self, active: ActiveBudget) -> None:
        """A block with a budget was left, in whatever thread: it pays no longer."""
        with self._lock:
            if self.is_open:
                self._purse.left(active, self._now())

    def _take_budgets(self, now: int) -> None:
        """Pay the budgets, too, that are in force here and were not when the run began."""
        if self.should_stop:
            return
        new = self._purse.take(scope.current().budgets, now, self._mono0)
        if new and not self._ending.together:
            self._begin_board(journal.folder_beside(path_of(runtime.get().config.ledger)))

    def _work(self, now: int) -> None:
        self._take_budgets(now)
        if self._phases.first_step is not None:
            self._pace.note(now, self.steps, self._phases.outside)
        if self._events is None:
            self._begin_events()
        self._purse.tick(self._ending.way(self._longest, self._pace.step_s))
        if now >= self._cut_due:
            self._cut(now)
            self._plan(now)

    def _begin_events(self) -> None:
        """Once the framework has the device in use. Of several devices in one process its stream tells nothing of the others."""
        if len(self._held) == 1 and self._held[0].device.uuid:
            from aifinops.gpu.events import for_device

            self._events = for_device(self._held[0].device)

    def _plan(self, now: int) -> None:
        """When to look again: at each step once it is to end."""
        self._cut_due = (
            self._mono0 + (self._wall(self._from) // billing.WINDOW_NS + 1) * billing.WINDOW_NS - self._wall0
        )
        due = min(now + _LOOK_NS, self._cut_due, max(self._purse.due, now + _NS // 1000))
        if self._ending.together:
            due = min(due, self._ending.due)
        self._due = 0 if self.should_stop else due

    def _stop(self, refusal: BudgetExceeded) -> None:
        """Save, and let `step` say why."""
        self._due = 0
        error = stopped(refusal, self.steps)
        if self._save is not None:
            with self.checkpoint():
                self._save()
        self.error = error

    def beat(self) -> None:
        """What the thread does that keeps runs: a new lease while a step is long, a sign of life, the charge of the minute."""
        with self._lock:
            if not self.is_open:
                return
            now = self._now()
            self._purse.tick()
            if self._purse.refusal is not None:
                self._due = 0
            if self._journal is not None:
                self._journal.beat(self._wall(now))
            if now >= self._cut_due:
                self._cut(now)
                self._plan(now)

    # --- every minute ----------------------------------------------------------------------------------------------------

    def _wall(self, now: int) -> int:
        """The wall clock as it was at the beginning, moved on by the monotonic one: stretches join without gaps."""
        return self._wall0 + now - self._mono0

    def _cut(self, now: int) -> None:
        """Charge everything up to now."""
        start, length = self._from, now - self._from
        if length <= 0 or not self._groups:
            self._from = now
            return
        at = self._wall(start)
        window = at // billing.WINDOW_NS
        self._part = self._part + 1 if window == self._window else 0
        self._from, self._window = now, window
        facts = self._facts(now)
        seen: list[Stretch] = []
        for group, members in self._groups:
            readings = self._readings(members, start, now)
            seen += stretches(group, members, readings, length / _NS)
            try:
                self._charge(group, at, length, sums_of(members, readings), facts)
            except Exception as failure:  # the next group is charged all the same
                swallow("gpu.charge", failure)
        self._look_for_idle(seen)
        if self._journal is not None:
            self._journal.note(
                self._wall(now), at=self._wall(now), allocated_s=str(self._account.device_s), steps=self.steps,
                groups=[group.to_json() for group in self._priced],
            )  # fmt: skip
        self._foresee()
        if now - self._rated >= _RATES_NS:
            self._rate_again(now)

    def _charge(self, group: Group, at: int, length: int, sums: Sums, facts: Mapping[str, Any]) -> None:
        seconds = Decimal(length).scaleb(-9)
        busy, allocated = sums.get("busy_s"), group.held * seconds
        idle_s, idle = idle_usd(group, seconds, busy)
        about = {**facts, **sums.facts(), **({} if idle is None else {"idle_usd": str(idle)})}
        if self.name:
            about["name"] = self.name
        made = billing.charge(
            group, self._scope, key=f"{self.run_id}|{self.attempt}|{self._block}", at=at, length=length, part=self._part,
            facts=about, paid=self._purse.keys,
        )  # fmt: skip
        self._account.add(allocated, made.cost.amount, idle, sums)
        if self._slot is not None:  # for `aifinops gpu top`
            self._slot.measured(self._account.sums.get("busy_s"), float(self._account.device_s))
        states = {"allocated": float(allocated)}
        if busy is not None:
            states |= {"busy": busy, "idle": float(idle_s or 0)}
        if stall := facts["phases"].get("data_wait"):
            states["stall"] = stall * float(group.held)
        runtime.get().metrics.gpu_time(made, states)

    def _facts(self, now: int) -> dict[str, Any]:
        """Steps and phases since the last charge."""
        steps, self._told_steps = self.steps - self._told_steps, self.steps
        return {"steps": steps, "phases": self._phases.news(now)}

    def _readings(self, members: list[Held], start: int, end: int) -> list[Measured | None]:
        """What each of some devices did; None for one that nobody can ask."""
        found: list[Measured | None] = []
        for one in members:
            try:
                known = self._watch is not None and one.device.uuid
                found.append(self._watch.between(one.device, start, end) if known else None)
            except Exception as failure:  # allocated time needs no driver
                swallow("gpu.measure", failure)
                found.append(None)
        return found

    def _look_for_idle(self, found: list[Stretch]) -> None:
        try:
            idle = self._idle.note(found)
            if idle:
                tell_of_idle(self.name or self.run_id, idle, self._span)
        except Exception as failure:  # it is only said
            swallow("gpu.idle", failure)

    def _foresee(self) -> None:
        """Say once that the budget will end before the run does."""
        if self._warned or self.total_steps is None or not self._purse.budgets:
            return
        ahead = self.estimate_remaining(self.total_steps)
        if ahead.ends_before_limit is False:
            self._warned = True
            logger.warning(
                "aifinops: run %r will be stopped by its budget at about step %d of %d",
                self.name or self.run_id, ahead.last_step, self.total_steps,
            )  # fmt: skip

    def _rate_again(self, now: int) -> None:
        """Prices of the spot market move: an hour is long enough."""
        self._rated = now
        before = [group.usd_per_hour for group in self._priced]
        self._make_groups(now)
        if [group.usd_per_hour for group in self._priced] != before:
            logger.info("aifinops: the price of run %r has changed", self.name or self.run_id)
            self._reopen(now)

    def _reopen(self, now: int) -> None:
        self._purse.reopen(self._priced, now)
        if self._purse.refusal is not None:
            self._due = 0

    def _lend(self, uuids: set[str], now: int) -> bool:
        """Another run of this process pays for these devices from now on; True when some were ours."""
        with self._lock:
            taken = {uuid for group in self._priced for uuid in group.uuids} & uuids
            if taken:
                self._cut(now)
                self._lent |= taken
                self._make_groups(now)
                self._reopen(now)
            return bool(taken)

    def _take_back(self, uuids: set[str], now: int) -> None:
        with self._lock:
            if self.is_open and self._lent & uuids:
                self._cut(now)
                self._from = now
                self._lent -= uuids
                self._make_groups(now)
                self._reopen(now)
                self._plan(now)

    # --- figures ---------------------------------------------------------------------------------------------------------

    def _uncharged(self, now: int) -> Decimal:
        """Seconds since the last charge."""
        return Decimal(0) if self._ended is not None else Decimal(now - self._from).scaleb(-9)

    def usage(self) -> GpuUsage:
        """What the run has used so far, with what is not charged yet."""
        with self._lock:
            now = self._now() if self._ended is None else self._ended
            seconds, account = self._uncharged(now), self._account
            allocated, cost = account.with_open(self._priced, seconds)
            sums, idle = self._with_open(now, seconds)
            models: dict[str, int] = {}
            for one in self._held:
                models[one.device.name] = models.get(one.device.name, 0) + 1
            price = self._groups[0][0] if self._groups else None
            known = busy = sums.get("busy_s")
            source = sums.source
            timed = self._timed()
            if busy is None and timed is not None:  # an upper bound, where the driver knows nothing
                busy, source = timed.step_s * self._held[0].device.share, "cuda_event"
            return GpuUsage(
                run=self.run_id,
                attempt=self.attempt,
                rank=self.rank.rank,
                world=self.rank.world,
                models=models,
                uuids=tuple(one.device.uuid for one in self._held if one.device.uuid),
                elapsed_s=(now - self._mono0) / _NS,
                allocated_s=allocated,
                busy_s=busy,
                busy_source=source,
                busy_error_s=sums.error if sums.spans else None,
                sm_active_s=sums.get("sm_active_s"),
                tensor_active_s=sums.get("tensor_active_s"),
                memory_gib_s=sums.get("memory_gib_s"),
                energy_j=sums.get("energy_j"),
                attribution=sums.attribution,
                stall_s=self._phases.waited / _NS,
                device_stall_s=None if timed is None else timed.stall_s,
                steps=self.steps,
                mfu=self._flops.mfu(self.steps, allocated, self._held),
                cost=cost,
                idle_cost=None if known is None else idle,
                usd_per_hour=hourly(self._priced),
                price_as_of=price.as_of if price else "",
                price_source=price.source if price else "",
                wasted_s=allocated - account.saved_s,
                wasted_cost=None if cost is None else cost - account.saved_cost,
                phases={name: ns / _NS for name, ns in self._phases.totals(now).items()},
            )

    def _timed(self) -> StepTimes | None:
        """Steps by events of the device; None where there were none."""
        timed = None if self._events is None else self._events.times()
        return timed if timed is not None and timed.steps else None

    def _with_open(self, now: int, seconds: Decimal) -> tuple[Sums, Decimal | None]:
        """(measured figures, idle money) with what is not charged yet."""
        sums, idle = Sums(), self._account.idle
        sums.merge(self._account.sums)
        for group, members in self._groups if self._ended is None else ():
            part = sums_of(members, self._readings(members, self._from, now))
            more = idle_usd(group, seconds, part.get("busy_s"))[1]
            idle = None if idle is None or more is None else idle + more
            sums.merge(part)
        return sums, idle

    def estimate_remaining(self, total_steps: int | None = None) -> Forecast:
        """Where the run ends if it goes on as it did lately: a moving average over five minutes of what a step takes and costs.

        Args:
            total_steps: of the whole run; default: what `track` was given.

        Raises:
            ConfigurationError: when nobody has said how many steps there are.
        """
        total_steps = self.total_steps if total_steps is None else total_steps
        if total_steps is None:
            raise ConfigurationError("estimate_remaining() needs total_steps= here or in gpu.track()")
        with self._lock:
            left = max(0, total_steps - self.steps)
            step_s = self._pace.step_s or self._mean_step_s()
            usd = hourly(self._priced, 1)
            lasts, kept = self._purse.lasts()
        seconds = None if step_s is None else left * step_s
        per_step = None if usd is None or step_s is None else usd * Decimal(repr(step_s))
        fits = None if seconds is None or lasts is None else seconds <= lasts
        last = total_steps
        if fits is False and step_s and lasts is not None:
            last = min(total_steps, self.steps + int(max(0.0, lasts - kept) / step_s))
        return Forecast(left, seconds, per_step, None if per_step is None else per_step * left, lasts, fits, last)

    def _mean_step_s(self) -> float | None:
        """Before there was a look: the mean since the first step."""
        first = self._phases.first_step
        if first is None or self.steps < 2:
            return None
        return (self._stepped - first - self._phases.outside) / (self.steps - 1) / _NS

    def gather(self, *, timeout_s: float = 30.0) -> list[GpuUsage]:
        """The usage of every rank, on every rank: to be called on all of them once the loop is over. `aifinops.gpu.total` adds them up."""
        found: list[GpuUsage] = distributed.gather(self.usage(), timeout_s=timeout_s)
        return found

    # --- the end ---------------------------------------------------------------------------------------------------------

    def close(self, error: BaseException | None = None) -> None:
        """Pay up to now and hold no more; a second time it does nothing.

        Args:
            error: what ended it, for its span.
        """
        with open_runs.lock, self._lock:
            if not self.is_open:
                return
            self.is_open = False
            now = self._now()
            mine = {one.device.uuid for one in self._held if one.device.uuid} - self._lent
            endings: list[tuple[str, Callable[[], object]]] = [
                ("cut", lambda: self._cut(now)),
                ("budget", lambda: self._purse.close(now)),
                ("finish", lambda: self._finish(now)),
                ("journal", lambda: self._close_journal(now, error)),
                ("watch", lambda: self._watch.close() if self._watch is not None else None),
                ("span_end", lambda: self._end_span(error)),
            ]
            for name, end in endings:
                try:
                    end()
                except Exception as failure:  # the others end all the same
                    swallow(f"gpu.{name}", failure)
            open_runs.remove(self)
            for run in reversed(open_runs.runs):
                if mine & run._lent:
                    run._take_back(mine & run._lent, now)
                    mine -= {uuid for group in run._priced for uuid in group.uuids}

    def _finish(self, now: int) -> None:
        self._ended = now
        self._due = 0 if self.error is not None else _NEVER

    def _close_journal(self, now: int, error: BaseException | None) -> None:
        if self._journal is not None:
            self._journal.close(self._wall(now), "" if error is None else type(error).__name__, keep=self._named)

    def _end_span(self, error: BaseException | None) -> None:
        if self._span is None:
            return
        metering.end_block_span(self._span, span_values(self.usage(), len(self._held)), error)

    def forget(self) -> None:
        """In a forked child: nothing of it is ours."""
        self._lock = threading.RLock()
        self.is_open = False
        self._due = _NEVER
        self._groups, self._held = [], ()
        self._watch = self._span = None
        self._purse.forget()
        self._ending = Ending(None, 0)
        mine, self._journal = self._journal, None
        if mine is not None:
            mine.abandon()

    def attach(self) -> Token[Run | None]:
        """Steps of this context are its steps; the token for `detach`."""
        return innermost.set(self)

    @staticmethod
    def detach(token: Token[Run | None]) -> None:
        """Undo `attach`."""
        try:
            innermost.reset(token)
        except ValueError:  # left in another context, which is gone
            innermost.set(None)

    # --- as a block ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        token = scope.enter(tags=self._scope.tags, span=self._span)
        self._entered.append((token, metering.attach_span(self._span), self.attach()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, attached, outer = self._entered.pop()
        self.detach(outer)
        metering.detach_span(attached)
        scope.leave(token)
        self.close(error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class Timed:
    """A phase that has begun."""

    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self._span = run._phase_span(name)
        run._enter_phase(name)

    def end(self) -> float:
        """The phase is over; the seconds that it took."""
        took = self._run._leave_phase()
        if self._span is not None:
            metering.end_block_span(self._span, {}, None)
        return took / _NS


def _innermost_slot() -> Slot | None:
    """The slot that this code is in; who never asked for one has none loaded."""
    slots = sys.modules.get("aifinops.gpu.slots")
    return None if slots is None else slots.current_slot.get()


def track(
    name: str = "",
    *,
    devices: Any = "auto",
    price: Any = "auto",
    run_id: str = "",
    checkpoint: Callable[[], object] | None = None,
    slice_s: float = 10.0,
    allowance_s: float = 30.0,
    total_steps: int | None = None,
    flops_per_step: float | None = None,
    peak_flops: float | str | None = None,
    idle_minutes: float | None = None,
    **tags: object,
) -> Run:
    """A run that pays for the GPUs that it holds: `with gpu.track("finetune", team="nlp") as run:`.

    Args:
        name: of the run and its span.
        devices: `"auto"` for those that this process may use, divided among the ranks of this machine; `"visible"` for all, undivided; a
            list of devices; or a mapping of model to count, `{"NVIDIA H100 80GB HBM3": 8}`, where no driver can be asked.
        price: USD an hour of one device, or `"auto"` for what the price lists say of this machine.
        run_id: the name that all ranks and attempts share; default: `AIFINOPS_RUN_ID`, `TORCHELASTIC_RUN_ID`, `SLURM_JOB_ID`, `JOB_UUID`.
        checkpoint: called when a budget ends the run, before `RunStopped` is raised; on every rank, at the same step.
        slice_s: how much is paid in advance, seconds. allowance_s: what a step and a checkpoint take; longer ones that are seen raise it.
        total_steps: of the whole run, for a warning when the budget will end before it.
        flops_per_step: of the model on this rank, for MFU; where steps differ, say it to each: `run.step(flops=...)`.
        peak_flops: of one device in a second, or the precision (`"bf16"`, `"fp16"`, `"tf32"`, `"fp8"`) whose figure `aifinops.gpu.peaks`
            has; default: BF16, FP16 where there is none.
        idle_minutes: after so many minutes in which a device did nothing that is said once, with what it costs; 0 for never; default: the
            setting `gpu_idle_minutes`, 15.
        **tags: whose cost it is.

    Raises:
        ConfigurationError: for a tag that is not valid.
    """
    return Run(
        name, devices=devices, price=price, run_id=run_id, checkpoint=checkpoint, slice_s=slice_s, allowance_s=allowance_s,
        total_steps=total_steps, flops_per_step=flops_per_step, peak_flops=peak_flops, idle_minutes=idle_minutes, tags=make_tags(tags),
    )  # fmt: skip
