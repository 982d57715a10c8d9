"""What a device could do at most: dense matrix FLOPs a second by precision, of which `mfu` is the share that went into the model.

Vendors print figures with 2:4 sparsity, which are twice as high, beside or in place of these; training has no use for them. Figures are as the
vendor's own pages have them without sparsity, read in the collection of https://github.com/stas00/ml-engineering (compute/accelerator,
August 2026), and for L4, L40, A10, T4 and V100 as the data sheets that they name have them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from aifinops.gpu.billing import Held

__all__ = ["PRECISIONS", "Flops", "Peak", "mean_peak", "peak", "peak_given"]

PRECISIONS = ("bf16", "fp16", "tf32", "fp8")
"""What `peak_flops` may say in place of a number."""

_TERA = 1e12
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_AMD = "https://www.amd.com/en/products/accelerators/instinct/"
_TPU = "https://docs.cloud.google.com/tpu/docs/"
_READ = date(2026, 8, 10)


@dataclass(frozen=True, slots=True)
class Peak:
    """One model.

    Attributes:
        words: which its name has; without: which it has not. tflops: 1e12 a second, by precision, dense. source: where they are from.
        as_of: on which day they were read.
    """

    words: frozenset[str]
    tflops: dict[str, float]
    source: str
    without: frozenset[str] = frozenset()
    as_of: date = _READ

    def fits(self, words: frozenset[str]) -> bool:
        """Whether a name with these words is one of it."""
        return self.words <= words and not self.without & words


def _row(
    name: str, source: str, half: float, tf32: float | None = None, fp8: float | None = None, *, without: str = ""
) -> Peak:
    known = {"bf16": half, "fp16": half, "tf32": tf32, "fp8": fp8}
    tflops = {precision: value for precision, value in known.items() if value is not None}
    return Peak(frozenset(name.split()), tflops, source, frozenset(without.split()))


def _fp16(name: str, source: str, half: float) -> Peak:
    """Older than BF16."""
    return Peak(frozenset(name.split()), {"fp16": half}, source)


_PEAKS = (
    _row("gb300", f"{_NVIDIA}gb300-nvl72/", 2500, 1250, 5000),
    _row("gb200", f"{_NVIDIA}gb200-nvl72/", 2500, 1250, 5000),
    _row("b300", "https://resources.nvidia.com/en-us-dgx-systems/dgx-b300-datasheet", 2250, 1125, 4500),
    _row("b200", "https://resources.nvidia.com/en-us-dgx-systems/dgx-b200-datasheet", 2250, 1125, 4500),
    _row("gh200", f"{_NVIDIA}grace-hopper-superchip/", 989, 494.5, 1979),
    _row("h200", f"{_NVIDIA}h200/", 989, 494.5, 1979, without="nvl"),
    _row("h100 hbm3", f"{_NVIDIA}h100/", 989, 494.5, 1979),
    _row("h100 sxm", f"{_NVIDIA}h100/", 989, 494.5, 1979),
    _row("h100 sxm5", f"{_NVIDIA}h100/", 989, 494.5, 1979),
    _row("h100 pcie", f"{_NVIDIA}h100/", 756, 378, 1513),
    _row("h100 nvl", f"{_NVIDIA}h100/", 835),
    _row("a100", f"{_NVIDIA}a100/", 312, 156),
    _row("l40s", f"{_NVIDIA}l40s/", 362, 183, 733),
    _row("l40", "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf", 181, 90.5),
    _row("l4", "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf", 121, 60),
    _row("a10", "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf", 125, 62.5),
    _fp16("t4", "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf", 65),
    _fp16("v100 sxm2", "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf", 125),
    _fp16("v100 pcie", "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf", 112),
    _row("mi355x", f"{_AMD}mi350/mi355x.html", 2500, None, 5000),
    _row("mi325x", f"{_AMD}mi300/mi325x.html", 1300, 653.7, 2610),
    _row("mi300x", f"{_AMD}mi300/mi300x.html", 1300, 653.7, 2610),
    Peak(frozenset({"v6e"}), {"bf16": 918, "fp8": 918}, f"{_TPU}v6e"),
    Peak(frozenset({"v5p"}), {"bf16": 459}, f"{_TPU}v5p"),
    Peak(frozenset({"v5e"}), {"bf16": 197}, f"{_TPU}v5e"),
)  # fmt: skip


def peak(name: str) -> Peak | None:
    """The row of a device, by the name that its driver or a price list has for it; None for one that nobody has told us about."""
    words = frozenset(re.findall(r"[a-z0-9]+", name.lower()))
    return next((one for one in _PEAKS if one.fits(words)), None)


def peak_given(value: float | str | None) -> float | str:
    """What `peak_flops` says: FLOPs a second of one device, or the precision whose figure is looked up; default: BF16, FP16 where there is none.

    Raises:
        ConfigurationError: for anything else.
    """
    if value is None:
        return ""
    if isinstance(value, str) and value in PRECISIONS:
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    raise ConfigurationError(
        f"peak_flops={value!r} must be FLOPs a second of one device, e.g. 989e12, or one of {', '.join(PRECISIONS)}"
    )


def mean_peak(held: Sequence[Held], given: float | str) -> float | None:
    """FLOPs a second of one of these devices, on the average; None where one of them is unknown.

    Args:
        held: the devices; of a slice (MIG) nobody states a figure. given: as `peak_given` has it.
    """
    if isinstance(given, float):
        return given
    found = [_of(one, given) for one in held]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def _of(one: Held, precision: str) -> float | None:
    row = peak(one.device.name) if one.device.share == 1 else None
    if row is None:
        return None
    tflops = row.tflops.get(precision) if precision else row.tflops.get("bf16", row.tflops.get("fp16"))
    return None if tflops is None else tflops * _TERA


class Flops:
    """What the model has done in a run.

    Args:
        per_step: of every step that says nothing itself; None when nobody knows. peak: as `peak_given` has it.
    """

    def __init__(self, per_step: float | None, peak: float | str) -> None:
        self._per_step = per_step
        self._peak = peak
        self._stated = 0.0
        self._steps = 0

    def add(self, flops: float) -> None:
        """A step that says it itself."""
        self._stated += flops
        self._steps += 1

    def mfu(self, steps: int, allocated: Decimal, held: Sequence[Held]) -> float | None:
        """Model FLOPs by what the devices could have done in the device-seconds that are paid for; None where either is unknown."""
        rest = max(0, steps - self._steps)
        if not steps or not allocated or (rest and self._per_step is None):
            return None
        peak = mean_peak(held, self._peak)
        if peak is None:
            return None
        return (self._stated + rest * (self._per_step or 0.0)) / (float(allocated) * peak)
