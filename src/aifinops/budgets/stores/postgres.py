"""Balances in PostgreSQL, for all processes of all machines that reach it.

Every operation is one call of one function in the database (`postgres.sql`), in a transaction of its own: whoever is killed in the middle
of it has done nothing, and nothing is sent to and fro while rows are locked. No session state is kept, so that a pooler may stand between.

Leases run by the clock of the server: machines need not agree about the time. The ends of windows and notes are the caller's.

What the caller waits for is bounded by `timeout_s`, also when the server is stopped and never says so. A connection that was lost is
replaced and the operation sent once more with the same id and token, by which the database tells a repetition from a first time.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any, NamedTuple, TypeVar, cast

from aifinops.budgets.policy import Balance, decide
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
from aifinops.budgets.stores.postgres_connections import Connection, Link, Pool, Result, Steps, afinish, ask, finish
from aifinops.errors import ConfigurationError, StoreError, StoreReset

__all__ = ["SCHEMA", "TIMEOUT_S", "PostgresStore", "open_url", "setup_sql"]

R = TypeVar("R")

SCHEMA = 1
"""Version of the tables and functions."""

TIMEOUT_S = 0.2
"""How long an operation may take, seconds: a call waits for it."""

_TIMEOUT_MOST_S = 3600
_NS = 1_000_000_000
_KEPT_NS = 3600 * _NS
"""How long what is finished is known after the end of its lease, so that a repetition has no effect."""
_LATE_NS = 7 * 86_400 * _NS
"""How long the truth about what was forfeited may still come, entries are known, and a window is kept after its end."""
_TIDY = {"finished": _KEPT_NS, "late": _LATE_NS}
_TIDY_EVERY = 64
_SILENT_NS = 8 * 86_400 * _NS
"""How long the store keeps count of a process that does nothing; after six of these days the process expects it no more."""
_SILENT_S = 6 * 86_400
_SWEEP_MOST = 500
_KNOWN_MOST = 10_000
_MANY = 2**63
_ROUNDS = 4  # one for what was lost, one for accounts that are not there, one for a store that is another
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")
# Codes of errors: https://www.postgresql.org/docs/current/errcodes-appendix.html
_ROLLED_BACK = frozenset({"40001", "40P01"})
_NOT_OURS = "AF001"
_NOT_THERE = frozenset({"3F000", "42883", "42P01"})
_FORBIDDEN = "42501"
_ENDED = ("08", "57P")
# Said where the DSN does not say otherwise: a machine that is gone is noticed within half a minute, not after two hours.
_DEFAULTS = {"connect_timeout": "2", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "20000", "application_name": "aifinops"}  # fmt: skip


_MAKE = """
DO $make$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('aifinops schema {schema}', 0));
    IF to_regprocedure('{schema}.about()') IS NULL THEN
        EXECUTE $setup${setup}$setup$;
    ELSE  -- it is all there, but was emptied by hand
        INSERT INTO {schema}.meta (schema, epoch) VALUES ({version}, gen_random_uuid()::text) ON CONFLICT DO NOTHING;
    END IF;
