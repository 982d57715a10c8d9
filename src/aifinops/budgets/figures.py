"""How the budgets of this process stand, as plain numbers for gauges. Floats only here: a chart is no bill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aifinops.budgets.budget import ActiveBudget, to_units
from aifinops.budgets.guard import Guard
from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.base import Node
from aifinops.errors import StoreError

__all__ = ["Figures", "by_name", "states"]

_NS = 1_000_000_000

Figures = tuple[str, str, str, float | None, float, float | None, float | None]
"""Name, kind of window, unit, limit, spent, remaining (all in that unit), and burn rate: spending rate over the rate that just uses up the
limit in the window. None is not known, or without limit."""


def states(guard: Guard, policies: Iterable[ActiveBudget], most: int) -> list[Figures]:
    """Budgets with a name that were used here lately, and standing ones; what a store that does not answer has is left out.

    Args:
        guard: who holds them. policies: standing budgets, which are told of before their first call. most: how many at most.
    """
    for policy in policies:
        if policy.watcher is not guard:
            try:
                guard.prepare(policy)
            except StoreError:  # no figure until it answers
                continue
    return [_figures(node, balance, rate) for node, balance, rate in guard.present(most)]


def _figures(node: Node, balance: Balance, rate: float | None) -> Figures:
    name, window = ActiveBudget.parse_key(node.budget)
    limit = balance.limit
    seconds = window.span or (node.until - node.window) / _NS
    burn = None if rate is None or not limit or seconds <= 0 else rate * seconds / limit
    remaining = balance.remaining
    return (
        node.label or name, window.kind, node.unit,
        None if limit is None else float(to_units(node.unit, limit)),
        float(to_units(node.unit, balance.spent)),
        None if remaining is None else float(to_units(node.unit, remaining)),
        burn,
    )  # fmt: skip


def by_name(decisions: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """Decisions by name in place of key: several windows of one name are added up."""
    found: dict[tuple[str, str], int] = {}
    for (key, action), count in decisions.items():
        name = ActiveBudget.parse_key(key)[0]
        found[name, action] = found.get((name, action), 0) + count
    return found
