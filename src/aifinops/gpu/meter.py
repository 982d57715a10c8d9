"""What a run holds, at which price, and the charges for it: one a minute for each price, with what was measured beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from aifinops import runtime
from aifinops.errors import ConfigurationError, swallow
from aifinops.gpu import billing
from aifinops.gpu.account import Account, idle_usd
from aifinops.gpu.carbon import grid_at
from aifinops.gpu.idle import IdleAlarm, Stretch, stretches
from aifinops.gpu.idle import tell as tell_of_idle
from aifinops.gpu.usage import Sums, sums_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from aifinops.gpu.billing import Held
    from aifinops.gpu.carbon import Co2, Grid
    from aifinops.gpu.cpus import Cpus
    from aifinops.gpu.distributed import Rank
    from aifinops.gpu.journal import Group
    from aifinops.gpu.measured import Measured
    from aifinops.gpu.options import Options
    from aifinops.scope import Scope

__all__ = ["Meter"]

_NS = 1_000_000_000
_RATES_NS = 3600 * _NS


class Meter:
    """The devices of one run from its beginning to its end. Moments are of the monotonic clock, in nanoseconds.

    Args:
        options: of the run. rank: which pays. scope: whose charges. name: of the run, for people; label: the same, or its id.
        key: by which its charges are known. now, wall: the beginning, on the monotonic and on the wall clock.

    Attributes:
        held: devices of this rank. account: what was charged. started, began: the beginning, monotonic and wall. ended: the end; None before.
        watch: what reads the devices; None where none can be read. span: of the run, for what is told.
        grid: that the machine hangs on, None where nobody knows it.
    """

    def __init__(
        self, options: Options, rank: Rank, scope: Scope, *, name: str, label: str, key: str, now: int, wall: int
    ) -> None:
        self.held: tuple[Held, ...] = ()
        self.account = Account()
        self.started, self.began = now, wall
        self.ended: int | None = None
        self.watch: Any = None
        self.span: Any = None
        self._options, self._rank, self._scope = options, rank, scope
        self._name, self._label, self._key = name, label, key
        self._lent: set[str] = set()  # UUIDs that another run of this process pays for at present
        self._groups: list[tuple[Group, list[Held]]] = []
        self.grid: Grid | None = None
        self._from, self._part, self._window = now, 0, -1
        self._rated = now
        self._idle = IdleAlarm(options.idle_s)

    # --- what is held -----------------------------------------------------------------------------------------------------

    def find(self, now: int, *, enabled: bool) -> None:
        """The devices and their prices; where we fail to find them the loop runs all the same, unmetered."""
        try:
            found = billing.find_held(self._options.devices, self._rank, self.wall(now))
            self.held = found if enabled else ()
            self._make_groups(now)
        except ConfigurationError:
            raise
        except Exception as failure:  # a driver or a setting that nobody has seen
            self.held, self._groups = (), []
            swallow("gpu.devices", failure)

    def _make_groups(self, now: int) -> None:
        mine = [one for one in self.held if one.device.uuid not in self._lent]
        if not mine:
            self._groups = []
            return
        engines, price = runtime.get(), self._options.price
        where = billing.here(engines)
        self.grid = grid_at(where, engines.config)
        self._groups = billing.groups_of(mine, where, at=self.wall(now), price=price, owner=f"rank {self._rank.rank}")

    @property
    def priced(self) -> list[Group]:
        """What is paid for at present, by price."""
        return [group for group, _ in self._groups]

    @property
    def devices(self) -> tuple[Held, ...]:
        """What is held of accelerators."""
        return tuple(one for one in self.held if one.cpus is None)

    @property
    def cpus(self) -> Cpus | None:
        """The processors that are held; None in a run on accelerators, whose price they are in."""
        return next((one.cpus for one in self.held if one.cpus is not None), None)

    @property
    def uuids(self) -> set[str]:
        """Of all that the run holds, processors too: who pays for what is told by them."""
        return {one.device.uuid for one in self.held if one.device.uuid}

    @property
    def lent(self) -> set[str]:
        """UUIDs of those that another run of this process pays for at present."""
        return self._lent

    def begin_watch(self) -> None:
        """Have them read."""
        devices = [one.device for one in self.devices if one.device.uuid]
        if devices:
            from aifinops.gpu.sampler import watch

            self.watch = watch(devices)

    def lend(self, uuids: set[str], now: int) -> None:
        """Another run pays for these from now on; everything is charged up to now."""
        self._lent |= uuids
        self._make_groups(now)

    def take_back(self, uuids: set[str], now: int) -> None:
        """This one pays for them again."""
        self._from = now
        self._lent -= uuids
        self._make_groups(now)

    def rate_again(self, now: int) -> bool:
        """Ask for the prices again, where that is long ago: those of the spot market move. True when they have changed."""
        if now - self._rated < _RATES_NS:
            return False
        self._rated = now
        before = [group.usd_per_hour for group in self.priced]
        self._make_groups(now)
        return [group.usd_per_hour for group in self.priced] != before

    def forget(self) -> None:
        """In a forked child: nothing of it is ours."""
        self._groups, self.held = [], ()
        self.watch = self.span = None

    # --- charges ----------------------------------------------------------------------------------------------------------

    def wall(self, now: int) -> int:
        """The wall clock as it was at the beginning, moved on by the monotonic one: stretches join without gaps."""
        return self.began + now - self.started

    @property
    def due(self) -> int:
        """When the next charge is to be made: at the end of the minute of the wall clock."""
        window = self.wall(self._from) // billing.WINDOW_NS
        return self.started + (window + 1) * billing.WINDOW_NS - self.began

    def cut(self, now: int, facts: Callable[[], Mapping[str, Any]], paid: Collection[str]) -> bool:
        """Charge everything up to now; True when there was something to charge.

        Args:
            facts: says what else is known of the stretch. paid: keys of budgets that are paid in advance.
        """
        start, length = self._from, now - self._from
        if length <= 0 or not self._groups:
            self._from = now
            return False
        at = self.wall(start)
        window = at // billing.WINDOW_NS
        self._part = self._part + 1 if window == self._window else 0
        self._from, self._window = now, window
        known = facts()
        seen: list[Stretch] = []
        for group, members in self._groups:
            readings = self._readings(members, start, now)
            seen += stretches(group, members, readings, length / _NS)
            try:
                self._charge(group, at, length, sums_of(members, readings), known, frozenset(paid))
            except Exception as failure:  # the next group is charged all the same
                swallow("gpu.charge", failure)
        self._look_for_idle(seen)
        return True

    def _charge(
        self, group: Group, at: int, length: int, sums: Sums, facts: Mapping[str, Any], paid: frozenset[str]
    ) -> None:
        seconds = Decimal(length).scaleb(-9)
        busy, allocated = sums.get("busy_s"), group.held * seconds
        idle_s, idle = idle_usd(group, seconds, busy)
        about = {**facts, **sums.facts(), **({} if idle is None else {"idle_usd": str(idle)})}
        if (co2 := self.co2(sums)) is not None:
            about["co2"] = co2.to_json()
        if group.on_cpu and (cpus := self.cpus) is not None:
            about |= {"cpus": str(cpus.count), "cpus_source": cpus.source, "machine_cpus": cpus.machine}
        if self._name:
            about["name"] = self._name
        made = billing.charge(
            group, self._scope, key=self._key, at=at, length=length, part=self._part, facts=about, paid=paid
        )
        self.account.add(group, seconds, made.cost.amount, idle, sums)
        if group.on_cpu:
            return
        states = {"allocated": float(allocated)}
        if busy is not None:
            states |= {"busy": busy, "idle": float(idle_s or 0)}
        if stall := facts["phases"].get("data_wait"):
            states["stall"] = stall * float(group.held)
        runtime.get().metrics.gpu_time(made, states)

    def co2(self, sums: Sums) -> Co2 | None:
        """Of the energy in these figures; None where it or the grid is unknown."""
        return None if self.grid is None else self.grid.co2(sums.get("energy_j"))

    def _readings(self, members: list[Held], start: int, end: int) -> list[Measured | None]:
        """What each of some devices did; None for one that nobody can ask."""
        found: list[Measured | None] = []
        for one in members:
            try:
                known = self.watch is not None and one.device.uuid
                found.append(self.watch.between(one.device, start, end) if known else None)
            except Exception as failure:  # allocated time needs no driver
                swallow("gpu.measure", failure)
                found.append(None)
        return found

    def _look_for_idle(self, found: list[Stretch]) -> None:
        try:
            idle = self._idle.note(found)
            if idle:
                tell_of_idle(self._label, idle, self.span)
        except Exception as failure:  # it is only said
            swallow("gpu.idle", failure)

    # --- with what is not charged yet -------------------------------------------------------------------------------------

    def uncharged(self, now: int) -> Decimal:
        """Seconds since the last charge."""
        return Decimal(0) if self.ended is not None else Decimal(now - self._from).scaleb(-9)

    def with_open(self, now: int) -> tuple[Decimal, Decimal, Decimal | None, Sums, Decimal | None]:
        """(device-seconds, vCPU-seconds, cost, measured figures, idle money) up to now; the money is None where a price or how busy it was is
        unknown.
        """
        seconds = self.uncharged(now)
        allocated, cpu_s, cost = self.account.with_open(self.priced, seconds)
        sums, idle = Sums(), self.account.idle
        sums.merge(self.account.sums)
        for group, members in self._groups if self.ended is None else ():
            part = sums_of(members, self._readings(members, self._from, now))
            more = idle_usd(group, seconds, part.get("busy_s"))[1]
            idle = None if idle is None or more is None else idle + more
            sums.merge(part, of_all=group.on_cpu or not seconds)
        return allocated, cpu_s, cost, sums, idle

    def saved(self, now: int) -> None:
        """A checkpoint was written."""
        self.account.save(self.priced, self.uncharged(now))
