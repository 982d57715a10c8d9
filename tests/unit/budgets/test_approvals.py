"""Requests for approval, their answers, and what a grant is worth."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aifinops.budgets import approvers
from aifinops.budgets.approvals import Approvals, Denied, Grant, Key, Request, amount_of, shown
from aifinops.budgets.stores.base import Notes, Put
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.errors import ConfigurationError, reraise_failures
from aifinops.testing.clock import FakeClock

DOLLAR = 10**9
WANTED = Request("", "search", "search", 0, "USD", 2 * DOLLAR, DOLLAR, DOLLAR, {"model": "gpt-5", "team": "search"})


class Desk(Approvals):
    """Approvals with a clock and a store of their own."""

    def __init__(self, key: Key | None = None) -> None:
        self.time = FakeClock(datetime(2026, 11, 30, 12, tzinfo=UTC))
        self.store = MemoryStore()
        super().__init__(self.time, key)

    def ask(self, wanted: Request = WANTED, **other: Any) -> Grant | Denied | Request:
        return self.answer(self.store, replace(wanted, **other))

    def waiting(self) -> Request:
        (request,) = self.requests(self.store)
        return request

    def notes(self, prefix: str = "approvals/") -> dict[str, str]:
        return dict(Notes(prefix, self.time.time_ns()).execute(self.store))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_request_waits_and_is_asked_once(desk: Desk) -> None:
    """Whoever wants the same waits for the same answer; who wants more, or is another, asks for himself."""
    told: list[Request] = []
    first = desk.answer(desk.store, WANTED, told.append)
    assert isinstance(first, Request)
    assert told == [first]
    assert desk.answer(desk.store, WANTED, told.append) == first
    assert desk.answer(desk.store, replace(WANTED, amount=DOLLAR), told.append) == first
    assert len(told) == 1
    for other in (
        {"amount": 3 * DOLLAR},
        {"about": {"model": "gpt-5"}},
        {"unit": "tokens"},
        {"key": "x"},
        {"window": 5},
    ):
        assert desk.ask(**other) != first
    assert len(desk.requests(desk.store)) == 6


def test_a_grant_is_used_once(desk: Desk) -> None:
    """The first who asks gets it, the next one has to ask anew."""
    desk.ask()
    granted = desk.grant(desk.store, desk.waiting().id, approver="ann")
    assert desk.requests(desk.store) == ()
    assert desk.ask() == granted
    assert isinstance(desk.ask(), Request)


def test_of_many_threads_one_gets_the_grant(desk: Desk) -> None:
    """It is taken in one step."""
    desk.ask()
    desk.grant(desk.store, desk.waiting().id, approver="ann")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(desk.ask())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(answer, Grant) for answer in found) == 1


@pytest.mark.parametrize(
    "other",
    [{"amount": 2 * DOLLAR + 1}, {"unit": "EUR"}, {"key": "other"}, {"window": 7}],
    ids=lambda other: next(iter(other)),
)
def test_a_grant_is_for_what_it_says_and_nothing_else(desk: Desk, other: dict[str, Any]) -> None:
    """Another budget, window, unit or a larger call cannot use it."""
    desk.ask()
    desk.grant(desk.store, desk.waiting().id, approver="ann")
    assert isinstance(desk.ask(**other), Request)
    assert isinstance(desk.ask(), Grant)


def test_a_grant_may_be_for_more_and_for_a_time(desk: Desk) -> None:
    """Up to its amount any call of the budget may use it, until its time is over."""
    desk.ask()
    desk.grant(desk.store, desk.waiting().id, approver="ann", amount=5 * DOLLAR, seconds=60)
    desk.time.advance(59)
    assert isinstance(desk.ask(amount=4 * DOLLAR, about={"model": "other"}), Grant)
    desk.ask()
    desk.grant(desk.store, desk.waiting().id, approver="ann", seconds=60)
    desk.time.advance(61)
    assert isinstance(desk.ask(), Request)


def test_a_denial_holds_for_calls_like_it(desk: Desk) -> None:
    """Nobody is asked the same again until the request would have expired; less may still be asked for."""
    desk.ask()
    request = desk.deny(desk.store, desk.waiting().id, approver="bob")
    for amount in (2 * DOLLAR, 3 * DOLLAR):
        denied = desk.ask(amount=amount)
        assert isinstance(denied, Denied)
        assert (denied.request, denied.approver) == (request, "bob")
    assert isinstance(desk.ask(amount=DOLLAR), Request)
    desk.time.advance(3601)
    assert isinstance(desk.ask(), Request)


@pytest.mark.parametrize(
    "change", [{"amount": 9 * DOLLAR}, {"expires": 2**62}, {"approver": "root"}, {"nonce": "0" * 32}, {"signature": ""}, {"signature": "\xe9"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_whoever_only_writes_to_the_store_allows_nothing(desk: Desk, change: dict[str, Any]) -> None:
    """A grant that was changed, or never signed, is none."""
    desk.ask()
    granted = desk.grant(desk.store, desk.waiting().id, approver="ann")
    forged = replace(granted, **change)
    Put(f"approvals/grant/{granted.id}", json.dumps(asdict(forged)), desk.time.time_ns()).execute(desk.store)
    assert isinstance(desk.ask(), Request)


def test_a_grant_of_another_key_is_none(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Who signs has to have the key of who asks, which is told once where it is not so."""
    desk.ask()
    stranger = Approvals(desk.time, Key())
    stranger.grant(desk.store, desk.waiting().id, approver="eve")
    for _ in range(3):
        assert isinstance(desk.ask(), Request)
    assert [record.getMessage().partition(" is ")[2] for record in caplog.records] == [
        "not signed with the key of this process; it is of no use"
    ]


