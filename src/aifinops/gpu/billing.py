"""Which devices a run pays for, at which price, and the charge of a stretch of time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifinops import metering, runtime
from aifinops.charges import Charge, Cost
from aifinops.errors import ConfigurationError
from aifinops.gpu import backends, cpus, distributed
from aifinops.gpu import devices as hardware
from aifinops.gpu.journal import Group
from aifinops.gpu.rates import Rate, cpu_rate, has_accelerators, rate
from aifinops.gpu.where import Place, place
from aifinops.reading import Reading
from aifinops.tags import make_tags, merge
from aifinops.usage import Sku

if TYPE_CHECKING:
    from aifinops.runtime import Runtime
    from aifinops.scope import Scope

__all__ = ["WINDOW_NS", "Held", "charge", "find_devices", "find_held", "groups_of", "here"]

WINDOW_NS = 60 * 1_000_000_000
"""Charges are made once in each such window of wall time, in nanoseconds."""

_HOUR_NS = 3600 * 1_000_000_000
_MOST = 64
_ACCELERATORS = ("nvidia[0-9]*",)
"""In `/dev` where there are GPUs, also where no library can be asked for them."""


@dataclass(frozen=True, slots=True)
class Held:
    """One device, or one that was only named.

    Attributes:
        device: what it is; without a UUID where it was only named. unclaimed: held on this machine, and no rank's own.
        cpus: the processors that it stands for; None for an accelerator. implied: nobody has asked for those.
    """

    device: hardware.Device
    unclaimed: bool = False
    cpus: cpus.Cpus | None = None
    implied: bool = False

    @property
    def count(self) -> Decimal:
        """How many it counts for: the share of a device, the number of processors."""
        return Decimal(str(self.device.share)) if self.cpus is None else self.cpus.count


def find_held(spec: Any, where: distributed.Rank, at: int) -> tuple[Held, ...]:
    """What `spec` names, as `find_devices` does; with `"cpu"`, and with `"auto"` on a machine without accelerators, its processors.

    Where the machine has accelerators, or its instance type has, the processors are in their price and are not paid for beside them.

    Args:
        spec: as `devices` of `aifinops.gpu.track`. where: which rank this is. at: wall clock, nanoseconds: by its price list.

    Raises:
        ConfigurationError: for anything else.
    """
    if spec == "cpu":
        return _processors(where)
    found = find_devices(spec, where)
    if found or spec not in ("auto", "rank") or not _only_processors(at):
        return found
    return _processors(where, implied=True)


def _only_processors(at: int) -> bool:
    """Whether this is a machine without accelerators; where a driver does not answer, its devices may be there all the same."""
    if hardware.inventory().devices or len(backends.present()) > 1:
        return False
    if any(found for pattern in _ACCELERATORS for found in Path("/dev").glob(pattern)):
        return False
    return not has_accelerators(here(runtime.get()), at=at)


def _processors(where: distributed.Rank, *, implied: bool = False) -> tuple[Held, ...]:
    mine = cpus.part_of(cpus.processors(), where)
    return () if mine is None else (Held(cpus.device(where), cpus=mine, implied=implied),)


def find_devices(spec: Any, where: distributed.Rank) -> tuple[Held, ...]:
    """The devices that `spec` names, of which this rank pays for its own.

    Args:
        spec: `"auto"` for those that this process may use, divided among the ranks of this machine; `"visible"` for all of them,
            undivided; devices of `aifinops.gpu.devices`; or a mapping of model to count for machines whose driver cannot be asked, divided
            like `"auto"`. where: which rank this is.

    Raises:
        ConfigurationError: for anything else.
    """
    if spec in ("auto", "rank", "visible"):
        found = _visible()
        return _divided(found, where) if spec != "visible" else tuple(map(Held, found))
    if isinstance(spec, Mapping) and all(type(count) is int and count > 0 for count in spec.values()):
        named = [hardware.Device(-1, "", str(model)) for model, count in spec.items() for _ in range(count)]
        return _divided(named, where)
    if (
        isinstance(spec, Sequence)
        and not isinstance(spec, str)
        and all(isinstance(one, hardware.Device) for one in spec)
    ):
        return tuple(map(Held, spec))
    raise ConfigurationError(
        f'gpu={spec!r} must be "auto", "visible", "cpu" (of a run), devices, or a mapping such as {{"NVIDIA H100 80GB HBM3": 8}}'
    )


def _visible() -> tuple[hardware.Device, ...]:
    return hardware.held({key: value for key, value in os.environ.items() if key != "LOCAL_RANK"})


def _divided(found: Sequence[hardware.Device], where: distributed.Rank) -> tuple[Held, ...]:
    own, rest = distributed.share(found, where)
    return (*map(Held, own), *(Held(device, unclaimed=True) for device in rest))


def here(engines: Runtime) -> Place:
    """Where this process runs, with what the settings say."""
    settings = engines.config
    return place(allow_network=settings.gpu_metadata, term=settings.gpu_term or "")


class _Rates:
    """Prices that were asked already, for an hour and one price book: a function that holds a GPU may be called often."""

    def __init__(self) -> None:
        self._of: tuple[Any, Any] = (None, None)
        self._found: dict[tuple[Any, ...], Rate] = {}

    def get(self, engines: Runtime, held: Held, where: Place, at: int, price: Any) -> Rate:
        """As `rate`, and for processors as `cpu_rate`."""
        device = held.device
        of = engines.config, engines.book
        if of[0] is not self._of[0] or of[1] is not self._of[1]:
            self._of, self._found = of, {}
        key = (device.name, device.share, where, at // _HOUR_NS, str(price))
        known = self._found.get(key)
        if known is None:
            if held.cpus is None:
                known = rate(device, where, at=at, override=None if price == "auto" else price)
            else:
                known = cpu_rate(where, at=at, override=price)
            if len(self._found) > _MOST:
                self._found = {}
            self._found[key] = known
        return known


_rates = _Rates()


def groups_of(
    found: Sequence[Held], where: Place, *, at: int, price: Any = "auto", owner: str = ""
) -> list[tuple[Group, list[Held]]]:
    """Devices by price, each group with its members.

    Args:
        found: the devices. where: the machine. at: wall clock, nanoseconds. price: USD an hour of one device, or `"auto"`; one that is given
            is not that of processors which nobody has asked for. owner: of devices that have no UUID.

    Raises:
        ConfigurationError: for a price that is none.
    """
    made: dict[tuple[Any, ...], list[Held]] = {}
    for one in found:
        made.setdefault((one.device.name, one.device.share, one.unclaimed), []).append(one)
    result = []
    for (model, _, unclaimed), members in made.items():
        first = members[0]
        known = _rates.get(runtime.get(), first, where, at, "auto" if first.implied else price)
        group = Group(
            model=model,
            uuids=tuple(one.device.uuid for one in members if one.device.uuid),
            held=sum((one.count for one in members), Decimal(0)),
            provider=known.sku.provider,
            sku=known.sku.model,
            tier=known.sku.tier,
            region=known.sku.region,
            usd_per_hour=known.usd_per_hour,
            price_id=known.price_id or "",
            as_of=known.as_of.isoformat() if known.as_of else "",
            source=known.source,
            unclaimed=unclaimed,
            owner=owner,
            meter=known.meter,
            implied=first.implied,
        )
        result.append((group, members))
    return result


def cost_of(group: Group, device_seconds: Decimal) -> Cost:
    """What so much time of one of a group costs, as its price says."""
    found = Rate(
        group.usd_per_hour,
        source=group.source,
        as_of=date.fromisoformat(group.as_of) if group.as_of else None,
        sku=Sku(group.provider, group.sku, "gpu", group.tier, group.region),
        meter=group.meter,
        price_id=group.price_id or None,
    )
    return found.cost(device_seconds)


def charge(
    group: Group,
    scope: Scope,
    *,
    key: str,
    at: int,
    length: int,
    part: int = 0,
    facts: Mapping[str, Any],
    paid: frozenset[str] = frozenset(),
    error: str = "",
) -> Charge:
    """Record a stretch of time of a group.

    Args:
        group: what was held. scope: of whoever held it. key: of the run and its attempt. at: when it began; length: nanoseconds.
        part: number of this charge in its window. facts: what else is known, for the row's `raw`. paid, error: as in `record_held`.

    The charge is known by run, attempt, devices and window: of two processes that pay for the same, the ledger keeps one.
    """
    seconds = group.held * Decimal(length).scaleb(-9)
    if group.unclaimed:
        scope = replace(scope, tags=merge(scope.tags, make_tags({"phase": "unclaimed"})))
    kind = "cpu" if group.on_cpu else "gpu"
    call = metering.Call(group.provider, kind, group.sku, service=kind, tier=group.tier)
    about = dict(facts) if group.on_cpu else {"model": group.model, "uuids": list(group.uuids), **facts}
    reading = Reading({group.meter: seconds}, {kind: about}, model=group.sku, tier=group.tier, region=group.region)
    return metering.record_held(
        call, reading, cost=cost_of(group, seconds), scope=scope, at=at, duration=length,
        id=_charge_id(group, key, at, part), error=error, paid=paid,
    )  # fmt: skip


def _charge_id(group: Group, key: str, at: int, part: int) -> str:
    window = at // WINDOW_NS
    what = ",".join(group.uuids) or f"{group.owner}|{group.model} x {group.held}|{group.unclaimed}"
    tail = hashlib.blake2b(f"{key}|{what}|{window}|{part}".encode(), digest_size=8).hexdigest()
    return f"{window * WINDOW_NS:016x}{tail}"
