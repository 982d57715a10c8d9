"""`aifinops gpu`: who holds which GPUs, busy or idle, for how long, at what price; and the quotas of teams."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.cli.options import LedgerPath
from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from aifinops.gpu.board import Board, Entry, View
    from aifinops.gpu.holdings import Holding
    from aifinops.gpu.quota import Quotas

__all__ = ["SLOTS", "app", "devices_table", "holding_facts", "names", "runs_table", "slot_facts", "slots_table"]

app = typer.Typer(
    help="GPUs: who holds what, busy or idle, for how long, at what price; quotas of teams.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
quota_app = typer.Typer(help="Quotas of teams: how they stand, whether a file is right, what a cluster needs of them.", rich_markup_mode=None)  # fmt: skip
app.add_typer(quota_app, name="quota", invoke_without_command=True)

StoreName = Annotated[str | None, typer.Option("--store", metavar="STORE", help="Where slots are held: a file or the URL of a server (default: the settings).")]  # fmt: skip
QuotaFile = Annotated[str | None, typer.Option("--quotas", metavar="FILE", help="The quota file (default: the one of the settings).")]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="As JSON; amounts are texts, so that they stay exact.")]

SLOTS = "gpus"
"""Unit of the balances in which a board keeps who holds how many GPUs; they are no budgets of money or usage."""

_NS = 1_000_000_000
_HOUR = Decimal(3600)
_RECENT_S = 180
"""A run that made no charge for so long is over: it makes one a minute."""


class Format(StrEnum):
    """What the quota file is written as."""

    kueue = "kueue"
    k8s = "k8s"
    slurm = "slurm"


@app.command()
def top(
    ledger: LedgerPath = None,
    store: StoreName = None,
    quotas: QuotaFile = None,
    watch_s: Annotated[float, typer.Option("--watch", min=0, metavar="SECONDS", help="How long to look at the devices of this machine; 0 for not at all.")] = 1.0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Who holds GPUs now: slots and who waits for one, runs of the last minutes, and the devices of this machine."""
    from aifinops import runtime
    from aifinops.cli import show

    now = runtime.get().clock.time_ns()
    board = _board(store, quotas, needed=False)
    view = None if board is None else board.view()
    runs = [one for one in _read(ledger, now - 3600 * _NS, ("team", "run")) if now - one.last <= _RECENT_S * _NS]
    devices = _devices(watch_s)
    if as_json:
        _print_json({
            "slots": [] if view is None else [slot_facts(one, view) for one in view.holding.values()],
            "waiting": [] if view is None else [slot_facts(one, view) for one in view.waiting.values()],
            "runs": [{"name": names(one) or None, **holding_facts(one, ("team", "run"))} for one in runs],
            "devices": devices,
        })  # fmt: skip
        return
    if view is not None and (view.holding or view.waiting):
        show.console().print(slots_table(view))
    if runs:
        _print_runs(runs, ("team", "run"), "Runs of the last minutes", named=True)
    if devices:
        show.console().print("\nDevices of this machine", style="bold")
        show.console().print(devices_table(devices))
    if not (runs or devices or (view is not None and (view.holding or view.waiting))):
        print("Nobody holds a GPU here: no slot, no run in the last minutes, no device that a driver knows.")


@app.command()
def idle(
    since: Annotated[str, typer.Option(help='From: "24h", "7d", "2026-11-01".')] = "24h",
    by: Annotated[str, typer.Option(help="Keys with commas: team, run, model, day, ... or any tag.")] = "team",
    ledger: LedgerPath = None,
    as_json: AsJson = False,
) -> None:
    """What was paid for and not used: GPU hours held, busy and idle, and their cost, from the ledger."""
    from aifinops import runtime
    from aifinops.analytics.periods import parse_since

    keys = tuple(key.strip() for key in by.split(","))
    found = _read(ledger, parse_since(since, runtime.get().clock.time_ns()), keys)
    if as_json:
        _print_json([holding_facts(one, keys) for one in found])
    elif not found:
        print(f"No GPU time in this ledger since {since}.")
    else:
        _print_runs(sorted(found, key=lambda one: -(one.idle_cost or 0)), keys, "")


@quota_app.callback()
def quota(context: typer.Context, store: StoreName = None, quotas: QuotaFile = None, as_json: AsJson = False) -> None:
    """How the quotas of teams stand: own, held, borrowed, what is still to be had, who waits."""
    if context.invoked_subcommand is not None:
        return
    board = _board(store, quotas, needed=True)
    assert board is not None  # noqa: S101 - it was needed
    view = board.view()
    rows = list(_quota_rows(board.quotas, view))
    if as_json:
        _print_json(rows)
    else:
        _quota_table(board.quotas, rows)
        _left_behind(board, view)


