"""Balances in an SQLite file, for all processes of one machine; they outlive the process.

Every operation is one transaction: whoever is killed in the middle of it has done nothing. What is held by a process that is gone
is forfeited when its lease runs out.

Writers who find the file locked ask again within a millisecond. SQLite's own waiting sleeps up to 100 ms between two tries, so that
with eight processes a caller may starve for seconds.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, TypeVar

from aifinops.budgets.policy import Balance
from aifinops.budgets.stores.accounts import (
    APPLIED,
    UNCHANGED,
    UNKNOWN,
    Account,
    Record,
    adjust,
    draw,
    extend,
    forfeit,
    mark_sent,
    release,
    repeated,
    reserve,
    settle,
)
from aifinops.budgets.stores.base import (
    Accounts,
    Adjust,
    Capabilities,
    Crossing,
    Draw,
    Extend,
    Forget,
    InTheMiddle,
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
)
from aifinops.files import Database, Kind

__all__ = ["SCHEMA", "SqliteStore"]

R = TypeVar("R")
A = TypeVar("A", bound=Account)

SCHEMA = 1
"""Version of the tables."""

TIMEOUT_S = 0.2
"""How long an operation waits for other processes, seconds: a call waits for it."""

_NS = 1_000_000_000
_KEPT_NS = 3600 * _NS
"""How long what is finished is known after the end of its lease, so that a repetition has no effect."""
_LATE_NS = 7 * 86_400 * _NS
"""How long the truth about what was forfeited may still come, entries are known, and a window is kept after its end."""
_INT64 = 2**63 - 1
_TIDY_EVERY, _TIDY_MOST = 64, 256
_KNOWN_MOST = 10_000
_VALUES_MOST = 900  # SQLite takes 999 in one statement at least
_NAPS_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001)

_KIND = Kind(
    what="budget store",
    first="make the first call under a named budget",
    application=0x41494642,  # "AIFB"
    schema=SCHEMA,
    tables=(
        # AUTOINCREMENT: the number of an account that was forgotten is never given to another.
        """
        CREATE TABLE account (
            number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,
            budget TEXT NOT NULL, window INTEGER NOT NULL, unit TEXT NOT NULL,
            lim INTEGER, until INTEGER NOT NULL, marks TEXT NOT NULL, label TEXT NOT NULL, also TEXT NOT NULL, kept INTEGER NOT NULL,
            spent INTEGER NOT NULL, reserved INTEGER NOT NULL, overrun INTEGER NOT NULL, forfeited INTEGER NOT NULL, fired INTEGER NOT NULL
        )
        """,
        # due: when the lease runs out, and for what is finished when it may be forgotten.
        """
        CREATE TABLE reservation (
            id TEXT NOT NULL PRIMARY KEY, state TEXT NOT NULL, accounts TEXT NOT NULL,
            asked TEXT NOT NULL, held TEXT NOT NULL, actual TEXT NOT NULL, due INTEGER NOT NULL, step INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        "CREATE INDEX reservation_due ON reservation (due)",
        """
        CREATE TABLE entry (
            id TEXT NOT NULL PRIMARY KEY, accounts TEXT NOT NULL, amounts TEXT NOT NULL, due INTEGER NOT NULL
        ) WITHOUT ROWID
        """,
        "CREATE INDEX entry_due ON entry (due)",
        "CREATE TABLE note (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID",
    ),
    sqlite=(3, 24, 0),  # upsert
    elsewhere='budget(..., store="/path/to/budgets.db"), or "memory"',
    memory='keep balances in memory: store="memory"',
)
_FIGURES = "spent, reserved, overrun, forfeited, fired"
_NODE = "budget, window, unit, lim, until, marks, label, also, kept"
_UPSERT = (
    f"INSERT INTO account (key, {_NODE}, {_FIGURES}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0) "  # noqa: S608 - only names of ours; values are bound
    "ON CONFLICT (key) DO UPDATE SET lim = excluded.lim, marks = excluded.marks, label = excluded.label"
)


