"""`aifinops top`: what is being spent at this moment, by whom, of which budget, on which GPUs; read anew every second."""

from __future__ import annotations

import json
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.cli.options import Where
from aifinops.errors import AIFinOpsError, ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from aifinops.analytics.live import Pace
    from aifinops.budgets.standing import Standing
    from aifinops.gpu.board import View
    from aifinops.gpu.holdings import Holding
    from aifinops.ledger.presence import Present

__all__ = ["Frame", "render", "top"]

_NS = 1_000_000_000
_GPUS_EVERY_NS = 5 * _NS
_RUN_S = 180
"""A run that made no charge for so long is over: it makes one a minute."""

_MODELS = 4
"""Models that are named of the calls in flight."""

_SETTLE_S = 0.5
_SHARE = 4
"""A look is followed by a pause of at least so many times its length: never more than a fifth of a core."""


class Form(StrEnum):
    """How it is written."""

    table = "table"
    json = "json"


def top(
    by: Annotated[
        str, typer.Option(help="Keys of the rows, with commas: team, model, feature, ... or any tag.")
    ] = "team,model",
    where: Where = None,
    every: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="How often it is read anew.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="One look, as plain text where nobody sits at a terminal.")
    ] = False,
    form: Annotated[Form, typer.Option("--format", help="Written as; json is one object a line.")] = Form.table,
    ledger: Annotated[
        str | None, typer.Option("--ledger", metavar="PATH", help="Ledger to read (default: the one of the settings).")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="STORE", help="Where the balances of budgets are (default: the settings)."),
    ] = None,
) -> None:
    """What is spent now: a minute, by team and model, of each budget, on GPUs. q or Ctrl-C leaves."""
    from aifinops.cli import show

    out = show.console()
    alone = once or (form is Form.table and not out.is_terminal)
    watcher = _Watcher(ledger, store, by, where or [], settle_s=_SETTLE_S if alone else 0.0)
    try:
        if form is Form.json:
            _print_json(watcher, every, once=once)
        elif alone:
            out.print(render(watcher.look(), out))
        else:
            _live(watcher, out, every)
    except KeyboardInterrupt:
        pass
    finally:
        watcher.close()


def _print_json(watcher: _Watcher, every: float, *, once: bool) -> None:
    while True:
        began = time.monotonic()
        sys.stdout.write(json.dumps(watcher.look().to_dict(), ensure_ascii=False) + "\n")
        sys.stdout.flush()
        if once:
            return
        time.sleep(_pause(every, time.monotonic() - began))


def _live(watcher: _Watcher, out: Console, every: float) -> None:
    from rich.live import Live

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the screen is given back then, too
    with _Keys() as keys, Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            live.update(_drawn(watcher, out), refresh=True)
            if keys.wait(_pause(every, time.monotonic() - began)) in {"q", "Q", "\x03", "\x04"}:
                return


def _drawn(watcher: _Watcher, out: Console) -> RenderableType:
    """The present frame; where a store is away, that is said, and the next look tries again."""
    from rich.text import Text

    try:
        return render(watcher.look(), out, height=out.height, hint="q leaves")
    except AIFinOpsError as error:
        return Text(f"{error}\ntrying again; q leaves", style="red")


def _pause(every: float, took: float) -> float:
    return max(every - took, _SHARE * took)


class _Keys:
    """Single keys from the terminal, without waiting for the end of a line; none where there is no terminal."""

    def __init__(self) -> None:
        self._restore: Any = None

    def __enter__(self) -> _Keys:
        try:
            import termios
            import tty

            descriptor = sys.stdin.fileno()
            self._restore = termios.tcgetattr(descriptor)
            tty.setcbreak(descriptor)
        except (
            ImportError,
            OSError,
            ValueError,
            AttributeError,
        ):  # Windows, no terminal, closed: Ctrl-C leaves all the same
            self._restore = None
        except Exception as error:  # termios.error is no OSError
            if type(error).__name__ != "error":
                raise
            self._restore = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._restore is not None:
            import termios

            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._restore)

    def wait(self, seconds: float) -> str:
        """The key that is pressed within the time; empty for none."""
        if self._restore is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""


