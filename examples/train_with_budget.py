"""A training loop that pays for its GPU as it goes, and ends at a step, after a checkpoint, before its budget does.

No GPU is needed: the device is only named, and its hour has a price of our own. With torch the same loop needs no `run.step()`:
`af.instrument()` hooks the optimizer.
"""

import time

import aifinops as af
from aifinops import gpu

af.init(ledger="memory")
saved = []


def save() -> None:
    """Where a real loop writes its weights."""
    time.sleep(0.02)
    saved.append(run.steps)


with af.budget("$0.002", name="finetune", store="memory") as limit:
    run = gpu.track(
        "finetune", team="nlp", devices={"NVIDIA H100 80GB HBM3": 1}, price="3.60", checkpoint=save, total_steps=10_000, slice_s=0.2,
        allowance_s=0.5,
    )  # fmt: skip
    try:
        with run:
            while run.steps < 10_000:
                time.sleep(0.01)  # forward, backward, optimizer
                run.step()
                if run.steps == 50:
                    ahead = run.estimate_remaining()
                    print(
                        f"{ahead.steps} steps to come would cost {ahead.cost:.4f} USD; the budget ends it at about step {ahead.last_step}"
                    )
    except af.RunStopped as stop:
        print(stop)

used = run.usage()
print(f"saved after step {saved[0]}; {used.allocated_s:.2f} device-seconds, {used.cost:.6f} of {limit.limit} USD")
print("phases:", {name: round(seconds, 2) for name, seconds in used.phases.items()})
assert saved == [run.steps]
assert limit.spent <= limit.limit