_OPEN = frozenset({State.HELD, State.SENT})
_READS = frozenset({Read, Accounts, Notes})


class _Row(Account):
    """An account of the file."""

    __slots__ = ("before", "number")

    def __init__(self, number: int, *figures: int) -> None:
        super().__init__(*figures)
        self.number = number
        self.before = figures

    def figures(self) -> tuple[int, ...]:
        return self.spent, self.reserved, self.overrun, self.forfeited, self.fired


class SqliteStore:
    """Balances in a file, made with mode 0600 (its directory 0700) when it is not there.

    Args:
        path: the file, on a disk of this machine. timeout_s: how long an operation waits for other processes, seconds.

    Raises:
        ConfigurationError: naming the path, when it cannot be opened, is no budget store or is of a newer schema.
    """

    capabilities = Capabilities(shared=True, durable=True, io="blocking")

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float = TIMEOUT_S) -> None:
        self._file = Database(path, _KIND)
        self.path = self._file.path
        self._timeout_s = timeout_s
        self._file.in_child = self._in_child
        self._file.close()  # opened to see that it can be; every use sets up its own connection
        self._inside = False
        self._operations = 0
        # Nodes that the file has as they are. Keyed by text, held by identity: budgets make theirs once a window.
        self._known: dict[str, Node] = {}
        self._handlers: dict[type, Callable[[sqlite3.Connection, Any], Any]] = {
            Reserve: self._reserve,
            MarkSent: self._mark_sent,
            Settle: self._settle,
            Release: self._release,
            Extend: self._extend,
            Draw: self._draw,
            Adjust: self._adjust,
            Sweep: self._sweep,
            Read: self._read,
            Accounts: self._all,
            Forget: self._forget,
            Put: self._put,
            Take: self._take,
            Notes: self._list,
        }

    def run(self, operation: Operation[R]) -> R:
        """Execute one operation, in a transaction of its own.

        Raises:
            StoreError: when the id is known with other amounts, or the file is full, damaged or locked for longer than the timeout.
        """
        handler = self._handlers[type(operation)]
        with self._file.lock:
            if self._inside:
                # A signal handler of the application makes a metered call while this very thread is between two statements.
                raise InTheMiddle(f"budget store {self.path}: this thread is in the middle of another operation")
            self._inside = True
            try:
                connection = self._file.connection or self._open()
                reads = type(operation) in _READS  # one statement, which sees one state
                answer: R = (handler if reads else self._commit)(connection, operation)
                return answer
            except (sqlite3.Error, OSError) as error:
                raise self._file.failed(error) from error
            finally:
                self._inside = False

    def _commit(self, connection: sqlite3.Connection, operation: Any) -> Any:
        self._begin(connection)
        try:
            answer = self._handlers[type(operation)](connection, operation)
            connection.execute("COMMIT")
            return answer
        except BaseException:
            self._known.clear()  # what was written of them may be gone again
            if connection.in_transaction:  # some errors, a full disk for one, have rolled back already
                connection.execute("ROLLBACK")
            raise

    def _begin(self, connection: sqlite3.Connection) -> None:
        naps, until = chain(_NAPS_S, repeat(_NAPS_S[-1])), 0.0
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                now = time.monotonic()
                until = until or now + self._timeout_s
                if now >= until or "locked" not in str(error):
                    raise
            time.sleep(next(naps))

    def _open(self) -> sqlite3.Connection:
        connection = self._file.open()
        connection.execute("PRAGMA busy_timeout = 0")  # see `_begin`
        return connection

    def _in_child(self) -> None:
        self._inside = False
        self._known.clear()

    def reset_after_fork(self) -> None:
        """In a forked child: fresh locks; the file opens again when it is needed. Reservations of the parent stay the parent's."""
        self._file.reset_after_fork()

    def close(self) -> None:
        """Close the file. A later operation opens it again.

        Raises:
            StoreError: when SQLite cannot close it.
        """
        with self._file.lock:
            self._file.close()

    # --- the life of a reservation --------------------------------------------------------------------------------------

    def _reserve(self, connection: sqlite3.Connection, operation: Reserve) -> Outcome:
        known = _find(connection, operation.id)
        if known is not None:
            return repeated(known, operation)
        rows = self._accounts(connection, operation.nodes)
        refusal = reserve(operation.nodes, rows, operation.amounts, operation.now)
        if refusal is not None:
            return Outcome(None, applied=False, decision=refusal)
        amounts, numbers = _join(operation.amounts), _join([row.number for row in rows])
        connection.execute(
            "INSERT INTO reservation VALUES (?, 'held', ?, ?, ?, '', ?, 0)",
            (operation.id, numbers, amounts, amounts, min(operation.now + operation.ttl, _INT64)),
        )
        _save(connection, rows)
        self._operations += 1
        if not self._operations % _TIDY_EVERY:
            _tidy(connection, operation.now)
        return APPLIED[State.HELD]

    def _mark_sent(self, connection: sqlite3.Connection, operation: MarkSent) -> Outcome:
        record = _find(connection, operation.id, ())
        if record is None:
            return UNKNOWN
        return _kept(connection, operation.id, record, mark_sent(record))

    def _settle(self, connection: sqlite3.Connection, operation: Settle) -> Outcome:
        record = _find(connection, operation.id, operation.nodes)
        if record is None:
            return UNKNOWN
        return _kept(connection, operation.id, record, settle(record, operation))

    def _release(self, connection: sqlite3.Connection, operation: Release) -> Outcome:
        record = _find(connection, operation.id, operation.nodes)
        if record is None:
            return UNKNOWN
        return _kept(connection, operation.id, record, release(record))

    def _extend(self, connection: sqlite3.Connection, operation: Extend) -> Outcome:
        record = _find(connection, operation.id, operation.nodes)
        if record is None:
            return UNKNOWN
        return _kept(connection, operation.id, record, extend(record, operation))

    def _draw(self, connection: sqlite3.Connection, operation: Draw) -> Outcome:
        record = _find(connection, operation.id, operation.nodes)
        if record is None:
            return UNKNOWN
        return _kept(connection, operation.id, record, draw(record, operation))

    def _sweep(self, connection: sqlite3.Connection, operation: Sweep) -> Swept:
        late = connection.execute(
            "SELECT id FROM reservation WHERE due <= ? AND state IN ('held', 'sent') ORDER BY id", (operation.now,)
        ).fetchall()
        crossed: list[Crossing] = []
        for (id,) in late:
            record = _find(connection, id)
            if record is not None:
                crossed += forfeit(record)
                _kept(connection, id, record, APPLIED[State.FORFEITED])
        _tidy(connection, operation.now)
        connection.execute(
            "DELETE FROM account WHERE kept > 0 AND kept < ? AND reserved = 0", (operation.now - _LATE_NS,)
        )
        return Swept(tuple(id for (id,) in late), tuple(crossed))

    # --- entries, reading, forgetting -------------------------------------------------------------------------------------

    def _adjust(self, connection: sqlite3.Connection, operation: Adjust) -> Outcome:
        rows = self._accounts(connection, operation.nodes)
        numbers, amounts = _join([row.number for row in rows]), _join(operation.amounts)
        known = connection.execute("SELECT accounts, amounts FROM entry WHERE id = ?", (operation.id,)).fetchone()
        if known is not None:
            if known != (numbers, amounts):
                raise other_amounts(operation.id, _split(known[1]), operation.amounts)
            return UNCHANGED[State.SETTLED]
        values = (operation.id, numbers, amounts, operation.now + _LATE_NS)
        connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", values)
        outcome = adjust(operation, rows)
        _save(connection, rows)
        return outcome

    def _read(self, connection: sqlite3.Connection, operation: Read) -> tuple[Balance, ...]:
        found = _by_key(connection, operation.nodes)
        return tuple(_beside(found, node, found.get(node.key) or Account()).balance(node) for node in operation.nodes)

    def _all(self, connection: sqlite3.Connection, operation: Accounts) -> tuple[tuple[Node, Balance], ...]:
        select = f"SELECT key, number, {_FIGURES}, {_NODE} FROM account"  # noqa: S608 - only names of ours
        rows = connection.execute(f"{select} ORDER BY key").fetchall()
        accounts = {key: _Row(*more[:6]) for key, *more in rows}
        nodes = [_node(*row[7:]) for row in rows if operation.budget in (None, row[7])]
        return tuple((node, _beside(accounts, node, accounts[node.key]).balance(node)) for node in nodes)

    def _forget(self, connection: sqlite3.Connection, operation: Forget) -> None:
        for node in operation.nodes:
            self._known.pop(node.key, None)
            connection.execute("DELETE FROM account WHERE key = ?", (node.key,))

    # --- notes ----------------------------------------------------------------------------------------------------------

    def _put(self, connection: sqlite3.Connection, operation: Put) -> bool:
        connection.execute("DELETE FROM note WHERE until > 0 AND until <= ?", (operation.now,))
        verb = "OR IGNORE" if operation.new else "OR REPLACE"
        note = (operation.key, operation.value, operation.until)
        return connection.execute(f"INSERT {verb} INTO note VALUES (?, ?, ?)", note).rowcount == 1  # noqa: S608 - as above

    def _take(self, connection: sqlite3.Connection, operation: Take) -> str | None:
        found = connection.execute("SELECT value, until FROM note WHERE key = ?", (operation.key,)).fetchone()
        connection.execute("DELETE FROM note WHERE key = ?", (operation.key,))
        value, until = found or (None, 0)
        return value if not until or operation.now < until else None

    def _list(self, connection: sqlite3.Connection, operation: Notes) -> tuple[tuple[str, str], ...]:
        return tuple(
            connection.execute(
                "SELECT key, value FROM note WHERE substr(key, 1, ?) = ? AND (until = 0 OR until > ?) ORDER BY key",
                (len(operation.prefix), operation.prefix, operation.now),
            ).fetchall()
        )

    # --- accounts -------------------------------------------------------------------------------------------------------

    def _accounts(self, connection: sqlite3.Connection, nodes: Sequence[Node]) -> list[_Row]:
        """The accounts of the nodes; they are made, and what they say of themselves renewed, where needed."""
        found = _by_key(connection, nodes)
        fresh = [node for node in nodes if self._known.get(node.key) is not node or node.key not in found]
        if fresh:
            if len(self._known) > _KNOWN_MOST:
                self._known.clear()
            connection.executemany(_UPSERT, map(_columns, fresh))
            self._known.update((node.key, node) for node in fresh)
            found = _by_key(connection, nodes)
        return [_beside(found, node, found[node.key]) for node in nodes]


