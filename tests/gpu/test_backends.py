"""The other vendors, each with a stand-in for its library that answers as that library does; what it cannot say is None."""

from __future__ import annotations

import ctypes
import os
import sys
import types
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from aifinops.gpu import backends
from aifinops.gpu.backends.amd import AmdBackend
from aifinops.gpu.backends.apple import AppleBackend
from aifinops.gpu.backends.base import Backend, Device
from aifinops.gpu.backends.null import NullBackend, NullProbe
from aifinops.gpu.backends.tpu import TpuBackend
from aifinops.gpu.sampler import Sampler, Watch
from aifinops.testing import FakeClock

GIB = 2**30


class Smi(types.ModuleType):
    """amdsmi 7: dictionaries, "N/A" for what is unknown, exceptions of its own for what is not supported."""

    AmdSmiMemoryType = types.SimpleNamespace(VRAM="vram")

    class AmdSmiLibraryException(Exception):
        pass

    def __init__(self, *, guest: bool = False) -> None:
        super().__init__("amdsmi")
        self.guest = guest
        self.open = 0
        self.load: float | str = 40
        self.microjoules = 1_000_000.0
        self.rows: list[dict[str, object]] = [{"pid": os.getpid(), "memory_usage": {"vram_mem": 10 * GIB}}]

    def amdsmi_init(self) -> None:
        self.open += 1

    def amdsmi_shut_down(self) -> None:
        self.open -= 1

    def amdsmi_get_processor_handles(self) -> list[str]:
        return ["first", "second"]

    def amdsmi_get_gpu_device_uuid(self, handle: str) -> str:
        return {"first": "11ff74a1", "second": "22ff74a1"}[handle]

    def amdsmi_get_gpu_asic_info(self, handle: str) -> dict[str, object]:
        return {"market_name": "AMD Instinct MI300X"}

    def amdsmi_get_gpu_memory_total(self, handle: str, kind: str) -> int:
        return 192 * GIB

    def amdsmi_get_gpu_memory_usage(self, handle: str, kind: str) -> int:
        return 50 * GIB

    def amdsmi_get_gpu_driver_info(self, handle: str) -> dict[str, object]:
        return {"driver_version": "6.14.14"}

    def amdsmi_get_power_cap_info(self, handle: str) -> dict[str, object]:
        return {"power_cap": 750_000_000}

    def amdsmi_get_gpu_activity(self, handle: str) -> dict[str, object]:
        return {"gfx_activity": self.load, "umc_activity": 1, "mm_activity": "N/A"}

    def amdsmi_get_energy_count(self, handle: str) -> dict[str, object]:
        if self.guest:
            raise self.AmdSmiLibraryException(2)
        return {"energy_accumulator": self.microjoules / 15.259, "counter_resolution": 15.259, "timestamp": 1}

    def amdsmi_get_gpu_process_list(self, handle: str) -> list[dict[str, object]]:
        return self.rows


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Smi, AmdBackend]]:
    def machine(**options: bool) -> tuple[Smi, AmdBackend]:
        smi = Smi(**options)
        monkeypatch.setitem(sys.modules, "amdsmi", smi)
        (tmp_path / "kfd").touch()
        return smi, AmdBackend(tmp_path / "kfd")

    return machine


def watched(backend: Backend, device: Device) -> tuple[FakeClock, Sampler, Watch]:
    clock = FakeClock()
    sampler = Sampler(clock, threaded=False, backend_of=lambda _: backend)
    return clock, sampler, Watch(sampler, (device,))


