"""What one process with a DeepSpeed engine does in the tests: started with a kind of engine, it prints what was counted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch

import aifinops as af
from aifinops import gpu
from aifinops.errors import RunStopped


def layers() -> list[Any]:
    torch.manual_seed(0)
    return [torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)]


def optimizer_of(parts: list[Any]) -> Any:
    groups = [{"params": list(one.parameters())} for one in parts]
    return torch.optim.AdamW(groups, lr=0.01)


def settings(stage: int, **more: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": stage},
        **more,
    }


def small_batch(engine: Any, kind: torch.dtype) -> None:
    loss = engine(torch.ones(4, 8, dtype=kind)).float().pow(2).sum()
    engine.backward(loss)
    engine.step()


def zero(stage: int, *, bf16: bool = False) -> dict[str, Any]:
    """Eight small batches in groups of two."""
    parts = layers()
    more = {"bf16": {"enabled": True}} if bf16 else {}
    with gpu.track("ds", devices={"X": 1}) as run:
        engine, *_ = deepspeed.initialize(
            model=torch.nn.Sequential(*parts), optimizer=optimizer_of(parts), config=settings(stage, **more)
        )
        for _ in range(8):
            small_batch(engine, torch.bfloat16 if bf16 else torch.float32)
    return {"steps": run.steps, "engine": engine.global_steps}


def pipeline() -> dict[str, Any]:
    """Three batches of two small ones."""
    net = deepspeed.pipe.PipelineModule(
        layers=layers(), num_stages=1, loss_fn=lambda out, wanted: (out - wanted).pow(2).mean()
    )

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            yield torch.ones(4, 8), torch.zeros(4, 2)

    found = batches()
    with gpu.track("pipe", devices={"X": 1}) as run:
        engine, *_ = deepspeed.initialize(
            model=net, optimizer=optimizer_of(list(net.forward_funcs)), config=settings(1)
        )
        for _ in range(3):
            engine.train_batch(found)
    return {"steps": run.steps, "engine": engine.global_steps}


def beside() -> dict[str, Any]:
    """An optimizer beside the engine counts as ever; after `uninstrument` the engine is what it was."""
    parts, other = layers(), torch.nn.Linear(2, 2)
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    with gpu.track("ds", devices={"X": 1}) as run:
        engine, *_ = deepspeed.initialize(
            model=torch.nn.Sequential(*parts), optimizer=optimizer_of(parts), config=settings(1)
        )
        for _ in range(2):
            small_batch(engine, torch.float32)
        other(torch.ones(1, 2)).sum().backward()
        plain.step()
        steps = run.steps
        af.uninstrument("torch")
        small_batch(engine, torch.float32)
        small_batch(engine, torch.float32)
    return {"steps": steps, "engine": engine.global_steps, "after": run.steps, "wrapped": wrapped()}


def wrapped() -> list[str]:
    engine = deepspeed.runtime.engine.DeepSpeedEngine
    return [name for name in ("__init__", "step") if hasattr(vars(engine)[name], "__wrapped__")]


def stopped() -> dict[str, Any]:
    """A budget ends it at a step of the engine, after the checkpoint."""
    parts = layers()
    saved: list[int] = []
    engine, *_ = deepspeed.initialize(
        model=torch.nn.Sequential(*parts), optimizer=optimizer_of(parts), config=settings(2)
    )
    with af.budget("$0.002") as limit:
        run = gpu.track(
            "ds",
            devices={"X": 1},
            price="3.60",
            slice_s=0.1,
            allowance_s=0.5,
            checkpoint=lambda: saved.append(run.steps),
        )
        step = 0
        try:
            with run:
                while True:
                    small_batch(engine, torch.float32)
        except RunStopped as stop:
            step = stop.step
        spent = str(limit.spent)
    return {"steps": run.steps, "engine": engine.global_steps, "saved": saved, "step": step, "spent": spent}


def main() -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    af.init(ledger="memory")
    af.instrument("torch", *sys.argv[2:])
    deepspeed.init_distributed("gloo")
    kinds = {
        "zero0": lambda: zero(0), "zero1": lambda: zero(1), "zero2": lambda: zero(2), "zero3": lambda: zero(3, bf16=True),
        "bf16": lambda: zero(0, bf16=True), "pipeline": pipeline, "beside": beside, "stopped": stopped,
    }  # fmt: skip
    sys.stdout.write(f"FOUND {json.dumps(kinds[sys.argv[1]]())}\n")


if __name__ == "__main__":
    main()
