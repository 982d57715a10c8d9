"""What is left of a run whose process was killed: a small file beside the ledger, and the attempt that closes it.

Charges go into the ledger once a minute. In between, the file says what is held since when, and its time of change is a heartbeat: whoever
finds the file of a process that is gone knows to a few seconds until when its devices were held. He writes that rest into the ledger as lost,
once, and says how much work was lost: everything since the last checkpoint.

A file belongs to one process. It is `<run>~<rank>~<process>.jsonl`; each line is one JSON object, the first says who and what:

    {"run": ..., "attempt": 2, "pid": ..., "host": ..., "born": ..., "started": ..., "tags": {...}, "groups": [...]}
    {"at": ..., "allocated_s": ..., "steps": ..., "groups": [...]}     charged until then; what is held from then on
    {"checkpoint": ..., "step": ...}
    {"closed": ..., "error": ""}

Beside it `<run>~<rank>~<process>.held` has the present state of what the run holds of its budgets in advance, `{reservation: facts}`; null while
that changes. Who closes the file settles those reservations.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from aifinops.errors import swallow

__all__ = ["Group", "Journal", "Lost", "folder_beside", "lost_attempts", "next_attempt"]

FRESH_NS = 30 * 1_000_000_000
"""A heartbeat of another machine that is no older is that of a living process."""


@dataclass(frozen=True, slots=True)
class Group:
    """Devices of one price that are held together.

    Attributes:
        model: as the driver names them. uuids: which, empty for devices that were only named. held: how many, a slice for its share.
        provider, sku, tier, region: as charges name what was used. usd_per_hour: of one; None is unknown.
        price_id, as_of, source: of that price. unclaimed: held on this machine, and no rank's own.
        owner: whose they are, where no UUID tells them from those of other ranks.
        meter: what their time is counted as: `gpu_seconds`, or `cpu_seconds` for processors, of which `model` is `CPU`.
        implied: nobody has asked for them: where they have no price, that holds up no run under a limit in money.
    """

    model: str
    uuids: tuple[str, ...]
    held: Decimal
    provider: str
    sku: str
    tier: str = ""
    region: str = ""
    usd_per_hour: Decimal | None = None
    price_id: str = ""
    as_of: str = ""
    source: str = ""
    unclaimed: bool = False
    owner: str = ""
    meter: str = "gpu_seconds"
    implied: bool = False

    @property
    def on_cpu(self) -> bool:
        """Whether these are processors: their time is no device time."""
        return self.meter == "cpu_seconds"

    def to_json(self) -> dict[str, Any]:
        """For a line of the file."""
        # Left out where they say nothing, so that older versions read the file, too.
        more = {"meter": self.meter, "implied": self.implied} if self.on_cpu else {}
        return more | {
            "model": self.model, "uuids": list(self.uuids), "held": str(self.held), "provider": self.provider, "sku": self.sku,
            "tier": self.tier, "region": self.region, "usd_per_hour": None if self.usd_per_hour is None else str(self.usd_per_hour),
            "price_id": self.price_id, "as_of": self.as_of, "source": self.source, "unclaimed": self.unclaimed, "owner": self.owner,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Group:
        """Back again."""
        usd = value["usd_per_hour"]
        return cls(
            **{
                **value,
                "uuids": tuple(value["uuids"]),
                "held": Decimal(value["held"]),
                "usd_per_hour": None if usd is None else Decimal(usd),
            }
        )

    def usd(self, seconds: Decimal) -> Decimal | None:
        """What that many seconds of all of them cost."""
        return None if self.usd_per_hour is None else self.usd_per_hour * self.held * seconds / 3600


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt that was killed.

    Attributes:
        run, attempt, rank, name: which. started, last_seen: wall clock, nanoseconds.
        steps: that it is known to have made. checkpoint: when it last saved, None for never.
        charged_to: until when it is in the ledger. groups: what it held from then on. tags: whose it was.
        holds: reservation -> what it held of budgets, None where nobody knows.
        wasted_s: device-seconds since the checkpoint. wasted_usd: what they cost; None when a price is unknown.
    """

    run: str
    attempt: int
    rank: int
    started: int
    last_seen: int
    steps: int
    checkpoint: int | None
    charged_to: int
    groups: tuple[Group, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    wasted_s: Decimal = Decimal(0)
    wasted_usd: Decimal | None = Decimal(0)
    name: str = ""
    holds: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    @property
    def rest_ns(self) -> int:
        """How long devices were held that no charge tells of, nanoseconds."""
        return max(0, self.last_seen - self.charged_to)


class Journal:
    """The file of this process's run.

    Args:
        folder: where. run, rank, attempt: which. first: what else the first line says.
    """

    def __init__(self, folder: Path, run: str, rank: int, attempt: int, now: int, **first: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{_stem(run, rank)}~{os.getpid()}-{now:x}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._held_path = self.path.with_suffix(".held")
        self._holds: dict[str, Mapping[str, Any] | None] = {}
        who = {"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}
        self.note(now, run=run, rank=rank, attempt=attempt, started=now, **who, **first)

    def note(self, now: int, **fields: Any) -> None:
        """Append a line."""
        os.write(self._file, (json.dumps(fields) + "\n").encode())
        self.beat(now)

    def beat(self, now: int) -> None:
        """Still alive at this moment of the wall clock."""
        os.utime(self.path, ns=(now, now))

    # --- what is held of budgets, in a file beside it: the last state only, since it changes every few seconds ----------------

    def changing(self, id: str) -> None:
        """What this reservation holds is about to change."""
        self._write_holds(id, None)

    def holds(self, id: str, facts: Mapping[str, Any]) -> None:
        """It holds this; what it has paid until then it was alive for."""
        self._write_holds(id, facts)
        self.beat(int(facts["at"]))

    def over(self, id: str) -> None:
        """It holds nothing any more."""
        self._holds.pop(id, None)
        self._write_holds("", None)

    def _write_holds(self, id: str, facts: Mapping[str, Any] | None) -> None:
        try:
            if id:
                self._holds[id] = facts
            if not self._holds:
                self._held_path.unlink(missing_ok=True)
                return
            # A last line that was cut off is none: then nobody knows, and the lease decides.
            text = json.dumps(self._holds) + "\n"
            self._held_path.write_text(text, encoding="utf-8")
        except OSError as failure:  # the lease decides
            swallow("gpu.journal_holds", failure)

    def close(self, now: int, error: str = "", *, keep: bool = True) -> None:
        """The run has ended; `keep` where another attempt may want to know of it."""
        if keep:
            self.note(now, closed=now, error=error)
        os.close(self._file)
        with suppress(OSError):
            self._held_path.unlink(missing_ok=True)
        if not keep:
            self.path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """In a forked child: the file is the parent's."""
        with suppress(OSError):
            os.close(self._file)


def folder_beside(ledger: Path | None) -> Path | None:
    """Where the files of a ledger lie; None beside one in memory."""
    return None if ledger is None else ledger.with_name(f"{ledger.name}.runs")


def next_attempt(folder: Path | None, run: str, rank: int, restart: int = 0) -> int:
    """The number of a new attempt of a run, from 1: one more than the last that has ended.

    It shares that of one that is still alive, and that of an earlier block of this process.
    """
    before, alive = 0, 0
    for path in _files(folder, f"{_stem(run, rank)}~*.jsonl"):
        story = _read(path)
        if story is None:
            continue
        if not _alive(story, path) or (story.closed and int(story.first.get("pid", 0)) != os.getpid()):
            before = max(before, story.attempt)
        else:
            alive = max(alive, story.attempt)
    return max(alive or before + 1, restart + 1)


def lost_attempts(folder: Path | None, run: str, rank: int, now: int) -> Iterator[Lost]:
    """Take over the files of processes that are gone: of this run and rank, and those of other runs that no attempt will come back for.

    Each is given to one caller only, and is closed once he has dealt with it. It stays where it is, for whoever looks for its number.
    """
    mine = _stem(run, rank)
    for path in _files(folder, "*.jsonl"):
        story = _read(path)
        if story is None:
            continue
        if story.closed:
            if path.name.startswith(f"{mine}~"):
                path.unlink(missing_ok=True)  # the attempt that begins now knows its number
        elif not _alive(story, path):
            yield from _taken(path, now)


def _taken(path: Path, now: int) -> Iterator[Lost]:
    mark = path.with_suffix(".taken")
    seen = _changed(path)
    try:
        if mark.exists() and time.time_ns() - _changed(mark) > FRESH_NS:  # whoever had it is gone, too
            mark.unlink(missing_ok=True)
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError:  # somebody else was quicker
        return
    try:
        story = _read(path)
        if story is None or story.closed:
            return
        held = path.with_suffix(".held")
        yield replace(story.lost(min(seen, now)), holds=_holds_of(held))
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"closed": now, "error": "lost"}) + "\n")
        with suppress(OSError):
            held.unlink(missing_ok=True)
    finally:
        mark.unlink(missing_ok=True)