END $make$
"""


class _Known:
    """The store as this process knows it, since it began or since the last loss.

    Attributes:
        epoch: which it is. ticks: how many operations were confirmed in each place. reset: how it has ended. heard: of a confirmation last.
    """

    def __init__(self, epoch: str, ticks: Mapping[int, int]) -> None:
        self.epoch = epoch
        self.ticks = dict(ticks)
        self.reset: StoreReset | None = None
        self.heard = time.monotonic()

    def confirm(self, place: int, tick: int) -> None:
        """Of one place, which one operation has at a time."""
        if tick > self.ticks.get(place, 0):
            self.ticks[place] = tick
            self.heard = time.monotonic()

    def has_all_of(self, before: _Known) -> bool:
        """Whether this is the same store, and nothing of it was lost."""
        counts = list(before.ticks.items())
        return self.epoch == before.epoch and all(self.ticks.get(place, 0) >= tick for place, tick in counts)


class _Places:
    """Places in which operations are counted: each for one operation at a time.

    Args:
        rest_s: how long one is left alone whose operation may still be running.

    Attributes:
        client: under which the store counts.
    """

    def __init__(self, rest_s: float) -> None:
        self.client = os.urandom(8).hex()
        self._rest_s = rest_s
        self._idle: list[tuple[int, float]] = []
        self._numbers = itertools.count(1)

    def take(self) -> int:
        """One that nobody uses; as few as possible."""
        idle, now = self._idle, time.monotonic()
        for _ in range(len(idle)):
            try:
                place, ready = idle.pop()  # one step: no lock is needed
            except IndexError:
                break
            if ready <= now:
                return place
            idle.insert(0, (place, ready))
        return next(self._numbers)

    def give(self, place: int, *, done: bool) -> None:
        """Back again."""
        self._idle.append((place, 0.0 if done else time.monotonic() + self._rest_s))


class _Lost(Exception):
    """The connection was lost; `sent` when the server may have done what was asked."""

    def __init__(self, cause: Exception, *, sent: bool) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.sent = sent


class _Refused(Exception):
    """The server answered with an error."""

    def __init__(self, code: str, cause: Exception) -> None:
        super().__init__(str(cause))
        self.code = code
        self.cause = cause


_SETTINGS: dict[str, Callable[[str], Any]] = {
    "schema": str,
    "timeout_s": float,
    "connections": int,
    "synchronous_commit": str,
}


def open_url(url: str) -> PostgresStore:
    """A store from one text.

    Args:
        url: `postgresql://user@host/database`. Behind a `?` may stand what `PostgresStore` takes, beside what libpq does.

    Raises:
        ConfigurationError: as `PostgresStore`.
    """
    address, ours = split_settings(url, _SETTINGS, "in PostgreSQL")
    return PostgresStore(address, **ours)


def setup_sql(schema: str = "aifinops", *, role: str | None = None) -> str:
    """What makes the tables and functions, for who does not let programs do that: run it in one transaction.

    Args:
        schema: its name. role: who may use the store afterwards; it gets the right to call the functions and nothing else.

    Raises:
        ConfigurationError: when the name is none.
    """
    _check_name(schema)
    folder = resources.files("aifinops.budgets.stores")
    text = _filled((folder / "postgres.sql").read_text(encoding="utf-8"), schema)
    if role is not None:
        who = '"' + role.replace('"', '""') + '"'
        text += (
            f"GRANT USAGE ON SCHEMA {schema} TO {who};\nGRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {who};\n"
        )
    return text


class PostgresStore:
    """Balances in a schema of a database, which is made by the first who uses it where it is not there.

    Connections are opened when they are needed. The server is asked for nothing but single statements, so that pgbouncer in transaction
    mode may stand between. A role that may call the functions of the schema, and nothing else, is enough once they are there.

    Args:
        dsn: where, as libpq takes it: `postgresql://user@host/database` or `host=... dbname=...`. It is never shown.
        schema: in which schema: small letters, digits and `_`.
        timeout_s: how long an operation may take, seconds, with connecting and waiting for other callers.
        connections: how many a process opens at most.
        synchronous_commit: as PostgreSQL's setting of that name, for these operations; None leaves it as it is there. `off` is about
            ten times as fast, and after a crash of the server the last half second of operations may be missing.

    Raises:
        ConfigurationError: when psycopg is not installed, or an argument is wrong.
    """

    capabilities = Capabilities(shared=True, durable=True, io="async")

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "aifinops",
        timeout_s: float = TIMEOUT_S,
        connections: int = 8,
        synchronous_commit: str | None = None,
    ) -> None:
        _check_name(schema)
        if synchronous_commit not in (None, "on", "off", "local", "remote_write", "remote_apply"):
            raise ConfigurationError(f"synchronous_commit={synchronous_commit!r} is no value of that setting; use \"off\", \"on\" or None")  # fmt: skip
        if connections < 1 or not 0 < timeout_s <= _TIMEOUT_MOST_S:
            raise ConfigurationError(
                f"connections={connections}, timeout_s={timeout_s}: use at least one connection, and up to {_TIMEOUT_MOST_S} seconds"
            )
        self.schema = schema
        self._driver = _import()
        self._timeout_s = timeout_s
        # It must not know the store, which it outlives.
        self._pool = Pool(partial(_connect, self._driver, _parse(self._driver, dsn), self._who()), connections)
        weakref.finalize(self, self._pool.close)
        self._always: dict[str, Any] = {"wait": str(max(1, int(timeout_s * 1000)))}
        if synchronous_commit is not None:
            self._always["commit"] = synchronous_commit
        self._lock = threading.RLock()
        self._store: _Known | None = None
        self._places = _Places(timeout_s + 1)
        self._earlier: list[tuple[str, int]] = []
        self.journal: Journal | None = None
        self._reserved = 0
        # Nodes that the store has as they are. Keyed by text, held by identity: budgets make theirs once a window.
        self._nodes: dict[str, Node] = {}

    def run(self, operation: Operation[R]) -> R:
        """Execute one operation.

        Raises:
            StoreReset: when the store is not the one that this process knows; once, and nothing was done.
            StoreError: when the id is known with other amounts, or the server does not answer in time or answers with an error.
        """
        return finish(self._do(operation), self._timeout_s)

    async def arun(self, operation: Operation[R]) -> R:
        """`run`, awaiting the server.

        Raises:
            StoreReset: as `run`.
            StoreError: as `run`.
        """
        return await afinish(self._do(operation), self._timeout_s)

    def prepare(self, timeout_s: float = 10.0) -> None:
        """Connect, and make the tables and functions where they are not there: what the first operation does otherwise.

        Args:
            timeout_s: how long that may take, seconds.

        Raises:
            StoreError: as `run`.
        """
        finish(self._safely(self._get_ready()), timeout_s)

    def reset_after_fork(self) -> None:
        """In a forked child: new locks and connections. Reservations of the parent stay the parent's."""
        self._lock = threading.RLock()
        self._pool.reset_after_fork()
        self._store, self._places, self._earlier = None, _Places(self._timeout_s + 1), []
        if self.journal is not None:
            self.journal.forget()

    def close(self) -> None:
        """Close connections. A later operation opens new ones."""
        self._pool.close()

    # --- one operation --------------------------------------------------------------------------------------------------

    def _do(self, operation: Operation[R]) -> Steps[R]:
        return self._safely(cast("Steps[R]", _KINDS[type(operation)].steps(self, operation)))

    def _safely(self, steps: Steps[R]) -> Steps[R]:
        """Turn whatever the driver says into a `StoreError`."""
        if self._pool.inherited():
            self.reset_after_fork()  # forked by somebody who did not tell us
        try:
            return (yield from steps)
        except TimeoutError as error:
            raise StoreError(f"{self._who()}: no answer in time") from error
        except (_Lost, _Refused) as error:
            raise self._failed(error.cause, getattr(error, "code", "")) from error.cause

    def _once(self, operation: Any) -> Steps[Any]:
        reply = yield from self._call(operation)
        answer = _KINDS[type(operation)].answer(operation, reply)
        if self.journal is not None:
            known, client, place = reply["by"]
            self.journal.wrote(operation, answer, known, (client, place), reply["tick"])
        return answer

    def _sweep(self, operation: Sweep) -> Steps[Swept]:
        """In parts, so that none takes long. What was done before one fails is told; the rest is left for the next sweep."""
        ids: list[str] = []
        crossed: list[Crossing] = []
        while True:
            try:
                reply = yield from self._call(operation)
            except (TimeoutError, _Lost, _Refused):
                if not ids:
                    raise
                break
            ids += reply["forfeited"]
            crossed += (Crossing(_node(node), mark, spent) for node, mark, spent in reply["crossed"])
            if len(reply["forfeited"]) < _SWEEP_MOST:
                break
        return Swept(tuple(ids), tuple(crossed))

    def _call(self, operation: Any) -> Steps[dict[str, Any]]:
        kind = _KINDS[type(operation)]
        token = os.urandom(8).hex()
        known: _Known | None = None
        again = everything = False
        for _ in range(_ROUNDS):
            try:
                known = self._present(self._store) or (yield from self._get_ready())
                request = kind.request(operation) | self._always | {"token": token, "epoch": known.epoch}
                described = self._describe(operation, request, everything=everything)
                reply = yield from self._counted(known, kind.function, request)
            except _Lost as error:
                if again or (error.sent and not kind.repeatable):
                    raise
                again = True
            except _Refused as error:
                if known is not None and (error.code == _NOT_OURS or error.code in _NOT_THERE):
                    yield from self._look_again(known)
                elif again or error.code not in _ROLLED_BACK:
                    raise
                else:
                    again = True
            else:
                if "missing" not in reply:
                    looked = reply.get("applied") or "standing" in reply  # at the nodes; not where the id was known
                    self._learn(described if looked else ())
                    return reply
                everything = True
        raise StoreError(f"{self._who()}: it changes while it is used")

    def _counted(self, known: _Known, function: str, request: dict[str, Any]) -> Steps[dict[str, Any]]:
        """Send a request with what was confirmed until now; who counted it is in the reply."""
        places = self._places
        place, done = places.take(), False
        try:
            request |= {"client": places.client, "place": str(place)}
            reply = yield from self._send(function, request, known)
            done = True
        except _Refused:
            done = True
            raise
        finally:
            places.give(place, done=done)
        known.confirm(place, reply.get("tick", 0))
        reply["by"] = known, places.client, place
        return reply

    def _describe(self, operation: Any, request: dict[str, Any], *, everything: bool) -> Sequence[Node]:
        """Add to a request what makes accounts of nodes that the store may not have, or not so."""
        if not isinstance(operation, (Reserve, Adjust)):
            return ()
        fresh = [node for node in operation.nodes if everything or self._nodes.get(node.key) is not node]
        if fresh:
            request["nodes"] = list(map(_description, fresh))
        if isinstance(operation, Reserve):
            self._reserved += 1
            if not self._reserved % _TIDY_EVERY:
                request["tidy"] = _TIDY
        return fresh

    def _learn(self, described: Sequence[Node]) -> None:
        if len(self._nodes) > _KNOWN_MOST:
            self._nodes.clear()
        self._nodes.update((node.key, node) for node in described)

    # --- what is known of the store ---------------------------------------------------------------------------------------

    def _present(self, known: _Known | None) -> _Known | None:
        if known is not None and time.monotonic() - known.heard > _SILENT_S:
            # What a store counts for a process that it may have forgotten is no measure: go on as another one.
            self._earlier += [(self._places.client, place) for place in known.ticks]
            self._places = _Places(self._timeout_s + 1)
            self._store = known = _Known(known.epoch, {})
        return known

    def _get_ready(self) -> Steps[_Known]:
        """Make what is missing, and see which store this is."""
        before = self._store
        link = yield from self._take()
        try:
            about = yield from self._about(link)
            ticks = {}
            if before is not None and before.epoch == about["epoch"]:
                text = yield from self._query(link, f"SELECT {self.schema}.counted($1)", self._places.client)
                ticks = {int(place): tick for place, tick in json.loads(text).items()}
        except BaseException:
            self._pool.drop(link)
            raise
        self._pool.give(link)
        return self._adopt(before, _Known(about["epoch"], ticks))

    def _look_again(self, known: _Known) -> Steps[None]:
        """After the store was found to be another than was thought.

        Raises:
            StoreReset: to the first who finds that, or to each where there is a journal, which has to be put back before.
        """
        if self._store is known:
            yield from self._get_ready()
        if known.reset is not None and self.journal is not None:
            raise known.reset

    def _adopt(self, before: _Known | None, found: _Known) -> _Known:
        """Go on with what was found, when `before` was known at the time of asking."""
        with self._lock:
            now = self._store
            if now is not None and (now is not before or found.has_all_of(now)):
                return now  # somebody else has been here meanwhile, or nothing is missing
            if now is not None:
                now.reset = self._reset(now, found)
                if self.journal is not None:
                    self.journal.reset(now.reset)
            self._store = found
            self._nodes.clear()
        if now is not None and now.reset is not None:
            raise now.reset
        return found

    def _reset(self, now: _Known, found: _Known) -> StoreReset:
        older, client = now.epoch == found.epoch, self._places.client
        survived: dict[Hashable, int] = {(client, place): tick for place, tick in found.ticks.items()}
        if found.ticks:  # a copy that knows this client was made after all that it did as another one
            survived.update(dict.fromkeys(self._earlier, _MANY))
        text = f"{self._who()}: it is {'older than it was' if older else 'a new one'}; what was spent and held may be missing"
        return StoreReset(text, survived=survived, era=now)

    def _about(self, link: Link) -> Steps[dict[str, Any]]:
        try:
            text = yield from self._query(link, f"SELECT {self.schema}.about()")
        except _Refused as error:
            if error.code not in _NOT_THERE:
                raise
            text = None
        about = json.loads(text) if text else (yield from self._make(link))
        if about["schema"] > SCHEMA:
            raise StoreError(f"{self._who()}: it was made by a newer aifinops (schema {about['schema']}; this one knows up to {SCHEMA}): pip install --upgrade aifinops")  # fmt: skip
        if about["isolation"] != "read committed":
            raise StoreError(f"{self._who()}: default_transaction_isolation is {about['isolation']!r}; alter the role to set it to 'read committed'")  # fmt: skip
        return cast("dict[str, Any]", about)

    def _make(self, link: Link) -> Steps[dict[str, Any]]:
        """Make the schema; of many who come at the same time one does.

        In a single statement: the server ends what it has begun, also when that takes longer than the caller waits.
        """
        yield from self._query(link, _filled(_MAKE.replace("{setup}", setup_sql(self.schema)), self.schema))
        return cast("dict[str, Any]", json.loads((yield from self._query(link, f"SELECT {self.schema}.about()"))))

    # --- the server -------------------------------------------------------------------------------------------------------

    def _send(self, function: str, request: dict[str, Any], known: _Known) -> Steps[dict[str, Any]]:
        link = yield from self._take()
        request["known"] = known.ticks.copy()  # as late as that: of what is confirmed meanwhile nothing may be missing
        try:
            text = yield from self._query(link, f"SELECT {self.schema}.{function}($1::jsonb)", json.dumps(request))
        except _Refused:
            self._pool.give(link)
            raise
        except BaseException:
            self._pool.drop(link)  # an answer may still come on it
            raise
        self._pool.give(link)
        return cast("dict[str, Any]", json.loads(text))

    def _take(self) -> Steps[Link]:
        try:
            return (yield from self._pool.take())
        except (TimeoutError, StoreError):
            raise
        except Exception as error:
            raise _Lost(error, sent=False) from error

    def _query(self, link: Link, command: str, *parameters: str) -> Steps[Any]:
        """The first column of the first row, as text."""
        driver = self._driver
        try:
            result = yield from ask(link.pgconn, command.encode(), [one.encode() for one in parameters])
        except driver.Error as error:
            raise _Lost(error, sent=True) from error
        if result.status not in (driver.pq.ExecStatus.TUPLES_OK, driver.pq.ExecStatus.COMMAND_OK):
            refused = _refused(driver, result)
            # Said by the driver or by a server that goes down, and not about what was asked.
            gone = not refused.code or refused.code.startswith(_ENDED)
            raise _Lost(refused.cause, sent=True) if gone else refused
        value = result.get_value(0, 0) if result.ntuples else None
        return None if value is None else value.decode()

    def _failed(self, error: Exception, code: str) -> StoreError:
        text = " ".join(str(error).split())
        if code == _FORBIDDEN:
            text += " (for who may not make it, aifinops.budgets.stores.postgres.setup_sql(role=...) has what an administrator has to run)"
        return StoreError(f"{self._who()}: {text}")

    def _who(self) -> str:
        return f"budget store in PostgreSQL, schema {self.schema}"


