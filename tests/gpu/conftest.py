"""Fixtures of the fake driver, which `nvml_scene` builds and sets."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aifinops.gpu import devices, nvml

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by their paths: a module beside them is not found

from nvml_scene import FakeNvml, Stage, build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("driver"), "-Wall", "-Wextra", "-Werror")))


@pytest.fixture
def fake(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """A machine with two H100; no variable of the machine says which are ours."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeNvml(library)
    fake.machine(2)
    devices.forget()
    nvml.session.reset_after_fork()
    yield fake
    fake.machine(0)
    devices.forget()
    nvml.session.reset_after_fork()


@pytest.fixture
def driver_folder(library: ctypes.CDLL) -> str:
    """For `LD_LIBRARY_PATH`."""
    return str(Path(library._name).parent)


@pytest.fixture
def stage(fake: FakeNvml) -> Iterator[Callable[[], Stage]]:
    """Begins to watch all devices that the driver shows."""
    opened: list[Stage] = []

    def begin() -> Stage:
        opened.append(Stage(fake, devices.visible(devices.inventory().devices)))
        return opened[-1]

    yield begin
    for each in opened:
        each.watch.close()
