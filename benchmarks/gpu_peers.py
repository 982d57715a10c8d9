"""aifinops beside Zeus and CodeCarbon on a GPU whose truth is known: the fake driver of the tests, the real packages, the real pynvml.

    python benchmarks/gpu_peers.py --python /path/to/venv/bin/python     # a venv with `zeus` and `codecarbon`

Two GPUs draw 500 W each. Each tool meters one of them for some seconds in a process of its own, once named by index, once by UUID, once as a
MIG slice, and once on a GPU without an energy counter; what it says is put beside the truth. Then each meters the same loop, and what that
takes of the CPU is put beside the loop without. Needs a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
UUID = "GPU-a1010101-0000-4000-8000-000000000001"

_BEGIN = """
import ctypes, json, logging, os, time, warnings
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
fake = ctypes.CDLL("libnvidia-ml.so.1")
case, seconds = os.environ["CASE"], float(os.environ["SECONDS"])
fake.fake_now.restype = ctypes.c_uint64
if case == "no counter":
    fake.fake_device(1, b"GPU-a1010101-0000-4000-8000-000000000001", b"Tesla P100-PCIE-16GB", ctypes.c_uint64(16 << 30), 0, 0)
if case == "mig":
    fake.fake_mig.argtypes = [ctypes.c_uint, ctypes.c_char_p] + [ctypes.c_uint] * 4 + [ctypes.c_uint64]
    fake.fake_mig(1, b"MIG-11111111-aaaa", 7, 0, 1, 1, 9856 << 20)
if case == "shared":
    fake.fake_process.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64, ctypes.c_double]
    fake.fake_process(1, os.getpid(), 1 << 30, 0.25)
    fake.fake_process(1, 4000001, 1 << 30, 0.75)
def report(joules, **more):
    print("RESULT " + json.dumps({"joules": joules, **more}))
"""
_TOOLS = {
    "aifinops": """
from aifinops.clock import SystemClock
from aifinops.gpu.devices import inventory, visible
from aifinops.gpu.sampler import watch
clock = SystemClock()
devices = visible(inventory().devices)
with watch(devices, clock=clock) as watched:
    start = clock.monotonic_ns()
    time.sleep(seconds)
    found = [watched.between(device, start, clock.monotonic_ns()) for device in devices]
joules = [each.energy_j for each in found]
report(None if None in joules else sum(joules), devices=len(devices), busy_s=[each.busy_s for each in found], attribution=[each.attribution for each in found])
""",
    "zeus": """
from zeus.monitor import ZeusMonitor
monitor = ZeusMonitor(cpu_indices=[])
monitor.begin_window("w", sync_execution=False)
time.sleep(seconds)
found = monitor.end_window("w", sync_execution=False)
report(sum(found.gpu_energy.values()), devices=len(found.gpu_energy))
""",
    "codecarbon": """
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(country_iso_code="USA", save_to_file=False, measure_power_secs=1, log_level="critical", allow_multiple_runs=True)
tracker.start()
time.sleep(seconds)
tracker.stop()
data = tracker.final_emissions_data
report(data.gpu_energy * 3.6e6, devices=data.gpu_count)
""",
}
# What each adds to a loop whose steps take 2 ms: a run that counts every step, a window around every step, a tracker beside it.
_LOOPS = {
    "nothing": """
def begin(): pass
step = end = begin
""",
    "aifinops": """
from aifinops import gpu
run = gpu.track("loop", price="3.60", devices="visible")
begin, step, end = run.start, run.step, run.close
""",
    "zeus": """
from zeus.monitor import ZeusMonitor
monitor = ZeusMonitor(cpu_indices=[])
def begin(): monitor.begin_window("s", sync_execution=False)
def end(): monitor.end_window("s", sync_execution=False)
def step():
    end()
    begin()
""",
    "codecarbon": """
from codecarbon import OfflineEmissionsTracker
tracker = OfflineEmissionsTracker(country_iso_code="USA", save_to_file=False, log_level="critical", allow_multiple_runs=True)
begin, end = tracker.start, tracker.stop
def step(): pass
""",
}
_LOOP = """
def loop(seconds):
    until, steps = time.perf_counter() + seconds, 0
    cpu = time.process_time()
    while time.perf_counter() < until:
        time.sleep(0.002)
        step()
        steps += 1
    return (time.process_time() - cpu) / steps * 1e6
