"""Balances on a Valkey or Redis server, for all processes of all machines that reach it.

Every operation is one call of `redis.lua`, kept by the server as a function, or as a script where the user may not load functions.
What is said to the server is worked out in one place, `_converse`, which threads and tasks walk through alike.

Leases run on the server's clock: `ttl` counts from when the operation arrives there, and a sweep forfeits by the time of the server,
so that clients whose clocks differ agree. What depends on a moment that the caller named, such as the end of a note, is decided by
the caller's `now`. Of windows and notes that are over, the server keeps what is left of them by its own clock, and a while longer.

A server can lose what it had confirmed: without a disk, from an old copy, in a failover. Each client therefore counts the operations
that were confirmed to it, and the server counts them for each client, beside the balances: it cannot lose these and keep that. A
count that is too low is told once, as `StoreReset`, before anything is done on top of it.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeVar, cast

from aifinops.budgets.policy import Balance, decide
from aifinops.budgets.stores.accounts import APPLIED, UNCHANGED, UNKNOWN, Account
from aifinops.budgets.stores.base import (
    Accounts,
    Adjust,
    Capabilities,
    Crossing,
    Draw,
    Extend,
    Forget,
    Journal,
    MarkSent,
    Node,
    Notes,
    Operation,
    Outcome,
    Put,
    Read,
    Release,
    Reserve,
    Settle,
    State,
    Sweep,
    Swept,
    Take,
    other_amounts,
    split_settings,
)
from aifinops.budgets.stores.redis_link import Command, Link, Refused, Unreachable
from aifinops.errors import ConfigurationError, StoreError, StoreReset

__all__ = ["TIMEOUT_S", "RedisStore", "open_url"]

R = TypeVar("R")
Talk = Generator[Command, Any, R]

logger = logging.getLogger("aifinops.budgets")

TIMEOUT_S = 0.1
"""How long an operation waits for the server, seconds; it is tried a second time, so twice that is the most."""

_MS = 1_000_000
_TTL_MOST_MS = 10**13  # 300 years; a moment in milliseconds then has 14 digits, which Lua writes out in full
_DAY_S = 86_400
_KNOWN_MOST = 10_000
_MANY = 2**63
_PREFIX = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_STATES: Mapping[str, State | None] = {"none": None, **{state.value: state for state in State}}
_KEYS = ("accounts", "nodes", "reservations", "due", "entries", "notes")
_FIXES = 4
_CONFIG = ("maxmemory-policy", "appendonly", "save")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def open_url(url: str) -> RedisStore:
    """A store from one text.

    Args:
        url: as `RedisStore` takes it. Behind a `?` may stand `prefix`, `timeout_s` and `volatile_ok=true`, beside what the driver takes.

    Raises:
        ConfigurationError: as `RedisStore`.
    """
    known: dict[str, Callable[[str], Any]] = {
        "prefix": str,
        "timeout_s": float,
        "volatile_ok": lambda text: text == "true",
    }
    address, ours = split_settings(url, known, "on a server")
    return RedisStore(address, **ours)


class RedisStore:
    """Balances on a server. Nothing is sent before the first operation, which also looks at how the server is set up.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `valkey://` or `valkeys://`.
        prefix: begins the names of all keys, in braces, so that a cluster keeps them together.
        timeout_s: how long to wait for the server, seconds; an operation may wait twice.
        volatile_ok: True to accept a server that may drop keys or keeps nothing on disk: its limits may start anew at any time.

    Raises:
        ConfigurationError: when the URL or the prefix cannot be used, or redis-py is not installed.
    """

    capabilities = Capabilities(shared=True, durable=True, io="async")

    def __init__(
        self, url: str, *, prefix: str = "aifinops", timeout_s: float = TIMEOUT_S, volatile_ok: bool = False
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"the prefix {prefix!r} of the budget store has other characters than letters, digits and . _ : - "
                'or is longer than 64; type prefix="aifinops"'
            )
        self._link = Link(url, timeout_s)
        self.where = self._link.where
        self._prefix = f"{{{prefix}}}:"
        self._keys = tuple(f"{self._prefix}{name}".encode() for name in _KEYS)
        self._checked = volatile_ok
        self._functions = True
        # Nodes as they are sent. Keyed by text, held by identity: budgets make theirs once a window.
        self._known: dict[str, _Told] = {}
        self.journal: Journal | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"RedisStore({self.where!r})"

    def run(self, operation: Operation[R]) -> R:
        """Execute one operation.

        Raises:
            StoreError: when the server cannot be reached in time or refuses, or the id is known with other amounts.
            ConfigurationError: when the server may drop keys or keeps nothing on disk.
        """
        talk = self._converse(operation)
        try:
            command = next(talk)
            while True:
                try:
                    answer = self._link.call(command)
                except (Unreachable, Refused) as error:
                    command = talk.throw(error)
                else:
                    command = talk.send(answer)
        except StopIteration as end:
            return cast("R", end.value)

    async def arun(self, operation: Operation[R]) -> R:
        """`run`, without blocking the event loop.

        Raises:
            StoreError, ConfigurationError: as `run`.
        """
        talk = self._converse(operation)
        try:
            command = next(talk)
            while True:
                try:
                    answer = await self._link.acall(command)
                except (Unreachable, Refused) as error:
                    command = talk.throw(error)
                else:
                    command = talk.send(answer)
        except StopIteration as end:
            return cast("R", end.value)

    def reset_after_fork(self) -> None:
        """In a forked child: new connections, and another client for the server. Reservations of the parent stay the parent's."""
        self._link.reset_after_fork()
        self._begin()
        if self.journal is not None:
            self.journal.forget()

    def close(self) -> None:
        """Close connections. A later operation opens them again."""
        self._link.close()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._tokens = itertools.count(1)
        self._earlier: list[bytes] = []
        self._era = _Era(self._new_client())

    def _new_client(self) -> bytes:
        """The key under which the server counts for us."""
        return f"{self._prefix}seen:{secrets.token_hex(8)}".encode()

    # --- what is said -----------------------------------------------------------------------------------------------------

    def _converse(self, operation: Operation[Any]) -> Talk[Any]:
        """Commands to send, one after the other; each gets its answer, or the error that came in its place."""
        if self._pid != os.getpid():
            self.reset_after_fork()
        line = _Line(self.where)
        if not self._checked:
            yield from self._check(line)
            self._checked = True
        if self.journal is not None and self._era.count and isinstance(operation, (Read, Accounts, Notes)):
            yield from self._exchange(line, _NOTHING)  # reading alone does not tell that something was lost
        if isinstance(operation, Read):
            return (yield from self._read(line, operation))
        if isinstance(operation, Accounts):
            return (yield from self._all(line, operation))
        if isinstance(operation, Notes):
            return (yield from self._list(line, operation))
        if isinstance(operation, Sweep):
            return (yield from self._sweep(line, operation))
        answer = yield from self._exchange(line, operation)
        outcome = _outcome(operation, answer)
        if self.journal is not None:
            self.journal.wrote(operation, outcome, answer.era, answer.era.client, answer.count)
        return outcome

    def _exchange(self, line: _Line, operation: Operation[Any]) -> Talk[_Answer]:
        """One call of the function, which is repeated as a whole when the answer does not come: the server knows it by its token."""
        nodes = list(map(self._told, getattr(operation, "nodes", ())))
        what, *more = _REQUESTS[type(operation)](operation, nodes)
        spec = what in _FILED
        rest = [part for node in nodes for part in (node.key, node.rule, node.also, node.spec if spec else b"")]
        rest += map(_bytes, more)
        token = next(self._tokens)
        while True:
            era = self._present_era()

            def arguments(era: _Era = era) -> Sequence[bytes]:
                # Also of a second try, which may meet another server: what others were told meanwhile counts.
                head = f"{what} {token} {era.count} {era.is_stale():d} {len(nodes)}"
                return (era.client, head.encode(), *rest)

            answer = _Answer((yield from self._call(line, arguments)), era)
            if answer.state != "lost":
                era.confirm(answer.count)
                return answer
            self._end_era(era, answer.count)

    def _present_era(self) -> _Era:
        era = self._era
        if era.is_over():
            # What a server counts for a client that it may have dropped is no measure: go on as another client.
            self._earlier.append(era.client)
            self._era = era = _Era(self._new_client())
        return era

    def _end_era(self, era: _Era, count: int) -> None:
        """The server knows of `count` operations only.

        Raises:
            StoreReset: to one of many who are told at the same time, or to each where there is a journal, which has to be put back before.
        """
        fresh = _Era(era.client, count)
        # One step: of many who are told at the same time, one tells.
        successor = era.__dict__.setdefault("successor", fresh)
        reset = StoreReset(
            f"budget store {self.where} has lost {era.count - count} or more of the operations that it had confirmed "
            "to this process: it began anew or from an old copy. Its balances are too low until they are posted again",
            # A copy that knows this client was made after all that it did as another one.
            survived={**dict.fromkeys(self._earlier, _MANY if count else 0), era.client: successor.began},
            era=era,
        )
        if self.journal is not None:
            self.journal.reset(reset)
        if self._era is era:
            self._era = successor
        if successor is fresh or self.journal is not None:
            raise reset

    def _call(self, line: _Line, arguments: Callable[[], Sequence[bytes]]) -> Talk[bytes]:
        name, function, script, digest = _code()
        count, evaluate = b"%d" % (len(self._keys) + 1), False
        for _ in range(_FIXES):
            functions = self._functions  # another thread may find out meanwhile
            how = (b"FCALL", name) if functions else (b"EVAL", script) if evaluate else (b"EVALSHA", digest)

            def command(how: tuple[bytes, bytes] = how) -> Command:
                return (*how, count, *self._keys, *arguments())

            try:
                return cast("bytes", (yield from line.ask(command)))
            except Refused as error:
                if functions and "function not found" in str(error).lower():
                    self._functions = yield from _load(line, function)
                elif functions and _forbidden(error):
                    self._functions = False
                elif error.kind == "NoScriptError" and not evaluate:
                    evaluate = True
                else:
                    raise line.failed(error) from error.__cause__
        raise StoreError(f"budget store {self.where}: the server keeps losing our functions and scripts")

    def _told(self, node: Node) -> _Told:
        found = self._known.get(node.key)
        if found is None or found.node is not node:
            if len(self._known) > _KNOWN_MOST:
                self._known.clear()
            found = self._known[node.key] = _Told(node)
        return found

    # --- looking at the server ----------------------------------------------------------------------------------------------

    def _check(self, line: _Line) -> Talk[None]:
        """A server that drops keys, or forgets them with its process, is no place for a limit."""
        found = dict.fromkeys(_CONFIG, "")
        for name in _CONFIG:
            try:
                pair = yield from line.ask((b"CONFIG", b"GET", name.encode()))
            except Refused as error:
                if not _forbidden(error):
                    raise line.failed(error) from error.__cause__
                logger.warning(
                    "budget store %s: the server does not say how it is set up (%s). See to it that maxmemory-policy is noeviction and "
                    "that it writes to disk, and allow CONFIG GET; or say volatile_ok=True to hear no more of it.",
                    self.where,
                    error,
                )
                return
            if len(pair) == 2:
                found[name] = pair[1].decode()
        policy, log, snapshots = found.values()
        if policy not in ("noeviction", ""):
            raise ConfigurationError(
                f"budget store {self.where}: with maxmemory-policy {policy} the server may drop a budget that is used up, and its limit "
                "starts anew. Type: CONFIG SET maxmemory-policy noeviction (and the same in its configuration file), use "
                "another server, or say volatile_ok=True if the limits may be lost"
            )
        if log == "no" and not snapshots:
            raise ConfigurationError(
                f"budget store {self.where}: the server keeps nothing on disk, so that every limit starts anew with it. "
                "Type: CONFIG SET appendonly yes (and the same in its configuration file), use another server, or say "
                "volatile_ok=True if the limits may be lost"
            )

    # --- reading ------------------------------------------------------------------------------------------------------------

    def _read(self, line: _Line, operation: Read) -> Talk[tuple[Balance, ...]]:
        keys = list(dict.fromkeys(key for node in operation.nodes for key in (node.key, *node.also)))
        texts = (yield from line.say(b"HMGET", self._keys[0], *map(_bytes, keys))) if keys else []
        found = {key: _account(text) for key, text in zip(keys, texts, strict=True) if text is not None}
        return tuple(_balance(found, node) for node in operation.nodes)

    def _all(self, line: _Line, operation: Accounts) -> Talk[tuple[tuple[Node, Balance], ...]]:
        # Nodes before figures: what is new in between is left out, and the figures are of one moment.
        specs = _pairs((yield from line.say(b"HGETALL", self._keys[1])))
        texts = _pairs((yield from line.say(b"HGETALL", self._keys[0])))
        found = {key: _account(text) for key, text in texts}
        nodes = sorted((_node(spec) for key, spec in specs if key in found), key=lambda node: node.key)
        return tuple((node, _balance(found, node)) for node in nodes if operation.budget in (None, node.budget))

    def _list(self, line: _Line, operation: Notes) -> Talk[tuple[tuple[str, str], ...]]:
        pairs = _pairs((yield from line.say(b"HGETALL", self._keys[5])))
        found = ((key, *_text(value).split(" ", 1)) for key, value in sorted(pairs) if key.startswith(operation.prefix))
        return tuple((key, value) for key, ends, value in found if ends == "0" or operation.now < int(ends))

    def _sweep(self, line: _Line, operation: Sweep) -> Talk[Swept]:
        ids: list[str] = []
        crossed: list[Crossing] = []
        more = True
        while more:  # in parts, between which others get their turn
            answer = yield from self._exchange(line, operation)
            ids += answer.more["swept"]
            crossed += [Crossing(_node(spec), int(mark), int(spent)) for spec, mark, spent in answer.more["crossed"]]
            more = answer.applied
        return Swept(tuple(sorted(ids)), tuple(crossed))