# --- one look --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """What one look has found.

    Attributes:
        at: when, nanoseconds since the epoch. by: keys of the rows. paces: how fast each key spends.
        budgets: how they stand. view: of the GPU board, where there is one. runs: GPU runs of the last minutes.
        devices: of this machine, with how busy they were since the look before. present: processes of this machine that make calls, with
            those in flight.
    """

    at: int
    by: tuple[str, ...]
    paces: Sequence[Pace]
    budgets: Sequence[Standing] = ()
    view: View | None = None
    runs: Sequence[Holding] = ()
    devices: Sequence[Mapping[str, Any]] = ()
    present: Sequence[Present] = ()

    @property
    def totals(self) -> list[Pace]:
        """The sum of all rows, one a currency, the dearest hour first."""
        from aifinops.analytics.live import together

        currencies = dict.fromkeys(pace.currency for pace in self.paces) or {"USD": None}
        return sorted((together(self.paces, one) for one in currencies), key=lambda pace: -(pace.hour or Decimal(0)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; money as text."""
        from aifinops.cli.budgets import facts
        from aifinops.cli.gpu import holding_facts, names, slot_facts
        from aifinops.clock import to_datetime

        view = self.view
        return {
            "at": to_datetime(self.at).isoformat(),
            "totals": [pace.to_dict(()) for pace in self.totals],
            "rows": [pace.to_dict(self.by) for pace in self.paces],
            "budgets": [facts(one) for one in self.budgets],
            "slots": [] if view is None else [slot_facts(one, view) for one in view.holding.values()],
            "waiting": [] if view is None else [slot_facts(one, view) for one in view.waiting.values()],
            "runs": [{"name": names(one) or None, **holding_facts(one, ("team", "run"))} for one in self.runs],
            "devices": list(self.devices),
            "in_flight": self.in_flight(),
        }

    def in_flight(self) -> dict[str, Any]:
        """Calls in flight: how many of which model, in how many processes, and for how many seconds the oldest."""
        calls = sorted(call for one in self.present for call in one.calls)
        return {
            "calls": len(calls),
            "more": any(one.full for one in self.present),
            "processes": len(self.present),
            "oldest_s": max(0.0, round((self.at - calls[0][0]) / _NS, 3)) if calls else None,
            "models": dict(Counter(model for _, model in calls).most_common()),
        }


class _Watcher:
    """Ledger, balances and GPUs, opened once."""

    def __init__(
        self, ledger: str | None, store: str | None, by: str, where: list[str], *, settle_s: float = 0.0
    ) -> None:
        from aifinops import runtime
        from aifinops.analytics.live import Pulse
        from aifinops.cli.audit import file_of
        from aifinops.cli.reporting import filters
        from aifinops.config import load
        from aifinops.ledger import open_ledger, path_of
        from aifinops.ledger.presence import folder_of

        engines = runtime.get()
        self._engines = engines
        settings = engines.config if ledger is None else load({"ledger": ledger})
        self._names = tuple(dict.fromkeys(part.strip() for part in by.split(",") if part.strip()))
        path = path_of(settings.ledger)
        self._folder = None if path is None else folder_of(path)
        with ExitStack() as opened:  # nobody closes us when what follows is wrong
            self._ledger = open_ledger(settings.ledger, create=False)
            opened.callback(self._ledger.close)
            self._pulse = Pulse(self._ledger, self._names, filters(where))
            self._target = runtime.shared_store(settings) if store is None else store
            if store is not None and (path := file_of(store)) is not None and not path.exists():
                raise ConfigurationError(f"there is no budget store at {path}; name another: --store")
            self._open = opened.pop_all()
        self._gpus_at = 0
        self._runs: Sequence[Holding] = ()
        self._devices = _Devices(self._open, settle_s)

    def look(self) -> Frame:
        """Read everything anew; GPU runs, which make a charge a minute, every five seconds."""
        now = self._engines.clock.time_ns()
        paces = self._pulse.look(now)
        if now - self._gpus_at >= _GPUS_EVERY_NS or now < self._gpus_at:
            self._gpus_at, self._runs = now, self._running(now)
        standings, devices = self._standings(now), self._devices.look()
        return Frame(now, self._names, paces, standings, self._board(), self._runs, devices, self._present())

    def _present(self) -> Sequence[Present]:
        from aifinops.ledger.presence import present

        return () if self._folder is None else present(self._folder)

    def _standings(self, now: int) -> Sequence[Standing]:
        from aifinops.budgets.standing import present

        return present(self._engines.store_at(self._target), now) if self._is_there(self._target) else ()

    def _is_there(self, target: str) -> bool:
        from aifinops.cli.audit import file_of

        path = file_of(target)
        # Balances in memory are those of another process: there is nothing to see.
        return target != "memory" and (path is None or path.exists())

    def _board(self) -> View | None:
        if not self._engines.config.gpu_quotas or not self._is_there(self._target):
            return None
        from aifinops.gpu.board import Board
        from aifinops.gpu.slots import quotas_in_force

        return Board(self._engines.store_at(self._target), quotas_in_force(None), self._engines.clock).view()

    def _running(self, now: int) -> Sequence[Holding]:
        from aifinops.gpu.holdings import gpu_entries, holdings

        found = holdings(gpu_entries(self._ledger, now - 3600 * _NS), ("team", "run"))
        return [one for one in found if now - one.last <= _RUN_S * _NS]

    def close(self) -> None:
        """Let go of everything."""
        self._open.close()