begin()
loop(1.0)
found = loop(seconds)
end()
print("RESULT " + json.dumps({"joules": None, "us": found}))
"""
_CASES = {
    "index": {"CUDA_VISIBLE_DEVICES": "1"},
    "uuid": {"CUDA_VISIBLE_DEVICES": UUID},
    "mig": {"CUDA_VISIBLE_DEVICES": "MIG-11111111-aaaa"},
    "no counter": {"CUDA_VISIBLE_DEVICES": "1"},
    "shared": {"CUDA_VISIBLE_DEVICES": "1"},
}
_TRUTH = {
    "index": "500 W",
    "uuid": "500 W",
    "mig": "unknown: the counter is the whole GPU's",
    "no counter": "unknown",
    "shared": "125 W: a quarter of the work is ours",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has zeus and codecarbon")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="of the loops")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _build(Path(folder))
        for case in _CASES:
            print(f"\n{case} (truth: {_TRUTH[case]})")
            for tool in _TOOLS:
                for path in ("with nvidia-smi", "without") if tool == "codecarbon" else ("",):
                    print(f"  {tool + (f', {path}' if path else ''):32} {_said(tool, case, chosen, folder, path)}")
        print(
            f"\nCPU of the whole process, us a step of 2 ms, {chosen.seconds:.0f} s a loop, median of {chosen.rounds}"
        )
        _loops(chosen, folder)
    return 0


def _loops(chosen: argparse.Namespace, folder: str) -> None:
    """In turns, so that what slows the machine down slows all of them down."""
    found: dict[str, list[float]] = {tool: [] for tool in _LOOPS}
    for _ in range(chosen.rounds):
        for tool, figures in found.items():
            result = _ran(tool, _BEGIN + _LOOPS[tool] + _LOOP, "index", chosen, folder, "with nvidia-smi")
            if isinstance(result, str):
                raise SystemExit(f"{tool}: {result}")
            figures.append(result["us"])
    base = statistics.median(found["nothing"])
    for tool, figures in found.items():
        middle = statistics.median(figures)
        print(f"  {tool:12} {middle:7.1f}   adds {middle - base:6.1f}   ({min(figures):.1f} to {max(figures):.1f})")


def _build(folder: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("no C compiler to build the fake driver with")
    source = ROOT / "tests/gpu/fake_nvml.c"
    options = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([compiler, *options, "-o", folder / "libnvidia-ml.so.1", source, "-lm"], check=True)
    (folder / "bin").mkdir()
    (folder / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    (folder / "bin/nvidia-smi").chmod(0o755)


def _said(tool: str, case: str, chosen: argparse.Namespace, folder: str, path: str) -> str:
    found = _ran(tool, _BEGIN + _TOOLS[tool], case, chosen, folder, path)
    if isinstance(found, str):
        return found
    watts = "unknown" if found["joules"] is None else f"{found['joules'] / chosen.seconds:.0f} W"
    return f"{watts}  { {key: value for key, value in found.items() if key != 'joules'} }"


def _ran(tool: str, code: str, case: str, chosen: argparse.Namespace, folder: str, path: str) -> dict[str, Any] | str:
    """What the code reports in a process of its own, or how it fails."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("CUDA_", "NVIDIA_", "AIFINOPS_"))}
    environ |= _CASES[case] | {
        "CASE": case, "SECONDS": str(chosen.seconds), "LD_LIBRARY_PATH": folder, "PYTHONPATH": str(ROOT / "src"),
        "FAKE_GPUS": "2", "FAKE_BUSY": "1.0", "FAKE_WATTS": "500", "AIFINOPS_LEDGER": "memory", "HOME": folder,
    }  # fmt: skip
    if path == "with nvidia-smi":
        environ["PATH"] = f"{folder}/bin:{environ['PATH']}"
    interpreter = sys.executable if tool in {"aifinops", "nothing"} else chosen.python
    done = subprocess.run(
        [interpreter, "-c", code], env=environ, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    return "fails: " + (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:150]


if __name__ == "__main__":
    raise SystemExit(main())
