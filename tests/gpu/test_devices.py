"""Which devices there are and which are ours, as the drivers and runtimes read it."""

from __future__ import annotations

import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvml_scene import GIB, LOST, UNLOADED, FakeNvml

from aifinops.gpu import devices
from aifinops.gpu.devices import Device, held, inventory, visible

FOUR = tuple(Device(index, f"GPU-{letter * 8}-{index}", "NVIDIA H100 80GB HBM3") for index, letter in enumerate("abcd"))
TWINS = (Device(0, "GPU-aa11", "NVIDIA L4"), Device(1, "GPU-aa12", "NVIDIA L4"), Device(2, "GPU-b", "NVIDIA L4"))
MIXED = (Device(0, "GPU-a", "Tesla T4"), Device(1, "GPU-b", "NVIDIA H100 80GB HBM3"), Device(2, "GPU-c", "Tesla T4"))


def indices(chosen: tuple[Device, ...]) -> list[int]:
    return [device.index for device in chosen]


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        ("+1", [1]),
        ("1gpu,3x", [1, 3]),  # as strtoul reads it
        ("0x2", [0]),
        ("-1", []),
        ("0,-1,1", [0]),
        ("-0", [0]),
        ("0,9,1", [0]),  # ends at the first that names nothing
        ("NoDevFiles", []),
        ("0,,1", [0]),
        ("1,1", []),  # twice: none at all
        ("1,0,1x", []),
        ("0,GPU-bbbbbbbb", [0]),  # the first decides whether they are numbers
        ("GPU-bbbbbbbb-1", [1]),
        ("GPU-d,GPU-a", [3, 0]),
        ("GPU-d,1", [3]),
        ("GPU-d,GPU-x,GPU-a", [3]),
        ("GPU-d,GPU-dd", []),
        ("GPU-", []),  # begins the name of every one
        ("gpu-a", []),
    ],
)
def test_the_list_of_cuda(value: str | None, chosen: list[int]) -> None:
    """`CUDA_VISIBLE_DEVICES` chooses what CUDA would choose."""
    assert indices(visible(FOUR, {} if value is None else {"CUDA_VISIBLE_DEVICES": value})) == chosen


def test_a_name_cut_too_short_names_nothing() -> None:
    """Two UUIDs begin with `GPU-aa1`: neither is meant; one more letter tells them apart."""
    assert visible(TWINS, {"CUDA_VISIBLE_DEVICES": "GPU-aa1"}) == ()
    assert indices(visible(TWINS, {"CUDA_VISIBLE_DEVICES": "GPU-aa12"})) == [1]


@given(st.lists(st.integers(-1, 5) | st.sampled_from(["", "x", "1a", "GPU-bbbbbbbb"]), max_size=5))
def test_whatever_the_list_is_no_device_is_there_twice(entries: list[int | str]) -> None:
    """Nothing raises, and nobody is billed twice for one device."""
    chosen = visible(FOUR, {"CUDA_VISIBLE_DEVICES": ",".join(map(str, entries))})
    assert len({device.uuid for device in chosen}) == len(chosen)


@pytest.mark.parametrize(
    ("environ", "confidence"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, "low"),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "low"),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "high"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b"}, "high"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, "high"),  # all of them, in whatever order
        ({}, "high"),
    ],
)
def test_an_index_on_a_mixed_machine_is_not_sure(environ: dict[str, str], confidence: str) -> None:
    """CUDA counts from the fastest, the driver in PCI order: an index may mean another model."""
    assert {device.confidence for device in visible(MIXED, environ)} == {confidence}


def test_a_rank_of_torchrun_has_one_device_and_eight_ranks_have_eight() -> None:
    """Each of eight ranks names another device; alone with one visible device, it is that one."""
    eight = tuple(Device(index, f"GPU-{index}", "NVIDIA H100 80GB HBM3") for index in range(8))
    named = [visible(eight, {"LOCAL_RANK": str(rank)}) for rank in range(8)]
    assert [indices(chosen) for chosen in named] == [[rank] for rank in range(8)]
    assert indices(visible(eight, {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "6,7"})) == [7]
    assert indices(visible(eight, {"LOCAL_RANK": "5", "CUDA_VISIBLE_DEVICES": "6"})) == [6]