def test_amd_is_read(amd: Callable[..., tuple[Smi, AmdBackend]]) -> None:
    """Load by polling, without a bound; energy by the counter; memory of our own process; the library is closed again."""
    smi, backend = amd()
    found = backend.inventory()
    assert [device.uuid for device in found.devices] == ["GPU-11ff74a1", "GPU-22ff74a1"]
    assert found.devices[0].name == "AMD Instinct MI300X"
    assert found.devices[0].memory == 192 * GIB
    assert found.driver == "6.14.14"
    clock, sampler, watch = watched(backend, found.devices[1])
    for _ in range(10):
        clock.advance(1)
        smi.microjoules += 500e6
        sampler.look()
    figures = watch.between(found.devices[1], 0, 10_000_000_000)
    assert figures.busy_s == pytest.approx(4)
    assert figures.busy_source == "amdsmi_polled"
    assert figures.busy_error_s is None
    assert figures.energy_j == pytest.approx(5000)
    assert figures.energy_error_j == pytest.approx(75)
    assert figures.memory_gib_s == pytest.approx(100)
    assert figures.sm_active_s is None
    assert figures.attribution == "pid"
    watch.close()
    assert smi.open == 0


def test_a_guest_of_a_hypervisor_has_no_energy_counter(amd: Callable[..., tuple[Smi, AmdBackend]]) -> None:
    """What is not supported or "N/A" is None; the rest is there."""
    smi, backend = amd(guest=True)
    smi.load = "N/A"
    device = backend.inventory().devices[0]
    clock, sampler, watch = watched(backend, device)
    clock.advance(1)
    sampler.look()
    figures = watch.between(device, 0, 1_000_000_000)
    assert (figures.busy_s, figures.energy_j) == (None, None)
    assert figures.memory_gib_s == pytest.approx(10)
    watch.close()


def test_amd_without_its_kernel_driver_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import of amdsmi without its library prints and raises KeyError: it is not tried where /dev/kfd is not there."""
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    backend = AmdBackend(tmp_path / "kfd")
    assert not backend.likely()
    assert backend.inventory().devices == ()


def test_an_amdsmi_that_breaks_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its import prints and raises KeyError: the reason has it, and nothing is printed."""
    (tmp_path / "amdsmi.py").write_text("print('Unable to find libamd_smi.so')\nraise KeyError('amdsmi')\n")
    (tmp_path / "kfd").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    assert "KeyError" in AmdBackend(tmp_path / "kfd").inventory().reason
    assert capsys.readouterr().out == ""


def test_a_gpu_of_amd_that_is_gone_reads_nothing(amd: Callable[..., tuple[Smi, AmdBackend]]) -> None:
    """Its UUID is not in the library's list any more."""
    smi, backend = amd()
    assert isinstance(backend.probe(Device(0, "GPU-99", "AMD Instinct MI300X", vendor="amd")), NullProbe)
    assert smi.open == 0


def tpus(dev: Path, *, vfio: bool = False) -> None:
    (dev / "vfio").mkdir()
    for number in range(4):
        (dev / (f"vfio/{number}" if vfio else f"accel{number}")).touch()
    (dev / "vfio/vfio").touch()