# --- what operations ask, and what the answers mean ------------------------------------------------------------------------


class _Kind(NamedTuple):
    """How one sort of operation is done.

    Attributes:
        function: in the database. request: its argument. answer: what the reply means.
        repeatable: the database tells a second time from the first, so that it may be sent again when the reply was lost.
        steps: all of it.
    """

    function: str
    request: Callable[[Any], dict[str, Any]]
    answer: Callable[[Any, dict[str, Any]], Any]
    repeatable: bool = True
    steps: Callable[[PostgresStore, Any], Steps[Any]] = PostgresStore._once


def _reserve(operation: Reserve) -> dict[str, Any]:
    return _limited(operation.nodes) | {"id": operation.id, "amounts": _array(operation.amounts), "ttl": operation.ttl}


def _mark_sent(operation: MarkSent) -> dict[str, Any]:
    return {"id": operation.id}


def _settle(operation: Settle) -> dict[str, Any]:
    return _marked(operation.nodes) | {"id": operation.id, "amounts": _array(operation.amounts)}


def _release(operation: Release) -> dict[str, Any]:
    return {"id": operation.id, "release": True}


def _extend(operation: Extend) -> dict[str, Any]:
    request = {"id": operation.id, "ttl": operation.ttl}
    if operation.amounts is None:
        return request
    return _limited(operation.nodes) | request | {"amounts": _array(operation.amounts)}