def _columns(node: Node) -> tuple[Any, ...]:
    return (
        node.key, node.budget, node.window, node.unit, node.limit, node.until, _join(node.marks), node.label,
        json.dumps(node.also) if node.also else "", node.kept or node.until,
    )  # fmt: skip


def _by_key(connection: sqlite3.Connection, nodes: Sequence[Node]) -> dict[str, _Row]:
    """The accounts of the nodes, and what counts beside them."""
    keys = [key for node in nodes for key in (node.key, *node.also)]
    found: dict[str, _Row] = {}
    for start in range(0, len(keys), _VALUES_MOST):
        some = keys[start : start + _VALUES_MOST]
        marks = ", ".join("?" * len(some))
        rows = connection.execute(f"SELECT key, number, {_FIGURES} FROM account WHERE key IN ({marks})", some)  # noqa: S608 - as above
        found.update((key, _Row(*figures)) for key, *figures in rows)
    return found


def _beside(found: Mapping[str, _Row], node: Node, account: A) -> A:
    if node.also:
        account.beside = [found[key] for key in node.also if key in found]
    return account


def _find(connection: sqlite3.Connection, id: str, nodes: tuple[Node, ...] | None = None) -> Record | None:
    """A reservation with its accounts; `nodes` as its holder knows them (empty: no matter), else as the file has them."""
    row = connection.execute(
        "SELECT state, accounts, asked, held, actual, due, step FROM reservation WHERE id = ?", (id,)
    ).fetchone()
    if row is None:
        return None
    state, numbers, asked, held, actual, due, step = row
    if nodes is None:
        nodes, accounts = _as_filed(connection, _split(numbers))
    else:
        accounts = _by_number(connection, numbers) if nodes else []
    if any(node.also for node in nodes):
        found = _by_key(connection, nodes)
        for node, account in zip(nodes, accounts):  # noqa: B905 - the rules look at the lengths
            _beside(found, node, account)
    record = Record(nodes, _split(asked), accounts, due)
    record.held, record.actual, record.state, record.step = _split(held), _split(actual), State(state), step
    return record