class _Era:
    """What was confirmed to this process, since it began or since the last loss.

    Attributes:
        client: the key under which the server counts. count: of operations that wrote. began: what it was at the beginning.
    """

    def __init__(self, client: bytes, count: int = 0) -> None:
        self.client = client
        self.count = self.began = count
        self._heard = time.monotonic()
        self._renewed = -float("inf")

    def confirm(self, count: int) -> None:
        """Take note of an answer."""
        self._heard = time.monotonic()
        if count > self.count:
            if self.is_stale():
                self._renewed = self._heard
            self.count = count  # of two threads the later may write the smaller one; the next answer puts it right

    def is_stale(self) -> bool:
        """Whether the server should keep its count for longer; it drops it after eight days."""
        return time.monotonic() - self._renewed > _DAY_S

    def is_over(self) -> bool:
        """After so long the server may have dropped it."""
        return time.monotonic() - self._heard > 6 * _DAY_S


class _Line:
    """Commands of one operation: of all of them together, one may be sent a second time."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._again = True

    def ask(self, command: Command | Callable[[], Command]) -> Talk[Any]:
        """Send a command, or what one makes at each try; `Refused` is the caller's to look at."""
        while True:
            try:
                return (yield command() if callable(command) else command)
            except Unreachable as error:
                if not self._again:
                    raise self.failed(error) from error.__cause__
                self._again = False

    def say(self, *command: bytes) -> Talk[Any]:
        """Send a command that the server has no reason to refuse."""
        try:
            return (yield from self.ask(command))
        except Refused as error:
            raise self.failed(error) from error.__cause__

    def failed(self, error: Exception) -> StoreError:
        """The error to raise in place of the driver's."""
        return StoreError(f"budget store {self._where}: {error}")


