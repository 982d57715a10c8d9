"""A call in the middle of a call, at every point where CPython lets a signal handler or a finalizer in, one point after the other.

`test_reentry` leaves it to a timer where it comes in; here nothing is left to chance. CPython looks for signals when a function begins, after a call
and when a loop goes round (https://devguide.python.org/internals/interpreter/, "eval breaker"); the collector runs there, too.
"""

from __future__ import annotations

import dis
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any

import pytest

from aifinops.budgets.stores import accounts, leases, memory
from aifinops.budgets.stores.base import Adjust, Draw, Node, Reserve, Settle, Store, Sweep
from aifinops.budgets.stores.leases import LeasedStore
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.testing.clock import FakeClock

FILES = {module.__file__ for module in (accounts, leases, memory)}
LIMIT, ROOM, AMOUNT, FOREVER = 1000, 100, 10, 10**18
NODES = tuple(Node(name, 0, "USD", LIMIT, marks=(LIMIT - ROOM + 1, LIMIT - 50)) for name in ("org", "team"))


@cache
def _points(code: CodeType) -> frozenset[int]:
    """Offsets before which something may come in."""
    found, after = set(), False
    for instruction in dis.get_instructions(code):
        if after or instruction.opname.startswith("JUMP_BACKWARD"):
            found.add(instruction.offset)
        after = instruction.opname.startswith(("CALL", "RESUME"))
    return frozenset(found)


class Interrupted:
    """Let something in at one point: the `at`-th that is passed."""

    def __init__(self, at: int, come_in: Callable[[], object]) -> None:
        self.left = at
        self.come_in = come_in
        self.came = False

    def __enter__(self) -> Interrupted:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if self.came or frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in _points(frame.f_code):
            self.left -= 1
            if self.left < 0:
                self.came = True
                self.come_in()
        return self._trace


class Till:
    """A store, what was given of it, and what of that was used."""

    def __init__(self, *, leased: bool) -> None:
        self.inner = MemoryStore()
        self.clock = FakeClock()
        leases = LeasedStore(self.inner, self.clock, often=1, denied_s=0, every_s=0)
        self.store: Store = leases if leased else self.inner
        self.given: list[str] = []
        self.used = LIMIT - ROOM
        Adjust("others", NODES, (self.used, self.used), 0).execute(self.inner)
        self._numbers = itertools.count()

    def hold(self, amount: int = AMOUNT) -> None:
        id = f"call-{next(self._numbers)}"
        if Reserve(id, NODES, (amount, amount), 0, FOREVER).execute(self.store).applied:
            self.given.append(id)

    def settle(self, amount: int = 1) -> None:
        if self.given:
            id = self.given.pop(0)
            assert Settle(id, NODES, (amount, amount), 0).execute(self.store).applied
            self.used += amount

    def post(self, amount: int) -> None:
        """A charge that nobody announced, or a refund."""
        assert Adjust(f"entry-{next(self._numbers)}", NODES, (amount, amount), 0).execute(self.store).applied
        self.used += amount

    def tell(self) -> None:
        if isinstance(self.store, LeasedStore):
            self.store.sync()

    def judge(self) -> None:
        for account in self.inner._accounts.values():
            assert account.spent + account.reserved <= LIMIT
            assert self.used + AMOUNT * len(self.given) <= account.spent + account.reserved
        while self.given:
            self.settle(0)
        Settle("job", NODES, (0, 0), 0).execute(self.inner)
        if isinstance(self.store, LeasedStore):
            self.store.close()
        assert [(account.spent, account.reserved) for account in self.inner._accounts.values()] == [(self.used, 0)] * 2


def _after(holds: int, settled: int = 0) -> Callable[[Till], None]:
    def begin(till: Till) -> None:
        for _ in range(holds):
            till.hold()
        for _ in range(settled):
            till.settle()

    return begin


def _idle(begin: Callable[[Till], None]) -> Callable[[Till], None]:
    """Nothing was taken of the lease for a while."""

    def and_wait(till: Till) -> None:
        begin(till)
        till.clock.advance(2)

    return and_wait


def _begin_job(till: Till) -> None:
    Reserve("job", NODES, (AMOUNT, AMOUNT), 0, FOREVER).execute(till.inner)
    _after(8)(till)


def _draw(till: Till) -> None:
    """A job that pays in advance: what it has held is spent, and as much is held again, or more."""
    outcome = Draw("job", NODES, 1, (5, 5), (AMOUNT, AMOUNT), (5, 5), 0, FOREVER).execute(till.inner)
    till.used += 5
    if outcome.decision is None:
        till.given.append("job")  # it is worth a call now


def _forfeit(till: Till) -> None:
    Reserve("late", NODES, (AMOUNT, AMOUNT), 0, 1).execute(till.inner)
    assert Sweep(10).execute(till.inner).forfeited == ("late",)
    _after(4)(till)


def _settle_late(till: Till) -> None:
    """Its lease has run out, and it comes back with the truth."""
    assert Settle("late", NODES, (4, 4), 10).execute(till.inner).applied
    till.used += 4


STEPS: dict[str, tuple[Callable[[Till], None], Callable[[Till], None]]] = {
    "first": (_after(0), Till.hold),
    "with room": (_after(4), Till.hold),
    "with a rest": (_after(4, 3), Till.hold),
    "with a small rest": (_after(9, 9), Till.hold),
    "with little room": (_after(9), Till.hold),
    "with room for a part": (_after(10, 1), Till.hold),
    "without room": (_after(10), Till.hold),
    "settle": (_after(6), Till.settle),
    "settle the last": (_after(1), Till.settle),
    "settle for more": (_after(6), lambda till: till.settle(AMOUNT + 5)),
    "tell": (_after(6, 4), Till.tell),
    "tell when idle": (_idle(_after(6, 4)), Till.tell),
    "close": (_idle(_after(6, 6)), Till.tell),
    "draw": (_begin_job, _draw),
    "settle late": (_forfeit, _settle_late),
    "post": (_after(4), lambda till: till.post(5)),
    "refund": (_after(4), lambda till: till.post(-5)),
}
COMING: dict[str, Callable[[Till], None]] = {
    "hold": Till.hold,
    "settle": Till.settle,
    "tell": Till.tell,
    "both": lambda till: (till.settle(), till.hold(), till.hold(), None)[-1],
}


def _ways() -> Iterator[tuple[bool, str, str]]:
    for leased, step, coming in itertools.product((False, True), STEPS, COMING):
        only = {
            "tell": True,
            "tell when idle": True,
            "close": True,
            "draw": False,
            "settle late": False,
        }  # these two ask the store within
        if only.get(step, leased) == leased and (leased or coming != "tell"):
            yield leased, step, coming


@pytest.mark.parametrize(("leased", "step", "coming"), list(_ways()))
def test_at_every_point(leased: bool, step: str, coming: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BUSY_S", "_CHANGE_S"):
        monkeypatch.setattr(leases, name, 0.0001)
    begin, act = STEPS[step]
    for at in itertools.count():
        till = Till(leased=leased)
        begin(till)
        with Interrupted(at, partial(COMING[coming], till)) as interrupted:
            act(till)
        till.judge()
        if not interrupted.came:
            break
    assert at > 5
