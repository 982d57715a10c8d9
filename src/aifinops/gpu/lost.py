"""Attempts that were killed: what they held to their end is written down by the next one, once, and what they held of budgets is settled."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from aifinops import runtime
from aifinops.budgets.prepaid import settle_left
from aifinops.errors import swallow
from aifinops.gpu import journal
from aifinops.gpu.billing import charge
from aifinops.tags import make_tags

if TYPE_CHECKING:
    from pathlib import Path

    from aifinops.charges import Charge
    from aifinops.gpu.distributed import Rank
    from aifinops.gpu.journal import Lost
    from aifinops.scope import Scope

__all__ = ["close_lost"]

logger = logging.getLogger("aifinops.gpu")


def close_lost(folder: Path | None, run: str, rank: Rank, now: int, scope: Scope) -> tuple[int, list[Lost]]:
    """Which attempt begins here, and those of its run and rank that were killed; they are closed, and so are those of runs without a name.

    Args:
        folder: of the files beside the ledger; None for one in memory. run, rank: which. now: wall clock, nanoseconds. scope: in force here.
    """
    attempt, found = rank.restart + 1, []
    try:
        attempt = journal.next_attempt(folder, run, rank.rank, rank.restart)
        for one in journal.lost_attempts(folder, run, rank.rank, now):
            _charge(one, scope)
            _settle(one, scope)
            if one.run == run:
                found.append(one)
            usd = "" if one.wasted_usd is None else f", {one.wasted_usd:.4f} USD"
            logger.warning(
                "aifinops: attempt %d of run %r (rank %d) was lost after step %d: %s %s%s since its last checkpoint are wasted",
                one.attempt, one.run, one.rank, one.steps, f"{one.wasted_s:.1f}", _unit(one), usd,
            )  # fmt: skip
    except Exception as failure:  # this attempt begins all the same
        swallow("gpu.lost", failure)
    return attempt, found


def _unit(lost: Lost) -> str:
    return "vCPU-seconds" if lost.groups and all(group.on_cpu for group in lost.groups) else "device-seconds"


def _charge(lost: Lost, scope: Scope) -> list[Charge]:
    """Record what a killed attempt has held after its last charge, up to its last sign of life."""
    if not lost.rest_ns:
        return []
    tags = make_tags({**lost.tags, "phase": "lost"})
    mine = replace(scope, tags=tags, budgets=(), trackers=())
    # What it had paid in advance is settled, or counts as spent when its lease runs out; posting it here would count it twice.
    paid = frozenset(one.key for one in runtime.get().budgets(mine, tags))
    facts = {
        **({"name": lost.name} if lost.name else {}),
        "lost": True,
        "attempt": lost.attempt,
        "rank": lost.rank,
        "wasted_s": str(lost.wasted_s),
    }
    return [
        charge(
            group, mine, key=f"{lost.run}|{lost.attempt}", at=lost.charged_to, length=lost.rest_ns, part=-1, facts=facts,
            paid=paid, error="Lost",
        )
        for group in lost.groups
    ]  # fmt: skip


def _settle(lost: Lost, scope: Scope) -> None:
    """Put what a killed attempt had used in the place of what it held of its budgets in advance, where they are in force here, too."""
    engines = runtime.get()
    budgets = engines.budgets(scope, make_tags({**lost.tags}))
    for id, facts in lost.holds.items():
        if facts is None or not budgets:
            continue  # it was killed while that changed: it counts as spent when its lease runs out
        try:
            settle_left(engines.guard, budgets, id, facts, lost.last_seen)
        except Exception as failure:  # the lease decides
            swallow("gpu.settle_lost", failure)