def _load(line: _Line, function: bytes) -> Talk[bool]:
    """Give the server our function; False where that is not allowed."""
    try:
        yield from line.ask((b"FUNCTION", b"LOAD", function))
    except Refused as error:
        if error.elsewhere or error.kind == "OutOfMemoryError":
            raise line.failed(error) from error.__cause__
        return "already exists" in str(error)  # another client was quicker
    return True


def _forbidden(error: Refused) -> bool:
    """The user may not, or the server is too old to know it."""
    return error.kind == "NoPermissionError" or "unknown command" in str(error).lower()


@cache
def _code() -> tuple[bytes, bytes, bytes, bytes]:
    """Name of the function, library with it, the same as a script, and its digest.

    The name tells what is in it, so that different versions of this package can use one server.
    """
    source = (files("aifinops.budgets.stores") / "redis.lua").read_bytes()
    name = b"aifinops_budgets_%b" % sha1(source, usedforsecurity=False).hexdigest()[:12].encode()
    function = b"#!lua name=%b\n%b\nredis.register_function('%b', run)\n" % (name, source, name)
    script = b"%b\nreturn run(KEYS, ARGV)\n" % source
    return name, function, script, sha1(script, usedforsecurity=False).hexdigest().encode()  # the protocol says SHA-1


# --- operations as they are sent ------------------------------------------------------------------------------------------


