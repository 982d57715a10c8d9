"""Devices that are held and do nothing: seen once they have done so for a while, and said once, with what an hour of that costs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from aifinops import metering, runtime
from aifinops.budgets.alerts import Alert
from aifinops.errors import swallow

if TYPE_CHECKING:
    from aifinops.gpu.billing import Held
    from aifinops.gpu.journal import Group
    from aifinops.gpu.measured import Measured

__all__ = ["IDLE_SHARE", "IdleAlarm", "Stretch", "stretches", "tell"]

logger = logging.getLogger("aifinops.gpu")

IDLE_SHARE = 0.01
"""A device that is busy for no more than this share of a stretch was idle in it."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one device did from one charge to the next.

    Attributes:
        uuid: of the device. seconds: how long. busy_s: of them, None when unknown. usd_per_hour: what it costs, None when unknown.
    """

    uuid: str
    seconds: float
    busy_s: float | None
    usd_per_hour: Decimal | None = None


def stretches(
    group: Group, members: Sequence[Held], readings: Sequence[Measured | None], seconds: float
) -> list[Stretch]:
    """What the devices of a group did in so many seconds."""
    usd = None if group.usd_per_hour is None else group.usd_per_hour * group.held / max(1, len(members))
    return [
        Stretch(one.device.uuid, seconds, None if measured is None else measured.busy_s, usd)
        for one, measured in zip(members, readings, strict=True)
    ]


class IdleAlarm:
    """Which devices of a run have been idle for so long, each told once in the run.

    What is unknown is not idle: a stretch of which nobody knows how busy it was begins the count anew.

    Args:
        after_s: seconds; 0 for never.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._idle_s: dict[str, float] = {}
        self._told: set[str] = set()

    def note(self, stretches: Iterable[Stretch]) -> list[Stretch]:
        """Take in the stretches of all devices up to now.

        Returns:
            Those devices that have been idle for long enough with this stretch, and were not told before, with their idle time.
        """
        found: list[Stretch] = []
        for one in stretches if self._after_s else ():
            idle = one.busy_s is not None and one.busy_s <= IDLE_SHARE * one.seconds
            total = self._idle_s[one.uuid] = self._idle_s.get(one.uuid, 0.0) + one.seconds if idle else 0.0
            if total >= self._after_s and one.uuid not in self._told:
                self._told.add(one.uuid)
                found.append(Stretch(one.uuid, total, one.busy_s, one.usd_per_hour))
        return found


def tell(run: str, found: list[Stretch], span: object = None) -> None:
    """Say it in the log, on the span of the run, and to whoever is told about budgets.

    Args:
        run: its name. found: the devices, at least one. span: of the run, None without.
    """
    prices = [one.usd_per_hour for one in found]
    known = [usd for usd in prices if usd is not None]
    alert = Alert(
        kind="idle",
        budget="",
        unit="USD",
        amount=sum(known, Decimal(0)) if len(known) == len(prices) else None,
        seconds=min(one.seconds for one in found),
        run=run,
        devices=tuple(one.uuid for one in found),
    )
    logger.warning("aifinops: %s", alert.text)
    # A charge is made in whatever thread it is time for it in: the span there is another one.
    attached = metering.attach_span(span)
    try:
        runtime.get().guard.witness.alerts.tell(alert)
    except Exception as failure:  # the log has it
        swallow("gpu.idle", failure)
    finally:
        metering.detach_span(attached)