def test_a_grant_that_is_put_back_is_used_up_all_the_same(desk: Desk) -> None:
    """Whoever kept a copy of the note cannot use it a second time."""
    desk.ask()
    granted = desk.grant(desk.store, desk.waiting().id, approver="ann")
    note = desk.notes("approvals/grant/")[f"approvals/grant/{granted.id}"]
    assert desk.ask() == granted
    Put(f"approvals/grant/{granted.id}", note, desk.time.time_ns()).execute(desk.store)
    assert isinstance(desk.ask(), Request)


def test_a_call_that_was_not_made_gives_its_grant_back(desk: Desk) -> None:
    """Another budget had no room: the grant is there for the next try."""
    desk.ask()
    granted = desk.grant(desk.store, desk.waiting().id, approver="ann")
    assert desk.ask() == granted
    desk.give_back(desk.store, granted)
    assert desk.ask() == granted


@pytest.mark.parametrize(
    "note", ["", "null", "[]", "{}", '{"id": 5}', json.dumps({**asdict(WANTED), "amount": "2"}), json.dumps({"request": {}, "approver": ""})]
)  # fmt: skip
def test_notes_that_are_none_are_passed_over(desk: Desk, note: str) -> None:
    """What somebody else has left under our names hurts nobody."""
    for kind in ("request", "grant", "denied"):
        Put(f"approvals/{kind}/x", note, desk.time.time_ns()).execute(desk.store)
    assert isinstance(desk.ask(), Request)
    assert len(desk.requests(desk.store)) == 1


def test_an_answer_to_no_request_says_what_there_is(desk: Desk) -> None:
    """The message has the ids that wait."""
    desk.ask()
    id = desk.waiting().id
    for answer in (desk.grant, desk.deny):
        for wrong in ("", "nothing"):
            with pytest.raises(ConfigurationError, match=f"there is no request '{wrong}' .* there are: {id}"):
                answer(desk.store, wrong, approver="ann")


