"""`aifinops budget`: how budgets stand, what they have spent in earlier windows, and limits that are set by hand."""

from __future__ import annotations

import difflib
import getpass
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifinops.cli.audit import file_of
from aifinops.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from aifinops.budgets.audit import Audit
    from aifinops.budgets.budget import Limit
    from aifinops.budgets.standing import Standing
    from aifinops.budgets.stores.base import Store

__all__ = ["app", "facts", "standings_table"]

app = typer.Typer(
    help="Budgets with a name: how they stand, what they have spent before, limits set by hand.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StoreName = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="STORE",
        help="Where the balances are: a file or the URL of a server (default: the settings).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON; amounts are texts, so that they stay exact.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the budget.")]
Per = Annotated[
    str | None, typer.Option(metavar="WINDOW", help='Which one, where a name has several: "day", "rolling 24h".')
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_BAR = 10
_SOON = Decimal("0.8")


@app.command("list")
def show_all(store: StoreName = None, as_json: AsJson = False) -> None:
    """Every budget in its present window: limit, spent, held, what is left, how fast it goes and how long it lasts."""
    from aifinops.budgets.standing import present

    place = _Place(store)
    found = present(place.store, place.now)
    if as_json:
        _print_json([facts(one) for one in found])
    elif not found:
        print(f"No budget has been used at {place}.")
    else:
        _table(found)


@app.command()
def show(name: Name, store: StoreName = None, as_json: AsJson = False) -> None:
    """One budget: every unit and window, with what was overrun and forfeited, and who has set its limit."""
    from aifinops.budgets.standing import past

    place = _Place(store)
    found = place.named(name)
    before = [one for one in past(place.store, place.now) if one.name == name]
    if as_json:
        _print_json([facts(one) for one in [*found, *before]])
        return
    _table(found)
    for one in found:
        for line in _remarks(one):
            print(line)
    if before:
        print()
        _history(before[:10])


@app.command()
def history(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the budget (default: all).")] = None,
    last: Annotated[int, typer.Option("--last", min=1, metavar="N", help="So many windows at most.")] = 30,
    store: StoreName = None,
    as_json: AsJson = False,
) -> None:
    """Windows that are over: what was spent of which limit. A store keeps them for about a week after their end."""
    from aifinops.budgets.standing import past

    place = _Place(store)
    if name is not None:
        place.named(name)
    found = [one for one in past(place.store, place.now) if name in (None, one.name)][:last]
    if as_json:
        _print_json([facts(one) for one in found])
    elif not found:
        print("No window is over yet, or none is kept any longer.")
    else:
        _history(found)


@app.command("set")
def set_limit(
    name: Name,
    limit: Annotated[
        str | None, typer.Argument(metavar="LIMIT", help='"$80", "2M tokens"; its unit is one that the budget has.')
    ] = None,
    per: Per = None,
    clear: Annotated[bool, typer.Option("--clear", help="Have the limit of the code again.")] = False,
    store: StoreName = None,
    yes: Yes = False,
) -> None:
    """Have another limit than the code says, in every process within some seconds; the log has who and when."""
    from aifinops.budgets.budget import parse_limit

    if (limit is None) is not clear:
        raise ConfigurationError(
            f"write what limit it shall have: aifinops budget set {name} '$80', or --clear for that of the code"
        )
    place = _Place(store)
    if limit is None:
        _clear(place, place.one(name, per), yes=yes)
    else:
        _set(place, place.one(name, per), parse_limit(limit), yes=yes)


def _set(place: _Place, found: Sequence[Standing], limits: Iterable[Limit], *, yes: bool) -> None:
    from aifinops.budgets import standing

    changes = [(_of_unit(found, limit.unit), limit) for limit in limits]
    for one, limit in changes:
        print(f"{_title(one)}: {_shown(one, one.balance.limit)} becomes {limit}")
    _confirm("Shall it be in force in every process?", yes=yes)
    for one, limit in changes:
        standing.set_limit(place.store, one.node.budget, limit, _who(), place.now)
        place.note("limit_set", one, limit=limit.quantity, before=_units(one, one.balance.limit))
    print("Done. Processes that run heed it within five seconds.")


def _clear(place: _Place, found: Sequence[Standing], *, yes: bool) -> None:
    from aifinops.budgets import standing

    changes = [one for one in found if one.by_hand is not None]
    if not changes:
        print(f"Nobody has set a limit of {_title(found[0])} by hand; that of the code is in force.")
        return
    for one in changes:
        print(f"{_title(one)}: {_shown(one, one.balance.limit)} was set by hand; that of the code takes its place")
    _confirm("Shall it be in force in every process?", yes=yes)
    for one in changes:
        standing.clear_limit(place.store, one.node.budget, one.node.unit, place.now)
        place.note("limit_cleared", one, before=_units(one, one.balance.limit))
    print("Done. Processes that run heed it within five seconds.")


@app.command()
def reset(name: Name, per: Per = None, store: StoreName = None, yes: Yes = False) -> None:
    """Take out what is spent in the present window; what calls in flight hold stays. The log has who and when."""
    from aifinops.budgets import standing
    from aifinops.charges import new_id

    place = _Place(store)
    found = place.one(name, per)
    for one in found:
        print(f"{_title(one)}: {_shown(one, one.balance.spent)} of {_shown(one, one.balance.limit)} are spent")
    _confirm("Shall that be taken out?", yes=yes)
    standing.forget_spent(place.store, found[0].node.budget, new_id(), place.now)
    for one in found:
        place.note("reset", one, amount=_units(one, one.balance.spent))
    print("Done.")


@app.command()
def post(
    name: Name,
    amount: Annotated[
        str, typer.Argument(metavar="AMOUNT", help='"$3.20", "40k tokens"; its unit is one that the budget has.')
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For the log.")],
    credit: Annotated[
        bool, typer.Option("--credit", help="Take it out instead: a refund, or what was counted twice.")
    ] = False,
    per: Per = None,
    store: StoreName = None,
    yes: Yes = False,
) -> None:
    """Count what no call has told: what a store has lost, a bill that says otherwise. The log has who, when and why."""
    from aifinops.budgets import standing
    from aifinops.budgets.budget import parse_limit
    from aifinops.charges import new_id

    place = _Place(store)
    found = place.one(name, per)
    changes = [(_of_unit(found, posted.unit), posted) for posted in parse_limit(amount)]
    for one, posted in changes:
        spent = max(0, one.balance.spent + (-posted.amount if credit else posted.amount))
        print(f"{_title(one)}: spent {_shown(one, one.balance.spent)} becomes {_shown(one, spent)}")
    _confirm("Shall it be counted?", yes=yes)
    for one, posted in changes:
        quantity = -posted.amount if credit else posted.amount
        standing.post(place.store, one.node, quantity, new_id(), place.now)
        place.note("corrected", one, amount=_units(one, quantity), why=reason)
    print("Done.")


# --- the store -----------------------------------------------------------------------------------------------------------


class _Place:
    """A store that is there.

    Args:
        target: as people write it; None for that of the settings.
    """

    def __init__(self, target: str | None) -> None:
        from aifinops import runtime

        engines = runtime.get()
        self._target = runtime.shared_store(engines.config) if target is None else target
        if self._target == "memory":
            raise ConfigurationError(
                "balances in memory are seen by their own process only; name a store: --store /path/to/budgets.db"
            )
        self._check()
        self.store: Store = engines.store_at(self._target)
        self.now: int = engines.clock.time_ns()
        self.audit: Audit = engines.audit_of(self.store)

    def __str__(self) -> str:
        # Of a server not the whole address: there may be a password in it.
        return self._target if file_of(self._target) else f"the {self._target.partition('://')[0]} server"

    def _check(self) -> None:
        path = file_of(self._target)
        if path is not None and not path.exists():
            raise ConfigurationError(
                f"there is no budget store at {path}; make the first call under a named budget, or name another: --store"
            )

    def named(self, name: str) -> list[Standing]:
        """Everything of one name.

        Raises:
            ConfigurationError: when there is none of it.
        """
        from aifinops.budgets.standing import present

        everything = present(self.store, self.now)
        found = [one for one in everything if one.name == name]
        if not found:
            known = sorted({one.name for one in everything})
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known[:10]) or 'none'}."
            raise ConfigurationError(f"no budget {name!r} has been used at {self}. {hint}")
        return found

    def one(self, name: str, per: str | None) -> list[Standing]:
        """The units of one name in one window.

        Raises:
            ConfigurationError: when there is none, or it is not clear which.
        """
        found = self.named(name)
        by_key: dict[str, list[Standing]] = {}
        for one in found:
            by_key.setdefault(one.node.budget, []).append(one)
        if per is not None:
            by_key = {key: ones for key, ones in by_key.items() if per in _pers(ones[0])}
        if len(by_key) != 1:
            which = " or ".join(f'--per "{_pers(one)[0]}"' for one in {one.node.budget: one for one in found}.values())
            raise ConfigurationError(
                f"budget {name!r} has {'no such window' if per else 'several windows'}; write {which}"
            )
        return next(iter(by_key.values()))

    def note(self, kind: str, one: Standing, **facts: object) -> None:
        """Write down who has done what."""
        self.audit.add(kind, budget=one.name, per=str(one.window), unit=one.node.unit, by=_who(), **facts)
        if not self.audit.flush():
            print(f"aifinops: {self.audit.path} could not be written: this is in no log", file=sys.stderr)