def _draw(operation: Draw) -> dict[str, Any]:
    return (
        _limited(operation.nodes)
        | _marked(operation.nodes)
        | {
            "id": operation.id,
            "step": operation.step,
            "spent": _array(operation.spent),
            "held": _array(operation.held),
            "least": _array(operation.least),
            "ttl": operation.ttl,
        }
    )


def _adjust(operation: Adjust) -> dict[str, Any]:
    keys = {"keys": _keys(node.key for node in operation.nodes)}
    return (
        _marked(operation.nodes) | keys | {"id": operation.id, "amounts": _array(operation.amounts), "keep": _LATE_NS}
    )


def _sweep(operation: Sweep) -> dict[str, Any]:
    return {"now": operation.now, "most": _SWEEP_MOST, "tidy": _TIDY}


def _read(operation: Read) -> dict[str, Any]:
    return {"keys": _keys(node.key for node in operation.nodes)} | _beside(operation.nodes)


def _accounts(operation: Accounts) -> dict[str, Any]:
    return {"budget": operation.budget}


def _forget(operation: Forget) -> dict[str, Any]:
    return {"keys": _keys(node.key for node in operation.nodes)}


def _put(operation: Put) -> dict[str, Any]:
    request = {"key": operation.key, "value": operation.value, "now": operation.now, "until": operation.until}
    return request | {"new": True} if operation.new else request


