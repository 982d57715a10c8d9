"""One run in many processes: which rank this is, which devices are its own to pay for, and the step at which all of them stop.

torchrun says it in `RANK`, `LOCAL_RANK` and so on (https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables), `srun` in
`SLURM_PROCID`, `SLURM_LOCALID` (https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES). Each rank pays for its own device,
and the first of a node for what is held there and claimed by none.

A rank that ended alone would leave the others waiting in a collective for ever. So whoever is told to stop first leaves a note at which step
all will, some steps ahead; every rank looks for it at the ends of its steps. The note lies in the store of the budget, which they share.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aifinops.budgets.stores.base import Notes, Put, Store
from aifinops.errors import BudgetExceeded, RunStopped, StoreError, swallow

__all__ = [
    "FileBoard", "Rank", "StopBoard", "StoreBoard", "board", "gather", "launch", "look", "rank", "run_id", "share", "steps_ahead", "stopped",
]  # fmt: skip

T = TypeVar("T")

LOOK_NS = 1_000_000_000
"""Between two looks for a note, at the ends of steps, in nanoseconds."""

_NOTE_NS = 3600 * 1_000_000_000
_RUN_VARIABLES = ("AIFINOPS_RUN_ID", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "JOB_UUID")
_NO_NAMES = frozenset({"", "none"})  # torchrun's id where it was given none


@dataclass(frozen=True, slots=True)
class Rank:
    """Which of several processes this is.

    Attributes:
        rank, world: of all. local, local_world: of those on this machine; a size is 0 when nobody says it.
        restart: how often the launcher has begun them again. alone: True when nobody said that there are others.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1
    restart: int = 0
    alone: bool = True


def rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """What torchrun or `srun` says; of a batch script that is no step of its own, Slurm's variables are about its steps."""
    torchrun = _numbers(environ, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    if torchrun is not None:
        number, world, local = torchrun
        (local_world,) = _numbers(environ, "LOCAL_WORLD_SIZE") or (1 if world == 1 else 0,)
        (restart,) = _numbers(environ, "TORCHELASTIC_RESTART_COUNT") or (0,)
        return Rank(number, world, local, local_world, restart, alone=world == 1)
    slurm = _numbers(environ, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
    if slurm is None:
        only = _numbers(environ, "LOCAL_RANK")  # of a launcher of somebody's own
        return Rank() if only is None else Rank(only[0], 0, only[0], 0, alone=False)
    number, local, world = slurm
    (restart,) = _numbers(environ, "SLURM_RESTART_COUNT") or (0,)
    return Rank(number, world, local, _tasks_here(environ), restart, alone=world == 1)


def _tasks_here(environ: Mapping[str, str]) -> int:
    """`SLURM_STEP_TASKS_PER_NODE` is `4(x2),3`: four tasks on each of two nodes, three on the next."""
    node = environ.get("SLURM_NODEID", "0")
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        count, _, times = part.partition("(x")
        if count.isdigit():
            counts += [int(count)] * int(times.rstrip(")") or 1)
    place = int(node) if node.isdigit() else 0
    return counts[place] if place < len(counts) else 0


def _numbers(environ: Mapping[str, str], *names: str) -> tuple[int, ...] | None:
    values = [environ.get(name, "") for name in names]
    return tuple(map(int, values)) if all(value.isdigit() for value in values) else None


def run_id(environ: Mapping[str, str] = os.environ) -> str:
    """The name that all ranks and all attempts of a run share, by the first of the variables that says one; else empty.

    Ranks of a nameless run on one machine share the process of their launcher, and with it the name of this attempt.
    """
    named = next((value for name in _RUN_VARIABLES if (value := environ.get(name, "").strip()) not in _NO_NAMES), "")
    if named:
        return named[:128]
    if "TORCHELASTIC_RUN_ID" in environ and environ.get("LOCAL_WORLD_SIZE") == environ.get("WORLD_SIZE"):
        return f"torchrun-{os.getppid()}-{environ.get('MASTER_PORT', '')}"
    return ""


def launch(where: Rank, environ: Mapping[str, str] = os.environ) -> str:
    """What tells one launch of a run from another, and is the same on all ranks."""
    place = f"{environ.get('MASTER_ADDR', '')}:{environ.get('MASTER_PORT', '')}:{environ.get('SLURM_STEP_ID', '')}"
    parent = os.getppid() if where.local_world == where.world else ""
    return f"{place}/{where.restart}/{parent}"


def share(devices: Sequence[T], where: Rank) -> tuple[list[T], list[T]]:
    """(what this rank pays for as its own, what it pays for because nobody claims it).

    A launcher that gives every rank only its own device leaves one to choose from; where there are fewer devices than ranks, the ranks
    beyond have none: each is paid for once.
    """
    if where.alone:
        return list(devices), []
    if len(devices) <= 1 and where.local_world != 1 and _own_view():
        return list(devices), []
    own = list(devices[where.local : where.local + 1])
    return own, list(devices[where.local_world :]) if where.local == 0 < where.local_world else []


def _own_view(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has narrowed what this process sees: then one visible device is this rank's, and not that of all."""
    return any(environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"))


# --- stopping together -----------------------------------------------------------------------------------------------------


def steps_ahead(step_s: float) -> int:
    """So many steps from now every rank has seen a note: the time of two looks and a second for hosts that run ahead of their devices."""
    return 3 + math.ceil(3.0 / max(step_s, 1e-4))


class StopBoard(Protocol):
    """Where ranks read at which step to stop."""

    def propose(self, step: int, error: BudgetExceeded) -> dict[str, Any]:
        """Leave a note; what stands there, which is somebody else's when he was quicker."""
        ...

    def read(self) -> dict[str, Any] | None:
        """The note; None while there is none."""
        ...


class StoreBoard:
    """Notes beside the balances of a budget: whoever writes first has the say, which the store sees to.

    Args:
        store: that the ranks share. key: of the run and its attempt. since: notes that are older are of an earlier launch; nanoseconds.
    """

    def __init__(self, store: Store, key: str, since: int) -> None:
        self._store, self._key, self._since = store, key[:256], since

    def propose(self, step: int, error: BudgetExceeded) -> dict[str, Any]:
        """Leave a note, unless there is one."""
        now = time.time_ns()
        found = self.read()
        if found is not None:
            return found
        text = _text(step, error, now)
        Put(self._key, text, now, now + _NOTE_NS, new=True).execute(self._store)
        found = self.read()
        if found is None:  # an old one is in the way
            Put(self._key, text, now, now + _NOTE_NS).execute(self._store)
            found = self.read()
        return found or json.loads(text)

    def read(self) -> dict[str, Any] | None:
        """The note of this launch."""
        for key, value in Notes(self._key, time.time_ns()).execute(self._store):
            if key == self._key:
                return _noted(value, self._since)
        return None


class FileBoard:
    """The same in a file, for ranks that share no store: it is linked into its place whole, or not at all."""

    def __init__(self, path: Path, since: int) -> None:
        self._path, self._since = path, since

    def propose(self, step: int, error: BudgetExceeded) -> dict[str, Any]:
        """Leave a note, unless there is one."""
        text = _text(step, error, time.time_ns())
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        try:
            if self.read() is None:
                self._path.unlink(missing_ok=True)
            os.link(draft, self._path)
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
        return self.read() or json.loads(text)

    def read(self) -> dict[str, Any] | None:
        """The note of this launch."""
        try:
            return _noted(self._path.read_text(encoding="utf-8"), self._since)
        except FileNotFoundError:
            return None


def _text(step: int, error: BudgetExceeded, now: int) -> str:
    figures = {name: str(getattr(error, name)) for name in ("limit", "spent", "reserved", "asked")}
    return json.dumps({"step": step, "at": now, "budget": error.budget, "unit": error.unit, **figures})


def _noted(text: str, since: int) -> dict[str, Any] | None:
    try:
        note = json.loads(text)
        return note if isinstance(note, dict) and int(note["at"]) >= since and int(note["step"]) >= 0 else None
    except (ValueError, KeyError, TypeError):
        return None


def stopped(note: Mapping[str, Any], step: int) -> RunStopped:
    """The error of a rank that stops because of a note."""
    figures = {name: Decimal(note.get(name, "0")) for name in ("limit", "spent", "reserved", "asked")}
    return RunStopped(str(note.get("budget", "")), unit=str(note.get("unit", "USD")), step=step, **figures)


def board(store: Store | None, folder: Path | None, key: str, since: int) -> StopBoard | None:
    """The best place that ranks share: the budget's store, else a file beside the ledger; None where there is neither."""
    if store is not None and store.capabilities.shared:
        return StoreBoard(store, key, since)
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return FileBoard(folder / f"{''.join(c if c.isalnum() or c in '-_' else '_' for c in key)}.stop", since)


def look(where: StopBoard) -> dict[str, Any] | None:
    """Read a board; a store that does not answer says nothing."""
    try:
        return where.read()
    except (StoreError, OSError) as failure:
        swallow("gpu.stop_note", failure)
        return None


# --- together at the end ---------------------------------------------------------------------------------------------------


def gather(value: Any, *, timeout_s: float = 30.0) -> list[Any]:
    """What each rank gives, on every rank; call it on all of them, once the loop is over.

    It is a collective of torch over a group of its own, on the CPU. Without torch, or without a process group, it is `[value]`.
    """
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return [value]
    group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    try:
        found: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, value, group=group)
    finally:
        distributed.destroy_process_group(group)
    return found
