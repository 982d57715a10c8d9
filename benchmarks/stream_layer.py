"""What passing through us costs each chunk of a stream: the bytes of an answer read with our layer in between and without it.

    python benchmarks/stream_layer.py [--chunks 200] [--streams 100] [--rounds 15]

Between the chunks of a real client nothing below a microsecond can be told from noise (`run.py`: a chunk takes the client 65); here
nothing else is measured. The figure includes the end of the stream: joining what was kept and reading the usage in its last event. It is
the median over the rounds of (with - without) in CPU time, in shuffled order.

Any failure of ours ends it. So does a stream that was not settled once with its usage while it was timed, and one of which a byte is
missing, or which shows the answer to a question that its reader never asked.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import worker

from aifinops.errors import failures, reraise_failures
from aifinops.integrations.extract import Reader
from aifinops.integrations.hiding import Veil
from aifinops.integrations.passing import Opened, Tap
from aifinops.integrations.registry import provider
from aifinops.reading import Reading


class Engines:
    clock = type("Clock", (), {"monotonic_ns": staticmethod(time.perf_counter_ns)})
    capture = False


class Settled:
    """An invocation whose settlement is somebody else's benchmark: it keeps what it is to be settled with."""

    engines = Engines
    call = type("Call", (), {"stream": True, "counts": False})
    first_chunk: int | None = None

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def settle(self, reading: Reading, *_: Any) -> None:
        self.readings.append(reading)

    def check(self) -> None:
        """Once, with all of the usage that the last event says."""
        tokens = [sum(reading.quantities.values()) for reading in self.readings]
        if tokens != [worker.USAGE["total_tokens"]]:
            raise AssertionError(f"a stream of {worker.USAGE['total_tokens']} tokens was settled with {tokens}")


WAYS = ("bare", "passing", "hidden")
"""Without us; with us; with us, as a stream that we have asked for its usage."""
SHOWN = {"passing": "ordinary", "hidden": "with the usage that we asked for hidden"}


class Streams:
    """Streams of the same events, in one of the ways."""

    def __init__(self, events: list[bytes], asynchronous: bool) -> None:
        self.events = events
        self.asynchronous = asynchronous
        self._loop = asyncio.new_event_loop()
        self._reader = Reader(provider("openai").routes["/chat/completions"])

    def made(self, way: str) -> tuple[Any, Settled]:
        library, settled = worker.http(), Settled()
        answer = library.Response(200, stream=worker.stream_of(library, lambda: iter(self.events)))
        if way != "bare":
            Tap(Opened(self._reader, settled), answer)  # type: ignore[arg-type]
        if way == "hidden":
            Veil(answer)
        return answer, settled

    def read(self, answers: list[Any], take: Callable[[bytes], Any] | None = None) -> None:
        """Read them to their ends; `take` gets each chunk."""
        if self.asynchronous:
            self._loop.run_until_complete(_aread(answers, take))
        else:
            for answer in answers:
                for chunk in answer.iter_bytes():
                    if take is not None:
                        take(chunk)

    def timed(self, way: str, streams: int) -> float:
        """Microseconds a stream."""
        made = [self.made(way) for _ in range(streams)]
        answers = [answer for answer, _ in made]
        began = time.process_time_ns()
        self.read(answers)
        took = time.process_time_ns() - began
        for _, settled in made if way != "bare" else ():
            settled.check()
        return took / streams / 1000

    def check(self, way: str) -> None:
        """Whoever reads gets what was sent; of a hidden one without the event of the usage, and without the nulls for it."""
        sent = self.events
        if way == "hidden":
            sent = [event.replace(b',"usage":null', b"") for event in self.events if b'"total_tokens"' not in event]
        answer, _ = self.made(way)
        got: list[bytes] = []
        self.read([answer], got.append)
        if got != sent or (way == "hidden" and len(sent) != len(self.events) - 1):
            raise AssertionError(f"{way}: {len(got)} chunks came of {len(sent)}, or they are others")

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


async def _aread(answers: list[Any], take: Callable[[bytes], Any] | None) -> None:
    for answer in answers:
        async for chunk in answer.aiter_bytes():
            if take is not None:
                take(chunk)


def measure(streams: Streams, number: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds a stream of each round, by way; a first round is not counted."""
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        streams.check(way)
        streams.timed(way, number)
    for _ in range(rounds):
        for way in random.sample(WAYS, len(WAYS)):
            took[way].append(streams.timed(way, number))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=worker.CHUNKS)
    parser.add_argument("--streams", type=int, default=100, help="in each round")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    reraise_failures(True)
    events = [event.replace(worker.ID, b"1") for event in worker.sse(options.chunks)]
    for asynchronous in (False, True):
        streams = Streams(events, asynchronous)
        took = measure(streams, options.streams, options.rounds)
        streams.close()
        bare = statistics.median(took["bare"])
        for way, label in SHOWN.items():
            added = statistics.median(on - off for on, off in zip(took[way], took["bare"], strict=True))
            print(
                f"{'async' if asynchronous else 'sync'}, {len(events)} chunks, {label}: {bare:.1f} us without, {added:+.1f} us with; "
                f"{added / len(events):.3f} us a chunk, with the end of the stream"
            )
    if failures():
        raise AssertionError(f"failures of ours: {failures()}")


if __name__ == "__main__":
    main()