def _by_number(connection: sqlite3.Connection, numbers: str) -> list[_Row]:
    if "," not in numbers:
        rows = connection.execute(f"SELECT number, {_FIGURES} FROM account WHERE number = ?", (numbers,))  # noqa: S608 - as above
        return [_Row(*row) for row in rows] or [_gone()]
    rows = connection.execute(f"SELECT number, {_FIGURES} FROM account WHERE number IN ({numbers})")  # noqa: S608 - numbers of ours
    found = {row[0]: _Row(*row) for row in rows}
    return [found.get(number) or _gone() for number in _split(numbers)]


def _as_filed(connection: sqlite3.Connection, numbers: Sequence[int]) -> tuple[tuple[Node, ...], list[_Row]]:
    nodes, accounts = [], []
    for number in numbers:
        row = connection.execute(
            f"SELECT number, {_FIGURES}, {_NODE} FROM account WHERE number = ?",  # noqa: S608 - as above
            (number,),
        ).fetchone()
        accounts.append(_gone() if row is None else _Row(*row[:6]))
        nodes.append(Node("", 0, "", None) if row is None else _node(*row[6:]))
    return tuple(nodes), accounts


def _node(
    budget: str, window: int, unit: str, limit: int | None, until: int, marks: str, label: str, also: str, kept: int
) -> Node:
    keys = tuple(json.loads(also)) if also else ()
    return Node(budget, window, unit, limit, until, _split(marks), label, keys, kept)


