"""What the hooks in torch see: every real optimizer step once, and nothing of the model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import aifinops as af  # noqa: E402 - without torch there is nothing to test
from aifinops import gpu, runtime  # noqa: E402
from aifinops.errors import RunStopped, reraise_failures  # noqa: E402
from aifinops.gpu.keeper import current_run  # noqa: E402
from aifinops.integrations import state  # noqa: E402


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2)


def loss_of(net: Any) -> Any:
    return net(torch.ones(3, 4)).pow(2).sum()


def train(net: Any, optimizer: Any, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()


class Own(torch.optim.Optimizer):
    """An optimizer of somebody's own."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.sub_(group["lr"] * parameter.grad)


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p),
    "adamw foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "own": Own,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_of_any_optimizer_counts_once(name: str, run: gpu.Run) -> None:
    """Whatever the optimizer, also one of somebody's own."""
    net = model()
    train(net, OPTIMIZERS[name](net.parameters()))
    assert run.steps == 5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_counts_too(run: gpu.Run) -> None:
    """It takes matrices only."""
    net = torch.nn.Linear(4, 2, bias=False)
    train(net, torch.optim.Muon(net.parameters()))
    assert run.steps == 5


def test_a_step_with_a_closure_is_one_step(run: gpu.Run) -> None:
    """LBFGS evaluates the model many times in a step."""
    net = model()
    optimizer = torch.optim.LBFGS(net.parameters())

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert run.steps == 3


def test_optimizers_from_before_are_seen(run: gpu.Run) -> None:
    """The hook is global: an optimizer that was made before it counts as well."""
    af.uninstrument()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    af.instrument("torch")
    train(net, optimizer)
    assert run.steps == 5


def test_a_scheduler_around_a_step_changes_nothing(run: gpu.Run) -> None:
    """Schedulers wrap `step` of the instance."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(5):
        train(net, optimizer, 1)
        scheduler.step()
    assert run.steps == 5


def test_accumulation_counts_real_steps(run: gpu.Run) -> None:
    """Sixteen batches in groups of four are four steps."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001)
    for batch in range(1, 17):
        loss_of(net).backward()
        if batch % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert run.steps == 4


def test_a_step_that_the_scaler_leaves_out_is_none(run: gpu.Run) -> None:
    """`GradScaler` does not call the optimizer where a gradient is infinite."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for broken in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(loss_of(net)).backward()
        if broken:
            net.weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert run.steps == 2


def test_a_step_that_raises_is_none_and_leaves_no_trace(run: gpu.Run) -> None:
    """torch calls the hook before and not the one after; the next step counts as one."""
    fails = {"now": True}

    class Failing(Own):
        def step(self, closure: Any = None) -> None:
            if fails["now"]:
                raise ArithmeticError
            super().step(closure)

    net = model()
    optimizer = Failing(net.parameters())
    for _ in range(3):
        with pytest.raises(ArithmeticError):
            train(net, optimizer, 1)
    fails["now"] = False
    train(net, optimizer, 4)
    assert run.steps == 4


def test_an_optimizer_inside_another_is_one_step(run: gpu.Run) -> None:
    """As ZeroRedundancyOptimizer does it: wrapper and inner optimizer both call the hooks; after a failure inside it is still right."""

    class Outer(Own):
        def __init__(self, params: Any) -> None:
            params = list(params)
            super().__init__(params)
            self.inner = torch.optim.SGD(params, lr=0.1)
            self.fails = False

        def step(self, closure: Any = None) -> None:
            if self.fails:
                raise ArithmeticError
            self.inner.step()

    net = model()
    optimizer = Outer(net.parameters())
    train(net, optimizer, 5)
    assert run.steps == 5
    optimizer.fails = True
    with pytest.raises(ArithmeticError):
        train(net, optimizer, 1)
    optimizer.fails = False
    train(net, optimizer, 3)
    assert run.steps == 8


def test_a_step_made_of_its_parents_is_one_step(run: gpu.Run) -> None:
    """torch wraps `step` of each class: an optimizer that calls the step of its parent calls the hooks twice, with itself."""

    class Child(Own):
        def step(self, closure: Any = None) -> None:
            super().step(closure)

    net = model()
    train(net, Own(net.parameters()), 1)  # now the parent's step is wrapped
    train(net, Child(net.parameters()), 4)
    assert run.steps == 5


def test_two_threads_count_their_own_nesting(run: gpu.Run) -> None:
    """A step that ends in one thread while another one is inside of a step takes nothing from it."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Own):
        def step(self, closure: Any = None) -> None:
            inside.set()
            go_on.wait(10)

    net = model()
    thread = threading.Thread(target=lambda: train(net, Slow(net.parameters()), 1))
    thread.start()
    inside.wait(10)
    other = model()
    train(other, Own(other.parameters()), 3)
    go_on.set()
    thread.join()
    assert run.steps == 4