@quota_app.command()
def check(file: Annotated[str, typer.Argument(metavar="FILE", help="The quota file.")]) -> None:
    """Whether a quota file is right; if not, what is wrong and what to type."""
    from aifinops.gpu.quota import read_quotas

    rules = read_quotas(file)
    for pool in rules.pools.values():
        own = sum(rules.quota(team, pool.name).nominal for team in rules.teams)
        shared = sum(of.get(pool.name, 0) for of in rules.cohorts.values())
        print(f"{pool.name}: {pool.gpus} GPUs, {own} of teams, {shared} shared, {pool.gpus - own - shared} nobody's")


@quota_app.command()
def free(
    slot: Annotated[str, typer.Argument(metavar="ID", help="The id of the slot.")],
    store: StoreName = None,
    quotas: QuotaFile = None,
    force: Annotated[bool, typer.Option("--force", help="Take it also from a process that is alive.")] = False,
) -> None:
    """Give back the GPUs of a slot whose process is gone and that nobody else gives back: its team is no longer in the file, or its note is lost."""
    board = _board(store, quotas, needed=True)
    assert board is not None  # noqa: S101 - it was needed
    found = board.free(slot, force=force)
    whose = "" if found is None else f" of team {found.team}: {found.gpus} GPUs of {found.pool}"
    print(f"Freed slot {slot}{whose}.")


@quota_app.command()
def export(
    form: Annotated[Format, typer.Option("--format", help="Written as.")],
    quotas: QuotaFile = None,
) -> None:
    """The quota file as what a cluster reads: Kueue's objects, ResourceQuotas of Kubernetes, or commands and lines for Slurm."""
    from aifinops.gpu import manifests
    from aifinops.gpu.slots import quotas_in_force

    sys.stdout.write(getattr(manifests, form.value)(quotas_in_force(quotas)))


# --- reading -----------------------------------------------------------------------------------------------------------------


def _board(store: str | None, quotas: str | None, *, needed: bool) -> Board | None:
    from aifinops import runtime
    from aifinops.cli.audit import file_of
    from aifinops.gpu.board import Board
    from aifinops.gpu.slots import quotas_in_force

    engines = runtime.get()
    if not (quotas or engines.config.gpu_quotas) and not needed:
        return None
    rules = quotas_in_force(quotas)
    target = runtime.shared_store(engines.config) if store is None else store
    if target == "memory" and needed:
        raise ConfigurationError(
            "slots in memory are seen by their own process only; name a store: --store /path/to/budgets.db"
        )
    path = file_of(target)
    if path is not None and not path.exists():
        # Nobody has asked for a slot yet: an empty board, and no file is made by looking.
        return Board(engines.store_at("memory"), rules, engines.clock)
    return Board(engines.store_at(target), rules, engines.clock)


def _read(ledger: str | None, since_ns: int, keys: Sequence[str]) -> list[Holding]:
    from aifinops import runtime
    from aifinops.config import load
    from aifinops.gpu.holdings import gpu_entries, holdings
    from aifinops.ledger import open_ledger, path_of

    target = runtime.get().config.ledger if ledger is None else load({"ledger": ledger}).ledger
    path = path_of(target)
    if ledger is None and path is not None and not Path(path).exists():
        return []
    source = open_ledger(target, create=False)
    try:
        return holdings(gpu_entries(source, since_ns), keys)
    finally:
        source.close()


def _devices(watch_s: float) -> list[dict[str, Any]]:
    """The devices of this machine, and how busy they were while we looked; none without a driver."""
    from aifinops.gpu.devices import inventory

    if not watch_s:
        return []
    found = inventory().devices
    return [
        {"index": one.index, "uuid": one.uuid, "name": one.name, "busy_share": share}
        for one, share in zip(found, _busy(found, watch_s), strict=True)
    ]


def _busy(devices: Sequence[Any], watch_s: float) -> list[float | None]:
    if not devices:
        return []
    import time

    from aifinops import runtime
    from aifinops.gpu.sampler import watch

    clock = runtime.get().clock
    with watch(devices) as watched:
        began = clock.monotonic_ns()
        time.sleep(watch_s)
        ended = clock.monotonic_ns()
        looked = [watched.between(one, began, ended).busy_s for one in devices]
    seconds = (ended - began) / _NS
    return [None if busy is None else min(1.0, busy / seconds) for busy in looked]


def _quota_rows(rules: Quotas, view: View) -> Iterable[dict[str, Any]]:
    from aifinops.gpu.admission import Usage, available, decayed

    for pool in rules.pools:
        held = {team: view.held(team, pool) for team in rules.teams}
        for team in rules.teams:
            limit = rules.hard_limit(team, pool)
            own = rules.quota(team, pool).nominal
            if not limit and not held[team]:
                continue
            used = decayed(view.usage.get(team, Usage(at=view.now)), view.held(team), view.now, rules.fair_share)
            waits = [one for one in view.waiting.values() if (one.team, one.pool) == (team, pool)]
            yield {
                "pool": pool, "team": team, "nominal": own, "held": held[team], "borrowed": max(0, held[team] - own),
                "available": available(rules, team, pool, held), "limit": limit, "waiting": len(waits),
                "waiting_gpus": sum(one.gpus for one in waits), "usage": round(used.gpus, 3),
            }  # fmt: skip


