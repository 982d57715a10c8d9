"""Replay a recorded load: the same sizes in the same order, through the real client, against the fake provider.

The file is a CSV with the columns `TIMESTAMP,ContextTokens,GeneratedTokens`, those of the public Azure LLM inference
trace (https://github.com/Azure/AzurePublicDataset, CC-BY): one row a request. The trace has no texts, so prompts are
made up: of exactly as many tokens as the row has, each beginning with a word of its own, so that none is another's
prefix.
"""

from __future__ import annotations

import csv
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from aifinops import scope
from aifinops.errors import BudgetExceeded, ConfigurationError
from aifinops.testing.counting import PER_MESSAGE

__all__ = ["COLUMNS", "Replay", "TraceRow", "prompt_of", "read_trace", "replay", "sender"]

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

Send = Callable[["TraceRow", int], object]
"""Sends one row's request (the row, its position); raises what the client raises."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace: when (aware, UTC), input and output tokens, and the line of the file."""

    at: datetime
    input_tokens: int
    output_tokens: int
    line: int = 0


@dataclass(slots=True)
class Replay:
    """How far a replay came.

    Attributes:
        sent: rows that were answered. input_tokens, output_tokens: their sums, as the trace has them.
        refused: the budget's refusal that ended it, or None when every row was sent.
    """

    sent: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    refused: BudgetExceeded | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, row: TraceRow) -> None:
        """Count an answered row."""
        with self._lock:
            self.sent += 1
            self.input_tokens += row.input_tokens
            self.output_tokens += row.output_tokens


