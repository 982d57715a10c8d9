"""Who is asked for an approval: somebody at the terminal, an address, a folder, or a function. Whoever it is, the answer goes into the store."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifinops.budgets.approvals import Approvals, Request, amount_of, shown
from aifinops.errors import AIFinOpsError, ConfigurationError, swallow

if TYPE_CHECKING:
    from aifinops.budgets.stores.base import Store

__all__ = ["Approver", "approver_of"]

_TIMEOUT_S = 10.0
_MOST_READ = 65_536
_terminal = threading.Lock()


class Approver:
    """Asks with a function, in a thread of its own, so that neither a task nor a deadline waits for it.

    Args:
        name: who it is, for the record. ask: what `Ask.approver` describes.
    """

    def __init__(self, name: str, ask: Callable[[Request], object]) -> None:
        self.name = name
        self._ask = ask

    def asked(self, approvals: Approvals, store: Store, request: Request, wake: Callable[[], None]) -> None:
        """There is a new request; `wake` is called once there is an answer."""
        arguments = (approvals, store, request, wake)
        threading.Thread(target=self._consult, args=arguments, name="aifinops-approval", daemon=True).start()

    def look(self, approvals: Approvals, store: Store, request: Request) -> None:
        """A request still waits."""

    def _consult(self, approvals: Approvals, store: Store, request: Request, wake: Callable[[], None]) -> None:
        try:
            _record(approvals, store, request, self._ask(request), self.name)
        except Exception as failure:  # the request stays open: somebody else may answer it
            swallow("budgets.approver", failure)
        finally:
            wake()


class FolderApprover(Approver):
    """Puts each request into a folder as `<id>.json`; whoever puts `<id>.grant` or `<id>.deny` beside it has answered. A grant may have an
    amount in it."""

    def __init__(self, folder: str) -> None:
        super().__init__("file", lambda request: None)
        self._folder = Path(folder).expanduser()

    def asked(self, approvals: Approvals, store: Store, request: Request, wake: Callable[[], None]) -> None:
        """Write the request down."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = self._folder / f".{request.id}"
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(as_json(request) + "\n")
            beside.replace(self._folder / f"{request.id}.json")
        except OSError as failure:  # the request stays open: somebody else may answer it
            swallow("budgets.approver", failure)

    def look(self, approvals: Approvals, store: Store, request: Request) -> None:
        """See whether there is an answer."""
        grant, deny = (self._folder / f"{request.id}.{word}" for word in ("grant", "deny"))
        try:
            if deny.exists():
                _record(approvals, store, request, False, self.name)
            elif grant.exists():
                said = grant.read_text("utf-8").strip()
                _record(approvals, store, request, said or True, self.name)
            else:
                return
            (self._folder / f"{request.id}.json").unlink(missing_ok=True)
        except (AIFinOpsError, OSError, ValueError) as failure:  # as above
            swallow("budgets.approver", failure)


def approver_of(who: str | Callable[[Any], object]) -> Approver | None:
    """Whom `Ask.approver` means; None for nobody but `aifinops approvals`."""
    if not who:
        return None
    if callable(who):
        return Approver(getattr(who, "__name__", "function"), who)
    if who == "console":
        return Approver("console", _at_terminal)
    if who.startswith("file:"):
        return FolderApprover(who.removeprefix("file:"))
    return Approver("webhook", lambda request: _post(who, request))


def as_json(request: Request) -> str:
    """A request for programs: amounts are texts in the unit, times seconds since the epoch."""
    said = asdict(request)
    for name in ("amount", "limit", "spent"):
        said[name] = shown(request.unit, said[name])
    for name in ("created", "expires"):
        said[name] /= 1_000_000_000
    del said["window"], said["key"]
    return json.dumps(said)


def _record(approvals: Approvals, store: Store, request: Request, said: object, name: str) -> None:
    """Leave an answer: True, an amount, False; None is no answer."""
    if said is None:
        return
    try:
        if said is False:
            approvals.deny(store, request.id, approver=name)
        else:
            amount = None if said is True else amount_of(said, request.unit)
            approvals.grant(store, request.id, approver=name, amount=amount)
    except ConfigurationError:
        if any(waiting.id == request.id for waiting in approvals.requests(store)):
            raise
        # Else somebody was quicker.


def _at_terminal(request: Request) -> object:
    """Ask whoever sits at the terminal; nobody where there is none."""
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    with _terminal:
        sys.stderr.write(f"aifinops: approve {request.as_text()}? [y/N, or an amount] ")
        sys.stderr.flush()
        said = sys.stdin.readline().strip()
    if said.lower() in ("y", "yes"):
        return True
    return False if said.lower() in ("", "n", "no") else said


def _post(address: str, request: Request) -> object:
    """Post the request; the answer may say `{"approved": true}`, with an `amount` if it likes. One that says nothing is given elsewhere."""
    import urllib.request  # only whoever has a webhook needs it

    body, headers = as_json(request).encode(), {"content-type": "application/json"}
    asking = urllib.request.Request(address, body, headers, method="POST")  # noqa: S310 - `parse_action` takes http and https only
    with urllib.request.urlopen(asking, timeout=_TIMEOUT_S) as answer:  # noqa: S310
        text = answer.read(_MOST_READ)
    try:
        said = json.loads(text)
    except ValueError:
        return None
    if not isinstance(said, dict) or not isinstance(said.get("approved"), bool):
        return None
    return said.get("amount", True) if said["approved"] else False