def _gone() -> _Row:
    """In the place of an account that was forgotten meanwhile: whatever happens to it is kept nowhere."""
    return _Row(0, 0, 0, 0, 0, 0)


def _kept(connection: sqlite3.Connection, id: str, record: Record, outcome: Outcome) -> Outcome:
    if outcome.applied:
        due = record.expires
        if record.state not in _OPEN:
            due += _LATE_NS if record.state is State.FORFEITED else _KEPT_NS
        connection.execute(
            "UPDATE reservation SET state = ?, held = ?, actual = ?, due = ?, step = ? WHERE id = ?",
            (record.state.value, _join(record.held), _join(record.actual), min(due, _INT64), record.step, id),
        )
        _save(connection, record.accounts)
    return outcome


def _save(connection: sqlite3.Connection, rows: Iterable[Any]) -> None:
    for row in rows:
        figures = row.figures()
        if figures != row.before:
            connection.execute(
                "UPDATE account SET spent = ?, reserved = ?, overrun = ?, forfeited = ?, fired = ? WHERE number = ?",
                (*(figures if max(figures) <= _INT64 else (min(one, _INT64) for one in figures)), row.number),
            )


def _tidy(connection: sqlite3.Connection, now: int) -> None:
    """Drop some of what is finished and forgotten; more than comes in, so that it does not grow."""
    for table, which in (("reservation", "state NOT IN ('held', 'sent') AND"), ("entry", "")):
        connection.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {which} due <= ? LIMIT {_TIDY_MOST})",  # noqa: S608 - as above
            (now,),
        )


def _join(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else ",".join(map(str, numbers))


def _split(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()