class _Devices:
    """The devices of this machine, watched from the first look to the next; none without a driver.

    Args:
        until: when to let go of them. settle_s: how long the first look watches them, where there will be no other.
    """

    def __init__(self, until: ExitStack, settle_s: float) -> None:
        self._until = until
        self._settle_s = settle_s
        self._watched: Any = None
        self._found: Sequence[Any] | None = None
        self._since = 0

    def look(self) -> list[dict[str, Any]]:
        """Each with the share of the time since the look before in which it was busy; None for the first look, and where nobody knows."""
        from aifinops import runtime

        clock = runtime.get().clock
        if self._found is None:
            from aifinops.gpu.devices import inventory
            from aifinops.gpu.sampler import watch

            self._found = inventory().devices
            if self._found:
                self._watched = self._until.enter_context(watch(self._found))
                if self._settle_s:
                    self._since = clock.monotonic_ns()
                    time.sleep(self._settle_s)
        if not self._found:
            return []
        since, self._since = self._since, clock.monotonic_ns()
        shares = [self._share(one, since) if since else None for one in self._found]
        return [
            {"index": one.index, "uuid": one.uuid, "name": one.name, "busy_share": share}
            for one, share in zip(self._found, shares, strict=True)
        ]

    def _share(self, device: Any, since: int) -> float | None:
        busy = self._watched.between(device, since, self._since).busy_s
        return None if busy is None or self._since <= since else min(1.0, busy * _NS / (self._since - since))


# --- what is drawn -----------------------------------------------------------------------------------------------------------


def render(frame: Frame, out: Console, *, height: int | None = None, hint: str = "") -> RenderableType:
    """A frame for a terminal, or for a file.

    Args:
        frame: what was found. out: where to, for its width and whether it can draw. height: lines there are; None for as many as it takes.
        hint: how to leave, beside the title.
    """
    from rich.console import Group

    from aifinops.cli import show

    blocks = show.can_draw(out)
    below = [part for part in (_budgets(frame, blocks=blocks), *_gpus(frame)) if part is not None]
    parts: list[Any] = [_title(frame, hint), *_summary(frame, blocks=blocks), *_calls(frame)]
    lines = None if height is None else max(3, height - 3 - len(parts) - sum(_lines(part) for part in below))
    rows = _rows(frame, lines, blocks=blocks)
    parts += ["", rows] if rows is not None else ["", _nothing(frame)]
    for part in below:
        parts += ["", part]
    return Group(*parts)


def _lines(part: Any) -> int:
    return int(part.row_count) + 2


def _title(frame: Frame, hint: str) -> Text:
    from rich.text import Text

    from aifinops.clock import to_datetime

    title = Text("aifinops top", style="bold")
    title.append(f"  {to_datetime(frame.at):%Y-%m-%d %H:%M:%S} UTC", style="dim")
    if hint:
        title.append(f"  {hint}", style="dim")
    return title


