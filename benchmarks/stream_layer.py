"""What passing through us costs each chunk of a stream: the bytes of an answer read with our layer in between and without it.

    python benchmarks/stream_layer.py [--chunks 200] [--streams 200]

Between the chunks of a real client nothing below a microsecond can be told from noise (`run.py`: a chunk takes the client 65); here
nothing else is measured. The figure includes the end of the stream: joining what was kept and reading the usage in its last event.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import worker

from aifinops.integrations.extract import Reader
from aifinops.integrations.hiding import Veil
from aifinops.integrations.passing import Opened, Tap
from aifinops.integrations.registry import provider


class Engines:
    clock = type("Clock", (), {"monotonic_ns": staticmethod(time.perf_counter_ns)})


class Unsettled:
    """An invocation whose settlement is somebody else's benchmark."""

    engines = Engines
    call = type("Call", (), {"stream": True})
    first_chunk: int | None = None

    def settle(self, *_: Any) -> None:
        """Counted by `run.py`."""

    settle_estimated = settle


def microseconds(streams: int, events: list[bytes], reader: Reader | None, *, hide: bool = False) -> float:
    """Of one stream, the best of seven rounds; with `hide` as one that we have asked for its usage."""
    http, best = worker.http(), float("inf")

    class Events(http.SyncByteStream):  # type: ignore[name-defined, misc]
        def __iter__(self) -> Any:
            return iter(events)

    for _ in range(7):
        answers = [http.Response(200, stream=Events()) for _ in range(streams)]
        if reader is not None:
            for answer in answers:
                Tap(Opened(reader, Unsettled()), answer)  # type: ignore[arg-type]
                if hide:
                    Veil(answer)
        began = time.perf_counter()
        for answer in answers:
            for _chunk in answer.iter_bytes():
                pass
        best = min(best, (time.perf_counter() - began) / streams)
    return best * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--streams", type=int, default=200)
    options = parser.parse_args()
    events = [event.replace(b'": ', b'":').replace(b', "', b',"') for event in worker._sse(options.chunks)]
    bare = microseconds(options.streams, events, None)
    reader = Reader(provider("openai").routes["/chat/completions"])
    for label, hide in (("with", False), ("with, and the answer to our question hidden", True)):
        passed = microseconds(options.streams, events, reader, hide=hide)
        each = (passed - bare) / len(events)
        print(
            f"{len(events)} chunks: {bare:.1f} us without, {passed:.1f} us {label}; {each:.3f} us a chunk, with the end of the stream"
        )


if __name__ == "__main__":
    main()
