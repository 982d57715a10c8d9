"""A spool: what is on its way to a ledger that is elsewhere, on disk until that ledger has confirmed it.

`Spool.put` copies a charge into a file of reserved size that the process has mapped into its memory, as `aifinops.ledger.journal` does,
so a charge survives a SIGKILL once `put` has returned, whether its target is up or not. A thread, started at the first `put`, delivers
in batches and in order. What a target has confirmed is noted in the file, behind the fact: after a crash the last batch may be
delivered again, and the target knows each charge by its id (at least once, and once after de-duplication).

Every process writes files of its own (see `aifinops.ledger.spool_files`). Whoever delivers takes over the files of processes that live no
more, oldest segment first. In a forked child nothing of the parent's is delivered.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from aifinops.charges import Charge
from aifinops.errors import StoreError, swallow
from aifinops.files import forks
from aifinops.ledger.base import (
    Capabilities,
    Compaction,
    Group,
    Ledger,
    LedgerInfo,
    Progress,
    Query,
    Verification,
)
from aifinops.ledger.codec import charge_of, frozen, line_of, packed, row_of_line
from aifinops.ledger.spool_files import (
    AVAILABLE,
    FRAME,
    HEAD,
    LOCK,
    SEGMENT,
    SUFFIX,
    Frame,
    Segment,
    Source,
    bytes_in,
    charge_in,
    claimed,
    delivered_of,
    files_in,
    frames_of,
    note,
    reserved,
    taken,
)

__all__ = ["AVAILABLE", "MAX_BYTES", "PartlyRefused", "Spool", "Spooled", "quarantined", "waiting"]

logger = logging.getLogger("aifinops")

MAX_BYTES = 1 << 30
"""The most that a folder of spools may take on the disk, unless it is set."""

BATCH = 500
"""Charges that are delivered at once."""

_FIRST = 64
_QUARANTINE = "quarantine.jsonl"
_FULL_PAUSE_NS = 1_000_000_000
_READ_S = 30.0


class PartlyRefused(Exception):
    """A target has taken a batch and refused some of it for good, without saying which.

    Args:
        count: how many. why: what the target says.
    """

    def __init__(self, count: int, why: str) -> None:
        super().__init__(f"{count} charges were refused: {why}")
        self.count = count


class Spool:
    """Charges on their way.

    Args:
        folder: where files are, one folder a target. deliver: takes a batch; a `StoreError` means not now (with an attribute `retry_after_s`
            where the target has named a time), any other error that it will never take this batch.
        max_bytes: the most that the folder may take. segment_bytes: reserved at a time. batch: the most charges at once.
        every_s: how long charges gather before they are delivered. adopt_every_s: how often it is looked for files of dead processes.
        backoff_s: first and longest pause while the target is down; each is twice the one before, less up to a half by chance.
        monotonic_ns, uniform: clock and chance, for tests. thread: False delivers in `flush` alone.

    Attributes:
        dropped: charges that were lost since the spool was full. refused: charges that the target will never take; they are in the quarantine.
        delivered: charges that the target has confirmed. damaged: entries that cannot be read. trouble: why the last delivery failed, empty
            when it did not.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        deliver: Callable[[Sequence[Charge]], object],
        *,
        max_bytes: int = MAX_BYTES,
        segment_bytes: int = SEGMENT,
        batch: int = BATCH,
        every_s: float = 1.0,
        adopt_every_s: float = 30.0,
        backoff_s: tuple[float, float] = (0.5, 30.0),
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        uniform: Callable[[float, float], float] = random.uniform,
        thread: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self._deliver = deliver
        self._max_bytes, self._segment_bytes, self._batch = max_bytes, max(segment_bytes, 2 * HEAD), batch
        self._every_s, self._adopt_every_ns = every_s, int(adopt_every_s * 1e9)
        self._backoff_s = backoff_s
        self._now, self._uniform = monotonic_ns, uniform
        self._wants_thread = thread
        self._forget()
        forks.watch(self)

    def _forget(self) -> None:
        self._lock = threading.RLock()  # around files and their lists; never held while something is delivered
        self._turn = threading.Lock()  # whoever delivers has it
        self._changed = threading.Condition(threading.Lock())
        self._wake = threading.Event()
        self._own: Source | None = None
        self._adopted: deque[Source] = deque()
        self._map: Any = None
        self._end = self._size = self._number = 0
        self._inside = False
        self._later: deque[bytes] = deque()
        self._full_until = 0
        self._thread: threading.Thread | None = None
        self._asked = self._answered = self._failed = 0
        self._adopted_at: int | None = None
        self._pause = 0.0
        self._not_before = self._retry_at = 0
        self.trouble = ""
        self._put = self._settled = 0
        self.dropped = self.refused = self.delivered = self.damaged = 0
        self._said: set[str] = set()

    # --- putting ------------------------------------------------------------------------------------------------------

    def put(self, charge: Charge) -> bool:
        """Keep one charge until it is delivered; it survives a SIGKILL once this has returned.

        Returns:
            False when the spool is full: the charge is lost, and counted.

        Raises:
            StoreError: when the disk is full; the same charge may be given again.
        """
        entry = frozen(charge)
        with self._lock:
            if self._inside:  # the garbage collector or a signal handler settles a call while this thread is in here
                self._later.append(entry)
                return True
            self._inside = True
            try:
                kept = self._write(entry)
                while self._later:
                    self._write(self._later.popleft())
            finally:
                self._inside = False
        if self._thread is None:
            self._start()
        elif self._put % self._batch == 0:
            self._wake.set()
        return kept

    def _write(self, entry: bytes) -> bool:
        size = len(entry) + FRAME.size
        if self._end + size > self._size and not self._grow(size):
            self.dropped += 1
            return False
        start, self._end = self._end, self._end + size
        self._map[start + FRAME.size : start + size] = entry
        FRAME.pack_into(self._map, start, len(entry), crc32(entry))  # last: an entry is there once this is
        self._put += 1
        return True

    def _grow(self, least: int) -> bool:
        """A new segment; False when there is no room for it."""
        now = self._now()
        if now < self._full_until:
            return False
        size = max(self._segment_bytes, least + HEAD)
        try:
            own = self._own = self._own or claimed(self.folder)
            if bytes_in(self.folder) + size > self._max_bytes:
                self._full_until = now + _FULL_PAUSE_NS
                self.say(
                    "full",
                    f"{self.folder} holds {self._max_bytes:,} bytes that wait for the ledger; charges are lost, and counted, until there is room",
                )
                return False
            path = self.folder / f"{own.path.stem}.{self._number:08d}{SUFFIX}"
            mapped = reserved(path, size)
        except OSError as error:
            raise StoreError(f"spool {self.folder}: {error.strerror or error}") from error
        if own.segments:
            own.segments[-1].end = self._end
        own.segments.append(Segment(path))
        self._number += 1
        self._map, self._size, self._end = mapped, size, HEAD
        return True

    @property
    def pending(self) -> int:
        """Charges of this process that the target has not confirmed."""
        return self._put - self._settled

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _start(self) -> bool:
        """Have a thread that delivers; False where there is none to be had (the interpreter is about to end)."""
        if not self._wants_thread:
            return False
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="aifinops-spool", daemon=True)
                self._thread = thread  # first: the thread ends when it is not this one
                try:
                    thread.start()
                except RuntimeError:
                    self._thread = None
                    return False
            return True

    def _run(self) -> None:
        me = threading.current_thread()
        try:
            while self._thread is me:
                asked = self._asked
                if self._due(asked):
                    self._attempt(asked)
                self._wake.wait(self._rest_s(asked))
                self._wake.clear()
        finally:
            if self._thread is me:  # the next `put` starts another
                self._thread = None

    def _due(self, asked: int) -> bool:
        now = self._now()
        return now >= self._retry_at and (now >= self._not_before or asked > max(self._answered, self._failed))

    def _rest_s(self, asked: int) -> float:
        until = self._retry_at if asked > max(self._answered, self._failed) else max(self._retry_at, self._not_before)
        left = (until - self._now()) / 1e9
        return left if left > 0 else self._every_s

    def _attempt(self, asked: int) -> None:
        """Deliver what there is, and say to whoever waits in `flush` what came of it."""
        forced = asked > max(self._answered, self._failed)
        try:
            self._drain(forced=forced)
        except StoreError as error:
            self._failed_with(error, anew=forced)
        except Exception as error:  # a bug of ours must not end the thread; what was not delivered still waits
            self._failed_with(error, anew=forced)
            self._tell(failed=asked)
            swallow("ledger.spool", error)
        else:
            self._pause, self._not_before, self.trouble = 0.0, 0, ""
            self._tell(answered=asked)
            return
        self._tell(failed=asked)

    def _failed_with(self, error: Exception, *, anew: bool) -> None:
        first, longest = self._backoff_s
        self._pause = first if anew else min(longest, max(first, 2 * self._pause))
        now = self._now()
        self._not_before = now + int(self._pause * self._uniform(0.5, 1.0) * 1e9)
        told = getattr(error, "retry_after_s", None)
        if told is not None:
            self._retry_at = now + int(told * 1e9)
        self.trouble = str(error)
        self.say("down", f"{error}; charges wait in {self.folder} and are delivered when it is back")

    def _tell(self, *, answered: int = 0, failed: int = 0) -> None:
        with self._changed:
            self._answered = max(answered, self._answered)
            self._failed = max(failed, self._failed)
            self._changed.notify_all()

    def flush(self, timeout_s: float, *, patient: bool = True) -> bool:
        """Deliver now what is waiting, also of processes that live no more.

        Args:
            timeout_s: how long this may take, seconds. patient: False gives up at the first failure instead of trying again until then.

        Returns:
            False when something still waits; it stays in its file.
        """
        if self._own is None and not self._adopted and not files_in(self.folder, LOCK):
            return True
        with self._changed:
            self._asked += 1
            mine = self._asked
        self._wake.set()
        if not self._start():
            if self._now() >= self._retry_at:
                self._attempt(mine)
            return self._answered >= mine
        with self._changed:
            self._changed.wait_for(
                lambda: self._answered >= mine or (not patient and self._failed >= mine) or self._thread is None,
                timeout_s,
            )
            return self._answered >= mine

    # --- delivering ---------------------------------------------------------------------------------------------------

    def _drain(self, *, forced: bool) -> None:
        """Deliver what there is, one batch of each process after the other.

        Raises:
            StoreError: when the target does not take it now, or a file cannot be read.
        """
        try:
            with self._turn:
                self._adopt(forced=forced)
                thread, more = self._thread, True
                while more and self._thread is thread:
                    with self._lock:
                        sources = [*([self._own] if self._own is not None else []), *self._adopted]
                    more = max(map(self._deliver_some, sources), default=False)  # each has its turn
        except OSError as error:
            raise StoreError(f"spool {self.folder}: {error.strerror or error}") from error

    def _deliver_some(self, source: Source) -> bool:
        """One batch; whether there is more."""
        with self._lock:
            if not source.segments:
                return False
            segment = source.segments[0]
            active = source is self._own and segment is source.segments[-1]
            end = self._end if active else segment.end
        # Few, as long as it is not known whether the target takes anything: a batch that is refused is told apart by halves.
        frames, place, ended = frames_of(segment, end, self._batch if self.delivered else min(self._batch, _FIRST))
        charges = self._charges(frames)
        if charges:
            self._hand_over(charges)
        if place > segment.done:
            note(segment, place)
        if source is self._own:
            self._settled += len(frames)
        if ended and not active:
            self._finish(source, segment)
        return bool(source.segments) if ended and not active else not ended

    def _finish(self, source: Source, segment: Segment) -> None:
        segment.path.unlink(missing_ok=True)
        with self._lock:
            if source.segments and source.segments[0] is segment:
                source.segments.popleft()
            if source in self._adopted and not source.segments:
                self._adopted.remove(source)
                source.release()

    def _charges(self, frames: Sequence[Frame]) -> list[Charge]:
        found = []
        for frame in frames:
            charge = charge_in(frame)
            if charge is not None:
                found.append(charge)
            else:
                self.damaged += 1
                self.say("damaged", f"an entry in {self.folder} is damaged and is left out")
        return found

    def _hand_over(self, charges: Sequence[Charge]) -> None:
        """To the target; what it will never take goes into the quarantine, one by one, and the others through."""
        refused = list(self._refused_of(charges))
        if refused and not self.delivered:
            # A wrong address or a receiver of something else refuses all there is: that is no fault of the charges, so they wait.
            raise StoreError(f"{refused[0][1]} (nothing has been taken so far)")
        for charge, error in refused:
            self._quarantine([charge], error)
            self.refused += 1

    def _refused_of(self, charges: Sequence[Charge]) -> Iterator[tuple[Charge, Exception]]:
        """Deliver; what is refused is told apart by halves."""
        try:
            self._deliver(charges)
        except StoreError:
            raise
        except PartlyRefused as error:
            self._quarantine(charges, error)
            self.refused += error.count
            self.delivered += len(charges) - error.count
        except Exception as error:
            if len(charges) > 1:
                middle = len(charges) // 2
                yield from self._refused_of(charges[:middle])
                yield from self._refused_of(charges[middle:])
            else:
                yield charges[0], error
        else:
            self.delivered += len(charges)

    def _quarantine(self, charges: Sequence[Charge], error: Exception) -> None:
        path = self.folder / _QUARANTINE
        why = json.dumps(str(error) or repr(error))
        text = "".join(f'{{"why":{why},"charge":{line_of(packed(charge))}}}\n' for charge in charges)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            data = memoryview(text.encode())
            while data:
                data = data[os.write(file, data) :]
        finally:
            os.close(file)
        self.say(
            "refused",
            f"the ledger refuses charges ({error}); they are kept in {path}, and further ones are only counted",
        )

    # --- files of others ----------------------------------------------------------------------------------------------

    def _adopt(self, *, forced: bool) -> None:
        """Take over the files of processes that live no more."""
        now = self._now()
        if not forced and self._adopted_at is not None and now < self._adopted_at + self._adopt_every_ns:
            return
        self._adopted_at = now
        held = {source.path for source in (self._own, *self._adopted) if source is not None}
        for path in files_in(self.folder, LOCK):
            if path not in held:
                source = taken(path)
                if source is not None:
                    self._adopted.append(source)

    def deliver_living(self) -> None:
        """Deliver what other living processes have waiting on this machine, too; they will deliver it once more.

        Raises:
            StoreError: when the target does not take it, or a file cannot be read.
        """
        with self._lock:
            own = None if self._own is None else self._own.path.stem
        for path in files_in(self.folder, SUFFIX):
            if path.name.partition(".")[0] != own:
                try:
                    self._copy(Segment(path, delivered_of(path)))
                except FileNotFoundError:
                    continue  # its own process has delivered it
                except OSError as error:
                    raise StoreError(f"spool {self.folder}: {error.strerror or error}") from error

    def _copy(self, segment: Segment) -> None:
        ended = False
        while not ended:
            frames, place, ended = frames_of(segment, None, self._batch)
            charges = [charge for charge in map(charge_in, frames) if charge is not None]
            if charges:
                with suppress(PartlyRefused):  # its own process will say so
                    self._deliver(charges)
            segment.done = place

    # --- life ---------------------------------------------------------------------------------------------------------

    def close(self, timeout_s: float = 2.0) -> bool:
        """Deliver what is waiting, for so long at most, and let go of the files; a later `put` makes new ones.

        Returns:
            False when something still waits: the next process that has this folder delivers it.
        """
        done = self.flush(timeout_s, patient=False)
        with self._lock:
            thread, self._thread = self._thread, None
        self._wake.set()
        with self._changed:
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        with self._lock:
            own, self._own = self._own, None
            if own is not None:
                self._remove_delivered(own)
                own.release()
            adopted, self._adopted = self._adopted, deque()
            for source in adopted:
                source.release()
            self._map = None
            self._end = self._size = 0
            waiting, self._put, self._settled = self.pending, 0, 0
        if waiting:
            self.say("left", f"{waiting} charges wait in {self.folder}; the next process that uses it delivers them")
        with suppress(OSError):  # it was never made, or there is something in it
            self.folder.rmdir()
        return done

    def _remove_delivered(self, own: Source) -> None:
        while own.segments:
            segment = own.segments[0]
            if segment.done < (self._end if segment.end is None else segment.end):
                return
            segment.path.unlink(missing_ok=True)
            own.segments.popleft()

    def stop(self) -> None:
        """Nobody is in the files, until `go_on`: this process is about to fork."""
        self._lock.acquire()

    def go_on(self) -> None:
        """After `stop`."""
        self._lock.release()

    def reset_after_fork(self) -> None:
        """In a forked child: what waits is the parent's to deliver. It keeps its locks, and the child begins with nothing."""
        for source in (self._own, *self._adopted):
            if source is not None:
                with suppress(OSError):
                    os.close(source.lock)  # of a lock that the parent holds as well, it stays
        self._forget()

    def say(self, topic: str, text: str) -> None:
        """Log a warning, once a topic."""
        if topic not in self._said:
            self._said.add(topic)
            logger.warning("aifinops: %s", text)


