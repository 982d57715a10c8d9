"""What only a GPU can prove, in one go: accuracy against CUDA events, overhead, no synchronise, graphs, the driver's own limits, forks.

    python benchmarks/gpu_check.py --out gpu_check.json              # all, a few minutes on one H100 or H200 with torch for CUDA
    python benchmarks/gpu_check.py --sections duty,sync --seconds 10
    python benchmarks/gpu_check.py --rehearse                        # the same code on a CPU, with stand-in events: says nothing of a GPU

Each section stands alone: what fails in one is in the JSON, and the others go on. The JSON is written after every section. Clocks, power
limits and MIG are left as they are. The targets are those of `docs/explanation/gpu-accuracy.md`.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import aifinops
from aifinops import gpu
from aifinops.clock import SystemClock
from aifinops.gpu import devices as gpu_devices
from aifinops.gpu.backends.base import Device
from aifinops.gpu.events import StepEvents, for_device
from aifinops.gpu.sampler import Watch, watch

os.environ.setdefault("AIFINOPS_LEDGER", "memory")
CLOCK = SystemClock()
PERIOD_S = 0.5  # of a duty cycle


class Bench:
    """torch, the device that is measured, and how long things may take."""

    def __init__(self, *, seconds: float, rehearse: bool) -> None:
        import torch

        self.torch = torch
        self.seconds = seconds
        self.rehearse = rehearse
        self.name = "cpu" if rehearse else "cuda"
        self.size = 256 if rehearse else 8192
        if rehearse:
            _stand_in(torch)
        elif not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device; --rehearse runs the code without one")
        else:
            torch.cuda.init()
            torch.zeros(1, device="cuda")
        aifinops.instrument("torch")

    @property
    def device(self) -> Device:
        """The one that torch calls the current one."""
        found = gpu_devices.held()
        if not found:
            raise RuntimeError(f"no device: {gpu_devices.inventory().reason}")
        return found[0 if self.rehearse else self.torch.cuda.current_device()]

    def sync(self) -> None:
        self.torch.cuda.synchronize()

    def event(self) -> Any:
        return self.torch.cuda.Event(enable_timing=True)

    def matrices(self) -> tuple[Any, Any, Any]:
        dtype = self.torch.float32 if self.rehearse else self.torch.bfloat16
        one, two = (self.torch.randn(self.size, self.size, device=self.name, dtype=dtype) for _ in range(2))
        return one, two, self.torch.empty_like(one)

    def kernel_ms(self, run: Callable[[], Any], times: int = 20) -> float:
        """Milliseconds of one kernel, queued behind others of its kind."""
        for _ in range(3):
            run()
        self.sync()
        start, end = self.event(), self.event()
        start.record()
        for _ in range(times):
            run()
        end.record()
        self.sync()
        return float(start.elapsed_time(end)) / times

    def training(self, step_ms: float) -> Callable[[], Any]:
        """A training step of about so many milliseconds: linear layers, AdamW. Returns what does one step and gives its loss back."""
        torch, width, batch = self.torch, 256 if self.rehearse else 4096, 8 if self.rehearse else 2048
        torch.manual_seed(7)
        dtype = torch.float32 if self.rehearse else torch.bfloat16

        def build(layers: int) -> Callable[[], Any]:
            model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers))).to(self.name, dtype)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
            data = torch.randn(batch, width, device=self.name, dtype=dtype)

            def step() -> Any:
                optimizer.zero_grad(set_to_none=True)
                loss = model(data).float().square().mean()
                loss.backward()
                optimizer.step()
                return loss.detach()

            return step

        if self.rehearse:
            return build(2)
        one = self.kernel_ms(build(1), 5)
        two = self.kernel_ms(build(2), 5)
        return build(max(1, round((step_ms - one) / max(two - one, 0.05)) + 1))


def _stand_in(torch: Any) -> None:
    """Events of the host's clock in place of CUDA's, so that the code can be run through without a GPU."""

    class Event:
        def __init__(self, enable_timing: bool = True) -> None:
            self.at = 0.0

        def record(self, stream: Any = None) -> None:
            self.at = time.perf_counter()

        def query(self) -> bool:
            return True

        def elapsed_time(self, later: Event) -> float:
            return (later.at - self.at) * 1e3

    cuda = torch.cuda
    cuda.Event, cuda.synchronize, cuda.is_initialized = Event, lambda: None, lambda: True
    cuda.set_sync_debug_mode = lambda mode: None
    cuda.is_current_stream_capturing = lambda: False
    cuda.device_count = lambda: 0
    cuda.memory_reserved = lambda index: 0


# --- 1. busy time against events --------------------------------------------------------------------------------------


def duty(bench: Bench) -> Iterator[dict[str, Any]]:
    """Bursts whose length CUDA events tell, at four duty cycles: how far each source is off."""
    one, two, out = bench.matrices()

    def kernel() -> None:
        bench.torch.mm(one, two, out=out)

    each_ms = bench.kernel_ms(kernel)
    for part in (0.10, 0.35, 0.70, 0.95):
        count = max(1, round(part * PERIOD_S * 1e3 / each_ms))
        with watch([bench.device], clock=CLOCK) as watched:
            bench.sync()
            start, bursts = CLOCK.monotonic_ns(), []
            while CLOCK.monotonic_ns() - start < bench.seconds * 1e9:
                began, ended = bench.event(), bench.event()
                due = time.perf_counter() + PERIOD_S
                began.record()
                for _ in range(count):
                    kernel()
                ended.record()
                bursts.append((began, ended))
                bench.sync()
                time.sleep(max(0.0, due - time.perf_counter()))
            end = CLOCK.monotonic_ns()
            yield {"duty": part, **_compared(bench, watched, bursts, start, end)}


def _compared(bench: Bench, watched: Watch, bursts: list[Any], start: int, end: int) -> dict[str, Any]:
    truth = sum(began.elapsed_time(ended) for began, ended in bursts) / 1e3
    found = watched.between(bench.device, start, end)
    window = (end - start) / 1e9
    sources = {
        name: {
            "busy_s": value,
            "error_percent_of_window": 100 * (value - truth) / window,
            "bound_s": bound,
            "within_its_bound": None if bound is None else abs(value - truth) <= bound,
        }
        for name, (value, bound) in watched.sources(bench.device, start, end).items()
    }
    return {
        "window_s": window,
        "truth_s": truth,
        "chosen": found.busy_source,
        "sm_active_s": found.sm_active_s,
        "tensor_active_s": found.tensor_active_s,
        "attribution": found.attribution,
        "sources": sources,
        "look_ms": 1e3 * watched.cost.wall_s / max(1, watched.cost.looks),
    }


def small(bench: Bench) -> dict[str, Any]:
    """Kernels of a few microseconds with pauses: the driver's samples count too much of them, by how much is to be written down."""
    tensor = bench.torch.zeros(1, device=bench.name)
    each_ms = bench.kernel_ms(lambda: tensor.add_(1), 2000)
    with watch([bench.device], clock=CLOCK) as watched:
        bench.sync()
        start, count = CLOCK.monotonic_ns(), 0
        while CLOCK.monotonic_ns() - start < bench.seconds * 1e9:
            tensor.add_(1)
            count += 1
            until = time.perf_counter() + 1e-4
            while time.perf_counter() < until:
                pass
        bench.sync()
        end = CLOCK.monotonic_ns()
        sources = {name: value for name, (value, _) in watched.sources(bench.device, start, end).items()}
    window = (end - start) / 1e9
    # Queued behind one another they take no less than when alone: an upper bound of the truth.
    return {
        "kernels": count,
        "each_us_at_most": each_ms * 1e3,
        "truth_percent_at_most": 100 * count * each_ms / 1e3 / window,
        "percent": {name: 100 * value / window for name, value in sources.items()},
    }