# --- reading -----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Story:
    """What a file says."""

    first: Mapping[str, Any]
    charged: int
    groups: tuple[Group, ...]
    steps: int = 0
    checkpoint: int | None = None
    closed: bool = False
    held: list[tuple[int, tuple[Group, ...]]] = field(default_factory=list)  # from when, what

    @property
    def attempt(self) -> int:
        return int(self.first["attempt"])

    def lost(self, seen: int) -> Lost:
        since = int(self.first["started"]) if self.checkpoint is None else self.checkpoint
        seconds, usd = self._between(since, seen)
        return Lost(
            run=str(self.first["run"]),
            attempt=self.attempt,
            rank=int(self.first["rank"]),
            started=int(self.first["started"]),
            last_seen=seen,
            steps=self.steps,
            checkpoint=self.checkpoint,
            charged_to=self.charged,
            groups=self.groups,
            tags=dict(self.first.get("tags", {})),
            wasted_s=seconds,
            wasted_usd=usd,
            name=str(self.first.get("name", "")),
        )

    def _between(self, start: int, end: int) -> tuple[Decimal, Decimal | None]:
        seconds, usd = Decimal(0), Decimal(0)
        known = True
        for place, (since, groups) in enumerate(self.held):
            until = self.held[place + 1][0] if place + 1 < len(self.held) else end
            length = Decimal(max(0, min(until, end) - max(since, start))).scaleb(-9)
            for group in groups:
                seconds += group.held * length
                cost = group.usd(length)
                known = known and cost is not None
                usd += cost or 0
        return seconds, usd if known else None


