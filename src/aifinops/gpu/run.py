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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from aifinops import metering, runtime, scope
from aifinops.charges import new_id
from aifinops.errors import ConfigurationError, RunStopped, swallow
from aifinops.gpu import distributed, journal
from aifinops.gpu.account import hourly
from aifinops.gpu.ending import Ending, stopped
from aifinops.gpu.figures import forecast, usage_of
from aifinops.gpu.keeper import innermost, open_runs
from aifinops.gpu.lost import close_lost
from aifinops.gpu.meter import Meter
from aifinops.gpu.options import Options
from aifinops.gpu.peaks import Flops, peak_given
from aifinops.gpu.phases import Pace, Phases
from aifinops.gpu.purse import Purse
from aifinops.gpu.spans import phase_span, run_span
from aifinops.gpu.usage import Forecast, GpuUsage, span_values
from aifinops.ledger import path_of
from aifinops.tags import EMPTY, Tags, make_tags, merge

if TYPE_CHECKING:
    from aifinops.budgets.budget import ActiveBudget
    from aifinops.budgets.stores.base import Store
    from aifinops.clock import Clock
    from aifinops.errors import BudgetExceeded
    from aifinops.gpu.carbon import Co2
    from aifinops.gpu.events import StepEvents
    from aifinops.gpu.journal import Lost
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

    def __init__(self, name: str = "", *, tags: Tags = EMPTY, **options: Any) -> None:
        self._options = told = Options(**options)
        self.name = name
        self.run_id = told.run_id
        self.attempt = 0
        self.rank = distributed.Rank()
        self.steps = 0
        self.total_steps = told.total_steps
        self.error: RunStopped | None = None
        self.lost: list[Lost] = []
        self.is_open = False
        # True once `step` was called: then optimizer steps are no longer counted as its steps.
        self.counts_itself = False
        self.clock: Clock = runtime.get().clock
        self._flops = Flops(told.flops_per_step, peak_given(told.peak_flops))
        self._tags = tags
        self._lock = threading.RLock()
        self._now = self.clock.monotonic_ns
        self._due = _NEVER
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
        block = open_runs.block(self.run_id) if named else 0
        folder = journal.folder_beside(path_of(engines.config.ledger))
        enabled = engines.config.enabled
        now, wall = self._now(), engines.clock.time_ns()
        self.attempt = self.rank.restart + 1
        if enabled:
            self.attempt, self.lost = close_lost(folder, self.run_id, self.rank, wall, scope.current())
        self._scope = self._make_scope()
        self._slot = _innermost_slot()
        self._meter = Meter(
            self._options, self.rank, self._scope, name=self.name, label=self.name or self.run_id,
            key=f"{self.run_id}|{self.attempt}|{block}", now=now, wall=wall,
        )  # fmt: skip
        self._begin_counting(now)
        self._meter.find(now, enabled=enabled)
        self._attempt_all(folder, self._begin_journal)  # before anything is held of a budget
        try:
            self._take_devices(now)
        except BaseException:
            if self._journal is not None:
                self._journal.close(wall, keep=False)
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
        self._stepped = now
        self._longest = self._told_steps = 0
        self._phases, self._pace = Phases(now), Pace(now)
        self._purse = Purse(self._scope, self._options.slice_s, self._options.allowance_s)
        self._ending = Ending(None, self.rank.rank)

    def _take_devices(self, now: int) -> None:
        """Pay for these devices from now on, in place of the runs that did."""
        mine = self._meter.uuids
        with open_runs.lock:
            others = [run for run in open_runs.runs if run._lend(mine, now)] if mine else []
            try:
                self._purse.open(self._meter.priced, now, self._journal)
            except BaseException:
                for run in others:
                    run._take_back(mine, now)
                raise
            self.is_open = True
            self._plan(now)
            open_runs.add(self)

    def _begin_journal(self, folder: Any) -> None:
        if folder is None or not self._meter.priced:
            return
        self._journal = journal.Journal(
            folder, self.run_id, self.rank.rank, self.attempt, self._meter.began,
            name=self.name, tags=dict(self._scope.tags), groups=[group.to_json() for group in self._meter.priced],
        )  # fmt: skip

    def _begin_watch(self, _folder: Any) -> None:
        self._meter.begin_watch()

    def _begin_board(self, folder: Any) -> None:
        if self.rank.alone or not self._purse.budgets:
            return
        key = f"gpu-stop/{self.run_id}/{distributed.launch(self.rank)}"
        shared: Store | None = self._purse.shared_store()
        board = distributed.board(shared, folder, key, self._meter.began - _LATE_NS)
        self._ending = Ending(board, self.rank.rank)

    def _begin_span(self, _folder: Any) -> None:
        self._span = self._meter.span = run_span(self.name, self._scope, self._meter.began)

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
        span = phase_span(name, self.run_id)
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
            self._meter.saved(now)
            if self._journal is not None:
                at = self._meter.wall(now)
                self._journal.note(at, checkpoint=at, step=self.steps)

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
        new = self._purse.take(scope.current().budgets, now, self._meter.started)
        if new and not self._ending.together:
            self._begin_board(journal.folder_beside(path_of(runtime.get().config.ledger)))

    def _work(self, now: int) -> None:
        self._take_budgets(now)
        if self._phases.first_step is not None:
            self._pace.note(now, self.steps, self._phases.outside)
        if self._events is None:
            self._begin_events()
        self._purse.tick(self._ending.way(self._longest, self._pace.step_s))
        if now >= self._meter.due:
            self._cut(now)
            self._plan(now)

    def _begin_events(self) -> None:
        """Once the framework has the device in use. Of several devices in one process its stream tells nothing of the others."""
        held = self._meter.devices
        if len(held) == 1 and held[0].device.uuid:
            from aifinops.gpu.events import for_device

            self._events = for_device(held[0].device)

    def _plan(self, now: int) -> None:
        """When to look again: at each step once it is to end."""
        due = min(now + _LOOK_NS, self._meter.due, max(self._purse.due, now + _NS // 1000))
        if self._ending.together:
            due = min(due, self._ending.due)
        self._due = 0 if self.should_stop else due

    def _stop(self, refusal: BudgetExceeded) -> None:
        """Save, and let `step` say why."""
        self._due = 0
        error = stopped(refusal, self.steps)
        save = self._options.checkpoint
        if save is not None:
            with self.checkpoint():
                save()
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
                self._journal.beat(self._meter.wall(now))
            if now >= self._meter.due:
                self._cut(now)
                self._plan(now)

    # --- every minute ----------------------------------------------------------------------------------------------------

    def _cut(self, now: int) -> None:
        """Charge everything up to now."""
        meter = self._meter
        if not meter.cut(now, lambda: self._facts(now), self._purse.keys):
            return
        if self._slot is not None and meter.devices:  # for `aifinops gpu top`
            self._slot.measured(meter.account.sums.get("busy_s"), float(meter.account.device_s))
        if self._journal is not None:
            self._journal.note(
                meter.wall(now), at=meter.wall(now), allocated_s=str(meter.account.device_s + meter.account.cpu_s), steps=self.steps,
                groups=[group.to_json() for group in meter.priced],
            )  # fmt: skip
        self._foresee()
        if meter.rate_again(now):
            logger.info("aifinops: the price of run %r has changed", self.name or self.run_id)
            self._reopen(now)

    def _facts(self, now: int) -> dict[str, Any]:
        """Steps and phases since the last charge."""
        steps, self._told_steps = self.steps - self._told_steps, self.steps
        return {"steps": steps, "phases": self._phases.news(now)}

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

    def _reopen(self, now: int) -> None:
        self._purse.reopen(self._meter.priced, now)
        if self._purse.refusal is not None:
            self._due = 0

    def _lend(self, uuids: set[str], now: int) -> bool:
        """Another run of this process pays for these devices from now on; True when some were ours."""
        with self._lock:
            taken = {uuid for group in self._meter.priced for uuid in group.uuids} & uuids
            if taken:
                self._cut(now)
                self._meter.lend(taken, now)
                self._reopen(now)
            return bool(taken)

    def _take_back(self, uuids: set[str], now: int) -> None:
        with self._lock:
            if self.is_open and self._meter.lent & uuids:
                self._cut(now)
                self._meter.take_back(uuids, now)
                self._reopen(now)
                self._plan(now)

    # --- figures ---------------------------------------------------------------------------------------------------------

    def usage(self) -> GpuUsage:
        """What the run has used so far, with what is not charged yet."""
        with self._lock:
            now = self._now() if self._meter.ended is None else self._meter.ended
            return usage_of(
                self._meter, self._phases, self._events, self._flops, now,
                run=self.run_id, attempt=self.attempt, rank=self.rank, steps=self.steps,
            )  # fmt: skip

    @property
    def co2(self) -> Co2 | None:
        """What the electricity of its devices has emitted so far; None where their energy or the region is unknown. `usage()` has it, too."""
        return self.usage().co2

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
            step_s = self._pace.step_s or self._mean_step_s()
            lasts, kept = self._purse.lasts()
            return forecast(self.steps, total_steps, step_s, hourly(self._meter.priced, 1), lasts, kept)

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
            mine = self._meter.uuids - self._meter.lent
            endings: list[tuple[str, Callable[[], object]]] = [
                ("cut", lambda: self._cut(now)),
                ("budget", lambda: self._purse.close(now)),
                ("finish", lambda: self._finish(now)),
                ("journal", lambda: self._close_journal(now, error)),
                ("watch", lambda: self._meter.watch.close() if self._meter.watch is not None else None),
                ("span_end", lambda: self._end_span(error)),
            ]
            for name, end in endings:
                try:
                    end()
                except Exception as failure:  # the others end all the same
                    swallow(f"gpu.{name}", failure)
            open_runs.remove(self)
            for run in reversed(open_runs.runs):
                lent = mine & run._meter.lent
                if lent:
                    run._take_back(lent, now)
                    mine -= {uuid for group in run._meter.priced for uuid in group.uuids}

    def _finish(self, now: int) -> None:
        self._meter.ended = now
        self._due = 0 if self.error is not None else _NEVER

    def _close_journal(self, now: int, error: BaseException | None) -> None:
        if self._journal is not None:
            self._journal.close(self._meter.wall(now), "" if error is None else type(error).__name__, keep=self._named)

    def _end_span(self, error: BaseException | None) -> None:
        if self._span is None:
            return
        metering.end_block_span(self._span, span_values(self.usage(), len(self._meter.devices)), error)

    def forget(self) -> None:
        """In a forked child: nothing of it is ours."""
        self._lock = threading.RLock()
        self.is_open = False
        self._due = _NEVER
        self._meter.forget()
        self._span = None
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
        self._span = phase_span(name, run.run_id)
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
        devices: `"auto"` for those that this process may use, divided among the ranks of this machine, and on a machine without any for its
            processors; `"visible"` for all devices, undivided; `"cpu"` for the processors; a list of devices, which may be empty; or a mapping
            of model to count, `{"NVIDIA H100 80GB HBM3": 8}`, where no driver can be asked.
        price: USD an hour of one device (with `"cpu"` of one vCPU), or `"auto"` for what the price lists say of this machine.
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