# --- 2. and 3. what it costs, and that it never waits -----------------------------------------------------------------


class Meter:
    """A run with all that it has, and events around each step."""

    def __init__(self, bench: Bench, run: gpu.Run) -> None:
        self.run = run
        self.events = for_device(bench.device) or StepEvents(bench.event)
        self.enter, self.times = self.events.enter, self.events.times

    def leave(self) -> None:
        self.events.leave()
        self.run.step()


@contextmanager
def _metered(bench: Bench) -> Iterator[Meter]:
    with gpu.track("gpu_check", price="3.60", devices=[bench.device]) as run:
        yield Meter(bench, run)


def overhead(bench: Bench) -> Iterator[dict[str, Any]]:
    """The same steps with and without a metered run and its events, in turns: per step, in wall and CPU time."""
    for wanted in (5, 20, 100):
        step = bench.training(wanted)
        times = max(3, round(bench.seconds * 1e3 / wanted / 10))
        off, on, cpu_off, cpu_on = [], [], [], []
        for _ in range(10):
            wall, cpu = _timed(bench, step, times, None)
            off.append(wall)
            cpu_off.append(cpu)
            with _metered(bench) as timed:
                wall, cpu = _timed(bench, step, times, timed)
            on.append(wall)
            cpu_on.append(cpu)
        base = statistics.median(off)
        pairs = sorted(100 * (b - a) / a for a, b in zip(off, on, strict=True))
        yield {
            "step_ms": base * 1e3,
            "overhead_percent": 100 * (statistics.median(on) - base) / base,
            "overhead_percent_of_pairs": [pairs[2], statistics.median(pairs), pairs[-3]],
            "cpu_us_per_step": 1e6 * (statistics.median(cpu_on) - statistics.median(cpu_off)),
            "steps": times * 10,
        }


