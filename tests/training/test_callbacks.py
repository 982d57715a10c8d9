"""What stands above torch: its own loops call the optimizer, and the published callbacks tell of evaluation, checkpoints and the end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import aifinops as af  # noqa: E402 - without torch there is nothing to test
from aifinops import gpu, runtime  # noqa: E402

DEVICE = {"devices": {"X": 1}, "price": "3.60"}
# What others deprecate among themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"x": torch.ones(4), "labels": torch.zeros(2)}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: Any, labels: Any = None) -> dict[str, Any]:
        out = self.layer(x)
        return {"loss": (out - labels).pow(2).mean(), "logits": out}


def trainer(folder: Path, callbacks: list[Any], **more: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    arguments = {"max_steps": 8, "save_strategy": "no", **more}
    settings = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no",
        dataloader_pin_memory=False, **arguments,
    )  # fmt: skip
    return transformers.Trainer(Net(), settings, train_dataset=Rows(), eval_dataset=Rows(), callbacks=callbacks)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_trainer_of_hugging_face_is_seen_by_the_hooks(accumulation: int, tmp_path: Path) -> None:
    """Without a callback: optimizer steps and waiting for data, whatever is accumulated."""
    subject = trainer(tmp_path, [], gradient_accumulation_steps=accumulation)
    af.instrument("torch")
    with gpu.track("hf", **DEVICE) as run:
        subject.train()
    assert run.steps == 8
    assert run.usage().stall_s > 0


def test_the_callback_of_hugging_face_counts_evaluates_and_saves(tmp_path: Path) -> None:
    """With hooks and callback together a step is one; evaluation and checkpoints are phases, and the run ends with the training."""
    pytest.importorskip("transformers")
    from aifinops.integrations.training.transformers import CostCallback

    af.instrument("torch")
    callback = CostCallback(**DEVICE, team="nlp")
    subject = trainer(tmp_path, [callback], eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4)
    subject.train()
    run = callback.run
    assert run is not None
    assert (run.steps, run.total_steps, run.is_open) == (8, 8, False)
    phases = run.usage().phases
    assert phases["eval"] > 0
    assert phases["checkpoint_save"] > 0
    assert {charge.tags["team"] for charge in runtime.get().ledger.rows()} == {"nlp"}


def test_a_budget_ends_the_trainer_of_hugging_face_with_a_checkpoint(tmp_path: Path) -> None:
    """It saves and returns, as with early stopping; the run says why."""
    pytest.importorskip("transformers")
    from aifinops.integrations.training.transformers import CostCallback

    callback = CostCallback(**DEVICE, slice_s=0.1, allowance_s=0.1)
    with af.budget("$0.001") as limit:
        trainer(tmp_path, [callback], max_steps=1_000_000).train()
        assert limit.spent > 0
    run = callback.run
    assert run is not None
    assert run.error is not None
    assert (tmp_path / f"checkpoint-{run.steps}").exists()


def test_accelerate_is_seen_by_the_hooks_and_its_tracker_holds_the_run() -> None:
    """Sixteen small batches in groups of four are four steps."""
    accelerate = pytest.importorskip("accelerate")
    from aifinops.integrations.training.accelerate import CostTracker

    af.instrument("torch")
    tracker = CostTracker("acc", **DEVICE, team="nlp")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4, log_with=tracker)
    accelerator.init_trackers("acc")
    net = Net()
    loader = torch.utils.data.DataLoader(Rows(), batch_size=2)
    net, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1), loader)
    for batch in loader:
        with accelerator.accumulate(net):
            accelerator.backward(net(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    accelerator.log({"loss": 1.0})
    accelerator.end_training()
    assert tracker.run.steps == 4
    assert not tracker.run.is_open
    assert {charge.tags["team"] for charge in runtime.get().ledger.rows()} == {"nlp"}


def lightning_parts(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, _: int) -> Any:
            return self.net(**batch)["loss"]

        def validation_step(self, batch: Any, _: int) -> None:
            self.net(**batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": str(folder), "devices": 1,
    }  # fmt: skip
    return lightning, Module(), quiet


def test_lightning_is_seen_by_the_hooks(tmp_path: Path) -> None:
    """Accumulation, too, is Lightning's own."""
    lightning, module, quiet = lightning_parts(tmp_path)
    af.instrument("torch")
    with gpu.track("pl", **DEVICE) as run:
        lightning.Trainer(
            **quiet, max_steps=6, accumulate_grad_batches=2, enable_checkpointing=False, limit_val_batches=0
        ).fit(module, torch.utils.data.DataLoader(Rows(), batch_size=2))
    assert run.steps == 6


def test_the_callback_of_lightning_counts_evaluates_and_ends(tmp_path: Path) -> None:
    """Steps once, validation as a phase, checkpoints as marks, and the run ends with the training."""
    lightning, module, quiet = lightning_parts(tmp_path)
    from aifinops.integrations.training.lightning import CostCallback

    af.instrument("torch")
    callback = CostCallback(**DEVICE)
    loader = torch.utils.data.DataLoader(Rows(), batch_size=2)
    lightning.Trainer(**quiet, max_epochs=2, callbacks=[callback]).fit(module, loader, loader)
    run = callback.run
    assert run is not None
    assert (run.steps, run.total_steps, run.is_open) == (32, 32, False)
    assert run.usage().phases["eval"] > 0
    assert run.usage().wasted_s < run.usage().allocated_s


def test_a_budget_ends_lightning_after_the_checkpoint(tmp_path: Path) -> None:
    """The training stops by itself after the run's own checkpoint."""
    lightning, module, quiet = lightning_parts(tmp_path)
    from aifinops.integrations.training.lightning import CostCallback

    saved: list[int] = []
    with (
        af.budget("$0.001"),
        gpu.track("pl", **DEVICE, slice_s=0.1, allowance_s=0.1, checkpoint=lambda: saved.append(run.steps)) as run,
    ):
        loader = torch.utils.data.DataLoader(Rows(), batch_size=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(**quiet, max_steps=1_000_000, limit_val_batches=0, callbacks=[CostCallback(run)]).fit(
                module, loader
            )
    assert run.error is not None
    assert saved == [run.steps]
