"""torch: the global hooks around every optimizer step, and the waiting for a batch of a DataLoader. Nothing else is touched.

They only do something while a run is open (`aifinops.gpu.track`, `@track_cost(gpu=...)`), or, for whoever asks for `instrument("training")`, begin
one at the first optimizer step of a process that has no other, which ends with the process. torch's compiler leaves our hooks out where a compiled function
makes a step; hooks on modules would break the graphs of compiled models.

An optimizer may call another one inside its step (ZeroRedundancyOptimizer), or the step of its parent class: that is one step, the innermost. A step that raises leaves no
trace: torch calls the first hook then, and not the second.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aifinops.errors import BudgetExceeded, swallow
from aifinops.gpu.keeper import current_run

if TYPE_CHECKING:
    from aifinops.gpu.run import Run

__all__ = ["Shared", "count_step", "counting_itself", "hook", "hook_runs"]


class _Counted(threading.local):
    """Steps that this thread has seen, how many there were when each optimizer began its own, and how many engines are at work that count
    their steps themselves.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.begun: dict[int, int] = {}
        self.engines = 0


_counted = _Counted()
_MOST_BEGUN = 1024  # left by steps that raised

_compiling: Callable[[], bool] = bool
"""Whether torch's compiler is looking at a function that makes a step; never, until torch is here."""


def _before(optimizer: Any, args: Any, kwargs: Any) -> None:
    if _compiling():
        _outside(_before, optimizer, args, kwargs)
        return
    counted = _counted
    if counted.engines:
        return
    if len(counted.begun) > _MOST_BEGUN:
        counted.begun.clear()
    counted.begun[id(optimizer)] = counted.steps


def _after(optimizer: Any, args: Any, kwargs: Any) -> None:
    if _compiling():
        _outside(_after, optimizer, args, kwargs)
        return
    counted = _counted
    steps = counted.steps
    if counted.begun.pop(id(optimizer), -1) != steps:
        return  # one inside of it was counted: another optimizer's, or that of the class that its own is made of; or an engine counts
    counted.steps = steps + 1
    try:
        run = current_run() or _process.run()
        if run is not None:
            run.optimizer_step()
    except BudgetExceeded:
        raise
    except Exception as failure:  # the step is made
        swallow("torch.step", failure)


_outsiders: dict[Callable[..., None], Callable[..., None]] = {}


def _outside(hook: Callable[..., None], optimizer: Any, args: Any, kwargs: Any) -> None:
    """Call a hook between two graphs, where torch's compiler is looking at a function that makes a step.

    Traced, it would be compiled anew as our counts change, and torch would warn of what it finds in there. To leave it out takes the compiler, whose
    import takes seconds: so that waits until the compiler is at work. All other steps pay for one question, a tenth of a microsecond.
    """
    if hook not in _outsiders:
        _outsiders[hook] = _left_out(hook)
    _outsiders[hook](optimizer, args, kwargs)


def _left_out(hook: Callable[..., None]) -> Callable[..., None]:
    import torch

    try:
        left_out: Callable[..., None] = torch.compiler.disable(hook)
    except Exception as failure:  # a torch without a compiler, or one that does not go with this Python, traces nothing
        swallow("torch.compiler", failure)
        return hook
    return left_out


def count_step(owner: Any) -> None:
    """Count a step of something that is no optimizer of torch, at its end; raises like `Run.step`."""
    _before(owner, (), {})
    _after(owner, (), {})


@contextmanager
def counting_itself() -> Iterator[bool]:
    """What optimizers do in here is not counted, as somebody counts who knows better; True for the outermost of several."""
    counted = _counted
    counted.engines += 1
    try:
        yield counted.engines == 1
    finally:
        counted.engines -= 1


class _Process:
    """The run of a process that trains without saying so; it is begun once."""

    def __init__(self) -> None:
        self._wanted = False
        self._lock = threading.Lock()
        self._run: Run | None = None

    def begin(self) -> _Process:
        """From now on the next optimizer step outside of every run begins one."""
        self._wanted = True
        return self

    def run(self) -> Run | None:
        """The run; begun here where it is wanted and this process has devices."""
        if self._wanted and self._is_first():
            from aifinops.gpu.run import Run

            self._run = Run("training").start()
        return self._run

    def _is_first(self) -> bool:
        with self._lock:  # of two threads that step at once
            wanted, self._wanted = self._wanted, False
        return wanted

    def undo(self) -> None:
        """End it."""
        self._wanted = False
        run, self._run = self._run, None
        if run is not None:
            run.close()


_process = _Process()


class _Waiting:
    """`__next__` of a DataLoader's iterator, timed while a run is open. The same method serves all kinds of loaders."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._original = original = owner.__next__

        @functools.wraps(original)
        def __next__(iterator: Any) -> Any:
            run = current_run()
            if run is None:
                return original(iterator)
            now = run.clock.monotonic_ns
            start = now()
            batch = original(iterator)
            run.waited(start, now())
            return batch

        self._ours = __next__
        owner.__next__ = __next__

    def undo(self) -> None:
        """Put the original back, unless somebody has wrapped ours since."""
        if vars(self._owner).get("__next__") is self._ours:
            self._owner.__next__ = self._original


class _Handle:
    """A hook of torch that can be taken back."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def undo(self) -> None:
        """Take it back."""
        self._handle.remove()


class Shared:
    """Changes that are made once however many ask for them, and taken back with the last.

    Args:
        make: makes them.
    """

    def __init__(self, make: Callable[[Any], list[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users = 0
        self._made: list[Any] = []

    def take(self, module: Any) -> Shared:
        """Make them, unless they are there; `module`: what was imported."""
        with self._lock:
            if not self._users:
                self._made = self._make(module)
            self._users += 1
        return self

    def undo(self) -> None:
        """One asks no longer."""
        with self._lock:
            self._users -= 1
            while self._made and not self._users:
                self._made.pop().undo()


def _install(torch: Any) -> list[Any]:
    global _compiling  # noqa: PLW0603 - asked twice in every step: nowhere is it found faster
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
    from torch.utils.data import dataloader

    _compiling = getattr(getattr(torch, "compiler", None), "is_compiling", bool)
    made: list[Any] = []
    try:
        made.append(_Handle(register_optimizer_step_pre_hook(_before)))
        made.append(_Handle(register_optimizer_step_post_hook(_after)))
        made.append(_Waiting(dataloader._BaseDataLoaderIter))
    except BaseException:
        for one in reversed(made):
            one.undo()
        raise
    return made


_hooks = Shared(_install)


def hook(torch: Any) -> list[Any]:
    """Count steps and waiting; called when torch is imported, never before."""
    return [_hooks.take(torch)]


def hook_runs(torch: Any) -> list[Any]:
    """As `hook`, and a process that trains is a run by itself."""
    return [_hooks.take(torch), _process.begin()]