def _summary(frame: Frame, *, blocks: bool) -> list[Text]:
    from rich.text import Text

    from aifinops.cli import show
    from aifinops.money import format_money

    lines = []
    for pace in frame.totals:

        def money(amount: Decimal | None, currency: str = pace.currency) -> str:
            return format_money(amount, currency)

        line = Text(f"{money(pace.now)} in the last minute", style="bold")
        line.append(f"   {money(pace.average(5))} a minute over 5, {money(pace.average(60))} over 60", style="")
        line.append(f"   {pace.calls:,} call{'' if pace.calls == 1 else 's'}", style="not bold")
        lines += [line, Text(show.spark(pace.minutes, blocks=blocks, width=60) + "  the last hour", style="cyan")]
        apart = [f"{pace.unpriced_calls:,} without a price"] if pace.unpriced_calls else []
        apart += [f"~{money(pace.estimated)} estimated"] if pace.estimated else []
        if apart:
            lines.append(Text(f"of this hour: {', '.join(apart)}", style="yellow" if pace.unpriced_calls else "dim"))
    return lines


def _calls(frame: Frame) -> list[Text]:
    """What is in flight; nothing where no process makes calls."""
    from rich.text import Text

    from aifinops.cli import show

    if not frame.present:
        return []
    facts = frame.in_flight()
    count, processes, models = facts["calls"], facts["processes"], list(facts["models"].items())
    more, many = " or more" if facts["more"] else "", "" if processes == 1 else "es"
    line = Text(f"{count:,}{more} call{'' if count == 1 else 's'} in flight in {processes:,} process{many}")
    if count:
        line.append(f", the oldest for {facts['oldest_s']:,.1f} s")
    told = [f"{number:,} {show.plain(model)}" for model, number in models[:_MODELS]]
    if len(models) > _MODELS:
        told.append(f"{sum(number for _, number in models[_MODELS:]):,} of others")
    if told:
        line.append(f"   {', '.join(told)}", style="dim")
    return [line]


def _nothing(frame: Frame) -> Text:
    from rich.text import Text

    return Text("No call in the last hour." if not frame.paces else "", style="dim")


def _rows(frame: Frame, lines: int | None, *, blocks: bool) -> Table | None:
    from rich.table import Table
    from rich.text import Text

    from aifinops.analytics.live import together
    from aifinops.cli import show
    from aifinops.money import format_money

    if not frame.paces or not frame.by:
        return None
    table = Table(box=None)
    for name in frame.by:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("last min", "5 min", "60 min", "hour", "calls"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    shown = list(frame.paces if lines is None or len(frame.paces) <= lines else frame.paces[: lines - 1])
    rest = frame.paces[len(shown) :]
    others = [
        together(rest, currency, (f"({len(rest):,} others)", *[""] * (len(frame.by) - 1)))
        for currency in dict.fromkeys(pace.currency for pace in rest)
    ]
    for pace in (*shown, *others):
        amounts = (pace.now, pace.average(5), pace.average(60), pace.hour)
        names = [show.key(name) if name or place == 0 else "" for place, name in enumerate(pace.key)]
        table.add_row(
            *names, *(format_money(amount, pace.currency) for amount in amounts), f"{pace.calls:,}",
            Text(show.spark(pace.minutes, blocks=blocks, width=20), style="cyan"),
        )  # fmt: skip
    return table


def _budgets(frame: Frame, *, blocks: bool) -> Table | None:
    from aifinops.cli.budgets import standings_table
    from aifinops.cli.gpu import SLOTS

    # What slots of the board hold is told with the GPUs.
    shown = [one for one in frame.budgets if frame.view is None or one.node.unit != SLOTS]
    return standings_table(shown, blocks=blocks, short=True) if shown else None


def _gpus(frame: Frame) -> list[Table]:
    from aifinops.cli.gpu import devices_table, runs_table, slots_table

    found = []
    if frame.view is not None and (frame.view.holding or frame.view.waiting):
        found.append(slots_table(frame.view))
    if frame.runs:
        found.append(runs_table(frame.runs, ("team", "run"), named=True))
    if frame.devices:
        found.append(devices_table(frame.devices))
    return found
