"""The processors of a machine without accelerators: how many of them this process may use, and which part of those a rank pays for.

A limit of the container comes first (cgroups: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files, `cpu.max`, and in the older
hierarchy `cpu.cfs_quota_us`), since whoever rents the machine has given that much of it away; then the set of processors that the process is
bound to; then the machine. The instance is billed whole: what is charged here is this process's part of it, and the whole stands beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

from aifinops.gpu.backends.base import Device

if TYPE_CHECKING:
    from aifinops.gpu.distributed import Rank

__all__ = ["VENDOR", "Cpus", "device", "part_of", "processors"]

VENDOR = "cpu"
"""What a `Device` has for a vendor that stands for processors; no backend reads those."""

_MILLI = Decimal("0.001")


@dataclass(frozen=True, slots=True)
class Cpus:
    """Processors that are paid for. One is what clouds call a vCPU: a hardware thread.

    Attributes:
        count: how many; a fraction where a quota is one. It is at least what the process can use at a moment.
        source: what says so: `cgroup` (a quota), `affinity`, `machine`; empty when unknown.
        machine: of the whole machine, as the system says it; None when unknown. The bill is for all of them: where nothing else runs there, this
            process has caused all of it, so that its part lies between `count` and `machine`.
    """

    count: Decimal
    source: str = ""
    machine: int | None = None


def processors(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Cpus:
    """Those that this process may use; one of unknown source where nothing says how many there are.

    Args:
        proc, groups: where the system tells of processes and of cgroups, for tests.
    """
    machine = os.cpu_count()
    found = Cpus(Decimal(machine or 1), "machine" if machine else "", machine)
    bound = _bound_to()
    if bound and bound < found.count:
        found = Cpus(Decimal(bound), "affinity", machine)
    quota = min(_quotas(proc, groups), default=None)
    if quota is not None and quota < found.count:
        found = Cpus(quota, "cgroup", machine)
    return found


def _bound_to() -> int:
    """To how many processors the process is bound; 0 where the system does not say it."""
    ask = getattr(os, "sched_getaffinity", None)
    try:
        return len(ask(0)) if ask is not None else 0
    except OSError:
        return 0


def _quotas(proc: Path, groups: Path) -> Iterator[Decimal]:
    """What the group of this process may use, and every group around it, of those that have a limit."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        names = controllers.split(",")
        if not controllers:
            for folder in _around(groups, path):
                quota, _, period = _text(folder / "cpu.max").partition(" ")
                yield from _processors_of(quota, period)
        elif "cpu" in names:
            for name in (controllers, "cpu"):  # the folder is named after all its controllers, with a link for each
                for folder in _around(groups / name, path):
                    yield from _processors_of(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _around(root: Path, path: str) -> Iterator[Path]:
    """The folder of a group and those around it. In a container the path may be the one outside: then the root is the group's own."""
    inner = root / path.strip("/")
    yield inner
    for folder in inner.parents:
        if folder != root and root not in folder.parents:
            break
        yield folder


def _processors_of(quota: str, period: str) -> Iterator[Decimal]:
    try:
        allowed, of = Decimal(quota.strip()), Decimal(period.strip())
    except InvalidOperation:  # "max", or no such file
        return
    if allowed > 0 and of > 0:
        yield max(_MILLI, (allowed / of).quantize(_MILLI))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def part_of(found: Cpus, where: Rank) -> Cpus | None:
    """What a rank pays for of the processors of its machine: an equal part, the first one the rest; together they pay for all, once.

    None for a rank that pays for none: where nobody says how many ranks there are, the first one pays for all.
    """
    if where.alone or where.local_world == 1:
        return found
    if not where.local_world:
        return found if where.local == 0 else None
    each = (found.count / where.local_world).quantize(_MILLI, ROUND_DOWN)
    count = found.count - each * (where.local_world - 1) if where.local == 0 else each
    return Cpus(count, found.source, found.machine)


def device(where: Rank) -> Device:
    """What stands for the processors of a rank, as a device does: a run inside of another takes it from that one, and two ranks have two."""
    import socket

    return Device(-1, f"CPU-{socket.gethostname()}-{where.rank}", "CPU", vendor=VENDOR)