class _Told:
    """A node as the function is told of it.

    Attributes:
        node: the node. key: its key. rule: limit and marks. also: keys of what counts beside it. spec: what it says of itself.
        quoted: the key as JSON.
    """

    __slots__ = ("also", "key", "node", "quoted", "rule", "spec")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.key = _bytes(node.key)
        self.rule = " ".join(["-" if node.limit is None else str(node.limit), *map(str, node.marks)]).encode()
        self.also = _bytes(_encode(node.also)) if node.also else b""
        self.spec = _bytes(_encode(_described(node)))
        self.quoted = _encode(node.key)


class _Answer:
    """What the function answers: "state applied count more".

    Attributes:
        state: of the reservation. applied: whether anything was done, or is still to be done. count: of writes of this client. more: the rest.
        era: in which it was asked.
    """

    __slots__ = ("applied", "count", "era", "more", "state")

    def __init__(self, data: bytes, era: _Era) -> None:
        self.era = era
        self.state, applied, count, more = _text(data).split(" ", 3)
        self.applied = applied == "1"
        self.count = int(count)
        self.more: dict[str, Any] = json.loads(more) if more else {}


Tolds = Sequence[_Told]


def _reserve(operation: Reserve, nodes: Tolds) -> Sequence[str]:
    amounts, keeps = _list(operation.amounts), _keeps(operation.nodes, operation.now)
    return "reserve", operation.id, _keys(nodes), amounts, _ms(operation.ttl), keeps


