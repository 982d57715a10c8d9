"""What holds across processes and threads: nothing at import, no driver, an old driver, forks, a driver that hangs, the thread's life."""

from __future__ import annotations

import json
from pathlib import Path

from nvml_scene import build, run_python

SCENE = """
import ctypes, json, os, sys, threading, time
fake = ctypes.CDLL("libnvidia-ml.so.1")
fake.fake_calls.restype = fake.fake_now.restype = ctypes.c_uint64
fake.fake_load.argtypes = [ctypes.c_uint, ctypes.c_uint64] + [ctypes.c_double] * 4 + [ctypes.c_uint64]
fake.fake_reset(2)
def busy(gpu, part):
    fake.fake_load(gpu, fake.fake_now() - 60_000_000, part, part, part, 500.0, 1 << 30)
from aifinops.clock import SystemClock
from aifinops.gpu.devices import inventory, visible
from aifinops.gpu import sampler
from aifinops.gpu.sampler import watch
sampler.PATIENCE_S = 30.0  # this machine may be busy
clock = SystemClock()
"""


def test_an_import_asks_nobody(driver_folder: str) -> None:
    """Neither `aifinops` nor any module of `aifinops.gpu` loads pynvml or torch, starts a thread or opens the driver."""
    code = """
import ctypes, pkgutil, sys, threading
fake = ctypes.CDLL("libnvidia-ml.so.1")
fake.fake_reset(2)
import aifinops, aifinops.gpu
for module in pkgutil.walk_packages(aifinops.gpu.__path__, "aifinops.gpu."):
    __import__(module.name)
print([name for name in ("pynvml", "torch", "amdsmi", "libtpu") if name in sys.modules], threading.active_count(), fake.fake_calls(b"nvmlInit"))
"""
    assert run_python(code, driver_folder) == "[] 1 0"


def test_without_a_driver_time_is_metered_and_the_rest_is_unknown() -> None:
    """No libnvidia-ml at all: a reason, no thread, no failure of ours, and a tracked function runs."""
    code = """
import threading
import aifinops as af
from aifinops.errors import failures
from aifinops.gpu.backends.base import Device
from aifinops.gpu.devices import inventory, visible
from aifinops.gpu.sampler import watch
found = inventory()
assert "no NVIDIA driver" in found.reason and "Shared Library Not Found" in found.reason, found
@af.track_cost(gpu="auto")
def train():
    return 7
assert train() == 7
with watch(visible(found.devices)) as none:
    assert "aifinops-gpu" not in [thread.name for thread in threading.enumerate()]
with watch([Device(0, "GPU-1", "NVIDIA H100 80GB HBM3")]) as watched:
    found = watched.between(watched.devices[0], 0, 10**9)
    print(found.busy_s, found.energy_j, found.memory_gib_s, repr(found.busy_source), repr(found.attribution), failures())
"""
    assert run_python(code, None) == "None None None '' '' {}"


def test_a_driver_without_the_newer_functions(tmp_path: Path) -> None:
    """No ring of samples and no GPM in this library: busy and useful time are unknown, energy and memory are not."""
    code = (
        SCENE
        + """
busy(0, 0.5)
devices = visible(inventory().devices, {})
with watch(devices, clock=clock) as watched:
    start = clock.monotonic_ns()
    time.sleep(0.5)
    found = watched.between(devices[0], start, clock.monotonic_ns())
print(found.busy_s, found.sm_active_s, 200 < found.energy_j < 300, 0.3 < found.memory_gib_s < 0.8)
"""
    )
    build(tmp_path, "-DOLD_DRIVER")
    assert run_python(code, str(tmp_path)) == "None None True True"