@pytest.mark.parametrize(
    ("kind", "name", "vfio"),
    [
        ("v5litepod-4", "TPU v5e", True),
        ("v4-8", "TPU v4", False),
        ("v6e-8", "TPU v6e", True),
        ("v9x-4", "TPU v9x", True),
    ],
)
def test_tpus_by_their_device_files(tmp_path: Path, kind: str, name: str, vfio: bool) -> None:
    """One device a chip, with the name that prices know."""
    tpus(tmp_path, vfio=vfio)
    environ = {"TPU_ACCELERATOR_TYPE": kind, "TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "ten"}
    found = TpuBackend(tmp_path, environ).inventory()
    assert [device.uuid for device in found.devices] == [f"TPU-ten/3/{number}" for number in range(4)]
    assert {(device.name, device.vendor) for device in found.devices} == {(name, "google")}


def test_files_of_vfio_alone_are_no_tpus(tmp_path: Path) -> None:
    """They belong to whatever is handed to a virtual machine, unless Cloud TPU has said what it is."""
    tpus(tmp_path, vfio=True)
    assert not TpuBackend(tmp_path, {}).likely()


def test_a_tpu_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Duty cycle and memory of its own chip; before a program runs the lists are empty, and the figures unknown."""
    tpus(tmp_path, vfio=True)
    answers: dict[str, list[str]] = {"duty_cycle_pct": [], "hbm_capacity_usage": []}
    monitoring = types.SimpleNamespace(get_metric=lambda name: types.SimpleNamespace(data=lambda: answers[name]))
    sdk = types.ModuleType("libtpu.sdk")
    sdk.tpumonitoring = monitoring  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
    monkeypatch.setitem(sys.modules, "libtpu.sdk", sdk)
    backend = TpuBackend(tmp_path, {"TPU_ACCELERATOR_TYPE": "v5litepod-4"})
    device = backend.inventory().devices[2]
    clock, sampler, watch = watched(backend, device)
    clock.advance(1)
    sampler.look()
    assert watch.between(device, 0, 1_000_000_000).busy_s is None
    answers.update(duty_cycle_pct=["0.0", "0.0", "75.0", "0.0"], hbm_capacity_usage=["0", "0", str(8 * GIB), "0"])
    for _ in range(10):
        clock.advance(1)
        sampler.look()
    figures = watch.between(device, 1_000_000_000, 11_000_000_000)
    assert figures.busy_s == pytest.approx(7.5)
    assert figures.busy_source == "tpu_duty_cycle_polled"
    assert figures.busy_error_s is None
    assert figures.energy_j is None
    assert figures.memory_gib_s == pytest.approx(80, rel=0.15)


class System:
    """libSystem of a Mac."""

    def sysctlbyname(self, name: bytes, buffer: ctypes.Array[ctypes.c_char], size: object, *_: object) -> int:
        answers = {b"machdep.cpu.brand_string": b"Apple M3 Max\0", b"hw.memsize": (64 * GIB).to_bytes(8, sys.byteorder)}
        if name not in answers:
            return -1
        size._obj.value = len(answers[name])  # type: ignore[attr-defined]
        ctypes.memmove(buffer, answers[name], len(answers[name]))
        return 0

    def gethostuuid(self, buffer: ctypes.Array[ctypes.c_char], wait: object) -> int:
        ctypes.memmove(buffer, uuid.UUID(int=5).bytes, 16)
        return 0


def test_a_mac_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chip by name and the host's UUID; memory by torch where it is loaded, everything else unknown."""
    backend = AppleBackend(System())
    (device,) = backend.inventory().devices
    assert device.name == "Apple M3 Max"
    assert device.memory == 64 * GIB
    assert device.uuid == "APPLE-00000000-0000-0000-0000-000000000005"
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert backend.event_factory() is None
    clock, sampler, watch = watched(backend, device)
    clock.advance(1)
    assert watch.between(device, 0, 1_000_000_000).memory_gib_s is None
    mps = types.SimpleNamespace(driver_allocated_memory=lambda: 6 * GIB, Event=lambda **options: options)
    torch = types.SimpleNamespace(
        mps=mps, backends=types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: True))
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    make = backend.event_factory()
    assert make is not None
    assert make() == {"enable_timing": True}
    for _ in range(2):
        clock.advance(1)
        sampler.look()
    figures = watch.between(device, 2_000_000_000, 3_000_000_000)
    assert figures.memory_gib_s == pytest.approx(6)
    assert (figures.busy_s, figures.energy_j, figures.busy_source) == (None, None, "")


def test_an_unknown_vendor_has_nothing_to_say() -> None:
    """A device that no backend knows is watched all the same: every figure is unknown."""
    device = Device(0, "XPU-1", "Intel Data Center GPU Max 1550", vendor="intel")
    backend = backends.of(device)
    assert isinstance(backend, NullBackend)
    assert backend.inventory().reason
    clock, _, watch = watched(backend, device)
    clock.advance(1)
    figures = watch.between(device, 0, 1_000_000_000)
    assert {figures.busy_s, figures.memory_gib_s, figures.energy_j, figures.covered} == {None}
    assert figures.attribution == ""