def _pers(one: Standing) -> tuple[str, ...]:
    window = one.window
    if window.span:
        length = str(window).removeprefix("in any ")
        return (f"rolling {length}", f"rolling {window.span}s", f"rolling {length.replace(' hours', 'h')}")
    text = str(window).removeprefix("per ").removeprefix("in ")
    return (text, text.partition(" (")[0], text.lower())


def _of_unit(found: Sequence[Standing], unit: str) -> Standing:
    for one in found:
        if one.node.unit == unit:
            return one
    units = ", ".join(one.node.unit for one in found)
    raise ConfigurationError(f"budget {found[0].name!r} has no limit of {unit}; it has: {units}")


def _confirm(question: str, *, yes: bool) -> None:
    if not yes and not typer.confirm(question):
        raise typer.Exit(1)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, in a container
        user = "unknown"
    return f"{user}@{platform.node()}"


# --- what is printed -------------------------------------------------------------------------------------------------------


def _units(one: Standing, amount: int | None) -> Decimal | None:
    from aifinops.budgets.budget import to_units

    return None if amount is None else to_units(one.node.unit, amount)


def _shown(one: Standing, amount: int | None) -> str:
    from aifinops.budgets.budget import Limit

    return "none" if amount is None else str(Limit(one.node.unit, amount))


