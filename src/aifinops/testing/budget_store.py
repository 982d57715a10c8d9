"""The suite that every budget store has to pass: `check_budget_store(make_store)`.

It needs nothing but the store. Random operations are compared with a model that decides by `aifinops.budgets.policy`, one
step at a time, down to every integer; then threads and tasks try together to get more out of it than its limits hold.
A failure is an `AssertionError` that says what was done, what was expected and with which seed it can be replayed.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aifinops.budgets.policy import Balance, Decision, decide
from aifinops.budgets.stores.base import (
    MAX_AMOUNT,
    TRANSITIONS,
    Accounts,
    Adjust,
    Crossing,
    Draw,
    Event,
    Extend,
    Forget,
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
    Store,
    Sweep,
    Swept,
    Take,
)
from aifinops.errors import StoreError

__all__ = ["check_budget_store"]

_NOW = 1_800_000_000 * 10**9  # any moment will do: leases here have run out at once or never do
_FOREVER = 10 * 365 * 86_400 * 10**9
_LARGE = 2**53 + 1  # what a double cannot hold
_UNITS = ("USD", "tokens")
_LEVELS = ("org", "team", "user")


def check_budget_store(
    make_store: Callable[[], Store], *, seed: int = 0, sequences: int = 60, operations: int = 50, workers: int = 32
) -> None:
    """Prove a store equal to the policy, and its operations atomic and idempotent.

    Args:
        make_store: gives a new, empty store; called many times. The store is closed after use.
        seed: of the random sequences; a failure names the one to replay.
        sequences, operations: how many sequences, and of how many operations each.
        workers: how many threads, and how many tasks, work against one limit.

    Raises:
        AssertionError: when the store is wrong.
    """
    for number in range(sequences):
        with _fresh(make_store) as store:
            _Sequence(store, f"{seed}/{number}").run(operations)
    for check in (
        _transitions,
        _all_or_nothing,
        _overrun,
        _marks,
        _late_truth,
        _lease,
        _rolling,
        _forgets,
        _accounts,
        _notes,
        _same_id,
        _one_note,
        _threads,
        _tasks,
    ):
        with _fresh(make_store) as store:
            check(store, workers)


@contextmanager
def _fresh(make_store: Callable[[], Store]) -> Iterator[Store]:
    store = make_store()
    try:
        yield store
    finally:
        store.close()


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{what}:\n  expected {expected}\n  but got  {found}")


# --- the model ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Hold:
    nodes: tuple[Node, ...]
    asked: tuple[int, ...]
    held: tuple[int, ...]
    lasts: bool
    state: State = State.HELD
    actual: tuple[int, ...] = ()
    step: int = 0


@dataclass(slots=True)
class _Model:
    """What a store has to do, in the plainest words: dictionaries of integers."""

    spent: dict[str, int] = field(default_factory=dict)
    overrun: dict[str, int] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)
    holds: dict[str, _Hold] = field(default_factory=dict)
    entries: dict[str, Adjust] = field(default_factory=dict)

    def balance(self, node: Node) -> Balance:
        reserved = forfeited = 0
        keys = (node.key, *node.also)
        for hold in self.holds.values():
            for one, amount in zip(hold.nodes, hold.held, strict=True):
                if one.key in keys:
                    reserved += amount if hold.state in (State.HELD, State.SENT) else 0
                    forfeited += amount if hold.state is State.FORFEITED else 0
        spent, overrun = (sum(figure.get(key, 0) for key in keys) for figure in (self.spent, self.overrun))
        return Balance(node.limit, spent, reserved, overrun, forfeited, node.until or None)

    def apply(self, operation: Operation[Any]) -> Any:
        return getattr(self, f"_{type(operation).__name__.lower()}")(operation)

    def _reserve(self, operation: Reserve) -> Outcome:
        known = self.holds.get(operation.id)
        if known is not None:
            if (known.asked, _keys(known.nodes)) != (operation.amounts, _keys(operation.nodes)):
                raise StoreError("other amounts")
            return Outcome(known.state, applied=False)
        decision = decide(list(map(self.balance, operation.nodes)), operation.amounts, operation.now)
        if not decision.allowed:
            return Outcome(None, applied=False, decision=decision)
        self.holds[operation.id] = _Hold(operation.nodes, operation.amounts, operation.amounts, lasts=operation.ttl > 0)
        return Outcome(State.HELD, applied=True)

    def _marksent(self, operation: MarkSent) -> Outcome:
        return self._change(operation.id, "mark_sent")

    def _release(self, operation: Release) -> Outcome:
        return self._change(operation.id, "release")

    def _settle(self, operation: Settle) -> Outcome:
        hold = self.holds.get(operation.id)
        if hold is None:
            return Outcome(None, applied=False)
        pairs = list(zip(operation.amounts, hold.held, strict=True))
        actual = tuple(held if amount is None else amount for amount, held in pairs)
        if hold.state is State.SETTLED and hold.actual != actual:
            raise StoreError("other amounts")
        outcome = self._change(operation.id, "settle")
        if not outcome.applied:
            return outcome
        hold.actual = actual
        crossed: list[Crossing] = []
        for node, spent, held in zip(operation.nodes, actual, hold.held, strict=True):
            crossed += self._add(node, spent, max(0, spent - held))
        return Outcome(State.SETTLED, applied=True, crossed=tuple(crossed))

    def _extend(self, operation: Extend) -> Outcome:
        hold = self.holds.get(operation.id)
        if hold is None or (hold.state, "extend") not in TRANSITIONS:
            return Outcome(None if hold is None else hold.state, applied=False)
        wanted = hold.held if operation.amounts is None else operation.amounts
        growth = [new - old for new, old in zip(wanted, hold.held, strict=True)]
        decision = decide(list(map(self.balance, operation.nodes)), growth, operation.now)
        if not decision.allowed:
            return Outcome(hold.state, applied=False, decision=decision)
        hold.held, hold.lasts = wanted, operation.ttl > 0
        return Outcome(hold.state, applied=True)

    def _draw(self, operation: Draw) -> Outcome:
        hold = self.holds.get(operation.id)
        if hold is None or (hold.state, "draw") not in TRANSITIONS or operation.step <= hold.step:
            return Outcome(None if hold is None else hold.state, applied=False)
        crossed: list[Crossing] = []
        for node, spent, held in zip(operation.nodes, operation.spent, hold.held, strict=True):
            crossed += self._add(node, spent, max(0, spent - held))
        hold.held = (0,) * len(hold.held)
        decision = decide(list(map(self.balance, operation.nodes)), operation.held, operation.now)
        hold.held = operation.held if decision.allowed else operation.least
        hold.step, hold.lasts = operation.step, operation.ttl > 0
        return Outcome(hold.state, True, None if decision.allowed else decision, tuple(crossed))

    def _adjust(self, operation: Adjust) -> Outcome:
        known = self.entries.setdefault(operation.id, operation)
        if known is not operation:
            if (known.nodes, known.amounts) != (operation.nodes, operation.amounts):
                raise StoreError("other amounts")
            return Outcome(State.SETTLED, applied=False)
        crossed: list[Crossing] = []
        for node, amount in zip(operation.nodes, operation.amounts, strict=True):
            crossed += self._add(node, max(amount, -self.spent.get(node.key, 0)), max(0, amount))
        return Outcome(State.SETTLED, applied=True, crossed=tuple(crossed))

    def _sweep(self, operation: Sweep) -> Swept:
        crossed: list[Crossing] = []
        late = sorted(id for id, hold in self.holds.items() if not hold.lasts and (hold.state, "expire") in TRANSITIONS)
        for id in late:
            hold = self.holds[id]
            self._change(id, "expire")
            for node, held in zip(hold.nodes, hold.held, strict=True):
                crossed += self._add(node, held, 0)
        return Swept(tuple(late), tuple(crossed))

    def _read(self, operation: Read) -> tuple[Balance, ...]:
        return tuple(map(self.balance, operation.nodes))

    def _change(self, id: str, event: Event) -> Outcome:
        hold = self.holds.get(id)
        if hold is None:
            return Outcome(None, applied=False)
        before, after = hold.state, TRANSITIONS.get((hold.state, event))
        if after is None:
            return Outcome(before, applied=False)
        hold.state = after
        if before is State.FORFEITED:
            for node, held in zip(hold.nodes, hold.held, strict=True):
                self.spent[node.key] = max(0, self.spent[node.key] - held)
        return Outcome(after, applied=True)

    def _add(self, node: Node, amount: int, overrun: int) -> list[Crossing]:
        spent = self.spent[node.key] = self.spent.get(node.key, 0) + amount
        self.overrun[node.key] = self.overrun.get(node.key, 0) + overrun
        fired = max(self.fired.get(key, 0) for key in (node.key, *node.also))
        spent += sum(self.spent.get(key, 0) for key in node.also)
        crossed = [Crossing(node, mark, spent) for mark in node.marks if fired < mark <= spent]
        self.fired[node.key] = max([self.fired.get(node.key, 0), *(crossing.mark for crossing in crossed)])
        return crossed


def _keys(nodes: Sequence[Node]) -> list[str]:
    return [node.key for node in nodes]


# --- random sequences ----------------------------------------------------------------------------------------------------


class _Sequence:
    """Random operations on a small tree; few ids, so that most of them come back in every state.

    Two windows; of some budgets they are parts of a rolling one.
    """

    def __init__(self, store: Store, seed: str) -> None:
        self.store = store
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311 - to be replayed, not to be secret
        self.model = _Model()
        rolling = [level for level in _LEVELS if self.random.random() < 0.5]
        self.nodes = [
            self._node(level, window, unit, rolling=level in rolling)
            for level in _LEVELS
            for window in (0, 7)
            for unit in _UNITS
        ]
        self.done: list[Operation[Any]] = []

    def run(self, count: int) -> None:
        for _ in range(count):
            self._step(self._operation())
            self._step(Read(tuple(self.nodes)))

    def _node(self, level: str, window: int, unit: str, *, rolling: bool) -> Node:
        limit = self.random.choice((None, 0, 1, 100, 1000, 10_000, _LARGE, MAX_AMOUNT))
        marks = tuple(sorted({limit // 2, limit - limit // 5, limit} - {0})) if limit else ()
        also = (Node(level, 0, unit, None).key,) if rolling and window else ()
        return Node(level, window, unit, limit, 0, marks, level, also)

    def _step(self, operation: Operation[Any]) -> None:
        self.done.append(operation)
        found, expected = _answer(operation.execute, self.store), _answer(self.model.apply, operation)
        if _comparable(found) != _comparable(expected):
            steps = "\n  ".join(map(str, (step for step in self.done[-20:] if not isinstance(step, Read))))
            raise AssertionError(f"seed {self.seed}, after\n  {steps}\nexpected {expected}\nbut got  {found}")

    def _operation(self) -> Operation[Any]:
        choose, id = self.random.random(), f"call-{self.random.randrange(12)}"
        hold = self.model.holds.get(id)
        if hold is None or choose < 0.25:
            return self._reserve(id)
        nodes, held = hold.nodes, hold.held
        if choose < 0.55:
            return Settle(id, nodes, tuple(self._actual(amount) for amount in held), _NOW)
        makers: Sequence[Callable[[], Operation[Any]]] = (
            lambda: MarkSent(id),
            lambda: Release(id, nodes),
            lambda: Extend(id, nodes, _NOW, self._ttl()),
            lambda: Extend(id, nodes, _NOW, self._ttl(), tuple(self._amount(node) for node in nodes)),
            lambda: self._draw(id, hold),
            lambda: self._draw(id, hold),
            lambda: Sweep(_NOW),
            lambda: Adjust(f"entry-{id}", nodes, tuple(self.random.randrange(-150, 150) for _ in nodes), _NOW),
            lambda: Settle(f"never-{id}", nodes, held, _NOW),
            lambda: Settle(id, nodes, hold.actual or held, _NOW),
        )
        return self.random.choice(makers)()

    def _reserve(self, id: str) -> Operation[Any]:
        known = self.model.holds.get(id)
        if known is not None and self.random.random() < 0.5:
            return Reserve(id, known.nodes, known.asked, _NOW, self._ttl())
        depth, window = self.random.randrange(1, len(_LEVELS) + 1), self.random.choice((0, 7))
        units = self.random.choice((("USD",), ("tokens",), _UNITS))
        nodes = tuple(
            node
            for node in self.nodes
            if node.budget in _LEVELS[:depth] and node.window == window and node.unit in units
        )
        return Reserve(id, nodes, tuple(self._amount(node) for node in nodes), _NOW, self._ttl())

    def _draw(self, id: str, hold: _Hold) -> Draw:
        spent = tuple(self._actual(amount) or 0 for amount in hold.held)
        held = tuple(self._amount(node) for node in hold.nodes)
        least = tuple(max(0, before - now) for before, now in zip(hold.held, spent, strict=True))
        step = hold.step + self.random.choice((0, 1, 1, 1, 2))
        return Draw(id, hold.nodes, step, spent, held, least, _NOW, self._ttl())

    def _ttl(self) -> int:
        return 0 if self.random.random() < 0.4 else _FOREVER

    def _amount(self, node: Node) -> int:
        left = self.model.balance(node).remaining
        exact: tuple[int, ...] = (left, left + 1, left // 2) if left is not None and left < MAX_AMOUNT else (_LARGE,)
        return min(MAX_AMOUNT, self.random.choice((0, 1, 7, 50, *exact)))

    def _actual(self, held: int) -> int | None:
        more = held + 3 if held < _LARGE else held
        amounts: tuple[int | None, ...] = (0, held, held // 2, more, None)
        return self.random.choice(amounts)


def _answer(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except StoreError:
        return StoreError


def _comparable(answer: Any) -> Any:
    # When a decision was taken is the store's own business, and so is in what order a sweep tells.
    if isinstance(answer, Outcome):
        refusals = answer.decision.refusals if isinstance(answer.decision, Decision) else None
        return answer.state, answer.applied, refusals, answer.crossed
    if isinstance(answer, Swept):
        return set(answer.forfeited), sorted((one.node.key, one.mark) for one in answer.crossed)
    return answer


# --- single promises -----------------------------------------------------------------------------------------------------


def _node(limit: int | None, budget: str = "budget", *, marks: tuple[int, ...] = ()) -> Node:
    return Node(budget, 0, "USD", limit, 0, marks, budget)


def _hold(store: Store, id: str, nodes: tuple[Node, ...], amount: int, ttl: int = _FOREVER) -> Outcome:
    return Reserve(id, nodes, (amount,) * len(nodes), _NOW, ttl).execute(store)


def _transitions(store: Store, workers: int) -> None:
    """Every event in every state does what the table says, and nothing where the table says nothing."""
    nodes = (_node(None),)
    events: dict[Event, Operation[Any]]
    for state in State:
        for event in ("mark_sent", "settle", "release", "extend", "draw"):
            id = f"{state}-{event}"
            _bring_to(store, id, nodes, state)
            events = {
                "mark_sent": MarkSent(id),
                "settle": Settle(id, nodes, (5,), _NOW),
                "release": Release(id, nodes),
                "extend": Extend(id, nodes, _NOW, _FOREVER),
                "draw": Draw(id, nodes, 1, (1,), (4,), (4,), _NOW, _FOREVER),
            }
            after = TRANSITIONS.get((state, event))
            found = events[event].execute(store)
            _expect(
                f"{event} of a {state} reservation", (found.state, found.applied), (after or state, after is not None)
            )
    for event, operation in {"mark_sent": MarkSent("no"), "release": Release("no", nodes)}.items():
        _expect(f"{event} of an unknown id", operation.execute(store), Outcome(None, applied=False))


def _bring_to(store: Store, id: str, nodes: tuple[Node, ...], state: State) -> None:
    _hold(store, id, nodes, 5, ttl=0 if state is State.FORFEITED else _FOREVER)
    way: dict[State, Operation[Any]] = {
        State.SENT: MarkSent(id),
        State.SETTLED: Settle(id, nodes, (5,), _NOW),
        State.RELEASED: Release(id, nodes),
        State.FORFEITED: Sweep(_NOW),
    }
    if state in way:
        way[state].execute(store)


def _all_or_nothing(store: Store, workers: int) -> None:
    """A refusal at one node leaves every other as it was."""
    nodes = (_node(100, "org"), _node(10, "team"), _node(100, "user"))
    outcome = _hold(store, "big", nodes, 11)
    _expect("a call too large for the middle node", outcome.applied, False)
    if outcome.decision is None or [refusal.index for refusal in outcome.decision.refusals] != [1]:
        raise AssertionError(f"the refusal must name node 1, not {outcome.decision}")
    for balance in Read(nodes).execute(store):
        _expect("held after a refusal", balance.reserved, 0)
    _expect("the same id with what fits", _hold(store, "big", nodes, 10).applied, True)


def _overrun(store: Store, workers: int) -> None:
    """A settlement above its hold is recorded in full, and the next call is refused."""
    nodes = (_node(10),)
    _hold(store, "a", nodes, 8)
    Settle("a", nodes, (25,), _NOW).execute(store)
    _expect("after an overrun", Read(nodes).execute(store), (Balance(10, spent=25, overrun=17),))
    _expect("a call after an overrun", _hold(store, "b", nodes, 1).applied, False)
    _expect("a call that takes nothing", _hold(store, "c", nodes, 0).applied, True)


def _marks(store: Store, workers: int) -> None:
    """Each mark is reported once, also when a credit takes the balance below it and it is reached again."""
    nodes = (_node(100, marks=(50, 80, 100)),)
    told: list[int] = []
    for number, amount in enumerate((49, 1, 35, -60, 40, 35)):
        told += [one.mark for one in Adjust(f"{number}", nodes, (amount,), _NOW).execute(store).crossed]
    _expect("marks reported", told, [50, 80, 100])


def _late_truth(store: Store, workers: int) -> None:
    """A lease that ran out counts as spent; a late settlement or release takes its place."""
    nodes = (_node(100),)
    for id in ("settled", "released", "lost"):
        _hold(store, id, nodes, 20, ttl=0)
    _expect("forfeited ids", sorted(Sweep(_NOW).execute(store).forfeited), ["lost", "released", "settled"])
    _expect("after expiry", Read(nodes).execute(store), (Balance(100, spent=60, forfeited=60),))
    Settle("settled", nodes, (5,), _NOW).execute(store)
    Release("released", nodes).execute(store)
    _expect("after the truth", Read(nodes).execute(store), (Balance(100, spent=25, forfeited=20),))


def _lease(store: Store, workers: int) -> None:
    """A hold is spent in steps; a step that comes twice counts once, and where there is no room the least is held."""
    nodes = (_node(100),)
    _hold(store, "lease", nodes, 40)
    _hold(store, "other", nodes, 20)
    first = Draw("lease", nodes, 1, (30,), (50,), (10,), _NOW, _FOREVER)
    for applied in (True, False):
        _expect("a draw", first.execute(store), Outcome(State.HELD, applied=applied))
    _expect("after it", Read(nodes).execute(store), (Balance(100, spent=30, reserved=70),))
    found = Draw("lease", nodes, 2, (45,), (30,), (5,), _NOW, _FOREVER).execute(store)
    _expect("a draw without room", (found.applied, found.decision is None), (True, False))
    _expect("after that", Read(nodes).execute(store), (Balance(100, spent=75, reserved=25),))
    Settle("lease", nodes, (7,), _NOW).execute(store)
    _expect("after its end", Read(nodes).execute(store), (Balance(100, spent=82, reserved=20, overrun=2),))


def _rolling(store: Store, workers: int) -> None:
    """The parts of a rolling window share one limit, and a mark is reported once in it."""
    old = Node("rolling", 0, "USD", 100, 0, (50,), "rolling")
    new = Node("rolling", 7, "USD", 100, 0, (50,), "rolling", (old.key,))
    _hold(store, "old", (old,), 60)
    _expect("a call for more than is left", _hold(store, "more", (new,), 41).applied, False)
    _expect("a call for what is left", _hold(store, "left", (new,), 40).applied, True)
    _expect("both together", Read((new,)).execute(store), (Balance(100, reserved=100),))
    told = [one.mark for one in Settle("old", (old,), (30,), _NOW).execute(store).crossed]
    told += [one.mark for one in Settle("left", (new,), (40,), _NOW).execute(store).crossed]
    told += [one.mark for one in Adjust("more", (new,), (5,), _NOW).execute(store).crossed]
    _expect("marks reported", told, [50])
    _expect("the old part alone", Read((old,)).execute(store), (Balance(100, spent=30),))


def _accounts(store: Store, workers: int) -> None:
    """All accounts can be listed, with what their nodes say."""
    nodes = (
        _node(None, "a"),
        _node(10, "b", marks=(5, 8)),
        Node("b", 7, "tokens", 3, 9, (), "b", ("b\x1f0\x1fUSD",), 11),
    )
    Adjust("one", nodes[:1], (4,), _NOW).execute(store)
    Adjust("two", nodes[1:], (2, 2), _NOW).execute(store)
    found = Accounts().execute(store)
    _expect("accounts", [node for node, _ in found], sorted(nodes, key=lambda node: node.key))
    _expect("what they keep", [node.kept or node.until for node, _ in found], [0, 0, 11])
    _expect("their labels", [node.label for node, _ in found], ["a", "b", "b"])
    _expect("how they stand", [balance.spent for _, balance in found], [4, 2, 4])
    _expect("those of one budget", Accounts("b").execute(store), found[1:])


def _notes(store: Store, workers: int) -> None:
    """Notes are kept, found by how their keys begin, vanish in time and are taken once."""
    Put("a/1", "one", _NOW).execute(store)
    Put("a/2", "zwei \N{GRINNING FACE} % _ *", _NOW, until=_NOW + 10).execute(store)
    Put("b/1", "x" * 5000, _NOW).execute(store)
    pairs = (("a/1", "one"), ("a/2", "zwei \N{GRINNING FACE} % _ *"))
    _expect("notes under a/", Notes("a/", _NOW).execute(store), pairs)
    _expect("notes under %", Notes("%", _NOW).execute(store), ())
    _expect("all of them later", [key for key, _ in Notes("", _NOW + 10).execute(store)], ["a/1", "b/1"])
    _expect("a second note of that key", Put("a/1", "two", _NOW, new=True).execute(store), False)
    _expect("in the place of one that is over", Put("a/2", "three", _NOW + 10, new=True).execute(store), True)
    _expect("another text", Put("a/1", "two", _NOW).execute(store), True)
    _expect("taken", [Take("a/1", _NOW).execute(store) for _ in range(2)], ["two", None])
    Put("a/1", "short", _NOW, until=_NOW + 1).execute(store)
    _expect("taken too late", Take("a/1", _NOW + 1).execute(store), None)


def _forgets(store: Store, workers: int) -> None:
    """A node that is forgotten is as new, and its neighbours stay."""
    gone, stays = _node(10, "gone"), _node(10, "stays")
    for node in (gone, stays):
        Adjust(node.budget, (node,), (4,), _NOW).execute(store)
    Forget((gone,)).execute(store)
    _expect("after forgetting", [one.spent for one in Read((gone, stays)).execute(store)], [0, 4])


# --- many at once --------------------------------------------------------------------------------------------------------


def _same_id(store: Store, workers: int) -> None:
    """Of many who make the same reservation and settlement, one has an effect."""
    nodes = (_node(1000),)
    held = _together(workers, lambda number: _hold(store, "one", nodes, 10).applied)
    _expect("reservations of one id that took effect", held.count(True), 1)
    settled = _together(workers, lambda number: Settle("one", nodes, (7,), _NOW).execute(store).applied)
    _expect("settlements of one id that took effect", settled.count(True), 1)
    _expect("after that", Read(nodes).execute(store), (Balance(1000, spent=7),))


def _one_note(store: Store, workers: int) -> None:
    """Of many who leave or take the same note, one does."""
    left = _together(workers, lambda number: Put("once", str(number), _NOW, new=True).execute(store))
    _expect("notes that were left", left.count(True), 1)
    taken = _together(workers, lambda number: Take("once", _NOW).execute(store))
    _expect("who took it", [one for one in taken if one is not None], [str(left.index(True))])


class _Race:
    """Callers who ask for about four times the limit together, and keep their own bill of what they spent."""

    cost, calls = 10, 40

    def __init__(self, workers: int) -> None:
        self.limit = self.cost * workers * self.calls // 4 + 3
        self.nodes = (_node(None, "org"), _node(self.limit, "team"), _node(self.limit * 2, "run"))
        self.bills = [0] * workers

    def operations(self, number: int) -> Generator[Operation[Outcome], bool, None]:
        """Ask this for the next operation, and send it whether that was applied."""
        chance = random.Random(number)  # noqa: S311 - to be replayed, not to be secret
        amounts = (self.cost,) * len(self.nodes)
        for call in range(self.calls):
            id = f"{number}-{call}"
            applied = yield Reserve(id, self.nodes, amounts, _NOW, _FOREVER)
            if not applied:
                continue
            if chance.random() < 0.2:
                yield Release(id, self.nodes)
                continue
            self.bills[number] += self.cost
            yield Settle(id, self.nodes, amounts, _NOW)

    def judge(self, store: Store, who: str) -> None:
        balances = Read(self.nodes).execute(store)
        bill = sum(self.bills)
        if bill > self.limit:
            raise AssertionError(f"{who} spent {bill} against a limit of {self.limit}")
        for balance in balances:
            _expect(f"balance after {who} spent {bill}", (balance.spent, balance.reserved), (bill, 0))
        left, nodes = self.limit - bill, self.nodes[1:2]
        _expect("a call for more than is left", _hold(store, "more", nodes, left + 1).applied, False)
        _expect("a call for what is left", _hold(store, "left", nodes, left).applied, True)


def _threads(store: Store, workers: int) -> None:
    """Threads never get more than the limit, and together they get all of it."""
    race = _Race(workers)

    def work(number: int) -> None:
        operations = race.operations(number)
        operation = next(operations, None)
        while operation is not None:
            operation = _send(operations, operation.execute(store).applied)

    _together(workers, work)
    race.judge(store, f"{workers} threads")


def _tasks(store: Store, workers: int) -> None:
    """So do tasks."""
    race = _Race(workers)

    async def work(number: int) -> None:
        operations = race.operations(number)
        operation = next(operations, None)
        while operation is not None:
            outcome = await operation.aexecute(store)
            await asyncio.sleep(0)
            operation = _send(operations, outcome.applied)

    async def everybody() -> None:
        await asyncio.gather(*map(work, range(workers)))

    # In a thread of its own, so that the suite can be called where a loop is running.
    _together(1, lambda number: asyncio.run(everybody()))
    race.judge(store, f"{workers} tasks")


def _send(operations: Generator[Operation[Outcome], bool, None], applied: bool) -> Operation[Outcome] | None:
    try:
        return operations.send(applied)
    except StopIteration:
        return None


def _together(workers: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(number)` in so many threads at once; the results, or the first error."""
    results: list[Any] = [None] * workers
    errors: list[BaseException] = []
    start = threading.Barrier(workers)

    def one(number: int) -> None:
        start.wait()
        try:
            results[number] = work(number)
        except BaseException as error:  # raised again below, in the thread of the caller
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # switch threads as often as possible
    try:
        threads = [threading.Thread(target=one, args=(number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    return results