def test_more_ranks_than_devices_share_one_and_say_so() -> None:
    """Rank 2 of three on two devices holds one of them, and which is not sure."""
    (mine,) = visible(FOUR[:2], {"LOCAL_RANK": "2"})
    assert mine.index == 0
    assert mine.confidence == "low"


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        ("all", [0, 1, 2, 3]),
        ("void", [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        ("none", []),
        ("3", [0, 1, 2, 3]),  # in the container it counts from 0 again: what the driver shows is right
        ("GPU-cccccccc,GPU-dddddddd", [2, 3]),
        ("GPU-elsewhere", [0, 1, 2, 3]),
    ],
)
def test_the_list_of_the_container(value: str, chosen: list[int]) -> None:
    """`NVIDIA_VISIBLE_DEVICES` filters by UUID; CUDA's own list counts in what it leaves."""
    assert indices(visible(FOUR, {"NVIDIA_VISIBLE_DEVICES": value})) == chosen


def test_both_lists() -> None:
    """An index counts among the devices of the container."""
    environ = {"NVIDIA_VISIBLE_DEVICES": "GPU-cccccccc,GPU-dddddddd", "CUDA_VISIBLE_DEVICES": "1"}
    assert indices(visible(FOUR, environ)) == [3]


AMD = tuple(Device(index, f"GPU-{index}f00", "AMD Instinct MI300X", vendor="amd") for index in range(4))


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [
        ({}, [0, 1, 2, 3]),
        ({"ROCR_VISIBLE_DEVICES": "1,GPU-3f00"}, [1, 3]),
        ({"ROCR_VISIBLE_DEVICES": "1,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        ({"HIP_VISIBLE_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "0"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "2,7,1"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_the_lists_of_amd(environ: dict[str, str], chosen: list[int]) -> None:
    """ROCR's list first, HIP's or else CUDA's among what it leaves."""
    assert indices(visible(AMD, environ)) == chosen


# --- as the fake driver shows them ------------------------------------------------------------------------------------


def test_what_the_driver_shows(fake: FakeNvml) -> None:
    """Two GPUs with their UUIDs, names and memory; NVML is shut down again."""
    found = inventory()
    assert [device.uuid for device in found.devices] == [
        "GPU-a0000000-0000-4000-8000-000000000000",
        "GPU-a1010101-0000-4000-8000-000000000001",
    ]
    assert found.devices[0].name == "NVIDIA H100 80GB HBM3"
    assert found.devices[0].memory == 85520809984
    assert found.driver == "580.65.06"
    assert found.reason == ""
    assert fake.calls("nvmlInit") == fake.calls("nvmlShutdown") == 1
    assert inventory() is found


def test_a_uuid_finds_its_device(fake: FakeNvml) -> None:
    """`GPU-a1`, as schedulers set it, is the second GPU."""
    assert indices(visible(inventory().devices, {"CUDA_VISIBLE_DEVICES": "GPU-a1"})) == [1]


def test_a_lost_gpu_hides_no_other(fake: FakeNvml) -> None:
    """The GPU that has fallen off is missing and said to be lost; the other is there, and is index 0 to CUDA."""
    fake.error(0, "", LOST)
    found = inventory()
    assert indices(found.devices) == [1]
    assert "device 0" in found.reason
    assert "lost" in found.reason.lower()
    assert indices(visible(found.devices, {"CUDA_VISIBLE_DEVICES": "0"})) == [1]


def test_a_driver_that_is_not_loaded_is_an_answer(fake: FakeNvml) -> None:
    """No devices, and why; the next question asks again."""
    fake.init_error(UNLOADED)
    assert "no NVIDIA driver: Driver Not Loaded" in inventory().reason
    fake.init_error(0)
    assert len(inventory().devices) == 2


def cut(fake: FakeNvml) -> tuple[Device, ...]:
    """The first GPU of two in slices: 1g.10gb, 3g.40gb, and half of another 3g.40gb."""
    fake.mig(0, "MIG-11111111-aaaa", 7, 0, 1, 1, 9856 * 2**20)
    fake.mig(0, "MIG-22222222-bbbb", 1, 0, 3, 3, 40192 * 2**20)
    fake.mig(0, "MIG-22222222-cccc", 2, 1, 3, 1, 40192 * 2**20)
    return inventory().devices


def test_slices_have_their_parent_and_their_share(fake: FakeNvml) -> None:
    """A slice costs the larger of its compute part of 7 and its memory part of 8; an instance in it, its part of that."""
    whole, one, three, part, other = cut(fake)
    assert one.parent == three.parent == part.parent == whole.uuid
    assert whole.parent == other.parent == ""
    assert one.share == pytest.approx(1 / 7)
    assert three.share == pytest.approx(4 / 8)
    assert part.share == pytest.approx(4 / 8 / 3)
    assert one.name == whole.name
    assert one.instance == "7/0"


@pytest.mark.parametrize(
    ("value", "chosen", "confidence"),
    [
        ("MIG-11111111-aaaa", ["MIG-11111111-aaaa"], "high"),
        ("MIG-1", ["MIG-11111111-aaaa"], "high"),
        ("MIG-2", [], ""),
        ("MIG-GPU-a0000000-0000-4000-8000-000000000000/1/0", ["MIG-22222222-bbbb"], "high"),
        ("MIG-GPU-a0000000/9/0", [], ""),
        ("0", ["MIG-11111111-aaaa"], "high"),  # a GPU that is cut is used by its first slice
        ("GPU-a0", ["MIG-11111111-aaaa"], "high"),
        ("1", ["GPU-a1010101-0000-4000-8000-000000000001"], "high"),
        (None, ["MIG-11111111-aaaa"], "low"),  # CUDA takes one slice and nothing else
    ],
)
def test_the_list_of_cuda_with_slices(fake: FakeNvml, value: str | None, chosen: list[str], confidence: str) -> None:
    """Slices by UUID, by the older form with the parent's UUID, and by the index of their parent."""
    found = visible(cut(fake), {} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert [device.uuid for device in found] == chosen
    assert {device.confidence for device in found} == ({confidence} if confidence else set())


def test_a_container_with_one_slice(fake: FakeNvml) -> None:
    """The runtime names the slice; CUDA's index 0 is it."""
    found = visible(cut(fake), {"NVIDIA_VISIBLE_DEVICES": "MIG-22222222-bbbb", "CUDA_VISIBLE_DEVICES": "0"})
    assert [device.uuid for device in found] == ["MIG-22222222-bbbb"]


def test_memory_that_is_not_reported_is_unknown(fake: FakeNvml) -> None:
    """A board with unified memory answers "not supported": the device is there all the same."""
    fake.error(0, "nvmlDeviceGetMemoryInfo", 3)
    assert inventory().devices[0].memory is None
    assert inventory().devices[1].memory == 85520809984


def test_torch_knows_better(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once CUDA is in use its order is known: rank 1 holds what torch calls device 1, not what NVML does."""
    fake.device(0, "GPU-slow", "Tesla T4", 16 * GIB, 0, 1)
    fake.device(1, "GPU-fast", "NVIDIA H100 80GB HBM3", 80 * GIB, 1, 1)
    assert [device.uuid for device in held({"CUDA_VISIBLE_DEVICES": "0"})] == ["GPU-slow"]
    uuids = ["fast", "slow"]
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda index: types.SimpleNamespace(uuid=uuids[index]),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    devices.forget()
    assert [device.uuid for device in held({})] == ["GPU-fast", "GPU-slow"]
    assert [device.uuid for device in held({"LOCAL_RANK": "1"})] == ["GPU-slow"]


def test_the_doctor_tells_slices_and_lost_devices(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aifinops doctor` has a line for each device, with the share of a slice, and a bad one for a device that has fallen off."""
    from aifinops.cli.doctor import examine

    cut(fake)
    devices.forget()
    fake.error(1, "", LOST)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    lines = [(found.status, found.text) for found in examine() if found.subject == "GPUs"]
    assert lines[0] == ("good", "0: NVIDIA H100 80GB HBM3, 80 GiB, driver 580.65.06 (hidden from this process)")
    assert lines[1] == ("good", "0: NVIDIA H100 80GB HBM3, a slice of 14%, 10 GiB, driver 580.65.06")
    assert lines[-1][0] == "bad"
    assert "device 1" in lines[-1][1]