# --- facts -------------------------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def slot_facts(one: Entry, view: View) -> dict[str, Any]:
    """A slot, or who waits for one, as plain values."""
    holds = one.id in view.holding
    return {
        "id": one.id, "team": one.team, "pool": one.pool, "gpus": one.gpus, "priority": one.priority, "name": one.name,
        "host": one.host, "pid": one.pid, "since": _moment(one.since), "seconds": round(view.now - one.since, 1),
        "usd_per_gpu_hour": one.rate if holds else None, "price_source": one.source if holds else None,
        "cost_usd": _text(_slot_cost(one, view)) if holds else None, "busy_share": _slot_busy(one),
        "asked_to_yield": any(holder.id == one.id and holder.yields_to for holder in view.holders),
    }  # fmt: skip


def _slot_cost(one: Entry, view: View) -> Decimal | None:
    if one.rate is None:
        return None
    hours = Decimal(repr(round(view.now - one.since, 3))) / _HOUR
    return (Decimal(one.rate) * one.gpus * hours).quantize(Decimal("0.000001"))


def _slot_busy(one: Entry) -> float | None:
    return min(1.0, one.busy_s / one.held_s) if one.busy_s is not None and one.held_s else None


def holding_facts(one: Holding, keys: Sequence[str]) -> dict[str, Any]:
    """GPU time of one key as plain values."""
    return {
        **dict(zip(keys, one.key, strict=True)),
        "devices": len(one.devices) or None, "models": sorted(one.models), "gpu_hours": _text(_hours(one.device_s)),
        "busy_gpu_hours": _text(_hours(one.busy_s)) if one.measured_s else None,
        "idle_gpu_hours": _text(_hours(one.idle_s)) if one.measured_s else None,
        "unmeasured_gpu_hours": _text(_hours(one.device_s - one.measured_s)),
        "cost_usd": _text(one.cost), "idle_cost_usd": _text(one.idle_cost),
        "energy_kwh": _small(one.energy_kwh), "co2_kg": _small(one.co2_kg), "co2_of_gpu_hours": _text(_hours(one.co2_s)), "co2_basis": sorted(one.co2_bases),
        "unpriced_gpu_hours": _text(_hours(one.unpriced_s)), "since": _moment(one.first / _NS), "until": _moment(one.last / _NS),
    }  # fmt: skip


def _hours(seconds: Decimal) -> Decimal:
    return (seconds / _HOUR).quantize(Decimal("0.000001"))


def _small(amount: Decimal | None) -> str | None:
    return _text(None if amount is None else amount.quantize(Decimal("1E-9")))


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount.normalize():f}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


# --- tables ------------------------------------------------------------------------------------------------------------------


def _table(columns: Mapping[str, bool]) -> Table:
    """An empty one; True for a column of numbers."""
    from rich.table import Table

    table = Table(box=None)
    for name, number in columns.items():
        table.add_column(name, justify="right" if number else "left", no_wrap=True, overflow="ellipsis")
    return table


def slots_table(view: View) -> Table:
    """Who holds slots and who waits for one."""
    from aifinops.cli import show

    table = _table({"team": False, "pool": False, "GPUs": True, "for": True, "busy": True, "$/GPU-h": True, "cost": True, "state": False, "where": False})  # fmt: skip
    asked = {holder.id for holder in view.holders if holder.yields_to}
    for one in sorted(view.holding.values(), key=lambda one: (one.pool, one.team, one.since)):
        state = "asked to yield" if one.id in asked else "holds"
        cost = _slot_cost(one, view)
        table.add_row(
            show.key(one.team), show.key(one.pool), str(one.gpus), _span(view.now - one.since), _share(_slot_busy(one)),
            _rate(one.rate), _usd(cost), state, show.key(f"{one.host}:{one.pid} {one.name}".rstrip()),
        )  # fmt: skip
    for one in sorted(view.waiting.values(), key=lambda one: one.since):
        table.add_row(
            show.key(one.team), show.key(one.pool), str(one.gpus), _span(view.now - one.since), "", "", "", "waits",
            show.key(f"{one.host}:{one.pid} {one.name}".rstrip()),
        )  # fmt: skip
    return table


def names(one: Holding) -> str:
    """The names of the runs behind a row."""
    return ", ".join(sorted(one.names))