def _settle(operation: Settle, nodes: Tolds) -> Sequence[str]:
    return "settle", operation.id, _keys(nodes), _list(operation.amounts)


def _extend(operation: Extend, nodes: Tolds) -> Sequence[str]:
    wanted = "-" if operation.amounts is None else _list(operation.amounts)
    return "extend", operation.id, _keys(nodes), _ms(operation.ttl), wanted


def _draw(operation: Draw, nodes: Tolds) -> Sequence[str]:
    amounts = map(_list, (operation.spent, operation.held, operation.least))
    return "draw", operation.id, _keys(nodes), _ms(operation.ttl), str(operation.step), *amounts


def _adjust(operation: Adjust, nodes: Tolds) -> Sequence[str]:
    keeps = _keeps(operation.nodes, operation.now)
    return "adjust", operation.id, _keys(nodes), _list(operation.amounts), keeps


def _put(operation: Put, nodes: Tolds) -> Sequence[str]:
    now, until = operation.now, operation.until
    return "put", operation.key, str(now), operation.value, str(until), _ms(max(0, until - now)), f"{operation.new:d}"


_REQUESTS: Mapping[type, Callable[[Any, Tolds], Sequence[str]]] = {
    Reserve: _reserve,
    MarkSent: lambda operation, nodes: ("mark_sent", operation.id),
    Settle: _settle,
    Release: lambda operation, nodes: ("release", operation.id, _keys(nodes)),
    Extend: _extend,
    Draw: _draw,
    Adjust: _adjust,
    Sweep: lambda operation, nodes: ("sweep",),
    Forget: lambda operation, nodes: ("forget",),
    Put: _put,
    Take: lambda operation, nodes: ("take", operation.key, str(operation.now)),
}
_FILED = frozenset({"reserve", "adjust"})
_NOTHING = MarkSent("")


