"""The fake driver: built once with the machine's C compiler, loaded once, and found by the real `pynvml` under its usual name.

glibc gives a library that is loaded already to whoever asks for its SONAME: after `CDLL(path)`, `pynvml`'s `CDLL("libnvidia-ml.so.1")` is
this one. Processes of their own find it by `LD_LIBRARY_PATH`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aifinops.gpu.devices import Device
from aifinops.gpu.measured import Measured
from aifinops.gpu.sampler import Sampler, Watch

SOURCE = Path(__file__).with_name("fake_nvml.c")
START_US = 1_800_000_000_000_000
GIB = 2**30
LOST, UNSUPPORTED, DENIED, UNLOADED = 15, 3, 4, 9
_TYPES = {
    "fake_set_now": (ctypes.c_uint64,),
    "fake_device": (ctypes.c_uint, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int),
    "fake_ring": (ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint64),
    "fake_error": (ctypes.c_int, ctypes.c_char_p, ctypes.c_int),
    "fake_load": (ctypes.c_uint, ctypes.c_uint64, *(ctypes.c_double,) * 4, ctypes.c_uint64),
    "fake_mig": (ctypes.c_uint, ctypes.c_char_p, *(ctypes.c_uint,) * 4, ctypes.c_uint64),
    "fake_process": (ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64, ctypes.c_double),
    "fake_calls": (ctypes.c_char_p,),
}


def build(folder: Path, *options: str) -> Path:
    """The fake as a library of the driver's name, in a folder of its own."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the fake libnvidia-ml with")
    if not sys.platform.startswith("linux"):
        pytest.skip("a library is found by its SONAME on Linux only")
    path = folder / "libnvidia-ml.so.1"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        *options,
        "-Wl,-soname,libnvidia-ml.so.1",
        "-o",
        path,
        SOURCE,
        "-lm",
    ]
    subprocess.run(command, check=True)
    return path


class FakeNvml:
    """Sets the scene; it is also the clock of those who read it, so that times are exact."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, types in _TYPES.items():
            getattr(library, name).argtypes = types
        library.fake_now.restype = library.fake_calls.restype = ctypes.c_uint64
        self._gone_s = 0.0

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(self._library, f"fake_{name}")
        return lambda *given: int(function(*(v.encode() if isinstance(v, str) else v for v in given)) or 0)

    def machine(self, gpus: int) -> None:
        """So many GPUs, idle, without processes; time begins anew."""
        self.reset(gpus)
        self._library.fake_set_now(START_US)

    def time_ns(self) -> int:
        return int(self._library.fake_now()) * 1000

    def monotonic_ns(self) -> int:
        return (int(self._library.fake_now()) - START_US) * 1000 + 1_000_000_000

    def advance(self, seconds: float) -> None:
        self._library.fake_set_now(self._library.fake_now() + round(seconds * 1e6))

    def at(self, seconds: float) -> int:
        """Monotonic nanoseconds, so many seconds after the start."""
        return 1_000_000_000 + round(seconds * 1e9)

    def from_now(
        self, gpu: int, busy: float, *, sm: float = 0.0, tensor: float = 0.0, watts: float = 0.0, used: int = 0
    ) -> None:
        """From now on the GPU is so busy."""
        self.load(gpu, self._library.fake_now(), busy, sm, tensor, watts, used)


class Stage:
    """A watch without a thread: time passes and devices are read when the test says so."""

    def __init__(self, fake: FakeNvml, watched: tuple[Device, ...]) -> None:
        self.fake = fake
        self.sampler = Sampler(fake, threaded=False)
        self.watch = Watch(self.sampler, watched)

    def run(self, seconds: float, every: float = 1.0) -> None:
        """Let time pass, with a look at the devices every so often."""
        left = round(seconds * 1e6)
        while left > 0:
            step = min(left, round(every * 1e6))
            self.fake.advance(step / 1e6)
            self.sampler.look()
            left -= step

    def between(self, start: float, end: float, device: Device | None = None) -> Measured:
        """What was measured from one second to another."""
        return self.watch.between(device or self.watch.devices[0], self.fake.at(start), self.fake.at(end))


def run_python(code: str, driver: str | None, **environ: str) -> str:
    """What a process of its own prints; it finds the fake driver, or no driver at all."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AIFINOPS_", "CUDA_", "NVIDIA_"))}
    env |= {
        "AIFINOPS_LEDGER": "memory",
        "LD_LIBRARY_PATH": driver or "",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run(  # its errors are shown below
        [sys.executable, "-W", "error", "-c", code],
        check=False,
        env=env | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