def _take(operation: Take) -> dict[str, Any]:
    return {"key": operation.key, "now": operation.now}


def _notes(operation: Notes) -> dict[str, Any]:
    return {"prefix": operation.prefix, "now": operation.now}


def _outcome(operation: Any, reply: Mapping[str, Any]) -> Outcome:
    nodes = getattr(operation, "nodes", ())
    if "other" in reply:
        raise other_amounts(operation.id, reply["other"], getattr(operation, "amounts", None) or ())
    state = reply.get("state")
    decision = None
    if "standing" in reply:
        amounts = reply.get("amounts") or (operation.held if isinstance(operation, Draw) else operation.amounts)
        decision = decide(_balances(nodes, reply["standing"]), amounts, operation.now)
    crossed = tuple(Crossing(nodes[place], mark, spent) for place, mark, spent in reply.get("crossed") or ())
    return Outcome(None if state is None else State(state), reply["applied"], decision, crossed)


def _balances(nodes: Sequence[Node], standing: Sequence[Sequence[int]]) -> tuple[Balance, ...]:
    return tuple(
        Balance(node.limit, spent, reserved, overrun, forfeited, node.until or None)
        for node, (spent, reserved, overrun, forfeited) in zip(nodes, standing, strict=True)
    )


def _listed(operation: Accounts, reply: Mapping[str, Any]) -> tuple[tuple[Node, Balance], ...]:
    nodes = [_node(node) for node, _ in reply["accounts"]]
    return tuple(zip(nodes, _balances(nodes, [figures for _, figures in reply["accounts"]]), strict=True))