def _timed(bench: Bench, step: Callable[[], Any], times: int, events: Meter | None) -> tuple[float, float]:
    step()
    bench.sync()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        if events is not None:
            events.enter()
        step()
        if events is not None:
            events.leave()
    spent = time.process_time() - cpu
    bench.sync()
    return (time.perf_counter() - wall) / times, spent / times


def sync(bench: Bench) -> dict[str, Any]:
    """A metered loop under `set_sync_debug_mode("error")`: whatever waits for the device raises."""
    step = bench.training(5)
    step()
    bench.sync()
    with _metered(bench) as events:
        bench.torch.cuda.set_sync_debug_mode("error")
        try:
            start = CLOCK.monotonic_ns()
            for _ in range(200):
                events.enter()
                step()
                events.leave()
                events.times()
        finally:
            bench.torch.cuda.set_sync_debug_mode("default")
        bench.sync()
        found, window = events.times(), (CLOCK.monotonic_ns() - start) / 1e9
    return {"clean": True, "steps": found.steps, "step_s": found.step_s, "stall_s": found.stall_s, "window_s": window,
            "dropped": found.dropped}  # fmt: skip


# --- 4. graphs and compilers ------------------------------------------------------------------------------------------


def graphs(bench: Bench) -> Iterator[dict[str, Any]]:
    """A captured graph and compiled models give the same loss with the meter as without, and break no graph more."""
    if not bench.rehearse:
        yield {"what": "cuda graph", **_captured(bench)}
    for mode in ("default",) if bench.rehearse else ("default", "reduce-overhead", "max-autotune"):
        yield {"what": f"compile {mode}", **_compiled(bench, mode)}


def _captured(bench: Bench) -> dict[str, Any]:
    torch = bench.torch
    model = torch.nn.Linear(1024, 1024, device="cuda")
    data = torch.randn(64, 1024, device="cuda")
    with _metered(bench) as events, torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                model(data)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            events.enter()  # must not become part of the graph
            out = model(data)
            events.leave()
        inside = events.times().dropped
        for _ in range(10):
            events.enter()
            graph.replay()
            events.leave()
        bench.sync()
        same = bool(torch.allclose(out, model(data), rtol=1e-4))
        found = events.times()
    return {"same": same, "marks_dropped_while_capturing": inside, "steps": found.steps}


