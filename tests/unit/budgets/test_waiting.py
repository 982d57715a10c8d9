"""Held is not spent: who waits for whom, in what order, for how long, and who does not wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from aifinops import metering, runtime, scope
from aifinops.budgets.budget import ActiveBudget, Budget
from aifinops.budgets.guard import Guard, Reservation
from aifinops.budgets.stores.memory import MemoryStore
from aifinops.budgets.waiting import Queues, Ticket, Wait, keep_ticket
from aifinops.errors import BudgetExceeded
from aifinops.metering import Call, Invocation
from aifinops.reading import Reading
from aifinops.testing.clock import FakeClock

DOLLAR = 10**9


@pytest.fixture
def guard() -> Guard:
    return Guard(MemoryStore(), FakeClock(datetime(2026, 11, 30, 12, tzinfo=UTC)))


def active(limit: Any = "$1", **arguments: Any) -> ActiveBudget:
    return ActiveBudget(Budget.parse(limit, **arguments))


def ask(guard: Guard, budget: ActiveBudget, id: str, cents: int = 60, ticket: Ticket | None = None) -> Reservation:
    def reserve() -> Reservation:
        found = guard.reserve([budget], {"USD": cents * DOLLAR // 100}, id=id, at=guard.clock.time_ns())
        assert found is not None
        return found

    if ticket is None:
        return reserve()
    with keep_ticket(ticket):
        return reserve()


def elsewhere(work: Callable[[], Any]) -> Any:
    """Do it in a thread of its own, so that its holds are not ours."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_what_is_only_held_is_waited_for(guard: Guard) -> None:
    """The call that finds the money in other hands is given a place in the queue; when it comes back it goes through."""
    budget = active()
    first = elsewhere(lambda: ask(guard, budget, "first"))
    with pytest.raises(Wait) as caught:
        ask(guard, budget, "second")
    ticket = caught.value.ticket
    assert caught.value.error.transient
    assert "60" in str(caught.value)
    with pytest.raises(Wait):
        ask(guard, budget, "second again", ticket=ticket)
    guard.settle(first, {"USD": 10 * DOLLAR // 100})
    assert ask(guard, budget, "second at last", ticket=ticket).amounts == (60 * DOLLAR // 100,)


def test_first_come_first_served(guard: Guard) -> None:
    """Whoever comes while others wait stands behind them, although what he needs is there; and each is served in turn."""
    budget = active()
    first = elsewhere(lambda: ask(guard, budget, "first"))
    tickets = []
    for id, cents in (("second", 60), ("third", 10)):
        with pytest.raises(Wait) as caught:
            ask(guard, budget, id, cents)
        tickets.append(caught.value.ticket)
    guard.release(first)
    with pytest.raises(Wait):
        ask(guard, budget, "third once more", 10, tickets[1])
    assert ask(guard, budget, "second once more", 60, tickets[0])
    assert ask(guard, budget, "third at last", 10, tickets[1])
    assert ask(guard, budget, "nobody waits", 10)


def test_who_takes_nothing_waits_for_nobody(guard: Guard) -> None:
    """A call that costs nothing passes the queue."""
    budget = active()
    elsewhere(lambda: ask(guard, budget, "first"))
    with pytest.raises(Wait):
        ask(guard, budget, "second")
    assert ask(guard, budget, "free", 0)


def test_a_place_that_is_given_up_lets_the_next_one_ask(guard: Guard) -> None:
    """Whoever is cancelled while waiting holds nothing, and nobody waits for him."""
    budget = active()
    first = elsewhere(lambda: ask(guard, budget, "first"))
    tickets = []
    for id in ("second", "third"):
        with pytest.raises(Wait) as caught:
            ask(guard, budget, id)
        tickets.append(caught.value.ticket)
    guard.release(first)
    tickets[0].leave()
    tickets[0].leave()
    started = time.monotonic()
    tickets[1].wait(10)
    assert time.monotonic() - started < 5
    assert ask(guard, budget, "third at last", ticket=tickets[1])


def test_nobody_waits_for_himself(guard: Guard) -> None:
    """A thread that holds all that is in its way would wait until its patience is over: it is refused at once."""
    budget = active()
    ask(guard, budget, "mine")
    with pytest.raises(BudgetExceeded) as caught:
        ask(guard, budget, "mine too")
    assert not isinstance(caught.value, Wait)
    assert caught.value.transient


async def test_a_task_may_wait_for_another_of_its_thread(guard: Guard) -> None:
    """In an event loop the holder may be another task, which goes on while this one waits."""
    budget = active()
    ask(guard, budget, "of one task")
    with pytest.raises(Wait):
        ask(guard, budget, "of another")


@pytest.mark.parametrize("budget", [active(max_wait=0), active(on_exceed="warn")])
def test_some_never_wait(guard: Guard, budget: ActiveBudget) -> None:
    """A patience of nothing, and a budget that only warns."""
    elsewhere(lambda: ask(guard, budget, "first"))
    if budget.budget.on_exceed == "warn":
        assert ask(guard, budget, "second").exceeded
    else:
        with pytest.raises(BudgetExceeded) as caught:
            ask(guard, budget, "second")
        assert not isinstance(caught.value, Wait)


def test_what_is_spent_is_not_waited_for(guard: Guard) -> None:
    """It does not come back."""
    budget = active()
    guard.settle(elsewhere(lambda: ask(guard, budget, "first")), {"USD": 60 * DOLLAR // 100})
    with pytest.raises(BudgetExceeded) as caught:
        ask(guard, budget, "second")
    assert not isinstance(caught.value, Wait)


def test_throttle_waits_for_the_next_window(guard: Guard) -> None:
    """When it is near enough; otherwise the call is refused at once, and told when there is room."""
    clock = guard.clock
    assert isinstance(clock, FakeClock)
    soon, late = (
        active(per="minute", name="m", on_exceed="throttle", max_wait=60),
        active(per="day", name="d", on_exceed="throttle", max_wait=60),
    )
    for budget in (soon, late):
        guard.settle(ask(guard, budget, f"first {budget.key}"), {"USD": DOLLAR})
    with pytest.raises(Wait) as caught:
        ask(guard, soon, "second")
    assert caught.value.seconds == 60
    clock.advance(60)
    assert ask(guard, soon, "second again", ticket=caught.value.ticket)
    with pytest.raises(BudgetExceeded) as refused:
        ask(guard, late, "second of the day")
    assert not isinstance(refused.value, Wait)
    assert refused.value.resets_at == datetime(2026, 12, 1, tzinfo=UTC)


def test_throttle_never_waits_for_what_never_fits(guard: Guard) -> None:
    """A call that is larger than the whole limit."""
    with pytest.raises(BudgetExceeded) as caught:
        ask(guard, active(per="minute", name="m", on_exceed="throttle"), "huge", 200)
    assert not isinstance(caught.value, Wait)


def test_a_callable_may_throttle(guard: Guard) -> None:
    """It is asked about what is spent, not about what is held."""
    asked: list[BudgetExceeded] = []
    budget = active(per="minute", name="m", on_exceed=lambda error: asked.append(error) or "throttle", max_wait=90)
    first = elsewhere(lambda: ask(guard, budget, "first"))
    with pytest.raises(Wait) as caught:
        ask(guard, budget, "second")
    assert not asked
    guard.settle(first, {"USD": DOLLAR})
    with pytest.raises(Wait):
        ask(guard, budget, "second again", ticket=caught.value.ticket)
    assert len(asked) == 1


def test_patience_ends(guard: Guard) -> None:
    """After `max_wait` seconds the refusal is raised, and says that only held money stood in the way."""
    clock = guard.clock
    assert isinstance(clock, FakeClock)
    budget = active(max_wait=5)
    elsewhere(lambda: ask(guard, budget, "first"))
    with pytest.raises(Wait) as caught:
        ask(guard, budget, "second")
    clock.advance(5)
    with pytest.raises(BudgetExceeded) as refused:
        guard.pause(caught.value)
    assert refused.value is caught.value.error
    assert refused.value.transient


# --- calls ---------------------------------------------------------------------------------------------------------------

CALL = Call("openai", "chat", "gpt-5-mini", body={"messages": []}, max_output=1000)


def opened() -> Invocation:
    found = metering.begin(CALL)
    assert found is not None
    found.leave()
    return found


def upper() -> str:
    """What one such call may cost, as a limit for one at a time."""
    with scope_of(active("$100")):
        call = opened()
        call.fail(ConnectionError(), refused=True)
    assert call.upper is not None
    return f"{call.upper * 3 / 2:f} USD"


class scope_of:
    """Put a budget into force, without a block."""

    def __init__(self, budget: ActiveBudget) -> None:
        self.budget = budget

    def __enter__(self) -> None:
        self.token = scope.enter(budget=self.budget)

    def __exit__(self, *_: object) -> None:
        scope.leave(self.token)


def usage() -> Reading:
    return Reading({"input_tokens": 1, "output_tokens": 1}, model="gpt-5-mini")


def test_threads_take_turns() -> None:
    """A limit with room for one call at a time serves many threads one after the other; none is refused."""
    budget, done = active(upper()), []

    def work() -> None:
        with scope_of(budget):
            call = opened()
            time.sleep(0.01)
            call.settle(usage())
            done.append(call.id)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 12


async def test_tasks_take_turns_and_the_loop_goes_on() -> None:
    """So do tasks, while others of the same loop are served."""
    budget, ticks = active(upper()), 0
    over = asyncio.Event()

    async def work() -> None:
        with scope_of(budget):
            call = await metering.begin_patiently(opened)
            await asyncio.sleep(0.01)
            call.settle(usage())

    async def tick() -> None:
        nonlocal ticks
        while not over.is_set():
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.gather(*(work() for _ in range(12)))
    over.set()
    await ticking
    assert ticks > 20
    assert not runtime.get().guard._queues


async def test_a_task_that_is_cancelled_leaves_its_place() -> None:
    """It holds nothing and nobody waits behind it."""
    budget = active(upper())
    with scope_of(budget):
        call = opened()
        waiting = asyncio.create_task(metering.begin_patiently(opened))
        await asyncio.sleep(0.01)
        assert runtime.get().guard._queues
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not runtime.get().guard._queues
        call.settle(usage())
        opened().settle(usage())


@pytest.mark.parametrize("steps", range(5))
async def test_a_task_that_is_woken_and_cancelled_at_once_is_cancelled(steps: int) -> None:
    """Whatever the event loop has done between the two."""
    ticket = Ticket(Queues(), 0)
    waiting = asyncio.create_task(ticket.await_(30))
    await asyncio.sleep(0.01)
    ticket.wake()
    for _ in range(steps):
        await asyncio.sleep(0)
    was_over = waiting.done()
    waiting.cancel()
    if was_over:
        await waiting
    else:
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_seam_that_cannot_wait_in_a_task_is_refused() -> None:
    """The event loop is never held up."""
    with scope_of(active(upper())):
        call = opened()
        with pytest.raises(BudgetExceeded) as caught:
            opened()
        assert type(caught.value) is BudgetExceeded
        call.settle(usage())


async def test_patience_ends_in_a_task_too() -> None:
    """With the same error, and no place left behind."""
    budget = active(upper(), max_wait=0.05)
    with scope_of(budget):
        call = opened()
        with pytest.raises(BudgetExceeded) as caught:
            await metering.begin_patiently(opened)
        assert type(caught.value) is BudgetExceeded
        assert caught.value.transient
        assert not runtime.get().guard._queues
        call.settle(usage())


def test_patience_ends_in_a_thread_too() -> None:
    """Likewise."""
    budget = active(upper(), max_wait=0.05)
    with scope_of(budget):
        call = elsewhere(lambda: _under(budget, opened))
        with pytest.raises(BudgetExceeded) as caught:
            opened()
        assert type(caught.value) is BudgetExceeded
        assert not runtime.get().guard._queues
        call.settle(usage())


def _under(budget: ActiveBudget, work: Callable[[], Any]) -> Any:
    with scope_of(budget):
        return work()