# --- the key -------------------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    """Mode 0600, in a folder of its owner, and the same for whoever reads it next."""
    path = tmp_path / "folder" / "approvals.key"
    key = Key(path).read()
    assert len(key) == 32
    assert Key(path).read() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["approvals.key"]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The message says what to type."""
    path = tmp_path / "approvals.key"
    Key(path).read()
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        Key(path).read()


@pytest.mark.parametrize("text", ["", "no key", "00" * 31])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    """Also one that is too short."""
    path = tmp_path / "approvals.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is no key"):
        Key(path).read()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system has no such flag")
def test_a_key_behind_a_link_is_refused(tmp_path: Path) -> None:
    """Somebody may have put it there."""
    Key(tmp_path / "real").read()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Key(tmp_path / "link").read()


def pair(folder: Path) -> tuple[Path, Path]:
    """The files of an Ed25519 key: private, public."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key, pem = ed25519.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    private, public = folder / "private.pem", folder / "public.pem"
    whole = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(pem, *whole))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    public.chmod(0o644)
    return private, public


def test_a_program_with_the_public_key_can_allow_itself_nothing(tmp_path: Path) -> None:
    """It can tell what the private one has signed, and nothing else."""
    private, public = pair(tmp_path)
    desk = Desk(Key(public))
    desk.ask()
    id = desk.waiting().id
    with pytest.raises(ConfigurationError, match="is a public key, which signs nothing; use the private one"):
        desk.grant(desk.store, id, approver="me")
    for stranger in (Key(), Key(tmp_path / "other.key")):
        Approvals(desk.time, stranger).grant(desk.store, id, approver="eve")
        assert isinstance(desk.ask(), Request)
        id = desk.waiting().id
    Approvals(desk.time, Key(private)).grant(desk.store, id, approver="ann")
    granted = desk.ask()
    assert isinstance(granted, Grant)
    assert granted.is_signed(Key(private))
    assert not replace(granted, amount=granted.amount + 1).is_signed(Key(public))


def test_a_public_key_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """They would put theirs in its place; whoever likes may read it."""
    _, public = pair(tmp_path)
    public.chmod(0o666)
    with pytest.raises(ConfigurationError, match=f"may be written by others: chmod 644 {public}"):
        Key(public).read()


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    """And one that is damaged."""
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    private, _ = pair(tmp_path)
    whole = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for content in (rsa.generate_private_key(65537, 2048).private_bytes(*whole), private.read_bytes()[:60]):
        private.write_bytes(content)
        with pytest.raises(ConfigurationError, match="is no key"):
            Key(private).read()


# --- amounts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("$2", "USD", 2 * DOLLAR),
        ("2", "USD", 2 * DOLLAR),
        (2, "USD", 2 * DOLLAR),
        ("1.5k tokens", "tokens", 1500 * 10**6),
    ],
)
def test_amounts(text: object, unit: str, amount: int) -> None:
    """A number is of the unit of the request."""
    assert amount_of(text, unit) == amount


@pytest.mark.parametrize("text", ["2 tokens", "much", "", "-1", None, ["$1", "5 tokens"]])
def test_amounts_that_are_none(text: object) -> None:
    """Of another unit, or no number at all."""
    with pytest.raises(ConfigurationError, match=r"amount .* write one such as"):
        amount_of(text, "USD")


def test_requests_are_told_in_words() -> None:
    """What is wanted, of which budget, by whom."""
    assert replace(WANTED, id="a1").as_text() == (
        "a1: up to $2.00 more of budget 'search' ($1.00 of $1.00 spent) for model=gpt-5, team=search"
    )
    assert shown("tokens", 1500 * 10**6) == "1500 tokens"


# --- who is asked -----------------------------------------------------------------------------------------------------------


def consulted(desk: Desk, who: Any) -> None:
    """Ask, and wait for what the approver says."""
    done = threading.Event()
    approver = approvers.approver_of(who)
    assert approver is not None
    desk.answer(desk.store, WANTED, lambda request: approver.asked(desk, desk.store, request, done.set))
    assert done.wait(10)


@pytest.mark.parametrize(
    ("said", "kind"), [(True, Grant), (False, Denied), (None, Request), ("$3", Grant), (1, Request)], ids=str
)
def test_a_function_answers(desk: Desk, said: object, kind: type) -> None:
    """True, an amount, False, or nothing yet; an amount that is too small is of no use to the call."""
    consulted(desk, lambda request: said if request.amount == 2 * DOLLAR else None)
    assert isinstance(desk.ask(), kind)