def _compiled(bench: Bench, mode: str) -> dict[str, Any]:
    torch = bench.torch
    counters = importlib.import_module("torch._dynamo.utils").counters

    def losses(metered: bool) -> tuple[list[float], int]:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1)).to(bench.name)
        compiled = torch.compile(
            model, mode=None if mode == "default" else mode, backend="eager" if bench.rehearse else "inductor"
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        data = torch.randn(64, 256, device=bench.name)
        found = []
        with _metered(bench) as events:
            for _ in range(5):
                if metered:
                    events.enter()
                optimizer.zero_grad()
                loss = compiled(data).square().mean()
                loss.backward()
                optimizer.step()
                if metered:
                    events.leave()
                found.append(float(loss.detach()))
        return found, sum(counters["graph_break"].values())

    (without, breaks), (with_it, more) = losses(False), losses(True)
    # Tuning may choose another kernel the second time.
    same = all(abs(a - b) <= 1e-3 * abs(a) for a, b in zip(without, with_it, strict=True))
    return {"same": same, "graph_breaks": breaks, "graph_breaks_with_it": more, "losses": with_it}


# --- 5. and 6. the driver itself --------------------------------------------------------------------------------------


def nvml(bench: Bench | None) -> dict[str, Any]:
    """What each question costs, depth and period of the ring, which pids are shown, whether GPM works without root and how fast."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = _handle(pynvml, bench)
        questions: dict[str, Callable[[], Any]] = {
            "samples": lambda: pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, 0),
            "energy": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle),
            "memory": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle),
            "processes": lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
            "process_utilization": lambda: pynvml.nvmlDeviceGetProcessUtilization(handle, 0),
            "utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle),
            "power": lambda: pynvml.nvmlDeviceGetPowerUsage(handle),
        }
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "root": os.geteuid() == 0,
            "latency_us": {name: _latency(question) for name, question in questions.items()},
            "ring": _ring(pynvml, handle),
            "own_pid": os.getpid(),
            "pids": _answer(lambda: [row.pid for row in questions["processes"]()]),
            "pids_with_utilization": _answer(
                lambda: [(row.pid, row.smUtil) for row in questions["process_utilization"]()]
            ),
            "gpm": _gpm(pynvml, handle),
        }
    finally:
        pynvml.nvmlShutdown()


def _handle(pynvml: Any, bench: Bench | None) -> Any:
    return pynvml.nvmlDeviceGetHandleByUUID(bench.device.uuid) if bench else pynvml.nvmlDeviceGetHandleByIndex(0)


def _answer(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _latency(question: Callable[[], Any], times: int = 50) -> Any:
    def measured() -> dict[str, float]:
        question()
        spent = []
        for _ in range(times):
            begun = time.perf_counter()
            question()
            spent.append((time.perf_counter() - begun) * 1e6)
        return {"median": statistics.median(spent), "p90": sorted(spent)[int(0.9 * times)]}

    return _answer(measured)


def _ring(pynvml: Any, handle: Any) -> Any:
    def measured() -> dict[str, Any]:
        _, rows = pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, 0)
        at = [row.timeStamp for row in rows]
        steps = [b - a for a, b in itertools.pairwise(at)]
        return {
            "depth": len(at),
            "period_ms": [min(steps) / 1e3, statistics.median(steps) / 1e3, max(steps) / 1e3] if steps else None,
            "span_s": (at[-1] - at[0]) / 1e6,
            "newest_is_old_ms": time.time() * 1e3 - at[-1] / 1e3,
        }

    return _answer(measured)


def _gpm(pynvml: Any, handle: Any) -> Any:
    def measured() -> dict[str, Any]:
        if not pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            return {"supported": False}
        samples = [pynvml.nvmlGpmSampleAlloc() for _ in range(2)]
        found: dict[str, Any] = {"supported": True, "intervals": {}}
        for wait_ms in (5, 10, 20, 50, 100, 200):
            pynvml.nvmlGpmSampleGet(handle, samples[0])
            time.sleep(wait_ms / 1e3)
            pynvml.nvmlGpmSampleGet(handle, samples[1])
            asked = pynvml.c_nvmlGpmMetricsGet_t()
            asked.version, asked.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 1
            asked.sample1, asked.sample2 = samples
            asked.metrics[0].metricId = pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL
            found["intervals"][wait_ms] = _answer(
                lambda asked=asked: (
                    pynvml.nvmlGpmMetricsGet(asked),
                    [asked.metrics[0].nvmlReturn, asked.metrics[0].value],
                )[1]
            )
        found["sample_us"] = _latency(lambda: pynvml.nvmlGpmSampleGet(handle, samples[0]))
        return found

    return _answer(measured)


def profiler(bench: Bench) -> dict[str, Any]:
    """GPM and torch.profiler at the same time: neither must silence the other."""
    step = bench.training(5)
    activities = [bench.torch.profiler.ProfilerActivity.CPU]
    if not bench.rehearse:
        activities.append(bench.torch.profiler.ProfilerActivity.CUDA)
    with watch([bench.device], clock=CLOCK) as watched:
        bench.sync()
        start = CLOCK.monotonic_ns()
        with bench.torch.profiler.profile(activities=activities) as profile:
            until = time.perf_counter() + min(3.0, bench.seconds)
            while time.perf_counter() < until:
                step()
            bench.sync()
        end = CLOCK.monotonic_ns()
        found = watched.between(bench.device, start, end)
    kernels = sum(getattr(event, "self_device_time_total", 0) for event in profile.key_averages()) / 1e6
    return {
        "busy_source": found.busy_source,
        "busy_s": found.busy_s,
        "kernels_s": kernels,
        "window_s": (end - start) / 1e9,
    }


def energy(bench: Bench | None) -> dict[str, Any]:
    """How often the energy counter moves, and its difference beside the integral of power readings."""
    import pynvml

    seconds = min(10.0, bench.seconds if bench else 2.0)
    pynvml.nvmlInit()
    try:
        handle = _handle(pynvml, bench)
        moves, readings = [], []
        last = first = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        begun = moment = time.perf_counter()
        while moment - begun < seconds:
            now = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            moment = time.perf_counter()
            if now != last:
                moves.append(moment)
                last = now
            readings.append((moment, pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3))
            time.sleep(0.001)
        joules = (last - first) / 1e3
        integral = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(readings))
        gaps = [(b - a) * 1e3 for a, b in itertools.pairwise(moves)]
        return {
            "counter_period_ms": statistics.median(gaps) if gaps else None,
            "counter_j": joules,
            "power_integral_j": integral,
            "ratio": joules / integral if integral else None,
        }
    finally:
        pynvml.nvmlShutdown()


# --- 7. to 9. processes -----------------------------------------------------------------------------------------------

_FORK = """
import os, sys
from aifinops.gpu.devices import inventory
from aifinops.gpu.sampler import watch
from aifinops.clock import SystemClock
devices = inventory().devices
with watch(devices[:1], clock=SystemClock()):
    child = os.fork()
    if not child:
        try:
            import torch
            torch.zeros(8, device=sys.argv[1]).sum().item()
            with watch(devices[:1], clock=SystemClock()):
                pass
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error)
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def fork(bench: Bench) -> dict[str, Any]:
    """NVML open in the parent, CUDA first used in the forked child; then workers of a DataLoader under a watch."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK, bench.name], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    torch = bench.torch
    with watch([bench.device], clock=CLOCK) as watched:
        start = CLOCK.monotonic_ns()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(64)), 8, num_workers=2)
        batches = sum(1 for _ in loader)
        time.sleep(0.3)
        known = watched.between(bench.device, start, CLOCK.monotonic_ns()).busy_source
    return {"cuda_in_forked_child": done.stdout.strip() == "0", "said": (done.stdout + done.stderr)[-500:],
            "batches_by_workers": batches, "busy_source_after": known}  # fmt: skip


def oom(bench: Bench) -> dict[str, Any]:
    """The device runs out of memory in the middle of a span: the figures of the span are there."""
    with watch([bench.device], clock=CLOCK) as watched:
        start = CLOCK.monotonic_ns()
        step = bench.training(5)
        for _ in range(20):
            step()
        try:
            if bench.rehearse:
                raise RuntimeError("out of memory")
            bench.torch.empty(2**42, dtype=bench.torch.uint8, device="cuda")
            said = "nothing"
        except RuntimeError as error:
            said = type(error).__name__
        time.sleep(0.3)
        found = watched.between(bench.device, start, CLOCK.monotonic_ns())
    return {"raised": said, "busy_s": found.busy_s, "busy_source": found.busy_source}


_KILLED = """
import sys, time, torch
from aifinops import gpu
with gpu.track("killed", run_id="gpu-check", price="3.60", devices="visible") as run:
    data = torch.ones(512, 512, device=sys.argv[1])
    begun = time.monotonic()
    while time.monotonic() - begun < float(sys.argv[2]):
        data @ data
        run.step()
        time.sleep(0.01)
        print(run.steps, flush=True)
    print("LOST", [(one.attempt, one.steps, str(one.wasted_s), str(one.wasted_usd)) for one in run.lost])