_KINDS: dict[type, _Kind] = {
    Reserve: _Kind("reserve", _reserve, _outcome),
    MarkSent: _Kind("mark_sent", _mark_sent, _outcome),
    Settle: _Kind("settle", _settle, _outcome),
    Release: _Kind("settle", _release, _outcome),
    Extend: _Kind("extend", _extend, _outcome),
    Draw: _Kind("draw", _draw, _outcome),
    Adjust: _Kind("adjust", _adjust, _outcome),
    Sweep: _Kind("sweep", _sweep, lambda _, reply: reply, repeatable=False, steps=PostgresStore._sweep),
    Read: _Kind("read", _read, lambda operation, reply: _balances(operation.nodes, reply["standing"])),
    Accounts: _Kind("accounts", _accounts, _listed),
    Forget: _Kind("forget", _forget, lambda operation, reply: None),
    Put: _Kind("put", _put, lambda operation, reply: reply["done"], repeatable=False),
    Take: _Kind("take", _take, lambda operation, reply: reply["value"], repeatable=False),
    Notes: _Kind("notes", _notes, lambda operation, reply: tuple(map(tuple, reply["notes"]))),
}


def _limited(nodes: Sequence[Node]) -> dict[str, Any]:
    limits = _array([node.limit for node in nodes])
    return {"keys": _keys(node.key for node in nodes), "limits": limits} | _beside(nodes)


