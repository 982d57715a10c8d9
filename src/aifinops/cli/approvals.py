"""`aifinops approvals`: what calls want to spend above a limit, and the answers to that."""

from __future__ import annotations

import getpass
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from aifinops.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from aifinops.budgets.approvals import Approvals, Request
    from aifinops.budgets.stores.base import Store

__all__ = ["app"]

app = typer.Typer(
    help='Answer what calls of budgets with on_exceed="ask" want to spend above their limit.', no_args_is_help=True
)

_NS = 1_000_000_000

StorePath = Annotated[
    str | None,
    typer.Option("--store", metavar="STORE", help="Store of the budget (default: the one of the settings)."),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the request, as `aifinops approvals list` has it.")]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who says so (default: the user).")]


@app.command(name="list")
def list_requests(
    form: Annotated[str, typer.Option("--format", metavar="FORM", help="Written as: text or json.")] = "text",
    store: StorePath = None,
) -> None:
    """What waits for an answer, oldest first."""
    from aifinops.budgets.approvers import as_json

    if form not in ("text", "json"):
        raise ConfigurationError(f"--format {form!r} is neither text nor json")
    desk, place = _desk(store)
    try:
        waiting = _asked(desk, place)
    finally:
        place.close()
    if form == "json":
        sys.stdout.write(json.dumps([json.loads(as_json(request)) for request in waiting]) + "\n")
        return
    if not waiting:
        sys.stdout.write("nothing waits for an answer\n")
    for request in waiting:
        sys.stdout.write(f"{request.as_text()}, asked {_moment(request.created)}, until {_moment(request.expires)}\n")


@app.command()
def grant(
    id: Id,
    amount: Annotated[
        str | None,
        typer.Option(metavar="AMOUNT", help='The most that the call may cost, e.g. "$2" (default: what it wants).'),
    ] = None,
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="How long it may be used: 30m, 1h, 2d.")] = "1h",
    by: By = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="FILE", help="Key to sign with (default: the one of the settings).")
    ] = None,
    store: StorePath = None,
) -> None:
    """Let one call go above the limit, once. The grant is signed, and of no use after its time."""
    from aifinops.budgets.approvals import amount_of, shown
    from aifinops.budgets.budget import seconds_of

    seconds = seconds_of(lasting, "--for")
    desk, place = _desk(store, key)
    try:
        request = next((waiting for waiting in _asked(desk, place) if waiting.id == id), None)
        most = None if amount is None or request is None else amount_of(amount, request.unit)
        if request is not None and most is not None and most < request.amount:
            raise ConfigurationError(
                f"--amount {amount} is less than the {shown(request.unit, request.amount)} that request {id} wants, so "
                "its call could not use it"
            )
        granted = desk.grant(place, id, approver=by or getpass.getuser(), amount=most, seconds=seconds)
    finally:
        place.close()
    until = _moment(granted.expires)
    sys.stdout.write(f"{id}: one call may cost up to {shown(granted.unit, granted.amount)}, until {until}\n")


@app.command()
def deny(id: Id, by: By = None, store: StorePath = None) -> None:
    """Say no. The call raises ApprovalDenied, and so do others like it until the request would have expired."""
    desk, place = _desk(store)
    try:
        request = desk.deny(place, id, approver=by or getpass.getuser())
    finally:
        place.close()
    sys.stdout.write(f"{id}: denied, until {_moment(request.expires)}\n")


def _desk(store: str | None, key: str | None = None) -> tuple[Approvals, Store]:
    from aifinops import runtime
    from aifinops.budgets.approvals import Approvals, Key
    from aifinops.budgets.audit import Audit
    from aifinops.budgets.stores import open_store
    from aifinops.clock import SystemClock
    from aifinops.config import load

    settings = load({"store": store, "approval_key": key})
    target, key = runtime.shared_store(settings), runtime.approval_key(settings)
    if target == "memory":
        raise ConfigurationError(
            "the store of budgets is the memory of each process, which no other one can reach; give --store, or set AIFINOPS_STORE"
        )
    if key is None:
        raise ConfigurationError(
            "there is no ledger on disk that a key for approvals could be beside; set AIFINOPS_APPROVAL_KEY to a file, as "
            "the program does that asks"
        )
    desk = Approvals(SystemClock(), Key(key), lambda store: Audit(runtime.audit_path(settings, store)))
    return desk, open_store(target)


def _asked(desk: Approvals, place: Store) -> tuple[Request, ...]:
    try:
        return desk.requests(place)
    except StoreError as error:
        raise ConfigurationError(f"the store does not answer: {error}") from error


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at // _NS, UTC).isoformat().replace("+00:00", "Z")