def _holds_of(path: Path) -> dict[str, Mapping[str, Any] | None]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> _Story | None:
    """None for what is no whole file of ours; a last line that was cut off counts for nothing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        first = json.loads(lines[0])
        groups = tuple(map(Group.from_json, first["groups"]))
        started = int(first["started"])
        story = _Story(first, started, groups, held=[(started, groups)])
        _ = story.attempt, str(first["run"]), int(first["rank"])
        for line in lines[1:]:
            _take(story, line)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return story


def _take(story: _Story, line: str) -> None:
    try:
        value = json.loads(line)
    except ValueError:
        return
    if "at" in value:
        story.charged, story.steps = int(value["at"]), int(value.get("steps", story.steps))
        if "groups" in value:
            story.groups = tuple(map(Group.from_json, value["groups"]))
            story.held.append((story.charged, story.groups))
    elif "checkpoint" in value:
        story.checkpoint, story.steps = int(value["checkpoint"]), int(value.get("step", story.steps))
    elif "closed" in value:
        story.closed = True


def _files(folder: Path | None, pattern: str) -> Sequence[Path]:
    return sorted(folder.glob(pattern)) if folder is not None and folder.is_dir() else ()


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _alive(story: _Story, path: Path) -> bool:
    """Of a process on this machine the machine knows; of another one its heartbeat."""
    pid, first = int(story.first.get("pid", 0)), story.first
    if first.get("host") == socket.gethostname():
        born = _born(pid)
        return _running(pid) if born is None else born == first.get("born")
    return time.time_ns() - _changed(path) < FRESH_NS


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _born(pid: int) -> str | None:
    """When a process began, as Linux counts it: a number that came back belongs to another one. Empty for one that is dead and not yet
    buried; None where that cannot be said, or there is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return "" if state in {"Z", "X"} else rest[18]


def _stem(run: str, rank: int) -> str:
    readable = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in run)[:48]
    return f"{readable}-{hashlib.blake2b(run.encode(), digest_size=6).hexdigest()}~{rank}"