def _marked(nodes: Sequence[Node]) -> dict[str, Any]:
    if not any(node.marks for node in nodes):
        return {}
    return {"marks": [_array(node.marks) if node.marks else None for node in nodes]} | _beside(nodes)


def _beside(nodes: Sequence[Node]) -> dict[str, Any]:
    if not any(node.also for node in nodes):
        return {}
    return {"also": [_keys(node.also) if node.also else None for node in nodes]}


def _description(node: Node) -> dict[str, Any]:
    return {
        "key": node.key, "budget": node.budget, "win": node.window, "unit": node.unit, "lim": node.limit, "until": node.until,
        "marks": node.marks, "label": node.label, "also": node.also, "kept": node.kept or node.until,
    }  # fmt: skip


def _node(row: Mapping[str, Any]) -> Node:
    marks, also = tuple(row["marks"]), tuple(row["also"])
    return Node(
        row["budget"], row["win"], row["unit"], row["lim"], row["until"], marks, row["label"], also, row["kept"]
    )


def _array(numbers: Sequence[int | None]) -> str:
    """Numbers as PostgreSQL writes an array of them."""
    return "{" + ",".join("NULL" if one is None else str(one) for one in numbers) + "}"


def _keys(texts: Any) -> str:
    """Texts as PostgreSQL writes an array of them."""
    return "{" + ",".join('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts) + "}"


# --- the driver ------------------------------------------------------------------------------------------------------------


def _import() -> Any:
    try:
        return importlib.import_module("psycopg")
    except ImportError as error:
        raise ConfigurationError(
            "a budget store in PostgreSQL needs psycopg 3: pip install 'aifinops[postgres]'"
        ) from error


def _parse(driver: Any, dsn: str) -> dict[str, Any]:
    try:
        given = driver.conninfo.conninfo_to_dict(dsn)
    except driver.Error:
        # What the driver says repeats parts of it, and its error would be shown with ours.
        raise ConfigurationError("the address of the budget store in PostgreSQL cannot be read; write postgresql://user@host/database") from None  # fmt: skip
    return {**_DEFAULTS, **given, "client_encoding": "UTF8"}


def _connect(driver: Any, dsn: Mapping[str, Any], who: str) -> Connection:
    try:
        return cast("Connection", driver.connect(**dsn, autocommit=True, prepare_threshold=None))
    except driver.Error as error:
        password = str(dsn.get("password") or "")
        if password and password in str(error):
            raise StoreError(f"{who}: cannot connect ({type(error).__name__})") from None
        raise


def _refused(driver: Any, result: Result) -> _Refused:
    field = driver.pq.DiagnosticField
    code = (result.error_field(field.SQLSTATE) or b"").decode()
    said = result.error_field(field.MESSAGE_PRIMARY) or result.error_message
    try:
        kind: type[Exception] = driver.errors.lookup(code)
    except KeyError:
        kind = driver.DatabaseError
    return _Refused(code, kind(said.decode(errors="replace")))


def _filled(text: str, schema: str) -> str:
    return text.replace("{schema}", schema).replace("{version}", str(SCHEMA)).replace("{silent}", str(_SILENT_NS))


def _check_name(schema: str) -> None:
    if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigurationError(f"schema={schema!r} is no name for a schema here; use small letters, digits and _, and begin with a letter")  # fmt: skip
