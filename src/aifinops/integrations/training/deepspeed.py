"""DeepSpeed: a step of its engine is one step, whatever optimizers do inside of it.

Its ZeRO optimizers call the optimizer that they were given once for each group of parameters, and once more when they are made (measured with
DeepSpeed 0.19: eight calls in four steps with two groups). So what optimizers do in an engine is not counted, and the engine's own count is.
"""

from __future__ import annotations

from typing import Any

from aifinops.integrations.patching import applied
from aifinops.integrations.training.torch import Shared, count_step, counting_itself

__all__ = ["hook"]


def _install(deepspeed: Any) -> list[Any]:
    engine, pipeline = deepspeed.runtime.engine.DeepSpeedEngine, deepspeed.runtime.pipe.engine.PipelineEngine
    return list(
        applied([(engine, "__init__", _making), (engine, "step", _stepping), (pipeline, "train_batch", _stepping)])
    )


_engines = Shared(_install)


def hook(deepspeed: Any) -> list[Any]:
    """Count the steps of engines; called when deepspeed is imported, never before."""
    return [_engines.take(deepspeed)]


def _making(wrapped: Any, _engine: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with counting_itself():
        return wrapped(*args, **kwargs)


def _stepping(wrapped: Any, engine: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    before = _steps(engine)
    with counting_itself() as outermost:
        result = wrapped(*args, **kwargs)
    if outermost and _steps(engine) > before:
        count_step(engine)
    return result


def _steps(engine: Any) -> int:
    """Those that an engine has made: neither small batches in between, nor what it has skipped because of an overflow."""
    made, skipped = getattr(engine, "global_steps", 0), getattr(engine, "skipped_steps", 0)
    return made - skipped if isinstance(made, int) and isinstance(skipped, int) else 0