"""


def killed(bench: Bench) -> dict[str, Any]:
    """SIGKILL in the middle of a run: the next attempt of the same run closes it, with what it held until then."""
    with tempfile.TemporaryDirectory() as folder:
        environ = os.environ | {
            "AIFINOPS_LEDGER": f"sqlite:///{folder}/ledger.db",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        command = [sys.executable, "-c", _KILLED, bench.name]
        with subprocess.Popen([*command, "600"], env=environ, stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout is not None
            steps = 0
            while steps < 300:
                steps = int(first.stdout.readline())
            first.kill()
        second = subprocess.run(
            [*command, "0.5"], env=environ, capture_output=True, text=True, timeout=120, check=False
        )
    return {"killed_after_step": steps, "said": second.stdout.strip().splitlines()[-1:], "errors": second.stderr[-500:]}


def _neighbour(ready: Any, go: Any, results: Any, seconds: float, rehearse: bool, part: float) -> None:
    bench = Bench(seconds=seconds, rehearse=rehearse)
    one, two, out = bench.matrices()
    bench.torch.mm(one, two, out=out)
    bench.sync()
    with watch([bench.device], clock=CLOCK) as watched:
        ready.release()
        go.wait(120)
        start = CLOCK.monotonic_ns()
        while CLOCK.monotonic_ns() - start < seconds * 1e9:
            begun = time.perf_counter()
            bench.torch.mm(one, two, out=out)
            bench.sync()
            time.sleep((time.perf_counter() - begun) * (1 - part) / part)
        found = watched.between(bench.device, start, CLOCK.monotonic_ns())
        device = watched.sources(bench.device, start, CLOCK.monotonic_ns())
    results.put({"part": part, "busy_s": found.busy_s, "attribution": found.attribution, "source": found.busy_source,
                 "energy_j": found.energy_j, "own": {name: value for name, (value, _) in device.items()}})  # fmt: skip


def neighbours(bench: Bench) -> dict[str, Any]:
    """Two processes on one GPU: the parts of both make what a third, which only watches, sees of the device."""
    context = multiprocessing.get_context("spawn")
    ready, go, results = context.Semaphore(0), context.Event(), context.Queue()
    workers = [
        context.Process(target=_neighbour, args=(ready, go, results, bench.seconds, bench.rehearse, part))
        for part in (0.8, 0.3)
    ]
    for worker in workers:
        worker.start()
    started = all(ready.acquire(timeout=120) for _ in workers)
    # This process has a context too: it is asked by NVML only, for all that ran there.
    import pynvml

    pynvml.nvmlInit()
    handle, seen = _handle(pynvml, bench), []
    go.set()
    begun = time.perf_counter()
    while time.perf_counter() - begun < bench.seconds:
        seen.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        time.sleep(0.05)
    pynvml.nvmlShutdown()
    found = [results.get(timeout=120) for _ in workers] if started else []
    for worker in workers:
        worker.join(60)
    device_s = statistics.mean(seen) / 100 * bench.seconds
    parts = [each["busy_s"] for each in found]
    total = sum(parts) if parts and None not in parts else None
    return {"workers": found, "sum_s": total, "device_s": device_s,
            "off_percent": 100 * (total - device_s) / device_s if total is not None and device_s else None}  # fmt: skip


SECTIONS: dict[str, Callable[[Any], Any]] = {
    "nvml": nvml,
    "energy": energy,
    "duty": duty,
    "small": small,
    "overhead": overhead,
    "sync": sync,
    "graphs": graphs,
    "profiler": profiler,
    "fork": fork,
    "oom": oom,
    "killed": killed,
    "neighbours": neighbours,
}
DRIVER_ONLY = {"nvml", "energy"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, in this order")
    parser.add_argument("--skip", default="", help="which not")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measuring window")
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes besides standard output")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with stand-in events")
    chosen = parser.parse_args()
    names = [name for name in chosen.sections.split(",") if name and name not in chosen.skip.split(",")]
    bench = None if set(names) <= DRIVER_ONLY else Bench(seconds=chosen.seconds, rehearse=chosen.rehearse)
    report: dict[str, Any] = {
        "rehearsed": chosen.rehearse,
        "python": platform.python_version(),
        "torch": bench.torch.__version__ if bench else None,
        "devices": [device.name for device in gpu_devices.inventory().devices],
        "sections": {},
    }
    for name in names:
        begun = time.perf_counter()
        try:
            found = SECTIONS[name](bench)
            found = found if isinstance(found, dict) else list(found)
        except Exception as error:  # the others go on
            found = {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc()[-1500:]}
        report["sections"][name] = {"took_s": round(time.perf_counter() - begun, 1), "found": found}
        if chosen.out is not None:
            chosen.out.write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")
    print(json.dumps(report, indent=1, default=str))
    failed = [name for name, section in report["sections"].items() if "failed" in section["found"]]
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