def test_a_function_that_fails_has_not_answered(desk: Desk) -> None:
    """The request stays open for somebody else."""
    reraise_failures(False)

    def failing(_: Request) -> bool:
        raise RuntimeError("no")

    consulted(desk, failing)
    assert isinstance(desk.ask(), Request)


def test_a_folder_answers(desk: Desk, tmp_path: Path) -> None:
    """A file beside the request is the answer to it."""
    folder = tmp_path / "asked"
    approver = approvers.approver_of(f"file:{folder}")
    assert approver is not None
    for word, text, kind in (("grant", "", Grant), ("grant", "$5\n", Grant), ("deny", "", Denied)):
        desk.answer(desk.store, WANTED, lambda request: approver.asked(desk, desk.store, request, lambda: None))
        request = desk.waiting()
        told = json.loads((folder / f"{request.id}.json").read_text())
        assert (told["id"], told["amount"], told["about"]) == (request.id, "$2.00", dict(WANTED.about))
        assert stat.S_IMODE((folder / f"{request.id}.json").stat().st_mode) == 0o600
        approver.look(desk, desk.store, request)
        assert desk.ask() == request
        (folder / f"{request.id}.{word}").write_text(text)
        approver.look(desk, desk.store, request)
        assert isinstance(desk.ask(), kind)
        assert not (folder / f"{request.id}.json").exists()


class Terminal:
    """A terminal at which somebody types."""

    def __init__(self, typed: str, *, there: bool = True) -> None:
        self.typed, self.there, self.shown = typed, there, ""

    def isatty(self) -> bool:
        return self.there

    def readline(self) -> str:
        return self.typed + "\n"

    def write(self, text: str) -> None:
        self.shown += text

    def flush(self) -> None:
        """Nothing waits."""


@pytest.mark.parametrize(
    ("typed", "kind"),
    [("y", Grant), ("YES", Grant), ("$4", Grant), ("n", Denied), ("", Denied)],
    ids=lambda value: str(value),
)
def test_somebody_at_the_terminal_answers(desk: Desk, monkeypatch: pytest.MonkeyPatch, typed: str, kind: type) -> None:
    """He is told what is wanted, and Enter is no."""
    terminal = Terminal(typed)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    consulted(desk, "console")
    assert "up to $2.00 more of budget 'search'" in terminal.shown
    assert isinstance(desk.ask(), kind)


def test_nobody_is_asked_where_there_is_no_terminal(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from a pipe, which somebody may need."""
    terminal = Terminal("y", there=False)
    monkeypatch.setattr("sys.stdin", terminal)
    consulted(desk, "console")
    assert isinstance(desk.ask(), Request)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"approved": True}, Grant), ({"approved": True, "amount": "$3"}, Grant), ({"approved": False}, Denied),
        ({"accepted": True}, Request), ([], Request), (("text/plain", b"ok"), Request), ({"approved": "yes"}, Request),
    ],
    ids=str,
)  # fmt: skip
def test_an_address_answers(desk: Desk, said: Any, kind: type) -> None:
    """The request is posted without anything that was said in the call; an answer that says nothing leaves it open."""
    from aifinops.testing.wire import Wire

    with Wire() as wire:
        wire.answers["POST /approve"] = (
            said if isinstance(said, tuple) else ("application/json", json.dumps(said).encode())
        )
        consulted(desk, f"{wire.url}/approve")
        ((_, body),) = wire.asked
    told = json.loads(body)
    assert set(told) == {"id", "budget", "unit", "amount", "limit", "spent", "about", "created", "expires"}
    assert isinstance(desk.ask(), kind)


def test_an_address_that_does_not_answer_leaves_the_request_open(desk: Desk) -> None:
    """The failure is counted, and the call waits for somebody else."""
    reraise_failures(False)
    consulted(desk, "http://127.0.0.1:9/approve")
    assert isinstance(desk.ask(), Request)
