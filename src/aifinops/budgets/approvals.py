"""Somebody is asked whether a call may go above a limit: requests, their answers, and what an approval is worth.

A request is a note in the store of the budget; so is its answer, which may be given in another process. A grant says what is allowed, to
whom, up to what amount and until when, and is signed with a key that is not in the store: whoever can only write there can allow nothing.
It is used once, by whichever process is first to take it. A process that may read the key could sign for itself, so an approval keeps
accidents from happening; it is no defence against the code that it approves.

    approvals/request/<id>   what is wanted        approvals/grant/<id>    what was allowed
    approvals/denied/<id>    what was not          approvals/used/<nonce>  grants that are used up, until they would have expired
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from aifinops.budgets.audit import Audit
from aifinops.budgets.budget import parse_limit, to_units
from aifinops.budgets.stores.base import Notes, Put, Store, Take
from aifinops.clock import Clock, to_datetime
from aifinops.errors import ConfigurationError, swallow
from aifinops.money import format_money

__all__ = ["Approvals", "Grant", "Key", "Request", "amount_of"]

logger = logging.getLogger("aifinops.budgets")

REQUEST_S, GRANT_S = 3600, 3600
"""How long a request waits for its answer, and a grant for its use, seconds."""

_NS = 1_000_000_000
_REQUEST, _GRANT, _DENIED, _USED = (f"approvals/{what}/" for what in ("request", "grant", "denied", "used"))
_MOST_TOLD = 256


@dataclass(frozen=True, slots=True)
class Request:
    """A call wants more than a budget has left.

    Attributes:
        id: by which it is answered. budget: name or description; key: of its balances. window: start of it, nanoseconds since the epoch, 0 for none.
        unit: currency code or meter. amount: what the call may cost. limit, spent: of the budget; integers as in the store.
        about: model, operation and tags of the call; never what is said in it. created, expires: nanoseconds since the epoch.
    """

    id: str
    budget: str
    key: str
    window: int
    unit: str
    amount: int
    limit: int
    spent: int
    about: Mapping[str, str] = field(default_factory=dict)
    created: int = 0
    expires: int = 0

    def __post_init__(self) -> None:
        _check(self, ("id", "budget", "key", "unit"), ("window", "amount", "limit", "spent", "created", "expires"))
        if not isinstance(self.about, Mapping):
            raise TypeError("about")

    def covers(self, other: Request) -> bool:
        """Whether an answer to this one is an answer to another one."""
        same = (self.key, self.window, self.unit, dict(self.about)) == (
            other.key,
            other.window,
            other.unit,
            dict(other.about),
        )
        return same and self.amount >= other.amount

    def as_text(self) -> str:
        """For people: what is wanted, of which budget, by whom."""
        wanted, spent, limit = (shown(self.unit, amount) for amount in (self.amount, self.spent, self.limit))
        about = ", ".join(f"{key}={value}" for key, value in self.about.items() if value)
        return f"{self.id}: up to {wanted} more of budget {self.budget!r} ({spent} of {limit} spent) for {about or 'a call'}"


@dataclass(frozen=True, slots=True)
class Grant:
    """One call of a budget may go above its limit.

    Attributes:
        id: of the request. key, window, unit: as there. amount: the most that the call may cost. expires: nanoseconds since the epoch.
        nonce: of this grant alone. approver: who said so. signature: of all that.
    """

    id: str
    key: str
    window: int
    unit: str
    amount: int
    expires: int
    nonce: str
    approver: str
    signature: str = ""

    def __post_init__(self) -> None:
        _check(self, ("id", "key", "unit", "nonce", "approver", "signature"), ("window", "amount", "expires"))

    def signed(self, key: Key) -> Grant:
        """The same with its signature."""
        return replace(self, signature=key.sign(self._said()))

    def is_signed(self, key: Key) -> bool:
        """Whether the signature is of this key and of what is said here."""
        return key.verify(self._said(), self.signature)

    def _said(self) -> bytes:
        said = [self.id, self.key, self.window, self.unit, self.amount, self.expires, self.nonce, self.approver]
        return b"aifinops grant 1\n" + json.dumps(said).encode()

    def allows(self, wanted: Request, now: int) -> bool:
        """Whether it is for a call like this one."""
        same = (self.key, self.window, self.unit) == (wanted.key, wanted.window, wanted.unit)
        return same and self.amount >= wanted.amount and now < self.expires


@dataclass(frozen=True, slots=True)
class Denied:
    """Somebody said no.

    Attributes:
        request: to what. approver: who.
    """

    request: Request
    approver: str


class Key:
    """What grants are signed with.

    In its file are 32 bytes or more in hexadecimal digits, for HMAC-SHA256: it is made, with mode 0600, when there is none. Or an Ed25519 key
    in PEM: where a program has the public one only, whoever answers has the private one, and the program cannot allow itself anything.

    Args:
        path: the file; None for a key that only this process has.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self._own: bytes | None = None

    def sign(self, said: bytes) -> str:
        """The signature of what is said.

        Raises:
            ConfigurationError: when the file cannot be read or made, is no key, is open to others, or is the public key only.
        """
        key = self.read()
        if isinstance(key, bytes):
            return hmac.new(key, said, hashlib.sha256).hexdigest()
        if not hasattr(key, "sign"):
            raise ConfigurationError(
                f"approval key {self.path} is a public key, which signs nothing; use the private one"
            )
        signature: bytes = key.sign(said)
        return signature.hex()

    def verify(self, said: bytes, signature: str) -> bool:
        """Whether that is the signature of what is said.

        Raises:
            ConfigurationError: as `sign`.
        """
        key = self.read()
        if isinstance(key, bytes):
            made = hmac.new(key, said, hashlib.sha256).hexdigest()
            return hmac.compare_digest(signature.encode(), made.encode())
        public = key.public_key() if hasattr(key, "public_key") else key
        try:
            public.verify(bytes.fromhex(signature), said)
        except Exception:  # of a class that only whoever has the library could name
            return False
        return True

    def read(self) -> Any:
        """The key: bytes, or an Ed25519 key of `cryptography`.

        Raises:
            ConfigurationError: as `sign`.
        """
        if self.path is None:
            self._own = self._own or secrets.token_bytes(32)
            return self._own
        try:
            return self._read(self.path)
        except OSError as error:
            raise ConfigurationError(f"approval key {self.path} cannot be used: {error.strerror or error}") from error

    def _read(self, path: Path) -> Any:
        if not path.exists():
            self._make(path)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            mode, text = os.fstat(descriptor).st_mode, file.read(4096).strip()
        public = text.startswith(b"-----BEGIN PUBLIC KEY")
        if os.name == "posix" and mode & (0o022 if public else 0o077):
            what, right = ("written", 644) if public else ("read", 600)
            raise ConfigurationError(f"approval key {path} may be {what} by others: chmod {right} {path}")
        key = _pem(text, path, public=public) if text.startswith(b"-----") else _digits(text)
        if not key:
            raise ConfigurationError(
                f"approval key {path} is no key: 64 hexadecimal digits or more, or an Ed25519 key in PEM; move it away to have one made"
            )
        return key

    @staticmethod
    def _make(path: Path) -> None:
        """A whole file or none, and one of several processes that make it at once wins."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(beside, path)
        except FileExistsError:
            return
        finally:
            beside.unlink()


def _digits(text: bytes) -> bytes:
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return b""
    return key if len(key) >= 32 else b""


def _pem(text: bytes, path: Path, *, public: bool) -> Any:
    try:
        serialization = import_module("cryptography.hazmat.primitives.serialization")
    except ImportError:
        raise ConfigurationError(
            f"approval key {path} is in PEM, which needs a library: pip install 'aifinops[approvals]'"
        ) from None
    try:
        key = serialization.load_pem_public_key(text) if public else serialization.load_pem_private_key(text, None)
    except (TypeError, ValueError):  # the one for a key with a password
        return None
    return key if "Ed25519" in type(key).__name__ else None


class Approvals:
    """Requests and answers in stores.

    Args:
        clock: for what expires. key: that grants are signed with. audit_of: finds the log that belongs to a store.
    """

    def __init__(self, clock: Clock, key: Key | None = None, audit_of: Callable[[Store], Audit] | None = None) -> None:
        self.clock = clock
        self._audit_of = audit_of
        self.key = key or Key()
        self._strange = ""

    # --- whoever wants something -------------------------------------------------------------------------------------------

    def answer(
        self, store: Store, wanted: Request, asked: Callable[[Request], object] = lambda _: None
    ) -> Grant | Denied | Request:
        """The answer to a call that wants more: a grant, which is then used up; a denial; or the request that waits for one.

        Args:
            wanted: without `id`. asked: told of the request where there was none yet.

        Raises:
            StoreError: when the store fails. ConfigurationError: when the key cannot be used.
        """
        now = self.clock.time_ns()
        notes = Notes("approvals/", now).execute(store)
        for text in _under(_GRANT, notes):
            grant = _grant(text)
            if (
                grant is not None
                and grant.allows(wanted, now)
                and self._is_signed(grant)
                and self._use(store, grant, now)
            ):
                self._write(store, "approval_used", wanted.budget, grant, by=grant.approver)
                return grant
        for text in _under(_DENIED, notes):
            denied = _denied(text)
            if denied is not None and _same_or_less(denied.request, wanted):
                return denied
        for text in _under(_REQUEST, notes):
            request = _request(text)
            if request is not None and request.covers(wanted):
                return request
        return self._new(store, wanted, now, asked)

    def _is_signed(self, grant: Grant) -> bool:
        if grant.is_signed(self.key):
            return True
        if grant.nonce != self._strange:  # told once, however often it is asked for
            self._strange = grant.nonce
            place = "the key of this process" if self.key.path is None else self.key.path
            logger.warning("aifinops: the grant of request %s is not signed with %s; it is of no use", grant.id, place)
        return False

    def _use(self, store: Store, grant: Grant, now: int) -> bool:
        """True for one caller only, however often the note comes back."""
        if Take(_GRANT + grant.id, now).execute(store) is None:
            return False
        return Put(_USED + grant.nonce, grant.id, now, grant.expires, new=True).execute(store)

    def give_back(self, store: Store, grant: Grant) -> None:
        """The call that took a grant was not made after all."""
        now = self.clock.time_ns()
        Take(_USED + grant.nonce, now).execute(store)
        Put(_GRANT + grant.id, _text(grant), now, grant.expires).execute(store)

    def _new(self, store: Store, wanted: Request, now: int, asked: Callable[[Request], object]) -> Request:
        self.key.read()  # what is wrong with it shows before anybody is asked
        expires = now + REQUEST_S * _NS
        while True:
            request = replace(wanted, id=secrets.token_hex(4), created=now, expires=expires)
            if Put(_REQUEST + request.id, _text(request), now, expires, new=True).execute(store):
                self._write(store, "approval_asked", request.budget, request)
                asked(request)
                return request

    # --- whoever answers ---------------------------------------------------------------------------------------------------

    def requests(self, store: Store) -> tuple[Request, ...]:
        """What waits for an answer, oldest first.

        Raises:
            StoreError: when the store fails.
        """
        found = map(_request, _under(_REQUEST, Notes(_REQUEST, self.clock.time_ns()).execute(store)))
        return tuple(sorted(filter(None, found), key=lambda request: request.created))

    def grant(
        self, store: Store, id: str, *, approver: str, amount: int | None = None, seconds: float = GRANT_S
    ) -> Grant:
        """Allow one call what a request wants.

        Args:
            id: of the request. approver: who says so. amount: the most that the call may cost, integers as in the store; default what is wanted.
            seconds: for how long.

        Raises:
            ConfigurationError: when there is no such request, or the key cannot be used. StoreError: when the store fails.
        """
        now = self.clock.time_ns()
        self.key.sign(b"")  # whoever cannot sign takes no request away
        request = self._take(store, id, now)
        grant = Grant(
            request.id, request.key, request.window, request.unit, request.amount if amount is None else amount, now + int(seconds * _NS),
            secrets.token_hex(16), approver[:_MOST_TOLD],
        ).signed(self.key)  # fmt: skip
        Put(_GRANT + request.id, _text(grant), now, grant.expires).execute(store)
        self._write(store, "approval_granted", request.budget, grant, by=grant.approver)
        return grant

    def deny(self, store: Store, id: str, *, approver: str) -> Request:
        """Say no to a request, until it would have expired.

        Raises:
            ConfigurationError: when there is no such request. StoreError: when the store fails.
        """
        now = self.clock.time_ns()
        request = self._take(store, id, now)
        said = json.dumps({"request": asdict(request), "approver": approver[:_MOST_TOLD]})
        Put(_DENIED + request.id, said, now, request.expires).execute(store)
        self._write(store, "approval_denied", request.budget, request, by=approver[:_MOST_TOLD])
        return request

    def _write(self, store: Store, kind: str, budget: str, what: Request | Grant, **more: object) -> None:
        """Into the log; what was asked or answered stands, written down or not."""
        try:
            if self._audit_of is not None:
                amount, until = to_units(what.unit, what.amount), to_datetime(what.expires).isoformat()
                log = self._audit_of(store)
                log.add(kind, budget=budget, unit=what.unit, amount=amount, request=what.id, until=until, **more)
        except Exception as failure:
            swallow("budgets.approval_log", failure)

    def _take(self, store: Store, id: str, now: int) -> Request:
        text = Take(_REQUEST + id, now).execute(store) if id else None
        request = None if text is None else _request(text)
        if request is None:
            waiting = ", ".join(request.id for request in self.requests(store)) or "none"
            raise ConfigurationError(f"there is no request {id!r} that waits for an answer; there are: {waiting}")
        return request


def _same_or_less(denied: Request, wanted: Request) -> bool:
    return replace(denied, amount=wanted.amount).covers(wanted) and denied.amount <= wanted.amount


def shown(unit: str, amount: int) -> str:
    """An amount as people write it."""
    quantity = to_units(unit, amount)
    return format_money(quantity, unit) if len(unit) == 3 and unit.isupper() else f"{quantity.normalize():f} {unit}"


def amount_of(text: object, unit: str) -> int:
    """`"$2"`, `"500 tokens"` or a number of the unit -> integers as in the store.

    Raises:
        ConfigurationError: for what is no amount of this unit.
    """
    try:
        (limit,) = parse_limit(
            {unit: text} if not isinstance(text, str) or text.replace(".", "", 1).isdigit() else text
        )
    except ValueError:
        raise ConfigurationError(
            f"amount {text!r} is no single amount; write one such as {shown(unit, 10**9)!r}"
        ) from None
    if limit.unit != unit:
        raise ConfigurationError(
            f"amount {text!r} is in {limit.unit}, and the request is in {unit}; write one such as {shown(unit, 10**9)!r}"
        )
    return limit.amount


# --- notes ---------------------------------------------------------------------------------------------------------------


def _check(said: Any, texts: Iterable[str], numbers: Iterable[str]) -> None:
    """What comes out of a store was perhaps written by somebody else."""
    for kind, names in ((str, texts), (int, numbers)):
        for name in names:
            if type(getattr(said, name)) is not kind:
                raise TypeError(name)


def _under(prefix: str, notes: Iterable[tuple[str, str]]) -> Iterable[str]:
    return (text for key, text in notes if key.startswith(prefix))


def _text(said: Request | Grant) -> str:
    return json.dumps(asdict(said))


def _read(text: str, make: Callable[..., Any]) -> Any:
    """What a note says; None for one that somebody else has written."""
    try:
        return make(**json.loads(text))
    except (TypeError, ValueError):
        return None


def _request(text: str) -> Request | None:
    found: Request | None = _read(text, Request)
    return found


def _grant(text: str) -> Grant | None:
    found: Grant | None = _read(text, Grant)
    return found


def _denied(text: str) -> Denied | None:
    return _read(text, lambda request, approver: Denied(Request(**request), approver))  # type: ignore[no-any-return]
