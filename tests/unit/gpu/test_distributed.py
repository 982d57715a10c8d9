"""Which rank this is, what it pays for, and the note by which all stop at one step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path

import pytest

from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.stores.sqlite import SqliteStore
from aifinops.errors import BudgetExceeded
from aifinops.gpu import distributed
from aifinops.gpu.distributed import FileBoard, Rank, StoreBoard
from aifinops.gpu.ending import Ending

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "7", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x1),3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Rank()),
        (TORCHRUN, Rank(5, 8, 1, 4, 2, alone=False)),
        ({**TORCHRUN, **SRUN}, Rank(5, 8, 1, 4, 2, alone=False)),
        (SRUN, Rank(5, 7, 1, 3, 0, alone=False)),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}, Rank()),  # a batch script, which is no step
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Rank(0, 1, 0, 1, 0, alone=True)),
        ({"LOCAL_RANK": "3"}, Rank(3, 0, 3, 0, alone=False)),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, Rank(0, 2, 0, 0, alone=False)),
        ({"RANK": "first", "WORLD_SIZE": "2"}, Rank()),
    ],
)
def test_the_launcher_says_which_rank_this_is(environ: dict[str, str], expected: Rank) -> None:
    """torchrun before `srun`; a batch script sees variables of its steps and is none."""
    assert distributed.rank(environ) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "77", "JOB_UUID": "u"}, "77"),
        ({"AIFINOPS_RUN_ID": "mine", "SLURM_JOB_ID": "77"}, "mine"),
        ({"TORCHELASTIC_RUN_ID": "none", "JOB_UUID": "u"}, "u"),
    ],
)
def test_a_run_has_the_name_that_all_attempts_share(environ: dict[str, str], expected: str) -> None:
    """Ours first; torchrun's default is no name."""
    assert distributed.run_id(environ) == expected


def test_ranks_of_a_nameless_torchrun_on_one_machine_share_a_name() -> None:
    """They have one launcher; over several machines nothing nameless is shared."""
    one = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    assert distributed.run_id(one).startswith("torchrun-")
    assert distributed.run_id({**one, "WORLD_SIZE": "4"}) == ""
    assert distributed.run_id({"TORCHELASTIC_RUN_ID": ""}) == ""


@pytest.mark.parametrize("devices", range(10))
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_device_of_a_machine_is_paid_for_exactly_once(
    devices: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their numbers are: more ranks than devices, or more devices than ranks."""
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    paid: list[int] = []
    for local in range(ranks):
        own, rest = distributed.share(range(devices), Rank(local, ranks, local, ranks, alone=ranks == 1))
        assert len(own) <= 1 or ranks == 1
        paid += [*own, *rest]
    assert sorted(paid) == list(range(devices))


def test_a_launcher_that_shows_each_rank_its_own_device_leaves_nothing_to_divide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `srun --gpus-per-task=1` does: the one that rank 3 sees is its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-d")
    assert distributed.share(["d"], Rank(3, 4, 3, 4, alone=False)) == (["d"], [])


def test_where_nobody_says_how_many_ranks_there_are_nothing_is_left_over() -> None:
    """Another rank may have it: it is not paid for twice."""
    assert distributed.share("abc", Rank(0, 0, 0, 0, alone=False)) == (["a"], [])


@pytest.fixture(params=["store", "file"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], distributed.StopBoard]]:
    """Each board as another process has it: a store has a connection of its own."""
    with ExitStack() as opened:

        def one(since: int) -> distributed.StopBoard:
            if request.param == "file":
                return FileBoard(tmp_path / "r.stop", since)
            store = opened.enter_context(closing(SqliteStore(tmp_path / "budgets.db")))
            return StoreBoard(store, "gpu-stop/r", since)

        yield one


def refusal(name: str = "b") -> BudgetExceeded:
    return BudgetExceeded(name, limit=Decimal(5), spent=Decimal("4.5"))


def test_whoever_writes_first_has_the_say(board: Callable[[int], distributed.StopBoard]) -> None:
    """The second one gets the note of the first; an old note of another launch is none."""
    since = time.time_ns()
    first, second = board(since), board(since)
    assert first.read() is None
    assert first.propose(41, refusal())["step"] == 41
    assert second.propose(44, refusal("c"))["step"] == 41
    assert second.read() == first.read()
    later = board(time.time_ns() + 1)
    assert later.read() is None
    assert later.propose(7, refusal())["step"] == 7


def test_all_ranks_end_at_the_step_of_the_note(board: Callable[[int], distributed.StopBoard]) -> None:
    """One is refused; both make the steps up to the note, and end there with the budget's name."""
    since = time.time_ns()
    ends = [Ending(board(since), rank) for rank in range(2)]
    stopped: dict[int, int] = {}
    now, step = 0, 0
    while len(stopped) < 2:
        step += 1
        now += distributed.LOOK_NS // 10
        for rank, end in enumerate(ends):
            why = end.judge(now, step, refusal() if rank == 1 and step >= 30 else None, 0.1)
            if why is not None and rank not in stopped:
                stopped[rank] = step
                assert why.budget == "b"
        assert step < 200
    assert stopped[0] == stopped[1] == 30 + distributed.steps_ahead(0.1)


def test_a_rank_that_saw_the_note_late_ends_at_once(board: Callable[[int], distributed.StopBoard]) -> None:
    """It is better to end at another step than not at all."""
    where = board(time.time_ns())
    where.propose(5, refusal())
    assert Ending(where, 0).judge(0, 9, None, 0.1) is not None


def test_the_note_is_far_enough_ahead() -> None:
    """Within that many steps every rank has looked twice, however long a step is."""
    for step_s in (0.0001, 0.01, 0.5, 2.0, 60.0):
        ahead = distributed.steps_ahead(step_s)
        assert ahead * step_s >= 2 * distributed.LOOK_NS / 1e9 + step_s


def test_ranks_that_share_no_store_take_a_file_and_without_one_nothing(tmp_path: Path) -> None:
    """The file lies beside the ledger."""
    assert isinstance(distributed.board(MemoryStore(), tmp_path / "runs", "gpu-stop/r", 0), FileBoard)
    assert distributed.board(MemoryStore(), None, "gpu-stop/r", 0) is None


def test_without_torch_there_is_nobody_to_gather_from() -> None:
    """The value itself."""
    assert distributed.gather(3) == [3]