def read_trace(path: str | PathLike[str], *, limit: int | None = None) -> list[TraceRow]:
    """The rows of a trace file, in its order.

    Args:
        path: a CSV file with the columns `TIMESTAMP` (ISO 8601; UTC when it names no zone), `ContextTokens` and
            `GeneratedTokens`.
        limit: read so many rows at most.

    Raises:
        ConfigurationError: naming the file, the line and what is wrong with it; also for a file without rows.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit={limit} must be at least 1")
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(_rows(str(path), csv.reader(file, strict=True), limit))
    except OSError as error:
        raise ConfigurationError(f"trace {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"trace {path} is no CSV text file: {error}") from None
    if not rows:
        raise ConfigurationError(f"trace {path} has no rows")
    return rows


def _rows(path: str, reader: Iterator[list[str]], limit: int | None) -> Iterator[TraceRow]:
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ConfigurationError(f"trace {path}, line 1: no column {missing[0]}; it must say {','.join(COLUMNS)}")
    places = [header.index(name) for name in COLUMNS]
    for position, cells in enumerate(cells for cells in reader if cells):
        if position == limit:
            return
        yield _row(path, reader.line_num, cells, places)  # type: ignore[attr-defined]


def _row(path: str, line: int, cells: Sequence[str], places: Sequence[int]) -> TraceRow:
    if len(cells) <= max(places):
        raise ConfigurationError(f"trace {path}, line {line}: {len(cells)} cells, but {max(places) + 1} are needed")
    when, read, made = (cells[place].strip() for place in places)
    try:
        at = datetime.fromisoformat(when)
    except ValueError:
        raise ConfigurationError(
            f"trace {path}, line {line}: TIMESTAMP {when!r} is no time like 2023-11-16 18:17:03.979"
        ) from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return TraceRow(at, _count(path, line, COLUMNS[1], read), _count(path, line, COLUMNS[2], made), line)


def _count(path: str, line: int, name: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise ConfigurationError(f"trace {path}, line {line}: {name} {text!r} is no whole number of tokens")
    return int(text)


def prompt_of(tokens: int, position: int) -> str:
    """A user message that the fake provider counts as `tokens` (4 of them for the message itself).

    The first word is the position, so that prompts differ from the start. Below 4 tokens the text is empty.
    """
    count = tokens - PER_MESSAGE
    return "" if count < 1 else f"r{position}" + " w" * (count - 1)


def sender(client: Any, model: str) -> Send:
    """Sends rows as chat completions of `model` through an `openai.OpenAI` client."""

    def send(row: TraceRow, position: int) -> object:
        headers = {"x-fake-output-tokens": str(row.output_tokens)}
        if row.input_tokens < PER_MESSAGE:  # fewer tokens than any message has: the fake is told
            headers["x-fake-input-tokens"] = str(row.input_tokens)
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt_of(row.input_tokens, position)}],
            max_completion_tokens=max(1, row.output_tokens),
            extra_headers=headers,
        )

    return send


def replay(
    rows: Sequence[TraceRow],
    send: Send,
    *,
    workers: int = 1,
    speed: float | None = None,
    on_answer: Callable[[TraceRow], None] = lambda row: None,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> Replay:
    """Send every row, until a budget in force refuses one for good.

    Args:
        rows: what to send. send: how; see `sender`.
        workers: requests in flight at most.
        speed: time compression: 60 plays an hour in a minute; None sends as fast as it goes.
        on_answer: called after each answer, from the worker's thread.
        now, wait: seconds of a monotonic clock, and sleeping; for tests.

    Raises:
        ConfigurationError: for workers below 1 or a speed that is not above 0.
        Exception: the first that `send` raises and that is no `BudgetExceeded`.
    """
    if workers < 1:
        raise ConfigurationError(f"workers={workers} must be at least 1")
    if speed is not None and speed <= 0:
        raise ConfigurationError(f"speed={speed} must be above 0")
    run = _Run(rows, send, Replay(), on_answer, _due(rows, speed, now), now, wait)
    if workers == 1:
        run.work()
    else:
        with ThreadPoolExecutor(workers, thread_name_prefix="replay") as pool:
            for future in [pool.submit(scope.bind(run.work)) for _ in range(workers)]:
                future.result()
    return run.finish()


def _due(rows: Sequence[TraceRow], speed: float | None, now: Callable[[], float]) -> Callable[[TraceRow], float]:
    start = now()
    if speed is None:
        return lambda row: start
    return lambda row: start + (row.at - rows[0].at).total_seconds() / speed


@dataclass(slots=True)
class _Run:
    """The rows still to be sent, shared by the workers."""

    rows: Sequence[TraceRow]
    send: Send
    result: Replay
    on_answer: Callable[[TraceRow], None]
    due: Callable[[TraceRow], float]
    now: Callable[[], float]
    wait: Callable[[float], object]
    _queue: Iterator[tuple[int, TraceRow]] = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _put_back: list[tuple[int, TraceRow]] = field(default_factory=list)
    _stop: bool = False

    def __post_init__(self) -> None:
        self._queue = iter(enumerate(self.rows))

    def work(self) -> None:
        """Send rows until there are none, or until one is refused."""
        while not self._stop and (item := self._next()) is not None:
            try:
                self._one(*item)
            except BudgetExceeded as refused:
                # Perhaps only what others hold stands in its way: it gets its chance in `finish`, when nothing is held.
                self._stop, self.result.refused = True, refused
                self._put_back.append(item)
            except BaseException:
                self._stop = True
                raise

    def finish(self) -> Replay:
        """What was refused while others were in flight is tried again, alone; the first refusal then is the end."""
        if self._put_back:
            for position, row in itertools.chain(sorted(self._put_back, key=lambda item: item[0]), self._queue):
                try:
                    self._one(position, row)
                except BudgetExceeded as refused:
                    self.result.refused = refused
                    return self.result
        self.result.refused = None
        return self.result

    def _next(self) -> tuple[int, TraceRow] | None:
        with self._lock:
            return next(self._queue, None)

    def _one(self, position: int, row: TraceRow) -> None:
        early = self.due(row) - self.now()
        if early > 0:
            self.wait(early)
        self.send(row, position)
        self.result.add(row)
        self.on_answer(row)