def test_compiled_models_have_no_more_graph_breaks_and_steps_count(run: gpu.Run) -> None:
    """The graphs of a compiled model are those without us."""
    counts = {}
    for hooked in (False, True):
        if hooked:
            af.instrument("torch")
        else:
            af.uninstrument("torch")
        torch._dynamo.reset()
        net = model()
        explained = torch._dynamo.explain(net)(torch.ones(3, 4))
        compiled = torch.compile(net, backend="eager")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        before = run.steps
        for _ in range(3):
            optimizer.zero_grad()
            compiled(torch.ones(3, 4)).sum().backward()
            optimizer.step()
        counts[hooked] = (explained.graph_break_count, explained.graph_count, run.steps - before)
    assert counts[False] == (0, 1, 0)
    assert counts[True] == (0, 1, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_a_compiled_step_counts_too(run: gpu.Run) -> None:
    """torch breaks the graph there itself; the hook runs outside of it, so that no new count makes torch compile the step anew."""
    torch._dynamo.reset()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    @torch.compile(backend="eager")
    def step() -> None:
        optimizer.step()

    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(12):
            optimizer.zero_grad()
            loss_of(net).backward()
            step()
    assert run.steps == 12


@pytest.mark.parametrize("workers", [0, 1])
def test_waiting_for_data_is_seen_and_workers_are_left_alone(workers: int, run: gpu.Run) -> None:
    """A loader that takes a while shows as waiting; its batches are those that it had."""

    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, place: int) -> int:
            threading.Event().wait(0.02)
            return place

    loader = torch.utils.data.DataLoader(Slow(), batch_size=1, num_workers=workers)
    assert [int(batch[0]) for batch in loader] == [0, 1, 2, 3]
    stall = run.usage().stall_s
    assert stall > 0.04
    assert run.usage().phases["data_wait"] == pytest.approx(stall, abs=0.5)


def test_uninstrument_restores_exactly() -> None:
    """Hooks and method are gone, and are what they were."""
    from torch.optim import optimizer as home
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    original = _BaseDataLoaderIter.__next__
    before = (dict(home._global_optimizer_pre_hooks), dict(home._global_optimizer_post_hooks))
    af.instrument("torch")
    af.instrument("torch")
    assert state()["torch"] == "active"
    assert len(home._global_optimizer_pre_hooks) == len(before[0]) + 1
    assert _BaseDataLoaderIter.__next__ is not original
    af.uninstrument("torch")
    assert (dict(home._global_optimizer_pre_hooks), dict(home._global_optimizer_post_hooks)) == before
    assert _BaseDataLoaderIter.__next__ is original


def test_without_a_run_a_step_is_just_a_step() -> None:
    """Nothing is counted, held or charged."""
    af.instrument("torch")
    net = model()
    train(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert list(runtime.get().ledger.rows()) == []


def test_a_process_that_trains_is_a_run_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`instrument("training")`: the first optimizer step outside of every run begins one, without another word; it ends with `uninstrument`."""
    from aifinops.gpu import billing, devices

    def named(spec: Any, where: Any) -> Any:
        return (billing.Held(devices.Device(-1, "", "X")),) if spec == "auto" else find(spec, where)

    find = billing.find_devices
    monkeypatch.setattr(billing, "find_devices", named)
    af.instrument("torch", "training")
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gpu.track("explicit", devices={"Y": 1}) as run:
        train(net, optimizer, 2)
    assert run.steps == 2
    assert current_run() is None
    train(net, optimizer, 3)
    own = current_run()
    assert own is not None
    assert (own.name, own.steps) == ("training", 3)
    loader = torch.utils.data.DataLoader([1, 2, 3])
    assert len(list(loader)) == 3
    af.uninstrument("training")
    assert not own.is_open
    train(net, optimizer, 1)
    assert current_run() is None
    models = [charge.raw["gpu"]["model"] for charge in runtime.get().ledger.rows() if charge.raw is not None]
    assert models == ["Y", "X"]


def test_hooks_that_two_ask_for_are_installed_once(run: gpu.Run) -> None:
    """And stay until the last of them asks no longer."""
    from torch.optim import optimizer as home

    before = len(home._global_optimizer_post_hooks)
    af.instrument("training")
    assert len(home._global_optimizer_post_hooks) == before
    af.uninstrument("torch")
    net = model()
    train(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert run.steps == 5
    af.uninstrument("training")
    assert len(home._global_optimizer_post_hooks) == before - 1


def test_a_failure_of_ours_leaves_the_step_alone(run: gpu.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer has stepped; that we could not count it is our matter."""
    reraise_failures(False)

    def broken() -> None:
        raise ValueError("ours")

    monkeypatch.setattr(run, "optimizer_step", broken)
    net = model()
    before = net.weight.clone()
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), 1)
    assert not torch.equal(before, net.weight)


def test_a_budget_ends_the_loop_at_a_step_after_the_checkpoint() -> None:
    """Nothing but `instrument()`, a budget and a run: the optimizer step after which it ends raises, and what was saved is that step's."""
    af.instrument("torch")
    saved: list[int] = []
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with af.budget("$0.0005") as limit:
        run = gpu.track(
            devices={"X": 1}, price="3.60", slice_s=0.05, allowance_s=0.05, checkpoint=lambda: saved.append(run.steps)
        )
        with pytest.raises(RunStopped), run:  # noqa: PT012 - it is the loop that is ended
            while True:
                threading.Event().wait(0.005)
                train(net, optimizer, 1)
        assert 0 < limit.spent < limit.limit
    assert saved == [run.steps]


def test_torch_is_not_imported_by_us(tmp_path: Path) -> None:
    """`instrument()`, a run and its steps leave torch where it is: not imported; imported later, it is hooked and complete."""
    code = """
import sys
import aifinops as af
from aifinops import gpu
af.init(ledger="memory")
af.instrument()
with gpu.track(devices={"X": 1}) as run:
    run.step()
    assert "torch" not in sys.modules
with gpu.track(devices={"X": 1}) as run:
    import torch.nn
    assert torch.compiler is not None
    assert "torch._dynamo" not in sys.modules
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert run.steps == 1
"""
    environment = {**os.environ, "AIFINOPS_LEDGER": "memory", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