def _outcome(operation: Any, answer: _Answer) -> Any:
    """What the function answered, as the operation promises it."""
    kind, more = type(operation), answer.more
    if kind is Forget:
        return None
    if kind is Put:
        return answer.applied
    if kind is Take:
        return more.get("text")
    state = _STATES[answer.state]
    if not more:
        return UNKNOWN if state is None else (APPLIED if answer.applied else UNCHANGED)[state]
    if "other" in more:
        raise other_amounts(operation.id, _split(more["other"]), getattr(operation, "amounts", None) or ())
    crossed = tuple(
        Crossing(operation.nodes[i - 1], int(mark), int(spent)) for i, mark, spent in more.get("crossed") or ()
    )
    decision = None
    if "figures" in more:
        balances = list(map(_refused_balance, operation.nodes, more["figures"]))
        decision = decide(balances, _asked(operation, more), operation.now)
    return Outcome(state, answer.applied, decision, crossed)


def _asked(operation: Any, more: Mapping[str, str]) -> Sequence[int]:
    """The amounts for which there was no room."""
    if isinstance(operation, Draw):
        return operation.held
    amounts: Sequence[int] = operation.amounts
    if isinstance(operation, Extend):
        return [new - old for new, old in zip(amounts, _split(more["held"]), strict=True)]
    return amounts


def _keys(nodes: Tolds) -> str:
    return f"[{','.join([node.quoted for node in nodes])}]"


def _list(amounts: Iterable[int | None]) -> str:
    return ",".join(["-" if amount is None else str(amount) for amount in amounts])


def _split(amounts: str) -> list[int]:
    return list(map(int, amounts.split(","))) if amounts else []


def _ms(ns: int) -> str:
    return str(min(-(-ns // _MS), _TTL_MOST_MS))


def _keeps(nodes: Iterable[Node], now: int) -> str:
    """How long from now each account is needed, milliseconds; 0 for ever."""
    ends = [node.kept or node.until for node in nodes]
    return ",".join([_ms(max(1, end - now)) if end else "0" for end in ends])


def _described(node: Node) -> dict[str, Any]:
    return {
        "key": node.key,
        "budget": node.budget,
        "window": str(node.window),
        "unit": node.unit,
        "limit": "" if node.limit is None else str(node.limit),
        "until": str(node.until),
        "marks": list(map(str, node.marks)),
        "label": node.label,
        "also": node.also,
        "kept": str(node.kept or node.until),
    }


def _node(spec: bytes | str) -> Node:
    one = json.loads(spec)
    limit = int(one["limit"]) if one["limit"] else None
    marks = tuple(map(int, one["marks"]))
    window, until, kept = int(one["window"]), int(one["until"]), int(one["kept"])
    return Node(one["budget"], window, one["unit"], limit, until, marks, one["label"], tuple(one["also"]), kept)


def _account(text: bytes | str) -> Account:
    return Account(*map(int, text.split()[1:]))


def _balance(found: Mapping[str, Account], node: Node) -> Balance:
    account = found.get(node.key) or Account()
    account.beside = [found[key] for key in node.also if key in found]
    return account.balance(node)


def _refused_balance(node: Node, texts: Sequence[str]) -> Balance:
    account, *account_beside = map(_account, texts)
    account.beside = account_beside
    return account.balance(node)


def _pairs(flat: Sequence[bytes]) -> list[tuple[str, bytes]]:
    return [(_text(key), value) for key, value in zip(flat[::2], flat[1::2], strict=True)]


def _bytes(text: str) -> bytes:
    # Names may come from file names, in which Python keeps bytes that are no text.
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
