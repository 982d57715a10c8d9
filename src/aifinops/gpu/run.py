"""A run on GPUs: what it holds is paid for as it goes, by step and by minute, and it ends at a step before its budget does.

    start   devices, prices, budgets in force (no room: nothing begins); what a killed attempt left behind is closed
    step    look at a clock and count; every few seconds: pay the budgets in advance, is there a note to stop, how fast is it
    minute  one charge for each price, with what was measured beside it; a line in the journal
    close   the last charge; what was held in advance and not used goes back

Charged is allocated time, which is what the bill is. Busy and idle are told beside it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from aifinops import metering, runtime, scope
from aifinops.budgets.budget import MICRO
from aifinops.budgets.prepaid import Prepaid
from aifinops.budgets.waiting import Wait
from aifinops.charges import new_id
from aifinops.errors import BudgetExceeded, ConfigurationError, RunStopped, StoreError, UnknownModel, swallow
from aifinops.gpu import billing, distributed, journal
from aifinops.gpu.keeper import innermost, open_runs
from aifinops.gpu.usage import Forecast, GpuUsage, Sums
from aifinops.ledger import path_of
from aifinops.tags import EMPTY, Tags, make_tags, merge
from aifinops.telemetry import attributes as span_attributes
from aifinops.telemetry import names

if TYPE_CHECKING:
    from aifinops.budgets.budget import ActiveBudget
    from aifinops.clock import Clock
    from aifinops.gpu.billing import Held
    from aifinops.gpu.journal import Group, Lost

__all__ = ["Run", "track"]

logger = logging.getLogger("aifinops.gpu")

_NS = 1_000_000_000
_LOOK_NS = 5 * _NS
_RATES_NS = 3600 * _NS
_MEMORY_S = 300.0
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
        peak_flops: float | None = None,
        tags: Tags = EMPTY,
    ) -> None:
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
        self._flops = flops_per_step, peak_flops
        self._tags = tags
        self._lock = threading.RLock()
        self._now = self.clock.monotonic_ns
        self._due = _NEVER
        self._prepaid: Prepaid | None = None
        self._refusal: BudgetExceeded | None = None
        self._paid: frozenset[str] = frozenset()
        self._budgets: tuple[ActiveBudget, ...] = ()
        self._held: tuple[Held, ...] = ()
        self._lent: set[str] = set()  # UUIDs that another run of this process pays for at present
        self._groups: list[tuple[Group, list[Held]]] = []
        self._watch: Any = None
        self._journal: journal.Journal | None = None
        self._board: distributed.StopBoard | None = None
        self._note: dict[str, Any] | None = None
        self._board_due = 0
        self._span: Any = None
        self._scope = scope.NOTHING
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
        folder = journal.folder_beside(path_of(engines.config.ledger))
        enabled = engines.config.enabled
        now = self._mono0 = self._now()
        self._wall0 = engines.clock.time_ns()
        if enabled:
            self._close_lost(folder)
        self.attempt = journal.next_attempt(folder, self.run_id, self.rank.rank, self.rank.restart)
        self._scope = self._make_scope()
        found = billing.find_devices(self._given[0], self.rank)
        self._held = found if enabled else ()
        self._begin_counting(now)
        self._make_groups(now)
        self._take_devices(now)
        self.is_open = True
        for step in (self._begin_journal, self._begin_watch, self._begin_board, self._begin_span):
            try:
                step(folder)
            except Exception as failure:  # it runs without that part
                swallow(f"gpu.{step.__name__.strip('_')}", failure)
        self._plan(now)
        open_runs.add(self)
        return self

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
        self._stepped = self._looked = now
        self._longest = 0
        self._hooked = 0
        self._first_step: int | None = None
        self._waited = 0
        self._explicit: dict[str, int] = {}
        self._stack: list[list[Any]] = []
        self._looked_steps = 0
        self._outside = self._looked_outside = 0  # nanoseconds in phases of their own
        self._step_s: float | None = None
        self._device_s = Decimal(0)
        self._cost: Decimal | None = Decimal(0)
        self._idle: Decimal | None = Decimal(0)
        self._sums = Sums()
        self._saved_at = now
        self._saved_s, self._saved_cost = Decimal(0), Decimal(0)
        self._told: dict[str, int] = {}
        self._told_steps = 0
        self._rated = now
        self._ended: int | None = None

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
                self._open_budgets(now)
            except BaseException:
                for run in others:
                    run._take_back(mine, now)
                raise

    def _open_budgets(self, now: int) -> None:
        """Hold a first slice in every budget that is in force here."""
        engines = runtime.get()
        self._budgets = engines.budgets(self._scope, engines.tags(self._scope)) if self._groups else ()
        self._paid = frozenset(one.key for one in self._budgets)
        if not self._budgets:
            return
        unpriced = next((group for group, _ in self._groups if group.usd_per_hour is None), None)
        missing = None if unpriced is None else UnknownModel(unpriced.sku or "a GPU", provider=unpriced.provider)
        prepaid = Prepaid(
            engines.guard,
            self._budgets,
            self._rates(),
            slice_s=self._slice_s,
            allowance_s=self._allowance_s,
            unpriced=missing,
        )
        try:
            prepaid.open(now)
        except Wait as wait:  # waiting on held devices would only raise their cost
            wait.ticket.leave()
            raise wait.error from None
        self._prepaid = prepaid

    def _rates(self) -> dict[str, Decimal]:
        """What a second costs: nano-units of money, millionths of `gpu_seconds`."""
        amounts = {"gpu_seconds": sum((group.held for group, _ in self._groups), Decimal(0)) * MICRO}
        known = [group for group, _ in self._groups if group.usd_per_hour is not None]
        lenient = all(one.budget.unknown == "allow" for one in self._budgets)
        if len(known) == len(self._groups) or (known and lenient):
            amounts["USD"] = sum((group.usd(Decimal(_NS)) or Decimal(0) for group in known), Decimal(0))
        return amounts

    def _begin_journal(self, folder: Any) -> None:
        if folder is None or not self._groups:
            return
        self._journal = journal.Journal(
            folder, self.run_id, self.rank.rank, self.attempt, self._wall0,
            name=self.name, tags=dict(self._scope.tags), groups=[group.to_json() for group, _ in self._groups],
        )  # fmt: skip

    def _begin_watch(self, _folder: Any) -> None:
        devices = [one.device for one in self._held if one.device.uuid]
        if devices:
            from aifinops.gpu.sampler import watch

            self._watch = watch(devices)

    def _begin_board(self, folder: Any) -> None:
        if self.rank.alone or not self._budgets:
            return
        key = f"gpu-stop/{self.run_id}/{distributed.launch(self.rank)}"
        shared = next((one.store for one in self._budgets if one.store.capabilities.shared), None)
        self._board = distributed.board(shared, folder, key, self._wall0 - _LATE_NS)

    def _begin_span(self, _folder: Any) -> None:
        engines = runtime.get()
        if engines.spans is None:
            return
        values: dict[str, Any] = {}
        span_attributes.add_tags(values, engines.tags(self._scope))
        self._span = engines.spans.start_block(f"gpu {self.name}".strip(), values, self._wall0)

    def _close_lost(self, folder: Any) -> None:
        """Write down what processes that were killed have held to their end."""
        try:
            found = journal.lost_attempts(folder, self.run_id, self.rank.rank, self._wall0)
            for one in found:
                billing.charge_lost(one, scope.current())
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

    def step(self) -> None:
        """A step has ended.

        Raises:
            RunStopped: when the budget has no more room than it takes to end here. Before that the checkpoint callback was called.
        """
        if not self.advance() and self.error is not None:
            raise self.error

    def advance(self) -> bool:
        """`step` for loops that end by themselves: False when it is over. What `checkpoint` is for has been done then."""
        if not self.counts_itself:
            self.counts_itself = True
            self.steps = self._looked_steps = self._told_steps = 0
        return self._count()

    def optimizer_step(self) -> None:
        """What the hook in torch calls: a step, as long as nobody counts them by `step`; raises like `step`."""
        if not self.counts_itself and not self._count() and self.error is not None:
            raise self.error

    def _count(self) -> bool:
        # The hot path: a clock and a counter.
        now = self._now()
        self.steps += 1
        took = now - self._stepped
        self._stepped = now
        if took > self._longest:
            if self._first_step is None:
                self._first_step = now
                self._due = 0
            else:
                self._longest = took
        return now < self._due or self._look(now)

    def waited(self, start: int, end: int) -> None:
        """The loop has waited for data from one moment to another, of the monotonic clock."""
        if not self._stack:
            self._waited += end - start

    @property
    def should_stop(self) -> bool:
        """Whether the end of this run is decided: by a budget, at this step or, where several ranks stop together, at one that comes."""
        prepaid = self._prepaid
        return self.error is not None or self._note is not None or (prepaid is not None and prepaid.error is not None)

    def should_yield(self) -> bool:
        """Whether to save and give the devices back: the end is decided, or whoever governs them wants them for somebody else."""
        if self.should_stop:
            return True
        try:
            from aifinops.gpu.slots import current_slot
        except ImportError:
            return False
        slot = current_slot.get()
        return slot is not None and bool(slot.should_yield())

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
        now = self._now()
        if self._stack:
            self._add_phase(now)
        self._stack.append([name, now, now])

    def _leave_phase(self) -> int:
        """Nanoseconds that the phase took in all."""
        now = self._now()
        self._add_phase(now)
        _, _, began = self._stack.pop()
        if self._stack:
            self._stack[-1][1] = now
        else:
            self._outside += now - began
            self._stepped = now  # it is no part of a step
        return int(now - began)

    def _add_phase(self, now: int) -> None:
        name, since, _ = self._stack[-1]
        self._explicit[name] = self._explicit.get(name, 0) + now - since

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
            if self._prepaid is not None and seconds:
                self._prepaid.saved(seconds)
            self._saved_at = now
            self._saved_s, cost = self._so_far(now)
            self._saved_cost = cost or Decimal(0)
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
            refusal = self._verdict(now)
        except Exception as failure:  # the loop is the user's
            self._due = now + _NS
            swallow("gpu.look", failure)
            return True
        if refusal is None:
            return True
        self._stop(refusal)
        return False

    def _work(self, now: int) -> None:
        self._note_pace(now)
        if self._prepaid is not None:
            self._prepaid.expect(self._way())
            self._prepaid.tick()
        if now >= self._cut_due:
            self._cut(now)
        self._plan(now)

    def _plan(self, now: int) -> None:
        """When to look again."""
        self._cut_due = (
            self._mono0 + (self._wall(self._from) // billing.WINDOW_NS + 1) * billing.WINDOW_NS - self._wall0
        )
        due = min(now + _LOOK_NS, self._cut_due)
        if self._prepaid is not None:
            due = min(due, max(self._prepaid.due, now + _NS // 1000))
        if self._board is not None:
            due = min(due, self._board_due)
        if self.error is not None or self._note is not None or self._refusal is not None or self._ending():
            due = 0
        self._due = due

    def _ending(self) -> bool:
        return self._prepaid is not None and self._prepaid.error is not None

    def _way(self) -> int:
        """Nanoseconds to the end of a step, or of those that all ranks still make."""
        if self._board is None or self._step_s is None:
            return self._longest
        return self._longest + int(distributed.steps_ahead(self._step_s) * self._step_s * _NS)

    def _note_pace(self, now: int) -> None:
        made = self.steps - self._looked_steps
        if self._first_step is None or made <= 0:
            return
        passed = (now - self._looked - (self._outside - self._looked_outside)) / _NS
        first = self._looked_steps == 0
        self._looked, self._looked_steps, self._looked_outside = now, self.steps, self._outside
        if first or passed <= 0:  # startup
            return
        measured = passed / made
        if self._step_s is None:
            self._step_s = measured
        else:
            self._step_s += -math.expm1(-passed / _MEMORY_S) * (measured - self._step_s)

    def _verdict(self, now: int) -> BudgetExceeded | None:
        """Why to stop at this step; None to go on."""
        refusal = self._refusal
        if refusal is None and self._prepaid is not None:
            refusal = self._prepaid.error
        if self._board is None:
            return refusal
        if self._note is None:
            if refusal is not None:
                self._note = self._propose(refusal)
            elif now >= self._board_due:
                self._board_due = now + distributed.LOOK_NS
                self._note = distributed.look(self._board)
            self._plan(now)
        note = self._note
        if note is None or self.steps < int(note["step"]):
            return None
        if self.steps > int(note["step"]):
            logger.warning("aifinops: rank %d saw the note to stop after step %s late", self.rank.rank, note["step"])
        return distributed.stopped(note, self.steps)

    def _propose(self, refusal: BudgetExceeded) -> dict[str, Any] | None:
        if self._board is None:
            return None
        ahead = distributed.steps_ahead(self._step_s or self._longest / _NS)
        try:
            return self._board.propose(self.steps + ahead, refusal)
        except (StoreError, OSError) as failure:  # alone it would leave the others waiting for ever: it is tried again
            swallow("gpu.stop_note", failure)
            return None

    def _stop(self, refusal: BudgetExceeded) -> None:
        """Save, and let `step` say why."""
        self._due = 0
        error = RunStopped(
            refusal.budget,
            step=self.steps,
            unit=refusal.unit,
            limit=refusal.limit,
            spent=refusal.spent,
            reserved=refusal.reserved,
            asked=refusal.asked,
            resets_at=refusal.resets_at,
            decision_id=refusal.decision_id,
            hint=refusal.hint,
        )
        error.__cause__ = refusal
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
            if self._prepaid is not None:
                self._prepaid.tick()
                if self._prepaid.error is not None:
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
        for group, members in self._groups:
            sums = self._measure(members, start, now)
            self._sums.merge(sums)
            try:
                self._charge(group, at, length, sums, facts)
            except Exception as failure:  # the next group is charged all the same
                swallow("gpu.charge", failure)
        if self._journal is not None:
            self._journal.note(
                self._wall(now), at=self._wall(now), allocated_s=str(self._device_s), steps=self.steps,
                groups=[group.to_json() for group, _ in self._groups],
            )  # fmt: skip
        self._foresee()
        if now - self._rated >= _RATES_NS:
            self._rate_again(now)

    def _charge(self, group: Group, at: int, length: int, sums: Sums, facts: Mapping[str, Any]) -> None:
        seconds = Decimal(length).scaleb(-9)
        busy = sums.get("busy_s")
        allocated = group.held * seconds
        idle_s = None if busy is None else max(Decimal(0), allocated - Decimal(repr(busy)))
        idle = None if idle_s is None or group.usd_per_hour is None else group.usd_per_hour * idle_s / 3600
        measured = {name: value for name, value in sums.values.items() if value is not None} if sums.spans else {}
        more = (
            {"busy_source": sums.source, "busy_error_s": sums.error, "attribution": sums.attribution}
            if measured
            else {}
        )
        about = {**facts, **measured, **more, **({} if idle is None else {"idle_usd": str(idle)})}
        made = billing.charge(
            group, self._scope, key=f"{self.run_id}|{self.attempt}", at=at, length=length, part=self._part,
            facts=about, paid=self._paid,
        )  # fmt: skip
        self._device_s += allocated
        cost = made.cost.amount
        self._cost = None if cost is None or self._cost is None else self._cost + cost
        self._idle = None if idle is None or self._idle is None else self._idle + idle
        states = {"allocated": float(allocated), **({} if busy is None else {"busy": busy, "idle": float(idle_s or 0)})}
        if "data_wait" in facts.get("phases", {}):
            states["stall"] = facts["phases"]["data_wait"] * float(group.held)
        runtime.get().metrics.gpu_time(made, states)

    def _facts(self, now: int) -> dict[str, Any]:
        """Steps and phases since the last charge."""
        phases = self._phase_ns(now)
        since = {name: ns - self._told.get(name, 0) for name, ns in phases.items()}
        steps, self._told, self._told_steps = self.steps - self._told_steps, phases, self.steps
        return {"steps": steps, "phases": {name: ns / _NS for name, ns in since.items() if ns > 0}}

    def _measure(self, members: list[Held], start: int, end: int) -> Sums:
        sums = Sums()
        for one in members:
            if self._watch is None or not one.device.uuid:
                return Sums()
            try:
                sums.add(self._watch.between(one.device, start, end), one.device.share)
            except Exception as failure:  # allocated time needs no driver
                swallow("gpu.measure", failure)
                return Sums()
        return sums

    def _foresee(self) -> None:
        """Say once that the budget will end before the run does."""
        if self._warned or self.total_steps is None or self._prepaid is None:
            return
        try:
            ahead = self.estimate_remaining(self.total_steps)
        except StoreError:
            return
        if ahead.ends_before_limit is False:
            self._warned = True
            logger.warning(
                "aifinops: run %r will be stopped by its budget at about step %d of %d",
                self.name or self.run_id, ahead.last_step, self.total_steps,
            )  # fmt: skip

    def _rate_again(self, now: int) -> None:
        """Prices of the spot market move: an hour is long enough."""
        self._rated = now
        before = [group.usd_per_hour for group, _ in self._groups]
        self._make_groups(now)
        if [group.usd_per_hour for group, _ in self._groups] != before:
            logger.info("aifinops: the price of run %r has changed", self.name or self.run_id)
            self._reopen(now)

    def _reopen(self, now: int) -> None:
        """Pay at another rate from now on; what was charged so far is closed."""
        prepaid, self._prepaid = self._prepaid, None
        if prepaid is not None:
            prepaid.close(now)
        try:
            self._open_budgets(now)
        except BudgetExceeded as refusal:  # it ends at the next step
            self._refusal, self._due = refusal, 0

    def _lend(self, uuids: set[str], now: int) -> bool:
        """Another run of this process pays for these devices from now on; True when some were ours."""
        with self._lock:
            taken = {uuid for group, _ in self._groups for uuid in group.uuids} & uuids
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

    def _phase_ns(self, now: int) -> dict[str, int]:
        phases = dict(self._explicit)
        if self._stack:
            name, since, _ = self._stack[-1]
            phases[name] = phases.get(name, 0) + now - since
        phases["data_wait"] = phases.get("data_wait", 0) + self._waited
        rest = now - self._mono0 - sum(phases.values())
        first = self._first_step
        if first is None:
            phases["startup"] = phases.get("startup", 0) + rest
        else:
            startup = min(first - self._mono0, rest)
            phases["startup"], phases["step"] = (
                phases.get("startup", 0) + startup,
                phases.get("step", 0) + rest - startup,
            )
        return {name: ns for name, ns in phases.items() if ns > 0}

    def _so_far(self, now: int) -> tuple[Decimal, Decimal | None]:
        """Device-seconds and their cost, with the part that is not charged yet."""
        seconds = Decimal(now - self._from if self._ended is None else 0).scaleb(-9)
        held = sum((group.held for group, _ in self._groups), Decimal(0))
        costs = [group.usd(seconds) for group, _ in self._groups]
        known = [cost for cost in costs if cost is not None]
        unknown = self._cost is None or len(known) < len(costs)
        return self._device_s + held * seconds, None if unknown else (self._cost or Decimal(0)) + sum(known, Decimal(0))

    def usage(self) -> GpuUsage:
        """What the run has used so far, with what is not charged yet."""
        with self._lock:
            now = self._now() if self._ended is None else self._ended
            allocated, cost = self._so_far(now)
            sums = Sums()
            sums.merge(self._sums)
            idle = self._idle
            if self._ended is None:
                for group, members in self._groups:
                    part = self._measure(members, self._from, now)
                    sums.merge(part)
                    idle = _with_idle(idle, group, Decimal(now - self._from).scaleb(-9), part)
            measured = sums.spans > 0
            busy = sums.get("busy_s")
            first = self._groups[0][0] if self._groups else None
            rates = [group.usd(Decimal(3600)) for group, _ in self._groups]
            models: dict[str, int] = {}
            for one in self._held:
                models[one.device.name] = models.get(one.device.name, 0) + 1
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
                busy_source=sums.source,
                busy_error_s=sums.error if measured else None,
                sm_active_s=sums.get("sm_active_s"),
                tensor_active_s=sums.get("tensor_active_s"),
                memory_gib_s=sums.get("memory_gib_s"),
                energy_j=sums.get("energy_j"),
                attribution=sums.attribution,
                stall_s=self._waited / _NS,
                steps=self.steps,
                mfu=self._mfu(allocated),
                cost=cost,
                idle_cost=idle if measured and busy is not None else None,
                usd_per_hour=sum((one for one in rates if one is not None), Decimal(0))
                if rates and all(one is not None for one in rates)
                else None,
                price_as_of=first.as_of if first else "",
                price_source=first.source if first else "",
                wasted_s=allocated - self._saved_s,
                wasted_cost=None if cost is None else cost - self._saved_cost,
                phases={name: ns / _NS for name, ns in self._phase_ns(now).items()},
            )

    def _mfu(self, allocated: Decimal) -> float | None:
        """Model FLOPs of this rank by what its devices could do in the time that is paid for."""
        per_step, peak = self._flops
        if not per_step or not peak or not allocated:
            return None
        return per_step * self.steps / (float(allocated) * peak)

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
            step_s = self._step_s or self._mean_step_s()
            rates = [group.usd(Decimal(1)) for group, _ in self._groups]
            usd = (
                None
                if not rates or any(one is None for one in rates)
                else sum((one or Decimal(0) for one in rates), Decimal(0))
            )
            lasts = None if self._prepaid is None else self._prepaid.lasts()
        seconds = None if step_s is None else left * step_s
        per_step = None if usd is None or step_s is None else usd * Decimal(repr(step_s))
        fits = None if seconds is None or lasts is None else seconds <= lasts
        last = total_steps
        if fits is False and step_s and lasts is not None and self._prepaid is not None:
            last = self.steps + int(max(0.0, lasts - self._prepaid.allowance / _NS) / step_s)
        return Forecast(
            left, seconds, per_step, None if per_step is None else per_step * left, lasts, fits, min(last, total_steps)
        )

    def _mean_step_s(self) -> float | None:
        """Before there was a look: the mean since the first step."""
        if self._first_step is None or self.steps < 2:
            return None
        return (self._stepped - self._first_step - self._outside) / (self.steps - 1) / _NS

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
                ("budget", lambda: self._prepaid.close(now) if self._prepaid is not None else None),
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
                    mine -= {uuid for group, _ in run._groups for uuid in group.uuids}

    def _finish(self, now: int) -> None:
        self._ended = now
        self._due = 0 if self.error is not None else _NEVER

    def _close_journal(self, now: int, error: BaseException | None) -> None:
        if self._journal is not None:
            self._journal.close(self._wall(now), "" if error is None else type(error).__name__, keep=self._named)

    def _end_span(self, error: BaseException | None) -> None:
        if self._span is None:
            return
        used = self.usage()
        values: dict[str, Any] = {
            names.GPU_COUNT: len(self._held),
            names.GPU_MODEL: ",".join(used.models),
            names.GPU_UUIDS: list(used.uuids),
            names.GPU_ALLOCATED: float(used.allocated_s),
            names.GPU_BUSY: used.busy_s,
            names.GPU_BUSY_SOURCE: used.busy_source or None,
            names.GPU_BUSY_ERROR: used.busy_error_s,
            names.GPU_STALL: used.stall_s,
            names.GPU_SM_ACTIVE: used.sm_active_s,
            names.GPU_TENSOR_ACTIVE: used.tensor_active_s,
            names.GPU_MEMORY: used.memory_gib_s,
            names.GPU_ENERGY: used.energy_j,
            names.GPU_MFU: used.mfu,
            names.GPU_ATTRIBUTION: used.attribution or None,
            names.GPU_STEPS: used.steps,
            names.GPU_WASTED: float(used.wasted_s),
            names.COST_TOTAL: None if used.cost is None else float(used.cost),
            names.COST_CURRENCY: None if used.cost is None else "USD",
            names.GPU_IDLE_COST: None if used.idle_cost is None else float(used.idle_cost),
            names.GPU_RATE: None if used.usd_per_hour is None else float(used.usd_per_hour),
            names.PRICE_AS_OF: used.price_as_of or None,
            names.PRICE_SOURCE: used.price_source or None,
            **{f"{names.PHASE}.{name}_s": seconds for name, seconds in used.phases.items()},
        }
        metering.end_block_span(self._span, {key: value for key, value in values.items() if value is not None}, error)

    def forget(self) -> None:
        """In a forked child: nothing of it is ours."""
        self._lock = threading.RLock()
        self.is_open = False
        self._due = _NEVER
        self._groups, self._held = [], ()
        self._prepaid = self._watch = self._board = self._span = None
        mine, self._journal = self._journal, None
        if mine is not None:
            mine.abandon()

    # --- as a block ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        token = scope.enter(tags=self._scope.tags, span=self._span)
        self._entered.append((token, metering.attach_span(self._span), innermost.set(self)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, attached, outer = self._entered.pop()
        try:
            innermost.reset(outer)
        except ValueError:  # left in another context, which is gone
            innermost.set(None)
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


def _with_idle(idle: Decimal | None, group: Group, seconds: Decimal, sums: Sums) -> Decimal | None:
    busy = sums.get("busy_s")
    if idle is None or busy is None or group.usd_per_hour is None:
        return None
    return idle + group.usd_per_hour * max(Decimal(0), group.held * seconds - Decimal(repr(busy))) / 3600


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
    peak_flops: float | None = None,
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
        flops_per_step, peak_flops: of the model on this rank, and of one device in a second, for MFU.
        **tags: whose cost it is.

    Raises:
        ConfigurationError: for a tag that is not valid.
    """
    return Run(
        name, devices=devices, price=price, run_id=run_id, checkpoint=checkpoint, slice_s=slice_s, allowance_s=allowance_s,
        total_steps=total_steps, flops_per_step=flops_per_step, peak_flops=peak_flops, tags=make_tags(tags),
    )  # fmt: skip
