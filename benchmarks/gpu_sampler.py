"""What metering GPUs costs, and how right it is beside polling: on the fake driver of the tests, through the real pynvml.

    python benchmarks/gpu_sampler.py

The fake answers at once, so the cost is ours and pynvml's, without the driver's; times are the fake's, so the errors are exact.
"""

from __future__ import annotations

import ctypes
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/gpu"))

from nvml_scene import FakeNvml, Stage, build

from aifinops.gpu.devices import forget, inventory
from aifinops.gpu.events import StepEvents


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeNvml(ctypes.CDLL(str(build(Path(folder)))))
        print("a look at the driver, CPU:")
        for gpus in (1, 8):
            print(
                f"  {gpus} GPUs: {_look_us(fake, gpus):6.0f} us, {_look_us(fake, gpus) / 1e4:.4f} % of a core at one look a second"
            )
        print(f"between() of one device: {_between_us(fake):.0f} us")
        print(
            f"events: {_events_us():.2f} us a step (two marks, with stand-in events that cost {_stand_in_us():.2f} us)"
        )
        print("busy time of 60 s windows, root of the mean squared error in percentage points of the window:")
        print("  load                                   gpm   ring   its bound   polled 1 s   10 s   15 s")
        for name, on, off in (("steps, 0.9 s on and 0.4 s off", 0.9, 0.4), ("bursts, 8 s on and 14 s off", 8.0, 14.0)):
            gpm = _error(fake, on, off, gpm=1)
            ring = _error(fake, on, off, gpm=0)
            polled = [_polled(on, off, every) for every in (1, 10, 15)]
            print(
                f"  {name:36} {gpm[0]:5.2f}  {ring[0]:5.2f}  {ring[1]:10.2f}   {polled[0]:10.1f} {polled[1]:6.1f} {polled[2]:6.1f}"
            )
    return 0


def _stage(fake: FakeNvml, gpus: int, gpm: int = 1) -> Stage:
    fake.machine(gpus)
    forget()
    for gpu in range(gpus):
        fake.device(gpu, f"GPU-{gpu}", "NVIDIA H100 80GB HBM3", 80 << 30, gpm, 1)
        fake.process(gpu, 4_000_000 + gpu, 1 << 30, 1.0)
        fake.from_now(gpu, 0.5, sm=0.3, watts=400, used=1 << 30)
    return Stage(fake, inventory().devices)


def _look_us(fake: FakeNvml, gpus: int) -> float:
    scene = _stage(fake, gpus)
    spent = []
    for _ in range(300):
        fake.advance(1)
        begun = time.thread_time()
        scene.sampler.look()
        spent.append((time.thread_time() - begun) * 1e6)
    scene.watch.close()
    return statistics.median(spent)


def _between_us(fake: FakeNvml) -> float:
    scene = _stage(fake, 1)
    scene.run(600)
    begun = time.thread_time()
    for _ in range(1000):
        scene.between(590, 600)
    spent = (time.thread_time() - begun) / 1000 * 1e6
    scene.watch.close()
    return spent


class _Event:
    def record(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: _Event) -> float:
        return 1.0


def _events_us() -> float:
    timed = StepEvents(_Event)

    def spent() -> float:
        begun = time.thread_time()
        for _ in range(20_000):
            timed.enter()
            timed.leave()
        return (time.thread_time() - begun) / 20_000 * 1e6

    return min(spent() for _ in range(5))


def _stand_in_us() -> float:
    event = _Event()
    begun = time.thread_time()
    for _ in range(20_000):
        for _ in range(2):
            event.record()
            event.query()
            event.elapsed_time(event)
    return (time.thread_time() - begun) / 20_000 * 1e6


def _runs(on: float, off: float, seed: int, until: float) -> Iterator[tuple[float, float]]:
    """Busy from .. to, with lengths that vary by a fifth."""
    random.seed(seed)
    at = random.uniform(0, on + off)
    while at < until:
        length = on * random.uniform(0.8, 1.2)
        yield at, at + length
        at += length + off * random.uniform(0.8, 1.2)


def _windows(on: float, off: float) -> Iterator[tuple[list[tuple[float, float]], float]]:
    for seed in range(20):
        runs = list(_runs(on, off, seed, 400))
        random.seed(seed)
        yield runs, random.uniform(20, 320)


def _truth(runs: list[tuple[float, float]], start: float) -> float:
    return sum(max(0.0, min(end, start + 60) - max(begin, start)) for begin, end in runs)


def _error(fake: FakeNvml, on: float, off: float, *, gpm: int) -> tuple[float, float]:
    errors, bounds = [], []
    for runs, start in _windows(on, off):
        fake.machine(1)
        forget()
        fake.device(0, "GPU-0", "NVIDIA H100 80GB HBM3", 80 << 30, gpm, 1)
        zero = fake.now()
        for begin, end in runs:
            fake.load(0, zero + round(begin * 1e6), 1.0, 1.0, 0.0, 0.0, 0)
            fake.load(0, zero + round(end * 1e6), 0.0, 0.0, 0.0, 0.0, 0)
        scene = Stage(fake, inventory().devices)
        scene.run(start)  # the span begins with a look, as a watch does
        scene.run(60)
        found = scene.between(start, start + 60)
        scene.watch.close()
        assert found.busy_s is not None
        assert found.busy_error_s is not None
        off_by = found.busy_s - _truth(runs, start)
        assert abs(off_by) <= found.busy_error_s + 1e-4  # loads begin and end at whole microseconds
        errors.append(off_by / 60 * 100)
        bounds.append(found.busy_error_s / 60 * 100)
    return math.sqrt(statistics.mean(error**2 for error in errors)), max(bounds)


def _polled(on: float, off: float, every: float) -> float:
    """As others do: the driver's last sample of a sixth of a second, read every so often, and the mean of that."""
    errors = []
    for runs, start in _windows(on, off):
        read = []
        at = start + every * random.random()
        while at < start + 60:
            sample = math.floor(at * 6) / 6
            read.append(6 * sum(max(0.0, min(end, sample) - max(begin, sample - 1 / 6)) for begin, end in runs))
            at += every
        errors.append(100 * (statistics.mean(read) - _truth(runs, start) / 60))
    return math.sqrt(statistics.mean(error**2 for error in errors))


if __name__ == "__main__":
    raise SystemExit(main())