def _brief(one: Standing, text: str, *, first: bool) -> str:
    """`3,000,000 output_tokens` as `3.00M output_tokens`, or without its meter."""
    from aifinops.analytics.markup import compact

    number, _, meter = text.partition(" ")
    if meter != one.node.unit or not number.replace(",", "").isdigit():
        return text
    return compact(int(number.replace(",", ""))) + (f" {meter}" if first else "")


def _title(one: Standing) -> str:
    return f"{one.name} {one.window}"


def _table(found: Sequence[Standing]) -> None:
    from aifinops.cli import show as tables

    out = tables.console()
    out.print(standings_table(found, blocks=tables.can_draw(out)))
    if any(one.by_hand for one in found):
        out.print("* set by hand", style="dim")


def standings_table(found: Sequence[Standing], *, blocks: bool, short: bool = False) -> Table:
    """How budgets stand: limit, spent, held, left, share, rate an hour, how long it lasts.

    Args:
        found: the budgets. blocks: whether bars can be drawn. short: large quantities to three digits, and their meter told once.
    """
    from rich.table import Table
    from rich.text import Text

    from aifinops.cli import show as tables

    table = Table(box=None)
    table.add_column("budget", overflow="ellipsis")
    table.add_column("window", no_wrap=True)
    for name in ("limit", "spent", "held", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("share", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    table.add_column("lasts", no_wrap=True)
    for one in found:
        balance = one.balance
        texts = [_shown(one, amount) for amount in (balance.limit, balance.spent, balance.reserved, balance.remaining)]
        if short:
            texts = [_brief(one, text, first=place == 0) for place, text in enumerate(texts)]
        limit = Text(texts[0] + ("*" if one.by_hand else ""))
        amounts = texts[1:]
        table.add_row(
            tables.key(one.name), str(one.window), limit, *amounts, _share(one, blocks=blocks), _rate(one), _lasts(one)
        )
    return table


def _share(one: Standing, *, blocks: bool) -> Text:
    from rich.text import Text

    from aifinops.cli import show as tables

    balance = one.balance
    if not balance.limit:
        return Text("")
    share = Decimal(balance.spent) / balance.limit
    style = "red" if share >= 1 else "yellow" if share >= _SOON else ""
    drawn = tables.bar(min(share, Decimal(1)), blocks=blocks, width=_BAR)
    return Text(f"{drawn:<{_BAR}} {share:>4.0%}", style=style)


def _rate(one: Standing) -> str:
    from aifinops.budgets.budget import Limit, is_currency

    if one.rate is None:
        return ""
    hour = int(one.rate * 3600)
    if not hour:
        return "0"
    return f"{Limit(one.node.unit, hour) if is_currency(one.node.unit) else f'{hour / 1e6:,.0f}'}/h"


def _lasts(one: Standing) -> Text:
    from rich.text import Text

    balance = one.balance
    if balance.limit is not None and balance.spent >= balance.limit:
        return Text("spent", style="red")
    if one.crosses and one.seconds is not None:
        return Text(_span(one.seconds), style="yellow")
    lasting = one.seconds is not None or (one.rate == 0 and not one.window.span)
    return Text("to the end" if lasting else "")


def _span(seconds: float) -> str:
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"


def _remarks(one: Standing) -> Iterable[str]:
    balance = one.balance
    if balance.overrun:
        yield f"{_title(one)}: {_shown(one, balance.overrun)} of what is spent had not been held"
    if balance.forfeited:
        yield f"{_title(one)}: {_shown(one, balance.forfeited)} of what is spent was held by processes that vanished"
    if one.by_hand is not None:
        by = one.by_hand.by or "somebody"
        yield f"{_title(one)}: the limit was set by {by} at {_moment(one.by_hand.at)}"


def _history(found: Sequence[Standing]) -> None:
    from rich.table import Table

    from aifinops.cli import show as tables

    out = tables.console()
    blocks = tables.can_draw(out)
    table = Table(box=None)
    for name in ("budget", "window", "from"):
        table.add_column(name, no_wrap=name != "budget", overflow="ellipsis")
    for name in ("limit", "spent", "overrun", "forfeited"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("share", no_wrap=True)
    for one in found:
        balance = one.balance
        amounts = [_shown(one, amount) for amount in (balance.limit, balance.spent)]
        amounts += [_shown(one, amount) if amount else "" for amount in (balance.overrun, balance.forfeited)]
        begun = _moment(one.node.window)
        table.add_row(tables.key(one.name), str(one.window), begun, *amounts, _share(one, blocks=blocks))
    out.print(table)


def _moment(at: int) -> str:
    from aifinops.clock import to_datetime

    return f"{to_datetime(at):%Y-%m-%d %H:%M}"


def facts(one: Standing) -> dict[str, Any]:
    """One budget as plain values; amounts are texts, so that they stay exact."""
    from aifinops.budgets.budget import exact, to_units
    from aifinops.clock import to_datetime

    balance, unit = one.balance, one.node.unit
    amounts = {
        name: None if amount is None else exact(to_units(unit, amount))
        for name, amount in (
            ("limit", balance.limit), ("spent", balance.spent), ("reserved", balance.reserved), ("remaining", balance.remaining),
            ("overrun", balance.overrun), ("forfeited", balance.forfeited),
        )
    }  # fmt: skip
    return {
        "budget": one.name,
        "window": str(one.window),
        "from": to_datetime(one.node.window).isoformat() if one.node.window else None,
        "until": to_datetime(one.node.until).isoformat() if one.node.until else None,
        "unit": unit,
        **amounts,
        "per_hour": None if one.rate is None else exact(to_units(unit, int(one.rate * 3600))),
        "seconds_left": None if one.seconds is None else round(one.seconds),
        "exceeds": one.crosses,
        "set_by": one.by_hand.by if one.by_hand else None,
    }


def _print_json(found: list[dict[str, Any]]) -> None:
    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