def quarantined(folder: str | os.PathLike[str]) -> Iterator[tuple[str, Charge]]:
    """What targets have refused for good: why, and the charge. To give it once more, append these to a ledger and delete the file."""
    with suppress(FileNotFoundError), (Path(folder) / _QUARANTINE).open("rb") as file:
        for line in file:
            with suppress(ValueError):  # the last line of a process that was killed
                entry = json.loads(line)
                yield entry["why"], charge_of(row_of_line(json.dumps(entry["charge"]).encode()))


def waiting(folder: str | os.PathLike[str]) -> int:
    """How many charges wait in a folder of spools, those of living processes as well."""
    count = 0
    for path in files_in(Path(folder), SUFFIX):
        with suppress(FileNotFoundError):  # delivered meanwhile
            segment, ended = Segment(path, delivered_of(path)), False
            while not ended:
                found, segment.done, ended = frames_of(segment, None, 100_000)
                count += len(found)
    return count


class Spooled:
    """A ledger elsewhere behind a spool: metering never waits for it, and what it cannot take now waits on disk.

    `enqueue` puts into the spool; everything else asks the ledger, after what is waiting has been delivered.

    Args:
        target: the ledger. It knows entries by their ids, so that a second delivery changes nothing.
        folder: where the spool is. read_s: how long a reader waits for what is on its way, seconds. **options: see `Spool`.
    """

    def __init__(
        self, target: Ledger, folder: str | os.PathLike[str], *, read_s: float = _READ_S, **options: Any
    ) -> None:
        self.target = target
        self.spool = Spool(folder, target.append_many, **options)
        self._read_s = read_s

    @property
    def capabilities(self) -> Capabilities:
        """Those of the target, and durable from `enqueue` on."""
        own = self.target.capabilities
        return replace(own, durable=AVAILABLE or own.durable)

    @property
    def dropped(self) -> int:
        """Charges that were lost since the spool was full."""
        return self.spool.dropped

    @property
    def pending(self) -> int:
        """Charges of this process that are on their way."""
        return self.spool.pending

    def enqueue(self, charge: Charge) -> None:
        """Keep one entry in the spool; it survives a SIGKILL once this has returned.

        Raises:
            StoreError: when the disk is full.
        """
        if AVAILABLE:
            self.spool.put(charge)
        else:
            self.target.append(charge)

    def append(self, charge: Charge) -> bool:
        """Keep one entry in the target itself; False when its id was known.

        Raises:
            StoreError: when the target does not take it.
        """
        self._catch_up()
        return self.target.append(charge)

    def append_many(self, charges: Sequence[Charge]) -> int:
        """Keep several in the target itself, all or none; how many were new.

        Raises:
            StoreError: when none was kept.
        """
        self._catch_up()
        return self.target.append_many(charges)

    def rows(self, query: Query = Query()) -> Iterator[Charge]:  # noqa: B008 - frozen, so one default can serve all calls
        """The entries of the target, after what is waiting has been delivered.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the target cannot be asked, or does not take what is waiting.
        """
        self._catch_up(everybodys=True)
        return self.target.rows(query)

    def summarize(self, query: Query = Query(), by: Sequence[str] = ()) -> list[Group]:  # noqa: B008 - as above
        """Sums by the target, after what is waiting has been delivered.

        Raises:
            ConfigurationError: for a wrong key. StoreError: when the target cannot be asked, or does not take what is waiting.
        """
        self._catch_up(everybodys=True)
        return self.target.summarize(query, by)

    def info(self) -> LedgerInfo:
        """What the target says of itself, after what is waiting has been delivered.

        Raises:
            StoreError: when the target cannot be asked, or does not take what is waiting.
        """
        self._catch_up(everybodys=True)
        return self.target.info()

    def compact(self, before_ns: int, *, progress: Progress | None = None) -> Compaction:
        """Compact the target, after what is waiting has been delivered.

        Raises:
            ConfigurationError: when it cannot do it. StoreError: when it cannot be written.
        """
        self._catch_up(everybodys=True)
        return self.target.compact(before_ns, progress=progress)

    def verify(self, *, progress: Progress | None = None) -> Verification:
        """Look through the target, after what is waiting has been delivered.

        Raises:
            ConfigurationError: when it cannot do it. StoreError: when it cannot be read.
        """
        self._catch_up(everybodys=True)
        return self.target.verify(progress=progress)

    def _catch_up(self, *, everybodys: bool = False) -> None:
        if not self.spool.flush(self._read_s, patient=False):
            raise StoreError(
                f"{self.spool.pending} charges wait in {self.spool.folder}: {self.spool.trouble or 'the ledger is slow'}"
            )
        if everybodys:
            self.spool.deliver_living()

    def flush(self, timeout_s: float) -> bool:
        """Deliver what is waiting, for so long at most; False when something still waits."""
        return self.spool.flush(timeout_s)

    def close(self) -> None:
        """Deliver what is waiting, for two seconds at most, and let go; what is left waits on disk for the next process."""
        self.spool.close()
        self.target.close()

    def reset_after_fork(self) -> None:
        """In a forked child: nothing of the parent's is ours to deliver."""
        self.spool.reset_after_fork()
        self.target.reset_after_fork()
