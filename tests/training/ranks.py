"""What a rank does in the tests of several: started by torchrun, told what to do by its first argument."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import aifinops as af
from aifinops import gpu
from aifinops.errors import RunStopped


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))


def wrapped(kind: str) -> tuple[Any, Any]:
    net = model()
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    else:
        net = torch.nn.parallel.DistributedDataParallel(net)
    if kind == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return net, ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, lr=0.01)
    return net, torch.optim.SGD(net.parameters(), lr=0.01)


def one_step(net: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    net(torch.ones(4, 8)).pow(2).sum().backward()
    optimizer.step()


def count(kind: str) -> dict[str, Any]:
    """Five steps, and the usage of all ranks."""
    net, optimizer = wrapped(kind)
    with gpu.track("ranks", devices={"X": 3}, price="3.60") as run:
        for _ in range(5):
            one_step(net, optimizer)
        everybody = gpu.total(run.gather())
    own = run.usage()
    return {
        "steps": run.steps,
        "devices": own.models["X"],
        "seconds": str(own.allocated_s),
        "elapsed": own.elapsed_s,
        "all": everybody.models["X"],
        "run": run.run_id,
        "attempt": run.attempt,
    }


def stop(kind: str) -> dict[str, Any]:
    """Steps until the budget that the ranks share ends them; it begins before the run, or inside of it."""
    net, optimizer = wrapped("ddp")
    saved: list[int] = []

    def save() -> None:
        dist.barrier()  # as a sharded checkpoint does: alone it would wait for ever
        saved.append(run.steps)

    limit = af.budget("$0.04", name="ranks", max_wait=0)
    run = gpu.track("ranks", devices={"X": 2}, price="3.60", slice_s=1, allowance_s=2, checkpoint=save)
    why = ""
    try:
        with contextlib.ExitStack() as blocks:
            for block in (run, limit) if kind == "inside" else (limit, run):
                blocks.enter_context(block)
            while True:
                one_step(net, optimizer)
                time.sleep(0.01 if dist.get_rank() else 0.02)
    except RunStopped as error:
        why = f"{error.budget} after step {error.step}"
    dist.barrier()
    spent = str(limit.spent)
    return {"steps": run.steps, "saved": saved, "why": why, "spent": spent, "cost": str(run.usage().cost)}


def crash(_: str) -> dict[str, Any]:
    """The second rank is killed in its first attempt, and with it torchrun ends the other. A budget that they share pays for both."""
    net, optimizer = wrapped("ddp")
    with af.budget("$100", name="ranks") as limit:
        with gpu.track("ranks", devices={"X": 2}, price="3.60", slice_s=1) as run:
            for step in range(200):
                one_step(net, optimizer)
                time.sleep(0.02)
                if step == 150 and run.attempt == 1 and dist.get_rank() == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
        spent, reserved = str(limit.spent), str(limit.reserved)
    lost = [[one.rank, one.attempt] for one in run.lost]
    return {"attempt": run.attempt, "steps": run.steps, "lost": lost, "spent": spent, "reserved": reserved}


def main() -> None:
    task, kind, folder = sys.argv[1:4]
    # A file for each attempt: over the store that torchrun keeps from one to the next, gloo now and then waits for an address of the last one.
    meeting = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{meeting}", rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]), timeout=timedelta(seconds=30),
    )  # fmt: skip
    af.instrument("torch")
    found = {"count": count, "stop": stop, "crash": crash}[task](kind)
    Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
    af.shutdown()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