def test_the_thread_lives_while_somebody_watches(driver_folder: str) -> None:
    """It starts with the first watch, reads by itself, tells what it costs, and is gone after the last; NVML is shut down again."""
    code = (
        SCENE
        + """
busy(0, 1.0); busy(1, 0.25)
devices = visible(inventory().devices, {})
first = watch(devices, clock=clock)
second = watch(devices[:1], clock=clock)
start = clock.monotonic_ns()
names = [thread.name for thread in threading.enumerate()]
time.sleep(2.2)
end = clock.monotonic_ns()
both = [first.between(device, start, end) for device in devices]
looks, cost = first.cost.looks, first.cost
first.close()
time.sleep(0.1)
assert second.between(devices[0], start, end).busy_s is not None
second.close()
for _ in range(100):
    if threading.active_count() == 1: break
    time.sleep(0.02)
print(json.dumps({
    "names": names, "left": threading.active_count(), "looks": looks, "seconds": (end - start) / 1e9,
    "busy": [found.busy_s for found in both], "errors": [found.busy_error_s for found in both], "source": both[0].busy_source,
    "wall": cost.wall_s / cost.looks, "open": fake.fake_calls(b"nvmlInit") - fake.fake_calls(b"nvmlShutdown"),
}))
"""
    )
    found = json.loads(run_python(code, driver_folder))
    assert found["names"] == ["MainThread", "aifinops-gpu"]
    assert found["left"] == 1
    assert found["looks"] >= 4
    assert found["source"] == "gpm"
    assert abs(found["busy"][0] - found["seconds"]) <= found["errors"][0] + 1e-6
    assert abs(found["busy"][1] - found["seconds"] / 4) <= found["errors"][1] + 1e-6
    assert max(found["errors"]) < 0.3
    assert found["wall"] > 0
    assert found["open"] == 0


def test_a_forked_child_begins_anew_and_the_parent_goes_on(driver_folder: str) -> None:
    """Thirty forks while the thread reads as fast as it can: no child hangs; the parent's watch is unknown to it, its own works."""
    code = (
        SCENE
        + """
sampler.TICK_S = 0.0005
busy(0, 1.0)
devices = visible(inventory().devices, {})
with watch(devices, clock=clock) as watched:
    start = clock.monotonic_ns()
    for number in range(30):
        child = os.fork()
        if not child:
            ours = watched.between(devices[0], start, clock.monotonic_ns()).busy_s
            seen = len(inventory().devices)
            with watch(devices, clock=clock) as mine:
                begun = clock.monotonic_ns()
                time.sleep(0.11 if number == 0 else 0.0)
                theirs = mine.between(devices[0], begun, clock.monotonic_ns())
            watched.close()
            os._exit(0 if ours is None and seen == 2 and (number or theirs.busy_source == "gpm") else 1)
        deadline = time.monotonic() + 30
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done or time.monotonic() > deadline: break
            time.sleep(0.002)
        assert done and status == 0, (number, done, status)
    time.sleep(0.2)
    found = watched.between(devices[0], start, clock.monotonic_ns())
    print(found.busy_s is not None and abs(found.busy_s - (clock.monotonic_ns() - start) / 1e9) < 0.2 * found.busy_s)
"""
    )
    assert run_python(code, driver_folder) == "True"


def test_a_driver_that_hangs_holds_up_nobody(driver_folder: str) -> None:
    """A call that takes five seconds: who asks waits a quarter of one and gets what was known; closing and listing do not wait either."""
    code = (
        SCENE
        + """
busy(0, 1.0)
devices = visible(inventory().devices, {})
watched = watch(devices, clock=clock)
start = clock.monotonic_ns()
time.sleep(1.3)
fake.fake_error(ctypes.c_int(0), b"nvmlDeviceGetMemoryInfo", ctypes.c_int(105_000))
time.sleep(1.2)
sampler.PATIENCE_S = 0.25
asked = time.monotonic()
found = watched.between(devices[0], start, clock.monotonic_ns())
waited = time.monotonic() - asked
from aifinops.gpu import devices as module
module.forget()
listed = inventory().reason
watched.close()
print(waited < 2.0, time.monotonic() - asked < 4.0, listed)
os._exit(0)
"""
    )
    assert run_python(code, driver_folder) == "True True the driver does not answer"