def _print_runs(found: Sequence[Holding], keys: Sequence[str], title: str, *, named: bool = False) -> None:
    from aifinops.cli import show

    out = show.console()
    if title:
        out.print(f"\n{title}", style="bold")
    out.print(runs_table(found, keys, named=named))
    unpriced = sum((one.unpriced_s for one in found), Decimal(0))
    if unpriced:
        out.print(f"{unpriced / _HOUR:,.2f} GPU-h have no price and are in no cost above", style="yellow")
    for basis in sorted({basis for one in found for basis in one.co2_bases}):
        out.print(f"CO2e: {basis}", style="dim", soft_wrap=True, markup=False)


def runs_table(found: Sequence[Holding], keys: Sequence[str], *, named: bool = False) -> Table:
    """GPU time of each key: hours, busy or idle, what both cost, and CO2 where any is known; with the names of the runs before them."""
    from aifinops.cli import show

    emits = any(one.co2_kg is not None for one in found)
    table = _table({**({"name": False} if named else {}), **dict.fromkeys(keys, False), "devices": False, "GPU-h": True, "busy": True, "idle GPU-h": True, "cost": True, "idle cost": True, **({"CO2e": True} if emits else {})})  # fmt: skip
    for one in found:
        count = f"{len(one.devices)} x " if one.devices else ""
        table.add_row(
            *([show.key(names(one))] if named else []), *map(show.key, one.key), show.key(count + ", ".join(sorted(one.models))), f"{one.device_s / _HOUR:,.2f}",
            _share(one.busy_share), f"{one.idle_s / _HOUR:,.2f}" if one.measured_s else "unknown", _usd(one.cost),
            _usd(one.idle_cost), *([_co2(one)] if emits else []),
        )  # fmt: skip
    return table


def _co2(one: Holding) -> str:
    if one.co2_kg is None:
        return "unknown"
    mass = f"{one.co2_kg * 1000:,.1f} g" if one.co2_kg < 1 else f"{one.co2_kg:,.2f} kg"
    return mass if one.co2_s == one.device_s else f"{mass} of {one.co2_s / _HOUR:,.2f} GPU-h"


def devices_table(devices: Sequence[Mapping[str, Any]]) -> Table:
    """Devices of this machine, and how busy they were."""
    from aifinops.cli import show

    table = _table({"#": True, "device": False, "uuid": False, "busy": True})
    for one in devices:
        table.add_row(str(one["index"]), show.key(one["name"]), show.key(one["uuid"]), _share(one["busy_share"]))
    return table


def _quota_table(rules: Quotas, rows: Sequence[Mapping[str, Any]]) -> None:
    from aifinops.cli import show

    table = _table({"pool": False, "team": False, "own": True, "held": True, "borrowed": True, "to be had": True, "limit": True, "waiting": True, "usage": True})  # fmt: skip
    for row in rows:
        waiting = f"{row['waiting']} ({row['waiting_gpus']} GPUs)" if row["waiting"] else ""
        table.add_row(
            show.key(row["pool"]), show.key(row["team"]), str(row["nominal"]), str(row["held"]), str(row["borrowed"] or ""),
            str(row["available"]), str(row["limit"]), waiting, f"{row['usage']:.2f}",
        )  # fmt: skip
    out = show.console()
    out.print(table)
    days = rules.fair_share.half_life_s / 86_400
    out.print(f"usage: GPUs on the average, with a half-life of {days:g} days", style="dim")


def _left_behind(board: Board, view: View) -> None:
    """What somebody has to see to: slots that nobody renews, and reservations that nobody knows."""
    from aifinops.cli import show

    out = show.console()
    for one in view.dead:
        out.print(
            f"slot {show.key(one.id)} of team {show.key(one.team)}, {one.gpus} GPUs of {show.key(one.pool)}: no sign of life for "
            f"{_span(view.now - one.beat)}. Whoever asks for GPUs next gives them back, or: aifinops gpu quota free {show.key(one.id)}",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    for (team, pool), gpus in board.unaccounted(view).items():
        out.print(
            f"{gpus} GPUs of {show.key(pool)} are reserved for team {show.key(team)} by a slot of which nothing is known. If that stays so: aifinops gpu "
            "quota free ID, with the id that its process has logged",
            style="yellow", soft_wrap=True,
        )  # fmt: skip


def _share(share: float | Decimal | None) -> Text:
    from rich.text import Text

    if share is None:
        return Text("unknown", style="dim")
    return Text(f"{share:.0%}", style="red" if share < 0.05 else "yellow" if share < 0.5 else "")


def _rate(usd: str | None) -> str:
    return "unknown" if usd is None else f"${Decimal(usd):,.2f}"


def _usd(amount: Decimal | None) -> str:
    from aifinops.money import format_money

    return "unknown" if amount is None else format_money(amount.quantize(Decimal("0.01")), "USD")


def _span(seconds: float) -> str:
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"
